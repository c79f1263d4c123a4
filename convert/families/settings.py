"""Settings: every key that config.json and generation_config.json may have, and what becomes of it.

A key is computed (by a tensor's shape, a metadata key or llama.cpp's graph), it does not matter for the logits, it is
refused unless it has its harmless value, or nobody knows it and a warning names it. What is computed stands with each
family (`Family.reads`), the rest here. Source: the configuration classes of transformers 5.24.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jmedlite.base.errors import DataError
from jmedlite.base.filenames import CONFIG, GENERATION_CONFIG
from jmedlite.base.inputs import read_json
from jmedlite.base.looking import is_file
from jmedlite.base.records import Foreign, from_json
from jmedlite.base.wording import some

# What every family computes, or compares: the tokenizer's reader has the ids, the checkpoint's the quantization.
READS = frozenset((
    "architectures", "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "vocab_size", "max_position_embeddings", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id",
    "unk_token_id", "rope_parameters", "rope_scaling", "original_max_position_embeddings",
    "quantization_config",
))  # fmt: skip

# Training, bookkeeping, and how transformers goes about the same arithmetic.
NO_MATTER = frozenset((
    "attention_dropout", "hidden_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob", "resid_pdrop",
    "embd_pdrop", "classifier_dropout", "initializer_range", "initializer_factor", "gradient_checkpointing",
    "neftune_noise_alpha", "pretraining_tp", "use_cache", "cache_implementation", "dtype", "torch_dtype",
    "transformers_version", "transformers.js_config", "auto_map", "custom_pipelines", "_name_or_path", "name_or_path",
    "_model_name_or_path",
    "_commit_hash", "attn_implementation", "_attn_implementation", "_attn_implementation_internal",
    "_attn_implementation_autoset", "_flash_attn_2_enabled", "use_flash_attn", "use_flash_attention",
    "_experts_implementation", "_experts_implementation_internal", "output_attentions", "output_hidden_states",
    "return_dict", "return_dict_in_generate", "torchscript", "use_bfloat16", "tf_legacy_loss",
    "chunk_size_feed_forward", "is_decoder", "tie_encoder_decoder", "tie_last_hidden_states",
    "cross_attention_hidden_size", "id2label", "label2id", "num_labels",
    "problem_type", "finetuning_task", "task_specific_params", "prefix", "tokenizer_class",
    "sep_token_id", "decoder_start_token_id", "is_llama_config", "n_positions", "max_sequence_length", "seq_length",
    "model_name", "output_router_logits", "router_aux_loss_coef", "router_jitter_noise",
    "mamba_ssm_dtype", "mtp_num_hidden_layers", "mtp_use_dedicated_embeddings",
))  # fmt: skip
NO_MATTER_PREFIXES = ("unsloth_",)
# Of a model with eyes, whose text part is converted: all that concerns its pictures.
OUTSIDE = frozenset((
    "spatial_merge_size", "multimodal_projector_bias", "vision_feature_layer",
    "text_config", "vision_config", "mm_tokens_per_image", "image_token_index", "image_token_id", "boi_token_index",
    "boi_token_id", "eoi_token_index", "eoi_token_id", "projector_hidden_act", "vision_feature_select_strategy",
    "audio_config", "video_token_id", "boa_token_id", "eoa_token_index", "eoa_token_id", "audio_token_id",
))  # fmt: skip

# What transformers computes and no graph of llama.cpp does: only these values.
HARMLESS: Mapping[str, tuple[Any, ...]] = {
    "use_bidirectional_attention": (False,),
    "per_layer_config": ({},),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "pruned_heads": ({},),
}
# Settings of other families, which transformers does not read here: quiet where they are switched off.
QUIET: Mapping[str, tuple[Any, ...]] = {
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "use_mrope": (False,),
    "rope_interleaved": (False,),
    "use_sliding_window": (False,),
    "use_qk_norm": (False,),
    "partial_rotary_factor": (1, 1.0),
}

# Settings whose null says something: that the thing is not there, although transformers' default has it.
NULL_SAYS = ("sliding_window", "attn_logit_softcapping", "final_logit_softcapping")

# generation_config.json: what changes the tokens that transformers' generate gives from the same logits, and neither
# llama.cpp nor jmedlite does, with the values that change nothing.
GENERATION_CHANGES: Mapping[str, tuple[Any, ...]] = {
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "forced_decoder_ids": ([],),
    "bad_words_ids": ([],),
    "sequence_bias": ({}, []),
    "force_words_ids": ([],),
    "constraints": ([],),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "exponential_decay_length_penalty": (),
    "guidance_scale": (1,),
    "stop_strings": ("", []),
    "token_healing": (False,),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "penalty_alpha": (0,),
    "dola_layers": (),
    "watermarking_config": (),
    "remove_invalid_values": (False,),
}
# Sampling (ask and chat have options for it), lengths, bookkeeping, and ways to the same tokens.
GENERATION_NO_MATTER = frozenset((
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "decoder_start_token_id", "max_length",
    "max_new_tokens", "max_time", "early_stopping", "length_penalty", "diversity_penalty", "do_sample", "temperature",
    "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff", "repetition_penalty",
    "renormalize_logits", "num_return_sequences", "use_cache", "cache_implementation", "cache_config", "max_cache_len",
    "low_memory", "use_mtp", "output_attentions", "output_hidden_states", "output_scores", "output_logits",
    "return_dict_in_generate", "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule",
    "assistant_confidence_threshold", "prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_early_exit",
    "assistant_lookbehind", "target_lookbehind", "assistant_ensemble_weight", "speculation_type", "compile_config",
    "disable_compile", "continuous_batching_config", "prefill_chunk_size", "_from_model_config", "transformers_version",
    "generation_kwargs", "trust_remote_code", "chat_format", "max_window_size", "user_token_id", "assistant_token_id",
))  # fmt: skip

Ids = int | tuple[int, ...] | None  # of one token, or of several


@dataclass(frozen=True, kw_only=True)
class Whole(Foreign):
    """config.json's types, as far as it is read whatever the family."""

    architectures: tuple[str, ...] | None = None
    model_type: str | None = None
    text_config: dict[str, Any] | None = None
    quantization_config: str | bool | dict[str, Any] | None = None
    _name_or_path: str | None = None
    base_model_name_or_path: str | None = None


@dataclass(frozen=True, kw_only=True)
class Settings(Foreign):
    """The types of all that is read of a language model's settings; rope.py has those of its rotary ones."""

    architectures: tuple[str, ...] | None = None
    model_type: str | None = None
    quantization_config: str | bool | dict[str, Any] | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    num_hidden_layers: int | None = None
    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    vocab_size: int | None = None
    max_position_embeddings: int | None = None
    n_positions: int | None = None
    max_sequence_length: int | None = None
    original_max_position_embeddings: int | None = None
    tie_word_embeddings: bool | None = None
    attention_bias: bool | None = None
    mlp_bias: bool | None = None
    use_parallel_residual: bool | None = None
    qkv_bias: bool | None = None
    use_qkv_bias: bool | None = None
    qk_layernorm: bool | None = None
    conv_bias: bool | None = None
    conv_L_cache: int | None = None
    full_attn_idxs: tuple[int, ...] | None = None
    block_auto_adjust_ff_dim: bool | None = None
    block_ffn_dim_multiplier: float | None = None
    block_multiple_of: int | None = None
    block_ff_dim: int | None = None
    tie_embedding: bool | None = None
    norm_eps: float | None = None
    rope_pct: float | None = None
    n_embd: int | None = None
    n_head: int | None = None
    n_layer: int | None = None
    n_inner: int | None = None
    activation_function: str | None = None
    layer_norm_epsilon: float | None = None
    scale_attn_weights: bool | None = None
    scale_attn_by_inverse_layer_idx: bool | None = None
    attn_output_gate: bool | None = None
    full_attention_interval: int | None = None
    linear_conv_kernel_dim: int | None = None
    linear_key_head_dim: int | None = None
    linear_value_head_dim: int | None = None
    linear_num_key_heads: int | None = None
    linear_num_value_heads: int | None = None
    num_experts: int | None = None
    num_local_experts: int | None = None
    num_experts_per_tok: int | None = None
    moe_intermediate_size: int | None = None
    shared_expert_intermediate_size: int | None = None
    norm_topk_prob: bool | None = None
    decoder_sparse_step: int | None = None
    interleave_moe_layer_step: int | None = None
    moe_layers: tuple[int, ...] | None = None
    intermediate_size_mlp: int | None = None
    use_qk_norm: bool | None = None
    no_rope_layers: tuple[int, ...] | None = None
    no_rope_layer_interval: int | None = None
    attention_chunk_size: int | None = None
    attn_temperature_tuning: bool | int | None = None
    floor_scale: float | None = None
    attn_scale: float | None = None
    mlp_only_layers: tuple[int, ...] | None = None
    top_k_experts: int | None = None
    enable_moe_block: bool | None = None
    use_double_wide_mlp: bool | None = None
    attention_k_eq_v: bool | None = None
    global_head_dim: int | None = None
    num_global_key_value_heads: int | None = None
    num_kv_shared_layers: int | None = None
    hidden_size_per_layer_input: int | None = None
    vocab_size_per_layer_input: int | None = None
    per_layer_config: dict[str, Any] | None = None
    use_bidirectional_attention: bool | str | None = None
    swiglu_alpha: float | None = None
    swiglu_limit: float | None = None
    hidden_act: str | None = None
    hidden_activation: str | None = None
    rms_norm_eps: float | None = None
    layer_norm_eps: float | None = None
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    query_pre_attn_scalar: float | None = None
    use_sliding_window: bool | None = None
    sliding_window: int | None = None
    sliding_window_pattern: int | None = None
    _sliding_window_pattern: int | None = None
    max_window_layers: int | None = None
    layer_types: tuple[str, ...] | None = None
    rope_parameters: dict[str, Any] | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_theta: float | None = None
    rope_local_base_freq: float | None = None
    rotary_emb_base: float | None = None
    rotary_pct: float | None = None
    partial_rotary_factor: float | None = None
    bos_token_id: Ids = None
    eos_token_id: Ids = None
    pad_token_id: Ids = None
    unk_token_id: Ids = None


@dataclass(frozen=True, kw_only=True)
class Generation(Foreign):
    """generation_config.json's types, as far as it is read."""

    bos_token_id: Ids = None
    eos_token_id: Ids = None
    pad_token_id: Ids = None
    temperature: float | None = None
    top_k: float | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    max_length: float | None = None
    max_new_tokens: float | None = None
    min_length: float | None = None
    min_new_tokens: float | None = None
    no_repeat_ngram_size: float | None = None
    num_beams: float | None = None
    guidance_scale: float | None = None


def read_config(folder: Path) -> dict[str, Any]:
    """config.json, the types of what every family reads checked; `check_types` is for the rest of it."""
    found = read_json(folder / CONFIG)
    from_json(found, Whole, CONFIG)
    return found


def read_generation(folder: Path) -> dict[str, Any]:
    """generation_config.json, its types checked; nothing where there is none."""
    path = folder / GENERATION_CONFIG
    found = read_json(path) if is_file(path) else {}
    from_json(found, Generation, GENERATION_CONFIG)
    return found


def check_types(given: Mapping[str, Any], reads: Collection[str]) -> None:
    """Raise DataError where a setting that this family `reads`, or all do, has a value of another type."""
    from_json({key: given[key] for key in given if key in READS or key in reads}, Settings, CONFIG)


def unknown(given: Mapping[str, Any], reads: Collection[str]) -> list[str]:
    """Keys that say something and that nobody knows; raises DataError for one that llama.cpp can't compute.

    `given` are the language model's settings as config.json has them, `reads` what its family computes.
    """
    found = []
    for key, value in given.items():
        if value is None and key not in reads:
            continue
        if key in HARMLESS and key not in reads and value not in HARMLESS[key]:
            raise DataError(
                f"config.json: {key} is {str(value)[:80]}; llama.cpp computes nothing of the kind, only "
                f"{' or '.join(map(str, HARMLESS[key]))}"
            )
        known = key in READS or key in reads or key in NO_MATTER or key in HARMLESS or key in GENERATION_NO_MATTER
        # generate's settings are left out of a config.json when transformers reads it
        quiet = key in GENERATION_CHANGES or value in QUIET.get(key, ()) or key.startswith(NO_MATTER_PREFIXES)
        if not known and not quiet:
            found.append(key)
    return found


def generation_warnings(label: str, given: Mapping[str, Any]) -> list[str]:
    """What generation_config.json asks for that nobody here does."""
    said = {key: value for key, value in given.items() if value is not None}
    changing = [key for key, harmless in GENERATION_CHANGES.items() if key in said and said[key] not in harmless]
    odd = [key for key in said if key not in GENERATION_CHANGES and key not in GENERATION_NO_MATTER]
    found = []
    if changing:
        found.append(
            f"{label}: generation_config.json sets {named(changing)}, which changes what transformers generates; "
            "llama.cpp and jmedlite don't heed it"
        )
    if odd:
        found.append(f"{label}: generation_config.json has {named(odd)}, which is not known here and not heeded")
    return found


def named(keys: Collection[str]) -> str:
    """Keys for one line, the first ten of them."""
    return some([key[:60] for key in sorted(keys)], 10)
