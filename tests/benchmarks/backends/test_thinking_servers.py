"""Thinking models behind servers: the thought in a field or in the text, its tokens, what reaches the template."""

from __future__ import annotations

from typing import Any

import pytest

from jmedlite.base.errors import UsageError
from jmedlite.benchmarks.backends.base import RawAnswer, Wanted
from jmedlite.benchmarks.backends.endpoint import EndpointModel
from tests.support.openai_servers import Answered, serving

PROMPT = {"body": [("Which?\n", False)], "cue": [("Answer:", True)], "continuations": []}
LETTERS = {**PROMPT, "continuations": [" A", " B"]}
OFF, ON = ({n: v[on] for n, v in {
    "enable_thinking": (False, True), "thinking": (False, True), "reasoning": (False, True), "thinking_budget": (0, -1),
}.items()} for on in (0, 1))  # fmt: skip


class Thinker:
    """A server of a thinking model: `message` is what it answers in a chat, `refuses` what it does not understand."""

    def __init__(self, message: dict[str, Any], finish: str = "stop", *, refuses: tuple[str, ...] = ()) -> None:
        self.message, self.finish, self.refuses = message, finish, refuses
        self.asked: list[dict[str, Any]] = []

    def __call__(self, path: str, body: dict[str, Any]) -> Answered:
        if not body:
            return 200, {"data": [{"id": "m"}]}
        for name in self.refuses:
            if name in body:
                return 400, {"error": {"message": f"Unrecognized request argument supplied: {name}"}}
        begun = body["messages"][-1]["role"] == "assistant" and self.message["content"] != "B"
        if begun and body.get("chat_template_kwargs", {}).get("enable_thinking") is not False:  # as llama-server
            words = "Assistant response prefill is incompatible with enable_thinking."
            return 400, {"error": {"message": words}}
        self.asked.append(body)
        choice = {"message": {"role": "assistant", **self.message}, "finish_reason": self.finish}
        if body.get("logprobs"):
            top = [{"token": t, "logprob": p} for t, p in ((" A", -1.0), (" B", -0.6))]
            choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
        usage = {"prompt_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 7}}
        return 200, {"choices": [choice], "usage": usage}


def ask(server: Thinker, **wanted: Any) -> RawAnswer:
    prompts = (LETTERS,) if not wanted.get("max_tokens") else (PROMPT,)
    with serving(server) as url, EndpointModel(url) as model:
        model.prepare(Wanted(prompts, chat=True, **wanted))
        server.asked.clear()
        ((_, (answer,)),) = model.run(0, 1)
    return answer


@pytest.mark.parametrize(
    ("message", "finish", "expected"),
    [
        ({"content": "angina", "reasoning_content": "is it A?"}, "stop", ("angina", "is it A?", 7, False)),
        ({"content": "angina", "reasoning": "is it A?"}, "stop", ("angina", "is it A?", 7, False)),
        ({"content": "<think>is it A?</think>\n\nangina"}, "stop", ("angina", "is it A?", 7, False)),
        ({"content": "is it A?\n</think>\n\nangina"}, "stop", ("angina", "is it A?", 7, False)),
        ({"content": None, "reasoning_content": "is it"}, "length", ("", "is it", 7, True)),
        ({"content": "<think>is it"}, "length", ("", "is it", 7, True)),
        ({"content": "angina", "reasoning_content": None}, "stop", ("angina", None, None, None)),
    ],
)
def test_the_thought_is_apart(message: dict[str, Any], finish: str, expected: tuple[Any, ...]) -> None:
    answer = ask(Thinker(message, finish), max_tokens=50)
    assert tuple(answer.get(k) for k in ("response", "thought", "n_thought", "unclosed")) == expected


def test_a_model_that_thinks_has_its_cue_in_the_question() -> None:
    server = Thinker({"content": "angina", "reasoning_content": "is it A?"})
    ask(server, max_tokens=50)
    assert [m["content"] for m in server.asked[0]["messages"]] == ["Which?\nAnswer:"]
    # where only a refusal says so
    server = Thinker({"content": "angina"})
    ask(server, max_tokens=50)
    assert [m["content"] for m in server.asked[0]["messages"]] == ["Which?\nAnswer:"]
    # and one that does not think has its answer begun
    server = Thinker({"content": "angina"})
    ask(server, max_tokens=50, think=False)
    assert [m["content"] for m in server.asked[0]["messages"]] == ["Which?\n", "Answer:"]


def test_what_reaches_the_template() -> None:
    server = Thinker({"content": "angina"})
    ask(server, max_tokens=50, think=False, template_vars={"x": 1})
    assert server.asked[0]["chat_template_kwargs"] == {**OFF, "x": 1}
    ask(server, max_tokens=50, think=True)
    assert server.asked[0]["chat_template_kwargs"] == ON
    ask(server, max_tokens=50)
    assert "chat_template_kwargs" not in server.asked[0]
    ask(server)  # a letter is asked with the thought closed
    assert server.asked[0]["chat_template_kwargs"] == OFF


def test_a_server_that_does_not_know_templates() -> None:
    strict = {"refuses": ("chat_template_kwargs", "repeat_penalty")}
    server = Thinker({"content": "B"}, **strict)  # type: ignore[arg-type]
    assert ask(server)["scores"] == [-1.0, -0.6]
    assert "chat_template_kwargs" not in server.asked[0]
    for options in ({"think": False}, {"template_vars": {"x": 1}}):
        with pytest.raises(UsageError, match="takes no chat_template_kwargs"):
            ask(Thinker({"content": "B"}, **strict), max_tokens=50, **options)  # type: ignore[arg-type]
