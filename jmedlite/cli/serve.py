"""`serve`: a page to ask on in the browser, and an OpenAI-compatible API, on this machine."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Annotated, Any

import typer

from jmedlite.base.errors import UsageError, shortened
from jmedlite.runtime.load_options import LoadOptions
from jmedlite.serve.options import ServeOptions

from . import console
from .open_model import find_gguf, take_model, with_adapters
from .options import ModelFile, spread


@spread
def serve(
    file: Annotated[str | None, typer.Argument(metavar="[MODEL.gguf]", help="GGUF file; default: as --model.")] = None,
    *,
    model: ModelFile = None,
    options: ServeOptions,
    loading: Annotated[
        LoadOptions, "ctx", "gpu_layers", "n_cpu_moe", "kv_type", "flash_attn", "threads", "lora", "force"
    ],
) -> None:
    """Serve a page to ask on and an OpenAI-compatible API, to this machine alone unless you say otherwise."""
    from jmedlite.runtime.chat_template import NOTICE
    from jmedlite.serve.run import serve as run

    model, others = take_model(model, [file] if file else [])
    if others and model:
        raise UsageError(f"two models: -m {model} and {file}; give one")
    path = find_gguf(model or file)

    def started(address: str, key: str | None) -> None:
        console.out(address)
        if key:
            console.note(f"key (shown this once): {key}")
        console.note(f"{' '.join(NOTICE.values())} Ctrl-C ends it.")
        if options.open:  # beside the server, since a browser in the terminal would hold it up
            threading.Thread(target=open_page, args=(address,), daemon=True).start()

    run(path, options, with_adapters(loading), more=_judged(path), on_plan=console.note, on_start=started)


def open_page(address: str) -> None:
    """Show the page in the browser, or say that there is none."""
    import webbrowser

    if not webbrowser.open(address):
        console.note(f"no browser could be opened; open {address} in yours")


def _judged(path: Path) -> dict[str, Any]:
    """The file's level, and its report's word on it, where there are such."""
    from jmedlite.api.made_models import made_models
    from jmedlite.base.gguf import level_name, read_header

    level = level_name(read_header(path).metadata.get("general.file_type"))
    known = made_models()
    made = next((m for m in known.there if m.file == path.resolve() or m.file == path), None)
    verdict = known.verdict_of(made) if made else None
    return {"level": level, "size": path.stat().st_size, "verdict": verdict and shortened(str(verdict.reason))}
