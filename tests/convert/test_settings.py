"""Settings of config.json and generation_config.json: computed, no matter, refused or named; without transformers."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from jmedlite.base.errors import DataError
from jmedlite.base.gguf import EXACT_CONTEXT, EXACT_CONTEXT_SETTING
from jmedlite.convert.families import settings
from jmedlite.convert.families.families import FAMILIES
from jmedlite.convert.families.family import Family
from jmedlite.convert.planning import QuantizePlan, assemble
from tests.support import builders
from tests.support.settings_table import read_table

ON = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}


def planned(folder: Path, family: str = "qwen2", *, nulls: tuple[str, ...] = (), **changes: Any) -> QuantizePlan:
    """What would be written of a tiny checkpoint with these settings; `nulls` are written as such."""
    builders.checkpoint(folder, family, **changes)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **dict.fromkeys(nulls)}))
    return assemble(folder)


def family_of(name: str) -> Family:
    return next(f for f in FAMILIES if name in f.model_types)


# -------------------------------------------------------------------------------------------------------------- windows


@pytest.mark.parametrize(
    ("family", "changes", "n"),
    [
        ("mistral", {"sliding_window": 16}, 16),
        ("mistral", {"max_position_embeddings": 32768}, 4096),  # what transformers takes where nothing is said
        ("phi3", {"sliding_window": 16}, 16),
        ("qwen2", ON, 16),
        ("qwen2", {**ON, "max_window_layers": 1}, 16),
        ("qwen3", {**ON, "layer_types": ["full_attention", "sliding_attention"]}, 16),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 512),
    ],
)
def test_range_that_is_exact(tmp_path: Path, family: str, changes: dict[str, Any], n: int) -> None:
    plan = planned(tmp_path / "m", family, **changes)
    assert plan.metadata[EXACT_CONTEXT][0] == n
    setting = plan.metadata[EXACT_CONTEXT_SETTING][0]
    assert setting == ("rope type dynamic" if family == "llama" else "sliding_window")
    (said,) = plan.warnings
    assert setting in said
    assert f"{n:,} tokens" in said


@pytest.mark.parametrize(
    ("family", "changes", "nulls"),
    [
        ("mistral", {"max_position_embeddings": 32768}, ("sliding_window",)),
        ("mistral", {"sliding_window": 512}, ()),
        ("phi3", {"max_position_embeddings": 4096}, ("sliding_window",)),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 16, "max_window_layers": 0}, ()),
        ("qwen2", {**ON, "max_window_layers": 2}, ()),
        ("qwen2", {**ON, "sliding_window": 512}, ()),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 0}, ("sliding_window",)),
        ("qwen3", {**ON, "layer_types": ["full_attention"] * 2}, ()),
        ("gemma2", {"sliding_window": 16}, ()),
        ("llama", {}, ("sliding_window",)),
    ],
)
def test_windows_that_do_not_matter(
    tmp_path: Path, family: str, changes: dict[str, Any], nulls: tuple[str, ...]
) -> None:
    plan = planned(tmp_path / "m", family, nulls=nulls, **changes)
    assert EXACT_CONTEXT not in plan.metadata
    assert not plan.warnings


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("mistral", {"sliding_window": 0}, ["sliding_window", "0"]),
        ("mistral", {"sliding_window": "16"}, ["sliding_window", '"16"']),
        ("qwen2", {**ON, "use_sliding_window": "true"}, ["use_sliding_window", "true or false"]),
        ("qwen2", {**ON, "max_window_layers": "1"}, ["max_window_layers"]),
        ("qwen2", {**ON, "layer_types": "full_attention"}, ["layer_types"]),
        ("qwen2", {**ON, "layer_types": ["chunked_attention"] * 2}, ["layer_types"]),
        ("qwen2", {"layer_types": ["sliding_attention"] * 2}, ["layer_types", "use_sliding_window"]),
        ("gemma3_text", {"layer_types": ["full_attention"] * 7}, ["layer_types"]),
        ("gemma3_text", {"sliding_window_pattern": 3}, ["sliding_window_pattern"]),
        ("gemma2", {"use_bidirectional_attention": True}, ["use_bidirectional_attention"]),
        ("gemma2", {"tie_word_embeddings": False}, ["tie_word_embeddings"]),
        ("llama", {"per_layer_config": {"0": {}}}, ["per_layer_config"]),
        ("llama", {"is_encoder_decoder": True}, ["is_encoder_decoder"]),
        ("llama", {"attention_bias": "yes"}, ["attention_bias", "true or false"]),
        ("llama", {"hidden_act": ["silu"]}, ["hidden_act"]),
        ("llama", {"model_type": "mistral"}, ["LlamaForCausalLM", "'mistral'"]),
        ("phi3", {"head_dim": 32}, ["head_dim", "32"]),
        ("qwen2", {"head_dim": 32}, ["head_dim", "32"]),
        ("llama", {"partial_rotary_factor": 0.5}, ["partial_rotary_factor"]),
        ("llama", {"rope_scaling": {**YARN, "beta_fast": 8}}, ["beta_fast", "8", "32"]),
        ("llama", {"rope_scaling": {**YARN, "truncate": False}}, ["truncate"]),
        ("llama", {"rope_scaling": {**YARN, "factor": "4"}}, ["factor", "'4'"]),
        ("llama", {"rope_scaling": {**YARN, "mscale": True}}, ["mscale", "True"]),
        ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}}, ["high_freq"]),
        ("llama", {"rope_scaling": {"rope_type": ["yarn"]}}, ["rope"]),
        ("llama", {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, ["rope_parameters"]),
        ("gemma3_text", {"rope_parameters": {"rope_type": "linear", "factor": 8.0}}, ["rope_parameters"]),
        (
            "gemma3_text",
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 8.0}}},
            ["sliding_attention"],
        ),
    ],
)
def test_refused_by_name(tmp_path: Path, family: str, changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        planned(tmp_path / "m", family, **changes)
    assert str(caught.value).startswith("config.json: ")
    for word in words:
        assert word in str(caught.value)


# ------------------------------------------------------------------------------------------------------------- any key


def test_keys_that_nobody_knows_are_named_in_one_line(tmp_path: Path) -> None:
    rope = {"rope_type": "default", "wave": 3}
    plan = planned(tmp_path / "m", "llama", logit_scale=0.5, router=[1], silent=None, rope_scaling=rope)
    (said,) = plan.warnings
    assert all(key in said for key in ("logit_scale", "router", "rope_scaling.wave", "not known"))
    assert "silent" not in said


@pytest.mark.parametrize("family", builders.FAMILIES)
def test_keys_that_do_not_matter_are_silent(tmp_path: Path, family: str) -> None:
    keys = dict.fromkeys(settings.NO_MATTER - family_of(family).reads, "x") | {
        "unsloth_version": "1",
        "attention_bias": family in ("gpt_neox", "gpt_oss"),
    }
    harmless = {key: values[0] for key, values in settings.HARMLESS.items() if key not in family_of(family).reads}
    keys |= harmless | {"max_length": 20, "use_mrope": False}
    builders.checkpoint(tmp_path / "m", family, **{k: v for k, v in keys.items() if k != "dtype"})
    assert not [w for w in assemble(tmp_path / "m").warnings if "not known" in w]


def test_settings_of_other_families_are_named_unless_switched_off(tmp_path: Path) -> None:
    (said,) = planned(tmp_path / "m", "llama", sliding_window=16).warnings
    assert "sliding_window" in said


END = builders.n_tokens(builders.byte_level_tokenizer()) - 1  # <|im_end|>, the tokenizer's own


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ({"do_sample": True, "temperature": 0.6, "top_k": 20, "eos_token_id": [END], "max_new_tokens": 5}, []),
        ({"suppress_tokens": [5], "min_length": 7, "bad_words_ids": None}, ["min_length", "suppress_tokens"]),
        ({"suppress_tokens": [], "min_length": 0, "num_beams": 1, "guidance_scale": 1.0}, []),
        ({"forced_eos_token_id": 3}, ["forced_eos_token_id"]),
        ({"dream": 3}, ["dream"]),
    ],
)
def test_generation_config(tmp_path: Path, asked: dict[str, Any], names: list[str]) -> None:
    builders.checkpoint(tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps(asked))
    warnings = assemble(tmp_path / "m").warnings
    assert len(warnings) == bool(names)
    assert all(name in warnings[0] for name in names)


def test_every_setting_that_is_read_has_a_type() -> None:
    typed = {f.name for f in fields(settings.Settings)}
    for family in FAMILIES:
        assert {*settings.READS, *family.reads} - {""} <= typed, family.title


def test_generation_config_of_a_wrong_type(tmp_path: Path) -> None:
    builders.checkpoint(tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").write_text('{"min_length": "7"}')
    with pytest.raises(DataError, match=r'generation_config.json: min_length: is "7", expected a number'):
        assemble(tmp_path / "m")


# -------------------------------------------------------------------------------------------------------------- rotary


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"attention_factor": 2.0}, 2 / (1 + 0.1 * math.log(4))),
        ({"attention_factor": 1 + 0.1 * math.log(4)}, None),
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, 1 / (1 + 0.1 * math.log(4))),
        ({"mscale": 1.0}, None),
    ],
)
def test_attention_factor_of_yarn(tmp_path: Path, changes: dict[str, Any], expected: float | None) -> None:
    """llama.cpp multiplies by 1 + 0.1 ln factor itself, and by the key."""
    metadata = planned(tmp_path / "m", rope_scaling={**YARN, **changes}).metadata
    found = metadata.get("qwen2.rope.scaling.attn_factor", (None,))[0]
    assert found == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize("kind", ["yarn", "llama3"])
def test_original_context_is_the_context_where_it_is_missing(tmp_path: Path, kind: str) -> None:
    rope = {"rope_type": kind, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    plans = [
        planned(tmp_path / str(i) / "m", "llama", rope_scaling={**rope, **more})
        for i, more in enumerate(({}, {"original_max_position_embeddings": 512}))
    ]
    assert plans[0].metadata == plans[1].metadata
    constants = [[j.constant.tolist() for j in p.jobs if j.constant is not None] for p in plans]
    assert constants[0] == constants[1]
    assert len(constants[0]) == (kind == "llama3")


@pytest.mark.parametrize(
    ("changes", "key", "value", "word"),
    [
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}},
            "rope.scaling.factor", 2.0, "rope_scaling counts",
        ),
        ({"rope_theta": 10.0, "rope_parameters": {"rope_theta": 500.0}}, "rope.freq_base", 500.0, "rope_theta"),
        (
            {"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 2.0}}, "rope.scaling.factor", 2.0,
            "rope_type counts",
        ),
        (
            {"rope_scaling": YARN, "original_max_position_embeddings": 64}, "rope.scaling.original_context_length", 64,
            "original_max_position_embeddings",
        ),
    ],
)  # fmt: skip
def test_two_places_differ(tmp_path: Path, changes: dict[str, Any], key: str, value: float, word: str) -> None:
    plan = planned(tmp_path / "m", "llama", **changes)
    assert plan.metadata[f"llama.{key}"][0] == value
    (said,) = plan.warnings
    assert word in said


def test_places_that_agree_are_silent(tmp_path: Path) -> None:
    rope = {"rope_type": "linear", "type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    assert not planned(tmp_path / "m", rope_scaling=rope, rope_parameters=rope).warnings


def test_gpt_neox_reads_its_own_names(tmp_path: Path) -> None:
    plan = planned(tmp_path / "m", "gpt_neox", rope_theta=500.0, rotary_emb_base=700)
    assert plan.metadata["gptneox.rope.freq_base"][0] == 700.0
    assert "rope_theta" in plan.warnings[0]


def test_stablelms_older_class(tmp_path: Path) -> None:
    """`StableLMEpochForCausalLM` has its settings under names of its own, and the same tensors."""
    builders.checkpoint(tmp_path / "new" / "m", "stablelm", layer_norm_eps=1e-4, partial_rotary_factor=0.5)
    builders.checkpoint(tmp_path / "old" / "m", "stablelm")
    path = tmp_path / "old" / "m" / "config.json"
    config = json.loads(path.read_text())
    config |= {"architectures": ["StableLMEpochForCausalLM"], "model_type": "stablelm_epoch", "norm_eps": 1e-4}
    config |= {"rope_pct": 0.5, "num_heads": builders.HEADS}
    del config["layer_norm_eps"], config["partial_rotary_factor"]
    path.write_text(json.dumps(config))
    new, old = (assemble(tmp_path / kind / "m") for kind in ("new", "old"))
    assert old.metadata == new.metadata
    assert old.warnings == new.warnings == ()
    assert old.metadata["stablelm.rope.dimension_count"][0] == builders.HEAD_DIM // 2


def test_gpt2_has_as_many_positions_as_its_table(tmp_path: Path) -> None:
    builders.checkpoint(tmp_path / "m", "gpt2", n_positions=96, n_inner=None)
    plan = assemble(tmp_path / "m")
    table = next(job for job in plan.jobs if job.name == "position_embd.weight")
    assert (plan.metadata["gpt2.context_length"][0], table.gguf_shape) == (96, (builders.HIDDEN, 96))
    assert plan.metadata["gpt2.feed_forward_length"][0] == 4 * builders.HIDDEN
    builders.checkpoint(tmp_path / "m", "gpt2", activation_function="relu")
    with pytest.raises(DataError, match="activation_function is 'relu'"):
        assemble(tmp_path / "m")


# --------------------------------------------------------------------------------------------------------------- table


@pytest.mark.parametrize("name", builders.FAMILIES)
def test_table_of_settings_is_what_the_lists_say(name: str) -> None:
    family, outcomes = family_of(name), read_table()[name]
    for key, outcome in outcomes.items():
        if key in settings.NO_MATTER:
            assert outcome == "=", key
        elif key in settings.HARMLESS:
            assert outcome == "✗", key
        elif key.startswith("rope_parameters") and key.endswith(")"):
            kind = key.partition("(")[2].removesuffix(")")
            assert (outcome == "✗") == (kind not in family.rope_types), key
    assert set(outcomes.values()) <= {"=", "ctx", "✗", "!", "–"}
    said = ["some_new_setting", *(f"rope_parameters (yarn): {key}" for key in family.rope_nearly)]
    assert [key for key, outcome in outcomes.items() if outcome == "!"] == said
    # settings have one of two names: StableLM's aliases are those of an older class, GPT-2's its own
    other = family.aliases.keys() if name == "stablelm" else set(family.aliases.values())
    computed = family.reads - {"rms_norm_eps", "layer_norm_eps", "_sliding_window_pattern", ""} - other
    assert computed <= outcomes.keys()
