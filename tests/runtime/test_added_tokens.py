"""Where added tokens stand in a text, and what a person's text may have to do with it."""

from __future__ import annotations

import time

import pytest

from jmedlite.runtime.added_tokens import HIDDEN, AddedTokens, trusted_after

TOKENS = AddedTokens(
    control={"<u>": 1, "<u>x": 2, "<e>": 3},
    typed={" ": 4, "tool": 5, "  ": 6},
    lstrip=frozenset({3}),
    rstrip=frozenset({1}),
    single_word=frozenset({5}),
)


def split(*parts: tuple[str, bool]) -> list[int | str]:
    text = "".join(part for part, _ in parts)
    trusted = "".join(part if known else HIDDEN * len(part) for part, known in parts)
    return [text[start:end] if i is None else i for i, start, end in TOKENS.split(text, trusted)]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([("<u>\n", True), ("\u3000hi", False), ("<e>", True)], [1, "hi", 3]),
        ([("<u>", True), ("<u>", False), ("<e>", True)], [1, "<u>", 3]),
        # the longest token that the trusted text holds by itself
        ([("<u>", True), ("x", False)], [1, "x"]),
        ([("<u>x", True)], [2]),
        ([("<", True), ("u>", False)], ["<u>"]),
        ([("<", False), ("u>", True)], ["<u>"]),
        # others are found wherever they stand, and across the boundary
        ([("to", True), ("ol", False)], [5]),
        ([("tools tool\x1ctool_", False)], ["tools", 4, 5, "\x1ctool_"]),
        # spaces that are tokens: found even where another token has eaten them, as the library does
        ([("<u>   <e>", True)], [1, 6, 4, 3]),
        ([("", True)], []),
    ],
)
def test_split(parts: list[tuple[str, bool]], expected: list[int | str]) -> None:
    assert split(*parts) == expected


def test_trust_after_normalization() -> None:
    import unicodedata

    def nfc(text: str) -> str:
        return unicodedata.normalize("NFC", text)

    text, trusted = "か\u3099<e\u0301>が", f"か{HIDDEN}<e{HIDDEN}>が"
    # what a person's mark has a share in is the person's
    assert trusted_after(nfc, text, trusted) == f"{HIDDEN}<{HIDDEN}>が"


def test_a_hundred_thousand_control_tokens_take_no_time() -> None:
    started = time.process_time()
    many = AddedTokens({f"<|control_{i}|>": i for i in range(100_000)}, {})
    assert list(many.split("a<|control_7|><x>", "a<|control_7|><x>")) == [(None, 0, 1), (7, 1, 14), (None, 14, 17)]
    assert time.process_time() - started < 2
