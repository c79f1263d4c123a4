"""Second moments, the child's side: a model over text, a few blocks at a time, the products of their inputs summed.

`python -m jmedlite.calibration.moments_worker` reads one request on standard input and prints events, one JSON object a
line. Only this process ends where llama.cpp aborts. The moments of all inputs together may be larger than the model, so
the text is evaluated again for as many blocks as fit the memory, each time only as far as these blocks.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import blas

from jmedlite.base import gguf
from jmedlite.base.errors import DataError, NativeError, system_fault
from jmedlite.base.gguf import Header
from jmedlite.base.moments import CHUNK_SIZE, DATASETS, TOKENS, layout, parts, windows
from jmedlite.base.native import F32
from jmedlite.runtime.context import BatchRow, Context
from jmedlite.runtime.loading import LoadedModel
from jmedlite.runtime.protocol import Emit, Request, serve

from .chunks import Chunks
from .graph import F32 as FLOAT
from .graph import GgmlTensor, check_layout, library, values, weight_name
from .worker import pieces

HELD_OUT_EVERY = 8  # chunks: the last of so many is held out
MAX_HELD_OUT, LEAST_HELD_OUT = 512, 32  # tokens that are kept of those held out, and of each such chunk
PANEL = 512  # columns whose products are summed at once, by one thread


@dataclass
class Panel:
    """Sums of products of the columns [start, start + PANEL) of an input with themselves and the window's after them.

    All panels of a window together hold the upper triangle of its moments, in little more than half the room.
    """

    start: int
    end: int  # of the window
    sums: F32  # (columns of the panel, end - start)

    @classmethod
    def of(cls, start: int, end: int) -> list[Panel]:
        """Those of the window [start, end), all zero."""
        return [cls(at, end, np.zeros((min(PANEL, end - at), end - at), np.float32)) for at in range(start, end, PANEL)]

    @staticmethod
    def nbytes(start: int, end: int) -> int:
        """The bytes that those of a window take."""
        return sum(4 * min(PANEL, end - at) * (end - at) for at in range(start, end, PANEL))

    def add(self, rows: F32) -> None:
        """Add the products of `rows` (n_tokens, n_cols)."""
        after, own = rows[:, self.start : self.end].T, rows[:, self.start : self.start + len(self.sums)].T
        # in place: to BLAS, an array's transpose is one in its own order
        self.sums = blas.sgemm(1.0, after, own, beta=1.0, c=self.sums.T, trans_b=1, overwrite_c=1).T


class Listener:
    """Listens to the graph: first for which inputs there are, then for the values of those `wanted`."""

    def __init__(self, header: Header, n_threads: int) -> None:
        self.header = header
        self.fault: BaseException | None = None
        self.first: dict[str, str] = {}  # weight: the first weight that its input enters
        self._inputs: dict[int, str] = {}  # of one evaluation: the input's address, and that weight
        self.wanted: dict[str, list[list[Panel]]] = {}  # input: the panels of its windows
        self.held_out: dict[str, list[F32]] | None = None  # where inputs go instead, while they are held out
        self.last = ""  # the input after which nothing is wanted any more
        self._lib, self._products = library(), check_layout()
        self._pool = ThreadPoolExecutor(n_threads)

    def begin(self) -> None:
        """Before every evaluation: a new graph has new addresses."""
        self._inputs = {}

    def __call__(self, address: int, asked: bool, _: object) -> bool:
        """ggml_backend_sched_eval_callback: with `asked` whether the node is wanted, else its result is ready."""
        if self.fault:
            return False
        try:
            t = GgmlTensor.from_address(address)
            if asked:
                return self._see(t) in self.wanted
            name = weight_name(GgmlTensor.from_address(t.src[0]).title)
            self._add(name, values(self._lib, t.src[1]))
            return name != self.last  # what comes after is not needed
        except BaseException as e:  # ctypes would print it and go on
            self.fault = e
            return False

    def _see(self, t: GgmlTensor) -> str:
        """The name of a weight that is the first of its input's; "" for all else."""
        if t.op != self._products.mul_mat:
            return ""
        name = weight_name(GgmlTensor.from_address(t.src[0]).title)
        tensor = self.header.by_name.get(name)
        if tensor is None or len(tensor.shape) != 2 or GgmlTensor.from_address(t.src[1]).type != FLOAT:
            return ""
        first = self._inputs.setdefault(t.src[1], name)
        self.first[name] = first
        return name if name == first else ""

    def _add(self, name: str, x: NDArray[Any]) -> None:
        n_cols = self.header.by_name[name].shape[0]
        if x.shape[3] != n_cols:
            raise NativeError(
                f"llama.cpp multiplies {name} with rows of {x.shape[3]}, the file says {n_cols}; this llama-cpp-python "
                "version is not supported"
            )
        rows = np.ascontiguousarray(x.reshape(-1, n_cols), np.float32)
        if not np.isfinite(rows).all():
            raise DataError(
                f"the model's values at {name} are not finite, so the file is damaged; make or copy it again"
            )
        if self.held_out is not None:
            self.held_out.setdefault(name, []).append(rows.copy())
            return

        panels = itertools.chain.from_iterable(self.wanted[name])
        list(self._pool.map(lambda panel: panel.add(rows), panels))


class Gathering:
    """A loaded model over a text, pass by pass."""

    def __init__(self, request: Request, emit: Emit) -> None:
        self.emit, self.n_threads, self.n_ctx = emit, int(request["threads"]), int(request["ctx"])
        self.loaded = loaded = LoadedModel({**request, "gpu_layers": "0"}, lambda event, **fields: None)
        chunks = Chunks(loaded, request["text"], self.n_ctx, 2).spread(request["chunks"])
        n_chunks = len(chunks)
        held = range(min(HELD_OUT_EVERY, n_chunks) - 1, n_chunks, HELD_OUT_EVERY)
        n_each = max(LEAST_HELD_OUT, MAX_HELD_OUT // len(held))  # of each, since chunks differ, in language too
        self.summed = [c for i, c in enumerate(chunks) if i not in held]
        self.held_out = [chunks[i][:n_each] for i in held]
        self.listener = Listener(loaded.header, self.n_threads)
        callback = loaded.llama.ggml_backend_sched_eval_callback(self.listener)
        self._callback = callback  # must outlive the context
        self.context = Context(
            loaded,
            n_ctx=self.n_ctx,
            n_batch=min(128, self.n_ctx),
            n_threads=self.n_threads,
            advice="try a smaller --ctx",
            cb_eval=callback,
        )

    @property
    def n_held_out(self) -> int:
        return sum(len(c) for c in self.held_out)

    @property
    def n_tokens(self) -> int:
        return sum(len(c) for c in self.summed)

    def find_inputs(self) -> dict[str, int]:
        """Columns of every input, by the first weight that it enters; one short evaluation tells."""
        self._evaluate([self.summed[0][: pieces(self.n_ctx)[1]]])
        header = self.loaded.header
        # the graph's order, not the file's: what is computed last must come last
        order = [name for name, first in self.listener.first.items() if name == first]
        return {name: header.by_name[name].shape[0] for name in order}

    def passes(self, inputs: dict[str, int], memory: int) -> list[list[str]]:
        """The inputs of each pass, whose moments take at most `memory` bytes (but at least one input's)."""
        found: list[list[str]] = [[]]
        used = 0
        for name, n_cols in inputs.items():
            size = sum(Panel.nbytes(start, end) for start, end in windows(n_cols))
            if found[-1] and used + size > memory:
                found.append([])
                used = 0
            found[-1].append(name)
            used += size
        return found

    def gather(self, names: Sequence[str]) -> Iterator[tuple[str, list[F32], F32]]:
        """(input, moments of its windows, of which the upper triangle is right, its values for the held-out tokens)."""
        header, listener = self.loaded.header, self.listener
        listener.wanted = {
            name: [Panel.of(start, end) for start, end in windows(header.by_name[name].shape[0])] for name in names
        }
        listener.last = names[-1]
        self._evaluate(self.summed)
        listener.held_out = {}
        self._evaluate(self.held_out)
        held, listener.held_out = listener.held_out, None
        if missing := [name for name in names if name not in held]:
            raise NativeError(f"llama.cpp used {missing[0]} in one evaluation and not in another")
        for name in names:
            # taken out one by one, so that there are never two copies of all
            moments = [self._mean(panels) for panels in listener.wanted.pop(name)]
            yield name, moments, np.concatenate(held.pop(name))

    def _mean(self, panels: Sequence[Panel]) -> F32:
        """The moments (n, n) of a window, zero in the lower triangle but near the diagonal."""
        first, n = panels[0].start, panels[0].end - panels[0].start
        moments = np.zeros((n, n), np.float32)
        for panel in panels:
            at = panel.start - first
            np.divide(panel.sums, np.float32(self.n_tokens), out=moments[at : at + len(panel.sums), at:])
        return moments

    def _evaluate(self, chunks: Sequence[Sequence[int]]) -> None:
        for tokens in chunks:
            self.context.clear()
            for start, end in itertools.pairwise(pieces(len(tokens))):
                self.listener.begin()
                try:
                    # the logits of all, or the last layer's rows are left out
                    self.context.decode(BatchRow(tokens[at], at, (0,), True) for at in range(start, end))
                finally:
                    if self.listener.fault:
                        raise self.listener.fault
            self.emit("chunk")


def run(request: Request, emit: Emit, _: threading.Event) -> None:
    """Answer the one request: `passes` tells how many there are, a `chunk` event for each of theirs follows, `done`."""
    started = time.monotonic()
    work = Gathering(request, emit)
    try:
        inputs = work.find_inputs()
        if not inputs:
            raise NativeError(
                "llama.cpp ran no matrix product that could be observed; was the model's name map changed?"
            )
        weights = {name: first for name, first in work.listener.first.items() if first in inputs}
        passes = work.passes(inputs, int(request["memory"]))
        emit("passes", passes=len(passes), chunks=len(work.summed) + len(work.held_out))
        entries: gguf.Entries = {
            DATASETS: (request["datasets"], gguf.ARRAY, gguf.STRING),
            CHUNK_SIZE: (work.n_ctx, gguf.UINT32, None),
            TOKENS: (work.n_tokens, gguf.UINT32, None),
        }
        header, places = layout(inputs, weights, work.n_held_out, entries)
        path = Path(request["out"])
        try:
            with path.open("r+b") as out:  # the parent's partial file
                out.write(header)
                for names in passes:
                    for name, moments, held_out in work.gather(names):
                        for part, array in parts(name, moments, held_out):
                            out.seek(len(header) + places[part].offset)
                            out.write(np.ascontiguousarray(array).tobytes())
                last = max(places.values(), key=lambda t: t.offset)
                out.truncate(len(header) + last.offset + gguf.pad(last.nbytes))
        except OSError as e:
            raise system_fault(e, path, "writing") from None
    finally:
        work.context.close()
    emit("done", inputs=len(inputs), weights=len(weights), n_tokens=work.n_tokens, seconds=time.monotonic() - started)


if __name__ == "__main__":
    serve(run)
