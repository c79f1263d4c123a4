"""Bounded work: what foreign text makes this process do (templates, schemas), within a time and an amount of memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from jmedlite.base.errors import DataError, JmedliteError

from .protocol import Emit

T = TypeVar("T")
MEMORY = 1 << 30  # bytes more than are taken already


@contextmanager
def limited_memory(extra: int) -> Iterator[None]:
    """Bound the address space while the body runs, where the system can."""
    try:
        import resource

        import psutil

        old = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + extra, old[1]))
    except (ImportError, ValueError, OSError, AttributeError):
        yield
        return
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, old)


def bounded(emit: Emit, what: str, seconds: float, work: Callable[[], T]) -> T:
    """What `work` gives; where it takes longer, this process ends with an error event about `what`."""
    box: list[T | JmedliteError] = []

    def run() -> None:
        try:
            box.append(work())
        except JmedliteError as e:
            box.append(e)
        except MemoryError:
            box.append(DataError(f"{what} needs too much memory"))

    thread = threading.Thread(target=run, daemon=True)
    with limited_memory(MEMORY):
        thread.start()
        thread.join(seconds)
    if thread.is_alive() or not box:
        emit(
            "error",
            code=DataError.exit_code,
            kind=DataError.__name__,
            message=f"{what} ran for over {seconds:g} s",
        )
        os._exit(DataError.exit_code)  # the thread can't be stopped
    if isinstance(box[0], JmedliteError):
        raise box[0]
    return box[0]
