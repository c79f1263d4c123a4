"""Scores: letters and texts by likelihood; exact match, Gestalt score and Gestalt accuracy of what was generated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any

from jmedlite.benchmarks.tasks.items import Item

DIGITS = 6  # decimals of a score: more than the kernels agree on, and the same text on every machine
NAMED = 0.6  # Gestalt similarity from which a response is taken to name a choice that it does not contain


def pick(scores: Sequence[float], order: Sequence[int], n: int) -> tuple[list[int], float | None]:
    """The `n` choices with the best scores, best first, and the distance of the last of them to the next choice.

    `scores` are by the item's own numbering. Of equal ones, that which is shown first is taken, as a reader would.
    """
    place = {choice: i for i, choice in enumerate(order)}
    ranked = sorted(range(len(scores)), key=lambda c: (-scores[c], place[c]))
    margin = scores[ranked[n - 1]] - scores[ranked[n]] if n < len(ranked) else None
    return ranked[:n], None if margin is None else round(margin, DIGITS)


def result(method: str, item: Item, order: Sequence[int], answer: dict[str, Any]) -> dict[str, Any]:
    """The fields of a line of `items.jsonl` that follow from the worker's `answer` (docs/runs.md)."""
    fields: dict[str, Any] = {"status": "scored", "n_prompt": answer["n_prompt"]}
    if "scores" not in answer and "response" not in answer:
        return {**fields, "status": "too long", "scores": None, "picks": None, "correct": None, "margin": None}
    if method == "generate":
        return {**fields, **_generated(item, order, answer["response"], answer["stop"])}
    if answer.get("bounded"):
        fields["bounded"] = True
    by_place = answer["scores"]
    scores = _own_numbering(by_place, order)
    fields |= {"scores": scores, **_judged(item, scores, order)}
    if method == "letter":
        return {**fields, "mass": round(math.fsum(math.exp(s) for s in scores), DIGITS)}
    n_tokens = [answer["n_tokens"][place] for place, _ in sorted(enumerate(order), key=lambda pair: pair[1])]
    means = [s / n for s, n in zip(scores, n_tokens, strict=True)]
    return {**fields, "n_tokens": n_tokens, "per_token": _judged(item, means, order)}


def _own_numbering(by_place: Sequence[float], order: Sequence[int]) -> list[float]:
    scores = [0.0] * len(order)
    for place, choice in enumerate(order):
        scores[choice] = round(by_place[place], DIGITS)
    return scores


def _judged(item: Item, scores: Sequence[float], order: Sequence[int]) -> dict[str, Any]:
    picks, margin = pick(scores, order, len(item.answers))
    return {"picks": picks, "correct": set(picks) == set(item.answers), "margin": margin}


def ratio(a: str, b: str) -> float:
    """difflib's ratio, which is not symmetric."""
    return SequenceMatcher(None, a, b).ratio()


def similarity(choice: str, response: str) -> float:
    """The papers' Gestalt similarity of a choice and a response."""
    return (ratio(choice, response) + ratio(response, choice)) / 2


def _generated(item: Item, order: Sequence[int], response: str, stop: str) -> dict[str, Any]:
    """The papers' three scores: exact match, Gestalt score, and Gestalt accuracy as `correct`.

    The papers join several right answers with commas and remove "." from the response before anything is compared.
    For the exact match the Japanese full stop is removed too.
    """
    clean = response.replace(".", "").strip()
    answer = ",".join(item.choices[i] for i in sorted(item.answers))
    scores = [round(similarity(c, clean), DIGITS) for c in item.choices]
    named = max(scores) >= NAMED or any(c.replace(".", "") in clean for c in item.choices)
    return {
        "status": "scored" if named else "unparsed",
        "scores": scores,
        **_judged(item, scores, order),
        "response": response,
        "stop": stop,
        "exact": _bare(response) == _bare(answer),
        "gestalt": round(ratio(clean, answer.replace(".", "").strip()), DIGITS),
        "parsed": named,
    }


def _bare(text: str) -> str:
    return text.translate(str.maketrans("", "", ".。．")).strip()
