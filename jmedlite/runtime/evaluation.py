"""Tokens through the model: one llama.cpp context, what it holds, and how little of a prompt must be evaluated anew.

The same request gives the same logits, whatever came before it and whatever was cached: rounding depends on how tokens
are grouped into batches, so a prefix that may come from a cache is always evaluated as batches of its own.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jmedlite.base.errors import DataError, NativeError

from .loading import FLASH_ATTENTION
from .offload import CELL, N_OUTPUTS, N_UBATCH
from .state_cache import StateCache, key_of
from .vocabulary import common_prefix

MIN_PREFIX = 16  # tokens: fewer are evaluated as soon as looked up
MIN_CONTEXT = 512  # cells: the first context is not smaller, so that a few short questions share it
ABORTED = 2  # what llama_decode returns then
State = memoryview  # of bytes: llama.cpp's own form of what a sequence holds


class Stopped(Exception):
    """The person wants no more of this answer."""


@dataclass(frozen=True)
class Settings:
    """What a context is made with; `facts` is all else that an evaluated state depends on, for its key on disk."""

    name: str  # of the file, for messages
    n_ctx: int  # never more cells than this
    full: bool  # all of them at once, not as they are needed
    kv_type: int
    flash_attn: str
    n_threads: int
    adapters: Sequence[tuple[Any, float]]
    facts: dict[str, Any]


class Evaluator:
    """One context over `model`. `reason()` is llama.cpp's own last word; `stop` is set to end an evaluation early."""

    def __init__(
        self,
        llama: Any,
        model: Any,
        settings: Settings,
        cache: StateCache | None,
        reason: Callable[[], str],
        stop: threading.Event,
    ) -> None:
        self.llama, self.model, self.settings, self.cache = llama, model, settings, cache
        self.reason, self.stop = reason, stop
        self.n_vocab = int(llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model)))
        self.tokens: list[int] = []  # what the cells hold, in order
        self.n_ctx = 0
        self._context: Any = None
        self._prefix: tuple[str, State] | None = None  # key and state of the prefix used last
        self._single = (ctypes.c_int32 * 1)()
        self._abort = llama.ggml_abort_callback(lambda _: stop.is_set())
        if settings.full:
            self.reserve(settings.n_ctx)

    # ------------------------------------------------------------------------------------------------ context

    @property
    def context(self) -> Any:
        """The llama_context pointer, for sampling."""
        return self._context

    def reserve(self, n_tokens: int) -> None:
        """Make room for `n_tokens` (at most the settings' n_ctx), keeping what is evaluated. Raises NativeError."""
        if self._context and n_tokens <= self.n_ctx:
            return
        most = self.settings.n_ctx
        n = max(min(MIN_CONTEXT, most), n_tokens, min(2 * self.n_ctx, most))
        if self.tokens and 4 * n > most:
            n = most  # what is kept meanwhile is never more than a quarter, which the plan's margin bears
        kept = (self.tokens, self._state()) if self.tokens else None
        self.close()
        self._context = self._make(-(-n // CELL) * CELL)
        self.n_ctx = int(self.llama.llama_n_ctx(self._context))
        if kept and self._restore(kept[1]):
            self.tokens = kept[0]

    def _make(self, n_ctx: int) -> Any:
        llama, settings = self.llama, self.settings
        params = llama.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = N_UBATCH
        params.n_outputs_max = N_OUTPUTS  # or the buffer has room for a batch's worth of whole vocabularies
        params.n_threads = params.n_threads_batch = settings.n_threads
        params.type_k = params.type_v = settings.kv_type
        params.flash_attn_type = FLASH_ATTENTION[settings.flash_attn]
        params.no_perf = True
        context = llama.llama_init_from_model(self.model, params)
        if not context:
            raise NativeError(
                f"llama.cpp could not make a context of {n_ctx:,} tokens ({self.reason()}); try a smaller --ctx"
            )
        if settings.adapters:
            n = len(settings.adapters)
            pointers = (llama.llama_adapter_lora_p_ctypes * n)(
                *[ctypes.cast(a, llama.llama_adapter_lora_p_ctypes) for a, _ in settings.adapters]
            )
            scales = (ctypes.c_float * n)(*[scale for _, scale in settings.adapters])
            if llama.llama_set_adapters_lora(context, pointers, n, scales) != 0:
                raise NativeError(f"llama.cpp could not apply the adapter ({self.reason()})")
        return context

    def close(self) -> None:
        """Free the context."""
        if self._context:
            self.llama.llama_free(self._context)
        self._context, self.tokens, self.n_ctx = None, [], 0

    # ------------------------------------------------------------------------------------------------- memory

    def _clear(self) -> None:
        self.llama.llama_memory_clear(self.llama.llama_get_memory(self._context), True)
        self.tokens = []

    def keep(self, n: int) -> None:
        """Forget all but the first `n` tokens; all of them where this kind of memory can't forget a part."""
        if n >= len(self.tokens):
            return
        memory = self.llama.llama_get_memory(self._context)
        # a sliding window has lost what stood before it, so it can't be wound back
        whole = self.llama.llama_memory_seq_pos_min(memory, 0) <= 0
        if n and whole and self.llama.llama_memory_seq_rm(memory, 0, n, -1):
            del self.tokens[n:]
        else:
            self._clear()

    def _state(self) -> State:
        size = self.llama.llama_state_seq_get_size(self._context, 0)
        state = bytearray(size)  # no copies: it can be as large as the cache of keys and values
        n = self.llama.llama_state_seq_get_data(self._context, (ctypes.c_uint8 * size).from_buffer(state), size, 0)
        return memoryview(state)[:n]

    def _restore(self, state: State) -> bool:
        """Put a state into empty memory; the caller says which tokens it holds."""
        self._clear()
        kind = ctypes.c_uint8 * len(state)
        buffer = kind.from_buffer_copy(state) if state.readonly else kind.from_buffer(state)
        if state and self.llama.llama_state_seq_set_data(self._context, buffer, len(state), 0) == len(state):
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
        key = key_of({**self.settings.facts, "tokens": prefix})
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
                part = tokens[at : at + N_UBATCH]
                buffer = (ctypes.c_int32 * len(part))(*part)
                self._decode(self.llama.llama_batch_get_one(buffer, len(part)))
                self.tokens += part

    def step(self, token: int) -> None:
        """Evaluate one token: `evaluate` without its precautions."""
        self._single[0] = token
        self._decode(self.llama.llama_batch_get_one(self._single, 1))
        self.tokens.append(token)

    def _decode(self, batch: Any) -> None:
        status = self.llama.llama_decode(self._context, batch)
        if status == 0:
            return
        self._clear()  # parts of the batch may have been evaluated
        if status == ABORTED:
            raise Stopped
        raise NativeError(f"llama.cpp could not evaluate the text (status {status}: {self.reason()})")

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        # asked before every node of the graph: too often for single tokens, which end soon enough
        self.llama.llama_set_abort_callback(self._context, self._abort, None)
        try:
            yield
        finally:
            self.llama.llama_set_abort_callback(self._context, self.llama.ggml_abort_callback(0), None)

    def logits(self, index: int = -1) -> NDArray[np.float32]:
        """Logits (n_vocab,) at an output of the last batch; a view that the next evaluation overwrites.

        Raises DataError where they are not finite: the file is damaged then.
        """
        found = np.ctypeslib.as_array(self.llama.llama_get_logits_ith(self._context, index), (self.n_vocab,))
        if not np.isfinite(found).all():
            raise DataError(
                f"{self.settings.name}: the model's output is not finite, so the file is damaged; make or copy it again"
            )
        return found

    def log_probabilities(self, tokens: Sequence[int]) -> list[tuple[float, bool]]:
        """(ln p of the token given all before it, whether it was the most likely) for each; evaluates all but the last.

        The logits for the first one must be there already.
        """
        found = [_score(self.logits(), tokens[0])]
        for at in range(0, len(tokens) - 1, N_OUTPUTS):
            part = tokens[at : min(at + N_OUTPUTS, len(tokens) - 1)]
            self._decode_all(part)
            found += [_score(self.logits(i), tokens[at + 1 + i]) for i in range(len(part))]
        return found

    def _decode_all(self, tokens: Sequence[int]) -> None:
        """Evaluate up to N_OUTPUTS tokens and keep the logits of all."""
        batch = self.llama.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for i, token in enumerate(tokens):
                batch.token[i], batch.pos[i], batch.logits[i] = token, len(self.tokens) + i, 1
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            self._decode(batch)
        finally:
            self.llama.llama_batch_free(batch)
        self.tokens += tokens

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


def _score(logits: NDArray[np.float32], token: int) -> tuple[float, bool]:
    top = int(logits.argmax())
    shifted = logits.astype(np.float64) - float(logits[top])
    return float(shifted[token] - np.log(np.exp(shifted).sum())), top == token
