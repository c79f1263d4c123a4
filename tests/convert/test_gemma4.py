"""Gemma 4: heads of two sizes, layers that take another layer's keys and values, a second embedding, its mixture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jmedlite
from jmedlite.api.quantize import export_adapters
from jmedlite.api.verify import verify
from jmedlite.base import gguf
from jmedlite.base.errors import DataError
from jmedlite.convert.planning import assemble
from tests.support import builders
from tests.support.ggufs import contents, llama_quantize, raw, read

FAMILY = "gemma4_text"
DENSE: dict[str, Any] = {
    "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0, "use_double_wide_mlp": None,
    "attention_k_eq_v": True, "num_global_key_value_heads": 1,
}  # fmt: skip
MIXTURE: dict[str, Any] = {
    "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 512,
}  # fmt: skip


def keys(path: Path) -> dict[str, Any]:
    """The keys of its architecture, lists as lists."""
    meta = gguf.read_header(path).metadata
    own = {name.removeprefix("gemma4."): value for name, value in meta.items() if name.startswith("gemma4.")}
    return {name: value if isinstance(value, int | float | str) else list(value) for name, value in own.items()}


def test_what_the_header_says(tmp_path: Path) -> None:
    builders.checkpoint(tmp_path / "e", FAMILY)
    builders.checkpoint(tmp_path / "d", FAMILY, **DENSE)
    (small,) = jmedlite.quantize(tmp_path / "e", types=["F32"], out=tmp_path)
    (dense,) = jmedlite.quantize(tmp_path / "d", types=["F32"], out=tmp_path)
    found = keys(small)
    assert [found[f"attention.{key}"] for key in ("key_length", "key_length_swa", "shared_kv_layers")] == [128, 64, 2]
    assert found["attention.sliding_window_pattern"] == [True, False, True, False]
    assert found["feed_forward_length"] == [512, 512, 1024, 1024]
    assert (found["attention.head_count_kv"], found["embedding_length_per_layer_input"]) == (2, 64)
    assert (found["rope.freq_base"], found["rope.freq_base_swa"]) == (1e6, 1e4)
    # without the key, llama.cpp computes with 30
    assert found["final_logit_softcapping"] == 0
    assert keys(dense)["attention.head_count_kv"] == [2, 1, 2, 1]
    names = {t.name for t in gguf.read_header(dense).tensors}
    assert {"blk.0.attn_v.weight", "blk.1.attn_k.weight"} < names
    assert "blk.1.attn_v.weight" not in names


def test_the_share_that_is_rotated_is_in_the_factors(tmp_path: Path) -> None:
    rope = {
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6, "factor": 8},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    builders.checkpoint(tmp_path / "m", FAMILY, rope_parameters=rope)
    (path,) = jmedlite.quantize(tmp_path / "m", types=["Q8_0"], out=tmp_path)
    factors = read(path)["rope_freqs.weight"]
    np.testing.assert_array_equal(factors, np.float32([8] * 16 + [1e30] * 48))


def test_keys_of_layers_that_take_anothers_are_left_out(tmp_path: Path) -> None:
    """Published checkpoints have them; transformers does not load them."""
    tensors = builders.checkpoint(tmp_path / "m", FAMILY)
    (one,) = jmedlite.quantize(tmp_path / "m", types=["Q8_0"], out=tmp_path / "1", name="x")
    for i, head in ((2, 64), (3, 128)):
        at = f"model.layers.{i}.self_attn."
        tensors |= {f"{at}{x}_proj.weight": np.ones((2 * head, 256), np.float32) for x in "kv"}
        tensors[f"{at}k_norm.weight"] = np.ones(head, np.float32)
    builders.checkpoint(tmp_path / "m", FAMILY, tensors=tensors)
    assert any("6 tensors of layers that take" in w for w in assemble(tmp_path / "m").warnings)
    (other,) = jmedlite.quantize(tmp_path / "m", types=["Q8_0"], out=tmp_path / "2", name="x")
    assert raw(one) == raw(other)
    builders.checkpoint(tmp_path / "m", FAMILY, tensors=tensors | {"model.layers.2.self_attn.x.weight": np.ones(3)})
    with pytest.raises(DataError, match=r"has model.layers.2.self_attn.x.weight"):
        assemble(tmp_path / "m")


@pytest.mark.parametrize("changes", [{}, {**DENSE, **MIXTURE}])
def test_every_level_equals_llama_quantize(tmp_path: Path, changes: dict[str, Any]) -> None:
    builders.checkpoint(tmp_path / "m", FAMILY, **changes)
    levels = ["Q2_K", "Q4_K_M", "Q4_0", "Q6_K"]
    made = jmedlite.quantize(tmp_path / "m", types=["BF16", *levels], out=tmp_path / "out", threads=2)
    for level, path in zip(levels, made[1:], strict=True):
        llama_quantize(made[0], tmp_path / "ref.gguf", level)
        assert contents(path) == contents(tmp_path / "ref.gguf"), level


def test_small_blocks_and_many_threads_change_nothing(tmp_path: Path) -> None:
    base = builders.checkpoint(tmp_path / "m", FAMILY, **MIXTURE)
    modules = ("self_attn.q_proj", "per_layer_input_gate", "per_layer_model_projection")
    builders.adapter(tmp_path / "a", base, modules=modules)
    given: dict[str, Any] = {"lora": [str(tmp_path / "a")], "types": ["Q4_K_M", "F32"], "name": "x"}
    one = jmedlite.quantize(tmp_path / "m", out=tmp_path / "1", threads=1, **given)
    many = jmedlite.quantize(tmp_path / "m", out=tmp_path / "2", threads=5, memory="340MB", **given)
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in many]
    assert all(verify(path, base=tmp_path / "m", lora=[str(tmp_path / "a")]).holds for path in one)
    # llama-quantize leaves the projection of the second embedding as its converter wrote it, which at F32 is F32
    assert raw(one[0])["per_layer_model_proj.weight"][0] == "BF16"
    assert raw(one[1])["per_layer_model_proj.weight"][0] == "F32"


@pytest.mark.parametrize("changes", [{}, {**DENSE, **MIXTURE}])
def test_an_adapter_into_a_gguf(tmp_path: Path, changes: dict[str, Any]) -> None:
    base = builders.checkpoint(tmp_path / "m", FAMILY, **changes)
    builders.adapter(tmp_path / "a", base, modules=("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"))
    (plain,) = jmedlite.quantize(tmp_path / "m", types=["F32"], out=tmp_path)
    merged = [
        jmedlite.quantize(source, lora=[str(tmp_path / "a")], types=["F32"], out=tmp_path / name, name="x")[0]
        for source, name in ((tmp_path / "m", "1"), (plain, "2"))
    ]
    assert raw(merged[0]) == raw(merged[1])


BEYOND = ("embed_tokens_per_layer", "per_layer_model_projection")


@pytest.mark.parametrize("module", BEYOND)
def test_what_llama_cpp_adds_no_adapter_to(tmp_path: Path, module: str) -> None:
    """Its graph would leave the adapter's share out without a word."""
    base = builders.checkpoint(tmp_path / "m", FAMILY)
    builders.adapter(tmp_path / "a", {n: x for n, x in base.items() if module in n}, modules=(module,))
    with pytest.raises(DataError, match=rf"{module}.weight, which llama.cpp can't do at run time"):
        export_adapters(str(tmp_path / "m"), [str(tmp_path / "a")], out=tmp_path, name="a")


def test_such_an_adapter_of_others_is_refused_at_run_time(tmp_path: Path) -> None:
    base = builders.checkpoint(tmp_path / "m", FAMILY)
    builders.adapter(tmp_path / "a", base, modules=("self_attn.q_proj",))
    (path,) = jmedlite.quantize(tmp_path / "m", types=["Q8_0"], out=tmp_path)
    adapter = export_adapters(str(tmp_path / "m"), [str(tmp_path / "a")], out=tmp_path, name="a").path
    name, other = b"blk.0.attn_q.weight.lora", b"per_layer_model_proj.weight.lora"
    data = adapter.read_bytes()
    at = data.index(name)
    bent = data[: at - 8] + (len(other) + 2).to_bytes(8, "little") + other + data[at + len(name) :]
    (tmp_path / "bent.gguf").write_bytes(bent)
    with pytest.raises(DataError, match=r"per_layer_model_proj.weight, to which llama.cpp adds no adapter"):
        jmedlite.Runner(path, lora=[(tmp_path / "bent.gguf", 1.0)])


def _rope(full: Any, sliding: Any) -> dict[str, Any]:
    return {"rope_parameters": {"full_attention": full, "sliding_attention": sliding}}


WINDOWED = {"rope_type": "default", "rope_theta": 1e4}
PROPORTIONAL = {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another number of rows": ({"vocab_size_per_layer_input": 300}, "vocab_size_per_layer_input 300"),
    "one layer to share": ({"num_kv_shared_layers": 3}, "3 of 4 layers share"),
    "all shared": ({"num_kv_shared_layers": 4}, "4 of 4 layers share"),
    "a wrong order": (
        {"layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]}, "2 of 4",
    ),
    "no windows": ({"layer_types": ["full_attention"] * 4}, "layer_types"),
    "too few types": ({"layer_types": ["sliding_attention", "full_attention"]}, "each of 4 layers"),
    "heads of a third size": (
        {"per_layer_config": {"1": {"head_dim": 128}, "3": {"head_dim": 64}}}, "its per_layer_config",
    ),
    "other heads with a window": ({"per_layer_config": {"0": {"head_dim": 128}}}, "its per_layer_config"),
    "flat rotary settings": ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "has rope_scaling ('linear')"),
    "no base": (_rope(PROPORTIONAL, {"rope_type": "default"}), "rope_theta is missing"),
    "no base without a window": (_rope({**PROPORTIONAL, "rope_theta": None}, WINDOWED), "rope_theta is missing"),
    "another type": (_rope({"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e6}, WINDOWED), "rope type 'yarn'"),
    "sees what comes after": ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention is 'all'"),
    "two counts": ({**MIXTURE, "num_experts_per_tok": 1}, "top_k_experts is 2, num_experts_per_tok is 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_llama_cpp_does_not_compute_is_refused(tmp_path: Path, case: str) -> None:
    changes, words = REFUSED[case]
    builders.checkpoint(tmp_path / "m", FAMILY)
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(DataError) as caught:
        assemble(tmp_path / "m")
    assert words in str(caught.value)


def test_a_vocabulary_that_an_adapter_makes_larger(tmp_path: Path) -> None:
    """The second embedding would have no rows for the new tokens."""
    tensors = builders.checkpoint(tmp_path / "m", FAMILY)
    n_vocab = tensors["model.embed_tokens.weight"].shape[0]
    builders.adapter(tmp_path / "a", tensors, modules=("self_attn.q_proj",))
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "modules_to_save": ["embed_tokens"]}))
    from safetensors.numpy import load_file, save_file

    file = tmp_path / "a" / "adapter_model.safetensors"
    larger = np.zeros((n_vocab + 2, builders.HIDDEN), np.float32)
    save_file({**load_file(file), "base_model.model.model.embed_tokens.weight": larger}, file, {"format": "pt"})
    with pytest.raises(DataError, match=r"rows, but its second embedding"):
        assemble(tmp_path / "m", adapters=[(tmp_path / "a", 1.0)])
