"""Simulation: how often a report recommends a level that loses more than the margin. The table of docs/statistics.md.

    python tools/simulate_verdict.py                  # 10,000 reports of each kind: five minutes
    python tools/simulate_verdict.py --runs 500

Each report has six levels, from the widest to the narrowest, and questions in a few groups. What a level does to a
question (loses it, gains it, neither) follows from a normal number; the numbers of two levels on one question have the
correlation ρ, as have those of the second analysis. The rules are those of the report, by its own functions: claims
(`claim`), Holm over groups and levels, and over levels for the second analysis (`shows_loss`).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from jmedlite.benchmarks import statistics
from jmedlite.benchmarks.report.claims import claim
from jmedlite.benchmarks.report.groups import shows_loss
from jmedlite.benchmarks.report.sections import Comparison

MARGIN = 0.02
K = 6
GROUPS = (0.5, 0.3, 0.15, 0.05)  # shares of the questions


@dataclass(frozen=True)
class Scenario:
    """True losses of the levels (shares), in all groups alike but for `in_group`, where all is lost in that group."""

    name: str
    losses: tuple[float, ...]
    n: int = 788
    gained: float = 0.0  # of all questions, beside those lost
    correlation: float = 0.5
    other_losses: tuple[float, ...] | None = None  # by the second analysis; None: as by the first
    in_group: int | None = None
    languages: int = 1  # in which each question is asked
    runs: int = 10_000


@dataclass(frozen=True)
class Found:
    """Shares of reports."""

    wrong_alone: float  # in which the primary analysis alone would let a level pass that loses the margin or more
    wrong: float  # in which such a level is recommended
    narrowest: float  # in which the narrowest level that loses less is recommended
    blocked: float  # in which a level that loses less passes the primary analysis, and something else contradicts it


SAME = (MARGIN,) * K
LATE = (0.0,) * (K - 1) + (MARGIN,)  # all that the wider levels had comes to the one that is wrong
SCENARIOS = (
    *(Scenario("every level loses just the margin, nothing is gained", SAME, n=n) for n in (137, 300, 788, 1455)),
    Scenario("… and 3 % of the questions are gained", SAME, gained=0.03),
    Scenario("… the levels are independent", SAME, gained=0.03, correlation=0.0),
    Scenario("… the levels are nearly one", SAME, gained=0.03, correlation=0.99),
    Scenario("only the narrowest loses the margin, the others nothing", LATE),
    Scenario("… n = 137", LATE, n=137),
    Scenario("… and 3 % are gained, the levels are independent", LATE, gained=0.03, correlation=0.0),
    Scenario("… each question in two languages", LATE, gained=0.03, languages=2),
    Scenario("every other level loses the margin", (0.0, MARGIN) * 3, gained=0.01),
    Scenario("all lose the margin, all of it in one group of 15 %", SAME, in_group=2),
    Scenario("the second analysis sees nothing of it", SAME, other_losses=(0.0,) * K),
    Scenario("no level loses anything (null)", (0.0,) * K, gained=0.01),
    Scenario("no level loses anything, 3 % gained and lost", (0.0,) * K, gained=0.03),
    Scenario("a real study", (0.0, 0.0, 0.001, 0.005, 0.02, 0.1), gained=0.015),
    Scenario("… by the second analysis the fourth loses 3 points", (0.0, 0.0, 0.001, 0.005, 0.02, 0.1), gained=0.015,
             other_losses=(0.0, 0.0, 0.001, 0.03, 0.03, 0.1)),
)  # fmt: skip


def outcomes(scenario: Scenario, rng: np.random.Generator) -> tuple[NDArray[Any], NDArray[Any]]:
    """(levels, questions) of mean differences, by both analyses, from −1 (lost) to 1 (gained)."""
    groups = group_of(scenario.n)
    found = []
    shared = rng.standard_normal((scenario.languages, 1, scenario.n))
    for losses in (scenario.losses, scenario.other_losses or scenario.losses):
        own = rng.standard_normal((scenario.languages, K, scenario.n))
        z = scenario.correlation**0.5 * shared + (1 - scenario.correlation) ** 0.5 * own
        if scenario.languages > 1:  # an answer in another language goes half the way of the first
            z[1:] = 0.5**0.5 * (z[:1] + z[1:])
        lost = np.repeat(np.asarray(losses)[:, None], scenario.n, axis=1)
        if scenario.in_group is not None:
            share = GROUPS[scenario.in_group]
            lost = np.where(groups == scenario.in_group, lost / share, 0.0)
        low, high = ndtri(np.clip(lost + scenario.gained, 0, 1)), -ndtri(scenario.gained)
        found.append(((z > high).astype(float) - (z < low)).mean(axis=0))
    return found[0], found[1]


@lru_cache
def group_of(n: int) -> NDArray[Any]:
    """The number of each question's group."""
    return np.searchsorted(np.cumsum(GROUPS) - 1e-9, (np.arange(n) + 0.5) / n)


def compare(differences: NDArray[Any]) -> Comparison:
    """What `claim` needs of a comparison."""
    below, above = differences[differences < 0], differences[differences > 0]
    losses, gains, n = float(-below.sum()), float(above.sum()), len(differences)
    asked_once = len(below) == losses and len(above) == gains
    return cast(Comparison, {
        "n": n, "losses": losses, "gains": gains, "questions_lost": len(below), "questions_gained": len(above),
        "effective_pairs": float(n) if asked_once else statistics.effective_pairs(differences),
        "difference": (gains - losses) / n, "p": statistics.mcnemar(len(below), len(above)),
    })  # fmt: skip


def recommended(primary: NDArray[Any], other: NDArray[Any]) -> tuple[list[bool], list[bool]]:
    """(which levels the primary analysis lets pass, which may be recommended)."""
    n = primary.shape[1]
    comparisons = [compare(d) for d in primary]
    claim([(c, False) for c in comparisons], K, MARGIN)
    alone = [c["no_meaningful_loss"] for c in comparisons]
    if not any(alone):
        return alone, alone
    groups = group_of(n)
    parts = [compare(d[groups == g]) for d in primary for g in range(len(GROUPS))]
    of_groups = statistics.holm([c["p"] or 0.0 for c in parts])
    others = [compare(d) for d in other]
    of_others = statistics.holm([c["p"] or 0.0 for c in others])
    final = []
    for level, shown in enumerate(alone):
        own = range(level * len(GROUPS), (level + 1) * len(GROUPS))
        against = any(shows_loss(parts[i]["difference"], of_groups[i], MARGIN) for i in own)
        against = against or shows_loss(others[level]["difference"], of_others[level], MARGIN)
        final.append(shown and not against)
    return alone, final


def simulate(scenario: Scenario, seed: int = 0) -> Found:
    """So many reports of one kind."""
    rng = np.random.default_rng(seed)
    bad = [loss >= MARGIN for loss in scenario.losses]
    good = [i for i, is_bad in enumerate(bad) if not is_bad]
    counts = np.zeros(4)
    for _ in range(scenario.runs):
        alone, final = recommended(*outcomes(scenario, rng))
        counts += (
            any(a and b for a, b in zip(alone, bad, strict=True)),
            any(f and b for f, b in zip(final, bad, strict=True)),
            bool(good) and final[good[-1]],
            any(alone[i] and not final[i] for i in good),
        )
    return Found(*(counts / scenario.runs).tolist())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    runs = parser.parse_args().runs
    print("| six levels, margin 2 points | n | gained, ρ | wrong by the primary analysis alone | wrong | "
          "narrowest good level recommended | good level contradicted |")  # fmt: skip
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for scenario in SCENARIOS:
        found = simulate(replace(scenario, runs=runs))
        has_bad, has_good = (any((loss >= MARGIN) is bad for loss in scenario.losses) for bad in (True, False))
        shares = (found.wrong_alone, found.wrong, found.narrowest, found.blocked)
        said = (has_bad, has_bad, has_good, has_good)
        cells = [f"{100 * share:.2f} %" if there else "" for share, there in zip(shares, said, strict=True)]
        print(f"| {scenario.name} | {scenario.n:,} | {100 * scenario.gained:g} %, {scenario.correlation:g} | "
              f"{' | '.join(cells)} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
