"""Fixtures that several test files share: a state folder of their own, and tiny GGUF files made once per session."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from gguf.constants import GGMLQuantizationType

import jmedlite
from jmedlite.base.gguf import Entries, Tensor
from jmedlite.runtime.type_probe import TypeRule, probe_types
from tests.support import builders
from tests.support.warm import ABLE, Starter

NO_MATTER = ("general.", "jmedlite.made.", "quantize.imatrix.")


def pytest_configure() -> None:
    """A shell that runs tests in its background has them ignore these signals, and so would all that they start."""
    for name, handler in (("SIGINT", signal.default_int_handler), ("SIGQUIT", signal.SIG_DFL)):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The demo first: it takes longest, and a process that begins with it shares it with no other."""
    items.sort(key=lambda item: "demo" not in item.path.parts)


def pytest_xdist_auto_num_workers() -> int:
    """One process more than there are cores: some tests wait for a time to pass."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture(scope="session", autouse=True)
def private_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test reads or writes the user's own state or cache, in this process or in one it starts."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JMEDLITE_STATE", str(folder))
        patch.setenv("JMEDLITE_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def english() -> Iterator[None]:
    """Whoever runs the tests may read Japanese; JMEDLITE_LANG would choose the language of questions, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("JMEDLITE_LANG", raising=False)
        patch.setenv("LC_ALL", "C.UTF-8")
        yield


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models by one thread, in this process and in commands: ggml's threads wait for each other by spinning."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("runtime.runner", "calibration.work"):
            patch.setattr(f"jmedlite.{module}.physical_cores", lambda: 1)
        for command in ("ASK", "CHAT", "SERVE", "BENCH", "IMATRIX"):
            patch.setenv(f"JMEDLITE_{command}_THREADS", "1")
        yield


@pytest.fixture(scope="session", autouse=True)
def warm_children() -> Iterator[None]:
    """Children that this process starts are forked from one that has imported everything (tests/support/warm.py)."""
    with pytest.MonkeyPatch.context() as patch:
        if ABLE:
            patch.setattr("jmedlite.runtime.process.subprocess", Starter())
        yield


@pytest.fixture
def cold_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children that start as they do for everybody."""
    monkeypatch.setattr("jmedlite.runtime.process.subprocess", subprocess)


@pytest.fixture(scope="session", autouse=True)
def remembered_types(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """llama.cpp is asked once per model and file type: every question is a child process of half a second.

    A model is its tensors and its metadata but for names and origins. Whatever runs in a process of its own, and
    tests/runtime/test_type_probe.py, asks for real.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # all processes remember together
    memory = folder / "types"
    memory.mkdir(exist_ok=True)

    def remembering(
        ftypes: Sequence[int],
        metadata: Entries,
        tensors: Sequence[Tensor],
        imatrix: Sequence[str] = (),
        rules: Sequence[TypeRule] = (),
    ) -> dict[int, dict[str, GGMLQuantizationType]]:
        kept = {k: v for k, v in metadata.items() if k == "general.architecture" or not k.startswith(NO_MATTER)}
        named = [(t.name, t.shape, int(t.type)) for t in tensors]
        head = hashlib.sha256(repr((sorted(kept.items()), named, list(imatrix), list(rules))).encode()).hexdigest()
        files = {ftype: memory / f"{head}-{ftype}" for ftype in ftypes}
        if missing := [ftype for ftype, file in files.items() if not file.exists()]:
            for ftype, types in probe_types(missing, metadata, tensors, imatrix, rules).items():
                part = files[ftype].with_suffix(f".{os.getpid()}")
                part.write_text(json.dumps({name: int(type_) for name, type_ in types.items()}))
                part.replace(files[ftype])
        read = {ftype: json.loads(file.read_text()) for ftype, file in files.items()}
        return {f: {name: GGMLQuantizationType(t) for name, t in types.items()} for f, types in read.items()}

    with pytest.MonkeyPatch.context() as patch:
        for asker in ("jmedlite.convert.levels.recipes.probe_types", "jmedlite.runtime.type_probe.probe_types"):
            patch.setattr(asker, remembering)
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
