"""Mixing: what each type would do to each weight of a model, and from that the types of a level within a budget.

A type's harm is its error times the weight's sensitivity (jmedlite/base/sensitivity.py). Errors are measured on some of
each weight's rows, merged as the pass will merge them: Σ h (rounded - w)² / Σ h w², h the columns' importance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from jmedlite.base import gguf
from jmedlite.base.errors import DataError, UsageError
from jmedlite.base.imatrix import weighted_squares
from jmedlite.base.native import F32, widen
from jmedlite.base.progress import Progress, silent
from jmedlite.base.sensitivity import Sensitivities
from jmedlite.base.wording import some
from jmedlite.runtime.type_probe import TypeRule

from .encoding.encoders import GGML, Encoder
from .encoding.feedback import can_feed_back
from .levels.mixes import CANDIDATES, NARROW, WITH_IMATRIX, Choice, choose, mix_name
from .levels.overrides import decide
from .levels.recipes import BITS, Level, choose_types, parse_levels
from .planning import QuantizePlan, TensorJob, file_overhead
from .rounding import Rounder
from .rows import sampled_rows

PRESETS = ("Q2_K", "Q3_K_S", "Q3_K_M", "IQ4_XS", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0")
Types = dict[str, GGMLQuantizationType]


@dataclass(frozen=True)
class Budget:
    """How large a level may become: `bits_per_weight`, the whole file's `file_bytes`, or the tensors' `data_bytes`.

    `asked` is the option as it was typed.
    """

    asked: str
    bits_per_weight: float | None = None
    file_bytes: int | None = None
    data_bytes: int | None = None


@dataclass(frozen=True)
class Mix:
    """A level whose types were chosen: what it is predicted to cost, in nats a token, and what was asked for."""

    level: Level
    types: Types
    predicted_kl: float
    asked: str


@dataclass(frozen=True)
class Weight:
    """A weight whose type is free: its size, its sensitivity, and each candidate's relative squared error."""

    job: TensorJob
    sensitivity: float
    errors: dict[GGMLQuantizationType, float]

    def choice(self, type_: GGMLQuantizationType) -> Choice:
        """A type with its bytes and its harm."""
        return Choice(type_, gguf.nbytes(type_, self.job.n_elements), self.sensitivity * self.errors[type_])


class Mixer:
    """A plan's weights, measured, from which levels are mixed.

    `rules` set types of single tensors, which stay so. `warnings` name the weights that nothing is known about, which
    stay at 8 bits. Raises DataError where the sensitivities are another model's.
    """

    def __init__(
        self,
        plan: QuantizePlan,
        sensitivities: Sensitivities,
        *,
        rules: Sequence[TypeRule] = (),
        threads: int = 1,
        progress: Progress = silent,
    ) -> None:
        self._plan = plan
        levels = parse_levels((), PRESETS)
        self._ftypes = {level.name: level.ftype for level in levels}
        tensors = plan.stored_tensors
        self._presets = choose_types(levels, plan.metadata, tensors, plan.imatrix, rules).types
        usual, ftype = self.usual, self._ftypes[BITS[4]]
        set_by_rule = decide(rules, {ftype: BITS[4]}, plan.metadata, tensors)[ftype] if rules else {}
        free = [job for job in plan.jobs if GGML_QUANT_SIZES[usual[job.name]][0] > 1 and job.name not in set_by_rule]
        known = {job.name for job in free if sensitivities.of(job.name) is not None}
        if strangers := [name for name in sensitivities.content.weights if name not in usual]:
            raise DataError(
                f"{sensitivities.path.name}: was made for another model, which has {some(strangers)}; "
                "make it for this one with `jmedlite sensitivity`"
            )
        if not known:
            raise DataError(f"{sensitivities.path.name}: has none of this model's weights; make it for this model")
        self._fixed = {name: type_ for name, type_ in usual.items() if name not in known}
        unknown = [job for job in free if job.name not in known and job.kept_type != usual[job.name]]
        for job in unknown:
            self._fixed[job.name] = GGMLQuantizationType.Q8_0
        self.warnings = (
            [f"{sensitivities.path.name}: says nothing of {some([j.name for j in unknown])}, which stay at Q8_0"]
            if unknown
            else []
        )
        self.weights = {
            job.name: Weight(job, sensitivities.of(job.name) or 0.0, errors)
            for job, errors in _measure(plan, [j for j in free if j.name in known], threads, progress)
        }

    @property
    def usual(self) -> Types:
        """The types of llama.cpp's own level of 4 bits."""
        return self._presets[BITS[4]]

    def mix(self, budget: Budget) -> Mix:
        """The least harmful types within `budget`; raises UsageError where that is too small."""
        fixed = sum(gguf.nbytes(self._fixed[j.name], j.n_elements) for j in self._plan.jobs if j.name in self._fixed)
        if budget.bits_per_weight is not None:
            most = math.floor(budget.bits_per_weight * self._plan.n_weights / 8)
        elif budget.data_bytes is not None:
            most = budget.data_bytes
        else:
            assert budget.file_bytes is not None
            most = budget.file_bytes - file_overhead(self._plan, self.usual)
        options = {name: [w.choice(t) for t in w.errors] for name, w in self.weights.items()}
        try:
            taken = choose(options, most - fixed)
        except UsageError as e:
            raise UsageError(f"{budget.asked}: {e}") from None
        types = {**self._fixed, **{name: c.type for name, c in taken.items()}}
        bits = 8 * (fixed + sum(c.nbytes for c in taken.values())) / self._plan.n_weights
        level = Level(mix_name(bits), self._ftypes[self._nearest(bits)])
        return Mix(level, types, sum(c.harm for c in taken.values()), budget.asked)

    def predicted_kl(self, types: Mapping[str, GGMLQuantizationType]) -> float | None:
        """What other types of these weights are predicted to cost, in nats a token; None for types not measured."""
        found = 0.0
        for name, weight in self.weights.items():
            type_ = types[name]
            if type_ not in weight.errors:
                if GGML_QUANT_SIZES[type_][0] > 1:
                    return None
                continue
            found += weight.choice(type_).harm
        return found

    def _bits(self, types: Types) -> float:
        jobs = self._plan.jobs
        return 8 * sum(gguf.nbytes(types[j.name], j.n_elements) for j in jobs) / self._plan.n_weights

    def _nearest(self, bits: float) -> str:
        """llama.cpp's level of about so many bits, for `general.file_type`, which has no number for a mix."""
        return min(PRESETS, key=lambda name: abs(self._bits(self._presets[name]) - bits))

    def beside(self, mix: Mix) -> list[tuple[str, float, float]]:
        """(name, bits per weight, predicted nats) of llama.cpp's levels just below and just above a mix in size."""
        bits = self._bits(mix.types)
        rows = [
            (name, self._bits(types), kl)
            for name, types in self._presets.items()
            if (kl := self.predicted_kl(types)) is not None
        ]
        below = [r for r in rows if r[1] <= bits]
        above = [r for r in rows if r[1] > bits]
        return [f(part, key=lambda r: r[1]) for f, part in ((max, below), (min, above)) if part]


def candidates(job: TensorJob) -> list[GGMLQuantizationType]:
    """The types that a weight may get: by the width of its rows, and whether an importance matrix has values for it."""
    names: Sequence[str] = NARROW
    if job.n_cols % 256 == 0:
        names = (*WITH_IMATRIX, *CANDIDATES) if job.importance is not None else CANDIDATES
    if job.kept_type == GGMLQuantizationType.MXFP4:
        names = (*names, "MXFP4")
    return [GGMLQuantizationType[n] for n in names if job.n_cols % GGML_QUANT_SIZES[GGMLQuantizationType[n]][0] == 0]


def _measure(
    plan: QuantizePlan, jobs: Sequence[TensorJob], threads: int, progress: Progress
) -> Iterator[tuple[TensorJob, dict[GGMLQuantizationType, float]]]:
    """Every job with its candidates' relative squared errors, as they are rounded: less where errors are fed back."""
    index = {job.name: i for i, job in enumerate(plan.jobs)}
    rounder = Rounder(plan)
    total = sum(job.source.nbytes for job in jobs if job.source)
    done = 0
    with ThreadPoolExecutor(threads) as pool:
        for job in jobs:
            rows = sampled_rows(plan, index[job.name])
            if not weighted_squares(rows, job.mean_importance):
                raise DataError(f"{job.name}: all its weights are zero where they matter; is the file damaged?")
            types = candidates(job)
            of = partial(relative_error, rows=rows, importance=job.mean_importance, encoder=plan.encoder)
            errors = dict(zip(types, pool.map(of, types), strict=True))
            errors |= {t: 0.0 for t in types if t == job.kept_type}
            # tried with one type: feedback gains about as much with the others that have it
            gain = rounder.gain(index[job.name], _tried_type(job), rows)
            yield job, {t: error * gain if can_feed_back(t, job.n_cols) else error for t, error in errors.items()}
            done += job.source.nbytes if job.source else 0
            progress("mixing", done, total, "")


def _tried_type(job: TensorJob) -> GGMLQuantizationType:
    return GGMLQuantizationType.Q3_K if job.n_cols % 256 == 0 else GGMLQuantizationType.Q4_0


def relative_error(type_: GGMLQuantizationType, rows: F32, importance: F32 | None, encoder: Encoder = GGML) -> float:
    """Σ h (rounded - w)² / Σ h w² over `rows` (n, n_cols), h the columns' importance (n_cols,)."""
    raw = encoder.encode(type_, rows, np.empty(gguf.nbytes(type_, rows.size), np.uint8), importance)
    decoded = np.empty(rows.shape, np.float32)
    widen(raw, type_.name, decoded.reshape(-1))
    decoded -= rows
    return weighted_squares(decoded, importance) / weighted_squares(rows, importance)


def check_names(mixes: Sequence[Mix]) -> None:
    """Raise UsageError where two budgets come to one name."""
    names: dict[str, Mix] = {}
    for mix in mixes:
        other = names.setdefault(mix.level.name, mix)
        if other is not mix:
            raise UsageError(
                f"{mix.asked}: comes to {mix.level.name}, as {other.asked} does; ask for one of them, or further apart"
            )
