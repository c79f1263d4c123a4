"""Ask a GGUF model from Python: the engine in a child process, its answers as they come."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from jmedlite.base.errors import BY_EXIT_CODE, DataError, InputMissing, JmedliteError, NativeError, UsageError
from jmedlite.base.inputs import check_range

from .hardware import physical_cores

KV_TYPES = ("f16", "q8_0", "q4_0")


@dataclass(frozen=True)
class Answer:
    """A finished answer. `stop` is "eos" (the model ended), "length" (max_tokens) or "context" (it is full)."""

    text: str
    stop: str
    n_prompt: int
    n_generated: int
    n_ctx: int
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def generation_tps(self) -> float:
        """Tokens generated per second, after the prompt."""
        return self.n_generated / max(1e-9, self.timings.get("generation_seconds", 0.0))


class Runner:
    """A loaded model; use it as a context manager.

        >>> with jmedlite.Runner("qwen-Q4_K_M.gguf") as model:  # doctest: +SKIP
        ...     print(model.ask("高血圧の第一選択薬は何ですか。").text)

    Nothing leaves the machine, and a fault inside llama.cpp ends the child, not your program. `facts` describes the
    loaded model (name, license, n_ctx_train, …). Raises the exceptions of `jmedlite.base.errors`.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        gpu_layers: str | int = "auto",
        kv_type: str = "f16",
        threads: int | None = None,
        lora: Sequence[tuple[str | Path, float]] = (),
    ) -> None:
        path = Path(model)
        if not path.is_file():
            raise InputMissing(f"{model}: no such GGUF file")
        if str(gpu_layers) not in ("auto", "all"):
            if not str(gpu_layers).lstrip("-").isdecimal():
                raise UsageError(f"--gpu-layers {gpu_layers}: expected auto, all or a whole number")
            check_range("--gpu-layers", gpu_layers, 0, 10_000, "auto, all or ")
        if threads is not None:
            check_range("--threads", threads, 1, 1024)
        if kv_type not in KV_TYPES:
            raise UsageError(f"--kv-type {kv_type}: expected {', '.join(KV_TYPES[:-1])} or {KV_TYPES[-1]}")
        self._load = {
            "op": "load",
            "path": str(path.resolve()),
            "gpu_layers": str(gpu_layers),
            "kv_type": kv_type,
            "threads": threads or physical_cores(),
            "lora": [(str(Path(p).resolve()), w) for p, w in lora],
        }
        self._start()

    def _start(self) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        self._child = subprocess.Popen(
            [sys.executable, "-m", "jmedlite.engine"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            # ggml starts a debugger on an abort unless told not to
            env={**os.environ, "GGML_NO_BACKTRACE": "1", "PYTHONUTF8": "1"},
        )
        self._abandoned = False
        try:
            (loaded,) = self._events(self._load, last="loaded")
        except BaseException:
            self.close()
            raise
        self.facts: dict[str, Any] = {k: v for k, v in loaded.items() if k != "event"}

    def stream(
        self,
        question: str,
        *,
        system: str | None = None,
        max_tokens: int = 1024,
        temperature: float = 0.0,
        seed: int = 0,
        ctx: int | None = None,
        language: str | None = None,
    ) -> Iterator[str | Answer]:
        """The answer piece by piece (str), and last of all the whole `Answer`.

        `system` None means the built-in medical system prompt in the question's language, "" none. The default is
        greedy decoding, so that the same question gets the same answer.
        """
        check_question(question)
        if system:
            check_question(system)
        check_range("--max-tokens", max_tokens, 1, 1 << 24)
        check_range("--temperature", temperature, 0, 100)
        if ctx is not None:
            check_range("--ctx", ctx, 16, 1 << 24)
        request = {
            "op": "ask",
            "question": question,
            "system": system,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed & 0xFFFFFFFF,
            "ctx": ctx,
            "language": language,
        }
        text = ""
        for event in self._events(request, last="end"):
            if event["event"] == "token":
                piece = event["text"].lstrip() if not text else event["text"]
                if piece:
                    text += piece
                    yield piece
            else:
                timings = {k: v for k, v in event.items() if k.endswith("_seconds")}
                yield Answer(
                    text.rstrip(), event["stop"], event["n_prompt"], event["n_generated"], event["n_ctx"], timings
                )

    def ask(self, question: str, **options: Any) -> Answer:
        """The whole answer at once; options as for `stream`."""
        answer = list(self.stream(question, **options))[-1]
        assert isinstance(answer, Answer)
        return answer

    def tokenize(self, text: str, *, parse_special: bool = False) -> list[int]:
        """Token ids as llama.cpp gives them, without BOS; `parse_special` lets text name control tokens."""
        request = {"op": "tokenize", "text": text, "parse_special": parse_special}
        (event,) = self._events(request, last="tokens")
        ids: list[int] = event["ids"]
        return ids

    def _events(self, request: dict[str, Any], last: str) -> Iterator[dict[str, Any]]:
        """Send a request, yield its events up to `last`; starts anew after an answer that nobody read to its end."""
        if self._abandoned:
            self.close()
            self._start()
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._abandoned = True
        try:
            self._child.stdin.write(json.dumps(request, ensure_ascii=False).encode("utf-8") + b"\n")
            self._child.stdin.flush()
        except OSError:
            raise self._death() from None
        for line in self._child.stdout:
            event: dict[str, Any] = json.loads(line)
            self._abandoned = event["event"] not in ("error", last)
            if event["event"] == "error":
                kind = BY_EXIT_CODE.get(event["code"], JmedliteError)
                raise kind(event["message"])
            yield event
            if event["event"] == last:
                return
        raise self._death()

    def _death(self) -> JmedliteError:
        """Why the child is gone, in a sentence."""
        code = self._child.wait()
        if code == -getattr(signal, "SIGKILL", 9):
            return NativeError(
                "the model's process was killed, most likely because memory ran out; use a narrower level, a smaller "
                "--ctx or --kv-type q8_0"
            )
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
