"""Sensitivities, computed: which weights of a model a child process rounds one at a time, and what lies between them.

Memory is that of the running model, in private memory, and 2 bytes × n_vocab for each position compared.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jmedlite import __version__
from jmedlite.base.errors import UsageError
from jmedlite.base.gguf import Tensor
from jmedlite.base.imatrix import Imatrix, read_imatrix
from jmedlite.base.inputs import check_range
from jmedlite.base.progress import Progress, silent
from jmedlite.base.records import to_json
from jmedlite.base.sensitivity import (
    FORMAT,
    MatrixEntry,
    Sensitivities,
    SensitivityFile,
    WeightEntry,
    read_sensitivities,
)
from jmedlite.runtime.loading import read_whole_header
from jmedlite.runtime.process import Child

from .work import begun

PROBES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "IQ4_XS", "Q4_0")
ENDS = 2  # blocks at either end of a model that are measured in any case: they are unlike their neighbours
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Measured:
    """A file that was written, and how long it took."""

    sensitivities: Sensitivities
    seconds: float


def compute_sensitivities(
    model: str | Path,
    *,
    imatrix: str | Path | None = None,
    texts: Sequence[str | Path] = (),
    language: str = "both",
    out: str | Path | None = None,
    tokens: int = 256,
    ctx: int = 256,
    every: int = 2,
    probe: str = "Q3_K",
    threads: int | None = None,
    exclude_tasks: Sequence[str | Path] = (),
    overwrite: bool = False,
    progress: Progress = silent,
) -> Measured:
    """Measure what rounding each weight of a GGUF costs its answers, for `quantize --target-bpw` and its like.

        >>> jmedlite.sensitivity("qwen-BF16.gguf", imatrix="qwen-BF16.imatrix.gguf")  # doctest: +SKIP

    The model (BF16, F16 or Q8_0) answers `tokens` tokens of the text, in chunks of `ctx`, once as it is and once for
    each weight, which is then rounded to `probe`, alone. `every` measures the weights of every Nth block only, and
    of the first and last two; those between are interpolated. `texts`, `language`, `exclude_tasks`, `out` (default:
    beside the model, `NAME.sensitivity.json`) and `progress` are as in `imatrix`. Raises the exceptions of
    `jmedlite.base.errors`.
    """
    check_range("--tokens", tokens, ctx, 1 << 24)
    check_range("--every", every, 1, 1024)
    if probe.upper() not in PROBES:
        raise UsageError(f"--probe {probe}: expected one of {', '.join(PROBES)}")
    with begun(
        model,
        ".sensitivity.json",
        texts=texts,
        language=language,
        exclude_tasks=exclude_tasks,
        out=out,
        ctx=ctx,
        least_ctx=32,
        threads=threads,
        overwrite=overwrite,
        others=[Path(imatrix)] if imatrix else [],
    ) as work:
        matrix = read_imatrix(Path(imatrix)) if imatrix else None
        _, header = read_whole_header(work.path)
        weights = [t for t in header.tensors if t.name.endswith(".weight") and len(t.shape) > 1]
        own = {
            "imatrix": str(matrix.path.resolve()) if matrix else None,
            "tokens": tokens,
            "probe": probe.upper(),
            "weights": chosen(weights, every),
        }
        found, n_positions, seconds = _run({**work.request, **own}, progress)
        content = SensitivityFile(
            format=FORMAT,
            model=work.path.name,
            architecture=str(header.metadata["general.architecture"]),
            datasets=tuple(work.datasets),
            ctx=ctx,
            n_positions=n_positions,
            every=every,
            imatrix=_entry(matrix) if matrix else None,
            versions=_versions(),
            seconds=round(seconds, 1),
            weights=interpolated(weights, found),
        )
        work.output.write((json.dumps(to_json(content), ensure_ascii=False, indent=1) + "\n").encode("utf-8"))
    return Measured(read_sensitivities(work.target), seconds)


def chosen(weights: Sequence[Tensor], every: int) -> list[str]:
    """Names of the weights to measure: all outside the blocks, and those of the blocks that `every` says."""
    blocks = {int(m[1]) for t in weights if (m := _BLOCK.fullmatch(t.name))}
    last = max(blocks, default=0)
    inner = range(ENDS, last - ENDS + 1, every)
    measured = {b for b in blocks if b < ENDS or b > last - ENDS or b in inner}
    return [t.name for t in weights if not (m := _BLOCK.fullmatch(t.name)) or int(m[1]) in measured]


def interpolated(weights: Sequence[Tensor], found: Mapping[str, WeightEntry]) -> dict[str, WeightEntry]:
    """Every weight of the model's that was measured or lies between two of its kind that were, in the model's order.

    Between blocks a and b the logarithms of error and divergence are taken to lie on a line.
    """
    kinds: dict[str, dict[int, WeightEntry]] = {}
    for name, entry in found.items():
        if m := _BLOCK.fullmatch(name):
            kinds.setdefault(m[2], {})[int(m[1])] = entry
    entries: dict[str, WeightEntry] = {}
    for tensor in weights:
        m = _BLOCK.fullmatch(tensor.name)
        if tensor.name in found:
            entries[tensor.name] = found[tensor.name]
        elif m and m[2] in kinds:
            at, kind = int(m[1]), kinds[m[2]]
            before, after = [b for b in kind if b < at], [b for b in kind if b > at]
            if before and after:
                entries[tensor.name] = _between(kind, max(before), min(after), at)
    return entries


def _between(kind: Mapping[int, WeightEntry], a: int, b: int, at: int) -> WeightEntry:
    share, tiny = (at - a) / (b - a), 1e-12

    def line(x: float, y: float) -> float:
        return math.exp((1 - share) * math.log(max(x, tiny)) + share * math.log(max(y, tiny)))

    first, second = kind[a], kind[b]
    return replace(
        first,
        error=line(first.error, second.error),
        kl=line(first.kl, second.kl),
        kl_error=line(first.kl_error, second.kl_error),
        measured=False,
    )


def _run(request: dict[str, Any], progress: Progress) -> tuple[dict[str, WeightEntry], int, float]:
    """What a child measured, at how many positions, in how many seconds."""
    found: dict[str, WeightEntry] = {}
    n_positions = wanted = 0
    advice = "use a narrower level of the model, or fewer --tokens"
    with Child("jmedlite.calibration.sensitivity_worker", advice) as child:
        for event in child.events(request, "done"):
            if event["event"] == "ready":
                n_positions, wanted = event["n_positions"], len(event["weights"])
                progress("weights", 0, wanted, "")
            elif event["event"] == "weight":
                found[event["name"]] = WeightEntry(
                    type=event["type"],
                    error=_round(event["error"]),
                    kl=_round(event["kl"]),
                    kl_error=_round(event["kl_error"]),
                )
                progress("weights", len(found), wanted, event["name"])
            elif event["event"] == "done":
                return found, n_positions, event["seconds"]
    raise AssertionError("a child's events end with done, or with an exception")


def _round(value: float) -> float:
    return float(f"{value:.5g}")


def _entry(matrix: Imatrix) -> MatrixEntry:
    return MatrixEntry(name=matrix.path.name, sha256=matrix.sha256)


def _versions() -> dict[str, str]:
    return {
        "jmedlite": __version__,
        "llama-cpp-python": importlib.metadata.version("llama-cpp-python"),
        "machine": platform.machine(),
    }
