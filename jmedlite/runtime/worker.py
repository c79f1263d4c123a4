"""Asking, the child's side: the operations of `ask`, `chat` and `Runner` on one loaded model.

Runs as `python -m jmedlite.runtime.worker`. First request: what to load; then questions. A question is never written
anywhere but into the model's context. A native abort ends only this process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from jmedlite.base.errors import ContextFull, DataError, UsageError

from .added_tokens import common_prefix
from .bounded import bounded
from .chat_template import Message, Part, build_prompt, end_of, thought_forms, warnings_of
from .evaluation import ContextSettings, Evaluator
from .hardware import cpu_features
from .loading import LoadedModel
from .protocol import Emit, Request, Stopped, serve
from .sampling import Sampling, make_chain, read_variables
from .schema_mask import SchemaMask, SchemaMasks, check_schema
from .state_cache import fingerprint
from .stops import StopTexts, turn_header
from .thoughts import BETWEEN, THINKING, UNDECIDED, AnswerReader, forms_in, is_closed, opened_by
from .token_scores import ScoreKeeper
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from .lanes import Lane

TEMPLATE_SECONDS = 1.0

T = TypeVar("T")
Score = Callable[[NDArray[np.float32], int], None]


def of_template(emit: Emit, work: Callable[[], T]) -> T:
    """What a chat template gives, with a second to finish in; one that needs more ends this process."""
    import jinja2.sandbox  # noqa: F401 - a cold disk must not count against the template

    return bounded(emit, "the model's chat template", TEMPLATE_SECONDS, work)


def bounded_prompt(
    emit: Emit, vocabulary: Vocabulary, messages: list[Message], *, variables: Mapping[str, Any], **arguments: Any
) -> list[Part]:
    """`build_prompt` by the model's own chat template, bounded."""
    check_variables(variables, vocabulary)
    own: dict[str, Any] = {
        "template": vocabulary.chat_template,
        "bos": vocabulary.text_of("bos"),
        "eos": vocabulary.text_of("eos"),
        "variables": variables,
    }
    return of_template(emit, lambda: build_prompt(messages, **own, **arguments))


def check_variables(variables: Mapping[str, Any], vocabulary: Vocabulary) -> None:
    """Values may not name control tokens, since a template's text may; raises UsageError."""
    controls = [control for control in vocabulary.controls if control] if variables else []
    for name, value in variables.items():
        if any(control in text for text in _texts(value) for control in controls):
            raise UsageError(f"--template-var {name}: names a control token of the model; leave it away")


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in _texts(part)]
    if isinstance(value, list):
        return [text for part in value for text in _texts(part)]
    return [value] if isinstance(value, str) else []


def engine_build() -> dict[str, Any]:
    """What decides how a state is laid out and computed, besides the model: the build and the processor."""
    import importlib.metadata

    return {"llama_cpp_python": importlib.metadata.version("llama-cpp-python"), "features": cpu_features()}


class Choosing:
    """How the next token is chosen: as the answer's options say, or with `bound` false, without the answer's form.

    A context manager, which frees llama.cpp's samplers. `mask` is of the answer's schema, if it has one, and begins
    where it is first used. `score` is told the logits that each token is chosen from, before any mask, and the token.
    """

    def __init__(
        self, engine: AnswerEngine, sampling: Sampling, mask: SchemaMask | None, score: Score | None = None
    ) -> None:
        self.engine, self.mask, self.score = engine, mask, score
        kinds = [sampling] if sampling.grammar is None else [sampling.unbound(), sampling]
        self._chains = [make_chain(engine.llama, engine.vocabulary.vocab, kind) for kind in kinds]

    @property
    def is_whole(self) -> bool:
        """Whether the answer's schema allows nothing more."""
        return self.mask is not None and self.mask.whole

    def token(self, *, bound: bool) -> int:
        """The token that follows what is evaluated."""
        evaluator, mask = self.engine.evaluator, self.mask if bound else None
        logits = evaluator.logits()
        told = logits.copy() if self.score else logits
        if mask:
            mask.apply(logits)
        chain = self._chains[-1 if bound else 0]
        token = evaluator.sample(chain) if chain else int(logits.argmax())
        token = mask.take(token, logits) if mask else token
        if self.score:
            self.score(told, token)
        return token

    def __enter__(self) -> Choosing:
        return self

    def __exit__(self, *_: object) -> None:
        for chain in filter(None, self._chains):
            self.engine.llama.llama_sampler_free(chain)


def context_settings(loaded: LoadedModel) -> ContextSettings:
    """The context of a model that was loaded to answer; its load request has `threads`."""
    wanted = loaded.request
    return ContextSettings(
        n_ctx=loaded.plan.n_ctx,
        full=bool(wanted.get("ctx")),
        n_threads=int(wanted["threads"]),
        facts={
            "model": loaded.mark,
            "lora": [(fingerprint([Path(p)]), scale) for p, scale in wanted["lora"]],
            "engine": engine_build(),
            **{k: wanted[k] for k in ("kv_type", "flash_attn", "threads")},
            "offload": [loaded.plan.n_gpu_layers, loaded.plan.n_cpu_moe, *loaded.plan.split],
        },
    )


def facts_of(loaded: LoadedModel, settings: ContextSettings) -> dict[str, Any]:
    """What the parent shows of a loaded model."""
    meta = loaded.header.metadata
    licenses = (meta.get("general.license.name"), meta.get("general.license"))
    return {
        "name": meta.get("general.name") or loaded.path.stem,
        "license": next((x for x in licenses if isinstance(x, str) and x), None),
        "architecture": meta["general.architecture"],
        "n_ctx_train": loaded.n_ctx_train,
        "n_ctx": settings.n_ctx,
        "n_gpu_layers": loaded.plan.n_gpu_layers,
        "n_cpu_moe": loaded.plan.n_cpu_moe,
        "n_threads": settings.n_threads,
        "chat_template": "tokenizer.chat_template" in meta,
        "load_seconds": loaded.load_seconds,
    }


class AnswerEngine:
    """A loaded model that answers, one question at a time; `stop` ends an answer early."""

    def __init__(
        self, loaded: LoadedModel, evaluator: Evaluator | Lane, schemas: SchemaMasks, stop: threading.Event
    ) -> None:
        self.loaded, self.evaluator, self.schemas, self.stop = loaded, evaluator, schemas, stop
        self.llama, self.vocabulary = loaded.llama, loaded.vocabulary

    @classmethod
    def load(cls, request: Request, emit: Emit, stop: threading.Event | None = None) -> AnswerEngine:
        """The engine of a load request (`loading`), with `threads` besides."""
        stop = stop or threading.Event()
        loaded = LoadedModel(request, emit)
        evaluator = Evaluator(loaded, context_settings(loaded), stop)
        return cls(loaded, evaluator, SchemaMasks(loaded.vocabulary), stop)

    # ------------------------------------------------------------------------------------------------ prompts

    def _parts(
        self, request: Request, emit: Emit, think: bool | None, variables: Mapping[str, Any] | None = None
    ) -> list[Part]:
        return bounded_prompt(
            emit,
            self.vocabulary,
            [Message(**m) for m in request["messages"]],
            system=request.get("system"),
            language=request.get("language"),
            think=think,
            variables=variables or {},
        )

    def _reader(self, parts: Sequence[Part], sampling: Sampling) -> AnswerReader:
        """What tells a thought from the answer to this prompt."""
        template, end = self.vocabulary.chat_template, end_of(parts)
        forms = thought_forms(template)
        opened = opened_by(end, forms)
        reader = AnswerReader(self.vocabulary, forms, opened, sampling.think_budget)
        if sampling.is_bound and not opened and (not forms_in(template) or is_closed(end, forms)):
            reader.stream.settle()  # nothing says that this model would think first
        return reader

    def _check_room(self, n_prompt: int, reserve: int) -> None:
        limit = self.evaluator.settings.n_ctx
        if n_prompt + max(1, reserve) <= limit:
            return
        if limit >= self.loaded.n_ctx_train:
            advice = f"shorten the question{self.loaded.context_ends}"
        else:
            is_chosen = self.loaded.request.get("ctx") or limit < self.loaded.plan.n_ctx
            advice = "raise --ctx or shorten it" if is_chosen else "shorten it, or free memory"
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
        variables, template = read_variables(sampling.template_vars), self.vocabulary.chat_template
        parts = self._parts(request, emit, sampling.think, variables)
        warnings = of_template(emit, lambda: warnings_of(template, sampling.think, variables))
        prompt, prefix = self.vocabulary.tokenize_parts(parts), self.vocabulary.public_prefix(parts)
        self._check_room(len(prompt), min(request.get("reserve", 0), sampling.max_tokens))
        stops = StopTexts(self._stop_texts(sampling, parts))
        reader = self._reader(parts, sampling)
        facts = self._answer(request, emit, sampling, (prompt, prefix), reader, stops, started)
        self._check_text(sampling, facts["stop"], reader)
        emit("end", warnings=warnings, **facts)

    def _answer(
        self, request: Request, emit: Emit, sampling: Sampling, prompted: tuple[Sequence[int], Sequence[int]],
        reader: AnswerReader, stops: StopTexts, started: float,
    ) -> dict[str, Any]:  # fmt: skip
        """What follows a prompt (and the prefix that it shares with others), as events; facts of how it went.

        With `logprobs` N in the request, `scored` events tell ln p of each token of the answer, and the N likeliest.
        """
        prompt, prefix = prompted
        schema = sampling.json_schema
        mask = self.schemas.begin(schema, emit) if isinstance(schema, str) else None
        n_cached, times, stop = 0, [started], "stopped"
        n_likeliest = request.get("logprobs")
        scores = None if n_likeliest is None else ScoreKeeper(self.vocabulary, n_likeliest)
        with Choosing(self, sampling, mask, scores.choose if scores else None) as choosing:
            try:
                room = len(prompt) + sampling.max_tokens + (sampling.think_budget or 0)
                room, short = min(self.evaluator.settings.n_ctx, room), self.loaded.n_ctx_short
                self.evaluator.reserve(min(room, short) if short and len(prompt) <= short else room)
                n_cached = self.evaluator.prefill(prompt, prefix, continued=request.get("continued", False))
                self.loaded.integrity.check()
                times.append(time.monotonic())
                for stop, thought, answer in self._generate(choosing, reader, sampling):
                    for score in scores.sure(reader) if scores else ():
                        emit("scored", **score)
                    if thought:
                        emit("thought", text=thought)
                    if text := stops.take(answer):
                        emit("token", text=text)
                    if len(times) == 2:
                        times.append(time.monotonic())
                    if stops.met:
                        stop = "stop"  # noqa: PLW2901 - whatever else would have ended it
                        break
                if not stops.met and (text := stops.rest()):
                    emit("token", text=text)
            except Stopped:
                stop = "stopped"
            for score in scores.rest(reader) if scores else ():
                emit("scored", **score)
        ended = time.monotonic()
        evaluated, first = [*times[1:], ended, ended][:2]
        return {
            "stop": stop,
            "n_prompt": len(prompt),
            "n_cached": n_cached,
            "n_generated": reader.n_written,
            "n_thought": reader.n_thought,
            "thought_open": reader.state == THINKING,
            "thought_closed_by_budget": reader.by_budget,
            "n_ctx": self.evaluator.settings.n_ctx,
            "load_seconds": self.loaded.load_seconds,
            "prompt_seconds": evaluated - started,
            "first_token_seconds": first - started,
            "generation_seconds": ended - evaluated,
        }

    def _check_text(self, sampling: Sampling, stop: str, reader: AnswerReader) -> None:
        """Raise DataError where a model that was free to say anything has said nothing.

        A single token may be a control token before text for which no room was left.
        """
        n = reader.n_written
        if reader.has_text or sampling.is_bound or not (stop == "eos" or (stop in ("length", "context") and n > 1)):
            return
        what = f"{n:,} tokens without any text" if n else "no answer, but ended it at once"
        raise DataError(
            f"{self.loaded.path.name}: gave {what}; the file is damaged or not for this llama.cpp, or its "
            "chat template is another model's"
        )

    def _stop_texts(self, sampling: Sampling, parts: list[Part]) -> list[str]:
        """Those that were asked for, and the next turn of the person; a grammar alone says what an answer may be."""
        if sampling.grammar is not None or sampling.json_schema is not None:
            return list(sampling.stop)
        header = turn_header(parts, self.vocabulary.controls, [self.vocabulary.text_of(t) for t in ("bos", "eos")])
        return [*sampling.stop, *([f"\n{header}"] if header else [])]

    def _generate(self, choosing: Choosing, reader: AnswerReader, sampling: Sampling) -> Iterator[tuple[str, str, str]]:
        """(why it would end here, text of the thought, text of the answer) for each token."""
        evaluator, vocabulary = self.evaluator, self.vocabulary
        prompt = list(evaluator.tokens)
        while True:
            bound = sampling.is_bound and reader.state not in (UNDECIDED, THINKING)
            token = choosing.token(bound=bound)
            ends = vocabulary.ends(token)
            if sampling.is_bound and not bound and (ends or reader.begins_answer(token)):
                # the model would answer without a thought, or end within it: the answer it gives now has its form
                if reader.state == THINKING:
                    self._put_in(reader.close())
                    reader.stream.settle()
                    continue
                if len(evaluator.tokens) > len(prompt):
                    evaluator.prefill(prompt, (), continued=True)
                reader.begin_anew()
                continue
            if ends:
                yield ("eos", *reader.end(whole=True))
                return
            was = reader.state
            thought, answer = reader.read(token)
            if choosing.is_whole:
                rest = reader.end(whole=True)
                yield "eos", thought + rest[0], answer + rest[1]
                return
            full = len(evaluator.tokens) + 1 >= evaluator.settings.n_ctx
            if full or reader.is_full(sampling.max_tokens):
                rest = reader.end(whole=False)  # bytes of a character that is cut by a limit are dropped
                yield "context" if full else "length", thought + rest[0], answer + rest[1]
                return
            yield "length", thought, answer
            if self.stop.is_set():
                yield ("stopped", *reader.end(whole=False))
                return
            evaluator.step(token)
            if reader.is_due:
                self._put_in(reader.close_by_budget())
                if sampling.is_bound:
                    reader.stream.settle()  # what would wrap the answer is no part of its form
            elif sampling.is_bound and was == THINKING and reader.state == BETWEEN:
                self._put_in(reader.open_answer())

    def _put_in(self, tokens: Sequence[int]) -> None:
        """Go on as if the model had written these; nothing where the context has no room, which then ends it."""
        for token in tokens:
            if len(self.evaluator.tokens) + 1 < self.evaluator.settings.n_ctx:
                self.evaluator.step(token)

    # ------------------------------------------------------------------------------------------------ scoring

    def loglikelihoods(self, request: Request, emit: Emit) -> None:
        """ln p of each continuation's tokens after a context, as one `scores` event."""
        vocabulary, evaluator = self.vocabulary, self.evaluator
        prefix: list[int] = []
        if request["template"]:
            asked = {**request, "messages": [{"role": "user", "content": request["context"]}]}
            parts = self._parts(asked, emit, think=False)  # a continuation begins the answer
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
        assert isinstance(self.evaluator, Evaluator)
        emit("saved", done=self.evaluator.save_conversation(request["name"]))

    def resume(self, request: Request, emit: Emit) -> None:
        """Bring back what was kept."""
        assert isinstance(self.evaluator, Evaluator)
        emit("resumed", n_tokens=self.evaluator.load_conversation(request["name"]))


def load(request: Request, emit: Emit, stop: threading.Event) -> AnswerEngine:
    """Load a model; the `loaded` event says what it is. A schema that will be asked for is looked at before."""
    if request.get("json_schema") is not None:
        check_schema(request["json_schema"], emit)
    engine = AnswerEngine.load(request, emit, stop)
    emit("loaded", **facts_of(engine.loaded, engine.evaluator.settings))
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
