"""Costs of a model: memory, load time and speed, in a fresh process (`python -m jmedlite.benchmarks.run.costs`).

Peaks are of the process that runs the model. Times are of a warmed-up model; questions are asked one at a time, as a
person would, with everything but the question evaluated before.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jmedlite.base.records import from_json, to_json
from jmedlite.benchmarks.backends.base import ADVICE, Loading, Wanted
from jmedlite.benchmarks.backends.local_engine import ScoringEngine, Writing
from jmedlite.benchmarks.backends.local_worker import Prompts
from jmedlite.benchmarks.backends.packing import PACK, PackedRequest
from jmedlite.benchmarks.records import MeasureRecord
from jmedlite.runtime.fitting import shape_on_this_machine
from jmedlite.runtime.hardware import devices
from jmedlite.runtime.loading import LoadedModel
from jmedlite.runtime.process import Child
from jmedlite.runtime.protocol import Emit, serve
from jmedlite.runtime.shape import kv_bytes

N_QUESTIONS = 12  # asked one by one
N_GENERATED = 64
N_STEM = 32  # tokens before those that are generated
SAMPLE_SECONDS = 0.02


class Peaks:
    """The most memory that this process had resident, sampled in a thread; anonymous and file-backed where told."""

    def __init__(self) -> None:
        self.total = 0
        self.anonymous: int | None = None
        self.file: int | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._sample()
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self._sample()

    def _sample(self) -> None:
        try:
            status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
            found = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
            kinds = {k: int(found[k].split()[0]) * 1024 for k in ("VmRSS", "RssAnon", "RssFile", "RssShmem")}
        except (OSError, KeyError, ValueError):
            import psutil

            self.total = max(self.total, psutil.Process().memory_info().rss)
            return
        self.total = max(self.total, kinds["VmRSS"])
        self.anonymous = max(self.anonymous or 0, kinds["RssAnon"])
        self.file = max(self.file or 0, kinds["RssFile"] + kinds["RssShmem"])

    def end(self) -> dict[str, Any]:
        """Stop watching; the peaks in bytes, null where the system does not tell the kinds apart."""
        self._stop.set()
        self._thread.join()
        self._sample()
        return {
            "peak_rss_bytes": self.total,
            "peak_anonymous_bytes": self.anonymous,
            "peak_file_bytes": self.file,
        }


def free_vram() -> dict[str, int]:
    """Bytes free on each GPU, by name."""
    return {d["name"]: d["free_bytes"] for d in devices() if d["kind"] == "GPU"}


def timed(engine: ScoringEngine, pack: range) -> float:
    """Seconds until the requests of a pack have what they reserve: a token each, or more."""
    started = time.perf_counter()
    engine.generate(pack, Writing(1), endless=True)
    return time.perf_counter() - started


def measure_here(request: dict[str, Any]) -> MeasureRecord:
    """A line of `measures.jsonl`, measured in this process."""
    peaks = Peaks()
    free = free_vram()
    loaded = LoadedModel(request, lambda event, **fields: None)
    prompts = Prompts(loaded, {**request["wanted"], "op": "prepare"}, lambda event, **fields: None)
    asked = [r for r in prompts.requests if r.stem][:N_QUESTIONS]
    text = [t for r in asked for t in r.stem] or prompts.head or [0]
    text = (text * (PACK // len(text) + 1))[:PACK]
    room = loaded.n_ctx_train - len(prompts.head) - 1
    n_prompt = max(1, min(PACK, room))
    n_generated = max(1, min(N_GENERATED, room - N_STEM))
    fixed = [
        PackedRequest(tuple(text[:N_STEM]), reserve=1),
        PackedRequest(tuple(text[:n_prompt]), reserve=1),
        PackedRequest(tuple(text[:N_STEM]), reserve=1 + n_generated),
    ]
    firsts = [PackedRequest(r.stem, reserve=1) for r in asked]
    engine = ScoringEngine(loaded, prompts.head, [*fixed, *firsts, *asked], request["threads"], together=False)
    packs = engine.packs
    timed(engine, packs[1])  # warm: the pages of the file, the threads, the buffers
    short, prompt, long = (timed(engine, p) for p in packs[:3])
    first_token = [timed(engine, p) for p in packs[3 : 3 + len(firsts)]]
    questions = []
    for pack in packs[3 + len(firsts) :]:
        started = time.perf_counter()
        engine.score(pack) if engine.requests[pack.start].branches else engine.generate(pack, prompts.writing)
        questions.append(time.perf_counter() - started)
    used = {name: free[name] - left for name, left in free_vram().items() if name in free}
    return MeasureRecord(
        model=request["model"],
        round=request["round"],
        n_ctx=engine.n_ctx,
        n_threads=request["threads"],
        n_gpu_layers=loaded.plan.n_gpu_layers,
        n_cpu_moe=loaded.plan.n_without_experts or None,
        load_seconds=round(loaded.load_seconds, 4),
        prompt_tokens=n_prompt,
        prompt_tps=round(n_prompt / prompt, 2),
        generation_tokens=n_generated,
        generation_tps=round(n_generated / max(1e-9, long - short), 2),
        first_token_seconds=_median(first_token),
        question_seconds=tuple(round(s, 4) for s in questions),
        **peaks.end(),
        kv_bytes=sum(kv_bytes(shape_on_this_machine(loaded.header), engine.n_ctx, loaded.request["kv_type"])),
        vram_bytes=used or None,
    )


def _median(values: Sequence[float]) -> float | None:
    return round(statistics.median(values), 4) if values else None


def measure(model: str, round_: int, path: Path, loading: Loading, wanted: Wanted) -> MeasureRecord:
    """The costs of one GGUF on this machine, measured in a process of its own on the first questions of `wanted`."""
    request = {**loading.request(path), "wanted": vars(wanted), "model": model, "round": round_}
    with Child("jmedlite.benchmarks.run.costs", ADVICE) as child:
        return from_json(child.ask(request, "measured")["record"], MeasureRecord, model)


def measure_requested(request: dict[str, Any], emit: Emit, _: threading.Event) -> None:
    """Measure what the one request names."""
    emit("measured", record=to_json(measure_here(request)))


if __name__ == "__main__":
    serve(measure_requested)
