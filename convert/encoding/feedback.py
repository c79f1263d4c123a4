"""Error feedback: what rounding a column does to the outputs is made good in the columns after it.

GPTQ (arXiv 2210.17323) on ggml's own blocks. With H the second moments of a weight's input, W's rounding costs the
outputs (W - Ŵ) H (W - Ŵ)ᵀ. Column after column is rounded to its block's steps, and what it lost is taken out of the
columns to its right by the upper factor U of the damped inverse, H⁻¹ = UᵀU:

    e_j = (w_j - ŵ_j) / U_jj,    w_k -= e_j U_jk  for k > j

A block's scales are the encoder's, searched when its turn comes, with the importance 1 / U_jj² that an error in a
column then has. Rows are independent, so they are worked on in tiles of a fixed number: BLAS may sum otherwise for
another shape, and the result must not depend on threads or memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray

from jmedlite.base.errors import DataError
from jmedlite.base.native import F32, F64, U8

from .blocks import FORMATS, Blocks, levels, pack, unpack
from .encoders import GGML, Encoder

ROWS = 256  # of a tile
COLUMNS = 32  # rounded one by one before all others are told of it at once
SPAN = 256  # columns whose scales are searched together
LEAST_SHARE = 0.004  # what 16 bits for each of a few thousand correlations may make of an eigenvalue


@dataclass(frozen=True)
class Window:
    """Columns [start, start + n) whose errors are made good in each other: `factor` (n, n) is U, upper triangular."""

    start: int
    factor: F32

    @property
    def end(self) -> int:
        return self.start + len(self.factor)

    @cached_property
    def importance(self) -> F32:
        """(n,): what a squared error in a column costs, once all columns after it have made good what they can."""
        return (1 / np.square(np.diagonal(self.factor))).astype(np.float32)


def make_window(start: int, moments: F32, damping: float) -> Window:
    """The window of input moments H (n, n), symmetric, whose diagonal grows by `damping` times its mean.

    Each diagonal value grows by a share of itself as well, LEAST_SHARE, and by more until H is positive definite: its
    values are kept in 16 bits, and beside an input a thousand times larger than others that rounding is as large as
    they are. Raises DataError where that does not help, since no inputs have such moments.
    """
    from scipy.linalg import lapack

    # with the columns' order turned, the lower Cholesky factor of H turned back is upper: H = R Rᵀ, and U = R⁻¹
    turned = np.array(moments[::-1, ::-1], np.float32, order="F")
    diagonal = np.einsum("ii->i", turned)
    mean = float(diagonal.mean(dtype=np.float64))
    # an input that is always zero costs nothing, whatever becomes of its column
    diagonal += np.float32(damping * mean) if mean > 0 else np.float32(1)
    # scaled to a diagonal of 1, it is far from singular, and float32 does
    scale = np.sqrt(diagonal)
    turned /= scale[:, None] * scale
    share = LEAST_SHARE
    while True:
        diagonal[:] = 1 + share
        lower, failed = lapack.spotrf(turned, lower=1)
        if not failed:
            break
        share *= 4
        if share > 1:
            raise DataError("the second moments are not positive definite; gather them again with `jmedlite moments`")
    inverse, _ = lapack.strtri(lower, lower=1, overwrite_c=1)
    return Window(start, np.triu(inverse[::-1, ::-1] / scale[::-1]))


def can_feed_back(type_: GGMLQuantizationType, n_cols: int) -> bool:
    """Has this format blocks that are known here, and do rows of `n_cols` weights consist of them?"""
    return type_ in FORMATS and n_cols % FORMATS[type_].block == 0


def encode_rows(
    type_: GGMLQuantizationType, rows: F32, windows: Sequence[Window], out: U8, encoder: Encoder = GGML
) -> U8:
    """Encode `rows` (n_rows, n_cols) as `type_` into `out` with error feedback; returns the part written.

    Scales are the `encoder`'s. `windows` cover all columns in order; their bounds are multiples of the type's block.
    `rows` stay as they are.
    """
    n_rows, n_cols = rows.shape
    form = FORMATS[type_]
    found = out[: n_rows * n_cols // form.block * form.nbytes].reshape(n_rows, n_cols // form.block, form.nbytes)
    for at in range(0, n_rows, ROWS):
        _encode_tile(type_, rows[at : at + ROWS].copy(), windows, found[at : at + ROWS], encoder)
    return found.reshape(-1)


def _encode_tile(
    type_: GGMLQuantizationType, tile: F32, windows: Sequence[Window], out: NDArray[np.uint8], encoder: Encoder
) -> None:
    """`tile` is used up."""
    block = FORMATS[type_].block
    for window in windows:
        factor = window.factor
        for start in range(window.start, window.end, SPAN):
            end = min(start + SPAN, window.end)
            a, b = start - window.start, end - window.start
            part = np.ascontiguousarray(tile[:, start:end])
            blocks = _searched(type_, part, window.importance[a:b], encoder)
            lost = _round(blocks, part, np.ascontiguousarray(factor[a:b, a:b]))
            out[:, start // block : end // block] = pack(blocks).reshape(len(tile), -1, out.shape[2])
            if end < window.end:
                tile[:, end : window.end] -= lost.T @ factor[a:b, b:]


def _searched(type_: GGMLQuantizationType, part: F32, importance: F32, encoder: Encoder) -> Blocks:
    """Blocks of `part` (n_rows, n) with the encoder's scales, one row's after the other's."""
    form = FORMATS[type_]
    raw = np.empty(part.size // form.block * form.nbytes, np.uint8)
    return unpack(type_, encoder.encode(type_, part, raw, np.ascontiguousarray(importance)).reshape(-1, form.nbytes))


def _round(blocks: Blocks, part: F32, factor: F32) -> F32:
    """Give `blocks` the codes that error feedback finds for `part` (n_rows, n); returns e (n, n_rows)."""
    form = FORMATS[blocks.type]
    n_rows, n = part.shape
    columns = np.ascontiguousarray(part.T)  # one after the other, so that each is read in one go
    # (n / sub, n_rows): of every sub-block of a row
    steps = np.ascontiguousarray(blocks.steps.reshape(n_rows, -1).T)
    offsets = np.ascontiguousarray(blocks.offsets.reshape(n_rows, -1).T) if form.has_offsets else None
    inverse = np.divide(np.float32(1), steps, out=np.zeros_like(steps), where=steps != 0)
    stored = levels(blocks.type)
    even = bool((np.diff(stored) == 1).all())
    codes, lost = np.empty((n, n_rows), np.uint8), np.empty((n, n_rows), np.float32)
    rounder = _fastest()
    for first in range(0, n, COLUMNS):
        last = min(first + COLUMNS, n)
        rounder(columns, steps, inverse, offsets, stored, even, form.sub, factor, first, last, codes, lost)
        if last < n:
            columns[last:] -= factor[first:last, last:].T @ lost[first:last]
    blocks.codes = np.ascontiguousarray(codes.T).reshape(blocks.codes.shape)
    return lost


@cache
def _fastest() -> Callable[..., None]:
    """`round_columns`, compiled where numba is there: the same bytes in a tenth of the time."""
    try:
        from . import feedback_fast
    except ImportError:
        return round_columns
    return feedback_fast.round_columns


def round_columns(
    columns: F32, steps: F32, inverse: F32, offsets: F32 | None, stored: F32, even: bool, sub: int, factor: F32,
    first: int, last: int, codes: U8, lost: F32,
) -> None:  # fmt: skip
    """Round columns [first, last), each to its sub-blocks' steps, and tell those after it what it lost.

    `columns` (n, n_rows), of which those in the range change; `steps`, their `inverse` (0 where a step is 0) and
    `offsets` (n / sub, n_rows); `stored` (n_codes,) what codes stand for, `even` where that is in steps of 1; `factor`
    (n, n); into `codes` and `lost` (n, n_rows), which is e.
    """
    between = (stored[1:] + stored[:-1]) / 2
    room = np.empty((last - first, columns.shape[1]), np.float32)
    for j in range(first, last):
        s = j // sub
        shifted = columns[j] if offsets is None else columns[j] + offsets[s]
        wanted = shifted * inverse[s]
        if even:
            np.rint(wanted, out=wanted)
            np.clip(wanted, stored[0], stored[-1], out=wanted)
            np.copyto(codes[j], wanted - stored[0], casting="unsafe")
        else:
            np.copyto(codes[j], np.searchsorted(between, wanted), casting="unsafe")
            wanted = stored[codes[j]]
        wanted *= steps[s]
        np.subtract(shifted, wanted, out=lost[j])
        lost[j] /= factor[j, j]
        after = room[: last - j - 1]
        np.multiply(factor[j, j + 1 : last, None], lost[j], out=after)
        columns[j + 1 : last] -= after


def output_error(inputs: F32, exact: F32, rounded: F32) -> float:
    """Σ ((rounded - exact) x)² over input rows x of `inputs` (n, n_cols), for rows (n_rows, n_cols) of a weight."""
    found: F64 = np.square((rounded - exact) @ inputs.T, dtype=np.float64)
    return float(found.sum())
