"""The command line, in this process or in one of its own, and the one line that a fault must be."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from jmedlite.cli.app import main


def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """`jmedlite ARGUMENTS` in this process: one of its own costs most of a second. What it starts is real."""
    streams = {"stdin": io.BytesIO(stdin), "stdout": io.BytesIO(), "stderr": io.BytesIO()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["jmedlite", *arguments])
        for name, raw in streams.items():
            patch.setattr(sys, name, io.TextIOWrapper(raw, encoding="utf-8", write_through=True))
        try:
            main()
            code = 0
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else 0 if e.code is None else 1
        return subprocess.CompletedProcess(
            list(arguments), code, streams["stdout"].getvalue(), streams["stderr"].getvalue()
        )


def run_text(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """The same in text."""
    done = run(*arguments, stdin=stdin.encode())
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def check(done: subprocess.CompletedProcess[bytes], code: int, *words: str) -> str:
    """The fault's one line, after checking that there is just one, with the exit code and the words."""
    text = done.stderr.decode()
    assert "Traceback" not in text
    assert done.returncode == code, text
    lines = [line for line in text.splitlines() if line.startswith("jmedlite: ")]
    assert len(lines) == 1, text
    for word in words:
        assert word in lines[0]
    return lines[0]
