"""Tiny real inputs, built in the test: checkpoints of every family, tokenizers, adapters; small, but whole."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM, LAYERS = 256, 512, 4, 2, 64, 2
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "hello"), ("t", "h"), ("Ġ", "th"), ("ã", "ģ")]
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def to_bf16(x: np.ndarray) -> np.ndarray:
    """Round to nearest even, as uint16."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.uint32) << 16).view(np.float32)


def write_safetensors(path: Path, tensors: Arrays, dtype: str = "BF16", header: dict[str, Any] | None = None) -> None:
    """`tensors` are float32; `header` replaces the right header with a wrong one."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    chunks, at = [], 0
    for name, x in tensors.items():
        data = {"BF16": to_bf16, "F16": lambda v: v.astype(np.float16), "F32": lambda v: v}[dtype](x)
        raw = np.ascontiguousarray(data).tobytes()
        entries[name] = {"dtype": dtype, "shape": list(x.shape), "data_offsets": [at, at + len(raw)]}
        chunks.append(raw)
        at += len(raw)
    blob = json.dumps(entries if header is None else header).encode()
    blob += b" " * (-len(blob) % 8)
    path.write_bytes(struct.pack("<Q", len(blob)) + blob + b"".join(chunks))


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in byte order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    extra = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(extra)) for b in range(256)]


def byte_level_tokenizer(specials: list[str] = SPECIALS) -> dict[str, Any]:
    """A byte-level BPE tokenizer.json of Qwen2's kind."""
    vocab = {c: i for i, c in enumerate(byte_alphabet())}
    for a, b in MERGES:
        vocab.setdefault(a + b, len(vocab))
    added = [
        {"id": len(vocab) + i, "content": s, "special": True, "normalized": False, "single_word": False,
         "lstrip": False, "rstrip": False}
        for i, s in enumerate(specials)
    ]  # fmt: skip
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": QWEN2_SPLIT}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
            ],
        },
        "post_processor": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": vocab, "merges": [list(m) for m in MERGES],
        },
    }  # fmt: skip


def n_tokens(tokenizer: dict[str, Any]) -> int:
    return len(tokenizer["model"]["vocab"]) + len(tokenizer["added_tokens"])


FAMILIES = {
    "qwen2": "Qwen2", "qwen3": "Qwen3", "llama": "Llama", "mistral": "Mistral", "gpt_neox": "GPTNeoX",
    "gemma2": "Gemma2", "gemma3_text": "Gemma3", "phi3": "Phi3",
}  # fmt: skip


def config(family: str, n_vocab: int, **changes: Any) -> dict[str, Any]:
    """config.json of a tiny model of one of FAMILIES."""
    name = f"{FAMILIES[family]}ForCausalLM"
    base = {
        "architectures": [name], "model_type": family, "hidden_size": HIDDEN, "intermediate_size": FFN,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "num_hidden_layers": LAYERS,
        "vocab_size": n_vocab, "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "hidden_act": "silu",
        "bos_token_id": n_vocab - 3, "eos_token_id": n_vocab - 1,
    }  # fmt: skip
    if family in ("qwen3", "gemma2", "gemma3_text"):  # where it is missing, transformers takes 128 or 256
        base["head_dim"] = HEAD_DIM
    if family == "gpt_neox":
        base |= {
            "layer_norm_eps": 1e-5, "rms_norm_eps": None, "rotary_pct": 0.5, "rotary_emb_base": 10000,
            "hidden_act": "gelu", "use_parallel_residual": True, "rope_theta": None, "num_key_value_heads": None,
        }  # fmt: skip
    if family.startswith("gemma"):
        base |= {
            "hidden_act": None, "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": HEAD_DIM,
            "sliding_window": 16, "tie_word_embeddings": True, "num_hidden_layers": 7 if family == "gemma3_text" else 2,
        }  # fmt: skip
    if family == "gemma2":
        base |= {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}
    if family == "gemma3_text":
        base |= {"rope_theta": 1e6, "rope_local_base_freq": 1e4}
    if family == "phi3":
        base |= {"original_max_position_embeddings": 512, "pad_token_id": n_vocab - 1}
    return {k: v for k, v in {**base, **changes}.items() if v is not None}


def weights(cfg: dict[str, Any], seed: int = 0, scale: float = 0.05) -> Arrays:
    """Random weights for a configuration, float32 values that BF16 holds exactly."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return from_bf16(to_bf16(rng.standard_normal(shape, np.float32) * np.float32(scale)))

    h, f, v = cfg["hidden_size"], cfg["intermediate_size"], cfg["vocab_size"]
    family, layers = cfg["model_type"], cfg["num_hidden_layers"]
    head = cfg.get("head_dim") or (128 if family == "qwen3" else h // cfg["num_attention_heads"])
    q, kv = cfg["num_attention_heads"] * head, cfg.get("num_key_value_heads", cfg["num_attention_heads"]) * head
    if family == "gpt_neox":
        return _neox_weights(draw, h, f, v, layers, cfg["tie_word_embeddings"])
    one = 0 if family.startswith("gemma") else 1  # Gemma's norms multiply by 1 + weight
    found = {"model.embed_tokens.weight": draw(v, h), "model.norm.weight": one + draw(h)}
    if not cfg["tie_word_embeddings"]:
        found["lm_head.weight"] = draw(v, h)
    for i in range(layers):
        p = f"model.layers.{i}."
        found |= {
            p + "input_layernorm.weight": one + draw(h), p + "post_attention_layernorm.weight": one + draw(h),
        }  # fmt: skip
        if family == "phi3":
            shapes = {
                "self_attn.qkv": (q + 2 * kv, h),
                "self_attn.o": (h, q),
                "mlp.gate_up": (2 * f, h),
                "mlp.down": (h, f),
            }
        else:
            shapes = {
                "self_attn.q": (q, h), "self_attn.k": (kv, h), "self_attn.v": (kv, h), "self_attn.o": (h, q),
                "mlp.gate": (f, h), "mlp.up": (f, h), "mlp.down": (h, f),
            }  # fmt: skip
        found |= {f"{p}{name}_proj.weight": draw(*shape) for name, shape in shapes.items()}
        if family.startswith("gemma"):
            found |= {f"{p}{n}_feedforward_layernorm.weight": draw(h) for n in ("pre", "post")}
        if family in ("qwen3", "gemma3_text"):
            found |= {f"{p}self_attn.{n}_norm.weight": one + draw(head) for n in "qk"}
        if family == "qwen2" or cfg.get("attention_bias"):
            found |= {f"{p}self_attn.{n}_proj.bias": draw(r) for n, r in (("q", q), ("k", kv), ("v", kv))}
        if cfg.get("attention_bias") and family == "llama":
            found[p + "self_attn.o_proj.bias"] = draw(h)
    return {name: from_bf16(to_bf16(x)) for name, x in found.items()}


def _neox_weights(draw: Callable[..., np.ndarray], h: int, f: int, v: int, layers: int, tied: bool) -> Arrays:
    found = {"gpt_neox.embed_in.weight": draw(v, h)}
    if not tied:
        found["embed_out.weight"] = draw(v, h)
    norms = ["gpt_neox.final_layer_norm"]
    for i in range(layers):
        p = f"gpt_neox.layers.{i}."
        norms += [p + "input_layernorm", p + "post_attention_layernorm"]
        for name, rows, cols in (
            ("attention.query_key_value", 3 * h, h), ("attention.dense", h, h), ("mlp.dense_h_to_4h", f, h),
            ("mlp.dense_4h_to_h", h, f),
        ):  # fmt: skip
            found |= {f"{p}{name}.weight": draw(rows, cols), f"{p}{name}.bias": draw(rows)}
    for name in norms:
        found |= {f"{name}.weight": 1 + draw(h), f"{name}.bias": draw(h)}
    return {name: from_bf16(to_bf16(x)) for name, x in found.items()}


def checkpoint(
    folder: Path,
    family: str = "qwen2",
    *,
    shards: int = 1,
    dtype: str = "BF16",
    tensors: Arrays | None = None,
    seed: int = 0,
    **changes: Any,
) -> Arrays:
    """Write a whole checkpoint folder with a byte-level tokenizer and a chat template; returns its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = byte_level_tokenizer()
    cfg = config(family, changes.pop("vocab_size", n_tokens(tokenizer)), **changes)
    tensors = weights(cfg, seed) if tensors is None else tensors
    (folder / "config.json").write_text(json.dumps(cfg))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {"bos_token": SPECIALS[0], "eos_token": SPECIALS[2], "pad_token": SPECIALS[0], "chat_template": CHATML}
        )
    )
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, dtype)
        return tensors
    names, where = list(tensors), {}
    per = math.ceil(len(names) / shards)
    for k in range(shards):
        file = f"model-{k + 1:05d}-of-{shards:05d}.safetensors"
        part = {n: tensors[n] for n in names[k * per : (k + 1) * per]}
        write_safetensors(folder / file, part, dtype)
        where |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return tensors


def adapter(
    folder: Path,
    base: Arrays,
    *,
    modules: tuple[str, ...] = ("self_attn.q_proj", "mlp.down_proj"),
    r: int = 4,
    seed: int = 1,
    rank_pattern: dict[str, int] | None = None,
    drop: tuple[str, ...] = (),
    **changes: Any,
) -> Arrays:
    """Write a PEFT LoRA adapter for `base` on every layer's `modules`; returns its matrices by their key."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    found: Arrays = {}
    for name, w in base.items():
        module = name.removesuffix(".weight")
        if not any(module.endswith("." + m) for m in modules):
            continue
        rank = next((v for k, v in (rank_pattern or {}).items() if module.endswith(k)), r)
        found[f"base_model.model.{module}.lora_A.weight"] = rng.standard_normal((rank, w.shape[1]), np.float32) * 0.1
        found[f"base_model.model.{module}.lora_B.weight"] = rng.standard_normal((w.shape[0], rank), np.float32) * 0.1
    found = {k: v.astype(np.float32) for k, v in found.items() if not any(d in k for d in drop)}
    cfg = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "tiny", "r": r, "lora_alpha": 8,
        "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False, "use_rslora": False, "use_dora": False,
        "modules_to_save": None, "target_modules": [m.split(".")[-1] for m in modules],
        "rank_pattern": rank_pattern or {}, "alpha_pattern": {}, "inference_mode": True,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps({**cfg, **changes}))
    write_safetensors(folder / "adapter_model.safetensors", found, "F32")
    return found
