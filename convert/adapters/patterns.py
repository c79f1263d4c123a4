"""Regular expressions of an adapter's configuration, matched within a second, and exactly as PEFT would.

Python's `re` has no time limit, and one call keeps the interpreter's lock, so a process of its own matches, which can
be ended: this file, run by itself. Libraries with limits differ from `re` in what they take and find (`regex`) or lack
look-arounds (RE2). Most adapters name modules by patterns in which nothing repeats; those are matched here.
"""

from __future__ import annotations

import faulthandler
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence

SECONDS = 1.0  # for all patterns of one adapter
START_SECONDS = 60.0  # for the process to start, on a machine that is busy
MAX_BYTES = 1 << 29  # of its memory
ANY_PART = "[^.]*"  # PEFT's layers_pattern where none is given
# how PEFT asks for each: what stands before and after the pattern
FULL, END, LAYER = ("", r"\Z"), (r"(.*\.)?(", ")$"), (r"(?:^|.*?\.)", r"\.(\d+)\.")
Pattern = tuple[tuple[str, str], str]  # one of these, and the pattern
Found = Mapping[str, str | None] | str  # the names that match, with their first group; or why it is unusable


def find(patterns: Sequence[Pattern], names: Sequence[str]) -> dict[Pattern, Found]:
    """What each pattern finds among the names."""
    given = list(dict.fromkeys(patterns))
    foreign = [p for p in given if not _is_quick(p[1])]
    return {p: match(p, names) for p in given if p not in foreign} | dict(
        zip(foreign, _in_a_process(foreign, names) if foreign else (), strict=True)
    )


def _is_quick(pattern: str) -> bool:
    """Whether nothing in it repeats, and nothing is tried in more than one way."""
    return pattern == ANY_PART or re.fullmatch(r"(\\\.|[\w.^$-])*", pattern) is not None


def match(pattern: Pattern, names: Sequence[str]) -> Found:
    """The same for one pattern, however long it takes."""
    (before, after), own = pattern
    try:
        if after == FULL[1]:  # not by what stands around it, or flags could not begin the pattern
            compiled = re.compile(own)
            found = {name: compiled.fullmatch(name) for name in names}
        else:
            compiled = re.compile(f"{before}{own}{after}")
            found = {name: compiled.match(name) for name in names}
    except MemoryError:
        return "needs too much memory"
    except (re.error, OverflowError, RecursionError, ValueError) as e:
        return str(e)
    return {name: m[1] if compiled.groups else None for name, m in found.items() if m}


def _in_a_process(patterns: Sequence[Pattern], names: Sequence[str]) -> list[Found]:
    """The same for several, together within SECONDS."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", __file__],
            input=json.dumps({"patterns": patterns, "names": names}).encode(),
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=START_SECONDS, check=False,
        )  # fmt: skip
        lines = done.stdout.splitlines()
    except subprocess.TimeoutExpired:
        lines = []
    found: list[Found] = [json.loads(line) for line in lines]
    return found + [f"takes over {SECONDS:g} s to match"] * (len(patterns) - len(found))


def _serve() -> None:
    """The process: a line for each pattern, until the time is over; the clock needs no lock of the interpreter's."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    except (ImportError, ValueError, OSError):
        pass  # where there is no such limit, the time alone is
    asked = json.load(sys.stdin)
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    for around, own in asked["patterns"]:
        print(json.dumps(match((tuple(around), own), asked["names"])), flush=True)


if __name__ == "__main__":
    _serve()
