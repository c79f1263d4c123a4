"""GPTQ, AWQ and compressed-tensors: whole numbers of a few bits, packed into words of 32.

GPTQ packs along the inputs, a column of the stored matrix for each row of the weight; AWQ along the outputs, the eight
codes of a word in an order of its own; compressed-tensors along the inputs, row by row. A group of inputs shares a
scale and a zero point: w = scale · (code − zero).
Sources: https://github.com/AutoGPTQ/AutoGPTQ, https://github.com/casper-hansen/AutoAWQ,
https://github.com/neuralmagic/compressed-tensors
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jmedlite.base.errors import DataError
from jmedlite.base.native import F32, U8
from jmedlite.convert.sources.tensors import Files, StoredTensor

from .codes import by_groups, codes, is_in_order, whole_codes
from .rows import PackedTensor, check_dtype, check_shape, take, two_dimensions

_AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)  # of which column, of eight, the codes in a word are
_AWQ_PLACES = np.argsort(_AWQ_COLUMNS)
_WORDS = ("I32", "U32")


@dataclass(frozen=True)
class _Held:
    """All that `_finish` needs, by the weight's rows: scales and zeros (n_rows, n_groups), the group of each column."""

    scales: F32
    zeros: F32
    groups: NDArray[np.intp] | None  # None where they stand in order
    crosswise: U8 | None = None  # the codes, where they are held too


def _finish(out: F32, held: _Held, first: int) -> None:
    """Codes in `out` to weights: out = (out − zero) · scale, exact in float32 for scales of 16 bits."""
    rows = slice(first, first + out.shape[0])
    scales, zeros = held.scales[rows], held.zeros[rows]
    if held.groups is None:
        width = -(-out.shape[1] // scales.shape[1])
        by_groups(np.subtract, out, zeros, width)
        by_groups(np.multiply, out, scales, width)
    else:
        out -= zeros[:, held.groups]
        out *= scales[:, held.groups]


def _order(tensor: NDArray[Any], n_groups: int) -> NDArray[np.intp] | None:
    """The group of each column, or None; raises DataError for one that is not there."""
    if tensor.size and (tensor.min() < 0 or tensor.max() >= n_groups):
        raise DataError(f"g_idx: names the group {int(tensor.max())}, there are {n_groups}")
    return None if is_in_order(tensor, n_groups) else tensor.astype(np.intp)


@dataclass(frozen=True)
class GptqWords:
    """See rows.Decoder. Held are qweight (n_cols · bits / 32, n_rows), qzeros (n_groups, n_rows · bits / 32), scales
    (n_groups, n_rows), and g_idx (n_cols,) where there is one. `plus`: what is added to a stored zero point.
    """

    bits: int
    plus: int

    def hold(self, arrays: Sequence[NDArray[Any]]) -> _Held:
        """See rows.Decoder."""
        qweight, qzeros, scales = arrays[:3]
        n_groups, n_rows = scales.shape
        zeros = whole_codes(np.ascontiguousarray(qzeros).view(np.uint8), self.bits, n_rows)
        zeros = (zeros + np.uint8(self.plus)) & np.uint8((1 << self.bits) - 1)
        groups = _order(arrays[3], n_groups) if len(arrays) > 3 else None
        across = np.ascontiguousarray(qweight.T).view(np.uint8)
        return _Held(np.ascontiguousarray(scales.T), np.ascontiguousarray(zeros.T).astype(np.float32), groups, across)

    def decode(self, streams: Sequence[U8], held: _Held, first: int, out: F32) -> None:
        """See rows.Decoder."""
        assert held.crosswise is not None
        codes(held.crosswise[first : first + out.shape[0]], self.bits, out)
        _finish(out, held, first)


@dataclass(frozen=True)
class AwqWords:
    """See rows.Decoder. Held are qweight (n_cols, n_rows / 8), qzeros (n_groups, n_rows / 8), scales (n_groups,
    n_rows)."""

    def hold(self, arrays: Sequence[NDArray[Any]]) -> _Held:
        """See rows.Decoder."""
        qweight, qzeros, scales = arrays
        zeros = _awq_rows(np.ascontiguousarray(qzeros.view(np.uint8).T), 0, scales.shape[1])
        across = np.ascontiguousarray(qweight.view(np.uint8).T)
        return _Held(np.ascontiguousarray(scales.T), zeros.astype(np.float32), None, across)

    def decode(self, streams: Sequence[U8], held: _Held, first: int, out: F32) -> None:
        """See rows.Decoder."""
        assert held.crosswise is not None
        out[:] = _awq_rows(held.crosswise, first, out.shape[0])
        _finish(out, held, first)


def _awq_rows(across: U8, first: int, n_rows: int) -> U8:
    """The codes (n_rows, n) of rows from `first` on, out of the bytes (4 · n_words, n) of the words."""
    row = first + np.arange(n_rows)
    place = row // 8 * 8 + _AWQ_PLACES[row % 8]
    found: U8 = (across[place // 2] >> (place % 2 * 4).astype(np.uint8)[:, None]) & np.uint8(15)
    return found


@dataclass(frozen=True)
class RowWords:
    """See rows.Decoder. The words of each row are streamed; held are the scales (n_rows, n_groups), then, where they
    are there, the zero points (packed along the rows) and g_idx."""

    bits: int
    has_zeros: bool
    has_order: bool

    def hold(self, arrays: Sequence[NDArray[Any]]) -> _Held:
        """See rows.Decoder."""
        scales = arrays[0].astype(np.float32)
        if self.has_zeros:
            packed = np.ascontiguousarray(arrays[1].T).view(np.uint8)
            zeros = np.ascontiguousarray(whole_codes(packed, self.bits, scales.shape[0]).T).astype(np.float32)
        else:
            zeros = np.full_like(scales, 1 << (self.bits - 1))
        groups = _order(arrays[-1], scales.shape[1]) if self.has_order else None
        return _Held(scales, zeros, groups)

    def decode(self, streams: Sequence[U8], held: _Held, first: int, out: F32) -> None:
        """See rows.Decoder."""
        codes(streams[0], self.bits, out)
        _finish(out, held, first)


def gather_gptq(
    tensors: dict[str, StoredTensor],
    bits: int | None,
    group_size: int | None,
    *,
    second: bool,
    ordered: bool,
) -> dict[str, PackedTensor]:
    """Take GPTQ's weights out of `tensors`; `second`: zero points are stored as they are (checkpoint_format gptq_v2),
    `ordered`: inputs were taken in an order of their own (desc_act), which only g_idx tells.

    `bits` and `group_size` are the configuration's, None where it has none. Raises DataError.
    """
    found = {}
    for name in [n for n in tensors if n.endswith(".qweight")]:
        stem = name.removesuffix("qweight")
        taken = take(tensors, stem, "qweight", "qzeros", "scales")
        if taken is None:
            continue
        qweight, qzeros, scales = taken
        order = tensors.pop(stem + "g_idx", None)
        check_dtype(qweight, *_WORDS)
        check_dtype(qzeros, *_WORDS)
        check_dtype(scales, "F16", "BF16", "F32")
        n_words, n_rows = two_dimensions(qweight)
        n_groups = two_dimensions(scales)[0]
        n_cols = order.n_elements if order else (n_words * 32 // bits if bits else 0)
        own_bits = n_words * 32 // n_cols if n_cols else 0
        if own_bits not in (2, 4, 8) or own_bits * n_cols != n_words * 32:
            what = f"{own_bits} bits" if own_bits else "bits that nothing tells"
            raise DataError(f"{qweight.path.name}: {name} has {what}, expected 2, 4 or 8")
        check_shape(scales, (n_groups, n_rows))
        check_shape(qzeros, (n_groups, n_rows * own_bits // 32))
        if order:
            check_dtype(order, "I32", "I64")
            check_shape(order, (n_cols,))
        elif ordered and n_groups > 1:
            raise DataError(
                f"{qweight.path.name}: {name} has no g_idx, but the configuration says desc_act: which group an input "
                "is in is lost; give the original"
            )
        elif group_size and n_groups != (1 if group_size < 0 else -(-n_cols // group_size)):
            raise DataError(
                f"{qweight.path.name}: {name} has {n_groups} groups of its {n_cols:,} inputs, the configuration says "
                f"groups of {group_size}"
            )
        held = (qweight, qzeros, scales, *((order,) if order else ()))
        decoder = GptqWords(own_bits, 0 if second else 1)
        found[stem + "weight"] = PackedTensor(
            stem + "weight", f"GPTQ, {own_bits} bits", (n_rows, n_cols), (), held, decoder
        )
    return found


def gather_awq(tensors: dict[str, StoredTensor]) -> dict[str, PackedTensor]:
    """Take AWQ's weights (version "gemm", 4 bits) out of `tensors`; raises DataError."""
    found = {}
    for name in [n for n in tensors if n.endswith(".qweight")]:
        stem = name.removesuffix("qweight")
        taken = take(tensors, stem, "qweight", "qzeros", "scales")
        if taken is None:
            continue
        qweight, qzeros, scales = taken
        check_dtype(qweight, *_WORDS)
        check_dtype(qzeros, *_WORDS)
        check_dtype(scales, "F16", "BF16", "F32")
        n_cols, n_words = two_dimensions(qweight)
        n_groups = two_dimensions(scales)[0]
        check_shape(scales, (n_groups, n_words * 8))
        check_shape(qzeros, (n_groups, n_words))
        if n_groups < 1 or n_cols % n_groups:
            raise DataError(f"{qweight.path.name}: {name} has {n_cols:,} inputs in {n_groups} groups")
        found[stem + "weight"] = PackedTensor(
            stem + "weight", "AWQ, 4 bits", (n_words * 8, n_cols), (), (qweight, qzeros, scales), AwqWords()
        )
    return found


def gather_rows(tensors: dict[str, StoredTensor], files: Files) -> dict[str, PackedTensor]:
    """Take compressed-tensors' packed weights out of `tensors`; raises DataError."""
    found = {}
    for packed_name in [n for n in tensors if n.endswith(".weight_packed")]:
        name = packed_name.removesuffix("_packed")
        taken = take(tensors, name, "_packed", "_scale", "_shape")
        if taken is None:
            continue
        packed, scale, size = taken
        zeros, order = tensors.pop(name + "_zero_point", None), tensors.pop(name + "_g_idx", None)
        check_dtype(packed, *_WORDS)
        check_dtype(scale, "F16", "BF16", "F32")
        check_dtype(size, "I64", "I32")
        check_shape(size, (2,))
        n_rows, n_cols = (int(n) for n in files.array(size))
        n_words = two_dimensions(packed)[1]
        n_groups = two_dimensions(scale)[1]
        bits = next((b for b in (2, 4, 8) if n_cols > 0 and n_words == -(-n_cols * b // 32)), None)
        if bits is None:
            raise DataError(
                f"{packed.path.name}: {packed_name} has {n_words:,} words for {n_cols:,} columns, expected codes of 2, "
                "4 or 8 bits"
            )
        check_shape(packed, (n_rows, n_words))
        check_shape(scale, (n_rows, n_groups))
        if n_groups < 1 or n_cols % n_groups:
            raise DataError(f"{packed.path.name}: {packed_name} has {n_cols:,} columns in {n_groups} groups")
        held = [scale]
        if zeros:
            check_dtype(zeros, *_WORDS)
            check_shape(zeros, (-(-n_rows * bits // 32), n_groups))
            held.append(zeros)
        if order:
            check_dtype(order, "I32", "I64")
            check_shape(order, (n_cols,))
            held.append(order)
        decoder = RowWords(bits, zeros is not None, order is not None)
        found[name] = PackedTensor(name, f"INT{bits}", (n_rows, n_cols), (packed,), tuple(held), decoder)
    return found
