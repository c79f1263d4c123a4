"""Calibration text: what a person gives, or what comes with jmedlite, free of benchmarks' items."""

from __future__ import annotations

from itertools import chain, zip_longest
from pathlib import Path

from jmedlite.base.errors import UsageError
from jmedlite.base.inputs import read_document

from .overlap import check_no_overlap, read_task, shipped

LANGUAGES = {"ja": ("ja",), "en": ("en",), "both": ("ja", "en")}


def shipped_text(language: str) -> str:
    """The calibration text that comes with jmedlite, "ja" or "en": sections with an empty line between them."""
    from importlib.resources import files

    return (files("jmedlite.calibration") / f"{language}.txt").read_text(encoding="utf-8")


def calibration_text(paths: list[Path], language: str, exclude: list[Path]) -> tuple[list[str], str]:
    """Names of the data sets, and one text, in which no benchmark's items were found: the shipped one without `paths`.

    Raises UsageError for another language, DataError with the line for an item of a benchmark, and what reading raises.
    """
    tasks = [("IgakuQA", shipped()), *((p.name, read_task(p)) for p in exclude)]
    if language not in LANGUAGES:
        raise UsageError(f"--lang {language}: expected {', '.join(LANGUAGES)}")
    if paths:
        names, parts = [p.name for p in paths], [read_document(p) for p in paths]
    else:
        names = [f"jmedlite calibration {x}" for x in LANGUAGES[language]]
        parts = [shipped_text(x) for x in LANGUAGES[language]]
    for name, part in zip(names, parts, strict=True):
        check_no_overlap(name, part, tasks)
    # llama-imatrix leaves out one newline at the end
    parts = [p.removesuffix("\n") for p in parts]
    if paths:
        return names, "\n".join(parts)
    # section by section, so that a part of the chunks has both languages
    sections = zip_longest(*(p.split("\n\n") for p in parts), fillvalue="")
    return names, "\n\n".join(s for s in chain.from_iterable(sections) if s)
