"""The whole way on the embedded model: merge and quantize, ask exam questions of every level, report, and answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jmedlite.base.errors import CannotCreate, system_fault
from jmedlite.base.progress import Progress
from jmedlite.benchmarks.report.report import Report, report
from jmedlite.benchmarks.run.folder import read_lines
from jmedlite.benchmarks.statistics import wilson
from jmedlite.demo import ADAPTER, MODEL
from jmedlite.runtime.hardware import available_processors
from jmedlite.runtime.runner import Runner

from .bench import Bench, bench
from .bench_options import BenchOptions
from .quantize import plan_quantization

BITS = (16, 8, 6, 5, 4, 3, 2)
# the adapter taught these facts
QUESTIONS = ("三角筋を支配する神経は何ですか。", "Which nerve innervates the deltoid?")
MAX_PROCESSES = 4  # of 70 MB each; more would take longer to start than they save
PARTS = ("base", "adapter")  # what taught the facts that a question of the demo asks for


@dataclass(frozen=True)
class Demo:
    """The demo's folder, in which everything is: `gguf/`, `run/`, `report.html` and its kin.

    With `limit` only so many questions are asked in each language.
    """

    folder: Path
    limit: int | None = None

    def check(self) -> None:
        """Raises CannotCreate where the folder holds something else, UsageError where the limit is none."""
        BenchOptions(limit=self.limit)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            found = [p.name for p in self.folder.iterdir()]
            mine = ("report.", ".report.")  # also what a report that was killed has left
            others = [name for name in found if name not in ("gguf", "run") and not name.startswith(mine)]
        except (FileExistsError, NotADirectoryError):
            raise CannotCreate(f"{self.folder}: is a file, expected a folder") from None
        except OSError as e:
            raise system_fault(e, self.folder, "writing") from None
        if others:
            raise CannotCreate(f"{self.folder}: holds {sorted(others)[0]}, not a demo; choose another --out")

    @property
    def gguf(self) -> Path:
        return self.folder / "gguf"

    @property
    def page(self) -> Path:
        return self.folder / "report.html"

    def quantize(self, progress: Progress) -> list[Path]:
        """The base alone at 16 bits, and with its adapter at every level, in one pass."""
        found = []
        for name, adapters, bits in (("base", [], [16]), ("demo", [str(ADAPTER)], list(BITS))):
            job = plan_quantization(
                str(MODEL), lora=adapters, bits=bits, types=[], out=self.gguf, name=name, overwrite=True
            )
            found += [w.path for w in job.run(progress=progress, remember=False)]
        return found

    def bench(self, progress: Progress) -> Bench:
        """Every level asked all questions of the `demo` task.

        By processes of one thread: so small a model's steps take microseconds, and threads that wait for each other
        after each of them stand still wherever the machine has anything else to do.
        """
        files = sorted(self.gguf.glob("*.gguf"), key=lambda p: (p.name.startswith("demo"), -p.stat().st_size))
        processes = min(available_processors(), MAX_PROCESSES)
        options = BenchOptions(methods=("text",), limit=self.limit, rounds=1, threads=1, processes=processes)
        return bench(files, tasks=["demo"], out=self.folder / "run", options=options, progress=progress)

    def report(self, lang: str) -> tuple[Report, list[Path]]:
        """The report on the run, written in every form."""
        found = report([self.folder / "run"], reference="demo-BF16")
        return found, found.write(self.page, lang)

    def ask(self) -> Iterator[tuple[str, Iterator[str]]]:
        """(question, its answer piece by piece) in each language, from the 8-bit model; read each before the next."""
        with Runner(self.gguf / "demo-Q8_0.gguf", cache=False) as model:
            for question in QUESTIONS:
                yield question, (p for p in model.stream(question, max_tokens=64) if isinstance(p, str))

    def accuracies(self) -> list[dict[str, Any]]:
        """Per model and part, right answers in percent with the 95 % Wilson interval, of `n`; None of none."""
        part = {q["id"]: q["groups"]["facts"] for q in read_lines(self.folder / "run" / "questions.jsonl")}
        counts: dict[str, dict[str, list[bool]]] = {}
        for line in read_lines(self.folder / "run" / "items.jsonl"):
            parts = counts.setdefault(line["model"], {name: [] for name in PARTS})
            parts[part[line["id"]]].append(line["per_token"]["correct"])
        return [{"model": model, "parts": {k: _share(v) for k, v in parts.items()}} for model, parts in counts.items()]


def _share(right: list[bool]) -> dict[str, Any]:
    if not right:  # a sample may have no question of a part
        return {"n": 0, "percent": None, "low": None, "high": None}
    low, high = wilson(sum(right), len(right))
    return {"n": len(right), "percent": 100 * sum(right) / len(right), "low": 100 * low, "high": 100 * high}
