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


SHOWN = 10  # types set for single tensors


def quantize(
    model: Annotated[str, typer.Argument(help="Checkpoint folder, GGUF file, or Hub id owner/name[@revision].")] = "",
    lora: Annotated[
        list[str] | None, typer.Option(metavar="ADAPTER[:WEIGHT]", help="LoRA adapter to merge; repeatable.")
    ] = None,
    bits: Annotated[list[int] | None, typer.Option("--bits", "-b", help="2 3 4 5 6 8 or 16; repeatable.")] = None,
    types: Annotated[
        list[str] | None, typer.Option("--type", "-t", help="llama.cpp's name, such as Q4_K_S; repeatable.")
    ] = None,
    target_bpw: Annotated[
        list[float] | None,
        typer.Option(metavar="BITS", help="A mix of types of so many bits per weight, such as 4.5; repeatable."),
    ] = None,
    target_size: Annotated[
        list[str] | None, typer.Option(metavar="SIZE", help="A mix for a file of this size, such as 4.7GB; repeatable.")
    ] = None,
    fit_ram: Annotated[
        list[str] | None, typer.Option(metavar="SIZE", help="A mix that runs in so much memory, such as 6GB.")
    ] = None,
    fit_ctx: Annotated[
        int | None, typer.Option(metavar="TOKENS", help="Context that --fit-ram has room for; default: 4096.")
    ] = None,
    sensitivity: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where bits matter (see `jmedlite sensitivity`).")
    ] = None,
    imatrix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Importance matrix (see `jmedlite imatrix`).")
    ] = None,
    rounding: Annotated[
        str | None, typer.Option(help="ggml (as llama.cpp; default), or best: with error feedback, needs --moments.")
    ] = None,
    moments: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Second moments (see `jmedlite moments`).")
    ] = None,
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(metavar="REGEX=TYPE", help="Type of tensors by name; repeatable, the first match decides."),
    ] = None,
    tensor_type_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="More of these, with spaces or line breaks between.")
    ] = None,
    token_embedding_type: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Type of the token embedding, such as Q8_0.")
    ] = None,
    output_type: Annotated[
        str | None,
        typer.Option("--output-type", "--output-tensor-type", metavar="TYPE", help="Type of the output tensor (head)."),
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
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep what is finished if the run is cut; go on where one was.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Merge adapters and write one GGUF per level, all in one pass over the model."""
    from jmedlite.api.budgets import Targets
    from jmedlite.api.made_models import from_usual
    from jmedlite.api.quantize import as_bytes, plan_quantization
    from jmedlite.base.hub import DEFAULT_MODEL

    if adapter_only:
        if bits or imatrix or split_max_size or encoder != "ggml":
            raise UsageError(
                "--adapter-only: takes no --bits, --imatrix, --encoder or --split-max-size; give --type F32 or F16"
            )
        if tensor_type or tensor_type_file or token_embedding_type or output_type:
            raise UsageError(
                "--adapter-only: takes no --tensor-type, --tensor-type-file, --token-embedding-type or --output-type: "
                "all of an adapter has one type; give --type F32 or F16"
            )
        if target_bpw or target_size or fit_ram or fit_ctx or sensitivity or rounding or moments:
            raise UsageError(
                "--adapter-only: takes no --target-bpw, --target-size, --fit-ram, --sensitivity, --rounding or "
                "--moments: an adapter is kept in 16 or 32 bits; give --type F32 or F16"
            )
        _export_adapters(model, lora or [], types or [], out, name, follow_links, overwrite, as_json)
        return
    limit = as_bytes(memory)
    targets = Targets(target_bpw or (), target_size or (), fit_ram or (), fit_ctx, sensitivity)
    with console.progress("mixing" if targets.any else None) as progress:
        job = plan_quantization(
            model or DEFAULT_MODEL,
            lora=lora or [],
            bits=bits or [],
            types=types or [],
            targets=targets,
            imatrix=imatrix,
            rounding=rounding,
            moments=moments,
            tensor_types=tensor_type or [],
            tensor_type_file=tensor_type_file,
            token_embedding_type=token_embedding_type,
            output_type=output_type,
            out=out,
            name=name,
            allow_requantize=allow_requantize,
            encoder=encoder,
            follow_links=follow_links,
            split_max_size=as_bytes(split_max_size),
            overwrite=overwrite,
            resume=resume,
            dry_run=dry_run,
            threads=threads,
            progress=progress,
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
        "quantized": plan.quantized,
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
        "moments": plan.moments and plan.moments.path.name,
        "mixes": [
            {
                "level": mix.level.name,
                "asked": mix.asked,
                "predicted_kl": round(mix.predicted_kl, 6),
                "beside": [
                    {"level": name, "bits_per_weight": round(bits, 4), "predicted_kl": round(kl, 6)}
                    for name, bits, kl in beside
                ],
            }
            for mix, beside in zip(job.mixed.mixes, job.mixed.beside, strict=True)
        ],
        "overrides": [
            {"option": rule.option, "pattern": rule.pattern or None, "type": rule.type.name, "n_tensors": n}
            for rule, n in plan.rules
        ],
        "encoder": plan.encoder.name,
        "levels": levels,
    }


def _show_plan(facts: dict[str, Any], dry_run: bool) -> None:
    base = facts["base"]
    console.note(
        f"{base['name']}: {facts['n_weights'] / 1e6:,.0f} M weights, {facts['family']}, "
        f"licence: {facts['license'] or 'not stated in the model card'}"
    )
    for a in facts["adapters"]:
        replaces = f", replaces {a['replaces']}" if a["replaces"] else ""
        trained_on = f", trained on {a['trained_on']}" if a["trained_on"] else ""
        console.note(f"  + adapter {a['name']} × {a['weight']:g}, changes {a['changes']} weights{replaces}{trained_on}")
    if facts["imatrix"]:
        console.note(f"  + importance matrix {facts['imatrix']}")
    if facts["moments"]:
        console.note(f"  + error feedback by the second moments {facts['moments']}")
    for mix in facts["mixes"]:
        console.note(f"  {mix['level']} ({mix['asked']}): predicted {mix['predicted_kl']:.4f} nats a token")
        for other in mix["beside"]:
            console.note(
                f"    beside it, {other['level']} ({other['bits_per_weight']:.2f} bits): {other['predicted_kl']:.4f}"
            )
    overrides = facts["overrides"]
    for o in overrides[:SHOWN]:
        value = f"{o['pattern']}={o['type']}" if o["pattern"] else o["type"]
        console.note(f"  + {o['option']} {value}, decides the type of {o['n_tensors']} tensor(s)")
    if len(overrides) > SHOWN:
        console.note(f"  + {len(overrides) - SHOWN} more of these")
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
