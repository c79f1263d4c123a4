"""Every item of the report: those that some level answered otherwise than its reference, and those that none did."""

from __future__ import annotations

from collections.abc import Mapping

from jmedlite.benchmarks.records import AnswerRecord
from jmedlite.benchmarks.views import View

from .compare import flip_of, softmax
from .groups import sides_of
from .pool import Entrant, Pool, Unit
from .sections import KINDS, Asked, Changed, Flipped, Given, ItemOutcome, Unchanged

MOST_UNCHANGED = 2000  # of a view; those that flipped are all there


def items(laid: Pool, view: View, references: Mapping[str, str]) -> tuple[list[Flipped], list[Unchanged]]:
    """Items that flipped, the worst first, and those that did not, in the order of the data set."""
    flipped: list[Flipped] = []
    same: list[Unchanged] = []
    sides = sides_of(
        dict.fromkeys(item for sheet in laid.sheets[view.method].values() for item, _ in sheet), laid.facts
    )
    for family in laid.families:
        reference = references.get(family)
        if reference is None:
            continue
        members = {e.key: e for e in laid.entrants if e.family == family or e.key == reference}
        sheets = {key: laid.sheets[view.method].get(key, {}) for key in members}
        noise = {key: _noise(laid, view, e) for key, e in members.items()}
        for unit, before in sheets[reference].items():
            answers = {key: sheet[unit] for key, sheet in sheets.items() if unit in sheet}
            outcomes = {key: _outcome(view, a, before, noise[key].get(a.task)) for key, a in answers.items()}
            groups = {side: of[unit[0]] for side, of in sides.items() if unit[0] in of}
            asked = _asked(laid, view, unit, groups, family, reference, before, outcomes)
            changed: list[Changed] = [
                {**_given(view, answers[key], key), "kind": kind} for key, o in outcomes.items() if (kind := o["kind"])
            ]
            if changed:
                worst = min((c["kind"] for c in changed), key=KINDS.index)
                flipped.append({**asked, "kind": worst, "changed": changed})
            else:
                same.append({**asked})
    return sorted(flipped, key=_severity), same  # stable: within a kind, the order of the data set


def _noise(laid: Pool, view: View, entrant: Entrant) -> dict[str, float]:
    """By task, by how much batching alone moves scores (nats)."""
    return {task: n.max for task, n in laid.noise(entrant, view.method).items() if n.max is not None}


def _outcome(view: View, answer: AnswerRecord, before: AnswerRecord, noise: float | None) -> ItemOutcome:
    margin = view.margin(answer)
    return {
        "correct": view.correct(answer),
        "kind": flip_of(view, answer, before) if answer is not before else None,
        "within_noise": margin < noise if margin is not None and noise is not None else None,
    }


def _asked(
    laid: Pool,
    view: View,
    unit: Unit,
    groups: dict[str, str],
    family: str,
    reference: str,
    before: AnswerRecord,
    outcomes: dict[str, ItemOutcome],
) -> Asked:
    q = laid.facts[unit[0]].question
    return {
        "family": family, "task": q.task, "id": q.id, "question": q.question, "choices": list(q.choices),
        "answers": list(q.answers), "lang": q.lang, "group": q.group, "groups": groups,
        "contraindicated": list(q.contraindicated), "human_accuracy": q.human_accuracy, "context": q.context,
        "permutation": unit[1], "reference": reference, "before": _given(view, before, reference), "outcomes": outcomes,
    }  # fmt: skip


def _severity(flip: Flipped) -> tuple[int, int]:
    bad = set(flip["contraindicated"])
    harms = any(bad & set(c["picks"]) for c in flip["changed"]) and not bad & set(flip["before"]["picks"])
    return KINDS.index(flip["kind"]), -int(harms)


def _given(view: View, answer: AnswerRecord, model: str) -> Given:
    """One answer. Probabilities are relative to the item's choices; similarities for `generate`."""
    scores = view.scores(answer)
    if scores and answer.method != "generate":
        scores = tuple(softmax(scores))
    return {
        "picks": list(view.picks(answer)),
        "correct": view.correct(answer),
        "probabilities": None if scores is None else [round(s, 6) for s in scores],
        "margin": view.margin(answer),
        "response": answer.response,
        "model": model,
    }
