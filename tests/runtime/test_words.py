"""Words: cut as the rule says where llama.cpp's is another, and merged as byte-level vocabularies are."""

from __future__ import annotations

import pytest

from jmedlite.base.errors import DataError
from jmedlite.runtime.words import O200K, TEKKEN, ByteLevel, is_odd, merge, split
from tests.support.builders import byte_alphabet


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ＡＢＣａｂｃ", ["ＡＢＣａｂｃ"]),
        ("ａｂｃＡＢＣ", ["ａｂｃ", "ＡＢＣ"]),
        ("приВет МИР", ["при", "Вет", " МИР"]),
        ("か\u3099き は", ["か\u3099き", " は"]),
        ("β-hCG 12mg", ["β", "-h", "CG", " ", "1", "2", "mg"]),
        ("糖尿病のHbA1c\n\n次", ["糖尿病のHb", "A", "1", "c", "\n\n", "次"]),
        ("a  É", ["a", " ", " É"]),
        ("x\u2003 \x1cÉ", ["x", "\u2003", " \x1c", "É"]),
    ],
)
def test_tekkens_rule(text: str, words: list[str]) -> None:
    """Upper case letters, then lower case ones, marks and letters without case with either; one digit at a time."""
    assert split(TEKKEN, text) == words
    assert "".join(split(O200K, text)) == text


def test_o200k_has_contractions_and_groups_of_digits() -> None:
    assert split(O200K, "Él's 12345 WE'RE it'ſ") == ["Él's", " ", "123", "45", " WE'RE", " it'ſ"]
    assert split(TEKKEN, "Él's") == ["Él", "'s"]


def test_what_is_left_to_llama_cpp() -> None:
    assert not any(map(is_odd, ("HbA1c 7.2%", "高血圧、ｶﾀｶﾅ", "①㎎", "")))
    assert all(map(is_odd, ("β遮断薬", "か\u3099", "ＣＴ", "naïve", "ǅ")))


def test_merges_go_by_rank_then_from_the_left() -> None:
    ranks = {("a", "a"): 1.0, ("b", "a"): 0.0, ("aa", "aa"): 2.0}
    assert merge("aaaaa", lambda x, y: ranks.get((x, y))) == ["aaaa", "a"]
    assert merge("baaa", lambda x, y: ranks.get((x, y))) == ["ba", "aa"]
    assert merge("", lambda x, y: 1.0) == []
    assert merge("abcd" * 5000, lambda x, y: None) == list("abcd" * 5000)


def test_byte_level_tokens() -> None:
    letters = byte_alphabet()
    a, b = (letters[x] for x in "é".encode())
    tokens = [letter.encode() for letter in letters] + [(a + b).encode(), (a + b + "x").encode()]
    merges = [f"{a} {b}".encode()]
    word = "éx"
    assert ByteLevel(tokens, merges, whole_words=False).tokens(word) == [256, ord("x")]
    assert ByteLevel(tokens, merges, whole_words=True).tokens(word) == [257]
    with pytest.raises(DataError, match="none of its tokens"):
        ByteLevel(tokens[:256], merges, whole_words=False).tokens(word)
