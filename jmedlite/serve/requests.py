"""Requests of OpenAI's API, read: a field has its effect, or can have none on an answer, or is refused by name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from jmedlite.base.errors import DataError, UsageError
from jmedlite.base.inputs import parse_json
from jmedlite.base.records import from_json
from jmedlite.runtime.runner import check_question
from jmedlite.runtime.sampling import Sampling
from jmedlite.runtime.token_scores import MOST_ALTERNATIVES

MAX_PROMPTS = 128  # of one request
MAX_VALUES = 1_000_000
# what a caller says of himself or to the company, without any effect on an answer
NO_MATTER = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"})
# what clients send back of an answer; a thought stays out of later turns, as the templates themselves have it
OF_MESSAGES = frozenset({"role", "content", "reasoning_content", "refusal", "annotations"})
# fields whose only value is the one that is meant where they are absent
ONLY: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},),
    "tools": ([],), "tool_choice": ("none", "auto"), "parallel_tool_calls": (True, False), "functions": ([],),
    "modalities": (["text"],), "suffix": ("",), "cache_prompt": (True,),
}  # fmt: skip

FLAG = re.compile(r"--([a-z][a-z-]*)")

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    include_usage: bool = False


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What both kinds of request may have. Without a temperature the same question gets the same answer."""

    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    repetition_penalty: float | None = None  # vLLM's name of it
    seed: int | None = None
    stop: Any = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    grammar: str | None = None
    json_schema: Any = None

    def __post_init__(self) -> None:
        if self.stream_options is not None and not self.stream:
            raise UsageError("stream_options: has no effect without stream; leave it away")

    @property
    def tells_usage(self) -> bool:
        """Whether a stream's last chunk tells the tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What of the answer's schema has no effect."""
        return Sampling(json_schema=self.schema).warnings()

    @property
    def schema(self) -> Any:
        """The JSON schema of the answer; None for none."""
        return self.json_schema

    def sampling(self, **more: Any) -> Sampling:
        """The options of the answer; raises UsageError or DataError."""
        penalties = {self.repeat_penalty, self.repetition_penalty} - {None}
        if len(penalties) > 1:
            raise UsageError("repeat_penalty and repetition_penalty are two names of one thing; give one")
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if not (isinstance(stop, list) and all(isinstance(text, str) for text in stop)):
            raise UsageError("stop: expected a text, or a list of texts")
        given = {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": 1.0 if self.top_p is None else self.top_p,  # as OpenAI's API has it
            "top_k": 0 if self.top_k is None else max(0, self.top_k),
            "min_p": self.min_p,
            "repeat_penalty": next(iter(penalties), None),
            "seed": self.seed,
            "stop": tuple(stop),
            "grammar": self.grammar,
            "json_schema": self.schema,
            **more,
        }
        try:
            return Sampling(**{name: value for name, value in given.items() if value is not None})
        except UsageError as e:  # names of the command line's, which are those of fields with other hyphens
            raise UsageError(FLAG.sub(lambda found: found[1].replace("-", "_"), str(e))) from None


@dataclass(frozen=True, kw_only=True)
class ChatRequest(Asked):
    messages: tuple[Any, ...]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: Any = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None  # variables of the chat template, as for llama-server and vLLM
    think_budget: int | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    def to_child(self) -> dict[str, Any]:
        """The request to the process that holds the model."""
        system, turns = _turns(self.messages)
        begun, is_begun = None, turns[-1][0] == "assistant"
        if is_begun != bool(self.continue_final_message):
            raise UsageError("messages: continue_final_message: true has the last one go on, which must be the "
                             "assistant's, and is needed where it is")  # fmt: skip
        if self.add_generation_prompt is not None and self.add_generation_prompt == is_begun:
            raise UsageError("add_generation_prompt: is false where continue_final_message is true, and true else")
        if is_begun:
            begun = turns.pop()[1]
        if [role for role, _ in turns] != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
            raise UsageError("messages: expected user and assistant in turn, the user's first and last")
        for _, text in turns:
            check_question(text)
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise UsageError("max_tokens and max_completion_tokens are two names of one thing; give one")
        if self.top_logprobs is not None and not self.logprobs:
            raise UsageError("top_logprobs: has no effect without logprobs: true; give both")
        more = self._more()
        return {
            "op": "ask",
            "messages": [{"role": role, "content": text} for role, text in turns],
            "begun": begun,
            "system": system,
            "language": None,
            "logprobs": _likeliest(self.top_logprobs or 0) if self.logprobs else None,
            "sampling": vars(self.sampling(**more)),
        }

    @property
    def schema(self) -> Any:
        form = _form(self.response_format)
        if form is not None and self.json_schema is not None:
            raise UsageError("response_format and json_schema are two names of one thing; give one")
        return self.json_schema if form is None else form

    def _more(self) -> dict[str, Any]:
        """Options of the answer that only a chat has."""
        more: dict[str, Any] = {"think_budget": self.think_budget, "template_vars": self.chat_template_kwargs or {}}
        if self.max_completion_tokens is not None:
            more["max_tokens"] = self.max_completion_tokens
        if self.reasoning_effort is not None:
            if self.reasoning_effort != "none":
                more["template_vars"] = {"reasoning_effort": self.reasoning_effort} | more["template_vars"]
            else:
                more["think"] = False
        return more


@dataclass(frozen=True, kw_only=True)
class CompletionRequest(Asked):
    prompt: Any
    echo: bool | None = None
    logprobs: int | None = None
    return_tokens_as_token_ids: bool | None = None  # vLLM's: `token_id:7` for a token's text, which others may share

    def prompts(self) -> list[str | list[int]]:
        """Texts, or tokens."""
        given = self.prompt
        if isinstance(given, str) or (isinstance(given, list) and given and all(type(t) is int for t in given)):
            given = [given]
        fits = isinstance(given, list) and given and all(isinstance(one, str) or _are_tokens(one) for one in given)
        if not fits:
            raise UsageError("prompt: expected a text, a list of texts, or tokens")
        if len(given) > MAX_PROMPTS:
            raise UsageError(f"prompt: has {len(given):,} prompts; send at most {MAX_PROMPTS} at once")
        return list(given)

    def to_child(self, prompt: str | list[int]) -> dict[str, Any]:
        """The request to the process that holds the model, of one of the prompts."""
        n = 16 if self.max_tokens is None else self.max_tokens  # OpenAI's default
        if n == 0 and not self.echo:
            raise UsageError("max_tokens: is 0, and without echo there is nothing to say")
        return {
            "op": "complete",
            "prompt": prompt,
            "echo": bool(self.echo),
            "logprobs": None if self.logprobs is None else _likeliest(self.logprobs),
            "sampling": {**vars(self.sampling(max_tokens=max(1, n))), "max_tokens": n},
        }


def read_request(body: bytes, kind: type[T]) -> T:
    """A request of a kind; raises DataError or UsageError, which name the field."""
    try:
        given = parse_json(body, most=MAX_VALUES)
    except ValueError as e:
        raise DataError(f"the request is not JSON ({e})") from None
    if not isinstance(given, dict):
        raise DataError("the request is no JSON object")
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    wanted = {}
    for name, value in given.items():
        if name in known:
            if value is not None:
                wanted[name] = value
        elif name in ONLY:
            if value is not None and value not in ONLY[name]:
                raise UsageError(f"{name}: {_short(value)} can't be had from this server; leave it away")
        elif name not in NO_MATTER:
            raise UsageError(f"{name}: this server does not know it; leave it away")
    return from_json(wanted, kind, "request")


def _turns(messages: tuple[Any, ...]) -> tuple[str, list[tuple[str, str]]]:
    """(the system prompt, "" for none; role and text of every other message)."""
    system = ""
    turns: list[tuple[str, str]] = []
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise UsageError(f"messages[{i}]: expected an object with role and content")
        role, text = message.get("role"), _text(message.get("content"), f"messages[{i}]")
        extra = [name for name in message if name not in OF_MESSAGES and message[name]]
        if extra:
            raise UsageError(f"messages[{i}]: {extra[0]}: this server does not know it; leave it away")
        if role in ("system", "developer"):
            if turns or system:
                raise UsageError(f"messages[{i}]: only one system message can be had, and before all others")
            system = text
            if text:
                check_question(text)
        elif role in ("user", "assistant"):
            turns.append((str(role), text))
        else:
            raise UsageError(f"messages[{i}]: the role {_short(role)} is none of system, user and assistant")
    if not turns:
        raise UsageError("messages: there is no question among them")
    return system, turns


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list) and content:
        parts = [p.get("text") if isinstance(p, Mapping) and p.get("type") == "text" else None for p in content]
        if all(isinstance(p, str) for p in parts):
            return "".join(map(str, parts))
    raise UsageError(f"{where}: its content is no text; this server takes nothing else")


def _form(given: Any) -> Mapping[str, Any] | bool | None:
    """The schema that a `response_format` asks for; None for none."""
    kind = given.get("type") if isinstance(given, Mapping) else None
    if given is None or kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind == "json_schema":
        named = given.get("json_schema", given)
        schema = named.get("schema") if isinstance(named, Mapping) else None
        if isinstance(schema, Mapping | bool):
            return schema
    raise UsageError("response_format: expected text, json_object, or json_schema with a schema")


def _likeliest(n: int) -> int:
    if not 0 <= n <= MOST_ALTERNATIVES:
        raise UsageError(f"logprobs: {n} alternatives can't be had; at most {MOST_ALTERNATIVES}")
    return n


def _are_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(t) is int for t in value)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:60] + "…"
