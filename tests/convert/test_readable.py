"""Byte order marks and faulty model cards: the file is that of a folder without them, and what is left out is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from jmedlite.base.errors import DataError
from jmedlite.convert.planning import assemble
from tests.support import builders

MARK = b"\xef\xbb\xbf"
GOOD = "license: apache-2.0\nlanguage:\n- ja\n- no\ntags:\n- medical\nbase_model: Qwen/Qwen2-7B\n"


def metadata(folder: Path) -> dict[str, object]:
    return {key: value for key, (value, *_) in assemble(folder).metadata.items()}


def card(folder: Path, front: bytes) -> list[str]:
    """Warnings of a conversion with this front matter."""
    (folder / "README.md").write_bytes(b"---\n" + front + b"---\n# A model\n")
    return list(assemble(folder).warnings)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    builders.checkpoint(tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").write_text('{"temperature": 0.7}')
    assert not card(tmp_path / "m", GOOD.encode())
    return tmp_path / "m"


def test_byte_order_marks_change_nothing(folder: Path) -> None:
    expected = metadata(folder)
    assert expected["general.license"] == "apache-2.0"
    for path in [*folder.glob("*.json"), folder / "README.md"]:
        path.write_bytes(MARK + path.read_bytes())
    assert metadata(folder) == expected
    (folder / "generation_config.json").write_text("{}", encoding="utf-16")
    with pytest.raises(DataError, match=r"generation_config\.json: is UTF-16"):
        assemble(folder)


CARDS: dict[str, tuple[str, dict[str, object], str]] = {
    "a null among tags": (GOOD.replace("- medical", "- medical\n-"), {}, "tags"),
    "a number among tags": (GOOD.replace("- medical", "- 7\n- medical"), {}, "tags"),
    "nothing but numbers": (GOOD.replace("- medical", "- 7\n- 8"), {"general.tags": None}, "tags"),
    "no tags at all": (GOOD.replace("\n- medical", " []"), {"general.tags": None}, "tags"),
    "a number as the licence": (GOOD.replace("apache-2.0", "2.0"), {"general.license": None}, "license"),
    "a licence that is a table": (GOOD.replace("apache-2.0", "{a: b}"), {"general.license": None}, "license"),
    "a version": (GOOD + "version: 1.5\n", {}, "version"),
    "a number as the base": (GOOD + "datasets:\n- 5\n- owner/data\n", {"general.dataset.count": 1}, "datasets"),
    "Norway in a line": (GOOD.replace("\n- ja\n- no", " [ja, no]"), {"general.languages": ["ja"]}, "language"),
    "a bad line": (GOOD + "thumbnail: a: b\n", {}, "thumbnail"),
    "a date that is none": (GOOD + "date: 2024-13-45\n", {}, "date"),
    "half a character": (GOOD + 'author: "\\ud800"\n', {}, "author"),
    "a template's own": (GOOD + "name: {{ name }}\n", {}, "name"),
    "a list": ("- a\n- b\n", {"general.license": None, "general.tags": None, "general.languages": None}, "- a"),
}  # fmt: skip


@pytest.mark.parametrize("fault", CARDS)
def test_faulty_card_loses_the_faulty_field(folder: Path, fault: str) -> None:
    expected = metadata(folder)
    front, changes, field = CARDS[fault]
    (warning,) = card(folder, front.encode())
    assert warning.startswith("README.md: left out of")
    assert field in warning
    found = metadata(folder)
    kept = {k: v for k, v in expected.items() if not k.startswith("general.") or k == "general.license"}
    for key, value in (kept | changes).items():
        assert found.get(key) == value
    if not changes:
        assert {k: v for k, v in found.items() if "dataset" not in k} == expected


def test_card_in_another_encoding(folder: Path) -> None:
    expected = metadata(folder)
    (warning,) = card(folder, GOOD.encode() + "author: 山田\n".encode("shift_jis"))
    assert "author" in warning
    assert metadata(folder) == expected
    (folder / "README.md").write_bytes(f"---\n{GOOD}---\n".encode() + "本文".encode("shift_jis"))
    assert metadata(folder) == expected


def test_card_without_front_matter(folder: Path) -> None:
    (folder / "README.md").write_bytes("# 説明だけ".encode("shift_jis"))
    assert not assemble(folder).warnings
