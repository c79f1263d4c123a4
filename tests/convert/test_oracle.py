"""Against transformers and PEFT, on tiny models: merged weights in float32, next-token logits, tokens.

Run with `pytest -m oracle`, after `pip install torch` and `pip install -e ".[test,oracle]"`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jmedlite
from jmedlite.convert.families.row_order import RowOrder
from tests.support import builders
from tests.support.ggufs import read
from tests.support.logits import GgmlGelu, llama_logits, load, same_gelu, their_logits, tolerance, uses_gelu

pytestmark = pytest.mark.oracle

LINEAR_FULL = ["linear_attention", "full_attention"] * 2
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VARIANTS: dict[str, dict[str, Any]] = {
    "list": {"target_modules": ["q_proj", "v_proj"], "r": 4, "lora_alpha": 16},
    "regex": {"target_modules": r".*layers\.1\..*(k_proj|up_proj)", "r": 4},
    "all-linear": {"target_modules": "all-linear", "r": 2},
    "rslora": {"target_modules": LINEAR, "r": 8, "lora_alpha": 16, "use_rslora": True},
    "rank pattern": {
        "target_modules": LINEAR, "r": 4, "rank_pattern": {"down_proj": 2, r"layers\.0\.self_attn\.q_proj": 6},
    },
    "alpha pattern": {"target_modules": LINEAR, "r": 4, "alpha_pattern": {"o_proj": 3, r"layers\.1\.mlp\..*": 20}},
    "both patterns, rslora": {
        "target_modules": LINEAR, "r": 4, "use_rslora": True, "rank_pattern": {"q_proj": 3},
        "alpha_pattern": {"q_proj": 7},
    },
    "fan_in_fan_out": {"target_modules": ["q_proj", "down_proj"], "r": 4, "fan_in_fan_out": True},
    "some layers": {"target_modules": ["q_proj"], "r": 4, "layers_to_transform": [1]},
    "excluded": {"target_modules": LINEAR, "r": 4, "exclude_modules": ["down_proj"]},
    "the head": {"target_modules": ["lm_head", "q_proj"], "r": 4},
}  # fmt: skip


@pytest.fixture(scope="module", params=["qwen2", "qwen3", "llama", "mistral"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param) / "base"
    builders.checkpoint(folder, request.param, dtype="F32")
    return request.param, folder


@pytest.mark.parametrize("variant", VARIANTS)
def test_merge_equals_peft(base: tuple[str, Path], tmp_path: Path, variant: str) -> None:
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model

    family, folder = base
    torch.manual_seed(0)
    options = {"task_type": "CAUSAL_LM", **VARIANTS[variant]}
    wrapped = get_peft_model(load(folder), LoraConfig(init_lora_weights=False, **options))
    wrapped.save_pretrained(tmp_path / "adapter")
    merged = PeftModel.from_pretrained(load(folder), tmp_path / "adapter").merge_and_unload().state_dict()
    (path,) = jmedlite.quantize(folder, lora=[str(tmp_path / "adapter")], types=["F32"], out=tmp_path, name="merged")
    (plain,) = jmedlite.quantize(folder, types=["F32"], out=tmp_path, name="plain")
    found, before = read(path), read(plain)
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
             "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
             "mlp.down_proj": "ffn_down"}  # fmt: skip
    changed = 0
    for key, value in merged.items():
        expected = value.numpy()
        if key == "lm_head.weight":
            ours = "output.weight"
        elif ".layers." in key and key.removesuffix(".weight").split(".", 3)[3] in names:
            _, _, i, module = key.removesuffix(".weight").split(".", 3)
            ours = f"blk.{i}.{names[module]}.weight"
            if family in ("llama", "mistral") and module in ("self_attn.q_proj", "self_attn.k_proj"):
                expected = RowOrder(builders.HEAD_DIM, interleave=True).reorder(expected)
        else:
            continue
        changed += not np.array_equal(found[ours], before[ours])
        # both round a sum of r products and one addition in float32, in an order of their own
        scale = np.abs(found[ours] - before[ours]).max() + np.abs(before[ours]).max()
        np.testing.assert_allclose(
            found[ours], expected, rtol=0, atol=4 * np.finfo(np.float32).eps * scale, err_msg=key
        )
    assert changed == sum(".lora_A." in k for k in wrapped.state_dict())


NO_SHARES = {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0, "use_double_wide_mlp": False}
GEMMA4_DENSE = {
    **NO_SHARES, "attention_k_eq_v": True, "num_global_key_value_heads": 1, "final_logit_softcapping": 3.0,
}  # fmt: skip
GEMMA4_MIXTURE = {
    **NO_SHARES, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 512,
}  # fmt: skip
# two kinds of layers, as transformers 5 writes them, the one without a window not in proportion
GEMMA4_OTHER = {
    "global_head_dim": None, "per_layer_config": {str(i): {"head_dim": 32} for i in (1, 3)},
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 5e4},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
    },
}  # fmt: skip

WITH_EXPERTS = (*builders.MOE, "gpt_oss", "llama4_text")
TRAINED: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    # name: (families, options of the adapter; "base" changes the base's configuration)
    "all-linear, rslora": (tuple(builders.FAMILIES), {"target_modules": "all-linear", "r": 4, "use_rslora": True}),
    # PEFT has no DoRA for experts, all of which are one parameter to it
    "dora": (
        tuple(f for f in builders.FAMILIES if f not in builders.MOE),
        {"target_modules": "all-linear", "r": 4, "use_dora": True},
    ),
    "experts alone": (WITH_EXPERTS, {"target_modules": [], "target_parameters": "EXPERTS", "r": 3, "lora_alpha": 5}),
    "one parameter": (WITH_EXPERTS, {"target_modules": ["o_proj"], "target_parameters": ["down_proj"], "r": 4}),
    "router": (builders.MOE, {"target_modules": ["q_proj"], "target_parameters": ["mlp.gate.weight"], "r": 2}),
    "router of gpt-oss": (
        ("gpt_oss",), {"target_modules": ["q_proj"], "target_parameters": ["mlp.router.weight"], "r": 2},
    ),
    "square experts": (
        ("gpt_oss",), {"target_modules": ["o_proj"], "target_parameters": "EXPERTS", "r": 2, "base": "square"},
    ),
    "experts and router of Gemma 4": (
        ("gemma4_text",),
        {
            "target_modules": ["router.proj", "down_proj"], "r": 3, "lora_alpha": 5, "base": "mixture",
            "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
        },
    ),
    "second embedding": (("gemma4_text",), {"target_modules": ["embed_tokens_per_layer", "per_layer_projection"]}),
    "saved second embedding": (
        ("gemma4_text",),
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens_per_layer", "per_layer_projection_norm"]},
    ),
    "lora_bias": (("qwen2", "gpt_neox"), {"target_modules": "BIASED", "r": 4, "lora_bias": True}),
    "bias all": (("qwen2", "gpt_neox"), {"target_modules": "BIASED", "r": 4, "bias": "all"}),
    "bias lora_only": (("qwen2", "gpt_neox"), {"target_modules": "BIASED", "r": 4, "bias": "lora_only"}),
    "saved tables": (("llama", "gpt_neox"), {"target_modules": "all-linear", "modules_to_save": "TABLES"}),
    "saved norms": (("llama", "gemma2"), {"target_modules": "all-linear", "modules_to_save": "SAVED"}),
    "saved transposed": (("gpt2",), {"target_modules": ["c_attn", "c_fc"], "modules_to_save": "SAVED"}),
    "embedding": (("qwen2", "gpt_neox", "phi3", "stablelm"), {"target_modules": "TABLES", "r": 4}),
    "embedding alone, tied": (("llama", "gemma3_text"), {"target_modules": ["embed_tokens"], "base": "tied"}),
    "head alone, tied": (("qwen2", "phi3"), {"target_modules": ["lm_head"], "base": "tied"}),
    "both, tied": (("qwen2",), {"target_modules": ["lm_head", "embed_tokens"], "base": "tied"}),
    "saved embedding, tied": (
        ("qwen2",), {"target_modules": "all-linear", "modules_to_save": ["embed_tokens"], "base": "tied"},
    ),
    "saved head, tied": (("qwen2",), {"target_modules": "all-linear", "modules_to_save": ["lm_head"], "base": "tied"}),
    "saved, kept tied": (
        ("qwen2", "gemma2"),
        {
            "target_modules": "all-linear", "modules_to_save": ["embed_tokens"], "base": "tied",
            "ensure_weight_tying": True,
        },
    ),
    "embedding, kept tied": (
        ("qwen2", "gemma2"),
        {"target_modules": ["embed_tokens", "o_proj"], "base": "tied", "ensure_weight_tying": True},
    ),
}  # fmt: skip


def named(option: Any, family: str) -> Any:
    """Module names that differ between families."""
    neox, gpt2, llama4 = family == "gpt_neox", family == "gpt2", family == "llama4_text"
    mixture = "feed_forward" if llama4 else "mlp"
    if llama4 and option == "all-linear":  # its router gives two values, which PEFT's own layers can't take
        return [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
    return {
        "TABLES": ["embed_in", "lm_head"] if neox else ["wte", "lm_head"] if gpt2 else ["embed_tokens", "lm_head"],
        "EXPERTS": [f"{mixture}.experts.gate_up_proj", f"{mixture}.experts.down_proj"],
        "BIASED": ["query_key_value", "dense", "dense_h_to_4h"] if neox else ["q_proj", "k_proj", "v_proj"],
        "SAVED": ["ln_1", "attn.c_proj"] if gpt2 else ["input_layernorm"],
    }.get(str(option), option)


@pytest.mark.parametrize(("variant", "family"), [(v, f) for v, (families, _) in TRAINED.items() for f in families])
def test_logits_with_an_adapter_equal_peft(tmp_path: Path, variant: str, family: str) -> None:
    """Against the adapter as it was trained, not merged: PEFT's own merge changes both of two tied tables."""
    import torch
    from peft import LoraConfig, get_peft_model

    options = {key: named(value, family) for key, value in TRAINED[variant][1].items()}
    bases: dict[str, dict[str, Any]] = {
        "tied": {"tie_word_embeddings": True},
        "square": {"intermediate_size": builders.HIDDEN},
        "mixture": GEMMA4_MIXTURE,
    }
    changes = bases.get(options.pop("base", ""), {})
    builders.checkpoint(tmp_path / "m", family, dtype="F32", **changes)
    torch.manual_seed(0)
    model = get_peft_model(load(tmp_path / "m"), LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **options))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad:  # as after some training: nothing is still what the base has
                p.mul_(1 + 0.05 * torch.randn_like(p)) if "magnitude" in name else p.add_(0.02 * torch.randn_like(p))
    model.save_pretrained(tmp_path / "a")
    (path,) = jmedlite.quantize(tmp_path / "m", lora=[str(tmp_path / "a")], types=["F32"], out=tmp_path)
    tokens = np.random.default_rng(0).integers(0, 256, 24).tolist()
    same_gelu(model)
    expected = their_logits(model, tokens)
    with model.disable_adapter():
        plain = their_logits(model, tokens)
    assert np.abs(expected - plain).max() > 0.05
    np.testing.assert_allclose(llama_logits(path, tokens), expected, rtol=0, atol=tolerance(family))


LLAMA3_ROPE = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32, "rope_theta": 10000.0,
}  # fmt: skip


YARN = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "rope_theta": 150000.0, "truncate": True,
    "original_max_position_embeddings": 128,
}  # fmt: skip


LONGROPE = {
    "type": "longrope", "short_factor": [1 + 0.1 * i for i in range(32)],
    "long_factor": [2.0 + 0.1 * i for i in range(32)],
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("qwen2", {}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {"head_dim": None}),  # 128
        ("qwen3", {"head_dim": 64, "tie_word_embeddings": True}),
        ("llama", {}),
        ("llama", {"attention_bias": True, "num_key_value_heads": 4}),
        ("llama", {"head_dim": 32}),
        ("llama", {"rope_scaling": LLAMA3_ROPE}),
        ("mistral", {"sliding_window": None}),
        ("gpt_neox", {}),
        ("gpt_neox", {"use_parallel_residual": False, "rotary_pct": 1.0, "tie_word_embeddings": True}),
        ("gemma2", {}),
        ("gemma3_text", {}),
        ("gemma3_text", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "tie_word_embeddings": False}),
        ("gemma4_text", {}),
        ("gemma4_text", GEMMA4_DENSE),
        ("gemma4_text", GEMMA4_MIXTURE),
        ("gemma4_text", {**GEMMA4_MIXTURE, "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 64}),
        (
            "gemma4_text",
            {"tie_word_embeddings": False, "rope_parameters": None, "use_bidirectional_attention": "vision"},
        ),
        ("gemma4_text", GEMMA4_OTHER),
        ("gemma4_unified_text", {}),
        ("gemma4_unified_text", {"attention_k_eq_v": False, "num_kv_shared_layers": 2, "use_double_wide_mlp": True}),
        ("qwen3_moe", {}),
        ("qwen3_moe", {"num_experts": 8, "num_experts_per_tok": 8, "tie_word_embeddings": True}),
        ("qwen2_moe", {}),
        ("mixtral", {}),
        ("gpt_oss", {}),
        ("gpt_oss", {"num_local_experts": 8, "num_hidden_layers": 4, "tie_word_embeddings": True}),
        ("lfm2", {}),
        ("lfm2", {"tie_word_embeddings": False, "conv_L_cache": 4, "block_auto_adjust_ff_dim": False}),
        ("stablelm", {}),
        ("stablelm", {"use_parallel_residual": True, "use_qkv_bias": False, "tie_word_embeddings": True}),
        ("gpt2", {}),
        ("gpt2", {"tie_word_embeddings": False, "n_inner": None, "n_layer": 3}),
        ("llama4_text", {}),
        ("llama4_text", {"rope_scaling": {**LLAMA3_ROPE, "high_freq_factor": 1.0}}),  # as published
        (
            "llama4_text",
            {
                "interleave_moe_layer_step": 1,
                "num_local_experts": 6,
                "num_experts_per_tok": 1,
                "rope_scaling": LLAMA3_ROPE,
                "no_rope_layers": None,
                "tie_word_embeddings": True,
            },
        ),
        ("gpt_oss", {"rope_parameters": YARN, "max_position_embeddings": 4096}),
        ("qwen3_5_text", {}),
        ("qwen3_5_moe_text", {}),
        ("qwen3_5_moe_text", {"num_experts": 6, "num_experts_per_tok": 3, "linear_num_value_heads": 2}),
        ("qwen3_5_text", {"linear_num_value_heads": 2, "tie_word_embeddings": True}),
        ("qwen3_5_text", {"linear_num_value_heads": 6, "full_attention_interval": 2, "layer_types": LINEAR_FULL}),
        ("mixtral", {"num_local_experts": 3, "num_experts_per_tok": 1}),
        ("phi3", {"sliding_window": None}),
        ("phi3", {"partial_rotary_factor": 0.5, "tie_word_embeddings": True}),
        ("phi3", {"rope_scaling": LONGROPE, "max_position_embeddings": 512, "original_max_position_embeddings": 32}),
    ],
)
def test_logits_equal_transformers(tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    builders.checkpoint(tmp_path / "m", family, dtype="F32", **changes)
    (path,) = jmedlite.quantize(tmp_path / "m", types=["F32"], out=tmp_path)
    tokens = np.random.default_rng(0).integers(0, 256, 48).tolist()
    model, found = load(tmp_path / "m"), llama_logits(path, tokens)
    for gelu in (False, True) if uses_gelu(model) else (False,):
        if gelu:
            same_gelu(model)
        expected = their_logits(model, tokens)
        assert expected.std() > 0.1
        # llama.cpp looks GELU up in a table of half floats: 2⁻¹¹ of the value, once a layer
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance(family, exact_gelu=not gelu))


@pytest.mark.parametrize("family", ["qwen2", "gpt_neox"])
def test_a_head_beside_a_tied_embedding(tmp_path: Path, family: str) -> None:
    """transformers unties them where their values differ, whatever config.json says."""
    vocab = builders.n_tokens(builders.byte_level_tokenizer())
    tensors = builders.weights(builders.config(family, vocab))
    builders.checkpoint(tmp_path / "m", family, tensors=tensors, dtype="F32", tie_word_embeddings=True)
    (path,) = jmedlite.quantize(tmp_path / "m", types=["F32"], out=tmp_path)
    tokens = np.random.default_rng(0).integers(0, 256, 24).tolist()
    model, found = load(tmp_path / "m"), llama_logits(path, tokens)
    expected = their_logits(model, tokens)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance(family, exact_gelu=True))


VISION = {
    "depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": builders.HIDDEN,
    "num_position_embeddings": 16,
}  # fmt: skip


def seeing(family: str, text: dict[str, Any], vision: dict[str, Any]) -> Any:
    """transformers' model with eyes around a text model of a family."""
    import transformers

    if family == "gemma3_text":
        config: Any = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
        return transformers.Gemma3ForConditionalGeneration(config)
    if family == "gemma4_text":
        eyes = {key: value for key, value in vision.items() if key != "image_size"}
        config = transformers.Gemma4Config(
            text_config=text, vision_config={**eyes, "num_key_value_heads": 2, "head_dim": 16},
            audio_config={
                "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "output_proj_dims": 32,
                "subsampling_conv_channels": [8, 8],
            },
        )  # fmt: skip
        return transformers.Gemma4ForConditionalGeneration(config)
    if family == "gemma4_unified_text":
        eyes = {"patch_size": 2, "pooling_kernel_size": 1, "mm_embed_dim": 32, "mm_posemb_size": 16}
        config = transformers.Gemma4UnifiedConfig(
            text_config=text, vision_config={**eyes, "output_proj_dims": 32}, audio_config={"audio_embed_dim": 16}
        )
        return transformers.Gemma4UnifiedForConditionalGeneration(config)
    if family == "qwen3_5_text":
        config = transformers.Qwen3_5Config(text_config=text, vision_config=VISION, tie_word_embeddings=False)
        return transformers.Qwen3_5ForConditionalGeneration(config)
    if family == "llama4_text":
        eyes = {"vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32}
        config = transformers.Llama4Config(text_config=text, vision_config={**vision, **eyes})
        return transformers.Llama4ForConditionalGeneration(config)
    eyes = {**vision, "model_type": "pixtral", "head_dim": 16}
    config = transformers.Mistral3Config(text_config=text, vision_config=eyes, tie_word_embeddings=False)
    return transformers.Mistral3ForConditionalGeneration(config)


def text_part_of(model: Any) -> Any:
    """What is asked: the whole, or of Llama 4 its text part, since transformers 5.24 can't call that whole."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner.language_model if type(inner).__name__.startswith("Llama4") else model


@pytest.mark.parametrize(
    "family", ["gemma3_text", "mistral", "qwen3_5_text", "gemma4_text", "gemma4_unified_text", "llama4_text"]
)
@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_text_part_of_a_model_with_eyes(tmp_path: Path, prefix: str, family: str) -> None:
    """MedGemma's kind: a Gemma 3, or a Mistral, under a prefix, with a vision tower that is left out."""
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file

    builders.checkpoint(
        tmp_path / "m", family, dtype="F32", **({"sliding_window": None} if family == "mistral" else {})
    )
    text = json.loads((tmp_path / "m" / "config.json").read_text())
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14,
    }  # fmt: skip
    torch.manual_seed(0)
    model = seeing(family, text, vision).float().eval()
    model.save_pretrained(tmp_path / "v")
    saved = load_file(tmp_path / "v" / "model.safetensors")
    renamed = {}
    for name, tensor in saved.items():
        known = next((p for p in ("language_model.model.", "model.language_model.") if name.startswith(p)), "")
        renamed[prefix + name.removeprefix(known) if known else name] = tensor
    assert any(n.startswith(prefix) for n in renamed)
    save_file(renamed, tmp_path / "v" / "model.safetensors", {"format": "pt"})
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "v" / file).write_bytes((tmp_path / "m" / file).read_bytes())
    (path,) = jmedlite.quantize(tmp_path / "v", types=["F32"], out=tmp_path)
    # factors of its rotary embedding; gate and up, which are one in each of two mixtures
    n_more = {"gemma4_text": 1, "gemma4_unified_text": 1, "llama4_text": 2}.get(family, 0)
    assert len(read(path)) == sum(n.startswith(prefix) or "lm_head" in n for n in renamed) + n_more
    tokens = np.random.default_rng(0).integers(0, 256, 40).tolist()
    for layer in model.modules():
        if family.startswith("gemma") and hasattr(layer, "act_fn"):
            layer.act_fn = GgmlGelu()
    plain = their_logits(text_part_of(model), tokens)
    bound = tolerance(family)
    np.testing.assert_allclose(llama_logits(path, tokens), plain, rtol=0, atol=bound)
    # an adapter of the whole class, eyes and all, in the names of this transformers; and of its text part in others
    options = {"target_modules": named("all-linear", family), "r": 2, "lora_alpha": 1, "init_lora_weights": False}
    wrapped = get_peft_model(model, LoraConfig(**options))
    expected = their_logits(text_part_of(wrapped), tokens)
    assert np.abs(expected - plain).max() > 0.1
    wrapped.save_pretrained(tmp_path / "a")
    assert any("vis" in n for n in load_file(tmp_path / "a" / "adapter_model.safetensors"))
    for base in ("v", "m"):
        if base == "m":  # the same weights as a checkpoint of text alone
            text_part = {n.replace(prefix, "model."): t for n, t in renamed.items() if n.startswith(prefix)}
            head = next((t for n, t in renamed.items() if n.endswith("lm_head.weight")), None)
            text_part |= {} if head is None else {"lm_head.weight": head}
            save_file(text_part, tmp_path / "m" / "model.safetensors", {"format": "pt"})
        (path,) = jmedlite.quantize(tmp_path / base, lora=[str(tmp_path / "a")], types=["F32"], out=tmp_path)
        np.testing.assert_allclose(llama_logits(path, tokens), expected, rtol=0, atol=bound)


def test_every_family_is_here() -> None:
    """The table in docs/families.md promises it."""
    tested = {family for mark in test_logits_equal_transformers.pytestmark for family, _ in mark.args[1]}
    assert tested == set(builders.FAMILIES)
