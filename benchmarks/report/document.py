"""From runs to the report's document: every number of the page, computed once, as plain JSON (docs/report.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jmedlite import __version__
from jmedlite.base.errors import UsageError
from jmedlite.benchmarks import statistics
from jmedlite.benchmarks.records import MatrixRecord, TaskRecord
from jmedlite.benchmarks.views import View
from jmedlite.runtime.chat_template import NOTICE

from . import sections
from .ages import age_of, contaminated
from .baselines import baselines, orders_of
from .cautions import cautions, guesses
from .claims import claim
from .compare import compare, confidence, contraindicated, difference, sequential, share, verdicts
from .costs import measures, pareto_fronts, thought_tokens_mean
from .distances import by_size, distances
from .flips import MOST_UNCHANGED, items
from .groups import judge_groups, sides_of
from .labels import say
from .papers import papers
from .points import exam_points, sentences
from .pool import Entrant, Item, Pool, Sheet, Unit, pool
from .read import Run
from .verdict import verdict

FORMAT, VERSION = "jmedlite.report", 2


@dataclass(frozen=True)
class Options:
    """What the person asked for. `margin` in points; the constraints may be None."""

    reference: str | None = None
    margin: float = 2.0
    ram_bytes: int | None = None
    vram_bytes: int | None = None
    max_latency: float | None = None

    @property
    def margin_share(self) -> float:
        return self.margin / 100


def summarise(runs: Sequence[Run], options: Options) -> sections.Document:
    """The document. Raises UsageError where the reference is none of the models."""
    laid = pool(runs)
    views = laid.view_keys()
    references = _references(laid, options, views)
    models = [_model(laid, e) for e in laid.entrants]
    families: list[sections.Family] = [
        {"name": name, "reference": references.get(name), "models": [e.key for e in laid.family(name)]}
        for name in laid.families
    ]
    judged = _judged(families, options)
    view_documents = [_view(laid, view, references, judged, options) for view in views]
    return {
        "format": FORMAT,
        "version": VERSION,
        "jmedlite": __version__,
        "notice": dict(NOTICE),
        "options": {"reference": options.reference, "margin": options.margin, "ram_bytes": options.ram_bytes,
                    "vram_bytes": options.vram_bytes, "max_latency": options.max_latency, "alpha": statistics.ALPHA,
                    "power": statistics.POWER, "bootstrap_samples": statistics.SAMPLES},
        "primary": _primary(laid, views),
        "verdicts": [
            verdict(f, models, view_documents, options, judge_groups(laid, laid.primary, f, options.margin_share),
                    _partial(laid, f))
            for f in judged
        ],
        "warnings": [*guesses(families, view_documents), *cautions(laid), *contaminated(laid)],
        "runs": [_run(run) for run in runs],
        "tasks": _tasks(runs),
        "asks": [_ask(run, i) for run in runs for i in range(len(run.asks))],
        "families": families,
        "models": models,
        "pareto": pareto_fronts(models, view_documents, joined=laid.asked_alike()),
        "by_size": by_size(models),
        "views": view_documents,
        "papers": papers(laid, view_documents),
    }  # fmt: skip


def _primary(laid: Pool, views: Sequence[View]) -> sections.Primary | None:
    """What the verdicts go by, and why it is the default of its method."""
    if not views:
        return None
    return {"view": views[0].key, "declared": bool(laid.declared), "reason": say(f"default_{views[0].method}")}


def _partial(laid: Pool, family: sections.Family) -> sections.Partial | None:
    """Answers of the runs of these models, where not all are there."""
    runs = {i: laid.runs[i] for e in laid.entrants if e.key in family["models"] for i in e.runs}
    there, expected = (sum(n) for n in zip(*((len(r.answers), r.n_expected) for r in runs.values()), strict=True))
    return {"n_answers": there, "n_expected": expected} if there < expected else None


def _judged(families: list[sections.Family], options: Options) -> list[sections.Family]:
    """Each family has a verdict of its own, unless one reference was named for all."""
    if options.reference is None or len(families) < 2:
        return families
    names = ", ".join(f["name"] for f in families)
    return [
        {"name": names, "reference": families[0]["reference"], "models": [k for f in families for k in f["models"]]}
    ]


# ------------------------------------------------------------------------------------------------------ references


def _references(laid: Pool, options: Options, views: list[View]) -> dict[str, str]:
    """Family to the key of its reference: the one named, else BF16, else the widest; of those that answered."""
    if options.reference is not None:
        named = _named(laid, options.reference)
        return {family: named for family in laid.families}
    answered = {key for view in views[:1] for key, sheet in laid.sheets[view.method].items() if sheet}
    found = {}
    for family in laid.families:
        able = [e for e in laid.family(family) if e.key in answered]
        if able:
            found[family] = max(able, key=_width).key
    return found


def _width(e: Entrant) -> tuple[bool, float, float]:
    return e.model.level == "BF16", e.model.bits_per_weight or 0.0, float(e.model.n_bytes or 0)


def _named(laid: Pool, name: str) -> str:
    """The key of the one model that is meant by its key, name, file or level."""
    for match in (
        [e for e in laid.entrants if e.key == name],
        [e for e in laid.entrants if name in (e.model.name, e.model.file)],
        [e for e in laid.entrants if name.upper() == (e.model.level or "").upper() or name == e.label],
    ):
        if len(match) == 1:
            return match[0].key
        if match:
            raise UsageError(f"--reference {name}: is {', '.join(e.key for e in match)}; name one of them")
    raise UsageError(f"--reference {name}: is none of the models; there are {', '.join(e.key for e in laid.entrants)}")


# ---------------------------------------------------------------------------------------- what was run and measured


def _run(run: Run) -> sections.Run:
    return {
        "folder": run.folder.resolve().name,
        "created": run.created,
        "jmedlite": run.jmedlite,
        "llama_cpp_python": run.llama_cpp_python,
        "machine": run.machine,
        "settings": run.settings,
        "n_answers": len(run.answers),
        "n_expected": run.n_expected,
        "torn": list(run.torn),
    }


def _tasks(runs: Sequence[Run]) -> list[sections.Task]:
    return [_task(i, task) for i, run in enumerate(runs) for task in run.tasks]


def _task(run: int, task: TaskRecord) -> sections.Task:
    return {
        "run": run,
        "name": task.name,
        "task": task.task,
        "lang": task.lang,
        "title": task.title,
        "n_items": task.n_items,
        "n_asked": task.n_asked,
        "excluded": task.excluded,
        "source": task.source,
        "revision": task.revision,
        "license": task.license,
        "date": task.date,
        "files": [{"name": f.name, "sha256": f.sha256} for f in task.files],
    }


def _ask(run: Run, index: int) -> sections.Ask:
    ask = run.asks[index]
    return {
        "run": run.folder.resolve().name,
        "task": ask.task,
        "method": ask.method,
        "template": {"name": ask.template.name, "sha256": ask.template.sha256, "text": ask.template.text},
        "shots": list(ask.shots),
        "n_requests": ask.n_requests,
        "example": ask.example,
    }


def _matrix(m: MatrixRecord) -> sections.Matrix:
    return {"file": m.file, "dataset": m.dataset, "n_tensors": m.n_tensors, "n_chunks": m.n_chunks}


def _model(laid: Pool, entrant: Entrant) -> sections.Model:
    model, age = entrant.model, age_of(entrant.model)
    return {
        "key": entrant.key,
        "label": entrant.label,
        "family": entrant.family,
        "runs": list(entrant.runs),
        "name": model.name,
        "base": model.base,
        "level": model.level,
        "file": model.file,
        "sha256": model.sha256,
        "n_bytes": model.n_bytes,
        "n_params": model.n_params,
        "bits_per_weight": model.bits_per_weight,
        "architecture": model.architecture,
        "title": model.title,
        "license": model.license,
        "made_from": model.made_from,
        "imatrix": model.imatrix,
        "matrix": _matrix(model.matrix) if model.matrix else None,
        "made_here": model.made_here,
        "quantized_by": model.quantized_by,
        "types": model.types,
        "tensor_types": model.tensor_types,
        "adapters": [{"name": a.name, "weight": a.weight} for a in model.adapters],
        "endpoint": model.endpoint,
        "date": age.date if age else None,
        "date_source": age.source if age else None,
        "measures": measures(laid.measures(entrant)),
        "thought_tokens_mean": thought_tokens_mean(laid.sheets.get("generate", {}).get(entrant.key, {}).values()),
        "distances": distances(laid, entrant),
    }  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- views


def _view(
    laid: Pool, view: View, references: Mapping[str, str], judged: Sequence[sections.Family], options: Options
) -> sections.View:
    """All results of one way of counting answers."""
    sheets = {e.key: laid.sheets[view.method].get(e.key, {}) for e in laid.entrants}
    orders = orders_of(sheets, laid.facts)
    exams = exam_points(laid, view)
    flipped, unchanged = items(laid, view, references) if laid.counts(view) else ([], [])
    n_claims = sum(bool(sheets[e.key]) and references.get(e.family) not in (None, e.key) for e in laid.entrants)
    results = [_result(laid, view, e, references.get(e.family), options, n_claims) for e in laid.entrants]
    compared = {r["model"]: r["comparison"] for r in results if r["comparison"] and r["comparison"]["n"]}
    width = {e.key: _width(e) for e in laid.entrants}
    early = {e.key for e in laid.entrants if any(laid.runs[i].settings.get("stop_when_decided") for i in e.runs)}
    for family in judged:
        # the widest first: what it is, not how it answered, tells its place
        order = sorted((k for k in family["models"] if k in compared), key=lambda k: width[k][1:], reverse=True)
        claim([(compared[k], k in early) for k in order], len(compared), options.margin_share)
        _adjust([compared[k] for k in order])
    return {
        "key": view.key,
        "method": view.method,
        "tasks": list(dict.fromkeys(item.task for item, _ in orders)),
        "baselines": baselines(view, orders, laid.facts),
        "baselines_by_task": {
            task: baselines(view, {u: o for u, o in orders.items() if u[0].task == task}, laid.facts)
            for task in dict.fromkeys(item.task for item, _ in orders)
        },
        "results": results,
        "across": _across(laid, view, references),
        "languages": _languages(laid, view),
        "exams": exams,
        "exam_sentences": sentences(laid, exams, references),
        "has_items": laid.counts(view),
        "n_flipped": len(flipped),
        "flipped_by_kind": {kind: sum(f["kind"] == kind for f in flipped) for kind in sections.KINDS},
        "flipped": flipped,
        "n_unchanged": len(unchanged),
        "unchanged": unchanged[:MOST_UNCHANGED],
    }


def _adjust(comparisons: list[sections.Comparison]) -> None:
    """Holm over the levels of a verdict."""
    known = [(c, c["p"]) for c in comparisons if c["p"] is not None]
    for (c, _), p in zip(known, statistics.holm([p for _, p in known]), strict=True):
        c["p_holm"] = p


def _result(
    laid: Pool, view: View, entrant: Entrant, reference_key: str | None, options: Options, n_claims: int
) -> sections.Result:
    sheet = laid.sheets[view.method].get(entrant.key, {})
    reference: Sheet | None = None
    compared: sections.Comparison | None = None
    if reference_key is not None and reference_key != entrant.key:
        reference = laid.sheets[view.method].get(reference_key, {})
        found = compare(view, sheet, reference, laid.facts, 1 - statistics.ALPHA / max(1, n_claims))
        test = sequential(view, sheet, reference, laid.facts, options.margin_share)
        compared = {"reference": reference_key, "p_holm": None, "alpha": statistics.ALPHA, **found,
                    "no_meaningful_loss": False, "sequential": test}  # fmt: skip
    return {
        "model": entrant.key,
        "family": entrant.family,
        **share(verdicts(view, sheet), laid.facts),
        "accounting": _accounting(laid, view, entrant),
        "gestalt": _gestalt(view, sheet, laid),
        "comparison": compared,
        "breakdowns": _breakdowns(laid, view, sheet, reference),
        "contraindicated": contraindicated(view, sheet, reference, laid.facts),
        "confidence": confidence(view, sheet, laid.facts),
        "noise": _noise(laid, view, entrant, sheet),
    }


def _accounting(laid: Pool, view: View, entrant: Entrant) -> list[sections.Accounting]:
    """Per task, what became of every item of it; the five add up to `n_items`."""
    sheet = laid.sheets[view.method].get(entrant.key, {})
    long = laid.too_long.get(view.method, {}).get(entrant.key, frozenset())
    states: dict[Item, set[str]] = {}
    for unit in laid.asked.get(view.method, {}).get(entrant.key, frozenset()):
        answer = sheet.get(unit)
        state = "too_long" if unit in long else "missing" if answer is None else answer.status
        states.setdefault(unit[0], set()).add(state)
    worst = {item: next(s for s in ("missing", "too_long", "unparsed", "scored") if s in seen)
             for item, seen in states.items()}  # fmt: skip
    found: list[sections.Accounting] = []
    for run in (laid.runs[i] for i in entrant.runs):
        for task in (t for t in run.tasks if (t.name, view.method) in {(a.task, a.method) for a in run.asks}):
            n = Counter(state for item, state in worst.items() if item.task == task.name)
            found.append({"task": task.name, "n_items": task.n_items, "scored": n["scored"],
                          "unparsed": n["unparsed"], "too_long": n["too_long"], "missing": n["missing"],
                          "excluded": sum(task.excluded.values()), "reasons": task.excluded})  # fmt: skip
    return found


def _gestalt(view: View, sheet: Sheet, laid: Pool) -> sections.Gestalt | None:
    """The mean of difflib's ratio between response and answer (`generate` only), with its bootstrap interval."""
    values = {unit: a.gestalt for unit, a in sheet.items() if a.gestalt is not None}
    if view.key != "generate" or not values:
        return None
    nothing = dict.fromkeys(values, 0.0)
    found = difference(values, nothing, laid.facts)
    return {"n": found["n"], "mean": found["difference"], "interval": found["interval"]}


def _breakdowns(laid: Pool, view: View, sheet: Sheet, reference: Sheet | None) -> dict[str, list[sections.Part]]:
    """The same numbers for each task, language, category, length of the stem, and declared group."""
    found: dict[str, list[sections.Part]] = {}
    right = verdicts(view, sheet)
    before = verdicts(view, reference) if reference is not None else {}
    for side, of in sides_of({item for item, _ in right}, laid.facts).items():
        parts: dict[str, dict[Unit, float]] = {}
        for unit, value in right.items():
            if unit[0] in of:
                parts.setdefault(of[unit[0]], {})[unit] = value
        found[side] = [
            {"name": name, **share(part, laid.facts),
             "difference": difference(part, before, laid.facts) if reference is not None else None}
            for name, part in sorted(parts.items())
        ]  # fmt: skip
    return found


def _noise(laid: Pool, view: View, entrant: Entrant, sheet: Sheet) -> sections.Noise | None:
    """How many answers were decided by less than batching alone moves scores."""
    noise = {task: n for task, n in laid.noise(entrant, view.method).items() if n.max is not None}
    if view.kind != "picks" or not noise:
        return None
    margins = [
        (margin, noise[item.task].max or 0.0)
        for (item, _), a in sheet.items()
        if item.task in noise and (margin := view.margin(a)) is not None
    ]
    return {
        "n_answers": len(margins),
        "n_below": sum(margin < most for margin, most in margins),
        "max": max(n.max or 0.0 for n in noise.values()),
        "median": float(np.median([n.median or 0.0 for n in noise.values()])),
        "n_checked": sum(n.n for n in noise.values()),
        "picks_changed": sum(n.picks_changed for n in noise.values()),
    }


def _across(laid: Pool, view: View, references: Mapping[str, str]) -> list[sections.Across]:
    """Models of different families on the same questions: their references, and levels of the same name."""
    first, *others = laid.families
    found: list[sections.Across] = []
    for family in others:
        pairs = [(references.get(family), references.get(first))]
        for e in laid.family(family):
            pairs += [(e.key, o.key) for o in laid.family(first) if e.model.level and o.model.level == e.model.level]
        for key, against in dict.fromkeys(pairs):
            if key is None or against is None or key == against:
                continue
            left, right = (laid.sheets[view.method].get(k, {}) for k in (key, against))
            compared = compare(view, left, right, laid.facts)
            if compared["n"]:
                found.append({"model": key, "against": against, **compared})
    return found


def _languages(laid: Pool, view: View) -> list[sections.Languages]:
    """Japanese against English: each model with itself, over the questions that it was asked in both."""
    found: list[sections.Languages] = []
    for e in laid.entrants:
        by: dict[str, dict[Unit, float]] = {"ja": {}, "en": {}}
        facts = {}
        for (item, permutation), value in verdicts(view, laid.sheets[view.method].get(e.key, {})).items():
            f = laid.facts[item]
            question = Item(*f.cluster, "")
            facts[question] = f
            by.setdefault(f.question.lang, {})[question, permutation] = value
        both = difference(by["ja"], by["en"], facts)
        if not both["n"]:
            continue
        common = [u for u in by["ja"] if u in by["en"]]
        shares = {lang: share({u: by[lang][u] for u in common}, facts) for lang in ("ja", "en")}
        lost = sum(by["ja"][u] < by["en"][u] for u in common)
        won = sum(by["ja"][u] > by["en"][u] for u in common)
        found.append({"model": e.key, "ja": shares["ja"], "en": shares["en"], **both,
                      "p": statistics.mcnemar(lost, won), "only_en_right": lost, "only_ja_right": won})  # fmt: skip
    return found
