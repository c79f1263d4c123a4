"""Context: one llama_context, made, filled with batches, decoded, its logits checked to be finite, and closed."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray

from jmedlite.base.errors import DataError, NativeError

from .loading import FLASH_ATTENTION, LoadedModel
from .protocol import Stopped

ABORTED = 2  # what llama_decode returns then


class BatchRow(NamedTuple):
    """One token of a batch: its position, the sequences that it belongs to, and whether its logits are wanted."""

    token: int
    position: int
    sequences: Sequence[int] = (0,)
    is_output: bool = False


class Context:
    """A context of `n_ctx` cells over a loaded model, with a cache of the type and the adapters it was loaded with.

    Batches have at most `n_batch` rows, a row at most `n_sequences` sequences; `settings` are more fields of
    llama_context_params. Raises NativeError where llama.cpp makes none; `advice` is what to do then.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        n_ctx: int,
        n_batch: int,
        n_threads: int,
        advice: str,
        n_sequences: int = 1,
        **settings: Any,
    ) -> None:
        self.loaded, self.llama, self.n_vocab = loaded, loaded.llama, loaded.vocabulary.n_tokens
        kv_type = int(GGMLQuantizationType[loaded.request["kv_type"].upper()])
        settings |= {
            "n_ctx": n_ctx, "n_batch": n_batch, "n_ubatch": n_batch, "n_threads": n_threads,
            "n_threads_batch": n_threads, "type_k": kv_type, "type_v": kv_type, "n_seq_max": n_sequences,
            "flash_attn_type": FLASH_ATTENTION[loaded.request["flash_attn"]], "no_perf": True,
        }  # fmt: skip
        params = self.llama.llama_context_default_params()
        for name, value in settings.items():
            setattr(params, name, value)
        self.pointer = self.llama.llama_init_from_model(loaded.model, params)
        if not self.pointer:
            raise NativeError(f"llama.cpp could not make a context of {n_ctx:,} tokens ({loaded.reason()}); {advice}")
        self._batch = self.llama.llama_batch_init(n_batch, 0, n_sequences)
        self._apply(loaded.adapters)

    def _apply(self, adapters: Sequence[tuple[Any, float]]) -> None:
        if not adapters:
            return
        kind, n = self.llama.llama_adapter_lora_p_ctypes, len(adapters)
        pointers = (kind * n)(*[ctypes.cast(a, kind) for a, _ in adapters])
        scales = (ctypes.c_float * n)(*[scale for _, scale in adapters])
        if self.llama.llama_set_adapters_lora(self.pointer, pointers, n, scales) != 0:
            raise NativeError(f"llama.cpp could not apply the adapter ({self.loaded.reason()})")

    @property
    def n_ctx(self) -> int:
        """Cells there are."""
        return int(self.llama.llama_n_ctx(self.pointer))

    @property
    def memory(self) -> Any:
        """llama.cpp's handle of what the cells hold."""
        return self.llama.llama_get_memory(self.pointer)

    def clear(self) -> None:
        """Forget every sequence."""
        self.llama.llama_memory_clear(self.memory, True)

    def on_abort(self, callback: Any) -> None:
        """Let a ggml_abort_callback end decoding early; None: no longer."""
        self.llama.llama_set_abort_callback(self.pointer, callback or self.llama.ggml_abort_callback(0), None)

    def decode(self, rows: Iterable[BatchRow]) -> None:
        """Evaluate one batch. Raises Stopped where it was aborted, NativeError where llama.cpp refuses."""
        batch = self._batch
        n = 0
        for n, row in enumerate(rows, 1):
            i = n - 1
            batch.token[i], batch.pos[i], batch.logits[i] = row.token, row.position, row.is_output
            batch.n_seq_id[i] = len(row.sequences)
            for k, sequence in enumerate(row.sequences):
                batch.seq_id[i][k] = sequence
        batch.n_tokens = n
        status = self.llama.llama_decode(self.pointer, batch)
        if status == ABORTED:
            raise Stopped
        if status != 0:
            raise NativeError(f"llama.cpp could not evaluate the text (status {status}: {self.loaded.reason()})")

    def logits(self, index: int = -1) -> NDArray[np.float32]:
        """Logits (n_vocab,) after the batch's row `index`, unchecked; a view that the next batch overwrites."""
        return np.ctypeslib.as_array(self.llama.llama_get_logits_ith(self.pointer, index), (self.n_vocab,))

    def finite_logits(self, index: int = -1) -> tuple[NDArray[np.float32], float]:
        """The same and their largest value; raises DataError where they are not finite: the file is damaged then."""
        logits = self.logits(index)
        return logits, self.named(finite_max, logits)

    def named(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What `function` gives; its DataError says of which file."""
        try:
            return function(*arguments)
        except DataError as e:
            raise DataError(f"{self.loaded.path.name}: {e}") from None

    def close(self) -> None:
        """Free the context."""
        if self.pointer:
            self.llama.llama_batch_free(self._batch)
            self.llama.llama_free(self.pointer)
        self.pointer = None


def finite_max(logits: NDArray[np.float32]) -> float:
    """The largest of `logits` (n,); raises DataError where any of them is not finite, or all are the same."""
    top, bottom = logits.max(), logits.min()
    if not (math.isfinite(top) and math.isfinite(bottom)):  # a NaN makes both of them NaN
        raise DataError("the model's output is not finite, so the file is damaged; make or copy it again")
    if top == bottom and logits.size > 1:  # of weights that are zero
        raise DataError("the model finds every token as likely as any other, so the file is damaged; copy it again")
    return float(top)
