"""KL divergence: next-token distributions kept in 16 bits a token, and others compared with them, row by row.

KL divergence is Σ p ln(p/q) over the vocabulary, p the kept distribution, q the other, in nats, as llama-perplexity has
it (tools/perplexity/perplexity.cpp of llama.cpp).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jmedlite.base.native import F32, F64

from .context import finite_max

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
