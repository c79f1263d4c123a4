"""Kept work: what a run that was cut leaves on purpose, so that the same command can go on from it.

Beside the partial files stands a record, `.NAME.kept`: which files are whose, of which plan, and one line for every
time that all of them were flushed, with their lengths and SHA-256 and what the run knew by then. docs/manifest.md.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass, replace
from pathlib import Path

from .errors import JmedliteError, system_fault
from .inputs import parse_json, read_bytes
from .outputs import OutputFile, write_text
from .records import from_json, to_json

FORMAT = 1
SUFFIX = ".kept"
EVERY_SECONDS = 5.0  # between two lines, each of which waits for the disk
MAX_RECORD = 1 << 28


@dataclass(frozen=True, kw_only=True)
class Head:
    """The record's first line: `plan` is the SHA-256 of all that decides about the files' bytes."""

    format: int
    plan: str
    files: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TensorState:
    """One finished tensor: Σ exact², and of every level Σ (stored − exact)² and how it was rounded."""

    energy: float
    errors: tuple[float, ...]
    ways: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One further line: the tensors that were finished since the one before, and every file as it was then."""

    tensors: tuple[TensorState, ...]
    sizes: tuple[int, ...]
    sha256: tuple[str, ...]

    @property
    def files(self) -> list[tuple[int, str]]:
        """(length, SHA-256) of every file."""
        return list(zip(self.sizes, self.sha256, strict=True))


@dataclass(frozen=True)
class Found:
    """What a run that was cut has kept."""

    head: Head
    tensors: tuple[TensorState, ...]
    last: Step


def record_of(path: Path) -> Path:
    """Where the record of the run is whose first file is `path`."""
    return path.with_name(f".{path.name}{SUFFIX}")


def kept_names(folder: Path) -> dict[str, Path]:
    """The names of files whose partial ones are kept on purpose, each with the record that says so."""
    found: dict[str, Path] = {}
    with contextlib.suppress(OSError):
        for record in folder.glob(f".*{SUFFIX}"):
            if lines := _lines(record):
                found |= dict.fromkeys(lines[0].files, record)
    return found


def _lines(record: Path) -> tuple[Head, list[Step]] | None:
    """What a record says; a line that was cut off, and what follows it, do not count. None where it says nothing."""
    try:  # it is no input, and no Watch's business
        first, *others = Context().run(read_bytes, record, MAX_RECORD).split(b"\n")[:-1]
        head = from_json(parse_json(first), Head, record.name)
    except (ValueError, JmedliteError):
        return None
    plain = all(name and Path(name).name == name for name in head.files)
    if head.format != FORMAT or not head.files or not plain:
        return None
    if record_of(record.with_name(head.files[0])) != record:
        return None
    steps: list[Step] = []
    with contextlib.suppress(ValueError, JmedliteError):
        for line in others:
            steps.append(from_json(parse_json(line), Step, record.name))
            if {len(steps[-1].sizes), len(steps[-1].sha256)} != {len(head.files)}:
                return head, steps[:-1]
    return head, steps


def find(path: Path) -> Found | None:
    """What was kept by a run whose first file is `path`."""
    if (lines := _lines(record_of(path))) is None or not lines[1]:
        return None
    head, steps = lines
    return Found(head, tuple(tensor for step in steps for tensor in step.tensors), steps[-1])


def remove(record: Path) -> None:
    """A record with the partial files that it speaks of."""
    lines = _lines(record)
    for name in lines[0].files if lines else ():
        with contextlib.suppress(OSError):
            record.with_name(f".{name}.partial").unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        record.unlink(missing_ok=True)


class Keeper:
    """Writes the record of a run whose outputs are `files`, of which `found` has been taken over."""

    def __init__(self, files: Sequence[OutputFile], plan: str, found: Found | None) -> None:
        self._files, self._path = files, record_of(files[0].path)
        self._waiting: list[TensorState] = []
        self._written = time.monotonic()
        lines = [to_json(Head(format=FORMAT, plan=plan, files=tuple(f.path.name for f in files)))]
        if found:
            lines.append(to_json(replace(found.last, tensors=found.tensors)))
        write_text(self._path, "".join(f"{json.dumps(line)}\n" for line in lines))

    def finished(self, tensor: TensorState) -> None:
        """A tensor is in all its files; every few seconds all is flushed and written down."""
        self._waiting.append(tensor)
        if time.monotonic() - self._written >= EVERY_SECONDS:
            self.write()

    def write(self) -> None:
        """Flush the files and write down what they hold; raises IoFault where the disk fails."""
        for file in self._files:
            file.flush()
        sizes, sums = (f.size_bytes for f in self._files), (f.sha256.hexdigest() for f in self._files)
        self._line(to_json(Step(tensors=tuple(self._waiting), sizes=tuple(sizes), sha256=tuple(sums))))
        self._waiting.clear()
        self._written = time.monotonic()

    def _line(self, value: Mapping[str, object]) -> None:
        try:
            with self._path.open("ab") as file:
                file.write(json.dumps(value).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as e:
            raise system_fault(e, self._path, "writing") from None
