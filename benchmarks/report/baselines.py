"""What would score without knowing anything, on the very same items: the floor that a score must be read against."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from jmedlite.benchmarks.records import QuestionRecord
from jmedlite.benchmarks.scoring import pick, similarity
from jmedlite.benchmarks.views import View

from .compare import by_item
from .pool import Facts, Item, Unit
from .sections import Baseline

Guess = Callable[[QuestionRecord, Sequence[int]], set[int]]  # of a question, and the order in which its choices stood


def baselines(
    view: View, orders: Mapping[Unit, Sequence[int]], facts: Mapping[Item, Facts]
) -> dict[Baseline, float | None]:
    """Shares of right answers over the units of `orders` (which give the places of the choices); None without units.

    `chance` draws as many choices as are right; `most_frequent` always takes the letters that are most often right,
    of items with as many right answers; `first_choice` takes what stands first. For `generate`: an empty output, and
    the list of all choices. `human` is the mean accuracy of the people who sat the exam, where it is known.
    """
    frequent = _frequent(orders, facts)
    guesses: dict[Baseline, Guess] = {
        "most_frequent": lambda q, order: {order[p] for p in frequent[len(q.choices), len(q.answers)]},
        "first_choice": lambda q, order: set(order[: len(q.answers)]),
    }
    if view.key == "generate":
        guesses |= {
            "empty_output": lambda q, order: _nearest(q, order, ""),
            "all_choices": lambda q, order: _nearest(q, order, "\n".join(q.choices[i] for i in order)),
        }
    questions = [facts[item].question for item in dict.fromkeys(item for item, _ in orders)]
    people = [q.human_accuracy / 100 for q in questions if q.human_accuracy is not None]
    return {
        "chance": _mean([1 / math.comb(len(q.choices), len(q.answers)) for q in questions]),
        **{name: _right(guess, orders, facts) for name, guess in guesses.items()},
        "human": _mean(people),
        "n_human": len(people),
    }


def _right(guess: Guess, orders: Mapping[Unit, Sequence[int]], facts: Mapping[Item, Facts]) -> float | None:
    hits = {}
    for unit, order in orders.items():
        q = facts[unit[0]].question
        hits[unit] = float(guess(q, order) == set(q.answers))
    return _mean(list(by_item(hits).values()))


def _frequent(orders: Mapping[Unit, Sequence[int]], facts: Mapping[Item, Facts]) -> dict[tuple[int, int], list[int]]:
    """(number of choices, of right ones) to the places that are most often right."""
    places: dict[tuple[int, int], Counter[int]] = defaultdict(Counter)
    for (item, _), order in orders.items():
        q = facts[item].question
        # every place enters, also those that are never right, or there might be too few
        places[len(q.choices), len(q.answers)].update({p: int(c in q.answers) for p, c in enumerate(order)})
    # the largest counts first, of equal ones the first place
    return {
        size: [p for _, p in sorted((-n, p) for p, n in counts.items())][: size[1]] for size, counts in places.items()
    }


def _nearest(q: QuestionRecord, order: Sequence[int], response: str) -> set[int]:
    return set(pick(_similarities(q.choices, response), order, len(q.answers))[0])


@lru_cache(maxsize=1 << 14)  # a task's items are counted again for all tasks together
def _similarities(choices: tuple[str, ...], response: str) -> list[float]:
    return [similarity(c, response) for c in choices]


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def orders_of(sheets: Mapping[str, Mapping[Unit, Any]], facts: Mapping[Item, Facts]) -> dict[Unit, Sequence[int]]:
    """The units that any model answered, with the order in which the choices stood."""
    return {
        unit: answer.order or range(len(facts[unit[0]].question.choices))
        for sheet in sheets.values()
        for unit, answer in sheet.items()
    }
