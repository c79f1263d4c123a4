"""Stop texts, given or the beginning of the person's next turn: the answer ends before them, in pieces of any size."""

from __future__ import annotations

from pathlib import Path

import pytest

import jmedlite
from jmedlite.base.errors import UsageError
from jmedlite.runtime.chat_template import Message, build_prompt
from jmedlite.runtime.stops import StopTexts, turn_header
from tests.support.builders import CHATML, SPECIALS

LLAMA_2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("size", [1, 2, 5, 100])
@pytest.mark.parametrize(
    ("text", "stops", "shown"),
    [
        ("yes. ### next", ["###"], "yes. "),
        ("a#b##c###d", ["###"], "a#b##c"),
        ("one two three", ["three", "two"], "one "),
        ("ababac", ["abac"], "ab"),
        ("no stop at all #", ["###"], "no stop at all #"),
        ("はい。\n### 指示:\n", ["\n### 指示:"], "はい。"),
        ("nothing to stop at", [], "nothing to stop at"),
    ],
)
def test_the_answer_ends_before_them(text: str, stops: list[str], shown: str, size: int) -> None:
    stream, told = StopTexts(stops), ""
    for at in range(0, len(text), size):
        told += stream.take(text[at : at + size])
        if stream.met:
            break
        assert text.startswith(told)
    assert told + stream.rest() == shown
    assert stream.met == (shown != text)


@pytest.mark.parametrize(
    ("template", "header"),
    [
        ("{% for m in messages %}### 指示:\n{{ m.content }}\n\n### 応答:\n{% endfor %}", "### 指示:"),
        (LLAMA_2, "[INST]"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", None),
        ("{% for m in messages %}Q {{ m.content }}{% endfor %}", None),
        (CHATML, None),
        (None, "Question:"),
    ],
)
def test_the_beginning_of_a_persons_turn(template: str | None, header: str | None) -> None:
    messages = [Message("user", "one"), Message("assistant", "two"), Message("user", "three")]
    for asked in (messages, messages[:1]):
        parts = build_prompt(asked, system="", template=template, bos="<s>", eos="</s>", language="en")
        assert turn_header(parts, [*SPECIALS, "<s>", "</s>", ""], ["<s>", "</s>"]) == header


def test_an_answer_ends_where_it_says_so(endless_gguf: Path) -> None:
    with jmedlite.Runner(endless_gguf, threads=1) as model:
        whole = model.ask("q", max_tokens=24)
        stop = whole.text[4:7]
        cut = model.ask("q", max_tokens=24, stop=(stop,))
        assert cut.text == whole.text[: whole.text.index(stop)]
        assert (whole.stop, cut.stop) == ("length", "stop")
        assert cut.n_generated < whole.n_generated
        assert model.ask("q", max_tokens=24, stop=["never said"]).text == whole.text


@pytest.mark.parametrize("stop", [("",), ("x" * 1001,), ("x",) * 17])
def test_senseless_stops(stop: tuple[str, ...]) -> None:
    from jmedlite.runtime.sampling import Sampling

    with pytest.raises(UsageError, match="--stop: expected up to 16 texts"):
        Sampling(stop=stop)
