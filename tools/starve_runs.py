"""What does a run do that a system gives too little: disk, file sizes, descriptors, memory, folders, a clock, peace?

    python tools/starve_runs.py [COMMAND...] [--without LACK…]

Runs `quantize`, `imatrix`, `bench`, `report` and `ask` on the model that ships, each in a fork of this process and with
one thing lacking: a file system that is full at every tenth of the way (a small tmpfs; needs root) and files that may
not grow beyond it (RLIMIT_FSIZE), few descriptors, little memory (RLIMIT_AS; a cgroup, needs root), no folder for
temporary files, no home, a home that is a file, a clock that goes backwards, another file system for the output, a
second run with the same output. A run must end in a sentence and a known exit code, without a traceback and in time;
what has a name must be whole, nothing hidden may stay, and the same command must then make what an unbroken run makes.
Prints counts; the exit status is 1 where anything is otherwise. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import kill_runs
from kill_runs import EXISTS, OK, STABLE, hidden, names, torn

EXPECTED = {OK, 2, 65, 66, 70, 73, 74, 75, 77}
MEGABYTE = 1 << 20
SECONDS = 120  # of the clock, on a busy machine
Prepare = Callable[[], object]


def limited(what: int, amount: int) -> Prepare:
    """A limit of this process and those that it starts."""
    return lambda: resource.setrlimit(what, (amount, resource.getrlimit(what)[1]))


def more_memory(amount: int) -> Prepare:
    """So much address space beyond what is taken."""

    def prepare() -> None:
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limited(resource.RLIMIT_AS, taken + amount)()

    return prepare


def environment(**values: str | None) -> Prepare:
    def prepare() -> None:
        tempfile.tempdir = None
        for name in ("JMEDLITE_STATE", "JMEDLITE_CACHE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
            if "HOME" in values:
                os.environ.pop(name, None)
        for name, value in values.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value

    return prepare


def backwards() -> None:
    """The system's time, as Python tells it, goes back a minute whenever it is asked for."""
    asked, real = iter(range(1 << 30)), time.time
    time.time = lambda: real() - 60 * next(asked)  # type: ignore[assignment]


@contextmanager
def small_disk(n_bytes: int) -> Iterator[Path]:
    """A file system of this size; PermissionError where none can be made."""
    folder = Path(tempfile.mkdtemp(prefix="small-"))
    size = f"size={max(1, -(-n_bytes // 4096)) * 4096}"
    command = ["mount", "-t", "tmpfs", "-o", size, "none", folder]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        raise PermissionError
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
        folder.rmdir()


@contextmanager
def small_group(n_bytes: int) -> Iterator[Prepare]:
    """A cgroup with so much memory, which a process can enter; PermissionError where none can be made."""
    for root, limit in (("memory", "memory.limit_in_bytes"), ("", "memory.max")):
        group = Path("/sys/fs/cgroup") / root / f"jmedlite-{os.getpid()}-{n_bytes}"
        try:
            group.mkdir()
            (group / limit).write_text(str(n_bytes))
            break
        except OSError:
            with contextlib.suppress(OSError):
                group.rmdir()
    else:
        raise PermissionError
    try:
        yield lambda: (group / "cgroup.procs").write_text(str(os.getpid()))
    finally:
        for _ in range(50):
            with contextlib.suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.1)


class Starver:
    """One command, undisturbed and then in want; `counts` are of (lack, exit status), `faults` what was wrong."""

    def __init__(self, name: str, arguments: list[str], work: Path) -> None:
        self.name, self.arguments, self.work = name, arguments, work
        self.only = STABLE.get(name, ())
        self.counts: Counter[tuple[str, int]] = Counter()
        self.faults: list[str] = []
        golden = work / f"{name}-golden"
        assert self.run(golden)[0] == OK, f"{name} fails undisturbed"
        self.golden = names(golden, self.only)
        self.size = sum(map(len, names(golden).values()))
        self.n = 0

    def run(self, out: Path, prepare: Prepare = lambda: None) -> tuple[int, str]:
        """Exit status of the command in a fork, and what it said."""
        reader, writer = os.pipe()  # no file: that may be what can't be written

        def ready() -> None:
            os.dup2(writer, 2)
            os.closerange(3, 64)
            prepare()

        status = kill_runs.run(self.arguments, out, ready, limit=SECONDS)
        os.close(writer)
        with os.fdopen(reader, errors="replace") as told:
            return status, told.read()

    def lack(
        self, what: str, prepare: Prepare = lambda: None, out: Path | None = None, known: tuple[int, ...] = ()
    ) -> None:
        """Run it so, judge what it did, and then undisturbed."""
        self.n += 1
        place = (out or self.work / f"{self.name}-{self.n}") / "out"
        status, told = self.run(place, prepare)
        self.counts[what.partition(":")[0], status] += 1
        wrong = self.faults
        if status not in {*EXPECTED, *known}:
            wrong.append(f"{what}: exit status {status}: {told[-300:]}")
        if "Traceback" in told or "a mistake in jmedlite" in told:
            wrong.append(f"{what}: {told[-600:]}")
        if status not in (OK, -9) and not [line for line in told.splitlines() if line.startswith("jmedlite: ")]:
            wrong.append(f"{what}: exit status {status} without a sentence: {told[-300:]}")
        found = names(place, self.only)
        wrong += [f"{what}: {each}" for each in torn(found, self.golden)]
        if status == OK and self.golden and found != self.golden:
            wrong.append(f"{what}: ends well, with something else")
        if status != -9 and (left := hidden(place)):
            wrong.append(f"{what}: leaves {left}")
        if out is None:
            again, told = self.run(place)
            if again != OK and not (again == EXISTS and found == self.golden):
                wrong.append(f"{what}: the same command then ends with {again}: {told[-300:]}")
            elif names(place, self.only) != self.golden or hidden(place):
                wrong.append(f"{what}: the same command then makes something else")
            shutil.rmtree(place.parent, ignore_errors=True)

    def all(self, without: set[str]) -> None:
        """Everything that can lack."""
        lacks: dict[str, Callable[[], object]] = {
            "file sizes": self.file_sizes,
            "disk": self.disk,
            "descriptors": lambda: [
                self.lack(f"descriptors: {n}", limited(resource.RLIMIT_NOFILE, n)) for n in (6, 8, 10, 12, 16, 24, 32)
            ],
            "memory": lambda: [
                self.lack(f"memory: {n} MB", more_memory(n * MEGABYTE)) for n in (0, 4, 16, 32, 64, 128, 256, 512, 1024)
            ],
            "cgroup": self.cgroup,
            "folders": self.folders,
            "clock": lambda: self.lack("clock", backwards),
            "peace": self.race,
        }
        for what, tried in lacks.items():
            if what not in without:
                try:
                    tried()
                except PermissionError:
                    print(f"{self.name}: {what} can't be tried here: no permission", flush=True)

    def file_sizes(self) -> None:
        for tenth in range(10):
            self.lack(f"file sizes: {tenth}/10", limited(resource.RLIMIT_FSIZE, max(1, self.size * tenth // 10)))

    def disk(self) -> None:
        for tenth in range(10 if self.golden else 0):
            with small_disk(self.size * tenth // 10) as folder:
                self.lack(f"disk: {tenth}/10", out=folder)

    def cgroup(self) -> None:
        for n in (30, 60, 100, 200):
            with small_group(n * MEGABYTE) as enter:
                self.lack(f"cgroup: {n} MB", enter, known=(-9,))

    def folders(self) -> None:
        file = self.work / "file"
        file.touch()
        self.lack("folders: no TMPDIR", environment(TMPDIR=str(file / "none")))
        self.lack("folders: no HOME", environment(HOME=None))
        self.lack("folders: HOME is a file", environment(HOME=str(file)))
        other = Path(tempfile.mkdtemp(prefix="other-", dir="/dev/shm"))
        self.lack("folders: another file system", out=other)
        shutil.rmtree(other)

    def race(self) -> None:
        """Two at once: one makes it, the other is told so at once or does it after."""
        place = self.work / f"{self.name}-race"
        if (child := os.fork()) == 0:
            os._exit(kill_runs.run(self.arguments, place) & 0xFF)
        mine, told = self.run(place)
        its = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        for status in (mine, its):
            self.counts["peace", status] += 1
        if not {mine, its} <= {OK, 75, EXISTS} or OK not in (mine, its):
            self.faults.append(f"peace: two at once end with {mine} and {its}: {told[-300:]}")
        if names(place, self.only) != self.golden or hidden(place):
            self.faults.append(f"peace: two at once leave {sorted(names(place))} {hidden(place)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="*", help="default: quantize split imatrix bench report ask")
    parser.add_argument("--without", nargs="*", default=[])
    args = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="starve-runs-"))
    os.environ |= {"JMEDLITE_STATE": str(work / "state"), "JMEDLITE_CACHE": str(work / "cache"), "HF_HUB_OFFLINE": "1"}
    lines = kill_runs.prepared(work)
    lines["ask"] = ["ask", "-m", lines["bench"][1], "--max-tokens", "2", "-j", "1", "hello"]
    total: Counter[str] = Counter()
    print("| command | lack | tried | exit statuses |\n| --- | --- | ---: | --- |")
    for name in args.commands or ("quantize", "split", "imatrix", "bench", "report", "ask"):
        starver = Starver(name, lines[name], work)
        starver.all(set(args.without))
        for lack in dict.fromkeys(lack for lack, _ in starver.counts):
            found = {status: n for (of, status), n in sorted(starver.counts.items()) if of == lack}
            print(f"| {name} | {lack} | {sum(found.values())} | {', '.join(f'{s}: {n}' for s, n in found.items())} |")
        total["tried"] += sum(starver.counts.values())
        total["faults"] += len(starver.faults)
        for what in starver.faults:
            print(f"  {name}: {what}", flush=True)
    print(f"\n{total['tried']} runs, {total['faults']} findings")
    shutil.rmtree(work, ignore_errors=True)
    sys.exit(bool(total["faults"]))


if __name__ == "__main__":
    main()
