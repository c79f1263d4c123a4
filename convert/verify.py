"""Verifying: is this GGUF that base plus those adapters? Everything is computed again and compared, tensor by tensor.

Nothing is written. On the same build of llama.cpp a good file is equal to the byte; another build, processor or BLAS
may round differently, which `Verdict.distance` measures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from jmedlite.base import gguf
from jmedlite.base.errors import DataError, UsageError
from jmedlite.base.imatrix import Imatrix
from jmedlite.base.manifest import MADE_MOMENTS
from jmedlite.base.moments import Moments
from jmedlite.base.native import F32, U8, decodes, encodes, widen
from jmedlite.base.progress import Progress, silent
from jmedlite.convert.encoding.encoders import GGML, MADE_WITH_ENCODER, Encoder, find_encoder, recorded_encoder
from jmedlite.convert.levels.recipes import Level, requires_importance
from jmedlite.convert.sources.tensors import Files, StoredTensor

from .pipeline import Encoded, encode_blocks
from .planning import PlannedFile, PlannedLevel, QuantizePlan, assemble
from .rows import Block

IDENTICAL, NEAR, DIFFERENT, MISSING, EXTRA, SHAPE = "identical", "near", "different", "missing", "extra", "shape"
_NOT_COMPARED = ("general.", "jmedlite.made.", "quantize.imatrix.", "split.")


@dataclass(frozen=True)
class Verdict:
    """One tensor: `distance` is ‖file − expected‖ / ‖exact‖, decoded; `blocks` of ggml differ, out of `n_blocks`."""

    name: str
    type: str
    state: str
    changed_by_adapter: bool = False
    distance: float = 0.0
    blocks: int = 0
    n_blocks: int = 0


@dataclass(frozen=True)
class VerifyReport:
    """The answer: `metadata` lists keys whose values are other than the base's."""

    path: Path
    tensors: tuple[Verdict, ...]
    metadata: tuple[str, ...]
    tolerance: float

    @property
    def wrong(self) -> list[Verdict]:
        """The tensors that are not what they should be."""
        return [v for v in self.tensors if v.state not in (IDENTICAL, NEAR)]

    @property
    def holds(self) -> bool:
        return not self.wrong and not self.metadata

    def reason(self) -> str:
        """What the differences look like, in a few words."""
        states = {v.state for v in self.wrong}
        names = {v.name for v in self.wrong}
        if SHAPE in states:
            return "it has other shapes, so it is another model"
        if states & {MISSING, EXTRA}:
            if names == {"output.weight"}:
                return "its head is " + (
                    "tied, expected one of its own" if MISSING in states else "not tied as expected"
                )
            return "it has other tensors, so it is another model or was put together otherwise"
        touched = {v.name for v in self.tensors if v.changed_by_adapter}
        compared = [v for v in self.tensors if v.n_blocks]
        if max((v.distance for v in self.wrong), default=0.0) < 1e-4 and len(compared) > 1:
            few = sum(v.blocks for v in self.wrong) <= 4
            return "a few bytes are damaged" if few else "only the rounding differs: another build or processor?"
        if names and names <= touched:
            all_of_them = "" if names == touched else f" ({len(names)} of the {len(touched)} weights it changes)"
            return f"the base is right; the adapter, its scale or its order is another{all_of_them}"
        if touched and names.isdisjoint(touched):
            return "the adapter is right where it changes the model, but the base is another or damaged"
        if len(names) > len(compared) / 2:
            return "it is another base, or its weights were rounded or ordered otherwise"
        return "single tensors differ: damaged, or changed afterwards" if names else "its metadata is another's"


class _Comparison:
    """The running comparison of one tensor."""

    def __init__(self, stored: StoredTensor, changed: bool) -> None:
        self.stored, self.changed = stored, changed
        self.blocks, self.error, self.energy = 0, 0.0, 0.0

    def add(self, block: Block, encoded: Encoded, files: Files) -> None:
        type_ = GGMLQuantizationType[self.stored.dtype]
        ours = encoded.data[type_]
        theirs = np.empty(ours.size, np.uint8)
        files.read(self.stored, gguf.nbytes(type_, block.start * block.job.n_cols), theirs)
        self.energy += encoded.energy
        if np.array_equal(ours, theirs):
            return
        size = GGML_QUANT_SIZES[type_][1]
        self.blocks += int((ours.reshape(-1, size) != theirs.reshape(-1, size)).any(axis=1).sum())
        if not decodes(self.stored.dtype):  # a copy of whole numbers: equal or not
            self.error = math.inf
            return
        n = block.n_rows * block.job.n_cols
        with np.errstate(over="ignore", invalid="ignore"):
            difference = _decode(theirs, self.stored.dtype, n) - _decode(ours, self.stored.dtype, n)
            self.error += float(np.dot(difference, difference))

    def verdict(self, tolerance: float) -> Verdict:
        block, _ = GGML_QUANT_SIZES[GGMLQuantizationType[self.stored.dtype]]
        distance = math.sqrt(self.error / self.energy) if self.energy else math.inf if self.error else 0.0
        near = distance <= tolerance  # False for NaN
        state = IDENTICAL if not self.blocks else NEAR if near and tolerance else DIFFERENT
        n_blocks = self.stored.n_elements // int(block)
        return Verdict(self.stored.name, self.stored.dtype, state, self.changed, distance, self.blocks, n_blocks)


def _decode(raw: U8, dtype: str, n: int) -> F32:
    out = np.empty(n, np.float32)
    widen(raw, dtype, out)
    return out


def compare_with_base(
    path: Path,
    parts: tuple[gguf.Header, Mapping[str, StoredTensor]],
    base: Path,
    *,
    adapters: Sequence[tuple[Path, float]] = (),
    imatrix: Imatrix | None = None,
    moments: Moments | None = None,
    tolerance: float = 0.0,
    requantize: bool = False,
    encoder: str | None = None,
    threads: int = 1,
    memory: int | None = None,
    progress: Progress = silent,
) -> VerifyReport:
    """Compare the GGUF at `path` (`parts`: what `read_parts` gives) with what `base` and `adapters` give at its types.

    A tensor within `tolerance` (relative distance, see Verdict) passes. `encoder` is the one that the file says it was
    made with, unless it is named. Raises DataError where the file was made with an importance matrix or second moments
    and none are given, and what reading the inputs raises.
    """
    header, stored = parts
    made_with = header.metadata.get("quantize.imatrix.file")
    if made_with and imatrix is None:
        raise DataError(f"{path.name}: was made with the importance matrix {made_with}; give it with --imatrix")
    if MADE_MOMENTS in header.metadata and moments is None:
        rounded_by = str(header.metadata[MADE_MOMENTS]).partition(",")[0]
        raise DataError(f"{path.name}: was rounded by the second moments {rounded_by}; give them with --moments")
    if moments is not None and MADE_MOMENTS not in header.metadata:
        raise UsageError(f"{path.name}: was not rounded by second moments; leave --moments out")
    with_encoder = find_encoder(encoder) if encoder else _encoder_of(path, header)
    plan = assemble(
        base, adapters=adapters, imatrix=imatrix, moments=moments, requantize=requantize, encoder=with_encoder
    )
    if any(path.samefile(f) for f in plan.weight_files):
        raise UsageError(f"{path}: is the base itself; give what it was made from")
    verdicts: list[Verdict] = []
    comparisons: dict[str, _Comparison] = {}
    for job in plan.jobs:
        if job.name not in stored:
            verdicts.append(Verdict(job.name, "", MISSING, bool(job.updates)))
        elif stored[job.name].shape[::-1] != job.gguf_shape:
            verdicts.append(Verdict(job.name, stored[job.name].dtype, SHAPE, bool(job.updates)))
        else:
            comparisons[job.name] = _Comparison(stored[job.name], bool(job.updates))
    verdicts += [Verdict(n, t.dtype, EXTRA) for n, t in stored.items() if n not in {job.name for job in plan.jobs}]
    if comparisons:
        plan = _at_types_of(plan, comparisons)
        for block, encoded in encode_blocks(plan, "verifying", threads=threads, memory=memory, progress=progress):
            comparisons[block.job.name].add(block, encoded, plan.files)
    plan.files.close()
    verdicts += [c.verdict(tolerance) for c in comparisons.values()]
    return VerifyReport(path, tuple(verdicts), tuple(_other_metadata(plan.metadata, header)), tolerance)


def _encoder_of(path: Path, header: gguf.Header) -> Encoder:
    """The encoder that the file's metadata names; ggml's where they name none."""
    return recorded_encoder(header.metadata.get(MADE_WITH_ENCODER, GGML.name), path.name)


def _at_types_of(plan: QuantizePlan, stored: Mapping[str, _Comparison]) -> QuantizePlan:
    """The plan of the tensors in `stored`, at the types they have there, for a file that is never written."""
    jobs = tuple(job for job in plan.jobs if job.name in stored)
    for job in jobs:
        type_ = stored[job.name].stored.dtype
        copied = job.kept_type is not None and job.kept_type.name == type_
        if not encodes(type_) and not copied:
            raise DataError(f"{job.name}: is stored as {type_}, as no tensor is made from this base; is it damaged?")
        # without one ggml would end the process
        if job.importance is None and requires_importance(job.name, GGMLQuantizationType[type_]):
            raise DataError(
                f"{job.name}: is stored as {type_}, which is made with an importance matrix; give it with --imatrix"
            )
    tensors = tuple(
        gguf.Tensor(job.name, job.gguf_shape, GGMLQuantizationType[stored[job.name].stored.dtype]) for job in jobs
    )
    nowhere = Path()
    level = PlannedLevel(Level("", 0), nowhere, nowhere, (PlannedFile(nowhere, b"", tensors, 0),))
    return replace(plan, jobs=jobs, levels=(level,))


def _other_metadata(expected: gguf.Entries, header: gguf.Header) -> list[str]:
    """The keys of architecture and vocabulary that the file has otherwise, or not at all."""
    found = []
    for key, entry in expected.items():
        if key.startswith(_NOT_COMPARED):
            continue
        kind = header.types.get(key)
        same = kind is not None and gguf.pack_value(*entry) == gguf.pack_value(
            header.metadata[key], kind[0], kind[1] if kind[0] == gguf.ARRAY else None
        )
        if not same:
            found.append(key)
    return found
