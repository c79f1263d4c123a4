"""The report's document as Markdown, as CSV, and as the model card of a GGUF repository."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

import yaml

from jmedlite.base.errors import UsageError
from jmedlite.base.hub import parse_id

from .costs import spread_of
from .labels import page_text
from .numbers import MISSING, fixed, p_value, percent, plain, points, seconds, size
from .sections import KINDS, Document, Measure, Model, Result, View
from .verdict import reasons


def _cell(text: Any) -> str:
    """Text that stays text in a Markdown table."""
    plain = " ".join(str(text).split())
    return re.sub(r"([\\`*_{}\[\]<>|#~])", r"\\\1", plain)


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]], n_text: int = 1) -> str:
    """A Markdown table; the first `n_text` columns are text, the others numbers."""
    marks = ["---"] * n_text + ["---:"] * (len(head) - n_text)
    lines = [head, marks, *rows]
    return "\n".join(
        "| " + " | ".join(c if i == 1 else _cell(c) for c in line) + " |" for i, line in enumerate(lines)
    ) + "\n"  # fmt: skip


def _interval(interval: Sequence[float] | None, write: Any) -> str:
    return f"{write(interval[0])} … {write(interval[1])}" if interval else MISSING


def _median(model: Model, name: Measure, write: Any, *arguments: int) -> str:
    spread = spread_of(model, name)
    return str(write(spread and spread["median"], *arguments))


# --------------------------------------------------------------------------------------------------------- Markdown


def to_markdown(document: Document, lang: str) -> str:
    """The verdict, the table of levels, the comparisons, and the baselines."""
    t = page_text(lang)
    names = ", ".join(f["name"] for f in document["families"])
    parts = [f"# {t['title']}: {_cell(names)}\n", f"## {t['h_verdict']}\n"]
    parts += [f"{_cell(reason)}\n" for reason in reasons(document, lang)]
    parts += [f"{_cell(t['rules'])}\n"]
    parts += [f"> {_cell(w[lang])}\n" for w in document["warnings"]]
    parts += [f"## {t['h_levels']}\n", _levels(document, t)]
    parts += [*exams_as_markdown(document, t, lang), *papers_as_markdown(document, t)]
    for view in document["views"]:
        parts += [f"## {t['h_paired']}: {t['view_' + view['key']]}\n", _comparisons(view, t)]
        base = view["baselines"]
        known = [(t["baseline_" + key], percent(v)) for key, v in base.items() if key != "n_human" and v is not None]
        parts += [f"## {t['h_baselines']}: {t['view_' + view['key']]}\n", _table(["", t["accuracy"]], known)]
    parts += [f"**{document['notice'][lang]}**\n"]
    return "\n".join(parts)


def exams_as_markdown(document: Document, t: dict[str, str], lang: str) -> list[str]:
    """Points and passing, by the first view; nothing where no exam was asked."""
    view = document["views"][0] if document["views"] else None
    if not view or not view["exams"]:
        return []
    parts = [
        f"## {t['h_exams']}\n",
        *(f"- {_cell(s[lang])}" for s in view["exam_sentences"]),
        "",
        f"{t['exams_note']}\n",
    ]
    for exam in view["exams"]:
        title = t["exam_title"].format(number=exam["exam"], year=exam["held"][:4])
        parts.append(f"### {_cell(title)} ({_cell(exam['task'])})\n")
        parts += [f"{t['exam_reference'].format(reference=exam['reference'])}\n"] * bool(exam["reference"])
        lines = [
            f"{t['section_' + s]} ({t['exam_line'].format(points=exam['lines'][s], of=exam['points'][s])})"
            for s in exam["lines"]
        ]
        word = {True: t["exam_passes"], False: t["exam_fails"], None: MISSING}
        rows = [
            [s["model"], *(f"{p['points']} / {p['asked']}" for p in s["sections"]),
             MISSING if s["harmful"] is None else s["harmful"], word[s["least"]], percent(s["chance"]),
             _interval(s["interval"], percent), word[s["most"]], percent(s["another"]),
             _interval(s["another_interval"], percent)]
            for s in exam["sittings"]
        ]  # fmt: skip
        head = [t["model"], *lines, t["exam_harm"], t["exam_least"], t["exam_chance"], t["ci"], t["exam_most"],
                t["exam_again"], t["ci"]]  # fmt: skip
        parts.append(_table(head, rows))
    return [*parts, f"{t['exams_model']}\n"]


def papers_as_markdown(document: Document, t: dict[str, str]) -> list[str]:
    """A run that was asked as a paper did, beside what was published; nothing for other runs."""
    parts = []
    for table in document["papers"]:
        rows = []
        for row in table["rows"]:
            note = f" ({row['note']})" if row["note"] else ""
            name = row["model"] or f"{row['published']}, {t['papers_published']}{note}"
            cells = [
                f"{percent(c['share'])} ({_interval(c['interval'], percent)})" if c else MISSING for c in row["cells"]
            ]
            rows.append([name, *cells])
        note = t["papers_note"].format(paper=table["paper"], source=table["source"])
        parts += [f"## {t['h_papers']}\n", f"{note}\n", _table([t["model"], *table["tasks"]], rows)]
        parts += [f"{t['papers_none']}\n"] * all(row["model"] for row in table["rows"])
    return parts


def _levels(document: Document, t: dict[str, str]) -> str:
    results = {r["model"]: r for r in document["views"][0]["results"]} if document["views"] else {}
    head = [t["model"], t["file_size"], t["bits"], t["accuracy"], t["ci"], t["n"], t["rss"], t["question_median"],
            t["generation_tps"], t["licence"]]  # fmt: skip
    think = any(m["thought_tokens_mean"] for m in document["models"])
    head += [t["thoughts"]] * think
    rows = []
    for m in document["models"]:
        r = results.get(m["key"])
        rows.append([m["key"], size(m["n_bytes"]), fixed(m["bits_per_weight"], 2), percent(r and r["share"]),
                     _interval(r and r["interval"], percent), r["n"] if r else 0,
                     _median(m, "peak_rss_bytes", size), _median(m, "question_seconds", seconds),
                     _median(m, "generation_tps", fixed, 1), m["license"] or t["licence_unknown"],
                     *([fixed(m["thought_tokens_mean"], 1)] * think)])  # fmt: skip
    return _table(head, rows)


def _comparisons(view: View, t: dict[str, str]) -> str:
    head = [t["model"], t["against"], t["accuracy"], t["n"], t["difference"], t["ci"], t["loss_bound"], t["p"],
            t["p_holm"], t["right_to_wrong"], t["wrong_to_right"], t["wrong_to_wrong"], t["shown"]]  # fmt: skip
    rows = []
    for r in view["results"]:
        c = r["comparison"]
        if not r["n"]:
            continue
        if not c or not c["n"]:
            rows.append([r["model"], MISSING, percent(r["share"]), r["n"], *[MISSING] * 9])
            continue
        rows.append([r["model"], c["reference"], percent(r["share"]), c["n"], points(c["difference"]),
                     _interval(c["interval"], points), points(c["loss_bound"]), p_value(c["p"]), p_value(c["p_holm"]),
                     *(c["flips"][kind] for kind in KINDS),
                     t["yes"] if c["no_meaningful_loss"] else t["no"]])  # fmt: skip
    return _table(head, rows, n_text=2)


# -------------------------------------------------------------------------------------------------------------- CSV


def to_csv(document: Document) -> str:
    """A row for every model and view, with plain numbers: shares as fractions, bytes, seconds."""
    models = {m["key"]: m for m in document["models"]}
    rows = [_csv_row(models[r["model"]], view, r) for view in document["views"] for r in view["results"]]
    out = io.StringIO()
    out.write("\ufeff")  # without it spreadsheets on Japanese systems take UTF-8 for Shift JIS
    writer = csv.DictWriter(out, list(rows[0]) if rows else list(_csv_model(None)), lineterminator="\r\n")
    writer.writeheader()
    writer.writerows({name: _safe(value) for name, value in row.items()} for row in rows)
    return out.getvalue()


def _safe(value: Any) -> Any:
    """Text that a spreadsheet won't run as a formula; numbers as they are."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value
    return value


def _csv_model(model: Model | None) -> dict[str, Any]:
    measures = model and model["measures"]
    names: Final = ("key", "family", "level", "file", "sha256", "license", "n_bytes", "bits_per_weight")
    spreads: Final = ("peak_rss_bytes", "kv_bytes", "load_seconds", "prompt_tps", "generation_tps",
                      "first_token_seconds", "question_seconds", "vram_total_bytes")  # fmt: skip
    row: dict[str, Any] = {name: model and model[name] for name in names}
    for name in spreads:
        spread = measures and measures[name]
        row[f"{name}_median"] = spread and spread["median"]
    seconds = measures and measures["question_seconds"]
    row["question_seconds_p95"] = seconds and seconds["p95"]
    row["thought_tokens_mean"] = model and model["thought_tokens_mean"]
    return row


def _csv_row(model: Model, view: View, result: Result) -> dict[str, Any]:
    c, harm = result["comparison"], result["contraindicated"]
    low, high = result["interval"] or (None, None)
    c_low, c_high = (c and c["interval"]) or (None, None)
    names: Final = ("reference", "difference", "loss_bound", "no_meaningful_loss", "p", "p_holm", "disagreement",
                    "detectable_loss", "questions_lost", "questions_gained")  # fmt: skip
    return {
        **_csv_model(model),
        "view": view["key"],
        "n": result["n"],
        "n_items": result["n_items"],
        "accuracy": result["share"],
        "accuracy_low": low,
        "accuracy_high": high,
        "n_compared": c and c["n"],
        **{name: c and c[name] for name in names},
        "difference_low": c_low,
        "difference_high": c_high,
        **{kind: c and c["flips"][kind] for kind in KINDS},
        "contraindicated_taken": harm and harm["taken"],
    }


# ------------------------------------------------------------------------------------------------------- model card

_HUB_LICENCE = re.compile(r"[a-z0-9][a-z0-9.\-]*")


def _hub_id(made_from: str | None) -> str | None:
    """The repository of `owner/name@commit`; None for what lay on a disk."""
    repo, commit = parse_id(made_from or "") or (None, None)
    return repo if commit else None


def _check_one_base(document: Document) -> None:
    """Raise UsageError where the files are neither of one name nor made from one base, with or without adapters."""
    bases = {m["made_from"] for m in document["models"]}
    if len(document["families"]) < 2 or (len(bases) == 1 and None not in bases):
        return
    names = ", ".join(f"{f['name']} (from {_origin(document, f['name'])})" for f in document["families"])
    raise UsageError(f"--model-card: a card is for files of one base, here are {names}; give runs of one")


def _origin(document: Document, family: str) -> str:
    known = dict.fromkeys(m["made_from"] or "an unknown base" for m in document["models"] if m["family"] == family)
    return ", ".join(known)


def model_card(document: Document) -> str:
    """A Hugging Face README: YAML front matter, the verdict, the levels, how it was measured."""
    models = document["models"]
    _check_one_base(document)
    licences = list(dict.fromkeys(m["license"] for m in models if m["license"]))
    languages = sorted({t["lang"] for t in document["tasks"]})
    licence = licences[0] if len(licences) == 1 and _HUB_LICENCE.fullmatch(licences[0]) else "other"
    head: dict[str, Any] = {"license": licence, "language": languages, "library_name": "gguf",
                            "pipeline_tag": "text-generation"}  # fmt: skip
    if licence == "other" and licences:
        head["license_name"] = "; ".join(licences)
    if bases := list(dict.fromkeys(repo for m in models if (repo := _hub_id(m["made_from"])))):
        head |= {"base_model": bases, "base_model_relation": "quantized"}
    head["tags"] = ["gguf", "quantized", "medical", "jmedlite"]
    title = next((m["title"] for m in models if m["title"]), document["families"][0]["name"])
    merged = {
        f["name"]: ", ".join(f"{a['name']} (weight {plain(a['weight'])})" for a in m["adapters"])
        for f in document["families"] for m in models if m["family"] == f["name"] and m["adapters"]
    }  # fmt: skip
    t = page_text("en")
    tasks = [
        f"- {_cell(x['title'])} ({_cell(x['source'])}), {x['n_asked']} of {x['n_items']} items"
        for x in document["tasks"]
    ]
    return "\n".join([
        "---\n" + yaml.safe_dump(head, allow_unicode=True, sort_keys=False) + "---\n",
        f"# {_cell(title)}, GGUF\n",
        *(f"{_cell(reason)}\n" for reason in reasons(document, "en")),
        *(f"> {_cell(w['en'])}\n" for w in document["warnings"]),
        f"**{document['notice']['en']}** {document['notice']['ja']}\n",
        *(f"- {_cell(name)}: with the adapters {_cell(adapters)} merged" for name, adapters in merged.items()),
        *[""] * bool(merged),
        "## Levels\n", _levels(document, t),
        *(part for v in document["views"][:1] for part in ("## Against the reference\n", _comparisons(v, t))),
        "## Measured on\n", *tasks, "",
        "Medians over rounds; what was not measured is –. Licence: "
        f"{_cell('; '.join(licences) or 'not stated')}, that of the model these files were made from.\n",
        "## Files\n",
        _table(["file", "SHA-256"], [[m["file"] or m["name"], m["sha256"] or MISSING] for m in models], 2),
    ])  # fmt: skip
