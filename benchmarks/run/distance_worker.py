"""The child process that reads a text with one model: `python -m jmedlite.benchmarks.run.distance_worker`.

Reads requests, writes events, one JSON object a line. `load` a model with a text: `loaded` tells its tokens. `evaluate`
chunks of it, and keep the distributions in a file or compare them with those kept: a `chunk` event for each, then
`done`. An expected fault is an `error` event; a native abort ends only this process.

A chunk is evaluated as llama-perplexity does (tools/perplexity/perplexity.cpp of llama.cpp): from an empty cache, its
first token replaced by BOS where the model wants one; its first half is context, the rest is scored.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from jmedlite.base.errors import DataError, IoFault, system_fault
from jmedlite.benchmarks.backends.local_engine import NO_ROOM
from jmedlite.runtime.chat_template import Part
from jmedlite.runtime.context import BatchRow, Context
from jmedlite.runtime.divergence import Space, record
from jmedlite.runtime.loading import LoadedModel
from jmedlite.runtime.protocol import Emit, serve
from jmedlite.runtime.shared_rows import SharedRows

# Tokens evaluated at once. Bounds the logits in memory: 4 bytes × n_vocab each, twice (the graph's and the copy)
N_ROWS = 64


def scored(n_ctx: int) -> range:
    """Positions of a chunk whose logits are read: each scores the token after it."""
    return range(n_ctx // 2, n_ctx - 1)


class Kept:
    """The file that holds the reference's distributions, position after position; readable by this user only."""

    def __init__(self, path: Path, n_vocab: int, writing: bool) -> None:
        self.path, self._record = path, record(n_vocab)
        flags = os.O_RDWR | (os.O_CREAT | os.O_EXCL if writing else 0) | getattr(os, "O_BINARY", 0)
        try:
            self._file: BinaryIO = os.fdopen(os.open(path, flags, 0o600), "r+b", buffering=0)
        except OSError as e:
            raise system_fault(e, path, "opening") from None

    def new(self, n: int) -> NDArray[Any]:
        """Room for `n` positions, to be filled and written."""
        return np.empty(n, self._record)

    def write(self, rows: NDArray[Any]) -> None:
        view = memoryview(rows.view(np.uint8).data)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as e:
            raise system_fault(e, self.path, "writing") from None

    def read(self, n: int) -> NDArray[Any]:
        """The next `n` positions."""
        rows = np.empty(n, self._record)
        view = memoryview(rows.view(np.uint8).data)
        try:
            while view:
                count = self._file.readinto(view)  # type: ignore[attr-defined] # a raw file has it
                if not count:
                    raise IoFault(f"{self.path}: ends too early; who changed it? Run again")
                view = view[count:]
        except OSError as e:
            raise system_fault(e, self.path, "reading") from None
        return rows

    def close(self) -> None:
        self._file.close()


class TextEvaluator:
    """One model over one text."""

    def __init__(self, request: dict[str, Any], emit: Emit) -> None:
        self.emit, self.n_threads, self.n_ctx = emit, int(request["threads"]), int(request["ctx"])
        self.loaded = loaded = LoadedModel(request, emit)
        self.llama, self.n_vocab = loaded.llama, loaded.vocabulary.n_tokens
        if self.n_ctx > loaded.n_ctx_train:
            raise DataError(
                f"a chunk of {self.n_ctx:,} tokens is longer than the {loaded.n_ctx_train:,} that {loaded.path.name} "
                f"was trained on{loaded.context_ends}; lower --text-ctx"
            )
        vocab = loaded.vocabulary.vocab
        self.bos = self.llama.llama_vocab_bos(vocab) if self.llama.llama_vocab_get_add_bos(vocab) else None
        self.tokens = loaded.vocabulary.tokenize_parts([Part(request["text"], False)])
        self.rows = SharedRows([Space(self.n_vocab) for _ in range(self.n_threads)])

    def facts(self) -> dict[str, Any]:
        """What tells whether two models' distributions over this text can be compared."""
        words = hashlib.sha256()
        for token in self.loaded.header.metadata["tokenizer.ggml.tokens"]:
            words.update(len(token).to_bytes(4, "little") + token)
        return {
            "n_tokens": len(self.tokens),
            "n_vocab": self.n_vocab,
            "vocabulary": words.hexdigest(),
            "tokens": hashlib.sha256(np.array([self.bos or 0, *self.tokens], "<i4").tobytes()).hexdigest(),
        }

    def evaluate(self, n_chunks: int, keep: str | None, compare: str | None) -> None:
        """The first `n_chunks` chunks; `keep` and `compare` name the file to write, or to read."""
        kept = None
        if keep or compare:
            kept = Kept(Path(str(keep or compare)), self.n_vocab, writing=bool(keep))
        context = Context(
            self.loaded,
            n_ctx=self.n_ctx,
            n_batch=N_ROWS,
            n_threads=self.n_threads,
            advice=NO_ROOM,
            n_outputs_max=N_ROWS,
        )
        try:
            for i in range(n_chunks):
                tokens = self.tokens[i * self.n_ctx : (i + 1) * self.n_ctx]
                first = [tokens[0] if self.bos is None else self.bos]
                self.emit("chunk", **self._chunk(context, first + tokens[1:], kept, bool(compare)))
        finally:
            context.close()
            if kept:
                kept.close()
        self.emit("done")

    def _chunk(
        self, context: Context, tokens: Sequence[int], kept: Kept | None, comparing: bool
    ) -> dict[str, list[Any]]:
        """`nll` (nats) of every scored position of a chunk and, comparing, `kl` (nats) and `same` (top token)."""
        context.clear()
        nll: list[float] = []
        found: list[tuple[float, float, bool]] = []
        for start in range(0, len(tokens), N_ROWS):
            where = range(start, min(start + N_ROWS, len(tokens)))
            logits = self._decode(context, tokens, where)
            follow = [tokens[at + 1] for at in where if at in scored(self.n_ctx)]
            if not follow:
                continue
            if not kept:
                nll += context.named(self.rows.each, Space.nll, logits, follow)
            elif comparing:
                rows = kept.read(len(follow))
                found += context.named(
                    self.rows.each, Space.compare, logits, follow, [rows] * len(follow), range(len(follow))
                )
            else:
                rows = kept.new(len(follow))
                nll += context.named(
                    self.rows.each, Space.keep, logits, follow, [rows] * len(follow), range(len(follow))
                )
                kept.write(rows)
        if not comparing:
            return {"nll": nll}
        return {key: [x[i] for x in found] for i, key in enumerate(("nll", "kl", "same"))}

    def _decode(self, context: Context, tokens: Sequence[int], where: range) -> list[NDArray[np.float32]]:
        """Evaluate the tokens at `where`; logits (n_vocab,) at its scored positions, until the next evaluation."""
        # the last one's too, which nobody reads, as llama-perplexity does
        context.decode(BatchRow(tokens[at], at, (0,), at >= self.n_ctx // 2) for at in where)
        return [context.logits(k) for k, at in enumerate(where) if at in scored(self.n_ctx)]


def load(request: dict[str, Any], emit: Emit, _: threading.Event) -> TextEvaluator:
    """Load a model and tokenize the text; the `loaded` event says what they are."""
    reading = TextEvaluator(request, emit)
    emit("loaded", **reading.facts())
    return reading


if __name__ == "__main__":
    serve(
        load,
        {
            "evaluate": lambda reading, request, emit: reading.evaluate(
                request["chunks"], request["keep"], request["compare"]
            )
        },
    )
