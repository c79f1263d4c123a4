"""`moments`: the second moments of what enters a model's weights, for rounding with error feedback."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jmedlite.runtime.load_options import LoadOptions

from . import console
from .open_model import find_gguf
from .options import CalibrationText, ExcludeTask, JsonFlag, Overwrite, OwnTextLanguage, spread


@spread
def moments(
    model: Annotated[str | None, typer.Argument(help="GGUF file; default: the last one made.")] = None,
    *,
    text: CalibrationText = None,
    language: OwnTextLanguage = "both",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: NAME.moments.gguf beside it.")] = None,
    ctx: Annotated[int, typer.Option(help="Tokens in a chunk.")] = 512,
    chunks: Annotated[int | None, typer.Option(help="Use only this many chunks.")] = None,
    memory: Annotated[
        str | None, typer.Option(help="For what is summed at once, such as 1GB; default: what is free, 1 to 6 GB.")
    ] = None,
    loading: Annotated[LoadOptions, "threads"],
    exclude_task: ExcludeTask = None,
    overwrite: Overwrite = False,
    as_json: JsonFlag = False,
) -> None:
    """Gather the second moments of what enters each weight, for `quantize --rounding best`."""
    from jmedlite.base.options import parse_memory
    from jmedlite.calibration.moments import gather_moments

    path = find_gguf(model)
    with console.progress("moments") as progress:
        done = gather_moments(
            path,
            texts=text or [],
            language=language,
            out=out,
            ctx=ctx,
            chunks=chunks,
            memory=parse_memory(memory) if memory else None,
            threads=loading.threads,
            exclude_tasks=exclude_task or [],
            overwrite=overwrite,
            progress=progress,
        )
    size = done.path.stat().st_size
    if as_json:
        facts = {"file": str(done.path), "size_bytes": size, "inputs": done.n_inputs, "weights": done.n_weights}
        console.document({**facts, "n_tokens": done.n_tokens, "seconds": round(done.seconds, 2)})
        return
    console.say(f"{done.path}  {console.size(size)}, {done.n_inputs} inputs of {done.n_weights} weights")
    console.note(f"done in {done.seconds:.0f} s ({done.n_tokens:,} tokens)")
    console.note(f"next: jmedlite quantize MODEL --rounding best --moments {done.path}")
