"""Progress: what long work tells its caller, and what the terminal makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

import jmedlite
from jmedlite.base.progress import IN_BYTES, Stage
from jmedlite.cli import console
from tests.support import builders


def test_quantize_and_verify_tell_the_same_bytes(tmp_path: Path) -> None:
    builders.checkpoint(tmp_path / "m")
    heard: list[tuple[str, int, int, str]] = []
    (path,) = jmedlite.quantize(
        tmp_path / "m", bits=[8], out=tmp_path, threads=1, progress=lambda *told: heard.append(told)
    )
    made = heard.copy()
    heard.clear()
    assert jmedlite.verify(path, base=tmp_path / "m", threads=1, progress=lambda *told: heard.append(told)).holds
    assert {told[0] for told in made} == {"quantizing"}
    assert made[-1][1] == made[-1][2]
    assert [("verifying", *told[1:]) for told in made] == heard


def test_one_stage_after_the_other_in_a_pipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jmedlite.cli.console.time.monotonic", lambda: 0.0)
    with console.progress() as progress:
        progress("hashing", 0, 2_000_000, "m.gguf")
        progress("hashing", 2_000_000, 2_000_000, "m.gguf")
        progress("questions", 3, 10, "")
        progress("questions", 3, 10, "m")  # a tenth is told once
        progress("questions", 5, 10, "m")
        progress("measuring", 1, 2, "m")
    assert capsys.readouterr().err.splitlines() == [
        "checking the files: 100 %, 2.0 MB of 2.0 MB, 0 s, 0 s left",
        "asking: 30 %, 3 of 10, 0 s",
        "asking: 50 %, 5 of 10, 0 s, 0 s left (m)",
        "measuring: 50 %, 1 of 2, 0 s (m)",
    ]


def test_the_stages_are_those_of_the_document() -> None:
    table = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:4] for line in table.splitlines() if line.startswith('| `"')]
    assert {stage.strip(' `"') for stage, _, _ in rows} == set(get_args(Stage))
    assert tuple(stage.strip(' `"') for stage, _, counted in rows if "bytes" in counted) == IN_BYTES
