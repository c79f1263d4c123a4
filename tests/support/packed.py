"""Checkpoints whose weights are quantized already, packed here by the published formats, beside what they stand for."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import builders

Typed = dict[str, tuple[str, np.ndarray]]  # safetensors' dtype, and an array of the same width
AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip


def write_typed(path: Path, tensors: Typed) -> None:
    """A safetensors file of tensors of any number format."""
    entries: dict[str, Any] = {}
    at = 0
    for name, (dtype, array) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    blob = json.dumps(entries).encode()
    blob += b" " * (-len(blob) % 8)
    data = b"".join(np.ascontiguousarray(array).tobytes() for _, array in tensors.values())
    path.write_bytes(struct.pack("<Q", len(blob)) + blob + data)


def words(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes (n_rows, n) as words of 32 bits (n_rows, n_words), the lowest bits first, zeros at the end."""
    n_rows, n = codes.shape
    big = [sum(int(c) << (i * bits) for i, c in enumerate(row)) for row in codes]
    n_words = -(-n * bits // 32)
    raw = b"".join(x.to_bytes(n_words * 4, "little") for x in big)
    return np.frombuffer(raw, np.int32).reshape(n_rows, n_words).copy()


def f8(byte: int, exponent_bits: int) -> float:
    """The number of one FP8 byte, by the definition."""
    mantissa_bits = 7 - exponent_bits
    bias = (1 << (exponent_bits - 1)) - 1
    sign = -1.0 if byte & 0x80 else 1.0
    exponent, mantissa = (byte & 0x7F) >> mantissa_bits, byte & ((1 << mantissa_bits) - 1)
    if exponent == 0:
        return sign * mantissa * 2.0 ** (1 - bias - mantissa_bits)
    return sign * (1 + mantissa / (1 << mantissa_bits)) * 2.0 ** (exponent - bias)


@dataclass(frozen=True)
class Method:
    """`pack` makes of a name, a shape and a generator the stored tensors and the weight in float32."""

    pack: Callable[[str, tuple[int, int], np.random.Generator], tuple[Typed, np.ndarray]]
    config: dict[str, Any] = field(default_factory=dict)
    embeddings: bool = False  # are embedding and head packed, too?


def _half(rng: np.random.Generator, *shape: int, low: float = 0.001, high: float = 0.01) -> np.ndarray:
    return rng.uniform(low, high, shape).astype(np.float16)


def _spread(values: np.ndarray, shape: tuple[int, int], block: tuple[int, int]) -> np.ndarray:
    """A value for each element of a matrix, of those for each block of it."""
    return np.kron(values, np.ones(block))[: shape[0], : shape[1]]


def fp8(block: tuple[int, int] | None = None, exponent_bits: int = 4, scales: str = "F32") -> Method:
    """FP8 in blocks (`block`), else by rows; `scales`: "F32", "BF16" or "U8" (powers of two)."""

    def pack(name: str, shape: tuple[int, int], rng: np.random.Generator) -> tuple[Typed, np.ndarray]:
        finite = [b for b in range(256) if (b & 0x7F) < (0x7F if exponent_bits == 4 else 0x7C)]
        codes = rng.choice(np.array(finite, np.uint8), shape)
        size = block or (1, shape[1])
        n = (-(-shape[0] // size[0]), -(-shape[1] // size[1]))
        if scales == "U8":
            stored = rng.integers(110, 120, n).astype(np.uint8)
            values = 2.0 ** (stored.astype(np.float64) - 127)
        else:
            values = builders.from_bf16(builders.to_bf16(rng.uniform(1e-4, 1e-3, n)))
            stored = builders.to_bf16(values) if scales == "BF16" else values.astype(np.float32)
        table = np.array([f8(b, exponent_bits) for b in range(256)])
        weight = table[codes].astype(np.float32) * _spread(values, shape, size).astype(np.float32)
        dtype = "F8_E4M3" if exponent_bits == 4 else "F8_E5M2"
        end = "_scale_inv" if block else "_scale"
        return {name: (dtype, codes), name + end: (scales, stored)}, weight

    return Method(pack, {"quant_method": "fp8", **({"weight_block_size": list(block)} if block else {})})


def fp8_whole() -> Method:
    """ModelOpt's: one scale for a weight, and one of its inputs, which acts at run time."""

    def pack(name: str, shape: tuple[int, int], rng: np.random.Generator) -> tuple[Typed, np.ndarray]:
        stored, weight = fp8().pack(name, shape, rng)
        scale = np.float32(0.0007)
        codes = stored[name][1]
        weight = np.array([f8(b, 4) for b in range(256)], np.float32)[codes] * scale
        one = np.array(scale)
        module = name.removesuffix("weight")
        return {name: stored[name], name + "_scale": ("F32", one), module + "input_scale": ("F32", one)}, weight

    return Method(pack, {"quant_method": "modelopt", "quant_algo": "FP8"})


def int8(zeros: bool) -> Method:
    """compressed-tensors' int-quantized, by rows."""

    def pack(name: str, shape: tuple[int, int], rng: np.random.Generator) -> tuple[Typed, np.ndarray]:
        codes = rng.integers(-128, 128, shape).astype(np.int8)
        scale = _half(rng, shape[0], 1)
        zero = rng.integers(-9, 9, (shape[0], 1)).astype(np.int8) if zeros else np.zeros((shape[0], 1), np.int8)
        weight = (codes.astype(np.float32) - zero) * scale.astype(np.float32)
        found: Typed = {name: ("I8", codes), name + "_scale": ("F16", scale)}
        return found | ({name + "_zero_point": ("I8", zero)} if zeros else {}), weight

    return Method(pack, {"quant_method": "compressed-tensors", "format": "int-quantized"})


def bnb4(blocksize: int = 64, nested: bool = False, kind: str = "nf4") -> Method:
    """bitsandbytes' 4 bits."""

    def pack(name: str, shape: tuple[int, int], rng: np.random.Generator) -> tuple[Typed, np.ndarray]:
        values = np.array(NF4, np.float32) if kind == "nf4" else np.sort(rng.uniform(-1, 1, 16)).astype(np.float32)
        codes = rng.integers(0, 16, shape[0] * shape[1]).astype(np.uint8)
        n_blocks = -(-codes.size // blocksize)
        state: dict[str, Any] = {"quant_type": kind, "blocksize": blocksize, "dtype": "bfloat16", "shape": list(shape)}
        more: Typed = {}
        if nested:
            of_codes = np.sort(rng.uniform(-1, 1, 256)).astype(np.float32)
            coded = rng.integers(0, 256, n_blocks).astype(np.uint8)
            outer = rng.uniform(0.1, 1, -(-n_blocks // 256)).astype(np.float32)
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 1.25}
            absmax = of_codes[coded] * np.repeat(outer, 256)[:n_blocks] + np.float32(1.25)
            more = {
                f"{name}.absmax": ("U8", coded), f"{name}.nested_absmax": ("F32", outer),
                f"{name}.nested_quant_map": ("F32", of_codes),
            }  # fmt: skip
        else:
            absmax = rng.uniform(0.01, 0.1, n_blocks).astype(np.float32)
            more = {f"{name}.absmax": ("F32", absmax)}
        weight = values[codes] * np.repeat(absmax, blocksize)[: codes.size]
        both = (codes[0::2] << 4 | codes[1::2]).reshape(-1, 1)
        described = np.frombuffer(json.dumps(state).encode(), np.uint8)
        found: Typed = {
            name: ("U8", both), f"{name}.quant_map": ("F32", values),
            f"{name}.quant_state.bitsandbytes__{kind}": ("U8", described), **more,
        }  # fmt: skip
        return found, weight.reshape(shape)

    return Method(pack, {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind})


def bnb8() -> Method:
    """LLM.int8()."""

    def pack(name: str, shape: tuple[int, int], rng: np.random.Generator) -> tuple[Typed, np.ndarray]:
        codes = rng.integers(-127, 128, shape).astype(np.int8)
        scb = rng.uniform(0.1, 1, shape[0]).astype(np.float32)
        weight = codes.astype(np.float32) * scb[:, None] * np.float32(7.874015718698502e-3)
        module = name.removesuffix("weight")
        return {
            name: ("I8", codes), module + "SCB": ("F32", scb),
            module + "weight_format": ("U8", np.zeros((), np.uint8)),
        }, weight  # fmt: skip

    return Method(pack, {"quant_method": "bitsandbytes", "load_in_8bit": True})


def gptq(bits: int = 4, group: int = 64, order: str = "", v2: bool = False) -> Method:
    """GPTQ; `order`: "" writes g_idx, "act" permutes it, "none" leaves it out."""

    def pack(name: str, shape: tuple[int, int], rng: np.random.Generator) -> tuple[Typed, np.ndarray]:
        n_rows, n_cols = shape
        size = n_cols if group < 0 else group
        n_groups = -(-n_cols // size)
        codes, top = rng.integers(0, 1 << bits, shape), 1 << bits
        zeros = rng.integers(0, top, (n_groups, n_rows))
        scales = _half(rng, n_groups, n_rows)
        of_col = np.arange(n_cols) // size
        if order == "act":
            of_col = rng.permutation(of_col)
        weight = (codes - zeros[of_col].T).astype(np.float32) * scales[of_col].T.astype(np.float32)
        stem = name.removesuffix("weight")
        found: Typed = {
            stem + "qweight": ("I32", words(codes, bits).T), stem + "scales": ("F16", scales),
            stem + "qzeros": ("I32", words(zeros if v2 else (zeros - 1) % top, bits)),
        }  # fmt: skip
        return found | ({} if order == "none" else {stem + "g_idx": ("I32", of_col.astype(np.int32))}), weight

    form = {"checkpoint_format": "gptq_v2"} if v2 else {}
    settings = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": order == "act", "sym": False}
    return Method(pack, {**settings, **form})


def awq(group: int = 64) -> Method:
    """AWQ of version gemm."""

    def pack(name: str, shape: tuple[int, int], rng: np.random.Generator) -> tuple[Typed, np.ndarray]:
        n_rows, n_cols = shape
        codes, zeros = rng.integers(0, 16, (n_cols, n_rows)), rng.integers(0, 16, (n_cols // group, n_rows))
        scales = _half(rng, n_cols // group, n_rows)
        spread = np.repeat(np.arange(n_cols // group), group)
        weight = (codes - zeros[spread]).astype(np.float32) * scales[spread].astype(np.float32)

        def mixed(values: np.ndarray) -> np.ndarray:
            return words(values.reshape(len(values), -1, 8)[:, :, AWQ_COLUMNS].reshape(len(values), -1), 4)

        stem = name.removesuffix("weight")
        return {
            stem + "qweight": ("I32", mixed(codes)), stem + "qzeros": ("I32", mixed(zeros)),
            stem + "scales": ("F16", scales),
        }, weight.T  # fmt: skip

    settings = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm", "zero_point": True}
    return Method(pack, settings)


def packed_rows(bits: int = 4, group: int = 32, zeros: bool = False, order: bool = False) -> Method:
    """compressed-tensors' pack-quantized."""

    def pack(name: str, shape: tuple[int, int], rng: np.random.Generator) -> tuple[Typed, np.ndarray]:
        n_rows, n_cols = shape
        size = n_cols if group < 0 else group
        n_groups, middle = n_cols // size, 1 << (bits - 1)
        codes = rng.integers(0, 1 << bits, shape)
        scale = builders.to_bf16(rng.uniform(0.001, 0.01, (n_rows, n_groups)))
        zero = rng.integers(0, 1 << bits, (n_rows, n_groups)) if zeros else np.full((n_rows, n_groups), middle)
        of_col = np.arange(n_cols) // size
        if order:
            of_col = rng.permutation(of_col)
        weight = (codes - zero[:, of_col]).astype(np.float32) * builders.from_bf16(scale)[:, of_col]
        found: Typed = {
            name + "_packed": ("I32", words(codes, bits)), name + "_scale": ("BF16", scale),
            name + "_shape": ("I64", np.array(shape, np.int64)),
        }  # fmt: skip
        if zeros:
            found[name + "_zero_point"] = ("I32", np.ascontiguousarray(words(zero.T, bits).T))
        if order:
            found[name + "_g_idx"] = ("I32", of_col.astype(np.int32))
        return found, weight

    return Method(pack, {"quant_method": "compressed-tensors", "format": "pack-quantized"})


def mlx(bits: int, group: int = 64) -> Method:
    """MLX's affine quantization."""

    def pack(name: str, shape: tuple[int, int], rng: np.random.Generator) -> tuple[Typed, np.ndarray]:
        n = (shape[0], shape[1] // group)
        codes = rng.integers(0, 1 << bits, shape)
        scales, biases = _half(rng, *n), _half(rng, *n, low=-0.05, high=0.05)
        spread = np.repeat(np.arange(n[1]), group)
        weight = codes.astype(np.float32) * scales[:, spread].astype(np.float32) + biases[:, spread].astype(np.float32)
        stem = name.removesuffix("weight")
        return {
            name: ("U32", words(codes, bits)), stem + "scales": ("F16", scales), stem + "biases": ("F16", biases),
        }, weight  # fmt: skip

    return Method(pack, {"group_size": group, "bits": bits, "mode": "affine"}, embeddings=True)


METHODS: dict[str, Method] = {
    "FP8, 128×128": fp8((128, 128)),
    "FP8, blocks that do not come out even": fp8((96, 80)),
    "FP8, rows": fp8(scales="BF16"),
    "FP8, E5M2": fp8(exponent_bits=5),
    "FP8, powers of two": fp8((1, 32), scales="U8"),
    "FP8, one scale": fp8_whole(),
    "INT8": int8(zeros=False),
    "INT8, zero points": int8(zeros=True),
    "NF4": bnb4(),
    "NF4, nested": bnb4(nested=True),
    "FP4": bnb4(kind="fp4"),
    "NF4, blocks of several rows": bnb4(blocksize=4096),
    "LLM.int8()": bnb8(),
    "GPTQ": gptq(),
    "GPTQ, act-order": gptq(order="act"),
    "GPTQ, v2": gptq(v2=True),
    "GPTQ, 8 bits": gptq(bits=8, group=-1),
    "GPTQ, 2 bits": gptq(bits=2, group=128),
    "GPTQ without g_idx": gptq(order="none"),
    "AWQ": awq(),
    "compressed-tensors": packed_rows(),
    "compressed-tensors, zero points": packed_rows(zeros=True),
    "compressed-tensors, act-order": packed_rows(zeros=True, order=True),
    "compressed-tensors, 8 bits": packed_rows(bits=8, group=-1),
    **{f"MLX, {bits} bits": mlx(bits, 32 if bits == 3 else 64) for bits in (2, 3, 4, 5, 6, 8)},
}


def checkpoint(folder: Path, method: str, family: str = "llama", seed: int = 0) -> builders.Arrays:
    """A checkpoint whose linear layers are packed; returns what its weights are in float32."""
    how = METHODS[method]
    rng = np.random.default_rng(seed)
    plain = builders.checkpoint(folder, family, seed=seed)
    stored: Typed = {}
    exact: builders.Arrays = {}
    tables = ("embed_tokens", "lm_head", "embed_in", "embed_out")
    for name, values in plain.items():
        is_router = name.endswith("mlp.gate.weight")  # which no method packs
        if values.ndim != 2 or is_router or (any(t in name for t in tables) and not how.embeddings):
            stored[name], exact[name] = ("BF16", builders.to_bf16(values)), values
            continue
        found, weight = how.pack(name, (values.shape[0], values.shape[1]), rng)
        stored |= found
        exact[name] = np.ascontiguousarray(weight, np.float32)
    write_typed(folder / "model.safetensors", stored)
    path = folder / "config.json"
    key = "quantization" if how.embeddings else "quantization_config"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: how.config}))
    return exact


E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]  # and their negatives; OCP's Microscaling Formats, table 5


def mxfp4(folder: Path, bend: Callable[[Typed], object] | None = None) -> builders.Arrays:
    """A checkpoint as OpenAI's are; returns what its weights stand for, experts as (n_expert, in, out)."""
    exact = builders.checkpoint(folder, "gpt_oss")
    rng, stored = np.random.default_rng(3), Typed()
    for name, x in exact.items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            stored[name] = ("BF16", builders.to_bf16(x))
            continue
        n, in_, out = x.shape
        codes = rng.integers(0, 16, (n, out, in_ // 32, 32))
        scales = rng.integers(112, 124, (n, out, in_ // 32))
        stored[name + "_blocks"] = ("U8", (codes[..., ::2] | codes[..., 1::2] << 4).astype(np.uint8))
        stored[name + "_scales"] = ("U8", scales.astype(np.uint8))
        values = np.array(E2M1 + [-v for v in E2M1])[codes] * 2.0 ** (scales[..., None] - 127)
        exact[name] = values.reshape(n, out, in_).transpose(0, 2, 1).astype(np.float32)
    if bend:
        bend(stored)
    write_typed(folder / "model.safetensors", stored)
    path = folder / "config.json"
    method = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": method}))
    return exact
