"""Which movies a list may show: some genres, some years, and not those that the caller names.

``routers ─▶ Filter ─▶ recommender``. A filter is applied before the best are chosen, so that a narrow one still fills a
list where there are movies for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.errors import UnknownGenreError
from app.movies import NO_YEAR, Movies


@dataclass(frozen=True)
class Filter:
    """What a listed movie must be.

    Parameters
    ----------
    genres : tuple of str
        It has one of these, whatever the case of their letters; empty for any.
    year_min, year_max : int, optional
        It came out from ``year_min`` to ``year_max``, both included; with either of them a movie without a year is out.
    exclude : tuple of int
        It is none of these movie ids.
    """

    genres: tuple[str, ...] = ()
    year_min: int | None = None
    year_max: int | None = None
    exclude: tuple[int, ...] = ()

    def of_kind(self, movies: Movies) -> NDArray[np.bool_] | None:
        """Return which movies genres and years allow, of shape (n_items,), or None if all.

        Raises
        ------
        UnknownGenreError
            If no movie has a genre of that name.
        """
        masks = []
        if self.genres:
            masks.append(movies.with_genre(_places(self.genres, movies.genre_names.tolist())))
        if self.year_min is not None or self.year_max is not None:
            masks.append(movies.years > NO_YEAR)
            if self.year_min is not None:
                masks.append(movies.years >= self.year_min)
            if self.year_max is not None:
                masks.append(movies.years <= self.year_max)
        return np.logical_and.reduce(masks) if masks else None


def _places(genres: tuple[str, ...], names: list[str]) -> list[int]:
    """Return the places of the names that are one of the genres but for the case of their letters."""
    folded = [name.casefold() for name in names]
    for genre in genres:
        if genre.casefold() not in folded:
            raise UnknownGenreError(genre, names)
    wanted = {genre.casefold() for genre in genres}
    return [place for place, name in enumerate(folded) if name in wanted]


EVERYTHING = Filter()
