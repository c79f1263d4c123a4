"""Mixes and error feedback through the whole pass: budgets kept, files for llama.cpp, proved, told in manifests."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import pytest

import jmedlite
from jmedlite.api.budgets import Targets
from jmedlite.base.errors import DataError, UsageError
from jmedlite.base.gguf import read_header
from jmedlite.base.manifest import read_manifest
from jmedlite.runtime.offload import MARGIN, Machine, Wish, make_offload_plan
from jmedlite.runtime.runner import Runner
from jmedlite.runtime.shape import shape_of
from tests.support import builders
from tests.support.commands import check, run

TEXT = "the hello world of medicine: 胃の痛みと発熱。\n" * 60
CTX = 48


def wide_weights(**changes: Any) -> builders.Arrays:
    """Of a tiny Qwen2, large enough that rounding one of them is seen."""
    n_tokens = builders.n_tokens(builders.byte_level_tokenizer())
    return builders.weights(builders.config("qwen2", n_tokens, **changes), scale=0.15)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint `m`, an adapter `a`, and what was measured on it: i.gguf, s.json, h.gguf."""
    folder = tmp_path_factory.mktemp("mixing")
    weights = builders.checkpoint(folder / "m", tensors=wide_weights())
    builders.adapter(folder / "a", weights)
    (folder / "t.txt").write_text(TEXT, encoding="utf-8")
    (model,) = jmedlite.quantize(folder / "m", types=["BF16"], out=folder, threads=1)
    options = {"texts": [folder / "t.txt"], "ctx": CTX, "threads": 1}
    jmedlite.imatrix(model, out=folder / "i.gguf", **options)
    jmedlite.sensitivity(model, imatrix=folder / "i.gguf", out=folder / "s.json", tokens=CTX, **options)
    jmedlite.moments(model, out=folder / "h.gguf", **options)
    return folder


def bits(path: Path) -> float:
    header = read_header(path)
    return 8 * sum(t.nbytes for t in header.tensors) / sum(t.n_elements for t in header.tensors)


def test_budgets_are_kept_and_used(made: Path, tmp_path: Path) -> None:
    size = 700_000
    paths = jmedlite.quantize(
        made / "m", bits=[4], target_bpw=[4.2, 5.5], target_size=[str(size)], sensitivity=made / "s.json",
        imatrix=made / "i.gguf", out=tmp_path, threads=1,
    )  # fmt: skip
    assert [p.name for p in paths[:2]] == ["m-Q4_K_M.gguf", f"m-{bits(paths[1]):.2f}bpw.gguf"]
    for path, wanted in zip(paths[1:3], (4.2, 5.5), strict=True):
        assert wanted - 0.1 < bits(path) <= wanted
    assert 0.97 * size < paths[3].stat().st_size <= size
    predicted = []
    for path in paths[1:]:
        manifest = read_manifest(path)
        assert manifest is not None
        assert manifest.mix is not None
        predicted.append((bits(path), manifest.mix.predicted_kl))
        assert jmedlite.verify(path, base=made / "m", imatrix=made / "i.gguf", threads=1).holds
        assert "s.json, SHA-256" in gguf.GGUFReader(path).fields["jmedlite.made.mix"].contents()
        shown = run("inspect", str(path)).stdout.decode()
        assert all(word in shown for word in ("a mix of types next to", "s.json, SHA-256", "i.gguf, SHA-256"))
        with Runner(path, threads=1) as runner:
            assert runner.tokenize("hello")
    # more bits, less harm
    assert sorted(predicted) == sorted(predicted, key=lambda p: -p[1])
    assert read_manifest(paths[0]).mix is None


def test_a_level_is_the_same_beside_a_mix(made: Path, tmp_path: Path) -> None:
    options = {"imatrix": made / "i.gguf", "threads": 1}
    (alone,) = jmedlite.quantize(made / "m", bits=[4], out=tmp_path / "a", **options)
    beside, _ = jmedlite.quantize(
        made / "m", bits=[4], target_bpw=[5], sensitivity=made / "s.json", out=tmp_path / "b", **options
    )
    assert alone.read_bytes() == beside.read_bytes()


def test_what_fits_memory_is_what_the_plan_says(made: Path, tmp_path: Path) -> None:
    memory = 660_000_000
    (path,) = jmedlite.quantize(
        made / "m", fit_ram=[str(memory)], fit_ctx=1024, sensitivity=made / "s.json", out=tmp_path, threads=1
    )
    header = read_header(path)
    shape = shape_of(header.metadata, header.tensors, {})
    need = make_offload_plan(shape, Machine(1 << 40), Wish(n_gpu_layers=0, n_ctx=1024)).ram
    assert need.total + MARGIN <= memory
    with pytest.raises(UsageError, match=r"--fit-ram 600MB: a context of 4,096 tokens .* nothing is left"):
        jmedlite.quantize(made / "m", fit_ram=["600MB"], sensitivity=made / "s.json", out=tmp_path, threads=1)


def test_types_set_by_name_stay_in_a_mix(made: Path, tmp_path: Path) -> None:
    (path,) = jmedlite.quantize(
        made / "m", target_bpw=[5], sensitivity=made / "s.json", tensor_types=["blk.0.ffn_down=Q8_0"], out=tmp_path,
        threads=1,
    )  # fmt: skip
    assert read_header(path).by_name["blk.0.ffn_down.weight"].type.name == "Q8_0"
    assert bits(path) <= 5


def test_error_feedback_through_the_pass(made: Path, tmp_path: Path) -> None:
    """The same bytes whatever threads and blocks, with an adapter merged; proved by `verify`, told in the manifest."""
    options = {"lora": [str(made / "a")], "bits": [4, 3], "imatrix": made / "i.gguf"}
    best = {"rounding": "best", "moments": made / "h.gguf"}
    first = jmedlite.quantize(made / "m", out=tmp_path / "1", threads=1, **options, **best)
    second = jmedlite.quantize(made / "m", out=tmp_path / "2", threads=3, memory="350MB", **options, **best)
    plain = jmedlite.quantize(made / "m", out=tmp_path / "3", threads=1, **options)
    for a, b, c in zip(first, second, plain, strict=True):
        assert a.read_bytes() == b.read_bytes()
        assert bits(a) == bits(c)
        manifest = read_manifest(a)
        assert manifest is not None
        assert manifest.moments is not None
        assert manifest.moments.datasets == ("t.txt",)
        ways = {name: entry.rounding for name, entry in manifest.tensors.items() if entry.rounding}
        assert set(ways.values()) <= {"feedback:0.1"}
        assert {"blk.1.ffn_up.weight", "output.weight"} <= set(ways)
        assert "token_embd.weight" not in ways
        proof = {"base": made / "m", "lora": [str(made / "a")], "imatrix": made / "i.gguf", "threads": 2}
        assert jmedlite.verify(a, moments=made / "h.gguf", **proof).holds
        assert re.search(r"error feedback +h\.gguf, SHA-256", run("inspect", str(a)).stdout.decode())
        with pytest.raises(DataError, match=r"was rounded by the second moments h\.gguf; give them with --moments"):
            jmedlite.verify(a, **proof)
        with pytest.raises(UsageError, match="was not rounded by second moments"):
            jmedlite.verify(c, moments=made / "h.gguf", **proof)


def test_error_feedback_into_a_head_that_is_the_embedding(made: Path, tmp_path: Path) -> None:
    """With a damping of its own. Where an adapter gives the model another head, moments of the one say nothing."""
    builders.checkpoint(tmp_path / "m", tensors=wide_weights(tie_word_embeddings=True), tie_word_embeddings=True)
    (model,) = jmedlite.quantize(tmp_path / "m", types=["BF16"], out=tmp_path, threads=1)
    jmedlite.moments(model, out=tmp_path / "h.gguf", texts=[made / "t.txt"], ctx=CTX, threads=1)
    best = {"types": ["Q4_0"], "rounding": "best", "moments": tmp_path / "h.gguf", "threads": 1, "out": tmp_path}
    (path,) = jmedlite.quantize(tmp_path / "m", tensor_types=["token_embd=Q4_0"], **best)
    manifest = read_manifest(path)
    assert manifest is not None
    assert manifest.tensors["token_embd.weight"].rounding == "feedback:0.3"
    assert jmedlite.verify(path, base=tmp_path / "m", moments=tmp_path / "h.gguf", threads=2).holds
    (path,) = jmedlite.quantize(made / "m", tensor_types=["token_embd=Q4_0"], name="other", **best)
    manifest = read_manifest(path)
    assert manifest is not None
    assert manifest.tensors["token_embd.weight"].rounding is None


def test_options_that_do_not_go_together(made: Path) -> None:
    for targets, words in (
        (Targets(bits_per_weight=[4.5]), "needs to know where bits matter"),
        (Targets(sensitivity=made / "s.json"), "--sensitivity: is used by --target-bpw"),
        (Targets(bits_per_weight=[4.5], fit_ctx=512, sensitivity=made / "s.json"), "--fit-ctx: is used by --fit-ram"),
        (Targets(bits_per_weight=[0.5], sensitivity=made / "s.json"), "--target-bpw 0.5"),
        (Targets(sizes=["much"], sensitivity=made / "s.json"), "is not an amount of memory"),
    ):
        with pytest.raises(UsageError, match=words):
            targets.check()
    check(run("quantize", str(made / "m"), "--rounding", "best", "-n"), 2, "--moments", "jmedlite moments")
    check(run("quantize", str(made / "m"), "--moments", str(made / "h.gguf"), "-n"), 2, "--rounding best")
    check(run("quantize", str(made / "m"), "--rounding", "worst", "-n"), 2, "ggml or best")
    check(run("quantize", str(made / "m"), "--adapter-only", "--target-bpw", "4"), 2, "--adapter-only", "--target-bpw")
    small = ("--target-bpw", "1.5", "--sensitivity", str(made / "s.json"))
    check(run("quantize", str(made / "m"), *small, "-n", "-j", "1"), 2, "--target-bpw 1.5", "at least")
    twice = ("--target-bpw", "5", "--target-bpw", "5.0001", "--sensitivity", str(made / "s.json"))
    check(run("quantize", str(made / "m"), *twice, "-n", "-j", "1"), 2, "ask for one of them")


def test_files_of_another_model(made: Path, tmp_path: Path) -> None:
    builders.checkpoint(tmp_path / "other", "qwen2", num_hidden_layers=1)
    with pytest.raises(DataError, match=r"s\.json: was made for another model, which has blk\.1"):
        jmedlite.quantize(tmp_path / "other", target_bpw=[5], sensitivity=made / "s.json", out=tmp_path, threads=1)
    builders.checkpoint(tmp_path / "wide", "qwen2", intermediate_size=1024)
    with pytest.raises(DataError, match=r"h\.gguf: has 512 columns for blk\.0\.ffn_down\.weight, which has 1,024"):
        jmedlite.quantize(tmp_path / "wide", rounding="best", moments=made / "h.gguf", out=tmp_path, threads=1)


def test_the_plan_as_json(made: Path) -> None:
    arguments = ("--target-bpw", "5", "--sensitivity", str(made / "s.json"), "--imatrix", str(made / "i.gguf"))
    done = run("quantize", str(made / "m"), *arguments, "-n", "--json", "-j", "1")
    assert done.returncode == 0, done.stderr
    (mix,) = json.loads(done.stdout)["mixes"]
    assert mix["asked"] == "--target-bpw 5"
    below, above = mix["beside"]
    assert below["bits_per_weight"] <= 5 < above["bits_per_weight"]
    assert mix["predicted_kl"] > 0
    text = run("quantize", str(made / "m"), *arguments, "-n", "-j", "1").stderr.decode()
    assert "predicted" in text
    assert "nats a token" in text
