"""Fuzzes readers of bytes by coverage (atheris): a result or a named fault, within bounds of time and memory.

    pip install -e '.[fuzz]'
    python tools/fuzz_bytes.py READER [FOLDER] [-max_total_time=120 …]
    python tools/fuzz_bytes.py all --seconds 20 [--jobs 2] [--seed 1]
    python tools/fuzz_bytes.py cover
    python tools/fuzz_bytes.py keep FOLDER

READER is one of those below; FOLDER keeps its corpus, seeded with right files and with what is in tests/corpus. Other
arguments are libFuzzer's. `all` runs every reader for so long, each in a process of its own, and counts; its exit
status is 1 where something was found. `cover` counts which lines of a reader's modules its fixed corpus reaches (those
in functions: the others run when a module is imported), and needs no atheris. `keep` makes tests/corpus of what is in
FOLDER/READER: the inputs that reach lines which no shorter one does. Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import os
import random
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
CORPUS = ROOT / "tests" / "corpus"
MAX_BYTES = 1 << 16
KEPT_BYTES = 1 << 14  # of an input in tests/corpus
SECONDS_EACH, MEGABYTES = 10, 2048  # what one input may take
# Readers of bytes, and those of JSON in groups: an input's first byte says which of them is meant.
OF_BYTES = ("safetensors", "gguf", "imatrix", "bin", "sentencepiece", "rows", "csv", "parquet", "zip")
GROUPS = {
    "checkpoint": ("config.json", "generation_config.json", "index", "model card"),
    "tokenizer": ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tekken.json"),
    "adapter": ("adapter_config.json",),
    "manifest": ("manifest", "models.json", "saved chat"),
    "run-folder": ("run.json", "items.jsonl", "questions.jsonl", "measures.jsonl", "noise.jsonl"),
    "server": ("answers", "models of a server"),
    "task-rows": ("task rows", "overlap rows", "parquet rows"),
}
READERS = (*OF_BYTES, *GROUPS)
_TASKS = tuple(f"benchmarks/tasks/{name}.py" for name in ("rows", "load", "formats", "checking"))
MODULES: dict[str, tuple[str, ...]] = {
    "safetensors": ("convert/sources/checkpoint.py",),
    "gguf": ("jmedlite/base/gguf.py",),
    "imatrix": ("jmedlite/base/imatrix.py", "jmedlite/base/gguf.py"),
    "bin": ("convert/sources/torch_file.py",),
    "sentencepiece": ("convert/metadata/sentencepiece.py",),
    **dict.fromkeys(("rows", "csv", "parquet", "zip"), _TASKS),
    "checkpoint": (
        *(f"convert/families/{name}.py" for name in ("families", "config", "shapes", "settings", "rope")),
        "convert/sources/checkpoint.py", "convert/sources/checkpoint_model.py", "convert/metadata/readable.py",
    ),
    "tokenizer": tuple(
        f"convert/metadata/{name}.py" for name in ("tokenizer", "tokenizer_files", "specials", "added_tokens", "tekken")
    ),
    "adapter": ("convert/adapters/peft.py", "convert/adapters/settings.py", "convert/adapters/patterns.py"),
    "manifest": ("jmedlite/base/manifest.py", "jmedlite/base/records.py", "jmedlite/api/made_models.py"),
    "run-folder": ("benchmarks/report/read.py", "jmedlite/base/records.py"),
    "server": ("benchmarks/backends/responses.py",),
    "task-rows": (*_TASKS, "jmedlite/calibration/overlap.py"),
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """What is fuzzed: right inputs, what reads one, and how one is bent where chance alone would not get far."""

    seeds: list[bytes]
    feed: Callable[[bytes], object]
    mutate: Callable[[bytes, random.Random, Callable[[bytes], bytes]], bytes] | None = None


def target(name: str, folder: Path) -> Target:
    """A reader, on files made in `folder`."""
    os.environ["JMEDLITE_STATE"] = str(folder / "state")
    return _of_bytes(name, folder) if name in OF_BYTES else _group(GROUPS[name], folder)


def _group(names: Sequence[str], folder: Path) -> Target:
    from tests.support.readers import bend, readers

    known = readers(folder)
    members = [known[name] for name in names if name in known]

    def mutate(data: bytes, rng: random.Random, by_chance: Callable[[bytes], bytes]) -> bytes:
        """Something strange at some place of the document, or bytes changed by chance."""
        head, body = data[:1] or b"\0", data[1:]
        reader = members[head[0] % len(members)]
        if rng.random() < 0.7:
            with contextlib.suppress(Exception):  # what can't be parsed any more
                return head + reader.encode(bend(reader.decode(body), rng.randrange))
        return head + by_chance(body)

    return Target(
        [bytes([i]) + reader.encode(reader.right) for i, reader in enumerate(members)],
        lambda data: members[data[0] % len(members)].feed(data[1:]) if data else None,
        mutate,
    )


def _of_bytes(name: str, folder: Path) -> Target:
    from jmedlite.base.gguf import read_header
    from jmedlite.base.imatrix import read_imatrix
    from jmedlite.benchmarks.tasks.load import load_task
    from jmedlite.benchmarks.tasks.rows import zip_members
    from jmedlite.convert.metadata.sentencepiece import read_sentencepiece
    from jmedlite.convert.sources.checkpoint import read_safetensors_header
    from jmedlite.convert.sources.torch_file import read_torch_file

    endings: dict[str, tuple[str, Callable[[Path], object]]] = {
        "safetensors": (".safetensors", read_safetensors_header),
        "gguf": (".gguf", read_header),
        "imatrix": (".gguf", read_imatrix),
        "bin": (".bin", read_torch_file),
        "sentencepiece": (".model", read_sentencepiece),
        "rows": (".jsonl", lambda path: load_task(f"own={path}")),
        "csv": (".csv", lambda path: load_task(f"own={path}")),
        "parquet": (".parquet", lambda path: load_task(f"own={path}")),
        "zip": (".zip", lambda path: zip_members(path, ["q.csv"])),
    }
    ending, read = endings[name]
    path = folder / f"x{ending}"

    def feed(data: bytes) -> object:
        path.write_bytes(data)
        return read(path)

    return Target(_seeds(name, folder), feed, {"bin": _in_torch_file, "zip": _in_zip}.get(name))


def _seeds(name: str, folder: Path) -> list[bytes]:
    """Right files of a kind, small ones."""
    import numpy as np

    from tests.support import builders, tasks, torch_files

    few = {"model.embed_tokens.weight": np.ones((2, 4), np.float32), "model.norm.weight": np.ones(4, np.float32)}
    place = folder / "seed"
    match name:
        case "safetensors":
            builders.write_safetensors(place, few, "F32")
        case "bin":
            torch_files.write_torch_file(place, few, "F32")
        case "gguf" | "imatrix":
            _write_gguf(place, is_imatrix=name == "imatrix")
        case "sentencepiece":
            builders.write_sentencepiece(place, [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("▁a", -1.0, 1)])
        case "rows":
            tasks.write_task(place, 2)
        case "csv":
            place.write_text("id,question,A,B,answer\n1,q,x,y,A\n", encoding="utf-8")
        case "zip":
            with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("test/q.csv", "a,b\n" * 9)
        case "parquet":
            import pyarrow.parquet

            rows = [{"id": "1", "question": "q", "choices": ["x", "y"], "answer": [0]}]
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), place)
    return [place.read_bytes()]


def _write_gguf(path: Path, *, is_imatrix: bool) -> None:
    """A file of a few keys and tensors: what a whole model's header has more is more of the same."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, "" if is_imatrix else "llama")
    if is_imatrix:
        writer.add_string("general.type", "imatrix")
        writer.add_array("imatrix.datasets", ["text.txt"])
        writer.add_uint32("imatrix.chunk_count", 2)
        writer.add_uint32("imatrix.chunk_size", 64)
        writer.add_tensor("blk.0.attn_q.weight.in_sum2", np.ones((1, 32), np.float32))
        writer.add_tensor("blk.0.attn_q.weight.counts", np.ones((1, 1), np.float32))
    else:
        writer.add_block_count(1)
        writer.add_context_length(64)
        writer.add_embedding_length(32)
        writer.add_head_count(4)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(["a", "b", "ab", "</s>"])
        writer.add_token_types([1, 1, 1, 3])
        writer.add_token_merges(["a b"])
        writer.add_eos_token_id(3)
        writer.add_tensor("token_embd.weight", np.ones((4, 32), np.float32))
        writer.add_tensor("blk.0.attn_norm.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _entries(data: bytes) -> dict[str, bytes]:
    """What an archive holds; nothing where it is none any more."""
    with contextlib.suppress(Exception), zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {i.filename: archive.read(i) for i in archive.infolist() if i.file_size < MAX_BYTES}
    return {}


def _in_zip(data: bytes, rng: random.Random, by_chance: Callable[[bytes], bytes]) -> bytes:
    """What one entry of an archive holds is changed, and its checksum is right again; or the archive's own bytes."""
    entries = _entries(data) if rng.random() < 0.7 else {}
    if not entries:
        return by_chance(data)
    name = rng.choice(list(entries))
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for each, content in entries.items():
            archive.writestr(each, by_chance(content) if each == name else content)
    return made.getvalue()


def _in_torch_file(data: bytes, rng: random.Random, by_chance: Callable[[bytes], bytes]) -> bytes:
    """The same of an archive as torch writes it; mostly its pickle is changed."""
    from tests.support.torch_files import write_zip

    entries = _entries(data) if rng.random() < 0.8 else {}
    if not entries:
        return by_chance(data)
    pickles = [name for name in entries if name.endswith(".pkl")]
    name = rng.choice(pickles if pickles and rng.random() < 0.9 else list(entries))
    with tempfile.NamedTemporaryFile() as made:
        write_zip(Path(made.name), [(n, by_chance(c) if n == name else c) for n, c in entries.items()])
        return made.read()


def kept(name: str) -> list[bytes]:
    """The fixed corpus of a reader."""
    path = CORPUS / f"{name}.zip"
    if not path.is_file():
        return []
    with zipfile.ZipFile(path) as archive:
        return [archive.read(entry) for entry in sorted(archive.namelist())]


def check(feed: Callable[[bytes], object], data: bytes) -> None:
    """One input; whatever else than a named fault of one line is raised is a finding."""
    from jmedlite.base.errors import JmedliteError

    try:
        feed(data)
    except JmedliteError as e:
        assert "\n" not in str(e) and len(str(e)) < 1000, str(e)


# ------------------------------------------------------------------------------------------------- what is reached


def lines_of(path: Path) -> set[int]:
    """The lines of a module that stand in functions and say something."""

    def inside(code: CodeType, in_function: bool) -> Iterator[int]:
        if in_function:
            yield from (line for _, _, line in code.co_lines() if line and line != code.co_firstlineno)
        for inner in code.co_consts:
            if isinstance(inner, CodeType):
                yield from inside(inner, bool(inner.co_flags & inspect.CO_OPTIMIZED))

    return set(inside(compile(path.read_bytes(), str(path), "exec"), False))


class Reach:
    """Which lines of a reader's modules its inputs reach."""

    def __init__(self, name: str, folder: Path) -> None:
        self.target = target(name, folder)
        # by the module's name: where its file stands differs from one kind of installation to another
        self.lines = {
            f"jmedlite.{path.removesuffix('.py').removeprefix('jmedlite/').replace('/', '.')}": lines_of(ROOT / path)
            for path in MODULES[name]
        }
        self.seen: set[tuple[str, int]] = set()

    @property
    def of(self) -> int:
        return sum(map(len, self.lines.values()))

    def add(self, data: bytes) -> int:
        """Read one input; how many lines it reaches that none before it did."""
        before = len(self.seen)

        def trace(frame: FrameType, event: str, argument: Any) -> Any:
            module = frame.f_globals.get("__name__", "")
            if module not in self.lines:
                return None
            if frame.f_lineno in self.lines[module]:
                self.seen.add((module, frame.f_lineno))
            return trace

        sys.settrace(trace)
        try:
            check(self.target.feed, data)
        finally:
            sys.settrace(None)
        return len(self.seen) - before


def cover() -> int:
    """A row of a table for every reader."""
    print("| reader | inputs kept | lines reached | of |\n| --- | ---: | ---: | ---: |")
    for name in READERS:
        with tempfile.TemporaryDirectory() as made:
            reach = Reach(name, Path(made))
            inputs = [*reach.target.seeds, *kept(name)]
            for data in inputs:
                reach.add(data)
            lines = len(reach.seen)
            print(f"| {name} | {len(inputs)} | {lines} | {reach.of} ({lines / reach.of:.0%}) |", flush=True)
    return 0


# ------------------------------------------------------------------------------------------------------- by coverage


def fuzz(name: str, arguments: Sequence[str]) -> None:
    """Never returns: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["jmedlite"]), tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        it = target(name, folder)
        own = [a for a in arguments if a.startswith("-")]
        corpus, *others = [a for a in arguments if not a.startswith("-")] or [str(folder / "corpus")]
        Path(corpus).mkdir(parents=True, exist_ok=True)
        for i, seed in enumerate([*it.seeds, *kept(name)]):
            (Path(corpus) / f"seed{i}").write_bytes(seed)

        def mutator(data: bytes, max_size: int, seed: int) -> bytes:
            assert it.mutate
            return it.mutate(data, random.Random(seed), lambda part: atheris.Mutate(part, max_size))[:max_size]

        limits = [
            f"-artifact_prefix={corpus}/",
            f"-timeout={SECONDS_EACH}",
            f"-rss_limit_mb={MEGABYTES}",
            f"-max_len={MAX_BYTES}",
        ]
        options: dict[str, Any] = {"custom_mutator": mutator} if it.mutate else {}
        atheris.Setup([sys.argv[0], corpus, *others, *limits, *own], lambda data: check(it.feed, data), **options)
        atheris.Fuzz()


def _run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, __file__, name, *arguments]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)


def fuzz_all(seconds: int, jobs: int, seed: int) -> int:
    """A row of a table for every reader; 1 where something was found."""
    bounds = f"-max_total_time={seconds}", f"-seed={seed}"
    with ThreadPoolExecutor(jobs) as pool:
        done = dict(zip(READERS, pool.map(lambda name: _run(name, *bounds), READERS), strict=True))
    print("| reader | inputs | seconds | findings |\n| --- | ---: | ---: | ---: |")
    for name, run in done.items():
        found = re.search(r"Done (\d+) runs in (\d+) second", run.stderr)
        n, took = (f"{int(found[1]):,}", found[2]) if found else ("", "")
        print(f"| {name} | {n} | {took} | {int(run.returncode != 0)} |")
    for name, run in done.items():
        if run.returncode:
            print(f"\n{name}: exit status {run.returncode}\n{run.stderr[-3000:]}")
    return int(any(run.returncode for run in done.values()))


def keep(folder: Path) -> int:
    """Make tests/corpus: of the shortest inputs first, those that reach a line that none before them did."""
    CORPUS.mkdir(exist_ok=True)
    for name in READERS:
        found = {p.read_bytes() for p in (folder / name).glob("*") if p.stat().st_size <= KEPT_BYTES}
        with tempfile.TemporaryDirectory() as made:
            reach = Reach(name, Path(made))
            for seed in reach.target.seeds:
                reach.add(seed)
            here = os.fsencode(tempfile.gettempdir())  # a path of this machine, which no other has
            ordered = sorted((d for d in {*found, *kept(name)} if here not in d), key=lambda d: (len(d), d))
            inputs = [data for data in ordered if reach.add(data)]
        with zipfile.ZipFile(CORPUS / f"{name}.zip", "w") as archive:
            for i, content in enumerate(inputs):
                archive.writestr(zipfile.ZipInfo(f"{i:04}"), content, zipfile.ZIP_DEFLATED, 9)
        print(f"{name}: {len(inputs)} of {len(ordered)}, {(CORPUS / f'{name}.zip').stat().st_size:,} bytes", flush=True)
    return 0


def main() -> None:
    what, *rest = sys.argv[1:] or [""]
    if what in READERS:
        fuzz(what, rest)
    parse = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], usage=f"{', '.join(READERS)}, all, keep"
    )
    parse.add_argument("what", choices=("all", "cover", "keep"))
    parse.add_argument("folder", nargs="?", type=Path)
    parse.add_argument("--seconds", type=int, default=20)
    parse.add_argument("--jobs", type=int, default=1)
    parse.add_argument("--seed", type=int, default=0, help="0: another one each time")
    given = parse.parse_args()
    if given.what == "keep":
        sys.exit(keep(given.folder))
    sys.exit(cover() if given.what == "cover" else fuzz_all(given.seconds, given.jobs, given.seed))


if __name__ == "__main__":
    main()
