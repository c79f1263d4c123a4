"""Manifest, read: the JSON beside every GGUF, held against the files that it describes. Format: docs/manifest.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import DataError
from .gguf import split_stem
from .inputs import read_json
from .outputs import sha256_file

FORMAT = 2


def read_manifest(gguf_file: Path) -> dict[str, Any] | None:
    """The manifest beside a GGUF (or any of its parts); None where there is none, DataError where it is not one."""
    path = gguf_file.with_name(split_stem(gguf_file.name) + ".json")
    if not path.is_file():
        return None
    found = read_json(path)
    files = found.get("files")
    if found.get("format") != FORMAT or not isinstance(files, list):
        raise DataError(f"{path.name}: is no manifest of format {FORMAT}; make the model again, or move this file away")
    return found


def check_hashes(gguf_file: Path, manifest: dict[str, Any]) -> list[str]:
    """The names of those files whose SHA-256 is not what the manifest says; a missing file is one of them."""
    broken = []
    for entry in manifest["files"]:
        name, sha256 = (entry.get("name"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
        path = gguf_file.with_name(Path(str(name)).name)
        if not path.is_file() or sha256_file(path) != sha256:
            broken.append(str(name))
    return broken
