"""Bends what every reader of JSON reads, in one to three places, and counts what comes of it.

    python tools/fuzz_readers.py [--n INPUTS] [--seed SEED] [READER…]

Prints, for each reader, how many inputs were read as right and how many were refused by which fault. Whatever else is
raised, or takes over two seconds, is a finding: it is printed with the input, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.support.readers import bend, readers

SLOW = 2.0  # seconds of the processor


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--n", type=int, default=2000, help="inputs for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("readers", nargs="*")
    asked = parser.parse_args()
    n_findings = 0
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JMEDLITE_STATE"] = str(Path(folder) / "state")
        known = readers(Path(folder))
        for name in asked.readers or known:
            reader, outcomes, seen = known[name], Counter[str](), set[str]()
            for i in range(asked.n):
                rng = random.Random(f"{asked.seed} {name} {i}")
                document = reader.right
                for _ in range(rng.choice((1, 1, 2, 3))):
                    document = bend(document, rng.randrange) if document else document
                started = time.process_time()
                try:
                    outcome = reader.outcome(document)
                except Exception as e:
                    outcome = "FINDING"
                    place = traceback.extract_tb(e.__traceback__)[-1]
                    told = f"{name}: {type(e).__name__} ({str(e)[:100]}) at {place.filename}:{place.lineno}"
                    if told not in seen:
                        seen.add(told)
                        print(told, json.dumps(document)[:300], sep="\n    ", flush=True)
                if (took := time.process_time() - started) > SLOW:
                    outcome = "FINDING"
                    print(f"{name}: {took:.1f} s: {json.dumps(document)[:300]}", flush=True)
                outcomes[outcome] += 1
            n_findings += outcomes["FINDING"]
            print(
                f"| {name} | {asked.n:,} | {', '.join(f'{k} {v:,}' for k, v in outcomes.most_common())} |", flush=True
            )
    return 1 if n_findings else 0


if __name__ == "__main__":
    sys.exit(main())
