"""`sensitivity`: what rounding each weight costs a model's answers, for mixes that spend bits where they matter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jmedlite.runtime.load_options import LoadOptions

from . import console
from .open_model import find_gguf
from .options import ExcludeTask, JsonFlag, Overwrite, OwnTextLanguage, spread


@spread
def sensitivity(
    model: Annotated[str | None, typer.Argument(help="GGUF file, 16 or 8 bits; default: the last one made.")] = None,
    *,
    imatrix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Importance matrix (see `jmedlite imatrix`).")
    ] = None,
    text: Annotated[
        list[Path] | None, typer.Option(help="Text to answer; repeatable. Default: jmedlite's own medical text.")
    ] = None,
    language: OwnTextLanguage = "both",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: NAME.sensitivity.json beside it.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of the text, evaluated once for each weight.")] = 256,
    ctx: Annotated[int, typer.Option(help="Tokens in a chunk.")] = 256,
    every: Annotated[int, typer.Option(help="Measure the weights of every Nth block only.")] = 2,
    probe: Annotated[str, typer.Option(metavar="TYPE", help="The type that weights are rounded to.")] = "Q3_K",
    loading: Annotated[LoadOptions, "threads"],
    exclude_task: ExcludeTask = None,
    overwrite: Overwrite = False,
    as_json: JsonFlag = False,
) -> None:
    """Measure what rounding each weight costs the answers, so that `quantize` can spend bits where they matter."""
    from jmedlite.calibration.sensitivity import compute_sensitivities

    path = find_gguf(model)
    with console.progress("weights") as progress:
        done = compute_sensitivities(
            path,
            imatrix=imatrix,
            texts=text or [],
            language=language,
            out=out,
            tokens=tokens,
            ctx=ctx,
            every=every,
            probe=probe,
            threads=loading.threads,
            exclude_tasks=exclude_task or [],
            overwrite=overwrite,
            progress=progress,
        )
    made, content = done.sensitivities, done.sensitivities.content
    n_measured = sum(entry.measured for entry in content.weights.values())
    if as_json:
        facts = {"file": str(made.path), "sha256": made.sha256, "datasets": content.datasets, "every": content.every}
        sizes = {"weights": len(content.weights), "measured": n_measured, "n_positions": content.n_positions}
        console.document({**facts, **sizes, "seconds": round(done.seconds, 2)})
        return
    console.say(f"{made.path}  {n_measured} weights measured at {content.n_positions} positions")
    console.note(f"done in {done.seconds:.0f} s")
    console.note(f"next: jmedlite quantize MODEL --target-bpw 4.5 --sensitivity {made.path}")
