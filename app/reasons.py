"""Why a movie is listed: the liked movies that its score comes from, and what the second stage saw in it.

``Context + listed movies ─▶ explain ─▶ recommender``. A reason is a statement of fact about this user and this movie
that can be checked in the data; where none can be made, none is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.candidates import Context
from app.features import FEATURES, compute
from app.history import History
from app.movies import Movies
from app.ranker import Ranker
from app.tables import AFTER_PRIOR, AROUND_PRIOR, Ragged, title_words

N_BECAUSE, N_REASONS = 3, 3
_OFTEN = 0.05  # share of those who rated the one movie who rated the other next to it
_MUCH_TOGETHER = 0.2  # cosine
_N_PEOPLE = 2.999  # of whom something is said, at least: three, less what a float32 rounds
_MUCH_OF_SCORE = 0.1
_NEAR_YEARS = 5
_MIN_GENRE_RATINGS = 3
_ABOVE_OWN_MEAN = 0.1  # stars


@dataclass(frozen=True)
class Explanation:
    """Why one movie is listed.

    ``because`` are liked movies and what each contributes to the first stage's score, the most first: item index, and a
    part of the score. ``reasons`` are sentences for the second stage's order, the weightiest first.
    """

    because: tuple[tuple[int, float], ...]
    reasons: tuple[str, ...] = ()


def explain(context: Context, items: NDArray[np.int64], movies: Movies, ranker: Ranker | None) -> list[Explanation]:
    """Explain why movies are listed for a request.

    Parameters
    ----------
    items : ndarray of shape (n,), int64
        What is listed.
    ranker : Ranker, optional
        What ordered the list, if it was the second stage.
    """
    found = because(context, items)
    if ranker is None or len(items) == 0:
        return [Explanation(each) for each in found]
    matrix = compute(context, items)
    weights = ranker.contributions(matrix)
    return [
        Explanation(
            each,
            _reasons(
                _Listed(context, movies, int(item), each, dict(zip(FEATURES, values, strict=True))),
                dict(zip(FEATURES, row, strict=True)),
            ),
        )
        for each, item, values, row in zip(found, items, matrix.tolist(), weights.tolist(), strict=True)
    ]


def because(context: Context, items: NDArray[np.int64]) -> list[tuple[tuple[int, float], ...]]:
    """Return for each item the liked movies that contribute most to its ALS score, and how much."""
    if len(context.liked) == 0 or len(items) == 0:
        return [()] * len(items)
    divided = context.contributions(items)  # (n, n_liked)
    best = np.argsort(-divided, axis=1, kind="stable")[:, :N_BECAUSE]
    liked = context.liked.item_index
    return [
        tuple((int(liked[place]), float(row[place])) for place in places if row[place] > 0)
        for row, places in zip(divided, best, strict=True)
    ]


@dataclass(frozen=True)
class _Listed:
    """One movie of one list, of which something may be said: where its score comes from, and its features."""

    context: Context
    movies: Movies
    item: int
    because: tuple[tuple[int, float], ...]
    features: Mapping[str, float]

    def nearest(self, table: Ragged, rated: History, divisor: NDArray[np.floating], least: float) -> str | None:
        """Return the title of the rated movie whose row of a table has most of this one, if that is enough.

        Enough is ``least``, and times the row's ``divisor``, which undoes what the table divided by, three people.
        """
        place, column, value = table.gather(rated.item_index)
        enough = (column == self.item) & (value >= least) & (value * divisor[place] >= _N_PEOPLE)
        here = np.flatnonzero(enough)
        return self.movies[int(rated.item_index[place[here[value[here].argmax()]]])].title if len(here) else None


def _reasons(listed: _Listed, weights: Mapping[str, float]) -> tuple[str, ...]:
    """Return the reasons whose features speak most for a movie, each only if it is true."""
    in_favour = {
        prefixes: sum(weight for name, weight in weights.items() if name.startswith(prefixes)) for prefixes in _SAYINGS
    }
    heaviest = [
        prefixes for prefixes in sorted(in_favour, key=lambda each: -in_favour[each]) if in_favour[prefixes] > 0
    ]
    said = (_SAYINGS[prefixes](listed) for prefixes in heaviest)
    return tuple(reason for reason in said if reason)[:N_REASONS]


def _watched_near(listed: _Listed) -> str | None:
    tables, recent = listed.context.tables, listed.context.recent
    n_counted = tables.n_counted[recent.item_index].astype(np.float64)
    if title := listed.nearest(tables.after, recent, n_counted + AFTER_PRIOR, _OFTEN):
        return f"often watched right after {title}"
    title = listed.nearest(tables.around, recent, n_counted + AROUND_PRIOR, _OFTEN)
    return f"often watched around {title}" if title else None


def _close_to_liked(listed: _Listed) -> str | None:
    found = listed.because
    if not found or found[0][1] < _MUCH_OF_SCORE * listed.context.als_scores[listed.item]:
        return None
    return f"close to {listed.movies[found[0][0]].title}, which you like"


def _rated_by_the_same(listed: _Listed) -> str | None:
    tables, liked = listed.context.tables, listed.context.recent_liked
    both = np.sqrt(tables.n_rated[liked.item_index] * float(tables.n_rated[listed.item]))
    title = listed.nearest(tables.together, liked, both, _MUCH_TOGETHER)
    return f"seen by many who have seen {title}" if title else None


def _genre(listed: _Listed) -> str | None:
    """Name the movie's genre that the user rates furthest above their own mean; else one of what they liked last."""
    context, names = listed.context, listed.context.tables.genre_names
    genres, history = context.tables.genres, context.query.history
    own = np.flatnonzero(genres[listed.item])
    n_rated = genres[history.item_index][:, own].sum(axis=0)
    above = (history.rating - history.rating.mean()) @ genres[history.item_index][:, own]
    mean_above = np.where(n_rated >= _MIN_GENRE_RATINGS, above / np.maximum(n_rated, 1), 0.0)
    if len(own) and mean_above.max() >= _ABOVE_OWN_MEAN:
        is_high = history.rating.mean() + mean_above.max() >= context.knowledge.min_rating
        return f"{names[own[mean_above.argmax()]]}, which you rate {'highly' if is_high else 'above your average'}"
    last = context.liked.last(3)
    shared = own[genres[last.item_index][:, own].all(axis=0)] if len(last) else own[:0]
    return f"{names[shared[0]]}, like what you liked last" if len(shared) else None


def _year(listed: _Listed) -> str | None:
    context, year = listed.context, listed.movies[listed.item].year
    last = context.query.history.last(5)
    years = context.tables.year[last.item_index]
    if year is None or np.isnan(years).any() or np.abs(years - year).max() > _NEAR_YEARS:
        return None
    return f"from {year}, within {_NEAR_YEARS} years of what you rated last"


def _title(listed: _Listed) -> str | None:
    words = set(title_words(listed.movies[listed.item].title))
    shared = [
        (len(words & set(title_words(other.title))), other.title)
        for other in (listed.movies[int(item)] for item in listed.context.recent.item_index)
    ]
    n_shared, title = max(shared, default=(0, ""))
    return f"a title like {title}" if n_shared >= max(1, len(words) / 2) else None


def _well_rated(listed: _Listed) -> str | None:
    tables, first = listed.context.tables, listed.item << 32
    start, stop = np.searchsorted(tables.timeline, [first, first + listed.context.known_moment])
    total = float(tables.timeline_total[stop] - tables.timeline_total[start])
    better = total > (stop - start) * tables.typical[0]
    return f"rated {total / (stop - start):.1f} on average" if better and stop - start >= _N_PEOPLE else None


def _much_rated(listed: _Listed) -> str | None:
    n_year = round(float(np.expm1(listed.features["rated_last_year"])))
    return f"rated by {n_year:,} people within a year" if n_year >= 10 else None


# What a group of features, by the beginnings of their names, can be put into; groups without words stay silent.
_SAYINGS: dict[tuple[str, ...], Callable[[_Listed], str | None]] = {
    ("around", "after"): _watched_near,
    ("als", "plain", "cosine"): _close_to_liked,
    ("together",): _rated_by_the_same,
    ("genres",): _genre,
    ("year", "age"): _year,
    ("title",): _title,
    ("mean_before",): _well_rated,
    ("rated", "trend", "popularity"): _much_rated,
}
