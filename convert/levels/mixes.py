"""Mixes: a type for every weight, so that the harm of all is least within a number of bytes.

A knapsack of multiple choice, solved by Lagrange's multiplier: for a price of a byte every weight takes the type that
is cheapest, harm and bytes together, on its own. Where the price falls, weights grow one after the other along their
lower convex hulls; what is left of the budget goes to whatever saves most harm for a byte and still fits. The result is
the best there is but for what the last growth did not fit.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gguf.constants import GGMLQuantizationType

from jmedlite.base.errors import UsageError

CANDIDATES = ("Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
WITH_IMATRIX = ("IQ3_XXS", "IQ3_S")
NARROW = ("IQ4_NL", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")  # for rows that are no multiple of 256


@dataclass(frozen=True)
class Choice:
    """One type for a weight: the bytes it takes, and the harm it does, in nats a token."""

    type: GGMLQuantizationType
    nbytes: int
    harm: float


def choose(options: Mapping[str, Sequence[Choice]], budget: int) -> dict[str, Choice]:
    """A choice for every weight, with the least sum of harms whose bytes are at most `budget`.

    Raises UsageError where even the narrowest types take more.
    """
    hulls = {name: _hull(choices) for name, choices in options.items()}
    taken = {name: hull[0] for name, hull in hulls.items()}
    left = budget - sum(c.nbytes for c in taken.values())
    if left < 0:
        raise UsageError(
            f"the weights take at least {(budget - left) / 1e6:,.1f} MB in the narrowest types, {budget / 1e6:,.1f} MB "
            "are left for them; give more"
        )
    # steps of a hull save less and less for each byte, so the best next step of all is at one of their fronts
    fronts = [(-_saved(hull[0], hull[1]), name, 1) for name, hull in sorted(hulls.items()) if len(hull) > 1]
    heapq.heapify(fronts)
    while fronts:
        _, name, i = heapq.heappop(fronts)
        hull = hulls[name]
        cost = hull[i].nbytes - taken[name].nbytes
        if cost > left:
            continue  # this weight stays; smaller ones may still grow
        taken[name] = hull[i]
        left -= cost
        if i + 1 < len(hull):
            heapq.heappush(fronts, (-_saved(hull[i], hull[i + 1]), name, i + 1))
    return _filled(options, taken, left)


def _filled(options: Mapping[str, Sequence[Choice]], taken: dict[str, Choice], left: int) -> dict[str, Choice]:
    """What is left of the budget is spent: on a wider type that still fits, off the hulls too, while any saves harm."""
    while True:
        best: tuple[float, str, Choice] | None = None
        for name, now in taken.items():
            for c in options[name]:
                if c.harm < now.harm and c.nbytes - now.nbytes <= left:
                    gain = (now.harm - c.harm) / max(1, c.nbytes - now.nbytes)
                    if best is None or gain > best[0]:
                        best = (gain, name, c)
        if best is None:
            return taken
        left -= best[2].nbytes - taken[best[1]].nbytes
        taken[best[1]] = best[2]


def _saved(narrow: Choice, wide: Choice) -> float:
    """Harm that a byte more saves."""
    return (narrow.harm - wide.harm) / (wide.nbytes - narrow.nbytes)


def _hull(choices: Sequence[Choice]) -> list[Choice]:
    """The lower convex hull of harm over bytes, from the narrowest choice to the least harmful one."""
    hull: list[Choice] = []
    for c in sorted(choices, key=lambda c: (c.nbytes, c.harm, c.type)):
        if hull and c.harm >= hull[-1].harm:
            continue
        if hull and c.nbytes == hull[-1].nbytes:
            continue  # the first of equal bytes is the less harmful one
        while len(hull) > 1 and _saved(hull[-1], c) >= _saved(hull[-2], hull[-1]):
            hull.pop()
        hull.append(c)
    return hull


def mix_name(bits_per_weight: float) -> str:
    """The level's name: "4.50bpw"."""
    return f"{bits_per_weight:.2f}bpw"
