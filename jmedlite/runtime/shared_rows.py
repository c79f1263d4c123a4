"""Rows of logits shared among threads: numpy lets others run while it computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class SharedRows(Generic[T]):
    """Threads, as many as there are `rooms`: what each of them has for its arithmetic."""

    def __init__(self, rooms: Sequence[T]) -> None:
        self._rooms = list(rooms)
        self._pool = ThreadPoolExecutor(len(self._rooms))

    def each(self, function: Callable[..., Any], *columns: Sequence[Any]) -> list[Any]:
        """`function(room, *arguments)` for every row of `columns`, in order; raises what it raises."""
        rows = list(zip(*columns, strict=True))
        found: list[Any] = [None] * len(rows)
        n = min(len(self._rooms), len(rows))

        def work(k: int) -> None:
            for i in range(k, len(rows), n):
                found[i] = function(self._rooms[k], *rows[i])

        for _ in self._pool.map(work, range(n)) if n > 1 else map(work, range(n)):
            pass  # raises what a thread raised
        return found
