"""Every setting that transformers' configuration classes know, with a value to try, and what becomes of it here.

Needs torch and transformers; `tools/make_settings_table.py` writes the outcomes into docs/families.md, and
`pytest -m oracle` holds the two against each other.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from gguf.constants import GGMLQuantizationType

from jmedlite.api.quantize import plan_quantization
from jmedlite.base.errors import DataError
from jmedlite.base.gguf import EXACT_CONTEXT, Entries, Tensor, read_header
from jmedlite.convert.families.families import FAMILIES
from jmedlite.convert.families.family import Family
from jmedlite.convert.families.rope import REQUIRED
from jmedlite.convert.families.settings import NO_MATTER
from tests.support import builders
from tests.support.logits import llama_logits, load, same_gelu, their_logits, tolerance

N_TOKENS = 48
# outcome: sign in the table
EQUAL, BOUND, REFUSED, WARNED, THEIRS = "=", "ctx", "✗", "!", "–"

HALF = builders.HEAD_DIM // 2
# What a setting is tried with: never its default, nor what the tiny models have; (more) settings that let it act.
VALUES: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 2, "num_key_value_heads": 4, "head_dim": 32,
    "num_hidden_layers": 3, "vocab_size": 280, "max_position_embeddings": 256, "rms_norm_eps": 1e-3,
    "layer_norm_eps": 1e-3, "hidden_act": "relu", "hidden_activation": "silu", "attention_bias": True, "mlp_bias": True,
    "use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1, "query_pre_attn_scalar": 100,
    "attn_logit_softcapping": 9.0, "final_logit_softcapping": 7.0, "use_parallel_residual": False,
    "original_max_position_embeddings": 32, "use_bidirectional_attention": True, "is_encoder_decoder": True,
    "per_layer_config": {"1": {"rms_norm_eps": 0.5}}, "rope_theta": 500.0, "rotary_emb_base": 500, "rotary_pct": 0.25,
    "rope_local_base_freq": 500.0, "partial_rotary_factor": 0.5, "sliding_window_pattern": 3, "bos_token_id": 3,
    "eos_token_id": [4, 5], "pad_token_id": 6, "some_new_setting": 3, "dtype": "float16", "torch_dtype": "float16",
    "id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2},
    "problem_type": "regression", "hidden_dropout": 0.1, "initializer_range": 0.5, "attention_dropout": 0.1,
    "resid_pdrop": 0.1, "embd_pdrop": 0.1, "classifier_dropout": 0.3, "pretraining_tp": 2, "use_cache": False,
    "output_hidden_states": True, "return_dict": True, "chunk_size_feed_forward": 3, "is_decoder": True,
    "num_labels": 3, "name_or_path": "x/y", "output_attentions": False, "tie_last_hidden_states": True,
    "num_experts": 3, "num_local_experts": 3, "num_experts_per_tok": 1, "moe_intermediate_size": 256,
    "shared_expert_intermediate_size": 512, "decoder_sparse_step": 2, "mlp_only_layers": [0], "qkv_bias": False,
    "norm_topk_prob": False, "output_router_logits": True, "router_aux_loss_coef": 0.5, "router_jitter_noise": 0.3,
    "linear_conv_kernel_dim": 3, "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 1,
    "linear_num_value_heads": 6, "full_attention_interval": 2, "attn_output_gate": False,
    "conv_bias": True, "conv_L_cache": 4, "block_multiple_of": 128, "block_ffn_dim_multiplier": 1.5,
    "norm_eps": 1e-3,
    "block_auto_adjust_ff_dim": False, "block_ff_dim": 700, "tie_embedding": True, "use_qkv_bias": False,
    "qk_layernorm": True, "n_embd": 128, "n_head": 2, "n_layer": 3, "n_positions": 256,
    "n_inner": 384, "activation_function": "relu", "layer_norm_epsilon": 1e-3, "attn_pdrop": 0.3,
    "summary_type": "last", "summary_use_proj": False, "summary_activation": "tanh", "summary_proj_to_labels": False,
    "summary_first_dropout": 0.3, "scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True,
    "global_head_dim": 32, "num_global_key_value_heads": 1, "attention_k_eq_v": True, "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 32, "vocab_size_per_layer_input": 300, "enable_moe_block": True, "top_k_experts": 1,
    "use_double_wide_mlp": False,
    "intermediate_size_mlp": 768, "moe_layers": [1, 2], "interleave_moe_layer_step": 1, "no_rope_layers": [1, 0, 1, 0],
    "no_rope_layer_interval": 2, "attention_chunk_size": 16, "attn_temperature_tuning": False, "floor_scale": 4,
    "attn_scale": 0.5,
    "reorder_and_upcast_attn": True, "add_cross_attention": True, "swiglu_alpha": 1.5, "swiglu_limit": 0.5,
    "cache_implementation": "hybrid", "auto_map": {"AutoConfig": "c.C"}, "transformers_version": "3.0",
}  # fmt: skip
QWENS = ("qwen2", "qwen3", "qwen3_moe", "qwen2_moe")
SWITCHED = {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 0}
ALTERNATING = ["sliding_attention", "full_attention"]
MIXTURE = {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 512}
WITH: dict[tuple[str, str], dict[str, Any]] = {
    **{(f, k): SWITCHED for f in QWENS for k in ("use_sliding_window", "sliding_window")},
    **{(f, "max_window_layers"): SWITCHED for f in QWENS},
    ("qwen2_moe", "use_sliding_window"): {**SWITCHED, "max_window_layers": 1},
    ("qwen2_moe", "sliding_window"): {**SWITCHED, "max_window_layers": 1},
    **{(f, "layer_types"): {**SWITCHED, "layer_types": ["sliding_attention", "full_attention"]} for f in QWENS},
    ("qwen3_5_moe_text", "linear_key_head_dim"): {"linear_key_head_dim": 16, "linear_value_head_dim": 16},
    ("qwen3_5_moe_text", "layer_types"): {"layer_types": ["full_attention"] * 4},
    ("qwen3_5_moe_text", "num_hidden_layers"): {"num_hidden_layers": 8},
    **{(f, "head_dim"): {"query_pre_attn_scalar": 32} for f in ("gemma2", "gemma3_text")},
    ("gemma2", "num_attention_heads"): {"num_key_value_heads": 2},
    ("gemma2", "layer_types"): {"layer_types": ["full_attention", "sliding_attention"]},
    ("gemma3_text", "layer_types"): {"layer_types": ["full_attention"] * 7},
    ("gemma3_text", "num_hidden_layers"): {"num_hidden_layers": 8},
    **{
        ("gemma4_text", key): {**MIXTURE, key: value}
        for key, value in {
            "enable_moe_block": True,
            "num_experts": 3,
            "top_k_experts": 1,
            "moe_intermediate_size": 256,
        }.items()
    },
    ("gemma4_text", "num_global_key_value_heads"): {"attention_k_eq_v": True, "num_global_key_value_heads": 1},
    ("gemma4_text", "vocab_size"): {"vocab_size": 280, "vocab_size_per_layer_input": 280},
    **{
        (family, key): {"num_hidden_layers": len(types), "layer_types": types}
        for family in ("gemma4_text", "gemma4_unified_text")
        for key, types in {
            "num_hidden_layers": ALTERNATING * 3,
            "layer_types": ["sliding_attention", *ALTERNATING, *ALTERNATING],
        }.items()
    },
    ("gemma4_unified_text", "attention_k_eq_v"): {"attention_k_eq_v": False},
    ("gemma4_unified_text", "num_kv_shared_layers"): {"num_kv_shared_layers": 2},
    ("gemma4_unified_text", "use_double_wide_mlp"): {"num_kv_shared_layers": 2, "use_double_wide_mlp": True},
    ("gemma4_unified_text", "num_global_key_value_heads"): {"num_global_key_value_heads": 2},
    ("gemma2", "tie_word_embeddings"): {"tie_word_embeddings": False},
    ("gemma3_text", "tie_word_embeddings"): {"tie_word_embeddings": False},
    ("qwen2_moe", "norm_topk_prob"): {"norm_topk_prob": True},
    ("qwen3_5_text", "linear_key_head_dim"): {"linear_key_head_dim": 16, "linear_value_head_dim": 16},
    ("qwen3_5_text", "num_hidden_layers"): {"num_hidden_layers": 8},
    ("qwen3_5_text", "layer_types"): {"layer_types": ["full_attention"] * 4},
    ("gpt_neox", "attention_bias"): {"attention_bias": False},
    ("lfm2", "layer_types"): {"layer_types": ["conv", "conv", "full_attention", "conv"]},
    ("lfm2", "full_attn_idxs"): {"full_attn_idxs": [1, 3], "layer_types": None},
    ("lfm2", "num_hidden_layers"): {
        "num_hidden_layers": 5,
        "layer_types": ["conv", "full_attention", "conv", "full_attention", "conv"],
    },
    ("stablelm", "use_parallel_residual"): {"use_parallel_residual": True},
    ("llama4_text", "num_hidden_layers"): {"num_hidden_layers": 8, "no_rope_layers": None},
    ("llama4_text", "layer_types"): {"layer_types": ["full_attention"] * 4},
    ("llama4_text", "use_qk_norm"): {"use_qk_norm": False},
    ("gpt_oss", "attention_bias"): {"attention_bias": False},
    ("gpt_oss", "layer_types"): {"layer_types": ["full_attention", "sliding_attention"]},
}
# Places that transformers still reads although its classes have no such field.
COMMON = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
OLDER = {
    "qwen2": (*COMMON, "head_dim"),
    "qwen2_moe": (*COMMON, "head_dim"),
    "qwen3_moe": (*COMMON, "head_dim"),
    "qwen3_5_moe_text": (*COMMON, "full_attention_interval", "attn_output_gate"),
    "qwen3_5_text": (*COMMON, "full_attention_interval", "attn_output_gate"),
    "phi3": (*COMMON, "head_dim"),
    "gemma2": (*COMMON, "sliding_window_pattern"),
    "gpt_neox": ("rotary_emb_base", "rotary_pct"),
    "gpt2": (),
    "gemma4_unified_text": (
        "global_head_dim",
        "num_global_key_value_heads",
        "hidden_size_per_layer_input",
        "vocab_size_per_layer_input",
    ),
    "gemma4_text": ("global_head_dim", "num_global_key_value_heads"),  # written as `per_layer_config` by transformers 5
    "stablelm": (*COMMON, "head_dim"),
    "lfm2": (*COMMON, "head_dim", "block_ff_dim", "tie_embedding"),
    "gemma3_text": ("rope_theta", "rope_local_base_freq", "partial_rotary_factor", "sliding_window_pattern"),
}
UNKNOWN = "some_new_setting"
EVERYWHERE = (
    "torch_dtype", "num_labels", "name_or_path", "output_attentions", "tie_last_hidden_states", "per_layer_config",
    "cache_implementation", "auto_map", "transformers_version", UNKNOWN,
)  # fmt: skip

ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 3.0},
    "dynamic": {"factor": 3.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 128},
    "llama3": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
    },
    "longrope": {
        "short_factor": [1 + 0.1 * i for i in range(HALF)], "long_factor": [2 + 0.1 * i for i in range(HALF)],
    },
    "proportional": {"factor": 2.0},
}  # fmt: skip
ROPE_VALUES: dict[str, Any] = {
    "rope_theta": 500.0, "partial_rotary_factor": 0.5, "factor": 2.5, "original_max_position_embeddings": 64,
    "attention_factor": 1.5, "beta_fast": 8.0, "beta_slow": 2.0, "mscale": 0.7, "mscale_all_dim": 0.3,
    "truncate": False, "short_factor": [1.5] * HALF, "long_factor": [3.0] * HALF, "low_freq_factor": 2.0,
    "high_freq_factor": 8.0, "mrope_section": [8, 12, 12],
}  # fmt: skip
MORE = {
    "dynamic": {"max_position_embeddings": 32},
    "longrope": {"max_position_embeddings": 512, "original_max_position_embeddings": 32},
}
# Which of them a type reads; the others are tried together.
READ = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": (
        "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale",
        "mscale_all_dim", "truncate",
    ),
    "llama3": (*REQUIRED["llama3"], "original_max_position_embeddings"),
    "longrope": ("factor", "attention_factor", "short_factor", "long_factor"),
    "proportional": ("factor",),
}  # fmt: skip
ROPE_WITH = {"mscale": {"mscale_all_dim": 0.4}, "mscale_all_dim": {"mscale": 1.3}}


@dataclass(frozen=True)
class Trial:
    """Settings to be written into config.json, for some rows of the table; `names`: one must be said if it matters."""

    rows: tuple[str, ...]
    changes: dict[str, Any]
    names: tuple[str, ...]


def trials(family: str) -> list[Trial]:
    """Every trial of one family of tests/support/builders.py."""
    from transformers import CONFIG_MAPPING

    cls: Any = CONFIG_MAPPING[family]
    known = dict.fromkeys(f.name for f in fields(cls) if f.name not in ("rope_parameters", "architectures"))
    keys = list(dict.fromkeys((*known, *OLDER.get(family, COMMON), *EVERYWHERE)))
    together = [key for key in keys if key in NO_MATTER]
    found = [Trial(tuple(together), {key: VALUES[key] for key in together}, tuple(together))]
    found += [_trial(family, key) for key in keys if key not in together]
    if "sliding_window" in known:
        found.append(Trial(("sliding_window: null",), {"sliding_window": None}, ("sliding_window",)))
    for kind, base in ROPES.items():
        found += _rope_trials(family, kind, base)
    return found


def _trial(family: str, key: str) -> Trial:
    tied = builders.config(family, 9)["tie_word_embeddings"]
    changes = {key: not tied if key == "tie_word_embeddings" else VALUES.get(key), **WITH.get((family, key), {})}
    if key == "max_window_layers":
        changes[key] = VALUES[key]
    return Trial((key,), changes, (key, *(("sliding_window",) if "sliding_window" in changes else ())))


def _rope_trials(family: str, kind: str, base: dict[str, Any]) -> list[Trial]:
    more = MORE.get(kind, {})
    where = f"rope_parameters ({kind})"

    def trial(row: str, names: tuple[str, ...], **changes: Any) -> Trial:
        rope = {"rope_type": kind, **base, **changes}
        if family_of(family).rope_names.local == "":  # there is no other place than an object for each type of layer
            both: dict[str, Any] = {
                "full_attention": {"rope_theta": 1e6, **rope},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            }
            return Trial((row,), {"rope_parameters": both, **more}, (*names, kind, *more))
        return Trial((row,), {"rope_scaling": rope, **more}, (*names, kind, *more))

    found = [trial(where, (kind,))]
    if kind not in family_of(family).rope_types:
        return found
    read = READ.get(kind, ())
    found += [trial(f"{where}: {key}", (key,), **ROPE_WITH.get(key, {}), **{key: ROPE_VALUES[key]}) for key in read]
    other = trial(f"{where}: rope_theta", ("rope_theta",), rope_theta=ROPE_VALUES["rope_theta"])
    found.append(replace(other, changes={**other.changes, "rope_theta": None, "rotary_emb_base": None}))
    share = ROPE_VALUES["partial_rotary_factor"]
    changes: dict[str, Any] = {"partial_rotary_factor": share}
    if kind == "longrope":
        changes |= {key: base[key][: int(share * HALF)] for key in ("short_factor", "long_factor")}
    found.append(trial(f"{where}: partial_rotary_factor", ("partial_rotary_factor",), **changes))
    said = (*read, "rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
    rest = {k: v for k, v in ROPE_VALUES.items() if k not in said}
    found.append(trial(f"{where}: keys of other types", tuple(rest), **rest))
    return found


def family_of(name: str) -> Family:
    """The entry of FAMILIES for a family of the builders."""
    return next(f for f in FAMILIES if name in f.model_types)


def outcome(folder: Path, family: str, trial: Trial) -> str:
    """What becomes of one trial; raises AssertionError where the model is another one and nobody says so."""
    own = {k: v for k, v in trial.changes.items() if v is not None and k != "dtype"}
    builders.checkpoint(folder, family, dtype="F32", **own)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **trial.changes}))
    try:
        job = plan_quantization(str(folder), types=["F32"], out=folder.parent, name=folder.name)
    except DataError as e:
        assert any(re.search(rf"\b{name}\b", str(e)) for name in trial.names), (family, trial, str(e))
        return REFUSED
    warned = any(re.search(rf"\b{name}\b", w) for name in trial.names for w in job.plan.warnings)
    made = job.run(threads=1, remember=False)[0].path
    tokens = np.random.default_rng(0).integers(0, 256, N_TOKENS).tolist()

    def distance(n: int) -> float:
        return float(np.abs(llama_logits(made, tokens[:n]) - their_logits(model, tokens[:n])).max())

    n = read_header(made).metadata.get(EXACT_CONTEXT)
    try:
        model = load(folder)
        same_gelu(model)
        their_logits(model, tokens[: n or N_TOKENS])  # nothing longer yet: dynamic NTK remembers
    except Exception:  # whatever it says: there is nothing to compare with
        return THEIRS
    bound = tolerance(family)
    far = distance(n or N_TOKENS)
    if n:
        assert far < bound, (family, trial, far)
        assert warned, (family, trial)
        assert distance(n + 1) > bound, (family, trial, "the range could be longer")
        return BOUND
    if trial.rows == (UNKNOWN,):
        assert warned, family
        return WARNED
    assert far < bound or warned, (family, trial, far)
    return EQUAL if far < bound else WARNED


def outcomes(folder: Path, family: str) -> dict[str, str]:
    """The outcome of every trial of one family, by its row."""
    found = {}
    for i, trial in enumerate(trials(family)):
        # llama.cpp reads a model's name, and takes tokens of Phi-3's where it has "phi3" in it
        place = folder / family / str(i) / "m"
        with patch("jmedlite.convert.levels.recipes.probe_types", all_f32):  # no child process for what is known
            found |= dict.fromkeys(trial.rows, outcome(place, family, trial))
        shutil.rmtree(place.parent)
    return found


def all_f32(ftypes: Sequence[int], metadata: Entries, tensors: Sequence[Tensor], *_: Any) -> dict[int, dict[str, Any]]:
    """llama.cpp's choice of types at level F32."""
    return {ftype: dict.fromkeys((t.name for t in tensors), GGMLQuantizationType.F32) for ftype in ftypes}
