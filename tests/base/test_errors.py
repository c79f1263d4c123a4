"""The last net: whatever is raised is one sentence with an exit code, of bounded length, that steers no terminal."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType as Type

from jmedlite.base import gguf
from jmedlite.base.errors import LONGEST, DataError, as_expected
from jmedlite.base.native import decodes, encodes, quantize_rows, widen
from jmedlite.cli import console
from jmedlite.runtime import protocol
from jmedlite.runtime.bounded import bounded
from tests.support import builders
from tests.support.commands import check, run


def os_error(number: int, name: str | None = "x") -> OSError:
    return OSError(number, os.strerror(number), name)


FAULTS: dict[str, tuple[BaseException, int, str]] = {
    "a name too long": (os_error(errno.ENAMETOOLONG), 73, "choose a shorter one"),
    "too many descriptors": (os_error(errno.EMFILE), 74, "too many files are open"),
    "no temporary folder": (FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"), 73, "TMPDIR"),
    "not permitted": (os_error(errno.EACCES), 77, "x: is not permitted"),
    "a disk that fails": (os_error(errno.EIO), 74, "x: the system refused"),
    "no file": (os_error(errno.EIO, None), 74, "the system refused"),
    "no processes": (os_error(errno.EAGAIN, None), 73, "memory or processes"),
    "no memory": (MemoryError(), 73, "memory ran out"),
    "no memory for a library": (ImportError("x.so: failed to map segment from shared object"), 73, "memory ran out"),
    "no library": (ImportError("No module named 'x'"), 70, "a mistake in jmedlite"),
    "a full disk": (os_error(errno.ENOSPC), 74, "x: the disk is full"),
    "nested": (RecursionError("maximum recursion depth exceeded"), 65, "nested too deeply"),
    "a number too large": (OverflowError("int too large to convert to float"), 65, "can't be represented"),
    "half a character": (UnicodeEncodeError("utf-8", "\udce3", 0, 1, "surrogates not allowed"), 65, "can't be"),
    "a mistake": (KeyError("x"), 70, "a mistake in jmedlite (KeyError: 'x'"),
    "expected": (DataError("that"), 65, "that"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_exception_becomes_a_sentence(fault: str) -> None:
    error, code, words = FAULTS[fault]
    found = as_expected(error)
    assert found.exit_code == code
    assert words in str(found)
    assert "\n" not in str(found)


def _raise(error: BaseException) -> Callable[..., Any]:
    def fails(*_: Any, **__: Any) -> Any:
        raise error

    return fails


class Panic(BaseException):
    """As libraries written in Rust raise."""


@pytest.mark.parametrize(("error", "code"), [(KeyError("x"), 70), (Panic("p"), 70), (MemoryError(), 73)])
def test_the_command_line_shows_no_traceback_unless_asked(
    tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    monkeypatch.setattr("jmedlite.api.verify.inspect", _raise(error))
    check(run("inspect", str(tiny_gguf)), code)
    monkeypatch.setenv("JMEDLITE_DEBUG", "1")
    told = run("inspect", str(tiny_gguf)).stderr.decode()
    assert "Traceback" in told
    assert "no setting has this name" not in told


def test_ctrl_c_before_the_command_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jmedlite.cli.app.import_leanly", _raise(KeyboardInterrupt()))
    done = run("models")
    assert done.returncode == 130
    assert done.stderr == b"\n"


def test_a_child_tells_what_it_did_not_expect_as_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[dict[str, Any]] = []
    for debug in ("", "1"):
        monkeypatch.setenv("JMEDLITE_DEBUG", debug)
        with protocol._Faults(lambda event, **fields: events.append(fields)) as faults:
            raise KeyError("x")
        assert faults.failed
    assert [e["code"] for e in events] == [70, 70]
    assert "KeyError: 'x'" in events[0]["message"]
    assert events[0]["trace"] == ""
    assert "Traceback" in events[1]["trace"]
    assert all(json.dumps(e) for e in events)
    assert threading.current_thread() is threading.main_thread()


@pytest.mark.parametrize("error", [RecursionError("deep"), KeyError("x"), OSError(errno.EMFILE, "Too many open files")])
def test_bounded_work_says_what_was_worked_on(error: Exception) -> None:
    with pytest.raises(type(as_expected(error)), match=r"^the template: .*"):
        bounded(lambda event, **fields: None, "the template", 5, _raise(error))
    with pytest.raises(DataError, match=r"^as it is$"):
        bounded(lambda event, **fields: None, "the template", 5, _raise(DataError("as it is")))


def test_names_too_long_for_the_system(tmp_path: Path, tiny_gguf: Path) -> None:
    long = "a" * 5000
    builders.checkpoint(tmp_path / "m")
    model = str(tmp_path / "m")
    for arguments in (
        ["ask", "-m", long, "q"],
        ["inspect", long],
        ["quantize", long, "-n"],
        ["quantize", model, "-b", "8", "--lora", long, "-n"],
        ["quantize", model, "-b", "8", "-n", "-o", long],
        ["quantize", model, "-b", "8", "-o", str(tmp_path / "o"), "--name", "b" * 250],
        ["verify", str(tiny_gguf), "--base", long],
        ["bench", str(tiny_gguf), "-t", f"q={long}"],
        ["report", long],
    ):
        line = check(run(*arguments), 73, "choose a shorter one")
        assert len(line) < LONGEST + 20


def test_no_line_is_longer_than_some_hundred_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = DataError(f"config.json: hidden_act {'y' * 300_000} is unknown; known are a, b")
    assert len(str(error)) == LONGEST
    assert str(error).startswith("config.json: hidden_act yy")
    assert str(error).endswith("yy is unknown; known are a, b")
    console.warn("x" * 10_000)
    console.error("\x1b[2J\udce3 half")
    captured = capsys.readouterr().err
    assert len(captured) < 2 * LONGEST
    assert "\x1b" not in captured
    assert "? half" in captured


# ------------------------------------------------------------------------------------------------- native code


def test_ggml_gives_up_in_one_line_and_starts_no_debugger() -> None:
    code = """
import os
from jmedlite.base.native import libggml
lib = libggml()
assert os.environ["GGML_NO_BACKTRACE"]
lib.ggml_quantize_chunk(24, (lib_buffer := bytes(4096)), lib_buffer, 0, 1, 32, None)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 70, done.stderr
    assert done.stderr.startswith("jmedlite: ggml gave up (")
    assert len(done.stderr.splitlines()) == 1


def test_types_are_checked_before_ggml_sees_them() -> None:
    assert {t.name for t in Type if not decodes(t.name)} == {"Q8_1", "I8", "I16", "I32", "I64", "F64"}
    assert {t.name for t in Type if not encodes(t.name)} == {"Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64"}
    rows, raw = np.zeros((1, 256), np.float32), np.zeros(4096, np.uint8)
    for type_ in Type:
        if not encodes(type_.name):
            with pytest.raises(DataError, match=type_.name):
                quantize_rows(type_, rows, raw)
        if not decodes(type_.name):
            with pytest.raises(DataError, match=type_.name):
                widen(raw, type_.name, np.empty(256, np.float32))


@pytest.mark.parametrize("type_", [Type.IQ2_XXS, Type.IQ3_XXS, Type.IQ3_S])  # the others are slow to begin
def test_importance_of_any_size_is_no_end(type_: Type) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((1, 256), np.float32)
    rows[0, ::7] = 65504
    out = [np.empty(gguf.nbytes(type_, 256), np.uint8) for _ in range(2)]
    for importance in (np.full(256, 3.4e38), np.exp(rng.uniform(-88, 88, 256)), np.zeros(256), np.full(256, 1e-45)):
        quantize_rows(type_, rows, out[0], importance.astype(np.float32))  # ggml ended the process over some
    importance = rng.uniform(0.5, 1e6, 256).astype(np.float32)
    for scale, encoded in zip((1, 4**12), out, strict=True):
        quantize_rows(type_, rows, encoded, importance * np.float32(scale))
    assert np.array_equal(out[0], out[1])  # only the exponents of what is computed differ
