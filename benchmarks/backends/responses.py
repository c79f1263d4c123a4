"""What OpenAI-compatible servers answer, read and checked: log-probabilities of tokens, in the forms there are."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jmedlite.base.errors import DataError, UsageError
from jmedlite.base.records import Foreign, from_json
from jmedlite.base.wording import shown, some
from jmedlite.runtime.thoughts import Said, split_thought

FLOOR = -1000.0  # nats; servers write p = 0 as -9999 (vLLM) or -3.4e38 (llama-server)
SLACK = 1e-6  # what a sum of float32 probabilities may be wrong by


@dataclass(frozen=True, kw_only=True)
class _Details(Foreign):
    reasoning_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class _Usage(Foreign):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    completion_tokens_details: _Details | None = None


@dataclass(frozen=True, kw_only=True)
class _Message(Foreign):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Logprobs(Foreign):
    """Of each token; what stands there has several forms, which `top_tokens` and `echoed` read."""

    tokens: tuple[str, ...] | None = None
    token_logprobs: tuple[Any, ...] | None = None
    top_logprobs: tuple[dict[str, Any] | None, ...] | None = None
    content: tuple[dict[str, Any] | None, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class _Choice(Foreign):
    text: str | None = None
    message: _Message | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None


@dataclass(frozen=True, kw_only=True)
class _Answer(Foreign):
    choices: tuple[_Choice, ...] | None = None
    usage: _Usage | None = None


@dataclass(frozen=True, kw_only=True)
class _Meta(Foreign):
    n_params: int | None = None
    n_ctx: int | None = None


@dataclass(frozen=True, kw_only=True)
class ModelEntry(Foreign):
    """One of the models that a server lists."""

    id: str
    owned_by: str | None = None
    max_model_len: int | None = None
    meta: _Meta | None = None


def checked(answer: dict[str, Any], where: str) -> dict[str, Any]:
    """A server's answer, once all that is read of it has its type; raises DataError, which says where it has not."""
    from_json(answer, _Answer, where)
    return answer


def log_probability(value: Any, where: str) -> float:
    """A server's ln p, checked. Of a probability of 0, JSON has no logarithm: servers write null or -Infinity."""
    if value is None or value == -math.inf:
        return FLOOR
    number = value if isinstance(value, float) or (type(value) is int and abs(value) < 1 << 63) else math.nan
    if not math.isfinite(number) or number > SLACK:
        raise DataError(f"{where}: gave {shown(value)} as the logarithm of a probability")
    return max(min(float(number), 0.0), FLOOR)


def top_tokens(choice: dict[str, Any], where: str) -> list[tuple[str, float]]:
    """(text, ln p) of the likeliest tokens at the first position that was generated.

    Two forms: OpenAI's old one, an object of texts (vLLM's completions), and the one of its chats, a list of objects
    (all chats, and llama-server's completions). UsageError where there is none.
    """
    entries = entries_of(choice)
    if not entries or not isinstance(entries[0], dict):
        raise UsageError(f"{where}: returns no log-probabilities, which --method letter needs; use --method generate")
    first = entries[0]
    if "top_logprobs" in first and isinstance(first["top_logprobs"], list):
        pairs = [(e.get("token"), e.get("logprob")) for e in (*first["top_logprobs"], first) if isinstance(e, dict)]
    else:
        pairs = list(first.items())
    top: dict[str, float] = {}
    for text, value in pairs:
        if not isinstance(text, str):
            raise DataError(f"{where}: gave {shown(text)} as a token's text")
        lp = log_probability(value, where)
        top[text] = max(lp, top.get(text, lp))  # one text of two tokens, or the token that was taken once more
    if not top:
        raise DataError(f"{where}: gave no token as the likeliest")
    return sorted(top.items(), key=lambda pair: -pair[1])


def entries_of(choice: dict[str, Any]) -> list[Any]:
    """What is told of each token that was generated."""
    found = choice.get("logprobs")
    entries = (found.get("top_logprobs") or found.get("content")) if isinstance(found, dict) else None
    return entries if isinstance(entries, list) else []


def letter_scores(top: Sequence[tuple[str, float]], continuations: Sequence[str]) -> tuple[list[float], int]:
    """(ln p of each continuation, how many are only a bound), found by its text among the likeliest tokens.

    " A" and "A" are two tokens, so the text must be the same, a leading space included, however it is written. Only
    where a server shows no leading space of any token (vLLM with SentencePiece strips them) is the space left away.
    What is not in the list has at most the probability of the last one in it, and of what is left for all others.
    """
    texts = {re.sub("^[▁Ġ]", " ", text): lp for text, lp in reversed(top)}
    if not any(text.startswith(" ") and text.strip() for text in texts) and not texts.keys() & set(continuations):
        continuations = [c.lstrip() for c in continuations]
    left = max(0.0, 1 - math.fsum(math.exp(lp) for _, lp in top)) + SLACK
    bound = max(min(top[-1][1], math.log(left)), FLOOR)
    return [texts.get(c, bound) for c in continuations], sum(c not in texts for c in continuations)


def echoed(answer: dict[str, Any], where: str) -> tuple[list[str], list[Any]]:
    """(tokens, ln p) of the prompt that an answer repeats; UsageError where it does not."""
    found = choice_of(answer, where).get("logprobs") or {}
    tokens, values = found.get("tokens") or [], found.get("token_logprobs") or []
    n_new = (answer.get("usage") or {}).get("completion_tokens")
    n = len(tokens) - max(0, 1 if n_new is None else n_new)
    if n < 1:
        raise no_echo(where)
    n_prompt = n_prompt_of(answer) or n
    # llama-cpp-python's server leaves one out, and gives each the log-probability of another
    if n != n_prompt or len(values) != len(tokens) or not all(isinstance(t, str) for t in tokens):
        raise DataError(
            f"{where}: gave {n} tokens and {len(values)} log-probabilities of a prompt of {n_prompt} tokens"
        )
    return tokens[:n], values[:n]


def no_echo(where: str) -> UsageError:
    """What to say of a server that keeps the prompt's log-probabilities to itself."""
    return UsageError(
        f"{where}: returns no log-probabilities of the prompt, which --method text needs; use --method letter or "
        "generate, or vLLM"
    )


def choice_of(answer: dict[str, Any], where: str) -> dict[str, Any]:
    """The only one that was asked for."""
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise DataError(f"{where}: answered without choices ({some(list(answer), 8) or 'an empty object'})")
    found: dict[str, Any] = choices[0]
    return found


def text_of(choice: dict[str, Any], where: str, *, chat: bool) -> str:
    """What the model wrote."""
    text = (choice.get("message") or {}).get("content") or "" if chat else choice.get("text")
    if not isinstance(text, str):
        raise DataError(f"{where}: answered without a text ({some(list(choice), 8)})")
    return text


def said_by(choice: dict[str, Any], where: str, *, chat: bool, begun: str = "") -> Said:
    """What the model wrote, its thought apart; `begun` is the answer's beginning, where a server repeats it.

    A thought has a field of its own (llama-server, DeepSeek: `reasoning_content`, vLLM: `reasoning`) or is in the text.
    """
    text = text_of(choice, where, chat=chat)
    said = split_thought(text.lstrip().removeprefix(begun) if begun else text)
    message = (choice.get("message") or {}) if chat else {}
    thought = message.get("reasoning_content") or message.get("reasoning")
    if not thought:
        return said
    is_open = said.is_open or (not said.answer.strip() and choice.get("finish_reason") == "length")
    return Said("\n".join(filter(None, (thought.strip(), said.thought))), said.answer, is_open)


def n_thought_of(answer: dict[str, Any]) -> int | None:
    """How many tokens of the answer are a thought, where that is told."""
    details = (answer.get("usage") or {}).get("completion_tokens_details") or {}
    n: int | None = details.get("reasoning_tokens")
    return n


def n_prompt_of(answer: dict[str, Any]) -> int | None:
    """How many tokens the prompt has, where that is told."""
    n: int | None = (answer.get("usage") or {}).get("prompt_tokens")
    return n
