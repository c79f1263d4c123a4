"""The one pass against independent implementations: llama.cpp's own quantizer, gguf-py's decoder, float64 merging."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import jmedlite
from jmedlite.base.gguf import read_header
from jmedlite.convert.families.row_order import RowOrder
from jmedlite.convert.levels.recipes import LEVELS, parse_levels
from tests.support import builders
from tests.support.ggufs import contents, llama_quantize, raw, read
from tests.support.long import long_but_for

K_LEVELS = [level for level in LEVELS if level not in ("F32", "F16", "BF16")]


@pytest.mark.parametrize("family", long_but_for(["qwen2", "qwen3", "llama"], ["qwen2"]))
def test_every_level_equals_llama_quantize(tmp_path: Path, family: str) -> None:
    builders.checkpoint(tmp_path / "m", family, shards=3)
    made = jmedlite.quantize(tmp_path / "m", types=["BF16", *K_LEVELS], out=tmp_path / "out", threads=2)
    bf16, others = made[0], made[1:]
    for level, path in zip(K_LEVELS, others, strict=True):
        llama_quantize(bf16, tmp_path / "ref.gguf", level)
        assert contents(path) == contents(tmp_path / "ref.gguf"), level


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_f32_output_is_the_checkpoint(tmp_path: Path, dtype: str) -> None:
    w = builders.checkpoint(tmp_path / "m", "qwen2", dtype=dtype)
    if dtype == "F16":  # what the file holds
        w = {name: x.astype(np.float16).astype(np.float32) for name, x in w.items()}
    (path,) = jmedlite.quantize(tmp_path / "m", types=["F32"], out=tmp_path, threads=1)
    found = read(path)
    np.testing.assert_array_equal(found["blk.1.ffn_down.weight"], w["model.layers.1.mlp.down_proj.weight"])
    np.testing.assert_array_equal(found["blk.0.attn_q.bias"], w["model.layers.0.self_attn.q_proj.bias"])
    np.testing.assert_array_equal(found["output.weight"], w["lm_head.weight"])
    assert len(found) == len(w)


@pytest.mark.parametrize("memory", [None, "320MB"])
def test_small_blocks_and_many_threads_change_nothing(tmp_path: Path, memory: str | None) -> None:
    base = builders.checkpoint(tmp_path / "m", "llama", seed=3)
    builders.adapter(tmp_path / "a", base)
    options: dict[str, Any] = {"lora": [str(tmp_path / "a")], "types": ["Q4_K_M"]}
    (one,) = jmedlite.quantize(tmp_path / "m", out=tmp_path / "1", threads=1, **options)
    (many,) = jmedlite.quantize(tmp_path / "m", out=tmp_path / "2", threads=5, memory=memory, **options)
    assert one.read_bytes() == many.read_bytes()


def test_rotary_rows_by_their_definition() -> None:
    rows = np.arange(2 * 6, dtype=np.float32).reshape(12, 1)  # two heads of six rows
    moved = RowOrder(6, interleave=True).reorder(rows)[:, 0]
    # row i of a head and row i + 3 become neighbours 2i and 2i + 1
    np.testing.assert_array_equal(moved, [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11])


ADAPTERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "rank pattern": {"rank_pattern": {"down_proj": 2, r"layers\.1\.self_attn\.q_proj": 4}},
    "alpha pattern": {"alpha_pattern": {"q_proj": 32}},
    "regex targets": {"target_modules": r".*\.(q_proj|down_proj)"},
    "all linear": {
        "modules": tuple(
            f"{g}_proj"
            for g in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")
        ),
        "target_modules": "all-linear",
    },
    "fan_in_fan_out": {"fan_in_fan_out": True},
}


@pytest.mark.parametrize("family", ["qwen2", "llama"])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_merge_is_the_formula(tmp_path: Path, kind: str, family: str) -> None:
    options = dict(ADAPTERS[kind])
    base = builders.checkpoint(tmp_path / "m", family)
    ab = builders.adapter(tmp_path / "a", base, **options)
    (path,) = jmedlite.quantize(tmp_path / "m", lora=[f"{tmp_path / 'a'}:0.5"], types=["F32"], out=tmp_path, threads=2)
    found = read(path)
    names = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
             "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}  # fmt: skip
    for module in {k.removeprefix("base_model.model.").rsplit(".lora_", 1)[0] for k in ab}:
        a, b = (ab[f"base_model.model.{module}.lora_{s}.weight"].astype(np.float64) for s in "AB")
        alpha = 32 if kind == "alpha pattern" and module.endswith("q_proj") else 8
        scale = alpha / (math.sqrt(a.shape[0]) if kind == "rslora" else a.shape[0])
        expected = base[f"{module}.weight"] + 0.5 * scale * (b @ a)
        _, _, i, _, leaf = module.split(".")
        if family == "llama" and leaf in ("q_proj", "k_proj"):
            expected = RowOrder(builders.HEAD_DIM, interleave=True).reorder(expected)
        # float32: one rounding of the product sum of length r, one of the addition
        np.testing.assert_allclose(found[f"blk.{i}.{names[leaf]}.weight"], expected, rtol=0, atol=4e-7, err_msg=module)
        assert not np.allclose(found[f"blk.{i}.{names[leaf]}.weight"], expected * 1.01, rtol=0, atol=4e-7)


def test_two_adapters_add_up(tmp_path: Path) -> None:
    base = builders.checkpoint(tmp_path / "m")
    one, two = (builders.adapter(tmp_path / n, base, seed=s) for n, s in (("a", 1), ("b", 2)))
    (path,) = jmedlite.quantize(
        tmp_path / "m", lora=[str(tmp_path / "a"), f"{tmp_path / 'b'}:-2"], types=["F32"], out=tmp_path
    )
    key = "base_model.model.model.layers.0.mlp.down_proj.lora_{}.weight"
    delta = [2.0 * (x[key.format("B")].astype(np.float64) @ x[key.format("A")]) for x in (one, two)]
    expected = base["model.layers.0.mlp.down_proj.weight"] + delta[0] - 2 * delta[1]
    np.testing.assert_allclose(read(path)["blk.0.ffn_down.weight"], expected, rtol=0, atol=1e-6)
    manifest = json.loads(path.with_suffix(".json").read_text())
    assert [a["weight"] for a in manifest["adapters"]] == [1.0, -2.0]


def test_tied_embeddings_have_no_output_tensor(tmp_path: Path) -> None:
    base = builders.checkpoint(tmp_path / "m", "llama", tie_word_embeddings=True)
    (path,) = jmedlite.quantize(tmp_path / "m", bits=[8], out=tmp_path)
    assert "output.weight" not in read_header(path).by_name
    # a saver that writes the tied head again changes nothing
    builders.checkpoint(
        tmp_path / "n", "llama", tie_word_embeddings=True,
        tensors=base | {"lm_head.weight": base["model.embed_tokens.weight"]},
    )  # fmt: skip
    (again,) = jmedlite.quantize(tmp_path / "n", bits=[8], out=tmp_path / "x")
    assert raw(again) == raw(path)


def test_padded_vocabulary(tmp_path: Path) -> None:
    n = builders.n_tokens(builders.byte_level_tokenizer())
    builders.checkpoint(tmp_path / "m", vocab_size=n + 29)
    (path,) = jmedlite.quantize(tmp_path / "m", bits=[8], out=tmp_path)
    header = read_header(path)
    tokens, types = header.metadata["tokenizer.ggml.tokens"], header.metadata["tokenizer.ggml.token_type"]
    assert len(tokens) == n + 29 == header.by_name["token_embd.weight"].shape[1]
    assert tokens[n] == f"[PAD{n}]".encode()
    assert types[n] == gguf.TokenType.UNUSED


def test_llama_attention_biases_move_with_their_rows(tmp_path: Path) -> None:
    base = builders.checkpoint(tmp_path / "m", "llama", attention_bias=True)
    (path,) = jmedlite.quantize(tmp_path / "m", types=["F32"], out=tmp_path)
    found = read(path)
    bias = base["model.layers.0.self_attn.k_proj.bias"].reshape(-1, 1)
    np.testing.assert_array_equal(
        found["blk.0.attn_k.bias"], RowOrder(builders.HEAD_DIM, interleave=True).reorder(bias)[:, 0]
    )
    np.testing.assert_array_equal(found["blk.0.attn_output.bias"], base["model.layers.0.self_attn.o_proj.bias"])


def test_rope_factors_of_llama3(tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    }  # fmt: skip
    builders.checkpoint(tmp_path / "m", "llama", rope_scaling=rope)
    (path,) = jmedlite.quantize(tmp_path / "m", bits=[4], out=tmp_path)
    factors = read(path)["rope_freqs.weight"]
    assert factors.shape == (builders.HEAD_DIM // 2,)
    # 10000^(2i/64): wavelength 2π at i = 0, beyond 256 from i = 13 on
    assert factors[0] == 1
    assert (factors[13:] == 8).all()
    assert ((factors[1:] - factors[:-1]) >= 0).all()


def test_licence_and_name_from_the_model_card(tmp_path: Path) -> None:
    builders.checkpoint(tmp_path / "My-Model-7B")
    card = "---\nlicense: cc-by-nc-sa-4.0\nlanguage: [ja, en]\n---\n# card\n"
    (tmp_path / "My-Model-7B" / "README.md").write_text(card)
    (path,) = jmedlite.quantize(tmp_path / "My-Model-7B", bits=[4], out=tmp_path)
    assert path.name == "My-Model-7B-Q4_K_M.gguf"
    meta = read_header(path).metadata
    assert meta["general.license"] == "cc-by-nc-sa-4.0"
    assert meta["general.languages"] == [b"ja", b"en"]
    manifest = json.loads(path.with_suffix(".json").read_text())
    assert manifest["license"] == "cc-by-nc-sa-4.0"
    assert manifest["size_bytes"] == path.stat().st_size
    import hashlib

    (file,) = manifest["files"]
    assert file == {
        "name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "size_bytes": path.stat().st_size,
    }  # fmt: skip
    assert str(tmp_path) not in path.with_suffix(".json").read_text()


def test_levels_by_bits_and_type() -> None:
    names = [level.name for level in parse_levels([2, 3, 4, 5, 6, 8, 16], ["q4_k_m", "F32"])]
    assert names == ["Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "BF16", "F32"]
    assert [level.name for level in parse_levels([], [])] == ["Q4_K_M"]
