"""The one pass: read a block of rows, widen, merge, order, encode once per type, write to every level.

Memory depends on the block size and the number of threads, never on the model. The main thread reads and writes in
order; workers do the arithmetic, which runs outside the GIL.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from gguf.constants import GGMLQuantizationType

from jmedlite.base import gguf
from jmedlite.base.errors import DataError, IoFault, UsageError
from jmedlite.base.kept import Found, Keeper, TensorState, find
from jmedlite.base.native import F32, U8, widen
from jmedlite.base.progress import Progress, Stage, silent
from jmedlite.base.publishing import Publication
from jmedlite.convert.adapters.lora import LoadedUpdate
from jmedlite.convert.sources.tensors import NOT_WEIGHTS

from .encoding.encoders import GGML
from .planning import PlannedFile, QuantizePlan, TensorJob
from .rounding import Rounder, Rounding
from .rows import Block, load_updates, merge, open_rows, read_block, row_unit

BLOCK_ELEMENTS = 1 << 20
FIXED_MEMORY = 300 << 20  # interpreter, libraries, tokenizer while planning; 0.2 GB measured on a Qwen2-7B
LEAST_ELEMENTS = 1 << 14
DECODED_ELEMENTS = 1 << 15
DEFAULT_MEMORY = 900_000_000


@dataclass(frozen=True)
class WrittenFile:
    """One finished file."""

    path: Path
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Written:
    """One finished level. `rel_rmse` by tensor: √(Σ(stored − exact)² / Σ exact²), the exact value being the merged
    weight in float32."""

    path: Path
    level: str
    files: tuple[WrittenFile, ...]
    bits_per_weight: float
    rel_rmse: dict[str, float]
    seconds: float
    rounding: dict[str, str]  # of tensors that were not rounded by ggml: how

    @property
    def size_bytes(self) -> int:
        return sum(f.size_bytes for f in self.files)


@dataclass(frozen=True)
class Kept:
    """For a run that goes on where one was cut, and may be gone on from: `plan` is the SHA-256 of all that decides
    about the bytes, `tell` hears what became of what was kept."""

    plan: str
    tell: Callable[[str], object]


@dataclass(frozen=True)
class Encoded:
    """A block in every type asked for, with the sums its error is made of."""

    data: dict[GGMLQuantizationType, U8]
    energy: float  # Σ exact²
    error: dict[GGMLQuantizationType, float]  # Σ (stored − exact)²
    rounding: Rounding


class Slot:
    """The buffers of one block on its way, reused for all."""

    def __init__(self, n_elements: int, types: set[GGMLQuantizationType], merging: bool) -> None:
        self.raw = np.empty(n_elements * 4, np.uint8)
        self.values = np.empty(n_elements, np.float32)
        self.scratch = np.empty(n_elements if merging else 0, np.float32)
        self.decoded = np.empty(DECODED_ELEMENTS, np.float32)
        self.encoded = {
            t: np.empty(gguf.nbytes(t, n_elements), np.uint8) for t in types if t != GGMLQuantizationType.F32
        }

    @staticmethod
    def nbytes(n_elements: int, types: set[GGMLQuantizationType], merging: bool) -> int:
        encoded = sum(gguf.nbytes(t, n_elements) for t in types if t != GGMLQuantizationType.F32)
        return n_elements * (8 + 4 * merging) + encoded + 4 * DECODED_ELEMENTS


def _encode(block: Block, slot: Slot, updates: Sequence[LoadedUpdate], rounding: Rounding) -> Encoded:
    """The arithmetic of one block; runs in a worker."""
    job = block.job
    n = block.n_rows * job.n_cols
    raw = slot.raw[: block.raw_bytes]
    if job.source is not None and job.source.dtype in NOT_WEIGHTS:
        return _copied(block, raw)
    rows, energy = merge(block, raw, slot.values, slot.scratch, updates)
    flat = rows.reshape(-1)
    if job.is_vector:
        rows = rows.reshape(1, n)
    data, error = {}, {}
    for t in block.types:
        if t in (GGMLQuantizationType.F32, job.kept_type):  # as it is: encoding again could change it
            data[t], error[t] = raw if t == job.kept_type else flat.view(np.uint8), 0.0
        else:
            data[t] = rounding.encode(t, rows, slot.encoded[t], block.importance)
            error[t] = squared_error(data[t], t, flat, slot.decoded)
    return Encoded(data, energy, error, rounding)


def _copied(block: Block, raw: U8) -> Encoded:
    """Whole numbers or doubles, as some GGUF files have them: they stay what they are."""
    source = block.job.source
    assert source is not None
    if not block.job.is_untouched or {t.name for t in block.types} != {source.dtype}:
        raise DataError(f"{source.name}: is stored as {source.dtype}, which can only be copied as it is")
    return Encoded(dict.fromkeys(block.types, raw), 0.0, dict.fromkeys(block.types, 0.0), Rounding(block.job, GGML))


def squared_error(data: U8, type_: GGMLQuantizationType, exact: F32, scratch: F32) -> float:
    """Σ (decoded − exact)², piece by piece so that everything stays in the processor's cache."""
    total = 0.0
    for at in range(0, exact.size, scratch.size):
        decoded = scratch[: min(scratch.size, exact.size - at)]
        first, end = gguf.nbytes(type_, at), gguf.nbytes(type_, at + decoded.size)
        widen(data[first:end], type_.name, decoded)
        decoded -= exact[at : at + decoded.size]
        total += float(np.dot(decoded, decoded))
    return total


def _blocks(plan: QuantizePlan, block_elements: int, first_job: int) -> Iterator[Block]:
    for i, job in enumerate(plan.jobs[first_job:], first_job):
        types = frozenset(p.tensors[i].type for p in plan.levels)
        per_matrix = job.matrix_rows
        step = job.n_rows if job.is_vector else _rows_per_block(job, block_elements)
        source = open_rows(plan, job)
        for first in range(0, job.n_rows, per_matrix):
            for start in range(first, first + per_matrix, step):
                yield Block(i, job, types, start, min(step, first + per_matrix - start), source)


def _rows_per_block(job: TensorJob, block_elements: int) -> int:
    unit = row_unit(job)
    return max(1, block_elements // (job.n_cols * unit)) * unit


def _n_slots(threads: int) -> int:
    """Enough that no worker waits while the main thread reads or writes."""
    return threads * 2 + 2


def _block_size(plan: QuantizePlan, threads: int, memory: int | None) -> tuple[int, int]:
    """(elements of the largest block, number of slots) within `memory` bytes, or by default."""
    n_slots = _n_slots(threads)
    types = plan.types

    merging = any(job.updates for job in plan.jobs)
    held = max(job.source.memory for job in plan.jobs if job.source)

    def largest(wanted: int) -> int:
        sizes = (job.n_rows if job.is_vector else min(job.n_rows, _rows_per_block(job, wanted)) for job in plan.jobs)
        elements = max(rows * job.n_cols for rows, job in zip(sizes, plan.jobs, strict=True))
        return -(-elements // 256) * 256

    def needed(wanted: int) -> int:
        return FIXED_MEMORY + plan.encoder.memory + held + n_slots * Slot.nbytes(largest(wanted), types, merging)

    wanted = BLOCK_ELEMENTS
    while wanted > LEAST_ELEMENTS and needed(wanted) > (memory or DEFAULT_MEMORY):
        wanted //= 2
    if memory is not None and needed(wanted) > memory:
        raise UsageError(
            f"--memory {memory / 1e6:.0f}MB: with {threads} threads the pass needs at least "
            f"{needed(wanted) / 1e6:.0f}MB; allow more, or fewer --threads"
        )
    return wanted, largest(wanted)


class _Outputs:
    """The files of all levels, written in step."""

    def __init__(self, plan: QuantizePlan, result: Publication, kept: Kept | None) -> None:
        self._levels = plan.levels
        self._writers = [[_Writer(f, result, kept is not None) for f in level.files] for level in plan.levels]
        # for every level, the file of each tensor: jobs are in the order of the files
        self._where = [[w for w in writers for _ in w.planned.tensors] for writers in self._writers]
        self._tensors = [level.tensors for level in plan.levels]
        self._errors: list[dict[str, float]] = [{} for _ in plan.levels]
        self._energy: dict[str, float] = {}
        self._rounding: list[dict[str, str]] = [{} for _ in plan.levels]
        self._jobs = plan.jobs
        self._keeper: Keeper | None = None
        writers = [w for level in self._writers for w in level]
        found = self._take_over(writers, kept) if kept else None
        if found:
            self._restore(found.tensors)
        else:
            for writer in writers:
                writer.begin()
        if kept:
            self._keeper = Keeper([w.output for w in writers], kept.plan, found)

    def _take_over(self, writers: Sequence[_Writer], kept: Kept) -> Found | None:
        """What an earlier run of the same plan has finished, if its files are as it left them."""
        found = find(writers[0].planned.path)
        if found is None:
            return None
        if found.head.plan != kept.plan or found.head.files != tuple(w.planned.path.name for w in writers):
            kept.tell(
                "what a run that was cut has kept is left: since then the base, an adapter, an option or a version has "
                "changed; beginning anew"
            )
            return None
        n_done = len(found.tensors)
        whole = [w.take_over(*at) for w, at in zip(writers, found.last.files, strict=True)]
        if not all(whole) or [w.output.size_bytes for w in writers] != [w.planned.bytes_of(n_done) for w in writers]:
            kept.tell("what a run that was cut has kept is damaged; beginning anew")
            return None
        kept.tell(f"going on after {n_done:,} of {len(self._jobs):,} tensors, which a run that was cut has finished")
        return found

    @property
    def n_done(self) -> int:
        """Tensors that an earlier run has finished."""
        return len(self._energy)

    def _restore(self, tensors: Sequence[TensorState]) -> None:
        for job, state in zip(self._jobs, tensors, strict=False):
            self._energy[job.name] = state.energy
            for errors, ways, error, way in zip(self._errors, self._rounding, state.errors, state.ways, strict=True):
                errors[job.name] = error
                if way:
                    ways[job.name] = way

    def put(self, block: Block, encoded: Encoded) -> None:
        """Append a block to every level, and the padding after a tensor's last."""
        name = block.job.name
        self._energy[name] = self._energy.get(name, 0.0) + encoded.energy
        for tensors, where, errors, ways in zip(self._tensors, self._where, self._errors, self._rounding, strict=True):
            tensor, writer = tensors[block.index], where[block.index]
            if way := encoded.rounding.way(tensor.type):
                ways[name] = way
            writer.put(encoded.data[tensor.type])
            errors[name] = errors.get(name, 0.0) + encoded.error[tensor.type]
            if block.start + block.n_rows == block.job.n_rows:
                writer.put(bytes(gguf.pad(tensor.nbytes) - tensor.nbytes))
        if self._keeper and block.start + block.n_rows == block.job.n_rows:
            errors_now = tuple(by[name] for by in self._errors)
            ways_now = tuple(by.get(name, "") for by in self._rounding)
            self._keeper.finished(TensorState(energy=self._energy[name], errors=errors_now, ways=ways_now))

    def finish(self, started: float) -> list[Written]:
        """Flush and check every file."""
        for writers in self._writers:
            for writer in writers:
                writer.check()
        seconds = time.monotonic() - started
        return [
            Written(
                level.path,
                level.level.name,
                tuple(WrittenFile(w.planned.path, w.planned.total_bytes, w.output.sha256.hexdigest()) for w in writers),
                level.bits_per_weight,
                {name: relative_rmse(error, self._energy[name]) for name, error in errors.items()},
                seconds,
                ways,
            )
            for level, writers, errors, ways in zip(
                self._levels, self._writers, self._errors, self._rounding, strict=True
            )
        ]


def relative_rmse(squared_error: float, energy: float) -> float:
    """√(Σ error² / Σ exact²); 0 where there is no error, even on weights that are all 0."""
    return math.sqrt(squared_error / energy) if squared_error else 0.0


class _Writer:
    """One file while it is written, header first."""

    def __init__(self, planned: PlannedFile, result: Publication, goes_on: bool) -> None:
        self.planned, self.output = planned, result.add(planned.path, goes_on=goes_on)

    def begin(self) -> None:
        self.output.take_over(0, "")
        self.put(self.planned.header)

    def take_over(self, n_bytes: int, sha256: str) -> bool:
        return self.output.take_over(n_bytes, sha256)

    def put(self, data: U8 | bytes) -> None:
        self.output.write(data)

    def check(self) -> None:
        """Flush, and read the header back as a stranger would, before the file gets its name."""
        self.output.flush()
        header = gguf.read_header(self.output.partial)
        if header.file_size != self.planned.total_bytes or header.tensors != self.planned.tensors:
            raise IoFault(
                f"{self.planned.path}: what was written does not read back as planned; the disk may be faulty"
            )


def write(
    plan: QuantizePlan,
    result: Publication,
    *,
    threads: int,
    memory: int | None = None,
    progress: Progress = silent,
    kept: Kept | None = None,
) -> list[Written]:
    """Run the pass into the files of `result`, which is not published yet. `progress` counts the source's bytes.

    With `kept`, tensors that a run of the same plan had finished are not made again.

    Raises DataError for weights that are not finite, IoFault where the disk fails, Busy where another run writes,
    UsageError where `memory` (bytes) is too little.
    """
    started = time.monotonic()
    outputs = _Outputs(plan, result, kept)
    for block, encoded in encode_blocks(
        plan, "quantizing", threads=threads, memory=memory, progress=progress, first=outputs.n_done
    ):
        outputs.put(block, encoded)
    return outputs.finish(started)


def encode_blocks(
    plan: QuantizePlan,
    stage: Stage,
    *,
    threads: int,
    memory: int | None = None,
    progress: Progress = silent,
    first: int = 0,
) -> Iterator[tuple[Block, Encoded]]:
    """Every block from the plan's `first` job on, in every type its levels store; valid until the next is asked for."""
    block_elements, slot_elements = _block_size(plan, threads, memory)
    types, source_bytes = plan.types, plan.source_bytes
    done = sum(job.source.nbytes for job in plan.jobs[:first] if job.source)
    with contextlib.ExitStack() as stack:
        stack.callback(plan.files.close)
        pool = stack.enter_context(ThreadPoolExecutor(threads, thread_name_prefix="encode"))
        rounder = Rounder(plan)
        merging = any(job.updates for job in plan.jobs)
        free = [Slot(slot_elements, types, merging) for _ in range(_n_slots(threads))]
        pending: deque[tuple[Block, Slot, Future[Encoded]]] = deque()
        try:
            updates: list[LoadedUpdate] = []
            rounding = Rounding(plan.jobs[0], plan.encoder)
            for block in chain(_blocks(plan, block_elements, first), [None]):
                while pending and (not free or block is None):
                    taken, slot, future = pending.popleft()
                    yield taken, future.result()
                    free.append(slot)
                    done += taken.source_bytes
                    progress(stage, done, source_bytes, "")
                if block is None:
                    return
                if block.start_in_matrix == 0:
                    updates = load_updates(plan, block.job, block.matrix)
                if block.start == 0:
                    rounding = rounder.prepare(block.index, block.types)
                slot = free.pop()
                read_block(block, slot.raw)
                pending.append((block, slot, pool.submit(_encode, block, slot, updates, rounding)))
        finally:
            for _, _, future in pending:
                future.cancel()
