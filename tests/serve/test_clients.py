"""Programs of others that ask through the API, skipped where they are missing (the extra [clients]); and bench."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jmedlite.benchmarks.backends.base import Loading, LocalModel, RawAnswer, Wanted
from jmedlite.benchmarks.backends.endpoint import EndpointModel
from jmedlite.runtime.runner import Runner
from jmedlite.runtime.shared_runner import SharedRunner
from tests.support.serving import listening

KEY = "a-key-of-the-house-1234"
OWN = {"threads": 1, "kv_type": "f32", "flash_attn": "off", "cache": False}
ASKED = [{"role": "user", "content": "頭痛の原因は。"}]


@pytest.fixture(scope="module")
def address(served: SharedRunner) -> Iterator[str]:
    with listening(served, queue=64, key=KEY, n_ctx=8192) as found:
        yield found


@pytest.fixture(scope="module")
def alone(endless_gguf: Path) -> Iterator[Runner]:
    with Runner(endless_gguf, **OWN) as found:
        yield found


def test_openai(address: str, alone: Runner) -> None:
    openai = pytest.importorskip("openai", reason="needs the extra [clients]")
    client = openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0)
    assert [m.id for m in client.models.list()] == ["m"]
    expected = alone.ask("頭痛の原因は。", system="", max_tokens=8).text
    asking: dict[str, Any] = {"model": "m", "messages": ASKED, "max_tokens": 8}
    whole = client.chat.completions.create(**asking, logprobs=True, top_logprobs=3)
    assert whole.choices[0].message.content == expected
    assert len(whole.choices[0].logprobs.content[0].top_logprobs) == 3
    assert whole.usage.completion_tokens == 8
    pieces = list(client.chat.completions.create(**asking, stream=True, stream_options={"include_usage": True}))
    assert "".join(p.choices[0].delta.content or "" for p in pieces if p.choices).strip() == expected
    assert pieces[-1].usage.completion_tokens == 8
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {**schema, "additionalProperties": False}}}
    bound = client.chat.completions.create(**{**asking, "max_tokens": 99}, response_format=form)
    assert list(json.loads(bound.choices[0].message.content)) == ["n"]
    text = client.completions.create(model="m", prompt="hello", max_tokens=4, logprobs=2, echo=True)
    assert text.choices[0].text.startswith("hello")
    assert len(text.choices[0].logprobs.top_logprobs[1]) == 2
    with pytest.raises(openai.BadRequestError, match="tools: "):
        client.chat.completions.create(**asking, tools=[{"type": "function", "function": {"name": "f"}}])
    with pytest.raises(openai.NotFoundError, match="is not here"):
        client.chat.completions.create(**{**asking, "model": "gpt-4"})
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()


def test_llm(address: str, alone: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llm", reason="needs the extra [clients]")
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    from llm.default_plugins.openai_models import Chat

    model = Chat("ours", model_name="m", api_base=f"{address}/v1")
    expected = alone.ask("頭痛の原因は。", system="", max_tokens=8).text
    for stream in (True, False):
        assert model.prompt("頭痛の原因は。", max_tokens=8, stream=stream, key=KEY).text().strip() == expected
    talk = model.conversation()
    first = talk.prompt("hello", max_tokens=4, stream=False, key=KEY).text()
    assert first
    assert talk.prompt("and?", max_tokens=4, stream=False, key=KEY).text()


def test_lm_evaluation_harness(address: str, alone: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`local-completions`: ln p of continuations, and texts up to a stop."""
    pytest.importorskip("lm_eval", reason="needs the extra [clients]")
    pytest.importorskip("transformers", reason="its tokenizer")
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI
    from transformers import PreTrainedTokenizerFast

    from tests.support import builders

    (tmp_path / "tokenizer.json").write_text(json.dumps(builders.byte_level_tokenizer()), encoding="utf-8")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), eos_token="<|im_end|>")
    tokenizer.save_pretrained(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for as_tokens in (True, False):
        model = LocalCompletionsAPI(
            base_url=f"{address}/v1/completions", model="m", tokenizer=str(tmp_path), tokenizer_backend="huggingface",
            tokenized_requests=as_tokens, num_concurrent=1, max_length=400, batch_size=2,
        )  # fmt: skip
        pairs = [("The fever of", " a child"), ("Q: hello\nA:", " B"), ("Q: hello\nA:", " C")]
        asked = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
        for (found, greedy), (context, continuation) in zip(
            model.loglikelihood(asked, disable_tqdm=True), pairs, strict=True
        ):
            known = alone.loglikelihood(context, continuation)
            assert found == pytest.approx(sum(known.tokens), abs=1e-3)
            assert greedy == known.greedy
        (text,) = model.generate_until(
            [Instance("generate_until", {}, ("hello", {"until": ["\n"], "max_gen_toks": 6}), 0)], disable_tqdm=True
        )
        assert isinstance(text, str)


def prompts(n: int, continuations: list[str], cue: str = "\nAnswer:") -> tuple[dict[str, Any], ...]:
    body = "Read and answer.\n\nQuestion {}: hello, the fever?"
    return tuple({"body": [[body.format(i), False]], "cue": [[cue, True]], "continuations": continuations}
                 for i in range(n))  # fmt: skip


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("method", ["letter", "text", "generate"])
def test_our_own_benchmark(address: str, endless_gguf: Path, method: str, chat: bool) -> None:
    """The same scores through the server as from the local engine, within the rounding."""
    continuations: dict[str, list[str]] = {"letter": ["A", "B", "C"], "text": [" hello the", " B", "B"], "generate": []}
    wanted = Wanted(prompts(6, continuations[method]), chat=chat, max_tokens=6 if method == "generate" else 0)
    if method == "text" and chat:
        pytest.skip("can't be asked of a server")
    found: list[list[RawAnswer]] = []
    loading = Loading(threads=1, kv_type="f32", flash_attn="off")
    for model in (LocalModel(endless_gguf, loading), EndpointModel(address, api_key=KEY, concurrency=4)):
        with model:
            n = len(model.prepare(wanted).starts)
            found.append([answer for _, part in model.run(0, n) for answer in part])
    for local, served in zip(*found, strict=True):
        assert served["n_prompt"] == local["n_prompt"]
        if method == "generate":
            assert served["response"].rstrip("\n") == local["response"].rstrip("\n") != ""
            continue
        for one, other in zip(served["scores"], local["scores"], strict=True):
            assert one == pytest.approx(other, abs=1e-3) or (served.get("bounded") and one > other)
