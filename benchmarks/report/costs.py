"""Memory and latency over rounds, and which models no other beats on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from jmedlite.benchmarks import statistics
from jmedlite.benchmarks.records import MeasureRecord

from .compare import Json

_MEASURED = (
    "load_seconds", "prompt_tps", "generation_tps", "first_token_seconds", "peak_rss_bytes", "peak_anonymous_bytes",
    "peak_file_bytes", "kv_bytes",
)  # fmt: skip


def measures(rounds: Sequence[MeasureRecord]) -> Json | None:
    """Median and spread over rounds of all that was measured; None where nothing was, also for a single number."""
    if not rounds:
        return None
    first = rounds[0]
    found: Json = {
        "rounds": len(rounds),
        "n_ctx": first.n_ctx,
        "n_threads": first.n_threads,
        "n_gpu_layers": first.n_gpu_layers,
        "prompt_tokens": first.prompt_tokens,
        "generation_tokens": first.generation_tokens,
    }
    for name in _MEASURED:
        found[name] = _spread(getattr(m, name) for m in rounds)
    found["question_seconds"] = _spread(s for m in rounds for s in m.question_seconds or ())
    devices = sorted({device for m in rounds for device in m.vram_bytes or {}})
    found["vram_bytes"] = {d: _spread((m.vram_bytes or {}).get(d) for m in rounds) for d in devices}
    found["vram_total_bytes"] = _spread(sum(m.vram_bytes.values()) for m in rounds if m.vram_bytes is not None)
    return found


def _spread(values: Iterable[float | None]) -> Json | None:
    known = [v for v in values if v is not None]
    if not known:
        return None
    median, p95 = (float(q) for q in np.quantile(known, [0.5, 0.95]))
    return {"n": len(known), "median": median, "p95": p95, "min": min(known), "max": max(known)}


def pareto_fronts(models: list[Json], views: list[Json], *, joined: bool) -> Json:
    """Accuracy (first view) against memory and latency: which models no other beats. docs/report.md, `pareto`.

    Not `joined`, there are no fronts: models that were asked other questions beat nothing.
    """
    scores = {r["model"]: r["share"] for r in (views[0]["results"] if views else []) if r["share"] is not None}
    rss = _costs(models, scores, "peak_rss_bytes")
    memory = ("peak_rss_bytes", rss) if rss else ("n_bytes", {m["key"]: m["n_bytes"] for m in models if m["n_bytes"]})
    return {
        axis: {"cost": cost, "costs": costs, "front": _front(costs, scores) if joined else []}
        for axis, (cost, costs) in (
            ("memory", memory),
            ("latency", ("question_seconds", _costs(models, scores, "question_seconds"))),
        )
    }


def _costs(models: list[Json], scores: Mapping[str, float], name: str) -> dict[str, float]:
    measured = [m for m in models if m["key"] in scores and m["measures"] and m["measures"][name]]
    return {m["key"]: m["measures"][name]["median"] for m in measured}


def _front(costs: Mapping[str, float], scores: Mapping[str, float]) -> list[str]:
    keys = [k for k in costs if k in scores]
    best = statistics.pareto([costs[k] for k in keys], [scores[k] for k in keys])
    return sorted((k for k, on in zip(keys, best, strict=True) if on), key=lambda k: costs[k])
