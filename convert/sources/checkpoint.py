"""Hugging Face checkpoint folders: which tensors there are, checked, and their bytes range by range.

safetensors format: https://github.com/huggingface/safetensors#format. Only headers are held in memory; ranges are
read, never mapped, because the resident pages of a map count as the process's memory.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jmedlite.base.errors import DataError, InputMissing
from jmedlite.base.filenames import BIN_INDEX, BIN_SINGLE, CONFIG, INDEX, SINGLE, is_plain
from jmedlite.base.inputs import MAX_INDEX, check_stand_in, opened, parse_json, read_json
from jmedlite.base.looking import is_dir, is_file
from jmedlite.base.records import Foreign, from_json
from jmedlite.base.wording import shown
from jmedlite.convert.families.settings import read_config

from .mistaken import instead_of_model
from .tensors import DTYPE_BYTES, StoredTensor
from .torch_file import read_torch_file

MAX_HEADER = 100_000_000


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _agreeing(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        for name, value in pairs:
            if value != found[name]:
                raise ValueError(f"{name} stands there twice, as {value!r} and as {found[name]!r}")
    return found


def read_safetensors_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file; every length is bounded and the data must be covered without holes."""
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(64)
        check_stand_in(path, head)
        if len(head) < 8:
            raise DataError(f"{path.name}: has {size} bytes, too short for a safetensors file")
        (length,) = struct.unpack_from("<Q", head)
        if length > MAX_HEADER or length > size - 8:
            raise DataError(
                f"{path.name}: claims a header of {length:,} bytes, the file has {size:,} "
                f"(limit {MAX_HEADER:,}); it is truncated or not a safetensors file"
            )
        file.seek(8)
        blob = file.read(length)
    try:
        entries = parse_json(blob, _no_repeats)
    except ValueError as e:
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


@dataclass(frozen=True, kw_only=True)
class _Index(Foreign):
    """Which file each tensor is in."""

    weight_map: dict[str, str]


def _shard_path(folder: Path, name: str, index: str) -> Path:
    """A shard named by an index, which must stand in the folder itself; `inputs.check_links` has judged links."""
    if not is_plain(name):
        raise DataError(f"{index}: names the shard {shown(name)}, expected a plain file name inside the folder")
    path: Path = folder / name
    if not is_file(path):
        raise DataError(f"{index}: names the shard {name}, which is not in the folder; download it again")
    return path


def read_weights(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one weights file, safetensors or PyTorch's zip format by its name."""
    return read_safetensors_header(path) if path.suffix == ".safetensors" else read_torch_file(path)


class Checkpoint:
    """A checkpoint folder: `config` and every tensor's place."""

    def __init__(self, folder: Path) -> None:
        if not is_dir(folder):
            raise InputMissing(f"{folder}: no such folder")
        self.folder, self.warnings = folder, list[str]()
        if not is_file(folder / CONFIG) and (instead := instead_of_model(folder)):
            raise InputMissing(f"{folder}: {instead}")
        self.config = read_config(folder)
        self.tensors = self._find()

    def _find(self) -> dict[str, StoredTensor]:
        """safetensors where there are any, else .bin; each as one file, or as several with an index.

        Where there are both, the one file counts, as for transformers (`_get_resolved_checkpoint_files`).
        """
        for single, index in ((SINGLE, INDEX), (BIN_SINGLE, BIN_INDEX)):
            if is_file(self.folder / single):
                if is_file(self.folder / index):
                    self.warnings.append(
                        f"{self.folder.resolve().name}: has both {single} and {index} with its files; {single} is "
                        "taken, as transformers does"
                    )
                return read_weights(_shard_path(self.folder, single, single))
            if is_file(self.folder / index):
                return self._from_index(index)
        if instead := instead_of_model(self.folder):
            raise InputMissing(f"{self.folder}: {instead}")
        hint = ""
        others = sorted(f for f in self.folder.iterdir() if f.suffix in (".safetensors", ".bin", ".pt", ".pth"))
        if found := next((f.name for f in others if "-of-" in f.name), None):
            hint = f"; {found} is one file of several, and an index says which: download it, too"
        elif others:
            hint = f"; {others[0].name} has another name than transformers gives"
        raise InputMissing(f"{self.folder}: has neither {SINGLE} nor {INDEX}, nor {BIN_SINGLE} nor {BIN_INDEX}{hint}")

    def _from_index(self, index: str) -> dict[str, StoredTensor]:
        weight_map = from_json(read_json(self.folder / index, MAX_INDEX, _agreeing), _Index, index).weight_map
        if not weight_map:
            raise DataError(f"{index}: has no weight_map")
        shards = {name: _shard_path(self.folder, name, index) for name in dict.fromkeys(weight_map.values())}
        found: dict[str, StoredTensor] = {}
        for name, path in shards.items():
            for tensor in read_weights(path).values():
                if weight_map.get(tensor.name) != name:
                    raise DataError(f"{index}: does not list tensor {tensor.name}, which is in {name}")
                found[tensor.name] = tensor
        if missing := sorted(set(weight_map) - set(found)):
            raise DataError(
                f"{weight_map[missing[0]]}: does not hold {missing[0]}, which {index} says it does"
                + (f" (nor {len(missing) - 1} others)" if missing[1:] else "")
            )
        return found
