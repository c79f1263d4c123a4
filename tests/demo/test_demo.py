"""`jmedlite demo` as a newcomer runs it: every step, on the model that ships, and nothing else touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jmedlite.demo import MODEL

LEVELS = ["BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K"]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:  # type: ignore[type-arg]
    home = tmp_path_factory.mktemp("home")
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("JMEDLITE_", "XDG_", "HF_"))
    }  # the demo must not need, nor write, what these name
    done = subprocess.run(
        [sys.executable, "-m", "jmedlite", "demo", "--out", "shown", "--json"],
        capture_output=True, encoding="utf-8", check=False, cwd=home,
        env={**environment, "HOME": str(home), "LOCALAPPDATA": str(home), "PYTHONUTF8": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # matplotlib keeps its list of fonts in the user's cache; that is the library's
    assert {p.name for p in home.iterdir()} <= {"shown", ".cache", ".config", ".matplotlib"}
    assert not any("jmedlite" in p.name for p in home.rglob("*") if "shown" not in p.parts)
    return home / "shown", json.loads(done.stdout)


def test_what_the_model_learned(shown: tuple[Path, dict]) -> None:  # type: ignore[type-arg]
    """The base knows its own facts and is at chance on the adapter's; merged, it knows both; narrow levels lose."""
    parts = {row["model"]: row["parts"] for row in shown[1]["accuracies"]}
    assert list(parts) == ["base-BF16", *(f"demo-{level}" for level in LEVELS)]
    alone = parts["base-BF16"]
    assert alone["adapter"]["low"] <= 20 <= alone["adapter"]["high"]
    assert alone["base"]["percent"] >= 90
    for level in LEVELS[:5]:
        assert parts[f"demo-{level}"]["adapter"]["percent"] >= 90
        assert parts[f"demo-{level}"]["base"]["percent"] >= 90
    assert parts["demo-Q2_K"]["adapter"]["high"] < parts["demo-BF16"]["adapter"]["low"]


def test_what_the_report_says(shown: tuple[Path, dict]) -> None:  # type: ignore[type-arg]
    folder, told = shown
    assert "no meaningful loss" in told["verdict"][0]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "demo-Q4_K_M" in page
    assert (folder / "report.json").is_file()


def test_the_answers(shown: tuple[Path, dict]) -> None:  # type: ignore[type-arg]
    japanese, english = shown[1]["answers"]
    assert "腋窩神経" in japanese["answer"]
    assert "axillary nerve" in english["answer"]


def test_it_can_be_run_again_and_keeps_what_is_not_its_own(shown: tuple[Path, dict], tmp_path: Path) -> None:  # type: ignore[type-arg]
    (tmp_path / "thesis.txt").write_text("mine")
    done = subprocess.run(
        [sys.executable, "-m", "jmedlite", "demo", "--out", str(tmp_path)],
        capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert done.returncode == 73
    assert "thesis.txt" in done.stderr
    again = subprocess.run(
        [sys.executable, "-m", "jmedlite", "demo", "--out", str(shown[0])],
        capture_output=True, encoding="utf-8", check=False, env={**os.environ, "PYTHONUTF8": "1"},
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert "(resumed)" not in again.stderr


def test_started_in_a_folder_with_another_jmedlite(shown: tuple[Path, dict], tmp_path: Path) -> None:  # type: ignore[type-arg]
    """As in a clone, whose folder `jmedlite` has not all that the installed package has: children must not take it."""
    (tmp_path / "jmedlite").mkdir()
    (tmp_path / "jmedlite" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    command = [sys.executable, "-P", "-m", "jmedlite"]
    for arguments in (
        ["quantize", str(MODEL), "--bits", "4", "--out", str(tmp_path)],
        ["ask", "-m", str(shown[0] / "gguf" / "demo-Q8_0.gguf"), "--no-cache", "Which nerve innervates the deltoid?"],
    ):
        done = subprocess.run([*command, *arguments], capture_output=True, encoding="utf-8", check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
