"""Faults as a person meets them: one line on stderr, the right exit code, no traceback."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import jmedlite
from jmedlite.base.gguf import read_header
from jmedlite.runtime.hardware import has_amx
from tests.support import builders
from tests.support.commands import check, run
from tests.support.warm import COMMAND

posix = pytest.mark.skipif(os.name != "posix", reason="signals and closed pipes of POSIX")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--bits", "7"], 2, ["--bits 7", "2, 3, 4, 5, 6, 8, 16"]),
        (["--type", "Q9"], 2, ["--type Q9", "Q4_K_M"]),
        (["--type", "iq2_xs"], 2, ["IQ2_XS", "importance matrix"]),
        (["--memory", "lots"], 2, ["lots", "2GB"]),
        (["--memory", "20MB"], 2, ["--memory 20MB", "at least"]),
        (["--name", "../x"], 2, ["--name", "plain file name"]),
        (["--threads", "0"], 2, ["--threads 0"]),
        (["--lora", "a:nan"], 2, ["finite"]),
        (["--lora", "./nowhere"], 66, ["./nowhere"]),
    ],
)
def test_quantize_usage(tmp_path: Path, arguments: list[str], code: int, words: list[str]) -> None:
    builders.checkpoint(tmp_path / "m")
    check(run("quantize", str(tmp_path / "m"), "--out", str(tmp_path / "out"), *arguments), code, *words)
    assert not list((tmp_path / "out").glob("*"))


def test_quantize_missing_model(tmp_path: Path) -> None:
    check(run("quantize", str(tmp_path / "none")), 66, "none", "Hub id")


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "words"),
    [
        ([""], b"", 2, ["empty"]),
        (["  \n "], b"", 2, ["empty"]),
        (["-"], b"a\0b", 2, ["NUL"]),
        ([], b"\xff\xfe\x00caf\xe9", 65, ["UTF-8"]),
        pytest.param([], b"x" * (2 << 20), 65, ["1,048,576"], id="two megabytes"),
        (["q", "--ctx", "16"], b"", 65, ["the context has 16", "--ctx"]),
        pytest.param(["word " * 3000], b"", 65, ["tokens, the context has 512"], id="beyond the context"),
        (["q", "--kv-type", "q1"], b"", 2, ["q8_0"]),
        (["q", "--gpu-layers", "some"], b"", 2, ["auto, all"]),
        (["q", "--max-tokens", "0"], b"", 2, ["--max-tokens 0"]),
        (["q", "--temperature", "nan"], b"", 2, ["--temperature nan"]),
        (["q", "--ctx", "8589934592"], b"", 2, ["--ctx 8589934592"]),
        (["q", "--ctx", "3"], b"", 2, ["--ctx 3", "16 to"]),
        (["q", "--threads", "-3"], b"", 2, ["--threads -3"]),
        (["q", "--gpu-layers", "99999999999"], b"", 2, ["--gpu-layers"]),
        (["q", "--gpu-layers", "2.5"], b"", 2, ["--gpu-layers 2.5"]),
        (["q", "--lang", "fr"], b"", 2, ["ja or en"]),
    ],
)
def test_questions(tiny_gguf: Path, arguments: list[str], stdin: bytes, code: int, words: list[str]) -> None:
    done = run("ask", "-m", str(tiny_gguf), *arguments, stdin=stdin)
    line = check(done, code, *words)
    assert done.stdout == b""
    assert "word word" not in line  # the question itself is never repeated


@posix
def test_a_question_without_end(tiny_gguf: Path) -> None:
    with Path("/dev/zero").open("rb") as endless:
        done = subprocess.run(
            [*COMMAND, "ask", "-m", str(tiny_gguf)], stdin=endless, capture_output=True, check=False, timeout=20
        )
    check(done, 65, "more than 1,048,576 bytes")


@posix
def test_question_argument_that_is_not_utf8(tiny_gguf: Path) -> None:
    done = subprocess.run(
        [*map(str.encode, [*COMMAND, "ask", "-m", str(tiny_gguf)]), b"caf\xe9"], capture_output=True, check=False
    )
    check(done, 65, "UTF-8")


def test_japanese_in_a_pipe_of_another_code_page(tiny_gguf: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "ask", "-m", str(tiny_gguf), "--max-tokens", "2", "熱とは"],
        env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "診断" in done.stderr.decode("utf-8")


def test_ask_missing_and_foreign_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JMEDLITE_STATE", str(tmp_path))
    check(run("ask", "q", "-m", str(tmp_path / "none.gguf")), 66, "none.gguf", "jmedlite quantize")
    (tmp_path / "x.gguf").write_bytes(b"<html>")
    check(run("ask", "q", "-m", str(tmp_path / "x.gguf")), 65, "x.gguf", "web page")
    check(run("ask", "q", "-m", str(tmp_path / "x.gguf"), "--lora", str(tmp_path / "y")), 65)
    (tmp_path / "empty").mkdir()
    check(run("ask", "q", "-m", str(tmp_path / "empty")), 2, "folder", "none")


def test_ask_without_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JMEDLITE_STATE", str(tmp_path))
    check(run("ask", "q"), 66, "jmedlite quantize MODEL")


def with_template(tmp_path: Path, template: str) -> Path:
    builders.checkpoint(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "tokenizer_config.json").read_text()) | {"chat_template": template}
    (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps(config))
    (path,) = jmedlite.quantize(tmp_path / "m", bits=[8], out=tmp_path)
    return path


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}{{ messages }}",
        "{{ raise_exception('not today') }}",
        "{{ ''.__class__.__bases__[0].__subclasses__() }}",
        "{% set x = namespace(s='x' * 90000) %}{% for i in range(40) %}{% set x.s = x.s ~ x.s %}{% endfor %}{{ x.s }}",
        # one call into C that holds the interpreter's lock for hours, so that no thread of Python could end it
        "{% set x = namespace(s='f' * 90000) %}{% for i in range(6) %}{% set x.s = x.s ~ x.s %}{% endfor %}"
        "{% set n = x.s|int(0, 16) %}{{ (n // (x.s[:2880000]|int(0, 16))) is odd }}{{ messages }}",
        "{% set n = namespace(a=[], b=[]) %}{% for i in range(40) %}{% set n.a = [n.a, n.a] %}"
        "{% set n.b = [n.b, n.b] %}{% endfor %}{{ n.a == n.b }}{{ messages }}",
    ],
)
def test_hostile_chat_templates(tmp_path: Path, template: str) -> None:
    path = with_template(tmp_path, template)
    started = time.monotonic()
    check(run("ask", "q", "-m", str(path)), 65, "chat template")
    assert time.monotonic() - started < 15


def test_weights_that_are_not_finite(tiny_gguf: Path, tmp_path: Path) -> None:
    header = read_header(tiny_gguf)
    blob = bytearray(tiny_gguf.read_bytes())
    at = header.data_offset + header.by_name["output_norm.weight"].offset
    blob[at : at + 4] = struct.pack("<f", float("nan"))
    (tmp_path / "nan.gguf").write_bytes(blob)
    done = run("ask", "q", "-m", str(tmp_path / "nan.gguf"))
    check(done, 65, "nan.gguf", "not finite")
    assert done.stdout == b""


def test_a_file_llama_cpp_refuses(tiny_gguf: Path, tmp_path: Path) -> None:
    """A sound header that lacks a tensor: llama.cpp's own reason reaches the person."""
    blob = tiny_gguf.read_bytes().replace(b"blk.1.ffn_down.weight", b"blk.1.ffn_dawn.weight")
    (tmp_path / "odd.gguf").write_bytes(blob)
    check(run("ask", "q", "-m", str(tmp_path / "odd.gguf")), 65, "odd.gguf", "ffn_down")


def streaming(model: Path) -> tuple[subprocess.Popen[bytes], bytes]:
    """`jmedlite ask` in the middle of a long answer, in a process group of its own, and the answer's first byte."""
    child = subprocess.Popen(
        [*COMMAND, "ask", "q", "-m", str(model), "--max-tokens", "60000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        bufsize=0,
    )
    assert child.stdout is not None
    return child, child.stdout.read(1)


# on a processor with AMX another reason is likely; tests/runtime/test_process.py has both
ILLEGAL = (
    b"build it here without AMX: CMAKE_ARGS=" if has_amx() else b"built for another one; build it here: pip install"
)


@posix
@pytest.mark.parametrize(
    ("number", "words"),
    [
        ("SIGKILL", b"memory ran out"),
        ("SIGABRT", b"llama.cpp ended unexpectedly (status -6"),
        ("SIGILL", ILLEGAL),
    ],
)
def test_the_model_process_dies(endless_gguf: Path, number: str, words: bytes) -> None:
    child, _ = streaming(endless_gguf)
    (engine,) = psutil.Process(child.pid).children()
    assert "q" not in engine.cmdline()  # the question is not in the child's arguments
    engine.send_signal(getattr(signal, number))
    _, err = child.communicate(timeout=20)
    assert child.returncode == 70
    assert words in err
    assert b"Traceback" not in err


@posix
def test_interrupt_while_streaming(endless_gguf: Path) -> None:
    child, first = streaming(endless_gguf)
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does: to the whole group
    rest, err = child.communicate(timeout=20)
    assert child.returncode == 130
    assert b"Traceback" not in err
    (first + rest).decode("utf-8")  # no half character


@posix
def test_closed_standard_output(endless_gguf: Path) -> None:
    child, _ = streaming(endless_gguf)
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.close()
    err = child.stderr.read()
    assert child.wait(timeout=20) == 141
    assert [line[:17] for line in err.splitlines()] == [b"on the processor;"]  # the plan, and no complaint


@posix
@pytest.mark.parametrize("allowed", ["any", "none"])
def test_core_dumps_are_off(tmp_path: Path, allowed: str) -> None:
    """Ctrl-\\ writes none; on Linux, the one limit that also keeps a core from being piped to a program (see there)."""
    resource = pytest.importorskip("resource")
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1] if allowed == "any" else 0
    code = (
        f"import os, resource, signal; resource.setrlimit(resource.RLIMIT_CORE, ({hard}, {hard}))\n"
        "from jmedlite.base.signals import no_core_dumps\n"
        "no_core_dumps(); print(resource.getrlimit(resource.RLIMIT_CORE), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGQUIT)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    assert -done.returncode == signal.SIGQUIT
    limit = 1 if sys.platform == "linux" and hard else 0
    assert done.stdout.strip() == str((limit, limit))
    assert not list(tmp_path.iterdir())


def test_unknown_option_is_a_usage_error() -> None:
    done = run("quantize", "--nonsense")
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
