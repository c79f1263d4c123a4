"""`verify` and `inspect` for the command line and for Python: find the inputs, read the manifest, compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf.constants import GGMLQuantizationType

from jmedlite.base import gguf
from jmedlite.base.errors import UsageError
from jmedlite.base.hub import resolve, resolve_adapter
from jmedlite.base.imatrix import read_imatrix
from jmedlite.base.inputs import check_range, watching
from jmedlite.base.manifest import check_hashes, read_manifest
from jmedlite.base.moments import Moments
from jmedlite.base.progress import Progress, silent
from jmedlite.base.records import to_json
from jmedlite.convert.adapters.lora import parse_spec
from jmedlite.convert.sources.gguf_model import read_parts
from jmedlite.convert.verify import VerifyReport, compare_with_base
from jmedlite.runtime.hardware import available_processors


@dataclass(frozen=True)
class Proof:
    """What `verify` found: the comparison, and which of the manifest's hashes did not hold (None: no manifest)."""

    report: VerifyReport
    broken: tuple[str, ...] | None

    @property
    def holds(self) -> bool:
        return self.report.holds and not self.broken


def verify(
    path: str | Path,
    *,
    base: str | Path,
    lora: Sequence[str] = (),
    imatrix: str | Path | None = None,
    moments: str | Path | None = None,
    tolerance: float = 0.0,
    allow_requantize: bool = False,
    encoder: str | None = None,
    follow_links: bool = False,
    threads: int | None = None,
    memory: int | None = None,
    progress: Progress = silent,
) -> Proof:
    """Is the GGUF `path` that base plus those adapters, at the types it has? Everything is computed again.

        >>> jmedlite.verify("qwen-Q4_K_M.gguf", base="models/qwen").holds  # doctest: +SKIP
        True

    `tolerance` is the relative distance up to which a tensor may differ, for files of another build or processor;
    `encoder` ("ggml", "fast") is the one that the file names, unless it is given; `progress` hears how far it is
    (docs/python.md).
    """
    if threads is not None:
        check_range("--threads", threads, 1, 256)
    if not 0 <= tolerance < 1:
        raise UsageError(f"--tolerance {tolerance:g}: expected a relative distance, 0 or more and below 1")
    file = Path(path).expanduser()
    with watching() as inputs:
        parts = read_parts(file)  # a file that is none is told before anything is downloaded
        source = resolve(str(base), follow_links=follow_links)
        report = compare_with_base(
            file,
            parts,
            source.path,
            adapters=[
                (resolve_adapter(spec, follow_links=follow_links).path, weight)
                for spec, weight in map(parse_spec, lora)
            ],
            imatrix=read_imatrix(Path(imatrix)) if imatrix else None,
            moments=Moments(Path(moments)) if moments else None,
            tolerance=tolerance,
            requantize=allow_requantize,
            encoder=encoder,
            threads=threads or available_processors(),
            memory=memory,
            progress=progress,
        )
        manifest = read_manifest(file)
        broken = None if manifest is None else tuple(check_hashes(file, manifest))
        inputs.check()
    return Proof(report, broken)


def inspect(path: str | Path, *, check: bool = False) -> dict[str, Any]:
    """What a GGUF is and where it came from, by its metadata and its manifest.

    With `check` the files' SHA-256 are compared with the manifest's, as `broken` (a list of file names; None where
    there is no manifest).
    """
    file = Path(path).expanduser()
    header, tensors = read_parts(file)
    meta, arch = header.metadata, str(header.metadata["general.architecture"])
    manifest = read_manifest(file)
    entries = [gguf.Tensor(t.name, t.shape[::-1], GGMLQuantizationType[t.dtype]) for t in tensors.values()]
    counts: dict[str, int] = {}
    for t in entries:
        counts[t.type.name] = counts.get(t.type.name, 0) + 1
    made = manifest.tensors if manifest else {}
    n_weights, n_bytes = sum(t.n_elements for t in entries), sum(t.nbytes for t in entries)
    facts: dict[str, Any] = {
        "file": str(file),
        "files": [p.name for p in gguf.split_files(file)],
        "size_bytes": sum(p.stat().st_size for p in gguf.split_files(file)),
        "name": meta.get("general.name"),
        "license": meta.get("general.license.name") or meta.get("general.license"),
        "architecture": arch,
        "level": gguf.level_name(meta.get("general.file_type")),
        "n_weights": n_weights,
        "bits_per_weight": round(8 * n_bytes / max(1, n_weights), 4),
        "n_layer": meta.get(f"{arch}.block_count"),
        "n_ctx_train": meta.get(f"{arch}.context_length"),
        "n_vocab": len(meta["tokenizer.ggml.tokens"]),
        "made": {k.removeprefix("jmedlite.made."): v for k, v in meta.items() if k.startswith("jmedlite.made.")},
        "imatrix": {
            k.removeprefix("quantize.imatrix."): v for k, v in meta.items() if k.startswith("quantize.imatrix.")
        },
        "types": dict(sorted(counts.items(), key=lambda item: -item[1])),
        "tensors": [
            {
                "name": t.name,
                "type": t.type.name,
                "shape": list(t.shape),
                "rel_rmse": made[t.name].rel_rmse if t.name in made else None,
            }
            for t in entries
        ],
        "manifest": None if manifest is None else to_json(manifest),
    }
    if check:
        facts["broken"] = None if manifest is None else check_hashes(file, manifest)
    return facts
