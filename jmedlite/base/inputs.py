"""What people give: files to open and numbers within bounds, with a sentence where they are not."""

from __future__ import annotations

import codecs
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import DataError, InputMissing, IoFault, NotPermitted, UsageError
from .halves import HALF, has_halves

MAX_JSON = 256_000_000
AGAIN = "download the file again"
MAX_TEXT = 32 << 20  # bytes
MAX_CTX = 1 << 20  # tokens that a text is cut into at most
MAX_QUESTION = 1 << 20  # bytes


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Around opening and reading `path`: InputMissing, NotPermitted, DataError (a folder) or IoFault."""
    try:
        yield
    except FileNotFoundError:
        raise InputMissing(f"{path}: no such file") from None
    except PermissionError:
        raise NotPermitted(f"{path}: may not be read (permission denied)") from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a folder, expected a file") from None
    except OSError as e:
        raise IoFault(f"{path}: could not be read ({e.strerror or e})") from None


def read_text(path: Path, limit: int) -> str:
    """A UTF-8 file of at most `limit` bytes; raises DataError where it is longer or in another encoding."""
    with reading(path), path.open("rb") as file:
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


def check_links(folder: Path) -> None:
    """Raise where a link among the files of a model's or adapter's folder leads to what nobody meant to give.

    A link may leave the folder (into a store, a shared disk, the Hub's cache) where its target is a regular file of
    the person's own, of the system's, or of whoever made the link. Systems without owners follow all.
    """
    with reading(folder):
        found = sorted(folder.iterdir())
    for path in found:
        if not path.is_symlink() or path.suffix not in _READ:
            continue
        target = path.resolve()
        if not target.exists():
            raise InputMissing(f"{path.name}: is a link to {target}, which is not there; fetch or mount it")
        if not stat.S_ISREG(target.stat().st_mode):
            raise InputMissing(f"{path.name}: is a link to {target}, which is not a regular file")
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


def read_json(
    path: Path, limit: int = MAX_JSON, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None
) -> dict[str, Any]:
    """A JSON object from a file of at most `limit` bytes; raises InputMissing or DataError.

    `pairs` makes each object of its (name, value) pairs, and may raise ValueError.
    """
    with reading(path):
        if path.stat().st_size > limit:
            raise DataError(f"{path.name}: has {path.stat().st_size:,} bytes, expected at most {limit:,}")
        blob = path.read_bytes()
    if blob.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(
            f"{path.name}: is UTF-16, as its byte order mark says, expected JSON in UTF-8; save it as UTF-8"
        )
    try:
        found = json.loads(blob.removeprefix(codecs.BOM_UTF8), object_pairs_hook=pairs)
    except (ValueError, RecursionError) as e:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        check_stand_in(path, blob[:512])
        raise DataError(f"{path.name}: is not valid JSON ({e})") from None
    if not isinstance(found, dict):
        raise DataError(f"{path.name}: holds a JSON {type(found).__name__}, expected an object")
    if has_halves(blob, found):
        raise DataError(f"{path.name}: holds {HALF}; make the file again")
    return found


def read_document(path: Path) -> str:
    """A text file, UTF-8 and not empty; raises DataError saying what else it is."""
    with reading(path), path.open("rb") as file:
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
    return text


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
