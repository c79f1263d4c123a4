"""Claims: which levels are shown to lose less than the margin, so that over the whole report 5 % at most are wrong."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from jmedlite.benchmarks import statistics

from .compare import bound_at
from .sections import Comparison


def claim(comparisons: Sequence[tuple[Comparison, bool]], n_claims: int, margin: float) -> None:
    """Fill in `alpha`, `loss_bound` and `no_meaningful_loss` of the levels of one verdict, the widest first.

    `n_claims` is the number of levels in the whole report: each has its share of α, and what the wider ones had that
    were shown (fallback procedure). With each level stands whether its run could stop when it liked what it saw: then
    only the anytime-valid test may be believed.
    """
    share = statistics.ALPHA / n_claims if n_claims else statistics.ALPHA
    tests = [partial(_shown, c, margin, early) for c, early in comparisons]
    alphas = statistics.fallback(tests, [share] * len(tests))
    for (c, _), test, alpha in zip(comparisons, tests, alphas, strict=True):
        c["alpha"], c["loss_bound"], c["no_meaningful_loss"] = alpha, bound_at(c, alpha), test(alpha)


def _shown(c: Comparison, margin: float, early: bool, alpha: float) -> bool:
    return c["sequential"]["no_meaningful_loss"] >= 1 / alpha if early else bound_at(c, alpha) < margin
