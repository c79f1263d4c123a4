"""Qwen3.5: layers of gated delta nets among layers of attention, in llama.cpp's order of heads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jmedlite
from jmedlite.api.quantize import export_adapters
from jmedlite.api.verify import verify
from jmedlite.base.errors import DataError
from jmedlite.base.gguf import read_header
from jmedlite.convert.families.row_order import TiledHeads
from jmedlite.convert.planning import assemble
from tests.support import builders, packed
from tests.support.ggufs import contents, llama_quantize, raw, read

NET = "model.layers.0.linear_attn."
D, N_K, N_V = 32, 2, 4  # of tests/support/builders.py


def test_value_heads_by_their_definition() -> None:
    """Two key heads with three value heads of two rows each, after four rows that stay."""
    order = TiledHeads(2, n_groups=2, per_group=3, offset=4)
    rows = np.arange(16, dtype=np.float32).reshape(16, 1)
    moved = order.reorder(rows)[:, 0]
    # heads a1 a2 a3 b1 b2 b3 become a1 b1 a2 b2 a3 b3
    np.testing.assert_array_equal(moved, [0, 1, 2, 3, 4, 5, 10, 11, 6, 7, 12, 13, 8, 9, 14, 15])
    for start, count in ((0, 6), (2, 2), (4, 4), (10, 6)):
        taken = np.concatenate([rows[first : first + n] for first, n in order.runs(16, start, count)])
        np.testing.assert_array_equal(taken[:, 0], moved[start : start + count])


def by_turns(x: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Value heads of `size` elements along an axis, from key head by key head to turn by turn."""
    split = (*x.shape[:axis], N_K, N_V // N_K, size, *x.shape[axis + 1 :])
    return x.reshape(split).swapaxes(axis, axis + 1).reshape(x.shape)


def test_every_tensor_of_a_delta_net(tmp_path: Path) -> None:
    base = builders.checkpoint(tmp_path / "m", "qwen3_5_text")
    (path,) = jmedlite.quantize(tmp_path / "m", types=["F32"], out=tmp_path)
    found, n_key = read(path), N_K * D

    def with_keys(x: np.ndarray) -> np.ndarray:
        return np.concatenate([x[: 2 * n_key], by_turns(x[2 * n_key :], 0, D)])

    expected = {
        "attn_qkv.weight": with_keys(base[NET + "in_proj_qkv.weight"]),
        "attn_gate.weight": by_turns(base[NET + "in_proj_z.weight"], 0, D),
        "ssm_beta.weight": by_turns(base[NET + "in_proj_b.weight"], 0, 1),
        "ssm_alpha.weight": by_turns(base[NET + "in_proj_a.weight"], 0, 1),
        "ssm_conv1d.weight": with_keys(base[NET + "conv1d.weight"][:, 0]),
        "ssm_dt.bias": by_turns(base[NET + "dt_bias"], 0, 1),
        "ssm_norm.weight": base[NET + "norm.weight"],
        "ssm_out.weight": by_turns(base[NET + "out_proj.weight"], 1, D),
        "attn_norm.weight": 1 + base["model.layers.0.input_layernorm.weight"],
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(found[f"blk.0.{name}"], values, err_msg=name)
    np.testing.assert_allclose(found["blk.0.ssm_a"], -np.exp(by_turns(base[NET + "A_log"], 0, 1)), rtol=1e-6)
    np.testing.assert_array_equal(found["blk.3.attn_q.weight"], base["model.layers.3.self_attn.q_proj.weight"])
    meta = read_header(path).metadata
    assert meta["qwen35.full_attention_interval"] == 4
    assert list(meta["qwen35.rope.dimension_sections"]) == [6, 5, 5, 0]


def test_every_level_equals_llama_quantize(tmp_path: Path) -> None:
    builders.checkpoint(tmp_path / "m", "qwen3_5_text")
    levels = ["Q2_K", "Q4_K_M", "Q4_0", "Q6_K"]
    made = jmedlite.quantize(tmp_path / "m", types=["BF16", *levels], out=tmp_path / "out", threads=2)
    assert raw(made[0])["blk.0.ssm_conv1d.weight"][0] == "F32"
    for level, path in zip(levels, made[1:], strict=True):
        llama_quantize(made[0], tmp_path / "ref.gguf", level)
        assert contents(path) == contents(tmp_path / "ref.gguf"), level


MODULES = ("linear_attn.in_proj_qkv", "linear_attn.out_proj", "self_attn.q_proj")


@pytest.mark.parametrize("memory", [None, "330MB"])
def test_small_blocks_and_many_threads_change_nothing(tmp_path: Path, memory: str | None) -> None:
    base = builders.checkpoint(tmp_path / "m", "qwen3_5_text")
    builders.adapter(tmp_path / "a", base, modules=MODULES)
    given: dict[str, Any] = {"lora": [str(tmp_path / "a")], "types": ["Q4_K_M"]}
    (one,) = jmedlite.quantize(tmp_path / "m", out=tmp_path / "1", threads=1, **given)
    (many,) = jmedlite.quantize(tmp_path / "m", out=tmp_path / "2", threads=5, memory=memory, **given)
    assert one.read_bytes() == many.read_bytes()
    proof = verify(many, base=tmp_path / "m", lora=given["lora"], threads=3)
    assert proof.holds
    assert {v.state for v in proof.report.tensors} == {"identical"}


@pytest.mark.parametrize("source", ["checkpoint", "gguf"])
def test_an_exported_adapter_is_in_the_order_of_llama_cpp(tmp_path: Path, source: str) -> None:
    """Rows and columns of its matrices move as those of the weights do, whatever the base comes as."""
    base = builders.checkpoint(tmp_path / "m", "qwen3_5_text")
    builders.adapter(tmp_path / "a", base, modules=MODULES)
    (plain,) = jmedlite.quantize(tmp_path / "m", types=["F32"], out=tmp_path)
    given = tmp_path / "m" if source == "checkpoint" else plain
    exported = export_adapters(str(given), [str(tmp_path / "a")], out=tmp_path, name="lora").path
    merged, through = (
        read(jmedlite.quantize(given, lora=[str(lora)], types=["F32"], out=tmp_path / f"o-{lora.stem}")[0])
        for lora in (tmp_path / "a", exported)
    )
    changed = 0
    before = read(plain)
    for name, values in merged.items():
        np.testing.assert_allclose(through[name], values, rtol=0, atol=1e-6, err_msg=name)
        changed += not np.array_equal(values, before[name])
    assert changed == 3 * 2 + 1  # three delta nets, one attention


def test_a_packed_one(tmp_path: Path) -> None:
    exact = packed.checkpoint(tmp_path / "p", "NF4", "qwen3_5_text")
    builders.checkpoint(tmp_path / "d", "qwen3_5_text", dtype="F32", tensors=exact)
    one, other = (
        jmedlite.quantize(tmp_path / kind, types=["F32"], out=tmp_path / f"o-{kind}", name="x")[0] for kind in "pd"
    )
    assert raw(one) == raw(other)


def test_layers_that_draft_are_left_out_and_named(tmp_path: Path) -> None:
    base = builders.checkpoint(tmp_path / "m", "qwen3_5_text")
    drafts = {"mtp.fc.weight": np.ones((256, 512), np.float32), "mtp.norm.weight": np.ones(256, np.float32)}
    builders.write_safetensors(tmp_path / "m" / "model.safetensors", base | drafts)
    assert any("2 tensors for drafts (mtp.…) are left out" in w for w in assemble(tmp_path / "m").warnings)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layer_types": ["full_attention"] + ["linear_attention"] * 3}, ["layer_types", "every n-th of 4 layers"]),
        ({"layer_types": ["full_attention"] * 4}, ["layer_types"]),
        ({"layer_types": ["linear_attention"] * 3}, ["layer_types"]),
        ({"full_attention_interval": 5}, ["full_attention_interval"]),
        ({"linear_key_head_dim": 16}, ["linear_key_head_dim is 16", "32"]),
        ({"linear_num_value_heads": 3}, ["3 value heads can't share 2 key heads"]),
        ({"rms_norm_eps": 1e-5}, ["rms_norm_eps", "1e-06"]),
        ({"attn_output_gate": False}, ["attn_output_gate"]),
        ({"linear_conv_kernel_dim": 3}, ["conv1d.weight", "[256, 1, 3]"]),
    ],
)
def test_what_does_not_fit(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    builders.checkpoint(tmp_path / "m", "qwen3_5_text")
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(DataError) as caught:
        assemble(tmp_path / "m")
    for word in words:
        assert word in str(caught.value), caught.value
