"""Files from outside: only regular ones are opened, in one place, and none is read without bounds."""

from __future__ import annotations

import ast
import json
import os
import time
import tracemalloc
from pathlib import Path

import pytest

from jmedlite.base.errors import DataError, InputMissing
from jmedlite.base.inputs import MAX_SETTINGS, opened, read_bytes, read_json
from jmedlite.runtime.state_cache import StateCache
from tests.support import builders
from tests.support.bent import OTHER_KINDS, make_other
from tests.support.commands import check, run
from tests.support.packages import module_texts
from tests.support.tasks import write_task

posix = pytest.mark.skipif(os.name != "posix", reason="pipes, sockets and devices of POSIX")


@posix
@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_only_regular_files_are_opened(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's name may have 108 bytes
    path = make_other(Path("x"), kind)
    with pytest.raises(InputMissing, match=f"x: is not a regular file, but {kind}"), opened(path):
        raise AssertionError("it was opened")


@posix
@pytest.mark.parametrize("kind", ["a pipe", "a device"])
def test_commands_do_not_wait_for_pipes_and_devices(tmp_path: Path, tiny_gguf: Path, kind: str) -> None:
    other = make_other(tmp_path / "x.jsonl", kind)
    base = tmp_path / "m"
    builders.checkpoint(base)
    (tmp_path / "run").mkdir()
    make_other(tmp_path / "run" / "run.json", kind)
    question, quantize = ["ask", "-m", str(tiny_gguf), "q"], ["quantize", str(base), "-b", "4", "-n"]
    for arguments in (
        ["inspect", str(other)],
        ["verify", str(other), "--base", str(base)],
        [*question, "--grammar", str(other)],
        [*question, "--json-schema", str(other)],
        [*quantize, "--imatrix", str(other)],
        ["bench", str(tiny_gguf), "-t", f"q={other}", "-n"],
        ["imatrix", str(tiny_gguf), "--text", str(other), "--out", str(tmp_path / "i.gguf")],
        ["imatrix", str(tiny_gguf), "--exclude-task", str(other), "--out", str(tmp_path / "i.gguf")],
        ["report", str(tmp_path / "run")],
    ):
        check(run(*arguments), 66, "is not a regular file", kind)
    for name in ("config.json", "tokenizer.json", "generation_config.json", "chat_template.jinja", "model.safetensors"):
        kept = (base / name).exists() and (base / name).rename(tmp_path / "kept")
        make_other(base / name, kind)
        check(run(*quantize, *(["--follow-links"] if kind == "a device" else [])), 66, name, "not a regular file")
        (base / name).unlink()
        if kept:
            kept.rename(base / name)


@posix
def test_an_adapter_that_is_a_pipe_is_not_waited_for(tmp_path: Path, tiny_gguf: Path) -> None:
    adapter = make_other(tmp_path / "a.gguf", "a pipe")
    check(run("ask", "-m", str(tiny_gguf), "--lora", str(adapter), "q"), 66, "is not a regular file")


@posix
def test_an_entry_of_the_cache_that_is_a_pipe_is_none(tmp_path: Path) -> None:
    make_other(tmp_path / "k.state", "a pipe")
    assert StateCache(tmp_path).load("k") is None


@posix
def test_a_link_to_a_regular_file_is_one(tiny_gguf: Path, tmp_path: Path) -> None:
    link = tmp_path / "t.jsonl"
    link.symlink_to(write_task(tmp_path / "real.jsonl"))
    assert run("bench", str(tiny_gguf), "-t", f"q={link}", "-n").returncode == 0


OWN_FILES = {  # not from outside
    "runtime/cgroup.py": "the kernel's files, whose size is 0",
    "runtime/hardware.py": "the kernel's",
    "benchmarks/run/costs.py": "the kernel's",
    "base/language.py": "the package's own catalogue",
    "calibration/texts.py": "the package's own texts",
    "convert/encoding/fast.py": "the package's own source",
    "calibration/overlap.py": "the package's own hashes",
    "api/pack.py": "the package's own scripts",
    "api/stick/install.py": "what `pack` wrote, from a script that stands alone",
    "benchmarks/report/page.py": "the package's own style",
}


def test_nothing_else_opens_a_file_for_reading() -> None:
    found = []
    for name, text in module_texts().items():
        if name in OWN_FILES or name == "base/inputs.py":
            continue
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.Call):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            modes = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            reads = called in ("read_text", "read_bytes") and node.args == []
            reads = reads or (called == "open" and any(m in ("r", "rb", "rt") for m in modes))
            if reads:
                found.append(f"{name}:{node.lineno}")
    assert not found, "open files with jmedlite.base.inputs, which takes only regular ones and bounds what is read"


def test_json_is_bounded_by_its_bytes_and_its_values(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(10 << 30)  # sparse
    tracemalloc.start()
    started = time.monotonic()
    try:
        with pytest.raises(DataError, match=f"more than {MAX_SETTINGS:,} bytes"):
            read_json(path)
        assert tracemalloc.get_traced_memory()[1] < 3 * MAX_SETTINGS
        tracemalloc.reset_peak()
        path.write_text('{"a": [' + "{}," * 100_000 + "{}]}")
        read_json(path)  # takes the most room for its bytes
        assert tracemalloc.get_traced_memory()[1] < 30 * path.stat().st_size
    finally:
        tracemalloc.stop()
    assert time.monotonic() - started < 10
    with pytest.raises(DataError, match="over 99,999 values"):
        read_json(path, 16 * 99_999)
    path.write_text("[" * 100_000)
    with pytest.raises(DataError, match="nested too deeply"):
        read_json(path)
    path.write_text(json.dumps({"a": 1}))
    assert read_json(path) == {"a": 1}
    with pytest.raises(DataError, match="more than 5 bytes"):
        read_bytes(path, 5)
