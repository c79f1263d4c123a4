"""Proves that a refactoring changed no output: two commits do the same work, and all that they write is compared.

    python tools/compare_commits.py BEFORE AFTER [--work FOLDER] [--quick]

BEFORE and AFTER are revisions of the repository that this script stands in. Each is checked out and installed into an
environment of its own, with the same releases of all it needs. BEFORE's test builders write tiny checkpoints and
adapters of every family, once. Then both commits work on them through their command lines, which are the contract: they
quantize every family to four levels, without and with its adapter, prove and show each file, ask, measure, report, run
the demo, and meet some seventy faults. Compared are exit codes, standard output and error, and the bytes of all files,
but for the values that MEASURED and TOLD name. What follows from measured values is compared all the same: both
commits write their reports on one and the same run folder.

Prints a line for each kind of work and what differs in it; exit status 1 where anything does. The version is part of
the output, so it is raised in another commit. With --work, what is installed stays there for the next time; --quick
takes two families and no demo.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
QUICK = ["qwen2", "gpt_neox"]
LEVELS = {16: "BF16", 8: "Q8_0", 4: "Q4_K_M", 2: "Q2_K"}
BITS = " ".join(f"--bits {bits}" for bits in LEVELS)
SHOWN = 12  # differences of one kind of work that are printed

# JSON values that two runs of one commit do not share, by command or file: only their digits are not compared.
_TIMES = ("load_seconds", "first_token_seconds", "generation_tps")
MEASURED = {
    "quantize": ("seconds",),
    "imatrix": ("seconds",),
    "demo": ("seconds",),
    "bench": ("created",),  # of --dry-run, which shows what run.json would be
    "ask": (*_TIMES, "prompt_seconds", "generation_seconds", "free"),
    "doctor": ("ram_available_bytes", "free"),
    "run.json": ("created",),
    "measures.jsonl": (
        *(*_TIMES, "prompt_tps", "question_seconds"),
        *("peak_rss_bytes", "peak_anonymous_bytes", "peak_file_bytes"),
    ),
}
# The same in sentences: seconds, bytes per second, the memory that is free now, and what a model was seen to take.
TOLD = re.compile(
    r"\b\d+(\.\d+)?(?= s\b)|\d+(\.\d+)? [kMG]?B(?=/s of the original)|\d+\.\d(?= GB available)"
    r"|\d+\.\d+(?= GB of memory in use)"
)

# Run by BEFORE's Python in BEFORE's source.
BUILD = """
import json, sys
from pathlib import Path
try:
    from tests.support import builders
except ImportError:  # as it was up to 61fdc69
    from tests import builders
usual = ("self_attn.q_proj", "mlp.down_proj")
fused = {"gpt_neox": ("attention.query_key_value", "mlp.dense_h_to_4h"), "phi3": ("self_attn.qkv_proj", usual[1])}
for family in builders.FAMILIES:
    base = builders.checkpoint(Path(family), family)
    builders.adapter(Path(f"{family}-lora"), base, modules=fused.get(family, usual))
print(json.dumps(list(builders.FAMILIES)))
"""

# Beginnings of commands, and what makes each of them fail; m: a model, g: a GGUF made of it, bad: g with other bytes.
FAULTS = {
    "": "nonsense | quantize --nonsense | bench {g} | bench none.gguf -t demo | bench {g} -t demo --out gguf"
    " | demo --lang fr | demo --out gguf | recommend gguf | chat -m none.gguf | doctor none.gguf | imatrix none.gguf"
    " | imatrix {g} --text none.txt | quantize {m} --bits 8 --out gguf",
    "quantize --out faulty": "../inputs/none | no-one/nothing | {g} -b 2 | ../inputs/page.gguf | ../inputs/cut.gguf",
    "quantize {m} --out faulty": "--bits 7 | --type Q9 | --type iq2_xs | --memory lots | --memory 20MB | --name ../x"
    " | --threads 0 | --lora {m}-lora:nan | --lora ./nowhere | --lora {other}-lora | --lora {m} | --adapter-only"
    " | --adapter-only --bits 4 | --imatrix ../inputs/page.gguf",
    "inspect": "none.gguf | ../inputs/page.gguf | ../inputs/cut.gguf | {bad} --check --json",
    "verify -j 1": "{g} --base {m} --json | {g} --base {other} | {g} --base {m} --lora {other}-lora | {g} --base none"
    " | {bad} --base {m} --lora {m}-lora --json | ../inputs/cut.gguf --base {m}",
    "ask": "'' -m {g} | ' ' -m {g} | hello -m none.gguf | hello -m gguf | hello -m ../inputs/page.gguf"
    " | hello -m ../inputs/cut.gguf | hello -m {bad} | {long} -m {g}",
    "ask hello -m {g}": "--ctx 3 | --ctx 16 | --lang fr | --temperature nan | --kv-type q1 | --gpu-layers some"
    " | --max-tokens 0 | --lora none.gguf | --lora {g} | --grammar ../inputs/text.txt",
    "bench {g} --out faulty -t": "none | igakuqa | ../inputs/bad.jsonl | x=none.jsonl | demo --method guess",
    "report": "none | gguf | run --out x.txt | run --reference none | run --lang fr | run --margin 0",
}


@dataclass(frozen=True)
class Side:
    """One of the two commits: its installed command, and the folder that it works in."""

    command: Path
    folder: Path

    def run(self, arguments: list[str], stdin: bytes) -> list[str]:
        """Exit code, standard output, standard error; without a network and this user's own settings."""
        own = str(self.folder / "own")
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "JMEDLITE_", "HF_", "OPENAI_"))}
        env |= {"HF_HOME": own, "HF_HUB_OFFLINE": "1", "JMEDLITE_STATE": own, "JMEDLITE_CACHE": own}
        env |= {"COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb", "PYTHONUTF8": "1"}
        command = [self.command, *arguments]
        done = subprocess.run(command, cwd=self.folder, input=stdin, capture_output=True, env=env, check=False)
        told = [x.decode(errors="backslashreplace") for x in (done.stdout, done.stderr)]
        return [str(done.returncode), *(text.replace(f"{self.folder}/", "") for text in told)]


@dataclass
class Group:
    """One kind of work: how many things were compared, and where they differ; printed when it ends."""

    sides: tuple[Side, Side]
    title: str
    compared: Counter[str] = field(default_factory=Counter)
    places: list[str] = field(default_factory=list)

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *_: object) -> None:
        counts = ", ".join(f"{n} {kind}" for kind, n in self.compared.items())
        print(f"{self.title}: {counts}: {f'{len(self.places)} DIFFER' if self.places else 'equal'}", flush=True)
        for place in self.places[:SHOWN]:
            print("  " + place.replace(f"{self.sides[0].folder.parent}/", ""), flush=True)
        if len(self.places) > SHOWN:
            print(f"  and {len(self.places) - SHOWN} more", flush=True)

    def run(self, command: str, stdin: bytes = b"", *, fault: bool = False) -> None:
        """The same command on both sides, at the same time; it must succeed, or with `fault` fail."""
        arguments = shlex.split(command)
        with ThreadPoolExecutor(2) as pool:
            before, after = pool.map(lambda side: side.run(arguments, stdin), self.sides)
        self.compared["faults" if fault else "commands"] += 1
        what = f"jmedlite {command}" if len(command) < 200 else f"jmedlite {command[:200]}…"
        if (before[0] != "0") != fault:
            self.places.append(f"{what}\n    proves nothing, it ended with {before[0]}: {before[2][-300:]}")
        measured = MEASURED.get(arguments[0], ())
        self.check(f"{what}: exit code", before[0], after[0])
        for i, stream in (1, "standard output"), (2, "standard error"):
            self.check(f"{what}: {stream}", *(TOLD.sub("…", settled(x[i], measured)) for x in (before, after)))

    def files(self, *names: str) -> None:
        """The files of folders with these names on both sides."""
        for name in names:
            self.same_files(self.sides[0].folder / name, self.sides[1].folder / name)

    def same_files(self, before: Path, after: Path) -> None:
        """The files of two folders: the same names and the same bytes, but for what is measured."""
        names = [sorted(p.name for p in folder.glob("*") if p.is_file()) for folder in (before, after)]
        self.check(f"{before}, names of files", "\n".join(names[0]), "\n".join(names[1]))
        if not names[0]:
            self.places.append(f"{before}: proves nothing, it is empty")
        for name in sorted({*names[0]} & {*names[1]}):
            old, new = ((folder / name).read_bytes() for folder in (before, after))
            self.compared[f"{Path(name).suffix.lstrip('.').upper()} files"] += 1
            if old != new:
                texts = (x.decode("latin-1" if name.endswith(".gguf") else "utf-8") for x in (old, new))
                self.check(str(before / name), *(settled(text, MEASURED.get(name, ())) for text in texts))

    def check(self, what: str, old: str, new: str) -> None:
        """Two texts must be the same; else, where they begin to differ is kept."""
        if old != new:
            at = next((i for i, (x, y) in enumerate(zip(old, new, strict=False)) if x != y), min(len(old), len(new)))
            near = "".join(f"\n    {x[max(0, at - 60) : at + 60]!r}" for x in (old, new))
            self.places.append(f"{what}: from line {old.count(chr(10), 0, at) + 1} on, character {at:,}{near}")


def settled(text: str, measured: tuple[str, ...]) -> str:
    """JSON without the digits of what is measured; a null there, or a number more in a list, is still a difference."""
    values = re.compile(rf'"({"|".join(measured)})": ("[^"]*"|\[[^\]]*\]|[^\s,}}]+)')
    return values.sub(lambda found: re.sub(r"\d[\d.e+-]*", "…", found[0]), text) if measured else text


def call(*command: str | Path, cwd: Path | None = None) -> str:
    """Standard output of what must succeed."""
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{shlex.join(map(str, command))} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def install(revision: str, work: Path, constraints: Path | None = None) -> Path:
    """The folder of a commit: `source`, `venv`, and `needs.txt`, what is installed beside it."""
    commit = call("git", "-C", REPOSITORY, "rev-parse", "--verify", f"{revision}^{{commit}}").strip()
    home = work / commit[:12]
    if not (home / "needs.txt").exists():  # it is written last
        print(f"installing {commit[:12]} …", file=sys.stderr, flush=True)
        shutil.rmtree(home, ignore_errors=True)
        call("git", "clone", "--quiet", "--shared", "--no-checkout", REPOSITORY, home / "source")
        call("git", "-C", home / "source", "checkout", "--quiet", commit)
        call(sys.executable, "-m", "venv", home / "venv")
        same = ["--constraint", constraints] if constraints else []
        call(home / "venv/bin/pip", "install", "--quiet", *same, home / "source")
        (home / "needs.txt").write_text(call(home / "venv/bin/pip", "freeze", "--exclude", "jmedlite"))
    return home


def prepare(before: str, after: str, work: Path) -> tuple[tuple[Side, Side], list[str]]:
    """Both sides, each with an empty folder, and the families whose checkpoints lie in `inputs` beside these."""
    first = install(before, work)
    second = install(after, work, first / "needs.txt")
    if (first / "needs.txt").read_text() != (second / "needs.txt").read_text():
        sys.exit(f"{first} and {second} hold other releases of what jmedlite needs; remove one of them")
    for name in ("inputs", "before", "after"):
        shutil.rmtree(work / name, ignore_errors=True)
        (work / name).mkdir()
    inputs = work / "inputs"
    command = f"import sys; sys.path.insert(0, {str(first / 'source')!r})\n{BUILD}"
    families = json.loads(call(first / "venv/bin/python", "-c", command, cwd=inputs))
    rows = [
        {"id": i, "question": f"{'何' if i % 3 else 'Which'} {i}?", "choices": ["a", f"{i}", "hello", "the"],
         "answer": i % 4, "group": f"part {i % 2}"} for i in range(24)
    ]  # fmt: skip
    texts = {
        "exam.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "bad.jsonl": '{"question": "?"}\n',
        "text.txt": "hello, the thing is here. " * 60,
        "schema.json": '{"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}',
        "page.gguf": "<html>",
    }
    for name, text in texts.items():
        (inputs / name).write_text(text)
    return (
        Side(first / "venv/bin/jmedlite", work / "before"),
        Side(second / "venv/bin/jmedlite", work / "after"),
    ), families


def compare(sides: tuple[Side, Side], families: list[str], demo: bool) -> list[Group]:
    """One kind of work after the other; the later ones use files of the first ones."""
    done: list[Group] = []

    def start(title: str) -> Group:
        done.append(Group(sides, title))
        return done[-1]

    before, after = (side.folder for side in sides)
    model, lora = "../inputs/{0}".format, " --lora ../inputs/{0}-lora".format
    some, other = QUICK
    base, merged = f"gguf/{some}-BF16.gguf", f"gguf/{some}-{some}-lora-Q4_K_M.gguf"
    # (the file's stem, model, and what merges its adapter)
    cases = [case for x in families for case in ((x, model(x), ""), (f"{x}-{x}-lora", model(x), lora(x)))]

    with start("version, help") as group:
        group.run("--version")
        group.run("--help")
        group.run("bench --list-tasks")
        for name in ("quantize", "imatrix", "ask", "chat", "doctor", "bench", "demo", "inspect", "verify"):
            group.run(f"{name} --help")
        group.run("report --help")
        group.run("recommend --help")

    with start(f"{len(families)} families × {len(LEVELS)} levels, without and with adapter") as group:
        for _, source, adapter in cases:
            group.run(f"quantize {source}{adapter} {BITS} --json --dry-run")
            group.run(f"quantize {source}{adapter} {BITS} --json --out gguf -j 1")
        group.files("gguf")

    with start("inspect and verify, of each of them") as group:
        for stem, source, adapter in cases:
            for level in LEVELS.values():
                group.run(f"inspect gguf/{stem}-{level}.gguf --check --json")
                group.run(f"verify gguf/{stem}-{level}.gguf --base {source}{adapter} --json -j 1")

    with start("adapter files, GGUF as base, split files, importance matrix") as group:
        for family in families:
            group.run(f"quantize {model(family)}{lora(family)} --adapter-only --json --out adapters")
        group.run(f"quantize {base} --lora adapters/{some}-lora.gguf:0.5 --type q5_k_s --out more -j 1")
        group.run(f"quantize {model(some)}{lora(some)} --bits 8 --split-max-size 800kB --out more -j 1")
        group.run(f"imatrix {base} --chunks 2 --ctx 128 --out more/matrix.gguf --json -j 1")
        group.run(f"quantize {model(some)} --imatrix more/matrix.gguf --bits 3 --type IQ2_XS --out more -j 1")
        group.run(f"verify more/{some}-IQ2_XS.gguf --base {model(some)} --imatrix more/matrix.gguf -j 1")
        group.run(f"inspect more/{some}-IQ2_XS.gguf --tensors")
        group.run(f"quantize {model(some)}{lora(some)} --bits 4 --dry-run")
        group.files("adapters", "more")

    with start("ask, chat, doctor") as group:
        short = "--max-tokens 24 -j 1"
        for family in families:
            refused = family == "phi3"  # llama.cpp does not take the builders' vocabulary for it
            group.run(f"ask 'hello there' -m gguf/{family}-{family}-lora-Q4_K_M.gguf --json {short}", fault=refused)
            group.run(f"doctor gguf/{family}-Q8_0.gguf --json")
        group.run(f"ask 貧血とは -m {base} --lora adapters/{some}-lora.gguf --system '' --no-cache {short}")
        group.run(f"ask hello -m {merged} --temperature 1 --seed 7 --repeat-penalty 1.2 {short}")
        group.run(f"ask -m {merged} --json-schema ../inputs/schema.json {short}", "何ですか".encode())
        group.run(f"chat -m {merged} {short}", b"hello\n/help\nand the other?\n/exit\n")

    with start("bench, report, recommend") as group:
        files = " ".join(f"gguf/{some}-{some}-lora-{level}.gguf" for level in LEVELS.values())
        bench = f"bench {files} --task exam=../inputs/exam.jsonl --permutations 2 --shots 1 -j 1"
        text = "--text ../inputs/text.txt --text-ctx 64 --text-chunks 3"
        methods = "--method letter --method text --method generate --max-tokens 8"
        group.run(f"{bench} {methods} {text} --rounds 2 --out run --json")
        group.run(f"{bench} --chat --limit 6 --dry-run --json")
        group.run(f"{bench} --chat --limit 6 --rounds 0 --out small")
        group.run("report ../before/run --ram 8GB --out report/en.html --model-card report/card.md")
        group.run("report ../before/run --ram 8GB --out report/ja.html --lang ja")
        group.run("report ../before/run ../before/small --out report/both.html --json")
        group.run("recommend ../before/run --max-latency 1 --json")
        group.files("run", "small", "report")

    if demo:
        with start("demo, with its report") as group:
            group.run("demo --out demo --json")
            group.files("demo/gguf", "demo/run")
            for side in (before, after):  # both report on either run, and that is what the demo wrote about it
                report = f"report-{side.name}"
                group.run(f"report ../{side.name}/demo/run --reference demo-BF16 --ram 8GB --out {report}/report.html")
                group.files(report)
                group.same_files(side / "demo", side / report)

    with start("faults") as group:
        good = (before / merged).read_bytes()
        (before.parent / "inputs" / "cut.gguf").write_bytes(good[: len(good) // 2])
        bad = f"damaged/{Path(merged).name}"
        for side in (before, after):
            (side / "damaged").mkdir()
            (side / bad).write_bytes(good[:-600] + bytes(600))
            shutil.copy((side / merged).with_suffix(".json"), side / "damaged")  # whose SHA-256 is no longer right
        names = {"m": model(some), "other": model(other), "g": merged, "bad": bad, "long": f"'{'word ' * 3000}'"}
        for beginning, ends in FAULTS.items():
            for end in ends.split(" | "):
                group.run(f"{beginning} {end}".strip().format(**names), fault=True)
        group.run(f"ask -m {merged}", b"\xff\xfe\x00caf\xe9", fault=True)
        group.run(f"ask -m {merged} -", b"a\0b", fault=True)
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("--work", type=Path, help="folder for all of it; default: a temporary one")
    parser.add_argument("--quick", action="store_true", help="two families and no demo")
    args = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        work = (args.work or Path(temporary)).resolve()
        sides, families = prepare(args.before, args.after, work)
        groups = compare(sides, QUICK if args.quick else families, demo=not args.quick)
    n_compared, n_places = sum(g.compared.total() for g in groups), sum(len(g.places) for g in groups)
    result = f"{n_places} DIFFERENCES" if n_places else "no difference"
    print(f"{args.before} and {args.after}: {n_compared} comparisons, {result}; {time.monotonic() - started:.0f} s")
    sys.exit(bool(n_places))


if __name__ == "__main__":
    main()
