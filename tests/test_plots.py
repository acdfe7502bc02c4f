"""The pictures show the numbers that they were given: positions are read back from the figures and from the SVG."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from app import plots
from app.plots import (
    LABELS,
    draw_bars,
    draw_curves,
    draw_estimates,
    draw_scatter,
    draw_shares,
    draw_strata,
    draw_tradeoff,
)

Interval = tuple[float, float]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are painted, in order, instead of being written as SVG."""
    painted: list[Figure] = []

    def collect(_name: str, _title: str, _height: float, paint: Callable[[Figure], None]) -> str:
        painted.append(Figure())
        paint(painted[-1])
        return ""

    monkeypatch.setattr(plots, "_draw", collect)
    return painted


def marks(axes: Axes) -> list[tuple[str, float, float]]:
    """Every marked point as colour, x, y."""
    return [
        (to_hex(line.get_color()), float(x), float(y))
        for line in axes.lines
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    ]


def bars(axes: Axes) -> list[tuple[str, tuple[float, float], tuple[float, float]]]:
    """Every interval as colour, its x of both ends, its y of both ends."""
    found = []
    for collection in axes.collections:
        assert isinstance(collection, LineCollection)
        for segment in collection.get_segments():
            (x_0, y_0), (x_1, y_1) = np.asarray(segment).tolist()
            found.append((to_hex(collection.get_color()[0]), (x_0, x_1), (y_0, y_1)))
    return found


def ticks(axis: Any) -> dict[str, float]:
    """Position by text."""
    return {text.get_text(): place for text, place in zip(axis.get_ticklabels(), axis.get_ticklocs(), strict=True)}


def colours_by_legend(figure: Figure) -> dict[str, str]:
    (legend,) = figure.legends
    handles = [to_hex(handle.get_color()) for handle in legend.legend_handles]
    return dict(zip(handles, (text.get_text() for text in legend.get_texts()), strict=True))


def assert_shows(axes: Axes) -> None:
    """Nothing that is marked or spanned lies outside of what the axes show."""
    (x_low, x_high), (y_low, y_high) = sorted(axes.get_xlim()), sorted(axes.get_ylim())
    points = [(x, y) for _, x, y in marks(axes)]
    points += [point for _, xs, ys in bars(axes) for point in zip(xs, ys, strict=True)]
    assert all(x_low <= x <= x_high and y_low <= y <= y_high for x, y in points)


def test_estimates_stand_at_their_values_in_the_row_of_their_model(figures: list[Figure]) -> None:
    given: dict[str, dict[str, tuple[float, Interval | None]]] = {
        "recall@10": {"als": (0.31, (0.25, 0.42)), "ease": (0.22, None), "popular": (0.13, (0.11, 0.18))},
        "ndcg@20": {"als": (0.17, (0.15, 0.24)), "ease": (0.16, (0.08, 0.21)), "popular": (0.05, None)},
    }
    draw_estimates("a", "A", given)
    panels = figures[0].axes
    rows = ticks(panels[0].yaxis)
    assert list(rows) == [LABELS[model] for model in given["ndcg@20"]]
    colours = set()
    for axes, (measure, found) in zip(panels, given.items(), strict=True):
        assert axes.get_title() == measure
        assert_shows(axes)
        colour_of = {y: colour for colour, _, y in marks(axes)}
        values = {y: x for _, x, y in marks(axes)}
        assert values == {rows[LABELS[model]]: value for model, (value, _) in found.items()}
        spans = sorted((y_0, x_0, x_1) for _, (x_0, x_1), (y_0, y_1) in bars(axes) if y_0 == y_1)
        assert spans == sorted((rows[LABELS[model]], *span) for model, (_, span) in found.items() if span)
        assert all(colour == colour_of[ys[0]] for colour, _, ys in bars(axes))
        colours.add(tuple(sorted(colour_of.items())))
    assert len(colours) == 1  # a model looks the same in every panel
    assert len(set(dict(next(iter(colours))).values())) == 3


def test_strata_stand_at_their_values_above_their_stratum(figures: list[Figure]) -> None:
    given: dict[str, dict[str, tuple[float, Interval | None]]] = {
        "short": {"als": (0.31, (0.25, 0.42)), "popular": (0.12, None)},
        "middle": {"als": (0.23, None), "popular": (0.14, (0.1, 0.19))},
        "long": {"als": (0.05, (0.03, 0.08)), "popular": (0.07, (0.06, 0.09))},
    }
    draw_strata("a", "A", "Recall@10", given)
    (axes,) = figures[0].axes
    assert_shows(axes)
    assert axes.get_ylabel() == "Recall@10"
    names, places = colours_by_legend(figures[0]), ticks(axes.xaxis)
    stratum_at = {place: name for name, place in places.items()}
    assert {(stratum_at[round(x)], names[colour], y) for colour, x, y in marks(axes)} == {
        (stratum, LABELS[model], value) for stratum, found in given.items() for model, (value, _) in found.items()
    }
    assert {(stratum_at[round(xs[0])], names[colour], ys) for colour, xs, ys in bars(axes)} == {
        (stratum, LABELS[model], span) for stratum, found in given.items() for model, (_, span) in found.items() if span
    }
    own = {(colour, x) for colour, x, _ in marks(axes)}
    assert all(xs[0] == xs[1] and (colour, xs[0]) in own for colour, xs, _ in bars(axes))
    assert len({x for _, x, _ in marks(axes)}) == 6  # none hides another
    assert max(abs(x - round(x)) for _, x, _ in marks(axes)) < 0.4


@pytest.mark.parametrize("log", [False, True])
def test_curves_run_through_their_values(log: bool, figures: list[Figure]) -> None:
    given: dict[str, dict[int, tuple[float, Interval | None]]] = {
        "als": {1: (0.11, (0.08, 0.15)), 2: (0.19, None), 10: (0.42, (0.35, 0.44))},
        "popular": {1: (0.05, None), 2: (0.07, (0.04, 0.13)), 10: (0.23, (0.21, 0.29))},
    }
    draw_curves("a", "A", ("k", "Recall"), given, log=log)
    (axes,) = figures[0].axes
    assert_shows(axes)
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_xscale()) == ("k", "Recall", "log" if log else "linear")
    assert axes.get_ylim()[0] == 0
    names = colours_by_legend(figures[0])
    assert sorted(names.values()) == ["ALS", "most popular"]
    by_label = {label: model for model, label in LABELS.items()}
    for line in axes.lines:
        found = given[by_label[names[to_hex(line.get_color())]]]
        x, y = list(line.get_xdata()), list(line.get_ydata())
        np.testing.assert_allclose(x, list(found), rtol=0, atol=0 if log else 0.1)
        assert y == [value for value, _ in found.values()]
        spans = [(xs, ys) for colour, xs, ys in bars(axes) if colour == to_hex(line.get_color())]
        expected = [((at, at), span) for at, (_, span) in zip(x, found.values(), strict=True) if span]
        assert spans == expected
    assert len(bars(axes)) == 4


def test_a_curve_need_not_begin_at_zero(figures: list[Figure]) -> None:
    draw_curves("a", "A", ("iteration", "loss"), {"als": {1: (0.91, None), 2: (0.9, None)}}, from_zero=False)
    (axes,) = figures[0].axes
    assert marks(axes) == [(marks(axes)[0][0], 1.0, 0.91), (marks(axes)[0][0], 2.0, 0.9)]
    assert_shows(axes)
    assert axes.get_ylim()[0] > 0.8


POINTS = {"als": (12.0, 0.31), "ease": (40.0, 0.22), "popular": (3.0, 0.07), "reference": (25.0, 0.35)}


def test_scattered_points_stand_where_their_numbers_are_and_bear_their_names(figures: list[Figure]) -> None:
    draw_scatter("a", "A", ("novelty", "recall"), POINTS)
    (axes,) = figures[0].axes
    assert_shows(axes)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("novelty", "recall")
    assert [(x, y) for _, x, y in marks(axes)] == list(POINTS.values())
    assert {text.get_text(): text.xy for text in axes.texts} == {
        LABELS[model]: point for model, point in POINTS.items()
    }


def test_the_second_stage_moves_nobody_elses_name(figures: list[Figure]) -> None:
    draw_scatter("a", "A", ("novelty", "recall"), POINTS)
    draw_scatter("a", "A", ("novelty", "recall"), {**POINTS, "ranker": (20.0, 0.4)})
    before, after = ({text.get_text(): text.xyann for text in figure.axes[0].texts} for figure in figures)
    assert before.items() <= after.items()
    assert after.keys() - before.keys() == {LABELS["ranker"]}


def test_models_differ_in_colour_and_in_marker() -> None:
    styles = [*plots._STYLES.values(), plots._OTHER_STYLE]
    assert len({colour for colour, _ in styles}) == len({marker for _, marker in styles}) == len(styles)


BARS: dict[str, dict[str, tuple[float, Interval | None]]] = {
    "gain": {"around": (15.0, None), "age": (5.0, None), "year": (0.0, None)},
    "drop": {"around": (0.25, (0.125, 0.5)), "age": (-0.125, (-0.25, 0.0625)), "year": (0.0, None)},
}


def test_bars_are_as_long_as_their_numbers_with_intervals_at_their_row(figures: list[Figure]) -> None:
    draw_bars("a", "A", BARS, "ranker")
    panels = figures[0].axes
    rows = ticks(panels[0].yaxis)
    assert list(rows) == list(BARS["gain"])
    assert panels[0].get_ylim()[0] > panels[0].get_ylim()[1]  # the first row is on top
    for axes, (measure, found) in zip(panels, BARS.items(), strict=True):
        assert axes.get_title() == measure
        (container,) = axes.containers
        assert isinstance(container, BarContainer)
        for (row, (value, _)), bar in zip(found.items(), container.patches, strict=True):
            assert bar.get_y() + bar.get_height() / 2 == pytest.approx(rows[row])
            assert (bar.get_x(), bar.get_width()) == (0, pytest.approx(value))
        spans = [(xs, ys) for _, xs, ys in bars(axes)]
        assert spans == [(span, (rows[row],) * 2) for row, (_, span) in found.items() if span]
        low, high = axes.get_xlim()
        assert all(low <= x <= high for xs, _ in spans for x in xs)


@pytest.mark.parametrize("sign", [1, -1], ids=["dial moves right", "dial moves left"])
def test_a_tradeoff_goes_through_its_points_in_the_order_of_the_dial(sign: int, figures: list[Figure]) -> None:
    points = {n / 10: (sign * (10 + n / 4), 0.5 - n * n / 256) for n in range(11)}
    draw_tradeoff("a", "A", ("novelty", "NDCG"), points, "ranker")
    (axes,) = figures[0].axes
    (line,) = axes.lines
    assert list(zip(line.get_xdata(), line.get_ydata(), strict=True)) == list(points.values())
    assert_shows(axes)
    assert axes.get_ylim()[0] == 0
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("novelty", "NDCG")
    assert {text.get_text(): text.xy for text in axes.texts} == {f"{n:g}": points[n] for n in (0.0, 0.3, 0.6, 1.0)}
    assert all(text.xyann[0] * sign > 0 for text in axes.texts)  # away from the curve


def test_a_tradeoff_may_lack_steps_and_be_zero(figures: list[Figure]) -> None:
    draw_tradeoff("a", "A", ("novelty", "NDCG"), {0.0: (1.0, 0.0), 0.5: (1.0, 0.0)}, "ranker")
    assert [text.get_text() for text in figures[0].axes[0].texts] == ["0"]


def test_shares_are_as_long_as_they_are_large_and_stand_end_to_end(figures: list[Figure]) -> None:
    given = {
        "als": {"top": 0.4, "upper": 0.3, "lower": 0.2, "tail": 0.1},
        "popular": {"top": 0.97, "upper": 0.02, "lower": 0.01, "tail": 0.0},
        "held out": {"top": 0.05, "upper": 0.15, "lower": 0.25, "tail": 0.55},
    }
    draw_shares("a", "A", "% of the list", given)
    (axes,) = figures[0].axes
    assert axes.get_xlim() == (0, 100)
    rows = ticks(axes.yaxis)
    assert list(rows) == [LABELS[model] for model in given]
    starts = dict.fromkeys(given, 0.0)
    assert [container.get_label() for container in axes.containers] == list(given["als"])
    for container in axes.containers:
        assert isinstance(container, BarContainer)
        part = container.get_label()
        for model, bar in zip(given, container.patches, strict=True):
            assert bar.get_y() + bar.get_height() / 2 == pytest.approx(rows[LABELS[model]])
            assert bar.get_x() == pytest.approx(starts[model])
            assert bar.get_width() == pytest.approx(100 * given[model][part])
            starts[model] += bar.get_width()
    assert list(starts.values()) == pytest.approx([100] * 3)
    (legend,) = figures[0].legends
    assert [text.get_text() for text in legend.get_texts()] == list(given["als"])
    shades = [to_hex(container.patches[0].get_facecolor()) for container in axes.containers]
    assert [to_hex(handle.get_facecolor()) for handle in legend.legend_handles] == shades
    assert len(set(shades)) == 4


def test_the_svg_itself_holds_the_points_where_their_numbers_are() -> None:
    root = ET.fromstring(draw_scatter("a", "A", ("novelty", "recall"), POINTS))  # noqa: S314 - our own
    places = {}
    for element in root.iter("{http://www.w3.org/2000/svg}use"):
        colour = re.search(r"fill: (#\w+)", element.get("style", ""))
        if colour is not None:
            places[colour[1]] = float(element.get("x", "nan")), float(element.get("y", "nan"))
    found = np.array([places[plots._style(model)[0]] for model in POINTS])
    given = np.array(list(POINTS.values()))
    for axis, is_upward in ((0, True), (1, False)):  # y of an SVG falls
        slope, start = np.polyfit(given[:, axis], found[:, axis], 1)
        assert (slope > 0) == is_upward
        assert np.ptp(found[:, axis]) > 50
        np.testing.assert_allclose(found[:, axis], start + slope * given[:, axis], atol=0.01)
