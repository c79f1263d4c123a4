"""The child process that answers for one model: `python -m jmedlite.benchmarks.backends.local_worker`.

Reads requests, writes events, one JSON object a line: `load` a model, `prepare` prompts (tokens, packs, the head),
`run` some of the packs. An expected fault is an `error` event; a native abort ends only this process.

A prompt is `{"body": parts, "cue": parts, "continuations": [text…]}`, a part `[text, trusted]`: only a template's own
text may name control tokens. With `chat`, the body is what the person says, and the cue begins the answer.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from jmedlite.base.errors import UsageError
from jmedlite.runtime.chat_template import Message, Part, end_of, thought_forms, warnings_of
from jmedlite.runtime.loading import LoadedModel
from jmedlite.runtime.protocol import Emit, serve
from jmedlite.runtime.shape import MAX_SIZE
from jmedlite.runtime.thoughts import forms_in, is_closed, opened_by
from jmedlite.runtime.worker import bounded_prompt, of_template

from .local_engine import ScoringEngine, Writing, shared_head, split
from .packing import PackedRequest

MARK = "question"  # stands for each question when the chat template is rendered, once
Tokens = Sequence[int]


def chat_frame(
    loaded: LoadedModel, emit: Emit, think: bool | None = None, variables: dict[str, Any] | None = None
) -> tuple[list[Part], list[Part]]:
    """What the model's chat template puts before and after a question; UsageError where it has none."""
    if loaded.vocabulary.chat_template is None:
        raise UsageError(f"{loaded.path.name}: has no chat template; leave --chat away")
    parts = bounded_prompt(
        emit, loaded.vocabulary, [Message("user", MARK)], system="", think=think, variables=variables or {}
    )
    at = next(i for i, part in enumerate(parts) if part.private)
    return parts[:at], parts[at + 1 :]


class Prompts:
    """The prompts of one `prepare` request as tokens: the head that all share, and a request for each of the rest.

    `which[i][k]` is the branch of request i that scores continuation k: equal continuations share one. Prompts that are
    longer than the context are in `too_long`, and their requests are empty.

    Scores are asked behind a thought, an empty one where the chat template has a model think. Where an answer is
    written and the model may think first, the cue ends the question: what is begun can't be thought about.
    """

    def __init__(self, loaded: LoadedModel, wanted: dict[str, Any], emit: Emit) -> None:
        self.loaded = loaded
        self.writing = self._writing(wanted, emit)
        tokenized = [self._tokens(p) for p in wanted["prompts"]]
        n_head = shared_head([context for context, _ in tokenized])
        if wanted["n_head"] is not None:
            n_head = min(n_head, wanted["n_head"])
        # texts beyond what is short would give a longrope model's short ones the wrong factors: one context has all
        limit = min(loaded.n_ctx_train, wanted["n_ctx"] or loaded.n_ctx_train, loaded.n_ctx_short or MAX_SIZE)
        self.head = tokenized[0][0][:n_head] if tokenized else []
        self.n_prompt = [len(context) for context, _ in tokenized]
        self.requests: list[PackedRequest] = []
        self.which: list[list[int]] = []
        self.too_long: set[int] = set()
        for i, (context, branches) in enumerate(tokenized):
            unique = tuple(dict.fromkeys(branches))
            request = PackedRequest(tuple(context[n_head:]), unique, self.writing.n_cells)
            if n_head + request.n_longest > limit:
                self.too_long.add(i)
                request = PackedRequest(())
            self.requests.append(request)
            self.which.append([unique.index(b) for b in branches])

    def _writing(self, wanted: dict[str, Any], emit: Emit) -> Writing:
        """Find the frame that the chat template gives, and how an answer is written in it."""
        template, max_tokens = self.loaded.vocabulary.chat_template, wanted["max_tokens"]
        think, variables = (wanted.get("think") if max_tokens else False), wanted.get("template_vars") or {}
        self.frame: tuple[list[Part], list[Part]] = [], []
        self.warnings: list[str] = []
        self._thinks = False
        forms = thought_forms(template)
        if wanted["chat"]:
            self.frame = chat_frame(self.loaded, emit, think, variables)
            self.warnings = of_template(emit, lambda: warnings_of(template, think if max_tokens else None, variables))
            end = end_of(self.frame[1])
            may = opened_by(end, forms) or (forms_in(template) and not is_closed(end, forms))
            self._thinks = bool(max_tokens and may)
        end = end_of(self._parts(wanted["prompts"][0])) if wanted["prompts"] else ""
        newline_ends, budget = wanted.get("newline_ends", True), wanted.get("think_budget")
        return Writing(max_tokens, newline_ends, forms, opened_by(end, forms), budget)

    def _parts(self, prompt: dict[str, Any]) -> list[Part]:
        before, after = self.frame
        body, cue = ([Part(text, trusted) for text, trusted in prompt[key]] for key in ("body", "cue"))
        return [*before, *body, *cue, *after] if self._thinks else [*before, *body, *after, *cue]

    def _tokens(self, prompt: dict[str, Any]) -> tuple[list[int], list[tuple[int, ...]]]:
        """(context, what each continuation adds); without continuations, the context alone."""
        parts = self._parts(prompt)
        tokenize = self.loaded.vocabulary.tokenize_parts
        context = tokenize(parts)
        if not prompt["continuations"]:
            return context, []
        return split(context, [tokenize([*parts, Part(c, False)]) for c in prompt["continuations"]])


class Worker:
    """One model, and the prompts prepared last."""

    def __init__(self, request: dict[str, Any], emit: Emit) -> None:
        self.emit, self.n_threads = emit, int(request["threads"])
        self.loaded = LoadedModel(request, emit)
        self.engine: ScoringEngine | None = None

    def prepare(self, wanted: dict[str, Any]) -> None:
        """Tokens and packs of `prompts`; the `prepared` event says where the packs begin.

        `max_tokens` is how many may be generated after each, 0 for scores; `together` false puts every prompt into a
        pack of its own; `n_head` bounds the head, where these are some of more prompts.
        """
        if self.engine:
            self.engine.close()
        self.prompts = prompts = Prompts(self.loaded, wanted, self.emit)
        self.engine = engine = ScoringEngine(
            self.loaded, prompts.head, prompts.requests, self.n_threads, together=wanted["together"]
        )
        self.emit(
            "prepared",
            starts=[p.start for p in engine.packs],
            n_head=len(prompts.head),
            n_ctx=engine.n_ctx,
            n_evaluated=sum(r.n_evaluated for r in prompts.requests),
            n_too_long=len(prompts.too_long),
            warnings=prompts.warnings,
        )

    def run(self, first: int, stop: int) -> None:
        """Packs `first` to before `stop`: a `results` event for each, then `done`."""
        assert self.engine is not None
        for pack in self.engine.packs[first:stop]:
            found = self._generated(pack) if self.prompts.writing.max_tokens else self._scored(pack)
            self.emit("results", first=pack.start, results=found)
        self.emit("done")

    def _scored(self, pack: range) -> list[dict[str, Any]]:
        assert self.engine is not None
        found: list[dict[str, Any]] = []
        for i, scored in zip(pack, self.engine.score(pack), strict=True):
            entry: dict[str, Any] = {"n_prompt": self.prompts.n_prompt[i]}
            if i not in self.prompts.too_long:
                branches = [scored.branches[b] for b in self.prompts.which[i]]
                entry |= {"scores": [sum(b) for b in branches], "n_tokens": [len(b) for b in branches]}
            found.append(entry)
        return found

    def _generated(self, pack: range) -> list[dict[str, Any]]:
        assert self.engine is not None
        found: list[dict[str, Any]] = []
        for i, generated in zip(pack, self.engine.generate(pack, self.prompts.writing), strict=True):
            entry: dict[str, Any] = {"n_prompt": self.prompts.n_prompt[i]}
            if i not in self.prompts.too_long:
                said = generated.said
                entry |= {"response": said.answer, "stop": generated.stop, "thought": said.thought}
                if said.thought is not None:
                    entry |= {"n_thought": generated.n_thought, "unclosed": said.is_open}
            found.append(entry)
        return found


def load(request: dict[str, Any], emit: Emit, _: threading.Event) -> Worker:
    """Load a model; the `loaded` event says how."""
    worker = Worker(request, emit)
    emit("loaded", load_seconds=worker.loaded.load_seconds, n_gpu_layers=worker.loaded.plan.n_gpu_layers)
    return worker


if __name__ == "__main__":
    serve(
        load,
        {
            "prepare": lambda worker, request, emit: worker.prepare(request),
            "run": lambda worker, request, emit: worker.run(*request["packs"]),
        },
    )
