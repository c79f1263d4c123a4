"""`use`: choose the model that `ask`, `chat` and the others take where none is named."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jmedlite.base.errors import UsageError

from . import console
from .open_model import find_gguf


def use(
    name: Annotated[
        str | None, typer.Argument(help="A name of `jmedlite models`, a level, or a GGUF file; default: show it.")
    ] = None,
    reset: Annotated[bool, typer.Option("--reset", help="Leave the choice to jmedlite again.")] = False,
) -> None:
    """Choose the model that ask and chat take where none is named."""
    from jmedlite.api.made_models import choose_model

    if name and reset:
        raise UsageError(f"{name} and --reset: give one")
    if reset:
        choose_model(None)
        return
    path: Path = find_gguf(name)
    if name:
        choose_model(path)
    console.out(str(path))
