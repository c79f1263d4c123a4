"""Thoughts in every form, closed and open, begun by the model or by its template."""

from __future__ import annotations

import pytest

from jmedlite.runtime.thoughts import TAGS, Said, split_thought


@pytest.mark.parametrize(("opening", "closing"), TAGS)
def test_every_tag(opening: str, closing: str) -> None:
    assert split_thought(f"{opening}\nis it A?\n{closing}\n\nB") == Said("is it A?", "B")
    assert split_thought(f"\n{opening}is it A?") == Said("is it A?", "", is_open=True)
    assert split_thought(opening[:4]) == Said(opening[:4], "", is_open=True)
    assert split_thought(f"is it A?{closing}B", opened=True) == Said("is it A?", "B")
    assert split_thought(f"{opening}{closing}B") == Said("", "B")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("B", Said(None, "B")),
        ("", Said(None, "")),
        ("B < A, [note]", Said(None, "B < A, [note]")),
        ("the tag <think> is no thought", Said(None, "the tag <think> is no thought")),
        ("is it A?\n</think>\nB", Said("is it A?", "B")),  # the template began it
        ("A<|end|>", Said(None, "A<|end|>")),  # Phi-3's end of an answer
        (
            "<|channel|>analysis<|message|>A?<|end|><|start|>assistant<|channel|>final<|message|>B",
            Said("A?", "B"),
        ),
    ],
)
def test_texts(text: str, said: Said) -> None:
    assert split_thought(text) == said


def test_what_was_begun_and_is_not_closed() -> None:
    assert split_thought("is it A?", opened=True) == Said("is it A?", "", is_open=True)
