"""Warm children: forked from a process that has imported everything already, instead of each importing it anew.

Tests start over four hundred children, and a third of a second of each is imports. So a test process keeps one process
that has imported what `jmedlite.runtime.start` and the modules it serves import, and which forks a child whenever
`runtime.process` wants one: a process of its own with its own descriptors, environment and folder, as ever. What a real
start does beyond that is tested by tests/runtime/test_start.py (fixture `cold_children`) and by all commands that run
as a process. Linux only: it alone has descriptors that tell of a process's end (pidfd).

A command can be forked too (`run_command`), or run with warm children in a process that is started (`command`).
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, cast

from jmedlite.base.lean import import_leanly
from jmedlite.base.libraries import libllama
from jmedlite.runtime import process
from jmedlite.runtime.process import DEFAULTS, child_command

ABLE = sys.platform == "linux" and hasattr(os, "pidfd_open")
ROOT = Path(__file__).parents[2]
MESSAGE = 1 << 20  # bytes; an environment is far smaller
COMMAND = [sys.executable, "-m", "jmedlite"]
SERVED = (
    "benchmarks.backends.local_worker", "benchmarks.run.costs", "benchmarks.run.distance_worker", "calibration.worker",
    "runtime.serving_worker", "runtime.type_probe_worker", "runtime.worker",
)  # fmt: skip


class WarmChild:
    """What `runtime.process` uses of a `subprocess.Popen`, for a process that `serve` has forked."""

    def __init__(self, server: socket.socket, module: str, stderr: IO[bytes], env: dict[str, str]) -> None:
        (in_read, in_write), (out_read, out_write) = os.pipe(), os.pipe()
        request = {"module": module, "environment": env, "folder": str(Path.cwd())}
        self.pid, self._status = _forked(server, request, [in_read, out_write, stderr.fileno()])
        os.close(in_read)
        os.close(out_write)
        self.stdin, self.stdout = os.fdopen(in_write, "wb"), os.fdopen(out_read, "rb")
        self.returncode: int | None = None
        self._one_at_a_time = threading.Lock()  # several threads may wait for its end

    def poll(self) -> int | None:
        with self._one_at_a_time:
            if self.returncode is not None:
                return self.returncode
            with selectors.DefaultSelector() as selector:
                selector.register(self._status, selectors.EVENT_READ)
                if not selector.select(0):
                    return None
        return self.wait()

    def wait(self) -> int:
        with self._one_at_a_time:
            if self.returncode is None:
                self.returncode = int(os.read(self._status, 32))
                os.close(self._status)
            return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it ended since
                os.kill(self.pid, signal.SIGKILL)


def _forked(server: socket.socket, request: dict[str, Any], streams: Sequence[int]) -> tuple[int, int]:
    """Have a process forked: its pid, and a descriptor that its exit code can be read from."""
    told, status = os.pipe()
    socket.send_fds(server, [json.dumps(request).encode()], [*streams, status])
    os.close(status)
    return int(server.recv(32)), told


class Starter:
    """Stands in for the module `subprocess` in `runtime.process`; `server` is the channel to one that forks already."""

    PIPE = subprocess.PIPE

    def __init__(self, server: socket.socket | None = None) -> None:
        self._server = server
        self._one_at_a_time = threading.Lock()
        self._cold, self._prefix = subprocess.Popen, child_command("")[:-1]

    def Popen(self, command: list[str], **options: Any) -> Any:
        if subprocess.Popen is not self._cold or command[:-1] != self._prefix:  # a test has its own, or another program
            return subprocess.Popen(command, **options)
        with self._one_at_a_time:
            return WarmChild(self._start(), command[-1], options["stderr"], options["env"])

    def run(
        self, arguments: Sequence[str], env: dict[str, str], folder: Path, timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """`jmedlite ARGUMENTS` in a process that is forked, its children too, with nothing on standard input."""
        command = [*COMMAND, *arguments]
        with (
            Path(os.devnull).open("rb") as stdin,
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
            selectors.DefaultSelector() as selector,
        ):
            request = {"module": COMMAND[-1], "arguments": list(arguments), "environment": env, "folder": str(folder)}
            with self._one_at_a_time:
                pid, told = _forked(self._start(), request, [stdin.fileno(), out.fileno(), err.fileno()])
            selector.register(told, selectors.EVENT_READ)
            if not selector.select(timeout):
                os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(command, timeout)
            code = int(os.read(told, 32))
            os.close(told)
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(command, code, out.read().decode(), err.read().decode())

    def _start(self) -> socket.socket:
        if self._server is None:
            self._server, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            environment = {**DEFAULTS, **os.environ, "GGML_NO_BACKTRACE": "1", "PYTHONUTF8": "1"}
            command = [sys.executable, "-m", "tests.support.warm", str(its.fileno())]
            self._cold(command, pass_fds=[its.fileno()], env=environment, cwd=ROOT, stdout=subprocess.DEVNULL)
            its.close()
        return self._server


def run_command(
    arguments: Sequence[str], env: dict[str, str], folder: Path, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """`jmedlite ARGUMENTS` in a process of its own, with an environment of its own."""
    starter = process.subprocess
    if isinstance(starter, Starter):
        return starter.run(arguments, env, folder, timeout)
    return subprocess.run(
        [*COMMAND, *arguments], env=env, cwd=folder, capture_output=True, text=True, timeout=timeout, check=False
    )


def command() -> list[str]:
    """What starts `jmedlite` in a process that forks its children."""
    if not ABLE:
        return COMMAND
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.support.warm import main; main()"
    return [sys.executable, "-c", code]


def main() -> None:
    """The command line, with warm children."""
    from jmedlite.cli.app import main as jmedlite

    process.subprocess = Starter()  # type: ignore[assignment]
    jmedlite()


def serve(channel: socket.socket) -> None:
    """The process that forks, until nobody is left who could ask and all that it forked have ended."""
    import_leanly()
    libllama()

    for module in SERVED:
        __import__(f"jmedlite.{module}")
    statuses: dict[int, tuple[int, int]] = {}  # by a child's descriptor: its pid, and where its end is told
    with selectors.DefaultSelector() as selector:
        selector.register(channel, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                if key.fd in statuses:
                    selector.unregister(key.fd)
                    pid, status = statuses.pop(key.fd)
                    _, code = os.waitpid(pid, 0)
                    with contextlib.suppress(BrokenPipeError):  # nobody waits for it any more
                        os.write(status, str(os.waitstatus_to_exitcode(code)).encode())
                    os.close(status)
                    os.close(key.fd)
                    continue
                asking = cast(socket.socket, key.fileobj)
                message, descriptors, _, _ = socket.recv_fds(asking, MESSAGE, 4)
                if not message:
                    selector.unregister(asking)
                    asking.close()
                    continue
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                pid = os.fork()
                if not pid:
                    others = [k.fileobj for k in selector.get_map().values() if isinstance(k.fileobj, socket.socket)]
                    selector.close()
                    for other in (*others, ours):
                        other.close()
                    for other, (_, status) in statuses.items():
                        os.close(other)
                        os.close(status)
                    os.close(descriptors.pop())
                    _become(json.loads(message), descriptors, theirs)
                theirs.close()
                selector.register(ours, selectors.EVENT_READ)
                ended = os.pidfd_open(pid)
                statuses[ended] = pid, descriptors.pop()
                selector.register(ended, selectors.EVENT_READ)
                for descriptor in descriptors:
                    os.close(descriptor)
                asking.send(str(pid).encode())


def _become(request: dict[str, Any], descriptors: Sequence[int], server: socket.socket) -> None:
    """The child: its own descriptors, environment and folder, then the module."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    if "arguments" in request:
        process.subprocess = Starter(server)  # type: ignore[assignment]
        sys.argv[1:] = request["arguments"]
        for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep):  # as a start does
            if folder and (custom := Path(folder, "sitecustomize.py")).is_file():
                runpy.run_path(str(custom))
    else:
        server.close()
    code = _exit_code(lambda: runpy.run_module(request["module"], run_name="__main__", alter_sys=True))
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _exit_code(run: Callable[[], object]) -> int:
    try:
        run()
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:  # as the interpreter does
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
