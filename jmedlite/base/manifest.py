"""Manifest: the JSON beside every GGUF, typed, read, and held against its files. Format: docs/manifest.md."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from .errors import DataError
from .gguf import split_files, split_stem
from .inputs import MAX_INDEX, read_json
from .looking import is_file
from .outputs import sha256_file
from .records import along, from_json
from .wording import some

FORMAT = 2
MADE_QUANTIZED = "jmedlite.made.quantized"  # the GGUF's key for how its base's weights were quantized already
MADE_MOMENTS = "jmedlite.made.moments"  # the GGUF's key for the file that its rounding went by


class NoManifest(DataError):
    """A JSON file that has a manifest's name and is something else."""


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One part of the model."""

    name: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class BaseEntry:
    """What the file was made from: of a Hub model `repo` and `revision`, a full commit hash; `files` to SHA-256.

    `quantized` says how its weights were stored, where they were quantized already.
    """

    name: str
    repo: str | None
    revision: str | None
    files: dict[str, str]
    quantized: str | None = None


@dataclass(frozen=True, kw_only=True)
class AdapterEntry:
    """One adapter that was merged, and the settings that decided the result. A GGUF adapter has only `lora_alpha`."""

    name: str
    weight: float
    files: dict[str, str]
    r: int | float | None = field(default=None, metadata=along("use_rslora"))
    lora_alpha: int | float | None
    use_rslora: bool | None = None
    use_dora: bool | None = None
    n_weights_changed: int
    n_weights_replaced: int


@dataclass(frozen=True, kw_only=True)
class ImatrixEntry:
    """The importance matrix."""

    name: str
    sha256: str
    datasets: tuple[str, ...]
    chunks: int


@dataclass(frozen=True, kw_only=True)
class MomentsEntry:
    """The second moments that rounding with error feedback went by."""

    name: str
    sha256: str
    datasets: tuple[str, ...]
    n_tokens: int


@dataclass(frozen=True, kw_only=True)
class MixEntry:
    """The budget that types were chosen within, what they are predicted to cost (nats a token), and by which file."""

    asked: str
    predicted_kl: float
    sensitivity: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class AdapterOption:
    """An adapter as it was asked for."""

    name: str
    repo: str | None
    revision: str | None
    weight: float


@dataclass(frozen=True, kw_only=True)
class OptionsEntry:
    """What was asked for; `tensor_types` are REGEX=TYPE, in the order in which they were tried."""

    allow_requantize: bool
    split_max_size: int | None
    adapters: tuple[AdapterOption, ...]
    tensor_types: tuple[str, ...] | None = None
    token_embedding_type: str | None = None
    output_type: str | None = None


@dataclass(frozen=True, kw_only=True)
class EncoderEntry:
    """Which encoder made the blocks where it is not ggml's, what it needed, and the types that it left to ggml's."""

    name: str
    versions: dict[str, str]
    left_to_ggml: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """A tensor's type, its quantization error √(Σ(stored − exact)² / Σ exact²), and its rounding, if not ggml's."""

    type: str
    rel_rmse: float
    rounding: str | None = None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What is known about one file of a model, or about its parts together."""

    format: int
    file: str
    level: str
    files: tuple[FileEntry, ...]
    size_bytes: int
    bits_per_weight: float
    n_weights: int
    architecture: str
    license: str | None
    base: BaseEntry
    adapters: tuple[AdapterEntry, ...]
    imatrix: ImatrixEntry | None
    options: OptionsEntry
    encoder: EncoderEntry | None = None
    versions: dict[str, str]
    tensors: dict[str, TensorEntry]
    moments: MomentsEntry | None = None
    mix: MixEntry | None = None


def read_manifest(gguf_file: Path) -> Manifest | None:
    """The manifest beside a GGUF (or any of its parts); None where there is none, DataError where it is not one."""
    path = gguf_file.with_name(split_stem(gguf_file.name) + ".json")
    if not is_file(path):
        return None
    try:
        found = read_json(path, MAX_INDEX)
    except DataError as e:
        raise NoManifest(str(e)) from None
    if found.get("format") != FORMAT or not {"files", "level", "tensors"} & found.keys():
        raise NoManifest(
            f"{path.name}: is no manifest of format {FORMAT}; make the model again, or move this file away"
        )
    manifest = from_json(found, Manifest, path.name)
    listed, files = [e.name for e in manifest.files], [p.name for p in split_files(gguf_file)]
    if listed != files:
        raise DataError(
            f"{path.name}: is the manifest of {some(listed, 3) or 'no file'}, not of {some(files, 3)}; make the model "
            "again, give the files the names they were made with, or move this file away"
        )
    return manifest


def check_hashes(gguf_file: Path, manifest: Manifest) -> list[str]:
    """The names of those files of the model that are not what its manifest says (size, SHA-256), or are missing."""
    broken = []
    for entry, path in zip(manifest.files, split_files(gguf_file), strict=True):
        if not is_file(path) or path.stat().st_size != entry.size_bytes or sha256_file(path) != entry.sha256:
            broken.append(entry.name)
    return broken
