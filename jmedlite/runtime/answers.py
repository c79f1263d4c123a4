"""Answers: what a model gives back, text and scores, and how they are told to people."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Answer:
    """A finished answer.

    `stop` is "eos" (the model ended), "stop" (it came to a stop text, or began to speak for the person), "length"
    (max_tokens), "context" (it is full) or "stopped" (by the reader).
    `n_cached` tokens of the prompt's `n_prompt` were not evaluated anew.
    """

    text: str
    stop: str
    n_prompt: int
    n_generated: int
    n_ctx: int
    n_cached: int = 0
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def generation_tps(self) -> float:
        """Tokens generated per second, after the prompt."""
        return self.n_generated / max(1e-9, self.timings.get("generation_seconds", 0.0))


@dataclass(frozen=True)
class LogLikelihood:
    """ln p of a continuation: of each of its tokens, whether they all were the most likely ones, and the sum."""

    tokens: tuple[float, ...]
    greedy: bool

    @property
    def total(self) -> float:
        return sum(self.tokens)


def describe_cut(answer: Answer) -> str | None:
    """Why the answer is not whole, where it is not."""
    return {
        "stopped": "(stopped)",
        "length": f"(the answer was cut at {answer.n_generated} tokens; raise --max-tokens for more)",
        "context": f"(the answer was cut at {answer.n_generated} tokens: the context of {answer.n_ctx:,} is full)",
    }.get(answer.stop)


def describe_timings(answer: Answer) -> str:
    """How long each step took, in one line."""
    t = answer.timings
    return (
        f"load {t['load_seconds']:.2f} s, prompt {answer.n_prompt} tokens ({answer.n_cached} from the cache) in "
        f"{t['prompt_seconds']:.2f} s, first token after {t['first_token_seconds']:.2f} s, "
        f"{answer.n_generated} tokens at {answer.generation_tps:.1f}/s"
    )
