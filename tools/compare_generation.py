"""Tokens per second of `jmedlite ask` against llama-bench, in turn, on the same file with the same threads.

    python tools/compare_generation.py MODEL.gguf --bench llama-bench [--rounds 5] [--tokens 64] [--prompt 512]

Each round loads the model anew for either, so that neither is measured beside the other's memory. Generation:
llama-bench generates from an empty context (`-p 0 -n N`), the runner after a short prompt. Prompt: the
runner's is a long question after the system prompt, which is cached; its time has the template and the tokenizer in it.
llama-bench evaluates as many tokens (`-p N -n 0`). Prints both medians and the median of the ratios pair by pair.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
from collections.abc import Callable

import jmedlite
from jmedlite.runtime.hardware import physical_cores

QUESTION = "日本の高血圧診療について詳しく説明してください。"
CASE = "A man of 65 years has had fever, cough and chest pain for three days; his pulse is 110 and regular. "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--bench", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=512)
    args = parser.parse_args()
    threads = physical_cores()

    def bench(n_prompt: int, n_generated: int) -> float:
        command = [args.bench, "-m", args.model, "-p", str(n_prompt), "-n", str(n_generated), "-r", "1"]
        done = subprocess.run([*command, "-t", str(threads), "-o", "json"], capture_output=True, text=True, check=True)
        return float(json.loads(done.stdout)[0]["avg_ts"])

    def compare(what: str, ours: Callable[[], tuple[float, int]], theirs: Callable[[int], float]) -> None:
        pairs = []
        for k in range(args.rounds + 1):
            rate, n = ours()
            pairs.append((rate, theirs(n)))
            print(f"{what} {rate:8.2f} {pairs[-1][1]:8.2f}  {n} tokens{'' if k else ' (warming up)'}", flush=True)
        del pairs[0]
        medians = [statistics.median(p[i] for p in pairs) for i in (0, 1)]
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"{what}, median tokens/s: jmedlite {medians[0]:.2f}, llama-bench {medians[1]:.2f}, ratio {ratio:.3f}")

    def generation() -> tuple[float, int]:
        with jmedlite.Runner(args.model, threads=threads) as runner:
            runner.ask(QUESTION, max_tokens=2)  # llama-bench warms up too
            answer = runner.ask(QUESTION, max_tokens=args.tokens)
        return answer.generation_tps, answer.n_generated

    def prompt() -> tuple[float, int]:
        with jmedlite.Runner(args.model, threads=threads) as runner:
            long = CASE * max(1, args.prompt // len(runner.tokenize(CASE)))
            runner.ask(long, max_tokens=1)
            answer = runner.ask(long, max_tokens=1)
        n = answer.n_prompt - answer.n_cached
        return n / answer.timings["prompt_seconds"], n

    compare("generation", generation, lambda n: bench(0, n))
    compare("prompt", prompt, lambda n: bench(n, 0))


if __name__ == "__main__":
    main()
