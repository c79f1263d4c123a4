"""The plan's memory against what `jmedlite ask` really takes, for several files and contexts.

    python tools/measure_memory.py MODEL.gguf... [--ctx 2048 8192 32768] [--kv-type f16]

Predicted is the RAM of the plan that `ask` shows. Measured is the peak, over the whole process tree and sampled ten
times a second, of resident pages, anonymous and file-backed, each page that several processes share counted once (PSS;
the resident set where the system has no PSS). The question fills more than one batch. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

CASE = "A man of 65 years has had fever, cough and chest pain for three days; his pulse is 110 and regular. "
QUESTION = "Which diseases and which tests come to mind?\n" + CASE * 22


def resident(root: psutil.Process) -> int:
    """Bytes resident now in a process and its children."""
    total = 0
    for p in [root, *root.children(recursive=True)]:
        try:
            info = p.memory_full_info()
            total += getattr(info, "pss", 0) or info.rss
        except psutil.Error:
            continue
    return total


def measure(model: Path, ctx: int, kv_type: str) -> tuple[int, int]:
    """(predicted, measured) bytes of one `jmedlite ask`."""
    command = [sys.executable, "-m", "jmedlite", "ask", "-m", str(model), "--ctx", str(ctx), "--kv-type", kv_type]
    child = psutil.Popen(
        [*command, "--max-tokens", "8", "--json", "--no-cache", "-"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    peak, done = 0, threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.is_set():
            try:
                peak = max(peak, resident(child))
            except psutil.Error:
                return
            time.sleep(0.1)

    thread = threading.Thread(target=sample)
    thread.start()
    out, err = child.communicate(QUESTION.encode())
    done.set()
    thread.join()
    if child.returncode:
        sys.exit(err.decode(errors="replace"))
    answer = json.loads(out)
    assert answer["n_prompt"] > 512, answer["n_prompt"]
    return answer["plan"]["places"][0]["total"], peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--ctx", nargs="+", type=int, default=[2048, 8192, 32768])
    parser.add_argument("--kv-type", default="f16")
    args = parser.parse_args()
    print(f"{platform.machine()}, {psutil.cpu_count()} processors, {time.strftime('%Y-%m-%d')}\n")
    print("| file | context | predicted MB | measured MB | predicted / measured |\n| --- | ---: | ---: | ---: | ---: |")
    ratios = []
    for model in args.models:
        for ctx in args.ctx:
            predicted, measured = measure(model, ctx, args.kv_type)
            ratios.append(predicted / measured)
            row = f"{predicted / 1e6:.0f} | {measured / 1e6:.0f} | {ratios[-1]:.3f}"
            print(f"| {model.name} | {ctx:,} | {row} |", flush=True)
    print(f"\nfrom {min(ratios):.3f} to {max(ratios):.3f}")


if __name__ == "__main__":
    main()
