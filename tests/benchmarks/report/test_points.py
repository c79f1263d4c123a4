"""Points and passing: an exam whose points are counted by hand, what images leave open, and the sentences about it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jmedlite.benchmarks.report.ages import Age
from jmedlite.benchmarks.report.report import Report, report
from jmedlite.benchmarks.report.sections import ExamPoints, Sitting
from tests.support import runs as run_builder

LEVELS = ("BF16", "Q4_K_M", "Q2_K")
WORTH = [("required", 1)] * 20 + [("required", 3)] * 60 + [("general", 1)] * 29 + [("general", 10)] * 27
Right = Callable[[str, int], bool]  # of a level and the number of a question


def exam_questions(exam: str, image_every: int = 4) -> list[run_builder.Record]:
    """All of an exam of 299 and 200 points, in few questions; every so manieth needs an image."""
    return [
        run_builder.question(i, "exam-ja", id=f"{exam}-{i}", marks={"exam": exam, "section": section, "points": points},
                             contraindicated=[(i + 1) % 5] if i % 12 == 0 else [],
                             excluded="needs an image" if i % image_every == 1 else None)
        for i, (section, points) in enumerate(WORTH)
    ]  # fmt: skip


def write(folder: Path, questions: list[run_builder.Record], right: Right, **more: Any) -> Path:
    models = [run_builder.model(level, **more) for level in LEVELS[: 1 if more else None]]
    items = [
        run_builder.answer(q, m["name"], right(m["level"], i))
        for m in models
        for i, q in enumerate(questions)
        if q["excluded"] is None
    ]
    return run_builder.write(folder, models, questions, items)


def by_level(exam: ExamPoints) -> dict[str, Sitting]:
    return {s["model"].removeprefix("qwen-"): s for s in exam["sittings"]}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """BF16 and Q4_K_M know all but few questions, Q2_K half; both exams."""

    def right(level: str, i: int) -> bool:
        return i % 2 == 0 if level == "Q2_K" else i % 12 != 3 if level == "BF16" else i % 12 != 0

    questions = exam_questions("112") + [
        q | {"excluded": None} for q in exam_questions("120") if q["marks"]["points"] == 1
    ]
    return report([write(tmp_path_factory.mktemp("exams") / "run", questions, right)])


def test_points_counted_by_hand(found: Report) -> None:
    exam, other = found.document["views"][0]["exams"]
    assert (exam["exam"], exam["held"], exam["lines"], exam["points"], exam["harmful"]) == (
        "112", "2018-02-10", {"required": 160, "general": 208}, {"required": 200, "general": 299}, 3)  # fmt: skip
    asked = [i for i in range(len(WORTH)) if i % 4 != 1]
    worth = [points for _, points in WORTH]
    for level, right in (("BF16", lambda i: i % 12 != 3), ("Q2_K", lambda i: i % 2 == 0)):
        sitting = by_level(exam)[level]
        for section, places in zip(sitting["sections"], (range(80), range(80, len(WORTH))), strict=True):
            mine = [i for i in asked if i in places]
            assert section["points"] == sum(worth[i] for i in mine if right(i))
            assert section["asked"] == sum(worth[i] for i in mine)
            assert section["of"] == sum(worth[i] for i in places)
            assert section["share"] == pytest.approx(section["asked"] / section["of"])
    # Q4_K_M is wrong where i % 12 == 0, and then takes the next choice, which harms
    assert by_level(exam)["Q4_K_M"]["harmful"] == 12
    assert by_level(exam)["BF16"]["harmful"] == 0
    # of the 120th only the questions of one point are there: nothing is said of passing
    assert (other["exam"], other["whole"], other["reference"]) == ("120", False, "119")
    assert by_level(other)["BF16"]["chance"] is by_level(other)["BF16"]["least"] is None


def test_what_images_leave_open(found: Report) -> None:
    levels = by_level(found.document["views"][0]["exams"][0])
    # 149 of 200 points of the required section were asked, which is less than its line
    assert [levels["BF16"][key] for key in ("least", "most")] == [False, True]
    low, high = levels["BF16"]["interval"] or (0, 0)
    assert 0.95 < low < (levels["BF16"]["chance"] or 0) <= high <= 1
    assert 0 < (levels["BF16"]["another"] or 0) < (levels["BF16"]["chance"] or 0)
    # 12 contraindicated choices are too many, whatever the points
    assert (levels["Q4_K_M"]["most"], levels["Q4_K_M"]["chance"]) == (False, 0.0)
    assert (levels["Q2_K"]["most"], levels["Q2_K"]["interval"]) == (False, [0.0, 0.0])


def test_the_sentences(found: Report) -> None:
    first, *others = found.document["views"][0]["exam_sentences"]
    assert first == {"en": "BF16 passes 2018.", "ja": "BF16：2018年に合格。"}
    assert others[1]["en"] == "Q2_K fails 2018; BF16 passes 2018."
    assert others[1]["ja"] == "Q2_K：2018年は不合格。BF16は2018年に合格。"


def test_two_exams_in_a_row_and_as_the_reference_does(tmp_path: Path) -> None:
    questions = exam_questions("112", image_every=1000) + exam_questions("119", image_every=1000)
    extra = run_builder.question(999, "exam-ja", id="119-x", marks={"exam": "119", "section": "general", "points": 1})
    folder = write(tmp_path / "run", [*questions, extra], lambda level, i: level != "Q2_K" or i >= len(WORTH))
    view = report([folder]).document["views"][0]
    assert [s["en"] for s in view["exam_sentences"]] == [
        "BF16 passes 2018, 2025.", "Q4_K_M passes 2018, 2025, as BF16 does.",
        "Q2_K passes 2025; fails 2018; BF16 passes 2018, 2025."]  # fmt: skip
    # one question of each needed an image: almost nothing is open
    assert [s["least"] for s in view["exams"][0]["sittings"]] == [True, True, False]


def test_on_the_page_and_in_markdown(found: Report) -> None:
    for lang, words in (("en", ("Points and passing", "passes")), ("ja", ("得点と合否", "合格"))):
        page, text = found.html(lang), found.markdown(lang)
        for word in words:
            assert word in page
            assert word in text
        sentence = found.document["views"][0]["exam_sentences"][2][lang]
        assert sentence in page
        assert page.count("<li>" + sentence) == 1
    shown = {float(value) for value in re.findall(r'<data value="([^"]+)">', page)}
    exam = found.document["views"][0]["exams"][0]
    assert {exam["sittings"][0]["chance"], float(exam["lines"]["general"])} <= shown


@pytest.mark.parametrize(("age", "date", "newer"), [
    (Age("2024-06", "metadata"), "2022-02-05", True),
    (Age("2024-06", "metadata"), "2026-02-07", False),
    (Age("2024-06", "metadata"), "2024-06-11", True),  # the same month: it may
    (Age("2024", "metadata"), "2024-02-03", True),
    (Age("2024-02", "architecture"), "2022-02-05", True),
    (Age("2024-02", "architecture"), "2026-02-07", None),  # the first of its kind tells nothing of this one
])  # fmt: skip
def test_ages(age: Age, date: str, newer: bool | None) -> None:
    assert age.newer_than(date) is newer


def test_a_model_newer_than_the_questions_is_marked(tmp_path: Path) -> None:
    questions = exam_questions("112")
    folder = write(tmp_path / "run", questions, lambda level, i: True, date="2024-06-06")
    head = folder / "run.json"
    head.write_text(head.read_text(encoding="utf-8").replace('"n_items":', '"date": "2018-02-10",\n"n_items":'))
    found = report([folder])
    assert all(s["newer"] for s in found.document["views"][0]["exams"][0]["sittings"])
    (warning,) = [w for w in found.document["warnings"] if "2018-02-10" in w["en"]]
    assert warning["en"].startswith(
        "exam-ja (2018-02-10): the questions were public when qwen-BF16 came out (2024-06-06)"
    )
    assert "questions older than the model: BF16" in found.html("en")
