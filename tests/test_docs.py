"""The documents keep their promises: families are those of the code and the tests, examples run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import jmedlite
from jmedlite.convert.families.families import FAMILIES
from tests.support import builders
from tests.support.scripts import load_tool

DOCS = Path(__file__).parent.parent / "docs"


def test_table_of_families() -> None:
    rows = re.findall(r"^\| (.+?) \| `(\w+)`.*? \| `(\w+)` \|", (DOCS / "families.md").read_text("utf-8"), re.MULTILINE)
    assert [title for title, _, _ in rows] == [family.title for family in FAMILIES]
    assert all(name in family.hf_names for (_, name, _), family in zip(rows, FAMILIES, strict=True))
    classes = {tested: builders.config(tested, 9)["architectures"][0] for tested in builders.FAMILIES}
    assert classes == {tested: name for _, name, tested in rows}


def test_the_python_example_runs(endless_gguf: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "python.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code.count("gguf/qwen-Q4_K_M.gguf") == 1
    code = code.replace("gguf/qwen-Q4_K_M.gguf", endless_gguf.as_posix())
    done = subprocess.run(
        [sys.executable, "-X", "utf8", "-"], input=code, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("on the processor; context 512 tokens (f16); RAM")
    assert re.search(r"^(yes|no)$", done.stdout, re.MULTILINE)
    assert "'first_token_seconds':" in done.stdout


def test_the_page_of_commands_is_what_the_commands_say() -> None:
    page = load_tool("make_cli_docs").page()
    assert (DOCS / "cli.md").read_text(encoding="utf-8") == page, "run tools/make_cli_docs.py"


def test_the_table_of_adapter_settings_is_what_the_converter_goes_by() -> None:
    text = (DOCS / "families.md").read_text(encoding="utf-8")
    assert text == load_tool("make_adapter_docs").page(text), "run tools/make_adapter_docs.py"


def test_every_document_has_a_place_in_the_list() -> None:
    listed = set(re.findall(r"\]\(([\w.]+\.md)\)", (DOCS / "README.md").read_text(encoding="utf-8")))
    assert listed == {p.name for p in DOCS.glob("*.md")} - {"README.md"}


def test_every_row_of_faults_has_its_tests() -> None:
    whole = (DOCS / "faults.md").read_text(encoding="utf-8")
    text = whole.partition("## How it is tried")[0]
    rows = [
        line
        for line in text.splitlines()
        if line.startswith("| ") and not line.startswith(("| ---", "| input", "| fault"))
    ]
    assert len(rows) > 50
    for row in rows:
        *_, shown = re.split(r"(?<!\\)\|", row.strip("| "))
        tests = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", shown)
        assert tests, row
    for file, name in re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", whole):
        assert f"\ndef {name}(" in (DOCS.parent / file).read_text(encoding="utf-8"), f"{file}::{name}"


def test_what_the_documents_name_is_there() -> None:
    """Every test, and every file of the project, that a document sends its readers to."""
    root = DOCS.parent
    modules = list((root / "tests").rglob("*.py"))
    texts = (module.read_text(encoding="utf-8") for module in modules)
    known = {name for text in texts for name in re.findall(r"^def (test_\w+)", text, re.MULTILINE)}
    known |= {module.stem for module in modules}
    n_named = 0
    for page in [*DOCS.glob("*.md"), *root.glob("*.md")]:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"\b(test_\w+)\b", text):
            assert name in known, f"{page.name}: {name}"
            n_named += 1
        for path in re.findall(r"\b(?:tests|tools|convert|jmedlite|benchmarks)/[\w/]+\.py\b", text):
            assert (root / path).is_file() or "NAME" in path, f"{page.name}: {path}"
    assert n_named > 200


def test_every_kind_of_quantized_weights_has_its_tests() -> None:
    text = (DOCS / "sources.md").read_text(encoding="utf-8")
    table = text.partition("| --- |")[2].partition("\n\n")[0].splitlines()[1:]
    assert len(table) >= 8
    assert [row for row in table if not re.search(r"(`test_\w+`.*|likewise) \|$", row)] == []


def test_the_front_door() -> None:
    promised = set(re.findall(r"jmedlite\.(\w+)", (DOCS / "python.md").read_text(encoding="utf-8")))
    assert promised <= set(dir(jmedlite))
    assert all(getattr(jmedlite, name) is not None for name in dir(jmedlite))
