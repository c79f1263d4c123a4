"""Answers: what a model gives back, text and scores, and how they are told to people."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Answer:
    """A finished answer.

    `stop` is "eos" (the model ended), "stop" (it came to a stop text, or began to speak for the person), "length"
    (max_tokens), "context" (it is full) or "stopped" (by the reader).
    `n_cached` tokens of the prompt's `n_prompt` were not evaluated anew. `thought` is what the model wrote to itself
    before (None where it did not), in `n_thought` of the `n_generated` tokens; `is_thought_open` where it never came to
    an answer, `is_thought_cut` where `think_budget` ended the thought. `warnings` say what was asked of the chat
    template in vain.
    """

    text: str
    stop: str
    n_prompt: int
    n_generated: int
    n_ctx: int
    n_cached: int = 0
    timings: dict[str, float] = field(default_factory=dict)
    thought: str | None = None
    n_thought: int = 0
    is_thought_open: bool = False
    is_thought_cut: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def generation_tps(self) -> float:
        """Tokens generated per second, after the prompt."""
        return self.n_generated / max(1e-9, self.timings.get("generation_seconds", 0.0))


@dataclass(frozen=True)
class ThoughtPiece:
    """A piece of a thought, as it comes before the answer."""

    text: str


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
    if answer.is_thought_open and answer.stop != "stopped":
        n = answer.n_thought
        return {
            "length": f"(no answer: the thought took all {n} tokens; raise --max-tokens, or give --think-budget N or "
            "--no-think)",
            "context": f"(no answer: the thought took {n} tokens, and the context of {answer.n_ctx:,} is full; give "
            "--think-budget N or --no-think)",
        }.get(answer.stop, f"(no answer: the model ended within its thought of {n} tokens; --no-think may help)")
    return {
        "stopped": "(stopped)",
        "length": f"(the answer was cut at {answer.n_generated} tokens; raise --max-tokens for more)",
        "context": f"(the answer was cut at {answer.n_generated} tokens: the context of {answer.n_ctx:,} is full)",
    }.get(answer.stop)


def describe_timings(answer: Answer) -> str:
    """How long each step took, in one line."""
    t = answer.timings
    thought = f" ({answer.n_thought} of them a thought)" if answer.n_thought else ""
    return (
        f"load {t['load_seconds']:.2f} s, prompt {answer.n_prompt} tokens ({answer.n_cached} from the cache) in "
        f"{t['prompt_seconds']:.2f} s, first token after {t['first_token_seconds']:.2f} s, "
        f"{answer.n_generated} tokens{thought} at {answer.generation_tps:.1f}/s"
    )
