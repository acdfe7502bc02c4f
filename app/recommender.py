"""One loaded model that answers queries: which movies, in which order, by which source.

``artifacts.LoadedModel ─▶ Recommender ─▶ routers``. Immutable, so any number of requests may use it at once, and a
new version is a new object. It speaks ids at its edges and indices inside; it knows nothing of HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from app.artifacts import LoadedModel
from app.core import UNKNOWN
from app.errors import UnknownUserError
from app.fold_in import gramian, solve_user_factor
from app.ranking import EXCLUDED, PADDING, top_k

ListSource = Literal["als", "fold_in", "popular"]  # what ordered a list


@dataclass(frozen=True)
class Ranking:
    """A list of recommendations, best first.

    ``item_indices`` int64 and ``scores`` float32 have the same length, at most the k that was asked for. A score
    compares movies within one list: a dot product, or for ``source`` "popular" the number of positives. ``ignored``
    are ids of the request that are not in the catalogue.
    """

    source: ListSource
    item_indices: NDArray[np.int64]
    scores: NDArray[np.float32]
    ignored: tuple[int, ...] = ()


@dataclass(frozen=True)
class Recommender:
    """Recommend from one model version."""

    model: LoadedModel

    @cached_property
    def _gramian(self) -> NDArray[np.float64]:
        return gramian(self.model.factors.item_factors)

    def recommend(self, user_id: int, k: int) -> Ranking:
        """Recommend to a user of the training data, never what they have rated.

        A user without positives gets the most popular movies that they have not rated. Fewer than ``k`` movies come
        back where fewer are left.

        Raises
        ------
        UnknownUserError
            If the user has no rating in the training data.
        """
        user_index = int(self.model.users.index(user_id))
        if user_index == UNKNOWN:
            raise UnknownUserError(user_id)
        history = self.model.history
        seen = history.item_index[history.indptr[user_index] : history.indptr[user_index + 1]]
        if self.model.positives_indptr[user_index] == self.model.positives_indptr[user_index + 1]:
            return self._rank("popular", self.model.popularity, seen, k)
        user_factor = self.model.factors.user_factors[user_index]
        return self._rank("als", self.model.factors.item_factors @ user_factor, seen, k)

    def recommend_cold(self, liked: Sequence[int], k: int) -> Ranking:
        """Recommend to someone who is not in the training data, from movies that they like.

        Their factor is solved from all of the liked movies at once (fold-in), each with the confidence of a positive.
        Without a liked movie that the catalogue holds, the most popular movies come back.

        Parameters
        ----------
        liked : sequence of int
            Movie ids; repetitions count once.
        """
        ids = np.array(list(dict.fromkeys(liked)), dtype=np.int64)
        found = self.model.items.index(ids)
        ignored = tuple(ids[found == UNKNOWN].tolist())
        seeds = np.sort(found[found != UNKNOWN])  # sorted, so that the answer depends on no order
        if len(seeds) == 0:
            return self._rank("popular", self.model.popularity, seeds, k, ignored)
        scores = self.model.factors.item_factors @ self.fold_in(seeds)
        return self._rank("fold_in", scores, seeds, k, ignored)

    def fold_in(self, item_indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the factor of shape (factors,) that the model gives to someone who likes these items."""
        config = self.model.als_config
        confidence = np.full(len(item_indices), config.alpha)
        return solve_user_factor(
            self.model.factors.item_factors, self._gramian, item_indices, confidence, config.regularization
        )

    def _rank(
        self,
        source: ListSource,
        scores: NDArray[np.float32],
        seen: NDArray[np.integer],
        k: int,
        ignored: tuple[int, ...] = (),
    ) -> Ranking:
        """List the ``k`` best that are not in ``seen``; fewer, rather than a wrong one, where fewer are left."""
        candidates = np.array(scores, dtype=np.float32)  # a copy: popularity is shared
        candidates[seen] = EXCLUDED
        items = top_k(candidates[None, :], k)[0]
        items = items[items != PADDING]
        return Ranking(source, items, candidates[items], ignored)
