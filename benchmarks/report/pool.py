"""Several runs laid side by side: which models enter, what each was asked, and which answers may be paired."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jmedlite.benchmarks.records import (
    FAILED,
    TOO_LONG,
    AnswerRecord,
    AskRecord,
    DistanceRecord,
    MeasureRecord,
    ModelRecord,
    NoiseRecord,
    QuestionRecord,
    TaskRecord,
)
from jmedlite.benchmarks.tasks.items import NOT_ASKED
from jmedlite.benchmarks.views import VIEWS, View, primary_view

from .read import Run


class Item(NamedTuple):  # of all tables here the key: a tuple's hash is quick
    """A question as it was asked. Two runs share one only where text, choices, template and examples are the same."""

    task: str
    id: str
    fingerprint: str


@dataclass(frozen=True)
class Facts:
    """What there is to know of an item; `cluster` is the question behind it, the same in every language."""

    question: QuestionRecord
    task: TaskRecord
    cluster: tuple[str, str]


@dataclass(frozen=True)
class Entrant:
    """A model of the report. The same file that was asked other things in other runs is one entrant.

    `key` is unique in the report; `label` is unique in the family and short.
    """

    key: str
    label: str
    family: str
    model: ModelRecord
    runs: tuple[int, ...]


Unit = tuple[Item, int]  # an item under one order of its choices
Sheet = Mapping[Unit, AnswerRecord]  # what one model answered


@dataclass(frozen=True)
class Pool:
    """All runs together. `sheets[method][entrant key]` has scored and unparsed answers, `too_long` the others."""

    runs: tuple[Run, ...]
    entrants: tuple[Entrant, ...]
    facts: Mapping[Item, Facts]
    sheets: Mapping[str, Mapping[str, Sheet]]
    too_long: Mapping[str, Mapping[str, frozenset[Unit]]]
    asked: Mapping[str, Mapping[str, frozenset[Unit]]]

    def measures(self, entrant: Entrant) -> list[MeasureRecord]:
        return [m for i in entrant.runs for m in self.runs[i].measures if m.model == entrant.model.name]

    def noise(self, entrant: Entrant, method: str) -> dict[str, NoiseRecord]:
        """By task."""
        lines = (n for i in entrant.runs for n in self.runs[i].noise)
        return {n.task: n for n in lines if n.model == entrant.model.name and n.method == method}

    def distances(self, entrant: Entrant) -> list[tuple[int, DistanceRecord]]:
        """Of every text, with the number of the run."""
        return [(i, d) for i in entrant.runs for d in self.runs[i].distance if d.model == entrant.model.name]

    def family(self, name: str) -> list[Entrant]:
        return [e for e in self.entrants if e.family == name]

    @property
    def families(self) -> list[str]:
        return list(dict.fromkeys(e.family for e in self.entrants))

    @property
    def declared(self) -> list[str]:
        """The primary analyses that the runs declared, in their order."""
        return list(dict.fromkeys(name for run in self.runs if (name := run.settings.get("primary"))))

    @property
    def primary(self) -> View:
        """What the verdict goes by: what the first run that declared it did, else the default of what was asked."""
        return primary_view(next(iter(self.declared), None), {ask.method for run in self.runs for ask in run.asks})

    def counts(self, view: View) -> bool:
        """Whether answers of its method are counted so first: by the primary analysis, or by the method's default."""
        own = self.primary if self.primary.method == view.method else primary_view(None, {view.method})
        return view == own

    def view_keys(self) -> list[View]:
        """The primary analysis, and every other view that has an answer; nothing where there is no answer at all."""
        found = []
        for view in VIEWS:
            answers = (a for sheet in self.sheets.get(view.method, {}).values() for a in sheet.values())
            if any(view.correct(a) is not None for a in answers):
                found.append(view)
        return [self.primary, *(view for view in found if view != self.primary)] if found else []

    def asked_alike(self) -> bool:
        """Whether all models were asked the same questions (primary view), so that their accuracies can be compared."""
        asked = {
            self.asked[view.method][key]
            for view in self.view_keys()[:1]
            for key, sheet in self.sheets.get(view.method, {}).items()
            if sheet
        }
        return len(asked) < 2


def pool(runs: Sequence[Run]) -> Pool:
    """Lay runs side by side."""
    entrants = _entrants(runs)
    facts: dict[Item, Facts] = {}
    sheets: dict[str, dict[str, dict[Unit, AnswerRecord]]] = defaultdict(lambda: defaultdict(dict))
    too_long: dict[str, dict[str, set[Unit]]] = defaultdict(lambda: defaultdict(set))
    asked: dict[str, dict[str, set[Unit]]] = defaultdict(lambda: defaultdict(set))
    for index, run in enumerate(runs):
        names = {e.model.name: e.key for e in entrants if index in e.runs}
        items = _items(run, facts)
        orders = {(ask.task, ask.method): run.orders_of(ask) for ask in run.asks}
        for (task, method, _), item in items.items():
            for key in names.values():
                asked[method][key] |= {(item, p) for p in range(orders[task, method])}
        for a in run.answers:
            unit = items[a.task, a.method, a.id], a.permutation
            if a.status in (NOT_ASKED, FAILED):
                continue
            if a.status == TOO_LONG:
                too_long[a.method][names[a.model]].add(unit)
            else:
                sheets[a.method][names[a.model]][unit] = a
    return Pool(tuple(runs), entrants, facts, sheets, _frozen(too_long), _frozen(asked))


def _frozen(sets: Mapping[str, Mapping[str, set[Unit]]]) -> dict[str, dict[str, frozenset[Unit]]]:
    return {method: {key: frozenset(units) for key, units in by.items()} for method, by in sets.items()}


def _items(run: Run, facts: dict[Item, Facts]) -> dict[tuple[str, str, str], Item]:
    """(task, method, id) to item, for all that was to be asked; fills in `facts`."""
    tasks = {t.name: t for t in run.tasks}
    found = {}
    for ask in run.asks:
        for q in run.questions.values():
            if q.task == ask.task and q.excluded is None:
                item = Item(q.task, q.id, _fingerprint(run, ask, q))
                found[ask.task, ask.method, q.id] = item
                facts[item] = Facts(q, tasks[q.task], (tasks[q.task].task, q.id))
    return found


def _fingerprint(run: Run, ask: AskRecord, q: QuestionRecord) -> str:
    """Of all that makes two askings of a question the same; permutations are the same where seed and number are."""
    orders = (run.permutations, run.settings.get("seed")) if run.permutations > 1 else 1
    scored = (run.settings["preset"],) if run.settings.get("preset") else ()  # its rule of scoring is another
    parts = (*scored, q.question, q.context, q.choices, q.answers, ask.method, ask.template.sha256, ask.shots, orders)
    return hashlib.sha256(repr((*parts, bool(run.settings.get("chat")))).encode()).hexdigest()[:16]


def _entrants(runs: Sequence[Run]) -> tuple[Entrant, ...]:
    """Same name and file, asked different things: one entrant. Asked the same things twice: one for each run."""
    places: dict[tuple[str, str | None], list[int]] = {}
    for index, run in enumerate(runs):
        for model in run.models:
            places.setdefault((model.name, model.sha256), []).append(index)
    found: list[tuple[ModelRecord, tuple[int, ...]]] = []
    for (name, sha256), indices in places.items():
        asks = [(a.task, a.method) for i in indices for a in runs[i].asks]
        models = {i: m for i in indices for m in runs[i].models if (m.name, m.sha256) == (name, sha256)}
        if len(set(asks)) == len(asks):
            found.append((models[indices[0]], tuple(indices)))
        else:
            found += [(models[i], (i,)) for i in indices]
    found.sort(key=lambda f: f[1][0])
    entrants: list[Entrant] = []
    for model, indices_ in found:
        folder = runs[indices_[0]].folder.resolve().name
        twice = sum(m.name == model.name for m, _ in found) > 1
        key = _fresh(f"{model.name} ({folder})" if twice else model.name, {e.key for e in entrants})
        short = _short(model)
        same = sum(_short(m) == short and m.base == model.base for m, _ in found) > 1
        label = _fresh(f"{short} ({folder})" if same else short, {e.label for e in entrants if e.family == model.base})
        entrants.append(Entrant(key, label, model.base, model, indices_))
    return tuple(entrants)


def _short(model: ModelRecord) -> str:
    """What a model is called beside others of its base: the level, as its file's name has it."""
    return model.label or model.level or model.name


def _fresh(name: str, taken: set[str]) -> str:
    """`name`, numbered where it is taken."""
    candidate, number = name, 2
    while candidate in taken:
        candidate, number = f"{name} #{number}", number + 1
    return candidate
