"""Local engine: requests through llama.cpp, heads, stems and choices once each, and only the logits that are read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from jmedlite.base.native import F32
from jmedlite.runtime.added_tokens import common_prefix
from jmedlite.runtime.context import BatchRow, Context, finite_max
from jmedlite.runtime.loading import LoadedModel
from jmedlite.runtime.shape import CELL
from jmedlite.runtime.shared_rows import SharedRows
from jmedlite.runtime.thoughts import ANSWERING, GENERAL, AnswerReader, Form, Said

from .packing import (
    STATES,
    PackedRequest,
    PackedRow,
    batches,
    branches,
    n_cells,
    n_outputs,
    n_sequences,
    owned,
    packs,
    rows,
    stems,
)

NO_ROOM = "free memory, or use --kv-type q8_0"


@dataclass(frozen=True)
class Scored:
    """What was read of one request: ln p of each token of each branch (nats)."""

    branches: tuple[tuple[float, ...], ...]


CLOSING = 16  # tokens that may end a thought for a model


@dataclass(frozen=True)
class Writing:
    """How answers are written: how long, whether a line ends them, and what they may think before.

    `opened` where the prompts begin a thought; `budget` bounds one, and `max_tokens` then counts what comes behind it.
    """

    max_tokens: int
    newline_ends: bool = False
    forms: tuple[Form, ...] = GENERAL
    opened: Form | None = None
    budget: int | None = None

    @property
    def n_cells(self) -> int:
        """Cells that an answer may need."""
        return self.max_tokens + (0 if self.budget is None or not self.max_tokens else self.budget + CLOSING)


@dataclass(frozen=True)
class Generated:
    """What was most likely after a stem, `n_thought` tokens of it a thought, and why it ends.

    `stop` is "eos", "length" or "newline".
    """

    said: Said
    n_thought: int
    stop: str


class ScoringEngine:
    """One context over a loaded model, made for the requests that come; `head` are the tokens they all begin with.

    Raises NativeError where llama.cpp refuses, DataError where the model's output is not finite.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        head: Sequence[int],
        requests: Sequence[PackedRequest],
        n_threads: int,
        *,
        together: bool = True,
    ) -> None:
        self.loaded, self.llama, self.head = loaded, loaded.llama, list(head)
        self.n_vocab = loaded.vocabulary.n_tokens
        self.requests = list(requests)
        self.pack: int = loaded.request["n_batch"]
        self._has_state = loaded.has_state
        n_own = min(n_sequences(self.pack), STATES) if self._has_state else n_sequences(self.pack)
        limits = n_own, n_cells(self.pack)
        self.packs = packs(self.requests, self.pack if together else 0, *limits)
        cells = self._cells()
        if loaded.n_ctx_short and cells > loaded.n_ctx_short:  # short texts need a context that is no longer
            self.packs = packs(self.requests, 0, n_own)
            cells = self._cells()
        self.n_ctx = -(-cells // CELL) * CELL
        self._rows = SharedRows([np.empty(self.n_vocab, np.float32) for _ in range(n_threads)])
        self._context = Context(
            loaded,
            n_ctx=self.n_ctx,
            n_batch=self.pack,
            n_threads=n_threads,
            advice=NO_ROOM,
            n_sequences=max(n_own, *(r.n_sequences for r in self.requests), 1) + 1,
            n_outputs_max=n_outputs(self.pack),
            kv_unified=True,  # a shared prefix is then a mark on its cells, not a copy
        )
        self._memory = self._context.memory
        self._used = 0  # sequences that hold the head
        self._evaluate_head()

    def _cells(self) -> int:
        return len(self.head) + max((sum(self.requests[i].n_cells for i in p) for p in self.packs), default=1)

    def close(self) -> None:
        """Free the context."""
        self._context.close()

    # --------------------------------------------------------------------------------------------- evaluation

    def _evaluate_head(self) -> None:
        for at in range(0, len(self.head), self.pack):
            part = self.head[at : at + self.pack]
            self._decode([PackedRow(t, at - len(self.head) + i, (0,), 0) for i, t in enumerate(part)])

    def _decode(self, part: Sequence[PackedRow]) -> None:
        n_head = len(self.head)
        self._context.decode(BatchRow(r.token, n_head + r.position, r.sequences, r.is_output) for r in part)

    def _begin(self, pack: Sequence[PackedRequest]) -> None:
        """Every sequence of the pack begins with the head, and nothing else is in memory."""
        n = sum(r.n_sequences for r in pack)
        for sequence in range(self._used + 1, n + 1):
            self.llama.llama_memory_seq_cp(self._memory, 0, sequence, -1, -1)
        self._used = max(self._used, n)

    def _end(self, pack: Sequence[PackedRequest]) -> None:
        """Forget the pack, so that the next one gets the same cells as if it were the first."""
        for sequence in range(1, sum(r.n_sequences for r in pack) + 1):
            # a state can't be wound back to the head's end
            self.llama.llama_memory_seq_rm(self._memory, sequence, -1 if self._has_state else len(self.head), -1)
        if self._has_state:
            self._used = 0

    def _phases(self, pack: Sequence[PackedRequest]) -> Iterator[list[PackedRow]]:
        """The rows of a pack in the order of evaluation; each list is asked for when those before are evaluated."""
        if not self._has_state:
            yield list(rows(pack))
            return
        yield list(stems(pack))
        for sequences in owned(pack):
            for other in sequences[1:]:
                self.llama.llama_memory_seq_rm(self._memory, other, -1, -1)
                self.llama.llama_memory_seq_cp(self._memory, sequences[0], other, -1, -1)
        yield list(branches(pack))

    def _batches(self, pack: Sequence[PackedRequest]) -> Iterator[Sequence[PackedRow]]:
        return (part for phase in self._phases(pack) for part in batches(phase, self.pack, n_outputs(self.pack)))

    # ------------------------------------------------------------------------------------------------ scoring

    def score(self, pack: range) -> list[Scored]:
        """ln p of every branch's tokens, for the requests of one pack."""
        requests = [self.requests[i] for i in pack]
        found = [[[math.nan] * len(b) for b in r.branches] for r in requests]
        self._begin(requests)
        for part in self._batches(requests):
            self._decode(part)
            read = [(i, row) for i, row in enumerate(part) if row.reads]
            logits = [self._context.logits(i) for i, _ in read]
            wanted = [[requests[row.request].branches[b][at] for b, at in row.reads] for _, row in read]
            values = self._context.named(self._rows.each, log_probabilities, logits, wanted)
            for (_, row), scores in zip(read, values, strict=True):
                for (b, at), value in zip(row.reads, scores, strict=True):
                    found[row.request][b][at] = value
        self._end(requests)
        return [Scored(tuple(tuple(b) for b in one)) for one in found]

    # --------------------------------------------------------------------------------------------- generation

    def generate(self, pack: range, writing: Writing, *, endless: bool = False) -> list[Generated]:
        """The most likely tokens after each stem of one pack, all of them a token further in every step.

        They end where the model ends them (unless `endless`), where `writing` says, or with the cells of the request.
        """
        requests = [self.requests[i] for i in pack]
        vocabulary, own = self.loaded.vocabulary, (writing.forms, writing.opened, writing.budget)
        readers = [AnswerReader(vocabulary, *own) for _ in requests]
        stops = ["length"] * len(requests)
        behind = [0] * len(requests)  # tokens behind each stem
        due: list[list[int]] = [[] for _ in requests]  # those that end a thought, and are no choice
        self._begin(requests)
        step: dict[int, int] = {}  # request: the token chosen for it
        for part in self._batches(requests):
            self._decode(part)
            step |= {row.request: self._choose(i) for i, row in enumerate(part) if row.last}
        while step:
            part = []
            for i, chosen in step.items():
                token, stop = (
                    (due[i].pop(0), "") if due[i] else (chosen, self._stop(readers[i], chosen, writing, endless))
                )
                behind[i] += 1
                if stop:
                    stops[i] = stop
                elif behind[i] < requests[i].reserve:
                    part.append(PackedRow(token, len(requests[i].stem) + behind[i] - 1, (i + 1,), i, last=True))
                    if readers[i].is_due and not due[i]:
                        due[i] = readers[i].close_by_budget()
            if part:
                self._decode(part)
            step = {row.request: self._choose(k) for k, row in enumerate(part)}
        self._end(requests)
        for reader, stop in zip(readers, stops, strict=True):
            reader.end(whole=stop == "eos")
        return [Generated(r.said(), r.n_thought, s) for r, s in zip(readers, stops, strict=True)]

    def _stop(self, reader: AnswerReader, token: int, writing: Writing, endless: bool) -> str:
        """Read a token that was chosen; why the answer ends with it, "" where it goes on."""
        if not endless and self.loaded.vocabulary.ends(token):
            return "eos"
        reader.read(token)
        if writing.newline_ends and reader.state == ANSWERING and "\n" in reader.answer.lstrip():
            return "newline"  # a thought has lines of its own
        return "length" if not endless and reader.is_full(writing.max_tokens) else ""

    def _choose(self, index: int) -> int:
        return int(self._context.finite_logits(index)[0].argmax())


def log_probabilities(scratch: F32, logits: F32, tokens: Sequence[int]) -> list[float]:
    """ln p of `tokens`, given `logits` (n_vocab,); `scratch` is overwritten. DataError where logits are not finite."""
    top = finite_max(logits)
    np.subtract(logits, np.float32(top), out=scratch)
    np.exp(scratch, out=scratch)
    log_sum = math.log(float(scratch.sum()))  # numpy adds pairwise: 1e-7 nats of float64's sum, in half the time
    return [float(logits[t]) - top - log_sum for t in tokens]


def shared_head(contexts: Sequence[Sequence[int]]) -> int:
    """How many tokens all contexts begin with, leaving at least one of each to be evaluated on its own."""
    if not contexts:
        return 0
    first, last = min(map(list, contexts)), max(map(list, contexts))  # in the order of lists, these two differ earliest
    return min(common_prefix(first, last), min(map(len, contexts)) - 1)


def split(context: Sequence[int], wholes: Sequence[Sequence[int]]) -> tuple[list[int], list[tuple[int, ...]]]:
    """(what all share, what each adds) for `wholes`: a context tokenized together with each of its continuations.

    Where a continuation merges with the context's end, that end is scored with all of them, so that every choice
    answers for the same stretch of text.
    """
    n = min(common_prefix(context, whole) for whole in wholes)
    if any(len(whole) <= n for whole in wholes):
        n = min(map(len, wholes)) - 1
    return list(context[:n]), [tuple(whole[n:]) for whole in wholes]
