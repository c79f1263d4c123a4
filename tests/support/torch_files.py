"""Builds PyTorch weight files without torch: pickles opcode by opcode, zip archives as torch's writer makes them."""

from __future__ import annotations

import json
import math
import os
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.support import builders

# ------------------------------------------------------------------------------- builders: pickles, opcode by opcode


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def whole(value: int) -> bytes:
    if 0 <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def tuple_(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def wholes(values: Sequence[int]) -> bytes:
    return tuple_(*map(whole, values))


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def call(function: bytes, *args: bytes) -> bytes:
    return function + tuple_(*args) + b"R"


def dict_(entries: Mapping[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in entries.items()) + b"u"


ORDERED = call(name("collections", "OrderedDict"))
V1, V2, V3 = (name("torch._utils", f"_rebuild_tensor{v}") for v in ("", "_v2", "_v3"))
KINDS = {"F64": "Double", "F32": "Float", "F16": "Half", "BF16": "BFloat16", "I64": "Long", "U8": "Byte"}


def storage(n: int, kind: str = "Float", key: str = "0", module: str = "torch") -> bytes:
    what = name(module, kind if kind.startswith("Untyped") else f"{kind}Storage")
    return tuple_(text("storage"), what, text(key), text("cpu"), whole(n)) + b"Q"


def tensor(
    shape: Sequence[int], kind: str = "Float", key: str = "0", *, n: int | None = None, start: int = 0,
    stride: Sequence[int] | None = None, function: bytes = V2, rest: bytes = b"\x89" + ORDERED,
) -> bytes:  # fmt: skip
    """A tensor on storage `key` of `n` elements (as many as the shape has), contiguous unless `stride` says else."""
    if stride is None:
        stride = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    n = math.prod(shape) if n is None else n
    return call(function, storage(n, kind, key), whole(start), wholes(shape), wholes(stride), rest)


def state_dict(entries: Mapping[str, bytes]) -> bytes:
    """A pickle, as of nn.Module.state_dict(): an OrderedDict with `_metadata`."""
    items = b"(" + b"".join(text(key) + value for key, value in entries.items()) + b"u"
    return b"\x80\x02" + ORDERED + items + dict_({"_metadata": ORDERED}) + b"b."


# ------------------------------------------------------------------------------------------- builders: zip archives


def write_zip(
    path: Path, members: Sequence[tuple[str, bytes | int]], zip64: bool = True,
    local: Mapping[str, Mapping[str, Any]] = {}, central: Mapping[str, Mapping[str, Any]] = {}, **end: int,
) -> Path:  # fmt: skip
    """A zip archive as torch's writer makes it: stored, aligned to 64, sizes behind the data, zip64 end records.

    Data given as a number are so many zeros, not written. `local` and `central` replace fields (flags, method, size,
    packed, crc, name, offset) of single members; `end` replaces n, length, offset, comment, appended of the end.
    """
    directory = b""
    with path.open("wb") as file:
        for member, data in members:
            size, crc = (data, 0) if isinstance(data, int) else (len(data), zlib.crc32(data))
            at, raw = file.tell(), member.encode()
            right = {"flags": 0x808, "method": 0, "crc": 0, "size": 0, "packed": 0, "name": raw, "need": 0}
            x = {**right, **local.get(member, {})}
            wide = b"" if at < 1 << 32 and size < 1 << 32 else struct.pack("<HHQ", 1, 8, at)
            pad = -(at + 30 + len(raw) + len(wide) + 4) % 64
            extra = wide + struct.pack("<HH", 0x4246, pad) + b"Z" * pad
            fields = (x["need"], x["flags"], x["method"], 0, 0, x["crc"], x["packed"], x["size"])
            file.write(struct.pack("<4s5H3I2H", b"PK\3\4", *fields, len(x["name"]), len(extra)) + x["name"] + extra)
            file.seek(size, os.SEEK_CUR) if isinstance(data, int) else file.write(data)
            form = "<4sIQQ" if size >= 1 << 32 else "<4sIII"
            file.write(struct.pack(form, b"PK\7\10", crc, size, size))
            y = {**right, "crc": crc, "size": size, "packed": size, "offset": at, **central.get(member, {})}
            values = [min(y[key], 0xFFFFFFFF) for key in ("packed", "size", "offset")]
            large = [y[key] for key in ("size", "packed", "offset") if y[key] >= 0xFFFFFFFF]
            extra = struct.pack(f"<HH{len(large)}Q", 1, 8 * len(large), *large) if large else b""
            listed = (0, y["need"], y["flags"], y["method"], 0, 0, y["crc"], values[0], values[1])
            directory += struct.pack("<4s6H3I", b"PK\1\2", *listed) + struct.pack(
                "<5H2I", len(y["name"]), len(extra), 0, 0, 0, 0, values[2]
            )
            directory += y["name"] + extra
        at = file.tell()
        e = {"n": len(members), "length": len(directory), "offset": at, "comment": 0, "appended": 0, "small": 0, **end}
        file.write(directory)
        if zip64:
            where = file.tell()
            file.write(struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 0, 0, 0, 0, e["n"], e["n"], e["length"], e["offset"]))
            file.write(struct.pack("<4sIQI", b"PK\6\7", 0, where, 1))
        n, length, offset = min(e["n"] + e["small"], 0xFFFF), min(e["length"], 0xFFFFFFFF), min(e["offset"], 0xFFFFFFFF)
        file.write(struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, n, n, length, offset, e["comment"]) + bytes(e["appended"]))
    return path


def write_pickled(path: Path, pickled: bytes, *storages: bytes | int, **options: Any) -> Path:
    """A file of torch.save: this pickle, these storages."""
    members: list[tuple[str, bytes | int]] = [("m/data.pkl", pickled), ("m/byteorder", b"little")]
    members += [(f"m/data/{i}", data) for i, data in enumerate(storages)]
    return write_zip(path, [*members, ("m/version", b"3\n"), ("m/.data/serialization_id", b"0" * 40)], **options)


def write_torch_file(path: Path, tensors: builders.Arrays, dtype: str = "BF16") -> Path:
    """`tensors` (float32) as torch.save would write them in `dtype`; arrays that are the same object share bytes."""
    encode: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "BF16": builders.to_bf16,
        "F16": lambda x: x.astype(np.float16),
        "F32": lambda x: x.astype(np.float32),
    }
    keys: dict[int, str] = {}
    storages, entries = [], {}
    for tensor_name, x in tensors.items():
        if id(x) not in keys:
            keys[id(x)] = str(len(keys))
            storages.append(np.ascontiguousarray(encode[dtype](x)).tobytes())
        entries[tensor_name] = tensor(x.shape, KINDS[dtype], keys[id(x)])
    return write_pickled(path, state_dict(entries), *storages)


def as_bin(folder: Path, tensors: builders.Arrays, shards: int = 1) -> None:
    """Replace a checkpoint's safetensors by .bin files with the same weights."""
    for file in folder.glob("model*.safetensors*"):
        file.unlink()
    if shards == 1:
        write_torch_file(folder / "pytorch_model.bin", tensors)
        return
    where = {name: f"pytorch_model-{i % shards + 1:05d}-of-{shards:05d}.bin" for i, name in enumerate(tensors)}
    for file in sorted(set(where.values())):
        write_torch_file(folder / file, {n: tensors[n] for n, f in where.items() if f == file})
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
