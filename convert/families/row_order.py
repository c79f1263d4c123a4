"""Row order: where llama.cpp keeps the rows of a matrix in another order than the checkpoint does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from jmedlite.base.native import F32


class Order(Protocol):
    """How rows, or columns, move; adapters' and biases' rows move with their weight's."""

    @property
    def head_dim(self) -> int:
        """Rows that stay together."""
        ...

    def runs(self, n_rows: int, start: int, count: int) -> Iterator[tuple[int, int]]:
        """(first row, number) in the checkpoint, in the order in which GGUF rows [start, start + count) need them.

        `start` and `count` are multiples of `head_dim`; within a run, `arrange` puts the rows in order.
        """
        ...

    def arrange(self, rows: F32) -> F32:
        """Rows (n, cols) of whole heads, as `runs` gave them, in GGUF's order."""
        ...

    def reorder(self, rows: F32) -> F32:
        """A whole matrix (n, cols) from the checkpoint's order to GGUF's."""
        ...


@dataclass(frozen=True)
class RowOrder:
    """See Order. Rows move in chunks of `head_dim`, one head's.

    `parts` > 1: the checkpoint has the parts (query, key, value) of each head together, head after head; GGUF has all
    heads of one part after the other (GPT-NeoX). `interleave`: Hugging Face rotates row i of a head with row
    i + head_dim/2, llama.cpp's `llama` graphs row 2i with row 2i + 1.
    """

    head_dim: int
    parts: int = 1
    interleave: bool = False

    def runs(self, n_rows: int, start: int, count: int) -> Iterator[tuple[int, int]]:
        """See Order."""
        if self.parts == 1:
            yield start, count
            return
        n_heads = n_rows // (self.head_dim * self.parts)
        for chunk in range(start // self.head_dim, (start + count) // self.head_dim):
            part, head = divmod(chunk, n_heads)
            yield (head * self.parts + part) * self.head_dim, self.head_dim

    def arrange(self, rows: F32) -> F32:
        """See Order."""
        if not self.interleave:
            return rows
        n, cols = rows.shape
        halves = rows.reshape(n // self.head_dim, 2, self.head_dim // 2, cols)
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(n, cols)

    def reorder(self, rows: F32) -> F32:
        """See Order."""
        taken = [rows[first : first + n] for first, n in self.runs(rows.shape[0], 0, rows.shape[0])]
        return self.arrange(np.concatenate(taken) if len(taken) > 1 else taken[0])


@dataclass(frozen=True)
class TiledHeads:
    """See Order. Value heads that share a key head stand together in the checkpoint; in GGUF the first of every key
    head comes first, then all second ones, as ggml repeats keys (Qwen3.5's linear attention).

    `n_groups` key heads have `per_group` value heads of `head_dim` rows each; `offset` rows before them stay.
    """

    head_dim: int
    n_groups: int
    per_group: int
    offset: int = 0

    def runs(self, n_rows: int, start: int, count: int) -> Iterator[tuple[int, int]]:
        """See Order."""
        end = start + count
        if start < self.offset:
            yield start, min(end, self.offset) - start
        for row in range(max(start, self.offset), end, self.head_dim):
            turn, group = divmod((row - self.offset) // self.head_dim, self.n_groups)
            yield self.offset + (group * self.per_group + turn) * self.head_dim, self.head_dim

    def arrange(self, rows: F32) -> F32:
        """See Order."""
        return rows

    def reorder(self, rows: F32) -> F32:
        """See Order."""
        return rows[self.places(rows.shape[0])]

    def places(self, n: int) -> NDArray[np.intp]:
        """By GGUF's index the checkpoint's."""
        return np.concatenate([np.arange(first, first + count) for first, count in self.runs(n, 0, n)])
