"""The names of files in checkpoint and adapter folders, as transformers and PEFT give them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
BIN_SINGLE, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
TEKKEN = "tekken.json"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", TEKKEN, "added_tokens.json",
    "special_tokens_map.json", "chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja",
)  # fmt: skip
GPTQ_CONFIG, AWQ_CONFIG = "quantize_config.json", "quant_config.json"  # beside config.json, in older checkpoints
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS, ADAPTER_BIN = "adapter_model.safetensors", "adapter_model.bin"
MLX_ADAPTER_WEIGHTS = "adapters.safetensors"
CARD = "README.md"
MAX_NAME = 255  # bytes, of all usual file systems


def is_plain(name: Any) -> bool:
    """Is it the name of a file, without any folder? What an index may name."""
    return (
        isinstance(name, str)
        and Path(name).name == name
        and name not in ("", ".", "..")
        and "\\" not in name
        and name.isprintable()
        and len(name.encode("utf-8")) <= MAX_NAME
    )
