"""`imatrix`: which inputs of each weight matter most, computed by running a model over text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jmedlite.runtime.load_options import LoadOptions

from . import console
from .open_model import find_gguf
from .options import CalibrationText, ExcludeTask, JsonFlag, Overwrite, OwnTextLanguage, spread


@spread
def imatrix(
    model: Annotated[str | None, typer.Argument(help="GGUF file; default: the last one made.")] = None,
    *,
    text: CalibrationText = None,
    language: OwnTextLanguage = "both",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: NAME.imatrix.gguf beside it.")] = None,
    ctx: Annotated[int, typer.Option(help="Tokens in a chunk.")] = 512,
    chunks: Annotated[int | None, typer.Option(help="Use only this many chunks.")] = None,
    loading: Annotated[LoadOptions, "gpu_layers", "threads"],
    process_output: Annotated[bool, typer.Option("--process-output", help="Also for output.weight.")] = False,
    exclude_task: ExcludeTask = None,
    overwrite: Overwrite = False,
    as_json: JsonFlag = False,
) -> None:
    """Compute an importance matrix: which inputs of each weight matter most, by running the model over text."""
    from jmedlite.calibration.compute import compute_imatrix

    path = find_gguf(model)
    with console.progress("calibrating") as progress:
        done = compute_imatrix(
            path,
            texts=text or [],
            language=language,
            out=out,
            ctx=ctx,
            chunks=chunks,
            threads=loading.threads,
            gpu_layers=loading.gpu_layers,
            process_output=process_output,
            exclude_tasks=exclude_task or [],
            overwrite=overwrite,
            progress=progress,
        )
    made = done.imatrix
    if done.missing:
        console.warn(f"{len(done.missing)} weights saw no token, such as {done.missing[0]}; they are not in the file")
    if unseen := made.unseen:
        console.warn(unseen)
    if as_json:
        facts = {"file": str(made.path), "sha256": made.sha256, "datasets": made.datasets, "entries": len(made.weights)}
        sizes = {"chunks": made.chunks, "chunk_size": made.chunk_size, "n_tokens": done.n_tokens}
        console.document({**facts, **sizes, "missing": done.missing, "seconds": round(done.seconds, 2)})
        return
    console.say(f"{made.path}  {len(made.weights)} weights, {made.chunks} chunks of {made.chunk_size} tokens")
    console.note(f"done in {done.seconds:.0f} s ({done.n_tokens / max(1e-9, done.seconds):.0f} tokens/s)")
    console.note(f"next: jmedlite quantize MODEL --imatrix {made.path}")
