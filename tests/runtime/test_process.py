"""How a child's end is told."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from jmedlite.base.errors import NativeError
from jmedlite.runtime import process

AGAIN = "pip install --force-reinstall --no-deps --no-cache-dir llama-cpp-python"


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(
    ("amx", "words"),
    [
        (False, f"an instruction that this processor does not have: llama-cpp-python was built for another one; "
                f"build it here: {AGAIN}"),
        (True, f"by a GCC that gets this one's AMX wrong (12.2 does); build it here without AMX: "
               f"CMAKE_ARGS=-DGGML_NATIVE=OFF {AGAIN}"),
    ],
)  # fmt: skip
def test_an_illegal_instruction(monkeypatch: pytest.MonkeyPatch, amx: bool, words: str) -> None:
    original = subprocess.Popen

    def popen(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        return original([sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGILL)"], **options)

    monkeypatch.setattr(subprocess, "Popen", popen)
    monkeypatch.setattr(process, "has_amx", lambda: amx)
    with process.Child("jmedlite.runtime.worker", "") as child, pytest.raises(NativeError) as caught:
        list(child.events({"op": "x"}, "y"))
    assert str(caught.value).endswith(words)
