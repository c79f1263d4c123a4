"""The key-value section of a GGUF: architecture keys from config.json, general.* from the model card, vocabulary.

Key names and the card's reading are gguf-py's (`GGUFWriter`, `Metadata`, `SpecialVocab`), so that they are the same as
in the files of llama.cpp's own converter. Which values may differ from those, and why: docs/metadata.md.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import yaml

from jmedlite.base.errors import DataError
from jmedlite.base.native import F32

from .architectures import Family
from .tokenizer import Vocabulary

Entries = dict[str, tuple[Any, int, int | None]]
F32_MAX = float(np.finfo(np.float32).max)
logging.getLogger("gguf").setLevel(logging.ERROR)


def rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json's rotary settings, from either place where transformers has kept them."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(given, dict):
        raise DataError(f"config.json: its rope settings are {given!r}, expected an object")
    found = dict(given)
    if "rope_theta" not in found and config.get("rope_theta") is not None:
        found["rope_theta"] = config["rope_theta"]
    if "rope_type" not in found and "type" in found:
        found["rope_type"] = found["type"]
    return found


def llama3_rope_factors(config: Mapping[str, Any], head_dim: int) -> F32:
    """Per-frequency divisors of Llama 3.1's rotary scaling, shape (head_dim / 2,).

    Source: `rope_type: llama3` of transformers' modeling_rope_utils; llama.cpp divides each frequency by its factor.
    """
    rope = rope_parameters(config)
    try:
        base, factor = float(rope.get("rope_theta", 10000.0)), float(rope.get("factor", 8.0))
        low, high = float(rope.get("low_freq_factor", 1.0)), float(rope.get("high_freq_factor", 4.0))
        context = float(rope.get("original_max_position_embeddings", 8192))
    except (TypeError, ValueError, OverflowError) as e:
        raise DataError(f"config.json: its rope settings {rope} are malformed ({e})") from None
    if not (all(0 < x < math.inf for x in (base, factor, low, high, context)) and low < high):
        raise DataError(
            f"config.json: its rope settings {rope} must be positive, low_freq_factor below high_freq_factor"
        )
    wavelength = 2 * np.pi * np.float64(base) ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = (context / wavelength - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    return np.where(wavelength < context / high, 1.0, np.where(wavelength > context / low, factor, between)).astype(
        np.float32
    )


def build_metadata(
    folder: Path,
    name: str | None,
    family: Family,
    config: Mapping[str, Any],
    dims: Mapping[str, int],
    vocabulary: Vocabulary,
    n_weights: int,
) -> Entries:
    """Every key but general.file_type, which differs from level to level; `n_weights` gives the size label."""
    writer = gguf.GGUFWriter(None, family.gguf_arch)
    writer.add_type(gguf.GGUFType.MODEL)
    _general(writer, folder, name, n_weights)
    _architecture(writer, family, config, dims)
    _vocabulary(writer, folder, vocabulary, dims["n_vocab"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    return {key: _entry(key, value) for key, value in writer.kv_data[0].items()}


def _entry(key: str, value: Any) -> tuple[Any, int, int | None]:
    if value.type != gguf.GGUFValueType.ARRAY:
        return value.value, int(value.type), None
    if value.sub_type is not None:
        return value.value, int(value.type), int(value.sub_type)
    if not value.value:
        raise DataError(f"the metadata key {key} would be an empty list")
    return value.value, int(value.type), int(gguf.GGUFValueType.get_type(value.value[0]))


def _general(writer: Any, folder: Path, name: str | None, n_weights: int) -> None:
    try:
        card = gguf.Metadata.load(None, folder, name, n_weights)
        settings = gguf.Metadata.load_generation_config(folder)
        card.sampling_penalty_repeat = card.sampling_penalty_repeat or settings.get("repetition_penalty")
    except (yaml.YAMLError, json.JSONDecodeError, UnicodeDecodeError, TypeError, AttributeError) as e:
        raise DataError(
            f"{folder.name}: its README.md or generation_config.json can't be read ({str(e).splitlines()[0]})"
        ) from None
    card.name = card.name or folder.name
    card.size_label = card.size_label or gguf.size_label(n_weights, n_weights, 0, 0)
    card.set_gguf_meta_model(writer)


def _architecture(writer: Any, family: Family, config: Mapping[str, Any], dims: Mapping[str, int]) -> None:
    writer.add_block_count(dims["n_layer"])
    context = next(
        (config[k] for k in ("max_position_embeddings", "n_positions", "max_sequence_length") if config.get(k)), None
    )
    if not isinstance(context, int) or isinstance(context, bool) or context <= 0:
        raise DataError(f"config.json: max_position_embeddings is {context!r}, expected a positive integer")
    writer.add_context_length(context)
    writer.add_embedding_length(dims["n_embd"])
    writer.add_feed_forward_length(dims["n_ff"])
    writer.add_head_count(dims["n_head"])
    writer.add_head_count_kv(dims["n_head_kv"])
    _rope(writer, family, config)
    eps = config.get("rms_norm_eps")
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 < eps < 1:
        raise DataError(f"config.json: rms_norm_eps is {eps!r}, expected a small positive number")
    writer.add_layer_norm_rms_eps(eps)
    if config.get("head_dim") is not None or family.head_dim is not None:
        writer.add_key_length(dims["head_dim"])
        writer.add_value_length(dims["head_dim"])
    if family.vocab_size_key:
        writer.add_vocab_size(dims["n_vocab"])
        writer.add_rope_dimension_count(dims["head_dim"])


def _rope(writer: Any, family: Family, config: Mapping[str, Any]) -> None:
    rope = rope_parameters(config)
    kind = rope.get("rope_type", "default")
    try:
        if kind == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(float(rope["factor"]))
        elif kind == "yarn":
            writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
            writer.add_rope_scaling_factor(float(rope["factor"]))
            writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))
            for key, add in (
                ("extrapolation_factor", writer.add_rope_scaling_yarn_ext_factor),
                ("attention_factor", writer.add_rope_scaling_yarn_attn_factor),
                ("beta_fast", writer.add_rope_scaling_yarn_beta_fast),
                ("beta_slow", writer.add_rope_scaling_yarn_beta_slow),
            ):
                if rope.get(key) is not None:
                    add(float(rope[key]))
        elif kind != "default" and not (kind == "llama3" and family.llama3_rope):
            raise DataError(f"config.json: rope type {kind!r} is not supported for {family.title}")
        if rope.get("rope_theta") is not None:
            if not 0 < float(rope["rope_theta"]) < F32_MAX:
                raise ValueError(f"rope_theta {rope['rope_theta']}")
            writer.add_rope_freq_base(float(rope["rope_theta"]))
    except (KeyError, TypeError, ValueError, OverflowError) as e:
        raise DataError(f"config.json: its rope settings {rope} are incomplete or malformed ({e})") from None


def _vocabulary(writer: Any, folder: Path, vocabulary: Vocabulary, n_vocab: int) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    writer.add_token_types(vocabulary.types)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.add_space_prefix is not None:
        writer.add_add_space_prefix(vocabulary.add_space_prefix)
    try:
        special = gguf.SpecialVocab(folder, load_merges=False, n_vocab=n_vocab)
    except (ValueError, TypeError, AttributeError, KeyError, IndexError) as e:
        raise DataError(f"{folder.name}: its special tokens can't be read ({e})") from None
    if vocabulary.add_bos is not None:
        special.add_special_token.setdefault("bos", vocabulary.add_bos)
    special.add_to_gguf(writer, quiet=True)
    if vocabulary.normalizer:
        # llama.cpp has no such key: jmedlite's runner normalizes the text itself before it is tokenized
        writer.add_string("jmedlite.tokenizer.normalizer", vocabulary.normalizer)
