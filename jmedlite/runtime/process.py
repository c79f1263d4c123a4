"""Child process, the parent's side: llama.cpp in a process of its own, requests in, events out (protocol.py)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any

from jmedlite.base.errors import BY_EXIT_CODE, BY_NAME, DataError, IoFault, JmedliteError, NativeError, shortened
from jmedlite.base.outputs import temporary_file

from .hardware import has_amx

OUT_OF_TIME = "Timeout ("  # how faulthandler begins what it writes where time ran out (bounded.py)
ILLEGAL_INSTRUCTION = (-4, 0xC000001D)  # SIGILL; Windows' STATUS_ILLEGAL_INSTRUCTION

DEFAULTS = {  # of a child's environment, where the person's own says nothing
    # numpy's BLAS starts a thread per core unless told not to, which is half of the time that a child takes to start
    "OPENBLAS_NUM_THREADS": "1",
    # ggml's threads wait for each other after every operation. GNU's OpenMP spins for 300,000 rounds then, about 15 ms,
    # before it gives the processor back: beside another program a token of a tiny model took half a second, one of a
    # 135M a second. 20,000 rounds, a millisecond, are 0.99 of its tokens per second where nothing else runs (0.5B, two
    # threads); 1,000 are better beside two busy programs (34 tokens/s of a 135M, not 4), but 0.91 of them alone.
    "GOMP_SPINCOUNT": "20000",
}


def child_command(module: str) -> list[str]:
    """The command that runs a module of ours in a process of its own, llama.cpp's library loaded first."""
    return [sys.executable, "-P", "-m", "jmedlite.runtime.start", module]


class Child:
    """`python -m MODULE`, which serves requests by `protocol.serve`; use it as a context manager.

    A fault inside llama.cpp ends the child, not this process: `events` then raises NativeError with its last words.
    `advice` is what to do where memory ran out.
    """

    def __init__(self, module: str, advice: str) -> None:
        self.advice = advice
        self._stderr = temporary_file()
        try:
            self.process = subprocess.Popen(
                child_command(module),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                # ggml starts a debugger on an abort unless told not to
                env={**DEFAULTS, **os.environ, "GGML_NO_BACKTRACE": "1", "PYTHONUTF8": "1"},
            )
        except OSError as e:
            self._stderr.close()
            raise IoFault(
                f"no process for llama.cpp could be started ({e.strerror or e}); are too many files open "
                "(`ulimit -n`), or too many processes running?"
            ) from None
        self._started_by_main_thread = threading.current_thread() is threading.main_thread()
        self._last_id, self._last = 0, ""
        self._bound = ""  # what to say where the child runs out of time
        self._busy = self._sending = self._stop_wanted = False

    def events(self, request: dict[str, Any], last: str) -> Generator[dict[str, Any], None, None]:
        """Send a request and yield its events up to the one called `last`; an error event is raised.

        A request whose events nobody reads to their end is stopped.
        """
        while self._busy:  # what is left of a request that nobody read to its end
            self._next()
        self._last_id, self._last = self._last_id + 1, last
        self._stop_wanted, self._sending = False, True
        self._send({"op": "load", "main_thread": self._started_by_main_thread, **request, "id": self._last_id})
        self._sending, self._busy = False, True
        if self._stop_wanted:
            self.stop()
        try:
            while self._busy:
                event = self._next()
                if event["event"] == "error":
                    kind = BY_NAME.get(event["kind"]) or BY_EXIT_CODE.get(event["code"]) or JmedliteError
                    fault = kind(event["message"])
                    if event.get("trace"):
                        fault.add_note(event["trace"])
                    raise fault
                yield event
        finally:
            self.stop()

    def ask(self, request: dict[str, Any], last: str) -> dict[str, Any]:
        """The last event of a request."""
        return list(self.events(request, last))[-1]

    def stop(self) -> None:
        """End the request that is being worked on early, where its operation can.

        May be called in a signal handler, or in another thread than the one that reads the events.
        """
        self._stop_wanted = True
        assert self.process.stdin is not None
        if self._busy and not self._sending:
            with contextlib.suppress(OSError, ValueError):  # not through the buffer: a signal may have come inside it
                os.write(self.process.stdin.fileno(), b'{"op":"stop","id":%d}\n' % self._last_id)

    def _next(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.endswith(b"\n"):
            raise self._death()
        event: dict[str, Any] = json.loads(line)
        if event["event"] == "bounded":
            self._bound = event["message"]
            return self._next()
        self._busy = event["event"] not in ("error", self._last)
        return event

    def _send(self, request: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request, ensure_ascii=False).encode("utf-8") + b"\n")
            self.process.stdin.flush()
        except (OSError, ValueError):
            raise self._death() from None

    def _death(self) -> JmedliteError:
        """Why the child is gone, in a sentence."""
        self._busy = False
        status = self.process.wait()
        if status == -getattr(signal, "SIGKILL", 9):
            return NativeError(
                f"the process that runs the model was killed, most likely because memory ran out; {self.advice}"
            )
        if status in ILLEGAL_INSTRUCTION:
            if has_amx():
                return NativeError(
                    "llama.cpp met an illegal instruction: llama-cpp-python was built for another processor, or by a "
                    "GCC that gets this one's AMX wrong (12.2 does); build it here without AMX: "
                    "CMAKE_ARGS=-DGGML_NATIVE=OFF pip install --force-reinstall --no-deps --no-cache-dir "
                    "llama-cpp-python"
                )
            return NativeError(
                "llama.cpp met an instruction that this processor does not have: llama-cpp-python was built for "
                "another one; build it here: pip install --force-reinstall --no-deps --no-cache-dir llama-cpp-python"
            )
        lines = []
        if not self._stderr.closed:
            self._stderr.seek(0)
            lines = self._stderr.read()[-(1 << 18) :].decode("utf-8", "replace").strip().splitlines()
        if self._bound and any(line.startswith(OUT_OF_TIME) for line in lines):
            return DataError(self._bound)
        if any("memory allocation of" in line for line in lines):  # how llguidance ends beyond bounded.MEMORY
            return DataError(
                "the JSON schema can't be used: its grammar takes more than 1 GB of memory; make it simpler"
            )
        why = shortened(lines[-1].strip().removeprefix("jmedlite: ")) if lines else "it gave no reason"
        return NativeError(f"llama.cpp ended unexpectedly (status {status}: {why}); is the file damaged?")

    def close(self) -> None:
        """End the child, whatever it is doing."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self._stderr):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SharedChild(Child):
    """A child that works on several requests at once (protocol.serve_together): `submit` them after the first.

    Where it dies, everybody who waits gets an `error` event with the reason, and `dead` is set.
    """

    _closing = False

    def listen(self) -> None:
        """From now on, events are read by a thread and handed to whom they are for."""
        self._wanted: dict[int, Callable[[dict[str, Any]], None]] = {}
        self._lock = threading.Lock()
        self.dead: JmedliteError | None = None
        threading.Thread(target=self._dispatch, daemon=True).start()

    def close(self) -> None:
        self._closing = True
        super().close()

    def submit(self, request: dict[str, Any], on_event: Callable[[dict[str, Any]], None], last: str) -> int:
        """Send a request; `on_event` gets its events, in another thread, up to `last` or `error`. The request's id."""
        with self._lock:
            if self.dead is not None:
                raise self.dead
            self._last_id += 1
            request_id, self._last = self._last_id, last
            self._wanted[request_id] = on_event
            self._send({**request, "id": request_id})
        return request_id

    def cancel(self, request_id: int) -> None:
        """End a request early, if it has not ended."""
        with self._lock, contextlib.suppress(JmedliteError):
            if request_id in self._wanted and self.dead is None:
                self._send({"op": "stop", "id": request_id})

    def _dispatch(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if not line.endswith(b"\n"):
                break
            event: dict[str, Any] = json.loads(line)
            if event["event"] == "bounded":
                self._bound = event["message"]
                continue
            with self._lock:
                ended = event["event"] in ("error", self._last)
                on_event = self._wanted.pop(event["id"], None) if ended else self._wanted.get(event["id"])
            if on_event is not None:
                on_event(event)
        with self._lock:
            self.dead = fault = NativeError("the model was closed") if self._closing else self._death()
            waiting, self._wanted = list(self._wanted.values()), {}
        for on_event in waiting:
            on_event({"event": "error", "kind": type(fault).__name__, "code": fault.exit_code, "message": str(fault)})
