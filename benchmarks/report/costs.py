"""Memory and latency over rounds, and which models no other beats on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from jmedlite.benchmarks import statistics
from jmedlite.benchmarks.records import AnswerRecord, MeasureRecord

from .sections import Cost, Measure, Measures, Model, Pareto, Spread, TradeOff, View


def measures(rounds: Sequence[MeasureRecord]) -> Measures | None:
    """Median and spread over rounds of all that was measured; None where nothing was, also for a single number."""
    if not rounds:
        return None
    first = rounds[0]
    devices = sorted({device for m in rounds for device in m.vram_bytes or {}})
    return {
        "rounds": len(rounds),
        "n_ctx": first.n_ctx,
        "n_threads": first.n_threads,
        "n_gpu_layers": first.n_gpu_layers,
        "prompt_tokens": first.prompt_tokens,
        "generation_tokens": first.generation_tokens,
        "load_seconds": _spread(m.load_seconds for m in rounds),
        "prompt_tps": _spread(m.prompt_tps for m in rounds),
        "generation_tps": _spread(m.generation_tps for m in rounds),
        "first_token_seconds": _spread(m.first_token_seconds for m in rounds),
        "peak_rss_bytes": _spread(m.peak_rss_bytes for m in rounds),
        "peak_anonymous_bytes": _spread(m.peak_anonymous_bytes for m in rounds),
        "peak_file_bytes": _spread(m.peak_file_bytes for m in rounds),
        "kv_bytes": _spread(m.kv_bytes for m in rounds),
        "question_seconds": _spread(s for m in rounds for s in m.question_seconds or ()),
        "vram_bytes": {d: _spread((m.vram_bytes or {}).get(d) for m in rounds) for d in devices},
        "vram_total_bytes": _spread(sum(m.vram_bytes.values()) for m in rounds if m.vram_bytes is not None),
    }


def thought_tokens_mean(answers: Iterable[AnswerRecord]) -> float | None:
    """What a model spends on thoughts before what it writes; None where it has none, or none are counted."""
    told = [a.n_thought if a.thought is not None else 0 for a in answers if a.response is not None]
    known = [n for n in told if n is not None]
    return sum(known) / len(known) if any(known) else None


def _spread(values: Iterable[float | None]) -> Spread | None:
    known = [v for v in values if v is not None]
    if not known:
        return None
    median, p95 = (float(q) for q in np.quantile(known, [0.5, 0.95]))
    return {"n": len(known), "median": median, "p95": p95, "min": min(known), "max": max(known)}


def spread_of(model: Model, name: Measure) -> Spread | None:
    """A measure of a model; None where it was not measured."""
    return model["measures"] and model["measures"][name]


def pareto_fronts(models: list[Model], views: list[View], *, joined: bool) -> Pareto:
    """Accuracy (first view) against memory and latency: which models no other beats. docs/report.md, `pareto`.

    Not `joined`, there are no fronts: models that were asked other questions beat nothing.
    """
    scores = {r["model"]: r["share"] for r in (views[0]["results"] if views else []) if r["share"] is not None}

    def trade_off(cost: Cost, costs: dict[str, float]) -> TradeOff:
        return {"cost": cost, "costs": costs, "front": _front(costs, scores) if joined else []}

    def spent(name: Measure) -> dict[str, float]:
        return {m["key"]: s["median"] for m in models if m["key"] in scores and (s := spread_of(m, name))}

    files: dict[str, float] = {m["key"]: m["n_bytes"] for m in models if m["n_bytes"]}
    rss = spent("peak_rss_bytes")
    return {
        "memory": trade_off("peak_rss_bytes", rss) if rss else trade_off("n_bytes", files),
        "latency": trade_off("question_seconds", spent("question_seconds")),
    }


def _front(costs: Mapping[str, float], scores: Mapping[str, float]) -> list[str]:
    keys = [k for k in costs if k in scores]
    best = statistics.pareto([costs[k] for k in keys], [scores[k] for k in keys])
    return sorted((k for k, on in zip(keys, best, strict=True) if on), key=lambda k: costs[k])
