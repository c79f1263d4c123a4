"""The examples run as they stand, on the model that ships with jmedlite."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from jmedlite.demo import ADAPTER, MODEL, QUESTIONS

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, *arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-X", "utf8", EXAMPLES / name, *arguments], capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("examples") / "gguf"
    told = run("merge_and_quantize.py", MODEL, ADAPTER, out).splitlines()
    assert [line.split()[-1] for line in told] == ["proven", "proven"]
    assert sorted(p.name for p in out.glob("*.gguf")) == ["model-adapter-Q4_K_M.gguf", "model-adapter-Q8_0.gguf"]
    return out


def test_ask_with_schema(gguf: Path) -> None:
    first, second = run("ask_with_schema.py", gguf / "model-adapter-Q8_0.gguf", "Is water wet?").splitlines()
    answer = ast.literal_eval(first)
    assert set(answer) == {"answer", "sure"}
    assert isinstance(answer["sure"], bool)
    assert "not for diagnosis" in second


@pytest.mark.long
def test_bench_and_report(gguf: Path, tmp_path: Path) -> None:
    told = run("bench_and_report.py", gguf, QUESTIONS, tmp_path / "run")
    assert "Q8_0" in told
    assert (tmp_path / "run" / "report.html").is_file()
    assert (
        len((tmp_path / "run" / "items.jsonl").read_text(encoding="utf-8").splitlines()) == 2 * 2 * 20
    )  # levels, languages, questions
