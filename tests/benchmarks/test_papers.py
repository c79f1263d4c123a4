"""Scoring as the papers do: item for item what japanese-lm-med-harness comes to, its rule told anew.

Nothing of that program is here. The rule was read off it (commit ef9544a): which line of a response counts, commas,
equal choices, ties, what is an error. The questions are made up so that all of these occur.
"""

from __future__ import annotations

import json
import random
from difflib import SequenceMatcher
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from jmedlite.api.bench import make_asks
from jmedlite.api.bench_options import BenchOptions
from jmedlite.base.errors import DataError, UsageError
from jmedlite.benchmarks.prompts.presets import PRESETS, PROMPTS
from jmedlite.benchmarks.prompts.requests import as_text
from jmedlite.benchmarks.report.report import report
from jmedlite.benchmarks.scoring import papers_line, score
from jmedlite.benchmarks.tasks.items import Item
from tests.support import runs as run_builder

WORDS = [
    "心筋梗塞",
    "肺 炎",
    "1,200 mL",
    "β遮断薬",
    "No. 5A",
    "fever, cough",
    "sepsis",
    "40 mg/dL",
    "A",
    "胃癌",
    "0.9%",
    "肝",
]
TAILS = ["。", ".", "", " ", "\n\n解説：…", "\n### 応答：\n肺 炎", "\n### Answer: sepsis", "\r\nsecond line", "\n\n"]
HEADS = ["", "\n", " 　", "答えは", "Answer: ", "### Answer:", "最終的な答え：", "1. ", "### 応答：\n"]


def told_anew(prompt: str, response: str, choices: list[str], right: list[str]) -> dict[str, Any]:
    """One line of the program's result, from what it prints and saves."""
    text = prompt + response
    present = [m for m in ("### 応答：\n", "### Answer:", "### Response:") if m in text]
    if present:
        after = text.index(present[0]) + len(present[0])
        end = text.find(present[0], after)
        text = text[after:] if end < 0 else text[after:end]
    text = text.strip()
    line = (text[: text.index("\n")] if "\n" in text else text).strip()
    joined = ",".join(right)
    without = "".join(c for c in line if c != ".").strip()
    near = [
        (SequenceMatcher(None, c, without).ratio() + SequenceMatcher(None, without, c).ratio()) / 2 for c in choices
    ]
    pieces = joined.split(",")
    if len(pieces) > len(choices):  # more is asked for than there is: an error, counted as wrong
        return {
            "line": line,
            "exact": "".join(c for c in joined if c != ".").strip() == without,
            "near": near,
            "right": False,
        }
    left = list(range(len(choices)))
    taken: list[str] = []
    for _ in pieces:
        best = max(left, key=lambda i: (near[i], -i))
        left.remove(best)
        taken.append(choices[best])
    return {"line": line, "exact": "".join(c for c in joined if c != ".").strip() == without, "near": near,
            "right": sorted(taken) == sorted(pieces)}  # fmt: skip


def made_up(rng: random.Random) -> tuple[Item, str]:
    """A question with choices that hold commas, full stops and each other, and a response to it."""
    choices = [" ".join(rng.sample(WORDS, rng.randint(1, 2))) for _ in range(rng.choice([4, 5, 5, 5]))]
    if rng.random() < 0.1:
        choices[rng.randrange(len(choices))] = choices[0]
    answers = tuple(sorted(rng.sample(range(len(choices)), rng.choice([1, 1, 1, 2, 3]))))
    said = rng.choice([
        rng.choice(choices), ",".join(choices), "、".join(rng.sample(choices, 2)), rng.choice(choices)[:3], "",
        ",".join(choices[i] for i in answers), "".join(rng.sample(WORDS, 4)), "abcde"[rng.randrange(5)],
    ])  # fmt: skip
    item = Item(str(rng.random()), "問題", tuple(choices), answers, rng.choice(["ja", "en"]))
    return item, rng.choice(HEADS) + said + rng.choice(TAILS)


@pytest.mark.parametrize("n", [200, pytest.param(2000, marks=pytest.mark.oracle)])
def test_responses_item_for_item(n: int) -> None:
    rng = random.Random(17)
    seen = {"right": 0, "exact": 0, "comma": 0, "equal": 0, "other line": 0, "tie": 0}
    for _ in range(n):
        item, response = made_up(rng)
        prompt = PROMPTS[item.lang].text
        right = [item.choices[i] for i in item.answers]
        expected = told_anew(prompt, response, list(item.choices), right)
        answer = {"n_prompt": 9, "response": response, "stop": "eos"}
        found = score("generate", item, tuple(range(len(item.choices))), answer, prompt)
        assert (found.correct, found.exact) == (expected["right"], expected["exact"]), (item, response)
        assert found.scores == pytest.approx(expected["near"], abs=5.1e-7)
        assert papers_line(prompt, response) == expected["line"]
        plain = score("generate", item, tuple(range(len(item.choices))), answer)
        seen["right"] += expected["right"]
        seen["exact"] += expected["exact"]
        seen["comma"] += any("," in text for text in right)
        seen["equal"] += len(set(item.choices)) < len(item.choices)
        seen["other line"] += plain.scores != found.scores
        seen["tie"] += any(a == b for a, b in pairwise(sorted(expected["near"])))
    assert all(n / 40 < count < n * 0.95 for count in seen.values()), seen


def test_a_right_answer_with_a_comma_can_not_be_met() -> None:
    item = Item("1", "q", ("fever, cough", "sepsis", "a", "b", "c"), (0,), "en")
    answer = {"n_prompt": 9, "response": "fever, cough\n", "stop": "eos"}
    found = score("generate", item, (0, 1, 2, 3, 4), answer, PROMPTS["en"].text)
    assert (found.correct, found.exact, len(found.picks or ())) == (False, True, 2)
    assert score("generate", item, (0, 1, 2, 3, 4), answer).correct


# ---------------------------------------------------------------------------------------------------------- the preset


def task(path: Path) -> str:
    rows = [
        {"id": "five", "question": "どれか。", "choices": list("vwxyz"), "answer": 1},
        {"id": "four", "question": "どれか。", "choices": list("wxyz"), "answer": 1},
        {"id": "long", "question": "長" * 1025, "choices": list("vwxyz"), "answer": 1},
    ]
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    return f"exam={path}"


def test_what_the_preset_sets(tmp_path: Path) -> None:
    options = BenchOptions(preset="jmedllm")
    (dataset,), (ask,) = make_asks([task(tmp_path / "t.jsonl")], options, None)
    assert (ask.method, options.max_tokens, ask.shots, ask.as_papers) == ("generate", 256, (), True)
    assert [i.id for i in dataset.items] == ["five", "four"]
    assert [e.reason for e in dataset.left] == ["has over 1,024 characters (the papers' program passes over it)"]
    prompt = ask.prompts()[0]
    assert as_text([*prompt["body"], *prompt["cue"]]).endswith("\n### 入力：\nどれか。\nv,w,x,y,z\n### 応答：\n")
    assert not ask.template.own  # so that a line's end is not the answer's
    assert options.describe()["preset"] == "jmedllm"


def test_five_choices_of_the_exams_alone(tmp_path: Path) -> None:
    row = {"problem_id": "112A1", "problem_text": "どれか。", "choices": list("vwxyz"), "text_only": True,
           "answer": ["b"], "points": "1"}  # fmt: skip
    path = tmp_path / "2018" / "112-A.jsonl"
    path.parent.mkdir()
    lines = [row, row | {"problem_id": "112A2", "choices": list("uvwxyz")}]
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in lines), encoding="utf-8")
    (dataset,), _ = make_asks([f"igakuqa={tmp_path}"], BenchOptions(preset="jmedlora"), None)
    assert [i.id for i in dataset.items] == ["112A1"]
    assert [e.reason for e in dataset.left] == ["has 6 choices, not 5"]
    path.write_text(json.dumps(row | {"problem_text": "長" * 2000}) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="no question that the papers' program asks"):
        make_asks([f"igakuqa={tmp_path}"], BenchOptions(preset="jmedlora"), None)


@pytest.mark.parametrize(("changes", "flag"), [
    ({"methods": ("text",)}, "--method"), ({"max_tokens": 32}, "--max-tokens"), ({"shots": 1}, "--shots"),
    ({"permutations": 2}, "--permutations"), ({"template": "x"}, "--template"), ({"chat": True}, "--chat"),
    ({"five_choice": True}, "--five-choice"),
])  # fmt: skip
def test_what_the_preset_leaves_no_room_for(changes: dict[str, Any], flag: str) -> None:
    with pytest.raises(UsageError, match=f"--preset jmedllm: asks as its paper did and sets {flag} itself"):
        BenchOptions(preset="jmedllm", **changes)


def test_the_table_beside_the_published_numbers(tmp_path: Path) -> None:
    folder = run_builder.small(
        tmp_path / "run", ("BF16", "Q4_K_M"), n=5, methods=("generate",), tasks=("igakuqa-ja", "medqa-en"),
        settings={"preset": "jmedllm"},
    )  # fmt: skip
    found = report([folder])
    (table,) = found.document["papers"]
    own, published = table["rows"][:2], table["rows"][2:]
    assert (table["tasks"], [r["model"] for r in own]) == (["igakuqa-ja", "medqa-en"], ["qwen-BF16", "qwen-Q4_K_M"])
    assert all(c and c["n"] == 5 for r in own for c in r["cells"])
    qwen = published[0]["cells"]
    assert published[0]["published"] == "Qwen2-7B-Instruct"
    assert [c and (c["share"], c["n"]) for c in qwen] == [(0.446, 1450), (0.369, 1273)]
    assert qwen[0]
    assert [round(x, 3) for x in qwen[0]["interval"] or ()] == [0.421, 0.472]
    assert "Beside the published numbers" in found.markdown("en")
    assert "論文の数値との比較" in found.html("ja")
    assert "44.6 (42.1 … 47.2)" in found.markdown("en")
    assert not report([run_builder.small(tmp_path / "other", n=5, methods=("generate",))]).document["papers"]


def test_published_numbers_are_of_tasks_that_the_preset_asks() -> None:
    for preset in PRESETS.values():
        for published in preset.published:
            for name, percent in published.accuracies.items():
                assert name.rpartition("-")[0] in preset.tasks
                assert 0 < percent < 100
