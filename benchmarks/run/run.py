"""One run: every model asked every question, each result on disk as soon as it is there, from wherever it stopped."""

from __future__ import annotations

import statistics
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

from jmedlite.base.errors import DataError
from jmedlite.base.progress import Notice, Progress, silent
from jmedlite.benchmarks.backends.base import Answerer, Prepared, RawAnswer, Wanted
from jmedlite.benchmarks.prompts.requests import Ask
from jmedlite.benchmarks.records import AnswerKey, AnswerRecord, NoiseRecord, Outcome, QuestionRecord
from jmedlite.benchmarks.scoring import no_outcome, score
from jmedlite.benchmarks.statistics import ALPHA, Sequential
from jmedlite.benchmarks.tasks.items import NOT_ASKED, Dataset, Item, Left
from jmedlite.benchmarks.views import View

from .folder import NOISE, RunFolder

N_NOISE = 16  # questions of each model, task and method that are asked once more, alone


@dataclass(frozen=True)
class Participant:
    """A model of a run: `facts` as in `run.json`, and how to open what answers for it."""

    name: str
    facts: Mapping[str, Any]
    open: Callable[[], AbstractContextManager[Answerer]]


@dataclass(frozen=True)
class AskSettings:
    """What every question is asked with; part of the run's identity (docs/runs.md).

    With `margin` (points) a model is asked no further as soon as an anytime-valid test against the first model decides
    whether it loses more than that, by what `primary` counts as right.
    """

    n_ctx: int | None = None
    chat: bool = False
    max_tokens: int = 64
    margin: float | None = None
    primary: View | None = None
    think: bool | None = None
    think_budget: int | None = None
    template_vars: Mapping[str, Any] = field(default_factory=dict)

    def wanted(self, ask: Ask) -> Wanted:
        return Wanted(
            prompts=tuple(ask.prompts()),
            chat=self.chat,
            n_ctx=self.n_ctx,
            max_tokens=self.max_tokens if ask.method == "generate" else 0,
            newline_ends=ask.template.own,
            think=False if self.think_budget == 0 else self.think,
            think_budget=self.think_budget,
            template_vars=dict(self.template_vars),
        )


def run_keys(models: Sequence[str], asks: Sequence[Ask]) -> list[AnswerKey]:
    """The keys of all results of a run, in their order."""
    return [
        (model, ask.dataset.name, ask.method, permutation, item.id)
        for model in models
        for ask in asks
        for item, permutation, _ in ask.questions
    ]


def question_lines(datasets: Sequence[Dataset]) -> list[QuestionRecord]:
    """`questions.jsonl`: every item of every task, those first that are asked."""
    return [
        line
        for dataset in datasets
        for line in (
            *(_question(dataset, item, None) for item in dataset.items),
            *(_question(dataset, left.item, left.reason, left) for left in dataset.left),
        )
    ]


def _question(dataset: Dataset, item: Item | None, excluded: str | None, left: Left | None = None) -> QuestionRecord:
    if item is None:
        assert left is not None
        item = Item(left.id, "", (), (), dataset.lang)
    facts = {**vars(item), "groups": dict(item.groups) or None, "marks": item.marks or (left.marks if left else None)}
    return QuestionRecord(task=dataset.name, **facts, excluded=excluded)


def ask_all(
    folder: RunFolder,
    models: Sequence[Participant],
    asks: Sequence[Ask],
    settings: AskSettings,
    progress: Progress,
    notice: Notice = silent,
) -> None:
    """Fill the folder's `items.jsonl` and `noise.jsonl`; goes on behind what is there.

    `notice` hears what was asked of a model's chat template in vain. Raises DataError, once everything is asked, where
    a model has answered nothing at all.
    """
    sizes = [len(ask.questions) for ask in asks]
    total = len(models) * sum(sizes)
    noisy = {(n.model, n.task, n.method) for n in folder.records(NOISE, NoiseRecord)}
    progress("questions", folder.n_items, total, "")
    begin = 0
    silent_models: list[str] = []
    for model in models:
        end = begin + sum(sizes)
        missing = [a for a in asks if (model.name, a.dataset.name, a.method) not in noisy]
        if folder.n_items < end or missing:
            with model.open() as answerer:
                at = begin
                for ask, size in zip(asks, sizes, strict=True):
                    one = _Asking(folder, model.name, answerer, ask, settings.wanted(ask), at)
                    if settings.margin is not None and begin:
                        first = folder.items(at - begin, at - begin + size)
                        # every level's share of what the whole report may be wrong in
                        alpha = ALPHA / (len(models) - 1)
                        one.judge = Judge(first, settings.margin, alpha, settings.primary)
                    if folder.n_items < at + size:
                        one.ask(total, progress, notice)
                    if ask in missing:
                        one.measure_noise()
                    at += size
        written = [folder.items(at, at + len(a.questions)) for at, a in _places(begin, asks) if a.method == "generate"]
        if written and all(map(is_without_text, written)):
            silent_models.append(model.name)
        begin = end
    if silent_models:
        names = ", ".join(silent_models)
        if not settings.chat:
            raise DataError(
                f"{names}: wrote no text for any question, as models that are tuned to chat do without their template: "
                "give --chat; a damaged file does it too (the other answers are kept)"
            )
        raise DataError(
            f"{names}: wrote no text for any question; the file is damaged or not for this llama.cpp, or its chat "
            "template is another model's; leave it away (the other answers are kept)"
        )


def _places(begin: int, asks: Sequence[Ask]) -> Iterator[tuple[int, Ask]]:
    """Each ask with the number of its first result."""
    for ask in asks:
        yield begin, ask
        begin += len(ask.questions)


def is_without_text(results: Iterable[AnswerRecord]) -> bool:
    """Did a model write nothing but NULs and white space, in its thoughts either, wherever it was asked?"""
    written = [f"{r.thought or ''}{r.response}" for r in results if r.response is not None]
    return bool(written) and not any(text.strip("\0 \t\r\n") for text in written)


class Judge:
    """Looks at a model's results beside the first model's, pair by pair, until its loss is decided."""

    def __init__(
        self, reference: Sequence[AnswerRecord], margin: float, alpha: float = ALPHA, primary: View | None = None
    ) -> None:
        self.reference, self.test, self.n_seen = reference, Sequential(margin / 100, alpha), 0
        self.correct = primary.correct if primary else lambda answer: answer.correct

    def sees(self, results: Sequence[AnswerRecord]) -> bool:
        """Take the results that follow those seen before; True as soon as the test decides."""
        for mine in results:
            right, before = self.correct(mine), self.correct(self.reference[self.n_seen])
            self.n_seen += 1
            if right is not None and before is not None:
                self.test = self.test.add(before, right)
        return self.test.decided is not None


@dataclass
class _Asking:
    """One model and one ask; `begin` is the place of its first result among all."""

    folder: RunFolder
    model: str
    answerer: Answerer
    ask_: Ask
    wanted: Wanted
    begin: int
    prepared: Prepared | None = None
    judge: Judge | None = None

    def ask(self, total: int, progress: Progress, notice: Notice) -> None:
        """Ask what has no result yet, of `total` in the run; a pack that was cut is asked again as a whole."""
        self.prepared = prepared = self.answerer.prepare(self.wanted)
        for warning in prepared.warnings:
            notice(f"{self.model}: {warning}")
        done = max(0, self.folder.n_items - self.begin)
        first = max(0, bisect_right(prepared.starts, done) - 1)
        if done:
            self.folder.keep_items(self.begin + prepared.starts[first])
        progress("questions", self.folder.n_items, total, self.model)
        if self.judge and self.judge.sees(self.folder.items(self.begin)):
            self._skip()
            return
        for start, stop in self._stretches(first, len(prepared.starts)):
            for at, answers in self.answerer.run(start, stop):
                assert self.begin + at == self.folder.n_items, "answers come in order"
                results = [self._result(at + i, answer) for i, answer in enumerate(answers)]
                self.folder.add_items(results)
                progress("questions", self.folder.n_items, total, self.model)
            if self.judge and self.judge.sees(results):
                self._skip()
                return

    def _stretches(self, first: int, stop: int) -> list[tuple[int, int]]:
        """Packs that are asked for at once: all, or one by one where any of them may be the last."""
        return [(i, i + 1) for i in range(first, stop)] if self.judge else [(first, stop)]

    def _skip(self) -> None:
        """Give every question that is left a result that says it was not asked."""
        left = range(self.folder.n_items - self.begin, len(self.ask_.questions))
        self.folder.add_items([self._record(i, no_outcome(NOT_ASKED)) for i in left])

    def _record(self, number: int, outcome: Outcome) -> AnswerRecord:
        item, permutation, order = self.ask_.questions[number]
        return AnswerRecord(
            model=self.model,
            task=self.ask_.dataset.name,
            method=self.ask_.method,
            id=item.id,
            permutation=permutation,
            order=order,
            **vars(outcome),
        )

    def _result(self, number: int, answer: RawAnswer) -> AnswerRecord:
        item, _, order = self.ask_.questions[number]
        papers = self.ask_.template.text if self.ask_.as_papers else None
        return self._record(number, score(self.ask_.method, item, order, answer, papers))

    def measure_noise(self) -> None:
        """Ask some questions once more, each alone, and keep how far their scores move (docs/runs.md)."""
        if self.ask_.method == "generate":
            return
        chosen = sample_evenly(len(self.ask_.questions), N_NOISE)
        prepared = self.prepared or self.answerer.prepare(self.wanted)
        self.prepared = None
        few = tuple(self.wanted.prompts[i] for i in chosen)
        self.answerer.prepare(replace(self.wanted, prompts=few, together=False, n_head=prepared.n_head))
        alone = [a for _, answers in self.answerer.run(0, len(chosen)) for a in answers]
        there = self.folder.items(self.begin, self.begin + len(self.ask_.questions))
        moves, changed = [], 0
        for i, answer in zip(chosen, alone, strict=True):
            old, new = there[i], self._result(i, answer)
            if old.scores is not None and new.scores is not None:
                moves.append(movement(old.scores, new.scores))
                changed += new.picks != old.picks
        noise = NoiseRecord(
            model=self.model,
            task=self.ask_.dataset.name,
            method=self.ask_.method,
            n=len(moves),
            max=round(max(moves), 6) if moves else None,
            median=round(statistics.median(moves), 6) if moves else None,
            picks_changed=changed,
        )
        self.folder.append(NOISE, noise)


def movement(a: Sequence[float], b: Sequence[float]) -> float:
    """How far the distances between choices moved, at most: what could turn one answer into another (nats)."""
    moved = [y - x for x, y in zip(a, b, strict=True)]
    return max(moved) - min(moved)


def sample_evenly(n: int, k: int) -> list[int]:
    """`k` of n places, evenly spaced; all where there are fewer."""
    return list(range(n)) if n <= k else [i * n // k for i in range(k)]
