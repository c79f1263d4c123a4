"""Sampling: how the next token is chosen, the options, checked, and llama.cpp's sampler chain for them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jmedlite.base.errors import DataError, UsageError
from jmedlite.base.inputs import read_text
from jmedlite.base.options import check, option

from .chat_template import SET_HERE
from .json_schema import read_schema, schema_text

PENALTY_WINDOW = 64  # tokens that the repeat penalty looks back on
MAX_GRAMMAR = 1 << 20
MOST_STOPS, LONGEST_STOP = 16, 1000


def read_grammar(path: Path) -> str:
    return read_text(path, MAX_GRAMMAR)


def read_json_schema(typed: str) -> str:
    """A schema from what was typed: itself, where it begins with a brace, else the name of a file."""
    return typed if typed.lstrip().startswith("{") else read_grammar(Path(typed))


@dataclass(frozen=True)
class Sampling:
    """Options of one answer. The default is greedy: the same question gets the same answer.

    With a temperature above 0, a token is drawn (by `seed`) from the `top_k` most likely ones (0: all), of those from
    the most likely that together have `top_p`, without those below `min_p` times the most likely. `repeat_penalty`
    above 1 makes tokens of the last 64 less likely. The answer ends where it says one
    of `stop`. `grammar` is GBNF, `json_schema` a JSON schema, as text or as a dictionary.

    `think` turns a model's thoughts on or off (None: as the model does), `think_budget` ends a thought after so many
    tokens (0: no thought); `max_tokens` counts a thought too where no budget does. What bounds the answer's form, and
    the texts that stop it, leave the thought alone. `template_vars` are variables of the chat template, by name (or
    "NAME=VALUE", as on the command line).
    """

    max_tokens: int = option(1024, low=1, high=1 << 24, help="Longest answer, in tokens; a thought counts too.")
    think: bool | None = option(
        None, flags=("--think/--no-think",), help="Let the model think before it answers; default: as it is used to."
    )
    think_budget: int | None = option(
        None, low=0, high=1 << 24, metavar="N", help="End a thought after N tokens, which --max-tokens then leaves out."
    )
    template_vars: Mapping[str, Any] | tuple[str, ...] = option(
        (), name="template_var", typed=str, metavar="NAME=VALUE", help="A variable of the chat template; repeatable."
    )
    temperature: float = option(0.0, low=0, high=100, help="0: always the most likely token.")
    top_k: int = option(40, low=0, high=1 << 24, help="Draw from the K most likely tokens; 0: from all.")
    top_p: float = option(0.95, low=0, high=1, help="Draw from the most likely tokens that together have P.")
    min_p: float = option(0.0, low=0, high=1, help="Leave out tokens below P times the most likely.")
    repeat_penalty: float = option(1.0, low=0.1, high=10, help="Above 1: less of what was just said.")
    seed: int = option(0, low=-(1 << 63), high=(1 << 63) - 1, help="For temperatures above 0.")
    stop: tuple[str, ...] = option((), typed=str, metavar="TEXT", help="End the answer where it says TEXT; repeatable.")
    grammar: str | None = option(None, typed=Path, read=read_grammar, help="GBNF file that the answer must follow.")
    json_schema: str | Mapping[str, Any] | bool | None = option(
        None,
        typed=str,
        read=read_json_schema,
        metavar="FILE|JSON",
        help="JSON schema that the answer must follow: a file, or the schema itself.",
    )

    def __post_init__(self) -> None:
        check(self)
        object.__setattr__(self, "template_vars", read_variables(self.template_vars))
        if self.think_budget == 0:
            if self.think:
                raise UsageError("--think and --think-budget 0 exclude each other; give one")
            object.__setattr__(self, "think", False)
        if self.grammar is not None and self.json_schema is not None:
            raise UsageError("--grammar and --json-schema exclude each other; give one")
        if any(not text or len(text) > LONGEST_STOP for text in self.stop) or len(self.stop) > MOST_STOPS:
            raise UsageError(f"--stop: expected up to {MOST_STOPS} texts of 1 to {LONGEST_STOP:,} characters")
        if self.json_schema is not None:
            object.__setattr__(self, "json_schema", schema_text(self.json_schema))
        for text in (self.grammar, self.json_schema):
            if isinstance(text, str) and (len(text) > MAX_GRAMMAR or "\0" in text):
                raise DataError(f"the grammar or schema is not a text of up to {MAX_GRAMMAR:,} characters")
        self.warnings()

    def warnings(self) -> tuple[str, ...]:
        """What of the schema has no effect, in sentences; raises DataError where it can't be followed."""
        return read_schema(self.json_schema).warnings if isinstance(self.json_schema, str) else ()

    @property
    def is_bound(self) -> bool:
        """Whether the answer must have a form."""
        return self.grammar is not None or self.json_schema is not None

    def unbound(self) -> Sampling:
        """The same without any form that the answer must have: how a thought is written."""
        return replace(self, grammar=None, json_schema=None)


def read_variables(given: Mapping[str, Any] | Sequence[str]) -> dict[str, Any]:
    """Variables of a chat template, of a mapping or of texts NAME=VALUE; raises UsageError.

    A value is JSON where it can be read as such, else the text itself.
    """
    named = given.items() if isinstance(given, Mapping) else map(_read_variable, given)
    found: dict[str, Any] = {}
    for name, value in named:
        if not name.isidentifier():
            raise UsageError(f"--template-var {name}: is no name of a variable; expected NAME=VALUE")
        if name in SET_HERE:
            raise UsageError(f"--template-var {name}: is set by jmedlite itself; leave it away")
        if name in found:
            raise UsageError(f"--template-var {name}: is given twice; give it once")
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            raise UsageError(f"--template-var {name}: is no value that JSON has") from None
        found[name] = value
    return found


def _read_variable(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--template-var {text}: expected NAME=VALUE, such as enable_thinking=false")
    return name, _json_or_text(value)


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=int)  # NaN and its kin are no JSON, and no whole numbers
    except (ValueError, RecursionError):
        return text


def make_chain(llama: Any, vocab: Any, sampling: Sampling) -> Any:
    """llama.cpp's sampler chain, which the caller frees; None where the most likely token is all that is wanted.

    Raises DataError for a grammar that can't be read.
    """
    grammar = sampling.grammar
    steps = []
    if grammar is not None:
        # llama.cpp takes an empty grammar for none
        step = grammar.strip() and llama.llama_sampler_init_grammar(vocab, grammar.encode("utf-8"), b"root")
        if not step:
            raise DataError("the grammar can't be used: it is not GBNF, lacks a rule, has no `root`, or never ends")
        steps.append(step)
    if sampling.repeat_penalty != 1:
        n = llama.llama_vocab_n_tokens(vocab)
        steps.append(llama.llama_sampler_init_penalties(n, PENALTY_WINDOW, sampling.repeat_penalty, 0.0, 0.0))
    if sampling.temperature <= 0 and not steps:
        return None
    if sampling.temperature <= 0:
        steps.append(llama.llama_sampler_init_greedy())
    else:
        steps += [
            llama.llama_sampler_init_top_k(sampling.top_k),
            llama.llama_sampler_init_top_p(sampling.top_p, 1),
            llama.llama_sampler_init_min_p(sampling.min_p, 1),
            llama.llama_sampler_init_temp(sampling.temperature),
            llama.llama_sampler_init_dist(seed_of(sampling.seed)),
        ]
    chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
    for step in steps:
        llama.llama_sampler_chain_add(chain, step)
    return chain


def seed_of(seed: int) -> int:
    """llama.cpp's 32-bit seed for one of 64 bits: the same where it fits, else drawn from all of its bits.

    llama.cpp takes 2³² − 1 (LLAMA_DEFAULT_SEED) for "a random one".
    """
    if 0 <= seed < (1 << 32) - 1:
        return seed
    return int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4], "big") % ((1 << 32) - 1)
