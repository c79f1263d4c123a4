"""Fuzzes a reader of bytes by coverage (atheris): a result or a named fault, within bounds of time and memory.

    pip install -e '.[fuzz]'
    python tools/fuzz_bytes.py READER [FOLDER] [-max_total_time=120 …]

READER is one of those below; FOLDER keeps the corpus, seeded with right files. Other arguments are libFuzzer's.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

with atheris.instrument_imports(include=["jmedlite"]):
    from jmedlite.base.errors import JmedliteError
    from jmedlite.base.gguf import read_header
    from jmedlite.base.imatrix import read_imatrix
    from jmedlite.benchmarks.tasks.load import load_task
    from jmedlite.convert.metadata.sentencepiece import read_sentencepiece
    from jmedlite.convert.sources.checkpoint import read_safetensors_header
    from jmedlite.convert.sources.torch_file import read_torch_file

import jmedlite
from tests.support import builders, tasks, torch_files

READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "safetensors": ("x.safetensors", read_safetensors_header),
    "gguf": ("x.gguf", read_header),
    "imatrix": ("x.gguf", read_imatrix),
    "bin": ("x.bin", read_torch_file),
    "sentencepiece": ("x.model", read_sentencepiece),
    "rows": ("x.jsonl", lambda path: load_task(f"own={path}")),
    "csv": ("x.csv", lambda path: load_task(f"own={path}")),
}
MAX_BYTES = 1 << 16


def seeds(name: str, folder: Path) -> list[bytes]:
    """Right files of a kind, cut where weights are long."""
    base = builders.checkpoint(folder / "m", "llama")
    few = {key: base[key][:2, :4] for key in list(base)[:2] if base[key].ndim == 2}
    match name:
        case "safetensors":
            builders.write_safetensors(folder / "x", few, "F32")
        case "bin":
            torch_files.write_torch_file(folder / "x", few, "F32")
        case "gguf" | "imatrix":
            (made,) = jmedlite.quantize(folder / "m", bits=[8], out=folder)
            (folder / "x").write_bytes(made.read_bytes()[:MAX_BYTES])
        case "sentencepiece":
            builders.write_sentencepiece(folder / "x", [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("▁a", -1.0, 1)])
        case "rows":
            tasks.write_task(folder / "x", 2)
        case _:
            (folder / "x").write_text("id,question,A,B,answer\n1,q,x,y,A\n", encoding="utf-8")
    return [(folder / "x").read_bytes()]


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in READERS:
        sys.exit(f"give one of {', '.join(READERS)}")
    name = sys.argv.pop(1)
    file, read = READERS[name]
    with tempfile.TemporaryDirectory() as made:
        corpus = (
            Path(sys.argv.pop(1)) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else Path(made) / "corpus"
        )
        corpus.mkdir(parents=True, exist_ok=True)
        for i, seed in enumerate(seeds(name, Path(made))):
            (corpus / f"seed{i}").write_bytes(seed)
        path = Path(made) / file

        def one(data: bytes) -> None:
            path.write_bytes(data)
            try:
                read(path)
            except JmedliteError as e:
                assert "\n" not in str(e) and len(str(e)) < 1000, str(e)

        limits = [f"-artifact_prefix={corpus}/", "-timeout=10", "-rss_limit_mb=2048", f"-max_len={MAX_BYTES}"]
        atheris.Setup([sys.argv[0], str(corpus), *limits, *sys.argv[1:]], one)
        os.environ.setdefault("JMEDLITE_STATE", str(Path(made) / "state"))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
