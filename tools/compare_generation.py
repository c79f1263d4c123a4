"""Tokens per second of `jmedlite ask` against llama-bench, in turn, on the same file with the same threads.

    python tools/compare_generation.py MODEL.gguf --bench llama-bench [--rounds 5] [--tokens 64]

llama-bench generates from an empty context (`-p 0 -n N`); the runner after a short prompt. Prints both medians and the
median of the ratios pair by pair.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess

import jmedlite
from jmedlite.hardware import physical_cores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--bench", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    threads = physical_cores()
    pairs = []
    with jmedlite.Runner(args.model, threads=threads) as runner:
        for k in range(args.rounds + 1):
            answer = runner.ask("日本の高血圧診療について詳しく説明してください。", max_tokens=args.tokens)
            command = [args.bench, "-m", args.model, "-p", "0", "-n", str(args.tokens), "-r", "1"]
            bench = subprocess.run(
                [*command, "-t", str(threads), "-o", "json"], capture_output=True, text=True, check=True
            )
            theirs = json.loads(bench.stdout)[0]["avg_ts"]
            if k:  # the first round warms up
                pairs.append((answer.generation_tps, theirs))
                print(f"{answer.generation_tps:8.2f} {theirs:8.2f}  {answer.n_generated} tokens", flush=True)
    ours, theirs_all = (statistics.median(p[i] for p in pairs) for i in (0, 1))
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"median tokens/s: jmedlite {ours:.2f}, llama-bench {theirs_all:.2f}, ratio {ratio:.3f}")


if __name__ == "__main__":
    main()
