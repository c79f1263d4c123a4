"""Codes of a few bits out of bytes, and groups of columns that share a scale."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jmedlite.base.native import F32, U8


@cache
def _table(bits: int) -> F32:
    """(256, 8 / bits): the codes in each byte, the lowest bits first."""
    shifts = np.arange(0, 8, bits)
    return ((np.arange(256)[:, None] >> shifts) & ((1 << bits) - 1)).astype(np.float32)


def codes(data: U8, bits: int, out: F32) -> None:
    """Codes of `bits` (1 to 8) that stand one after the other, the lowest bit first, in `data` (n_rows, n_bytes), as
    numbers into `out` (n_rows, n); what a row has beyond that is padding."""
    n_rows, n = out.shape
    if bits == 8:
        out[:] = data[:, :n]
    elif 8 % bits:
        single = np.unpackbits(data, axis=1, bitorder="little")[:, : n * bits].reshape(n_rows, n, bits)
        np.matmul(single, (1 << np.arange(bits)).astype(np.float32), out=out)
    else:
        look_up(_table(bits), data, out)


def look_up(table: F32, data: U8, out: F32) -> None:
    """The entries of `table` (256, k) for every byte of `data` (n_rows, n_bytes) into `out` (n_rows, n)."""
    n_rows, n = out.shape
    k = table.shape[1]
    n_bytes = -(-n // k)
    if n == n_bytes * k:
        np.take(table, data[:, :n_bytes], axis=0, out=out.reshape(n_rows, n_bytes, k), mode="clip")
    else:
        out[:] = np.take(table, data[:, :n_bytes], axis=0).reshape(n_rows, -1)[:, :n]


def whole_codes(data: U8, bits: int, n: int) -> NDArray[np.uint8]:
    """The same codes as small whole numbers, (n_rows, n)."""
    found = np.empty((data.shape[0], n), np.float32)
    codes(data, bits, found)
    return found.astype(np.uint8)


def by_groups(operation: np.ufunc, out: F32, values: F32, width: int) -> None:
    """`out` (n_rows, n_cols) ⊕= `values` (n_rows, n_groups), one for every `width` columns; the last group may be
    smaller."""
    n_rows, n_cols = out.shape
    n_groups = values.shape[1]
    if n_groups == 1:
        operation(out, values, out=out)
        return
    whole = n_cols // width
    if n_cols == whole * width:
        shaped = out.reshape(n_rows, whole, width)
        operation(shaped, values[:, :, None], out=shaped)
        return
    for group in range(n_groups):
        at = slice(group * width, (group + 1) * width)
        operation(out[:, at], values[:, group : group + 1], out=out[:, at])


def is_in_order(groups: NDArray[Any], n_groups: int) -> bool:
    """Are the columns' groups those of equal width, one after the other?"""
    width = -(-groups.size // n_groups)
    return bool(np.array_equal(groups, np.arange(groups.size) // width))
