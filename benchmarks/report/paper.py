"""The report for a paper: figures as SVG, PDF and PNG, tables as LaTeX; captions say n, intervals and the machine."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from .costs import spread_of
from .distances import texts_of
from .labels import page_text, say
from .numbers import MISSING, fixed, p_value, percent, plain, points, seconds, size
from .plots import figure_files
from .sections import KINDS, Document, Interval, Measure, Model, Result, Run, View

FIGURES = {
    "memory": ("plot_memory", "cap_trade_off"),
    "latency": ("plot_latency", "cap_trade_off"),
    "difference": ("plot_difference", "cap_difference"),
    "size": ("plot_size", "cap_distance"),
}


def paper_files(document: Document, lang: str) -> dict[str, bytes]:
    """Files by name: every figure in three forms, `figures.tex` with their captions, and the tables, a file each."""
    text = page_text(lang)
    drawn = figure_files(document, text)
    captions = _Captions(document, text, say("space")[lang])
    tables = {
        "levels": _levels(document, text, captions),
        **{f"differences-{v['key'].replace('_', '-')}": _differences(v, text, captions) for v in document["views"]},
        "distances": _distances(document, text, captions),
    }
    figures = [
        _float("figure", name, rf"\includegraphics[width=\linewidth]{{{name}.pdf}}", captions.of(title, more))
        for name, (title, more) in FIGURES.items()
        if f"{name}.pdf" in drawn
    ]
    sources = {"figures.tex": "\n".join(figures), **{f"{name}.tex": body for name, body in tables.items() if body}}
    return drawn | {name: (_HEAD + body).encode("utf-8") for name, body in sources.items() if body}


# ------------------------------------------------------------------------------------------------------------- LaTeX

_HEAD = r"""% Needs \usepackage{graphicx,booktabs,textcomp} and \usepackage[T1]{fontenc}; where a text is Japanese,
% LuaLaTeX with luatexja instead of fontenc. The figures are here as SVG and PNG, too.
"""
_SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}", "`": r"\textasciigrave{}",
    "−": "$-$", "–": "--", "…": r"\ldots{}", "±": r"$\pm$", "→": r"$\to$",
    **{c: "\\" + c for c in "{}$&#_%"},
}  # fmt: skip


def tex(value: Any) -> str:
    """Text that stays text in LaTeX: on one line, without what is no character, every command and sign escaped."""
    plain_ = "".join(c if c.isprintable() else " " for c in str(value))
    return "".join(_SPECIAL.get(c, c) for c in " ".join(plain_.split()))


def _float(kind: str, name: str, body: str, caption: str) -> str:
    """A figure or table with its caption; `caption` is LaTeX already."""
    parts = [rf"\caption{{{caption}}}", rf"\label{{{kind[:3]}:{name}}}"]
    inside = [body, *parts] if kind == "figure" else [*parts, body]
    return "\n".join([rf"\begin{{{kind}}}[htbp]", r"\centering", *inside, rf"\end{{{kind}}}", ""])


def _table(name: str, head: Sequence[str], rows: Iterable[Sequence[str]], caption: str, n_text: int = 1) -> str:
    """A table of cells that are text; the first `n_text` columns to the left, numbers to the right."""
    lines = [" & ".join(tex(cell) for cell in row) + r" \\" for row in rows]
    columns = "l" * n_text + "r" * (len(head) - n_text)
    body = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", " & ".join(map(tex, head)) + r" \\", r"\midrule", *lines,
            r"\bottomrule", r"\end{tabular}"]  # fmt: skip
    return _float("table", name, "\\footnotesize\n" + "\n".join(body), caption)


def _with(value: float | None, interval: Interval | None, write: Any, *digits: int) -> str:
    """A number with its interval."""
    if value is None:
        return MISSING
    told = str(write(value, *digits))
    return f"{told} [{write(interval[0], *digits)}, {write(interval[1], *digits)}]" if interval else told


# ---------------------------------------------------------------------------------------------------------- captions


class _Captions:
    """What every caption says: of how many questions, by which intervals, on which machine."""

    def __init__(self, document: Document, text: dict[str, str], space: str) -> None:
        self.document, self.text, self.space = document, text, space  # between sentences

    def of(self, title: str, more: str, **fields: str) -> str:
        """A caption in LaTeX: its title, what is special about it, and the rest."""
        names = ", ".join(f["name"] for f in self.document["families"])
        margin = plain(self.document["options"]["margin"])
        said = self.text[more].format(n=self._n(), margin=margin, **fields)
        head = self.text["cap_title"].format(title=self.text.get(title, title), models=names)
        return tex(self.space.join([head, said, self._machine()]))

    def _n(self) -> str:
        views = self.document["views"]
        counts = sorted({r["n"] for r in views[0]["results"] if r["n"]}) if views else []
        if not counts:
            return "0"
        return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,}–{counts[-1]:,}"

    def _machine(self) -> str:
        told = dict.fromkeys(self._machine_of(run) for run in self.document["runs"])
        return self.text["cap_machine"].format(machine="; ".join(told))

    def _machine_of(self, run: Run) -> str:
        """One run's machine and programs; a machine's facts may be of any kind, or not be there."""
        machine = run["machine"]
        cores, ram = machine.get("physical_cores"), machine.get("ram_bytes")
        parts = [
            machine.get("cpu"),
            self.text["cap_cores"].format(n=cores) if cores else None,
            f"{size(ram)} RAM" if isinstance(ram, int) else None,
            *(g.get("name") if isinstance(g, dict) else g for g in machine.get("gpus") or []),
            machine.get("system"),
            f"llama-cpp-python {run['llama_cpp_python']}" if run["llama_cpp_python"] else None,
            f"jmedlite {run['jmedlite']}",
            re.sub(r"T.*", "", run["created"]),
        ]
        return ", ".join(str(part) for part in parts if part)


# ------------------------------------------------------------------------------------------------------------ tables


def _levels(document: Document, t: dict[str, str], captions: _Captions) -> str:
    results: dict[str, Result] = (
        {r["model"]: r for r in document["views"][0]["results"]} if document["views"] else {}
    )  # fmt: skip

    def median(m: Model, name: Measure, write: Any) -> str:
        spread = spread_of(m, name)
        return str(write(spread["median"])) if spread else MISSING

    rows = [
        [m["key"], size(m["n_bytes"]), fixed(m["bits_per_weight"], 2),
         _with(r and r["share"], r and r["interval"], percent), f"{r['n']:,}" if r else MISSING,
         median(m, "peak_rss_bytes", size), median(m, "question_seconds", seconds)]
        for m in document["models"] for r in [results.get(m["key"])]
    ]  # fmt: skip
    head = [t["model"], t["file_size"], t["bits"], t["accuracy"], t["n"], t["rss"], t["question_median"]]
    return _table("levels", head, rows, captions.of("h_levels", "cap_trade_off"))


def _differences(view: View, t: dict[str, str], captions: _Captions) -> str:
    rows = [
        [r["model"], f"{c['n']:,}", _with(c["difference"], c["interval"], points), percent(c["loss_bound"]),
         p_value(c["p"]), p_value(c["p_holm"]), *(f"{c['flips'][kind]:,}" for kind in KINDS)]
        for r in view["results"] if (c := r["comparison"]) and c["n"]
    ]  # fmt: skip
    if not rows:
        return ""
    head = [t["model"], t["n"], t["difference"], t["loss_bound"], t["p"], t["p_holm"], *(t[kind] for kind in KINDS)]
    title = f"{t['h_paired']}, {t['view_' + view['key']]}"
    return _table(f"differences-{view['key'].replace('_', '-')}", head, rows, captions.of(title, "cap_difference"))


def _distances(document: Document, t: dict[str, str], captions: _Captions) -> str:
    """A row for every model and text."""
    rows = [
        [m["key"], text or t["text_unnamed"], f"{d['n_tokens']:,}", _with(d["kl_mean"], d["kl_interval"], fixed, 4),
         _with((d["kl_quantiles"] or {}).get("0.999"), (d["kl_quantile_intervals"] or {}).get("0.999"), fixed, 3),
         percent(d["top_agreement"])]
        for text in texts_of(document["models"]) for m in document["models"] for d in m["distances"]
        if d["text"] == text and d["kl_mean"] is not None
    ]  # fmt: skip
    if not rows:
        return ""
    head = [t["model"], t["text_kind"], t["scored_tokens"], t["kl_mean"], t["kl_999"], t["agreement"]]
    return _table("distances", head, rows, captions.of("distance", "cap_distance"), n_text=2)
