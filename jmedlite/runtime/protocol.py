"""Child process, the child's side: requests in, events out, one JSON object a line, by a table of operations.

A request is `{"op": …, "id": N, …}`, an event `{"event": …, …}`; `{"op": "stop", "id": N}` ends request N early where
its operation looks at `stop`. Requests are read in a thread of their own, so that a stop is heard while one is worked
on, and the process ends with its parent. The parent's side is process.py.
"""

from __future__ import annotations

import ctypes
import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from jmedlite.base.errors import Interrupted, as_expected
from jmedlite.base.signals import no_core_dumps

T = TypeVar("T")
Request = dict[str, Any]
Emit = Callable[..., None]  # emit("token", text="…") writes one event


class Stopped(Exception):
    """The person wants no more of this answer."""


def serve(
    load: Callable[[Request, Emit, threading.Event], T],
    operations: Mapping[str, Callable[[T, Request, Emit], None]] | None = None,
) -> None:
    """The life of a child: `load` takes the first request, and every later one goes to the operation that it names.

    What `load` returns is handed to the operations. A fault becomes an `error` event; one of `load` also ends
    the process, as the end of standard input does.
    """
    protect_process()
    emit = open_events()
    requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
    stop = threading.Event()
    threading.Thread(target=_listen, args=(requests, stop), daemon=True).start()
    with suppress(BrokenPipeError):
        first = requests.get()
        if first["main_thread"]:  # the kernel's signal follows the thread that started this process
            die_with_parent()
        with _Faults(emit) as loading:
            held = load(first, emit, stop)
        while not loading.failed:
            request = requests.get()
            with _Faults(emit):
                (operations or {})[request["op"]](held, request, emit)


def serve_together(
    load: Callable[[Request, Emit], T],
    operations: Mapping[str, Callable[[T, Request, Emit, threading.Event], None]],
    work: Callable[[T], None],
) -> None:
    """The life of a child that works on several requests at once, each in a thread of its own.

    As `serve`, but every event of a request has its `id`, and any request may be stopped; `work` is what the main
    thread does, for ever.
    """
    protect_process()
    emit = open_events()
    requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
    stops: dict[int, threading.Event] = {}
    threading.Thread(target=_listen_together, args=(requests, stops), daemon=True).start()
    first = requests.get()
    if first["main_thread"]:
        die_with_parent()
    with _Faults(emit) as loading:
        held = load(first, emit)
    if loading.failed:
        return

    def answer(request: Request, emit_own: Emit) -> None:
        with suppress(BrokenPipeError), _Faults(emit_own):
            operations[request["op"]](held, request, emit_own, stops[request["id"]])
        stops.pop(request["id"], None)

    def begin_all() -> None:
        while True:
            request = requests.get()
            emit_own = partial(emit, id=request["id"])
            with suppress(BrokenPipeError), _Faults(emit_own):  # the system may have no more threads to give
                threading.Thread(target=answer, args=(request, emit_own), daemon=True).start()

    threading.Thread(target=begin_all, daemon=True).start()
    work(held)


def _listen_together(requests: queue.SimpleQueue[Request], stops: dict[int, threading.Event]) -> None:
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if request["op"] != "stop":
            stops[request["id"]] = threading.Event()
            requests.put(request)
        elif stop := stops.get(request["id"]):
            stop.set()
    os._exit(0)


class _Faults:
    """Faults of the body become `error` events, those that nobody expected as well."""

    def __init__(self, emit: Emit) -> None:
        self.emit, self.failed = emit, False

    def __enter__(self) -> _Faults:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if error is None or isinstance(error, BrokenPipeError | SystemExit):
            return False
        fault = Interrupted("stopped") if isinstance(error, Stopped) else as_expected(error)
        self.failed = True
        # a traceback may hold what a person asked, so nobody else writes one
        told = "".join(traceback.format_exception(error)) if os.environ.get("JMEDLITE_DEBUG") else ""
        self.emit("error", code=fault.exit_code, kind=type(fault).__name__, message=str(fault), trace=told)
        return True


def _listen(requests: queue.SimpleQueue[Request], stop: threading.Event) -> None:
    """Read requests as they come; the parent's end is this process's."""
    current = None
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if request["op"] != "stop":
            stop.clear()  # the parent sends no request before it has the last event of the one before
            current = request["id"]
            requests.put(request)
        elif request["id"] == current:
            stop.set()
    os._exit(0)


def open_events() -> Emit:
    """The way to the parent: a function that writes one event, `emit("token", text="…")`, as a line of JSON.

    Standard output is this process's no longer afterwards, so that nothing native can write between the events.
    """
    events = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    os.dup2(2, 1)
    one_at_a_time = threading.Lock()

    def emit(event: str, **fields: Any) -> None:
        line = json.dumps({"event": event, **fields}, ensure_ascii=False) + "\n"
        with one_at_a_time:
            events.write(line)
            events.flush()

    return emit


def protect_process() -> None:
    """No core dumps (the question is in memory); Ctrl-C and a closed terminal, which everybody hears of, are the
    parent's business."""
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    no_core_dumps()


def die_with_parent() -> None:
    """On Linux the kernel ends this process with the parent; elsewhere the end of standard input does."""
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):
        parent = os.getppid()
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)
