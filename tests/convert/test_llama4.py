"""Llama 4: gate before up in one parameter, mixtures among dense layers, and what llama.cpp takes for granted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jmedlite
from jmedlite.api.verify import verify
from jmedlite.base.errors import DataError
from jmedlite.base.gguf import read_header
from jmedlite.convert.planning import assemble
from jmedlite.runtime.shape import shape_of
from tests.support import builders
from tests.support.ggufs import read

RANK, SCALE = 2, 2.5  # lora_alpha 5
PLACE = "base_model.model.model.layers.{i}.feed_forward.experts."


def test_the_experts_are_where_they_belong(tmp_path: Path) -> None:
    """Layers 0 and 2 are dense, 1 and 3 mixtures; (expert, in, out) becomes (expert, out, in), gate before up."""
    exact = builders.checkpoint(tmp_path / "m", "llama4_text", dtype="F32", shards=2)
    (path,) = jmedlite.quantize(tmp_path / "m", types=["F32"], out=tmp_path)
    found = read(path)
    for i in (1, 3):
        place, n_ff = f"model.layers.{i}.feed_forward.", builders.EXPERT_FFN
        fused = exact[place + "experts.gate_up_proj"].swapaxes(1, 2)
        np.testing.assert_array_equal(found[f"blk.{i}.ffn_gate_exps.weight"], fused[:, :n_ff])
        np.testing.assert_array_equal(found[f"blk.{i}.ffn_up_exps.weight"], fused[:, n_ff:])
        down = exact[place + "experts.down_proj"].swapaxes(1, 2)
        np.testing.assert_array_equal(found[f"blk.{i}.ffn_down_exps.weight"], down)
        shared = exact[place + "shared_expert.up_proj.weight"]
        np.testing.assert_array_equal(found[f"blk.{i}.ffn_up_shexp.weight"], shared)
    for i in (0, 2):
        dense = exact[f"model.layers.{i}.feed_forward.gate_proj.weight"]
        np.testing.assert_array_equal(found[f"blk.{i}.ffn_gate.weight"], dense)
        assert not any(name.startswith(f"blk.{i}.") and "_exps" in name for name in found)
    header = read_header(path)
    shape = shape_of(header.metadata, header.tensors, {})
    assert [size > 0 for size in shape.experts] == [False, True, False, True]
    assert shape.n_masks == 2


@pytest.mark.parametrize("older", [False, True])
def test_an_adapter_of_the_experts(tmp_path: Path, older: bool) -> None:
    """Newer versions of PEFT take the parameter's last side for the inputs, which here are the outputs."""
    base = builders.checkpoint(tmp_path / "m", "llama4_text", dtype="F32")
    rng = np.random.default_rng(1)
    folder, matrices, changed = tmp_path / "a", {}, {}
    builders.adapter(folder, base)
    for i in (1, 3):
        for parameter, inner in (("gate_up_proj", "base_layer."), ("down_proj", "")):
            whole = base[f"model.layers.{i}.feed_forward.experts.{parameter}"]
            n, first, last = whole.shape
            inputs, outputs = (first, last) if older else (last, first)
            a = rng.standard_normal((n, RANK, inputs)).astype(np.float32) * np.float32(0.1)
            b = rng.standard_normal((outputs, RANK, n)).astype(np.float32) * np.float32(0.1)
            matrices[f"{PLACE.format(i=i)}{inner}lora_A.weight"] = a.reshape(n * RANK, inputs)
            matrices[f"{PLACE.format(i=i)}{inner}lora_B.weight"] = b.reshape(outputs, RANK * n)
            delta = SCALE * np.einsum("ore,eri->eoi", b.astype(float), a.astype(float))
            changed[i, parameter] = whole.swapaxes(1, 2) + (delta if older else delta.swapaxes(1, 2))
    builders.write_safetensors(folder / "adapter_model.safetensors", matrices, "F32")
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= {"target_modules": [], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"], "r": RANK}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": RANK * SCALE}))
    made = jmedlite.quantize(tmp_path / "m", lora=[str(folder)], types=["F32", "Q4_K_M"], out=tmp_path / "o")
    found = read(made[0])
    for i in (1, 3):
        np.testing.assert_allclose(found[f"blk.{i}.ffn_down_exps.weight"], changed[i, "down_proj"], atol=1e-6)
        both = [found[f"blk.{i}.ffn_{part}_exps.weight"] for part in ("gate", "up")]
        np.testing.assert_allclose(np.concatenate(both, 1), changed[i, "gate_up_proj"], atol=1e-6)
    for path in made:
        assert verify(path, base=tmp_path / "m", lora=[str(folder)], threads=2).holds


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"moe_layers": [0, 1]}, "its moe_layers are"),
        ({"interleave_moe_layer_step": 5}, "leaves no mixture"),
        ({"no_rope_layers": [1, 1, 0, 1]}, "its no_rope_layers are"),
        ({"no_rope_layers": [1, 1, 1]}, "its no_rope_layers are"),
        ({"layer_types": ["full_attention"] * 4}, "its layer_types are"),
        ({"use_qk_norm": False}, "use_qk_norm is False"),
        ({"attention_chunk_size": 4096}, "attention_chunk_size is 4096"),
        ({"attn_temperature_tuning": False}, "attn_temperature_tuning is False"),
    ],
)
def test_what_its_graph_does_not_have(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    builders.checkpoint(tmp_path / "m", "llama4_text")
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(DataError, match=words):
        assemble(tmp_path / "m")


def test_what_says_the_same_twice(tmp_path: Path) -> None:
    """Meta's own files, and transformers' way of writing all of it out."""
    builders.checkpoint(tmp_path / "m", "llama4_text")
    path = tmp_path / "m" / "config.json"
    types = ["chunked_attention"] * 3 + ["full_attention"]
    said = {"moe_layers": [1, 3], "layer_types": types, "attn_temperature_tuning": 4, "for_llm_compressor": False}
    path.write_text(json.dumps(json.loads(path.read_text()) | said))
    assert not [w for w in assemble(tmp_path / "m").warnings if "not known" in w]
