"""Fixtures: one served tiny model for all of these tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from jmedlite.runtime.load_options import LoadOptions
from jmedlite.runtime.shared_runner import SharedRunner
from tests.support.serving import client_of

OPTIONS = LoadOptions(ctx=8192, cache=False, kv_type="f32", flash_attn="off")


@pytest.fixture(scope="session")
def served(endless_gguf: Path) -> Iterator[SharedRunner]:
    """A model that never ends its answer by itself, two answers at once."""
    with SharedRunner(endless_gguf, OPTIONS, lanes=2) as found:
        yield found


@pytest.fixture(scope="session")
def client(served: SharedRunner) -> TestClient:
    return client_of(served, queue=8, n_ctx=8192)
