"""Publishing: files of one result get their names in one step, or none does, also where the run dies between two.

Before the first name a journal, `.NAME.pending`, says which files are about to get theirs, and what stands there is set
aside as `.NAME.old`; it is removed after the last. The next run that is to write one of these files finds it, and takes
back what the dead one did (docs/manifest.md).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from contextvars import Context
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from . import kept
from .errors import CannotCreate, DataError, Interrupted, IoFault, JmedliteError, system_fault
from .inputs import read_json
from .looking import exists, is_dir
from .outputs import Lock, OutputFile, flush_folder, make_folder, sha256_file
from .records import from_json, to_json
from .signals import kept_back

FORMAT = 1
SUFFIX = ".pending"
CUT = (KeyboardInterrupt, SystemExit, Interrupted, IoFault)  # what ends a run from outside


@dataclass(frozen=True, kw_only=True)
class PendingFile:
    """One file that is about to get its name; `replaces` an older one."""

    name: str
    size_bytes: int
    sha256: str
    replaces: bool

    def is_at(self, path: Path) -> bool:
        """Is this the file that stands there?"""
        try:
            return path.stat().st_size == self.size_bytes and sha256_file(path) == self.sha256
        except (OSError, JmedliteError):
            return False


@dataclass(frozen=True, kw_only=True)
class Journal:
    """What is being published, in this order."""

    format: int
    files: tuple[PendingFile, ...]


class Publication:
    """The files of one result, which stand in one folder: a context manager that owns them all until `publish`."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._outputs: dict[Path, OutputFile] = {}
        self._going_on: list[OutputFile] = []

    def __enter__(self) -> Publication:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with kept_back():
            if kind is not None and issubclass(kind, CUT):
                for output in self._going_on:
                    output.keeps = True
            self._stack.__exit__(kind, error, trace)

    def add(self, path: Path, *, goes_on: bool = False) -> OutputFile:
        """Begin a file: nobody else can write it from now on. Raises Busy where somebody does.

        One that `goes_on` may take over what an earlier run left of it, and is kept where this one is CUT.
        """
        with kept_back():
            output = self._stack.enter_context(OutputFile(path, goes_on=goes_on))
            self._going_on += [output] * goes_on
        self._outputs[path] = output
        return output

    def publish(self, order: Sequence[Path], then: Callable[[], object] = lambda: None) -> None:
        """Name all files, do `then`, and call it done; whatever goes wrong before that, no name has changed.

        In the `order` the one that makes the whole visible comes last.
        A signal that would end the run is kept back meanwhile; where one came, it is as if it had come before.
        """
        assert set(order) == set(self._outputs)
        outputs = [self._outputs[path] for path in order]
        for output in outputs:
            output.finish()
        folder = outputs[-1].path.parent
        entries = tuple(
            PendingFile(name=o.path.name, size_bytes=o.size_bytes, sha256=o.sha256.hexdigest(), replaces=exists(o.path))
            for o in outputs
        )
        journal = folder / f".{outputs[-1].path.name}{SUFFIX}"
        named: set[str] = set()
        with kept_back() as signals:
            try:
                _write_journal(journal, Journal(format=FORMAT, files=entries))
                for entry, output in zip(entries, outputs, strict=True):
                    if entry.replaces:
                        _set_aside(output.path)
                for output in outputs:
                    output.name()
                    named.add(output.path.name)
                flush_folder(folder)
                then()
            except BaseException:
                _undo(folder, entries, lambda entry: entry.name in named)
                _remove_journal(journal)
                raise
            if undone := bool(signals):
                _undo(folder, entries, lambda entry: True)
            _remove_journal(journal)
            for entry in entries:
                with contextlib.suppress(OSError):
                    _old(folder, entry).unlink(missing_ok=True)
        if undone:  # by a signal whose handler did not raise
            raise Interrupted("interrupted while the result was published; nothing was")


def _write_journal(path: Path, journal: Journal) -> None:
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            json.dump(to_json(journal), file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as e:
        partial.unlink(missing_ok=True)
        raise system_fault(e, path, "writing") from None
    flush_folder(path.parent)


def _remove_journal(path: Path) -> None:
    """From now on, what stands there stands for good."""
    try:
        path.unlink(missing_ok=True)
    except OSError as e:
        raise system_fault(e, path, "removing") from None
    flush_folder(path.parent)


def _old(folder: Path, entry: PendingFile) -> Path:
    return folder / f".{entry.name}.old"


def _set_aside(path: Path) -> None:
    """Keep what stands at `path` under a name of its own, where possible without taking it away."""
    old = path.with_name(f".{path.name}.old")
    try:
        with contextlib.suppress(FileNotFoundError):
            old.unlink()
        try:
            os.link(path, old)
        except (OSError, NotImplementedError):  # a file system without hard links
            path.replace(old)
    except OSError as e:
        raise system_fault(e, path, "setting aside") from None


def _undo(folder: Path, entries: Sequence[PendingFile], is_named: Callable[[PendingFile], bool]) -> None:
    """Every name as it was before; partial files are removed."""
    for entry in reversed(entries):
        path, old = folder / entry.name, _old(folder, entry)
        with contextlib.suppress(OSError):
            if exists(old):
                if not exists(path) or (not path.samefile(old) and is_named(entry)):
                    old.replace(path)
                else:
                    old.unlink()  # it has not been replaced yet, or by somebody else since
            elif is_named(entry) and not entry.replaces:
                path.unlink()
        with contextlib.suppress(OSError):
            (folder / f".{entry.name}.partial").unlink()
    flush_folder(folder)


# ------------------------------------------------------------------------------------------- what a dead run left


def _journals(folder: Path) -> dict[Path, Journal]:
    """The journals of a folder; one that was cut off comes from before the first name, and says nothing."""
    found: dict[Path, Journal] = {}
    with contextlib.suppress(OSError):
        for path in sorted(folder.glob(f".*{SUFFIX}")):
            with contextlib.suppress(JmedliteError):
                if (raw := read_json(path, 1 << 24)).get("format") == FORMAT:
                    journal = from_json(raw, Journal, path.name)
                    if journal.files and all(Path(f.name).name == f.name for f in journal.files):
                        found[path] = journal
    return found


def take_back(path: Path, *, goes_on: bool = False) -> None:
    """Undo what a run that died while it published `path` has done, and remove what it left; Busy where it lives.

    What is kept on purpose stays for one that `goes_on`.
    """
    Context().run(_take_back, path, goes_on)  # what it reads is no input, and no Watch's business


def _take_back(path: Path, goes_on: bool) -> None:
    for journal, found in _journals(path.parent).items():
        if path.name in (f.name for f in found.files):
            # whoever publishes holds the locks of all its files
            with Lock(path.parent / found.files[-1].name):
                if not exists(journal):
                    continue
                _undo(path.parent, found.files, lambda entry: entry.is_at(path.parent / entry.name))
                journal.unlink(missing_ok=True)
                for entry in found.files[:-1]:
                    with contextlib.suppress(JmedliteError), Lock(path.parent / entry.name):
                        pass  # leaving removes the lock's file
    record = kept.kept_names(path.parent).get(path.name)
    if record is None or not goes_on:
        _take_remains(path, record)


def _take_remains(path: Path, record: Path | None) -> None:
    left = [path.with_name(f".{path.name}{end}") for end in (".lock", ".partial", ".old", f"{SUFFIX}.partial")]
    if record or any(exists(p) for p in left):
        with Lock(path):
            if record:
                kept.remove(record)
            for p in left[1:]:
                p.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what runs that died left of other results in a folder: their locks, which nobody holds, and partial files.

    Other programs lock files too, so only what a lock and a partial file say together, or a model's name, is ours. What
    is kept on purpose stays.
    """
    on_purpose = kept.kept_names(folder)
    with contextlib.suppress(OSError):
        for lock in folder.glob(".*.lock"):
            path = folder / lock.name.removeprefix(".").removesuffix(".lock")
            ours = path.suffix == ".gguf" or exists(path.with_name(f".{path.name}.partial"))
            if ours and lock.stat().st_size == 0 and path.name not in on_purpose:
                with contextlib.suppress(JmedliteError, OSError):
                    take_back(path)


def check_published(paths: Sequence[Path]) -> None:
    """Raise DataError where a run that published these files is not through, so that old and new may be mixed."""
    for journal, found in Context().run(_journals, paths[0].parent).items():
        names = {f.name for f in found.files}
        half = [f for f in found.files if exists(journal.with_name(f".{f.name}.partial"))]
        if half and any(p.name in names for p in paths):
            raise DataError(
                f"{paths[0].name}: is half published, {half[0].name} is missing or old: the run that wrote it is not "
                "through, or ended in that moment; give the same command again, which takes it back and makes it anew"
            )


def check_target(path: Path, overwrite: bool, *, goes_on: bool = False) -> None:
    """Refuse a target that is a folder, exists without `overwrite`, or stands in a folder that can't be written.

    What runs that died left of it, and in its folder, is removed; what is kept on purpose, unless one `goes_on`.
    """
    if is_dir(path):
        raise CannotCreate(f"{path}: is a folder, expected a file name")
    take_back(path, goes_on=goes_on)
    sweep(path.parent)
    if exists(path) and not overwrite:
        raise CannotCreate(f"{path}: exists; give --overwrite to replace it, or another --out or --name")
    make_folder(path.parent)


def write_texts(texts: Mapping[Path, str | bytes]) -> None:
    """Small files of one folder, all of them or none; the one that makes the whole visible last."""
    with Publication() as result:
        for path, text in texts.items():
            result.add(path).write(text.encode("utf-8") if isinstance(text, str) else text)
        result.publish(list(texts))
