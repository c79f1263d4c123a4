"""`ask` as people type it: what stands in standard input, a model as the first word, and lines that end at words."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from jmedlite.cli import console
from tests.support.commands import check, run, run_text

FEW = ("--max-tokens", "2", "--no-cache")


def asked(*arguments: str, stdin: str = "") -> str:
    """The question that the model was asked."""
    done = run_text("ask", *arguments, *FEW, "--json", stdin=stdin)
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["question"])


def test_what_is_piped_in_stands_before_the_question(tiny_gguf: Path) -> None:
    model = ("-m", str(tiny_gguf))
    assert asked(*model, "summarise", stdin="line 1\r\nline 2\n") == "line 1\nline 2\n\nsummarise"
    assert asked(*model, "hello", stdin="") == "hello"
    assert asked(*model, "hello", stdin="\n \n") == "hello"
    assert asked(*model, stdin="from a pipe\n") == "from a pipe\n"
    assert asked(*model, "-", stdin="from a pipe") == "from a pipe"
    assert asked(*model, "what", "is", "it") == "what is it"
    assert asked(str(tiny_gguf), "what", "is", "it", stdin="text") == "text\n\nwhat is it"


def test_a_closed_standard_input_is_no_error(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jmedlite.cli import ask

    monkeypatch.setattr(sys, "stdin", None)
    assert ask._read_question(["hello"]) == "hello"


def test_which_model(tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JMEDLITE_STATE", str(tmp_path))
    check(run("ask", str(tiny_gguf), stdin=b""), 2, "question is empty")
    check(run("ask", "-m", "other.gguf", str(tiny_gguf), "q"), 2, "two models: -m other.gguf")
    check(run("ask", "gone.gguf", "q"), 66, "gone.gguf: no such GGUF file", "jmedlite quantize gone`")
    shutil.copy(tiny_gguf, tmp_path / "one-Q4_K_M.gguf")
    shutil.copy(tiny_gguf, tmp_path / "two.gguf")
    check(run("ask", str(tmp_path / "three.gguf"), "q"), 66, "in that folder there are one-Q4_K_M.gguf, two.gguf")
    check(run("chat", "hello"), 2, "hello: expected a GGUF file")


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("one two three four", ["one two ", "three four"]),
        ("one two three\nfour", ["one two ", "three", "four"]),
        ("123456789012 next", ["123456789012", "next"]),
        ("a incomprehensibility b", ["a ", "incomprehensibility b"]),
        ("心筋梗塞です。胸が痛い", ["心筋梗塞で", "す。胸が痛い"]),
        ("心筋梗塞です。", ["心筋梗塞で", "す。"]),
        ("心筋ABCDEFGHIJ", ["心筋", "ABCDEFGHIJ"]),
        ("\x1b[2Jhi\x07", ["␛[2Jhi␇"]),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 100])
def test_lines_end_between_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, text: str, lines: list[str], size: int
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "12")
    stream = console.Stream()
    for at in range(0, len(text), size):
        stream.write(text[at : at + size])
    stream.end()
    assert capsys.readouterr().out.split("\n")[:-1] == lines


def test_names_are_neither_markup_nor_control_sequences(tiny_gguf: Path, tmp_path: Path) -> None:
    for name in ("model[v2].gguf", "m[/bold].gguf", "x:pill:.gguf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(tiny_gguf, tmp_path / name)
        for command in ("doctor", "inspect"):
            done = run_text(command, str(tmp_path / name))
            assert done.returncode == 0, done.stderr
            assert name in done.stdout
    shown = check(run("inspect", "x\x1b]0;owned\x07\u202e.gguf"), 66, "x␛]0;owned␇\ufffd.gguf")
    assert "\x1b" not in shown


def test_json_holds_no_control_sequence(capsys: pytest.CaptureFixture[str]) -> None:
    console.document({"text": "\x1b[2J\x9b\x7f\u202eあ"})
    text = capsys.readouterr().out
    assert not any(c in text for c in "\x1b\x9b\x7f\u202e")
    assert json.loads(text) == {"text": "\x1b[2J\x9b\x7f\u202eあ"}
