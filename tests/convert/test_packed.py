"""Checkpoints that are quantized already: every method decodes to what it stands for, as if it had been stored so."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jmedlite
from jmedlite.api.model_facts import describe_model
from jmedlite.api.verify import inspect, verify
from jmedlite.base.errors import DataError
from jmedlite.base.progress import silent
from jmedlite.convert.planning import assemble
from jmedlite.convert.sources.checkpoint import read_safetensors_header
from tests.support import builders, packed
from tests.support.ggufs import raw
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
        assert raw(one) == raw(other)


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


def test_the_result_says_what_it_was_made_of(tmp_path: Path) -> None:
    exact = packed.checkpoint(tmp_path / "p", "NF4")
    builders.adapter(tmp_path / "a", exact)
    plan = assemble(tmp_path / "p", adapters=[(tmp_path / "a", 1.0)])
    said = " ".join(plan.warnings)
    assert plan.quantized == "NF4 (bitsandbytes)"
    assert "14 of its tensors are quantized already (NF4 (bitsandbytes))" in said
    assert "trained on the original belongs to the original" in said
    assert "but they are not" not in said
    (path,) = jmedlite.quantize(tmp_path / "p", types=["F32"], out=tmp_path / "1", name="x")
    facts = inspect(path)
    assert facts["made"]["quantized"] == "NF4 (bitsandbytes)"
    assert facts["manifest"]["base"]["quantized"] == "NF4 (bitsandbytes)"
    assert describe_model(path, silent)["quantized_base"] == "NF4 (bitsandbytes)"
    # ... and so does what is made of it, whatever format the copy between them has
    (again,) = jmedlite.quantize(path, types=["Q8_0"], out=tmp_path / "2", name="y")
    assert inspect(again)["made"]["quantized"] == "NF4 (bitsandbytes)"


def test_a_plain_base_says_nothing_of_the_kind(tmp_path: Path) -> None:
    builders.checkpoint(tmp_path / "m")
    (path,) = jmedlite.quantize(tmp_path / "m", types=["Q8_0"], out=tmp_path / "1")
    assert "quantized" not in inspect(path)["made"]
    assert "quantized" not in inspect(path)["manifest"]["base"]


def test_the_original_is_named(tmp_path: Path) -> None:
    packed.checkpoint(tmp_path / "p", "AWQ")
    card = "---\nbase_model: Qwen/Qwen2-7B\n---\n"
    (tmp_path / "p" / "README.md").write_text(card)
    assert any("Qwen/Qwen2-7B is its original" in w for w in assemble(tmp_path / "p").warnings)


def test_scales_of_activations_are_left_out_and_named(tmp_path: Path) -> None:
    packed.checkpoint(tmp_path / "p", "FP8, one scale")
    assert any("scales of its activations" in w and ".input_scale" in w for w in assemble(tmp_path / "p").warnings)


def test_settings_that_nobody_knows_are_named(tmp_path: Path) -> None:
    packed.checkpoint(tmp_path / "p", "GPTQ")
    set_config(tmp_path / "p", spin="up", turn={"by": 90})
    assert any("spin, turn" in w and "not known here" in w for w in assemble(tmp_path / "p").warnings)


def test_what_else_is_wrong_with_a_packed_checkpoint_is_named(tmp_path: Path) -> None:
    packed.checkpoint(tmp_path / "p", "NF4")
    set_tensors(tmp_path / "p", lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(DataError, match=r"lacks model\.norm\.weight"):
        assemble(tmp_path / "p")


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_biases_that_add_nothing_are_left_out(tmp_path: Path, value: float) -> None:
    """AutoGPTQ gave one to every module that it packed, whether the model has any or not."""
    packed.checkpoint(tmp_path / "p", "GPTQ")
    bias = np.full(256, value, np.float16)
    set_tensors(tmp_path / "p", lambda tensors: tensors.update({end_of("bias"): ("F16", bias)}))
    if value:
        with pytest.raises(DataError, match=r"has model\.layers\.1\.mlp\.down_proj\.bias"):
            assemble(tmp_path / "p")
    else:
        assert assemble(tmp_path / "p").quantized == "GPTQ, 4 bits"


def test_settings_of_a_checkpoint_that_is_not_packed_do_not_matter(tmp_path: Path) -> None:
    """What a merge was made from is left standing in many a config.json."""
    builders.checkpoint(tmp_path / "m", quantization_config={"quant_method": "gptq", "bits": "four", "rotation": False})
    (said,) = [w for w in assemble(tmp_path / "m").warnings if "quantized" in w]
    assert "but they are not" in said


# ------------------------------------------------------------------------------------------------------------- faults


def set_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    key = next(k for k in ("quantization_config", "quantization") if k in config)
    path.write_text(json.dumps({**config, key: {**config[key], **changes}}))


def set_tensors(folder: Path, change: Callable[[packed.Typed], object]) -> None:
    """Write the weights anew with what `change` makes of them."""
    path = folder / "model.safetensors"
    header = read_safetensors_header(path)
    blob = path.read_bytes()
    tensors: packed.Typed = {}
    for name, t in header.items():
        raw = np.frombuffer(blob, np.uint8, t.nbytes, t.offset)
        width = t.nbytes // max(1, math.prod(t.shape))
        tensors[name] = (t.dtype, raw.view(f"V{width}").reshape(t.shape).copy())
    change(tensors)
    packed.write_typed(path, tensors)


DOWN = "model.layers.1.mlp.down_proj."


def end_of(name: str) -> str:
    return DOWN + name


def cut(leaf: str, *shape: int) -> Callable[[packed.Typed], object]:
    """A tensor whose shape does not fit the others."""

    def change(tensors: packed.Typed) -> None:
        dtype, array = tensors[end_of(leaf)]
        tensors[end_of(leaf)] = (dtype, np.resize(array, shape))

    return change


def as_dtype(leaf: str, dtype: str) -> Callable[[packed.Typed], object]:
    """A tensor that says to be of another type of the same width."""

    def change(tensors: packed.Typed) -> None:
        tensors[end_of(leaf)] = (dtype, tensors[end_of(leaf)][1])

    return change


def without(leaf: str) -> Callable[[packed.Typed], object]:
    return lambda tensors: tensors.pop(end_of(leaf))


def filled(leaf: str, byte: int) -> Callable[[packed.Typed], object]:
    """A tensor all of whose bytes are the same."""

    def change(tensors: packed.Typed) -> None:
        dtype, array = tensors[end_of(leaf)]
        tensors[end_of(leaf)] = (dtype, np.full(array.nbytes, byte, np.uint8).view(array.dtype).reshape(array.shape))

    return change


def described(text: str) -> Callable[[packed.Typed], object]:
    leaf = "weight.quant_state.bitsandbytes__nf4"
    return lambda tensors: tensors.update({end_of(leaf): ("U8", np.frombuffer(text.encode(), np.uint8))})


FAULTS: dict[str, tuple[str, Callable[[packed.Typed], object], list[str]]] = {
    "a missing scale": ("FP8, 128×128", without("weight_scale_inv"), ["down_proj.weight is packed", "missing"]),
    "scales of another grid": ("FP8, 128×128", cut("weight_scale_inv", 3, 4), ["down_proj.weight_scale_inv", "[3, 4]"]),
    "scales that are none": ("FP8, rows", as_dtype("weight_scale", "I16"), ["weight_scale", "I16"]),
    "bytes that are no number": ("FP8, 128×128", filled("weight", 0x7F), ["down_proj", "NaN or infinite"]),
    "a description that is no JSON": ("NF4", described("{"), ["not valid JSON"]),
    "a description of other types": ("NF4", described('{"quant_type": 4}'), ["has no blocksize"]),
    "a description of another shape": (
        "NF4", described('{"quant_type": "nf4", "blocksize": 64, "shape": [256, 500]}'), ["down_proj.weight", "shape"],
    ),
    "no blocks": (
        "NF4", described('{"quant_type": "nf4", "blocksize": 0, "shape": [256, 512]}'), ["blocks of 0"],
    ),
    "a shape of one": (
        "NF4", described('{"quant_type": "nf4", "blocksize": 64, "shape": [131072]}'), ["two dimensions"],
    ),
    "scales of too few blocks": ("NF4", cut("weight.absmax", 7), ["absmax", "[7]"]),
    "statistics whose nesting nothing describes": (
        "NF4, nested", described('{"quant_type": "nf4", "blocksize": 64, "shape": [256, 512]}'), ["nested statistics"],
    ),
    "a map of too few": ("NF4", cut("weight.quant_map", 15), ["quant_map", "[15]"]),
    "a GPU's own order": ("LLM.int8()", filled("weight_format", 1), ["weight_format", "own order"]),
    "groups that are not there": ("GPTQ", filled("g_idx", 0x11), ["down_proj.weight: g_idx", "there are 8"]),
    "negative groups": ("GPTQ", filled("g_idx", 0xFF), ["g_idx"]),
    "zero points of another width": ("GPTQ", cut("qzeros", 8, 16), ["qzeros", "[8, 16]"]),
    "words of no number of bits": ("GPTQ", cut("qweight", 48, 256), ["3 bits", "2, 4 or 8"]),
    "words of another type": ("AWQ", as_dtype("qweight", "F32"), ["qweight", "F32"]),
    "scales of another width": ("AWQ", cut("scales", 8, 128), ["scales", "[8, 128]"]),
    "a shape of its own": ("compressed-tensors", filled("weight_shape", 0), ["weight_packed", "2, 4 or 8 bits"]),
    "too few words": ("compressed-tensors", cut("weight_packed", 256, 63), ["weight_packed", "63 words"]),
    "words and groups that do not fit": ("MLX, 4 bits", cut("scales", 256, 7), ["config.json says 4 bits"]),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_packed_weights(tmp_path: Path, fault: str) -> None:
    method, change, words = FAULTS[fault]
    packed.checkpoint(tmp_path / "p", method)
    set_tensors(tmp_path / "p", change)
    with pytest.raises(DataError) as caught:
        jmedlite.quantize(tmp_path / "p", types=["Q8_0"], out=tmp_path / "o")
    for word in words:
        assert word in str(caught.value), caught.value


@pytest.mark.parametrize(
    ("method", "changes", "words"),
    [
        ("AWQ", {"version": "gemv"}, ["version is gemv", "only gemm"]),
        ("AWQ", {"bits": 3}, ["3 bits"]),
        ("GPTQ", {"checkpoint_format": "marlin"}, ["marlin"]),
        ("GPTQ", {"bits": "four"}, ["bits"]),
        ("GPTQ, act-order", {"rotation": "hadamard"}, ["hadamard"]),
        ("GPTQ without g_idx", {"bits": None}, ["bits that nothing tells"]),
        ("GPTQ without g_idx", {"group_size": 32}, ["groups of 32"]),
        ("GPTQ without g_idx", {"desc_act": True}, ["no g_idx", "desc_act"]),
        ("compressed-tensors", {"transform_config": {"config_groups": {}}}, ["transform_config"]),
        ("compressed-tensors", {"sparsity_config": {"format": "sparse-24-bitmask"}}, ["sparse-24-bitmask"]),
        ("FP8, 128×128", {"weight_block_size": [128]}, ["weight_block_size", "two numbers"]),
        ("FP8, 128×128", {"weight_block_size": [64, 64]}, ["weight_scale_inv", "expected"]),
        ("MLX, 4 bits", {"bits": 8}, ["config.json says 8 bits"]),
        ("MLX, 4 bits", {"bits": None}, ["config.json says nothing"]),
    ],
)  # fmt: skip
def test_variants_that_are_not_decoded(tmp_path: Path, method: str, changes: dict[str, Any], words: list[str]) -> None:
    packed.checkpoint(tmp_path / "p", method)
    set_config(tmp_path / "p", **changes)
    with pytest.raises(DataError) as caught:
        assemble(tmp_path / "p")
    for word in words:
        assert word in str(caught.value), caught.value


def test_sizes_of_single_modules(tmp_path: Path) -> None:
    """MLX's mixed quantizations name the modules that differ."""
    packed.checkpoint(tmp_path / "p", "MLX, 4 bits")
    module = DOWN.removesuffix(".")
    eight, _ = packed.mlx(8, 128).pack(end_of("weight"), (256, 512), np.random.default_rng(0))
    set_tensors(tmp_path / "p", lambda tensors: tensors.update(eight))
    with pytest.raises(DataError, match=r"config\.json says 4 bits in groups of 64"):
        assemble(tmp_path / "p")
    set_config(tmp_path / "p", **{module: {"bits": 8, "group_size": 128}})
    assert assemble(tmp_path / "p").quantized == "MLX, 4 bits + MLX, 8 bits"


@pytest.mark.parametrize(
    ("method", "file"), [("GPTQ without g_idx", "quantize_config.json"), ("AWQ", "quant_config.json")]
)
def test_settings_in_a_file_of_their_own(tmp_path: Path, method: str, file: str) -> None:
    """Older checkpoints have them beside config.json, and they tell GPTQ from AWQ."""
    exact = packed.checkpoint(tmp_path / "p", method)
    path = tmp_path / "p" / "config.json"
    config = json.loads(path.read_text())
    settings = config.pop("quantization_config")
    settings.pop("quant_method")
    path.write_text(json.dumps(config))
    (tmp_path / "p" / file).write_text(json.dumps(settings))
    builders.checkpoint(tmp_path / "d", "llama", dtype="F32", tensors=exact)
    one, other = (
        jmedlite.quantize(tmp_path / kind, types=["F32"], out=tmp_path / f"o-{kind}", name="x")[0] for kind in "pd"
    )
    assert raw(one) == raw(other)
