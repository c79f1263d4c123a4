"""Records: numbers of 64 bits, fields of others, half characters."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jmedlite.base.errors import DataError
from jmedlite.base.halves import has_halves, without_halves
from jmedlite.base.inputs import read_json
from jmedlite.base.records import Foreign, from_json


@dataclass(frozen=True, kw_only=True)
class Ours:
    n: int
    share: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Theirs(Foreign):
    n: int = 0


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"n": 1 << 63}, "n: is 9223372036854775808, expected a number of 64 bits"),
        ({"n": True}, "n: is true, expected a whole number"),
        ({"n": 1.0}, "n: is 1.0, expected a whole number"),
        ({"n": 1, "share": 10**400}, "share: is 1000.*…, expected a number"),
        ({"n": 1, "share": 1e999}, "share: is Infinity, expected a number of 64 bits"),
        ({"n": 1, "other": 2}, 'unknown field "other"'),
    ],
)
def test_values_of_another_type(value: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        from_json(value, Ours, "x.json")


def test_fields_of_others_are_left_out() -> None:
    assert from_json({"n": 3, "theirs": [1]}, Theirs, "x.json") == Theirs(n=3)


@pytest.mark.parametrize(
    ("written", "halves"),
    [(r'"\ud83d\ude00"', False), (r'"\ud83d"', True), (r'"\ude00\ud83d"', True), (r'"\\ud83d"', False), ('"é"', False)],
)
def test_half_characters(written: str, halves: bool, tmp_path: Path) -> None:
    raw = f'{{"x": {written}}}'.encode()
    found = json.loads(raw)
    assert has_halves(raw, found) is halves
    without_halves(found)["x"].encode("utf-8")
    (tmp_path / "x.json").write_bytes(raw)
    if halves:
        with pytest.raises(DataError, match=r"x\.json: holds half a character"):
            read_json(tmp_path / "x.json")
    else:
        assert read_json(tmp_path / "x.json") == found
