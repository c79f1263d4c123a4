"""The verdict: one declared analysis, what contradicts it, and what is recommended for which reason."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from scipy.stats import binom

from jmedlite.base.errors import DataError, UsageError
from jmedlite.benchmarks import statistics
from jmedlite.benchmarks.report.document import Options, summarise
from jmedlite.benchmarks.report.read import Run, read_run
from jmedlite.benchmarks.report.report import report
from jmedlite.benchmarks.report.verdict import is_constrained
from jmedlite.benchmarks.views import VIEWS, primary_view
from tests.support import runs as run_builder
from tests.support.scripts import load_tool

N, MARGIN = 250, 5.0  # so few that the tests are quick, and a margin that so few can show
Lost = Callable[[int], bool]  # whether a level loses this question


def made(folder: Path, lost: dict[str, Lost], *, sums: dict[str, Lost] | None = None, primary: str | None = None,
         n: int = N, question: Callable[[int], dict[str, Any]] = lambda i: {}, seconds: dict[str, float] | None = None,
         keep: int | None = None, measured: bool = True) -> Path:  # fmt: skip
    """A run by `text`, whose reference is right everywhere; `lost` per token, `sums` (default: nothing) by sums."""
    models = [run_builder.model(level) for level in lost]
    questions = [run_builder.question(i, contraindicated=[], **question(i)) for i in range(n)]
    items = []
    for m in models:
        level = m["level"]
        for i, q in enumerate(questions):
            right, by_sum = not lost[level](i), not (sums or {}).get(level, lambda i: False)(i)
            picks = q["answers"] if right else [(q["answers"][0] + 1) % 5]
            per_token = {"picks": picks, "correct": right, "margin": 0.2}
            items.append(run_builder.answer(q, m["name"], by_sum, "text", per_token=per_token))
    waits = {level: {"question_seconds": [s]} for level, s in (seconds or {}).items()}
    measures = [run_builder.measure(m["name"], **waits.get(m["level"], {})) for m in models if measured]
    settings = {"primary": primary} if primary else {}
    return run_builder.write(folder, models, questions, items[:keep], methods=("text",), settings=settings,
                             measures=measures)  # fmt: skip


def none(i: int) -> bool:
    return False


def first(k: int) -> Lost:
    return lambda i: i < k


@lru_cache(1)
def run_in(folder: Path) -> Run:
    return read_run(folder)


def document_of(folder: Path, **options: Any) -> dict[str, Any]:
    return dict(summarise([run_in(folder)], Options(**{"margin": MARGIN, **options})))


def verdict_of(folder: Path, **options: Any) -> dict[str, Any]:
    (found,) = document_of(folder, **options)["verdicts"]
    return dict(found)


# ------------------------------------------------------------------------------------------------ the primary analysis


def test_the_primary_analysis_is_the_declared_one(tmp_path: Path) -> None:
    """Per token unless said: a level that only sums let pass is not recommended, and the other way round."""
    lost = {"BF16": none, "Q8_0": none, "Q4_K_M": first(16)}
    by_default = document_of(made(tmp_path / "old", lost))
    assert by_default["primary"]["view"] == "text_per_token" and not by_default["primary"]["declared"]
    assert by_default["verdicts"][0]["key"] == "qwen-Q8_0"
    declared = document_of(made(tmp_path / "declared", lost, primary="text:per-token"))
    assert declared["primary"]["declared"] and declared["verdicts"] == by_default["verdicts"]
    by_sum = document_of(made(tmp_path / "sums", lost, primary="text:sum"))
    assert [v["key"] for v in by_sum["views"]] == ["text", "text_per_token"]
    v = by_sum["verdicts"][0]
    candidate = v["candidates"][-1]
    assert candidate["no_meaningful_loss"] and not candidate["qualifies"]
    assert [(c["view"], c["difference"]) for c in candidate["conflicts"]] == [
        ("text_per_token", pytest.approx(-16 / N))
    ]
    assert v["key"] == "qwen-Q8_0"  # one level wider
    assert v["reason"]["en"].startswith(
        "Conflict: Q4_K_M passes in the primary analysis (Likelihood of the choices), but a loss of more than 5 points "
        "is shown elsewhere, so it is not recommended: Likelihood per token, 100.0 → 93.6 % (n = 250, Holm-adjusted p "
        "<0.001). Q8_0: its accuracy is shown"
    )
    assert v["reason"]["ja"].startswith("結果の食い違い：Q4_K_Mは主解析（選択肢の尤度）では基準を満たしますが、")


def test_a_loss_that_may_be_chance_or_is_small_is_no_conflict(tmp_path: Path) -> None:
    for n, lost, said in ((40, 3, False), (N, 12, False), (N, 13, True)):
        folder = made(tmp_path / f"{n} {lost}", {"BF16": none, "Q4_K_M": first(lost)}, primary="text:sum", n=n)
        assert bool(verdict_of(folder)["candidates"][1]["conflicts"]) is said, (n, lost)


def test_names_of_primary_analyses() -> None:
    assert [primary_view(view.name, ["letter", "text", "generate"]) for view in VIEWS] == list(VIEWS)
    for methods, name in ((["generate", "text"], "text:per-token"), (["generate"], "generate:gestalt")):
        assert primary_view(None, methods).name == name
    assert primary_view("text", ["letter", "text"]).name == "text:per-token"
    with pytest.raises(UsageError, match="--primary text:best: expected letter, text:per-token, "):
        primary_view("text:best", ["text"])
    with pytest.raises(UsageError, match="--primary generate: is not asked; add --method generate"):
        primary_view("generate", ["text"])


def test_runs_that_declare_different_analyses(tmp_path: Path) -> None:
    """The first folder's is taken, and said; one that names no score of what is asked is refused."""
    one = made(tmp_path / "one", {"BF16": none, "Q8_0": none}, primary="text:sum", n=200)
    two = made(tmp_path / "two", {"Q4_K_M": none}, primary="text:per-token", n=200)
    document = report([one, two]).document
    assert document["primary"]["view"] == "text"
    assert "declared different primary analyses (text:sum, text:per-token)" in document["warnings"][0]["en"]
    bad = made(tmp_path / "bad", {"BF16": none}, primary="letter", n=20)
    with pytest.raises(DataError, match="declares primary 'letter', which is no score of a method that it asks"):
        report([bad])


def test_an_unanswered_primary_analysis_is_not_replaced(tmp_path: Path) -> None:
    folder = run_builder.small(tmp_path / "run", n=20, methods=("letter", "generate"),
                               keep=lambda a: a["method"] == "generate", noise=())  # fmt: skip
    document = report([folder]).document
    assert (document["verdicts"][0]["kind"], document["verdicts"][0]["view"]) == ("empty", "letter")
    assert report([folder]).html("en")


# -------------------------------------------------------------------------------------------------------------- groups


def adapter(i: int) -> dict[str, Any]:
    """A third of the questions asks for facts of the adapter."""
    return {"groups": {"facts": "base" if i % 3 else "adapter"}, "group": None}


def test_a_loss_in_one_group_is_a_conflict(tmp_path: Path) -> None:
    """10 of 450 lost: within the margin, but all of them are the adapter's 150."""
    lost = {"BF16": none, "Q8_0": none, "Q4_K_M": lambda i: i % 3 == 0 and i < 30}
    v = verdict_of(made(tmp_path / "run", lost, question=adapter, n=450))
    (conflict,) = v["candidates"][-1]["conflicts"]
    assert (conflict["side"], conflict["group"], conflict["n"]) == ("facts", "adapter", 150)
    assert conflict["difference"] == pytest.approx(-10 / 150)
    assert v["key"] == "qwen-Q8_0" and "facts: adapter, 100.0 → 93.3 % (n = 150" in v["reason"]["en"]
    tests = {(g["model"], g["group"]): g for g in v["groups"] if g["side"] == "facts"}
    assert [t["outcome"] for t in tests.values()] == ["none", "none", "loss", "none"]
    ps = [g["p"] for g in v["groups"]]
    assert [g["p_holm"] for g in v["groups"]] == statistics.holm(ps)
    assert tests["qwen-Q4_K_M", "adapter"]["p"] == statistics.mcnemar(10, 0)
    (apart,) = [h for h in v["heterogeneity"] if (h["model"], h["side"]) == ("qwen-Q4_K_M", "facts")]
    assert apart["p_holm"] < 0.01 and apart["n"] == 450


def test_groups_that_are_too_small_are_listed(tmp_path: Path) -> None:
    lost = {"BF16": none, "Q8_0": none}
    found = report([made(tmp_path / "run", lost, question=lambda i: {"groups": {"ward": "ICU"} if i < 9 else {}})])
    (g,) = [g for g in found.document["verdicts"][0]["groups"] if g["side"] == "ward"]
    m = len(found.document["verdicts"][0]["groups"])
    assert (g["n"], g["outcome"]) == (9, "untold")
    assert g["detectable_loss"] == statistics.detectable_loss(9, 0, statistics.ALPHA / m)
    page = found.html("ja")
    assert "問題数が足りず判断できない群" in page and "ward: ICU" in page


def test_sides_that_tell_nothing_apart_are_not_tested(tmp_path: Path) -> None:
    """One language and one task are no groups; a side that cuts as another does is tested once."""
    cut = {"BF16": none, "Q8_0": none}
    folder = made(tmp_path / "run", cut, question=lambda i: {"group": "ab"[i % 2], "groups": {"copy": "xy"[i % 2]}})
    assert {g["side"] for g in verdict_of(folder)["groups"]} == {"group"}


def test_stems_are_long_or_short_within_their_task(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", {"BF16": none, "Q4_K_M": lambda i: i % 2 == 1 and i < 30},
                  question=lambda i: {"question": "？" * (50 + i % 2), "group": None})  # fmt: skip
    tests = {g["group"]: (g["n"], round(g["difference"] * N / 2), g["outcome"]) for g in verdict_of(folder)["groups"]}
    assert tests == {"long": (N / 2, -15, "loss"), "short": (N / 2, 0, "none")}


def test_two_languages_of_one_question_change_places(tmp_path: Path) -> None:
    """Heterogeneity between languages is judged within questions: 12 lost in Japanese alone, none in English."""
    models = [run_builder.model(level) for level in ("BF16", "Q8_0")]
    questions = [run_builder.question(i, task, group=None) for task in ("exam-ja", "exam-en") for i in range(100)]
    items = [run_builder.answer(q, m["name"], not (rank and q["lang"] == "ja" and int(q["id"][1:]) < 12))
             for rank, m in enumerate(models) for q in questions]  # fmt: skip
    v = verdict_of(run_builder.write(tmp_path / "run", models, questions, items))
    (apart,) = [h for h in v["heterogeneity"] if h["side"] == "lang"]
    assert apart["n"] == 100
    assert apart["p"] == pytest.approx(2 * 0.5**12, abs=0.0008)  # the sign test, of 10,000 drawn placings


# -------------------------------------------------------------------------------------------------- what to recommend


def test_with_limits_the_most_accurate_and_among_equals_the_fastest(tmp_path: Path) -> None:
    lost = {"BF16": none, "Q8_0": first(2), "Q6_K": first(2), "Q5_K_M": first(2), "Q4_K_M": first(3)}
    times = {"BF16": 9.0, "Q8_0": 1.2, "Q6_K": 1.0, "Q5_K_M": 1.1, "Q4_K_M": 0.5}
    folder = made(tmp_path / "run", lost, seconds=times)
    v = verdict_of(folder, ram_bytes=int(12e9))
    assert (v["kind"], v["key"], v["runner_up"]) == ("recommended", "qwen-Q6_K", None)
    v = verdict_of(folder, ram_bytes=int(64e9))
    assert (v["kind"], v["key"]) == ("reference", "qwen-BF16") and "no level that fits is more accurate" in (
        v["reason"]["en"]
    )
    assert not is_constrained(Options()) and is_constrained(Options(max_latency=1.0))


def test_without_limits_the_smallest_and_the_price_of_the_next(tmp_path: Path) -> None:
    lost = {"BF16": none, "Q8_0": none, "Q6_K": first(3), "Q5_K_M": first(5), "Q4_K_M": first(5)}
    times = {"BF16": 9.0, "Q8_0": 0.9, "Q6_K": 1.2, "Q5_K_M": 1.1, "Q4_K_M": 1.0}
    v = verdict_of(made(tmp_path / "run", lost, seconds=times))
    assert v["key"] == "qwen-Q4_K_M"  # Q5_K_M has nothing to offer: neither faster nor more accurate
    price = v["runner_up"]
    assert (price["model"], price["memory"]) == ("qwen-Q6_K", "peak_rss_bytes")
    assert price["seconds_share"] == pytest.approx(0.2) and price["difference"] == pytest.approx(2 / N)
    assert v["reason"]["en"].endswith(" Runner-up: Q6_K, 1.68 GB more memory, 20 % slower, 0.8 points better.")
    assert v["reason"]["ja"].endswith("次点：Q6_K（メモリが1.68 GB多く、20％遅く、正答率は0.8ポイント高い）。")
    unmeasured = verdict_of(made(tmp_path / "unmeasured", lost, measured=False))
    assert unmeasured["reason"]["en"].endswith("1.60 GB more on the disk, speed not measured, 0.8 points better.")


def test_a_level_that_was_not_measured_is_not_one_that_does_not_fit(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", {"BF16": none, "Q8_0": none, "Q4_K_M": none})
    path = folder / "measures.jsonl"
    rounds = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_text("".join(json.dumps(m) + "\n" for m in rounds if m["model"] != "qwen-Q4_K_M"), encoding="utf-8")
    v = verdict_of(folder, ram_bytes=int(10e9))
    assert {c["model"]: c["meets_constraints"] for c in v["candidates"]} == {
        "qwen-BF16": False, "qwen-Q8_0": True, "qwen-Q4_K_M": None,
    }  # fmt: skip
    assert v["key"] == "qwen-Q8_0"
    assert verdict_of(folder, ram_bytes=int(5e9))["kind"] == "not_measured"


def test_a_partial_run_says_so_first(tmp_path: Path) -> None:
    found = report([made(tmp_path / "run", {"BF16": none, "Q8_0": none}, keep=2 * N - 7)], margin=MARGIN)
    (v,) = found.document["verdicts"]
    assert v["partial"] == {"n_answers": 2 * N - 7, "n_expected": 2 * N}
    assert v["reason"]["en"].startswith("Partial result, 493 of 500 answers so far. Q8_0: ")
    assert v["reason"]["ja"].startswith("途中結果です（全500件の回答のうち493件まで）。Q8_0：")
    assert "<h1>Which level to use (partial)</h1>" in found.html("en")
    assert "Partial result" in found.markdown("en")


# ------------------------------------------------------------------------------------------------ several levels


def test_claims_share_what_the_report_may_be_wrong_in(tmp_path: Path) -> None:
    """From the widest down each has its own share and that of those shown before it; a failure gives nothing on."""
    lost = {"Q4_K_M": first(1), "BF16": none, "Q6_K": first(40), "Q8_0": none, "Q5_K_M": none}
    v = document_of(made(tmp_path / "run", lost))
    found = {r["model"]: r["comparison"] for r in v["views"][0]["results"] if r["comparison"]}
    share = statistics.ALPHA / 4
    assert {k.removeprefix("qwen-"): round(c["alpha"] / share) for k, c in found.items()} == {
        "Q8_0": 1, "Q6_K": 2, "Q5_K_M": 1, "Q4_K_M": 2,
    }  # fmt: skip
    for c in found.values():
        expected = statistics.loss_bound(c["losses"], c["gains"], N, 1 - c["alpha"])
        assert c["loss_bound"] == pytest.approx(expected, abs=1e-12)
        assert c["no_meaningful_loss"] is (c["loss_bound"] < MARGIN / 100)
    assert found["qwen-Q6_K"]["interval"] == list(
        statistics.bootstrap([-1] * 40 + [0] * (N - 40), [1] * N, confidence=1 - share)
    )
    assert v["verdicts"][0]["n_claims"] == 4


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    """tools/simulate_verdict.py, whose table of 10,000 reports each is in docs/statistics.md."""
    return load_tool("simulate_verdict")


@pytest.mark.parametrize(("name", "power"), [
    ("… the levels are independent", 0), ("… and 3 % are gained, the levels are independent", 0.3),
])  # fmt: skip
def test_few_reports_recommend_what_loses_the_margin(simulation: ModuleType, name: str, power: float) -> None:
    """Six independent levels that all lose just the margin (unadjusted, one in four reports would be wrong), and one
    behind five that lose nothing, which is tested at all of the 5 %."""
    (scenario,) = [s for s in simulation.SCENARIOS if s.name == name]
    found = simulation.simulate(dataclasses.replace(scenario, runs=200), seed=1)
    assert 0 < found.wrong_alone <= binom.ppf(0.999, 200, 0.05) / 200
    assert found.wrong <= found.wrong_alone and found.narrowest >= power


def test_families_share_it_too(tmp_path: Path) -> None:
    runs = [read_run(run_builder.small(tmp_path / base, n=10, base=base)) for base in ("qwen", "llama")]
    for reference, n in ((None, 4), ("qwen-BF16", 5)):
        assert {v["n_claims"] for v in summarise(runs, Options(reference))["verdicts"]} == {n}
