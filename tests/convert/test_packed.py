"""Checkpoints that are quantized already: every method decodes to what it stands for, as if it had been stored so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import jmedlite
from jmedlite.api.verify import verify
from jmedlite.base.errors import DataError
from jmedlite.convert.planning import assemble
from tests.support import builders, packed
from tests.support.ggufs import contents
from tests.support.long import long_but_for

LEVELS = ["F32", "Q4_K_M"]


def same_as_decoded(tmp_path: Path, method: str, family: str, lora: bool) -> None:
    """The packed checkpoint gives the tensors that a float32 one of the same values gives."""
    exact = packed.checkpoint(tmp_path / "p", method, family)
    builders.checkpoint(tmp_path / "d", family, dtype="F32", tensors=exact)
    adapters = []
    if lora:
        adapters = [str(tmp_path / "a")]
        modules = ("attention.query_key_value",) if family == "gpt_neox" else ("self_attn.q_proj", "mlp.down_proj")
        builders.adapter(tmp_path / "a", exact, modules=modules)
    made = jmedlite.quantize(tmp_path / "p", lora=adapters, types=LEVELS, out=tmp_path / "1", name="x", threads=2)
    wanted = jmedlite.quantize(tmp_path / "d", lora=adapters, types=LEVELS, out=tmp_path / "2", name="x", threads=1)
    for one, other in zip(made, wanted, strict=True):
        assert contents(one)[1] == contents(other)[1]


@pytest.mark.parametrize("method", packed.METHODS)
def test_packed_weights_are_what_they_stand_for(tmp_path: Path, method: str) -> None:
    same_as_decoded(tmp_path, method, "llama", lora=False)


@pytest.mark.parametrize("family", ["qwen2", "gpt_neox", "phi3"])
@pytest.mark.parametrize("method", long_but_for(packed.METHODS, ["NF4, nested", "GPTQ, act-order"]))
def test_an_adapter_on_a_packed_base(tmp_path: Path, method: str, family: str) -> None:
    same_as_decoded(tmp_path, method, family, lora=family != "phi3")


@pytest.mark.parametrize("method", ["FP8, 128×128", "NF4, nested", "AWQ", "MLX, 4 bits"])
def test_small_blocks_and_many_threads_change_nothing(tmp_path: Path, method: str) -> None:
    exact = packed.checkpoint(tmp_path / "p", method)
    builders.adapter(tmp_path / "a", exact)
    given = [str(tmp_path / "a")]
    (one,) = jmedlite.quantize(tmp_path / "p", lora=given, types=["Q4_K_M"], out=tmp_path / "1", threads=1)
    (many,) = jmedlite.quantize(
        tmp_path / "p", lora=given, types=["Q4_K_M"], out=tmp_path / "2", threads=5, memory="330MB"
    )
    assert one.read_bytes() == many.read_bytes()
    proof = verify(many, base=tmp_path / "p", lora=given, threads=3)
    assert proof.holds
    assert {v.state for v in proof.report.tensors} == {"identical"}
