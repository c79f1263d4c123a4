"""`inspect`: what a GGUF file is, where it came from, and what its quantization lost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from jmedlite.base.errors import DataError

from . import console
from .options import JsonFlag

SHOWN = 10  # tensors that lost most, and types set for single tensors
# of `jmedlite.made.` (docs/metadata.md): what is shown as it is, by which label; and what has its place elsewhere
LABELS = {
    "quantized": "quantized before", "mix": "mix", "imatrix": "importance", "moments": "error feedback",
    "encoder": "encoder",
}  # fmt: skip
PLACED = ("version", "base", "adapters", "tensor_types", "token_embedding_type", "output_type")


def inspect(
    path: Annotated[Path, typer.Argument(metavar="GGUF", help="A GGUF model; of several files, any one.")],
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Compare the SHA-256 with the manifest's.")] = False,
    as_json: JsonFlag = False,
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
    made, base = dict(facts["made"]), manifest.get("base") or {}
    if facts["imatrix"]:  # of llama-quantize's own keys, where jmedlite's is not there
        made.setdefault("imatrix", ", ".join(f"{k} {v}" for k, v in facts["imatrix"].items()))
    rows = [
        ["file", ", ".join([facts["file"], *facts["files"][1:]])],
        ["name", str(facts["name"] or "not stated")],
        ["licence", str(facts["license"] or "not stated")],
        ["level", _level(facts)],
        ["size", f"{console.size(facts['size_bytes'])}, {facts['n_weights'] / 1e6:,.0f} M weights"],
        [
            "model",
            f"{facts['architecture']}, {facts['n_layer']} layers, {facts['n_vocab']:,} tokens, "
            + (f"trained on contexts of {n:,}" if (n := facts["n_ctx_train"]) else "trained on contexts not stated"),
        ],
        ["tensors", ", ".join(f"{n} × {t}" for t, n in facts["types"].items())],
        ["made from", made.get("base", "not stated")],
    ]
    rows += [["", f"{name}  {sha256}"] for name, sha256 in (base.get("files") or {}).items()]
    rows += [["adapter", entry] for entry in made.get("adapters", "").split("; ") if entry]
    rows += [[label, made[key]] for key, label in LABELS.items() if key in made]
    overrides = made.get("tensor_types", "").split()
    rows += [["tensor types", entry] for entry in overrides[:SHOWN]]
    rows += [["tensor types", f"and {len(overrides) - SHOWN} more"]] if len(overrides) > SHOWN else []
    rows += [["embedding's type", made["token_embedding_type"]]] if "token_embedding_type" in made else []
    rows += [["output's type", made["output_type"]]] if "output_type" in made else []
    # what a later jmedlite wrote, too
    rows += [[key.replace("_", " "), str(value)] for key, value in made.items() if key not in (*LABELS, *PLACED)]
    if made.get("version"):
        versions = manifest.get("versions") or {}
        others = ", ".join(f"{k} {v}" for k, v in versions.items() if k != "jmedlite")
        rows.append(["made by", f"jmedlite {made['version']}" + (f" ({others})" if others else "")])
    rows += [["SHA-256", f"{f['sha256']}  {f['name']}"] for f in manifest.get("files", [])]
    console.table([("", "left"), ("", "left")], rows, named=True)


def _level(facts: dict[str, Any]) -> str:
    """Its name and size. `general.file_type` of a mix says llama.cpp's level next to it, for want of a number."""
    if "mix" in facts["made"]:
        return f"a mix of types next to {facts['level']}, {facts['bits_per_weight']:.2f} bits per weight"
    return f"{facts['level'] or 'unknown'}, {facts['bits_per_weight']:.2f} bits per weight"


def _show_tensors(tensors: list[dict[str, Any]], *, everything: bool) -> None:
    """All tensors, or those that lost most."""
    measured = [t for t in tensors if t["rel_rmse"] is not None]
    shown = tensors if everything else sorted(measured, key=lambda t: -t["rel_rmse"])[:SHOWN]
    if not shown:
        return
    if not everything:
        console.say(f"\nlargest quantization errors, of {len(measured)} tensors:")
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
