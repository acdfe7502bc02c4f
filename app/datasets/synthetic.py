"""Invent ratings that behave like MovieLens, for a machine without data or network and for tests at any size.

What a recommender lives on is there: a long tail of popularity, users with tastes of their own that drift, sessions in
which neighbouring movies resemble each other, ratings that follow taste. Every movie, title and user is invented, so
figures measured on it say nothing about real people. The model behind it, for user u in a session with taste group g:

    P(movie i | g) ∝ popularity_i · exp(1.8 affinity_gi),    rating = μ + user_u + quality_i + affinity_gi / 4 + noise

What was rated just before tells nothing beyond taste, unless ``transitions`` = t > 0 plants it: then within a session

    P(movie i | g, movie j just before) = t · [i ∈ successors_j] / 3 + (1 − t) · P(movie i | g)

where a successor that cannot be rated gives way to another one, and at last to the draw from taste and popularity. A
planted movie suits as well as the one that was drawn in its place (it takes over that movie's affinity), so that it is
liked as often as others are. ``synthetic_transitions`` says what successors are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from app.datasets.movielens import RawData, empty_links
from app.datasets.synthetic_titles import make_titles
from app.datasets.synthetic_transitions import Planter, draw_successors
from app.errors import ConfigError

MIN_RATINGS, MAX_RATINGS = 1_000, 200_000_000
_GENRE_NAMES = (
    "Action Adventure Animation Children Comedy Crime Documentary Drama Fantasy Film-Noir Horror Musical Mystery "
    "Romance Sci-Fi Thriller War Western"
)
GENRES = tuple(_GENRE_NAMES.split())

_MIN_PER_USER = 20  # MovieLens publishes no user with fewer
_MEAN_PER_USER = 165  # as in ml-latest-small
_MEAN_RATING = 3.55  # before rounding; then nearly half of the ratings are 4.0 or more
_N_GROUPS = 24
_TASTE_STRENGTH = 1.8  # with it ALS beats the popular order by as much as on ml-latest-small
_BLOCK_RATINGS = 1 << 19  # users are generated in blocks of about this many ratings: bounds memory, keeps sorts fast
_SESSION_RATINGS = 30
_DAY = 86_400
_FIRST_DAY, _LAST_DAY = 9_500, 17_800  # since 1970: January 1996 to September 2018, as in ml-latest-small
_DAYS_PER_YEAR = 365.2425

Array = NDArray[Any]


@dataclass(frozen=True)
class _Catalogue:
    """What is common to all users; row g of the matrices belongs to taste group g."""

    movies: pd.DataFrame
    year: Array  # (n_movies,)
    quality: Array  # (n_movies,)
    popularity: Array  # (n_movies,), share of the draws over all groups
    affinity: Array  # (n_groups, n_movies), mean 0
    cdf: Array  # (n_groups * n_movies,), group g rises from g to g + 1: one search serves all groups


def synthesize(n_ratings: int = 100_000, random_state: int = 42, transitions: float = 0.0) -> RawData:
    """Invent a data set of exactly `n_ratings` ratings.

    There are max(n_ratings / 165, 1.3·√n_ratings) users with at least 20 ratings each, and min(n_ratings / 10,
    30·√n_ratings) movies, at least 200. Nobody rates a movie twice, or before the year of its release. Rows are ordered
    by user, then time.

    Parameters
    ----------
    n_ratings : int
        At least 1,000.
    random_state : int
        Not negative. The same arguments give identical data with the same version of numpy.
    transitions : float
        Probability, from 0 to below 1, that a rating other than its session's first is of a successor of the movie
        before it; about every seventh of these finds no successor that the user can still rate. Users, movies and
        moments are the same whatever it is, and so is every rated movie that is not planted. With it memory grows by a
        byte for each user of a block and each movie: 100 MB at a million ratings.

    Returns
    -------
    RawData
        Without links and tags, since an invented movie has no page to link to and nobody describes it.

    Raises
    ------
    ConfigError
        An argument is out of range.
    """
    if not MIN_RATINGS <= n_ratings <= MAX_RATINGS:
        raise ConfigError(f"n_ratings is {n_ratings}; expected {MIN_RATINGS:,} to {MAX_RATINGS:,} synthetic ratings")
    if random_state < 0:
        raise ConfigError(f"random_state is {random_state}, expected a whole number from 0; choose another seed")
    if not 0 <= transitions < 1:
        raise ConfigError(f"transitions is {transitions}; expected a probability from 0 to below 1")
    rng = np.random.default_rng(random_state)
    catalogue = _make_catalogue(rng, n_movies=int(max(200, min(n_ratings / 10, 30 * n_ratings**0.5))))
    n_users = max(int(1.3 * n_ratings**0.5), n_ratings // _MEAN_PER_USER)
    activity = _draw_activity(rng, n_users, n_ratings, most=len(catalogue.movies) // 3)
    planter = _make_planter(rng, catalogue, transitions) if transitions else None
    blocks = [_rate(rng, catalogue, planter, first, counts) for first, counts in _blocks(activity)]
    ratings = pd.DataFrame({name: np.concatenate([block.pop(name) for block in blocks]) for name in list(blocks[0])})
    return RawData(ratings, catalogue.movies, empty_links(), _fingerprint(ratings), ())


def _make_planter(rng: np.random.Generator, catalogue: _Catalogue, transitions: float) -> Planter:
    """Draw the successors from a stream of their own: a spawned generator takes nothing from `rng`."""
    (own,) = rng.spawn(1)
    return Planter(own, transitions, draw_successors(own, catalogue.popularity), catalogue.year)


def _blocks(activity: Array) -> Iterator[tuple[int, Array]]:
    """Cut the users into runs of about `_BLOCK_RATINGS` ratings: (first user index, ratings per user)."""
    block = np.cumsum(activity) // _BLOCK_RATINGS
    starts = np.flatnonzero(np.diff(block, prepend=-1))
    for start, stop in zip(starts, [*starts[1:], len(activity)], strict=True):
        yield int(start), activity[start:stop]


def _make_catalogue(rng: np.random.Generator, n_movies: int) -> _Catalogue:
    """Invent movies and how much each taste group likes them."""
    has_genre = _draw_genres(rng, n_movies)
    # Old movies are rare; a good half is out before the first rating, so that early users have something to rate.
    year = rng.permutation(2017 - (90 * np.linspace(0, 1, n_movies, endpoint=False) ** 2.2).astype(np.int64))
    affinity = _draw_affinity(rng, has_genre)
    quality = rng.normal(0, 0.4, n_movies)
    # Movies 1, 2 and 3 are good, popular and not too new: everybody's examples ask for them.
    quality[:3], year[:3] = 1.0, 1990
    rank = np.concatenate([np.arange(3), 3 + rng.permutation(n_movies - 3)])
    # Better movies are seen more; the shift by n / 200 flattens the head as in MovieLens.
    popularity = (rank + 1 + n_movies / 200) ** -1.4 * np.exp(0.8 * quality)
    weight = popularity * np.exp(_TASTE_STRENGTH * affinity)
    share = weight / weight.sum(axis=1, keepdims=True)
    cdf = np.cumsum(share, axis=1) + np.arange(_N_GROUPS)[:, None]
    movie_id = np.sort(rng.choice(20 * n_movies, n_movies, replace=False)) + 1
    movie_id[:3] = 1, 2, 3
    movies = pd.DataFrame(
        {"movie_id": movie_id, "title": make_titles(rng, year), "genres": _join_genres(has_genre)},
    ).astype({"title": "str", "genres": "str"})
    return _Catalogue(movies, year, quality, share.mean(axis=0), affinity, cdf.ravel())


def _draw_genres(rng: np.random.Generator, n_movies: int) -> Array:
    """Give each movie one to three genres: bool (n_movies, 18)."""
    share = 1 / (2 + rng.permutation(len(GENRES)))
    order = np.argsort(rng.exponential(size=(n_movies, len(GENRES))) / share, axis=1)  # weighted, without repeats
    n_genres = rng.choice([1, 2, 3], n_movies, p=[0.3, 0.4, 0.3])
    has_genre = np.zeros((n_movies, len(GENRES)), dtype=bool)
    for place in range(3):
        chosen = np.flatnonzero(n_genres > place)
        has_genre[chosen, order[chosen, place]] = True
    return has_genre


def _draw_affinity(rng: np.random.Generator, has_genre: Array) -> Array:
    """Score how well each movie suits each group: its genres, and a style that genres do not tell."""
    taste = rng.normal(size=(_N_GROUPS, len(GENRES)))
    by_genre = taste @ (has_genre / np.sqrt(has_genre.sum(axis=1, keepdims=True))).T
    style = rng.normal(size=(_N_GROUPS, 8)) @ rng.normal(size=(8, len(has_genre))) / np.sqrt(8)
    affinity: Array = by_genre + style
    return affinity  # (n_groups, n_movies), variance about 2


def _draw_activity(rng: np.random.Generator, n_users: int, n_ratings: int, most: int) -> Array:
    """Draw log-normal numbers of ratings per user, from 20 to `most`, that sum to `n_ratings`."""
    weight = rng.lognormal(0, 1.3, n_users)
    low, high = 0.0, float(n_ratings)
    for _ in range(100):  # bisect the scale at which the capped sum fits
        scale = (low + high) / 2
        fits = np.minimum(_MIN_PER_USER + np.floor(scale * weight), most).sum() <= n_ratings
        low, high = (scale, high) if fits else (low, scale)
    activity: Array = np.minimum(_MIN_PER_USER + np.floor(low * weight), most).astype(np.int64)
    missing = n_ratings - int(activity.sum())
    activity[np.flatnonzero(activity < most)[:missing]] += 1
    return activity


def _rate(
    rng: np.random.Generator, catalogue: _Catalogue, planter: Planter | None, first_user: int, counts: Array
) -> dict[str, Array]:
    """Invent the ratings of a run of users, one array per column."""
    user = np.repeat(np.arange(len(counts)), counts)
    session, timestamp = _draw_sessions(rng, user, counts)
    group = _draw_groups(rng, user, session)[session]
    year = (1970 + timestamp / (_DAY * _DAYS_PER_YEAR)).astype(np.int64)
    drawn = _draw_items(rng, catalogue, user, group, year)
    item = planter.plant(user, session, year, drawn) if planter else drawn
    return {
        "user_id": user + first_user + 1,
        "movie_id": catalogue.movies["movie_id"].to_numpy()[item],
        "rating": _draw_ratings(rng, user, catalogue.quality[item], catalogue.affinity[group, drawn]),
        "timestamp": timestamp,
    }


def _draw_sessions(rng: np.random.Generator, user: Array, counts: Array) -> tuple[Array, Array]:
    """Cut each user's ratings into sessions: session per rating, timestamp per rating (rising within a user)."""
    starts = rng.random(len(user)) < 1 / _SESSION_RATINGS
    starts[np.cumsum(counts) - counts] = True
    session = np.cumsum(starts) - 1
    opening = np.flatnonzero(starts)
    session_user = user[opening]
    # Days between sessions, squeezed where a user's history would outlast 60 % of the years.
    gap = np.where(np.diff(session_user, prepend=-1) != 0, 0, 1 + rng.lognormal(np.log(20), 1.2, len(opening)))
    days = np.bincount(session_user, gap)
    squeeze = np.minimum(1, 0.6 * (_LAST_DAY - _FIRST_DAY) / np.maximum(days, 1))
    first_day = _FIRST_DAY + rng.random(len(counts)) * (_LAST_DAY - _FIRST_DAY - days * squeeze - 1)
    total = np.cumsum(gap)
    day = first_day[session_user] + (total - total[_first_of(session_user)]) * squeeze[session_user]
    # Seconds since the session opened; a fifth of a day at most, so that sessions do not overlap.
    pause = np.floor(rng.exponential(12, len(user))).astype(np.int64)
    clock = np.cumsum(pause)
    seconds = np.minimum(clock - clock[opening][session], _DAY // 5)
    return session, (day * _DAY).astype(np.int64)[session] + seconds


def _first_of(values: Array) -> Array:
    """Return for each position where its run of equal values begins."""
    begins = np.flatnonzero(np.diff(values, prepend=-1))
    return np.repeat(begins, np.diff(begins, append=len(values)))


def _draw_groups(rng: np.random.Generator, user: Array, session: Array) -> Array:
    """Draw the taste group of each session: a user drifts from one taste to a second, with excursions."""
    session_user = user[np.flatnonzero(np.diff(session, prepend=-1))]
    n_sessions = len(session_user)
    tastes = rng.integers(_N_GROUPS, size=(int(user[-1]) + 1, 2))
    position = np.arange(n_sessions) - _first_of(session_user)
    progress = (position + 0.5) / np.bincount(session_user)[session_user]
    second = (rng.random(n_sessions) < 0.1 + 0.8 * progress).astype(np.int64)
    excursion = rng.random(n_sessions) < 0.1
    group: Array = np.where(excursion, rng.integers(_N_GROUPS, size=n_sessions), tastes[session_user, second])
    return group


def _draw_items(rng: np.random.Generator, catalogue: _Catalogue, user: Array, group: Array, year: Array) -> Array:
    """Draw a movie per rating; draw again what the user has rated already, or what was not released yet."""
    n_movies = len(catalogue.year)
    item = np.empty(len(user), dtype=np.int64)
    redraw = np.arange(len(user))
    for attempt in range(1_000):
        item[redraw] = _draw_once(rng, catalogue, group[redraw], uniform=attempt >= 10)
        _, kept = np.unique(user * n_movies + item, return_index=True)
        refused = catalogue.year[item] > year
        refused |= ~np.isin(np.arange(len(user)), kept, assume_unique=True)
        redraw = np.flatnonzero(refused)
        if len(redraw) == 0:
            return item
    raise AssertionError("a user may rate at most a third of the catalogue, so that a free movie is always found")


def _draw_once(rng: np.random.Generator, catalogue: _Catalogue, group: Array, *, uniform: bool) -> Array:
    """Draw one movie per rating by inverse CDF; from the whole catalogue alike where popular ones are used up."""
    n_movies = len(catalogue.year)
    if uniform:
        return rng.integers(n_movies, size=len(group))
    found = np.searchsorted(catalogue.cdf, group + rng.random(len(group)), side="right")
    item: Array = np.clip(found - group * n_movies, 0, n_movies - 1)  # rounding may miss the row by one
    return item


def _draw_ratings(rng: np.random.Generator, user: Array, quality: Array, affinity: Array) -> Array:
    """Rate each movie by its quality and how well it suits, on the half-star scale."""
    n_users = int(user[-1]) + 1
    liking = rng.normal(0, 0.35, n_users)[user] + quality
    liking += affinity / 4 + rng.normal(0, 0.8, len(user))
    liking += _MEAN_RATING - liking.mean()
    step = np.where(rng.random(n_users) < 0.5, 1.0, 0.5)[user]  # many people give whole stars only
    stars: Array = np.clip(np.round(liking / step) * step, 0.5, 5)
    return stars.astype(np.float32)


def _fingerprint(ratings: pd.DataFrame) -> str:
    """Hash the arrays, column by column."""
    digest = hashlib.sha256()
    for name in ratings.columns:
        digest.update(np.ascontiguousarray(ratings[name].to_numpy()).data)
    return digest.hexdigest()


def _join_genres(has_genre: Array) -> list[str]:
    """Write genres as MovieLens does: "Comedy|Drama"."""
    return ["|".join(GENRES[place] for place in np.flatnonzero(row)) for row in has_genre]
