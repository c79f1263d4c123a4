"""Every item that some level answered otherwise than its reference: the question, and both answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from .compare import Json, flip_of, softmax
from .pool import Pool, Unit, View

KINDS = ("right_to_wrong", "wrong_to_right", "wrong_to_wrong")


def flipped_items(laid: Pool, view: View, references: Mapping[str, str]) -> list[Json]:
    """Every item that some level answered otherwise than its reference, the worst first."""
    found = []
    for family in laid.families:
        reference = references.get(family)
        if reference is None:
            continue
        sheets = {e.key: laid.sheets[view.method].get(e.key, {}) for e in laid.family(family) if e.key != reference}
        base = laid.sheets[view.method].get(reference, {})
        for unit, before in base.items():
            changed = [
                {**_told(sheet[unit]), "model": key, "kind": kind}
                for key, sheet in sheets.items()
                if unit in sheet and (kind := flip_of(view, sheet[unit], before))
            ]
            if changed:
                kind = min((c["kind"] for c in changed), key=KINDS.index)
                before_ = {**_told(before), "model": reference}
                found.append({"family": family, "kind": kind, **_item(laid, unit), "reference": reference,
                              "before": before_, "changed": changed})  # fmt: skip
    return sorted(found, key=_severity)  # stable: within a kind, the order of the data set


def _severity(flip: Json) -> tuple[int, int]:
    bad = set(flip["contraindicated"])
    harms = any(bad & set(c["picks"]) for c in flip["changed"]) and not bad & set(flip["before"]["picks"])
    return KINDS.index(flip["kind"]), -int(harms)


def _item(laid: Pool, unit: Unit) -> Json:
    q = laid.facts[unit[0]].question
    return {**{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(q).items() if k != "excluded"},
            "permutation": unit[1]}  # fmt: skip


def _told(answer: Any) -> Json:
    """One answer. Probabilities are relative to the item's choices; similarities for `generate`."""
    scores = answer.scores
    if scores is not None and answer.method != "generate":
        scores = softmax(scores)
    return {
        "picks": list(answer.picks or ()),
        "correct": answer.correct,
        "probabilities": None if scores is None else [round(s, 6) for s in scores],
        "margin": answer.margin,
        "response": answer.response,
    }
