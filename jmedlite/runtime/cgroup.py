"""Control groups: the processors and the memory that Linux leaves to this process within its container.

Version 2 has all of a group in one folder below /sys/fs/cgroup, version 1 in one for each controller; every group above
binds as well. Formats: the kernel's Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jmedlite.base.looking import is_dir

MOUNT = Path("/sys/fs/cgroup")
GROUPS = Path("/proc/self/cgroup")
UNLIMITED = 1 << 60  # version 1 says "no limit" by a number of about 2^63


def cpu_quota(mount: Path = MOUNT, groups: Path = GROUPS) -> float | None:
    """Processors' worth of time that the tightest group may use; None where none binds."""
    found = []
    for version, folder in _folders("cpu", mount, groups):
        try:
            if version == 2:
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota, period = ((folder / f"cpu.cfs_{n}_us").read_text().strip() for n in ("quota", "period"))
            if quota not in ("max", "-1"):
                found.append(int(quota) / int(period))
        except (OSError, ValueError, ZeroDivisionError):
            continue
    return min(found, default=None)


def memory_left(mount: Path = MOUNT, groups: Path = GROUPS) -> int | None:
    """Bytes until the tightest group's limit; None where none binds."""
    found = []
    for version, folder in _folders("memory", mount, groups):
        names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        try:
            limit, used = ((folder / name).read_text().strip() for name in names)
            if limit == "max" or int(limit) >= UNLIMITED:
                continue
            cached = _stat(folder, "inactive_file" if version == 2 else "total_inactive_file")
            found.append(int(limit) - int(used) + cached)
        except (OSError, ValueError):
            continue
    return min(found, default=None)


def _stat(folder: Path, name: str) -> int:
    """The cache of files counts as used, but gives way; 0 where nothing is told of it."""
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)
    except (OSError, ValueError, IndexError):
        return 0


def _folders(controller: str, mount: Path, groups: Path) -> Iterator[tuple[int, Path]]:
    """(version, folder) of this process's group and of all above it that can be seen from here."""
    try:
        lines = [line.split(":", 2) for line in groups.read_text().splitlines()]
    except OSError:
        lines = [["0", "", "/"]]
    for _, controllers, path in (line for line in lines if len(line) == 3):
        names = controllers.split(",")
        if controllers and controller not in names:
            continue
        version, root = (2, mount) if not controllers else (1, _mounted(mount, controller, controllers))
        inside = Path(path.lstrip("/"))
        for part in (inside, *inside.parents):  # a container may see its own group as the root
            if is_dir(root / part):
                yield version, root / part


def _mounted(mount: Path, controller: str, together: str) -> Path:
    """Where version 1 has a controller: under its own name, or that of all that are mounted together."""
    return mount / controller if is_dir(mount / controller) else mount / together
