"""Write docs/cli.md, every command with its arguments and options, from the commands' own annotations.

python tools/make_cli_docs.py

tests/test_docs.py holds the page against the commands, so that it can't go stale unseen.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from typer.models import ArgumentInfo

from jmedlite.cli.app import COMMANDS

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"
HEAD = """\
# Commands

Made from the commands by `tools/make_cli_docs.py`. `-h` shows the same. Every option can be set by an environment
variable too: `JMEDLITE_ASK_MAX_TOKENS` is `--max-tokens` of `ask`. `JMEDLITE_MODEL`, `JMEDLITE_LANG`,
`JMEDLITE_THREADS`, `JMEDLITE_GPU_LAYERS`, `JMEDLITE_KV_TYPE` and `JMEDLITE_FLASH_ATTN` serve every command that has the
option; a command's own goes before them.
"""
KINDS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


def page() -> str:
    """The whole page as Markdown."""
    return HEAD + "".join(map(section, COMMANDS))


def section(command: Callable[..., Any]) -> str:
    hints = get_type_hints(command, include_extras=True)
    rows = [row(name, hints[name], p.default) for name, p in inspect.signature(command).parameters.items()]
    about = " ".join((command.__doc__ or "").split())
    head = [f"\n## jmedlite {command.__name__}\n", about, "", "| | | default |", "| --- | --- | --- |"]
    return "\n".join([*head, *rows, ""])


def row(name: str, hint: Any, default: Any) -> str:
    """One line of a command's table."""
    kind, info = get_args(hint)[:2]
    if get_origin(kind) is types.UnionType:
        kind = get_args(kind)[0]
    many = get_origin(kind) is list
    if many:
        kind = get_args(kind)[0]
    if isinstance(info, ArgumentInfo):
        names = info.metavar or name.upper()
    else:
        flag = "--" + name.replace("_", "-")
        # with Annotated, typer keeps an option's first name where its default would stand
        named = [d for d in (info.default, *(info.param_decls or ())) if isinstance(d, str) and d.startswith("-")]
        names = ", ".join(named or [f"{flag}/--no-{flag[2:]}" if kind is bool else flag])
        names += "" if kind is bool else f" {info.metavar or KINDS[kind]}"
    required = default is inspect.Parameter.empty
    shown = "required" if required else "" if default is None or default is False else f"`{default}`"
    if default == "":
        shown = ""
    return f"| `{names}` | {' '.join((info.help or '').split())} | {shown} |".replace("  |", " |")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8", newline="\n")
