"""Bent copies of GGUF files through every command that reads one: is each outcome a right result or one sentence?

    python tools/fuzz_files.py -n 300 [--seed 0] [--keep FOLDER] [MODEL.gguf …]

Without a model, tiny ones are made: a model, an adapter and an importance matrix, as tests make them. Every copy is
tried in a process of its own, so that the end of a process is a finding like any other; so are tracebacks, mistakes
that jmedlite calls its own, other exit codes, lines without end, and what takes too long. Findings are kept, and
the counts printed: what was tried, by command and exit code. Exit status 1 where something was found.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.support import builders, tasks
from tests.support.bent import bend

MEMORY = 1_500_000_000  # bytes that a command's own process may have at its peak
EXPECTED = {0, 2, 65, 66, 70, 73, 74}


def make_seeds(folder: Path) -> dict[str, Path]:
    """A tiny base, and of it a model, an adapter and an importance matrix as GGUF files."""
    import jmedlite
    from jmedlite.api.quantize import export_adapters
    from jmedlite.calibration.compute import compute_imatrix

    base = builders.checkpoint(folder / "m")
    builders.adapter(folder / "a", base)
    (model,) = jmedlite.quantize(folder / "m", types=["Q4_K_M"], out=folder, threads=1)
    (whole,) = jmedlite.quantize(folder / "m", types=["F32"], out=folder, threads=1)
    adapter = export_adapters(str(folder / "m"), [str(folder / "a")], out=folder, name="adapter").path
    imatrix = folder / "i.gguf"
    tasks.write_task(folder / "task.jsonl", 2)
    text = folder / "text.txt"
    text.write_text("The patient has a fever and a cough. " * 60)
    compute_imatrix(whole, texts=[text], out=imatrix, ctx=64, chunks=2, threads=1)
    return {"model": model, "whole": whole, "adapter": adapter, "imatrix": imatrix, "base": folder / "m"}


def commands(kind: str, bent: Path, seeds: dict[str, Path], out: Path) -> dict[str, list[str]]:
    """What is done with a bent file of this kind, by name."""
    whole, base = str(seeds["whole"]), str(seeds["base"])
    asked = ["--max-tokens", "2", "--no-cache", "-j", "1", "hello"]
    bench = ["-t", f"q={seeds['base'].parent / 'task.jsonl'}", "--rounds", "0", "-j", "1", "-o", str(out / "run")]
    if kind == "adapter":
        return {
            "ask --lora": ["ask", "-m", whole, "--lora", str(bent), *asked],
            "quantize --lora": ["quantize", whole, "--lora", str(bent), "-b", "8", "-j", "1", "-o", str(out)],
        }
    if kind == "imatrix":
        return {
            "quantize --imatrix": ["quantize", base, "-t", "IQ2_XS", "-j", "1", "--imatrix", str(bent), "-o", str(out)]
        }
    return {
        "inspect": ["inspect", str(bent)],
        "inspect --json": ["inspect", "--json", "--check", str(bent)],
        "doctor": ["doctor", str(bent)],
        "ask": ["ask", "-m", str(bent), *asked],
        "bench": ["bench", str(bent), *bench],
        "verify": ["verify", str(bent), "--base", base, "-j", "1"],
        "verify --base": ["verify", whole, "--base", str(bent), "--allow-requantize", "-j", "1"],
        "quantize": ["quantize", str(bent), "--allow-requantize", "-b", "4", "-j", "1", "-o", str(out)],
        "imatrix": ["imatrix", str(bent), "--text", str(seeds["base"].parent / "text.txt"), "--ctx", "64", "--chunks",
                    "1", "-j", "1", "--out", str(out / "i.gguf")],
    }  # fmt: skip


def run(arguments: list[str]) -> tuple[int, str]:
    """The command in this process: exit code and what it said on standard error."""
    from jmedlite.cli.app import main

    streams = {"stdin": io.BytesIO(), "stdout": io.BytesIO(), "stderr": io.BytesIO()}
    kept = {name: getattr(sys, name) for name in (*streams, "argv")}
    try:
        for name, raw in streams.items():
            setattr(sys, name, io.TextIOWrapper(raw, encoding="utf-8", write_through=True))
        sys.argv = ["jmedlite", *arguments]
        try:
            main()
            code = 0
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else int(e.code is not None)
        told = streams["stderr"].getvalue().decode("utf-8", "replace")
        said = streams["stdout"].getvalue().decode("utf-8", "replace")
        return code, told + ("\x1b" * ("\x1b" in said))
    finally:
        for name, value in kept.items():
            setattr(sys, name, value)


def processor_seconds() -> float:
    """What this process and its ended children took of the processor: a busy machine is no finding."""
    return sum(
        t.ru_utime + t.ru_stime for t in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def fault_of(code: int, told: str, seconds: float, limit: float) -> str:
    """What is wrong with an outcome; "" where nothing is."""
    for wrong, name in (
        ("Traceback" in told, "traceback"),
        ("a mistake in jmedlite" in told, "mistake"),
        ("ggml gave up" in told, "ggml ended the parent"),
        (code not in EXPECTED, f"exit {code}"),
        ("\x1b" in told, "control sequence"),
        (max(map(len, told.splitlines()), default=0) > 700, "a line without end"),
        (seconds > limit, f"{seconds:.0f} s"),
        (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > MEMORY, "memory"),
    ):
        if wrong:
            return name
    return ""


def attempt(kind: str, bent: Path, seeds: dict[str, Path], out: Path, limit: float) -> list[dict[str, Any]]:
    """Every command over one bent file, in a process of its own."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reader)
        with os.fdopen(writer, "w") as tell:
            for name, arguments in commands(kind, bent, seeds, out).items():
                tell.write(json.dumps({"begins": name}) + "\n")
                tell.flush()
                signal.alarm(30 * math.ceil(limit))  # of the clock: it hangs, the process ends, and that is the finding
                started = processor_seconds()
                code, told = run(arguments)
                found = fault_of(code, told, processor_seconds() - started, limit)
                last = (told.strip().splitlines() or [""])[-1]
                tell.write(json.dumps({"command": name, "code": code, "fault": found, "told": last}) + "\n")
                tell.flush()
                shutil.rmtree(out)
                out.mkdir()
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as heard:
        lines = [json.loads(line) for line in heard]
    _, status = os.waitpid(pid, 0)
    found = [line for line in lines if "command" in line]
    if status:
        code = os.waitstatus_to_exitcode(status)
        name = next((line["begins"] for line in reversed(lines) if "begins" in line), "start")
        found.append({"command": name, "code": code, "fault": f"the process ended ({code})", "told": ""})
    return found


def main() -> int:
    """Bend, try, count."""
    parse = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parse.add_argument("-n", type=int, default=300, help="copies")
    parse.add_argument("--minutes", type=float, default=math.inf, help="at most so long")
    parse.add_argument("--seconds", type=float, default=10, help="of the processor; what takes longer is a finding")
    parse.add_argument("--seed", type=int, default=0)
    parse.add_argument("--keep", type=Path, help="where findings are kept")
    parse.add_argument("models", nargs="*", type=Path)
    given = parse.parse_args()
    counts: Counter[tuple[str, int]] = Counter()
    findings = 0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        os.environ |= {
            "JMEDLITE_STATE": str(folder / "state"),
            "JMEDLITE_CACHE": str(folder / "c"),
            "HF_HUB_OFFLINE": "1",
        }
        seeds = make_seeds(folder)
        kinds = [("model", m) for m in given.models or [seeds["model"], seeds["whole"], seeds["model"]]]
        kinds += [("adapter", seeds["adapter"]), ("imatrix", seeds["imatrix"])]
        out = folder / "out"
        out.mkdir()
        started = time.monotonic()
        n = 0
        while n < given.n and time.monotonic() - started < 60 * given.minutes:
            i, n = n, n + 1
            rng = random.Random(f"{given.seed} {i}")
            kind, source = rng.choice(kinds)
            bent = folder / "bent.gguf"
            bent.write_bytes(bend(source, rng))
            for found in attempt(kind, bent, seeds, out, given.seconds):
                counts[found["command"], found["code"]] += 1
                if found["fault"]:
                    findings += 1
                    print(
                        f"{given.seed} {i} {kind}: {found['command']}: {found['fault']}: {found['told'][:300]}",
                        flush=True,
                    )
                    if given.keep:
                        given.keep.mkdir(parents=True, exist_ok=True)
                        shutil.copy(bent, given.keep / f"{given.seed}-{i}-{kind}.gguf")
        seconds = time.monotonic() - started
    codes = sorted({code for _, code in counts})
    print(f"| command | tried | {' | '.join(f'exit {c}' for c in codes)} |")
    print("| --- " * (len(codes) + 2) + "|")
    for command in dict.fromkeys(c for c, _ in counts):
        row = [counts[command, code] for code in codes]
        print(f"| `{command}` | {sum(row):,} | {' | '.join(map(str, row))} |")
    print(f"\n{n:,} files, {sum(counts.values()):,} commands, {seconds:.0f} s, {findings} findings")
    return int(findings > 0)


if __name__ == "__main__":
    sys.exit(main())
