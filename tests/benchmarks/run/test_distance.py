"""Distance without labels: every figure against numpy in float64 and against llama-perplexity; storage; bad luck."""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import scipy.stats

import jmedlite
from jmedlite.base import gguf as layout
from jmedlite.base.errors import CannotCreate, DataError, InputMissing, IoFault, NativeError, UsageError
from jmedlite.benchmarks.backends.base import Loading
from jmedlite.benchmarks.run import distance
from jmedlite.benchmarks.run.distance import SCRATCH, Text, measure_distance
from jmedlite.benchmarks.run.distance_worker import N_ROWS, Kept, scored
from jmedlite.benchmarks.run.divergence import block_intervals, summarize_distance
from jmedlite.calibration.texts import shipped_text
from jmedlite.runtime.divergence import STEPS, Space, record
from tests.support import builders
from tests.support.ggufs import write_experts
from tests.support.long import long_but_for

TEXT = "the hello world of medicine: 胃の痛みと発熱。\n" * 12
LOADING = Loading(1, gpu_layers="0", flash_attn="on")
CTX = 96  # not a multiple of N_ROWS
Models = list[tuple[str, Path]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """The same tiny model in full, at 4 and at 8 bits."""
    folder = tmp_path_factory.mktemp("levels")
    builders.checkpoint(folder / "m")
    levels = ("F32", "Q4_K_M", "Q8_0")
    files = jmedlite.quantize(folder / "m", types=levels, out=folder, name="m", threads=1)
    return [(level, path) for level, path in zip(levels, files, strict=True)]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def measure(models: Models, text: Path, scratch: Path, reference: str = "F32", **options: Any) -> list[dict[str, Any]]:
    found = list(
        measure_distance(models, reference, Text.read(text), LOADING, scratch=scratch, **{"n_ctx": CTX, **options})
    )
    assert list(scratch.iterdir()) == []
    return found


# -------------------------------------------------------------------------------------------- against numpy


def log_probabilities(model: Path, text: str, n_ctx: int) -> tuple[np.ndarray, np.ndarray, int]:
    """(ln p (n, n_vocab) in float64, tokens that follow (n,), chunks), by llama-cpp-python's own class."""
    from llama_cpp import Llama

    llama = Llama(
        str(model), n_ctx=n_ctx, n_batch=N_ROWS, n_ubatch=N_ROWS, n_threads=1, n_threads_batch=1, logits_all=True,
        verbose=False, n_gpu_layers=0, flash_attn=True,
    )  # fmt: skip
    tokens = llama.tokenize(text.encode(), add_bos=True, special=False)
    logits, follow = [], []
    for start in range(0, len(tokens) - n_ctx + 1, n_ctx):
        chunk = tokens[start : start + n_ctx]
        llama.reset()
        llama.eval([tokens[0], *chunk[1:]] if tokens[0] == llama.token_bos() else chunk)
        logits.append(llama.scores[n_ctx // 2 : n_ctx - 1].astype(np.float64))
        follow += chunk[n_ctx // 2 + 1 :]
    x = np.concatenate(logits)
    x -= x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True)), np.array(follow), len(tokens) // n_ctx


def expected(p: np.ndarray, q: np.ndarray, follow: np.ndarray) -> dict[str, float]:
    """llama-perplexity's figures, by their definition."""
    n, at = len(follow), np.arange(len(follow))
    a, b = -q[at, follow], -p[at, follow]
    kl = (np.exp(p) * (p - q)).sum(axis=1)
    var = lambda x: ((x**2).mean() - x.mean() ** 2) / (n - 1)  # noqa: E731
    covariance = ((a * b).mean() - a.mean() * b.mean()) / (n - 1)
    same = (p.argmax(axis=1) == q.argmax(axis=1)).mean()
    return {
        "perplexity": np.exp(a.mean()), "perplexity_error": np.exp(a.mean()) * np.sqrt(var(a)),
        "log_ratio": a.mean() - b.mean(), "log_ratio_error": np.sqrt(max(0, var(a) + var(b) - 2 * covariance)),
        "kl_mean": kl.mean(), "kl_error": np.sqrt(var(kl)), "kl_median": np.median(kl), "kl_max": kl.max(),
        "q0.01": np.percentile(kl, 1), "q0.05": np.percentile(kl, 5), "q0.95": np.percentile(kl, 95),
        "q0.99": np.percentile(kl, 99), "q0.999": np.percentile(kl, 99.9),
        "top_agreement": same, "top_agreement_error": math.sqrt(same * (1 - same) / (n - 1)),
    }  # fmt: skip


def flat(line: dict[str, Any]) -> dict[str, float]:
    figures = {k: v for k, v in line.items() if isinstance(v, float)}
    return figures | {f"q{k}": v for k, v in line.get("kl_quantiles", {}).items()}


@pytest.mark.parametrize("n_ctx", [32, CTX, 129])
def test_equals_numpy(models: Models, text: Path, scratch: Path, n_ctx: int) -> None:
    lines = measure(models[:2], text, scratch, n_ctx=n_ctx)
    p, follow, n_chunks = log_probabilities(models[0][1], TEXT.removesuffix("\n"), n_ctx)
    q, _, _ = log_probabilities(models[1][1], TEXT.removesuffix("\n"), n_ctx)
    assert [(x["model"], x["reference"]) for x in lines] == [("F32", None), ("Q4_K_M", "F32")]
    assert {(x["n_chunks"], x["n_tokens"]) for x in lines} == {(n_chunks, len(follow))}
    assert len(follow) == n_chunks * (n_ctx - 1 - n_ctx // 2)
    of_reference = expected(p, p, follow)
    assert flat(lines[0]) == pytest.approx({k: of_reference[k] for k in ("perplexity", "perplexity_error")}, rel=1e-6)
    # what the 16 bits leave of one position; of a mean, less
    theirs = expected(p, q, follow)
    assert flat(lines[1]) == pytest.approx(theirs, rel=2e-4, abs=1e-6)
    for name in ("perplexity", "log_ratio", "kl_mean"):
        assert flat(lines[1])[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-6)
    assert lines[1]["kl_mean"] > 1e-4


def test_bos_begins_every_chunk(text: Path, scratch: Path, tmp_path: Path) -> None:
    write_experts(tmp_path / "experts.gguf")
    (line,) = measure([("e", tmp_path / "experts.gguf")], text, scratch, "e")
    p, follow, n_chunks = log_probabilities(tmp_path / "experts.gguf", TEXT.removesuffix("\n"), CTX)
    assert line["n_chunks"] == n_chunks
    assert line["perplexity"] == pytest.approx(np.exp(-p[np.arange(len(follow)), follow].mean()), rel=1e-6)


def test_a_model_is_no_distance_from_itself(models: Models, text: Path, scratch: Path) -> None:
    (_, line) = measure([models[1], ("again", models[1][1])], text, scratch, "Q4_K_M")
    assert line["top_agreement"] == 1
    assert line["log_ratio"] == line["log_ratio_error"] == 0
    assert line["kl_max"] < 1e-6


def test_threads_share_rows(models: Models, text: Path, scratch: Path) -> None:
    one = measure(models[:2], text, scratch, chunks=2)
    two = list(
        measure_distance(
            models[:2], "F32", Text.read(text), Loading(3, gpu_layers="0"), scratch=scratch, n_ctx=CTX, chunks=2
        )
    )
    assert [flat(x) for x in two] == [pytest.approx(flat(x), rel=1e-5, abs=1e-6) for x in one]


# ---------------------------------------------------------------------------------------- what 16 bits cost


def distributions(n_vocab: int, n: int, noise: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Logits of a reference and of a level, from nearly certain to nearly flat."""
    rng = np.random.default_rng(0)
    for i in range(n):
        base = rng.standard_normal(n_vocab) * (0.5 + 5 * i / n)
        yield base.astype(np.float32), (base + rng.standard_normal(n_vocab) * noise).astype(np.float32)


def exact(base: np.ndarray, level: np.ndarray) -> float:
    p, q = (x - np.logaddexp.reduce(x) for x in (base.astype(np.float64), level.astype(np.float64)))
    return float((np.exp(p) * (p - q)).sum())


def by_steps_of_the_logarithm(base: np.ndarray, level: np.ndarray) -> float:
    """KL divergence from ln p kept in 65,535 even steps over its top 16 nats, as llama-perplexity keeps it."""
    p, q = (x - np.logaddexp.reduce(x) for x in (base.astype(np.float64), level.astype(np.float64)))
    low = max(p.min(), p.max() - 16)
    step = (p.max() - low) / STEPS
    kept = np.rint(np.maximum(p - low, 0) / step) * step + low
    return float((np.exp(kept) * (kept - q))[kept > -16].sum())


@pytest.mark.parametrize("noise", long_but_for([0.01, 0.1, 1.0], [0.1]))
def test_the_kept_16_bits_cost_less_than_llama_perplexitys(noise: float) -> None:
    n_vocab, space = 151_936, Space(151_936)
    rows = np.empty(1, record(n_vocab))
    ours, theirs = [], []
    for base, level in distributions(n_vocab, 24, noise):
        assert space.keep(base, 5, rows, 0) == pytest.approx(np.logaddexp.reduce(base.astype(np.float64)) - base[5])
        nll, divergence, same = space.compare(level, 5, rows, 0)
        truth = exact(base, level)
        assert abs(divergence - truth) < 2e-6 + 1e-4 * truth
        ours.append(abs(divergence - truth))
        theirs.append(abs(by_steps_of_the_logarithm(base, level) - truth))
        assert nll == pytest.approx(np.logaddexp.reduce(level.astype(np.float64)) - level[5], abs=1e-6)
        assert same == (base.argmax() == level.argmax())
    assert np.mean(ours) < np.mean(theirs) / 5


def test_certain_distributions() -> None:
    """One token has all the probability, and the level gives it to another: nothing overflows."""
    space, rows = Space(1000), np.empty(2, record(1000))
    base, level = np.zeros(1000, np.float32), np.zeros(1000, np.float32)
    base[1], level[2] = 90, 80
    assert space.keep(base, 1, rows, 1) == pytest.approx(0, abs=1e-9)
    nll, divergence, same = space.compare(level, 1, rows, 1)
    assert (nll, divergence, same) == (pytest.approx(80), pytest.approx(80), False)
    assert space.compare(base, 1, rows, 1) == (pytest.approx(0, abs=1e-9), pytest.approx(0, abs=1e-9), True)


def test_intervals_are_of_whole_blocks_drawn_again() -> None:
    """The same draws, with numpy's own quantiles over the drawn positions; blocks that differ make them wider."""
    random = np.random.default_rng(1)
    blocks = random.gamma(0.3, random.uniform(0.1, 3, (12, 1)) ** 2, (12, 40))
    found = block_intervals(blocks, samples=60, seed=5)
    draws = np.random.default_rng(5).multinomial(12, [1 / 12] * 12, size=60)
    low = scipy.stats.norm.cdf(math.sqrt(12 / 11) * scipy.stats.t.ppf(0.025, 11))  # Hesterberg's: wider for few blocks
    drawn = [np.repeat(blocks, times, axis=0) for times in draws]
    assert found["kl_interval"] == pytest.approx(np.quantile([x.mean() for x in drawn], (low, 1 - low)))
    for q, interval in found["kl_quantile_intervals"].items():
        assert interval == pytest.approx(np.quantile([np.quantile(x, float(q)) for x in drawn], (low, 1 - low)))
    shuffled = block_intervals(random.permutation(blocks.ravel()).reshape(blocks.shape))
    width = lambda x: x["kl_interval"][1] - x["kl_interval"][0]  # noqa: E731
    assert width(block_intervals(blocks)) > 1.5 * width(shuffled)


def test_means_of_chunks() -> None:
    kl = np.array([1, 2, 3, 4, 5, 9], np.float64)
    assert summarize_distance(kl, kl, kl, kl > 0, 3)["kl_chunks"] == [1.5, 3.5, 7]


def test_no_intervals_of_few_blocks() -> None:
    few, many = np.ones((9, 4)), np.ones((10, 4))
    for blocks, expected in ((few, None), (many, [1, 1])):
        flat = blocks.ravel()
        assert summarize_distance(flat, flat, flat, flat > 0, len(blocks))["kl_interval"] == expected


def test_one_position_has_no_error() -> None:
    one = np.array([2.0])
    found = summarize_distance(one, one, np.array([0.5]), np.array([True]))
    assert (found["perplexity_error"], found["kl_error"], found["top_agreement_error"]) == (0, 0, 0)


# ------------------------------------------------------------------------------------------------- storage


def test_storage_is_bounded_and_stated(
    models: Models, text: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_vocab = len(layout.read_header(models[0][1]).metadata["tokenizer.ggml.tokens"])
    per_chunk = len(scored(CTX)) * record(n_vocab).itemsize
    assert per_chunk == 47 * (2 * n_vocab + 20)
    told: list[str] = []
    found = []
    for line in measure_distance(
        models,
        "F32",
        Text.read(text),
        LOADING,
        n_ctx=CTX,
        scratch=scratch,
        max_scratch=2 * per_chunk + 1,
        notice=told.append,
    ):
        found.append(line)
        kept = scratch / SCRATCH
        assert kept.stat().st_size == 2 * per_chunk
        if os.name == "posix":
            assert kept.stat().st_mode & 0o777 == 0o600
    assert [x["n_chunks"] for x in found] == [2, 2, 2]
    assert list(scratch.iterdir()) == []
    assert len(told) == 1
    assert re.search(r"text\.txt: 2 of \d+ chunks are used, .* take 5\d\.\d kB of disk", told[0])
    with pytest.raises(CannotCreate, match=r"one chunk of 96 tokens take .* lower --text-ctx"):
        measure(models, text, scratch, max_scratch=per_chunk - 1)
    # a model alone has nothing to be compared with, so nothing is kept
    assert measure(models[:1], text, scratch, max_scratch=1)[0]["n_chunks"] > 2

    usage = shutil.disk_usage(scratch)._replace(free=3 * per_chunk)
    monkeypatch.setattr(distance.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CannotCreate, match=r"run: .* kB are free; use --text-chunks 3"):
        measure(models, text, scratch)
    assert len(measure(models[:2], text, scratch, chunks=3)) == 2


@pytest.mark.usefixtures("cold_children")
@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
def test_the_disk_fails_midway(models: Models, text: Path, scratch: Path) -> None:
    import resource

    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, old[1]))  # the child has it too
    try:
        with pytest.raises(IoFault, match="ulimit -f"):
            measure(models, text, scratch)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert list(scratch.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_named() -> None:
    kept = Kept(Path("/dev/full"), 10, writing=False)
    with pytest.raises(IoFault, match="disk is full"):
        kept.write(kept.new(1))
    kept.close()


def test_a_scratch_file_that_was_cut(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "kept", 10, writing=True)
    kept.write(kept.new(2))
    kept.close()
    kept = Kept(tmp_path / "kept", 10, writing=False)
    assert kept.read(1).size == 1
    with pytest.raises(IoFault, match="ends too early"):
        kept.read(2)
    kept.close()


# ------------------------------------------------------------------------------------------ resume and bad luck


def test_done_models_are_left_alone(models: Models, text: Path, scratch: Path) -> None:
    heard: list[str] = []
    whole = measure(models, text, scratch)

    def again(*done: str) -> list[dict[str, Any]]:
        heard.clear()
        return measure(models, text, scratch, done=done, progress=lambda *told: heard.append(told[3]))

    assert again("F32", "Q4_K_M") == whole[2:]
    assert sorted(set(heard)) == ["F32", "Q8_0"]  # the reference's distributions are gone, so it is evaluated again
    assert again("Q4_K_M", "Q8_0") == whole[:1]
    assert again("F32", "Q4_K_M", "Q8_0") == []
    assert heard == []
    with pytest.raises(
        DataError, match=r"text\.txt: 2 chunks of it were read .* now \d+ would be; repeat --text-chunks"
    ):
        measure(models, text, scratch, done=["F32", "Q4_K_M"], n_done=2)


def test_progress_and_an_early_end(models: Models, text: Path, scratch: Path) -> None:
    heard: list[tuple[object, ...]] = []
    lines = measure_distance(
        models,
        "F32",
        Text.read(text),
        LOADING,
        scratch=scratch,
        n_ctx=CTX,
        chunks=2,
        progress=lambda *x: heard.append(x),
    )
    assert next(lines)["model"] == "F32"
    assert heard == [("text", 0, 2, "F32"), ("text", 1, 2, "F32"), ("text", 2, 2, "F32")]
    assert (scratch / SCRATCH).is_file()
    lines.close()  # type: ignore[attr-defined]
    assert list(scratch.iterdir()) == []


KILLED = """
import sys, time
from pathlib import Path
from jmedlite.benchmarks.backends.base import Loading
from jmedlite.benchmarks.run.distance import Text, measure_distance
def progress(stage, done, total, name):
    if done:
        print("here", flush=True)
        time.sleep(60)
reference, level, text, scratch = map(Path, sys.argv[1:])
list(measure_distance([("F32", reference), ("Q4_K_M", level)], "F32", Text.read(text), Loading(1), scratch=scratch,
                      n_ctx=96, progress=progress))
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a child ends with its standard input")
def test_killed_midway(models: Models, text: Path, scratch: Path) -> None:
    whole = measure(models[:2], text, scratch)
    command = [sys.executable, "-c", KILLED, *(str(p) for _, p in models[:2]), str(text), str(scratch)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"here\n"
        (child,) = psutil.Process(process.pid).children()
        os.kill(process.pid, signal.SIGKILL)
    child.wait(10)
    assert (scratch / SCRATCH).stat().st_size > 0
    assert measure(models[:2], text, scratch) == whole


@pytest.mark.usefixtures("cold_children")
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_the_child_is_killed(models: Models, text: Path, scratch: Path) -> None:
    def progress(stage: str, done: int, total: int, name: str) -> None:
        if name == "Q4_K_M":
            for child in psutil.Process().children():
                if "jmedlite.benchmarks.run.distance_worker" in child.cmdline():
                    child.kill()
                    time.sleep(0.1)

    with pytest.raises(NativeError, match="memory ran out"):
        measure(models[:2], text, scratch, progress=progress)
    assert list(scratch.iterdir()) == []


# --------------------------------------------------------------------------------------------- what is refused


def other_vocabulary(folder: Path) -> Path:
    tokenizer = builders.byte_level_tokenizer()
    builders.checkpoint(folder / "m", vocab_size=builders.n_tokens(tokenizer) + 64)
    (path,) = jmedlite.quantize(folder / "m", types=["F32"], out=folder, threads=1)
    return path


def other_tokens(folder: Path) -> Path:
    write_experts(folder / "experts.gguf")  # the same words, but a BOS before every text
    return folder / "experts.gguf"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (other_vocabulary, "another vocabulary than the reference F32"),
        (other_tokens, "reads the text as other tokens than the reference F32"),
    ],
)
def test_other_vocabularies(
    models: Models, text: Path, scratch: Path, tmp_path: Path, make: Callable[[Path], Path], words: str
) -> None:
    lines = measure_distance(
        [("other", make(tmp_path)), models[0]], "F32", Text.read(text), LOADING, scratch=scratch, n_ctx=CTX, chunks=2
    )
    assert next(lines)["model"] == "F32"
    with pytest.raises(DataError, match=words) as e:
        next(lines)
    assert e.value.exit_code == 65
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("level", [0, 1])
def test_output_that_is_not_finite(models: Models, text: Path, scratch: Path, tmp_path: Path, level: int) -> None:
    damaged = [models[0], models[0]]  # quantized kernels lose a NaN on the way
    name, path = damaged[level]
    header = layout.read_header(path)
    blob = bytearray(path.read_bytes())
    at = header.data_offset + header.by_name["output_norm.weight"].offset
    blob[at : at + 4] = struct.pack("<f", float("nan"))
    (tmp_path / "nan.gguf").write_bytes(blob)
    damaged[level] = (name, tmp_path / "nan.gguf")
    damaged[1] = ("other", damaged[1][1])
    with pytest.raises(DataError, match=r"^nan\.gguf: the model's output is not finite"):
        measure(damaged, text, scratch)
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "options", "kind", "words"),
    [
        (b"hello " * 20, {}, DataError, r"text\.txt: has \d+ tokens, at least 192 are needed for chunks of 96"),
        (b"hello " * 5000, {"n_ctx": 513}, DataError, "513 tokens is longer than the 512 that .* was trained on"),
        (b"\xff\xfe", {}, DataError, r"text\.txt: is not UTF-8"),
        (b"a\0b", {}, DataError, "NUL"),
        (b" \n", {}, DataError, "no text"),
        (b"hello", {"n_ctx": 8}, UsageError, "--text-ctx 8: expected 16 to"),
        (b"hello", {"chunks": 0}, UsageError, "--text-chunks 0"),
        (b"hello", {"reference": "Q2_K"}, UsageError, "Q2_K is not among the models"),
        (None, {}, InputMissing, "no such file"),
    ],
)
def test_faults(
    models: Models, text: Path, scratch: Path, content: bytes | None, options: dict[str, Any], kind: Any, words: str
) -> None:
    if content is None:
        text.unlink()
    else:
        text.write_bytes(content)
    with pytest.raises(kind, match=words):
        measure(models, text, scratch, **options)
    assert list(scratch.iterdir()) == []


def test_missing_places(models: Models, text: Path, scratch: Path, tmp_path: Path) -> None:
    with pytest.raises(InputMissing):
        measure([models[0], ("none", tmp_path / "none.gguf")], text, scratch)
    with pytest.raises(IoFault, match="nowhere"):
        list(measure_distance(models, "F32", Text.read(text), LOADING, scratch=tmp_path / "nowhere", n_ctx=CTX))


# ------------------------------------------------------------------------------------------- llama-perplexity

TOOLS = os.environ.get("JMEDLITE_REFERENCE_TOOLS", "")
REAL = sorted(Path(os.environ.get("JMEDLITE_REAL_MODELS", "/nonexistent")).glob("*-BF16.gguf"))
PRINTED = {
    "perplexity": r"Mean PPL\(Q\)", "log_ratio": r"Mean ln\(PPL\(Q\)/PPL\(base\)\)", "kl_mean": "Mean    KLD",
    "kl_max": "Maximum KLD", "kl_median": "Median  KLD", "q0.999": "99.9%   KLD", "q0.99": "99.0%   KLD",
    "q0.95": "95.0%   KLD", "q0.05": " 5.0%   KLD", "q0.01": " 1.0%   KLD", "top_agreement": "Same top p",
}  # fmt: skip
ERRORS = {"perplexity": "perplexity_error", "log_ratio": "log_ratio_error", "kl_mean": "kl_error",
          "top_agreement": "top_agreement_error"}  # fmt: skip


def printed(log: str) -> dict[str, float]:
    """llama-perplexity's last figures by our names; percent as fractions."""
    found = {}
    for name, label in PRINTED.items():
        value, error = re.findall(label + r" *: *(-?[\d.]+)%?(?: ± *([\d.]+))?", log)[-1]
        scale = 100 if name == "top_agreement" else 1
        found[name] = float(value) / scale
        if error:
            found[ERRORS[name]] = float(error) / scale
    return found


@pytest.mark.realmodel
@pytest.mark.skipif(not TOOLS, reason="JMEDLITE_REFERENCE_TOOLS is not set")
@pytest.mark.parametrize("model", REAL or [None], ids=lambda m: m.name if m else "no BF16 file in JMEDLITE_REAL_MODELS")
def test_equals_llama_perplexity(model: Path | None, tmp_path: Path, scratch: Path) -> None:
    if model is None:
        pytest.skip("JMEDLITE_REAL_MODELS has no *-BF16.gguf")
    level = model.with_name(model.name.replace("BF16", "Q4_K_M"))
    text = tmp_path / "ja.txt"
    text.write_text(shipped_text("ja"), encoding="utf-8")
    # in batches of as many tokens as ours, since the kernels' rounding depends on that
    tool: list[str | Path] = [Path(TOOLS) / "bin" / "llama-perplexity", "-c", "512", "-t", "2", "-ngl", "0"]
    tool += ["-b", str(N_ROWS), "-ub", str(N_ROWS), "--kl-divergence-base", tmp_path / "base"]
    subprocess.run([*tool, "-m", model, "-f", text, "--chunks", "3"], check=True, capture_output=True)
    done = subprocess.run([*tool, "-m", level, "--kl-divergence"], check=True, capture_output=True)
    theirs = printed(done.stdout.decode() + done.stderr.decode())
    _, line = measure_distance(
        [("BF16", model), ("Q4_K_M", level)],
        "BF16",
        Text.read(text),
        Loading(2, gpu_layers="0"),
        scratch=scratch,
        chunks=3,
    )
    ours = flat(line)
    assert theirs.keys() == ours.keys()
    for name, value in theirs.items():
        if name in ERRORS:
            bound = theirs[ERRORS[name]] / 2
        elif name.endswith("_error"):
            bound = value / 50
        else:  # quantiles have no printed error; llama-perplexity's coding moves single positions by as much as this
            bound = 0.001
        assert abs(ours[name] - value) < bound, (name, ours[name], value, bound)
