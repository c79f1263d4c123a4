"""Second moments, gathered: calibration text, checked, to a child process that runs the model over it.

The file takes about as much room as the model at 4 bits (a 7B: 3.3 GB). Memory is that of the running model, `memory`
for the moments of one pass, and the values of one piece of text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jmedlite.base.errors import InputMissing, UsageError
from jmedlite.base.gguf import split_files
from jmedlite.base.inputs import MAX_CTX, check_range, watching
from jmedlite.base.moments import Moments
from jmedlite.base.outputs import OutputFile
from jmedlite.base.progress import Progress, silent
from jmedlite.base.publishing import check_target
from jmedlite.runtime.hardware import physical_cores
from jmedlite.runtime.process import Child

from .texts import calibration_text

DEFAULT_MEMORY = 2_000_000_000


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
    memory: int = DEFAULT_MEMORY,
    threads: int | None = None,
    exclude_tasks: Sequence[str | Path] = (),
    overwrite: bool = False,
    progress: Progress = silent,
) -> GatheredFile:
    """Run a GGUF over calibration text and write the second moments of what enters its weights.

        >>> jmedlite.moments("qwen-BF16.gguf", chunks=16)  # doctest: +SKIP

    They are what `quantize(..., rounding="best")` rounds by. Moments of at most `memory` bytes are summed at once, and
    the text is evaluated again for those of the next blocks. `texts`, `language`, `ctx`, `chunks`, `exclude_tasks`,
    `out` (default: beside the model, `NAME.moments.gguf`) and `progress` are as in `imatrix`. Raises the exceptions of
    `jmedlite.base.errors`.
    """
    path = Path(model)
    if not path.exists():
        raise InputMissing(f"{model}: no such GGUF file")
    check_range("--ctx", ctx, 32, MAX_CTX)
    if chunks is not None:
        check_range("--chunks", chunks, 2, 1 << 24)
    if threads is not None:
        check_range("--threads", threads, 1, 1024)
    target = Path(out) if out is not None else path.with_name(f"{path.stem}.moments.gguf")
    if target.resolve() in {path.resolve(), *(Path(t).resolve() for t in texts)}:
        raise UsageError(f"--out {target}: is an input; choose another file name")
    check_target(target, overwrite)
    with watching() as inputs, OutputFile(target) as output:
        for part in split_files(path):
            inputs.see(part)  # which the child reads
        names, text = calibration_text([Path(t) for t in texts], language, [Path(t) for t in exclude_tasks])
        request = {
            "path": str(path.resolve()),
            "out": str(output.partial.resolve()),
            "text": text,
            "datasets": names,
            "ctx": ctx,
            "chunks": chunks,
            "memory": memory,
            "threads": threads or physical_cores(),
        }
        n_chunks = done_chunks = 0
        with Child(
            "jmedlite.calibration.moments_worker", "give less --memory, or a narrower level of the model"
        ) as child:
            for event in child.events(request, "done"):
                if event["event"] == "passes":
                    n_chunks, done_chunks = event["passes"] * event["chunks"], 0
                elif event["event"] == "chunk" and n_chunks:
                    done_chunks += 1
                    progress("moments", done_chunks, n_chunks, "")
                elif event["event"] == "done":
                    done = event
        inputs.check()
        output.publish()
    Moments(target).close()
    return GatheredFile(target, done["inputs"], done["weights"], done["n_tokens"], done["seconds"])
