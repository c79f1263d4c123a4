"""Progress: how far long work has come, told to a function of the caller's; sentences go to another, `Notice`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

Stage = Literal[
    "mixing",  # bytes of the base, of which some rows are read
    "quantizing",  # bytes of the base
    "verifying",  # bytes of the base
    "calibrating",  # bytes of the text
    "moments",  # chunks of the text, once for every pass
    "weights",  # of a model, measured one by one; `what` is the weight
    "hashing",  # bytes of a GGUF, which `what` names
    "copying",  # bytes of all files; `what` is the file
    "questions",  # those of all models; `what` is the model
    "measuring",  # rounds of all models; `what` is the model
    "text",  # chunks; `what` is the model
]
# the others count things
IN_BYTES: tuple[Stage, ...] = ("mixing", "quantizing", "verifying", "calibrating", "hashing", "copying")
Notice = Callable[[str], None]  # hears a sentence for the person


class Progress(Protocol):
    """Hears how much of a stage is `done` of `total`, and of `what` ("" where there is nothing to name)."""

    def __call__(self, stage: Stage, done: int, total: int, what: str, /) -> None: ...


def silent(*_: object) -> None:
    """The Progress, and the Notice, of whoever wants to hear nothing."""
