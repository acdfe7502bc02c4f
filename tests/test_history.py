"""What each user rated, oldest first, and that its positives are those of the table it was built from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app import core
from app.core import MIN_RATING, IdMap, Positives, build_positives
from app.datasets.movielens import read_movielens
from app.history import History, UserRows, build_history, entries_of, positives_of
from tests.tasks import frame

# User 30 rated nothing of the catalogue, and is in the middle; 99 is no movie of it, and user 77 is unknown.
USERS, ITEMS = IdMap.of([10, 20, 30, 40]), IdMap.of([1, 2, 3, 5])
RATINGS = frame(
    (40, 5, 4.5, 9),
    (10, 3, 2.0, 50),
    (10, 1, 5.0, 20),
    (30, 99, 5.0, 1),
    (10, 5, 4.0, 20),  # ties with the one before the last, after it in the file
    (20, 2, 0.5, 7),
    (77, 2, 5.0, 3),
    (10, 99, 5.0, 30),
    (40, 2, 4.0, 8),
)


def history_of(*timestamps: int) -> History:
    n = len(timestamps)
    return History(np.arange(n), np.full(n, 4, dtype=np.float32), np.array(timestamps, dtype=np.int64))


def rows_of(history: UserRows) -> list[list[tuple[int, float, int]]]:
    """Every user's (item_index, rating, timestamp), in order."""
    rows = [history.of(user) for user in range(len(history.indptr) - 1)]
    return [
        list(zip(row.item_index.tolist(), row.rating.tolist(), row.timestamp.tolist(), strict=True)) for row in rows
    ]


# One user's history


@pytest.mark.parametrize(
    ("timestamps", "n_later"),
    [((), []), ((5,), [0]), ((1, 2, 3), [2, 1, 0]), ((1, 4, 4, 4, 9, 9), [5, 2, 2, 2, 0, 0]), ((7, 7), [0, 0])],
)
def test_ties_have_the_same_number_of_later_ratings(timestamps: tuple[int, ...], n_later: list[int]) -> None:
    assert history_of(*timestamps).n_later.tolist() == n_later
    assert len(history_of(*timestamps)) == len(timestamps)


@pytest.mark.parametrize(
    ("timestamps", "gap"),
    [((), 0), ((5,), 0), ((5, 5), 0), ((1, 11), 10), ((0, 10, 13), 6), ((0, 1, 3, 103), 2), ((1, 1, 1, 50), 0)],
)
def test_median_gap_is_of_neighbouring_ratings_in_whole_seconds(timestamps: tuple[int, ...], gap: int) -> None:
    found = history_of(*timestamps).median_gap
    assert (found, type(found)) == (gap, int)


def test_next_rating_is_expected_a_median_gap_after_the_last() -> None:
    assert history_of(0, 1, 3, 103).next_moment == 105
    assert history_of(2**40).next_moment == 2**40
    assert type(history_of(2**40, 2**40).next_moment) is int


def test_part_of_a_history_keeps_its_order_and_counts_later_ones_anew() -> None:
    part = history_of(1, 4, 4, 9).where(np.array([True, False, True, False]))
    assert part.item_index.tolist() == [0, 2]
    assert part.timestamp.tolist() == [1, 4]
    assert part.n_later.tolist() == [1, 0]
    assert len(part.where(np.array([False, False]))) == 0


# Every user's


def test_rows_are_oldest_first_and_ties_keep_the_order_of_the_file() -> None:
    assert rows_of(build_history(RATINGS, USERS, ITEMS)) == [
        [(0, 5.0, 20), (3, 4.0, 20), (2, 2.0, 50)],
        [(1, 0.5, 7)],
        [],
        [(1, 4.0, 8), (3, 4.5, 9)],
    ]


def test_arrays_have_the_types_that_are_promised() -> None:
    history = build_history(RATINGS, USERS, ITEMS)
    types = (history.indptr, history.item_index, history.rating, history.timestamp)
    assert [array.dtype for array in types] == [np.int64, np.int32, np.float32, np.int64]
    assert history.where(history.rating > 4).indptr.dtype == np.int64


def test_rated_by_some_users_are_pairs_in_the_order_of_the_users() -> None:
    history = build_history(RATINGS, USERS, ITEMS)
    place, item = history.rated_by(np.array([3, 2, 0, 3]))
    assert place.tolist() == [0, 0, 2, 2, 2, 3, 3]
    assert item.tolist() == [1, 3, 0, 3, 2, 1, 3]
    for nobody in ([], [2], [2, 2]):
        assert [side.tolist() for side in history.rated_by(np.array(nobody, dtype=np.int64))] == [[], []]


@given(st.lists(st.integers(0, 4), max_size=8), st.data(), st.sampled_from([np.int32, np.int64]))
def test_entries_of_rows_are_those_of_a_loop(lengths: list[int], data: st.DataObject, dtype: type[np.integer]) -> None:
    indptr = np.cumsum([0, *lengths]).astype(dtype)
    rows = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=8)) if lengths else []
    place, entry = entries_of(indptr, np.array(rows, dtype=dtype))
    expected = [(at, each) for at, row in enumerate(rows) for each in range(indptr[row], indptr[row + 1])]
    assert list(zip(place.tolist(), entry.tolist(), strict=True)) == expected
    assert np.arange(indptr[-1])[entry].tolist() == entry.tolist()  # whole numbers, also where there are none


def test_every_entry_knows_whose_it_is() -> None:
    assert build_history(RATINGS, USERS, ITEMS).user_index.tolist() == [0, 0, 0, 1, 3, 3]


def test_chosen_entries_leave_a_row_for_everybody() -> None:
    history = build_history(RATINGS, USERS, ITEMS)
    assert rows_of(history.where(history.rating >= 4.5)) == [[(0, 5.0, 20)], [], [], [(3, 4.5, 9)]]
    assert rows_of(history.where(history.rating > 5)) == [[], [], [], []]
    assert rows_of(history.where(history.rating > 0)) == rows_of(history)


def test_later_ratings_are_counted_within_each_row() -> None:
    history = build_history(RATINGS, USERS, ITEMS)
    assert history.n_later().tolist() == [1, 1, 0, 0, 1, 0]
    assert [history.of(user).n_later.tolist() for user in range(4)] == [[1, 1, 0], [0], [], [1, 0]]


def test_matrix_holds_each_entry_s_value_at_its_movie() -> None:
    history = build_history(RATINGS, USERS, ITEMS)
    matrix = history.matrix(history.rating, 4)
    assert matrix.toarray().tolist() == [[5, 0, 2, 4], [0, 0.5, 0, 0], [0, 0, 0, 0], [0, 4, 0, 4.5]]
    assert (matrix.dtype, matrix.format, matrix.has_sorted_indices) == (np.float32, "csr", True)
    assert matrix.indptr.tolist() == history.indptr.tolist()
    assert history.matrix(np.arange(6.0), 7).toarray()[0].tolist() == [0, 0, 2, 1, 0, 0, 0]


def test_nothing_rated_is_a_history_too() -> None:
    history = build_history(RATINGS.iloc[:0], USERS, ITEMS)
    assert rows_of(history) == [[], [], [], []]
    assert history.n_later().tolist() == history.user_index.tolist() == []
    assert history.matrix(history.rating, 4).shape == (4, 4)
    assert positives_of(history, 4, MIN_RATING).user_items.nnz == 0


# Its positives


def bytes_of(positives: Positives) -> list[tuple[str, bytes]]:
    matrix = positives.user_items
    arrays = (matrix.indptr, matrix.indices, matrix.data, positives.strength, positives.n_later)
    return [(str(array.dtype), array.tobytes()) for array in arrays]


def check_positives(ratings: pd.DataFrame, users: IdMap, items: IdMap, min_rating: float) -> None:
    liked = ratings[ratings["rating"] >= min_rating]
    expected = build_positives(liked, users, items, min_rating)
    found = positives_of(build_history(ratings, users, items), len(items), min_rating)
    assert found.user_items.shape == expected.user_items.shape
    assert bytes_of(found) == bytes_of(expected)


HALF_STARS = st.integers(1, 10).map(lambda halves: halves / 2)
ROWS = st.tuples(st.integers(1, 6), st.integers(1, 8), HALF_STARS, st.integers(0, 5))
IDS = st.lists(st.integers(1, 9), min_size=1).map(IdMap.of)


@settings(deadline=None)
@given(st.lists(ROWS, max_size=40, unique_by=lambda row: row[:2]), IDS, IDS, HALF_STARS)
def test_positives_of_a_history_are_those_of_its_table_bit_for_bit(
    rows: list[tuple[int, int, float, int]], users: IdMap, items: IdMap, min_rating: float
) -> None:
    check_positives(frame(*rows), users, items, min_rating)


@settings(deadline=None)
@given(st.lists(ROWS, max_size=40, unique_by=lambda row: row[:2]), IDS, IDS)
def test_rows_hold_what_a_loop_finds(rows: list[tuple[int, int, float, int]], users: IdMap, items: IdMap) -> None:
    history = build_history(frame(*rows), users, items)
    user_ids, movie_ids = users.ids.tolist(), items.ids.tolist()
    expected = [
        sorted(
            ((movie_ids.index(m), rating, time) for u, m, rating, time in rows if u == user and m in movie_ids),
            key=lambda row: row[2],
        )
        for user in user_ids
    ]
    assert rows_of(history) == expected
    n_later = [sum(time > own for *_, time in row) for row in expected for *_, own in row]
    assert history.n_later().tolist() == n_later
    assert np.concatenate([history.of(user).n_later for user in range(len(users))]).tolist() == n_later


@pytest.mark.parametrize("min_rating", [0.5, 3.5, 4.0, 5.0])
def test_positives_of_the_real_history_are_those_of_its_table_bit_for_bit(
    movielens_dir: Path, min_rating: float
) -> None:
    ratings = read_movielens(movielens_dir).ratings
    users = IdMap.of(ratings["user_id"])
    check_positives(ratings, users, IdMap.of(core.positives(ratings)["movie_id"]), min_rating)
