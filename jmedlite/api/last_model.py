"""Last model: what jmedlite remembers between runs, which model this user quantized last."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def state_folder() -> Path:
    """Where this user's state is kept: $JMEDLITE_STATE, else the system's place for it."""
    if named := os.environ.get("JMEDLITE_STATE"):
        return Path(named)
    import typer

    return Path(typer.get_app_dir("jmedlite"))


def remember_model(path: Path) -> None:
    """Keep the path as the default of `ask`; a state folder that can't be written is no fault."""
    with contextlib.suppress(OSError):
        folder = state_folder()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "last-model").write_text(str(path.resolve()) + "\n", encoding="utf-8")


def last_model() -> Path | None:
    """The model quantized last, if it is still there."""
    try:
        path = Path((state_folder() / "last-model").read_text(encoding="utf-8").strip())
        return path if path.is_file() else None
    except (OSError, UnicodeDecodeError):
        return None
