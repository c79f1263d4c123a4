"""The runner on a tiny model: answers, control tokens, the command line's output, no network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import psutil
import pytest

import jmedlite
from jmedlite.base.errors import DataError, UsageError
from jmedlite.base.libraries import libllama
from jmedlite.cli.console import plain
from jmedlite.runtime.chat_template import Message, Part, build_prompt
from jmedlite.runtime.runner import Answer
from jmedlite.runtime.sampling import Sampling
from jmedlite.runtime.worker import AnswerEngine
from tests.support import builders
from tests.support.bent import BentGguf
from tests.support.commands import run_text


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runner")
    builders.checkpoint(folder / "m")
    (path,) = jmedlite.quantize(folder / "m", bits=[8], out=folder)
    return path


@pytest.fixture(scope="module")
def engine(model: Path) -> AnswerEngine:
    load = {"path": str(model), "threads": 1, "kv_type": "f16", "flash_attn": "auto", "gpu_layers": "0"}
    return AnswerEngine.load(load, lambda event, **fields: None)


def asking(question: str) -> list[Message]:
    return [Message("user", question)]


def test_same_question_same_answer_and_the_model_stays_loaded(model: Path) -> None:
    with jmedlite.Runner(model, threads=2) as runner:
        one, two = (runner.ask("胃潰瘍の原因は。", max_tokens=24) for _ in range(2))
        assert one.text == two.text
        assert one.n_generated == 24
        assert one.stop == "length"
        pieces = list(runner.stream("胃潰瘍の原因は。", max_tokens=24))
        last = pieces[-1]
        assert isinstance(last, Answer)
        assert "".join(p for p in pieces[:-1] if isinstance(p, str)).rstrip() == last.text == one.text
        hot = [runner.ask("q", max_tokens=24, temperature=2.0, seed=s).text for s in (1, 1, 2)]
        assert hot[0] == hot[1] != hot[2]


def test_an_answer_left_half_way_does_not_mix_with_the_next(model: Path) -> None:
    with jmedlite.Runner(model, threads=1) as runner:
        expected = runner.ask("second", max_tokens=8).text
        stream = runner.stream("first", max_tokens=400)
        next(stream)
        stream.close()
        assert runner.ask("second", max_tokens=8).text == expected
        with pytest.raises(DataError, match="too long"):
            runner.ask("word " * 3000)
        assert runner.ask("second", max_tokens=8).text == expected


def write_gguf_adapter(path: Path, ab: builders.Arrays, alpha: float) -> None:
    """An adapter as convert_lora_to_gguf.py lays it out, by gguf-py."""
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    for key, x in ab.items():
        i, leaf, side = int(key.split(".")[4]), key.split(".")[-3], key.split(".")[-2]
        name = {"q_proj": "attn_q", "down_proj": "ffn_down"}[leaf]
        writer.add_tensor(f"blk.{i}.{name}.weight.{side.lower()}", x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_adapter_at_run_time_equals_the_merged_model(tmp_path: Path) -> None:
    base = builders.checkpoint(tmp_path / "m")
    ab = builders.adapter(tmp_path / "a", base)
    write_gguf_adapter(tmp_path / "a.gguf", ab, alpha=8)
    (plain,) = jmedlite.quantize(tmp_path / "m", types=["F32"], out=tmp_path)
    (merged,) = jmedlite.quantize(tmp_path / "m", lora=[f"{tmp_path / 'a'}:0.5"], types=["F32"], out=tmp_path)
    answers = []
    for path, lora in ((plain, [(tmp_path / "a.gguf", 0.5)]), (merged, []), (plain, [])):
        with jmedlite.Runner(path, threads=1, lora=lora) as runner:
            answers.append(runner.ask("発熱の原因は。", max_tokens=16).text)
    assert answers[0] == answers[1] != answers[2]


def test_further_end_tokens_end_an_answer(tmp_path: Path) -> None:
    """The model answers "x" and then "y", for ever; its generation_config.json calls "y" an end."""
    vocab = builders.byte_level_tokenizer()["model"]["vocab"]
    tensors = builders.weights(builders.config("qwen2", builders.n_tokens(builders.byte_level_tokenizer())))
    for name, w in tensors.items():
        w[...] = name.endswith("norm.weight")  # so that the last token's embedding meets the head as it is
    embedding, head = tensors["model.embed_tokens.weight"], tensors["lm_head.weight"]
    embedding[:, 0], head[vocab["x"], 0] = 1, 1
    embedding[vocab["x"]], head[vocab["y"], 1] = np.eye(256)[1], 1
    builders.checkpoint(tmp_path / "m", tensors=tensors)
    ends = [builders.n_tokens(builders.byte_level_tokenizer()) - 1, vocab["y"]]
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    (path,) = jmedlite.quantize(tmp_path / "m", types=["F32"], out=tmp_path, threads=1)
    with jmedlite.Runner(path, threads=1) as runner:
        answer = runner.ask("頭痛", max_tokens=8)
    assert (answer.text, answer.stop, answer.n_generated) == ("x", "eos", 1)


def test_prompt_tokens_are_those_of_the_whole_text(engine: AnswerEngine) -> None:
    parts = build_prompt(asking("hello  the\n"), system="be brief", template=builders.CHATML)
    whole = "".join(p.text for p in parts)
    assert engine.vocabulary.tokenize_parts(parts) == engine.vocabulary.tokenize(whole, parse_special=True)


@pytest.mark.parametrize("name", builders.SPECIALS)
def test_typed_control_tokens_stay_text(engine: AnswerEngine, name: str) -> None:
    control = engine.vocabulary.tokenize(name, parse_special=True)
    assert len(control) == 1
    typed, without = (
        engine.vocabulary.tokenize_parts(build_prompt(asking(text), system="", template=builders.CHATML))
        for text in (f"a {name} b", "a  b")
    )
    assert typed.count(control[0]) == without.count(control[0])
    assert len(typed) > len(without) + 3  # it is there, letter by letter


def test_text_around_the_question_is_joined_before_it_is_tokenized(engine: AnswerEngine) -> None:
    parts = [Part("he", True), Part("ll", False), Part("o", True)]
    assert engine.vocabulary.tokenize_parts(parts) == engine.vocabulary.tokenize("hello")
    assert len(engine.vocabulary.tokenize("hello")) == 1


def test_a_character_cut_by_the_limit_is_dropped(engine: AnswerEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = iter([*(bytes([b]) for b in "痛".encode()), b"\xe7", b"\x97"])
    monkeypatch.setattr(engine.vocabulary, "piece", lambda token: next(pieces))
    events: list[tuple[str, dict[str, Any]]] = []
    request = {"messages": [{"role": "user", "content": "q"}], "system": "", "sampling": asdict(Sampling(max_tokens=5))}
    engine.ask(request, lambda event, **fields: events.append((event, fields)))
    assert [f.get("text") for event, f in events if event != "bounded"] == ["痛", None]
    assert events[-1][1]["n_generated"] == 5


@pytest.mark.parametrize(
    ("piece", "ends", "sampling", "words"),
    [
        (b"", False, {"max_tokens": 5}, "5 tokens without any text"),
        (b"\0", False, {"max_tokens": 5, "temperature": 1.0}, "5 tokens without any text"),
        (b"", True, {}, "no answer, but ended it at once"),
        (b"\xe7", False, {"max_tokens": 2}, ""),  # a character that is cut is text
        (b"", False, {"max_tokens": 1}, ""),  # a control token, and no room for what comes after it
        (b"", True, {"grammar": 'root ::= "a"?'}, ""),  # what was asked for
    ],
)
def test_no_text_at_all_is_damage(
    engine: AnswerEngine,
    monkeypatch: pytest.MonkeyPatch,
    piece: bytes,
    ends: bool,
    sampling: dict[str, Any],
    words: str,
) -> None:
    monkeypatch.setattr(engine.vocabulary, "piece", lambda token: piece)
    monkeypatch.setattr(engine.vocabulary, "ends", lambda token: ends)
    request = {"messages": [{"role": "user", "content": "q"}], "system": "", "sampling": sampling}
    if not words:
        engine.ask(request, lambda event, **fields: None)
        return
    with pytest.raises(DataError, match=f"gave {words}; the file is damaged or not for this llama.cpp"):
        engine.ask(request, lambda event, **fields: None)


def test_weights_that_are_zero_are_damage(model: Path, tmp_path: Path) -> None:
    bent = BentGguf(model)
    bent.data = bytes(len(bent.data))
    load = {"path": str(bent.save(tmp_path / "zeros.gguf")), "threads": 1, "gpu_layers": "0"}
    engine = AnswerEngine.load(load, lambda event, **fields: None)
    request = {"messages": [{"role": "user", "content": "q"}], "system": "", "sampling": {}}
    with pytest.raises(DataError, match=r"zeros\.gguf: the model finds every token as likely as any other"):
        engine.ask(request, lambda event, **fields: None)


def reference(path: Path, tokens: list[int]) -> np.ndarray:
    """Log-probabilities (n_tokens, n_vocab) after each token, by llama.cpp in one batch."""
    llama = libllama()
    model = llama.llama_model_load_from_file(str(path).encode(), llama.llama_model_default_params())
    params = llama.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = 512, 512, 512
    context = llama.llama_init_from_model(model, params)
    batch = llama.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.logits[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, i, 1, 1, 0
    assert llama.llama_decode(context, batch) == 0
    n_vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    logits = np.ctypeslib.as_array(llama.llama_get_logits(context), (len(tokens), n_vocab)).astype(np.float64)
    llama.llama_batch_free(batch)
    llama.llama_free(context)
    llama.llama_model_free(model)
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)  # type: ignore[no-any-return]


def test_loglikelihoods_are_those_of_the_model(tiny_gguf: Path) -> None:
    context, continuations = "the cause of hell", ["o", " is 熱 " + "and so on " * 8, "oo!", " x"]
    with jmedlite.Runner(tiny_gguf, threads=1) as runner:
        found = runner.loglikelihoods(context, continuations)
        again = runner.loglikelihoods(context, continuations)
        single = [runner.loglikelihood(context, c) for c in continuations]
        tokens = [runner.tokenize(context + c) for c in continuations]
        n_context = len(runner.tokenize(context))
    assert found == again
    for score, alone, ids in zip(found, single, tokens, strict=True):
        n = len(score.tokens)
        expected = reference(tiny_gguf, ids)[np.arange(len(ids) - n - 1, len(ids) - 1), ids[-n:]]
        assert score.tokens == pytest.approx(expected, abs=1e-2)
        assert score.total == pytest.approx(float(expected.sum()), rel=1e-3)
        assert alone.tokens == pytest.approx(score.tokens, abs=1e-2)
    # " ", "hell" and "o" became one token, which counts as the continuation's
    assert (len(found[0].tokens), len(tokens[0])) == (1, n_context - 1)


def test_greedy_means_the_most_likely_token(tiny_gguf: Path) -> None:
    letters = [chr(c) for c in range(33, 127)]
    greedy = 0
    with jmedlite.Runner(tiny_gguf, threads=1) as runner:
        for question in "abcdefghij":
            scores = runner.loglikelihoods(question, letters, template=True, system="")
            best = max(scores, key=lambda score: score.total)
            assert all(score is best for score in scores if score.greedy)
            greedy += best.greedy
    assert greedy  # a third of all tokens are letters of this kind


def test_continuations_that_can_not_be_scored(tiny_gguf: Path) -> None:
    with jmedlite.Runner(tiny_gguf, threads=1) as runner:
        with pytest.raises(UsageError, match="empty"):
            runner.loglikelihood("hello", "")
        with pytest.raises(DataError, match="too long"):
            runner.loglikelihood("hello", "word " * 3000)
        assert runner.loglikelihood("hello", "x").total < 0


def test_timings_of_the_last_answer(tiny_gguf: Path) -> None:
    with jmedlite.Runner(tiny_gguf, threads=1) as runner:
        answer = runner.ask("q", max_tokens=4)
        t = runner.timings
        assert t == answer.timings
        assert 0 < t["prompt_seconds"] <= t["first_token_seconds"]
        assert t["first_token_seconds"] <= t["prompt_seconds"] + t["generation_seconds"]
        assert answer.generation_tps == pytest.approx(4 / t["generation_seconds"])
        assert runner.plan["fits"]
        assert runner.facts["n_ctx"] == 512


@pytest.mark.skipif(os.name != "posix", reason="kills without a word")
def test_a_killed_parent_leaves_no_model_behind(tiny_gguf: Path) -> None:
    code = (
        "import jmedlite, sys, time; r = jmedlite.Runner(sys.argv[1], threads=1);"
        "print(r.child.process.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tiny_gguf)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    gone, _ = psutil.wait_procs([child], timeout=20)
    assert gone == [child]


def test_the_model_ends_with_its_standard_input(tiny_gguf: Path) -> None:
    """What ends it where there is no signal from the kernel."""
    child = subprocess.Popen(
        [sys.executable, "-m", "jmedlite.runtime.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    child.communicate(b"", timeout=20)
    assert child.returncode == 0


BLOCK = """
import socket, sys
def refuse(*a, **k):
    sys.stderr.write("NETWORK ATTEMPT\\n")
    raise OSError("no network")
socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = refuse
"""


def ask(model: Path, tmp_path: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """`jmedlite ask` in a process, with every attempt to connect reported, in the child too."""
    (tmp_path / "sitecustomize.py").write_text(BLOCK)
    env = os.environ | {"PYTHONPATH": str(tmp_path), "JMEDLITE_STATE": str(tmp_path / "state"), "PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "jmedlite", "ask", "-m", str(model), "--max-tokens", "8", *arguments]
    return subprocess.run(command, env=env, capture_output=True, encoding="utf-8", timeout=60, check=False, **options)


def test_ask_prints_the_answer_and_the_notice_once(model: Path, tmp_path: Path) -> None:
    done = ask(model, tmp_path, "高血圧とは。")
    assert done.returncode == 0, done.stderr
    assert "NETWORK" not in done.stderr
    assert done.stderr.count("診断や治療の判断には使わないでください") == 1
    assert "licence: not stated" in done.stderr
    with jmedlite.Runner(model) as runner:
        assert done.stdout.rstrip() == plain(runner.ask("高血圧とは。", max_tokens=8).text).rstrip()


def ask_here(model: Path, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return run_text("ask", "-m", str(model), "--max-tokens", "8", *arguments, stdin=stdin)


def test_the_options_reach_the_model(model: Path, tmp_path: Path) -> None:
    (tmp_path / "g.gbnf").write_text('root ::= "yes" | "no"', encoding="utf-8")
    (tmp_path / "s.json").write_text('\ufeff{"enum": ["\\"yes\\\\", "😀\\n"]}', encoding="utf-8")
    strict = [
        "--temperature",
        "2",
        "--seed",
        "3",
        "--top-k",
        "1",
        "--min-p",
        "1",
        "--top-p",
        "0",
        "--repeat-penalty",
        "1",
    ]
    plain = ask_here(model, "q").stdout
    other = ask_here(model, "q", *strict, "--no-stream", "--threads", "1", "--flash-attn", "on")
    assert other.stdout == plain
    done = ask_here(model, "q", "--grammar", str(tmp_path / "g.gbnf"), "--timings", "--ctx", "256")
    assert done.stdout.strip() in ("yes", "no")
    for words in ("context 256 tokens (f16)", "load ", "first token after", "from the cache"):
        assert words in done.stderr
    long = ["--max-tokens", "40", "--json-schema"]
    done = ask_here(model, "q", *long, str(tmp_path / "s.json"), "--kv-type", "q8_0", "--no-cache")
    assert json.loads(done.stdout) in ('"yes\\', "😀\n")
    assert "(q8_0)" in done.stderr
    done = ask_here(model, "q", *long, '{"type": "integer", "minimum": 17, "maximum": 18, "minimun": 1}')
    assert json.loads(done.stdout) in (17, 18)
    assert "warning: the JSON schema: #/minimun: `minimun` is no keyword" in done.stderr
    done = ask_here(model, "q", "--json-schema", '{"not": {}}')
    assert (done.returncode, done.stdout) == (65, "")
    missing = ask_here(model, "q", "--grammar", str(tmp_path / "none"))
    assert (missing.returncode, missing.stdout) == (66, "")


@pytest.mark.parametrize("dash", [(), ("-",)])
def test_question_on_standard_input_as_json(model: Path, dash: tuple[str, ...]) -> None:
    done = ask_here(model, "--json", *dash, stdin="What is fever?\n")
    found = json.loads(done.stdout)
    assert found["n_generated"] == 8
    assert found["stop"] == "length"
    assert found["notice"] == "For research only, not for diagnosis or treatment."
    assert set(found["timings"]) >= {"load_seconds", "prompt_seconds", "generation_seconds", "generation_tps"}


def test_help_is_instant_and_loads_nothing_heavy() -> None:
    heavy = ("numpy", "gguf", "llama_cpp", "rich", "jinja2")
    code = f"import sys, jmedlite.cli.app; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_default_model_is_the_last_one_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JMEDLITE_STATE", str(tmp_path / "state"))
    builders.checkpoint(tmp_path / "m")
    made = run_text("quantize", str(tmp_path / "m"), "-b", "8", "-o", str(tmp_path), "--json")
    file = json.loads(made.stdout)["levels"][0]
    assert Path(file["file"]).stat().st_size == file["size_bytes"]
    done = run_text("ask", "hello", "--max-tokens", "2", "--json")
    assert json.loads(done.stdout)["model"]["file"] == "m-Q8_0.gguf"


def test_dry_run_writes_nothing_and_knows_the_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JMEDLITE_STATE", str(tmp_path / "state"))
    builders.checkpoint(tmp_path / "m", "llama")
    command = ["quantize", str(tmp_path / "m"), "-b", "4", "-b", "2", "--json", "-o", str(tmp_path / "o")]
    planned = run_text(*command, "--dry-run")
    assert not (tmp_path / "o").exists()
    made = run_text(*command)
    sizes = [[level["size_bytes"] for level in json.loads(d.stdout)["levels"]] for d in (planned, made)]
    assert (
        sizes[0]
        == sizes[1]
        == [f.stat().st_size for f in (tmp_path / "o" / "m-Q4_K_M.gguf", tmp_path / "o" / "m-Q2_K.gguf")]
    )
