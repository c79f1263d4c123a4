"""A file that llama.cpp computes exactly only up to some tokens: nothing that runs it goes beyond, and says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import jmedlite
from jmedlite.base.errors import ContextFull, DataError, UsageError
from jmedlite.base.gguf import EXACT_CONTEXT, check_model, read_header
from jmedlite.benchmarks.backends.local_worker import Prompts
from jmedlite.runtime.fitting import shape_on_this_machine
from jmedlite.runtime.loading import LoadedModel
from jmedlite.runtime.worker import AnswerEngine, facts_of
from tests.support import builders

WINDOW = 64
WHY = f"beyond {WINDOW} tokens its sliding_window acts"


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mistral with a window of 64 tokens and a context of 512."""
    folder = tmp_path_factory.mktemp("windowed")
    builders.checkpoint(folder / "m", "mistral", sliding_window=WINDOW)
    return jmedlite.quantize(folder / "m", types=["F32"], out=folder, threads=1)[0]


@pytest.fixture(scope="module")
def longrope(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Phi-3 with factors for texts of up to 256 tokens and others beyond, which never ends an answer."""
    folder = tmp_path_factory.mktemp("longrope")
    rope = {"type": "longrope", "short_factor": [1.0] * 32, "long_factor": [4.0] * 32}
    sizes = {"original_max_position_embeddings": 256, "max_position_embeddings": 512}
    n_vocab = builders.n_tokens(builders.byte_level_tokenizer())
    tensors = builders.weights(builders.config("phi3", n_vocab, rope_scaling=rope, **sizes))
    tensors["lm_head.weight"][-len(builders.SPECIALS) :] = 0
    builders.checkpoint(folder / "m", "phi3", tensors=tensors, rope_scaling=rope, **sizes)
    return jmedlite.quantize(folder / "m", types=["F32"], out=folder, threads=1)[0]


def request(path: Path, **more: Any) -> dict[str, Any]:
    return {"path": str(path), "threads": 1, "gpu_layers": "0", "kv_type": "f32", "flash_attn": "off", **more}


def quiet(event: str, **fields: Any) -> None:
    pass


def asked(engine: AnswerEngine, text: str, n: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    asking = {"messages": [{"role": "user", "content": text}], "system": "", "sampling": {"max_tokens": n}}
    engine.ask(asking, lambda event, **fields: found.update(fields))
    return found


def test_nothing_longer_is_asked(windowed: Path) -> None:
    engine = AnswerEngine.load(request(windowed), quiet)
    facts = facts_of(engine.loaded, engine.evaluator.settings)
    assert facts["n_ctx_train"] == facts["n_ctx"] == WINDOW
    with pytest.raises(ContextFull, match=rf"have 1\d\d tokens, the context has {WINDOW}; .*{WHY}"):
        asked(engine, "x" * 100, 8)
    ended = asked(engine, "x", 100)
    assert (ended["stop"], ended["n_prompt"] + ended["n_generated"]) in {("context", WINDOW), ("eos", 0)}


def test_a_longer_context_is_refused(windowed: Path) -> None:
    with pytest.raises(UsageError, match=rf"a context of {WINDOW + 1} tokens .*{WHY}.*at most {WINDOW}"):
        LoadedModel(request(windowed, ctx=WINDOW + 1), quiet)
    said: dict[str, Any] = {}
    LoadedModel(request(windowed, ctx=WINDOW), lambda event, **fields: said.update(fields))
    assert WHY in said["sentence"]


def test_a_benchmark_counts_longer_prompts_as_too_long(windowed: Path) -> None:
    prompts = [{"body": [("x" * n, False)], "cue": [], "continuations": []} for n in (WINDOW - 8, WINDOW - 7)]
    wanted = {"prompts": prompts, "chat": False, "n_head": 0, "n_ctx": None, "max_tokens": 8}
    found = Prompts(LoadedModel(request(windowed), quiet), wanted, quiet)
    assert found.n_prompt == [WINDOW - 8, WINDOW - 7]
    assert found.too_long == {1}


def test_plans_are_made_for_the_exact_range(windowed: Path) -> None:
    header = read_header(windowed)
    assert shape_on_this_machine(header).n_ctx_train == WINDOW
    header.metadata[EXACT_CONTEXT] = "many"
    with pytest.raises(DataError, match="expected a number of tokens"):
        check_model(windowed, header)


def test_longrope_goes_by_the_text(longrope: Path) -> None:
    """The factors are those of the text's length, whatever was asked before and however long the answer may be."""
    engine = AnswerEngine.load(request(longrope), quiet)
    evaluator = engine.evaluator
    short, long = (asked(engine, "x" * 40, n) for n in (20, 250))
    assert short["n_generated"] == 20
    assert evaluator.n_ctx > 256
    crossed = evaluator.logits().copy()
    tokens = list(evaluator.tokens)
    assert long["n_prompt"] < 256 < len(tokens)
    again = asked(engine, "x" * 40, 20)
    assert evaluator.n_ctx == 256
    assert again["n_generated"] == 20
    evaluator.reserve(len(tokens))
    evaluator.keep(0)
    evaluator.evaluate(tokens)
    assert abs(evaluator.logits() - crossed).max() < 1e-3


def test_a_table_of_positions_ends(tmp_path: Path) -> None:
    """GPT-2's kind: beyond it llama.cpp ends its process."""
    builders.checkpoint(tmp_path / "m", "gpt2", n_positions=96)
    (path,) = jmedlite.quantize(tmp_path / "m", types=["F32"], out=tmp_path, threads=1)
    with pytest.raises(UsageError, match="table of 96 positions"):
        AnswerEngine.load(request(path, ctx=97), quiet)
    engine = AnswerEngine.load(request(path), quiet)
    with pytest.raises(ContextFull, match=r"the context has 96"):
        asked(engine, "x" * 96, 8)
    ended = asked(engine, "x", 500)
    assert (ended["stop"], ended["n_prompt"] + ended["n_generated"]) in {("context", 96), ("eos", 0)}
