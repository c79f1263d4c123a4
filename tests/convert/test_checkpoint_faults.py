"""Checkpoints that are damaged, hostile or of another kind: each is refused with its reason, and nothing is written."""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jmedlite
from jmedlite.base.errors import DataError, InputMissing, JmedliteError
from jmedlite.convert.families.families import FAMILIES
from jmedlite.convert.sources.checkpoint import DTYPE_BYTES, INDEX, MAX_HEADER, Checkpoint, read_safetensors_header
from tests.support import builders

N_VOCAB = builders.n_tokens(builders.byte_level_tokenizer())
DOWN = "model.layers.1.mlp.down_proj.weight"
F32_MAX = np.float32(3.4e38)


def entry(dtype: Any = "F32", shape: Any = (2, 2), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def safetensors(path: Path, header: Any, data: bytes = bytes(16), length: int | None = None) -> Path:
    """A safetensors file, byte by byte: `header` is JSON to be, or raw bytes; `length` is a false length."""
    blob = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(blob) if length is None else length) + blob + data)
    return path


def refuse(source: Path, kind: type[JmedliteError], *words: str, **options: Any) -> None:
    """Quantizing `source` must raise `kind` with all `words` in its message, and leave no file."""
    out = source.parent / "out"
    with pytest.raises(JmedliteError) as caught:
        jmedlite.quantize(source, out=out, threads=1, **{"types": ["Q8_0"]} | options)
    assert type(caught.value) is kind
    for word in words:
        assert word in str(caught.value)
    assert not [f for f in out.rglob("*") if f.is_file()]


def change_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    found = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps({k: v for k, v in found.items() if v is not None}), encoding="utf-8")


# ------------------------------------------------------------------------------------------------ safetensors headers


@pytest.mark.parametrize(
    ("length", "words"),
    [
        (81, ["its header is not valid JSON"]),  # 8 + 80 + 16 bytes in the file: the header's end would be data
        (97, ["97 bytes", "the file has 104"]),
        (MAX_HEADER + 1, ["100,000,001 bytes", "limit 100,000,000"]),
        (1 << 62, [f"{1 << 62:,} bytes", "limit"]),
    ],
    ids=["into the data", "beyond the file", "beyond 100 MB", "2^62"],
)
def test_header_length(tmp_path: Path, length: int, words: list[str]) -> None:
    blob = json.dumps({"w": entry()}).encode().ljust(80)
    path = safetensors(tmp_path / "w.safetensors", blob, length=length)
    assert path.stat().st_size == 104
    with pytest.raises(DataError) as caught:
        read_safetensors_header(path)
    for word in words:
        assert word in str(caught.value)


def test_header_over_the_limit_is_refused_although_the_file_has_it(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", MAX_HEADER + 1))
        file.truncate(MAX_HEADER + 1024)  # sparse
    started = time.monotonic()
    with pytest.raises(DataError, match=r"100,000,001 bytes.*limit 100,000,000"):
        read_safetensors_header(path)
    assert time.monotonic() - started < 1


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"a": entry(), "b": entry(offsets=(8, 24))}, ["tensor b", "overlaps"]),
        ({"a": entry(offsets=(8, 24))}, ["tensor a", "hole"]),
        ({"a": entry(shape=(1, 2), offsets=(0, 8)), "b": entry(shape=(1,), offsets=(12, 16))}, ["tensor b", "hole"]),
        ({"a": entry(offsets=(16, 0))}, ["tensor a", "malformed"]),
        ({"a": entry(offsets=(-16, 0))}, ["tensor a", "malformed"]),
        ({"a": entry(shape=(4, 2), offsets=(0, 32))}, ["needs", "has", "truncated"]),
        ({"a": entry(shape=(2,), offsets=(0, 8))}, ["8 bytes after its last tensor"]),
        ({"a": entry(shape=(2, 3))}, ["tensor a", "[2, 3]", "F32", "needs 24", "16"]),
        ({"a": entry(dtype="F16")}, ["tensor a", "F16", "needs 8", "16"]),
        ({"a": entry(shape=(1 << 40, 1 << 40))}, ["tensor a", "16"]),
        ({"a": entry(shape=(-2, -2))}, ["tensor a", "malformed"]),
        ({"a": entry(shape=(2.0, 2.0))}, ["tensor a", "malformed"]),
        ({"a": entry(shape=(True, 4))}, ["tensor a", "malformed"]),
        ({"a": entry(shape="22")}, ["tensor a", "malformed"]),
        ({"a": entry(offsets=(0, 1 << 62))}, ["tensor a", "malformed"]),
        ({"a": entry(offsets=(0, 16, 16))}, ["tensor a", "malformed"]),
        ({"a": entry(dtype="F4")}, ["tensor a", "F4", *DTYPE_BYTES]),
        ({"a": entry(dtype=["F32"])}, ["tensor a", "dtype"]),
        ({"a": entry(dtype=None)}, ["tensor a", "dtype"]),
        ({"a": {"dtype": "F32"}}, ["tensor a", "malformed"]),
        ({"a": [1, 2]}, ["tensor a", "malformed"]),
        ({"a": None}, ["tensor a", "malformed"]),
        ([], ["not a JSON object"]),
        (b"{", ["not valid JSON"]),
        (b"", ["not valid JSON"]),
        (b"\xff\xfe{}", ["not valid JSON"]),
        (b"[" * 100_000, ["not valid JSON"]),
        (b'{"a": %s, "a": %s}' % ((json.dumps(entry()).encode(),) * 2), ["not valid JSON", "twice"]),
        (b'{"a": {"dtype": "F32", "dtype": "F16", "shape": [2, 2], "data_offsets": [0, 16]}}', ["twice"]),
    ],
)
def test_header_entries(tmp_path: Path, header: Any, words: list[str]) -> None:
    path = safetensors(tmp_path / "w.safetensors", header)
    with pytest.raises(DataError) as caught:
        read_safetensors_header(path)
    assert caught.value.exit_code == 65
    assert str(caught.value).startswith("w.safetensors: ")
    for word in words:
        assert word in str(caught.value)


def test_the_helper_can_also_build_a_right_header(tmp_path: Path) -> None:
    found = read_safetensors_header(safetensors(tmp_path / "w.safetensors", {"a": entry()}))
    assert found["a"].shape == (2, 2)


def test_file_shorter_than_a_length(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(bytes(7))
    with pytest.raises(DataError, match="has 7 bytes, too short"):
        read_safetensors_header(tmp_path / "w.safetensors")


def test_truncated_weights(tmp_path: Path) -> None:
    builders.checkpoint(tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    size = path.stat().st_size
    os.truncate(path, size - 1)
    refuse(tmp_path / "m", DataError, "truncated", f"needs {size:,} bytes", f"has {size - 1:,}")


# -------------------------------------------------------------------------------------------------------------- index


def edit_index(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = folder / INDEX
    found = json.loads(path.read_text())
    edit(found["weight_map"])
    path.write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("shard", "words"),
    [
        ("model-00009-of-00009.safetensors", ["model-00009-of-00009.safetensors", "not in the folder"]),
        ("{outside}", ["plain file name"]),
        ("../stolen.safetensors", ["../stolen.safetensors", "plain file name"]),
        ("..", ["'..'", "plain file name"]),
        (".", ["'.'", "plain file name"]),
        ("", ["''", "plain file name"]),
        ("sub/model.safetensors", ["sub/model.safetensors", "plain file name"]),
        ("..\\stolen.safetensors", ["stolen.safetensors", "plain file name"]),
        (None, ["is null, expected text"]),
        (3, ["is 3, expected text"]),
        (["model-00001-of-00002.safetensors"], ["expected text"]),
        ({}, ["is {}, expected text"]),
    ],
)
def test_index_names_a_bad_shard(tmp_path: Path, shard: Any, words: list[str]) -> None:
    builders.checkpoint(tmp_path / "m", shards=2)
    builders.write_safetensors(tmp_path / "stolen.safetensors", {DOWN: np.zeros((256, 512), np.float32)})
    if shard == "{outside}":
        shard = str(tmp_path / "stolen.safetensors")
    edit_index(tmp_path / "m", lambda weight_map: weight_map.update({DOWN: shard}))
    refuse(tmp_path / "m", DataError, INDEX, *words)


def link(target: Path, path: Path) -> None:
    try:
        path.symlink_to(target)
    except OSError:
        pytest.skip("this system makes no symbolic links for this user")


def test_links_inside_the_folder_and_of_the_hub_cache_are_followed(tmp_path: Path) -> None:
    folder = tmp_path / "models--o--n" / "snapshots" / ("0" * 40)
    builders.checkpoint(folder)
    blobs = tmp_path / "models--o--n" / "blobs"
    blobs.mkdir()
    (folder / "model.safetensors").rename(blobs / "abc")
    link(Path("../../blobs/abc"), folder / "model.safetensors")
    assert DOWN in Checkpoint(folder).tensors


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", ["not valid JSON"]),
        (b"\xff", ["not valid JSON"]),
        (b"[]", ["list", "expected an object"]),
        (b"{}", ["no weight_map"]),
        (b'{"weight_map": []}', ["weight_map: is [], expected an object"]),
        (b'{"weight_map": {}}', ["no weight_map"]),
    ],
)
def test_index_content(tmp_path: Path, content: bytes, words: list[str]) -> None:
    builders.checkpoint(tmp_path / "m", shards=2)
    (tmp_path / "m" / INDEX).write_bytes(content)
    refuse(tmp_path / "m", DataError, INDEX, *words)


def test_index_and_shards_disagree(tmp_path: Path) -> None:
    builders.checkpoint(tmp_path / "m", shards=2)
    edit_index(tmp_path / "m", lambda weight_map: weight_map.pop(DOWN))
    refuse(tmp_path / "m", DataError, "does not list tensor", DOWN)
    edit_index(
        tmp_path / "m",
        lambda weight_map: weight_map.update(
            {DOWN: "model-00002-of-00002.safetensors", "x": "model-00001-of-00002.safetensors"}
        ),
    )
    refuse(tmp_path / "m", DataError, "model-00001-of-00002.safetensors", "does not hold x")


def test_same_tensor_in_two_shards(tmp_path: Path) -> None:
    tensors = builders.checkpoint(tmp_path / "m", shards=2)
    index = json.loads((tmp_path / "m" / INDEX).read_text())["weight_map"]
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    part = {n: x for n, x in tensors.items() if index[n] == first or n == DOWN}
    assert index[DOWN] == second
    builders.write_safetensors(tmp_path / "m" / first, part)
    refuse(tmp_path / "m", DataError, DOWN, first)


# ------------------------------------------------------------------------------------------------------------ weights


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_weights_that_are_not_finite(tmp_path: Path, dtype: str, bad: float) -> None:
    tensors = builders.weights(builders.config("qwen2", N_VOCAB))
    tensors[DOWN][3, 5:8] = bad
    builders.checkpoint(tmp_path / "m", tensors=tensors)
    (tmp_path / "m" / "model.safetensors").unlink()
    # to_bf16 of the builders would round a NaN's bits to something else than a NaN
    raw = {n: builders.to_bf16(x) if dtype == "BF16" else x for n, x in tensors.items()}
    if dtype == "BF16":
        raw[DOWN][3, 5:8] = {np.inf: 0x7F80, -np.inf: 0xFF80}.get(bad, 0x7FC0)
        write_raw(tmp_path / "m" / "model.safetensors", raw)
    else:
        builders.write_safetensors(tmp_path / "m" / "model.safetensors", tensors, dtype)
    refuse(tmp_path / "m", DataError, DOWN, "3 weights", "NaN or infinite")


def write_raw(path: Path, tensors: dict[str, np.ndarray]) -> None:
    header, at = {}, 0
    for name, x in tensors.items():
        header[name] = entry("BF16", x.shape, (at, at + x.nbytes))
        at += x.nbytes
    safetensors(path, header, b"".join(x.tobytes() for x in tensors.values()))


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.0.self_attn.q_proj.bias"])
def test_one_nan_in_a_vector(tmp_path: Path, name: str) -> None:
    tensors = builders.weights(builders.config("qwen2", N_VOCAB))
    tensors[name][-1] = np.nan
    builders.checkpoint(tmp_path / "m", tensors=tensors, dtype="F32")
    refuse(tmp_path / "m", DataError, name, "1 weights", types=["F32", "Q4_K_M"])


def test_overflow_by_merging(tmp_path: Path) -> None:
    tensors = builders.weights(builders.config("qwen2", N_VOCAB))
    tensors[DOWN][:] = F32_MAX
    builders.checkpoint(tmp_path / "m", tensors=tensors, dtype="F32")
    builders.adapter(tmp_path / "a", tensors, modules=("mlp.down_proj",))
    key = f"base_model.model.{DOWN.removesuffix('.weight')}.lora_"
    found = builders.adapter(tmp_path / "a", tensors, modules=("mlp.down_proj",))
    found[key + "A.weight"][:] = 0
    found[key + "A.weight"][:, 7] = 1e30  # one column of A, all of B: a whole column of the weight overflows
    found[key + "B.weight"][:] = 1e8
    builders.write_safetensors(tmp_path / "a" / "adapter_model.safetensors", found, "F32")
    refuse(tmp_path / "m", DataError, DOWN, "256 weights", "after merging", types=["F32"], lora=[str(tmp_path / "a")])


def test_finite_weights_beyond_f16(tmp_path: Path) -> None:
    tensors = builders.weights(builders.config("qwen2", N_VOCAB))
    tensors[DOWN][0, 0] = 131072.0
    builders.checkpoint(tmp_path / "m", tensors=tensors)
    refuse(tmp_path / "m", DataError, DOWN, "1.31e+05", "65504", "Q8_0", "--type BF16")
    # ... and the way out that the message names is one
    assert jmedlite.quantize(tmp_path / "m", types=["BF16"], out=tmp_path / "out")[0].is_file()


@pytest.mark.parametrize("dtype", ["I32", "F64", "F8_E4M3"])
def test_weight_of_a_type_that_is_no_weight(tmp_path: Path, dtype: str) -> None:
    tensors = builders.checkpoint(tmp_path / "m")
    header, at = {}, 0
    for name, x in tensors.items():
        kind = dtype if name == DOWN else "BF16"
        header[name] = entry(kind, x.shape, (at, at + x.size * DTYPE_BYTES[kind]))
        at += x.size * DTYPE_BYTES[kind]
    safetensors(tmp_path / "m" / "model.safetensors", header, bytes(at))
    refuse(tmp_path / "m", DataError, DOWN, dtype, "F32, F16, BF16" if dtype == "F64" else "quantized already")


@pytest.mark.parametrize(
    ("drop", "add", "words"),
    [
        ([DOWN], {}, ["lacks", DOWN]),
        ([DOWN, "model.norm.weight"], {}, ["lacks", DOWN, "and 1 more"]),
        (["lm_head.weight"], {}, ["lacks", "lm_head.weight"]),
        (["model.layers.1.self_attn.k_proj.bias"], {}, ["lacks", "model.layers.1.self_attn.k_proj.bias"]),
        (
            [],
            {"model.layers.2.mlp.down_proj.weight": (256, 512)},
            ["has", "model.layers.2.mlp.down_proj.weight", "Qwen2"],
        ),
        ([], {"model.layers.0.self_attn.o_proj.bias": (256,)}, ["has", "model.layers.0.self_attn.o_proj.bias"]),
        ([], {"a": (1,), "b": (1,)}, ["has a", "and 1 more"]),
    ],
)
def test_missing_and_left_over_tensors(
    tmp_path: Path, drop: list[str], add: dict[str, tuple[int, ...]], words: list[str]
) -> None:
    tensors = builders.weights(builders.config("qwen2", N_VOCAB))
    tensors = {n: x for n, x in tensors.items() if n not in drop} | {n: np.zeros(s, np.float32) for n, s in add.items()}
    builders.checkpoint(tmp_path / "m", tensors=tensors)
    refuse(tmp_path / "m", DataError, *words)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (DOWN, (512, 256)),
        (DOWN, (256 * 512,)),
        ("model.layers.0.self_attn.k_proj.weight", (256, 256)),
        ("model.norm.weight", (1, 256)),
        ("model.norm.weight", ()),
    ],
)
def test_wrong_shapes(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    tensors = builders.weights(builders.config("qwen2", N_VOCAB))
    expected = list(tensors[name].shape)
    tensors[name] = np.zeros(shape, np.float32)
    builders.checkpoint(tmp_path / "m", tensors=tensors)
    refuse(tmp_path / "m", DataError, name, str(list(shape)), str(expected), "config.json")


# ------------------------------------------------------------------------------------------- configuration, tokenizer


def test_tokenizer_larger_than_the_embedding(tmp_path: Path) -> None:
    builders.checkpoint(tmp_path / "m", vocab_size=N_VOCAB - 2)
    refuse(tmp_path / "m", DataError, f"up to {N_VOCAB - 2:,}", f"{N_VOCAB - 2:,} rows")


def test_ordinary_tokens_beyond_the_embedding(tmp_path: Path) -> None:
    tokenizer = builders.byte_level_tokenizer()
    tokenizer["added_tokens"].append({"id": N_VOCAB, "content": "アスピリン", "special": False})
    builders.checkpoint(tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    refuse(tmp_path / "m", DataError, f"up to {N_VOCAB:,}", f"{N_VOCAB:,} rows")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("vocab", {"a": 1 << 40}, [f"{1 << 40:,}"]),
        ("vocab", {"a": -1}, ["id"]),
        ("vocab", {"a": "b"}, ["id"]),
        ("vocab", [], ["vocab"]),
        ("merges", [], ["merges"]),
        ("merges", [5], ["tokenizer"]),
        ("merges", ["a"], ["merge"]),
        ("type", "Unigram", ["Unigram", "tokens with scores"]),
    ],
)
def test_tokenizer_model_values(tmp_path: Path, key: str, value: Any, words: list[str]) -> None:
    builders.checkpoint(tmp_path / "m")
    described = builders.byte_level_tokenizer()
    described["model"][key] = value
    (tmp_path / "m" / "tokenizer.json").write_text(json.dumps(described))
    refuse(tmp_path / "m", DataError, *words)


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("tokenizer.json", {"model": []}),
        ("tokenizer.json", {"model": 5}),
        ("tokenizer.json", {"added_tokens": [5]}),
        ("tokenizer.json", {"added_tokens": [{"id": -1, "content": "x"}]}),
        ("tokenizer.json", {"added_tokens": [{"id": "x", "content": "x"}]}),
        ("tokenizer.json", {"added_tokens": [{"id": 5, "content": ""}]}),
        ("tokenizer.json", {"added_tokens": [{"id": 5, "content": "\ud800"}]}),
        ("tokenizer.json", {"added_tokens": [{"id": 5, "content": "b"}]}),  # as the vocabulary's own "b"
        ("tokenizer.json", {"pre_tokenizer": {"pretokenizers": [5]}}),
        ("tokenizer.json", {"normalizer": 5}),
        ("tokenizer.json", {"post_processor": {"processors": [5]}}),
        ("tokenizer_config.json", {"added_tokens_decoder": [5]}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"5": "x"}}),
    ],
)
def test_tokenizer_files_of_the_wrong_form(tmp_path: Path, file: str, changes: dict[str, Any]) -> None:
    builders.checkpoint(tmp_path / "m")
    change_json(tmp_path / "m" / file, **changes)
    refuse(tmp_path / "m", DataError, "token")


@pytest.mark.parametrize("architectures", [["BloomForCausalLM"], [], None])
def test_unknown_architecture_lists_the_known(tmp_path: Path, architectures: Any) -> None:
    builders.checkpoint(tmp_path / "m")
    change_json(tmp_path / "m" / "config.json", architectures=architectures)
    known = [family.hf_names[0].removesuffix("ForCausalLM") for family in FAMILIES]
    refuse(tmp_path / "m", DataError, "is not supported", *known)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": "256"}, ["hidden_size", '"256"', "a whole number"]),
        ({"architectures": "LlamaForCausalLM"}, ["architectures", "expected a list"]),
        ({"architectures": [["LlamaForCausalLM"]]}, ["architectures[0]", "expected text"]),
        ({"hidden_size": 0}, ["hidden_size", "0"]),
        ({"hidden_size": True}, ["hidden_size", "true"]),
        ({"hidden_size": 1e400}, ["hidden_size", "Infinity"]),
        ({"hidden_size": None}, ["hidden_size", "None"]),
        ({"num_attention_heads": -4}, ["num_attention_heads", "-4"]),
        ({"num_key_value_heads": 3}, ["4 attention heads", "3 key-value heads"]),
        ({"head_dim": 63}, ["63 dimensions", "even"]),
        ({"intermediate_size": 1 << 31}, ["intermediate_size", str(1 << 31)]),
        ({"vocab_size": 2.5}, ["vocab_size", "2.5"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers", "0"]),
        ({"num_hidden_layers": 2_000_000_000}, ["num_hidden_layers", "512"]),
        ({"num_hidden_layers": 3}, ["lacks", "model.layers.2."]),
        ({"max_position_embeddings": "many"}, ["max_position_embeddings", '"many"']),
        ({"max_position_embeddings": 1 << 40}, ["max_position_embeddings", str(1 << 40)]),
        ({"rms_norm_eps": float("nan")}, ["rms_norm_eps", "NaN"]),
        ({"rms_norm_eps": "1e-6"}, ["rms_norm_eps"]),
        ({"rope_theta": "big"}, ["rope", "big"]),
        ({"rope_theta": float("nan")}, ["rope", "NaN"]),
        ({"rope_theta": 1e300}, ["rope", "1e+300"]),
        ({"rope_theta": -1.0}, ["rope", "-1.0"]),
        ({"rope_scaling": "yarn"}, ["rope", "yarn"]),
        ({"rope_scaling": {"rope_type": "longrope"}}, ["rope", "longrope", "Qwen2"]),
        ({"rope_scaling": {"rope_type": "yarn"}}, ["rope", "factor"]),
        ({"rope_scaling": {"rope_type": "linear", "factor": "x"}}, ["rope", "x"]),
    ],
)
def test_bad_config_values(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    builders.checkpoint(tmp_path / "m")
    change_json(tmp_path / "m" / "config.json", **changes)
    started = time.monotonic()
    refuse(tmp_path / "m", DataError, *words)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    "changes",
    [
        {"factor": "x"},
        {"factor": 0},
        {"high_freq_factor": 0},
        {"high_freq_factor": 0.5},  # below low_freq_factor
        {"original_max_position_embeddings": None},
        {"low_freq_factor": float("nan")},
        {"rope_theta": 0},
    ],
)
def test_bad_llama3_rope(tmp_path: Path, changes: dict[str, Any]) -> None:
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    builders.checkpoint(
        tmp_path / "m", "llama", rope_scaling={**rope, **changes, "original_max_position_embeddings": "x"}
    )
    if "original_max_position_embeddings" not in changes:
        change_json(
            tmp_path / "m" / "config.json", rope_scaling={**rope, "original_max_position_embeddings": 256, **changes}
        )
    refuse(tmp_path / "m", DataError, "rope")


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b"9" * 5000])
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_bad_json(tmp_path: Path, file: str, content: bytes) -> None:
    builders.checkpoint(tmp_path / "m")
    (tmp_path / "m" / file).write_bytes(content)
    refuse(tmp_path / "m", DataError, file, "JSON")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ('{"temperature": "hot"}', "temp"),
        ('{"top_k": 1e99}', "top_k"),
        ("[]", "generation_config.json"),
        ('{"repetition_penalty": []}', "repetition_penalty: is [], expected a number"),
        (
            '{"eos_token_id": "</s>"}',
            'eos_token_id: is "</s>", expected a whole number or a list',
        ),
        ('{"eos_token_id": [1, -1]}', "eos_token_id is [1, -1], expected a token's id or a list"),
        ('{"eos_token_id": [[1]]}', "eos_token_id[0]: is [1]"),
    ],
)
def test_odd_generation_config(tmp_path: Path, content: str, word: str) -> None:
    builders.checkpoint(tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").write_text(content)
    refuse(tmp_path / "m", DataError, word)


@pytest.mark.parametrize("card", ["---\nlicense: [\n---\n", "---\nlicense: {a: b}\n---\n", "---\n- 5\n---\n"])
def test_odd_model_card_is_a_fault_or_no_matter(tmp_path: Path, card: str) -> None:
    builders.checkpoint(tmp_path / "m")
    (tmp_path / "m" / "README.md").write_text(card)
    try:
        made = jmedlite.quantize(tmp_path / "m", types=["Q8_0"], out=tmp_path / "out", threads=1)
    except DataError as e:
        assert "m" in str(e)
        assert not list((tmp_path / "out").iterdir())
    else:
        assert made[0].is_file()


# -------------------------------------------------------------------------------------------------------- other kinds


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json"])
def test_missing_file(tmp_path: Path, missing: str) -> None:
    builders.checkpoint(tmp_path / "m")
    (tmp_path / "m" / missing).unlink()
    refuse(tmp_path / "m", InputMissing, missing)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("weights.bin", ["weights.bin has another name", "pytorch_model.bin"]),
        ("model.gguf", ["GGUF", "model.gguf"]),
        ("notes.txt", ["model.safetensors", INDEX]),
    ],
)
def test_folder_without_safetensors(tmp_path: Path, file: str, words: list[str]) -> None:
    builders.checkpoint(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / file)
    refuse(tmp_path / "m", InputMissing, *words)


def test_folder_where_a_file_should_be(tmp_path: Path) -> None:
    builders.checkpoint(tmp_path / "m")
    (tmp_path / "m" / "config.json").unlink()
    (tmp_path / "m" / "config.json").mkdir()
    refuse(tmp_path / "m", InputMissing, "config.json", "not a regular file, but a folder")
