"""Make the hashes that keep benchmark items out of calibration text: `python tools/hash_benchmark.py FOLDER [OUT]`.

FOLDER is searched for JSON lines with the fields of `jmedlite.calibration.overlap` (such as a clone of IgakuQA); files
that have none of them, like IgakuQA's metadata, are passed over. Only hashes are written, no text.
"""

from __future__ import annotations

import sys
from pathlib import Path

from jmedlite.base.errors import DataError
from jmedlite.calibration import overlap

OUT = Path(__file__).parent.parent / "convert" / "calibration" / "benchmarks.npz"


def main(folder: Path, out: Path = OUT) -> None:
    items: list[tuple[str, str, bool]] = []
    for path in sorted(folder.rglob("*.jsonl")):
        try:
            items += overlap.task_items(path, prefix="IgakuQA ")
        except DataError as e:
            print(f"passed over: {e}")
    prints = overlap.fingerprints(items)
    overlap.save(out, prints)
    stems = {name for name, _, choice in items if not choice}
    print(
        f"{len(items):,} texts of {len(stems):,} items -> {prints.hashes.size:,} windows of {len(prints.ids):,} items"
    )
    print(f"{out}: {out.stat().st_size:,} bytes; without a window: {', '.join(sorted(stems - set(prints.ids))) or '-'}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
