"""Chance of passing: an exam's lines, what a model earned of what it was asked, and what it may of the others.

Each question that was not asked is right with an unknown probability, the same for all questions of its kind:
after `right` of `n` such questions it is Beta(right + 1/2, n − right + 1/2), from Jeffreys' prior. The kinds are
independent. What comes of `open` more is then beta-binomial, and the chance of passing the probability that every line
is met.
Its interval is that of the chance itself over what the probabilities may be: 95 % of them give a chance inside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jmedlite.benchmarks.statistics import ALPHA

Array = NDArray[np.float64]
DRAWS = 1024  # points at which the interval is computed: Halton's, the same on every machine
_GRID = 4096
_BASES = (2, 3, 5, 7, 11, 13, 17, 19)


@dataclass(frozen=True)
class Kind:
    """Questions of one worth: `right` of the `n` that were asked, and `open` more."""

    points: int
    right: int
    n: int
    open: int


@dataclass(frozen=True)
class Gate:
    """One condition: `earned` and what comes of the kinds is at least `least`, or at most `most`."""

    kinds: tuple[Kind, ...]
    earned: int
    least: int | None = None
    most: int | None = None

    def chance(self, sums: Array) -> Array:
        """The probability of meeting it, from that of every sum (last axis)."""
        low = 0 if self.least is None else max(0, self.least - self.earned)
        high = sums.shape[-1] if self.most is None else max(0, self.most - self.earned + 1)
        found: Array = sums[..., low:high].sum(axis=-1)
        return np.clip(found, 0.0, 1.0)


def chance(gates: Sequence[Gate]) -> tuple[float, tuple[float, float]]:
    """The probability that all gates are met, and its 95 % interval."""
    mean = math.prod(
        float(gate.chance(_sums([(k.points, beta_binomial(k.open, *_posterior(k))) for k in gate.kinds])))
        for gate in gates
    )
    each = np.ones(DRAWS)
    dimension = 0
    for gate in gates:
        parts = []
        for kind in gate.kinds:
            if kind.open:
                quantiles = beta_quantiles(*_posterior(kind), _halton(_BASES[dimension % len(_BASES)]))
                parts.append((kind.points, _binomial(kind.open, quantiles)))
                dimension += 1
        each = each * gate.chance(_sums(parts))
    low, high = np.quantile(each, [ALPHA / 2, 1 - ALPHA / 2])
    return mean, (float(low), float(high))


def _posterior(kind: Kind) -> tuple[float, float]:
    return kind.right + 0.5, kind.n - kind.right + 0.5


def _sums(parts: Sequence[tuple[int, Array]]) -> Array:
    """The probabilities of every sum of points: of kinds with so many points, and so many right."""
    total: Array = np.ones(1)
    for points, right in parts:
        shape = np.broadcast_shapes(total.shape[:-1], right.shape[:-1])
        found = np.zeros((*shape, total.shape[-1] + points * (right.shape[-1] - 1)))
        for count in range(right.shape[-1]):
            found[..., points * count : points * count + total.shape[-1]] += right[..., count : count + 1] * total
        total = found
    return total


def beta_binomial(n: int, a: float, b: float) -> Array:
    """P(k) for k = 0…n right of n questions whose probability is Beta(a, b)."""
    start = _log_beta(a, b)
    return np.array([math.exp(_log_choose(n, k) + _log_beta(k + a, n - k + b) - start) for k in range(n + 1)])


def _binomial(n: int, p: Array) -> Array:
    """P(k) for k = 0…n of n, a row for each probability."""
    k = np.arange(n + 1)
    choose = np.array([_log_choose(n, int(i)) for i in k])
    rows: Array = np.exp(choose + k * np.log(p)[:, None] + (n - k) * np.log1p(-p)[:, None])
    return rows


def beta_quantiles(a: float, b: float, shares: Array) -> Array:
    """Quantiles of Beta(a, b), a and b of 1/2 or more, to about 1e-6: on a grid of p = sin²(t), without poles."""
    edges = np.linspace(0.0, math.pi / 2, _GRID + 1)
    t = (edges[:-1] + edges[1:]) / 2
    density = (2 * a - 1) * np.log(np.sin(t)) + (2 * b - 1) * np.log(np.cos(t))
    cumulated = np.concatenate([[0.0], np.cumsum(np.exp(density - density.max()))])
    found: Array = np.sin(np.interp(shares, cumulated / cumulated[-1], edges)) ** 2
    return np.clip(found, 1e-12, 1 - 1e-12)


def _halton(base: int) -> Array:
    """DRAWS points that fill (0, 1) evenly, also together with those of other bases."""
    points = np.zeros(DRAWS)
    index, step = np.arange(1, DRAWS + 1), 1.0 / base
    while index.any():
        points += step * (index % base)
        index, step = index // base, step / base
    return points


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
