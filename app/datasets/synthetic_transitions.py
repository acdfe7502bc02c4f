"""Plant an order into invented ratings: after a movie, often one of its three successors.

Used by ``synthetic`` on request. Who sees only which user rated which movie cannot easily tell the successors from all
that the user has rated; who looks at the movie just before can. This module knows neither tastes nor ratings, so that
an order is independent of both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CIRCLE = 30  # movies of comparable popularity; the last circle of a catalogue is up to twice as long
# Places ahead on the circle. Two such steps never make one step, nor lead back: the successor of a successor is neither
# a successor nor the movie itself.
_STEPS = (1, 5, 12)
N_SUCCESSORS = len(_STEPS)

Array = NDArray[Any]


def draw_successors(rng: np.random.Generator, popularity: Array) -> Array:
    """Draw three successors for each movie, of comparable popularity.

    Neighbours in popularity are shuffled onto circles; the successors of a movie stand 1, 5 and 12 places ahead of it.
    So each movie also follows three others, and planting makes none much more popular than it was.

    Parameters
    ----------
    rng : Generator
    popularity : ndarray of shape (n_movies,)
        In any unit; at least 30 movies.

    Returns
    -------
    ndarray of shape (n_movies, 3), int64
        Indices of movies, distinct within a row.
    """
    n_movies = len(popularity)
    place = np.arange(n_movies)
    circle = np.minimum(place // _CIRCLE, n_movies // _CIRCLE - 1)
    begin, length = circle * _CIRCLE, np.bincount(circle)[circle]
    shuffled = np.argsort(-popularity, kind="stable")[np.lexsort((rng.random(n_movies), circle))]
    successors = np.empty((n_movies, N_SUCCESSORS), dtype=np.int64)
    for choice, step in enumerate(_STEPS):
        successors[shuffled, choice] = shuffled[begin + (place - begin + step) % length]
    return successors


@dataclass(frozen=True)
class Planter:
    """Puts successors in the place of drawn movies.

    Parameters
    ----------
    rng : Generator
    probability : float
        That a rating other than its session's first is wanted to be of a successor.
    successors : ndarray of shape (n_movies, n_successors), int
        From ``draw_successors``.
    released : ndarray of shape (n_movies,), int
        The year before which nobody can rate a movie.
    """

    rng: np.random.Generator
    probability: float
    successors: Array
    released: Array

    def plant(self, user: Array, session: Array, year: Array, drawn: Array) -> Array:
        """Replace movies by a random successor of the movie before them, where the user can rate one.

        Parameters
        ----------
        user, session : ndarray of shape (n,), int
            Whose rating it is, and in which session; both count from 0 without gaps and never fall.
        year : ndarray of shape (n,), int
            When it is given.
        drawn : ndarray of shape (n,), int
            The movie to fall back on. No user has one twice.

        Returns
        -------
        ndarray of shape (n,), int64
            Movies, of which no user has one twice either.
        """
        item = drawn.copy()
        # A table, not sorted pairs: it is asked again after each place of a session, hundreds of times.
        taken = np.zeros((int(user[-1]) + 1, len(self.successors)), dtype=bool)
        taken[user, item] = True
        n_successors = self.successors.shape[1]
        first_choice = self.rng.integers(n_successors, size=len(user))
        for pending in self._draw_places(session):
            for attempt in range(n_successors):
                wanted = self.successors[item[pending - 1], (first_choice[pending] + attempt) % n_successors]
                fits = self._fits(taken, user[pending], wanted, year[pending])
                chosen = pending[fits]
                taken[user[chosen], item[chosen]] = False
                item[chosen] = wanted[fits]
                taken[user[chosen], item[chosen]] = True
                pending = pending[~fits]
        return item

    def _draw_places(self, session: Array) -> Iterator[Array]:
        """Yield where to plant: what is second in its session, then what is third, and so on."""
        place = np.arange(len(session)) - np.flatnonzero(np.diff(session, prepend=-1))[session]
        where = np.flatnonzero((place > 0) & (self.rng.random(len(session)) < self.probability))
        where = where[np.argsort(place[where], kind="stable")]
        yield from np.split(where, np.flatnonzero(np.diff(place[where])) + 1)

    def _fits(self, taken: Array, user: Array, wanted: Array, year: Array) -> Array:
        """Tell where the user can rate the movie; of two sessions that want it at once the first gets it."""
        fits = ~taken[user, wanted] & (self.released[wanted] <= year)
        _, first = np.unique(np.where(fits, user * len(self.successors) + wanted, -1), return_index=True)
        is_first = np.zeros(len(user), dtype=bool)
        is_first[first] = True
        found: Array = fits & is_first
        return found
