"""`jmedlite bench` as a whole: the same bytes again, also after a kill; every question accounted for; faults."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import jmedlite
from jmedlite.api.bench_options import BenchOptions
from jmedlite.base.errors import DataError, InputMissing, IoFault, UsageError
from jmedlite.base.records import from_json
from jmedlite.benchmarks.records import AnswerRecord
from jmedlite.benchmarks.run.folder import DISTANCE, ITEMS, MEASURES, NOISE, QUESTIONS, RUN
from jmedlite.benchmarks.run.run import AskSettings, Judge, ask_all
from jmedlite.benchmarks.views import primary_view
from tests.support import builders
from tests.support import runs as run_builder
from tests.support.commands import run_text
from tests.support.tasks import write_task
from tests.support.warm import COMMAND


@pytest.fixture(scope="module")
def levels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("levels")
    builders.checkpoint(folder / "m", max_position_embeddings=2048)
    jmedlite.quantize(folder / "m", types=["F32", "Q8_0", "Q4_0"], out=folder / "gguf", threads=1)
    return folder / "gguf"


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(tmp_path_factory.mktemp("task") / "organs.jsonl")


def command(levels: Path, task: Path, out: Path, *more: str) -> list[str]:
    base = ["bench", str(levels), "--task", str(task), "--out", str(out)]
    return [*base, "--threads", "1", *more]


ALL = ("--method", "letter", "--method", "text", "--method", "generate", "--max-tokens", "4", "--permutations", "2")


@pytest.fixture(scope="module")
def whole(levels: Path, task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One unbroken run of everything."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    done = run_text(*command(levels, task, out, "--rounds", "1", *ALL))
    assert done.returncode == 0, done.stderr
    assert "F32" in done.stdout
    assert "For research only" in done.stderr
    return out


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_question_is_accounted_for(whole: Path) -> None:
    run = json.loads((whole / RUN).read_text(encoding="utf-8"))
    assert [m["level"] for m in run["models"]] == ["F32", "Q8_0", "Q4_0"]
    assert all(m["base"] == run["models"][0]["base"] for m in run["models"])
    counts = Counter((x["model"], x["task"], x["method"], x["permutation"]) for x in lines(whole / ITEMS))
    assert set(counts.values()) == {12}
    # text shows no choices, so their order is nothing to it
    assert len(counts) == 3 * 2 * (2 + 1 + 2)
    for t in run["tasks"]:
        assert t["n_items"] == t["n_asked"] + sum(t["excluded"].values())
    assert Counter(x["status"] for x in lines(whole / ITEMS)).keys() <= {"scored", "unparsed"}


def test_a_model_that_writes_nothing_is_told_once_all_are_asked() -> None:
    ask: Any = SimpleNamespace(questions=[1, 2], method="generate", dataset=SimpleNamespace(name="t"))

    def told(*texts: tuple[str | None, str | None], chat: bool = True) -> str:
        results = [SimpleNamespace(response=r, thought=t) for r, t in texts]
        folder: Any = SimpleNamespace(
            n_items=2,
            items=lambda start, stop: results[start:stop],
            records=lambda *_: [SimpleNamespace(model="m", task="t", method="generate")],
        )
        model: Any = SimpleNamespace(name="m")
        try:
            ask_all(folder, [model], [ask], AskSettings(chat=chat), lambda *_: None)
        except DataError as e:
            return str(e)
        return ""

    assert told(("", None), ("\0\n", None)).startswith("m: wrote no text for any question; the file is damaged")
    assert "give --chat" in told(("", None), ("", None), chat=False)
    assert told(("", None), ("a", None)) == ""
    assert told(("", "a thought without end"), ("", None)) == ""
    assert told((None, None), (None, None)) == ""  # nobody was asked


def test_measures_and_noise(whole: Path) -> None:
    measures = lines(whole / MEASURES)
    assert len(measures) == 3
    for m in measures:
        assert m["prompt_tps"] > 0
        assert m["generation_tps"] > 0
        assert m["peak_rss_bytes"] > m["kv_bytes"] > 0
        assert len(m["question_seconds"]) == 12
        if sys.platform == "linux":
            assert m["peak_anonymous_bytes"] + m["peak_file_bytes"] >= m["peak_rss_bytes"] > 0
    noise = lines(whole / NOISE)
    assert len(noise) == 3 * 2 * 2
    assert all(n["n"] == 16 or n["method"] == "text" for n in noise)


@pytest.mark.long
def test_killed_and_resumed_it_is_the_same_to_the_byte(levels: Path, task: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    for _ in range(2):
        child = subprocess.Popen(
            [*COMMAND, *command(levels, task, out, "--rounds", "0", *ALL)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        before = (out / ITEMS).stat().st_size if (out / ITEMS).exists() else 0
        while child.poll() is None:
            if (out / ITEMS).exists() and (out / ITEMS).stat().st_size > before:
                os.kill(child.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
                break
            time.sleep(0.01)
        child.wait()
    assert (out / ITEMS).read_bytes() != (whole / ITEMS).read_bytes()
    done = run_text(*command(levels, task, out, "--rounds", "0", *ALL, "--json"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["resumed"] is True
    assert (out / ITEMS).read_bytes() == (whole / ITEMS).read_bytes()
    assert (out / NOISE).read_bytes() == (whole / NOISE).read_bytes()
    assert (out / QUESTIONS).read_bytes() == (whole / QUESTIONS).read_bytes()


def test_a_model_that_changes_while_it_is_asked(levels: Path, task: Path, tmp_path: Path) -> None:
    """No result is kept of what is not the model whose hash stands in run.json."""
    model = tmp_path / "m-Q8_0.gguf"
    shutil.copyfile(next(levels.glob("*Q8_0.gguf")), model)

    def progress(stage: str, done: int, total: int, what: str) -> None:
        if stage == "questions" and what:
            model.write_bytes(model.read_bytes())

    with pytest.raises(IoFault, match=r"m-Q8_0\.gguf: was changed or replaced") as caught:
        jmedlite.bench([model], tasks=[str(task)], out=tmp_path / "run", threads=1, rounds=0, progress=progress)
    assert caught.value.exit_code == 74
    assert not (tmp_path / "run" / ITEMS).exists()


@pytest.mark.long
def test_cut_anywhere_it_is_the_same(levels: Path, task: Path, whole: Path, tmp_path: Path) -> None:
    raw = (whole / ITEMS).read_bytes()
    shutil.copytree(whole, tmp_path / "cut")
    for part in (len(raw) // 3 + 7, len(raw) - 2):
        (tmp_path / "cut" / ITEMS).write_bytes(raw[:part])
        methods = ["letter", "text", "generate"]
        jmedlite.bench(
            [levels], tasks=[str(task)], out=tmp_path / "cut", rounds=1, threads=1, methods=tuple(methods),
            max_tokens=4, permutations=2,
        )  # fmt: skip
        assert (tmp_path / "cut" / ITEMS).read_bytes() == raw


def test_a_finished_run_is_left_as_it_is(levels: Path, task: Path, whole: Path) -> None:
    before = {p.name: p.read_bytes() for p in whole.iterdir()}
    done = run_text(*command(levels, task, whole, "--rounds", "1", *ALL))
    assert done.returncode == 0
    assert {p.name: p.read_bytes() for p in whole.iterdir()} == before


def test_another_seed_is_another_run(levels: Path, task: Path, whole: Path) -> None:
    done = run_text(*command(levels, task, whole, "--rounds", "1", "--seed", "5", *ALL))
    assert done.returncode == 65
    assert "settings.seed was 0, is 5" in done.stderr
    assert done.stderr.count("\n") == 1 + done.stderr.count("checking the files")


def test_the_primary_analysis_is_declared_before_the_run() -> None:
    both = ("text", "generate")
    for options, declared in (
        (BenchOptions(), "letter"),
        (BenchOptions(methods=both), "text:per-token"),
        (BenchOptions(methods=both, primary="generate:exact"), "generate:exact"),
    ):
        assert options.describe()["primary"] == declared
    with pytest.raises(UsageError, match="--primary text: is not asked; add --method text"):
        BenchOptions(primary="text")


def test_a_run_that_may_stop_looks_at_the_primary_analysis() -> None:
    """By sums nothing is ever lost; per token everything is. Of more levels each needs more evidence."""
    q = run_builder.question(0, choices=["a", "b"], answers=[0])
    wrong = {"picks": [1], "correct": False, "margin": 0.2}
    before, after = (
        [from_json(run_builder.answer(q, "m", True, "text", **more), AnswerRecord, "answer")] * 400
        for more in ({}, {"per_token": wrong})
    )
    seen = {}
    for name in ("text:per-token", "text:sum"):
        judge = Judge(before, 2.0, 0.05, primary_view(name, ["text"]))
        seen[name] = judge.sees(after) and judge.test.decided
    assert seen == {"text:per-token": "meaningful loss", "text:sum": "no meaningful loss"}
    assert [Judge(before, 2.0, alpha).sees(before) for alpha in (0.05, 1e-9)] == [True, False]


def test_limit_is_the_same_sample_for_all_and_stratified(levels: Path, task: Path, tmp_path: Path) -> None:
    done = jmedlite.bench([levels], tasks=[str(task)], out=tmp_path, rounds=0, threads=1, limit=6, languages=("en",))
    assert done.n_results == 18
    asked = [x["id"] for x in lines(tmp_path / ITEMS)]
    assert asked[:6] == asked[6:12] == asked[12:]
    groups = {q["id"]: q["group"] for q in lines(tmp_path / QUESTIONS)}
    assert set(Counter(groups[i] for i in asked[:6]).values()) == {2}
    run = json.loads((tmp_path / RUN).read_text(encoding="utf-8"))
    assert run["tasks"][0]["excluded"] == {"not in the sample of --limit 6": 6}


def test_examples_are_never_scored(levels: Path, task: Path, tmp_path: Path) -> None:
    (model,) = levels.glob("*Q8_0.gguf")
    jmedlite.bench([model], tasks=[str(task)], out=tmp_path, rounds=0, threads=1, shots=2, languages=("en",))
    run = json.loads((tmp_path / RUN).read_text(encoding="utf-8"))
    shots = run["asks"][0]["shots"]
    assert len(shots) == 2
    assert not set(shots) & {x["id"] for x in lines(tmp_path / ITEMS)}
    assert run["tasks"][0]["excluded"] == {"used as an example": 2}


def test_dry_run_asks_nothing(levels: Path, task: Path, tmp_path: Path) -> None:
    done = run_text(*command(levels, task, tmp_path / "x", "--dry-run"))
    assert done.returncode == 0
    assert "Which organ is number 0?\nA. heart" in done.stdout
    assert not (tmp_path / "x").exists()


def test_a_damaged_model_is_refused_by_its_manifest(levels: Path, task: Path, tmp_path: Path) -> None:
    shutil.copytree(levels, tmp_path / "gguf")
    (path,) = (tmp_path / "gguf").glob("*Q8_0.gguf")
    raw = bytearray(path.read_bytes())
    raw[-100] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DataError, match="manifest"):
        jmedlite.bench([path], tasks=[str(task)], out=tmp_path / "out", rounds=0)
    assert not (tmp_path / "out").exists()


def test_faults_before_anything_is_written(levels: Path, task: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputMissing):
        jmedlite.bench([tmp_path / "no.gguf"], tasks=[str(task)], out=out)
    with pytest.raises(UsageError, match="--task"):
        jmedlite.bench([levels], tasks=[], out=out)
    with pytest.raises(UsageError, match="--method guess"):
        jmedlite.bench([levels], tasks=[str(task)], out=out, methods=("guess",))
    with pytest.raises(UsageError, match="two models are called"):
        jmedlite.bench([levels, levels], tasks=[str(task)], out=out)
    with pytest.raises(UsageError, match="two tasks are called"):
        jmedlite.bench([levels], tasks=[str(task), str(task)], out=out)
    (tmp_path / "bad.jsonl").write_text('{"id": "1", "question": "?", "choices": ["a", "b"], "answer": "c"}\n')
    with pytest.raises(DataError, match="line 1"):
        jmedlite.bench([levels], tasks=[str(tmp_path / "bad.jsonl")], out=out)
    assert not out.exists()


def test_distance_on_texts(levels: Path, task: Path, tmp_path: Path) -> None:
    text, other = tmp_path / "t.txt", tmp_path / "other.txt"
    text.write_text("The heart pumps the blood. 心臓は血液を送り出す。\n" * 60, encoding="utf-8")
    other.write_text("def pump(blood): return blood[::-1]\n" * 60, encoding="utf-8")
    more: dict[str, Any] = {"rounds": 0, "limit": 2, "text_ctx": 32, "text_chunks": 10}
    options = [x for name, value in more.items() for x in (f"--{name.replace('_', '-')}", str(value))]
    texts = ["--text", str(text), "--text", f"code={other}"]
    done = run_text(*command(levels, task, tmp_path / "run", "--lang", "en", *options, *texts))
    assert done.returncode == 0, done.stderr
    found = lines(tmp_path / "run" / DISTANCE)
    assert [(x["text"], x["text_sha256"]) for x in found] == [
        (name, hashlib.sha256(path.read_bytes()).hexdigest()) for name, path in (("t", text), ("code", other))
        for _ in range(3)
    ]  # fmt: skip
    for of_reference, near, far in (found[:3], found[3:]):
        assert of_reference["reference"] is None and near["reference"] == far["reference"] == of_reference["model"]
        assert 0 < near["kl_mean"] < far["kl_mean"]
        low, high = far["kl_interval"]
        assert low < far["kl_mean"] < high
        assert len(far["kl_chunks"]) == 10
        assert sum(far["kl_chunks"]) / 10 == pytest.approx(far["kl_mean"], rel=1e-5)
        assert far["kl_quantile_intervals"]["0.999"][0] <= far["kl_quantiles"]["0.999"]
    assert not list((tmp_path / "run").glob("*.scratch"))
    # a run of the time when texts had no names goes on, and so does one that lost a line
    old = [{k: v for k, v in x.items() if k != "text" and "interval" not in k} for x in found[:3]]
    (tmp_path / "run" / DISTANCE).write_text("".join(json.dumps(x) + "\n" for x in old), encoding="utf-8")
    more |= {"threads": 1, "languages": ("en",), "text": {"t": text, "code": other}}
    jmedlite.bench([levels], tasks=[str(task)], out=tmp_path / "run", **more)
    assert lines(tmp_path / "run" / DISTANCE) == [*old, *found[3:]]
    other.write_text("Something else. " * 200)
    with pytest.raises(DataError, match="another text code"):
        jmedlite.bench([levels], tasks=[str(task)], out=tmp_path / "run", **more)
    with pytest.raises(UsageError, match="--reference nobody"):
        jmedlite.bench([levels], tasks=[str(task)], out=tmp_path / "other", text=text, reference="nobody")


def test_a_text_that_changes_meanwhile_is_noticed(levels: Path, task: Path, tmp_path: Path) -> None:
    text = tmp_path / "t.txt"
    text.write_text("The heart pumps the blood.\n" * 90, encoding="utf-8")

    def change(stage: str, done: int, *_: object) -> None:
        if stage == "text" and done:
            text.write_text("The heart pumps the flood.\n" * 90, encoding="utf-8")

    with pytest.raises(IoFault, match=r"t\.txt: was changed or replaced while it was read"):
        jmedlite.bench([levels], tasks=[str(task)], out=tmp_path / "run", rounds=0, threads=1, limit=2, text=text,
                       languages=("en",), text_ctx=64, text_chunks=2, progress=change)  # fmt: skip
    assert not (tmp_path / "run" / DISTANCE).exists()


def test_an_early_stop_is_for_reason_and_resumes(levels: Path, tmp_path: Path) -> None:
    """A level that answers as the reference does is decided on long before all is asked; killed, it ends the same."""
    task = write_task(tmp_path / "many.jsonl", 300)
    more = {"languages": ("en",), "rounds": 0, "threads": 1, "stop_when_decided": True, "margin": 10.0}
    files = [next(levels.glob(f"*{level}.gguf")) for level in ("Q8_0", "F32")]
    jmedlite.bench(files, tasks=[str(task)], out=tmp_path / "run", **more)
    found = lines(tmp_path / "run" / ITEMS)
    assert len(found) == 600
    statuses = Counter((x["model"], x["status"]) for x in found)
    reference, level = (next(m for m in {x["model"] for x in found} if name in m) for name in ("F32", "Q8_0"))
    assert found[0]["model"] == reference  # the others are compared with it as they go
    assert statuses[reference, "scored"] == 300
    assert 0 < statuses[level, "not asked"] < 300
    assert [x["id"] for x in found[:300]] != sorted((x["id"] for x in found[:300]), key=lambda i: int(i[2:]))
    raw = (tmp_path / "run" / ITEMS).read_bytes()
    (tmp_path / "run" / ITEMS).write_bytes(raw[: len(raw) * 2 // 3])
    jmedlite.bench(files, tasks=[str(task)], out=tmp_path / "run", **more)
    assert (tmp_path / "run" / ITEMS).read_bytes() == raw
    document = jmedlite.report([tmp_path / "run"]).document
    assert "not asked" not in json.dumps(document["models"])
    with pytest.raises(UsageError, match="--permutations"):
        jmedlite.bench(files, tasks=[str(task)], out=tmp_path / "x", **{**more, "permutations": 2})
    with pytest.raises(UsageError, match="one task"):
        jmedlite.bench(files, tasks=[str(task)], out=tmp_path / "x", **{**more, "languages": ()})
