"""Rotary embedding (RoPE): config.json's several ways of saying it, and frequency factors as llama.cpp's tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jmedlite.base.errors import DataError
from jmedlite.base.native import F32


def rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json's rotary settings, from every place where transformers has kept them.

    Keys: `rope_type`, `rope_theta`, `partial_rotary_factor`, and those of the type. Where layers differ (Gemma 3),
    these are the full-attention layers' and `local_theta` is the others'.
    """
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(given, dict):
        raise _malformed(given, "expected an object")
    found = dict(given)
    if isinstance(full := found.get("full_attention"), dict):
        sliding = found.get("sliding_attention")
        found = {**full, "local_theta": sliding.get("rope_theta") if isinstance(sliding, dict) else None}
    for name, places in (
        ("rope_theta", ("rope_theta", "rotary_emb_base")),
        ("partial_rotary_factor", ("partial_rotary_factor", "rotary_pct")),
        ("local_theta", ("rope_local_base_freq",)),
    ):
        if found.get(name) is None:
            found[name] = next((config[p] for p in places if config.get(p) is not None), None)
    found = {key: value for key, value in found.items() if value is not None}
    if "rope_type" not in found and "type" in found:
        found["rope_type"] = found["type"]
    if found.get("rope_type") == "su":  # its name before transformers 4.42
        found["rope_type"] = "longrope"
    return found


def _malformed(rope: Any, why: object) -> DataError:
    return DataError(f"config.json: its rope settings {rope!r} are incomplete or malformed ({why})")


def n_rotary(config: Mapping[str, Any], head_dim: int, default: float) -> int:
    """How many dimensions of a head are rotated; `default` is the share where config.json has none."""
    rope = rope_parameters(config)
    share = rope.get("partial_rotary_factor", default)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise _malformed(rope, f"partial_rotary_factor {share!r}, expected a share of 1")
    return int(share * head_dim)


def llama3_factors(config: Mapping[str, Any], head_dim: int) -> F32:
    """Per-frequency divisors of Llama 3.1's rotary scaling, shape (head_dim / 2,).

    Source: `rope_type: llama3` of transformers' modeling_rope_utils; llama.cpp divides each frequency by its factor.
    """
    rope = rope_parameters(config)
    try:
        base, factor = float(rope.get("rope_theta", 10000.0)), float(rope.get("factor", 8.0))
        low, high = float(rope.get("low_freq_factor", 1.0)), float(rope.get("high_freq_factor", 4.0))
        context = float(rope.get("original_max_position_embeddings", 8192))
    except (TypeError, ValueError, OverflowError) as e:
        raise _malformed(rope, e) from None
    if not (all(0 < x < math.inf for x in (base, factor, low, high, context)) and low < high):
        raise _malformed(rope, "they must be positive, low_freq_factor below high_freq_factor")
    wavelength = 2 * np.pi * np.float64(base) ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = (context / wavelength - low) / (high - low)
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


def longrope_attention_factor(config: Mapping[str, Any], n_ctx: int, n_ctx_original: int) -> float:
    """What longrope multiplies queries and keys by, √(1 + ln s / ln L), s = n_ctx / L (arXiv:2402.13753, eq. 9)."""
    given = rope_parameters(config).get("attention_factor")
    if given is not None:
        return float(given)
    scale = n_ctx / n_ctx_original
    return math.sqrt(1 + math.log(scale) / math.log(n_ctx_original)) if scale > 1 else 1.0
