"""`ask`: one question, one answer, streamed."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jmedlite.base.errors import UsageError
from jmedlite.base.inputs import MAX_QUESTION, decode
from jmedlite.runtime.load_options import LoadOptions
from jmedlite.runtime.sampling import Sampling

from . import console
from .open_model import answer_footer, check_language, open_runner, take_model
from .options import HideThinking, JsonFlag, Language, ModelFile, System, Timings, spread

if TYPE_CHECKING:
    from jmedlite.runtime.answers import Answer


WAIT_SECONDS = 5  # for standard input, before it is said that this is what is waited for


def _read_question(words: list[str]) -> str:
    """The question from the arguments, from standard input, or of both: the text, an empty line, what is asked."""
    question = " ".join(words)
    if question in ("", "-"):
        if not words and _is_terminal():
            raise UsageError("no question; give it as an argument, or on standard input")
        return _read_stdin()
    piped = "" if _is_terminal() else _read_stdin().strip("\n")
    return f"{piped}\n\n{question}" if piped.strip() else question


def _is_terminal() -> bool:
    return sys.stdin is None or sys.stdin.isatty()


def _read_stdin() -> str:
    if sys.stdin is None:  # closed
        return ""
    waiting = threading.Timer(WAIT_SECONDS, console.note, ["(reading standard input; < /dev/null leaves it away)"])
    waiting.daemon = True
    if not sys.stdin.isatty():
        waiting.start()
    try:
        raw = sys.stdin.buffer.read(MAX_QUESTION + 1)
    except OSError:  # a terminal's other side is gone
        return ""
    finally:
        waiting.cancel()
    return decode(raw, MAX_QUESTION, "the question").replace("\r\n", "\n")


@spread
def ask(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL.gguf] [QUESTION]",
            help="The question; - or nothing: standard input. A text that is piped in stands before the question.",
        ),
    ] = None,
    *,
    model: ModelFile = None,
    system: System = None,
    language: Language = None,
    sampling: Sampling,
    loading: LoadOptions,
    hide_thinking: HideThinking = False,
    timings: Timings = False,
    no_stream: Annotated[bool, typer.Option("--no-stream", help="Print the answer when it is whole.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Ask one question. The answer streams to standard output; nothing leaves this machine."""
    from jmedlite.runtime.answers import Answer, ThoughtPiece, describe_cut, describe_timings
    from jmedlite.runtime.chat_template import NOTICE, language_of
    from jmedlite.runtime.runner import check_question

    check_language(language)
    model, words = take_model(model, words or [])
    text = _read_question(words)
    check_question(text)
    with open_runner(model, loading, sampling) as runner:
        answer: Answer | None = None
        shown = console.Talk(hide=hide_thinking)
        for piece in runner.stream(text, system=system, language=language, **vars(sampling)):
            if isinstance(piece, Answer):
                answer = piece
            elif as_json or no_stream:
                continue
            elif isinstance(piece, ThoughtPiece):
                shown.think(piece.text)
            else:
                shown.write(piece)
        assert answer is not None
        facts = {"file": runner.path.name, **runner.facts}
        plan = runner.plan
    for warning in answer.warnings:
        console.warn(warning)
    notice = NOTICE[language or language_of(text)]
    if as_json:
        console.document({"question": text, **_describe_answer(answer), "model": facts, "plan": plan, "notice": notice})
        return
    if no_stream:
        if answer.thought:
            shown.think(answer.thought)
        shown.write(answer.text)
    shown.end()
    if cut := describe_cut(answer):
        console.note(cut)
    console.note(answer_footer(facts, notice))
    if timings:
        console.note(describe_timings(answer))


def _describe_answer(answer: Answer) -> dict[str, Any]:
    return {
        "answer": answer.text,
        "thought": answer.thought,
        "n_thought": answer.n_thought,
        "thought_is_open": answer.is_thought_open,
        "thought_closed_by_budget": answer.is_thought_cut,
        "stop": answer.stop,
        "n_prompt": answer.n_prompt,
        "n_cached": answer.n_cached,
        "n_generated": answer.n_generated,
        "n_ctx": answer.n_ctx,
        "timings": {**answer.timings, "generation_tps": answer.generation_tps},
    }
