"""What one pass costs against the usual toolchain, taken in turn in one run: wall time, CPU time, memory, disk.

The usual way: merge the adapter with PEFT in RAM and save, `convert_hf_to_gguf.py --outtype bf16`, `llama-quantize`
once per level. Memory is the peak of resident pages, anonymous and file-backed, summed over the process tree and
sampled 20 times a second. Prints a Markdown table, and JSON with --json FILE.

    python tools/compare_toolchain.py --model CHECKPOINT --lora ADAPTER --tools LLAMA_CPP --python PYTHON --work FOLDER

LLAMA_CPP holds `bin/llama-quantize` and `llama.cpp/convert_hf_to_gguf.py`; PYTHON has torch, transformers, peft, gguf.
FOLDER needs room for two 16-bit copies of the model and the outputs.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import psutil

MERGE = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base, adapter, out = sys.argv[1:4]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, low_cpu_mem_usage=True)
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
AutoTokenizer.from_pretrained(base).save_pretrained(out)
"""


@dataclass
class Cost:
    """One command: seconds of wall and CPU time, peak resident bytes of its tree, bytes it left on disk."""

    step: str
    wall_s: float
    cpu_s: float
    peak_bytes: int
    disk_bytes: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            "sum",
            self.wall_s + other.wall_s,
            self.cpu_s + other.cpu_s,
            max(self.peak_bytes, other.peak_bytes),
            self.disk_bytes + other.disk_bytes,
        )


def tree(process: psutil.Process) -> tuple[int, dict[int, float]]:
    """Resident bytes of a process and its children now, and CPU seconds by process id."""
    resident, cpu = 0, {}
    try:
        for p in [process, *process.children(recursive=True)]:
            try:
                resident += p.memory_info().rss
                times = p.cpu_times()
                cpu[p.pid] = times.user + times.system
            except psutil.Error:
                continue
    except psutil.Error:
        pass
    return resident, cpu


def folder_bytes(*paths: Path) -> int:
    files = [f for p in paths for f in ([p] if p.is_file() else p.rglob("*"))]
    return sum(f.stat().st_size for f in files if f.is_file())


def measure(step: str, command: list[str | Path], *outputs: Path, said: IO[bytes] | int = subprocess.DEVNULL) -> Cost:
    """Run a command to its end, its standard output into `said`; raises where it fails."""
    print(f"… {step}", file=sys.stderr, flush=True)
    started = time.monotonic()
    child = psutil.Popen([str(c) for c in command], stdout=said, stderr=subprocess.PIPE)
    text: list[bytes] = []
    reader = threading.Thread(target=lambda: text.append(child.stderr.read()), daemon=True)
    reader.start()
    peak, cpu = 0, dict[int, float]()
    while child.poll() is None:
        resident, now = tree(child)
        peak = max(peak, resident)
        cpu |= now
        time.sleep(0.05)
    wall = time.monotonic() - started
    reader.join()
    if child.returncode:
        sys.exit(f"{step} failed:\n{b''.join(text)[-2000:].decode(errors='replace')}")
    cost = Cost(step, wall, sum(cpu.values()), peak, folder_bytes(*outputs))
    print(f"  {cost.wall_s:.1f} s, {cost.cpu_s:.1f} CPU s, {cost.peak_bytes / 1e9:.2f} GB", file=sys.stderr, flush=True)
    return cost


def row(cost: Cost) -> str:
    return (
        f"| {cost.step} | {cost.wall_s:.1f} | {cost.cpu_s:.1f} | {cost.peak_bytes / 1e9:.2f} | "
        f"{cost.disk_bytes / 1e9:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "lora", "tools", "python", "work"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--one", default="Q4_K_M", help="level of the first comparison")
    parser.add_argument("--many", default="Q8_0,Q6_K,Q4_K_M,Q2_K", help='levels of the second, "" for none')
    parser.add_argument("--fast", default="", help='runs with `--encoder fast`, such as "first,second"')
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    work: Path = args.work
    work.mkdir(parents=True, exist_ok=True)
    quantizer = args.tools / "bin" / "llama-quantize"
    merged, bf16 = work / "merged", work / "bf16.gguf"

    def ours(step: str, levels: list[str], encoder: str = "ggml") -> Cost:
        out = work / "ours"
        shutil.rmtree(out, ignore_errors=True)
        types = [x for level in levels for x in ("--type", level)]
        command = [sys.executable, "-m", "jmedlite", "quantize", args.model, "--lora", args.lora, *types, "--out", out]
        command += ["--encoder", encoder]
        cost = measure(step, command, out)
        left_over = [f.name for f in out.iterdir() if f.suffix not in (".gguf", ".json")]
        if left_over:
            sys.exit(f"left behind: {left_over}")
        shutil.rmtree(out)
        return cost

    def llama_quantize(level: str) -> Cost:
        out = work / f"theirs-{level}.gguf"
        cost = measure(f"llama-quantize {level}", [quantizer, bf16, out, level], out)
        out.unlink()
        return cost

    merge = measure("PEFT merge", [args.python, "-c", MERGE, args.model, args.lora, merged], merged)
    converter = args.tools / "llama.cpp" / "convert_hf_to_gguf.py"
    convert = measure("convert", [args.python, converter, merged, "--outtype", "bf16", "--outfile", bf16], bf16)
    shutil.rmtree(merged)
    quantized = llama_quantize(args.one)
    one = ours(f"jmedlite {args.one}", [args.one])
    fast = [
        ours(f"jmedlite {args.one}, encoder fast, {run}", [args.one], "fast") for run in args.fast.split(",") if run
    ]
    theirs = merge + convert + quantized
    theirs.step = "usual way, sum"
    costs = [merge, convert, quantized, theirs, one, *fast]
    ratios = {
        "wall, one level": one.wall_s / theirs.wall_s,
        "CPU, one level, against llama-quantize alone": one.cpu_s / quantized.cpu_s,
        **{f"wall, {cost.step.partition(', ')[2]}": cost.wall_s / theirs.wall_s for cost in fast},
    }
    if levels := [level for level in args.many.split(",") if level]:
        each = [llama_quantize(level) for level in levels]
        many = ours("jmedlite " + " ".join(levels), levels)
        costs += [*each, many]
        ratios[f"CPU, {len(levels)} levels, against {len(levels)} × llama-quantize"] = many.cpu_s / sum(
            c.cpu_s for c in each
        )
    bf16.unlink()
    print(f"{platform.machine()}, {psutil.cpu_count()} processors, {time.strftime('%Y-%m-%d')}\n")
    print("| step | wall s | CPU s | peak memory GB | written GB |\n| --- | ---: | ---: | ---: | ---: |")
    print("\n".join(row(c) for c in costs))
    print("\n" + "\n".join(f"- {name}: {value:.2f}" for name, value in ratios.items()))
    if args.json:
        args.json.write_text(json.dumps({"costs": [asdict(c) for c in costs], "ratios": ratios}, indent=1))


if __name__ == "__main__":
    main()
