"""What a model can come as: .bin files, GGUF, split GGUF; and what it can be written as."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import jmedlite
from jmedlite.base.errors import DataError, InputMissing, JmedliteError, UsageError
from jmedlite.base.gguf import read_header
from tests.support import builders
from tests.support.ggufs import contents, llama_quantize, raw, read
from tests.support.long import long_but_for
from tests.support.torch_files import as_bin, write_torch_file

FAMILIES = ["qwen2", "llama", "gpt_neox", "gemma2", "phi3"]


def said(metadata: dict[str, Any]) -> dict[str, Any]:
    """Metadata without the file's own record of how it was made."""
    return {k: v for k, v in metadata.items() if not k.startswith(("jmedlite.made.", "GGUF."))}


# -------------------------------------------------------------------------------------------------------------- .bin


# reading .bin files knows nothing of families
@pytest.mark.parametrize(("family", "shards"), [("qwen2", 1), ("llama", 3), ("gpt_neox", 3), ("gemma3_text", 1)])
def test_bin_gives_the_same_file_as_safetensors(tmp_path: Path, family: str, shards: int) -> None:
    tensors = builders.checkpoint(tmp_path / "m", family)
    (one,) = jmedlite.quantize(tmp_path / "m", bits=[4], out=tmp_path / "1")
    as_bin(tmp_path / "m", tensors, shards)
    (other,) = jmedlite.quantize(tmp_path / "m", bits=[4], out=tmp_path / "2")
    assert one.read_bytes() == other.read_bytes()
    manifest = json.loads(other.with_suffix(".json").read_text())
    assert all(name.endswith(".bin") for name in manifest["base"]["files"])


def test_old_checkpoints_have_buffers_and_a_copy_of_the_tied_head(tmp_path: Path) -> None:
    tensors = builders.checkpoint(tmp_path / "m", "gpt_neox", tie_word_embeddings=True)
    (one,) = jmedlite.quantize(tmp_path / "m", bits=[8], out=tmp_path / "1")
    mask = np.tril(np.ones((1, 1, 8, 8), np.float32))
    old = {**tensors, "embed_out.weight": tensors["gpt_neox.embed_in.weight"]}
    for i in range(builders.LAYERS):
        p = f"gpt_neox.layers.{i}.attention."
        old |= {
            p + "bias": mask, p + "masked_bias": np.float32([-1e9]), p + "rotary_emb.inv_freq": np.ones(8, np.float32),
        }  # fmt: skip
    as_bin(tmp_path / "m", old)
    (other,) = jmedlite.quantize(tmp_path / "m", bits=[8], out=tmp_path / "2")
    assert one.read_bytes() == other.read_bytes()


def test_bin_adapter(tmp_path: Path) -> None:
    base = builders.checkpoint(tmp_path / "m", "gpt_neox")
    modules = ("attention.query_key_value", "mlp.dense_4h_to_h")
    ab = builders.adapter(tmp_path / "a", base, modules=modules)
    options: dict[str, Any] = {"lora": [str(tmp_path / "a")], "types": ["F32"]}
    (one,) = jmedlite.quantize(tmp_path / "m", out=tmp_path / "1", **options)
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    write_torch_file(tmp_path / "a" / "adapter_model.bin", ab, "F32")
    (other,) = jmedlite.quantize(tmp_path / "m", out=tmp_path / "2", **options)
    assert raw(one) == raw(other)


def test_pickle_that_wants_more_than_tensors(tmp_path: Path) -> None:
    builders.checkpoint(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    from tests.support.torch_files import call, name, text, write_pickled

    write_pickled(tmp_path / "m" / "pytorch_model.bin", b"\x80\x02" + call(name("os", "system"), text("true")) + b".")
    with pytest.raises(DataError, match=r"os\.system"):
        jmedlite.quantize(tmp_path / "m", bits=[8], out=tmp_path / "out")


# -------------------------------------------------------------------------------------------------------------- GGUF


# every family at one level, and every level for one family
@pytest.mark.parametrize(
    ("family", "level"), [*((family, "BF16") for family in FAMILIES), (FAMILIES[0], "F32"), (FAMILIES[0], "F16")]
)
def test_gguf_input_is_quantized_as_llama_cpp_does(tmp_path: Path, family: str, level: str) -> None:
    builders.checkpoint(tmp_path / "m", family)
    (source,) = jmedlite.quantize(tmp_path / "m", types=[level], out=tmp_path)
    wanted = ["Q4_K_M", "Q8_0", "F16", "BF16"]
    made = jmedlite.quantize(source, types=wanted, out=tmp_path / "out")
    for name, path in zip(wanted, made, strict=True):
        llama_quantize(source, tmp_path / "ref.gguf", name)
        (ours, tensors), (theirs, expected) = contents(path), contents(tmp_path / "ref.gguf")
        assert tensors == expected, name
        assert said(ours) == said(theirs), name


@pytest.mark.parametrize("level", ["Q8_0", "Q4_K_M", "Q3_K_M", "Q4_0", "IQ4_XS"])
def test_quantized_gguf_only_with_permission(tmp_path: Path, level: str) -> None:
    builders.checkpoint(tmp_path / "m", "llama")
    (source,) = jmedlite.quantize(tmp_path / "m", types=[level], out=tmp_path)
    with pytest.raises(DataError, match="--allow-requantize"):
        jmedlite.quantize(source, bits=[2], out=tmp_path / "out")
    (path,) = jmedlite.quantize(source, bits=[3], out=tmp_path / "out", allow_requantize=True)
    llama_quantize(source, tmp_path / "ref.gguf", "Q3_K_M", allow_requantize=True)
    assert raw(path) == raw(tmp_path / "ref.gguf")


@pytest.mark.parametrize("family", long_but_for(builders.FAMILIES, ["qwen2", "llama", "phi3"]))
def test_adapter_into_a_gguf_is_the_adapter_into_its_checkpoint(tmp_path: Path, family: str) -> None:
    """PEFT's names and row order find their way into a file that is in llama.cpp's order already."""
    base = builders.checkpoint(tmp_path / "m", family)
    modules = {
        "gpt_neox": ("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h"),
        "phi3": ("self_attn.qkv_proj", "mlp.gate_up_proj"),
        "gpt2": ("attn.c_attn", "mlp.c_fc"),
        "llama4_text": ("self_attn.q_proj", "feed_forward.down_proj", "shared_expert.down_proj"),
        "mixtral": ("self_attn.q_proj", *(f"experts.{e}.w1" for e in range(builders.EXPERTS))),
        "qwen3_moe": ("self_attn.q_proj", *(f"experts.{e}.up_proj" for e in range(builders.EXPERTS))),
        **dict.fromkeys(
            ("qwen2_moe", "qwen3_5_moe_text"),
            ("shared_expert.up_proj", *(f"experts.{e}.up_proj" for e in range(builders.EXPERTS))),
        ),
    }.get(family, ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj"))
    builders.adapter(tmp_path / "a", base, modules=modules)
    options: dict[str, Any] = {"lora": [str(tmp_path / "a")], "types": ["F32", "Q4_K_M"]}
    direct = jmedlite.quantize(tmp_path / "m", out=tmp_path / "1", **options)
    (plain,) = jmedlite.quantize(tmp_path / "m", types=["F32"], out=tmp_path)
    through = jmedlite.quantize(plain, out=tmp_path / "2", **options)
    for one, other in zip(direct, through, strict=True):
        found, expected = raw(one), raw(other)
        if "per_layer_model_proj.weight" in found and one is direct[1]:
            # Gemma 4's: llama.cpp leaves it as it finds it, BF16 of a checkpoint, F32 of that GGUF
            types = found.pop("per_layer_model_proj.weight")[0], expected.pop("per_layer_model_proj.weight")[0]
            assert types == ("BF16", "F32")
        assert found == expected
        assert raw(one) != raw(plain)


def test_untying_adapter_into_a_gguf(tmp_path: Path) -> None:
    base = builders.checkpoint(tmp_path / "m", "qwen2", tie_word_embeddings=True)
    head = {"lm_head.weight": base["model.embed_tokens.weight"], "x.lm_head.weight": base["model.embed_tokens.weight"]}
    ab = builders.adapter(tmp_path / "a", head, modules=("lm_head",))
    ab = {k.replace("x.lm_head", "lm_head"): v for k, v in ab.items()}
    builders.write_safetensors(tmp_path / "a" / "adapter_model.safetensors", ab, "F32")
    (plain,) = jmedlite.quantize(tmp_path / "m", types=["F32"], out=tmp_path)
    (path,) = jmedlite.quantize(plain, types=["F32"], lora=[str(tmp_path / "a")], out=tmp_path / "2")
    a, b = (ab[f"base_model.model.lm_head.lora_{x}.weight"].astype(np.float64) for x in "AB")
    found = read(path)
    np.testing.assert_array_equal(found["token_embd.weight"], base["model.embed_tokens.weight"])
    np.testing.assert_allclose(found["output.weight"], base["model.embed_tokens.weight"] + 2 * b @ a, atol=1e-6)


def test_gguf_of_another_family_without_adapters_and_with(tmp_path: Path) -> None:
    base = builders.checkpoint(tmp_path / "m", "qwen2")
    builders.adapter(tmp_path / "a", base)
    (plain,) = jmedlite.quantize(tmp_path / "m", types=["F32"], out=tmp_path)
    other = tmp_path / "other.gguf"
    other.write_bytes(plain.read_bytes().replace(b"qwen2", b"dream"))  # the same tensors under a name not in the table
    (path,) = jmedlite.quantize(other, bits=[8], out=tmp_path / "out")
    assert {name for name, _ in raw(path).items()} == set(raw(plain))
    with pytest.raises(DataError, match=r"adapters can be merged into .*; this is dream"):
        jmedlite.quantize(other, bits=[8], lora=[str(tmp_path / "a")], out=tmp_path / "out2")


def test_vocabulary_of_a_gguf_stays(tmp_path: Path) -> None:
    base = builders.checkpoint(tmp_path / "m", "qwen2", tie_word_embeddings=True)
    ab = builders.adapter(tmp_path / "a", base, modules_to_save=["embed_tokens"])
    table = base["model.embed_tokens.weight"]
    bigger = np.concatenate([table, table[:3]])
    ab["base_model.model.model.embed_tokens.weight"] = bigger
    builders.write_safetensors(tmp_path / "a" / "adapter_model.safetensors", ab, "F32")
    (plain,) = jmedlite.quantize(tmp_path / "m", types=["F32"], out=tmp_path)
    with pytest.raises(DataError, match="vocabulary can't be changed"):
        jmedlite.quantize(plain, bits=[8], lora=[str(tmp_path / "a")], out=tmp_path / "out")
    (path,) = jmedlite.quantize(tmp_path / "m", types=["F32"], lora=[str(tmp_path / "a")], out=tmp_path / "out")
    np.testing.assert_array_equal(read(path)["token_embd.weight"], bigger)
    assert len(read_header(path).metadata["tokenizer.ggml.tokens"]) == len(bigger)


def test_whole_numbers_in_a_gguf_are_copied(tmp_path: Path) -> None:
    builders.checkpoint(tmp_path / "m", "llama")
    (plain,) = jmedlite.quantize(tmp_path / "m", types=["F32"], out=tmp_path)
    reader, header = gguf.GGUFReader(plain), read_header(plain)
    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "llama")
    for key, value in header.metadata.items():
        kinds = [gguf.GGUFValueType(k) for k in header.types[key]]
        if key != "general.architecture":
            writer.add_key_value(key, value, kinds[0], kinds[1] if len(kinds) > 1 else None)
    for t in reader.tensors:
        writer.add_tensor(t.name, t.data)
    extra = np.arange(40, dtype=np.int32)
    writer.add_tensor("blk.0.extra", extra)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (path,) = jmedlite.quantize(tmp_path / "odd.gguf", bits=[8], out=tmp_path / "out")
    assert raw(path)["blk.0.extra"] == ("I32", extra.tobytes())


# ------------------------------------------------------------------------------------------------------- split files


@pytest.fixture
def split(tmp_path: Path) -> tuple[Path, Path]:
    """One model as one file, and as several."""
    builders.checkpoint(tmp_path / "m", "llama")
    (whole,) = jmedlite.quantize(tmp_path / "m", types=["F16"], out=tmp_path / "whole")
    (first,) = jmedlite.quantize(tmp_path / "m", types=["F16"], out=tmp_path / "parts", split_max_size="700kB")
    return whole, first


def test_split_output_is_what_llama_cpp_reads(tmp_path: Path, split: tuple[Path, Path]) -> None:
    whole, first = split
    parts = sorted(first.parent.glob("*.gguf"))
    assert len(parts) > 3
    assert first == parts[0]
    assert first.name == f"m-F16-00001-of-{len(parts):05d}.gguf"
    assert {k: v for part in parts for k, v in raw(part).items()} == raw(whole)
    for i, part in enumerate(parts):
        meta = read_header(part).metadata
        assert (meta["split.no"], meta["split.count"], meta["split.tensors.count"]) == (i, len(parts), len(raw(whole)))
        assert sum(len(data) for _, data in raw(part).values()) <= 700_000
    llama_quantize(first, tmp_path / "ref.gguf", "Q8_0")  # joins them
    llama_quantize(whole, tmp_path / "ref2.gguf", "Q8_0")
    assert raw(tmp_path / "ref.gguf") == raw(tmp_path / "ref2.gguf")
    manifest = json.loads((first.parent / "m-F16.json").read_text())
    assert [f["name"] for f in manifest["files"]] == [p.name for p in parts]
    assert set(manifest["tensors"]) == set(raw(whole))
    with jmedlite.Runner(first) as runner:
        assert runner.ask("hello", max_tokens=2).n_generated


@pytest.mark.parametrize("which", [0, -1])
def test_split_input(tmp_path: Path, split: tuple[Path, Path], which: int) -> None:
    whole, first = split
    part = sorted(first.parent.glob("*.gguf"))[which]
    (one,) = jmedlite.quantize(whole, bits=[4], out=tmp_path / "1", name="x")
    (other,) = jmedlite.quantize(part, bits=[4], out=tmp_path / "2", name="x")
    assert raw(one) == raw(other)
    assert said(contents(one)[0]) == said(contents(other)[0])


def test_split_faults(tmp_path: Path, split: tuple[Path, Path]) -> None:
    _, first = split
    parts = sorted(first.parent.glob("*.gguf"))

    def refused(path: Path, kind: type[JmedliteError], *words: str) -> None:
        with pytest.raises(kind) as caught:
            jmedlite.quantize(path, bits=[8], out=tmp_path / "out")
        for word in words:
            assert word in str(caught.value)

    saved = parts[1].read_bytes()
    parts[1].unlink()
    refused(first, InputMissing, parts[1].name, "part 2 of")
    shutil.copy(parts[2], parts[1])
    refused(first, DataError, parts[1].name, "is part 2, its name says 1")
    parts[1].write_bytes(saved)
    alone = first.with_name("alone.gguf")
    shutil.copy(first, alone)
    refused(alone, DataError, "alone.gguf", f"one of {len(parts)} files")


@pytest.mark.parametrize(("size", "kind"), [("1kB", UsageError), ("0", UsageError)])
def test_split_size_too_small(tmp_path: Path, size: str, kind: type[JmedliteError]) -> None:
    builders.checkpoint(tmp_path / "m", "llama")
    with pytest.raises(kind, match="--split-max-size"):
        jmedlite.quantize(tmp_path / "m", types=["F16"], out=tmp_path / "parts", split_max_size=size)
    assert not list((tmp_path / "parts").glob("*.gguf"))


def test_level_in_the_name_of_a_gguf_is_not_kept(tmp_path: Path) -> None:
    builders.checkpoint(tmp_path / "m", "llama")
    (source,) = jmedlite.quantize(tmp_path / "m", types=["F16"], out=tmp_path, name="My-Model.v2")
    (path,) = jmedlite.quantize(source, bits=[8], out=tmp_path)
    assert (source.name, path.name) == ("My-Model.v2-F16.gguf", "My-Model.v2-Q8_0.gguf")


def test_one_part_needs_no_number(tmp_path: Path) -> None:
    builders.checkpoint(tmp_path / "m", "llama")
    (path,) = jmedlite.quantize(tmp_path / "m", bits=[8], out=tmp_path, split_max_size="1GB")
    assert path.name == "m-Q8_0.gguf"
    assert "split.count" not in read_header(path).metadata
