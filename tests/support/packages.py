"""The code under test, for tests that read it."""

from __future__ import annotations

from pathlib import Path

import jmedlite

_PACKAGE = Path(jmedlite.__file__).parent
_FOLDERS = (_PACKAGE, _PACKAGE.parent / "convert", _PACKAGE.parent / "benchmarks")


def module_texts() -> dict[str, str]:
    """The text of every module, by its path below jmedlite/ ("base/inputs.py") or the project ("convert/rows.py")."""
    return {
        path.relative_to(folder if folder == _PACKAGE else folder.parent).as_posix(): path.read_text(encoding="utf-8")
        for folder in _FOLDERS
        for path in sorted(folder.rglob("*.py"))
    }
