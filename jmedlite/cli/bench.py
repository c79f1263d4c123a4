"""The command that measures: `bench`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from jmedlite.api.bench_options import BenchOptions

from . import console
from .options import JsonFlag, spread

if TYPE_CHECKING:
    from jmedlite.api.bench import Bench


@spread
def bench(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL...", help="GGUF files, or folders of them.")
    ] = None,
    *,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", "-t", metavar="NAME[=PATH]", help="A task, or a JSONL file; repeatable."),
    ] = None,
    options: BenchOptions,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Show what would be asked, evaluate nothing.")
    ] = False,
    list_tasks: Annotated[bool, typer.Option("--list-tasks", help="Show the tasks that have names.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Measure accuracy, memory and latency of every model on the same questions; resumes what was interrupted."""
    if list_tasks:  # before anything heavy is imported
        _show_tasks(as_json)
        return
    from jmedlite.api.bench import plan_bench
    from jmedlite.api.model_facts import tell_model

    with console.progress() as progress:
        plan = plan_bench(models or [], task or [], options, progress, console.note)
        if not dry_run:
            for model in plan.document["models"]:
                if model.get("made_here") is False:
                    console.note(tell_model(model))
            done = plan.run(progress, console.note)
    if dry_run:
        console.document(plan.document) if as_json else _show_plan(plan.document)
        return
    console.document(done.describe()) if as_json else _show(done)


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
    from jmedlite.api.model_facts import tell_model

    for model in document["models"]:
        console.say(
            f"{model['name']}  {console.size(model['n_bytes'])}, {model['bits_per_weight']:.2f} bits per weight"
        )
        if model.get("types"):
            console.say(f"  {tell_model(model).removeprefix(model['name'] + ': ')}")
    for task in document["tasks"]:
        excluded = "; ".join(f"{n:,} {reason}" for reason, n in task["excluded"].items())
        console.say(
            f"{task['name']}  {task['n_asked']:,} of {task['n_items']:,} questions" + f" ({excluded})" * bool(excluded)
        )
    for ask in document["asks"]:
        console.say(f"\n--- {ask['task']}, {ask['method']}: {ask['n_requests']:,} prompts; the first one:")
        console.out(ask["example"])


def _show(done: Bench) -> None:
    from jmedlite.base.language import is_japanese
    from jmedlite.runtime.chat_template import NOTICE

    rows = [
        [r["model"], r["task"], r["analysis"], f"{100 * r['accuracy']:.1f} %" if r["n"] else "-", f"{r['n']:,}"]
        for r in done.accuracies()
    ]
    columns = (("model", "left"), ("task", "left"), ("analysis", "left"), ("accuracy", "right"), ("n", "right"))
    console.table(columns, rows)
    for model, task, mass in done.low_masses():
        console.warn(
            f"{model}, {task}: the letters together have {100 * mass:.2g} % of the probability in half of the "
            "questions; the model wanted to say something else, so --method generate tells more"
        )
    console.note(f"{done.n_results:,} results in {done.folder}" + (" (resumed)" if done.resumed else ""))
    console.note(f"next: jmedlite report {done.folder}    which level to use, and how sure that is")
    console.note(NOTICE["ja" if is_japanese() else "en"])
