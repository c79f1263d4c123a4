"""The model families, as data: which tensors a checkpoint must have, what GGUF calls them, which rows move.

A family is one entry of FAMILIES. Dimensions are named by letters worked out once from the configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from jmedlite.base import gguf
from jmedlite.base.errors import DataError
from jmedlite.base.gguf import MAX_BLOCKS, MAX_EXPERTS
from jmedlite.base.wording import shown

from . import settings as known
from .rope import ORIGINAL, ROPE_NAMES, Rope, RopeNames, n_rotary, resolve, rope_parameters
from .row_order import Order, RowOrder, TiledHeads


@dataclass(frozen=True)
class Rule:
    """One tensor: names with `{i}` for the layer, shape in named dimensions (row-major).

    `order` names how its rows move (see `row_order`); `plus` is added to every value; `when` names a switch of the
    configuration, "untied" or a key that must be true (or with "!" before it, false), without which the tensor must
    not be there; None means it always is. `transposed`: the checkpoint has it as (columns, rows). Where `hf` has
    `{e}`, the tensor is made of a matrix of that shape for every expert, one after the other. `stored` is the
    checkpoint's shape where that has dimensions of one more, `layers` the types of the layers that have it (none for
    all), `columns` how its columns move, as `order` does. `negated_exp`: GGUF has -e^x of every value.
    """

    hf: str
    gguf: str
    shape: tuple[str, ...]
    order: str | None = None
    when: str | None = None
    plus: float = 0.0
    stored: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    columns: str | None = None
    negated_exp: bool = False
    transposed: bool = False

    def names(self, n_expert: int) -> tuple[str, ...]:
        """The checkpoint's tensors that it is made of, with the layer filled in."""
        return tuple(self.hf.replace("{e}", str(e)) for e in range(n_expert)) if "{e}" in self.hf else (self.hf,)


@dataclass(frozen=True)
class Experts:
    """Where config.json has the number of experts, and the widths of one and of the expert that all tokens share.

    `crosswise`: all of a layer are one parameter that inputs are multiplied by from the left (n_expert, in, out), and
    gate and up take turns in it. `switch`: the setting that must be true, in a family that has also models without.
    """

    count: str
    width: str
    shared_width: str | None = None
    crosswise: bool = False
    switch: str | None = None


FULL, LINEAR, CONV, SLIDING = "full_attention", "linear_attention", "conv", "sliding_attention"  # types of layers
# of Gemma 4's: those that have the keys and values of an earlier layer of their type
FULL_SHARED, SLIDING_SHARED = "full_attention+shared", "sliding_attention+shared"
LINEAR_SETTINGS = (
    "linear_conv_kernel_dim", "linear_key_head_dim", "linear_value_head_dim", "linear_num_key_heads",
    "linear_num_value_heads",
)  # fmt: skip


CONV_SETTINGS = (
    "layer_types", "full_attn_idxs", "conv_L_cache", "block_auto_adjust_ff_dim", "block_ffn_dim_multiplier",
    "block_multiple_of",
)  # fmt: skip
TWO_SIZES_SETTINGS = (
    "layer_types", "sliding_window", "global_head_dim", "num_global_key_value_heads", "attention_k_eq_v",
    "num_kv_shared_layers", "hidden_size_per_layer_input", "vocab_size_per_layer_input", "per_layer_config",
)  # fmt: skip


@dataclass(frozen=True)
class Key:
    """A metadata key `{arch}.{name}` that comes straight from config.json.

    Where that has none, `missing` is written; `optional`: nothing is.
    """

    name: str
    type: int
    config: str
    optional: bool = False
    missing: int | None = None


@dataclass(frozen=True)
class Family:
    """One architecture of Hugging Face as llama.cpp knows it.

    `defaults` are what transformers takes where config.json has nothing; `computes` are the only values llama.cpp's
    graph knows for a setting, so that others are refused; `keys` are metadata beyond what all families have;
    `reads_more` are settings that transformers reads here (see `settings`), `ignores` some that it does not; `aliases`
    are what config.json may call a setting here, with its usual name.
    """

    title: str
    hf_names: tuple[str, ...]
    gguf_arch: str
    rules: tuple[Rule, ...]
    model_types: tuple[str, ...]
    keys: tuple[Key, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    computes: tuple[tuple[str, tuple[Any, ...]], ...] = (("hidden_act", ("silu", "swish")),)
    norm_eps: str = "rms_norm_eps"
    grouped: bool = True  # attention may share key-value heads
    reads_more: tuple[str, ...] = ("hidden_act",)
    ignores: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    widens: int | None = None  # intermediate_size as a multiple of hidden_size, where config.json has none
    rope_types: tuple[str, ...] = ("default", "linear", "yarn", "dynamic")
    rope_names: RopeNames = ROPE_NAMES
    rope_default: Mapping[str, Any] = field(default_factory=dict)  # where config.json has no rotary settings at all
    # settings of the rotary embedding that llama.cpp computes otherwise, but so little that a warning will do
    rope_nearly: tuple[str, ...] = ()
    rotary_share: float = 1.0
    partly_rotated: bool = False  # may a share of a head's dimensions stay unrotated?
    writes_rotary: bool = False  # {arch}.rope.dimension_count
    writes_vocab_size: bool = False
    writes_head_dim: bool = False  # even where config.json has none
    splits_width: bool = False  # a head's dimensions must be hidden_size / num_attention_heads
    head_dim: int | None = None  # where config.json has none and it is not hidden_size / num_attention_heads
    head: str = "lm_head.weight"
    embedding: str = "model.embed_tokens.weight"
    head_is: str = "optional"  # llama.cpp's output.weight: optional, "required" even where tied, or "tied" always
    # which layers have one that llama.cpp does not compute: "all", or where use_sliding_window says so "switched"
    # (those from max_window_layers on), "early" (every other one before it) or "asked" (all)
    window: str = ""
    sliding_period: int = 0  # every n-th layer attends to everything, the others to a window
    experts: Experts | None = None
    leaves_out: str = ""  # the beginning of tensors for drafts of several tokens at once, which answers do not need
    mixes_conv: bool = False  # layers of short convolutions among the others, in any pattern (LFM2)
    mixes_linear: bool = False  # layers of linear attention among the others (`full_interval`)
    two_sizes: bool = False  # heads of other sizes in layers with a window and without, the last may share theirs
    renamed: tuple[str, str] | None = None  # a module that transformers 5 calls otherwise: (there, in checkpoints)
    scales_by_width: int = 0  # with this many layers, llama.cpp scales attention by hidden_size / heads

    @property
    def root(self) -> str:
        """The module that holds all but the head."""
        return self.embedding.partition(".")[0]

    @property
    def head_module(self) -> str:
        return self.head.removesuffix(".weight")

    @cached_property
    def by_gguf(self) -> Mapping[str, str]:
        """By llama.cpp's name the checkpoint's, with {i} for the layer and {e} for the expert in both."""
        return {rule.gguf: rule.hf for rule in self.rules}

    @cached_property
    def inner_modules(self) -> frozenset[str]:
        """What the root holds: layers, embedding, last norm."""
        return frozenset(r.hf.split(".")[1] for r in self.rules if r.hf.startswith(self.root + "."))

    @property
    def reads(self) -> frozenset[str]:
        """The settings that are computed, beyond those that all families have."""
        heads = ("num_key_value_heads", "head_dim") if self.grouped else ()
        windows = {
            "": (),
            "all": ("sliding_window",),
            "switched": ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types"),
            "early": ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types"),
            "asked": ("sliding_window", "use_sliding_window"),
        }[self.window]
        named = (k.config for k in self.keys), (key for key, _ in self.computes), self.reads_more, heads, windows
        rope = (self.rope_names.theta, self.rope_names.share, self.rope_names.local or "")
        experts = (self.experts.count, self.experts.width, "num_experts_per_tok") if self.experts else ()
        mixed = [*LINEAR_SETTINGS, "layer_types", "full_attention_interval"] if self.mixes_linear else []
        mixed += CONV_SETTINGS if self.mixes_conv else []
        mixed += TWO_SIZES_SETTINGS if self.two_sizes else []
        switches = [r.when.removeprefix("!") for r in self.rules if r.when not in (None, "untied")]
        return frozenset(
            (
                self.norm_eps,
                *self.aliases,
                *switches,
                *rope,
                *experts,
                *mixed,
                *(key for keys in named for key in keys),
            )
        )


_LAYER, _BLK = "model.layers.{i}.", "blk.{i}."
_GATED = ("gate_proj", "up_proj", "down_proj")


def _attention(order: str | None = None) -> tuple[Rule, ...]:
    """What Llama, Qwen, Gemma and their mixtures of experts have in common: embedding, head and attention."""
    return (
        Rule("model.embed_tokens.weight", "token_embd.weight", ("n_vocab", "n_embd")),
        Rule("lm_head.weight", "output.weight", ("n_vocab", "n_embd"), when="untied"),
        Rule(_LAYER + "self_attn.q_proj.weight", _BLK + "attn_q.weight", ("n_q", "n_embd"), order),
        Rule(_LAYER + "self_attn.k_proj.weight", _BLK + "attn_k.weight", ("n_kv", "n_embd"), order),
        Rule(_LAYER + "self_attn.v_proj.weight", _BLK + "attn_v.weight", ("n_kv", "n_embd")),
        Rule(_LAYER + "self_attn.o_proj.weight", _BLK + "attn_output.weight", ("n_embd", "n_q")),
    )


def _shared(order: str | None = None) -> tuple[Rule, ...]:
    """The same with gated feed-forward matrices."""
    return (
        *_attention(order),
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


def _experts(module: str, router: str = "gate", names: tuple[str, str, str] = _GATED) -> tuple[Rule, ...]:
    """A router and the gate, up and down matrices of every expert, which GGUF stacks; `module` is theirs in a layer."""
    place = f"{_LAYER}{module}." if module else _LAYER
    gate, up, down = (f"{place}experts.{{e}}.{name}.weight" for name in names)
    return (
        Rule(f"{place}{router}.weight", _BLK + "ffn_gate_inp.weight", ("n_expert", "n_embd")),
        Rule(gate, _BLK + "ffn_gate_exps.weight", ("n_ff_exp", "n_embd")),
        Rule(up, _BLK + "ffn_up_exps.weight", ("n_ff_exp", "n_embd")),
        Rule(down, _BLK + "ffn_down_exps.weight", ("n_embd", "n_ff_exp")),
    )


def _qkv_biases(order: str | None = None, when: str | None = None) -> tuple[Rule, ...]:
    return (
        Rule(_LAYER + "self_attn.q_proj.bias", _BLK + "attn_q.bias", ("n_q",), order, when),
        Rule(_LAYER + "self_attn.k_proj.bias", _BLK + "attn_k.bias", ("n_kv",), order, when),
        Rule(_LAYER + "self_attn.v_proj.bias", _BLK + "attn_v.bias", ("n_kv",), when=when),
    )


def _qk_norms(plus: float = 0.0) -> tuple[Rule, ...]:
    return tuple(
        Rule(f"{_LAYER}self_attn.{x}_norm.weight", f"{_BLK}attn_{x}_norm.weight", ("head_dim",), plus=plus)
        for x in "qk"
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
_SHARED_EXPERT = (
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
_QWEN_DEFAULTS = {"sliding_window": 4096, "max_window_layers": 28}
_LLAMA_NORMS = _norms(attn_norm="input_layernorm", ffn_norm="post_attention_layernorm")
_LLAMA_BIASES = (
    Rule(_LAYER + "self_attn.o_proj.bias", _BLK + "attn_output.bias", ("n_embd",), when="attention_bias"),
    Rule(_LAYER + "mlp.gate_proj.bias", _BLK + "ffn_gate.bias", ("n_ff",), when="mlp_bias"),
    Rule(_LAYER + "mlp.up_proj.bias", _BLK + "ffn_up.bias", ("n_ff",), when="mlp_bias"),
    Rule(_LAYER + "mlp.down_proj.bias", _BLK + "ffn_down.bias", ("n_embd",), when="mlp_bias"),
)

_GEMMA_NORMS = _norms(  # Gemma's norms multiply by 1 + weight, llama.cpp's by the weight
    1.0,
    attn_norm="input_layernorm",
    post_attention_norm="post_attention_layernorm",
    ffn_norm="pre_feedforward_layernorm",
    post_ffw_norm="post_feedforward_layernorm",
)
_GEMMA_READS = ("query_pre_attn_scalar", "layer_types", "sliding_window_pattern", "_sliding_window_pattern")
_GEMMA_COMPUTES = (("hidden_activation", ("gelu_pytorch_tanh",)), ("attention_bias", (False,)))

_GPT_OSS = (
    *_attention(),
    *_qkv_biases(),
    Rule(_LAYER + "self_attn.o_proj.bias", _BLK + "attn_output.bias", ("n_embd",)),
    Rule(_LAYER + "self_attn.sinks", _BLK + "attn_sinks.weight", ("n_head",)),
    *_norms(attn_norm="input_layernorm", post_attention_norm="post_attention_layernorm"),
    *_experts("mlp", "router"),
    Rule(_LAYER + "mlp.router.bias", _BLK + "ffn_gate_inp.bias", ("n_expert",)),
    Rule(_LAYER + "mlp.experts.gate_proj_bias", _BLK + "ffn_gate_exps.bias", ("n_expert", "n_ff_exp")),
    Rule(_LAYER + "mlp.experts.up_proj_bias", _BLK + "ffn_up_exps.bias", ("n_expert", "n_ff_exp")),
    Rule(_LAYER + "mlp.experts.down_proj_bias", _BLK + "ffn_down_exps.bias", ("n_expert", "n_embd")),
)

_NEOX_LAYER = "gpt_neox.layers.{i}."


def _affine(hf: str, gguf_name: str, rows: str, cols: str | None = None, order: str | None = None) -> tuple[Rule, ...]:
    """A weight and its bias."""
    shape = (rows,) if cols is None else (rows, cols)
    return (
        Rule(f"{hf}.weight", f"{gguf_name}.weight", shape, order),
        Rule(f"{hf}.bias", f"{gguf_name}.bias", (rows,), order),
    )


_NEOX = (
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

_STABLELM = (
    *_shared(),
    *_affine("model.norm", "output_norm", "n_embd"),
    *_affine(_LAYER + "input_layernorm", _BLK + "attn_norm", "n_embd"),
    *(
        replace(rule, when="!use_parallel_residual")
        for rule in _affine(_LAYER + "post_attention_layernorm", _BLK + "ffn_norm", "n_embd")
    ),
    *_qkv_biases(when="use_qkv_bias"),
)

_GPT2_LAYER = "transformer.h.{i}."
_GPT2 = (
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

_PHI3 = (
    Rule("model.embed_tokens.weight", "token_embd.weight", ("n_vocab", "n_embd")),
    Rule("lm_head.weight", "output.weight", ("n_vocab", "n_embd"), when="untied"),
    *_LLAMA_NORMS,
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
_QWEN35 = (
    Rule("model.embed_tokens.weight", "token_embd.weight", ("n_vocab", "n_embd")),
    Rule("lm_head.weight", "output.weight", ("n_vocab", "n_embd"), when="untied"),
    *_norms(1.0, attn_norm="input_layernorm", post_attention_norm="post_attention_layernorm"),
    *(
        replace(rule, shape=("2·n_q", "n_embd")) if rule.gguf == _BLK + "attn_q.weight" else rule
        for rule in (replace(r, layers=(FULL,)) for r in (*_attention()[2:], *_qk_norms(1.0)))
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
    *_shared()[-3:],
)  # fmt: skip
# LFM2: layers of short convolutions, and some of attention
_LFM2 = (
    Rule("model.embed_tokens.weight", "token_embd.weight", ("n_vocab", "n_embd")),
    Rule("lm_head.weight", "output.weight", ("n_vocab", "n_embd"), when="untied"),
    Rule("model.embedding_norm.weight", "token_embd_norm.weight", ("n_embd",)),
    Rule(_LAYER + "operator_norm.weight", _BLK + "attn_norm.weight", ("n_embd",)),
    Rule(_LAYER + "ffn_norm.weight", _BLK + "ffn_norm.weight", ("n_embd",)),
    *(replace(rule, layers=(FULL,)) for rule in _attention()[2:5]),
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
    shared = (SLIDING_SHARED, FULL_SHARED)
    for layers, when, width in (
        ((SLIDING, FULL), None, "n_ff"), (shared, "!use_double_wide_mlp", "n_ff"),
        (shared, "use_double_wide_mlp", "2·n_ff"),
    ):  # fmt: skip
        for rule in _shared()[-3:]:
            shape = tuple(width if d == "n_ff" else d for d in rule.shape)
            yield replace(rule, shape=shape, layers=layers, when=when)


_PER_LAYER, _MOE = "hidden_size_per_layer_input", "enable_moe_block"
_GEMMA4 = (
    *_attention()[:2],
    *_norms(
        attn_norm="input_layernorm", post_attention_norm="post_attention_layernorm",
        ffn_norm="pre_feedforward_layernorm", post_ffw_norm="post_feedforward_layernorm",
    ),
    *_gemma4_layers(),
    Rule(_LAYER + "layer_scalar", _BLK + "layer_output_scale.weight", ("1",)),
    # a second embedding, of which every layer gets a part
    *(
        replace(rule, when=_PER_LAYER)
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
        replace(rule, when=_MOE)
        for rule in (
            Rule(_LAYER + "router.proj.weight", _BLK + "ffn_gate_inp.weight", ("n_expert", "n_embd")),
            Rule(_LAYER + "router.scale", _BLK + "ffn_gate_inp.scale", ("n_embd",)),
            Rule(_LAYER + "router.per_expert_scale", _BLK + "ffn_down_exps.scale", ("n_expert",)),
            *_norms(
                post_ffw_norm_1="post_feedforward_layernorm_1", post_ffw_norm_2="post_feedforward_layernorm_2",
                pre_ffw_norm_2="pre_feedforward_layernorm_2",
            )[1:],
            *_experts("")[1:],
        )
    ),
)  # fmt: skip

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
    _QWEN35,
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

FAMILIES = (
    Family(
        "Qwen2/2.5",
        ("Qwen2ForCausalLM",),
        "qwen2",
        _shared() + _LLAMA_NORMS + _qkv_biases(),
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
        _shared() + _LLAMA_NORMS + _qk_norms(),
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
        rules=_QWEN35[:-3] + _experts("mlp") + _SHARED_EXPERT,
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
        _attention() + _experts("mlp") + _LLAMA_NORMS + _qk_norms(),
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
        _attention() + _experts("mlp") + _SHARED_EXPERT + _LLAMA_NORMS + _qkv_biases(),
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
        _shared("rotary") + _LLAMA_NORMS + _qkv_biases("rotary", "attention_bias") + _LLAMA_BIASES,
        ("llama",),
        reads_more=("attention_bias", "mlp_bias"),
        rope_types=("default", "linear", "yarn", "dynamic", "llama3"),
        writes_vocab_size=True,
        writes_rotary=True,
    ),
    Family(
        "Mistral, text of Mistral 3",
        ("MistralForCausalLM",),
        "llama",
        _shared("rotary") + _LLAMA_NORMS,
        ("mistral",),
        defaults={"sliding_window": 4096},
        window="all",
        rope_types=("default", "linear", "yarn", "dynamic", "llama3"),
        writes_vocab_size=True,
        writes_rotary=True,
    ),
    Family(
        "Mixtral (llm-jp 8x13B)",
        ("MixtralForCausalLM",),
        "llama",
        _attention("rotary") + _experts("block_sparse_moe", names=("w1", "w3", "w2")) + _LLAMA_NORMS,
        ("mixtral",),
        keys=_expert_keys("num_local_experts"),
        defaults={"num_local_experts": 8, "num_experts_per_tok": 2},
        window="all",
        rope_types=("default", "linear", "yarn", "dynamic", "llama3"),
        writes_vocab_size=True,
        writes_rotary=True,
        experts=Experts("num_local_experts", "intermediate_size"),
        renamed=("mlp", "block_sparse_moe"),
    ),
    Family(
        "gpt-oss",
        ("GptOssForCausalLM",),
        "gpt-oss",
        _GPT_OSS,
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
        experts=Experts("num_local_experts", "intermediate_size", crosswise=True),
    ),
    Family(
        "GPT-NeoX (OpenCALM, rinna)",
        ("GPTNeoXForCausalLM",),
        "gptneox",
        _NEOX,
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
        _LFM2,
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
        _STABLELM,
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
        _GPT2,
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
        _shared() + _GEMMA_NORMS,
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
        _shared() + _GEMMA_NORMS + _qk_norms(1.0),
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
    Family(
        "Gemma 4",
        ("Gemma4ForCausalLM",),
        "gemma4",
        _GEMMA4,
        ("gemma4_text",),
        keys=(
            Key("final_logit_softcapping", gguf.FLOAT32, "final_logit_softcapping", missing=0),  # else llama.cpp: 30
            Key("attention.sliding_window", gguf.UINT32, "sliding_window"),
            Key("attention.shared_kv_layers", gguf.UINT32, "num_kv_shared_layers"),
            Key("embedding_length_per_layer_input", gguf.UINT32, _PER_LAYER),
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
            ("attn_logit_softcapping", (None,)),
            # "vision": only pictures' tokens see what comes after them
            ("use_bidirectional_attention", (None, False, "vision")),
        ),
        ignores=("hidden_act",),
        aliases={"top_k_experts": "num_experts_per_tok"},
        rope_types=("proportional", "default"),
        rope_names=RopeNames("", "", local=""),
        rope_default={
            FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
            SLIDING: {"rope_type": "default", "rope_theta": 1e4},
        },
        two_sizes=True,
        experts=Experts("num_experts", "moe_intermediate_size", switch=_MOE),
    ),
    Family(
        "Phi-3/4",
        ("Phi3ForCausalLM",),
        "phi3",
        _PHI3,
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
    "Gemma3ForConditionalGeneration": ("Gemma3ForCausalLM", "gemma3"),
    "Mistral3ForConditionalGeneration": ("MistralForCausalLM", "mistral3"),
    "Qwen3_5ForConditionalGeneration": ("Qwen3_5ForCausalLM", "qwen3_5"),
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


def dimensions(family: Family, config: Mapping[str, Any]) -> dict[str, int]:
    """The numbers that shapes are made of, from `text_config`."""
    n_embd, n_head = integer(config, "hidden_size"), integer(config, "num_attention_heads")
    n_head_kv = integer(config, "num_key_value_heads", n_head) if family.grouped else n_head
    head_dim = integer(config, "head_dim", family.head_dim or max(1, n_embd // n_head))
    if n_head % n_head_kv:
        raise DataError(f"config.json: {n_head} attention heads can't share {n_head_kv} key-value heads")
    if (n_layer := integer(config, "num_hidden_layers")) > MAX_BLOCKS:
        raise DataError(f"config.json: num_hidden_layers is {n_layer:,}, llama.cpp reads at most {MAX_BLOCKS}")
    if head_dim % 2:
        raise DataError(f"config.json: heads of {head_dim} dimensions, expected an even number")
    n_rot = n_rotary(config, head_dim, family.rotary_share)
    experts = _expert_dimensions(family.experts, config) if family.experts and has_experts(family, config) else {}
    sizes = _two_sizes(config) if family.two_sizes else {}
    linear = _linear_dimensions(config) if family.mixes_linear else {}
    if family.mixes_conv:
        linear |= {"3·n_embd": 3 * n_embd, "n_taps": integer(config, "conv_L_cache")}
        config = {**config, "intermediate_size": _adjusted(config)}
    n_q, n_kv, n_ff = (
        n_head * head_dim,
        n_head_kv * head_dim,
        integer(config, "intermediate_size", experts.get("n_ff_exp") or (family.widens and family.widens * n_embd)),
    )
    return {
        "n_embd": n_embd,
        "n_head": n_head,
        "n_head_kv": n_head_kv,
        "n_q": n_q,
        "2·n_q": 2 * n_q,
        "1": 1,
        "n_kv": n_kv,
        "n_qkv": n_q + 2 * n_kv,
        "head_dim": head_dim,
        "n_rot": n_rot,
        "n_ff": n_ff,
        "2·n_ff": 2 * n_ff,
        "n_vocab": integer(config, "vocab_size"),
        "n_ctx": context_length(config),
        "n_layer": n_layer,
        **experts,
        **linear,
        **sizes,
    }


def has_experts(family: Family, config: Mapping[str, Any]) -> bool:
    """Is it a mixture? In a family of both kinds, a setting says so."""
    return family.experts is not None and (family.experts.switch is None or bool(config.get(family.experts.switch)))


def _two_sizes(config: Mapping[str, Any]) -> dict[str, int]:
    """What layers without a window have of their own, and the part of the second embedding that a layer gets."""
    n_head, (head_dim, n_head_kv) = integer(config, "num_attention_heads"), _full_heads(config)
    if n_head % n_head_kv:
        raise DataError(f"config.json: {n_head} attention heads can't share {n_head_kv} key-value heads")
    if head_dim % 2:
        raise DataError(f"config.json: heads of {head_dim} dimensions, expected an even number")
    found = {
        "head_dim_full": head_dim, "n_head_kv_full": n_head_kv, "n_q_full": n_head * head_dim,
        "n_kv_full": n_head_kv * head_dim,
    }  # fmt: skip
    if not config["hidden_size_per_layer_input"]:
        return found
    n_part, n_rows = integer(config, "hidden_size_per_layer_input"), integer(config, "vocab_size_per_layer_input")
    if n_rows != (n_vocab := integer(config, "vocab_size")):
        raise DataError(
            f"config.json: vocab_size is {n_vocab:,}, vocab_size_per_layer_input {n_rows:,}; llama.cpp computes this "
            "family only where they are equal"
        )
    return found | {"n_part": n_part, "n_parts": n_part * integer(config, "num_hidden_layers")}


def _full_heads(config: Mapping[str, Any]) -> tuple[int, int]:
    """(dimensions of a head, key-value heads) of layers without a window: from `per_layer_config` if it is there."""
    usual = {key: integer(config, key) for key in ("head_dim", "num_key_value_heads")}
    own = config.get("per_layer_config")
    if own is None:
        n_kv = config.get("num_global_key_value_heads") if config.get("attention_k_eq_v") else None
        n_kv = usual["num_key_value_heads"] if n_kv is None else integer(config, "num_global_key_value_heads")
        return integer(config, "global_head_dim", 512), n_kv
    types = _types_of_two_sizes(config)
    of_full = [own.get(str(i), {}) for i, kind in enumerate(types) if kind.startswith(FULL)]
    n_others = len(set(own) - {str(i) for i, kind in enumerate(types) if kind.startswith(FULL)})
    if (
        n_others
        or any(o != of_full[0] for o in of_full)
        or not isinstance(of_full[0], dict)
        or set(of_full[0]) - set(usual)
    ):
        raise DataError(
            f"config.json: its per_layer_config is {shown(own)}; llama.cpp computes this family only with one head_dim "
            f"and one num_key_value_heads for all layers of {FULL}, and none for others"
        )
    full = usual | of_full[0]
    return integer(full, "head_dim"), integer(full, "num_key_value_heads")


def _types_of_two_sizes(config: Mapping[str, Any]) -> list[str]:
    """The types of Gemma 4's layers; raises DataError for what llama.cpp does not compute."""
    n_layer, n_shared = integer(config, "num_hidden_layers"), config["num_kv_shared_layers"]
    types = list(config.get("layer_types") or [FULL if (i + 1) % 6 == 0 else SLIDING for i in range(n_layer)])
    types[-1:] = [FULL]  # as transformers does, whatever was said
    if len(types) != n_layer or set(types) != {FULL, SLIDING}:
        raise DataError(
            f"config.json: layer_types is {shown(types)}, expected {SLIDING} or {FULL} for each of {n_layer} layers; "
            "llama.cpp computes this family only with both among them"
        )
    n_own = n_layer - n_shared
    if n_shared and (n_shared < 0 or types[: max(0, n_own)][-2:] != [SLIDING, FULL]):
        raise DataError(
            f"config.json: {n_shared} of {n_layer} layers share keys and values (num_kv_shared_layers); llama.cpp "
            f"takes those of the two layers before them, which must be of {SLIDING} and {FULL}"
        )
    return [kind + "+shared" * (i >= n_own) for i, kind in enumerate(types)]


def _linear_dimensions(config: Mapping[str, Any]) -> dict[str, int]:
    """Of layers of linear attention; raises DataError for what llama.cpp's graph does not compute."""
    n_kernel, k_head_dim, v_head_dim, n_k_head, n_v_head = (integer(config, key) for key in LINEAR_SETTINGS)
    if k_head_dim != v_head_dim:
        raise DataError(
            f"config.json: linear_key_head_dim is {k_head_dim}, linear_value_head_dim {v_head_dim}; llama.cpp computes "
            "this family only where they are equal"
        )
    if n_v_head % n_k_head:
        raise DataError(
            f"config.json: {n_v_head} value heads can't share {n_k_head} key heads (linear_num_value_heads)"
        )
    n_value = n_v_head * v_head_dim
    return {
        "n_kernel": n_kernel, "v_head_dim": v_head_dim, "n_k_head": n_k_head, "n_v_head": n_v_head, "n_value": n_value,
        "n_key": n_k_head * k_head_dim, "n_conv": 2 * n_k_head * k_head_dim + n_value,
    }  # fmt: skip


def _adjusted(config: Mapping[str, Any]) -> int:
    """The width of LFM2's feed-forward layers: two thirds of what is said, times a factor, rounded up."""
    width, step = integer(config, "intermediate_size"), integer(config, "block_multiple_of")
    if not config["block_auto_adjust_ff_dim"]:
        return width
    width = int(config["block_ffn_dim_multiplier"] * int(2 * width / 3))
    return step * -(-width // step)


def types_of_layers(family: Family, config: Mapping[str, Any]) -> list[str]:
    """What kind each layer is; "" where a family has one kind only."""
    n_layer = integer(config, "num_hidden_layers")
    if family.mixes_linear:
        return _types_of_layers(n_layer, full_interval(config))
    if family.two_sizes:
        return _types_of_two_sizes(config)
    if not family.mixes_conv:
        return [""] * n_layer
    full = config.get("full_attn_idxs")
    types = config.get("layer_types") or [FULL if full is None or i in full else CONV for i in range(n_layer)]
    if len(types) != n_layer or set(types) != {FULL, CONV}:  # llama.cpp's memory for them wants layers of both types
        raise DataError(
            f"config.json: layer_types (or full_attn_idxs) gives {shown(list(types))}, expected {FULL} or {CONV} for "
            f"each of {n_layer} layers, and both among them"
        )
    return list(types)


def full_interval(config: Mapping[str, Any]) -> int:
    """Every how many layers one has full attention, the others linear; raises DataError where they follow no such rule.

    `layer_types` counts where it is there, as for transformers.
    """
    n_layer, given = integer(config, "num_hidden_layers"), config.get("layer_types")
    asked = given or _types_of_layers(n_layer, integer(config, "full_attention_interval"))
    for interval in range(2, n_layer + 1):  # llama.cpp's memory for them wants layers of both types
        if list(asked) == _types_of_layers(n_layer, interval):
            return interval
    raise DataError(
        f"config.json: layer_types (or full_attention_interval) gives {str(list(asked))[:80]}, llama.cpp computes this "
        f"family only with {FULL} in every n-th of {n_layer} layers and {LINEAR} in the others"
    )


def _types_of_layers(n_layer: int, interval: int) -> list[str]:
    return [FULL if (i + 1) % interval == 0 else LINEAR for i in range(n_layer)]


def _expert_dimensions(experts: Experts, config: Mapping[str, Any]) -> dict[str, int]:
    n_expert, n_used = integer(config, experts.count), integer(config, "num_experts_per_tok")
    if n_used > n_expert or n_expert > MAX_EXPERTS:
        raise DataError(
            f"config.json: {n_used} of {n_expert} experts answer each token, expected no more than there are, and "
            f"llama.cpp knows {MAX_EXPERTS} at most"
        )
    found = {"n_expert": n_expert, "n_ff_exp": integer(config, experts.width)}
    if experts.shared_width:
        found["n_ff_shexp"] = integer(config, experts.shared_width)
    return found


def check_attention(family: Family, config: Mapping[str, Any], dims: Mapping[str, int]) -> None:
    """Refuse what llama.cpp's graph does not compute: a size of heads, a share of rotated dimensions, a scale."""
    n_rot, head_dim = dims["n_rot"], dims["head_dim"]
    if family.splits_width and dims["n_q"] != dims["n_embd"]:
        raise DataError(
            f"config.json: head_dim is {head_dim}, its {dims['n_head']} heads share {dims['n_embd']} dimensions; "
            f"llama.cpp computes {family.title} only where they share them evenly"
        )
    if n_rot % 2 or (n_rot != head_dim and not family.partly_rotated):
        raise DataError(
            f"config.json: {n_rot} of a head's {head_dim} dimensions are rotated (partial_rotary_factor), llama.cpp "
            f"does not do that for {family.title}"
        )
    if family.scales_by_width:
        by_width = dims["n_layer"] == family.scales_by_width
        expected = dims["n_embd"] // dims["n_head"] if by_width else head_dim
        if (given := config.get("query_pre_attn_scalar")) != expected:
            raise DataError(f"config.json: query_pre_attn_scalar is {given}, llama.cpp would compute with {expected}")


def row_order(name: str | None, dims: Mapping[str, int]) -> Order | None:
    """How rows (or columns) move on their way to GGUF, by a rule's name for it; None where they stay."""
    if name is None:
        return None
    if name == "rotary":
        return RowOrder(dims["head_dim"], interleave=True)
    if name == "fused":
        return RowOrder(dims["head_dim"], parts=3)
    return column_order(name, dims)


def column_order(name: str | None, dims: Mapping[str, int]) -> TiledHeads | None:
    """The same of what may also be columns: value heads of linear attention."""
    if name is None or dims["n_v_head"] == dims["n_k_head"]:
        return None
    head_dim = 1 if name == "value-heads" else dims["v_head_dim"]
    offset = 2 * dims["n_key"] if name == "values-of-qkv" else 0
    return TiledHeads(head_dim, dims["n_k_head"], dims["n_v_head"] // dims["n_k_head"], offset)


def is_tied(config: Mapping[str, Any]) -> bool:
    return bool(config.get("tie_word_embeddings", False))


def _is_on(switch: str, config: Mapping[str, Any]) -> bool:
    if switch == "untied":
        return not is_tied(config)
    return bool(config.get(switch.removeprefix("!"))) != switch.startswith("!")


def switches_of(family: Family, has: Callable[[str], bool]) -> dict[str, bool]:
    """The switches that the tensors of a GGUF were written under; `has` tells which names it has."""
    named = {rule.when: rule.gguf.replace("{i}", "0") for rule in family.rules if rule.when not in (None, "untied")}
    return {str(when).removeprefix("!"): has(name) != str(when).startswith("!") for when, name in named.items()}


def expected_rules(family: Family, config: Mapping[str, Any]) -> list[Rule]:
    """The rules that apply to this configuration, layers filled in, in the order they are written."""
    found: list[Rule] = []
    layered: list[Rule] = []
    for rule in family.rules:
        if rule.when is not None and not _is_on(rule.when, config):
            continue
        (layered if "{i}" in rule.hf else found).append(rule)
    for i, type_ in enumerate(types_of_layers(family, config)):
        found += [
            replace(r, hf=r.hf.replace("{i}", str(i)), gguf=r.gguf.replace("{i}", str(i)))
            for r in layered
            if not r.layers or type_ in r.layers
        ]
    return found


def unread_names(family: Family, config: Mapping[str, Any]) -> frozenset[str]:
    """What a checkpoint may have and its model does not read: keys and values of layers that take an earlier one's."""
    types = types_of_layers(family, config) if family.two_sizes else []
    shared = [i for i, kind in enumerate(types) if kind in (FULL_SHARED, SLIDING_SHARED)]
    own = [rule.hf for rule in family.rules if rule.layers in ((SLIDING,), (FULL,))]
    return frozenset(hf.replace("{i}", str(i)) for hf in own for i in shared)


def transposed_names(rules: Iterable[Rule]) -> frozenset[str]:
    """The checkpoint's tensors that are stored as (columns, rows)."""
    return frozenset(rule.hf for rule in rules if rule.transposed)
