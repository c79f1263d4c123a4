"""Strided tensor: rows that stand in a stored one with others between them, or as its columns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jmedlite.base.native import F32, U8, widen

from .tensors import DTYPE_BYTES, Files, Rows, StoredTensor, stored_bytes

TOGETHER = 64  # columns that are turned at once: one by one, each value would touch a line of the cache of its own


@dataclass(frozen=True)
class StridedTensor:
    """See tensors.Weights. Element (r, c) is number start + r·strides[0] + c·strides[1] of those of `stored`."""

    name: str
    stored: StoredTensor
    shape: tuple[int, int]
    start: int
    strides: tuple[int, int]

    @classmethod
    def transposed(cls, stored: StoredTensor) -> StridedTensor:
        """The transpose of a matrix."""
        n_rows, n_cols = stored.shape
        return cls(stored.name, stored, (n_cols, n_rows), 0, (1, n_cols))

    @property
    def dtype(self) -> str:
        return self.stored.dtype

    @property
    def path(self) -> Path:
        return self.stored.path

    @property
    def paths(self) -> tuple[Path, ...]:
        return self.stored.paths

    @property
    def nbytes(self) -> int:
        return stored_bytes(self.dtype, math.prod(self.shape))

    @property
    def memory(self) -> int:
        return 0

    def open_rows(self, files: Files, n_cols: int) -> Rows:
        return _StridedRows(files, self)


@dataclass(frozen=True)
class _StridedRows:
    """Read are the rows with what stands between them, in one piece, or where they are columns, piece by piece."""

    files: Files
    tensor: StridedTensor

    def nbytes(self, n_rows: int) -> int:
        return stored_bytes(self.tensor.dtype, n_rows * self.tensor.shape[1])

    def read(self, first: int, n_rows: int, out: U8) -> None:
        stored, (of_row, of_column) = self.tensor.stored, self.tensor.strides
        width, n_cols = DTYPE_BYTES[stored.dtype], self.tensor.shape[1]
        element = np.dtype(f"u{width}")
        rows = out.view(element).reshape(n_rows, n_cols)
        start = self.tensor.start + first * of_row
        if of_column <= of_row:
            span = np.empty((n_rows - 1) * of_row + (n_cols - 1) * of_column + 1, element)
            self.files.read(stored, start * width, span.view(np.uint8))
            places = np.lib.stride_tricks.as_strided(span, rows.shape, (of_row * width, of_column * width))
            rows[:] = places
            return
        pieces = np.empty((min(TOGETHER, n_cols), (n_rows - 1) * of_row + 1), element)
        for c in range(0, n_cols, TOGETHER):
            some = pieces[: n_cols - c]
            for k, piece in enumerate(some):
                self.files.read(stored, (start + (c + k) * of_column) * width, piece.view(np.uint8))
            rows[:, c : c + len(some)] = some[:, ::of_row].T

    def decode(self, raw: U8, first: int, out: F32) -> None:
        widen(raw, self.tensor.dtype, out.reshape(-1))
