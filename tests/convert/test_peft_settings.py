"""Every setting of PEFT's LoRA: computed as PEFT does, without meaning for a merge, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jmedlite
from jmedlite.base.errors import DataError
from jmedlite.convert.adapters.settings import COMPUTED, KEEPING_INITS, OF_THE_TRAINING, REFUSED
from tests.support import builders
from tests.support.ggufs import read

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# setting: values other than the default. A dict with "class" is one of PEFT's own configurations; with "also", other
# settings that PEFT wants beside it; "base" changes the base's configuration.
VALUES: dict[str, list[Any]] = {
    "peft_type": [],
    "r": [3],
    "lora_alpha": [3],
    "use_rslora": [True],
    "rank_pattern": [{"q_proj": 3, "layers.0.*k_proj": 2, "^model.layers.1.mlp.up_proj": 5}],
    "alpha_pattern": [{"q_proj": 3, "layers.0.*k_proj": 2, "^model.layers.1.mlp.up_proj": 5}],
    "use_dora": [True],
    "lora_bias": [{"also": {"target_modules": ["q_proj", "k_proj"]}, "value": True}],
    "bias": ["all", "lora_only"],
    "fan_in_fan_out": [True],
    "modules_to_save": [["lm_head"], ["input_layernorm"], ["norm"], ["q_proj", "v_proj"], ["embed_tokens", "lm_head"]],
    "ensure_weight_tying": [
        {"value": True, "base": {"tie_word_embeddings": True}, "also": {"target_modules": ["embed_tokens", "q_proj"]}}
    ],
    "target_modules": [["q_proj"], "all-linear", r".*layers\.1\..*k_proj", {"value": None}],
    "target_parameters": [],  # of mixtures: tests/convert/test_oracle.py and test_experts.py
    "exclude_modules": [["down_proj"], r".*layers\.0\..*"],
    "layers_to_transform": [[1], 0, {"also": {"target_modules": ["q_proj", "lm_head"]}, "value": [1]}],
    "layers_pattern": [{"also": {"layers_to_transform": [1]}, "value": "layers"}],
    "init_lora_weights": [True, *KEEPING_INITS, "olora", "pissa", "pissa_niter_2", "lora_ga"],
    "task_type": ["SEQ_CLS", {"value": None}],
    "base_model_name_or_path": ["some/where"],
    "revision": ["abc"],
    "auto_mapping": [{"value": {"base_model_class": "Qwen2ForCausalLM", "parent_library": "transformers"}}],
    "peft_version": ["0.1"],
    "inference_mode": [True],
    "lora_dropout": [0.5],
    "eva_config": [{"class": "EvaConfig", "value": {"rho": 1.5}}],
    "corda_config": [{"class": "CordaConfig", "value": {"corda_method": "kpm"}}],
    "loftq_config": [{"value": {"loftq_bits": 4}}],
    "lora_ga_config": [{"class": "LoraGAConfig", "value": {"direction": "ArBr"}}],
    "megatron_core": ["mine"],
    "qalora_group_size": [8],
    "runtime_config": [{"class": "LoraRuntimeConfig", "value": {"ephemeral_gpu_offload": True}}],
    "modules_to_tie": [],  # PEFT's own, not to be given
    "target_modules_to_tie": [],
    "trainable_token_indices": [[1, 2]],
    "alora_invocation_tokens": [[5, 6]],
    "use_qalora": [True],
    "velora_config": [{"class": "VeloraConfig", "value": {"num_groups": 8}}],
    "use_bdlora": [
        {"class": "BdLoraConfig", "value": {"target_modules_bd_a": ["q_proj"], "nblocks": 2, "match_strict": False}}
    ],
    "monteclora_config": [{"class": "MontecloraConfig", "value": {}}],
    "kasa_config": [{"class": "KasaConfig", "value": {}}],
    # PEFT can't train these here: test_settings_that_are_refused writes them
    "arrow_config": [],
    "layer_replication": [],
    "megatron_config": [],
}


def test_every_setting_is_here() -> None:
    assert list(VALUES) == [*COMPUTED, *OF_THE_TRAINING, *REFUSED]


@pytest.mark.parametrize("name", [*REFUSED, "a_setting_of_tomorrow"])
def test_settings_that_are_refused(tmp_path: Path, name: str) -> None:
    base = builders.checkpoint(tmp_path / "m")
    builders.adapter(tmp_path / "a", base, **{name: [[0, 1]]})
    with pytest.raises(DataError, match=f"sets {name}.*not supported"):
        jmedlite.quantize(tmp_path / "m", lora=[str(tmp_path / "a")], types=["F32"], out=tmp_path)


@pytest.mark.parametrize("init", ["corda", "loftq", "PiSSA_niter_4", "of_tomorrow", ["pissa"]])
def test_initialisations_that_are_refused(tmp_path: Path, init: Any) -> None:
    base = builders.checkpoint(tmp_path / "m")
    builders.adapter(tmp_path / "a", base, init_lora_weights=init)
    with pytest.raises(DataError, match="init_lora_weights"):
        jmedlite.quantize(tmp_path / "m", lora=[str(tmp_path / "a")], types=["F32"], out=tmp_path)


def test_a_saved_module_is_named_by_the_end_of_its_name(tmp_path: Path) -> None:
    """As PEFT does it, "norm" trains every norm."""
    base = builders.checkpoint(tmp_path / "m", "llama", dtype="F32")
    ab = builders.adapter(tmp_path / "a", base, modules_to_save=["norm"])
    norms = {f"base_model.model.{n}": 2 * w for n, w in base.items() if n.endswith("norm.weight")}
    builders.write_safetensors(tmp_path / "a" / "adapter_model.safetensors", ab | norms, "F32")
    (path,) = jmedlite.quantize(tmp_path / "m", lora=[str(tmp_path / "a")], types=["F32"], out=tmp_path)
    np.testing.assert_array_equal(
        read(path)["blk.1.ffn_norm.weight"], 2 * base["model.layers.1.post_attention_layernorm.weight"]
    )


@pytest.mark.oracle
def test_every_field_of_the_installed_peft_is_here() -> None:
    import dataclasses

    import peft

    assert {f.name for f in dataclasses.fields(peft.LoraConfig)} <= set(VALUES)


@pytest.mark.oracle
@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in VALUES.items() for v in values])
def test_settings_equal_peft(tmp_path: Path, name: str, value: Any) -> None:
    """Float32 logits of the merged file, against the adapter as PEFT saved it, not merged; or refused by that name."""
    import torch
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import config as configurations

    from tests.support.logits import llama_logits, load, their_logits

    told = value if isinstance(value, dict) and "value" in value else {"value": value}
    given = getattr(configurations, told["class"])(**told["value"]) if "class" in told else told["value"]
    builders.checkpoint(tmp_path / "m", dtype="F32", **told.get("base", {}))
    torch.manual_seed(0)
    options = {"task_type": "CAUSAL_LM", "init_lora_weights": False, "target_modules": LINEAR, "r": 4}
    model = get_peft_model(load(tmp_path / "m"), LoraConfig(**options | told.get("also", {}) | {name: given}))
    with torch.no_grad():
        for parameter_name, p in model.named_parameters():
            if p.requires_grad:  # as after some training
                noise = torch.randn_like(p)
                p.mul_(1 + 0.05 * noise) if "magnitude" in parameter_name else p.add_(0.02 * noise)
    model.save_pretrained(tmp_path / "a")
    saved = json.loads((tmp_path / "a" / "adapter_config.json").read_text())

    def convert() -> Path:
        (path,) = jmedlite.quantize(tmp_path / "m", lora=[str(tmp_path / "a")], types=["F32"], out=tmp_path)
        return path

    if name in REFUSED or (name == "init_lora_weights" and isinstance(value, str) and value not in KEEPING_INITS):
        assert saved[name]
        with pytest.raises(DataError, match=name):
            convert()
        return
    tokens = np.random.default_rng(0).integers(0, 256, 24).tolist()
    model.eval()
    expected = their_logits(model, tokens)
    with model.disable_adapter():
        plain = their_logits(model, tokens)
    assert np.abs(expected - plain).max() > 0.02
    np.testing.assert_allclose(llama_logits(convert(), tokens), expected, rtol=0, atol=1e-3)
