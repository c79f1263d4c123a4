"""How far next-token distributions are from a reference's (runtime/divergence.py), summed up.

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

from jmedlite.base.native import F64

QUANTILES = ("0.01", "0.05", "0.95", "0.99", "0.999")
TAIL = ("0.99", "0.999")  # those that have intervals
SAMPLES = 2000  # of the bootstrap
BLOCKS = 10  # fewer say too little of how much blocks differ: no intervals then


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
        "kl_chunks": [float(f"{x:.6g}") for x in divergence.reshape(n_blocks, -1).mean(axis=1)],
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
