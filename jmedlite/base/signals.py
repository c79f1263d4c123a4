"""Signals that end a run: made exceptions in the main thread, so that what was begun is undone; kept back for a moment.

Only the command line calls `catch_ending`; whoever imports jmedlite keeps the handlers that they have. A signal that
ends a process may also have its memory written to the disk: `no_core_dumps` is for the processes that hold a question.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Terminated(SystemExit):
    """Somebody asked this process to end; the exit code is a shell's, 128 and the signal's number.

    A SystemExit, because what runs callbacks (asyncio, click) lets that pass.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.name = signal.Signals(number).name


def catch_ending() -> None:
    """SIGTERM and SIGHUP raise Terminated from now on; a second one ends the process at once."""

    def end(number: int, frame: Any) -> None:
        for each in ENDING:
            signal.signal(each, signal.SIG_DFL)
        raise Terminated(number)

    for number in ENDING:
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup has a run ignore SIGHUP
            signal.signal(number, end)


def no_core_dumps() -> None:
    """No core dump of this process and of those that it starts from now on, neither as a file nor to a program.

    Linux pipes cores to a program (systemd-coredump, apport) whatever the limit is, unless it is 1, which is also too
    small for a file: https://github.com/torvalds/linux/blob/v6.12/fs/coredump.c#L592
    """
    with suppress(ImportError, ValueError, OSError):
        import resource

        limit = 1 if sys.platform == "linux" else 0
        if (hard := resource.getrlimit(resource.RLIMIT_CORE)[1]) != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))


class KeptBack:
    """What came while signals were kept back."""

    def __init__(self) -> None:
        self.came: list[int] = []

    def __bool__(self) -> bool:
        return bool(self.came)


@contextmanager
def kept_back() -> Iterator[KeptBack]:
    """Signals that would end the body wait until it is over. Python hears them in the main thread, so others need
    nothing."""
    kept, before = KeptBack(), {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, *ENDING):
            if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None):
                before[number] = handler
                signal.signal(number, lambda number, frame: kept.came.append(number))
    try:
        yield kept
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in kept.came[:1]:
            signal.raise_signal(number)
