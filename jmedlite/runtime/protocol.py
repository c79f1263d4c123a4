"""The child's side of `child`: a process that reads requests and writes events, one JSON object a line."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from jmedlite.base.errors import JmedliteError

Emit = Callable[..., None]
Requests = Iterator[dict[str, Any]]


def open_events() -> Emit:
    """The way to the parent: a function that writes one event, `emit("token", text="…")`, as a line of JSON.

    Standard output is this process's no longer afterwards, so that nothing native can write between the events.
    """
    events = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    os.dup2(2, 1)

    def emit(event: str, **fields: Any) -> None:
        events.write(json.dumps({"event": event, **fields}, ensure_ascii=False) + "\n")
        events.flush()

    return emit


def protect_process() -> None:
    """No core dumps (the question is in memory); Ctrl-C is the parent's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def die_with_parent() -> None:
    """On Linux the kernel ends this process with the parent; elsewhere the end of standard input does."""
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):
        parent = os.getppid()
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)


def serve(work: Callable[[Requests, Emit], None]) -> None:
    """The life of a child: `work` takes requests as they come, until the parent closes standard input.

    An expected fault ends it with an `error` event.
    """
    protect_process()
    die_with_parent()
    emit = open_events()
    with suppress(BrokenPipeError):
        try:
            work(map(json.loads, sys.stdin.buffer), emit)
        except JmedliteError as e:
            emit("error", code=e.exit_code, message=str(e))
