"""A filter leaves what it is asked for: any of some genres, in a span of years, and nothing that is excluded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import UnknownGenreError
from app.filters import EVERYTHING, Filter
from app.movies import Movie, Movies, build_movies

CATALOGUE = (
    (("Drama",), 1990),
    (("Drama", "Sci-Fi"), None),
    ((), 2000),
    (("IMAX",), 2000),
    (("sci-fi", "Straße"), 2010),  # not "Sci-Fi" to whoever counts genres, but the same to whoever types one
)


def build(listed: tuple[tuple[tuple[str, ...], int | None], ...] = CATALOGUE) -> Movies:
    movies = (Movie(item + 1, "Title", genres, year, "", "") for item, (genres, year) in enumerate(listed))
    return build_movies(movies, np.zeros(len(listed), dtype=np.float32))


def kept(wanted: Filter) -> list[int] | None:
    mask = wanted.of_kind(build())
    return None if mask is None else np.flatnonzero(mask).tolist()


@pytest.mark.parametrize(
    ("wanted", "items"),
    [
        (EVERYTHING, None),
        (Filter(exclude=(1, 2)), None),  # ids are another matter than kinds
        (Filter(("Drama",)), [0, 1]),
        (Filter(("drama",)), [0, 1]),
        (Filter(("DRAMA", "IMAX")), [0, 1, 3]),
        (Filter(("IMAX", "IMAX")), [3]),
        (Filter(("Sci-Fi",)), [1, 4]),
        (Filter(("STRASSE",)), [4]),
        (Filter(year_min=2000), [2, 3, 4]),
        (Filter(year_max=2000), [0, 2, 3]),
        (Filter(year_min=2000, year_max=2000), [2, 3]),
        (Filter(year_min=2001, year_max=2000), []),
        (Filter(year_min=1), [0, 2, 3, 4]),
        (Filter(year_max=9999), [0, 2, 3, 4]),
        (Filter(year_min=0), [0, 2, 3, 4]),  # a movie without a year has none, not the year 0
        (Filter(year_min=-5), [0, 2, 3, 4]),
        (Filter(year_max=0), []),
        (Filter(year_max=2**40), [0, 2, 3, 4]),
        (Filter(("drama",), year_min=1), [0]),
        (Filter(("sci-fi", "imax"), year_max=2005), [3]),
    ],
)
def test_filter_keeps_its_kind(wanted: Filter, items: list[int] | None) -> None:
    assert kept(wanted) == items


@pytest.mark.parametrize("genres", [("Western",), ("Drama", "Western"), ("",), ("Dram",), ("Drama ",)])
def test_genre_that_no_movie_has_is_an_error_that_names_those_there_are(genres: tuple[str, ...]) -> None:
    with pytest.raises(UnknownGenreError, match=r"expected one of Drama, IMAX, Sci-Fi, Straße, sci-fi; got '"):
        Filter(genres).of_kind(build())


def test_error_names_the_first_genre_that_is_unknown() -> None:
    with pytest.raises(UnknownGenreError, match="got 'Zulu'"):
        Filter(("Drama", "Zulu", "Western")).of_kind(build())


def test_catalogue_without_genres_has_no_genre_to_ask_for() -> None:
    with pytest.raises(UnknownGenreError):
        Filter(("Drama",)).of_kind(build((((), 1990),)))


NAMES = ["Drama", "DRAMA", "Sci-Fi", "IMAX"]
YEARS = st.none() | st.integers(1, 6)


@given(
    st.lists(st.tuples(st.lists(st.sampled_from(NAMES), unique=True).map(tuple), YEARS), max_size=8).map(tuple),
    st.lists(st.sampled_from(NAMES), max_size=3).map(tuple),
    YEARS,
    YEARS,
)
def test_filter_keeps_what_a_loop_keeps(
    listed: tuple[tuple[tuple[str, ...], int | None], ...], genres: tuple[str, ...], low: int | None, high: int | None
) -> None:
    folded = {genre.casefold() for genre in genres}
    if not folded <= {genre.casefold() for own, _ in listed for genre in own}:
        return
    expected = [
        (not genres or bool(folded & {genre.casefold() for genre in own}))
        and (low is None or (year is not None and year >= low))
        and (high is None or (year is not None and year <= high))
        for own, year in listed
    ]
    found = Filter(genres, low, high).of_kind(build(listed))
    assert (found is None) == (not genres and low is None and high is None)
    assert (np.ones(len(listed), dtype=bool) if found is None else found).tolist() == expected


def test_masks_are_of_one_s_own() -> None:
    movies, wanted = build(), Filter(("Drama",))
    mask = wanted.of_kind(movies)
    assert mask is not None
    mask[:] = False
    assert kept(wanted) == [0, 1]
