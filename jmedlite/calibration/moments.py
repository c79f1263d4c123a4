"""Second moments, gathered: calibration text, checked, to a child process that runs the model over it.

The file takes about as much room as the model at 4 bits (a 7B: 3.3 GB). Memory is that of the running model, `memory`
for the moments of one pass, and the values of one piece of text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jmedlite.base.gguf import split_files
from jmedlite.base.inputs import check_range
from jmedlite.base.moments import Moments
from jmedlite.base.progress import Progress, silent
from jmedlite.runtime.hardware import free_ram
from jmedlite.runtime.offload import MARGIN
from jmedlite.runtime.process import Child

from .work import begun

MOST_MEMORY, LEAST_MEMORY = 6_000_000_000, 1_000_000_000  # bytes; 6 GB hold the moments of a 7B


@dataclass(frozen=True)
class GatheredFile:
    """A file that was written, of how many inputs, weights and tokens, and how long it took."""

    path: Path
    n_inputs: int
    n_weights: int
    n_tokens: int
    seconds: float


def gather_moments(
    model: str | Path,
    *,
    texts: Sequence[str | Path] = (),
    language: str = "both",
    out: str | Path | None = None,
    ctx: int = 512,
    chunks: int | None = None,
    memory: int | None = None,
    threads: int | None = None,
    exclude_tasks: Sequence[str | Path] = (),
    overwrite: bool = False,
    progress: Progress = silent,
) -> GatheredFile:
    """Run a GGUF over calibration text and write the second moments of what enters its weights.

        >>> jmedlite.moments("qwen-BF16.gguf", chunks=16)  # doctest: +SKIP

    They are what `quantize(..., rounding="best")` rounds by. Moments of at most `memory` bytes are summed at once, and
    the text is evaluated again for those of the next blocks; by default what is free beside the model, 1 to 6 GB.
    `texts`, `language`, `ctx`, `chunks`, `exclude_tasks`, `out` (default: beside the model, `NAME.moments.gguf`) and
    `progress` are as in `imatrix`. Raises the exceptions of `jmedlite.base.errors`.
    """
    if chunks is not None:
        check_range("--chunks", chunks, 2, 1 << 24)
    with begun(
        model,
        ".moments.gguf",
        texts=texts,
        language=language,
        exclude_tasks=exclude_tasks,
        out=out,
        ctx=ctx,
        least_ctx=32,
        threads=threads,
        overwrite=overwrite,
    ) as work:
        limit = default_memory(work.path) if memory is None else memory
        done = _run({**work.request, "chunks": chunks, "memory": limit}, progress)
    Moments(work.target).close()
    return GatheredFile(work.target, done["inputs"], done["weights"], done["n_tokens"], done["seconds"])


def default_memory(model: Path) -> int:
    """Bytes that moments may take: what is free once `model` is read into memory, within bounds."""
    left = free_ram() - MARGIN - sum(part.stat().st_size for part in split_files(model))
    return min(MOST_MEMORY, max(LEAST_MEMORY, left))


def _run(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """The `done` event of a child that worked on `request`."""
    n_chunks = done_chunks = 0
    advice = "give less --memory, or a narrower level of the model"
    with Child("jmedlite.calibration.moments_worker", advice) as child:
        for event in child.events(request, "done"):
            if event["event"] == "passes":
                n_chunks = event["passes"] * event["chunks"]
            elif event["event"] == "chunk" and n_chunks:
                done_chunks += 1
                progress("moments", done_chunks, n_chunks, "")
            elif event["event"] == "done":
                return event
    raise AssertionError("a child's events end with done, or with an exception")
