"""One task, all models: means that divide by stratum, what they are compared with, and what metrics.json holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import core, evaluation
from app.core import Split, TemporalSplit
from app.datasets.movielens import RawData, read_movielens
from app.evaluation import BASELINES, Scorer, TaskResult
from app.evaluation.lists import rank
from app.evaluation.metrics import BANDS, CUTOFFS, HEADLINES, Catalogue
from app.evaluation.results import CURVE
from app.evaluation.strata import (
    GAPS,
    HISTORIES,
    NO_GAP,
    gap_strata,
    history_strata,
    session_strata,
)
from app.protocols import build_task, build_temporal_tasks
from tests.tasks import always, frame, in_order, make_task, validation_task

SEED = 42
MOVIES = pd.DataFrame({"movie_id": [1000, 1001, 1002], "genres": ["Drama|War", "", "Comedy"]})


def flat_catalogue(n_items: int) -> Catalogue:
    """Falling popularity, everything long tail, one genre."""
    return Catalogue(np.arange(n_items, 0, -1), np.full(n_items, 3), np.ones((n_items, 1), dtype=np.float32))


# Strata by gap


def members(strata: dict[str, np.ndarray]) -> dict[str, list[int]]:
    return {name: np.flatnonzero(mask).tolist() for name, mask in strata.items()}


def test_gaps_end_inclusively_at_a_minute_an_hour_and_a_day() -> None:
    gaps = np.array([0, 1, 60, 61, 3_600, 3_601, 86_400, 86_401, -1])
    assert members(gap_strata(make_task(3, [[0]] * 9, gap_seconds=gaps))) == {
        "tie": [0],
        "≤ 1 min": [1, 2],
        "≤ 1 h": [3, 4],
        "≤ 1 day": [5, 6],
        "longer": [7],
        "none before": [8],
    }


def test_session_ends_after_an_hour() -> None:
    gaps = np.array([0, 1, 3_600, 3_601, 90_000, -1])
    assert members(session_strata(make_task(3, [[0]] * 6, gap_seconds=gaps))) == {
        "within one session": [0, 1, 2],
        "later": [3, 4],
        "nothing rated before": [5],
    }
    assert members(session_strata(make_task(3, [[0]], gap_seconds=np.array([7])))) == {"within one session": [0]}


def test_gaps_that_nobody_has_are_left_out() -> None:
    assert list(gap_strata(make_task(3, [[0]] * 2, gap_seconds=np.array([5, 90_000])))) == ["≤ 1 min", "longer"]
    assert list(gap_strata(make_task(3, [[0]], gap_seconds=np.array([-1])))) == ["none before"]


@given(st.lists(st.integers(-1, 200_000) | st.sampled_from([-1, 0, 60, 3_600, 86_400]), min_size=1, max_size=20))
def test_every_user_has_one_gap_and_is_on_one_side_of_a_session(gaps: list[int]) -> None:
    task = make_task(1, [[0]] * len(gaps), gap_seconds=np.array(gaps))
    by_gap, by_session = gap_strata(task), session_strata(task)
    assert set(by_gap) <= {*GAPS, NO_GAP}
    for masks in (by_gap, by_session):
        assert np.sum(list(masks.values()), axis=0).tolist() == [1] * len(gaps)
        assert all(mask.any() for mask in masks.values())
    n_within = sum(by_gap[name].sum() for name in ("tie", "≤ 1 min", "≤ 1 h") if name in by_gap)
    assert by_session.get("within one session", np.zeros(1)).sum() == n_within


# Strata by history


@pytest.mark.parametrize(
    ("n_history", "expected"),
    [
        ([1, 2, 3, 4, 5, 6], {"short": [0, 1], "middle": [2, 3], "long": [4, 5]}),
        ([60, 10, 40, 20, 50, 30], {"short": [1, 3], "middle": [2, 5], "long": [0, 4]}),
        # Equal counts stay together, at the price of unequal thirds.
        ([1, 2, 2, 2, 5, 6], {"short": [0, 1, 2, 3], "long": [4, 5]}),
        ([5, 5, 5, 5, 1, 9], {"short": [0, 1, 2, 3, 4], "long": [5]}),
        ([7, 7, 7], {"short": [0, 1, 2]}),
        ([4], {"short": [0]}),
    ],
)
def test_histories_are_divided_into_thirds(n_history: list[int], expected: dict[str, list[int]]) -> None:
    task = make_task(2, [[0]] * len(n_history), n_history=np.array(n_history))
    assert members(history_strata(task)) == expected


@given(st.lists(st.integers(0, 12), min_size=1, max_size=30))
def test_every_user_is_in_one_third_by_rising_history(n_history: list[int]) -> None:
    found = history_strata(make_task(1, [[0]] * len(n_history), n_history=np.array(n_history)))
    assert set(found) <= set(HISTORIES)
    third = np.full(len(n_history), -1)
    for place, name in enumerate(HISTORIES):
        if name in found:
            assert found[name].any()
            assert (third[found[name]] == -1).all()
            third[found[name]] = place
    assert (third >= 0).all()
    for one, other in zip(n_history, third, strict=True):
        for another, its_third in zip(n_history, third, strict=True):
            assert one != another or other == its_third
            assert one >= another or other <= its_third


# One task by hand: four users, ten items ranked 0, 1, 2 … by ``als`` and backwards by ``popular``


@pytest.fixture(scope="module")
def small() -> TaskResult:
    task = make_task(
        30,
        [[0], [1, 7], [29], [28]],  # ranks by als: 1; 2 and 8; 30; 29. By popular: 30; 29 and 23; 1; 2.
        gap_seconds=np.array([0, 30, 30, -1]),
        n_history=np.array([1, 9, 5, 20]),
    )
    catalogue = Catalogue(
        np.arange(30, 0, -1), np.array([0, 1] + [2] * 4 + [3] * 24), np.ones((30, 1), dtype=np.float32)
    )
    return evaluation.evaluate(task, {"als": in_order(30), "popular": always(*range(30))}, catalogue, SEED)


def test_means_are_over_all_target_users(small: TaskResult) -> None:
    assert small.means["als"]["recall@5"] == (1 + 1 / 2) / 4
    assert small.means["als"]["recall@10"] == (1 + 1) / 4
    assert small.means["popular"]["recall@5"] == (1 + 1) / 4
    assert small.means["popular"]["mrr@10"] == (1 + 1 / 2) / 4
    assert small.means["als"]["precision@10"] == pytest.approx((1 + 2) / 10 / 4)


def test_differences_are_als_less_the_baseline(small: TaskResult) -> None:
    assert list(small.differences) == ["popular"]
    assert small.differences["popular"]["recall@5"]["difference"] == 1.5 / 4 - 2 / 4
    assert small.differences["popular"]["recall@10"]["difference"] == 0
    assert set(small.differences["popular"]) == set(small.intervals["als"])
    low, high = small.differences["popular"]["recall@5"]["interval"]
    assert -1 <= low < -0.125 < high <= 1


def test_strata_divide_the_mean(small: TaskResult) -> None:
    gap = small.strata["gap"]
    assert {name: stratum["n_users"] for name, stratum in gap.items()} == {"tie": 1, "≤ 1 min": 2, "none before": 1}
    assert gap["tie"]["means"]["als"]["recall@10"] == 1
    assert gap["≤ 1 min"]["means"]["als"]["recall@10"] == 1 / 2
    assert gap["≤ 1 min"]["means"]["popular"]["recall@10"] == 1 / 2
    assert gap["none before"]["means"]["als"]["recall@10"] == 0
    assert gap["tie"]["intervals"]["als"]["recall@10"] is None  # some resamples hold nobody of it
    assert gap["tie"]["differences"]["popular"]["recall@10"] == {"difference": 1, "interval": None}
    assert {name: stratum["n_users"] for name, stratum in small.strata["session"].items()} == {
        "within one session": 3,
        "nothing rated before": 1,
    }
    assert small.strata["session"]["within one session"]["means"]["als"]["recall@10"] == pytest.approx(2 / 3)
    # Up to 5, users 0 and 2; up to 9, user 1; and user 3.
    assert {name: stratum["n_users"] for name, stratum in small.strata["history"].items()} == {
        "short": 2,
        "middle": 1,
        "long": 1,
    }
    assert small.strata["history"]["short"]["means"]["als"]["recall@10"] == 1 / 2
    assert small.strata["history"]["middle"]["means"]["als"]["ndcg@10"] == pytest.approx(
        (1 / np.log2(3) + 1 / np.log2(9)) / (1 + 1 / np.log2(3))  # ranks 2 and 8 of two
    )


def test_strata_of_popularity_are_over_the_held_out_movies_of_each_band(small: TaskResult) -> None:
    popularity = small.strata["popularity"]
    # Held out: 0 is top; 1 is of the second band; 7, 28 and 29 are long tail. User 1 counts twice, with one movie each.
    assert {name: stratum["n_users"] for name, stratum in popularity.items()} == {
        "top 1 %": 1,
        "1–5 %": 1,
        "long tail": 3,
    }
    assert popularity["1–5 %"]["means"]["als"]["recall@10"] == 1
    assert popularity["1–5 %"]["means"]["als"]["ndcg@10"] == pytest.approx(1 / np.log2(3))
    assert popularity["long tail"]["means"]["als"]["recall@10"] == pytest.approx(1 / 3)
    assert popularity["long tail"]["means"]["als"]["ndcg@10"] == pytest.approx(1 / np.log2(9) / 3)
    assert popularity["long tail"]["means"]["popular"]["recall@10"] == pytest.approx(2 / 3)


def test_curve_of_recall_is_by_hand(small: TaskResult) -> None:
    curve = small.recall_by_k["als"]
    assert list(curve) == [str(k) for k in CURVE]
    assert [curve[k] for k in ("1", "2", "7", "10", "20", "30", "100")] == [
        1 / 4,  # user 0
        1.5 / 4,  # and half of what user 1 looks for
        1.5 / 4,
        2 / 4,
        2 / 4,
        1,
        1,
    ]


def test_exposure_is_that_of_the_first_ten_and_of_what_was_held_out(small: TaskResult) -> None:
    assert small.exposure == {
        "als": {"top 1 %": 0.1, "1–5 %": 0.1, "5–20 %": 0.4, "long tail": 0.4},
        "popular": {"top 1 %": 0, "1–5 %": 0, "5–20 %": 0, "long tail": 1},
        "held out": {"top 1 %": 0.2, "1–5 %": 0.2, "5–20 %": 0, "long tail": 0.6},
    }


def test_lists_are_kept_as_they_were_ranked(small: TaskResult) -> None:
    assert set(small.lists) == {"als", "popular"}
    assert (small.lists["popular"] == rank(small.task.seen, always(*range(30)))).all()


def test_quick_measure_gives_the_accuracy_of_the_whole_evaluation(small: TaskResult) -> None:
    found = evaluation.measure(small.task, in_order(30))
    assert len(found) == 5 * len(CUTOFFS)
    for name, values in found.items():
        assert values.mean() == pytest.approx(small.means["als"][name], abs=1e-15)


def test_each_model_is_reported_as_it_is_done() -> None:
    task, done = make_task(3, [[0]]), []
    models = {"popular": in_order(3), "random": in_order(3)}
    evaluation.evaluate(task, models, flat_catalogue(3), SEED, on_model=lambda: done.append(1))
    assert len(done) == 2


def test_evaluation_is_seeded(small: TaskResult) -> None:
    catalogue = flat_catalogue(30)
    first, again, other = (
        evaluation.evaluate(small.task, {"als": in_order(30)}, catalogue, seed).intervals for seed in (1, 1, 2)
    )
    assert first == again != other


# The catalogue


def test_catalogue_knows_popularity_and_genres_by_movie() -> None:
    task = make_task(4, [[0], [0]], learned={0: [1, 2], 1: [2]})  # movie 1003 stands in no table
    catalogue = evaluation.describe_catalogue(task, MOVIES)
    assert catalogue.popularity.tolist() == [0, 1, 2, 0]
    assert catalogue.band.tolist() == [3, 3, 0, 3]  # 1 % of four movies is one, and so are 5 % and 20 %
    assert catalogue.is_long_tail.tolist() == [True, True, False, True]
    assert catalogue.genres.sum(axis=1).tolist() == [2, 0, 1, 0]
    assert len({tuple(row) for row in catalogue.genres[[0, 2]].tolist()}) == 2


def test_catalogue_without_any_genre_can_be_evaluated() -> None:
    task = make_task(3, [[0]], learned={0: [1]})
    catalogue = evaluation.describe_catalogue(task, MOVIES.assign(genres=""))
    assert evaluation.evaluate(task, {"als": in_order(3)}, catalogue, SEED).means["als"]["diversity@5"] == 0


# The real data


@pytest.fixture(scope="module")
def raw(movielens_dir: Path) -> RawData:
    return read_movielens(movielens_dir)


@pytest.fixture(scope="module", params=["rated", "positives", "temporal"])
def real(raw: RawData, request: pytest.FixtureRequest) -> TaskResult:
    task = validation_task(raw.ratings, request.param)
    scorers: dict[str, Scorer] = {
        "als": BASELINES["item_knn"](task, SEED),  # what is added up here does not ask who scored
        "popular": BASELINES["popular"](task, SEED),
    }
    return evaluation.evaluate(task, scorers, evaluation.describe_catalogue(task, raw.movies), SEED)


def test_strata_add_up_to_the_mean(real: TaskResult) -> None:
    n_users = real.task.n_targets
    one_each = (np.diff(real.task.relevant.indptr) == 1).all()
    assert one_each == (real.task.protocol != "temporal")
    kinds = ["session", "gap", "history", *(["popularity"] if one_each else [])]
    assert list(real.strata) == ["session", "gap", "history", "popularity"]
    for kind in kinds:
        strata = real.strata[kind].values()
        assert sum(stratum["n_users"] for stratum in strata) == n_users, kind
        for model, means in real.means.items():
            for metric in HEADLINES:
                total = sum(stratum["n_users"] * stratum["means"][model][metric] for stratum in strata)
                assert total / n_users == pytest.approx(means[metric], abs=1e-12), (kind, model, metric)
        for stratum in strata:
            for metric, found in stratum["differences"]["popular"].items():
                of_both = [stratum["means"][model][metric] for model in ("als", "popular")]
                assert found["difference"] == of_both[0] - of_both[1]


def test_thirds_of_the_real_users_are_about_equal(real: TaskResult) -> None:
    sizes = [stratum["n_users"] for stratum in real.strata["history"].values()]
    assert len(sizes) == 3
    assert max(sizes) - min(sizes) <= 0.1 * real.task.n_targets


def test_recall_of_popularity_adds_up_to_all_held_out_movies_that_were_found(real: TaskResult) -> None:
    # Holds for users who look for several movies too: recall@20 times the movies looked for, band by band.
    n_found = sum(
        np.isin(real.lists["als"][row, :20], real.task.relevant[row].indices).sum()
        for row in range(real.task.n_targets)
    )
    bands = evaluation.results._in_bands(
        real.task,
        evaluation.describe_catalogue(real.task, MOVIES),
        real.lists["als"],
        evaluation.results.find_hits(real.lists["als"], real.task.relevant),
    )
    assert list(bands) == list(BANDS)
    assert sum(np.nansum(band["precision@20"]) * 20 for band in bands.values()) == pytest.approx(n_found)


def test_curve_of_recall_goes_through_the_metrics_and_rises(real: TaskResult) -> None:
    for model, curve in real.recall_by_k.items():
        assert [curve[str(k)] for k in CUTOFFS] == pytest.approx([real.means[model][f"recall@{k}"] for k in CUTOFFS])
        assert (np.diff(list(curve.values())) >= 0).all()


def test_mean_lies_within_its_interval(real: TaskResult) -> None:
    for model, intervals in real.intervals.items():
        for name, bounds in intervals.items():
            if bounds is not None:
                assert bounds[0] <= real.means[model][name] <= bounds[1], (model, name)
        assert intervals["recall@10"] is not None
    for name, found in real.differences["popular"].items():
        if found["interval"] is not None:
            assert found["interval"][0] <= found["difference"] <= found["interval"][1], name
    assert real.differences["popular"]["recall@10"]["interval"] is not None


# What is published


def keys(tree: Any) -> Any:
    """The keys of nested dictionaries, without what stands in the leaves."""
    return {key: keys(branch) for key, branch in tree.items()} if isinstance(tree, dict) else None


def check_description(description: dict[str, Any], results: list[TaskResult]) -> None:
    """What holds for every metrics.json."""
    text = json.dumps(description, allow_nan=False)
    assert json.loads(text) == description  # text keys, lists, plain numbers
    protocols = [result.task.protocol for result in results]
    for part in ("protocols", "intervals", "differences", "strata", "recall_by_k", "exposure"):
        assert list(description[part]) == protocols, part
    for protocol in protocols:
        means, intervals = description["protocols"][protocol], description["intervals"][protocol]
        differences = description["differences"][protocol]
        assert list(means) == list(intervals) == list(description["recall_by_k"][protocol])
        assert list(description["exposure"][protocol]) == [*means, "held out"]
        assert list(differences) == [model for model in means if model != "als"]
        no_interval = {f"{name}@{k}" for name in ("coverage", "gini") for k in CUTOFFS}
        names = {tuple(measures) for measures in means.values()}
        assert len(names) == 1
        assert {*names.pop()} - no_interval == set(intervals["als"])
        for of_model in (*intervals.values(), *differences.values()):
            assert list(of_model) == list(intervals["als"])
        for kind, strata in description["strata"][protocol].items():
            assert kind in description["definitions"]["strata"]
            assert strata
            for stratum in strata.values():
                assert keys(stratum["means"]) == keys(stratum["intervals"])
                assert keys(stratum["means"]) == {model: dict.fromkeys(HEADLINES) for model in means}
                assert list(stratum["differences"]) == list(differences)
                assert all(list(found) == list(HEADLINES) for found in stratum["differences"].values())
        for name in means["als"]:
            assert f"{name.split('@')[0]}@k" in description["definitions"], name
    assert {"mean", "ties", "targets", "interval", "long tail"} <= set(description["definitions"])


# Three users with three or more positives each; 90 is liked once, by the last of them to come.
RATINGS = frame(
    (1, 1, 5.0, 10), (1, 2, 4.0, 20), (1, 3, 4.0, 30), (1, 4, 4.5, 100),
    (2, 3, 5.0, 11), (2, 4, 4.0, 21), (2, 1, 4.0, 31), (2, 2, 3.0, 32), (2, 2000, 1.0, 33),
    (3, 4, 5.0, 12), (3, 1, 4.0, 22), (3, 2, 4.0, 101), (3, 90, 5.0, 102),
)  # fmt: skip
TITLES = pd.DataFrame({"movie_id": [1, 2, 3, 4, 90], "genres": ["A|B", "", "A", "C", "C"]})


def describe(split: Split | TemporalSplit, tasks: list[Any], models: tuple[str, ...]) -> tuple[Any, list[TaskResult]]:
    results = []
    for task in tasks:
        scorers = {model: in_order(len(task.items)) for model in models}
        results.append(evaluation.evaluate(task, scorers, evaluation.describe_catalogue(task, TITLES), SEED))
    return evaluation.describe_results(split, results), results


@pytest.mark.parametrize("stage", core.STAGES)
def test_description_of_leave_one_out(stage: core.Stage) -> None:
    split = core.leave_one_out(core.positives(RATINGS))
    tasks = [build_task(RATINGS, split, protocol, stage) for protocol in ("rated", "positives")]
    description, results = describe(split, tasks, ("als", "popular", "random"))
    check_description(description, results)
    # Train: 1: 1, 2; 2: 3; 3: 4, 1. Validation: 3, 4, 2, all of them in train. Test: 4, 1, and 90, which is not.
    assert description["split"] == {
        "name": "leave-one-out", "n_train": 5, "n_users": 3, "n_items": 4, "n_validation": 3, "n_test": 2
    }  # fmt: skip
    assert description["stage"] == stage
    assert "recall_with_new@k" in description["definitions"]


def test_description_of_the_temporal_split() -> None:
    liked = core.positives(RATINGS)
    split = TemporalSplit(
        "test", 100, liked[liked["timestamp"] < 100], liked[liked["timestamp"] >= 100],
        users=core.IdMap.of(liked["user_id"]), items=core.IdMap.of(liked[liked["timestamp"] < 100]["movie_id"]),
    )  # fmt: skip
    description, results = describe(split, list(build_temporal_tasks(RATINGS, split)), ("als", "popular"))
    check_description(description, results)
    # Held out: 4 by user 1; 2 and the new 90 by user 3.
    assert description["split"] == {
        "name": "temporal", "moment": 100, "n_train": 8, "n_users": 3, "n_items": 4,
        "n_held_out": 3, "n_held_out_users": 2,
        "targets": {"temporal": {"n_users": 2, "n_held_out": 2, "n_held_out_new_movies": 1}},
    }  # fmt: skip
    assert description["protocols"]["temporal"]["als"]["recall_with_new@20"] == (1 + 1 / 2) / 2


def test_description_of_one_user_without_a_history_and_without_als() -> None:
    split = core.leave_one_out(core.positives(RATINGS))
    task = make_task(2, [[0]], gap_seconds=np.array([-1]), n_history=np.array([0]))
    result = evaluation.evaluate(task, {"popular": in_order(2)}, flat_catalogue(2), SEED)
    description = evaluation.describe_results(split, [result])
    assert json.loads(json.dumps(description, allow_nan=False)) == description
    assert description["differences"] == {"rated": {}}
    assert keys(description["strata"]["rated"]) == {
        "session": {"nothing rated before": keys(description["strata"]["rated"]["session"]["nothing rated before"])},
        "gap": {"none before": keys(description["strata"]["rated"]["gap"]["none before"])},
        "history": {"short": keys(description["strata"]["rated"]["history"]["short"])},
        "popularity": {"long tail": keys(description["strata"]["rated"]["popularity"]["long tail"])},
    }


def test_description_of_one_user_is_whole() -> None:
    split = core.leave_one_out(core.positives(RATINGS))
    task = make_task(2, [[0]], seen={0: [1]})  # a list of one, whose diversity nobody knows
    models = {"als": in_order(2), "popular": in_order(2)}
    result = evaluation.evaluate(task, models, flat_catalogue(2), SEED)
    check_description(evaluation.describe_results(split, [result]), [result])
    assert result.intervals["als"]["recall@5"] is None
    assert "diversity@5" not in result.means["als"]


def test_measure_that_is_defined_for_nobody_is_left_out_and_one_that_is_for_somebody_is_not() -> None:
    # A list of one has no diversity, and an item of the first band is not of the long tail.
    catalogue = Catalogue(np.array([2, 1]), np.array([0, 3]), np.ones((2, 1), dtype=np.float32))
    models = {"als": in_order(2), "popular": in_order(2)}
    nobody = evaluation.evaluate(make_task(2, [[0]], seen={0: [1]}), models, catalogue, SEED)
    somebody = evaluation.evaluate(make_task(2, [[0], [1]], seen={0: [1]}), models, catalogue, SEED)
    for name in ("diversity@5", "recall_long_tail@10"):
        for part in ("means", "intervals"):
            assert all(name not in measures for measures in getattr(nobody, part).values())
            assert all(name in measures for measures in getattr(somebody, part).values())
        assert name not in nobody.differences["popular"]
        assert somebody.differences["popular"][name]["difference"] == 0
    assert somebody.means["als"]["recall_long_tail@10"] == 1
    assert nobody.means["als"]["recall@5"] == 1


def test_description_of_the_real_data_holds_its_split_and_definitions(raw: RawData, real: TaskResult) -> None:
    liked = core.positives(raw.ratings)
    if real.task.protocol == "temporal":
        description = evaluation.describe_results(core.split_at_moment(liked, "validation"), [real])
        targets = description["split"]["targets"]["temporal"]
        assert targets["n_users"] == real.task.n_targets
        assert 0 < targets["n_held_out_new_movies"] < targets["n_held_out"] == real.task.relevant.nnz
    else:
        description = evaluation.describe_results(core.leave_one_out(liked), [real])
        assert description["split"] == {
            "name": "leave-one-out", "n_train": 47_363, "n_users": 608, "n_items": 6_227,
            "n_validation": 571, "n_test": 573,
        }  # fmt: skip
        recall = description["protocols"][real.task.protocol]["als"]["recall@10"]
        assert recall * 571 == pytest.approx(round(recall * 571), abs=1e-9)  # unrounded: hits over users
    check_description(description, [real])
    assert description["stage"] == "validation"
