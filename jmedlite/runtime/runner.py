"""Runner: a GGUF model asked from Python, in a child process, its answers as they come."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from jmedlite.base.errors import DataError, InputMissing, UsageError
from jmedlite.base.looking import exists
from jmedlite.base.options import with_options

from .answers import Answer, LogLikelihood, ThoughtPiece
from .hardware import physical_cores
from .load_options import LoadOptions
from .process import Child
from .sampling import Sampling
from .state_cache import cache_folder

ADVICE = "use a narrower level, a smaller --ctx or --kv-type q8_0"


class Runner:
    """A loaded model; use it as a context manager.

        >>> with jmedlite.Runner("qwen-Q4_K_M.gguf") as model:  # doctest: +SKIP
        ...     print(model.ask("高血圧の第一選択薬は何ですか。").text)

    `options` are those of `jmedlite.runtime.load_options.LoadOptions`: ctx, gpu_layers, kv_type, flash_attn, threads,
    lora, cache and force. `on_plan` is told the plan before the model is loaded. A `json_schema` that answers will
    follow may be named, so that one that can't be is refused before then.

    Nothing leaves the machine, and a fault inside llama.cpp ends the child, not your program. `facts` describes the
    loaded model (name, license, n_ctx_train, …), `plan` how it was loaded. Raises the exceptions of
    `jmedlite.base.errors`.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        on_plan: Callable[[str], None] | None = None,
        json_schema: str | Mapping[str, Any] | bool | None = None,
        **options: Any,
    ) -> None:
        self.path = Path(model)
        load = load_request(self.path, with_options(LoadOptions, options), json_schema)
        self.timings: dict[str, float] = {}
        self.child = Child("jmedlite.runtime.worker", ADVICE)
        try:
            self.plan, self.facts = load_model(self.child, load, on_plan)
        except BaseException:
            self.close()
            raise

    # ---------------------------------------------------------------------------------------------- questions

    def stream(
        self, question: str, *, system: str | None = None, language: str | None = None, **options: Any
    ) -> Iterator[str | ThoughtPiece | Answer]:
        """The answer piece by piece (str), a thought before it as `ThoughtPiece`s, and last the whole `Answer`.

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
    ) -> Iterator[str | ThoughtPiece | Answer]:
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
            "sampling": vars(with_options(Sampling, options)),
        }
        return self._stream(request)

    def _stream(self, request: dict[str, Any]) -> Iterator[str | ThoughtPiece | Answer]:
        text = thought = ""
        with contextlib.closing(self.child.events(request, "end")) as events:
            for event in events:
                if event["event"] == "thought":
                    piece = event["text"].lstrip() if not thought else event["text"]
                    if piece:
                        thought += piece
                        yield ThoughtPiece(piece)
                elif event["event"] == "token":
                    piece = event["text"].lstrip() if not text else event["text"]
                    if piece:
                        text += piece
                        yield piece
                else:
                    self.timings = {k: v for k, v in event.items() if k.endswith("_seconds")}
                    names = ("stop", "n_prompt", "n_generated", "n_thought", "n_ctx", "n_cached")
                    yield Answer(
                        text.rstrip(),
                        timings=self.timings,
                        thought=thought.rstrip() or None,
                        is_thought_open=event["thought_open"],
                        is_thought_cut=event["thought_closed_by_budget"],
                        warnings=tuple(event["warnings"]),
                        **{name: event[name] for name in names},
                    )

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
        event = self.child.ask(request, "scores")
        return [LogLikelihood(tuple(s["tokens"]), s["greedy"]) for s in event["scores"]]

    def tokenize(self, text: str, *, parse_special: bool = False) -> list[int]:
        """Token ids as llama.cpp gives them, without BOS; `parse_special` lets text name control tokens."""
        request = {"op": "tokenize", "text": text, "parse_special": parse_special}
        event = self.child.ask(request, "tokens")
        ids: list[int] = event["ids"]
        return ids

    # ------------------------------------------------------------------------------------------ conversations

    def keep_state(self, name: str) -> bool:
        """Keep all that is evaluated now, the questions' share too, on disk under `name`; False without a cache."""
        event = self.child.ask({"op": "save", "name": name}, "saved")
        return bool(event["done"])

    def resume_state(self, name: str) -> int:
        """Bring back what was kept under `name`; returns its number of tokens, 0 where there is nothing."""
        event = self.child.ask({"op": "resume", "name": name}, "resumed")
        return int(event["n_tokens"])

    # ------------------------------------------------------------------------------------------------ process

    def stop(self) -> None:
        """End the answer that is being given, which then ends with the reason "stopped".

        May be called in a signal handler, or in another thread than the one that reads the answer.
        """
        self.child.stop()

    def close(self) -> None:
        """End the child and free the model."""
        self.child.close()

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load_request(
    model: Path, wanted: LoadOptions, json_schema: str | Mapping[str, Any] | bool | None = None
) -> dict[str, Any]:
    """What a child is asked to load. Raises InputMissing."""
    if not exists(model):
        raise InputMissing(f"{model}: no such GGUF file")
    return {
        "op": "load",
        "path": str(model.resolve()),
        **vars(wanted),
        "gpu_layers": str(wanted.gpu_layers),
        "n_cpu_moe": str(wanted.n_cpu_moe),
        "ctx": None if wanted.ctx == "auto" else int(wanted.ctx),
        "threads": wanted.threads or physical_cores(),
        "lora": [(str(Path(p).resolve()), w) for p, w in wanted.lora],
        "cache": str(cache) if wanted.cache and (cache := cache_folder()) else None,
        "json_schema": Sampling(json_schema=json_schema).json_schema,
    }


def load_model(
    child: Child, request: dict[str, Any], on_plan: Callable[[str], None] | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Have a child load a model: how it was loaded, which `on_plan` is told before, and what describes it."""
    plan: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    for event in child.events(request, "loaded"):
        told = {k: v for k, v in event.items() if k != "event"}
        if event["event"] == "plan":
            plan = told
            if on_plan:
                on_plan(plan["sentence"])
        else:
            facts = told
    return plan, facts


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
