"""The benchmark's scores against transformers in float32, token by token, on tiny models with and without BOS."""

from __future__ import annotations

from pathlib import Path

import pytest

import jmedlite
from jmedlite.benchmarks.backends.base import Loading, LocalModel, Wanted
from jmedlite.benchmarks.prompts.requests import make_ask
from jmedlite.benchmarks.prompts.templates import own_template
from jmedlite.benchmarks.tasks.items import Dataset, Item
from tests.support import builders

pytestmark = pytest.mark.oracle

ITEMS = tuple(
    Item(f"{lang}{i}", question * (1 + i % 3), choices, (0,), lang)
    for lang, question, choices in (
        ("en", "Which organ makes bile? ", ("the liver", "the liver and the lung", "a", "kidney", "a")),
        ("ja", "胆汁を作る臓器はどれか。", ("肝臓", "肝臓と肺", "腎臓", "心", "脾臓", "肺", "骨", "皮膚")),
    )
    for i in range(6)
)


@pytest.mark.parametrize("family", ["qwen2", "llama"])
@pytest.mark.parametrize("method", ["letter", "text"])
@pytest.mark.parametrize("shots", [0, 2])
def test_scores_equal_transformers(tmp_path: Path, family: str, method: str, shots: int) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    builders.checkpoint(tmp_path / "m", family, dtype="F32", max_position_embeddings=4096)
    if family == "llama":
        builders.add_bos(tmp_path / "m")
    (path,) = jmedlite.quantize(tmp_path / "m", types=["F32"], out=tmp_path, threads=1)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32).eval()
    loading = Loading(threads=2, kv_type="f32", flash_attn="off")
    with LocalModel(path, loading) as model, jmedlite.Runner(path, cache=False) as runner:
        for lang in ("en", "ja"):
            items = tuple(i for i in ITEMS if i.lang == lang)
            data = Dataset("t", "t", lang, "T", items[shots:])
            ask = make_ask(data, method, own_template(method, lang), items[:shots], 1, 0)
            prepared = model.prepare(Wanted(tuple(ask.prompts())))
            found = [a for _, part in model.run(0, len(prepared.starts)) for a in part]
            for prompt, answer in zip(ask.prompts(), found, strict=True):
                context = "".join(text for text, _ in [*prompt["body"], *prompt["cue"]])
                start = runner.tokenize(context)
                bos = [reference.config.bos_token_id] if family == "llama" else []
                assert answer["n_prompt"] == len(bos) + len(start)
                for continuation, score in zip(prompt["continuations"], answer["scores"], strict=True):
                    whole = runner.tokenize(context + continuation)
                    assert whole[: len(start)] == start  # the boundary is clean in these texts
                    tokens = torch.tensor([[*bos, *whole]])
                    with torch.no_grad():
                        logs = torch.log_softmax(reference(tokens).logits[0].double(), -1)
                    n = len(bos) + len(start)
                    expected = sum(float(logs[k - 1, tokens[0, k]]) for k in range(n, tokens.shape[1]))
                    assert score == pytest.approx(expected, abs=1e-3)
