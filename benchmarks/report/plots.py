"""The report's plots: SVG that stands in the page, in the page's colours, and files for a paper: SVG, PDF, PNG.

Text is outlines in all of them: no font is needed to read it.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .distances import texts_of
from .numbers import BYTES, SECONDS, Units, fitting_unit
from .sections import Cost, Document, Model

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

FONT = Path(__file__).parent / "fonts" / "NotoSansJP-subset.otf"
FONT_NAME = "jmedlite Noto Sans JP subset"

_MARKERS = "osD^vP"


@dataclass(frozen=True)
class Colours:
    """What a plot is drawn in. Series keep neighbours apart, also for the colour-blind; markers differ as well."""

    ink: str
    muted: str
    rule: str
    band: str
    paper: str
    series: tuple[str, ...]


# stand-ins that become CSS variables, so that the page's light and dark colours are also the plots'
_PAGE = Colours("#010203", "#040506", "#070809", "#0a0b0c", "#0d0e0f", tuple(f"#1000{i:02x}" for i in range(6)))
_VARIABLES = {getattr(_PAGE, name): f"--{name}" for name in ("ink", "muted", "rule", "band", "paper")} | {
    colour: f"--series-{i}" for i, colour in enumerate(_PAGE.series)
}
# on white paper; Okabe and Ito's colours, as the page's are
_PRINT = Colours("#000000", "#555555", "#cccccc", "#f1f1f1", "#ffffff",
                 ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#56b4e9", "#b8860b"))  # fmt: skip
_SIZE = (5.6, 3.9)  # inches of 72 units: letters of 10 are readable on a phone, where the plot is 360 pixels wide
_DPI = 300  # of PNG files
_TITLES = {"memory": "plot_memory", "latency": "plot_latency", "difference": "plot_difference", "size": "plot_size"}


def draw(document: Document, text: Mapping[str, str]) -> dict[str, str | None]:
    """`memory`, `latency`, `difference` and `size` as SVG elements; None where there is nothing to draw."""
    with _style(_PAGE):
        drawn = _Plots(document, text, _PAGE).all()
        return {name: _svg(figure, name, text[_TITLES[name]]) if figure else None for name, figure in drawn.items()}


def figure_files(document: Document, text: Mapping[str, str]) -> dict[str, bytes]:
    """The plots that there are, as files by name: `memory.svg`, `memory.pdf`, `memory.png`, and so on."""
    nothing: dict[str, dict[str, Any]] = {
        "svg": {"metadata": {"Date": None, "Creator": None}},
        "pdf": {"metadata": {"CreationDate": None, "Creator": None, "Producer": None}},
        "png": {"metadata": {"Software": None}, "dpi": _DPI},
    }  # no date and no version: the same runs give the same bytes
    found: dict[str, bytes] = {}
    with _style(_PRINT):
        for name, figure in _Plots(document, text, _PRINT).all().items():
            if figure is None:
                continue
            for form, settings in nothing.items():
                out = io.BytesIO()
                figure.savefig(out, format=form, **settings)
                found[f"{name}.{form}"] = out.getvalue()
    return found


@contextmanager
def _style(colours: Colours) -> Iterator[None]:
    import matplotlib
    from matplotlib import font_manager

    if FONT_NAME not in font_manager.fontManager.get_font_names():
        font_manager.fontManager.addfont(FONT)
    settings: Any = {
        "font.family": FONT_NAME, "font.size": 10, "svg.fonttype": "path", "svg.hashsalt": "jmedlite",
        "text.color": colours.ink, "axes.labelcolor": colours.ink, "axes.edgecolor": colours.muted,
        "xtick.color": colours.muted, "ytick.color": colours.muted, "xtick.labelcolor": colours.ink,
        "ytick.labelcolor": colours.ink, "axes.linewidth": 0.8, "axes.spines.top": False, "axes.spines.right": False,
        "grid.color": colours.rule, "grid.linewidth": 0.6, "axes.unicode_minus": True, "axes.axisbelow": True,
        "legend.frameon": False, "text.parse_math": False,  # names are of models; with two dollars, a formula
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


NEAR_ZERO = 0.6  # of the largest cost: where none is smaller, the axis begins elsewhere, and says so
_AXES: dict[Cost, str] = {"peak_rss_bytes": "axis_rss", "n_bytes": "axis_file", "question_seconds": "axis_seconds"}


class _Plots:
    """All plots of a document; None where there is nothing to draw."""

    def __init__(self, document: Document, text: Mapping[str, str], colours: Colours) -> None:
        self.document, self.text, self.colours = document, text, colours
        self.families = [f["name"] for f in document["families"]]
        self.numbers = {m["key"]: i for i, m in enumerate(document["models"], 1)}

    def all(self) -> dict[str, Figure | None]:
        there = bool(self.document["views"])
        return {
            "memory": self.trade_off("memory", BYTES) if there else None,
            "latency": self.trade_off("latency", SECONDS) if there else None,
            "difference": self.forest() if there else None,
            "size": self.divergence(),
        }

    def _axes(self, height: float = _SIZE[1]) -> tuple[Figure, Axes]:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(_SIZE[0], height), layout="constrained")
        return figure, figure.subplots()

    def _mark(self, series: int) -> dict[str, Any]:
        """How the points of a family, or of a text, look."""
        colours = self.colours.series
        return {"color": colours[series % len(colours)], "marker": _MARKERS[series % len(_MARKERS)], "markersize": 6,
                "capsize": 2.5, "elinewidth": 1.1, "zorder": 2}  # fmt: skip

    def _legend(self, figure: Figure, names: Sequence[str]) -> None:
        from matplotlib.lines import Line2D

        colours = self.colours.series
        marks = [
            Line2D([], [], color=colours[i % 6], marker=_MARKERS[i % 6], linestyle="", label=drawable(name, i + 1))
            for i, name in enumerate(names)
        ]
        figure.legend(handles=marks, loc="outside upper left", ncols=2, handletextpad=0.2)

    # -------------------------------------------------------------------------------------------------- trade-offs

    def trade_off(self, axis: Literal["memory", "latency"], units: Units) -> Figure | None:
        """Accuracy with its interval against a cost, from nothing on; the Pareto front; every point named."""
        document, colours = self.document, self.colours
        found = document["pareto"][axis]
        scores = {r["model"]: (100 * r["share"], [100 * v for v in r["interval"]])
                  for r in document["views"][0]["results"] if r["share"] is not None and r["interval"]}  # fmt: skip
        shown = [m for m in document["models"] if m["key"] in found["costs"] and m["key"] in scores]
        if not shown:
            return None
        scale, unit = fitting_unit(max(found["costs"][m["key"]] for m in shown), units)
        points = [(m, found["costs"][m["key"]] / scale, *scores[m["key"]]) for m in shown]
        figure, axes = self._axes()
        axes.set_xlabel(self.text[_AXES[found["cost"]]].format(unit=unit))
        axes.set_ylabel(self.text["axis_accuracy"])
        axes.grid(axis="y")
        front = [(found["costs"][k] / scale, scores[k][0]) for k in found["front"]]
        if front:
            axes.plot(*zip(*front, strict=True), color=colours.muted, linewidth=1, linestyle=(0, (4, 3)), zorder=1,
                      clip_on=False)  # fmt: skip
        for m, x, y, (low, high) in points:
            reach = [[max(0, y - low)], [max(0, high - y)]]
            axes.errorbar(x, y, yerr=reach, **self._mark(self.families.index(m["family"])))
        axes.margins(x=0.09)
        if min(x for _, x, _, _ in points) < NEAR_ZERO * max(x for _, x, _, _ in points):
            axes.set_xlim(left=0)
        else:  # from nothing on, they would all stand in one place
            axes.set_xlabel(f"{axes.get_xlabel()}\n{self.text['axis_cut']}")
        low, high = axes.get_ylim()
        axes.set_ylim(max(0, low - 0.06 * (high - low)), min(104, high + 0.14 * (high - low)))
        several = len(self.families) > 1
        if several:
            self._legend(figure, self.families)
        names = []
        for m, x, _, interval in points:
            series = colours.series[self.families.index(m["family"]) % len(colours.series)]
            names.append((self._name(m), series if several else colours.ink, x, interval))
        _name_points(figure, axes, names, colours)
        return figure

    def _name(self, model: Model, with_family: bool = False) -> str:
        name = f"{model['family']} {model['label']}" if with_family else model["label"]
        return drawable(name, self.numbers[model["key"]])

    # ------------------------------------------------------------------------------------------------- divergences

    def divergence(self) -> Figure | None:
        """The mean divergence on each kind of text against the bytes of the file, on a scale of powers of ten."""
        from matplotlib.ticker import LogLocator, NullLocator

        texts = texts_of(self.document["models"])
        shown = [
            (m, m["n_bytes"], places)
            for m in self.document["models"]
            if m["n_bytes"]
            and (places := [(texts.index(d["text"]), d["kl_mean"], d["kl_interval"] or [d["kl_mean"]] * 2)
                            for d in m["distances"] if d["kl_mean"]])
        ]  # fmt: skip
        if not shown:
            return None
        scale, unit = fitting_unit(max(size for _, size, _ in shown), BYTES)
        figure, axes = self._axes()
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel(self.text["axis_file"].format(unit=unit))
        axes.set_ylabel(self.text["axis_kl"])
        axes.grid(axis="y")
        widest = max(size for _, size, _ in shown) / scale
        names = []
        for m, size, places in shown:
            for series, mean, (low, high) in places:
                x = size / scale + 0.014 * widest * (series - (len(texts) - 1) / 2)  # texts stand beside each other
                reach = [[max(0, mean - low)], [max(0, high - mean)]]
                axes.errorbar(x, mean, yerr=reach, **self._mark(series))
            spread = [bound for _, mean, interval in places for bound in (mean, *interval) if bound > 0]
            names.append((self._name(m), self.colours.ink, size / scale, [min(spread), max(spread)]))
        axes.set_xlim(0, 1.09 * widest)
        lowest, highest = min(n[3][0] for n in names), max(n[3][1] for n in names)
        span = max(math.log10(highest / lowest), 0.5)
        axes.set_ylim(lowest / 10 ** (0.12 * span), highest * 10 ** (0.2 * span))
        if len(texts) > 1:
            self._legend(figure, [text or self.text["text_unnamed"] for text in texts])
        _name_points(figure, axes, names, self.colours)
        return figure

    # ------------------------------------------------------------------------------------------------- differences

    def forest(self) -> Figure | None:
        """A row for every level: the difference from its reference, its interval, the bound of the loss, the margin."""
        document, colours = self.document, self.colours
        models = {m["key"]: m for m in document["models"]}
        rows = [
            (r, [100 * v for v in (c["difference"], *c["interval"], c["loss_bound"])])
            for r in document["views"][0]["results"]
            if (c := r["comparison"]) and c["difference"] is not None and c["interval"] and c["loss_bound"] is not None
        ]
        if not rows:
            return None
        figure, axes = self._axes(1.1 + 0.34 * len(rows))
        margin = document["options"]["margin"]
        axes.axvline(0, color=colours.muted, linewidth=0.8, zorder=1)
        axes.axvline(-margin, color=colours.ink, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        for y, (r, (d, low, high, bound)) in enumerate(rows):
            reach = [[max(0, d - low)], [max(0, high - d)]]
            axes.errorbar(d, y, xerr=reach, **self._mark(self.families.index(r["family"])))
            axes.plot(-bound, y, color=colours.ink, marker="|", markersize=10, markeredgewidth=1.4, zorder=3)
        axes.set_yticks(range(len(rows)), [self._name(models[r["model"]], len(self.families) > 1) for r, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(self.text["axis_difference"])
        axes.grid(axis="x")
        left, right = min(axes.get_xlim()[0], -1.5 * margin), max(axes.get_xlim()[1], 0.5 * margin)
        axes.axvspan(-margin, right, color=colours.band, linewidth=0, zorder=0)
        axes.set_xlim(left, right)
        return figure


# ----------------------------------------------------------------------------------------------------- names of points


def _name_points(
    figure: Figure, axes: Axes, points: Sequence[tuple[str, str, float, list[float]]], colours: Colours
) -> None:
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
        label.set_path_effects([withStroke(linewidth=2.5, foreground=colours.paper)])  # lines pass behind it
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
            axes.plot([x, x], [high if bottom > high else low, edge], color=colours.muted, linewidth=0.5,
                      transform=None, clip_on=False)  # fmt: skip


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
