"""`pack`: a folder to carry into a house without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import console
from .open_model import find_gguf
from .options import JsonFlag


def pack(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make, on the stick or to be copied there.")],
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="GGUF file, or a name of `jmedlite models`; repeatable."),
    ] = None,
    wheels: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of wheels; default: pip makes them, for this system.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="F.html", help="A report's page, or a run folder that has one.")
    ] = None,
    task: Annotated[
        list[Path] | None, typer.Option(metavar="FOLDER", help="Folder or file of benchmark questions; repeatable.")
    ] = None,
    platform: Annotated[
        str | None,
        typer.Option(help="linux-x86_64, linux-arm64, macos-arm64 or windows-x86_64; default: this system."),
    ] = None,
    python: Annotated[str | None, typer.Option(metavar="3.X", help="Python there; default: this one.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a folder that `pack` made.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Show what it would hold, write nothing.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Make a folder that installs jmedlite and its models on a machine without a network."""
    from jmedlite.api.pack import plan_pack

    plan = plan_pack(
        out,
        [find_gguf(m) for m in model or [""]],
        wheels=wheels,
        report=report,
        tasks=task or [],
        platform=platform,
        python=python,
        overwrite=overwrite,
    )
    told = len(plan.warnings)
    for warning in plan.warnings:
        console.warn(warning)
    if not as_json:
        _show(plan.describe(), plan.size_bytes())
    if dry_run:
        if as_json:
            console.document({**plan.describe(), "size_bytes": plan.size_bytes()})
        return
    with console.progress() as progress:
        digest = plan.run(progress, console.note)
    for warning in plan.warnings[told:]:
        console.warn(warning)
    if as_json:
        console.document({**plan.describe(), "size_bytes": plan.n_bytes, "folder": str(out), "sha256": digest})
        return
    console.out(str(out))
    console.note(f"SHA-256 of its SHA256SUMS, which vouches for all of it: {digest}")
    console.note(f"next: copy it to the other machine, and open {out / 'README.html'}")


def _show(about: dict[str, Any], n_bytes: int) -> None:
    console.note(f"for {about['title']}, Python {about['python']}: {console.size(n_bytes)}")
    for m in about["models"]:
        console.note(f"  {m['file']}  {console.size(m['size_bytes'])}, licence: {m['license'] or 'not stated'}")
    wheels = about["wheels"]
    console.note(f"  wheels: {len(wheels)}" if wheels else "  wheels: made by pip (their size is guessed)")
    for kind in ("tasks", "report"):
        if about[kind]:
            console.note(f"  {kind}: {about[kind] if kind == 'report' else ', '.join(about[kind])}")
