"""Importance matrix, computed: calibration text, checked, to a child process that runs the model over it.

The model's file is mapped into memory; what comes on top is llama.cpp's own: about 1.2 MB for each token evaluated at
once and 150,000 entries of the vocabulary (128 tokens: 160 MB), the cache of one chunk, and 8 bytes per column summed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jmedlite.base.errors import UsageError
from jmedlite.base.imatrix import Imatrix, read_imatrix
from jmedlite.base.inputs import check_range
from jmedlite.base.progress import Progress, silent
from jmedlite.runtime.process import Child

from .work import begun


@dataclass(frozen=True)
class Computed:
    """A matrix that was written: what is in it, and how it was made. `missing` are weights that saw no token."""

    imatrix: Imatrix
    n_tokens: int
    missing: tuple[str, ...]
    seconds: float


def compute_imatrix(
    model: str | Path,
    *,
    texts: Sequence[str | Path] = (),
    language: str = "both",
    out: str | Path | None = None,
    ctx: int = 512,
    chunks: int | None = None,
    threads: int | None = None,
    gpu_layers: str | int = "auto",
    process_output: bool = False,
    exclude_tasks: Sequence[str | Path] = (),
    overwrite: bool = False,
    progress: Progress = silent,
) -> Computed:
    """Run a GGUF over calibration text and write the mean squares of what enters its matrix products.

        >>> jmedlite.imatrix("qwen-BF16.gguf", texts=["notes.txt"])  # doctest: +SKIP

    Without `texts` the medical text that comes with jmedlite is used, in `language` ("ja", "en" or "both"). The text is
    cut into chunks of `ctx` tokens, each evaluated on its own; what is left over is not used. The file is written to
    `out` (default: beside the model, `NAME.imatrix.gguf`) in llama.cpp's format, and equals llama-imatrix's. A text
    that holds items of a known benchmark, or of one of the JSONL files `exclude_tasks`, is refused. `progress`
    hears how far it is (docs/python.md). Raises the exceptions of `jmedlite.base.errors`.
    """
    if str(gpu_layers) not in ("auto", "all"):
        if not str(gpu_layers).lstrip("-").isdecimal():
            raise UsageError(f"--gpu-layers {gpu_layers}: expected auto, all or a whole number")
        check_range("--gpu-layers", gpu_layers, 0, 10_000, "auto, all or ")
    if chunks is not None:
        check_range("--chunks", chunks, 1, 1 << 24)
    with begun(
        model,
        ".imatrix.gguf",
        texts=texts,
        language=language,
        exclude_tasks=exclude_tasks,
        out=out,
        ctx=ctx,
        least_ctx=16,
        threads=threads,
        overwrite=overwrite,
    ) as work:
        own = {"chunks": chunks, "gpu_layers": str(gpu_layers), "process_output": process_output}
        done = _run({**work.request, **own}, progress)
    return Computed(read_imatrix(work.target), done["n_tokens"], tuple(done["missing"]), done["seconds"])


# ------------------------------------------------------------------------------------------------------- child


def _run(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """The `done` event of a child that worked on `request`."""
    n_bytes = len(request["text"].encode("utf-8"))
    with Child("jmedlite.calibration.worker", "use a smaller --ctx or a narrower level of the model") as child:
        for event in child.events(request, "done"):
            if event["event"] == "done":
                return event
            used = n_bytes * event["total"] * request["ctx"] // event["n_tokens"]
            progress("calibrating", used * event["done"] // event["total"], used, "")
    raise AssertionError("a child's events end with done, or with an exception")
