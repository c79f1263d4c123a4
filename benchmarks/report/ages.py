"""Ages: whether a model may have been trained on the questions, from its date and theirs.

A model's date is what its own metadata say. Where they say none, its architecture tells the least: no model is older
than the first that had its architecture.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from jmedlite.benchmarks.records import ModelRecord

from .labels import say
from .pool import Pool
from .sections import AgeSource, Bilingual

# when the first model of an architecture came out (GGUF's names)
FIRST = {
    "gemma2": "2024-06", "gemma3": "2025-03", "gptneox": "2022-02", "llama": "2023-02",
    "phi3": "2024-04", "qwen2": "2024-02", "qwen3": "2025-04",
}  # fmt: skip


@dataclass(frozen=True)
class Age:
    """A model is of this date, or, from its architecture alone, not older."""

    date: str
    source: AgeSource

    def newer_than(self, date: str) -> bool | None:
        """Came the questions out before the model, or in the same month or year? None where that can't be told."""
        digits = min(len(self.date), len(date))
        if self.date[:digits] >= date[:digits]:
            return True
        return False if self.source == "metadata" else None


def age_of(model: ModelRecord) -> Age | None:
    """None where nothing is known, as of a model behind a server."""
    if model.date:
        return Age(model.date, "metadata")
    first = FIRST.get(model.architecture or "")
    return Age(first, "architecture") if first else None


def contaminated(laid: Pool) -> Iterable[Bilingual]:
    """Sentences: which models may have been trained on which tasks' questions, by what their metadata say."""
    for source in ("metadata", "architecture"):
        by_tasks: dict[tuple[str, str, str | None], list[str]] = {}
        for entrant in laid.entrants:
            age = age_of(entrant.model)
            tasks = {t.name: t.date for i in entrant.runs for t in laid.runs[i].tasks if t.date}
            newer = [f"{name} ({date})" for name, date in tasks.items() if age and age.newer_than(date)]
            if age and age.source == source and newer:
                key = ", ".join(newer), age.date, entrant.model.architecture
                by_tasks.setdefault(key, []).append(entrant.key)
        for (named, date, architecture), models in by_tasks.items():
            yield say(f"w_newer_{source}", tasks=named, date=date, models=", ".join(models), architecture=architecture)
