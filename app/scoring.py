"""The best movies by inner product, exactly and fast: float32 proposes, float64 decides.

``factors ─▶ ExactSearch ─▶ recommender``. The last bits of a float32 product depend on the shape of the block
and the threads of the BLAS, and with them the order of nearly equal scores. So a float32 product of the whole catalogue
only finds out which few movies can be among the best; their scores are computed again in float64 and rounded. That is
what evaluation ranks by, and it is the same for one user, for a thousand at once, and for the candidates of an index.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import pairwise
from threading import local

import numpy as np
from numpy.typing import NDArray

from app.ranking import EXCLUDED

Listed = tuple[NDArray[np.int64], NDArray[np.float32]]  # item indices, best first, and their scores

_BINS_PER_PLACE = 8  # so that two of the best rarely share a bin, and little more than k has to be scored again
_MIN_BINS = 256  # fewer do not make it faster
_MOST_SCRATCH = 2**21  # scores
_PAIRS = 512  # that are scored exactly at a time, in memory that need not be asked for again
_LEAST_ROWS = 16  # of a block, however many items there are
_FEW = 8  # users; OpenBLAS takes as long for 8 together as one after the other, and twice as long for 4
_LOWEST = np.finfo(np.float32).min  # the score that is just above EXCLUDED
_BLOCK_BYTES = 2**22  # of scores: what stays in the cache between the product and the search through it


@dataclass(frozen=True)
class Best:
    """Ragged lists, one for each user: list u is ``slice(indptr[u], indptr[u + 1])``, best first.

    ``item_indices`` int64 and ``scores`` float32 have the same length; scores fall along a list, and equal ones stand
    in the order of their item index.
    """

    indptr: NDArray[np.int64]
    item_indices: NDArray[np.int64]
    scores: NDArray[np.float32]

    @classmethod
    def of(cls, lists: Sequence[Listed]) -> Best:
        """Collect lists."""
        return cls(
            np.cumsum([0, *(len(items) for items, _ in lists)], dtype=np.int64),
            np.concatenate([_NO_ITEMS, *(items for items, _ in lists)]),
            np.concatenate([_NO_SCORES, *(scores for _, scores in lists)]),
        )

    def __iter__(self) -> Iterator[Listed]:
        for start, end in pairwise(self.indptr.tolist()):
            yield self.item_indices[start:end], self.scores[start:end]


class _Scratch(local):
    """Memory that each thread uses again: to be given new pages for every block takes longer than to fill them."""

    scores = np.empty(0, dtype=np.float32)
    is_among = np.empty(0, dtype=np.bool_)

    def space(self, n_rows: int, n_items: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return two arrays of shape (n_rows, n_items), whatever is in them, until the thread's next call."""
        n = n_rows * n_items
        if n > _MOST_SCRATCH:  # not to be kept for good
            return np.empty((n_rows, n_items), dtype=np.float32), np.empty((n_rows, n_items), dtype=np.bool_)
        if n > len(self.scores):
            self.scores, self.is_among = np.empty(n, dtype=np.float32), np.empty(n, dtype=np.bool_)
        return self.scores[:n].reshape(n_rows, n_items), self.is_among[:n].reshape(n_rows, n_items)


class ExactSearch:
    """The movies' factors, ready to be searched for the best.

    Scores are s_ui = x_uᵀ y_i, for ``weights`` w s_ui = w_i x_uᵀ y_i, computed in float64 and rounded to float32.

    Parameters
    ----------
    item_factors : ndarray of shape (n_items, factors), float32
        Y; rows in one piece of memory each.
    weights : ndarray of shape (n_items,), float32, optional
        w, at least 0; all 1 if not given.
    """

    def __init__(self, item_factors: NDArray[np.float32], weights: NDArray[np.float32] | None = None) -> None:
        self.item_factors = item_factors
        self._scratch = _Scratch()
        self.weights = weights
        # By how much two float32 scores may stand in the wrong order: a product of n terms is wrong by at most
        # n·ε·‖x‖‖y‖, whatever the order of summation (Higham, "Accuracy and Stability of Numerical Algorithms", section
        # 3.1), and by the smallest number for each term that is too small for full precision. One term more is for the
        # rounding, one for the weight.
        length, n_terms, float32 = lengths(item_factors), item_factors.shape[1] + 2, np.finfo(np.float32)
        longest = float((length if weights is None else length * weights).max(initial=0))
        heaviest = 1.0 if weights is None else float(weights.max(initial=1))
        self._uncertainty = 2 * n_terms * float(float32.eps) * longest  # of a user of length 1
        self._underflow = 2 * n_terms * float(float32.smallest_subnormal) * heaviest  # of any user

    def best(
        self,
        user_factors: NDArray[np.float32],
        k: int,
        excluded: tuple[NDArray[np.integer], NDArray[np.integer]],
        allowed: NDArray[np.bool_] | None = None,
        pool: Executor | None = None,
    ) -> Best:
        """Return each user's ``k`` best movies, fewer where fewer are left.

        Parameters
        ----------
        user_factors : ndarray of shape (n_users, factors), float32
        k : int
            At least 1.
        excluded : (ndarray of int, ndarray of int)
            Rows of ``user_factors`` and item indices that must not be listed for them, in pairs; rows rise.
        allowed : ndarray of shape (n_items,), bool, optional
            Movies that may be listed at all.
        pool : Executor, optional
            Threads to search blocks of users with, which changes no bit of the result.
        """
        n_rows = max(_LEAST_ROWS, _BLOCK_BYTES // (4 * max(1, len(self.item_factors))))
        rows, items = excluded

        def search(start: int) -> Best:
            here = slice(*np.searchsorted(rows, [start, start + n_rows]).tolist())
            block = user_factors[start : start + n_rows]
            return self._best_of_block(block, k, (rows[here] - start, items[here]), allowed)

        starts = range(0, len(user_factors), n_rows)
        return _join(list(pool.map(search, starts) if pool and len(starts) > 1 else map(search, starts)))

    def _best_of_block(
        self,
        user_factors: NDArray[np.float32],
        k: int,
        excluded: tuple[NDArray[np.integer], NDArray[np.integer]],
        allowed: NDArray[np.bool_] | None,
    ) -> Best:
        scores, is_among = self._scratch.space(len(user_factors), len(self.item_factors))
        self._multiply(user_factors, scores)
        if self.weights is not None:
            scores *= self.weights
        rows, items = excluded
        scores.ravel()[rows * scores.shape[1] + items] = EXCLUDED  # in a third of the time that pairs take
        if allowed is not None:
            scores[:, ~allowed] = EXCLUDED
        slack = lengths(user_factors) * self._uncertainty + self._underflow
        least = np.maximum(_lower_bounds(scores, k) - slack, _LOWEST).astype(np.float32)
        np.greater_equal(scores, least[:, None], out=is_among)
        rows, items = np.divmod(np.flatnonzero(is_among), scores.shape[1])
        return self._order(user_factors, k, rows, items)

    def _multiply(self, user_factors: NDArray[np.float32], scores: NDArray[np.float32]) -> None:
        """Write XYᵀ, (n_users, n_items), by products with one user each where BLAS takes longer for a few together."""
        if len(user_factors) >= _FEW:
            np.matmul(user_factors, self.item_factors.T, out=scores)
            return
        for row, user_factor in enumerate(user_factors):
            np.dot(self.item_factors, user_factor, out=scores[row])

    def _order(
        self, user_factors: NDArray[np.float32], k: int, rows: NDArray[np.integer], items: NDArray[np.integer]
    ) -> Best:
        """Score candidates, given by rising rows, exactly, and return the ``k`` best of each row."""
        scores = self._exact(items, user_factors, rows)
        by_score = np.lexsort((items, -scores, rows))
        starts = np.searchsorted(rows, np.arange(len(user_factors) + 1))
        place = np.arange(len(rows)) - starts[rows]  # within its list, since by_score keeps the rows where they are
        kept = by_score[place < k]
        indptr = np.concatenate([[0], np.cumsum(np.minimum(np.diff(starts), k))])
        return Best(indptr, items[kept], scores[kept])

    def best_of_one(
        self,
        user_factor: NDArray[np.float32],
        k: int,
        excluded: NDArray[np.integer],
        allowed: NDArray[np.bool_] | None = None,
    ) -> Listed:
        """Return what ``best`` returns for one user, of shape (factors,), in two thirds of the time."""
        scores = self.item_factors @ user_factor  # (n_items,)
        if self.weights is not None:
            scores *= self.weights
        scores[excluded] = EXCLUDED
        if allowed is not None:
            scores[~allowed] = EXCLUDED
        exact = user_factor.astype(np.float64)
        slack = math.sqrt(exact.dot(exact)) * self._uncertainty + self._underflow
        least = max(float(_lower_bounds(scores[None, :], k)[0]) - slack, float(_LOWEST))
        return self.order_one(user_factor, k, (scores >= np.float32(least)).nonzero()[0])

    def order_one(self, user_factor: NDArray[np.float32], k: int, items: NDArray[np.int64]) -> Listed:
        """Score candidates, given by rising item indices, exactly, and return the ``k`` best."""
        scores = self._exact(items, user_factor[None, :])
        best = (-scores).argsort(kind="stable")[:k]
        return items[best], scores[best]

    def _exact(
        self, items: NDArray[np.integer], user_factors: NDArray[np.float32], rows: NDArray[np.integer] | None = None
    ) -> NDArray[np.float32]:
        """Return the scores of pairs of an item and a row of the users, or of items and the only user."""
        exact = np.empty(len(items))
        for start in range(0, len(items), _PAIRS):  # all of them only where they are all alike
            part = slice(start, start + _PAIRS)
            one = self.item_factors.take(items[part], axis=0).astype(np.float64)
            other = user_factors if rows is None else user_factors.take(rows[part], axis=0)
            np.vecdot(one, other.astype(np.float64), out=exact[part])
        if self.weights is not None:
            exact *= self.weights[items]
        scores: NDArray[np.float32] = exact.astype(np.float32)
        return scores


def lengths(factors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the length of each row; in float32 the squares of 1e-23 and 1e20 would be 0 and infinity."""
    length: NDArray[np.float64] = np.sqrt(np.einsum("ij,ij->i", factors, factors, dtype=np.float64))
    return length


def _lower_bounds(scores: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """Return for each row a score that at least ``k`` items reach, −inf where there are no ``k``.

    The ``k``-th largest of the maxima of bins: each is another item. Reducing over bins costs less than a partition.
    """
    n_rows, n_items = scores.shape
    n_bins = min(max(_MIN_BINS, _BINS_PER_PLACE * k), n_items)
    if n_bins < k:
        return np.full(n_rows, EXCLUDED)
    depth = n_items // n_bins
    maxima = scores[:, : depth * n_bins].reshape(n_rows, depth, n_bins).max(axis=1)
    maxima.partition(n_bins - k, axis=1)
    bounds: NDArray[np.float32] = maxima[:, n_bins - k]
    return bounds


def _join(blocks: list[Best]) -> Best:
    return blocks[0] if len(blocks) == 1 else Best.of([each for block in blocks for each in block])


_NO_ITEMS, _NO_SCORES = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
