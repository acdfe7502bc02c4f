"""Learning to rank: earlier requests, the candidates that they would have had, and what the user liked next.

``RankingTask.history ─▶ step back, stage by stage ─▶ Examples ─▶ fit_ranker``. Before each stage everybody's history is
cut at the moment of their request, and factors and tables are made anew from what is left, so that no feature knows
what came later. How requests are answered is decided by ``candidates``, ``features`` and ``ranker``, the same rooms
that serve.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from app import features
from app.als import AlsConfig, Factors, confidence, learn
from app.candidates import Context, Knowledge, Query, propose
from app.core import MIN_RATING, Dataset, IdMap, Positives
from app.errors import DataError
from app.evaluation import Scorer
from app.evaluation.scorers import popular_scorer
from app.fold_in import solve_user_factors
from app.history import UserRows, positives_of
from app.protocols import RankingTask, Requests, step_back
from app.ranker import Ranker, RankerConfig, fit_ranker
from app.ranking import EXCLUDED
from app.stored_ranker import StoredRanker
from app.tables import MovieTables, build_tables

if TYPE_CHECKING:
    import pandas as pd

MAX_REQUESTS = 4_000  # of one stage that are learned from, drawn at random; with 300 candidates each some 200 MB


@dataclass(frozen=True)
class Learned:
    """Everything that was learned from one state of the ratings: what requests at that time are answered with.

    ``plain_factors`` of shape (n_users, factors) are the users' with all positives counting alike; ``history`` and
    ``tags`` are what it was learned from.
    """

    knowledge: Knowledge
    factors: Factors
    plain_factors: NDArray[np.float32]
    history: UserRows
    tags: pd.DataFrame

    @property
    def tables(self) -> MovieTables:
        assert self.knowledge.tables is not None
        return self.knowledge.tables

    def context(self, user: int, moment: int) -> Context:
        """Return the request of a user, by row, with the history that was learned from."""
        factors = self.factors.user_factors[user], self.plain_factors[user]
        return Context(self.knowledge, Query(self.history.of(user), moment, user, *factors))


@dataclass(frozen=True)
class Learner:
    """Learns from states of the ratings of one catalogue.

    Parameters
    ----------
    dataset : Dataset
        Its movies and tags are used; its ratings are not looked at.
    users, items : IdMap
        Rows and columns of the histories.
    """

    dataset: Dataset
    users: IdMap
    items: IdMap
    als: AlsConfig
    min_rating: float = MIN_RATING

    def learn(
        self,
        history: UserRows,
        tags: pd.DataFrame,
        factors: Factors | None = None,
        positives: Positives | None = None,
    ) -> Learned:
        """Fit factors, unless they are given with the positives that they were fitted on, and count the tables."""
        if positives is None:
            positives = positives_of(history, len(self.items), self.min_rating)
        factors = factors or learn(positives, self.als)
        plain = solve_user_factors(
            factors.item_factors,
            positives.with_values(confidence(positives, self.als)),
            self.als.regularization,
            self.als.num_threads,
        )
        knowledge = Knowledge(
            als=self.als,
            item_factors=factors.item_factors,
            popularity=np.bincount(positives.user_items.indices, minlength=len(self.items)).astype(np.float32),
            tables=build_tables(history, self.users, self.items, self.dataset.movies, tags),
            min_rating=self.min_rating,
        )
        return Learned(knowledge, factors, plain, history, tags)

    def known_tags(self, tags: pd.DataFrame, requests: Requests) -> pd.DataFrame:
        """Keep the tags that were given while their user was known."""
        until = requests.known_until[self.users.index(tags["user_id"])]  # −1, for users without a row, is the last
        return tags[tags["timestamp"].to_numpy() < until]

    def stages(self, history: UserRows, tags: pd.DataFrame, config: RankerConfig) -> Iterator[Examples]:
        """Step back from a history and yield the examples of each stage, the latest first, while positives are left."""
        for stage in range(config.n_stages):
            requests = step_back(history, len(self.items), self.min_rating)
            if not (requests.history.rating >= self.min_rating).any():
                return
            tags = self.known_tags(tags, requests)
            history = requests.history
            yield collect(self.learn(history, tags), requests, self.als.random_state + 1 + stage)


@dataclass(frozen=True)
class Examples:
    """Candidates of some requests, request by request.

    Parameters
    ----------
    features : ndarray of shape (n_rows, n_features), float32
    items : ndarray of shape (n_rows,), int64
        The candidates' item indices.
    labels : ndarray of shape (n_rows,), int8
        1 where the candidate was what the user liked next.
    indptr : ndarray of shape (n_requests + 1,), int64
        Request r has the rows ``slice(indptr[r], indptr[r + 1])``: none without an earlier positive.
    places : ndarray of shape (n_requests,), int64
        Which of the requests they were collected for each is.
    relevant : csr_matrix of shape (n_requests, n_items), float32
        Non-zero at the movies that were to be found, among the candidates or not.
    """

    features: NDArray[np.float32]
    items: NDArray[np.int64]
    labels: NDArray[np.int8]
    indptr: NDArray[np.int64]
    places: NDArray[np.int64]
    relevant: sp.csr_matrix

    @property
    def n_relevant(self) -> NDArray[np.int64]:
        """How many movies each request was to find, (n_requests,)."""
        return np.diff(self.relevant.indptr).astype(np.int64)

    def found(self) -> Examples:
        """Keep the requests whose answer is among the candidates: the others have nothing to tell apart."""
        hits = np.diff(np.concatenate([[0], np.cumsum(self.labels)])[self.indptr]) > 0
        lengths = np.diff(self.indptr)
        kept = np.repeat(hits, lengths)
        indptr = np.concatenate([[0], np.cumsum(lengths[hits])])
        return Examples(
            self.features[kept], self.items[kept], self.labels[kept], indptr, self.places[hits], self.relevant[hits]
        )


def collect(learned: Learned, requests: Requests, random_state: int, limit: int = MAX_REQUESTS) -> Examples:
    """Propose candidates for requests and compute their features; of more than ``limit``, for some at random."""
    chosen = np.arange(len(requests.users))
    if len(chosen) > limit:
        chosen = np.sort(np.random.default_rng(random_state).choice(len(chosen), limit, replace=False))
    matrices, items, labels = [], [], []
    for place in chosen.tolist():
        user, moment = int(requests.users[place]), int(requests.moments[place])
        context = learned.context(user, moment)
        candidates = propose(context) if len(context.liked) else np.empty(0, dtype=np.int64)
        matrices.append(features.compute(context, candidates) if len(candidates) else _NO_ROWS)
        items.append(candidates)
        labels.append(np.isin(candidates, requests.relevant[place].indices))
    return Examples(
        features=np.concatenate([*matrices, _NO_ROWS]),
        items=np.concatenate([*items, np.empty(0, dtype=np.int64)]),
        labels=np.concatenate([*labels, np.empty(0, dtype=bool)]).astype(np.int8),
        indptr=np.concatenate([[0], np.cumsum([len(each) for each in items])]).astype(np.int64),
        places=chosen,
        relevant=requests.relevant[chosen],
    )


_NO_ROWS = np.empty((0, len(features.FEATURES)), dtype=np.float32)


def train_ranker(stages: Sequence[Examples], config: RankerConfig, random_state: int, num_threads: int = 0) -> Ranker:
    """Fit a ranker to the examples of several stages whose answer is among the candidates.

    Raises
    ------
    DataError
        If there is none.
    """
    found = [stage.found() for stage in stages]
    if not any(len(stage.labels) for stage in found):
        raise DataError(
            "no user's later positive is among the candidates that the earlier ones lead to, so there is nothing for "
            "the ranker to learn from; expected users with 3 positives or more. Add ratings, or train without --ranker."
        )
    return fit_ranker(
        np.concatenate([stage.features for stage in found]),
        np.concatenate([stage.labels for stage in found]),
        config,
        random_state,
        num_threads,
    )


@dataclass(frozen=True)
class HeldOutRanker:
    """A second stage as it would have been when the requests of a ranking task were made.

    It was made from ``learned`` and ``stages``, the latest first; ``examples`` are of the task's own requests.
    """

    task: RankingTask
    learned: Learned
    examples: Examples
    stages: tuple[Examples, ...]
    ranker: Ranker


def train_held_out(
    learner: Learner,
    task: RankingTask,
    factors: Factors,
    config: RankerConfig,
    on_stage: Callable[[], object] = lambda: None,
) -> HeldOutRanker:
    """Train a second stage for a ranking task, on what came before its requests.

    Parameters
    ----------
    factors : Factors
        Of a fit on ``task.positives``.
    on_stage : callable
        Called after the task's own requests, and after each stage, for a progress bar.

    Raises
    ------
    DataError
        If there is nothing to learn from.
    """
    seed = learner.als.random_state
    tags = learner.known_tags(learner.dataset.tags, task.requests)
    learned = learner.learn(task.history, tags, factors, task.positives)
    examples = collect(learned, task.requests, seed)
    on_stage()
    stages = []
    for stage in learner.stages(task.history, tags, config):
        stages.append(stage)
        on_stage()
    ranker = train_ranker(stages, config, seed, learner.als.num_threads)
    return HeldOutRanker(task, learned, examples, tuple(stages), ranker)


def served_ranker(
    learner: Learner,
    history: UserRows,
    factors: Factors,
    positives: Positives,
    config: RankerConfig,
    held_out: HeldOutRanker | None,
    refit: bool,
) -> StoredRanker:
    """Make the second stage that a version keeps: tables of all that is known, trees trained on the latest requests.

    After leave-one-out the held-out requests are the latest stage, and their examples are there already; otherwise all
    stages are made.

    Parameters
    ----------
    history, factors, positives
        What is served, and what the factors were fitted on.
    refit : bool
        If false, the held-out trees are kept as they were measured.
    """
    tags = learner.dataset.tags
    if held_out and not refit:
        tags = held_out.learned.tags
        ranker = held_out.ranker
    else:
        is_latest = held_out is not None and held_out.task.protocol == "rated"
        stages = (
            (held_out.examples, *held_out.stages[: config.n_stages - 1])
            if held_out and is_latest
            else tuple(learner.stages(history, tags, config))
        )
        ranker = train_ranker(stages, config, learner.als.random_state, learner.als.num_threads)
    learned = learner.learn(history, tags, factors, positives)
    stated = {"features": features.DEFINITIONS, "features_hash": features.features_hash()}
    return StoredRanker(
        ranker.text, learned.tables, learned.plain_factors, {**stated, "hyper_parameters": asdict(config)}
    )


def ranker_scorer(held_out: HeldOutRanker) -> Scorer:
    """Score the candidates of each target user by the ranker, and nothing else; without positives the popular order."""
    task, learned, ranker = held_out.task, held_out.learned, held_out.ranker
    by_popularity = popular_scorer(task)

    def score(places: NDArray[np.int64]) -> NDArray[np.float32]:
        scores = np.full((len(places), len(task.items)), EXCLUDED, dtype=np.float32)
        for row, place in enumerate(places):
            context = learned.context(int(task.target_users[place]), int(task.moments[place]))
            candidates, found = ranker.rank(context, num_threads=0)
            if len(candidates):
                scores[row, candidates] = found
            else:
                scores[row] = by_popularity(places[row : row + 1])
        return scores

    return score
