"""Several processes of this machine, each with the same GGUF file: packs answered at once, given in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, TypeVar

from .base import Loading, LocalModel, Prepared, RawAnswer, Wanted, start_worker

AHEAD = 2  # packs per process that are done or begun while an earlier one is missing
Answers = list[tuple[int, list[RawAnswer]]]
T = TypeVar("T")


class LocalGroup:
    """A GGUF file in `n` child processes; the same answers, to the last bit, as `LocalModel` with the same `loading`.

    `told` hears what the children say while they load.
    """

    def __init__(
        self, path: Path, loading: Loading, n: int, told: Callable[[dict[str, Any]], None] | None = None
    ) -> None:
        # a child ends with the thread that started it (Linux), so all are started by this one; first all together,
        # since Python takes longest, then loaded one by one, so that each sees what memory those before have left
        children = [start_worker() for _ in range(n)]
        self._models: list[LocalModel] = []
        try:
            self._models += [LocalModel(path, loading, told, child) for child in children]
        except BaseException:
            for child in children:
                child.close()
            raise
        self._threads = ThreadPoolExecutor(n, thread_name_prefix="jmedlite")
        self._begun: deque[Future[Answers]] = deque()
        self._idle: SimpleQueue[LocalModel] = SimpleQueue()
        for model in self._models:
            self._idle.put(model)

    def prepare(self, wanted: Wanted) -> Prepared:
        self._forget()
        first, *_ = [_result(f) for f in [self._threads.submit(m.prepare, wanted) for m in self._models]]
        return first

    def run(self, first: int, stop: int) -> Iterator[tuple[int, list[RawAnswer]]]:
        self._forget()
        for pack in range(first, stop):
            if len(self._begun) == AHEAD * len(self._models):
                yield from _result(self._begun.popleft())
            self._begun.append(self._threads.submit(self._answer, pack))
        while self._begun:
            yield from _result(self._begun.popleft())

    def _forget(self) -> None:
        """Wait for what is left of a run that nobody read to its end: a child hears one thread at a time."""
        for future in self._begun:
            if not future.cancel():
                with suppress(Exception):  # it was of that run
                    _result(future)
        self._begun.clear()

    def _answer(self, pack: int) -> Answers:
        model = self._idle.get()
        try:
            return list(model.run(pack, pack + 1))
        finally:
            self._idle.put(model)

    def __enter__(self) -> LocalGroup:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for model in self._models:
            model.child.close()  # which ends what a thread waits for
        self._threads.shutdown(cancel_futures=True)


def _result(future: Future[T]) -> T:
    """What a future gives; a signal gets through meanwhile, on Windows too."""
    while not future.done():
        wait([future], timeout=1)
    return future.result()
