"""Which level to use: one that is shown to lose nothing that matters, in any analysis or group; and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from .costs import spread_of
from .groups import shows_loss
from .labels import group_name, joined, say, together, view_name
from .numbers import p_value, percent, plain, points, seconds, size, thousands
from .sections import (
    Bilingual,
    Candidate,
    Comparison,
    Conflict,
    Decision,
    Document,
    Family,
    GroupTest,
    Heterogeneity,
    Model,
    Partial,
    Price,
    Result,
    Verdict,
    View,
)

if TYPE_CHECKING:
    from .document import Options

AS_SMALL = 1.02  # memory within 2 % counts as equal
AS_GOOD = 1e-9  # of accuracies: they are sums of fractions
NAMED = 3  # conflicts of a level that its sentence names
UNQUANTIZED = ("BF16", "F16", "F32")


def verdict(
    family: Family,
    models: list[Model],
    views: list[View],
    options: Options,
    judged: tuple[list[GroupTest], list[Heterogeneity]],
    partial: Partial | None,
) -> Verdict:
    """docs/report.md, `verdicts`: a candidate for every level, the one chosen or None, and the reason as a sentence.

    `judged` is what groups of questions show, `partial` how far the runs are where they are not finished.
    """
    by_key = {m["key"]: m for m in models}
    results = {r["model"]: r for r in views[0]["results"]} if views else {}
    able = [key for key in family["models"] if key in results and results[key]["n"]]
    compared = {r["model"]: r["comparison"] for r in results.values() if r["comparison"]}
    candidates = [
        _candidate(by_key[k], results[k], family["reference"], options, _conflicts(k, views, judged[0], options))
        for k in able
    ]
    kind, about, runner_up = _choose(candidates, compared, family["reference"], by_key, options)
    chosen = by_key[about] if about and kind in ("recommended", "reference") else None
    price = _price(chosen, by_key[runner_up], compared) if chosen and runner_up else None
    n_claims = sum(bool(c["n"]) for c in compared.values())
    sentences = _Sentences(by_key, compared, family["reference"], options, n_claims)
    return {
        "family": family["name"],
        "reference": family["reference"],
        "view": views[0]["key"] if views else None,
        "partial": partial,
        "n_claims": n_claims,
        "candidates": candidates,
        "groups": judged[0],
        "heterogeneity": judged[1],
        "kind": kind,
        "key": chosen and chosen["key"],
        "level": chosen and chosen["level"],
        "file": chosen and chosen["file"],
        "sha256": chosen and chosen["sha256"],
        "runner_up": price,
        "reason": together([
            *([say("v_partial", there=thousands(partial["n_answers"]), expected=thousands(partial["n_expected"]))]
              if partial else []),
            *(sentences.conflict(c, views) for c in candidates if _is_passed_over(c)),
            sentences.decision(kind, about, candidates, results.get(about or "")),
            *([sentences.price(price)] if price else []),
        ]),
    }  # fmt: skip


def reasons(document: Document, lang: str) -> list[str]:
    """The sentence of each verdict, with the family that it is about where there are several."""
    found = document["verdicts"]
    return [(f"{v['family']}: " if len(found) > 1 else "") + v["reason"][lang] for v in found]


# ------------------------------------------------------------------------------------------------------ candidates


def _candidate(
    model: Model, result: Result, reference: str | None, options: Options, conflicts: list[Conflict]
) -> Candidate:
    """Each test is true, false, or null: not asked for, or not known."""
    c = result["comparison"]
    is_reference = model["key"] == reference
    limits = (
        (ram_of(model), options.ram_bytes), (vram_of(model), options.vram_bytes),
        (latency_of(model), options.max_latency),
    )  # fmt: skip
    ram, vram, fast = (_within(value, limit) for value, limit in limits)
    wanted = [_within(value, limit) for value, limit in limits if limit is not None]
    meets = False if False in wanted else None if None in wanted else True
    shown = None if is_reference or c is None or not c["n"] else bool(c["no_meaningful_loss"])
    return {"model": model["key"], "no_meaningful_loss": shown, "conflicts": conflicts, "fits_ram": ram,
            "fits_vram": vram, "fast_enough": fast, "meets_constraints": meets,
            "qualifies": meets is True and (is_reference or (shown is True and not conflicts))}  # fmt: skip


def _conflicts(key: str, views: list[View], groups: list[GroupTest], options: Options) -> list[Conflict]:
    """What shows a loss beyond the margin, besides the primary analysis: other analyses, then groups."""
    found: list[Conflict] = []
    for view in views[1:]:
        c = next((r["comparison"] for r in view["results"] if r["model"] == key), None)
        if c and shows_loss(c["difference"], c["p_holm"], options.margin_share):
            found.append({"view": view["key"], "side": None, "group": None, "n": c["n"], "share": c["share"] or 0.0,
                          "reference_share": c["reference_share"] or 0.0, "difference": c["difference"] or 0.0,
                          "p_holm": c["p_holm"] or 0.0})  # fmt: skip
    for g in groups:
        if g["model"] == key and g["outcome"] == "loss":
            found.append({"view": None, "side": g["side"], "group": g["group"], "n": g["n"], "share": g["share"],
                          "reference_share": g["reference_share"], "difference": g["difference"],
                          "p_holm": g["p_holm"]})  # fmt: skip
    return found


def _is_passed_over(c: Candidate) -> bool:
    """Whether it would be recommended by the primary analysis alone."""
    return bool(c["no_meaningful_loss"] and c["meets_constraints"] and c["conflicts"])


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


def _median_seconds(model: Model) -> float | None:
    spread = spread_of(model, "question_seconds")
    return spread and spread["median"]


def _within(value: float | None, limit: float | None) -> bool | None:
    return None if limit is None or value is None else value <= limit


# ---------------------------------------------------------------------------------------------------------- choice


def _choose(
    candidates: list[Candidate], compared: dict[str, Comparison], reference: str | None, models: dict[str, Model],
    options: Options,
) -> tuple[Decision, str | None, str | None]:  # fmt: skip
    """(kind, the model that the sentence is about, the runner-up)."""
    if not candidates:
        return "empty", None, None
    sizes = {c["model"]: _size(models[c["model"]], [models[o["model"]] for o in candidates]) for c in candidates}
    fitting = [c for c in candidates if c["meets_constraints"]]
    if not fitting:
        unknown = [c["model"] for c in candidates if c["meets_constraints"] is None]
        return ("not_measured" if unknown else "none_fits"), min(unknown or sizes, key=lambda k: sizes[k]), None
    if len(candidates) == 1:
        return "one_level", fitting[0]["model"], None
    if all(c["no_meaningful_loss"] is None for c in candidates):
        return "not_compared", reference, None
    qualified = [c["model"] for c in fitting if c["qualifies"]]
    if not qualified:
        return "none_shown", reference, None
    if is_constrained(options):
        best, second = min(qualified, key=lambda k: _accuracy_first(k, compared, models, sizes)), None
    else:
        best = _smallest(qualified, sizes, models)
        others = [k for k in qualified if k != best and _is_better(k, best, compared, models)]
        second = _smallest(others, sizes, models) if others else None
    return ("reference" if best == reference else "recommended"), best, second


def is_constrained(options: Options) -> bool:
    """Whether any limit was given."""
    return any(limit is not None for limit in (options.ram_bytes, options.vram_bytes, options.max_latency))


def _accuracy_first(
    key: str, compared: dict[str, Comparison], models: dict[str, Model], sizes: dict[str, float]
) -> tuple[float, float, float]:
    """The most accurate first, among equals the fastest, then the smallest."""
    waited = _median_seconds(models[key])
    return -round(_ahead(key, compared) / AS_GOOD), math.inf if waited is None else waited, sizes[key]


def _is_better(key: str, than: str, compared: dict[str, Comparison], models: dict[str, Model]) -> bool:
    """Whether a larger level has something to offer for its size: accuracy or speed."""
    mine, theirs = _median_seconds(models[key]), _median_seconds(models[than])
    faster = mine is not None and theirs is not None and mine < theirs
    return faster or _ahead(key, compared) > _ahead(than, compared) + AS_GOOD


def _ahead(key: str, compared: dict[str, Comparison]) -> float:
    """How much more accurate than the reference, over the questions that both answered."""
    c = compared.get(key)
    return (c["difference"] if c else None) or 0.0


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


def _price(chosen: Model, runner_up: Model, compared: dict[str, Comparison]) -> Price:
    """What the runner-up costs more."""
    used = [spread_of(m, "peak_rss_bytes") for m in (chosen, runner_up)]
    measured = all(used)
    need = [s["median"] for s in used if s] if measured else [m["n_bytes"] for m in (chosen, runner_up)]
    bytes_ = need[1] - need[0] if need[0] is not None and need[1] is not None else None
    mine, theirs = _median_seconds(chosen), _median_seconds(runner_up)
    memory: Literal["peak_rss_bytes", "n_bytes"] = "peak_rss_bytes" if measured else "n_bytes"
    return {
        "model": runner_up["key"],
        "memory": memory,
        "bytes": bytes_,
        "seconds_share": theirs / mine - 1 if mine and theirs is not None else None,
        "difference": _ahead(runner_up["key"], compared) - _ahead(chosen["key"], compared),
    }


# ------------------------------------------------------------------------------------------------------- sentences


class _Sentences:
    """The sentences of one verdict."""

    def __init__(
        self, models: dict[str, Model], compared: dict[str, Comparison], reference: str | None, options: Options,
        n_claims: int,
    ) -> None:  # fmt: skip
        self.models, self.compared, self.options, self.n_claims = models, compared, options, n_claims
        self.reference = models[reference] if reference else None

    def decision(
        self, kind: Decision, about: str | None, candidates: list[Candidate], result: Result | None
    ) -> Bilingual:
        """What to use, and what is known of its loss."""
        if about is None or result is None:
            return say("v_empty")
        model, c = self.models[about], self.compared.get(about)
        fields: dict[str, Any] = {
            "label": model["label"],
            "reference": self.reference["label"] if self.reference else "",
            "margin": plain(self.options.margin),
            "resources": _resources(model, self.options),
            "constraints": _constraints(self.options),
            "able": say("that_fits" if is_constrained(self.options) else "that_is_there"),
        }
        if kind == "recommended" and c:
            return say("v_recommended", **fields, **self._compared(c), of=self._of(model))
        if kind == "one_level" and result["interval"]:
            low, high = result["interval"]
            return say("v_one_level", accuracy=percent(result["share"]), low=percent(low), high=percent(high),
                       n=thousands(result["n"]), **fields)  # fmt: skip
        if kind == "reference" and any(x["qualifies"] and x["model"] != about for x in candidates):
            return say("v_reference_best" if is_constrained(self.options) else "v_reference_smallest", **fields)
        sentences = [say(f"v_{kind}", **fields)]
        if kind in ("reference", "none_shown") and (near := _nearest(candidates, self.compared)):
            numbers = self._compared(self.compared[near])
            sentences.append(say("v_nearest", label=self.models[near]["label"], **numbers))
        return together(sentences)

    def _of(self, model: Model) -> Bilingual:
        """Whose answers a loss is of."""
        r = self.reference
        if r and r["level"] in UNQUANTIZED and r["family"] == model["family"]:
            return say("of_own")
        return say("of_other", reference=r["label"] if r else "")

    def _compared(self, c: Comparison) -> dict[str, Any]:
        """The numbers of a level's comparison."""
        low, high = c["interval"] or (None, None)
        return {"difference": points(c["difference"]), "low": points(low), "high": points(high), "n": thousands(c["n"]),
                "detectable": percent(c["detectable_loss"]),
                "levels": say("of_levels", n=self.n_claims) if self.n_claims > 1 else {"en": "", "ja": ""}}  # fmt: skip

    def conflict(self, c: Candidate, views: Sequence[View]) -> Bilingual:
        """Why a level that the primary analysis lets pass is not recommended."""
        found = c["conflicts"]
        named = [
            say("conflict_in",
                where=view_name(x["view"]) if x["view"] else group_name(x["side"] or "", x["group"] or ""),
                before=percent(x["reference_share"]), after=percent(x["share"]), n=thousands(x["n"]),
                p=p_value(x["p_holm"]))
            for x in sorted(found, key=lambda x: (x["view"] is None, x["difference"]))[:NAMED]
        ]  # fmt: skip
        if len(found) > NAMED:
            named.append(say("conflict_more", n=len(found) - NAMED))
        return say("v_conflict", label=self.models[c["model"]]["label"], view=view_name(views[0]["key"]),
                   margin=plain(self.options.margin), where=joined(named))  # fmt: skip

    def price(self, price: Price) -> Bilingual:
        """The runner-up, and what it costs more than the level that is recommended."""
        parts = []
        if price["bytes"] is not None:
            of = say("price_memory" if price["memory"] == "peak_rss_bytes" else "price_file")
            key = "price_more" if price["bytes"] > 0 else "price_less" if price["bytes"] < 0 else "price_same"
            parts.append(say(key, size=size(abs(price["bytes"])), of=of))
        share = price["seconds_share"]
        if share is None:
            parts.append(say("price_unmeasured"))
        else:
            key = "price_slower" if share > 0 else "price_faster" if share < 0 else "price_as_fast"
            parts.append(say(key, share=percent(abs(share), 0)))
        ahead = price["difference"]
        key = "price_better" if ahead > AS_GOOD else "price_worse" if ahead < -AS_GOOD else "price_as_good"
        parts.append(say(key, points=percent(abs(ahead))))
        return say("v_runner_up", label=self.models[price["model"]]["label"], price=joined(parts, "comma"))


def _resources(model: Model, options: Options) -> Bilingual:
    """Size, memory and latency as far as they are known."""
    parts: list[Bilingual] = []
    if model["n_bytes"] is not None:
        parts.append(say("r_file", size=size(model["n_bytes"])))
    ram = ram_of(model)
    if ram is not None:
        key = "r_ram" if options.ram_bytes is None else "r_ram_fits" if ram <= options.ram_bytes else "r_ram_unfit"
        parts.append(say(key, ram=size(ram), limit=plain((options.ram_bytes or 0) / 1e9)))
    elif options.ram_bytes is not None:
        parts.append(say("r_ram_unknown"))
    if options.vram_bytes is not None:
        vram = vram_of(model)
        parts.append(say("r_vram_unknown") if vram is None else say("r_vram", vram=size(vram)))
    waited = spread_of(model, "question_seconds")
    if waited:
        parts.append(say("r_seconds", median=seconds(waited["median"]), p95=seconds(waited["p95"])))
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
