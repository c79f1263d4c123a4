"""What a reader must know before trusting a number: unfinished runs, differences between runs, empty answers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from jmedlite.base.gguf import tells_otherwise
from jmedlite.benchmarks.records import FAILED
from jmedlite.benchmarks.scoring import low_mass

from .labels import LANGUAGES, page_text, say
from .numbers import percent
from .pool import Pool
from .read import Run
from .sections import Bilingual, Family, View

# what changes scores, of a run's settings
_SETTINGS = ("seed", "shots", "permutations", "n_ctx", "kv_type", "flash_attn", "chat", "pack", "max_tokens",
             "think", "think_budget", "template_vars", "preset")  # fmt: skip
_LOADED = ("kv_type", "flash_attn", "pack")  # of them, those that a server decides: null, and nothing to be said of
_OFTEN = 0.05  # share of responses that name no choice, from which it is said


def cautions(laid: Pool) -> list[Bilingual]:
    """Sentences in every language, in order of weight."""
    return [
        *_declared(laid),
        *_unfinished(laid),
        *_apart(laid),
        *_differences(laid.runs),
        *_named(laid),
        *_lossy(laid),
        *_answers(laid),
    ]


def _named(laid: Pool) -> Iterable[Bilingual]:
    """Files whose names contradict their headers."""
    for e in laid.entrants:
        if e.model.label and e.model.level and tells_otherwise(e.model.label, e.model.level):
            yield say("w_named_otherwise", model=e.key, label=e.model.label, level=e.model.level)


def _lossy(laid: Pool) -> Iterable[Bilingual]:
    """Models made of weights that were quantized before."""
    for how in dict.fromkeys(e.model.quantized_base for e in laid.entrants if e.model.quantized_base):
        models = [e.key for e in laid.entrants if e.model.quantized_base == how]
        yield say("w_quantized_base", models=", ".join(models), how=how)


def _name(run: Run) -> str:
    return run.folder.resolve().name


def _unfinished(laid: Pool) -> Iterable[Bilingual]:
    for run in laid.runs:
        if len(run.answers) < run.n_expected:
            yield say("w_unfinished", run=_name(run), done=f"{len(run.answers):,}", expected=f"{run.n_expected:,}")
        if run.torn:
            yield say("w_torn", run=_name(run), files=", ".join(run.torn))
        if run.settings.get("stop_when_decided"):
            yield say("w_early", run=_name(run))
    silent = [e.key for e in laid.entrants if not any(sheets.get(e.key) for sheets in laid.sheets.values())]
    if silent:
        yield say("w_no_answers", models=", ".join(silent))


def _declared(laid: Pool) -> Iterable[Bilingual]:
    if len(laid.declared) > 1:
        yield say("w_primaries", names=", ".join(laid.declared))


def _apart(laid: Pool) -> Iterable[Bilingual]:
    if not laid.asked_alike():
        yield say("w_apart")


def _differences(runs: tuple[Run, ...]) -> Iterable[Bilingual]:
    for task in dict.fromkeys(t.name for run in runs for t in run.tasks):
        files = {_text(sorted(f.sha256 for f in t.files)) for r in runs for t in r.tasks if t.name == task}
        if len(files) > 1:
            yield say("w_data_differs", task=task)
    for key in dict.fromkeys((a.task, a.method) for run in runs for a in run.asks):
        asks = {(a.template.sha256, a.shots) for r in runs for a in r.asks if (a.task, a.method) == key}
        if len(asks) > 1:
            yield say("w_template_differs", task=key[0], method=key[1])
    for name in _SETTINGS:
        found = [run.settings.get(name) for run in runs]
        values = list(dict.fromkeys(_text(v) for v in found if v is not None or name not in _LOADED))
        if len(values) > 1:
            yield say("w_setting_differs", name=name, values=", ".join(values))
    if len({_text([run.machine, run.settings.get("threads")]) for run in runs if run.measures}) > 1:
        yield say("w_machine_differs")
    versions = list(dict.fromkeys(run.llama_cpp_python for run in runs if run.llama_cpp_python))
    if len(versions) > 1:
        yield say("w_setting_differs", name="llama-cpp-python", values=", ".join(versions))


def _answers(laid: Pool) -> Iterable[Bilingual]:
    for run in laid.runs:
        for task in run.tasks:
            bad = sum(n for reason, n in task.excluded.items() if reason.startswith("bad row"))
            if bad:
                yield say("w_skipped", run=_name(run), task=task.name, n=bad)
    empty: dict[str, list[tuple[float, str]]] = {}
    for e in laid.entrants:
        answers = list(laid.sheets.get("generate", {}).get(e.key, {}).values())
        for name in dict.fromkeys(a.task for a in answers):
            states = [a.status == "unparsed" for a in answers if a.task == name]
            empty.setdefault(name, []).append((sum(states) / len(states), e.key))
    for name, (share, model) in ((name, max(found)) for name, found in empty.items()):
        if share > _OFTEN:
            yield say("w_unparsed", model=model, task=name, share=percent(share))
    for name, (mass, model) in _low_masses(laid).items():
        yield say("w_mass", model=model, task=name, share=_few_percent(mass))
    for run in laid.runs:
        if failed := sum(a.status == FAILED for a in run.answers):
            yield say("w_failed", run=_name(run), n=failed)
    complete = any(len(run.answers) >= run.n_expected > 0 for run in laid.runs)
    scored = any(a.method != "generate" for run in laid.runs for a in run.asks)  # responses are compared as text
    if complete and scored and not any(run.noise for run in laid.runs):
        yield say("w_no_noise")


def _low_masses(laid: Pool) -> dict[str, tuple[float, str]]:
    """Per task, the smallest of the models' medians of the letters' probability that are low, and its model."""
    found: dict[str, list[tuple[float, str]]] = {}
    for e in laid.entrants:
        by_task: dict[str, list[float]] = {}
        for a in laid.sheets.get("letter", {}).get(e.key, {}).values():
            if a.mass is not None:
                by_task.setdefault(a.task, []).append(a.mass)
        for task, masses in by_task.items():
            if (mass := low_mass(masses)) is not None:
                found.setdefault(task, []).append((mass, e.key))
    return {task: min(models) for task, models in found.items()}


def _few_percent(share: float) -> str:
    return f"{100 * share:.1f}" if share >= 0.0005 else "0.1"


def guesses(families: list[Family], views: list[View]) -> Iterable[Bilingual]:
    """References that are not shown to beat the best of the baselines: comparing their levels means little."""
    known = {k: v for k, v in views[0]["baselines"].items() if k not in ("human", "n_human") and v is not None} \
        if views else {}  # fmt: skip
    if not known:
        return
    results = {r["model"]: r for r in views[0]["results"]}
    name, floor = max(known.items(), key=lambda item: item[1])
    for key in dict.fromkeys(f["reference"] for f in families if f["reference"]):
        r = results[key]
        if r["interval"] and r["interval"][0] <= floor:
            low, high = r["interval"]
            names = {lang: page_text(lang)[f"baseline_{name}"] for lang in LANGUAGES}
            yield say("w_floor", model=key, accuracy=percent(r["share"]), low=percent(low), high=percent(high),
                      floor=percent(floor), name=names)  # fmt: skip


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
