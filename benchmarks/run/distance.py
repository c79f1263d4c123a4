"""Distance without labels: every model's perplexity on a text, and how far its distributions are from a reference's.

Models are evaluated one after the other, the reference first; its distributions wait for the others in one scratch file
of known size, which is gone when the last model is done.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jmedlite.base.errors import CannotCreate, DataError, UsageError, system_fault
from jmedlite.base.inputs import MAX_CTX, check_range, read_hashed_document
from jmedlite.base.native import F64
from jmedlite.base.progress import Notice, Progress, silent
from jmedlite.base.records import to_json
from jmedlite.benchmarks.backends.base import Loading
from jmedlite.benchmarks.records import DistanceRecord
from jmedlite.runtime.divergence import record
from jmedlite.runtime.process import Child

from .distance_worker import scored
from .divergence import summarize_distance, summarize_perplexity

MAX_SCRATCH = 4_000_000_000  # bytes
SCRATCH = ".distance.scratch"
ADVICE = "use a narrower level, or --kv-type q8_0"


@dataclass(frozen=True)
class Text:
    """A text that models read, all of it: what it is called, its file, what it says, and the SHA-256 of its bytes."""

    name: str
    path: Path
    content: str
    sha256: str

    @classmethod
    def read(cls, path: Path, name: str | None = None) -> Text:
        """A text file, read once; without a name, it has its file's. Raises InputMissing or DataError."""
        content, sha256 = read_hashed_document(path)
        # llama.cpp's tools leave out one newline at the end
        return cls(name or path.stem, path, content.removesuffix("\n"), sha256)


def measure_distance(
    models: Sequence[tuple[str, Path]],
    reference: str,
    text: Text,
    loading: Loading,
    *,
    scratch: Path,
    n_ctx: int = 512,
    chunks: int | None = None,
    done: Collection[str] = (),
    n_done: int | None = None,
    max_scratch: int = MAX_SCRATCH,
    progress: Progress = silent,
    notice: Notice = silent,
) -> Iterator[dict[str, Any]]:
    """The lines of `distance.jsonl` (docs/runs.md), one per model of `models` (name, file) that is not in `done`.

    The text is cut into chunks of `n_ctx` tokens; `chunks` bounds how many are used, and so does `max_scratch`, the
    bytes that the reference's distributions may take in the folder `scratch`. Where that lowers their number, `notice`
    is told in a sentence; where the models that are `done` read another number, `n_done`, the others can't be compared
    with them, and it is a DataError. Arguments are checked at once, the rest while iterating; close the iterator to end
    early. Raises DataError (text, vocabulary, model), CannotCreate or IoFault (disk), InputMissing, NativeError.
    """
    if reference not in dict(models):
        raise UsageError(f"the reference {reference} is not among the models")
    check_range("--text-ctx", n_ctx, 16, MAX_CTX)
    if chunks is not None:
        check_range("--text-chunks", chunks, 1, 1 << 24)
    source = _Source(text, loading, n_ctx, progress)
    wanted = [m for m in models if m[0] == reference] + [m for m in models if m[0] != reference]
    plan = _ChunkPlan(chunks, max_scratch if len(models) > 1 else None, scratch, n_done, notice)
    return _measure(source, plan, wanted, done)


# A generator of its own, so that the arguments are checked before it is iterated
def _measure(
    text: _Source, plan: _ChunkPlan, models: Sequence[tuple[str, Path]], done: Collection[str]
) -> Iterator[dict[str, Any]]:
    (reference, path), *others = models
    others = [m for m in others if m[0] not in done]
    if reference in done and not others:
        return
    kept = plan.folder / SCRATCH
    try:
        with suppress(FileNotFoundError):
            kept.unlink()  # a killed run's
    except OSError as e:
        raise system_fault(e, kept, "removing") from None
    try:
        with _Reader(text, reference, path) as reader:
            facts = reader.facts
            n_chunks = plan.n_chunks(text, facts, will_keep=bool(others))
            base = reader.evaluate(n_chunks, keep=kept if others else None)["nll"]
        if reference not in done:
            yield text.line(reference, None, n_chunks, summarize_perplexity(base))
        for name, path in others:
            with _Reader(text, name, path) as reader:
                _check_comparable(path, reader.facts, reference, facts)
                found = reader.evaluate(n_chunks, compare=kept)
            figures = summarize_distance(found["nll"], base, found["kl"], found["same"] > 0, n_chunks)
            yield text.line(name, reference, n_chunks, figures)
    finally:
        with suppress(OSError):
            kept.unlink()


@dataclass(frozen=True)
class _Source:
    """A text, and how it is read."""

    text: Text
    loading: Loading
    n_ctx: int
    progress: Progress

    def line(self, model: str, reference: str | None, n_chunks: int, figures: dict[str, Any]) -> dict[str, Any]:
        """A line of `distance.jsonl`."""
        record = DistanceRecord(
            model=model,
            reference=reference,
            text=self.text.name,
            text_sha256=self.text.sha256,
            n_ctx=self.n_ctx,
            n_chunks=n_chunks,
            n_tokens=n_chunks * len(scored(self.n_ctx)),
            **figures,
        )
        return to_json(record)


@dataclass(frozen=True)
class _ChunkPlan:
    """How much of the text is used; `max_scratch` is None where nothing need be kept."""

    chunks: int | None
    max_scratch: int | None
    folder: Path
    n_done: int | None
    notice: Notice

    def n_chunks(self, text: _Source, facts: dict[str, Any], *, will_keep: bool) -> int:
        """How many chunks to evaluate: by text, vocabulary and arguments alone, so that a resumed run agrees."""
        n, name = self._n_chunks(text, facts), text.text.path.name
        if self.n_done not in (None, n):
            raise DataError(
                f"{name}: {self.n_done:,} chunks of it were read with the models that are done, now {n:,} would be; "
                "repeat --text-chunks and the models, or choose another --out"
            )
        if will_keep:
            self._check_disk(n * per_chunk(text, facts), per_chunk(text, facts))
        return n

    def _n_chunks(self, text: _Source, facts: dict[str, Any]) -> int:
        most: int = facts["n_tokens"] // text.n_ctx
        name = text.text.path.name
        if most < 2:
            raise DataError(
                f"{name}: has {facts['n_tokens']:,} tokens, at least {2 * text.n_ctx:,} are needed for chunks of "
                f"{text.n_ctx:,}; give a longer text"
            )
        n = min(self.chunks or most, most)
        if self.max_scratch is None:
            return n
        size = per_chunk(text, facts)
        fitting = self.max_scratch // size
        if not fitting:
            raise CannotCreate(
                f"the reference's distributions over one chunk of {text.n_ctx:,} tokens take {_size(size)}, more "
                f"than the {_size(self.max_scratch)} allowed; lower --text-ctx"
            )
        if fitting < n:
            self.notice(
                f"{name}: {fitting:,} of {n:,} chunks are used, for which the reference's distributions take "
                f"{_size(fitting * size)} of disk"
            )
        return min(n, fitting)

    def _check_disk(self, needed: int, per_chunk: int) -> None:
        try:
            free = shutil.disk_usage(self.folder).free
        except OSError as e:
            raise system_fault(e, self.folder, "reading") from None
        if free < needed:
            raise CannotCreate(
                f"{self.folder}: the reference's distributions need {_size(needed)} while the run lasts, "
                f"{_size(free)} are free; use --text-chunks {max(1, free // per_chunk):,} or another disk"
            )


def per_chunk(text: _Source, facts: dict[str, Any]) -> int:
    """The bytes that a model's distributions over one chunk take."""
    return len(scored(text.n_ctx)) * record(facts["n_vocab"]).itemsize


class _Reader:
    """One model and the text, in a child process; a context manager."""

    def __init__(self, text: _Source, name: str, path: Path) -> None:
        self.name, self.progress = name, text.progress
        self.child = Child("jmedlite.benchmarks.run.distance_worker", ADVICE)
        try:
            request = {**text.loading.request(path), "ctx": text.n_ctx, "text": text.text.content}
            self.facts = self.child.ask(request, "loaded")
        except BaseException:
            self.child.close()
            raise

    def evaluate(self, n_chunks: int, keep: Path | None = None, compare: Path | None = None) -> dict[str, F64]:
        """`nll` and, comparing, `kl` and `same`, of every scored position (n,)."""
        names = {key: str(path.resolve()) if path else None for key, path in (("keep", keep), ("compare", compare))}
        found: dict[str, list[float]] = {}
        self.progress("text", 0, n_chunks, self.name)
        done = 0
        for event in self.child.events({"op": "evaluate", "chunks": n_chunks, **names}, "done"):
            if event["event"] == "chunk":
                for key in event.keys() - {"event"}:
                    found.setdefault(key, []).extend(event[key])
                done += 1
                self.progress("text", done, n_chunks, self.name)
        return {key: np.array(values, np.float64) for key, values in found.items()}

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.child.close()


def _check_comparable(path: Path, facts: dict[str, Any], reference: str, expected: dict[str, Any]) -> None:
    """DataError unless both models mean the same by every token, and read the text as the same tokens."""
    if (facts["n_vocab"], facts["vocabulary"]) != (expected["n_vocab"], expected["vocabulary"]):
        raise DataError(
            f"{path.name}: has another vocabulary than the reference {reference} ({facts['n_vocab']:,} tokens, not the "
            f"same {expected['n_vocab']:,}), so no distance can be measured; compare levels of one model"
        )
    if facts["tokens"] != expected["tokens"]:
        raise DataError(
            f"{path.name}: reads the text as other tokens than the reference {reference} ({facts['n_tokens']:,}, not "
            f"the same {expected['n_tokens']:,}), so no distance can be measured; compare levels of one model"
        )


def _size(n: float) -> str:
    """Bytes for people: "3.9 GB"."""
    step = min(3, int(math.log(max(1, n), 1000)))
    return f"{n / 1000**step:.3g} {('bytes', 'kB', 'MB', 'GB')[step]}"
