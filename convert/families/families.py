"""The table of model families: one entry each. What its words mean: family.py; its tensors: rules.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jmedlite.base import gguf
from jmedlite.base.errors import DataError

from .family import HALVES, TURNS, Experts, Family, Key
from .rope import FULL, SLIDING, RopeNames
from .rules import (
    GEMMA4,
    GEMMA_NORMS,
    GPT2,
    GPT_OSS,
    LFM2,
    LLAMA4,
    LLAMA_BIASES,
    LLAMA_NORMS,
    MOE,
    NEOX,
    PER_LAYER,
    PHI3,
    QWEN35,
    SHARED_EXPERT,
    STABLELM,
    attention,
    experts,
    qk_norms,
    qkv_biases,
    shared,
)


def _expert_keys(count: str) -> tuple[Key, ...]:
    return (
        Key("expert_count", gguf.UINT32, count), Key("expert_used_count", gguf.UINT32, "num_experts_per_tok"),
    )  # fmt: skip


_SHARED_EXPERT_KEYS = (
    *_expert_keys("num_experts"),
    Key("expert_feed_forward_length", gguf.UINT32, "moe_intermediate_size"),
    Key("expert_shared_feed_forward_length", gguf.UINT32, "shared_expert_intermediate_size"),
)
_LLAMA_ROPES = ("default", "linear", "yarn", "dynamic", "llama3")
_QWEN_DEFAULTS = {"sliding_window": 4096, "max_window_layers": 28}
_GEMMA_READS = ("query_pre_attn_scalar", "layer_types", "sliding_window_pattern", "_sliding_window_pattern")
_GEMMA_COMPUTES = (("hidden_activation", ("gelu_pytorch_tanh",)), ("attention_bias", (False,)))

_QWEN35_DEFAULTS = {
    "hidden_act": "silu", "rms_norm_eps": 1e-6, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128,
    "linear_value_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
    "full_attention_interval": 4,
}  # fmt: skip
_QWEN35_COMPUTES: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("hidden_act", ("silu", "swish")),
    ("attention_bias", (False,)),
    ("attn_output_gate", (True,)),
    ("rms_norm_eps", (1e-6,)),  # by which its graph also divides the keys' and queries' lengths
)

_QWEN35_FAMILY = Family(
    "Qwen3.5",
    ("Qwen3_5ForCausalLM",),
    "qwen35",
    QWEN35,
    ("qwen3_5_text",),
    defaults=_QWEN35_DEFAULTS,
    computes=_QWEN35_COMPUTES,
    rope_types=("default", "linear", "yarn", "dynamic"),
    rotary_share=0.25,
    partly_rotated=True,
    writes_rotary=True,
    head_dim=256,
    writes_head_dim=True,
    leaves_out="mtp.",
    mixes_linear=True,
)

_GEMMA4_FAMILY = Family(
    "Gemma 4",
    ("Gemma4ForCausalLM",),
    "gemma4",
    GEMMA4,
    ("gemma4_text",),
    keys=(
        Key("final_logit_softcapping", gguf.FLOAT32, "final_logit_softcapping", missing=0),  # else llama.cpp: 30
        Key("attention.sliding_window", gguf.UINT32, "sliding_window"),
        Key("attention.shared_kv_layers", gguf.UINT32, "num_kv_shared_layers"),
        Key("embedding_length_per_layer_input", gguf.UINT32, PER_LAYER),
    ),
    defaults={
        "tie_word_embeddings": True,
        "head_dim": 256,
        "sliding_window": 512,
        "rms_norm_eps": 1e-6,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 262144,
        "max_position_embeddings": 131072,
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 256,
        "vocab_size_per_layer_input": 262144,
    },
    computes=(
        *_GEMMA_COMPUTES,
        # "vision": only pictures' tokens see what comes after them
        ("use_bidirectional_attention", (None, False, "vision")),
    ),
    reads_more=(),
    ignores=("hidden_act",),
    aliases={"top_k_experts": "num_experts_per_tok"},
    rope_types=("proportional", "default"),
    rope_names=RopeNames("", "", local=""),
    rope_default={
        FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
        SLIDING: {"rope_type": "default", "rope_theta": 1e4},
    },
    two_sizes=True,
    experts=Experts("num_experts", "moe_intermediate_size", switch=MOE),
)

FAMILIES = (
    Family(
        "Qwen2/2.5",
        ("Qwen2ForCausalLM",),
        "qwen2",
        shared() + LLAMA_NORMS + qkv_biases(),
        ("qwen2",),
        defaults=_QWEN_DEFAULTS,
        ignores=("attention_bias",),  # it always has three of them
        splits_width=True,
        window="switched",
    ),
    Family(
        "Qwen3",
        ("Qwen3ForCausalLM",),
        "qwen3",
        shared() + LLAMA_NORMS + qk_norms(),
        ("qwen3",),
        defaults=_QWEN_DEFAULTS,
        head_dim=128,
        writes_head_dim=True,
        computes=(("hidden_act", ("silu", "swish")), ("attention_bias", (False,))),
        window="switched",
    ),
    _QWEN35_FAMILY,
    replace(
        _QWEN35_FAMILY,
        title="Qwen3.5-MoE",
        hf_names=("Qwen3_5MoeForCausalLM",),
        gguf_arch="qwen35moe",
        rules=QWEN35[:-3] + experts("mlp") + SHARED_EXPERT,
        model_types=("qwen3_5_moe_text",),
        keys=_SHARED_EXPERT_KEYS,
        defaults={
            **_QWEN35_FAMILY.defaults,
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512,
            "num_experts_per_tok": 8,
            "num_experts": 256,
        },
        experts=Experts("num_experts", "moe_intermediate_size", "shared_expert_intermediate_size"),
    ),
    Family(
        "Qwen3-MoE",
        ("Qwen3MoeForCausalLM",),
        "qwen3moe",
        attention() + experts("mlp") + LLAMA_NORMS + qk_norms(),
        ("qwen3_moe",),
        keys=(*_expert_keys("num_experts"), Key("expert_feed_forward_length", gguf.UINT32, "moe_intermediate_size")),
        defaults={
            **_QWEN_DEFAULTS,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
            "norm_topk_prob": False,
            "decoder_sparse_step": 1,
        },
        head_dim=128,
        writes_head_dim=True,
        computes=(
            ("hidden_act", ("silu", "swish")),
            ("attention_bias", (False,)),
            ("norm_topk_prob", (True,)),
            ("decoder_sparse_step", (1,)),
            ("mlp_only_layers", ([],)),
        ),
        ignores=("max_window_layers",),
        window="asked",
        experts=Experts("num_experts", "moe_intermediate_size"),
    ),
    Family(
        "Qwen2-MoE",
        ("Qwen2MoeForCausalLM",),
        "qwen2moe",
        attention() + experts("mlp") + SHARED_EXPERT + LLAMA_NORMS + qkv_biases(),
        ("qwen2_moe",),
        keys=_SHARED_EXPERT_KEYS,
        defaults={
            **_QWEN_DEFAULTS,
            "num_experts": 60,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
            "norm_topk_prob": False,
            "decoder_sparse_step": 1,
        },
        ignores=("attention_bias",),
        head_is="required",
        splits_width=True,
        computes=(
            ("hidden_act", ("silu", "swish")),
            ("qkv_bias", (True,)),
            ("norm_topk_prob", (False,)),
            ("decoder_sparse_step", (1,)),
            ("mlp_only_layers", ([],)),
        ),
        window="early",
        experts=Experts("num_experts", "moe_intermediate_size", "shared_expert_intermediate_size"),
    ),
    Family(
        "Llama 2/3, SmolLM",
        ("LlamaForCausalLM", "LLaMAForCausalLM"),
        "llama",
        shared("rotary") + LLAMA_NORMS + qkv_biases("rotary", "attention_bias") + LLAMA_BIASES,
        ("llama",),
        reads_more=("attention_bias", "mlp_bias"),
        rope_types=_LLAMA_ROPES,
        writes_vocab_size=True,
        writes_rotary=True,
    ),
    Family(
        "Mistral, text of Mistral 3",
        ("MistralForCausalLM",),
        "llama",
        shared("rotary") + LLAMA_NORMS,
        ("mistral",),
        defaults={"sliding_window": 4096},
        window="all",
        rope_types=_LLAMA_ROPES,
        writes_vocab_size=True,
        writes_rotary=True,
    ),
    Family(
        "Mixtral (llm-jp 8x13B)",
        ("MixtralForCausalLM",),
        "llama",
        attention("rotary") + experts("block_sparse_moe", names=("w1", "w3", "w2")) + LLAMA_NORMS,
        ("mixtral",),
        keys=_expert_keys("num_local_experts"),
        defaults={"num_local_experts": 8, "num_experts_per_tok": 2},
        window="all",
        rope_types=_LLAMA_ROPES,
        writes_vocab_size=True,
        writes_rotary=True,
        experts=Experts("num_local_experts", "intermediate_size"),
        renamed=("mlp", "block_sparse_moe"),
    ),
    Family(
        "gpt-oss",
        ("GptOssForCausalLM",),
        "gpt-oss",
        GPT_OSS,
        ("gpt_oss",),
        keys=(
            *_expert_keys("num_local_experts"),
            Key("expert_feed_forward_length", gguf.UINT32, "intermediate_size"),
            Key("attention.sliding_window", gguf.UINT32, "sliding_window"),
        ),
        defaults={
            "num_local_experts": 128,
            "num_experts_per_tok": 4,
            "sliding_window": 128,
            "rms_norm_eps": 1e-5,
            "rope_theta": 150000.0,
            "attention_bias": True,
        },
        computes=(
            ("hidden_act", ("silu", "swish")),
            ("attention_bias", (True,)),
            ("swiglu_alpha", (1.702,)),
            ("swiglu_limit", (7.0,)),
        ),
        reads_more=("hidden_act", "layer_types"),
        ignores=("initial_context_length", "experts_per_token"),  # of OpenAI's own form, said twice
        rope_default={
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
        rope_nearly=("truncate",),
        head_dim=64,
        writes_head_dim=True,
        head_is="required",
        sliding_period=2,
        experts=Experts("num_local_experts", "intermediate_size", crosswise=TURNS),
    ),
    Family(
        "Llama 4",
        ("Llama4ForCausalLM",),
        "llama4",
        LLAMA4,
        ("llama4_text",),
        keys=(
            *_expert_keys("num_local_experts"),
            Key("expert_feed_forward_length", gguf.UINT32, "intermediate_size"),
            Key("interleave_moe_layer_step", gguf.UINT32, "interleave_moe_layer_step"),
        ),
        defaults={
            "num_local_experts": 16,
            "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 1,
            "intermediate_size": 8192,
            "intermediate_size_mlp": 16384,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "max_position_embeddings": 131072,
            "num_key_value_heads": 8,
            "use_qk_norm": True,
            "no_rope_layer_interval": 4,
            "attention_chunk_size": 8192,
            "attn_temperature_tuning": True,
            "floor_scale": 8192,
            "attn_scale": 0.1,
        },
        computes=(
            ("hidden_act", ("silu", "swish")),
            ("attention_bias", (False,)),
            ("attention_chunk_size", (8192,)),
            ("no_rope_layer_interval", (4,)),
            ("attn_temperature_tuning", (True, 4)),  # Meta's own files say 4
            ("floor_scale", (8192,)),
            ("attn_scale", (0.1,)),
        ),
        rope_types=_LLAMA_ROPES,
        head_dim=128,
        writes_head_dim=True,
        writes_vocab_size=True,
        writes_rotary=True,
        experts=Experts(
            "num_local_experts",
            "intermediate_size",
            "intermediate_size",
            crosswise=HALVES,
            step="interleave_moe_layer_step",
        ),
        ignores=("for_llm_compressor",),  # in Meta's own files, and in no code
        width="intermediate_size_mlp",
        chunked=True,
    ),
    Family(
        "GPT-NeoX (OpenCALM, rinna)",
        ("GPTNeoXForCausalLM",),
        "gptneox",
        NEOX,
        ("gpt_neox",),
        keys=(Key("use_parallel_residual", gguf.BOOL, "use_parallel_residual"),),
        defaults={"use_parallel_residual": True, "layer_norm_eps": 1e-5, "attention_bias": True},
        # llama.cpp computes every one of these by the tanh formula
        computes=(
            ("hidden_act", ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")),
            ("attention_bias", (True,)),
        ),
        norm_eps="layer_norm_eps",
        grouped=False,
        splits_width=True,
        rope_names=RopeNames("rotary_emb_base", "rotary_pct"),
        rotary_share=0.25,
        partly_rotated=True,
        writes_rotary=True,
        head="embed_out.weight",
        embedding="gpt_neox.embed_in.weight",
        head_is="required",
    ),
    Family(
        "LFM2",
        ("Lfm2ForCausalLM", "LFM2ForCausalLM"),
        "lfm2",
        LFM2,
        ("lfm2",),
        defaults={
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "rope_theta": 1e6,
            "conv_L_cache": 3,
            "block_multiple_of": 256,
            "block_ffn_dim_multiplier": 1.0,
            "block_auto_adjust_ff_dim": True,
        },
        computes=(("conv_bias", (False,)),),
        reads_more=("head_dim",),
        ignores=(
            "hidden_act",
            "num_heads",
            "block_dim",
            "conv_dim",
            "conv_dim_out",
            "conv_use_xavier_init",
            "theta",
            "block_mlp_init_scale",
            "block_norm_eps",
            "block_out_init_scale",
            "block_use_swiglu",
            "block_use_xavier_init",
            "use_pos_enc",
        ),
        aliases={
            "norm_eps": "rms_norm_eps",
            "block_ff_dim": "intermediate_size",
            "tie_embedding": "tie_word_embeddings",
        },
        writes_vocab_size=True,
        splits_width=True,
        mixes_conv=True,
    ),
    Family(
        "StableLM",
        ("StableLmForCausalLM", "StableLMEpochForCausalLM"),
        "stablelm",
        STABLELM,
        ("stablelm", "stablelm_epoch"),
        keys=(Key("use_parallel_residual", gguf.BOOL, "use_parallel_residual"),),
        defaults={"layer_norm_eps": 1e-5, "use_parallel_residual": False},
        computes=(("hidden_act", ("silu", "swish")), ("qk_layernorm", (False,))),
        ignores=("num_heads",),
        aliases={"norm_eps": "layer_norm_eps", "rope_pct": "partial_rotary_factor"},  # of stablelm_epoch
        norm_eps="layer_norm_eps",
        splits_width=True,
        rotary_share=0.25,
        partly_rotated=True,
        writes_rotary=True,
        head_is="required",
    ),
    Family(
        "GPT-2 (rinna)",
        ("GPT2LMHeadModel",),
        "gpt2",
        GPT2,
        ("gpt2",),
        defaults={"layer_norm_eps": 1e-5, "hidden_act": "gelu_new", "tie_word_embeddings": True},
        computes=(
            ("hidden_act", ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")),  # all by the tanh formula
            ("scale_attn_weights", (True,)),
            ("scale_attn_by_inverse_layer_idx", (False,)),
        ),
        ignores=(
            "n_ctx",
            "attn_pdrop",
            "reorder_and_upcast_attn",
            "summary_type",
            "summary_use_proj",
            "summary_activation",
            "summary_proj_to_labels",
            "summary_first_dropout",
        ),
        aliases={
            "n_embd": "hidden_size",
            "n_head": "num_attention_heads",
            "n_layer": "num_hidden_layers",
            "n_positions": "max_position_embeddings",
            "n_inner": "intermediate_size",
            "activation_function": "hidden_act",
            "layer_norm_epsilon": "layer_norm_eps",
        },
        widens=4,
        norm_eps="layer_norm_eps",
        grouped=False,
        splits_width=True,
        rope_types=("default",),
        rope_names=RopeNames("", ""),  # its positions are a table
        embedding="transformer.wte.weight",
    ),
    Family(
        "Gemma 2",
        ("Gemma2ForCausalLM",),
        "gemma2",
        shared() + GEMMA_NORMS,
        ("gemma2",),
        keys=(
            Key("attn_logit_softcapping", gguf.FLOAT32, "attn_logit_softcapping"),
            Key("final_logit_softcapping", gguf.FLOAT32, "final_logit_softcapping"),
            Key("attention.sliding_window", gguf.UINT32, "sliding_window"),
        ),
        defaults={
            "tie_word_embeddings": True,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        computes=_GEMMA_COMPUTES,
        reads_more=_GEMMA_READS,
        ignores=("hidden_act",),
        head_dim=256,
        writes_head_dim=True,
        head_is="tied",
        sliding_period=2,
        scales_by_width=46,
    ),
    Family(
        "Gemma 3",
        ("Gemma3ForCausalLM",),
        "gemma3",
        shared() + GEMMA_NORMS + qk_norms(1.0),
        ("gemma3_text",),
        keys=(
            Key("final_logit_softcapping", gguf.FLOAT32, "final_logit_softcapping", optional=True),
            Key("attention.sliding_window", gguf.UINT32, "sliding_window"),
        ),
        defaults={
            "tie_word_embeddings": True,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
            "rms_norm_eps": 1e-6,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "vocab_size": 262208,
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
            "max_position_embeddings": 131072,
        },
        computes=(*_GEMMA_COMPUTES, ("attn_logit_softcapping", (None,))),
        reads_more=_GEMMA_READS,
        ignores=("hidden_act",),
        rope_types=("default", "linear", "dynamic"),
        rope_names=RopeNames(local="rope_local_base_freq"),
        head_dim=256,
        writes_head_dim=True,
        sliding_period=6,
        scales_by_width=62,
    ),
    _GEMMA4_FAMILY,
    replace(
        _GEMMA4_FAMILY,
        title="Gemma 4 unified (12B)",
        hf_names=("Gemma4UnifiedForCausalLM",),
        rules=tuple(rule for rule in GEMMA4 if rule.when not in (PER_LAYER, MOE)),
        model_types=("gemma4_unified_text",),
        defaults={**_GEMMA4_FAMILY.defaults, "sliding_window": 1024, "max_position_embeddings": 262144, PER_LAYER: 0},
        computes=(*_GEMMA4_FAMILY.computes, (PER_LAYER, (0,))),
        aliases={},
        experts=None,
    ),
    Family(
        "Phi-3/4",
        ("Phi3ForCausalLM",),
        "phi3",
        PHI3,
        ("phi3",),
        keys=(
            Key("rope.scaling.original_context_length", gguf.UINT32, "original_max_position_embeddings"),
            Key("attention.sliding_window", gguf.UINT32, "sliding_window", missing=0),
        ),
        defaults={"original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
        window="all",
        rope_types=("default", "longrope"),
        splits_width=True,
        partly_rotated=True,
        writes_rotary=True,
    ),
)

# Buffers that old checkpoints carry and no model needs.
IGNORED_SUFFIXES = (
    ".rotary_emb.inv_freq", ".attention.masked_bias", ".attention.bias", ".attention.rotary_emb.inv_freq",
    ".attn.bias", ".attn.masked_bias",
)  # fmt: skip
# Models with eyes (MedGemma, Mistral Small 3.1): their language model is one of the families under another prefix
# (names.py). By architecture: that of the language model, and what the whole model's type is called.
_MULTIMODAL = {
    "Gemma4ForConditionalGeneration": ("Gemma4ForCausalLM", "gemma4"),
    "Gemma4UnifiedForConditionalGeneration": ("Gemma4UnifiedForCausalLM", "gemma4_unified"),
    "Gemma3ForConditionalGeneration": ("Gemma3ForCausalLM", "gemma3"),
    "Mistral3ForConditionalGeneration": ("MistralForCausalLM", "mistral3"),
    "Qwen3_5ForConditionalGeneration": ("Qwen3_5ForCausalLM", "qwen3_5"),
    "Llama4ForConditionalGeneration": ("Llama4ForCausalLM", "llama4"),
    "Qwen3_5MoeForConditionalGeneration": ("Qwen3_5MoeForCausalLM", "qwen3_5_moe"),
}


def find_family(config: Mapping[str, Any]) -> Family:
    """The family of a checkpoint's configuration; raises DataError listing the known ones."""
    name = next(iter(config.get("architectures") or []), None)
    inner, whole_type = _MULTIMODAL.get(str(name), (name, None))
    for family in FAMILIES:
        if inner in family.hf_names:
            types = family.model_types if whole_type is None else (whole_type,)
            if config.get("model_type", types[0]) not in types:
                raise DataError(
                    f"config.json: its architecture is {name}, its model_type {config['model_type']!r}, expected "
                    f"{' or '.join(types)}; they are two models, correct the one that is wrong"
                )
            text_type = (config.get("text_config") or {}).get("model_type", family.model_types[0])
            if text_type not in family.model_types:
                raise DataError(
                    f"config.json: the text part of this {name} is a {text_type!r}, which is not supported; known is "
                    f"{' or '.join(family.model_types)}"
                )
            return family
    known = ", ".join(name.removesuffix("ForCausalLM") for f in FAMILIES for name in f.hf_names[:1])
    raise DataError(f"config.json: architecture {name} is not supported; known are {known} (…ForCausalLM)")
