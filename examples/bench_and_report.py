"""Ask every level of a model the same questions, and write the report that says which one to use.

python examples/bench_and_report.py GGUF_FOLDER QUESTIONS.jsonl OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import jmedlite


def main(models: str, questions: str, out: str) -> None:
    jmedlite.bench([models], tasks=[questions], out=out, methods=("text",), rounds=1, limit=20, threads=1)
    report = jmedlite.report([out], ram_bytes=8_000_000_000)
    for sentence in report.reasons("en"):
        print(sentence)
    print(*report.write(Path(out) / "report.html", "en"), sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
