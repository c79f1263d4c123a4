"""What a child process loads, in which order."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import psutil
import pytest

from jmedlite.runtime.process import Child, child_command
from tests.support.packages import module_texts

# Python's own view of what is loaded, told on standard error
AUDIT = """
import sys
def watch(event, arguments):
    if event == "import" and arguments[0] == "numpy":
        sys.stderr.write("numpy\\n")
    elif event == "ctypes.dlopen" and "libllama" in str(arguments[0]):
        sys.stderr.write("llama\\n")
sys.addaudithook(watch)
"""


def test_every_child_loads_llama_cpp_before_numpy(tmp_path: Path) -> None:
    """A build for GPUs with a C++ runtime of its own crashed where numpy came first."""
    codes = module_texts()
    code = "".join(codes.values())
    modules = set(re.findall(r"\b(?:Child|SharedChild|child_command)\(\s*\"([\w.]+)\"", code))
    assert {m.split(".")[1] for m in modules} == {"benchmarks", "calibration", "runtime"}
    assert len(modules) >= 8
    # besides: an adapter's patterns and the stick's script, which need no library at all, and pip
    starters = {Path(name).name for name, text in codes.items() if "sys.executable" in text}
    assert starters == {"process.py", "patterns.py", "install.py", "pack.py"}
    (tmp_path / "sitecustomize.py").write_text(AUDIT)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    children = {
        m: subprocess.Popen(
            child_command(m), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            env=environment, encoding="utf-8",
        )
        for m in sorted(modules)
    }  # fmt: skip
    with_numpy = set()
    for module, child in children.items():
        loaded = [line for line in child.communicate()[1].splitlines() if line in ("llama", "numpy")]
        assert loaded[0] == "llama", module
        assert child.returncode == 0, module
        with_numpy |= {module} if "numpy" in loaded else set()
    assert modules - with_numpy == {"jmedlite.runtime.hardware"}  # so the others do show an order


@pytest.mark.usefixtures("cold_children")
def test_threads_that_wait_give_their_processor_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """GNU's OpenMP would spin for 15 ms at every barrier; whoever sets it otherwise is heard."""
    for own, spins in ((None, "20000"), ("7", "7")):
        monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
        if own:
            monkeypatch.setenv("GOMP_SPINCOUNT", own)
        with Child("jmedlite.runtime.worker", "") as child:
            while not (environment := psutil.Process(child.process.pid).environ()):
                pass  # between closing the parent's pipe and having an environment, a new process has none
            assert environment["GOMP_SPINCOUNT"] == spins
