"""Model facts: the GGUF files that a command names, and what a run keeps of each: sizes, hash, licence, origins."""

from __future__ import annotations

import datetime
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import yaml

from jmedlite.base.errors import DataError, InputMissing, JmedliteError, UsageError
from jmedlite.base.filenames import CARD
from jmedlite.base.gguf import Tensor, level_name, name_and_level, read_header, split_stem
from jmedlite.base.inputs import MAX_CARD, read_bytes
from jmedlite.base.looking import is_dir, is_file
from jmedlite.base.manifest import MADE_QUANTIZED, Manifest, read_manifest
from jmedlite.base.outputs import joint_sha256, sha256_file
from jmedlite.base.progress import Progress
from jmedlite.base.records import to_json
from jmedlite.benchmarks.records import AdapterRecord, MatrixRecord, ModelRecord
from jmedlite.runtime.loading import read_whole_header

MOST_ROLES = 64  # kinds of tensors that are told apart; models have some twenty


def find_models(models: Sequence[str | Path]) -> dict[str, Path]:
    """The GGUF files that are named, by what they are called in a run; those of a folder with the widest first.

    Files of one name, as several makers have them, are called by their folders as well.
    """
    found: list[Path] = []
    for model in models:
        path = Path(model).expanduser()
        if is_dir(path):
            inside = [p for p in sorted(path.glob("*.gguf")) if not _is_later_part(p) and not _is_no_model(p)]
            if not inside:
                raise InputMissing(f"{path}: holds no GGUF model; make some with `jmedlite quantize {path}`")
            found += sorted(inside, key=lambda p: (-p.stat().st_size, p.name))
        elif is_file(path):
            found.append(path)
        else:
            raise InputMissing(f"{model}: no such GGUF file or folder; make one with `jmedlite quantize {model}`")
    if not found:
        raise UsageError("no model given; name GGUF files, or a folder of them")
    stems = [path_name(p) for p in found]
    names = [
        f"{stem} ({p.resolve().parent.name})" if stems.count(stem) > 1 else stem
        for p, stem in zip(found, stems, strict=True)
    ]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise UsageError(f"two models are called {twice[0]}; give every file a name of its own")
    return dict(zip(names, found, strict=True))


def _is_later_part(path: Path) -> bool:
    return split_stem(path.name) != path.stem and not path.stem.split("-of-")[0].endswith("00001")


def _is_no_model(path: Path) -> bool:
    """Importance matrices and adapters are GGUF files too, and lie beside the models."""
    return bool(read_header(path).metadata.get("general.type", "model") != "model")


def path_name(path: Path) -> str:
    """What a model is called in a run that has no other of that name."""
    return split_stem(path.name)


def describe_model(path: Path, progress: Progress, name: str | None = None) -> dict[str, Any]:
    """A GGUF's entry in `run.json`, where it has that name; raises DataError where it is not what its manifest says."""
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
    stem, level = path_name(path), level_name(meta.get("general.file_type"))
    base, label = name_and_level(stem)
    name = name or stem
    n_params = sum(math.prod(t.shape) for t in header.tensors)
    license_ = next((meta[k] for k in ("general.license.name", "general.license") if meta.get(k)), None)
    record = ModelRecord(
        name=name,
        file=path.name,
        base=base,
        level=level,
        sha256=joint_sha256(hashes),
        n_bytes=sum(sizes),
        n_params=n_params,
        bits_per_weight=round(8 * sum(t.nbytes for t in header.tensors) / n_params, 4),
        architecture=meta["general.architecture"],
        title=meta.get("general.name"),
        license=license_,
        made_from=meta.get("jmedlite.made.base"),
        quantized_base=meta.get(MADE_QUANTIZED),
        imatrix=_imatrix(manifest, meta),
        date=model_date(meta, path.parent / CARD),
        adapters=tuple(AdapterRecord(name=a.name, weight=a.weight) for a in manifest.adapters) if manifest else (),
        label=label and label + name.removeprefix(stem),
        made_here=manifest is not None or any(key.startswith("jmedlite.made.") for key in meta),
        quantized_by=meta.get("general.quantized_by"),
        matrix=_matrix(meta),
        types=_weights_by_type(header.tensors),
        tensor_types=_types_by_role(header.tensors),
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
        if not is_file(card):
            return {}
        text = read_bytes(card, MAX_CARD).decode("utf-8-sig")[:MAX_FRONT]
        head = re.match(r"---\r?\n(.*?)\r?\n---(\r?\n|$)", text, re.DOTALL)
        found = yaml.safe_load(head[1]) if head else {}
    except (JmedliteError, ValueError, TypeError, RecursionError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _imatrix(manifest: Manifest | None, meta: Mapping[str, Any]) -> str | None:
    named = manifest.imatrix.name if manifest and manifest.imatrix else meta.get("quantize.imatrix.file")
    return PureWindowsPath(str(named)).name if named else None  # of paths of either kind


def _matrix(meta: Mapping[str, Any]) -> MatrixRecord | None:
    told = {k.removeprefix("quantize.imatrix."): v for k, v in meta.items() if k.startswith("quantize.imatrix.")}
    if not told:
        return None
    file, dataset = (PureWindowsPath(told[k]).name if told.get(k) else None for k in ("file", "dataset"))
    return MatrixRecord(
        file=file, dataset=dataset, n_tensors=told.get("entries_count"), n_chunks=told.get("chunks_count")
    )


def _weights_by_type(tensors: Sequence[Tensor]) -> dict[str, int]:
    """Weights of each type, that of the most first."""
    found: Counter[str] = Counter()
    for t in tensors:
        found[t.type.name] += t.n_elements
    return dict(found.most_common())


def _types_by_role(tensors: Sequence[Tensor]) -> dict[str, dict[str, int]]:
    """Tensors of each type by what they are, blocks together: {"attn_v": {"Q4_K": 12, "Q6_K": 12}}."""
    found: dict[str, Counter[str]] = {}
    for t in tensors:
        role = re.sub(r"^blk\.\d+\.", "", t.name).removesuffix(".weight")
        found.setdefault(role if role in found or len(found) < MOST_ROLES else "…", Counter())[t.type.name] += 1
    return {role: dict(types.most_common()) for role, types in found.items()}


def tell_model(facts: Mapping[str, Any]) -> str:
    """What a file's header says of how it was quantized, as a sentence, of its entry in `run.json`."""
    whole, roles = sum(facts["types"].values()), facts["tensor_types"]
    parts = [f"file type {facts['level'] or 'not stated'}"]
    for type_, n in facts["types"].items():
        own = [
            role if len(types) == 1 else f"{role} {types[type_]} of {sum(types.values())}"
            for role, types in roles.items()
            if type_ in types and type_ != "F32"  # norms and biases, in every file
        ]
        parts.append(f"{type_} {100 * n / whole:.3g} %" + f" ({', '.join(own)})" * bool(own))
    if matrix := facts.get("matrix"):
        n = matrix["n_chunks"]
        named = [matrix["file"] or "without a name", matrix["dataset"], n and f"{n:,} chunks"]
        parts.append(f"importance matrix {', '.join(filter(None, named))}")
    else:
        parts.append(f"importance matrix {facts['imatrix'] or 'not stated'}")
    return f"{facts['name']}: {'; '.join(parts)}"


def _check_manifest(manifest: Manifest, hashes: dict[str, str]) -> None:
    for entry in manifest.files:
        if entry.name in hashes and entry.sha256 != hashes[entry.name]:
            raise DataError(
                f"{entry.name}: is not what its manifest says (another SHA-256), so it is damaged or another file; "
                "make or copy it again"
            )
