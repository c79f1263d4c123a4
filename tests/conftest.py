"""Fixtures that several test files share: a state folder of their own, and tiny GGUF files made once per session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import jmedlite
from tests.support import builders


@pytest.fixture(scope="session", autouse=True)
def private_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test reads or writes the user's own state or cache, in this process or in one it starts."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JMEDLITE_STATE", str(folder))
        patch.setenv("JMEDLITE_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole little model with ChatML as its template and a context of 512 tokens; read it, never write to it."""
    folder = tmp_path_factory.mktemp("tiny")
    builders.checkpoint(folder / "m")
    (path,) = jmedlite.quantize(folder / "m", types=["F32"], out=folder, threads=1)
    return path


@pytest.fixture(scope="session")
def endless_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that never ends its answer: the logits of every control token are 0, so one of the others is larger."""
    folder = tmp_path_factory.mktemp("endless")
    cfg = builders.config("qwen2", builders.n_tokens(builders.byte_level_tokenizer()))
    tensors = builders.weights(cfg)
    tensors["lm_head.weight"][-len(builders.SPECIALS) :] = 0
    builders.checkpoint(folder / "m", tensors=tensors, max_position_embeddings=1 << 16)
    (path,) = jmedlite.quantize(folder / "m", types=["F32"], out=folder, threads=1)
    return path
