"""The one pass: read a block of rows, widen, merge, order, encode once per type, write to every level.

Memory depends on the block size and the number of threads, never on the model. The main thread reads and writes in
order; workers do the arithmetic, which runs outside the GIL.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf.constants import GGMLQuantizationType

from jmedlite.base import gguf
from jmedlite.base.errors import DataError, IoFault, UsageError
from jmedlite.base.native import F32, U8, quantize, widen
from jmedlite.base.outputs import OutputFile

from .checkpoint import DTYPE_BYTES
from .lora import LoadedPair
from .planning import Job, Plan, PlannedLevel

BLOCK_ELEMENTS = 1 << 20
FIXED_MEMORY = 300 << 20  # interpreter, libraries, tokenizer while planning; 0.2 GB measured on a Qwen2-7B
LEAST_ELEMENTS = 1 << 14
DEFAULT_MEMORY = 900_000_000
F16_MAX = 65504.0
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Written:
    """One finished file."""

    path: Path
    level: str
    size_bytes: int
    bits_per_weight: float
    sha256: str
    seconds: float


@dataclass(frozen=True)
class Block:
    """Rows [start, start + n_rows) of a job's source; `index` is the job's place in the plan and in every file."""

    index: int
    job: Job
    types: frozenset[GGMLQuantizationType]
    start: int
    n_rows: int

    @property
    def source_bytes(self) -> int:
        source = self.job.source
        return self.n_rows * self.job.n_cols * DTYPE_BYTES[source.dtype] if source else 0


class Slot:
    """The buffers of one block on its way, reused for all."""

    def __init__(self, n_elements: int, types: set[GGMLQuantizationType], merging: bool) -> None:
        self.raw = np.empty(n_elements * 4, np.uint8)
        self.values = np.empty(n_elements, np.float32)
        self.scratch = np.empty(n_elements if merging else 0, np.float32)
        self.encoded = {
            t: np.empty(gguf.nbytes(t, n_elements), np.uint8) for t in types if t != GGMLQuantizationType.F32
        }

    @staticmethod
    def nbytes(n_elements: int, types: set[GGMLQuantizationType], merging: bool) -> int:
        encoded = sum(gguf.nbytes(t, n_elements) for t in types if t != GGMLQuantizationType.F32)
        return n_elements * (8 + 4 * merging) + encoded


def interleave_rotary(rows: F32, head_dim: int) -> F32:
    """Rows (n, cols) of whole heads from half-split to interleaved rotary order.

    Hugging Face rotates row i of a head with row i + head_dim/2, llama.cpp's `llama` graphs row 2i with row 2i+1.
    """
    n, cols = rows.shape
    return np.ascontiguousarray(rows.reshape(n // head_dim, 2, head_dim // 2, cols).swapaxes(1, 2)).reshape(n, cols)


def check_finite(values: F32, name: str, types: frozenset[GGMLQuantizationType]) -> None:
    """Raise DataError where a value is not finite, or too large for the F16 numbers that `types` store."""
    # One pass at memory speed: the sum of squares bounds the largest value, and is not finite where a value is not.
    # (Where it overflows although all values are finite, the exact count below decides.)
    bound = float(np.dot(values, values))
    if bound < F16_MAX**2:
        return
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


def _encode(block: Block, slot: Slot, pairs: Sequence[LoadedPair]) -> dict[GGMLQuantizationType, U8]:
    """The arithmetic of one block; runs in a worker."""
    job = block.job
    n = block.n_rows * job.n_cols
    flat = slot.values[:n]
    if job.source is not None:
        widen(slot.raw[: n * DTYPE_BYTES[job.source.dtype]], job.source.dtype, flat)
    elif job.constant is not None:
        flat[:] = job.constant
    rows = flat.reshape(block.n_rows, job.n_cols)
    source_name = job.source.name if job.source else job.name
    with np.errstate(over="ignore", invalid="ignore"):  # check_finite tells
        for pair in pairs:
            pair.add_to(rows, block.start, slot.scratch[:n].reshape(rows.shape))
        check_finite(flat, source_name, block.types)
    if job.rotary_rows:
        rows = interleave_rotary(rows, job.rotary_rows)
    if job.is_vector:
        rows = rows.reshape(1, n)
    return {
        t: rows.reshape(-1).view(np.uint8) if t == GGMLQuantizationType.F32 else quantize(t, rows, slot.encoded[t])
        for t in block.types
    }


def _blocks(plan: Plan, block_elements: int) -> Iterator[Block]:
    for i, job in enumerate(plan.jobs):
        types = frozenset(p.tensors[i].type for p in plan.levels)
        step = job.n_rows if job.is_vector else _rows_per_block(job, block_elements)
        for start in range(0, job.n_rows, step):
            yield Block(i, job, types, start, min(step, job.n_rows - start))


def _rows_per_block(job: Job, block_elements: int) -> int:
    unit = job.rotary_rows or 1
    return max(1, block_elements // (job.n_cols * unit)) * unit


def _n_slots(threads: int) -> int:
    """Enough that no worker waits while the main thread reads or writes."""
    return threads * 2 + 2


def _block_size(plan: Plan, threads: int, memory: int | None) -> tuple[int, int]:
    """(elements of the largest block, number of slots) within `memory` bytes, or by default."""
    n_slots = _n_slots(threads)
    types = plan.types

    def needed(n_elements: int) -> int:
        return FIXED_MEMORY + n_slots * Slot.nbytes(n_elements, types, bool(plan.adapters))

    wanted = BLOCK_ELEMENTS
    while wanted > LEAST_ELEMENTS and needed(wanted) > (memory or DEFAULT_MEMORY):
        wanted //= 2
    if memory is not None and needed(wanted) > memory:
        raise UsageError(
            f"--memory {memory / 1e6:.0f}MB: with {threads} threads the pass needs at least "
            f"{needed(wanted) / 1e6:.0f}MB; allow more, or fewer --threads"
        )
    largest = max(
        (job.n_rows if job.is_vector else min(job.n_rows, _rows_per_block(job, wanted))) * job.n_cols
        for job in plan.jobs
    )
    return wanted, -(-largest // 256) * 256


class _Outputs:
    """The files of all levels, written in step; each gets its name only in `publish`, when all are whole."""

    def __init__(self, plan: Plan, stack: contextlib.ExitStack) -> None:
        self._levels = plan.levels
        self._files = [stack.enter_context(OutputFile(p.path)) for p in plan.levels]
        self._hashes = [hashlib.sha256() for _ in plan.levels]
        for k, level in enumerate(plan.levels):
            self._put(k, level.header)

    def _put(self, k: int, data: U8 | bytes) -> None:
        self._files[k].write(data)
        self._hashes[k].update(data if isinstance(data, bytes) else data.data)

    def put(self, block: Block, encoded: dict[GGMLQuantizationType, U8]) -> None:
        """Append a block to every level, and the padding after a tensor's last."""
        for k, level in enumerate(self._levels):
            tensor = level.tensors[block.index]
            self._put(k, encoded[tensor.type])
            if block.start + block.n_rows == block.job.n_rows:
                self._put(k, bytes(gguf.pad(tensor.nbytes) - tensor.nbytes))

    def publish(self) -> list[str]:
        """Flush, check and name every file; returns their SHA-256."""
        for file, level in zip(self._files, self._levels, strict=True):
            file.flush()
            _check(file, level)
        for file in self._files:
            file.publish()
        return [h.hexdigest() for h in self._hashes]


def write(plan: Plan, *, threads: int, memory: int | None = None, progress: Progress | None = None) -> list[Written]:
    """Run the pass. `progress(bytes done, bytes in all)` counts the source; nothing appears unless all is well.

    Raises DataError for weights that are not finite, IoFault where the disk fails, Busy where another run writes,
    UsageError where `memory` (bytes) is too little.
    """
    started = time.monotonic()
    block_elements, slot_elements = _block_size(plan, threads, memory)
    types, source_bytes = plan.types, plan.source_bytes
    with contextlib.ExitStack() as stack:
        stack.callback(plan.checkpoint.close)
        outputs = _Outputs(plan, stack)
        pool = stack.enter_context(ThreadPoolExecutor(threads, thread_name_prefix="encode"))
        free = [Slot(slot_elements, types, bool(plan.adapters)) for _ in range(_n_slots(threads))]
        pending: deque[tuple[Block, Slot, Future[dict[GGMLQuantizationType, U8]]]] = deque()
        done = 0

        def collect() -> None:
            nonlocal done
            block, slot, future = pending.popleft()
            outputs.put(block, future.result())
            free.append(slot)
            done += block.source_bytes
            if progress:
                progress(done, source_bytes)

        try:
            pairs: list[LoadedPair] = []
            for block in _blocks(plan, block_elements):
                source = block.job.source
                if block.start == 0:
                    pairs = [a.load(source.name) for a in block.job.adapters if source]
                while not free:
                    collect()
                slot = free.pop()
                if source is not None:
                    start = block.start * block.job.n_cols * DTYPE_BYTES[source.dtype]
                    plan.checkpoint.read(source, start, slot.raw[: block.source_bytes])
                pending.append((block, slot, pool.submit(_encode, block, slot, pairs)))
            while pending:
                collect()
        except BaseException:
            for _, _, future in pending:
                future.cancel()
            raise
        sums = outputs.publish()
    seconds = time.monotonic() - started
    return [
        Written(p.path, p.level.name, p.total_bytes, p.bits_per_weight, sha256, seconds)
        for p, sha256 in zip(plan.levels, sums, strict=True)
    ]


def _check(output: OutputFile, level: PlannedLevel) -> None:
    """Read the finished header back as a stranger would, before the file gets its name."""
    header = gguf.read_header(output.partial)
    if header.file_size != level.total_bytes or header.tensors != level.tensors:
        raise IoFault(f"{level.path}: what was written does not read back as planned; the disk may be faulty")
