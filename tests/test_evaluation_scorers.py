"""The models under evaluation: against their equations, against published figures, and that none knows the future."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from numpy.typing import NDArray

from app import core, evaluation
from app.als import PRESETS, AlsConfig, Factors, learn
from app.core import Split, Stage
from app.datasets.movielens import read_movielens
from app.evaluation import BASELINES, Scorer, scorers, why_skipped
from app.evaluation.lists import rank
from app.protocols import RankingTask, build_task
from tests.tasks import make_task, validation_task

SEED = 42
LEARNERS = ("als", "reference", "item_knn", "ease", "popular")


def scores_of(scorer: Scorer, task: RankingTask) -> NDArray[np.float32]:
    return scorer(np.arange(task.n_targets))


def make_scorer(model: str, task: RankingTask, config: AlsConfig | None = None) -> Scorer:
    if model == "als":
        return evaluation.als_scorer(task, learn(task.positives, config or AlsConfig(factors=3, regularization=0.1)))
    return BASELINES[model](task, SEED)


def some_likes(n_users: int, n_items: int, random_state: int = 0) -> dict[int, list[int]]:
    """What each user likes, oldest first: from one movie to half of them."""
    rng = np.random.default_rng(random_state)
    return {user: rng.permutation(n_items)[: rng.integers(1, n_items // 2 + 1)].tolist() for user in range(n_users)}


def ask_everybody(learned: Mapping[int, Sequence[int]], n_items: int) -> RankingTask:
    return make_task(n_items, [[0]] * (max(learned) + 1), learned=learned)


def weights(learned: Mapping[int, Sequence[int]], n_items: int, half_life: float) -> NDArray[np.float64]:
    """½^(n/half_life) for n later likes, written out; half_life 0 for ones."""
    dense = np.zeros((max(learned) + 1, n_items))
    for user, liked in learned.items():
        for n_later, item in enumerate(reversed(liked)):
            dense[user, item] = 0.5 ** (n_later / half_life) if half_life else 1
    return dense


# ALS


def test_als_scores_are_dot_products_of_the_user_s_and_the_item_s_factor() -> None:
    task = make_task(3, [[0], [0]], learned={0: [1], 1: [2]})
    factors = Factors(
        user_factors=np.array([[1, 0], [0, 2]], dtype=np.float32),
        item_factors=np.array([[1, 4], [2, 5], [3, 6]], dtype=np.float32),
    )
    scores = scores_of(evaluation.als_scorer(task, factors), task)
    assert scores.tolist() == [[1, 2, 3], [8, 10, 12]]
    assert scores.dtype == np.float32


def test_scores_belong_to_the_places_that_are_asked_for() -> None:
    learned = {0: [0], 1: [1, 2], 2: [3], 3: [4, 0]}
    everybody = ask_everybody(learned, 6)
    some = replace(everybody, target_users=np.array([1, 3]), relevant=everybody.relevant[:2], seen=everybody.seen[:2])
    for model in LEARNERS:
        of_all, of_some = make_scorer(model, everybody), make_scorer(model, some)
        np.testing.assert_array_equal(of_some(np.array([0, 1])), of_all(np.array([1, 3])), err_msg=model)
        np.testing.assert_array_equal(of_some(np.array([1])), of_all(np.array([3])), err_msg=model)


# Everybody gets an answer


@pytest.mark.parametrize("model", LEARNERS)
def test_user_without_positives_gets_the_popular_order_under_every_model(model: str) -> None:
    # Positives: movie 3 three times, 1 twice, 0 and 5 once, 2 and 4 never.
    task = ask_everybody({0: [3, 1], 1: [], 2: [3], 3: [3, 1], 4: [0, 5]}, 6)
    lists = rank(task.seen, make_scorer(model, task), depth=6).tolist()
    assert lists[1] == [3, 1, 0, 5, 2, 4]
    if model != "popular":
        assert lists[4] != lists[1]


def test_popularity_counts_the_positives_that_the_task_may_learn_from() -> None:
    task = make_task(3, [[0], [0], [1]], learned={0: [2], 1: [2, 1]})
    assert scorers.popular_scorer(task)(np.array([0, 2])).tolist() == [[0, 1, 2], [0, 1, 2]]


@pytest.mark.parametrize("model", LEARNERS)
def test_caller_may_overwrite_the_scores(model: str) -> None:
    task = ask_everybody({0: [3, 1], 1: [], 2: [3], 3: [3, 1], 4: [0, 5]}, 6)
    before = task.positives.user_items.copy()
    expected = scores_of(make_scorer(model, task), task).tolist()
    scorer = make_scorer(model, task)
    scores_of(scorer, task)[:] = -1
    assert scores_of(scorer, task).tolist() == expected
    np.testing.assert_array_equal(task.user_items.toarray(), before.toarray())


# Random


@pytest.mark.parametrize(("n_seen", "floor"), [(0, 10 / 50), (10, 10 / 40)])
def test_random_finds_the_held_out_movie_as_often_as_chance_does(n_seen: int, floor: float) -> None:
    n_users = 4_000
    rng = np.random.default_rng(1)
    drawn = rng.permuted(np.tile(np.arange(50), (n_users, 1)), axis=1)
    seen = {user: drawn[user, 1 : 1 + n_seen].tolist() for user in range(n_users)}
    task = make_task(50, drawn[:, :1].tolist(), seen=seen)
    recall = evaluation.measure(task, scorers.random_scorer(task, SEED))["recall@10"].mean()
    assert abs(recall - floor) < 4 * math.sqrt(floor * (1 - floor) / n_users)


def test_random_is_seeded() -> None:
    task = make_task(50, [[0]] * 20)
    first, again, other = (rank(task.seen, scorers.random_scorer(task, seed)).tolist() for seed in (1, 1, 2))
    assert first == again != other
    assert len({tuple(ranking) for ranking in first}) == 20


# EASE


def textbook_ease(x: NDArray[np.float64], regularization: float) -> NDArray[np.float64]:
    """B of Steck (2019), as in the listing there."""
    g = x.T @ x
    diagonal = np.diag_indices(len(g))
    g[diagonal] += regularization
    p = np.linalg.inv(g)
    b = p / -np.diag(p)
    b[diagonal] = 0
    return b


@pytest.mark.parametrize("half_life", [0, 2.0])
@pytest.mark.parametrize(("n_users", "n_items"), [(6, 15), (20, 7), (8, 8)], ids=["by users", "by items", "square"])
def test_ease_is_the_closed_form_of_its_paper(n_users: int, n_items: int, half_life: float) -> None:
    learned = some_likes(n_users, n_items)
    task = ask_everybody(learned, n_items)
    scores = scores_of(scorers.ease_scorer(task, regularization=3.0, half_life=half_life), task)
    b = textbook_ease(weights(learned, n_items, 0), 3.0)
    np.testing.assert_allclose(scores, weights(learned, n_items, half_life) @ b, rtol=0, atol=1e-6)
    assert np.abs(b).max() > 0.05


def test_ease_by_users_is_ease_by_items() -> None:
    # More than 1,024 movies, so that the diagonal is computed in several blocks.
    rng = np.random.default_rng(0)
    x = sp.random(30, 1_100, density=0.05, random_state=rng, data_rvs=lambda n: np.ones(n), format="csr")
    w = sp.random(4, 1_100, density=0.05, random_state=rng, format="csr")
    (solve_one, diagonal_one), (solve_other, diagonal_other) = scorers._by_users(x, 7.0), scorers._by_items(x, 7.0)
    np.testing.assert_allclose(diagonal_one, diagonal_other, rtol=1e-9)
    np.testing.assert_allclose(solve_one(w), solve_other(w), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("n_users", "n_items", "is_skipped"), [(4, 5, True), (3, 9, False), (9, 3, False), (3, 3, False)]
)
def test_ease_is_skipped_where_both_matrices_are_too_large(
    monkeypatch: pytest.MonkeyPatch, n_users: int, n_items: int, is_skipped: bool
) -> None:
    monkeypatch.setattr(scorers, "EASE_MAX_SIZE", 3)
    task = make_task(n_items, [[0]] * n_users, learned={0: [0]})
    reason = why_skipped("ease", task)
    assert (reason is not None) == is_skipped
    if reason is not None:
        assert "4 × 5" in reason
        assert "exceeds 3" in reason
    assert {why_skipped(model, task) for model in BASELINES if model != "ease"} == {None}


@pytest.mark.parametrize(("n_items", "is_skipped"), [(4, True), (3, False)])
def test_item_knn_is_skipped_where_its_neighbours_are_too_many(
    monkeypatch: pytest.MonkeyPatch, n_items: int, is_skipped: bool
) -> None:
    monkeypatch.setattr(scorers, "KNN_MAX_ITEMS", 3)
    reason = why_skipped("item_knn", make_task(n_items, [[0]], learned={0: [0]}))
    assert (reason is not None) == is_skipped
    assert reason is None or "4 exceeds 3" in reason


# Item kNN


def naive_similarity(x: NDArray[np.float64], weighting: str, neighbours: int) -> NDArray[np.float64]:
    """The ``neighbours`` largest of each row of the similarities, the movie itself among them; others 0."""
    by_item = x.T.copy()  # (n_items, n_users)
    n_items = len(by_item)
    idf = np.log(n_items) - np.log(1 + (by_item > 0).sum(axis=0))  # of users, as implicit has it
    if weighting == "tfidf":
        by_item *= idf
    if weighting == "bm25":
        length = 0.25 + 0.75 * by_item.sum(axis=1) / by_item.sum(axis=1).mean()
        by_item = by_item * 2.2 / (1.2 * length[:, None] + by_item) * idf
    else:
        by_item /= np.linalg.norm(by_item, axis=1, keepdims=True)
    similarity = by_item @ by_item.T
    if neighbours < n_items:
        falling = -np.sort(-similarity, axis=1)
        assert (falling[:, neighbours - 1] - falling[:, neighbours] > 1e-6).all(), "a tie leaves it open who is kept"
        similarity[similarity < falling[:, [neighbours - 1]]] = 0
    return similarity


@pytest.mark.parametrize("half_life", [0, 2.0])
@pytest.mark.parametrize(
    ("weighting", "neighbours"), [("cosine", 12), ("tfidf", 12), ("tfidf", 4), ("bm25", 12), ("bm25", 3)]
)
def test_item_knn_is_the_sum_over_the_nearest_neighbours(weighting: str, neighbours: int, half_life: float) -> None:
    learned = some_likes(40, 12)
    task = ask_everybody(learned, 12)
    scorer = scorers.item_knn_scorer(task, weighting=weighting, neighbours=neighbours, half_life=half_life)
    similarity = naive_similarity(weights(learned, 12, 0), weighting, neighbours)
    expected = weights(learned, 12, half_life) @ similarity
    np.testing.assert_allclose(scores_of(scorer, task), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "learned",
    [
        {0: [0, 1], 1: [2]},  # user 0 likes two of the three movies: log(3) − log(1 + 2) = 0
        {0: [0, 1], 1: [1]},
        {0: [0, 1, 2], 1: [2]},  # all of them: the weight is negative
    ],
)
def test_item_knn_has_finite_scores_where_somebody_likes_nearly_everything(learned: dict[int, list[int]]) -> None:
    task = ask_everybody(learned, 3)
    assert np.isfinite(scores_of(scorers.item_knn_scorer(task), task)).all()


# The real data


@pytest.fixture(scope="module")
def ratings(movielens_dir: Path) -> pd.DataFrame:
    return read_movielens(movielens_dir).ratings


@pytest.fixture(scope="module")
def split(ratings: pd.DataFrame) -> Split:
    return core.leave_one_out(core.positives(ratings))


def test_reference_point_of_published_notebooks_is_reproduced(ratings: pd.DataFrame, split: Split) -> None:
    # The one figure of the test stage that is looked at before the end: nothing is chosen by it.
    task = build_task(ratings, split, "positives", "test")
    reference = evaluation.measure(task, BASELINES["reference"](task, SEED))
    assert reference["recall@10"].mean() == pytest.approx(0.0768, abs=0.002)
    assert reference["ndcg@10"].mean() == pytest.approx(0.0381, abs=0.002)
    popular = evaluation.measure(task, BASELINES["popular"](task, SEED))
    assert popular["recall@10"].mean() == pytest.approx(0.0419, abs=0.0006)


def test_random_is_no_better_than_chance_on_the_real_data(ratings: pd.DataFrame) -> None:
    task = validation_task(ratings, "rated")
    chance = float((20 / (len(task.items) - np.diff(task.seen.indptr))).mean())
    recall = evaluation.measure(task, BASELINES["random"](task, SEED))["recall@20"].mean()
    assert abs(recall - chance) < 4 * math.sqrt(chance / task.n_targets)


def test_every_model_that_learns_clears_popular_and_popular_clears_random(ratings: pd.DataFrame) -> None:
    task = validation_task(ratings, "rated")
    ndcg = {
        model: evaluation.measure(task, make_scorer(model, task, PRESETS["default"]))["ndcg@20"].mean()
        for model in ("als", *BASELINES)
    }
    assert min(ndcg[model] for model in ("als", "reference", "item_knn", "ease")) > ndcg["popular"] > ndcg["random"]


@pytest.mark.parametrize("make", [scorers.item_knn_scorer, scorers.ease_scorer])
def test_baselines_know_recency_and_are_better_for_it(make: Callable[..., Scorer], ratings: pd.DataFrame) -> None:
    task = validation_task(ratings, "rated")
    ndcg, without = (evaluation.measure(task, make(task, **how))["ndcg@20"].mean() for how in ({}, {"half_life": 0}))
    assert ndcg > 1.1 * without


# The future


def target_time_of_each_row(ratings: pd.DataFrame, split: Split, stage: Stage) -> NDArray[np.float64]:
    """The time of the held-out movie of each row's user, NaN for users who are not asked about."""
    targets = getattr(split, stage)
    targets = targets[targets["movie_id"].isin(split.items.ids)]
    return ratings["user_id"].map(targets.set_index("user_id")["timestamp"]).to_numpy(dtype=np.float64)


def rewrite_the_future(ratings: pd.DataFrame, split: Split, stage: Stage) -> tuple[pd.DataFrame, dict[str, int]]:
    """Change what target users did from their target's time on, in ways that leave split and catalogue as they are.

    The split knows positives only, their order in time, and their order in the file where times are equal. So
    non-positives may change altogether, and positives may take another grade; those after the target may also be later.
    """
    rng = np.random.default_rng(5)
    time = target_time_of_each_row(ratings, split, stage)
    timestamp, is_liked = ratings["timestamp"].to_numpy(), (ratings["rating"] >= core.MIN_RATING).to_numpy()
    is_tied, is_later = timestamp == time, timestamp > time
    is_future = is_tied | is_later
    changed = ratings.copy()
    # 4.0 → 4.5 → 5.0 → 4.0, and 0.5 ↔ 3.5.
    regraded = np.select(
        [is_future & is_liked, is_future], [4 + (ratings["rating"] - 3.5) % 1.5, 4 - ratings["rating"]]
    )
    changed.loc[is_future, "rating"] = regraded[is_future].astype(np.float32)
    changed.loc[is_later & is_liked, "timestamp"] += 1_000_000
    moves = is_later & ~is_liked
    changed.loc[moves, "timestamp"] = time[moves].astype(np.int64) + rng.integers(0, 10_000_000, moves.sum())
    takes_other_movie = is_future & ~is_liked & (rng.random(len(ratings)) < 0.5)
    for user_id, rows in ratings[takes_other_movie].groupby("user_id").groups.items():
        free = np.setdiff1d(split.items.ids, ratings.loc[ratings["user_id"] == user_id, "movie_id"])
        changed.loc[rows, "movie_id"] = rng.choice(free, len(rows), replace=False)
    vanishes = is_future & ~is_liked & ~takes_other_movie & (rng.random(len(ratings)) < 0.5)
    counts = {
        "liked, tied": int((is_tied & is_liked).sum()),
        "liked, later": int((is_later & is_liked).sum()),
        "tied, other movie": int((is_tied & takes_other_movie).sum()),
        "tied, vanishes": int((is_tied & vanishes).sum()),
        "later, moves": int((moves & ~vanishes).sum()),
    }
    return changed[~vanishes].reset_index(drop=True), counts


def export(folder: Path, task: RankingTask) -> dict[str, bytes]:
    """Fit every model that learns and return the exported files."""
    config = AlsConfig(iterations=3)
    lists = {model: rank(task.seen, make_scorer(model, task, config)) for model in LEARNERS}
    evaluation.write_trec(folder, task, lists)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(autouse=True)
def brief_reference(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A leak shows after three iterations as well as after twenty."""
    if "future" in request.node.name:
        monkeypatch.setitem(PRESETS, "reference", replace(PRESETS["reference"], iterations=3))


@pytest.mark.parametrize("stage", ["validation", pytest.param("test", marks=pytest.mark.slow)])
def test_no_model_knows_the_future(ratings: pd.DataFrame, split: Split, stage: Stage, tmp_path: Path) -> None:
    # Figures of the test stage are neither computed nor shown here: only whether two files are equal.
    changed, counts = rewrite_the_future(ratings, split, stage)
    after = core.leave_one_out(core.positives(changed))
    for part in ("train", "validation", "test"):
        columns = ["user_id", "movie_id"]
        one, other = (getattr(some, part)[columns].to_numpy() for some in (split, after))
        assert (one == other).all(), part
    assert (split.items.ids == after.items.ids).all()
    assert (split.users.ids == after.users.ids).all()
    assert not changed.duplicated(["user_id", "movie_id"]).any()
    assert all(n > 0 for kind, n in counts.items() if (kind, stage) != ("liked, later", "test")), counts
    assert counts["liked, tied"] > 570 + 50  # the targets, and what learners must leave out

    as_it_was = export(tmp_path / "as it was", build_task(ratings, split, "rated", stage))
    rewritten = export(tmp_path / "rewritten", build_task(changed, after, "rated", stage))
    assert sorted(as_it_was) == sorted(["qrels.txt", *(f"run.{model}.txt" for model in LEARNERS)])
    assert [name for name in as_it_was if as_it_was[name] != rewritten[name]] == []


@pytest.mark.slow
def test_models_do_know_the_past_and_not_only_the_future(ratings: pd.DataFrame, split: Split, tmp_path: Path) -> None:
    # The counterpart, without which the test above could pass on models that ignore ratings altogether.
    task = build_task(ratings, split, "rated", "validation")
    is_past = ratings["timestamp"].to_numpy() < target_time_of_each_row(ratings, split, "validation")
    one_grade, one_movie = ratings.copy(), ratings.copy()
    row = ratings[is_past & (ratings["rating"] == 4.0)].index[-1]
    one_grade.loc[row, "rating"] = np.float32(5)
    as_it_was = export(tmp_path / "as it was", task)
    regraded = export(
        tmp_path / "regraded",
        build_task(one_grade, core.leave_one_out(core.positives(one_grade)), "rated", "validation"),
    )
    # Only ALS knows grades.
    assert [name for name in sorted(as_it_was) if as_it_was[name] != regraded[name]] == ["run.als.txt"]
    one_movie.loc[row, "rating"] = np.float32(3)
    after = core.leave_one_out(core.positives(one_movie))
    disliked = export(tmp_path / "disliked", build_task(one_movie, after, "rated", "validation"))
    assert {"run.als.txt", "run.reference.txt", "run.item_knn.txt", "run.ease.txt"} <= {
        name for name in as_it_was if as_it_was[name] != disliked[name]
    }
