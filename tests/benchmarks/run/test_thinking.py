"""Thinking models in a run: what is scored, what is asked behind an empty thought, what a run keeps and must repeat."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import jmedlite
from jmedlite.api.bench_options import BenchOptions
from jmedlite.base.errors import DataError, UsageError
from jmedlite.benchmarks.backends.base import Loading, LocalModel, Wanted
from tests.support.scripted import OPENING, SWITCHED, scripted

LOADING = Loading(threads=1, gpu_layers="0")
WORDS = ["<think>", "\nis it", " lung", "?", "\n</", "think>", "\n\n", "heart"]


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scripted(tmp_path_factory.mktemp("thinker"), WORDS, template=SWITCHED, after={":": "heart"})


@pytest.fixture
def task(tmp_path: Path) -> Path:
    path = tmp_path / "task.jsonl"
    rows = [
        {"id": f"q{i}", "question": f"Which one is {i}?", "choices": ["lung", "heart"], "answer": 1} for i in range(3)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(model: Path, task: Path, out: Path, **options: Any) -> list[dict[str, Any]]:
    options = {"chat": True, "methods": ("generate",), "rounds": 0, "threads": 1, **options}
    jmedlite.bench([model], tasks=[str(task)], out=out, **options)
    return [json.loads(line) for line in (out / "items.jsonl").read_text().splitlines()]


def test_what_is_scored_stands_behind_the_thought(thinker: Path, task: Path, tmp_path: Path) -> None:
    for line in run(thinker, task, tmp_path / "whole"):
        assert (line["correct"], line["exact"], line["response"], line["stop"]) == (True, True, "heart", "eos")
        assert (line["thought"], line["n_thought"]) == ("is it lung?", 6)
    for line in run(thinker, task, tmp_path / "cut", max_tokens=4):
        assert (line["status"], line["correct"], line["response"]) == ("unparsed", False, "")
        assert (line["thought"], line["n_thought"]) == ("is it lung?", 4)
    for line in run(thinker, task, tmp_path / "budget", max_tokens=4, think_budget=3):
        assert (line["status"], line["correct"], line["response"]) == ("scored", True, "heart")
        assert (line["thought"], line["n_thought"]) == ("is it lung", 3)
    for options in ({"think": False}, {"think_budget": 0}, {"template_vars": {"enable_thinking": False}}):
        for line in run(thinker, task, tmp_path / str(options), max_tokens=4, **options):
            assert (line["correct"], "thought" in line, line["response"].strip()) == (True, False, "heart")


def test_thoughts_are_a_cost_in_the_report(thinker: Path, task: Path, tmp_path: Path) -> None:
    run(thinker, task, tmp_path / "r")
    found = jmedlite.report([tmp_path / "r"])
    assert found.document["models"][0]["thought_tokens_mean"] == 6.0
    page, table = found.html("en"), found.markdown("ja")
    assert "Thought, tokens (mean)" in page
    assert "思考（トークン、平均）" in table


def test_the_thought_is_part_of_the_run(thinker: Path, task: Path, tmp_path: Path) -> None:
    out = tmp_path / "r"
    first = run(thinker, task, out, think_budget=3, template_vars=["x=1"])
    settings = json.loads((out / "run.json").read_text())["settings"]
    assert (settings["think_budget"], settings["template_vars"], "think" in settings) == (3, {"x": 1}, False)
    lines = (out / "items.jsonl").read_text().splitlines(keepends=True)
    (out / "items.jsonl").write_text(lines[0])
    assert run(thinker, task, out, think_budget=3, template_vars=["x=1"]) == first
    with pytest.raises(DataError, match=r"settings\.think_budget was 3, is 4"):
        run(thinker, task, out, think_budget=4, template_vars=["x=1"])
    with pytest.raises(DataError, match=r"settings\.think was null, is false"):
        run(thinker, task, out, think=False, think_budget=3, template_vars=["x=1"])


def test_what_is_asked_in_vain_is_said(thinker: Path, task: Path, tmp_path: Path) -> None:
    told: list[str] = []
    options = {"chat": True, "methods": ("generate", "letter"), "rounds": 0, "threads": 1, "template_vars": {"x": 1}}
    jmedlite.bench([thinker], tasks=[str(task)], out=tmp_path / "r", notice=told.append, **options)  # type: ignore[arg-type]
    assert set(told) == {
        "m-F32: --template-var x: has no effect: the model's chat template has enable_thinking instead"
    }


@pytest.mark.parametrize("template", [SWITCHED, OPENING])
def test_letters_and_texts_are_asked_behind_an_empty_thought(template: str, tmp_path: Path) -> None:
    """The model goes on with "heart" behind an empty line alone, and with a thought behind anything else."""
    path = scripted(tmp_path, WORDS, template=template)
    prompt = {"body": [["q", False]], "cue": [], "continuations": ["heart", "lung"]}
    with LocalModel(path, LOADING) as model:
        model.prepare(Wanted((prompt,), chat=True))
        ((_, (answer,)),) = model.run(0, 1)
    assert answer["scores"][0] > -0.1 > answer["scores"][1]


def test_a_cue_ends_the_question_where_the_model_thinks(thinker: Path) -> None:
    """An answer that is begun can't be thought about: the template opens the answer behind the cue."""
    prompt = {"body": [["q\n", False]], "cue": [["heart", True]], "continuations": []}
    with LocalModel(thinker, LOADING) as model:
        for think, response in ((None, "heart"), (False, "")):  # of "heart" as the beginning, the end comes next
            model.prepare(Wanted((prompt,), chat=True, max_tokens=20, think=think, newline_ends=False))
            ((_, (answer,)),) = model.run(0, 1)
            assert (answer["response"], answer["thought"] is None) == (response, think is False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"think": False}, "--no-think: reaches the model's chat template; give --chat"),
        ({"template_vars": {"x": 1}}, "--template-var: reaches the model's chat template; give --chat"),
        ({"think": True, "chat": True}, "--think: is for --method generate"),
        ({"think_budget": 3, "chat": True}, "--think-budget: is for --method generate"),
        ({"think_budget": 3, "methods": ("generate",), "endpoint": "http://h"}, "--think-budget: can't be kept"),
        ({"think_budget": 0, "think": True, "methods": ("generate",), "chat": True}, "exclude each other"),
        ({"template_vars": ["messages=1"], "chat": True}, "set by jmedlite itself"),
    ],
)
def test_senseless_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        BenchOptions(**options)
