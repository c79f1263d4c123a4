"""IgakuQA: the Japanese medical licensing exams from a clone of github.com/jungokasai/IgakuQA.

`data/<year>/<exam>-<A…F>.jsonl` has the questions, `…_translate.jsonl` their English, `…_metadata.jsonl` category,
contraindicated choices (`kinki`) and the share of examinees who were right. All are joined by `problem_id`, which names
exam, block and number ("112A1"). `points` are the official ones, "0" for what was taken out of the scoring.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jmedlite.base.errors import InputMissing
from jmedlite.base.inputs import reading
from jmedlite.base.looking import is_file
from jmedlite.base.outputs import sha256_file

from .checking import NO_CHOICES, BadRow, check_choices, collect, letter, name, need, number, skipped, text, texts
from .exams import EXAMS, section_of
from .items import LETTERS, Dataset, Item, Left, Marks
from .rows import Row, read_rows

CLONE = "git clone https://github.com/jungokasai/IgakuQA, then --task igakuqa=IgakuQA"
_EXAM = re.compile(r"\d+-[A-F]\.jsonl")
_ID = re.compile(r"(\d{3})([A-F])\d+")


@dataclass(frozen=True)
class _Exam:
    """One exam's files; `label` is "2018/112-A"."""

    path: Path
    label: str

    def part(self, kind: str) -> Path:
        return self.path.with_name(f"{self.path.stem}_{kind}.jsonl")


def load_igakuqa(path: Path, languages: Sequence[str], skip_bad: bool) -> list[Dataset]:
    """The Japanese and the English items; raises InputMissing where there is no exam, DataError for bad rows."""
    exams = _find(path)
    wanted = [lang for lang in ("ja", "en") if not languages or lang in languages]
    if "en" in wanted and not any(is_file(exam.part("translate")) for exam in exams):
        if languages:
            raise InputMissing(f"{path}: has no *_translate.jsonl, which hold the English questions; {CLONE}")
        wanted.remove("en")
    return [_dataset(exams, lang, skip_bad) for lang in wanted]


def _find(path: Path) -> list[_Exam]:
    with reading(path):
        path.stat()
    if is_file(path):
        files = [path] if _EXAM.fullmatch(path.name) else []
    else:
        files = sorted(f for f in path.rglob("*-?.jsonl") if _EXAM.fullmatch(f.name) and is_file(f))
    if not files:
        raise InputMissing(
            f"{path}: has no <year>/<exam>-A.jsonl; expected a clone of IgakuQA or its data folder; {CLONE}"
        )
    return [_Exam(f, f"{f.resolve().parent.name}/{f.stem}") for f in files]


def _dataset(exams: Sequence[_Exam], lang: str, skip_bad: bool) -> Dataset:
    files: list[dict[str, Any]] = []
    rows: list[Row] = []
    details: dict[str, dict[str, Any]] = {}
    english: dict[str, dict[str, Any]] = {}
    for exam in exams:
        own = list(read_rows(exam.path, f"{exam.label}.jsonl"))
        rows += own
        paths = [(exam.path, f"{exam.label}.jsonl")]
        known = {row.fields.get("problem_id") for row in own}
        for kind, into in (("metadata", details), ("translate", english)):
            part, label = exam.part(kind), f"{exam.label}_{kind}.jsonl"
            if not is_file(part) or (kind == "translate" and lang == "ja"):
                continue
            paths.append((part, label))
            _by_id(read_rows(part, label), into, known, skip_bad)
        for file, label in paths:
            files.append({"name": label, "sha256": sha256_file(file)})

    def parse(row: Row) -> Item | Left:
        return _parse(row, lang, details, english)

    items, left = collect(rows, parse, skip_bad)
    return Dataset(
        name=f"igakuqa-{lang}",
        task="igakuqa",
        lang=lang,
        title=f"IgakuQA ({'Japanese' if lang == 'ja' else 'English translation'})",
        items=tuple(items),
        left=tuple(left),
        source="https://github.com/jungokasai/IgakuQA",
        date=max((EXAMS[n].date for n in {exam.path.stem[:3] for exam in exams} & EXAMS.keys()), default=None),
        files=tuple(files),
    )


def _by_id(rows: Iterator[Row], into: dict[str, dict[str, Any]], known: set[Any], skip_bad: bool) -> None:
    """Adds rows by `problem_id`. A bad one is raised, or passed over: its question is there and says what it lacks."""
    for row in rows:
        try:
            if row.fault:
                raise BadRow(row.fault)
            key = text(need(row, "problem_id"), "problem_id")
            if key in into:
                raise BadRow(f"has problem_id {key} a second time")
            if key not in known:
                raise BadRow(f"has problem_id {key}, which is no question of this exam")
            into[key] = row.fields
        except BadRow as e:
            skipped(row, e, skip_bad)


def _parse(row: Row, lang: str, details: dict[str, dict[str, Any]], english: dict[str, dict[str, Any]]) -> Item | Left:
    key = name(need(row, "problem_id"), "problem_id")
    text_only = need(row, "text_only")
    if not isinstance(text_only, bool):
        raise BadRow("text_only is not true or false")
    if not text_only:
        # the drawing often holds the choices too, so what is in the file need not make an item
        try:
            item = _item(row, key, lang, details, english)
        except BadRow:
            item = None
        found: Item | Left = Left(key, "needs an image", item if isinstance(item, Item) else None)
    else:
        found = _item(row, key, lang, details, english)
    return found if isinstance(found, Item) else replace(found, marks=_marks(row, key))


def _marks(row: Row, key: str) -> Marks | None:
    """The points of a question, None where the row has none or is of no exam that is known."""
    points, place = number(str(row.fields.get("points"))), _ID.fullmatch(key)
    if points is None or points < 0 or not points.is_integer() or not place:
        return None
    return Marks(place[1], section_of(place[2]), int(points))


def _item(
    row: Row, key: str, lang: str, details: dict[str, dict[str, Any]], english: dict[str, dict[str, Any]]
) -> Item | Left:
    choices = need(row, "choices")
    if choices == []:
        return Left(key, NO_CHOICES)
    question = need(row, "problem_text")
    if lang == "en":
        if key not in english:
            return Left(key, "has no translation")
        n = len(choices)
        question, choices = english[key].get("problem_text_en"), english[key].get("choices_en")
        if not isinstance(choices, list) or len(choices) != n:
            raise BadRow(f"has {n} choices, and not as many in its translation (choices_en)")
    choices = texts(choices, "choices")
    check_choices(choices)
    answers = need(row, "answer")
    if not isinstance(answers, list) or not answers:
        raise BadRow("answer is not a list of letters")
    if any(isinstance(a, str) and re.search(r"\bor\b", a) for a in answers):
        return Left(key, "counts either of two answers as right")
    found = tuple(sorted(letter(a, len(choices)) for a in answers))
    if len(set(found)) != len(found):
        raise BadRow("answer names a choice twice")
    earned = _marks(row, key)
    item = Item(key, text(question, "question"), choices, found, lang, marks=earned)
    return _with_details(replace(item, groups={"section": earned.section} if earned else {}), details.get(key, {}))


def _with_details(item: Item, fields: dict[str, Any]) -> Item:
    """Category, contraindicated choices and examinees' accuracy, each where it is well formed: none of it is scored."""
    category = fields.get("category")
    # letters, several of them in one text too, some of them full-width: ["de"], ["ｂ"], ["a", "b"]
    listed = fields.get("kinki")
    letters = "".join(k for k in listed if isinstance(k, str)) if isinstance(listed, list | str) else ""
    kinki = unicodedata.normalize("NFKC", letters).upper()
    share = number(str(fields.get("human_accuracy")))
    return replace(
        item,
        group=category.strip() or None if isinstance(category, str) else None,
        contraindicated=tuple(i for i in range(len(item.choices)) if LETTERS[i] in kinki),
        human_accuracy=share if share is not None and 0 <= share <= 100 else None,
    )
