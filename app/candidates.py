"""One request as both stages see it, and the few hundred movies that are worth a second look.

``Knowledge + Query ─▶ Context ─▶ propose ─▶ features``. A context computes what several features need, each thing once
and only if it is asked for. What is ranked first is decided by the ranker.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from app.als import AlsConfig, grade, recency
from app.core import MIN_RATING, UNKNOWN, strength_of
from app.fold_in import contributions, gramian, solve_user_factor
from app.history import History
from app.ranking import EXCLUDED
from app.tables import MovieTables, Ragged

N_FROM_ALS, N_FROM_AROUND = 150, 150  # how many movies each source proposes
RECENT_HALF_LIFE = 3.0  # in ratings: how fast what was rated before the last one fades
N_RECENT = 10  # ratings, or positives, that count as recent: those with fewer than ten strictly later ones


@dataclass(frozen=True)
class Knowledge:
    """What one model knows, whoever asks: the movies' factors, and what was counted from the same ratings.

    Parameters
    ----------
    als : AlsConfig
    item_factors : ndarray of shape (n_items, factors), float32
    popularity : ndarray of shape (n_items,), float32
        Number of positives.
    tables : MovieTables, optional
        None where there is no second stage.
    min_rating : float
        Least rating that is a positive.
    """

    als: AlsConfig
    item_factors: NDArray[np.float32]
    popularity: NDArray[np.float32]
    tables: MovieTables | None
    min_rating: float = MIN_RATING

    @cached_property
    def gramian(self) -> NDArray[np.float64]:
        return gramian(self.item_factors)

    def directions(self, items: NDArray[np.integer]) -> NDArray[np.float32]:
        """Return item factors of unit length, (n, factors); those of length 0 stay as they are."""
        return unit_rows(self.item_factors[items])


def unit_rows(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return rows scaled to length 1, zeros where a row is 0."""
    length = np.linalg.norm(matrix, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = np.divide(matrix, length, out=np.zeros_like(matrix), where=length > 0)
    return scaled


@dataclass(frozen=True)
class Query:
    """Who asks: what they have rated until now, oldest first, and when now is (seconds since 1970).

    ``user_index`` says whose tags are left out of the tables, −1 for nobody. ``recent_factor`` and ``plain_factor`` of
    shape (factors,) are the user's, where they were solved from this very history before; else they are solved here.
    ``learned`` are the item indices that they were solved from, where these are not all positives of the history.
    ``allowed`` of shape (n_items,), bool, are the movies that the list may show, by default all.
    """

    history: History
    moment: int
    user_index: int = UNKNOWN
    recent_factor: NDArray[np.float32] | None = None
    plain_factor: NDArray[np.float32] | None = None
    learned: NDArray[np.integer] | None = None
    allowed: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Context:
    """One query against one model's knowledge."""

    knowledge: Knowledge
    query: Query

    @cached_property
    def liked(self) -> History:
        """The positives of the history, oldest first."""
        history = self.query.history
        is_liked = history.rating >= self.knowledge.min_rating
        if self.query.learned is not None:
            is_liked &= np.isin(history.item_index, self.query.learned)
        return history.where(is_liked)

    @property
    def tables(self) -> MovieTables:
        """What is counted about the movies; only where there is a second stage."""
        assert self.knowledge.tables is not None
        return self.knowledge.tables

    @cached_property
    def confidence(self) -> NDArray[np.float64]:
        """c = alpha·g of each positive, without recency."""
        als = self.knowledge.als
        strength = strength_of(self.liked.rating.astype(np.float64), self.knowledge.min_rating)
        return als.alpha * grade(strength.astype(np.float32), als)

    @cached_property
    def recent_confidence(self) -> NDArray[np.float64]:
        """c = alpha·g·½^(n/half_life) of each positive, n the number of strictly later ones."""
        return self.confidence * recency(self.liked.n_later.astype(np.int32), self.knowledge.als.half_life)

    @cached_property
    def user_factor(self) -> NDArray[np.float32]:
        """The user's factor with recency, (factors,)."""
        found = self.query.recent_factor
        return self._solve(self.recent_confidence) if found is None else found

    @cached_property
    def plain_factor(self) -> NDArray[np.float32]:
        """The user's factor with all positives counting alike, (factors,)."""
        found = self.query.plain_factor
        return self._solve(self.confidence) if found is None else found

    def _solve(self, confidence: NDArray[np.float64]) -> NDArray[np.float32]:
        known = self.knowledge
        # In the trainer's order and precision, so that equal histories give equal bits.
        order = np.argsort(self.liked.item_index)
        liked, c = self.liked.item_index[order], confidence[order].astype(np.float32)
        return solve_user_factor(known.item_factors, known.gramian, liked, c, known.als.regularization)

    def contributions(self, items: NDArray[np.integer]) -> NDArray[np.float64]:
        """Divide the ALS scores of ``items`` among the positives, (n_items_asked, n_liked)."""
        known = self.knowledge
        liked, confidence = self.liked.item_index, self.recent_confidence
        return contributions(known.item_factors, known.gramian, liked, confidence, known.als.regularization, items)

    @cached_property
    def als_scores(self) -> NDArray[np.float32]:
        """The first stage: the score of every movie, (n_items,); −inf where it was rated."""
        return self._without_rated(self.knowledge.item_factors @ self.user_factor)

    @cached_property
    def plain_scores(self) -> NDArray[np.float32]:
        return self._without_rated(self.knowledge.item_factors @ self.plain_factor)

    def _without_rated(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        scores[self.query.history.item_index] = EXCLUDED
        return scores

    @property
    def known_moment(self) -> int:
        """The moment of the request, or just after the last rating that is counted: what came later is not known."""
        return min(self.query.moment, int(self.tables.typical[2]) + 1)

    @cached_property
    def recent(self) -> History:
        """The last ratings of any kind."""
        return self.query.history.last(N_RECENT)

    @cached_property
    def recent_weight(self) -> NDArray[np.float64]:
        return recency(self.recent.n_later.astype(np.int32), RECENT_HALF_LIFE)

    @cached_property
    def recent_liked(self) -> History:
        """The last positives."""
        return self.liked.last(N_RECENT)

    @cached_property
    def around_scores(self) -> NDArray[np.float32]:
        """How often every movie was rated around the recent ones, weighted by recency, (n_items,); −inf where rated."""
        scores = spread(self.tables.around, self.recent.item_index, self.recent_weight)
        return self._without_rated(scores)


def spread(table: Ragged, rows: NDArray[np.integer], weights: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return Σ_r weight_r · row_r of a table of shape (n_items, n_items), dense, (n_items,)."""
    place, column, value = table.gather(rows)
    return np.bincount(column, value * weights[place], minlength=len(table.indptr) - 1).astype(np.float32)


def propose(context: Context) -> NDArray[np.int64]:
    """Return the candidates: the best of recency ALS and of what is rated around the recent movies, rising, unrated.

    Each source chooses among the movies that are allowed, so that as many come as there are.
    """
    around = context.around_scores
    neighbours = np.where(around > 0, around, EXCLUDED)
    found = [context.als_scores, neighbours]
    if context.query.allowed is not None:
        found = [np.where(context.query.allowed, scores, EXCLUDED) for scores in found]
    return np.union1d(_best(found[0], N_FROM_ALS), _best(found[1], N_FROM_AROUND))


def _best(scores: NDArray[np.float32], n: int) -> NDArray[np.int64]:
    """Return the ``n`` best that are not excluded, in no order; equal scores at the border by index."""
    if n >= len(scores):
        return np.flatnonzero(scores > EXCLUDED)
    border = np.partition(scores, -n)[-n]
    above = np.flatnonzero(scores > border)
    if border == EXCLUDED:
        return above
    return np.concatenate([above, np.flatnonzero(scores == border)[: n - len(above)]])
