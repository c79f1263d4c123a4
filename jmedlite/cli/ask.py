"""`ask`: one question, one answer, streamed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jmedlite.base.errors import UsageError
from jmedlite.base.inputs import MAX_QUESTION, decode
from jmedlite.runtime.load_options import LoadOptions
from jmedlite.runtime.sampling import Sampling

from . import console
from .open_model import answer_footer, check_language, open_runner
from .options import JsonFlag, Language, ModelFile, System, Timings, spread

if TYPE_CHECKING:
    from jmedlite.runtime.answers import Answer


def _read_question(argument: str | None) -> str:
    if argument is not None and argument != "-":
        return argument
    if argument is None and sys.stdin.isatty():
        raise UsageError("no question; give it as an argument, or on standard input")
    return decode(sys.stdin.buffer.read(MAX_QUESTION + 1), MAX_QUESTION, "the question")


@spread
def ask(
    question: Annotated[str | None, typer.Argument(help="The question; - or nothing: standard input.")] = None,
    *,
    model: ModelFile = None,
    system: System = None,
    language: Language = None,
    sampling: Sampling,
    loading: LoadOptions,
    timings: Timings = False,
    no_stream: Annotated[bool, typer.Option("--no-stream", help="Print the answer when it is whole.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Ask one question. The answer streams to standard output; nothing leaves this machine."""
    from jmedlite.runtime.answers import Answer, describe_cut, describe_timings
    from jmedlite.runtime.chat_template import NOTICE, language_of
    from jmedlite.runtime.runner import check_question

    check_language(language)
    text = _read_question(question)
    check_question(text)
    with open_runner(model, loading) as runner:
        answer: Answer | None = None
        for piece in runner.stream(text, system=system, language=language, **vars(sampling)):
            if isinstance(piece, Answer):
                answer = piece
            elif not (as_json or no_stream):
                console.out(piece, end="")
        assert answer is not None
        facts = {"file": runner.path.name, **runner.facts}
        plan = runner.plan
    notice = NOTICE[language or language_of(text)]
    if as_json:
        console.document({**_describe_answer(answer), "model": facts, "plan": plan, "notice": notice})
        return
    console.out(answer.text if no_stream else "")
    if cut := describe_cut(answer):
        console.note(cut)
    console.note(answer_footer(facts, notice))
    if timings:
        console.note(describe_timings(answer))


def _describe_answer(answer: Answer) -> dict[str, Any]:
    return {
        "answer": answer.text,
        "stop": answer.stop,
        "n_prompt": answer.n_prompt,
        "n_cached": answer.n_cached,
        "n_generated": answer.n_generated,
        "n_ctx": answer.n_ctx,
        "timings": {**answer.timings, "generation_tps": answer.generation_tps},
    }
