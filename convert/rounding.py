"""Rounding: how the rows of a weight become a type's blocks: by ggml, or with error feedback where that is better.

Error feedback (encoding/feedback.py) lowers what rounding does to the outputs for inputs like those that it knows.
Where a few inputs are huge, as in early ffn_down weights, it may do harm for others. So for every weight and type some
rows are encoded each way, and the way whose outputs are nearest for tokens that were held out is taken for all rows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from gguf.constants import GGMLQuantizationType

from jmedlite.base import gguf
from jmedlite.base.moments import Gathered, windows
from jmedlite.base.native import F32, U8, widen

from .encoding.encoders import Encoder
from .encoding.feedback import Window, can_feed_back, encode_rows, make_window, output_error
from .levels.recipes import EMBEDDING
from .planning import QuantizePlan, TensorJob
from .rows import sampled_rows

# Shares of the mean second moment, of an input that is whole and of one that is cut into windows, whose moments are
# known from few tokens. Measured on a Qwen2 of 1.5 B, 7,168 tokens: from 0.03 to 0.3, and 0.1 to 1, nearly as good
DAMPING_WHOLE, DAMPING_CUT = 0.1, 0.3
# Of a head that is the embedding, too: its rows are also looked up, as they are. On the same model feedback leaves
# 0.26 to 0.29 of the outputs' error with 0.1 as with 0.3, and makes the rows' own squared error 1.2 and 1.1 times what
# it was
DAMPING_TIED = 0.3


@dataclass(frozen=True)
class Feedback:
    """Error feedback at one damping."""

    damping: float
    windows: tuple[Window, ...]

    @property
    def way(self) -> str:
        """As the manifest has it."""
        return f"feedback:{self.damping:g}"


@dataclass(frozen=True)
class Rounding:
    """How one weight is rounded to each type; what is not in `feedback` the encoder rounds by itself."""

    job: TensorJob
    encoder: Encoder
    feedback: Mapping[GGMLQuantizationType, Feedback] = field(default_factory=dict)

    def encode(self, type_: GGMLQuantizationType, rows: F32, out: U8, importance: F32 | None) -> U8:
        """Encode float32 `rows` (n_rows, n_cols), C-contiguous, into `out`; returns the part written.

        `importance` (n_cols,) weighs the columns' errors where these are not fed back.
        """
        if found := self.feedback.get(type_):
            return encode_rows(type_, rows, found.windows, out, self.encoder)
        return self.encoder.encode(type_, rows, out, importance)

    def way(self, type_: GGMLQuantizationType) -> str:
        """How, where it is not ggml's; else ""."""
        found = self.feedback.get(type_)
        return found.way if found else ""


class Rounder:
    """A plan's weights, one after the other; the factors of the last input are kept for the next weight that has it."""

    def __init__(self, plan: QuantizePlan) -> None:
        self._plan = plan
        self._input = ""
        self._gathered: Gathered | None = None
        self._factored: Feedback | None = None

    def prepare(self, index: int, types: Collection[GGMLQuantizationType]) -> Rounding:
        """How to round a job's weight to `types`."""
        job, by = self._plan.jobs[index], self._plan.encoder
        able = [t for t in types if job.feeds_back and can_feed_back(t, job.n_cols)]
        taken: dict[GGMLQuantizationType, Feedback] = {}
        if able:
            rows = sampled_rows(self._plan, index)
            for t in able:
                taken.update(self._tried(job, t, rows)[0].feedback)
        return Rounding(job, by, taken)

    def gain(self, index: int, type_: GGMLQuantizationType, rows: F32) -> float:
        """Output errors of a job's weight, rounded as `prepare` would, over those of the encoder alone; at most 1.

        Of sampled `rows`, for tokens held out.
        """
        job = self._plan.jobs[index]
        if not (job.feeds_back and can_feed_back(type_, job.n_cols)):
            return 1.0
        _, best, plain = self._tried(job, type_, rows)
        return best / plain if plain else 1.0

    def _tried(self, job: TensorJob, type_: GGMLQuantizationType, rows: F32) -> tuple[Rounding, float, float]:
        """(the best way, its output error, the encoder's alone) for tokens held out."""
        by, held_out = self._plan.encoder, self._load(job).held_out
        plain, fed_back = Rounding(job, by), Rounding(job, by, {type_: self._factors()})
        alone, error = (output_error(held_out, rows, _decoded(way, type_, rows)) for way in (plain, fed_back))
        return (fed_back, error, alone) if error < alone else (plain, alone, alone)

    def _load(self, job: TensorJob) -> Gathered:
        moments = self._plan.moments
        assert moments is not None
        name = moments.input_of[job.name]
        if name != self._input or self._gathered is None:
            self._input, self._gathered, self._factored = name, moments.read(job.name), None
        return self._gathered

    def _factors(self) -> Feedback:
        """Of the input that was loaded last."""
        if self._factored is None:
            assert self._gathered is not None
            bounds = windows(self._gathered.held_out.shape[1])
            whole = DAMPING_TIED if self._input == EMBEDDING else DAMPING_WHOLE
            damping = whole if len(bounds) == 1 else DAMPING_CUT
            made = (
                make_window(start, m, damping) for (start, _), m in zip(bounds, self._gathered.moments, strict=True)
            )
            self._factored = Feedback(damping, tuple(made))
        return self._factored


def _decoded(way: Rounding, type_: GGMLQuantizationType, rows: F32) -> F32:
    out = np.empty(rows.size, np.float32)
    raw = np.empty(gguf.nbytes(type_, rows.size), np.uint8)
    widen(way.encode(type_, rows, raw, way.job.mean_importance), type_.name, out)
    return out.reshape(rows.shape)
