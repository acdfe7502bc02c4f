"""The first stage of one model: the best movies by ALS, the most popular ones, and those that the same people like.

``artifacts.LoadedModel ─▶ FirstStage ─▶ recommender``. All of it in indices. It answers one user and a thousand by the
same computation, so that their lists are the same.
"""

from __future__ import annotations

from concurrent.futures import Executor
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from app.artifacts import LoadedModel
from app.candidates import unit_rows
from app.core import UNKNOWN
from app.filters import EVERYTHING, Filter
from app.history import UserRows
from app.scoring import Best, ExactSearch, Listed, lengths

_NONE = np.empty(0, dtype=np.int64)


class FirstStage:
    """Lists from the arrays of one model.

    Of memory maps numpy makes maps again, slowly; what is used for every request is the same memory as plain arrays.
    """

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.item_factors: NDArray[np.float32] = np.asarray(model.factors.item_factors)
        self.user_factors: NDArray[np.float32] = np.asarray(model.factors.user_factors)
        self.popularity: NDArray[np.float32] = np.asarray(model.movies.popularity)
        self.histories = UserRows(**{name: np.asarray(array) for name, array in vars(model.history).items()})
        self._positives_indptr = np.asarray(model.positives_indptr)
        self._search = ExactSearch(self.item_factors)

    @cached_property
    def _cosines(self) -> ExactSearch:
        length = lengths(self.item_factors).astype(np.float32)
        weights = np.divide(1, length, out=np.zeros_like(length), where=length > 0)
        return ExactSearch(self.item_factors, weights)

    @cached_property
    def _by_popularity(self) -> NDArray[np.int32]:
        """All items, the most popular first, equals by index."""
        return np.argsort(-self.popularity, kind="stable").astype(np.int32)

    def has_positives(self, users: int | NDArray[np.int64]) -> NDArray[np.bool_] | np.bool_:
        """Tell whether a user's factor was learned from anything; if not, their list is the popular one."""
        return self._positives_indptr[users + 1] > self._positives_indptr[users]

    def best_of_user(self, user: int, k: int, wanted: Filter = EVERYTHING) -> Listed:
        """Return the ``k`` best by ALS of one user index, less what they have rated."""
        return self._best_of_user(user, k, self.excluded(wanted), self.of_kind(wanted))

    def _best_of_user(
        self, user: int, k: int, excluded: NDArray[np.int64], allowed: NDArray[np.bool_] | None
    ) -> Listed:
        out = self.histories.item_index[self.histories.indptr[user] : self.histories.indptr[user + 1]]
        if len(excluded):
            out = np.append(out, excluded)
        return self.best(self.user_factors[user], k, out, allowed)

    def best_of_known(
        self, users: NDArray[np.int64], k: int, wanted: Filter = EVERYTHING, pool: Executor | None = None
    ) -> Best:
        """Return the ``k`` best by ALS of each of some user indices, less what they have rated.

        By one product, in threads of the ``pool`` if they are many. Who alone would be answered by the index is here,
        too, so that the lists are the same.
        """
        excluded, allowed = self.excluded(wanted), self.of_kind(wanted)
        by_index = np.zeros(len(users), dtype=np.bool_)
        if self.model.index and allowed is None:
            n_rated = self.histories.indptr[users + 1] - self.histories.indptr[users]
            by_index = self.model.index.suits(k, n_rated + len(excluded))
        by_product = self._best_by_product(users[~by_index], k, excluded, allowed, pool)
        if not by_index.any():
            return by_product
        others = iter(by_product)
        return Best.of(
            [
                self._best_of_user(user, k, excluded, allowed) if alone else next(others)
                for user, alone in zip(users.tolist(), by_index.tolist(), strict=True)
            ]
        )

    def _best_by_product(
        self,
        users: NDArray[np.int64],
        k: int,
        excluded: NDArray[np.int64],
        allowed: NDArray[np.bool_] | None,
        pool: Executor | None,
    ) -> Best:
        rows, items = self.histories.rated_by(users)
        if len(excluded):
            rows = np.append(rows, np.repeat(np.arange(len(users)), len(excluded)))
            order = np.argsort(rows, kind="stable")
            rows, items = rows[order], np.append(items, np.tile(excluded, len(users)))[order]
        return self._search.best(self.user_factors[users], k, (rows, items), allowed, pool)

    def best(
        self,
        user_factor: NDArray[np.float32],
        k: int,
        seen: NDArray[np.integer],
        allowed: NDArray[np.bool_] | None,
    ) -> Listed:
        """Return the ``k`` best by ALS for a factor of shape (factors,), less what was seen and is not allowed.

        Where the version has an index it proposes, unless a filter leaves few of the movies, too much was seen, or the
        list is long.
        """
        found = self._best_by_index(user_factor, k, seen) if allowed is None else None
        return found or self._search.best_of_one(user_factor, k, seen, allowed)

    def _best_by_index(self, user_factor: NDArray[np.float32], k: int, seen: NDArray[np.integer]) -> Listed | None:
        """Return the best of what the index proposes, None where that is not worth it or does not fill the list."""
        index = self.model.index
        if index is None or not index.suits(k, np.array(len(seen))) or not user_factor.any():
            return None
        proposed = np.setdiff1d(index.candidates(user_factor, k + len(seen)), seen)
        return self._search.order_one(user_factor, k, proposed) if len(proposed) >= k else None

    def similar(self, item: int, k: int, wanted: Filter) -> Listed:
        """Return the ``k`` movies whose factors have the largest cosine to this one's; none if its factor is zero."""
        direction, allowed = unit_rows(self.item_factors[[item]])[0], self.of_kind(wanted)
        if not direction.any():
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
        out = np.append(self.excluded(wanted), item)
        return self._cosines.best_of_one(direction, k, out, allowed)

    def most_popular(self, k: int, out: NDArray[np.integer], allowed: NDArray[np.bool_] | None) -> Listed:
        """Return the ``k`` movies with the most positives, less those that are ``out`` and those not allowed."""
        left = np.ones(len(self.popularity), dtype=bool) if allowed is None else allowed.copy()
        left[out] = False
        items = self._by_popularity[left[self._by_popularity]][:k].astype(np.int64)
        return items, self.popularity[items]

    def of_kind(self, wanted: Filter) -> NDArray[np.bool_] | None:
        """Return which movies a filter allows by genre and year, of shape (n_items,), or None if all."""
        return wanted.of_kind(self.model.movies)

    def excluded(self, wanted: Filter) -> NDArray[np.int64]:
        """Return the item indices that a filter excludes by id; other ids are not in the catalogue anyway."""
        if not wanted.exclude:
            return _NONE
        found = self.model.items.index(wanted.exclude)
        known: NDArray[np.int64] = found[found != UNKNOWN]
        return known

    def allowed(self, wanted: Filter) -> NDArray[np.bool_] | None:
        """Return which movies a filter allows in every respect, of shape (n_items,), or None if all."""
        allowed = self.of_kind(wanted)
        if wanted.exclude:
            allowed = np.ones(len(self.popularity), dtype=bool) if allowed is None else allowed
            allowed[self.excluded(wanted)] = False
        return allowed
