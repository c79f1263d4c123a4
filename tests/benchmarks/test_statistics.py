"""The report's statistics against statsmodels, scipy, published examples, brute force and simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy  # its modules are loaded where they are used, as statsmodels is: not in every process of a test run

from jmedlite.benchmarks import statistics

EXACT = 1e-9


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 20), (20, 20), (7, 20), (388, 868), (45, 100_000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_wilson(k: int, n: int, confidence: float) -> None:
    from statsmodels.stats.proportion import proportion_confint

    expected = proportion_confint(k, n, 1 - confidence, method="wilson")
    assert statistics.wilson(k, n, confidence) == pytest.approx(expected, abs=EXACT)
    exact = scipy.stats.binomtest(k, n).proportion_ci(confidence, method="wilson")
    assert statistics.wilson(k, n, confidence) == pytest.approx((exact.low, exact.high), abs=EXACT)


def test_wilson_of_nothing() -> None:
    assert statistics.wilson(0, 0) == (0, 1)


@pytest.mark.parametrize(("losses", "gains"), [(0, 0), (1, 0), (0, 9), (5, 5), (3, 12), (61, 40), (400, 500)])
def test_mcnemar(losses: int, gains: int) -> None:
    from statsmodels.stats.contingency_tables import mcnemar

    expected = mcnemar([[100, losses], [gains, 100]], exact=True).pvalue
    assert statistics.mcnemar(losses, gains) == pytest.approx(min(1, expected), abs=EXACT)


def test_holm() -> None:
    from statsmodels.stats.multitest import multipletests

    rng = np.random.default_rng(1)
    for size in (1, 2, 7, 40):
        p = rng.random(size) ** 3
        p[-1] = p[0]
        assert statistics.holm(list(p)) == pytest.approx(list(multipletests(p, method="holm")[1]), abs=EXACT)
    assert statistics.holm([]) == []


def test_fallback_is_the_closed_test() -> None:
    """A claim is shown where every set of null hypotheses that holds it is rejected: each of a set has the α of those
    between its neighbour before it and itself (Dmitrienko, Wiens, Westfall, 2006)."""
    rng = np.random.default_rng(11)
    alphas = [0.02, 0.005, 0.01, 0.015]
    sets = [[i for i in range(4) if bits >> i & 1] for bits in range(1, 16)]

    def rejected(members: list[int], p: list[float]) -> bool:
        shares = [sum(alphas[before + 1 : i + 1]) for before, i in zip([-1, *members], members, strict=False)]
        return any(p[i] <= share for i, share in zip(members, shares, strict=True))

    seen = set()
    for _ in range(2000):
        p = list(rng.random(4) ** 4)
        tested = statistics.fallback([lambda alpha, own=own: own <= alpha for own in p], alphas)
        shown = [own <= alpha for own, alpha in zip(p, tested, strict=True)]
        assert shown == [all(rejected(s, p) for s in sets if i in s) for i in range(4)]
        seen.add(tuple(shown))
    assert len(seen) == 16
    assert statistics.fallback([], []) == []


def test_heterogeneity_between_groups() -> None:
    """The sum of squares is that of an analysis of variance; the p-value that of every placing, scipy's."""
    values = [[0.0, 1, -1], [1.0, 1, 0], [0.0, -1, -1]]
    placed = [[(name, v) for name, own in zip("abc", values, strict=True) for v in own]]
    statistic, p = statistics.heterogeneity(placed, samples=20_000)
    flat = np.concatenate(values)
    within = sum(np.var(own) * 3 for own in values)
    assert statistic == pytest.approx(scipy.stats.f_oneway(*values).statistic * within / 6 * 2, abs=EXACT)
    every = scipy.stats.permutation_test(
        values, lambda *own: sum(len(o) * (np.mean(o) - flat.mean()) ** 2 for o in own), alternative="greater"
    )
    assert len(every.null_distribution) == 1680
    assert p == pytest.approx(every.pvalue, abs=4 * (every.pvalue / 20_000) ** 0.5)
    assert statistics.heterogeneity([placed[0][::-1]], samples=20_000) == (statistic, p)  # whatever their order


def test_heterogeneity_within_questions() -> None:
    """Of questions in two languages it is the sign test of their differences, whatever ties there are."""
    strata = [[("ja", -1.0), ("en", 0.0)]] * 9 + [[("ja", 0.0), ("en", -1.0)]] * 2 + [[("ja", -1.0), ("en", -1.0)]] * 30
    _, p = statistics.heterogeneity(strata, samples=20_000)
    assert p == pytest.approx(scipy.stats.binomtest(2, 11).pvalue, abs=0.006)
    assert statistics.heterogeneity([[("ja", 0.0), ("en", 0.0)]] * 5) == (0, 1)
    assert statistics.heterogeneity([[("a", 1.0), ("a", 0.0)]])[1] == statistics.heterogeneity([])[1] == 1


@pytest.mark.long
def test_heterogeneity_keeps_its_level() -> None:
    """Eight groups of questions that lose alike, few of them at all: alarms in at most 5 % of studies."""
    rng = np.random.default_rng(13)
    sizes = [5, 10, 20, 30, 60, 80, 100, 200]
    names = [name for name, size in zip("abcdefgh", sizes, strict=True) for _ in range(size)]
    alarms = 0
    for seed in range(400):
        values = rng.choice([-1.0, 1.0, 0.0], len(names), p=[0.03, 0.01, 0.96]).tolist()
        alarms += statistics.heterogeneity([list(zip(names, values, strict=True))], samples=199, seed=seed)[1] <= 0.05
    assert 5 <= alarms <= scipy.stats.binom.ppf(0.999, 400, 0.05)
    values = [-1.0 if name == "f" and i % 8 == 0 else 0.0 for i, name in enumerate(names)]
    assert statistics.heterogeneity([list(zip(names, values, strict=True))])[1] < 0.001


def test_bootstrap_is_resampling() -> None:
    """The multinomial draw over kinds gives the interval of scipy's bootstrap over the clusters themselves."""
    rng = np.random.default_rng(2)
    sums = rng.choice([-1.0, -0.5, 0.0, 0.5, 1.0], 300, p=[0.06, 0.03, 0.86, 0.02, 0.03])
    counts = rng.choice([1.0, 2.0], 300)
    drawn = scipy.stats.bootstrap(
        (sums, counts),
        lambda s, c, axis: s.sum(axis) / c.sum(axis),
        n_resamples=20_000, paired=True, vectorized=True, method="percentile", rng=np.random.default_rng(3),
    )  # fmt: skip
    found = statistics.bootstrap(sums, counts, samples=20_000)
    assert found == pytest.approx(tuple(drawn.confidence_interval), abs=0.002)
    order = rng.permutation(300)
    assert statistics.bootstrap(sums[order], counts[order], samples=20_000) == found  # of the order nothing depends
    assert statistics.bootstrap(sums, counts, seed=1) != statistics.bootstrap(sums, counts, seed=2)


def test_bootstrap_against_every_resample() -> None:
    values = [1.0, 0.0, -1.0, 1.0]
    means = [sum(s) / 4 for s in itertools.product(values, repeat=4)]
    low, high = statistics.bootstrap(values, [1] * 4, confidence=0.8, samples=200_000)
    assert (low, high) == tuple(np.quantile(means, [0.1, 0.9]))


@pytest.mark.parametrize(("losses", "gains", "n"), [(8, 3, 200), (0, 5, 60), (30, 30, 868), (2.5, 1.25, 90), (1, 0, 5)])
def test_loss_bound_inverts_the_score_test(losses: float, gains: float, n: int) -> None:
    """At the bound, the constrained likelihood (maximised by scipy) gives a score statistic of just −1.645."""
    bound = statistics.loss_bound(losses, gains, n)
    assert bound > statistics.loss_bound(losses, gains, n, correction=0)

    def negative(share: float) -> float:
        parts = ((losses, share + bound), (gains, share), (n - losses - gains, 1 - 2 * share - bound))
        return -sum(k * math.log(p) for k, p in parts if k > 0)

    low, high = max(0, -bound) + 1e-12, (1 - bound) / 2 - 1e-12
    share = scipy.optimize.minimize_scalar(negative, bounds=(low, high), method="bounded", options={"xatol": 1e-13}).x
    z = (losses - gains + 0.5 - n * bound) / math.sqrt(n * (2 * share + bound * (1 - bound)))
    assert z == pytest.approx(-scipy.stats.norm.ppf(0.95), abs=1e-4)


def test_loss_bound_without_any_disagreement() -> None:
    z2 = scipy.stats.norm.ppf(0.95) ** 2
    for n in (5, 100, 1455):
        assert statistics.loss_bound(0, 0, n, correction=0) == pytest.approx(z2 / (n + z2), abs=EXACT)
        # half a question more: the root of (n δ − ½)² = z² n δ (1 − δ)
        half = np.roots([n * n + z2 * n, -n * (1 + z2), 0.25]).max()
        assert statistics.loss_bound(0, 0, n) == pytest.approx(half, abs=EXACT)
    assert statistics.loss_bound(0, 0, 0) == statistics.loss_bound(7, 0, 7) == 1
    assert statistics.loss_bound(0, 40, 100) < 0  # a level that is better


def test_loss_bound_of_another_implementation() -> None:
    """R's PropCIs::scoreci.mp, as somebody published it: 48 and 41 discordant of 549, 90 %: −1.57 to 4.14 points."""
    assert statistics.loss_bound(48, 41, 549, correction=0) == pytest.approx(0.0414, abs=5e-5)
    assert -statistics.loss_bound(41, 48, 549, correction=0) == pytest.approx(-0.0157, abs=5e-5)


@pytest.mark.parametrize(("n", "margin"), [(137, 0.02), (270, 0.01), (868, 0.02)])
def test_loss_bound_is_corrected_for_few_losses(n: int, margin: float) -> None:
    """The exact chance that a level that only loses, just the margin, is shown to lose less; for n = 137 and 270 it is
    over 6 % without the correction."""
    chances = {}
    for correction in (0.0, statistics.CORRECTION):
        shown = [k for k in range(40) if statistics.loss_bound(k, 0, n, correction=correction) < margin]
        chances[correction] = scipy.stats.binom.pmf(shown, n, margin).sum()
    assert chances[statistics.CORRECTION] <= 0.05
    assert bool(chances[0.0] > 0.06) is (n < 300)


def test_loss_bound_covers() -> None:
    """At a true loss of exactly the margin, "no meaningful loss" is said in about 5 % of studies, not more."""
    rng = np.random.default_rng(4)
    for n, d in ((300, 0.05), (868, 0.08), (1455, 0.03)):
        counts = rng.multinomial(n, [(d + 0.02) / 2, (d - 0.02) / 2, 1 - d], size=2000)
        said = sum(statistics.loss_bound(losses, gains, n) < 0.02 for losses, gains, _ in counts.tolist())
        assert said <= scipy.stats.binom.ppf(0.9995, 2000, 0.055)


def test_effective_pairs() -> None:
    """Single pairs count as themselves; two answers to a question as two, one, or between, as they are correlated."""
    rng = np.random.default_rng(9)
    single = rng.choice([-1.0, 0.0, 1.0], 5000, p=[0.05, 0.9, 0.05])
    assert statistics.effective_pairs(single) == pytest.approx(5000)
    other = rng.choice([-1.0, 0.0, 1.0], 5000, p=[0.05, 0.9, 0.05])
    assert statistics.effective_pairs((single + other) / 2) == pytest.approx(10_000, rel=0.08)
    half = np.where(rng.random(5000) < 0.5, single, other)
    assert 5500 < statistics.effective_pairs((single + half) / 2) < 9500
    assert statistics.effective_pairs([]) == 0
    assert statistics.effective_pairs([0.0] * 9) == statistics.effective_pairs([-0.5] * 9) == 9


def test_loss_bound_of_questions_in_two_languages_covers() -> None:
    """At a true loss of just the margin, with answers to a question correlated, alarms stay at 5 %."""
    rng = np.random.default_rng(10)
    said = 0
    for _ in range(1000):
        first, second = rng.choice([-1.0, 1.0, 0.0], size=(2, 860), p=[0.05, 0.03, 0.92])
        d = (first + np.where(rng.random(860) < 0.4, first, second)) / 2
        worth = statistics.effective_pairs(d) / 860
        losses, gains = float(np.maximum(-d, 0).sum()), float(np.maximum(d, 0).sum())
        said += statistics.loss_bound(losses * worth, gains * worth, 860 * worth) < 0.02
    assert 20 <= said <= scipy.stats.binom.ppf(0.9995, 1000, 0.055)


def test_detectable_loss() -> None:
    assert statistics.detectable_loss(1455, 0.05) == pytest.approx(0.0164, abs=5e-5)  # "about 1.6 points"
    for n, d in ((868, 0.06), (200, 0.2), (10_000, 0.01)):
        loss = statistics.detectable_loss(n, d)
        z_a, z_b = scipy.stats.norm.ppf(0.975), scipy.stats.norm.ppf(0.8)
        assert (z_a * d**0.5 + z_b * (d - loss**2) ** 0.5) ** 2 / loss**2 == pytest.approx(n, rel=EXACT)
    assert statistics.detectable_loss(868, 0) == statistics.detectable_loss(868, 1e-6) > 0.008
    assert statistics.detectable_loss(0, 0.1) == statistics.detectable_loss(2, 0) == 1


def test_detectable_loss_is_detected_as_often_as_said() -> None:
    n, d = 1455, 0.05
    loss = statistics.detectable_loss(n, d)
    counts = np.random.default_rng(5).multinomial(n, [(d + loss) / 2, (d - loss) / 2, 1 - d], size=2000)
    found = np.mean([statistics.mcnemar(losses, gains) < 0.05 for losses, gains, _ in counts.tolist()])
    assert found == pytest.approx(0.8, abs=0.05)  # the exact test is a little cautious


def test_two_thousand_null_pairs_of_models() -> None:
    """Two models that are equally good: McNemar says they differ in at most α of the studies."""
    rng = np.random.default_rng(6)
    counts = rng.multinomial(868, [0.04, 0.04, 0.92], size=2000)
    alarms = sum(statistics.mcnemar(losses, gains) < 0.05 for losses, gains, _ in counts.tolist())
    low, high = scipy.stats.binom.ppf([0.0005, 0.9995], 2000, 0.05)
    assert alarms <= high
    # an exact test of discrete counts is cautious: its own size, not 5 %, is the lower bound
    size = 0.0
    for m in range(20, 130):
        seen = [k for k in range(m + 1) if statistics.mcnemar(k, m - k) < 0.05]
        size += scipy.stats.binom.pmf(seen, m, 0.5).sum() * scipy.stats.binom.pmf(m, 868, 0.08)
    assert scipy.stats.binom.ppf(0.0005, 2000, size) <= alarms <= scipy.stats.binom.ppf(0.9995, 2000, size)
    assert low <= scipy.stats.binom.ppf(0.9995, 2000, size)
    covered = 0
    for losses, gains, ties in counts[:500].tolist():
        d = np.repeat([-1.0, 1.0, 0.0], [losses, gains, ties])
        bounds = statistics.bootstrap(d, np.ones(868), samples=2000)
        covered += bounds[0] <= 0 <= bounds[1]
    assert covered >= scipy.stats.binom.ppf(0.001, 500, 0.95)


def test_flips() -> None:
    pairs = [(True, False, False)] * 3 + [(False, True, False)] * 2 + [(False, False, False), (False, False, True)]
    assert statistics.flips([*pairs, (True, True, True)]) == statistics.Flips(3, 2, 1, 2)
    assert statistics.flips([]) == statistics.Flips()


def test_calibration_error() -> None:
    assert statistics.calibration_error([0.75, 0.75, 0.75, 0.75], [1, 1, 1, 0]) == 0
    assert statistics.calibration_error([1.0, 1.0], [0, 0]) == 1
    assert statistics.calibration_error([0.55, 0.95], [1, 1]) == pytest.approx(0.25)


def test_pareto() -> None:
    assert statistics.pareto([1, 2, 3, 3], [0.4, 0.4, 0.6, 0.5]) == [True, False, True, False]
    assert statistics.pareto([1, 1], [0.5, 0.5]) == [True, True]


def walks(shares: list[float], n: int, runs: int, seed: int) -> np.ndarray:
    """Running counts (runs, n, 3) of losses, gains and ties."""
    outcome = np.random.default_rng(seed).choice(3, size=(runs, n), p=shares)
    return np.cumsum(outcome[:, :, None] == np.arange(3), axis=1)


def ever(shares: list[float], claim: str, n: int = 800, runs: int = 400, seed: int = 7) -> int:
    """In how many runs the evidence for `claim` reached 1/α after any pair at all."""
    seen: dict[tuple[int, ...], bool] = {}

    def reached(counts: tuple[int, ...]) -> bool:
        if counts not in seen:
            losses, gains, ties = counts
            test = statistics.Sequential(0.02, losses=losses, gains=gains, ties=ties)
            seen[counts] = getattr(test, claim) >= 1 / test.alpha
        return seen[counts]

    # only where a pair was discordant, or at the end of a stretch of ties, can the evidence have peaked
    return sum(any(reached(tuple(c)) for c in walk[::4].tolist()) for walk in walks(shares, n, runs, seed))


@pytest.mark.long
@pytest.mark.parametrize(
    ("shares", "claim"),
    [
        ([0.04, 0.04, 0.92], "different"),
        ([0.20, 0.20, 0.60], "different"),
        ([0.05, 0.03, 0.92], "no_meaningful_loss"),  # a true loss of just the margin, 2 points
        ([0.02, 0.00, 0.98], "no_meaningful_loss"),
        ([0.05, 0.03, 0.92], "meaningful_loss"),
        ([0.16, 0.14, 0.70], "meaningful_loss"),
    ],
)
def test_peeking_is_harmless(shares: list[float], claim: str) -> None:
    assert ever(shares, claim) <= scipy.stats.binom.ppf(0.999, 400, 0.05)


def test_peeking_at_p_values_is_not() -> None:
    """What the anytime-valid test is for: McNemar's p-value, looked at again and again, alarms far too often."""
    alarms = sum(
        any(statistics.mcnemar(int(c[0]), int(c[1])) < 0.05 for c in walk[99::50])
        for walk in walks([0.06, 0.06, 0.88], 1500, 300, seed=8)
    )
    assert alarms / 300 > 0.1


def test_what_is_there_is_found() -> None:
    assert ever([0.02, 0.02, 0.96], "no_meaningful_loss", n=2000, runs=50) >= 40
    assert ever([0.15, 0.05, 0.80], "meaningful_loss", n=1000, runs=50) >= 45
    assert ever([0.15, 0.05, 0.80], "different", n=1000, runs=50) >= 45


def test_sequential_is_a_function_of_the_pairs() -> None:
    pairs = [(True, True), (True, False), (False, True), (False, False), (True, False)]
    test = statistics.Sequential(0.02)
    for pair in pairs:
        test = test.add(*pair)
    assert test == statistics.Sequential(0.02, losses=2, gains=1, ties=2)
    again = statistics.Sequential(0.02)
    for pair in reversed(pairs):
        again = again.add(*pair)
    assert again == test and again.no_meaningful_loss == test.no_meaningful_loss
    assert test.decided is None
    assert statistics.Sequential(0.02).no_meaningful_loss == pytest.approx(1)
    assert statistics.Sequential(0.02, gains=400, ties=9000).decided == "no meaningful loss"
    assert statistics.Sequential(0.02, losses=400, ties=900).decided == "meaningful loss"


def test_different_is_the_mixture_integral() -> None:
    """Against numerical integration over the Jeffreys prior."""
    from scipy.integrate import quad

    for losses, gains in ((0, 0), (5, 1), (12, 12), (3, 20)):
        mixed, _ = quad(
            lambda p, a=losses, b=gains: scipy.stats.beta.pdf(p, 0.5, 0.5) * (2 * p) ** a * (2 * (1 - p)) ** b, 0, 1
        )
        test = statistics.Sequential(0.02, losses=losses, gains=gains)
        assert test.different == pytest.approx(mixed, rel=1e-6)
