"""Stored tensor: where its bytes are, in which number format, of which shape; and the reading of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from gguf.constants import GGMLQuantizationType

from jmedlite.base import gguf
from jmedlite.base.errors import DataError, IoFault
from jmedlite.base.inputs import open_file, reading
from jmedlite.base.native import F32, U8, decodes, widen

DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2,
    "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
WEIGHT_DTYPES = ("F32", "F16", "BF16")
NOT_WEIGHTS = ("I8", "I16", "I32", "I64", "F64")  # what else a GGUF may hold without being quantized
_PIECE = 1 << 20  # elements that are compared at a time


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor stands: `offset` counts from the file's beginning, `shape` is row-major as in PyTorch.

    `dtype` is safetensors' name, or ggml's ("Q4_K") for a tensor of a GGUF file.
    """

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return stored_bytes(self.dtype, self.n_elements)


def stored_bytes(dtype: str, n_elements: int) -> int:
    """Bytes of `n_elements`, whole blocks where the format has blocks."""
    if dtype in DTYPE_BYTES:
        return n_elements * DTYPE_BYTES[dtype]
    return gguf.nbytes(GGMLQuantizationType[dtype], n_elements)


class Files:
    """Reads ranges of tensors, keeping the files open in between; never maps them."""

    def __init__(self) -> None:
        self._open: dict[Path, BinaryIO] = {}

    def read(self, tensor: StoredTensor, start: int, out: U8) -> None:
        """Fill `out` with the tensor's bytes from byte `start` on."""
        file = self._open.get(tensor.path)
        with reading(tensor.path):
            if file is None:
                file = self._open[tensor.path] = open_file(tensor.path, buffering=0)
            file.seek(tensor.offset + start)
            view = memoryview(out.data)
            while view:
                n = file.readinto(view)  # type: ignore[attr-defined]
                if not n:
                    raise IoFault(f"{tensor.path}: ended while {tensor.name} was read; did another program change it?")
                view = view[n:]

    def values(self, tensor: StoredTensor, start: int, out: F32) -> None:
        """Fill `out` with the tensor's elements from `start` on, in float32."""
        raw = np.empty(stored_bytes(tensor.dtype, out.size), np.uint8)
        self.read(tensor, stored_bytes(tensor.dtype, start), raw)
        widen(raw, tensor.dtype, out)

    def matrix(self, tensor: StoredTensor) -> F32:
        """A whole (small) tensor in float32."""
        out = np.empty(tensor.n_elements, np.float32)
        self.values(tensor, 0, out)
        return out.reshape(tensor.shape)

    def equal(self, one: StoredTensor, other: StoredTensor) -> bool:
        """Are both tensors' values the same? Read in pieces; .bin files often keep one table under two names."""
        if one.shape != other.shape:
            return False
        if (one.path, one.offset, one.dtype) == (other.path, other.offset, other.dtype):
            return True
        for start in range(0, one.n_elements, _PIECE):
            values = np.empty((2, min(_PIECE, one.n_elements - start)), np.float32)
            for row, tensor in zip(values, (one, other), strict=True):
                self.values(tensor, start, row)
            if not np.array_equal(values[0], values[1]):
                return False
        return True

    def close(self) -> None:
        for file in self._open.values():
            file.close()
        self._open.clear()


def check_decodable(tensor: StoredTensor) -> None:
    """Raise DataError where a GGUF's tensor is of a type that can't be read as weights."""
    if not decodes(tensor.dtype):
        raise DataError(f"{tensor.path.name}: {tensor.name} is stored as {tensor.dtype}, expected a type of weights")


def stored_tensors(path: Path, header: gguf.Header) -> dict[str, StoredTensor]:
    """The tensors of a GGUF file by name, shapes row-major."""
    return {
        t.name: StoredTensor(t.name, path, t.type.name, t.shape[::-1], header.data_offset + t.offset)
        for t in header.tensors
    }
