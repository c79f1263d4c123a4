"""What the documents promise of families is what the tables in the code and the tests have."""

from __future__ import annotations

import re
from pathlib import Path

from jmedlite.convert.architectures import FAMILIES

from . import builders

DOCS = Path(__file__).parent.parent / "docs"


def test_table_of_families() -> None:
    rows = re.findall(r"^\| (.+?) \| `(\w+)`.*? \| `(\w+)` \|", (DOCS / "families.md").read_text("utf-8"), re.MULTILINE)
    assert [title for title, _, _ in rows] == [family.title for family in FAMILIES]
    assert all(name in family.hf_names for (_, name, _), family in zip(rows, FAMILIES, strict=True))
    assert {tested: f"{name}ForCausalLM" for tested, name in builders.FAMILIES.items()} == {
        tested: name for _, name, tested in rows
    }
