"""The report: its numbers against plain code, its verdicts, its page and other forms, and its commands."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import math
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import yaml

from jmedlite.base.errors import UsageError
from jmedlite.benchmarks.report import labels, plots
from jmedlite.benchmarks.report import page as report_page
from jmedlite.benchmarks.report.report import Report, recommendation, report
from tests.support import runs as run_builder
from tests.support.commands import run_text

JS = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three levels, two languages, three ways of asking, two kinds of text."""
    folder = tmp_path_factory.mktemp("report") / "run"
    names = [f"qwen-{level}" for level in ("BF16", "Q8_0", "Q4_K_M")]
    distance = [line for text in ("exam-ja", "notes") for line in run_builder.distances(names, text)]
    return run_builder.small(folder, n=40, methods=("letter", "text", "generate"), distance=distance)


@pytest.fixture(scope="module")
def found(small: Path) -> Report:
    return report([small], ram_bytes=int(8e9))


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def view(document: dict[str, Any], key: str = "letter") -> dict[str, Any]:
    return next(v for v in document["views"] if v["key"] == key)


def result(document: dict[str, Any], model: str, key: str = "letter") -> dict[str, Any]:
    return next(r for r in view(document, key)["results"] if r["model"] == model)


# -------------------------------------------------------------------------------------------------------- the numbers


def test_every_number_again_from_the_saved_lines(small: Path, found: Report) -> None:
    """With plain code: accuracies, differences, McNemar, flips, contraindicated choices, medians."""
    items = [a for a in lines(small, "items") if a["method"] == "letter"]
    questions = {(q["task"], q["id"]): q for q in lines(small, "questions")}
    by = {m: {(a["task"], a["id"]): a for a in items if a["model"] == m} for m in {a["model"] for a in items}}
    base = by["qwen-BF16"]
    for model, answers in by.items():
        r = result(found.document, model)
        right = sum(a["correct"] for a in answers.values())
        assert (r["n"], r["n_items"], r["share"]) == (40, 80, right / 80)
        z = 1.959963984540054
        p, n = right / 80, 40
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        assert r["interval"] == pytest.approx([(p + z * z / 80) / (1 + z * z / n) - half * s for s in (1, -1)])
        assert [b["share"] for b in r["breakdowns"]["lang"]] == [
            sum(a["correct"] for (t, _), a in answers.items() if t == task) / 40 for task in ("exam-en", "exam-ja")
        ]
        bad = {k: a for k, a in answers.items() if set(a["picks"]) & set(questions[k]["contraindicated"])}
        assert r["contraindicated"]["taken"] == len(bad)
        assert r["contraindicated"]["harm_weighted"] == pytest.approx((right - len(bad)) / 80)
        if model == "qwen-BF16":
            assert r["comparison"] is None
            continue
        c = r["comparison"]
        assert c["difference"] == pytest.approx((right - sum(a["correct"] for a in base.values())) / 80)
        shift = [sum(answers[t, f"q{i}"]["correct"] - base[t, f"q{i}"]["correct"] for t in ("exam-ja", "exam-en"))
                 for i in range(40)]  # fmt: skip
        lost, won = sum(s < 0 for s in shift), sum(s > 0 for s in shift)
        tail = sum(math.comb(lost + won, k) for k in range(min(lost, won) + 1)) / 2 ** (lost + won)
        assert (c["questions_lost"], c["questions_gained"]) == (lost, won)
        assert c["p"] == pytest.approx(min(1, 2 * tail))
        changes = [(base[k]["correct"], a["correct"], base[k]["picks"] == a["picks"]) for k, a in answers.items()]
        assert c["flips"] == {
            "right_to_wrong": sum(b and not a for b, a, _ in changes),
            "wrong_to_right": sum(a and not b for b, a, _ in changes),
            "wrong_to_wrong": sum(not a and not b and not same for b, a, same in changes),
            "unchanged": sum(a == b and (a or same) for b, a, same in changes),
        }
        low, high = c["interval"]
        assert low <= c["difference"] <= high and c["loss_bound"] > -c["difference"]
    measured = [m for m in lines(small, "measures") if m["model"] == "qwen-Q8_0"]
    (model,) = [m for m in found.document["models"] if m["key"] == "qwen-Q8_0"]
    assert model["measures"]["prompt_tps"]["median"] == median(m["prompt_tps"] for m in measured)
    assert model["measures"]["question_seconds"]["n"] == 24


def test_items_add_up(found: Report) -> None:
    for v in found.document["views"]:
        for r in v["results"]:
            for a in r["accounting"]:
                assert a["n_items"] == a["scored"] + a["unparsed"] + a["too_long"] + a["missing"] + a["excluded"] == 41


def test_baselines_on_the_same_items(small: Path, found: Report) -> None:
    answers = [q["answers"][0] for q in lines(small, "questions") if not q["excluded"]]
    base = view(found.document)["baselines"]
    assert base["chance"] == pytest.approx(0.2)
    assert base["first_choice"] == answers.count(0) / len(answers)
    assert base["most_frequent"] == max(answers.count(i) for i in range(5)) / len(answers)
    assert base["human"] == pytest.approx(sum(80 + i % 10 for i in range(40)) / 40 / 100)
    generate = view(found.document, "generate")["baselines"]
    assert generate["empty_output"] == base["first_choice"]  # nothing is nearest, so the first shown is taken
    assert 0 <= generate["all_choices"] <= 1


def test_holm_is_over_the_levels(found: Report) -> None:
    ps = [r["comparison"] for r in view(found.document)["results"] if r["comparison"]]
    low, high = sorted(ps, key=lambda c: c["p"])
    assert low["p_holm"] == min(1, 2 * low["p"]) and high["p_holm"] == max(low["p_holm"], high["p"])


def test_permutations_are_averaged_by_question(tmp_path: Path) -> None:
    questions = [run_builder.question(i) for i in range(30)]
    models = [run_builder.model("BF16"), run_builder.model("Q4_K_M")]
    items = [
        run_builder.answer(q, m["name"], (i + p) % 3 != rank, permutation=p)
        for rank, m in enumerate(models) for i, q in enumerate(questions) for p in range(3)
    ]  # fmt: skip
    folder = run_builder.write(tmp_path / "run", models, questions, items, settings={"permutations": 3})
    r = result(report([folder]).document, "qwen-Q4_K_M")
    assert (r["n"], r["n_answers"], r["share"]) == (30, 90, pytest.approx(2 / 3))
    # each question is right in two orders of three under both models: no question is lost or gained
    assert (r["comparison"]["questions_lost"], r["comparison"]["difference"]) == (0, 0)
    assert r["comparison"]["flips"]["right_to_wrong"] == 30


# --------------------------------------------------------------------------------------------------------- the verdict


def verdict_of(folder: Path, **options: Any) -> dict[str, Any]:
    (found,) = report([folder], **options).document["verdicts"]
    return dict(found)


def level_run(folder: Path, losses: dict[str, int], n: int = 868, **more: Any) -> Path:
    """Levels that lose so many questions and gain none."""
    models = [run_builder.model(level) for level in losses]
    questions = [run_builder.question(i, contraindicated=[]) for i in range(n)]
    items = [
        run_builder.answer(q, m["name"], losses[m["level"]] <= i < n // 2)
        for m in models for i, q in enumerate(questions)
    ]  # fmt: skip
    measures = [run_builder.measure(m["name"], r) for r in range(2) for m in models]
    return run_builder.write(folder, models, questions, items, **{"measures": measures, **more})


def test_the_smallest_level_without_meaningful_loss(tmp_path: Path) -> None:
    folder = level_run(tmp_path / "run", {"BF16": 0, "Q8_0": 0, "Q4_K_M": 8, "Q2_K": 90})
    v = verdict_of(folder, ram_bytes=int(8e9))
    assert (v["kind"], v["key"], v["level"], v["reference"]) == ("recommended", "qwen-Q4_K_M", "Q4_K_M", "qwen-BF16")
    assert v["reason"]["en"].startswith(
        "Q4_K_M: its accuracy is shown to be less than 2 points below that of its own unquantized answers on 868 exam "
        "questions; not a statement about safety at the bedside. The difference is −0.9 points (−1.8 … −0.2, 95 % for "
        "all 3 levels together); file 4.70 GB; 5.24 GB of memory in use at most, fits 8 GB of RAM"
    )
    assert v["reason"]["ja"].startswith(
        "Q4_K_M：試験問題868問での正答率は、量子化前の同じモデルの解答と比べて2ポイント以上は低下しないことが示されました。"
        "臨床現場での安全性を示すものではありません。差は−0.9ポイント（全3レベルを合わせた95％信頼区間−1.8～−0.2）。"
        "ファイル 4.70 GB、"
    )
    shown = {c["model"]: c["no_meaningful_loss"] for c in v["candidates"]}
    assert shown == {"qwen-BF16": None, "qwen-Q8_0": True, "qwen-Q4_K_M": True, "qwen-Q2_K": False}
    fits = {c["model"]: c["fits_ram"] for c in v["candidates"]}
    assert fits == {"qwen-BF16": False, "qwen-Q8_0": False, "qwen-Q4_K_M": True, "qwen-Q2_K": True}
    assert verdict_of(folder, margin=0.8)["key"] == "qwen-Q8_0"
    assert verdict_of(folder, max_latency=0.9)["kind"] == "none_shown"
    v = verdict_of(folder, reference="Q8_0")
    assert (v["reference"], v["key"]) == ("qwen-Q8_0", "qwen-Q4_K_M") and "of the answers of Q8_0" in v["reason"]["en"]


def test_of_levels_that_need_as_little_memory_the_smallest_file(tmp_path: Path) -> None:
    folder = level_run(tmp_path / "run", {"BF16": 0, "Q5_K_M": 0, "Q4_K_M": 0})
    path = folder / "measures.jsonl"
    for memory, chosen in ((5_240_000_000, "qwen-Q4_K_M"), (5_300_000_000, "qwen-Q5_K_M")):  # 1.7 and 2.9 % more
        rounds = lines(folder, "measures")
        for m in rounds:
            m["peak_rss_bytes"] = memory if m["model"] == "qwen-Q4_K_M" else 5_150_000_000
        path.write_text("".join(json.dumps(m) + "\n" for m in rounds), encoding="utf-8")
        assert verdict_of(folder)["key"] == chosen


def test_when_nothing_qualifies(tmp_path: Path) -> None:
    folder = level_run(tmp_path / "run", {"BF16": 0, "Q4_K_M": 60, "Q2_K": 90})
    v = verdict_of(folder, ram_bytes=int(8e9))
    assert (v["kind"], v["key"]) == ("none_shown", None)
    assert "The nearest, Q4_K_M: difference −6.9" in v["reason"]["en"]
    assert re.search(r"could have shown a loss of \d\.\d points", v["reason"]["en"])
    v = verdict_of(folder)
    assert (v["kind"], v["key"]) == ("reference", "qwen-BF16")
    v = verdict_of(folder, ram_bytes=int(2e9), max_latency=0.5)
    assert (v["kind"], v["key"]) == ("none_fits", None)
    assert "RAM 2 GB; 0.5 s a question" in v["reason"]["en"] and "Q2_K" in v["reason"]["en"]


def test_a_constraint_on_what_was_not_measured_is_not_met(tmp_path: Path) -> None:
    folder = level_run(tmp_path / "run", {"BF16": 0, "Q8_0": 0}, measures=())
    assert verdict_of(folder)["key"] == "qwen-Q8_0"
    v = verdict_of(folder, ram_bytes=int(64e9))
    assert (v["kind"], v["key"]) == ("not_measured", None) and "memory in use not measured" in v["reason"]["en"]
    assert "does not mean that none fits" in v["reason"]["en"] and "という意味ではありません" in v["reason"]["ja"]
    assert {c["meets_constraints"] for c in v["candidates"]} == {None}


def test_no_disagreement_in_few_questions_proves_nothing(tmp_path: Path) -> None:
    v = verdict_of(level_run(tmp_path / "run", {"BF16": 0, "Q8_0": 0}, n=20))
    assert (v["kind"], v["key"]) == ("reference", "qwen-BF16")
    assert "difference 0.0 points (0.0 … 0.0, 95 %), n = 20" in v["reason"]["en"]


def test_one_level_and_none(tmp_path: Path) -> None:
    one = report([run_builder.small(tmp_path / "one", levels=("Q4_K_M",), n=20)])
    assert one.document["verdicts"][0]["kind"] == "one_level"
    assert "Only Q4_K_M has answers: accuracy" in one.document["verdicts"][0]["reason"]["en"]
    empty = report([run_builder.small(tmp_path / "empty", n=5, keep=lambda line: False, measures=(), noise=())])
    assert (empty.document["verdicts"][0]["kind"], empty.document["views"]) == ("empty", [])
    for found in (one, empty):
        for lang in ("en", "ja"):
            assert labels.page_text(lang)["h_method"] in found.html(lang)
            assert found.markdown(lang)
        assert found.csv() and found.model_card() and json.loads(found.json())


def test_an_unfinished_run_says_so(tmp_path: Path) -> None:
    folder = run_builder.small(tmp_path / "run", n=30, keep=lambda a: a["model"] != "qwen-Q4_K_M" and a["id"] != "q7")
    document = report([folder]).document
    told = " ".join(w["en"] for w in document["warnings"])
    assert "run: unfinished, 116 of 180 answers are there" in told and "No answer yet from qwen-Q4_K_M." in told
    assert [a["missing"] for a in result(document, "qwen-Q4_K_M")["accounting"]] == [30, 30]
    assert result(document, "qwen-Q8_0")["comparison"]["n"] == 29
    assert "unfinished" in report([folder]).html("en")


def test_too_long_and_unparsed(tmp_path: Path) -> None:
    folder = run_builder.small(tmp_path / "run", n=20, methods=("generate",), tasks=("exam-ja",))
    found = lines(folder, "items")
    nothing = {"scores": None, "picks": None, "correct": None, "margin": None}
    for a in found:
        if a["id"] == "q1":
            a |= {"status": "too long", "n_prompt": 9000, **nothing}
        if a["id"] in ("q2", "q3"):
            a |= {"status": "unparsed", "parsed": False, "response": "?"}
    (folder / "items.jsonl").write_text("".join(json.dumps(a) + "\n" for a in found), encoding="utf-8")
    document = report([folder]).document
    (a,) = result(document, "qwen-BF16", "generate")["accounting"]
    assert (a["scored"], a["unparsed"], a["too_long"], a["excluded"], a["n_items"]) == (17, 2, 1, 1, 21)
    told = " ".join(w["en"] for w in document["warnings"])
    assert "exam-ja: up to 10.5 % of the responses (qwen-Q8_0) name no choice" in told
    assert [v["key"] for v in document["views"]] == ["generate", "generate_exact"]


def test_levels_that_only_guess(tmp_path: Path) -> None:
    folder = level_run(tmp_path / "run", {"BF16": 400, "Q8_0": 400}, n=868)
    (told,) = (w["en"] for w in report([folder]).document["warnings"] if "guess" in w["en"])
    assert told.startswith("qwen-BF16 is right in 3.9 % (95 % ") and "more than 20.0 %" in told


def test_a_run_that_could_stop_early_goes_by_the_anytime_test(tmp_path: Path) -> None:
    early = {"stop_when_decided": 2.0}
    many = level_run(tmp_path / "many", {"BF16": 0, "Q8_0": 0}, n=868, settings=early)
    few = level_run(tmp_path / "few", {"BF16": 0, "Q8_0": 0}, n=190, settings=early)
    assert verdict_of(many)["key"] == "qwen-Q8_0"
    assert verdict_of(few)["kind"] == "reference"
    c = result(report([few]).document, "qwen-Q8_0")["comparison"]
    assert c["loss_bound"] < 0.02 and c["no_meaningful_loss"] is False and c["sequential"]["decided"] is None
    assert "anytime-valid" in " ".join(w["en"] for w in report([few]).document["warnings"])


def test_reference_that_is_none(small: Path) -> None:
    with pytest.raises(UsageError, match="--reference Q9: is none of the models"):
        report([small], reference="Q9")
    for reference in ("qwen-Q8_0", "qwen-Q8_0.gguf", "q8_0"):
        assert report([small], reference=reference).document["verdicts"][0]["reference"] == "qwen-Q8_0"


@pytest.mark.parametrize("options", [{"margin": 0}, {"margin": float("nan")}, {"max_latency": -1}])
def test_usage(small: Path, options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="expected"):
        report([small], **options)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------- several folders


def test_two_models_are_compared_on_the_same_questions(tmp_path: Path) -> None:
    one = run_builder.small(tmp_path / "one", n=30)
    two = run_builder.small(tmp_path / "two", n=30, base="llama", seed=1)
    document = report([one, two]).document
    assert [v["family"] for v in document["verdicts"]] == ["qwen", "llama"]
    pairs = {(c["model"], c["against"]): c["n"] for c in view(document)["across"]}
    assert pairs == {(f"llama-{x}", f"qwen-{x}"): 30 for x in ("BF16", "Q8_0", "Q4_K_M")}
    (v,) = report([one, two], reference="qwen-BF16").document["verdicts"]
    assert {c["model"].split("-")[0] for c in v["candidates"]} == {"qwen", "llama"}
    assert "llama" in report([one, two]).html("ja")


def test_with_and_without_imatrix(tmp_path: Path) -> None:
    """The same names from other files: told apart by the folder, compared with the one reference."""
    plain = run_builder.small(tmp_path / "plain", n=30)
    models = [run_builder.model("Q4_K_M", sha256="f" * 64, imatrix="qwen.imatrix.gguf")]
    questions = [run_builder.question(i, t) for t in ("exam-ja", "exam-en") for i in range(30)]
    items = [run_builder.answer(q, "qwen-Q4_K_M", True) for q in questions]
    better = run_builder.write(tmp_path / "better", models, questions, items)
    document = report([plain, better]).document
    keys = [m["key"] for m in document["models"]]
    assert keys == ["qwen-BF16", "qwen-Q8_0", "qwen-Q4_K_M (plain)", "qwen-Q4_K_M (better)"]
    assert result(document, "qwen-Q4_K_M (better)")["comparison"]["reference"] == "qwen-BF16"
    assert result(document, "qwen-Q4_K_M (better)")["comparison"]["n"] == 30


def test_the_same_models_on_other_tasks_are_one(tmp_path: Path) -> None:
    ja = run_builder.small(tmp_path / "ja", n=30, tasks=("exam-ja",))
    en = run_builder.small(tmp_path / "en", n=30, tasks=("exam-en",))
    apart, together = report([ja, en]).document, report([run_builder.small(tmp_path / "both", n=30)]).document
    assert len(apart["models"]) == 3 and not apart["warnings"]
    assert view(apart)["results"] == view(together)["results"]
    assert view(apart)["languages"] == view(together)["languages"] != []


def test_two_models_on_different_tasks(tmp_path: Path) -> None:
    """Nothing pairs; every form is still written, and says for each model only what it was asked."""
    one = run_builder.small(tmp_path / "one", n=30, tasks=("exam-ja",))
    two = run_builder.small(tmp_path / "two", n=30, tasks=("exam-en",), base="llama")
    found = report([one, two])
    assert [v["family"] for v in found.document["verdicts"]] == ["qwen", "llama"]
    assert not view(found.document)["across"]
    assert [w["en"].split(":")[0] for w in found.document["warnings"]] == [
        "The models were not all asked the same questions"
    ]
    assert [axis["front"] for axis in found.document["pareto"].values()] == [[], []]
    for lang in ("en", "ja"):
        assert "exam-en" in found.html(lang)
        assert "\nqwen: " in found.markdown(lang) and "\nllama: " in found.markdown(lang)
    assert {row["family"] for row in csv.DictReader(io.StringIO(found.csv().lstrip("\ufeff")))} == {"qwen", "llama"}


def test_what_differs_is_said_and_not_paired(tmp_path: Path) -> None:
    one = run_builder.small(tmp_path / "one", n=10, levels=("BF16",))
    two = run_builder.small(tmp_path / "two", n=10, levels=("Q4_K_M",), settings={"kv_type": "q8_0"})
    head = json.loads((two / "run.json").read_text(encoding="utf-8"))
    head["asks"][0]["template"]["sha256"] = "another"
    head["tasks"][1]["files"][0]["sha256"] = "other data"
    (two / "run.json").write_text(json.dumps(head), encoding="utf-8")
    document = report([one, two]).document
    told = " ".join(w["en"] for w in document["warnings"])
    assert "exam-ja, letter: the runs used different prompts" in told
    assert "exam-en: the runs used different data files" in told
    assert 'differ in kv_type ("f16", "q8_0")' in told
    assert result(document, "qwen-Q4_K_M")["comparison"]["n_items"] == 10  # the English ones alone


def test_what_a_server_decides_is_no_difference(tmp_path: Path) -> None:
    one = run_builder.small(tmp_path / "one", n=10, settings={"n_ctx": None})
    two = run_builder.small(tmp_path / "two", n=10, base="llama", settings={"n_ctx": 2048, "kv_type": None})
    told = " ".join(w["en"] for w in report([one, two]).document["warnings"])
    assert "differ in n_ctx (null, 2048)" in told
    assert "kv_type" not in told


# ------------------------------------------------------------------------------------------------------------ the page


class Page(HTMLParser):
    """The page's numbers, its other text, and its tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.numbers: list[tuple[float, str]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = self.script = ""
        self._value: str | None = None
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "br", "input"):
            self._open.append(tag)
        if tag == "data":
            self._value = dict(attrs)["value"]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag == "data":
            self._value = None

    def handle_data(self, data: str) -> None:
        if self._value is not None:
            self.numbers.append((float(self._value), data))
        elif "script" in self._open:
            self.script += data
        elif "style" not in self._open:
            self.text += data


def numbers_of(value: Any) -> Iterator[float]:
    """Every number of a JSON document."""
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        yield float(value)
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from numbers_of(part)


def says(text: str, value: float) -> bool:
    """Whether a number as written is `value`, rounded, in a unit of the page."""
    if text.startswith("<"):
        return value < float(text[1:])
    plain = text.replace(",", "").replace("−", "-").lstrip("+")
    digits = len(plain.partition(".")[2])
    return any(abs(float(plain) - value * s) <= 0.5000001 * 10**-digits for s in (1, 100, 1e-9, 1e-6, 1e-3, 1e3))


@pytest.mark.parametrize("lang", ["en", "ja"])
def test_every_number_on_the_page_is_in_the_json(found: Report, lang: str) -> None:
    page = Page(found.html(lang))
    known = set(numbers_of(json.loads(found.json())))
    assert len(page.numbers) > 400
    for value, text in page.numbers:
        assert value in known, (value, text)
        assert says(text, value), (value, text)
    (verdict,) = found.document["verdicts"]
    for text in re.findall(r"(?<![\w.])[+−]?\d[\d,]*(?:\.\d+)?(?![\w])", verdict["reason"][lang].replace("、", " ")):
        assert text in ("95",) or any(says(text, v) for v in known), text


def policy(page: Page) -> dict[str, str]:
    """What the page lets the browser do."""
    (told,) = (a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv"))
    return dict(part.strip().split(" ", 1) for part in str(told).split(";"))


def test_nothing_is_loaded_and_one_known_script_runs(found: Report) -> None:
    ours = (Path(report_page.__file__).parent / "report.js").read_text(encoding="utf-8").strip()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval|Function|fetch|XMLHttp|import", ours)
    for lang in ("en", "ja"):
        html = found.html(lang)
        page = Page(html)
        assert not {"iframe", "object", "embed", "img", "base", "form"} & {tag for tag, _ in page.tags}
        assert [a for tag, a in page.tags if tag == "script"] == [{}] and page.script == ours
        digest = base64.b64encode(hashlib.sha256(ours.encode()).digest()).decode()
        assert policy(page) == {"default-src": "'none'", "style-src": "'unsafe-inline'", "img-src": "data:",
                                "script-src": f"'sha256-{digest}'"}  # fmt: skip
        for tag, attributes in page.tags:
            for name, value in attributes.items():
                assert not name.startswith("on"), (tag, name)
                if name in ("src", "href", "xlink:href", "action", "poster", "srcset"):
                    assert value and (value.startswith("#") or value == "data:,"), (tag, name, value)
        assert "@import" not in html
        assert set(re.findall(r"url\((.)", html)) <= {"#"}
        ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
        assert len(ids) == len(set(ids))


def test_items_are_listed_as_their_method_counts_first(small: Path, found: Report) -> None:
    """Of `text`, per token: the analysis that the verdict goes by is the one whose flips are to be seen."""
    listed = {v["key"]: v for v in found.document["views"] if v["has_items"]}
    assert list(listed) == ["letter", "text_per_token", "generate"]
    answers = {(a["model"], a["task"], a["id"]): a for a in lines(small, "items") if a["method"] == "text"}
    v = listed["text_per_token"]
    for item in [*v["flipped"], *v["unchanged"]]:
        for model, outcome in item["outcomes"].items():
            assert outcome["correct"] == answers[model, item["task"], item["id"]]["per_token"]["correct"]
        given = item["before"]
        a = answers[given["model"], item["task"], item["id"]]
        terms = [math.exp(score / n) for score, n in zip(a["scores"], a["n_tokens"], strict=True)]
        assert given["picks"] == a["per_token"]["picks"]
        assert given["probabilities"] == pytest.approx([t / sum(terms) for t in terms], abs=1e-5)


def test_items_with_their_outcomes(small: Path, found: Report) -> None:
    """Flipped or not, every item is there once, with what became of it under every model."""
    answers = {(a["model"], a["task"], a["id"]): a for a in lines(small, "items") if a["method"] == "letter"}
    v = view(found.document)
    there = [*v["flipped"], *v["unchanged"]]
    assert len({(i["task"], i["id"]) for i in there}) == len(there) == 80 == v["n_flipped"] + v["n_unchanged"]
    for item in there:
        for model, outcome in item["outcomes"].items():
            a = answers[model, item["task"], item["id"]]
            assert outcome["correct"] == a["correct"] and outcome["within_noise"] == (a["margin"] < 0.11)
        assert bool(item.get("changed")) == any(o["kind"] for o in item["outcomes"].values())
    page = Page(found.html("en"))
    told = [a for tag, a in page.tags if tag == "details" and a.get("class") == "item"]
    first = there[0]
    codes = {None: "-", "right_to_wrong": "a", "wrong_to_right": "b", "wrong_to_wrong": "c"}
    assert str(told[0]["data-answers"]).split() == [
        f"{i}{'r' if o['correct'] else 'w'}{codes[o['kind']]}" for i, o in enumerate(first["outcomes"].values())
    ]


def test_files_by_size_whatever_they_are_called(tmp_path: Path) -> None:
    """Two files of one level: the smaller and nearer one is named beside the other, and one as large."""
    sizes = {"BF16": 15.2, "Q4_K_M": 5.0, "UD-Q4_K_XL": 4.95, "Q3_K_L": 4.0}
    models = [
        run_builder.model("BF16" if x == "BF16" else "Q4_K_M", name=f"qwen-{x}", label=x, n_bytes=int(1e9 * size),
                          made_here=False, quantized_by="Unsloth <b>" if "UD" in x else None, sha256=f"{i:064x}")
        for i, (x, size) in enumerate(sizes.items())
    ]  # fmt: skip
    questions = [run_builder.question(i) for i in range(10)]
    items = [run_builder.answer(q, m["name"], True) for m in models for q in questions]
    distance = [line for text in ("a", "b") for line in run_builder.distances([m["name"] for m in models], text)]
    for line in distance:
        if line["model"] == "qwen-UD-Q4_K_XL":
            line["kl_mean"] /= 10
    found = report([run_builder.write(tmp_path / "run", models, questions, items, distance=distance)])
    assert [(x["model"], x["as_large"], x["nearer"]) for x in found.document["by_size"]] == [
        ("qwen-Q3_K_L", [], []), ("qwen-UD-Q4_K_XL", ["qwen-Q4_K_M"], []),
        ("qwen-Q4_K_M", ["qwen-UD-Q4_K_XL"], ["qwen-UD-Q4_K_XL"]), ("qwen-BF16", [], []),
    ]  # fmt: skip
    assert [m["label"] for m in found.document["models"]] == list(sizes)
    assert "Unsloth <b>" in Page(found.html("ja")).text
    (told,) = (w["en"] for w in found.document["warnings"] if "header" in w["en"])
    assert told.startswith("qwen-Q3_K_L is called Q3_K_L, but its header says Q4_K_M")
    # where the chunks' means are known, the difference must be beyond what chunks differ by
    for swing, expected in ((0.03, []), (0.001, ["qwen-UD-Q4_K_XL"])):
        for line in distance:
            if line["reference"]:
                unlike = [-swing, swing] if line["model"] == "qwen-UD-Q4_K_XL" else [0, 0]
                line["kl_chunks"] = [line["kl_mean"] + x for x in unlike * 10]
        folder = run_builder.write(tmp_path / f"chunks-{swing}", models, questions, items, distance=distance)
        assert {x["model"]: x["nearer"] for x in report([folder]).document["by_size"]}["qwen-Q4_K_M"] == expected
    for line in distance:
        line.pop("kl_chunks", None)
    # of another text, context or reference nothing is compared
    distance[-1]["n_tokens"] += 1
    distance[2]["n_ctx"] = 256
    (tmp_path / "run" / "distance.jsonl").write_text("".join(json.dumps(x) + "\n" for x in distance), encoding="utf-8")
    nearer = {x["model"]: x["nearer"] for x in report([tmp_path / "run"]).document["by_size"]}
    assert nearer["qwen-Q4_K_M"] == ["qwen-UD-Q4_K_XL"]  # on the text that both read alike


def test_order_of_the_page(found: Report) -> None:
    for lang in ("en", "ja"):
        text = labels.page_text(lang)
        html = found.html(lang)
        keys = ["verdict", "plots", "levels", "paired", "groups", "harm", "flipped", "baselines", "method"]
        places = [html.index(f"<h2>{text['h_' + key]}</h2>") for key in keys]
        assert places == sorted(places)
        assert html.count(found.document["notice"][lang]) == 1
        assert "apache-2.0" in html


def test_text_from_data_stays_text(tmp_path: Path) -> None:
    questions = [
        run_builder.question(i, question=f"{JS} =1+1 | a", choices=[f"{JS}{c}" for c in "abcde"], group=f"{JS}|g")
        for i in range(20)
    ]
    title = f"*{JS}* | [x](http://evil)"
    models = [run_builder.model(x, title=title, license=f"=cmd|{JS}\nx: y") for x in ("BF16", "Q4_K_M")]
    items = [run_builder.answer(q, m["name"], (i + r) % 3 > 0) for r, m in enumerate(models)
             for i, q in enumerate(questions)]  # fmt: skip
    made = report([run_builder.write(tmp_path / "run", models, questions, items)])
    page = Page(made.html("en"))
    assert JS not in page.script and [tag for tag, _ in page.tags].count("script") == 1 and JS in page.text
    markdown = made.markdown("en") + made.model_card().split("---", 2)[2]
    assert "<script" not in markdown.replace(r"\<script", "") and "[x](" not in markdown
    tables = [line for line in markdown.splitlines() if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)\|", line)) > 2 for line in tables)
    head = yaml.safe_load(made.model_card().split("---\n")[1])
    assert head["license"] == "other" and head["license_name"] == f"=cmd|{JS}\nx: y"
    rows = list(csv.DictReader(io.StringIO(made.csv().removeprefix("\ufeff"))))
    assert rows[0]["license"].startswith("'=cmd") and len(rows) == 2


def test_names_are_no_formulas(tmp_path: Path) -> None:
    """matplotlib takes what stands between two dollars for one, and a fault in it for an error."""
    name = r"$\frac{$ \$\undefined$"
    models = [run_builder.model(level, base) for base in (name, "other") for level in ("BF16", name)]
    questions = [run_builder.question(i) for i in range(20)]
    items = [run_builder.answer(q, m["name"], (i + r) % 3 > 0)
             for r, m in enumerate(models) for i, q in enumerate(questions)]  # fmt: skip
    measures = [run_builder.measure(m["name"]) for m in models]
    made = report([run_builder.write(tmp_path / "run", models, questions, items, measures=measures)])
    assert name in Page(made.html("en")).text


def test_the_font_has_every_character_of_the_words() -> None:
    """Any of them may come into a plot; tools/subset_font.py cuts the font anew."""
    from fontTools.ttLib import TTFont

    has = TTFont(plots.FONT).getBestCmap()
    assert {c for c in "".join(labels.page_text("ja").values()) if c != "\n" and ord(c) not in has} == set()


@pytest.mark.long
def test_plots_have_every_character(found: Report, small: Path) -> None:
    """A character that the font lacks would be an error, as would a label that no glyph is found for."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for lang in labels.LANGUAGES:
            drawn = plots.draw(found.document, labels.page_text(lang))
            assert all(svg and svg.startswith("<svg viewBox=") for svg in drawn.values())
    assert plots.drawable("Q4_K_M", 3) == "Q4_K_M" and plots.drawable("医療鷗", 3) == "#3"
    again = plots.draw(report([small], ram_bytes=int(8e9)).document, labels.page_text("ja"))
    assert again == drawn  # the same run, the same bytes


@pytest.mark.long
def test_names_in_plots_do_not_overlap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Seven levels whose points lie close together: no name covers another, none leaves the figure."""
    from matplotlib.figure import Figure

    figures: list[Figure] = []
    save = plots._svg
    monkeypatch.setattr(plots, "_svg", lambda figure, *rest: (figures.append(figure), save(figure, *rest))[1])
    names = [f"qwen-{level}" for level in run_builder.SIZES]
    near = {"kl_mean": 0.02, "kl_interval": [0.018, 0.021]}
    distance = [line for text in ("exam", "notes") for line in run_builder.distances(names, text, **near)]
    folder = level_run(tmp_path / "run", dict.fromkeys(run_builder.SIZES, 3), n=200, distance=distance)
    for lang in labels.LANGUAGES:
        plots.draw(report([folder]).document, labels.page_text(lang))
    for figure, expected in zip(figures, [7, 7, 0, 6] * 2, strict=True):
        renderer = figure._get_renderer()  # type: ignore[attr-defined]
        boxes = [text.get_window_extent(renderer) for text in figure.axes[0].texts]
        assert len(boxes) == expected
        for i, box in enumerate(boxes):
            assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
            assert not any(box.overlaps(other) for other in boxes[:i])


def test_the_language_is_whole() -> None:
    en, ja = (labels.page_text(lang) for lang in ("en", "ja"))
    assert en.keys() == ja.keys()
    for key, text in ja.items():
        assert set(re.findall(r"\{(\w+)\}", text)) == set(re.findall(r"\{(\w+)\}", en[key])), key
    with pytest.raises(UsageError, match="en or ja"):
        labels.page_text("fr")


def test_model_card(found: Report) -> None:
    card = found.model_card()
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["license"] == "apache-2.0" and head["language"] == ["en", "ja"] and "gguf" in head["tags"]
    assert head["base_model"] == ["Qwen/Qwen2.5-7B-Instruct"] and head["base_model_relation"] == "quantized"
    assert "| qwen-Q4\\_K\\_M |" in card and "For research only" in card


# -------------------------------------------------------------------------------------------------------- the commands


def test_commands(small: Path, tmp_path: Path) -> None:
    page = tmp_path / "out" / "r.html"
    done = run_text("report", str(small), "--ram", "8GB", "--lang", "ja", "--out", str(page),
               "--model-card", str(tmp_path / "out" / "README.md"), "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert [Path(f).name for f in facts["files"]] == ["r.html", "r.json", "r.md", "r.csv", "README.md"]
    assert '<html lang="ja">' in page.read_text(encoding="utf-8")
    assert json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))["format"] == "jmedlite.report"
    assert not list((tmp_path / "out").glob(".*"))
    done = run_text("recommend", str(small), "--json")
    assert json.loads(done.stdout) == json.loads(json.dumps(recommendation(report([small]))))
    done = run_text("recommend", str(small), "--margin", "30")
    assert done.stdout.startswith("Q4_K_M: its accuracy is shown to be less than 30 points below that of its own unq")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--lang", "fr"], 2, "en or ja"),
        (["--margin", "0"], 2, "--margin 0"),
        (["--ram", "lots"], 2, "lots"),
        (["--reference", "none"], 2, "is none of the models"),
        (["--out", "report.pdf"], 2, "ends in .html"),
    ],
)
def test_command_usage(small: Path, arguments: list[str], code: int, words: str) -> None:
    done = run_text("report", str(small), *arguments)
    assert done.returncode == code and words in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_command_without_a_run(tmp_path: Path) -> None:
    done = run_text("report", str(tmp_path / "none"))
    assert done.returncode == 66 and "no such folder" in done.stderr
    (tmp_path / "run.json").write_text("{}", encoding="utf-8")
    done = run_text("recommend", str(tmp_path))
    assert done.returncode == 65 and "jmedlite.run" in done.stderr


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, jmedlite.cli.app; print(sorted({'scipy', 'matplotlib', 'numpy', 'jinja2'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------------------------------------------------- a real browser


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("lang", ["en", "ja"])
def test_in_a_browser(found: Report, tmp_path: Path, lang: str) -> None:
    """At three widths, light and dark: nothing overflows, nothing is said on the console, nothing is asked for."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra [browser]")
    path = tmp_path / "r.html"
    path.write_text(found.html(lang), encoding="utf-8")
    seen: list[str] = []
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for width, media, scheme in ((1440, "screen", "light"), (390, "screen", "dark"), (688, "print", "light")):
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            page.on("console", lambda message: seen.append(message.text))
            page.on("pageerror", lambda error: seen.append(str(error)))
            page.on("request", lambda request: seen.append(request.url))
            page.emulate_media(media=media, color_scheme=scheme)
            page.goto(path.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            fits = "[...document.querySelectorAll('.scroll')].every(e => e.scrollWidth <= e.clientWidth + 1)"
            assert page.evaluate(fits)  # no column is off the screen, or the paper
            if width == 1440:
                _filter(page, found.document)
            page.close()
        browser.close()
    assert set(seen) == {path.as_uri()}


def _filter(page: Any, document: dict[str, Any]) -> None:
    """The items of the first view, chosen by outcome, group, flip, noise and words."""
    v = document["views"][0]
    there = [*v["flipped"], *v["unchanged"]]
    model = document["models"][2]["key"]
    section = page.locator(".items").first

    def shown(**chosen: str) -> int:
        for name in ("words", "model", "outcome", "flip", "group"):
            field, value = section.locator(f"[name={name}]"), chosen.get(name, "")
            field.fill(value) if name == "words" else field.select_option(value)
        return int(section.locator("details.item:not([hidden])").count())

    def count(of: Callable[[dict[str, Any]], bool]) -> int:
        return sum(map(of, there))

    assert shown() == len(there)
    assert shown(model="2", outcome="w") == count(lambda i: not i["outcomes"][model]["correct"]) > 0
    assert shown(flip="a") == count(lambda i: any(o["kind"] == "right_to_wrong" for o in i["outcomes"].values())) > 0
    assert shown(flip="none") == v["n_unchanged"]
    option = section.locator("[name=group] option", has_text=there[0]["group"]).get_attribute("value")
    assert shown(group=option) == count(lambda i: i["group"] == there[0]["group"])
    assert shown(words="ＱＵＥＳＴＩＯＮ 7:") == count(
        lambda i: "Question" in i["question"] and "7:" in i["question"]
    )  # letters of any width
    assert shown(words="<b>") == 0
    shown()
    section.locator("[name=noise]").check()
    assert shown() == count(lambda i: any(o["within_noise"] for o in i["outcomes"].values()))
