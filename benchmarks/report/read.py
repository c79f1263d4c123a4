"""Run folder, read (docs/runs.md): checked, typed, immutable. A run that was killed reads as far as it got."""

from __future__ import annotations

import json
import types
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from jmedlite.base.errors import DataError, InputMissing, UsageError
from jmedlite.base.halves import HALF, has_halves
from jmedlite.base.inputs import MAX_INDEX, opened, read_bytes
from jmedlite.base.looking import exists, is_dir
from jmedlite.base.records import from_json, to_json
from jmedlite.benchmarks.prompts.templates import METHODS
from jmedlite.benchmarks.records import (
    FAILED,
    FORMAT,
    SCORED,
    STATUSES,
    TOO_LONG,
    VERSION,
    AnswerRecord,
    AskRecord,
    DistanceRecord,
    MeasureRecord,
    ModelRecord,
    NoiseRecord,
    QuestionRecord,
    RunRecord,
    TaskRecord,
)
from jmedlite.benchmarks.scoring import is_right
from jmedlite.benchmarks.tasks.items import NOT_ASKED
from jmedlite.benchmarks.views import primary_view

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """A whole run folder. `torn` names the files whose last line was cut by a kill, and dropped."""

    folder: Path
    created: str
    jmedlite: str
    llama_cpp_python: str | None
    machine: dict[str, Any]
    settings: dict[str, Any]
    models: tuple[ModelRecord, ...]
    tasks: tuple[TaskRecord, ...]
    asks: tuple[AskRecord, ...]
    questions: Mapping[tuple[str, str], QuestionRecord]
    answers: tuple[AnswerRecord, ...]
    measures: tuple[MeasureRecord, ...]
    noise: tuple[NoiseRecord, ...]
    distance: tuple[DistanceRecord, ...]
    torn: tuple[str, ...]

    @property
    def permutations(self) -> int:
        """Under how many orders of its choices each item was to be asked."""
        return max(1, int(self.settings["permutations"]))

    @property
    def n_expected(self) -> int:
        """How many answers the whole run has."""
        asked = {t.name: t.n_asked for t in self.tasks}
        return len(self.models) * sum(asked[a.task] * self.orders_of(a) for a in self.asks)

    def orders_of(self, ask: AskRecord) -> int:
        """Under how many orders of its choices an ask has each item: one where the prompt does not show them."""
        n = next((t.n_asked for t in self.tasks if t.name == ask.task), 0)
        return max(1, ask.n_requests // n) if n else self.permutations


def read_run(folder: Path) -> Run:
    """A run folder; raises InputMissing where there is none, DataError where it is not what docs/runs.md says."""
    if not exists(folder):
        raise InputMissing(f"{folder}: no such folder; expected one that `jmedlite bench --out` wrote")
    if not is_dir(folder):
        raise DataError(f"{folder}: is a file, expected a folder that `jmedlite bench --out` wrote")
    if not exists(folder / "run.json"):
        raise InputMissing(f"{folder}: has no run.json; expected a folder that `jmedlite bench --out` wrote")
    head = _head(folder / "run.json")
    torn: list[str] = []

    def lines(name: str, kind: type[T], key: Callable[[T], object]) -> tuple[T, ...]:
        path = folder / f"{name}.jsonl"
        return tuple(_unique(path, kind, torn, key)) if exists(path) else ()

    questions = _unique(folder / "questions.jsonl", QuestionRecord, torn, lambda q: (q.task, q.id))
    run = Run(
        folder=folder,
        created=head.created,
        jmedlite=head.jmedlite,
        llama_cpp_python=head.llama_cpp_python,
        machine=head.machine,
        settings=to_json(head.settings),
        models=head.models,
        tasks=head.tasks,
        asks=head.asks,
        questions=types.MappingProxyType({(q.task, q.id): q for q in questions}),
        answers=lines("items", AnswerRecord, lambda a: a.key),
        measures=lines("measures", MeasureRecord, lambda m: (m.model, m.round)),
        noise=lines("noise", NoiseRecord, lambda n: (n.model, n.task, n.method)),
        distance=lines("distance", DistanceRecord, lambda d: (d.model, d.text)),
        torn=tuple(torn),
    )
    _check(run)
    return run


def _check(run: Run) -> None:
    """The files of the folder against each other; raises DataError."""
    _check_head(run)
    names, asked = {m.name for m in run.models}, {(a.task, a.method) for a in run.asks}
    for answer in run.answers:
        _check_answer(run, answer, names, asked)
    lines: tuple[MeasureRecord | NoiseRecord | DistanceRecord, ...] = (*run.measures, *run.noise, *run.distance)
    for line in lines:
        if line.model not in names:
            raise DataError(f"{run.folder}: measures model {line.model!r}, which run.json does not list")


def _head(path: Path) -> RunRecord:
    raw = read_bytes(path, MAX_INDEX)
    head = _object(raw, str(path))
    found, version = head.pop("format", None), head.pop("version", None)
    if found != FORMAT:
        raise DataError(f"{path}: its format is {found!r}, expected {FORMAT!r}")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise DataError(f"{path}: its version is {version!r}, expected {VERSION}")
    if version > VERSION:
        raise DataError(f"{path}: has version {version}, this jmedlite reads up to {VERSION}; install a newer jmedlite")
    return from_json(head, RunRecord, str(path))


def _object(raw: bytes, where: str) -> dict[str, Any]:
    """One JSON object; raises DataError, also for numbers that are not finite."""

    def refuse(name: str) -> NoReturn:
        raise DataError(f"{where}: holds {name}, expected finite numbers")

    try:
        value = json.loads(raw.decode("utf-8-sig"), parse_constant=refuse)
    except (ValueError, RecursionError) as e:
        raise DataError(f"{where}: is not JSON in UTF-8 ({e}); was it edited or cut?") from None
    if has_halves(raw, value):
        raise DataError(f"{where}: holds {HALF}; was it edited?")
    if not isinstance(value, dict):
        raise DataError(f"{where}: holds {type(value).__name__}, expected a JSON object")
    return value


def _lines(path: Path, torn: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where and what of every line; a last one that was cut is dropped and told in `torn`."""
    with opened(path) as file:
        for number, raw in enumerate(file, 1):
            where = f"{path} line {number}"
            try:
                record = _object(raw, where)
            except DataError:
                if raw.endswith(b"\n"):
                    raise
                torn.append(path.name)
                return
            yield where, record


def _unique(path: Path, kind: type[T], torn: list[str], key: Callable[[T], object]) -> Iterator[T]:
    """The lines of a file, no two of them with the same key."""
    seen = set()
    for where, record in _lines(path, torn):
        entry = from_json(record, kind, where)
        if key(entry) in seen:
            raise DataError(f"{where}: is there twice ({key(entry)}); expected one line each")
        seen.add(key(entry))
        yield entry


# ------------------------------------------------------------------------------------------------- what must agree


def _check_head(run: Run) -> None:
    """The lists of run.json and questions.jsonl against each other."""

    def fail(what: str) -> NoReturn:
        raise DataError(f"{run.folder}: {what}")

    tasks = {t.name: t for t in run.tasks}
    for what, names in (("model", [m.name for m in run.models]), ("task", [t.name for t in run.tasks])):
        for name, times in Counter(names).items():
            if times > 1:
                fail(f"run.json lists {what} {name!r} {times} times, expected once")
    for ask in run.asks:
        if ask.task not in tasks:
            fail(f"run.json asks task {ask.task!r}, which it does not list")
        if ask.method not in METHODS:
            fail(f"run.json asks by {ask.method!r}, known are {', '.join(METHODS)}")
    try:
        primary_view(run.settings.get("primary"), {ask.method for ask in run.asks})
    except UsageError:
        fail(f"run.json declares primary {run.settings.get('primary')!r}, which is no score of a method that it asks")
    asked: Counter[str] = Counter()
    for q in run.questions.values():
        if q.task not in tasks:
            fail(f"question {q.id} is of task {q.task!r}, which run.json does not list")
        asked[q.task] += q.excluded is None
        if q.excluded is None and not q.answers:
            fail(f"question {q.task} {q.id} has no right answer")
        if any(not 0 <= i < len(q.choices) for i in (*q.answers, *q.contraindicated)):
            fail(f"question {q.task} {q.id} names a choice that it has not")
    for task in run.tasks:
        if task.n_items != task.n_asked + sum(task.excluded.values()):
            fail(f"task {task.name}: {task.n_asked} asked and {sum(task.excluded.values())} excluded are not the "
                 f"{task.n_items} items of run.json")  # fmt: skip
        if asked[task.name] != task.n_asked:
            fail(f"task {task.name}: questions.jsonl has {asked[task.name]} to ask, run.json says {task.n_asked}")


def _check_answer(run: Run, a: AnswerRecord, names: set[str], asked: set[tuple[str, str]]) -> None:
    def fail(what: str) -> NoReturn:
        raise DataError(f"{run.folder / 'items.jsonl'}: {a.model}, {a.task}, {a.method}, {a.id}: {what}")

    if a.model not in names or (a.task, a.method) not in asked:
        fail("run.json lists no such model or way of asking")
    q = run.questions.get((a.task, a.id))
    if q is None or q.excluded is not None:
        fail("is no question that questions.jsonl asks")
    if a.status not in STATUSES:
        fail(f"its status is {a.status!r}, known are {', '.join(STATUSES)}")
    if sorted(a.order) != list(range(len(q.choices))):
        fail(f"its order {list(a.order)} is none of {len(q.choices)} choices")
    if a.status in (TOO_LONG, FAILED, NOT_ASKED):
        return
    if a.picks is None or a.correct is None:
        fail("was scored, but has no picks or no correct")
    if a.scores is not None and len(a.scores) != len(q.choices):
        fail(f"has {len(a.scores)} scores for {len(q.choices)} choices")
    for picks, correct in ((a.picks, a.correct), *([(a.per_token.picks, a.per_token.correct)] if a.per_token else [])):
        if any(not 0 <= i < len(q.choices) for i in picks):
            fail(f"picks {list(picks)} of {len(q.choices)} choices")
        if (
            a.status == SCORED
            and not run.settings.get("preset")
            and correct
            not in (
                set(picks) == set(q.answers),  # as runs before equal choices were judged by their text
                is_right(picks, q.answers, q.choices),
            )
        ):
            fail(f"picks {list(picks)} where {list(q.answers)} is right, yet correct is {str(correct).lower()}")
