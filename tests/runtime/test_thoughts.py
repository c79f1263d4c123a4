"""Thoughts in every form, closed and open, begun by the model or by its template, in pieces of any size."""

from __future__ import annotations

import pytest

from jmedlite.runtime.thoughts import (
    FORMS,
    GENERAL,
    THINKING,
    Form,
    Said,
    ThoughtStream,
    forms_in,
    is_closed,
    opened_by,
    split_thought,
)

HARMONY = "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>{}"


@pytest.mark.parametrize("form", GENERAL)
def test_every_form(form: Form) -> None:
    opening, closing = form.opening, form.closing
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
        ("<b>B</b>", Said(None, "<b>B</b>")),
        ("the tag <think> is no thought", Said(None, "the tag <think> is no thought")),
        ("is it A?\n</think>\nB", Said("is it A?", "B")),  # the template began it
        ("<think>A?</think>the tag </think> ends one", Said("A?", "the tag </think> ends one")),
        ("<think>A?</think>\n<response>\nB\n</response>\n", Said("A?", "B\n\n")),
        ("<response>B</response>", Said(None, "<response>B</response>")),  # no thought before it
        ("A<|end|>", Said(None, "A<|end|>")),  # Phi-3's end of an answer
        (HARMONY.format("A?", "B"), Said("A?", "B")),
        ("<|channel|>final<|message|>B", Said(None, "B")),
        (
            f"<|channel|>analysis<|message|>A<|end|><|start|>assistant{HARMONY.format('B', 'C')}",
            Said("AB", "C"),
        ),
    ],
)
def test_texts(text: str, said: Said) -> None:
    assert split_thought(text) == said


def test_what_was_begun_and_is_not_closed() -> None:
    assert split_thought("is it A?", opened=True) == Said("is it A?", "", is_open=True)


TEXTS = (
    "<think>\nA < B, </thin or so?\n</think>\n\nB</think> is 「<」",
    "[THINK]か[/THINK]はい[",
    HARMONY.format("A?<|en", "B<|end"),
    "「はい」<",
    "<think>A</think><answer>\nB</an</answer>",
    " no thought",
)


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_of_any_size_are_the_whole(text: str) -> None:
    def read(*pieces: str) -> tuple[str, str]:
        stream = ThoughtStream()
        found = [*map(stream.take, pieces), stream.rest()]
        return "".join(t for t, _ in found), "".join(a for _, a in found)

    whole = read(text)
    assert whole[0].strip() == (split_thought(text).thought or "")
    for at in range(len(text) + 1):
        assert read(text[:at], text[at:]) == whole
    assert read(*text) == whole


def test_an_answer_is_told_as_soon_as_it_is_known() -> None:
    stream = ThoughtStream()
    assert stream.take("「") == ("", "「")
    stream = ThoughtStream()
    assert [stream.take(c) for c in "<t1>"] == [("", ""), ("", ""), ("", "<t1"), ("", ">")]
    stream = ThoughtStream(opened=FORMS[0])
    assert stream.take("<th")[0] == ""  # may be the tag once more
    assert stream.take("e <b> tag </") == ("<the <b> tag ", "")


def test_nothing_behind_a_thought_is_nothing() -> None:
    for text, whole, answer in (("\n\n", True, ""), ("<", True, "<"), ("<", False, "")):
        stream = ThoughtStream()
        assert stream.take(f"<think>A</think>{text}") == ("A", "")
        assert stream.rest(whole=whole) == ("", answer)


def test_a_thought_opened_twice_is_one() -> None:
    stream = ThoughtStream(opened=FORMS[0])
    assert [stream.take(piece) for piece in ("\n<thi", "nk>A", "</think>", "\n\nB")] == [
        ("", ""),
        ("A", ""),
        ("", ""),
        ("", "B"),
    ]


@pytest.mark.parametrize(
    ("prompt", "opened", "closed"),
    [
        ("<|im_start|>assistant\n", None, False),
        ("<|im_start|>assistant\n<think>\n", "<think>", False),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", None, True),
        ("<｜Assistant｜></think>", None, True),
        ("<|turn>model\n<|channel>thought\n<channel|>", None, True),
        ("<seed:think><seed:cot_budget_reflect>", "<seed:think>", False),
        ("Think between <think> and </think>.<|im_end|>\n<|im_start|>assistant\n", None, False),
        ("Begin with <think>, please.\nassistant:", None, False),
        ("<|start|>assistant", None, False),
        ("<|start|>assistant<|channel|>final<|message|>", None, True),
    ],
)
def test_how_a_prompt_ends(prompt: str, opened: str | None, closed: bool) -> None:
    form = opened_by(prompt, GENERAL)
    assert (form and form.opening) == opened
    assert is_closed(prompt, GENERAL) == closed


def test_forms_that_a_template_knows() -> None:
    assert forms_in(None) == forms_in("{{ messages }}<|im_end|>") == forms_in("<|user|>\n<|end|>") == ()
    assert [f.opening for f in forms_in("{{ m.content.split('</think>')[-1] }}")] == ["<think>"]
    assert forms_in("<|start|>assistant<|channel|>analysis<|message|>")[0].header
    assert [f.closing for f in forms_in("Here are my reasoning steps:\\n")] == ["[BEGIN FINAL RESPONSE]"]
    (own,) = forms_in("{{ '<musing>' }}{{ m.content.split(\"</musing>\")[1] }}{{ m.split('</tool>') }}")
    assert (own.opening, own.closing) == ("<musing>", "</musing>")
    stream = ThoughtStream((*GENERAL, own))
    assert stream.take("<musing>A</musing>B") == ("A", "B")


@pytest.mark.parametrize(
    ("opening", "empty", "after_text"),
    [
        ("<think>", "<think>\n\n</think>\n\n", "\n</think>\n\n"),  # as Qwen3's template
        ("[THINK]", "[THINK][/THINK]", "[/THINK]"),
        (
            "<|channel|>analysis<|message|>",
            "<|channel|>final<|message|>",
            "<|end|><|start|>assistant<|channel|>final<|message|>",
        ),
    ],
)
def test_how_a_thought_is_ended_for_the_model(opening: str, empty: str, after_text: str) -> None:
    form = next(f for f in FORMS if f.opening == opening)
    assert form.empty == empty
    assert form.end("hm") == after_text
    stream = ThoughtStream(opened=form)
    assert stream.take(f"hm{form.end('hm')}B") == ("hm" + "\n" * form.lines, "B")
    assert stream.state != THINKING
