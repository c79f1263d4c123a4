"""Scores: letters and texts by likelihood; exact match, Gestalt score and Gestalt accuracy of what was generated."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from typing import Any

from jmedlite.benchmarks.records import FAILED, SCORED, TOO_LONG, UNPARSED, Outcome, Picked
from jmedlite.benchmarks.tasks.items import Item
from jmedlite.runtime.thoughts import Said, split_thought

LOW_MASS = 0.1  # what the letters have of the probability together, below which a model wanted to say something else
DIGITS = 6  # decimals of a score: more than the kernels agree on, and the same text on every machine
NAMED = 0.6  # Gestalt similarity from which a response is taken to name a choice that it does not contain


def low_mass(masses: Sequence[float]) -> float | None:
    """The median of what the letters had together, where it is low."""
    middle = statistics.median(masses)
    return middle if middle < LOW_MASS else None


def pick(scores: Sequence[float], order: Sequence[int], n: int) -> tuple[list[int], float | None]:
    """The `n` choices with the best scores, best first, and the distance of the last of them to the next choice.

    `scores` are by the item's own numbering. Of equal ones, that which is shown first is taken, as a reader would.
    """
    place = {choice: i for i, choice in enumerate(order)}
    ranked = sorted(range(len(scores)), key=lambda c: (-scores[c], place[c]))
    margin = scores[ranked[n - 1]] - scores[ranked[n]] if n < len(ranked) else None
    return ranked[:n], None if margin is None else round(margin, DIGITS)


def score(method: str, item: Item, order: Sequence[int], answer: dict[str, Any], papers: str | None = None) -> Outcome:
    """What comes of a worker's `answer` to an item whose choices stood in `order` (docs/runs.md, items.jsonl).

    `papers` is the text of a preset's prompt: what was generated is then scored as the papers' program does.
    """
    n_prompt = answer["n_prompt"]
    if answer.get("failed"):
        return no_outcome(FAILED)
    if "scores" not in answer and "response" not in answer:
        return no_outcome(TOO_LONG, n_prompt)
    if method == "generate":
        return _generated(item, order, answer, papers)
    scores = _own_numbering(answer["scores"], order)
    found = Outcome(
        status=SCORED,
        n_prompt=n_prompt,
        bounded=True if answer.get("bounded") else None,
        scores=scores,
        **vars(_picked(item, scores, order)),
    )
    if method == "letter" and answer.get("unread"):  # every score is a bound: none is the answer
        return replace(found, status=UNPARSED, picks=(), correct=False, margin=None)
    if method == "letter":
        return replace(found, mass=round(math.fsum(math.exp(s) for s in scores), DIGITS))
    n_tokens = tuple(answer["n_tokens"][order.index(choice)] for choice in range(len(order)))
    means = [s / n for s, n in zip(scores, n_tokens, strict=True)]
    return replace(found, n_tokens=n_tokens, per_token=_picked(item, means, order))


def no_outcome(status: str, n_prompt: int | None = None) -> Outcome:
    """Of a question that the model did not answer."""
    return Outcome(status=status, n_prompt=n_prompt, scores=None, picks=None, correct=None, margin=None)


def _own_numbering(by_place: Sequence[float], order: Sequence[int]) -> tuple[float, ...]:
    return tuple(round(by_place[order.index(choice)], DIGITS) for choice in range(len(order)))


def _picked(item: Item, scores: Sequence[float], order: Sequence[int]) -> Picked:
    picks, margin = pick(scores, order, len(item.answers))
    return Picked(picks=tuple(picks), correct=is_right(picks, item.answers, item.choices), margin=margin)


def is_right(picks: Sequence[int], answers: Sequence[int], choices: Sequence[str]) -> bool:
    """Are these the right answers? By their text: data have the same choice twice, and one is as right as the other."""
    return sorted(choices[i] for i in picks) == sorted(choices[i] for i in answers)


def ratio(a: str, b: str) -> float:
    """difflib's ratio, which is not symmetric."""
    return SequenceMatcher(None, a, b).ratio()


def similarity(choice: str, response: str) -> float:
    """The papers' Gestalt similarity of a choice and a response."""
    return (ratio(choice, response) + ratio(response, choice)) / 2


MARKERS = ("### 応答：\n", "### Answer:", "### Response:")


def papers_line(prompt: str, response: str) -> str:
    """The one line of a response that japanese-lm-med-harness scores.

    It looks at prompt and response together. The first of the three markers that is anywhere in them begins the answer,
    which ends where that marker comes again; of that the first line counts, of a text without markers the prompt's.
    """
    whole = prompt + response
    for marker in MARKERS:
        if marker in whole:
            whole = whole.split(marker)[1]
            break
    return whole.strip().split("\n")[0].strip()


def papers_picks(choices: Sequence[str], right: str, line: str, order: Sequence[int]) -> Picked:
    """The choices that japanese-lm-med-harness takes from a line, and whether it counts them as right.

    The right answers are one text joined with commas, which is cut at every comma again: a right answer with a comma
    inside counts as several, and can't be met. As many choices are taken, the most similar first, of equal ones the one
    shown first; more than there are is an error there, and wrong. They are compared as sorted texts.
    """
    parts = right.split(",")
    if len(parts) > len(choices):
        return Picked(picks=(), correct=False, margin=None)
    picks, margin = pick([similarity(c, line) for c in choices], order, len(parts))
    correct = sorted(choices[i] for i in picks) == sorted(parts)
    return Picked(picks=tuple(picks), correct=correct, margin=margin)


def _generated(item: Item, order: Sequence[int], answer: dict[str, Any], papers: str | None) -> Outcome:
    """The papers' three scores: exact match, Gestalt score, and Gestalt accuracy as `correct`.

    The papers join several right answers with commas and remove "." from the response before anything is compared.
    For the exact match the Japanese full stop is removed too. What a model thought is no part of its answer; where it
    never ended its thought, there is none.
    """
    if "thought" in answer:
        said = Said(answer["thought"], answer["response"], answer.get("unclosed", False))
    else:
        said = split_thought(answer["response"])
    told: dict[str, Any] = {
        "n_prompt": answer["n_prompt"],
        "response": said.answer,
        "thought": said.thought,
        "n_thought": answer.get("n_thought"),
        "stop": answer["stop"],
    }
    if said.is_open:
        none = Picked(picks=(), correct=False, margin=None)
        return Outcome(status=UNPARSED, scores=(0.0,) * len(item.choices), **vars(none), **told,
                       exact=False, gestalt=0.0, parsed=False)  # fmt: skip
    counted = said.answer if papers is None else papers_line(papers, said.answer)
    clean = counted.replace(".", "").strip()
    right = ",".join(item.choices[i] for i in sorted(item.answers))
    scores = tuple(round(similarity(c, clean), DIGITS) for c in item.choices)
    if papers is None:
        picked, exact = _picked(item, scores, order), _bare(counted) == _bare(right)
    else:
        picked = papers_picks(item.choices, right, clean, order)
        exact = clean == right.replace(".", "").strip()
    named = max(scores) >= NAMED or any(c.replace(".", "") in clean for c in item.choices)
    return Outcome(
        status=SCORED if named else UNPARSED,
        scores=scores,
        **vars(picked),
        **told,
        exact=exact,
        gestalt=round(ratio(clean, right.replace(".", "").strip()), DIGITS),
        parsed=named,
    )


def _bare(text: str) -> str:
    return text.translate(str.maketrans("", "", ".。．")).strip()
