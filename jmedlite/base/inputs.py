"""What people give: files to open and numbers within bounds, with a sentence where they are not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import DataError, InputMissing, IoFault, NotPermitted, UsageError


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
    """A UTF-8 text of at most `limit` bytes; raises DataError where it is longer or another encoding."""
    with reading(path), path.open("rb") as file:
        raw = file.read(limit + 1)
    if len(raw) > limit:
        raise DataError(f"{path}: has more than {limit:,} bytes; is it the right file?")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise DataError(f"{path}: is not UTF-8 (byte {e.start}); save it as UTF-8") from None


def check_range(option: str, value: float | str, low: float, high: float, others: str = "") -> None:
    """A number must lie within [low, high]; raises UsageError (also for NaN)."""
    try:
        inside = low <= float(value) <= high
    except ValueError:
        inside = False
    if not inside:
        raise UsageError(f"{option} {value}: expected {others}{low} to {high:,}")
