"""Renders random chat templates, of what takes time and memory, as `ask` does, and counts what comes of them.

    python tools/fuzz_templates.py [--n TEMPLATES] [--seed SEED] [--seconds LIMIT]

Each has a process of its own, which must end by itself: with a prompt, with a named fault, or out of time. The latter
is told as `ask` does, by the first words of the clock's thread: while it lists what ran, the process may end by a
signal. Any other end, or one that comes ten seconds after the limit, is printed as a finding, and the exit code is 1.
POSIX only.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter

import jinja2.sandbox  # noqa: F401 - before the clock starts

from jmedlite.base.errors import DataError
from jmedlite.runtime.bounded import bounded
from jmedlite.runtime.chat_template import Message, build_prompt
from jmedlite.runtime.process import OUT_OF_TIME

LATE = 10.0  # seconds over the limit, on a machine that is busy
RIGHT, FAULT = 0, 65
BEGIN = (
    "{% set x = namespace(s='f' * 90000, a=[], b=[]) %}{% for i in range(6) %}{% set x.s = x.s ~ x.s %}{% endfor %}"
    "{% for i in range(30) %}{% set x.a = [x.a, x.a] %}{% set x.b = [x.b, x.b] %}{% endfor %}"
)
END = "{{ messages[-1].content }}"
ATOMS = (
    "(x.s|int(0, 16))", "(x.s[:2880000]|int(0, 16))", "7", "(-3)", "1.5", "x.s", "x.s[:90]", "x.a", "x.b",
    "range(99999)", "[[0] * 90000] * 30000", "messages", "'%999999999d'", "'{:>999999999}'", "none", "99999",
    "{'a': x.a}",
)  # fmt: skip
BINARY = ("+", "-", "*", "/", "//", "%", "**", "~", "==", "!=", "<", ">=", "in", "and", "or")
FILTERS = (
    "length", "list", "sum(start=[])", "join(x.s)", "sort", "unique|list", "reverse|list", "replace('f', 'ff')",
    "center(999999999)", "indent(999999999)", "wordwrap(1)", "batch(99999999)|list", "slice(99999999)|list", "tojson",
    "pprint", "urlize", "string", "int", "float", "round(9999)", "abs", "max", "min", "first", "last", "trim", "upper",
    "format(1)", "striptags", "escape", "filesizeformat", "wordcount", "map('length')|list", "groupby(0)|list",
)  # fmt: skip
TESTS = ("odd", "divisibleby(x.s[:2880000]|int(0, 16))", "string", "in x.a", "sameas(x.a)", "eq(x.b)")


def expression(rng: random.Random, depth: int = 0) -> str:
    """Something that a template may compute."""
    kind = rng.randrange(6) if depth < 4 else 0
    if kind == 0:
        return rng.choice(ATOMS)
    one = expression(rng, depth + 1)
    if kind == 1:
        return f"({one} is {rng.choice(TESTS)})"
    if kind in (2, 3):
        return f"({one}|{rng.choice(FILTERS)})"
    return f"({one} {rng.choice(BINARY)} {expression(rng, depth + 1)})"


def _render(template: str, seconds: float, told: int) -> None:
    """In a process of its own, which ends here; what it says goes to the file descriptor `told`."""
    os.dup2(told, 2)
    messages = [Message("user", "q")]
    try:
        bounded(lambda event, **_: None, "it", seconds, lambda: build_prompt(messages, system="", template=template))
    except DataError:
        os._exit(FAULT)
    os._exit(RIGHT)


def outcome(template: str, seconds: float) -> str:
    """How the process of a template ends."""
    started = time.monotonic()
    with tempfile.TemporaryFile() as told:
        if not (child := os.fork()):
            try:
                _render(template, seconds, told.fileno())
            finally:
                os._exit(99)
        while time.monotonic() - started < seconds + LATE:
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                told.seek(0)
                if OUT_OF_TIME.encode() in told.read(1 << 16):
                    return "time"
                code = os.waitstatus_to_exitcode(status)
                return {RIGHT: "right", FAULT: "fault"}.get(code, f"FINDING: ended with {code}")
            time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "FINDING: does not end"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1.0)
    asked = parser.parse_args()
    counts = Counter[str]()
    for i in range(asked.n):
        written = expression(random.Random(f"{asked.seed} {i}"))
        template = f"{BEGIN}{{% set y = {written} %}}{{{{ y is none }}}}{END}"
        found = outcome(template, asked.seconds)
        counts[found.partition(":")[0]] += 1
        if found.startswith("FINDING"):
            print(found, written, flush=True)
    print(f"| templates | {asked.n:,} | {', '.join(f'{what} {n:,}' for what, n in counts.most_common())} |")
    return 1 if counts["FINDING"] else 0


if __name__ == "__main__":
    sys.exit(main())
