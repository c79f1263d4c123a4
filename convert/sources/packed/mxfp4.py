"""MXFP4: codes of 4 bits (E2M1) and a power of two (E8M0) for every 32 of a row, as gpt-oss stores its experts.

ggml has the format, too, with the scale before the codes and another order of these, so rows are rearranged and not
decoded: https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf and `block_mxfp4` of
ggml-common.h.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from jmedlite.base.errors import DataError
from jmedlite.base.native import F32, U8, widen
from jmedlite.convert.sources.strided import StridedTensor
from jmedlite.convert.sources.tensors import Files, Rows, StoredTensor, stored_bytes

from .rows import check_dtype, check_shape, take

MXFP4 = "MXFP4"  # ggml's name of the format, in which `_Rows` gives its rows
_CODES, _GROUP = 16, 32  # bytes and elements that share a scale
_BLOCKS, _SCALES = "_blocks", "_scales"
_NAN = 255


@dataclass(frozen=True)
class Mxfp4Tensor:
    """See tensors.Weights. Row r is number start + r·step of all rows of `blocks` (…, n_groups, 16) and `scales`
    (…, n_groups)."""

    name: str
    blocks: StoredTensor
    scales: StoredTensor
    shape: tuple[int, ...]
    start: int = 0
    step: int = 1
    dtype: str = MXFP4

    @property
    def path(self) -> Path:
        return self.blocks.path

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(dict.fromkeys((*self.blocks.paths, *self.scales.paths)))

    @property
    def nbytes(self) -> int:
        return stored_bytes(MXFP4, math.prod(self.shape))

    @property
    def memory(self) -> int:
        return 0

    def rows(self, name: str, start: int, step: int, n_rows: int) -> Mxfp4Tensor:
        """Every `step`-th of its rows from `start` on, as a matrix of its own."""
        return replace(self, name=name, shape=(n_rows, self.shape[-1]), start=start, step=step)

    def open_rows(self, files: Files, n_cols: int) -> Rows:
        n_rows, n_groups = math.prod(self.shape[:-1]), n_cols // _GROUP
        parts = []
        for stored, width in ((self.blocks, n_groups * _CODES), (self.scales, n_groups)):
            place = StridedTensor(stored.name, stored, (n_rows, width), self.start * width, (self.step * width, 1))
            parts.append(place.open_rows(files, width))
        return _Rows(self, n_groups, *parts)


@dataclass(frozen=True)
class _Rows:
    """See tensors.Rows: `read` gives ggml's blocks."""

    tensor: Mxfp4Tensor
    n_groups: int
    codes: Rows
    scales: Rows

    def nbytes(self, n_rows: int) -> int:
        return stored_bytes(MXFP4, n_rows * self.n_groups * _GROUP)

    def read(self, first: int, n_rows: int, out: U8) -> None:
        codes = np.empty((n_rows, self.n_groups, _CODES), np.uint8)
        scales = np.empty((n_rows, self.n_groups), np.uint8)
        self.codes.read(first, n_rows, codes.reshape(-1))
        self.scales.read(first, n_rows, scales.reshape(-1))
        if (scales == _NAN).any():
            raise DataError(
                f"{self.tensor.path.name}: {self.tensor.name}: {int((scales == _NAN).sum()):,} scales are NaN"
            )
        # stored are elements 2k and 2k + 1 in byte k, the first in the lower half; ggml has k and k + 16 there
        early, late = codes[..., :8], codes[..., 8:]
        blocks = out.reshape(n_rows, self.n_groups, 1 + _CODES)
        blocks[..., 0] = scales
        blocks[..., 1::2] = (early & 15) | (late << 4)
        blocks[..., 2::2] = (early >> 4) | (late & 0xF0)

    def decode(self, raw: U8, first: int, out: F32) -> None:
        widen(raw, MXFP4, out.reshape(-1))


def _stem(name: str) -> str:
    return next((name.removesuffix(end) for end in (_BLOCKS, _SCALES) if name.endswith(end)), "")


def gather(tensors: dict[str, StoredTensor]) -> dict[str, Mxfp4Tensor]:
    """Take the MXFP4 weights out of `tensors`; raises DataError for parts that do not fit each other."""
    found = {}
    for stem in dict.fromkeys(_stem(name) for name, tensor in tensors.items() if tensor.dtype == "U8"):
        ends = [end for end in (_BLOCKS, _SCALES) if stem + end in tensors]
        if not stem or not ends:
            continue
        taken = take(tensors, stem, _BLOCKS, _SCALES)
        if taken is None:
            part, other = tensors[stem + ends[0]], _SCALES if ends[0] == _BLOCKS else _BLOCKS
            raise DataError(f"{part.path.name}: has {part.name}, but no {stem}{other}; download the checkpoint again")
        blocks, scales = taken
        for part in taken:
            check_dtype(part, "U8")
        if len(blocks.shape) < 3 or blocks.shape[-1] != _CODES:
            raise DataError(
                f"{blocks.path.name}: {blocks.name} has shape {list(blocks.shape)}, expected {_CODES} bytes for every "
                f"{_GROUP} weights of a row"
            )
        check_shape(scales, blocks.shape[:-1])
        shape = (*blocks.shape[:-2], blocks.shape[-2] * _GROUP)
        found[stem] = Mxfp4Tensor(stem, blocks, scales, shape)
    return found
