"""Every item that some level answered otherwise than its reference: the question, and both answers."""

from __future__ import annotations

from collections.abc import Mapping

from jmedlite.benchmarks.records import AnswerRecord
from jmedlite.benchmarks.views import View

from .compare import flip_of, softmax
from .pool import Pool
from .sections import KINDS, Changed, Flipped, Given


def flipped_items(laid: Pool, view: View, references: Mapping[str, str]) -> list[Flipped]:
    """Every item that some level answered otherwise than its reference, the worst first."""
    found: list[Flipped] = []
    for family in laid.families:
        reference = references.get(family)
        if reference is None:
            continue
        sheets = {e.key: laid.sheets[view.method].get(e.key, {}) for e in laid.family(family) if e.key != reference}
        base = laid.sheets[view.method].get(reference, {})
        for unit, before in base.items():
            changed: list[Changed] = [
                {**_given(sheet[unit], key), "kind": kind}
                for key, sheet in sheets.items()
                if unit in sheet and (kind := flip_of(view, sheet[unit], before))
            ]
            if changed:
                q = laid.facts[unit[0]].question
                worst = min((c["kind"] for c in changed), key=KINDS.index)
                found.append({
                    "family": family, "kind": worst, "task": q.task, "id": q.id, "question": q.question,
                    "choices": list(q.choices), "answers": list(q.answers), "lang": q.lang, "group": q.group,
                    "contraindicated": list(q.contraindicated), "human_accuracy": q.human_accuracy,
                    "context": q.context, "permutation": unit[1], "reference": reference,
                    "before": _given(before, reference), "changed": changed,
                })  # fmt: skip
    return sorted(found, key=_severity)  # stable: within a kind, the order of the data set


def _severity(flip: Flipped) -> tuple[int, int]:
    bad = set(flip["contraindicated"])
    harms = any(bad & set(c["picks"]) for c in flip["changed"]) and not bad & set(flip["before"]["picks"])
    return KINDS.index(flip["kind"]), -int(harms)


def _given(answer: AnswerRecord, model: str) -> Given:
    """One answer. Probabilities are relative to the item's choices; similarities for `generate`."""
    scores = answer.scores and (answer.scores if answer.method == "generate" else softmax(answer.scores))
    return {
        "picks": list(answer.picks or ()),
        "correct": answer.correct,
        "probabilities": None if scores is None else [round(s, 6) for s in scores],
        "margin": answer.margin,
        "response": answer.response,
        "model": model,
    }
