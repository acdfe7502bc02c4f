"""The report: a page that stands by itself, with every number beside its picture, the same bytes each time."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest

from app.artifacts import TrainedModel
from app.model_card import interval_text, number, percent
from app.plots import draw_curves, draw_scatter, label
from app.report import can_plot, render_report
from tests.models import make_model
from tests.test_model_card import HOSTILE, evaluated, without_baselines, without_intervals

ROOT = Path(__file__).parent.parent
VOID = {"meta", "br", "hr", "img", "link", "input"}


@cache
def page(split_name: str = "leave-one-out") -> str:
    return render_report(evaluated(split_name))


class Page(HTMLParser):
    """Collects a page's elements, and checks that each is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.cells: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self.open:
            self.cells[-1] += data

    def attributes(self, name: str) -> list[str]:
        return [attrs[name] for _, attrs in self.elements if name in attrs]


def pictures(text: str) -> list[str]:
    return re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)


@pytest.mark.parametrize("split_name", ["leave-one-out", "temporal"])
def test_the_page_is_well_formed_and_stands_by_itself(split_name: str) -> None:
    parsed = Page(page(split_name))
    assert {"script", "link", "img", "iframe", "object"}.isdisjoint(tag for tag, _ in parsed.elements)
    assert not parsed.attributes("src")
    ids, links = parsed.attributes("id"), parsed.attributes("href") + parsed.attributes("xlink:href")
    assert len(ids) == len(set(ids))
    assert links
    assert {link.removeprefix("#") for link in links} <= set(ids)
    assert set(re.findall(r"url\(#([^)]*)\)", page(split_name))) <= set(ids)
    assert not re.search(r"url\((?!#)|@import", page(split_name))


@pytest.mark.parametrize("split_name", ["leave-one-out", "temporal"])
def test_every_picture_is_xml_named_undated_and_written_in_text(split_name: str) -> None:
    found = pictures(page(split_name))
    assert len(found) == 7 * len(evaluated(split_name).metrics["protocols"]) + 2
    titles = set()
    for svg in found:
        root = ET.fromstring(svg)  # noqa: S314 - our own
        assert root.get("role") == "img"
        titles.add(root.get("aria-label"))
        tags = {element.tag.rpartition("}")[2] for element in root.iter()}
        assert "text" in tags
        assert tags.isdisjoint({"metadata", "style", "image"})
    assert len(titles) == len(found)


def figures(model: TrainedModel) -> Iterator[str]:
    """Yield the text of every figure that must stand in a table."""
    metrics = model.metrics
    for protocol, means in metrics["protocols"].items():
        intervals = metrics["intervals"][protocol]
        for name, values in means.items():
            for metric, value in values.items():
                beside = f" {interval_text(intervals[name][metric])}" if metric in intervals[name] else ""
                yield number(value) + beside
            yield percent(values["coverage@10"])
        for of in metrics["differences"][protocol].values():
            for found in of.values():
                yield f"{number(found['difference'], '+')} {interval_text(found['interval'])}"
        for strata in metrics["strata"][protocol].values():
            for stratum in strata.values():
                yield f"{stratum['n_users']:,}"
                for name, values in stratum["means"].items():
                    for metric, value in values.items():
                        yield f"{number(value)} {interval_text(stratum['intervals'][name][metric])}"
        for curve in metrics["recall_by_k"][protocol].values():
            yield from map(number, curve.values())
        for shares in metrics["exposure"][protocol].values():
            yield from map(percent, shares.values())
    for of in metrics["cold_start"]["n_liked"].values():
        for name in of["means"]:
            yield f"{number(of['means'][name]['recall@10'])} {interval_text(of['intervals'][name]['recall@10'])}"
    yield from (f"{loss:.6f}" for loss in metrics["convergence"]["loss"])


@pytest.mark.parametrize("split_name", ["leave-one-out", "temporal"])
def test_every_figure_stands_in_a_table(split_name: str) -> None:
    cells = Page(page(split_name)).cells
    shown = set(cells) | {re.sub("(above|below|includes) zero$|undecided$", "", cell) for cell in cells}
    missing = [figure for figure in figures(evaluated(split_name)) if figure not in shown]
    assert not missing


@pytest.mark.parametrize("split_name", ["leave-one-out", "temporal"])
def test_no_result_stands_without_what_is_within_a_session(split_name: str) -> None:
    text = page(split_name)
    about = text.split('id="about"')[1].split("</section>")[0]
    assert about.index("Recall@10") < about.index("within the hour")
    for protocol in evaluated(split_name).metrics["protocols"]:
        section = text.split(f'<section id="{protocol}">')[1].split("</section>")[0]
        assert "within the hour" in section
        captions = re.findall(r"<figcaption>(.*?)</figcaption>", section)
        assert len(captions) == 7
        assert all("within one session" in caption for caption in captions)
    cold_start = text.split('<section id="cold-start">')[1]
    assert "Within an hour of their last like" in cold_start


def test_intervals_are_said_to_be_over_users_given_the_seed() -> None:
    assert "over users, given the training seed" in page()


def test_equal_models_give_equal_bytes_whatever_the_settings_of_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    def draw() -> str:
        return draw_curves("a", "A", ("x", "y"), {"als": {1: (0.5, [0.25, 0.75]), 2: (0.5, None)}})

    plain = draw()
    monkeypatch.setitem(matplotlib.rcParams, "axes.facecolor", "red")
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "path")
    assert draw() == plain
    assert matplotlib.rcParams["axes.facecolor"] == "red"
    assert render_report(evaluated()) == page()


def run(code: str, *arguments: str) -> str:
    env = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_fresh_process_gives_equal_bytes(tmp_path: Path) -> None:
    model = evaluated()
    stored = {"dataset": model.dataset, "config": model.config, "metrics": model.metrics}
    (tmp_path / "model.json").write_text(json.dumps(stored), encoding="utf-8")
    code = (
        "import hashlib, json, pathlib, sys; from dataclasses import replace;"
        "from app.report import render_report; from tests.models import make_model;"
        "stored = json.loads(pathlib.Path(sys.argv[1]).read_text(encoding='utf-8'));"
        "print(hashlib.sha256(render_report(replace(make_model(), **stored)).encode()).hexdigest())"
    )
    assert run(code, str(tmp_path / "model.json")) == hashlib.sha256(page().encode()).hexdigest()


def test_neither_the_service_nor_the_report_loads_matplotlib_before_it_draws() -> None:
    code = "import sys, app.main, app.report, app.model_card; print('matplotlib' in sys.modules, app.report.can_plot())"
    assert run(code) == "False True"


def test_drawing_leaves_pyplot_alone() -> None:
    code = (
        "import sys; from app.plots import draw_scatter;"
        "draw_scatter('a', 'A', ('x', 'y'), {'als': (1, 2)}); print('matplotlib.pyplot' in sys.modules)"
    )
    assert run(code) == "False"


def test_can_plot_tells_whether_matplotlib_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert can_plot()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert not can_plot()


def test_without_evaluation_it_says_so_and_draws_nothing() -> None:
    text = render_report(make_model())
    Page(text)
    assert "Nothing was evaluated" in text
    assert not pictures(text)


@pytest.mark.parametrize("kept", [(), ("random",), ("popular", "ease")])
def test_any_baseline_may_be_missing(kept: tuple[str, ...]) -> None:
    text = render_report(without_baselines(evaluated(), kept))
    parsed = Page(text)
    assert ("item-kNN" in text) is False
    assert all(label(name) in text for name in kept)
    assert parsed.cells


def test_no_interval_is_needed() -> None:
    model = evaluated()
    text = render_report(replace(model, metrics=without_intervals(model.metrics)))
    Page(text)
    assert "no interval" in text
    assert "undecided" in text


def test_cold_start_and_convergence_may_be_missing() -> None:
    model = evaluated()
    text = render_report(replace(model, metrics={**model.metrics, "cold_start": {}, "convergence": {"loss": []}}))
    assert 'id="cold-start"' not in text
    assert 'id="convergence"' not in text


def test_a_data_set_may_have_any_name() -> None:
    text = render_report(replace(make_model(), dataset=HOSTILE))
    assert "script" not in {tag for tag, _ in Page(text).elements}
    assert "&lt;script&gt;" in text


def test_generated_data_is_called_generated() -> None:
    assert "The ratings are generated" in render_report(replace(make_model(), dataset="synthetic"))
    assert "The ratings are generated" not in page()


def test_points_bear_their_names_also_where_all_are_zero() -> None:
    svg = draw_scatter("a", "A", ("x", "y"), {"als": (10, 0.0), "ease": (11, 0.0), "ranker": (60, 0.0)})
    assert {"ALS", "EASE", "ranker"} <= set(re.findall(r">([^<]*)</text>", svg))
