"""The worker's scores: packed against one at a time, from wherever it begins, for awkward choices, and bounded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import jmedlite
from jmedlite.base.errors import DataError, NativeError, UsageError
from jmedlite.benchmarks.backends.base import Loading, LocalModel, RawAnswer, Wanted
from tests.support import builders

CHOICES = [
    ("a long walk", "a long", "a", "rest", "rest"),  # prefixes of one another, and two that are equal
    ("x", "y", "z", "w", "v", "u", "t", "s"),  # eight, of one token each
    ("yes", "no"),
    ("no treatment at all, only rest and water", "surgery"),
]
QUESTIONS = [f"Question {i}: what helps after {'a fall ' * (i % 7)}?\nAnswer:" for i in range(24)]
# llama.cpp stores keys and values in half precision for flash attention, whatever they are in the cache
LOADING = Loading(threads=1, kv_type="f32", flash_attn="off")


def prompts(lead: str = " ") -> tuple[dict, ...]:  # type: ignore[type-arg]
    return tuple(
        {
            "body": [["Read and answer.\n\n", True], [question, False]],
            "cue": [],
            "continuations": [lead + c for c in CHOICES[i % len(CHOICES)]],
        }
        for i, question in enumerate(QUESTIONS)
    )


def answers(model: LocalModel, wanted: Wanted) -> list[RawAnswer]:
    prepared = model.prepare(wanted)
    found: list[RawAnswer] = []
    for first, part in model.run(0, len(prepared.starts)):
        assert first == len(found)
        found += part
    return found


@pytest.fixture(scope="module", params=["qwen2", "llama", "qwen3_5_text", "lfm2", "gemma4_text"])
def model_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """F32 models without and with a BOS token."""
    folder = tmp_path_factory.mktemp(request.param)
    builders.checkpoint(folder / "m", request.param)
    if request.param == "llama":
        builders.add_bos(folder / "m")
    (path,) = jmedlite.quantize(folder / "m", types=["F32"], out=folder, threads=1)
    return path


@pytest.fixture(scope="module")
def model(model_file: Path) -> Iterator[LocalModel]:
    with LocalModel(model_file, LOADING) as opened:
        yield opened


@pytest.fixture(scope="module")
def packed(model: LocalModel) -> list[RawAnswer]:
    return answers(model, Wanted(prompts()))


def test_packed_is_one_at_a_time(model: LocalModel, packed: list[RawAnswer]) -> None:
    alone = answers(model, Wanted(prompts(), together=False))
    for together, single in zip(packed, alone, strict=True):
        assert np.argmax(together["scores"]) == np.argmax(single["scores"])
        assert np.abs(np.subtract(together["scores"], single["scores"])).max() < 1e-3


def test_scores_are_those_of_the_runner(model_file: Path, packed: list[RawAnswer]) -> None:
    """Another way through llama.cpp: no packs, no shared sequences, one continuation after the other."""
    with jmedlite.Runner(model_file, kv_type="f32", flash_attn="off", cache=False) as runner:
        for prompt, answer in list(zip(prompts(), packed, strict=True))[:8]:
            context = "".join(text for text, _ in prompt["body"])
            expected = [x.total for x in runner.loglikelihoods(context, prompt["continuations"])]
            assert answer["scores"] == pytest.approx(expected, abs=1e-3)


def test_equal_choices_score_equally(packed: list[RawAnswer]) -> None:
    assert packed[0]["scores"][3] == packed[0]["scores"][4]
    assert packed[0]["n_tokens"][3] == packed[0]["n_tokens"][4]
    # a prefix is at least as likely as what goes on from it
    assert packed[0]["scores"][2] > packed[0]["scores"][1] > packed[0]["scores"][0]
    assert len(packed[1]["scores"]) == 8


def test_the_same_bits_from_any_pack_on(model: LocalModel, packed: list[RawAnswer]) -> None:
    prepared = model.prepare(Wanted(prompts()))
    n = len(prepared.starts)
    assert n > 3
    for start in (n - 1, 0, n // 2):
        for first, part in model.run(start, n):
            assert part == packed[first : first + len(part)]


def test_what_follows_changes_nothing_in_full_packs(model: LocalModel, packed: list[RawAnswer]) -> None:
    prepared = model.prepare(Wanted(prompts()))
    cut = prepared.starts[-1]
    assert answers(model, Wanted(prompts()[:cut], n_head=prepared.n_head)) == packed[:cut]


def test_every_token_is_evaluated_once(model: LocalModel) -> None:
    prepared = model.prepare(Wanted(prompts()))
    answered = answers(model, Wanted(prompts()))
    unique = [set(CHOICES[i % 4]) for i in range(len(QUESTIONS))]
    at_most = sum(a["n_prompt"] - prepared.n_head for a in answered) + sum(
        n - 1
        for a, u, i in zip(answered, unique, range(99), strict=False)
        for c, n in dict(zip(CHOICES[i % 4], a["n_tokens"], strict=True)).items()
        if c in u
    )
    assert prepared.n_head > 4
    assert prepared.n_evaluated == at_most


def test_too_long_for_the_context_is_told_and_the_rest_is_scored(model: LocalModel, packed: list[RawAnswer]) -> None:
    long = {"body": [["Read and answer.\n\n", True], ["word " * 400, False]], "cue": [], "continuations": [" a"]}
    mixed = (*prompts()[:5], long, *prompts()[5:])
    found = answers(model, Wanted(mixed, n_ctx=300))
    assert "scores" not in found[5]
    assert found[5]["n_prompt"] > 300
    assert len(found) == len(mixed)
    assert [np.argmax(a["scores"]) for a in found[:5]] == [np.argmax(a["scores"]) for a in packed[:5]]


def test_a_single_prompt_longer_than_a_batch(tmp_path: Path) -> None:
    builders.checkpoint(tmp_path / "m", "qwen2", max_position_embeddings=4096)
    (path,) = jmedlite.quantize(tmp_path / "m", types=["F32"], out=tmp_path, threads=1)
    text = "The patient had fever. " * 60
    long = {"body": [[text, False]], "cue": [["Answer:", True]], "continuations": [" yes", " no, not at all"]}
    with (
        LocalModel(path, LOADING) as model,
        jmedlite.Runner(path, kv_type="f32", flash_attn="off", cache=False) as runner,
    ):
        (found,) = answers(model, Wanted((long,)))
        expected = [x.total for x in runner.loglikelihoods(text + "Answer:", long["continuations"])]
        assert found["n_prompt"] > 1024
        assert found["scores"] == pytest.approx(expected, abs=1e-3)


def test_many_outputs_take_several_batches(model: LocalModel) -> None:
    """More tokens are scored than rows of logits are kept."""
    text = " and then the patient was given water" * 3
    many = {"body": [["Tell.\n", False]], "cue": [], "continuations": [text, text + " again", " no"]}
    (found,) = answers(model, Wanted((many,)))
    assert max(found["n_tokens"]) > 64
    (alone,) = answers(model, Wanted(({**many, "continuations": [text]},)))
    assert found["scores"][0] == pytest.approx(alone["scores"][0], abs=1e-3)


def test_generated_together_is_generated_alone(model: LocalModel) -> None:
    asked = tuple({**p, "continuations": []} for p in prompts()[:6])
    wanted = Wanted(asked, max_tokens=12, newline_ends=False)
    found = answers(model, wanted)
    assert [a["response"] for a in found] == [a["response"] for a in answers(model, replace(wanted, together=False))]
    assert all(a["stop"] in ("eos", "length") for a in found)
    assert any(a["response"] for a in found)


def test_generation_is_the_runners(model_file: Path, model: LocalModel) -> None:
    asked = {"body": [["Tell me.", False]], "cue": [], "continuations": []}
    (found,) = answers(model, Wanted((asked,), chat=True, max_tokens=16, newline_ends=False))
    with jmedlite.Runner(model_file, kv_type="f32", flash_attn="off", cache=False) as runner:
        answer = runner.ask("Tell me.", system="", max_tokens=16)
    assert found["response"].strip() == answer.text
    assert found["n_prompt"] == answer.n_prompt


def test_chat_without_a_template(tmp_path: Path) -> None:
    builders.checkpoint(tmp_path / "m", "qwen2")
    settings = tmp_path / "m" / "tokenizer_config.json"
    settings.write_text(json.dumps({k: v for k, v in json.loads(settings.read_text()).items() if k != "chat_template"}))
    (path,) = jmedlite.quantize(tmp_path / "m", types=["F32"], out=tmp_path, threads=1)
    with LocalModel(path, LOADING) as model, pytest.raises(UsageError, match="no chat template"):
        model.prepare(Wanted(prompts(), chat=True))


def test_logits_that_are_not_finite(tmp_path: Path) -> None:
    cfg = builders.config("qwen2", builders.n_tokens(builders.byte_level_tokenizer()))
    tensors = builders.weights(cfg)
    builders.checkpoint(tmp_path / "m", tensors=tensors)
    (path,) = jmedlite.quantize(tmp_path / "m", types=["F32"], out=tmp_path, threads=1)
    from jmedlite.base.gguf import read_header

    header = read_header(path)
    at = header.by_name["output_norm.weight"].offset + header.data_offset
    raw = bytearray(path.read_bytes())
    raw[at : at + 4] = np.float32(np.nan).tobytes()
    path.write_bytes(raw)
    with LocalModel(path, LOADING) as model, pytest.raises(DataError, match="not finite"):
        answers(model, Wanted(prompts()))


def test_a_killed_child_is_a_sentence(model_file: Path) -> None:
    with LocalModel(model_file, LOADING) as model:
        model.prepare(Wanted(prompts()))
        model.child.process.kill()
        with pytest.raises(NativeError, match="memory ran out"):
            list(model.run(0, 1))


def test_packs_as_large_as_a_gpu_gets_score_the_same(model_file: Path) -> None:
    """All 24 questions at once, against one at a time."""
    wanted = Wanted(prompts())
    with LocalModel(model_file, LOADING) as model:
        alone = answers(model, replace(wanted, together=False))
        small = len(model.prepare(wanted).starts)
    with LocalModel(model_file, replace(LOADING, pack=2048)) as model:
        n = len(model.prepare(wanted).starts)
        assert n < small or (
            n == small and ("qwen3_5" in str(model_file) or "lfm2" in str(model_file))
        )  # as many states as before
        large = answers(model, wanted)
    for one, other in zip(alone, large, strict=True):
        # Gemma's GELU is looked up in a table of half floats, where another order of sums may fall on the next entry
        atol = 1e-3 if "gemma" in str(model_file) else 1e-4
        np.testing.assert_allclose(one["scores"], other["scores"], atol=atol)
