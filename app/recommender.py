"""One loaded model that answers queries: which movies, in which order, by which stage, and why.

``artifacts.LoadedModel ─▶ Recommender ─▶ routers``. Immutable, so any number of requests may use it at once, and a
new version is a new object. It speaks ids at its edges and indices inside; it knows nothing of HTTP.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from app.artifacts import LoadedModel
from app.candidates import Context, Knowledge, Query
from app.core import MAX_RATING, UNKNOWN
from app.errors import ArtifactError, UnknownUserError
from app.history import History, UserRows
from app.ranker import Ranker, read_ranker
from app.ranking import EXCLUDED, PADDING, top_k
from app.reasons import Explanation, explain
from app.rerank import NEUTRAL, Dials, Traits, genre_mix, information, rerank
from app.trees import is_available

log = logging.getLogger("uvicorn.error")

ListSource = Literal["als", "fold_in", "ranker", "popular"]  # what ordered a list
POOL = 300  # of the first stage's best that dials choose from; the second stage has about as many candidates


@dataclass(frozen=True)
class ListOptions:
    """What a caller may wish of a list.

    ``ranker`` lets the second stage order it, where the version has one; ``explain`` asks for the reasons.
    """

    ranker: bool = True
    dials: Dials = NEUTRAL
    explain: bool = False


PLAIN = ListOptions()


@dataclass(frozen=True)
class Ranking:
    """A list of recommendations, best first.

    ``item_indices`` int64 and ``scores`` float32 have the same length, at most the k that was asked for. A score
    compares movies within one list: a dot product, for ``source`` "ranker" the log-odds that the movie is the next to
    be liked, for "popular" the number of positives; it falls along the list unless dials moved it. ``ignored`` are ids
    of the request that are not in the catalogue. ``explanations`` are as many as the items, if they were asked for.
    ``moment`` is when the list was asked for; with the version and the history it determines the list.
    ``ranker_failed`` tells that the second stage should have answered and could not.
    """

    source: ListSource
    item_indices: NDArray[np.int64]
    scores: NDArray[np.float32]
    moment: int
    ignored: tuple[int, ...] = ()
    explanations: tuple[Explanation, ...] | None = None
    ranker_failed: bool = False


@dataclass(frozen=True)
class Recommender:
    """Recommend from one model version.

    ``ranker`` is None where the version has no second stage, or where that could not be loaded (``load_recommender``).
    """

    model: LoadedModel
    ranker: Ranker | None = None

    @cached_property
    def _knowledge(self) -> Knowledge:
        model = self.model
        return Knowledge(
            als=model.als_config,
            item_factors=np.asarray(model.factors.item_factors),  # still the map, less a subclass that is slow
            popularity=model.popularity,
            tables=model.ranker.tables if model.ranker else None,
            min_rating=model.min_rating,
        )

    @cached_property
    def _histories(self) -> UserRows:
        """The histories as plain arrays: views of the same maps, whose own class is slow to index."""
        return UserRows(**{name: np.asarray(array) for name, array in vars(self.model.history).items()})

    @cached_property
    def _learned_from_all(self) -> bool:
        """Whether the factors know all positives of the histories; those of a held-out fit do not."""
        n_liked = np.count_nonzero(self.model.history.rating >= self.model.min_rating)
        return bool(n_liked == len(self.model.positives_items))

    @cached_property
    def _traits(self) -> Traits:
        genres = sorted({genre for movie in self.model.movies for genre in movie.genres})
        column = {genre: place for place, genre in enumerate(genres)}
        has = np.zeros((len(self.model.movies), len(genres)), dtype=np.float32)
        for row, movie in enumerate(self.model.movies):
            has[row, [column[genre] for genre in movie.genres]] = 1
        return Traits(information(self.model.popularity), has, self._knowledge.directions)

    def is_quick(self, options: ListOptions) -> bool:
        """Tell whether a list costs well under a millisecond: the first stage alone, without dials and reasons."""
        return not (options.ranker and self.ranker) and options.dials.are_zero and not options.explain

    def recommend(
        self,
        user_id: int,
        k: int,
        options: ListOptions = PLAIN,
        history: History | None = None,
        moment: int | None = None,
    ) -> Ranking:
        """Recommend to a user of the training data, never what they have rated.

        A user without positives gets the most popular movies that they have not rated. Fewer than ``k`` movies come
        back where fewer are left.

        Parameters
        ----------
        history : History, optional
            What the user has rated until now, where that is more than the model was trained on.
        moment : int, optional
            When the list is asked for, seconds since 1970. By default now if there is a ``history``; else, since
            nothing is known after the user's last rating, when their next one was to be expected.

        Raises
        ------
        UnknownUserError
            If the user has no rating in the training data.
        """
        user = int(self.model.users.index(user_id))
        if user == UNKNOWN:
            raise UnknownUserError(user_id, self.model.version)
        if history is not None:
            return self._answer(Query(history, int(time.time()) if moment is None else moment, user), k, options)
        trained = self._histories.of(user)
        moment = trained.next_moment if moment is None else moment
        stored = self.model.ranker
        query = Query(
            history=trained,
            moment=moment,
            user_index=user,
            recent_factor=self.model.factors.user_factors[user],
            plain_factor=stored.plain_factors[user] if stored else None,
            learned=None if self._learned_from_all else self.model.positives_of(user),
        )
        return self._answer(query, k, options, source="als")

    def recommend_cold(self, liked: Sequence[int], k: int, options: ListOptions = PLAIN) -> Ranking:
        """Recommend to someone who is not in the training data, from movies that they like.

        Their factor is solved from all of the liked movies at once (fold-in), each with the confidence of a positive of
        grade 1. They count as liked just now, which is the time of the last rating that the model knows. Without a
        liked movie that the catalogue holds, the most popular movies come back.

        Parameters
        ----------
        liked : sequence of int
            Movie ids; repetitions count once.
        """
        ids = np.array(list(dict.fromkeys(liked)), dtype=np.int64)
        found = self.model.items.index(ids)
        ignored = tuple(ids[found == UNKNOWN].tolist())
        seeds = np.sort(found[found != UNKNOWN])  # sorted, so that the answer depends on no order
        n, stored = len(seeds), self.model.ranker
        _, gap, last = stored.tables.typical.tolist() if stored else (0.0, 0.0, 0.0)
        middle = (self.model.min_rating + MAX_RATING) / 2  # whose grade is 1
        history = History(seeds, np.full(n, middle, dtype=np.float32), np.full(n, int(last), dtype=np.int64))
        return self._answer(Query(history, int(last + gap)), k, options, ignored=ignored)

    def _answer(
        self,
        query: Query,
        k: int,
        options: ListOptions,
        source: Literal["als", "fold_in"] = "fold_in",
        ignored: tuple[int, ...] = (),
    ) -> Ranking:
        """Let the second stage answer if it is wanted and can, else the first, else popularity; then turn the dials."""
        context = Context(self._knowledge, query)
        ranked, failed = None, False
        if options.ranker and self.model.ranker and len(context.liked):
            ranked = self._rank(context)
            failed = ranked is None
        if ranked is not None:
            found: ListSource = "ranker"
            items, scores = ranked
        else:
            found = source if len(context.liked) else "popular"
            items, scores = self._first_stage(context, k if options.dials.are_zero else max(k, POOL))
        items, scores = self._turn(context, items, scores, k, options.dials)
        explanations = None
        if options.explain:
            try:
                ranker = self.ranker if found == "ranker" else None
                explanations = tuple(explain(context, items, self.model.movies, ranker))
            except Exception:
                failed = self._log_failure()
                explanations = tuple(explain(context, items, self.model.movies, None))
        return Ranking(found, items, scores, query.moment, ignored, explanations, failed)

    def _rank(self, context: Context) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
        """Return the second stage's list, None if it fails: whatever goes wrong there must not cost the answer."""
        try:
            if self.ranker is None:
                return None  # it could not be loaded, which was logged then
            return self.ranker.rank(context)
        except Exception:
            self._log_failure()
            return None

    def _log_failure(self) -> bool:
        log.exception("The second stage of %s failed; the first one answers", self.model.version)
        return True

    def _first_stage(self, context: Context, n: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the ``n`` best by ALS, by popularity without positives; fewer where fewer are left."""
        if len(context.liked):
            scores = context.als_scores
        else:
            scores = self.model.popularity.copy()  # shared
            scores[context.query.history.item_index] = EXCLUDED
        items = top_k(scores[None, :], n)[0]
        items = items[items != PADDING]
        return items, scores[items]

    def _turn(
        self, context: Context, items: NDArray[np.int64], scores: NDArray[np.float32], k: int, dials: Dials
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Choose the ``k`` that the dials want."""
        if dials.are_zero:
            return items[:k], scores[:k]
        mix = genre_mix(self._traits.genres[context.liked.item_index], context.confidence)
        chosen = rerank(items, scores, k, dials, self._traits, mix)
        by_item = np.argsort(items)
        return chosen, scores[by_item[np.searchsorted(items, chosen, sorter=by_item)]]


def load_recommender(model: LoadedModel, *, strict: bool = False) -> Recommender:
    """Return a recommender with its second stage, if the version has one and LightGBM can read it.

    Where it cannot, the first stage answers: a library that is missing must not stop the service.

    Parameters
    ----------
    strict : bool
        Whether trees that LightGBM cannot read are damage of the version.

    Raises
    ------
    ArtifactError
        If they are.
    """
    if model.ranker is None:
        return Recommender(model)
    try:
        return Recommender(model, read_ranker(model.ranker.text))
    except ArtifactError as error:
        if strict and is_available():
            raise
        log.error("Serving %s without its second stage: %s", model.version, error)
        return Recommender(model)
