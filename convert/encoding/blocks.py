"""Block formats: ggml's quantized blocks as data, taken apart and put together again with numpy.

Every format here stores a weight as one value of a short list, in steps of its sub-block:

    value = step × level(code) − offset,    step = d × scale,    offset = dmin × minimum

`d` and `dmin` are F16 numbers of the block, `scale` and `minimum` small whole numbers of the sub-block. No d × scale ×
level has more than 24 significant bits, so float32 holds it exactly and only the subtraction rounds: the values here
are ggml's to the bit, whatever order or fused instruction a compiler takes. The layouts are those of ggml-common.h (the
structs block_q2_K … block_iq4_xs) and of the dequantize_row functions in ggml-quants.c.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Type
from numpy.typing import NDArray

from jmedlite.base.native import F32, U8

F16 = NDArray[np.float16]
I16 = NDArray[np.int16]

# kvalues_iq4nl of ggml-common.h: the sixteen values of the non-linear 4-bit formats
IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


class Run(NamedTuple):
    """`length` numbers, of which `bits` lie in as many bytes of a block, one in each.

    Bit `number_shift` and the ones above it of numbers[first + i] are bit `byte_shift` and the ones above it of
    byte[start + i].
    """

    start: int
    byte_shift: int
    bits: int
    first: int
    number_shift: int
    length: int


@dataclass(frozen=True)
class Field:
    """Where the `n` numbers of a block lie, whole and zero-based; they are stored with `added` to them, modulo 256.

    A byte that C has as a signed one is zero-based with 128 added: its lowest value, −128, is stored as 128.
    """

    runs: tuple[Run, ...]
    n: int
    added: int = 0

    def read(self, raw: U8) -> U8:
        """(n_blocks, block_bytes) → (n_blocks, n)."""
        found = np.zeros((len(raw), self.n), np.uint8)
        for run in self.runs:
            part = raw[:, run.start : run.start + run.length] >> np.uint8(run.byte_shift)
            part &= np.uint8((1 << run.bits) - 1)
            found[:, run.first : run.first + run.length] |= part << np.uint8(run.number_shift)
        return found - np.uint8(self.added)

    def write(self, numbers: U8, raw: U8) -> None:
        """The inverse of `read`, into bytes that are 0."""
        stored = numbers + np.uint8(self.added)
        for run in self.runs:
            part = stored[:, run.first : run.first + run.length] >> np.uint8(run.number_shift)
            part &= np.uint8((1 << run.bits) - 1)
            raw[:, run.start : run.start + run.length] |= part << np.uint8(run.byte_shift)


def _plane(start: int, size: int, width: int, bits: int, number_shift: int = 0) -> tuple[Run, ...]:
    """Bytes [start, start + size), full of `bits` of 8 × size / bits numbers.

    The bytes lie in groups of `width`: a group's lowest bits belong to its first `width` numbers, the next bits to the
    `width` after those, and so on.
    """
    places = [(at, shift) for at in range(start, start + size, width) for shift in range(0, 8, bits)]
    return tuple(Run(at, shift, bits, i * width, number_shift, width) for i, (at, shift) in enumerate(places))


@dataclass(frozen=True)
class Format:
    """One format. `codes` of a block are zero-based; code c stands for `levels[c]`.

    Sub-blocks of `sub` weights have a scale in [scale_low, scale_high] and, where `has_offsets`, a minimum in [0,
    scale_high]; the field `scales` has all scales, less scale_low, and behind them the minima. Without it, the scale of
    the one sub-block is 1.
    """

    type: Type
    sub: int
    codes: Field
    levels: tuple[int, ...]
    d_at: int = 0
    dmin_at: int | None = None
    scales: Field | None = None
    scale_low: int = 1
    scale_high: int = 1

    @property
    def block(self) -> int:
        """Weights of a block."""
        return int(GGML_QUANT_SIZES[self.type][0])

    @property
    def nbytes(self) -> int:
        """Bytes of a block."""
        return int(GGML_QUANT_SIZES[self.type][1])

    @property
    def n_sub(self) -> int:
        """Sub-blocks of a block."""
        return self.block // self.sub

    @property
    def has_offsets(self) -> bool:
        return self.dmin_at is not None


def _whole(low: int, high: int) -> tuple[int, ...]:
    return tuple(range(low, high + 1))


_NIBBLES = Field(_plane(2, 16, 16, 4), 32)
# get_scale_min_k4 of ggml-quants.c: eight scales, then eight minima, of six bits in twelve bytes. The first four of
# each are the lower six bits of four bytes, whose upper two bits are the others' upper two.
_SIX_BITS = Field(
    (
        *(Run(4 + 4 * k, 0, 6, 8 * k, 0, 4) for k in range(2)),
        *(Run(4 + 4 * k, 6, 2, 8 * k + 4, 4, 4) for k in range(2)),
        *(Run(12, 4 * k, 4, 8 * k + 4, 0, 4) for k in range(2)),
    ),
    16,
)

FORMATS = MappingProxyType(
    {
        f.type: f
        for f in (
            Format(Type.Q4_0, 32, _NIBBLES, _whole(-8, 7)),
            Format(Type.Q5_0, 32, Field((*_plane(6, 16, 16, 4), *_plane(2, 4, 1, 1, 4)), 32), _whole(-16, 15)),
            Format(Type.Q8_0, 32, Field(_plane(2, 32, 32, 8), 32, 128), _whole(-128, 127)),
            Format(Type.IQ4_NL, 32, _NIBBLES, IQ4_VALUES),
            Format(
                Type.Q2_K, 16, Field(_plane(16, 64, 32, 2), 256), _whole(0, 3), 80, 82,
                scales=Field(_plane(0, 16, 16, 4), 32), scale_low=0, scale_high=15,
            ),
            Format(
                Type.Q3_K, 16, Field((*_plane(32, 64, 32, 2), *_plane(0, 32, 32, 1, 2)), 256), _whole(-4, 3), 108,
                scales=Field((*_plane(96, 8, 8, 4), *_plane(104, 4, 4, 2, 4)), 16), scale_low=-32, scale_high=31,
            ),
            Format(
                Type.Q4_K, 32, Field(_plane(16, 128, 32, 4), 256), _whole(0, 15), 0, 2,
                scales=_SIX_BITS, scale_low=0, scale_high=63,
            ),
            Format(
                Type.Q5_K, 32, Field((*_plane(48, 128, 32, 4), *_plane(16, 32, 32, 1, 4)), 256), _whole(0, 31), 0, 2,
                scales=_SIX_BITS, scale_low=0, scale_high=63,
            ),
            Format(
                Type.Q6_K, 16, Field((*_plane(0, 128, 64, 4), *_plane(128, 64, 32, 2, 4)), 256), _whole(-32, 31), 208,
                scales=Field(_plane(192, 16, 16, 8), 16, 128), scale_low=-128, scale_high=127,
            ),
            Format(
                Type.IQ4_XS, 32, Field(_plane(8, 128, 16, 4), 256), IQ4_VALUES, 0,
                scales=Field((*_plane(4, 4, 1, 4), *_plane(2, 2, 1, 2, 4)), 8), scale_low=-32, scale_high=31,
            ),
        )
    }
)  # fmt: skip


@dataclass
class Blocks:
    """Blocks of one format, taken apart; the arrays may be changed before `pack`.

    d, dmin: (n_blocks,) float16 (dmin is 0 where the format has none); scales, minima: (n_blocks, n_sub) int16, whole
    numbers of the format's range (1 and 0 where it has none); codes: (n_blocks, block) uint8, zero-based.
    """

    type: Type
    d: F16
    dmin: F16
    scales: I16
    minima: I16
    codes: U8

    @property
    def steps(self) -> F32:
        """(n_blocks, n_sub): d × scale, exact in float32."""
        return np.multiply(self.d.astype(np.float32)[:, None], self.scales, dtype=np.float32)

    @property
    def offsets(self) -> F32:
        """(n_blocks, n_sub): dmin × minimum, exact in float32."""
        return np.multiply(self.dmin.astype(np.float32)[:, None], self.minima, dtype=np.float32)

    def values(self) -> F32:
        """(n_blocks, block): what ggml makes of these blocks, to the bit."""
        steps, offsets = self.steps[:, :, None], self.offsets[:, :, None]
        stored = levels(self.type)[self.codes].reshape(len(self.codes), steps.shape[1], FORMATS[self.type].sub)
        if FORMATS[self.type].has_offsets:
            return (steps * stored - offsets).reshape(self.codes.shape)
        return (steps * stored).reshape(self.codes.shape)


def levels(type_: Type) -> F32:
    """The value that every code stands for, in steps: (n_codes,) float32, rising."""
    return np.array(FORMATS[type_].levels, np.float32)


def unpack(type_: Type, raw: U8) -> Blocks:
    """Take blocks apart: `raw` (n_blocks, block_bytes) uint8, of a format in FORMATS (KeyError for any other)."""
    form = FORMATS[type_]
    if raw.ndim != 2 or raw.shape[1] != form.nbytes:
        raise ValueError(f"{type_.name} blocks: found an array of shape {raw.shape}, expected (n, {form.nbytes})")
    shape = (len(raw), form.n_sub)
    scales, minima = np.ones(shape, np.int16), np.zeros(shape, np.int16)
    if form.scales:
        stored = form.scales.read(raw)
        scales = stored[:, : form.n_sub].astype(np.int16) + np.int16(form.scale_low)
        if form.has_offsets:
            minima = stored[:, form.n_sub :].astype(np.int16)
    dmin = np.zeros(len(raw), np.float16) if form.dmin_at is None else _read_half(raw, form.dmin_at)
    return Blocks(type_, _read_half(raw, form.d_at), dmin, scales, minima, form.codes.read(raw))


def pack(blocks: Blocks) -> U8:
    """Put blocks together: (n_blocks, block_bytes) uint8, of which `unpack` makes the same again, whatever it holds.

    Raises ValueError where a code, scale or minimum is outside the format's range.
    """
    form = FORMATS[blocks.type]
    n = len(blocks.d)
    _check_range("code", blocks.codes, 0, len(form.levels) - 1, (n, form.block))
    _check_range("scale", blocks.scales, form.scale_low, form.scale_high, (n, form.n_sub))
    _check_range("minimum", blocks.minima, 0, form.scale_high if form.has_offsets else 0, (n, form.n_sub))
    raw = np.zeros((n, form.nbytes), np.uint8)
    form.codes.write(blocks.codes, raw)
    if form.scales:
        stored = (blocks.scales - np.int16(form.scale_low)).astype(np.uint8)
        if form.has_offsets:
            stored = np.concatenate([stored, blocks.minima.astype(np.uint8)], axis=1)
        form.scales.write(stored, raw)
    _write_half(raw, form.d_at, blocks.d)
    if form.dmin_at is not None:
        _write_half(raw, form.dmin_at, blocks.dmin)
    return raw


def _check_range(what: str, found: NDArray[np.integer], low: int, high: int, shape: tuple[int, int]) -> None:
    if found.shape != shape:
        raise ValueError(f"{what}s: found an array of shape {found.shape}, expected {shape}")
    if found.size and (found.min() < low or found.max() > high):
        raise ValueError(f"a {what} of {found.min()} … {found.max()} is outside {low} … {high}")


def _read_half(raw: U8, at: int) -> F16:
    return np.ascontiguousarray(raw[:, at : at + 2]).view("<f2")[:, 0].astype(np.float16)


def _write_half(raw: U8, at: int, numbers: F16) -> None:
    raw[:, at : at + 2] = numbers.astype("<f2")[:, None].view(np.uint8)
