"""Unigram vocabularies with byte fallback: the likeliest cut of a text, characters without a piece as their bytes.

llama.cpp has no byte fallback for them. What is computed, ties included, is what Hugging Face's tokenizers do (their
`Unigram::encode_optimized`): of cuts that are as likely the one found first, pieces by where they begin, shorter first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from gguf.constants import TokenType

from jmedlite.base.errors import DataError

_UNKNOWN_PENALTY = 10.0  # of a character without a piece, below the least likely piece


def byte_tokens(tokens: Sequence[bytes], types: Sequence[int]) -> dict[int, int]:
    """The token of each of the 256 bytes; DataError where one is missing."""
    byte = int(TokenType.BYTE)
    numbers = {int(t[3:5], 16): i for i, t in enumerate(tokens) if types[i] == byte and len(t) == 6}
    if len(numbers) != 256:
        raise DataError(f"the vocabulary spells unknown characters as bytes, but has {len(numbers)} of the 256")
    return numbers


class Unigram:
    """`tokens`, `types` and `scores` as GGUF has them."""

    def __init__(self, tokens: Sequence[bytes], types: Sequence[int], scores: Sequence[float]) -> None:
        normal, unused = int(TokenType.NORMAL), int(TokenType.UNUSED)
        self._bytes = byte_tokens(tokens, types)
        self._pieces = {t.decode("utf-8", "replace"): i for i, t in enumerate(tokens) if types[i] == normal}
        self._scores = scores
        by_beginning: dict[str, set[int]] = {}  # lengths of the pieces that begin with these two characters
        for piece in self._pieces:
            if len(piece) > 1:
                by_beginning.setdefault(piece[:2], set()).add(len(piece))
        self._lengths = {beginning: tuple(sorted(found)) for beginning, found in by_beginning.items()}
        self._unknown = min(s for s, kind in zip(scores, types, strict=True) if kind != unused) - _UNKNOWN_PENALTY

    def tokens(self, text: str) -> list[int]:
        """The tokens of a normalized text, in which "▁" stands for a space."""
        n = len(text)
        best = [0.0] + [-math.inf] * n
        back: list[tuple[int, int]] = [(0, -1)] * (n + 1)  # (where the last piece begins, which it is)
        pieces, scores = self._pieces, self._scores
        for start in range(n):
            so_far = best[start]
            one = pieces.get(text[start], -1)
            if (score := so_far + (scores[one] if one >= 0 else self._unknown)) > best[start + 1]:
                best[start + 1], back[start + 1] = score, (start, one)
            for length in self._lengths.get(text[start : start + 2], ()):
                if (end := start + length) > n:
                    break
                piece = pieces.get(text[start:end], -1)
                if piece >= 0 and (score := so_far + scores[piece]) > best[end]:
                    best[end], back[end] = score, (start, piece)
        found: list[int] = []
        end = n
        while end:
            start, piece = back[end]
            found += [piece] if piece >= 0 else [self._bytes[b] for b in reversed(text[start:end].encode())]
            end = start
        return found[::-1]
