"""Work on a calibration text: a model, a text and an output, checked and watched, and what every child is told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jmedlite.base.errors import InputMissing, UsageError
from jmedlite.base.gguf import split_files
from jmedlite.base.inputs import MAX_CTX, check_range, watching
from jmedlite.base.looking import exists
from jmedlite.base.outputs import OutputFile
from jmedlite.base.publishing import check_target
from jmedlite.runtime.hardware import physical_cores

from .texts import calibration_text


@dataclass(frozen=True)
class Work:
    """What is begun: the model's `path`, `target` and its partial `output`, the text's `datasets`, the `request`."""

    path: Path
    target: Path
    output: OutputFile
    datasets: list[str]
    request: dict[str, Any]


@contextmanager
def begun(
    model: str | Path,
    ending: str,
    *,
    texts: Sequence[str | Path],
    language: str,
    exclude_tasks: Sequence[str | Path],
    out: str | Path | None,
    ctx: int,
    least_ctx: int,
    threads: int | None,
    overwrite: bool,
    others: Sequence[Path] = (),
) -> Iterator[Work]:
    """Begin; at the end, where no input has changed meanwhile, what was written gets its name.

    The target is `out`, or beside the model with its name and `ending`; `others` are more inputs, which it must not be.
    Raises UsageError, InputMissing, DataError for a text with a benchmark's items, CannotCreate, Busy or IoFault.
    """
    path = Path(model)
    if not exists(path):
        raise InputMissing(f"{model}: no such GGUF file")
    check_range("--ctx", ctx, least_ctx, MAX_CTX)
    if threads is not None:
        check_range("--threads", threads, 1, 1024)
    target = Path(out) if out is not None else path.with_name(f"{path.stem}{ending}")
    if target.resolve() in {p.resolve() for p in (path, *map(Path, texts), *others)}:
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
            "threads": threads or physical_cores(),
        }
        yield Work(path, target, output, names, request)
        inputs.check()
        output.publish()
