"""The report's pictures: figures as inline SVG text, which every browser shows without a script or another file.

``numbers by model ─▶ SVG text ─▶ report``. It knows the models' names and nothing else of metrics.json. matplotlib is
imported when a picture is drawn, so that neither the service nor training without a report loads it; its global state
is left alone. Equal numbers give equal bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Interval = Sequence[float] | None
Estimate = tuple[float, Interval]
"""A value and its interval, or None where there is none."""

# What models are called, and Okabe and Ito's colours, which colour-blind people can tell apart; the markers tell models
# apart without any colour.
LABELS = {
    "als": "ALS",
    "ranker": "ALS + ranker",
    "reference": "reference ALS",
    "item_knn": "item-kNN",
    "ease": "EASE",
    "popular": "most popular",
    "random": "random",
    "mean_of_items": "mean of the liked",
    "held out": "held-out movies",
}
_STYLES = {
    "als": ("#0072b2", "o"),
    "ranker": ("#000000", ">"),
    "reference": ("#cc79a7", "D"),
    "item_knn": ("#009e73", "^"),
    "ease": ("#e69f00", "v"),
    "popular": ("#d55e00", "s"),
    "random": ("#555555", "X"),
    "mean_of_items": ("#56b4e9", "P"),
}
_OTHER_STYLE = ("#661100", "*")
_SHADES = ("#08306b", "#2c7fb8", "#7fcdbb", "#ece7c3")  # dark to light, also in greyscale
_BAR_SHADE = "#7fcdbb"  # light enough for an interval to be seen on it
_NAMED_VALUES = (0.0, 0.3, 0.6, 1.0)  # of a dial: those that stand beside their points
_WIDTH = 5.2  # inches; on a telephone the text is then still 9 pixels high
_SETTINGS = {
    "svg.fonttype": "none",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
}


def label(model: str) -> str:
    """Return what a model, by its name in metrics.json, is called in tables and pictures."""
    return LABELS.get(model, model)


def draw_estimates(name: str, title: str, estimates: Mapping[str, Mapping[str, Estimate]]) -> str:
    """Draw estimates with their intervals, one panel for each measure and one row for each model.

    Parameters
    ----------
    name : str
        Of the picture, unlike any other on the page: what its ids begin with.
    title : str
        What it shows, for those who do not see it.
    estimates : mapping
        ``[measure][model]``; the models of all measures are the same.

    Returns
    -------
    str
        One ``<svg>`` element.
    """
    models = list(next(iter(estimates.values())))

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, len(estimates), sharey=True, squeeze=False)[0]
        for axes, (measure, found) in zip(panels, estimates.items(), strict=True):
            for row, model in enumerate(models):
                _mark(axes, row, found[model], model, horizontal=True)
            axes.set_title(measure, fontsize="medium")
            axes.set_xlim(left=0)
            axes.locator_params(axis="x", nbins=4)
            axes.grid(visible=False, axis="y")
        panels[0].set_yticks(range(len(models)), map(label, models))
        panels[0].set_ylim(len(models) - 0.5, -0.5)

    return _draw(name, title, 0.9 + 0.32 * len(models), paint)


def draw_strata(name: str, title: str, y_label: str, strata: Mapping[str, Mapping[str, Estimate]]) -> str:
    """Draw estimates by stratum, those of one stratum beside each other, ``strata[stratum][model]``.

    The other parameters and the result are those of `draw_estimates`.
    """
    models = list(next(iter(strata.values())))
    step = 0.75 / len(models)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for place, found in enumerate(strata.values()):
            for i, model in enumerate(models):
                _mark(axes, place + (i - (len(models) - 1) / 2) * step, found[model], model, in_legend=place == 0)
        axes.set_xticks(range(len(strata)), list(strata))
        axes.set_xlim(-0.5, len(strata) - 0.5)
        axes.set_ylim(bottom=0)
        axes.set_ylabel(y_label)
        axes.grid(visible=False, axis="x")
        _add_legend(figure, axes)

    return _draw(name, title, 3.4, paint)


def draw_curves(
    name: str,
    title: str,
    axis_labels: tuple[str, str],
    curves: Mapping[str, Mapping[int, Estimate]],
    *,
    log: bool = False,
    from_zero: bool = True,
) -> str:
    """Draw lines, ``curves[model][x]``; ``log`` spaces x by its logarithm, ``from_zero`` lets y begin at 0.

    The other parameters and the result are those of `draw_estimates`.
    """

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        if log:
            axes.set_xscale("log")
        for place, (model, curve) in enumerate(curves.items()):
            colour, marker = _style(model)
            shift = 0 if log else 0.1 * (place - (len(curves) - 1) / 2)  # so that intervals do not hide each other
            at = [x + shift for x in curve]
            axes.plot(
                at,
                [value for value, _ in curve.values()],
                marker=marker,
                color=colour,
                ms=5,
                lw=1.3,
                label=label(model),
            )
            for x, (_, interval) in zip(at, curve.values(), strict=True):
                _mark_interval(axes, x, interval, model)
        if log:
            ticks = sorted({x for curve in curves.values() for x in curve})
            axes.set_xticks(ticks, [str(x) if str(x)[0] in "125" else "" for x in ticks])
            axes.set_xticks([], minor=True)
        else:
            axes.locator_params(axis="x", integer=True)
        if from_zero:
            axes.set_ylim(bottom=0)
        axes.set_xlabel(axis_labels[0])
        axes.set_ylabel(axis_labels[1])
        if len(curves) > 1:
            _add_legend(figure, axes)

    return _draw(name, title, 3.4 if len(curves) > 1 else 2.8, paint)


def draw_scatter(name: str, title: str, axis_labels: tuple[str, str], points: Mapping[str, tuple[float, float]]) -> str:
    """Draw each model as a point with its name, ``points[model]`` = x, y.

    The other parameters and the result are those of `draw_estimates`.
    """
    widest, highest = (max(1e-9, *(point[axis] for point in points.values())) for axis in (0, 1))

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        by_height = sorted((model for model in points if model != "ranker"), key=lambda model: -points[model][1])
        for model, (x, y) in points.items():
            _mark(axes, x, (y, None), model)
            # Neighbours in height get their names on different sides; nothing goes below the axis. The second stage's
            # stands above it, and moves nobody else's.
            is_below = model in by_height[1::2] and y > highest / 10
            offset, align = ((6, -4), "top") if is_below else ((6, 4), "bottom")
            axes.annotate(label(model), (x, y), xytext=offset, textcoords="offset points", va=align)
        axes.set_xlim(0, 1.35 * widest)
        axes.set_ylim(0, 1.15 * highest)
        axes.set_xlabel(axis_labels[0])
        axes.set_ylabel(axis_labels[1])

    return _draw(name, title, 3.2, paint)


def draw_shares(name: str, title: str, x_label: str, shares: Mapping[str, Mapping[str, float]]) -> str:
    """Draw how a whole divides for each model, ``shares[model][part]`` adding up to 1, as bars.

    The other parameters and the result are those of `draw_estimates`.
    """
    models, parts = list(shares), list(next(iter(shares.values())))

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        starts = [0.0] * len(models)
        for part, shade in zip(parts, _SHADES, strict=True):
            widths = [100 * shares[model][part] for model in models]
            axes.barh(range(len(models)), widths, left=starts, color=shade, edgecolor="white", label=part, height=0.7)
            starts = [start + width for start, width in zip(starts, widths, strict=True)]
        axes.set_yticks(range(len(models)), map(label, models))
        axes.set_ylim(len(models) - 0.5, -0.5)
        axes.set_xlim(0, 100)
        axes.set_xlabel(x_label)
        axes.grid(visible=False)
        _add_legend(figure, axes, n_columns=4)

    return _draw(name, title, 1.3 + 0.32 * len(models), paint)


def draw_bars(name: str, title: str, bars: Mapping[str, Mapping[str, Estimate]], model: str) -> str:
    """Draw what belongs to one model as bars with their intervals, one panel for each measure, ``bars[measure][row]``.

    The other parameters and the result are those of `draw_estimates`.
    """
    rows = list(next(iter(bars.values())))

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, len(bars), sharey=True, squeeze=False)[0]
        for axes, (measure, found) in zip(panels, bars.items(), strict=True):
            lengths = [found[row][0] for row in rows]
            axes.barh(range(len(rows)), lengths, color=_BAR_SHADE, height=0.7)
            for place, row in enumerate(rows):
                _mark_interval(axes, place, found[row][1], model, horizontal=True)
            axes.axvline(0, color=_style(model)[0], lw=0.8)
            axes.set_title(measure, fontsize="medium")
            axes.locator_params(axis="x", nbins=4)
            axes.grid(visible=False, axis="y")
        panels[0].set_yticks(range(len(rows)), rows)
        panels[0].set_ylim(len(rows) - 0.5, -0.5)

    return _draw(name, title, 0.9 + 0.26 * len(rows), paint)


def draw_tradeoff(
    name: str, title: str, axis_labels: tuple[str, str], points: Mapping[float, tuple[float, float]], model: str
) -> str:
    """Draw the way that a model takes while a dial is turned, ``points[value]`` = x, y, joined in their order.

    The other parameters and the result are those of `draw_estimates`.
    """
    x, y = zip(*points.values(), strict=True)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(x, y, marker="o", color=_style(model)[0], ms=5, lw=1.3)  # the model's own marker may point elsewhere
        # Above the curve, on the side to which it falls.
        offset, align = ((5, 3), "left") if x[-1] >= x[0] else ((-5, 3), "right")
        for value in _NAMED_VALUES:
            if value in points:
                axes.annotate(
                    f"{value:g}", points[value], xytext=offset, textcoords="offset points", ha=align, va="bottom"
                )
        axes.margins(x=0.1)
        axes.set_ylim(0, 1.15 * max(1e-9, *y))
        axes.set_xlabel(axis_labels[0])
        axes.set_ylabel(axis_labels[1])

    return _draw(name, title, 2.8, paint)


def _style(model: str) -> tuple[str, str]:
    return _STYLES.get(model, _OTHER_STYLE)


def _mark(
    axes: Axes, at: float, estimate: Estimate, model: str, *, horizontal: bool = False, in_legend: bool = False
) -> None:
    """Mark one value and its interval in the style of its model."""
    value, interval = estimate
    colour, marker = _style(model)
    _mark_interval(axes, at, interval, model, horizontal=horizontal)
    x, y = (value, at) if horizontal else (at, value)
    axes.plot([x], [y], marker, color=colour, ms=5, clip_on=False, label=label(model) if in_legend else None)


def _mark_interval(axes: Axes, at: float, interval: Interval, model: str, *, horizontal: bool = False) -> None:
    if interval is not None:
        low, high = interval
        along = axes.hlines if horizontal else axes.vlines
        along(at, low, high, colors=_style(model)[0], lw=1.3)


def _add_legend(figure: Figure, axes: Axes, n_columns: int = 3) -> None:
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=n_columns, columnspacing=1.2, fontsize=9
    )


def _draw(name: str, title: str, height: float, paint: Callable[[Figure], None]) -> str:
    """Draw one figure with matplotlib's own defaults, whatever this machine's settings are."""
    import matplotlib
    from matplotlib.figure import Figure

    settings: Any = {**_SETTINGS, "svg.hashsalt": name}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        paint(figure)
        written = StringIO()
        figure.savefig(written, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return _inline(written.getvalue(), name, title)


def _inline(document: str, name: str, title: str) -> str:
    """Make an SVG document an element of a page that holds others, too: its own ids, no style sheet, a free size."""
    svg = document[document.index("<svg") :].rstrip()
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    wanted = set(re.findall(r"#([\w.-]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in wanted else "", svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    head, body = svg.split(">", maxsplit=1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{escape(title)}">{body}'
