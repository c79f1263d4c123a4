"""Options: bounds, help and default of each stand once, on dataclasses that command line and Python API both take."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import UsageError
from .inputs import check_range

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
D = TypeVar("D", bound="DataclassInstance")


@dataclass(frozen=True)
class Option:
    """What is known of an option besides its type.

    A value is one of `choices` or, with `low` and `high`, a number within them. On the command line and in the
    environment it is called `name` (default: the field's), and given by `flags` (default: --name); what is typed there
    is of type `typed` (default: the field's), and `read` makes the option's value of it.
    """

    default: Any
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    name: str = ""
    flags: tuple[str, ...] = ()
    metavar: str | None = None
    typed: type | None = None
    read: Callable[[Any], Any] | None = None

    @property
    def many(self) -> bool:
        """Whether it may be given several times."""
        return isinstance(self.default, tuple)

    def check(self, value: object) -> None:
        """Raises UsageError where the value is none of those that the option takes."""
        if value is None and self.default is None:
            return
        flag, choices = self.flags[0], self.choices
        if self.low is None or self.high is None:
            if choices and value not in choices:
                raise UsageError(f"{flag} {value}: expected {', '.join(choices[:-1])} or {choices[-1]}")
        elif str(value) not in choices:
            others = f"{', '.join(choices)} or " if choices else ""
            if choices and not str(value).lstrip("-").isdecimal():
                raise UsageError(f"{flag} {value}: expected {others}a whole number")
            check_range(flag, str(value), self.low, self.high, others)


def option(default: T, **facts: Any) -> T:
    """A dataclass's field that is an option; `facts` are those of `Option`."""
    made: T = field(default=default, metadata={"option": Option(default, **facts)})
    return made


def same_as(kind: type[DataclassInstance], name: str) -> Any:
    """The option of that name of another dataclass, as a field of this one."""
    about = options_of(kind)[name]
    return field(default=about.default, metadata={"option": about})


def options_of(kind: type[DataclassInstance]) -> dict[str, Option]:
    """The options of a dataclass by field, with the names that the command line has for them."""
    found = {}
    for f in fields(kind):
        about: Option = f.metadata["option"]
        name = about.name or f.name
        found[f.name] = replace(about, name=name, flags=about.flags or ("--" + name.replace("_", "-"),))
    return found


def check(options: DataclassInstance) -> None:
    """Check the value of every option, and of those that have several, each; raises UsageError."""
    for name, about in options_of(type(options)).items():
        value = getattr(options, name)
        for one in value if about.many else (value,):
            about.check(one)


def with_options(kind: type[D], options: Mapping[str, Any]) -> D:
    """A dataclass of options; raises UsageError for one that it does not have."""
    for name in options:
        if name not in kind.__dataclass_fields__:
            raise UsageError(f"unknown option (got an unexpected keyword argument {name!r})")
    return kind(**options)


def parse_memory(text: str) -> int:
    """`2GB`, `512MiB` or plain bytes as a number of bytes; raises UsageError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgt]?)(i?)b?)?\s*", text, re.IGNORECASE)
    if not found:
        raise UsageError(f"{text}: is not an amount of memory; expected something like 2GB or 512MB")
    base = 1024 if found[3] else 1000
    return int(float(found[1]) * base ** " kmgt".index((found[2] or " ").lower()))
