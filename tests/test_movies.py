"""Movies as arrays: what goes in comes out, whatever a title holds, and damage is refused before anything is served."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from app import movies as movies_module
from app.movies import Movie, Movies, build_movies

HARD = '"quoted" \\ back \x00\x1f\t\n\r \u2028\u2029 \x7f \ufeff 🎬 天Ψ },{ ]} </script> null'
LISTED = (
    Movie(1, "Toy Story (1995)", ("Adventure", "Animation"), 1995, "0114709", "862"),
    Movie(2, "Nothing is known", (), None, "", ""),
    Movie(2**53 + 1, HARD, ("Sci-Fi", "Adventure"), 2001, "", "7"),
    Movie(2**63 - 1, "", ("Drama",), 9999, "1", ""),
)
IDS = np.array([movie.movie_id for movie in LISTED])


def build(listed: tuple[Movie, ...] = LISTED) -> Movies:
    return build_movies(listed, np.arange(len(listed), dtype=np.float32))


CHARACTERS = st.characters(exclude_categories=["Cs"])
TEXT = st.text(CHARACTERS, max_size=12) | st.sampled_from([HARD, "},{", chr(34), "\\", "\\u0000"])
GENRES = st.lists(st.sampled_from(["Drama", "Sci-Fi", "IMAX", 'a"b', "Ψ"]) | TEXT.filter(bool), max_size=4, unique=True)
ANY_MOVIES = st.lists(
    st.builds(
        Movie,
        movie_id=st.integers(1, 2**63 - 1),
        title=TEXT,
        genres=GENRES.map(lambda names: tuple(name for name in names if not name.endswith("\0"))),
        year=st.none() | st.integers(1, 9999),
        imdb_id=TEXT,
        tmdb_id=TEXT,
    ),
    max_size=8,
).map(tuple)


@given(ANY_MOVIES, st.integers(1, 5))
def test_movies_come_out_as_they_went_in(listed: tuple[Movie, ...], chunk: int) -> None:
    built = build(listed)
    movies = Movies.of_arrays(built.to_arrays())
    assert tuple(movies) == listed
    assert [movies[item] for item in range(len(movies))] == list(listed)
    assert len(movies) == len(listed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(movies_module, "_CHUNK", chunk)
        assert list(movies.titles()) == [movie.title for movie in listed]
        movies.check(np.array([movie.movie_id for movie in listed], dtype=np.int64))


@given(ANY_MOVIES)
def test_cards_are_json_that_any_list_of_them_keeps_apart(listed: tuple[Movie, ...]) -> None:
    movies = build(listed)
    order = np.arange(len(listed))[::-1]
    body = b"[" + b",".join(b'{%b,"score":1}' % card for card in movies.cards_of(order)) + b"]"
    expected = [
        {"movie_id": movie.movie_id, "title": movie.title, "genres": list(movie.genres), "year": movie.year, "score": 1}
        for movie in reversed(listed)
    ]
    assert json.loads(body.decode("utf-8")) == expected


@given(ANY_MOVIES)
def test_genres_are_those_of_each_movie(listed: tuple[Movie, ...]) -> None:
    movies = build(listed)
    names = movies.genre_names.tolist()
    assert names == sorted({genre for movie in listed for genre in movie.genres})
    items = np.array([*range(len(listed)), *range(len(listed))], dtype=np.int64)[::-1]
    expected = [[float(name in listed[item].genres) for name in names] for item in items]
    found = movies.genres_of(items)
    assert (found.shape, found.dtype) == ((len(items), len(names)), np.float32)
    assert found.tolist() == expected


@given(ANY_MOVIES, st.sets(st.integers(0, 9)))
def test_movies_with_one_of_some_genres_are_found(listed: tuple[Movie, ...], places: set[int]) -> None:
    movies = build(listed)
    names = movies.genre_names.tolist()
    wanted = {names[place] for place in places if place < len(names)}
    found = movies.with_genre(place for place in places if place < len(names))
    assert found.dtype == np.bool_
    assert found.tolist() == [bool(wanted & set(movie.genres)) for movie in listed]


def test_arrays_are_those_that_are_promised() -> None:
    movies = build()
    assert movies.years.tolist() == [1995, 0, 2001, 9999]
    assert movies.genre_names.tolist() == ["Adventure", "Animation", "Drama", "Sci-Fi"]
    assert movies.genre_indptr.tolist() == [0, 2, 2, 4, 5]
    assert movies.genre_index.tolist() == [0, 1, 3, 0, 2]
    assert movies.popularity.tolist() == [0, 1, 2, 3]
    assert movies.cards_of(np.array([1])) == [b'"movie_id":2,"title":"Nothing is known","genres":[],"year":null']
    assert bytes(movies.links[: movies.link_ends[1]]) == b'"imdb_id":"0114709","tmdb_id":"862"'
    types = {name: array.dtype.type for name, array in movies.to_arrays().items()}
    assert types == movies_module._TYPES


def test_no_movies_are_a_catalogue_too() -> None:
    movies = build(())
    movies.check(np.empty(0, dtype=np.int64))
    assert (len(movies), list(movies), list(movies.titles()), movies.with_genre([]).tolist()) == (0, [], [], [])
    assert movies.genres_of(np.empty(0, dtype=np.int64)).shape == (0, 0)
    assert movies.cards_of(np.empty(0, dtype=np.int64)) == []


def test_movie_is_found_by_any_kind_of_index_and_none_behind_the_last() -> None:
    movies = build()
    assert movies[np.int64(2)] == movies[2] == LISTED[2]
    with pytest.raises(IndexError):
        movies[4]


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 5])
def test_titles_are_the_same_however_many_are_read_at_a_time(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(movies_module, "_CHUNK", chunk)
    assert list(build().titles()) == [movie.title for movie in LISTED]
    build().check(IDS)


@settings(deadline=None, max_examples=30)
@given(st.text(CHARACTERS, max_size=60))
def test_title_cannot_break_out_of_its_card(title: str) -> None:
    movies = build((replace(LISTED[0], title=title), LISTED[1]))
    first, second = movies.cards_of(np.arange(2))
    assert b"\n" not in first  # nor has any other control character a place in JSON
    assert min(first) >= 0x20
    assert json.loads(b"{" + first + b"}")["title"] == title
    assert json.loads(b"{" + second + b"}")["movie_id"] == 2


def test_real_movies_come_out_as_they_went_in(movielens_dir: Path) -> None:
    table = pd.read_csv(movielens_dir / "movies.csv")
    listed = tuple(
        Movie(movie_id, title, tuple(genres.split("|")), None, "", "")
        for movie_id, title, genres in table.itertuples(index=False)
    )
    movies = build(listed)
    movies.check(table["movieId"].to_numpy())
    assert tuple(movies) == listed


# Damage


def rewritten(
    item: int, change: Callable[[dict[str, Any]], object], arrays: str = "cards"
) -> Callable[[Movies], Movies]:
    """Change the members of a movie's card or links, and move the ends of those behind it."""

    def damage(movies: Movies) -> Movies:
        ends_name = "card_ends" if arrays == "cards" else "link_ends"
        text, ends = getattr(movies, arrays).tobytes(), getattr(movies, ends_name)
        start, end = ends[item], ends[item + 1]
        values = json.loads(b"{" + text[start:end] + b"}")
        change(values)
        written = json.dumps(values).encode()[1:-1]
        moved = ends + np.where(np.arange(len(ends)) > item, len(written) - (end - start), 0)
        replaced = np.frombuffer(text[:start] + written + text[end:], dtype=np.uint8)
        return replace(movies, **{arrays: replaced, ends_name: moved})

    return damage


def assigned(name: str, item: int, value: object) -> Callable[[Movies], Movies]:
    def damage(movies: Movies) -> Movies:
        array: NDArray[Any] = getattr(movies, name).copy()
        array[item] = value
        return replace(movies, **{name: array})

    return damage


def changed(name: str, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Callable[[Movies], Movies]:
    return lambda movies: replace(movies, **{name: change(getattr(movies, name))})


DAMAGES: dict[str, Callable[[Movies], Movies]] = {
    "cards that end early": changed("cards", lambda cards: cards[:-1]),
    "cards that go on": changed("cards", lambda cards: np.append(cards, cards[-1:])),
    "a card that is no JSON": assigned("cards", 3, 0),
    "a card that is no UTF-8": assigned("cards", 25, 0xFF),
    "a card that ends later": assigned("card_ends", 1, 70),
    "cards that go back": assigned("card_ends", 2, 3),
    "a card of another movie": rewritten(1, lambda card: card.update(movie_id=3)),
    "a movie_id that is true": rewritten(0, lambda card: card.update(movie_id=True)),
    "a movie_id with a fraction": rewritten(0, lambda card: card.update(movie_id=1.0)),
    "a movie_id that is text": rewritten(0, lambda card: card.update(movie_id="1")),
    "a title that is a number": rewritten(0, lambda card: card.update(title=7)),
    "a title that is null": rewritten(0, lambda card: card.update(title=None)),
    "genres that are text": rewritten(3, lambda card: card.update(genres="Drama")),
    "genres that are another movie's": rewritten(3, lambda card: card.update(genres=["Sci-Fi"])),
    "a genre that is a number": rewritten(3, lambda card: card.update(genres=[2])),
    "genres without their places": assigned("genre_indptr", 1, 1),
    "a year that is not a number": rewritten(0, lambda card: card.update(year=float("nan"))),
    "a year with a fraction": rewritten(0, lambda card: card.update(year=1995.0)),
    "another year in the card": rewritten(0, lambda card: card.update(year=1996)),
    "another year in the array": assigned("years", 0, 1996),
    "a year of a movie without one": assigned("years", 1, 1996),
    "a member too many": rewritten(0, lambda card: card.update(score=1)),
    "a member too few": rewritten(0, lambda card: card.pop("title")),
    "members in another order": rewritten(0, lambda card: card.update(title=card.pop("title"))),
    "links that are no JSON": assigned("links", 0, 0),
    "a link too few": rewritten(0, lambda links: links.pop("tmdb_id"), "links"),
    "a link that is a number": rewritten(0, lambda links: links.update(tmdb_id=862), "links"),
    "links that end later": assigned("link_ends", 1, 36),
    "ends too few": changed("link_ends", lambda ends: ends[1:]),
    "ends that begin later": assigned("card_ends", 0, 1),
    "ends with fractions": changed("card_ends", lambda ends: ends.astype(np.float64)),
    "ends in two dimensions": changed("card_ends", lambda ends: ends[:, None]),
    "cards of wide characters": changed("cards", lambda cards: cards.astype(np.int64)),
    "a year too few": changed("years", lambda years: years[1:]),
    "years with fractions": changed("years", lambda years: years.astype(np.float32)),
    "a popularity that is no number": assigned("popularity", 0, np.nan),
    "a popularity too many": changed("popularity", lambda popularity: np.append(popularity, popularity[:1])),
    "popularity in whole numbers": changed("popularity", lambda popularity: popularity.astype(np.int64)),
    "a genre behind the last": assigned("genre_index", 0, 4),
    "a genre before the first": assigned("genre_index", 0, -1),
    "a genre of another name": changed("genre_names", lambda names: names[[1, 0, 2, 3]]),
    "genres that are bytes": changed("genre_names", lambda names: np.char.encode(names)),
    "genres with fractions": changed("genre_index", lambda index: index.astype(np.float64)),
    "genres that end early": changed("genre_index", lambda index: index[:-1]),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        DAMAGES[name](build()).check(IDS)


def test_what_is_whole_is_not_refused() -> None:
    build().check(IDS)
    rewritten(0, dict.copy)(build()).check(IDS)


@pytest.mark.parametrize("ids", [IDS[:-1], IDS[::-1], IDS + 1, np.append(IDS, 9)])
def test_movies_of_another_catalogue_are_refused(ids: NDArray[np.int64]) -> None:
    with pytest.raises(ValueError, match="movie"):
        build().check(ids)
