"""Checkpoints of the models that users come with, at their real size and without their weights, for measuring.

Files are sparse: all weights are zero and take no room, but every byte is read, merged, encoded and written as any
other.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jmedlite.convert.families.config import text_config
from jmedlite.convert.families.families import FAMILIES
from jmedlite.convert.families.shapes import dimensions, expected_rules

Shapes = dict[str, tuple[int, ...]]

_BASE = {"max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu"}
_GEMMA = {"hidden_act": None, "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True}


def sizes(hidden: int, ffn: int, heads: int, kv_heads: int, layers: int, vocab: int, **more: Any) -> dict[str, Any]:
    """config.json's numbers."""
    return {
        **_BASE, "hidden_size": hidden, "intermediate_size": ffn, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "num_hidden_layers": layers, "vocab_size": vocab, **more,
    }  # fmt: skip


def turns(layers: int, window: int) -> list[str]:
    """`window` layers with a window and one without, in turn."""
    return ["full_attention" if i % (window + 1) == window else "sliding_attention" for i in range(layers)]


_QWEN35 = {
    "head_dim": 256, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_num_key_heads": 16,
    "linear_num_value_heads": 32, "linear_value_head_dim": 128, "full_attention_interval": 4, "attn_output_gate": True,
    "rope_theta": None, "mamba_ssm_dtype": "float32", "mtp_num_hidden_layers": 1, "mtp_use_dedicated_embeddings": False,
    "rope_parameters": {"mrope_interleaved": True, "mrope_section": [11, 11, 10], "rope_type": "default",
                        "rope_theta": 10000000, "partial_rotary_factor": 0.25},
}  # fmt: skip
_GPT_OSS = {
    "head_dim": 64, "num_experts_per_tok": 4, "sliding_window": 128, "attention_bias": True, "rope_theta": None,
    "layer_types": ["sliding_attention", "full_attention"] * 12, "swiglu_limit": 7.0,
    "rope_parameters": {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
                        "original_max_position_embeddings": 4096, "rope_theta": 150000.0},
}  # fmt: skip
_GEMMA_4 = {
    **_GEMMA, "head_dim": 256, "global_head_dim": 512, "final_logit_softcapping": 30.0, "rope_theta": None,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {"rope_type": "proportional", "rope_theta": 1000000.0, "partial_rotary_factor": 0.25},
    },
}  # fmt: skip
# The published configurations of the models that users come with.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen2-7B": ("Qwen2ForCausalLM", sizes(3584, 18944, 28, 4, 28, 152064)),
    "Qwen3-8B": ("Qwen3ForCausalLM", sizes(4096, 12288, 32, 8, 36, 151936, head_dim=128)),
    "Llama-2-7B": ("LlamaForCausalLM", sizes(4096, 11008, 32, 32, 32, 32000)),
    "Llama-3-8B": ("LlamaForCausalLM", sizes(4096, 14336, 32, 8, 32, 128256)),
    "Mistral-7B": ("MistralForCausalLM", sizes(4096, 14336, 32, 8, 32, 32000)),
    "OpenCALM-7B": (
        "GPTNeoXForCausalLM",
        sizes(4096, 16384, 32, 32, 32, 52224, hidden_act="gelu", layer_norm_eps=1e-5, rotary_pct=1.0,
              use_parallel_residual=False),
    ),
    "Gemma-2-9B": (
        "Gemma2ForCausalLM",
        sizes(3584, 14336, 16, 8, 42, 256000, head_dim=256, attn_logit_softcapping=50.0, final_logit_softcapping=30.0,
              **_GEMMA),
    ),
    "Gemma-3-12B": ("Gemma3ForCausalLM", sizes(3840, 15360, 16, 8, 48, 262208, head_dim=256, **_GEMMA)),
    "Phi-3-medium": ("Phi3ForCausalLM", sizes(5120, 17920, 40, 10, 40, 32064)),
    "Phi-4": ("Phi3ForCausalLM", sizes(5120, 17920, 40, 10, 40, 100352)),
    "LLM-jp-4-8B": ("LlamaForCausalLM", sizes(4096, 16384, 32, 8, 32, 98304)),
    "Mistral-Small-24B": ("MistralForCausalLM", sizes(5120, 32768, 32, 8, 40, 131072, head_dim=128)),
    "Qwen3.5-9B": ("Qwen3_5ForCausalLM", sizes(4096, 12288, 16, 4, 32, 248320, **_QWEN35)),
    "Qwen1.5-MoE-A2.7B": (
        "Qwen2MoeForCausalLM",
        sizes(2048, 5632, 16, 16, 24, 151936, moe_intermediate_size=1408, shared_expert_intermediate_size=5632,
              num_experts=60, num_experts_per_tok=4),
    ),
    "gpt-oss-20b": ("GptOssForCausalLM", sizes(2880, 2880, 64, 8, 24, 201088, num_local_experts=32, **_GPT_OSS)),
    "Gemma-4-E4B": (
        "Gemma4ForCausalLM",
        sizes(2560, 10240, 8, 2, 42, 262144, num_kv_shared_layers=18, hidden_size_per_layer_input=256,
              vocab_size_per_layer_input=262144, sliding_window=512, layer_types=turns(42, 5), **_GEMMA_4),
    ),
    "LFM2-1.2B": (
        "Lfm2ForCausalLM",
        sizes(2048, 12288, 32, 8, 16, 65536, rms_norm_eps=None, norm_eps=1e-5, block_ff_dim=12288, hidden_act=None,
              block_multiple_of=256, block_auto_adjust_ff_dim=True, block_ffn_dim_multiplier=1.0, conv_L_cache=3,
              full_attn_idxs=[2, 5, 8, 10, 12, 14], tie_word_embeddings=True),
    ),
    "StableLM-3B-4E1T": (
        "StableLmForCausalLM",
        sizes(2560, 6912, 32, 32, 32, 50304, rms_norm_eps=None, layer_norm_eps=1e-5, partial_rotary_factor=0.25),
    ),
    "japanese-gpt-1b": (
        "GPT2LMHeadModel",
        {"n_embd": 2048, "n_inner": 8192, "n_head": 16, "n_layer": 24, "n_positions": 1024, "vocab_size": 44928,
         "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new", "tie_word_embeddings": True},
    ),
}  # fmt: skip
# Those that no laptop holds in 16 bits, by the weights they have
_QWEN3_MOE = {"head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True,
              "decoder_sparse_step": 1, "mlp_only_layers": []}  # fmt: skip
LARGE: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen3-30B-A3B": (
        "Qwen3MoeForCausalLM", sizes(2048, 6144, 32, 4, 48, 151936, moe_intermediate_size=768, **_QWEN3_MOE),
    ),
    # its card says how many weights are embeddings, active and in all: only 960 columns and 4 heads of keys give those
    "LLM-jp-4-32B-A3B": (
        "Qwen3MoeForCausalLM", sizes(2560, 7680, 40, 4, 32, 98304, moe_intermediate_size=960, **_QWEN3_MOE),
    ),
    "Qwen3.5-35B-A3B": (
        "Qwen3_5MoeForCausalLM",
        sizes(2048, 512, 16, 2, 40, 248320, num_experts=256, num_experts_per_tok=8, moe_intermediate_size=512,
              shared_expert_intermediate_size=512, **_QWEN35),
    ),
    "Gemma-4-26B-A4B": (
        "Gemma4ForCausalLM",
        sizes(2816, 2112, 16, 8, 30, 262144, num_global_key_value_heads=2, attention_k_eq_v=True, num_experts=128,
              enable_moe_block=True, top_k_experts=8, moe_intermediate_size=704, num_kv_shared_layers=0,
              hidden_size_per_layer_input=0, sliding_window=1024, layer_types=turns(30, 5), **_GEMMA_4),
    ),
    "Mixtral-8x7B": (
        "MixtralForCausalLM", sizes(4096, 14336, 32, 8, 32, 32000, num_local_experts=8, num_experts_per_tok=2),
    ),
    "LLM-jp-3-8x13B": (
        "MixtralForCausalLM", sizes(5120, 13824, 40, 40, 40, 99584, num_local_experts=8, num_experts_per_tok=2),
    ),
    "Llama-2-70B": ("LlamaForCausalLM", sizes(8192, 28672, 64, 8, 80, 32000)),
    "Qwen2.5-72B": ("Qwen2ForCausalLM", sizes(8192, 29568, 64, 8, 80, 152064)),
    "Mixtral-8x22B": (
        "MixtralForCausalLM", sizes(6144, 16384, 48, 8, 56, 32768, num_local_experts=8, num_experts_per_tok=2),
    ),
    "Qwen3-235B-A22B": (
        "Qwen3MoeForCausalLM", sizes(4096, 12288, 64, 4, 94, 151936, moe_intermediate_size=1536, **_QWEN3_MOE),
    ),
}  # fmt: skip
MODULES = (
    "self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj", "self_attn.qkv_proj", "attention.query_key_value",
    "attn.c_attn",
)  # fmt: skip


def tensor_shapes(name: str, config: dict[str, Any]) -> Shapes:
    """Every tensor of a checkpoint with this configuration."""
    family = next(f for f in FAMILIES if name in f.hf_names)
    settings = text_config(family, config)
    dims = dimensions(family, settings)
    found: Shapes = {}
    for rule in expected_rules(family, settings):
        if rule.gguf == "output.weight" and settings.get("tie_word_embeddings"):
            continue
        shape = tuple(dims[d] for d in rule.dims_in_checkpoint)
        found |= dict.fromkeys(rule.names(dims.get("n_expert", 0)), shape)
    return found


def tokenizer(n_vocab: int) -> dict[str, Any]:
    """A byte-level tokenizer of the right size, so that planning has a real vocabulary to work on."""
    letters = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
    vocab = {c: i for i, c in enumerate(letters)}
    merges = []
    for a in letters:
        for b in letters:
            if len(vocab) < n_vocab - 1 and a + b not in vocab:
                vocab[a + b] = len(vocab)
                merges.append([a, b])
    return {
        "version": "1.0", "normalizer": None, "post_processor": None, "decoder": {"type": "ByteLevel"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "added_tokens": [{"id": len(vocab), "content": "<|endoftext|>", "special": True}],
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }  # fmt: skip


def write_safetensors(path: Path, shapes: Shapes, fill: Callable[[tuple[int, ...]], bytes] | None = None) -> None:
    """A safetensors file in BF16: zeros that take no room, or what `fill` gives."""
    header, at = {}, 0
    for name, shape in shapes.items():
        n = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + n]}
        at += n
    blob = json.dumps(header).encode()
    blob += b" " * (-len(blob) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(blob)) + blob)
        if fill:
            for shape in shapes.values():
                file.write(fill(shape))
        file.truncate(8 + len(blob) + at)


def write_bin(path: Path, shapes: Shapes) -> None:
    """The same as torch.save would write it (zip64, uncompressed), zeros that take no room."""

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def whole(value: int) -> bytes:
        return b"J" + struct.pack("<i", value) if value < 1 << 31 else b"\x8a\x08" + struct.pack("<q", value)

    def wholes(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(whole, values)) + b"t"

    body = b"\x80\x02ccollections\nOrderedDict\n)R("
    for i, (name, shape) in enumerate(shapes.items()):
        strides = tuple(int(np.prod(shape[k + 1 :])) for k in range(len(shape)))
        storage = b"(" + text("storage") + b"ctorch\nBFloat16Storage\n" + text(str(i)) + text("cpu")
        body += text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + whole(int(np.prod(shape))) + b"tQ"
        body += whole(0) + wholes(shape) + wholes(strides) + b"\x89ccollections\nOrderedDict\n)RtR"
    body += b"u."
    members: list[tuple[str, bytes | int]] = [("m/data.pkl", body)]
    members += [(f"m/data/{i}", 2 * int(np.prod(s))) for i, s in enumerate(shapes.values())]
    directory = b""
    with path.open("wb") as file:
        for name, data in members:
            size = data if isinstance(data, int) else len(data)
            # the checksum of data is not looked at (0: left out), that of the pickle is
            crc, at = 0 if isinstance(data, int) else zlib.crc32(data), file.tell()
            wide = struct.pack("<HHQQ", 1, 16, size, size)
            pad = -(at + 30 + len(name) + len(wide) + 4) % 64
            extra = wide + struct.pack("<HH", 0x4246, pad) + bytes(pad)
            file.write(
                struct.pack("<4s5H3I2H", b"PK\3\4", 45, 0, 0, 0, 0, crc, 0xFFFFFFFF, 0xFFFFFFFF, len(name), len(extra))
            )
            file.write(name.encode() + extra)
            file.seek(size, 1) if isinstance(data, int) else file.write(data)
            large = struct.pack("<HHQQQ", 1, 24, size, size, at)
            directory += struct.pack("<4s6H3I5H2I", b"PK\1\2", 45, 45, 0, 0, 0, 0, crc, 0xFFFFFFFF, 0xFFFFFFFF,
                                     len(name), len(large), 0, 0, 0, 0, 0xFFFFFFFF) + name.encode() + large  # fmt: skip
        at, n = file.tell(), len(members)
        file.write(directory + struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, n, n, len(directory), at))
        file.write(struct.pack("<4sIQI", b"PK\6\7", 0, at + len(directory), 1))
        file.write(struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, min(n, 0xFFFF), min(n, 0xFFFF), 0xFFFFFFFF, 0xFFFFFFFF, 0))


def write_model(
    folder: Path,
    architecture: str,
    config: dict[str, Any],
    source: str,
    fill: Callable[[tuple[int, ...]], bytes] | None = None,
) -> Shapes:
    """A whole checkpoint folder; returns its tensors."""
    folder.mkdir(parents=True)
    shapes = tensor_shapes(architecture, config)
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture], **config}))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(config["vocab_size"])))
    if source == "bin":
        write_bin(folder / "pytorch_model.bin", shapes)
    else:
        write_safetensors(folder / "model.safetensors", shapes, fill)
    return shapes


def write_adapter(folder: Path, shapes: Mapping[str, tuple[int, ...]], rank: int, modules: tuple[str, ...]) -> None:
    """A PEFT adapter on `modules` of every layer."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    found: Shapes = {}
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        if len(shape) == 2 and module.endswith(modules):
            n_out, n_in = shape[::-1] if module.endswith("c_attn") else shape  # GPT-2 has its matrices crosswise
            found[f"base_model.model.{module}.lora_A.weight"] = (rank, n_in)
            found[f"base_model.model.{module}.lora_B.weight"] = (n_out, rank)
    write_safetensors(folder / "adapter_model.safetensors", found, lambda shape: small(rng, shape))
    targets = sorted({m for m in modules if any(f"{m}.lora_A" in k for k in found)})
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": targets}
    settings["fan_in_fan_out"] = targets == ["attn.c_attn"]
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def small(rng: np.random.Generator, shape: tuple[int, ...]) -> bytes:
    """Random BF16 weights of a usual size."""
    x = rng.standard_normal(int(np.prod(shape)), np.float32) * np.float32(0.02)
    return (x.view(np.uint32) >> 16).astype(np.uint16).tobytes()
