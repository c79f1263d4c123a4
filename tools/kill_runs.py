"""What does a run leave that was killed, and does the same command then make what an unbroken run makes?

    python tools/kill_runs.py [--kills 60] [--seed 0] [COMMAND...]

Runs `quantize` (one file, parts, several levels, with an adapter, with --resume), `imatrix`, `bench` and `report` on
the model that ships, in a fork of this process, and ends each --kills times by SIGKILL, SIGTERM and SIGINT in turn:
half of them before or after one of the system calls that flush, name and remove files (spread over all of them), half
at random times. After each, a name must be absent or hold the unbroken run's bytes (bench: a beginning of its lines),
what is opened by its name must be whole, and the same command must then succeed, leave the unbroken run's bytes, and no
hidden file. Prints counts; the exit status is 1 where anything is otherwise. Linux only.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CALLS = ("fsync", "replace", "link", "unlink")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
OK, EXISTS = 0, 73
RESUMING = ("resume",)
STABLE = {"bench": ("items.jsonl", "questions.jsonl", "noise.jsonl")}  # the others hold times


@dataclass
class Counts:
    """What came of the kills of one command."""

    killed: int = 0
    finished: int = 0  # before the signal came
    nothing: int = 0  # no name there afterwards
    part: int = 0
    whole: int = 0
    faults: list[str] = field(default_factory=list)


def commands(work: Path) -> dict[str, list[str]]:
    """The command lines by name; OUT stands for the folder that each writes to."""
    from jmedlite.demo import ADAPTER, MODEL, QUESTIONS

    gguf = str(work / "made" / "m-Q8_0.gguf")
    quantize = ["quantize", str(MODEL), "--name", "m", "-j", "1", "-o", "OUT", "-b", "8"]
    bench = ["bench", gguf, "-t", f"q={QUESTIONS}", "--limit", "8", "--rounds", "0", "-j", "1", "-o"]
    return {
        "quantize": quantize,
        "split": [*quantize, "--split-max-size", "2MB"],
        "levels": [*quantize, "-b", "4", "--split-max-size", "2MB"],
        "adapter": [*quantize, "--lora", str(ADAPTER)],
        "resume": [*quantize, "-b", "4", "--split-max-size", "2MB", "--resume"],
        "imatrix": ["imatrix", gguf, "--ctx", "64", "--chunks", "4", "-j", "1", "-o", "OUT/i.gguf"],
        "bench": [*bench, "OUT"],
        "report": ["report", str(work / "run"), "-o", "OUT/report.html"],
    }


def prepared(work: Path) -> dict[str, list[str]]:
    """The commands, with what they read made and what they import imported, so that every fork has it."""
    import jmedlite.api.bench
    import jmedlite.api.quantize
    import jmedlite.calibration.compute
    import jmedlite.cli.app  # noqa: F401
    from jmedlite.base import kept

    kept.EVERY_SECONDS = 0.0  # every finished tensor is one from which a run goes on

    lines = commands(work)
    assert run(lines["quantize"], work / "made") == OK
    assert run(lines["bench"], work / "run") == OK
    return lines


def run(
    arguments: list[str], out: Path, prepare: Callable[[], object] = lambda: None, after: float = 0, limit: int = 0
) -> int:
    """Exit status of a command in a fork, negative for a signal; `prepare` is done there first.

    With `after` seconds it is sent the signal that `prepare` holds; after `limit` seconds SIGALRM ends it.
    """
    if (child := os.fork()) == 0:
        runs = False
        try:
            quiet = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(quiet, fd)
            sys.argv = ["jmedlite", *(a.replace("OUT", str(out)) for a in arguments)]
            signal.alarm(limit)
            from jmedlite.cli.app import main

            prepare()
            runs = True
            main()
            os._exit(0)
        except KeyboardInterrupt:
            os._exit(70 if runs else 130)  # before it ran, that is Python's business
        except SystemExit as e:
            os._exit(e.code if isinstance(e.code, int) else 0 if e.code is None else 1)
        finally:
            os._exit(70)
    if after:
        time.sleep(after)
        os.kill(child, prepare.number)  # type: ignore[attr-defined]
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Killer:
    """Counts the calls, and at the k-th (before or after it) sends `number`; k = 0: never."""

    def __init__(self, number: int, k: int = 0, after: bool = False, report: Path | None = None) -> None:
        self.number, self.k, self.after, self.report, self.n = number, k, after, report, 0

    def __call__(self) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for name in CALLS:
            setattr(os, name, self._patched(getattr(os, name)))

    def _patched(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self.n += 1
            mine = self.n == self.k
            if self.report:
                self.report.write_text(str(self.n))
            if mine and not self.after:
                os.kill(os.getpid(), self.number)
            try:
                return real(*args, **options)
            finally:
                if mine and self.after:
                    os.kill(os.getpid(), self.number)

        return call


def names(out: Path, only: tuple[str, ...] = ()) -> dict[str, bytes]:
    """What has a name in a folder."""
    if not out.exists():
        return {}
    files = (f for f in sorted(out.iterdir()) if not f.name.startswith(".") and (not only or f.name in only))
    return {f.name: f.read_bytes() for f in files}


def hidden(out: Path) -> list[str]:
    return sorted(f.name for f in out.iterdir() if f.name.startswith(".")) if out.exists() else []


def torn(found: dict[str, bytes], golden: dict[str, bytes]) -> Iterator[str]:
    """Whatever could be taken for whole and is not."""
    for name, content in found.items():
        wanted = golden.get(name)
        if wanted is None or not (wanted.startswith(content) if name.endswith(".jsonl") else content == wanted):
            yield f"{name} is another"
        stem, first, _ = name.rpartition("-00001-of-")
        if first or name == "report.html" or (name.endswith(".gguf") and "-of-" not in name):
            together = [n for n in golden if n.startswith(stem or name.rpartition(".")[0])]
            yield from (f"{name} is there without {n}" for n in together if n not in found)


def survive(name: str, arguments: list[str], work: Path, kills: int, chance: random.Random) -> Counts:
    """Kill one command `kills` times."""
    counts, only = Counts(), STABLE.get(name, ())
    golden_out, report = work / f"{name}-golden", work / "calls"
    started = time.monotonic()
    assert run(arguments, golden_out, Killer(0, report=report)) == OK, f"{name} fails undisturbed"
    seconds, n_calls = time.monotonic() - started, int(report.read_text())
    golden = names(golden_out, only)
    assert not hidden(golden_out), hidden(golden_out)
    for i in range(kills):
        out = work / f"{name}-{i}"
        number = SIGNALS[i % len(SIGNALS)]
        if i % 2:
            where = f"{number.name} at a random time"
            status = run(arguments, out, Killer(number), after=chance.uniform(0.05, 1) * seconds)
        else:
            at = (i // 2) * 2 * n_calls // max(1, kills // 2) if kills // 2 < 2 * n_calls else i // 2
            k, after = at // 2 + 1, bool(at % 2)
            where = f"{number.name} {'after' if after else 'before'} call {k} of {n_calls}"
            status = run(arguments, out, Killer(number, k, after))
        found = names(out, only)
        counts.killed += status != OK
        counts.finished += status == OK
        if status not in (OK, -signal.SIGKILL, 143, 130, -number):
            counts.faults.append(f"{where}: exit status {status}")
        counts.faults += [f"{where}: {what}" for what in torn(found, golden)]
        on_purpose = name in RESUMING and any(file.endswith(".kept") for file in hidden(out))
        if number is not signal.SIGKILL and status != OK and (left := hidden(out)) and not on_purpose:
            counts.faults.append(f"{where}: leaves {left}")
        counts.nothing += not found
        counts.whole += found == golden
        counts.part += found not in ({}, golden)
        again = run(arguments, out)
        if again != OK and not (again == EXISTS and found == golden):
            counts.faults.append(f"{where}: the same command then ends with {again}")
        elif names(out, only) != golden:
            counts.faults.append(f"{where}: the same command then makes something else")
        elif again == OK and hidden(out):
            counts.faults.append(f"{where}: {hidden(out)} stay")
        shutil.rmtree(out, ignore_errors=True)
    return counts


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="*", help="default: all")
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="kill-runs-"))
    os.environ |= {"JMEDLITE_STATE": str(work / "state"), "JMEDLITE_CACHE": str(work / "cache"), "HF_HUB_OFFLINE": "1"}
    lines = prepared(work)
    faults = 0
    print(f"{'command':10} {'killed':>7} {'ended before':>13} {'nothing':>8} {'part':>5} {'whole':>6} {'faults':>7}")
    for name in args.commands or lines:
        c = survive(name, lines[name], work, args.kills, random.Random(args.seed))
        print(
            f"{name:10} {c.killed:7} {c.finished:13} {c.nothing:8} {c.part:5} {c.whole:6} {len(c.faults):7}", flush=True
        )
        for what in c.faults:
            print(f"  {what}", flush=True)
        faults += len(c.faults)
    shutil.rmtree(work, ignore_errors=True)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
