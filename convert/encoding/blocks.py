"""Block formats: ggml's quantized blocks as data, taken apart and put together again with numpy.

Every format here stores a weight as one value of a short list, in steps of its sub-block:

    value = step × level(code) − offset,    step = d × scale,    offset = dmin × minimum

`d` and `dmin` are F16 numbers of the block, `scale` and `minimum` small whole numbers of the sub-block. No d × scale ×
level has more than 24 significant bits, so float32 holds it exactly and only the subtraction rounds: the values here
are ggml's to the bit, whatever order or fused instruction a compiler takes. The layouts are those of ggml-common.h (the
structs block_q2_K … block_iq4_xs) and of the dequantize_row functions in ggml-quants.c.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Type
from numpy.typing import NDArray

from jmedlite.base.native import F32, U8

F16 = NDArray[np.float16]
I16 = NDArray[np.int16]

# kvalues_iq4nl of ggml-common.h: the sixteen values of the non-linear 4-bit formats
IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True)
class Plane:
    """Bytes [start, start + size) of a block, with `bits` of each of 8 × size / bits numbers.

    The bytes lie in groups of `width`: a group's lowest bits belong to its first `width` numbers, the next bits to the
    `width` after those, and so on.
    """

    start: int
    size: int
    width: int
    bits: int

    def read(self, raw: U8) -> U8:
        """(n_blocks, block_bytes) → (n_blocks, numbers), each below 2^bits."""
        groups = raw[:, self.start : self.start + self.size].reshape(len(raw), self.size // self.width, 1, self.width)
        return ((groups >> self._shifts) & np.uint8((1 << self.bits) - 1)).reshape(len(raw), 8 * self.size // self.bits)

    def write(self, numbers: U8, raw: U8) -> None:
        """The inverse of `read`; bits of `numbers` above `bits` are left out."""
        low = numbers & np.uint8((1 << self.bits) - 1)
        groups = low.reshape(len(raw), self.size // self.width, 8 // self.bits, self.width) << self._shifts
        raw[:, self.start : self.start + self.size] = np.bitwise_or.reduce(groups, axis=2).reshape(len(raw), self.size)

    @property
    def _shifts(self) -> U8:
        return np.arange(0, 8, self.bits, dtype=np.uint8)[:, None]


@dataclass(frozen=True)
class Field:
    """Numbers that lie in one plane or several, lowest bits first, and are stored with `bias` added."""

    planes: tuple[Plane, ...]
    bias: int = 0

    def read(self, raw: U8) -> U8:
        """The stored numbers, (n_blocks, numbers), zero-based."""
        found, shift = self.planes[0].read(raw), self.planes[0].bits
        for plane in self.planes[1:]:
            found |= plane.read(raw) << np.uint8(shift)
            shift += plane.bits
        return found

    def write(self, numbers: U8, raw: U8) -> None:
        """The inverse of `read`."""
        shift = 0
        for plane in self.planes:
            plane.write(numbers >> np.uint8(shift), raw)
            shift += plane.bits


@dataclass(frozen=True)
class Format:
    """One format. `codes` of a block are zero-based; code c stands for `levels[c]`.

    Sub-blocks of `sub` weights have a scale in [scale_low, scale_high] and, where `has_offsets`, a minimum in [0,
    scale_high]. A format without scales of its own (`scales` is None) has one sub-block, whose scale is 1.
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


_NIBBLES = Field((Plane(2, 16, 16, 4),))

FORMATS = MappingProxyType(
    {
        f.type: f
        for f in (
            Format(Type.Q4_0, 32, _NIBBLES, _whole(-8, 7)),
            Format(Type.Q5_0, 32, Field((Plane(6, 16, 16, 4), Plane(2, 4, 1, 1))), _whole(-16, 15)),
            Format(Type.Q8_0, 32, Field((Plane(2, 32, 32, 8),), bias=128), _whole(-128, 127)),
            Format(Type.IQ4_NL, 32, _NIBBLES, IQ4_VALUES),
            Format(
                Type.Q2_K, 16, Field((Plane(16, 64, 32, 2),)), _whole(0, 3), 80, 82,
                scales=Field((Plane(0, 16, 16, 4),)), scale_low=0, scale_high=15,
            ),
            Format(
                Type.Q3_K, 16, Field((Plane(32, 64, 32, 2), Plane(0, 32, 32, 1))), _whole(-4, 3), 108,
                scales=Field((Plane(96, 8, 8, 4), Plane(104, 4, 4, 2)), bias=32), scale_low=-32, scale_high=31,
            ),
            # for Q4_K and Q5_K, whose scales and minima share twelve bytes, see _read_pairs
            Format(
                Type.Q4_K, 32, Field((Plane(16, 128, 32, 4),)), _whole(0, 15), 0, 2,
                scales=Field(()), scale_low=0, scale_high=63,
            ),
            Format(
                Type.Q5_K, 32, Field((Plane(48, 128, 32, 4), Plane(16, 32, 32, 1))), _whole(0, 31), 0, 2,
                scales=Field(()), scale_low=0, scale_high=63,
            ),
            Format(
                Type.Q6_K, 16, Field((Plane(0, 128, 64, 4), Plane(128, 64, 32, 2))), _whole(-32, 31), 208,
                scales=Field((Plane(192, 16, 16, 8),), bias=128), scale_low=-128, scale_high=127,
            ),
            Format(
                Type.IQ4_XS, 32, Field((Plane(8, 128, 16, 4),)), IQ4_VALUES, 0,
                scales=Field((Plane(4, 4, 1, 4), Plane(2, 2, 1, 2)), bias=32), scale_low=-32, scale_high=31,
            ),
        )
    }
)  # fmt: skip
_TWOS_COMPLEMENT = 128  # a byte with this bias is a signed one with its highest bit turned


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
    n = len(raw)
    codes = form.codes.read(raw)
    if form.codes.bias == _TWOS_COMPLEMENT:
        codes ^= np.uint8(_TWOS_COMPLEMENT)
    scales, minima = _read_scales(form, raw)
    dmin = np.zeros(n, np.float16) if form.dmin_at is None else _read_half(raw, form.dmin_at)
    return Blocks(type_, _read_half(raw, form.d_at), dmin, scales, minima, codes)


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
    codes = blocks.codes
    if form.codes.bias == _TWOS_COMPLEMENT:
        codes = codes ^ np.uint8(_TWOS_COMPLEMENT)
    form.codes.write(codes, raw)
    _write_scales(form, blocks.scales, blocks.minima, raw)
    _write_half(raw, form.d_at, blocks.d)
    if form.dmin_at is not None:
        _write_half(raw, form.dmin_at, blocks.dmin)
    return raw


def _check_range(what: str, found: NDArray[np.integer], low: int, high: int, shape: Sequence[int]) -> None:
    if found.shape != tuple(shape):
        raise ValueError(f"{what}s: found an array of shape {found.shape}, expected {tuple(shape)}")
    if found.size and (found.min() < low or found.max() > high):
        raise ValueError(f"a {what} of {found.min()} … {found.max()} is outside {low} … {high}")


def _read_half(raw: U8, at: int) -> F16:
    return np.ascontiguousarray(raw[:, at : at + 2]).view("<f2")[:, 0].astype(np.float16)


def _write_half(raw: U8, at: int, numbers: F16) -> None:
    raw[:, at : at + 2] = numbers.astype("<f2")[:, None].view(np.uint8)


def _read_scales(form: Format, raw: U8) -> tuple[I16, I16]:
    """The scales and minima of every sub-block."""
    shape = (len(raw), form.n_sub)
    if form.scales is None:
        return np.ones(shape, np.int16), np.zeros(shape, np.int16)
    if not form.scales.planes:
        return _read_pairs(raw[:, 4:16])
    stored = form.scales.read(raw)
    if form.scales.bias == _TWOS_COMPLEMENT:
        stored ^= np.uint8(_TWOS_COMPLEMENT)
    numbers = stored.astype(np.int16) - np.int16(form.scales.bias)
    if form.has_offsets:  # Q2_K: the minima are the upper halves of the scales' bytes
        return numbers[:, : form.n_sub], numbers[:, form.n_sub :]
    return numbers, np.zeros(shape, np.int16)


def _write_scales(form: Format, scales: I16, minima: I16, raw: U8) -> None:
    if form.scales is None:
        return
    if not form.scales.planes:
        raw[:, 4:16] = _pack_pairs(scales.astype(np.uint8), minima.astype(np.uint8))
        return
    numbers = np.concatenate([scales, minima], axis=1) if form.has_offsets else scales
    stored = (numbers + np.int16(form.scales.bias)).astype(np.uint8)
    if form.scales.bias == _TWOS_COMPLEMENT:
        stored ^= np.uint8(_TWOS_COMPLEMENT)
    form.scales.write(stored, raw)


def _read_pairs(packed: U8) -> tuple[I16, I16]:
    """Eight scales and eight minima of six bits in twelve bytes (get_scale_min_k4 of ggml-quants.c).

    Bytes 0–3 and 4–7 hold the first four of each in their lower six bits; bytes 8–11 hold the lower four bits of the
    others, whose upper two are the upper two of bytes 0–7.
    """
    first, last = packed[:, :8].reshape(-1, 2, 4), packed[:, 8:]
    low = np.stack([last & 0xF, last >> 4], axis=1)
    both = np.concatenate([first & 0x3F, low | (first >> 6) << 4], axis=2).astype(np.int16)
    return both[:, 0], both[:, 1]


def _pack_pairs(scales: U8, minima: U8) -> U8:
    both = np.stack([scales, minima], axis=1)
    first, last = both[:, :, :4], both[:, :, 4:]
    head = first | (last >> 4) << 6
    return np.concatenate([head.reshape(-1, 8), (last[:, 0] & 0xF) | (last[:, 1] & 0xF) << 4], axis=1)
