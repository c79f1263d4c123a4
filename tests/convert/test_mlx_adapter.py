"""mlx-lm's adapters: what its own arithmetic gives, by PEFT's way and by its own; and what does not fit is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jmedlite
from jmedlite.base.errors import DataError
from jmedlite.convert.planning import assemble
from tests.support import builders
from tests.support.builders import MLX_MODULES as MODULES
from tests.support.builders import MLX_RANK as RANK
from tests.support.builders import MLX_SCALE as SCALE
from tests.support.builders import mlx_adapter as adapter
from tests.support.ggufs import raw, read


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_it_is_the_same_adapter_of_peft(tmp_path: Path, family: str) -> None:
    base = builders.checkpoint(tmp_path / "m", family)
    mlx = adapter(tmp_path / "mlx", base)
    builders.adapter(tmp_path / "peft", base, modules=MODULES, r=RANK, lora_alpha=SCALE * RANK)
    transposed = {
        f"base_model.model.{name.rpartition('.')[0]}.lora_{name[-1].upper()}.weight": np.ascontiguousarray(x.T)
        for name, x in mlx.items()
    }
    builders.write_safetensors(tmp_path / "peft" / "adapter_model.safetensors", transposed, "F32")
    made = [
        jmedlite.quantize(
            tmp_path / "m", lora=[str(tmp_path / kind)], types=["F32", "Q4_K_M"], out=tmp_path / f"o-{kind}"
        )
        for kind in ("mlx", "peft")
    ]
    for one, other in zip(*made, strict=True):
        assert raw(one) == raw(other)


def test_the_arithmetic_of_mlx(tmp_path: Path) -> None:
    """W + scale · (lora_a · lora_b)ᵀ in float64, the embedding's without the transposition."""
    base = builders.checkpoint(tmp_path / "m", tie_word_embeddings=False)
    mlx = adapter(tmp_path / "a", base)
    rng = np.random.default_rng(2)
    n_vocab, n_embd = base["model.embed_tokens.weight"].shape
    mlx["model.embed_tokens.lora_a"] = rng.standard_normal((n_vocab, RANK)).astype(np.float32)
    mlx["model.embed_tokens.lora_b"] = rng.standard_normal((RANK, n_embd)).astype(np.float32)
    builders.write_safetensors(tmp_path / "a" / "adapters.safetensors", mlx, "F32")
    (path,) = jmedlite.quantize(tmp_path / "m", lora=[str(tmp_path / "a")], types=["F32"], out=tmp_path / "o")
    found = read(path)
    for name, module in (
        ("blk.1.ffn_down.weight", "model.layers.1.mlp.down_proj"), ("token_embd.weight", "model.embed_tokens"),
    ):  # fmt: skip
        a, b = (mlx[f"{module}.lora_{side}"].astype(np.float64) for side in "ab")
        delta = SCALE * (a @ b)
        expected = base[f"{module}.weight"] + (delta if "embed" in module else delta.T)
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-5)


def test_dora(tmp_path: Path) -> None:
    base = builders.checkpoint(tmp_path / "m")
    mlx = adapter(tmp_path / "a", base, fine_tune_type="dora")
    module = "model.layers.0.self_attn.q_proj"
    lengths = np.random.default_rng(3).uniform(0.5, 2, 256).astype(np.float32)
    for name in [n.removesuffix(".lora_a") for n in mlx if n.endswith("lora_a")]:
        mlx[f"{name}.m"] = lengths
    builders.write_safetensors(tmp_path / "a" / "adapters.safetensors", mlx, "F32")
    (path,) = jmedlite.quantize(tmp_path / "m", lora=[str(tmp_path / "a")], types=["F32"], out=tmp_path / "o")
    a, b = (mlx[f"{module}.lora_{side}"].astype(np.float64) for side in "ab")
    adapted = base[f"{module}.weight"] + SCALE * (a @ b).T
    expected = lengths[:, None] / np.linalg.norm(adapted, axis=1, keepdims=True) * adapted
    np.testing.assert_allclose(read(path)["blk.0.attn_q.weight"], expected, rtol=0, atol=1e-5)


def test_what_the_manifest_and_the_plan_say(tmp_path: Path) -> None:
    base = builders.checkpoint(tmp_path / "m", _name_or_path="Qwen/Qwen3-8B")
    adapter(tmp_path / "a", base)
    (path,) = jmedlite.quantize(tmp_path / "m", lora=[str(tmp_path / "a")], types=["Q8_0"], out=tmp_path / "o")
    (entry,) = json.loads(path.with_suffix(".json").read_text())["adapters"]
    assert (entry["r"], entry["lora_alpha"], entry["n_weights_changed"]) == (RANK, SCALE * RANK, 4)
    said = " ".join(assemble(tmp_path / "m", adapters=[(tmp_path / "a", 1.0)]).warnings)
    assert "was trained on Qwen/Qwen2-7B" in said


Q0 = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("changes", "tensors", "words"),
    [
        ({"fine_tune_type": "full"}, {}, ["fine_tune_type = 'full'", "mlx_lm.fuse"]),
        ({"lora_parameters": None}, {}, ["no lora_parameters"]),
        ({"lora_parameters": {"rank": 4}}, {}, ["has no scale"]),
        ({"lora_parameters": {"rank": 4, "scale": "big"}}, {}, ["scale"]),
        ({"lora_parameters": {"rank": 4, "scale": 2.5, "alpha": 16}}, {}, ["alpha beside scale"]),
        ({"lora_parameters": {"rank": 4, "scale": 2.5, "spin": 1}}, {}, ["spin", "not known"]),
        ({"lora_parameters": {"rank": 8, "scale": 2.5}}, {}, ["lora_a is [256, 4]", "rank 8"]),
        ({}, {f"{Q0}.lora_a": np.zeros((256, 3), np.float32)}, ["[256, 3]"]),
        ({}, {f"{Q0}.lora_b": None}, ["q_proj has no lora_b"]),
        ({}, {f"{Q0}.m": np.zeros(256, np.float32)}, ["has an m", "no DoRA"]),
        ({"fine_tune_type": "dora"}, {}, ["has no m"]),
        ({}, {f"{Q0}.weight": np.zeros((256, 256), np.float32)}, ["expected lora_a, lora_b and m only"]),
        ({}, {"model.layers.9.self_attn.q_proj.lora_a": np.zeros((256, 4), np.float32)}, ["another base"]),
    ],
)  # fmt: skip
def test_adapters_that_do_not_fit(
    tmp_path: Path, changes: dict[str, Any], tensors: dict[str, np.ndarray | None], words: list[str]
) -> None:
    base = builders.checkpoint(tmp_path / "m")
    mlx = adapter(tmp_path / "a", base, **changes)
    given = {name: x for name, x in {**mlx, **tensors}.items() if x is not None}
    builders.write_safetensors(tmp_path / "a" / "adapters.safetensors", given, "F32")
    with pytest.raises(DataError) as caught:
        assemble(tmp_path / "m", adapters=[(tmp_path / "a", 1.0)])
    for word in words:
        assert word in str(caught.value), caught.value


@pytest.mark.oracle
def test_fused_equals_mlx_lm(tmp_path: Path) -> None:
    """`LoRALinear.fuse` in float32, within its rounding."""
    mx, lora = pytest.importorskip("mlx.core"), pytest.importorskip("mlx_lm.tuner.lora")
    base = builders.checkpoint(tmp_path / "m")
    mlx = adapter(tmp_path / "a", base)
    layer = lora.LoRALinear(256, 256, r=RANK, scale=SCALE)
    layer.linear.weight = mx.array(base[f"{Q0}.weight"])
    layer.lora_a, layer.lora_b = mx.array(mlx[f"{Q0}.lora_a"]), mx.array(mlx[f"{Q0}.lora_b"])
    (path,) = jmedlite.quantize(tmp_path / "m", lora=[str(tmp_path / "a")], types=["F32"], out=tmp_path / "o")
    np.testing.assert_allclose(read(path)["blk.0.attn_q.weight"], np.array(layer.fuse().weight), rtol=0, atol=1e-6)
