"""What a model may learn from, what is removed from a ranking, and that neither knows the future."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from app import core, evaluation
from app.als import PRESETS, fit_als
from app.core import IdMap, Split
from app.datasets.movielens import read_movielens
from app.errors import DataError
from app.protocols import STAGES, Protocol, RankingTask, Stage, build_task

PROTOCOLS: tuple[Protocol, ...] = ("rated", "positives")


def frame(*rows: tuple[int, int, float, int]) -> pd.DataFrame:
    """Ratings from (user_id, movie_id, rating, timestamp)."""
    table = pd.DataFrame(rows, columns=["user_id", "movie_id", "rating", "timestamp"])
    return table.astype({"user_id": "int64", "movie_id": "int64", "rating": "float32", "timestamp": "int64"})


def split_of(ratings: pd.DataFrame) -> Split:
    return core.leave_one_out(core.positives(ratings))


def cells(matrix: sp.csr_matrix, row_ids: list[int], items: IdMap) -> dict[int, set[int]]:
    """The non-zero cells of a matrix as {user_id: movie_ids}."""
    return {
        row_id: set(items.ids[matrix.indices[matrix.indptr[row] : matrix.indptr[row + 1]]].tolist())
        for row, row_id in enumerate(row_ids)
    }


def learned(task: RankingTask) -> dict[int, set[int]]:
    return cells(task.user_items, task.users.ids.tolist(), task.items)


def removed(task: RankingTask) -> dict[int, set[int]]:
    return cells(task.seen, task.users.ids[task.target_users].tolist(), task.items)


def targets(task: RankingTask) -> dict[int, int]:
    user_ids, movie_ids = task.users.ids[task.target_users], task.items.ids[task.target_items]
    return dict(zip(user_ids.tolist(), movie_ids.tolist(), strict=True))


# Six users whose every cell can be listed by hand; movies 1–8 are the train catalogue, 90 is outside.
TINY = frame(
    # User 1 rates something low before, at and after both of the held-out times (40 and 50).
    (1, 1, 5.0, 10),
    (1, 90, 1.0, 15),
    (1, 2, 2.0, 20),
    (1, 3, 4.0, 30),
    (1, 4, 4.0, 40),  # validation
    (1, 7, 3.0, 40),
    (1, 5, 5.0, 50),  # test
    (1, 8, 2.0, 50),
    (1, 6, 1.0, 60),
    # User 2 has a train, the validation and the test positive, and a low rating, in the same second.
    (2, 2, 3.5, 4),
    (2, 1, 4.0, 5),
    (2, 5, 4.0, 9),
    (2, 3, 4.0, 9),  # validation
    (2, 4, 4.0, 9),  # test
    (2, 6, 0.5, 9),
    # User 3's test movie is in nobody's train.
    (3, 1, 4.0, 1),
    (3, 3, 4.0, 2),  # validation
    (3, 90, 4.0, 3),  # test
    # User 4 has exactly two positives.
    (4, 2, 1.0, 0),
    (4, 3, 4.0, 1),  # validation
    (4, 5, 4.0, 2),  # test
    # User 5 has one, and is left out.
    (5, 4, 4.0, 1),
    # User 6 rated everything in one second.
    (6, 1, 4.0, 7),
    (6, 4, 4.0, 7),  # validation
    (6, 5, 4.0, 7),  # test
    # User 7 liked much.
    (7, 2, 4.0, 1),
    (7, 4, 4.0, 2),
    (7, 6, 4.0, 3),
    (7, 7, 4.0, 4),
    (7, 8, 4.0, 5),
    (7, 1, 4.0, 8),  # validation
    (7, 3, 4.0, 9),  # test
)
TRAIN = {1: {1, 3}, 2: {1, 5}, 3: {1}, 4: set(), 6: {1}, 7: {2, 4, 6, 7, 8}}
TARGETS: dict[Stage, dict[int, int]] = {
    "validation": {1: 4, 2: 3, 3: 3, 4: 3, 6: 4, 7: 1},
    "test": {1: 5, 2: 4, 4: 5, 6: 5, 7: 3},
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("stage", STAGES)
def test_catalogue_and_targets_are_the_same_in_both_protocols(protocol: Protocol, stage: Stage) -> None:
    task = build_task(TINY, split_of(TINY), protocol, stage)
    assert task.users.ids.tolist() == [1, 2, 3, 4, 6, 7]
    assert task.items.ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert targets(task) == TARGETS[stage]
    assert (task.protocol, task.stage, task.n_targets) == (protocol, stage, len(TARGETS[stage]))
    assert task.seen.shape == (task.n_targets, 8)


@pytest.mark.parametrize("stage", STAGES)
def test_positives_learns_from_train_only_and_removes_train_positives_only(stage: Stage) -> None:
    task = build_task(TINY, split_of(TINY), "positives", stage)
    assert learned(task) == TRAIN
    assert removed(task) == {user: TRAIN[user] for user in TARGETS[stage]}


def test_rated_validation_learns_from_train_strictly_before_the_target() -> None:
    task = build_task(TINY, split_of(TINY), "rated", "validation")
    assert learned(task) == {1: {1, 3}, 2: {1}, 3: {1}, 4: set(), 6: set(), 7: {2, 4, 6, 7, 8}}


def test_rated_validation_removes_everything_rated_strictly_before_the_target() -> None:
    task = build_task(TINY, split_of(TINY), "rated", "validation")
    assert removed(task) == {1: {1, 2, 3}, 2: {1, 2}, 3: {1}, 4: {2}, 6: set(), 7: {2, 4, 6, 7, 8}}


def test_rated_test_learns_from_train_and_validation_strictly_before_the_target() -> None:
    # User 3, who is not asked about, keeps all rows; user 2's tied ones and all of user 6's go.
    task = build_task(TINY, split_of(TINY), "rated", "test")
    assert learned(task) == {1: {1, 3, 4}, 2: {1}, 3: {1, 3}, 4: {3}, 6: set(), 7: {1, 2, 4, 6, 7, 8}}


def test_rated_test_removes_everything_rated_strictly_before_the_target() -> None:
    task = build_task(TINY, split_of(TINY), "rated", "test")
    assert removed(task) == {1: {1, 2, 3, 4, 7}, 2: {1, 2}, 4: {2, 3}, 6: set(), 7: {1, 2, 4, 6, 7, 8}}


@pytest.mark.parametrize("stage", STAGES)
def test_target_is_never_removed_from_its_own_ranking(stage: Stage) -> None:
    # As if user 1 had rated the held-out movies once before, lower; ``core.load`` would keep one row only.
    twice = pd.concat([frame((1, 4, 1.0, 2), (1, 5, 1.0, 3)), TINY], ignore_index=True)
    task = build_task(twice, split_of(TINY), "rated", stage)
    own = {"validation": {1, 2, 3, 5}, "test": {1, 2, 3, 4, 7}}[stage]
    assert removed(task)[1] == own


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_matrix_holds_ones(protocol: Protocol) -> None:
    task = build_task(TINY, split_of(TINY), protocol, "test")
    assert set(task.user_items.data.tolist()) == {1.0}
    assert task.user_items.dtype == np.float32
    assert task.user_items.has_sorted_indices


ROWS = st.tuples(st.integers(1, 4), st.integers(1, 12), st.sampled_from([1.0, 3.5, 4.0, 5.0]), st.integers(0, 6))


@settings(deadline=None)
@given(st.lists(ROWS, min_size=8, max_size=60, unique_by=lambda row: row[:2]), st.sampled_from(STAGES))
def test_no_cell_of_a_target_user_is_from_the_target_s_time_or_later(
    rows: list[tuple[int, int, float, int]], stage: Stage
) -> None:
    ratings = frame(*rows)
    try:
        task = build_task(ratings, split_of(ratings), "rated", stage)
    except DataError:
        return
    rated_at = {(user, movie): time for user, movie, _, time in rows}
    rating_of = {(user, movie): rating for user, movie, rating, _ in rows}
    catalogue = set(task.items.ids.tolist())
    for user, target in targets(task).items():
        before = {m for (u, m), time in rated_at.items() if u == user and time < rated_at[user, target]} & catalogue
        assert removed(task)[user] == before
        assert learned(task)[user] == {movie for movie in before if rating_of[user, movie] >= 4}


def test_data_whose_held_out_movies_are_all_new_is_refused_with_a_remedy() -> None:
    ratings = frame((1, 1, 4, 1), (1, 2, 4, 2), (1, 3, 4, 3))
    with pytest.raises(DataError, match=r"test: none of the held-out movies occurs in the train.*--evaluate none"):
        build_task(ratings, split_of(ratings), "positives", "test")


def test_data_whose_timestamps_are_all_alike_is_refused_with_a_remedy() -> None:
    ratings = frame(*((user, (user + place) % 4, 4.0, 0) for user in range(4) for place in range(4)))
    with pytest.raises(DataError, match=r"rated, test: .*\(are the timestamps all alike\?\).*--evaluate none"):
        build_task(ratings, split_of(ratings), "rated", "test")
    assert build_task(ratings, split_of(ratings), "positives", "test").n_targets == 4


# The real data


@pytest.fixture(scope="module")
def ratings(movielens_dir: Path) -> pd.DataFrame:
    return read_movielens(movielens_dir).ratings


def target_time_of_each_row(ratings: pd.DataFrame, stage: Stage = "test") -> pd.Series:
    """The target time of each row's user, NaN for users who are not asked about."""
    split = split_of(ratings)
    held_out = getattr(split, stage)
    asked = held_out[held_out["movie_id"].isin(split.items.ids)]
    return ratings["user_id"].map(asked.set_index("user_id")["timestamp"])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_real_data_has_571_validation_and_573_test_targets(ratings: pd.DataFrame, protocol: Protocol) -> None:
    split = split_of(ratings)
    assert [build_task(ratings, split, protocol, stage).n_targets for stage in STAGES] == [571, 573]


def test_61_test_users_have_positives_that_are_held_back_for_being_tied_with_the_target(ratings: pd.DataFrame) -> None:
    split = split_of(ratings)
    task = build_task(ratings, split, "rated", "test")
    everything = core.build_user_items(pd.concat([split.train, split.validation]), split.users, split.items)
    held_back = np.diff(everything.indptr) - np.diff(task.user_items.indptr)
    assert int((held_back[task.target_users] > 0).sum()) == 61
    assert int(held_back.sum()) == int(held_back[task.target_users].sum()) > 61


def test_user_163_is_left_without_earlier_positives(ratings: pd.DataFrame) -> None:
    task = build_task(ratings, split_of(ratings), "rated", "test")
    without = task.target_users[np.diff(task.user_items.indptr)[task.target_users] == 0]
    assert task.users.ids[without].tolist() == [163]


def rewrite_the_future(ratings: pd.DataFrame) -> pd.DataFrame:
    """Change what target users did from their target's time on, in ways that leave split and catalogue as they are.

    Ratings below the threshold take other such values and other movies, positives take other values from 4 to 5, and
    rows change their place in the file, the positives among themselves aside.
    """
    rng = np.random.default_rng(9)
    changed = ratings.copy()
    is_future = (ratings["timestamp"] >= target_time_of_each_row(ratings)).to_numpy()
    is_positive = (ratings["rating"] >= core.MIN_RATING).to_numpy()
    changed.loc[is_future & ~is_positive, "rating"] = np.float32(4) - changed["rating"]  # 0.5 ↔ 3.5
    changed.loc[is_future & is_positive, "rating"] = np.float32(9) - changed["rating"]  # 4 ↔ 5
    catalogue = split_of(ratings).items.ids
    for user_id, rows in ratings[is_future & ~is_positive].groupby("user_id").groups.items():
        free = np.setdiff1d(catalogue, ratings.loc[ratings["user_id"] == user_id, "movie_id"])
        changed.loc[rows, "movie_id"] = rng.choice(free, len(rows), replace=False)
    order = rng.permutation(len(ratings))
    order[is_positive[order]] = np.flatnonzero(is_positive)
    return changed.iloc[order].reset_index(drop=True)


def bytes_of(task: RankingTask) -> list[bytes]:
    arrays = [task.users.ids, task.items.ids, task.target_users, task.target_items]
    for matrix in (task.user_items, task.seen):
        arrays += [matrix.indptr, matrix.indices, matrix.data]
    return [np.ascontiguousarray(array).tobytes() for array in arrays]


def test_what_users_do_from_the_target_s_time_on_changes_no_byte_of_task_or_run(
    ratings: pd.DataFrame, tmp_path: Path
) -> None:
    rewritten = rewrite_the_future(ratings)
    n_changed = len(ratings.merge(rewritten, how="left", indicator=True).query("_merge == 'left_only'"))
    assert n_changed > 1_000
    for name, table in (("as-it-was", ratings), ("rewritten", rewritten)):
        task = build_task(table, split_of(table), "rated", "test")
        factors = fit_als(task.user_items, PRESETS["default"])
        result = evaluation.evaluate(task, evaluation.scorers(task, factors, 42), 42)
        evaluation.write_trec(tmp_path / name, task, result.runs)
        (tmp_path / name / "task").write_bytes(b"|".join(bytes_of(task)))
    files = sorted(path.name for path in (tmp_path / "as-it-was").iterdir())
    assert files == ["qrels.txt", "run.als.txt", "run.popular.txt", "run.random.txt", "task"]
    for file in files:
        assert (tmp_path / "as-it-was" / file).read_bytes() == (tmp_path / "rewritten" / file).read_bytes(), file


def test_what_users_do_before_the_target_s_time_does_change_the_task(ratings: pd.DataFrame) -> None:
    # The counterpart, without which the test above could pass on a task that ignores ratings altogether.
    is_past = ratings["timestamp"] < target_time_of_each_row(ratings)
    is_ranked = ratings["movie_id"].isin(split_of(ratings).items.ids)
    row = ratings[is_past & is_ranked & (ratings["rating"] < core.MIN_RATING)].index[0]
    changed = ratings.drop(index=row).reset_index(drop=True)
    before, after = (build_task(table, split_of(table), "rated", "test") for table in (ratings, changed))
    assert before.seen.nnz - after.seen.nnz == 1
    assert removed(before)[ratings.loc[row, "user_id"]] - removed(after)[ratings.loc[row, "user_id"]] == {
        ratings.loc[row, "movie_id"]
    }
