"""What will be written, known in full before the first byte: tensors, types, sizes, headers, room on the disk."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from gguf.constants import GGMLQuantizationType

from jmedlite.base import gguf
from jmedlite.base.errors import CannotCreate, DataError, InputMissing, UsageError
from jmedlite.base.imatrix import Imatrix
from jmedlite.base.looking import exists, is_dir, is_file
from jmedlite.base.manifest import MADE_QUANTIZED
from jmedlite.base.moments import Moments
from jmedlite.base.native import F32
from jmedlite.base.publishing import check_target
from jmedlite.convert.adapters.gguf_lora import GgufAdapter
from jmedlite.convert.adapters.lora import Adapter, has_effect
from jmedlite.convert.adapters.mlx import MlxAdapter
from jmedlite.convert.adapters.peft import PeftAdapter
from jmedlite.convert.encoding.encoders import GGML, ROUNDED, Encoder
from jmedlite.convert.families.row_order import Order, TiledHeads
from jmedlite.convert.levels.recipes import EMBEDDING, HEAD, Level
from jmedlite.convert.metadata.specials import AdapterFiles
from jmedlite.convert.metadata.tokenizer_files import read_tokenizer_files
from jmedlite.convert.sources.base import Base, SourceModel, Spec
from jmedlite.convert.sources.checkpoint_model import CheckpointModel
from jmedlite.convert.sources.gguf_model import GgufModel
from jmedlite.convert.sources.mistaken import is_mlx
from jmedlite.convert.sources.stacked import StackedTensor
from jmedlite.convert.sources.tensors import Files, Weights
from jmedlite.runtime.type_probe import TypeRule

DISK_MARGIN = 64 << 20
# matrices that llama.cpp keeps in float32 at every level
WHOLE = ("ffn_gate_inp.weight", "ssm_conv1d.weight", "shortconv.conv.weight", "position_embd.weight")


class JobUpdate(NamedTuple):
    """What an adapter does to a tensor: its name for the weight, how its rows and columns move, and which expert's
    matrix it is."""

    adapter: Adapter
    key: str
    order: Order | None
    columns: TiledHeads | None
    matrix: int | None = None


@dataclass(frozen=True)
class TensorJob:
    """One tensor of the output: where it comes from, what is added, how its rows move.

    `n_rows`, `n_cols` describe the stored tensor (a vector is one column); `order` and `columns` are how the source's
    move, and each of `updates` says how its own do. `plus` is added at the end, or -e^x taken. `constant` holds the
    values of a tensor that no checkpoint has, `importance` (n_matrices, n_cols) a weight for every column, of every
    expert.
    """

    name: str
    gguf_shape: tuple[int, ...]
    source: Weights | None
    updates: tuple[JobUpdate, ...] = ()
    order: Order | None = None
    columns: TiledHeads | None = None
    plus: float = 0.0
    negated_exp: bool = False
    constant: F32 | None = None
    importance: F32 | None = None
    feeds_back: bool = False  # second moments of its input are known
    from_gguf: bool = False

    @property
    def is_vector(self) -> bool:
        return len(self.gguf_shape) == 1

    @property
    def n_cols(self) -> int:
        return 1 if self.is_vector else self.gguf_shape[0]

    @property
    def n_rows(self) -> int:
        return self.n_elements // self.n_cols

    @property
    def n_matrices(self) -> int:
        """Experts; 1 where there are none."""
        return math.prod(self.gguf_shape[2:])

    @property
    def matrix_rows(self) -> int:
        """Rows of one expert's matrix; all of them where there are no experts."""
        return self.n_rows // self.n_matrices

    @property
    def mean_importance(self) -> F32 | None:
        """A weight for every column (n_cols,), the mean of all experts'."""
        return None if self.importance is None else self.importance.mean(axis=0)

    @property
    def n_elements(self) -> int:
        return math.prod(self.gguf_shape)

    @property
    def head_rows(self) -> int:
        """Rows that must not be torn apart: one head's, where any rows move; else 1."""
        orders = [self.order, *(update.order for update in self.updates)]
        return max((order.head_dim for order in orders if order), default=1)

    @property
    def is_untouched(self) -> bool:
        """Do the values reach the output as they are stored?"""
        moved = self.order is not None or self.columns is not None
        return self.source is not None and not (self.updates or moved or self.plus or self.negated_exp)

    @property
    def kept_type(self) -> GGMLQuantizationType | None:
        """The type in which its bytes are the output's as they are read, where there is one."""
        return GGMLQuantizationType.__members__.get(self.source.dtype) if self.source and self.is_untouched else None


@dataclass(frozen=True)
class PlannedFile:
    """One output file, to the byte."""

    path: Path
    header: bytes
    tensors: tuple[gguf.Tensor, ...]
    data_bytes: int

    first: int = 0  # of the plan's jobs, the one that its tensors begin with

    @property
    def total_bytes(self) -> int:
        return len(self.header) + self.data_bytes

    def bytes_of(self, n_jobs: int) -> int:
        """How long it is when the plan's first `n_jobs` are done."""
        done = self.tensors[: max(0, n_jobs - self.first)]
        return len(self.header) + sum(gguf.pad(t.nbytes) for t in done)


@dataclass(frozen=True)
class PlannedLevel:
    """One level: usually one file, several where their size is bounded."""

    level: Level
    path: Path  # what the user opens: the (first) file
    manifest: Path
    files: tuple[PlannedFile, ...]

    @cached_property
    def tensors(self) -> tuple[gguf.Tensor, ...]:
        """Of all files, in the order of the jobs."""
        return tuple(t for f in self.files for t in f.tensors)

    @property
    def total_bytes(self) -> int:
        return sum(f.total_bytes for f in self.files)

    @property
    def bits_per_weight(self) -> float:
        return 8 * sum(t.nbytes for t in self.tensors) / sum(t.n_elements for t in self.tensors)

    def type_counts(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for t in self.tensors:
            counts[t.type.name] = counts.get(t.type.name, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: -item[1]))


@dataclass(frozen=True)
class QuantizePlan:
    """All that the pass needs. `metadata` is what every level's header has in common, `rules` the types set for single
    tensors, each with the number of tensors that it decides about; `encoder` makes the blocks."""

    label: str
    title: str
    architecture: str
    files: Files
    adapters: tuple[Adapter, ...]
    imatrix: Imatrix | None
    moments: Moments | None
    jobs: tuple[TensorJob, ...]
    levels: tuple[PlannedLevel, ...]
    metadata: gguf.Entries
    warnings: tuple[str, ...]
    quantized: str | None = None  # how the base's weights are stored, where they are quantized already
    rules: tuple[tuple[TypeRule, int], ...] = ()
    encoder: Encoder = GGML

    @property
    def source_bytes(self) -> int:
        return sum(job.source.nbytes for job in self.jobs if job.source)

    @property
    def weight_files(self) -> list[Path]:
        """The files of the base model that are read; an adapter's are its own."""
        own = {f for adapter in self.adapters for f in adapter.files}
        return sorted({path for job in self.jobs if job.source for path in job.source.paths} - own)

    @property
    def types(self) -> set[GGMLQuantizationType]:
        """Every type that some level stores."""
        return {t.type for level in self.levels for t in level.tensors}

    @property
    def n_weights(self) -> int:
        return sum(job.n_elements for job in self.jobs)

    def left_to_ggml(self, level: PlannedLevel) -> list[str]:
        """The types of a level that `encoder` leaves to ggml's, in all tensors or in some."""
        pairs = zip(self.jobs, level.tensors, strict=True)
        return sorted(
            {
                tensor.type.name
                for job, tensor in pairs
                if tensor.type not in ROUNDED
                and not self.encoder.has(tensor.type, job.importance is not None)
                and tensor.type != job.kept_type
            }
        )

    @property
    def stored_tensors(self) -> list[gguf.Tensor]:
        """The output's tensors, in the types that llama.cpp's quantizer would find."""
        return [gguf.Tensor(job.name, job.gguf_shape, _stored_type(job)) for job in self.jobs]

    @property
    def license(self) -> str | None:
        entry = self.metadata.get("general.license.name") or self.metadata.get("general.license")
        return str(entry[0]) if entry else None


def lay_out(
    plan: QuantizePlan,
    levels: Sequence[Level],
    types: Mapping[str, Mapping[str, GGMLQuantizationType]],
    out: Path,
    *,
    stem: str,
    own_metadata: Mapping[str, Mapping[str, str]] | None = None,
    split_bytes: int | None = None,
    overwrite: bool = False,
    goes_on: bool = False,
    dry_run: bool = False,
) -> QuantizePlan:
    """The assembled plan with the files of its levels, whose tensors have `types`, by level and name.

    `own_metadata` are keys that a level alone has. Raises UsageError or CannotCreate.
    """
    if not dry_run:  # the parts of a split file are checked when their number is known
        check_targets(out, stem, levels, overwrite, goes_on=goes_on)
    own = own_metadata or {}
    planned = [
        _plan_level(out, stem, level, plan, types[level.name], split_bytes, own.get(level.name, {})) for level in levels
    ]
    if not dry_run:
        for target in (f.path for p in planned for f in p.files if len(p.files) > 1):
            check_target(target, overwrite, goes_on=goes_on)
        _check_room(out, planned)
    return replace(plan, levels=tuple(planned))


def check_targets(out: Path, stem: str, levels: Sequence[Level], overwrite: bool, *, goes_on: bool = False) -> None:
    """Raise CannotCreate where a level's file or manifest is there already, or can't be."""
    for level in levels:
        for suffix in (".gguf", ".json"):
            check_target(out / f"{stem}-{level.name}{suffix}", overwrite, goes_on=goes_on)


def file_overhead(plan: QuantizePlan, types: Mapping[str, GGMLQuantizationType]) -> int:
    """Bytes of one file besides its tensors' data: the header, and the room between tensors, to a few bytes."""
    level = _plan_level(Path(), "", Level("", 0), plan, types, None, {})
    return level.total_bytes - sum(t.nbytes for t in level.tensors)


def assemble(
    path: Path,
    *,
    name: str | None = None,
    adapters: Sequence[tuple[Path, float]] = (),
    imatrix: Imatrix | None = None,
    moments: Moments | None = None,
    made_from: Mapping[str, str] | None = None,
    requantize: bool = False,
    encoder: Encoder = GGML,
) -> QuantizePlan:
    """The jobs and the metadata, before any level.

    `path` is a checkpoint folder or a GGUF file; `made_from` goes into the metadata, under `jmedlite.made.`. Raises
    DataError, InputMissing, CannotCreate, NotPermitted or NativeError, in the first second or so.
    """
    files = Files()
    model = open_model(path, files, requantize=requantize)
    bound = bind_adapters(model, adapters, files)
    jobs = make_jobs(model, bound)
    if imatrix is not None:
        jobs = [replace(job, importance=_importance(job, imatrix)) for job in jobs]
    if moments is not None:
        # where there is a head, nothing is multiplied by the embedding, though it was in the model of the moments
        looked_up = {EMBEDDING} if any(job.name == HEAD for job in jobs) else set()
        jobs = [replace(job, feeds_back=job.name not in looked_up and _feeds_back(job, moments)) for job in jobs]
    n_vocab = next(job.n_rows for job in jobs if job.name == EMBEDDING)
    metadata, warnings = model.metadata(name, sum(job.n_elements for job in jobs), n_vocab, tokenizers(model, bound))
    for key, value in {**_of_imatrix(imatrix), **(made_from or {})}.items():
        metadata[key] = (value, gguf.STRING if isinstance(value, str) else gguf.UINT32, None)
    warnings += [w for a in bound for w in a.warnings]
    if imatrix is not None and (unseen := imatrix.unseen):
        warnings.append(unseen)
    if model.quantized:
        metadata[MADE_QUANTIZED] = (model.quantized, gguf.STRING, None)
        if bound:
            warnings.append(
                f"{model.label}: adapters are added to its decoded weights, which are those that an adapter met if it "
                "was trained on them; one trained on the original belongs to the original"
            )
    return QuantizePlan(
        model.label, model.title, model.architecture, files, tuple(bound), imatrix, moments, tuple(jobs), (), metadata,
        tuple(warnings), quantized=model.quantized, encoder=encoder,
    )  # fmt: skip


def open_model(path: Path, files: Files, *, requantize: bool = False) -> SourceModel:
    """A checkpoint folder or a GGUF file as a model to convert."""
    return CheckpointModel(path, files) if is_dir(path) else GgufModel(path, files, requantize=requantize)


def bind_adapters(model: SourceModel, adapters: Sequence[tuple[Path, float]], files: Files) -> list[Adapter]:
    """The adapters, PEFT folders or GGUF files, checked against the model."""
    base: Base | None = None
    bound: list[Adapter] = []
    shapes = {spec.name: spec.shape for spec in model.specs}
    for path, weight in adapters:
        if is_file(path):
            bound.append(GgufAdapter(path, model.architecture, shapes, weight))
        elif not is_dir(path):
            raise InputMissing(f"{path}: no such adapter; expected a PEFT folder or a GGUF file")
        else:
            base = base or model.base()
            bound.append((MlxAdapter if is_mlx(path) else PeftAdapter)(path, base, weight))
        if not has_effect(bound[-1], files):
            bound[-1].warnings.append(f"{bound[-1].name}: changes nothing, {_why_nothing(bound[-1])}")
    return bound


def _why_nothing(adapter: Adapter) -> str:
    if adapter.weight == 0:
        return "its weight is 0"
    if all(update.scale == 0 for update in adapter.updates.values()):
        return "its alpha is 0"
    return "one matrix of every pair is all zero: was it trained, and saved whole?"


def make_jobs(model: SourceModel, adapters: Sequence[Adapter]) -> list[TensorJob]:
    """One job per output tensor, with what the adapters do to it; raises DataError where one does nothing at all."""
    specs = list(model.specs)
    if head := _untied_head(model, adapters):
        specs.append(head)
    used: set[tuple[int, str]] = set()
    jobs = [_job(spec, adapters, used) for spec in specs]
    for i, adapter in enumerate(adapters):
        for key in (*adapter.updates, *adapter.replaced):
            if (i, key) not in used:
                raise DataError(f"adapter {adapter.name}: changes {key}, which llama.cpp has no place for here")
    return jobs


def _untied_head(model: SourceModel, adapters: Sequence[Adapter]) -> Spec | None:
    """The head of its own that a tied model needs once an adapter changes embedding or head alone."""
    names = {spec.name: spec for spec in model.specs}
    if HEAD in names:
        return None
    tables = {names[EMBEDDING].key, model.head.key if model.head else None}
    for adapter in adapters:
        # a GGUF adapter for a tied model means the one table (llama.cpp's own merge does)
        if adapter.ties_head or adapter.in_gguf_order or tables.isdisjoint((*adapter.updates, *adapter.replaced)):
            continue
        if model.head is None:
            raise DataError(
                f"adapter {adapter.name}: changes the embedding or the head alone, which are one and the same in every "
                f"{model.title} that llama.cpp can run"
            )
        return model.head
    return None


def _job(spec: Spec, adapters: Sequence[Adapter], used: set[tuple[int, str]]) -> TensorJob:
    source, in_order = spec.source, spec.in_order
    parts = [weights for _, weights in spec.parts]
    updates: list[JobUpdate] = []
    for i, adapter in enumerate(adapters):
        # (its name for the weight, which matrix that is)
        keys: Iterable[tuple[str | None, int | None]] = ((key, m) for m, (key, _) in enumerate(spec.parts))
        if adapter.in_gguf_order or not spec.parts:
            keys = [(spec.name if adapter.in_gguf_order else spec.key, None)]
        for key, matrix in keys:
            if key is None:
                continue
            if key in adapter.replaced:
                if any((j, key) in used for j in range(i)):
                    raise DataError(
                        f"adapter {adapter.name}: replaces {key}, which another adapter has changed already"
                    )
                if matrix is None:
                    source, in_order = adapter.replaced[key], False
                else:
                    parts[matrix] = adapter.replaced[key]
                used.add((i, key))
            if key in adapter.updates:
                order, columns = (None, None) if adapter.in_gguf_order else (spec.order, spec.columns)
                updates.append(JobUpdate(adapter, key, order, columns, matrix))
                used.add((i, key))
    if parts:
        source = StackedTensor(spec.name, tuple(parts))
    shape = spec.shape  # of the checkpoint's, dimensions of one are left out; an adapter may bring more rows
    if source and len(spec.shape) > 1:
        shape = (source.shape[0], *spec.shape[1:])
    return TensorJob(
        spec.name,
        shape[::-1],
        source,
        tuple(updates),
        None if in_order else spec.order,
        None if in_order else spec.columns,
        0.0 if in_order else spec.plus,
        spec.negated_exp and not in_order,
        spec.constant,
        from_gguf=in_order,
    )


def tokenizers(model: SourceModel, adapters: Sequence[Adapter]) -> list[AdapterFiles]:
    """What the adapters' folders hold of tokenizers; an adapter that is subtracted has no say."""
    embedding = next(spec.key for spec in model.specs if spec.name == EMBEDDING)
    return [
        AdapterFiles(a.name, read_tokenizer_files(a.folder), embedding in a.replaced or embedding in a.updates)
        for a in adapters
        if a.folder is not None and a.weight > 0
    ]


def _importance(job: TensorJob, imatrix: Imatrix) -> F32 | None:
    """The column weights of one tensor (n_matrices, n_cols); None where the matrix has none."""
    found = imatrix.weights.get(job.name)
    if found is None or job.is_vector:
        return None
    if found.size != job.n_cols * job.n_matrices:
        if job.name == EMBEDDING:
            return None
        raise DataError(
            f"{imatrix.path.name}: has {found.size:,} values for {job.name}, which has "
            f"{job.n_cols * job.n_matrices:,} columns; it was made for another model"
        )
    return found.reshape(job.n_matrices, job.n_cols)


def _feeds_back(job: TensorJob, moments: Moments) -> bool:
    """Are the second moments of a weight's input known? Experts' are not, nor an embedding's that is not the head."""
    n_cols = moments.n_cols(job.name)
    if n_cols is None or len(job.gguf_shape) != 2:
        return False
    if n_cols != job.n_cols:
        raise DataError(
            f"{moments.path.name}: has {n_cols:,} columns for {job.name}, which has {job.n_cols:,}; it was made for "
            "another model"
        )
    return True


def _of_imatrix(imatrix: Imatrix | None) -> dict[str, str | int]:
    """The keys by which llama-quantize records an importance matrix; the file's name only, no path."""
    if imatrix is None:
        return {}
    found: dict[str, str | int] = {"quantize.imatrix.file": imatrix.path.name}
    if imatrix.datasets:
        found["quantize.imatrix.dataset"] = imatrix.datasets[0]
    found["quantize.imatrix.entries_count"] = len(imatrix.weights)
    if imatrix.chunks:
        found["quantize.imatrix.chunks_count"] = imatrix.chunks
    return found


def _stored_type(job: TensorJob) -> GGMLQuantizationType:
    """The type llama.cpp's quantizer would find: the GGUF's own, or what its converter writes (`--outtype bf16`)."""
    if job.from_gguf and job.source:
        return GGMLQuantizationType[job.source.dtype]
    if job.kept_type == GGMLQuantizationType.MXFP4:
        return GGMLQuantizationType.MXFP4
    whole = job.is_vector or job.name.endswith(WHOLE) or not job.name.endswith(".weight")
    return GGMLQuantizationType.F32 if whole else GGMLQuantizationType.BF16


def _plan_level(
    out: Path,
    stem: str,
    level: Level,
    plan: QuantizePlan,
    types: Mapping[str, GGMLQuantizationType],
    split_bytes: int | None,
    own_metadata: Mapping[str, str],
) -> PlannedLevel:
    tensors = [gguf.Tensor(job.name, job.gguf_shape, types[job.name]) for job in plan.jobs]
    parts = _split(tensors, split_bytes)
    entries: gguf.Entries = {**plan.metadata, "general.file_type": (level.ftype, gguf.UINT32, None)}
    entries |= {key: (value, gguf.STRING, None) for key, value in own_metadata.items()}
    planned: list[PlannedFile] = []
    for i, part in enumerate(parts):
        own: gguf.Entries = entries if i == 0 else {}
        name = f"{stem}-{level.name}.gguf"
        if len(parts) > 1:
            own = {
                **own,
                gguf.SPLIT_NO: (i, gguf.UINT16, None),
                gguf.SPLIT_COUNT: (len(parts), gguf.UINT16, None),
                gguf.SPLIT_TENSORS: (len(tensors), gguf.INT32, None),
            }
            name = gguf.split_name(f"{stem}-{level.name}", i, len(parts))
        placed, data_bytes = gguf.layout(part)
        header = gguf.pack_header([gguf.pack_metadata(own)], len(own), placed)
        first = sum(len(p.tensors) for p in planned)
        planned.append(PlannedFile(out / name, header, tuple(placed), data_bytes, first))
    return PlannedLevel(level, planned[0].path, out / f"{stem}-{level.name}.json", tuple(planned))


def _split(tensors: Sequence[gguf.Tensor], limit: int | None) -> list[list[gguf.Tensor]]:
    """Consecutive tensors whose data stay under `limit` bytes a file; a tensor is never cut."""
    parts: list[list[gguf.Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        length = gguf.pad(tensor.nbytes)
        if limit is not None and length > limit:
            raise UsageError(
                f"--split-max-size {limit / 1e6:,.0f}MB: {tensor.name} alone takes {length / 1e6:,.0f} MB, "
                "and a tensor can't be cut"
            )
        if limit is not None and parts[-1] and size + length > limit:
            parts.append([])
            size = 0
        parts[-1].append(tensor)
        size += length
    return parts


def _check_room(out: Path, levels: Sequence[PlannedLevel]) -> None:
    needed = sum(p.total_bytes for p in levels) + DISK_MARGIN
    partial = [f.path.with_name(f".{f.path.name}.partial") for level in levels for f in level.files]
    free = shutil.disk_usage(out).free + sum(p.stat().st_size for p in partial if exists(p))
    if needed > free:
        raise CannotCreate(
            f"{out}: {needed / 1e9:.1f} GB are needed for {len(levels)} level(s), {free / 1e9:.1f} GB are free; "
            "free some space, choose another --out, or fewer levels"
        )
