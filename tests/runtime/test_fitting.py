"""From file and machine to a loaded model: refusals, --force, the plan's line, doctor's table, damaged files."""

from __future__ import annotations

import ctypes
import itertools
import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest
from gguf.constants import GGMLQuantizationType as Type

import jmedlite
from jmedlite.api.model_facts import describe_model
from jmedlite.base.errors import CannotCreate, DataError, UsageError
from jmedlite.base.gguf import read_header
from jmedlite.base.libraries import libllama
from jmedlite.base.outputs import sha256_file
from jmedlite.base.progress import silent
from jmedlite.runtime.fitting import level_shapes, shape_on_this_machine
from jmedlite.runtime.hardware import devices
from jmedlite.runtime.loading import BufferOverride, LoadedModel, read_whole_header
from jmedlite.runtime.offload import MARGIN, Gpu, Machine
from jmedlite.runtime.sampling import Sampling
from jmedlite.runtime.worker import AnswerEngine
from tests.support import builders
from tests.support.commands import check, run, run_text
from tests.support.tasks import write_task


@pytest.fixture
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 660 MB left, which a tiny model needs little of."""
    monkeypatch.setattr("jmedlite.runtime.loading.this_machine", lambda **_: Machine(660_000_000))


@pytest.mark.usefixtures("small_machine")
def test_what_does_not_fit_is_refused_or_forced(endless_gguf: Path) -> None:
    events: list[str] = []
    load = {"path": str(endless_gguf), "ctx": 65536}
    with pytest.raises(
        CannotCreate, match=r"needs 0\.2 GB of RAM .* 0\.7 GB are free; what fits: --ctx \d+ "
    ) as caught:
        LoadedModel(load, lambda event, **fields: events.append(event))
    assert caught.value.exit_code == 73
    assert not events
    LoadedModel(load | {"force": True}, lambda event, **fields: events.append(event))
    assert events == ["plan"]


@pytest.mark.parametrize("n_gpu_layers", [0, 1, 2, 3])
def test_layers_go_where_the_plan_says(endless_gguf: Path, monkeypatch: pytest.MonkeyPatch, n_gpu_layers: int) -> None:
    """The processor stands for two GPUs: how devices and split reach llama.cpp, and that answers stay the same."""
    expected = answer(endless_gguf)
    cpu = next(d for d in devices() if d["kind"] == "CPU")
    gpus = tuple(Gpu(f"G{i}", MARGIN + 12_000_000) for i in range(2))
    monkeypatch.setattr("jmedlite.runtime.loading.devices", lambda: [cpu | {"kind": "GPU"}] * 2)
    monkeypatch.setattr("jmedlite.runtime.loading.this_machine", lambda **_: Machine(8_000_000_000, gpus))
    load = {"path": str(endless_gguf), "threads": 1, "gpu_layers": n_gpu_layers, "ctx": 512, "force": True}
    engine = AnswerEngine.load(load, lambda event, **fields: None)
    assert engine.loaded.plan.n_gpu_layers == sum(engine.loaded.plan.split) == n_gpu_layers
    pieces: list[str] = []
    request = {"messages": [{"role": "user", "content": "q"}], "sampling": asdict(Sampling(max_tokens=2))}
    engine.ask(request, lambda event, **fields: pieces.append(fields.get("text", "")))
    assert "".join(pieces).strip() == expected
    # the list that llama.cpp is given: without a layer on a GPU none is used, not even for large batches
    given = ctypes.cast(engine.loaded._params().devices, ctypes.POINTER(ctypes.c_void_p))
    named = list(itertools.takewhile(bool, (given[i] for i in itertools.count())))
    assert named == [cpu["pointer"] for n in engine.loaded.plan.split if n]


@pytest.mark.parametrize("n_cpu_moe", [1, "all"])
def test_experts_stay_in_ram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_cpu_moe: int | str) -> None:
    """The processor stands for a GPU: what llama.cpp is told of the experts, and that answers stay the same."""
    builders.checkpoint(tmp_path / "m", "qwen3_moe", max_position_embeddings=512)
    (path,) = jmedlite.quantize(tmp_path / "m", bits=[8], out=tmp_path)
    expected = answer(path)
    found = devices()
    cpu = next(d for d in found if d["kind"] == "CPU")
    monkeypatch.setattr("jmedlite.runtime.loading.devices", lambda: [cpu | {"kind": "GPU"}, cpu])
    gpu = Gpu("G0", MARGIN + 64_000_000)
    monkeypatch.setattr("jmedlite.runtime.loading.this_machine", lambda **_: Machine(8_000_000_000, (gpu,)))
    load = {"path": str(path), "threads": 1, "n_cpu_moe": n_cpu_moe, "ctx": 512}
    engine = AnswerEngine.load(load, lambda event, **fields: None)
    plan = engine.loaded.plan
    assert (plan.n_gpu_layers, plan.n_without_experts) == (3, 1 if n_cpu_moe == 1 else 2)
    pieces: list[str] = []
    request = {"messages": [{"role": "user", "content": "q"}], "sampling": asdict(Sampling(max_tokens=2))}
    engine.ask(request, lambda event, **fields: pieces.append(fields.get("text", "")))
    assert "".join(pieces).strip() == expected
    given = ctypes.cast(engine.loaded._params().tensor_buft_overrides, ctypes.POINTER(BufferOverride))
    patterns = [entry.pattern for entry in itertools.takewhile(lambda o: o.pattern, (given[i] for i in range(9)))]
    assert len(patterns) == plan.n_cpu_moe
    experts = {t.name for t in read_header(path).tensors if "_exps" in t.name}
    assert experts
    moved = {name for name in experts if any(re.search(p.decode(), name) for p in patterns)}
    assert moved == {name for name in experts if n_cpu_moe == "all" or name.startswith("blk.0.")}
    assert all(given[i].buffer_type == cpu["buffer_type"] for i in range(len(patterns)))


def test_no_gpu_is_asked_for_its_memory_where_none_is_wanted(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked() -> list[dict[str, Any]]:
        raise AssertionError("to ask takes some of it")

    for module in ("fitting", "loading"):
        monkeypatch.setattr(f"jmedlite.runtime.{module}.devices", asked)
    for wanted in (0, "0"):
        assert not LoadedModel({"path": str(tiny_gguf), "gpu_layers": wanted}, lambda event, **_: None).plan.gpus
    with pytest.raises(AssertionError):
        LoadedModel({"path": str(tiny_gguf)}, lambda event, **_: None)


@pytest.mark.usefixtures("small_machine")
def test_the_context_is_as_long_as_fits(endless_gguf: Path) -> None:
    model = LoadedModel({"path": str(endless_gguf)}, lambda event, **fields: None)
    assert model.plan.fits
    assert 4096 < model.plan.n_ctx < 65536


def test_a_refusal_is_one_line(tmp_path: Path) -> None:
    n_layer, cells = 64, 16_000_000  # a cache of 32 KiB per token: half a terabyte
    if psutil.virtual_memory().total > n_layer * 512 * cells:
        pytest.skip("more memory here than a context can ask for")
    builders.checkpoint(tmp_path / "m", num_hidden_layers=n_layer, intermediate_size=256)
    (path,) = jmedlite.quantize(tmp_path / "m", bits=[8], out=tmp_path)
    done = run_text("ask", "-m", str(path), "--ctx", str(cells), "q")
    assert done.returncode == 73
    (line,) = done.stderr.splitlines()
    assert line.startswith("jmedlite: m-Q8_0.gguf with a context of 16,000,000 tokens needs ")
    assert "--force" in line


def test_levels_are_those_that_quantize_writes(tmp_path: Path) -> None:
    builders.checkpoint(tmp_path / "m")
    levels = ("BF16", "Q8_0", "Q4_K_M", "Q2_K")
    files = jmedlite.quantize(tmp_path / "m", types=levels, out=tmp_path)
    found = level_shapes(read_header(files[1]))
    for level, file in zip(levels, files, strict=True):
        assert found[level] == shape_on_this_machine(read_header(file))


def test_doctor_shows_what_fits(tiny_gguf: Path) -> None:
    fit = json.loads(run_text("doctor", str(tiny_gguf), "--json").stdout)["fit"]
    assert fit["plan"]["fits"]
    assert fit["plan"]["n_ctx"] == 512
    assert fit["levels"]["this file"]["size_bytes"] == tiny_gguf.stat().st_size
    assert fit["levels"]["Q4_K_M"]["size_bytes"] < fit["levels"]["BF16"]["size_bytes"]
    shown = run_text("doctor", str(tiny_gguf)).stdout
    for words in ("m-F32.gguf", "512 tokens", "Q4_K_M", "on the processor; context up to 512 tokens (f16)"):
        assert words in shown


# ---------------------------------------------------------------------------------------------- damaged files


def flip(path: Path) -> None:
    blob = bytearray(path.read_bytes())
    blob[read_header(path).data_offset + 1234] ^= 4
    path.write_bytes(blob)


def answer(path: Path, **options: Any) -> str:
    with jmedlite.Runner(path, threads=1, **options) as runner:
        return runner.ask("q", max_tokens=2).text


@pytest.mark.parametrize("cache", [True, False])
def test_flipped_bytes_are_found_by_the_manifest(tmp_path: Path, cache: bool) -> None:
    builders.checkpoint(tmp_path / "m")
    (path,) = jmedlite.quantize(tmp_path / "m", bits=[8], out=tmp_path)
    assert answer(path, cache=cache)
    flip(path)
    for _ in range(2):  # nothing is remembered of it
        with pytest.raises(DataError, match=r"m-Q8_0\.gguf: is not what its manifest says"):
            answer(path, cache=cache)
    with jmedlite.Runner(path, threads=1, cache=cache) as runner, pytest.raises(DataError, match="manifest"):
        runner.loglikelihood("a", "b")


def test_a_file_is_compared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builders.checkpoint(tmp_path / "m")
    (path,) = jmedlite.quantize(tmp_path / "m", bits=[8], out=tmp_path)
    load = {"path": str(path), "cache": str(tmp_path / "cache")}
    read: list[Path] = []

    def counted(file: Path) -> str:
        read.append(file)
        return sha256_file(file)

    monkeypatch.setattr("jmedlite.base.manifest.sha256_file", counted)
    for _ in range(2):
        LoadedModel(load, lambda event, **fields: None).integrity.check()
    assert read == [path]
    assert len(list((tmp_path / "cache").iterdir())) == 1
    path.touch()
    LoadedModel(load, lambda event, **fields: None).integrity.check()
    assert read == [path] * 2


@pytest.mark.parametrize("names", [[], ["other-F32.gguf"], ["model-F32.gguf", "other.gguf"]])
def test_a_manifest_of_other_files(tiny_gguf: Path, tmp_path: Path, names: list[str]) -> None:
    """A model that its manifest does not list is not vouched for, and one that lists another beside it even less."""
    path = tmp_path / "model-F32.gguf"
    shutil.copyfile(tiny_gguf, path)
    manifest = json.loads(tiny_gguf.with_suffix(".json").read_text())
    (entry,) = manifest["files"]
    manifest["files"] = [{**entry, "name": name} for name in names]
    path.with_suffix(".json").write_text(json.dumps(manifest))
    for look in (lambda: jmedlite.inspect(path, check=True), lambda: describe_model(path, silent)):
        with pytest.raises(DataError, match=r"^model-F32\.json: is the manifest of .*, not of model-F32\.gguf"):
            look()
    with jmedlite.Runner(path, threads=1, cache=False) as runner, pytest.raises(DataError, match="is the manifest of"):
        next(runner.stream("a"))


@pytest.mark.parametrize("files", [None, {}, "m.gguf", [["m.gguf"]], [{"name": 1}]])
def test_a_manifest_of_another_shape(tiny_gguf: Path, tmp_path: Path, files: Any) -> None:
    path = tmp_path / "m.gguf"
    path.symlink_to(tiny_gguf)
    manifest = json.loads(tiny_gguf.with_suffix(".json").read_text()) | {"files": files}
    path.with_suffix(".json").write_text(json.dumps(manifest))
    for look in (lambda: jmedlite.inspect(path, check=True), lambda: describe_model(path, silent)):
        with pytest.raises(DataError, match=r"^m\.json: .*files"):
            look()


@pytest.mark.parametrize("manifest", [None, b"", b"[]", b"{}", b'{"format": 2}', b"\xff"])
def test_a_file_that_is_no_manifest_says_nothing(tiny_gguf: Path, tmp_path: Path, manifest: bytes | None) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(tiny_gguf.read_bytes())
    if manifest is not None:
        path.with_suffix(".json").write_bytes(manifest)
    assert answer(path)


def test_heads_that_no_cache_can_hold_are_named_before_loading(endless_gguf: Path, tmp_path: Path) -> None:
    """llama.cpp itself makes no context then, and says so when the model is in memory."""
    builders.checkpoint(tmp_path / "m", "qwen3", head_dim=48)
    (path,) = jmedlite.quantize(tmp_path / "m", types=["F32"], out=tmp_path, threads=1)
    task = write_task(tmp_path / "organs.jsonl", n=2)
    asked = ["bench", str(path), "--task", str(task), "--out", str(tmp_path / "run")]
    for command in (["ask", "q", "-m", str(path)], ["doctor", str(path)], asked):
        line = check(run(*command, "--kv-type", "q8_0"), 2, path.name, "heads have 48 values", "q8_0", "take f16")
        assert "context" not in line
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match="heads have 48 values"):
        jmedlite.Runner(path, kv_type="q4_0", threads=1)
    assert answer(path)
    llama, params = libllama(), libllama().llama_context_default_params()
    params.n_ctx, params.type_k, params.type_v = 256, int(Type.Q8_0), int(Type.Q8_0)
    for file, made in ((path, False), (endless_gguf, True)):
        loaded = LoadedModel({"path": str(file)}, lambda event, **fields: None)
        assert bool(llama.llama_init_from_model(loaded.model, params)) is made


def test_a_model_of_several_files(tmp_path: Path) -> None:
    builders.checkpoint(tmp_path / "m")
    (whole,) = jmedlite.quantize(tmp_path / "m", bits=[8], out=tmp_path)
    (first,) = jmedlite.quantize(tmp_path / "m", bits=[8], out=tmp_path / "s", split_max_size="1MB")
    files, header = read_whole_header(first)
    assert len(files) > 1
    assert shape_on_this_machine(header) == shape_on_this_machine(read_header(whole))
    assert answer(first) == answer(files[-1]) == answer(whole)  # whichever is named
    flip(files[-1])
    with pytest.raises(DataError, match=files[-1].name):
        answer(first)


def test_what_was_checked_says_nothing_about_another_file_of_the_same_name(tmp_path: Path) -> None:
    for n in (1, 2):
        (tmp_path / str(n)).mkdir()
        builders.checkpoint(tmp_path / str(n) / "m", seed=n)
        jmedlite.quantize(tmp_path / str(n) / "m", bits=[8], out=tmp_path / str(n))
    one, two = (tmp_path / str(n) / "m-Q8_0.gguf" for n in (1, 2))
    assert answer(one)
    one.write_bytes(two.read_bytes())
    with pytest.raises(DataError, match="manifest"):
        answer(one)
