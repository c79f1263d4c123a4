"""Peak memory of the pass for every family and source at its real size, and the plan of those that no laptop holds.

    python tools/measure_sources.py FOLDER [--family NAME]… [--source safetensors|bin|gguf]… [--level Q4_K_M]
    python tools/measure_sources.py FOLDER --large [NAME]…
    python tools/measure_sources.py FOLDER --plans [NAME]…

The checkpoints are made in FOLDER (see large_models.py). Each run has a rank-16 adapter; memory is the process tree's
resident pages, anonymous and file-backed. `--large` plans models from 30 to 235 billion weights with a rank-64 adapter,
streams one real layer of each with the tables, and says what time the whole would take by its weights. `--plans` says
of every model how large its files will be.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import IO

import numpy as np
from compare_toolchain import Cost, measure
from large_models import LARGE, MODELS, MODULES, Shapes, small, write_adapter, write_model

ALL = {**MODELS, **LARGE}
PLANNED = ("BF16", "Q8_0", "Q4_K_M", "Q2_K")


def run(*arguments: str, said: IO[bytes] | int = subprocess.DEVNULL) -> Cost:
    """Run jmedlite to its end, its standard output into `said`."""
    return measure(" ".join(arguments[:2]), [sys.executable, "-m", "jmedlite", *arguments], said=said)


def measure_all(folder: Path, names: list[str], sources: list[str], level: str) -> None:
    """One line for every model and source."""
    print("| model | source | weights | wall s | CPU s | peak memory MB |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for name in names:
        architecture, config = ALL[name]
        for source in sources:
            work = folder / f"{name}-{source}"
            shutil.rmtree(work, ignore_errors=True)
            shapes = write_model(work / "base", architecture, config, source)
            write_adapter(work / "adapter", shapes, 16, MODULES)
            model = work / "base"
            if source == "gguf":
                run("quantize", str(model), "--type", "F16", "--out", str(work), "--name", "base")
                model = work / "base-F16.gguf"
            options = ("--lora", str(work / "adapter"), "--type", level, "--out", str(work / "out"))
            cost = run("quantize", str(model), *options)
            n = sum(int(np.prod(s)) for s in shapes.values())
            figures = f"{n / 1e9:.2f} B | {cost.wall_s:.0f} | {cost.cpu_s:.0f} | {cost.peak_bytes / 1e6:.0f}"
            print(f"| {name} | {source} | {figures} |", flush=True)
            shutil.rmtree(work)


def plans(folder: Path, names: list[str]) -> None:
    """One line for every model: what `--dry-run` says of its files."""
    print("| model | weights | " + " | ".join(PLANNED) + " | planned in s | peak memory MB |")
    print("| --- | ---: |" + " ---: |" * (len(PLANNED) + 2))
    levels = [x for level in PLANNED for x in ("--type", level)]
    for name in names:
        work = folder / name
        shutil.rmtree(work, ignore_errors=True)
        write_model(work / "base", *ALL[name], "safetensors")
        with (work / "plan.json").open("w+b") as said:
            cost = run("quantize", str(work / "base"), *levels, "--dry-run", "--json", said=said)
            said.seek(0)
            plan = json.load(said)
        sizes = " | ".join(f"{level['size_bytes'] / 1e9:.2f} GB" for level in plan["levels"])
        figures = f"{cost.wall_s:.1f} | {cost.peak_bytes / 1e6:.0f}"
        print(f"| {name} | {plan['n_weights'] / 1e9:.2f} B | {sizes} | {figures} |", flush=True)
        shutil.rmtree(work)


def told(cost: Cost) -> str:
    """A run's figures in words."""
    return f"{cost.wall_s:.1f} s, CPU {cost.cpu_s:.1f} s, peak {cost.peak_bytes / 1e6:.0f} MB"


def n_weights(shapes: Shapes) -> int:
    """The weights of a checkpoint."""
    return sum(int(np.prod(shape)) for shape in shapes.values())


def large(folder: Path, name: str) -> None:
    """A plan of the whole model, and one of its layers for real."""
    architecture, config = LARGE[name]
    modules = tuple(f"self_attn.{x}_proj" for x in "qkvo") + tuple(f"mlp.{x}_proj" for x in ("gate", "up", "down"))
    work = folder / name
    shutil.rmtree(work, ignore_errors=True)
    shapes = write_model(work / "base", architecture, config, "safetensors")
    n = n_weights(shapes)
    write_adapter(work / "adapter", shapes, 64, modules)
    bits = [x for b in (2, 4, 8) for x in ("--bits", str(b))]
    plan = ("quantize", str(work / "base"), "--lora", str(work / "adapter"), *bits, "--dry-run")
    print(f"{name} ({n / 1e9:.2f} B weights in {len(shapes):,} tensors), rank 64, --dry-run of three levels: "
          f"{told(run(*plan))}", flush=True)  # fmt: skip
    shutil.rmtree(work)
    rng = np.random.default_rng(1)
    one = {**config, "num_hidden_layers": 1}
    shapes = write_model(work / "base", architecture, one, "safetensors", lambda shape: small(rng, shape))
    write_adapter(work / "adapter", shapes, 64, modules)
    whole = n / n_weights(shapes)
    for levels in (["4"], ["2", "4", "8"]):
        bits = [x for b in levels for x in ("--bits", b)]
        options = ("quantize", str(work / "base"), "--lora", str(work / "adapter"), *bits, "--out", str(work / "out"))
        cost = run(*options, "--overwrite")
        print(f"one layer of it, random weights, --bits {' '.join(levels)}: {told(cost)}; "
              f"the whole by its weights: {cost.wall_s * whole / 60:.0f} min", flush=True)  # fmt: skip
    shutil.rmtree(work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--family", action="append", choices=list(ALL), help="default: those of up to 24 B weights")
    parser.add_argument("--source", action="append", choices=["safetensors", "bin", "gguf"])
    parser.add_argument("--level", default="Q4_K_M")
    parser.add_argument("--large", nargs="*", choices=list(LARGE), metavar="NAME")
    parser.add_argument("--plans", nargs="*", choices=list(ALL), metavar="NAME")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.plans is not None:
        plans(options.folder, options.plans or list(ALL))
    elif options.large is not None:
        for name in options.large or LARGE:
            large(options.folder, name)
    else:
        sources = options.source or ["safetensors", "bin"]
        measure_all(options.folder, options.family or list(MODELS), sources, options.level)


if __name__ == "__main__":
    main()
