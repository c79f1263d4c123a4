"""The server under its load: a full queue, readers that are slow or gone, connections that say nothing, its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from jmedlite.cli.serve import open_page
from jmedlite.runtime.shared_runner import SharedRunner
from jmedlite.serve import app as app_module
from jmedlite.serve import run as run_module
from tests.support.serving import FakeRunner, listening
from tests.support.warm import COMMAND

SECONDS = 30.0
LONG = {"messages": [{"role": "user", "content": "long"}], "max_tokens": 3000}
SHORT = {"messages": [{"role": "user", "content": "short"}], "max_tokens": 5}


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def asked(address: str, body: dict[str, Any], path: str = "/v1/chat/completions") -> Iterator[socket.socket]:
    """A connection that has sent a request, and has read nothing of the answer."""
    parts = urlsplit(address)
    raw = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\nContent-Type: application/json\r\n"
    with closing(socket.create_connection((parts.hostname, parts.port), SECONDS)) as found:
        found.sendall(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
        yield found


def all_of(connection: socket.socket) -> str:
    return b"".join(iter(lambda: connection.recv(1 << 16), b"")).decode()


def post(address: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{address}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def test_a_full_queue_says_so_and_empties() -> None:
    runner = FakeRunner(lanes=1)
    runner.go_on.clear()
    with listening(runner, queue=1) as address, asked(address, SHORT), asked(address, SHORT):
        until(lambda: len(runner.requests) == 2)
        with asked(address, SHORT) as third:
            answer = all_of(third)
        assert answer.startswith("HTTP/1.1 503 ")
        assert "retry-after: 5" in answer.lower()
        assert "too many questions wait" in answer
        assert len(runner.requests) == 2
        runner.go_on.set()
        until(lambda: post_or_none(address))


@pytest.mark.parametrize("stream", [False, True])
def test_who_is_gone_has_no_place(stream: bool) -> None:
    """Before the answer begins, too, whether it streams or not."""
    runner = FakeRunner(lanes=1)
    runner.go_on.clear()
    with listening(runner, queue=0) as address:
        with asked(address, {**SHORT, "stream": stream}):
            until(lambda: runner.requests)
        until(lambda: runner.n_stopped)
        runner.go_on.set()
        until(lambda: post_or_none(address))


def post_or_none(address: str) -> dict[str, Any] | None:
    try:
        return post(address, SHORT)
    except urllib.error.HTTPError as e:
        assert e.code == 503
        return None


def test_readers_that_vanish_or_read_nothing_hold_nobody_up(served: SharedRunner) -> None:
    """A model with two lanes: one answer is read by nobody, one loses its reader; who asks then is answered."""
    with listening(served, queue=1) as address, asked(address, {**LONG, "stream": True}):
        with asked(address, {**LONG, "stream": True}) as vanishing:
            vanishing.recv(4096)
        began = time.monotonic()
        found = post(address, SHORT)
        assert found["usage"]["completion_tokens"] == 5
        assert time.monotonic() - began < SECONDS / 2
    until(lambda: post_free(served))


def post_free(served: SharedRunner) -> bool:
    """Whether the model answers somebody else's server again, so that no lane is kept by those who are gone."""
    with listening(served, queue=0) as address:
        return bool(post_or_none(address))


def test_a_question_counts_until_the_model_is_done_with_it() -> None:
    """Not until its answer is read: who reads nothing would keep a place of the queue."""
    big = [{"event": "token", "text": "x" * 100_000}] * 200
    runner = FakeRunner(*big, {"event": "end", "stop": "eos", "n_prompt": 1, "n_generated": 1, "n_cached": 0}, lanes=1)
    with listening(runner, queue=0) as address, asked(address, {**SHORT, "stream": True}):
        until(lambda: runner.requests)
        until(lambda: post_or_none(address))


def test_who_says_nothing_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(app_module, "BODY_SECONDS", 0.2)
    with listening(FakeRunner()) as address:
        parts = urlsplit(address)
        for said in (b"", b"GET / HTTP/1.1\r\nHost"):
            with closing(socket.create_connection((parts.hostname, parts.port), SECONDS)) as silent:
                silent.sendall(said)
                with suppress(ConnectionError):
                    assert silent.recv(100) == b""
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        with closing(socket.create_connection((parts.hostname, parts.port), SECONDS)) as slow:
            slow.sendall(head + b"Content-Length: 100\r\n\r\n{")
            assert "did not arrive in time" in all_of(slow)


# ------------------------------------------------------------------------------------------------ the command

SECRET = "Zq7 private Xk"


@contextmanager
def command(model: Path, folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`jmedlite serve` in a process of its own; its address."""
    places = dict.fromkeys(("HOME", "TMPDIR", "JMEDLITE_STATE", "JMEDLITE_CACHE", "XDG_CACHE_HOME"), str(folder))
    with subprocess.Popen(
        [*COMMAND, "serve", str(model), "--port", "0", "--parallel", "2", *arguments],
        stdout=subprocess.PIPE, stderr=(folder / "log").open("w"), text=True, cwd=folder,
        env=os.environ | places | {"PYTHONPATH": str(Path.cwd())},
    ) as running:  # fmt: skip
        try:
            assert running.stdout
            yield running, running.stdout.readline().strip().rstrip("/")
        finally:
            running.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_ends_when_it_is_told_to_and_has_written_nothing(
    endless_gguf: Path, tmp_path: Path, number: int, code: int
) -> None:
    """In the middle of an answer, of which nothing is anywhere but in memory (see tests/cli/test_privacy.py)."""
    body = {**LONG, "messages": [{"role": "user", "content": SECRET}], "stream": True}
    with command(endless_gguf, tmp_path) as (running, address):
        assert post(address, {**SHORT, "messages": [{"role": "user", "content": SECRET}]})["choices"]
        with suppress(urllib.error.HTTPError):
            post(address, {**SHORT, "messages": [{"role": "user", "content": SECRET}], "frobnicate": SECRET})
        with asked(address, body) as reading:
            assert b"200 OK" in reading.recv(4096)
            processes = [psutil.Process(running.pid), *psutil.Process(running.pid).children(recursive=True)]
            assert len(processes) == 2
            for process in processes:
                proc = Path("/proc") / str(process.pid)
                for name in ("cmdline", "environ"):
                    assert SECRET.encode() not in (proc / name).read_bytes()
                for fd in (proc / "fd").iterdir():
                    if "(deleted)" in str(fd.readlink()):
                        assert SECRET.encode() not in fd.read_bytes()
                core = next(line for line in (proc / "limits").read_text().splitlines() if "core file" in line)
                assert core.split()[4] in ("0", "1")
            running.send_signal(number)
            assert running.wait(SECONDS) == code
        until(lambda: not any(p.is_running() for p in processes))
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert "For research only" in log
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()]


def test_a_browser_that_can_not_be_opened_is_told_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(webbrowser, "open", lambda address: False)
    open_page("http://127.0.0.1:1/")
    assert "no browser could be opened; open http://127.0.0.1:1/ in yours" in capsys.readouterr().err
