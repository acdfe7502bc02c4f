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
from typing import Any

import pytest

from app.artifacts import TrainedModel
from app.model_card import interval_text, number, percent
from app.plots import draw_curves, draw_scatter, label
from app.report import can_plot, render_report
from app.wording import DIALS
from tests.models import make_model
from tests.test_model_card import HOSTILE, evaluated, with_second_stage, without_baselines, without_intervals

ROOT = Path(__file__).parent.parent
VOID = {"meta", "br", "hr", "img", "link", "input"}


CASES = ["leave-one-out", "temporal", "second stage"]


def make(case: str) -> TrainedModel:
    return with_second_stage(evaluated()) if case == "second stage" else evaluated(case)


@cache
def page(case: str = "leave-one-out") -> str:
    return render_report(make(case))


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


@pytest.mark.parametrize("case", CASES)
def test_the_page_is_well_formed_and_stands_by_itself(case: str) -> None:
    parsed = Page(page(case))
    assert {"script", "link", "img", "iframe", "object"}.isdisjoint(tag for tag, _ in parsed.elements)
    assert not parsed.attributes("src")
    ids, links = parsed.attributes("id"), parsed.attributes("href") + parsed.attributes("xlink:href")
    assert len(ids) == len(set(ids))
    assert links
    assert {link.removeprefix("#") for link in links} <= set(ids)
    assert set(re.findall(r"url\(#([^)]*)\)", page(case))) <= set(ids)
    assert not re.search(r"url\((?!#)|@import", page(case))


@pytest.mark.parametrize("case", CASES)
def test_every_picture_is_xml_named_undated_and_written_in_text(case: str) -> None:
    found = pictures(page(case))
    assert len(found) == 7 * len(make(case).metrics["protocols"]) + 2 + 4 * (case == "second stage")
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
    yield from figures_of_second_stage(metrics)


def figures_of_second_stage(metrics: dict[str, Any]) -> Iterator[str]:
    for protocol, gains in metrics.get("gains", {}).items():
        strata = metrics["strata"][protocol]
        divided = [of["gains"] for kind in ("session", "gap", "popularity") for of in strata[kind].values()]
        for found in (found for of in (gains, *divided) for found in of.values()):
            yield f"{number(found['difference'], '+')} {interval_text(found['interval'])}"
    if found := metrics.get("second_stage"):
        yield from map(percent, found["candidates"]["recall"].values())
        for feature in found["importance"].values():
            yield feature["definition"]
            yield percent(feature["gain"]).replace(" ", "\xa0")
            yield f"{number(feature['ndcg@10_drop'])} {interval_text(feature['interval'])}"
        for dial, metric in DIALS.items():
            for step in found["dials"][dial]:
                yield from (number(step["means"]["ndcg@10"]), number(step["means"][metric]))
                yield percent(step["means"]["coverage@10"])
            for step in found["dials"][dial][1:]:
                change = step["changes"]["ndcg@10"]
                yield f"{number(change['difference'], '+')} {interval_text(change['interval'])}"


@pytest.mark.parametrize("case", CASES)
def test_every_figure_stands_in_a_table(case: str) -> None:
    cells = Page(page(case)).cells
    shown = set(cells) | {re.sub("(above|below|includes) zero$|undecided$", "", cell) for cell in cells}
    missing = [figure for figure in figures(make(case)) if figure not in shown]
    assert not missing


@pytest.mark.parametrize("case", CASES)
def test_no_result_stands_without_what_is_within_a_session(case: str) -> None:
    text = page(case)
    about = text.split('id="about"')[1].split("</section>")[0]
    assert about.index("Recall@10") < about.index("within the hour")
    for protocol in make(case).metrics["protocols"]:
        section = text.split(f'<section id="{protocol}">')[1].split("</section>")[0]
        assert "within the hour" in section
        captions = re.findall(r"<figcaption>(.*?)</figcaption>", section)
        assert len(captions) == 7
        assert all("within one session" in caption for caption in captions)
    if case == "second stage":
        section = text.split('<section id="second-stage">')[1].split("</section>")[0]
        assert section.index("within the hour") < section.index("<table>")
        captions = re.findall(r"<figcaption>(.*?)</figcaption>", section)
        assert len(captions) == 4
        assert all("within one session" in caption for caption in captions)
    cold_start = text.split('<section id="cold-start">')[1]
    assert "Within an hour of their last like" in cold_start


def test_the_second_stage_stands_between_the_protocols_and_cold_start() -> None:
    anchors = re.findall(r'<section id="([^"]+)">', page("second stage"))
    assert anchors[:5] == ["about", "rated", "positives", "second-stage", "cold-start"]


def test_without_a_second_stage_nothing_is_said_of_one() -> None:
    for case in ("leave-one-out", "temporal"):
        assert not re.search("ranker|second.stage|lightgbm", page(case), flags=re.IGNORECASE)


def test_the_ranker_is_no_baseline() -> None:
    rated = page("second stage").split('<section id="rated">')[1].split("</section>")[0]
    compared = rated.split("<h3>ALS less each baseline</h3>")[1].split("<h3>")[0]
    assert label("popular") in compared
    assert label("ranker") not in compared
    assert label("ranker") in rated.split("<h3>ALS less each baseline</h3>")[0]


def test_the_features_with_the_largest_gain_are_drawn_and_all_of_them_listed() -> None:
    model = make("second stage")
    section = page("second stage").split('<section id="second-stage">')[1].split("</section>")[0]
    drawn = re.findall(r">(feature_\d+)</text>", section)
    assert drawn == [f"feature_{i}" for i in range(16, 1, -1)]
    listed = re.findall(r'<th scope="row">(feature_\d+)</th>', section)
    assert listed == [f"feature_{i}" for i in range(16, -1, -1)]
    assert set(listed) == set(model.metrics["second_stage"]["importance"])
    assert "permuting one alone may cost nothing" in section


def test_every_dial_says_what_it_costs_at_three_tenths() -> None:
    text = page("second stage")
    for dial, metric in DIALS.items():
        step = make("second stage").metrics["second_stage"]["dials"][dial][3]
        cost = number(step["changes"]["ndcg@10"]["difference"], "+")
        said = text.split(f"At 0.3, {dial} changes NDCG@10 by ")[1].split("</p>")[0]
        assert said.startswith(f"{cost} (")
        assert said.endswith(f"to {number(step['means'][metric])}.")


def test_a_second_stage_that_was_not_evaluated_says_so_and_draws_nothing() -> None:
    model = make_model()
    text = render_report(replace(model, config={**model.config, "ranker": {}}))
    Page(text)
    assert "It was not evaluated." in text.split('<section id="second-stage">')[1]
    assert not pictures(text)


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


@pytest.mark.parametrize("case", CASES)
def test_no_interval_is_needed(case: str) -> None:
    model = make(case)
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
    assert {"ALS", "EASE", "ALS + ranker"} <= set(re.findall(r">([^<]*)</text>", svg))
