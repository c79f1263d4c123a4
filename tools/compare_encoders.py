"""The fast encoder beside ggml's: processor time, squared error, and whether its bytes are the reference encoder's.

    python tools/compare_encoders.py [MODEL] [--imatrix FILE] [--weights 4000000] [--rounds 5] [--types Q4_K,Q6_K]

The weights are rows of eight tensors from all over MODEL (a checkpoint folder; without one, numbers of a Student
distribution), the importance is the matrix's for these tensors, or gamma-distributed. In every round both encode the
same rows, one after the other, on one thread. Speeds are the best of the rounds in processor time, the ratio of times
is the median of the rounds' ratios. The error is the squared one, weighted where there is importance, as a ratio. What
is compiled goes into a new folder and is counted on its own; the first has numba's start in it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from gguf.constants import GGMLQuantizationType as Type

from jmedlite.base import gguf
from jmedlite.base.imatrix import read_imatrix
from jmedlite.base.native import F32, U8, widen
from jmedlite.convert.encoding import reference
from jmedlite.convert.encoding.blocks import FORMATS
from jmedlite.convert.encoding.encoders import GGML, Encoder, find_encoder
from jmedlite.convert.planning import assemble
from jmedlite.convert.sources.tensors import stored_bytes

TENSORS = 8
CHECKED = 64  # rows that the reference encoder makes too; it is slow

Part = tuple[F32, F32]  # rows, and the importance of their columns


def read_parts(model: Path | None, imatrix: Path | None, n_weights: int) -> list[Part]:
    """Rows of some tensors, and importance for each."""
    rng = np.random.default_rng(0)
    if model is None:
        rows = (0.02 * rng.standard_t(5, n_weights // 2048 * 2048)).astype(np.float32).reshape(-1, 2048)
        return [(rows, rng.gamma(0.5, 1, 2048).astype(np.float32))]
    matrix = read_imatrix(imatrix) if imatrix else None
    plan = assemble(model, imatrix=matrix)
    jobs = [j for j in plan.jobs if j.name.startswith("blk.") and not j.is_vector and j.n_cols % 256 == 0 and j.source]
    parts = []
    for job in jobs[:: max(1, len(jobs) // TENSORS)][:TENSORS]:
        assert job.source is not None
        n_rows = min(job.n_rows, max(1, n_weights // TENSORS // job.n_cols))
        raw = np.empty(stored_bytes(job.source.dtype, n_rows * job.n_cols), np.uint8)
        plan.files.read(job.source, 0, raw)
        rows = np.empty((n_rows, job.n_cols), np.float32)
        widen(raw, job.source.dtype, rows.reshape(-1))
        drawn = rng.gamma(0.5, 1, job.n_cols).astype(np.float32)
        parts.append((rows, drawn if job.importance is None else job.importance))
    plan.files.close()
    return parts


def run(encoder: Encoder, type_: Type, parts: list[Part], weighted: bool, outs: list[U8]) -> float:
    """Processor seconds for all parts."""
    started = time.process_time()
    for (rows, importance), out in zip(parts, outs, strict=True):
        encoder.encode(type_, rows, out, importance if weighted else None)
    return time.process_time() - started


def error(type_: Type, parts: list[Part], weighted: bool, outs: list[U8]) -> float:
    """Σ (stored − exact)², times the importance where it was given."""
    total = 0.0
    for (rows, importance), out in zip(parts, outs, strict=True):
        stored = np.empty(rows.size, np.float32)
        widen(out, type_.name, stored)
        squares = (stored.reshape(rows.shape).astype(np.float64) - rows) ** 2
        total += float((squares * importance).sum() if weighted else squares.sum())
    return total


def equal_blocks(type_: Type, parts: list[Part], weighted: bool, outs: list[U8]) -> tuple[int, int]:
    """(blocks that are the reference encoder's, blocks compared)."""
    same = n = 0
    for (rows, importance), out in zip(parts, outs, strict=True):
        made = reference.encode(type_, rows[:CHECKED], importance if weighted else None)
        same += int((made == out[: made.size].reshape(made.shape)).all(axis=1).sum())
        n += len(made)
    return same, n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--imatrix", type=Path)
    parser.add_argument("--weights", type=int, default=4_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--types", default=",".join(t.name for t in FORMATS))
    args = parser.parse_args()
    parts = read_parts(args.model, args.imatrix, args.weights)
    n_weights = sum(rows.size for rows, _ in parts)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JMEDLITE_CACHE"] = folder
        fast = find_encoder("fast")
        used = ("llama-cpp-python", "numpy", *fast.versions)
        print(f"{n_weights:,} weights of {args.model.name if args.model else 'a Student distribution'}; ", end="")
        print(f"{platform.machine()}, Python {platform.python_version()}, ", end="")
        print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in used) + "\n")
        columns = ("type", "importance", "ggml M weights/s", "fast", "time, ratio", "error, ratio", "as the reference")
        print(f"| {' | '.join(columns)} | compiled in |")
        print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
        for type_ in (Type[name] for name in args.types.split(",")):
            for weighted in (False, True):
                if not fast.has(type_, weighted):
                    print(f"| {type_.name} | {'yes' if weighted else 'no'} | left to ggml | | | | | |")
                    continue
                outs, theirs = ([np.empty(gguf.nbytes(type_, r.size), np.uint8) for r, _ in parts] for _ in range(2))
                compiled = run(fast, type_, [(r[:1], q) for r, q in parts[:1]], weighted, [o.copy() for o in outs[:1]])
                pairs = [
                    (run(GGML, type_, parts, weighted, theirs), run(fast, type_, parts, weighted, outs))
                    for _ in range(args.rounds)
                ]
                speeds = [n_weights / min(column) / 1e6 for column in zip(*pairs, strict=True)]
                ratio = statistics.median(ours / ggml for ggml, ours in pairs)
                errors = error(type_, parts, weighted, outs) / error(type_, parts, weighted, theirs)
                same, n = equal_blocks(type_, parts, weighted, outs)
                print(
                    f"| {type_.name} | {'yes' if weighted else 'no'} | {speeds[0]:.0f} | {speeds[1]:.0f} | {ratio:.3f} "
                    f"| {errors:.4f} | {same:,} of {n:,} | {compiled:.1f} s |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
