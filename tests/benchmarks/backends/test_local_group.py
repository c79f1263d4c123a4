"""Several processes with one model: the same bits as one, in order, and ended with their run."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

import jmedlite
from jmedlite.api.bench_options import BenchOptions
from jmedlite.base.errors import InputMissing, NativeError, UsageError
from jmedlite.benchmarks.backends.base import Loading, LocalModel, Wanted
from jmedlite.benchmarks.backends.local_group import LocalGroup
from jmedlite.runtime import hardware

LOADING = Loading(threads=1, pack=64)
QUESTIONS = [f"Question {i}: what helps after {'a fall ' * (i % 7)}?\nAnswer:" for i in range(40)]
SCORES = Wanted(tuple({"body": [[q, False]], "cue": [], "continuations": [" rest", " a walk"]} for q in QUESTIONS))
WRITTEN = Wanted(tuple({"body": [[q, False]], "cue": [], "continuations": []} for q in QUESTIONS), max_tokens=8)


@pytest.mark.parametrize("wanted", [SCORES, WRITTEN], ids=["scores", "written"])
def test_the_same_bits_in_order(tiny_gguf: Path, wanted: Wanted) -> None:
    with LocalModel(tiny_gguf, LOADING) as alone:
        prepared = alone.prepare(wanted)
        n = len(prepared.starts)
        expected = list(alone.run(0, n))
    assert n > 7
    with LocalGroup(tiny_gguf, LOADING, 3) as group:
        assert group.prepare(wanted) == prepared
        assert list(group.run(0, n)) == expected
        assert list(group.run(n - 2, n)) == expected[n - 2 :]  # fewer packs than processes
        for _ in range(5):  # nobody reads the rest, and the children still work on it
            group.prepare(SCORES)
            first, _ = next(group.run(0, n))
            assert first == 0
            group.prepare(wanted)
            assert list(group.run(0, n)) == expected


def test_one_that_is_killed_ends_the_run(tiny_gguf: Path) -> None:
    with LocalGroup(tiny_gguf, LOADING, 2) as group:
        n = len(group.prepare(SCORES).starts)
        group._models[1].child.process.kill()
        with pytest.raises(NativeError, match="memory ran out"):
            list(group.run(0, n))


def test_none_is_left_where_loading_fails(tmp_path: Path) -> None:
    before = {p.pid for p in psutil.Process().children()}
    with pytest.raises(InputMissing, match=r"none\.gguf"):
        LocalGroup(tmp_path / "none.gguf", LOADING, 3)
    assert {p.pid for p in psutil.Process().children()} <= before


def test_a_run_is_the_same_by_any_number_of_processes(tiny_gguf: Path, tmp_path: Path) -> None:
    """And goes on by another number than it began with."""
    facts = {"rounds": 0, "threads": 1, "limit": 12, "methods": ("letter", "generate"), "max_tokens": 8}
    for name, processes in (("one", 1), ("three", 3)):
        jmedlite.bench([tiny_gguf], tasks=["demo"], out=tmp_path / name, processes=processes, **facts)
    items = (tmp_path / "one" / "items.jsonl").read_bytes()
    assert (tmp_path / "three" / "items.jsonl").read_bytes() == items
    assert (tmp_path / "three" / "noise.jsonl").read_bytes() == (tmp_path / "one" / "noise.jsonl").read_bytes()
    (tmp_path / "three" / "items.jsonl").write_bytes(items[: len(items) // 2])
    jmedlite.bench([tiny_gguf], tasks=["demo"], out=tmp_path / "three", processes=2, **facts)
    assert (tmp_path / "three" / "items.jsonl").read_bytes() == items


def test_cores_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "physical_cores", lambda: 8)
    assert [BenchOptions(processes=n).loading().threads for n in (1, 2, 3, 16)] == [8, 4, 2, 1]
    assert BenchOptions(processes=2, threads=3).loading().threads == 3


@pytest.mark.parametrize("elsewhere", [{"endpoint": "http://127.0.0.1:1"}, {"cluster": "tcp://127.0.0.1:1"}])
def test_refused_where_others_answer(elsewhere: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="--processes: are this machine's"):
        BenchOptions(processes=2, **elsewhere)  # type: ignore[arg-type]
