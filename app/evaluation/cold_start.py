"""Cold start, measured: users whom the model has never seen, and the few movies that they like.

Users are held out as a whole. Their first n positives are folded in, exactly as ``/recommend_cold`` does it, and the
next one must be found. Every user is held out once: in turn each fold of users is, and a model is fitted on the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from app.als import AlsConfig, Factors, fit_als, grade, side_by_side
from app.core import MIN_RATING, UNKNOWN, IdMap, build_positives, build_user_items
from app.evaluation.lists import find_hits, rank
from app.evaluation.metrics import CUTOFFS, ranking_metrics
from app.evaluation.results import MODEL, Values, summarise
from app.evaluation.scorers import Scorer
from app.evaluation.strata import HOUR
from app.fold_in import solve_user_factors

if TYPE_CHECKING:
    import pandas as pd

N_LIKED = (1, 3, 5, 10)
N_FOLDS = 4
DEFINITION = (
    f"each user held out as a whole, in {N_FOLDS} folds; the first n positives by time are folded in (n of n_liked) "
    "and removed from the ranking; relevant is the first positive with a strictly later timestamp, skipped outside the "
    "fold's catalogue; n_within_session users came to it within an hour. als: folded-in factor; mean_of_items: the "
    "mean of the liked movies' factors; popular: number of positives. Who likes no movie of the catalogue gets the "
    "popular order from all"
)


@dataclass(frozen=True)
class _Fold:
    """A model of the other users, and the held-out ones: what they like and what must be found, (n, n_items)."""

    factors: Factors
    popularity: NDArray[np.float32]
    liked: sp.csr_matrix
    relevant: sp.csr_matrix


@dataclass(frozen=True)
class _Measured:
    """What was found in one fold: measures by model, and how many of the next movies came within an hour."""

    values: dict[str, Values]
    n_within_session: int


def measure_cold_start(
    positives: pd.DataFrame,
    config: AlsConfig,
    min_rating: float = MIN_RATING,
    on_fold: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Measure recommendations from the first n likes of users who were not in the training data.

    Parameters
    ----------
    positives : DataFrame
        From ``core.positives``: by user, oldest first.
    config : AlsConfig
        Of the fits; its seed also divides the users.
    on_fold : callable
        Called after each fold, from its thread, for a progress bar.

    Returns
    -------
    dict
        ``n_folds``, ``definition``, and ``n_liked``: by n the number of users, means, intervals and differences.
    """
    users = np.random.default_rng(config.random_state).permutation(positives["user_id"].unique())
    with side_by_side(N_FOLDS, config) as (pool, each):

        def measure(held_out: NDArray[np.int64]) -> dict[int, _Measured]:
            measured = _measure_fold(positives, positives["user_id"].isin(held_out), each, min_rating)
            on_fold()
            return measured

        folds = list(pool.map(measure, np.array_split(users, min(N_FOLDS, len(users)))))
    by_n = {n: [fold[n] for fold in folds if n in fold] for n in N_LIKED}
    return {
        "definition": DEFINITION,
        "n_folds": len(folds),
        "n_liked": {str(n): _summarise(of_folds, config.random_state) for n, of_folds in by_n.items() if of_folds},
    }


def _measure_fold(
    positives: pd.DataFrame, is_held_out: pd.Series[bool], config: AlsConfig, min_rating: float
) -> dict[int, _Measured]:
    """Fit on the other users and return the measures of the held-out ones, by number of likes and by model."""
    others, unseen = positives[~is_held_out], positives[is_held_out]
    if others.empty:
        return {}
    items = IdMap.of(others["movie_id"])
    learned = build_positives(others, IdMap.of(others["user_id"]), items, min_rating)
    factors = fit_als(learned.with_values(grade(learned.strength, config)), config)
    popularity = np.bincount(learned.user_items.indices, minlength=len(items)).astype(np.float32)
    measured = {}
    for n in N_LIKED:
        liked, relevant, gap_seconds = first_and_next(unseen, items, n)
        if relevant.shape[0]:
            values = _measure(_Fold(factors, popularity, liked, relevant), config)
            measured[n] = _Measured(values, int((gap_seconds <= HOUR).sum()))
    return measured


def first_and_next(
    unseen: pd.DataFrame, items: IdMap, n: int
) -> tuple[sp.csr_matrix, sp.csr_matrix, NDArray[np.int64]]:
    """Return each user's first n positives, the first later one, and the seconds to it from the last of the n.

    Users whose later one is not in ``items`` are left out; the others are rows, by user_id.
    """
    place = unseen.groupby("user_id").cumcount().to_numpy()
    first = unseen[place < n]
    nth_time = unseen[place == n - 1].set_index("user_id")["timestamp"]
    later = unseen[unseen["timestamp"] > unseen["user_id"].map(nth_time)]  # who has fewer than n compares with NaN
    following = later.drop_duplicates("user_id")
    following = following[items.index(following["movie_id"]) != UNKNOWN]
    users = IdMap.of(following["user_id"])
    gap = (following["timestamp"] - following["user_id"].map(nth_time)).to_numpy(dtype=np.int64)
    return build_user_items(first, users, items), build_user_items(following, users, items), gap


def _measure(fold: _Fold, config: AlsConfig) -> dict[str, Values]:
    """Rank the catalogue for every held-out user with each model."""
    n_relevant = np.diff(fold.relevant.indptr)
    measured = {}
    for model, scorer in _scorers(fold, config).items():
        hits = find_hits(rank(fold.liked, scorer, depth=max(CUTOFFS)), fold.relevant)
        measured[model] = ranking_metrics(hits, n_relevant)
    return measured


def _scorers(fold: _Fold, config: AlsConfig) -> dict[str, Scorer]:
    item_factors = fold.factors.item_factors
    exact = item_factors.T.astype(np.float64)
    folded_in = solve_user_factors(item_factors, fold.liked * config.alpha, config.regularization, config.num_threads)
    n_liked = np.diff(fold.liked.indptr)
    means = (fold.liked @ item_factors) / np.maximum(n_liked, 1)[:, None]

    def by_factor(user_factors: NDArray[np.floating]) -> Scorer:
        def score(places: NDArray[np.int64]) -> NDArray[np.float32]:
            scores = (user_factors[places] @ exact).astype(np.float32)
            scores[n_liked[places] == 0] = fold.popularity
            return scores

        return score

    return {
        MODEL: by_factor(folded_in),
        "mean_of_items": by_factor(means),
        "popular": lambda places: np.tile(fold.popularity, (len(places), 1)),
    }


def _summarise(folds: list[_Measured], random_state: int) -> dict[str, Any]:
    """Put the users of all folds together."""
    values = {
        model: {name: np.concatenate([fold.values[model][name] for fold in folds]) for name in of_model}
        for model, of_model in folds[0].values.items()
    }
    summary = summarise(values, random_state)
    return {
        "n_users": len(next(iter(values[MODEL].values()))),
        "n_within_session": sum(fold.n_within_session for fold in folds),
        "means": summary.means,
        "intervals": summary.intervals,
        "differences": summary.differences,
    }
