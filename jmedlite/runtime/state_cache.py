"""State cache: evaluated prompt prefixes on disk, so that the second question starts where the first one's did.

An entry holds llama.cpp's own sequence state of a prefix that does not depend on the question. It is found by a hash
of everything the state depends on, and checked against a hash of its own before llama.cpp sees it: a cut or altered
file is a miss, never a fault. Only this user can read the entries; the least recently used go first when the folder
grows over its limit. Anything the file system refuses means working without the cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jmedlite.base.errors import JmedliteError, system_fault
from jmedlite.base.inputs import opened, read_bytes
from jmedlite.base.outputs import write_private

MAGIC = b"JMSTATE1"
SUFFIX = ".state"
LIMIT_BYTES = 1_000_000_000
BEGINNING = 1 << 23  # bytes: the header, as a rule
SAMPLES, SAMPLE_BYTES = 64, 1 << 14


def cache_folder() -> Path | None:
    """$JMEDLITE_CACHE, else the system's place for this user's caches; None where no home folder is known."""
    if named := os.environ.get("JMEDLITE_CACHE"):
        return Path(named)
    try:
        return _usual_folder()
    except RuntimeError:
        return None


def nothing_kept() -> str:
    """Why nothing can be cached; "" where it can."""
    folder = cache_folder()
    if folder is None:
        return "no home folder is known (HOME is not set); name a folder in the variable JMEDLITE_CACHE"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as e:
        return str(system_fault(e, folder, "making the folder"))
    return "" if os.access(folder, os.W_OK | os.X_OK) else f"{folder}: is not writable"


def _usual_folder() -> Path:
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
        return Path(base) / "jmedlite" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "jmedlite"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jmedlite"


def fingerprint(paths: Sequence[Path]) -> str:
    """A hash that tells model files apart without reading all of them: sizes, times, beginnings and samples.

    A file that was written again, even with its old modification time, has another time of change; a copy is another
    file to the cache, which only costs an evaluation. Raises what `opened` does.
    """
    digest = hashlib.sha256()
    for path in paths:
        with opened(path) as file:
            stat = os.fstat(file.fileno())
            digest.update(struct.pack("<QQQ", stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
            digest.update(file.read(BEGINNING))
            for i in range(SAMPLES):
                file.seek(stat.st_size * i // SAMPLES)
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def key_of(facts: Mapping[str, Any]) -> str:
    """The name of the entry for JSON-able facts (the model's fingerprint, tokens, cache type, engine build, …)."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class StateCache:
    """The entries in one folder; `limit` bounds their bytes together."""

    def __init__(self, folder: Path, limit: int = LIMIT_BYTES) -> None:
        self.folder, self.limit = folder, limit

    def load(self, key: str) -> memoryview | None:
        """The entry's content; None where there is none, or a damaged one (which is removed)."""
        path = self._path(key)
        try:
            raw = read_bytes(path, self.limit + len(MAGIC) + 32)
        except JmedliteError:
            return None
        head = len(MAGIC) + 32
        content = memoryview(raw)[head:]
        if raw[:head] != MAGIC + _digest(key, content):
            self.remove(key)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # used now: the last to be evicted
        return content

    def save(self, key: str, *content: bytes | memoryview) -> bool:
        """Keep `content`, whole or not at all, and evict what is over the limit; False where it could not be kept."""
        if sum(map(len, content)) > self.limit:
            return False
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_private(self._path(key), MAGIC, _digest(key, *content), *content)
        except OSError:
            return False
        self._evict()
        return True

    def remove(self, key: str) -> None:
        with contextlib.suppress(OSError):
            self._path(key).unlink()

    def _path(self, key: str) -> Path:
        return self.folder / (key + SUFFIX)

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        with contextlib.suppress(OSError):
            for path in [*self.folder.glob("*" + SUFFIX), *self.folder.glob(".new-*")]:
                with contextlib.suppress(OSError):
                    stat = path.stat()
                    yield stat.st_mtime, stat.st_size, path

    def _evict(self) -> None:
        entries = sorted(self._entries())
        total = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if total <= self.limit:
                return
            with contextlib.suppress(OSError):
                path.unlink()
                total -= size


def _digest(key: str, *content: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(key.encode())
    for part in content:
        digest.update(part)
    return digest.digest()
