"""Manifest, written: what a GGUF is made of, with what, and its hash, as JSON beside it. Format: docs/manifest.md."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jmedlite.base.imatrix import Imatrix
from jmedlite.base.manifest import (
    FORMAT,
    AdapterEntry,
    BaseEntry,
    EncoderEntry,
    FileEntry,
    ImatrixEntry,
    Manifest,
    MixEntry,
    MomentsEntry,
    OptionsEntry,
    TensorEntry,
)
from jmedlite.base.moments import Moments
from jmedlite.base.outputs import OutputFile
from jmedlite.base.records import from_json, to_json
from jmedlite.convert.encoding.encoders import GGML

from .pipeline import Written
from .planning import PlannedLevel, QuantizePlan


def versions() -> dict[str, str]:
    """The releases that had a hand in the file, and the machine's kind: compilers round differently."""
    found = {name: importlib.metadata.version(name) for name in ("jmedlite", "llama-cpp-python", "gguf", "numpy")}
    return {**found, "python": platform.python_version(), "machine": platform.machine(), "system": platform.system()}


def build_manifest(
    plan: QuantizePlan,
    level: PlannedLevel,
    written: Written,
    source: dict[str, Any],
    base_files: dict[str, str],
    adapter_files: Mapping[Path, str],
    options: dict[str, Any],
    mix: MixEntry | None = None,
) -> Manifest:
    """What is known about one finished level; `source` says where the base came from, `options` what was asked for.

    `base_files` are SHA-256 by name, `adapter_files` by path, `mix` is of a mixed level. No local path stands in it.
    """
    types = {t.name: t.type.name for t in level.tensors}
    return Manifest(
        format=FORMAT,
        file=written.path.name,
        level=written.level,
        files=tuple(FileEntry(name=f.path.name, sha256=f.sha256, size_bytes=f.size_bytes) for f in written.files),
        size_bytes=written.size_bytes,
        bits_per_weight=round(written.bits_per_weight, 4),
        n_weights=plan.n_weights,
        architecture=plan.architecture,
        license=plan.license,
        base=BaseEntry(**source, files=base_files, quantized=plan.quantized),
        adapters=tuple(
            AdapterEntry(
                name=a.name, weight=a.weight, files={f.name: adapter_files[f] for f in a.files}, **a.describe()
            )
            for a in plan.adapters
        ),
        imatrix=_imatrix(plan.imatrix) if plan.imatrix else None,
        options=from_json(options, OptionsEntry, "options"),
        encoder=_encoder(plan, level),
        versions=versions(),
        tensors={
            name: TensorEntry(type=types[name], rel_rmse=_round(e), rounding=written.rounding.get(name))
            for name, e in written.rel_rmse.items()
        },
        moments=_moments(plan.moments) if plan.moments else None,
        mix=mix,
    )


def _encoder(plan: QuantizePlan, level: PlannedLevel) -> EncoderEntry | None:
    encoder = plan.encoder
    if encoder is GGML:
        return None
    left = tuple(plan.left_to_ggml(level))
    return EncoderEntry(name=encoder.name, versions=encoder.versions, left_to_ggml=left)


def _imatrix(matrix: Imatrix) -> ImatrixEntry:
    names = tuple(Path(d).name for d in matrix.datasets)
    return ImatrixEntry(name=matrix.path.name, sha256=matrix.sha256, datasets=names, chunks=matrix.chunks)


def _moments(moments: Moments) -> MomentsEntry:
    names = tuple(Path(d).name for d in moments.datasets)
    return MomentsEntry(name=moments.path.name, sha256=moments.sha256, datasets=names, n_tokens=moments.n_tokens)


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def write_manifests(
    outputs: Sequence[OutputFile],
    plan: QuantizePlan,
    written: list[Written],
    source: dict[str, Any],
    base_files: dict[str, str],
    adapter_files: Mapping[Path, str],
    options: dict[str, Any],
    mixes: Mapping[str, MixEntry],
) -> None:
    """Write the manifest of every level into its output; arguments as for `build_manifest`."""
    for output, level, done in zip(outputs, plan.levels, written, strict=True):
        manifest = build_manifest(plan, level, done, source, base_files, adapter_files, options, mixes.get(done.level))
        output.write((json.dumps(to_json(manifest), ensure_ascii=False, indent=1) + "\n").encode("utf-8"))
