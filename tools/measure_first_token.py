"""How soon a second `jmedlite ask` answers, against what it must do: load the model, evaluate the new tokens.

    python tools/measure_first_token.py MODEL.gguf --bench llama-bench [--rounds 5]

In turn, in every round: `ask` without the cache and with it, from the start of the command to the first byte of the
answer; a Runner that only loads the model; llama-bench, for its prompt rate, of 512 tokens and of as many as are new (a
short batch is slower on a busy machine). The bound is 1.2 × (load + new tokens at that rate). Prints medians, and what
of the time is llama.cpp's own.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time

from jmedlite.runtime.hardware import physical_cores

QUESTION = "熱の原因は何ですか。"
LOAD = "import jmedlite, sys; jmedlite.Runner(sys.argv[1], cache=False).close()"


def ask(model: str, *options: str) -> tuple[float, float, int]:
    """(seconds to the first byte of the answer, seconds llama.cpp loaded, new tokens) of one command."""
    command = [sys.executable, "-m", "jmedlite", "ask", "-m", model, "--max-tokens", "4", "--timings", *options]
    started = time.monotonic()
    child = subprocess.Popen([*command, QUESTION], stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
    assert child.stdout is not None
    child.stdout.read(1)
    seconds = time.monotonic() - started
    err = child.communicate()[1].decode()
    found = re.search(r"load ([\d.]+) s, prompt (\d+) tokens \((\d+) from the cache\)", err)
    if not found:
        sys.exit(err)
    return seconds, float(found[1]), int(found[2]) - int(found[3])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--bench", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    rows: list[tuple[float, ...]] = []
    ask(args.model)  # the cache has the system prompt now
    for _ in range(args.rounds):
        without, _, _ = ask(args.model, "--no-cache")
        seconds, native, n_new = ask(args.model)
        started = time.monotonic()
        subprocess.run([sys.executable, "-c", LOAD, args.model], check=True)
        load = time.monotonic() - started
        bench = [args.bench, "-m", args.model, "-p", f"512,{n_new}", "-n", "0", "-r", "3", "-t", str(physical_cores())]
        done = subprocess.run([*bench, "-o", "json"], capture_output=True, text=True, check=True)
        rate, short = (float(found["avg_ts"]) for found in json.loads(done.stdout))
        ratios = (seconds / (load + n_new / rate), seconds / (load + n_new / short))
        rows.append((without, seconds, load, native, n_new, rate, short, *ratios))
        print(" ".join(f"{x:.2f}" for x in rows[-1]), file=sys.stderr, flush=True)
    columns = zip(*rows, strict=True)
    without, seconds, load, native, n_new, rate, short, ratio, other = map(statistics.median, columns)
    print(f"first token: {seconds:.2f} s with the cache, {without:.2f} s without; {n_new:.0f} new tokens")
    print(f"load alone: {load:.2f} s ({native:.2f} s of it in llama.cpp); llama-bench's prompt rate {rate:.1f}/s")
    print(f"first token / (load + new tokens at that rate): {ratio:.3f}")
    print(f"the same at llama-bench's rate for {n_new:.0f} tokens, {short:.1f}/s: {other:.3f}")


if __name__ == "__main__":
    main()
