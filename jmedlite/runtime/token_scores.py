"""Token scores: ln p of each token that a model chose or was given, and its likeliest alternatives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .thoughts import ANSWERING, UNDECIDED, AnswerReader

if TYPE_CHECKING:
    from .vocabulary import Vocabulary

MOST_ALTERNATIVES = 100  # OpenAI has 20, llama-server any number


def token_score(vocabulary: Vocabulary, logits: NDArray[np.float32], token: int, n: int) -> dict[str, Any]:
    """`{"token", "bytes", "ln_p", "top"}` of a token under logits (n_vocab,); `top` are the `n` likeliest in order.

    Bytes are numbers, since a token may be a part of a character. Control tokens have those of their name.
    """
    wide = logits.astype(np.float64)
    ln_p = wide - wide.max()
    ln_p -= np.log(np.exp(ln_p).sum())
    likeliest = np.argpartition(-ln_p, min(n, len(ln_p) - 1))[:n] if n else np.array([], np.int64)
    likeliest = likeliest[np.lexsort((likeliest, -ln_p[likeliest]))]

    def told(i: int) -> dict[str, Any]:
        return {"token": i, "bytes": list(vocabulary.piece(i, shown=True)), "ln_p": float(ln_p[i])}

    return {**told(token), "top": [told(int(i)) for i in likeliest]}


class ScoreKeeper:
    """The scores of an answer's own tokens, as they come; a thought's are dropped."""

    def __init__(self, vocabulary: Vocabulary, n: int) -> None:
        self._vocabulary, self._n = vocabulary, n
        self._last: dict[str, Any] = {}
        self._held: list[dict[str, Any]] = []
        self._n_read = self._n_begun = 0

    def choose(self, logits: NDArray[np.float32], token: int) -> None:
        """A token was chosen from these logits; the answer may still do without it."""
        self._last = token_score(self._vocabulary, logits, token, self._n)

    def sure(self, reader: AnswerReader) -> list[dict[str, Any]]:
        """What is sure to be of the answer, once the token chosen last was read."""
        if reader.n_begun != self._n_begun:
            self._n_begun, self._n_read, self._held = reader.n_begun, 0, []
        if reader.n_written != self._n_read:
            self._n_read = reader.n_written
            self._held.append(self._last)
        return [] if reader.state == UNDECIDED else self._take(reader)

    def rest(self, reader: AnswerReader) -> list[dict[str, Any]]:
        """What is left at the end: of an answer that could still have become a thought."""
        return self._take(reader)

    def _take(self, reader: AnswerReader) -> list[dict[str, Any]]:
        found, self._held = self._held, []
        return found if reader.state in (UNDECIDED, ANSWERING) else []
