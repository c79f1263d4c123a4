"""Asking, the child's side: the operations of `ask`, `chat` and `Runner` on one loaded model.

Runs as `python -m jmedlite.runtime.worker`. First request: what to load; then questions. A question is never written
anywhere but into the model's context. A native abort ends only this process.
"""

from __future__ import annotations

import codecs
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jmedlite.base.errors import ContextFull, UsageError

from .added_tokens import common_prefix
from .bounded import bounded
from .chat_template import Message, Part, build_prompt
from .evaluation import ContextSettings, Evaluator
from .hardware import cpu_features
from .loading import LoadedModel
from .protocol import Emit, Request, Stopped, serve
from .sampling import Sampling, make_chain
from .schema_mask import SchemaMask, SchemaMasks, check_schema
from .state_cache import fingerprint
from .stops import StopTexts, turn_header

TEMPLATE_SECONDS = 1.0


def bounded_prompt(emit: Emit, messages: list[Message], **arguments: Any) -> list[Part]:
    """`build_prompt` with a second to finish in; one that needs more ends this process."""
    import jinja2.sandbox  # noqa: F401 - a cold disk must not count against the template

    return bounded(emit, "the model's chat template", TEMPLATE_SECONDS, lambda: build_prompt(messages, **arguments))


def engine_build() -> dict[str, Any]:
    """What decides how a state is laid out and computed, besides the model: the build and the processor."""
    import importlib.metadata

    return {"llama_cpp_python": importlib.metadata.version("llama-cpp-python"), "features": cpu_features()}


class AnswerEngine:
    """A loaded model that answers; `request` is the load request (`loading`), with `threads` besides."""

    def __init__(self, request: Request, emit: Emit, stop: threading.Event | None = None) -> None:
        self.loaded = loaded = LoadedModel(request, emit)
        self.llama, self.vocabulary, self.stop = loaded.llama, loaded.vocabulary, stop or threading.Event()
        wanted = loaded.request
        settings = ContextSettings(
            n_ctx=loaded.plan.n_ctx,
            full=bool(wanted.get("ctx")),
            n_threads=int(wanted["threads"]),
            facts={
                "model": loaded.mark,
                "lora": [(fingerprint([Path(p)]), scale) for p, scale in wanted["lora"]],
                "engine": engine_build(),
                **{k: wanted[k] for k in ("kv_type", "flash_attn", "threads")},
                "offload": [loaded.plan.n_gpu_layers, *loaded.plan.split],
            },
        )
        self.evaluator = Evaluator(loaded, settings, self.stop)
        self.schemas = SchemaMasks(self.vocabulary)

    # ------------------------------------------------------------------------------------------------ prompts

    def _parts(self, request: Request, emit: Emit) -> list[Part]:
        return bounded_prompt(
            emit,
            [Message(**m) for m in request["messages"]],
            system=request.get("system"),
            template=self.loaded.header.metadata.get("tokenizer.chat_template"),
            bos=self.vocabulary.text_of("bos"),
            eos=self.vocabulary.text_of("eos"),
            language=request.get("language"),
        )

    def _check_room(self, n_prompt: int, reserve: int) -> None:
        limit = self.evaluator.settings.n_ctx
        if n_prompt + max(1, reserve) <= limit:
            return
        if limit >= self.loaded.n_ctx_train:
            advice = f"shorten the question{self.loaded.context_ends}"
        else:
            advice = "raise --ctx or shorten it" if self.loaded.request.get("ctx") else "shorten it, or free memory"
        raise ContextFull(
            f"the question is too long: prompt and question have {n_prompt:,} tokens, the context has {limit:,}; "
            + advice
        )

    # ------------------------------------------------------------------------------------------------ answers

    def ask(self, request: Request, emit: Emit) -> None:
        """Answer a conversation as `token` events and an `end` event."""
        started = time.monotonic()
        self.loaded.errors.clear()
        sampling = Sampling(**request["sampling"])
        parts = self._parts(request, emit)
        prompt, prefix = self.vocabulary.tokenize_parts(parts), self.vocabulary.public_prefix(parts)
        self._check_room(len(prompt), min(request.get("reserve", 0), sampling.max_tokens))
        schema = sampling.json_schema
        mask = self.schemas.begin(schema, emit) if isinstance(schema, str) else None
        chain = make_chain(self.llama, self.vocabulary.vocab, sampling)
        stops = StopTexts(self._stop_texts(sampling, parts))
        n_cached, times = 0, [started]
        stop, n = "stopped", 0
        try:
            room = min(self.evaluator.settings.n_ctx, len(prompt) + sampling.max_tokens)
            short = self.loaded.n_ctx_short
            self.evaluator.reserve(min(room, short) if short and len(prompt) <= short else room)
            n_cached = self.evaluator.prefill(prompt, prefix, continued=request.get("continued", False))
            self.loaded.integrity.check()
            times.append(time.monotonic())
            for n, stop, piece in self._generate(chain, mask, sampling.max_tokens):  # noqa: B007 - the last n counts
                if text := stops.take(piece):
                    emit("token", text=text)
                if len(times) == 2:
                    times.append(time.monotonic())
                if stops.met:
                    stop = "stop"  # noqa: PLW2901 - whatever else would have ended it
                    break
            if not stops.met and (text := stops.rest()):
                emit("token", text=text)
        except Stopped:
            pass
        finally:
            if chain:
                self.llama.llama_sampler_free(chain)
        ended = time.monotonic()
        prompted, first = [*times[1:], ended, ended][:2]
        emit(
            "end",
            stop=stop,
            n_prompt=len(prompt),
            n_cached=n_cached,
            n_generated=n,
            n_ctx=self.evaluator.settings.n_ctx,
            load_seconds=self.loaded.load_seconds,
            prompt_seconds=prompted - started,
            first_token_seconds=first - started,
            generation_seconds=ended - prompted,
        )

    def _stop_texts(self, sampling: Sampling, parts: list[Part]) -> list[str]:
        """Those that were asked for, and the next turn of the person; a grammar alone says what an answer may be."""
        if sampling.grammar is not None or sampling.json_schema is not None:
            return list(sampling.stop)
        header = turn_header(parts, self.vocabulary.controls, [self.vocabulary.text_of(t) for t in ("bos", "eos")])
        return [*sampling.stop, *([f"\n{header}"] if header else [])]

    def _generate(self, chain: Any, mask: SchemaMask | None, limit: int) -> Iterator[tuple[int, str, str]]:
        """(tokens so far, why it would end here, text that is whole now) for each token of an answer.

        A mask begins where it is first used: all that is generated from there on follows its schema.
        """
        evaluator, vocabulary, sample = self.evaluator, self.vocabulary, self.llama.llama_sampler_sample
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        n = 0
        while True:
            logits = evaluator.logits()
            if mask:
                mask.apply(logits)
            token = sample(chain, evaluator.context, -1) if chain else int(logits.argmax())
            if mask:
                token = mask.take(token, logits)
            if vocabulary.ends(token):
                yield n, "eos", ""
                return
            n += 1
            full = len(evaluator.tokens) + 1 >= evaluator.settings.n_ctx
            # bytes of a character that is cut by a limit are dropped with the decoder
            yield n, "context" if full else "length", utf8.decode(vocabulary.piece(token))
            if mask and mask.whole:
                yield n, "eos", ""
                return
            if n >= limit or full:
                return
            if self.stop.is_set():
                yield n, "stopped", ""
                return
            evaluator.step(token)

    # ------------------------------------------------------------------------------------------------ scoring

    def loglikelihoods(self, request: Request, emit: Emit) -> None:
        """ln p of each continuation's tokens after a context, as one `scores` event."""
        vocabulary, evaluator = self.vocabulary, self.evaluator
        prefix: list[int] = []
        if request["template"]:
            parts = self._parts({**request, "messages": [{"role": "user", "content": request["context"]}]}, emit)
            prefix = vocabulary.public_prefix(parts)
        else:
            parts = [Part(request["context"], False, private=True)]
        context = vocabulary.tokenize_parts(parts)
        wholes = [vocabulary.tokenize_parts([*parts, Part(c, False, private=True)]) for c in request["continuations"]]
        cuts = [common_prefix(context, whole) for whole in wholes]
        if min(cuts) < 1:
            raise UsageError("the context has no token before the continuation; give one that is not empty")
        for whole, cut in zip(wholes, cuts, strict=True):
            if cut == len(whole):
                raise UsageError("a continuation adds no token to its context; give one that is not empty")
            self._check_room(len(whole), 0)
        evaluator.reserve(max(map(len, wholes)))
        scores: list[dict[str, Any]] = []
        for whole, cut in zip(wholes, cuts, strict=True):
            shared = min(cuts)
            if scores:
                evaluator.keep(shared - 1)
                evaluator.evaluate(whole[len(evaluator.tokens) : shared])
            else:
                evaluator.prefill(whole[: shared - 1], prefix)
                evaluator.evaluate(whole[shared - 1 : shared])
                self.loaded.integrity.check()
            found = evaluator.log_probabilities(whole[shared:])[cut - shared :]
            scores.append({"tokens": [p for p, _ in found], "greedy": all(top for _, top in found)})
        emit("scores", scores=scores)

    # -------------------------------------------------------------------------------------------------- others

    def tokenize(self, request: Request, emit: Emit) -> None:
        """Token ids of a text."""
        emit("tokens", ids=self.vocabulary.tokenize(request["text"], request["parse_special"]))

    def save(self, request: Request, emit: Emit) -> None:
        """Keep what is evaluated on disk."""
        emit("saved", done=self.evaluator.save_conversation(request["name"]))

    def resume(self, request: Request, emit: Emit) -> None:
        """Bring back what was kept."""
        emit("resumed", n_tokens=self.evaluator.load_conversation(request["name"]))

    def facts(self) -> dict[str, Any]:
        """What the parent shows of the loaded model."""
        loaded = self.loaded
        meta = loaded.header.metadata
        licenses = (meta.get("general.license.name"), meta.get("general.license"))
        return {
            "name": meta.get("general.name") or loaded.path.stem,
            "license": next((x for x in licenses if isinstance(x, str) and x), None),
            "architecture": meta["general.architecture"],
            "n_ctx_train": loaded.n_ctx_train,
            "n_ctx": self.evaluator.settings.n_ctx,
            "n_gpu_layers": loaded.plan.n_gpu_layers,
            "n_threads": self.evaluator.settings.n_threads,
            "chat_template": "tokenizer.chat_template" in meta,
            "load_seconds": loaded.load_seconds,
        }


def load(request: Request, emit: Emit, stop: threading.Event) -> AnswerEngine:
    """Load a model; the `loaded` event says what it is. A schema that will be asked for is looked at before."""
    if request.get("json_schema") is not None:
        check_schema(request["json_schema"], emit)
    engine = AnswerEngine(request, emit, stop)
    emit("loaded", **engine.facts())
    return engine


OPERATIONS: dict[str, Callable[[AnswerEngine, Request, Emit], None]] = {
    "ask": AnswerEngine.ask,
    "loglikelihoods": AnswerEngine.loglikelihoods,
    "tokenize": AnswerEngine.tokenize,
    "save": AnswerEngine.save,
    "resume": AnswerEngine.resume,
}

if __name__ == "__main__":
    serve(load, OPERATIONS)
