"""The report's document as one HTML page: no request; every number stands in a `<data>` element.

Its one script, which filters the items, is no part of any text: the page's policy allows this very script by its hash,
so that nothing else could run even where a text were not escaped. Without it everything can be read.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import defaultdict
from functools import cache, partial
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup, escape

from .distances import texts_of
from .labels import page_text, part_name, side_name
from .numbers import BYTES, MISSING, SECONDS, Units, fixed, in_units, p_value, percent, points
from .plots import draw
from .sections import Asked, Document, GroupTest, Heterogeneity, Part, Result, View

SHOWN = 600  # items of a kind that unfold on the page; the others are in the JSON
_FLIPS = {None: "-", "right_to_wrong": "a", "wrong_to_right": "b", "wrong_to_wrong": "c"}


def render(document: Document, lang: str) -> str:
    """The page in "en" or "ja"."""
    text = page_text(lang)
    plots = {name: svg and Markup(svg) for name, svg in draw(document, text).items()}
    labels = short = {m["key"]: m["label"] for m in document["models"]}
    if len(document["families"]) > 1:
        labels = {m["key"]: f"{m['family']} {m['label']}" for m in document["models"]}
    script = _BLANK.sub("\n", _resource("report.js").strip())
    numbers = {m["key"]: i for i, m in enumerate(document["models"])}
    sides = {v["key"]: _sides(v) for v in document["views"]}
    page = _template().render(
        d=document, t=text, lang=lang, plots=plots, labels=labels, shown=SHOWN, results=_results(document),
        css=Markup(_resource("report.css")), plain=_plain, parts=_parts(document), part_of=_part_of,
        nothing=defaultdict(lambda: None), judged=_judgements(document),
        untold=_untold(document), apart=_apart(document),
        side_name=lambda side: side_name(side)[lang], part_name=lambda side, part: part_name(side, part)[lang],
        candidates={c["model"]: c for v in document["verdicts"] for c in v["candidates"]},
        short=short, answered=[m["key"] for m in document["models"] if _answered(document, m["key"])],
        texts=texts_of(document["models"]), by_key={m["key"]: m for m in document["models"]},
        js=Markup(script), js_hash=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
        numbers=numbers, answers_of=partial(_answers, numbers), sides_of=lambda v: sides[v["key"]],
        groups_of=lambda v, item: " ".join(str(sides[v["key"]][side][name]) for side, name in item["groups"].items()),
    )  # fmt: skip
    return _BLANK.sub("\n", _labelled(page))


@cache
def _template() -> jinja2.Template:
    """The page's template, compiled once a process: it is the same for every report."""
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
        "label_of": _label_of,
    }
    return environment.get_template("report.html.j2")


@jinja2.pass_context
def _label_of(context: jinja2.runtime.Context, key: str) -> str:
    """What the page calls a model."""
    label: str = context["labels"][key]
    return label


_BLANK = re.compile(r"[ \t]*\n\s*\n")


def _sides(view: View) -> dict[str, dict[str, int]]:
    """Side to the names of groups there, each with a number of its own."""
    found: dict[str, dict[str, int]] = {}
    for item in [*view["flipped"], *view["unchanged"]]:
        for side, name in item["groups"].items():
            names = found.setdefault(side, {})
            names.setdefault(name, 0)
    count = 0
    for names in found.values():
        for name in names:
            names[name], count = count, count + 1
    return found


def _answers(numbers: dict[str, int], item: Asked) -> str:
    """An item's outcomes for the script: model's number, r or w, flip, and n where the noise could have decided."""
    return " ".join(
        f"{numbers[key]}{'r' if o['correct'] else 'w'}{_FLIPS[o['kind']]}{'n' if o['within_noise'] else ''}"
        for key, o in item["outcomes"].items()
        if o["correct"] is not None
    )


_TABLE = re.compile(r"<thead>(.*?)</thead>(.*?)</table>", re.DOTALL)
_ROW, _CELL = re.compile(r"<tr.*?</tr>", re.DOTALL), re.compile(r"<t([dh])(?=[ >])([^>]*)>")


def _labelled(page: str) -> str:
    """The page with each cell's heading on the cell: on a phone, where rows become blocks, it stands before it."""

    def table(found: re.Match[str]) -> str:
        heads = [
            Markup(re.sub(r"<small>.*?</small>", "", head)).striptags()
            for head in re.findall(r"<th(?:>| [^>]*>)(.*?)</th>", found[1], re.DOTALL)
        ]

        def row(part: re.Match[str]) -> str:
            places = iter(range(len(heads)))

            def cell(tag: re.Match[str]) -> str:
                place = next(places, None)
                if tag[1] == "h" or place is None or "colspan" in tag[2]:
                    return tag[0]
                return f'<td{tag[2]} data-label="{escape(heads[place])}">'

            return _CELL.sub(cell, part[0])

        return f"<thead>{found[1]}</thead>{_ROW.sub(row, found[2])}</table>"

    return _TABLE.sub(table, page)


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
    return Markup('<data value="{}">{}</data>\N{NO-BREAK SPACE}{}').format(repr(value), number, unit)


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
