"""gpt-oss: experts that take turns in one parameter, and MXFP4, which reaches the file as it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize

import jmedlite
from jmedlite.api.verify import verify
from jmedlite.base.errors import DataError
from jmedlite.base.gguf import read_header
from jmedlite.convert.planning import assemble
from tests.support import builders, packed
from tests.support.ggufs import raw, read

LAYER = "model.layers.0.mlp.experts."
EXPERTS = ("blk.0.ffn_gate_exps.weight", "blk.0.ffn_up_exps.weight", "blk.0.ffn_down_exps.weight")


def matrices(exact: builders.Arrays, layer: int = 0) -> dict[str, np.ndarray]:
    """What GGUF calls the experts of a layer, (n_expert, out, in), by the definition of transformers' GptOssExperts."""
    place = f"model.layers.{layer}.mlp.experts."
    both, down = (exact[f"{place}{name}_proj"].transpose(0, 2, 1) for name in ("gate_up", "down"))
    return {
        f"blk.{layer}.ffn_gate_exps.weight": both[:, ::2],
        f"blk.{layer}.ffn_up_exps.weight": both[:, 1::2],
        f"blk.{layer}.ffn_down_exps.weight": down,
    }


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_every_tensor_is_what_transformers_computes_with(tmp_path: Path, dtype: str) -> None:
    exact = builders.checkpoint(tmp_path / "m", "gpt_oss", dtype=dtype, shards=2)
    (path,) = jmedlite.quantize(tmp_path / "m", types=["F32"], out=tmp_path)
    found = read(path)
    for name, expected in (matrices(exact) | matrices(exact, 1)).items():
        np.testing.assert_array_equal(found[name], expected, err_msg=name)
    biases = exact[LAYER + "gate_up_proj_bias"]
    np.testing.assert_array_equal(found["blk.0.ffn_gate_exps.bias"], biases[:, ::2])
    np.testing.assert_array_equal(found["blk.0.ffn_up_exps.bias"], biases[:, 1::2])
    np.testing.assert_array_equal(found["blk.0.ffn_down_exps.bias"], exact[LAYER + "down_proj_bias"])
    np.testing.assert_array_equal(found["blk.0.attn_sinks.weight"], exact["model.layers.0.self_attn.sinks"])
    meta = read_header(path).metadata
    told = ("expert_count", "expert_used_count", "expert_feed_forward_length", "attention.sliding_window")
    assert [meta[f"gpt-oss.{key}"] for key in told] == [builders.EXPERTS, 2, builders.FFN, 16]


def decoded(path: Path, name: str) -> tuple[str, np.ndarray]:
    """A tensor's type, and its values as gguf-py decodes them."""
    type_, data = raw(path)[name]
    rows = np.frombuffer(data, np.uint8).reshape(builders.EXPERTS, -1)
    return type_, dequantize(rows, GGMLQuantizationType[type_]).reshape(builders.EXPERTS, -1)


def test_mxfp4_passes_through(tmp_path: Path) -> None:
    """To the same numbers, at every level that would take as much room for others."""
    exact = matrices(packed.mxfp4(tmp_path / "m"))
    levels = ["F32", "BF16", "Q8_0", "Q5_K_M", "Q4_K_M", "MXFP4_MOE"]
    paths = jmedlite.quantize(tmp_path / "m", types=levels, out=tmp_path, threads=2)
    for path in paths:
        for name, expected in exact.items():
            type_, values = decoded(path, name)
            assert type_ == "MXFP4", (path.name, name)
            np.testing.assert_array_equal(values, expected.reshape(builders.EXPERTS, -1), err_msg=name)
    assert raw(paths[4])["blk.0.attn_q.weight"][0] == "Q4_K"


def test_mxfp4_is_encoded_where_that_saves_room_or_is_asked(tmp_path: Path) -> None:
    exact = packed.mxfp4(tmp_path / "m")
    plain = {**exact}  # the same numbers, which are all BF16's
    builders.checkpoint(tmp_path / "p", "gpt_oss", tensors=plain)
    for given in ({"types": ["Q2_K", "Q3_K_S"]}, {"types": ["Q4_K_M"], "tensor_types": ["ffn_.*_exps=Q6_K"]}):
        one, other = (
            jmedlite.quantize(tmp_path / kind, out=tmp_path / f"{kind}{len(given)}", name="x", **given) for kind in "mp"
        )
        assert [raw(path) for path in one] == [raw(path) for path in other]
        assert {raw(path)[name][0] for path in one for name in EXPERTS}.isdisjoint({"MXFP4"})


def test_small_blocks_and_many_threads_change_nothing(tmp_path: Path) -> None:
    packed.mxfp4(tmp_path / "m")
    builders.checkpoint(tmp_path / "b", "gpt_oss")
    for kind in "mb":
        given: dict[str, Any] = {"types": ["Q4_K_M", "F16"], "name": "x"}
        one = jmedlite.quantize(tmp_path / kind, out=tmp_path / f"{kind}1", threads=1, **given)
        many = jmedlite.quantize(tmp_path / kind, out=tmp_path / f"{kind}2", threads=5, memory="340MB", **given)
        assert [path.read_bytes() for path in one] == [path.read_bytes() for path in many]
        assert all(verify(path, base=tmp_path / kind, threads=2).holds for path in many)


def test_a_gguf_keeps_its_mxfp4(tmp_path: Path) -> None:
    """Where it may be quantized once more at all."""
    packed.mxfp4(tmp_path / "m")
    (first,) = jmedlite.quantize(tmp_path / "m", types=["BF16"], out=tmp_path)
    with pytest.raises(DataError, match=r"MXFP4.*--allow-requantize"):
        jmedlite.quantize(first, types=["Q4_K_M"], out=tmp_path / "o")
    (path,) = jmedlite.quantize(first, types=["Q4_K_M"], out=tmp_path / "o", allow_requantize=True)
    (direct,) = jmedlite.quantize(tmp_path / "m", types=["Q4_K_M"], out=tmp_path / "d")
    assert raw(path) == raw(direct)


def expert_adapter(folder: Path, r: int = 2) -> builders.Arrays:
    """PEFT's adapter of both parameters of all experts."""
    rng, matrices = np.random.default_rng(5), builders.Arrays()
    h, f, n = builders.HIDDEN, builders.FFN, builders.EXPERTS
    for i in range(builders.LAYERS):
        for inner, out, in_ in (("base_layer.", 2 * f, h), ("", h, f)):
            place = f"base_model.model.model.layers.{i}.mlp.experts.{inner}lora_"
            matrices[place + "A.weight"] = (rng.standard_normal((n * r, in_)) * 0.1).astype(np.float32)
            matrices[place + "B.weight"] = (rng.standard_normal((out, r * n)) * 0.1).astype(np.float32)
    builders.adapter(folder, {}, target_modules=[], r=r)
    path = folder / "adapter_config.json"
    given = {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"], "lora_alpha": 6}
    path.write_text(json.dumps({**json.loads(path.read_text()), **given}))
    builders.write_safetensors(folder / "adapter_model.safetensors", matrices, "F32")
    return matrices


def test_an_adapter_on_mxfp4_experts(tmp_path: Path) -> None:
    """Is added to what they stand for; what it leaves alone passes through."""
    exact, r = packed.mxfp4(tmp_path / "m"), 2
    ab = expert_adapter(tmp_path / "a", r)
    given: dict[str, Any] = {"lora": [str(tmp_path / "a")], "types": ["F32", "Q4_K_M"]}
    merged, four = jmedlite.quantize(tmp_path / "m", out=tmp_path, **given)
    place, found = "base_model.model.model.layers.0.mlp.experts.", read(merged)
    for e in range(builders.EXPERTS):
        both, down = (
            6 / r * (ab[f"{place}{inner}lora_B.weight"][:, e :: builders.EXPERTS].astype(float)
                     @ ab[f"{place}{inner}lora_A.weight"][e * r : (e + 1) * r])
            for inner in ("base_layer.", "")
        )  # fmt: skip
        for name, delta in zip(EXPERTS, (both[::2], both[1::2], down), strict=True):
            np.testing.assert_allclose(found[name][e], matrices(exact)[name][e] + delta, rtol=0, atol=1e-6)
    assert raw(four)[EXPERTS[0]][0] == "Q4_K"
    builders.adapter(tmp_path / "q", exact, modules=("self_attn.q_proj",))
    (other,) = jmedlite.quantize(tmp_path / "m", lora=[str(tmp_path / "q")], types=["Q4_K_M"], out=tmp_path / "o")
    assert decoded(other, EXPERTS[0])[0] == "MXFP4"


@pytest.mark.parametrize("decoded_before", [True, False])
def test_a_mix_may_leave_mxfp4_alone(tmp_path: Path, decoded_before: bool) -> None:
    """Sensitivities are measured on experts that were decoded; where they were not, these stay as they are."""
    packed.mxfp4(tmp_path / "m")
    rules = ["exps=BF16"] if decoded_before else []
    (bf16,) = jmedlite.quantize(tmp_path / "m", types=["Q8_0"], tensor_types=rules, out=tmp_path)
    (tmp_path / "text.txt").write_text("hello the thing " * 400)
    jmedlite.sensitivity(bf16, texts=[tmp_path / "text.txt"], tokens=256, every=1, out=tmp_path / "s.json")
    given: dict[str, Any] = {"sensitivity": tmp_path / "s.json", "out": tmp_path / "o", "threads": 2}
    wide, *narrow = jmedlite.quantize(tmp_path / "m", target_bpw=[6.0, 4.1] if decoded_before else [6.0], **given)
    assert {raw(wide)[name][0] for name in EXPERTS} == {"MXFP4"}
    for path in narrow:
        assert {raw(path)[name][0] for name in EXPERTS} != {"MXFP4"}


def test_the_ramp_that_llama_cpp_rounds_is_said(tmp_path: Path) -> None:
    """gpt-oss does not truncate YaRN's ramp; also where config.json has no rotary settings, which mean that."""
    yarn = {"rope_type": "yarn", "factor": 32.0, "truncate": False, "original_max_position_embeddings": 128}
    for i, changes in enumerate(({"rope_scaling": yarn}, {})):
        builders.checkpoint(tmp_path / str(i), "gpt_oss", rope_parameters=None, rope_theta=150000.0, **changes)
        plan = assemble(tmp_path / str(i))
        assert any("truncate of its yarn rope settings is False" in w for w in plan.warnings)
        assert plan.metadata["gpt-oss.rope.scaling.type"][0] == "yarn"
    builders.checkpoint(tmp_path / "q", "qwen2", rope_scaling=yarn)
    with pytest.raises(DataError, match="truncate"):
        assemble(tmp_path / "q")


def _scales_that_are_nan(stored: packed.Typed) -> None:
    stored[LAYER + "down_proj_scales"][1][2, 7, 3] = 255


def _without(name: str) -> Callable[[packed.Typed], object]:
    return lambda stored: stored.pop(LAYER + name)


def _as(name: str, change: Callable[[np.ndarray], np.ndarray], dtype: str = "U8") -> Callable[[packed.Typed], object]:
    return lambda stored: stored.update({LAYER + name: (dtype, change(stored[LAYER + name][1]))})


FAULTS: dict[str, tuple[Callable[[packed.Typed], object], list[str]]] = {
    "NaN": (_scales_that_are_nan, ["down_proj", "1 scales are NaN"]),
    "no scales": (_without("down_proj_scales"), ["down_proj_blocks", "no model.layers.0.mlp.experts.down_proj_scales"]),
    "no blocks": (_without("gate_up_proj_blocks"), ["no model.layers.0.mlp.experts.gate_up_proj_blocks"]),
    "cut": (_as("down_proj_blocks", lambda x: x[..., :8]), ["down_proj_blocks", "16 bytes for every 32"]),
    "of another shape": (_as("down_proj_scales", lambda x: x[:, :-1]), ["down_proj_scales", "[4, 255, 16]"]),
    "signed": (_as("down_proj_scales", lambda x: x.astype(np.int8), "I8"), ["down_proj_scales", "dtype I8"]),
    "an expert less": (
        lambda s: [_as(f"down_proj_{n}", lambda x: x[:-1])(s) for n in ("blocks", "scales")], ["lacks", "down_proj"],
    ),
    "other biases": (_as("gate_up_proj_bias", lambda x: x[:, :-2], "BF16"), ["gate_proj_bias", "[4, 511]"]),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(tmp_path: Path, fault: str) -> None:
    bend, words = FAULTS[fault]
    packed.mxfp4(tmp_path / "m", bend)
    with pytest.raises(DataError) as caught:
        jmedlite.quantize(tmp_path / "m", types=["Q8_0"], out=tmp_path / "o")
    for word in words:
        assert word in str(caught.value), caught.value
    assert not list((tmp_path / "o").glob("*.gguf"))
