"""Whether a model file is still the one that its manifest describes; looked at once per change."""

from __future__ import annotations

import json
import threading
from pathlib import Path

from jmedlite.base.errors import DataError
from jmedlite.base.outputs import sha256_file

from .statecache import StateCache, key_of

MAX_MANIFEST = 1 << 26


class Integrity:
    """Compares a file with its manifest in a thread of its own, so that the model can be loaded meanwhile.

    `mark` is the file's fingerprint: what was found right once stays right until it changes.
    """

    def __init__(self, path: Path, mark: str, cache: StateCache | None) -> None:
        self.path, self.cache = path, cache
        self.expected = expected_sha256(path)
        self._found: str | None = None
        self._thread: threading.Thread | None = None
        if self.expected is None:
            return
        self._key = key_of({"checked": mark, "sha256": self.expected})
        if cache is None or cache.load(self._key) is None:
            self._thread = threading.Thread(target=self._read, daemon=True)
            self._thread.start()

    def _read(self) -> None:
        try:
            self._found = sha256_file(self.path)
        except OSError:
            self._found = "unreadable"

    def check(self) -> None:
        """Wait for the comparison; raises DataError where the file differs."""
        if self._thread is None:
            return
        self._thread.join()
        if self._found != self.expected:
            raise DataError(
                f"{self.path.name}: is not what its manifest says (SHA-256 {self._found}, expected {self.expected}); "
                "make or copy it again"
            )
        self._thread = None
        if self.cache:
            self.cache.save(self._key, b"")


def expected_sha256(path: Path) -> str | None:
    """The SHA-256 in the manifest beside a model file; None where there is none, or one of another file."""
    try:
        manifest = path.with_suffix(".json")
        if manifest.stat().st_size > MAX_MANIFEST:
            return None
        facts = json.loads(manifest.read_text(encoding="utf-8"))
        return str(facts["sha256"]) if facts["file"] == path.name and len(facts["sha256"]) == 64 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
