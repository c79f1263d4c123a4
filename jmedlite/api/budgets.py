"""Budgets: `--target-bpw`, `--target-size` and `--fit-ram` as the bytes that a mix of types may take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jmedlite.base.errors import UsageError
from jmedlite.base.gguf import Tensor
from jmedlite.base.inputs import check_range
from jmedlite.base.manifest import MixEntry
from jmedlite.base.options import parse_memory
from jmedlite.base.progress import Progress
from jmedlite.base.sensitivity import Sensitivities, read_sensitivities
from jmedlite.convert.mixing import Budget, Mix, Mixer, check_names
from jmedlite.convert.planning import QuantizePlan
from jmedlite.runtime.offload import MARGIN, Machine, Wish, make_offload_plan
from jmedlite.runtime.shape import shape_of
from jmedlite.runtime.type_probe import TypeRule

FIT_CTX = 4096


@dataclass(frozen=True)
class Targets:
    """What was asked for: bits per weight, sizes of files, memory (as text, such as "4.7GB"), each a level of its own.

    Memory is what the model may take when it runs on the processor with a context of `fit_ctx` tokens; what the
    system keeps free is not in it.
    """

    bits_per_weight: Sequence[float] = ()
    sizes: Sequence[str] = ()
    memories: Sequence[str] = ()
    fit_ctx: int | None = None
    sensitivity: Path | None = None

    @property
    def any(self) -> bool:
        """Is a mix asked for?"""
        return bool(self.bits_per_weight or self.sizes or self.memories)

    def check(self) -> None:
        """Raise UsageError where the options do not go together, before anything is read."""
        if self.any and self.sensitivity is None:
            raise UsageError(
                "a mix of types needs to know where bits matter; give a file with --sensitivity, which "
                "`jmedlite sensitivity GGUF` makes of the model in 16 or 8 bits"
            )
        if self.sensitivity is not None and not self.any:
            raise UsageError("--sensitivity: is used by --target-bpw, --target-size and --fit-ram; give one of them")
        if self.fit_ctx is not None and not self.memories:
            raise UsageError("--fit-ctx: is used by --fit-ram; give that, too")
        for bits in self.bits_per_weight:
            check_range("--target-bpw", bits, 1, 32)
        if self.fit_ctx is not None:
            check_range("--fit-ctx", self.fit_ctx, 16, 1 << 24)
        for text in (*self.sizes, *self.memories):
            parse_memory(text)


@dataclass(frozen=True)
class Mixed:
    """The mixes, what llama.cpp's levels next to each are predicted to cost, what to warn of, and by which file."""

    mixes: tuple[Mix, ...] = ()
    beside: tuple[tuple[tuple[str, float, float], ...], ...] = ()
    warnings: tuple[str, ...] = ()
    sensitivities: Sensitivities | None = None

    def describe(self, mix: Mix) -> str:
        """What a mix was made by, for the GGUF's own metadata."""
        assert self.sensitivities is not None
        return f"{mix.asked}, {self.sensitivities.path.name}, SHA-256 {self.sensitivities.sha256}"

    def entries(self) -> dict[str, MixEntry]:
        """{level: what its manifest says of the mix}."""
        found = {}
        for mix in self.mixes:
            assert self.sensitivities is not None
            found[mix.level.name] = MixEntry(
                asked=mix.asked,
                predicted_kl=float(f"{mix.predicted_kl:.4g}"),
                sensitivity=self.sensitivities.path.name,
                sha256=self.sensitivities.sha256,
            )
        return found


def mix_levels(
    targets: Targets, plan: QuantizePlan, rules: Sequence[TypeRule], *, threads: int, progress: Progress
) -> Mixed:
    """A mix for every target; raises DataError for a sensitivity file of another model, UsageError for a budget."""
    assert targets.sensitivity is not None
    sensitivities = read_sensitivities(targets.sensitivity)
    mixer = Mixer(plan, sensitivities, rules=rules, threads=threads, progress=progress)
    mixes = [mixer.mix(budget) for budget in _budgets(targets, plan, mixer)]
    check_names(mixes)
    warnings = list(mixer.warnings)
    made_with = sensitivities.content.imatrix
    if made_with and (plan.imatrix is None or plan.imatrix.sha256 != made_with.sha256):
        warnings.append(
            f"{sensitivities.path.name}: was measured with the importance matrix {made_with.name}, and "
            f"{plan.imatrix.path.name if plan.imatrix else 'none'} is given here; the mix is good for the one that it "
            "was measured with"
        )
    return Mixed(tuple(mixes), tuple(tuple(mixer.beside(m)) for m in mixes), tuple(warnings), sensitivities)


def _budgets(targets: Targets, plan: QuantizePlan, mixer: Mixer) -> list[Budget]:
    return [
        *(Budget(f"--target-bpw {b:g}", bits_per_weight=b) for b in targets.bits_per_weight),
        *(Budget(f"--target-size {s}", file_bytes=parse_memory(s)) for s in targets.sizes),
        *(
            Budget(f"--fit-ram {m}", data_bytes=_data_bytes(f"--fit-ram {m}", parse_memory(m), targets, plan, mixer))
            for m in targets.memories
        ),
    ]


def _data_bytes(asked: str, memory: int, targets: Targets, plan: QuantizePlan, mixer: Mixer) -> int:
    """Bytes that the weights may take where the whole program may take `memory`."""
    tensors = [Tensor(job.name, job.gguf_shape, mixer.usual[job.name]) for job in plan.jobs]
    metadata = {key: value for key, (value, _, _) in plan.metadata.items()}
    # read, not mapped: no type is rewritten beside its mapped file
    shape = shape_of(metadata, tensors, {})
    n_ctx = targets.fit_ctx or FIT_CTX
    need = make_offload_plan(shape, Machine(1 << 50), Wish(n_gpu_layers=0, n_ctx=n_ctx)).ram
    left = memory - MARGIN - (need.total - need.weights)
    if left <= 0:
        raise UsageError(
            f"{asked}: a context of {n_ctx:,} tokens and the program take {(need.total - need.weights) / 1e9:.1f} GB "
            f"of it, and {MARGIN / 1e9:.1f} GB stay free, so nothing is left for the weights; give more, or a smaller "
            "--fit-ctx"
        )
    return left
