"""The commands that run a model: `ask`, `chat`, and `doctor`, which says what would run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jmedlite.base.errors import InputMissing, UsageError
from jmedlite.base.inputs import MAX_QUESTION, decode, read_text

from . import console
from .inspect import Json

if TYPE_CHECKING:
    from jmedlite.runtime.answers import Answer
    from jmedlite.runtime.runner import Runner

ModelFile = Annotated[str | None, typer.Option("--model", "-m", help="GGUF file; default: the last one made.")]
System = Annotated[str | None, typer.Option(help='System prompt; "" for none.')]
Language = Annotated[str | None, typer.Option("--lang", help="ja or en; default: the question's.")]
MaxTokens = Annotated[int, typer.Option(help="Longest answer, in tokens.")]
Temperature = Annotated[float, typer.Option(help="0: always the most likely token.")]
TopK = Annotated[int, typer.Option(help="Draw from the K most likely tokens; 0: from all.")]
TopP = Annotated[float, typer.Option(help="Draw from the most likely tokens that together have P.")]
MinP = Annotated[float, typer.Option(help="Leave out tokens below P times the most likely.")]
RepeatPenalty = Annotated[float, typer.Option(help="Above 1: less of what was just said.")]
Seed = Annotated[int, typer.Option(help="For temperatures above 0.")]
Grammar = Annotated[Path | None, typer.Option(help="GBNF file that the answer must follow.")]
JsonSchema = Annotated[Path | None, typer.Option(help="JSON schema that the answer must follow.")]
Ctx = Annotated[str, typer.Option(help="Context in tokens; auto: the longest that fits.")]
GpuLayers = Annotated[str, typer.Option(help="auto, all or a number.")]
KvType = Annotated[str, typer.Option(help="f16, q8_0, q4_0 or f32.")]
FlashAttn = Annotated[str, typer.Option(help="auto, on or off.")]
Threads = Annotated[int | None, typer.Option("--threads", "-j", help="Default: physical cores.")]
RuntimeLora = Annotated[
    list[str] | None, typer.Option("--lora", metavar="FILE[:WEIGHT]", help="GGUF adapter to add; repeatable.")
]
Cache = Annotated[bool, typer.Option("--cache/--no-cache", help="Keep evaluated system prompts on disk.")]
Force = Annotated[bool, typer.Option("--force", help="Load the model even where it does not fit the memory.")]
Timings = Annotated[bool, typer.Option("--timings", help="Show how long each step took.")]


def find_gguf(model: str | None) -> Path:
    """The GGUF file that `-m` names; the model quantized last where nothing is named."""
    from jmedlite.api.last_model import last_model

    if not model:
        found = last_model()
        if found is None:
            raise InputMissing("no model given, and none quantized yet; run `jmedlite quantize MODEL`, or give -m FILE")
        return found
    path = Path(model).expanduser()
    if path.is_dir():
        files = sorted(path.glob("*.gguf"))
        if len(files) == 1:
            return files[0]
        listing = ", ".join(f.name for f in files) or "none"
        raise UsageError(f"{model}: is a folder (GGUF files in it: {listing}); name the file, or quantize it first")
    if not path.is_file():
        raise InputMissing(f"{model}: no such GGUF file; make one with `jmedlite quantize {model}`")
    return path


def _read_question(argument: str | None) -> str:
    if argument is not None and argument != "-":
        return argument
    if argument is None and sys.stdin.isatty():
        raise UsageError("no question; give it as an argument, or on standard input")
    return decode(sys.stdin.buffer.read(MAX_QUESTION + 1), MAX_QUESTION, "the question")


def _check_language(language: str | None) -> None:
    if language not in (None, "ja", "en"):
        raise UsageError(f"--lang {language}: expected ja or en")


def _sampling_options(names: dict[str, Any]) -> dict[str, Any]:
    """The options of `Sampling` out of a command's own; reads the files that --grammar and --json-schema name."""
    from dataclasses import fields

    from jmedlite.runtime.sampling import MAX_GRAMMAR, Sampling

    options = {f.name: names[f.name] for f in fields(Sampling)}
    for key in ("grammar", "json_schema"):
        if options[key] is not None:
            options[key] = read_text(options[key], MAX_GRAMMAR)
    Sampling(**options)  # before the model is loaded
    return options


def _runner(model: str | None, names: dict[str, Any]) -> Runner:
    """The model that a command's options name, loaded; the plan is shown first."""
    from jmedlite.runtime.runner import Runner

    lora = []
    if names["lora"]:
        from jmedlite.convert.adapters.lora import parse_spec

        lora = [parse_spec(s) for s in names["lora"]]
    keys = ("ctx", "gpu_layers", "kv_type", "flash_attn", "threads", "cache", "force")
    return Runner(
        find_gguf(model),
        **{k: names[k] for k in keys},
        lora=lora,
        on_plan=console.note,
    )


def ask(
    question: Annotated[str | None, typer.Argument(help="The question; - or nothing: standard input.")] = None,
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
    no_stream: Annotated[bool, typer.Option("--no-stream", help="Print the answer when it is whole.")] = False,
    as_json: Json = False,
) -> None:
    """Ask one question. The answer streams to standard output; nothing leaves this machine."""
    names = dict(locals())
    from jmedlite.runtime.answers import Answer, describe_cut, describe_timings
    from jmedlite.runtime.chat_template import NOTICE, language_of
    from jmedlite.runtime.runner import check_question

    _check_language(language)
    options = _sampling_options(names)
    text = _read_question(question)
    check_question(text)
    with _runner(model, names) as runner:
        answer: Answer | None = None
        for piece in runner.stream(text, system=system, language=language, **options):
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
    console.note(_describe_model(facts, notice))
    if timings:
        console.note(describe_timings(answer))


def _describe_model(facts: dict[str, Any], notice: str) -> str:
    return f"— {facts['name']}, licence: {facts['license'] or 'not stated'}. {notice}"


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

    _check_language(language)
    options = _sampling_options(names)
    with _runner(model, names) as runner:
        conversation = Conversation(
            runner, system=system, language=language, on_drop=lambda q: console.note(_describe_drop(q)), **options
        )
        if save and save.exists():
            conversation.load(save)
            console.note(f"(going on with {save}: {len(conversation.turns) // 2} questions so far)")
        notices = [NOTICE[language]] if language else NOTICE.values()
        console.note(_describe_model(runner.facts, " ".join(notices)))
        console.note("/help shows the commands, /exit leaves.")
        Chat(conversation, save, timings).run(line_reader())


def _describe_drop(question: str) -> str:
    beginning = " ".join(question.split())
    beginning = beginning if len(beginning) <= 40 else beginning[:40] + "…"
    return f"(the context is full: the oldest question and its answer are no longer seen: {beginning})"


def doctor(
    model: Annotated[str | None, typer.Argument(help="GGUF file: what of it fits this machine.")] = None,
    kv_type: KvType = "f16",
    as_json: Json = False,
) -> None:
    """Show this machine as llama.cpp sees it, and which level and context of a model fit it."""
    from jmedlite.runtime.hardware import describe_machine

    fit = _fit(find_gguf(model), kv_type) if model else None
    facts = describe_machine()
    if as_json:
        console.document(facts if fit is None else {**facts, "fit": fit})
        return
    gpus = [f"{g['name']}: {g['description']}, {console.size(g['free_bytes'])} free" for g in facts["gpus"]]
    built = "yes" if facts["gpu_offload_built_in"] else "no (a CPU build of llama-cpp-python)"
    rows = [
        ["jmedlite", f"{facts['jmedlite']} (Python {facts['python']}, {facts['system']})"],
        ["llama-cpp-python", facts["llama_cpp_python"]],
        ["processor", f"{facts['cpu']}, {facts['physical_cores']} cores ({facts['logical_cores']} threads)"],
        ["CPU features", ", ".join(facts["cpu_features"]) or "none reported"],
        ["memory", f"{console.size(facts['ram_bytes'])}, {console.size(facts['ram_available_bytes'])} available"],
        ["GPU offload", built],
        ["GPUs", "; ".join(gpus) or "none seen"],
    ]
    console.table([("this machine", "left"), ("", "left")], rows)
    if fit is not None:
        console.out("")
        _show_fit(fit)


def _fit(path: Path, kv_type: str) -> dict[str, Any]:
    """The plan for a model, and every level × context: what `doctor MODEL` shows."""
    from jmedlite.runtime.fitting import level_shapes, shape_on_this_machine, this_machine
    from jmedlite.runtime.loading import read_whole_header
    from jmedlite.runtime.offload import Wish, make_plan, row_of_plans
    from jmedlite.runtime.runner import KV_TYPES, check_choice

    check_choice("--kv-type", kv_type, KV_TYPES)
    _, header = read_whole_header(path)
    machine, wish = this_machine(), Wish(kv_type=kv_type)
    shapes = {"this file": shape_on_this_machine(header), **level_shapes(header)}
    levels = {
        name: {"size_bytes": shape.data_bytes, "contexts": [p.figures() for p in row_of_plans(shape, machine, wish)]}
        for name, shape in shapes.items()
    }
    plan = make_plan(shapes["this file"], machine, wish)
    return {"file": path.name, "plan": plan.figures(), "sentence": plan.sentence(grows=True), "levels": levels}


def _show_fit(fit: dict[str, Any]) -> None:
    console.table(
        [
            (fit["file"], "left"),
            *((name, "right") for name in ("weights", "cache", "buffers, processes", "needed", "free")),
        ],
        [
            [
                p["place"],
                *(console.size(n) for n in (p["weights"], p["kv"], p["compute"] + p["other"], p["total"], p["free"])),
            ]
            for p in fit["plan"]["places"]
        ],
    )
    console.out(f"{'' if fit['plan']['fits'] else 'does NOT fit: '}{fit['sentence']}\n")
    contexts = [plan["n_ctx"] for plan in fit["levels"]["this file"]["contexts"]]
    console.table(
        [("level", "left"), ("size", "right"), *((f"{n:,} tokens", "right") for n in contexts)],
        [
            [name, console.size(level["size_bytes"]), *(_cell(plan) for plan in level["contexts"])]
            for name, level in fit["levels"].items()
        ],
    )


def _cell(plan: dict[str, Any]) -> str:
    """The memory that a level takes at a context, with the layers on GPUs where there are any."""
    if not plan["fits"]:
        return "—"
    total = console.size(sum(place["total"] for place in plan["places"]))
    layers = f" ({plan['n_gpu_layers']}/{plan['n_layers'] + 1} GPU)" if len(plan["places"]) > 1 else ""
    return total + layers
