"""Typer's own words in the person's language: help and usage as they are laid out, faults of typing as they are shown.

In English nothing here does anything: Typer speaks for itself.
"""

from __future__ import annotations

import re
import sys
from typing import Any

from typer import Abort
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

from jmedlite.base.language import is_japanese, localized

from . import console

# what Typer says of commands like ours
TYPER_WORDS = (
    "Usage: ", "Arguments", "Options", "Commands", "Error: {said}", "Aborted!", "Show this message and exit.",
    "default: {default}", "required",
    "Install completion for the current shell.",
    "Show completion for the current shell, to copy it or customize the installation.",
    "No such option: {name}", "No such option: {name} (Possible options: {names})", "No such command {name}.",
    "No such command {name}. Did you mean {names}?", "env var: {var}",
    "Missing argument {name}.", "Missing option {name}.", "Missing command.",
    "Invalid value for {name}: {why}", "Invalid value: {why}", "Option {name} requires an argument.",
    "Option {name} does not take a value.", "Got unexpected extra argument ({names})",
    "Got unexpected extra arguments ({names})", "{value} is not a valid integer.", "{value} is not a valid float.",
    "Input should be a valid integer, unable to parse string as an integer",
    "Input should be a valid number, unable to parse string as a number",
    "Input should be a valid boolean, unable to interpret input",
)  # fmt: skip
_FACTS = re.compile(r"  \[(.*)\]$", re.DOTALL)


def _formatter(base: Any) -> Any:
    """Typer's formatter with our words, by the cells that they take: Japanese has no spaces, and wide characters."""

    class Formatter(base):  # type: ignore[misc]
        def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
            super().write_usage(prog, args, localized(prefix or "Usage: "))

        def write_heading(self, heading: str) -> None:
            super().write_heading(localized(heading))

        def write_text(self, text: str) -> None:
            for line in console.wrapped(_said(text), self.width - self.current_indent):
                self.write(f"{'':>{self.current_indent}}{line}\n")

        def write_dl(self, rows: Any, col_max: int = 30, col_spacing: int = 2) -> None:
            begin = min(max(len(first) for first, _ in rows), col_max) + col_spacing
            for first, second in rows:
                self.write(f"{'':>{self.current_indent}}{first:<{begin}}")
                if len(first) > begin - col_spacing and second:
                    self.write(f"\n{'':>{begin + self.current_indent}}")
                lines = console.wrapped(_said(second), max(10, self.width - begin - self.current_indent))
                self.write(f"\n{'':>{begin + self.current_indent}}".join(lines) + "\n")

    return Formatter


def _said(text: str) -> str:
    """A help text, and what Typer adds to it in brackets."""
    facts = _FACTS.search(text)
    added = f" [{'; '.join(map(localized, facts[1].split('; ')))}]" if facts else ""
    return localized(" ".join(_FACTS.sub("", text).split())) + added


class _Laid:
    """A command, or a group of them, that lays out its help and usage by that formatter."""

    def get_help(self, ctx: Any) -> str:
        return str(self._formatted(ctx).get_help(ctx))

    def get_usage(self, ctx: Any) -> str:
        return str(self._formatted(ctx).get_usage(ctx))

    def _formatted(self, ctx: Any) -> Any:
        if is_japanese():
            ctx.formatter_class = _formatter(type(ctx).formatter_class)
        return super()


class SpeakingCommand(_Laid, TyperCommand):
    """A command whose help is in the person's language."""

    def get_short_help_str(self, limit: int = 45) -> str:
        """The first sentence, whole where it is Japanese: the formatter breaks its line."""
        if not is_japanese():
            return super().get_short_help_str(limit)
        return localized(" ".join((self.help or "").split())).partition("。")[0]


class SpeakingGroup(_Laid, TyperGroup):
    """The commands together; a fault of typing is said in the person's language, too."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """As Typer's, whose `show` would say it in English."""
        if not is_japanese() or not extra.get("standalone_mode", True):
            return super().main(*args, **extra)
        try:
            status = super().main(*args, **{**extra, "standalone_mode": False})
        except Abort:
            console.note("Aborted!")
            sys.exit(1)
        except TyperException as e:
            _show(e)
            sys.exit(getattr(e, "exit_code", 1))
        sys.exit(status if isinstance(status, int) else 0)


def _show(e: Any) -> None:
    if "\n" in (said := e.format_message()):  # a help text, where no command was given
        console.note(said)
        return
    if ctx := getattr(e, "ctx", None):
        console.note(ctx.get_usage())
        console.note(f"Try '{ctx.command_path} {ctx.help_option_names[0]}' for help.\n")
    console.note(f"Error: {said}")
