"""Numbers about one model's answers, and about two models' answers to the same questions, as plain JSON values."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from jmedlite.benchmarks import statistics
from jmedlite.benchmarks.records import AnswerRecord
from jmedlite.benchmarks.views import View

from .pool import Facts, Item, Sheet, Unit
from .sections import KINDS, Compared, Confidence, Contraindicated, Counts, Difference, Flips, Kind, Sequential, Share

Verdicts = dict[Unit, float]  # per unit, 1 where right


def verdicts(view: View, sheet: Sheet, of: Callable[[Item], bool] = lambda item: True) -> Verdicts:
    """1 or 0 for every unit that the view has something to say of."""
    found = {}
    for unit, answer in sheet.items():
        correct = view.correct(answer)
        if correct is not None and of(unit[0]):
            found[unit] = float(correct)
    return found


def by_item(values: Mapping[Unit, float]) -> dict[Item, float]:
    """Means over the orders of an item's choices."""
    parts: dict[Item, list[float]] = defaultdict(list)
    for (item, _), value in values.items():
        parts[item].append(value)
    return {item: math.fsum(found) / len(found) for item, found in parts.items()}


def by_question(values: Mapping[Item, float], facts: Mapping[Item, Facts]) -> tuple[list[float], list[int]]:
    """Sums and numbers of items per question: its languages belong together."""
    sums: dict[tuple[str, str], list[float]] = defaultdict(list)
    for item, value in values.items():
        sums[facts[item].cluster].append(value)
    return [math.fsum(found) for found in sums.values()], [len(found) for found in sums.values()]


def share(values: Mapping[Unit, float], facts: Mapping[Item, Facts]) -> Share:
    """A share of items with its Wilson interval, which counts every question once, however often it was asked.

    `n` questions, `n_items` (a question in two languages is two items), `n_answers`. The share is null where n is 0.
    """
    items = by_item(values)
    _, counts = by_question(items, facts)
    n = len(counts)
    mean = math.fsum(items.values()) / len(items) if items else None
    interval = list(statistics.wilson(mean * n, n)) if mean is not None else None
    return {"n": n, "n_items": len(items), "n_answers": len(values), "share": mean, "interval": interval}


def difference(
    level: Mapping[Unit, float], reference: Mapping[Unit, float], facts: Mapping[Item, Facts],
    confidence: float = 1 - statistics.ALPHA,
) -> Difference:  # fmt: skip
    """The mean difference over the units that both have, with its bootstrap interval."""
    common = {unit: level[unit] - reference[unit] for unit in level if unit in reference}
    items = by_item(common)
    if not items:
        return {"n": 0, "n_items": 0, "difference": None, "interval": None}
    sums, counts = by_question(items, facts)
    mean = math.fsum(items.values()) / len(items)
    return {"n": len(counts), "n_items": len(items), "difference": mean,
            "interval": list(statistics.bootstrap(sums, counts, confidence=confidence))}  # fmt: skip


def compare_counts(left: Mapping[Unit, float], right: Mapping[Unit, float], facts: Mapping[Item, Facts]) -> Counts:
    """Questions lost and gained over the units that both have, and how many pairs they are worth."""
    means, losses, gains = _by_question(left, right, facts)
    n, lost, gained = len(means), sum(m < 0 for m in means), sum(m > 0 for m in means)
    return {
        "n": n,
        "losses": losses,
        "gains": gains,
        "questions_lost": lost,
        "questions_gained": gained,
        "disagreement": (losses + gains) / n if n else None,
        "effective_pairs": statistics.effective_pairs(means),
        "p": statistics.mcnemar(lost, gained) if n else None,
    }


def bound_at(c: Counts, alpha: float) -> float:
    """The one-sided upper bound of the loss, which lies below it with a chance of at most α; 1 where nothing pairs."""
    worth = c["effective_pairs"] / c["n"] if c["n"] else 0.0
    return statistics.loss_bound(c["losses"] * worth, c["gains"] * worth, c["effective_pairs"], 1 - alpha)


def compare(
    view: View, level: Sheet, reference: Sheet, facts: Mapping[Item, Facts], confidence: float = 1 - statistics.ALPHA
) -> Compared:
    """A model against another: docs/report.md, `comparison`, but for what is said of the margin."""
    left, right = verdicts(view, level), verdicts(view, reference)
    shift = difference(left, right, facts, confidence)
    common = [unit for unit in left if unit in right]
    counts = compare_counts(left, right, facts)
    n, pairs, disagreement = counts["n"], counts["effective_pairs"], counts["disagreement"]
    return {
        **counts,
        **shift,
        "reference_share": math.fsum(by_item({u: right[u] for u in common}).values()) / shift["n_items"] if n else None,
        "share": math.fsum(by_item({u: left[u] for u in common}).values()) / shift["n_items"] if n else None,
        "loss_bound": bound_at(counts, statistics.ALPHA) if n else None,
        "detectable_loss": None if disagreement is None else statistics.detectable_loss(pairs, disagreement),
        "flips": _flips([_pair(view, level[u], reference[u]) for u in common]),
    }


def sequential(view: View, level: Sheet, reference: Sheet, facts: Mapping[Item, Facts], margin: float) -> Sequential:
    """The tests that may be looked at after every question; `margin` is a share."""
    means, losses, gains = _by_question(verdicts(view, level), verdicts(view, reference), facts)
    test = statistics.Sequential(margin, losses=losses, gains=gains, ties=len(means) - losses - gains)
    return {"no_meaningful_loss": test.no_meaningful_loss, "meaningful_loss": test.meaningful_loss,
            "different": test.different, "decided": test.decided}  # fmt: skip


def _by_question(
    left: Mapping[Unit, float], right: Mapping[Unit, float], facts: Mapping[Item, Facts]
) -> tuple[list[float], float, float]:
    """The mean difference of each question that both have; the sums of those that are losses and gains."""
    sums, counts = by_question(by_item({unit: left[unit] - right[unit] for unit in left if unit in right}), facts)
    means = [s / c for s, c in zip(sums, counts, strict=True)]
    return means, math.fsum(max(-m, 0) for m in means), math.fsum(max(m, 0) for m in means)


def _pair(view: View, level: AnswerRecord, reference: AnswerRecord) -> tuple[bool, bool, bool]:
    same = set(view.picks(level)) == set(view.picks(reference))
    return bool(view.correct(reference)), bool(view.correct(level)), same


def _flips(pairs: list[tuple[bool, bool, bool]]) -> Flips:
    found = statistics.flips(pairs)
    return {"right_to_wrong": found.right_to_wrong, "wrong_to_right": found.wrong_to_right,
            "wrong_to_wrong": found.wrong_to_wrong, "unchanged": found.unchanged}  # fmt: skip


def flip_of(view: View, level: AnswerRecord, reference: AnswerRecord) -> Kind | None:
    """`right_to_wrong`, `wrong_to_right`, `wrong_to_wrong` or None, of one answer."""
    counts = _flips([_pair(view, level, reference)])
    return next((kind for kind in KINDS if counts[kind]), None)


def contraindicated(
    view: View, sheet: Sheet, reference: Sheet | None, facts: Mapping[Item, Facts]
) -> Contraindicated | None:
    """How often a choice that harms was taken, of the items that have one; None where no item has one.

    `harm_weighted` counts a right answer 1, a wrong one 0 and a harmful one −1, over all items of the view.
    """
    taken = _taken(view, sheet, facts)
    if not taken:
        return None
    before = _taken(view, reference, facts) if reference is not None else {}
    right = verdicts(view, sheet)
    weighted = {unit: right[unit] - taken.get(unit, 0.0) for unit in right}
    items, with_harm = by_item(weighted), by_item(taken)
    found: Contraindicated = {
        "newly_taken": None, "no_longer_taken": None, "harm_weighted_difference": None, **share(taken, facts),
        "taken": math.fsum(with_harm.values()), "harm_weighted": math.fsum(items.values()) / len(items),
        "chance": _mean(_chance_of_harm(facts[item]) for item in with_harm),
    }  # fmt: skip
    if reference is not None:
        common = [u for u in taken if u in before]
        found["newly_taken"] = sum(taken[u] > before[u] for u in common)
        found["no_longer_taken"] = sum(taken[u] < before[u] for u in common)
        theirs = verdicts(view, reference)
        weighted_before = {unit: theirs[unit] - before.get(unit, 0.0) for unit in theirs}
        found["harm_weighted_difference"] = difference(weighted, weighted_before, facts)
    return found


def _taken(view: View, sheet: Sheet, facts: Mapping[Item, Facts]) -> dict[Unit, float]:
    """1 where a contraindicated choice is among the picks, for the items that have one."""
    found = {}
    for unit, answer in sheet.items():
        bad = set(facts[unit[0]].question.contraindicated)
        if bad and view.correct(answer) is not None:
            found[unit] = float(bool(bad & set(view.picks(answer))))
    return found


def _chance_of_harm(facts: Facts) -> float:
    q = facts.question
    n, k = len(q.choices), len(q.answers)
    return 1 - math.comb(n - len(set(q.contraindicated)), k) / math.comb(n, k)


def confidence(view: View, sheet: Sheet, facts: Mapping[Item, Facts]) -> Confidence | None:
    """How sure the model was, against how often it was right, over items with one right answer (`letter` only)."""
    if view.key != "letter":
        return None
    rows = [(unit, a) for unit, a in sheet.items() if a.scores and len(facts[unit[0]].question.answers) == 1]
    if not rows:
        return None
    sure = [max(softmax(a.scores or ())) for _, a in rows]
    right = [float(bool(a.correct)) for _, a in rows]
    return {
        "n_answers": len(rows),
        "mean_confidence": _mean(sure),
        "share": _mean(right),
        "calibration_error": statistics.calibration_error(sure, right),
        "mean_mass": _mean(a.mass for _, a in rows if a.mass is not None),
    }


def softmax(scores: Iterable[float]) -> list[float]:
    """Log-probabilities as shares of each other."""
    values = list(scores)
    top = max(values)
    parts = [math.exp(v - top) for v in values]
    return [p / math.fsum(parts) for p in parts]


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return math.fsum(found) / len(found) if found else None
