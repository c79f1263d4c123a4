"""The type probe for real: what llama.cpp gives, and how its refusals are told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from gguf.constants import GGMLQuantizationType, LlamaFileType

from jmedlite.base.errors import DataError, NativeError, UsageError
from jmedlite.base.gguf import ARRAY, Entries, Tensor, layout, pack_header, pack_metadata, read_header
from jmedlite.runtime.type_probe import EMBEDDING, OUTPUT, PATTERN, TypeRule, probe_rules, probe_types

Q4_K_M, Q8_0 = int(LlamaFileType.MOSTLY_Q4_K_M), int(LlamaFileType.MOSTLY_Q8_0)
BF16 = int(LlamaFileType.MOSTLY_BF16)


@pytest.fixture
def model(tiny_gguf: Path) -> tuple[Entries, list[Tensor]]:
    header = read_header(tiny_gguf)
    entries: Entries = {}
    for key, value in header.metadata.items():
        kind, *inner = header.types[key]
        entries[key] = (value, kind, inner[0] if kind == ARRAY else None)
    types = (GGMLQuantizationType.F32, GGMLQuantizationType.BF16)
    return entries, [Tensor(t.name, t.shape, types[len(t.shape) > 1]) for t in header.tensors]


def test_several_levels_in_one_question(model: tuple[Entries, list[Tensor]]) -> None:
    found = probe_types([Q4_K_M, Q8_0], *model)
    assert list(found) == [Q4_K_M, Q8_0]
    names = {t.name for t in model[1]}
    assert all(types.keys() == names for types in found.values())
    assert found[Q8_0]["blk.0.ffn_up.weight"] == GGMLQuantizationType.Q8_0
    assert found[Q8_0]["output_norm.weight"] == GGMLQuantizationType.F32
    assert set(found[Q4_K_M].values()) != set(found[Q8_0].values())
    assert probe_types([Q8_0], *model) == {Q8_0: found[Q8_0]}


def test_what_llama_cpp_refuses_is_told(model: tuple[Entries, list[Tensor]]) -> None:
    entries, tensors = model
    with pytest.raises(NativeError, match=r"llama\.cpp refused the model: "):
        probe_types([Q4_K_M], entries | {"general.architecture": (b"nonesuch", 8, None)}, tensors)


def test_a_pattern_that_tries_for_ever_is_given_up(model: tuple[Entries, list[Tensor]], tmp_path: Path) -> None:
    """Repetitions of repetitions are exponential in std::regex: the child ends, as it said before."""
    entries, tensors = model
    placed, data_bytes = layout(tensors)
    path = tmp_path / "header.gguf"
    with path.open("wb") as out:
        out.write(pack_header([pack_metadata(entries)], len(entries), placed))
        out.truncate(out.tell() + data_bytes)
    request = {
        "path": str(path), "ftypes": [Q8_0], "imatrix": [], "rules": [["--tensor-type", "((.*)*)*((.*)*)*x$"]],
        "types": [[int(GGMLQuantizationType.Q8_0)]],
    }  # fmt: skip
    code = (
        "import json, sys; from jmedlite.runtime import type_probe_worker as worker; worker.SECONDS = 0.5\n"
        "say = lambda event, **fields: print(event, fields.get('message'), flush=True)\n"
        "worker.probe_all(json.loads(sys.argv[1]), say, None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(request)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert done.stdout == "bounded matching the patterns of --tensor-type ran for over 0.5 s\n"
    assert done.stderr.startswith("Timeout (")


def test_rules_and_the_tensors_they_decide_about(model: tuple[Entries, list[Tensor]]) -> None:
    """Of several that match, the first; embedding and head by their options; none of the others."""
    rules = [
        TypeRule(PATTERN, GGMLQuantizationType.Q6_K, r"blk\.0\.ffn"),
        TypeRule(PATTERN, GGMLQuantizationType.F16, "ffn_down|output"),
        TypeRule(OUTPUT, GGMLQuantizationType.Q5_0),
        TypeRule(EMBEDDING, GGMLQuantizationType.Q4_0),
    ]
    decided = probe_rules([Q4_K_M, BF16], *model, rules)
    ffn = {f"blk.0.ffn_{name}.weight": 0 for name in ("up", "gate", "down")}
    attention = {f"blk.{i}.attn_output.weight": 1 for i in range(2)}
    head = {"output.weight": 2, "token_embd.weight": 3}
    assert decided == {Q4_K_M: {**ffn, "blk.1.ffn_down.weight": 1, **attention, **head}, BF16: head}


@pytest.mark.parametrize("n", [1, 2, 7])
def test_the_pattern_that_is_refused_is_named(model: tuple[Entries, list[Tensor]], n: int) -> None:
    rules = [TypeRule(PATTERN, GGMLQuantizationType.Q8_0, f"blk.{i}") for i in range(7)]
    rules[n - 1] = TypeRule(PATTERN, GGMLQuantizationType.Q8_0, "[z-a]")
    with pytest.raises(UsageError, match=r"^--tensor-type \[z-a\]=Q8_0: llama.cpp refuses it \(.+\); expected"):
        probe_types([Q8_0], *model, (), rules)
    entries, tensors = model
    with pytest.raises(NativeError, match=r"llama\.cpp refused the model: "):  # and not the pattern
        probe_types([Q4_K_M], entries | {"general.architecture": (b"nonesuch", 8, None)}, tensors, (), rules)


def test_a_model_of_all_the_marks(model: tuple[Entries, list[Tensor]]) -> None:
    entries, tensors = model
    odd = [Tensor(f"x.{name}", (32,), GGMLQuantizationType[name]) for name in ("I8", "I16", "I32", "F64")]
    rules = [TypeRule(PATTERN, GGMLQuantizationType.Q8_0, "attn")]
    with pytest.raises(DataError, match="tensors of the types F64, I16, I32, I8, so no types can be set"):
        probe_rules([Q8_0], entries, [*tensors, *odd], rules)
