"""Conversations: turns, what is dropped, stopping, saving, and the loop at the keyboard."""

from __future__ import annotations

import json
import os
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import jmedlite
from jmedlite.base.errors import ContextFull, DataError, InputMissing
from jmedlite.cli import chat_loop as chat
from jmedlite.runtime.answers import Answer, ThoughtPiece
from jmedlite.runtime.conversation import Conversation
from jmedlite.runtime.runner import Runner

posix = pytest.mark.skipif(os.name != "posix", reason="signals and file modes of POSIX")


@pytest.fixture(scope="module")
def runner(endless_gguf: Path) -> Iterator[Runner]:
    with jmedlite.Runner(endless_gguf, threads=1, ctx=512) as found:
        yield found


def say(conversation: Conversation, question: str) -> Answer:
    answer = list(conversation.send(question))[-1]
    assert isinstance(answer, Answer)
    return answer


def test_turns_are_seen_and_evaluated_once(runner: Runner) -> None:
    conversation = Conversation(runner, max_tokens=8)
    one = say(conversation, "hello")
    two = say(conversation, "and the next")
    assert [role for role, _ in conversation.turns] == ["user", "assistant"] * 2
    assert conversation.turns[1] == ("assistant", one.text)
    assert two.n_prompt > one.n_prompt + 8
    assert two.n_cached >= one.n_prompt  # all that was there before, and the answer as far as its tokens are the text's
    # the same as if all had been evaluated anew, which greedy decoding shows
    list(runner.stream("something else", max_tokens=2))
    fresh = list(runner.converse([*conversation.turns[:2], ("user", "and the next")], language="en", max_tokens=8))[-1]
    assert isinstance(fresh, Answer)
    assert fresh.text == two.text
    assert fresh.n_cached < two.n_cached


def test_a_full_context_drops_the_oldest_and_says_so(runner: Runner) -> None:
    dropped: list[str] = []
    conversation = Conversation(runner, max_tokens=100, on_drop=dropped.append)
    for n in range(4):
        say(conversation, f"question {n} " + "x" * 60)
    assert dropped[0].startswith("question 0")
    assert conversation.turns[0][1].startswith(f"question {len(dropped)}")
    assert len(conversation.turns) == 2 * (4 - len(dropped))
    with pytest.raises(ContextFull, match=r"too long: prompt and question have [\d,]+ tokens, the context has 512"):
        say(conversation, "x" * 600)
    assert say(conversation, "short").n_generated == 100


def test_a_long_answer_ends_with_the_context(runner: Runner) -> None:
    answer = say(Conversation(runner, max_tokens=1000), "hello")
    assert answer.stop == "context"
    assert answer.n_prompt + answer.n_generated == answer.n_ctx == 512


def test_thoughts_are_no_part_of_the_conversation(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Answer("Yes.", "eos", 1, 1, 512, thought="hm")
    monkeypatch.setattr(runner, "converse", lambda turns, **options: (x for x in (ThoughtPiece("hm"), "Y", whole)))
    conversation = Conversation(runner)
    say(conversation, "q")
    assert conversation.turns[1] == ("assistant", "Yes.")
    nothing = Answer("", "length", 1, 1, 512, thought="hm", is_thought_open=True)
    monkeypatch.setattr(runner, "converse", lambda turns, **options: (x for x in (ThoughtPiece("hm"), nothing)))
    say(conversation, "another")
    assert len(conversation.turns) == 2


def test_stopping_keeps_the_model_and_what_was_said(endless_gguf: Path) -> None:
    with jmedlite.Runner(endless_gguf, threads=1) as endless:
        conversation = Conversation(endless, max_tokens=60_000)
        pieces = conversation.send("hello")
        said = next(pieces)
        assert isinstance(said, str)
        child = endless.child.process.pid
        endless.stop()
        rest = list(pieces)
        assert isinstance(rest[-1], Answer)
        assert rest[-1].stop == "stopped"
        assert 0 < rest[-1].n_generated < 60_000
        assert conversation.turns[1] == ("assistant", rest[-1].text)
        assert endless.ask("hello", max_tokens=4).n_generated == 4
        assert endless.child.process.pid == child  # not loaded anew


def test_save_and_go_on(endless_gguf: Path, tmp_path: Path) -> None:
    with jmedlite.Runner(endless_gguf, threads=1) as one:
        conversation = Conversation(one, system="be brief", max_tokens=8)
        say(conversation, "熱とは")
        conversation.save(tmp_path / "c.json")
        expected = say(conversation, "次は")
    if os.name == "posix":
        assert stat.S_IMODE((tmp_path / "c.json").stat().st_mode) == 0o600
    with jmedlite.Runner(endless_gguf, threads=1) as other:
        resumed = Conversation(other, max_tokens=8)
        resumed.load(tmp_path / "c.json")
        assert (resumed.system, resumed.language) == ("be brief", "ja")
        again = say(resumed, "次は")
    assert again.text == expected.text
    assert again.n_cached == expected.n_cached  # from the disk as from memory


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{}", b"\xff", b'{"format": 1, "turns": [["user", "x"]], "state": "s"}', b"[1]",
        b'{"format": 1, "turns": [["user", "q"], ["assistant", "a"], ["q"]], "state": "s"}',
    ],
)  # fmt: skip
def test_a_foreign_file_is_no_conversation(runner: Runner, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.json").write_bytes(content)
    with pytest.raises(DataError, match=r"c\.json: is not a conversation"):
        Conversation(runner).load(tmp_path / "c.json")
    with pytest.raises(InputMissing):
        Conversation(runner).load(tmp_path / "none.json")


def lines(*texts: str) -> Callable[[str], str]:
    waiting = list(texts)

    def read(prompt: str) -> str:
        if not waiting:
            raise EOFError
        return waiting.pop(0)

    return read


@pytest.mark.parametrize(
    ("typed", "entry"),
    [
        (["one"], "one"),
        (["one \\", "two\\", "three"], "one \ntwo\nthree"),
        (['"""', "one", "", 'two """ no more'], "one\n\ntwo"),
        (['"""one"""'], "one"),
        (['"""one', "two"], "one\ntwo"),
        (["one\\"], "one\n"),
    ],
)
def test_several_lines(typed: list[str], entry: str) -> None:
    assert chat.read_entry(lines(*typed)).rstrip(" ") == entry


def test_the_loop(runner: Runner, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conversation = Conversation(runner, max_tokens=4)
    saved = tmp_path / "c.json"
    loop = chat.Chat(conversation, timings=True)
    loop.run(lines("hello", "", "a\0b", "x" * 900, "/system", f"/save {saved}", "/nonsense", "again"))
    shown = capsys.readouterr()
    assert len(conversation.turns) == 2 * 1  # the long question pushed out the first, and was refused itself
    assert shown.err.count("jmedlite: ") == 2
    assert "NUL" in shown.err
    assert "too long" in shown.err
    for words in ("(the built-in one)", "(saved to", "/reset", "first token after", "cut at 4 tokens"):
        assert words in shown.err
    assert shown.out.rstrip().endswith(conversation.turns[-1][1])
    kept = saved.read_bytes()
    assert [turn[1] for turn in json.loads(kept)["turns"]] == [text for _, text in conversation.turns]
    loop.run(lines("/system none", "hello", "/exit", "never read"))
    assert conversation.system == ""
    assert [text for role, text in conversation.turns if role == "user"] == ["hello"]
    assert saved.read_bytes() == kept
    assert "stays as it is" in capsys.readouterr().err


def start(model: Path, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "jmedlite", "chat", "-m", str(model), *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, bufsize=0,
    )  # fmt: skip


@posix
def test_ctrl_c_stops_the_answer_and_not_the_program(endless_gguf: Path) -> None:
    child = start(endless_gguf, "--max-tokens", "60000")
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write("熱とは\n".encode())
    assert child.stdout.read(1)
    time.sleep(0.2)
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does: to the whole group
    _, err = child.communicate(b"/system\n/exit\n", timeout=30)
    text = err.decode()
    assert child.returncode == 0, text
    assert "(stopped)" in text
    assert "(the built-in one)" in text
    assert "Traceback" not in text
    assert text.count("診断や治療の判断には使わないでください") == 1
    assert text.count("licence:") == 1


@pytest.mark.parametrize(
    ("typed", "words"),
    [(b"\xff\xfe\n", "not UTF-8"), (b"x" * (2 << 20), "more than 1,048,576 bytes")],
    ids=["bytes", "long"],  # pytest puts a test's name into the environment
)
def test_input_that_is_no_text_ends_it(endless_gguf: Path, typed: bytes, words: str) -> None:
    command = [sys.executable, "-m", "jmedlite", "chat", "-m", str(endless_gguf)]
    done = subprocess.run(command, input=typed, capture_output=True, check=False)
    assert done.returncode == 65
    (line,) = (x for x in done.stderr.decode().splitlines() if x.startswith("jmedlite: "))
    assert words in line


@posix
def test_a_second_ctrl_c_ends_it_at_once(endless_gguf: Path) -> None:
    """Even where the model no longer listens."""
    child = start(endless_gguf, "--max-tokens", "60000")
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(b"hello\n")
    assert child.stdout.read(1)
    (engine,) = psutil.Process(child.pid).children()
    engine.suspend()
    for _ in range(2):
        os.kill(child.pid, signal.SIGINT)
        time.sleep(0.3)
    _, err = child.communicate(timeout=20)
    assert child.returncode == 130
    assert b"Traceback" not in err
    psutil.wait_procs([engine], timeout=20)
    assert not engine.is_running()


@posix
def test_at_a_terminal(endless_gguf: Path, tmp_path: Path) -> None:
    """Alt-Enter breaks the line, Ctrl-C clears it, Ctrl-D leaves; what was typed is in the conversation alone."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    saved = tmp_path / "c.json"
    command = [sys.executable, "-m", "jmedlite", "chat", "-m", str(endless_gguf), "--max-tokens", "4"]
    child = subprocess.Popen(
        [*command, "--save", str(saved)], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        env=os.environ | {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
    )  # fmt: skip
    os.close(theirs)
    shown = b""

    def until(words: bytes) -> None:
        nonlocal shown
        while words not in shown:
            assert select.select([ours], [], [], 60)[0], shown
            shown += os.read(ours, 4096)
        shown = shown.partition(words)[2]

    ready = b"\x1b[?2004h"  # what prompt_toolkit writes when it begins to read
    until(b"/exit leaves")
    until(ready)
    os.write(ours, b"one\x1b\rtwo\r")
    until(b"(the answer was cut at 4 tokens")
    until(ready)
    os.write(ours, b"never sent\x03")
    until(b"(/exit or Ctrl-D leaves)")
    until(ready)
    os.write(ours, b"\x04")
    assert child.wait(timeout=20) == 0
    os.close(ours)
    assert [text for role, text in json.loads(saved.read_text())["turns"] if role == "user"] == ["one\ntwo"]


@posix
def test_nothing_of_a_conversation_is_kept_unless_asked_for(
    endless_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("JMEDLITE_CACHE", "JMEDLITE_STATE", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    secret = "Zq7-private-Xk"
    _, err = start(endless_gguf, "--max-tokens", "4").communicate(f"{secret}\nnext\n".encode(), timeout=60)
    kept = [f for f in (tmp_path / "home").rglob("*") if f.is_file()]
    assert kept, err.decode()  # the system prompt is
    assert all(secret.encode() not in f.read_bytes() for f in kept)
    _, err = start(endless_gguf, "--max-tokens", "4", "--save", str(tmp_path / "c.json")).communicate(
        f"{secret}\n".encode(), timeout=60
    )
    assert secret in (tmp_path / "c.json").read_text(encoding="utf-8")
    assert len([f for f in (tmp_path / "home").rglob("*") if f.is_file()]) == len(kept) + 1
