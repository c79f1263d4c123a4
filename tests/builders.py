"""Tiny real inputs, built in the test: checkpoints of every family, tokenizers, adapters; small, but whole."""

from __future__ import annotations

import json
import math
import struct
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


def config(family: str, n_vocab: int, **changes: Any) -> dict[str, Any]:
    """config.json of a tiny model of "qwen2", "llama" or "mistral"."""
    name = {
        "qwen2": "Qwen2ForCausalLM",
        "qwen3": "Qwen3ForCausalLM",
        "llama": "LlamaForCausalLM",
        "mistral": "MistralForCausalLM",
    }[family]
    base = {
        "architectures": [name], "model_type": family, "hidden_size": HIDDEN, "intermediate_size": FFN,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "num_hidden_layers": LAYERS,
        "vocab_size": n_vocab, "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "hidden_act": "silu",
        "bos_token_id": n_vocab - 3, "eos_token_id": n_vocab - 1,
    }  # fmt: skip
    if family == "qwen3":  # where it is missing, transformers takes 128, whatever the hidden size
        base["head_dim"] = HEAD_DIM
    return {k: v for k, v in {**base, **changes}.items() if v is not None}


def weights(cfg: dict[str, Any], seed: int = 0, scale: float = 0.05) -> Arrays:
    """Random weights for a configuration, float32 values that BF16 holds exactly."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return from_bf16(to_bf16(rng.standard_normal(shape, np.float32) * np.float32(scale)))

    h, f, v = cfg["hidden_size"], cfg["intermediate_size"], cfg["vocab_size"]
    default = 128 if cfg["model_type"] == "qwen3" else h // cfg["num_attention_heads"]
    head = cfg.get("head_dim") or default
    q, kv = cfg["num_attention_heads"] * head, cfg["num_key_value_heads"] * head
    found = {"model.embed_tokens.weight": draw(v, h), "model.norm.weight": 1 + draw(h)}
    if not cfg["tie_word_embeddings"]:
        found["lm_head.weight"] = draw(v, h)
    for i in range(cfg["num_hidden_layers"]):
        p = f"model.layers.{i}."
        found |= {
            p + "input_layernorm.weight": 1 + draw(h), p + "post_attention_layernorm.weight": 1 + draw(h),
            p + "self_attn.q_proj.weight": draw(q, h), p + "self_attn.k_proj.weight": draw(kv, h),
            p + "self_attn.v_proj.weight": draw(kv, h), p + "self_attn.o_proj.weight": draw(h, q),
            p + "mlp.gate_proj.weight": draw(f, h), p + "mlp.up_proj.weight": draw(f, h),
            p + "mlp.down_proj.weight": draw(h, f),
        }  # fmt: skip
        if cfg["model_type"] == "qwen3":
            found |= {f"{p}self_attn.{n}_norm.weight": 1 + draw(head) for n in "qk"}
        if cfg["model_type"] == "qwen2" or cfg.get("attention_bias"):
            found |= {f"{p}self_attn.{n}_proj.bias": draw(r) for n, r in (("q", q), ("k", kv), ("v", kv))}
        if cfg.get("attention_bias") and cfg["model_type"] == "llama":
            found[p + "self_attn.o_proj.bias"] = draw(h)
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
