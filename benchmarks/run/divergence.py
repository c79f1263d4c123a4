"""How far next-token distributions are from a reference's: kept in 16 bits, compared row by row, summed up.

The definitions are those of llama-perplexity (tools/perplexity/perplexity.cpp of llama.cpp): KL divergence is
Σ p ln(p/q) over the vocabulary, p the reference's probabilities, q the model's, in nats; an error is the standard
deviation over the positions divided by √(n - 1).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

from jmedlite.base.native import F32, F64
from jmedlite.runtime.context import finite_max

QUANTILES = ("0.01", "0.05", "0.95", "0.99", "0.999")
TAIL = ("0.99", "0.999")  # those that have intervals
SAMPLES = 2000  # of the bootstrap
BLOCKS = 10  # fewer say too little of how much blocks differ: no intervals then

# A probability is kept as the nearest of 65,536 steps of its fourth root: absolute steps where it is large, relative
# ones where it is small, down to 3e-21. Steps of its logarithm, as llama-perplexity keeps it, waste most of the 16 bits
# on tokens that add nothing to a sum weighted by p.
STEPS = 65535
_P: F64 = (np.arange(STEPS + 1) / STEPS) ** 4
_P_LN_P: F64 = _P * np.log(np.maximum(_P, np.finfo(np.float64).tiny))


def record(n_vocab: int) -> np.dtype[Any]:
    """What is kept of one position: the kept probabilities' Σ p and Σ p ln p, the top token, and the probabilities."""
    return np.dtype([("mass", "<f8"), ("p_ln_p", "<f8"), ("top", "<u4"), ("codes", "<u2", (n_vocab,))])


class Space:
    """Room for the arithmetic on one row of logits (n_vocab,); one for each thread."""

    def __init__(self, n_vocab: int) -> None:
        self._shifted, self._exp = np.empty(n_vocab, np.float32), np.empty(n_vocab, np.float32)
        self._wide = np.empty(n_vocab, np.float64)

    def _normalize(self, logits: F32) -> float:
        """ln Σ exp(logits - max) (nats), and leaves `logits - max` in `_shifted`; DataError if they are not finite."""
        np.subtract(logits, np.float32(finite_max(logits)), out=self._shifted)
        np.exp(self._shifted, out=self._exp)
        return math.log(float(self._exp.sum(dtype=np.float64)))

    def nll(self, logits: F32, token: int) -> float:
        """-ln p of `token` (nats)."""
        return self._normalize(logits) - float(self._shifted[token])

    def keep(self, logits: F32, token: int, rows: NDArray[Any], at: int) -> float:
        """Keep the distribution as record `rows[at]`; returns -ln p of `token`."""
        log_sum = self._normalize(logits)
        np.multiply(self._shifted, np.float32(0.25), out=self._exp)
        np.exp(self._exp, out=self._exp)
        self._exp *= np.float32(STEPS * math.exp(-log_sum / 4))
        np.rint(self._exp, out=self._exp)
        codes = rows["codes"][at]
        np.copyto(codes, self._exp, casting="unsafe")  # none is over STEPS, since no p is over 1
        rows["mass"][at] = _P.take(codes, out=self._wide, mode="clip").sum()
        rows["p_ln_p"][at] = _P_LN_P.take(codes, out=self._wide, mode="clip").sum()
        rows["top"][at] = logits.argmax()
        return log_sum - float(self._shifted[token])

    def compare(self, logits: F32, token: int, rows: NDArray[Any], at: int) -> tuple[float, float, bool]:
        """(-ln p of `token`, KL divergence of the kept distribution to this one, same top token?), in nats.

        Σ p ln(p/q) - Σ p + Σ q is the KL divergence where both sums are 1. The kept p's are not quite, and written so,
        their rounding errors count with the weight ln(p/q) each, not ln(p/q) + 1.
        """
        log_sum = self._normalize(logits)
        _P.take(rows["codes"][at], out=self._wide, mode="clip")
        np.multiply(self._wide, self._shifted, out=self._wide)
        mass = float(rows["mass"][at])
        divergence = float(rows["p_ln_p"][at]) - float(self._wide.sum()) + mass * log_sum - mass + 1
        same = int(logits.argmax()) == int(rows["top"][at])
        return log_sum - float(self._shifted[token]), max(0.0, divergence), same  # below 0 is rounding


# ------------------------------------------------------------------------------------------------- summing up


def mean_and_error(x: F64) -> tuple[float, float]:
    """The mean, and its standard error as llama-perplexity has it: √((mean of x² - mean²) / (n - 1))."""
    return float(x.mean()), float(x.std() / math.sqrt(max(1, x.size - 1)))


def summarize_perplexity(nll: F64) -> dict[str, float]:
    """e to the mean of `nll` (n,), -ln p of every scored token; the error is the mean's, times the perplexity."""
    mean, error = mean_and_error(nll)
    return {"perplexity": math.exp(mean), "perplexity_error": math.exp(mean) * error}


def summarize_distance(
    nll: F64, base: F64, divergence: F64, same: NDArray[np.bool_], n_blocks: int = 1
) -> dict[str, Any]:
    """A model beside the reference: -ln p `nll` and `base`, KL `divergence` (nats), `same` top token; all (n,).

    The log ratio's error is that of the mean difference, which is √(error² + error_base² - 2 covariance). Intervals
    take the `n_blocks` chunks of the text, of equally many positions, as independent, and not their positions.
    """
    ratio, ratio_error = mean_and_error(nll - base)
    mean, error = mean_and_error(divergence)
    agreement = float(same.mean())
    return {
        **summarize_perplexity(nll),
        "log_ratio": ratio,
        "log_ratio_error": ratio_error,
        "kl_mean": mean,
        "kl_error": error,
        "kl_interval": None,
        "kl_median": float(np.median(divergence)),
        "kl_quantiles": {q: float(np.quantile(divergence, float(q))) for q in QUANTILES},
        "kl_quantile_intervals": None,
        "kl_max": float(divergence.max()),
        "top_agreement": agreement,
        "top_agreement_error": math.sqrt(agreement * (1 - agreement) / max(1, same.size - 1)),
        **(block_intervals(divergence.reshape(n_blocks, -1)) if n_blocks >= BLOCKS else {}),
    }


def block_intervals(blocks: F64, samples: int = SAMPLES, seed: int = 0) -> dict[str, Any]:
    """95 % percentile intervals of the mean of `blocks` (n, size) and of its quantiles `TAIL`.

    Whole blocks are drawn again with replacement: neighbours within a text are alike, so that single positions drawn
    again would make the intervals too narrow. H. R. Künsch, The jackknife and the bootstrap for general stationary
    observations. Ann. Statist. 17 (1989); here with the blocks that the text is read in, which do not overlap
    (E. Carlstein, Ann. Statist. 14 (1986)). Of few blocks that is too narrow still, so the percentiles are those that
    give a mean's interval the width of Student's (T. Hesterberg, What teachers should know about the bootstrap, The
    American Statistician 69 (2015), section 3.3).
    """
    n, size = blocks.shape
    falling = np.argsort(-blocks, axis=None, kind="stable")
    values, owners = blocks.ravel()[falling], falling // size
    # places in the order of falling values, between which np.quantile interpolates, and where it stands between them
    places = {q: divmod((n * size - 1) * (1 - float(q)), 1) for q in TAIL}
    # a quantile of drawn blocks is among the largest values, so far fewer than all must be counted up
    deepest = int(max(place for place, _ in places.values())) + 2
    random = np.random.default_rng(seed)
    means: list[F64] = []
    found: dict[str, list[F64]] = {q: [] for q in TAIL}
    step = max(1, 2_000_000 // (n * size))
    for start in range(0, samples, step):
        draws = random.multinomial(n, [1 / n] * n, size=min(step, samples - start))  # (drawn, n)
        means.append(draws @ blocks.mean(axis=1) / n)
        depth = min(n * size, 8 * deepest)
        counted = draws[:, owners[:depth]].cumsum(axis=1)
        if counted[:, -1].min() < deepest:  # none of the drawn blocks has many of the large ones
            counted = draws[:, owners].cumsum(axis=1)
        for q, (place, rest) in places.items():
            upper, lower = (values[(counted > place + i).argmax(axis=1)] for i in (0, 1))
            found[q].append(upper + rest * (lower - upper))
    low = float(ndtr(math.sqrt(n / (n - 1)) * stdtrit(n - 1, 0.025)))
    interval = (low, 1 - low)
    return {
        "kl_interval": np.quantile(np.concatenate(means), interval).tolist(),
        "kl_quantile_intervals": {q: np.quantile(np.concatenate(x), interval).tolist() for q, x in found.items()},
    }
