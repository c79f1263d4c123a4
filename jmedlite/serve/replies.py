"""Replies of OpenAI's API: what a model says, as its events come, in the two forms that clients read."""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

Event = dict[str, Any]
FINISHED = {"eos": "stop", "stop": "stop", "length": "length", "context": "length", "stopped": "stop"}


class Reply(ABC):
    """One reply, as a whole or in chunks; `about` are fields that every one of them has besides."""

    kind, prefix = "", ""

    def __init__(self, model: str, about: Mapping[str, Any]) -> None:
        self._head = {"id": f"{self.prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}
        self._about = dict(about)

    def body(
        self, choices: Sequence[Mapping[str, Any]], ends: Sequence[Event], warnings: Sequence[str]
    ) -> dict[str, Any]:
        """The whole reply."""
        told = {**self._about["jmedlite"], **self.about(ends, warnings).get("jmedlite", {})}
        return {**self._head, "object": self.kind, "choices": list(choices), "usage": usage(ends), "jmedlite": told}

    @staticmethod
    def about(ends: Sequence[Event], warnings: Sequence[str]) -> dict[str, Any]:
        """What is said of the request at its end: what of it had no effect."""
        ended = [e for e in ends if e["event"] == "end"]
        found = [*(warnings if ended else ()), *(text for e in ended for text in e.get("warnings", ()))]
        return {"jmedlite": {"warnings": list(dict.fromkeys(found))}} if found else {}

    @abstractmethod
    def piece(self, event: Event) -> dict[str, Any]:
        """The choice of a chunk."""

    def chunk(self, choices: Sequence[Mapping[str, Any]], **more: Any) -> dict[str, Any]:
        """A piece of it."""
        return {**self._head, "object": f"{self.kind}.chunk" if self.prefix == "chatcmpl" else self.kind,
                "choices": list(choices), **more}  # fmt: skip


class ChatReply(Reply):
    kind, prefix = "chat.completion", "chatcmpl"

    @staticmethod
    def choice(events: Sequence[Event]) -> dict[str, Any]:
        """The choice of a whole reply."""
        text, thought = "".join(_texts(events, "token")).strip(), "".join(_texts(events, "thought")).strip()
        message = {"role": "assistant", "content": text, "refusal": None}
        if thought:
            message["reasoning_content"] = thought
        scored = [chat_score(e) for e in events if e["event"] == "scored"]
        end = events[-1]
        return {"index": 0, "message": message, "finish_reason": FINISHED[end["stop"]],
                "logprobs": {"content": scored, "refusal": None} if scored else None}  # fmt: skip

    @staticmethod
    def first() -> dict[str, Any]:
        return {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None, "logprobs": None}

    def piece(self, event: Event) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "delta": {}, "finish_reason": None, "logprobs": None}
        if event["event"] == "token":
            choice["delta"] = {"content": event["text"]}
        elif event["event"] == "thought":
            choice["delta"] = {"reasoning_content": event["text"]}
        elif event["event"] == "scored":
            choice["logprobs"] = {"content": [chat_score(event)], "refusal": None}
        else:
            choice["finish_reason"] = FINISHED[event["stop"]]
        return choice


class TextReply(Reply):
    kind, prefix = "text_completion", "cmpl"

    def __init__(self, model: str, about: Mapping[str, Any], as_ids: bool) -> None:
        super().__init__(model, about)
        self._as_ids = as_ids
        self._at = 0  # characters of the tokens so far

    def choice(self, events: Sequence[Event], index: int) -> dict[str, Any]:
        """One choice of a whole reply."""
        scored = [e for e in events if e["event"] == "scored"]
        text = "".join([*_texts(events, "echo"), *_texts(events, "token")])
        return {"index": index, "text": text, "finish_reason": FINISHED[events[-1]["stop"]],
                "logprobs": text_scores(scored, 0, self._as_ids) if scored else None}  # fmt: skip

    def piece(self, event: Event) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "text": "", "finish_reason": None, "logprobs": None}
        if event["event"] in ("token", "echo"):
            choice["text"] = event["text"]
        elif event["event"] == "scored":
            choice["logprobs"] = text_scores([event], self._at, self._as_ids)
            self._at += len(token_text(event))
        else:
            choice["finish_reason"] = FINISHED[event["stop"]]
        return choice


def usage(ends: Sequence[Event]) -> dict[str, Any]:
    """How many tokens went in and out."""
    n_in, n_out = sum(e["n_prompt"] for e in ends), sum(e["n_generated"] for e in ends)
    return {
        "prompt_tokens": n_in,
        "completion_tokens": n_out,
        "total_tokens": n_in + n_out,
        "prompt_tokens_details": {"cached_tokens": sum(e["n_cached"] for e in ends)},
        "completion_tokens_details": {"reasoning_tokens": sum(e.get("n_thought", 0) for e in ends)},
    }


def chat_score(event: Event) -> dict[str, Any]:
    def told(token: Mapping[str, Any]) -> dict[str, Any]:
        return {"token": token_text(token), "logprob": token["ln_p"], "bytes": token["bytes"]}

    return {**told(event), "top_logprobs": [told(t) for t in event["top"]]}


def text_scores(events: Sequence[Event], at: int, as_ids: bool) -> dict[str, Any]:
    """The older form, parallel lists, from character `at` on. A prompt begins with a token that has no ln p."""
    offsets = []
    for event in events:
        offsets.append(at)
        at += len(token_text(event))
    return {
        "tokens": [token_text(e, as_ids) for e in events],
        "token_logprobs": [e["ln_p"] for e in events],
        "top_logprobs": [None if e["ln_p"] is None else _alternatives(e, as_ids) for e in events],
        "text_offset": offsets,
    }


def _alternatives(event: Event, as_ids: bool) -> dict[str, float]:
    found: dict[str, float] = {}
    for token in event["top"]:  # the likeliest first: of two that read the same, it is the one that counts
        found.setdefault(token_text(token, as_ids), token["ln_p"])
    return found


def token_text(token: Mapping[str, Any], as_ids: bool = False) -> str:
    """A token as text, or as its id; one that is a part of a character as OpenAI's API writes it."""
    if as_ids:
        return f"token_id:{token['token']}"
    blob = bytes(token["bytes"])
    try:
        return blob.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in blob)


def _texts(events: Sequence[Event], kind: str) -> list[str]:
    return [e["text"] for e in events if e["event"] == kind]
