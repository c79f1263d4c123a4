"""Words: the stretches of text within which byte-level tokens are merged, where llama.cpp only comes near the rule.

For two of its rules, Tekken's and o200k's, llama.cpp takes every letter beyond ASCII for one without case, and marks
for punctuation: ａｂｃＡＢＣ and a decomposed が get other tokens than the model was trained with. Texts that have
such characters are cut here by the rule itself, and words that have them merged here; all else is left to llama.cpp.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from heapq import heappop, heappush

from jmedlite.base.errors import DataError

TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CONTRACTED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
O200K = (  # Tekken's with contractions and groups of digits
    TEKKEN.replace(r"+|[^\r\n", rf"+{_CONTRACTED}[^\r\n").replace(r"*|\p{N}|", rf"*{_CONTRACTED}\p{{N}}{{1,3}}|")
)
# by llama.cpp's name (src/llama-vocab.cpp): the rule, and is a word that is a token whole left unmerged?
RULES = {"tekken": (TEKKEN, True), "gpt-4o": (O200K, False), "llama4": (O200K, False)}
_ODD = ("Lu", "Ll", "Lt", "Mn", "Mc", "Me")
_WHITE_SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # Unicode's property of that name


def is_odd(text: str) -> bool:
    """Is there a character that llama.cpp takes for one of another kind?"""
    return not text.isascii() and any(c > "\x7f" and unicodedata.category(c) in _ODD for c in text)


@cache
def _class(category: str) -> str:
    """The characters of a category ("Lu"), or of all that begin so ("L"), as ranges for a regular expression's [ ]."""
    found, start = [], -1
    for i in range(sys.maxunicode + 2):
        inside = i <= sys.maxunicode and unicodedata.category(chr(i)).startswith(category)
        if inside and start < 0:
            start = i
        if not inside and start >= 0:
            found.append(f"\\U{start:08x}-\\U{i - 1:08x}")
            start = -1
    return "".join(found)


@cache
def _compiled(rule: str) -> re.Pattern[str]:
    """A rule as Python's regular expressions can have it."""
    bracketed = rule.replace(r"|\p{N}", r"|[\p{N}]")
    spaced = bracketed.replace(r"(?!\S)", f"(?![^{_WHITE_SPACE}])").replace(r"[^\s", f"[^{_WHITE_SPACE}")
    spaced = spaced.replace(r"\s", f"[{_WHITE_SPACE}]")
    return re.compile(re.sub(r"\\p\{(\w+)\}", lambda found: _class(found[1]), spaced))


def split(rule: str, text: str) -> list[str]:
    """The words of a text by a rule."""
    return [found[0] for found in _compiled(rule).finditer(text)]


def merge(symbols: Sequence[str], rank: Callable[[str, str], float | None]) -> list[str]:
    """Join neighbours, the pair of the least `rank` first and of equal ones the leftmost, until no pair has a rank."""
    left_of = list(range(-1, len(symbols) - 1))
    right_of = list(range(1, len(symbols) + 1))
    found = list(symbols)
    queue: list[tuple[float, int, int, str]] = []

    def offer(left: int, right: int) -> None:
        if left >= 0 and right < len(found) and (order := rank(found[left], found[right])) is not None:
            heappush(queue, (order, left, right, found[left] + found[right]))

    for right in range(1, len(found)):
        offer(right - 1, right)
    while queue:
        _, left, right, joined = heappop(queue)
        if right_of[left] != right or found[left] + found[right] != joined or not found[right]:
            continue  # one of the two has been joined meanwhile
        found[left], found[right] = joined, ""
        right_of[left] = right_of[right]
        if right_of[left] < len(found):
            left_of[right_of[left]] = left
        offer(left_of[left], left)
        offer(left, right_of[left])
    return [symbol for symbol in found if symbol]


@cache
def byte_letters() -> str:
    """The characters that stand for the 256 bytes in byte-level vocabularies (GPT-2's)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return "".join(chr(b) if b in printable else chr(next(others)) for b in range(256))


class ByteLevel:
    """A byte-level vocabulary: `tokens` and `merges` ("a b") as GGUF has them."""

    def __init__(self, tokens: Sequence[bytes], merges: Sequence[bytes], *, whole_words: bool) -> None:
        self._ids = {raw.decode("utf-8", "replace"): i for i, raw in enumerate(tokens)}
        self._ranks = {tuple(raw.decode("utf-8", "replace").split(" ", 1)): i for i, raw in enumerate(merges)}
        self._whole_words = whole_words

    def tokens(self, word: str) -> list[int]:
        """The tokens of one word."""
        spelled = "".join(byte_letters()[b] for b in word.encode())
        if self._whole_words and spelled in self._ids:
            return [self._ids[spelled]]
        parts = merge(spelled, lambda a, b: self._ranks.get((a, b)))
        if lost := next((part for part in parts if part not in self._ids), None):
            raise DataError(
                f"the vocabulary merges to {lost[:40]!r}, which is none of its tokens; is the file damaged?"
            )
        return [self._ids[part] for part in parts]
