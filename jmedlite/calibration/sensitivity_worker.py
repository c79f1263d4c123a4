"""Sensitivities, the child's side: a model over a text again and again, each time with one weight rounded.

`python -m jmedlite.calibration.sensitivity_worker` reads one request on standard input and prints events, one JSON
object a line. Only this process ends where llama.cpp aborts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray

from jmedlite.base.errors import DataError, NativeError
from jmedlite.base.imatrix import read_imatrix
from jmedlite.base.native import F32, F64
from jmedlite.runtime.context import BatchRow, Context
from jmedlite.runtime.divergence import Space, record
from jmedlite.runtime.loading import LoadedModel
from jmedlite.runtime.protocol import Emit, Request, serve
from jmedlite.runtime.shared_rows import SharedRows

from .chunks import Chunks
from .weights import KEPT_IN, Finder, Weights, probe_type

PIECE = 128  # tokens evaluated at once
SKIPPED = 16  # positions that begin a chunk: with so little before them they are unlike any others
EVERY_POSITION = 2  # of the others this one is compared: neighbours tell nearly the same
MOST_UNCHANGED = 1e-6  # nats between two evaluations of the same weights, which should be the same to the bit


def compared(n_ctx: int) -> range:
    """Positions of a chunk whose distributions are compared."""
    return range(SKIPPED, n_ctx - 1, EVERY_POSITION)


class Text:
    """The tokens that everything is measured on, and the distributions that follow them."""

    def __init__(self, request: Request, loaded: LoadedModel) -> None:
        self.loaded, self.n_ctx = loaded, int(request["ctx"])
        self.chunks = Chunks(loaded, request["text"], self.n_ctx, 1).spread(int(request["tokens"]) // self.n_ctx)
        n_positions = len(self.chunks) * len(compared(self.n_ctx))
        self.kept: NDArray[Any] = np.empty(n_positions, record(loaded.vocabulary.n_tokens))
        self._rows = SharedRows([Space(loaded.vocabulary.n_tokens) for _ in range(int(request["threads"]))])

    def keep(self, context: Context) -> None:
        """Evaluate and keep the distributions, which later ones are compared with."""
        self._evaluate(context, lambda logits, follow, at: self._each(context, Space.keep, logits, follow, at))

    def divergences(self, context: Context) -> F64:
        """KL divergence (n_positions,) of the kept distributions to those of the weights as they are now, in nats."""
        found: list[float] = []

        def compare(logits: list[F32], follow: list[int], at: range) -> None:
            found.extend(kl for _, kl, _ in self._each(context, Space.compare, logits, follow, at))

        self._evaluate(context, compare)
        return np.array(found)

    def _each(
        self, context: Context, function: Callable[..., Any], logits: list[F32], follow: list[int], at: range
    ) -> Any:
        return context.named(self._rows.each, function, logits, follow, [self.kept] * len(at), at)

    def _evaluate(self, context: Context, use: Callable[[list[F32], list[int], range], None]) -> None:
        done = 0
        for tokens in self.chunks:
            context.clear()
            for start in range(0, self.n_ctx, PIECE):
                where = range(start, min(start + PIECE, self.n_ctx))
                context.decode(BatchRow(tokens[at], at, (0,), at in compared(self.n_ctx)) for at in where)
                wanted = [at for at in where if at in compared(self.n_ctx)]
                logits = [context.logits(at - start) for at in wanted]
                use(logits, [tokens[at + 1] for at in wanted], range(done, done + len(wanted)))
                done += len(wanted)


def measure(request: Request, emit: Emit, _: threading.Event) -> None:
    """Answer the one request: a `weight` event for every weight asked for, then `done`."""
    started = time.monotonic()
    loaded = LoadedModel({**request, "gpu_layers": "0", "writable": True}, lambda event, **fields: None)
    text = Text(request, loaded)
    finder = Finder(loaded.header)
    callback = loaded.llama.ggml_backend_sched_eval_callback(finder)  # must outlive the context
    context = Context(
        loaded,
        n_ctx=text.n_ctx,
        n_batch=min(PIECE, text.n_ctx),
        n_threads=int(request["threads"]),
        advice="try a smaller --ctx",
        cb_eval=callback,
    )
    try:
        text.keep(context)
        weights = Weights(loaded, finder.addresses, int(request["threads"]))
        wanted = _wanted(request["weights"], weights.names, loaded)
        matrix = read_imatrix(Path(request["imatrix"])).weights if request["imatrix"] else {}
        _check_unchanged(text.divergences(context))
        emit("ready", weights=wanted, n_positions=len(text.kept), seconds=time.monotonic() - started)
        for name in wanted:
            tensor = loaded.header.by_name[name]
            probe = probe_type(tensor, GGMLQuantizationType[request["probe"]])
            importance = matrix.get(name)
            if importance is not None and importance.size != tensor.shape[0]:
                importance = None  # experts' are not told apart
            with weights.rounded(name, probe, importance) as error:
                kl = text.divergences(context)
            emit(
                "weight",
                name=name,
                type=probe.name,
                error=error,
                kl=float(kl.mean()),
                kl_error=float(kl.std() / max(1, kl.size - 1) ** 0.5),
            )
        _check_unchanged(text.divergences(context))
    finally:
        context.close()
    emit("done", seconds=time.monotonic() - started)


def _wanted(asked: Sequence[str], there: Sequence[str], loaded: LoadedModel) -> list[str]:
    if not there:
        types = sorted({t.type.name for t in loaded.header.tensors if len(t.shape) > 1})
        raise DataError(
            f"{loaded.path.name}: its weights are {', '.join(types)}, and only {', '.join(KEPT_IN)} can be rounded in "
            "place; make such a file with `jmedlite quantize MODEL --bits 16`, or `--bits 8`"
        )
    found = [name for name in there if name in set(asked)]
    if not found:
        raise NativeError("llama.cpp used none of the weights that were to be rounded; was its name map changed?")
    return found


def _check_unchanged(kl: F64) -> None:
    """The same weights must give the same distributions, or no difference means anything."""
    if float(kl.max()) > MOST_UNCHANGED:
        raise NativeError(
            f"llama.cpp computes the same weights differently each time (by {float(kl.max()):.2g} nats), so nothing "
            "can be measured with it"
        )


if __name__ == "__main__":
    serve(measure)
