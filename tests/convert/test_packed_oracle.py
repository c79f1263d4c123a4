"""Packed weights against the libraries that made the formats. `pytest -m oracle`; what is not installed is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jmedlite.convert.planning import TensorJob, assemble
from jmedlite.convert.rows import Block, merge, open_rows, read_block
from jmedlite.convert.sources.packed.scaled import _values
from tests.support import builders, packed

pytestmark = pytest.mark.oracle
DOWN = "model.layers.0.mlp.down_proj."
SHAPE = (256, 512)


def decoded(folder: Path, name: str = "blk.0.ffn_down.weight") -> np.ndarray:
    """One weight of a checkpoint as the pass sees it."""
    plan = assemble(folder)
    index, job = next((i, job) for i, job in enumerate(plan.jobs) if job.name == name)
    assert isinstance(job, TensorJob)
    block = Block(index, job, frozenset(), 0, job.n_rows, open_rows(plan, job))
    data, values = np.empty(block.raw_bytes, np.uint8), np.empty(job.n_elements, np.float32)
    read_block(block, data)
    rows, _ = merge(block, data, values, values[:0], [])
    return rows


def checkpoint(folder: Path, parts: packed.Typed, config: dict[str, Any], key: str = "quantization_config") -> None:
    """A checkpoint one of whose weights is stored as `parts`, under the names that they have there."""
    plain = builders.checkpoint(folder)
    stored: packed.Typed = {n: ("BF16", builders.to_bf16(x)) for n, x in plain.items() if n != DOWN + "weight"}
    packed.write_typed(folder / "model.safetensors", stored | {DOWN + leaf: tensor for leaf, tensor in parts.items()})
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: config}))


def drawn() -> np.ndarray:
    return builders.from_bf16(builders.to_bf16(np.random.default_rng(5).standard_normal(SHAPE).astype(np.float32)))


def typed(tensor: Any) -> tuple[str, np.ndarray]:
    """A torch tensor with safetensors' name of its format."""
    import torch

    names = {
        torch.uint8: "U8", torch.int8: "I8", torch.int32: "I32", torch.int64: "I64", torch.float32: "F32",
        torch.float16: "F16", torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    }  # fmt: skip
    view = {torch.bfloat16: torch.int16, torch.float8_e4m3fn: torch.uint8, torch.float8_e5m2: torch.uint8}
    return names[tensor.dtype], tensor.detach().contiguous().view(view.get(tensor.dtype, tensor.dtype)).numpy()


@pytest.mark.parametrize("name", ["F8_E4M3", "F8_E5M2"])
def test_every_byte_of_fp8(name: str) -> None:
    import torch

    kind = torch.float8_e4m3fn if name == "F8_E4M3" else torch.float8_e5m2
    expected = torch.arange(256, dtype=torch.uint8).view(kind).to(torch.float32).numpy()
    np.testing.assert_array_equal(_values(name)[:, 0], expected)


def test_fp8_blocks_equal_transformers(tmp_path: Path) -> None:
    """`Fp8Dequantize`, to the bit."""
    import torch

    fp8 = pytest.importorskip("transformers.integrations.finegrained_fp8")
    if not hasattr(fp8, "Fp8Dequantize"):
        pytest.skip("this transformers has no Fp8Dequantize")
    blocks = torch.from_numpy(drawn()).reshape(2, 128, 4, 128)
    scale = blocks.abs().amax((1, 3)) / 448
    weight = (blocks / scale[:, None, :, None]).reshape(SHAPE).to(torch.float8_e4m3fn)
    config = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    checkpoint(tmp_path / "m", {"weight": typed(weight), "weight_scale_inv": typed(scale)}, config)
    expected = fp8.Fp8Dequantize(None)._dequantize_one(weight, scale)
    np.testing.assert_array_equal(decoded(tmp_path / "m"), expected.float().numpy())


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_four_bits_equal_bitsandbytes(tmp_path: Path, kind: str, nested: bool) -> None:
    """`dequantize_4bit` of what `Linear4bit` saves, to the bit."""
    import torch

    bnb = pytest.importorskip("bitsandbytes")
    values = torch.from_numpy(drawn()).to(torch.bfloat16)
    layer = bnb.nn.Linear4bit(
        SHAPE[1], SHAPE[0], bias=False, quant_type=kind, compress_statistics=nested, compute_dtype=torch.float32
    )
    layer.weight = bnb.nn.Params4bit(values, requires_grad=False, quant_type=kind, compress_statistics=nested)
    layer = layer.to("cpu")
    parts = {name: typed(tensor) for name, tensor in layer.state_dict().items()}
    assert ("weight.nested_absmax" in parts) == nested
    checkpoint(tmp_path / "m", parts, {"quant_method": "bitsandbytes", "load_in_4bit": True})
    state = layer.weight.quant_state
    state.dtype = torch.float32
    expected = bnb.functional.dequantize_4bit(layer.weight.data, state).float().numpy()
    np.testing.assert_array_equal(decoded(tmp_path / "m"), expected)


def test_eight_bits_equal_bitsandbytes(tmp_path: Path) -> None:
    """`int8_vectorwise_dequant` of what `int8_vectorwise_quant` makes, to the bit."""
    import torch

    functional = pytest.importorskip("bitsandbytes.functional")
    codes, scb, _ = functional.int8_vectorwise_quant(torch.from_numpy(drawn()).to(torch.float16))
    checkpoint(tmp_path / "m", {"weight": typed(codes), "SCB": typed(scb)}, {"quant_method": "bitsandbytes"})
    expected = functional.int8_vectorwise_dequant(codes, scb).float().numpy()
    np.testing.assert_array_equal(decoded(tmp_path / "m"), expected)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_packed_rows_equal_compressed_tensors(tmp_path: Path, bits: int, symmetric: bool) -> None:
    """`PackQuantizationCompressor`, to the bit where it computes in float32."""
    import torch

    pack = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    rng = np.random.default_rng(bits)
    top = 1 << (bits - 1)
    codes = torch.from_numpy(rng.integers(-top, top, SHAPE).astype(np.int8))
    scale = torch.from_numpy(rng.uniform(0.001, 0.01, (SHAPE[0], 4)).astype(np.float32))
    zero = torch.from_numpy(rng.integers(-top, top, (SHAPE[0], 4)).astype(np.int8))
    parts = {
        "weight_packed": typed(pack.pack_to_int32(codes, bits)), "weight_scale": typed(scale),
        "weight_shape": typed(torch.tensor(SHAPE)),
    }  # fmt: skip
    if not symmetric:
        parts["weight_zero_point"] = typed(pack.pack_to_int32(zero, bits, packed_dim=0))
    checkpoint(tmp_path / "m", parts, {"quant_method": "compressed-tensors", "format": "pack-quantized"})
    zeros = np.zeros((SHAPE[0], 4), np.float32) if symmetric else zero.numpy().astype(np.float32)
    unpacked = pack.unpack_from_int32(torch.from_numpy(parts["weight_packed"][1]), bits, torch.Size(SHAPE)).numpy()
    expected = (unpacked - np.repeat(zeros, 128, 1)) * np.repeat(scale.numpy(), 128, 1)
    np.testing.assert_array_equal(decoded(tmp_path / "m"), expected.astype(np.float32))


@pytest.mark.parametrize(("bits", "group"), [(2, 32), (3, 64), (4, 64), (5, 128), (6, 64), (8, 64)])
def test_affine_equals_mlx(tmp_path: Path, bits: int, group: int) -> None:
    """`mlx.core.dequantize` with scales in float32, within two roundings: MLX may fuse the multiplication."""
    mx = pytest.importorskip("mlx.core")
    weight, scales, biases = mx.quantize(mx.array(drawn()), group_size=group, bits=bits)
    parts = {
        "weight": ("U32", np.array(weight)), "scales": ("F32", np.array(scales)), "biases": ("F32", np.array(biases)),
    }  # fmt: skip
    checkpoint(tmp_path / "m", parts, {"group_size": group, "bits": bits}, "quantization")
    expected = np.array(mx.dequantize(weight, scales, biases, group_size=group, bits=bits))
    np.testing.assert_allclose(decoded(tmp_path / "m"), expected, rtol=0, atol=2 * np.abs(expected).max() * 2.0**-23)


def test_every_code_and_scale_of_mxfp4(tmp_path: Path) -> None:
    """Equals transformers' decoding, of which the experts' matrices are the transpose."""
    import torch
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    from jmedlite.convert.sources.packed import mxfp4
    from jmedlite.convert.sources.tensors import Files, StoredTensor

    rng = np.random.default_rng(2)
    blocks = rng.integers(0, 256, (2, 96, 4, 16)).astype(np.uint8)
    blocks[0, :64, :, :].reshape(-1)[:256] = np.arange(256)
    scales = rng.integers(0, 252, (2, 96, 4)).astype(np.uint8)  # beyond that, float32 has no such numbers
    path = tmp_path / "x.safetensors"
    path.write_bytes(blocks.tobytes() + scales.tobytes())
    parts = {
        "w_blocks": StoredTensor("w_blocks", path, "U8", blocks.shape, 0),
        "w_scales": StoredTensor("w_scales", path, "U8", scales.shape, blocks.size),
    }
    rows = mxfp4.gather(parts)["w"].open_rows(Files(), 128)
    data, found = np.empty(rows.nbytes(192), np.uint8), np.empty((192, 128), np.float32)
    rows.read(0, 192, data)
    rows.decode(data, 0, found)
    expected = convert_moe_packed_tensors(torch.from_numpy(blocks), torch.from_numpy(scales), dtype=torch.float32)
    np.testing.assert_array_equal(found, expected.numpy().transpose(0, 2, 1).reshape(192, 128))
