"""Importance matrix, the child's side: a model over calibration text, the squares that enter its products summed.

`python -m jmedlite.calibration.worker` reads one request on standard input and prints events, one JSON object a line.
Only this process ends where llama.cpp aborts. The sums are those of llama-imatrix (tools/imatrix/imatrix.cpp of
llama.cpp).
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jmedlite.base.errors import DataError, NativeError, system_fault
from jmedlite.base.gguf import Header
from jmedlite.base.imatrix import Squares, pack_imatrix
from jmedlite.base.native import F64
from jmedlite.runtime.context import BatchRow, Context
from jmedlite.runtime.loading import LoadedModel
from jmedlite.runtime.protocol import Emit, Request, serve

from .chunks import Chunks
from .graph import F32, GgmlTensor, check_layout, library, values, weight_name

MIN_ROWS = 16  # llama-imatrix takes no smaller products
# Tokens evaluated at once: each needs a row of logits twice over (the graph's and the copy), 0.6 MB per token of the
# memory for a vocabulary of 152,000.
PIECE = 128


def pieces(n_ctx: int) -> list[int]:
    """Boundaries that cut a chunk into equal pieces of at most PIECE tokens, none of them below MIN_ROWS."""
    n = -(-n_ctx // PIECE)
    return [i * n_ctx // n for i in range(n + 1)]


class Collector:
    """Listens to the graph: `sums[name]` (n_matrices, n_per_row) and `counts[name]` (n_matrices,) grow as it runs."""

    def __init__(self, header: Header, process_output: bool) -> None:
        self.header, self.process_output = header, process_output
        self.sums: dict[str, F64] = {}
        self.counts: dict[str, NDArray[np.int64]] = {}
        self.fault: BaseException | None = None
        self._lib, self._products = library(), check_layout()

    def __call__(self, address: int, asked: bool, _: object) -> bool:
        """ggml_backend_sched_eval_callback: with `asked` whether the node is wanted, else its result is ready."""
        if self.fault:
            return False
        try:
            if asked:
                return self._wanted(GgmlTensor.from_address(address))
            self._add(GgmlTensor.from_address(address))
        except BaseException as e:  # ctypes would print it and go on
            self.fault = e
            return False
        return True

    def _wanted(self, t: GgmlTensor) -> bool:
        if t.op not in (self._products.mul_mat, self._products.mul_mat_id):
            return False
        name = weight_name(GgmlTensor.from_address(t.src[0]).title)
        x = GgmlTensor.from_address(t.src[1])
        if name not in self.header.by_name or x.type != F32:
            return False
        if t.op == self._products.mul_mat and x.ne[1] < MIN_ROWS:
            return False
        return name.startswith("blk.") or (self.process_output and name == "output.weight")

    def _add(self, t: GgmlTensor) -> None:
        weight = GgmlTensor.from_address(t.src[0])
        name = weight_name(weight.title)
        shape = (*self.header.by_name[name].shape, 1, 1, 1)[:4]
        x = values(self._lib, t.src[1])
        if tuple(weight.ne) != shape or x.shape[3] != shape[0]:
            raise NativeError(
                f"llama.cpp multiplies {name} as {tuple(weight.ne)} with rows of {x.shape[3]}, the file says {shape}; "
                "this llama-cpp-python version is not supported"
            )
        experts = t.op == self._products.mul_mat_id
        n_matrices = shape[2] * shape[3]
        if name not in self.sums:
            self.sums[name] = np.zeros((n_matrices, shape[0]))
            self.counts[name] = np.zeros(n_matrices if experts else 1, np.int64)
        if experts:
            self._add_experts(name, x, values(self._lib, t.src[2]))
        else:
            for i3, i2 in np.ndindex(x.shape[:2]):
                self.sums[name][(i3 % shape[3]) * shape[2] + i2 % shape[2]] += squares(x[i3, i2])
            self.counts[name] += x.shape[0] * x.shape[1] * x.shape[2] // n_matrices
        if not np.isfinite(self.sums[name]).all():
            raise DataError(
                f"the model's values at {name} are not finite, so the file is damaged; make or copy it again"
            )

    def _add_experts(self, name: str, x: NDArray[Any], ids: NDArray[Any]) -> None:
        """`x` (1, n_tokens, n_used or 1, n_per_row), `ids` (1, 1, n_tokens, n_used): which expert each row went to."""
        for k in range(ids.shape[3]):
            rows, chosen = x[0, :, k % x.shape[2]], ids[0, 0, :, k]
            for expert in np.unique(chosen):
                mine = chosen == expert
                self.sums[name][expert] += squares(rows[mine])
                self.counts[name][expert] += int(mine.sum())

    def result(self) -> dict[str, Squares]:
        """What was summed, per tensor, as the file format has it."""
        found = {}
        for name, sums in self.sums.items():
            counts = self.counts[name]
            found[name] = Squares(sums.astype(np.float32).reshape(len(counts), -1), counts)
        return found

    def missing(self) -> list[str]:
        """Weights of the blocks that no product used."""
        return [
            t.name
            for t in self.header.tensors
            if t.name.startswith("blk.") and t.name.endswith(".weight") and len(t.shape) > 1 and t.name not in self.sums
        ]


def squares(rows: NDArray[Any]) -> F64:
    """Column sums of the squares of `rows` (n, n_per_row): squared in float32 as llama-imatrix does, summed wider."""
    found: F64 = np.square(rows).sum(axis=0, dtype=np.float64)
    return found


class Calibration:
    """A loaded model over a text, chunk by chunk."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.loaded = loaded = LoadedModel(request, lambda event, **fields: None)
        self.n_threads: int = request["threads"]
        self.collector = Collector(loaded.header, request["process_output"])
        self.n_ctx: int = request["ctx"]
        self.chunks = Chunks(loaded, request["text"], self.n_ctx, 2)
        self.n_chunks = min(request["chunks"] or len(self.chunks), len(self.chunks))

    def run(self, tell: Callable[[int], None]) -> None:
        """Evaluate every chunk with an empty cache; `tell` hears how many are done."""
        callback = self.loaded.llama.ggml_backend_sched_eval_callback(self.collector)
        context = Context(
            self.loaded,
            n_ctx=self.n_ctx,
            n_batch=min(PIECE, self.n_ctx),
            n_threads=self.n_threads,
            advice="try a smaller --ctx",
            cb_eval=callback,
        )
        try:
            for i in range(self.n_chunks):
                tokens = self.chunks[i]
                context.clear()
                bounds = pieces(self.n_ctx)
                for start, end in itertools.pairwise(bounds):
                    self._decode(context, tokens, range(start, end))
                tell(i + 1)
        finally:
            context.close()

    def _decode(self, context: Context, tokens: Sequence[int], where: range) -> None:
        try:
            # the logits of all, or the last layer's rows are left out
            context.decode(BatchRow(tokens[at], at, (0,), True) for at in where)
        finally:
            if self.collector.fault:
                raise self.collector.fault


def calibrate(request: Request, emit: Emit, _: threading.Event) -> None:
    """Answer the one request: `chunk` events, then the parent's file is filled and `done` says what is in it."""
    started = time.monotonic()
    work = Calibration(request)
    emit("chunk", done=0, total=work.n_chunks, n_tokens=len(work.chunks.tokens))
    work.run(lambda done: emit("chunk", done=done, total=work.n_chunks, n_tokens=len(work.chunks.tokens)))
    found = work.collector.result()
    if not found:
        raise NativeError("llama.cpp ran no matrix product that could be observed; was the model's name map changed?")
    path = Path(request["out"])
    try:
        with path.open("r+b") as out:  # the parent's partial file
            out.writelines(
                pack_imatrix(found, datasets=request["datasets"], chunk_size=work.n_ctx, chunks=work.n_chunks)
            )
    except OSError as e:
        raise system_fault(e, path, "writing") from None
    emit(
        "done",
        entries=len(found),
        missing=work.collector.missing(),
        n_tokens=work.n_chunks * work.n_ctx,
        seconds=time.monotonic() - started,
    )


if __name__ == "__main__":
    serve(calibrate)
