"""Choosing tokens: the options and grammars, and what of them is refused (schemas: test_json_schema.py)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import jmedlite
from jmedlite.base.errors import DataError, UsageError
from jmedlite.runtime.runner import Runner
from jmedlite.runtime.sampling import Sampling, seed_of


@pytest.fixture(scope="module")
def runner(endless_gguf: Path) -> Iterator[Runner]:
    with jmedlite.Runner(endless_gguf, threads=1) as found:
        yield found


def text(runner: Runner, **options: Any) -> str:
    return runner.ask("q", **({"max_tokens": 24} | options)).text


def test_an_answer_follows_its_grammar(runner: Runner) -> None:
    answer = runner.ask("q", grammar='root ::= "yes" | "no"', max_tokens=24)
    assert answer.text in ("yes", "no")
    assert answer.stop == "eos"
    assert text(runner, grammar='root ::= "熱" [0-9]{3}', temperature=1.5, seed=4).startswith("熱")


@pytest.mark.parametrize(
    "options",
    [
        {"grammar": "root = x"},
        {"grammar": 'other ::= "x"'},
        {"grammar": "root ::= missing"},
        {"grammar": "root ::= root"},
        {"grammar": ""},
    ],
)
def test_bad_grammars_are_refused_and_the_model_stays(runner: Runner, options: dict[str, str]) -> None:
    with pytest.raises(DataError, match="grammar can't be used"):
        runner.ask("q", **options)
    assert text(runner, max_tokens=2)


def test_a_repeat_penalty_avoids_what_was_said(runner: Runner) -> None:
    repeated = runner.tokenize(text(runner, max_tokens=48))
    varied = runner.tokenize(text(runner, max_tokens=48, repeat_penalty=10.0))
    assert len(set(varied)) > len(set(repeated))


def test_narrow_choices_are_greedy_at_any_temperature(runner: Runner) -> None:
    greedy = text(runner)
    hot = {"temperature": 2.0, "seed": 3}
    assert text(runner, **hot) != greedy
    assert text(runner, **hot, top_k=1) == greedy
    assert text(runner, **hot, top_p=0.0) == greedy
    assert text(runner, **hot, min_p=1.0) == greedy
    assert text(runner, **hot, top_k=0, top_p=1.0) != text(runner, temperature=2.0, seed=4, top_k=0, top_p=1.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top_p": 1.5}, "--top-p 1.5: expected 0 to 1"),
        ({"min_p": -0.1}, "--min-p -0.1"),
        ({"top_k": -1}, "--top-k -1"),
        ({"repeat_penalty": 0}, "--repeat-penalty 0"),
        ({"max_tokens": 0}, "--max-tokens 0"),
        ({"seed": 1 << 70}, "--seed"),
        ({"grammar": "x", "json_schema": "{}"}, "exclude each other"),
    ],
)
def test_senseless_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Sampling(**options)


def test_unknown_options_are_named(runner: Runner) -> None:
    with pytest.raises(UsageError, match="nonsense"):
        runner.ask("q", nonsense=1)


def test_seeds_have_all_their_bits(tiny_gguf: Path) -> None:
    seeds = (0, 7, -1, (1 << 32) - 1, 1 << 32, (1 << 32) + 7, -(1 << 63))
    assert len({seed_of(s) for s in seeds}) == len(seeds)
    assert seed_of(7) == 7
    assert (1 << 32) - 1 not in map(seed_of, seeds)  # llama.cpp's word for a random seed
    with jmedlite.Runner(tiny_gguf, threads=1) as model:
        for seed in (-1, (1 << 32) - 1):
            texts = {model.ask("q", temperature=1.2, seed=seed, max_tokens=16).text for _ in range(3)}
            assert len(texts) == 1
