"""Model facts: the GGUF files that a command names, and what a run keeps of each: sizes, hash, licence, origins."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from jmedlite.base.errors import DataError, InputMissing, JmedliteError, UsageError
from jmedlite.base.filenames import CARD
from jmedlite.base.gguf import level_name, read_header, split_stem
from jmedlite.base.inputs import MAX_CARD, read_bytes
from jmedlite.base.manifest import Manifest, read_manifest
from jmedlite.base.outputs import joint_sha256, sha256_file
from jmedlite.base.progress import Progress
from jmedlite.base.records import to_json
from jmedlite.benchmarks.records import AdapterRecord, ModelRecord
from jmedlite.runtime.loading import read_whole_header


def find_models(models: Sequence[str | Path]) -> list[Path]:
    """The GGUF files that are named; those of a folder with the widest first."""
    found: list[Path] = []
    for model in models:
        path = Path(model).expanduser()
        if path.is_dir():
            inside = [p for p in sorted(path.glob("*.gguf")) if not _is_later_part(p) and not _is_no_model(p)]
            if not inside:
                raise InputMissing(f"{path}: holds no GGUF model; make some with `jmedlite quantize {path}`")
            found += sorted(inside, key=lambda p: (-p.stat().st_size, p.name))
        elif path.is_file():
            found.append(path)
        else:
            raise InputMissing(f"{model}: no such GGUF file or folder; make one with `jmedlite quantize {model}`")
    names = [path_name(p) for p in found]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise UsageError(f"two models are called {twice[0]}; give every file a name of its own")
    if not found:
        raise UsageError("no model given; name GGUF files, or a folder of them")
    return found


def _is_later_part(path: Path) -> bool:
    return split_stem(path.name) != path.stem and not path.stem.split("-of-")[0].endswith("00001")


def _is_no_model(path: Path) -> bool:
    """Importance matrices and adapters are GGUF files too, and lie beside the models."""
    return bool(read_header(path).metadata.get("general.type", "model") != "model")


def path_name(path: Path) -> str:
    """What a model is called in a run."""
    return split_stem(path.name)


def describe_model(path: Path, progress: Progress) -> dict[str, Any]:
    """A GGUF's entry in `run.json`; raises DataError where it is not what its manifest says."""
    files, header = read_whole_header(path)
    sizes = [p.stat().st_size for p in files]
    hashes = []
    progress("hashing", 0, sum(sizes), path.name)
    for i, part in enumerate(files):
        hashes.append(sha256_file(part))
        progress("hashing", sum(sizes[: i + 1]), sum(sizes), path.name)
    manifest = read_manifest(path)
    if manifest:
        _check_manifest(manifest, {p.name: h for p, h in zip(files, hashes, strict=True)})
    meta = header.metadata
    name, level = path_name(path), level_name(meta.get("general.file_type"))
    n_params = sum(math.prod(t.shape) for t in header.tensors)
    license_ = next((meta[k] for k in ("general.license.name", "general.license") if meta.get(k)), None)
    record = ModelRecord(
        name=name,
        file=path.name,
        base=name.removesuffix(f"-{level}") if level else name,
        level=level,
        sha256=joint_sha256(hashes),
        n_bytes=sum(sizes),
        n_params=n_params,
        bits_per_weight=round(8 * sum(t.nbytes for t in header.tensors) / n_params, 4),
        architecture=meta["general.architecture"],
        title=meta.get("general.name"),
        license=license_,
        made_from=meta.get("jmedlite.made.base"),
        imatrix=_imatrix(manifest, meta),
        date=model_date(meta, path.parent / CARD),
        adapters=tuple(AdapterRecord(name=a.name, weight=a.weight) for a in manifest.adapters) if manifest else (),
    )
    return to_json(record)


MAX_FRONT = 1 << 16  # characters of a card in which its front matter must end: YAML is read slowly
_DATES = ("date", "release_date", "released", "release.date", "created", "created_at")
_ISO = re.compile(r"\d{4}(-(0[1-9]|1[0-2])(-(0[1-9]|[12]\d|3[01]))?)?")


def model_date(meta: Mapping[str, Any], card: Path) -> str | None:
    """The date ("2024-06-06", "2024-06" or "2024") that a GGUF's `general.*` or the model card beside it tells."""
    of_card = _front_matter(card)
    for found in (*(meta.get(f"general.{name}") for name in _DATES), *(of_card.get(name) for name in _DATES)):
        if isinstance(found, str | int | datetime.date) and (iso := _ISO.match(str(found))):
            return iso[0]
    return None


def _front_matter(card: Path) -> Mapping[str, Any]:
    """What a model card says of itself; nothing where there is none or it can't be read: it is a page for people."""
    try:
        if not card.is_file():
            return {}
        text = read_bytes(card, MAX_CARD).decode("utf-8-sig")[:MAX_FRONT]
        head = re.match(r"---\r?\n(.*?)\r?\n---(\r?\n|$)", text, re.DOTALL)
        found = yaml.safe_load(head[1]) if head else {}
    except (JmedliteError, ValueError, TypeError, RecursionError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _imatrix(manifest: Manifest | None, meta: Mapping[str, Any]) -> str | None:
    named = manifest.imatrix.name if manifest and manifest.imatrix else meta.get("quantize.imatrix.file")
    return Path(str(named)).name if named else None


def _check_manifest(manifest: Manifest, hashes: dict[str, str]) -> None:
    for entry in manifest.files:
        if entry.name in hashes and entry.sha256 != hashes[entry.name]:
            raise DataError(
                f"{entry.name}: is not what its manifest says (another SHA-256), so it is damaged or another file; "
                "make or copy it again"
            )
