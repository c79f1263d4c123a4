"""Mixes under a budget: against exhaustive search and an exact solver of integer programs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from scipy.optimize import Bounds, LinearConstraint, milp

from jmedlite.base.errors import UsageError
from jmedlite.convert.levels.mixes import Choice, choose

TYPES = [GGMLQuantizationType[t] for t in ("Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0")]
BYTES = (84, 110, 136, 144, 176, 210, 272)


def options(rng: np.random.Generator, n: int) -> dict[str, list[Choice]]:
    """Weights of different sizes and sensitivities; a type now and then is worse than a narrower one."""
    found = {}
    for i in range(n):
        blocks, harm = int(rng.integers(1, 40)), float(rng.lognormal(-3, 2))
        found[f"w{i}"] = [
            Choice(t, blocks * b, harm * 4 ** (-b / 32) * float(rng.uniform(0.7, 1.4)))
            for t, b in zip(TYPES, BYTES, strict=True)
        ]
    return found


def total(taken: dict[str, Choice]) -> tuple[int, float]:
    return sum(c.nbytes for c in taken.values()), sum(c.harm for c in taken.values())


def exact(weights: dict[str, list[Choice]], budget: int) -> float:
    """The least harm, by scipy's solver of integer programs."""
    flat = [(i, c) for i, cs in enumerate(weights.values()) for c in cs]
    one = np.zeros((len(weights), len(flat)))
    for k, (i, _) in enumerate(flat):
        one[i, k] = 1
    harms, sizes = np.array([c.harm for _, c in flat]), np.array([c.nbytes for _, c in flat], float)
    found = milp(
        harms,
        constraints=[LinearConstraint(one, 1, 1), LinearConstraint(sizes[None], 0, budget)],
        integrality=np.ones(len(flat)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 1e-9},
    )
    assert found.success
    return float(found.fun)


@pytest.mark.parametrize("seed", range(6))
def test_small_mixes_beside_exhaustive_search(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights = options(rng, 4)
    narrowest = sum(min(c.nbytes for c in cs) for cs in weights.values())
    for budget in range(narrowest, 4 * narrowest, narrowest // 3):
        nbytes, harm = total(choose(weights, budget))
        best = min(
            sum(c.harm for c in combination)
            for combination in itertools.product(*weights.values())
            if sum(c.nbytes for c in combination) <= budget
        )
        assert nbytes <= budget
        # never worse than the best mix of a budget that is smaller by the largest step that any weight can take
        step = max(c.nbytes for cs in weights.values() for c in cs)
        shorter = [
            sum(c.harm for c in combination)
            for combination in itertools.product(*weights.values())
            if sum(c.nbytes for c in combination) <= budget - step
        ]
        assert best <= harm * (1 + 1e-12)
        assert not shorter or harm <= min(shorter) * (1 + 1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_many_weights_are_as_good_as_the_exact_solution(seed: int) -> None:
    weights = options(np.random.default_rng(seed), 200)
    low, high = (sum(f(c.nbytes for c in cs) for cs in weights.values()) for f in (min, max))
    for share in (0.1, 0.4, 0.7):
        budget = int(low + share * (high - low))
        nbytes, harm = total(choose(weights, budget))
        assert nbytes <= budget
        assert harm <= exact(weights, budget) * 1.002


def test_too_small_a_budget_says_what_is_needed() -> None:
    weights = {"a": [Choice(TYPES[0], 2_000_000, 1.0)]}
    with pytest.raises(UsageError, match=r"at least 2\.0 MB in the narrowest types, 1\.9 MB are left"):
        choose(weights, 1_900_000)
    assert total(choose(weights, 2_000_000)) == (2_000_000, 1.0)


def test_all_the_room_gives_the_least_harmful_types_and_no_wider_ones() -> None:
    weights = {"a": [Choice(TYPES[0], 10, 1.0), Choice(TYPES[1], 20, 0.1), Choice(TYPES[2], 30, 0.1)]}
    assert choose(weights, 1000)["a"].nbytes == 20
