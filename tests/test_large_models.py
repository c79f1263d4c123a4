"""The shapes that tools measure are those of the published models, and every file that the tools write is read."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType

import pytest

from jmedlite.convert.planning import assemble
from tests.support.scripts import load_tool

# Billions of weights, as their authors count them
PUBLISHED = {
    "Qwen2-7B": 7.62, "Qwen3-8B": 8.19, "Llama-2-7B": 6.74, "Llama-3-8B": 8.03, "Mistral-7B": 7.24, "OpenCALM-7B": 6.87,
    "Gemma-2-9B": 9.24, "Gemma-3-12B": 11.77, "Phi-3-medium": 13.96, "Qwen3-30B-A3B": 30.53, "Llama-2-70B": 68.98,
    "Qwen2.5-72B": 72.71, "Mixtral-8x22B": 140.6, "Qwen3-235B-A22B": 235.1, "Phi-4": 14.66, "LLM-jp-4-8B": 8.590200832,
    "Mistral-Small-24B": 23.57, "Qwen3.5-9B": 8.95, "Qwen1.5-MoE-A2.7B": 14.3, "gpt-oss-20b": 20.9,
    "LFM2-1.2B": 1.170340608, "StableLM-3B-4E1T": 2.795443200, "japanese-gpt-1b": 1.3, "LLM-jp-4-32B-A3B": 31.635712512,
    "Gemma-4-26B-A4B": 25.2, "Mixtral-8x7B": 46.7, "LLM-jp-3-8x13B": 73.2,
}  # fmt: skip
# Theirs count what is no text (images, sounds, drafts), too
COUNTED_OTHERWISE = {"Gemma-4-E4B", "Qwen3.5-35B-A3B"}


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool("large_models")


def test_every_model_is_named(tool: ModuleType) -> None:
    assert {*tool.MODELS, *tool.LARGE} == {*PUBLISHED, *COUNTED_OTHERWISE}


@pytest.mark.parametrize("name", PUBLISHED)
def test_they_have_as_many_weights_as_published(tool: ModuleType, name: str) -> None:
    architecture, config = {**tool.MODELS, **tool.LARGE}[name]
    shapes = tool.tensor_shapes(architecture, config)
    assert sum(map(math.prod, shapes.values())) / 1e9 == pytest.approx(PUBLISHED[name], rel=0.005)


@pytest.mark.parametrize("name", ["Gemma-2-9B", "Qwen3-30B-A3B", "gpt-oss-20b"])
def test_a_sparse_checkpoint_is_planned(tool: ModuleType, tmp_path: Path, name: str) -> None:
    architecture, config = {**tool.MODELS, **tool.LARGE}[name]
    tool.write_model(tmp_path / "m", architecture, {**config, "num_hidden_layers": 2}, "safetensors")
    assert {job.name for job in assemble(tmp_path / "m").jobs} >= {"blk.1.attn_q.weight", "token_embd.weight"}
