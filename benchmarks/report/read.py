"""Run folder, read (docs/runs.md): checked, typed, immutable. A run that was killed reads as far as it got."""

from __future__ import annotations

import json
import types
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from jmedlite.base.errors import DataError, InputMissing
from jmedlite.base.inputs import reading
from jmedlite.benchmarks.tasks.items import NOT_ASKED

FORMAT, VERSION = "jmedlite.run", 1
METHODS = ("letter", "text", "generate")
STATUSES = ("scored", "unparsed", "too long", NOT_ASKED)

T = TypeVar("T")


@dataclass(frozen=True)
class Model:
    """One model of a run. Behind an endpoint, whatever only a file could tell is None."""

    name: str
    base: str
    level: str | None = None
    file: str | None = None
    sha256: str | None = None
    n_bytes: int | None = None
    n_params: int | None = None
    bits_per_weight: float | None = None
    architecture: str | None = None
    title: str | None = None
    license: str | None = None
    made_from: str | None = None
    imatrix: Any = None
    adapters: tuple[Any, ...] = ()
    endpoint: str | None = None


@dataclass(frozen=True)
class Task:
    """One task in one language; `n_items` = `n_asked` + all of `excluded` (reason to count)."""

    name: str
    task: str
    lang: str
    title: str
    n_items: int
    n_asked: int
    excluded: dict[str, int]
    source: str = ""
    revision: str | None = None
    license: str | None = None
    files: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Template:
    """How a question becomes a prompt."""

    name: str
    sha256: str
    text: str = ""


@dataclass(frozen=True)
class Ask:
    """One task asked in one way."""

    task: str
    method: str
    template: Template
    shots: tuple[str, ...] = ()
    n_requests: int | None = None
    example: str = ""


@dataclass(frozen=True)
class Question:
    """One item of a task; `answers` and `contraindicated` are indices into `choices`."""

    task: str
    id: str
    question: str
    choices: tuple[str, ...]
    answers: tuple[int, ...]
    lang: str
    group: str | None = None
    contraindicated: tuple[int, ...] = ()
    human_accuracy: float | None = None
    context: str = ""
    excluded: str | None = None


@dataclass(frozen=True)
class PerToken:
    """What `text` comes to when scores are divided by the numbers of tokens."""

    picks: tuple[int, ...]
    correct: bool
    margin: float | None = None


@dataclass(frozen=True)
class Answer:
    """One result: a model's answer to one item, asked in one way, under one order of its choices."""

    model: str
    task: str
    method: str
    id: str
    status: str
    permutation: int = 0
    order: tuple[int, ...] | None = None
    n_prompt: int | None = None
    scores: tuple[float, ...] | None = None
    picks: tuple[int, ...] | None = None
    correct: bool | None = None
    margin: float | None = None
    mass: float | None = None
    n_tokens: tuple[int, ...] | None = None
    per_token: PerToken | None = None
    response: str | None = None
    stop: str | None = None
    exact: bool | None = None
    gestalt: float | None = None
    parsed: bool | None = None


@dataclass(frozen=True)
class Measure:
    """Memory and latency of one model in one round; None is "not measured"."""

    model: str
    round: int
    n_ctx: int | None = None
    n_threads: int | None = None
    n_gpu_layers: int | None = None
    load_seconds: float | None = None
    prompt_tokens: int | None = None
    prompt_tps: float | None = None
    generation_tokens: int | None = None
    generation_tps: float | None = None
    first_token_seconds: float | None = None
    question_seconds: tuple[float, ...] | None = None
    peak_rss_bytes: int | None = None
    peak_anonymous_bytes: int | None = None
    peak_file_bytes: int | None = None
    kv_bytes: int | None = None
    vram_bytes: dict[str, int] | None = None


@dataclass(frozen=True)
class Noise:
    """How far the distances between choices' scores move when items share batches or not, in nats."""

    model: str
    task: str
    method: str
    n: int
    max: float | None
    median: float | None
    picks_changed: int


@dataclass(frozen=True)
class Distance:
    """Distance to the reference's next-token distribution on a text, in nats."""

    model: str
    reference: str | None = None
    text_sha256: str | None = None
    n_ctx: int | None = None
    n_tokens: int | None = None
    perplexity: float | None = None
    perplexity_error: float | None = None
    kl_mean: float | None = None
    kl_error: float | None = None
    kl_median: float | None = None
    kl_quantiles: dict[str, float] | None = None
    kl_max: float | None = None
    top_agreement: float | None = None
    top_agreement_error: float | None = None


@dataclass(frozen=True)
class Run:
    """A whole run folder. `torn` names the files whose last line was cut by a kill, and dropped."""

    folder: Path
    created: str
    jmedlite: str | None
    llama_cpp_python: str | None
    machine: dict[str, Any]
    settings: dict[str, Any]
    models: tuple[Model, ...]
    tasks: tuple[Task, ...]
    asks: tuple[Ask, ...]
    questions: Mapping[tuple[str, str], Question]
    answers: tuple[Answer, ...]
    measures: tuple[Measure, ...]
    noise: tuple[Noise, ...]
    distance: tuple[Distance, ...]
    torn: tuple[str, ...]

    @property
    def permutations(self) -> int:
        """Under how many orders of its choices each item was to be asked."""
        return max(1, int(self.settings.get("permutations") or 1))

    @property
    def n_expected(self) -> int:
        """How many answers the whole run has."""
        asked = {t.name: t.n_asked for t in self.tasks}
        return len(self.models) * sum(asked[a.task] * self.orders_of(a) for a in self.asks)

    def orders_of(self, ask: Ask) -> int:
        """Under how many orders of its choices an ask has each item: one where the prompt does not show them."""
        n = next((t.n_asked for t in self.tasks if t.name == ask.task), 0)
        return self.permutations if ask.n_requests is None or not n else max(1, ask.n_requests // n)


def read_run(folder: Path) -> Run:
    """A run folder; raises InputMissing where there is none, DataError where it is not what docs/runs.md says."""
    if not folder.exists():
        raise InputMissing(f"{folder}: no such folder; expected one that `jmedlite bench --out` wrote")
    if not folder.is_dir():
        raise DataError(f"{folder}: is a file, expected a folder that `jmedlite bench --out` wrote")
    if not (folder / "run.json").exists():
        raise InputMissing(f"{folder}: has no run.json; expected a folder that `jmedlite bench --out` wrote")
    where = folder / "run.json"
    head = _head(where)
    torn: list[str] = []

    def fact(name: str, kind: Any) -> Any:
        return _fit(head.get(name), kind, f"{where}: {name}")

    def lines(name: str, kind: type[T], key: Callable[[T], object]) -> tuple[T, ...]:
        path = folder / f"{name}.jsonl"
        return tuple(_unique(path, kind, torn, key)) if path.exists() else ()

    questions = _unique(folder / "questions.jsonl", Question, torn, lambda q: (q.task, q.id))
    run = Run(
        folder=folder,
        created=fact("created", str),
        jmedlite=fact("jmedlite", str | None),
        llama_cpp_python=fact("llama_cpp_python", str | None),
        machine=fact("machine", dict[str, Any]),
        settings=fact("settings", dict[str, Any]),
        models=_list(head, "models", Model, where),
        tasks=_list(head, "tasks", Task, where),
        asks=_list(head, "asks", Ask, where),
        questions=types.MappingProxyType({(q.task, q.id): q for q in questions}),
        answers=lines("items", Answer, lambda a: (a.model, a.task, a.method, a.permutation, a.id)),
        measures=lines("measures", Measure, lambda m: (m.model, m.round)),
        noise=lines("noise", Noise, lambda n: (n.model, n.task, n.method)),
        distance=lines("distance", Distance, lambda d: d.model),
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
    lines: tuple[Measure | Noise | Distance, ...] = (*run.measures, *run.noise, *run.distance)
    for line in lines:
        if line.model not in names:
            raise DataError(f"{run.folder}: measures model {line.model!r}, which run.json does not list")


def _head(path: Path) -> dict[str, Any]:
    with reading(path):
        raw = path.read_bytes()
    head = _object(raw, str(path))
    if head.get("format") != FORMAT:
        raise DataError(f"{path}: its format is {head.get('format')!r}, expected {FORMAT!r}")
    version = head.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise DataError(f"{path}: its version is {version!r}, expected {VERSION}")
    if version > VERSION:
        raise DataError(f"{path}: has version {version}, this jmedlite reads up to {VERSION}; install a newer jmedlite")
    return head


def _object(raw: bytes, where: str) -> dict[str, Any]:
    """One JSON object; raises DataError, also for numbers that are not finite."""

    def refuse(name: str) -> NoReturn:
        raise DataError(f"{where}: holds {name}, expected finite numbers")

    try:
        value = json.loads(raw.decode("utf-8-sig"), parse_constant=refuse)
    except (ValueError, RecursionError) as e:
        raise DataError(f"{where}: is not JSON in UTF-8 ({e}); was it edited or cut?") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: holds {type(value).__name__}, expected a JSON object")
    return value


def _list(head: dict[str, Any], name: str, kind: type[T], path: Path) -> tuple[T, ...]:
    found = head.get(name)
    if not isinstance(found, list):
        raise DataError(f"{path}: has no list of {name}")
    return tuple(_fit(entry, kind, f"{path}: {name}[{i}]") for i, entry in enumerate(found))


def _lines(path: Path, torn: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where and what of every line; a last one that was cut is dropped and told in `torn`."""
    with reading(path), path.open("rb") as file:
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
        entry: T = _fit(record, kind, where)
        if key(entry) in seen:
            raise DataError(f"{where}: is there twice ({key(entry)}); expected one line each")
        seen.add(key(entry))
        yield entry


# ------------------------------------------------------------------------------------------- values against types


@cache
def _shape(kind: type[Any]) -> tuple[tuple[str, Any, bool], ...]:
    """(name, type, whether it must be there) of each field of a dataclass."""
    hints = get_type_hints(kind)
    return tuple((f.name, hints[f.name], f.default is MISSING) for f in fields(kind))


def _fit(value: Any, kind: Any, where: str) -> Any:
    """A JSON value as `kind`: a dataclass, a plain type, a tuple, a dict or a union. Unknown fields are ignored."""
    if hasattr(kind, "__dataclass_fields__"):
        if not isinstance(value, dict):
            raise DataError(f"{where}: is {_short(value)}, expected an object")
        for name, _, needed in _shape(kind):
            if needed and name not in value:
                raise DataError(f"{where}: has no {name}")
        return kind(**{n: _fit(value[n], t, f"{where}: {n}") for n, t, _ in _shape(kind) if n in value})
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        return _fit(value, arguments[0], where)
    if origin is tuple and isinstance(value, list):
        return tuple(_fit(v, arguments[0], where) for v in value)
    if origin is dict and isinstance(value, dict):
        return {k: _fit(v, arguments[1], f"{where}: {k}") for k, v in value.items()}
    if kind is Any:
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type) and isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise DataError(f"{where}: is {_short(value)}, expected {_WORDS.get(origin or kind, 'another kind of value')}")


_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", tuple: "a list",
          dict: "an object"}  # fmt: skip


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:40] + "…"


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


def _check_answer(run: Run, a: Answer, names: set[str], asked: set[tuple[str, str]]) -> None:
    def fail(what: str) -> NoReturn:
        raise DataError(f"{run.folder / 'items.jsonl'}: {a.model}, {a.task}, {a.method}, {a.id}: {what}")

    if a.model not in names or (a.task, a.method) not in asked:
        fail("run.json lists no such model or way of asking")
    q = run.questions.get((a.task, a.id))
    if q is None or q.excluded is not None:
        fail("is no question that questions.jsonl asks")
    if a.status not in STATUSES:
        fail(f"its status is {a.status!r}, known are {', '.join(STATUSES)}")
    if a.order is not None and sorted(a.order) != list(range(len(q.choices))):
        fail(f"its order {list(a.order)} is none of {len(q.choices)} choices")
    if a.status in ("too long", NOT_ASKED):
        return
    if a.picks is None or a.correct is None:
        fail("was scored, but has no picks or no correct")
    if a.scores is not None and len(a.scores) != len(q.choices):
        fail(f"has {len(a.scores)} scores for {len(q.choices)} choices")
    for picks, correct in ((a.picks, a.correct), *([(a.per_token.picks, a.per_token.correct)] if a.per_token else [])):
        if any(not 0 <= i < len(q.choices) for i in picks):
            fail(f"picks {list(picks)} of {len(q.choices)} choices")
        if a.status == "scored" and correct != (set(picks) == set(q.answers)):
            fail(f"picks {list(picks)} where {list(q.answers)} is right, yet correct is {str(correct).lower()}")
