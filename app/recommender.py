"""One loaded model that answers queries: which movies, in which order, by which stage, and why.

``artifacts.LoadedModel ─▶ Recommender ─▶ routers``. Immutable, so any number of requests may use it at once, and a
new version is a new object. It speaks ids at its edges and indices inside; it knows nothing of HTTP.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from app.artifacts import LoadedModel
from app.candidates import Context, Knowledge, Query
from app.core import MAX_RATING, UNKNOWN
from app.errors import ArtifactError, UnknownMovieError, UnknownUserError
from app.filters import EVERYTHING, Filter
from app.first_stage import FirstStage
from app.history import History
from app.ranker import Ranker, read_ranker
from app.reasons import Explanation, explain
from app.rerank import NEUTRAL, Dials, Traits, genre_mix, information, rerank
from app.scoring import Listed
from app.search import TitleSearch
from app.trees import is_available

log = logging.getLogger("uvicorn.error")

ListSource = Literal["als", "fold_in", "ranker", "popular"]  # what ordered a list
POOL = 300  # of the first stage's best that dials choose from; the second stage has about as many candidates
# What takes some tenths of a millisecond at most: n_items × factors, n_items, and n_liked × factors².
_QUICK_PRODUCT, _QUICK_ITEMS, _QUICK_FOLD_IN = 4_000_000, 65_000, 2_000_000


@dataclass(frozen=True)
class ListOptions:
    """What a caller may wish of a list.

    ``ranker`` lets the second stage order it, where the version has one; ``explain`` asks for the reasons.
    """

    ranker: bool = True
    dials: Dials = NEUTRAL
    explain: bool = False
    filter: Filter = EVERYTHING


PLAIN = ListOptions()
_NONE = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Ranking:
    """A list of recommendations, best first.

    ``item_indices`` int64 and ``scores`` float32 have the same length, at most the k that was asked for. A score
    compares movies within one list: a dot product, for ``source`` "ranker" the log-odds that the movie is the next to
    be liked, for "popular" the number of positives; it falls along the list unless dials moved it. ``ignored`` are ids
    of the request that are not in the catalogue. ``explanations`` are as many as the items, if they were asked for.
    ``moment`` is when the list was asked for, None where it does not depend on that, as lists of the first stage do
    not; with the version and the history it determines the list. ``ranker_failed`` tells that the second stage should
    have answered and could not.
    """

    source: ListSource
    item_indices: NDArray[np.int64]
    scores: NDArray[np.float32]
    moment: int | None = None
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
    def first_stage(self) -> FirstStage:
        return FirstStage(self.model)

    @cached_property
    def titles(self) -> TitleSearch:
        return TitleSearch(self.model.movies.titles(), self.first_stage.popularity)

    @cached_property
    def _knowledge(self) -> Knowledge:
        return Knowledge(
            als=self.model.als_config,
            item_factors=self.first_stage.item_factors,
            popularity=self.first_stage.popularity,
            tables=self.model.ranker.tables if self.model.ranker else None,
            min_rating=self.model.min_rating,
        )

    @cached_property
    def _information(self) -> NDArray[np.float32]:
        return information(self._knowledge.popularity)

    @cached_property
    def _learned_from_all(self) -> bool:
        """Whether the factors know all positives of the histories; those of a held-out fit do not."""
        n_liked = np.count_nonzero(self.model.history.rating >= self.model.min_rating)
        return bool(n_liked == len(self.model.positives_items))

    def is_quick(self, options: ListOptions, n_liked: int = 0) -> bool:
        """Tell whether a list costs well under a millisecond: the first stage alone, without dials and reasons.

        Parameters
        ----------
        n_liked : int
            How many movies are to be folded in for it.
        """
        is_first_alone = not (options.ranker and self.ranker) and options.dials.are_zero and not options.explain
        n_items, factors = self.first_stage.item_factors.shape
        is_small = n_items <= _QUICK_ITEMS and n_items * factors <= _QUICK_PRODUCT
        return is_first_alone and is_small and n_liked * factors**2 <= _QUICK_FOLD_IN

    def _is_plain(self, options: ListOptions) -> bool:
        """Tell whether the first stage is all that was asked for, which excludes its standing in for the second."""
        return not (options.ranker and self.model.ranker) and options.dials.are_zero and not options.explain

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
        UnknownGenreError
            If the filter names a genre that no movie has.
        """
        user = self.model.users.index_of(user_id)
        if user == UNKNOWN:
            raise UnknownUserError(user_id, self.model.version)
        if history is not None:
            return self._answer(Query(history, int(time.time()) if moment is None else moment, user), k, options)
        if self._is_plain(options):
            return self._recommend_plainly(user, k, options.filter)
        return self._recommend_known(user, k, options, moment)

    def _recommend_known(self, user: int, k: int, options: ListOptions, moment: int | None = None) -> Ranking:
        trained = self.first_stage.histories.of(user)
        stored = self.model.ranker
        query = Query(
            history=trained,
            moment=trained.next_moment if moment is None else moment,
            user_index=user,
            recent_factor=self.first_stage.user_factors[user],
            plain_factor=stored.plain_factors[user] if stored else None,
            learned=None if self._learned_from_all else self.model.positives_of(user),
        )
        return self._answer(query, k, options, source="als")

    def recommend_many(
        self, user_ids: Sequence[int], k: int, options: ListOptions = PLAIN, pool: Executor | None = None
    ) -> list[Ranking | None]:
        """Recommend to several users what ``recommend`` would, None to those who are unknown.

        The first stage scores all of them by one product; a ``pool`` lends it threads.
        """
        users = self.model.users.index(user_ids)
        known = users[users != UNKNOWN]
        if self._is_plain(options):
            rankings = self._recommend_many_plainly(known, k, options.filter, pool)
        else:
            rankings = [self._recommend_known(user, k, options) for user in known.tolist()]
        following = iter(rankings)
        return [None if user == UNKNOWN else next(following) for user in users.tolist()]

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

    def similar(self, movie_id: int, k: int, options: ListOptions = PLAIN) -> Ranking:
        """List the movies that the same people like: those whose factors have the largest cosine to this one's.

        Empty for a movie whose factor is zero. Of the options only filter, novelty and diversity mean something here.

        Raises
        ------
        UnknownMovieError
            If the catalogue does not hold the movie.
        """
        n = k if options.dials.are_zero else max(k, POOL)
        found = self.first_stage.similar(self.item_of(movie_id), n, options.filter)
        return Ranking("als", *self._turn(*found, k, options.dials))

    def popular(self, k: int, options: ListOptions = PLAIN) -> Ranking:
        """List the movies with the most positives; of the options filter, novelty and diversity mean something here."""
        n = k if options.dials.are_zero else max(k, POOL)
        found = self.first_stage.most_popular(n, _NONE, self.first_stage.allowed(options.filter))
        return Ranking("popular", *self._turn(*found, k, options.dials))

    def item_of(self, movie_id: int) -> int:
        """Return the item index of a movie; UnknownMovieError if the catalogue does not hold it."""
        item = self.model.items.index_of(movie_id)
        if item == UNKNOWN:
            raise UnknownMovieError(movie_id)
        return item

    def _recommend_plainly(self, user: int, k: int, wanted: Filter) -> Ranking:
        """Recommend to a known user by the first stage alone."""
        first = self.first_stage
        if first.has_positives(user):
            return Ranking("als", *first.best_of_user(user, k, wanted))
        seen = first.histories.of(user).item_index
        return Ranking("popular", *first.most_popular(k, seen, first.allowed(wanted)))

    def _recommend_many_plainly(
        self, users: NDArray[np.int64], k: int, wanted: Filter, pool: Executor | None
    ) -> list[Ranking]:
        """Recommend to known users by the first stage alone, all at once."""
        if len(users) == 1:
            return [self._recommend_plainly(int(users[0]), k, wanted)]
        has_positives = self.first_stage.has_positives(users)
        scored = iter(self.first_stage.best_of_known(users[has_positives], k, wanted, pool))
        return [
            Ranking("als", *next(scored)) if has else self._recommend_plainly(user, k, wanted)
            for user, has in zip(users.tolist(), np.atleast_1d(has_positives).tolist(), strict=True)
        ]

    def _answer(
        self,
        query: Query,
        k: int,
        options: ListOptions,
        source: Literal["als", "fold_in"] = "fold_in",
        ignored: tuple[int, ...] = (),
    ) -> Ranking:
        """Let the second stage answer if it is wanted and can, else the first, else popularity; then turn the dials."""
        context = Context(self._knowledge, replace(query, allowed=self.first_stage.allowed(options.filter)))
        ranked, failed = None, False
        if options.ranker and self.model.ranker and len(context.liked):
            ranked = self._rank(context)
            failed = ranked is None
        if ranked is not None:
            found: ListSource = "ranker"
            items, scores = ranked
        else:
            found = source if len(context.liked) else "popular"
            items, scores = self._first_stage(context, k if options.dials.are_zero else max(k, POOL), options.filter)
        mix = None
        if options.dials.calibrate:
            mix = genre_mix(self.model.movies.genres_of(context.liked.item_index), context.confidence)
        items, scores = self._turn(items, scores, k, options.dials, mix)
        explanations = None
        if options.explain:
            try:
                ranker = self.ranker if found == "ranker" else None
                explanations = tuple(explain(context, items, self.model.movies, ranker))
            except Exception:
                failed = self._log_failure()
                explanations = tuple(explain(context, items, self.model.movies, None))
        moment = query.moment if found == "ranker" else None
        return Ranking(found, items, scores, moment, ignored, explanations, failed)

    def _rank(self, context: Context) -> Listed | None:
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

    def _first_stage(self, context: Context, n: int, wanted: Filter) -> Listed:
        """Return the ``n`` best by ALS, by popularity without positives; fewer where fewer are left."""
        first = self.first_stage
        out, allowed = np.append(context.query.history.item_index, first.excluded(wanted)), first.of_kind(wanted)
        if not len(context.liked):
            return first.most_popular(n, out, allowed)
        return first.best(context.user_factor, n, out, allowed)

    def _turn(
        self,
        items: NDArray[np.int64],
        scores: NDArray[np.float32],
        k: int,
        dials: Dials,
        mix: NDArray[np.floating] | None = None,
    ) -> Listed:
        """Choose the ``k`` that the dials want."""
        if dials.are_zero:
            return items[:k], scores[:k]
        genres, directions = self.model.movies.genres_of(items), self._knowledge.directions(items)
        traits = Traits(self._information[items], genres, directions)
        chosen = rerank(np.arange(len(items)), scores, k, dials, traits, mix)
        return items[chosen], scores[chosen]


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
