"""The command line as a process, and the one line that a fault must be."""

from __future__ import annotations

import subprocess
import sys

COMMAND = [sys.executable, "-m", "jmedlite"]


def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*COMMAND, *arguments], input=stdin, capture_output=True, timeout=60, check=False)


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
