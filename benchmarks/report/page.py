"""The report's document as one HTML page: no request, no script; every number stands in a `<data>` element."""

from __future__ import annotations

import re
from collections import defaultdict
from functools import partial
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup, escape

from .labels import page_text, part_name, side_name
from .numbers import BYTES, MISSING, SECONDS, Units, fixed, in_units, p_value, percent, points
from .plots import draw
from .sections import Document, GroupTest, Heterogeneity, Part, Result

SHOWN = 600  # items that unfold on the page; all are in the JSON


def render(document: Document, lang: str) -> str:
    """The page in "en" or "ja"."""
    text = page_text(lang)
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined,
        loader=jinja2.FunctionLoader(_resource),
    )  # fmt: skip
    environment.filters |= {
        "moment": _moment,
        "pct": partial(_number, percent),
        "pts": partial(_number, points),
        "size": partial(_in_units, BYTES),
        "time": partial(_in_units, SECONDS),
        "num": partial(_number, fixed),
        "int": partial(_number, _whole),
        "pval": partial(_number, p_value),
    }
    plots = {name: svg and Markup(svg) for name, svg in draw(document, text).items()}
    labels = short = {m["key"]: m["label"] for m in document["models"]}
    if len(document["families"]) > 1:
        labels = {m["key"]: f"{m['family']} {m['label']}" for m in document["models"]}
    environment.filters["label_of"] = labels.__getitem__
    template = environment.get_template("report.html.j2")
    page = template.render(
        d=document, t=text, lang=lang, plots=plots, labels=labels, shown=SHOWN, results=_results(document),
        css=Markup(_resource("report.css")), plain=_plain, parts=_parts(document), part_of=_part_of,
        nothing=defaultdict(lambda: None), judged=_judgements(document),
        untold=_untold(document), apart=_apart(document),
        side_name=lambda side: side_name(side)[lang], part_name=lambda side, part: part_name(side, part)[lang],
        candidates={c["model"]: c for v in document["verdicts"] for c in v["candidates"]},
        short=short, answered=[m["key"] for m in document["models"] if _answered(document, m["key"])],
    )  # fmt: skip
    return re.sub(r"[ \t]*\n\s*\n", "\n", page)


def _resource(name: str) -> str:
    return (files("jmedlite.benchmarks.report") / name).read_text(encoding="utf-8")


def _results(document: Document) -> dict[str, dict[str, Result]]:
    """View key to model key to result."""
    return {v["key"]: {r["model"]: r for r in v["results"]} for v in document["views"]}


def _parts(document: Document) -> dict[str, dict[str, int]]:
    """Of the primary view: every side to the names there, each with the most questions any model has."""
    found: dict[str, dict[str, int]] = {}
    for result in document["views"][0]["results"] if document["views"] else []:
        for side, parts in result["breakdowns"].items():
            names = found.setdefault(side, {})
            for part in parts:
                names[part["name"]] = max(part["n_items"], names.get(part["name"], 0))
    return found


def _answered(document: Document, key: str) -> bool:
    """Whether the model has results in the first view."""
    return any(r["model"] == key and r["n"] for r in document["views"][0]["results"]) if document["views"] else False


def _part_of(result: Result, side: str, name: str) -> Part | None:
    return next((part for part in result["breakdowns"].get(side, []) if part["name"] == name), None)


def _judgements(document: Document) -> dict[tuple[str, str, str], GroupTest]:
    """(model, side, group) to what its questions show."""
    return {(g["model"], g["side"], g["group"]): g for v in document["verdicts"] for g in v["groups"]}


def _apart(document: Document) -> dict[tuple[str, str], Heterogeneity]:
    """(model, side) to whether its groups differ."""
    return {(h["model"], h["side"]): h for v in document["verdicts"] for h in v["heterogeneity"]}


def _untold(document: Document) -> list[tuple[str, list[GroupTest]]]:
    """By verdict, the level that it recommends (else its first), and the groups that are too small to tell of it."""
    found = []
    for v in document["verdicts"]:
        tested = [g["model"] for g in v["groups"]]
        key = v["key"] if v["key"] in tested else next(iter(tested), None)
        if key is not None and (few := [g for g in v["groups"] if g["model"] == key and g["outcome"] == "untold"]):
            found.append((key, few))
    return found


def _number(write: Any, value: float | None, *arguments: int) -> Markup:
    """A number that says exactly what it is, so that the page can be checked against the document."""
    if value is None:
        return Markup('<span class="none">{}</span>').format(MISSING)
    return Markup('<data value="{}">{}</data>').format(repr(value), write(value, *arguments))


def _in_units(units: Units, value: float | None) -> Markup:
    """A number in the unit that fits it."""
    if value is None:
        return _number(None, None)
    number, unit = in_units(value, units)
    return Markup('<data value="{}">{}</data> {}').format(repr(value), number, unit)


def _moment(created: str) -> str:
    """ISO 8601 as people write it, to the minute."""
    return re.sub(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d)(:\d\d)?(\.\d+)?(\+00:00|Z)$", r"\1 \2 UTC", created)


def _whole(value: float) -> str:
    return fixed(value, 0 if float(value).is_integer() else 1)


def _plain(value: Any) -> Markup:
    """A setting or fact from a run, as text."""
    if isinstance(value, dict):
        return Markup(", ").join(Markup("{} {}").format(k, _plain(v)) for k, v in value.items())
    if isinstance(value, list | tuple):
        return Markup(", ").join(_plain(v) for v in value)
    return escape("–" if value is None else str(value).lower() if isinstance(value, bool) else value)
