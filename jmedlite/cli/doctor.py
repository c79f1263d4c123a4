"""`doctor`: this machine as llama.cpp sees it, and what fits on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from jmedlite.runtime.load_options import LoadOptions

from . import console
from .open_model import find_gguf
from .options import JsonFlag, spread


@spread
def doctor(
    model: Annotated[str | None, typer.Argument(help="GGUF file: what of it fits this machine.")] = None,
    *,
    loading: Annotated[LoadOptions, "kv_type"],
    as_json: JsonFlag = False,
) -> None:
    """Show this machine as llama.cpp sees it, and which level and context of a model fit it."""
    from jmedlite.runtime.hardware import describe_machine

    fit = _fit(find_gguf(model), loading.kv_type) if model else None
    facts = describe_machine()
    if as_json:
        console.document(facts if fit is None else {**facts, "fit": fit})
        return
    gpus = [f"{g['name']}: {g['description']}, {console.size(g['free_bytes'])} free" for g in facts["gpus"]]
    built = "yes" if facts["gpu_offload_built_in"] else "no (a CPU build of llama-cpp-python)"
    rows = [
        ["jmedlite", f"{facts['jmedlite']} (Python {facts['python']}, {facts['system']})"],
        ["llama-cpp-python", facts["llama_cpp_python"]],
        ["processor", f"{facts['cpu']}, {facts['physical_cores']} cores ({facts['logical_cores']} threads)"],
        ["CPU features", ", ".join(facts["cpu_features"]) or "none reported"],
        ["CPU back end", facts["cpu_back_end"] or "built in"],
        ["memory", f"{console.size(facts['ram_bytes'])}, {console.size(facts['ram_available_bytes'])} available"],
        ["GPU offload", built],
        ["GPU", "; ".join(gpus) or "none seen"],
    ]
    console.table([("this machine", "left"), ("", "left")], rows, named=True)
    if fit is not None:
        console.out("")
        _show_fit(str(model), fit)


def _fit(path: Path, kv_type: str) -> dict[str, Any]:
    """The plan for a model, and every level × context: what `doctor MODEL` shows."""
    from jmedlite.runtime.fitting import level_shapes, shape_on_this_machine, this_machine
    from jmedlite.runtime.loading import read_whole_header
    from jmedlite.runtime.offload import Wish, make_offload_plan, row_of_plans
    from jmedlite.runtime.shape import check_kv_type

    files, header = read_whole_header(path)
    check_kv_type(path.name, header.metadata, kv_type)
    machine, wish = this_machine(), Wish(kv_type=kv_type)
    shapes = {"this file": shape_on_this_machine(header), **level_shapes(header)}
    # the vocabulary and what else a level does not change
    beside = sum(file.stat().st_size for file in files) - shapes["this file"].data_bytes
    levels = {
        name: {
            "size_bytes": shape.data_bytes + beside,
            "contexts": [p.figures() for p in row_of_plans(shape, machine, wish)],
        }
        for name, shape in shapes.items()
    }
    plan = make_offload_plan(shapes["this file"], machine, wish)
    return {"file": path.name, "plan": plan.figures(), "sentence": plan.sentence(grows=True), "levels": levels}


def _show_fit(model: str, fit: dict[str, Any]) -> None:
    places = fit["plan"]["places"]
    columns = {
        "weights": ("weights",), "cache": ("kv",), "buffers, processes": ("compute", "other"), "needed": ("total",),
        "free": ("free",), **({"the driver's own": ("driver",)} if any(p["driver"] for p in places) else {}),
    }  # fmt: skip
    console.table(
        [(model, "left"), *((name, "right") for name in columns)],
        [[p["place"], *(console.size(sum(p[k] for k in keys)) for keys in columns.values())] for p in places],
    )
    console.say(f"{'' if fit['plan']['fits'] else 'does NOT fit: '}{fit['sentence']}\n")
    contexts = [plan["n_ctx"] for plan in fit["levels"]["this file"]["contexts"]]
    console.table(
        [("level", "left"), ("size", "right"), *((f"{n:,} tokens", "right") for n in contexts)],
        [
            [name, console.size(level["size_bytes"]), *(_cell(plan) for plan in level["contexts"])]
            for name, level in fit["levels"].items()
        ],
    )


def _cell(plan: dict[str, Any]) -> str:
    """The memory that a level takes at a context, with the layers on GPUs where there are any."""
    if not plan["fits"]:
        return "—"
    total = console.size(sum(place["total"] for place in plan["places"]))
    if len(plan["places"]) == 1:
        return total
    without = f", {plan['n_without_experts']} without experts" if plan["n_without_experts"] else ""
    return f"{total} ({plan['n_gpu_layers']}/{plan['n_layers'] + 1} GPU{without})"
