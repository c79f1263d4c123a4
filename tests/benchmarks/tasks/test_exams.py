"""Exams that are passed by points: their formats on made-up questions, what is left out, what every question earns."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from jmedlite.base.errors import DataError, InputMissing
from jmedlite.benchmarks.run.run import question_lines
from jmedlite.benchmarks.tasks.exams import EXAMS, GENERAL, REQUIRED, marks
from jmedlite.benchmarks.tasks.items import Dataset, Marks
from jmedlite.benchmarks.tasks.load import load_task


def one(spec: str, **options: Any) -> Dataset:
    (dataset,) = load_task(spec, **options)
    return dataset


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def jsonl(path: Path, *rows: dict[str, Any]) -> Path:
    return write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def reasons(dataset: Dataset) -> dict[str, str]:
    return {left.id: left.reason for left in dataset.left}


def test_the_lines() -> None:
    """The required line is 80 % of the points, rounded up; sections have at most 200 and 300."""
    for exam in EXAMS.values():
        required, general = exam.lines[REQUIRED], exam.lines[GENERAL]
        assert required.points == math.ceil(0.8 * required.of)
        assert required.of <= 200
        assert 0.65 * general.of < general.points < 0.78 * general.of <= 0.78 * 300
    assert [marks("120", *place) for place in (("B", 25), ("E", 26), ("F", 75))] == [
        Marks("120", "required", 1), Marks("120", "required", 3), Marks("120", "general", 1)]  # fmt: skip


# -------------------------------------------------------------------------------------------------------- the 120th


def of_120(question_id: str, stem: str, choices: str, answer: list[str], **more: Any) -> dict[str, Any]:
    block, number = question_id[3], int(question_id[5:])
    return {
        "question_id": question_id, "block": block, "number": number, "question_type": "multiple_choice",
        "question_text": f"{number}　{stem}\n\n{choices}", "clinical_images": [], "requires_image": False,
        "num_choices_to_select": len(answer), "answer": answer, **more,
    }  # fmt: skip


FIVE = "a　心　臓\n\nb　肺\n\n　c　肝臓 a\n　d　脾臓\ne　腎臓"


def test_choices_that_stand_inside_the_question(tmp_path: Path) -> None:
    case = {"group_id": "120E-41-42", "questions": [], "context_text": "次の文を読め。\n45歳の男性。"}
    rows = [
        of_120("120A-1", "血液を送る臓器はどれか。\n　1つ選べ。", FIVE, ["a"]),
        of_120("120E-41", "正しいのはどれか。2つ選べ。", FIVE, ["d", "b"], serial_group=case),
        of_120("120C-2", "写真はどれか。", FIVE, ["a"], requires_image=True),
        of_120("120B-30", "求めよ。", "①　②\n0　0", ["28"], question_type="calculation"),
        of_120("120F-14", "最も高いのはどれか。", "|　|費用|\n|a|80円|\n|b|70円|", ["a"]),
    ]
    write(tmp_path / "clone" / "jmle2026_dataset.json", rows)
    dataset = one(f"jmle2026={tmp_path / 'clone'}")
    first, second = dataset.items
    assert (first.question, first.choices) == (
        "血液を送る臓器はどれか。\n　1つ選べ。",
        ("心　臓", "肺", "肝臓 a", "脾臓", "腎臓"),
    )
    assert (first.answers, first.marks, first.groups) == ((0,), Marks("120", "general", 1), {"section": "general"})
    assert second.question == "次の文を読め。\n45歳の男性。\n正しいのはどれか。2つ選べ。"
    assert (second.answers, second.marks) == ((1, 3), Marks("120", "required", 3))
    assert reasons(dataset) == {"120C-2": "needs an image", "120B-30": "has no choices",
                                "120F-14": "has its choices in a table"}  # fmt: skip
    assert (dataset.license, dataset.date, dataset.source) == (
        "cc-by-4.0", "2026-02-07", "https://github.com/naoto-iwase/JMLE2026-Bench")  # fmt: skip
    earned = {line.id: line.marks for line in question_lines([dataset])}
    assert earned == {i: marks("120", i[3], int(i[5:])) for i in earned}
    assert len(earned) == 5


@pytest.mark.parametrize(("change", "fault"), [
    ({"question_text": "1　どれか。\n\na　心臓\nc　肺"}, "no lines of choices a, b, c"),
    ({"question_text": "1　どれか。"}, "no lines of choices"),
    ({"answer": ["a", "b"]}, "num_choices_to_select"),
    ({"answer": ["f"]}, "outside the choices"),
    ({"question_type": "essay"}, "question_type is 'essay'"),
    ({"question_id": "A1"}, "does not name exam, block and number"),
    ({"requires_image": "no"}, "requires_image is not true or false"),
])  # fmt: skip
def test_rows_of_the_120th_that_are_not_right(tmp_path: Path, change: dict[str, Any], fault: str) -> None:
    path = write(tmp_path / "jmle2026_dataset.json", [of_120("120A-1", "どれか。", FIVE, ["a"]) | change])
    with pytest.raises(DataError, match=fault):
        load_task(f"jmle2026={path}")


# -------------------------------------------------------------------------------------------------------- the 119th


def of_119(number: str, **more: Any) -> dict[str, Any]:
    choices = ["a. 心臓", "b. 肺", "c.肝臓", "d. 脾臓", "e. 腎臓"]
    return {"number": number, "question": "臓器はどれか。 ", "choices": choices, "has_image": False, **more}


def clone_119(folder: Path, answers: str = "119A1,b\n119A2,a\n119A3,600\n119A4,a\n119E28,ac\n119B26,ce\n") -> Path:
    rows = [of_119("119A1"), of_119("119A2", has_image=True), of_119("119A3", choices=[]),
            of_119("119A4", choices=["a. 心臓", "b. 肺肝臓", "d. 脾臓", "e. 腎臓"])]  # fmt: skip
    for block in "ABCDEF":
        own = {"A": rows, "B": [of_119("119B26")], "E": [of_119("119E28")]}.get(block, [])
        write(folder / "questions" / f"119{block}_json.json", own)
    write(folder / "results" / "correct_answers.csv", f"問題番号,解答\n{answers}")
    return folder


def test_questions_and_answers_of_the_119th(tmp_path: Path) -> None:
    dataset = one(f"igakuqa119={clone_119(tmp_path / 'IgakuQA119')}")
    assert [(i.id, i.question, i.choices[2], i.answers, i.marks) for i in dataset.items] == [
        ("119A1", "臓器はどれか。", "肝臓", (1,), Marks("119", "general", 1)),
        ("119B26", "臓器はどれか。", "肝臓", (2, 4), Marks("119", "required", 3)),
    ]
    assert reasons(dataset) == {
        "119A2": "needs an image", "119A3": "has no choices", "119E28": "counts either of two answers as right",
        "119A4": "lost some of its text when its authors read the paper",
    }  # fmt: skip
    assert all(left.marks for left in dataset.left)
    assert dataset.files[-1]["name"] == "results/correct_answers.csv"


def test_answers_that_are_missing_or_another_file(tmp_path: Path) -> None:
    folder = clone_119(tmp_path / "c", answers="119A1,b\n")
    with pytest.raises(DataError, match=r"119A_json.json, entry 2: has no answer in results/correct_answers.csv"):
        load_task(f"igakuqa119={folder}")
    for text, fault in (("a,b\n1,2\n", "two columns"), ("問題番号,解答\n119A1,b\n119A1,c\n", "119A1 twice")):
        write(folder / "results" / "correct_answers.csv", text)
        with pytest.raises(DataError, match=fault):
            load_task(f"igakuqa119={folder}")
    (folder / "results" / "correct_answers.csv").unlink()
    with pytest.raises(InputMissing, match=r"has no results/correct_answers.csv"):
        load_task(f"igakuqa119={folder}")


@pytest.mark.parametrize("task", ["igakuqa", "igakuqa119", "jmle2026", "jjsimqa"])
def test_what_is_on_github_is_cloned(task: str) -> None:
    with pytest.raises(InputMissing, match=rf"git clone https://github.com/.*--task {task}="):
        load_task(task)


# ---------------------------------------------------------------------------------------------------------- IgakuQA


def test_points_of_igakuqa(tmp_path: Path) -> None:
    def row(key: str, points: Any, **more: Any) -> dict[str, Any]:
        return {"problem_id": key, "problem_text": "どれか。", "choices": list("vwxyz"), "text_only": True,
                "answer": ["b"], "points": points, **more}  # fmt: skip

    jsonl(tmp_path / "2018" / "112-B.jsonl", row("112B1", "1"), row("112B26", "3"), row("112B27", "0"),
          row("112B28", "3", text_only=False, choices=[]), row("112B29", "1", choices=[]),
          row("112B30", "x"))  # fmt: skip
    jsonl(tmp_path / "2018" / "112-F.jsonl", row("112F1", 1), row("999", "1"))
    dataset = one(f"igakuqa={tmp_path}")
    assert dataset.date == "2018-02-10"
    found = {line.id: line.marks and (line.marks.section, line.marks.points) for line in question_lines([dataset])}
    assert found == {
        "112B1": ("required", 1), "112B26": ("required", 3), "112B27": ("required", 0), "112B28": ("required", 3),
        "112B29": ("required", 1), "112B30": None, "112F1": ("general", 1), "999": None,
    }  # fmt: skip
    assert {i.id: dict(i.groups) for i in dataset.items if i.marks} == {
        "112B1": {"section": "required"}, "112B26": {"section": "required"}, "112B27": {"section": "required"},
        "112F1": {"section": "general"}}  # fmt: skip


# ------------------------------------------------------------------------------------------------- the other two sets


def test_jjsimqa(tmp_path: Path) -> None:
    row = {"problem_id": "107_1-0", "problem_text": "誤っているものはどれか.", "choices": list("vwxyz"),
           "text_only": True, "answer": ["b", ",", "e"], "points": 1.0, "choices_orig": "[v,w]"}  # fmt: skip
    path = jsonl(tmp_path / "data" / "ja" / "JJSIMQA" / "jjsimqa.jsonl", row)
    dataset = one(f"jjsimqa={tmp_path}")
    assert [(i.id, i.answers, i.lang) for i in dataset.items] == [("107_1-0", (1, 4), "ja")]
    jsonl(path, row | {"answer": ["b", "B"]})
    with pytest.raises(DataError, match="names a choice twice"):
        load_task(f"jjsimqa={path}")


def test_yakugakuqa(tmp_path: Path) -> None:
    def row(key: str, answer: Any, **more: Any) -> dict[str, Any]:
        return {"problem_id": key, "problem_text": "1つ選べ。", "choices": list("vwxyz"), "text_only": True,
                "answer": answer, "comment": "", **more}  # fmt: skip

    either = ["1", "2（いずれか一つを選択で正解とする）"]
    path = jsonl(tmp_path / "data.jsonl", row("097001", ["4"]), row("097002", ["1", "5"]),
                 row("097003", ["解なし（不適切）"]),
                 row("097004", either), row("097005", ["1"], text_only=False))  # fmt: skip
    with pytest.raises(InputMissing, match=r"has no metadata.jsonl"):
        load_task(f"yakugakuqa={tmp_path}")
    jsonl(tmp_path / "metadata.jsonl", {"problem_id": "097001", "category": "Physics", "note": ""})
    dataset = one(f"yakugakuqa={tmp_path}")
    assert [(i.id, i.answers, i.group) for i in dataset.items] == [
        ("097001", (3,), "Physics"),
        ("097002", (0, 4), None),
    ]
    assert reasons(dataset) == {"097003": "has no right answer", "097004": "counts either of two answers as right",
                                "097005": "needs an image"}  # fmt: skip
    assert one(f"yakugakuqa={path}").items == dataset.items
    for answer in (["0"], ["6"], ["x"], [True], []):
        jsonl(path, row("097001", answer))
        with pytest.raises(DataError, match="answer"):
            load_task(f"yakugakuqa={tmp_path}")
