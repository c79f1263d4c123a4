"""Block formats: whatever a block holds is taken apart and put together to the byte, and means what ggml says."""

from __future__ import annotations

import gguf.quants
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType as Type

from jmedlite.base.gguf import nbytes
from jmedlite.base.native import F32, U8, quantize_rows, widen
from jmedlite.convert.encoding.blocks import FORMATS, levels, pack, unpack

BLOCKS = 64
NAMES = [t.name for t in FORMATS]


def any_bytes(form: Type) -> U8:
    """Blocks of random bytes, but for F16 numbers that are not finite."""
    layout = FORMATS[form]
    raw = np.random.default_rng(form.value).integers(0, 256, (BLOCKS, layout.nbytes), np.uint8)
    for at in (layout.d_at, layout.dmin_at):
        if at is not None:
            raw[:, at + 1] &= 0xBB  # no exponent of all ones
    return raw


def real_blocks(form: Type, importance: bool) -> U8:
    """What ggml makes of weights like a model's: normal ones, a few of them large."""
    rng = np.random.default_rng(5)
    rows = (0.02 * rng.standard_t(4, (BLOCKS // 2, 512))).astype(np.float32)
    weights = rng.random(512, np.float32) if importance else None
    out = quantize_rows(form, rows, np.empty(nbytes(form, rows.size), np.uint8), weights)
    return out.reshape(-1, FORMATS[form].nbytes)


def by_ggml(form: Type, raw: U8) -> F32:
    out = np.empty(raw.size // FORMATS[form].nbytes * FORMATS[form].block, np.float32)
    widen(raw.reshape(-1), form.name, out)
    return out.reshape(len(raw), -1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("source", ["any", "ggml", "ggml with importance"])
def test_blocks_mean_what_ggml_and_gguf_say(name: str, source: str) -> None:
    form = Type[name]
    raw = any_bytes(form) if source == "any" else real_blocks(form, "importance" in source)
    blocks = unpack(form, raw)
    values = blocks.values()
    assert np.array_equal(values.view(np.uint32), by_ggml(form, raw).view(np.uint32))
    assert np.array_equal(values, gguf.quants.dequantize(raw, form).reshape(values.shape))
    assert np.array_equal(pack(blocks), raw)
    again = np.repeat(blocks.steps, FORMATS[form].sub, axis=1) * levels(form)[blocks.codes]
    assert np.array_equal(again - np.repeat(blocks.offsets, FORMATS[form].sub, axis=1), values)


@pytest.mark.parametrize("name", NAMES)
def test_every_byte_of_a_block_is_kept(name: str) -> None:
    """F16 numbers that are not finite, and their payload, too."""
    form = Type[name]
    raw = np.random.default_rng(1).integers(0, 256, (BLOCKS, FORMATS[form].nbytes), np.uint8)
    raw[0], raw[1] = 0, 255
    assert np.array_equal(pack(unpack(form, raw)), raw)


@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_ranges(name: str) -> None:
    form, layout = Type[name], FORMATS[Type[name]]
    blocks = unpack(form, any_bytes(form))
    assert blocks.codes.shape == (BLOCKS, layout.block) and blocks.codes.dtype == np.uint8
    assert blocks.steps.shape == blocks.offsets.shape == (BLOCKS, layout.n_sub)
    assert blocks.d.dtype == blocks.dmin.dtype == np.float16
    assert set(np.unique(blocks.codes)) == set(range(len(layout.levels)))  # random bytes have every code
    assert blocks.scales.min() == layout.scale_low and blocks.scales.max() == layout.scale_high
    assert blocks.minima.max() == (layout.scale_high if layout.has_offsets else 0)
    assert np.all(np.diff(levels(form)) > 0)


def test_what_no_block_can_hold_is_refused() -> None:
    blocks = unpack(Type.Q4_K, any_bytes(Type.Q4_K))
    blocks.codes[3, 7] = 16
    with pytest.raises(ValueError, match="code of 0 … 16 is outside 0 … 15"):
        pack(blocks)
    blocks.codes[3, 7], blocks.scales[2, 1] = 15, -1
    with pytest.raises(ValueError, match="scale of -1"):
        pack(blocks)
    blocks.scales[2, 1], blocks.minima[0, 0] = 1, 64
    with pytest.raises(ValueError, match="minimum of 0 … 64"):
        pack(blocks)
    with pytest.raises(ValueError, match=r"shape \(64, 144\), expected \(n, 176\)"):
        unpack(Type.Q5_K, any_bytes(Type.Q4_K))


def test_no_blocks_at_all() -> None:
    for form, layout in FORMATS.items():
        blocks = unpack(form, np.empty((0, layout.nbytes), np.uint8))
        assert blocks.values().shape == (0, layout.block)
        assert pack(blocks).shape == (0, layout.nbytes)
