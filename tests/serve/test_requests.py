"""Requests and replies of OpenAI's API: every field has its effect, or can have none, or is refused by name."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from typing import Any

import pytest
from starlette.testclient import TestClient

from jmedlite.serve.requests import NO_MATTER, ONLY, ChatRequest, CompletionRequest
from tests.support.serving import END, FakeRunner, chunks, client_of

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = [{"role": "user", "content": "頭痛の原因は。"}]
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


def chat(client: TestClient, **fields: Any) -> dict[str, Any]:
    answer = client.post(CHAT, json={"messages": USER, "max_tokens": 8, **fields})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def said(client: TestClient, **fields: Any) -> str:
    text: str = chat(client, **fields)["choices"][0]["message"]["content"]
    return text


def complete(client: TestClient, **fields: Any) -> dict[str, Any]:
    answer = client.post(TEXT, json={"prompt": "hello", "max_tokens": 8, **fields})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def refused(path: str, body: Any, status: int = 400) -> dict[str, Any]:
    """The error of a request that reaches no model."""
    runner = FakeRunner()
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client_of(runner).post(path, content=data, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert runner.requests == []
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_the_model_is_listed(client: TestClient) -> None:
    (entry,) = client.get("/v1/models").json()["data"]
    assert entry == client.get("/v1/models/m").json()
    assert (entry["id"], entry["object"], entry["max_model_len"], entry["meta"]["license"]) == (
        "m",
        "model",
        8192,
        "apache-2.0",
    )
    for answer in (client.get("/v1/models/other"), client.post(CHAT, json={"model": "other", "messages": USER})):
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert client.get("/health").json() == {"status": "ok"}


def test_an_answer_whole_and_streamed(client: TestClient) -> None:
    whole = chat(client, model="m")
    choice = whole["choices"][0]
    assert (whole["object"], whole["model"], choice["finish_reason"]) == ("chat.completion", "m", "length")
    assert whole["jmedlite"]["notice"] == "For research only, not for diagnosis or treatment."
    assert whole["usage"]["completion_tokens"] == 8
    assert whole["usage"]["total_tokens"] == whole["usage"]["prompt_tokens"] + 8
    answer = client.post(
        CHAT, json={"messages": USER, "max_tokens": 8, "stream": True, "stream_options": {"include_usage": True}}
    )
    assert answer.headers["content-type"].startswith("text/event-stream")
    first, *others, last = chunks(answer.text)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert first["jmedlite"] == whole["jmedlite"]
    assert last["choices"] == []
    assert last["usage"] | {"prompt_tokens_details": 0} == whole["usage"] | {"prompt_tokens_details": 0}
    deltas = [c["choices"][0]["delta"].get("content", "") for c in others]
    assert "".join(deltas).strip() == choice["message"]["content"] != ""
    assert [c["choices"][0]["finish_reason"] for c in others] == [None] * (len(others) - 1) + ["length"]
    assert {c["id"] for c in (first, *others, last)} == {first["id"]} != {whole["id"]}


def test_fields_of_both_have_their_effect(client: TestClient) -> None:
    plain = said(client)
    assert said(client, max_completion_tokens=8, max_tokens=None) == plain
    assert chat(client, max_tokens=3)["usage"]["completion_tokens"] == 3
    hot = [said(client, temperature=1, seed=s) for s in (5, 5, 6)]
    assert hot[0] == hot[1] != hot[2]
    for cold in ({"top_k": 1}, {"top_p": 0}, {"min_p": 1}):
        assert said(client, temperature=1, seed=5, **cold) == plain
    once = said(client, max_tokens=60, repeat_penalty=5)
    assert once == said(client, max_tokens=60, repetition_penalty=5) != said(client, max_tokens=60)
    middle = plain[len(plain) // 2]
    assert said(client, stop=middle) == said(client, stop=[middle, "never"]) == plain.partition(middle)[0].strip()
    assert chat(client, stop=middle)["choices"][0]["finish_reason"] == "stop"
    assert said(client, grammar='root ::= "yes" | "no"', max_tokens=40) in ("yes", "no")


def test_forms(client: TestClient) -> None:
    named = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": SCHEMA}}
    for form in ({"response_format": named}, {"json_schema": SCHEMA}):
        assert list(json.loads(said(client, max_tokens=99, **form))) == ["n"]
    assert said(client, response_format={"type": "json_object"}, max_tokens=4).startswith("{")
    assert said(client, response_format={"type": "text"}) == said(client)
    odd = chat(client, json_schema={"enum": ["a"], "titel": 1}, max_tokens=9)
    assert "`titel` is no keyword" in odd["jmedlite"]["warnings"][0]
    body = {"messages": USER, "json_schema": {"enum": ["a"], "titel": 1}, "stream": True}
    assert chunks(client.post(CHAT, json=body).text)[-1]["jmedlite"] == {"warnings": odd["jmedlite"]["warnings"]}


def test_a_system_prompt_and_a_begun_answer(client: TestClient) -> None:
    plain = said(client)
    system = {"role": "system", "content": "Be brief."}
    assert said(client, messages=[system, *USER]) != plain
    assert said(client, messages=[{**system, "role": "developer"}, *USER]) == said(client, messages=[system, *USER])
    parts = [{"type": "text", "text": "頭痛の"}, {"type": "text", "text": "原因は。"}]
    assert said(client, messages=[{"role": "user", "content": parts}]) == plain
    whole = chat(client, max_tokens=12)
    begun = [*USER, {"role": "assistant", "content": "A"}]
    onward = chat(client, messages=begun, continue_final_message=True, add_generation_prompt=False)
    assert onward["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"] + 1


def test_chances_of_a_chat(client: TestClient) -> None:
    found = chat(client, logprobs=True, top_logprobs=5)["choices"][0]
    told = found["logprobs"]["content"]
    assert len(told) == 8
    for token in told:
        assert token["logprob"] == token["top_logprobs"][0]["logprob"]
        assert len({t["token"] for t in token["top_logprobs"]}) == 5
        assert math.fsum(math.exp(t["logprob"]) for t in token["top_logprobs"]) < 1
    text = b"".join(bytes(t["bytes"]) for t in told).decode("utf-8", "replace")
    assert found["message"]["content"] in text
    assert chat(client, logprobs=True)["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []
    assert chat(client)["choices"][0]["logprobs"] is None


def test_completions(client: TestClient) -> None:
    one = complete(client)["choices"][0]
    several = complete(client, prompt=["hello", "the fever", "hello"])
    assert [c["index"] for c in several["choices"]] == [0, 1, 2]
    texts = [c["text"] for c in several["choices"]]
    assert texts[0] == texts[2] == one["text"] != texts[1]
    assert several["usage"]["completion_tokens"] == 24
    scored = complete(client, echo=True, logprobs=2, max_tokens=0)["choices"][0]
    assert scored["text"] == "hello"
    told = scored["logprobs"]
    assert told["token_logprobs"][0] is told["top_logprobs"][0] is None
    assert told["text_offset"] == [0]
    longer = complete(client, prompt="the hello fever", echo=True, logprobs=0, max_tokens=1)["choices"][0]
    assert longer["text"].startswith("the hello fever")
    assert "".join(longer["logprobs"]["tokens"])[: len("the hello fever")] == "the hello fever"
    assert all(x < 0 for x in longer["logprobs"]["token_logprobs"][1:])
    ids = complete(client, prompt="hello", echo=True, logprobs=2, max_tokens=1, return_tokens_as_token_ids=True)
    numbered = ids["choices"][0]["logprobs"]
    assert numbered["text_offset"] == [0, 5]
    for name in (*numbered["tokens"], *numbered["top_logprobs"][1]):
        assert name.removeprefix("token_id:").isdecimal()
    stream = {"prompt": "the hello", "stream": True, "logprobs": 1, "echo": True, "max_tokens": 3}
    pieces = [c["choices"][0] for c in chunks(client.post(TEXT, json=stream).text)]
    same = complete(client, prompt="the hello", logprobs=1, echo=True, max_tokens=3)["choices"][0]
    assert "".join(p["text"] for p in pieces) == same["text"]
    offsets = [at for p in pieces if p["logprobs"] for at in p["logprobs"]["text_offset"]]
    assert offsets == same["logprobs"]["text_offset"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"frobnicate": 1}, "frobnicate: this server does not know it"),
        ({"n": 2}, "n: 2 can't be had"),
        ({"tools": [{"type": "function"}]}, "tools: "),
        ({"tool_choice": "required"}, "tool_choice: "),
        ({"logit_bias": {"5": 1}}, "logit_bias: "),
        ({"frequency_penalty": 0.5}, "frequency_penalty: "),
        ({"presence_penalty": 0.5}, "presence_penalty: "),
        ({"modalities": ["audio"]}, "modalities: "),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 1000}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "two names"),
        ({"repeat_penalty": 1, "repetition_penalty": 2}, "two names"),
        ({"stop": [""]}, "stop"),
        ({"stop": 5}, "stop"),
        ({"top_logprobs": 5}, "top_logprobs: has no effect"),
        ({"logprobs": True, "top_logprobs": 500}, "500 alternatives"),
        ({"stream_options": {"include_usage": True}}, "stream_options: has no effect"),
        ({"stream": True, "stream_options": {"other": 1}}, "other"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_object"}, "json_schema": {}}, "two names"),
        ({"json_schema": {}, "grammar": "root ::= x"}, "exclude each other"),
        ({"json_schema": {"not": {}}}, "#/not"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        ({"chat_template_kwargs": {"messages": 1}}, "messages"),
        ({"think_budget": -1}, "think_budget"),
        ({"messages": []}, "no question"),
        ({"messages": None}, "messages"),
        ({"messages": "q"}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "tool"),
        ({"messages": [{"role": "user", "content": ""}]}, "empty"),
        ({"messages": [{"role": "user", "content": "a\0"}]}, "NUL"),
        ({"messages": [*USER, *USER]}, "in turn"),
        ({"messages": [*USER, {"role": "assistant", "content": "x"}]}, "continue_final_message"),
        ({"messages": [*USER, {"role": "system", "content": "x"}]}, "system"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "content"),
        ({"messages": [{**USER[0], "tool_calls": [1]}]}, "tool_calls"),
        ({"messages": [{**USER[0], "name": "Ann"}]}, "name"),
    ],
)
def test_what_has_no_effect_is_refused_by_name(more: dict[str, Any], words: str) -> None:
    assert words in refused(CHAT, {"messages": USER, **more})["message"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"prompt": []}, "prompt: expected"),
        ({"prompt": [[]]}, "prompt: expected"),
        ({"prompt": {"a": 1}}, "prompt: expected"),
        ({"prompt": ["x"] * 200}, "at most 128"),
        ({"prompt": None}, "prompt"),
        ({"max_tokens": 0}, "echo"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"best_of": 3}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"messages": USER}, "messages: this server does not know it"),
        ({"prompt": ["a", "b"], "stream": True}, "one prompt at a time"),
    ],
)
def test_what_a_completion_does_not_take(more: dict[str, Any], words: str) -> None:
    assert words in refused(TEXT, {"prompt": "hello", **more})["message"]


def test_what_can_have_no_effect_has_none() -> None:
    """What OpenAI's clients send by themselves, and the only values that mean the same as nothing."""
    runner = FakeRunner()
    client = client_of(runner)
    plain = said(client)
    for more in [*({name: "x"} for name in NO_MATTER), *({name: value} for name in ONLY for value in ONLY[name])]:
        assert said(client, **more) == plain == "hello"
    assert all(request == runner.requests[0] for request in runner.requests)


def test_every_field_reaches_the_model_or_the_reply() -> None:
    """One that is read into a dataclass and then forgotten would be ignored in silence."""
    chat_only = {
        "max_completion_tokens": 5, "logprobs": True, "response_format": {"type": "json_object"},
        "reasoning_effort": "high", "chat_template_kwargs": {"v": 1}, "think_budget": 3,
    }  # fmt: skip
    both = {
        "max_tokens": 5, "temperature": 1, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "repeat_penalty": 2,
        "repetition_penalty": 2, "seed": 3, "stop": "x", "grammar": "root ::= [a]", "json_schema": {"type": "array"},
    }  # fmt: skip
    elsewhere = {"model", "messages", "prompt", "stream", "stream_options", "top_logprobs", "add_generation_prompt",
                 "continue_final_message", "return_tokens_as_token_ids"}  # fmt: skip
    for path, kind, own, base in (
        (CHAT, ChatRequest, chat_only, {"messages": USER}),
        (TEXT, CompletionRequest, {"echo": True, "logprobs": 1}, {"prompt": "x"}),
    ):
        assert {f.name for f in fields(kind)} == {*own, *both} | elsewhere & {f.name for f in fields(kind)}
        runner = FakeRunner()
        for more in ({}, *({name: value} for name, value in {**both, **own}.items())):
            assert client_of(runner).post(path, json={**base, **more}).status_code == 200
        first, *others = runner.requests
        assert all(request != first for request in others)


def test_bodies_that_are_no_request() -> None:
    client = client_of(FakeRunner())
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        answer = client.post(CHAT, content=b"{}", headers={"Content-Type": kind})
        assert (answer.status_code, "send application/json" in answer.text) == (400, True)
    for body in (b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"messages": ' + b"[" * 5000, b'{"a": NaN}'):
        refused(CHAT, body)
    assert "4 MB" in refused(CHAT, b" " * ((4 << 20) + 1), 413)["message"]
    assert "does not know" in refused(CHAT, {"x" * 5000: 1})["message"]


def test_a_context_that_is_full(client: TestClient) -> None:
    answer = client.post(CHAT, json={"messages": [{"role": "user", "content": "x" * 9000}]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    streamed = client.post(CHAT, json={"messages": [{"role": "user", "content": "x" * 9000}], "stream": True})
    assert streamed.json() == answer.json()


FAULT = {"event": "error", "kind": "NativeError", "code": 70, "message": "the process was killed"}


def test_a_fault_is_told_before_and_inside_a_stream() -> None:
    body = {"messages": USER, "stream": True}
    answer = client_of(FakeRunner(FAULT)).post(CHAT, json=body)
    assert (answer.status_code, answer.json()["error"]["message"]) == (500, "the process was killed")
    inside = client_of(FakeRunner({"event": "token", "text": "hel"}, FAULT)).post(CHAT, json=body)
    *_, piece, fault = chunks(inside.text)
    assert piece["choices"][0]["delta"] == {"content": "hel"}
    assert fault["error"]["message"] == "the process was killed"
    several = client_of(FakeRunner(FAULT)).post(TEXT, json={"prompt": ["a", "b", "c"]})
    assert several.status_code == 500


def test_thoughts_and_warnings_are_told() -> None:
    end = {**END, "n_thought": 4, "n_generated": 6, "warnings": ["no switch"], "stop": "context"}
    runner = FakeRunner({"event": "thought", "text": "hm"}, {"event": "token", "text": "\nB"}, end)
    whole = chat(client_of(runner), chat_template_kwargs={"enable_thinking": True})
    assert whole["choices"][0]["message"] == {
        "role": "assistant", "content": "B", "refusal": None, "reasoning_content": "hm",
    }  # fmt: skip
    assert whole["choices"][0]["finish_reason"] == "length"
    assert whole["usage"]["completion_tokens_details"] == {"reasoning_tokens": 4}
    assert whole["jmedlite"]["warnings"] == ["no switch"]
    assert runner.requests[0]["sampling"]["template_vars"] == {"enable_thinking": True}
    chat(client_of(runner), reasoning_effort="none")
    assert runner.requests[1]["sampling"]["think"] is False
