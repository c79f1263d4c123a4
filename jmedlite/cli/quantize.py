"""`quantize`: merge adapters and write one GGUF per level, in one pass."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jmedlite.base.errors import UsageError

from . import console
from .options import JsonFlag

if TYPE_CHECKING:
    from jmedlite.api.quantize import QuantizeJob


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
    encoder: Annotated[
        str,
        typer.Option(metavar="NAME", help="Who rounds: ggml, as llama-quantize, or fast (needs jmedlite[fast])."),
    ] = "ggml",
    split_max_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Several files of at most this size, such as 2GB.")
    ] = None,
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="Take a GGUF that is quantized already.")
    ] = False,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Follow links in folders to other users' files, too.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Show types and sizes, write nothing.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Merge adapters and write one GGUF per level, all in one pass over the model."""
    from jmedlite.api.made_models import from_usual
    from jmedlite.api.quantize import as_bytes, plan_quantization
    from jmedlite.base.hub import DEFAULT_MODEL

    if adapter_only:
        if bits or imatrix or split_max_size or encoder != "ggml":
            raise UsageError(
                "--adapter-only: takes no --bits, --imatrix, --encoder or --split-max-size; give --type F32 or F16"
            )
        _export_adapters(model, lora or [], types or [], out, name, follow_links, overwrite, as_json)
        return
    limit = as_bytes(memory)
    job = plan_quantization(
        model or DEFAULT_MODEL,
        lora=lora or [],
        bits=bits or [],
        types=types or [],
        imatrix=imatrix,
        out=out,
        name=name,
        allow_requantize=allow_requantize,
        encoder=encoder,
        follow_links=follow_links,
        split_max_size=as_bytes(split_max_size),
        overwrite=overwrite,
        dry_run=dry_run,
    )
    plan = job.plan
    for warning in plan.warnings:
        console.warn(warning)
    facts = _describe_plan(job)
    if not as_json:
        _show_plan(facts, dry_run)
    if dry_run:
        if as_json:
            console.document(facts)
        return
    with console.progress("quantizing") as progress:
        written = job.run(threads=threads, memory=limit, progress=progress, notify=console.note)
    if as_json:
        for level, done in zip(facts["levels"], written, strict=True):
            level["sha256"] = [f.sha256 for f in done.files]
            facts["seconds"] = round(done.seconds, 2)
        console.document(facts)
        return
    for w in written:
        console.say(f"{w.path}  {console.size(w.size_bytes)}  {w.bits_per_weight:.2f} bits per weight")
    rate = plan.source_bytes / max(1e-9, written[0].seconds)
    console.note(f"done in {written[0].seconds:.0f} s ({console.size(rate)}/s of the original)")
    default = min(written, key=lambda w: from_usual(w.level, w.bits_per_weight)).path
    console.note(f'next: jmedlite ask -m {default} "高血圧の第一選択薬は何ですか。"')


def _export_adapters(
    model: str,
    lora: list[str],
    types: list[str],
    out: Path,
    name: str | None,
    follow_links: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """`quantize --adapter-only`."""
    from jmedlite.api.quantize import export_adapters
    from jmedlite.base.hub import DEFAULT_MODEL

    made = export_adapters(
        model or DEFAULT_MODEL, lora, types=types, out=out, name=name, follow_links=follow_links, overwrite=overwrite
    )
    for warning in made.warnings:
        console.warn(warning)
    if as_json:
        console.document(made.describe())
        return
    console.say(f"{made.path}  {console.size(made.size_bytes)}  changes {made.n_weights} weights")
    for adapter, trained_on in made.trained_on.items():
        console.note(f"  {adapter} was trained on {trained_on}")
    console.note(f'next: jmedlite ask --lora {made.path} "高血圧の第一選択薬は何ですか。"')


def _describe_plan(job: QuantizeJob) -> dict[str, Any]:
    """What `quantize` is about to do, as the JSON document shows it."""
    plan = job.plan
    levels = [
        {
            "level": p.level.name,
            "file": str(p.path),
            "files": [str(f.path) for f in p.files],
            "size_bytes": p.total_bytes,
            "bits_per_weight": round(p.bits_per_weight, 4),
            "types": p.type_counts(),
            "left_to_ggml": plan.left_to_ggml(p),
        }
        for p in plan.levels
    ]
    return {
        "base": job.source.describe(),
        "family": plan.title,
        "license": plan.license,
        "n_weights": plan.n_weights,
        "adapters": [
            {
                "name": a.name,
                "weight": a.weight,
                "changes": len(a.updates),
                "replaces": len(a.replaced),
                "trained_on": a.trained_on,
            }
            for a in plan.adapters
        ],
        "imatrix": plan.imatrix and plan.imatrix.path.name,
        "encoder": plan.encoder.name,
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
        trained_on = f", trained on {a['trained_on']}" if a["trained_on"] else ""
        console.note(f"  + adapter {a['name']} × {a['weight']:g}, changes {a['changes']} weights{replaces}{trained_on}")
    if facts["imatrix"]:
        console.note(f"  + importance matrix {facts['imatrix']}")
    if facts["encoder"] != "ggml":
        left = sorted({name for level in facts["levels"] for name in level["left_to_ggml"]})
        by_ggml = f", but for {', '.join(left)}, which ggml's does" if left else ""
        console.note(f"  + encoder {facts['encoder']}{by_ggml}")
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
