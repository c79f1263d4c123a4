"""SHA-256 of the base's files, computed beside the pass: every byte comes from the disk once, hashed while cached."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Condition
from types import TracebackType

from jmedlite.base.inputs import opened
from jmedlite.base.progress import Progress, Stage

CHUNK = 1 << 20
AHEAD = 64 << 20


class FollowingHash:
    """Hashes `paths` in a thread of its own, as a context manager; never runs far ahead of what `follow` reported.

    A reader that ran ahead would push a model larger than the memory out of the system's cache before the pass gets
    to it.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._turn = Condition()
        self._allowed, self._cancelled = float(AHEAD), False
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="hash")

    def __enter__(self) -> FollowingHash:
        self._total = sum(path.stat().st_size for path in self._paths)
        self._future = self._pool.submit(self._run)
        return self

    def follow(self, progress: Progress) -> Progress:
        """A Progress for the pass that moves the hashing on, then tells `progress`."""

        def report(stage: Stage, done: int, total: int, what: str) -> None:
            self._allow(self._total * done / max(1, total) + AHEAD)
            progress(stage, done, total, what)

        return report

    def result(self) -> dict[str, str]:
        """SHA-256 by file name; waits for the rest."""
        self._allow(float("inf"))
        return self._future.result()

    def _allow(self, n_bytes: float) -> None:
        with self._turn:
            self._allowed = n_bytes
            self._turn.notify()

    def _run(self) -> dict[str, str]:
        found: dict[str, str] = {}
        done = 0
        for path in self._paths:
            sha256 = hashlib.sha256()
            with opened(path, buffering=0) as file:
                while chunk := file.read(CHUNK):
                    sha256.update(chunk)
                    done += len(chunk)
                    with self._turn:
                        self._turn.wait_for(lambda: self._cancelled or done < self._allowed)  # noqa: B023
                        if self._cancelled:
                            return found
            found[path.name] = sha256.hexdigest()
        return found

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._turn:
            self._cancelled = True
            self._turn.notify()
        self._pool.shutdown()
