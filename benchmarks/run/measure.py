"""What each model costs, and how far it is from a reference: measured round by round into the run folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jmedlite.base.errors import DataError
from jmedlite.base.progress import Notice, Progress
from jmedlite.benchmarks.backends.base import Loading, Wanted
from jmedlite.benchmarks.records import DistanceRecord, MeasureRecord

from .costs import N_QUESTIONS, measure
from .distance import Text, measure_distance
from .folder import DISTANCE, MEASURES, RunFolder
from .run import sample_evenly

ModelFiles = Sequence[tuple[str, Path]]  # models by name


def measure_costs(
    folder: RunFolder, models: ModelFiles, loading: Loading, whole: Wanted, rounds: int, progress: Progress
) -> None:
    """What each model costs, on some of the prompts: every model once, then every model again."""
    there = {(m.model, m.round) for m in folder.records(MEASURES, MeasureRecord)}
    few = tuple(whole.prompts[i] for i in sample_evenly(len(whole.prompts), N_QUESTIONS))
    total = rounds * len(models)
    for round_ in range(rounds):
        for i, (name, path) in enumerate(models):
            progress("measuring", round_ * len(models) + i, total, name)
            if (name, round_) not in there:
                folder.append(MEASURES, measure(name, round_, path, loading, replace(whole, prompts=few)))
    if total:
        progress("measuring", total, total, "")


@dataclass(frozen=True)
class DistanceSettings:
    """Texts that every model reads: in chunks of `n_ctx` tokens, at most `chunks` of each, against `reference`."""

    texts: Sequence[Text]
    reference: str
    n_ctx: int = 512
    chunks: int | None = None


def measure_text(
    folder: RunFolder, models: ModelFiles, loading: Loading, asked: DistanceSettings, progress: Progress, notice: Notice
) -> None:
    """Every model's distance to the reference on each text; goes on behind what is there."""
    there = folder.records(DISTANCE, DistanceRecord)
    done = {text.name: [old for old in there if _is_of(old, text)] for text in asked.texts}
    for text in asked.texts:
        for old in done[text.name]:
            same = (old.text_sha256, old.n_ctx) == (text.sha256, asked.n_ctx)
            if not same or old.reference not in (None, asked.reference):
                raise DataError(
                    f"{folder.folder / DISTANCE}: holds distances on another text {text.name}, --text-ctx or "
                    "--reference; repeat those, give the text another name, or choose another --out"
                )
    for text in asked.texts:
        for line in measure_distance(
            models,
            asked.reference,
            text,
            loading,
            scratch=folder.folder,
            n_ctx=asked.n_ctx,
            chunks=asked.chunks,
            done={old.model for old in done[text.name]},
            n_done=done[text.name][0].n_chunks if done[text.name] else None,
            progress=progress,
            notice=notice,
        ):
            folder.append(DISTANCE, line)


def _is_of(old: DistanceRecord, text: Text) -> bool:
    """Whether a line is of a text of this name; runs before texts had names tell them apart by what they say."""
    return old.text == text.name if old.text is not None else old.text_sha256 == text.sha256
