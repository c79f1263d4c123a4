"""`verify`: the proof that a GGUF is that base plus those adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from jmedlite.base.errors import DataError

from . import console
from .options import JsonFlag

SHOWN = 20  # tensors that are not what they should be


def verify(
    path: Annotated[Path, typer.Argument(metavar="GGUF", help="The file to prove.")],
    base: Annotated[str, typer.Option(metavar="MODEL", help="What it was made from: folder, GGUF file or Hub id.")],
    lora: Annotated[
        list[str] | None, typer.Option(metavar="ADAPTER[:WEIGHT]", help="The adapters in it; repeatable.")
    ] = None,
    imatrix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The importance matrix it was made with.")
    ] = None,
    moments: Annotated[Path | None, typer.Option(metavar="FILE", help="The second moments it was rounded by.")] = None,
    tolerance: Annotated[
        float, typer.Option(help="Relative distance up to which a tensor passes, for files of another build.")
    ] = 0.0,
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="The base is a GGUF that is quantized already.")
    ] = False,
    encoder: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The encoder it was made with; default: what it says."),
    ] = None,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Follow links in folders to other users' files, too.")
    ] = False,
    threads: Annotated[int | None, typer.Option("--threads", "-j", help="Workers; default: all processors.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Prove that a GGUF is that base plus those adapters: compute every tensor again, and compare."""
    from jmedlite.api.verify import verify as prove

    with console.progress("verifying") as progress:
        proof = prove(
            path,
            base=base,
            lora=lora or [],
            imatrix=imatrix,
            moments=moments,
            tolerance=tolerance,
            allow_requantize=allow_requantize,
            encoder=encoder,
            follow_links=follow_links,
            threads=threads,
            progress=progress,
        )
    report = proof.report
    if as_json:
        console.document(_describe(proof))
    else:
        _show_wrong(report)
        if proof.broken is None:
            console.note("no manifest beside the file, so its SHA-256 was not compared")
    if not report.holds:
        kinds = f"{len(report.wrong)} of {len(report.tensors)} tensors"
        if report.metadata:
            kinds += f" and {len(report.metadata)} metadata keys ({', '.join(report.metadata[:3])})"
        raise DataError(f"{path.name}: NO, {kinds} are not what {base} gives: {report.reason()}")
    if proof.broken:
        raise DataError(f"{', '.join(proof.broken)}: NO, not the SHA-256 of the manifest; damaged or another file")
    if not as_json:
        same = sum(v.state == "identical" for v in report.tensors)
        near = len(report.tensors) - same
        told = f"{same} tensors are identical" + (f", {near} within {tolerance:g}" if near else "")
        console.say(f"yes: {path.name} is {base}{''.join(f' + {a}' for a in lora or [])}; {told}")


def _describe(proof: Any) -> dict[str, Any]:
    return {
        "holds": proof.holds,
        "reason": None if proof.report.holds else proof.report.reason(),
        "metadata": list(proof.report.metadata),
        "broken": proof.broken,
        "tensors": [
            {"name": v.name, "type": v.type, "state": v.state, "distance": v.distance, "blocks": v.blocks}
            for v in proof.report.tensors
        ],
    }


def _show_wrong(report: Any) -> None:
    if not report.wrong:
        return
    worst = sorted(report.wrong, key=lambda v: -v.distance)
    console.table(
        [("tensor", "left"), ("type", "left"), ("state", "left"), ("distance", "right"), ("blocks", "right")],
        [
            [v.name, v.type, v.state, f"{v.distance:.3g}", f"{v.blocks:,} of {v.n_blocks:,}" if v.n_blocks else ""]
            for v in worst[:SHOWN]
        ],
    )
    if len(worst) > SHOWN:
        console.note(f"… and {len(worst) - SHOWN} more")
