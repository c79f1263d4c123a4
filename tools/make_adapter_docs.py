"""Write the tables of adapter settings into docs/families.md, from the lists that the converter goes by.

python tools/make_adapter_docs.py

tests/test_docs.py holds the page against the lists, so that it can't go stale unseen.
"""

from __future__ import annotations

from pathlib import Path

from jmedlite.convert.adapters.settings import COMPUTED, KEEPING_INITS, OF_THE_TRAINING, REFUSED

PAGE = Path(__file__).parent.parent / "docs" / "families.md"
START, END = "<!-- adapter settings: made by tools/make_adapter_docs.py -->", "<!-- end of adapter settings -->"


def table() -> str:
    """The settings with their outcomes, as Markdown."""
    rows = ["| setting of `adapter_config.json` | outcome | |", "| --- | --- | --- |"]
    for outcome, settings in (("computed", COMPUTED), ("of the training", OF_THE_TRAINING), ("refused", REFUSED)):
        rows += [f"| `{key}` | {outcome} | {about} |" for key, about in settings.items()]
    inits = ", ".join(f"`{name}`" for name in KEEPING_INITS)
    return "\n".join([*rows, "", f"Of `init_lora_weights`, true, false, {inits} leave the base as it is."])


def page(text: str) -> str:
    """The page with the tables of now between its marks."""
    before, rest = text.split(START)
    return f"{before}{START}\n\n{table()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
