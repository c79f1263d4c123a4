"""Endpoint (`--endpoint`): a model behind an OpenAI-compatible server, scored by the log-probabilities it returns."""

from __future__ import annotations

import math
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from types import TracebackType
from typing import Any, TypeVar

from jmedlite.base.errors import DataError, JmedliteError, Unavailable, UsageError
from jmedlite.base.progress import Notice, silent
from jmedlite.base.records import from_json
from jmedlite.benchmarks.prompts.requests import as_text
from jmedlite.benchmarks.tasks.items import LETTERS
from jmedlite.runtime.chat_template import SWITCHES
from jmedlite.runtime.thoughts import Said

from .base import Prepared, RawAnswer, Wanted
from .http import MAX_TOLD, Failed, Refused, Server
from .local_engine import split
from .responses import (
    ModelEntry,
    checked,
    choice_of,
    echoed,
    entries_of,
    letter_scores,
    log_probability,
    n_prompt_of,
    n_thought_of,
    no_echo,
    said_by,
    text_of,
    top_tokens,
)

TIMEOUT, CONCURRENCY = 300.0, 8  # seconds for an answer; questions in flight
TOPS = (100, 20, 5)  # log-probabilities asked for: as many as the server allows; vLLM has 20, OpenAI 5
# A first token that is half a character, which llama-server tells nothing of, or the end, of which llama-cpp-python's
# server tells nothing, is kept from being taken so; the log-probabilities are those before that.
ASCII = "root ::= [ -~]+"
# What servers would do otherwise, by their own defaults or the model's generation_config.json (1.05 in Qwen2.5's):
# llama.cpp's name and vLLM's. A strict server refuses names that are not OpenAI's.
PLAIN = {"repeat_penalty": 1.0, "repetition_penalty": 1.0}
STRICT = re.compile(
    r"unrecogni[sz]ed|extra inputs|unknown (field|param|arg)|repeat_penalty|repetition_penalty|chat_template_kwargs",
    re.I,
)
TEMPLATE = "chat_template_kwargs"  # variables of the chat template, for llama-server and vLLM
FEW = 4  # tokens by which a thought is known
FAILURES = 5  # questions in a row that a server can't answer, after which it is the server's fault and not theirs
STOPS = {"length": "length", "stop": "eos", "eos_token": "eos"}
# what `run.json` says of a model, and a server does not tell
UNTOLD = ("file", "base", "level", "sha256", "n_bytes", "n_params", "bits_per_weight", "architecture", "title",
          "license", "made_from", "imatrix", "adapters")  # fmt: skip

J = TypeVar("J")
R = TypeVar("R")


def in_order(work: Callable[[J], R], jobs: Iterable[J], n: int) -> Iterator[R]:
    """`work` of each job, n at a time, in the jobs' order. Whoever stops listening waits for none of them."""
    running, stopped = threading.Semaphore(n), threading.Event()

    def start(job: J) -> Future[R]:
        future: Future[R] = Future()

        def one() -> None:
            with running:
                if stopped.is_set():
                    return
                try:
                    future.set_result(work(job))
                except BaseException as e:
                    future.set_exception(e)

        threading.Thread(target=one, daemon=True).start()  # Ctrl-C must not wait for a server
        return future

    waiting: deque[Future[R]] = deque()

    def first() -> R:
        while not wait([waiting[0]], timeout=1).done:  # in steps, or Windows hears no Ctrl-C
            pass
        return waiting.popleft().result()

    try:
        for job in jobs:
            waiting.append(start(job))
            if len(waiting) == 2 * n:  # some wait, so that a slow one holds nobody up
                yield first()
        while waiting:
            yield first()
    finally:
        stopped.set()


class EndpointModel:
    """A model behind an OpenAI-compatible server. Every prompt is a pack of its own, `concurrency` are asked at once.

    `model` is one of the server's names, needed where it has several. Without `api_key`, JMEDLITE_API_KEY or
    OPENAI_API_KEY is sent. `notice` hears where questions leave this machine unencrypted. A score of a
    letter that the server did not return is a bound: its answer has `bounded` true. Raises Unavailable where nobody
    answers, NotPermitted where the key is refused, DataError for what makes no sense, UsageError where the server can't
    do what is asked.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        api_key: str | None = None,
        timeout: float = TIMEOUT,
        concurrency: int = CONCURRENCY,
        notice: Notice = silent,
    ) -> None:
        key = api_key or os.environ.get("JMEDLITE_API_KEY") or os.environ.get("OPENAI_API_KEY")
        self.server, self.concurrency = Server(url, key, timeout, notice), concurrency
        if self.server.is_open:
            what = "questions and the key" if key else "questions"
            notice(f"{what} go to {self.server.host} unencrypted; use https or a tunnel")
        self.entry = self._find(model)
        self.model = self.entry.id
        self._facts = self._describe()
        self._n_top, self._plain = TOPS[0], PLAIN
        self._silent = False  # about what only some servers understand
        self._answered = False  # any question at all
        self._repeats = False  # an answer's beginning, before what the model adds to it
        self._thinks = False  # before its answer, which can't be begun then
        self._wanted = Wanted(())

    def _find(self, model: str | None) -> ModelEntry:
        """The server's entry for the model."""
        path = "/v1/models"
        try:
            listed = self.server.get(path).get("data") or []
            where = f"{self.server.root}{path}: data"
            entries = from_json(listed, tuple[ModelEntry, ...], where)
        except (Unavailable, DataError):
            if model is None or not self.server.reached:
                raise
            return ModelEntry(id=model)  # not every server lists its models
        names = [e.id for e in entries]
        shown = ", ".join(names[:8]) or "none"
        if model is None and len(entries) != 1:
            raise UsageError(f"{self.server.root}: has several models ({shown}); name one of them")
        if model is not None and model not in names:
            raise UsageError(f"{self.server.root}: has no model {model}; it has {shown}")
        return entries[0 if model is None else names.index(model)]

    def describe(self) -> dict[str, Any]:
        """The entry of `run.json`'s models; null is what a server does not tell."""
        return dict(self._facts)

    def _describe(self) -> dict[str, Any]:
        meta = self.entry.meta
        name = re.split(r"[/\\]", self.model.rstrip("/\\"))[-1].removesuffix(".gguf") or self.model
        told = {"n_params": meta and meta.n_params, "title": self.model}
        n_ctx = self.entry.max_model_len or (meta and meta.n_ctx)
        place = {"endpoint": self.server.root, "server": self._version(), "n_ctx": n_ctx}
        return {"name": name, **dict.fromkeys(UNTOLD), **told, **place}

    def _version(self) -> str | None:
        """The server's program and version, where it tells."""
        owner = self.entry.owned_by or ""
        path, key = {"vllm": ("/version", "version"), "llamacpp": ("/props", "build_info")}.get(owner, ("", ""))
        if not path:
            return owner or None
        try:
            told = self.server.get(path).get(key)
            return f"{owner} {told[:MAX_TOLD]}" if isinstance(told, str) else owner
        except JmedliteError:
            return owner

    # ------------------------------------------------------------------------------------------------ answers

    def prepare(self, wanted: Wanted) -> Prepared:
        self._wanted, self._thinks = wanted, bool(wanted.think and wanted.max_tokens)
        if wanted.chat and not wanted.max_tokens and not self._letters():
            raise UsageError("--method text can't be asked of a server with --chat; leave --chat away, or use letter")
        if wanted.chat and not self._thinks and (cue := next((p["cue"] for p in wanted.prompts if p["cue"]), None)):
            self._begin(wanted, cue)
        return Prepared(tuple(range(len(wanted.prompts))))

    def _begin(self, wanted: Wanted, cue: Any) -> None:
        """What the server does with an answer that is begun for it: whether it repeats the beginning (llama-server).

        UsageError where it ends that answer and has the model begin another. Such a prompt is longer by what its chat
        template puts between answers, however long the beginning is. A model that thinks first can't have its
        answer begun: the cue ends the question.
        """
        cues: tuple[Any, ...] = ([], cue, [*cue, *cue])
        prompts = [{"body": [["?", False]], "cue": c} for c in cues]
        answers = [self._post(wanted, prompts[0], {"max_tokens": FEW})]
        if wanted.max_tokens and said_by(choice_of(*answers[0]), self.server.base, chat=True).thought is not None:
            self._thinks = True
            return
        try:
            answers += [self._post(wanted, prompt, {}) for prompt in prompts[1:]]
        except Refused as e:
            if not wanted.max_tokens or not re.search("thinking|reasoning", e.words):
                raise
            self._thinks = True  # llama-server says so of models that think by their templates
            return
        none, once, twice = (n_prompt_of(answer) for answer, _ in answers)
        answer, where = answers[-1]
        told = text_of(choice_of(answer, where), where, chat=True)
        self._repeats = told.lstrip().startswith(as_text(cues[-1]).strip())  # no one token is that
        if none and once and twice and (once - none) - (twice - once) > 2:
            raise UsageError(
                f"{self.server.root}: does not go on with an answer that the prompt begins, as --chat needs; leave "
                "--chat away, or use llama-server or vLLM"
            )

    def _letters(self) -> bool:
        """Whether one token answers all prompts."""
        asked = [[c.strip() for c in prompt["continuations"]] for prompt in self._wanted.prompts]
        return all(texts == list(LETTERS[: len(texts)]) for texts in asked)

    def run(self, first: int, stop: int) -> Iterator[tuple[int, list[RawAnswer]]]:
        wanted = self._wanted
        ask = self._generated if wanted.max_tokens else self._lettered if self._letters() else self._texts

        def one(i: int) -> tuple[int, list[RawAnswer]]:
            try:
                answer = ask(wanted, wanted.prompts[i])
            except Refused as e:
                if not e.is_too_long:
                    raise
                return i, [{"n_prompt": e.n_prompt}]
            except (Failed, DataError) as e:  # no answer, or one that makes no sense
                return i, [{"n_prompt": None, "failed": e}]
            n = answer["n_prompt"]
            if wanted.n_ctx and n and n + wanted.max_tokens > wanted.n_ctx:
                answer = {"n_prompt": n}
            return i, [answer]

        return self._few_failed(in_order(one, range(first, stop), self.concurrency))

    def _few_failed(self, answers: Iterator[tuple[int, list[RawAnswer]]]) -> Iterator[tuple[int, list[RawAnswer]]]:
        """Go on where a server can't answer one question; raise where it answers none any more."""
        in_a_row: list[tuple[int, list[RawAnswer]]] = []  # held back until another question is answered
        for at, found in answers:
            if "failed" not in found[0]:
                yield from in_a_row
                in_a_row, self._answered = [], True
                yield at, found
                continue
            in_a_row.append((at, found))
            if len(in_a_row) == FAILURES:
                raise found[0]["failed"]
        if in_a_row and not self._answered:
            raise in_a_row[-1][1][0]["failed"]
        yield from in_a_row

    def _post(
        self, wanted: Wanted, prompt: dict[str, Any], options: dict[str, Any], added: str = ""
    ) -> tuple[dict[str, Any], str]:
        """(the answer, where it comes from) to one prompt, `added` at its end, or to a chat."""
        body, cue = as_text(prompt["body"]), as_text(prompt["cue"])
        if self._thinks:
            body, cue = body + cue, ""
        request: dict[str, Any] = {"model": self.model, "max_tokens": 1, "temperature": 0, **self._plain, **options}
        if wanted.chat and (variables := self._variables(wanted)):
            request[TEMPLATE] = variables
        if not wanted.chat:
            path = "/completions"
            request["prompt"] = body + cue + added
        else:
            path = "/chat/completions"
            request["messages"] = [{"role": "user", "content": body}]
            if cue:  # the answer's beginning: vLLM's flags, which llama-server understands
                request["messages"].append({"role": "assistant", "content": cue})
                request |= {"add_generation_prompt": False, "continue_final_message": True}
        try:
            return self._posted(path, request)
        except Refused as e:
            if not {*PLAIN, TEMPLATE} & request.keys() or not STRICT.search(e.words):
                raise
            if TEMPLATE in e.words and (wanted.think is not None or wanted.template_vars):
                raise UsageError(
                    f"{self.server.root}: takes no {TEMPLATE}, which --think, --no-think and --template-var need; "
                    f"leave them away (it says: {e.words})"
                ) from None
        self._plain, self._silent = {}, True
        for name in (*PLAIN, *([] if wanted.think is not None or wanted.template_vars else [TEMPLATE])):
            request.pop(name, None)
        return self._posted(path, request)

    def _posted(self, path: str, request: dict[str, Any]) -> tuple[dict[str, Any], str]:
        where = self.server.base + path
        return checked(self.server.post(path, request), where), where

    def _variables(self, wanted: Wanted) -> dict[str, Any]:
        """What the chat template is told: to think or not, which a letter is asked without, and what was given."""
        think = wanted.think if wanted.max_tokens else False
        if self._silent and wanted.think is None:
            think = None
        return {**({name: is_on[think] for name, is_on in SWITCHES.items()} if think is not None else {}),
                **wanted.template_vars}  # fmt: skip

    def _lettered(self, wanted: Wanted, prompt: dict[str, Any]) -> RawAnswer:
        answer, where = self._likeliest(wanted, prompt, {})
        if not entries_of(choice_of(answer, where)):
            answer, where = self._likeliest(wanted, prompt, {"grammar": ASCII})
        scores, bounded = letter_scores(top_tokens(choice_of(answer, where), where), prompt["continuations"])
        found: RawAnswer = {"n_prompt": n_prompt_of(answer), "scores": scores, "n_tokens": [1] * len(scores)}
        if bounded:
            found |= {"bounded": True} | ({"unread": True} if bounded == len(scores) else {})
        return found

    def _likeliest(self, wanted: Wanted, prompt: dict[str, Any], options: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """`_post` for one token with as many log-probabilities as the server gives."""
        while True:
            n = self._n_top
            asked = {"logprobs": True, "top_logprobs": n} if wanted.chat else {"logprobs": n}
            try:
                return self._post(wanted, prompt, {**asked, **options})
            except Refused as e:
                fewer = self._fewer(n, e.words)
                if e.is_too_long or not fewer:
                    raise
                self._n_top = min(self._n_top, fewer)

    @staticmethod
    def _fewer(n: int, words: str) -> int | None:
        """How many log-probabilities to ask for where a server refuses n; None where that was not why."""
        if "logprob" not in words.lower():
            return None
        named = [int(x) for x in re.findall(r"\d+", words) if 0 < int(x) < n]
        return max((*named, *(top for top in TOPS if top < n and not named)), default=None)

    def _texts(self, wanted: Wanted, prompt: dict[str, Any]) -> RawAnswer:
        """Sums over the tokens that a continuation adds, as `engine.split` says for a local model."""
        unique = list(dict.fromkeys(prompt["continuations"]))
        ids: dict[str, int] = {}
        context, *wholes = [self._echo(wanted, prompt, text) for text in ("", *unique)]
        numbers = [[ids.setdefault(t, len(ids)) for t in tokens] for tokens, _ in (context, *wholes)]
        stem, branches = split(numbers[0], numbers[1:])
        values = {}
        for text, branch, (_, lps) in zip(unique, branches, wholes, strict=True):
            added = [log_probability(lp, self.server.base) for lp in lps[len(stem) :]]
            values[text] = math.fsum(added), len(branch)
        scores = [values[c] for c in prompt["continuations"]]
        return {"n_prompt": len(stem), "scores": [s for s, _ in scores], "n_tokens": [n for _, n in scores]}

    def _echo(self, wanted: Wanted, prompt: dict[str, Any], text: str) -> tuple[list[str], list[Any]]:
        try:
            # ids instead of texts (vLLM): the parts of a character all have the same text
            options = {"echo": True, "logprobs": 1, "return_tokens_as_token_ids": True}
            answer, where = self._post(wanted, prompt, options, text)
        except Refused as e:
            if "echo" not in e.words:
                raise
            raise no_echo(self.server.base) from None
        return echoed(answer, where)

    def _generated(self, wanted: Wanted, prompt: dict[str, Any]) -> RawAnswer:
        said, answer, choice = self._say(wanted, prompt, ["\n"] if wanted.newline_ends else [])
        unfinished = not said.answer.strip() or said.is_open
        if wanted.newline_ends and unfinished and choice.get("finish_reason") == "stop":
            # neither empty lines before an answer nor those of a thought end it, but a server does not know
            said, answer, choice = self._say(wanted, prompt, [])
        stop = STOPS.get(str(choice.get("finish_reason")), str(choice.get("finish_reason")))
        text = said.answer
        head, newline, _ = text.lstrip().partition("\n")
        if wanted.newline_ends and newline:
            text, stop = head, "newline"
        elif choice.get("stop_reason") == "\n":
            stop = "newline"
        elif stop == "eos" and wanted.newline_ends and "stop_reason" not in choice:
            stop = "stop"  # a line's end or the model's: not told
        found: RawAnswer = {"n_prompt": n_prompt_of(answer), "response": text, "stop": stop, "thought": said.thought}
        if said.thought is not None:
            found |= {"n_thought": n_thought_of(answer), "unclosed": said.is_open}
        return found

    def _say(
        self, wanted: Wanted, prompt: dict[str, Any], stop: list[str]
    ) -> tuple[Said, dict[str, Any], dict[str, Any]]:
        """(what the model writes, the whole answer, its choice)."""
        options = {"max_tokens": wanted.max_tokens, **({"stop": stop} if stop else {})}
        answer, where = self._post(wanted, prompt, options)
        choice = choice_of(answer, where)
        begun = as_text(prompt["cue"]).strip() if wanted.chat and self._repeats and not self._thinks else ""
        return said_by(choice, where, chat=wanted.chat, begun=begun), answer, choice

    # --------------------------------------------------------------------------------------------------- end

    def __enter__(self) -> EndpointModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is held."""
