"""One thing under several names: tensors, modules, shards, tied tables, paths; read alike, or refused by both."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jmedlite.base.errors import DataError, UsageError
from jmedlite.convert.adapters.lora import parse_spec
from jmedlite.convert.families.families import FAMILIES
from jmedlite.convert.families.names import canonical, spellings
from jmedlite.convert.planning import QuantizePlan, assemble
from tests.support import builders

Q0 = "model.layers.0.self_attn.q_proj"
EYE = "model.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj"
N_VOCAB = builders.n_tokens(builders.byte_level_tokenizer())


def language(prefix: str) -> Callable[[str], str]:
    """Names of a multimodal class: the text model under `prefix`, the head where it is."""
    return lambda name: prefix + name.removeprefix("model.") if name.startswith("model.") else name


SPELLINGS: dict[str, Callable[[str], str]] = {
    "torch.compile": lambda n: f"_orig_mod.{n}",
    "a compiled layer": lambda n: n.replace(".self_attn.", "._orig_mod.self_attn."),
    "DDP": lambda n: f"module.{n}",
    "DDP, compiled": lambda n: f"module._orig_mod.{n}",
    "compiled, DDP": lambda n: f"_orig_mod.module.{n}",
    "FSDP": lambda n: f"_fsdp_wrapped_module.{n.replace('.layers.0.', '.layers.0._fsdp_wrapped_module.')}",
    "activation checkpointing": lambda n: n.replace(".mlp.", ".mlp._checkpoint_wrapped_module."),
    "PEFT, merged in place": lambda n: f"base_model.model.{n.replace('_proj.', '_proj.base_layer.')}",
    "multimodal, transformers 4": language("language_model.model."),
    "multimodal, transformers 5": language("model.language_model."),
    "multimodal, its language model alone": language("language_model."),
    "multimodal, head inside": lambda n: f"language_model.{n}",
    "without the class around it": language(""),
    "all at once": lambda n: "module._orig_mod.base_model.model." + language("model.language_model.")(n),
}


def planned(folder: Path, *adapters: Path) -> QuantizePlan:
    return assemble(folder, adapters=[(path, 1.0) for path in adapters])


def sources(plan: QuantizePlan) -> dict[str, str]:
    return {job.name: job.source.name for job in plan.jobs if job.source}


@pytest.fixture
def base(tmp_path: Path) -> builders.Arrays:
    return builders.checkpoint(tmp_path / "m", "llama")


def adapter(tmp_path: Path, base: builders.Arrays, spell: Callable[[str], str], **config: Any) -> Path:
    """An adapter whose tensors are named as `spell` says."""
    ab = builders.adapter(tmp_path / "a", base, **config)
    builders.write_safetensors(
        tmp_path / "a" / "adapter_model.safetensors", {spell(k): v for k, v in ab.items()}, "F32"
    )
    return tmp_path / "a"


# -------------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_checkpoint(tmp_path: Path, base: builders.Arrays, spelling: str) -> None:
    expected = sources(planned(tmp_path / "m"))
    spell = SPELLINGS[spelling]
    spelled = {spell(name): x for name, x in base.items()}
    assert set(spelled) != set(base)
    builders.write_safetensors(tmp_path / "m" / "model.safetensors", spelled)
    assert sources(planned(tmp_path / "m")) == {ours: spell(name) for ours, name in expected.items()}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.gguf_arch)
def test_every_name_of_every_family_keeps_itself_and_is_found_under_a_prefix(family: Any) -> None:
    for rule in family.rules:
        name = rule.hf.replace("{i}", "3").replace("{e}", "2")
        assert canonical(name, family) == name
        assert canonical(f"_orig_mod.base_model.model.{name}", family) == name
    assert canonical("lm_head.weight", family) == canonical("embed_out.weight", family) == family.head
    inner = family.renamed[1] if family.renamed else "mlp"
    layers = "layers" if "layers" in family.inner_modules else "h"
    for module in (family.head_module, f"{family.root}.{layers}.0.{inner}"):
        assert all(canonical(name, family) == module for name in spellings(module, family))


def test_two_names_of_one_tensor(tmp_path: Path, base: builders.Arrays) -> None:
    twice = base | {f"_orig_mod.{Q0}.weight": base[f"{Q0}.weight"]}
    builders.write_safetensors(tmp_path / "m" / "model.safetensors", twice)
    with pytest.raises(DataError, match=rf"{Q0}\.weight and _orig_mod\.{Q0}\.weight are two names"):
        planned(tmp_path / "m")


def test_an_adapter_that_was_not_merged(tmp_path: Path, base: builders.Arrays) -> None:
    kept = base | {f"base_model.model.{Q0}.lora_A.default.weight": np.ones((4, 256), np.float32)}
    builders.write_safetensors(tmp_path / "m" / "model.safetensors", kept)
    with pytest.raises(DataError, match=r"not merged .*lora_A.*merge_and_unload"):
        planned(tmp_path / "m")


@pytest.mark.parametrize("family", ["qwen2", "gpt_neox"])
def test_tied_table_under_the_heads_name_alone(tmp_path: Path, family: str) -> None:
    tensors = builders.weights(builders.config(family, N_VOCAB, tie_word_embeddings=True))
    embedding, head = {
        "qwen2": ("model.embed_tokens.weight", "lm_head.weight"),
        "gpt_neox": ("gpt_neox.embed_in.weight", "embed_out.weight"),
    }[family]  # fmt: skip
    tensors[head] = tensors.pop(embedding)
    builders.checkpoint(tmp_path / "m", family, tensors=tensors, tie_word_embeddings=True)
    assert sources(planned(tmp_path / "m"))["token_embd.weight"] == head
    builders.checkpoint(tmp_path / "m", family, tensors=tensors)
    with pytest.raises(DataError, match=f"lacks {embedding}"):
        planned(tmp_path / "m")


# ----------------------------------------------------------------------------------------------------------- adapters

PEFT = "base_model.model."
ADAPTERS: dict[str, Callable[[str], str]] = {
    "adapter's name": lambda k: k.replace(".weight", ".default.weight"),
    "compiled inside": lambda k: k.replace(PEFT, f"{PEFT}_orig_mod."),
    "DDP": lambda k: f"module.{k}",
    "FSDP": lambda k: k.replace(".layers.0.", ".layers.0._fsdp_wrapped_module."),
    "multimodal, transformers 4": lambda k: k.replace(f"{PEFT}model.", f"{PEFT}language_model.model."),
    "multimodal, transformers 5": lambda k: k.replace(f"{PEFT}model.", f"{PEFT}model.language_model."),
    "an adapter over an adapter's layer": lambda k: k.replace(".lora_", ".base_layer.lora_"),
    "no prefix": lambda k: k.removeprefix(PEFT),
    "twice": lambda k: PEFT + k,
}


@pytest.mark.parametrize("spelling", ADAPTERS)
def test_adapter(tmp_path: Path, base: builders.Arrays, spelling: str) -> None:
    (one,) = planned(tmp_path / "m", adapter(tmp_path, base, lambda k: k)).adapters
    (other,) = planned(tmp_path / "m", adapter(tmp_path, base, ADAPTERS[spelling])).adapters
    assert {k: u.left.tensor.shape for k, u in other.updates.items()} == {
        k: u.left.tensor.shape for k, u in one.updates.items()
    }
    assert f"{Q0}.weight" in other.updates
    assert not other.warnings


TARGETS: dict[str, Any] = {
    "unsloth's pattern": r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|down_proj))",
    "a pattern from the root": r"model\.language_model\.layers\.\d+\.(self_attn\.q_proj|mlp\.down_proj)",
    "whole names": [f"model.language_model.layers.{i}.{m}_proj" for i in (0, 1) for m in ("self_attn.q", "mlp.down")],
    "compiled names": ["_orig_mod.q_proj", "down_proj"],
}  # fmt: skip


@pytest.mark.parametrize("targets", TARGETS)
def test_targets_in_the_names_of_the_class_that_was_trained(
    tmp_path: Path, base: builders.Arrays, targets: str
) -> None:
    changes = {
        "target_modules": TARGETS[targets],
        "alpha_pattern": {r"language_model\.layers\.0\.self_attn\.q_proj": 3},
    }
    (found,) = planned(
        tmp_path / "m", adapter(tmp_path, base, ADAPTERS["multimodal, transformers 5"], **changes)
    ).adapters
    assert len(found.updates) == 4
    assert (found.updates[f"{Q0}.weight"].scale, found.updates[f"{Q0.replace('0', '1')}.weight"].scale) == (3 / 4, 2)


def test_names_of_an_adapter_that_meet(tmp_path: Path, base: builders.Arrays) -> None:
    ab = builders.adapter(tmp_path / "a", base)
    key = f"{PEFT}{Q0}.lora_A.weight"
    ab[key.replace(PEFT, f"{PEFT}_orig_mod.")] = ab[key]
    builders.write_safetensors(tmp_path / "a" / "adapter_model.safetensors", ab, "F32")
    with pytest.raises(DataError, match=rf"lora_A of {Q0} twice: .*_orig_mod\.{Q0}"):
        planned(tmp_path / "m", tmp_path / "a")


def test_adapter_that_peft_itself_could_not_load(tmp_path: Path, base: builders.Arrays) -> None:
    path = adapter(tmp_path, base, lambda k: f"_orig_mod.{k}")
    with pytest.raises(DataError, match=r"torch\.compile's prefix _orig_mod\."):
        planned(tmp_path / "m", path)


@pytest.fixture
def seeing(tmp_path: Path) -> builders.Arrays:
    """A Gemma 3 with eyes in transformers 4's names; its weights in those of a class of text alone."""
    weights = builders.weights(builders.config("gemma3_text", N_VOCAB))
    names = SPELLINGS["multimodal, transformers 4"]
    builders.checkpoint(tmp_path / "m", "gemma3_text", tensors={names(n): x for n, x in weights.items()})
    config = tmp_path / "m" / "config.json"
    config.write_text(
        json.dumps({"architectures": ["Gemma3ForConditionalGeneration"], "text_config": json.loads(config.read_text())})
    )
    return weights


def test_adapter_with_matrices_for_the_eyes(tmp_path: Path, seeing: builders.Arrays) -> None:
    eyes = {f"{EYE}.weight": np.ones((32, 32), np.float32)}
    path = adapter(
        tmp_path, seeing | eyes, ADAPTERS["multimodal, transformers 5"], modules=("self_attn.q_proj",),
        target_modules="all-linear", exclude_modules=r".*\.([kvo]|gate|up|down)_proj",
        modules_to_save=["multi_modal_projector"],
    )  # fmt: skip
    plan = planned(tmp_path / "m", path)
    assert len(plan.adapters[0].updates) == 7
    assert [w for w in plan.warnings if "2 tensors for what sees images" in w and "vision_tower" in w]
    # nothing but eyes: there is nothing to merge
    path = adapter(tmp_path, eyes, lambda k: k, modules=("self_attn.q_proj",))
    with pytest.raises(DataError, match="changes only what sees images"):
        planned(tmp_path / "m", path)


# -------------------------------------------------------------------------------------------------------------- paths


def test_paths_with_a_colon(tmp_path: Path) -> None:
    (tmp_path / "v1:2").mkdir()
    (tmp_path / "a.gguf").touch()
    assert parse_spec(f"{tmp_path}/v1:2") == (f"{tmp_path}/v1:2", 1.0)
    assert parse_spec(f"{tmp_path}/v1:2:0.5") == (f"{tmp_path}/v1:2", 0.5)
    assert parse_spec(f"{tmp_path}/a.gguf:2") == (f"{tmp_path}/a.gguf", 2.0)
    (tmp_path / "v1").mkdir()
    with pytest.raises(UsageError, match=r"v1:2 is there, and so is .*v1; write"):
        parse_spec(f"{tmp_path}/v1:2")
    assert parse_spec(f"{tmp_path}/v1:2/") == (f"{tmp_path}/v1:2/", 1.0)
    assert parse_spec(f"{tmp_path}/v1/:2") == (f"{tmp_path}/v1/", 2.0)
