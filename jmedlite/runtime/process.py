"""A child process that holds llama.cpp for us: requests in, events out, one JSON object a line."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from jmedlite.base.errors import BY_EXIT_CODE, JmedliteError, NativeError


class Child:
    """`python -m MODULE`, which writes events to standard output; use it as a context manager.

    A fault inside llama.cpp ends the child, not this process: `events` then raises NativeError with its last words.
    `advice` is what to do where memory ran out.
    """

    def __init__(self, module: str, advice: str) -> None:
        self.advice = advice
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            # ggml starts a debugger on an abort unless told not to
            env={**os.environ, "GGML_NO_BACKTRACE": "1", "PYTHONUTF8": "1"},
        )

    def events(self, request: dict[str, Any], last: str) -> Iterator[dict[str, Any]]:
        """Send a request and yield its events up to the one called `last`; an error event is raised."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(OSError):  # where the child is gone, the end of its events says so
            self.process.stdin.write(json.dumps(request, ensure_ascii=False).encode("utf-8") + b"\n")
            self.process.stdin.flush()
        for line in self.process.stdout:
            if not line.endswith(b"\n"):
                break
            event: dict[str, Any] = json.loads(line)
            if event["event"] == "error":
                raise BY_EXIT_CODE.get(event["code"], JmedliteError)(event["message"])
            yield event
            if event["event"] == last:
                return
        raise self._death()

    def ask(self, request: dict[str, Any], last: str) -> dict[str, Any]:
        """The last event of a request."""
        return list(self.events(request, last))[-1]

    def _death(self) -> NativeError:
        """Why the child is gone, in a sentence."""
        status = self.process.wait()
        if status == -getattr(signal, "SIGKILL", 9):
            return NativeError(
                f"the process that runs the model was killed, most likely because memory ran out; {self.advice}"
            )
        self._stderr.seek(0)
        lines = self._stderr.read()[-4096:].decode("utf-8", "replace").strip().splitlines()
        why = (lines or ["it gave no reason"])[-1].strip()
        return NativeError(f"llama.cpp ended unexpectedly (status {status}: {why}); is the file damaged?")

    def close(self) -> None:
        """End the child, whatever it is doing."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        self._stderr.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
