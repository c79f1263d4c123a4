"""Rotary embedding (RoPE): config.json's several ways of saying it, and frequency factors as llama.cpp's tensors.

What counts where two places say different things is transformers' rule (RotaryEmbeddingConfigMixin and the families'
configuration classes, 5.24).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jmedlite.base.errors import DataError
from jmedlite.base.native import F32
from jmedlite.base.wording import shown

ORIGINAL = "original_max_position_embeddings"
# What a type can't do without; transformers stops there too.
REQUIRED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
    "proportional": ("rope_theta",),
}
# Beyond them: what some type reads. A key of another type than the one that is set is not read, here or there.
OPTIONAL = (
    "rope_theta", "partial_rotary_factor", ORIGINAL, "attention_factor", "beta_fast", "beta_slow", "mscale",
    "mscale_all_dim", "truncate",
)  # fmt: skip
# `finetuned` tells of the training; `mrope_section` is about places in pictures, for text all its parts agree.
NO_MATTER = ("finetuned", "mrope_section", "mrope_interleaved")
# Settings of one type that llama.cpp reads from no key: they must have the value that its graph computes with.
COMPUTED_WITH = {
    "yarn": {"beta_fast": 32, "beta_slow": 1, "truncate": True, "extrapolation_factor": 1},
}
KNOWN = frozenset(
    ("type", "rope_type", "extrapolation_factor", *OPTIONAL, *NO_MATTER, *(k for ks in REQUIRED.values() for k in ks))
)
LISTS = ("short_factor", "long_factor")
WORDS = ("type", "rope_type")
FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class RopeNames:
    """Where a family's config.json has its rotary settings outside of their object.

    `local`: the place of the base of layers with a window; families that have it may keep an object for either kind,
    and must where the name is "".
    """

    theta: str = "rope_theta"
    share: str = "partial_rotary_factor"
    local: str | None = None


ROPE_NAMES = RopeNames()


@dataclass(frozen=True)
class Rope:
    """The rotary settings of one model: `parameters` as `rope_parameters` gives them, what was odd about them.

    `notes` say where two places differ and which one counts; `unknown` are keys that nobody knows.
    """

    parameters: dict[str, Any]
    notes: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def resolve(
    settings: Mapping[str, Any],
    given: Mapping[str, Any],
    names: RopeNames,
    types: tuple[str, ...],
    title: str,
    nearly: tuple[str, ...] = (),
) -> Rope:
    """One set of rotary settings out of all places; `given` is config.json's own, without a family's defaults.

    `types` are those that llama.cpp computes for the family of this `title`, `nearly` settings that it computes
    otherwise, which is said and not refused. Raises DataError where the settings are
    incomplete, of a wrong type, or not what llama.cpp can compute.
    """
    notes: list[str] = []
    scaling, new = (_object(given, key) for key in ("rope_scaling", "rope_parameters"))
    unknown = [f"{where}.{k}" for where, d in (("rope_scaling", scaling), ("rope_parameters", new)) for k in _odd(d)]
    nested = {key: new.pop(key) for key in (FULL, SLIDING) if isinstance(new.get(key), dict)}
    if nested and (names.local is None or new):
        raise DataError(
            "config.json: rope_parameters has settings for each type of layer"
            + (" beside others, which transformers would not read" if new else ", which this family does not have")
        )
    if names.local == "" and scaling:
        kind = scaling.get("rope_type", scaling.get("type"))
        raise DataError(
            f"config.json: has rope_scaling ({shown(kind)}), expected rope_parameters with settings for each type of "
            "layer"
        )
    if names.local is not None and new:
        raise DataError("config.json: rope_parameters has no full_attention, transformers would not read the rest")
    if names.local is not None:
        new = _clean(nested.get(FULL))
        unknown += [f"rope_parameters.{kind}.{k}" for kind, d in nested.items() for k in _odd(d)]
    if scaling and new and any(new.get(k, v) != v for k, v in scaling.items()):
        notes.append("rope_scaling and rope_parameters differ; as in transformers, rope_scaling counts")
    found = {**new, **scaling} if names.local is not None else scaling or new
    local = _local(settings, nested.get(SLIDING), names) if names.local is not None else None
    for key, place in (("rope_theta", names.theta), ("partial_rotary_factor", names.share)):
        outside = given.get(place)
        if key in found and outside is not None and outside != found[key]:
            notes.append(
                f"{place} is {outside}, in the rope settings {found[key]}; as in transformers, the latter counts"
            )
        if key not in found and settings.get(place) is not None:
            found[key] = settings[place]
    kind = found.get("rope_type", found.get("type", "default"))
    if not isinstance(kind, str):
        raise _malformed(found, f"rope_type {shown(kind)}, expected a name")
    if found.get("type", kind) != kind:
        notes.append(f"rope_type is {kind!r}, type {found['type']!r}; as in transformers, rope_type counts")
    found["rope_type"] = "longrope" if kind == "su" else kind  # its name before transformers 4.42
    if found["rope_type"] not in types:
        raise DataError(f"config.json: rope type {kind!r} is not supported for {title}; it can be {', '.join(types)}")
    _add_original(found, settings, notes)
    _check(found, nearly, notes)
    return Rope({**found, "local_theta": local} if local is not None else found, tuple(notes), tuple(unknown))


def _object(given: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = given.get(key)
    if value is not None and not isinstance(value, dict):
        raise _malformed({key: value}, "expected an object")
    return _clean(value)


def _clean(value: Mapping[str, Any] | None) -> dict[str, Any]:
    return {k: v for k, v in (value or {}).items() if v is not None}


def _odd(found: Mapping[str, Any]) -> list[str]:
    """Keys that nobody knows and that say something."""
    return [k for k in found if k not in KNOWN and k not in (FULL, SLIDING)]


def _local(settings: Mapping[str, Any], sliding: Any, names: RopeNames) -> Any:
    """The base of the layers with a window, whose positions llama.cpp scales in no way."""
    found = _clean(sliding)
    kind = found.get("rope_type", found.get("type", "default"))
    if kind != "default" or found.get("partial_rotary_factor", 1) != 1:
        raise _malformed(
            found, f"rope_parameters.{SLIDING}: llama.cpp computes these layers with the default type only"
        )
    base = found.get("rope_theta", settings.get(str(names.local)))
    if base is None:
        raise _malformed(found, f"rope_parameters.{SLIDING}: rope_theta is missing")
    return base


def _add_original(found: dict[str, Any], settings: Mapping[str, Any], notes: list[str]) -> None:
    """The context before it was stretched; transformers prefers the place outside, and else takes the whole context."""
    if found["rope_type"] not in ("llama3", "yarn", "longrope"):
        return
    outside = settings.get(ORIGINAL)
    if outside is not None and found.get(ORIGINAL, outside) != outside:
        notes.append(
            f"{ORIGINAL} is {outside}, in the rope settings {found[ORIGINAL]}; as in transformers, the former counts"
        )
    found[ORIGINAL] = outside if outside is not None else found.get(ORIGINAL, settings.get("max_position_embeddings"))


def _check(rope: Mapping[str, Any], nearly: tuple[str, ...], notes: list[str]) -> None:
    kind = rope["rope_type"]
    for key in WORDS:
        if not isinstance(rope.get(key, ""), str):
            raise _malformed(rope, f"{key} {rope[key]!r}, expected a name")
    for key in REQUIRED.get(kind, ()):
        if key not in rope:
            raise _malformed(rope, f"{key} is missing")
    for key, value in rope.items():
        if key not in KNOWN or key in (*WORDS, *LISTS, *NO_MATTER, "truncate"):
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise _malformed(rope, f"{key} is {value!r}, expected a positive number")
    if kind != "default" and rope.get("factor", 1) <= 0:
        raise _malformed(rope, "factor is 0, expected a positive number")
    if kind in ("llama3", "yarn", "longrope") and not (isinstance(rope[ORIGINAL], int) and rope[ORIGINAL] > 0):
        raise _malformed(rope, f"{ORIGINAL} is {rope[ORIGINAL]!r}, expected a positive integer")
    for key, value in COMPUTED_WITH.get(kind, {}).items():
        given = rope.get(key, value)
        if given == value or (key.startswith("beta") and given == 0):  # transformers takes its default for 0
            continue
        if key in nearly:
            notes.append(
                f"{key} of its {kind} rope settings is {given!r}; llama.cpp computes with {value!r}, so that its "
                "answers differ a little from transformers'"
            )
        else:
            raise DataError(
                f"config.json: {key} of its {kind} rope settings is {given!r}; llama.cpp computes with {value!r}"
            )


def rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary settings of a `text_config`, as `resolve` made them.

    Keys: `rope_type`, `rope_theta`, `partial_rotary_factor`, and those of the type. Where layers differ (Gemma 3),
    these are the full-attention layers' and `local_theta` is the others'.
    """
    found: dict[str, Any] = config.get("rope_parameters") or {}
    return found


def _malformed(rope: Any, why: object) -> DataError:
    return DataError(f"config.json: its rope settings {rope!r} are incomplete or malformed ({why})")


def n_rotary(config: Mapping[str, Any], head_dim: int, default: float) -> int:
    """How many dimensions of a head are rotated; `default` is the share where config.json has none.

    With the type proportional all are, those beyond the share by nothing (`proportional_factors`).
    """
    rope = rope_parameters(config)
    share = rope.get("partial_rotary_factor", default)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise _malformed(rope, f"partial_rotary_factor {share!r}, expected a share of 1")
    return head_dim if rope.get("rope_type") == "proportional" else int(share * head_dim)


def proportional_factors(config: Mapping[str, Any], head_dim: int) -> F32:
    """Per-frequency divisors, shape (head_dim / 2,): `factor` for the share that is rotated, for others so large a one
    that their angle is 0.

    Source: `rope_type: proportional` of transformers' modeling_rope_utils. llama.cpp's graph of Gemma 4 reads them for
    any type.
    """
    rope = rope_parameters(config)
    proportional = rope["rope_type"] == "proportional"
    n = int(rope.get("partial_rotary_factor", 1.0) * head_dim // 2) if proportional else head_dim // 2
    factor = float(rope.get("factor", 1.0)) if proportional else 1.0
    return np.asarray([factor] * n + [1e30] * (head_dim // 2 - n), np.float32)


def llama3_factors(config: Mapping[str, Any], head_dim: int) -> F32:
    """Per-frequency divisors of Llama 3.1's rotary scaling, shape (head_dim / 2,).

    Source: `rope_type: llama3` of transformers' modeling_rope_utils; llama.cpp divides each frequency by its factor.
    """
    rope = rope_parameters(config)
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    base, factor, context = float(rope.get("rope_theta", 10000.0)), float(rope["factor"]), float(rope[ORIGINAL])
    if not 0 < low <= high or not base > 0:
        raise _malformed(rope, "they must be positive, low_freq_factor not above high_freq_factor")
    wavelength = 2 * np.pi * np.float64(base) ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = (context / wavelength - low) / ((high - low) or 1.0)  # Llama 4's are equal: nothing lies between
    between = 1 / ((1 - smooth) / factor + smooth)
    return np.where(wavelength < context / high, 1.0, np.where(wavelength > context / low, factor, between)).astype(
        np.float32
    )


def longrope_factors(config: Mapping[str, Any], n_rot: int) -> dict[str, F32]:
    """Phi-3's long and short divisors by llama.cpp's tensor name, each of shape (n_rot / 2,)."""
    rope = rope_parameters(config)
    found = {}
    for name in ("long", "short"):
        values = rope.get(f"{name}_factor")
        try:
            factors = np.asarray(values, np.float64)
        except (TypeError, ValueError) as e:
            raise _malformed(rope, e) from None
        if factors.shape != (n_rot // 2,) or not np.isfinite(factors).all() or not (factors > 0).all():
            raise _malformed(rope, f"{name}_factor, expected {n_rot // 2} positive numbers")
        found[f"rope_factors_{name}.weight"] = factors.astype(np.float32)
    return found


def longrope_attention_factor(config: Mapping[str, Any], n_ctx: int) -> float:
    """What longrope multiplies queries and keys by, √(1 + ln s / ln L), s = n_ctx / L (arXiv:2402.13753, eq. 9).

    L is the original context; `factor` is s where it is given.
    """
    rope = rope_parameters(config)
    if (given := rope.get("attention_factor")) is not None:
        return float(given)
    scale = float(rope.get("factor", n_ctx / rope[ORIGINAL]))
    return math.sqrt(1 + math.log(scale) / math.log(rope[ORIGINAL])) if scale > 1 and rope[ORIGINAL] > 1 else 1.0


def yarn_attention_factor(config: Mapping[str, Any]) -> float:
    """What YaRN multiplies queries and keys by, as a multiple of the 1 + 0.1 ln factor that llama.cpp computes itself.

    Source: `rope_type: yarn` of transformers' modeling_rope_utils; arXiv:2309.00071, eq. 22.
    """
    rope = rope_parameters(config)

    def scale(m: float) -> float:
        return 1 + 0.1 * m * math.log(rope["factor"]) if rope["factor"] > 1 else 1.0

    given, m, m_all = (rope.get(key) for key in ("attention_factor", "mscale", "mscale_all_dim"))
    if given is not None:
        return float(given) / scale(1)
    return scale(m) / scale(m_all) / scale(1) if m and m_all else 1.0
