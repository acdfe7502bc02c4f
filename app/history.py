"""What each user rated, oldest first: the memory that both stages answer from.

``core.Dataset.ratings ─▶ UserRows ─▶ protocols, tables, artifacts``; a row of it is a user's ``History``, which is what
a request is answered from. Nothing here learns or scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from app.core import UNKNOWN, IdMap, Positives, count_later, strength_of

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class History:
    """What one user rated of the catalogue, oldest first; arrays of one length.

    ``item_index`` int, ``rating`` float32, ``timestamp`` int64 (seconds since 1970).
    """

    item_index: NDArray[np.integer]
    rating: NDArray[np.float32]
    timestamp: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.item_index)

    def last(self, n: int) -> History:
        """Return the last ``n`` rows: those with fewer than ``n`` strictly later ones, so ties are in together."""
        return self.where(self.n_later < n)

    def where(self, kept: NDArray[np.bool_]) -> History:
        """Return the rows where ``kept``, of shape (n,), is true."""
        return History(self.item_index[kept], self.rating[kept], self.timestamp[kept])

    @cached_property
    def n_later(self) -> NDArray[np.int64]:
        """How many rows have a strictly later timestamp, of shape (n,); ties have the same number."""
        return len(self) - np.searchsorted(self.timestamp, self.timestamp, side="right")

    @property
    def median_gap(self) -> int:
        """The median of the seconds between neighbouring rows, 0 where there are fewer than two."""
        return int(np.median(np.diff(self.timestamp))) if len(self) > 1 else 0

    @property
    def next_moment(self) -> int:
        """When the next rating is to be expected: the last timestamp plus the median gap; 0 without a rating."""
        return int(self.timestamp[-1]) + self.median_gap if len(self) else 0


def entries_of(indptr: NDArray[np.integer], rows: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the entries of some ragged rows: the place in ``rows`` of each, and where it stands in the arrays."""
    starts, lengths = indptr[rows], indptr[rows + 1] - indptr[rows]
    place = np.repeat(np.arange(len(rows)), lengths)
    return place, np.arange(len(place)) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)


@dataclass(frozen=True)
class UserRows:
    """Ragged rows, one per user: row u is ``slice(indptr[u], indptr[u + 1])`` of the other arrays.

    ``indptr`` int64 of shape (n_users + 1,), ``item_index`` int32, ``rating`` float32 and ``timestamp`` int64, all of
    the same length, each row oldest first.
    """

    indptr: NDArray[np.int64]
    item_index: NDArray[np.int32]
    rating: NDArray[np.float32]
    timestamp: NDArray[np.int64]

    def of(self, user_index: int) -> History:
        """Return what one user rated."""
        row = slice(self.indptr[user_index], self.indptr[user_index + 1])
        return History(self.item_index[row], self.rating[row], self.timestamp[row])

    def rated_by(self, users: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.integer]]:
        """Return what several users rated, in pairs: places in ``users``, rising, and item indices."""
        place, entry = entries_of(self.indptr, users)
        return place, self.item_index[entry]

    @property
    def user_index(self) -> NDArray[np.int64]:
        """Whose row each entry is, of shape (n,)."""
        return np.repeat(np.arange(len(self.indptr) - 1), np.diff(self.indptr))

    def where(self, kept: NDArray[np.bool_]) -> UserRows:
        """Return the entries where ``kept``, of shape (n,), is true; every user keeps a row, which may be empty."""
        indptr = np.concatenate([[0], np.cumsum(kept)])[self.indptr]
        return UserRows(indptr, self.item_index[kept], self.rating[kept], self.timestamp[kept])

    def n_later(self) -> NDArray[np.int64]:
        """Count for each entry the entries of its row that have a strictly later timestamp; ties have the same."""
        return count_later(self.user_index, self.timestamp)

    def matrix(self, values: NDArray[np.floating], n_items: int) -> sp.csr_matrix:
        """Return ``values``, one for each entry, as a csr_matrix of shape (n_users, n_items), float32, indices sorted.

        No user may have rated a movie twice.
        """
        order = np.lexsort((self.item_index, self.user_index))
        parts = (values[order].astype(np.float32), self.item_index[order], self.indptr.astype(np.int32))
        return sp.csr_matrix(parts, shape=(len(self.indptr) - 1, n_items))


def build_history(ratings: pd.DataFrame, users: IdMap, items: IdMap) -> UserRows:
    """Collect what each user rated, oldest first (stable: ties keep file order), movies outside ``items`` aside."""
    user_index, item_index = users.index(ratings["user_id"]), items.index(ratings["movie_id"])
    timestamp = ratings["timestamp"].to_numpy()
    order = np.lexsort((timestamp, user_index))
    order = order[(item_index[order] != UNKNOWN) & (user_index[order] != UNKNOWN)]
    indptr = np.searchsorted(user_index[order], np.arange(len(users) + 1))
    return UserRows(
        indptr=indptr.astype(np.int64),
        item_index=item_index[order].astype(np.int32),
        rating=ratings["rating"].to_numpy(dtype=np.float32)[order],
        timestamp=timestamp[order],
    )


def widen_rows(history: UserRows, rows: NDArray[np.int64], n_users: int) -> UserRows:
    """Give a history a row for each of ``n_users``: its own become ``rows``, which rise, and the others are empty."""
    lengths = np.zeros(n_users, dtype=np.int64)
    lengths[rows] = np.diff(history.indptr)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    return UserRows(indptr, history.item_index, history.rating, history.timestamp)


def positives_of(history: UserRows, n_items: int, min_rating: float) -> Positives:
    """Return the positives of a history, as ``core.build_positives`` builds them from a table."""
    liked = history.where(history.rating >= min_rating)
    order = np.lexsort((liked.item_index, liked.user_index))
    return Positives(
        user_items=liked.matrix(np.ones(len(liked.item_index)), n_items),
        strength=strength_of(liked.rating.astype(np.float64), min_rating)[order].astype(np.float32),
        n_later=liked.n_later()[order].astype(np.int32),
    )
