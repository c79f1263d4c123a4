"""Fuzzing: every reader of JSON from outside gives a right result or a named fault, whatever well-formed JSON it gets.

tools/fuzz_readers.py does the same for longer, and counts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jmedlite.runtime.added_tokens import AddedTokens
from tests.support.readers import PACKED, Reader, bend, readers

EXAMPLES = int(os.environ.get("JMEDLITE_FUZZ_EXAMPLES", "40"))
quick = settings(
    max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
NAMES = (
    "manifest", "adapter_config.json", "config.json", "tokenizer.json", "tokenizer_config.json",
    "generation_config.json", "special_tokens_map.json", "index", "run.json", "models.json", "task rows", "answers",
    "models of a server", "items.jsonl", "questions.jsonl", "measures.jsonl", "noise.jsonl", "safetensors header",
    "model card", "saved chat", "overlap rows", "parquet rows", "adapter_config.json of MLX", "config.json of mixture",
    "tokenizer.json, unigram", "tekken.json", "kept record",
    *(f"{what} of {name}" for name in (*PACKED, "mxfp4") for what in ("config.json", "safetensors header")),
)  # fmt: skip


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Reader]]:
    folder = tmp_path_factory.mktemp("readers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JMEDLITE_STATE", str(folder / "state"))
        yield readers(folder)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_readers(known: dict[str, Reader], name: str) -> None:
    if name not in known:
        pytest.skip("pyarrow is not installed")
    reader = known[name]
    assert reader.outcome(reader.right) == "right"
    faults = set()

    @quick
    @given(st.data())
    def bent(data: st.DataObject) -> None:
        document = reader.right
        for _ in range(data.draw(st.integers(1, 2))):
            document = bend(document, lambda n: data.draw(st.integers(0, n - 1))) if document else document
        faults.add(reader.outcome(document))

    bent()
    # what is odd in a model card, which is for people, is a warning, in a record of kept work it counts for nothing
    assert "DataError" in faults or name in ("model card", "kept record")


FINDINGS: list[tuple[str, tuple[Any, ...], Any]] = [
    ("config.json", ("rope_parameters", "rope_type"), float("nan")),
    ("tokenizer.json", ("added_tokens", 0, "id"), float("inf")),
    ("index", ("weight_map", "lm_head.weight"), "長" * 3000),
]


@pytest.mark.parametrize(("name", "place", "value"), FINDINGS)
def test_findings(known: dict[str, Reader], name: str, place: tuple[Any, ...], value: Any) -> None:
    document = json.loads(json.dumps(known[name].right))
    inner = document
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    assert known[name].outcome(document) == "DataError"


def test_a_remembered_path_that_no_file_can_have(known: dict[str, Reader]) -> None:
    document = json.loads(json.dumps(known["models.json"].right))
    document["models"][0]["path"] = "長" * 3000
    assert known["models.json"].outcome(document) == "right"


def test_all_readers_are_named(known: dict[str, Reader]) -> None:
    assert set(NAMES) - set(known) <= {"parquet rows"}
    assert set(known) <= set(NAMES)


@quick
@given(
    st.lists(st.text("<a|>x", min_size=1, max_size=4), max_size=6),
    st.lists(st.text("<a|>x", min_size=1, max_size=4), max_size=6),
    st.text("<a|>x ", max_size=20),
)
def test_added_tokens_are_the_leftmost_and_longest(control: list[str], typed: list[str], text: str) -> None:
    """Against one that tries every name at every place."""
    ids = {name: i for i, name in enumerate(dict.fromkeys([*control, *typed]))}
    expected, at = [], 0
    while at < len(text):
        found = [name for name in ids if text.startswith(name, at)]
        if found:
            expected.append((ids[max(found, key=len)], at, at + max(map(len, found))))
        at += max(map(len, found), default=1)
    tokens = AddedTokens({n: ids[n] for n in control}, {n: ids[n] for n in typed})
    assert [t for t in tokens.split(text, text) if t[0] is not None] == expected


@pytest.mark.long
@pytest.mark.skipif(os.name != "posix", reason="forks")
def test_templates_end() -> None:
    tool = Path(__file__).parent.parent / "tools" / "fuzz_templates.py"
    command = [sys.executable, str(tool), "--n", "25", "--seconds", "0.2", "--seed", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "time" in done.stdout.replace(",", "").split()  # on a busy machine even what is refused takes too long
