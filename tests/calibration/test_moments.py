"""Second moments: the sums against numpy, the file's format, hostile files, the command."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import gguf
import numpy as np
import pytest

import jmedlite
from jmedlite.base import moments as format_
from jmedlite.base.errors import DataError, UsageError
from jmedlite.base.gguf import pack_header, pack_metadata
from jmedlite.calibration import moments as gathering
from jmedlite.calibration.moments import gather_moments
from jmedlite.calibration.moments_worker import HELD_OUT_EVERY, LEAST_HELD_OUT, MAX_HELD_OUT, PANEL, Panel
from jmedlite.runtime.runner import Runner
from tests.support import builders
from tests.support.commands import check, run
from tests.support.logits import llama_logits

TEXT = "the hello world of medicine: 胃の痛みと発熱。\n" * 40
CTX = 40


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def first_layer(model: Path, tokens: list[int]) -> np.ndarray:
    """RMSNorm(embedding), which is what enters the first layer's attention: (n_tokens, HIDDEN), in float64."""
    tensors = {t.name: np.array(t.data) for t in gguf.GGUFReader(model).tensors}
    x = tensors["token_embd.weight"][tokens].astype(np.float64)
    return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-6) * tensors["blk.0.attn_norm.weight"]


def test_first_layer_equals_numpy(tiny_gguf: Path, text: Path, tmp_path: Path) -> None:
    done = gather_moments(tiny_gguf, texts=[text], out=tmp_path / "m.gguf", ctx=CTX, threads=1)
    with Runner(tiny_gguf, threads=1) as runner:
        tokens = runner.tokenize(TEXT.removesuffix("\n"))
    chunks = [tokens[i : i + CTX] for i in range(0, len(tokens) - CTX + 1, CTX)]
    assert len(chunks) > HELD_OUT_EVERY
    held = chunks[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    held = [c[: max(LEAST_HELD_OUT, MAX_HELD_OUT // len(held))] for c in held]
    summed = [c for i, c in enumerate(chunks) if i % HELD_OUT_EVERY != HELD_OUT_EVERY - 1]
    found = format_.Moments(tmp_path / "m.gguf")
    assert (done.n_tokens, found.n_tokens) == (len(summed) * CTX,) * 2
    assert found.datasets == ("text.txt",)
    x = first_layer(tiny_gguf, [t for c in summed for t in c])
    expected = x.T @ x / len(x)
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    for name in ("attn_q", "attn_k", "attn_v"):
        gathered = found.read(f"blk.0.{name}.weight")
        (h,) = gathered.moments
        # kept to 11 bits of a number between -1 and 1
        assert np.abs((h - expected) / scale).max() < 2**-11
        np.testing.assert_allclose(np.diag(h), np.diag(expected), rtol=1e-5)
        y = first_layer(tiny_gguf, [t for c in held for t in c])
        np.testing.assert_allclose(gathered.held_out, y, atol=2**-11 * np.abs(y).max())
    assert found.n_cols("blk.1.ffn_down.weight") == builders.FFN
    assert found.n_cols("token_embd.weight") is None
    leaves = ("attn_k", "attn_output", "attn_q", "attn_v", "ffn_down", "ffn_gate", "ffn_up")
    of_blocks = [f"blk.{i}.{leaf}.weight" for i in range(2) for leaf in leaves]
    assert sorted(found.input_of) == sorted([*of_blocks, "output.weight"])
    assert found.input_of["blk.1.ffn_up.weight"] == found.input_of["blk.1.ffn_gate.weight"]
    found.close()


def test_an_embedding_that_is_the_head(text: Path, tmp_path: Path) -> None:
    """What enters it as the head, after the last norm: the logits are the products of both."""
    builders.checkpoint(tmp_path / "m", dtype="F32", tie_word_embeddings=True)
    (model,) = jmedlite.quantize(tmp_path / "m", types=["F32"], out=tmp_path, threads=1)
    gather_moments(model, texts=[text], out=tmp_path / "m.gguf", ctx=CTX, threads=1)
    found = format_.Moments(tmp_path / "m.gguf")
    assert found.input_of["token_embd.weight"] == "token_embd.weight"
    tensors = {t.name: np.array(t.data) for t in gguf.GGUFReader(model).tensors}
    held_out = found.read("token_embd.weight").held_out
    found.close()
    with Runner(model, threads=1) as runner:
        tokens = runner.tokenize(TEXT.removesuffix("\n"))
    first = tokens[CTX * (HELD_OUT_EVERY - 1) :]
    for n in (1, 7):
        logits = llama_logits(model, first[:n])[-1]
        np.testing.assert_allclose(tensors["token_embd.weight"] @ held_out[n - 1], logits, atol=5e-3)


def test_little_memory_gives_the_same_file(tiny_gguf: Path, text: Path, tmp_path: Path) -> None:
    for name, memory in (("a", 1 << 30), ("b", 1)):
        gather_moments(tiny_gguf, texts=[text], out=tmp_path / name, ctx=CTX, chunks=4, threads=1, memory=memory)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_threads_change_nothing(tiny_gguf: Path, text: Path, tmp_path: Path) -> None:
    for name, threads in (("a", 1), ("b", 3)):
        gather_moments(tiny_gguf, texts=[text], out=tmp_path / name, ctx=CTX, chunks=4, threads=threads)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(("start", "end"), [(0, 7), (0, PANEL), (256, 256 + 2 * PANEL + 100)])
def test_panels_hold_the_upper_triangle(start: int, end: int) -> None:
    rng = np.random.default_rng(1)
    panels = Panel.of(start, end)
    pieces = [rng.normal(size=(n, end + 3)).astype(np.float32) for n in (40, 1, 9)]
    for rows in pieces:
        for panel in panels:
            panel.add(rows)
    x = np.concatenate(pieces)[:, start:end].astype(np.float64)
    expected = np.triu(x.T @ x)
    found = np.zeros((end - start,) * 2)
    for panel in panels:
        at = panel.start - start
        found[at : at + len(panel.sums), at:] = panel.sums
    np.testing.assert_allclose(np.triu(found), expected, atol=1e-4)
    assert Panel.nbytes(start, end) == sum(p.sums.nbytes for p in panels)
    if end - start > PANEL:
        assert Panel.nbytes(start, end) < 0.75 * 4 * (end - start) ** 2


def test_memory_is_what_is_free_beside_the_model(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size, other = tiny_gguf.stat().st_size, gathering.MARGIN
    for free, expected in (
        (0, gathering.LEAST_MEMORY),
        (3_000_000_000 + size + other, 3_000_000_000),
        (1 << 40, gathering.MOST_MEMORY),
    ):
        monkeypatch.setattr(gathering, "free_ram", lambda free=free: free)
        assert gathering.default_memory(tiny_gguf) == expected


@pytest.mark.parametrize("n_cols", [1, 255, 256, 4096, 4097, 8960, 18_944, 28_672])
def test_windows_cover_all_columns(n_cols: int) -> None:
    bounds = format_.windows(n_cols)
    assert bounds[0][0] == 0
    assert bounds[-1][1] == n_cols
    assert all(a[1] == b[0] for a, b in itertools.pairwise(bounds))
    assert all(start % 256 == 0 and 0 < end - start <= format_.WIDEST for start, end in bounds)


def test_the_upper_triangle_comes_back() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 33)).astype(np.float32) * rng.lognormal(0, 3, 33).astype(np.float32)
    x[:, 4] = 0
    h = x.T @ x / 50
    scale, packed = format_.pack_upper(h)
    assert packed.dtype == np.float16
    found = format_.unpack_upper(packed, scale)
    assert np.array_equal(found, found.T)
    bound = np.sqrt(np.outer(np.diag(h), np.diag(h)))
    assert (np.abs(found - h) <= 2**-11 * bound + 1e-30).all()


def test_hostile_files(tmp_path: Path, tiny_gguf: Path) -> None:
    with pytest.raises(DataError, match="no file of second moments"):
        format_.Moments(tiny_gguf)
    path = tmp_path / "m.gguf"
    path.write_bytes(pack_header([pack_metadata({"general.type": ("moments", 8, None)})], 1, []))
    with pytest.raises(DataError, match=r"has no list moments\.inputs"):
        format_.Moments(path)
    entries = {
        format_.DATASETS: (["t"], 9, 8),
        format_.TOKENS: (4, 4, None),
    }
    header, places = format_.layout({"a": 8}, {"a": "a"}, 4, entries)
    good = bytearray(header)
    for name, array in format_.parts("a", [np.eye(8, dtype=np.float32)], np.ones((4, 8), np.float32)):
        at = len(header) + places[name].offset
        good.extend(bytes(max(0, at + array.nbytes - len(good))))
        good[at : at + array.nbytes] = array.tobytes()
    good.extend(bytes(-len(good) % 32))
    path.write_bytes(good)
    found = format_.Moments(path)
    assert np.array_equal(found.read("a").moments[0], np.eye(8, dtype=np.float32))
    path.write_bytes(bytes(good).replace(b"a.held_out", b"a.held_oux", 1))
    with pytest.raises(DataError, match="has no right a"):
        format_.Moments(path)
    path.write_bytes(bytes(good).replace(np.float32(1).tobytes(), np.float32(np.nan).tobytes(), 1))
    with pytest.raises(DataError, match="not finite"):
        format_.Moments(path).read("a")
    path.write_bytes(good[:-32])
    with pytest.raises(DataError, match=r"truncated|ends inside"):
        format_.Moments(path).read("a")


def test_the_command(tiny_gguf: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    arguments = ("moments", str(tiny_gguf), "--text", str(text), "--ctx", "40", "--chunks", "3", "-o", str(out))
    done = run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["weights"], facts["inputs"], facts["n_tokens"]) == (15, 9, 80)
    check(run(*arguments), 73, "exists", "--overwrite")
    check(run("moments", str(tiny_gguf), "--chunks", "1"), 2, "--chunks")
    with pytest.raises(UsageError, match="is an input"):
        gather_moments(tiny_gguf, texts=[text], out=text)
    with pytest.raises(DataError, match="--ctx 513 is more than the 512 tokens"):
        gather_moments(tiny_gguf, texts=[text], out=tmp_path / "long.gguf", ctx=513)
