"""One fact in two places: weights, names, quantization. What agrees is silent, what differs is decided and said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jmedlite
from jmedlite.base.errors import DataError
from jmedlite.convert.planning import QuantizePlan, assemble
from jmedlite.convert.sources.tensors import Files
from tests.support import builders
from tests.support.ggufs import read

N_VOCAB = builders.n_tokens(builders.byte_level_tokenizer())


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def values(plan: QuantizePlan, name: str) -> np.ndarray:
    """The tensor that the plan reads for an output tensor, in float32."""
    source = next(job.source for job in plan.jobs if job.name == name)
    assert source is not None
    return Files().matrix(source)


def names(plan: QuantizePlan) -> set[str]:
    return {job.name for job in plan.jobs}


# --------------------------------------------------------------------------------------------------- head and embedding


HEADS = {"gpt_neox": ("gpt_neox.embed_in.weight", "embed_out.weight")}


def tied_with_a_head(folder: Path, family: str, dtype: str = "BF16") -> builders.Arrays:
    """A checkpoint that config.json calls tied and that has a head with other values."""
    tensors = builders.weights(builders.config(family, N_VOCAB, tie_word_embeddings=False))
    return builders.checkpoint(folder, family, tensors=tensors, dtype=dtype, tie_word_embeddings=True)


@pytest.mark.parametrize("family", ["qwen2", "llama", "gpt_neox", "gemma3_text", "phi3"])
def test_a_head_of_its_own_is_kept(tmp_path: Path, family: str) -> None:
    tensors = tied_with_a_head(tmp_path / "m", family)
    embedding, head = HEADS.get(family, ("model.embed_tokens.weight", "lm_head.weight"))
    plan = assemble(tmp_path / "m")
    np.testing.assert_array_equal(values(plan, "output.weight"), tensors[head])
    np.testing.assert_array_equal(values(plan, "token_embd.weight"), tensors[embedding])
    (warning,) = plan.warnings
    assert head in warning
    assert "untied" in warning


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "gemma3_text"])
def test_a_copy_of_the_table_is_no_head(tmp_path: Path, family: str) -> None:
    tensors = builders.weights(builders.config(family, N_VOCAB, tie_word_embeddings=True))
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    builders.checkpoint(tmp_path / "m", family, tensors=tensors, tie_word_embeddings=True)
    plan = assemble(tmp_path / "m")
    assert "output.weight" not in names(plan)
    assert not plan.warnings


def test_one_other_value_unties(tmp_path: Path) -> None:
    """In the last piece of several that are compared."""
    tensors = builders.weights(builders.config("qwen2", N_VOCAB, tie_word_embeddings=True))
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    tensors["lm_head.weight"][-1, -1] += 1
    builders.checkpoint(tmp_path / "m", tensors=tensors, dtype="F32", tie_word_embeddings=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jmedlite.convert.sources.tensors._PIECE", 1000)
        assert "output.weight" in names(assemble(tmp_path / "m"))


def test_a_head_that_the_graph_can_not_have_is_refused(tmp_path: Path) -> None:
    tied_with_a_head(tmp_path / "m", "gemma2")
    with pytest.raises(DataError, match=r"lm_head.weight has other values than model.embed_tokens.weight.*Gemma 2"):
        assemble(tmp_path / "m")


def test_a_head_of_another_shape_is_refused(tmp_path: Path) -> None:
    tensors = tied_with_a_head(tmp_path / "m", "qwen2")
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1]
    builders.write_safetensors(tmp_path / "m" / "model.safetensors", tensors)
    with pytest.raises(DataError, match=r"lm_head.weight has shape"):
        assemble(tmp_path / "m")


def test_untied_without_a_head_is_refused(tmp_path: Path) -> None:
    """transformers would make one up, of random numbers."""
    builders.checkpoint(tmp_path / "m", tie_word_embeddings=True)
    change_json(tmp_path / "m" / "config.json", tie_word_embeddings=False)
    with pytest.raises(DataError, match=r"lacks lm_head.weight"):
        assemble(tmp_path / "m")


@pytest.mark.parametrize(("outer", "nested", "tied"), [(None, False, True), (True, False, True), (False, True, False)])
def test_a_model_with_eyes_is_tied_by_its_outer_setting(
    tmp_path: Path, outer: bool | None, nested: bool, tied: bool
) -> None:
    config = builders.config("gemma3_text", N_VOCAB)
    tensors = {
        name.replace("model.", "model.language_model."): x
        for name, x in builders.weights(config | {"tie_word_embeddings": tied}).items()
    }
    builders.checkpoint(tmp_path / "m", "gemma3_text", tensors=tensors)
    whole = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3"}
    whole |= {"text_config": config | {"tie_word_embeddings": nested}}
    whole |= {} if outer is None else {"tie_word_embeddings": outer}
    (tmp_path / "m" / "config.json").write_text(json.dumps(whole))
    assert ("output.weight" in names(assemble(tmp_path / "m"))) is not tied


def test_adapters_see_the_untied_head(tmp_path: Path) -> None:
    """An update of the head alone leaves the embedding; ensure_weight_tying has nothing to tie."""
    tensors = tied_with_a_head(tmp_path / "m", "qwen2", "F32")
    ab = builders.adapter(tmp_path / "a", tensors, modules=("lm_head",), drop=("model",))
    prefix = "base_model.model.lm_head.lora_"
    rng = np.random.default_rng(2)
    ab = {f"{prefix}A.weight": rng.standard_normal((4, 256), np.float32)}
    ab[f"{prefix}B.weight"] = rng.standard_normal((N_VOCAB, 4), np.float32)
    builders.write_safetensors(tmp_path / "a" / "adapter_model.safetensors", ab, "F32")
    change_json(tmp_path / "a" / "adapter_config.json", ensure_weight_tying=True)
    (path,) = jmedlite.quantize(tmp_path / "m", lora=[str(tmp_path / "a")], types=["F32"], out=tmp_path)
    found = read(path)
    np.testing.assert_array_equal(found["token_embd.weight"], tensors["model.embed_tokens.weight"])
    expected = tensors["lm_head.weight"] + 2 * ab[f"{prefix}B.weight"] @ ab[f"{prefix}A.weight"]
    np.testing.assert_allclose(found["output.weight"], expected, rtol=0, atol=1e-4)
    assert jmedlite.verify(path, base=tmp_path / "m", lora=[str(tmp_path / "a")]).holds


# -------------------------------------------------------------------------------------------------------- weight files


def test_one_file_beside_an_index_is_taken(tmp_path: Path) -> None:
    builders.checkpoint(tmp_path / "m", shards=2, seed=1)
    tensors = builders.checkpoint(tmp_path / "one", seed=2)
    shutil.copy(tmp_path / "one" / "model.safetensors", tmp_path / "m")
    plan = assemble(tmp_path / "m")
    np.testing.assert_array_equal(values(plan, "output_norm.weight"), tensors["model.norm.weight"])
    (warning,) = plan.warnings
    assert "model.safetensors is taken" in warning
    assert "model.safetensors.index.json" in warning


def test_a_part_beside_an_index_is_refused_by_both_names(tmp_path: Path) -> None:
    tensors = builders.checkpoint(tmp_path / "m", shards=2)
    builders.write_safetensors(tmp_path / "m" / "model.safetensors", dict(list(tensors.items())[:3]))
    with pytest.raises(DataError, match=r"lacks .*; it has both model.safetensors and model.safetensors.index.json"):
        assemble(tmp_path / "m")


# -------------------------------------------------------------------------------------------------------- quantization


BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


def test_quantization_is_judged_by_the_tensors(tmp_path: Path) -> None:
    """What a merge of a QLoRA adapter leaves in config.json."""
    builders.checkpoint(tmp_path / "m", quantization_config=BNB)
    plan = assemble(tmp_path / "m")
    (warning,) = plan.warnings
    assert "(bitsandbytes), but they are not" in warning


def packed(tensors: builders.Arrays) -> builders.Arrays:
    """bitsandbytes' kind: two weights in a byte, in one column."""
    name = "model.layers.0.mlp.up_proj.weight"
    return {**tensors, name: tensors[name].reshape(-1, 1)[: tensors[name].size // 2]}


def with_scales(tensors: builders.Arrays) -> builders.Arrays:
    return {**tensors, "model.layers.0.mlp.up_proj.weight_scale": np.ones(1, np.float32)}


def without_weights(tensors: builders.Arrays) -> builders.Arrays:
    return {n.replace("up_proj.weight", "up_proj.qweight"): x for n, x in tensors.items()}


@pytest.mark.parametrize("change", [packed, with_scales, without_weights])
def test_quantized_weights_are_refused_by_their_method(tmp_path: Path, change: Any) -> None:
    tensors = builders.checkpoint(tmp_path / "m", quantization_config={"quant_method": "gptq"})
    builders.write_safetensors(tmp_path / "m" / "model.safetensors", change(tensors))
    with pytest.raises(DataError, match=r"quantized already \(gptq.*original checkpoint"):
        assemble(tmp_path / "m")
