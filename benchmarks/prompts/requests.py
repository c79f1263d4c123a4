"""Requests: from items to prompts, what a run asks, in which order, and what is scored of each answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jmedlite.benchmarks.tasks.items import LETTERS, Dataset, Item
from jmedlite.benchmarks.tasks.sample import orders

from .templates import Template


@dataclass(frozen=True)
class Ask:
    """One task asked in one way: the template, the examples shown first, and every question to be asked in order."""

    dataset: Dataset
    method: str
    template: Template
    shots: tuple[Item, ...]
    questions: tuple[tuple[Item, int, tuple[int, ...]], ...]  # item, permutation, order of its choices
    as_papers: bool = False  # scored as the papers' program does

    def prompts(self) -> list[dict[str, Any]]:
        """The prompts as the worker takes them."""
        return [self._prompt(item, order) for item, _, order in self.questions]

    def _prompt(self, item: Item, order: tuple[int, ...]) -> dict[str, Any]:
        parts: list[tuple[str, bool]] = [(self.template.intro, True)] if self.template.intro else []
        for shot in self.shots:
            parts += self.template.fill(shot, tuple(range(len(shot.choices))))
            parts.append((f"{self.template.lead}{self._answer(shot)}\n\n", False))
        body, cue = _cut(parts + self.template.fill(item, order))
        return {"body": body, "cue": cue, "continuations": self._continuations(item, order)}

    def _answer(self, shot: Item) -> str:
        if self.method == "letter":
            return ",".join(LETTERS[i] for i in sorted(shot.answers))
        return ",".join(shot.choices[i] for i in sorted(shot.answers))

    def _continuations(self, item: Item, order: tuple[int, ...]) -> list[str]:
        """What is scored after the prompt, one text for each place."""
        if self.method == "generate":
            return []
        texts = LETTERS[: len(order)] if self.method == "letter" else [item.choices[i] for i in order]
        return [self.template.lead + text for text in texts]

    def example(self) -> str:
        """The first prompt as one text."""
        if not self.questions:
            return ""
        item, _, order = self.questions[0]
        prompt = self._prompt(item, order)
        return as_text([*prompt["body"], *prompt["cue"]])

    def describe(self) -> dict[str, Any]:
        """What `run.json` keeps."""
        return {
            "task": self.dataset.name,
            "method": self.method,
            "template": self.template.describe(),
            "shots": [shot.id for shot in self.shots],
            "n_requests": len(self.questions),
            "example": self.example(),
        }


def make_ask(
    dataset: Dataset,
    method: str,
    template: Template,
    shots: Sequence[Item],
    permutations: int,
    seed: int,
    as_papers: bool = False,
) -> Ask:
    """All questions of one task and method: every item in every order of its choices, permutation by permutation.

    Where the prompt does not show the choices, their order is nothing to the model, and one is enough.
    """
    shown = template.names() & {"options", "choices"}
    n = permutations if shown else 1
    found = [orders(len(item.choices), n, seed, item.id) for item in dataset.items]
    questions = [(item, p, mine[p]) for p in range(n) for item, mine in zip(dataset.items, found, strict=True)]
    return Ask(dataset, method, template, tuple(shots), tuple(questions), as_papers)


def as_text(parts: Sequence[tuple[str, bool]]) -> str:
    """The parts of a prompt's body or cue as one text."""
    return "".join(text for text, _ in parts)


def _cut(parts: Sequence[tuple[str, bool]]) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """(body, cue): the last line of a template ("Answer:") begins the answer, where a chat template stands between."""
    text, trusted = parts[-1]
    before, newline, after = text.rpartition("\n")
    if not trusted or not newline:
        return list(parts), []
    cut = [*parts[:-1], (before + newline, True)], [(after, True)]
    return cut[0], [part for part in cut[1] if part[0]]
