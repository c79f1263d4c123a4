"""Opening the model that a command names: the file, its options checked, and a Runner over it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jmedlite.base.errors import InputMissing, UsageError

from . import console

if TYPE_CHECKING:
    from jmedlite.runtime.load_options import LoadOptions
    from jmedlite.runtime.runner import Runner


def find_gguf(model: str | None) -> Path:
    """The GGUF file that `-m` names; the model quantized last where nothing is named."""
    from jmedlite.api.last_model import last_model

    if not model:
        found = last_model()
        if found is None:
            raise InputMissing("no model given, and none quantized yet; run `jmedlite quantize MODEL`, or give -m FILE")
        return found
    path = Path(model).expanduser()
    if path.is_dir():
        files = sorted(path.glob("*.gguf"))
        if len(files) == 1:
            return files[0]
        listing = ", ".join(f.name for f in files) or "none"
        raise UsageError(f"{model}: is a folder (GGUF files in it: {listing}); name the file, or quantize it first")
    if not path.is_file():
        raise InputMissing(f"{model}: no such GGUF file; make one with `jmedlite quantize {model}`")
    return path


def check_language(language: str | None) -> None:
    """`--lang` must be one of the two, or absent; raises UsageError."""
    if language not in (None, "ja", "en"):
        raise UsageError(f"--lang {language}: expected ja or en")


def open_runner(model: str | None, loading: LoadOptions) -> Runner:
    """The model that a command's options name, loaded; the plan is shown first."""
    from jmedlite.runtime.runner import Runner

    options = vars(loading)
    if loading.lora:
        from jmedlite.convert.adapters.lora import parse_spec

        options = {**options, "lora": [parse_spec(spec) for spec in loading.lora]}
    return Runner(find_gguf(model), on_plan=console.note, **options)


def answer_footer(facts: dict[str, Any], notice: str) -> str:
    """The line under every answer: the model, its licence, and what the answer is not for."""
    return f"— {facts['name']}, licence: {facts['license'] or 'not stated'}. {notice}"
