"""The counts of docs/faults.md: rows that tests show, inputs tried on each reader and what they reach, runs killed.

    python tools/count_faults.py [--share 1.0]

Runs the tools that bend what is read and kill what writes, one after another, and prints Markdown tables. `--share` is
how much of the usual numbers is tried: 1 takes an hour and more, 0.05 some minutes. What is named in docs/faults.md as
found is counted from there. The exit status is 1 where anything was found. Linux.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "faults.md"


def rows() -> tuple[int, int, int]:
    """Of docs/faults.md: rows with tests, the tests that they name, what was found and mended."""
    text = DOCUMENT.read_text(encoding="utf-8")
    named = [line for line in text.splitlines() if line.startswith("| ") and "`tests/" in line]
    tests = set(re.findall(r"`(tests/[\w/]+\.py::\w+)`", text))
    _, _, found = text.partition("## What was found")
    mended = [line for line in found.splitlines() if line.startswith("| ") and "`tests/" in line]
    return len(named) - len(mended), len(tests), len(mended)


def commands(share: float) -> dict[str, list[str]]:
    """The tools with their numbers."""

    def some(n: int) -> str:
        return str(max(1, round(n * share)))

    return {
        "fuzz_files.py": ["-n", some(2000)],
        "fuzz_readers.py": ["--n", some(2000)],
        "fuzz_templates.py": ["--n", some(500)],
        "fuzz_bytes.py": ["all", "--seconds", some(300)],
        "fuzz_bytes.py cover": [],
        "kill_runs.py": ["--kills", some(60)],
        "starve_runs.py": [],
    }


def main() -> None:
    parse = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parse.add_argument("--share", type=float, default=1.0)
    share = parse.parse_args().share
    n_rows, n_tests, n_mended = rows()
    print(f"{n_rows} rows with {n_tests} tests; {n_mended} findings, each with its fix and test\n")
    faulty = []
    for name, arguments in commands(share).items():
        tool, *what = name.split()
        started = time.monotonic()
        command = [sys.executable, str(ROOT / "tools" / tool), *what, *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        print(
            f"`tools/{' '.join([name, *arguments])}`, {time.monotonic() - started:.0f} s:\n\n{done.stdout}", flush=True
        )
        if done.returncode:
            faulty.append(name)
    print(f"found something: {', '.join(faulty) or 'none'}")
    sys.exit(bool(faulty))


if __name__ == "__main__":
    main()
