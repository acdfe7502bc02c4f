"""How two versions differ, as the same users would see it: one list from each, side by side.

``Recommender + Recommender ─▶ compare ─▶ ShadowReport ─▶ cli``. It says how much changes for whom, not which version
is better: that takes held-out ratings (``evaluation``, ``promotion``). Nothing is served, written or logged here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.core import UNKNOWN, IdMap
from app.errors import ConfigError
from app.recommender import ListSource, Recommender

DEPTH = 100  # how far down the ranks are compared, and the longest list that the service gives
N_MOVED = 10  # movies that are named for having gained, or lost, most


@dataclass(frozen=True)
class Shared:
    """How many ids only A holds, only B, and both."""

    a_only: int
    b_only: int
    both: int


@dataclass(frozen=True)
class Side:
    """One version in the comparison; ``sources`` counts the sampled lists by what ordered them."""

    version: str
    n_users: int
    n_movies: int
    has_ranker: bool
    sources: dict[str, int]
    coverage: float | None


@dataclass(frozen=True)
class Drift:
    """Scores of B less those of A, where both lists have one source and hold the movie."""

    mean: float
    mean_absolute: float
    n_scores: int
    n_users: int


@dataclass(frozen=True)
class Exposure:
    """One movie's share of the sampled lists in A and in B, and which catalogues it is in."""

    movie_id: int
    title: str
    a: float
    b: float
    difference: float
    in_a: bool
    in_b: bool


@dataclass(frozen=True)
class ShadowReport:
    """What differs between A and B; ``DEFINITIONS`` states each measure, and undefined ones are None.

    ``overlap`` and ``identical`` are of the first ``k``; ``rank_correlation`` is a mean over ``n_correlated`` users;
    ``score_drift`` is by source, None where no two scores can be compared.
    """

    a: Side
    b: Side
    users: Shared
    movies: Shared
    k: int
    random_state: int
    n_sampled: int
    overlap: float | None
    identical: float | None
    rank_correlation: float | None
    n_correlated: int
    score_drift: dict[str, Drift] | None
    gained: tuple[Exposure, ...]
    lost: tuple[Exposure, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON holds it, with the definition of each measure."""
        return {**asdict(self), "definitions": dict(DEFINITIONS)}


DEFINITIONS = {
    "n_sampled": "users that both versions know: all of them, or a random sample without replacement by random_state",
    "lists": (
        "each version answers by default, with its second stage where it has one, from the ratings that it was trained "
        "on itself, and never lists what a user has rated there"
    ),
    "overlap": (
        "mean over sampled users of |A ∩ B| / max(|A|, |B|) of the first k movies of each, so that the longer list "
        "counts where fewer than k are left; 1 where both are empty"
    ),
    "identical": "share of sampled users whose first k movies are the same in the same order",
    "rank_correlation": (
        f"Kendall's τ between the places of the movies that both have among their first {DEPTH}: the share of pairs in "
        "the same order less the share in opposite order; mean over n_correlated users, who share at least two movies"
    ),
    "score_drift": (
        "score in B less score in A of the movies in both first-k lists, mean and mean absolute value over n_scores "
        "(user, movie); by source, and only of users whose source is the same in both: other scores have other units"
    ),
    "sources": "sampled lists by what ordered them: als, ranker, or popular for users without positives",
    "coverage": "distinct movies among the first k of all sampled lists / movies in the version's catalogue",
    "exposure": (
        f"share of sampled lists whose first k hold a movie; gained and lost are the {N_MOVED} greatest changes of it, "
        "B less A, equal ones by movie_id; in_a and in_b tell whether the catalogue holds it at all"
    ),
}


@dataclass(frozen=True)
class _List:
    """What one version answers one user: ids and scores, best first, at most ``DEPTH``."""

    source: ListSource
    movie_ids: NDArray[np.int64]
    scores: NDArray[np.float32]


_Pairs = Sequence[tuple[_List, _List]]


def compare(
    a: Recommender,
    b: Recommender,
    n_users: int = 500,
    k: int = 10,
    random_state: int = 42,
    on_user: Callable[[], object] = lambda: None,
) -> ShadowReport:
    """Ask two versions for the lists of the same users, and measure how these differ.

    Parameters
    ----------
    a, b : Recommender
        The version that is, and the one that might take its place; differences are B less A.
    n_users : int
        Size of the sample, at least 1; all users that both know if there are fewer.
    k : int
        Length of the lists that people see, 1 to 100.
    random_state : int
        Seed of the sample, at least 0.
    on_user : callable
        Called after each user, for a progress bar.

    Raises
    ------
    ConfigError
        If an argument is outside its range.

    References
    ----------
    Kendall, "A New Measure of Rank Correlation" (Biometrika, 1938).
    """
    _check(n_users, k, random_state)
    pairs = []
    for user_id in _sample(a, b, n_users, random_state).tolist():
        pairs.append((_answer(a, user_id), _answer(b, user_id)))
        on_user()
    taus = [tau for one, other in pairs if (tau := _correlate(one, other)) is not None]
    gained, lost = _find_moved(a, b, pairs, k)
    return ShadowReport(
        a=_describe(a, [one for one, _ in pairs], k),
        b=_describe(b, [other for _, other in pairs], k),
        users=_share(a.model.users, b.model.users),
        movies=_share(a.model.items, b.model.items),
        k=k,
        random_state=random_state,
        n_sampled=len(pairs),
        overlap=_mean([_overlap(one.movie_ids[:k], other.movie_ids[:k]) for one, other in pairs]),
        identical=_mean([np.array_equal(one.movie_ids[:k], other.movie_ids[:k]) for one, other in pairs]),
        rank_correlation=_mean(taus),
        n_correlated=len(taus),
        score_drift=_measure_drift(pairs, k),
        gained=gained,
        lost=lost,
    )


def _check(n_users: int, k: int, random_state: int) -> None:
    if n_users < 1:
        raise ConfigError(f"the number of users to compare is {n_users}; expected a whole number, at least 1")
    if not 1 <= k <= DEPTH:
        raise ConfigError(f"k is {k}; expected 1 to {DEPTH}, the lengths of list that the service gives")
    if random_state < 0:
        raise ConfigError(f"the seed is {random_state}; expected a whole number, at least 0")


def _sample(a: Recommender, b: Recommender, n_users: int, random_state: int) -> NDArray[np.int64]:
    """Return ids of at most ``n_users`` users whom both know, rising; the same whichever version comes first."""
    both = np.intersect1d(a.model.users.ids, b.model.users.ids, assume_unique=True)
    if len(both) <= n_users:
        return both
    return np.sort(np.random.default_rng(random_state).choice(both, n_users, replace=False))


def _answer(recommender: Recommender, user_id: int) -> _List:
    ranking = recommender.recommend(user_id, DEPTH)  # its first k are the list of k
    return _List(ranking.source, recommender.model.items.ids[ranking.item_indices], ranking.scores)


def _share(a: IdMap, b: IdMap) -> Shared:
    n_both = len(np.intersect1d(a.ids, b.ids, assume_unique=True))
    return Shared(len(a) - n_both, len(b) - n_both, n_both)


def _describe(recommender: Recommender, lists: Sequence[_List], k: int) -> Side:
    model = recommender.model
    shown = {movie_id for of in lists for movie_id in of.movie_ids[:k].tolist()}
    return Side(
        version=model.version,
        n_users=len(model.users),
        n_movies=len(model.items),
        has_ranker=recommender.ranker is not None,
        sources=dict(sorted(Counter(of.source for of in lists).items())),
        coverage=len(shown) / len(model.items) if lists and len(model.items) else None,
    )


def _overlap(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    """Return |A ∩ B| / max(|A|, |B|), 1 for two empty lists."""
    longer = max(len(a), len(b))
    return len(np.intersect1d(a, b, assume_unique=True)) / longer if longer else 1.0


def _correlate(one: _List, other: _List) -> float | None:
    """Return Kendall's τ between the places of the movies that both list, None for fewer than two."""
    from scipy import stats  # slow to load, and only a comparison needs it

    shared, places_a, places_b = np.intersect1d(one.movie_ids, other.movie_ids, assume_unique=True, return_indices=True)
    return float(stats.kendalltau(places_a, places_b).statistic) if len(shared) > 1 else None


def _measure_drift(pairs: _Pairs, k: int) -> dict[str, Drift] | None:
    """Measure by source how scores differ; a mean over log-odds, products and counts at once would mean nothing."""
    found: dict[str, list[NDArray[np.float64]]] = {}
    for one, other in pairs:
        shared, places_a, places_b = np.intersect1d(
            one.movie_ids[:k], other.movie_ids[:k], assume_unique=True, return_indices=True
        )
        if one.source == other.source and len(shared):
            differences = other.scores[places_b].astype(np.float64) - one.scores[places_a]
            found.setdefault(one.source, []).append(differences)
    drifts = {}
    for source, of_users in sorted(found.items()):
        differences = np.concatenate(of_users)
        mean, absolute = float(differences.mean()), float(np.abs(differences).mean())
        drifts[source] = Drift(mean, absolute, len(differences), len(of_users))
    return drifts or None


def _find_moved(
    a: Recommender, b: Recommender, pairs: _Pairs, k: int
) -> tuple[tuple[Exposure, ...], tuple[Exposure, ...]]:
    """Return the movies that gained most exposure, and those that lost most."""
    in_a = Counter(movie_id for one, _ in pairs for movie_id in one.movie_ids[:k].tolist())
    in_b = Counter(movie_id for _, other in pairs for movie_id in other.movie_ids[:k].tolist())
    gains = {movie_id: in_b[movie_id] - in_a[movie_id] for movie_id in in_a | in_b}
    rising = sorted((-gain, movie_id) for movie_id, gain in gains.items() if gain > 0)
    falling = sorted((gain, movie_id) for movie_id, gain in gains.items() if gain < 0)

    def describe(movie_id: int) -> Exposure:
        title_a, title_b = _find_title(a, movie_id), _find_title(b, movie_id)
        return Exposure(
            movie_id=movie_id,
            title=title_b or title_a or "",
            a=in_a[movie_id] / len(pairs),
            b=in_b[movie_id] / len(pairs),
            difference=gains[movie_id] / len(pairs),
            in_a=title_a is not None,
            in_b=title_b is not None,
        )

    gained, lost = (tuple(describe(movie_id) for _, movie_id in of[:N_MOVED]) for of in (rising, falling))
    return gained, lost


def _find_title(recommender: Recommender, movie_id: int) -> str | None:
    """Return a movie's title, None where the catalogue does not hold it."""
    index = int(recommender.model.items.index(movie_id))
    return None if index == UNKNOWN else recommender.model.movies[index].title


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
