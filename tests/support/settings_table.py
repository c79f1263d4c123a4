"""The table of settings in docs/families.md, written and read: a row per setting, a column per family."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.support import builders

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
BEGIN, END = "<!-- settings: tools/make_settings_table.py -->\n", "<!-- settings end -->\n"


def read_table() -> dict[str, dict[str, str]]:
    """The outcome of each setting by family."""
    lines = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    found: dict[str, dict[str, str]] = {name: {} for name in rows[0][1:]}
    for row in rows[2:]:
        for name, cell in zip(found, row[1:], strict=True):
            if cell:
                found[name][row[0].strip("`")] = cell
    return found


def write_table(outcomes: Mapping[str, Mapping[str, str]]) -> None:
    """Replace the table by one of these outcomes, by family and setting."""
    settings = list(dict.fromkeys(setting for by_setting in outcomes.values() for setting in by_setting))
    plain = sorted(s for s in settings if not s.startswith("rope_parameters"))
    rope = [s for s in settings if s.startswith("rope_parameters")]
    rows = [["setting", *builders.FAMILIES], ["---", *[":-:"] * len(builders.FAMILIES)]]
    rows += [[f"`{s}`", *(outcomes[f].get(s, "") for f in builders.FAMILIES)] for s in (*plain, *rope)]
    table = "".join("| " + " | ".join(row) + " |\n" for row in rows).replace("  |", " |")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(before + BEGIN + table + END + after, encoding="utf-8", newline="\n")
