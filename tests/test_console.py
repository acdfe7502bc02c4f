"""The trainer's screen shows the right numbers in the right places: all given numbers differ."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.als import AlsConfig
from app.console import Screen
from app.evaluation import HEADLINES, TaskResult
from app.evaluation.strata import LATER, WITHIN
from app.tuning import Tuned
from tests.tasks import make_task

Show = Callable[[Callable[[Screen], object]], str]


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Show:
    """Return what is printed in 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)

    def shown(what: Callable[[Screen], object]) -> str:
        what(Screen(quiet=False))
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return shown


def table(text: str) -> dict[str, dict[str, str]]:
    """The cells of the printed table, by the row's first cell and the column's heading; wrapped cells are joined."""
    rows: list[list[str]] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split("[│┃]", line)[1:-1]]
        if cells and rows and cells[0] == "" and len(rows) > 1:
            rows[-1] = [f"{cell} {more}".strip() for cell, more in zip(rows[-1], cells, strict=True)]
        elif cells and rows and "┃" in line:  # the heading goes on
            rows[0] = [f"{cell} {more}".strip() for cell, more in zip(rows[0], cells, strict=True)]
        elif cells:
            rows.append(cells)
    heading, *body = rows
    return {row[0]: dict(zip(heading, row, strict=True)) for row in body}


def line_with(text: str, words: str) -> str:
    (line,) = [line for line in text.splitlines() if words in line]
    return line


def decimals(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"[-+]?\d*\.\d+", text)]


# One task

MEANS = {
    "als": {"recall@10": 0.111, "recall@20": 0.212, "ndcg@10": 0.063, "ndcg@20": 0.084},
    "ease": {"recall@10": 0.125, "recall@20": 0.226, "ndcg@10": 0.077, "ndcg@20": 0.098},
    "popular": {"recall@10": 0.039, "recall@20": 0.051, "ndcg@10": 0.011, "ndcg@20": 0.012},
}
GAINS = {
    "ease": {
        "recall@10": (-0.014, [-0.033, 0.005]),
        "recall@20": (-0.015, [-0.034, 0.006]),
        "ndcg@10": (-0.016, [-0.035, 0.007]),
        "ndcg@20": (-0.017, [-0.036, 0.008]),
    },
    "popular": {
        "recall@10": (0.072, None),
        "recall@20": (0.161, [0.132, 0.193]),
        "ndcg@10": (0.052, [0.041, 0.064]),
        "ndcg@20": (0.073, [0.059, 0.088]),
    },
}


def stratum(n_users: int, als: float, popular: float) -> dict[str, Any]:
    means = {"als": {"recall@10": als, "ndcg@20": als / 2}, "popular": {"recall@10": popular, "ndcg@20": popular / 2}}
    return {"n_users": n_users, "means": means}


def result(within: int = 7) -> TaskResult:
    sessions = {WITHIN: stratum(within, 0.3, 0.2), LATER: stratum(20 - within, 0.28, 0.18)}
    return TaskResult(
        task=make_task(3, [[0]] * 20),
        means=MEANS,
        intervals={
            "als": {"recall@10": [0.086, 0.137], "ndcg@20": [0.066, 0.099]},
            "popular": {"recall@10": [0.024, 0.055], "ndcg@20": [0.001, 0.022]},
        },
        differences={
            model: {
                metric: {"difference": difference, "interval": interval}
                for metric, (difference, interval) in gains.items()
            }
            for model, gains in GAINS.items()
        },
        strata={
            "session": {name: found for name, found in sessions.items() if found["n_users"]},
            "gap": {"tie": stratum(5, 0.411, 0.511), "longer": stratum(15, 0.622, 0.722)},
            "history": {"short": stratum(9, 0.811, 0.911), "long": stratum(11, 0.822, 0.922)},
        },
        recall_by_k={},
        exposure={},
        lists={model: np.zeros((20, 3), dtype=np.int32) for model in MEANS},
    )


def test_each_figure_of_a_task_stands_in_the_row_of_its_model_and_the_column_of_its_metric(show: Show) -> None:
    cells = table(show(lambda screen: screen.result(result())))
    assert list(cells) == list(MEANS)
    for model, means in MEANS.items():
        assert {metric: float(cells[model][metric]) for metric in HEADLINES} == means


def test_the_gain_column_shows_gains_in_recall_at_10(show: Show) -> None:
    cells = table(show(lambda screen: screen.result(result())))
    (name,) = [name for name in cells["als"] if "gain" in name]
    assert "recall@10" in name
    assert cells["als"][name] == ""
    assert decimals(cells["ease"][name]) == [-0.014, -0.033, 0.005]
    assert decimals(cells["popular"][name]) == [0.072]
    assert "no interval" in cells["popular"][name]


def test_below_the_table_stand_als_and_its_interval(show: Show) -> None:
    line = line_with(show(lambda screen: screen.result(result())), "95 %")
    assert decimals(line) == [0.111, 0.086, 0.137]


@pytest.mark.parametrize(("within", "share"), [(7, "35%"), (20, "100%"), (0, "0%")])
def test_the_share_within_an_hour_and_als_by_gap_are_shown(within: int, share: str, show: Show) -> None:
    line = line_with(show(lambda screen: screen.result(result(within))), "within an hour")
    assert re.findall(r"\d+\s?%", line) == [share]
    assert decimals(line) == [0.411, 0.622]
    assert re.findall(r"(\w+) \d\.\d+ \((\d+)\)", line) == [("tie", "5"), ("longer", "15")]


# Cold start


def test_cold_start_shows_als_popular_and_the_share_within_an_hour_by_likes(show: Show) -> None:
    def found(n_users: int, n_within: int, als: float, mean_of_items: float, popular: float) -> dict[str, Any]:
        recall = {"als": als, "mean_of_items": mean_of_items, "popular": popular}
        means = {model: {"recall@10": value, "ndcg@20": value / 2} for model, value in recall.items()}
        return {"n_users": n_users, "n_within_session": n_within, "means": means}

    measured = {"n_liked": {"1": found(10, 4, 0.151, 0.131, 0.117), "3": found(30, 8, 0.212, 0.192, 0.163)}}
    text = show(lambda screen: screen.cold_start(measured))
    line = line_with(text, "popular")
    assert decimals(line) == [0.151, 0.117, 0.212, 0.163]
    assert [decimals(part)[0] for part in line.split("popular")[1:]] == [0.117, 0.163]
    assert [decimals(part)[0] for part in re.split(r"\blikes?\b", line)[-2:]] == [0.151, 0.212]
    assert re.findall(r"(\d+) likes?\b", line) == ["1", "3"]
    assert re.findall(r"\d+\s?%", text) == ["40%", "27%"]


# A search


def tuned(**changes: Any) -> Tuned:
    def gains(first: float) -> dict[str, Any]:
        """For each metric another difference, with an interval of its own around it."""
        differences = {metric: first + place / 100 for place, metric in enumerate(HEADLINES)}
        return {
            metric: {"difference": value, "interval": [value - 0.005, value + 0.007]}
            for metric, value in differences.items()
        }

    values: dict[str, Any] = {
        "config": AlsConfig(),
        "command": "python train_als.py --factors 77",
        "validation": {"gain": gains(0.11)},
        "second_validation": {"gain": gains(0.21)},
        "optimism": gains(-0.09),
        "study": "question",
        "n_trials": 31,
        "n_pruned": 12,
        "n_failed": 3,
        "n_earlier": 0,
        "interrupted": False,
        "seconds": 64.0,
        "stored": Path("study.db.best.json"),
    }
    return Tuned(**{**values, **changes})


def test_each_gain_of_a_search_stands_in_the_column_of_what_it_was_measured_on(show: Show) -> None:
    found = tuned()
    cells = table(show(lambda screen: screen.tuned(found)))
    assert list(cells) == list(HEADLINES)
    columns = {
        "searched positive": found.validation["gain"],
        "second positive": found.second_validation["gain"],
        "optimism": found.optimism,
    }
    for metric, row in cells.items():
        assert [name for name in row if name] == list(columns)
        for name, gains in columns.items():
            expected = [gains[metric]["difference"], *gains[metric]["interval"]]
            assert decimals(row[name]) == pytest.approx(expected, abs=1e-9), (metric, name)


def test_the_trials_of_a_search_and_their_fates_are_told_apart(show: Show) -> None:
    whole = show(lambda screen: screen.tuned(tuned()))
    line = line_with(whole, "pruned")
    assert re.findall(r"\d+", line)[:3] == ["31", "12", "3"]
    assert line.index("trials") < line.index("pruned") < line.index("failed")
    assert "64 s" in line
    assert "earlier" not in line
    assert "Interrupted" not in line
    assert "python train_als.py --factors 77" in whole
    assert "study.db.best.json" in whole
    ended = line_with(show(lambda screen: screen.tuned(tuned(n_earlier=45, interrupted=True))), "pruned")
    assert "45 earlier" in ended
    assert "Interrupted" in ended


def test_a_quiet_screen_still_warns(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen(quiet=True)
    screen.result(result())
    screen.tuned(tuned())
    assert capsys.readouterr() == ("", "")
    screen.warn("only 3 users")
    assert "only 3 users" in capsys.readouterr().err
