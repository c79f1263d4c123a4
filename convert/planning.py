"""What will be written, known in full before the first byte: tensors, types, sizes, headers, room on the disk."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gguf.constants import GGMLQuantizationType

from jmedlite.base import gguf
from jmedlite.base.errors import CannotCreate, DataError
from jmedlite.base.native import F32
from jmedlite.base.outputs import check_target

from .architectures import IGNORED_SUFFIXES, Family, Rule, dimensions, expected_rules, find_family, is_tied
from .checkpoint import WEIGHT_DTYPES, Checkpoint, StoredTensor
from .lora import Adapter
from .metadata import Entries, build_metadata, llama3_rope_factors, rope_parameters
from .recipes import Level, choose_types
from .tokenizer import read_vocabulary

DISK_MARGIN = 64 << 20


@dataclass(frozen=True)
class Job:
    """One tensor of the output: where it comes from, what is added, how its rows move.

    `n_rows`, `n_cols` describe the stored tensor (a vector is one column); `rotary_rows` is the head dimension where
    rows move within heads, else 0; `constant` holds the values of a tensor that no checkpoint has.
    """

    name: str
    n_rows: int
    n_cols: int
    is_vector: bool
    source: StoredTensor | None = None
    adapters: tuple[Adapter, ...] = ()
    rotary_rows: int = 0
    constant: F32 | None = None

    @property
    def n_elements(self) -> int:
        return self.n_rows * self.n_cols

    @property
    def gguf_shape(self) -> tuple[int, ...]:
        return (self.n_rows,) if self.is_vector else (self.n_cols, self.n_rows)


@dataclass(frozen=True)
class PlannedLevel:
    """One output file, to the byte."""

    level: Level
    path: Path
    header: bytes
    tensors: tuple[gguf.Tensor, ...]
    data_bytes: int

    @property
    def total_bytes(self) -> int:
        return len(self.header) + self.data_bytes

    @property
    def bits_per_weight(self) -> float:
        return 8 * sum(t.nbytes for t in self.tensors) / sum(t.n_elements for t in self.tensors)

    def type_counts(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for t in self.tensors:
            counts[t.type.name] = counts.get(t.type.name, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: -item[1]))


@dataclass(frozen=True)
class Plan:
    """All that `write` needs. `metadata` is what every level's header has in common."""

    checkpoint: Checkpoint
    family: Family
    adapters: tuple[Adapter, ...]
    jobs: tuple[Job, ...]
    levels: tuple[PlannedLevel, ...]
    metadata: Entries
    warnings: tuple[str, ...]

    @property
    def source_bytes(self) -> int:
        return sum(job.source.nbytes for job in self.jobs if job.source)

    @property
    def types(self) -> set[GGMLQuantizationType]:
        """Every type that some level stores."""
        return {t.type for level in self.levels for t in level.tensors}

    @property
    def n_weights(self) -> int:
        return sum(job.n_elements for job in self.jobs)

    @property
    def license(self) -> str | None:
        entry = self.metadata.get("general.license.name") or self.metadata.get("general.license")
        return str(entry[0]) if entry else None


def make_plan(
    folder: Path,
    levels: Sequence[Level],
    out: Path,
    *,
    stem: str,
    name: str | None = None,
    adapters: Sequence[tuple[Path, float]] = (),
    overwrite: bool = False,
    dry_run: bool = False,
) -> Plan:
    """Check everything that can be checked and lay out every file.

    Raises DataError, InputMissing, CannotCreate, NotPermitted or NativeError, in the first second or so.
    """
    paths = [out / f"{stem}-{level.name}.gguf" for level in levels]
    if not dry_run:
        for path in paths:
            check_target(path, overwrite)
            check_target(path.with_suffix(".json"), overwrite)
    checkpoint = Checkpoint(folder)
    family = find_family(checkpoint.config)
    dims = dimensions(family, checkpoint.config)
    bound = tuple(Adapter(path, checkpoint, weight) for path, weight in adapters)
    jobs = _make_jobs(checkpoint, family, dims, bound)
    vocabulary = read_vocabulary(folder, dims["n_vocab"])
    n_weights = sum(job.n_elements for job in jobs)
    metadata = build_metadata(folder, name, family, checkpoint.config, dims, vocabulary, n_weights)
    types = choose_types(levels, metadata, [gguf.Tensor(j.name, j.gguf_shape, _converted_type(j)) for j in jobs])
    common = gguf.pack_metadata(metadata)
    planned = []
    for level, path in zip(levels, paths, strict=True):
        tensors, data_bytes = gguf.layout([gguf.Tensor(j.name, j.gguf_shape, types[level.name][j.name]) for j in jobs])
        file_type = gguf.pack_metadata({"general.file_type": (level.ftype, gguf.UINT32, None)})
        header = gguf.pack_header([common, file_type], len(metadata) + 1, tensors)
        planned.append(PlannedLevel(level, path, header, tuple(tensors), data_bytes))
    if not dry_run:
        _check_room(out, planned)
    warnings = [*vocabulary.warnings, *(w for a in bound for w in a.warnings)]
    return Plan(checkpoint, family, bound, jobs, tuple(planned), metadata, tuple(warnings))


def _converted_type(job: Job) -> GGMLQuantizationType:
    """The type llama.cpp's converter gives a tensor with `--outtype bf16`: vectors stay F32."""
    return GGMLQuantizationType.F32 if job.is_vector else GGMLQuantizationType.BF16


def _make_jobs(
    checkpoint: Checkpoint, family: Family, dims: dict[str, int], adapters: Sequence[Adapter]
) -> tuple[Job, ...]:
    rules = expected_rules(family, checkpoint.config)
    _check_names(checkpoint, family, rules)
    jobs = []
    if family.llama3_rope and rope_parameters(checkpoint.config).get("rope_type") == "llama3":
        factors = llama3_rope_factors(checkpoint.config, dims["head_dim"])
        jobs.append(Job("rope_freqs.weight", factors.size, 1, True, constant=factors))
    for rule in rules:
        tensor = checkpoint.tensors[rule.hf]
        expected = tuple(dims[d] for d in rule.shape)
        if tensor.shape != expected:
            raise DataError(
                f"{tensor.path.name}: {rule.hf} has shape {list(tensor.shape)}, "
                f"config.json says {list(expected)} ({' × '.join(rule.shape)})"
            )
        if tensor.dtype not in WEIGHT_DTYPES:
            raise DataError(
                f"{tensor.path.name}: {rule.hf} has dtype {tensor.dtype}, expected one of {', '.join(WEIGHT_DTYPES)}"
            )
        touching = tuple(a for a in adapters if rule.hf in a.pairs)
        jobs.append(
            Job(
                rule.gguf,
                expected[0],
                expected[1] if len(expected) == 2 else 1,
                len(expected) == 1,
                tensor,
                touching,
                dims["head_dim"] if rule.rotary else 0,
            )
        )
    used = {rule.hf for rule in rules}
    for adapter in adapters:
        if unused := sorted(set(adapter.pairs) - used):
            what = "the head, which is tied to the embedding" if unused[0] == family.head else unused[0]
            raise DataError(f"adapter {adapter.folder.name}: changes {what}, which this version does not support")
        if family.embedding in adapter.pairs:
            raise DataError(f"adapter {adapter.folder.name}: trains the embedding, which is not supported yet")
    return tuple(jobs)


def _check_names(checkpoint: Checkpoint, family: Family, rules: Sequence[Rule]) -> None:
    wanted = {rule.hf for rule in rules}
    ignored = {n for n in checkpoint.tensors if n.endswith(IGNORED_SUFFIXES)}
    if is_tied(checkpoint.config):
        ignored.add(family.head)  # some savers write the tied head again; the model uses the embedding
    found = set(checkpoint.tensors) - ignored
    for what, names in (("lacks", sorted(wanted - found)), ("has", sorted(found - wanted))):
        if names:
            more = f" and {len(names) - 1} more" if names[1:] else ""
            tail = "" if what == "lacks" else f", which {family.title} does not have"
            raise DataError(f"{checkpoint.folder.name}: the checkpoint {what} {names[0]}{more}{tail}")


def _check_room(out: Path, levels: Sequence[PlannedLevel]) -> None:
    needed = sum(p.total_bytes for p in levels) + DISK_MARGIN
    free = shutil.disk_usage(out).free
    if needed > free:
        raise CannotCreate(
            f"{out}: {needed / 1e9:.1f} GB are needed for {len(levels)} level(s), {free / 1e9:.1f} GB are free; "
            "free some space, choose another --out, or fewer levels"
        )
