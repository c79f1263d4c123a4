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


def check_range(option: str, value: float | str, low: int, high: int, others: str = "") -> None:
    """A number must lie within [low, high]; raises UsageError (also for NaN)."""
    try:
        inside = low <= float(value) <= high
    except ValueError:
        inside = False
    if not inside:
        raise UsageError(f"{option} {value}: expected {others}{low} to {high:,}")
