"""`bench` on a cluster and against a server: the same run folder, the same results, null for what is not told."""

from __future__ import annotations

from pathlib import Path

import pytest

import jmedlite
from jmedlite.base.errors import UsageError
from jmedlite.benchmarks.report.read import read_run
from jmedlite.benchmarks.run.folder import ITEMS, MEASURES, NOISE
from tests.support.openai_servers import llama_server, serving
from tests.support.tasks import write_task


@pytest.mark.long
def test_a_cluster_gives_the_same_bytes(tiny_gguf: Path, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    task = str(write_task(tmp_path / "t.jsonl"))
    more = {"languages": ("en",), "rounds": 0, "threads": 1}
    jmedlite.bench([tiny_gguf], tasks=[task], out=tmp_path / "here", **more)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=50
    ) as workers:
        address = workers.scheduler_address
        jmedlite.bench([tiny_gguf], tasks=[task], out=tmp_path / "there", cluster=address, **more)
    for name in (ITEMS, NOISE):
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()


def test_a_server_is_asked_and_not_measured(tmp_path: Path) -> None:
    task = str(write_task(tmp_path / "t.jsonl"))
    with serving(llama_server) as url:
        done = jmedlite.bench([], tasks=[task], out=tmp_path / "run", languages=("en",), endpoint=url)
        again = jmedlite.bench([], tasks=[task], out=tmp_path / "run", languages=("en",), endpoint=url)
    assert done.n_results == again.n_results == 12
    assert again.resumed
    assert not (tmp_path / "run" / MEASURES).exists()
    run = read_run(tmp_path / "run")
    assert run.models[0].n_bytes is None
    assert run.machine == {} and run.llama_cpp_python is None  # those here did not answer
    assert {run.settings[name] for name in ("kv_type", "flash_attn", "threads", "gpu_layers", "pack")} == {None}
    document = jmedlite.report([tmp_path / "run"]).document
    assert document["models"][0]["n_bytes"] is None
    with pytest.raises(UsageError, match="--endpoint"):
        jmedlite.bench([], tasks=[task], out=tmp_path / "x", endpoint=url, cluster="tcp://x:1")
    with pytest.raises(UsageError, match="--kv-type: is the server's own"):
        jmedlite.bench([], tasks=[task], out=tmp_path / "x", endpoint=url, kv_type="q8_0")
