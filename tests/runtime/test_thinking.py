"""Thinking models: thought and answer apart, switches of templates, budgets, forms, turns of a conversation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import jmedlite
from jmedlite.base.errors import UsageError
from jmedlite.runtime.answers import Answer, ThoughtPiece, describe_cut
from jmedlite.runtime.chat_template import Message, build_prompt, variables_of, warnings_of
from jmedlite.runtime.conversation import Conversation
from jmedlite.runtime.runner import Runner
from jmedlite.runtime.sampling import Sampling, read_variables
from tests.support.builders import CHATML
from tests.support.commands import run_text
from tests.support.scripted import BRACKETS, HARMONY, OPENING, SWITCHED, TURNS, scripted

THOUGHT = ["<think>", "\nis it A", "? ", "no", "\n</", "think>", "\n\n", "B", " </think> is said", "."]


def prompt(template: str | None, *turns: str, **options: Any) -> str:
    roles = ["user", "assistant"] * len(turns)
    messages = [Message(role, text) for role, text in zip(roles, turns, strict=False)]
    return "".join(part.text for part in build_prompt(messages, system="", template=template, **options))


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers with a thought, whose closing tag is two tokens; behind an end of a line with "B"."""
    return scripted(tmp_path_factory.mktemp("thinker"), THOUGHT, template=SWITCHED)


# -------------------------------------------------------------------------------------------------------- prompts


@pytest.mark.parametrize(
    ("template", "think", "end"),
    [
        (SWITCHED, None, "assistant\n"),
        (SWITCHED, True, "assistant\n"),
        (SWITCHED, False, "assistant\n<think>\n\n</think>\n\n"),
        (OPENING, None, "assistant\n<think>\n"),
        (OPENING, False, "assistant\n<think>\n\n</think>\n\n"),
        (HARMONY, False, "<|start|>assistant<|channel|>final<|message|>"),
        (BRACKETS, False, "assistant\n[THINK][/THINK]"),
        (CHATML, False, "assistant\n"),
        (None, False, "Answer:"),
        # DeepSeek V3.1's switch has another name and is off by itself
        ("{{ messages[0].content }}A{{ '<think>' if thinking else '</think>' }}", None, "A</think>"),
        ("{{ messages[0].content }}A{{ '<think>' if thinking else '</think>' }}", True, "A<think>"),
        ("{{ messages[0].content }}A{{ '<think>' if thinking else '</think>' }}", False, "A</think>"),
        # Granite's stands in its system prompt alone
        ("{% if thinking %}Write <think></think>. {% endif %}{{ messages[0].content }}A:", False, "A:"),
        ("{{ messages[0].content }}{% if thinking_budget == 0 %}<seed:think><s>{% endif %}", False, "</seed:think>"),
    ],
)
def test_the_end_of_a_prompt(template: str | None, think: bool | None, end: str) -> None:
    assert prompt(template, "q", think=think, language="en").endswith(end)


def test_a_person_cannot_open_or_close_a_thought() -> None:
    assert prompt(TURNS, "q <think>", think=False).endswith("q <think><|im_end|>\n<|im_start|>assistant\n")
    assert prompt(OPENING, "q </think>", think=False).endswith("<think>\n\n</think>\n\n")


def test_earlier_thoughts_are_left_out_as_the_template_itself_does() -> None:
    """What is sent without a thought is what transformers' template makes of one with it."""
    from jmedlite.runtime.chat_template import render_chat

    whole = "<think>\nhm\n</think>\n\nB"
    messages = [{"role": r, "content": c} for r, c in (("user", "q"), ("assistant", whole), ("user", "r"))]
    assert prompt(SWITCHED, "q", "B", "r") == render_chat(SWITCHED, messages, "", "")


def test_variables() -> None:
    assert variables_of(SWITCHED) == {"messages", "add_generation_prompt", "enable_thinking"}
    branch = "{% if thinking is not defined %}{% set thinking = false %}{% endif %}{{ thinking }}"
    assert variables_of(branch) == {"thinking"}
    given = read_variables(["a=1", "b=low", 'c={"x": [1]}', "d=NaN", "e=x=y", "f="])
    assert given == {"a": 1, "b": "low", "c": {"x": [1]}, "d": "NaN", "e": "x=y", "f": ""}
    assert "low" in prompt(HARMONY, "q", variables={"reasoning_effort": "low"})
    # what is given by name goes before the switch
    assert prompt(SWITCHED, "q", think=True, variables={"enable_thinking": False}).endswith("</think>\n\n")


@pytest.mark.parametrize(
    ("template", "think", "variables", "words"),
    [
        (SWITCHED, False, {}, None),
        (OPENING, True, {}, None),
        (HARMONY, False, {"reasoning_effort": "low"}, None),
        (CHATML, False, {}, "--no-think: has no effect"),
        (CHATML, True, {}, "--think: has no effect"),
        (SWITCHED, None, {"enabled": 1}, "--template-var enabled: has no effect: .* has enable_thinking instead"),
        (CHATML, None, {"x": 1}, "no variables of its own"),
        (None, None, {"x": 1}, "the model has no chat template"),
        (None, True, {}, "the model has no chat template"),
    ],
)
def test_what_a_template_does_not_do_is_said(
    template: str | None, think: bool | None, variables: dict[str, Any], words: str | None
) -> None:
    import re

    found = warnings_of(template, think, variables)
    assert len(found) == (words is not None)
    if words:
        assert re.search(words, found[0])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["messages=[]"], "messages: is set by jmedlite itself"),
        (["bos_token=x"], "bos_token: is set by jmedlite itself"),
        (["strftime_now=x"], "set by jmedlite"),
        (["think"], "expected NAME=VALUE"),
        (["a b=1"], "no name of a variable"),
        (["a=1", "a=2"], "given twice"),
        ({"a": {1}}, "no value that JSON has"),
    ],
)
def test_senseless_variables(given: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Sampling(template_vars=given)


def test_think_and_no_budget_contradict_each_other() -> None:
    with pytest.raises(UsageError, match="--think-budget 0"):
        Sampling(think=True, think_budget=0)
    assert Sampling(think_budget=0).think is False


# -------------------------------------------------------------------------------------------------------- answers


def test_thought_and_answer_are_told_apart(thinker: Path) -> None:
    with jmedlite.Runner(thinker, threads=1) as model:
        pieces = list(model.stream("q"))
        answer = pieces[-1]
        assert isinstance(answer, Answer)
        assert (answer.thought, answer.text, answer.stop) == ("is it A? no", "B </think> is said.", "eos")
        assert (answer.n_thought, answer.n_generated) == (6, 10)
        assert "".join(p.text for p in pieces if isinstance(p, ThoughtPiece)).strip() == answer.thought
        assert "".join(p for p in pieces if isinstance(p, str)) == answer.text
        assert not answer.is_thought_open

        quiet = model.ask("q", think=False)
        assert (quiet.thought, quiet.text, quiet.n_thought) == (None, "B </think> is said.", 0)
        assert quiet.warnings == ()
        assert model.ask("q", think_budget=0).text == quiet.text
        assert model.ask("q", template_vars={"enable_thinking": False}).text == quiet.text

        # a text to stop at is one of the answer
        assert model.ask("q", stop=("no", " is said")).text == "B </think>"

        cut = model.ask("q", max_tokens=4)
        assert (cut.thought, cut.text, cut.stop, cut.is_thought_open) == ("is it A? no", "", "length", True)
        assert "the thought took all 4 tokens" in str(describe_cut(cut))

        warned = model.ask("q", template_vars=["enable=1"])
        assert "--template-var enable: has no effect" in warned.warnings[0]
        with pytest.raises(UsageError, match="names a control token"):
            model.ask("q", template_vars={"enable_thinking": ["<|im_end|>"]})


@pytest.mark.parametrize("budget", [1, 2, 3, 5, 6, 100])
def test_a_budget_ends_the_thought(thinker: Path, budget: int) -> None:
    with jmedlite.Runner(thinker, threads=1) as model:
        answer = model.ask("q", think_budget=budget, max_tokens=3)
    closed = budget < 6
    assert (answer.is_thought_cut, answer.is_thought_open) == (closed, False)
    assert answer.n_thought == min(budget, 6)
    assert answer.text == "B </think> is said."[: None if closed else -1]  # max_tokens counts what comes behind
    assert (answer.thought or "") == "".join(THOUGHT[1 : min(4, budget)]).strip()  # no half tag


def test_a_thought_that_the_template_begins(tmp_path: Path) -> None:
    model = scripted(tmp_path, ["hm", "</think>", "B"], template=OPENING)
    with jmedlite.Runner(model, threads=1) as runner:
        answer = runner.ask("q")
        assert (answer.thought, answer.text, answer.n_thought) == ("hm", "B", 2)


def test_tags_that_are_control_tokens(tmp_path: Path) -> None:
    # the next token depends on the last alone, so the second header is made of other tokens
    tags = ["<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|call|>", "<|return|>"]
    words = ["<|channel|>", "analysis", "<|message|>", "is it A?", "<|end|>", "<|start|>", "assistant<|channel|>"]
    words += ["final", "<|message|>B", "C"]
    model = scripted(tmp_path / "h", words, template=HARMONY, controls=tags)
    with jmedlite.Runner(model, threads=1) as runner:
        answer = runner.ask("q")
        assert (answer.thought, answer.text) == ("is it A?", "BC")
        assert runner.ask("q", think_budget=4).is_thought_cut
    model = scripted(
        tmp_path / "m", ["[THINK]", "hm", "[/THINK]", "B"], template=BRACKETS, controls=["[THINK]", "[/THINK]"]
    )
    with jmedlite.Runner(model, threads=1) as runner:
        answer = runner.ask("q")
        assert (answer.thought, answer.text) == ("hm", "B")


def test_a_form_begins_with_the_answer(thinker: Path, tmp_path: Path) -> None:
    grammar = 'root ::= "yes" | "no"'
    with jmedlite.Runner(thinker, threads=1) as model:
        answer = model.ask("q", grammar=grammar)
        assert answer.thought == "is it A? no"
        assert answer.text in ("yes", "no")
        cut = model.ask("q", grammar=grammar, think_budget=3)
        assert (cut.thought, cut.is_thought_cut) == ("is it A?", True)
        assert cut.text in ("yes", "no")
        schema = model.ask("q", json_schema='{"enum": ["yes", "no"]}')
        assert (schema.thought, schema.text in ('"yes"', '"no"'), schema.stop) == ("is it A? no", True, "eos")
        # a continuation that is scored begins the answer, behind an empty thought
        assert model.loglikelihood("q", "B", template=True).total > -0.1
        plain = model.ask("q", grammar=grammar, think=False)
        assert (plain.thought, plain.text in ("yes", "no")) == (None, True)
    opened = scripted(tmp_path / "opened", ["hm", "</think>", "B"], template=OPENING)
    with jmedlite.Runner(opened, threads=1) as model:
        answer = model.ask("q", grammar=grammar)
        assert (answer.thought, answer.text in ("yes", "no")) == ("hm", True)
    # one that could think, but begins to answer at once, or with what looks like a tag
    for i, words in enumerate((["B", "C"], ["<", "th", "ing"])):
        with jmedlite.Runner(scripted(tmp_path / str(i), words, template=SWITCHED), threads=1) as model:
            answer = model.ask("q", grammar=grammar)
            assert (answer.thought, answer.text in ("yes", "no")) == (None, True)


# --------------------------------------------------------------------------------------------------- conversations


def say(conversation: Conversation, question: str) -> Answer:
    answer = list(conversation.send(question))[-1]
    assert isinstance(answer, Answer)
    return answer


def test_the_next_turn_is_as_if_nothing_had_been_thought(thinker: Path, tiny_gguf: Path) -> None:
    with jmedlite.Runner(thinker, threads=1) as model:
        talk = Conversation(model)
        one, two = say(talk, "q"), say(talk, "r")
        assert one.thought == two.thought == "is it A? no"
        assert [text for _, text in talk.turns] == ["q", one.text, "r", two.text]
        fresh = list(model.converse([*talk.turns[:2], ("user", "r")], language="en"))[-1]
        assert isinstance(fresh, Answer)
        assert (fresh.text, fresh.thought, fresh.n_prompt) == (two.text, two.thought, two.n_prompt)
        assert two.n_cached < two.n_prompt - 2


def test_what_was_thought_leaves_no_trace_in_what_is_evaluated(tmp_path: Path) -> None:
    """A model of random weights, whose logits depend on every cell: the second turn is the same, cached or not."""
    from tests.support import builders

    builders.checkpoint(tmp_path / "m")
    settings = tmp_path / "m" / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"chat_template": OPENING}))
    (path,) = jmedlite.quantize(tmp_path / "m", types=["F32"], out=tmp_path, threads=1)
    with jmedlite.Runner(path, threads=1) as model:
        talk = Conversation(model, max_tokens=6, think_budget=5)
        one, two = say(talk, "q"), say(talk, "r")
        assert one.n_thought == two.n_thought == 5
        list(model.stream("something else", max_tokens=2))
        options = {"max_tokens": 6, "think_budget": 5, "language": "en"}
        fresh = list(model.converse([*talk.turns[:2], ("user", "r")], **options))[-1]  # type: ignore[arg-type]
        assert isinstance(fresh, Answer)
        assert (fresh.text, fresh.thought) == (two.text, two.thought)
        assert fresh.n_cached < two.n_cached


# ---------------------------------------------------------------------------------------------------- command line


def test_ask(thinker: Path) -> None:
    done = run_text("ask", "-m", str(thinker), "q")
    assert (done.returncode, done.stdout) == (0, "B </think> is said.\n")
    assert "is it A" not in done.stderr
    found = json.loads(run_text("ask", "-m", str(thinker), "q", "--json", "--think-budget", "3").stdout)
    told = ("answer", "thought", "n_thought", "thought_closed_by_budget", "thought_is_open")
    assert [found[k] for k in told] == ["B </think> is said.", "is it A?", 3, True, False]
    done = run_text("ask", "-m", str(thinker), "q", "--json", "--no-think", "--template-var", "x=1")
    found = json.loads(done.stdout)
    assert (found["answer"], found["thought"], found["n_thought"]) == ("B </think> is said.", None, 0)
    assert "warning: --template-var x: has no effect" in done.stderr
    done = run_text("ask", "-m", str(thinker), "q", "--max-tokens", "4")
    assert (done.returncode, done.stdout) == (0, "\n")
    assert "no answer: the thought took all 4 tokens" in done.stderr


def test_on_a_terminal_the_thought_is_dimmed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from jmedlite.cli import console

    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for hide in (False, True):
        shown = console.Talk(hide=hide)
        shown.think("is it\x1b A? ")
        shown.think("no")
        shown.write("B")
        shown.end()
        out, err = capsys.readouterr()
        assert out == "B\n"
        assert "\x1b[2m" in err
        bare = err.replace("\x1b[2m", "").replace("\x1b[22m", "")
        assert bare == ("(thinking …)\n" if hide else "is it␛ A? no\n")


def test_think_in_a_chat(thinker: Path) -> None:
    from jmedlite.cli.chat_loop import Chat

    with Runner(thinker, threads=1) as model:
        talk = Conversation(model)
        lines = iter(["/think off", "q", "/think on", "r", "/think maybe", "/think"])

        def read(_: str) -> str:
            try:
                return next(lines)
            except StopIteration:
                raise EOFError from None

        Chat(talk).run(read)
        assert [text for _, text in talk.turns] == ["q", "B </think> is said.", "r", "B </think> is said."]
        assert talk.sampling.think is True
