"""What people give: files to open and numbers within bounds, with a sentence where they are not."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

from .errors import DataError, InputMissing, IoFault, JmedliteError, NotPermitted, UsageError, system_fault
from .halves import HALF, has_halves
from .looking import exists, is_dir, is_file

# Bytes of JSON that are read at most, by what the file is. The largest that were seen: config.json with a setting for
# every module 1 MB, tokenizer.json 35 MB, an index of 90,000 tensors 9 MB.
MAX_SETTINGS, MAX_VOCABULARY, MAX_INDEX = 8_000_000, 100_000_000, 64_000_000
# A value of JSON takes two bytes there and up to 72 here, so a file's values are bounded beside its bytes, to one in
# BYTES_A_VALUE of what it may have. A tokenizer of 262,144 tokens and 580,000 merges has 1.4 million.
MAX_VALUES, BYTES_A_VALUE = 5_000_000, 16
MAX_CARD = 16_000_000
AGAIN = "download the file again"
MAX_TEXT = 32 << 20  # bytes
MAX_CTX = 1 << 20  # tokens that a text is cut into at most
MAX_QUESTION = 1 << 20  # bytes


class Watch:
    """The files that were read, as they were at first: `check` says whether one is no longer what it was.

    A file that was written to has another time of change, even where its modification time was put back; one that was
    replaced has another number, even while it is still open.
    """

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[int, ...]] = {}

    def see(self, path: Path) -> None:
        """Remember a regular file, before it is read."""
        if path not in self._seen and (found := _identity(path)):
            self._seen[path] = found

    def of(self, paths: Iterable[Path]) -> Watch:
        """A Watch of these files only, of those that were seen."""
        part = Watch()
        part._seen = {path: self._seen[path] for path in paths if path in self._seen}
        return part

    def digest(self) -> str:
        """One SHA-256 for what all of them were."""
        seen = sorted((str(path.resolve()), was) for path, was in self._seen.items())
        return hashlib.sha256(repr(seen).encode()).hexdigest()

    def check(self) -> None:
        """Raise IoFault where a file was changed, replaced or removed."""
        for path, was in self._seen.items():
            if _identity(path) != was:
                raise IoFault(
                    f"{path}: was changed or replaced while it was read, so nothing that was made of it counts; run "
                    "again when nobody writes it"
                )

    @contextmanager
    def held(self) -> Iterator[None]:
        """Around using what was read: a fault that a change explains is the change's."""
        try:
            yield
        except JmedliteError:
            self.check()
            raise


def _identity(path: Path) -> tuple[int, ...]:
    """What tells whether a regular file is still the same; nothing where there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    same = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return same if stat.S_ISREG(found.st_mode) else ()


_watch: ContextVar[Watch | None] = ContextVar("watch", default=None)


@contextmanager
def watching() -> Iterator[Watch]:
    """A Watch that sees whatever the body reads (in this thread)."""
    watch = Watch()
    token = _watch.set(watch)
    try:
        with watch.held():
            yield watch
    finally:
        _watch.reset(token)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Around opening and reading `path`: InputMissing, NotPermitted, DataError (a folder) or IoFault."""
    if watch := _watch.get():
        watch.see(path)
    try:
        yield
    except FileNotFoundError:
        raise InputMissing(f"{path}: no such file") from None
    except PermissionError:
        raise NotPermitted(f"{path}: may not be read (permission denied)") from None
    except IsADirectoryError:
        raise InputMissing(f"{path}: is not a regular file, but a folder") from None
    except OSError as e:
        raise system_fault(e, path, "reading") from None


_OTHER_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
# a pipe that nobody writes to must not keep `open` waiting
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


@contextmanager
def opened(path: Path, buffering: int = -1) -> Iterator[BufferedReader]:
    """A file, open for reading: the one way in which a file from outside is opened. Raises what `reading` does.

    Only regular files: a pipe may never end, a device has no end, and everything here is read in more than one place
    or more than once. What is piped in, standard input takes.
    """
    with reading(path), open_file(path, buffering) as file:
        yield file


def open_file(path: Path, buffering: int = -1) -> BufferedReader:
    """`opened` for who closes the file himself, inside `reading`."""
    _check_regular(path, os.stat(path))  # before: opening some devices does something  # noqa: PTH116
    fd = os.open(path, _FLAGS)
    try:
        _check_regular(path, os.fstat(fd))  # after: it may be another by now
        return cast(BufferedReader, os.fdopen(fd, "rb", buffering))  # a FileIO can all that is used
    except BaseException:
        os.close(fd)
        raise


def _check_regular(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = _OTHER_KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        advice = "" if kind == "a folder" else "; save its content to a file, and give that"
        raise InputMissing(f"{path}: is not a regular file, but {kind}{advice}")


def read_bytes(path: Path, limit: int) -> bytes:
    """A file of at most `limit` bytes; raises DataError where it is longer."""
    with opened(path) as file:
        blob = file.read(limit + 1)
    if len(blob) > limit:
        raise DataError(f"{path.name}: has more than {limit:,} bytes, which no such file needs; is it the right one?")
    return blob


def read_text(path: Path, limit: int) -> str:
    """A UTF-8 file of at most `limit` bytes; raises DataError where it is longer or in another encoding."""
    with opened(path) as file:
        return decode(file.read(limit + 1), limit, str(path))


def check_stand_in(path: Path, head: bytes) -> None:
    """Raise DataError where a file begins as what a failed download leaves in its place."""
    text = head.lstrip().lower()
    if not head:
        raise DataError(f"{path.name}: is empty; {AGAIN}")
    if head.startswith(b"version https://git-lfs"):
        raise DataError(
            f"{path.name}: is a Git LFS pointer, not the file itself: the download is incomplete; run `git lfs pull` "
            f"or {AGAIN}"
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise DataError(f"{path.name}: is a web page, not the file itself: the download failed; {AGAIN}")


_READ = (".json", ".safetensors", ".bin", ".model", ".jinja", ".md")  # what models and adapters are read from


def check_links(folder: Path, follow: bool = False) -> None:
    """Raise where a link among the files of a model's or adapter's folder leads to what nobody meant to give.

    What is no regular file is refused, not taken for one that is not there. A link may leave the folder (into a store,
    a shared disk, the Hub's cache) where its target is a regular file of the person's own, of the system's, or of
    whoever made the link. Systems without owners, and `follow`, follow all.
    """
    with reading(folder):
        found = sorted(folder.iterdir())
    for path in found:
        if path.suffix not in _READ:
            continue
        if not path.is_symlink():
            if not is_file(path) and not is_dir(path):
                _check_regular(path, path.stat())
            continue
        target = path.resolve()
        if not exists(target):
            raise InputMissing(f"{path.name}: is a link to {target}, which is not there; fetch or mount it")
        if not stat.S_ISREG(target.stat().st_mode):
            raise InputMissing(f"{path.name}: is a link to {target}, which is not a regular file")
        if follow:
            continue
        # The Hub's cache links snapshots/<commit>/<file> to blobs/<hash>, two floors up.
        roots = (folder.resolve(), folder.resolve().parent.parent / "blobs")
        if target.is_relative_to(roots[0]) or (roots[0].parent.name == "snapshots" and target.is_relative_to(roots[1])):
            continue
        me = os.geteuid() if hasattr(os, "geteuid") else 0
        if (owner := target.stat().st_uid) not in (0, me, path.lstat().st_uid):
            raise NotPermitted(
                f"{path.name}: is a link that leaves the folder, to {target}, which belongs to another user ({owner}); "
                "copy the file here, or give --follow-links"
            )


Pairs = Callable[[list[tuple[str, Any]]], Any]


def read_json(path: Path, limit: int = MAX_SETTINGS, pairs: Pairs | None = None) -> dict[str, Any]:
    """A JSON object from a file of at most `limit` bytes; raises InputMissing or DataError.

    `pairs` makes each object of its (name, value) pairs, and may raise ValueError.
    """
    blob = read_bytes(path, limit)
    if blob.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(
            f"{path.name}: is UTF-16, as its byte order mark says, expected JSON in UTF-8; save it as UTF-8"
        )
    try:
        found = parse_json(blob.removeprefix(codecs.BOM_UTF8), pairs, limit // BYTES_A_VALUE)
    except ValueError as e:
        check_stand_in(path, blob[:512])
        raise DataError(f"{path.name}: is not valid JSON ({e})") from None
    if not isinstance(found, dict):
        raise DataError(f"{path.name}: holds a JSON {type(found).__name__}, expected an object")
    if has_halves(blob, found):
        raise DataError(f"{path.name}: holds {HALF}; make the file again")
    return found


def parse_json(blob: bytes, pairs: Pairs | None = None, most: int = MAX_VALUES) -> Any:
    """`blob` as JSON of at most `most` values; raises ValueError, whatever is wrong."""
    if blob.count(b",") > most:  # every value but the first of its list or object stands after a comma
        raise ValueError(f"it has over {most:,} values, more than such a file needs")
    try:
        return json.loads(blob, object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_document(path: Path) -> str:
    """A text file, UTF-8 and not empty; raises DataError saying what else it is."""
    return read_hashed_document(path)[0]


def read_hashed_document(path: Path) -> tuple[str, str]:
    """`read_document`, and the SHA-256 of the very bytes that it was read from."""
    with opened(path) as file:
        raw = file.read(MAX_TEXT + 1)
    if len(raw) > MAX_TEXT:
        raise DataError(f"{path.name}: has more than {MAX_TEXT:,} bytes; some hundred kB of text are enough")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise DataError(f"{path.name}: is not UTF-8 (byte {e.start:,}); save the text as UTF-8") from None
    if "\0" in text:
        raise DataError(f"{path.name}: contains a NUL character; is it a text?")
    if not text.strip():
        raise DataError(f"{path.name}: has no text")
    return text, hashlib.sha256(raw).hexdigest()


def decode(raw: bytes, limit: int, what: str) -> str:
    """`raw` as UTF-8; DataError where it has more than `limit` bytes (read one more than that) or is not UTF-8."""
    if len(raw) > limit:
        raise DataError(f"{what} has more than {limit:,} bytes; expected a short text, is it the right file?")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise DataError(f"{what} is not UTF-8 (byte {e.start}); save the text as UTF-8") from None


def check_range(option: str, value: float | str, low: float, high: float, others: str = "") -> None:
    """A number must lie within [low, high]; raises UsageError (also for NaN)."""
    try:
        inside = low <= float(value) <= high
    except ValueError:
        inside = False
    if not inside:
        raise UsageError(f"{option} {value}: expected {others}{low} to {high:,}")
