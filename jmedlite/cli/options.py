"""Options on the command line: from the dataclasses that hold them, and those that several commands share."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from jmedlite.base.options import Option, options_of


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """A command for typer of one that takes dataclasses: an option for every field, where the dataclass stands.

    Of `Annotated[Dataclass, "name", …]` only the fields of these names. What typer has read goes back into the
    dataclass, which checks it.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Group] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        kind, *names = get_args(hints[name]) or (hints[name],)
        if is_dataclass(kind):
            groups[name] = Group(kind, names)
            parameters += groups[name].parameters()
        else:
            parameters.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def run(**values: Any) -> None:
        made = {name: group.take(values) for name, group in groups.items()}
        command(**made, **values)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


class Group:
    """The options of a dataclass, or those of them that are named."""

    def __init__(self, kind: Any, names: list[str]) -> None:
        self.kind, self.hints = kind, get_type_hints(kind)
        self.options = {name: about for name, about in options_of(kind).items() if name in names or not names}

    def parameters(self) -> list[inspect.Parameter]:
        """What typer reads of a command's signature."""
        return [self._parameter(self.hints[field], about) for field, about in self.options.items()]

    def _parameter(self, hint: Any, about: Option) -> inspect.Parameter:
        first = (get_args(hint) or (hint,))[0]  # of `int | None` the int
        one = about.typed or (str if about.choices else first)
        typed: Any = list[one] if about.many else one  # type: ignore[valid-type]
        default = None if about.many else about.default
        info = typer.Option(*about.flags, help=about.help, metavar=about.metavar)
        return inspect.Parameter(
            about.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=default,
            annotation=Annotated[typed if default is not None else typed | None, info],
        )

    def take(self, values: dict[str, Any]) -> Any:
        """The dataclass of what was typed, which is taken out of `values`."""
        typed = {field: (about, values.pop(about.name)) for field, about in self.options.items()}
        given = {
            field: about.read(value) if about.read else tuple(value) if about.many else value
            for field, (about, value) in typed.items()
            if value is not None and value != []
        }
        return self.kind(**given)


JsonFlag = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]

# what answers: ask, chat
ModelFile = Annotated[str | None, typer.Option("--model", "-m", help="GGUF file, or a name of `jmedlite models`.")]
System = Annotated[str | None, typer.Option(help='System prompt; "" for none.')]
Language = Annotated[str | None, typer.Option("--lang", help="ja or en; default: the question's.")]
HideThinking = Annotated[bool, typer.Option("--hide-thinking", help="Do not show what a model thinks first.")]
Timings = Annotated[bool, typer.Option("--timings", help="Show how long each step took.")]

# what reads run folders: report, recommend
Folders = Annotated[list[Path], typer.Argument(metavar="RUN_DIR", help="Folders that `jmedlite bench` wrote.")]
ReportLanguage = Annotated[str, typer.Option("--lang", help="en or ja.")]

# what reads a calibration text: imatrix, moments, sensitivity
CalibrationText = Annotated[
    list[Path] | None, typer.Option(help="Calibration text; repeatable. Default: jmedlite's own medical text.")
]
OwnTextLanguage = Annotated[str, typer.Option("--lang", help="Of jmedlite's own text: ja, en or both.")]
ExcludeTask = Annotated[
    list[Path] | None, typer.Option(metavar="JSONL", help="Refuse text with items of this task; repeatable.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")]
