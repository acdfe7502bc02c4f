"""The movies of a catalogue as arrays: what lists show of each, ready to be sent, and what filters ask for.

``artifacts ─▶ Movies ─▶ recommender, routers``. All text is one piece of memory with the JSON of one movie after the
other, which worker processes map and share: a million movies as Python objects would cost each of them some 400 MB, and
the JSON of a list would be written anew for every request.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise
from types import NoneType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.history import entries_of

NO_YEAR = 0
_CHUNK = 10_000  # movies whose JSON is read at a time


@dataclass(frozen=True)
class Movie:
    """A movie as responses show it; ``year`` is None and ids are "" where MovieLens has none."""

    movie_id: int
    title: str
    genres: tuple[str, ...]
    year: int | None
    imdb_id: str
    tmdb_id: str


@dataclass(frozen=True)
class Movies:
    """Movies by item index; arrays as ``movies.npz`` holds them.

    ``cards`` and ``links`` uint8 are JSON in UTF-8, without the braces: the members movie_id, title, genres and year of
    movie i are ``cards[card_ends[i]:card_ends[i + 1]]``, and imdb_id and tmdb_id the same way in ``links``. ``years``
    int32 has 0 where there is none. The genres of movie i are ``genre_index[genre_indptr[i]:genre_indptr[i + 1]]``,
    int32, places in ``genre_names``, which rise. ``popularity`` float32 counts positives.
    """

    cards: NDArray[np.uint8]
    card_ends: NDArray[np.int64]
    links: NDArray[np.uint8]
    link_ends: NDArray[np.int64]
    years: NDArray[np.int32]
    genre_names: NDArray[np.str_]
    genre_indptr: NDArray[np.int64]
    genre_index: NDArray[np.int32]
    popularity: NDArray[np.float32]

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Movies:
        return cls(**{field.name: arrays[field.name] for field in fields(cls)})

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __len__(self) -> int:
        return len(self.years)

    def __getitem__(self, item: int | np.integer[Any]) -> Movie:
        (card,) = self.cards_of(np.array([item]))
        return _read(card, self._links_of(item))

    def __iter__(self) -> Iterator[Movie]:
        return (self[item] for item in range(len(self)))

    def cards_of(self, items: NDArray[np.integer]) -> list[bytes]:
        """Return the JSON members that every list shows of each movie."""
        starts, ends = self._card_ends[items].tolist(), self._card_ends[items + 1].tolist()
        text = self._card_text
        return [bytes(text[start:end]) for start, end in zip(starts, ends, strict=True)]

    # Of memory maps numpy makes maps again, slowly; these are the same memory without.
    @cached_property
    def _card_text(self) -> memoryview:
        return np.asarray(self.cards).data

    @cached_property
    def _card_ends(self) -> NDArray[np.int64]:
        return np.asarray(self.card_ends)

    def genres_of(self, items: NDArray[np.integer]) -> NDArray[np.float32]:
        """Return which genres some movies have, of shape (n, n_genres): 1 or 0."""
        has = np.zeros((len(items), len(self.genre_names)), dtype=np.float32)
        place, entry = entries_of(self.genre_indptr, items)
        has[place, self.genre_index[entry]] = 1
        return has

    def with_genre(self, genres: Iterable[int]) -> NDArray[np.bool_]:
        """Return which movies have one of these genres, given by their places in ``genre_names``: (n_items,)."""
        wanted = np.zeros(len(self.genre_names), dtype=bool)
        wanted[list(genres)] = True
        having = np.concatenate([[0], np.cumsum(wanted[self.genre_index])])[self.genre_indptr]
        found: NDArray[np.bool_] = having[1:] > having[:-1]
        return found

    def titles(self) -> Iterator[str]:
        """Yield the title of each movie."""
        return (values["title"] for values in self._read_cards())

    def _read_cards(self) -> Iterator[dict[str, Any]]:
        """Yield the members of each card, so many at a time."""
        for start in range(0, len(self), _CHUNK):
            cards = self.cards_of(np.arange(start, min(start + _CHUNK, len(self))))
            yield from json.loads(b"[{" + b"},{".join(cards) + b"}]")

    def _links_of(self, item: int | np.integer[Any]) -> bytes:
        return self.links[self.link_ends[item] : self.link_ends[item + 1]].tobytes()

    def check(self, movie_ids: NDArray[np.int64]) -> None:
        """Check that these are the movies of a catalogue, and that responses can be made of them.

        Raises
        ------
        ValueError
            If they are not; whatever damage a file may have, it is found here.
        """
        self._check_arrays(len(movie_ids))
        names = self.genre_names.tolist()
        listed = [names[place] for place in self.genre_index.tolist()]
        of_movies = zip(movie_ids.tolist(), pairwise(self.genre_indptr.tolist()), self.years.tolist(), strict=True)
        for item, ((movie_id, (start, end), year), card) in enumerate(zip(of_movies, self._read_cards(), strict=True)):
            genres = listed[start:end]
            if not _is_card(card, movie_id, genres, year):
                expected = f"{', '.join(_CARD)} of movie_id {movie_id}, {'|'.join(genres)}, {year}"
                raise ValueError(f"movie {item} is {card!r:.100}, expected {expected:.200}")
            if not _are_links(json.loads(b"{" + self._links_of(item) + b"}")):
                raise ValueError(f"the links of movie {item} are not {', '.join(_LINKS)}")

    def _check_arrays(self, n_items: int) -> None:
        for name, dtype in _TYPES.items():
            if (found := getattr(self, name)).ndim != 1 or found.dtype.type is not dtype:
                raise ValueError(f"{name} is {found.dtype} {found.shape}, expected {dtype.__name__} in one dimension")
        for name, ends, entries in (
            ("card_ends", self.card_ends, self.cards),
            ("link_ends", self.link_ends, self.links),
            ("genre_indptr", self.genre_indptr, self.genre_index),
        ):
            if ends.shape != (n_items + 1,) or ends[0] != 0 or ends[-1] != len(entries) or (np.diff(ends) < 0).any():
                raise ValueError(f"{name} is not the row structure of {n_items} movies")
        for name, column in (("years", self.years), ("popularity", self.popularity)):
            if column.shape != (n_items,) or not np.isfinite(column).all():
                raise ValueError(f"{name} has not a number for each of {n_items} movies")
        if not ((self.genre_index >= 0) & (self.genre_index < len(self.genre_names))).all():
            raise ValueError(f"genre_index leads outside of {len(self.genre_names)} genres")


_TYPES: dict[str, type[np.generic]] = {
    **{"cards": np.uint8, "card_ends": np.int64, "links": np.uint8, "link_ends": np.int64, "years": np.int32},
    **{"genre_names": np.str_, "genre_indptr": np.int64, "genre_index": np.int32, "popularity": np.float32},
}
_CARD, _LINKS = ("movie_id", "title", "genres", "year"), ("imdb_id", "tmdb_id")


def build_movies(movies: Iterable[Movie], popularity: NDArray[np.float32]) -> Movies:
    """Arrange movies, given in item order, in arrays; ``popularity`` of shape (n_items,) counts their positives."""
    listed = list(movies)
    names = sorted({genre for movie in listed for genre in movie.genres})
    place = {name: index for index, name in enumerate(names)}
    cards, card_ends = _join(_write(movie, _CARD) for movie in listed)
    links, link_ends = _join(_write(movie, _LINKS) for movie in listed)
    return Movies(
        cards=cards,
        card_ends=card_ends,
        links=links,
        link_ends=link_ends,
        years=np.array([movie.year or NO_YEAR for movie in listed], dtype=np.int32),
        genre_names=np.array(names, dtype=np.str_),
        genre_indptr=np.cumsum([0, *(len(movie.genres) for movie in listed)], dtype=np.int64),
        genre_index=np.array([place[genre] for movie in listed for genre in movie.genres], dtype=np.int32),
        popularity=popularity,
    )


def _is_card(values: object, movie_id: int, genres: list[str], year: int) -> bool:
    """Tell whether the members of a card are those of a movie, and of the types that responses promise."""
    if not isinstance(values, dict) or tuple(values) != _CARD or not isinstance(values["title"], str):
        return False
    found = (values["movie_id"], values["genres"], values["year"] or NO_YEAR)
    are_whole = type(values["movie_id"]) is int and type(values["year"]) in (int, NoneType)  # True and 1.0 equal 1
    return found == (movie_id, genres, year) and are_whole


def _are_links(values: object) -> bool:
    return (
        isinstance(values, dict) and tuple(values) == _LINKS and all(isinstance(each, str) for each in values.values())
    )


def _write(movie: Movie, names: tuple[str, ...]) -> bytes:
    """Return members of a JSON object, without its braces."""
    values = {name: getattr(movie, name) for name in names}
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()[1:-1]


def _join(texts: Iterable[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    listed = list(texts)
    return np.frombuffer(b"".join(listed), dtype=np.uint8), np.cumsum([0, *map(len, listed)], dtype=np.int64)


def _read(*members: bytes) -> Movie:
    values = json.loads(b"{" + b",".join(members) + b"}")
    return Movie(**{**values, "genres": tuple(values["genres"])})
