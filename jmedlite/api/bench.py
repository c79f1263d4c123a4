"""`bench` for the command line and for Python: models and tasks found and described, then asked and measured."""

from __future__ import annotations

import datetime
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jmedlite.base.errors import UsageError
from jmedlite.base.gguf import split_files
from jmedlite.base.inputs import Watch, watching
from jmedlite.base.progress import Notice, Progress, silent
from jmedlite.base.records import from_json, to_json
from jmedlite.benchmarks.prompts.presets import PRESETS, PROMPTS, as_asked
from jmedlite.benchmarks.prompts.requests import Ask, make_ask
from jmedlite.benchmarks.prompts.templates import Template, own_template, read_template
from jmedlite.benchmarks.records import (
    AnswerRecord,
    AskRecord,
    FileRecord,
    ModelRecord,
    RunRecord,
    SettingsRecord,
    TaskRecord,
)
from jmedlite.benchmarks.run.distance import Text
from jmedlite.benchmarks.run.folder import ITEMS, RunFolder, read_lines
from jmedlite.benchmarks.run.measure import DistanceSettings, measure_costs, measure_text
from jmedlite.benchmarks.run.run import AskSettings, ask_all, question_lines, run_keys
from jmedlite.benchmarks.scoring import low_mass
from jmedlite.benchmarks.tasks.items import Dataset, Left
from jmedlite.benchmarks.tasks.load import load_task
from jmedlite.benchmarks.tasks.sample import draw_examples, shuffled, stratified
from jmedlite.benchmarks.views import VIEWS, primary_view
from jmedlite.runtime.hardware import describe_machine

from .bench_options import BenchOptions
from .participants import Participants, behind_a_server, files_here, files_on_a_cluster


@dataclass(frozen=True)
class Bench:
    """A finished run: its folder, and how many results it has."""

    folder: Path
    n_results: int
    resumed: bool

    def accuracies(self) -> list[dict[str, Any]]:
        """Share of right answers per model, task and analysis, of the `n` questions that were not too long."""
        counts: dict[tuple[str, str, str, str], list[int]] = {}
        for n, line in enumerate(read_lines(self.folder / ITEMS), 1):
            answer = from_json(line, AnswerRecord, f"{self.folder / ITEMS} line {n}")
            for view in (v for v in VIEWS if v.method == answer.method):
                entry = counts.setdefault((answer.model, answer.task, answer.method, view.name), [0, 0])
                if (right := view.correct(answer)) is not None:
                    entry[0] += right
                    entry[1] += 1
        names = ("model", "task", "method", "analysis")
        return [
            {**dict(zip(names, key, strict=True)), "accuracy": right / n if n else None, "n_correct": right, "n": n}
            for key, (right, n) in counts.items()
        ]

    def low_masses(self) -> list[tuple[str, str, float]]:
        """(model, task, median) where the letters together have less of the probability than `LOW_MASS`."""
        found: dict[tuple[str, str], list[float]] = {}
        for line in read_lines(self.folder / ITEMS):
            if line.get("mass") is not None:
                found.setdefault((line["model"], line["task"]), []).append(line["mass"])
        return [(*key, mass) for key, masses in found.items() if (mass := low_mass(masses)) is not None]

    def describe(self) -> dict[str, Any]:
        """For `--json`."""
        facts = {"folder": str(self.folder), "n_results": self.n_results, "resumed": self.resumed}
        return {**facts, "accuracies": self.accuracies()}


@dataclass(frozen=True)
class Planned:
    """A run that is ready: `document` is its `run.json`."""

    options: BenchOptions
    participants: Participants
    datasets: Sequence[Dataset]
    asks: Sequence[Ask]
    document: dict[str, Any]
    reference: str
    texts: Sequence[Text]
    inputs: Watch  # the models' files, which are read again and again, and the texts'

    def run(self, progress: Progress, notice: Notice) -> Bench:
        """Ask and measure what is not in the folder yet."""
        out = self.options.out
        if out is None:
            raise UsageError("no --out given; name the folder for the results")
        options, models, loading = self.options, self.participants.models, self.options.loading()
        margin = options.margin if options.stop_when_decided else None
        settings = AskSettings(
            options.ctx,
            options.chat,
            options.max_tokens,
            margin,
            primary_view(options.primary, options.methods),
            options.think,
            options.think_budget,
            options.variables,
        )
        keys = run_keys([m.name for m in models], self.asks)
        questions = question_lines(self.datasets)
        with self.inputs.held(), RunFolder(out, self.document, questions, keys, self.inputs.check) as folder:
            ask_all(folder, models, self.asks, settings, progress, notice)
            files = [(m.name, self.participants.files[m.name]) for m in models if m.name in self.participants.files]
            whole = settings.wanted(self.asks[0])
            measure_costs(folder, files, loading, whole, options.rounds, progress)
            if self.texts:
                read = DistanceSettings(self.texts, self.reference, options.text_ctx, options.text_chunks)
                measure_text(folder, files, loading, read, progress, notice)
            return Bench(out, folder.n_items, folder.resumed)


def bench(
    models: Sequence[str | Path],
    *,
    tasks: Sequence[str],
    out: str | Path,
    options: BenchOptions | None = None,
    progress: Progress = silent,
    notice: Notice = silent,
    **changes: Any,
) -> Bench:
    """Ask every model the same questions, measure what each costs, and leave a run folder (docs/runs.md).

        >>> jmedlite.bench(["gguf"], tasks=["igakuqa=IgakuQA"], out="runs/first", limit=200)  # doctest: +SKIP

    `models` are GGUF files, or folders of them; `tasks` as on the command line (`NAME`, `NAME=PATH`, a JSONL file).
    Further arguments are the fields of `BenchOptions`: methods ("letter", "text", "generate"), languages, shots, limit,
    permutations, seed, template, chat, max_tokens, rounds, ctx, threads, text, cluster (an address), endpoint (a URL;
    `models` are then ids there), and more. A run that was interrupted goes on where it stopped; a folder that holds
    another run is refused. `progress` hears how far it is, `notice` sentences (docs/python.md). Raises the exceptions
    of `jmedlite.base.errors`.
    """
    options = replace(options or BenchOptions(), out=Path(out), **changes)
    return plan_bench(models, tasks, options, progress, notice).run(progress, notice)


def plan_bench(
    models: Sequence[str | Path], tasks: Sequence[str], options: BenchOptions, progress: Progress, notice: Notice
) -> Planned:
    """Find and check all that a run needs, before anything is evaluated."""
    if options.preset:
        tasks = tasks or PRESETS[options.preset].tasks
        notice(
            f"--preset {options.preset}: --method generate, {options.max_tokens} tokens, no examples, the papers' "
            "prompts and scoring (docs/bench.md)"
        )
    if not tasks:
        raise UsageError("no --task given; `jmedlite bench --list-tasks` shows their names, or give a JSONL file")
    with watching() as inputs:
        template = read_template(options.template, options.methods) if options.template else None
        texts = tuple(Text.read(path, name) for name, path in options.texts.items())
        datasets, asks = make_asks(tasks, options, template)
        if options.stop_when_decided and len(asks) > 1:
            raise UsageError("--stop-when-decided: decides one question, so it takes one task, --lang and --method")
        participants = find_participants(models, options, progress, notice)
        inputs.check()
    reference = participants.reference(options.reference)
    if options.stop_when_decided:
        participants = participants.first(reference)  # the others are compared with it as they go
    document = describe_run(options, participants, datasets, asks)
    files = [part for path in participants.files.values() for part in split_files(path)]
    watched = inputs.of([*files, *options.texts.values()])
    return Planned(options, participants, datasets, asks, document, reference, texts, watched)


def find_participants(
    models: Sequence[str | Path], options: BenchOptions, progress: Progress, notice: Notice
) -> Participants:
    """The models of a run, wherever they are."""
    if options.endpoint:
        return behind_a_server(models, options.endpoint, notice, options.timeout, options.concurrency)
    if options.cluster:
        return files_on_a_cluster(models, options.loading(), options.cluster, progress)
    return files_here(models, options.loading(), progress, options.processes)


# ------------------------------------------------------------------------------------------------------- tasks


def make_asks(
    tasks: Sequence[str], options: BenchOptions, template: Template | None
) -> tuple[list[Dataset], list[Ask]]:
    """The data sets of all tasks, as they are asked, and every way of asking them."""
    datasets: list[Dataset] = []
    asks: list[Ask] = []
    for spec in tasks:
        for loaded in load_task(
            spec,
            options.languages or (PRESETS[options.preset].languages if options.preset else ()),
            skip_bad=options.skip_bad,
            five_choice=options.five_choice,
            with_examples=options.shots > 0,
        ):
            dataset = as_asked(loaded) if options.preset else loaded
            if any(d.name == dataset.name for d in datasets):
                raise UsageError(
                    f"two tasks are called {dataset.name}; give one of them a name, as in --task NAME=PATH"
                )
            shots, kept = draw_examples(dataset, options.shots, options.seed)
            kept = limited(kept, options.limit, options.seed)
            if options.stop_when_decided:
                kept = replace(kept, items=shuffled(kept.items, options.seed))
            datasets.append(kept)
            for method in dict.fromkeys(options.methods):
                chosen = template or (PROMPTS[dataset.lang] if options.preset else own_template(method, dataset.lang))
                asked_as = bool(options.preset)
                asks.append(make_ask(kept, method, chosen, shots, options.permutations, options.seed, asked_as))
    return datasets, asks


def limited(dataset: Dataset, limit: int | None, seed: int) -> Dataset:
    """A seeded sample of `limit` items, stratified by group; the others are left out by name."""
    if limit is None or limit >= len(dataset.items):
        return dataset
    chosen = set(stratified(dataset.items, limit, seed))
    reason = f"not in the sample of --limit {limit}"
    gone = [Left(item.id, reason, item) for i, item in enumerate(dataset.items) if i not in chosen]
    kept = tuple(item for i, item in enumerate(dataset.items) if i in chosen)
    return replace(dataset, items=kept, left=(*dataset.left, *gone))


# --------------------------------------------------------------------------------------------------------- run


def describe_run(
    options: BenchOptions, participants: Participants, datasets: Sequence[Dataset], asks: Sequence[Ask]
) -> dict[str, Any]:
    """`run.json`; of a server's machine nothing is known. Raises DataError where a server tells what makes no sense."""
    machine = {} if options.endpoint else describe_machine()
    keys = ("system", "cpu", "cpu_features", "physical_cores", "ram_bytes", "gpus")
    record = RunRecord(
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        jmedlite=importlib.metadata.version("jmedlite"),
        llama_cpp_python=None if options.endpoint else importlib.metadata.version("llama-cpp-python"),
        machine={k: machine[k] for k in keys if k in machine},
        workers=participants.workers,
        settings=SettingsRecord(**options.describe()),
        models=tuple(from_json(dict(m.facts), ModelRecord, m.name) for m in participants.models),
        tasks=tuple(describe_task(d) for d in datasets),
        asks=tuple(from_json(ask.describe(), AskRecord, ask.dataset.name) for ask in asks),
        order="models, then asks, then permutations, then items",
    )
    return to_json(record)


def describe_task(dataset: Dataset) -> TaskRecord:
    """A task's entry in `run.json`: `n_items` is `n_asked` and all that is excluded."""
    excluded: dict[str, int] = {}
    for left in dataset.left:
        excluded[left.reason] = excluded.get(left.reason, 0) + 1
    return TaskRecord(
        name=dataset.name,
        task=dataset.task,
        lang=dataset.lang,
        title=dataset.title,
        source=dataset.source,
        revision=dataset.revision,
        license=dataset.license,
        files=tuple(FileRecord(**f) for f in dataset.files),
        n_items=len(dataset.items) + len(dataset.left),
        n_asked=len(dataset.items),
        excluded=excluded,
        date=dataset.date,
    )
