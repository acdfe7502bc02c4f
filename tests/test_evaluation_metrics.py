"""What is measured in ranked lists: by hand, by slow and obvious code, and by other people's tools."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path
from random import Random

import ir_measures
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ir_measures import AP, RR, P, R, nDCG
from numpy.typing import NDArray

from app import evaluation
from app.als import AlsConfig, learn
from app.datasets.movielens import RawData, read_movielens
from app.evaluation import BASELINES, TaskResult
from app.evaluation.metrics import (
    BANDS,
    CUTOFFS,
    DEFINITIONS,
    Catalogue,
    catalogue_metrics,
    exposure_by_band,
    gini,
    list_metrics,
    popularity_bands,
    ranking_metrics,
)
from app.protocols import Protocol
from app.ranking import PADDING
from tests.tasks import always, in_order, make_task, validation_task

RANKING = ("recall", "precision", "ndcg", "map", "mrr")
SEED = 42


def hits_at(*ranks: int, depth: int = 30) -> NDArray[np.bool_]:
    """A list whose relevant movies stand at the given ranks, from 1."""
    return np.isin(np.arange(1, depth + 1), ranks)[None, :]


def gain(*ranks: int) -> float:
    """Σ 1/log2(rank + 1), written out."""
    return sum(1 / math.log2(place + 1) for place in ranks)


# Accuracy, by hand


@pytest.mark.parametrize(
    ("ranks", "n_relevant", "expected"),
    [
        # One relevant movie, as in leave-one-out: map and mrr are both 1/rank.
        ((1,), 1, {"recall@5": 1, "precision@5": 1 / 5, "ndcg@5": 1, "map@5": 1, "mrr@5": 1, "precision@20": 1 / 20}),
        ((3,), 1, {"recall@5": 1, "ndcg@5": 1 / 2, "ndcg@20": 1 / 2, "map@5": 1 / 3, "mrr@5": 1 / 3}),
        ((5,), 1, {"recall@5": 1, "precision@5": 1 / 5, "ndcg@5": 1 / math.log2(6), "map@5": 1 / 5, "mrr@5": 1 / 5}),
        ((6,), 1, {"recall@5": 0, "precision@5": 0, "ndcg@5": 0, "map@5": 0, "mrr@5": 0}),
        ((6,), 1, {"recall@10": 1, "ndcg@10": 1 / math.log2(7), "map@10": 1 / 6, "mrr@10": 1 / 6}),
        ((10,), 1, {"recall@10": 1, "precision@10": 1 / 10, "ndcg@10": 1 / math.log2(11), "mrr@10": 1 / 10}),
        ((11,), 1, {"recall@10": 0, "ndcg@10": 0, "map@10": 0, "mrr@10": 0, "recall@20": 1, "mrr@20": 1 / 11}),
        ((20,), 1, {"recall@20": 1, "precision@20": 1 / 20, "ndcg@20": 1 / math.log2(21), "map@20": 1 / 20}),
        ((21,), 1, {"recall@20": 0, "precision@20": 0, "ndcg@20": 0, "map@20": 0, "mrr@20": 0}),
        # Three relevant, found at 1, 3 and 7; the best order has them at 1, 2 and 3.
        ((1, 3, 7), 3, {"recall@5": 2 / 3, "precision@5": 2 / 5, "ndcg@5": 1.5 / (1.5 + 1 / math.log2(3))}),
        ((1, 3, 7), 3, {"map@5": (1 / 1 + 2 / 3) / 3, "map@10": (1 / 1 + 2 / 3 + 3 / 7) / 3, "mrr@5": 1}),
        ((1, 3, 7), 3, {"recall@10": 1, "precision@10": 3 / 10, "ndcg@10": (1.5 + 1 / 3) / (1.5 + 1 / math.log2(3))}),
        # Found at 4 and 12: within 5 only the first, at precision 1/4.
        ((4, 12), 2, {"recall@5": 1 / 2, "map@5": 1 / 8, "map@20": (1 / 4 + 2 / 12) / 2, "mrr@20": 1 / 4}),
        # More relevant than places: the best order fills the k places, recall and map still divide by all of them.
        ((1, 2, 3, 4, 5), 12, {"recall@5": 5 / 12, "precision@5": 1, "ndcg@5": 1, "map@5": 5 / 12, "mrr@5": 1}),
        ((1, 2, 3, 4, 5), 12, {"recall@10": 5 / 12, "ndcg@10": gain(1, 2, 3, 4, 5) / gain(*range(1, 11))}),
        # Two relevant, one never found.
        ((2,), 2, {"recall@20": 1 / 2, "precision@20": 1 / 20, "ndcg@20": (1 / math.log2(3)) / (1 + 1 / math.log2(3))}),
        ((2,), 2, {"map@20": (1 / 2) / 2, "mrr@20": 1 / 2}),
        ((), 4, {f"{name}@{k}": 0 for name in RANKING for k in CUTOFFS}),
    ],
)  # fmt: skip
def test_accuracy_is_what_the_definitions_say(
    ranks: tuple[int, ...], n_relevant: int, expected: dict[str, float]
) -> None:
    found = ranking_metrics(hits_at(*ranks), np.array([n_relevant]))
    assert sorted(found) == sorted(f"{name}@{k}" for name in RANKING for k in (5, 10, 20))
    for name, value in expected.items():
        assert found[name].tolist() == pytest.approx([value], abs=1e-15), name


def test_nothing_is_defined_for_a_user_without_relevant_movies() -> None:
    hits = np.concatenate([hits_at(), hits_at(2)])
    for name, values in ranking_metrics(hits, np.array([0, 1])).items():
        assert np.isnan(values).tolist() == [True, False], name


def test_cutoffs_are_as_asked() -> None:
    found = ranking_metrics(hits_at(2, depth=3), np.array([1]), cutoffs=(1, 3))
    assert sorted(found) == sorted(f"{name}@{k}" for name in RANKING for k in (1, 3))
    assert [found["recall@1"][0], found["recall@3"][0], found["mrr@3"][0]] == [0, 1, 0.5]


def test_precision_divides_by_k_where_fewer_than_k_movies_are_left() -> None:
    # Of the four movies one was seen: the list is 1, 2, 3 and then padding, and the held-out movie 2 stands second.
    task = make_task(4, [[2]], seen={0: [0]})
    found = evaluation.measure(task, always(9, 3, 2, 1))
    assert [found[f"recall@{k}"][0] for k in CUTOFFS] == [1, 1, 1]
    assert [found[f"precision@{k}"][0] for k in CUTOFFS] == [1 / 5, 1 / 10, 1 / 20]
    assert found["ndcg@10"][0] == pytest.approx(1 / math.log2(3))
    assert found["map@20"][0] == found["mrr@5"][0] == 1 / 2


def test_each_user_is_measured_by_their_own_held_out_movies() -> None:
    task = make_task(30, [[0], [7], [29], [1, 6, 28]])
    found = evaluation.measure(task, in_order(30))  # ranks: 1; 8; 30; 2, 7 and 29
    assert found["recall@5"].tolist() == [1, 0, 0, 1 / 3]
    assert found["recall@10"].tolist() == [1, 1, 0, 2 / 3]
    assert found["ndcg@20"].tolist() == pytest.approx([1, 1 / math.log2(9), 0, gain(2, 7) / gain(1, 2, 3)])
    assert found["map@10"].tolist() == pytest.approx([1, 1 / 8, 0, (1 / 2 + 2 / 7) / 3])
    assert found["mrr@10"].tolist() == [1, 1 / 8, 0, 1 / 2]


# Accuracy, by properties


@st.composite
def ranked(draw: st.DrawFn, depth: int = 25) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Lists with any hits, and any number of relevant movies that were not found."""
    n_lists = draw(st.integers(1, 4))
    hits = np.array(
        draw(st.lists(st.lists(st.booleans(), min_size=depth, max_size=depth), min_size=n_lists, max_size=n_lists))
    )
    missed = np.array(draw(st.lists(st.integers(0, 30), min_size=n_lists, max_size=n_lists)))
    return hits, hits.sum(axis=1) + missed


def slow_metrics(hits: list[bool], n_relevant: int, k: int) -> dict[str, float]:
    """The definitions, one list at a time."""
    ranks = [place for place, is_hit in enumerate(hits[:k], start=1) if is_hit]
    precisions = [sum(hits[:place]) / place for place in ranks]
    return {
        f"recall@{k}": len(ranks) / n_relevant,
        f"precision@{k}": len(ranks) / k,
        f"ndcg@{k}": gain(*ranks) / gain(*range(1, min(k, n_relevant) + 1)),
        f"map@{k}": sum(precisions) / n_relevant,
        f"mrr@{k}": 1 / ranks[0] if ranks else 0,
    }


@given(ranked())
def test_accuracy_equals_the_definitions_written_as_loops(lists: tuple[NDArray[np.bool_], NDArray[np.int64]]) -> None:
    hits, n_relevant = lists
    found = ranking_metrics(hits, n_relevant)
    for row in np.flatnonzero(n_relevant):
        for k in CUTOFFS:
            for name, value in slow_metrics(hits[row].tolist(), int(n_relevant[row]), k).items():
                assert found[name][row] == pytest.approx(value, abs=1e-12), name
    assert all(np.isnan(values[n_relevant == 0]).all() for values in found.values())


@given(ranked())
def test_accuracy_is_between_0_and_1_and_recall_map_and_mrr_rise_with_k(
    lists: tuple[NDArray[np.bool_], NDArray[np.int64]],
) -> None:
    hits, n_relevant = lists[0], np.maximum(lists[1], 1)
    found = ranking_metrics(hits, n_relevant, cutoffs=tuple(range(1, 26)))
    for name, values in found.items():
        assert ((values >= 0) & (values <= 1 + 1e-12)).all(), name
    for name in ("recall", "map", "mrr"):
        assert (np.diff([found[f"{name}@{k}"] for k in range(1, 26)], axis=0) >= 0).all(), name


@given(ranked(), st.randoms(use_true_random=False))
def test_order_of_what_stands_beyond_k_does_not_matter(
    lists: tuple[NDArray[np.bool_], NDArray[np.int64]], random: Random
) -> None:
    hits, n_relevant = lists
    before = ranking_metrics(hits, n_relevant)
    for k in CUTOFFS:
        order = list(range(k, hits.shape[1]))
        random.shuffle(order)
        after = ranking_metrics(hits[:, [*range(k), *order]], n_relevant)
        for name in RANKING:
            np.testing.assert_array_equal(after[f"{name}@{k}"], before[f"{name}@{k}"])


# Popularity and its bands


def test_bands_end_at_1_5_and_20_percent_of_the_catalogue() -> None:
    popularity = np.random.default_rng(0).permutation(200)  # 199 is the most popular, no ties
    band = popularity_bands(popularity)
    assert list(BANDS) == ["top 1 %", "1–5 %", "5–20 %", "long tail"]
    assert band[np.argsort(-popularity)].tolist() == [0] * 2 + [1] * 8 + [2] * 30 + [3] * 160


def test_a_band_of_a_small_catalogue_is_rounded_up() -> None:
    # 1 % of ten movies is one, 5 % is the same one, so that the second band is empty; 20 % are two.
    assert popularity_bands(np.arange(10, 0, -1)).tolist() == [0, 2] + [3] * 8
    assert popularity_bands(np.array([7])).tolist() == [0]


def test_equally_popular_movies_are_put_into_bands_by_their_index() -> None:
    assert popularity_bands(np.full(100, 4)).tolist() == [0] + [1] * 4 + [2] * 15 + [3] * 80
    popularity = np.array([3, 9, 9, 3, 9, 3, 3, 3, 3, 3])  # of the three with 9, one is top and one makes up the 20 %
    assert popularity_bands(popularity).tolist() == [3, 0, 2, 3, 3, 3, 3, 3, 3, 3]


# Popularity 8 + 4 + 2 + 1 + 1 + 0 = 16, so that the information of the movies is 1, 2, 3, 4, 4 bits; the last, which
# has no positive, counts as having one: 4 bits too. Movies 3 to 5 are the long tail. Genres: ab, bc, –, –, ab, abc.
CATALOGUE = Catalogue(
    popularity=np.array([8, 4, 2, 1, 1, 0]),
    band=np.array([0, 1, 2, 3, 3, 3]),
    genres=np.array([[1, 1, 0], [0, 1, 1], [0, 0, 0], [0, 0, 0], [1, 1, 0], [1, 1, 1]], dtype=np.float32),
)


def listed(*items: int, depth: int = 20) -> NDArray[np.int32]:
    """One list, padded."""
    return np.array([[*items, *[PADDING] * (depth - len(items))]], dtype=np.int32)


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        # Dissimilarity of 0 and 1, {a, b} and {b, c}: 1 − 1/3. Long lists average over what is listed, not over k.
        ((0, 1), {"long_tail@5": 0, "novelty@5": 3 / 2, "diversity@5": 2 / 3}),
        ((0, 1), {"long_tail@20": 0, "novelty@20": 3 / 2, "diversity@20": 2 / 3}),
        ((0, 4), {"long_tail@5": 1 / 2, "novelty@5": 5 / 2, "diversity@5": 0}),  # the same genres
        ((2, 3), {"long_tail@5": 1 / 2, "novelty@5": 7 / 2, "diversity@5": 0}),  # both without genres: alike
        ((0, 2), {"novelty@5": 2, "diversity@5": 1}),  # one without genres: nothing in common
        ((5, 3), {"long_tail@10": 1, "novelty@10": 4}),
        # Pairs: 01 2/3, 02 1, 05 1/3 (2 of 3 shared), 12 1, 15 1/3, 25 1; six of them.
        ((0, 1, 2, 5), {"long_tail@5": 1 / 4, "novelty@5": 10 / 4, "diversity@5": (2 / 3 + 3 + 2 / 3) / 6}),
        # All six: 5 are beyond k = 5 for the sixth. The first five have ten pairs:
        # 01 2/3, 02 1, 03 1, 04 0, 12 1, 13 1, 14 2/3, 23 0, 24 1, 34 1.
        ((0, 1, 2, 3, 4, 5), {"long_tail@5": 2 / 5, "novelty@5": 14 / 5, "diversity@5": (4 / 3 + 6) / 10}),
        # Ten more than that by 5: 05 1/3, 15 1/3, 25 1, 35 1, 45 1/3.
        ((0, 1, 2, 3, 4, 5), {"long_tail@10": 3 / 6, "novelty@10": 18 / 6, "diversity@10": (22 / 3 + 3) / 15}),
        ((3,), {"long_tail@5": 1, "novelty@20": 4, "diversity@5": math.nan, "diversity@20": math.nan}),
        ((), {f"{name}@{k}": math.nan for name in ("long_tail", "novelty", "diversity") for k in CUTOFFS}),
    ],
)  # fmt: skip
def test_long_tail_novelty_and_diversity_are_what_the_definitions_say(
    items: tuple[int, ...], expected: dict[str, float]
) -> None:
    found = list_metrics(listed(*items), CATALOGUE)
    assert sorted(found) == sorted(f"{name}@{k}" for name in ("long_tail", "novelty", "diversity") for k in CUTOFFS)
    for name, value in expected.items():
        assert found[name].tolist() == pytest.approx([value], abs=1e-7, nan_ok=True), name


def test_each_list_is_measured_for_itself() -> None:
    lists = np.concatenate([listed(), listed(0, 1), listed(3)])
    found = list_metrics(lists, CATALOGUE)
    assert found["novelty@5"].tolist() == pytest.approx([math.nan, 1.5, 4], nan_ok=True)
    assert found["long_tail@10"].tolist() == pytest.approx([math.nan, 0, 1], nan_ok=True)
    assert found["diversity@5"].tolist() == pytest.approx([math.nan, 2 / 3, math.nan], nan_ok=True)


def test_catalogue_that_nobody_likes_and_that_has_no_genres_has_defined_measures() -> None:
    catalogue = Catalogue(np.zeros(3, dtype=np.int64), np.array([0, 3, 3]), np.zeros((3, 0), dtype=np.float32))
    found = list_metrics(listed(0, 1), catalogue)
    assert [found["novelty@5"][0], found["diversity@5"][0], found["long_tail@5"][0]] == [0, 0, 0.5]


@given(
    st.lists(st.lists(st.integers(0, 5), min_size=0, max_size=6, unique=True), min_size=1, max_size=5),
    st.randoms(use_true_random=False),
)
def test_measures_beyond_accuracy_do_not_depend_on_the_order_within_k(rows: list[list[int]], random: Random) -> None:
    shuffled = [row.copy() for row in rows]
    for row in shuffled:
        random.shuffle(row)
    one, other = (list_metrics(np.concatenate([listed(*row) for row in some]), CATALOGUE) for some in (rows, shuffled))
    for name in one:
        if not name.endswith("@5"):  # 5 is within the list of six
            np.testing.assert_allclose(one[name], other[name], rtol=0, atol=1e-9)
    for k in CUTOFFS:
        for name, low, high in (("long_tail", 0, 1), ("novelty", 1, 4), ("diversity", 0, 1)):
            values = one[f"{name}@{k}"]
            assert ((values >= low - 1e-7) & (values <= high + 1e-7))[~np.isnan(values)].all()


# Coverage, Gini, exposure


def test_coverage_and_gini_count_the_first_k_of_all_lists() -> None:
    lists = np.concatenate([listed(0, 1, 2, 3, 4, 5), listed(5, 1, 0), listed()])
    found = catalogue_metrics(lists, n_items=8, cutoffs=(2, 5))
    # Among the first two: 0 and 5 once, 1 twice. Rising: 0 0 0 0 0 1 1 2; Σ (2i − 9) x = 3 + 5 + 2 · 7; n Σ x = 8 · 4.
    assert found["coverage@2"] == 3 / 8
    assert found["gini@2"] == pytest.approx(22 / 32)
    # Among the first five: 0 and 1 twice, 2 to 5 once. Rising: 0 0 1 1 1 1 2 2; −3 − 1 + 1 + 3 + 10 + 14 = 24.
    assert found["coverage@5"] == 6 / 8
    assert found["gini@5"] == pytest.approx(24 / 64)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([3, 3, 3, 3], 0),
        ([0, 0, 0, 5], 3 / 4),  # (n − 1)/n: one movie is all that anybody sees
        ([3, 0, 2, 1], 10 / 24),  # rising 0 1 2 3: −3 · 0 − 1 · 1 + 1 · 2 + 3 · 3 = 10, divided by 4 · 6
        ([0, 0, 0], 0),
        ([7], 0),
    ],
)
def test_gini_by_hand(counts: list[int], expected: float) -> None:
    assert gini(np.array(counts)) == pytest.approx(expected, abs=1e-15)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(any))
def test_gini_is_half_the_relative_mean_difference(counts: list[int]) -> None:
    # The other definition of it, without any order.
    n, mean = len(counts), sum(counts) / len(counts)
    differences = sum(abs(one - other) for one in counts for other in counts)
    assert gini(np.array(counts)) == pytest.approx(differences / (2 * n * n * mean), abs=1e-12)


def test_exposure_is_shared_out_by_band_over_the_first_k() -> None:
    lists = np.concatenate([listed(0, 1, 3, 2), listed(4, 0)])
    # The first three: 0 twice (top), 1, 3 and 4 (long tail); of five places.
    assert exposure_by_band(lists, CATALOGUE.band, 3) == {
        "top 1 %": 2 / 5,
        "1–5 %": 1 / 5,
        "5–20 %": 0,
        "long tail": 2 / 5,
    }
    assert exposure_by_band(lists, CATALOGUE.band, 1) == {"top 1 %": 1 / 2, "1–5 %": 0, "5–20 %": 0, "long tail": 1 / 2}
    assert set(exposure_by_band(listed(), CATALOGUE.band, 3).values()) == {0}


# Measures that need the task


def measured(task_n_new: list[int], relevant: list[list[int]], band: list[int]) -> TaskResult:
    n_items = len(band)
    task = make_task(n_items, relevant, n_new=np.array(task_n_new))
    catalogue = Catalogue(np.arange(n_items, 0, -1), np.array(band), np.ones((n_items, 1), dtype=np.float32))
    return evaluation.evaluate(task, {"als": in_order(n_items)}, catalogue, SEED)


def test_movies_outside_the_catalogue_count_as_missed() -> None:
    # User 0: one of one found, and one outside: 1/2. User 1: ranks 2 and 8 of two, and two outside: 1/4, then 2/4.
    # User 2: one of one, none outside: 1.
    result = measured([1, 2, 0], [[0], [1, 7], [2]], band=[3] * 30)
    assert result.means["als"]["recall_with_new@5"] == pytest.approx((1 / 2 + 1 / 4 + 1) / 3)
    assert result.means["als"]["recall_with_new@10"] == pytest.approx((1 / 2 + 2 / 4 + 1) / 3)
    assert result.means["als"]["recall@5"] == pytest.approx((1 + 1 / 2 + 1) / 3)


def test_recall_with_new_is_not_measured_where_nothing_is_outside_the_catalogue() -> None:
    result = measured([0, 0], [[0], [1]], band=[3] * 30)
    assert not [name for name in result.means["als"] if name.startswith("recall_with_new")]


def test_recall_of_the_long_tail_is_over_the_users_who_have_such_a_movie() -> None:
    # Items 0 to 2 are popular. User 0 has none of the tail; user 1 has 3 (rank 4) beside the popular 0; user 2 has 4
    # (rank 5) and 9 (rank 10).
    result = measured([0, 0, 0], [[1], [0, 3], [4, 9]], band=[0, 1, 2] + [3] * 27)
    assert result.means["als"]["recall_long_tail@5"] == pytest.approx((1 + 1 / 2) / 2)
    assert result.means["als"]["recall_long_tail@10"] == 1


def test_definition_stands_for_every_metric() -> None:
    means = measured([1], [[0]], band=[3] * 30).means["als"]
    names = {name.split("@")[0] for name in means}
    assert names == {
        *RANKING, "recall_with_new", "recall_long_tail", "long_tail", "novelty", "diversity", "coverage", "gini"
    }  # fmt: skip
    assert sorted(means) == sorted(f"{name}@{k}" for name in names for k in CUTOFFS)
    assert {f"{name}@k" for name in names} <= set(DEFINITIONS)


# The real data, against slow code and other tools


@pytest.fixture(scope="module")
def raw(movielens_dir: Path) -> RawData:
    return read_movielens(movielens_dir)


@pytest.fixture(scope="module", params=["rated", "positives", "temporal"])
def result(raw: RawData, request: pytest.FixtureRequest) -> TaskResult:
    """All models on one protocol of the real data; the fit of ALS is a short one."""
    protocol: Protocol = request.param
    task = validation_task(raw.ratings, protocol)
    scorers = {"als": evaluation.als_scorer(task, learn(task.positives, AlsConfig(factors=16, iterations=3)))}
    scorers |= {name: BASELINES[name](task, SEED) for name in ("item_knn", "ease", "popular", "random")}
    return evaluation.evaluate(task, scorers, evaluation.describe_catalogue(task, raw.movies), SEED)


def test_accuracy_agrees_with_ir_measures_user_by_user(result: TaskResult, tmp_path: Path) -> None:
    task = result.task
    assert (np.diff(task.relevant.indptr).max() > 5) == (task.protocol == "temporal")
    evaluation.write_trec(tmp_path, task, result.lists)
    qrels = list(ir_measures.read_trec_qrels(str(tmp_path / "qrels.txt")))
    user_ids = [str(user_id) for user_id in task.users.ids[task.target_users]]
    others = {"recall": R, "precision": P, "ndcg": nDCG, "map": AP, "mrr": RR}
    measures = {metric @ k: f"{name}@{k}" for name, metric in others.items() for k in CUTOFFS}
    for model in ("als", "item_knn", "popular"):
        lists = result.lists[model]
        hits = evaluation.results.find_hits(lists, task.relevant)
        ours = ranking_metrics(hits, np.diff(task.relevant.indptr))
        theirs: dict[str, dict[str, float]] = defaultdict(dict)
        run = list(ir_measures.read_trec_run(str(tmp_path / f"run.{model}.txt")))
        for found in ir_measures.iter_calc(list(measures), qrels, run):
            theirs[measures[found.measure]][found.query_id] = found.value
        assert sorted(theirs) == sorted(ours)
        for name, values in ours.items():
            assert sorted(theirs[name]) == sorted(user_ids)
            np.testing.assert_allclose(values, [theirs[name][user] for user in user_ids], rtol=0, atol=1e-9)
            mean = float(np.mean(list(theirs[name].values())))
            assert result.means[model][name] == pytest.approx(mean, abs=1e-9), (model, name)
        assert ours["recall@20"].any()


def test_novelty_and_diversity_agree_with_obvious_code(result: TaskResult, raw: RawData) -> None:
    items, model = result.task.items, "als"
    liked = Counter(result.task.user_items.indices.tolist())
    genres_of = dict(zip(raw.movies["movie_id"], raw.movies["genres"], strict=True))
    genres = [set(filter(None, genres_of[movie_id].split("|"))) for movie_id in items.ids]
    assert any(not some for some in genres)
    novelty, diversity = defaultdict(list), defaultdict(list)
    for ranking in result.lists[model].tolist():
        for k in CUTOFFS:
            first = [item for item in ranking[:k] if item != PADDING]
            novelty[k].append(sum(-math.log2(max(liked[i], 1) / liked.total()) for i in first) / len(first))
            apart = [
                1 - len(genres[a] & genres[b]) / len(genres[a] | genres[b]) if genres[a] | genres[b] else 0.0
                for a, b in combinations(first, 2)
            ]
            diversity[k].append(sum(apart) / len(apart))
    for k in CUTOFFS:
        assert result.means[model][f"novelty@{k}"] == pytest.approx(np.mean(novelty[k]), abs=1e-9)
        assert result.means[model][f"diversity@{k}"] == pytest.approx(np.mean(diversity[k]), abs=1e-6)  # of float32


@pytest.mark.parametrize("model", ["als", "item_knn", "popular"])
def test_coverage_gini_long_tail_and_exposure_agree_with_obvious_code(result: TaskResult, model: str) -> None:
    n_items = len(result.task.items)
    liked = Counter(result.task.user_items.indices.tolist())
    by_popularity = sorted(range(n_items), key=lambda item: (-liked[item], item))
    head = set(by_popularity[: math.ceil(n_items / 5)])
    for k in CUTOFFS:
        shown = Counter(item for ranking in result.lists[model].tolist() for item in ranking[:k])
        assert result.means[model][f"coverage@{k}"] == len(shown) / n_items
        # Half the relative mean difference, grouped by equal counts.
        sizes = Counter(shown[item] for item in range(n_items))
        apart = sum(abs(a - b) * n * m for a, n in sizes.items() for b, m in sizes.items())
        assert result.means[model][f"gini@{k}"] == pytest.approx(apart / (2 * n_items * shown.total()), abs=1e-12)
        in_tail = [np.mean([item not in head for item in ranking[:k]]) for ranking in result.lists[model].tolist()]
        assert result.means[model][f"long_tail@{k}"] == pytest.approx(np.mean(in_tail), abs=1e-12)
    top = set(by_popularity[: math.ceil(n_items / 100)])
    shown = Counter(item for ranking in result.lists[model].tolist() for item in ranking[:10])
    share = sum(shown[item] for item in top) / shown.total()
    assert result.exposure[model]["top 1 %"] == pytest.approx(share, abs=1e-12)
    assert sum(result.exposure[model].values()) == pytest.approx(1, abs=1e-12)


def test_als_beats_popular_and_popular_beats_random(result: TaskResult) -> None:
    for name in ("recall@20", "ndcg@20"):
        assert result.means["popular"][name] > result.means["random"][name]
        if result.task.protocol != "temporal":  # where a short fit need not
            assert result.means["als"][name] > result.means["popular"][name]
