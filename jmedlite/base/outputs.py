"""Files that appear only when whole: written beside their final name, flushed, checked, renamed; one writer."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO, cast

from .errors import Busy, CannotCreate, system_fault
from .inputs import opened
from .looking import exists
from .signals import kept_back


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for what is needed for a moment; CannotCreate where the system has no place for one."""
    with ExitStack() as stack:
        with _temporary():
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="jmedlite-", ignore_cleanup_errors=True))
        yield Path(folder)


def temporary_file() -> IO[bytes]:
    """A file without a name; CannotCreate where the system has no place for one."""
    with _temporary():
        return tempfile.TemporaryFile()


@contextmanager
def _temporary() -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise CannotCreate(
            f"no folder for temporary files can be used ({e.strerror or e}); name one in the variable TMPDIR, or free "
            "some space"
        ) from None


class Lock:
    """The right to write the file or folder at `path`, held as a context manager.

    It is the system's lock of a file beside it, or of `file`, so it goes with the process; Busy at once where another
    has it.
    """

    def __init__(self, path: Path, file: Path | None = None) -> None:
        from filelock import FileLock  # only for writers: takes as long to import as the rest of a child's start

        self.path, self.file = path, file or path.with_name(f".{path.name}.lock")
        self._lock = FileLock(self.file, timeout=0)

    def __enter__(self) -> Lock:
        from filelock import Timeout

        while True:
            try:
                self._lock.acquire()
            except Timeout:
                if not exists(self.file):  # whoever had it let go meanwhile
                    continue
                raise Busy(f"{self.path}: another run is writing there; wait for it or choose another --out") from None
            except OSError as e:
                raise system_fault(e, self.path, "writing") from None
            return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with kept_back():  # a signal in between would leave the file
            with contextlib.suppress(OSError):
                self.file.unlink()  # while held: a waiting run then finds a new file
            self._lock.release()
            if os.name == "nt":  # where an open file can't be removed
                with contextlib.suppress(OSError):
                    self.file.unlink()


class OutputFile:
    """One output, sequentially written; nothing stands at `path` until `publish`.

    The partial file `.NAME.partial` is removed on any failure, unless `keeps` is set by then; one left by a killed run
    is overwritten by the next, or with `goes_on` taken over. `sha256` and `size_bytes` are of what was written so far.
    """

    def __init__(self, path: Path, *, goes_on: bool = False) -> None:
        self.path, self.keeps, self._goes_on = path, False, goes_on
        self.partial = path.with_name(f".{path.name}.partial")
        self.sha256, self.size_bytes = hashlib.sha256(), 0
        self._lock = Lock(path)
        self._file: BinaryIO | None = None
        self._named = False

    def __enter__(self) -> OutputFile:
        try:
            with kept_back():  # a signal waits until it is known what there is to remove
                self._lock.__enter__()
                try:
                    mode = "r+b" if self._goes_on and exists(self.partial) else "w+b"
                    self._file = cast(BinaryIO, self.partial.open(mode, buffering=0))
                except OSError as e:
                    self._lock.__exit__(None, None, None)
                    raise system_fault(e, self.path, "writing") from None
        except BaseException:
            if self._file is not None:
                self.__exit__(None, None, None)
            raise
        return self

    def write(self, data: Any) -> None:
        """Append bytes; raises IoFault where the disk is full or fails."""
        assert self._file is not None
        view = memoryview(data).cast("B")
        self.sha256.update(view)
        self.size_bytes += len(view)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as e:
            raise system_fault(e, self.path, "writing") from None

    def take_over(self, n_bytes: int, sha256: str) -> bool:
        """Go on after the first `n_bytes` that an earlier run left, if that is their SHA-256; else begin anew."""
        assert self._file is not None
        try:
            found, left = hashlib.sha256(), n_bytes
            self._file.seek(0)
            while chunk := self._file.read(min(left, 1 << 20)):
                found.update(chunk)
                left -= len(chunk)
            taken = not left and found.hexdigest() == sha256
            self.sha256, self.size_bytes = (found, n_bytes) if taken else (hashlib.sha256(), 0)
            self._file.truncate(self.size_bytes)
            self._file.seek(self.size_bytes)
        except OSError as e:
            raise system_fault(e, self.path, "going on with") from None
        return taken

    def flush(self) -> None:
        """Everything written so far is on the disk when this returns."""
        assert self._file is not None
        try:
            os.fsync(self._file.fileno())
        except OSError as e:
            raise system_fault(e, self.path, "flushing to disk") from None

    def finish(self) -> None:
        """Flush for the last time: from now on the partial file is whole."""
        if self._file is not None:
            self.flush()
            self._file.close()
            self._file = None

    def name(self) -> None:
        """Give the finished file its name, which is on the disk once the folder is flushed."""
        try:
            self.partial.replace(self.path)
        except OSError as e:
            raise system_fault(e, self.path, "renaming") from None
        self._named = True

    def publish(self) -> None:
        """Give the (checked) partial file its final name, in one step."""
        self.finish()
        self.name()
        flush_folder(self.path.parent)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with kept_back():
            if self._file is not None:
                self._file.close()
            if not self._named and not self.keeps:
                with contextlib.suppress(OSError):
                    self.partial.unlink()
            self._lock.__exit__(None, None, None)


def make_folder(folder: Path) -> None:
    """The folder, and those above it, where they are not there; raises CannotCreate, or what the system refused."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise CannotCreate(f"{folder}: is a file, expected a folder") from None
    except OSError as e:
        raise system_fault(e, folder, "making the folder") from None


def flush_folder(folder: Path) -> None:
    """The names in a folder are on the disk when this returns, where the system can do that (not Windows)."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


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
