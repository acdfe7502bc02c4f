"""What the second stage knows about a movie and a request: one definition of each feature, for training and serving.

``Context + items ─▶ compute ─▶ ranker``. To add a feature, write a function below that returns its column and name it
in the decorator: training, serving, the report and the check at load take it from there. A feature may depend on the
request and on what was counted before it, never on which other movies are candidates. A candidate is never a movie that
the user has rated, so no count or mean of it holds a rating of theirs. "The last n" of ratings, or of positives, are
those with fewer than n strictly later ones, so that ties are in together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.candidates import Context, spread
from app.core import UNKNOWN
from app.errors import ArtifactError
from app.history import History
from app.tables import Ragged

Items = NDArray[np.int64]
Column = NDArray[np.floating] | float
"""Of shape (n,), one value for each item, or one value for all of them; NaN where nothing is known."""

_MONTH, _YEAR = 30 * 86_400, 365.25 * 86_400  # seconds
_LAST = (1, 3, 5, 10)
_FEW = 5  # ratings that a mean over few is drawn towards the mean of all by


@dataclass(frozen=True)
class _Group:
    names: tuple[str, ...]
    columns: Callable[[Context, Items], Sequence[Column]]


DEFINITIONS: dict[str, str] = {}
_GROUPS: list[_Group] = []


def _defines(**definitions: str) -> Callable[[Callable[[Context, Items], Sequence[Column]]], None]:
    """Name and define the columns that a function returns, in its order."""

    def register(function: Callable[[Context, Items], Sequence[Column]]) -> None:
        assert not definitions.keys() & DEFINITIONS.keys()
        DEFINITIONS.update(definitions)
        _GROUPS.append(_Group(tuple(definitions), function))

    return register


def compute(context: Context, items: Items) -> NDArray[np.float32]:
    """Compute every feature of some movies for one request.

    Parameters
    ----------
    context : Context
        With at least one positive in its history.
    items : ndarray of shape (n,), int64
        Item indices that the user has not rated.

    Returns
    -------
    ndarray of shape (n, n_features), float32
        Columns in the order of ``DEFINITIONS``; NaN where nothing is known.
    """
    matrix = np.empty((len(DEFINITIONS), len(items)), dtype=np.float32)
    row = 0
    for group in _GROUPS:
        for column in group.columns(context, items):
            matrix[row] = column
            row += 1
    return matrix.T


def features_hash() -> str:
    """Return the SHA-256 of all names and definitions, in order: a ranker is of use to the same features only."""
    return hashlib.sha256(json.dumps(list(DEFINITIONS.items())).encode()).hexdigest()


def require_same_features(names: Sequence[str], stated_hash: str | None = None) -> None:
    """Raise ArtifactError unless a ranker was trained on the features that this release computes.

    Parameters
    ----------
    names : sequence of str
        Of its features, in order.
    stated_hash : str, optional
        Their ``features_hash``, which names their definitions, too.
    """
    known = list(DEFINITIONS)
    if list(names) == known and stated_hash in (None, features_hash()):
        return
    differing = sorted(set(names) ^ set(known)) or ["their order or definitions"]
    raise ArtifactError(
        f"the ranker was trained on other features ({', '.join(differing[:5])}); expected the {len(known)} of this "
        "release. Train again: python train_als.py --ranker"
    )


@_defines(
    als_score="xᵀy with the recency-weighted user factor",
    als_rank="log(1 + movies, not rated yet, with a higher als_score)",
    plain_score="xᵀy with the user factor in which all positives count alike",
    plain_rank="log(1 + movies, not rated yet, with a higher plain_score)",
)
def _als(context: Context, items: Items) -> Sequence[Column]:
    recent, plain = context.als_scores, context.plain_scores
    return recent[items], _log_rank(recent, items), plain[items], _log_rank(plain, items)


def _log_rank(scores: NDArray[np.float32], items: Items) -> Column:
    rising = np.sort(scores)
    return np.log1p(len(scores) - np.searchsorted(rising, scores[items], side="right"))


@_defines(
    around_recent="Σ ½^(n/3) around(movie rated, candidate) over the last 10 ratings; n: strictly later ratings",
    around_rank="log(1 + movies, not rated yet, with a higher around_recent)",
    around_lift="around_recent / √(all ratings of the candidate + 5)",
    around_last="mean around(movie rated, candidate) over the last rating",
    around_liked="Σ ½^(n/3) around(movie liked, candidate) over the last 10 positives; n: strictly later positives",
)
def _around(context: Context, items: Items) -> Sequence[Column]:
    recent, table = context.around_scores, context.tables.around
    last = _means_over_last(table, context.recent, (1,), context, items)[0]
    liked = context.recent_liked
    by_liked = spread(table, liked.item_index, 0.5 ** (liked.n_later / 3))[items]
    lift = recent[items] / np.sqrt(context.tables.n_rated[items] + 5)
    return recent[items], _log_rank(recent, items), lift, last, by_liked


@_defines(
    after_recent="Σ ½^(n/3) after(movie rated, candidate) over the last 10 ratings; n: strictly later ratings",
    after_last="mean after(movie rated, candidate) over the last rating",
)
def _after(context: Context, items: Items) -> Sequence[Column]:
    table = context.tables.after
    recent = spread(table, context.recent.item_index, context.recent_weight)[items]
    return recent, _means_over_last(table, context.recent, (1,), context, items)[0]


@_defines(
    **{f"together_{n}": f"mean together(movie liked, candidate) over the last {n} positives" for n in _LAST},
    together_recent="Σ ½^(n/3) together(movie rated, candidate) over the last 10 ratings; n: strictly later ratings",
)
def _together(context: Context, items: Items) -> Sequence[Column]:
    table = context.tables.together
    recent = spread(table, context.recent.item_index, context.recent_weight)[items]
    return *_means_over_last(table, context.recent_liked, _LAST, context, items), recent


def _means_over_last(
    table: Ragged, rated: History, lasts: Sequence[int], context: Context, items: Items
) -> list[NDArray[np.float64]]:
    """Return for each n the mean of a table's values over the last n ratings."""
    column_of = np.full(context.tables.n_items, UNKNOWN)
    column_of[items] = np.arange(len(items))
    place, index, value = table.gather(rated.item_index)
    column = column_of[index]
    asked = column != UNKNOWN
    found = np.zeros((len(rated), len(items)))
    found[place[asked], column[asked]] = value[asked]
    return list(_last_weights(rated, lasts) @ found)


def _last_weights(rated: History, lasts: Sequence[int]) -> NDArray[np.float64]:
    """Return the weights, (n_lasts, n_rated), that take the mean over the last n of the ratings."""
    is_among = rated.n_later < np.array(lasts)[:, None]
    weights: NDArray[np.float64] = is_among / is_among.sum(axis=1, keepdims=True)
    return weights


@_defines(
    **{f"cosine_{n}": f"mean cosine of the item factors to the last {n} positives" for n in _LAST},
    cosine_most="the largest cosine to one of the last 10 positives",
)
def _cosine(context: Context, items: Items) -> Sequence[Column]:
    directions, liked = context.knowledge.directions, context.recent_liked
    cosines = directions(liked.item_index) @ directions(items).T  # (n_liked, n)
    return *(_last_weights(liked, _LAST) @ cosines), cosines.max(axis=0)


@_defines(
    genres_liked="cosine of the candidate's genres to the number of positives by genre; 0 without genres",
    genres_recent="genres_liked, of the last 5 positives alone",
    genres_last="genres_liked, of the last 3 ratings",
    genres_rated="mean over the candidate's genres of Σ (rating − the user's mean) / (ratings + 3)",
)
def _genres(context: Context, items: Items) -> Sequence[Column]:
    genres, history = context.tables.genres, context.query.history
    asked, rated = genres[items], genres[history.item_index]
    length = np.maximum(np.sqrt(asked.sum(axis=1)), 1.0)

    def like(chosen: History) -> NDArray[np.float32]:
        profile = genres[chosen.item_index].sum(axis=0)
        cosine: NDArray[np.float32] = (asked @ profile) / (length * max(float(np.linalg.norm(profile)), 1e-9))
        return cosine

    taste = ((history.rating - history.rating.mean()) @ rated) / (rated.sum(axis=0) + 3)
    return (
        like(context.liked),
        like(context.liked.last(5)),
        like(history.last(3)),
        (asked @ taste) / np.maximum(asked.sum(axis=1), 1),
    )


@_defines(
    year="year of release; NaN if unknown, as are the others from it",
    age="years from the release to the request, or to the last rating that the model knows",
    year_from_last="|year − mean year of the last rating|",
    year_from_recent="year − mean year of the last 5 ratings",
    year_from_liked="year − mean year of all positives",
)
def _years(context: Context, items: Items) -> Sequence[Column]:
    years, history = context.tables.year, context.query.history
    year = years[items]

    def mean_year(rated: History) -> float:
        known = years[rated.item_index]
        known = known[~np.isnan(known)]
        return float(known.mean()) if len(known) else float("nan")

    last, recent = mean_year(history.last(1)), mean_year(history.last(5))
    age = 1970 + context.known_moment / _YEAR - year
    return year, age, np.abs(year - last), year - recent, year - mean_year(context.liked)


Terms = tuple[NDArray[np.int64], NDArray[np.integer], NDArray[np.floating]]
"""Weighted terms of some items: the place of the item, the term, its weight; each item's weights have length 1."""


@_defines(
    title="cosine of the title's words to those of the last 10 ratings, TF-IDF; 0 without words",
    tags="cosine of the tags to those of the last 10 positives, TF-IDF, without the user's own (but how rare a tag is "
    "counts everybody's); 0 without tags",
)
def _texts(context: Context, items: Items) -> Sequence[Column]:
    tables, n = context.tables, len(items)
    words = _profile_cosine(n, tables.words.gather(items), tables.words.gather(context.recent.item_index))
    liked = context.recent_liked.item_index
    return words, _profile_cosine(n, _tag_weights(context, items), _tag_weights(context, liked))


def _profile_cosine(n: int, asked: Terms, profile: Terms) -> Column:
    """Return the cosine of each of ``n`` items to the sum of the profile's items, 0 without a common term."""
    _, profile_term, profile_weight = profile
    if len(profile_term) == 0 or len(asked[1]) == 0:
        return 0.0
    total = np.bincount(profile_term, profile_weight, minlength=int(asked[1].max()) + 1)
    length = float(np.linalg.norm(total))
    return np.bincount(asked[0], asked[2] * total[asked[1]], minlength=n) / length if length > 0 else 0.0


def _tag_weights(context: Context, items: NDArray[np.integer]) -> Terms:
    """Weigh the tags of some items by TF-IDF, tf = log(1 + users who gave it, the one who asks left out)."""
    tables = context.tables
    place, tag, n_users = tables.tags.gather(items)
    user, n_tags = context.query.user_index, len(tables.tag_idf)
    if user != UNKNOWN and tables.tags_of_user.indptr[user] < tables.tags_of_user.indptr[user + 1]:
        own = tables.tags_of_user.gather(np.array([user]))[1]
        n_users = n_users - np.isin(items[place].astype(np.int64) * n_tags + tag, own)
    weight = np.log1p(n_users) * tables.tag_idf[tag]
    length = np.sqrt(np.bincount(place, weight**2, minlength=len(items)))
    return place, tag, np.divide(weight, length[place], out=np.zeros_like(weight), where=length[place] > 0)


@_defines(
    rated_before="log(1 + ratings of the candidate before the request, as far as the tables know)",
    rated_last_year="log(1 + ratings in the year before the request)",
    rated_last_month="log(1 + ratings in the 30 days before the request)",
    trend="(ratings in the year before + 1) / (ratings before + 5)",
    mean_before="(sum of the ratings before the request + 5 · mean of all) / (ratings before + 5)",
    popularity_of_recent="mean of rated_before over the last 10 ratings of the user",
    popularity_from_recent="rated_before − popularity_of_recent",
)
def _popularity(context: Context, items: Items) -> Sequence[Column]:
    tables, moment = context.tables, context.known_moment
    start, now = _events_before(context, items, 0), _events_before(context, items, moment)
    year = now - _events_before(context, items, moment - _YEAR)
    n = now - start
    total = tables.timeline_total[now] - tables.timeline_total[start]
    rated = context.recent.item_index
    n_of_recent = _events_before(context, rated, moment) - _events_before(context, rated, 0)
    recent = float(np.log1p(n_of_recent).mean())
    return (
        np.log1p(n),
        np.log1p(year),
        np.log1p(now - _events_before(context, items, moment - _MONTH)),
        (year + 1) / (n + 5),
        (total + _FEW * tables.typical[0]) / (n + _FEW),
        recent,
        np.log1p(n) - recent,
    )


def _events_before(context: Context, items: NDArray[np.integer], moment: float) -> NDArray[np.int64]:
    """Return the place in the timeline of each item's first rating at or after a moment."""
    wanted = (items.astype(np.int64) << 32) + max(int(moment), 0)
    return np.searchsorted(context.tables.timeline, wanted)


@_defines(
    n_ratings="log(1 + ratings of the user)",
    mean_rating="mean rating of the user",
    mean_of_last="mean of the user's last 3 ratings",
    share_liked="share of the user's ratings that are positive",
    since_last="log(1 + seconds since the user's last rating), at least 0",
    ratings_last_hour="log(1 + ratings of the user in the hour before the request)",
    pace="log(1 + median seconds between the user's last 20 ratings), the latest by place",
)
def _user(context: Context, _items: Items) -> Sequence[Column]:
    history, moment = context.query.history, context.query.moment
    gaps = np.diff(history.timestamp[-20:])
    return (
        np.log1p(len(history)),
        float(history.rating.mean()),
        float(history.last(3).rating.mean()),
        len(context.liked) / len(history),
        np.log1p(max(moment - int(history.timestamp[-1]), 0)),
        np.log1p(np.count_nonzero(history.timestamp > moment - 3_600)),
        np.log1p(float(np.median(gaps))) if len(gaps) else float("nan"),
    )


FEATURES: tuple[str, ...] = tuple(DEFINITIONS)
