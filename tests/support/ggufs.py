"""GGUF files for tests: read by gguf-py, quantized by llama.cpp itself, and one with experts."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from jmedlite.base.imatrix import Imatrix
from jmedlite.convert.levels.recipes import parse_levels
from tests.support import builders


def contents(path: Path) -> tuple[dict[str, Any], dict[str, tuple[str, bytes]]]:
    """All that a file says: metadata, and tensors as `raw` gives them."""
    reader = gguf.GGUFReader(path)
    tensors = {t.name: (t.tensor_type.name, t.data.tobytes()) for t in reader.tensors}
    return {k: f.contents() for k, f in reader.fields.items()}, tensors


def raw(path: Path) -> dict[str, tuple[str, bytes]]:
    return contents(path)[1]


def read(path: Path) -> dict[str, np.ndarray]:
    """Tensors by name in float32, shape row-major, by gguf-py."""
    found = {}
    for t in gguf.GGUFReader(path).tensors:
        shape = tuple(int(n) for n in reversed(t.shape))
        found[t.name] = gguf.dequantize(t.data, t.tensor_type).reshape(shape).astype(np.float32)
    return found


def llama_quantize(source: Path, target: Path, level: str, **settings: Any) -> None:
    """llama.cpp's own quantizer, from the library that is installed."""
    from llama_cpp import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = parse_levels([], [level], has_imatrix=True)[0].ftype
    for name, value in settings.items():
        setattr(params, name, value)
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)) == 0


def importance(matrix: Imatrix) -> Any:
    """An importance matrix as the setting `imatrix` of `llama_quantize`."""
    from llama_cpp import llama_cpp

    entries = (llama_cpp.llama_model_imatrix_data * (len(matrix.weights) + 1))()
    for entry, (name, values) in zip(entries, matrix.weights.items(), strict=False):
        entry.name, entry.size = name.encode(), values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return entries


def overrides(*rules: tuple[str, str]) -> Any:
    """Patterns and types as the setting `tt_overrides` of `llama_quantize`."""
    from llama_cpp import llama_cpp

    patterns = [(pattern.encode(), int(gguf.GGMLQuantizationType[type_])) for pattern, type_ in rules]
    return (llama_cpp.llama_model_tensor_override * (len(rules) + 1))(*patterns)


def write_experts(path: Path, n_experts: int = 4, n_used: int = 2) -> None:
    """A tiny model with experts and a BOS before every text, by gguf-py."""
    tokenizer = builders.byte_level_tokenizer()
    vocab = [*tokenizer["model"]["vocab"], *builders.SPECIALS]
    base = builders.weights(builders.config("llama", len(vocab)))
    rng = np.random.default_rng(3)
    w = gguf.GGUFWriter(path, "llama")
    for add, value in (
        (w.add_context_length, 512), (w.add_embedding_length, builders.HIDDEN), (w.add_block_count, builders.LAYERS),
        (w.add_feed_forward_length, builders.FFN), (w.add_head_count, builders.HEADS),
        (w.add_head_count_kv, builders.KV_HEADS), (w.add_layer_norm_rms_eps, 1e-6), (w.add_expert_count, n_experts),
        (w.add_expert_used_count, n_used), (w.add_tokenizer_model, "gpt2"), (w.add_tokenizer_pre, "qwen2"),
        (w.add_token_list, vocab), (w.add_token_types, [1] * (len(vocab) - 3) + [3] * 3),
        (w.add_token_merges, [" ".join(m) for m in builders.MERGES]), (w.add_bos_token_id, len(vocab) - 3),
        (w.add_eos_token_id, len(vocab) - 1), (w.add_add_bos_token, True),
    ):  # fmt: skip
        add(value)
    w.add_tensor("token_embd.weight", base["model.embed_tokens.weight"])
    w.add_tensor("output_norm.weight", base["model.norm.weight"])
    w.add_tensor("output.weight", base["lm_head.weight"])
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    for i in range(builders.LAYERS):
        for theirs, ours in names.items():
            w.add_tensor(f"blk.{i}.{ours}.weight", base[f"model.layers.{i}.{theirs}.weight"])
        w.add_tensor(f"blk.{i}.ffn_gate_inp.weight", rng.standard_normal((n_experts, builders.HIDDEN), np.float32))
        wide, narrow = (n_experts, builders.FFN, builders.HIDDEN), (n_experts, builders.HIDDEN, builders.FFN)
        for name, shape in (("gate", wide), ("up", wide), ("down", narrow)):
            w.add_tensor(f"blk.{i}.ffn_{name}_exps.weight", rng.standard_normal(shape, np.float32) * np.float32(0.05))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def write_recurrent(path: Path, n_inner: int = 64, n_state: int = 4, n_conv: int = 4, n_rank: int = 4) -> None:
    """A tiny Mamba, whose memory is a state that nothing can be taken out of again, by gguf-py."""
    tokenizer = builders.byte_level_tokenizer()
    vocab = [*tokenizer["model"]["vocab"], *builders.SPECIALS]
    n, width = len(vocab), 32
    rng = np.random.default_rng(5)
    w = gguf.GGUFWriter(path, "mamba")
    for add, value in (
        (w.add_context_length, 4096), (w.add_embedding_length, width), (w.add_block_count, 2),
        (w.add_feed_forward_length, 0), (w.add_head_count, 0), (w.add_layer_norm_rms_eps, 1e-6),
        (w.add_ssm_conv_kernel, n_conv), (w.add_ssm_inner_size, n_inner), (w.add_ssm_state_size, n_state),
        (w.add_ssm_time_step_rank, n_rank), (w.add_tokenizer_model, "gpt2"), (w.add_tokenizer_pre, "qwen2"),
        (w.add_token_list, vocab), (w.add_token_types, [1] * (n - 3) + [3] * 3), (w.add_eos_token_id, n - 1),
        (w.add_token_merges, [" ".join(m) for m in builders.MERGES]), (w.add_chat_template, builders.CHATML),
    ):  # fmt: skip
        add(value)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32) * np.float32(0.3)

    head = draw(n, width)
    head[-3:] = 0  # it never ends its answer
    for name, x in {"token_embd.weight": draw(n, width), "output_norm.weight": np.ones(width, np.float32)}.items():
        w.add_tensor(name, x)
    w.add_tensor("output.weight", head)
    for i in range(2):
        for name, x in {
            "attn_norm.weight": np.ones(width, np.float32), "ssm_in.weight": draw(2 * n_inner, width),
            "ssm_conv1d.weight": draw(n_inner, n_conv), "ssm_conv1d.bias": draw(n_inner),
            "ssm_x.weight": draw(n_rank + 2 * n_state, n_inner), "ssm_dt.weight": draw(n_inner, n_rank),
            "ssm_dt.bias": draw(n_inner), "ssm_a": -np.exp(draw(n_inner, n_state)), "ssm_d": draw(n_inner),
            "ssm_out.weight": draw(width, n_inner),
        }.items():  # fmt: skip
            w.add_tensor(f"blk.{i}.{name}", x)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
