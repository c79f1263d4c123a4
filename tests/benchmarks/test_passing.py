"""The chance of passing against scipy's distributions, against a simulation, and where nothing is left to chance."""

from __future__ import annotations

import numpy as np
import pytest

from jmedlite.benchmarks.passing import Gate, Kind, beta_binomial, beta_quantiles, chance

stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize(("n", "a", "b"), [(0, 0.5, 0.5), (1, 3.5, 0.5), (37, 120.5, 44.5), (102, 0.5, 197.5)])
def test_beta_binomial(n: int, a: float, b: float) -> None:
    assert np.allclose(beta_binomial(n, a, b), stats.betabinom.pmf(np.arange(n + 1), n, a, b), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.5), (0.5, 160.5), (150.5, 47.5), (40.5, 0.5)])
def test_beta_quantiles(a: float, b: float) -> None:
    shares = np.linspace(0.001, 0.999, 41)
    assert np.allclose(beta_quantiles(a, b, shares), stats.beta.ppf(shares, a, b), atol=2e-6)


def test_one_line_is_a_tail_of_the_beta_binomial() -> None:
    mean, (low, high) = chance([Gate((Kind(1, 150, 197, 102),), earned=150, least=217)])
    assert mean == pytest.approx(stats.betabinom.sf(66, 102, 150.5, 47.5), abs=1e-9)
    rates = stats.beta.ppf([0.025, 0.975], 150.5, 47.5)
    assert (low, high) == pytest.approx(tuple(stats.binom.sf(66, 102, rates)), abs=2e-3)


def test_an_exam_against_a_simulation() -> None:
    """Two worths in the required section, contraindicated choices that must stay few: 200,000 exams drawn."""
    gates = [
        Gate((Kind(1, 38, 44, 6), Kind(3, 31, 38, 12)), earned=38 + 93, least=160),
        Gate((Kind(1, 150, 197, 102),), earned=150, least=225),
        Gate((Kind(1, 2, 20, 12),), earned=2, most=3),
    ]
    mean, interval = chance(gates)
    rng = np.random.default_rng(0)
    met = np.ones(200_000, dtype=bool)
    for gate in gates:
        total = np.full(met.shape, gate.earned)
        for k in gate.kinds:
            total += k.points * rng.binomial(k.open, rng.beta(k.right + 0.5, k.n - k.right + 0.5, met.shape))
        met &= (total >= gate.least) if gate.least is not None else (total <= (gate.most or 0))
    assert mean == pytest.approx(float(met.mean()), abs=4e-3)
    assert interval[0] < mean < interval[1]


def test_what_is_known_is_no_matter_of_chance() -> None:
    for earned, expected in ((160, 1.0), (159, 0.0)):
        gate = Gate((Kind(3, 40, 50, 0),), earned=earned, least=160)
        assert chance([gate]) == (expected, (expected, expected))
    assert chance([Gate((), earned=4, most=3)]) == (0.0, (0.0, 0.0))
    assert chance([Gate((Kind(1, 0, 30, 10),), earned=0, least=50)])[0] == 0.0
