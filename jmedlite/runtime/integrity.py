"""Integrity: whether a model's files are still those that its manifest describes; looked at once per change."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

from jmedlite.base.errors import DataError, JmedliteError
from jmedlite.base.gguf import split_stem
from jmedlite.base.inputs import MAX_INDEX, read_bytes

from .state_cache import StateCache, key_of


class Integrity:
    """Compares a model with its manifest in a thread of its own, so that it can be loaded meanwhile.

    `mark` is the files' fingerprint: what was found right once stays right until they change. A file beside the model
    that is no manifest says nothing. With `known`, someone else has compared them already.
    """

    def __init__(self, path: Path, mark: str, cache: StateCache | None, *, known: bool = False) -> None:
        self.path, self.cache = path, cache
        self._broken: list[str] = []
        self._fault: JmedliteError | None = None
        self._thread: threading.Thread | None = None
        if known:
            return
        try:
            manifest = read_bytes(path.with_name(split_stem(path.name) + ".json"), MAX_INDEX)
        except JmedliteError:
            return
        self._key = key_of({"checked": mark, "manifest": hashlib.sha256(manifest).hexdigest()})
        if cache is None or cache.load(self._key) is None:
            self._thread = threading.Thread(target=self._compare, daemon=True)
            self._thread.start()

    def _compare(self) -> None:
        from jmedlite.base.manifest import NoManifest, check_hashes, read_manifest

        try:
            manifest = read_manifest(self.path)
            self._broken = check_hashes(self.path, manifest) if manifest else []
        except (NoManifest, OSError):
            self._broken = []
        except JmedliteError as e:
            self._fault = e

    def check(self) -> None:
        """Wait for the comparison; raises DataError where a file differs, or is not the one that is described."""
        if self._thread is None:
            return
        self._thread.join()
        if self._fault:
            raise self._fault
        if self._broken:
            raise DataError(
                f"{', '.join(self._broken)}: is not what its manifest says (another SHA-256), so it is damaged or "
                "another file; make or copy it again"
            )
        self._thread = None
        if self.cache:
            self.cache.save(self._key)
