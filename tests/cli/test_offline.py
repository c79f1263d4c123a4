"""Nothing leaves the machine: commands in a network namespace without interfaces, and with every connect watched."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.long import long_but_for
from tests.support.offline import ISOLATE, allowed, watched

# arguments after `python -m jmedlite`
COMMANDS = {
    "ask": ["ask", "-m", "{model}", "--max-tokens", "4", "What is a fever?"],
    "chat": ["chat", "-m", "{model}", "--max-tokens", "4"],
    "bench": ["bench", "{model}", "--task", "{task}", "--out", "{out}", "--rounds", "1", "--threads", "1"],
}
CONNECT = "import socket; s = socket.socket(); s.settimeout(1); s.connect_ex(('127.0.0.1', 9))"


def run(*command: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=os.environ | watched(tmp_path),
        input="hello\n", capture_output=True, encoding="utf-8", timeout=300, check=False,
    )  # fmt: skip


def python(name: str, model: Path, tmp_path: Path) -> list[str]:
    task, out = tmp_path / "task.jsonl", tmp_path / "run"
    task.write_text('{"question": "Which organ pumps blood?", "choices": ["heart", "liver"], "answer": [0]}\n')
    arguments = COMMANDS[name]
    return [sys.executable, "-m", "jmedlite", *(a.format(model=model, task=task, out=out) for a in arguments)]


@pytest.mark.parametrize("name", long_but_for(COMMANDS, ["ask"]))
def test_without_any_interface(tiny_gguf: Path, tmp_path: Path, name: str) -> None:
    """A namespace of its own, in which not even the loopback is up; for the demo, see tests/demo/test_demo.py."""
    if not allowed(*ISOLATE, "true"):
        pytest.skip("this system allows no network namespaces")
    assert "NETWORK" in run(*ISOLATE, sys.executable, "-c", CONNECT, tmp_path=tmp_path).stderr  # the watch works
    done = run(*ISOLATE, *python(name, tiny_gguf, tmp_path), tmp_path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "NETWORK" not in done.stderr


@pytest.mark.parametrize("name", long_but_for(COMMANDS, ["ask"]))
def test_no_native_connect_either(tiny_gguf: Path, tmp_path: Path, name: str) -> None:
    """The kernel's view, of every thread and child."""
    if not allowed("strace", "-f", "-e", "trace=connect", "true"):
        pytest.skip("strace is not there or not allowed")
    log = tmp_path / "calls"
    watch = ["strace", "-f", "-o", str(log), "-e", "trace=connect,sendto,sendmsg,sendmmsg,bind"]
    run(*watch, sys.executable, "-c", CONNECT, tmp_path=tmp_path)
    assert "AF_INET" in log.read_text()  # the watch works
    done = run(*watch, *python(name, tiny_gguf, tmp_path), tmp_path=tmp_path)
    assert done.returncode == 0, done.stderr
    calls = re.findall(r"(?:connect|send\w+|bind)\(.*", log.read_text())
    assert not calls
