"""What people give: files to open and numbers within bounds, with a sentence where they are not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import DataError, InputMissing, IoFault, NotPermitted, UsageError

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
