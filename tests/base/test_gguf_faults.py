"""Hostile GGUF headers, built byte by byte: each is one sentence, fast and without allocating what it claims."""

from __future__ import annotations

import os
import random
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import jmedlite
from jmedlite.base import gguf
from jmedlite.base.errors import DataError, InputMissing, JmedliteError
from tests.support import builders

HUGE = (1 << 62) - 3


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def u32(key: str, value: int) -> bytes:
    return string(key) + struct.pack("<II", gguf.UINT32, value)


def strings(key: str, values: list[str]) -> bytes:
    return string(key) + struct.pack("<IIQ", gguf.ARRAY, gguf.STRING, len(values)) + b"".join(map(string, values))


def numbers(key: str, values: list[int]) -> bytes:
    return string(key) + struct.pack(f"<IIQ{len(values)}i", gguf.ARRAY, gguf.INT32, len(values), *values)


def floats(key: str, values: list[float]) -> bytes:
    return string(key) + struct.pack(f"<IIQ{len(values)}f", gguf.ARRAY, gguf.FLOAT32, len(values), *values)


def tensor(name: str = "t", dims: tuple[int, ...] = (32,), type_: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, type_, offset)


def whole(kv: list[bytes], tensors: list[bytes], data: int = 0, version: int = 3, magic: bytes = b"GGUF") -> bytes:
    blob = magic + struct.pack("<IQQ", version, len(tensors), len(kv)) + b"".join(kv + tensors)
    return blob + bytes(gguf.pad(len(blob)) - len(blob)) + bytes(data)


def model_kv(**changes: bytes) -> list[bytes]:
    kv = {
        "arch": string("general.architecture") + struct.pack("<I", gguf.STRING) + string("llama"),
        "blocks": u32("llama.block_count", 2),
        "tokens": strings("tokenizer.ggml.tokens", ["a", "b", "c"]),
        "bos": u32("tokenizer.ggml.bos_token_id", 1),
    }
    return [v for v in {**kv, **changes}.values() if v]


HEADER_FAULTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "wrong magic": (whole([], [], magic=b"GGML"), r"begins with b'GGML'"),
    "half a magic": (b"GG", "needs 4 bytes, has 2"),
    "version 1": (whole([], [], version=1), "version 1, expected 2 or 3"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "cut in the header": (whole([u32("k", 1)], [])[:30], "truncated|more than"),
    "cut in the data": (whole([], [tensor(dims=(64,))], data=100), r"needs \d+ bytes, has \d+"),
    "n_kv": (b"GGUF" + struct.pack("<IQQ", 3, 0, HUGE) + bytes(64), "metadata claims"),
    "n_tensors": (b"GGUF" + struct.pack("<IQQ", 3, HUGE, 0) + bytes(64), "tensor list claims"),
    "string length": (whole([struct.pack("<Q", HUGE) + bytes(64)], []), "claims"),
    "array length": (
        whole([string("k") + struct.pack("<IIQ", gguf.ARRAY, gguf.UINT8, HUGE) + bytes(64)], []),
        "claims",
    ),
    "string array length": (
        whole([string("k") + struct.pack("<IIQ", gguf.ARRAY, gguf.STRING, HUGE) + bytes(64)], []),
        "claims",
    ),
    "nested array": (whole([string("k") + struct.pack("<IIQ", gguf.ARRAY, gguf.ARRAY, 1) + bytes(64)], []), "nested"),
    "unknown value type": (whole([string("k") + struct.pack("<I", 99) + bytes(64)], []), "unknown value type 99"),
    "a key of two lines": (whole([string("k\nl") + struct.pack("<I", 99) + bytes(64)], []), "k l has unknown value"),
    "empty key": (whole([u32("", 1)], []), "empty metadata key"),
    "duplicate key": (whole([u32("k", 1), u32("k", 2)], []), "'k' twice"),
    "key not UTF-8": (whole([struct.pack("<Q", 2) + b"\xff\xff" + struct.pack("<II", 4, 1)], []), "UTF-8"),
    "duplicate tensor": (whole([], [tensor(), tensor(offset=128)], data=256), "'t' twice"),
    "alignment zero": (whole([u32("general.alignment", 0)], []), "alignment 0"),
    "alignment odd": (whole([u32("general.alignment", 48)], []), "alignment 48"),
    "offset unaligned": (whole([], [tensor(offset=8)], data=256), "alignment 32"),
    "tensors overlap": (whole([], [tensor("a"), tensor("b", offset=96)], data=512), "overlaps"),
    "no dimensions": (whole([], [tensor(dims=())], data=64), "0 dimensions"),
    "five dimensions": (whole([], [tensor(dims=(1, 1, 1, 1, 1))], data=64), "5 dimensions"),
    "dimension zero": (whole([], [tensor(dims=(0, 4))], data=64), "impossible dimensions"),
    "dimensions overflow": (whole([], [tensor(dims=(1 << 40, 1 << 40))], data=64), "impossible dimensions"),
    "unknown type": (whole([], [tensor(type_=77)], data=64), "unknown type 77; known are F32, F16"),
    "row not a block": (whole([], [tensor(dims=(33,), type_=8)], data=64), "multiple of 32"),
    "name too long": (whole([], [tensor("x" * 64)], data=256), "64 bytes"),
}


@pytest.mark.parametrize("fault", HEADER_FAULTS)
def test_header_faults(tmp_path: Path, fault: str) -> None:
    blob, words = HEADER_FAULTS[fault]
    path = tmp_path / "bad.gguf"
    path.write_bytes(blob)
    started = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=words) as caught:
            gguf.read_header(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.exit_code == 65
    assert "bad.gguf" in str(caught.value)
    assert peak < 50e6
    assert time.monotonic() - started < 1


SPARSE: dict[str, tuple[bytes, str]] = {  # headers that fit their files, which are mostly holes
    "one array": (string("k") + struct.pack("<IIQ", gguf.ARRAY, gguf.INT32, 37_000_000), "header of over 67,108,864"),
    "bytes": (string("k") + struct.pack("<IIQ", gguf.ARRAY, gguf.UINT8, 149_000_000), "149,000,000 entries"),
    "texts": (string("k") + struct.pack("<IIQ", gguf.ARRAY, gguf.STRING, 18_000_000), "over 2,097,152 texts"),
    "one text": (string("k") + struct.pack("<IQ", gguf.STRING, 149_000_000), "149,000,000 entries"),
    "keys": (b"", "metadata has 10,000,000 entries, expected at most 16,384"),
    "tensors": (b"", "tensor list has 4,000,000 entries, expected at most 65,536"),
}


@pytest.mark.parametrize("fault", SPARSE)
def test_small_files_take_little_memory(tmp_path: Path, fault: str) -> None:
    kv, words = SPARSE[fault]
    n_kv, n_tensors = {"keys": (10_000_000, 0), "tensors": (0, 4_000_000)}.get(fault, (1, 0))
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_kv) + kv)
    os.truncate(path, 150_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=words):
            gguf.read_header(path)
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


def test_numbers_stay_packed(tmp_path: Path) -> None:
    path = tmp_path / "good.gguf"
    kv = {"a": ([1, -2], gguf.ARRAY, gguf.INT16), "b": ([True, False], gguf.ARRAY, gguf.BOOL)}
    path.write_bytes(gguf.pack_header([gguf.pack_metadata(kv)], 2, []))
    header = gguf.read_header(path)
    assert {k: list(v) for k, v in header.metadata.items()} == {"a": [1, -2], "b": [1, 0]}
    again = {k: (v, *header.types[k]) for k, v in header.metadata.items()}
    assert gguf.pack_metadata(again) == gguf.pack_metadata(kv)
    path.write_bytes(whole([string("k") + struct.pack("<IIQ", gguf.ARRAY, gguf.INT8, 20_000_000)], [], data=20_000_000))
    tracemalloc.start()
    try:
        gguf.read_header(path)
        assert tracemalloc.get_traced_memory()[1] < 2.2 * 20e6  # read, and packed
    finally:
        tracemalloc.stop()


MODEL_FAULTS: dict[str, tuple[list[bytes], str]] = {
    "no architecture": (model_kv(arch=b""), "general.architecture"),
    "unknown architecture": (
        model_kv(arch=string("general.architecture") + struct.pack("<I", gguf.STRING) + string("martian")),
        "'martian'; known are .*llama.*qwen2",
    ),
    "no blocks": (model_kv(blocks=u32("llama.block_count", 0)), "block_count 0"),
    "too many blocks": (model_kv(blocks=u32("llama.block_count", 513)), "block_count 513, expected 1 to 512"),
    "no vocabulary": (model_kv(tokens=b""), "vocabulary"),
    "token twice": (model_kv(tokens=strings("tokenizer.ggml.tokens", ["a", "a", "c"])), "same token twice"),
    "bos outside": (model_kv(bos=u32("tokenizer.ggml.bos_token_id", 3)), "bos_token_id is 3, outside .* 3"),
    "tokens are numbers": (
        model_kv(tokens=string("tokenizer.ggml.tokens") + struct.pack("<IIQ3I", gguf.ARRAY, gguf.UINT32, 3, 1, 2, 3)),
        "vocabulary",
    ),
    "bos is text": (
        model_kv(bos=string("tokenizer.ggml.bos_token_id") + struct.pack("<I", gguf.STRING) + string("x")),
        "bos_token_id is x",
    ),
    "eos outside": (model_kv(bos=u32("tokenizer.ggml.eos_token_id", 99)), "eos_token_id is 99"),
    "too few token types": (model_kv(x=numbers("tokenizer.ggml.token_type", [1, 1])), "2 entries for 3 tokens"),
    "too few scores": (model_kv(x=floats("tokenizer.ggml.scores", [1, 1])), "2 entries for 3 tokens"),
    "unknown token types": (model_kv(x=numbers("tokenizer.ggml.token_type", [99] * 3)), "holds 99, expected 0 to 6"),
    "control tokens only": (model_kv(x=numbers("tokenizer.ggml.token_type", [3] * 3)), "no token of text"),
    "undefined tokens only": (model_kv(x=numbers("tokenizer.ggml.token_type", [0] * 3)), "no token of text"),
}

SOME = 7  # a whole number
VALUES: dict[str, bytes] = {  # a well-formed value of every type, and of some size
    "whole": struct.pack("<II", gguf.UINT32, SOME),
    "negative": struct.pack("<Ii", gguf.INT32, -1),
    "large": struct.pack("<IQ", gguf.UINT64, 1 << 63),
    "fraction": struct.pack("<If", gguf.FLOAT32, 0.5),
    "truth": struct.pack("<I?", gguf.BOOL, True),
    "text": struct.pack("<I", gguf.STRING) + string("abc"),
    "texts": struct.pack("<IIQ", gguf.ARRAY, gguf.STRING, 1) + string("abc"),
    "wholes": struct.pack("<IIQ3I", gguf.ARRAY, gguf.UINT32, 3, 1, 1, 1),
    "none": struct.pack("<IIQ", gguf.ARRAY, gguf.UINT32, 0),
    "fractions": struct.pack("<IIQ3f", gguf.ARRAY, gguf.FLOAT32, 3, 1, 1, 1),
}
TYPES: dict[str, set[str]] = {  # what each key may be; all else is one sentence
    "general.name": {"text"},
    "general.license": {"text"},
    "general.type": {"text"},
    "tokenizer.ggml.model": {"text"},
    "tokenizer.chat_template": {"text"},
    "jmedlite.made.adapters": {"text"},
    "quantize.imatrix.file": {"text"},
    "llama.context_length": {"whole"},
    "general.file_type": {"whole"},
    "split.count": {"whole"},
    "llama.attention.head_count": {"whole", "wholes", "none"},
    "tokenizer.ggml.add_bos_token": {"truth"},
    "tokenizer.ggml.merges": {"texts"},
    "tokenizer.ggml.token_type": {"wholes"},
    "tokenizer.ggml.scores": {"fractions"},
    "jmedlite.tokenizer.end_token_ids": {"wholes", "none"},
}


@pytest.mark.parametrize("key", TYPES)
def test_values_of_another_type_are_named(tmp_path: Path, key: str) -> None:
    path = tmp_path / "bad.gguf"
    for name, value in VALUES.items():
        path.write_bytes(whole(model_kv(x=string(key) + value), []))
        header = gguf.read_header(path)
        if name in TYPES[key]:
            gguf.check_model(path, header)
            continue
        with pytest.raises(DataError, match=rf"^bad.gguf: {key} (is|has) .*(expected|for 3 tokens)"):
            gguf.check_model(path, header)


@pytest.mark.parametrize("fault", MODEL_FAULTS)
def test_model_faults(tmp_path: Path, fault: str) -> None:
    kv, words = MODEL_FAULTS[fault]
    path = tmp_path / "bad.gguf"
    path.write_bytes(whole(kv, []))
    with pytest.raises(DataError, match=words):
        gguf.check_model(path, gguf.read_header(path))


def test_a_sound_header_passes(tmp_path: Path) -> None:
    path = tmp_path / "good.gguf"
    path.write_bytes(whole(model_kv(), [tensor("a"), tensor("b", (64, 2), 8, 128)], data=512))
    header = gguf.read_header(path)
    gguf.check_model(path, header)
    assert [t.nbytes for t in header.tensors] == [128, 136]
    assert header.metadata["tokenizer.ggml.tokens"] == [b"a", b"b", b"c"]


def test_missing_and_folder(tmp_path: Path) -> None:
    with pytest.raises(InputMissing):
        gguf.read_header(tmp_path / "none.gguf")
    with pytest.raises(InputMissing, match="is not a regular file, but a folder"):
        gguf.read_header(tmp_path)


def _flip(blob: bytearray, rng: random.Random, end: int) -> None:
    for _ in range(rng.randrange(1, 4)):
        blob[rng.randrange(end)] = rng.randrange(256)


def _cut(blob: bytearray, rng: random.Random, end: int) -> None:
    del blob[rng.randrange(end) :]


def _insert(blob: bytearray, rng: random.Random, end: int) -> None:
    at = rng.randrange(end)
    blob[at:at] = rng.randbytes(rng.randrange(1, 9))


@pytest.mark.parametrize("damage", [_flip, _cut, _insert])
def test_damaged_files_end_in_a_sentence(
    tmp_path: Path, damage: Callable[[bytearray, random.Random, int], Any]
) -> None:
    """Any damage to the header is found, or harmless; never another exception."""
    builders.checkpoint(tmp_path / "m")
    (path,) = jmedlite.quantize(tmp_path / "m", bits=[2], out=tmp_path)
    good, end = path.read_bytes(), gguf.read_header(path).data_offset
    rng, found = random.Random(7), 0
    bad = tmp_path / "bad.gguf"
    for _ in range(300):
        blob = bytearray(good)
        damage(blob, rng, end)
        bad.write_bytes(blob)
        try:
            gguf.check_model(bad, gguf.read_header(bad))
        except JmedliteError:
            found += 1
    assert found > 10
