"""The run folder: written once, appended to, resumed; refused where it is another run; never left torn."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from jmedlite.base.errors import Busy, CannotCreate, DataError
from jmedlite.base.records import from_json, to_json
from jmedlite.benchmarks.records import AnswerRecord, MeasureRecord, QuestionRecord
from jmedlite.benchmarks.run.folder import ITEMS, MEASURES, RUN, RunFolder, document_differences
from tests.support import runs

DOCUMENT: dict[str, Any] = {
    "created": "2026-01-01",
    "machine": {"cpu": "A", "ram_bytes": 1},
    "settings": {"seed": 0, "rounds": 3},
    "models": [{"name": "m-Q8_0", "sha256": "aa"}, {"name": "m-Q4_0", "sha256": "bb"}],
    "asks": [{"task": "t-en", "method": "letter", "template": {"sha256": "x"}}],
}
ASKED = [runs.question(i, "t-en", id=str(i)) for i in range(3)]
QUESTIONS = [from_json(q, QuestionRecord, "question") for q in ASKED]
KEYS = [(m, "t-en", "letter", 0, str(i)) for m in ("m-Q8_0", "m-Q4_0") for i in range(3)]


def answer(n: int) -> AnswerRecord:
    return from_json(runs.answer(ASKED[n % 3], KEYS[n][0], right=n > 1), AnswerRecord, "answer")


def measure(round_: int) -> MeasureRecord:
    return from_json(runs.measure("m-Q8_0", round_), MeasureRecord, "measure")


def opened(folder: Path, **changes: Any) -> RunFolder:
    return RunFolder(folder, {**copy.deepcopy(DOCUMENT), **changes}, QUESTIONS, KEYS)


def test_resume_counts_what_is_whole(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as run:
        assert not run.resumed
        run.add_items([answer(0), answer(1)])
    with (tmp_path / "run" / ITEMS).open("a") as file:
        file.write('{"model": "m-Q8_0", "ta')  # a power cut
    with opened(tmp_path / "run") as run:
        assert run.resumed
        assert run.n_items == 2
        run.keep_items(1)
        run.add_items([answer(1), answer(2)])
    lines = (tmp_path / "run" / ITEMS).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [to_json(answer(n)) for n in range(3)]
    assert run.items(1) == [answer(1), answer(2)]
    assert run.items(0, 1) == [answer(0)]


def test_a_run_from_before_analyses_were_declared_goes_on(tmp_path: Path) -> None:
    """With the analysis that its report goes by, not with another that is declared when there is something to see."""
    with opened(tmp_path):
        pass
    with opened(tmp_path, settings={**DOCUMENT["settings"], "primary": "letter"}) as run:
        assert run.resumed
    other = opened(tmp_path, settings={**DOCUMENT["settings"], "primary": "text:sum"})
    with pytest.raises(DataError, match=r'settings\.primary was "letter", is "text:sum"'), other:
        pass


def test_a_torn_measure_is_cut_off(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        run.append(MEASURES, measure(0))
    with (tmp_path / MEASURES).open("a") as file:
        file.write('{"model"')
    with opened(tmp_path) as run:
        run.append(MEASURES, measure(1))
        assert run.records(MEASURES, MeasureRecord) == [measure(0), measure(1)]
    (tmp_path / MEASURES).write_text('{"model": "m-Q8_0", "round": 0, "speed": 1}\n')
    with pytest.raises(DataError, match=r'measures\.jsonl line 1: has an unknown field "speed"'):
        run.records(MEASURES, MeasureRecord)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"settings": {"seed": 1, "rounds": 3}}, r"settings\.seed was 0, is 1"),
        ({"models": [{"name": "m-Q8_0", "sha256": "cc"}, DOCUMENT["models"][1]]}, r'm-Q8_0\.sha256 was "aa", is "cc"'),
        ({"models": DOCUMENT["models"][:1]}, "models was m-Q8_0, m-Q4_0, is m-Q8_0"),
        ({"asks": [{**DOCUMENT["asks"][0], "template": {"sha256": "y"}}]}, r"t-en/letter\.template\.sha256"),
        ({"machine": {"cpu": "B", "ram_bytes": 1}}, r"machine\.cpu"),
    ],
)
def test_another_run_is_refused_with_what_changed(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with opened(tmp_path) as run:
        run.add_items([answer(0)])
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(DataError, match=says), opened(tmp_path, **changes):
        pass
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_what_no_score_depends_on_may_change(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    changes = {"created": "later", "machine": {"cpu": "A", "ram_bytes": 2}, "settings": {"seed": 0, "rounds": 9}}
    with opened(tmp_path, **changes) as run:
        assert run.resumed


def test_other_questions_are_refused(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    with pytest.raises(DataError, match="questions"), RunFolder(tmp_path, DOCUMENT, QUESTIONS[:2], KEYS):
        pass


def test_edited_results_are_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        run.add_items([answer(0), answer(1)])
    lines = (tmp_path / ITEMS).read_text().splitlines(keepends=True)
    (tmp_path / ITEMS).write_text("".join(reversed(lines)))
    with pytest.raises(DataError, match=r"line 1: is the result of .*'1'.*expected .*'0'"), opened(tmp_path):
        pass
    (tmp_path / ITEMS).write_text("no json\n")
    with pytest.raises(DataError, match="line 1: is damaged"), opened(tmp_path):
        pass


def test_two_at_once(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(Busy), opened(tmp_path):
        pass


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(CannotCreate, match=r"thesis\.txt"), opened(tmp_path):
        pass
    with pytest.raises(CannotCreate, match="is a file"), opened(tmp_path / "thesis.txt"):
        pass
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / RUN).write_text("{")
    with pytest.raises(DataError, match="damaged"), opened(tmp_path / "x"):
        pass


def test_differences_name_places() -> None:
    old = {"a": [1, 2], "b": [{"name": "x", "v": 1}]}
    new = {"a": [1, 3], "b": [{"name": "x", "v": 2}], "c": None}
    assert list(document_differences(old, new)) == [(("a",), "[1, 2]", "[1, 3]"), (("b", "x", "v"), "1", "2")]
