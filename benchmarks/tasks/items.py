"""What is asked: the items of a task, and those that are left out, with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SIDES = ("lang", "task", "group", "stem")  # by which every report tells items apart: `groups` may not name them again
NOT_ASKED = "not asked"  # a result's status: the run had seen enough (--stop-when-decided)


@dataclass(frozen=True)
class Item:
    """One question. `answers` and `contraindicated` are indices into `choices`; `human_accuracy` is in percent.

    `group` is its category; `groups` names the others that it belongs to, each by the side that it is one of:
    `{"facts": "adapter", "section": "required"}`. No level may lose more than the margin in any of them.
    """

    id: str
    question: str
    choices: tuple[str, ...]
    answers: tuple[int, ...]
    lang: str
    group: str | None = None
    contraindicated: tuple[int, ...] = ()
    human_accuracy: float | None = None
    context: str = ""  # a text that the question is about, such as PubMedQA's abstract
    groups: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Left:
    """An item of the source that is not asked. `item` is None where the row could not be read as one."""

    id: str
    reason: str
    item: Item | None = None


@dataclass(frozen=True)
class Dataset:
    """All items of one task in one language, in the order of its source.

    `name` is the task's name with its language ("igakuqa-ja"); `files` are `{"name", "sha256"}`. Every row of the
    source is in `items` or in `left`. `examples` come from a split that is never scored, for few-shot prompts;
    where a task has none, they are drawn from `items`.
    """

    name: str
    task: str
    lang: str
    title: str
    items: tuple[Item, ...]
    left: tuple[Left, ...] = ()
    examples: tuple[Item, ...] = ()
    source: str = ""
    revision: str | None = None
    license: str | None = None
    files: tuple[dict[str, Any], ...] = field(default=())
