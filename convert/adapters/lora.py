"""LoRA arithmetic: an adapter's low-rank update of one weight, in whatever layout it is stored.

Reading PEFT folders is peft.py's, reading GGUF adapters gguf_lora.py's.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jmedlite.base.errors import DataError, UsageError
from jmedlite.base.looking import exists
from jmedlite.base.native import F32
from jmedlite.convert.families.row_order import Order, TiledHeads
from jmedlite.convert.sources.tensors import Files, StoredTensor, Weights

# Updates are computed in tiles of so many rows, at multiples of it: BLAS may sum in another order for another shape,
# and the result must not depend on block size, threads or memory limit.
TILE = 16


@dataclass(frozen=True)
class Factor:
    """Some `rows` and `columns` of a stored matrix, or the transpose of these."""

    tensor: StoredTensor
    transposed: bool = False
    rows: slice = field(default_factory=lambda: slice(None))
    columns: slice = field(default_factory=lambda: slice(None))

    @property
    def is_part(self) -> bool:
        return (self.rows, self.columns) != (slice(None), slice(None))

    @property
    def shape(self) -> tuple[int, int]:
        """(n_rows, n_cols) of what it stands for."""
        given = (self.rows, self.columns)
        n_rows, n_cols = (len(range(*s.indices(n))) for s, n in zip(given, self.tensor.shape, strict=True))
        return (n_cols, n_rows) if self.transposed else (n_rows, n_cols)


@dataclass(frozen=True)
class Update:
    """ΔW = scale · left · right for a weight (out, in): left (out, r), right (r, in).

    Without `right`, `left` is a vector that is added to a bias (out,). With `magnitude` (out,), the sum's rows are
    brought to these lengths (DoRA, arXiv:2402.09353, eq. 5).
    """

    left: Factor
    right: Factor | None
    scale: float
    magnitude: StoredTensor | None = None

    @property
    def rank(self) -> int:
        return self.left.shape[1] if self.right else 1


class Adapter(Protocol):
    """What planning and the pass need of an adapter, whatever its format."""

    name: str
    weight: float
    warnings: list[str]
    updates: dict[str, Update]
    replaced: dict[str, Weights]  # fully trained tensors, which take the place of the base's
    in_gguf_order: bool  # names and rows are llama.cpp's already
    ties_head: bool  # the head follows the embedding where the base ties them
    folder: Path | None  # where a changed tokenizer would be
    trained_on: str | None  # what it calls its base

    @property
    def files(self) -> list[Path]: ...

    def describe(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class LoadedUpdate:
    """An update in float32, the scale and the adapter's weight already in `left`, rows in GGUF's order."""

    left: F32
    right: F32
    magnitude: F32 | None = None

    def add_to(self, rows: F32, start: int, scratch: F32) -> None:
        """Update rows [start, start + n) of the weight in place; `rows` and `scratch` are (n, in).

        `start` is a multiple of TILE.
        """
        n = rows.shape[0]
        for at in range(0, n, TILE):
            end = min(at + TILE, n)
            np.matmul(self.left[start + at : start + end], self.right, out=scratch[at:end])
        np.add(rows, scratch, out=rows)
        if self.magnitude is not None:
            length = np.sqrt(np.einsum("ij,ij->i", rows, rows, optimize=False))
            np.multiply(rows, (self.magnitude[start : start + n] / length)[:, None], out=rows)


def load_update(
    adapter: Adapter,
    name: str,
    files: Files,
    order: Order | None,
    columns: TiledHeads | None = None,
    *,
    scaled: bool = True,
) -> LoadedUpdate:
    """The update of weight `name`, rows and columns in GGUF's order; raises DataError where it is not finite.

    Without `scaled`, the scale and the adapter's weight are left to whoever applies it.
    """
    update = adapter.updates[name]

    def load(tensor: StoredTensor) -> F32:
        return check(tensor, files.matrix(tensor))

    def check(tensor: StoredTensor, found: F32) -> F32:
        if bad := int(found.size - np.count_nonzero(np.isfinite(found))):
            raise DataError(f"adapter {adapter.name}: {tensor.name} has {bad:,} values that are not finite")
        return found

    def factor(f: Factor) -> F32:
        # of a pair for all experts, every expert has its part
        whole = files.recent(f.tensor) if f.is_part else files.matrix(f.tensor)
        found = check(f.tensor, whole[f.rows, f.columns])
        return np.ascontiguousarray(found.T if f.transposed else found)

    if update.right is None:
        left, right = load(update.left.tensor).reshape(-1, 1), np.ones((1, 1), np.float32)
    else:
        left, right = factor(update.left), factor(update.right)
    if scaled:
        left = left * np.float32(update.scale * adapter.weight)
    magnitude = None if update.magnitude is None else load(update.magnitude).reshape(-1, 1)
    if columns is not None:
        right = np.ascontiguousarray(right[:, columns.places(right.shape[1])])
    if order is not None:
        left = order.reorder(left)
        magnitude = None if magnitude is None else order.reorder(magnitude)
    return LoadedUpdate(left, right, None if magnitude is None else magnitude.reshape(-1))


def has_effect(adapter: Adapter, files: Files) -> bool:
    """Does the adapter change the model at all? Matrices are read until one is not zero, so mostly only the first."""
    if adapter.replaced:
        return True
    if adapter.weight == 0:
        return False
    for update in adapter.updates.values():
        factors = (update.left, update.right) if update.right else (update.left,)
        if update.magnitude or (update.scale and all(files.matrix(f.tensor).any() for f in factors)):
            return True
    return False


def parse_spec(spec: str) -> tuple[str, float]:
    """`ADAPTER[:WEIGHT]` as (adapter, weight); a colon not followed by a number belongs to the path.

    So does one in the name of a folder or file that is there.
    """
    name, colon, weight = spec.rpartition(":")
    if colon and exists(Path(spec).expanduser()):
        if name and exists(Path(name).expanduser()) and _is_number(weight):
            raise UsageError(
                f"--lora {spec}: {spec} is there, and so is {name}; write {spec}{os.sep} for the one, "
                f"{name}{os.sep}:{weight} for the other"
            )
        return spec, 1.0
    if not colon or not _is_number(weight):
        return spec, 1.0
    if not math.isfinite(float(weight)):
        raise UsageError(f"--lora {spec}: the weight must be a finite number")
    if not name:
        raise UsageError(f"--lora {spec}: names no adapter")
    return name, float(weight)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
