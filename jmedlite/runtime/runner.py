"""Ask a GGUF model from Python: the engine in a child process, its answers as they come."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from jmedlite.base.errors import (
    BY_EXIT_CODE,
    ContextFull,
    DataError,
    InputMissing,
    JmedliteError,
    NativeError,
    UsageError,
)
from jmedlite.base.inputs import check_range

from .answers import Answer, LogLikelihood
from .hardware import physical_cores
from .sampling import Sampling
from .state_cache import cache_folder

KV_TYPES = ("f16", "q8_0", "q4_0", "f32")
FLASH_ATTENTION = ("auto", "on", "off")


class Runner:
    """A loaded model; use it as a context manager.

        >>> with jmedlite.Runner("qwen-Q4_K_M.gguf") as model:  # doctest: +SKIP
        ...     print(model.ask("高血圧の第一選択薬は何ですか。").text)

    `ctx` is the context in tokens ("auto": the longest that fits), `gpu_layers` "auto", "all" or a number, `threads`
    None for the physical cores, `lora` pairs of a GGUF adapter and its weight. `cache` keeps evaluated system prompts
    on disk, never a question. `force` loads what does not fit. `on_plan` is told the plan before the model is loaded.

    Nothing leaves the machine, and a fault inside llama.cpp ends the child, not your program. `facts` describes the
    loaded model (name, license, n_ctx_train, …), `plan` how it was loaded. Raises the exceptions of
    `jmedlite.base.errors`.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        gpu_layers: str | int = "auto",
        ctx: str | int = "auto",
        kv_type: str = "f16",
        flash_attn: str = "auto",
        threads: int | None = None,
        lora: Sequence[tuple[str | Path, float]] = (),
        cache: bool = True,
        force: bool = False,
        on_plan: Callable[[str], None] | None = None,
    ) -> None:
        self.path = path = Path(model)
        if not path.is_file():
            raise InputMissing(f"{model}: no such GGUF file")
        if str(gpu_layers) != "all":
            _check_count("--gpu-layers", gpu_layers, 0, 10_000, "auto, all or ")
        _check_count("--ctx", ctx, 16, 1 << 24, "auto or ")
        if threads is not None:
            check_range("--threads", threads, 1, 1024)
        check_choice("--kv-type", kv_type, KV_TYPES)
        check_choice("--flash-attn", flash_attn, FLASH_ATTENTION)
        if flash_attn == "off" and kv_type in ("q8_0", "q4_0"):
            raise UsageError(f"--kv-type {kv_type}: needs flash attention; leave --flash-attn at auto")
        self._load = {
            "op": "load",
            "path": str(path.resolve()),
            "gpu_layers": str(gpu_layers),
            "ctx": None if ctx == "auto" else int(ctx),
            "kv_type": kv_type,
            "flash_attn": flash_attn,
            "threads": threads or physical_cores(),
            "lora": [(str(Path(p).resolve()), w) for p, w in lora],
            "cache": str(cache_folder()) if cache else None,
            "force": force,
            "main_thread": threading.current_thread() is threading.main_thread(),
        }
        self._on_plan = on_plan
        self.timings: dict[str, float] = {}
        self._start()

    def _start(self) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", "jmedlite.runtime.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            # ggml starts a debugger on an abort unless told not to
            env={**os.environ, "GGML_NO_BACKTRACE": "1", "PYTHONUTF8": "1"},
        )
        self._last_id, self._last = 0, "loaded"
        self._busy = self._sending = self._stop_wanted = False
        try:
            for event in self._events(self._load, last="loaded"):
                facts = {k: v for k, v in event.items() if k != "event"}
                if event["event"] == "plan":
                    self.plan: dict[str, Any] = facts
                    if self._on_plan:
                        self._on_plan(facts["sentence"])
                else:
                    self.facts: dict[str, Any] = facts
        except BaseException:
            self.close()
            raise

    # ---------------------------------------------------------------------------------------------- questions

    def stream(
        self, question: str, *, system: str | None = None, language: str | None = None, **options: Any
    ) -> Iterator[str | Answer]:
        """The answer piece by piece (str), and last of all the whole `Answer`.

        `system` None means the built-in medical system prompt in the question's language, "" none; `options` are those
        of `jmedlite.runtime.sampling.Sampling`. The default is greedy decoding: the same question gets the same answer.
        """
        return self.converse([("user", question)], system=system, language=language, **options)

    def converse(
        self,
        turns: Sequence[tuple[str, str]],
        *,
        system: str | None = None,
        language: str | None = None,
        continued: bool = False,
        reserve: int = 0,
        **options: Any,
    ) -> Iterator[str | Answer]:
        """Like `stream`, for a conversation of ("user" or "assistant", text); the last turn is the question.

        `continued` uses all that is evaluated already, whatever its rounding. Raises ContextFull where fewer than
        `reserve` tokens would be left for the answer.
        """
        check_question(turns[-1][1])
        if system:
            check_question(system)
        request = {
            "op": "ask",
            "messages": [{"role": role, "content": text} for role, text in turns],
            "system": system,
            "language": language,
            "continued": continued,
            "reserve": reserve,
            "sampling": asdict(_sampling(options)),
        }
        return self._stream(request)

    def _stream(self, request: dict[str, Any]) -> Iterator[str | Answer]:
        text = ""
        with contextlib.closing(self._events(request, last="end")) as events:
            for event in events:
                if event["event"] == "token":
                    piece = event["text"].lstrip() if not text else event["text"]
                    if piece:
                        text += piece
                        yield piece
                else:
                    self.timings = {k: v for k, v in event.items() if k.endswith("_seconds")}
                    counts = {k: event[k] for k in ("stop", "n_prompt", "n_generated", "n_ctx", "n_cached")}
                    yield Answer(text.rstrip(), timings=self.timings, **counts)

    def ask(self, question: str, **options: Any) -> Answer:
        """The whole answer at once; options as for `stream`."""
        answer = list(self.stream(question, **options))[-1]
        assert isinstance(answer, Answer)
        return answer

    # ------------------------------------------------------------------------------------------------- scores

    def loglikelihood(self, context: str, continuation: str, **options: Any) -> LogLikelihood:
        """ln p of `continuation` after `context`; options as for `loglikelihoods`."""
        return self.loglikelihoods(context, [continuation], **options)[0]

    def loglikelihoods(
        self,
        context: str,
        continuations: Sequence[str],
        *,
        template: bool = False,
        system: str | None = None,
        language: str | None = None,
    ) -> list[LogLikelihood]:
        """ln p of each continuation's tokens after the same context, which is evaluated once.

        Context and continuation are tokenized together; a token that spans both counts as the continuation's. With
        `template`, the context is a question in the model's chat template, and the continuation begins the answer.
        """
        for text in (context, *continuations):
            check_question(text)
        request = {
            "op": "loglikelihoods",
            "context": context,
            "continuations": list(continuations),
            "template": template,
            "system": system,
            "language": language,
        }
        (event,) = self._events(request, last="scores")
        return [LogLikelihood(tuple(s["tokens"]), s["greedy"]) for s in event["scores"]]

    def tokenize(self, text: str, *, parse_special: bool = False) -> list[int]:
        """Token ids as llama.cpp gives them, without BOS; `parse_special` lets text name control tokens."""
        request = {"op": "tokenize", "text": text, "parse_special": parse_special}
        (event,) = self._events(request, last="tokens")
        ids: list[int] = event["ids"]
        return ids

    # ------------------------------------------------------------------------------------------ conversations

    def keep_state(self, name: str) -> bool:
        """Keep all that is evaluated now, the questions' share too, on disk under `name`; False without a cache."""
        (event,) = self._events({"op": "save", "name": name}, last="saved")
        return bool(event["done"])

    def resume_state(self, name: str) -> int:
        """Bring back what was kept under `name`; returns its number of tokens, 0 where there is nothing."""
        (event,) = self._events({"op": "resume", "name": name}, last="resumed")
        return int(event["n_tokens"])

    # ------------------------------------------------------------------------------------------------ process

    def _events(self, request: dict[str, Any], last: str) -> Generator[dict[str, Any], None, None]:
        """Send a request, yield its events up to `last`; one that nobody reads to its end is stopped."""
        while self._busy:  # what is left of an answer that nobody read to its end
            self._next()
        self._last_id, self._last = self._last_id + 1, last
        self._stop_wanted, self._sending = False, True
        self._send({**request, "id": self._last_id})
        self._sending, self._busy = False, True
        if self._stop_wanted:
            self.stop()
        try:
            while self._busy:
                event = self._next()
                if event["event"] == "error":
                    kind = ContextFull if event["kind"] == "ContextFull" else BY_EXIT_CODE.get(event["code"])
                    raise (kind or JmedliteError)(event["message"])
                yield event
        finally:
            self.stop()

    def stop(self) -> None:
        """End the answer that is being given, which then ends with the reason "stopped".

        May be called in a signal handler, or in another thread than the one that reads the answer.
        """
        self._stop_wanted = True
        assert self._child.stdin is not None
        if self._busy and not self._sending:
            with contextlib.suppress(OSError, ValueError):  # not through the buffer: a signal may have come inside it
                os.write(self._child.stdin.fileno(), b'{"op":"stop","id":%d}\n' % self._last_id)

    def _next(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line.endswith(b"\n"):
            raise self._death()
        event: dict[str, Any] = json.loads(line)
        self._busy = event["event"] not in ("error", self._last)
        return event

    def _send(self, request: dict[str, Any]) -> None:
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(request, ensure_ascii=False).encode("utf-8") + b"\n")
            self._child.stdin.flush()
        except (OSError, ValueError):
            raise self._death() from None

    def _death(self) -> JmedliteError:
        """Why the child is gone, in a sentence."""
        self._busy = False
        code = self._child.wait()
        if code == -getattr(signal, "SIGKILL", 9):
            return NativeError(
                "the model's process was killed, most likely because memory ran out; use a narrower level, a smaller "
                "--ctx or --kv-type q8_0"
            )
        lines = []
        if not self._stderr.closed:
            self._stderr.seek(0)
            lines = self._stderr.read()[-4096:].decode("utf-8", "replace").strip().splitlines()
        why = lines[-1].strip() if lines else "it gave no reason"
        return NativeError(f"llama.cpp ended unexpectedly (status {code}: {why}); is the file damaged?")

    def close(self) -> None:
        """End the child and free the model."""
        if self._child.poll() is None:
            self._child.kill()
        self._child.wait()
        for stream in (self._child.stdin, self._child.stdout, self._stderr):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _sampling(options: dict[str, Any]) -> Sampling:
    try:
        return Sampling(**options)
    except TypeError as e:
        raise UsageError(f"unknown option ({str(e).split('__init__() ')[-1]})") from None


def check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    """A value must be one of the choices; raises UsageError."""
    if value not in choices:
        raise UsageError(f"{option} {value}: expected {', '.join(choices[:-1])} or {choices[-1]}")


def _check_count(option: str, value: str | int, low: int, high: int, others: str) -> None:
    """ "auto", or a whole number within [low, high]."""
    if str(value) == "auto":
        return
    if not str(value).lstrip("-").isdecimal():
        raise UsageError(f"{option} {value}: expected {others}a whole number")
    check_range(option, value, low, high, others)


def check_question(question: str) -> None:
    """A question must have text, no NUL and only characters; raises UsageError or DataError."""
    if not question.strip():
        raise UsageError("the question is empty; give it as an argument or on standard input")
    if "\0" in question:
        raise UsageError("the question contains a NUL character; is it a text?")
    try:
        question.encode("utf-8")
    except UnicodeEncodeError:  # undecodable bytes of an argument arrive as lone surrogates
        raise DataError("the question is not UTF-8; save or type the text as UTF-8") from None
