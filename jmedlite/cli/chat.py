"""`chat`: a conversation at the keyboard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import console
from .open_model import check_language, describe_model, open_runner, sampling_options
from .options import (
    Cache,
    Ctx,
    FlashAttn,
    Force,
    GpuLayers,
    Grammar,
    JsonSchema,
    KvType,
    Language,
    MaxTokens,
    MinP,
    ModelFile,
    RepeatPenalty,
    RuntimeLora,
    Seed,
    System,
    Temperature,
    Threads,
    Timings,
    TopK,
    TopP,
)


def chat(
    model: ModelFile = None,
    system: System = None,
    language: Language = None,
    max_tokens: MaxTokens = 1024,
    temperature: Temperature = 0.0,
    top_k: TopK = 40,
    top_p: TopP = 0.95,
    min_p: MinP = 0.0,
    repeat_penalty: RepeatPenalty = 1.0,
    seed: Seed = 0,
    grammar: Grammar = None,
    json_schema: JsonSchema = None,
    ctx: Ctx = "auto",
    gpu_layers: GpuLayers = "auto",
    kv_type: KvType = "f16",
    flash_attn: FlashAttn = "auto",
    threads: Threads = None,
    lora: RuntimeLora = None,
    cache: Cache = True,
    force: Force = False,
    timings: Timings = False,
    save: Annotated[
        Path | None, typer.Option(help="Write the conversation to this file; go on with it where it exists.")
    ] = None,
) -> None:
    """Talk with a model. The conversation stays in memory unless you save it; nothing leaves this machine."""
    names = dict(locals())
    from jmedlite.runtime.chat_template import NOTICE
    from jmedlite.runtime.conversation import Conversation

    from .chat_loop import Chat, line_reader

    check_language(language)
    options = sampling_options(names)
    with open_runner(model, names) as runner:
        conversation = Conversation(
            runner, system=system, language=language, on_drop=lambda q: console.note(_describe_drop(q)), **options
        )
        if save and save.exists():
            conversation.load(save)
            console.note(f"(going on with {save}: {len(conversation.turns) // 2} questions so far)")
        notices = [NOTICE[language]] if language else NOTICE.values()
        console.note(describe_model(runner.facts, " ".join(notices)))
        console.note("/help shows the commands, /exit leaves.")
        Chat(conversation, save, timings).run(line_reader())


def _describe_drop(question: str) -> str:
    beginning = " ".join(question.split())
    beginning = beginning if len(beginning) <= 40 else beginning[:40] + "…"
    return f"(the context is full: the oldest question and its answer are no longer seen: {beginning})"
