"""Mixtures of experts: stacked as GGUF has them, at every level as llama-quantize does, with adapters of every kind."""

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
from jmedlite.base.imatrix import read_imatrix
from jmedlite.convert.planning import assemble
from tests.support import builders, packed
from tests.support.ggufs import contents, importance, llama_quantize, raw, read
from tests.support.long import long_but_for

LAYER = "model.layers.0.mlp."


def stacked(base: builders.Arrays, family: str, name: str, layer: int = 0) -> np.ndarray:
    """One matrix of all experts of a layer, (n_expert, out, in), by their names in the checkpoint."""
    module = "block_sparse_moe" if family == "mixtral" else "mlp"
    return np.stack([base[f"model.layers.{layer}.{module}.experts.{e}.{name}.weight"] for e in range(builders.EXPERTS)])


@pytest.mark.parametrize("family", builders.MOE)
def test_experts_are_stacked_in_their_order(tmp_path: Path, family: str) -> None:
    base = builders.checkpoint(tmp_path / "m", family, shards=3)
    (path,) = jmedlite.quantize(tmp_path / "m", types=["F32"], out=tmp_path)
    found = read(path)
    names = ("w1", "w3", "w2") if family == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    for ours, theirs in zip(("gate", "up", "down"), names, strict=True):
        np.testing.assert_array_equal(found[f"blk.1.ffn_{ours}_exps.weight"], stacked(base, family, theirs, 1))
    meta = read_header(path).metadata
    arch = meta["general.architecture"]
    assert (meta[f"{arch}.expert_count"], meta[f"{arch}.expert_used_count"]) == (builders.EXPERTS, 2)
    if family == "qwen2_moe":
        np.testing.assert_array_equal(
            found["blk.0.ffn_gate_inp_shexp.weight"], base[LAYER + "shared_expert_gate.weight"][0]
        )


@pytest.mark.parametrize("family", long_but_for(builders.MOE, ["qwen3_moe"]))
def test_every_level_equals_llama_quantize(tmp_path: Path, family: str) -> None:
    builders.checkpoint(tmp_path / "m", family)
    levels = ["Q2_K", "Q3_K_M", "Q4_K_M", "Q4_0", "Q6_K", "Q8_0"]
    made = jmedlite.quantize(tmp_path / "m", types=["BF16", *levels], out=tmp_path / "out", threads=2)
    assert raw(made[0])["blk.0.ffn_gate_inp.weight"][0] == "F32"  # the router, as llama.cpp's converter keeps it
    for level, path in zip(levels, made[1:], strict=True):
        llama_quantize(made[0], tmp_path / "ref.gguf", level)
        assert contents(path) == contents(tmp_path / "ref.gguf"), level


@pytest.mark.parametrize("level", ["Q4_K_M", "IQ3_XXS"])
def test_every_expert_has_importance_of_its_own(tmp_path: Path, level: str) -> None:
    """As llama-quantize takes them; an expert that saw no token counts all its columns alike."""
    builders.checkpoint(tmp_path / "m", "qwen3_moe", num_experts=8)
    (bf16,) = jmedlite.quantize(tmp_path / "m", types=["BF16"], out=tmp_path)
    text = tmp_path / "text.txt"
    text.write_text("hello the thing " * 200)
    matrix = tmp_path / "m.imatrix.gguf"
    jmedlite.imatrix(bf16, texts=[text], out=matrix, chunks=1)
    (ours,) = jmedlite.quantize(tmp_path / "m", types=[level], imatrix=matrix, out=tmp_path / "o", threads=3)
    found = read_imatrix(matrix)  # llama.cpp is given addresses in it
    llama_quantize(bf16, tmp_path / "ref.gguf", level, imatrix=importance(found))
    assert raw(ours) == raw(tmp_path / "ref.gguf")
    (plain,) = jmedlite.quantize(tmp_path / "m", types=["Q4_K_M"], out=tmp_path / "p")
    assert raw(ours) != raw(plain)


@pytest.mark.parametrize("memory", [None, "330MB"])
def test_small_blocks_and_many_threads_change_nothing(tmp_path: Path, memory: str | None) -> None:
    base = builders.checkpoint(tmp_path / "m", "qwen3_moe")
    modules = tuple(f"experts.{e}.{n}_proj" for e in (0, 1, 2, 3) for n in ("up", "down"))
    builders.adapter(tmp_path / "a", base, modules=modules)
    given: dict[str, Any] = {"lora": [str(tmp_path / "a")], "types": ["Q4_K_M"]}
    (one,) = jmedlite.quantize(tmp_path / "m", out=tmp_path / "1", threads=1, **given)
    (many,) = jmedlite.quantize(tmp_path / "m", out=tmp_path / "2", threads=5, memory=memory, **given)
    assert one.read_bytes() == many.read_bytes()
    proof = verify(many, base=tmp_path / "m", lora=given["lora"], threads=3)
    assert proof.holds
    assert {v.state for v in proof.report.tensors} == {"identical"}


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_adapters_of_single_experts(tmp_path: Path, family: str) -> None:
    """As transformers 4 named them: a pair of matrices for each expert."""
    base = builders.checkpoint(tmp_path / "m", family)
    leaf = "w3" if family == "mixtral" else "up_proj"
    ab = builders.adapter(tmp_path / "a", base, modules=tuple(f"experts.{e}.{leaf}" for e in range(4)))
    (path,) = jmedlite.quantize(tmp_path / "m", lora=[str(tmp_path / "a")], types=["F32"], out=tmp_path / "o")
    expected = stacked(base, family, leaf).astype(np.float64)
    module = "block_sparse_moe" if family == "mixtral" else "mlp"
    for e in range(4):
        name = f"base_model.model.model.layers.0.{module}.experts.{e}.{leaf}."
        expected[e] += 8 / 4 * (ab[name + "lora_B.weight"].astype(float) @ ab[name + "lora_A.weight"])
    np.testing.assert_allclose(read(path)["blk.0.ffn_up_exps.weight"], expected, rtol=0, atol=1e-6)
    with pytest.raises(DataError, match=r"changes single experts, which llama\.cpp can't do at run time"):
        export_adapters(str(tmp_path / "m"), [str(tmp_path / "a")], out=tmp_path)


def parameter_adapter(
    folder: Path,
    n_layers: int = 2,
    r: int = 3,
    width: int = builders.EXPERT_FFN,
    *,
    older: bool = False,
    **changes: Any,
) -> None:
    """PEFT's adapter of the two parameters of all experts, with the numbers of one seed in either order."""
    rng = np.random.default_rng(7)
    h, f, n = builders.HIDDEN, width, builders.EXPERTS
    matrices: builders.Arrays = {}
    for i in range(n_layers):
        for inner, out, in_ in (("base_layer.", 2 * f, h), ("", h, f)):
            left, right = rng.standard_normal((n, out, r)) * 0.1, rng.standard_normal((n, r, in_)) * 0.1
            if older:  # what was the inputs' side is the outputs'
                left, right = right.transpose(0, 2, 1), left.transpose(0, 2, 1)
            place = f"base_model.model.model.layers.{i}.mlp.experts.{inner}"
            matrices[place + "lora_A.weight"] = right.reshape(n * r, -1).astype(np.float32)
            matrices[place + "lora_B.weight"] = left.transpose(1, 2, 0).reshape(-1, r * n).astype(np.float32)
    builders.adapter(folder, {}, target_modules=[], r=r)
    path = folder / "adapter_config.json"
    config = {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"], "lora_alpha": 5, **changes}
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    builders.write_safetensors(folder / "adapter_model.safetensors", matrices, "F32")


def test_both_orders_of_a_parameters_matrices(tmp_path: Path) -> None:
    """Versions of PEFT differ in which side of a parameter they take for the inputs."""
    builders.checkpoint(tmp_path / "m", "qwen3_moe")
    parameter_adapter(tmp_path / "new")
    parameter_adapter(tmp_path / "old", older=True)
    one, other, plain = (
        jmedlite.quantize(tmp_path / "m", lora=lora, types=["F32"], out=tmp_path / str(i))[0]
        for i, lora in enumerate(([str(tmp_path / "new")], [str(tmp_path / "old")], []))
    )
    found, expected, before = read(other), read(one), read(plain)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-6, err_msg=name)
        assert np.array_equal(expected[name], before[name]) != ("_exps" in name)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target_parameters": ["mlp.experts.down_proj"]}, ["weights for 2 parameters", "down_proj"]),
        ({"rank_pattern": {"down_proj": 2}}, ["down_proj", "expected rank 2"]),
        ({"target_parameters": ["gate_up_proj", "down_proj", "gate.weight"]}, ["no weights for", "gate.weight"]),
    ],
)
def test_parameters_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    builders.checkpoint(tmp_path / "m", "qwen3_moe")
    parameter_adapter(tmp_path / "a", **changes)
    refused(tmp_path, words)


def test_parameters_of_a_model_without_experts(tmp_path: Path) -> None:
    builders.checkpoint(tmp_path / "m", "qwen2")
    parameter_adapter(tmp_path / "a")
    refused(tmp_path, ["target_parameters", "not supported"])


def test_a_layer_that_an_adapter_leaves_out(tmp_path: Path) -> None:
    builders.checkpoint(tmp_path / "m", "qwen3_moe")
    parameter_adapter(tmp_path / "a", n_layers=1)
    refused(tmp_path, ["no weights for model.layers.1.mlp.experts"])


def test_square_experts_tell_no_order(tmp_path: Path) -> None:
    builders.checkpoint(tmp_path / "m", "qwen3_moe", moe_intermediate_size=builders.HIDDEN)
    parameter_adapter(tmp_path / "a", width=builders.HIDDEN)
    refused(tmp_path, ["experts are square"])


def refused(tmp_path: Path, words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        assemble(tmp_path / "m", adapters=[(tmp_path / "a", 1.0)])
    for word in words:
        assert word in str(caught.value), caught.value


@pytest.mark.parametrize("method", ["FP8, 128×128", "NF4, nested", "AWQ", "MLX, 4 bits"])
def test_packed_experts(tmp_path: Path, method: str) -> None:
    exact = packed.checkpoint(tmp_path / "p", method, "qwen3_moe")
    builders.checkpoint(tmp_path / "d", "qwen3_moe", dtype="F32", tensors=exact)
    one, other = (
        jmedlite.quantize(tmp_path / kind, types=["F32", "Q4_K_M"], out=tmp_path / f"o-{kind}", name="x")
        for kind in "pd"
    )
    assert [raw(path) for path in one] == [raw(path) for path in other]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_experts": 5}, ["lacks", "experts.4"]),
        ({"num_experts": 3}, ["has", "experts.3"]),
        ({"num_experts_per_tok": 5}, ["5 of 4 experts"]),
        ({"moe_intermediate_size": 384}, ["experts.0", "[384, 256]"]),
        ({"norm_topk_prob": False}, ["norm_topk_prob"]),
        ({"mlp_only_layers": [0]}, ["mlp_only_layers"]),
        ({"decoder_sparse_step": 2}, ["decoder_sparse_step"]),
        ({"num_experts": "four"}, ["num_experts"]),
    ],
)
def test_mixtures_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    builders.checkpoint(tmp_path / "m", "qwen3_moe")
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(DataError) as caught:
        assemble(tmp_path / "m")
    for word in words:
        assert word in str(caught.value), caught.value


def test_experts_that_are_stored_differently(tmp_path: Path) -> None:
    """Rows of several widths can't be one tensor's."""
    base = builders.checkpoint(tmp_path / "m", "qwen3_moe")
    names = list(base)
    stored = {n: ("BF16", builders.to_bf16(base[n])) for n in names}
    odd = LAYER + "experts.2.up_proj.weight"
    stored[odd] = ("F32", base[odd].astype(np.float32))
    packed.write_typed(tmp_path / "m" / "model.safetensors", stored)
    with pytest.raises(DataError, match=r"experts\.2\.up_proj\.weight is stored as F32.*as BF16"):
        jmedlite.quantize(tmp_path / "m", types=["Q8_0"], out=tmp_path / "o")


def test_a_mix_within_a_budget(tmp_path: Path) -> None:
    builders.checkpoint(tmp_path / "m", "qwen3_moe", num_hidden_layers=2)
    (bf16,) = jmedlite.quantize(tmp_path / "m", types=["BF16"], out=tmp_path)
    text = tmp_path / "text.txt"
    text.write_text("hello the thing " * 400)
    jmedlite.sensitivity(bf16, texts=[text], tokens=256, every=1, out=tmp_path / "s.json")
    (path,) = jmedlite.quantize(
        tmp_path / "m", target_bpw=[5.0], sensitivity=tmp_path / "s.json", out=tmp_path / "o", threads=2
    )
    assert path.name.endswith("bpw.gguf")
    proof = verify(path, base=tmp_path / "m", threads=2)
    assert proof.holds


@pytest.mark.parametrize("family", ["qwen3_moe", "qwen3_5_moe_text", "mixtral"])
def test_all_experts_of_a_layer_in_one_tensor(tmp_path: Path, family: str) -> None:
    """As transformers 5 holds them, and some checkpoints are: gate and up together."""
    base = builders.checkpoint(tmp_path / "m", family)
    names = ("w1", "w3", "w2") if family == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    module = "block_sparse_moe" if family == "mixtral" else "mlp"
    fused = {name: x for name, x in base.items() if ".experts." not in name}
    for i in range(sum(name.endswith("input_layernorm.weight") for name in base)):
        gate, up, down = (stacked(base, family, name, i) for name in names)
        place = f"model.layers.{i}.{module}.experts."
        fused |= {place + "gate_up_proj": np.concatenate([gate, up], axis=1), place + "down_proj": down}
    builders.checkpoint(tmp_path / "f", family, tensors=fused)
    modules = (*(f"experts.{e}.{names[1]}" for e in range(4)), "shared_expert.up_proj")
    builders.adapter(tmp_path / "a", base, modules=modules, target_modules=[names[1]])
    given: dict[str, Any] = {"lora": [str(tmp_path / "a")], "types": ["F32", "Q4_K_M"], "name": "x"}
    one, other = (jmedlite.quantize(tmp_path / kind, out=tmp_path / f"o-{kind}", **given) for kind in "mf")
    assert [raw(path) for path in one] == [raw(path) for path in other]


def test_a_fused_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    base = builders.checkpoint(tmp_path / "m", "qwen3_moe")
    odd = {name: x for name, x in base.items() if not name.startswith(LAYER + "experts.")}
    odd[LAYER + "experts.gate_up_proj"] = np.zeros((3, 1024, 256), np.float32)
    builders.checkpoint(tmp_path / "f", "qwen3_moe", tensors=odd)
    with pytest.raises(DataError, match=r"lacks model\.layers\.0\.mlp\.experts"):
        assemble(tmp_path / "f")
