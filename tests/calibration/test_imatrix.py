"""Importance matrices: the sums against numpy, both file formats, hostile files, the command, llama-imatrix."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from jmedlite.base import gguf as layout
from jmedlite.base.errors import Busy, CannotCreate, DataError, InputMissing, IoFault, NativeError, UsageError
from jmedlite.base.imatrix import Squares, pack_imatrix, read_imatrix
from jmedlite.calibration import graph
from jmedlite.calibration import worker as calibrate
from jmedlite.calibration.compute import compute_imatrix
from jmedlite.calibration.texts import LANGUAGES, shipped_text
from jmedlite.runtime.runner import Runner
from tests.support import builders
from tests.support.commands import check, run
from tests.support.ggufs import write_experts

TEXT = "the hello world of medicine: 胃の痛みと発熱。\n" * 12
Changes = Callable[[dict[str, Any]], Any]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def tensors_of(path: Path) -> dict[str, np.ndarray]:
    """By the independent reader."""
    return {t.name: np.array(t.data) for t in gguf.GGUFReader(path).tensors}


# -------------------------------------------------------------------------------------------------- the sums


def expected_first_layer(model: Path, tokens: list[int]) -> np.ndarray:
    """Mean squares of RMSNorm(embedding), which is what enters the first layer's attention."""
    tensors = tensors_of(model)
    x = tensors["token_embd.weight"][tokens].astype(np.float64)
    normed = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-6) * tensors["blk.0.attn_norm.weight"]
    return (normed**2).mean(axis=0)


def test_first_layer_equals_numpy_and_the_rest_is_there(tiny_gguf: Path, text: Path, tmp_path: Path) -> None:
    done = compute_imatrix(tiny_gguf, texts=[text], out=tmp_path / "i.gguf", ctx=40, threads=1)
    with Runner(tiny_gguf, threads=1) as runner:
        tokens = runner.tokenize(TEXT.removesuffix("\n"))
    made, n = done.imatrix, len(tokens) // 40
    assert (made.chunks, made.chunk_size, done.n_tokens) == (n, 40, n * 40)
    assert made.datasets == ("text.txt",)
    assert done.missing == ()
    expected = expected_first_layer(tiny_gguf, tokens[: n * 40])
    for name in ("attn_q", "attn_k", "attn_v"):
        np.testing.assert_allclose(made.weights[f"blk.0.{name}.weight"], expected, rtol=2e-6)
    leaves = ("attn_k", "attn_output", "attn_q", "attn_v", "ffn_down", "ffn_gate", "ffn_up")
    assert list(made.weights) == [f"blk.{i}.{leaf}.weight" for i in range(2) for leaf in leaves]
    assert made.weights["blk.1.ffn_down.weight"].shape == (builders.FFN,)
    np.testing.assert_array_equal(made.weights["blk.1.ffn_up.weight"], made.weights["blk.1.ffn_gate.weight"])


def test_every_token_of_the_last_layer_counts(tiny_gguf: Path, text: Path, tmp_path: Path) -> None:
    done = compute_imatrix(tiny_gguf, texts=[text], out=tmp_path / "i.gguf", ctx=250, process_output=True)
    counts = {name: x for name, x in tensors_of(tmp_path / "i.gguf").items() if name.endswith(".counts")}
    assert {float(x.item()) for x in counts.values()} == {done.n_tokens}
    assert "output.weight.counts" in counts


def test_experts_and_bos(text: Path, tmp_path: Path) -> None:
    model = tmp_path / "experts.gguf"
    write_experts(model)
    done = compute_imatrix(model, texts=[text], out=tmp_path / "i.gguf", ctx=64, chunks=2, threads=1)
    with Runner(model, threads=1) as runner:
        tokens = runner.tokenize(TEXT)[: 2 * 64 - 1]
    bos = gguf.GGUFReader(model).fields["tokenizer.ggml.bos_token_id"].contents()
    chunks = [bos, *tokens]
    chunks[64] = bos  # each chunk begins as a text does, in place of its first token
    np.testing.assert_allclose(
        done.imatrix.weights["blk.0.attn_q.weight"], expected_first_layer(model, chunks), rtol=2e-6
    )
    raw = tensors_of(tmp_path / "i.gguf")
    for i in range(builders.LAYERS):
        # two of four experts per token, and the router sees what they see
        assert raw[f"blk.{i}.ffn_up_exps.weight.counts"].sum() == 2 * 128
        np.testing.assert_allclose(
            raw[f"blk.{i}.ffn_up_exps.weight.in_sum2"].sum(axis=0),
            2 * raw[f"blk.{i}.ffn_gate_inp.weight.in_sum2"],
            rtol=1e-5,
        )
    assert done.imatrix.weights["blk.0.ffn_down_exps.weight"].shape == (4 * builders.FFN,)


def test_experts_without_a_token_are_named(text: Path, tmp_path: Path) -> None:
    model, out = tmp_path / "experts.gguf", tmp_path / "i.gguf"
    write_experts(model, n_experts=16)
    said = run("imatrix", str(model), "--text", str(text), "--ctx", "16", "--chunks", "1", "-o", str(out))
    assert said.returncode == 0, said.stderr
    counts = {n.split(".")[1]: x for n, x in tensors_of(out).items() if n.endswith("ffn_up_exps.weight.counts")}
    zeros = {block: np.flatnonzero(x == 0) for block, x in counts.items()}
    assert all(0 < len(z) < 16 for z in zeros.values())
    total = sum(map(len, zeros.values()))
    matrix = read_imatrix(out)
    assert matrix.unseen.startswith(f"i.gguf: {total} of 32 experts saw no token")
    for block, which in zeros.items():
        assert f"blk.{block}: {', '.join(map(str, which[:4]))}" in matrix.unseen
        values = matrix.weights[f"blk.{block}.ffn_down_exps.weight"].reshape(16, -1)
        assert (values[which] == 1).all()
    made = run("quantize", str(model), "--imatrix", str(out), "-b", "4", "-o", str(tmp_path / "o"))
    assert made.returncode == 0, made.stderr
    for told in (said, made):
        assert matrix.unseen in " ".join(told.stderr.decode().split())
    write_experts(model, n_experts=2)
    assert not compute_imatrix(model, texts=[text], out=out, ctx=64, overwrite=True).imatrix.unseen


@pytest.mark.parametrize("n_ctx", [16, 17, 128, 129, 512, 520, 2049, 50_001])
def test_pieces_lose_no_token(n_ctx: int) -> None:
    bounds = calibrate.pieces(n_ctx)
    sizes = np.diff(bounds)
    assert bounds[0] == 0
    assert bounds[-1] == n_ctx
    assert sizes.min() >= calibrate.MIN_ROWS
    assert sizes.max() <= calibrate.PIECE


def test_names_of_copies_on_devices() -> None:
    assert graph.weight_name("CUDA0#blk.0.attn_k.weight#0") == "blk.0.attn_k.weight"
    assert graph.weight_name("blk.0.attn_k.weight") == "blk.0.attn_k.weight"


def test_another_tensor_layout_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    graph.check_layout()

    class Shifted(graph.GgmlTensor):
        @property
        def title(self) -> str:
            return super().title[1:]

    monkeypatch.setattr(graph, "GgmlTensor", Shifted)
    with pytest.raises(NativeError, match="name reads"):
        graph.check_layout()
    monkeypatch.setitem(graph._SIGNATURES, "ggml_gone", (None, []))
    with pytest.raises(NativeError, match="ggml_gone is missing"):
        graph.check_layout()


def test_strided_values_and_a_fault_inside_the_callback() -> None:
    lib = graph.library()
    context = lib.ggml_init(graph._InitParams(1 << 16, None, True))
    wide = lib.ggml_new_tensor_3d(context, graph.F32, 8, 5, 3)
    buffer = lib.ggml_backend_alloc_ctx_tensors_from_buft(context, lib.ggml_backend_cpu_buffer_type())
    data = graph.values(lib, wide)
    data[:] = np.arange(120, dtype=np.float32).reshape(1, 3, 5, 8)
    t = graph.GgmlTensor.from_address(wide)
    t.ne[0], t.ne[1] = 4, 3  # the first columns of the first rows, with the old strides
    np.testing.assert_array_equal(graph.values(lib, wide), data[:, :, :3, :4])
    lib.ggml_backend_buffer_free(buffer)
    lib.ggml_free(context)
    header = layout.Header({}, {}, (), 0)
    collector = calibrate.Collector(header, False)
    collector.fault = DataError("seen")
    assert collector(0, True, None) is False  # nothing is read any more


# ------------------------------------------------------------------------------------------------ the formats


def example() -> dict[str, Squares]:
    rng = np.random.default_rng(0)
    return {
        "blk.1.attn_q.weight": Squares(rng.random((1, 8), np.float32), np.array([64])),
        "blk.0.ffn_up_exps.weight": Squares(rng.random((3, 5), np.float32), np.array([10, 0, 54])),
    }


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    path, squares = tmp_path / "i.gguf", example()
    path.write_bytes(b"".join(pack_imatrix(squares, datasets=["a.txt", "日本語.txt"], chunk_size=32, chunks=2)))
    reader = gguf.GGUFReader(path)
    contents = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    assert contents == {
        "general.type": "imatrix", "imatrix.datasets": ["a.txt", "日本語.txt"], "imatrix.chunk_count": 2,
        "imatrix.chunk_size": 32,
    }  # fmt: skip
    assert [(t.name, t.shape.tolist()) for t in reader.tensors] == [
        ("blk.0.ffn_up_exps.weight.in_sum2", [5, 3]),
        ("blk.0.ffn_up_exps.weight.counts", [1, 3]),
        ("blk.1.attn_q.weight.in_sum2", [8]),
        ("blk.1.attn_q.weight.counts", [1]),
    ]
    found = read_imatrix(path)
    assert (found.datasets, found.chunk_size, found.chunks) == (("a.txt", "日本語.txt"), 32, 2)
    q = squares["blk.1.attn_q.weight"]
    np.testing.assert_array_equal(found.weights["blk.1.attn_q.weight"], q.sums[0] / np.float32(64))
    up = squares["blk.0.ffn_up_exps.weight"].sums
    means = [up[0] / np.float32(10), np.ones(5, np.float32), up[2] / np.float32(54)]  # an expert without a token: 1
    np.testing.assert_array_equal(found.weights["blk.0.ffn_up_exps.weight"], np.concatenate(means))
    assert found.weights["blk.0.ffn_up_exps.weight"].dtype == np.float32


def binary(entries: list[tuple[bytes, int, list[float]]], tail: bytes = b"", n: int | None = None) -> bytes:
    """The older format."""
    parts = [struct.pack("<i", len(entries) if n is None else n)]
    for name, calls, sums in entries:
        parts.append(struct.pack("<i", len(name)) + name + struct.pack("<ii", calls, len(sums)))
        parts.append(struct.pack(f"<{len(sums)}f", *sums))
    return b"".join(parts) + tail


ENTRY = (b"blk.0.attn_q.weight", 4, [1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("tail", "chunks", "datasets"),
    [
        (b"", 0, ()),
        (struct.pack("<i", 7), 7, ()),
        (struct.pack("<ii", 7, 0), 7, ()),
        (struct.pack("<ii", 7, 5) + b"a.txt", 7, ("a.txt",)),
    ],
)
def test_the_older_format(tmp_path: Path, tail: bytes, chunks: int, datasets: tuple[str, ...]) -> None:
    path = tmp_path / "i.dat"
    path.write_bytes(binary([ENTRY, (b"output.weight", 2, [5.0])], tail))
    found = read_imatrix(path)
    assert (found.datasets, found.chunk_size, found.chunks) == (datasets, None, chunks)
    assert {k: v.tolist() for k, v in found.weights.items()} == {
        "blk.0.attn_q.weight": [0.25, 0.5, 0.75],
        "output.weight": [2.5],
    }


@pytest.mark.parametrize(
    ("blob", "words"),
    [
        (b"", "empty"),
        (b"abc", "truncated"),
        (b"<!DOCTYPE html><html>", "not an importance matrix"),
        (binary([], n=0) + bytes(40), "not an importance matrix"),
        (binary([ENTRY], n=1 << 30), "not an importance matrix"),
        (binary([ENTRY])[:-1], "truncated"),
        (binary([ENTRY, ENTRY]), "twice"),
        (binary([(b"t" * 20, 0, [1.0])]), "over 0 chunks"),
        (binary([(b"t" * 20, -1, [1.0])]), "over -1 chunks"),
        (binary([(b"t" * 20, 1, [])]), "0 values"),
        (binary([(b"t" * 20, 1, [float("nan")])]), "not finite"),
        (binary([(b"t" * 20, 1, [float("inf")])]), "not finite"),
        (binary([(b"t" * 20, 1, [-1.0])]), "negative"),
        (binary([(b"\xff" * 20, 1, [1.0])]), "not a tensor's"),
        (binary([(b"a\0b" * 9, 1, [1.0])]), "not a tensor's"),
        (binary([(b"t" * 64, 1, [1.0])]), "not a tensor's"),
        (struct.pack("<ii", 1, -5) + bytes(20), "truncated"),
        (struct.pack("<i", 1) + struct.pack("<i", 1) + b"t" + struct.pack("<ii", 1, (1 << 31) - 1), "truncated|bytes"),
        (binary([ENTRY], struct.pack("<ii", 1, 1 << 30)), "truncated"),
        (binary([ENTRY], struct.pack("<ii", 1, 0) + b"x"), "too many"),
        (binary([ENTRY], struct.pack("<i", -1)), "-1 chunks"),
        (b"GGUF", "truncated"),
    ],
)
def test_hostile_bytes(tmp_path: Path, blob: bytes, words: str) -> None:
    path = tmp_path / "bad.imatrix"
    path.write_bytes(blob)
    with pytest.raises(DataError, match=words) as e:
        read_imatrix(path)
    assert str(e.value).startswith("bad.imatrix: ")


def crafted(path: Path, change: Changes) -> None:
    """A GGUF matrix with one entry, after `change` saw {"kv": …, "tensors": …}."""
    what: dict[str, Any] = {
        "kv": {
            "general.type": ("imatrix", layout.STRING, None), "imatrix.datasets": (["a"], layout.ARRAY, layout.STRING),
            "imatrix.chunk_count": (1, layout.UINT32, None), "imatrix.chunk_size": (8, layout.UINT32, None),
        },
        "tensors": {"t.in_sum2": np.ones((2, 3), np.float32), "t.counts": np.ones((2, 1), np.float32)},
    }  # fmt: skip
    change(what)
    entries = [
        layout.Tensor(n, x.shape[::-1], gguf.GGMLQuantizationType.F32 if x.dtype == np.float32 else 1)  # type: ignore[arg-type]
        for n, x in what["tensors"].items()
    ]
    placed, _ = layout.layout(entries)
    blob = layout.pack_header([layout.pack_metadata(what["kv"])], len(what["kv"]), placed)
    for t, x in zip(placed, what["tensors"].values(), strict=True):
        blob += x.tobytes() + bytes(layout.pad(t.nbytes) - t.nbytes)
    path.write_bytes(blob)


def fill(name: str, value: float) -> Changes:
    return lambda what: what["tensors"][name].__setitem__((0, 0), value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w["kv"].pop("imatrix.datasets"), "has no imatrix.datasets"),
        (lambda w: w["kv"].pop("imatrix.chunk_count"), "has no imatrix.chunk_count"),
        (lambda w: w["kv"].update({"imatrix.chunk_size": (8, layout.INT32, None)}), "wrong type of imatrix.chunk_size"),
        (lambda w: w["kv"].update({"general.type": ("model", layout.STRING, None)}), "'model', expected 'imatrix'"),
        (lambda w: w["tensors"].clear(), "no entries"),
        (lambda w: w["tensors"].pop("t.counts"), "has t.in_sum2 but no t.counts"),
        (lambda w: w["tensors"].pop("t.in_sum2"), "has t.counts but no t.in_sum2"),
        (lambda w: w["tensors"].update(other=np.ones((1, 3), np.float32)), "tensor other"),
        (lambda w: w["tensors"].update({"t.counts": np.ones((2, 1), np.float16)}), "is F16, expected F32"),
        (lambda w: w["tensors"].update({"t.counts": np.ones((4, 1), np.float32)}), "6 sums for 4 counts"),
        (lambda w: w["tensors"].update({"t.counts": np.zeros((2, 1), np.float32)}), "over 0 tokens"),
        (fill("t.counts", -1), "negative or non-finite"),
        (fill("t.counts", np.nan), "negative or non-finite"),
        (fill("t.in_sum2", np.nan), "1 values that are not finite"),
        (fill("t.in_sum2", np.inf), "not finite"),
        (fill("t.in_sum2", -1e-3), "1 negative"),
    ],
)
def test_hostile_ggufs(tmp_path: Path, change: Changes, words: str) -> None:
    crafted(tmp_path / "good.gguf", lambda w: None)
    assert read_imatrix(tmp_path / "good.gguf").weights["t"].tolist() == [1.0] * 6
    path = tmp_path / "bad.gguf"
    crafted(path, change)
    with pytest.raises(DataError, match=words) as e:
        read_imatrix(path)
    assert str(e.value).startswith("bad.gguf: ")


def test_a_model_is_no_matrix_and_a_cut_file_is_found(tiny_gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected 'imatrix'"):
        read_imatrix(tiny_gguf)
    whole = b"".join(pack_imatrix(example(), datasets=[], chunk_size=8, chunks=1))
    for end in range(0, len(whole) - 32, 7):
        (tmp_path / "cut.gguf").write_bytes(whole[:end])
        with pytest.raises(DataError):
            read_imatrix(tmp_path / "cut.gguf")
    with pytest.raises(InputMissing):
        read_imatrix(tmp_path / "none")


# ------------------------------------------------------------------------------------------------ the command


def test_command(tiny_gguf: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "made.gguf"
    done = run("imatrix", str(tiny_gguf), "--text", str(text), "--ctx", "32", "--chunks", "3", "-o", str(out), "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["chunks"], facts["chunk_size"], facts["n_tokens"], facts["entries"]) == (3, 32, 96, 14)
    assert facts["sha256"] == read_imatrix(out).sha256
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made.gguf", "text.txt"]
    check(run("imatrix", str(tiny_gguf), "--text", str(text), "-o", str(out)), 73, "exists", "--overwrite")
    again = run("imatrix", str(tiny_gguf), "--text", str(text), "-o", str(out), "--ctx", "32", "--overwrite")
    assert b"14 weights" in again.stdout
    assert b"calibrating: 100 %" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "content", "code", "words"),
    [
        ([], b"hello", 65, ["tokens", "at least 1,024 are needed"]),
        (["--ctx", "513"], b"hello " * 1000, 65, ["--ctx 513", "512"]),
        (["--ctx", "8"], b"hello", 2, ["--ctx 8", "16 to"]),
        (["--chunks", "0"], b"hello", 2, ["--chunks 0"]),
        (["--threads", "0"], b"hello", 2, ["--threads 0"]),
        (["--gpu-layers", "some"], b"hello", 2, ["auto, all"]),
        (["--lang", "fr"], b"hello", 2, ["ja, en, both"]),
        ([], b"\xff\xfe", 65, ["text.txt", "UTF-8"]),
        ([], b"a\0b", 65, ["text.txt", "NUL"]),
        ([], b" \n", 65, ["text.txt", "no text"]),
        (["--text", "none.txt"], b"hello", 66, ["none.txt"]),
        (["--exclude-task", "none.jsonl"], b"hello", 66, ["none.jsonl"]),
    ],
)
def test_command_faults(
    tiny_gguf: Path, tmp_path: Path, arguments: list[str], content: bytes, code: int, words: list[str]
) -> None:
    (tmp_path / "text.txt").write_bytes(content)
    out = tmp_path / "out.gguf"
    command = ["imatrix", str(tiny_gguf), "--text", str(tmp_path / "text.txt"), "--out", str(out), *arguments]
    check(run(*command), code, *words)
    assert [p.name for p in tmp_path.iterdir()] == ["text.txt"]


def test_other_faults(tiny_gguf: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(InputMissing, match="no such GGUF"):
        compute_imatrix(tmp_path / "none.gguf")
    with pytest.raises(UsageError, match="is an input"):
        compute_imatrix(tiny_gguf, texts=[text], out=text)
    with pytest.raises(CannotCreate, match="folder"):
        compute_imatrix(tiny_gguf, texts=[text], out=tmp_path)
    with pytest.raises(CannotCreate, match="is a file"):
        compute_imatrix(tiny_gguf, texts=[text], out=text / "i.gguf")
    (tmp_path / "x.gguf").write_bytes(b"<html>")
    with pytest.raises(DataError, match="web page"):
        compute_imatrix(tmp_path / "x.gguf", texts=[text])


@pytest.mark.parametrize("name", ["m.gguf", "text.txt"])
def test_an_input_that_changes(tiny_gguf: Path, text: Path, tmp_path: Path, name: str) -> None:
    """Replaced while the model is run; and meanwhile nobody else may write the same matrix."""
    shutil.copyfile(tiny_gguf, tmp_path / "m.gguf")
    arguments: dict[str, Any] = {"texts": [text], "out": tmp_path / "i.gguf", "ctx": 40, "chunks": 2}

    def replace(*_: object) -> None:
        with pytest.raises(Busy):
            compute_imatrix(tmp_path / "m.gguf", **arguments)
        shutil.copyfile(tmp_path / name, tmp_path / "new")
        (tmp_path / "new").replace(tmp_path / name)

    with pytest.raises(IoFault, match=rf"{name}: was changed or replaced"):
        compute_imatrix(tmp_path / "m.gguf", threads=1, progress=replace, **arguments)
    assert not [p.name for p in tmp_path.iterdir() if "i.gguf" in p.name]


def test_weights_that_are_not_finite(tiny_gguf: Path, text: Path, tmp_path: Path) -> None:
    header = layout.read_header(tiny_gguf)
    blob = bytearray(tiny_gguf.read_bytes())
    at = header.data_offset + header.by_name["blk.1.attn_norm.weight"].offset
    blob[at : at + 4] = struct.pack("<f", float("nan"))
    (tmp_path / "nan.gguf").write_bytes(blob)
    with pytest.raises(DataError, match=r"blk\.1\.attn_.*not finite"):
        compute_imatrix(tmp_path / "nan.gguf", texts=[text], out=tmp_path / "i.gguf", ctx=32)
    assert not (tmp_path / "i.gguf").exists()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os; os.abort()", "ended unexpectedly"),
        ("import sys; sys.stderr.write('GGML_ASSERT(n) failed\\n'); sys.exit(3)", r"status 3: GGML_ASSERT\(n\)"),
        pytest.param("import os; os.kill(os.getpid(), 9)", "memory ran out",
                     marks=pytest.mark.skipif(os.name != "posix", reason="signals")),
    ],
)  # fmt: skip
def test_the_child_dies(
    tiny_gguf: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, words: str
) -> None:
    original = subprocess.Popen

    def popen(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        assert command[-1] == "jmedlite.calibration.worker"
        return original([sys.executable, "-c", code], **options)

    monkeypatch.setattr(subprocess, "Popen", popen)
    with pytest.raises(NativeError, match=words):
        compute_imatrix(tiny_gguf, texts=[text], out=tmp_path / "i.gguf")


def test_the_text_that_comes_along(tiny_gguf: Path, tmp_path: Path) -> None:
    done = compute_imatrix(tiny_gguf, out=tmp_path / "i.gguf", ctx=64, chunks=2)
    assert done.imatrix.datasets == ("jmedlite calibration ja", "jmedlite calibration en")
    for language in LANGUAGES["both"]:
        text = shipped_text(language)
        assert 25_000 < len(text.encode()) < 40_000
        assert "\n\n\n" not in text
        assert len(text.split("\n\n")) > 20


# ---------------------------------------------------------------------------------------------- llama-imatrix

TOOLS = os.environ.get("JMEDLITE_REFERENCE_TOOLS", "")
REAL = sorted(Path(os.environ.get("JMEDLITE_REAL_MODELS", "/nonexistent")).glob("*.gguf"))


@pytest.mark.realmodel
@pytest.mark.skipif(not TOOLS, reason="JMEDLITE_REFERENCE_TOOLS is not set")
@pytest.mark.parametrize("model", REAL or [None], ids=lambda m: m.name if m else "no GGUF in JMEDLITE_REAL_MODELS")
def test_equals_llama_imatrix(model: Path | None, tmp_path: Path) -> None:
    if model is None:
        pytest.skip("JMEDLITE_REAL_MODELS has no GGUF files")
    text = tmp_path / "both.txt"
    text.write_text(shipped_text("en")[:9000] + shipped_text("ja")[:4000], encoding="utf-8")
    done = compute_imatrix(model, texts=[text], out=tmp_path / "ours.gguf", chunks=4, threads=2)
    tool = [Path(TOOLS) / "bin" / "llama-imatrix", "-m", model, "-f", text, "--chunks", "4", "--no-ppl", "-t", "2"]
    for name, extra in (("theirs.gguf", []), ("theirs.dat", ["--output-format", "dat"])):
        subprocess.run([*tool, "-c", "512", "-o", tmp_path / name, *extra], check=True, capture_output=True)
        theirs = read_imatrix(tmp_path / name)
        assert list(theirs.weights) == list(done.imatrix.weights)
        assert theirs.chunks == done.imatrix.chunks
        for key, expected in theirs.weights.items():
            found = done.imatrix.weights[key]
            assert np.abs(found - expected).sum() / expected.sum() < 1e-3, key
            assert abs(found.mean() / expected.mean() - 1) < 1e-3, key
