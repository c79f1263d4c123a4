"""Mistaken folder: one that is no checkpoint, or no PEFT adapter; what it is instead, and what to give."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jmedlite.base.errors import JmedliteError
from jmedlite.base.filenames import ADAPTER_BIN, ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG, MLX_ADAPTER_WEIGHTS
from jmedlite.base.inputs import read_json
from jmedlite.base.looking import is_dir, is_file

_STEP = re.compile(r"(?:checkpoint|global_?step|step|epoch)[-_]?(\d+)")
# (files, what they are, what to do): the first whose pattern finds a file tells
_FORMATS = (
    ("consolidated*.pth", "is in Meta's own format", "give the same model in transformers' form (the Hub's …-hf)"),
    ("consolidated*.safetensors", "is in Mistral's own format", "give the same model in transformers' form"),
    ("params.json", "is in Mistral's or Meta's own format", "give the same model in transformers' form"),
    ("zero_to_fp32.py", "holds DeepSpeed's shards", "join them with it, as `python zero_to_fp32.py . OUT`"),
    ("*_optim_states.pt", "holds DeepSpeed's shards", "join them with DeepSpeed's zero_to_fp32.py"),
    ("pytorch_model_fsdp*", "holds FSDP's shards", "join them with `accelerate merge-weights`"),
    ("*.distcp", "holds FSDP's shards", "join them with `accelerate merge-weights`"),
    ("qmodel.pt", "holds HQQ's quantized weights", "give the original checkpoint"),
    ("weights.npz", "is in MLX's older format", "give the original checkpoint"),
    ("tf_model.h5", "has TensorFlow's weights", "get the model as safetensors"),
    ("flax_model.msgpack", "has Flax's weights", "get the model as safetensors"),
    ("*.onnx", "has ONNX graphs", "get the model as safetensors"),
)  # fmt: skip


def instead_of_model(folder: Path) -> str | None:
    """What a folder without a model's configuration or weights is, and what to give; None where nothing tells."""
    if is_file(folder / ADAPTER_CONFIG) or is_file(folder / MLX_ADAPTER_WEIGHTS):
        base = adapter_base(folder)
        trained_on = f" ({base})" if base else ""
        return f"is an adapter, not a model: give the model it was trained on{trained_on}, this with --lora {folder}"
    if found := next(iter(sorted(folder.glob("*.gguf"))), None):
        return f"has no checkpoint, it has GGUF files: give one of them, such as {found.name}"
    return _unfinished(folder) or _other_format(folder) or _within(folder, CONFIG, "models", "")


def instead_of_adapter(folder: Path) -> str | None:
    """The same of a folder without an adapter's configuration or weights."""
    if is_mlx(folder):
        return f"is an MLX adapter, but has not both {ADAPTER_CONFIG} and {MLX_ADAPTER_WEIGHTS}"
    if not is_file(folder / ADAPTER_CONFIG) and is_file(folder / CONFIG):
        return f"is a model, not an adapter (it has {CONFIG}, and no {ADAPTER_CONFIG}): give it as the model"
    return _unfinished(folder) or _within(folder, ADAPTER_CONFIG, "adapters", "--lora ")


def is_mlx(folder: Path) -> bool:
    """Is it an adapter of mlx-lm? Its configuration has the name of PEFT's."""
    config = _config(folder)
    named = "lora_parameters" in config or "fine_tune_type" in config
    return named or (is_file(folder / MLX_ADAPTER_WEIGHTS) and not _has_peft_weights(folder))


def adapter_base(folder: Path) -> str | None:
    """The model that an adapter says it was trained on."""
    config = _config(folder)
    found = config.get("base_model_name_or_path") or config.get("model")  # PEFT's, MLX's
    return re.sub(r"(-unsloth)?-bnb-4bit$", "", found) if isinstance(found, str) else None


def _config(folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder / ADAPTER_CONFIG)
    except JmedliteError:
        return {}


def _has_peft_weights(folder: Path) -> bool:
    return any(is_file(folder / name) for name in (ADAPTER_WEIGHTS, ADAPTER_BIN))


def _unfinished(folder: Path) -> str | None:
    for pattern in ("*.incomplete", ".cache/huggingface/download/*.incomplete", "*.part", "*.crdownload", "*.aria2"):
        if found := next(folder.glob(pattern), None):
            return f"is not downloaded to its end ({found.name} is there); go on with the download"
    return None


def _within(folder: Path, wanted: str, plural: str, option: str) -> str | None:
    """What to give of the folders inside: the newest training checkpoint, or one of the models."""
    inside = sorted(path for path in folder.iterdir() if is_dir(path) and not path.name.startswith("."))
    steps = {int(found[1]): path for path in inside if (found := _STEP.fullmatch(path.name))}
    if steps:
        whole = {n: path for n, path in steps.items() if any(is_file(path / c) for c in (wanted, ADAPTER_CONFIG))}
        newest = steps[max(whole or steps)]
        if not is_file(newest / wanted) and is_file(newest / ADAPTER_CONFIG):
            option = "the model it was trained on, with --lora "
        return f"holds training checkpoints: give one of them, the newest is {option}{newest}"
    if several := [path for path in inside if is_file(path / wanted)]:
        names = ", ".join(path.name for path in several[:5]) + (", …" if several[5:] else "")
        return f"holds the {plural} {names} in folders of their own: give one of them, such as {option}{several[0]}"
    return None


def _other_format(folder: Path) -> str | None:
    for pattern, what, instead in _FORMATS:
        if found := next(iter(sorted(folder.glob(pattern))), None):
            return f"{what} ({found.name}), not transformers': {instead}"
    return None
