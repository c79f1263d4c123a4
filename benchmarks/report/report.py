"""Run folders to a report: the document, and the files that it is written as."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jmedlite.base.errors import UsageError
from jmedlite.base.inputs import watching
from jmedlite.base.publishing import check_target, write_texts

from .document import Options, summarise
from .exports import model_card, to_csv, to_markdown
from .page import render
from .paper import paper_files
from .read import read_run
from .sections import Document
from .verdict import reasons

FORMAT, VERSION = "jmedlite.recommendation", 2


@dataclass(frozen=True)
class Report:
    """All numbers (`document`, docs/report.md), and the forms that they can take."""

    document: Document

    def reasons(self, lang: str = "en") -> list[str]:
        """The sentence of each verdict."""
        return reasons(self.document, lang)

    def html(self, lang: str = "en") -> str:
        """One page that needs nothing else."""
        return render(self.document, lang)

    def markdown(self, lang: str = "en") -> str:
        """The verdict and the tables."""
        return to_markdown(self.document, lang)

    def csv(self) -> str:
        """A row for every model and way of counting."""
        return to_csv(self.document)

    def json(self) -> str:
        """The document."""
        return json.dumps(self.document, ensure_ascii=False, indent=1, allow_nan=False) + "\n"

    def model_card(self) -> str:
        """A README for a repository with the GGUF files; raises UsageError where there are several models."""
        return model_card(self.document)

    def write_figures(self, folder: Path, lang: str = "en") -> list[Path]:
        """Every figure as .svg, .pdf and .png, and the tables as .tex, into a folder: all of them or none."""
        paths = {folder / name: blob for name, blob in paper_files(self.document, lang).items()}
        for path in paths:
            check_target(path, overwrite=True)
        write_texts(paths)
        return list(paths)

    def write(self, html: Path, lang: str = "en") -> list[Path]:
        """`html`, and beside it the same as .json, .md and .csv; earlier reports are replaced, all four or none."""
        texts = {".json": self.json(), ".md": self.markdown(lang), ".csv": self.csv(), ".html": self.html(lang)}
        paths = {html if suffix == ".html" else html.with_suffix(suffix): text for suffix, text in texts.items()}
        for path in paths:
            check_target(path, overwrite=True)
        write_texts(paths)
        return [html, *(path for path in paths if path != html)]


def report(
    folders: Sequence[Path | str],
    *,
    reference: str | None = None,
    margin: float = 2.0,
    ram_bytes: int | None = None,
    vram_bytes: int | None = None,
    max_latency: float | None = None,
) -> Report:
    """Read run folders and compute all there is to say. `margin` in points, `max_latency` in seconds a question.

    Raises UsageError, InputMissing or DataError.
    """
    if not folders:
        raise UsageError("no run folder was given; expected one that `jmedlite bench --out` wrote")
    if len({Path(f).resolve() for f in folders}) < len(folders):
        raise UsageError("a run folder was given twice")
    if not 0 < margin < 100:
        raise UsageError(f"--margin {margin:g}: expected more than 0 and less than 100 points")
    if max_latency is not None and not 0 < max_latency < float("inf"):
        raise UsageError(f"--max-latency {max_latency:g}: expected seconds, more than 0")
    with watching() as inputs:
        runs = [read_run(Path(folder)) for folder in folders]
        inputs.check()
    return Report(summarise(runs, Options(reference, margin, ram_bytes, vram_bytes, max_latency)))


def recommendation(found: Report) -> dict[str, Any]:
    """The report's answer alone: one entry for each model with its levels."""
    document = found.document
    keys: Final = ("family", "kind", "partial", "key", "level", "file", "sha256", "reference", "view", "runner_up",
                   "reason", "candidates")  # fmt: skip
    return {
        "format": FORMAT,
        "version": VERSION,
        "options": document["options"],
        "primary": document["primary"],
        "recommendations": [{key: verdict[key] for key in keys} for verdict in document["verdicts"]],
        "warnings": document["warnings"],
        "notice": document["notice"],
    }
