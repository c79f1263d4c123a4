"""Groups of questions: whether a level loses more in one of them than all questions together show."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from jmedlite.benchmarks import statistics
from jmedlite.benchmarks.views import View

from .compare import bound_at, by_item, compare_counts, verdicts
from .pool import Facts, Item, Pool, Unit
from .sections import Family, GroupTest, Heterogeneity

Sides = dict[str, dict[Item, str]]  # side ("lang", "facts") to the group that an item is in


def sides_of(items: Iterable[Item], facts: Mapping[Item, Facts]) -> Sides:
    """Every side by which these items differ: those that all have, then those that the task declares.

    `stem` is long where the question is longer than half of its task's.
    """
    found: Sides = {"lang": {}, "task": {}, "group": {}, "stem": {}}
    lengths: dict[str, list[int]] = defaultdict(list)
    known = list(items)
    for item in known:
        lengths[item.task].append(_length(facts[item]))
    half = {task: median(of) for task, of in lengths.items()}
    for item in known:
        q = facts[item].question
        found["lang"][item], found["task"][item] = q.lang, item.task
        found["stem"][item] = "long" if _length(facts[item]) > half[item.task] else "short"
        for side, group in {"group": q.group, **(q.groups or {})}.items():
            if group is not None:
                found.setdefault(side, {})[item] = group
    return found


def _length(facts: Facts) -> int:
    return len(facts.question.context) + len(facts.question.question)


def told_apart(sides: Sides, n_items: int) -> Sides:
    """The sides that tell items apart, each way of doing so once: two languages may well be two tasks."""
    found: Sides = {}
    seen = set()
    for side, of in sides.items():
        parts: dict[str, list[Item]] = defaultdict(list)
        for item, group in of.items():
            parts[group].append(item)
        cut = frozenset(frozenset(part) for part in parts.values())
        if (len(cut) > 1 or len(of) < n_items) and cut and cut not in seen:
            seen.add(cut)
            found[side] = of
    return found


def judge_groups(laid: Pool, view: View, family: Family, margin: float) -> tuple[list[GroupTest], list[Heterogeneity]]:
    """Each level in each group, Holm-adjusted over both; and whether a side's groups differ, over sides and levels.

    `margin` is a share.
    """
    sheets = laid.sheets.get(view.method, {})
    reference = verdicts(view, sheets.get(family["reference"] or "", {}))
    items = {item for item, _ in reference}
    sides = told_apart(sides_of(sorted(items), laid.facts), len(items))
    tests: list[GroupTest] = []
    apart: list[Heterogeneity] = []
    for key in family["models"]:
        level = {u: v for u, v in verdicts(view, sheets.get(key, {})).items() if u in reference}
        if key == family["reference"] or not level:
            continue
        for side, of in sides.items():
            parts: dict[str, dict[Unit, float]] = defaultdict(dict)
            for unit, value in level.items():
                if unit[0] in of:
                    parts[of[unit[0]]][unit] = value
            tests += [_test(key, side, name, parts[name], reference, laid) for name in sorted(parts)]
            if len(parts) > 1:
                apart.append(_apart(key, side, of, level, reference, laid))
    for test, p in zip(tests, statistics.holm([t["p"] for t in tests]), strict=True):
        test["p_holm"] = p
        test["detectable_loss"] = statistics.detectable_loss(
            test["effective_pairs"], test["disagreement"], statistics.ALPHA / len(tests)
        )
        test["outcome"] = (
            "loss" if shows_loss(test["difference"], p, margin) else "none" if test["loss_bound"] < margin else "untold"
        )
    for entry, p in zip(apart, statistics.holm([a["p"] for a in apart]), strict=True):
        entry["p_holm"] = p
    return tests, apart


def shows_loss(difference: float | None, p_holm: float | None, margin: float) -> bool:
    """A loss that is no chance, and that is estimated to be larger than the margin."""
    return difference is not None and p_holm is not None and p_holm < statistics.ALPHA and -difference > margin


def _test(
    key: str, side: str, group: str, level: Mapping[Unit, float], reference: Mapping[Unit, float], laid: Pool
) -> GroupTest:
    counts = compare_counts(level, reference, laid.facts)
    items, before = by_item(level), by_item({unit: reference[unit] for unit in level})
    shares = [math.fsum(values.values()) / len(values) for values in (items, before)]
    return {
        "model": key, "side": side, "group": group, "n": counts["n"], "n_items": len(items), "share": shares[0],
        "reference_share": shares[1], "difference": shares[0] - shares[1],
        "disagreement": counts["disagreement"] or 0.0, "effective_pairs": counts["effective_pairs"],
        "loss_bound": bound_at(counts, statistics.ALPHA),
        "p": 1.0 if counts["p"] is None else counts["p"], "p_holm": 1.0, "detectable_loss": 1.0, "outcome": "untold",
    }  # fmt: skip


def _apart(
    key: str,
    side: str,
    of: Mapping[Item, str],
    level: Mapping[Unit, float],
    reference: Mapping[Unit, float],
    laid: Pool,
) -> Heterogeneity:
    """Of a question that is in several groups its parts change places, else questions do."""
    cells: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for item, value in by_item({u: v - reference[u] for u, v in level.items() if u[0] in of}).items():
        cells[laid.facts[item].cluster][of[item]].append(value)
    questions = [[(group, math.fsum(v) / len(v)) for group, v in cell.items()] for cell in cells.values()]
    mixed = [cell for cell in questions if len(cell) > 1]
    strata: Sequence[Sequence[tuple[str, float]]] = mixed or [[cell[0] for cell in questions]]
    statistic, p = statistics.heterogeneity(strata)
    return {"model": key, "side": side, "n": len(mixed or questions), "statistic": statistic, "p": p, "p_holm": p}
