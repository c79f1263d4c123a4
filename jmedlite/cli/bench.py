"""The command that measures: `bench`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import console
from .options import FlashAttn, Force, GpuLayers, Json, KvType, Threads

if TYPE_CHECKING:
    from jmedlite.api.bench import Bench

LABELS = {"hashing": "checking the files", "questions": "asking", "measuring": "measuring", "text": "reading"}


def bench(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL...", help="GGUF files, or folders of them.")
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", "-t", metavar="NAME[=PATH]", help="A task, or a JSONL file; repeatable."),
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option("--method", help="letter, text or generate; repeatable. Default: letter.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="The run folder; resumed if there.")
    ] = None,
    language: Annotated[list[str] | None, typer.Option("--lang", help="ja or en; repeatable. Default: all.")] = None,
    shots: Annotated[int, typer.Option(help="Examples before each question, never scored themselves.")] = 0,
    limit: Annotated[int | None, typer.Option(help="A sample of so many questions per task, the same for all.")] = None,
    permutations: Annotated[int, typer.Option(help="Orders of the choices that each question is asked in.")] = 1,
    seed: Annotated[int, typer.Option(help="Of samples, examples and orders.")] = 0,
    template: Annotated[
        str | None, typer.Option(metavar="FILE", help="A prompt template; FILE.py:NAME for one of several.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Ask through the model's chat template.")] = False,
    max_tokens: Annotated[int, typer.Option(help="Longest answer of --method generate.")] = 64,
    five_choice: Annotated[bool, typer.Option("--five-choice", help="Only questions with five choices.")] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave bad rows of a data set out, and count them.")
    ] = False,
    rounds: Annotated[int, typer.Option(help="How often memory and latency are measured; 0: not at all.")] = 3,
    ctx: Annotated[
        int | None, typer.Option(help="Longest prompt in tokens; default: what the model was trained on.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A text: perplexity, and distance to the reference model.")
    ] = None,
    text_ctx: Annotated[int, typer.Option(help="Tokens that the text is cut into.")] = 512,
    text_chunks: Annotated[int | None, typer.Option(help="How much of the text; default: all.")] = None,
    reference: Annotated[
        str | None, typer.Option(help="Model the others are compared with; default: the widest.")
    ] = None,
    stop_when_decided: Annotated[
        bool, typer.Option("--stop-when-decided", help="Ask a level no further once its loss is decided.")
    ] = False,
    margin: Annotated[float, typer.Option(help="Loss in points that --stop-when-decided decides on.")] = 2.0,
    cluster: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Ask on a Dask cluster's workers, such as tcp://host:8786.")
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="Ask models behind an OpenAI-compatible server; MODEL: their ids.")
    ] = None,
    gpu_layers: GpuLayers = "auto",
    kv_type: KvType = "f16",
    flash_attn: FlashAttn = "auto",
    threads: Threads = None,
    force: Force = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Show what would be asked, evaluate nothing.")
    ] = False,
    list_tasks: Annotated[bool, typer.Option("--list-tasks", help="Show the tasks that have names.")] = False,
    as_json: Json = False,
) -> None:
    """Measure accuracy, memory and latency of every model on the same questions; resumes what was interrupted."""
    if list_tasks:  # before anything heavy is imported
        _show_tasks(as_json)
        return
    from jmedlite.api.bench import Options, plan_bench

    options = Options(
        methods=tuple(method or ("letter",)),
        languages=tuple(language or ()),
        shots=shots,
        limit=limit,
        permutations=permutations,
        seed=seed,
        template=template,
        chat=chat,
        max_tokens=max_tokens,
        five_choice=five_choice,
        skip_bad=skip_bad,
        rounds=rounds,
        ctx=ctx,
        gpu_layers=gpu_layers,
        kv_type=kv_type,
        flash_attn=flash_attn,
        threads=threads,
        force=force,
        text=text,
        text_ctx=text_ctx,
        text_chunks=text_chunks,
        reference=reference,
        stop_when_decided=stop_when_decided,
        margin=margin,
        cluster=cluster,
        endpoint=endpoint,
    )
    with StagedProgress() as progress:
        plan = plan_bench(models or [], task or [], out, options, progress)
        if not dry_run:
            done = plan.run(progress)
    if dry_run:
        console.document(plan.document) if as_json else _show_plan(plan.document)
        return
    console.document(done.describe()) if as_json else _show(done)


class StagedProgress(ExitStack):
    """One display after the other, as the work goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = ""
        self.tell: Callable[..., None] = lambda *_: None

    def __call__(self, stage: str, done: int, total: int, of: str) -> None:
        if stage == "notice":
            console.note(of)
            return
        if stage != self.stage:
            self.close()
            bar: Any = console.progress if stage == "hashing" else console.counter
            self.stage, self.tell = stage, self.enter_context(bar(LABELS.get(stage, stage)))
        self.tell(done, total) if stage == "hashing" else self.tell(done, total, of)


def _show_tasks(as_json: bool) -> None:
    from jmedlite.benchmarks.tasks.registry import list_tasks

    tasks = list_tasks()
    if as_json:
        console.document([{k: getattr(t, k) for k in ("name", "title", "lang", "license", "source")} for t in tasks])
        return
    rows = [[t.name, t.lang, t.title, t.license or "", t.source] for t in tasks]
    columns = (("task", "left"), ("language", "left"), ("what it is", "left"), ("license", "left"), ("from", "left"))
    console.table(columns, rows)


def _show_plan(document: dict[str, Any]) -> None:
    for model in document["models"]:
        console.out(
            f"{model['name']}  {console.size(model['n_bytes'])}, {model['bits_per_weight']:.2f} bits per weight"
        )
    for task in document["tasks"]:
        excluded = "; ".join(f"{n:,} {reason}" for reason, n in task["excluded"].items())
        console.out(
            f"{task['name']}  {task['n_asked']:,} of {task['n_items']:,} questions" + f" ({excluded})" * bool(excluded)
        )
    for ask in document["asks"]:
        console.out(
            f"\n--- {ask['task']}, {ask['method']}: {ask['n_requests']:,} prompts; the first one:\n{ask['example']}"
        )


def _show(done: Bench) -> None:
    from jmedlite.runtime.chat_template import NOTICE

    rows = [
        [r["model"], r["task"], r["method"], f"{100 * r['accuracy']:.1f} %" if r["n"] else "-", f"{r['n']:,}"]
        for r in done.accuracies()
    ]
    columns = (("model", "left"), ("task", "left"), ("method", "left"), ("accuracy", "right"), ("n", "right"))
    console.table(columns, rows)
    console.note(f"{done.n_results:,} results in {done.folder}" + (" (resumed)" if done.resumed else ""))
    console.note(f"next: jmedlite report {done.folder}    which level to use, and how sure that is")
    console.note(NOTICE["en"])
