"""Base names: is the model that an adapter says it was trained on the one it is given?"""

from __future__ import annotations

import re
from pathlib import Path

# How copies of one model in another number format or file format are called on the Hub.
_COPY = re.compile(
    r"[-_.](unsloth|bnb|bitsandbytes|gptq|awq|gguf|mlx|hf|dynamic|quantized|nf4|fp4|mxfp4|nvfp4|fp8|fp16|bf16|f16|"
    r"(q|int|w)?[348](-?bits?)?|w[48]a(8|16))$"
)


def hub_name(folder: Path) -> str | None:
    """owner/name of a snapshot in the Hub's cache (`models--owner--name/snapshots/COMMIT`)."""
    if folder.parent.name != "snapshots" or not folder.parent.parent.name.startswith("models--"):
        return None
    return folder.parent.parent.name.removeprefix("models--").replace("--", "/")


def plain_name(name: str) -> str:
    """A model's name without owner or folders, and without what tells copies of other formats apart."""
    parts = [part for part in re.split(r"[/\\]", name.strip()) if part not in ("", ".", "..")]
    if len(parts) > 2 and (found := hub_name(Path(*parts))):
        parts = found.split("/")
    last = parts[-1].lower() if parts else ""
    while (shorter := _COPY.sub("", last)) != last and shorter:
        last = shorter
    return re.sub(r"[\s_]+", "-", last)


def other_base(adapter: str, trained_on: str | None, names: tuple[str, ...]) -> list[str]:
    """A warning where an adapter was trained on another model than the one known by `names`."""
    if trained_on and is_another(trained_on, names):
        return [f"{adapter}: was trained on {trained_on}, the base calls itself {names[0]}"]
    return []


def is_another(trained_on: str, names: tuple[str, ...]) -> bool:
    """Is a model known by `names` another one? Never where nothing is known of either."""
    own = {plain_name(name) for name in names} - {""}
    return bool(own and (given := plain_name(trained_on)) and given not in own)
