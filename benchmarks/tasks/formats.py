"""The rows of published data sets, as their authors wrote them, made items. Columns: docs/tasks.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import Any

from jmedlite.base.errors import DataError

from .checking import BadRow, check_choices, index, letter, name, need, text, texts
from .items import LETTERS, Item, Left
from .rows import Row

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
