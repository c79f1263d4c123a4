"""Lanes: many answers at once in one context, each a sequence of its own, the next tokens of all in one batch.

Every answer runs in a thread of its own, by the same code as one that is alone (worker.py): a `Lane` is to it what an
`Evaluator` is there. What the lanes want evaluated is gathered by the thread that decodes. It waits until no lane is
still choosing from the logits of the batch before, which the next one would overwrite.

How tokens are grouped into batches decides their rounding, so an answer given beside others may differ in its last bits
from the same one alone.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jmedlite.base.errors import JmedliteError, as_expected

from .added_tokens import common_prefix
from .context import BatchRow, Context
from .evaluation import ContextSettings, log_probability
from .loading import LoadedModel
from .offload import CELL, N_OUTPUTS, N_UBATCH
from .protocol import Stopped

STEP_SECONDS = 0.5  # the longest that those who write wait for somebody's prompt, in one batch
MIN_SHARE = 32  # rows of prompts in a batch beside those who write, however slow the machine
PATIENCE = 2.0  # seconds: the longest batch, which nothing can end early
WORTH_SHARING = 16  # tokens: fewer are evaluated as soon as shared
SLACK = 64  # cells that an answer may take beyond what it asked for: the tags that end a thought


class Lane:
    """One sequence of the shared context: what `AnswerEngine` uses of an `Evaluator`. Made by `Lanes.begin`."""

    def __init__(self, lanes: Lanes, stop: threading.Event) -> None:
        self.lanes, self.settings, self._stop = lanes, lanes.settings, stop
        self.sequence = -1  # none yet: which one is best depends on the prompt
        self.tokens: list[int] = []
        self.reserved = 0
        self.wanted: list[int] = []  # tokens that wait for a batch
        self.all_outputs = self.in_batch = False
        self.rows: list[int] = []  # of the last batch, whose logits are this lane's
        self.fault: JmedliteError | None = None
        self.scored_at = 0  # the last batch in which it had all of its logits

    def reserve(self, n_tokens: int) -> None:
        """Wait for cells for `n_tokens` (at most the settings' n_ctx), in the order in which lanes ask."""
        if not self.reserved:
            self.reserved = min(n_tokens + SLACK, self.settings.n_ctx)
            self.lanes.wait_for_room(self, self._stop)

    def prefill(self, prompt: Sequence[int], prefix: Sequence[int], *, continued: bool = False) -> int:
        """Evaluate all of `prompt`; returns how many of its tokens some sequence held already."""
        if self.sequence < 0:
            self.lanes.seat(self, prompt)
        self.keep(min(common_prefix(self.tokens, prompt), len(prompt) - 1))
        n_old = len(self.tokens)
        self.evaluate(prompt[n_old:])
        return n_old

    def keep(self, n: int) -> None:
        """Forget all but the first `n` tokens; all of them where this kind of memory can't forget a part."""
        if n < len(self.tokens):
            self.tokens = self.lanes.cut(self.sequence, self.tokens, n)

    def evaluate(self, tokens: Sequence[int], *, all_outputs: bool = False) -> None:
        """Evaluate tokens after those that are there, beside the other lanes'. Raises Stopped, NativeError.

        The logits of the last one are kept; with `all_outputs` those of all, which may be N_OUTPUTS at most.
        """
        self.lanes.evaluate(self, tokens, all_outputs, self._stop)

    def step(self, token: int) -> None:
        """Evaluate one token."""
        self.evaluate([token])

    def logits(self, index: int = -1) -> NDArray[np.float32]:
        """Logits (n_vocab,) at an output of the last batch; a view that is good until the next evaluation."""
        return self.lanes.logits(self.rows[index])

    def sample(self, chain: Any) -> int:
        """The token that llama.cpp's sampler chain takes after what is evaluated."""
        return self.lanes.sample(chain, self.rows[-1])

    def log_probabilities(self, tokens: Sequence[int]) -> list[tuple[float, bool]]:
        """As `Evaluator.log_probabilities`."""
        found = [log_probability(self.logits(), tokens[0])]
        for at in range(0, len(tokens) - 1, N_OUTPUTS):
            part = tokens[at : min(at + N_OUTPUTS, len(tokens) - 1)]
            self.evaluate(part, all_outputs=True)
            found += [log_probability(self.logits(i), tokens[at + 1 + i]) for i in range(len(part))]
        return found


class Lanes:
    """A context for `n` sequences over a loaded model; `decode_forever` is the life of the thread that decodes.

    All sequences share the cells: an answer begins once as many are free as it may need, so that none has to be given
    up half-way. Sequences of answers that have ended are kept for as long as nobody needs their cells, since the next
    question of a conversation begins as the one before.
    """

    def __init__(self, loaded: LoadedModel, settings: ContextSettings, n: int) -> None:
        self.loaded, self.settings, self.n = loaded, settings, n
        self._context = Context(
            loaded,
            n_ctx=-(-settings.n_ctx // CELL) * CELL,
            n_batch=N_UBATCH,
            n_threads=settings.n_threads,
            advice="try a smaller --ctx",
            n_sequences=n,
            n_outputs_max=n + N_OUTPUTS,
            kv_unified=True,  # one pool of cells for all
        )
        self._lock = threading.Condition()
        self._native = threading.Lock()  # whoever uses the context outside a batch
        self._idle = {sequence: list[int]() for sequence in range(n)}  # tokens, the least recently used first
        self._taken: dict[int, Lane] = {}
        self._waiting: deque[Lane] = deque()
        self._admitted: list[Lane] = []
        self._choosing: set[Lane] = set()
        self._rate = 0.0  # tokens of prompts per second, in the last batch that had many
        self._n_batches = 0

    # ------------------------------------------------------------------------------------------------- lanes

    def begin(self, stop: threading.Event) -> Lane:
        """A lane for one answer, which `end` takes back."""
        return Lane(self, stop)

    def end(self, lane: Lane) -> None:
        """The answer is over; its tokens stay where they are until their cells are needed."""
        with self._lock:
            self._choosing.discard(lane)
            lane.wanted.clear()
            if lane in self._waiting:
                self._waiting.remove(lane)
            if lane in self._admitted:
                self._admitted.remove(lane)
            if lane.sequence >= 0:
                del self._taken[lane.sequence]
                self._idle[lane.sequence] = lane.tokens  # the most recently used comes last
                lane.sequence = -1
            self._lock.notify_all()

    def wait_for_room(self, lane: Lane, stop: threading.Event) -> None:
        """Until it is this lane's turn, and its cells and a sequence are free. Raises Stopped."""
        with self._lock:
            self._waiting.append(lane)
            while not (self._waiting[0] is lane and self._has_room(lane)):
                if stop.is_set():
                    self._waiting.remove(lane)
                    self._lock.notify_all()
                    raise Stopped
                self._lock.wait(0.1)
            self._waiting.popleft()
            self._admitted.append(lane)
            self._lock.notify_all()

    def _has_room(self, lane: Lane) -> bool:
        reserved = sum(other.reserved for other in self._admitted)
        return len(self._admitted) < self.n and reserved + lane.reserved <= self.settings.n_ctx

    def seat(self, lane: Lane, prompt: Sequence[int]) -> None:
        """Give a lane the free sequence that holds most of its prompt's beginning, or a copy of another's beginning."""
        with self._lock, self._native:
            shared = {s: common_prefix(tokens, prompt) for s, tokens in self._idle.items()}
            # one that holds as much as others is the one that nobody used for longest, or that holds least else
            own = max(shared, key=lambda s: (shared[s], not self._idle[s]))
            lane.sequence, lane.tokens = own, self._idle.pop(own)
            lane.tokens = self._cut(own, lane.tokens, shared[own])
            self._taken[own] = lane
            held = {**self._idle, **{s: other.tokens for s, other in self._taken.items() if s != own}}
            best = max(held, key=lambda s: common_prefix(held[s], prompt), default=own)
            n = common_prefix(held[best], prompt) if best != own else 0
            if n >= max(WORTH_SHARING, len(lane.tokens) + 1) and self._copy(best, own, n):
                lane.tokens = held[best][:n]
            self._make_room()

    def _make_room(self) -> None:
        """Forget what ended longest ago, until the cells that are promised are there."""
        promised = sum(max(lane.reserved, len(lane.tokens)) for lane in self._admitted)
        for sequence in list(self._idle):
            if promised + sum(map(len, self._idle.values())) <= self.settings.n_ctx:
                return
            self._idle[sequence] = self._cut(sequence, self._idle[sequence], 0)

    def _copy(self, source: int, target: int, n: int) -> bool:
        """Let a sequence begin with another's first `n` tokens, where its memory is one that can be shared so."""
        memory, llama = self._context.memory, self.loaded.llama
        if llama.llama_memory_seq_pos_min(memory, source) != 0:  # a window or a state, which has no beginning any more
            return False
        llama.llama_memory_seq_rm(memory, target, -1, -1)
        llama.llama_memory_seq_cp(memory, source, target, 0, n)
        return True

    def cut(self, sequence: int, tokens: list[int], n: int) -> list[int]:
        """What a sequence of `tokens` holds once all but the first `n` were to be forgotten."""
        with self._native:
            return self._cut(sequence, tokens, n)

    def _cut(self, sequence: int, tokens: list[int], n: int) -> list[int]:
        if n >= len(tokens):
            return tokens
        memory, llama = self._context.memory, self.loaded.llama
        whole = llama.llama_memory_seq_pos_min(memory, sequence) <= 0
        if n and whole and llama.llama_memory_seq_rm(memory, sequence, n, -1):
            return tokens[:n]
        llama.llama_memory_seq_rm(memory, sequence, -1, -1)
        return []

    def logits(self, row: int) -> NDArray[np.float32]:
        with self._native:
            return self._context.finite_logits(row)[0]

    def sample(self, chain: Any, row: int) -> int:
        with self._native:
            return int(self.loaded.llama.llama_sampler_sample(chain, self._context.pointer, row))

    # ----------------------------------------------------------------------------------------------- batches

    def evaluate(self, lane: Lane, tokens: Sequence[int], all_outputs: bool, stop: threading.Event) -> None:
        """Have tokens evaluated, and wait for it; the lane then chooses, until it wants something or ends."""
        if not tokens:
            return
        with self._lock:
            lane.wanted, lane.all_outputs, lane.rows = list(tokens), all_outputs, []
            self._choosing.discard(lane)
            self._lock.notify_all()
            while lane.wanted and lane.fault is None:
                if stop.is_set() and len(lane.wanted) > 1 and not lane.in_batch:  # a single token ends soon enough
                    lane.wanted = []
                    raise Stopped
                self._lock.wait(0.1 if len(lane.wanted) > 1 else None)
            if lane.fault is not None:
                raise lane.fault

    def decode_forever(self) -> None:
        """Decode what the lanes want; returns never. A fault is every waiting lane's."""
        while True:
            with self._lock:
                while self._choosing or not any(lane.wanted for lane in self._taken.values()):
                    self._lock.wait()
                shares = self._share()
                self._n_batches += 1
            began = time.monotonic()
            fault: JmedliteError | None = None
            try:
                with self._native:
                    self._context.decode(self._rows(shares))
            except Exception as e:
                fault = as_expected(e)
            with self._lock:
                self._settle(shares, fault)
                n = sum(shares.values())
                if n >= MIN_SHARE:
                    self._rate = n / max(1e-6, time.monotonic() - began)
                self._lock.notify_all()

    def _share(self) -> dict[Lane, int]:
        """How many tokens of which lane this batch has: one of each, and equal shares of what is left for prompts."""
        wanting = [lane for lane in self._taken.values() if lane.wanted]
        scoring = [lane for lane in wanting if lane.all_outputs]
        shares = dict.fromkeys((lane for lane in wanting if not lane.all_outputs), 1)
        hungry = [lane for lane in shares if len(lane.wanted) > 1]
        seconds = PATIENCE if len(hungry) == len(wanting) else STEP_SECONDS
        room = min(N_UBATCH, max(MIN_SHARE, int(self._rate * seconds)) if self._rate else N_UBATCH) - len(shares)
        if scoring:  # one at a time, and whole: there is room for the logits of one
            lane = min(scoring, key=lambda lane: lane.scored_at)
            lane.scored_at = self._n_batches
            shares[lane] = len(lane.wanted)
            room -= len(lane.wanted)
        while room > 0 and hungry:
            each = max(1, room // len(hungry))
            for lane in hungry:
                n = min(each, len(lane.wanted) - shares[lane], room)
                shares[lane] += n
                room -= n
            hungry = [lane for lane in hungry if shares[lane] < len(lane.wanted)]
        for lane in shares:
            lane.in_batch = True
        return shares

    @staticmethod
    def _rows(shares: Mapping[Lane, int]) -> list[BatchRow]:
        rows = []
        for lane, n in shares.items():
            first, last = len(lane.tokens), len(lane.wanted) - 1
            for i in range(n):
                is_output = lane.all_outputs or i == last
                rows.append(BatchRow(lane.wanted[i], first + i, (lane.sequence,), is_output))
        return rows

    def _settle(self, shares: Mapping[Lane, int], fault: JmedliteError | None) -> None:
        """Note what the batch has done: its tokens are there, and who has all that it wanted may choose."""
        row = 0
        for lane, n in shares.items():
            lane.in_batch = False
            if fault is not None:  # parts of the batch may have been evaluated
                lane.fault, lane.wanted = fault, []
                self.loaded.llama.llama_memory_seq_rm(self._context.memory, lane.sequence, -1, -1)
                lane.tokens = []
                continue
            lane.tokens, lane.wanted = lane.tokens + lane.wanted[:n], lane.wanted[n:]
            row += n
            if not lane.wanted:
                lane.rows = list(range(row - n, row)) if lane.all_outputs else [row - 1]
                self._choosing.add(lane)
