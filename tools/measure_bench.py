"""The benchmark's speed against what llama.cpp allows, and against lm-evaluation-harness.

    python tools/measure_bench.py MODEL.gguf --tools LLAMA_CPP/bin --igakuqa FOLDER [--questions 24] [--rounds 5]
                                  [--lm-eval PYTHON --checkpoint FOLDER]

For zero and three shots and for `letter` and `text`, in turn in one run: tokens that the engine evaluates per second
(the head once, each stem once, each choice once; tokenizing left out as llama-bench has none) over llama-bench's prompt
processing with the same model, threads, batch and flash attention. Two things make the work per token differ, and each
has a column. Every token looks back at the head of answered examples: `llama-bench at the head's depth` has as many
tokens before its prompt. And the output layer works for every scored token, in llama-bench for none: the last column
also counts each row of logits as the share of the model's multiplications that the output layer is.

With --lm-eval (a Python that has lm-evaluation-harness, with torch) the same questions are scored by its `hf` model on
the checkpoint, in bfloat16, zero-shot, in turn with ours: questions per second.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median as middle

import psutil

from jmedlite.base.gguf import read_header
from jmedlite.benchmarks.backends.base import Loading, LocalModel, Wanted
from jmedlite.benchmarks.backends.packing import GPU_PACK, PACK
from jmedlite.benchmarks.prompts.requests import Ask, make_ask
from jmedlite.benchmarks.prompts.templates import own_template
from jmedlite.benchmarks.tasks.load import load_task
from jmedlite.benchmarks.tasks.sample import draw_examples, stratified
from jmedlite.runtime.hardware import physical_cores

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


def llama_bench(tools: Path, model: Path, threads: int, depth: int, pack: int) -> float:
    """Prompt tokens per second after `depth` tokens."""
    done = subprocess.run(
        [
            tools / "llama-bench", "-m", model, "-p", str(pack), "-n", "0", "-b", str(pack), "-ub", str(pack),
            "-t", str(threads), "-fa", "1", "-d", str(depth), "-r", "3", "-o", "json",
        ],
        capture_output=True, check=True,
    )  # fmt: skip
    return float(json.loads(done.stdout)[0]["avg_ts"])


def make(folder: Path, lang: str, method: str, shots: int, n: int) -> Ask:
    (data,) = load_task(f"igakuqa={folder}", [lang], five_choice=True)
    drawn, data = draw_examples(data, shots, 0)
    data = replace(data, items=tuple(data.items[i] for i in stratified(data.items, n, 0)))
    return make_ask(data, method, own_template(method, lang), drawn, 1, 0)


@dataclass(frozen=True)
class Timed:
    """All questions of an ask, on a loaded model with its head."""

    seconds: float
    n_tokens: int  # evaluated, the head's not among them
    n_outputs: int  # rows of logits
    n_head: int


def ours(path: Path, ask: Ask, loading: Loading) -> Timed:
    with LocalModel(path, loading) as model:
        prepared = model.prepare(Wanted(tuple(ask.prompts())))
        list(model.run(0, 1))  # warm
        started = time.perf_counter()
        found = [a for _, part in model.run(0, len(prepared.starts)) for a in part]
        seconds = time.perf_counter() - started
    outputs = sum(1 + sum(n - 1 for n in a["n_tokens"]) for a in found)
    return Timed(seconds, prepared.n_evaluated, outputs, prepared.n_head)


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


def spread(ratios: Iterable[float]) -> str:
    found = list(ratios)
    return f"{middle(found):.3f} ({min(found):.2f}–{max(found):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tools", type=Path, required=True)
    parser.add_argument("--igakuqa", type=Path, required=True)
    parser.add_argument("--lang", default="ja")
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pack", type=int, default=PACK, help=f"{GPU_PACK} is what a GPU gets")
    parser.add_argument("--lm-eval", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--batch", type=int, default=8, help="lm-evaluation-harness's batch size")
    args = parser.parse_args()
    threads = physical_cores()
    loading = Loading(threads=threads, flash_attn="on", pack=args.pack)
    share = output_share(args.model)
    print(f"{args.model.name}, {platform.machine()}, {psutil.cpu_count()} processors, {time.strftime('%Y-%m-%d')}")
    print(f"output layer: {share:.2f} of the other layers' multiplications per token\n")
    print(
        "| ask | head | questions/s | tokens/s | llama-bench | at the head's depth | ratio | ratio at depth "
        "| at depth, output layer counted |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    )
    for shots in (0, 3):
        for method in ("letter", "text"):
            ask = make(args.igakuqa, args.lang, method, shots, args.questions)
            rounds = []
            for _ in range(args.rounds):
                plain = llama_bench(args.tools, args.model, threads, 0, args.pack)
                timed = ours(args.model, ask, loading)
                depth = timed.n_head
                deep = llama_bench(args.tools, args.model, threads, depth, args.pack) if depth else plain
                rounds.append((timed, plain, deep))
            rates = [t.n_tokens / t.seconds for t, _, _ in rounds]
            cells = [
                f"{method}, {shots}-shot",
                str(timed.n_head),
                f"{middle(len(ask.questions) / t.seconds for t, _, _ in rounds):.2f}",
                f"{middle(rates):.0f}",
                f"{middle(plain for _, plain, _ in rounds):.0f}",
                f"{middle(deep for _, _, deep in rounds):.0f}",
                spread(rate / plain for rate, (_, plain, _) in zip(rates, rounds, strict=True)),
                spread(rate / deep for rate, (_, _, deep) in zip(rates, rounds, strict=True)),
                spread((t.n_tokens + share * t.n_outputs) / t.seconds / deep for t, _, deep in rounds),
            ]
            print(f"| {' | '.join(cells)} |", flush=True)
    if args.lm_eval:
        print("\n| ask | ours, questions/s | lm-evaluation-harness, hf | ratio |\n| --- | ---: | ---: | ---: |")
        for method in ("letter", "text"):
            ask = make(args.igakuqa, args.lang, method, 0, args.questions)
            n = len(ask.questions)
            pairs = [
                (
                    n / ours(args.model, ask, loading).seconds,
                    n / lm_eval(args.lm_eval, args.checkpoint, ask, args.batch),
                )
                for _ in range(max(1, args.rounds // 2))
            ]
            print(
                f"| {method}, 0-shot | {middle(a for a, _ in pairs):.2f} | {middle(b for _, b in pairs):.2f} "
                f"| {spread(a / b for a, b in pairs)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
