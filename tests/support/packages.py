"""Where the code under test lies, for tests that read it."""

from __future__ import annotations

from pathlib import Path

import jmedlite

PACKAGE = Path(jmedlite.__file__).parent
FOLDERS = (PACKAGE, PACKAGE.parent / "convert", PACKAGE.parent / "benchmarks")
