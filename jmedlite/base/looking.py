"""Whether a path is there and what it is, with the true reason where the system doesn't say.

pathlib's own `exists`, `is_file` and `is_dir` raise a folder without permission or a name too long up to Python 3.13,
and take both for "not there" from 3.14 on. A person would be told to look for a file that they may not read.
"""

from __future__ import annotations

import errno
import stat
from pathlib import Path

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EBADF, errno.ELOOP)
_ABSENT_ON_WINDOWS = (21, 123, 1921)  # a drive without a disk, a name that can't be one, a link that leads nowhere


def exists(path: Path) -> bool:
    """Whether there is a file, a folder or anything else, links followed. Raises OSError where that can't be told."""
    return _mode(path) != 0


def is_file(path: Path) -> bool:
    """Whether there is a regular file, links followed. Raises OSError where that can't be told."""
    return stat.S_ISREG(_mode(path))


def is_dir(path: Path) -> bool:
    """Whether there is a folder, links followed. Raises OSError where that can't be told."""
    return stat.S_ISDIR(_mode(path))


def _mode(path: Path) -> int:
    """The kind and permissions of what is there; 0 where there is nothing, or the name can't be one."""
    try:
        return path.stat().st_mode
    except OSError as e:
        if e.errno in _ABSENT or getattr(e, "winerror", None) in _ABSENT_ON_WINDOWS:
            return 0
        raise
    except ValueError:  # a null byte within
        return 0
