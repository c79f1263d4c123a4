"""Added tokens: where they stand in a text, by the rules of the tokenizers library.

A token may eat the white space on its left (`lstrip`) or right (`rstrip`), match only where it is no part of a word
(`single_word`), or match in the normalized text instead of the text as it was written (`normalized`). Rules:
https://github.com/huggingface/tokenizers/blob/main/tokenizers/src/tokenizer/added_vocabulary.rs
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile

# Stands for text that may not hold a control token: a lone surrogate, which is part of no token.
HIDDEN = "\ud800"
# Unicode's White_Space, as Rust strips it; str.strip would take U+001C..U+001F too
_SPACES = re.compile("[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]*")
_OF_WORDS = ("Mn", "Mc", "Me", "Nd", "Nl", "Pc")
# join controls, and letters in circles and squares
_OTHER_OF_WORDS = (
    ("\u200c", "\u200d"), ("\u24b6", "\u24e9"), ("\U0001f130", "\U0001f149"), ("\U0001f150", "\U0001f169"),
    ("\U0001f170", "\U0001f189"),
)  # fmt: skip


def common_prefix(a: Sequence[object], b: Sequence[object]) -> int:
    """The number of leading tokens, or characters, that two sequences share."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


@dataclass(frozen=True)
class AddedTokens:
    """Tokens that are found in a text before all others: {text: id}, and the ids that have a flag.

    `control` are found in trusted text only, `typed` in any.
    """

    control: Mapping[str, int]
    typed: Mapping[str, int]
    lstrip: frozenset[int] = frozenset()
    rstrip: frozenset[int] = frozenset()
    single_word: frozenset[int] = frozenset()

    @cached_property
    def _finders(self) -> tuple[_Finder, _Finder]:
        return _Finder(self.control), _Finder(self.typed)

    def split(self, text: str, trusted: str) -> Iterator[tuple[int | None, int, int]]:
        """(id, start, end) of every token, and (None, start, end) of the text around them, in order.

        `trusted` is the text with HIDDEN for each character in which no control token may stand.
        """
        done = 0
        for place in self._matches(text, trusted):
            start, end = place
            name = text[start:end]
            i = self.control[name] if name in self.control else self.typed[name]
            if i in self.single_word and (_is_word(text[start - 1 : start]) or _is_word(text[end : end + 1])):
                continue
            if i in self.lstrip:
                while start > done and _end_of_spaces(text[start - 1], 0):
                    start -= 1
            if i in self.rstrip:
                end = _end_of_spaces(text, end)
            if done < start:
                yield None, done, start
            yield i, start, end
            done = end
        if done != len(text):
            yield None, done, len(text)

    def _matches(self, text: str, trusted: str) -> Iterator[tuple[int, int]]:
        """(start, end) of the leftmost matches, of these the longest, none overlapping another."""
        sources = list(zip(self._finders, (trusted, text), strict=True))
        nearest = [finder.search(source, 0) for finder, source in sources]
        while found := [m for m in nearest if m]:
            start, end = min(found, key=lambda m: (m[0], -m[1]))
            yield start, end
            for k, (finder, source) in enumerate(sources):
                if (m := nearest[k]) and m[0] < end:
                    nearest[k] = finder.search(source, end)


class _Finder:
    """Finds the leftmost of many names, of these the longest: "<|im_start|>" wins over a token that is its beginning.

    One regular expression of a hundred thousand names takes eight seconds to compile.
    """

    def __init__(self, names: Collection[str]) -> None:
        lengths: dict[str, set[int]] = {}
        for name in filter(None, names):
            lengths.setdefault(name[0], set()).add(len(name))
        self._names = names
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}
        self._first = re.compile(f"[{re.escape(''.join(lengths))}]" if lengths else r"(?!)")

    def search(self, text: str, start: int) -> tuple[int, int] | None:
        """(start, end) of the next name at `start` or later."""
        for found in self._first.finditer(text, start):
            at = found.start()
            for n in self._lengths[text[at]]:
                if (name := text[at : at + n]) in self._names:
                    return at, at + len(name)
        return None


def _end_of_spaces(text: str, start: int) -> int:
    found = _SPACES.match(text, start)
    return found.end() if found else start


def _is_word(c: str) -> bool:
    r"""Is it a character of a word: `\w` of Rust's regular expressions (UTS #18)? "" is none."""
    return c != "" and (
        c.isalpha()
        or unicodedata.category(c) in _OF_WORDS
        or any(first <= c <= last for first, last in _OTHER_OF_WORDS)
    )


def trusted_after(normalize: Callable[[str], str], text: str, trusted: str) -> str:
    """The normalized text with HIDDEN for all characters that untrusted text may have a share in."""
    whole = normalize(text)
    found = HIDDEN * len(whole)
    for run in re.finditer(f"[^{HIDDEN}]+", trusted):
        end = common_prefix(whole, normalize(text[: run.end()]))
        start = len(whole) - common_prefix(whole[::-1], normalize(text[run.start() :])[::-1])
        if start < end:
            found = found[:start] + whole[start:end] + found[end:]
    return found
