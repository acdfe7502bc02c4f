"""What is counted about movies: who follows whom, who is rated together, when they were rated, what they are about.

``UserRows + movies + tags ─▶ MovieTables ─▶ candidates, features, artifacts``. Counted from the same rows that the
factors are fitted on, so that both know the same. Nothing here knows a user's request.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from app.core import UNKNOWN, IdMap
from app.history import UserRows, entries_of

if TYPE_CHECKING:
    import pandas as pd

AROUND, AFTER = 20, 5  # how many places away a rating is still a neighbour, on both sides, or after
AROUND_PRIOR, AFTER_PRIOR = 10, 5  # ratings that a rarely rated movie is given, so that chance is no certainty
MAX_NEIGHBOURS = 500  # that a movie keeps of each kind; on ml-latest-small most have fewer
N_TOGETHER = 200  # that co-occurrence keeps
MAX_COUNTED = 2_000_000  # ratings that neighbours are counted from, the newest: some 2 GB while they are
_WORD = re.compile(r"[^\W_]+")
_STOP_WORDS = frozenset(
    ("a", "an", "and", "at", "de", "der", "die", "for", "from", "in", "la", "le", "of", "on", "the", "to")
)
_YEAR_AT_END = re.compile(r"\s*\([^()]*\d{4}[^()]*\)\s*$")


Entries = tuple[NDArray[np.int64], NDArray[np.integer[Any]], NDArray[np.float32]]
"""Of some rows: which of them each entry belongs to, its column, its value."""


@dataclass(frozen=True)
class Ragged:
    """Sparse rows: row i has ``value`` (float32) at the columns ``index``, from ``indptr[i]`` to ``indptr[i + 1]``."""

    indptr: NDArray[np.int64]
    index: NDArray[np.integer[Any]]
    value: NDArray[np.float32]

    def gather(self, rows: NDArray[np.integer]) -> Entries:
        """Return the entries of some rows: the place in ``rows`` of each, its column, its value."""
        place, entry = entries_of(self.indptr, rows)
        return place, self.index[entry], self.value[entry]


@dataclass(frozen=True)
class MovieTables:
    """What is counted about the movies of a catalogue; the first axis is the item index unless said otherwise.

    Parameters
    ----------
    genres : ndarray of shape (n_items, n_genres), float32
        1 where the movie has the genre; ``genre_names`` are those of the columns, in order.
    year : ndarray of shape (n_items,), float32
        Of release; NaN where none is known.
    around : Ragged, (n_items, n_items)
        Σ 1/d over the pairs in which a user rated the column's movie d ≤ 20 places before or after the row's, divided
        by (ratings of the row's movie + 10).
    after : Ragged, (n_items, n_items)
        How often a user rated the column's movie within 5 places after the row's / (ratings of the row's movie + 5).
    n_counted : ndarray of shape (n_items,), int64
        The ratings of each movie that ``around`` and ``after`` are counted from and divided by: all, or the newest.
    together : Ragged, (n_items, n_items)
        Cosine of the columns of who rated what; the 200 largest of each row.
    words, tags : Ragged, (n_items, n_words) and (n_items, n_tags)
        ``words`` are the TF-IDF weights of the title's words, of length 1. ``tags`` are how many users gave the movie
        the tag; ``tag_idf`` of shape (n_tags,) is log((1 + n_items) / (1 + movies with the tag)).
    tags_of_user : Ragged, (n_users, n_items · n_tags)
        item_index · n_tags + tag of what each user tagged, rising in a row, so that it can be left out.
    timeline : ndarray of shape (n_ratings,), int64
        item_index · 2³² + timestamp of every rating, rising: one search finds how many a movie had at a moment.
    timeline_total : ndarray of shape (n_ratings + 1,), float64
        Sum of the first 0, 1, 2 … ratings of the timeline.
    typical : ndarray of shape (3,), float64
        Mean rating; median over users of their median gap, in seconds; the last timestamp.
    """

    genres: NDArray[np.float32]
    genre_names: NDArray[np.str_]
    year: NDArray[np.float32]
    around: Ragged
    after: Ragged
    n_counted: NDArray[np.int64]
    together: Ragged
    words: Ragged
    tags: Ragged
    tag_idf: NDArray[np.float32]
    tags_of_user: Ragged
    timeline: NDArray[np.int64]
    timeline_total: NDArray[np.float64]
    typical: NDArray[np.float64]

    @property
    def n_items(self) -> int:
        return len(self.year)

    @cached_property
    def n_rated(self) -> NDArray[np.int64]:
        """How many ratings each movie has, (n_items,)."""
        starts = np.arange(self.n_items + 1, dtype=np.int64) << 32
        return np.diff(np.searchsorted(self.timeline, starts))

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return plain arrays by name, those of ragged tables as ``table.part``, as an npz file holds them."""
        flat: dict[str, NDArray[Any]] = {}
        for name, value in ((field.name, getattr(self, field.name)) for field in fields(self)):
            if isinstance(value, Ragged):
                flat |= {f"{name}.{part}": array for part, array in vars(value).items()}
            else:
                flat[name] = value
        return flat

    @classmethod
    def of_arrays(cls, arrays: dict[str, NDArray[Any]]) -> MovieTables:
        """Build the tables from what ``to_arrays`` returned; KeyError where a part is missing."""
        parts = tuple(Ragged.__dataclass_fields__)
        tables: dict[str, Any] = {
            field.name: Ragged(*(np.asarray(arrays[f"{field.name}.{part}"]) for part in parts))
            if field.type == "Ragged"
            else np.asarray(arrays[field.name])  # still the mapped file, less a subclass that is slow to index
            for field in fields(cls)
        }
        return cls(**tables)


def build_tables(
    history: UserRows, users: IdMap, items: IdMap, movies: pd.DataFrame, tags: pd.DataFrame
) -> MovieTables:
    """Count everything.

    Parameters
    ----------
    history : UserRows
        What every user rated and may be counted.
    movies : DataFrame
        ``Dataset.movies``: at least movie_id, title, genres, year of every movie of ``items``.
    tags : DataFrame
        ``Dataset.tags``, those that may be counted.
    """
    movies = movies.set_index("movie_id").reindex(items.ids)
    # As objects: where pyarrow is installed, pandas 3.1 takes its own text apart wrongly.
    genres = movies["genres"].fillna("").astype(object).str.get_dummies("|")
    n_items = len(items)
    newest = _newest(history)
    counts, pairs = np.bincount(newest.item_index, minlength=n_items), _neighbours(newest, n_items)
    tag_counts, tag_idf, tags_of_user = _count_tags(tags, users, items)
    return MovieTables(
        genres=genres.to_numpy(dtype=np.float32),
        genre_names=np.array(list(genres.columns), dtype=np.str_),
        year=movies["year"].to_numpy(dtype=np.float32, na_value=np.nan),
        around=_largest(_per_row(pairs[0] + pairs[0].T, counts + AROUND_PRIOR), MAX_NEIGHBOURS),
        after=_largest(_per_row(pairs[1], counts + AFTER_PRIOR), MAX_NEIGHBOURS),
        n_counted=counts.astype(np.int64),
        together=_rated_together(history, n_items),
        words=_title_words(movies["title"].fillna("").tolist()),
        tags=tag_counts,
        tag_idf=tag_idf,
        tags_of_user=tags_of_user,
        **_timeline(history),
        typical=_typical(history),
    )


def _newest(history: UserRows) -> UserRows:
    """Keep the newest ratings where there are more than can be counted."""
    if len(history.timestamp) <= MAX_COUNTED:
        return history
    is_newest = np.zeros(len(history.timestamp), dtype=bool)
    is_newest[np.argsort(history.timestamp, kind="stable")[-MAX_COUNTED:]] = True
    return history.where(is_newest)


def _neighbours(history: UserRows, n_items: int) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Count pairs (earlier, later) of one user's ratings: weighted by 1/d up to ``AROUND`` places, and to ``AFTER``."""
    user, item = history.user_index, history.item_index
    pairs = []
    for places in range(1, AROUND + 1):
        same = user[places:] == user[:-places]
        pairs.append((item[:-places][same], item[places:][same]))
    sizes = [len(earlier) for earlier, _ in pairs]
    earlier, later = (np.concatenate(side) for side in zip(*pairs, strict=True))
    weight = np.repeat(1 / np.arange(1, AROUND + 1), sizes).astype(np.float32)
    shape, n_after = (n_items, n_items), sum(sizes[:AFTER])
    around = sp.csr_matrix((weight, (earlier, later)), shape=shape)
    ones = np.ones(n_after, dtype=np.float32)
    return around, sp.csr_matrix((ones, (earlier[:n_after], later[:n_after])), shape=shape)


def _per_row(matrix: sp.csr_matrix, divisor: NDArray[np.int64]) -> sp.csr_matrix:
    """Divide each row; a movie is no neighbour of itself."""
    divided = matrix.tocsr()
    divided.setdiag(0)
    divided.eliminate_zeros()
    divided.data = (divided.data / np.repeat(divisor, np.diff(divided.indptr))).astype(np.float32)
    return divided


def _largest(matrix: sp.csr_matrix, n: int) -> Ragged:
    """Keep the ``n`` largest values of each row, equal ones by column, in the order of their columns."""
    row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((matrix.indices, -matrix.data, row))
    kept = order[np.arange(len(order)) - matrix.indptr[row] < n]
    kept = kept[np.lexsort((matrix.indices[kept], row[kept]))]
    lengths = np.minimum(np.diff(matrix.indptr), n)
    return _ragged(lengths, matrix.indices[kept], matrix.data[kept])


def _ragged(lengths: NDArray[np.integer], index: NDArray[np.integer], value: NDArray[np.floating]) -> Ragged:
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Ragged(indptr, index.astype(np.int32), value.astype(np.float32))


def _rated_together(history: UserRows, n_items: int) -> Ragged:
    """Take the cosine neighbours from implicit, whose memory is bounded by what is kept."""
    from implicit.nearest_neighbours import CosineRecommender
    from implicit.utils import ParameterWarning

    model = CosineRecommender(K=N_TOGETHER + 1)  # one of them is the movie itself
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", ParameterWarning)  # about a matrix that it makes itself
        model.fit(history.matrix(np.ones(len(history.item_index)), n_items), show_progress=False)
    similarity = model.similarity.tocsr()
    similarity.data = np.nan_to_num(similarity.data, nan=0.0)
    similarity.sort_indices()
    return _largest(_per_row(similarity, np.ones(n_items, dtype=np.int64)), N_TOGETHER)


def title_words(title: str) -> list[str]:
    """Return what a title is compared by: its words in lower case, without the year and without articles."""
    return [word for word in _WORD.findall(_YEAR_AT_END.sub("", title).casefold()) if word not in _STOP_WORDS]


def _title_words(titles: list[str]) -> Ragged:
    """Weigh each title's words by TF-IDF, to length 1."""
    words: dict[str, int] = {}
    rows = [sorted({words.setdefault(word, len(words)) for word in title_words(title)}) for title in titles]
    lengths = np.array([len(row) for row in rows])
    index = np.array([word for row in rows for word in row], dtype=np.int64)
    idf = np.log((1 + len(titles)) / (1 + np.bincount(index, minlength=len(words))))
    row = np.repeat(np.arange(len(titles)), lengths)
    length = np.sqrt(np.bincount(row, idf[index] ** 2, minlength=len(titles)))
    return _ragged(lengths, index, idf[index] / np.maximum(length[row], 1e-12))


def _count_tags(tags: pd.DataFrame, users: IdMap, items: IdMap) -> tuple[Ragged, NDArray[np.float32], Ragged]:
    """Count who gave which movie which tag."""
    from app.datasets.movielens import fold_tag

    tags = tags[items.index(tags["movie_id"]) != UNKNOWN]
    names, tag = np.unique(np.array([fold_tag(text) for text in tags["tag"]], dtype=np.str_), return_inverse=True)
    cell = items.index(tags["movie_id"]) * len(names) + tag
    n_items, n_tags = len(items), max(len(names), 1)
    cells, n_users_of = np.unique(cell, return_counts=True)
    counted = _ragged(np.bincount(cells // n_tags, minlength=n_items), cells % n_tags, n_users_of)
    idf = np.log((1 + n_items) / (1 + np.bincount(cells % n_tags, minlength=n_tags))).astype(np.float32)
    user = users.index(tags["user_id"])
    known = np.flatnonzero(user != UNKNOWN)
    known = known[np.lexsort((cell[known], user[known]))]
    own = Ragged(
        np.searchsorted(user[known], np.arange(len(users) + 1)).astype(np.int64),
        cell[known],
        np.ones(len(known), dtype=np.float32),
    )
    return counted, idf, own


def _timeline(history: UserRows) -> dict[str, NDArray[Any]]:
    key = (history.item_index.astype(np.int64) << 32) | history.timestamp
    order = np.argsort(key, kind="stable")
    total = np.concatenate([[0.0], np.cumsum(history.rating[order].astype(np.float64))])
    return {"timeline": key[order], "timeline_total": total}


def _typical(history: UserRows) -> NDArray[np.float64]:
    gaps = [history.of(user).median_gap for user in np.flatnonzero(np.diff(history.indptr) > 1).tolist()]
    return np.array(
        [history.rating.mean(dtype=np.float64), np.median(gaps) if gaps else 0.0, history.timestamp.max()],
        dtype=np.float64,
    )
