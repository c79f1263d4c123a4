"""Adapters that do not fit are refused before any output, by name; what is merely odd is a warning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jmedlite
from jmedlite.base.errors import DataError, InputMissing, JmedliteError, UsageError
from jmedlite.convert.adapters.lora import parse_spec
from jmedlite.convert.adapters.peft import PeftAdapter
from jmedlite.convert.sources.checkpoint_model import CheckpointModel
from jmedlite.convert.sources.tensors import Files
from tests.support import builders
from tests.support.commands import run_text

Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture
def base(tmp_path: Path) -> builders.Arrays:
    return builders.checkpoint(tmp_path / "m", "llama")


def refused(tmp_path: Path, *words: str, kind: type[JmedliteError] = DataError) -> None:
    """Quantizing with the adapter in `a` fails with all the words, and writes nothing."""
    with pytest.raises(kind) as caught:
        jmedlite.quantize(tmp_path / "m", lora=[str(tmp_path / "a")], bits=[8], out=tmp_path / "out")
    for word in words:
        assert word in str(caught.value)
    assert not list((tmp_path / "out").glob("*"))


def rewrite(tmp_path: Path, tensors: builders.Arrays) -> None:
    builders.write_safetensors(tmp_path / "a" / "adapter_model.safetensors", tensors, "F32")


ENDLESS = "(([a-z_.0-9])*)*!"  # tries every way to divide a name
CONFIGS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "DoRA without magnitudes": ({"use_dora": True}, ["no lora_magnitude_vector", "use_dora"]),
    "modules_to_save without their tensors": (
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        ["modules_to_save", "no model.embed_tokens.weight"],
    ),
    "bias": ({"bias": "some"}, ["bias = 'some'", "lora_only"]),
    "lora_bias": ({"lora_bias": True}, ["lora_bias"]),
    "PiSSA": ({"init_lora_weights": "pissa_niter_16"}, ["pissa_niter_16"]),
    "OLoRA": ({"init_lora_weights": "olora"}, ["olora"]),
    "not LoRA": ({"peft_type": "LOHA"}, ["LOHA", "expected LORA"]),
    "unknown key": ({"use_qalora": True}, ["use_qalora", "not supported"]),
    "another unknown key": ({"layer_replication": [[0, 2]]}, ["layer_replication"]),
    "token indices": ({"trainable_token_indices": [1, 2]}, ["trainable_token_indices"]),
    "rank zero": ({"r": 0}, ["r = 0"]),
    "alpha text": ({"lora_alpha": "16"}, ["lora_alpha = '16'"]),
    "other rank": ({"r": 8}, ["model.layers.0.", "expected rank 8"]),
    "bad pattern": ({"rank_pattern": {"(": 4}}, ["rank_pattern", "'('"]),
    "bad target pattern": ({"target_modules": "*q_proj"}, ["'*q_proj'"]),
    "targets are a number": ({"target_modules": 5}, ["target_modules"]),
    "bad layers": ({"layers_to_transform": "x"}, ["layers_to_transform"]),
    "bad layers pattern": ({"layers_to_transform": [0], "layers_pattern": "("}, ["layers_pattern"]),
    "bad exclusions": ({"exclude_modules": 5}, ["exclude_modules"]),
    "modules_to_save is no list": ({"modules_to_save": True}, ["modules_to_save = True", "a list of names"]),
    "alpha not finite": ({"alpha_pattern": {"q_proj": float("inf")}}, ["alpha_pattern", "'q_proj'", "inf"]),
    "targets without weights": ({"target_modules": ["q_proj", "down_proj", "v_proj"]}, ["no weights for", "v_proj"]),
    "weights without targets": ({"target_modules": ["q_proj"]}, ["down_proj", "do not name"]),
    "a flag that is text": ({"use_rslora": "false"}, ["use_rslora = 'false'", "expected true or false"]),
    "a rank of 400 digits": ({"r": 10**400}, ["r = 1000", "expected a positive number"]),
    "an alpha of 400 digits": ({"alpha_pattern": {"q_proj": 10**400}}, ["alpha_pattern", "patterns to numbers"]),
    "a rank that is true": ({"rank_pattern": {"q_proj": True}}, ["rank_pattern", "to positive numbers"]),
    "a rank of nothing": ({"rank_pattern": {"q_proj": 0}}, ["rank_pattern", "to positive numbers"]),
    "layers of two types": ({"layers_to_transform": [0, "1"]}, ["layers_to_transform", "a whole number or a list"]),
    **{
        f"{key} without end": (value, [key, "takes over 1 s to match"])
        for key, value in {
            "target_modules": {"target_modules": ENDLESS},
            "exclude_modules": {"exclude_modules": ENDLESS},
            "rank_pattern": {"rank_pattern": {ENDLESS: 4}},
            "alpha_pattern": {"alpha_pattern": {ENDLESS: 4}},
            "layers_pattern": {"layers_to_transform": [0], "layers_pattern": ENDLESS},
        }.items()
    },
    "other layers": ({"layers_to_transform": [0]}, ["do not name"]),
}


@pytest.mark.parametrize("fault", CONFIGS)
def test_configurations(tmp_path: Path, base: builders.Arrays, fault: str) -> None:
    changes, words = CONFIGS[fault]
    builders.adapter(tmp_path / "a", base)
    config = tmp_path / "a" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    refused(tmp_path, *words)


def test_a_without_b(tmp_path: Path, base: builders.Arrays) -> None:
    builders.adapter(tmp_path / "a", base, drop=("layers.1.self_attn.q_proj.lora_B",))
    refused(tmp_path, "model.layers.1.self_attn.q_proj has no lora_B")


@pytest.mark.parametrize(
    ("key", "shape", "words"),
    [
        (f"{Q0}.lora_A.weight", (5, 256), ["A is [5, 256] and B is [256, 4]"]),
        (f"{Q0}.lora_B.weight", (256, 6), ["B is [256, 6]"]),
        (f"{Q0}.lora_A.weight", (4, 128), ["[256, 128]", "[256, 256]", "another base"]),
        (f"{Q0}.lora_A.weight", (1024,), ["expected matrices"]),
    ],
)
def test_shapes(tmp_path: Path, base: builders.Arrays, key: str, shape: tuple[int, ...], words: list[str]) -> None:
    ab = builders.adapter(tmp_path / "a", base)
    rewrite(tmp_path, ab | {key: np.zeros(shape, np.float32)})
    refused(tmp_path, *words)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight", ["layers.7", "has no lora_B"]),
        ("base_model.model.model.embed_tokens.lora_embedding_A", ["embed_tokens has no lora_embedding_B"]),
        (f"{Q0}.lora_embedding_A", ["lora_A beside lora_embedding_A"]),
        (f"{Q0}.lora_magnitude_vector", ["DoRA"]),
        (f"{Q0}.lora_C.weight", ["lora_C"]),
        ("something.else", ["something.else"]),
    ],
)
def test_strange_keys(tmp_path: Path, base: builders.Arrays, key: str, words: list[str]) -> None:
    ab = builders.adapter(tmp_path / "a", base)
    rewrite(tmp_path, ab | {key: np.zeros((4, 256), np.float32)})
    refused(tmp_path, *words)


def test_another_base(tmp_path: Path, base: builders.Arrays) -> None:
    other = builders.weights(builders.config("llama", 300, num_hidden_layers=3))
    builders.adapter(tmp_path / "a", other)
    refused(tmp_path, "model.layers.2", "another base")
    other = builders.weights(builders.config("llama", 300, hidden_size=128, intermediate_size=512))
    builders.adapter(tmp_path / "a", other)
    refused(tmp_path, "another base")


def test_adapter_that_adds_tokens(tmp_path: Path, base: builders.Arrays) -> None:
    ab = builders.adapter(tmp_path / "a", base)
    n = base["lm_head.weight"].shape[0]
    rewrite(tmp_path, ab | {"base_model.model.lm_head.weight": np.zeros((n + 2, 256), np.float32)})
    refused(tmp_path, "vocabulary's size", f"lm_head.weight has {n + 2} rows", "embedding and head")
    tables = {f"base_model.model.{name}.weight": np.zeros((n + k, 256), np.float32)
              for name, k in (("lm_head", 2), ("model.embed_tokens", 3))}  # fmt: skip
    rewrite(tmp_path, ab | tables)
    refused(tmp_path, "vocabulary's size", f"{n + 2} rows", f"{n + 3} rows")


def test_trained_tensor_that_nothing_names(tmp_path: Path, base: builders.Arrays) -> None:
    ab = builders.adapter(tmp_path / "a", base)
    norm = base["model.norm.weight"].copy()
    rewrite(tmp_path, ab | {"base_model.model.model.norm.weight": norm})
    assert jmedlite.quantize(tmp_path / "m", lora=[str(tmp_path / "a")], bits=[8], out=tmp_path / "ok")
    norm[-1] += 1
    rewrite(tmp_path, ab | {"base_model.model.model.norm.weight": norm})
    refused(tmp_path, "trained model.norm.weight", "modules_to_save")


@pytest.mark.parametrize("changes", [{"modules_to_save": ["norm"]}, {"use_dora": True}, {"bias": "all"}])
def test_weight_where_it_has_no_meaning(tmp_path: Path, base: builders.Arrays, changes: dict[str, Any]) -> None:
    builders.adapter(tmp_path / "a", base, **changes)
    with pytest.raises(DataError, match=r"the weight 0\.5 has no meaning"):
        jmedlite.quantize(tmp_path / "m", lora=[f"{tmp_path / 'a'}:0.5"], bits=[8], out=tmp_path / "out")


def test_two_adapters_that_replace_the_same(tmp_path: Path, base: builders.Arrays) -> None:
    for name in ("a", "b"):
        ab = builders.adapter(tmp_path / name, base, modules_to_save=["norm"])
        builders.write_safetensors(
            tmp_path / name / "adapter_model.safetensors",
            ab | {"base_model.model.model.norm.weight": base["model.norm.weight"] * 2}, "F32",
        )  # fmt: skip
    with pytest.raises(DataError, match=r"replaces model\.norm\.weight, which another adapter has changed"):
        jmedlite.quantize(tmp_path / "m", lora=[str(tmp_path / n) for n in "ab"], bits=[8], out=tmp_path / "out")


def test_values_that_are_not_finite(tmp_path: Path, base: builders.Arrays) -> None:
    ab = builders.adapter(tmp_path / "a", base)
    ab[f"{Q0}.lora_A.weight"][0, :3] = np.inf
    rewrite(tmp_path, ab)
    refused(tmp_path, f"{Q0}.lora_A.weight has 3 values")


def test_overflow_after_merging(tmp_path: Path, base: builders.Arrays) -> None:
    ab = builders.adapter(tmp_path / "a", base)
    for side in "AB":
        ab[f"{Q0}.lora_{side}.weight"][:] = 3e19
    rewrite(tmp_path, ab)
    refused(tmp_path, "model.layers.0.self_attn.q_proj.weight", "NaN or infinite", "merging")


def test_head_of_a_family_that_is_always_tied(tmp_path: Path) -> None:
    base = builders.checkpoint(tmp_path / "m", "gemma2")
    builders.adapter(tmp_path / "a", base | {"lm_head.weight": base["model.embed_tokens.weight"]}, modules=("q_proj",))
    rewrite(
        tmp_path,
        {
            "base_model.model.lm_head.lora_A.weight": np.zeros((4, 256), np.float32),
            "base_model.model.lm_head.lora_B.weight": np.zeros(
                (base["model.embed_tokens.weight"].shape[0], 4), np.float32
            ),
        },
    )
    config = tmp_path / "a" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"target_modules": ["lm_head"]}))
    refused(tmp_path, "lm_head", "no place")


def test_missing_parts(tmp_path: Path, base: builders.Arrays) -> None:
    refused(tmp_path, "a: no such", kind=InputMissing)
    builders.adapter(tmp_path / "a", base)
    (tmp_path / "a" / "adapter_model.safetensors").rename(tmp_path / "a" / "weights.bin")
    refused(tmp_path, "adapter_model.safetensors", "adapter_model.bin", kind=InputMissing)
    (tmp_path / "a" / "weights.bin").rename(tmp_path / "a" / "adapter_model.safetensors")
    (tmp_path / "a" / "adapter_config.json").write_text("{")
    refused(tmp_path, "adapter_config.json", "JSON")


@pytest.mark.parametrize(
    ("trained_on", "warned"),
    [
        ("other/Thing-7B", True),
        ("owner/Base-7B-Instruct", True),
        ("owner/Base-14B", True),
        ("owner/Base-7B", False),
        ("copies/Base-7B", False),
        ("unsloth/base-7b-bnb-4bit", False),
        ("unsloth/Base-7B-unsloth-bnb-4bit", False),
        ("someone/Base-7B-GPTQ-Int4", False),
        ("someone/Base-7B-hf", False),
        ("/models/of-a/Base-7B/", False),
        ("C:\\models\\Base-7B", False),
        ("/c/hub/models--owner--Base-7B/snapshots/0123456789abcdef0123456789abcdef01234567", False),
        ("m", False),  # the folder's own name
        ("", False),
        (None, False),
    ],
)
def test_another_base_name_is_only_a_warning(
    tmp_path: Path, base: builders.Arrays, trained_on: str | None, warned: bool
) -> None:
    config = tmp_path / "m" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_name_or_path": "owner/Base-7B"}))
    builders.adapter(tmp_path / "a", base, base_model_name_or_path=trained_on)
    adapter = PeftAdapter(tmp_path / "a", CheckpointModel(tmp_path / "m", Files()).base())
    assert adapter.warnings == (
        [f"a: was trained on {trained_on}, the base calls itself owner/Base-7B"] if warned else []
    )


def test_the_hubs_name_of_a_base_counts(tmp_path: Path, base: builders.Arrays) -> None:
    """Not what its config.json calls itself, which is often the model it was trained from."""
    snapshot = tmp_path / "models--owner--Base-7B-SFT" / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    (tmp_path / "m").rename(snapshot)
    config = snapshot / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_name_or_path": "owner/Base-7B"}))
    found = CheckpointModel(snapshot, Files()).base()
    for trained_on, n_warnings in (("owner/Base-7B", 1), ("owner/Base-7B-SFT", 0)):
        builders.adapter(tmp_path / "a", base, base_model_name_or_path=trained_on)
        assert len(PeftAdapter(tmp_path / "a", found).warnings) == n_warnings


def test_what_an_adapter_was_trained_on_is_shown(tmp_path: Path, base: builders.Arrays) -> None:
    builders.adapter(tmp_path / "a", base, base_model_name_or_path="owner/Base-7B")
    arguments = ["quantize", str(tmp_path / "m"), "--lora", str(tmp_path / "a"), "--bits", "8", "--dry-run"]
    assert "changes 4 weights, trained on owner/Base-7B" in run_text(*arguments).stderr
    assert json.loads(run_text(*arguments, "--json").stdout)["adapters"][0]["trained_on"] == "owner/Base-7B"


@pytest.mark.parametrize(
    ("spec", "parsed"),
    [
        ("folder", ("folder", 1.0)),
        ("folder:0.5", ("folder", 0.5)),
        ("folder:-1e-1", ("folder", -0.1)),
        (r"C:\adapters\x", (r"C:\adapters\x", 1.0)),
        (r"C:\adapters\x:2", (r"C:\adapters\x", 2.0)),
        ("owner/name@main:0.25", ("owner/name@main", 0.25)),
    ],
)
def test_weights_of_adapters(spec: str, parsed: tuple[str, float]) -> None:
    assert parse_spec(spec) == parsed


@pytest.mark.parametrize("spec", ["a:nan", "a:inf", ":1"])
def test_senseless_weights(spec: str) -> None:
    with pytest.raises(UsageError):
        parse_spec(spec)
