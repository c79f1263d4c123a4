"""From rows to items: every field checked, every row accounted for, a bad one named by its place or counted."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jmedlite.base.errors import DataError
from jmedlite.runtime.chat_template import language_of

from .items import LETTERS, SIDES, Item, Left
from .rows import Row

NO_CHOICES = "has no choices"
LANGUAGES = ("ja", "en")


class BadRow(Exception):
    """What is wrong with a row, as the part of a sentence that follows its place."""


def collect(rows: Iterable[Row], parse: Callable[[Row], Item | Left], skip_bad: bool) -> tuple[list[Item], list[Left]]:
    """Items, and what is left out; raises DataError for a bad row, which `skip_bad` counts as left out instead."""
    items: list[Item] = []
    left: list[Left] = []
    seen: dict[tuple[str, str], str] = {}
    for row in rows:
        try:
            if row.fault:
                raise BadRow(row.fault)
            found = parse(row)
            item = found if isinstance(found, Item) else found.item
            key = (found.id, item.lang if item else "")
            if key in seen:
                raise BadRow(f"has the same id as {seen[key]} ({found.id}), expected ids that differ")
        except BadRow as e:
            left.append(skipped(row, e, skip_bad))
            continue
        seen[key] = row.place
        if isinstance(found, Item):
            items.append(found)
        else:
            left.append(found)
    return items, left


def skipped(row: Row, fault: BadRow, skip_bad: bool) -> Left:
    """The bad row as left out; raises DataError without `skip_bad`."""
    if not skip_bad:
        raise DataError(f"{row.place}: {fault}; mend the row, or leave such rows out with --skip-bad")
    return Left(row.place, f"bad row ({fault})")


def need(row: Row, key: str) -> Any:
    """A field that must be there."""
    if row.fields.get(key) is None:
        raise BadRow(f"has no field {key}")
    return row.fields[key]


def text(value: Any, what: str) -> str:
    """A text that is not blank, without the space around it."""
    if not isinstance(value, str):
        raise BadRow(f"{what} is not text")
    if "\0" in value:
        raise BadRow(f"{what} has a NUL character")
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise BadRow(f"{what} has half a character (a lone surrogate)")
    if not value.strip():
        raise BadRow(f"{what} is empty")
    return value.strip()


def texts(value: Any, what: str) -> tuple[str, ...]:
    """A list of texts, none of them blank."""
    if not isinstance(value, list | tuple):
        raise BadRow(f"{what} is not a list")
    return tuple(text(v, f"{what}, number {i}," if len(value) > 1 else what) for i, v in enumerate(value, 1))


def name(value: Any, what: str) -> str:
    """An id: text or a whole number."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else text(value, what)


def index(value: Any, n: int, what: str = "answer") -> int:
    """A place among `n` choices, counted from 0."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadRow(f"{what} {value!r} is not a whole number")
    if not 0 <= value < n:
        raise BadRow(f"{what} {value} is outside the choices (0 to {n - 1})")
    return value


def letter(value: Any, n: int, what: str = "answer") -> int:
    """The place of a lettered choice: "a", "B", or full-width."""
    plain = unicodedata.normalize("NFKC", value).strip().upper() if isinstance(value, str) else ""
    if len(plain) != 1 or plain not in LETTERS:
        raise BadRow(f"{what} {value!r} is not a letter")
    if LETTERS.index(plain) >= n:
        raise BadRow(f"{what} {value!r} is outside the choices (A to {LETTERS[n - 1]})")
    return LETTERS.index(plain)


def place(value: Any, choices: Sequence[str], what: str = "answer", numbers: bool = False) -> int:
    """A choice by its index (from 0), its letter, or its own text; raises BadRow where that is not one choice.

    With `numbers` an index may be text, as all is in a CSV.
    """
    if not isinstance(value, str):
        return index(value, len(choices), what)
    same = [i for i, choice in enumerate(choices) if choice == value.strip()]
    number = value.strip()  # of more than what int() takes for white space
    if numbers and re.fullmatch("[0-9]{1,3}", number) and (not same or int(number) < len(choices)):
        same = sorted({*same, index(int(number), len(choices), what)})
    if re.fullmatch("[a-zA-Z]", unicodedata.normalize("NFKC", value).strip()):
        if not same:
            return letter(value, len(choices), what)
        same = sorted({*same, letter(value, len(choices), what)})
    if len(same) > 1 and len({choices[i] for i in same}) > 1:
        raise BadRow(f"{what} {value!r} could be choice {' or '.join(map(str, same))}, give its index instead")
    if not same:
        raise BadRow(f"{what} {value[:40]!r} is neither a letter nor one of the choices")
    return same[0]


def places(value: Any, choices: Sequence[str], what: str = "answer", numbers: bool = False) -> tuple[int, ...]:
    """One choice or a list of them, in the order of the choices; arguments as for `place`."""
    found = [place(v, choices, what, numbers) for v in (value if isinstance(value, list) else [value])]
    if len(set(found)) != len(found):
        raise BadRow(f"{what} names a choice twice")
    return tuple(sorted(found))


def percentage(value: Any, what: str) -> float:
    """A number from 0 to 100."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadRow(f"{what} is not a number")
    if not 0 <= value <= 100:
        raise BadRow(f"{what} {value} is outside 0 to 100")
    return float(value)


def check_choices(choices: Sequence[str]) -> None:
    """Two to 26, as many as there are letters."""
    if not 2 <= len(choices) <= len(LETTERS):
        raise BadRow(f"has {len(choices)} choices, expected 2 to {len(LETTERS)}")


def own(row: Row) -> Item:
    """The project's own format (docs/tasks.md); a CSV has its choices in columns A, B, C, …"""
    fields = row.fields
    question = text(need(row, "question"), "question")
    in_columns = "choices" not in fields and "A" in fields
    choices = texts(lettered(fields) if in_columns else need(row, "choices"), "choices")
    check_choices(choices)
    answers = places(need(row, "answer"), choices, numbers=in_columns)
    if not answers:
        raise BadRow("answer is empty")
    lang = fields.get("lang") or language_of("".join((question, *choices)))
    if lang not in LANGUAGES:
        raise BadRow(f"lang {lang!r} is unknown, expected {' or '.join(LANGUAGES)}")
    right = fields.get("human_accuracy")
    if isinstance(right, str):  # a CSV has nothing but text
        right = (number(right) if number(right) is not None else right) if right.strip() else None
    return Item(
        id=name(fields["id"], "id") if fields.get("id") not in (None, "") else str(row.number),
        question=question,
        choices=choices,
        answers=answers,
        lang=lang,
        group=text(fields["group"], "group") if fields.get("group") else None,
        contraindicated=places(fields.get("contraindicated") or [], choices, "contraindicated", in_columns),
        human_accuracy=None if right is None else percentage(right, "human_accuracy"),
        context=text(fields["context"], "context") if fields.get("context") else "",
        groups=sides(fields),
    )


def sides(fields: dict[str, Any]) -> dict[str, str]:
    """`groups`: the side by which items differ, and the one of its groups that this item is in.

    A CSV has a column `groups.facts` for each side. Parquet gives every side that any row has, null where one lacks it.
    """
    columns = {key.removeprefix("groups."): v for key, v in fields.items() if key.startswith("groups.") and v != ""}
    given = fields.get("groups") or columns
    if not isinstance(given, dict):
        raise BadRow('groups is not an object, expected {"side": "group"} such as {"facts": "adapter"}')
    if taken := [side for side in given if side in SIDES]:
        raise BadRow(f"groups names {taken[0]}, which every question has")
    return {text(side, "groups, a side,"): text(of, f"groups.{side}") for side, of in given.items() if of is not None}


def lettered(fields: dict[str, Any]) -> list[Any]:
    """Columns A, B, C, … as a list; empty ones at the end are no choices."""
    values = [fields[c] for c in LETTERS if c in fields]
    while values and isinstance(values[-1], str) and not values[-1].strip():
        values.pop()
    return values


def number(value: str) -> float | None:
    """A number from a text, None where there is none."""
    try:
        return float(value)
    except ValueError:
        return None


def only_five(items: Iterable[Item]) -> tuple[list[Item], list[Left]]:
    """Items with five choices, and the others as left out."""
    kept, left = [], []
    for item in items:
        if len(item.choices) == 5:
            kept.append(item)
        else:
            left.append(Left(item.id, f"has {len(item.choices)} choices, not 5", item))
    return kept, left
