"""Stored tensor: where its bytes are, in which number format, of which shape; and the reading of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray

from jmedlite.base import gguf
from jmedlite.base.errors import DataError, IoFault
from jmedlite.base.inputs import open_file, reading
from jmedlite.base.native import F32, U8, decodes, widen

DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2,
    "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
}  # fmt: skip
WEIGHT_DTYPES = ("F32", "F16", "BF16")
_WHOLE = {"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2"}
NOT_WEIGHTS = ("I8", "I16", "I32", "I64", "F64")  # what else a GGUF may hold without being quantized
_PIECE = 1 << 20  # elements that are compared at a time


class Rows(Protocol):
    """A matrix that is open for reading: one thread reads bytes of its rows, others decode them."""

    def nbytes(self, n_rows: int) -> int:
        """What `read` reads for so many rows."""
        ...

    def read(self, first: int, n_rows: int, out: U8) -> None:
        """The bytes of rows [first, first + n_rows) into `out`."""
        ...

    def decode(self, raw: U8, first: int, out: F32) -> None:
        """The values of the rows from `first` on, whose bytes are `raw`, into `out` (n_rows, n_cols)."""
        ...


class Weights(Protocol):
    """A tensor of weights, however it is stored: StoredTensor, or packed.rows.PackedTensor."""

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> str:
        """The number format: safetensors' name, ggml's, or one for people."""
        ...

    @property
    def path(self) -> Path:
        """A file to name where something is wrong with it."""
        ...

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every file that it is read from."""
        ...

    @property
    def nbytes(self) -> int: ...

    @property
    def memory(self) -> int:
        """Bytes that are held, at most, while it is read and the one before it still is."""
        ...

    def open_rows(self, files: Files, n_cols: int) -> Rows: ...


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

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.path,)

    @property
    def memory(self) -> int:
        return 0

    def is_at(self, other: StoredTensor) -> bool:
        """Are both the same bytes?"""
        return (self.path, self.offset, self.dtype) == (other.path, other.offset, other.dtype)

    def open_rows(self, files: Files, n_cols: int) -> Rows:
        """Its elements in rows of `n_cols`: a vector's in rows of one."""
        return _PlainRows(files, self, n_cols)


@dataclass(frozen=True)
class _PlainRows:
    """See Rows: of a tensor whose rows stand one after the other."""

    files: Files
    tensor: StoredTensor
    n_cols: int

    def nbytes(self, n_rows: int) -> int:
        return stored_bytes(self.tensor.dtype, n_rows * self.n_cols)

    def read(self, first: int, n_rows: int, out: U8) -> None:
        self.files.read(self.tensor, self.nbytes(first), out)

    def decode(self, raw: U8, first: int, out: F32) -> None:
        widen(raw, self.tensor.dtype, out.reshape(-1))


def stored_bytes(dtype: str, n_elements: int) -> int:
    """Bytes of `n_elements`, whole blocks where the format has blocks."""
    if dtype in DTYPE_BYTES:
        return n_elements * DTYPE_BYTES[dtype]
    return gguf.nbytes(GGMLQuantizationType[dtype], n_elements)


class Files:
    """Reads ranges of tensors, keeping the files open in between; never maps them."""

    def __init__(self) -> None:
        self._open: dict[Path, BinaryIO] = {}
        self._recent: dict[StoredTensor, F32] = {}

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

    def recent(self, tensor: StoredTensor) -> F32:
        """The same of a tensor whose parts are wanted one after the other: the last two are kept."""
        found = self._recent.pop(tensor, None)
        if found is None:
            found = self.matrix(tensor)
        self._recent[tensor] = found
        while len(self._recent) > 2:
            del self._recent[next(iter(self._recent))]
        return found

    def array(self, tensor: StoredTensor) -> NDArray[Any]:
        """A whole tensor: floating-point numbers of 16 and 32 bits in float32, whole ones as they are, bytes else."""
        if tensor.dtype in WEIGHT_DTYPES:
            return self.matrix(tensor)
        raw = np.empty(tensor.nbytes, np.uint8)
        self.read(tensor, 0, raw)
        return raw.view(_WHOLE.get(tensor.dtype, "u1")).reshape(tensor.shape)

    def equal(self, one: Weights, other: Weights) -> bool:
        """Are both tensors' values the same? Read in pieces; .bin files often keep one table under two names."""
        if one.shape != other.shape:
            return False
        if isinstance(one, StoredTensor) and isinstance(other, StoredTensor) and one.is_at(other):
            return True
        n_cols = one.shape[-1] if len(one.shape) > 1 else 1
        n_rows = math.prod(one.shape) // max(n_cols, 1)
        step = max(1, _PIECE // max(n_cols, 1))
        opened = [tensor.open_rows(self, n_cols) for tensor in (one, other)]
        for first in range(0, n_rows, step):
            values = np.empty((2, min(step, n_rows - first), n_cols), np.float32)
            for out, rows in zip(values, opened, strict=True):
                raw = np.empty(rows.nbytes(len(out)), np.uint8)
                rows.read(first, len(out), raw)
                rows.decode(raw, first, out)
            if not np.array_equal(values[0], values[1]):
                return False
        return True

    def close(self) -> None:
        for file in self._open.values():
            file.close()
        self._open.clear()
        self._recent.clear()


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
