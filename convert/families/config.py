"""config.json of a language model as its family reads it: one set of settings, and what a person must know of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jmedlite.base.errors import DataError
from jmedlite.base.wording import shown

from . import settings as known
from .family import Family
from .rope import ORIGINAL, Rope, resolve, rope_parameters


def quantization_method(config: Mapping[str, Any]) -> str | None:
    """How config.json says the weights are quantized; merges of adapters keep that, although their weights are not."""
    quantization = config.get("quantization_config")
    method = quantization.get("quant_method", "unnamed") if isinstance(quantization, dict) else quantization
    return str(method) if method else None


def text_config(family: Family, config: Mapping[str, Any]) -> dict[str, Any]:
    """The language model's own settings, with transformers' defaults where config.json says nothing.

    Its rotary settings are all in `rope_parameters`. Raises DataError for a setting that llama.cpp's graph of this
    family can't compute.
    """
    given = _given(family, config)
    known.check_types(given, family.reads)
    settings = {**family.defaults, **{k: v for k, v in given.items() if v is not None or k in known.NULL_SAYS}}
    for key, allowed in family.computes:
        if key in settings and settings[key] not in allowed:
            name = next((alias for alias, usual in family.aliases.items() if usual == key and alias in given), key)
            raise DataError(
                f"config.json: {name} is {settings[key]!r}; llama.cpp computes {family.title} only with "
                f"{' or '.join(map(repr, allowed))}"
            )
    _check_sliding(family, settings)
    settings["rope_parameters"] = _rope(family, settings, given).parameters
    return settings


def _given(family: Family, config: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says of the language model, under the usual names as well."""
    given, nested = dict(config), config.get("text_config")
    if nested is not None:
        given |= nested
        if isinstance(tied := config.get("tie_word_embeddings", True), bool):
            given["tie_word_embeddings"] = tied  # the whole model has the head, so its setting counts, not the nested
    for alias, usual in family.aliases.items():
        value, other = given.get(alias), given.get(usual)
        if value is not None and other not in (None, value):
            raise DataError(
                f"config.json: {alias} is {shown(value)}, {usual} is {shown(other)}, which mean the same; correct the "
                "one that is wrong"
            )
        if value is not None:
            given[usual] = value
    return given


def _rope(family: Family, settings: Mapping[str, Any], given: Mapping[str, Any]) -> Rope:
    if family.rope_default and not (given.get("rope_scaling") or given.get("rope_parameters")):
        given = {**given, "rope_parameters": dict(family.rope_default)}
    return resolve(settings, given, family.rope_names, family.rope_types, family.title, family.rope_nearly)


def config_warnings(family: Family, config: Mapping[str, Any], settings: Mapping[str, Any], label: str) -> list[str]:
    """What a person must know of config.json: which of two places counts, keys that nobody knows.

    `settings` are its `text_config`. Raises DataError for a key that llama.cpp can't compute.
    """
    given = _given(family, config)
    rope = _rope(family, settings, given)
    reads = (*family.reads, *family.ignores, *(known.OUTSIDE if "text_config" in config else ()))
    found = [f"{label}: {note}" for note in rope.notes]
    if rope.parameters["rope_type"] == "longrope" and (short := rope.parameters[ORIGINAL]) < context_length(settings):
        found.append(
            f"{label}: its rope type longrope has other factors beyond {short:,} tokens; llama.cpp goes by the size of "
            f"the context, transformers by the text's: with other programs, a short text needs a context of at most "
            f"{short:,}"
        )
    if odd := [*known.unknown(given, reads), *rope.unknown]:
        found.append(
            f"{label}: config.json has {known.named(odd)}, which is not known for {family.title} and not heeded; "
            "if the model needs it, its answers differ"
        )
    return found


@dataclass(frozen=True)
class ExactRange:
    """How many tokens, from the first on, are computed as transformers does; `setting` is what acts beyond them."""

    n_tokens: int
    setting: str


def exact_range(family: Family, settings: Mapping[str, Any]) -> ExactRange | None:
    """Where a window or a rotary setting that llama.cpp does not compute begins to act; None: nowhere in the context.

    A window of n tokens lets a token see itself and n - 1 before it, so the first n tokens see all.
    """
    n_ctx = context_length(settings)
    if _has_window(family, settings) and (window := integer(settings, "sliding_window")) < n_ctx:
        return ExactRange(window, "sliding_window")
    if rope_parameters(settings).get("rope_type") == "dynamic":
        return ExactRange(n_ctx, "rope type dynamic")
    return None


def _has_window(family: Family, settings: Mapping[str, Any]) -> bool:
    """Does transformers give some layer a window, where llama.cpp gives none?"""
    if family.window == "all":
        return settings.get("sliding_window") is not None
    if not family.window:
        return False
    window = settings.get("sliding_window") if settings.get("use_sliding_window") else None
    types = settings.get("layer_types")
    if family.window == "asked":
        return window is not None
    if types is None and family.window == "early":
        return window is not None and settings["max_window_layers"] > 0
    if types is None:
        return window is not None and settings["max_window_layers"] < integer(settings, "num_hidden_layers")
    if not set(types) <= {"full_attention", "sliding_attention"}:
        raise DataError(f"config.json: layer_types is {str(types)[:80]}, expected full_attention or sliding_attention")
    if "sliding_attention" in types and window is None:
        raise DataError(
            "config.json: layer_types has layers with a window, use_sliding_window or sliding_window has none; correct "
            "the one that is wrong"
        )
    return "sliding_attention" in types


def context_length(config: Mapping[str, Any]) -> int:
    """The context that the model was trained for, in tokens."""
    names = ("max_position_embeddings", "n_positions", "max_sequence_length")
    return integer(config, next((k for k in names if config.get(k)), names[0]))


def _check_sliding(family: Family, settings: Mapping[str, Any]) -> None:
    """The layers with a window must be those that llama.cpp takes for it."""
    if not family.sliding_period:
        return
    types = settings.get("layer_types")
    period = settings.get("sliding_window_pattern", settings.get("_sliding_window_pattern", family.sliding_period))
    if types is not None:
        expected = ["sliding_attention"] * len(types)
        expected[family.sliding_period - 1 :: family.sliding_period] = ["full_attention"] * (
            len(types) // family.sliding_period
        )
        if types != expected:
            period = types
    if period != family.sliding_period:
        raise DataError(
            f"config.json: its window pattern ({'layer_types' if period is types else 'sliding_window_pattern'}) is "
            f"{str(period)[:80]}, llama.cpp computes {family.title} only with full attention in every "
            f"{family.sliding_period}th layer"
        )


def integer(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A positive integer from config.json; raises DataError."""
    value = config.get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 31:
        raise DataError(f"config.json: {key} is {value!r}, expected a positive integer")
    return value


def has_experts(family: Family, config: Mapping[str, Any]) -> bool:
    """Is it a mixture? In a family of both kinds, a setting says so."""
    return family.experts is not None and (family.experts.switch is None or bool(config.get(family.experts.switch)))


def is_tied(config: Mapping[str, Any]) -> bool:
    return bool(config.get("tie_word_embeddings", False))
