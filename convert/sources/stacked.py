"""Stacked tensor: the matrices of all experts as one, as GGUF keeps them, each read from where it stands."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from jmedlite.base.errors import DataError
from jmedlite.base.native import F32, U8
from jmedlite.convert.families.families import Family

from .tensors import Files, Rows, StoredTensor, Weights

# transformers' parameters of its experts' modules, in their order, and llama.cpp's names for what they are made of
PARAMETERS = {"gate_up_proj": ("ffn_gate_exps", "ffn_up_exps"), "down_proj": ("ffn_down_exps",)}
_FUSED = re.compile(rf"(?P<place>.+\.(?P<layer>\d+)\..+\.experts)\.(?P<parameter>{'|'.join(PARAMETERS)})(\.weight)?")


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


def separate_experts(tensors: Mapping[str, Weights], family: Family, n_expert: int) -> dict[str, Weights]:
    """`tensors` with the matrices of every expert by themselves, where a checkpoint has all experts of a layer in one:
    gate_up_proj (n_expert, 2·n_ff, n_embd) and down_proj (n_expert, n_embd, n_ff). What fits no such shape stays.
    """
    found: dict[str, Weights] = {}
    for name, tensor in tensors.items():
        fused = _FUSED.fullmatch(name)
        if fused is None or not isinstance(tensor, StoredTensor) or not _is_of_experts(tensor, n_expert):
            found[name] = tensor
            continue
        parts = PARAMETERS[fused["parameter"]]
        n_rows, n_cols = tensor.shape[1] // len(parts), tensor.shape[2]
        step = tensor.nbytes // (n_expert * len(parts))
        for e in range(n_expert):
            for k, part in enumerate(parts):
                own = family.expert_names[part].replace("{i}", fused["layer"]).replace("{e}", str(e))
                offset = tensor.offset + (e * len(parts) + k) * step
                found[own] = replace(tensor, shape=(n_rows, n_cols), offset=offset)
    return found


def _is_of_experts(tensor: StoredTensor, n_expert: int) -> bool:
    return len(tensor.shape) == 3 and tensor.shape[0] == n_expert and tensor.shape[1] % 2 == 0
