"""Which level to use: the smallest that meets the constraints and is shown to lose nothing that matters; and why."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from .costs import spread_of
from .labels import joined, say
from .numbers import fixed, gigabytes, percent, plain, points
from .sections import Bilingual, Candidate, Comparison, Decision, Document, Family, Model, Result, Verdict, View

if TYPE_CHECKING:
    from .document import Options

AS_SMALL = 1.02  # memory within 2 % counts as equal


def verdict(family: Family, models: list[Model], views: list[View], options: Options) -> Verdict:
    """docs/report.md, `verdicts`: a candidate for every level, the one chosen or None, and the reason as a sentence."""
    by_key = {m["key"]: m for m in models}
    results = {r["model"]: r for r in views[0]["results"]} if views else {}
    able = [key for key in family["models"] if key in results and results[key]["n"]]
    candidates = [_candidate(by_key[key], results[key], family["reference"], options) for key in able]
    compared = {r["model"]: r["comparison"] for r in results.values() if r["comparison"]}
    nearest = _nearest(candidates, compared)
    kind, about = _choose(candidates, nearest, family["reference"], by_key)
    chosen = by_key[about] if about and kind in ("recommended", "reference") else None
    near = _compared("v_nearest", by_key[nearest], compared[nearest]) if nearest else _NOTHING
    return {
        "family": family["name"],
        "reference": family["reference"],
        "view": views[0]["key"] if views else None,
        "candidates": candidates,
        "kind": kind,
        "key": chosen and chosen["key"],
        "level": chosen and chosen["level"],
        "file": chosen and chosen["file"],
        "sha256": chosen and chosen["sha256"],
        "reason": _reason(kind, by_key.get(about or ""), by_key.get(family["reference"] or ""),
                          results.get(about or ""), near, options),
    }  # fmt: skip


def reasons(document: Document, lang: str) -> list[str]:
    """The sentence of each verdict, with the family that it is about where there are several."""
    found = document["verdicts"]
    return [(f"{v['family']}: " if len(found) > 1 else "") + v["reason"][lang] for v in found]


def _candidate(model: Model, result: Result, reference: str | None, options: Options) -> Candidate:
    """Each test is true, false, or null: not asked for, or not known. A constraint on what is not known is not met."""
    c = result["comparison"]
    is_reference = model["key"] == reference
    ram = _within(ram_of(model), options.ram_bytes)
    vram = _within(vram_of(model), options.vram_bytes)
    fast = _within(latency_of(model), options.max_latency)
    limits = (options.ram_bytes, options.vram_bytes, options.max_latency)
    meets = all(limit is None or met is True for limit, met in zip(limits, (ram, vram, fast), strict=True))
    shown = None if is_reference or c is None or not c["n"] else bool(c["no_meaningful_loss"])
    return {"model": model["key"], "no_meaningful_loss": shown, "fits_ram": ram, "fits_vram": vram,
            "fast_enough": fast, "meets_constraints": meets,
            "qualifies": meets and (is_reference or shown is True)}  # fmt: skip


def ram_of(model: Model) -> float | None:
    """The most memory that any round had resident, in bytes; None where it was not measured."""
    spread = spread_of(model, "peak_rss_bytes")
    return spread and spread["max"]


def vram_of(model: Model) -> float | None:
    """The most GPU memory of any round over all devices; 0 where no layer was on a GPU."""
    if spread := spread_of(model, "vram_total_bytes"):
        return float(spread["max"])
    return 0.0 if model["measures"] and model["measures"]["n_gpu_layers"] == 0 else None


def latency_of(model: Model) -> float | None:
    """The seconds within which 95 % of questions were answered."""
    spread = spread_of(model, "question_seconds")
    return spread and spread["p95"]


def _within(value: float | None, limit: float | None) -> bool | None:
    return None if limit is None or value is None else value <= limit


def _choose(
    candidates: list[Candidate], nearest: str | None, reference: str | None, models: dict[str, Model]
) -> tuple[Decision, str | None]:
    """(kind, the model that the sentence is about)."""
    if not candidates:
        return "empty", None
    sizes = {c["model"]: _size(models[c["model"]], [models[o["model"]] for o in candidates]) for c in candidates}
    fitting = [c for c in candidates if c["meets_constraints"]]
    if not fitting:
        return "none_fits", min(sizes, key=lambda k: sizes[k])
    if len(candidates) == 1:
        return "one_level", fitting[0]["model"]
    qualified = [c["model"] for c in fitting if c["qualifies"]]
    if any(key != reference for key in qualified):
        return "recommended", _smallest([k for k in qualified if k != reference], sizes, models)
    if nearest is None and all(c["no_meaningful_loss"] is None for c in candidates):
        return "not_compared", reference
    return ("reference" if qualified else "none_shown"), reference


def _smallest(keys: list[str], sizes: dict[str, float], models: dict[str, Model]) -> str:
    """Of those that need as little memory as the smallest, the smallest file: scatter in memory decides nothing."""
    least = min(sizes[k] for k in keys)
    near = [k for k in keys if sizes[k] <= least * AS_SMALL]
    return min(near, key=lambda k: (models[k]["n_bytes"] or math.inf, sizes[k]))


def _nearest(candidates: list[Candidate], compared: dict[str, Comparison]) -> str | None:
    """Of the levels that meet the constraints, the one that is nearest to being shown without a meaningful loss."""
    able = [c["model"] for c in candidates if c["meets_constraints"] and c["model"] in compared]
    bounds = {key: bound for key in able if (bound := compared[key]["loss_bound"]) is not None}
    return min(bounds, key=lambda k: bounds[k]) if bounds else None


def _size(model: Model, all_models: list[Model]) -> float:
    """Memory in use where it was measured for all, else the file's size."""
    spread = spread_of(model, "peak_rss_bytes")
    if spread and all(ram_of(m) is not None for m in all_models):
        return float(spread["median"])
    return float(model["n_bytes"] or model["bits_per_weight"] or 0)


def _reason(
    kind: Decision, model: Model | None, reference: Model | None, result: Result | None, nearest: Bilingual,
    options: Options,
) -> Bilingual:  # fmt: skip
    """The sentence about `model`, of which `result` is; `nearest` is the sentence about that level, or nothing."""
    if model is None or result is None:
        return say("v_empty")
    fields: dict[str, Any] = {
        "label": model["label"],
        "reference": reference["label"] if reference else "",
        "margin": plain(options.margin),
        "resources": _resources(model, options),
        "constraints": _constraints(options),
        "nearest": nearest,
    }
    if kind == "recommended" and result["comparison"]:
        return _compared("v_recommended", model, result["comparison"], **fields)
    if kind == "one_level" and result["interval"]:
        low, high = result["interval"]
        return say("v_one_level", accuracy=percent(result["share"]), low=percent(low), high=percent(high),
                   n=f"{result['n']:,}", **fields)  # fmt: skip
    return say(f"v_{kind}", **fields)


_NOTHING: Bilingual = {"en": "", "ja": ""}


def _compared(key: str, model: Model, c: Comparison, **fields: Any) -> Bilingual:
    """A sentence with the numbers of a level's comparison."""
    low, high = c["interval"] or (None, None)
    fields |= {"label": model["label"], "difference": points(c["difference"]), "low": points(low),
               "high": points(high), "n": f"{c['n']:,}", "detectable": percent(c["detectable_loss"])}  # fmt: skip
    return say(key, **fields)


def _resources(model: Model, options: Options) -> Bilingual:
    """Size, memory and latency as far as they are known."""
    parts: list[Bilingual] = []
    if model["n_bytes"] is not None:
        parts.append(say("r_file", size=gigabytes(model["n_bytes"])))
    ram = ram_of(model)
    if ram is not None:
        key = "r_ram" if options.ram_bytes is None else "r_ram_fits" if ram <= options.ram_bytes else "r_ram_unfit"
        parts.append(say(key, ram=gigabytes(ram), limit=plain((options.ram_bytes or 0) / 1e9)))
    elif options.ram_bytes is not None:
        parts.append(say("r_ram_unknown"))
    if options.vram_bytes is not None:
        vram = vram_of(model)
        parts.append(say("r_vram_unknown") if vram is None else say("r_vram", vram=gigabytes(vram)))
    seconds = spread_of(model, "question_seconds")
    if seconds:
        parts.append(say("r_seconds", median=fixed(seconds["median"], 2), p95=fixed(seconds["p95"], 2)))
    elif options.max_latency is not None:
        parts.append(say("r_seconds_unknown"))
    return joined(parts or [say("r_nothing")])


def _constraints(options: Options) -> Bilingual:
    values = (
        ("c_ram", options.ram_bytes and options.ram_bytes / 1e9),
        ("c_vram", options.vram_bytes and options.vram_bytes / 1e9),
        ("c_latency", options.max_latency),
    )
    return joined([say(key, value=plain(value)) for key, value in values if value is not None])
