"""Figures and LaTeX tables for a paper: every form, the same bytes again, captions that say enough, text as text."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from jmedlite.base.errors import UsageError
from jmedlite.benchmarks.report import paper
from jmedlite.benchmarks.report.paper import tex
from jmedlite.benchmarks.report.report import Report, report
from tests.support import runs as run_builder

EVIL = "\\input{x} $a_b^c$ 100% #1 & {~}|<\n\x1b[31m"


def made(folder: Path, **model: Any) -> Report:
    """A run with every figure and table; the second kind of text has a hostile name."""
    levels = ("BF16", "Q4_K_M")
    models = [run_builder.model(level, **model) for level in levels]
    questions = [run_builder.question(i) for i in range(30)]
    items = [run_builder.answer(q, m["name"], (i + r) % 3 > 0)
             for r, m in enumerate(models) for i, q in enumerate(questions)]  # fmt: skip
    names = [m["name"] for m in models]
    distance = [line for text in ("exam-ja", EVIL) for line in run_builder.distances(names, text)]
    measures = [run_builder.measure(name) for name in names]
    return report([run_builder.write(folder, models, questions, items, measures=measures, distance=distance)])


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return made(tmp_path_factory.mktemp("paper") / "run")


@pytest.fixture(scope="module")
def written(found: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("figures")
    found.write_figures(folder / "one", "en")
    return folder / "one"


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the tables: figures take their time."""
    monkeypatch.setattr(paper, "figure_files", lambda *_: {})


@pytest.mark.long
def test_every_figure_in_three_forms(found: Report, written: Path, tmp_path: Path) -> None:
    names = {path.name for path in written.iterdir()}
    figures = {
        f"{name}.{form}" for name in ("memory", "latency", "difference", "size") for form in ("svg", "pdf", "png")
    }
    assert names == figures | {"figures.tex", "levels.tex", "differences-letter.tex", "distances.tex"}
    assert (written / "size.pdf").read_bytes().startswith(b"%PDF-")
    svg = (written / "memory.svg").read_text(encoding="utf-8")
    assert "var(--" not in svg and "#010203" not in svg and "#0072b2" in svg
    with Image.open(written / "memory.png") as image:
        assert image.size[0] == pytest.approx(5.6 * 300, abs=2)
    found.write_figures(tmp_path / "two", "en")
    for name in names:
        assert (written / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.usefixtures("no_figures")
def test_captions_and_tables(found: Report, written: Path, tmp_path: Path) -> None:
    figures, levels, distances = (
        (written / f"{name}.tex").read_text(encoding="utf-8") for name in ("figures", "levels", "distances")
    )
    captions = re.findall(r"\\caption\{(.*)\}\n", figures + levels + distances)
    assert len(captions) == 6
    for caption in captions:
        assert "95 \\%" in caption and "Measured on AMD EPYC, 2 cores, 25.0 GB RAM" in caption
        assert "n = 30" in caption or "bootstrap over the chunks" in caption
    result = found.document["views"][0]["results"][1]
    low, high = result["interval"] or (0, 0)
    assert f"{100 * (result['share'] or 0):.1f} [{100 * low:.1f}, {100 * high:.1f}] & 30 &" in levels
    kl = found.document["models"][1]["distances"][0]["kl_mean"]
    assert f"qwen-Q4\\_K\\_M & exam-ja & 5,100 & {kl:.4f} [" in distances
    found.write_figures(tmp_path / "ja", "ja")
    assert "測定環境：AMD EPYC、2コア".replace("、", ", ") in (tmp_path / "ja" / "levels.tex").read_text(
        encoding="utf-8"
    )


def test_text_stays_text_in_latex(written: Path) -> None:
    text = (written / "distances.tex").read_text(encoding="utf-8")
    escaped = tex(EVIL)
    assert escaped == (
        r"\textbackslash{}input\{x\} \$a\_b\textasciicircum{}c\$ 100\% \#1 \& "
        r"\{\textasciitilde{}\}\textbar{}\textless{} [31m"
    )  # fmt: skip
    assert escaped in text
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert all(len(re.findall(r"(?<!\\)&", row)) == 5 for row in rows) and len(rows) == 3


@pytest.mark.usefixtures("no_figures")
def test_machines_of_any_kind(tmp_path: Path) -> None:
    folder = run_builder.small(tmp_path / "run", n=10)
    head = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    for machine in ({}, {"cpu": None, "ram_bytes": "lots", "gpus": [{"name": "H100"}, "B200", None]}):
        (folder / "run.json").write_text(json.dumps({**head, "machine": machine}), encoding="utf-8")
        report([folder]).write_figures(tmp_path / "out")
    assert "Measured on H100, B200, llama" in (tmp_path / "out" / "levels.tex").read_text(encoding="utf-8")


def test_a_card_of_two_names_from_one_base(tmp_path: Path) -> None:
    """A model with and without an adapter is one base; files of unknown or other bases are not."""
    plain = run_builder.small(tmp_path / "plain", n=10)
    tuned = run_builder.small(tmp_path / "tuned", n=10, base="tuned")
    head = (tuned / "run.json").read_text(encoding="utf-8")
    adapted = head.replace('"adapters": []', '"adapters": [{"name": "rank|16", "weight": 0.5}]')
    (tuned / "run.json").write_text(adapted, encoding="utf-8")
    card = report([plain, tuned]).model_card()
    assert "- tuned: with the adapters rank\\|16 (weight 0.5) merged" in card and "| qwen-BF16 |" in card
    for other in ('"made_from": null', '"made_from": "someone/else@' + "0" * 40 + '"'):
        (tuned / "run.json").write_text(re.sub(r'"made_from": "[^"]*"', other, head), encoding="utf-8")
        with pytest.raises(UsageError, match=r"files of one base, here are qwen \(from Qwen/.*, tuned \(from "):
            report([plain, tuned]).model_card()
