"""`models`: the GGUF files that this user made, whether they fit, and what a report said of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jmedlite.base.language import localized

from . import console
from .options import JsonFlag

if TYPE_CHECKING:
    from pathlib import Path

    from jmedlite.api.made_models import MadeModel, MadeModels
    from jmedlite.runtime.offload import Machine


def models(as_json: JsonFlag = False) -> None:
    """List the models that were quantized here: level, size, whether they fit this machine, and their report's word."""
    from jmedlite.api.made_models import made_models
    from jmedlite.runtime.fitting import this_machine

    known = made_models()
    default = None if known.chosen and not known.chosen_is_there else known.default()
    machine = this_machine()
    rows = [_describe(m, known, default, machine) for m in reversed(known.there)]
    if as_json:
        console.document({"models": rows, "chosen": known.chosen, "default": default and str(default)})
        return
    if not rows:
        console.note("no model was quantized here yet; begin with `jmedlite quantize MODEL`")
        return
    columns = [("", "left"), ("model", "left"), ("level", "left"), ("size", "right"), ("fits", "left"),
               ("its report", "left"), ("folder", "left")]  # fmt: skip
    console.table(
        columns,
        [
            ["*" if row["default"] else "", row["name"], row["level"], console.size(row["size_bytes"]),
             {True: localized("yes"), False: localized("no"), None: "?"}[row["fits"]],
             localized("chosen") if row["verdict"] else "", row["folder"]]
            for row in rows
        ],
    )  # fmt: skip
    console.note("* is what ask and chat take; `jmedlite use NAME` chooses another")


def _describe(model: MadeModel, known: MadeModels, default: Path | None, machine: Machine) -> dict[str, Any]:
    verdict = known.verdict_of(model)
    return {
        "name": model.file.name.removesuffix(".gguf"),
        "path": model.path,
        "folder": str(model.file.parent),
        "level": model.level,
        "size_bytes": model.size_bytes,
        "bits_per_weight": round(model.bits_per_weight, 4),
        "fits": _fits(model.file, machine),
        "verdict": verdict and {"reason": verdict.reason, "report": verdict.report},
        "default": model.file == default,
    }


def _fits(path: Path, machine: Machine) -> bool | None:
    """Does a model fit the memory that is free now? None where its file can't be read."""
    from jmedlite.base.errors import JmedliteError
    from jmedlite.runtime.fitting import shape_on_this_machine
    from jmedlite.runtime.loading import read_whole_header
    from jmedlite.runtime.offload import Wish, make_offload_plan

    try:
        _, header = read_whole_header(path)
        return make_offload_plan(shape_on_this_machine(header), machine, Wish()).fits
    except (JmedliteError, OSError):
        return None
