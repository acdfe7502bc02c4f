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
from app.core import (
    STAGES,
    UNKNOWN,
    Dataset,
    IdMap,
    Positives,
    Stage,
    build_positives,
    build_user_items,
    clean,
    leave_one_out,
    positives,
    split_at_moment,
)
from app.datasets.locate import locate
from app.datasets.movielens import RawData, empty_links, empty_tags
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


# The split at one moment

# Ten positives at the times 1 to 10: the moments are the times of the 9th (8 of 10 are before it) and of the 10th.
# Movie 6 is first liked at 9; user 4 comes at 9, user 5 at 10.
TEN = frame(
    (2, 1, 4, 2),
    (1, 1, 5, 1),
    (1, 2, 4, 3),
    (3, 3, 4, 4),
    (3, 9, 1, 4),  # no positive
    (2, 2, 4, 5),
    (3, 4, 4, 6),
    (1, 5, 4, 7),
    (2, 3, 4, 8),
    (4, 6, 4, 9),
    (5, 7, 4, 10),
)


def test_split_for_test_holds_out_the_last_tenth_of_all_positives() -> None:
    split = split_at_moment(positives(TEN), "test")
    assert (split.stage, split.moment) == ("test", 10)
    assert pairs(split.train) == [(1, 1), (1, 2), (1, 5), (2, 1), (2, 2), (2, 3), (3, 3), (3, 4), (4, 6)]
    assert pairs(split.held_out) == [(5, 7)]
    assert split.users.ids.tolist() == [1, 2, 3, 4, 5]
    assert split.items.ids.tolist() == [1, 2, 3, 4, 5, 6]


def test_split_for_validation_holds_out_the_tenth_before_and_does_not_know_the_last() -> None:
    split = split_at_moment(positives(TEN), "validation")
    assert (split.stage, split.moment) == ("validation", 9)
    assert pairs(split.train) == [(1, 1), (1, 2), (1, 5), (2, 1), (2, 2), (2, 3), (3, 3), (3, 4)]
    assert pairs(split.held_out) == [(4, 6)]
    assert split.users.ids.tolist() == [1, 2, 3, 4]
    assert split.items.ids.tolist() == [1, 2, 3, 4, 5]


def test_positives_of_one_second_stay_on_one_side_of_the_moment() -> None:
    # By time 1, 1, 2, …, 2, 3: the 9th and the 10th are of the times 2 and 3. All seven of the time 2 are held out for
    # validation, although two tenths more than a tenth; the one at the time 3 for test.
    ratings = frame(*((user, 1, 4, time) for user, time in enumerate([1, 1, 2, 2, 2, 2, 2, 2, 2, 3])))
    validation, test = (split_at_moment(positives(ratings), stage) for stage in STAGES)
    assert (validation.moment, len(validation.train), len(validation.held_out)) == (2, 2, 7)
    assert (test.moment, len(test.train), len(test.held_out)) == (3, 9, 1)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 30)), min_size=1, max_size=60))
def test_split_at_a_moment_never_looks_past_it_nor_validation_into_the_last_tenth(rows: list[tuple[int, int]]) -> None:
    liked = positives(frame(*((user, place, 4.0, time) for place, (user, time) in enumerate(rows))))
    by_time = sorted(time for _, time in rows)
    first, second = by_time[len(rows) * 8 // 10], by_time[len(rows) * 9 // 10]
    for stage, moment, end in (("validation", first, second), ("test", second, by_time[-1] + 1)):
        train = [pair for pair, time in zip(pairs(liked), liked["timestamp"], strict=True) if time < moment]
        held_out = [pair for pair, time in zip(pairs(liked), liked["timestamp"], strict=True) if moment <= time < end]
        if not train or not held_out:
            with pytest.raises(DataError):
                split_at_moment(liked, stage)  # type: ignore[arg-type]
            continue
        split = split_at_moment(liked, stage)  # type: ignore[arg-type]
        assert (split.moment, pairs(split.train), pairs(split.held_out)) == (moment, train, held_out)
        assert split.users.ids.tolist() == sorted({user for user, _ in train + held_out})
        assert split.items.ids.tolist() == sorted({movie for _, movie in train})


def test_what_happens_in_the_last_tenth_changes_no_validation_split() -> None:
    later = TEN.assign(user_id=TEN["user_id"].where(TEN["timestamp"] < 10, 77))
    later.loc[later["timestamp"] == 10, ["movie_id", "timestamp"]] = [88, 1_000]
    before, after = (split_at_moment(positives(ratings), "validation") for ratings in (TEN, later))
    assert before.moment == after.moment
    assert pairs(before.train) == pairs(after.train)
    assert pairs(before.held_out) == pairs(after.held_out)
    assert before.users.ids.tolist() == after.users.ids.tolist()


@pytest.mark.parametrize("stage", STAGES)
def test_equal_timestamps_cannot_be_split_at_a_moment_and_the_message_has_a_remedy(stage: Stage) -> None:
    ratings = frame(*((user, movie, 4, 77) for user in range(4) for movie in range(5)))
    with pytest.raises(
        DataError, match=r"\(77 to 77\) leave nothing to train on or to hold out.*--split leave-one-out"
    ):
        split_at_moment(positives(ratings), stage)


def test_many_positives_in_the_last_second_leave_nothing_for_validation() -> None:
    # Of ten, the 9th and the 10th are both of the time 5: nothing is from the first moment to before the second.
    ratings = frame(*((user, 1, 4, time) for user, time in enumerate([1, 1, 2, 2, 3, 3, 4, 4, 5, 5])))
    assert len(split_at_moment(positives(ratings), "test").held_out) == 2
    with pytest.raises(DataError, match=r"\(1 to 5\) leave nothing to train on or to hold out"):
        split_at_moment(positives(ratings), "validation")


def test_real_data_is_split_at_one_moment_with_a_tenth_on_each_side(movielens_dir: Path) -> None:
    # 48,580 positives, a tenth is 4,858; each side may differ by the positives that share the moment's second.
    liked = positives(load(movielens_dir).ratings)
    validation, test = (split_at_moment(liked, stage) for stage in STAGES)
    assert len(liked) == 48_580 == len(test.train) + len(test.held_out)
    assert 4_858 <= len(test.held_out) < 4_858 + 100
    assert len(validation.train) + len(validation.held_out) == len(test.train)
    assert abs(len(validation.held_out) - 4_858) < 100
    assert validation.held_out["timestamp"].max() < test.moment == test.held_out["timestamp"].min()


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


def test_tags_are_loaded_even_those_of_strangers(tmp_path: Path) -> None:
    write(tmp_path, "1,10,4.0,1\n", "10,A (1990),Drama\n")
    (tmp_path / "tags.csv").write_text("userId,movieId,tag,timestamp\n7,99,Funny,5\n1,10,dark,4\n", encoding="utf-8")
    dataset = load(tmp_path)
    assert dataset.tags.to_dict("list") == {
        "user_id": [7, 1],
        "movie_id": [99, 10],
        "tag": ["Funny", "dark"],
        "timestamp": [5, 4],
    }
    assert dataset.movies["movie_id"].tolist() == [10]
    assert dataset.warnings == ()


def test_tags_of_the_real_data_are_loaded(movielens_dir: Path) -> None:
    assert len(load(movielens_dir).tags) == 3_683


def test_data_set_without_tags_has_an_empty_table_of_their_types(tmp_path: Path) -> None:
    dataset = load(write(tmp_path, "1,10,4.0,1\n", "10,A (1990),Drama\n"))
    for tags in (dataset.tags, Dataset("by hand", dataset.ratings, dataset.movies, "").tags):
        pd.testing.assert_frame_equal(tags, empty_tags())


def test_cleaning_turns_what_was_read_into_a_data_set_and_keeps_earlier_warnings_first() -> None:
    movies = pd.DataFrame({"movie_id": [10], "title": ["A (1990)"], "genres": ["Drama"]})
    raw = RawData(frame((1, 10, 4, 1), (1, 10, 5, 2)), movies, empty_links(), "f" * 64, ("mended",))
    dataset = clean("mine", raw, ("why not a better source",))
    assert (dataset.name, dataset.fingerprint) == ("mine", "f" * 64)
    assert dataset.ratings["rating"].tolist() == [5]
    assert dataset.movies["year"].tolist() == [1990]
    assert dataset.tags is raw.tags
    assert dataset.warnings[:2] == ("why not a better source", "mended")
    assert dataset.warnings[2].startswith("ratings that repeat a (user, movie) pair: 1;")
    assert clean("mine", raw).warnings == dataset.warnings[1:]


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


@given(st.lists(INT64), st.lists(INT64))
def test_one_id_has_the_index_that_it_has_among_many(held: list[int], asked: list[int]) -> None:
    ids = IdMap.of(held)
    near = [id_ + step for id_ in held for step in (-1, 1) if -(2**63) <= id_ + step < 2**63]
    for id_ in (*held, *asked, *near):
        found = ids.index_of(id_)
        assert found == ids.index([id_]).tolist()[0]
        assert type(found) is int


@pytest.mark.parametrize("id_", [2**63, -(2**63) - 1, 10**30])
def test_id_beyond_64_bits_is_no_id_and_never_another_one(id_: int) -> None:
    for ids in (IdMap.of([1, 2**63 - 1]), IdMap.of([])):
        with pytest.raises(OverflowError):
            ids.index_of(id_)
        with pytest.raises(OverflowError):
            ids.index([id_])


def test_ids_of_64_bits_do_not_collide() -> None:
    ids = IdMap.of([2**63 - 1, 2**53, 2**53 + 1, 1])  # 2⁵³ and 2⁵³ + 1 are one number as float64
    assert ids.index([1, 2**53, 2**53 + 1, 2**63 - 1, 2**53 + 2]).tolist() == [0, 1, 2, 3, UNKNOWN]


def test_empty_map_knows_nobody() -> None:
    ids = IdMap.of([])
    assert len(ids) == 0
    assert ids.index([1, 2]).tolist() == [UNKNOWN, UNKNOWN]
    assert ids.index_of(1) == UNKNOWN


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


# What models learn from


def by_pair(learned: Positives, users: IdMap, items: IdMap) -> dict[tuple[int, int], tuple[float, int]]:
    """(strength, n_later) of each positive, by (user_id, movie_id)."""
    cells = learned.user_items.tocoo()
    values = zip(learned.strength.tolist(), learned.n_later.tolist(), strict=True)
    ids = zip(users.ids[cells.row].tolist(), items.ids[cells.col].tolist(), strict=True)
    return dict(zip(ids, values, strict=True))


def of(ratings: pd.DataFrame, min_rating: float = 4.0) -> dict[tuple[int, int], tuple[float, int]]:
    liked = positives(ratings, min_rating)
    users, items = IdMap.of(liked["user_id"]), IdMap.of(liked["movie_id"])
    return by_pair(build_positives(liked, users, items, min_rating), users, items)


@pytest.mark.parametrize(
    ("min_rating", "expected"),
    [
        # 2·(rating − least)/(5 − least) − 1
        (4.0, {4.0: -1, 4.5: 0, 5.0: 1}),  # 2·.5/1 − 1 = 0
        (3.0, {3.0: -1, 3.5: -0.5, 4.0: 0, 4.5: 0.5, 5.0: 1}),  # 2·.5/2 − 1 = −.5
        (0.5, {0.5: -1, 2.75: 0, 5.0: 1}),  # 2·2.25/4.5 − 1 = 0
        (4.5, {4.5: -1, 5.0: 1}),
        (5.0, {5.0: 0}),  # where a 5 is all there is, none is stronger than another
    ],
)
def test_strength_goes_from_the_least_positive_rating_to_five(min_rating: float, expected: dict[float, float]) -> None:
    liked = frame(*((1, place, rating, place) for place, rating in enumerate(expected)))
    learned = build_positives(liked, IdMap.of([1]), IdMap.of(liked["movie_id"]), min_rating)
    assert learned.strength.tolist() == pytest.approx(list(expected.values()), abs=1e-7)
    assert learned.strength.dtype == np.float32


def test_strength_is_of_the_threshold_four_unless_told_otherwise() -> None:
    liked = frame((1, 1, 4, 1), (1, 2, 4.5, 2), (1, 3, 5, 3))
    learned = build_positives(liked, IdMap.of([1]), IdMap.of([1, 2, 3]))
    assert learned.strength.tolist() == [-1, 0, 1]


def test_later_positives_are_counted_per_user_and_ties_alike() -> None:
    # User 1: times 10, 20, 20, 30: after 10 come three, after each 20 one (the other 20 is not later), after 30 none.
    # User 2, whose times are all later than user 1's: 40, 40.
    ratings = frame((1, 3, 4, 20), (2, 2, 4, 40), (1, 1, 4, 30), (2, 1, 4, 40), (1, 4, 4, 10), (1, 2, 4, 20))
    found = of(ratings)
    assert {pair: n_later for pair, (_, n_later) in found.items()} == {
        (1, 4): 3,
        (1, 2): 1,
        (1, 3): 1,
        (1, 1): 0,
        (2, 1): 0,
        (2, 2): 0,
    }


def test_ratings_below_the_threshold_are_no_later_positives() -> None:
    found = of(frame((1, 1, 4, 1), (1, 2, 3.5, 2), (1, 3, 5, 3), (1, 4, 1, 4)))
    assert {pair: n_later for pair, (_, n_later) in found.items()} == {(1, 1): 1, (1, 3): 0}


def test_rows_outside_the_maps_are_left_out_and_are_later_to_nothing() -> None:
    # Of user 1's positives at 1, 2, 3, the movie of the one at 2 is outside: after 1 comes one, not two. User 9 is too.
    liked = frame((1, 10, 4, 1), (1, 99, 5, 2), (1, 20, 5, 3), (9, 10, 4, 4), (3, 20, 4.5, 5))
    users, items = IdMap.of([1, 2, 3]), IdMap.of([10, 20, 30])
    learned = build_positives(liked, users, items)
    assert by_pair(learned, users, items) == {(1, 10): (-1, 1), (1, 20): (1, 0), (3, 20): (0, 0)}
    assert learned.user_items.toarray().tolist() == [[1, 1, 0], [0, 0, 0], [0, 1, 0]]


RATED_CELLS = st.dictionaries(
    st.tuples(st.integers(0, 4), st.integers(0, 6)),
    st.tuples(st.sampled_from([4.0, 4.5, 5.0]), st.integers(0, 4)),
    max_size=25,
)


@settings(deadline=None)
@given(RATED_CELLS, st.randoms(use_true_random=False))
def test_positives_are_what_a_double_loop_finds_whatever_the_order_of_the_rows(
    rated: dict[tuple[int, int], tuple[float, int]], random: Random
) -> None:
    users, items = IdMap.of([0, 1, 2, 4]), IdMap.of([1, 2, 3, 4, 6])  # 3 as a user, 0 and 5 as movies are outside
    known = {pair: values for pair, values in rated.items() if pair[0] != 3 and pair[1] not in (0, 5)}
    expected = {}
    for (user, movie), (rating, time) in known.items():
        later = [1 for (other, _), (_, then) in known.items() if other == user and then > time]
        expected[user, movie] = ({4.0: -1.0, 4.5: 0.0, 5.0: 1.0}[rating], len(later))
    rows = [(*pair, *values) for pair, values in rated.items()]
    first = build_positives(frame(*rows), users, items)
    random.shuffle(rows)
    again = build_positives(frame(*rows), users, items)
    assert by_pair(first, users, items) == expected
    for one, other in (
        (first.user_items.indptr, again.user_items.indptr),
        (first.user_items.indices, again.user_items.indices),
        (first.strength, again.strength),
        (first.n_later, again.n_later),
    ):
        assert (one.dtype, one.tolist()) == (other.dtype, other.tolist())
    plain = build_user_items(frame(*rows), users, items)
    assert first.user_items.has_sorted_indices
    assert first.user_items.dtype == plain.dtype
    assert first.user_items.toarray().tolist() == plain.toarray().tolist()


@pytest.mark.parametrize(("users", "items"), [([1, 2], [1, 2, 3]), ([], [])])
def test_no_positives_at_all_are_an_empty_matrix(users: list[int], items: list[int]) -> None:
    for liked in (frame(), frame((7, 9, 5, 1))):  # none, and one outside the maps
        learned = build_positives(liked, IdMap.of(users), IdMap.of(items))
        assert (learned.user_items.shape, learned.user_items.nnz) == ((len(users), len(items)), 0)
        assert (learned.strength.tolist(), learned.n_later.tolist()) == ([], [])
        assert learned.with_values(learned.strength).nnz == 0


def test_values_take_the_place_of_the_ones_entry_by_entry() -> None:
    users, items = IdMap.of([1, 2, 3]), IdMap.of([10, 20, 30])
    liked = frame((3, 20, 4.5, 5), (1, 30, 4, 2), (1, 10, 5, 1))
    learned = build_positives(liked, users, items)
    matrix = learned.with_values(np.array([0.25, 8.0, 3.0]))  # (1, 10), (1, 30), (3, 20)
    assert matrix.toarray().tolist() == [[0.25, 0, 8], [0, 0, 0], [0, 3, 0]]
    assert (matrix.dtype, matrix.shape) == (np.float32, (3, 3))
    assert set(learned.user_items.data.tolist()) == {1.0}


def test_positives_of_the_real_train_have_a_cell_per_row_and_the_three_strengths(movielens_dir: Path) -> None:
    split = leave_one_out(positives(load(movielens_dir).ratings))
    learned = build_positives(split.train, split.users, split.items)
    plain = build_user_items(split.train, split.users, split.items)
    assert (learned.user_items != plain).nnz == 0
    assert learned.user_items.nnz == len(learned.strength) == len(learned.n_later) == 47_363
    n_of_rating = split.train["rating"].value_counts().to_dict()
    n_of_strength = dict(
        zip(*(found.tolist() for found in np.unique(learned.strength, return_counts=True)), strict=True)
    )
    assert n_of_strength == {-1: n_of_rating[4.0], 0: n_of_rating[4.5], 1: n_of_rating[5.0]}
    largest = np.maximum.reduceat(learned.n_later, plain.indptr[:-1][np.diff(plain.indptr) > 0])
    assert (largest < np.diff(plain.indptr)[np.diff(plain.indptr) > 0]).all()
