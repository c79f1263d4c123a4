"""Bounded work: what foreign text makes this process do (templates, schemas), within a time and an amount of memory."""

from __future__ import annotations

import faulthandler
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from jmedlite.base.errors import DataError, JmedliteError, as_expected

from .protocol import Emit

T = TypeVar("T")
MEMORY = 1 << 30  # bytes more than are taken already
_ONE_AT_A_TIME = threading.Lock()  # there is one clock


@contextmanager
def limited_memory(extra: int | None) -> Iterator[None]:
    """Bound the address space while the body runs, where the system can; None: don't."""
    if extra is None:
        yield
        return
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


def bounded(emit: Emit, what: str, seconds: float, work: Callable[[], T], memory: int | None = MEMORY) -> T:
    """What `work` gives; where it takes longer, this process ends, and the parent tells what the event announced.

    The clock is a thread of C, for one call into C can keep the interpreter's lock for hours, and every thread of
    Python with it. It has no way to write an event, so that comes first.
    """
    with _ONE_AT_A_TIME:
        emit("bounded", message=f"{what} ran for over {seconds:g} s")
        faulthandler.dump_traceback_later(seconds, exit=True)
        try:
            with limited_memory(memory):
                return work()
        except MemoryError:
            raise DataError(f"{what} needs too much memory") from None
        except JmedliteError:
            raise
        except Exception as e:  # whatever it is, it must be said what was worked on
            fault = as_expected(e)
            raise type(fault)(f"{what}: {fault}") from e
        finally:
            faulthandler.cancel_dump_traceback_later()
