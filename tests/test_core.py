"""Loading, positives, the split in time, id maps, and the matrix that models learn from."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app import core
from app.core import UNKNOWN, Dataset, IdMap, build_user_items, leave_one_out, positives
from app.datasets.locate import locate
from app.errors import DataError

INT64 = st.integers(min_value=-(2**63), max_value=2**63 - 1)


def load(folder: Path) -> Dataset:
    return core.load(
        locate(dataset=None, data_dir=folder, movielens_dir=None, default_dir=folder, base_url="http://127.0.0.1:9")
    )


def write(folder: Path, ratings: str, movies: str) -> Path:
    """Write a MovieLens folder from lines without headers."""
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + ratings, encoding="utf-8")
    (folder / "movies.csv").write_text("movieId,title,genres\n" + movies, encoding="utf-8")
    return folder


def frame(*rows: tuple[int, int, float, int]) -> pd.DataFrame:
    """Ratings from (user_id, movie_id, rating, timestamp)."""
    table = pd.DataFrame(rows, columns=["user_id", "movie_id", "rating", "timestamp"])
    return table.astype({"user_id": "int64", "movie_id": "int64", "rating": "float32", "timestamp": "int64"})


def pairs(table: pd.DataFrame) -> list[tuple[int, int]]:
    return list(zip(table["user_id"].tolist(), table["movie_id"].tolist(), strict=True))


# The split


def test_split_of_the_real_data_has_the_published_counts(movielens_dir: Path) -> None:
    split = leave_one_out(positives(load(movielens_dir).ratings))
    counts = len(split.train), len(split.users), len(split.items)
    in_catalogue = [int((split.items.index(part["movie_id"]) >= 0).sum()) for part in (split.validation, split.test)]
    assert counts == (47_363, 608, 6_227)
    assert in_catalogue == [571, 573]


def test_last_positive_is_test_the_one_before_is_validation_and_the_rest_is_train() -> None:
    ratings = frame((1, 10, 5, 400), (1, 11, 4, 100), (1, 12, 4.5, 300), (1, 13, 3.5, 500), (1, 14, 4, 200))
    split = leave_one_out(positives(ratings))
    assert pairs(split.train) == [(1, 11), (1, 14)]
    assert pairs(split.validation) == [(1, 12)]
    assert pairs(split.test) == [(1, 10)]


def test_equal_timestamps_keep_the_order_of_the_file() -> None:
    ratings = frame((1, 30, 4, 7), (1, 10, 4, 7), (1, 20, 4, 7), (1, 40, 4, 6))
    split = leave_one_out(positives(ratings))
    assert pairs(split.train) == [(1, 40), (1, 30)]
    assert pairs(split.validation) == [(1, 10)]
    assert pairs(split.test) == [(1, 20)]


def test_users_whose_rows_are_scattered_in_the_file_are_gathered() -> None:
    ratings = frame((2, 1, 4, 1), (1, 1, 4, 9), (2, 2, 4, 3), (1, 2, 4, 8), (2, 3, 4, 2), (1, 3, 4, 7))
    split = leave_one_out(positives(ratings))
    assert pairs(split.train) == [(1, 3), (2, 1)]
    assert pairs(split.validation) == [(1, 2), (2, 3)]
    assert pairs(split.test) == [(1, 1), (2, 2)]


def test_users_with_fewer_than_two_positives_are_left_out() -> None:
    ratings = frame((1, 1, 4, 1), (1, 2, 4, 2), (1, 3, 4, 3), (2, 1, 5, 1), (2, 2, 3.5, 2), (3, 1, 1, 1))
    split = leave_one_out(positives(ratings))
    assert split.users.ids.tolist() == [1]
    assert all(set(part["user_id"]) == {1} for part in (split.train, split.validation, split.test))


def test_user_with_exactly_two_positives_has_no_train_row() -> None:
    ratings = frame((1, 1, 4, 1), (1, 2, 4, 2), (1, 3, 4, 3), (2, 8, 4, 1), (2, 9, 4, 2))
    split = leave_one_out(positives(ratings))
    assert split.users.ids.tolist() == [1, 2]
    assert pairs(split.train) == [(1, 1)]
    assert pairs(split.validation) == [(1, 2), (2, 8)]
    assert pairs(split.test) == [(1, 3), (2, 9)]
    assert split.items.ids.tolist() == [1]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 8), st.integers(0, 3)), max_size=40))
def test_split_holds_each_positive_once_and_never_looks_back(rows: list[tuple[int, int, int]]) -> None:
    ratings = frame(*((user, place, 4.0, time) for place, (user, _, time) in enumerate(rows)))
    by_user = {user: [row for row in pairs(ratings) if row[0] == user] for user in {row[0] for row in rows}}
    if max(map(len, by_user.values()), default=0) < 3:
        return
    split = leave_one_out(positives(ratings))
    parts = [split.train, split.validation, split.test]
    kept = {row for history in by_user.values() if len(history) >= 2 for row in history}
    assert sorted(row for part in parts for row in pairs(part)) == sorted(kept)
    for user in split.users.ids:
        own = [part[part["user_id"] == user] for part in parts]
        assert [len(part) for part in own[1:]] == [1, 1]
        # By (time, place in the file), which is the movie_id here, each part ends before the next begins.
        order = [pair for part in own for pair in zip(part["timestamp"], part["movie_id"], strict=True)]
        assert order == sorted(order)


def test_data_in_which_nobody_has_three_positives_is_refused_with_a_remedy() -> None:
    with pytest.raises(DataError, match=r"no user has 3 or more positives \(the most is 2\).*--evaluate none"):
        leave_one_out(positives(frame((1, 1, 4, 1), (1, 2, 4, 2), (2, 1, 4, 1))))


# Positives


def test_positive_is_a_rating_of_at_least_the_threshold() -> None:
    ratings = frame((1, 1, 3.5, 1), (1, 2, 4, 2), (1, 3, 4.5, 3), (1, 4, 5, 4), (1, 5, 0.5, 5))
    assert pairs(positives(ratings)) == [(1, 2), (1, 3), (1, 4)]
    assert pairs(positives(ratings, min_rating=3.5)) == [(1, 1), (1, 2), (1, 3), (1, 4)]


def test_positives_are_by_user_and_oldest_first() -> None:
    ratings = frame((2, 1, 4, 5), (1, 2, 4, 9), (2, 3, 4, 5), (1, 4, 4, 3), (2, 5, 4, 1))
    assert pairs(positives(ratings)) == [(1, 4), (1, 2), (2, 5), (2, 1), (2, 3)]


def test_data_without_a_positive_is_refused_with_the_values_and_a_remedy() -> None:
    with pytest.raises(DataError, match=r"no rating reaches 4.*the highest is 3\.5.*--min-rating"):
        positives(frame((1, 1, 3.5, 1), (1, 2, 0.5, 2)))


# Loading


def test_real_data_loads_complete_and_without_warnings(movielens_dir: Path) -> None:
    dataset = load(movielens_dir)
    assert (dataset.name, dataset.warnings, dataset.is_synthetic) == ("ml-latest-small", (), False)
    assert (len(dataset.ratings), len(dataset.movies)) == (100_836, 9_742)
    assert dataset.ratings.dtypes.astype(str).to_dict() == {
        "user_id": "int64",
        "movie_id": "int64",
        "rating": "float32",
        "timestamp": "int64",
    }
    assert dataset.movies["movie_id"].is_monotonic_increasing
    toy_story = dataset.movies.iloc[0]
    assert (toy_story["title"], toy_story["year"], toy_story["imdb_id"]) == ("Toy Story (1995)", 1995, "0114709")
    assert int(dataset.movies["year"].isna().sum()) == 12  # what grep finds: "Babylon 5", "Moonlight", …


def test_repeated_pair_keeps_its_latest_rating_and_is_counted(tmp_path: Path) -> None:
    lines = "1,10,2.0,300\n1,10,5.0,100\n1,20,4.0,100\n1,10,3.0,200\n2,10,1.0,999\n"
    dataset = load(write(tmp_path, lines, "10,A (1990),Drama\n20,B (1991),Drama\n"))
    kept = dataset.ratings[["user_id", "movie_id", "rating", "timestamp"]].to_numpy().tolist()
    assert kept == [[1, 10, 2.0, 300], [1, 20, 4.0, 100], [2, 10, 1.0, 999]]
    assert [
        warning for warning in dataset.warnings if warning.startswith("ratings that repeat a (user, movie) pair: 2;")
    ]


def test_repeated_pair_with_equal_timestamps_keeps_the_later_row_of_the_file(tmp_path: Path) -> None:
    lines = "1,10,5.0,100\n1,20,4.0,100\n1,10,1.5,100\n"
    dataset = load(write(tmp_path, lines, "10,A (1990),Drama\n20,B (1991),Drama\n"))
    assert dataset.ratings.set_index("movie_id")["rating"].to_dict() == {10: 1.5, 20: 4.0}
    assert dataset.ratings.index.tolist() == [0, 1]


def test_rated_movie_without_a_title_is_kept_titled_by_its_id_and_counted(tmp_path: Path) -> None:
    dataset = load(
        write(tmp_path, "1,10,4.0,1\n1,77,4.0,2\n1,78,4.0,3\n", "10,A (1990),Drama\n99,Unrated (2000),War\n")
    )
    assert dataset.movies["movie_id"].tolist() == [10, 77, 78, 99]
    assert dataset.movies["title"].tolist() == ["A (1990)", "Movie 77", "Movie 78", "Unrated (2000)"]
    assert dataset.movies["genres"].tolist() == ["Drama", "", "", "War"]
    assert [
        warning for warning in dataset.warnings if warning.startswith("rated movies without a title in movies.csv: 2;")
    ]


def test_clean_data_has_no_warning(tmp_path: Path) -> None:
    assert load(write(tmp_path, "1,10,4.0,1\n", "10,A (1990),Drama\n")).warnings == ()


@pytest.mark.parametrize(
    ("title", "year"),
    [
        ("Toy Story (1995)", 1995),
        ("Trailing space (2007) ", 2007),
        ("Space inside (2007 )", 2007),
        ("Dark Shadows (1966-1971)", 1966),
        ("Death Note (2006–2007)", 2006),
        ("Still running (2015– )", 2015),
        ("2001: A Space Odyssey (1968)", 1968),
        ("Two (1984) (1956)", 1956),
        ("1984", None),
        ("Babylon 5", None),
        ("Not last (1999) extended", None),
        ("Five digits (19999)", None),
    ],
)
def test_year_is_read_from_the_end_of_the_title(tmp_path: Path, title: str, year: int | None) -> None:
    found = load(write(tmp_path, "1,10,4.0,1\n", f'10,"{title}",Drama\n')).movies["year"].iloc[0]
    assert found == year if year else found is pd.NA


# Id maps


@given(st.lists(INT64), st.lists(INT64))
def test_index_of_an_id_leads_back_to_the_id_and_of_a_stranger_to_minus_one(held: list[int], asked: list[int]) -> None:
    ids = IdMap.of(held)
    assert len(ids) == len(set(held))
    assert ids.ids.tolist() == sorted(set(held))
    assert ids.index(ids.ids).tolist() == list(range(len(ids)))
    for id_, index in zip(asked, ids.index(np.array(asked, dtype=np.int64)).tolist(), strict=True):
        assert ids.ids[index] == id_ if id_ in set(held) else index == UNKNOWN


def test_ids_of_64_bits_do_not_collide() -> None:
    ids = IdMap.of([2**63 - 1, 2**53, 2**53 + 1, 1])  # 2⁵³ and 2⁵³ + 1 are one number as float64
    assert ids.index([1, 2**53, 2**53 + 1, 2**63 - 1, 2**53 + 2]).tolist() == [0, 1, 2, 3, UNKNOWN]


def test_empty_map_knows_nobody() -> None:
    ids = IdMap.of([])
    assert len(ids) == 0
    assert ids.index([1, 2]).tolist() == [UNKNOWN, UNKNOWN]


def test_one_id_can_be_asked_without_a_list() -> None:
    assert IdMap.of([5, 7]).index(7) == 1


@pytest.mark.parametrize("ids", [[2, 1], [1, 1], [[1, 2]], [1.0, 2.0]])
def test_map_refuses_ids_that_are_unsorted_repeated_or_not_int64(ids: list[int]) -> None:
    with pytest.raises(ValueError, match="strictly rising"):
        IdMap(np.array(ids))


# The matrix


def test_user_items_holds_one_for_each_pair_and_leaves_unknown_ids_out() -> None:
    interactions = frame((7, 30, 4, 1), (5, 20, 5, 2), (7, 10, 4.5, 3), (9, 10, 4, 4), (5, 99, 4, 5))
    matrix = build_user_items(interactions, IdMap.of([5, 6, 7]), IdMap.of([10, 20, 30, 40]))
    assert matrix.toarray().tolist() == [[0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 1, 0]]
    assert (matrix.shape, matrix.dtype, matrix.nnz) == ((3, 4), np.float32, 3)


@settings(deadline=None)
@given(st.sets(st.tuples(st.integers(0, 5), st.integers(0, 9))), st.randoms(use_true_random=False))
def test_user_items_does_not_depend_on_the_order_of_the_rows(cells: set[tuple[int, int]], random: Random) -> None:
    rows = [(user, movie, 4.0, 0) for user, movie in cells]
    random.shuffle(rows)
    matrix = build_user_items(frame(*rows), IdMap.of(range(6)), IdMap.of(range(10)))
    assert set(zip(*(places.tolist() for places in matrix.nonzero()), strict=True)) == cells
    for row in range(6):
        columns = matrix.indices[matrix.indptr[row] : matrix.indptr[row + 1]].tolist()
        assert columns == sorted(columns)


def test_user_items_of_the_real_train_has_a_cell_per_row(movielens_dir: Path) -> None:
    split = leave_one_out(positives(load(movielens_dir).ratings))
    matrix = build_user_items(split.train, split.users, split.items)
    assert matrix.shape == (608, 6_227)
    assert matrix.nnz == 47_363
    assert matrix.has_sorted_indices
    assert set(matrix.data.tolist()) == {1.0}
