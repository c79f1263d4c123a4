"""Stacked tensor: the matrices of all experts as one, as GGUF keeps them, each read from where it stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from jmedlite.base.errors import DataError
from jmedlite.base.native import F32, U8

from .tensors import Files, Rows, Weights


@dataclass(frozen=True)
class StackedTensor:
    """See tensors.Weights: `parts` are matrices of one shape and format, one after the other."""

    name: str
    parts: tuple[Weights, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.parts), *self.parts[0].shape)

    @property
    def dtype(self) -> str:
        return self.parts[0].dtype

    @property
    def path(self) -> Path:
        return self.parts[0].path

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(dict.fromkeys(path for part in self.parts for path in part.paths))

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    @property
    def memory(self) -> int:
        return sum(part.memory for part in self.parts)

    def open_rows(self, files: Files, n_cols: int) -> Rows:
        """Raises DataError where the parts are not stored alike."""
        for part in self.parts:
            if part.dtype != self.dtype:
                raise DataError(
                    f"{part.path.name}: {part.name} is stored as {part.dtype}, {self.parts[0].name} as {self.dtype}; "
                    "the experts of a layer must be stored alike"
                )
        return _StackedRows(files, self, n_cols)


@dataclass(frozen=True)
class _StackedRows:
    """Every range of rows is within one part."""

    files: Files
    tensor: StackedTensor
    n_cols: int
    opened: dict[int, Rows] = field(default_factory=dict)

    def _part(self, first: int) -> tuple[Rows, int]:
        """(the part that a row is in, the row's number there)."""
        index, row = divmod(first, self.tensor.parts[0].shape[0])
        if index not in self.opened:
            self.opened[index] = self.tensor.parts[index].open_rows(self.files, self.n_cols)
        return self.opened[index], row

    def nbytes(self, n_rows: int) -> int:
        return self._part(0)[0].nbytes(n_rows)

    def read(self, first: int, n_rows: int, out: U8) -> None:
        part, row = self._part(first)
        part.read(row, n_rows, out)

    def decode(self, raw: U8, first: int, out: F32) -> None:
        part, row = self._part(first)
        part.decode(raw, row, out)
