"""Every table against its definition, counted slowly in loops."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app import core, tables
from app.core import IdMap
from app.datasets.movielens import empty_tags, read_movielens
from app.history import UserRows, build_history
from app.npz import map_npz, write_npz
from app.tables import MovieTables, Ragged, build_tables, title_words
from tests.tasks import frame

Row = tuple[int, int, float, int]
Tag = tuple[int, int, str]

# Ids are 101 to 106 and 11 to 18 so that they are no indices; movie 99 and user 999 are unknown.
USERS, ITEMS = IdMap(np.arange(101, 107)), IdMap(np.arange(11, 19))
MOVIES = {
    11: ("Matrix, The (1999)", "Action|Sci-Fi", 1999),
    12: ("Matrix Reloaded, The (2003)", "Action|Sci-Fi", 2003),
    13: ("Animatrix", "", None),
    14: ("The Lord of the Rings: The Two Towers (2002)", "Adventure|Fantasy", 2002),
    15: ("Two Weeks Notice (2002)", "Comedy", 2002),
    16: ("The (1999)", "Drama", 1999),
    17: ("", "Drama", None),
    18: ("Notice the Matrix", "Comedy|Drama", None),
    99: ("Matrix of Unknown Towers (1901)", "Western", 1901),
}
TAGS: tuple[Tag, ...] = (
    (101, 11, "Sci  FI"),
    (102, 11, "sci fi"),
    (103, 11, "classic"),
    (101, 12, "sci fi"),
    (101, 99, "sci fi"),
    (999, 14, "classic"),
    (106, 14, "Long"),
    (101, 11, "classic"),
)


def movies_of(movies: dict[int, tuple[str, str, int | None]] | None = None) -> pd.DataFrame:
    rows = [(movie_id, *row) for movie_id, row in (MOVIES if movies is None else movies).items()]
    return pd.DataFrame(rows, columns=["movie_id", "title", "genres", "year"]).astype({"year": "Int64"})


def tags_of(tags: Sequence[Tag]) -> pd.DataFrame:
    if not tags:
        return empty_tags()
    return pd.DataFrame([(*tag, 0) for tag in tags], columns=["user_id", "movie_id", "tag", "timestamp"])


def build(
    rows: Sequence[Row],
    *,
    movies: dict[int, tuple[str, str, int | None]] | None = None,
    tags: Sequence[Tag] = TAGS,
    items: IdMap = ITEMS,
) -> MovieTables:
    return build_tables(build_history(frame(*rows), USERS, items), USERS, items, movies_of(movies), tags_of(tags))


def dense(table: Ragged, n_columns: int = 8) -> np.ndarray:
    found = np.zeros((len(table.indptr) - 1, n_columns))
    for row in range(len(found)):
        own = slice(table.indptr[row], table.indptr[row + 1])
        assert (np.diff(table.index[own]) > 0).all()  # rising, each once
        found[row, table.index[own]] = table.value[own]
    return found


def by_user(rows: Sequence[Row]) -> list[list[int]]:
    """The item indices that each user rated, oldest first, ties in the order of the rows."""
    return [
        [
            movie - 11
            for user, movie, *_ in sorted(rows, key=lambda row: row[3])
            if user == user_id and movie in ITEMS.ids
        ]
        for user_id in USERS.ids.tolist()
    ]


def count_neighbours(rows: Sequence[Row], *, both_sides: bool, n_places: int) -> np.ndarray:
    """Σ 1/d over both sides, or how often within so many places after, for each pair of items."""
    counts = np.zeros((8, 8))
    for items in by_user(rows):
        for i, own in enumerate(items):
            for j, other in enumerate(items):
                if both_sides and 0 < abs(j - i) <= n_places:
                    counts[own, other] += 1 / abs(j - i)
                if not both_sides and 0 < j - i <= n_places:
                    counts[own, other] += 1
    return counts


def n_ratings(rows: Sequence[Row]) -> np.ndarray:
    return np.bincount([item for items in by_user(rows) for item in items], minlength=8)


BY_HAND: tuple[Row, ...] = (
    (101, 11, 4.0, 10),
    (101, 12, 2.0, 20),
    (101, 13, 5.0, 20),  # in the same second, later in the file
    (102, 12, 1.0, 5),
    (102, 11, 3.5, 6),
    (102, 99, 5.0, 7),  # outside the catalogue
    (103, 14, 4.5, 1),
)
RATED = st.tuples(
    st.sampled_from(USERS.ids.tolist()),
    st.sampled_from([*ITEMS.ids.tolist(), 99]),
    st.sampled_from([0.5, 3.0, 4.0, 5.0]),
    st.integers(0, 9),
)
RATINGS = st.lists(RATED, min_size=1, max_size=48, unique_by=lambda row: row[:2]).filter(
    lambda rows: any(movie != 99 for _, movie, *_ in rows)
)


# Ragged rows


def test_gathered_entries_say_which_of_the_rows_they_belong_to() -> None:
    table = Ragged(np.array([0, 2, 2, 3]), np.array([4, 7, 1]), np.array([0.5, 1.5, 2.5], dtype=np.float32))
    place, column, value = table.gather(np.array([2, 0, 1, 0]))
    assert place.tolist() == [0, 1, 1, 3, 3]
    assert column.tolist() == [1, 4, 7, 4, 7]
    assert value.tolist() == [2.5, 0.5, 1.5, 0.5, 1.5]
    assert [len(part) for part in table.gather(np.array([], dtype=np.int64))] == [0, 0, 0]
    assert [len(part) for part in table.gather(np.array([1]))] == [0, 0, 0]


# Neighbours in time


def test_around_is_the_sum_of_inverse_distances_per_rating_and_ten_more() -> None:
    # 101: 11, 12, 13; 102: 12, 11; 103: 14. Movies 11 and 12 have two ratings, 13 and 14 one.
    found = dense(build(BY_HAND).around)
    expected = np.zeros((8, 8))
    expected[0, [1, 2]] = (1 + 1) / 12, 0.5 / 12
    expected[1, [0, 2]] = (1 + 1) / 12, 1 / 12
    expected[2, [0, 1]] = 0.5 / 11, 1 / 11
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_after_counts_what_is_rated_later_per_rating_and_five_more() -> None:
    found = dense(build(BY_HAND).after)
    expected = np.zeros((8, 8))
    expected[0, [1, 2]] = 1 / 7
    expected[1, [0, 2]] = 1 / 7
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_neighbours_end_twenty_places_away_on_both_sides_and_five_after() -> None:
    items = IdMap(np.arange(1, 31))
    history = build_history(frame(*((101, movie, 4.0, movie) for movie in range(1, 31))), USERS, items)
    found = build_tables(history, USERS, items, movies_of(), empty_tags())
    around, after = dense(found.around, 30), dense(found.after, 30)
    np.testing.assert_allclose(around[4, 24], 1 / 20 / 11, rtol=1e-6)
    np.testing.assert_allclose(around[24, 4], 1 / 20 / 11, rtol=1e-6)
    assert not around[4, 25:].any()
    assert np.flatnonzero(after[4]).tolist() == [5, 6, 7, 8, 9]
    assert not around.diagonal().any()
    assert not after.diagonal().any()


@settings(deadline=None, max_examples=60)
@given(RATINGS)
def test_neighbours_are_what_a_loop_counts(rows: list[Row]) -> None:
    found, n = build(rows), n_ratings(rows)[:, None]
    around = count_neighbours(rows, both_sides=True, n_places=20) / (n + 10)
    np.testing.assert_allclose(dense(found.around), around, rtol=1e-5)
    after = count_neighbours(rows, both_sides=False, n_places=5) / (n + 5)
    np.testing.assert_allclose(dense(found.after), after, rtol=1e-5)


@settings(deadline=None, max_examples=30)
@given(rows=RATINGS)
def test_only_the_largest_neighbours_are_kept_equal_ones_by_column(rows: list[Row]) -> None:
    whole = build(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "MAX_NEIGHBOURS", 2)
        few = build(rows)
    for name in ("around", "after"):
        all_of_them, kept = dense(getattr(whole, name)), dense(getattr(few, name))
        for row in range(8):
            best = sorted(
                np.flatnonzero(all_of_them[row]), key=lambda column, row=row: (-all_of_them[row, column], column)
            )
            assert np.flatnonzero(kept[row]).tolist() == sorted(best[:2])
            assert kept[row, best[:2]].tolist() == all_of_them[row, best[:2]].tolist()


def test_neighbours_are_counted_from_the_newest_ratings_where_there_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [(101 + i % 4, 11 + i % 8, 4.0, 100 - i) for i in range(0, 32, 3)]
    monkeypatch.setattr(tables, "MAX_COUNTED", 7)
    found, newest = build(rows), sorted(rows, key=lambda row: row[3])[-7:]
    expected = count_neighbours(newest, both_sides=True, n_places=20) / (n_ratings(newest)[:, None] + 10)
    np.testing.assert_allclose(dense(found.around), expected, rtol=1e-5)
    assert expected.any()
    of_all = count_neighbours(rows, both_sides=True, n_places=20) / (n_ratings(rows)[:, None] + 10)
    assert (of_all != expected).any()
    assert found.n_counted.tolist() == n_ratings(newest).tolist()
    assert len(found.timeline) == len(rows)  # all the same


def test_exactly_the_most_is_counted_where_the_oldest_of_the_newest_tie(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(101, 11, 4.0, 1), (101, 12, 4.0, 2), (101, 13, 4.0, 2), (101, 14, 4.0, 3), (101, 15, 4.0, 4)]
    monkeypatch.setattr(tables, "MAX_COUNTED", 3)
    found = dense(build(rows).around)
    assert set(zip(*(places.tolist() for places in found.nonzero()), strict=True)) == {
        *((2, 3), (2, 4), (3, 4)),
        *((3, 2), (4, 2), (4, 3)),
    }  # of the two of second 2, the later in the file


@pytest.mark.parametrize("most", [0, 1])
def test_as_many_ratings_as_can_be_counted_are_counted(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    rows = [(101, 11 + i, 4.0, i) for i in range(5)]
    whole = build(rows)
    monkeypatch.setattr(tables, "MAX_COUNTED", 5 + most)
    assert build(rows).around.value.tobytes() == whole.around.value.tobytes()


# Rated together


@settings(deadline=None, max_examples=60)
@given(RATINGS)
def test_together_is_the_cosine_of_who_rated_what(rows: list[Row]) -> None:
    rated = np.zeros((6, 8))
    for user, items in enumerate(by_user(rows)):
        rated[user, items] = 1
    n = rated.sum(axis=0)
    expected = np.divide(rated.T @ rated, np.sqrt(np.outer(n, n)), out=np.zeros((8, 8)), where=np.outer(n, n) > 0)
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(dense(build(rows).together), expected, rtol=1e-5)


@settings(deadline=None, max_examples=30)
@given(rows=RATINGS)
def test_only_the_largest_cosines_are_kept(rows: list[Row]) -> None:
    whole = dense(build(rows).together)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "N_TOGETHER", 2)
        few = dense(build(rows).together)
    for all_of_them, kept in zip(whole, few, strict=True):
        assert sorted(kept[kept > 0]) == sorted(all_of_them[all_of_them > 0])[-2:]
        assert (kept[kept > 0] == all_of_them[kept > 0]).all()


# When


@settings(deadline=None, max_examples=60)
@given(RATINGS, st.sampled_from([0, 1_500_000_000, 2**32 - 11]))
def test_timeline_finds_how_many_ratings_a_movie_had_at_a_moment_and_their_sum(rows: list[Row], start: int) -> None:
    rows = [(*row, start + time) for *row, time in rows]  # type: ignore[misc]
    found = build(rows)
    known = [row for row in rows if row[1] != 99]
    assert len(found.timeline) == len(known) == len(found.timeline_total) - 1
    assert (np.diff(found.timeline) >= 0).all()
    assert found.timeline_total[0] == 0
    assert found.n_rated.tolist() == n_ratings(rows).tolist()
    for item in range(8):
        first = np.searchsorted(found.timeline, item << 32)
        for moment in range(start, start + 11):
            before = [rating for _, movie, rating, time in known if movie == 11 + item and time < moment]
            place = np.searchsorted(found.timeline, (item << 32) + moment)
            assert place - first == len(before)
            assert found.timeline_total[place] - found.timeline_total[first] == sum(before)


def test_typical_is_the_mean_rating_the_median_of_the_median_gaps_and_the_last_second() -> None:
    # Gaps of 101: 10, 0 → 5; of 102: 1 (99 is outside the catalogue); 103 and the others have none.
    mean, gap, last = build(BY_HAND).typical.tolist()
    assert mean == pytest.approx((4 + 2 + 5 + 1 + 3.5 + 4.5) / 6)
    assert (gap, last) == (3.0, 20.0)


def test_typical_gap_is_zero_where_nobody_rated_twice() -> None:
    assert build([(101, 11, 4.0, 7), (102, 12, 2.0, 9)]).typical.tolist() == [3.0, 0.0, 9.0]


@settings(deadline=None, max_examples=30)
@given(RATINGS)
def test_typical_is_what_a_loop_finds(rows: list[Row]) -> None:
    known = [row for row in rows if row[1] != 99]
    gaps = []
    for user in USERS.ids.tolist():
        times = sorted(time for u, *_, time in known if u == user)
        if len(times) > 1:
            gaps.append(int(np.median([later - earlier for earlier, later in pairwise(times)])))
    expected = [np.mean([row[2] for row in known]), np.median(gaps) if gaps else 0, max(row[3] for row in known)]
    np.testing.assert_allclose(build(rows).typical, expected, rtol=1e-6)


# What movies are about


@pytest.mark.parametrize(
    ("title", "words"),
    [
        ("Matrix, The (1999)", ["matrix"]),
        ("The Lord of the Rings: The Two Towers (2002)", ["lord", "rings", "two", "towers"]),
        (
            "Amélie (Fabuleux destin d'Amélie Poulain, Le) (2001)",
            ["amélie", "fabuleux", "destin", "d", "amélie", "poulain"],
        ),
        ("2001: A Space Odyssey (1968)", ["2001", "space", "odyssey"]),
        ("Dark Shadows (1966-1971)", ["dark", "shadows"]),
        ("Fargo (2014– )", ["fargo"]),
        ("WALL·E (2008) ", ["wall", "e"]),
        ("snake_case STRASSE Straße", ["snake", "case", "strasse", "strasse"]),
        ("Ψ|天 no year", ["ψ", "天", "no", "year"]),
        ("(500) Days of Summer (2009)", ["500", "days", "summer"]),
        ("1984", ["1984"]),
        ("The (1999)", []),
        ("", []),
    ],
)
def test_title_s_words_are_in_lower_case_without_year_and_articles(title: str, words: list[str]) -> None:
    assert title_words(title) == words


def test_words_are_weighted_by_tf_idf_to_length_one() -> None:
    table = build(BY_HAND).words
    titles = [set(title_words(MOVIES[movie][0])) for movie in ITEMS.ids.tolist()]
    assert np.diff(table.indptr).tolist() == [len(title) for title in titles]
    found = dense(table, 100)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), [len(title) > 0 for title in titles], rtol=1e-6)
    idf = {word: math.log(9 / (1 + sum(word in title for title in titles))) for word in set.union(*titles)}
    weights = [{word: idf[word] / math.hypot(*(idf[own] for own in title)) for word in title} for title in titles]
    expected = [[sum(a[word] * b.get(word, 0) for word in a) for b in weights] for a in weights]
    np.testing.assert_allclose(found @ found.T, expected, rtol=1e-5)
    assert expected[0][1] > 0.3  # Matrix
    assert expected[0][3] == 0


def test_word_of_every_title_weighs_nothing() -> None:
    found = build([(101, 11, 4.0, 1)], movies=dict.fromkeys(range(11, 19), ("Part", "", None))).words
    assert not found.value.any()
    assert np.isfinite(found.value).all()


def test_genres_have_a_column_each() -> None:
    found = build(BY_HAND)
    assert found.genre_names.tolist() == sorted({g for m in range(11, 19) for g in MOVIES[m][1].split("|") if g})
    names = [set(found.genre_names[row > 0].tolist()) for row in found.genres]
    assert names == [{g for g in MOVIES[movie][1].split("|") if g} for movie in ITEMS.ids.tolist()]
    assert set(np.unique(found.genres)) == {0.0, 1.0}


def test_year_is_nan_where_none_is_known() -> None:
    np.testing.assert_array_equal(build(BY_HAND).year, [1999, 2003, np.nan, 2002, 2002, 1999, np.nan, np.nan])


def fold(tag: str) -> str:
    return " ".join(tag.lower().split())


def test_tags_count_the_users_who_gave_them() -> None:
    found = build(BY_HAND)
    assert found.tag_idf.shape == (3,)  # classic, long, sci fi
    counts = dense(found.tags, 3)
    assert counts.tolist() == [[2, 0, 2], [0, 0, 1], [0, 0, 0], [1, 1, 0], *[[0, 0, 0]] * 4]
    np.testing.assert_allclose(found.tag_idf, np.log([9 / 3, 9 / 2, 9 / 3]), rtol=1e-6)


def test_every_user_s_own_tags_can_be_found() -> None:
    found = build(BY_HAND).tags_of_user
    own = [found.index[a:b].tolist() for a, b in zip(found.indptr[:-1], found.indptr[1:], strict=True)]
    assert own == [[0, 2, 1 * 3 + 2], [2], [0], [], [], [3 * 3 + 1]]  # item · 3 + tag; user 999 is unknown
    assert (found.value == 1).all()


TAGGED = st.tuples(
    st.sampled_from([*USERS.ids.tolist(), 999]), st.sampled_from([*ITEMS.ids.tolist(), 99]), st.sampled_from("abcdAB")
)


@settings(deadline=None, max_examples=60)
@given(st.lists(TAGGED, max_size=40, unique_by=lambda tag: (tag[0], tag[1], tag[2].lower())))
def test_tags_are_what_a_loop_counts(tags: list[Tag]) -> None:
    found = build(BY_HAND, tags=tags)
    known = [(user, movie, fold(tag)) for user, movie, tag in tags if movie != 99]
    names = sorted({tag for *_, tag in known})
    n_tags = max(len(names), 1)
    assert found.tag_idf.shape == (n_tags,)
    counts = Counter((movie - 11, names.index(tag)) for _, movie, tag in known)
    expected = np.zeros((8, n_tags))
    for cell, n in counts.items():
        expected[cell] = n
    assert dense(found.tags, n_tags).tolist() == expected.tolist()
    np.testing.assert_allclose(found.tag_idf, np.log(9 / (1 + (expected > 0).sum(axis=0))), rtol=1e-6)
    own = found.tags_of_user
    for row, user in enumerate(USERS.ids.tolist()):
        cells = sorted((movie - 11) * n_tags + names.index(tag) for u, movie, tag in known if u == user)
        assert own.index[own.indptr[row] : own.indptr[row + 1]].tolist() == cells


# Little, or nothing


def test_nothing_known_about_the_movies_but_who_rated_them_is_enough() -> None:
    found = build(BY_HAND, movies=dict.fromkeys(range(11, 19), ("", "", None)), tags=())
    assert found.genres.shape == (8, 0)
    assert found.genre_names.tolist() == []
    assert np.isnan(found.year).all()
    assert len(found.words.index) == len(found.tags.index) == len(found.tags_of_user.index) == 0
    assert [len(table.indptr) for table in (found.words, found.tags, found.tags_of_user)] == [9, 9, 7]
    np.testing.assert_allclose(dense(found.around), dense(build(BY_HAND).around))


def test_movie_that_stands_in_no_table_has_no_title_and_no_year() -> None:
    found = build(BY_HAND, movies={movie: MOVIES[movie] for movie in range(12, 19)})
    assert np.isnan(found.year[0])
    assert found.words.indptr[:2].tolist() == [0, 0]
    assert not found.genres[0].any()


def test_movie_that_nobody_rated_has_no_neighbours() -> None:
    found = build(BY_HAND)
    assert found.n_items == 8
    for table in (found.around, found.after, found.together):
        assert np.diff(table.indptr)[4:].tolist() == [0, 0, 0, 0]
        assert not np.isin(table.index, [4, 5, 6, 7]).any()
        assert np.isfinite(table.value).all()


def test_one_rating_is_enough() -> None:
    found = build([(101, 11, 4.0, 7)], tags=())
    assert found.typical.tolist() == [4.0, 0.0, 7.0]
    assert len(found.around.index) == len(found.after.index) == len(found.together.index) == 0


# As plain arrays


def check_equal(one: MovieTables, other: MovieTables) -> None:
    for field in fields(MovieTables):
        a, b = getattr(one, field.name), getattr(other, field.name)
        assert type(a) is type(b) or isinstance(b, np.ndarray), field.name
        parts = [(a, b)] if isinstance(a, np.ndarray) else list(zip(vars(a).values(), vars(b).values(), strict=True))
        for left, right in parts:
            assert (left.dtype, left.shape) == (right.dtype, right.shape), field.name
            assert left.tobytes() == right.tobytes(), field.name


@pytest.mark.parametrize("tags", [TAGS, ()])
def test_tables_survive_being_plain_arrays_and_a_file_of_them(tags: Sequence[Tag], tmp_path: Path) -> None:
    found = build(BY_HAND, tags=tags)
    check_equal(found, MovieTables.of_arrays(found.to_arrays()))
    write_npz(tmp_path / "tables.npz", found.to_arrays())
    mapped = MovieTables.of_arrays(map_npz(tmp_path / "tables.npz"))
    check_equal(found, mapped)
    for array in (mapped.around.value, mapped.timeline, mapped.genres):  # the file itself, not a copy of it
        assert isinstance(array.base, np.memmap)
        assert not array.flags.writeable


def test_tables_without_genres_titles_and_tags_survive_a_file_too(tmp_path: Path) -> None:
    found = build(BY_HAND, movies={}, tags=())
    write_npz(tmp_path / "tables.npz", found.to_arrays())
    check_equal(found, MovieTables.of_arrays(map_npz(tmp_path / "tables.npz")))


def test_names_of_the_arrays_say_table_and_part() -> None:
    arrays = build(BY_HAND).to_arrays()
    assert {"around.indptr", "around.index", "around.value", "genres", "timeline", "typical"} <= arrays.keys()
    assert all(isinstance(array, np.ndarray) for array in arrays.values())


def test_missing_array_is_a_key_error() -> None:
    arrays = build(BY_HAND).to_arrays()
    for name in arrays:
        with pytest.raises(KeyError, match=name):
            MovieTables.of_arrays({key: array for key, array in arrays.items() if key != name})


# The real data


def test_tables_of_the_real_data_are_within_their_bounds_and_the_same_every_time(movielens_dir: Path) -> None:
    raw = read_movielens(movielens_dir)
    data = core.clean("real", raw)
    users = IdMap.of(data.ratings["user_id"])
    items = IdMap.of(core.positives(data.ratings)["movie_id"])
    history = build_history(data.ratings, users, items)
    found, again = (build_tables(history, users, items, data.movies, data.tags) for _ in range(2))
    check_equal(found, again)
    for table, most in ((found.around, 500), (found.after, 500), (found.together, 200)):
        assert np.diff(table.indptr).max() <= most
        assert np.diff(table.indptr).min() >= 0
        assert (table.value > 0).all()
        assert (table.index != np.repeat(np.arange(len(items)), np.diff(table.indptr))).all()
    assert found.together.value.max() <= 1 + 1e-6
    assert found.typical[2] == data.ratings[data.ratings["movie_id"].isin(items.ids)]["timestamp"].max()
    check_neighbours_of_one_movie(history, found, int(items.index(296)))


def check_neighbours_of_one_movie(history: UserRows, found: MovieTables, item: int) -> None:
    counts: Counter[int] = Counter()
    weights: dict[int, float] = {}
    rows = [history.of(user).item_index.tolist() for user in range(len(history.indptr) - 1)]
    for row in rows:
        if item in row:
            place = row.index(item)
            counts.update(row[place + 1 : place + 6])
            for other in range(max(place - 20, 0), min(place + 21, len(row))):
                if other != place:
                    weights[row[other]] = weights.get(row[other], 0) + 1 / abs(other - place)
    n = sum(item in row for row in rows)
    for table, sums, prior in ((found.around, weights, 10), (found.after, counts, 5)):
        own = slice(table.indptr[item], table.indptr[item + 1])
        expected = sorted((-np.float32(total / (n + prior)), other) for other, total in sums.items())[:500]
        values = np.sort(table.value[own])[::-1]
        np.testing.assert_allclose(values, [-value for value, _ in expected], rtol=1e-5)
        for other, value in zip(table.index[own].tolist(), table.value[own].tolist(), strict=True):
            assert value == pytest.approx(sums[other] / (n + prior), rel=1e-5)
