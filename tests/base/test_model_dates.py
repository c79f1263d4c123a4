"""A model's date: from the GGUF's own metadata, else from the model card beside it; no other text is taken for one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jmedlite.api.model_facts import model_date


@pytest.mark.parametrize(("meta", "date"), [
    ({"general.date": "2024-06-06"}, "2024-06-06"),
    ({"general.release_date": "2024-06"}, "2024-06"),
    ({"general.created_at": "2024-06-06T10:00:00Z", "general.name": "2020-01-01"}, "2024-06-06"),
    ({"general.date": 2024}, "2024"),
    ({"general.date": "June 2024"}, None),
    ({"general.date": ["2024-06-06"]}, None),
    ({}, None),
])  # fmt: skip
def test_of_the_metadata(tmp_path: Path, meta: dict[str, Any], date: str | None) -> None:
    assert model_date(meta, tmp_path / "README.md") == date


@pytest.mark.parametrize(("card", "date"), [
    ("---\nlicense: mit\nrelease_date: 2024-06-06\n---\n# A model\n", "2024-06-06"),
    ("\ufeff---\r\ndate: '2023-11'\r\n---\r\n", "2023-11"),
    ("---\n- a list\n---\n", None),
    ("---\ndate: [\n---\n", None),
    ("# date: 2024-06-06\n", None),
    ("---\nx: " + "y" * (1 << 17) + "\ndate: 2024-06-06\n---\n", None),
])  # fmt: skip
def test_of_the_card_beside_it(tmp_path: Path, card: str, date: str | None) -> None:
    path = tmp_path / "README.md"
    path.write_bytes(card.encode("utf-8"))
    assert model_date({}, path) == date
    assert model_date({"general.date": "2022-02-22"}, path) == "2022-02-22"
