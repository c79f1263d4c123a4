"""The report's plots, as SVG that stands in the page: outlines for text (no font is needed to read it), CSS colours."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .numbers import BYTES, SECONDS, fitting_unit
from .sections import Cost, Document, Model

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

FONT = Path(__file__).parent / "fonts" / "NotoSansJP-subset.otf"
FONT_NAME = "jmedlite Noto Sans JP subset"

# stand-ins that become CSS variables, so that the page's light and dark colours are also the plots'
_INK, _MUTED, _RULE, _BAND, _PAPER = "#010203", "#040506", "#070809", "#0a0b0c", "#0d0e0f"
# Okabe and Ito's colours for the colour-blind, in an order that keeps neighbours apart; markers differ as well
_SERIES = tuple(f"#1000{i:02x}" for i in range(6))
_MARKERS = "osD^vP"
_VARIABLES = {_INK: "--ink", _MUTED: "--muted", _RULE: "--rule", _BAND: "--band", _PAPER: "--paper"} | {
    colour: f"--series-{i}" for i, colour in enumerate(_SERIES)
}
_SIZE = (5.6, 3.9)  # inches of 72 units: letters of 10 are readable on a phone, where the plot is 360 pixels wide


def draw(document: Document, text: Mapping[str, str]) -> dict[str, str | None]:
    """`memory`, `latency` and `difference` as SVG elements; None where there is nothing to draw."""
    if not document["views"]:
        return dict.fromkeys(("memory", "latency", "difference"))
    with _style():
        return {
            "memory": _trade_off(document, "memory", text),
            "latency": _trade_off(document, "latency", text),
            "difference": _forest(document, text),
        }


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib
    from matplotlib import font_manager

    if FONT_NAME not in font_manager.fontManager.get_font_names():
        font_manager.fontManager.addfont(FONT)
    settings: Any = {
        "font.family": FONT_NAME, "font.size": 10, "svg.fonttype": "path", "svg.hashsalt": "jmedlite",
        "text.color": _INK, "axes.labelcolor": _INK, "axes.edgecolor": _MUTED, "xtick.color": _MUTED,
        "ytick.color": _MUTED, "xtick.labelcolor": _INK, "ytick.labelcolor": _INK, "axes.linewidth": 0.8,
        "axes.spines.top": False, "axes.spines.right": False, "grid.color": _RULE, "grid.linewidth": 0.6,
        "axes.unicode_minus": True, "axes.axisbelow": True, "legend.frameon": False,
        "text.parse_math": False,  # names are of models; with two dollars in it, one would be a formula
    }  # fmt: skip
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("error", message="Glyph")  # a missing character is a fault, not a box
        yield


@cache
def _covered() -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(str(FONT)).get_charmap())


def drawable(name: str, number: int) -> str:
    """A name that the font can draw: that given, or `#number` (its place in the table of levels)."""
    return name if {ord(c) for c in name} <= _covered() else f"#{number}"


# ------------------------------------------------------------------------------------------------------ trade-offs


_AXES: dict[Cost, str] = {"peak_rss_bytes": "axis_rss", "n_bytes": "axis_file", "question_seconds": "axis_seconds"}


def _trade_off(document: Document, axis: Literal["memory", "latency"], text: Mapping[str, str]) -> str | None:
    """Accuracy with its interval against a cost, which begins at zero; the Pareto front; every point named."""
    from matplotlib.figure import Figure

    found = document["pareto"][axis]
    scale, unit = fitting_unit(max(found["costs"].values(), default=0.0), SECONDS if axis == "latency" else BYTES)
    scale, label = 1 / scale, text[_AXES[found["cost"]]].format(unit=unit)
    scores = {r["model"]: (100 * r["share"], [100 * v for v in r["interval"]])
              for r in document["views"][0]["results"] if r["share"] is not None and r["interval"]}  # fmt: skip
    points = [(m, found["costs"][m["key"]] * scale, *scores[m["key"]]) for m in document["models"]
              if m["key"] in found["costs"] and m["key"] in scores]  # fmt: skip
    if not points:
        return None
    families = [f["name"] for f in document["families"]]
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(label)
    axes.set_ylabel(text["axis_accuracy"])
    axes.grid(axis="y")
    front = [(found["costs"][k] * scale, scores[k][0]) for k in found["front"]]
    if front:
        axes.plot(*zip(*front, strict=True), color=_MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1, clip_on=False)
    for m, x, y, (low, high) in points:
        reach = [[max(0, y - low)], [max(0, high - y)]]
        axes.errorbar(x, y, yerr=reach, **_mark(families.index(m["family"])))
    axes.set_xlim(0, 1.09 * max(x for _, x, _, _ in points) or 1)
    low, high = axes.get_ylim()
    axes.set_ylim(max(0, low - 0.06 * (high - low)), min(104, high + 0.14 * (high - low)))
    if len(families) > 1:
        _legend(figure, families)
    numbers = {m["key"]: i for i, m in enumerate(document["models"], 1)}
    names = []
    for m, x, _, interval in points:
        colour = _SERIES[families.index(m["family"]) % len(_SERIES)] if len(families) > 1 else _INK
        names.append((drawable(m["label"], numbers[m["key"]]), colour, x, interval))
    _name_points(figure, axes, names)
    return _svg(figure, axis, f"{text['axis_accuracy']} / {label}")


def _mark(series: int) -> dict[str, Any]:
    """How the points of a family look."""
    return {"color": _SERIES[series % len(_SERIES)], "marker": _MARKERS[series % len(_MARKERS)], "markersize": 6,
            "capsize": 2.5, "elinewidth": 1.1, "zorder": 2}  # fmt: skip


def _legend(figure: Figure, families: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    marks = [
        Line2D([], [], color=_SERIES[i % 6], marker=_MARKERS[i % 6], linestyle="", label=drawable(name, i + 1))
        for i, name in enumerate(families)
    ]
    figure.legend(handles=marks, loc="outside upper left", ncols=2, handletextpad=0.2)


def _name_points(figure: Figure, axes: Axes, points: Sequence[tuple[str, str, float, list[float]]]) -> None:
    """Write the name of every (name, colour, cost, interval) at its bar, where it covers no other name and no bar.

    Lines lead to names that are far off.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    FigureCanvasSVG(figure)
    figure.draw_without_rendering()  # fixes the layout, so that places in the figure are known
    figure.set_layout_engine("none")
    renderer: Any = figure._get_renderer()  # type: ignore[attr-defined]
    unit = figure.dpi / 72
    bars = [axes.transData.transform([(x, low), (x, high)]) for _, _, x, (low, high) in points]
    taken = [_box(x - 5 * unit, low, 10 * unit, high - low) for (x, low), (_, high) in bars]
    inside = axes.get_window_extent()
    room = Bbox.from_extents(inside.x0, inside.y0, figure.bbox.x1, figure.bbox.y1)
    for (name, colour, _, _), ((x, low), (_, high)) in sorted(zip(points, bars, strict=True), key=lambda p: p[1][0][0]):
        label = axes.text(0, 0, name, fontsize=9, color=colour, transform=None, zorder=4)
        label.set_path_effects([withStroke(linewidth=2.5, foreground=_PAPER)])  # lines pass behind it
        size = label.get_window_extent(renderer)
        own = _box(x - 5 * unit, low, 10 * unit, high - low)
        others = [box for box in taken if box.bounds != own.bounds]
        left, bottom, far = next(
            (place for place in _places(x, low, high, size.width, size.height, unit)
             if _free(_box(*place[:2], size.width, size.height), room, others)),
            (x, high, False),
        )  # fmt: skip
        label.set_position((left, bottom - size.y0))  # y0: what hangs below the baseline
        taken.append(_box(left, bottom, size.width, size.height))
        if far:
            edge = bottom if bottom > high else bottom + size.height
            axes.plot([x, x], [high if bottom > high else low, edge], color=_MUTED, linewidth=0.5, transform=None,
                      clip_on=False)  # fmt: skip


def _free(box: Bbox, room: Bbox, others: Sequence[Bbox]) -> bool:
    inside = room.x0 <= box.x0 and box.x1 <= room.x1 and room.y0 <= box.y0 and box.y1 <= room.y1
    return inside and not any(box.overlaps(other) for other in others)


def _places(
    x: float, low: float, high: float, width: float, height: float, unit: float
) -> Iterator[tuple[float, float, bool]]:
    """(left, bottom, whether it needs a line) of a label, the best place first."""
    gap = 2 * unit
    for step in range(14):
        rise = step * (height + gap)
        for left in (x - width / 2, x - 3 * unit, x - width + 3 * unit):
            yield left, high + gap + rise, step > 0
            yield left, low - gap - height - rise, step > 0


def _box(left: float, bottom: float, width: float, height: float) -> Bbox:
    from matplotlib.transforms import Bbox

    return Bbox.from_bounds(left, bottom, width, height)


# ------------------------------------------------------------------------------------------------------ differences


def _forest(document: Document, text: Mapping[str, str]) -> str | None:
    """A row for every level: the difference from its reference, its interval, the bound of the loss, the margin."""
    from matplotlib.figure import Figure

    models = {m["key"]: (i, m) for i, m in enumerate(document["models"], 1)}
    rows = [
        (r, [100 * v for v in (c["difference"], *c["interval"], c["loss_bound"])])
        for r in document["views"][0]["results"]
        if (c := r["comparison"]) and c["difference"] is not None and c["interval"] and c["loss_bound"] is not None
    ]
    if not rows:
        return None
    families = [f["name"] for f in document["families"]]
    figure = Figure(figsize=(_SIZE[0], 1.1 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots()
    margin = document["options"]["margin"]
    axes.axvline(0, color=_MUTED, linewidth=0.8, zorder=1)
    axes.axvline(-margin, color=_INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    for y, (r, (d, low, high, bound)) in enumerate(rows):
        reach = [[max(0, d - low)], [max(0, high - d)]]
        axes.errorbar(d, y, xerr=reach, **_mark(families.index(r["family"])))
        axes.plot(-bound, y, color=_INK, marker="|", markersize=10, markeredgewidth=1.4, zorder=3)
    axes.set_yticks(range(len(rows)), [_row_name(*models[r["model"]], len(families) > 1) for r, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(text["axis_difference"])
    axes.grid(axis="x")
    left, right = min(axes.get_xlim()[0], -1.5 * margin), max(axes.get_xlim()[1], 0.5 * margin)
    axes.axvspan(-margin, right, color=_BAND, linewidth=0, zorder=0)
    axes.set_xlim(left, right)
    return _svg(figure, "difference", text["plot_difference"])


def _row_name(number: int, model: Model, with_family: bool) -> str:
    name = f"{model['family']} {model['label']}" if with_family else model["label"]
    return drawable(name, number)


# -------------------------------------------------------------------------------------------------------------- SVG


def _svg(figure: Figure, name: str, title: str) -> str:
    """The figure as an element for the page: names of its own, the page's colours, a title for those who can't see."""
    import html

    out = io.StringIO()
    figure.savefig(
        out, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'id="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    head, rest = svg.split(">", 1)
    (box,) = re.findall(r'viewBox="[^"]+"', head)
    return f'<svg {box} role="img" aria-label="{html.escape(title)}" xmlns:xlink="http://www.w3.org/1999/xlink">{rest}'
