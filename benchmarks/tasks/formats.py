"""The rows of published data sets, as their authors wrote them, made items. Columns: docs/tasks.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import Any

from jmedlite.base.errors import DataError

from .checking import NO_CHOICES, BadRow, check_choices, index, letter, name, need, text, texts
from .items import LETTERS, Item, Left
from .rows import Row, json_lines

Parse = Callable[[Row], Item | Left]

MEDICAL_SUBJECTS = (
    "anatomy",
    "clinical_knowledge",
    "college_biology",
    "college_medicine",
    "medical_genetics",
    "professional_medicine",
)
MMLU_COLUMNS = ("question", "A", "B", "C", "D", "answer")


def medqa(row: Row) -> Item:
    """MedQA (jind11/MedQA): `question`, `options` by letter, `answer_idx` the letter. Rows have no id."""
    options = need(row, "options")
    if not isinstance(options, dict):
        raise BadRow("options is not an object with the choices by letter")
    # parquet gives every letter that any row has, null where this row has none
    options = {key: value for key, value in options.items() if value is not None}
    if "".join(sorted(options)) != LETTERS[: len(options)]:
        raise BadRow(f"options are lettered {', '.join(sorted(options))}, expected A, B, C, …")
    choices = texts([options[key] for key in sorted(options)], "options")
    check_choices(choices)
    return Item(
        id=str(row.number),
        question=text(need(row, "question"), "question"),
        choices=choices,
        answers=(letter(need(row, "answer_idx"), len(choices), "answer_idx"),),
        lang="en",
        group=row.fields.get("meta_info") or None,
    )


def medmcqa(row: Row) -> Item | Left:
    """MedMCQA (openlifescienceai/medmcqa): `opa` … `opd`, `cop` from 0, -1 where the answer is withheld."""
    choices = texts([need(row, f"op{c}") for c in "abcd"], "the choices opa to opd")
    item_id = name(row.fields.get("id") or row.number, "id")
    question = text(need(row, "question"), "question")
    right = need(row, "cop")
    if right == -1:
        return Left(item_id, "its answer is not published")
    if right == 4:  # never skipped: every other row of such a file would be scored against a wrong answer
        raise DataError(
            f"{row.place}: cop is 4, so this is the authors' first release, which counts from 1; expected the Hub's, "
            "which counts from 0"
        )
    return Item(
        item_id, question, choices, (index(right, 4, "cop"),), "en", group=row.fields.get("subject_name") or None
    )


def check_counting(items: Sequence[Item], task: str) -> None:
    """Raises DataError for MedMCQA rows that may count from 0 or from 1: the authors' first release did the latter."""
    if items and not any(0 in item.answers for item in items):
        raise DataError(
            f"{task}: none of the {len(items):,} rows has cop 0, so nothing tells whether cop counts from 0 or from 1; "
            "give more rows, or the questions in jmedlite's own form (docs/tasks.md)"
        )


def pubmedqa(row: Row) -> Item:
    """PubMedQA's labelled part: the Hub's columns, or those of the authors' ori_pqal.json (in capitals, by PMID)."""
    fields: dict[str, Any] = {key.lower(): value for key, value in row.fields.items()}
    context = fields.get("context")
    parts = texts(context.get("contexts") if isinstance(context, dict) else fields.get("contexts"), "contexts")
    decision, choices = fields.get("final_decision"), ("yes", "no", "maybe")
    if decision not in choices:
        raise BadRow(f"final_decision is {decision!r}, expected yes, no or maybe")
    return Item(
        id=name(fields.get("pubid") or fields.get("id") or row.number, "pubid"),
        question=text(fields.get("question"), "question"),
        choices=choices,
        answers=(choices.index(decision),),
        lang="en",
        context="\n".join(parts),
    )


def jmedbench(row: Row) -> Item:
    """JMedBench's multiple-choice sets: `options`, `answer_idx` from 0, an abstract in `metadata.context`.

    The id is the row's number: nothing says that `sample_id` differs from row to row.
    """
    choices = texts(need(row, "options"), "options")
    check_choices(choices)
    metadata = row.fields.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    group = metadata.get("subject_name") or metadata.get("subject")
    return Item(
        id=str(row.number),
        question=text(need(row, "question"), "question"),
        choices=choices,
        answers=(index(need(row, "answer_idx"), len(choices), "answer_idx"),),
        lang="ja",
        group=group if isinstance(group, str) else None,
        context=text(metadata["context"], "metadata.context") if metadata.get("context") else "",
    )


def jjsimqa(row: Row) -> Item:
    """JJSIMQA as aistairc/medLLM_QA_benchmark has it: `problem_text`, five `choices`, `answer` (letters).

    One of its answers is cut into single characters, `["b", ",", "e"]`.
    """
    choices = texts(need(row, "choices"), "choices")
    check_choices(choices)
    if row.fields.get("text_only") is not True:
        raise BadRow("text_only is not true, expected questions without images only")
    return Item(
        id=name(need(row, "problem_id"), "problem_id"),
        question=text(need(row, "problem_text"), "problem_text"),
        choices=choices,
        answers=_several(need(row, "answer"), len(choices), letter),
        lang="ja",
    )


def _several(value: Any, n: int, read: Callable[[Any, int], int]) -> tuple[int, ...]:
    """The places of several right answers, in the order of the choices."""
    if not isinstance(value, list) or not value:
        raise BadRow("answer is not a list of choices")
    found = tuple(sorted(read(v, n) for v in value if v != ","))
    if len(set(found)) != len(found):
        raise BadRow("answer names a choice twice")
    return found


def yakugakuqa(raw: bytes, label: str) -> Parse:
    """YakugakuQA: `answer` counts the choices from 1; the categories are in metadata.jsonl, which is `raw`.

    "解なし" is no right answer; a remark such as "（いずれか一つを選択で正解とする）" counts either of several.
    """
    categories: dict[str, str] = {}
    for row in json_lines(raw, label):
        key, category = row.fields.get("problem_id"), row.fields.get("category")
        if row.fault or not isinstance(key, str) or not isinstance(category, str):
            raise DataError(f"{row.place}: {row.fault or 'has no problem_id or no category'}; download it again")
        categories[key] = category

    def parse(row: Row) -> Item | Left:
        key = name(need(row, "problem_id"), "problem_id")
        text_only = need(row, "text_only")
        if not isinstance(text_only, bool):
            raise BadRow("text_only is not true or false")
        if not text_only:
            return Left(key, "needs an image")
        if need(row, "choices") == []:
            return Left(key, NO_CHOICES)
        choices = texts(need(row, "choices"), "choices")
        check_choices(choices)
        right = need(row, "answer")
        remarks = "".join(a for a in right if isinstance(a, str)) if isinstance(right, list) else ""
        if remarks.startswith("解なし"):
            return Left(key, "has no right answer")
        if "いずれか" in remarks:
            return Left(key, "counts either of two answers as right")
        return Item(
            id=key,
            question=text(need(row, "problem_text"), "problem_text"),
            choices=choices,
            answers=_several(right, len(choices), _from_one),
            lang="ja",
            group=categories.get(key),
        )

    return parse


def _from_one(value: Any, n: int) -> int:
    """The place of a choice that is counted from 1, as a text or a number."""
    plain = int(value) if isinstance(value, str) and value.isascii() and value.isdecimal() else value
    if isinstance(plain, bool) or not isinstance(plain, int) or not 1 <= plain <= n:
        raise BadRow(f"answer {value!r} is none of the choices (1 to {n})")
    return plain - 1


def mmlu(lang: str, label: str) -> Parse:
    """MMLU's rows (`subject`, `choices`, `answer` from 0) or those of its and JMMLU's CSV files (A to D, a letter).

    The subject of a CSV is in its name. Rows have no id: it is the subject and the number within the subject.
    """
    subject_of_file = subject_in(label)
    counts: Counter[str] = Counter()

    def parse(row: Row) -> Item | Left:
        subject = row.fields.get("subject") or subject_of_file
        if subject is None:
            raise BadRow("has no field subject, and the file's name tells none")
        counts[subject] += 1
        item_id = f"{subject}-{counts[subject]}"
        if subject not in MEDICAL_SUBJECTS:
            return Left(item_id, "not a medical subject")
        right = need(row, "answer")
        choices = texts(row.fields["choices"] if "choices" in row.fields else [need(row, c) for c in "ABCD"], "choices")
        check_choices(choices)
        n = len(choices)
        return Item(
            id=item_id,
            question=text(need(row, "question"), "question"),
            choices=choices,
            answers=(letter(right, n) if isinstance(right, str) else index(right, n),),
            lang=lang,
            group=subject,
        )

    return parse


def subject_in(label: str) -> str | None:
    """The medical subject in a file's name ("anatomy_test.csv") or in its folder's ("anatomy/test-….parquet")."""
    for part in reversed(PurePosixPath(label).parts):
        for subject in MEDICAL_SUBJECTS:
            if part.split(".")[0].removesuffix("_test").removesuffix("_dev") == subject:
                return subject
    return None
