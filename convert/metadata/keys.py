"""GGUF keys, the key-value section: architecture keys from config.json, general.* from the model card, vocabulary.

Key names and the card's reading are gguf-py's (`GGUFWriter`, `Metadata`, `SpecialVocab`), so that they are the same as
in the files of llama.cpp's own converter. Which values may differ from those, and why: docs/metadata.md.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import yaml

from jmedlite.base.errors import DataError
from jmedlite.base.gguf import ARRAY, BOOL, Entries, Header
from jmedlite.convert.families.config import context_length
from jmedlite.convert.families.family import FULL_SHARED, SLIDING_SHARED, Family, Key
from jmedlite.convert.families.rope import (
    FULL,
    SLIDING,
    longrope_attention_factor,
    rope_parameters,
    yarn_attention_factor,
)
from jmedlite.convert.families.shapes import full_interval, types_of_layers

from .readable import readable
from .specials import Specials
from .tokenizer import SourceVocabulary

ENDS = "jmedlite.tokenizer.end_token_ids"
F32_MAX = float(np.finfo(np.float32).max)
logging.getLogger("gguf").setLevel(logging.ERROR)


def build_metadata(
    folder: Path,
    name: str | None,
    family: Family,
    config: Mapping[str, Any],
    dims: Mapping[str, int],
    vocabulary: SourceVocabulary,
    specials: Specials,
    n_weights: int,
) -> tuple[Entries, list[str]]:
    """Every key but general.file_type, which differs from level to level, and warnings about the model card.

    `n_weights` gives the size label.

    `config` is architectures.text_config.
    """
    writer = gguf.GGUFWriter(None, family.gguf_arch)
    writer.add_type(gguf.GGUFType.MODEL)
    warnings = _general(writer, folder, name, n_weights)
    _architecture(writer, family, config, dims)
    _vocabulary(writer, vocabulary)
    _specials(writer, specials)
    # llama.cpp has no such keys: jmedlite's runner does this itself, before the text is tokenized
    if vocabulary.normalizer:
        writer.add_string("jmedlite.tokenizer.normalizer", vocabulary.normalizer)
    if vocabulary.byte_fallback:
        writer.add_bool("jmedlite.tokenizer.byte_fallback", True)
    if vocabulary.space_prefix:
        writer.add_string("jmedlite.tokenizer.space_prefix", vocabulary.space_prefix)
    flags = vocabulary.flags
    if not flags and any(n in writer.kv_data[0]["general.name"].value.lower() for n in _STRIPPING_NAMES):
        flags = {"rstrip": [-1]}  # no token: llama.cpp would guess by the name that there are some
    for flag, ids in flags.items():
        writer.add_array(f"jmedlite.tokenizer.{flag}", ids)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    return _entries(writer), warnings


def special_entries(specials: Specials) -> Entries:
    """The keys of special tokens alone, for a vocabulary that is there already."""
    writer = gguf.GGUFWriter(None, "")
    _specials(writer, specials)
    return {key: value for key, value in _entries(writer).items() if key != "general.architecture"}


def _entries(writer: Any) -> Entries:
    return {key: _entry(key, value) for key, value in writer.kv_data[0].items()}


def _entry(key: str, value: Any) -> tuple[Any, int, int | None]:
    if value.type != gguf.GGUFValueType.ARRAY:
        return value.value, int(value.type), None
    if value.sub_type is not None:
        return value.value, int(value.type), int(value.sub_type)
    if not value.value:
        raise DataError(f"the metadata key {key} would be an empty list")
    if isinstance(value.value, bytes):
        return value.value, int(value.type), int(gguf.GGUFValueType.UINT8)
    return value.value, int(value.type), int(gguf.GGUFValueType.get_type(value.value[0]))


def _general(writer: Any, folder: Path, name: str | None, n_weights: int) -> list[str]:
    """general.* from the model card and the names of folder and model; returns warnings."""
    with readable(folder) as (place, warnings):
        try:
            card = gguf.Metadata.load(None, place, name, n_weights)
            settings = gguf.Metadata.load_generation_config(place)
            card.sampling_penalty_repeat = card.sampling_penalty_repeat or settings.get("repetition_penalty")
        except (yaml.YAMLError, json.JSONDecodeError, UnicodeDecodeError, TypeError, AttributeError) as e:
            raise DataError(
                f"{folder.name}: its README.md or generation_config.json can't be read ({str(e).splitlines()[0]})"
            ) from None
    card.name = card.name or folder.name
    card.size_label = card.size_label or gguf.size_label(n_weights, n_weights, 0, 0)
    card.set_gguf_meta_model(writer)
    return warnings


def _architecture(writer: Any, family: Family, config: Mapping[str, Any], dims: Mapping[str, int]) -> None:
    writer.add_block_count(dims["n_layer"])
    writer.add_context_length(context_length(config))
    writer.add_embedding_length(dims["n_embd"])
    if not family.two_sizes:
        writer.add_feed_forward_length(dims["n_ff"])
    writer.add_head_count(dims["n_head"])
    if family.two_sizes:
        _two_sizes(writer, family, config, dims)
    elif family.mixes_conv:
        types = types_of_layers(family, config)
        writer.add_head_count_kv([dims["n_head_kv"] if kind == FULL else 0 for kind in types])
        writer.add_shortconv_l_cache(dims["n_taps"])
    elif family.grouped:
        writer.add_head_count_kv(dims["n_head_kv"])
    _rope(writer, config)
    eps = config.get(family.norm_eps)
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 < eps < 1:
        raise DataError(f"config.json: {family.norm_eps} is {eps!r}, expected a small positive number")
    (writer.add_layer_norm_rms_eps if family.norm_eps == "rms_norm_eps" else writer.add_layer_norm_eps)(eps)
    if (config.get("head_dim") is not None or family.writes_head_dim) and not family.two_sizes:
        writer.add_key_length(dims["head_dim"])
        writer.add_value_length(dims["head_dim"])
    if family.writes_vocab_size:
        writer.add_vocab_size(dims["n_vocab"])
    if family.writes_rotary:
        writer.add_rope_dimension_count(dims["n_rot"])
    for key in family.keys:
        _family_key(writer, family, key, config)
    if family.mixes_linear:
        _linear(writer, config, dims)


def _two_sizes(writer: Any, family: Family, config: Mapping[str, Any], dims: Mapping[str, int]) -> None:
    """Layers with a window and without, as Gemma 4's graph reads them: lists only where layers differ."""
    types = types_of_layers(family, config)
    has_window = [kind in (SLIDING, SLIDING_SHARED) for kind in types]
    wide = [bool(config.get("use_double_wide_mlp")) and kind in (FULL_SHARED, SLIDING_SHARED) for kind in types]
    heads = [dims["n_head_kv" if window else "n_head_kv_full"] for window in has_window]
    widths = [dims["2·n_ff" if twice else "n_ff"] for twice in wide]
    writer.add_head_count_kv(heads if len(set(heads)) > 1 else heads[0])
    writer.add_feed_forward_length(widths if len(set(widths)) > 1 else widths[0])
    writer.add_sliding_window_pattern(has_window)
    for add, size in (
        (writer.add_key_length, "head_dim_full"), (writer.add_value_length, "head_dim_full"),
        (writer.add_key_length_swa, "head_dim"), (writer.add_value_length_swa, "head_dim"),
        (writer.add_rope_dimension_count, "head_dim_full"), (writer.add_rope_dimension_count_swa, "head_dim"),
    ):  # fmt: skip
        add(dims[size])
    if "n_expert" in dims:
        writer.add_expert_count(dims["n_expert"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(dims["n_ff_exp"])


_SECTIONS = (11, 11, 10)  # where config.json has none, as transformers' Qwen3_5RotaryEmbedding


def _linear(writer: Any, config: Mapping[str, Any], dims: Mapping[str, int]) -> None:
    """Layers of linear attention, as Qwen3.5's graph reads them."""
    writer.add_ssm_conv_kernel(dims["n_kernel"])
    writer.add_ssm_state_size(dims["v_head_dim"])
    writer.add_ssm_group_count(dims["n_k_head"])
    writer.add_ssm_time_step_rank(dims["n_v_head"])
    writer.add_ssm_inner_size(dims["n_value"])
    # of the three axes of a picture's places and of time, which all agree for text
    writer.add_rope_dimension_sections([*rope_parameters(config).get("mrope_section", _SECTIONS), 0])
    writer.add_full_attention_interval(full_interval(config))


def _family_key(writer: Any, family: Family, key: Key, config: Mapping[str, Any]) -> None:
    value = config.get(key.config)
    if value is None and key.optional:
        return
    value = key.missing if value is None else value
    wanted = bool if key.type == BOOL else int | float
    if not isinstance(value, wanted) or (isinstance(value, bool) and key.type != BOOL):
        raise DataError(f"config.json: {key.config} is {value!r}, which {family.title} can't do without")
    writer.add_key_value(f"{family.gguf_arch}.{key.name}", value, gguf.GGUFValueType(key.type))


def _rope(writer: Any, config: Mapping[str, Any]) -> None:
    rope = rope_parameters(config)
    kind = rope.get("rope_type", "default")
    try:
        if kind == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(float(rope["factor"]))
        elif kind == "yarn":
            _yarn(writer, rope)
            if (factor := yarn_attention_factor(config)) != 1:  # the one key of the kind that every graph reads
                writer.add_rope_scaling_attn_factors(factor)
        elif kind == "longrope":
            writer.add_rope_scaling_attn_factors(longrope_attention_factor(config, context_length(config)))
        for key, add in (("rope_theta", writer.add_rope_freq_base), ("local_theta", writer.add_rope_freq_base_swa)):
            if rope.get(key) is not None:
                if not 0 < float(rope[key]) < F32_MAX:
                    raise ValueError(f"{key} {rope[key]}")
                add(float(rope[key]))
    except (KeyError, TypeError, ValueError, OverflowError) as e:
        raise DataError(f"config.json: its rope settings {rope} are incomplete or malformed ({e})") from None


def _yarn(writer: Any, rope: Mapping[str, Any]) -> None:
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


def _vocabulary(writer: Any, vocabulary: SourceVocabulary) -> None:
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
    if vocabulary.remove_extra_whitespaces is not None:
        writer.add_remove_extra_whitespaces(vocabulary.remove_extra_whitespaces)
    if vocabulary.charsmap:
        writer.add_precompiled_charsmap(vocabulary.charsmap)


def _specials(writer: Any, specials: Specials) -> None:
    methods = [(f"add_{kind}_token_id", i) for kind, i in specials.ids.items()]
    methods += [(f"add_add_{kind}_token", value) for kind, value in specials.adds.items()]
    for name, value in methods:
        if add := getattr(writer, name, None):  # GGUF has no places for some kinds ("cls")
            add(value)
    if specials.template is not None:
        writer.add_chat_template(specials.template)
    if specials.ends:  # GGUF has places for three at most, each with a meaning of its own
        writer.add_array(ENDS, specials.ends)


# Models that llama.cpp takes for ones whose tokens strip white space: llama_vocab::impl::load of src/llama-vocab.cpp
_STRIPPING_NAMES = ("phi-3", "phi3")

# Keys of a GGUF that describe the file and not the model; a new file gets its own.
_OF_THE_FILE = ("general.file_type", "general.quantization_version", "general.alignment")


def copy_metadata(header: Header) -> Entries:
    """A GGUF model's metadata for a file made from it, as llama-quantize carries it over."""
    entries: Entries = {}
    for key, value in header.metadata.items():
        if key in _OF_THE_FILE or key.startswith(("split.", "quantize.imatrix.", "jmedlite.made.")):
            continue
        kind = header.types[key]
        entries[key] = (value, kind[0], kind[1] if kind[0] == ARRAY else None)
    entries["general.quantization_version"] = (gguf.GGML_QUANT_VERSION, int(gguf.GGUFValueType.UINT32), None)
    return entries
