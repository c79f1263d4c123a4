"""Fixtures that several test files share: a state folder of their own, and tiny GGUF files made once per session."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import jmedlite
from jmedlite.runtime import type_probe
from tests.support import builders


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The demo first: it takes longest, and a process that begins with it shares it with no other."""
    items.sort(key=lambda item: "demo" not in item.path.parts)


@pytest.fixture(scope="session", autouse=True)
def private_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test reads or writes the user's own state or cache, in this process or in one it starts."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JMEDLITE_STATE", str(folder))
        patch.setenv("JMEDLITE_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def remembered_types() -> Iterator[None]:
    """llama.cpp is asked once per header and file type in this process: every question is a child process of 0.5 s.

    Whatever a test runs as a command still asks for real.
    """
    asked: dict[tuple[bytes, int, tuple[str, ...], int], dict[str, int]] = {}
    ask = type_probe._ask

    def remembering(header: bytes, data_bytes: int, ftypes: list[int], imatrix: list[str]) -> dict[str, dict[str, int]]:
        head = (hashlib.sha256(header).digest(), data_bytes, tuple(imatrix))
        if missing := [f for f in ftypes if (*head, f) not in asked]:
            found = ask(header, data_bytes, missing, imatrix)
            asked.update({(*head, f): found[str(f)] for f in missing})
        return {str(f): asked[*head, f] for f in ftypes}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type_probe, "_ask", remembering)
        yield


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
