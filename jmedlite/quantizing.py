"""`quantize` for the command line and for Python: find the model, plan, run the pass, leave the manifests."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from jmedlite.base.errors import UsageError
from jmedlite.base.inputs import check_range
from jmedlite.convert.lora import parse_spec
from jmedlite.convert.manifest import write_manifest
from jmedlite.convert.pipeline import Written, write
from jmedlite.convert.planning import Plan, make_plan
from jmedlite.convert.recipes import parse_levels

from .hardware import available_processors
from .hub import ADAPTER_FILES, DEFAULT_MODEL, Source, resolve
from .settings import remember_model

Q4_K_M_BITS = 4.8  # bits per weight of a 7B at that level


def parse_memory(text: str) -> int:
    """`2GB`, `512MiB` or plain bytes as a number of bytes; raises UsageError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgt]?)(i?)b?)?\s*", text, re.IGNORECASE)
    if not found:
        raise UsageError(f"{text}: is not an amount of memory; expected something like 2GB or 512MB")
    base = 1024 if found[3] else 1000
    return int(float(found[1]) * base ** " kmgt".index((found[2] or " ").lower()))


def plan_quantization(
    model: str = DEFAULT_MODEL,
    *,
    lora: Sequence[str] = (),
    bits: Sequence[int] = (),
    types: Sequence[str] = (),
    out: Path = Path(),
    name: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> tuple[Plan, Source]:
    """Resolve the model and its adapters and check everything that can be known before the first byte."""
    levels = parse_levels(bits, types)
    specs = [parse_spec(s) for s in lora]
    stem = name
    if stem is not None and (not stem.strip() or Path(stem).name != stem or "\\" in stem):
        raise UsageError(f"--name {stem!r}: expected a plain file name without folders")
    source = resolve(model)
    adapters = [(resolve(spec, ADAPTER_FILES), weight) for spec, weight in specs]
    if stem is None:
        stem = "-".join([source.name, *(a.name for a, _ in adapters)]) or "model"
    plan = make_plan(
        source.folder,
        levels,
        out,
        stem=stem,
        name=source.name if source.repo else None,
        adapters=[(a.folder, weight) for a, weight in adapters],
        overwrite=overwrite,
        dry_run=dry_run,
    )
    for level in plan.levels:
        if any(level.path.exists() and level.path.samefile(f) for f in plan.checkpoint.weight_files):
            raise UsageError(f"{level.path}: is the input itself; choose another --out or --name")
    return plan, source


def run_plan(
    plan: Plan,
    source: Source,
    *,
    threads: int | None = None,
    memory: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Written]:
    """Run the pass, write the manifests, remember the level nearest to Q4_K_M as the default model of `ask`."""
    if threads is not None:
        check_range("--threads", threads, 1, 256)
    written = write(plan, threads=threads or available_processors(), memory=memory, progress=progress)
    for file in written:
        write_manifest(plan, file, source.describe())
    remember_model(min(written, key=lambda w: abs(w.bits_per_weight - Q4_K_M_BITS)).path)
    return written


def quantize(
    model: str | Path = DEFAULT_MODEL,
    *,
    lora: Sequence[str] = (),
    bits: Sequence[int] = (),
    types: Sequence[str] = (),
    out: str | Path = ".",
    name: str | None = None,
    threads: int | None = None,
    memory: str | int | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Merge `lora` adapters into `model` and write one GGUF per level, in one pass; returns the files' paths.

    `model` is a checkpoint folder or a Hub id; `bits` are 2, 3, 4, 5, 6, 8 or 16, `types` llama.cpp's names
    ("Q4_K_S"); `memory` bounds the pass ("1GB"). Raises the exceptions of `jmedlite.base.errors`.

        >>> jmedlite.quantize("models/qwen", bits=[8, 4], out="gguf")  # doctest: +SKIP
        [PosixPath('gguf/qwen-Q8_0.gguf'), PosixPath('gguf/qwen-Q4_K_M.gguf')]
    """
    plan, source = plan_quantization(
        str(model), lora=lora, bits=bits, types=types, out=Path(out), name=name, overwrite=overwrite
    )
    limit = parse_memory(memory) if isinstance(memory, str) else memory
    return [w.path for w in run_plan(plan, source, threads=threads, memory=limit, progress=progress)]
