"""Lanes: many answers at once in one context, each a sequence of its own, the next tokens of all in one batch.

Every answer runs in a thread of its own, by the same code as one that is alone (worker.py): a `Lane` is to it what an
`Evaluator` is there. What the lanes want evaluated is gathered by the thread that decodes, which gives each of them
logits of its own. It waits for those who still choose their next token, since one batch for all is quicker than two,
but not for long: a grammar may take its time.

How tokens are grouped into batches decides their rounding, so an answer given beside others may differ in its last bits
from the same one alone.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jmedlite.base.errors import JmedliteError, as_expected

from .added_tokens import common_prefix
from .context import BatchRow, Context, finite_max
from .evaluation import ContextSettings, log_probability
from .loading import LoadedModel
from .offload import n_sequences
from .protocol import Stopped
from .shape import CELL, N_OUTPUTS, N_UBATCH

STEP_SECONDS = 0.5  # the longest that those who write wait for somebody's prompt, in one batch
MIN_SHARE = 32  # rows of prompts in a batch beside those who write, however slow the machine
PATIENCE = 2.0  # seconds: the longest batch, which nothing can end early
CHOOSING_SECONDS = 0.05  # or as long as a batch takes, if that is longer: the wait for those who choose
WORTH_SHARING = 16  # tokens: fewer are evaluated as soon as shared
SLACK = 64  # cells that an answer may take beyond what it asked for: the tags that end a thought


CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data


class Lane:
    """One sequence of the shared context: what `AnswerEngine` uses of an `Evaluator`. Made by `Lanes.begin`."""

    def __init__(self, lanes: Lanes, stop: threading.Event) -> None:
        self.lanes, self.settings, self._stop = lanes, lanes.settings, stop
        self.sequence = -1  # none yet: which one is best depends on the prompt
        self.tokens: list[int] = []
        self.reserved = 0
        self.wanted: list[int] = []  # tokens that wait for a batch
        self.all_outputs = self.in_batch = False
        self.outputs: list[NDArray[np.float32]] = []  # logits (n_vocab,) at the outputs of its last batch
        self.fault: JmedliteError | None = None
        self.scored_at = 0  # the last batch in which it had all of its logits
        self.evaluated = threading.Condition(lanes.lock)

    @property
    def is_ready(self) -> bool:
        """Whether it waits for a batch. A single token ends soon enough, whoever no longer wants it."""
        return bool(self.wanted) and not (len(self.wanted) > 1 and self._stop.is_set())

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
            self.lanes.cut(self, n)

    def evaluate(self, tokens: Sequence[int], *, all_outputs: bool = False) -> None:
        """Evaluate tokens after those that are there, beside the other lanes'. Raises Stopped, NativeError.

        The logits of the last one are kept; with `all_outputs` those of all, which may be N_OUTPUTS at most.
        """
        self.lanes.evaluate(self, tokens, all_outputs, self._stop)

    def step(self, token: int) -> None:
        """Evaluate one token."""
        self.evaluate([token])

    def logits(self, index: int = -1) -> NDArray[np.float32]:
        """Logits (n_vocab,) at an output of its last batch; raises DataError where they are not finite."""
        self.lanes.check(self.outputs[index])
        return self.outputs[index]

    def sample(self, chain: Any) -> int:
        """The token that llama.cpp's sampler chain takes from the last logits, as llama_sampler_sample does."""
        llama = self.lanes.loaded.llama
        candidates = self.lanes.candidates.copy()
        candidates["logit"] = self.outputs[-1]
        pointer = candidates.ctypes.data_as(ctypes.POINTER(llama.llama_token_data))
        found = llama.llama_token_data_array(data=pointer, size=len(candidates), selected=-1, sorted=False)
        llama.llama_sampler_apply(chain, ctypes.byref(found))
        token = int(found.data[found.selected].id)
        llama.llama_sampler_accept(chain, token)
        return token

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
        n_kept = n if loaded.has_state else n_sequences(n)  # a state takes memory
        self._context = Context(
            loaded,
            n_ctx=-(-settings.n_ctx // CELL) * CELL,
            n_batch=N_UBATCH,
            n_threads=settings.n_threads,
            advice="try a smaller --ctx",
            n_sequences=n_kept,
            n_outputs_max=n_kept + N_OUTPUTS,
            kv_unified=True,  # one pool of cells for all
        )
        self.candidates = np.zeros(self._context.n_vocab, CANDIDATE)
        self.candidates["id"] = np.arange(self._context.n_vocab)
        self.lock = threading.Lock()  # of all that follows, and of the lanes' own; taken before `_native`
        self._native = threading.Lock()  # whoever uses the context
        self._work, self._room = threading.Condition(self.lock), threading.Condition(self.lock)
        self._idle = {sequence: list[int]() for sequence in range(n_kept)}  # tokens, the least recently used first
        self._taken: dict[int, Lane] = {}
        self._waiting: deque[Lane] = deque()
        self._admitted: list[Lane] = []
        self._choosing: set[Lane] = set()
        self._is_resting = False  # the thread that decodes has nothing to do
        self._rate = 0.0  # tokens of prompts per second, in the last batch that had many
        self._seconds = 0.0  # of the last batch
        self._n_batches = 0

    # ------------------------------------------------------------------------------------------------- lanes

    def begin(self, stop: threading.Event) -> Lane:
        """A lane for one answer, which `end` takes back."""
        return Lane(self, stop)

    def end(self, lane: Lane) -> None:
        """The answer is over; its tokens stay where they are until their cells are needed."""
        with self.lock:
            self._chosen(lane)
            lane.wanted.clear()
            if lane in self._waiting:
                self._waiting.remove(lane)
            if lane in self._admitted:
                self._admitted.remove(lane)
            if lane.sequence >= 0:
                del self._taken[lane.sequence]
                self._idle[lane.sequence] = lane.tokens  # the most recently used comes last
                lane.sequence = -1
            self._room.notify_all()

    def wait_for_room(self, lane: Lane, stop: threading.Event) -> None:
        """Until it is this lane's turn, and its cells and a sequence are free. Raises Stopped."""
        with self.lock:
            self._waiting.append(lane)
            while not (self._waiting[0] is lane and self._has_room(lane)):
                if stop.is_set():
                    self._waiting.remove(lane)
                    self._room.notify_all()
                    raise Stopped
                self._room.wait(0.1)
            self._waiting.popleft()
            self._admitted.append(lane)
            self._room.notify_all()

    def _has_room(self, lane: Lane) -> bool:
        reserved = sum(other.reserved for other in self._admitted)
        return len(self._admitted) < self.n and reserved + lane.reserved <= self.settings.n_ctx

    def seat(self, lane: Lane, prompt: Sequence[int]) -> None:
        """Give a lane a free sequence that holds its prompt's beginning: the one that ends so, or a copy of one.

        The copy takes the place of nothing, or of what nobody used for longest.
        """
        with self.lock, self._native:
            held = {**self._idle, **{s: other.tokens for s, other in self._taken.items()}}
            shared = {s: common_prefix(tokens, prompt) for s, tokens in held.items()}
            best = max(shared, key=lambda s: shared[s])
            n = shared[best]
            goes_on = best in self._idle and len(held[best]) - n < WORTH_SHARING
            own = best if goes_on else min(self._idle, key=lambda s: bool(self._idle[s]))  # the first of the empty ones
            lane.sequence, lane.tokens = own, self._idle.pop(own)
            self._taken[own] = lane
            if own != best and n >= max(WORTH_SHARING, shared[own] + 1) and self._is_whole(best):
                self._forget(own)
                self.loaded.llama.llama_memory_seq_cp(self._context.memory, best, own, 0, n)
                lane.tokens = held[best][:n]
            else:
                self._cut(lane, shared[own])
            self._make_room()

    def _is_whole(self, sequence: int) -> bool:
        """Whether a sequence's beginning is there still: a window or a state has none."""
        return int(self.loaded.llama.llama_memory_seq_pos_min(self._context.memory, sequence)) == 0

    def _make_room(self) -> None:
        """Forget what ended longest ago, until the cells that are promised are there."""
        promised = sum(max(lane.reserved, len(lane.tokens)) for lane in self._admitted)
        for sequence in list(self._idle):
            if promised + sum(map(len, self._idle.values())) <= self.settings.n_ctx:
                return
            self._forget(sequence)
            self._idle[sequence] = []

    def cut(self, lane: Lane, n: int) -> None:
        """Let a lane hold no more than its first `n` tokens; nothing where its memory can't forget a part."""
        with self.lock, self._native:
            self._cut(lane, n)

    def _cut(self, lane: Lane, n: int) -> None:
        if n >= len(lane.tokens):
            return
        rm, memory = self.loaded.llama.llama_memory_seq_rm, self._context.memory
        if n and self._is_whole(lane.sequence) and rm(memory, lane.sequence, n, -1):
            lane.tokens = lane.tokens[:n]
        else:
            self._forget(lane.sequence)
            lane.tokens = []

    def _forget(self, sequence: int) -> None:
        self.loaded.llama.llama_memory_seq_rm(self._context.memory, sequence, -1, -1)

    def check(self, logits: NDArray[np.float32]) -> None:
        """Raise DataError where they are not finite."""
        self._context.named(finite_max, logits)

    # ----------------------------------------------------------------------------------------------- batches

    def evaluate(self, lane: Lane, tokens: Sequence[int], all_outputs: bool, stop: threading.Event) -> None:
        """Have tokens evaluated, and wait for it; the lane then chooses, until it wants something or ends."""
        if not tokens:
            return
        with self.lock:
            lane.wanted, lane.all_outputs = list(tokens), all_outputs
            self._chosen(lane)
            while lane.wanted and lane.fault is None:
                if not lane.is_ready and not lane.in_batch:
                    lane.wanted = []
                    raise Stopped
                lane.evaluated.wait(0.1 if len(lane.wanted) > 1 else None)
            if lane.fault is not None:
                raise lane.fault

    def _chosen(self, lane: Lane) -> None:
        """A lane chooses no longer; the thread that decodes hears of the last one, and of any where it rests."""
        self._choosing.discard(lane)
        if self._is_resting or not self._choosing:
            self._work.notify()

    def decode_forever(self) -> None:
        """Decode what the lanes want; returns never. A fault is that of all who were in its batch."""
        while True:
            with self.lock:
                self._wait_for_work()
                shares = self._share()
                self._n_batches += 1
            if not shares:  # stopped meanwhile
                continue
            began = time.monotonic()
            fault: JmedliteError | None = None
            with self._native:
                try:
                    self._context.decode(self._rows(shares))
                    self._hand_out(shares)
                except Exception as e:
                    fault = as_expected(e)
                    for lane in shares:  # parts of the batch may have been evaluated
                        self._forget(lane.sequence)
            self._seconds = time.monotonic() - began
            with self.lock:
                self._settle(shares, fault)

    def _wait_for_work(self) -> None:
        """Until somebody wants something, and those who choose have chosen, or taken too long for it."""
        self._is_resting = True
        while not any(lane.is_ready for lane in self._taken.values()):
            self._work.wait()
        self._is_resting = False
        until = time.monotonic() + max(CHOOSING_SECONDS, self._seconds)
        while self._choosing and (left := until - time.monotonic()) > 0:
            self._work.wait(left)

    def _share(self) -> dict[Lane, int]:
        """How many tokens of which lane this batch has: one of each, and equal shares of what is left for prompts."""
        wanting = [lane for lane in self._taken.values() if lane.is_ready]
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

    def _hand_out(self, shares: Mapping[Lane, int]) -> None:
        """Give whoever has all that it wanted its logits, before the next batch takes their place."""
        after = 0
        for lane, n in shares.items():
            after += n
            if n == len(lane.wanted):
                rows = range(after - n, after) if lane.all_outputs else [after - 1]
                lane.outputs = [self._context.logits(row).copy() for row in rows]

    def _settle(self, shares: Mapping[Lane, int], fault: JmedliteError | None) -> None:
        """Note what the batch has done: its tokens are there, and who has all that it wanted may choose."""
        n_tokens = sum(shares.values())
        if n_tokens >= MIN_SHARE:
            self._rate = n_tokens / max(1e-6, self._seconds)
        for lane, n in shares.items():
            lane.in_batch = False
            if fault is not None:
                lane.fault, lane.wanted, lane.tokens = fault, [], []
            else:
                lane.tokens, lane.wanted = lane.tokens + lane.wanted[:n], lane.wanted[n:]
            if not lane.wanted:
                self._choosing.add(lane)
                lane.evaluated.notify()
