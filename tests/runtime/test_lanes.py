"""Many answers at once in one context: each as it would be alone, whatever the others do, and what they may share."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import jmedlite
from jmedlite.base.errors import ContextFull, DataError, NativeError, UsageError
from jmedlite.runtime import shared_runner
from jmedlite.runtime.context import Context
from jmedlite.runtime.load_options import LoadOptions
from jmedlite.runtime.offload import n_sequences
from jmedlite.runtime.protocol import Stopped
from jmedlite.runtime.sampling import Sampling
from jmedlite.runtime.serving_worker import Serving
from jmedlite.runtime.shared_runner import SharedRunner
from jmedlite.runtime.worker import AnswerEngine
from tests.support import builders
from tests.support.ggufs import write_recurrent
from tests.support.scripted import SWITCHED, scripted

N_CTX, LANES = 768, 3
SECONDS = 60  # for what must happen
SYSTEM = "Answer briefly, and only what is asked of you."
Events = list[dict[str, Any]]


def load_of(path: Path, **more: Any) -> dict[str, Any]:
    load = {"path": str(path), "threads": 1, "gpu_layers": "0", "kv_type": "f32", "flash_attn": "off", "lora": []}
    return {**load, "ctx": N_CTX, **more}


def asking(text: str, *before: str, **options: Any) -> dict[str, Any]:
    roles = ["user", "assistant"] * (len(before) + 1)
    turns = [{"role": role, "content": said} for role, said in zip(roles, (*before, text), strict=False)]
    return {
        "op": "ask",
        "messages": turns,
        "system": SYSTEM,
        "language": None,
        "logprobs": 2,
        "sampling": vars(Sampling(**{"max_tokens": 12, **options})),
    }


class Asked:
    """A request that runs in a thread of its own, as in the child; `hold` is told every event before the next."""

    def __init__(self, serving: Serving, request: dict[str, Any], hold: Callable[[str], object] = str) -> None:
        self.events: Events = []
        self.stop, self.fault = threading.Event(), None
        self._hold = hold
        self._thread = threading.Thread(target=self._run, args=(serving, request), daemon=True)
        self._thread.start()

    def _run(self, serving: Serving, request: dict[str, Any]) -> None:
        def emit(event: str, **fields: Any) -> None:
            self.events.append({"event": event, **fields, "at": time.monotonic()})
            self._hold(event)

        try:
            getattr(serving, request["op"])(request, emit, self.stop)
        except (Exception, Stopped) as e:
            self.fault = e

    def done(self) -> Asked:
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()
        return self

    @property
    def text(self) -> str:
        assert self.fault is None
        return "".join(e["text"] for e in self.events if e["event"] == "token")

    @property
    def scores(self) -> list[float]:
        return [e["ln_p"] for e in self.events if e["event"] == "scored"]

    @property
    def end(self) -> dict[str, Any]:
        return self.events[-1]


def start(path: Path, **more: Any) -> Serving:
    serving = Serving({"lanes": LANES, **load_of(path, **more)}, lambda event, **fields: None)
    threading.Thread(target=serving.lanes.decode_forever, daemon=True).start()
    return serving


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, endless_gguf: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("lanes")
    cfg = builders.config("gemma2", builders.n_tokens(builders.byte_level_tokenizer()))
    builders.checkpoint(folder / "m", "gemma2", tensors=builders.weights(cfg), max_position_embeddings=4096)
    (windowed,) = jmedlite.quantize(folder / "m", types=["F32"], out=folder, threads=1)
    write_recurrent(folder / "recurrent.gguf")
    builders.checkpoint(folder / "h", "qwen3_5_text", max_position_embeddings=4096)
    (hybrid,) = jmedlite.quantize(folder / "h", types=["F32"], out=folder, threads=1)
    return {
        "whole": endless_gguf, "windowed": windowed, "recurrent": folder / "recurrent.gguf", "hybrid": hybrid,
    }  # fmt: skip


@pytest.fixture(scope="module")
def serving(models: dict[str, Path]) -> Serving:
    return start(models["whole"])


@pytest.mark.parametrize("kind", ["whole", "windowed", "recurrent", "hybrid"])
def test_beside_others_as_alone(models: dict[str, Path], kind: str) -> None:
    """Within the rounding: which tokens share a batch is chance. Turns of two people, the second ones continued."""
    alone = AnswerEngine.load(load_of(models[kind]), lambda event, **fields: None)
    together = start(models[kind])
    answers = ["", "", ""]
    for turn in range(2):
        texts = ["fever?", "x" * 90, "頭痛の原因は。"]
        before = [[f"{text}0", said] if turn else [] for text, said in zip(texts, answers, strict=True)]
        requests = [
            asking(f"{text}{turn}", *past, temperature=t, seed=7)
            for text, past, t in zip(texts, before, (0, 0, 1.5), strict=True)
        ]
        asked = [Asked(together, request) for request in requests]
        for i, (one, request) in enumerate(zip(asked, requests, strict=True)):
            events: Events = []
            alone.ask(request, lambda event, to=events, **fields: to.append({"event": event, **fields}))
            assert one.done().text == "".join(e["text"] for e in events if e["event"] == "token")
            assert one.scores == pytest.approx([e["ln_p"] for e in events if e["event"] == "scored"], abs=1e-3)
            assert len(one.scores) == one.end["n_generated"] > 0
            answers[i] = one.text
            if turn and kind == "whole":
                assert one.end["n_cached"] > one.end["n_prompt"] / 2


def test_what_two_people_share_is_evaluated_once(serving: Serving) -> None:
    shared = "The same long beginning of what two people ask. " * 4
    first = Asked(serving, asking(f"{shared}one")).done()
    second = Asked(serving, asking(f"{shared}two")).done()
    assert second.end["n_cached"] >= second.end["n_prompt"] - 40
    again = Asked(serving, asking("and?", f"{shared}one", first.text)).done()
    assert again.end["n_cached"] >= first.end["n_prompt"]
    # and while the first still answers
    began, go_on = threading.Event(), threading.Event()
    slow = Asked(
        serving, asking(f"{shared}three"), lambda event: event == "token" and (began.set(), go_on.wait(SECONDS))
    )
    assert began.wait(SECONDS)
    beside = Asked(serving, asking(f"{shared}two")).done()
    go_on.set()
    assert beside.text == second.text
    assert beside.end["n_cached"] >= second.end["n_cached"]
    assert slow.done().end["n_generated"] == 12


def test_who_is_slow_holds_nobody_up(serving: Serving) -> None:
    other_is_done = threading.Event()
    slow = Asked(serving, asking("slow"), lambda event: event == "token" and other_is_done.wait(SECONDS))
    quick = Asked(serving, asking("quick", max_tokens=30)).done()
    other_is_done.set()
    assert quick.end["at"] < slow.done().end["at"]
    assert slow.end["n_generated"] == 12


def test_an_answer_waits_for_cells_and_then_comes(serving: Serving) -> None:
    """Promised cells are kept: the first may write to the end of the context, the others wait in their order."""
    expected = Asked(serving, asking("small")).done().text
    began = threading.Event()
    large = Asked(serving, asking("large", max_tokens=4 * N_CTX), lambda event: began.set())
    assert began.wait(SECONDS)
    while not serving.lanes._admitted:
        time.sleep(0.005)
    small = [Asked(serving, asking("small")) for _ in range(4)]
    assert [one.done().text for one in small] == [expected] * 4
    assert large.done().end["stop"] == "context"
    assert large.end["n_prompt"] + large.end["n_generated"] == N_CTX
    first = [next(e["at"] for e in one.events if e["event"] == "token") for one in small]
    assert min(first) > large.end["at"]
    assert serving.lanes._admitted == []
    assert len(serving.lanes._idle) == n_sequences(LANES)


def test_stops(serving: Serving) -> None:
    """While it answers, and while it waits for room; those who are left go on."""
    began = threading.Event()
    large = Asked(serving, asking("large", max_tokens=4 * N_CTX), lambda event: event == "token" and began.set())
    assert began.wait(SECONDS)
    waiting, behind = Asked(serving, asking("waits")), Asked(serving, asking("behind"))
    waiting.stop.set()
    assert waiting.done().end["stop"] == "stopped"
    assert waiting.end["n_generated"] == 0
    large.stop.set()
    assert large.done().end["stop"] == "stopped"
    assert 0 < large.end["n_generated"] < N_CTX // 2
    assert behind.done().end["n_generated"] == 12


def test_a_long_prompt_is_stopped_between_batches(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    real, named = Context.decode, threading.Event()

    def decode(self: Context, rows: list[Any]) -> None:
        decoded.append(len(rows))
        real(self, rows)
        if len(decoded) == 2:
            assert named.wait(SECONDS)  # the request may be this far before it has its name here
            long.stop.set()

    monkeypatch.setattr("jmedlite.runtime.lanes.MIN_SHARE", 16)
    monkeypatch.setattr("jmedlite.runtime.lanes.N_UBATCH", 16)
    monkeypatch.setattr(Context, "decode", decode)
    long = Asked(serving, asking("z" * 400))
    named.set()
    assert long.done().end["stop"] == "stopped"
    assert decoded == [16, 16]


def test_a_fault_is_of_those_in_the_batch(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Asked(serving, asking("after")).done().text
    real, n = Context.decode, [0]

    def decode(self: Context, rows: list[Any]) -> None:
        n[0] += 1
        if n[0] == 3:
            raise NativeError("llama.cpp could not evaluate the text")
        real(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Context, "decode", decode)
        asked = Asked(serving, asking("during")).done()
    assert isinstance(asked.fault, NativeError)
    assert Asked(serving, asking("after")).done().text == expected
    assert serving.lanes._admitted == []


def test_no_logits_are_taken_that_are_not_finite(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Context.logits
    monkeypatch.setattr(Context, "logits", lambda self, row: real(self, row) * float("nan"))
    with pytest.raises(DataError, match=r"\.gguf: the model's output is not finite"):
        raise Asked(serving, asking("q")).done().fault or AssertionError


def test_forms_beside_free_answers(serving: Serving) -> None:
    free = Asked(serving, asking("free", max_tokens=40))
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    bound = Asked(serving, asking("bound", json_schema={**schema, "additionalProperties": False}, max_tokens=60))
    worded = Asked(serving, asking("worded", grammar='root ::= "yes" | "no"', max_tokens=60))
    assert list(json.loads(bound.done().text)) == ["n"]
    assert worded.done().text in ("yes", "no")
    assert free.done().text == Asked(serving, asking("free", max_tokens=40)).done().text
    refused = Asked(serving, asking("q", grammar="root ::= missing")).done()
    assert isinstance(refused.fault, DataError)


def test_thoughts_in_lanes(tmp_path: Path) -> None:
    words = ["<think>", "\nis it A", "? ", "no", "\n</", "think>", "\n\n", "B", "."]
    serving = start(scripted(tmp_path, words, template=SWITCHED))
    both = [Asked(serving, asking("q", max_tokens=30)) for _ in range(2)]
    for one in both:
        assert one.done().text.strip() == "B."
        assert one.end["n_thought"] == 6
        assert len(one.scores) <= one.end["n_generated"] - one.end["n_thought"]
    # an answer that was begun has no thought before it
    assert "".join(Asked(serving, {**asking("q"), "begun": "B"}).done().text) == "."


def completing(prompt: Any, n: int = 0, **more: Any) -> dict[str, Any]:
    return {"op": "complete", "prompt": prompt, "sampling": vars(Sampling()) | {"max_tokens": n}, **more}


def test_a_prompt_is_scored(serving: Serving, models: dict[str, Path]) -> None:
    text = "hello the fever " * 5
    asked = Asked(serving, completing(text, 1, echo=True, logprobs=3)).done()
    scored = [e for e in asked.events if e["event"] == "scored"]
    with jmedlite.Runner(models["whole"], threads=1, kv_type="f32", flash_attn="off") as runner:
        tokens = runner.tokenize(text)
        known = runner.loglikelihood(text[:5], text[5:])
    assert [e["token"] for e in scored[:-1]] == tokens
    assert scored[0]["ln_p"] is None
    assert [e["ln_p"] for e in scored[1:-1]] == pytest.approx(list(known.tokens), abs=1e-3)
    assert all(e["top"][0]["ln_p"] >= e["ln_p"] for e in scored[1:])
    same = Asked(serving, completing(tokens, 1, echo=True, logprobs=3)).done()
    assert next(e["text"] for e in same.events if e["event"] == "echo") == text
    assert same.scores[1:] == pytest.approx(asked.scores[1:], abs=1e-4)
    only = Asked(serving, completing(text, 0, echo=True, logprobs=0)).done()
    assert (only.end["stop"], only.end["n_generated"], len(only.scores)) == ("length", 0, len(tokens))
    for bad, kind in (([10**6], DataError), ("", UsageError), ("x" * 2000, ContextFull)):
        assert isinstance(Asked(serving, completing(bad, 1)).done().fault, kind)


@pytest.mark.parametrize("n", [1, 16, 64])
def test_any_number_of_lanes(models: dict[str, Path], n: int) -> None:
    """llama.cpp ends the process where it has reserved fewer logits than there are sequences."""
    serving = start(models["whole"], lanes=n)
    asked = [Asked(serving, asking(f"{i}", max_tokens=2)) for i in range(min(n, 8))]
    assert all(one.done().end["n_generated"] == 2 for one in asked)


def test_a_context_is_as_large_as_the_answers_need(models: dict[str, Path]) -> None:
    assert start(models["whole"], ctx=None).lanes.settings.n_ctx == 4096 * LANES


# --------------------------------------------------------------------------------------------- the process


@pytest.fixture
def runner(models: dict[str, Path]) -> Iterator[SharedRunner]:
    with SharedRunner(models["whole"], LoadOptions(ctx=1 << 14, cache=False), lanes=2) as found:
        yield found


class Heard(list[dict[str, Any]]):
    """Events of a submitted request, as they come."""

    def __init__(self) -> None:
        self.changed, self.ended = threading.Event(), threading.Event()

    def __call__(self, event: dict[str, Any]) -> None:
        self.append(event)
        self.changed.set()
        if event["event"] in ("end", "error"):
            self.ended.set()


def test_a_process_that_dies_tells_all_and_starts_anew(runner: SharedRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = [Heard() for _ in range(3)]
    stops = [runner.submit(asking("long", max_tokens=1 << 14), one) for one in heard]
    deadline = time.monotonic() + SECONDS
    while not any(one.changed.wait(0.01) for one in heard):
        assert time.monotonic() < deadline
    os.kill(runner._child.process.pid, signal.SIGKILL)
    for one, stop in zip(heard, stops, strict=True):
        assert one.ended.wait(SECONDS)
        assert one[-1]["kind"] == "NativeError"
        assert "was killed" in one[-1]["message"]
        stop()  # nothing to stop any more
    assert isinstance(runner.fault, NativeError)
    with pytest.raises(NativeError, match="was killed"):  # it would only die again
        runner.submit(asking("again"), Heard())
    monkeypatch.setattr(shared_runner, "AGAIN", 0.0)
    assert runner.fault is None
    again = Heard()
    runner.submit(asking("again"), again)
    assert again.ended.wait(SECONDS)
    assert again[-1]["n_generated"] == 12


def test_a_request_is_stopped_from_outside(runner: SharedRunner) -> None:
    heard = Heard()
    stop = runner.submit(asking("long", max_tokens=1 << 14), heard)
    assert heard.changed.wait(SECONDS)
    stop()
    assert heard.ended.wait(SECONDS)
    assert heard[-1]["stop"] == "stopped"
    assert {e["event"] for e in heard} <= {"bounded", "token", "scored", "end"}
