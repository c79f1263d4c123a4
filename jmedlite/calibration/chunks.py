"""Chunks: a calibration text as tokens, cut into equal parts that are each evaluated from an empty cache."""

from __future__ import annotations

from jmedlite.base.errors import DataError
from jmedlite.runtime.chat_template import Part
from jmedlite.runtime.loading import LoadedModel


class Chunks:
    """The whole chunks of `n_ctx` tokens of a text; a model that wants BOS gets it in place of a chunk's first token.

    Raises DataError where a chunk is longer than the model was trained on, or where there are fewer than `least`.
    """

    def __init__(self, loaded: LoadedModel, text: str, n_ctx: int, least: int) -> None:
        if n_ctx > loaded.n_ctx_train:
            raise DataError(
                f"--ctx {n_ctx:,} is more than the {loaded.n_ctx_train:,} tokens that {loaded.path.name} was "
                f"trained on{loaded.context_ends}; lower it"
            )
        llama, vocab = loaded.llama, loaded.vocabulary.vocab
        self._bos = llama.llama_vocab_bos(vocab) if llama.llama_vocab_get_add_bos(vocab) else None
        self.tokens = loaded.vocabulary.tokenize_parts([Part(text, False)])
        self.n_ctx = n_ctx
        if len(self) < least:
            raise DataError(
                f"the calibration text has {len(self.tokens):,} tokens, at least {least * n_ctx:,} are needed for "
                f"chunks of {n_ctx:,}; give more --text, or a smaller --ctx"
            )

    def __len__(self) -> int:
        return len(self.tokens) // self.n_ctx

    def __getitem__(self, i: int) -> list[int]:
        chunk = self.tokens[i * self.n_ctx : (i + 1) * self.n_ctx]
        if self._bos is not None:  # every chunk begins as a text does
            chunk[0] = self._bos
        return chunk

    def spread(self, n: int | None) -> list[list[int]]:
        """`n` chunks, or as many as there are, from all over the text, so that all its parts have a say."""
        n = min(n or len(self), len(self))
        return [self[i * len(self) // n] for i in range(n)]
