"""Whoever answers for a model: what a run needs of it, and the one that runs a GGUF file in a child process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from jmedlite.runtime.load_options import LoadOptions
from jmedlite.runtime.process import Child

from .packing import PACK, STATES, n_outputs

ADVICE = "use a narrower level, --kv-type q8_0, or fewer --shots"


@dataclass(frozen=True)
class Wanted:
    """What a run asks at a stretch. `prompts` as in `worker`; `max_tokens` 0 means scores, else an answer so long.

    `together` false evaluates every prompt alone; `n_head` bounds the tokens taken as the head that all share.
    Of answers that are written, `think` and `think_budget` say whether and how long a model may think first; scores are
    asked behind a thought in any case. `template_vars` are variables of the chat template.
    """

    prompts: tuple[dict[str, Any], ...]
    chat: bool = False
    n_ctx: int | None = None
    max_tokens: int = 0
    newline_ends: bool = True
    together: bool = True
    n_head: int | None = None
    think: bool | None = None
    think_budget: int | None = None
    template_vars: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepared:
    """`starts` are the first prompts of the packs: those that are evaluated together, and can't be begun in the middle.

    `n_evaluated` counts the tokens of all packs, each stem and each choice once, without the head's `n_head`.
    `warnings` say what was asked of the model's chat template in vain.
    """

    starts: tuple[int, ...]
    n_head: int = 0
    n_ctx: int | None = None
    n_evaluated: int = 0
    warnings: tuple[str, ...] = ()


# of one prompt: n_prompt, and scores and n_tokens by place, or response and stop (with the thought before the response,
# its n_thought tokens, and unclosed where it never ended); neither where it was too long
RawAnswer = dict[str, Any]


class Answerer(Protocol):
    """One model that answers; a context manager, which frees what it holds."""

    def prepare(self, wanted: Wanted) -> Prepared:
        """Get ready for these prompts; forgets those before."""

    def run(self, first: int, stop: int) -> Iterator[tuple[int, list[RawAnswer]]]:
        """(number of its first prompt, answers) of packs `first` to before `stop`, in order."""

    def __enter__(self) -> Answerer: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True)
class Loading:
    """How a GGUF is loaded: part of a run's identity, since it changes the last digits."""

    threads: int
    gpu_layers: str | int = LoadOptions.gpu_layers
    kv_type: str = LoadOptions.kv_type
    flash_attn: str = LoadOptions.flash_attn
    force: bool = LoadOptions.force
    pack: int = PACK  # tokens that are evaluated together

    def request(self, path: Path) -> dict[str, Any]:
        """The worker's `load` request."""
        batch = {"n_batch": self.pack, "n_outputs": n_outputs(self.pack), "n_states": STATES + 1}
        return {"op": "load", "path": str(path.resolve()), "checked": True, **vars(self), **batch}


def start_worker() -> Child:
    """A process of this machine that can load a model."""
    return Child("jmedlite.benchmarks.backends.local_worker", ADVICE)


class LocalModel:
    """A GGUF file in a child process of this machine, `child` where one is there already.

    `told` hears the child's events that are no results.
    """

    def __init__(
        self,
        path: Path,
        loading: Loading,
        told: Callable[[dict[str, Any]], None] | None = None,
        child: Child | None = None,
    ) -> None:
        self.child = child or start_worker()
        try:
            for event in self.child.events(loading.request(path), "loaded"):
                if told:
                    told(event)
        except BaseException:
            self.child.close()
            raise

    def prepare(self, wanted: Wanted) -> Prepared:
        event = self.child.ask({"op": "prepare", **vars(wanted)}, "prepared")
        counts = event["n_head"], event["n_ctx"], event["n_evaluated"]
        return Prepared(tuple(event["starts"]), *counts, tuple(event["warnings"]))

    def run(self, first: int, stop: int) -> Iterator[tuple[int, list[RawAnswer]]]:
        for event in self.child.events({"op": "run", "packs": [first, stop]}, "done"):
            if event["event"] == "results":
                yield event["first"], event["results"]

    def __enter__(self) -> LocalModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.child.close()
