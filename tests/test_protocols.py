"""What a model may learn from, what is removed from a ranking, and that neither knows the future."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from app import core, evaluation
from app.als import PRESETS, learn
from app.core import STAGES, IdMap, Split, Stage, TemporalSplit
from app.datasets.movielens import RawData, read_movielens
from app.errors import DataError
from app.history import UserRows, build_history, positives_of
from app.protocols import LEAVE_ONE_OUT, Protocol, RankingTask, Requests, build_task, build_temporal_tasks, step_back


def frame(*rows: tuple[int, int, float, int]) -> pd.DataFrame:
    """Ratings from (user_id, movie_id, rating, timestamp)."""
    table = pd.DataFrame(rows, columns=["user_id", "movie_id", "rating", "timestamp"])
    return table.astype({"user_id": "int64", "movie_id": "int64", "rating": "float32", "timestamp": "int64"})


def split_of(ratings: pd.DataFrame) -> Split:
    return core.leave_one_out(core.positives(ratings))


def at_moment(ratings: pd.DataFrame, moment: int, min_rating: float = 4.0) -> TemporalSplit:
    """Everything liked from a moment on, held out; ``core.split_at_moment`` chooses the moment itself."""
    liked = core.positives(ratings, min_rating)
    train, held_out = liked[liked["timestamp"] < moment], liked[liked["timestamp"] >= moment]
    return TemporalSplit("test", moment, train, held_out, IdMap.of(liked["user_id"]), items=IdMap.of(train["movie_id"]))


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


def relevant(task: RankingTask) -> dict[int, set[int]]:
    return cells(task.relevant, task.users.ids[task.target_users].tolist(), task.items)


def targets(task: RankingTask) -> dict[int, int]:
    """The one held-out movie of each target user of a leave-one-out protocol."""
    user_ids, movie_ids = task.users.ids[task.target_users], task.items.ids[task.relevant.indices]
    return dict(zip(user_ids.tolist(), movie_ids.tolist(), strict=True))


def known(history: UserRows, users: IdMap, items: IdMap) -> dict[int, list[tuple[int, float, int]]]:
    """The (movie_id, rating, timestamp) of each user, oldest first, as {user_id: rows}."""
    rows = [history.of(row) for row in range(len(users))]
    return {
        user_id: list(zip(items.ids[row.item_index].tolist(), row.rating.tolist(), row.timestamp.tolist(), strict=True))
        for user_id, row in zip(users.ids.tolist(), rows, strict=True)
    }


def by_user(task: RankingTask, values: np.ndarray) -> dict[int, int]:
    return dict(zip(task.users.ids[task.target_users].tolist(), values.tolist(), strict=True))


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


@pytest.mark.parametrize("protocol", LEAVE_ONE_OUT)
@pytest.mark.parametrize("stage", STAGES)
def test_catalogue_and_targets_are_the_same_in_both_protocols(protocol: Protocol, stage: Stage) -> None:
    task = build_task(TINY, split_of(TINY), protocol, stage)
    assert task.users.ids.tolist() == [1, 2, 3, 4, 6, 7]
    assert task.items.ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert targets(task) == TARGETS[stage]
    assert (task.protocol, task.stage, task.n_targets) == (protocol, stage, len(TARGETS[stage]))
    assert task.seen.shape == task.relevant.shape == (task.n_targets, 8)
    assert np.diff(task.relevant.indptr).tolist() == [1] * task.n_targets
    assert task.n_new.tolist() == [0] * task.n_targets


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


@pytest.mark.parametrize("protocol", LEAVE_ONE_OUT)
def test_matrix_holds_ones(protocol: Protocol) -> None:
    task = build_task(TINY, split_of(TINY), protocol, "test")
    assert task.user_items is task.positives.user_items
    assert set(task.user_items.data.tolist()) == {1.0}
    assert task.user_items.dtype == np.float32
    assert task.user_items.has_sorted_indices


# Movies 1 to 5 are the train catalogue, 99 is outside. Six who tell apart what lies before the held-out movie.
GAPS = frame(
    (1, 1, 4.0, 10),
    (1, 2, 4.0, 20),  # validation; the rating before it is at 10
    (1, 99, 2.0, 25),  # outside the catalogue and no positive, yet a rating
    (1, 3, 4.0, 30),  # test
    (2, 2, 4.0, 1),
    (2, 3, 4.0, 2),
    (2, 1, 4.0, 9),  # validation
    (2, 4, 4.0, 9 + 86_400),  # test, a day later
    (3, 4, 4.0, 1),
    (3, 5, 4.0, 2),
    (3, 1, 4.0, 2),  # validation, in the same second as a positive
    (3, 2, 4.0, 100),  # test, in the same second as a low rating
    (3, 3, 0.5, 100),
    (4, 1, 4.0, 50),  # validation, the first rating
    (4, 2, 4.0, 60),  # test
    (4, 3, 1.0, 70),  # later, and no matter
)


@pytest.mark.parametrize("protocol", LEAVE_ONE_OUT)
@pytest.mark.parametrize(
    ("stage", "n_history", "gap_seconds"),
    [
        ("validation", {1: 1, 2: 2, 3: 1, 4: 0}, {1: 20 - 10, 2: 9 - 2, 3: 0, 4: -1}),
        ("test", {1: 3, 2: 3, 3: 3, 4: 1}, {1: 30 - 25, 2: 86_400, 3: 0, 4: 60 - 50}),
    ],
)
def test_history_and_gap_are_of_all_ratings_before_the_held_out_one(
    protocol: Protocol, stage: Stage, n_history: dict[int, int], gap_seconds: dict[int, int]
) -> None:
    task = build_task(GAPS, split_of(GAPS), protocol, stage)
    assert 99 not in task.items.ids
    assert by_user(task, task.n_history) == n_history
    assert by_user(task, task.gap_seconds) == gap_seconds


@pytest.mark.parametrize(
    ("stage", "n_history", "gap_seconds"),
    [
        # 2 and 6 have ties at their held-out times, as has 1 (movie 7 at 40, movie 8 at 50); 6 has nothing older.
        ("validation", {1: 4, 2: 2, 3: 1, 4: 1, 6: 0, 7: 5}, {1: 0, 2: 0, 3: 1, 4: 1, 6: 0, 7: 3}),
        ("test", {1: 6, 2: 2, 4: 2, 6: 0, 7: 6}, {1: 0, 2: 0, 4: 1, 6: 0, 7: 1}),
    ],
)
def test_history_and_gap_of_users_with_ties(
    stage: Stage, n_history: dict[int, int], gap_seconds: dict[int, int]
) -> None:
    task = build_task(TINY, split_of(TINY), "rated", stage)
    assert by_user(task, task.n_history) == n_history
    assert by_user(task, task.gap_seconds) == gap_seconds


def strengths(task: RankingTask) -> dict[tuple[int, int], float]:
    """Strength of each positive to learn from, by (user_id, movie_id)."""
    cells_ = task.positives.user_items.tocoo()
    ids = zip(task.users.ids[cells_.row].tolist(), task.items.ids[cells_.col].tolist(), strict=True)
    return dict(zip(ids, task.positives.strength.tolist(), strict=True))


GRADED = frame((1, 1, 3.0, 1), (1, 2, 4.0, 2), (1, 3, 5.0, 3), (1, 4, 3.5, 4), (1, 5, 4.0, 5), (2, 5, 4.5, 1))


@pytest.mark.parametrize("protocol", LEAVE_ONE_OUT)
def test_least_rating_is_the_bottom_of_the_grades(protocol: Protocol) -> None:
    # 2·(rating − 3)/(5 − 3) − 1 = rating − 4. User 2's three are there to put movies 4 and 5 into the catalogue.
    ratings = pd.concat([GRADED, frame((2, 4, 3.0, 2), (2, 1, 4.0, 3), (2, 2, 4.0, 4))], ignore_index=True)
    split = core.leave_one_out(core.positives(ratings, 3.0))
    expected = {(1, 1): -1, (1, 2): 0, (1, 3): 1, (2, 5): 0.5, (2, 4): -1}
    if protocol == "rated":
        expected |= {(1, 4): -0.5, (2, 1): 0}  # the validation positives
    assert strengths(build_task(ratings, split, protocol, "test", 3.0)) == expected


def test_least_rating_is_the_bottom_of_the_grades_of_a_temporal_task_too() -> None:
    split = at_moment(GRADED, 5, 3.0)
    (task,) = build_temporal_tasks(GRADED, split, 3.0)
    assert strengths(task) == {(1, 1): -1, (1, 2): 0, (1, 3): 1, (1, 4): -0.5, (2, 5): 0.5}


def test_later_positives_are_counted_among_those_that_may_be_known() -> None:
    # User 7 liked 2, 4, 6, 7, 8 and then 1 for validation; the held-out 3 is no later positive to any of them. Of user
    # 1's, 1, 3 and 4 (validation) are known for test.
    task = build_task(TINY, split_of(TINY), "rated", "test")
    items, indptr = task.items.ids[task.positives.user_items.indices], task.positives.user_items.indptr
    found = {}
    for user_id in (1, 7):
        row = int(task.users.index(user_id))
        own = slice(indptr[row], indptr[row + 1])
        found[user_id] = dict(zip(items[own].tolist(), task.positives.n_later[own].tolist(), strict=True))
    assert found == {1: {1: 2, 3: 1, 4: 0}, 7: {2: 5, 4: 4, 6: 3, 7: 2, 8: 1, 1: 0}}


# What is known of every user, and when they ask


def test_history_of_a_rated_task_is_everything_of_the_catalogue_before_the_target() -> None:
    task = build_task(TINY, split_of(TINY), "rated", "test")
    assert known(task.history, task.users, task.items) == {
        1: [(1, 5, 10), (2, 2, 20), (3, 4, 30), (4, 4, 40), (7, 3, 40)],
        2: [(2, 3.5, 4), (1, 4, 5)],
        3: [(1, 4, 1), (3, 4, 2)],  # not asked about; 90 is outside the catalogue
        4: [(2, 1, 0), (3, 4, 1)],
        6: [],
        7: [(2, 4, 1), (4, 4, 2), (6, 4, 3), (7, 4, 4), (8, 4, 5), (1, 4, 8)],
    }
    assert by_user(task, task.moments) == {1: 50, 2: 9, 4: 2, 6: 7, 7: 9}


@pytest.mark.parametrize("stage", STAGES)
def test_history_of_a_positives_task_is_the_train_rows(stage: Stage) -> None:
    task = build_task(TINY, split_of(TINY), "positives", stage)
    found = known(task.history, task.users, task.items)
    assert {user: {movie for movie, *_ in rows} for user, rows in found.items()} == TRAIN
    assert found[1] == [(1, 5, 10), (3, 4, 30)]
    assert (
        by_user(task, task.moments)
        == {
            "validation": {1: 40, 2: 9, 3: 2, 4: 1, 6: 7, 7: 8},
            "test": {1: 50, 2: 9, 4: 2, 6: 7, 7: 9},
        }[stage]
    )


# User 1 may be asked for test only: their validation movie is in nobody's train. Users 2 and 3 are there for the rest.
NOT_ASKED = frame(
    (1, 1, 4.0, 1),
    (1, 90, 4.0, 5),  # validation, outside the catalogue
    (1, 2, 4.0, 8),  # test
    (1, 3, 1.0, 9),
    (2, 2, 4.0, 1),
    (2, 1, 4.0, 2),  # validation
    (2, 3, 4.0, 3),  # test
    (3, 3, 4.0, 1),
    (3, 1, 4.0, 2),  # validation
    (3, 2, 4.0, 3),  # test
)


def test_history_for_validation_holds_no_test_movie_of_a_user_who_is_not_asked_about() -> None:
    task = build_task(NOT_ASKED, split_of(NOT_ASKED), "rated", "validation")
    assert set(targets(task)) == {2, 3}
    assert learned(task)[1] == {1}
    liked = [movie for movie, rating, _ in known(task.history, task.users, task.items)[1] if rating >= 4]
    assert liked == [1]


@pytest.mark.parametrize("protocol", LEAVE_ONE_OUT)
@pytest.mark.parametrize("stage", STAGES)
def test_requests_of_a_task_ask_its_targets_at_its_moments(protocol: Protocol, stage: Stage) -> None:
    task = build_task(TINY, split_of(TINY), protocol, stage)
    requests = task.requests
    assert (requests.history, requests.users, requests.moments) == (task.history, task.target_users, task.moments)
    assert requests.relevant is task.relevant


def test_history_of_temporal_tasks_is_everything_of_the_catalogue_before_the_moment() -> None:
    for task in build_temporal_tasks(TEMPORAL, at_moment(TEMPORAL, MOMENT)):
        assert known(task.history, task.users, task.items) == {
            1: [(1, 5, 10), (2, 4, 20), (3, 2, 30)],
            2: [(1, 4, 15), (4, 4, 25)],
            3: [(3, 4, 5)],
            4: [(5, 4, 50)],
            5: [(2, 3, 60)],
            6: [],
            7: [],
        }
        assert task.moments.tolist() == [MOMENT] * task.n_targets
        check_positives_of_history(task)


def check_positives_of_history(task: RankingTask) -> None:
    found, expected = positives_of(task.history, len(task.items), core.MIN_RATING), task.positives
    for name in ("indptr", "indices", "data"):
        one, other = getattr(found.user_items, name), getattr(expected.user_items, name)
        assert (one.dtype, one.tobytes()) == (other.dtype, other.tobytes()), name
    assert found.strength.tobytes() == expected.strength.tobytes()
    assert found.n_later.tobytes() == expected.n_later.tobytes()


# Stepping back

# Three who like something, one who likes nothing, and one who rated nothing. Items are 0 to 5, named 0 to 5.
STEPS_USERS, STEPS_ITEMS = IdMap(np.arange(1, 6)), IdMap(np.arange(6))
STEPS = frame(
    (1, 0, 4.0, 10),
    (1, 1, 2.0, 20),
    (1, 2, 5.0, 30),  # in the same second as the positive after it
    (1, 3, 4.0, 30),  # the last positive
    (1, 4, 1.0, 30),  # of the same second
    (1, 5, 3.5, 40),
    (2, 3, 4.5, 5),  # the only one
    (3, 1, 1.0, 100),
    (3, 2, 3.5, 200),
    (4, 4, 1.0, 1),
    (4, 0, 4.0, 2),
)


def steps() -> UserRows:
    return build_history(STEPS, STEPS_USERS, STEPS_ITEMS)


def asked(requests: Requests) -> dict[int, tuple[int, list[int]]]:
    """When each user asks and what would have been right, as {user_id: (moment, items)}."""
    rows = [requests.relevant[row].indices.tolist() for row in range(len(requests.users))]
    pairs = zip(requests.moments.tolist(), rows, strict=True)
    return dict(zip(STEPS_USERS.ids[requests.users].tolist(), pairs, strict=True))


def test_step_back_asks_for_the_last_positive_and_forgets_its_second_and_what_came_after() -> None:
    requests = step_back(steps(), 6)
    assert asked(requests) == {1: (30, [3]), 2: (5, [3]), 4: (2, [0])}
    assert known(requests.history, STEPS_USERS, STEPS_ITEMS) == {
        1: [(0, 4, 10), (1, 2, 20)],  # the positive of the same second is gone too
        2: [],  # who had a single positive asks without a history
        3: [(1, 1, 100), (2, 3.5, 200)],  # who likes nothing keeps everything and does not ask
        4: [(4, 1, 1)],
        5: [],
    }


def test_second_step_back_asks_for_what_is_last_then() -> None:
    first = step_back(steps(), 6)
    second = step_back(first.history, 6)
    assert asked(second) == {1: (10, [0])}
    third = step_back(second.history, 6)
    assert asked(third) == {}
    assert (third.relevant.shape, third.users.tolist(), third.moments.tolist()) == ((0, 6), [], [])
    left = known(third.history, STEPS_USERS, STEPS_ITEMS)
    assert left == {1: [], 2: [], 3: [(1, 1, 100), (2, 3.5, 200)], 4: [(4, 1, 1)], 5: []}


def test_step_back_goes_by_the_least_rating_that_counts() -> None:
    assert asked(step_back(steps(), 6, 3.5)) == {1: (40, [5]), 2: (5, [3]), 3: (200, [2]), 4: (2, [0])}
    assert asked(step_back(steps(), 6, 5.0)) == {1: (30, [2])}


def test_step_back_leaves_what_it_is_given_as_it_was() -> None:
    history = steps()
    before = known(history, STEPS_USERS, STEPS_ITEMS)
    step_back(history, 6)
    assert known(history, STEPS_USERS, STEPS_ITEMS) == before


TIMED = st.tuples(st.integers(1, 5), st.integers(0, 5), st.sampled_from([1.0, 3.5, 4.0, 5.0]), st.integers(0, 6))


@settings(deadline=None)
@given(st.lists(TIMED, max_size=30, unique_by=lambda row: row[:2]))
def test_however_often_one_steps_back_later_rows_are_never_seen_again(rows: list[tuple[int, int, float, int]]) -> None:
    history, left = build_history(frame(*rows), STEPS_USERS, STEPS_ITEMS), len(rows)
    until = dict.fromkeys(range(1, 6), 1_000)
    for _ in range(7):
        liked_before = {u: [r for r in rows if r[0] == u and r[2] >= 4 and r[3] < until[u]] for u in until}
        requests = step_back(history, 6)
        found = asked(requests)
        assert set(found) == {user for user, liked in liked_before.items() if liked}
        for user, (moment, (item,)) in found.items():
            assert moment == max(time for *_, time in liked_before[user]) < until[user]
            assert (user, item, moment) in {(u, i, time) for u, i, _, time in liked_before[user]}
            until[user] = moment
        history = requests.history
        for user, seen in known(history, STEPS_USERS, STEPS_ITEMS).items():
            expected = [(i, rating, time) for u, i, rating, time in rows if u == user and time < until[user]]
            assert seen == sorted(expected, key=lambda row: row[2])
        assert len(history.item_index) <= left
        left = len(history.item_index)
    assert not found


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
    history = known(task.history, task.users, task.items)
    for user, target in targets(task).items():
        before = {m for (u, m), time in rated_at.items() if u == user and time < rated_at[user, target]} & catalogue
        assert removed(task)[user] == before == {movie for movie, *_ in history[user]}
        assert all(time < rated_at[user, target] == by_user(task, task.moments)[user] for *_, time in history[user])
        assert learned(task)[user] == {movie for movie in before if rating_of[user, movie] >= 4}
        times = sorted(time for (u, m), time in rated_at.items() if u == user and m != target)
        until = [time for time in times if time <= rated_at[user, target]]
        assert by_user(task, task.n_history)[user] == sum(time < rated_at[user, target] for time in times)
        assert by_user(task, task.gap_seconds)[user] == (rated_at[user, target] - until[-1] if until else -1)


def test_data_whose_held_out_movies_are_all_new_is_refused_with_a_remedy() -> None:
    ratings = frame((1, 1, 4, 1), (1, 2, 4, 2), (1, 3, 4, 3))
    with pytest.raises(DataError, match=r"test: none of the held-out movies occurs in the train.*--evaluate none"):
        build_task(ratings, split_of(ratings), "positives", "test")


def test_data_whose_timestamps_are_all_alike_is_refused_with_a_remedy() -> None:
    ratings = frame(*((user, (user + place) % 4, 4.0, 0) for user in range(4) for place in range(4)))
    with pytest.raises(DataError, match=r"rated, test: .*\(are the timestamps all alike\?\).*--evaluate none"):
        build_task(ratings, split_of(ratings), "rated", "test")
    assert build_task(ratings, split_of(ratings), "positives", "test").n_targets == 4


# The split at one moment

# The moment is 100; movies 1–5 are liked before it, 90 and 91 only after, 99 never.
MOMENT = 100
TEMPORAL = frame(
    # User 1 comes back for one movie of the catalogue and a new one.
    (1, 1, 5.0, 10),
    (1, 2, 4.0, 20),
    (1, 3, 2.0, 30),
    (1, 99, 1.0, 40),
    (1, 4, 4.0, 100),  # held out, in the very second of the moment
    (1, 90, 5.0, 110),  # held out, new
    (1, 5, 1.0, 120),
    # User 2 comes back for two.
    (2, 1, 4.0, 15),
    (2, 4, 4.0, 25),
    (2, 5, 4.0, 140),  # held out
    (2, 3, 4.5, 130),  # held out, the first
    # User 3 does not come back; user 4 for a new movie only.
    (3, 3, 4.0, 5),
    (4, 5, 4.0, 50),
    (4, 90, 4.0, 150),  # held out, new
    (4, 1, 2.0, 160),
    # Users 5 and 6 are new to what is learned from, although 5 had rated something low; 7 is new and likes a new movie.
    (5, 2, 3.0, 60),
    (5, 1, 4.0, 170),  # held out
    (6, 1, 4.0, 180),  # held out
    (6, 91, 4.0, 185),  # held out, new
    (6, 4, 4.0, 190),  # held out
    (6, 2, 1.0, 195),
    (7, 91, 4.0, 200),  # held out, new
    # User 8 never likes anything.
    (8, 1, 1.0, 5),
    (8, 2, 1.0, 205),
)


def test_users_who_come_back_are_asked_about_their_later_movies_of_the_catalogue() -> None:
    task, _ = build_temporal_tasks(TEMPORAL, at_moment(TEMPORAL, MOMENT))
    assert (task.protocol, task.stage, task.n_targets) == ("temporal", "test", 2)
    assert task.items.ids.tolist() == [1, 2, 3, 4, 5]
    assert relevant(task) == {1: {4}, 2: {3, 5}}
    assert removed(task) == {1: {1, 2, 3}, 2: {1, 4}}  # 5, which user 1 rates low after the moment, may be shown
    assert by_user(task, task.n_new) == {1: 1, 2: 0}
    assert by_user(task, task.n_history) == {1: 4, 2: 2}
    assert by_user(task, task.gap_seconds) == {1: 100 - 40, 2: 130 - 25}


def test_new_users_are_asked_about_apart() -> None:
    _, task = build_temporal_tasks(TEMPORAL, at_moment(TEMPORAL, MOMENT))
    assert (task.protocol, task.stage, task.n_targets) == ("temporal_new_users", "test", 2)
    assert relevant(task) == {5: {1}, 6: {1, 4}}
    assert removed(task) == {5: {2}, 6: set()}
    assert by_user(task, task.n_new) == {5: 0, 6: 1}
    assert by_user(task, task.n_history) == {5: 1, 6: 0}
    assert by_user(task, task.gap_seconds) == {5: 170 - 60, 6: -1}


def test_both_temporal_tasks_learn_from_all_positives_before_the_moment() -> None:
    for task in build_temporal_tasks(TEMPORAL, at_moment(TEMPORAL, MOMENT)):
        assert learned(task) == {1: {1, 2}, 2: {1, 4}, 3: {3}, 4: {5}, 5: set(), 6: set(), 7: set()}
        assert task.positives.n_later.tolist() == [1, 0, 1, 0, 0, 0]  # of users 1 (movies 1, 2), 2 (1, 4), 3 and 4
        assert task.positives.strength.tolist() == [1, -1, -1, -1, -1, -1]
        assert task.relevant.shape == task.seen.shape == (task.n_targets, 5)


def test_temporal_gap_is_from_the_last_rating_that_is_known_at_the_moment_to_the_first_held_out_movie() -> None:
    # User 2's first held-out movie is at 130. What was rated low at 128, and in the same second, nobody knew at 100.
    ratings = pd.concat([TEMPORAL, frame((2, 2, 1.0, 128), (2, 99, 1.0, 130))], ignore_index=True)
    task, _ = build_temporal_tasks(ratings, at_moment(ratings, MOMENT))
    assert by_user(task, task.gap_seconds) == {1: 60, 2: 130 - 25}
    assert by_user(task, task.n_history) == {1: 4, 2: 2}


def test_without_new_users_there_is_one_temporal_task() -> None:
    ratings = TEMPORAL[TEMPORAL["user_id"] < 5]
    (task,) = build_temporal_tasks(ratings, at_moment(ratings, MOMENT))
    assert (task.protocol, relevant(task)) == ("temporal", {1: {4}, 2: {3, 5}})


def test_what_users_rate_after_the_moment_is_not_known_to_a_temporal_task() -> None:
    split, before = at_moment(TEMPORAL, MOMENT), TEMPORAL["timestamp"] < MOMENT
    known, blind = (build_temporal_tasks(ratings, split) for ratings in (TEMPORAL, TEMPORAL[before]))
    for one, other in zip(known, blind, strict=True):
        assert bytes_of(one) == bytes_of(other)


def test_temporal_data_whose_later_movies_are_all_new_is_refused_with_a_remedy() -> None:
    ratings = frame((1, 1, 4, 1), (1, 2, 4, 2), (1, 3, 4, 100), (2, 4, 4, 100))
    with pytest.raises(
        DataError,
        match=r"temporal, test: no user with positives before .* has a later one in the catalogue.*leave-one-out",
    ):
        build_temporal_tasks(ratings, at_moment(ratings, MOMENT))


def test_temporal_data_in_which_nobody_comes_back_is_refused_for_the_right_reason() -> None:
    # User 2 likes a movie of the catalogue after the moment, so that is not what is wrong: nobody known does.
    ratings = frame((1, 1, 4, 1), (1, 2, 4, 2), (2, 1, 4, 100))
    with pytest.raises(DataError, match="temporal, test") as caught:
        build_temporal_tasks(ratings, at_moment(ratings, MOMENT))
    assert "none of the held-out movies occurs" not in str(caught.value)


@settings(deadline=None)
@given(st.lists(ROWS, min_size=10, max_size=60, unique_by=lambda row: row[:2]), st.sampled_from(STAGES))
def test_temporal_tasks_hold_what_a_loop_finds(rows: list[tuple[int, int, float, int]], stage: Stage) -> None:
    ratings = frame(*rows)
    try:
        split = core.split_at_moment(core.positives(ratings), stage)
        tasks = build_temporal_tasks(ratings, split)
    except DataError:
        return
    times = sorted(time for *_, rating, time in rows if rating >= 4)
    end = times[len(times) * 9 // 10] if stage == "validation" else 7
    catalogue = {movie for _, movie, rating, time in rows if rating >= 4 and time < split.moment}
    known = {user for user, _, rating, time in rows if rating >= 4 and time < split.moment}
    held_out: dict[int, set[int]] = {}
    for user, movie, rating, time in rows:
        if rating >= 4 and split.moment <= time < end:
            held_out.setdefault(user, set()).add(movie)
    asked = {user for user, movies in held_out.items() if movies & catalogue}
    assert set(relevant(tasks[0])) == asked & known
    assert [set(relevant(task)) for task in tasks[1:]] == [asked - known][: bool(asked - known)]
    for task in tasks:
        assert set(task.items.ids.tolist()) == catalogue
        for user, movies in relevant(task).items():
            assert movies == held_out[user] & catalogue
            assert by_user(task, task.n_new)[user] == len(held_out[user] - catalogue)
            before = {movie for own, movie, _, time in rows if own == user and time < split.moment}
            assert removed(task)[user] == before & catalogue
            assert by_user(task, task.n_history)[user] == len(before)


# The real data


@pytest.fixture(scope="module")
def raw(movielens_dir: Path) -> RawData:
    return read_movielens(movielens_dir)


@pytest.fixture(scope="module")
def ratings(raw: RawData) -> pd.DataFrame:
    return raw.ratings


def target_time_of_each_row(ratings: pd.DataFrame, stage: Stage = "test") -> pd.Series:
    """The target time of each row's user, NaN for users who are not asked about."""
    split = split_of(ratings)
    held_out = getattr(split, stage)
    asked = held_out[held_out["movie_id"].isin(split.items.ids)]
    return ratings["user_id"].map(asked.set_index("user_id")["timestamp"])


@pytest.mark.parametrize("protocol", LEAVE_ONE_OUT)
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


def test_573_test_users_came_back_after_so_long(ratings: pd.DataFrame) -> None:
    gap = build_task(ratings, split_of(ratings), "rated", "test").gap_seconds
    ends = (-1, 0, 60, 3_600, 86_400, np.inf)
    counts = [int(((gap > low) & (gap <= high)).sum()) for low, high in pairwise(ends)]
    assert counts == [112, 311, 99, 13, 38]  # in the same second, a minute, an hour, a day, longer
    assert sum(counts) == 573


def test_history_of_the_real_test_users_is_what_stands_before_their_target_in_the_file(ratings: pd.DataFrame) -> None:
    task = build_task(ratings, split_of(ratings), "rated", "test")
    is_past = ratings["timestamp"] < target_time_of_each_row(ratings)
    counts = ratings[is_past].groupby("user_id").size()
    assert by_user(task, task.n_history) == counts.reindex(task.users.ids[task.target_users], fill_value=0).to_dict()


@pytest.mark.parametrize("stage", STAGES)
def test_history_of_the_real_target_users_is_what_stands_before_their_target_in_the_file(
    ratings: pd.DataFrame, stage: Stage
) -> None:
    task = build_task(ratings, split_of(ratings), "rated", stage)
    is_past = ratings["timestamp"] < target_time_of_each_row(ratings, stage)
    past = ratings[is_past & ratings["movie_id"].isin(task.items.ids)].sort_values("timestamp", kind="stable")
    expected = {
        user: list(zip(rows["movie_id"].tolist(), rows["rating"].tolist(), rows["timestamp"].tolist(), strict=True))
        for user, rows in past.groupby("user_id")
    }
    found = known(task.history, task.users, task.items)
    for user in task.users.ids[task.target_users].tolist():
        assert found[user] == expected.get(user, [])
    moment = dict(zip(ratings["user_id"], target_time_of_each_row(ratings, stage), strict=True))
    assert by_user(task, task.moments) == {user: moment[user] for user in targets(task)}


@pytest.mark.parametrize("stage", STAGES)
def test_real_users_who_are_not_asked_about_keep_what_is_known_of_them(ratings: pd.DataFrame, stage: Stage) -> None:
    task = build_task(ratings, split_of(ratings), "rated", stage)
    found, asked_about = known(task.history, task.users, task.items), set(targets(task))
    others = [user for user in task.users.ids.tolist() if user not in asked_about]
    assert len(others) == 608 - {"validation": 571, "test": 573}[stage]
    liked = {user: {movie for movie, rating, _ in found[user] if rating >= core.MIN_RATING} for user in others}
    assert liked == {user: learned(task)[user] for user in others}
    assert all(found[user] for user in others if len(learned(task)[user]))


@pytest.mark.parametrize("protocol", LEAVE_ONE_OUT)
@pytest.mark.parametrize("stage", STAGES)
def test_positives_of_the_real_history_are_what_a_task_learns_from(
    ratings: pd.DataFrame, protocol: Protocol, stage: Stage
) -> None:
    check_positives_of_history(build_task(ratings, split_of(ratings), protocol, stage))


def test_history_of_the_real_positives_task_is_the_train_rows(ratings: pd.DataFrame) -> None:
    split = split_of(ratings)
    task = build_task(ratings, split, "positives", "test")
    rows = zip(*(split.train[name].tolist() for name in split.train.columns), strict=True)
    expected: dict[int, list[tuple[int, float, int]]] = {user: [] for user in task.users.ids.tolist()}
    for user, *row in rows:
        expected[user].append(tuple(row))
    assert known(task.history, task.users, task.items) == expected


def test_positives_of_the_real_temporal_history_are_what_a_task_learns_from(ratings: pd.DataFrame) -> None:
    for stage in STAGES:
        for task in build_temporal_tasks(ratings, core.split_at_moment(core.positives(ratings), stage)):
            check_positives_of_history(task)


def test_real_users_step_back_to_the_positive_that_is_last_in_the_file(ratings: pd.DataFrame) -> None:
    task = build_task(ratings, split_of(ratings), "rated", "test")
    requests = step_back(task.history, len(task.items))
    n_liked = np.diff(task.user_items.indptr)
    assert requests.users.tolist() == np.flatnonzero(n_liked).tolist()
    assert requests.relevant.nnz == len(requests.users) == int((n_liked > 0).sum())
    assert task.user_items[requests.users].multiply(requests.relevant).nnz == len(requests.users)
    before, after = (known(rows, task.users, task.items) for rows in (task.history, requests.history))
    for user_id, user, moment in zip(
        task.users.ids[requests.users].tolist(), requests.users.tolist(), requests.moments.tolist(), strict=True
    ):
        assert after[user_id] == [row for row in before[user_id] if row[2] < moment]
        assert moment == max(time for _, rating, time in before[user_id] if rating >= core.MIN_RATING)
        assert requests.history.of(user).timestamp.max(initial=-1) < moment


def test_temporal_test_of_the_real_data_asks_about_28_users_who_came_back_and_52_new_ones(
    ratings: pd.DataFrame,
) -> None:
    split = core.split_at_moment(core.positives(ratings), "test")
    warm, new = build_temporal_tasks(ratings, split)
    assert (warm.n_targets, warm.relevant.nnz, int(warm.n_new.sum())) == (28, 1_043, 403)
    assert (new.n_targets, int(new.n_history.sum()), set(new.gap_seconds.tolist())) == (52, 0, {-1})
    assert warm.user_items.nnz == new.user_items.nnz == len(split.train)
    assert (warm.n_history > 0).all()
    assert not set(warm.target_users) & set(new.target_users)
    in_catalogue = split.held_out["movie_id"].isin(split.items.ids)
    assert warm.relevant.nnz + new.relevant.nnz == int(in_catalogue.sum())


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
    arrays = [task.users.ids, task.items.ids, task.target_users, task.n_history, task.gap_seconds, task.n_new]
    arrays += [task.positives.strength, task.positives.n_later, task.moments]
    # Ties keep the order of the file, which some of these tests change: by movie.
    rows, by_movie = task.history, np.lexsort((task.history.item_index, task.history.user_index))
    arrays += [rows.indptr, *(array[by_movie] for array in (rows.item_index, rows.rating, rows.timestamp))]
    for matrix in (task.user_items, task.relevant, task.seen):
        arrays += [matrix.indptr, matrix.indices, matrix.data]
    return [np.ascontiguousarray(array).tobytes() for array in arrays]


@pytest.mark.slow
def test_what_users_do_from_the_target_s_time_on_changes_no_byte_of_task_or_run(raw: RawData, tmp_path: Path) -> None:
    ratings, rewritten = raw.ratings, rewrite_the_future(raw.ratings)
    n_changed = len(ratings.merge(rewritten, how="left", indicator=True).query("_merge == 'left_only'"))
    assert n_changed > 1_000
    for name, table in (("as-it-was", ratings), ("rewritten", rewritten)):
        task = build_task(table, split_of(table), "rated", "test")
        scorers = {
            "als": evaluation.als_scorer(task, learn(task.positives, PRESETS["default"])),
            **{baseline: evaluation.BASELINES[baseline](task, 42) for baseline in ("item_knn", "popular", "random")},
        }
        result = evaluation.evaluate(task, scorers, evaluation.describe_catalogue(task, raw.movies), 42)
        evaluation.write_trec(tmp_path / name, task, result.lists)
        (tmp_path / name / "task").write_bytes(b"|".join(bytes_of(task)))
    files = sorted(path.name for path in (tmp_path / "as-it-was").iterdir())
    assert files == ["qrels.txt", "run.als.txt", "run.item_knn.txt", "run.popular.txt", "run.random.txt", "task"]
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
