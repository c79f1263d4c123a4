"""`chat`: a conversation at the keyboard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jmedlite.base.errors import UsageError
from jmedlite.base.looking import exists
from jmedlite.runtime.load_options import LoadOptions
from jmedlite.runtime.sampling import Sampling

from . import console
from .open_model import answer_footer, check_language, open_runner, take_model
from .options import HideThinking, Language, ModelFile, System, Timings, spread


@spread
def chat(
    file: Annotated[str | None, typer.Argument(metavar="[MODEL.gguf]", help="GGUF file; default: as --model.")] = None,
    *,
    model: ModelFile = None,
    system: System = None,
    language: Language = None,
    sampling: Sampling,
    loading: LoadOptions,
    hide_thinking: HideThinking = False,
    timings: Timings = False,
    save: Annotated[
        Path | None, typer.Option(help="Write the conversation to this file; go on with it where it exists.")
    ] = None,
) -> None:
    """Talk with a model. The conversation stays in memory unless you save it; nothing leaves this machine."""
    from jmedlite.runtime.chat_template import NOTICE
    from jmedlite.runtime.conversation import Conversation

    from .chat_loop import Chat, line_reader

    check_language(language)
    model, others = take_model(model, [file] if file else [])
    if others:
        raise UsageError(f"{file}: expected a GGUF file; ask in the conversation, or with `jmedlite ask`")
    with open_runner(model, loading, sampling) as runner:
        conversation = Conversation(
            runner,
            system=system,
            language=language,
            on_drop=lambda q: console.note(_describe_drop(q)),
            **vars(sampling),
        )
        if save and exists(save):
            conversation.load(save)
            console.note(f"(going on with {save}: {len(conversation.turns) // 2} questions so far)")
        notice = " ".join([NOTICE[language]] if language else NOTICE.values())
        console.note(answer_footer(runner.facts, notice))
        console.note("/help shows the commands, /exit leaves.")
        Chat(conversation, save, timings, hide_thinking).run(line_reader(notice))


def _describe_drop(question: str) -> str:
    beginning = " ".join(question.split())
    beginning = beginning if len(beginning) <= 40 else beginning[:40] + "…"
    return f"(the context is full: the oldest question and its answer are no longer seen: {beginning})"
