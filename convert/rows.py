"""Exact rows: read from the source, widened, merged and put in order, as every level then encodes them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from gguf.constants import GGMLQuantizationType

from jmedlite.base.errors import DataError
from jmedlite.base.native import F32, U8

from .adapters.lora import TILE, LoadedUpdate, load_update
from .encoding.feedback import ROWS
from .planning import QuantizePlan, TensorJob
from .sources.tensors import Rows

F16_MAX = 65504.0
SAMPLED_ROWS = 64  # of a weight, in groups spread over it


@dataclass(frozen=True)
class Block:
    """Rows [start, start + n_rows) of a job's source; `index` is the job's place in the plan and in every file."""

    index: int
    job: TensorJob
    types: frozenset[GGMLQuantizationType]
    start: int
    n_rows: int
    rows: Rows | None  # of the source

    @property
    def matrix(self) -> int:
        """The expert whose matrix the rows are of; a block never has two experts' rows."""
        return self.start // self.job.matrix_rows

    @property
    def start_in_matrix(self) -> int:
        return self.start % self.job.matrix_rows

    @property
    def importance(self) -> F32 | None:
        """A weight for every column (n_cols,)."""
        return None if self.job.importance is None else self.job.importance[self.matrix]

    @property
    def source_bytes(self) -> int:
        """Its share of the source."""
        n = self.job.source.nbytes if self.job.source else 0
        return n * (self.start + self.n_rows) // self.job.n_rows - n * self.start // self.job.n_rows

    @property
    def raw_bytes(self) -> int:
        """What is read for it."""
        return self.rows.nbytes(self.n_rows) if self.rows else 0

    def runs(self) -> Iterable[tuple[int, int]]:
        """(first row, number) in the source, in the order in which they are needed."""
        order = self.job.order
        return order.runs(self.job.n_rows, self.start, self.n_rows) if order else [(self.start, self.n_rows)]


def open_rows(plan: QuantizePlan, job: TensorJob) -> Rows | None:
    """The source of a job, open for reading."""
    return job.source.open_rows(plan.files, job.n_cols) if job.source else None


def row_unit(job: TensorJob) -> int:
    """Rows that a block has a multiple of: whole heads, whole tiles of an update and of error feedback."""
    return math.lcm(job.head_rows, TILE if job.updates else 1, ROWS if job.feeds_back else 1)


def check_finite(values: F32, name: str, types: frozenset[GGMLQuantizationType]) -> float:
    """The sum of squares; raises DataError where a value is not finite, or too large for the F16 that `types` store."""
    # One pass at memory speed: the sum of squares bounds the largest value, and is not finite where a value is not.
    # (Where it overflows although all values are finite, the exact count below decides.)
    bound = float(np.dot(values, values))
    if bound < F16_MAX**2:
        return bound
    finite = np.isfinite(values)
    if bad := int(values.size - np.count_nonzero(finite)):
        raise DataError(f"{name}: {bad:,} weights are NaN or infinite (after merging, if an adapter was given)")
    largest = float(np.abs(values).max())
    narrow = sorted(t.name for t in types if t not in (GGMLQuantizationType.F32, GGMLQuantizationType.BF16))
    if largest > F16_MAX and narrow:
        raise DataError(
            f"{name}: a weight of {largest:.3g} is beyond the largest F16 number ({F16_MAX:.0f}) that {narrow[0]} "
            "stores; use --type BF16"
        )
    return bound


def merge(block: Block, raw: U8, values: F32, scratch: F32, updates: Sequence[LoadedUpdate]) -> tuple[F32, float]:
    """The exact weights of a block, made of the source's bytes `raw` in `values` (a view of it: n_rows, n_cols).

    Returns them with the sum of their squares; `scratch` is as large as `values` where there are `updates`.
    """
    job = block.job
    n = block.n_rows * job.n_cols
    rows = values[:n].reshape(block.n_rows, job.n_cols)
    if block.rows is not None:
        at = done = 0
        for first, count in block.runs():
            length = block.rows.nbytes(count)
            block.rows.decode(raw[at : at + length], first, rows[done : done + count])
            at, done = at + length, done + count
    elif job.constant is not None:
        rows.reshape(-1)[:] = job.constant
    if job.order is not None:
        rows = job.order.arrange(rows)
    if job.columns is not None:
        rows[:] = rows[:, job.columns.places(job.n_cols)]
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # check_finite tells
        for update in updates:
            update.add_to(rows, block.start_in_matrix, scratch[:n].reshape(rows.shape))
        if job.plus:
            rows += np.float32(job.plus)
        if job.negated_exp:
            np.negative(np.exp(rows, out=rows), out=rows)
        energy = check_finite(rows.reshape(-1), job.source.name if job.source else job.name, block.types)
    return rows, energy


def load_updates(plan: QuantizePlan, job: TensorJob, matrix: int) -> list[LoadedUpdate]:
    """What the adapters add to one of a job's matrices."""
    found = []
    for adapter, key, order, columns, of_matrix in job.updates:
        if of_matrix not in (None, matrix):
            continue
        loaded = load_update(adapter, key, plan.files, order, columns)
        if job.is_vector and loaded.right.shape[1] > 1:  # of a matrix of one row, which GGUF keeps as a vector
            if loaded.magnitude is not None:
                raise DataError(f"adapter {adapter.name}: uses DoRA on {key}, which has one row; merge it with PEFT")
            loaded = LoadedUpdate(np.ascontiguousarray(loaded.right.T), np.ascontiguousarray(loaded.left.T))
        found.append(loaded)
    return found


def read_block(block: Block, raw: U8) -> None:
    """The source's bytes for a block into `raw`, in the order in which it needs them."""
    if block.rows is None:
        return
    at = 0
    for first, count in block.runs():
        length = block.rows.nbytes(count)
        block.rows.read(first, count, raw[at : at + length])
        at += length


def sampled_rows(plan: QuantizePlan, index: int) -> F32:
    """Some of a job's exact rows (n, n_cols), in groups that are spread over it."""
    job = plan.jobs[index]
    unit = math.lcm(job.head_rows, TILE if job.updates else 1)
    per_matrix = job.matrix_rows
    n_groups = max(1, min(SAMPLED_ROWS // unit, job.n_rows // unit))
    updates: list[LoadedUpdate] = []
    found, source, loaded = [], open_rows(plan, job), -1
    for k in range(n_groups):
        matrix, row = divmod((2 * k + 1) * job.n_rows // (2 * n_groups), per_matrix)
        start = matrix * per_matrix + row // unit * unit
        count = min(unit, (matrix + 1) * per_matrix - start)
        block = Block(index, job, frozenset({GGMLQuantizationType.F16}), start, count, source)
        if matrix != loaded:
            updates, loaded = load_updates(plan, job, matrix), matrix
        raw, n = np.empty(block.raw_bytes, np.uint8), block.n_rows * job.n_cols
        read_block(block, raw)
        rows, _ = merge(block, raw, np.empty(n, np.float32), np.empty(n if updates else 0, np.float32), updates)
        found.append(rows)
    return np.concatenate(found)
