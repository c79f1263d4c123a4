"""The papers' table: a run that was asked by a preset, beside what its paper's authors published (docs/bench.md)."""

from __future__ import annotations

from collections.abc import Sequence

from jmedlite.benchmarks.prompts.presets import N_PUBLISHED, PRESETS
from jmedlite.benchmarks.statistics import wilson

from .pool import Pool
from .sections import PaperCell, PaperRow, Papers, Part, View


def papers(laid: Pool, views: Sequence[View]) -> list[Papers]:
    """A table for each preset that a run was asked by; Gestalt accuracies, with 95 % intervals."""
    view = next((v for v in views if v["key"] == "generate"), None)
    found: list[Papers] = []
    for name, preset in PRESETS.items():
        runs = {i for i, run in enumerate(laid.runs) if run.settings.get("preset") == name}
        if not runs or view is None:
            continue
        tasks = list(dict.fromkeys(t.name for i in sorted(runs) for t in laid.runs[i].tasks))
        keys = {e.key for e in laid.entrants if set(e.runs) & runs}
        own: list[PaperRow] = [
            {"model": r["model"], "published": None, "note": "", "cells": _cells(r["breakdowns"]["task"], tasks)}
            for r in view["results"]
            if r["model"] in keys and r["n"]
        ]
        theirs: list[PaperRow] = [
            {
                "model": None,
                "published": p.model,
                "note": p.note,
                "cells": [_published(p.accuracies[task], task) if task in p.accuracies else None for task in tasks],
            }
            for p in preset.published
            if set(p.accuracies) & set(tasks)
        ]
        found.append({"preset": name, "paper": preset.paper, "source": preset.source, "tasks": tasks,
                      "rows": [*own, *theirs]})  # fmt: skip
    return found


def _cells(parts: Sequence[Part], tasks: Sequence[str]) -> list[PaperCell | None]:
    """A result's shares by task, None where it has none."""
    of = {part["name"]: part for part in parts}
    return [
        {"share": part["share"], "n": part["n"], "interval": part["interval"]}
        if (part := of.get(task)) and part["share"] is not None
        else None
        for task in tasks
    ]


def _published(percent: float, task: str) -> PaperCell:
    """A published share; its interval is of about as many questions as the authors' program asks."""
    n = N_PUBLISHED[task]
    return {"share": percent / 100, "n": n, "interval": list(wilson(percent / 100 * n, n))}
