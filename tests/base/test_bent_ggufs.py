"""A small, fixed part of what tools/fuzz_files.py tries: a bent GGUF is read as it is, or refused in a sentence."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jmedlite.api.model_facts import describe_model
from jmedlite.api.verify import inspect, verify
from jmedlite.base.errors import LONGEST, JmedliteError
from jmedlite.base.gguf import read_header
from jmedlite.base.imatrix import Squares, pack_imatrix, read_imatrix
from jmedlite.base.progress import silent
from jmedlite.convert.planning import assemble
from jmedlite.runtime.fitting import shape_on_this_machine
from tests.support.bent import bend


def outcomes(path: Path, seeds: range, source: Path, *uses: Callable[[Path], object]) -> Counter[str]:
    """How often each use of a bent copy of `source`, at `path`, gave a result, and how often a fault of which kind."""
    found: Counter[str] = Counter()
    for seed in seeds:
        path.write_bytes(bend(source, random.Random(seed)))
        for use in uses:
            try:
                use(path)
                found["right"] += 1
            except JmedliteError as e:
                found[type(e).__name__] += 1
                assert len(str(e)) <= LONGEST
                assert "\n" not in str(e)
    return found


def test_models(tmp_path: Path, tiny_gguf: Path) -> None:
    def as_json(path: Path) -> None:
        json.dumps(inspect(path, check=True))

    def facts(path: Path) -> None:
        json.dumps(describe_model(path, silent))
        shape_on_this_machine(read_header(path))

    found = outcomes(tmp_path / "m.gguf", range(80), tiny_gguf, as_json, facts)
    assert set(found) <= {"right", "DataError"}
    assert min(found.values()) > 20


def test_models_as_bases_and_as_files_to_prove(tmp_path: Path, tiny_gguf: Path) -> None:
    def prove(path: Path) -> None:
        verify(path, base=tiny_gguf, threads=1)

    def convert(path: Path) -> None:
        assemble(path, requantize=True).files.close()

    found = outcomes(tmp_path / "m.gguf", range(100, 140), tiny_gguf, prove, convert)
    assert set(found) <= {"right", "DataError"}
    assert min(found.values()) > 10


def test_importance_matrices(tmp_path: Path) -> None:
    source, squares = tmp_path / "i.gguf", Squares(np.ones((1, 64), np.float32), np.ones(1, np.int64))
    packed = pack_imatrix({"blk.0.ffn_up.weight": squares}, datasets=["d"], chunk_size=64, chunks=1)
    source.write_bytes(b"".join(packed))
    found = outcomes(tmp_path / "bent.gguf", range(100), source, read_imatrix)
    assert set(found) <= {"right", "DataError"}
    assert min(found.values()) > 10
