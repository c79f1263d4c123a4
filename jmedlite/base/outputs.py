"""Files that appear only when whole: written beside their final name, flushed, checked, renamed; one writer."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from .errors import Busy, CannotCreate, IoFault, JmedliteError, NotPermitted
from .inputs import opened


def fault(error: OSError, path: Path, doing: str) -> JmedliteError:
    """The sentence and exit code for an operating-system error while `doing` something to `path`."""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return NotPermitted(f"{path}: {doing} is not permitted ({error.strerror}); choose another folder with --out")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return IoFault(f"{path}: the disk is full; partial files were removed, free some space and run again")
    return IoFault(f"{path}: {doing} failed ({error.strerror or error})")


def check_target(path: Path, overwrite: bool) -> None:
    """Refuse a target that is a folder, exists without `overwrite`, or stands in a folder that can't be written."""
    if path.is_dir():
        raise CannotCreate(f"{path}: is a folder, expected a file name")
    if path.exists() and not overwrite:
        raise CannotCreate(f"{path}: exists; give --overwrite to replace it, or another --out or --name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise CannotCreate(f"{path.parent}: is a file, expected a folder") from None
    except OSError as e:
        raise fault(e, path.parent, "making the folder") from None


class OutputFile:
    """One output, sequentially written; nothing stands at `path` until `publish`.

    The partial file `.NAME.partial` is removed on any failure; one left by a killed run is overwritten by the next.
    """

    def __init__(self, path: Path) -> None:
        from filelock import FileLock  # only for writers: takes as long to import as the rest of a child's start

        self.path = path
        self.partial = path.with_name(f".{path.name}.partial")
        self._lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
        self._file: BinaryIO | None = None
        self._published = False

    def __enter__(self) -> OutputFile:
        from filelock import Timeout

        try:
            self._lock.acquire()
        except Timeout:
            raise Busy(f"{self.path}: another run is writing this file; wait for it or choose another --out") from None
        except OSError as e:
            raise fault(e, self.path.parent, "writing") from None
        try:
            self._file = self.partial.open("wb", buffering=0)
        except OSError as e:
            self._release()
            raise fault(e, self.path, "writing") from None
        return self

    def write(self, data: Any) -> None:
        """Append bytes; raises IoFault where the disk is full or fails."""
        assert self._file is not None
        view = memoryview(data).cast("B")
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as e:
            raise fault(e, self.path, "writing") from None

    def flush(self) -> None:
        """Everything written so far is on the disk when this returns."""
        assert self._file is not None
        try:
            os.fsync(self._file.fileno())
        except OSError as e:
            raise fault(e, self.path, "flushing to disk") from None

    def publish(self) -> None:
        """Give the (checked) partial file its final name, in one step."""
        self.flush()
        assert self._file is not None
        self._file.close()
        try:
            self.partial.replace(self.path)
        except OSError as e:
            raise fault(e, self.path, "renaming") from None
        self._published = True
        with contextlib.suppress(OSError, AttributeError):  # Windows has no folder handles to flush
            fd = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def _release(self) -> None:
        lock_file = Path(self._lock.lock_file)
        with contextlib.suppress(OSError):
            lock_file.unlink()  # while held: a waiting run then finds a new file
        self._lock.release()
        if os.name == "nt":  # where an open file can't be removed
            with contextlib.suppress(OSError):
                lock_file.unlink()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
        if not self._published:
            with contextlib.suppress(OSError):
                self.partial.unlink()
        self._release()


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def joint_sha256(hashes: Sequence[str]) -> str:
    """One SHA-256 for a model of several files, from those of its files; of one file its own."""
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def write_text(path: Path, text: str) -> None:
    """A small text file, whole or not at all."""
    with OutputFile(path) as out:
        out.write(text.encode("utf-8"))
        out.publish()


def write_private(path: Path, *chunks: bytes | memoryview) -> None:
    """A file that only this user can read, whole or not at all, replacing what is there. Raises OSError."""
    fd, name = tempfile.mkstemp(prefix=".new-", dir=path.parent)  # mode 600 from the first moment on
    try:
        with os.fdopen(fd, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
