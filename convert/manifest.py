"""The JSON beside every GGUF: what it is made of, with what, and its hash. Format: docs/manifest.md."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

from jmedlite.base.outputs import sha256_file, write_text

from .lora import WEIGHTS
from .pipeline import Written
from .planning import Plan

FORMAT = 1


def versions() -> dict[str, str]:
    """The releases that had a hand in the file."""
    return {name: importlib.metadata.version(name) for name in ("jmedlite", "llama-cpp-python", "gguf", "numpy")}


def build_manifest(plan: Plan, written: Written, source: dict[str, Any]) -> dict[str, Any]:
    """What is known about one finished file; `source` says where the base came from (no local paths)."""
    level = next(p for p in plan.levels if p.path == written.path)
    return {
        "format": FORMAT,
        "file": written.path.name,
        "level": written.level,
        "sha256": written.sha256,
        "size_bytes": written.size_bytes,
        "bits_per_weight": round(written.bits_per_weight, 4),
        "n_weights": plan.n_weights,
        "architecture": plan.family.gguf_arch,
        "license": plan.license,
        "base": source,
        "adapters": [
            {
                "name": adapter.folder.name,
                "weight": adapter.weight,
                "sha256": sha256_file(adapter.folder / WEIGHTS),
                "r": adapter.config.get("r"),
                "lora_alpha": adapter.config.get("lora_alpha"),
                "use_rslora": bool(adapter.config.get("use_rslora")),
                "n_weights_changed": len(adapter.pairs),
            }
            for adapter in plan.adapters
        ],
        "versions": versions(),
        "tensors": {t.name: t.type.name for t in level.tensors},
    }


def write_manifest(plan: Plan, written: Written, source: dict[str, Any]) -> Path:
    """Write the manifest beside its GGUF; returns its path."""
    path = written.path.with_suffix(".json")
    write_text(path, json.dumps(build_manifest(plan, written, source), ensure_ascii=False, indent=1) + "\n")
    return path
