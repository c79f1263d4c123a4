"""What the number of threads, and how long they spin for each other, cost alone and beside other programs.

    python tools/measure_threads.py MODEL.gguf… [--tokens 64] [--rounds 5] [--busy 0,1,2] [--spins 1000,10000]

Threads that wait for each other spin on their processors. Where another program has one of these, the others spin until
it is given back: once for every product of matrices, which in a tiny model is all the time there is. In turn, in every
round and beside 0, 1 and 2 programs that never rest: all physical cores as they come, one thread, and all cores that
spin no longer than so many rounds (GOMP_SPINCOUNT, for builds with GNU's OpenMP). Prints tokens per second of an answer
and the medians of each round's ratio to all cores as they come, then the ratio of the best rounds (others on the
machine disturb these least); above 1 is faster.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from jmedlite.runtime.hardware import physical_cores
from jmedlite.runtime.runner import Runner

QUESTION = "高血圧の第一選択薬は何ですか。"
LONG = "患者は五十歳の男性である。" * 12  # a prompt of more than a hundred tokens


@contextlib.contextmanager
def busy(n: int) -> Iterator[None]:
    """Beside `n` programs that never rest."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    time.sleep(0.2)
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


@contextlib.contextmanager
def environment(name: str, value: str | None) -> Iterator[None]:
    old = os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if old is not None:
            os.environ[name] = old


def measure(model: Path, threads: int, spins: str | None, n_tokens: int) -> tuple[float, float]:
    """(tokens generated per second, tokens of a prompt per second) of a model, warm."""
    with environment("GOMP_SPINCOUNT", spins), Runner(model, threads=threads, cache=False, ctx=2048) as runner:
        runner.ask(QUESTION, max_tokens=4, system="")
        prompt = runner.ask(LONG, max_tokens=1, system="")
        answer = runner.ask(QUESTION, max_tokens=n_tokens, system="", grammar='root ::= "あ"*')
        return answer.generation_tps, prompt.n_prompt / prompt.timings["prompt_seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--busy", default="0,1,2")
    parser.add_argument("--spins", default="1000,10000")
    args = parser.parse_args()
    cores = physical_cores()
    ways: dict[str, tuple[int, str | None]] = {f"{cores} threads": (cores, None), "1 thread": (1, None)}
    ways |= {f"{cores} threads, spin {n}": (cores, n) for n in args.spins.split(",") if n}
    print("| model | beside | threads | generated/s | ratio | of the best | prompt/s | ratio | of the best |")
    print("| --- | ---: | --- | " + "---: | " * 6)
    for model in args.models:
        for n in map(int, args.busy.split(",")):
            found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
            for _ in range(args.rounds):
                for way, (threads, spins) in ways.items():
                    with busy(n):
                        found[way].append(measure(model, threads, spins, args.tokens))
            first = found[next(iter(ways))]
            for way, rates in found.items():
                cells = []
                for k in range(2):
                    cells.append(f"{statistics.median(r[k] for r in rates):.1f}")
                    cells.append(f"{statistics.median(r[k] / f[k] for r, f in zip(rates, first, strict=True)):.2f}")
                    cells.append(f"{max(r[k] for r in rates) / max(f[k] for f in first):.2f}")
                print(f"| {model.stem} | {n} | {way} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
