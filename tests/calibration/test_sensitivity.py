"""Sensitivities: divergences against llama-cpp-python on files that were rounded, interpolation, hostile files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType as Type

import jmedlite
from jmedlite.base.errors import DataError, UsageError
from jmedlite.base.gguf import Tensor, nbytes, read_header
from jmedlite.base.native import quantize_rows, widen
from jmedlite.base.sensitivity import FORMAT, WeightEntry, read_sensitivities
from jmedlite.calibration.sensitivity import chosen, compute_sensitivities, interpolated
from jmedlite.calibration.sensitivity_worker import compared
from jmedlite.runtime.runner import Runner
from tests.support import builders
from tests.support.commands import check, run

TEXT = "the hello world of medicine: 胃の痛みと発熱。\n" * 12
CTX = 48


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 16 bits, with weights large enough that rounding one of them is seen."""
    folder = tmp_path_factory.mktemp("sensitivity")
    config = builders.config("qwen2", builders.n_tokens(builders.byte_level_tokenizer()))
    builders.checkpoint(folder / "m", tensors=builders.weights(config, scale=0.15))
    (path,) = jmedlite.quantize(folder / "m", types=["BF16"], out=folder, threads=1)
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def distributions(model: Path, tokens: list[int]) -> np.ndarray:
    """ln p (n_positions, n_vocab) after the compared positions, by llama-cpp-python's own class."""
    from llama_cpp import Llama

    llama = Llama(str(model), n_ctx=512, n_threads=1, logits_all=True, verbose=False)
    rows = []
    for start in range(0, len(tokens) - CTX + 1, CTX):
        llama.reset()
        llama.eval(tokens[start : start + CTX])
        rows.append(np.array(llama.scores[:CTX], np.float64)[list(compared(CTX))])
    llama.close()
    logits = np.concatenate(rows)
    top = logits.max(axis=1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))


def with_rounded(model: Path, name: str, type_: Type, target: Path) -> Path:
    """The file with one weight rounded to a type and kept in the file's own."""
    header, raw = read_header(model), bytearray(model.read_bytes())
    t = header.by_name[name]
    at = header.data_offset + t.offset
    stored = np.frombuffer(raw, np.uint8, t.nbytes, at)
    exact, rounded = np.empty(t.n_elements, np.float32), np.empty(t.n_elements, np.float32)
    widen(stored.copy(), t.type.name, exact)
    codes = quantize_rows(type_, exact.reshape(-1, t.shape[0]), np.empty(nbytes(type_, exact.size), np.uint8))
    widen(codes, type_.name, rounded)
    raw[at : at + t.nbytes] = builders.to_bf16(rounded).tobytes()
    target.write_bytes(raw)
    return target


def test_divergences_are_those_of_rounded_files(model: Path, text: Path, tmp_path: Path) -> None:
    before = hashlib.sha256(model.read_bytes()).hexdigest()
    out = tmp_path / "s.json"
    done = compute_sensitivities(model, texts=[text], out=out, ctx=CTX, tokens=4 * CTX, threads=1)
    assert hashlib.sha256(model.read_bytes()).hexdigest() == before
    found = done.sensitivities.content
    assert found.n_positions == 4 * len(compared(CTX))
    with Runner(model, threads=1) as runner:
        tokens = runner.tokenize(TEXT.removesuffix("\n"))
    # what is measured is spread over the text
    n = len(tokens) // CTX
    tokens = [t for i in range(4) for t in tokens[i * n // 4 * CTX :][:CTX]]
    p = distributions(model, tokens)
    for name in ("blk.0.ffn_down.weight", "blk.1.attn_v.weight", "token_embd.weight"):
        entry = found.weights[name]
        assert (entry.type, entry.measured) == ("Q3_K", True)
        q = distributions(with_rounded(model, name, Type.Q3_K, tmp_path / "r.gguf"), tokens)
        kl = (np.exp(p) * (p - q)).sum(axis=1)
        assert entry.kl > 1e-4
        # the reference is kept in 16 bits, and llama.cpp rounds otherwise where tokens meet in other batches
        np.testing.assert_allclose(entry.kl, kl.mean(), rtol=0.02)
        np.testing.assert_allclose(entry.kl_error, kl.std() / np.sqrt(len(kl) - 1), rtol=0.05)


def test_errors_are_weighed_by_the_matrix(model: Path, text: Path, tmp_path: Path) -> None:
    jmedlite.imatrix(model, texts=[text], out=tmp_path / "i.gguf", ctx=CTX, threads=1)
    options = {"texts": [text], "ctx": CTX, "tokens": CTX, "threads": 1, "every": 1}
    plain = compute_sensitivities(model, out=tmp_path / "a.json", **options)
    weighed = compute_sensitivities(model, out=tmp_path / "b.json", imatrix=tmp_path / "i.gguf", **options)
    assert plain.sensitivities.content.imatrix is None
    assert weighed.sensitivities.content.imatrix is not None
    a, b = plain.sensitivities.content.weights, weighed.sensitivities.content.weights
    assert a["token_embd.weight"] == b["token_embd.weight"]  # the matrix says nothing of it
    assert a["blk.0.ffn_down.weight"].error != b["blk.0.ffn_down.weight"].error


def tensors(n: int) -> list[Tensor]:
    names = ["token_embd.weight", *(f"blk.{i}.attn_q.weight" for i in range(n)), "output.weight"]
    return [Tensor(name, (256, 8), Type.BF16) for name in names]


def test_which_blocks_are_measured() -> None:
    assert chosen(tensors(9), 1) == [t.name for t in tensors(9)]
    blocks = [int(name.split(".")[1]) for name in chosen(tensors(12), 3) if name.startswith("blk")]
    assert blocks == [0, 1, 2, 5, 8, 10, 11]
    assert {"token_embd.weight", "output.weight"} < set(chosen(tensors(12), 3))
    assert len(chosen(tensors(1), 100)) == 3


def test_between_two_blocks_logarithms_lie_on_a_line() -> None:
    found = {
        "blk.0.attn_q.weight": WeightEntry(type="Q3_K", error=0.01, kl=1e-4, kl_error=1e-5),
        "blk.4.attn_q.weight": WeightEntry(type="Q3_K", error=0.04, kl=16e-4, kl_error=1e-5),
    }
    entries = interpolated(tensors(6), found)
    assert list(entries) == [f"blk.{i}.attn_q.weight" for i in range(5)]  # block 5 has none behind it
    middle = entries["blk.2.attn_q.weight"]
    assert not middle.measured
    np.testing.assert_allclose([middle.error, middle.kl], [0.02, 4e-4], rtol=1e-9)


def test_what_can_not_be_rounded_in_place(model: Path, text: Path, tmp_path: Path) -> None:
    (narrow,) = jmedlite.quantize(model, types=["Q4_K_M"], out=tmp_path, threads=1)
    with pytest.raises(DataError, match="only F32, BF16, F16, Q8_0 can be rounded"):
        compute_sensitivities(narrow, texts=[text], ctx=CTX, tokens=CTX, threads=1)
    with pytest.raises(DataError, match="--ctx 513 is more than the 512 tokens"):
        compute_sensitivities(model, texts=[text], ctx=513, tokens=513, threads=1)
    with pytest.raises(UsageError, match="--probe Q9_K"):
        compute_sensitivities(model, probe="Q9_K")
    with pytest.raises(DataError, match="at least 300 are needed"):
        short = tmp_path / "short.txt"
        short.write_text("hello", encoding="utf-8")
        compute_sensitivities(model, texts=[short], ctx=300, tokens=300, threads=1)


def test_hostile_files(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    good = {
        "format": FORMAT, "model": "m.gguf", "architecture": "qwen2", "datasets": [], "ctx": 256, "n_positions": 480,
        "every": 1, "imatrix": None, "versions": {}, "seconds": 1.0,
        "weights": {"a": {"type": "Q3_K", "error": 0.01, "kl": 0.002, "kl_error": 0.0, "measured": True}},
    }  # fmt: skip

    def read(**changes: object) -> object:
        path.write_text(json.dumps({**good, **changes}), encoding="utf-8")
        return read_sensitivities(path)

    assert read_sensitivities_of(read()) == 0.2
    weight = good["weights"]["a"]
    for changes, words in (
        ({"format": "jmedlite-sensitivity-9"}, "not a sensitivity file of this version"),
        ({"weights": {}}, "has no weights"),
        ({"weights": {"a": {**weight, "error": 0.0}}}, "a has the error 0 "),
        ({"weights": {"a": {**weight, "kl": -1.0}}}, "expected a positive and a non-negative number"),
        ({"weights": {"a": {**weight, "kl": "much"}}}, "kl"),
        ({"unknown": 1}, "unknown"),
    ):
        with pytest.raises(DataError, match=words):
            read(**changes)


def read_sensitivities_of(found: object) -> float | None:
    return found.of("a")  # type: ignore[attr-defined]


def test_the_command(model: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.json"
    options = ("--text", str(text), "--ctx", "48", "--tokens", "48", "-j", "1", "-o", str(out))
    done = run("sensitivity", str(model), *options, "--every", "2", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["weights"], facts["measured"]) == (16, 16)
    check(run("sensitivity", str(model), *options), 73, "exists", "--overwrite")
