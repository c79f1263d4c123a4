"""The child process that holds llama.cpp: reads requests, writes events, one JSON object a line.

Runs as `python -m jmedlite.runtime.worker`. First request: what to load; then questions. A question is never written
anywhere but into the model's context. Expected faults become an `error` event; a native abort ends only this process.
Each request has a growing `id`; `{"op": "stop", "id": N}` ends request N early.
"""

from __future__ import annotations

import codecs
import importlib.metadata
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gguf.constants import GGMLQuantizationType

from jmedlite.base.errors import ContextFull, DataError, Interrupted, JmedliteError, UsageError

from .chat_template import Message, Part, build_prompt
from .evaluation import Evaluator, Settings, Stopped
from .hardware import cpu_features
from .loading import LoadedModel
from .protocol import Emit, die_with_parent, open_events, protect_process
from .sampling import Sampling, make_chain
from .state_cache import fingerprint
from .vocabulary import common_prefix

TEMPLATE_SECONDS = 1.0


@contextmanager
def limited_memory(extra: int) -> Iterator[None]:
    """Bound the address space while the body runs, where the system can."""
    try:
        import resource

        import psutil

        old = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + extra, old[1]))
    except (ImportError, ValueError, OSError, AttributeError):
        yield
        return
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, old)


def bounded_prompt(emit: Emit, messages: list[Message], **arguments: Any) -> list[Part]:
    """`build_prompt` with a second to finish in; a template that loops ends this process with an error event."""
    import jinja2.sandbox  # noqa: F401 - a cold disk must not count against the template

    box: list[list[Part] | JmedliteError] = []

    def work() -> None:
        try:
            box.append(build_prompt(messages, **arguments))
        except JmedliteError as e:
            box.append(e)
        except MemoryError:
            box.append(DataError("the model's chat template needs too much memory"))

    thread = threading.Thread(target=work, daemon=True)
    with limited_memory(1 << 30):
        thread.start()
        thread.join(TEMPLATE_SECONDS)
    if thread.is_alive() or not box:
        emit(
            "error",
            code=DataError.exit_code,
            kind=DataError.__name__,
            message=f"the model's chat template ran for over {TEMPLATE_SECONDS:g} s",
        )
        os._exit(DataError.exit_code)  # the thread can't be stopped
    if isinstance(box[0], JmedliteError):
        raise box[0]
    return box[0]


def engine_build() -> dict[str, Any]:
    """What decides how a state is laid out and computed, besides the model: the build and the processor."""
    return {"llama_cpp_python": importlib.metadata.version("llama-cpp-python"), "features": cpu_features()}


class Engine:
    """A loaded model that answers; `request` is the load request (`loading`), with `threads` besides."""

    def __init__(self, request: dict[str, Any], emit: Emit, stop: threading.Event | None = None) -> None:
        self.loaded = loaded = LoadedModel(request, emit)
        self.llama, self.vocabulary, self.stop = loaded.llama, loaded.vocabulary, stop or threading.Event()
        wanted = loaded.request
        settings = Settings(
            name=loaded.path.name,
            n_ctx=loaded.plan.n_ctx,
            full=bool(wanted.get("ctx")),
            kv_type=int(GGMLQuantizationType[wanted["kv_type"].upper()]),
            flash_attn=wanted["flash_attn"],
            n_threads=int(wanted["threads"]),
            adapters=loaded.adapters,
            facts={
                "model": loaded.mark,
                "lora": [(fingerprint([Path(p)]), scale) for p, scale in wanted["lora"]],
                "engine": engine_build(),
                **{k: wanted[k] for k in ("kv_type", "flash_attn", "threads")},
                "offload": [loaded.plan.n_gpu_layers, *loaded.plan.split],
            },
        )
        self.evaluator = Evaluator(loaded.llama, loaded.model, settings, loaded.cache, loaded.reason, self.stop)

    # ------------------------------------------------------------------------------------------------ prompts

    def _parts(self, request: dict[str, Any], emit: Emit) -> list[Part]:
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
            advice = "shorten the question"
        else:
            advice = "raise --ctx or shorten it" if self.loaded.request.get("ctx") else "shorten it, or free memory"
        raise ContextFull(
            f"the question is too long: prompt and question have {n_prompt:,} tokens, the context has {limit:,}; "
            + advice
        )

    # ------------------------------------------------------------------------------------------------ answers

    def ask(self, request: dict[str, Any], emit: Emit) -> None:
        """Answer a conversation as `token` events and an `end` event."""
        started = time.monotonic()
        self.loaded.errors.clear()
        sampling = Sampling(**request["sampling"])
        parts = self._parts(request, emit)
        prompt, prefix = self.vocabulary.tokenize_parts(parts), self.vocabulary.public_prefix(parts)
        self._check_room(len(prompt), min(request.get("reserve", 0), sampling.max_tokens))
        chain = make_chain(self.llama, self.vocabulary.vocab, sampling)
        n_cached, times = 0, [started]
        stop, n = "stopped", 0
        try:
            room = min(self.evaluator.settings.n_ctx, len(prompt) + sampling.max_tokens)
            self.evaluator.reserve(room)
            n_cached = self.evaluator.prefill(prompt, prefix, continued=request.get("continued", False))
            self.loaded.integrity.check()
            times.append(time.monotonic())
            for n, stop, text in self._generate(chain, sampling.max_tokens):  # noqa: B007 - the last ones count
                if text:
                    emit("token", text=text)
                if len(times) == 2:
                    times.append(time.monotonic())
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

    def _generate(self, chain: Any, limit: int) -> Iterator[tuple[int, str, str]]:
        """(tokens so far, why it would end here, text that is whole now) for each token of an answer."""
        evaluator, vocabulary, sample = self.evaluator, self.vocabulary, self.llama.llama_sampler_sample
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        n = 0
        while True:
            logits = evaluator.logits()
            token = sample(chain, evaluator.context, -1) if chain else int(logits.argmax())
            if vocabulary.ends(token):
                yield n, "eos", ""
                return
            n += 1
            full = len(evaluator.tokens) + 1 >= evaluator.settings.n_ctx
            # bytes of a character that is cut by a limit are dropped with the decoder
            yield n, "context" if full else "length", utf8.decode(vocabulary.piece(token))
            if n >= limit or full:
                return
            if self.stop.is_set():
                yield n, "stopped", ""
                return
            evaluator.step(token)

    # ------------------------------------------------------------------------------------------------ scoring

    def loglikelihoods(self, request: dict[str, Any], emit: Emit) -> None:
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


def listen(requests: queue.SimpleQueue[dict[str, Any]], stop: threading.Event) -> None:
    """Read requests as they come, so that a stop is heard while one is worked on; the parent's end is this one's."""
    current = None
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if request["op"] != "stop":
            stop.clear()  # the parent sends no request before it has the last event of the one before
            current = request["id"]
            requests.put(request)
        elif request["id"] == current:
            stop.set()
    os._exit(0)


def serve(requests: queue.SimpleQueue[dict[str, Any]], stop: threading.Event, emit: Emit) -> None:
    """Work on one request after the other, until one to load fails."""
    engine: Engine | None = None
    while True:
        request = requests.get()
        try:
            if request["op"] == "load":
                if request["main_thread"]:  # the kernel's signal follows the thread that started this process
                    die_with_parent()
                engine = Engine(request, emit, stop)
                emit("loaded", **engine.facts())
            elif engine is None:
                raise UsageError("nothing is loaded")
            elif request["op"] == "tokenize":
                emit("tokens", ids=engine.vocabulary.tokenize(request["text"], request["parse_special"]))
            elif request["op"] == "loglikelihoods":
                engine.loglikelihoods(request, emit)
            elif request["op"] == "save":
                emit("saved", done=engine.evaluator.save_conversation(request["name"]))
            elif request["op"] == "resume":
                emit("resumed", n_tokens=engine.evaluator.load_conversation(request["name"]))
            else:
                engine.ask(request, emit)
        except Stopped:
            emit("error", code=Interrupted.exit_code, kind=Interrupted.__name__, message="stopped")
        except JmedliteError as e:
            emit("error", code=e.exit_code, kind=type(e).__name__, message=str(e))
            if engine is None:
                return


def main() -> None:
    protect_process()
    emit = open_events()
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    stop = threading.Event()
    threading.Thread(target=listen, args=(requests, stop), daemon=True).start()
    serve(requests, stop, emit)


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        main()
