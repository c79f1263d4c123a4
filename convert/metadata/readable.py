"""Readable folder: what gguf-py reads of a checkpoint, without what it would stumble over; the rest as it is.

A byte order mark is taken away, and so is what a model card says in no usable form: a card is a page for people, and no
reason to stop. Without such faults, gguf-py reads the folder itself.
"""

from __future__ import annotations

import codecs
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from jmedlite.base.filenames import CARD
from jmedlite.base.inputs import MAX_CARD, MAX_VOCABULARY, opened, read_bytes, read_json
from jmedlite.base.looking import is_file
from jmedlite.base.outputs import temporary_folder

_FENCE = "---"
_OWN = ("name", "author", "version", "organization", "description", "finetune", "basename", "size_label", "url", "doi",
        "uuid", "repo_url")  # fmt: skip
# The fields that gguf-py reads: one text; texts, of which each counts; texts or descriptions of other models and data
_TEXT = {*_OWN, *(f"model_{name}" for name in _OWN), "model_creator", "model_type", "license_name", "license_link"}
_TEXTS = {"tags", "pipeline_tag", "language", "languages"}
_OTHERS = {"base_model", "base_models", "base_model_sources", "dataset", "datasets", "dataset_sources"}
_UNREADABLE = (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError)


@contextmanager
def readable(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """The folder, or a copy of its small files under the same name that gguf-py can read; and what was left out."""
    marked = {path for path in folder.glob("*.json") if is_file(path) and _has_mark(path)}
    front, warnings = _read_card(folder / CARD)
    if not marked and front is None:
        yield folder, warnings
        return
    with temporary_folder() as temporary:
        copy = temporary / (folder.name or folder.resolve().name)
        copy.mkdir()
        for path in folder.iterdir():
            if is_file(path) and path.suffix in (".json", ".jinja"):
                shutil.copyfile(path, copy / path.name)
        for path in marked:
            (copy / path.name).write_bytes(read_bytes(path, MAX_VOCABULARY).removeprefix(codecs.BOM_UTF8))
        if front is not None:
            (copy / CARD).write_text(f"{_FENCE}\n{front}{_FENCE}\n", encoding="utf-8")
        elif is_file(folder / CARD):
            shutil.copyfile(folder / CARD, copy / CARD)
        yield copy, warnings


def _has_mark(path: Path) -> bool:
    """Does a file begin with UTF-8's byte order mark? Raises DataError where it is another encoding's."""
    with opened(path) as file:
        head = file.read(3)
    if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        read_json(path)  # says so
    return head == codecs.BOM_UTF8


def _read_card(path: Path) -> tuple[str | None, list[str]]:
    """The front matter to read instead of a card's own, None where that can be read; and what was left out."""
    if not is_file(path):
        return None, []
    raw = read_bytes(path, MAX_CARD)
    text = raw.removeprefix(codecs.BOM_UTF8).decode("utf-8", "replace")
    as_it_is = text.encode() == raw  # no mark, no other encoding
    lines = text.splitlines()
    if lines[:1] != [_FENCE]:
        return None if as_it_is else "", []
    end = next((i for i, line in enumerate(lines[1:], 1) if line == _FENCE), len(lines))
    front = "\n".join(lines[1:end]).replace("\t", "  ") + "\n"  # as gguf-py does
    found, faulty = _fields(front)
    kept = {}
    for name, value in found.items():
        kept[name] = _usable(name, value)
        if kept[name] != value:
            faulty.append(str(name))
    if as_it_is and not faulty:
        return None, []
    kept = {name: value for name, value in kept.items() if value is not None}
    names = ", ".join(faulty[:5]) + (", …" if faulty[5:] else "")
    told = f"{path.name}: left out of {names} what has not the form of a model card"
    return yaml.safe_dump(kept, allow_unicode=True, width=1 << 20), [told] if faulty else []


def _fields(front: str) -> tuple[dict[Any, Any], list[str]]:
    """The fields of front matter that can be read, and the names of those that can't."""
    try:
        found = yaml.safe_load(front.replace("- no\n", '- "no"\n'))  # as gguf-py does
        if found is None or (isinstance(found, dict) and "\ufffd" not in front):
            return found or {}, []
    except _UNREADABLE:
        pass
    return _field_by_field(front)


def _field_by_field(front: str) -> tuple[dict[str, Any], list[str]]:
    """What can be read of front matter that as a whole is not YAML, or not UTF-8; and the names of the other fields."""
    found: dict[str, Any] = {}
    faulty: list[str] = []
    for part in re.split(r"^(?=[\w-]+[ ]*:)", front, flags=re.MULTILINE):
        name = part.partition(":")[0].strip()[:40]
        try:
            if "\ufffd" in part:
                raise ValueError("not UTF-8")
            fields = yaml.safe_load(part.replace("- no\n", '- "no"\n'))
            found |= fields if isinstance(fields, dict) else {}
            if fields and not isinstance(fields, dict):
                faulty.append(name)
        except _UNREADABLE:
            faulty.append(name)
    return found, faulty


def _usable(name: Any, value: Any) -> Any:
    """The value as far as it has a form that gguf-py takes for this field; None where it has not."""
    if value is None or name not in _TEXT | _TEXTS | _OTHERS | {"license"}:
        return value
    if isinstance(value, list) and name not in _TEXT:
        allowed = [v for v in value if _is_text(v) or (name in _OTHERS and _is_description(v))]
        return value if allowed == value and (value or name not in _TEXTS) else allowed or None
    return value if _is_text(value) or (name in _OTHERS and isinstance(value, dict)) else None


def _is_text(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(value.encode("utf-8")) and "\0" not in value
    except UnicodeEncodeError:  # half a surrogate pair
        return False


def _is_description(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))
