"""Opening files that people name: what the system says, as a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import DataError, InputMissing, IoFault, NotPermitted


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
