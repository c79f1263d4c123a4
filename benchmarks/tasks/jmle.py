"""JMLE: the 119th and 120th Japanese medical licensing exams, as github.com/naoto-iwase publishes them.

JMLE2026-Bench (IgakuQA120) is one file of objects in which the lettered choices stand inside the question's text.
IgakuQA119 is a file of questions for each block and one CSV of answers. Both earn points by the exam's rule (exams.py).
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import replace

from jmedlite.base.errors import DataError

from .checking import NO_CHOICES, BadRow, check_choices, letter, name, need, text, texts
from .exams import marks
from .formats import Parse
from .items import LETTERS, Item, Left, Marks
from .rows import Row

ANSWERS = "results/correct_answers.csv"
EITHER = frozenset({"119E28"})  # the ministry counts a and c, either of them; the CSV writes "ac"
CUT = "lost some of its text when its authors read the paper"
_LETTERED = re.compile(r"(?m)^[ \t　]*([a-z])[ \t　]+(?=\S)")
_ID_120 = re.compile(r"(\d{3})([A-F])-(\d+)")
_ID_119 = re.compile(r"(\d{3})([A-F])(\d+)")


def parse_120(row: Row) -> Item | Left:
    """JMLE2026-Bench: `question_text` with its choices, `answer` (letters), `serial_group.context_text` (the case)."""
    key, earned = _place(row, "question_id", _ID_120)
    image = need(row, "requires_image")
    if not isinstance(image, bool):
        raise BadRow("requires_image is not true or false")
    kind = need(row, "question_type")
    if kind not in ("multiple_choice", "calculation"):
        raise BadRow(f"question_type is {kind!r}, expected multiple_choice or calculation")
    if kind == "calculation":
        return Left(key, "needs an image" if image else NO_CHOICES, marks=earned)
    item = _item_120(row, key, earned)
    if isinstance(item, Left):
        return replace(item, reason="needs an image") if image else item
    return Left(key, "needs an image", item, earned) if image else item


def _item_120(row: Row, key: str, earned: Marks) -> Item | Left:
    whole = text(need(row, "question_text"), "question_text")
    found = list(_LETTERED.finditer(whole))
    if not found and re.search(r"(?m)^\s*\|\s*a\s*\|", whole):
        return Left(key, "has its choices in a table", marks=earned)
    if "".join(m[1] for m in found) != LETTERS[: len(found)].lower() or len(found) < 2:
        raise BadRow("question_text has no lines of choices a, b, c, … in their order")
    ends = [*(m.start() for m in found[1:]), len(whole)]
    choices = texts([whole[m.end() : end] for m, end in zip(found, ends, strict=True)], "the choices of question_text")
    check_choices(choices)
    stem = re.sub(rf"^{row.fields.get('number')}[ \t　]+", "", whole[: found[0].start()])  # its number on the paper
    answers = need(row, "answer")
    if not isinstance(answers, list) or not answers or len(answers) != need(row, "num_choices_to_select"):
        raise BadRow("answer is not a list of num_choices_to_select letters")
    return Item(
        id=key,
        question="\n".join([*_case(row), text(stem, "the question before its choices")]),
        choices=choices,
        answers=_answers(answers, len(choices)),
        lang="ja",
        groups={"section": earned.section},
        marks=earned,
    )


def _case(row: Row) -> list[str]:
    """The case that several questions in a row are about, which the exam prints once."""
    group = row.fields.get("serial_group")
    if group is None:
        return []
    if not isinstance(group, dict):
        raise BadRow("serial_group is not an object")
    return [text(group.get("context_text"), "serial_group.context_text")]


def _answers(letters: list[str], n: int) -> tuple[int, ...]:
    found = tuple(sorted(letter(a, n) for a in letters))
    if len(set(found)) != len(found):
        raise BadRow("answer names a choice twice")
    return found


def _place(row: Row, field: str, pattern: re.Pattern[str]) -> tuple[str, Marks]:
    key = name(need(row, field), field)
    found = pattern.fullmatch(key)
    if not found:
        raise BadRow(f"{field} {key!r} does not name exam, block and number")
    return key, marks(found[1], found[2], int(found[3]))


def parse_119(answers: Mapping[str, str]) -> Parse:
    """IgakuQA119: `number` ("119A1"), `question`, `choices` ("a. …"), `has_image`, and the letters by number."""

    def parse(row: Row) -> Item | Left:
        key, earned = _place(row, "number", _ID_119)
        image = need(row, "has_image")
        if not isinstance(image, bool):
            raise BadRow("has_image is not true or false")
        if key not in answers:
            raise BadRow(f"has no answer in {ANSWERS}")
        if image:
            return Left(key, "needs an image", marks=earned)
        listed = need(row, "choices")
        if listed == []:
            return Left(key, NO_CHOICES, marks=earned)
        if key in EITHER:
            return Left(key, "counts either of two answers as right", marks=earned)
        lettered = [re.fullmatch(r"(?s)([a-z])\.\s*(.+)", choice) for choice in texts(listed, "choices")]
        complete = "".join(m[1] if m else "?" for m in lettered) == LETTERS[:5].lower()
        if not complete or not str(need(row, "question")).strip():
            return Left(key, CUT, marks=earned)
        choices = texts([m[2] for m in lettered if m], "choices")
        return Item(
            id=key,
            question=text(need(row, "question"), "question"),
            choices=choices,
            answers=_answers(list(answers[key]), len(choices)),
            lang="ja",
            groups={"section": earned.section},
            marks=earned,
        )

    return parse


def read_answers(raw: bytes, label: str) -> dict[str, str]:
    """The letters of right answers ("ce") by number; raises DataError for another file."""
    try:
        rows = list(csv.reader(io.StringIO(raw.decode("utf-8-sig"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as e:
        raise DataError(f"{label}: is not a CSV in UTF-8 ({e}); clone IgakuQA119 again") from None
    if not rows or rows[0] != ["問題番号", "解答"] or any(len(cells) != 2 for cells in rows):
        raise DataError(f"{label}: expected the two columns 問題番号 and 解答; clone IgakuQA119 again")
    found: dict[str, str] = {}
    for key, letters in rows[1:]:
        if key in found:
            raise DataError(f"{label}: has {key} twice; clone IgakuQA119 again")
        found[key] = letters.strip()
    return found
