"""The report's statistics: pure functions of counts and arrays, each with the source of its formula.

Shares and losses are fractions here (0.02 is two points). A loss is positive where the level is worse than its
reference. "Losses" and "gains" are questions that the reference alone, or the level alone, got right.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, bdtrc, ndtri

Floats = NDArray[np.float64]

ALPHA = 0.05
POWER = 0.8
SAMPLES = 10_000
CORRECTION = 0.5


def wilson(successes: float, n: int, confidence: float = 1 - ALPHA) -> tuple[float, float]:
    """The score interval of a share; (0, 1) where n is 0. `successes` may be fractional (averages over permutations).

    E. B. Wilson, Probable inference, the law of succession, and statistical inference. JASA 22 (1927).
    """
    if n == 0:
        return 0.0, 1.0
    z2 = float(ndtri((1 + confidence) / 2)) ** 2
    p = successes / n
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar(losses: int, gains: int) -> float:
    """The exact two-sided p-value that losses and gains are equally likely; 1 where there are none.

    Q. McNemar, Note on the sampling error of the difference between correlated proportions. Psychometrika 12 (1947);
    in its exact form the sign test on the discordant pairs.
    """
    n, fewer = losses + gains, min(losses, gains)
    return 1.0 if losses == gains else float(bdtr(fewer, n, 0.5) + bdtrc(n - fewer - 1, n, 0.5))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted so that the chance of any false alarm among them stays below α, in the order given.

    S. Holm, A simple sequentially rejective multiple test procedure. Scand. J. Statist. 6 (1979).
    """
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def fallback(rejects: Sequence[Callable[[float], bool]], alphas: Sequence[float]) -> list[float]:
    """The α at which each claim is tested, in an order that was fixed beforehand: its own, and that of the claims
    before it as far as they were all shown without a break.

    `rejects[i]` says whether claim i's null hypothesis is rejected at a given α. However the tests depend on each
    other, the chance that any true null hypothesis is rejected is at most the sum of `alphas`.

    B. L. Wiens, A fixed sequence Bonferroni procedure for testing multiple endpoints. Pharmaceut. Statist. 2 (2003);
    B. L. Wiens, A. Dmitrienko, The fallback procedure for evaluating a single family of hypotheses. J. Biopharm.
    Statist. 15 (2005).
    """
    found: list[float] = []
    carried = 0.0
    for reject, own in zip(rejects, alphas, strict=True):
        found.append(carried + own)
        carried = found[-1] if reject(found[-1]) else 0.0
    return found


def heterogeneity(
    strata: Sequence[Sequence[tuple[str, float]]], *, samples: int = SAMPLES, seed: int = 0
) -> tuple[float, float]:
    """(sum of squares between groups, p-value) of whether values differ between groups, by permuting the groups' names.

    Each stratum holds (group, value) of what could change places: all questions where each is in one group, else the
    parts of one question. Exact at every n: under the null hypothesis all placings are equally likely, and of so many
    drawn ones and the one there is, the rank of its sum of squares is uniform.

    E. J. G. Pitman, Significance tests which may be applied to samples from any populations. Suppl. JRSS 4 (1937);
    drawn ones: B. Phipson, G. K. Smyth, Permutation p-values should never be zero. Stat. Appl. Genet. Mol. Biol. 9
    (2010).
    """
    names = sorted({group for stratum in strata for group, _ in stratum})
    if len(names) < 2:
        return 0.0, 1.0
    place = {name: i for i, name in enumerate(names)}
    sizes = np.zeros(len(names))
    observed = np.zeros(len(names))
    fixed = np.zeros(len(names))  # of strata whose values are all the same
    loose: Counter[tuple[tuple[str, float], ...]] = Counter()
    for stratum in strata:
        own = np.zeros(len(names))
        for group, value in stratum:
            sizes[place[group]] += 1
            own[place[group]] += value
        observed += own
        if len({value for _, value in stratum}) > 1:
            loose[tuple(sorted(stratum))] += 1
        else:
            fixed += own
    statistic = float(_between(observed, sizes))
    if not loose:
        return statistic, 1.0
    rng = np.random.default_rng(seed)
    sums = np.tile(fixed, (samples, 1))
    for stratum, times in loose.items():
        values, counts = np.unique([value for _, value in stratum], return_counts=True)
        counts, values = counts[np.argsort(counts)], values[np.argsort(counts)]  # the commonest is what is left over
        own_sizes = Counter(group for group, _ in stratum)
        left = np.tile(counts, (samples, times, 1))
        for group, size in own_sizes.items():
            wanted = np.full((samples, times), size)
            for k in range(len(values)):
                others = left[:, :, k + 1 :].sum(axis=2)
                drawn = rng.hypergeometric(left[:, :, k], others, wanted) if k + 1 < len(values) else wanted
                left[:, :, k] -= drawn
                wanted = wanted - drawn
                sums[:, place[group]] += values[k] * drawn.sum(axis=1)
    as_large = int((_between(sums, sizes) >= statistic * (1 - 1e-9)).sum())
    return statistic, (1 + as_large) / (1 + samples)


def _between(sums: Floats, sizes: Floats) -> Any:
    """Σ n (mean of the group − mean)², over the last axis."""
    return (sums**2 / sizes).sum(axis=-1) - sums.sum(axis=-1) ** 2 / sizes.sum()


def bootstrap(
    sums: Sequence[float] | Floats,
    counts: Sequence[float] | Floats,
    *,
    confidence: float = 1 - ALPHA,
    samples: int = SAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """The percentile interval of sum(sums) / sum(counts) when clusters are drawn again with replacement.

    Cluster i contributes `sums[i]` (of differences, for pairs) over `counts[i]` items. Clusters with the same pair of
    numbers are interchangeable, so how often each such kind is drawn is one multinomial draw instead of n single ones.

    B. Efron, R. Tibshirani, An introduction to the bootstrap (1993), chapter 13; clusters: A. C. Davison,
    D. V. Hinkley, Bootstrap methods and their application (1997), section 3.8.
    """
    kinds, times = np.unique(np.column_stack([sums, counts]), axis=0, return_counts=True)
    n = int(times.sum())
    draws = np.random.default_rng(seed).multinomial(n, times / n, size=samples).astype(np.float64)
    shares = (draws @ kinds[:, 0]) / (draws @ kinds[:, 1])
    low, high = np.quantile(shares, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def effective_pairs(differences: Sequence[float]) -> float:
    """How many independent pairs are worth as much as these questions' mean differences, each in [−1, 1].

    Where every question was asked once, so that differences are −1, 0 or 1, that is their number. Where answers in two
    languages, or under several orders, were averaged, it is larger, as far as they are not correlated.

    J. N. K. Rao, A. J. Scott, A simple method for the analysis of clustered binary data. Biometrics 48 (1992).
    """
    d = np.asarray(differences, float)
    if not len(d):
        return 0.0
    square = float(d.mean()) ** 2
    of_pairs, of_questions = float(np.abs(d).mean()) - square, float((d * d).mean()) - square
    return len(d) * of_pairs / of_questions if of_questions > 1e-12 else float(len(d))


def loss_bound(
    losses: float, gains: float, n: float, confidence: float = 1 - ALPHA, correction: float = CORRECTION
) -> float:
    """The one-sided upper bound of the loss (losses − gains) / n: the largest loss that the score test does not reject.

    Unlike a bootstrap bound it does not collapse to 0 where no answer differs: z² / (n + z²) then, were it not for the
    correction. For questions that were asked several times, all three are scaled to `effective_pairs`.

    `correction` is for continuity, in questions. Without it the test is too bold where few questions are lost: at a
    margin of 2 points and n = 137, a level that loses just that much passes 6.3 % of the time at α = 5 %; with half a
    question never more than 4.8 % (docs/statistics.md).

    T. Tango, Equivalence test and confidence interval for the difference in proportions for the paired-sample design.
    Statistics in Medicine 17 (1998).
    """
    if n == 0:
        return 1.0
    z = float(ndtri(confidence))

    def statistic(loss: float) -> float:
        b = (2 * n - losses + gains) * loss - losses - gains
        # the maximum-likelihood share of gains, were this the true loss
        share = (math.sqrt(max(0.0, b * b + 8 * n * gains * loss * (1 - loss))) - b) / (4 * n)
        variance = n * (2 * share + loss * (1 - loss))
        return (losses - gains + correction - n * loss) / math.sqrt(max(variance, 1e-300)) + z

    low, high = (losses - gains + correction) / n, 1 - 1e-12
    if low >= high or statistic(high) > 0:
        return 1.0
    return _root(statistic, low + 1e-15, high)


def detectable_loss(n: float, disagreement: float, alpha: float = ALPHA, power: float = POWER) -> float:
    """The loss δ that n pairs show with this power in a two-sided test at `alpha`, at this rate of discordant pairs d.

    Solves n = (z_{1−α/2} √d + z_power √(d − δ²))² / δ². A loss can't exceed the disagreement: where the solution does,
    every discordant pair is taken for a loss (d = δ). 1 where not even that can be shown.

    R. J. Connor, Sample size for testing differences in proportions for the paired-sample design. Biometrics 43 (1987).
    """
    z_a, z_b = float(ndtri(1 - alpha / 2)), float(ndtri(power))

    def lacking(loss: float, d: float) -> float:
        return (z_a * math.sqrt(d) + z_b * math.sqrt(max(0.0, d - loss * loss))) ** 2 / (loss * loss) - n

    if n > 0 and disagreement > 0 and lacking(disagreement, disagreement) <= 0:
        return _root(lambda loss: lacking(loss, disagreement), 1e-9, disagreement)
    if n <= 0 or lacking(1.0, 1.0) > 0:
        return 1.0
    return _root(lambda loss: lacking(loss, loss), 1e-9, 1.0)


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function is 0 between two places at which its signs differ, by Brent's method."""
    from scipy.optimize import brentq  # takes longer to import than all that a run needs

    return float(brentq(function, low, high, xtol=1e-14))


@dataclass(frozen=True)
class Flips:
    """Answers by what became of them between the reference and the level."""

    right_to_wrong: int = 0
    wrong_to_right: int = 0
    wrong_to_wrong: int = 0  # another wrong answer
    unchanged: int = 0


def flips(pairs: Sequence[tuple[bool, bool, bool]]) -> Flips:
    """Counts over (reference right, level right, same choices picked).

    A. Dutta et al., Accuracy is not all you need. NeurIPS 2024 (arXiv 2407.09141): two levels of the same accuracy can
    answer differently.
    """
    lost = sum(before and not after for before, after, _ in pairs)
    won = sum(after and not before for before, after, _ in pairs)
    other = sum(not before and not after and not same for before, after, same in pairs)
    return Flips(lost, won, other, len(pairs) - lost - won - other)


def calibration_error(confidence: Sequence[float], correct: Sequence[float], bins: int = 10) -> float:
    """The mean distance between confidence and accuracy over equal bins of confidence, weighted by their answers.

    M. P. Naeini, G. F. Cooper, M. Hauskrecht, Obtaining well calibrated probabilities using Bayesian binning, AAAI 2015
    """
    sure, right = np.asarray(confidence, float), np.asarray(correct, float)
    place = np.minimum((sure * bins).astype(int), bins - 1)
    gaps = np.abs(np.bincount(place, sure, bins) - np.bincount(place, right, bins))
    return float(gaps.sum() / len(sure))


def pareto(costs: Sequence[float], gains: Sequence[float]) -> list[bool]:
    """Which points no other beats: none costs as little or less and gains as much or more, one of them strictly."""
    points = list(zip(costs, gains, strict=True))
    return [not any((c <= cost and g >= gain) and (c < cost or g > gain) for c, g in points) for cost, gain in points]


# Bets as shares of the largest that can't lose everything. Small ones win slowly and surely, large ones fast.
_BETS = np.geomspace(0.002, 0.9, 40)


@dataclass(frozen=True)
class Sequential:
    """Tests that may be looked at after every pair: each claim is wrong with a chance of at most α, whenever one stops.

    Under its null hypothesis each statistic is a non-negative martingale, or falls below one, that starts at 1; by
    Ville's inequality it ever reaches 1/α with a chance of at most α. All are functions of the three counts alone, so
    the same pairs give the same answer in whatever packs they come. The pairs must come in an order that has nothing
    to do with their outcome (a seeded shuffle), and be one per question. A question that was asked several times adds
    its mean difference as a fraction of a loss or gain and a tie: the logarithm is concave, so that is cautious.

    `different` mixes bets on the discordant pairs over a Jeffreys prior: H. Robbins, Statistical methods related to
    the law of the iterated logarithm, Ann. Math. Statist. 41 (1970). The two tests of the margin are mixtures of bets
    on the mean of a bounded variable: I. Waudby-Smith, A. Ramdas, Estimating means of bounded random variables by
    betting, JRSS B 86 (2024).
    """

    margin: float
    alpha: float = ALPHA
    losses: float = 0
    gains: float = 0
    ties: float = 0

    def add(self, reference_correct: bool, correct: bool) -> Sequential:
        """With one more pair."""
        return replace(
            self,
            losses=self.losses + (reference_correct and not correct),
            gains=self.gains + (correct and not reference_correct),
            ties=self.ties + (correct == reference_correct),
        )

    @cached_property
    def different(self) -> float:
        """Evidence (an e-value) against losses and gains being equally likely."""
        a, n = 0.5, self.losses + self.gains
        log = (
            math.lgamma(self.losses + a) + math.lgamma(self.gains + a) - math.lgamma(n + 2 * a)
            - 2 * math.lgamma(a) + math.lgamma(2 * a) + n * math.log(2)
        )  # fmt: skip
        return _exp(log)

    @cached_property
    def no_meaningful_loss(self) -> float:
        """Evidence against a loss of `margin` or more."""
        m = self.margin
        return self._wealth(gain=1 + m, tie=m, loss=m - 1)

    @cached_property
    def meaningful_loss(self) -> float:
        """Evidence against a loss of `margin` or less."""
        m = self.margin
        return self._wealth(gain=-1 - m, tie=-m, loss=1 - m)

    def _wealth(self, *, gain: float, tie: float, loss: float) -> float:
        bets = _BETS / -min(gain, tie, loss)
        logs = self.gains * np.log1p(bets * gain) + self.ties * np.log1p(bets * tie)
        logs = logs + self.losses * np.log1p(bets * loss)
        top = float(logs.max())
        return _exp(top + math.log(float(np.exp(logs - top).mean())))

    @property
    def decided(self) -> str | None:
        """\"no meaningful loss", "meaningful loss", or None as long as neither is shown."""
        if self.no_meaningful_loss >= 1 / self.alpha:
            return "no meaningful loss"
        return "meaningful loss" if self.meaningful_loss >= 1 / self.alpha else None


def _exp(log: float) -> float:
    return math.exp(min(log, 700.0))
