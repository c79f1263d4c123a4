"""What each model costs, and how far it is from a reference: measured round by round into the run folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jmedlite.base.errors import DataError
from jmedlite.base.inputs import reading
from jmedlite.base.outputs import sha256_file
from jmedlite.benchmarks.backends.base import Loading, Wanted

from .costs import N_QUESTIONS, measure
from .distance import measure_distance
from .folder import DISTANCE, MEASURES, RunFolder
from .run import sample_evenly

Progress = Callable[[str, int, int, str], None]  # "measuring" or "text", done, in all, model; "notice" and a sentence
Files = Sequence[tuple[str, Path]]  # models by name


def measure_costs(
    folder: RunFolder, models: Files, loading: Loading, whole: Wanted, rounds: int, tell: Progress
) -> None:
    """What each model costs, on some of the prompts: every model once, then every model again."""
    there = {(line["model"], line["round"]) for line in folder.lines(MEASURES)}
    few = tuple(whole.prompts[i] for i in sample_evenly(len(whole.prompts), N_QUESTIONS))
    total = rounds * len(models)
    for round_ in range(rounds):
        for i, (name, path) in enumerate(models):
            tell("measuring", round_ * len(models) + i, total, name)
            if (name, round_) not in there:
                costs = measure(path, loading, replace(whole, prompts=few))
                folder.append(MEASURES, {"model": name, "round": round_, **costs})
    if total:
        tell("measuring", total, total, "")


@dataclass(frozen=True)
class Reading:
    """A text that every model reads: in chunks of `n_ctx` tokens, at most `chunks` of them, against `reference`."""

    text: Path
    reference: str
    n_ctx: int = 512
    chunks: int | None = None


def measure_text(folder: RunFolder, models: Files, loading: Loading, asked: Reading, tell: Progress) -> None:
    """Every model's distance to the reference on a text; goes on behind what is there."""
    there = list(folder.lines(DISTANCE))
    with reading(asked.text):
        same = {"text_sha256": sha256_file(asked.text), "n_ctx": asked.n_ctx}
    for line in there:
        if {k: line[k] for k in same} != same or line["reference"] not in (None, asked.reference):
            raise DataError(
                f"{folder.folder / DISTANCE}: holds distances on another text, --text-ctx or --reference; repeat "
                "those, or choose another --out"
            )
    for line in measure_distance(
        models,
        asked.reference,
        asked.text,
        loading,
        scratch=folder.folder,
        n_ctx=asked.n_ctx,
        chunks=asked.chunks,
        done={line["model"] for line in there},
        progress=lambda name, done, total: tell("text", done, total, name),
        notice=lambda sentence: tell("notice", 0, 0, sentence),
    ):
        folder.append(DISTANCE, line)
