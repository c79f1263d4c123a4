"""Error feedback, compiled by numba: feedback.round_columns step by step the same, so its bytes are the same."""

from __future__ import annotations

from typing import Any

import numpy as np

from jmedlite.base.native import F32, U8

from .fast import compiled


def _round_columns(
    columns: Any, steps: Any, inverse: Any, offsets: Any, stored: Any, between: Any, factor: Any, ends: Any,
    codes: Any, lost: Any,
) -> None:  # fmt: skip
    sub, first, last, n_rows = ends[0], ends[1], ends[2], columns.shape[1]
    low, high, even, shifts = stored[0], stored[-1], between.size == 0, offsets.size > 0
    for j in range(first, last):
        s, own = j // sub, factor[j, j]
        if even:
            for r in range(n_rows):
                shifted = columns[j, r] + offsets[s, r] if shifts else columns[j, r]
                wanted = min(max(np.rint(shifted * inverse[s, r]), low), high)
                codes[j, r] = np.uint8(np.int32(wanted - low))
                lost[j, r] = (shifted - wanted * steps[s, r]) / own
        else:
            for r in range(n_rows):
                shifted = columns[j, r] + offsets[s, r] if shifts else columns[j, r]
                v, code = shifted * inverse[s, r], 0
                for k in range(between.size):
                    code += between[k] < v
                codes[j, r] = np.uint8(code)
                lost[j, r] = (shifted - stored[code] * steps[s, r]) / own
        for k in range(j + 1, last):
            share = factor[j, k]
            for r in range(n_rows):
                columns[k, r] -= share * lost[j, r]


_NONE, _TABLE, _ONE = np.zeros(0, np.float32), np.zeros((0, 0), np.float32), np.ones(1, np.float32)
_compiled = compiled(
    _round_columns, _TABLE, _TABLE, _TABLE, _TABLE, _ONE, _NONE, _TABLE, np.array([1, 0, 0]),
    np.zeros((0, 0), np.uint8), _TABLE,
)  # fmt: skip


def round_columns(
    columns: F32, steps: F32, inverse: F32, offsets: F32 | None, stored: F32, even: bool, sub: int, factor: F32,
    first: int, last: int, codes: U8, lost: F32,
) -> None:  # fmt: skip
    """As feedback.round_columns."""
    between = _NONE if even else (stored[1:] + stored[:-1]) / 2
    shift = _TABLE if offsets is None else offsets
    ends = np.array([sub, first, last])
    _compiled(columns, steps, inverse, shift, stored, between, factor, ends, codes, lost)
