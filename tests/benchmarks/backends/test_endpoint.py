"""A model behind a server: what llama-server and vLLM answer is read right, and faults are said in a sentence."""

from __future__ import annotations

import gzip
import json
import math
import random
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import jmedlite
from jmedlite.api.participants import behind_a_server
from jmedlite.base.errors import DataError, JmedliteError, NotPermitted, Unavailable, UsageError
from jmedlite.benchmarks.backends import http as http_server
from jmedlite.benchmarks.backends.base import Wanted
from jmedlite.benchmarks.backends.endpoint import EndpointModel, in_order
from jmedlite.benchmarks.backends.http import is_this_machine
from jmedlite.benchmarks.backends.responses import letter_scores, log_probability
from jmedlite.benchmarks.scoring import score as judge
from jmedlite.benchmarks.tasks.items import Item
from tests.support.openai_servers import (
    N_CTX,
    Answered,
    chat_text,
    likely,
    llama_server,
    log_p,
    serving,
    tokenize,
    usage,
    vllm,
    write,
)


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "FIRST_PAUSE", 0.001)
    for name in ("JMEDLITE_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def prompt(n: int, continuations: list[str]) -> dict[str, Any]:
    return {
        "body": [["Question: ", True], [f"number {n}", False]],
        "cue": [["\nAnswer:", True]],
        "continuations": continuations,
    }


LETTERS = Wanted(tuple(prompt(n, [" A", " B", " C", " D"]) for n in range(40)))
TEXTS = Wanted(tuple(prompt(n, [" w1 w2", " w1", " w3。", " w1 w2"]) for n in range(6)))
WRITING = Wanted(tuple(prompt(n, []) for n in range(60)), max_tokens=6)


def context(prompt: dict[str, Any], chat: bool = False) -> str:
    body, cue = ("".join(text for text, _ in prompt[key]) for key in ("body", "cue"))
    return f"[user] {body} [end] [assistant] {cue}" if chat else body + cue


def answers(model: EndpointModel, wanted: Wanted) -> list[dict[str, Any]]:
    prepared = model.prepare(wanted)
    assert prepared.starts == tuple(range(len(wanted.prompts)))
    found = list(model.run(0, len(prepared.starts)))
    assert [first for first, _ in found] == list(prepared.starts)
    return [answer for _, (answer,) in found]


# ------------------------------------------------------------------------------------------------------ scores


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("answer", [llama_server, vllm])
def test_letters(answer: Any, chat: bool) -> None:
    wanted = Wanted(LETTERS.prompts, chat=chat)
    with serving(answer) as url, EndpointModel(url) as model:
        found = answers(model, wanted)
    n_bounded = 0
    for one, asked in zip(found, wanted.prompts, strict=True):
        text = context(asked, chat)
        truth = [log_p(text, c) for c in asked["continuations"]]
        assert one["n_prompt"] == len(tokenize(text))
        assert one["n_tokens"] == [1] * 4
        listed = list(likely(text))[: 20 if answer is vllm else 100]
        for score, right, c in zip(one["scores"], truth, asked["continuations"], strict=True):
            assert score == pytest.approx(right, abs=1e-9) if c in listed else score >= right
        assert one.get("bounded", False) == any(c not in listed for c in asked["continuations"])
        n_bounded += one.get("bounded", False)
    assert (n_bounded > 0) == (answer is vllm)


def test_texts_sum_what_a_continuation_adds() -> None:
    with serving(vllm) as url, EndpointModel(url) as model:
        found = answers(model, TEXTS)
    for one, asked in zip(found, TEXTS.prompts, strict=True):
        text = context(asked)
        for c, score, n in zip(asked["continuations"], one["scores"], one["n_tokens"], strict=True):
            at, total = text, 0.0
            for token in tokenize(c):
                total, at = total + log_p(at, token), at + token
            assert (score, n) == (pytest.approx(total), len(tokenize(c)))
        assert one["n_prompt"] == len(tokenize(text))


def test_texts_need_an_echo() -> None:
    with serving(llama_server) as url, EndpointModel(url) as model:
        with pytest.raises(UsageError, match=r"no log-probabilities of the prompt.*use --method letter or generate"):
            answers(model, TEXTS)
        with pytest.raises(UsageError, match="with --chat"):
            model.prepare(Wanted(TEXTS.prompts, chat=True))

    def silent(path: str, body: dict[str, Any]) -> Answered:
        return vllm(path, {k: v for k, v in body.items() if k != "echo"})

    with serving(silent) as url, EndpointModel(url) as model, pytest.raises(UsageError, match="of the prompt"):
        answers(model, TEXTS)

    def short(path: str, body: dict[str, Any]) -> Answered:
        status, found = vllm(path, body)
        if body.get("echo"):
            found["choices"][0]["logprobs"] = {k: v[:-1] for k, v in found["choices"][0]["logprobs"].items()}  # type: ignore[index,call-overload]
        return status, found

    with serving(short) as url, EndpointModel(url) as model, pytest.raises(DataError, match=r"gave \d+ tokens and"):
        answers(model, TEXTS)


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("answer", [llama_server, vllm])
def test_writing(answer: Any, chat: bool) -> None:
    wanted = Wanted(WRITING.prompts, chat=chat, max_tokens=6)
    with serving(answer) as url, EndpointModel(url) as model:
        found = answers(model, wanted)
    stops = set()
    for one, asked in zip(found, wanted.prompts, strict=True):
        whole, reason, _ = write(context(asked, chat), 6, [])
        line, newline, _ = whole.lstrip().partition("\n")
        assert one["response"].strip() == line.strip()
        stops.add(one["stop"])
        if answer is vllm:
            assert one["stop"] == ("newline" if newline else {"stop": "eos"}.get(reason, reason))
    assert stops == ({"newline", "eos", "length"} if answer is vllm else {"newline", "stop", "length"})


def test_a_letter_is_its_own_token() -> None:
    top = [(" A", -1.0), ("B", -1.2), ("A", -2.0)]
    scores, bounded = letter_scores(top, [" A", " B"])
    assert scores[0] == -1.0
    assert bounded  # "B" is not " B", where spaces are shown
    assert scores[1] == pytest.approx(min(-2.0, math.log(1 - sum(math.exp(p) for _, p in top) + 1e-6)))
    assert letter_scores([("▁A", -0.5), ("▁B", -1.0)], [" A", " B"]) == ([-0.5, -1.0], False)
    assert letter_scores([("ĠB", -0.5), ("A", -0.7), ("ĠA", -1.0)], [" A", " B"]) == ([-1.0, -0.5], False)
    assert letter_scores([("A", -0.5), ("B", -1.0)], [" A", " B"]) == ([-0.5, -1.0], False)  # spaces are not shown
    assert letter_scores([("A", -0.5), (" A", -1.0)], ["A"]) == ([-0.5], False)
    scores, _ = letter_scores([("x", -0.1), ("y", -3.4e38)], ["A"])
    assert scores == [-1000.0]


def test_results_of_answers_without_a_count() -> None:
    item = Item("1", "q", ("a", "b"), (0,), "en")
    line = judge(
        "letter", item, (0, 1), {"n_prompt": None, "scores": [-1.0, -2.0], "n_tokens": [1, 1], "bounded": True}
    )
    assert line.n_prompt is None
    assert line.correct is True


# ------------------------------------------------------------------------------------------- limits and servers


@pytest.mark.parametrize("answer", [llama_server, vllm])
def test_too_long(answer: Any) -> None:
    long = prompt(1, [" A", " B"]) | {"body": [["word " * 200, False]]}
    n = len(tokenize(context(long)))
    with serving(answer) as url, EndpointModel(url) as model:
        found = answers(model, Wanted((LETTERS.prompts[0], long)))
        assert "scores" in found[0]
        assert found[1] == {"n_prompt": n}
        short = answers(model, Wanted(LETTERS.prompts[:1], n_ctx=5))
        assert short == [{"n_prompt": found[0]["n_prompt"]}]


def test_facts() -> None:
    with serving(llama_server) as url:
        facts = EndpointModel(url + "/v1/").describe()
        assert facts["name"] == "tiny-Q8_0"
        assert (facts["server"], facts["n_params"]) == ("llamacpp b9999-abcdef", 134515008)
        assert facts["endpoint"] == url
        assert facts["sha256"] is None
    with serving(vllm) as url:
        facts = EndpointModel(url).describe()
        assert (facts["name"], facts["server"], facts["n_ctx"]) == ("tiny", "vllm 0.11.0", N_CTX)


def test_several_models() -> None:
    def several(path: str, body: dict[str, Any]) -> Answered:
        return (200, {"data": [{"id": "a"}, {"id": "b"}]}) if path == "/v1/models" else vllm(path, body)

    with serving(several) as url:
        with pytest.raises(UsageError, match=r"several models \(a, b\)"):
            EndpointModel(url)
        with pytest.raises(UsageError, match="no model c; it has a, b"):
            EndpointModel(url, "c")
        assert EndpointModel(url, "b").model == "b"

    with serving(lambda path, body: (404, b"") if path == "/v1/models" else vllm(path, body)) as url:
        assert answers(EndpointModel(url, "any"), Wanted(LETTERS.prompts[:1]))
        with pytest.raises(Unavailable, match="is not there"):
            EndpointModel(url)


def test_a_server_that_does_not_go_on_with_an_answer() -> None:
    def ends(path: str, body: dict[str, Any]) -> Answered:
        if path != "/v1/chat/completions":
            return vllm(path, body)
        text = chat_text(body, continues=False)
        return 200, {"choices": [{"message": {"content": "x"}}], "usage": usage(text, 1)}

    with serving(ends) as url, EndpointModel(url) as model, pytest.raises(UsageError, match="does not go on"):
        model.prepare(Wanted(LETTERS.prompts, chat=True))


def test_a_strict_server() -> None:
    def strict(path: str, body: dict[str, Any]) -> Answered:
        if extra := body.keys() - {"model", "prompt", "max_tokens", "temperature", "logprobs", "stop"}:
            return 400, {"error": {"message": f"Unrecognized request argument supplied: {min(extra)}"}}
        if body.get("logprobs", 0) > 5:
            return 400, {"error": {"message": "Invalid value for 'logprobs': must be less than or equal to 5."}}
        return vllm(path, body)

    with serving(strict) as url, EndpointModel(url) as model:
        assert len(answers(model, LETTERS)) == 40
        assert model._n_top == 5


def test_order_and_how_many_at_once() -> None:
    active, most, lock = 0, 0, threading.Lock()

    def slow(path: str, body: dict[str, Any]) -> Answered:
        nonlocal active, most
        with lock:
            active += 1
            most = max(most, active)
        time.sleep(random.random() / 50)
        with lock:
            active -= 1
        return llama_server(path, body)

    with serving(slow) as url, EndpointModel(url, concurrency=3) as model:
        assert len(answers(model, LETTERS)) == 40
    assert most == 3


def test_whoever_stops_listening_does_not_wait() -> None:
    asked: list[int] = []

    def work(i: int) -> int:
        asked.append(i)
        time.sleep(0 if i == 0 else 5)
        return i

    started = time.monotonic()
    found = in_order(work, range(100), 2)
    assert next(found) == 0
    found.close()  # type: ignore[attr-defined]
    assert time.monotonic() - started < 2
    time.sleep(0.05)
    assert len(asked) <= 4


# ------------------------------------------------------------------------------------------------------ faults


def logprobs(value: Any) -> dict[str, Any]:
    return {"choices": [{"text": "", "logprobs": value}], "usage": {}}


@pytest.mark.parametrize(
    ("status", "found", "kind", "words"),
    [
        (401, {"error": "Unauthorized"}, NotPermitted, r"refuses access \(401: Unauthorized\); set JMEDLITE_API_KEY"),
        (403, b"", NotPermitted, r"refuses access \(403\)"),
        (404, {"detail": "Not Found"}, Unavailable, r"is not there \(404: Not Found\)"),
        (307, b"", UsageError, "sends on to http://elsewhere.invalid/v1"),
        (400, {"error": {"message": "no"}}, DataError, r"refuses the request \(400: no\)"),
        (422, {"detail": [{"msg": "Field required", "input": "secret"}]}, DataError, r"\(422: Field required\)"),
        (429, {"error": {"message": "slow down"}}, Unavailable, r"\(429: slow down\)"),
        (503, {"error": {"message": "overloaded"}}, Unavailable, r"\(503: overloaded\)"),
        (200, {"error": {"message": "Model crashed", "code": 502}}, Unavailable, r"\(502: Model crashed\)"),
        (200, {"error": {"message": "bad prompt", "code": 400}}, DataError, r"\(400: bad prompt\)"),
        (200, b"<html>hello", DataError, "answered with '<html>hello', not with a JSON object"),
        (200, b"[]", DataError, "not with a JSON object"),
        (200, b"\xff", DataError, "not with a JSON object"),
        (200, {"object": "error"}, DataError, r"answered without choices \(object\)"),
        (200, {"choices": []}, DataError, "answered without choices"),
        (200, logprobs(None), UsageError, "returns no log-probabilities"),
        (200, logprobs({"content": []}), UsageError, "returns no log-probabilities"),
        (200, logprobs({"top_logprobs": [{" A": math.nan}]}), DataError, "gave nan as the logarithm"),
        (200, logprobs({"top_logprobs": [{" A": "?"}]}), DataError, "gave '[?]' as the logarithm"),
        (200, logprobs({"top_logprobs": [{" A": 0.7}]}), DataError, r"gave 0\.7 as the logarithm"),
        (200, logprobs({"content": [{"token": 3, "logprob": -1, "top_logprobs": []}]}), DataError, "gave 3 as a token"),
    ],
)
def test_faults(status: int, found: Any, kind: type[JmedliteError], words: str) -> None:
    n = 0

    def answer(path: str, body: dict[str, Any]) -> Answered:
        nonlocal n
        n += bool(body)
        return (status, found) if body else vllm(path, body)

    with serving(answer) as url, EndpointModel(url, concurrency=1) as model:
        with pytest.raises(kind, match=rf"^{url}/v1.*{words}") as caught:
            answers(model, Wanted(LETTERS.prompts[:1]))
        assert "\n" not in str(caught.value)
        assert "secret" not in str(caught.value)
        assert (n == http_server.TRIES) == (kind is Unavailable and status != 404)


def test_a_chat_answer_that_is_no_text() -> None:
    def listed(path: str, body: dict[str, Any]) -> Answered:
        parts = [{"type": "text", "text": "A"}]
        return (200, {"choices": [{"message": {"content": parts}}]}) if body else vllm(path, body)

    wanted = Wanted(WRITING.prompts[:1], chat=True, max_tokens=6)
    with (
        serving(listed) as url,
        EndpointModel(url) as model,
        pytest.raises(DataError, match=r"content: is \[.*\], expected text"),
    ):
        answers(model, wanted)


def test_what_passes_is_tried_again() -> None:
    tries: dict[str, int] = {}

    def moody(path: str, body: dict[str, Any]) -> Answered:
        tries[body.get("prompt", "")] = n = tries.get(body.get("prompt", ""), 0) + 1
        return ((429, 500, 503)[n - 1], b"") if body and n < 4 else llama_server(path, body)

    with serving(llama_server) as url, EndpointModel(url) as model:
        right = answers(model, LETTERS)
    with serving(moody) as url, EndpointModel(url) as model:
        assert answers(model, LETTERS) == right


def test_a_server_that_loads_its_model_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    n, told = 0, list[str]()

    def loading(path: str, body: dict[str, Any]) -> Answered:
        nonlocal n
        n += 1
        return (503, {"error": {"message": "Loading model"}}) if n <= 8 else llama_server(path, body)

    monkeypatch.setattr(http_server, "FIRST_PAUSE", 0.01)
    with serving(loading) as url, EndpointModel(url, notice=told.append) as model:
        assert model.model == "/m/tiny-Q8_0.gguf"
    assert told == [f"{url}: is loading its model; waiting for it"]
    n = 0
    monkeypatch.setattr(http_server, "LOADING_SECONDS", 0)
    with serving(loading) as url, pytest.raises(Unavailable, match=r"\(503: Loading model\)"):
        EndpointModel(url)


def test_one_question_that_always_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is counted and the run goes on; where none is answered any more, it ends."""
    monkeypatch.setattr(http_server, "FIRST_PAUSE", 0.001)
    broken: set[str] = {"Which? 3"}

    def failing(path: str, body: dict[str, Any]) -> Answered:
        bad = any(f"{b}\n" in body.get("prompt", "") for b in broken)
        return (500, {"error": {"message": "can't parse"}}) if bad else vllm(path, body)

    rows = [{"id": f"q{i}", "question": f"Which? {i}", "choices": ["a b", "c d"], "answer": 1} for i in range(9)]
    task = tmp_path / "t.jsonl"
    task.write_text("".join(json.dumps(r) + "\n" for r in rows))
    with serving(failing) as url:
        done = jmedlite.bench([], tasks=[str(task)], out=tmp_path / "run", endpoint=url)
        lines = [json.loads(line) for line in (tmp_path / "run" / "items.jsonl").read_text().splitlines()]
        assert [x["status"] for x in lines].count("failed") == 1
        assert lines[3]["id"] == "q3"
        assert lines[3]["picks"] is None
        assert done.n_results == 9
        broken |= {f"Which? {i}" for i in range(2, 9)}
        with pytest.raises(Unavailable, match="can't parse"):
            jmedlite.bench([], tasks=[str(task)], out=tmp_path / "other", endpoint=url, concurrency=1)
    document = jmedlite.report([tmp_path / "run"]).document
    (result,) = document["views"][0]["results"]
    assert (result["n"], result["accounting"][0]["missing"]) == (8, 1)
    assert any("1 question" in w["en"] and "failed" in w["en"] for w in document["warnings"])


def test_two_models_of_one_name() -> None:
    def two(path: str, body: dict[str, Any]) -> Answered:
        return 200, {"data": [{"id": "org1/m"}, {"id": "org2/m"}]}

    with serving(two) as url, pytest.raises(UsageError, match="org1/m and org2/m would both be called m"):
        behind_a_server(["org1/m", "org2/m"], url, list().append, 5, 1)


def test_what_a_server_writes_for_no_probability() -> None:
    assert log_probability(None, "x") == log_probability(-math.inf, "x") == log_probability(-3.4e38, "x") == -1000
    assert letter_scores([(" <think>", -0.1), (" x", -3.0)], [" A", " B"])[1] == 2


def test_an_answer_without_any_letter_is_unparsed() -> None:
    def thinking(path: str, body: dict[str, Any]) -> Answered:
        return (200, logprobs({"top_logprobs": [{"<think>": -0.01, "\n": -6.0}]})) if body else vllm(path, body)

    with serving(thinking) as url, EndpointModel(url) as model:
        (answer,) = answers(model, Wanted(LETTERS.prompts[:1]))
    n = len(answer["scores"])
    item = Item("1", "q", tuple(f"c{i}" for i in range(n)), (0,), "en")
    line = judge("letter", item, range(n), answer)
    assert (line.status, line.picks, line.correct) == ("unparsed", (), False)


def test_slow_and_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "TRIES", 2)

    def slow(path: str, body: dict[str, Any]) -> Answered:
        time.sleep(1 if body else 0)
        return llama_server(path, body)

    with (
        serving(slow) as url,
        EndpointModel(url, timeout=0.2) as model,
        pytest.raises(Unavailable, match=r"gave no answer within 0\.2 s"),
    ):
        answers(model, Wanted(LETTERS.prompts[:1]))
    started = time.monotonic()
    with pytest.raises(Unavailable, match=r"can't be reached \(Connection refused\)"):
        EndpointModel(url)
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("url", ["", "host", "ftp://host", "http://", "http://host:port", "http://host/v1?x=1"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(UsageError, match=r"is no address of a server"):
        EndpointModel(url)


def test_privacy(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="JMEDLITE_API_KEY") as caught:
        EndpointModel("http://me:secret@127.0.0.1:1")
    assert "secret" not in str(caught.value)
    heard: list[str] = []
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # where nobody listens
    headers: list[Any] = []
    monkeypatch.setenv("OPENAI_API_KEY", "second")
    monkeypatch.setenv("JMEDLITE_API_KEY", "first")
    with serving(llama_server, headers) as url:
        EndpointModel(url, notice=heard.append)
    assert heard == []
    assert {h["Authorization"] for h in headers} == {"Bearer first"}
    with pytest.raises(Unavailable):
        EndpointModel("http://nowhere.invalid:1", notice=heard.append, timeout=2)
    assert [sentence.split(";")[0] for sentence in heard] == ["questions and the key go to nowhere.invalid unencrypted"]
    assert is_this_machine("::1")
    assert is_this_machine("127.0.0.2")
    assert not is_this_machine("10.0.0.1")
    assert not is_this_machine("localhost.evil.org")


# ------------------------------------------------------------------------------------------------ bent and endless

ANSWER: dict[str, Any] = {
    "choices": [
        {
            "text": " A",
            "finish_reason": "length",
            "stop_reason": None,
            "logprobs": {"tokens": [" A"], "token_logprobs": [-1.0], "top_logprobs": [{" A": -1.0, " B": -2.0}]},
        }
    ],
    "usage": {"prompt_tokens": 5, "completion_tokens": 1},
}


def bent(at: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """ANSWER with another value in one place."""
    found = json.loads(json.dumps(ANSWER))
    inner = found
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    return dict(found)


CHOICE = ("choices", 0)
BENT = {
    "usage a list": (bent(("usage",), [1]), "letter", r"usage: is \[1\], expected an object"),
    "a count that is text": (bent(("usage", "prompt_tokens"), "5"), "letter", "prompt_tokens: is .*, expected a whole"),
    "a count of 400 digits": (bent(("usage", "prompt_tokens"), 10**400), "letter", "expected a number of 64 bits"),
    "choices an object": (bent(("choices",), {}), "letter", r"choices: is \{\}, expected a list"),
    "a choice null": (bent(CHOICE, None), "letter", r"choices\[0\]: is null, expected an object"),
    "logprobs a list": (bent((*CHOICE, "logprobs"), [1]), "letter", r"logprobs: is \[1\], expected an object"),
    "no top token": (bent((*CHOICE, "logprobs", "top_logprobs"), [{}]), "letter", "gave no token as the likeliest"),
    "top tokens text": (bent((*CHOICE, "logprobs", "top_logprobs"), ["A"]), "letter", 'is "A", expected an object'),
    "a logarithm of 400 digits": (
        bent((*CHOICE, "logprobs", "top_logprobs"), [{" A": -(10**400)}]), "letter", "as the logarithm",
    ),
    "an echo of numbers": (bent((*CHOICE, "logprobs", "tokens"), [1]), "text", r"tokens\[0\]: is 1, expected text"),
    "an echo that is text": (bent((*CHOICE, "logprobs", "tokens"), "A"), "text", 'is "A", expected a list'),
    "a text that is an object": (bent((*CHOICE, "text"), {"a": 1}), "generate", "expected text"),
    "a reason that is a list": (bent((*CHOICE, "finish_reason"), ["x"]), "generate", "expected text"),
}  # fmt: skip


@pytest.mark.parametrize("name", BENT)
def test_a_bent_answer_is_a_question_that_failed(name: str) -> None:
    found, method, words = BENT[name]
    wanted = {"letter": LETTERS, "text": TEXTS, "generate": WRITING}[method]
    few = Wanted(wanted.prompts[:6], max_tokens=wanted.max_tokens)
    spoilt = context(few.prompts[3])

    def answer(path: str, body: dict[str, Any]) -> Answered:
        return (200, found) if body.get("prompt", "").startswith(spoilt) else vllm(path, body)

    with serving(answer) as url, EndpointModel(url) as model:
        got = answers(model, few)
        assert [i for i, one in enumerate(got) if "failed" in one] == [3]
    with serving(answer) as url, EndpointModel(url) as model, pytest.raises(DataError, match=words):
        answers(model, Wanted(few.prompts[3:4], max_tokens=few.max_tokens))


def test_half_a_character_is_none() -> None:
    half = bent((*CHOICE, "text"), "な\ud83d")
    with serving(lambda path, body: (200, half) if body else vllm(path, body)) as url, EndpointModel(url) as model:
        (found,) = answers(model, Wanted(WRITING.prompts[:1], max_tokens=6))
    assert found["response"] == "な\ufffd"


@pytest.mark.parametrize(
    ("models", "words"),
    [
        ({"data": [{"id": "m", "meta": [1]}]}, r"data\[0\]: meta: is \[1\], expected an object"),
        ({"data": [{"id": 3}]}, r"data\[0\]: id: is 3, expected text"),
        ({"data": {"id": "m"}}, "data: is .*, expected a list"),
        ({"data": [{"id": "m", "max_model_len": 1e999}]}, "max_model_len: is Infinity, expected a whole number"),
    ],
)
def test_a_bent_list_of_models(models: Any, words: str) -> None:
    with serving(lambda path, body: (200, models)) as url:
        with pytest.raises(DataError, match=words):
            EndpointModel(url)
        assert EndpointModel(url, "m").model == "m"


def raw_server(pieces: Callable[[], Iterator[bytes]]) -> Any:
    """A server that sends these bytes to whoever asks."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                self.request.recv(65536)
                for piece in pieces():
                    self.request.sendall(piece)

    class Threads(socketserver.ThreadingTCPServer):
        daemon_threads = True

    server = Threads(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server


def drip(head: bytes, piece: bytes) -> Iterator[bytes]:
    yield head
    while True:
        yield piece
        time.sleep(0.02)


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKS = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        (lambda: drip(OK, b"X"), "no answer within 0.3 s"),
        (lambda: drip(OK + b"Content-Length: 1000000\r\n\r\n", b" "), "no answer within 0.3 s"),
        (lambda: drip(CHUNKS, b"1\r\n \r\n"), "no answer within 0.3 s"),
        (lambda: drip(b"", b"H"), "no answer within 0.3 s"),
        (lambda: iter([OK + b"X: y\r\n" * 1000 + b"\r\n"]), "HTTPException"),
        (lambda: iter([OK + b"X: " + b"y" * 100_000 + b"\r\n\r\n"]), "LineTooLong"),
        (lambda: iter([CHUNKS + b"-5\r\nabc"]), "ValueError"),
        (lambda: iter([CHUNKS + b"zz\r\n{}"]), "IncompleteRead"),
        (lambda: iter([b"HTTP/1.0 200 OK\r\n\r\n{}"]), r"several models \(none\)"),
        (lambda: iter([OK + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(bytes(100_000))]), "not with a JSON"),
        (lambda: iter([OK + b"Content-Type: text/html\r\n\r\n<html>"]), "not with a JSON object"),
        (lambda: iter([b"HTTP/1.1 429 x\r\nRetry-After: \xb2\r\n\r\n{}"]), "429"),
        (lambda: iter([b"\x15\x03\x03\x00\x02\x02\x16"]), "BadStatusLine"),
        (lambda: iter([b"HTTP/1.1 302 x\r\nLocation: /v1/models\r\n\r\n"]), "sends on to /v1/models"),
        (lambda: iter([OK + b"\r\n" + b"[" * 200_000]), "not with a JSON object"),
    ],
)
def test_servers_that_have_no_end_or_no_form(
    pieces: Callable[[], Iterator[bytes]], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "TRIES", 2)
    started = time.monotonic()
    with raw_server(pieces) as server:
        with pytest.raises(JmedliteError, match=words) as caught:
            EndpointModel(f"http://127.0.0.1:{server.server_address[1]}", timeout=0.3)
        server.shutdown()
    assert len(str(caught.value)) < 400
    assert time.monotonic() - started < 3


def test_what_is_no_key() -> None:
    for key in ("secret\nX: y", "鍵"):
        with pytest.raises(UsageError, match="holds what no key holds") as caught:
            EndpointModel("http://127.0.0.1:1", api_key=key)
        assert key not in str(caught.value)
