"""The names of files in checkpoint and adapter folders, as transformers and PEFT give them."""

from __future__ import annotations

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
BIN_SINGLE, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "added_tokens.json",
    "special_tokens_map.json", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model")  # each is a vocabulary by itself
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS, ADAPTER_BIN = "adapter_model.safetensors", "adapter_model.bin"
CARD = "README.md"
