"""Stacked tensor: the matrices of all experts as one, as GGUF keeps them, each read from where it stands."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from jmedlite.base.errors import DataError
from jmedlite.base.native import F32, U8
from jmedlite.convert.families.family import TURNS, Family

from .packed.mxfp4 import Mxfp4Tensor
from .strided import StridedTensor
from .tensors import WEIGHT_DTYPES, Files, Rows, StoredTensor, Weights

# transformers' parameters of its experts' modules, in their order, and llama.cpp's names for what they are made of
PARAMETERS = {"gate_up_proj": ("ffn_gate_exps", "ffn_up_exps"), "down_proj": ("ffn_down_exps",)}
_FUSED = re.compile(
    rf"(?P<place>.+\.(?P<layer>\d+)\.(.+\.)?experts)\.(?P<parameter>{'|'.join(PARAMETERS)})(?P<bias>_bias)?(\.weight)?"
)


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
    gate_up_proj (n_expert, 2·n_ff, n_embd) and down_proj (n_expert, n_embd, n_ff); with `experts.crosswise` gpt-oss's
    or Llama 4's (see Experts), whose biases are (n_expert, rows). What fits no such shape stays.
    """
    assert family.experts is not None
    crosswise = family.experts.crosswise
    found: dict[str, Weights] = {}
    for name, tensor in tensors.items():
        separated = None
        if (own := _names_of_parts(name, family)) and len(tensor.shape) > 1 and tensor.shape[0] == n_expert:
            separated = (
                _crosswise(tensor, own, n_expert, take_turns=crosswise == TURNS)
                if crosswise
                else _one_after_the_other(tensor, own, n_expert)
            )
        found |= {name: tensor} if separated is None else separated
    return found


def _names_of_parts(name: str, family: Family) -> list[str]:
    """The family's names of what a parameter of all experts is made of, {e} for the expert; none for other tensors."""
    fused = _FUSED.fullmatch(name)
    if fused is None:
        return []
    end = "bias" if fused["bias"] else "weight"
    found = [family.by_gguf.get(f"blk.{{i}}.{part}.{end}") for part in PARAMETERS[fused["parameter"]]]
    return [own.replace("{i}", fused["layer"]) for own in found if own]


def _one_after_the_other(tensor: Weights, names: Sequence[str], n_expert: int) -> dict[str, Weights] | None:
    """Of each expert the rows of every part in turn; `names` have {e} for the expert."""
    n_parts = len(names)
    if not isinstance(tensor, StoredTensor) or len(tensor.shape) != 3 or tensor.shape[1] % n_parts:
        return None
    n_rows, n_cols = tensor.shape[1] // n_parts, tensor.shape[2]
    step = tensor.nbytes // (n_expert * n_parts)
    return {
        own.replace("{e}", str(e)): replace(
            tensor, shape=(n_rows, n_cols), offset=tensor.offset + (e * n_parts + k) * step
        )
        for e in range(n_expert)
        for k, own in enumerate(names)
    }


def _crosswise(tensor: Weights, names: Sequence[str], n_expert: int, *, take_turns: bool) -> dict[str, Weights] | None:
    """The parts take turns, row by row in MXFP4 (n_expert, rows, columns), else column by column of the matrices as
    inputs are multiplied by them (n_expert, columns, rows), or number by number of biases (n_expert, rows). Or, unless
    they `take_turns`, the first has the first columns."""
    n_parts = len(names)
    if take_turns and isinstance(tensor, Mxfp4Tensor) and len(tensor.shape) == 3 and tensor.shape[1] % n_parts == 0:
        n_rows = tensor.shape[1] // n_parts
        return {
            own: tensor.rows(own, e * tensor.shape[1] + k, n_parts, n_rows)
            for e in range(n_expert)
            for k, own in enumerate(name.replace("{e}", str(e)) for name in names)
        }
    if not isinstance(tensor, StoredTensor) or tensor.dtype not in WEIGHT_DTYPES or tensor.shape[-1] % n_parts:
        return None
    width = tensor.shape[-1]
    n_rows = width // n_parts
    first, step = (1, n_parts) if take_turns else (n_rows, 1)  # the first row of the second part; from row to row
    if len(tensor.shape) == 2:
        shape = (n_expert, n_rows)
        return {own: StridedTensor(own, tensor, shape, k * first, (width, step)) for k, own in enumerate(names)}
    if len(tensor.shape) != 3:
        return None
    n_cols = tensor.shape[1]
    return {
        own: StridedTensor(own, tensor, (n_rows, n_cols), e * n_cols * width + k * first, (step, width))
        for e in range(n_expert)
        for k, own in enumerate(name.replace("{e}", str(e)) for name in names)
    }
