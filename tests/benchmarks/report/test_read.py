"""Reading run folders: what is whole, what was cut off, and every fault as one sentence with its exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jmedlite.base.errors import DataError, InputMissing, IoFault, JmedliteError
from jmedlite.benchmarks.report.read import Run, read_run
from jmedlite.benchmarks.report.report import report
from tests.support import runs as run_builder


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit run.json."""
    path = folder / "run.json"
    head = json.loads(path.read_text(encoding="utf-8"))
    edit(head)
    path.write_text(json.dumps(head), encoding="utf-8")


def change_line(folder: Path, name: str, **fields: Any) -> None:
    """Change fields of a file's third line; None removes nothing, it is null."""
    lines = (folder / name).read_text(encoding="utf-8").splitlines()
    lines[2] = json.dumps({**json.loads(lines[2]), **fields})
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_a_whole_run(tmp_path: Path) -> None:
    run = read_run(run_builder.small(tmp_path / "run", methods=("letter", "text", "generate"), n=5))
    assert [m.level for m in run.models] == ["BF16", "Q8_0", "Q4_K_M"]
    assert len(run.answers) == run.n_expected == 3 * 2 * 5 * 3
    assert run.torn == ()
    assert run.tasks[0].excluded == {"needs an image": 1}
    text = next(a for a in run.answers if a.method == "text")
    assert text.per_token is not None and text.n_tokens == (3, 3, 3, 3, 3)
    assert run.measures[0].question_seconds is not None and run.measures[0].vram_bytes is None
    assert run.questions["exam-ja", "q0"].contraindicated == (2,)


def test_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    folder = run_builder.small(tmp_path / "run", n=3)
    raw = (folder / "items.jsonl").read_bytes()
    for cut in (1, 2, 40, 150):
        (folder / "items.jsonl").write_bytes(raw[:-cut])
        run = read_run(folder)
        whole = cut == 1  # only the line's end is missing: the object itself is there
        assert len(run.answers) == (18 if whole else 17)
        assert run.torn == (() if whole else ("items.jsonl",))
    middle = raw.replace(b'"status": "scored"', b'"status": "sco', 1)
    (folder / "items.jsonl").write_bytes(middle)
    with pytest.raises(DataError, match=r"items\.jsonl line 1: is not JSON"):
        read_run(folder)


def test_a_killed_run(tmp_path: Path) -> None:
    folder = run_builder.small(tmp_path / "run", n=10, keep=lambda line: line["model"] == "qwen-BF16")
    for name in ("measures", "noise", "distance"):
        (folder / f"{name}.jsonl").unlink()
    run = read_run(folder)
    assert (len(run.answers), run.n_expected, run.measures) == (20, 60, ())
    (folder / "items.jsonl").unlink()
    assert read_run(folder).answers == ()


def test_a_run_that_goes_on_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run_builder.small(tmp_path / "run", n=3)

    def read(path: Path) -> Run:
        run = read_run(path)
        with (path / "items.jsonl").open("ab") as file:
            file.write(b"\n")
        return run

    monkeypatch.setattr("jmedlite.benchmarks.report.report.read_run", read)
    with pytest.raises(IoFault, match=r"items\.jsonl: was changed or replaced while it was read"):
        report([folder])


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(InputMissing, match="no such folder"):
        read_run(tmp_path / "none")
    with pytest.raises(InputMissing, match=r"has no run\.json"):
        read_run(tmp_path)
    folder = run_builder.small(tmp_path / "run", n=3)
    with pytest.raises(DataError, match="is a file, expected a folder"):
        read_run(folder / "run.json")
    (folder / "questions.jsonl").unlink()
    with pytest.raises(InputMissing, match=r"questions\.jsonl"):
        read_run(folder)


HEADS: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda h: h.update(format="other"), "format is 'other'"),
    (lambda h: h.update(version=2), "has version 2, this jmedlite reads up to 1"),
    (lambda h: h.update(version="1"), "version is '1'"),
    (lambda h: h.update(version=True), "version is True"),
    (lambda h: h.pop("models"), r"run\.json: has no models"),
    (lambda h: h.update(models={}), r"run\.json: models: is {}, expected a list"),
    (lambda h: h.update(future=1), r'run\.json: has an unknown field "future"'),
    (lambda h: h["models"][0].update(future=1), r'models\[0\]: has an unknown field "future"'),
    (lambda h: h["models"][1].update(adapters=[{"name": "a"}]), r"models\[1\]: adapters\[0\]: has no weight"),
    (lambda h: h["settings"].pop("seed"), "settings: has no seed"),
    (lambda h: h["models"].append(h["models"][0]), "lists model 'qwen-BF16' 2 times"),
    (lambda h: h["models"][0].pop("base"), r"models\[0\]: has no base"),
    (lambda h: h["models"][0].update(n_bytes="big"), r"models\[0\]: n_bytes: is \"big\", expected a whole number"),
    (lambda h: h["models"][0].update(n_bytes=True), "n_bytes: is true"),
    (lambda h: h["tasks"][0].update(n_items=99), "are not the 99 items"),
    (lambda h: h["tasks"][0].update(n_items=5, n_asked=4), "questions.jsonl has 3 to ask, run.json says 4"),
    (lambda h: h["asks"][0].update(task="none"), "asks task 'none'"),
    (lambda h: h["asks"][0].update(method="guess"), "asks by 'guess'"),
    (lambda h: h.update(settings=[]), r"settings: is \[\], expected an object"),
    (lambda h: h.update(created=None), "created: is null, expected text"),
]


@pytest.mark.parametrize(("edit", "words"), HEADS)
def test_faults_of_the_head(tmp_path: Path, edit: Callable[[dict[str, Any]], object], words: str) -> None:
    folder = run_builder.small(tmp_path / "run", n=3)
    change(folder, edit)
    with pytest.raises(DataError, match=words) as fault:
        read_run(folder)
    assert fault.value.exit_code == 65 and "\n" not in str(fault.value)


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("items.jsonl", {"model": "other"}, "lists no such model"),
        ("items.jsonl", {"method": "text"}, "lists no such model or way"),
        ("items.jsonl", {"id": "q99"}, "is no question"),
        ("items.jsonl", {"id": "q4"}, "is no question"),  # it was left out
        ("items.jsonl", {"id": "q0"}, "is there twice"),
        ("items.jsonl", {"status": "fine"}, "status is 'fine'"),
        ("items.jsonl", {"picks": None}, "has no picks"),
        ("items.jsonl", {"picks": [7]}, r"picks \[7\] of 5 choices"),
        ("items.jsonl", {"picks": [2], "correct": False}, "yet correct is false"),
        ("items.jsonl", {"scores": [-1.0]}, "1 scores for 5 choices"),
        ("items.jsonl", {"scores": [float("nan")] * 5}, "NaN"),
        ("items.jsonl", {"order": [0, 0, 1, 2, 3]}, "order"),
        ("items.jsonl", {"permutation": 0.5}, "expected a whole number"),
        ("items.jsonl", {"picks": ["2"]}, r'items\.jsonl line 3: picks\[0\]: is "2", expected a whole number'),
        ("items.jsonl", {"future": [3]}, r'items\.jsonl line 3: has an unknown field "future"'),
        ("items.jsonl", {"per_token": {"picks": []}}, r"items\.jsonl line 3: per_token: has no correct"),
        ("questions.jsonl", {"": None}, r'questions\.jsonl line 3: has an unknown field ""'),
        ("measures.jsonl", {"vram_bytes": {"GPU": True}}, "vram_bytes: GPU: is true, expected a whole number"),
        ("questions.jsonl", {"answers": [5]}, "names a choice"),
        ("questions.jsonl", {"answers": []}, "has no right answer"),
        ("questions.jsonl", {"task": "none"}, "which run.json does not list"),
        ("questions.jsonl", {"choices": "abc"}, "expected a list"),
        ("measures.jsonl", {"model": "other"}, "measures model 'other'"),
        ("noise.jsonl", {"n": None}, "expected a whole number"),
    ],
)
def test_faults_of_lines(tmp_path: Path, name: str, fields: dict[str, Any], words: str) -> None:
    folder = run_builder.small(tmp_path / "run", n=3)
    change_line(folder, name, **fields)
    with pytest.raises(JmedliteError, match=words) as fault:
        read_run(folder)
    assert fault.value.exit_code == 65 and "\n" not in str(fault.value)


@pytest.mark.parametrize("raw", [b"", b"[1]", b"\xff\xfe", b"[" * 100_000, b"null"])
def test_hostile_heads(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "run.json").write_bytes(raw)
    with pytest.raises(DataError, match=r"run\.json"):
        read_run(tmp_path)
