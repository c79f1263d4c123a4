"""Opening the model that a command names: the file, its options checked, and a Runner over it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jmedlite.base.errors import InputMissing, UsageError, shortened
from jmedlite.base.looking import exists, is_dir
from jmedlite.base.publishing import check_published
from jmedlite.base.wording import some

from . import console

if TYPE_CHECKING:
    from jmedlite.api.made_models import MadeModel
    from jmedlite.runtime.load_options import LoadOptions
    from jmedlite.runtime.runner import Runner
    from jmedlite.runtime.sampling import Sampling

SHOWN = 5  # names in a message


def find_gguf(model: str | None) -> Path:
    """The GGUF file that `-m` names, by its path or as `jmedlite models` does; the default model where nothing is."""
    from jmedlite.api.made_models import made_models

    if not model:
        found = made_models().default()
        if found is None:
            raise InputMissing("no model given, and none quantized yet; run `jmedlite quantize MODEL`, or give -m FILE")
        return found
    path = Path(model).expanduser()
    if not exists(path) and (made := made_models().find(model)):
        return made
    if is_dir(path):
        files = sorted(path.glob("*.gguf"))
        if len(files) == 1:
            return files[0]
        listing = ", ".join(f.name for f in files)
        raise UsageError(
            f"{model}: is a folder (GGUF files in it: {listing or 'none'}); name the file, or quantize it first"
        )
    if not exists(path):
        check_published([path])
        raise InputMissing(f"{model}: no such GGUF file; {_what_there_is(path, made_models().there)}")
    return path


def _what_there_is(path: Path, made: list[MadeModel]) -> str:
    """The models that a wrong name may have meant."""
    beside = sorted(f.name for f in path.parent.glob("*.gguf")) if is_dir(path.parent) else []
    if beside:
        return f"in that folder there are {some(beside, SHOWN)}"
    if made:
        names = list(dict.fromkeys(m.file.name for m in reversed(made)))
        return f"`jmedlite models` lists {some(names, SHOWN)}"
    return f"make one with `jmedlite quantize {path.with_suffix('') if path.suffix == '.gguf' else path}`"


def take_model(model: str | None, words: list[str]) -> tuple[str | None, list[str]]:
    """The model that stands before a question's words, and the rest; raises UsageError where -m names one as well."""
    if not words or not words[0].lower().endswith(".gguf"):
        return model, words
    if model and Path(model) != Path(words[0]):
        raise UsageError(f"two models: -m {model} and {words[0]}; give one")
    return words[0], words[1:]


def check_language(language: str | None) -> None:
    """`--lang` must be one of the two, or absent; raises UsageError."""
    if language not in (None, "ja", "en"):
        raise UsageError(f"--lang {language}: expected ja or en")


def open_runner(model: str | None, loading: LoadOptions, sampling: Sampling) -> Runner:
    """The model that a command's options name, loaded; its plan, and what in a schema does nothing, are shown first."""
    from jmedlite.runtime.runner import Runner
    from jmedlite.runtime.state_cache import nothing_kept

    for warning in sampling.warnings():
        console.warn(warning)
    if loading.cache and (why := nothing_kept()):
        console.note(f"(nothing is cached, every prompt is read anew: {why})")
    options = vars(with_adapters(loading))
    return Runner(find_gguf(model), on_plan=console.note, json_schema=sampling.json_schema, **options)


def with_adapters(loading: LoadOptions) -> LoadOptions:
    """The same with its adapters as pairs of a path and a weight, of FILE[:WEIGHT] as they were typed."""
    if not loading.lora:
        return loading
    from jmedlite.convert.adapters.lora import parse_spec

    return replace(loading, lora=tuple(parse_spec(spec) for spec in loading.lora))


def answer_footer(facts: dict[str, Any], notice: str) -> str:
    """The line under every answer: the model, its licence, and what the answer is not for."""
    name, terms = shortened(facts["name"]), shortened(facts["license"] or "not stated")
    return f"— {name}, licence: {terms}. {notice}"
