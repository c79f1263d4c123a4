"""The command line: parses, calls, prints. Everything heavy is imported inside the command that needs it."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

# The pass has its own worker threads; BLAS threads under each would only fight them. Set before numpy loads.
for _name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
    os.environ.setdefault(_name, "1")

import typer

from jmedlite import __version__
from jmedlite.base.errors import ClosedPipe, Interrupted, JmedliteError, UsageError

from . import (
    ask as cli_ask,
)
from . import (
    bench as cli_bench,
)
from . import (
    console,
)
from . import (
    demo as cli_demo,
)
from . import (
    inspect as cli_files,
)
from . import (
    report as cli_report,
)

if TYPE_CHECKING:
    from jmedlite.api.quantize import Task

app = typer.Typer(
    name="jmedlite",
    help="Medical language models on one laptop: merge LoRA, quantize to GGUF in one pass, ask offline.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "JMEDLITE"},
)

Json = cli_files.Json


def _version(wanted: bool) -> None:
    if wanted:
        console.out(f"jmedlite {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Medical language models on one laptop: merge LoRA, quantize to GGUF in one pass, ask offline."""


@app.command()
def quantize(
    model: Annotated[str, typer.Argument(help="Checkpoint folder, GGUF file, or Hub id owner/name[@revision].")] = "",
    lora: Annotated[
        list[str] | None, typer.Option(metavar="ADAPTER[:WEIGHT]", help="LoRA adapter to merge; repeatable.")
    ] = None,
    bits: Annotated[list[int] | None, typer.Option("--bits", "-b", help="2 3 4 5 6 8 or 16; repeatable.")] = None,
    types: Annotated[
        list[str] | None, typer.Option("--type", "-t", help="llama.cpp's name, such as Q4_K_S; repeatable.")
    ] = None,
    imatrix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Importance matrix (see `jmedlite imatrix`).")
    ] = None,
    adapter_only: Annotated[
        bool, typer.Option("--adapter-only", help="Write the adapter itself as a GGUF, for `ask --lora`.")
    ] = False,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the files.")] = Path(),
    name: Annotated[str | None, typer.Option(help="Beginning of the file names.")] = None,
    threads: Annotated[int | None, typer.Option("--threads", "-j", help="Workers; default: all processors.")] = None,
    memory: Annotated[str | None, typer.Option(help="Bound of the pass, such as 1GB.")] = None,
    split_max_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Several files of at most this size, such as 2GB.")
    ] = None,
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="Take a GGUF that is quantized already.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Show types and sizes, write nothing.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    as_json: Json = False,
) -> None:
    """Merge adapters and write one GGUF per level, all in one pass over the model."""
    from jmedlite.api.quantize import as_bytes, plan_quantization
    from jmedlite.base.hub import DEFAULT_MODEL

    if adapter_only:
        if bits or imatrix or split_max_size:
            raise UsageError("--adapter-only: takes no --bits, --imatrix or --split-max-size; give --type F32 or F16")
        _export_adapters(model, lora or [], types or [], out, name, overwrite, as_json)
        return
    limit = as_bytes(memory)
    task = plan_quantization(
        model or DEFAULT_MODEL,
        lora=lora or [],
        bits=bits or [],
        types=types or [],
        imatrix=imatrix,
        out=out,
        name=name,
        allow_requantize=allow_requantize,
        split_max_size=as_bytes(split_max_size),
        overwrite=overwrite,
        dry_run=dry_run,
    )
    plan = task.plan
    for warning in plan.warnings:
        console.warn(warning)
    facts = _describe_plan(task)
    if not as_json:
        _show_plan(facts, dry_run)
    if dry_run:
        if as_json:
            console.document(facts)
        return
    with console.progress("quantizing") as progress:
        written = task.run(threads=threads, memory=limit, progress=progress)
    if as_json:
        for level, done in zip(facts["levels"], written, strict=True):
            level["sha256"] = [f.sha256 for f in done.files]
            facts["seconds"] = round(done.seconds, 2)
        console.document(facts)
        return
    for w in written:
        console.out(f"{w.path}  {console.size(w.size_bytes)}  {w.bits_per_weight:.2f} bits per weight")
    rate = plan.source_bytes / max(1e-9, written[0].seconds)
    console.note(f"done in {written[0].seconds:.0f} s ({console.size(rate)}/s of the original)")
    console.note(f'next: jmedlite ask -m {written[-1].path} "高血圧の第一選択薬は何ですか。"')


def _export_adapters(
    model: str, lora: list[str], types: list[str], out: Path, name: str | None, overwrite: bool, as_json: bool
) -> None:
    """`quantize --adapter-only`."""
    from jmedlite.api.quantize import export_adapters
    from jmedlite.base.hub import DEFAULT_MODEL

    made = export_adapters(model or DEFAULT_MODEL, lora, types=types, out=out, name=name, overwrite=overwrite)
    for warning in made.warnings:
        console.warn(warning)
    if as_json:
        console.document(made.describe())
        return
    console.out(f"{made.path}  {console.size(made.size_bytes)}  changes {made.n_weights} weights")
    console.note(f'next: jmedlite ask --lora {made.path} "高血圧の第一選択薬は何ですか。"')


def _describe_plan(task: Task) -> dict[str, Any]:
    """What `quantize` is about to do, as the JSON document shows it."""
    plan = task.plan
    levels = [
        {
            "level": p.level.name,
            "file": str(p.path),
            "files": [str(f.path) for f in p.files],
            "size_bytes": p.total_bytes,
            "bits_per_weight": round(p.bits_per_weight, 4),
            "types": p.type_counts(),
        }
        for p in plan.levels
    ]
    return {
        "base": task.source.describe(),
        "family": plan.title,
        "license": plan.license,
        "n_weights": plan.n_weights,
        "adapters": [
            {"name": a.name, "weight": a.weight, "changes": len(a.updates), "replaces": len(a.replaced)}
            for a in plan.adapters
        ],
        "imatrix": plan.imatrix and plan.imatrix.path.name,
        "levels": levels,
    }


def _show_plan(facts: dict[str, Any], dry_run: bool) -> None:
    base = facts["base"]
    console.note(
        f"{base['name']}: {facts['family']}, {facts['n_weights'] / 1e6:,.0f} M weights, "
        f"licence: {facts['license'] or 'not stated in the model card'}"
    )
    for a in facts["adapters"]:
        replaces = f", replaces {a['replaces']}" if a["replaces"] else ""
        console.note(f"  + adapter {a['name']} × {a['weight']:g}, changes {a['changes']} weights{replaces}")
    if facts["imatrix"]:
        console.note(f"  + importance matrix {facts['imatrix']}")
    if dry_run:
        console.table(
            [("level", "left"), ("size", "right"), ("bits/weight", "right"), ("tensors by type", "left")],
            [
                [
                    level["level"],
                    console.size(level["size_bytes"]),
                    f"{level['bits_per_weight']:.2f}",
                    ", ".join(f"{n} × {t}" for t, n in level["types"].items()),
                ]
                for level in facts["levels"]
            ],
        )
    else:
        total = sum(level["size_bytes"] for level in facts["levels"])
        names = ", ".join(level["level"] for level in facts["levels"])
        n_files = sum(len(level["files"]) for level in facts["levels"])
        console.note(f"  → {names}: {console.size(total)} in {n_files} file(s)")


@app.command()
def imatrix(
    model: Annotated[str | None, typer.Argument(help="GGUF file; default: the last one made.")] = None,
    text: Annotated[
        list[Path] | None, typer.Option(help="Calibration text; repeatable. Default: jmedlite's own medical text.")
    ] = None,
    language: Annotated[str, typer.Option("--lang", help="Of jmedlite's own text: ja, en or both.")] = "both",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: NAME.imatrix.gguf beside it.")] = None,
    ctx: Annotated[int, typer.Option(help="Tokens in a chunk.")] = 512,
    chunks: Annotated[int | None, typer.Option(help="Use only this many chunks.")] = None,
    gpu_layers: Annotated[str, typer.Option(help="auto, all or a number.")] = "auto",
    threads: Annotated[int | None, typer.Option("--threads", "-j", help="Default: physical cores.")] = None,
    process_output: Annotated[bool, typer.Option("--process-output", help="Also for output.weight.")] = False,
    exclude_task: Annotated[
        list[Path] | None, typer.Option(metavar="JSONL", help="Refuse text with items of this task; repeatable.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")] = False,
    as_json: Json = False,
) -> None:
    """Compute an importance matrix: which inputs of each weight matter most, by running the model over text."""
    from jmedlite.calibration.compute import compute_imatrix

    path = cli_ask.find_gguf(model)
    with console.progress("calibrating") as progress:
        done = compute_imatrix(
            path,
            texts=text or [],
            language=language,
            out=out,
            ctx=ctx,
            chunks=chunks,
            threads=threads,
            gpu_layers=gpu_layers,
            process_output=process_output,
            exclude_tasks=exclude_task or [],
            overwrite=overwrite,
            progress=progress,
        )
    made = done.imatrix
    if done.missing:
        console.warn(f"{len(done.missing)} weights saw no token, such as {done.missing[0]}; they are not in the file")
    if as_json:
        facts = {"file": str(made.path), "sha256": made.sha256, "datasets": made.datasets, "entries": len(made.weights)}
        sizes = {"chunks": made.chunks, "chunk_size": made.chunk_size, "n_tokens": done.n_tokens}
        console.document({**facts, **sizes, "missing": done.missing, "seconds": round(done.seconds, 2)})
        return
    console.out(f"{made.path}  {len(made.weights)} weights, {made.chunks} chunks of {made.chunk_size} tokens")
    console.note(f"done in {done.seconds:.0f} s ({done.n_tokens / max(1e-9, done.seconds):.0f} tokens/s)")
    console.note(f"next: jmedlite quantize MODEL --imatrix {made.path}")


app.command()(cli_ask.ask)
app.command()(cli_ask.chat)
app.command()(cli_ask.doctor)
app.command()(cli_bench.bench)
app.command()(cli_demo.demo)
app.command()(cli_files.inspect)
app.command()(cli_files.verify)
app.command()(cli_report.report)
app.command()(cli_report.recommend)


def main() -> None:
    """Entry point: every expected fault becomes one line and its exit code."""
    for stream in (sys.stdout, sys.stderr):
        # a pipe on Windows has the code page of the system, which may lack what a model writes
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() != "utf-8":
            stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        app()
    except ClosedPipe as e:
        sys.exit(e.exit_code)
    except JmedliteError as e:
        console.error(str(e))
        sys.exit(e.exit_code)
    except KeyboardInterrupt:
        console.note("")
        sys.exit(Interrupted.exit_code)


if __name__ == "__main__":
    main()
