"""Merge a LoRA adapter into a model and write it at two levels, in one pass; then prove what was written.

python examples/merge_and_quantize.py MODEL ADAPTER OUT
"""

from __future__ import annotations

import sys

import jmedlite


def main(model: str, adapter: str, out: str) -> None:
    for path in jmedlite.quantize(model, lora=[adapter], bits=[8, 4], out=out):
        proof = jmedlite.verify(path, base=model, lora=[adapter])
        print(path, "proven" if proof.holds else proof.report.reason())


if __name__ == "__main__":
    main(*sys.argv[1:])
