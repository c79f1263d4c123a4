"""Hostile GGUF headers, built byte by byte: each is one sentence, fast and without allocating what it claims."""

from __future__ import annotations

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
}


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
    with pytest.raises(DataError, match="folder"):
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
