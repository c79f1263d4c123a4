"""Hugging Face checkpoint folders: which tensors there are, checked, and their bytes range by range.

safetensors format: https://github.com/huggingface/safetensors#format. Only headers are held in memory; ranges are
read, never mapped, because the resident pages of a map count as the process's memory.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jmedlite.base.errors import DataError, InputMissing, IoFault
from jmedlite.base.inputs import reading
from jmedlite.base.native import U8

MAX_HEADER = 100_000_000
MAX_JSON = 256_000_000
DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2,
    "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
WEIGHT_DTYPES = ("F32", "F16", "BF16")
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor stands: `offset` counts from the file's beginning, `shape` is row-major as in PyTorch."""

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


def read_json(path: Path, limit: int = MAX_JSON) -> dict[str, Any]:
    """A JSON object from a file of at most `limit` bytes; raises InputMissing or DataError."""
    with reading(path):
        if path.stat().st_size > limit:
            raise DataError(f"{path.name}: has {path.stat().st_size:,} bytes, expected at most {limit:,}")
        blob = path.read_bytes()
    try:
        found = json.loads(blob)
    except (ValueError, RecursionError) as e:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise DataError(f"{path.name}: is not valid JSON ({e})") from None
    if not isinstance(found, dict):
        raise DataError(f"{path.name}: holds a JSON {type(found).__name__}, expected an object")
    return found


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands there twice")
    return found


def read_safetensors_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file; every length is bounded and the data must be covered without holes."""
    with reading(path), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(8)
        if len(head) < 8:
            raise DataError(f"{path.name}: has {size} bytes, too short for a safetensors file")
        (length,) = struct.unpack("<Q", head)
        if length > MAX_HEADER or length > size - 8:
            raise DataError(
                f"{path.name}: claims a header of {length:,} bytes, the file has {size:,} "
                f"(limit {MAX_HEADER:,}); it is truncated or not a safetensors file"
            )
        blob = file.read(length)
    try:
        entries = json.loads(blob, object_pairs_hook=_no_repeats)
    except (ValueError, RecursionError) as e:
        raise DataError(f"{path.name}: its header is not valid JSON ({e})") from None
    if not isinstance(entries, dict):
        raise DataError(f"{path.name}: its header is not a JSON object")
    entries.pop("__metadata__", None)
    found = {name: _entry(path, name, entry, 8 + length) for name, entry in entries.items()}
    _check_cover(path, found, 8 + length, size)
    return found


def _entry(path: Path, name: str, entry: Any, base: int) -> StoredTensor:
    def whole(x: Any) -> bool:
        return isinstance(x, int) and not isinstance(x, bool) and 0 <= x < 1 << 62

    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        well_formed = (
            isinstance(dtype, str)
            and isinstance(shape, list)
            and all(map(whole, [*shape, begin, end]))
            and begin <= end
        )
    except (KeyError, TypeError, ValueError):
        well_formed = False
    if not well_formed:
        raise DataError(f"{path.name}: tensor {name} has a malformed entry (dtype, shape, data_offsets expected)")
    if dtype not in DTYPE_BYTES:
        raise DataError(f"{path.name}: tensor {name} has unknown dtype {dtype}; known are {', '.join(DTYPE_BYTES)}")
    tensor = StoredTensor(name, path, dtype, tuple(shape), base + begin)
    if tensor.nbytes != end - begin:
        raise DataError(
            f"{path.name}: tensor {name} of shape {list(shape)} and dtype {dtype} needs {tensor.nbytes:,} bytes, "
            f"its offsets give {end - begin:,}"
        )
    return tensor


def _check_cover(path: Path, tensors: Mapping[str, StoredTensor], base: int, size: int) -> None:
    at = base
    for t in sorted(tensors.values(), key=lambda t: (t.offset, t.nbytes)):
        if t.offset != at:
            what = "overlaps the one before it" if t.offset < at else "leaves a hole before it"
            raise DataError(f"{path.name}: tensor {t.name} {what} (begins at {t.offset:,}, expected {at:,})")
        at += t.nbytes
    if at > size:
        raise DataError(f"{path.name}: truncated, needs {at:,} bytes, has {size:,}; download the file again")
    if at < size:
        raise DataError(f"{path.name}: has {size - at:,} bytes after its last tensor, expected none")


def _shard_path(folder: Path, name: Any) -> Path:
    """A shard named by an index, which must lie in the folder itself (a link may lead into a Hub cache's blobs)."""
    if not isinstance(name, str) or not name or Path(name).name != name or name in (".", "..") or "\\" in name:
        raise DataError(f"{INDEX}: names the shard {name!r}, expected a plain file name inside the folder")
    path = folder / name
    if not path.is_file():
        raise DataError(f"{INDEX}: names the shard {name}, which is not in the folder; download it again")
    # The Hub's cache links snapshots/<commit>/<file> to blobs/<hash>, two floors up; nothing else may leave.
    allowed = [folder.resolve()]
    if folder.parent.name == "snapshots":
        allowed.append(folder.parent.parent.resolve() / "blobs")
    if not any(path.resolve().is_relative_to(root) for root in allowed):
        raise DataError(f"{INDEX}: the shard {name} is a link that leaves the folder")
    return path


class Checkpoint:
    """A checkpoint folder: `config` and every tensor's place. Holds files open while used as a context manager."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise InputMissing(f"{folder}: no such folder")
        self.folder = folder
        self.config = read_json(folder / "config.json")
        self.tensors = self._index()
        self._files: dict[Path, BinaryIO] = {}

    @property
    def weight_files(self) -> list[Path]:
        return sorted({t.path for t in self.tensors.values()})

    def _index(self) -> dict[str, StoredTensor]:
        if (self.folder / INDEX).is_file():
            weight_map = read_json(self.folder / INDEX).get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise DataError(f"{INDEX}: has no weight_map")
            shards: dict[str, Path] = {}
            for name in weight_map.values():
                if not isinstance(name, str) or name not in shards:  # a list would not even hash
                    shards[name] = _shard_path(self.folder, name)
            found: dict[str, StoredTensor] = {}
            for name, path in shards.items():
                for tensor in read_safetensors_header(path).values():
                    if weight_map.get(tensor.name) != name:
                        raise DataError(f"{INDEX}: does not list tensor {tensor.name}, which is in {name}")
                    found[tensor.name] = tensor
            if missing := sorted(set(weight_map) - set(found)):
                raise DataError(
                    f"{weight_map[missing[0]]}: does not hold {missing[0]}, which {INDEX} says it does"
                    + (f" (nor {len(missing) - 1} others)" if missing[1:] else "")
                )
            return found
        if (self.folder / SINGLE).is_file():
            return read_safetensors_header(_shard_path(self.folder, SINGLE))
        hint = ""
        if any(self.folder.glob("*.bin")) or any(self.folder.glob("*.pt")):
            hint = "; it has .bin weights, which this version does not read: save the model as safetensors"
        elif any(self.folder.glob("*.gguf")):
            hint = "; it has GGUF files, which are quantized already: use `jmedlite ask -m FILE`"
        raise InputMissing(f"{self.folder}: has neither {SINGLE} nor {INDEX}{hint}")

    def read(self, tensor: StoredTensor, start: int, out: U8) -> None:
        """Fill `out` with the tensor's bytes from byte `start` on."""
        file = self._files.get(tensor.path)
        with reading(tensor.path):
            if file is None:
                file = self._files[tensor.path] = tensor.path.open("rb", buffering=0)
            file.seek(tensor.offset + start)
            view = memoryview(out.data)
            while view:
                n = file.readinto(view)  # type: ignore[attr-defined]
                if not n:
                    raise IoFault(f"{tensor.path}: ended while {tensor.name} was read; did another program change it?")
                view = view[n:]

    def read_all(self, tensor: StoredTensor) -> U8:
        out = np.empty(tensor.nbytes, np.uint8)
        self.read(tensor, 0, out)
        return out

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()
