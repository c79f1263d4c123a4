"""The model families, as data: which tensors a checkpoint must have, what GGUF calls them, which rows move.

A family is one entry of FAMILIES. Dimensions are named by letters worked out once from the configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jmedlite.base.errors import DataError
from jmedlite.base.gguf import MAX_BLOCKS


@dataclass(frozen=True)
class Rule:
    """One tensor: names with `{i}` for the layer, shape in named dimensions (row-major).

    `rotary`: the rows of each head go from Hugging Face's half-split rotary order to llama.cpp's interleaved one.
    `when` names a configuration switch, without which the tensor must not be there; None means it always is.
    """

    hf: str
    gguf: str
    shape: tuple[str, ...]
    rotary: bool = False
    when: str | None = None


@dataclass(frozen=True)
class Family:
    """One architecture of Hugging Face as llama.cpp knows it."""

    title: str
    hf_names: tuple[str, ...]
    gguf_arch: str
    rules: tuple[Rule, ...]
    vocab_size_key: bool = False  # llama.cpp's converter writes {arch}.vocab_size and rope.dimension_count
    llama3_rope: bool = False
    head_dim: int | None = None  # where config.json has none and it is not hidden_size / num_attention_heads
    head: str = "lm_head.weight"
    embedding: str = "model.embed_tokens.weight"


def _decoder(qkv_bias: str | None, rotary: bool) -> tuple[Rule, ...]:
    """The tensors Llama and Qwen2 share; `qkv_bias` is the switch of the attention biases (see Rule.when)."""
    layer, blk = "model.layers.{i}.", "blk.{i}."
    rules = [
        Rule("model.embed_tokens.weight", "token_embd.weight", ("n_vocab", "n_embd")),
        Rule("model.norm.weight", "output_norm.weight", ("n_embd",)),
        Rule("lm_head.weight", "output.weight", ("n_vocab", "n_embd"), when="untied"),
        Rule(layer + "input_layernorm.weight", blk + "attn_norm.weight", ("n_embd",)),
        Rule(layer + "self_attn.q_proj.weight", blk + "attn_q.weight", ("n_q", "n_embd"), rotary),
        Rule(layer + "self_attn.k_proj.weight", blk + "attn_k.weight", ("n_kv", "n_embd"), rotary),
        Rule(layer + "self_attn.v_proj.weight", blk + "attn_v.weight", ("n_kv", "n_embd")),
        Rule(layer + "self_attn.q_proj.bias", blk + "attn_q.bias", ("n_q",), rotary, when=qkv_bias),
        Rule(layer + "self_attn.k_proj.bias", blk + "attn_k.bias", ("n_kv",), rotary, when=qkv_bias),
        Rule(layer + "self_attn.v_proj.bias", blk + "attn_v.bias", ("n_kv",), when=qkv_bias),
        Rule(layer + "self_attn.o_proj.weight", blk + "attn_output.weight", ("n_embd", "n_q")),
        Rule(layer + "post_attention_layernorm.weight", blk + "ffn_norm.weight", ("n_embd",)),
        Rule(layer + "mlp.gate_proj.weight", blk + "ffn_gate.weight", ("n_ff", "n_embd")),
        Rule(layer + "mlp.up_proj.weight", blk + "ffn_up.weight", ("n_ff", "n_embd")),
        Rule(layer + "mlp.down_proj.weight", blk + "ffn_down.weight", ("n_embd", "n_ff")),
    ]
    return tuple(rules)


_LLAMA_BIASES = (
    Rule("model.layers.{i}.self_attn.o_proj.bias", "blk.{i}.attn_output.bias", ("n_embd",), when="attention_bias"),
    Rule("model.layers.{i}.mlp.gate_proj.bias", "blk.{i}.ffn_gate.bias", ("n_ff",), when="mlp_bias"),
    Rule("model.layers.{i}.mlp.up_proj.bias", "blk.{i}.ffn_up.bias", ("n_ff",), when="mlp_bias"),
    Rule("model.layers.{i}.mlp.down_proj.bias", "blk.{i}.ffn_down.bias", ("n_embd",), when="mlp_bias"),
)

_QK_NORMS = (
    Rule("model.layers.{i}.self_attn.q_norm.weight", "blk.{i}.attn_q_norm.weight", ("head_dim",)),
    Rule("model.layers.{i}.self_attn.k_norm.weight", "blk.{i}.attn_k_norm.weight", ("head_dim",)),
)

FAMILIES = (
    Family("Qwen2/2.5", ("Qwen2ForCausalLM",), "qwen2", _decoder(None, rotary=False)),
    Family("Qwen3", ("Qwen3ForCausalLM",), "qwen3", _decoder("never", rotary=False) + _QK_NORMS, head_dim=128),
    Family(
        "Llama 2/3, SmolLM",
        ("LlamaForCausalLM", "LLaMAForCausalLM"),
        "llama",
        _decoder("attention_bias", rotary=True) + _LLAMA_BIASES,
        vocab_size_key=True,
        llama3_rope=True,
    ),
    Family(
        "Mistral",
        ("MistralForCausalLM",),
        "llama",
        _decoder("never", rotary=True),
        vocab_size_key=True,
        llama3_rope=True,
    ),
)

# Buffers that old checkpoints carry and no model needs.
IGNORED_SUFFIXES = (".rotary_emb.inv_freq", ".attention.masked_bias", ".attention.bias")


def find_family(config: Mapping[str, Any]) -> Family:
    """The family of a checkpoint's configuration; raises DataError listing the known ones."""
    names = config.get("architectures") or []
    name = names[0] if isinstance(names, list) and names else None
    for family in FAMILIES:
        if name in family.hf_names:
            if config.get("quantization_config"):
                raise DataError(
                    "config.json: the weights are quantized already "
                    f"({_method(config['quantization_config'])}); give the original checkpoint"
                )
            return family
    known = "; ".join(f"{f.title} ({', '.join(f.hf_names)})" for f in FAMILIES)
    raise DataError(f"config.json: architecture {name} is not supported; known are {known}")


def _method(quantization: Any) -> Any:
    return quantization.get("quant_method") if isinstance(quantization, dict) else quantization


def integer(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A positive integer from config.json; raises DataError."""
    value = config.get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 31:
        raise DataError(f"config.json: {key} is {value!r}, expected a positive integer")
    return value


def dimensions(family: Family, config: Mapping[str, Any]) -> dict[str, int]:
    """The numbers that shapes are made of, from config.json."""
    n_embd, n_head = integer(config, "hidden_size"), integer(config, "num_attention_heads")
    n_head_kv = integer(config, "num_key_value_heads", n_head)
    head_dim = integer(config, "head_dim", family.head_dim or max(1, n_embd // n_head))
    if n_head % n_head_kv:
        raise DataError(f"config.json: {n_head} attention heads can't share {n_head_kv} key-value heads")
    if (n_layer := integer(config, "num_hidden_layers")) > MAX_BLOCKS:
        raise DataError(f"config.json: num_hidden_layers is {n_layer:,}, llama.cpp reads at most {MAX_BLOCKS}")
    if head_dim % 2:
        raise DataError(f"config.json: heads of {head_dim} dimensions, expected an even number")
    return {
        "n_embd": n_embd,
        "n_head": n_head,
        "n_head_kv": n_head_kv,
        "n_q": n_head * head_dim,
        "n_kv": n_head_kv * head_dim,
        "head_dim": head_dim,
        "n_ff": integer(config, "intermediate_size"),
        "n_vocab": integer(config, "vocab_size"),
        "n_layer": n_layer,
    }


def is_tied(config: Mapping[str, Any]) -> bool:
    return bool(config.get("tie_word_embeddings", False))


def expected_rules(family: Family, config: Mapping[str, Any]) -> list[Rule]:
    """The rules that apply to this configuration, layers filled in, in the order they are written."""
    switches = {
        "untied": not is_tied(config),
        "attention_bias": bool(config.get("attention_bias")),
        "mlp_bias": bool(config.get("mlp_bias")),
    }
    found: list[Rule] = []
    layered: list[Rule] = []
    for rule in family.rules:
        if rule.when is not None and not switches.get(rule.when, False):
            continue
        (layered if "{i}" in rule.hf else found).append(rule)
    for i in range(integer(config, "num_hidden_layers")):
        found += [Rule(r.hf.format(i=i), r.gguf.format(i=i), r.shape, r.rotary) for r in layered]
    return found
