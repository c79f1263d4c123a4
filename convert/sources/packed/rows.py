"""Packed tensor: a weight that several stored tensors make up, and its rows in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from jmedlite.base.errors import DataError
from jmedlite.base.native import F32, U8
from jmedlite.convert.sources.tensors import Files, Rows, StoredTensor


class Decoder(Protocol):
    """How a method stores weights."""

    def hold(self, arrays: Sequence[NDArray[Any]]) -> Any:
        """What `decode` needs of the tensors that are held in memory, as `Files.array` gives them."""
        ...

    def decode(self, streams: Sequence[U8], held: Any, first: int, out: F32) -> None:
        """Rows from `first` on into `out` (n_rows, n_cols); each of `streams` has their bytes, (n_rows, n)."""
        ...


@dataclass(frozen=True)
class PackedTensor:
    """See tensors.Weights. `streamed` are tensors of which every row of the weight has an equal part, in order; `held`
    are those that are in memory while the weight is read: scales, or all of it where rows stand crosswise.
    """

    name: str
    dtype: str  # the method, for people
    shape: tuple[int, int]
    streamed: tuple[StoredTensor, ...]
    held: tuple[StoredTensor, ...]
    decoder: Decoder

    @property
    def path(self) -> Path:
        return self._parts[0].path

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(dict.fromkeys(p.path for p in self._parts))

    @property
    def nbytes(self) -> int:
        return sum(p.nbytes for p in self._parts)

    @property
    def memory(self) -> int:
        """What is held while it is read: of two weights, one of them as it is read and as it is kept."""
        return 3 * sum(p.nbytes for p in self.held)

    @property
    def _parts(self) -> tuple[StoredTensor, ...]:
        return (*self.streamed, *self.held)

    def open_rows(self, files: Files, n_cols: int) -> Rows:
        """Read what is held; raises DataError where that can't be."""
        try:
            return _PackedRows(files, self, self.decoder.hold([files.array(t) for t in self.held]))
        except DataError as e:
            raise DataError(f"{self.path.name}: {self.name}: {e}") from None


@dataclass(frozen=True)
class _PackedRows:
    files: Files
    tensor: PackedTensor
    held: Any

    @property
    def _widths(self) -> list[int]:
        """Bytes of a row in each of the streamed tensors."""
        return [t.nbytes // self.tensor.shape[0] for t in self.tensor.streamed]

    def nbytes(self, n_rows: int) -> int:
        return n_rows * sum(self._widths)

    def read(self, first: int, n_rows: int, out: U8) -> None:
        at = 0
        for tensor, width in zip(self.tensor.streamed, self._widths, strict=True):
            self.files.read(tensor, first * width, out[at : at + n_rows * width])
            at += n_rows * width

    def decode(self, raw: U8, first: int, out: F32) -> None:
        streams, at, n_rows = [], 0, out.shape[0]
        for width in self._widths:
            streams.append(raw[at : at + n_rows * width].reshape(n_rows, width))
            at += n_rows * width
        self.tensor.decoder.decode(streams, self.held, first, out)


def take(tensors: dict[str, StoredTensor], stem: str, *ends: str) -> list[StoredTensor] | None:
    """The tensors `stem` + each of `ends`, taken out of `tensors`; None, and nothing taken, where one is missing.

    What is left behind so is refused as what it is (sources.quantized).
    """
    if any(stem + end not in tensors for end in ends):
        return None
    return [tensors.pop(stem + end) for end in ends]


def check_shape(tensor: StoredTensor, *expected: tuple[int, ...]) -> None:
    """Raise DataError where a part of a packed weight has none of the shapes that fit the others."""
    if tensor.shape not in expected:
        fits = " or ".join(str(list(shape)) for shape in expected)
        raise DataError(f"{tensor.path.name}: {tensor.name} has shape {list(tensor.shape)}, expected {fits}")


def check_dtype(tensor: StoredTensor, *expected: str) -> None:
    """Raise DataError where a part of a packed weight has another number format."""
    if tensor.dtype not in expected:
        raise DataError(f"{tensor.path.name}: {tensor.name} has dtype {tensor.dtype}, expected {' or '.join(expected)}")


def two_dimensions(tensor: StoredTensor) -> tuple[int, int]:
    """The shape of a matrix; raises DataError where a part of a packed weight is none."""
    if len(tensor.shape) != 2:
        raise DataError(f"{tensor.path.name}: {tensor.name} has shape {list(tensor.shape)}, expected two dimensions")
    return tensor.shape[0], tensor.shape[1]
