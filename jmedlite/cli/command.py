"""Commands: each option's environment variables, named as its flag is, and a word about those that nothing reads."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import typer
from typer.core import TyperOption

from . import console
from .typer_words import SpeakingCommand

PREFIX = "JMEDLITE_"
# serve every command that has the option, below the command's own: JMEDLITE_ASK_MODEL goes before JMEDLITE_MODEL
SHARED = ("MODEL", "LANG", "GPU_LAYERS", "KV_TYPE", "FLASH_ATTN", "THREADS")
OTHERS = ("STATE", "CACHE", "API_KEY", "DEBUG")  # read elsewhere


class Command(SpeakingCommand):
    """A command whose option --some-thing is also JMEDLITE_COMMAND_SOME_THING."""

    def __init__(self, name: str | None, **settings: Any) -> None:
        super().__init__(name, **settings)
        for option in self.params:
            if isinstance(option, TyperOption):
                flag = max(option.opts, key=len).lstrip("-").replace("-", "_").upper()
                own = f"{PREFIX}{str(name).upper()}_{flag}"
                # bench's --lang chooses questions, not the language of what is said
                shared = [PREFIX + flag] if flag in SHARED and not (name == "bench" and flag == "LANG") else []
                option.envvar, option.show_envvar = [own, *shared], False


def warn_of_variables(environment: Mapping[str, str], app: typer.Typer) -> None:
    """Name variables that were meant for jmedlite, by their names, and that nothing reads."""
    if not any(name.startswith(PREFIX) for name in environment):
        return
    from typer.main import get_group

    commands = get_group(app).commands
    options = (o for command in commands.values() for o in command.params if isinstance(o, TyperOption))
    known = sorted({*(name for o in options for name in o.envvar or ()), *(PREFIX + name for name in OTHERS)})
    beginnings = tuple(f"{PREFIX}{name.upper()}_" for name in commands)
    for name in sorted(environment):
        if not name.startswith(PREFIX) or name in known or name.endswith("_COMPLETE"):
            continue
        near = difflib.get_close_matches(name, known, 1, 0.85)
        if near or name.startswith(beginnings):
            meant = near or difflib.get_close_matches(name, known, 1)
            console.warn(f"{name}: no setting has this name" + (f"; is {meant[0]} meant?" if meant else ""))
