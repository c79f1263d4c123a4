"""The commands that look at finished files: `inspect` and `verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from jmedlite.base.errors import DataError

from . import console

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
SHOWN = 10


def inspect(
    path: Annotated[Path, typer.Argument(metavar="GGUF", help="A GGUF model; of several files, any one.")],
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Compare the SHA-256 with the manifest's.")] = False,
    as_json: Json = False,
) -> None:
    """Show what a GGUF file is, where it came from, and what its quantization lost."""
    from jmedlite.api.verify import inspect as look

    facts = look(path, check=check)
    broken = facts.get("broken")
    if as_json:
        console.document(facts)
    else:
        _show_facts(facts)
        _show_tensors(facts["tensors"], everything=tensors)
        if check and broken is None:
            console.note("no manifest beside the file: nothing to compare its SHA-256 with")
        elif check and not broken:
            console.note("SHA-256 as in the manifest")
    if broken:
        raise DataError(f"{', '.join(broken)}: not the SHA-256 of the manifest; the file is damaged or another")


def _show_facts(facts: dict[str, Any]) -> None:
    manifest = facts["manifest"] or {}
    made, base = facts["made"], manifest.get("base") or {}
    rows = [
        ["file", ", ".join(facts["files"])],
        ["name", str(facts["name"] or "not stated")],
        ["licence", str(facts["license"] or "not stated")],
        ["level", f"{facts['level'] or 'unknown'}, {facts['bits_per_weight']:.2f} bits per weight"],
        ["size", f"{console.size(facts['size_bytes'])}, {facts['n_weights'] / 1e6:,.0f} M weights"],
        [
            "model",
            f"{facts['architecture']}, {facts['n_layer']} layers, {facts['n_vocab']:,} tokens, trained on contexts of "
            f"{facts['n_ctx_train']:,}",
        ],
        ["tensors", ", ".join(f"{n} × {t}" for t, n in facts["types"].items())],
        ["made from", made.get("base", "not stated")],
    ]
    rows += [["", f"{name}  {sha256}"] for name, sha256 in (base.get("files") or {}).items()]
    rows += [["adapter", entry] for entry in made.get("adapters", "").split("; ") if entry]
    if facts["imatrix"]:
        rows.append(["importance", made.get("imatrix") or ", ".join(f"{k} {v}" for k, v in facts["imatrix"].items())])
    if made.get("version"):
        versions = manifest.get("versions") or {}
        others = ", ".join(f"{k} {v}" for k, v in versions.items() if k != "jmedlite")
        rows.append(["made by", f"jmedlite {made['version']}" + (f" ({others})" if others else "")])
    rows += [["SHA-256", f"{f['sha256']}  {f['name']}"] for f in manifest.get("files", [])]
    console.table([("", "left"), ("", "left")], rows)


def _show_tensors(tensors: list[dict[str, Any]], *, everything: bool) -> None:
    """All tensors, or those that lost most."""
    measured = [t for t in tensors if t["rel_rmse"] is not None]
    shown = tensors if everything else sorted(measured, key=lambda t: -t["rel_rmse"])[:SHOWN]
    if not shown:
        return
    if not everything:
        console.out(f"\nlargest quantization errors, of {len(measured)} tensors:")
    console.table(
        [("tensor", "left"), ("type", "left"), ("shape", "right"), ("relative error", "right")],
        [
            [
                t["name"],
                t["type"],
                " × ".join(f"{n:,}" for n in t["shape"]),
                "not measured" if t["rel_rmse"] is None else f"{t['rel_rmse']:.3%}",
            ]
            for t in shown
        ],
    )


def verify(
    path: Annotated[Path, typer.Argument(metavar="GGUF", help="The file to prove.")],
    base: Annotated[str, typer.Option(metavar="MODEL", help="What it was made from: folder, GGUF file or Hub id.")],
    lora: Annotated[
        list[str] | None, typer.Option(metavar="ADAPTER[:WEIGHT]", help="The adapters in it; repeatable.")
    ] = None,
    imatrix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The importance matrix it was made with.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="Relative distance up to which a tensor passes, for files of another build.")
    ] = 0.0,
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="The base is a GGUF that is quantized already.")
    ] = False,
    threads: Annotated[int | None, typer.Option("--threads", "-j", help="Workers; default: all processors.")] = None,
    as_json: Json = False,
) -> None:
    """Prove that a GGUF is that base plus those adapters: compute every tensor again, and compare."""
    from jmedlite.api.verify import verify as prove

    with console.progress("verifying") as progress:
        proof = prove(
            path,
            base=base,
            lora=lora or [],
            imatrix=imatrix,
            tolerance=tolerance,
            allow_requantize=allow_requantize,
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
        console.out(f"yes: {path.name} is {base}{''.join(f' + {a}' for a in lora or [])}; {told}")


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
            for v in worst[: 2 * SHOWN]
        ],
    )
    if len(worst) > 2 * SHOWN:
        console.note(f"… and {len(worst) - 2 * SHOWN} more")
