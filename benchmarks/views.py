"""Primary analysis: the one way of counting an answer as right that a run declares beforehand; the others test it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from jmedlite.base.errors import UsageError

from .records import AnswerRecord


@dataclass(frozen=True)
class View:
    """One way of counting an answer as right. `method` is how it was asked, `kind` which of its scores counts.

    `name` is what `--primary` and run.json call it.
    """

    key: str
    method: str
    kind: str
    name: str

    def correct(self, answer: AnswerRecord) -> bool | None:
        """Whether the answer counts as right here; None where this view has nothing to say of it."""
        if self.kind == "per_token":
            return answer.per_token.correct if answer.per_token else None
        return answer.exact if self.kind == "exact" else answer.correct

    def picks(self, answer: AnswerRecord) -> tuple[int, ...]:
        """The choices taken, best first."""
        if self.kind == "per_token" and answer.per_token:
            return answer.per_token.picks
        return answer.picks or ()

    def scores(self, answer: AnswerRecord) -> tuple[float, ...] | None:
        """What the choices are compared by, in nats; similarities for `generate`."""
        if self.kind == "per_token" and answer.scores and answer.n_tokens:
            return tuple(score / n for score, n in zip(answer.scores, answer.n_tokens, strict=True))
        return answer.scores

    def margin(self, answer: AnswerRecord) -> float | None:
        """By how many nats the decision fell (similarity, for `generate`); None where that is not known."""
        if self.kind == "per_token":
            return answer.per_token.margin if answer.per_token else None
        return None if self.kind == "exact" else answer.margin


# Of each method the first is primary unless said. `text`: a sum has more terms the longer a choice is, and so takes
# short ones whatever the question. `generate`: the papers' accuracy; an exact match tells wording as well as knowledge.
VIEWS = (
    View("letter", "letter", "picks", "letter"),
    View("text_per_token", "text", "per_token", "text:per-token"),
    View("text", "text", "picks", "text:sum"),
    View("generate", "generate", "picks", "generate:gestalt"),
    View("generate_exact", "generate", "exact", "generate:exact"),
)


def primary_view(declared: str | None, methods: Collection[str]) -> View:
    """The view that `--primary METHOD[:SCORE]` names, or the default of the methods that are asked.

    Raises UsageError for another name, or a method that is not asked.
    """
    asked = [view for view in VIEWS if view.method in methods]
    if declared is None:
        return asked[0] if asked else VIEWS[0]
    found = [view for view in VIEWS if declared in (view.name, view.method)]
    if not found:
        raise UsageError(f"--primary {declared}: expected {', '.join(v.name for v in VIEWS)}, or a method alone")
    if found[0] not in asked:
        raise UsageError(f"--primary {declared}: is not asked; add --method {found[0].method}")
    return found[0]
