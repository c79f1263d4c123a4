"""Distances to a reference by kind of text, and the files by size: which are nearer to it at no more bytes."""

from __future__ import annotations

from collections.abc import Sequence

from jmedlite.benchmarks.records import DistanceRecord
from jmedlite.benchmarks.statistics import bootstrap

from .pool import Entrant, Pool
from .sections import BySize, Distance, Model

EQUAL = 0.02  # files that differ by less of the larger's bytes are as large as each other


def distances(laid: Pool, entrant: Entrant) -> list[Distance]:
    """A model on every text that it read, in the order of reading; each text, context and reference once."""
    found: dict[tuple[object, ...], Distance] = {}
    for run, line in laid.distances(entrant):
        files = {m.name: m.sha256 for m in laid.runs[run].models}
        one = _distance(line, files.get(line.reference or line.model))
        found.setdefault((*_measured(one), one["text"]), one)
    return list(found.values())


def _distance(line: DistanceRecord, reference_sha256: str | None) -> Distance:
    intervals = line.kl_quantile_intervals
    return {
        "text": line.text,
        "text_sha256": line.text_sha256,
        "reference": line.reference,
        "reference_sha256": reference_sha256,
        "n_ctx": line.n_ctx,
        "n_chunks": line.n_chunks,
        "n_tokens": line.n_tokens,
        "perplexity": line.perplexity,
        "perplexity_error": line.perplexity_error,
        "kl_mean": line.kl_mean,
        "kl_error": line.kl_error,
        "kl_interval": _list(line.kl_interval),
        "kl_chunks": _list(line.kl_chunks),
        "kl_median": line.kl_median,
        "kl_quantiles": line.kl_quantiles,
        "kl_quantile_intervals": None
        if intervals is None
        else {q: list(interval) for q, interval in intervals.items()},
        "kl_max": line.kl_max,
        "top_agreement": line.top_agreement,
        "top_agreement_error": line.top_agreement_error,
    }


def _list(values: Sequence[float] | None) -> list[float] | None:
    return None if values is None else list(values)


def _measured(d: Distance) -> tuple[object, ...]:
    """What two models' distances must have in common to be compared."""
    return d["text_sha256"], d["n_ctx"], d["n_tokens"], d["reference_sha256"]


def texts_of(models: Sequence[Model]) -> list[str | None]:
    """The names of all texts, in the order of reading."""
    return list(dict.fromkeys(d["text"] for m in models for d in m["distances"]))


def by_size(models: Sequence[Model]) -> list[BySize]:
    """The files, the smallest first, whatever their levels are called: those as large, and those that are nearer.

    A file is `nearer` that has no more bytes, and on every text that both read is (`_is_nearer`).
    """
    sized = sorted(((m["n_bytes"], m) for m in models if m["n_bytes"]), key=lambda pair: (pair[0], pair[1]["key"]))
    if len(sized) < 2:
        return []
    read = {m["key"]: {_measured(d): d for d in m["distances"] if d["kl_mean"] is not None} for _, m in sized}

    def is_nearer(key: str, than: str) -> bool:
        common = read[key].keys() & read[than].keys()
        return bool(common) and all(_is_nearer(read[key][text], read[than][text]) for text in common)

    return [
        {
            "model": m["key"],
            "n_bytes": size,
            "as_large": [o["key"] for n, o in sized if o is not m and abs(n - size) <= EQUAL * max(n, size)],
            "nearer": [o["key"] for n, o in sized if n <= size and is_nearer(o["key"], m["key"])],
        }
        for size, m in sized
    ]


def _is_nearer(one: Distance, other: Distance) -> bool:
    """Is `one`'s mean divergence on a text the smaller, and, where the chunks' are known, not by chance?

    The chunks are paired: the interval of 95 % of their mean difference must lie below 0. Where a run gave no interval,
    there are too few of them.
    """
    own, others = one["kl_chunks"] or [], other["kl_chunks"] or []
    if one["kl_interval"] is None or not own or len(own) != len(others):
        assert one["kl_mean"] is not None and other["kl_mean"] is not None
        return one["kl_mean"] < other["kl_mean"]
    return bootstrap([a - b for a, b in zip(own, others, strict=True)], [1.0] * len(own))[1] < 0
