"""Adapters of every kind by their formula in float64, adapters in GGUF form, and adapters written for run time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import jmedlite
from jmedlite.api.quantize import export_adapters
from jmedlite.base.errors import DataError, UsageError
from jmedlite.base.gguf import read_header
from jmedlite.convert.families.row_order import RowOrder
from tests.support import builders
from tests.support.ggufs import importance, llama_quantize, raw, read

Q0 = "model.layers.0.self_attn.q_proj"


def save(folder: Path, tensors: builders.Arrays, **config: Any) -> None:
    """Replace an adapter's tensors, keys without `base_model.model.`, and change its configuration."""
    full = {k if k.startswith("base_model.") else f"base_model.model.{k}": v for k, v in tensors.items()}
    builders.write_safetensors(folder / "adapter_model.safetensors", full, "F32")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


def merged(tmp_path: Path, *adapters: str, **options: Any) -> dict[str, np.ndarray]:
    (path,) = jmedlite.quantize(
        tmp_path / "m", lora=[str(tmp_path / a) for a in adapters], types=["F32"], out=tmp_path / "out", **options
    )
    return read(path)


def delta(ab: builders.Arrays, module: str) -> np.ndarray:
    a, b = (ab[f"base_model.model.{module}.lora_{x}.weight"].astype(np.float64) for x in "AB")
    return b @ a


# ------------------------------------------------------------------------------------------------ the formulas


def test_dora(tmp_path: Path) -> None:
    base = builders.checkpoint(tmp_path / "m", "llama")
    ab = builders.adapter(tmp_path / "a", base, modules=("self_attn.q_proj",))
    rng = np.random.default_rng(5)
    lengths = {
        k.replace("lora_A.weight", "lora_magnitude_vector"): rng.uniform(0.5, 2, 256).astype(np.float32)
        for k in ab if "lora_A" in k
    }  # fmt: skip
    save(tmp_path / "a", ab | lengths, use_dora=True)
    v = base[f"{Q0}.weight"] + 2 * delta(ab, Q0)
    m = lengths[f"base_model.model.{Q0}.lora_magnitude_vector"]
    expected = m[:, None] * v / np.linalg.norm(v, axis=1, keepdims=True)
    expected = RowOrder(builders.HEAD_DIM, interleave=True).reorder(expected)
    np.testing.assert_allclose(merged(tmp_path, "a")["blk.0.attn_q.weight"], expected, rtol=2e-6, atol=1e-7)


def test_dora_on_rows_that_vanish(tmp_path: Path) -> None:
    base = builders.weights(builders.config("qwen2", builders.n_tokens(builders.byte_level_tokenizer())))
    base[f"{Q0}.weight"][3] = 0
    builders.checkpoint(tmp_path / "m", "qwen2", tensors=base)
    ab = builders.adapter(tmp_path / "a", base, modules=("self_attn.q_proj",))
    ab[f"base_model.model.{Q0}.lora_B.weight"][3] = 0
    ones = {k.replace("lora_A.weight", "lora_magnitude_vector"): np.ones(256, np.float32) for k in ab if "lora_A" in k}
    save(tmp_path / "a", ab | ones, use_dora=True)
    with pytest.raises(DataError, match=rf"{Q0}\.weight: 256 weights are NaN"):
        merged(tmp_path, "a")


def test_dora_then_lora(tmp_path: Path) -> None:
    """Adapters work one after the other; the second one's lengths are those of the first one's result."""
    base = builders.checkpoint(tmp_path / "m", "qwen2")
    one = builders.adapter(tmp_path / "a", base, modules=("self_attn.q_proj",), seed=1)
    two = builders.adapter(tmp_path / "b", base, modules=("self_attn.q_proj",), seed=2)
    ones = {k.replace("lora_A.weight", "lora_magnitude_vector"): np.ones(256, np.float32) for k in two if "lora_A" in k}
    save(tmp_path / "b", two | ones, use_dora=True)
    v = base[f"{Q0}.weight"] + 2 * delta(one, Q0) + 2 * delta(two, Q0)
    found = merged(tmp_path, "a", "b")["blk.0.attn_q.weight"]
    np.testing.assert_allclose(found, v / np.linalg.norm(v, axis=1, keepdims=True), rtol=2e-6, atol=1e-8)


def test_bias_of_lora(tmp_path: Path) -> None:
    base = builders.checkpoint(tmp_path / "m", "gpt_neox")
    ab = builders.adapter(tmp_path / "a", base, modules=("attention.query_key_value",))
    biases = {
        k.replace("lora_A.weight", "lora_B.bias"): np.arange(768, dtype=np.float32) / 768 for k in ab if "lora_A" in k
    }
    save(tmp_path / "a", ab | biases, lora_bias=True)
    expected = base["gpt_neox.layers.1.attention.query_key_value.bias"] + 2 * np.arange(768) / 768
    heads = expected.reshape(builders.HEADS, 3, builders.HEAD_DIM)
    found = merged(tmp_path, "a")["blk.1.attn_qkv.bias"]
    np.testing.assert_allclose(found, heads.swapaxes(0, 1).reshape(-1), rtol=1e-6, atol=1e-7)


def test_bias_of_lora_where_the_base_has_none(tmp_path: Path) -> None:
    base = builders.checkpoint(tmp_path / "m", "llama")
    ab = builders.adapter(tmp_path / "a", base, modules=("self_attn.q_proj",))
    biases = {k.replace("lora_A.weight", "lora_B.bias"): np.ones(256, np.float32) for k in ab if "lora_A" in k}
    save(tmp_path / "a", ab | biases, lora_bias=True)
    with pytest.raises(DataError, match="which has none in the base model"):
        merged(tmp_path, "a")


def test_fused_rows_by_their_definition() -> None:
    order = RowOrder(2, parts=3)
    rows = np.arange(12, dtype=np.float32).reshape(12, 1)  # two heads of q q k k v v
    np.testing.assert_array_equal(order.reorder(rows)[:, 0], [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11])
    assert list(order.runs(12, 4, 4)) == [(2, 2), (8, 2)]


def test_embedding_of_a_tied_model(tmp_path: Path) -> None:
    base = builders.checkpoint(tmp_path / "m", "qwen2", tie_word_embeddings=True)
    builders.adapter(tmp_path / "a", base)
    table = base["model.embed_tokens.weight"]
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((4, len(table)), np.float32), rng.standard_normal((256, 4), np.float32)
    key = "model.embed_tokens.lora_embedding_"
    save(tmp_path / "a", {f"{key}A": a, f"{key}B": b}, target_modules=["embed_tokens"])
    found = merged(tmp_path, "a")
    np.testing.assert_allclose(found["token_embd.weight"], table + 2 * (b @ a).T, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found["output.weight"], table)  # the head was trained as it is
    save(tmp_path / "a", {f"{key}A": a, f"{key}B": b}, ensure_weight_tying=True)
    tied = merged(tmp_path, "a", name="tied")
    np.testing.assert_array_equal(tied["token_embd.weight"], found["token_embd.weight"])
    assert "output.weight" not in tied


def test_larger_vocabulary_with_its_own_tokenizer(tmp_path: Path) -> None:
    base = builders.checkpoint(tmp_path / "m", "llama")
    ab = builders.adapter(tmp_path / "a", base)
    names = ("model.embed_tokens.weight", "lm_head.weight")
    tables = {n: np.concatenate([base[n], np.full((2, 256), i + 1, np.float32)]) for i, n in enumerate(names)}
    save(tmp_path / "a", ab | tables, modules_to_save=["embed_tokens", "lm_head"])
    tokenizer = builders.byte_level_tokenizer()
    n = builders.n_tokens(tokenizer)
    for i, text in enumerate(["<|drug|>", "<|dose|>"]):
        tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": n + i, "content": text})
    (tmp_path / "a" / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (path,) = jmedlite.quantize(tmp_path / "m", lora=[str(tmp_path / "a")], types=["F32"], out=tmp_path)
    meta, found = read_header(path).metadata, read(path)
    assert meta["tokenizer.ggml.tokens"][-2:] == [b"<|drug|>", b"<|dose|>"]
    assert meta["llama.vocab_size"] == n + 2
    np.testing.assert_array_equal(found["token_embd.weight"], tables[names[0]])
    np.testing.assert_array_equal(found["output.weight"], tables[names[1]])


# ------------------------------------------------------------------------------------- adapters for and from llama.cpp


def export(tmp_path: Path, *adapters: str, **options: Any) -> Path:
    return export_adapters(str(tmp_path / "m"), [str(tmp_path / a) for a in adapters], out=tmp_path, **options).path


# every family once, and every setting with two that name their modules differently
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        *((family, {}) for family in builders.FAMILIES),
        *((family, {"use_rslora": True}) for family in ("llama", "gpt_neox")),
        *((family, {"alpha_pattern": {"layers.1.*": 3}}) for family in ("llama", "gpt_neox")),
    ],
)
def test_exported_adapter_merges_to_the_same(tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    base = builders.checkpoint(tmp_path / "m", family)
    modules = {
        "gpt_neox": ("attention.query_key_value", "mlp.dense_h_to_4h"),
        "phi3": ("self_attn.qkv_proj", "mlp.gate_up_proj"),
        "gpt2": ("attn.c_attn", "mlp.c_fc"),
        **dict.fromkeys((*builders.MOE, "llama4_text"), ("self_attn.q_proj", "self_attn.o_proj")),
    }.get(family, ("self_attn.q_proj", "mlp.up_proj"))
    builders.adapter(tmp_path / "a", base, modules=modules, **changes)
    path = export(tmp_path, "a:0.5", name="lora")
    (one,) = jmedlite.quantize(tmp_path / "m", lora=[f"{tmp_path / 'a'}:0.5"], types=["F32"], out=tmp_path / "1")
    (other,) = jmedlite.quantize(tmp_path / "m", lora=[str(path)], types=["F32"], out=tmp_path / "2")
    (plain,) = jmedlite.quantize(tmp_path / "m", types=["F32"], out=tmp_path / "3")
    found, expected, before = read(other), read(one), read(plain)
    assert set(found) == set(expected)
    for name, w in expected.items():  # the scale is rounded to float32 here or there
        np.testing.assert_allclose(found[name], w, rtol=0, atol=1e-6, err_msg=name)
    assert sum(not np.array_equal(expected[n], before[n]) for n in expected) == len(read_header(path).tensors) // 2


def test_scale_of_rslora_is_in_alpha(tmp_path: Path) -> None:
    """A and B stay as trained; alpha / r, llama.cpp's scale, is then lora_alpha / √r."""
    base = builders.checkpoint(tmp_path / "m", "qwen2")
    ab = builders.adapter(tmp_path / "a", base, use_rslora=True, r=16)
    path = export(tmp_path, "a")
    meta = read_header(path).metadata
    assert meta["adapter.lora.alpha"] / 16 == pytest.approx(8 / 4)
    assert (meta["general.type"], meta["adapter.type"], meta["general.architecture"]) == ("adapter", "lora", "qwen2")
    found = {t.name: t.data for t in gguf.GGUFReader(path).tensors}
    np.testing.assert_array_equal(found["blk.0.attn_q.weight.lora_a"], ab[f"base_model.model.{Q0}.lora_A.weight"])
    np.testing.assert_array_equal(found["blk.0.attn_q.weight.lora_b"], ab[f"base_model.model.{Q0}.lora_B.weight"])


def test_two_adapters_in_one_file(tmp_path: Path) -> None:
    base = builders.checkpoint(tmp_path / "m", "llama")
    builders.adapter(tmp_path / "a", base, seed=1)
    builders.adapter(tmp_path / "b", base, seed=2, r=2, use_rslora=True)
    path = export(tmp_path, "a", "b:-1")
    assert path.name == "a-b.gguf"
    (one,) = jmedlite.quantize(
        tmp_path / "m", lora=[str(tmp_path / "a"), f"{tmp_path / 'b'}:-1"], types=["F32"], out=tmp_path / "1"
    )
    (other,) = jmedlite.quantize(tmp_path / "m", lora=[str(path)], types=["F32"], out=tmp_path / "2")
    for name, w in read(one).items():
        np.testing.assert_allclose(read(other)[name], w, rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("family", ["qwen2", "llama", "gpt_neox"])
def test_exported_adapter_at_run_time_answers_as_the_merged_model(tmp_path: Path, family: str) -> None:
    base = builders.checkpoint(tmp_path / "m", family)
    modules = ("attention.query_key_value",) if family == "gpt_neox" else ("self_attn.q_proj", "self_attn.v_proj")
    builders.adapter(tmp_path / "a", base, modules=modules, use_rslora=True, lora_alpha=32)
    path = export(tmp_path, "a", name="lora")
    (plain,) = jmedlite.quantize(tmp_path / "m", types=["F32"], out=tmp_path)
    (both,) = jmedlite.quantize(tmp_path / "m", lora=[str(tmp_path / "a")], types=["F32"], out=tmp_path, name="both")
    answers = []
    for file, lora in ((plain, [(str(path), 1.0)]), (both, []), (plain, [])):
        with jmedlite.Runner(file, lora=lora) as runner:
            answers.append(runner.ask("hello there", max_tokens=24).text)
    assert answers[0] == answers[1] != answers[2]


def test_peft_folder_at_run_time(tmp_path: Path, tiny_gguf: Path) -> None:
    (tmp_path / "a").mkdir()
    with (
        pytest.raises(DataError, match="--adapter-only"),
        jmedlite.Runner(tiny_gguf, lora=[(str(tmp_path / "a"), 1.0)]),
    ):
        pass


@pytest.mark.parametrize("type_", ["F16", "BF16"])
def test_narrow_adapters(tmp_path: Path, type_: str) -> None:
    base = builders.checkpoint(tmp_path / "m", "qwen2")
    builders.adapter(tmp_path / "a", base)
    path = export(tmp_path, "a", types=[type_])
    assert {t.type.name for t in read_header(path).tensors} == {type_}
    (one,) = jmedlite.quantize(tmp_path / "m", lora=[str(path)], bits=[8], out=tmp_path / "1")
    assert raw(one)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_dora": True}, "is a DoRA adapter"),
        ({"modules_to_save": ["norm"]}, "has fully trained tensors"),
        ({"lora_bias": True}, "changes the bias"),
        ({"target_modules": ["embed_tokens"]}, "changes the embedding or head of a model that has one table for both"),
    ],
)
def test_what_llama_cpp_can_not_do_at_run_time(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    base = builders.checkpoint(tmp_path / "m", "qwen2", tie_word_embeddings=True)
    ab = builders.adapter(tmp_path / "a", base, modules=("self_attn.q_proj",))
    q = [k.removesuffix(".lora_A.weight") for k in ab if k.endswith("lora_A.weight")]
    if "use_dora" in changes:
        ab |= {f"{k}.lora_magnitude_vector": np.ones(256, np.float32) for k in q}
    elif "lora_bias" in changes:
        ab |= {f"{k}.lora_B.bias": np.ones(256, np.float32) for k in q}
    elif "modules_to_save" in changes:
        ab["base_model.model.model.norm.weight"] = 2 * base["model.norm.weight"]
    else:
        n = len(base["model.embed_tokens.weight"])
        key = "model.embed_tokens.lora_embedding_"
        ab = {f"{key}A": np.ones((4, n), np.float32), f"{key}B": np.ones((256, 4), np.float32)}
    save(tmp_path / "a", ab, **changes)
    with pytest.raises(DataError, match=rf"adapter a: {words}.*merge it with"):
        export(tmp_path, "a")
    assert not (tmp_path / "a.gguf").exists()
    assert merged(tmp_path, "a")


def test_export_usage(tmp_path: Path) -> None:
    base = builders.checkpoint(tmp_path / "m", "qwen2")
    builders.adapter(tmp_path / "a", base)
    with pytest.raises(UsageError, match="name the adapter"):
        export(tmp_path)
    with pytest.raises(UsageError, match="expected one of F32, F16, BF16"):
        export(tmp_path, "a", types=["Q8_0"])
    path = export(tmp_path, "a")
    with pytest.raises(UsageError, match="is the input itself"):
        export(tmp_path, path.name, overwrite=True)


def adapter_file(path: Path, tensors: builders.Arrays, **metadata: Any) -> Path:
    """A GGUF adapter by gguf-py's own writer."""
    known = {"type": "adapter", "kind": "lora", "arch": "qwen2", "alpha": 8.0, **metadata}
    writer = gguf.GGUFWriter(path, known["arch"])
    if known["type"]:
        writer.add_string("general.type", known["type"])
    writer.add_string("adapter.type", known["kind"])
    writer.add_float32("adapter.lora.alpha", known["alpha"])
    for name, x in tensors.items():
        writer.add_tensor(name, x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


A, B = np.ones((4, 256), np.float32), np.ones((256, 4), np.float32)
NAME = "blk.0.attn_q.weight"
BAD_FILES: dict[str, tuple[builders.Arrays, dict[str, Any], str]] = {
    "a model": ({f"{NAME}.lora_a": A}, {"type": "model"}, "is a GGUF of type 'model'"),
    "a control vector": ({f"{NAME}.lora_a": A}, {"kind": "cvec"}, "cvec"),
    "other architecture": ({f"{NAME}.lora_a": A, f"{NAME}.lora_b": B}, {"arch": "llama"}, "for the architecture llama"),
    "no B": ({f"{NAME}.lora_a": A}, {}, "has no lora_b"),
    "strange name": ({NAME: A}, {}, "expected only .lora_a and .lora_b"),
    "another model": ({f"blk.9.{n}": x for n, x in (("x.lora_a", A), ("x.lora_b", B))}, {}, "does not have"),
    "other shape": ({f"{NAME}.lora_a": A[:, :128].copy(), f"{NAME}.lora_b": B}, {}, "another base"),
    "A transposed": ({f"{NAME}.lora_a": B, f"{NAME}.lora_b": B}, {}, "another base"),
    "alpha": ({f"{NAME}.lora_a": A, f"{NAME}.lora_b": B}, {"alpha": float("nan")}, "expected a number"),
    "a vector": ({f"{NAME}.lora_a": A[0].copy(), f"{NAME}.lora_b": B}, {}, "expected matrices"),
    "not finite": ({f"{NAME}.lora_a": A * np.float32("inf"), f"{NAME}.lora_b": B}, {}, "not finite"),
}


@pytest.mark.parametrize("fault", BAD_FILES)
def test_gguf_adapters_that_do_not_fit(tmp_path: Path, fault: str) -> None:
    tensors, metadata, words = BAD_FILES[fault]
    builders.checkpoint(tmp_path / "m", "qwen2")
    path = adapter_file(tmp_path / "a.gguf", tensors, **metadata)
    with pytest.raises(DataError, match="adapter a") as caught:
        jmedlite.quantize(tmp_path / "m", lora=[str(path)], bits=[8], out=tmp_path / "out")
    assert words in str(caught.value)
    assert not list((tmp_path / "out").glob("*"))


def test_alpha_zero_is_scale_one(tmp_path: Path) -> None:
    base = builders.checkpoint(tmp_path / "m", "qwen2")
    path = adapter_file(tmp_path / "a.gguf", {f"{NAME}.lora_a": A, f"{NAME}.lora_b": B}, alpha=0.0)
    (found,) = jmedlite.quantize(tmp_path / "m", lora=[str(path)], types=["F32"], out=tmp_path)
    np.testing.assert_array_equal(read(found)[NAME], base[f"{Q0}.weight"] + np.float32(4))


# ------------------------------------------------------------------------------------------------ importance matrices


SLOW = pytest.mark.oracle  # llama.cpp takes seconds to set these types up
IMATRIX_LEVELS = [
    "Q4_K_M",
    "Q2_K_S",
    "IQ4_XS",
    pytest.param("IQ3_XXS", marks=SLOW),
    pytest.param("IQ2_XS", marks=SLOW),
    pytest.param("IQ1_M", marks=SLOW),
]


@pytest.mark.parametrize("level", IMATRIX_LEVELS)
def test_importance_is_applied_as_llama_cpp_does(tmp_path: Path, level: str) -> None:
    builders.checkpoint(tmp_path / "m", "llama")
    (source,) = jmedlite.quantize(tmp_path / "m", types=["BF16"], out=tmp_path)
    matrix = jmedlite.imatrix(source, chunks=2, ctx=128).imatrix
    (path,) = jmedlite.quantize(tmp_path / "m", types=[level], imatrix=matrix.path, out=tmp_path / "out")
    llama_quantize(source, tmp_path / "ref.gguf", level, imatrix=importance(matrix))
    assert raw(path) == raw(tmp_path / "ref.gguf")
    meta = read_header(path).metadata
    assert meta["quantize.imatrix.file"] == matrix.path.name
    assert meta["quantize.imatrix.entries_count"] == len(matrix.weights)
    manifest = json.loads(path.with_suffix(".json").read_text())
    assert manifest["imatrix"]["sha256"] == matrix.sha256
    (plain,) = jmedlite.quantize(tmp_path / "m", types=["Q4_K_M"], out=tmp_path / "plain")
    assert level != "Q4_K_M" or raw(plain) != raw(path)


def test_importance_that_does_not_fit(tmp_path: Path) -> None:
    builders.checkpoint(tmp_path / "m", "llama")
    builders.checkpoint(tmp_path / "wide", "llama", intermediate_size=768)
    builders.checkpoint(tmp_path / "deep", "llama", num_hidden_layers=3)
    (source,) = jmedlite.quantize(tmp_path / "m", types=["BF16"], out=tmp_path)
    matrix = jmedlite.imatrix(source, chunks=2, ctx=128).imatrix
    with pytest.raises(DataError, match="made for another model"):
        jmedlite.quantize(tmp_path / "wide", bits=[4], imatrix=matrix.path, out=tmp_path / "out")
    with pytest.raises(DataError, match=r"has no values for blk\.2\..*, which IQ2_XXS stores as IQ2_XXS"):
        jmedlite.quantize(tmp_path / "deep", types=["IQ2_XXS"], imatrix=matrix.path, out=tmp_path / "out")
    with pytest.raises(UsageError, match="needs an importance matrix"):
        jmedlite.quantize(tmp_path / "deep", types=["IQ2_XXS"], out=tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


def test_verify_with_importance(tmp_path: Path) -> None:
    from jmedlite.api.verify import verify

    builders.checkpoint(tmp_path / "m", "llama")
    (source,) = jmedlite.quantize(tmp_path / "m", types=["BF16"], out=tmp_path)
    matrix = jmedlite.imatrix(source, chunks=2, ctx=128).imatrix
    (path,) = jmedlite.quantize(tmp_path / "m", bits=[3], imatrix=matrix.path, out=tmp_path / "out")
    assert verify(path, base=tmp_path / "m", imatrix=matrix.path).holds
    with pytest.raises(DataError, match=f"{matrix.path.name}; give it with --imatrix"):
        verify(path, base=tmp_path / "m")
    (other,) = jmedlite.quantize(tmp_path / "m", bits=[3], out=tmp_path / "plain")
    assert not verify(other, base=tmp_path / "m", imatrix=matrix.path).holds


@SLOW
def test_verify_of_a_type_that_tells_of_importance(tmp_path: Path) -> None:
    from jmedlite.api.verify import verify

    builders.checkpoint(tmp_path / "m", "llama")
    (source,) = jmedlite.quantize(tmp_path / "m", types=["BF16"], out=tmp_path)
    matrix = jmedlite.imatrix(source, chunks=2, ctx=128).imatrix
    narrow = tmp_path / "narrow.gguf"  # as another tool may have made it: nothing tells of the matrix
    (made,) = jmedlite.quantize(tmp_path / "m", types=["IQ3_XXS"], imatrix=matrix.path, out=tmp_path / "iq")
    narrow.write_bytes(made.read_bytes().replace(b"quantize.imatrix.file", b"quantize.imatrix.fil_"))
    with pytest.raises(DataError, match=r"is stored as IQ\w+, which is made with an importance matrix"):
        verify(narrow, base=tmp_path / "m")
    assert verify(narrow, base=tmp_path / "m", imatrix=matrix.path).holds


def test_adapter_only_on_the_command_line(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from jmedlite.cli.app import app

    base = builders.checkpoint(tmp_path / "m", "qwen2")
    builders.adapter(tmp_path / "a", base)
    options = ["quantize", str(tmp_path / "m"), "--lora", str(tmp_path / "a"), "--adapter-only", "-o", str(tmp_path)]
    done = CliRunner().invoke(app, [*options, "--json"])
    assert json.loads(done.stdout)["n_weights_changed"] == 4
    assert (tmp_path / "a.gguf").is_file()
    done = CliRunner().invoke(app, [*options, "--overwrite"])
    assert "changes 4 weights" in done.stdout
    for wrong in (["--bits", "4"], ["--split-max-size", "1GB"]):
        assert isinstance(CliRunner().invoke(app, [*options, *wrong]).exception, UsageError)
