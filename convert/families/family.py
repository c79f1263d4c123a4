"""A model family, as data: which tensors a checkpoint must have, what GGUF calls them, which settings it reads.

Dimensions are named by letters worked out once from the configuration (shapes.py); the table itself is families.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from .rope import ROPE_NAMES, RopeNames


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

    @property
    def dims_in_checkpoint(self) -> tuple[str, ...]:
        """The named dimensions of each of those tensors as they are stored."""
        return self.stored or (self.shape[::-1] if self.transposed else self.shape)


@dataclass(frozen=True)
class Experts:
    """Where config.json has the number of experts, and the widths of one and of the expert that all tokens share.

    `crosswise`: all of a layer are one parameter that inputs are multiplied by from the left (n_expert, in, out), in
    which gate and up take TURNS, or are HALVES. `switch`: the setting that must be true, in a family that has also
    models without. `step`: the setting by which only every n-th layer is a mixture.
    """

    count: str
    width: str
    shared_width: str | None = None
    crosswise: str = ""
    switch: str | None = None
    step: str | None = None


TURNS, HALVES = "turns", "halves"
MIXTURE, DENSE = "mixture", "dense"  # types of layers where only some have experts
LINEAR, CONV = "linear_attention", "conv"  # types of layers, beside FULL and SLIDING (rope.py)
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
MIXTURE_LAYERS = "moe_layers"
CHUNKED_SETTINGS = (
    "layer_types", "no_rope_layers", "no_rope_layer_interval", "attention_chunk_size", "use_qk_norm",
    "intermediate_size_mlp",
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
    width: str = "intermediate_size"  # of feed-forward layers that are no mixture
    chunked: bool = False  # Llama 4: most layers see a chunk of the text, every fourth all of it and no positions
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
        experts = [self.experts.count, self.experts.width, "num_experts_per_tok"] if self.experts else []
        experts += [self.experts.step, MIXTURE_LAYERS] if self.experts and self.experts.step else []
        mixed = [*LINEAR_SETTINGS, "layer_types", "full_attention_interval"] if self.mixes_linear else []
        mixed += CONV_SETTINGS if self.mixes_conv else []
        mixed += TWO_SIZES_SETTINGS if self.two_sizes else []
        mixed += CHUNKED_SETTINGS if self.chunked else []
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
