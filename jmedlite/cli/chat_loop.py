"""The conversation at the keyboard: lines in, answers out, a few commands."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from jmedlite.base.errors import ClosedPipe, JmedliteError, NativeError, UsageError
from jmedlite.base.inputs import MAX_QUESTION, decode
from jmedlite.runtime.answers import Answer, ThoughtPiece, describe_cut, describe_timings
from jmedlite.runtime.conversation import Conversation
from jmedlite.runtime.runner import check_question

from . import console

HELP = """\
/reset            begin a new conversation
/system [TEXT]    show the system prompt, or set it ("none": no prompt) and begin anew
/think [on|off]   show whether the model thinks before it answers, or turn it on or off ("auto": as it is used to)
/save FILE        write the conversation to FILE, now and after every answer
/help             this
/exit             leave (or exit, quit, :q, Ctrl-D)
Several lines: end a line with \\, or write \"\"\" before and after the text, or press Alt-Enter.
Ctrl-C stops the answer."""
THINK = {"on": True, "off": False, "auto": None}
FENCE = '"""'
Read = Callable[[str], str]  # a line for a prompt; raises EOFError at the end, KeyboardInterrupt for Ctrl-C


LEAVING = ("exit", "quit", "bye", ":q", ":quit", "終了")  # as well as /exit


def line_reader(notice: str) -> Read:
    """prompt_toolkit on a terminal (editing, history in memory only), plain lines elsewhere.

    The terminal's last line shows the notice whenever a question is typed.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return _plain_line
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    from prompt_toolkit.output import create_output

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    # on standard error, so that standard output holds nothing but answers
    session: PromptSession[str] = PromptSession(
        history=InMemoryHistory(),
        key_bindings=keys,
        output=create_output(stdout=sys.stderr),
        bottom_toolbar=lambda: notice,
    )
    return session.prompt


def _plain_line(_: str) -> str:
    raw = sys.stdin.buffer.readline(MAX_QUESTION + 1)
    if not raw:
        raise EOFError
    return decode(raw, MAX_QUESTION, "the question").rstrip("\r\n")


def read_entry(read: Read) -> str:
    """One question or command, which may have several lines. Raises EOFError where there is no more."""
    line = read("> ")
    lines = []
    if line.lstrip().startswith(FENCE):
        line = line.lstrip()[len(FENCE) :]
        while FENCE not in line:
            lines.append(line)
            try:
                line = read("… ")
            except EOFError:
                break
        else:
            lines.append(line.partition(FENCE)[0])
        return "\n".join(lines).strip("\n")
    while line.endswith("\\"):
        lines.append(line[:-1])
        try:
            line = read("… ")
        except EOFError:
            line = ""
    return "\n".join([*lines, line])


@contextmanager
def interrupt(action: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C does `action` while the body runs; a second one is a KeyboardInterrupt as ever."""
    pressed = False

    def handle(number: int, frame: Any) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True
        action()

    try:
        old = signal.signal(signal.SIGINT, handle)
    except ValueError:  # not the main thread: there are no signals to catch
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, old)


class Chat:
    """The loop; `save_to` is where the conversation is written after every answer, if anywhere."""

    def __init__(
        self,
        conversation: Conversation,
        save_to: Path | None = None,
        timings: bool = False,
        hide_thinking: bool = False,
    ) -> None:
        self.conversation, self.save_to, self.timings, self.hide = conversation, save_to, timings, hide_thinking
        self._warned: set[str] = set()

    def run(self, read: Read) -> None:
        """Read and answer until the end of the input or /exit. A fault of one answer does not end the conversation."""
        while True:
            try:
                entry = read_entry(read)
            except EOFError:
                return
            except KeyboardInterrupt:
                if read is _plain_line:
                    raise
                console.note("(/exit or Ctrl-D leaves)")
                continue
            if not entry.strip():
                continue
            if entry.strip().lower() in LEAVING:
                return
            try:
                if entry.startswith("/"):
                    if self._command(*entry[1:].strip().partition(" ")[::2]):
                        return
                else:
                    self._answer(entry)
            except (NativeError, ClosedPipe):
                raise  # the model, or the reader, is gone
            except JmedliteError as e:
                console.error(e.whole)

    def _answer(self, question: str) -> None:
        check_question(question)
        answer, shown = None, console.Talk(hide=self.hide)
        with interrupt(self.conversation.runner.stop), contextlib.closing(self.conversation.send(question)) as pieces:  # type: ignore[type-var]
            for piece in pieces:
                if isinstance(piece, Answer):
                    answer = piece
                elif isinstance(piece, ThoughtPiece):
                    shown.think(piece.text)
                else:
                    shown.write(piece)
        shown.end()
        assert answer is not None
        for warning in answer.warnings:
            if warning not in self._warned:  # once is enough
                self._warned.add(warning)
                console.warn(warning)
        if cut := describe_cut(answer):
            console.note(cut)
        if self.timings:
            console.note(describe_timings(answer))
        if self.save_to:
            self.conversation.save(self.save_to)

    def _command(self, name: str, argument: str) -> bool:
        """Do a command; True ends the loop."""
        argument = argument.strip()
        if name in ("exit", "quit"):
            return True
        if name == "reset":
            self._reset()
        elif name == "system" and argument:
            check_question(argument)
            self.conversation.system = "" if argument == "none" else argument
            self._reset()
        elif name == "system":
            shown = {None: "(the built-in one)", "": "(none)"}.get(self.conversation.system, self.conversation.system)
            console.note(str(shown))
        elif name == "think":
            self._think(argument)
        elif name == "save" and (argument or self.save_to):
            self.save_to = Path(argument).expanduser() if argument else self.save_to
            assert self.save_to is not None
            self.conversation.save(self.save_to)
            console.note(f"(saved to {self.save_to}, and after every answer from now on)")
        else:
            console.note(HELP)
        return False

    def _think(self, wanted: str) -> None:
        sampling = self.conversation.sampling
        if wanted in THINK:
            budget = None if THINK[wanted] and sampling.think_budget == 0 else sampling.think_budget
            sampling = replace(sampling, think=THINK[wanted], think_budget=budget)
            self.conversation.sampling = sampling
        elif wanted:
            raise UsageError(f"/think {wanted}: expected on, off or auto")
        word = next(word for word, think in THINK.items() if think is sampling.think)
        console.note(f"(thinking: {word})")

    def _reset(self) -> None:
        self.conversation.reset()
        # or the next answer would replace the conversation that was saved
        kept = f", {self.save_to} stays as it is" if self.save_to else ""
        self.save_to = None
        console.note(f"(a new conversation{kept})")
