"""Choose what convert/encoding/searches.py tries for each block format, by the error that it leaves.

    python tools/choose_multipliers.py MODEL --imatrix FILE [--blocks 300]

Super-blocks of 256 weights are taken from all over MODEL (a checkpoint folder of llama.cpp's families), and as many
normal ones as from each of five tensors. Errors are weighed as in searches.py; importance is drawn from the matrix's
columns, of whatever model, and from a gamma distribution. Of a grid of multipliers (and shifts) the one is taken first
that is ggml's first, then the one that together with it leaves the least error, and so on, each block by its best one.
The number before each list is that error as a ratio to ggml's search, both before scales are rounded.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jmedlite.base.imatrix import read_imatrix
from jmedlite.base.native import widen
from jmedlite.convert.planning import assemble
from jmedlite.convert.sources.tensors import stored_bytes

F64 = NDArray[np.float64]
Fit = Callable[[F64, F64], F64]  # numbers and weights (n, sub) to the weighted squared error of each sub-block


def read_blocks(model: Path, n_blocks: int, rng: np.random.Generator) -> F64:
    """(6 × n_blocks, 256): of five tensors of a model, first layers to last, and normal ones."""
    plan = assemble(model)
    jobs = [j for j in plan.jobs if j.name.startswith("blk.") and not j.is_vector and j.n_cols % 256 == 0 and j.source]
    found = [0.02 * rng.standard_normal((n_blocks, 256))]
    for job in jobs[:: len(jobs) // 5][:5]:
        assert job.source is not None
        n_rows = min(job.n_rows, 200)
        raw = np.empty(stored_bytes(job.source.dtype, n_rows * job.n_cols), np.uint8)
        plan.files.read(job.source, 0, raw)
        rows = np.empty(n_rows * job.n_cols, np.float32)
        widen(raw, job.source.dtype, rows)
        found.append(rng.permutation(rows.reshape(-1, 256).astype(np.float64))[:n_blocks])
    plan.files.close()
    return np.concatenate(found)


def draw_importance(shape: tuple[int, int], columns: Sequence[F64], rng: np.random.Generator) -> F64:
    """A third of it gamma-distributed, the rest stretches of the columns of an importance matrix."""
    found = rng.gamma(0.5, 1, shape)
    for i in range(shape[0]):
        if i % 3:
            of = columns[rng.integers(len(columns))]
            at = rng.integers(0, max(1, len(of) - shape[1]))
            found[i] = of[at : at + shape[1]]
    return found


def line(multiplier: float, shift: float, top: int) -> Fit:
    """Levels 0 … top with a scale and an offset ≤ 0, by least squares."""

    def fit(x: F64, w: F64) -> F64:
        low = np.minimum(x.min(1), 0)
        span = x.max(1) - low
        y = (x - low[:, None]) / span[:, None]
        level = np.clip(np.rint(y * multiplier - shift), 0, top)
        return refit(x, w, level)

    return fit


def refit(x: F64, w: F64, level: F64) -> F64:
    """The least error of x ≈ scale × level + offset, offset ≤ 0; infinite where all levels are one."""
    sw, sx, sl, sll, sxl = (s.sum(1) for s in (w, w * x, w * level, w * level * level, w * x * level))
    determinant = sw * sll - sl * sl
    good = determinant > 1e-30
    scale = (sw * sxl - sx * sl) / np.where(good, determinant, 1)
    offset = (sll * sx - sl * sxl) / np.where(good, determinant, 1)
    scale = np.where(offset > 0, sxl / np.where(sll > 0, sll, 1), scale)
    offset = np.minimum(offset, 0)
    error = (w * (scale[:, None] * level + offset[:, None] - x) ** 2).sum(1)
    return np.where(good, error, np.inf)


def ggml_line(x: F64, w: F64, top: int, first: float, step: float, n: int) -> F64:
    """The least error of make_qkx3_quants, which moves the offset while it goes through the multipliers."""
    low, high = np.minimum(x.min(1), 0), x.max(1)
    best = np.full(len(x), np.inf)
    for i in range(n + 1):
        level = np.clip(np.rint((x - low[:, None]) * ((top + first + step * i) / (high - low))[:, None]), 0, top)
        error = refit(x, w, level)
        sw, sx, sl, sll, sxl = (s.sum(1) for s in (w, w * x, w * level, w * level * level, w * x * level))
        offset = np.minimum((sll * sx - sl * sxl) / np.maximum(sw * sll - sl * sl, 1e-30), 0)
        low, best = np.where(error < best, offset, low), np.minimum(error, best)
    return best


def through_zero(multiplier: float, low: int) -> Fit:
    """Levels low … −low − 1 with a scale alone."""

    def fit(x: F64, w: F64) -> F64:
        largest = np.take_along_axis(x, np.abs(x).argmax(1)[:, None], 1)
        level = np.clip(np.rint(multiplier / largest * x), low, -low - 1)
        sxl, sll = (w * x * level).sum(1), (w * level * level).sum(1)
        error = (w * x * x).sum(1) - sxl * sxl / np.where(sll > 0, sll, 1)
        return np.where(sll > 0, error, np.inf)

    return fit


def choose(n: int, tried: Sequence[tuple[tuple[float, ...], Fit]], x: F64, w: F64, ggml: F64, first: int) -> str:
    """The best n of what is tried, greedily, after the one at `first`."""
    share = np.repeat([r.mean() for r in np.array_split(ggml, 6)], [len(r) for r in np.array_split(ggml, 6)])
    errors = np.array([np.minimum(fit(x, w) / share, 1e9).astype(np.float32) for _, fit in tried])
    chosen, left = [first], errors[first]
    while len(chosen) < n:
        best = int(np.argmin([np.minimum(left, e).mean() for e in errors]))
        chosen.append(best)
        left = np.minimum(left, errors[best])
    names = [tried[i][0] if len(tried[i][0]) > 1 else tried[i][0][0] for i in chosen]
    return f"{left.mean() / (ggml / share).mean():.4f}  ({', '.join(map(str, names))})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--imatrix", type=Path, required=True)
    parser.add_argument("--blocks", type=int, default=300)
    args = parser.parse_args()
    rng = np.random.default_rng(3)
    blocks = read_blocks(args.model, args.blocks, rng)
    columns = [v.astype(np.float64) / v.max() for v in read_imatrix(args.imatrix).weights.values()]

    def weigh(sub: int, kind: str) -> tuple[F64, F64]:
        x = blocks.reshape(-1, sub)
        mean = np.repeat((blocks**2).mean(1), 256 // sub)[:, None]
        if kind == "size":
            return x, np.abs(x)
        if kind == "square":
            return x, x * x
        if kind == "rms":
            return x, np.sqrt((x * x).mean(1))[:, None] + np.abs(x)
        q = draw_importance(x.shape, columns, rng)
        return x, q if kind == "importance" else q * np.sqrt(int(kind[-1]) * mean + x * x)

    for name, sub, top, kind, search in (
        ("Q2_K", 16, 3, "size", (-0.5, 0.1, 15)),
        ("Q2_K with importance", 16, 3, "spread 1", (-0.9, 0.05, 36)),
        ("Q4_K", 32, 15, "rms", (-1.0, 0.1, 20)),
        ("Q4_K with importance", 32, 15, "spread 2", (-0.9, 0.05, 36)),
        ("Q5_K", 32, 31, "rms", (-0.5, 0.1, 15)),
        ("Q5_K with importance", 32, 31, "spread 2", (-0.9, 0.05, 36)),
    ):
        x, w = weigh(sub, kind)
        grid = [
            (round(top + k / 5, 1), round(s / 10, 1)) for k in range(-10 if top > 3 else -7, 13) for s in range(-4, 17)
        ]
        tried = [(pair, line(*pair, top)) for pair in grid]
        print(name, choose(16, tried, x, w, ggml_line(x, w, top, *search), grid.index((float(top), 0.0))), flush=True)
    for name, sub, low, kind, n in (
        ("Q3_K", 16, -4, "size", 8),
        ("Q3_K with importance", 16, -4, "spread 2", 16),
        ("Q6_K", 16, -32, "square", 8),
        ("Q6_K with importance", 16, -32, "importance", 16),
        ("Q4_0 with importance", 32, -8, "spread 1", 16),
        ("Q5_0 with importance", 32, -16, "spread 1", 16),
    ):
        x, w = weigh(sub, kind)
        reach = 22 if low < -4 else 16
        several = [(round(low + k / 10, 1),) for k in range(-25, reach + 1)]
        several += [(round(-low - 1 + k / 5, 1),) for k in range(-4, 4)]
        ggml = np.min([through_zero(low + k / 10, low)(x, w) for k in range(-9, 10)], axis=0)
        tried_here = [(m, through_zero(*m, low)) for m in several]
        print(name, choose(n, tried_here, x, w, ggml, several.index((float(low),))), flush=True)


if __name__ == "__main__":
    main()
