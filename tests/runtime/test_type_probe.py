"""The type probe for real: what llama.cpp gives, and how its refusals are told."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf.constants import GGMLQuantizationType, LlamaFileType

from jmedlite.base.errors import NativeError
from jmedlite.base.gguf import ARRAY, Entries, Tensor, read_header
from jmedlite.runtime.type_probe import probe_types

Q4_K_M, Q8_0 = int(LlamaFileType.MOSTLY_Q4_K_M), int(LlamaFileType.MOSTLY_Q8_0)


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
