"""Every format of a task on a small file of that format, every fault of a data set with its place. No benchmark's text:
all questions here were made up."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import random
import re
import subprocess
import sys
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from jmedlite.base.errors import DataError, InputMissing, JmedliteError, NotPermitted, UsageError
from jmedlite.benchmarks.tasks import rows
from jmedlite.benchmarks.tasks.checking import place
from jmedlite.benchmarks.tasks.formats import MEDICAL_SUBJECTS
from jmedlite.benchmarks.tasks.items import Dataset, Item
from jmedlite.benchmarks.tasks.load import load_task
from jmedlite.benchmarks.tasks.registry import TASKS, list_tasks
from jmedlite.benchmarks.tasks.rows import zip_members
from tests.support.hub import hub_environment

DOCS = Path(__file__).parents[3] / "docs"
GOOD = {"id": "q1", "question": "How many legs has a spider?", "choices": ["six", "eight", "ten"], "answer": ["b"]}


def lines(path: Path, *entries: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [e if isinstance(e, str) else json.dumps(e, ensure_ascii=False) for e in entries]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def parquet(path: Path, entries: list[dict[str, Any]]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    path.parent.mkdir(parents=True, exist_ok=True)
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(entries), path)
    return path


def table(entries: list[list[str]]) -> str:
    out = io.StringIO()
    csv.writer(out).writerows(entries)
    return out.getvalue()


def one(spec: str, **options: Any) -> Dataset:
    (dataset,) = load_task(spec, **options)
    return dataset


# --------------------------------------------------------------------------------------------- the project's own


@pytest.mark.parametrize("answer", [["b"], "b", "B", "Ｂ", 1, [1], "eight", " eight "])
def test_ways_to_write_an_answer(tmp_path: Path, answer: Any) -> None:
    dataset = one(str(lines(tmp_path / "mine.jsonl", GOOD | {"answer": answer})))
    assert dataset.items == (Item("q1", GOOD["question"], ("six", "eight", "ten"), (1,), "en"),)


def test_all_fields(tmp_path: Path) -> None:
    row = GOOD | {
        "question": " 脚は何本か。 ", "answer": ["c", "a"], "group": "動物", "contraindicated": ["B"],
        "human_accuracy": 91.5, "context": "蜘蛛について", "lang": "ja", "explanation": "not read",
        "groups": {"facts": " adapter ", "section": None},
    }  # fmt: skip
    path = lines(tmp_path / "mine.jsonl", row)
    dataset = one(f"spiders={path}")
    assert (dataset.name, dataset.task, dataset.lang) == ("spiders-ja", "spiders", "ja")
    facts = ("ja", "動物", (1,), 91.5, "蜘蛛について", {"facts": "adapter"})
    assert dataset.items == (Item("q1", "脚は何本か。", ("six", "eight", "ten"), (0, 2), *facts),)
    assert dataset.files == ({"name": "mine.jsonl", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()},)


def test_ids_and_languages_are_found(tmp_path: Path) -> None:
    ja = {"question": "脚は何本か。", "choices": ["6", "8"], "answer": 1}
    en = {k: v for k, v in GOOD.items() if k != "id"}
    path = lines(tmp_path / "two.jsonl", ja, "", en, ja | {"question": "翼は何枚か。"})
    both = load_task(str(path))
    assert [(d.name, [i.id for i in d.items]) for d in both] == [("two-ja", ["1", "4"]), ("two-en", ["3"])]
    assert [d.name for d in load_task(str(path), ["en"])] == ["two-en"]
    with pytest.raises(UsageError, match="has only en"):
        load_task(str(lines(tmp_path / "en.jsonl", en)), ["ja"])


def test_one_id_in_two_languages(tmp_path: Path) -> None:
    both = load_task(str(lines(tmp_path / "t.jsonl", GOOD, GOOD | {"lang": "ja"})))
    assert [d.items[0].id for d in both] == ["q1", "q1"]


def test_five_choices_only(tmp_path: Path) -> None:
    five = GOOD | {"id": "q5", "choices": list("vwxyz"), "answer": 4}
    dataset = one(str(lines(tmp_path / "t.jsonl", GOOD, five)), five_choice=True)
    assert [i.id for i in dataset.items] == ["q5"]
    assert [(entry.id, entry.reason) for entry in dataset.left] == [("q1", "has 3 choices, not 5")]
    with pytest.raises(DataError, match=r"no question that can be asked .has 3 choices, not 5"):
        load_task(str(lines(tmp_path / "t.jsonl", GOOD)), five_choice=True)


@pytest.mark.parametrize("suffix", ["list", "lines", "csv", "parquet"])
def test_other_file_types(tmp_path: Path, suffix: str) -> None:
    entries = [GOOD | {"groups": {"facts": "new"}}, GOOD | {"id": "q2", "answer": ["a"]}]
    if suffix == "list":
        path = tmp_path / "t.json"
        path.write_text(json.dumps(entries, indent=1))
    elif suffix == "lines":
        path = lines(tmp_path / "t.json", *entries)
    elif suffix == "csv":
        path = tmp_path / "t.csv"
        cells = [["id", "question", "A", "B", "C", "D", "answer", "human_accuracy", "groups.facts"]]
        for e, facts in zip(entries, ("new", ""), strict=True):
            cells.append([e["id"], e["question"], *e["choices"], "", e["answer"][0], "", facts])
        path.write_text("\ufeff" + table(cells), encoding="utf-8")
    else:
        path = parquet(tmp_path / "t.parquet", entries)
    assert [(i.id, i.choices, i.answers, i.groups) for i in one(str(path)).items] == [
        ("q1", ("six", "eight", "ten"), (1,), {"facts": "new"}),
        ("q2", ("six", "eight", "ten"), (0,), {}),
    ]


def test_parquet_whose_dictionary_repeats_one_long_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few kilobytes that stand for as much as one likes; what the file says of its size counts the value once."""
    path = parquet(tmp_path / "t.parquet", [{**GOOD, "id": f"q{i}", "question": "a" * 40_000} for i in range(100)])
    assert path.stat().st_size < 10_000
    monkeypatch.setattr("jmedlite.benchmarks.tasks.rows.MAX_BYTES", 1_000_000)
    with pytest.raises(DataError, match="unpacks to more than the 1,000,000 bytes"):
        load_task(f"own={path}")


@pytest.mark.parametrize("type_", ["duration", "timestamp", "zone"])
def test_parquet_values_that_python_has_none_for(tmp_path: Path, type_: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    types = {
        "duration": pyarrow.duration("s"), "timestamp": pyarrow.timestamp("us"),
        "zone": pyarrow.timestamp("us", tz="Nowhere/Land"),
    }  # fmt: skip
    value = pyarrow.array([1 if type_ == "zone" else 1 << 62], pyarrow.int64()).cast(types[type_])
    table = pyarrow.Table.from_pylist([GOOD]).append_column("when", value)
    import pyarrow.parquet

    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"t\.parquet: is not a parquet file that can be read"):
        load_task(f"own={tmp_path / 't.parquet'}")


READ_WITHIN = """
import sys
from jmedlite.benchmarks.tasks import load, rows
rows.MEMORY = 100_000_000
try:
    load.load_task("own=" + sys.argv[1])
except Exception as e:
    print(f"{type(e).__name__}: {e}")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the system bounds no address space")
def test_parquet_that_takes_too_much_memory(tmp_path: Path) -> None:
    """In a process of its own: where pyarrow has read much already, it has reserved as much address space."""
    path = parquet(tmp_path / "t.parquet", [{**GOOD, "id": f"q{i}", "question": "a" * 30_000_000} for i in range(8)])
    found = subprocess.run([sys.executable, "-c", READ_WITHIN, str(path)], capture_output=True, text=True, check=False)
    assert "DataError: t.parquet: takes more than 100,000,000 bytes of memory" in found.stdout, found


def test_parquet_needs_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(tmp_path / "t.parquet", [GOOD])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UsageError, match=r'pip install "jmedlite\[parquet\]"'):
        load_task(str(path))
    with pytest.raises(UsageError, match=r"jmedlite\[parquet\]"):  # and nothing was asked of the Hub
        load_task("medmcqa")


# ------------------------------------------------------------------------------------------------------- faults

FAULTS: dict[str, tuple[Any, str]] = {
    "bad JSON": ('{"question": ', "is not JSON"),
    "no object": ("[1, 2]", "is a list, expected an object"),
    "nested": ("[" * 200_000, "is not JSON"),
    "NaN": (json.dumps(GOOD | {"human_accuracy": float("nan")}), "NaN is no number"),
    "no question": ({k: v for k, v in GOOD.items() if k != "question"}, "has no field question"),
    "no choices field": ({k: v for k, v in GOOD.items() if k != "choices"}, "has no field choices"),
    "no answer": ({k: v for k, v in GOOD.items() if k != "answer"}, "has no field answer"),
    "null": (GOOD | {"answer": None}, "has no field answer"),
    "empty question": (GOOD | {"question": " 　"}, "question is empty"),
    "question not text": (GOOD | {"question": 5}, "question is not text"),
    "NUL": (GOOD | {"question": "a\0b"}, "question has a NUL"),
    "surrogate": ('{"question": "\\ud800", "choices": ["x", "y"], "answer": 0}', "half a character"),
    "empty choice": (GOOD | {"choices": ["six", " ", "ten"]}, "choices, number 2, is empty"),
    "choice not text": (GOOD | {"choices": ["six", 8]}, "choices, number 2, is not text"),
    "choices not a list": (GOOD | {"choices": "six, eight"}, "choices is not a list"),
    "one choice": (GOOD | {"choices": ["six"]}, "has 1 choices, expected 2 to 26"),
    "27 choices": (GOOD | {"choices": [f"c{i}" for i in range(27)]}, "has 27 choices, expected 2 to 26"),
    "letter outside": (GOOD | {"answer": "d"}, r"answer 'd' is outside the choices \(A to C\)"),
    "index outside": (GOOD | {"answer": 3}, r"answer 3 is outside the choices \(0 to 2\)"),
    "negative index": (GOOD | {"answer": -1}, "answer -1 is outside"),
    "true": (GOOD | {"answer": True}, "is not a whole number"),
    "fraction": (GOOD | {"answer": 1.0}, "is not a whole number"),
    "other text": (GOOD | {"answer": "seven"}, "neither a letter nor one of the choices"),
    "answer twice": (GOOD | {"answer": ["b", 1]}, "names a choice twice"),
    "no right answer": (GOOD | {"answer": []}, "answer is empty"),
    "letter or text": (GOOD | {"choices": ["b", "a"], "answer": "a"}, "could be choice 0 or 1, give its index"),
    "language": (GOOD | {"lang": "de"}, "lang 'de' is unknown, expected ja or en"),
    "group": (GOOD | {"group": 3}, "group is not text"),
    "groups": (GOOD | {"groups": ["adapter"]}, "groups is not an object"),
    "side of groups": (GOOD | {"groups": {" ": "x"}}, "groups, a side, is empty"),
    "one of groups": (GOOD | {"groups": {"facts": 3}}, r"groups\.facts is not text"),
    "side that all have": (GOOD | {"groups": {"lang": "ja"}}, "groups names lang, which every question has"),
    "id": (GOOD | {"id": [1]}, "id is not text"),
    "contraindicated": (GOOD | {"contraindicated": ["e"]}, "contraindicated 'e' is outside"),
    "accuracy": (GOOD | {"human_accuracy": 101}, "human_accuracy 101 is outside 0 to 100"),
    "duplicate id": (GOOD | {"id": "first"}, r"has the same id as t\.jsonl, line 1 \(first\)"),
    "long line": (json.dumps(GOOD | {"question": "x" * (1 << 20)}), "more than the 1,048,576"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_rows_are_named_or_counted(tmp_path: Path, fault: str) -> None:
    entry, reason = FAULTS[fault]
    path = lines(tmp_path / "t.jsonl", GOOD | {"id": "first"}, entry, GOOD | {"id": "last"})
    with pytest.raises(DataError, match=rf"^t\.jsonl, line 2: .*{reason}") as caught:
        load_task(str(path))
    assert "--skip-bad" in str(caught.value)
    assert "\n" not in str(caught.value)
    dataset = one(str(path), skip_bad=True)
    assert [i.id for i in dataset.items] == ["first", "last"]
    ((left),) = dataset.left
    assert left.id == "t.jsonl, line 2"
    assert re.match(r"bad row \(.*" + reason, left.reason)


@pytest.mark.parametrize(
    ("raw", "number", "reason"),
    [
        (b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), 1, "byte order mark"),
        (json.dumps(GOOD).encode("utf-16"), 1, "is not UTF-8"),
        (json.dumps(GOOD).encode() + b'\n{"question": "\x93\xfa\x96{"}', 2, "is not UTF-8 .byte 15"),
    ],
)
def test_encodings(tmp_path: Path, raw: bytes, number: int, reason: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=rf"t\.jsonl, line {number}: .*{reason}"):
        load_task(str(path))
    path.write_bytes(raw + b"\n" + json.dumps(GOOD | {"id": "last"}).encode())
    dataset = one(str(path), skip_bad=True)
    assert dataset.items[-1].id == "last"
    assert any(reason.split(" .", maxsplit=1)[0] in entry.reason for entry in dataset.left)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("t.jsonl", b" \n", "t.jsonl: is empty"),
        ("t.json", b"", "t.json: is empty"),
        ("t.json", b'[\n{"question": }]', "t.json, line 2: is not JSON"),
        ("t.json", b"\xef\xbb\xbf[]", "t.json, line 1: .*BOM"),
        ("t.json", b"[" * 200_000, "t.json: is not JSON"),
        ("t.json", b"[]", "no question that can be asked"),
        ("t.json", b"[7]", "t.json, entry 1: is a number, expected an object"),
        ("t.csv", b"1,2\n3,4\n", "t.csv, line 1: is no header"),
        ("t.csv", b'question,A,B,answer\nx,y,z,a\n"torn', "t.csv, line 3: is not CSV"),
        ("t.csv", b"question,A,B,answer\nx,y,z\n", "t.csv, line 2: has 3 cells, expected 4"),
        ("t.csv", b"question,A,B,answer\nx,\x93\xfa,z,a\n", "t.csv, line 2: is not UTF-8"),
        ("t.parquet", b"PAR1 no", "t.parquet: is not a parquet file"),
        ("t.parquet", b"", "t.parquet: is not a parquet file"),
    ],
)
def test_spoilt_files(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        load_task(str(path))
    assert "\n" not in str(caught.value)


def test_large_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_BYTES", 100)
    with pytest.raises(DataError, match="more than 100 bytes"):
        load_task(str(lines(tmp_path / "t.jsonl", GOOD, GOOD)))
    with pytest.raises(DataError, match=r"unpacks to .* more than the 100"):
        load_task(str(parquet(tmp_path / "t.parquet", [GOOD] * 20)))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputMissing, match="no such file"):
        load_task(str(tmp_path / "t.jsonl"))
    with pytest.raises(InputMissing, match="no such file"):
        load_task(f"medqa={tmp_path / 'none'}")
    with pytest.raises(InputMissing, match="no such file"):
        load_task(f"igakuqa={tmp_path / 'none'}")
    (tmp_path / "d.jsonl").mkdir()
    with pytest.raises(InputMissing, match="is not a regular file, but a folder"):
        load_task(str(tmp_path / "d.jsonl"))
    (tmp_path / "t.txt").touch()
    with pytest.raises(UsageError, match=r"expected a file that ends with \.jsonl"):
        load_task(str(tmp_path / "t.txt"))
    locked = lines(tmp_path / "locked.jsonl", GOOD)
    locked.chmod(0)
    if not os.access(locked, os.R_OK):
        with pytest.raises(NotPermitted):
            load_task(str(locked))


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("medqqa", "no such task or file; known are demo, igakuqa, igakuqa119,"),
        ("mine=", "has no path after the ="),
        ("", "no such task or file"),
    ],
)
def test_specs_that_mean_nothing(spec: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        load_task(spec)


def test_all_rows_bad(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no question that can be asked .2 rows left out"):
        load_task(str(lines(tmp_path / "t.jsonl", "x", "y")), skip_bad=True)


def test_a_path_with_an_equals_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines(tmp_path / "a=b.jsonl", GOOD)
    monkeypatch.chdir(tmp_path)
    assert one("a=b.jsonl").task == "a=b"


# ------------------------------------------------------------------------------------------------------ IgakuQA


def exam(folder: Path, *, translate: bool = True, metadata: bool = True) -> Path:
    def row(key: str, **fields: Any) -> dict[str, Any]:
        plain = {"problem_text": f"{key} はどれか。", "choices": list("アイウエオ"), "text_only": True, "points": "1"}
        return {"problem_id": key, **plain, "answer": ["a"], **fields}

    questions = [
        row("9A1"),
        row("9A2", answer=["e", "b"]),
        row("9A3", text_only=False, choices=["　", "　"]),
        row("9A4", choices=[], answer=["26"]),
        row("9A5", choices=list("アイウエオカ"), answer=["ｆ"]),
        row("9A6", answer=["a or d"]),
    ]
    lines(folder / "data" / "2001" / "9-A.jsonl", *questions)
    lines(folder / "data" / "2001" / "9-B.jsonl", row("9B1"))
    if translate:
        english = [
            {"problem_id": q["problem_id"], "problem_text_en": "Which?", "choices_en": [f"c{c}" for c in q["choices"]]}
            for q in questions
        ]
        lines(folder / "data" / "2001" / "9-A_translate.jsonl", *english)
    if metadata:
        details = [
            {"problem_id": "9A1", "category": "循環器", "kinki": ["de"], "human_accuracy": "93.5"},
            {"problem_id": "9A2", "category": "", "kinki": ["ｃ", "d"], "human_accuracy": ""},
            {"problem_id": "9A5", "category": None, "kinki": 3, "human_accuracy": "400"},
        ]
        lines(folder / "data" / "2001" / "9-A_metadata.jsonl", *details)
    return folder


def test_igakuqa(tmp_path: Path) -> None:
    clone = exam(tmp_path / "IgakuQA")
    ja, en = load_task(f"igakuqa={clone}")
    assert (ja.name, en.name) == ("igakuqa-ja", "igakuqa-en")
    assert [(i.id, i.answers, i.group, i.contraindicated, i.human_accuracy) for i in ja.items] == [
        ("9A1", (0,), "循環器", (3, 4), 93.5),
        ("9A2", (1, 4), None, (2, 3), None),
        ("9A5", (5,), None, (), None),
        ("9B1", (0,), None, (), None),
    ]
    reasons = {entry.id: entry.reason for entry in ja.left}
    assert reasons == {
        "9A3": "needs an image",
        "9A4": "has no choices",
        "9A6": "counts either of two answers as right",
    }
    assert [i.id for i in en.items] == ["9A1", "9A2", "9A5"]
    assert en.items[0].choices[0] == "cア"
    assert en.items[0].group == "循環器"
    assert {entry.id: entry.reason for entry in en.left} == reasons | {"9B1": "has no translation"}
    assert [f["name"] for f in ja.files] == ["2001/9-A.jsonl", "2001/9-A_metadata.jsonl", "2001/9-B.jsonl"]
    assert len(en.files) == 4
    for folder in (clone / "data", clone / "data" / "2001", tmp_path):
        assert [d.items for d in load_task(f"igakuqa={folder}")] == [ja.items, en.items]
    assert len(one(f"igakuqa={clone / 'data' / '2001' / '9-B.jsonl'}", languages=["ja"]).items) == 1


def test_igakuqa_without_its_companions(tmp_path: Path) -> None:
    clone = exam(tmp_path, translate=False, metadata=False)
    ja = one(f"igakuqa={clone}")
    assert len(ja.items) == 4
    assert {i.group for i in ja.items} == {None}
    with pytest.raises(InputMissing, match="translate"):
        load_task(f"igakuqa={clone}", ["en"])


def test_igakuqa_without_a_path() -> None:
    with pytest.raises(InputMissing, match=r"git clone https://github\.com/jungokasai/IgakuQA"):
        load_task("igakuqa")


def test_igakuqa_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(InputMissing, match="expected a clone of IgakuQA"):
        load_task(f"igakuqa={tmp_path}")


@pytest.mark.parametrize(
    ("file", "row", "place", "kept"),
    [
        ("9-A.jsonl", {"problem_id": "9A7"}, "2001/9-A.jsonl, line 7: has no field text_only", 4),
        ("9-A_metadata.jsonl", "{", "2001/9-A_metadata.jsonl, line 4: is not JSON", 4),
        ("9-A_translate.jsonl", {"problem_id": "8A1"}, "2001/9-A_translate.jsonl, line 7: .*no question of this", 4),
        ("9-A_metadata.jsonl", {"problem_id": "9A1"}, "2001/9-A_metadata.jsonl, line 4: .*second time", 4),
    ],
)
def test_igakuqa_faults(tmp_path: Path, file: str, row: Any, place: str, kept: int) -> None:
    clone = exam(tmp_path)
    path = clone / "data" / "2001" / file
    text = row if isinstance(row, str) else json.dumps(row)
    path.write_text(path.read_text(encoding="utf-8") + text + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=place):
        load_task(f"igakuqa={clone}")
    ja, en = load_task(f"igakuqa={clone}", skip_bad=True)
    assert len(ja.items) == kept
    assert len(ja.items) + len(ja.left) == len(en.items) + len(en.left)
    assert ja.items[0].group == "循環器"


@pytest.mark.realmodel
@pytest.mark.skipif("JMEDLITE_IGAKUQA" not in os.environ, reason="JMEDLITE_IGAKUQA is not set")
def test_the_real_igakuqa() -> None:
    """The years 2018 to 2020."""
    for dataset in load_task(f"igakuqa={os.environ['JMEDLITE_IGAKUQA']}", five_choice=True):
        assert len(dataset.items) == 860
        assert Counter(entry.reason for entry in dataset.left) == {
            "needs an image": 331,
            "has no choices": 7,
            "has 6 choices, not 5": 1,
            "has 8 choices, not 5": 1,
        }
        assert Counter(len(i.answers) for i in dataset.items) == {1: 729, 2: 106, 3: 25}
        assert len({i.id for i in dataset.items} | {entry.id for entry in dataset.left}) == 1200
        assert all(i.group for i in dataset.items)
        assert sum(i.human_accuracy is None for i in dataset.items) == 5  # the source has none for these
        assert sum(bool(i.contraindicated) for i in dataset.items) == 48


# --------------------------------------------------------------------------------------- other published formats

MEDQA = {
    "question": "A made-up patient sneezes. What is it?", "answer": "Cold",
    "options": {"A": "Gout", "B": "Cold", "C": "Burn", "D": "Ulcer"},
    "meta_info": "step1", "answer_idx": "B", "metamap_phrases": ["sneezes"],
}  # fmt: skip
MEDMCQA = {
    "id": "aa-1", "question": "Made-up: colour of blood?", "opa": "red", "opb": "green", "opc": "blue", "opd": "grey",
    "cop": 0, "choice_type": "single", "exp": None, "subject_name": "Physiology", "topic_name": None,
}  # fmt: skip
PUBMEDQA = {
    "pubid": 42, "question": "Does a made-up drug help?",
    "context": {"contexts": ["We tried.", "It did."], "labels": []}, "long_answer": "Yes.", "final_decision": "yes",
}  # fmt: skip


def test_medqa(tmp_path: Path) -> None:
    lines(tmp_path / "phrases_no_exclude_train.jsonl", MEDQA | {"question": "Another?"}, "broken")
    path = lines(tmp_path / "phrases_no_exclude_test.jsonl", MEDQA)
    dataset = one(f"medqa={tmp_path}", with_examples=True)
    item = Item("1", MEDQA["question"], ("Gout", "Cold", "Burn", "Ulcer"), (1,), "en", "step1")
    assert dataset.items == (item,)
    assert [(e.id, e.question) for e in dataset.examples] == [("example-1", "Another?")]
    assert [f["name"] for f in dataset.files] == ["phrases_no_exclude_test.jsonl", "phrases_no_exclude_train.jsonl"]
    assert (dataset.name, dataset.revision, dataset.license) == ("medqa-en", None, "cc-by-4.0")
    assert one(f"medqa={path}").items == (item,)
    assert one(f"medqa={parquet(tmp_path / 'm.parquet', [MEDQA])}").items == (item,)


def test_medmcqa(tmp_path: Path) -> None:
    entries = [MEDMCQA, MEDMCQA | {"id": "aa-2", "cop": 3}, MEDMCQA | {"id": "aa-3", "cop": -1}]
    parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", entries)
    parquet(tmp_path / "data" / "train-00000-of-00001.parquet", [MEDMCQA | {"question": "Another?"}])
    dataset = one(f"medmcqa={tmp_path}", with_examples=True)
    assert [(i.id, i.answers, i.group) for i in dataset.items] == [
        ("aa-1", (0,), "Physiology"),
        ("aa-2", (3,), "Physiology"),
    ]
    assert [(entry.id, entry.reason) for entry in dataset.left] == [("aa-3", "its answer is not published")]
    assert len(dataset.examples) == 1
    assert one(f"medmcqa={lines(tmp_path / 'validation.jsonl', *entries)}").items == dataset.items


def test_medmcqa_counted_from_one(tmp_path: Path) -> None:
    path = lines(tmp_path / "dev.json", MEDMCQA | {"cop": 4}, MEDMCQA | {"id": "aa-2"})
    with pytest.raises(DataError, match=r"line 1: cop is 4, .*counts from 1"):
        load_task(f"medmcqa={path}", skip_bad=True)


def mmlu_row(subject: str, n: int) -> dict[str, Any]:
    return {"question": f"{subject} {n}?", "subject": subject, "choices": ["w", "x", "y", "z"], "answer": n % 4}


def test_mmlu(tmp_path: Path) -> None:
    for subject in MEDICAL_SUBJECTS:
        parquet(tmp_path / subject / "test-00000-of-00001.parquet", [mmlu_row(subject, n) for n in range(2)])
        parquet(tmp_path / subject / "dev-00000-of-00001.parquet", [mmlu_row(subject, 9)])
    dataset = one(f"mmlu-medical={tmp_path}", with_examples=True)
    assert len(dataset.items) == 12
    assert dataset.items[3] == Item(
        "clinical_knowledge-2", "clinical_knowledge 1?", ("w", "x", "y", "z"), (1,), "en", "clinical_knowledge"
    )
    assert [e.id for e in dataset.examples] == [f"example-{s}-1" for s in MEDICAL_SUBJECTS]
    entries = [mmlu_row("astronomy", 0), mmlu_row("anatomy", 0), mmlu_row("anatomy", 1)]
    everything = one(f"mmlu-medical={parquet(tmp_path / 'all' / 'test.parquet', entries)}")
    assert everything.items == dataset.items[:2]
    assert [(entry.id, entry.reason) for entry in everything.left] == [("astronomy-1", "not a medical subject")]


def test_mmlu_as_its_authors_publish_it(tmp_path: Path) -> None:
    for subject in MEDICAL_SUBJECTS:
        for split, n in (("test", 1), ("dev", 2)):
            path = tmp_path / split / f"{subject}_{split}.csv"
            path.parent.mkdir(exist_ok=True)
            path.write_text(table([[f"{subject} {n}?", "w", "x", "y", "z", "C"]]))
    dataset = one(f"mmlu-medical={tmp_path}", with_examples=True)
    assert [(i.id, i.answers, i.group) for i in dataset.items] == [(f"{s}-1", (2,), s) for s in MEDICAL_SUBJECTS]
    assert len(dataset.examples) == 6
    (tmp_path / "test" / "anatomy_test.csv").unlink()
    with pytest.raises(InputMissing, match="anatomy"):
        load_task(f"mmlu-medical={tmp_path}")


@pytest.mark.parametrize("method", ["ZIP_STORED", "ZIP_DEFLATED", "ZIP_BZIP2", "ZIP_LZMA"])
def test_a_zip_whose_data_are_damaged(tmp_path: Path, method: str) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", getattr(zipfile, method)) as archive:
        archive.writestr("q.csv", random.Random(0).randbytes(300).hex())
    whole = path.read_bytes()
    for at in range(40, 300, 13):
        path.write_bytes(whole[:at] + bytes(6) + whole[at + 6 :])
        with pytest.raises(DataError, match="not a zip archive that can be read"):
            zip_members(path, ["q.csv"])


def jmmlu_zip(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for subject in MEDICAL_SUBJECTS:
            cells = [["question", "A", "B", "C", "D", "answer"], [f"{subject}\nは？", "一", "二", "三", "四", "D"]]
            archive.writestr(f"__MACOSX/JMMLU/test/._{subject}.csv", b"\0\0")
            archive.writestr(f"JMMLU/dev/{subject}.csv", "not this one")
            archive.writestr(f"JMMLU/test/{subject}.csv", "\ufeff" + table(cells))
        archive.writestr("JMMLU/test/astronomy.csv", "not this one")
    return path


def test_jmmlu(tmp_path: Path) -> None:
    path = jmmlu_zip(tmp_path / "JMMLU.zip")
    dataset = one(f"jmmlu-medical={path}")
    assert [i.id for i in dataset.items] == [f"{s}-1" for s in MEDICAL_SUBJECTS]
    assert dataset.items[0] == Item("anatomy-1", "anatomy\nは？", ("一", "二", "三", "四"), (3,), "ja", "anatomy")
    assert one(f"jmmlu-medical={tmp_path}").items == dataset.items
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "out")
    assert one(f"jmmlu-medical={tmp_path / 'out'}").items == dataset.items


def test_jmmlu_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "no.zip").write_bytes(b"<html>")
    with pytest.raises(DataError, match="not a zip archive"):
        load_task(f"jmmlu-medical={tmp_path / 'no.zip'}")
    with zipfile.ZipFile(tmp_path / "less.zip", "w") as archive:
        archive.writestr("anatomy.csv", "x")
    with pytest.raises(DataError, match=r"holds no clinical_knowledge\.csv"):
        load_task(f"jmmlu-medical={tmp_path / 'less.zip'}")
    path = jmmlu_zip(tmp_path / "JMMLU.zip")
    monkeypatch.setattr(rows, "MAX_BYTES", 10)
    with pytest.raises(DataError, match="too much for a task"):
        load_task(f"jmmlu-medical={path}")
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        for subject in MEDICAL_SUBJECTS:
            archive.writestr(f"{subject}.csv", "\n問,一,二,三,四,E\n")
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"bad\.zip/anatomy\.csv, line 2: answer 'E' is outside"):
        load_task(f"jmmlu-medical={tmp_path / 'bad.zip'}")


def test_pubmedqa(tmp_path: Path) -> None:
    item = Item("42", PUBMEDQA["question"], ("yes", "no", "maybe"), (0,), "en", context="We tried.\nIt did.")
    parquet(tmp_path / "pqa_labeled" / "train-00000-of-00001.parquet", [PUBMEDQA])
    assert one(f"pubmedqa={tmp_path}").items == (item,)
    own = {"QUESTION": item.question, "CONTEXTS": ["We tried.", "It did."], "final_decision": "yes"}
    path = tmp_path / "other" / "ori_pqal.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"42": own}, indent=1))
    assert one(f"pubmedqa={path.parent}").items == (item,)
    path.write_text(json.dumps({"42": own, "43": own | {"final_decision": "perhaps"}}))
    with pytest.raises(DataError, match=r"ori_pqal\.json, entry 2: final_decision is 'perhaps'"):
        load_task(f"pubmedqa={path}")


def test_jmedbench(tmp_path: Path) -> None:
    row = {
        "sample_id": "s", "question": "作り話の患者？", "options": ["甲", "乙", "丙"], "answer_idx": 2, "n_options": 3,
        "metadata": {"context": "要旨。", "subject_name": "内科"},
    }  # fmt: skip
    lines(tmp_path / "pubmedqa_jp" / "test.jsonl", row, row | {"metadata": {}})
    dataset = one(f"jmedbench-pubmedqa={tmp_path}")
    assert dataset.items == (
        Item("1", "作り話の患者？", ("甲", "乙", "丙"), (2,), "ja", "内科", context="要旨。"),
        Item("2", "作り話の患者？", ("甲", "乙", "丙"), (2,), "ja"),
    )
    assert one(f"jmedbench-pubmedqa={tmp_path / 'pubmedqa_jp'}").items == dataset.items
    lines(tmp_path / "medqa_jp" / "test.jsonl", row | {"answer_idx": 3})
    with pytest.raises(DataError, match=r"medqa_jp/test\.jsonl, line 1: answer_idx 3 is outside"):
        load_task(f"jmedbench-medqa={tmp_path}")


@pytest.mark.parametrize(
    ("task", "row", "reason"),
    [
        ("medqa", MEDQA | {"options": ["x", "y"]}, "options is not an object"),
        ("medqa", MEDQA | {"options": {"A": "x", "C": "y"}}, "options are lettered A, C"),
        ("medqa", MEDQA | {"answer_idx": "E"}, "answer_idx 'E' is outside"),
        ("medmcqa", MEDMCQA | {"opc": ""}, "number 3, is empty"),
        ("medmcqa", MEDMCQA | {"cop": "1"}, "cop '1' is not a whole number"),
        ("pubmedqa", PUBMEDQA | {"context": None}, "contexts is not a list"),
        ("mmlu-medical", {"question": "x", "choices": ["y", "z"], "answer": 0}, "has no field subject"),
        ("jmedbench-medmcqa", {"question": "x", "answer_idx": 0}, "has no field options"),
    ],
)
def test_faults_of_other_formats(tmp_path: Path, task: str, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=f"t.jsonl, line 1: .*{reason}"):
        load_task(f"{task}={lines(tmp_path / 't.jsonl', row)}")


@pytest.mark.parametrize("task", [t for t in TASKS if TASKS[t].repo])
def test_folders_without_the_task(tmp_path: Path, task: str) -> None:
    with pytest.raises(InputMissing, match=f"expected a copy of https://huggingface.co/datasets/{TASKS[task].repo}"):
        load_task(f"{task}={tmp_path}")


def test_two_copies_in_a_folder(tmp_path: Path) -> None:
    for copy in "ab":
        lines(tmp_path / copy / "phrases_no_exclude_test.jsonl", MEDQA)
    with pytest.raises(UsageError, match=r"has 2 files phrases_no_exclude_test\.jsonl"):
        load_task(f"medqa={tmp_path}")


# ---------------------------------------------------------------------------------------------------- downloads


class FakeHub:
    """Serves the files of one data set at one commit."""

    def __init__(self, folder: Path, repo: str, commit: str) -> None:
        self.requests: list[str] = []
        self.html = False
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None: ...

            def do_HEAD(self) -> None:
                self.do_GET(body=False)

            def do_GET(self, body: bool = True) -> None:
                path = self.path.partition("?")[0]
                hub.requests.append(path)
                files = {f.relative_to(folder).as_posix(): f for f in folder.rglob("*") if f.is_file()}
                headers, status, data = {"Content-Type": "application/json"}, 404, b"{}"
                name = path.removeprefix(f"/datasets/{repo}/resolve/{commit}/")
                if hub.html:
                    status, data, headers = 200, b"<html>please log in</html>", {"Content-Type": "text/html"}
                elif path.startswith(f"/api/datasets/{repo}"):
                    entries = [(n, f.stat().st_size) for n, f in files.items()]
                    tree = [{"type": "file", "path": n, "size": size, "oid": "0" * 40} for n, size in entries]
                    siblings = [{"rfilename": n, "size": size} for n, size in entries]
                    info = {"id": repo, "sha": commit, "private": False, "tags": [], "siblings": siblings}
                    status, data = 200, json.dumps(tree if "/tree/" in path else info).encode()
                elif name in files:
                    status, data = 200, files[name].read_bytes()
                    headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": commit}
                else:
                    headers["X-Error-Code"] = "RepoNotFound"
                self.send_response(status)
                for key, value in (headers | {"Content-Length": str(len(data))}).items():
                    self.send_header(key, value)
                self.end_headers()
                if body:
                    self.wfile.write(data)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    task = TASKS["medqa"]
    lines(tmp_path / "served" / task.test[0], MEDQA)
    lines(tmp_path / "served" / task.examples[0], MEDQA | {"question": "Another?"})
    lines(tmp_path / "served" / "other.jsonl", "not wanted")
    server = FakeHub(tmp_path / "served", task.repo, task.revision)
    yield server
    server.server.shutdown()
    server.server.server_close()


def download(tmp_path: Path, hub: FakeHub, options: str = "", task: str = "medqa", **env: str) -> dict[str, Any]:
    """`load_task` in a process of its own (huggingface_hub reads its settings once): the data set, or the fault."""
    code = f"""
import json
from jmedlite.base.errors import JmedliteError
from jmedlite.benchmarks.tasks.load import load_task
try:
    (d,) = load_task({task!r}, {options})
    print(json.dumps([d.revision, [i.id for i in d.items], [e.id for e in d.examples], d.files]))
except JmedliteError as e:
    print(json.dumps({{"code": e.exit_code, "text": str(e)}}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=hub_environment(hub.url, tmp_path, **env),
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    if isinstance(found, dict):
        assert "\n" not in found["text"]
        return found
    return dict(zip(("revision", "items", "examples", "files"), found, strict=True))


def test_download_takes_what_is_needed_and_only_once(tmp_path: Path, hub: FakeHub) -> None:
    task = TASKS["medqa"]
    found = download(tmp_path, hub)
    sha256 = hashlib.sha256((tmp_path / "served" / task.test[0]).read_bytes()).hexdigest()
    assert found == {
        "revision": task.revision, "items": ["1"], "examples": [], "files": [{"name": task.test[0], "sha256": sha256}],
    }  # fmt: skip
    assert {r.rpartition("/")[2] for r in hub.requests if "/resolve/" in r} == {task.test[0]}
    asked = len(hub.requests)
    assert download(tmp_path, hub) == found
    assert download(tmp_path, hub, HF_HUB_OFFLINE="1") == found
    assert len(hub.requests) == asked  # a pinned commit that is in the cache needs no network
    more = download(tmp_path, hub, "with_examples=True")
    assert more["examples"] == ["example-1"]
    assert [f["name"] for f in more["files"]] == [*task.test, *task.examples]


def test_download_of_another_revision(tmp_path: Path, hub: FakeHub) -> None:
    assert download(tmp_path, hub, "revision='main'")["revision"] == TASKS["medqa"].revision
    with pytest.raises(UsageError, match="only what comes from the Hub has revisions"):
        load_task("igakuqa", revision="main")


@pytest.mark.long
def test_download_faults(tmp_path: Path, hub: FakeHub) -> None:
    offline = download(tmp_path, hub, HF_HUB_OFFLINE="1")
    assert offline["code"] == 69
    assert "cache" in offline["text"]
    assert not hub.requests
    assert download(tmp_path, hub, HF_ENDPOINT="http://127.0.0.1:9")["code"] == 69
    missing = download(tmp_path, hub, task="jmedbench-medqa")
    assert missing["code"] == 66
    assert "Coldog2333/JMedBench: no such dataset" in missing["text"]
    hub.html = True
    assert download(tmp_path, hub)["code"] == 69
    hub.html = False
    assert download(tmp_path, hub)["items"] == ["1"]
    partly = download(tmp_path, hub, "with_examples=True", HF_HUB_OFFLINE="1")
    assert partly["code"] == 69
    assert TASKS["medqa"].repo in partly["text"]


# -------------------------------------------------------------------------------------------------------- the table


def test_table_of_tasks() -> None:
    """docs/tasks.md lists every task with the commit it is pinned at."""
    text = (DOCS / "tasks.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\| `([\w-]+)`", text.partition("\n## ")[0], re.MULTILINE)
    assert documented == [task.name for task in list_tasks()] == list(TASKS)
    for task in list_tasks():
        assert bool(task.date) or task.name in ("demo", "igakuqa")
        if task.repo or task.revision:
            assert re.fullmatch(r"[0-9a-f]{40}", task.revision)
            assert (task.repo or task.clone) in text
            assert task.revision in text
            assert task.license is None or task.license in text


def test_demo() -> None:
    try:
        found = load_task("demo")
    except JmedliteError as e:
        assert isinstance(e, InputMissing)
        assert "questions.jsonl" in str(e)
    else:
        assert {d.task for d in found} == {"demo"}


def test_an_answer_that_stands_there_twice_is_one(tmp_path: Path) -> None:
    (dataset,) = load_task(str(lines(tmp_path / "t.jsonl", GOOD | {"choices": ["same", "same"], "answer": "same"})))
    assert dataset.items[0].answers == (0,)


@pytest.mark.parametrize(
    ("answer", "right"), [("1", 1), (" 2 ", 2), ("b", 1), ("\N{FULLWIDTH LATIN SMALL LETTER C}", 2), ("liver", 0)]
)
def test_indices_of_a_csv_are_text(tmp_path: Path, answer: str, right: int) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"id,question,A,B,C,answer\nq1,Which?,liver,lung,skin,{answer}\n", encoding="utf-8")
    assert load_task(str(path))[0].items[0].answers == (right,)


@pytest.mark.parametrize(
    ("answer", "words"), [("1", "could be choice 0 or 1"), ("3", "outside the choices"), ("20", "")]
)
def test_numbers_among_the_choices_of_a_csv(tmp_path: Path, answer: str, words: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"question,A,B,C,answer\nHow many?,1,20,30,{answer}\n", encoding="utf-8")
    if words:
        with pytest.raises(DataError, match=words):
            load_task(str(path))
    else:
        assert load_task(str(path))[0].items[0].answers == (1,)


def test_medmcqa_that_may_count_from_one_is_refused(tmp_path: Path) -> None:
    row = {"opa": "w", "opb": "x", "opc": "y", "opd": "z", "question": "Which?", "subject_name": "s"}
    path = lines(tmp_path / "dev.jsonl", *({**row, "id": f"i{k}", "cop": 1 + k % 3} for k in range(12)))
    with pytest.raises(DataError, match="none of the 12 rows has cop 0"):
        load_task(f"medmcqa={path}")
    lines(tmp_path / "dev.jsonl", *({**row, "id": f"i{k}", "cop": k % 3} for k in range(12)))
    assert len(load_task(f"medmcqa={path}")[0].items) == 12


def test_a_number_before_separators() -> None:
    """str.strip() takes them off, int() does not (a finding of tools/fuzz_bytes.py)."""
    assert place("0\x1c\x1c", ("x", "y"), numbers=True) == 0
