"""Exams: the Japanese medical licensing exams by number, when they were held, and what passed them.

A right answer earns 1 point; in the required blocks B and E the questions 26 to 50 (clinical ones) earn 3. One passes
with the points of both lines, and with at most `harmful` questions in which a contraindicated choice was taken. The
line of the required questions is 80 % of their points, that of the others differs by year. What was taken out of the
scoring earns nothing, so a section's total may be below 200 or 300. The lines are those that the ministry announced
with the results; sources in docs/tasks.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .items import Marks

REQUIRED, GENERAL = "required", "general"
REQUIRED_BLOCKS = "BE"


@dataclass(frozen=True)
class Line:
    """The points that a section's pass takes, of all it has."""

    points: int
    of: int


@dataclass(frozen=True)
class Exam:
    """One exam. `reference` names the exam whose general line stands here, where its own was not known yet."""

    date: str  # its first day
    lines: Mapping[str, Line]
    harmful: int = 3
    reference: str | None = None


def _exam(date: str, required: tuple[int, int], general: tuple[int, int], reference: str | None = None) -> Exam:
    return Exam(date, {REQUIRED: Line(*required), GENERAL: Line(*general)}, reference=reference)


EXAMS: Mapping[str, Exam] = {
    "112": _exam("2018-02-10", (160, 200), (208, 299)),
    "113": _exam("2019-02-09", (160, 200), (209, 296)),
    "114": _exam("2020-02-08", (158, 197), (217, 299)),
    "115": _exam("2021-02-06", (160, 200), (209, 300)),
    "116": _exam("2022-02-05", (158, 197), (214, 297)),
    "119": _exam("2025-02-08", (160, 200), (221, 300)),
    "120": _exam("2026-02-07", (160, 200), (221, 300), reference="119"),
}


def section_of(block: str) -> str:
    """The section that a block (A to F) is of."""
    return REQUIRED if block in REQUIRED_BLOCKS else GENERAL


def marks(exam: str, block: str, number: int) -> Marks:
    """What question `number` of a block earns by the exam's rule."""
    section = section_of(block)
    return Marks(exam, section, 3 if section == REQUIRED and number > 25 else 1)
