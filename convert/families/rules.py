"""The tensors of every family, as rules: what many have in common first, then each family's own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from .family import CONV, DENSE, FULL_SHARED, LINEAR, MIXTURE, SLIDING_SHARED, Rule
from .rope import FULL, SLIDING

_LAYER, _BLK = "model.layers.{i}.", "blk.{i}."
_GATED = ("gate_proj", "up_proj", "down_proj")


def attention(order: str | None = None) -> tuple[Rule, ...]:
    """What Llama, Qwen, Gemma and their mixtures of experts have in common: embedding, head and attention."""
    return (
        Rule("model.embed_tokens.weight", "token_embd.weight", ("n_vocab", "n_embd")),
        Rule("lm_head.weight", "output.weight", ("n_vocab", "n_embd"), when="untied"),
        Rule(_LAYER + "self_attn.q_proj.weight", _BLK + "attn_q.weight", ("n_q", "n_embd"), order),
        Rule(_LAYER + "self_attn.k_proj.weight", _BLK + "attn_k.weight", ("n_kv", "n_embd"), order),
        Rule(_LAYER + "self_attn.v_proj.weight", _BLK + "attn_v.weight", ("n_kv", "n_embd")),
        Rule(_LAYER + "self_attn.o_proj.weight", _BLK + "attn_output.weight", ("n_embd", "n_q")),
    )


def shared(order: str | None = None) -> tuple[Rule, ...]:
    """The same with gated feed-forward matrices."""
    return (
        *attention(order),
        Rule(_LAYER + "mlp.gate_proj.weight", _BLK + "ffn_gate.weight", ("n_ff", "n_embd")),
        Rule(_LAYER + "mlp.up_proj.weight", _BLK + "ffn_up.weight", ("n_ff", "n_embd")),
        Rule(_LAYER + "mlp.down_proj.weight", _BLK + "ffn_down.weight", ("n_embd", "n_ff")),
    )


def _norms(plus: float = 0.0, **layer_norms: str) -> tuple[Rule, ...]:
    """The last norm, and each layer's by llama.cpp's name: `ffn_norm="post_attention_layernorm"`."""
    return (
        Rule("model.norm.weight", "output_norm.weight", ("n_embd",), plus=plus),
        *(
            Rule(f"{_LAYER}{hf}.weight", f"{_BLK}{ours}.weight", ("n_embd",), plus=plus)
            for ours, hf in layer_norms.items()
        ),
    )


def experts(module: str, router: str = "gate", names: tuple[str, str, str] = _GATED) -> tuple[Rule, ...]:
    """A router and the gate, up and down matrices of every expert, which GGUF stacks; `module` is theirs in a layer."""
    place = f"{_LAYER}{module}." if module else _LAYER
    gate, up, down = (f"{place}experts.{{e}}.{name}.weight" for name in names)
    return (
        Rule(f"{place}{router}.weight", _BLK + "ffn_gate_inp.weight", ("n_expert", "n_embd")),
        Rule(gate, _BLK + "ffn_gate_exps.weight", ("n_ff_exp", "n_embd")),
        Rule(up, _BLK + "ffn_up_exps.weight", ("n_ff_exp", "n_embd")),
        Rule(down, _BLK + "ffn_down_exps.weight", ("n_embd", "n_ff_exp")),
    )


def qkv_biases(order: str | None = None, when: str | None = None) -> tuple[Rule, ...]:
    """Biases of queries, keys and values."""
    return (
        Rule(_LAYER + "self_attn.q_proj.bias", _BLK + "attn_q.bias", ("n_q",), order, when),
        Rule(_LAYER + "self_attn.k_proj.bias", _BLK + "attn_k.bias", ("n_kv",), order, when),
        Rule(_LAYER + "self_attn.v_proj.bias", _BLK + "attn_v.bias", ("n_kv",), when=when),
    )


def qk_norms(plus: float = 0.0) -> tuple[Rule, ...]:
    """Norms of the heads of queries and keys."""
    return tuple(
        Rule(f"{_LAYER}self_attn.{x}_norm.weight", f"{_BLK}attn_{x}_norm.weight", ("head_dim",), plus=plus)
        for x in "qk"
    )


SHARED_EXPERT = (
    Rule(
        _LAYER + "mlp.shared_expert_gate.weight",
        _BLK + "ffn_gate_inp_shexp.weight",
        ("n_embd",),
        stored=("1", "n_embd"),
    ),
    Rule(_LAYER + "mlp.shared_expert.gate_proj.weight", _BLK + "ffn_gate_shexp.weight", ("n_ff_shexp", "n_embd")),
    Rule(_LAYER + "mlp.shared_expert.up_proj.weight", _BLK + "ffn_up_shexp.weight", ("n_ff_shexp", "n_embd")),
    Rule(_LAYER + "mlp.shared_expert.down_proj.weight", _BLK + "ffn_down_shexp.weight", ("n_embd", "n_ff_shexp")),
)
LLAMA_NORMS = _norms(attn_norm="input_layernorm", ffn_norm="post_attention_layernorm")
LLAMA_BIASES = (
    Rule(_LAYER + "self_attn.o_proj.bias", _BLK + "attn_output.bias", ("n_embd",), when="attention_bias"),
    Rule(_LAYER + "mlp.gate_proj.bias", _BLK + "ffn_gate.bias", ("n_ff",), when="mlp_bias"),
    Rule(_LAYER + "mlp.up_proj.bias", _BLK + "ffn_up.bias", ("n_ff",), when="mlp_bias"),
    Rule(_LAYER + "mlp.down_proj.bias", _BLK + "ffn_down.bias", ("n_embd",), when="mlp_bias"),
)

GEMMA_NORMS = _norms(  # Gemma's norms multiply by 1 + weight, llama.cpp's by the weight
    1.0,
    attn_norm="input_layernorm",
    post_attention_norm="post_attention_layernorm",
    ffn_norm="pre_feedforward_layernorm",
    post_ffw_norm="post_feedforward_layernorm",
)

GPT_OSS = (
    *attention(),
    *qkv_biases(),
    Rule(_LAYER + "self_attn.o_proj.bias", _BLK + "attn_output.bias", ("n_embd",)),
    Rule(_LAYER + "self_attn.sinks", _BLK + "attn_sinks.weight", ("n_head",)),
    *_norms(attn_norm="input_layernorm", post_attention_norm="post_attention_layernorm"),
    *experts("mlp", "router"),
    Rule(_LAYER + "mlp.router.bias", _BLK + "ffn_gate_inp.bias", ("n_expert",)),
    Rule(_LAYER + "mlp.experts.gate_proj_bias", _BLK + "ffn_gate_exps.bias", ("n_expert", "n_ff_exp")),
    Rule(_LAYER + "mlp.experts.up_proj_bias", _BLK + "ffn_up_exps.bias", ("n_expert", "n_ff_exp")),
    Rule(_LAYER + "mlp.experts.down_proj_bias", _BLK + "ffn_down_exps.bias", ("n_expert", "n_embd")),
)


def _llama4_layers() -> Iterable[Rule]:
    """Of dense layers and of mixtures, whose module is `feed_forward` in both."""
    for kind, rules in ((DENSE, shared()[-3:]), (MIXTURE, (*experts("mlp", "router"), *SHARED_EXPERT[1:]))):
        for rule in rules:
            yield replace(rule, hf=rule.hf.replace(".mlp.", ".feed_forward."), layers=(kind,))


LLAMA4 = (*attention(), *LLAMA_NORMS, *_llama4_layers())

_NEOX_LAYER = "gpt_neox.layers.{i}."


def _affine(hf: str, gguf_name: str, rows: str, cols: str | None = None, order: str | None = None) -> tuple[Rule, ...]:
    """A weight and its bias."""
    shape = (rows,) if cols is None else (rows, cols)
    return (
        Rule(f"{hf}.weight", f"{gguf_name}.weight", shape, order),
        Rule(f"{hf}.bias", f"{gguf_name}.bias", (rows,), order),
    )


NEOX = (
    Rule("gpt_neox.embed_in.weight", "token_embd.weight", ("n_vocab", "n_embd")),
    Rule("embed_out.weight", "output.weight", ("n_vocab", "n_embd"), when="untied"),
    *_affine("gpt_neox.final_layer_norm", "output_norm", "n_embd"),
    *_affine(_NEOX_LAYER + "input_layernorm", _BLK + "attn_norm", "n_embd"),
    *_affine(_NEOX_LAYER + "post_attention_layernorm", _BLK + "ffn_norm", "n_embd"),
    *_affine(_NEOX_LAYER + "attention.query_key_value", _BLK + "attn_qkv", "n_qkv", "n_embd", "fused"),
    *_affine(_NEOX_LAYER + "attention.dense", _BLK + "attn_output", "n_embd", "n_q"),
    *_affine(_NEOX_LAYER + "mlp.dense_h_to_4h", _BLK + "ffn_up", "n_ff", "n_embd"),
    *_affine(_NEOX_LAYER + "mlp.dense_4h_to_h", _BLK + "ffn_down", "n_embd", "n_ff"),
)

STABLELM = (
    *shared(),
    *_affine("model.norm", "output_norm", "n_embd"),
    *_affine(_LAYER + "input_layernorm", _BLK + "attn_norm", "n_embd"),
    *(
        replace(rule, when="!use_parallel_residual")
        for rule in _affine(_LAYER + "post_attention_layernorm", _BLK + "ffn_norm", "n_embd")
    ),
    *qkv_biases(when="use_qkv_bias"),
)

_GPT2_LAYER = "transformer.h.{i}."
GPT2 = (
    Rule("transformer.wte.weight", "token_embd.weight", ("n_vocab", "n_embd")),
    Rule("transformer.wpe.weight", "position_embd.weight", ("n_ctx", "n_embd")),
    Rule("lm_head.weight", "output.weight", ("n_vocab", "n_embd"), when="untied"),
    *_affine("transformer.ln_f", "output_norm", "n_embd"),
    *_affine(_GPT2_LAYER + "ln_1", _BLK + "attn_norm", "n_embd"),
    *_affine(_GPT2_LAYER + "ln_2", _BLK + "ffn_norm", "n_embd"),
    *(
        replace(rule, transposed=rule.gguf.endswith(".weight"))  # transformers' Conv1D
        for rule in (
            *_affine(_GPT2_LAYER + "attn.c_attn", _BLK + "attn_qkv", "n_qkv", "n_embd"),
            *_affine(_GPT2_LAYER + "attn.c_proj", _BLK + "attn_output", "n_embd", "n_q"),
            *_affine(_GPT2_LAYER + "mlp.c_fc", _BLK + "ffn_up", "n_ff", "n_embd"),
            *_affine(_GPT2_LAYER + "mlp.c_proj", _BLK + "ffn_down", "n_embd", "n_ff"),
        )
    ),
)

PHI3 = (
    Rule("model.embed_tokens.weight", "token_embd.weight", ("n_vocab", "n_embd")),
    Rule("lm_head.weight", "output.weight", ("n_vocab", "n_embd"), when="untied"),
    *LLAMA_NORMS,
    Rule(_LAYER + "self_attn.qkv_proj.weight", _BLK + "attn_qkv.weight", ("n_qkv", "n_embd")),
    Rule(_LAYER + "self_attn.o_proj.weight", _BLK + "attn_output.weight", ("n_embd", "n_q")),
    Rule(_LAYER + "mlp.gate_up_proj.weight", _BLK + "ffn_up.weight", ("2·n_ff", "n_embd")),
    Rule(_LAYER + "mlp.down_proj.weight", _BLK + "ffn_down.weight", ("n_embd", "n_ff")),
)

_LINEAR_LAYER = _LAYER + "linear_attn."


def _linear(hf: str, ours: str, *shape: str, order: str | None = None, **more: Any) -> Rule:
    """A tensor of the layers of linear attention."""
    return Rule(_LINEAR_LAYER + hf, _BLK + ours, shape, order, layers=(LINEAR,), **more)


# Qwen3.5: three layers of gated delta nets, then one of attention whose output has a gate beside every query
QWEN35 = (
    Rule("model.embed_tokens.weight", "token_embd.weight", ("n_vocab", "n_embd")),
    Rule("lm_head.weight", "output.weight", ("n_vocab", "n_embd"), when="untied"),
    *_norms(1.0, attn_norm="input_layernorm", post_attention_norm="post_attention_layernorm"),
    *(
        replace(rule, shape=("2·n_q", "n_embd")) if rule.gguf == _BLK + "attn_q.weight" else rule
        for rule in (replace(r, layers=(FULL,)) for r in (*attention()[2:], *qk_norms(1.0)))
    ),
    _linear("in_proj_qkv.weight", "attn_qkv.weight", "n_conv", "n_embd", order="values-of-qkv"),
    _linear("in_proj_z.weight", "attn_gate.weight", "n_value", "n_embd", order="values"),
    _linear("in_proj_b.weight", "ssm_beta.weight", "n_v_head", "n_embd", order="value-heads"),
    _linear("in_proj_a.weight", "ssm_alpha.weight", "n_v_head", "n_embd", order="value-heads"),
    _linear(
        "conv1d.weight", "ssm_conv1d.weight", "n_conv", "n_kernel", order="values-of-qkv",
        stored=("n_conv", "1", "n_kernel"),
    ),
    _linear("dt_bias", "ssm_dt.bias", "n_v_head", order="value-heads"),
    _linear("A_log", "ssm_a", "n_v_head", order="value-heads", negated_exp=True),
    _linear("norm.weight", "ssm_norm.weight", "v_head_dim"),
    _linear("out_proj.weight", "ssm_out.weight", "n_embd", "n_value", columns="values"),
    *shared()[-3:],
)  # fmt: skip
# LFM2: layers of short convolutions, and some of attention
LFM2 = (
    Rule("model.embed_tokens.weight", "token_embd.weight", ("n_vocab", "n_embd")),
    Rule("lm_head.weight", "output.weight", ("n_vocab", "n_embd"), when="untied"),
    Rule("model.embedding_norm.weight", "token_embd_norm.weight", ("n_embd",)),
    Rule(_LAYER + "operator_norm.weight", _BLK + "attn_norm.weight", ("n_embd",)),
    Rule(_LAYER + "ffn_norm.weight", _BLK + "ffn_norm.weight", ("n_embd",)),
    *(replace(rule, layers=(FULL,)) for rule in attention()[2:5]),
    Rule(_LAYER + "self_attn.out_proj.weight", _BLK + "attn_output.weight", ("n_embd", "n_q"), layers=(FULL,)),
    *(
        Rule(f"{_LAYER}self_attn.{x}_layernorm.weight", f"{_BLK}attn_{x}_norm.weight", ("head_dim",), layers=(FULL,))
        for x in "qk"
    ),
    Rule(
        _LAYER + "conv.conv.weight", _BLK + "shortconv.conv.weight", ("n_embd", "n_taps"), layers=(CONV,),
        stored=("n_embd", "1", "n_taps"),
    ),
    Rule(_LAYER + "conv.in_proj.weight", _BLK + "shortconv.in_proj.weight", ("3·n_embd", "n_embd"), layers=(CONV,)),
    Rule(_LAYER + "conv.out_proj.weight", _BLK + "shortconv.out_proj.weight", ("n_embd", "n_embd"), layers=(CONV,)),
    Rule(_LAYER + "feed_forward.w1.weight", _BLK + "ffn_gate.weight", ("n_ff", "n_embd")),
    Rule(_LAYER + "feed_forward.w3.weight", _BLK + "ffn_up.weight", ("n_ff", "n_embd")),
    Rule(_LAYER + "feed_forward.w2.weight", _BLK + "ffn_down.weight", ("n_embd", "n_ff")),
)  # fmt: skip


def _gemma4_layers() -> Iterable[Rule]:
    """Of each type of layer: with a window or without, with keys and values of its own or those of an earlier one."""
    for types, suffix in (((SLIDING, SLIDING_SHARED), ""), ((FULL, FULL_SHARED), "_full")):
        q, kv, head_dim = (f"{name}{suffix}" for name in ("n_q", "n_kv", "head_dim"))
        at, own = _LAYER + "self_attn.", types[:1]
        yield Rule(at + "q_proj.weight", _BLK + "attn_q.weight", (q, "n_embd"), layers=types)
        yield Rule(at + "k_proj.weight", _BLK + "attn_k.weight", (kv, "n_embd"), layers=own)
        yield Rule(
            at + "v_proj.weight", _BLK + "attn_v.weight", (kv, "n_embd"), layers=own,
            when="!attention_k_eq_v" if suffix else None,
        )  # fmt: skip
        yield Rule(at + "o_proj.weight", _BLK + "attn_output.weight", ("n_embd", q), layers=types)
        yield Rule(at + "q_norm.weight", _BLK + "attn_q_norm.weight", (head_dim,), layers=types)
        yield Rule(at + "k_norm.weight", _BLK + "attn_k_norm.weight", (head_dim,), layers=own)
    takers = (SLIDING_SHARED, FULL_SHARED)
    for layers, when, width in (
        ((SLIDING, FULL), None, "n_ff"), (takers, "!use_double_wide_mlp", "n_ff"),
        (takers, "use_double_wide_mlp", "2·n_ff"),
    ):  # fmt: skip
        for rule in shared()[-3:]:
            shape = tuple(width if d == "n_ff" else d for d in rule.shape)
            yield replace(rule, shape=shape, layers=layers, when=when)


PER_LAYER, MOE = "hidden_size_per_layer_input", "enable_moe_block"
GEMMA4 = (
    *attention()[:2],
    *_norms(
        attn_norm="input_layernorm", post_attention_norm="post_attention_layernorm",
        ffn_norm="pre_feedforward_layernorm", post_ffw_norm="post_feedforward_layernorm",
    ),
    *_gemma4_layers(),
    Rule(_LAYER + "layer_scalar", _BLK + "layer_output_scale.weight", ("1",)),
    # a second embedding, of which every layer gets a part
    *(
        replace(rule, when=PER_LAYER)
        for rule in (
            Rule("model.embed_tokens_per_layer.weight", "per_layer_token_embd.weight", ("n_vocab", "n_parts")),
            Rule("model.per_layer_model_projection.weight", "per_layer_model_proj.weight", ("n_parts", "n_embd")),
            Rule("model.per_layer_projection_norm.weight", "per_layer_proj_norm.weight", ("n_part",)),
            Rule(_LAYER + "per_layer_input_gate.weight", _BLK + "inp_gate.weight", ("n_part", "n_embd")),
            Rule(_LAYER + "per_layer_projection.weight", _BLK + "proj.weight", ("n_embd", "n_part")),
            Rule(_LAYER + "post_per_layer_input_norm.weight", _BLK + "post_norm.weight", ("n_embd",)),
        )
    ),
    *(
        replace(rule, when=MOE)
        for rule in (
            Rule(_LAYER + "router.proj.weight", _BLK + "ffn_gate_inp.weight", ("n_expert", "n_embd")),
            Rule(_LAYER + "router.scale", _BLK + "ffn_gate_inp.scale", ("n_embd",)),
            Rule(_LAYER + "router.per_expert_scale", _BLK + "ffn_down_exps.scale", ("n_expert",)),
            *_norms(
                post_ffw_norm_1="post_feedforward_layernorm_1", post_ffw_norm_2="post_feedforward_layernorm_2",
                pre_ffw_norm_2="pre_feedforward_layernorm_2",
            )[1:],
            *experts("")[1:],
        )
    ),
)  # fmt: skip
