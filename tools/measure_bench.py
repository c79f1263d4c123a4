"""The benchmark's speed against what llama.cpp allows, and against lm-evaluation-harness.

    python tools/measure_bench.py MODEL.gguf --tools LLAMA_CPP/bin --igakuqa FOLDER [--questions 24] [--rounds 5]
                                  [--lm-eval PYTHON --checkpoint FOLDER]

For zero and three shots and for `letter` and `text`, in turn in one run: tokens that the engine evaluates per second
(the head once, each stem once, each choice once; tokenizing left out as llama-bench has none) over llama-bench's prompt
processing with the same model, threads, batch and flash attention. The output layer works for every scored token, in
llama-bench for none, so the work per token differs where choices are long and the vocabulary is large: the last column
counts each row of logits as the share of the model's multiplications that the output layer is.

With --lm-eval (a Python that has lm-evaluation-harness, with torch) the same questions are scored by its `hf` model on
the checkpoint, in bfloat16, zero-shot, in turn with ours: questions per second.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import psutil
from jmedlite.benchmarks.answering import Loading, LocalModel, Wanted
from jmedlite.benchmarks.asking import Ask, make_ask
from jmedlite.benchmarks.datasets import load_task
from jmedlite.benchmarks.engine import PACK
from jmedlite.benchmarks.sample import draw_examples, stratified
from jmedlite.benchmarks.templates import own_template

from jmedlite.base.gguf import read_header
from jmedlite.hardware import physical_cores

LM_EVAL = """
import json, sys, time
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
model = HFLM(pretrained=sys.argv[1], device="cpu", dtype="bfloat16", batch_size=int(sys.argv[3]))
groups = json.load(open(sys.argv[2]))
requests = [Instance("loglikelihood", {}, (c, t), i) for i, (c, ts) in enumerate(groups) for t in ts]
started = time.perf_counter()
model.loglikelihood(requests, disable_tqdm=True)
print(json.dumps(time.perf_counter() - started))
"""


def llama_bench(tools: Path, model: Path, threads: int) -> float:
    """Prompt tokens per second."""
    done = subprocess.run(
        [
            tools / "llama-bench", "-m", model, "-p", str(PACK), "-n", "0", "-b", str(PACK), "-ub", str(PACK),
            "-t", str(threads), "-fa", "1", "-r", "3", "-o", "json",
        ],
        capture_output=True, check=True,
    )  # fmt: skip
    return float(json.loads(done.stdout)[0]["avg_ts"])


def make(folder: Path, lang: str, method: str, shots: int, n: int) -> Ask:
    (data,) = load_task(f"igakuqa={folder}", [lang], five_choice=True)
    drawn, data = draw_examples(data, shots, 0)
    data = replace(data, items=tuple(data.items[i] for i in stratified(data.items, n, 0)))
    return make_ask(data, method, own_template(method, lang), drawn, 1, 0)


def ours(path: Path, ask: Ask, loading: Loading) -> tuple[float, int, int]:
    """(seconds, tokens evaluated, rows of logits) for all questions of an ask, on a loaded model with its head."""
    with LocalModel(path, loading) as model:
        prepared = model.prepare(Wanted(tuple(ask.prompts())))
        list(model.run(0, 1))  # warm
        started = time.perf_counter()
        found = [a for _, part in model.run(0, len(prepared.starts)) for a in part]
        seconds = time.perf_counter() - started
    outputs = sum(1 + sum(n - 1 for n in a["n_tokens"]) for a in found)
    return seconds, prepared.n_evaluated, outputs


def output_share(path: Path) -> float:
    """Multiplications of the output layer over those of all others, per token."""
    header = read_header(path)
    sizes = {t.name: t.shape[0] * t.shape[1] for t in header.tensors if len(t.shape) == 2}
    table = sizes.pop("token_embd.weight")
    return sizes.pop("output.weight", table) / sum(sizes.values())


def lm_eval(python: Path, checkpoint: Path, ask: Ask, batch: int) -> float:
    """Seconds for all questions."""
    groups = [
        ["".join(t for t, _ in [*p["body"], *p["cue"]]), p["continuations"]]
        for p in ask.prompts()
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "groups.json"
        file.write_text(json.dumps(groups))
        done = subprocess.run(
            [python, "-c", LM_EVAL, checkpoint, file, str(batch)], capture_output=True, encoding="utf-8", check=False
        )
    if done.returncode:
        sys.exit(done.stderr)
    return float(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tools", type=Path, required=True)
    parser.add_argument("--igakuqa", type=Path, required=True)
    parser.add_argument("--lang", default="ja")
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lm-eval", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--batch", type=int, default=8, help="lm-evaluation-harness's batch size")
    args = parser.parse_args()
    threads = physical_cores()
    loading = Loading(threads=threads, flash_attn="on")
    share = output_share(args.model)
    print(f"{args.model.name}, {platform.machine()}, {psutil.cpu_count()} processors, {time.strftime('%Y-%m-%d')}")
    print(f"output layer: {share:.2f} of the other layers' multiplications per token\n")
    print("| ask | questions/s | tokens/s | llama-bench | ratio | ratio, output layer counted |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for shots in (0, 3):
        for method in ("letter", "text"):
            ask = make(args.igakuqa, args.lang, method, shots, args.questions)
            rates, references, counted = [], [], []
            for _ in range(args.rounds):
                references.append(llama_bench(args.tools, args.model, threads))
                seconds, n_tokens, n_outputs = ours(args.model, ask, loading)
                rates.append(n_tokens / seconds)
                counted.append((n_tokens + share * n_outputs) / seconds)
            middle = statistics.median
            ratios = [a / b for a, b in zip(rates, references, strict=True)]
            whole = [a / b for a, b in zip(counted, references, strict=True)]
            per = middle(rates) * len(ask.questions) / n_tokens
            print(
                f"| {method}, {shots}-shot | {per:.2f} | {middle(rates):.0f} | {middle(references):.0f} "
                f"| {middle(ratios):.3f} ({min(ratios):.2f}–{max(ratios):.2f}) | {middle(whole):.3f} |",
                flush=True,
            )
    if args.lm_eval:
        print("\n| ask | ours, questions/s | lm-evaluation-harness, hf | ratio |\n| --- | ---: | ---: | ---: |")
        for method in ("letter", "text"):
            ask = make(args.igakuqa, args.lang, method, 0, args.questions)
            n = len(ask.questions)
            pairs = [
                (n / ours(args.model, ask, loading)[0], n / lm_eval(args.lm_eval, args.checkpoint, ask, args.batch))
                for _ in range(max(1, args.rounds // 2))
            ]
            a, b = (statistics.median(p[i] for p in pairs) for i in (0, 1))
            print(f"| {method}, 0-shot | {a:.2f} | {b:.2f} | {a / b:.2f} |", flush=True)


if __name__ == "__main__":
    main()
