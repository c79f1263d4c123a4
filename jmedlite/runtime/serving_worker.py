"""Serving, the child's side: many questions at once on one loaded model, each in a lane of its own (lanes.py).

Runs as `python -m jmedlite.runtime.serving_worker`. Beside questions (`ask`) it takes raw texts (`complete`), as
OpenAI's completions do. Nothing of either is written anywhere but into the model's context.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from jmedlite.base.errors import DataError, UsageError

from .chat_template import Part
from .lanes import Lane, Lanes
from .loading import LoadedModel
from .protocol import Emit, Request, serve_together
from .sampling import Sampling
from .schema_mask import SchemaMasks, check_schema
from .shape import N_OUTPUTS
from .stops import StopTexts
from .thoughts import AnswerReader
from .token_scores import token_score
from .worker import AnswerEngine, context_settings, facts_of

CELLS_EACH = 4096  # of the context, for each answer, unless --ctx says otherwise: all of them are taken at the start


class Serving:
    """A loaded model and its lanes; `lanes` of the load request is how many answers there may be at once."""

    def __init__(self, request: Request, emit: Emit) -> None:
        if request.get("json_schema") is not None:
            check_schema(request["json_schema"], emit)
        self.loaded = loaded = LoadedModel(request, emit)
        settings, n_lanes = context_settings(loaded), int(request["lanes"])
        self.lanes = Lanes(loaded, replace(settings, n_ctx=_n_ctx(loaded, settings.n_ctx, n_lanes)), n_lanes)
        self.schemas = SchemaMasks(loaded.vocabulary)
        loaded.integrity.check()  # not in the middle of everybody's answers
        emit("loaded", **facts_of(loaded, self.lanes.settings))

    def ask(self, request: Request, emit: Emit, stop: threading.Event) -> None:
        """As `AnswerEngine.ask`."""
        self._in_a_lane(emit, stop).run("ask", request, emit)

    def complete(self, request: Request, emit: Emit, stop: threading.Event) -> None:
        """As `LaneEngine.complete`."""
        self._in_a_lane(emit, stop).run("complete", request, emit)

    def _in_a_lane(self, emit: Emit, stop: threading.Event) -> LaneEngine:
        return LaneEngine(self.loaded, self.lanes.begin(stop), self.schemas, stop)


def _n_ctx(loaded: LoadedModel, n_ctx: int, n_lanes: int) -> int:
    """Cells for all answers together. Raises UsageError for more than one kind of rotary factors is right for."""
    short = loaded.n_ctx_short  # llama.cpp goes by the context's size, and most texts are short
    if loaded.request.get("ctx"):
        if short and n_ctx > short:
            raise UsageError(
                f"--ctx {n_ctx}: {loaded.path.name} has other rotary factors for texts of over {short:,} tokens, and a "
                f"context that several share has those of one kind; take at most {short}"
            )
        return n_ctx
    return min(n_ctx, CELLS_EACH * n_lanes, short or n_ctx)


class LaneEngine(AnswerEngine):
    """One answer of several, in its lane."""

    evaluator: Lane

    def run(self, operation: str, request: Request, emit: Emit) -> None:
        """Do one thing, and give the lane back."""
        try:
            getattr(self, operation)({**request, "continued": True}, emit)
        finally:
            self.evaluator.lanes.end(self.evaluator)

    def _parts(
        self, request: Request, emit: Emit, think: bool | None, variables: Mapping[str, Any] | None = None
    ) -> list[Part]:
        """As everybody's, with the answer's beginning where the request has one, which leaves no room for thoughts."""
        begun = request.get("begun")
        parts = super()._parts(request, emit, False if begun else think, variables)
        return [*parts, Part(begun, False, private=True)] if begun else parts

    def complete(self, request: Request, emit: Emit) -> None:
        """What follows a text, or tokens, as it stands: `token` events and an `end` event.

        A text may name control tokens, since whoever sends one writes the whole prompt. With `echo` and `logprobs` N,
        `scored` events tell of the prompt's tokens first; the first token has no ln p. `max_tokens` may be 0 then.
        """
        started = time.monotonic()
        self.loaded.errors.clear()
        prompt = self._prompt(request)
        n_wanted = int(request["sampling"].get("max_tokens", 1))
        sampling = Sampling(**{**request["sampling"], "max_tokens": max(1, n_wanted)})
        self._check_room(len(prompt), min(n_wanted, 1))
        echo, n_likeliest = bool(request.get("echo")), request.get("logprobs")
        if echo:
            given = request["prompt"]
            pieces = b"" if isinstance(given, str) else b"".join(self.vocabulary.piece(t, shown=True) for t in prompt)
            emit("echo", text=given if isinstance(given, str) else pieces.decode("utf-8", "replace"))
        if echo and n_likeliest is not None:
            self.evaluator.reserve(len(prompt) + n_wanted)
            self._score(prompt, n_likeliest, emit)
        if not n_wanted:
            emit("end", stop="length", n_prompt=len(prompt), n_generated=0, n_cached=0)
            return
        reader = AnswerReader(self.vocabulary, ())
        reader.stream.settle(bare=False)
        stops = StopTexts(list(sampling.stop))
        emit("end", **self._answer(request, emit, sampling, (prompt, ()), reader, stops, started))

    def _prompt(self, request: Request) -> list[int]:
        given = request["prompt"]
        if isinstance(given, str):
            tokens = self.vocabulary.tokenize_parts([Part(given, True)])
        else:
            tokens = [int(t) for t in given]
        if not tokens:
            raise UsageError("the prompt is empty; give at least one token")
        if not all(0 <= t < self.vocabulary.n_tokens for t in tokens):
            raise DataError(f"the prompt has a token that this model has not: it has {self.vocabulary.n_tokens:,}")
        return tokens

    def _score(self, prompt: list[int], n_likeliest: int, emit: Emit) -> None:
        """Scores of a prompt's own tokens, which needs all of it evaluated anew."""
        lane, vocabulary = self.evaluator, self.vocabulary
        lane.lanes.seat(lane, [])
        first = {"token": prompt[0], "bytes": list(vocabulary.piece(prompt[0], shown=True)), "ln_p": None, "top": []}
        emit("scored", echo=True, **first)
        for at in range(0, len(prompt), N_OUTPUTS):
            part = prompt[at : at + N_OUTPUTS]
            lane.evaluate(part, all_outputs=True)
            for i, token in enumerate(prompt[at + 1 : at + 1 + len(part)]):
                emit("scored", echo=True, **token_score(vocabulary, np.asarray(lane.logits(i)), token, n_likeliest))


def _load(request: Request, emit: Emit) -> Serving:
    return Serving(request, emit)


OPERATIONS: dict[str, Any] = {"ask": Serving.ask, "complete": Serving.complete}

if __name__ == "__main__":
    serve_together(_load, OPERATIONS, lambda serving: serving.lanes.decode_forever())
