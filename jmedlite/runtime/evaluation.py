"""Evaluation: tokens through a model, what its context holds, and how little of a prompt must be evaluated anew.

The same request gives the same logits, whatever came before it and whatever was cached: rounding depends on how tokens
are grouped into batches, so a prefix that may come from a cache is always evaluated as batches of its own.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jmedlite.base.errors import NativeError

from .added_tokens import common_prefix
from .context import BatchRow, Context
from .loading import LoadedModel
from .protocol import Stopped
from .shape import CELL, N_OUTPUTS, N_UBATCH
from .state_cache import key_of

MIN_PREFIX = 16  # tokens: fewer are evaluated as soon as looked up
MIN_CONTEXT = 512  # cells: the first context is not smaller, so that a few short questions share it
State = memoryview  # of bytes: llama.cpp's own form of what a sequence holds


@dataclass(frozen=True)
class ContextSettings:
    """What a context is made with; `facts` is all else that an evaluated state depends on, for its key on disk."""

    n_ctx: int  # never more cells than this
    full: bool  # all of them at once, not as they are needed
    n_threads: int
    facts: dict[str, Any]


class Evaluator:
    """One context over a loaded model, remade as it must grow; `stop` is set to end an evaluation early."""

    def __init__(self, loaded: LoadedModel, settings: ContextSettings, stop: threading.Event) -> None:
        self.loaded, self.llama, self.settings, self.cache = loaded, loaded.llama, settings, loaded.cache
        self.tokens: list[int] = []  # what the cells hold, in order
        self.n_ctx = 0
        self._context: Context | None = None
        self._prefix: tuple[str, State] | None = None  # key and state of the prefix used last
        self._abort = self.llama.ggml_abort_callback(lambda _: stop.is_set())
        if settings.full:
            self.reserve(settings.n_ctx)

    # ------------------------------------------------------------------------------------------------ context

    @property
    def _held(self) -> Context:
        assert self._context is not None, "reserve comes first"
        return self._context

    def reserve(self, n_tokens: int) -> None:
        """Make room for `n_tokens` (at most the settings' n_ctx), keeping what is evaluated. Raises NativeError.

        A longrope model gets a context for short texts as long as that does; what was evaluated in one of the other
        kind is forgotten.
        """
        short = self.loaded.n_ctx_short
        fits = n_tokens <= self.n_ctx and not (short and n_tokens <= short < self.n_ctx)
        if self._context and fits:
            return
        most = min(short, self.settings.n_ctx) if short and n_tokens <= short else self.settings.n_ctx
        n = max(min(MIN_CONTEXT, most), n_tokens, min(2 * self.n_ctx, most))
        if self.tokens and 4 * n > most:
            n = most  # what is kept meanwhile is never more than a quarter, which the plan's margin bears
        crosses = bool(short and self._context and (self.n_ctx <= short) != (n <= short))
        tokens = self.tokens
        kept = self._state() if tokens and not crosses else None
        self.close()
        self._context = Context(
            self.loaded,
            n_ctx=-(-n // CELL) * CELL,
            n_batch=N_UBATCH,
            n_threads=self.settings.n_threads,
            advice="try a smaller --ctx",
            n_outputs_max=N_OUTPUTS,  # or the buffer has room for a batch's worth of whole vocabularies
        )
        self.n_ctx = self._context.n_ctx
        if kept and self._restore(kept):
            self.tokens = tokens

    def close(self) -> None:
        """Free the context."""
        if self._context:
            self._context.close()
        self._context, self.tokens, self.n_ctx = None, [], 0

    # ------------------------------------------------------------------------------------------------- memory

    def _clear(self) -> None:
        self._held.clear()
        self.tokens = []

    def keep(self, n: int) -> None:
        """Forget all but the first `n` tokens; all of them where this kind of memory can't forget a part."""
        if n >= len(self.tokens):
            return
        memory = self._held.memory
        # a sliding window has lost what stood before it, so it can't be wound back
        whole = self.llama.llama_memory_seq_pos_min(memory, 0) <= 0
        if n and whole and self.llama.llama_memory_seq_rm(memory, 0, n, -1):
            del self.tokens[n:]
        else:
            self._clear()

    def _state(self) -> State:
        size = self.llama.llama_state_seq_get_size(self._held.pointer, 0)
        state = bytearray(size)  # no copies: it can be as large as the cache of keys and values
        n = self.llama.llama_state_seq_get_data(self._held.pointer, (ctypes.c_uint8 * size).from_buffer(state), size, 0)
        return memoryview(state)[:n]

    def _restore(self, state: State) -> bool:
        """Put a state into empty memory; the caller says which tokens it holds."""
        self._clear()
        kind = ctypes.c_uint8 * len(state)
        buffer = kind.from_buffer_copy(state) if state.readonly else kind.from_buffer(state)
        if state and self.llama.llama_state_seq_set_data(self._held.pointer, buffer, len(state), 0) == len(state):
            return True
        self._clear()
        return False

    # --------------------------------------------------------------------------------------------- evaluation

    def prefill(self, prompt: Sequence[int], prefix: Sequence[int], *, continued: bool = False) -> int:
        """Evaluate all of `prompt`, so that its last token's logits are there; returns how many tokens were not new.

        `prefix` are tokens that begin this and later prompts and may be kept on disk (the prompt may leave them early).
        With `continued`, whatever the memory shares with the prompt is used as it is. Raises Stopped, NativeError.
        """
        if not prompt:
            self.keep(0)
            return 0
        n_shared = min(common_prefix(self.tokens, prompt), len(prompt) - 1) if continued else 0
        n_fixed = min(common_prefix(prefix, prompt), len(prompt) - 1) if len(prefix) >= MIN_PREFIX else 0
        if n_shared > n_fixed:
            self.keep(n_shared)
            n_old = len(self.tokens)
        elif n_fixed:
            cached = self._begin_with(list(prefix))
            self.keep(n_fixed)
            n_old = len(self.tokens) if cached else 0
        else:
            n_old = 0
            self._clear()
        self.evaluate(prompt[len(self.tokens) :])
        return n_old

    def _begin_with(self, prefix: list[int]) -> bool:
        """Make the memory hold just `prefix`, from a cache (True) or by evaluating it (False)."""
        short = self.loaded.n_ctx_short
        facts = {**self.settings.facts, "long": self.n_ctx > short} if short else self.settings.facts
        key = key_of({**facts, "tokens": prefix})
        state = self._prefix[1] if self._prefix and self._prefix[0] == key else None
        if state is None and self.cache:
            state = self.cache.load(key)
        if state is not None and self._restore(state):
            self.tokens, self._prefix = prefix, (key, state)
            return True
        self._clear()
        self.evaluate(prefix)
        state = self._state()
        self._prefix = (key, state)
        if self.cache:
            self.cache.save(key, state)
        return False

    def evaluate(self, tokens: Sequence[int]) -> None:
        """Evaluate tokens after those in memory; the logits of the last one are kept. Raises Stopped, NativeError."""
        with self._interruptible():
            for at in range(0, len(tokens), N_UBATCH):
                self._decode(tokens[at : at + N_UBATCH])

    def step(self, token: int) -> None:
        """Evaluate one token: `evaluate` without its precautions; all before it again where the context must change."""
        held = self.tokens
        self.reserve(len(held) + 1)
        if not self.tokens:
            self.evaluate(held)
        self._decode([token])

    def _decode(self, tokens: Sequence[int], *, all_outputs: bool = False) -> None:
        """One batch after what is in memory; the logits of its last token are kept, or those of all."""
        first, last = len(self.tokens), len(tokens) - 1
        try:
            self._held.decode(BatchRow(t, first + i, (0,), all_outputs or i == last) for i, t in enumerate(tokens))
        except (Stopped, NativeError):
            self._clear()  # parts of the batch may have been evaluated
            raise
        self.tokens += tokens

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        # asked before every node of the graph: too often for single tokens, which end soon enough
        self._held.on_abort(self._abort)
        try:
            yield
        finally:
            self._held.on_abort(None)

    def logits(self, index: int = -1) -> NDArray[np.float32]:
        """Logits (n_vocab,) at an output of the last batch; a view that the next evaluation overwrites.

        Raises DataError where they are not finite: the file is damaged then.
        """
        return self._held.finite_logits(index)[0]

    def sample(self, chain: Any) -> int:
        """The token that llama.cpp's sampler chain takes after what is evaluated."""
        return int(self.llama.llama_sampler_sample(chain, self._held.pointer, -1))

    def log_probabilities(self, tokens: Sequence[int]) -> list[tuple[float, bool]]:
        """(ln p of the token given all before it, whether it was the most likely) for each; evaluates all but the last.

        The logits for the first one must be there already.
        """
        found = [log_probability(self.logits(), tokens[0])]
        for at in range(0, len(tokens) - 1, N_OUTPUTS):
            part = tokens[at : min(at + N_OUTPUTS, len(tokens) - 1)]
            self._decode(part, all_outputs=True)
            found += [log_probability(self.logits(i), tokens[at + 1 + i]) for i in range(len(part))]
        return found

    # ------------------------------------------------------------------------------------------ conversations

    def save_conversation(self, name: str) -> bool:
        """Keep all that is evaluated on disk under `name`; only where the person asked for it."""
        if not self.cache or not self.tokens:
            return False
        head = struct.pack(f"<Q{len(self.tokens)}i", len(self.tokens), *self.tokens)
        return self.cache.save(key_of({**self.settings.facts, "conversation": name}), head, self._state())

    def load_conversation(self, name: str) -> int:
        """Put a conversation kept under `name` back into memory; returns how many tokens it had, 0 for none."""
        raw = self.cache.load(key_of({**self.settings.facts, "conversation": name})) if self.cache else None
        if raw is None:
            return 0
        (n,) = struct.unpack_from("<Q", raw)
        if n > self.settings.n_ctx:
            return 0
        self.reserve(n)
        if self._restore(raw[8 + 4 * n :]):
            self.tokens = list(struct.unpack_from(f"<{n}i", raw, 8))
        return len(self.tokens)


def log_probability(logits: NDArray[np.float32], token: int) -> tuple[float, bool]:
    """(ln p of a token under logits (n_vocab,), whether it is the most likely one)."""
    top = int(logits.argmax())
    shifted = logits.astype(np.float64) - float(logits[top])
    return float(shifted[token] - np.log(np.exp(shifted).sum())), top == token
