"""Answers from a Dask cluster: those of this machine to the last bit, whatever dies; and what is refused."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from jmedlite.base.errors import DataError, InputMissing, NativeError, Unavailable, UsageError
from jmedlite.base.outputs import sha256_file
from jmedlite.benchmarks.backends import cluster
from jmedlite.benchmarks.backends.base import Loading, LocalModel, Wanted
from jmedlite.benchmarks.backends.cluster import ClusterModel
from jmedlite.benchmarks.backends.cluster_worker import Sealed, machine_differences

pytestmark = pytest.mark.skipif(find_spec("distributed") is None, reason="without the extra [cluster]")
LOADING = Loading(threads=1, gpu_layers="0")
QUESTIONS = [f"{'hello the ' * (5 + n % 7)}question {n}: こんにちは" for n in range(130)]
SCORES = Wanted(
    tuple(
        {
            "body": [["Question: ", True], [q, False]],
            "cue": [["\nAnswer:", True]],
            "continuations": [" A", " B", " hello"],
        }
        for q in QUESTIONS
    )
)
TEXTS = Wanted(tuple({**p, "continuations": []} for p in SCORES.prompts[:20]), max_tokens=4)


@pytest.fixture(scope="module")
def local(tiny_gguf: Path) -> dict[str, Any]:
    """What this machine answers: packs by method."""
    found = {}
    with LocalModel(tiny_gguf, LOADING) as model:
        for name, wanted in (("scores", SCORES), ("texts", TEXTS)):
            prepared = model.prepare(wanted)
            found[name] = prepared, list(model.run(0, len(prepared.starts)))
    assert len(found["scores"][0].starts) > 8
    return found


@pytest.fixture(scope="module")
def workers() -> Iterator[Any]:
    """A cluster of two workers, each a process of its own."""
    import distributed

    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=50
    ) as found:
        yield found


@pytest.fixture(scope="module")
def client(workers: Any) -> Iterator[Any]:
    import distributed

    with distributed.Client(workers.scheduler_address, set_as_default=False) as found:
        yield found


def connect(workers: Any, path: Path, **changes: Any) -> ClusterModel:
    return ClusterModel(path, LOADING, sha256_file(path), workers.scheduler_address, **changes)


def test_the_same_bits(workers: Any, tiny_gguf: Path, local: dict[str, Any]) -> None:
    heard: list[dict[str, Any]] = []
    with connect(workers, tiny_gguf, told=heard.append) as model:
        assert len({event["worker"] for event in heard if event["event"] == "loaded"}) == 2
        assert model.describe()["jmedlite"]
        assert model.describe()["n_gpu_layers"] == 0
        for name, wanted in (("scores", SCORES), ("texts", TEXTS)):
            prepared, packs = local[name]
            assert model.prepare(wanted) == prepared
            assert list(model.run(0, len(prepared.starts))) == packs
        prepared, packs = local["scores"]
        model.prepare(SCORES)
        assert list(model.run(3, 7)) == packs[3:7]
        assert list(model.run(5, 5)) == []


@pytest.mark.long
def test_a_killed_worker(workers: Any, client: Any, tiny_gguf: Path, local: dict[str, Any]) -> None:
    prepared, packs = local["scores"]
    pids = client.run(os.getpid)
    with connect(workers, tiny_gguf) as model:
        model.prepare(SCORES)
        found = []
        for pack in model.run(0, len(prepared.starts)):
            if not found:
                os.kill(next(iter(pids.values())), signal.SIGKILL)
            found.append(pack)
        assert found == packs
    client.wait_for_workers(2, timeout=60)


def kill_child(client: Any) -> None:
    """Kill the model's process in every worker."""

    def kill() -> None:
        from jmedlite.benchmarks.backends.cluster_worker import HOLDER

        os.kill(HOLDER._model.child.process.pid, 9)  # type: ignore[union-attr]

    client.run(kill)


@pytest.mark.long
def test_a_killed_child(workers: Any, client: Any, tiny_gguf: Path, local: dict[str, Any]) -> None:
    prepared, packs = local["scores"]
    with connect(workers, tiny_gguf) as model:
        model.prepare(SCORES)
        kill_child(client)
        assert list(model.run(0, len(prepared.starts))) == packs


@pytest.mark.long
def test_a_model_that_always_dies(workers: Any, client: Any, tiny_gguf: Path) -> None:
    def sabotage(on: bool) -> None:
        from jmedlite.benchmarks.backends import base as answering

        def dies(self: Any, first: int, stop: int) -> Any:
            self.child.process.kill()
            return whole(self, first, stop)

        whole = getattr(answering, "whole", answering.LocalModel.run)
        answering.whole = whole  # type: ignore[attr-defined]
        answering.LocalModel.run = dies if on else whole  # type: ignore[method-assign]

    client.run(sabotage, True)
    try:
        with connect(workers, tiny_gguf) as model, pytest.raises(NativeError, match=r"^tcp://.*was killed"):
            prepared = model.prepare(SCORES)
            list(model.run(0, len(prepared.starts)))
    finally:
        client.run(sabotage, False)


@pytest.mark.long
def test_another_model_replaces_it(workers: Any, client: Any, tiny_gguf: Path, tmp_path: Path) -> None:
    def held() -> Any:
        from jmedlite.benchmarks.backends.cluster_worker import HOLDER

        return HOLDER._held[0] if HOLDER._model else None

    other = tmp_path / "other.gguf"
    shutil.copy(tiny_gguf, other)
    with connect(workers, tiny_gguf) as first:
        with connect(workers, other) as second:
            assert set(client.run(held).values()) == {str(other)}
            n = len(second.prepare(SCORES).starts)
            answers = list(second.run(0, n))
        n = len(first.prepare(SCORES).starts)
        assert list(first.run(0, n)) == answers
        assert set(client.run(held).values()) == {str(tiny_gguf)}


@pytest.mark.long
def test_leaving_early_frees_the_workers(workers: Any, client: Any, tiny_gguf: Path) -> None:
    def child() -> Any:
        from jmedlite.benchmarks.backends.cluster_worker import HOLDER

        HOLDER.thread.submit(lambda: None).result()
        return HOLDER._model

    with connect(workers, tiny_gguf) as model:
        prepared = model.prepare(SCORES)
        next(model.run(0, len(prepared.starts)))
    assert set(client.run(child).values()) == {None}


# ----------------------------------------------------------------------------------------------------- refusals


def with_models(client: Any, folder: Path | None, worker: str) -> None:
    """Set or unset a worker's own folder of models."""

    def change(folder: str | None) -> None:
        if folder is None:
            del os.environ["JMEDLITE_MODELS"]
        else:
            os.environ["JMEDLITE_MODELS"] = folder

    client.run(change, None if folder is None else str(folder), workers=[worker])


@pytest.mark.long
def test_a_folder_of_the_workers_own(workers: Any, client: Any, tiny_gguf: Path, tmp_path: Path) -> None:
    here, there = tmp_path / "here" / "m.gguf", tmp_path / "there" / "m.gguf"
    for path in (here, there):
        path.parent.mkdir()
        shutil.copy(tiny_gguf, path)
    one, *_ = client.nthreads()
    with_models(client, there.parent, one)
    try:
        with connect(workers, here) as model:
            model.prepare(SCORES)
        with there.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\x7f")
        with pytest.raises(DataError, match=rf"^{one}: {there} there is another file than here"):
            connect(workers, here)
        there.unlink()
        with connect(workers, here) as model:  # found by its path
            model.prepare(SCORES)
    finally:
        with_models(client, None, one)


def test_a_worker_without_the_file(workers: Any, tiny_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with pytest.raises(InputMissing, match=r"^tcp://.*: has no .*m\.gguf; copy the model there"):
        ClusterModel(path, LOADING, sha256_file(tiny_gguf), workers.scheduler_address)


@pytest.mark.parametrize("what", ["version", "features"])
def test_a_worker_unlike_the_others(workers: Any, client: Any, tiny_gguf: Path, what: str) -> None:
    def change(what: str | None) -> None:
        from jmedlite.benchmarks.backends import cluster_worker as clusterworker

        whole = getattr(clusterworker, "whole", clusterworker.Holder._facts)
        clusterworker.whole = whole  # type: ignore[attr-defined]

        def other(self: Any) -> Any:
            return {**whole(self), **({"llama-cpp-python": "0.1"} if what == "version" else {"cpu_features": ["NEON"]})}

        clusterworker.Holder._facts = whole if what is None else other  # type: ignore[method-assign]

    last = sorted(client.nthreads())[-1]
    client.run(change, what, workers=[last])
    try:
        with pytest.raises(DataError, match=rf"^{last}: is not like .*llama-cpp-python 0\.1|has NEON besides"):
            connect(workers, tiny_gguf)
    finally:
        client.run(change, None, workers=[last])


def test_nobody_there(tmp_path: Path, tiny_gguf: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(Unavailable, match="no Dask scheduler answers"):
        ClusterModel(tiny_gguf, LOADING, "", f"tcp://127.0.0.1:{port}", patience=1)
    for address in ("127.0.0.1:8786", "http://127.0.0.1:8786", "tcp://"):
        with pytest.raises((UsageError, Unavailable)):
            ClusterModel(tiny_gguf, LOADING, "", address, patience=1)


@pytest.mark.long
def test_a_scheduler_without_workers_and_its_end(tiny_gguf: Path) -> None:
    import distributed

    with distributed.LocalCluster(n_workers=0, processes=True, dashboard_address=":0", silence_logs=50) as empty:
        with pytest.raises(Unavailable, match="no worker has joined"):
            connect(empty, tiny_gguf, patience=0.5)
        empty.scale(1)
        with connect(empty, tiny_gguf) as model:
            prepared = model.prepare(SCORES)
            answers = model.run(0, len(prepared.starts))
            next(answers)
            model.patience = 0.5
            empty.scale(0)
            with pytest.raises(Unavailable, match=r"no worker has joined|is gone"):
                list(answers)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, tiny_gguf: Path) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UsageError, match=r"pip install"):
        ClusterModel(tiny_gguf, LOADING, "", "tcp://127.0.0.1:1")


def test_questions_are_not_in_what_dask_logs() -> None:
    sealed = Sealed.of(SCORES)
    assert "question" not in repr(sealed)
    assert "raw" not in repr(sealed)
    assert sealed.open() == SCORES


def test_words_for_differences() -> None:
    assert list(machine_differences({"a": [1, 2], "b": 1}, {"a": [1, 2], "b": 1})) == []
    assert list(machine_differences({"gpus": ["x"], "n_gpu_layers": 3}, {"gpus": [], "n_gpu_layers": 0})) == [
        "GPUs: has x besides",
        "layers on a GPU 3, not 0",
    ]


def test_importing_it_needs_no_dask() -> None:
    code = "import sys; import jmedlite.benchmarks.backends.cluster; sys.exit('dask' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert cluster.PACKS
