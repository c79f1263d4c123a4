"""Encoders: the reference leaves no more error than ggml, makes frozen bytes, and holds the fast one to its bytes."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf.quants
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType as Type
from typer.testing import CliRunner

import jmedlite
from jmedlite.api.verify import verify
from jmedlite.base.errors import DataError, UsageError
from jmedlite.base.gguf import nbytes, read_header
from jmedlite.base.native import F32, U8, quantize_rows, widen
from jmedlite.cli.app import app
from jmedlite.convert.encoding import reference
from jmedlite.convert.encoding.blocks import FORMATS, unpack
from jmedlite.convert.encoding.encoders import GGML, FastEncoder, find_encoder
from tests.support import builders
from tests.support.long import long_but_for

CASES = [(t.name, weighted) for t in FORMATS for weighted in (False, True)]


def plain_rows() -> tuple[F32, F32]:
    """Four rows of 512 and importance, by whole numbers alone, so that no generator's release matters."""
    i = np.arange(2048, dtype=np.float64)
    x = (i * 7919 % 2003 - 1001) / 1001
    return (0.02 * x + 0.1 * x * x * x).astype(np.float32).reshape(4, 512), ((i[:512] * 31 % 97 + 1) / 97).astype(
        np.float32
    )


def drawn_rows(n: int = 48) -> tuple[F32, F32]:
    """Rows like a model's, normal and heavy-tailed, and uneven importance."""
    rng = np.random.default_rng(7)
    rows = 0.02 * np.concatenate([rng.standard_normal((n // 2, 1024)), rng.standard_t(4, (n // 2, 1024))])
    return rows.astype(np.float32), rng.gamma(0.5, 1, 1024).astype(np.float32)


def edge_rows() -> dict[str, tuple[F32, F32 | None]]:
    """One or a few rows each, of one block or two."""
    rng = np.random.default_rng(8)
    usual = (0.02 * rng.standard_normal((3, 512))).astype(np.float32)
    huge, outlier, overflow = usual.copy(), usual.copy(), usual.copy()
    huge[0, 5], outlier[1, 300] = 65504, -10
    overflow *= np.float32(1e8)
    some = np.ones(512, np.float32)
    some[:300] = 0
    return {
        "zeros": (np.zeros((2, 512), np.float32), None),
        "weighted zeros": (np.zeros((2, 512), np.float32), np.ones(512, np.float32)),
        "one huge": (huge, None),
        "one huge, weighted": (huge, some),
        "outlier": (outlier, np.ones(512, np.float32)),
        "denormal": (np.full((1, 512), 1e-40, np.float32) * rng.integers(-3, 4, 512).astype(np.float32), None),
        "tiny": (usual * np.float32(1e-12), np.ones(512, np.float32)),
        "below F16": (usual * np.float32(1e-5), None),
        "positive constant": (np.full((2, 512), 0.7, np.float32), None),
        "negative constant": (np.full((2, 512), -0.7, np.float32), np.ones(512, np.float32)),
        "two values": (np.where(rng.random((2, 512)) < 0.5, np.float32(0.25), np.float32(-0.5)), None),
        "no importance at all": (usual, np.zeros(512, np.float32)),
        "importance of some": (usual, some),
        "importance far apart": (usual, (10.0 ** rng.integers(-30, 30, 512)).astype(np.float32)),
        "one block": (usual[:1, :256], None),
        "one block, weighted": (usual[:1, :256], np.arange(256, dtype=np.float32)),
        "beyond F16": (overflow, None),
        "beyond F16, weighted": (overflow, np.ones(512, np.float32)),
        "all positive": (np.abs(usual), None),
        "all negative": (-np.abs(usual) - np.float32(1), np.ones(512, np.float32)),
    }


def decoded(form: Type, blocks: U8) -> F32:
    out = np.empty(len(blocks) * FORMATS[form].block, np.float32)
    widen(np.ascontiguousarray(blocks).reshape(-1), form.name, out)
    return out


def error(form: Type, blocks: U8, rows: F32, importance: F32 | None) -> float:
    squares = (decoded(form, blocks).reshape(rows.shape).astype(np.float64) - rows) ** 2
    return float((squares * importance).sum() if importance is not None else squares.sum())


@pytest.mark.parametrize(("name", "weighted"), CASES)
def test_no_more_error_than_ggml_leaves(name: str, weighted: bool) -> None:
    form = Type[name]
    rows, drawn = drawn_rows()
    importance = drawn if weighted else None
    ggml = quantize_rows(form, rows, np.empty(nbytes(form, rows.size), np.uint8), importance)
    ours = reference.encode(form, rows, importance)
    assert error(form, ours, rows, importance) <= 1.001 * error(form, ggml.reshape(ours.shape), rows, importance)


@pytest.mark.parametrize(("name", "weighted"), CASES)
def test_golden_bytes(name: str, weighted: bool) -> None:
    """Whoever changes a byte that an encoder makes must mean it: files made before verify no longer."""
    golden = json.loads(Path(__file__).with_name("golden_blocks.json").read_text(encoding="utf-8"))
    rows, importance = plain_rows()
    made = reference.encode(Type[name], rows, importance if weighted else None)
    found = {"first_block": made[0].tobytes().hex(), "sha256": hashlib.sha256(made.tobytes()).hexdigest()}
    assert found == golden[f"{name}{' with importance' if weighted else ''}"]


@pytest.mark.parametrize("case", edge_rows())
def test_edges(case: str) -> None:
    """What is written is finite, decodes to one and the same under ggml and gguf-py, and is near what it stands for."""
    rows, importance = edge_rows()[case]
    for form, layout in FORMATS.items():
        made = reference.encode(form, rows, importance)
        assert made.shape == (rows.size // layout.block, layout.nbytes)
        values = unpack(form, made).values()
        assert np.isfinite(values).all()
        assert np.array_equal(values.reshape(-1), decoded(form, made))
        assert np.array_equal(values, gguf.quants.dequantize(made, form).reshape(values.shape))
        x = rows.reshape(values.shape)
        if not x.any():
            assert not values.any()
        if "beyond" in case or "importance" in case:  # what F16 can't hold, or what does not matter, may be anywhere
            continue
        # otherwise no number is farther off than one step of its block's largest, or than F16 can say
        size = np.abs(x).max(axis=1, keepdims=True)
        assert (np.abs(values - x) <= size * (0.75 if form == Type.Q2_K else 0.45) + 1e-6).all()
        if "constant" in case:
            assert np.allclose(values, x, rtol=0.06)


def test_only_ratios_of_importance_count() -> None:
    rows, importance = drawn_rows(4)
    for scale in (2.0**-40, 2.0**30):
        again = reference.encode(Type.Q4_K, rows, importance * np.float32(scale))
        assert np.array_equal(again, reference.encode(Type.Q4_K, rows, importance))


# compiling takes a second or two for each
@pytest.mark.parametrize(("name", "weighted"), long_but_for(CASES, [("Q4_K", True), ("Q3_K", False)]))
def test_the_fast_encoder_makes_the_references_bytes(name: str, weighted: bool) -> None:
    pytest.importorskip("numba")
    from jmedlite.convert.encoding import fast

    form = Type[name]
    inputs = [plain_rows(), drawn_rows(), *edge_rows().values()]
    for rows, importance in inputs:
        given = None if not weighted else np.ones(rows.shape[1], np.float32) if importance is None else importance
        out = np.full(nbytes(form, rows.size) + 3, 0xAB, np.uint8)
        made = fast.encode(form, rows, out, given)
        assert made.size == out.size - 3 and (out[-3:] == 0xAB).all()
        assert np.array_equal(made, reference.encode(form, rows, given).reshape(-1))


def test_where_nothing_can_be_kept_it_still_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    from jmedlite.convert.encoding import fast

    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("JMEDLITE_CACHE", str(tmp_path / "file"))
    assert fast.compiled(lambda x: x + 1, np.float32(0))(np.float32(1)) == 2


def test_what_is_compiled_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numba = pytest.importorskip("numba")
    from jmedlite.convert.encoding import fast

    before = numba.config.CACHE_DIR
    monkeypatch.setenv("JMEDLITE_CACHE", str(tmp_path))
    rows, _ = plain_rows()
    fast._encoder.cache_clear()
    fast.encode(Type.Q8_0, rows, np.empty(nbytes(Type.Q8_0, rows.size), np.uint8))
    fast._encoder.cache_clear()
    assert [p.name for p in (tmp_path / "compiled").iterdir()] == [fast._sources()]
    assert list(tmp_path.rglob("*.nbc"))
    for kept in tmp_path.rglob("*.nb?"):  # damaged: made anew
        kept.write_bytes(kept.read_bytes()[:100])
    again = fast.encode(Type.Q8_0, rows, np.empty(nbytes(Type.Q8_0, rows.size), np.uint8))
    fast._encoder.cache_clear()
    assert np.array_equal(again, reference.encode(Type.Q8_0, rows).reshape(-1))
    assert before == numba.config.CACHE_DIR  # other programs' functions stay where they were


@pytest.fixture
def fast_by_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference encoder in the fast one's place, which needs no numba and makes the same bytes."""

    def encode(form: Type, rows: F32, out: U8, importance: F32 | None = None) -> U8:
        made = reference.encode(form, rows, importance).reshape(-1)
        out[: made.size] = made
        return out[: made.size]

    module = types.ModuleType("jmedlite.convert.encoding.fast")
    module.encode = encode  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("jmedlite.convert.encoding.fast", module, raising=False)
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "1.2.3" if name in ("numba", "llvmlite") else version(name)
    )


def make(tmp_path: Path, **options: Any) -> Path:
    builders.checkpoint(tmp_path / "m", "qwen2")
    (path,) = jmedlite.quantize(tmp_path / "m", out=tmp_path, name="x", threads=1, **options)
    return path


@pytest.mark.usefixtures("fast_by_reference")
def test_a_file_of_the_fast_encoder_says_so_and_verifies(tmp_path: Path) -> None:
    path = make(tmp_path, types=["Q4_K_M"], encoder="fast")
    assert read_header(path).metadata["jmedlite.made.encoder"] == "fast"
    manifest = json.loads(path.with_suffix(".json").read_text())
    assert manifest["encoder"]["name"] == "fast"
    assert manifest["encoder"]["versions"] == {"numba": "1.2.3", "llvmlite": "1.2.3"}
    assert manifest["encoder"]["left_to_ggml"] == []
    proof = verify(path, base=tmp_path / "m")
    assert proof.holds and {v.state for v in proof.report.tensors} == {"identical"}
    assert not verify(path, base=tmp_path / "m", encoder="ggml").holds
    path.with_suffix(".json").unlink()  # the file itself knows
    assert verify(path, base=tmp_path / "m").holds
    inspected = CliRunner().invoke(app, ["inspect", str(path), "--json"])
    assert json.loads(inspected.stdout)["made"]["encoder"] == "fast"


@pytest.mark.usefixtures("fast_by_reference")
def test_what_is_left_to_ggml_is_named(tmp_path: Path) -> None:
    path = make(tmp_path, types=["Q4_1"], encoder="fast")
    manifest = json.loads(path.with_suffix(".json").read_text())
    assert manifest["encoder"]["left_to_ggml"] == ["Q4_1"]
    assert {"Q4_1", "Q6_K"} <= {t["type"] for t in manifest["tensors"].values()}
    assert verify(path, base=tmp_path / "m").holds
    shown = CliRunner().invoke(app, ["quantize", str(tmp_path / "m"), "-t", "Q4_1", "--encoder", "fast", "--dry-run"])
    assert "encoder fast, but for Q4_1" in shown.stderr


def test_the_default_is_ggml_and_says_nothing(tmp_path: Path) -> None:
    path = make(tmp_path, types=["Q4_K_M"])
    assert "jmedlite.made.encoder" not in read_header(path).metadata
    assert "encoder" not in json.loads(path.with_suffix(".json").read_text())
    assert find_encoder("ggml") is GGML


def test_formats_without_a_search_are_ggmls() -> None:
    encoder = FastEncoder({})
    has = {(t.name, w) for t in Type for w in (False, True) if encoder.has(t, w)}
    assert has == set(CASES) - {("Q4_0", False), ("Q5_0", False)}


def test_encoders_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="--encoder turbo: expected one of ggml, fast"):
        make(tmp_path, types=["Q4_K_M"], encoder="turbo")
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "jmedlite.convert.encoding.fast", raising=False)
    monkeypatch.delattr("jmedlite.convert.encoding.fast", raising=False)
    with pytest.raises(UsageError, match=r'needs numba .*: pip install "jmedlite\[fast\]"'):
        jmedlite.quantize(tmp_path / "m", types=["Q4_K_M"], out=tmp_path, encoder="fast")


@pytest.mark.usefixtures("fast_by_reference")
def test_a_file_of_an_encoder_that_is_not_known(tmp_path: Path) -> None:
    path = make(tmp_path, types=["Q4_K_M"], encoder="fast")
    raw = path.read_bytes()
    at = raw.index(b"jmedlite.made.encoder") + len(b"jmedlite.made.encoder") + 12
    path.write_bytes(raw[:at] + b"best" + raw[at + 4 :])
    with pytest.raises(DataError, match="was made with the encoder best, expected one of ggml, fast"):
        verify(path, base=tmp_path / "m")


def test_workers_that_come_at_once_share_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    from jmedlite.convert.encoding import fast

    made: list[object] = []
    kernel = fast.compiled

    def slow(function: Any, *example: Any) -> Any:
        made.append(function)
        time.sleep(0.2)
        return kernel(function, *example)

    monkeypatch.setattr(fast, "compiled", slow)
    fast._encoder.cache_clear()
    rows, _ = plain_rows()
    with ThreadPoolExecutor(4) as pool:
        outs = [np.empty(nbytes(Type.Q8_0, rows.size), np.uint8) for _ in range(4)]
        results = list(pool.map(lambda out: fast.encode(Type.Q8_0, rows, out), outs))
    fast._encoder.cache_clear()
    assert len(made) == 1
    assert all(np.array_equal(r, reference.encode(Type.Q8_0, rows).reshape(-1)) for r in results)
