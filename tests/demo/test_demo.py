"""`jmedlite demo` as a newcomer runs it: every step, on the model that ships, and nothing else touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jmedlite.demo import MODEL
from tests.support.offline import ISOLATE, allowed, watched
from tests.support.warm import command

LIMIT = "40"  # questions in each language; .ci/run shows the whole demo
LEVELS = ["BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K"]


@dataclass(frozen=True)
class Shown:
    """One demo: its folder, what it told, what stood on standard error, and whether there was no network."""

    folder: Path
    told: dict[str, Any]
    stderr: str
    isolated: bool


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    home = tmp_path_factory.mktemp("home")
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("JMEDLITE_", "XDG_", "HF_"))
    }  # the demo must not need, nor write, what these name
    isolated = allowed(*ISOLATE, "true")
    done = subprocess.run(
        [*(ISOLATE if isolated else []), *command(), "demo", "--json", "--out", "shown", "--limit", LIMIT],
        capture_output=True, encoding="utf-8", check=False, cwd=home,
        env={**environment, **watched(tmp_path_factory.mktemp("watch")), "HOME": str(home), "LOCALAPPDATA": str(home)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # matplotlib keeps its list of fonts in the user's cache; that is the library's
    assert {p.name for p in home.iterdir()} <= {"shown", ".cache", ".config", ".matplotlib"}
    assert not any("jmedlite" in p.name for p in home.rglob("*") if "shown" not in p.parts)
    return Shown(home / "shown", json.loads(done.stdout), done.stderr, isolated)


def run_demo(limit: str, out: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command(), "demo", "--limit", limit, "--out", str(out)],
        capture_output=True, encoding="utf-8", check=False, env={**os.environ, "PYTHONUTF8": "1"},
    )  # fmt: skip


def test_without_any_interface(shown: Shown) -> None:
    if not shown.isolated:
        pytest.skip("this system allows no network namespaces")
    assert "NETWORK" not in shown.stderr


def test_what_the_model_learned(shown: Shown) -> None:
    """The base knows its own facts and is at chance on the adapter's; merged, it knows both; narrow levels lose."""
    parts = {row["model"]: row["parts"] for row in shown.told["accuracies"]}
    assert list(parts) == ["base-BF16", *(f"demo-{level}" for level in LEVELS)]
    alone = parts["base-BF16"]
    assert alone["adapter"]["low"] <= 20 <= alone["adapter"]["high"]
    assert alone["base"]["percent"] >= 90
    for level in LEVELS[:5]:
        assert parts[f"demo-{level}"]["adapter"]["percent"] >= 90
        assert parts[f"demo-{level}"]["base"]["percent"] >= 90
    assert parts["demo-Q2_K"]["adapter"]["high"] < parts["demo-BF16"]["adapter"]["low"]


def test_what_the_report_says(shown: Shown) -> None:
    folder, told = shown.folder, shown.told
    (verdict,) = json.loads((folder / "report.json").read_text(encoding="utf-8"))["verdicts"]
    # of so few questions nothing narrower can be shown to lose nothing; .ci/run looks at what all of them show
    assert verdict["level"] == "BF16" and told["verdict"][0].startswith("BF16, the reference itself")
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "demo-Q4_K_M" in page
    assert (folder / "report.json").is_file()


def test_the_answers(shown: Shown) -> None:
    japanese, english = shown.told["answers"]
    assert "腋窩神経" in japanese["answer"]
    assert "axillary nerve" in english["answer"]


@pytest.mark.long
def test_one_question_in_each_language(tmp_path: Path) -> None:
    """They may all be of one part: of the other there is nothing to say."""
    done = run_demo("1", tmp_path / "one")
    assert done.returncode == 0, done.stderr
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("demo-Q8_0")]
    assert row.split()[1] == "–" or row.endswith("–"), row


@pytest.mark.long
def test_it_can_be_run_again_and_keeps_what_is_not_its_own(shown: Shown, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    done = subprocess.run(
        [sys.executable, "-m", "jmedlite", "demo", "--out", str(tmp_path)],
        capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert done.returncode == 73
    assert "thesis.txt" in done.stderr
    again = run_demo(LIMIT, shown.folder)
    assert again.returncode == 0, again.stderr
    assert "(resumed)" not in again.stderr


@pytest.mark.long
def test_started_in_a_folder_with_another_jmedlite(shown: Shown, tmp_path: Path) -> None:
    """As in a clone, whose folder `jmedlite` has not all that the installed package has: children must not take it."""
    (tmp_path / "jmedlite").mkdir()
    (tmp_path / "jmedlite" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    cold = [sys.executable, "-P", "-m", "jmedlite"]
    model, question = str(shown.folder / "gguf" / "demo-Q8_0.gguf"), "Which nerve innervates the deltoid?"
    for arguments in (
        ["quantize", str(MODEL), "--bits", "4", "--out", str(tmp_path)],
        ["ask", "-m", model, "--no-cache", question],
    ):
        done = subprocess.run([*cold, *arguments], capture_output=True, encoding="utf-8", check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
