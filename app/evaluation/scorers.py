"""The models under evaluation: each scores the whole catalogue for some of a task's target users.

``RankingTask ─▶ Scorer ─▶ rank``. ALS comes fitted; the baselines are fitted here, on the same positives. Their
hyper-parameters were chosen on validation, as those of ALS were (``benchmarks/baselines.py``).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from app.als import PRESETS, Factors, learn, recency
from app.protocols import RankingTask

Scorer = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""Maps places in the task (indices into ``target_users``), in rising order and once, to scores (n_places, n_items).

The caller may overwrite the scores."""

# `python benchmarks/baselines.py`; with more neighbours nothing changes.
KNN_WEIGHTING, KNN_NEIGHBOURS, KNN_HALF_LIFE = "tfidf", 2_000, 3.0
EASE_REGULARIZATION, EASE_HALF_LIFE = 300.0, 3.0
KNN_MAX_ITEMS = 20_000  # with so many neighbours: some 1.2 GB of similarities
EASE_MAX_SIZE = 10_000  # of the matrix to invert: some 3 GB while it is, and a minute or two


def als_scorer(task: RankingTask, factors: Factors) -> Scorer:
    """Score by dot product, s_u = Y x_u; users without positives get the popular order.

    Parameters
    ----------
    factors : Factors
        Of a fit on ``task.positives``: (n_users, factors) and (n_items, factors).
    """
    # In float64, then rounded: the last bits of a float32 product depend on the block's shape and the BLAS threads,
    # and with them the order of nearly equal scores.
    item_factors = factors.item_factors.T.astype(np.float64)  # (factors, n_items)
    return _popular_without_positives(
        task, lambda places: (factors.user_factors[task.target_users[places]] @ item_factors).astype(np.float32)
    )


def _popular_without_positives(task: RankingTask, scorer: Scorer) -> Scorer:
    """Give users without a positive to learn from the popular order, as the service does."""
    by_popularity = popular_scorer(task)
    is_without = np.diff(task.user_items.indptr)[task.target_users] == 0

    def score(places: NDArray[np.int64]) -> NDArray[np.float32]:
        scores = scorer(places)
        without = is_without[places]
        scores[without] = by_popularity(places[without])
        return scores

    return score


def reference_scorer(task: RankingTask, _random_state: int) -> Scorer:
    """Fit and score with the preset ``reference``: plain ALS as published notebooks have it, its own seed included."""
    return als_scorer(task, learn(task.positives, PRESETS["reference"]))


def popular_scorer(task: RankingTask, _random_state: int = 0) -> Scorer:
    """Score every movie by its number of positives in the task's matrix, alike for all users."""
    counts = np.bincount(task.user_items.indices, minlength=len(task.items)).astype(np.float32)
    return lambda places: np.tile(counts, (len(places), 1))


def random_scorer(task: RankingTask, random_state: int) -> Scorer:
    """Score at random: the floor that every model must clear."""
    rng = np.random.default_rng(random_state)
    return lambda places: rng.random((len(places), len(task.items)), dtype=np.float32)


def item_knn_scorer(
    task: RankingTask,
    _random_state: int = 0,
    weighting: str = KNN_WEIGHTING,
    neighbours: int = KNN_NEIGHBOURS,
    half_life: float = KNN_HALF_LIFE,
) -> Scorer:
    """Score by the similarity of each movie's nearest neighbours to the user's positives (implicit's item-item model).

    s_u = w_u S with S the ``neighbours`` largest similarities of each row, w the recency-weighted positives.

    Parameters
    ----------
    weighting : {"cosine", "tfidf", "bm25"}
        What the columns are weighted by before their cosine is taken.
    half_life : float
        As in ``AlsConfig``, so that the baseline knows what ALS knows; 0 for none.

    References
    ----------
    Deshpande and Karypis, "Item-based top-N recommendation algorithms" (TOIS 2004).
    """
    from implicit.nearest_neighbours import BM25Recommender, CosineRecommender, TFIDFRecommender
    from implicit.utils import ParameterWarning

    kinds = {"cosine": CosineRecommender, "tfidf": TFIDFRecommender, "bm25": BM25Recommender}
    model = kinds[weighting](K=neighbours)
    # It warns about a matrix that it makes itself, and divides 0 by 0 for movies whose users like nearly everything.
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", ParameterWarning)
        model.fit(task.user_items, show_progress=False)
    model.similarity.data = np.nan_to_num(model.similarity.data, nan=0.0)
    context = _recent_context(task, half_life)
    return _popular_without_positives(
        task, lambda places: (context[places] @ model.similarity).toarray().astype(np.float32)
    )


def ease_scorer(
    task: RankingTask,
    _random_state: int = 0,
    regularization: float = EASE_REGULARIZATION,
    half_life: float = EASE_HALF_LIFE,
) -> Scorer:
    """Score by EASE, the closed-form linear item model.

    s_u = w_u B with B_ij = −P_ij / P_jj off the diagonal and 0 on it, P = (XᵀX + λI)⁻¹, X the positives (n_users,
    n_items) and w_u the user's, weighted by recency. Where there are fewer users than movies, P is never formed:
    by the Woodbury identity P = (I − Xᵀ(XXᵀ + λI)⁻¹X) / λ, which inverts a matrix of users.

    References
    ----------
    Steck, "Embarrassingly Shallow Autoencoders for Sparse Data" (WWW 2019).
    """
    x = task.user_items.astype(np.float64)
    solve, diagonal = (_by_users if x.shape[0] < x.shape[1] else _by_items)(x, regularization)
    context = _recent_context(task, half_life)

    def score(places: NDArray[np.int64]) -> NDArray[np.float32]:
        w = context[places]
        return (w.toarray() - solve(w) / diagonal).astype(np.float32)

    return _popular_without_positives(task, score)


_Solve = Callable[[sp.csr_matrix], NDArray[np.float64]]


def _invert(matrix: NDArray[np.float64], regularization: float) -> NDArray[np.float64]:
    """Return (A + λI)⁻¹; the matrix is overwritten."""
    matrix[np.diag_indices_from(matrix)] += regularization
    with threadpool_limits(1, "blas"):  # the last bits depend on the number of threads
        return np.asarray(np.linalg.inv(matrix), dtype=np.float64)


def _by_items(x: sp.csr_matrix, regularization: float) -> tuple[_Solve, NDArray[np.float64]]:
    """Return w ↦ wP and the diagonal of P, from the matrix of movies."""
    inverse = _invert((x.T @ x).toarray(), regularization)
    return lambda w: w @ inverse, np.diag(inverse)


def _by_users(x: sp.csr_matrix, regularization: float) -> tuple[_Solve, NDArray[np.float64]]:
    """Return the same from the matrix of users."""
    inverse = _invert((x @ x.T).toarray(), regularization)
    by_item = x.T.tocsr()
    diagonal = np.empty(x.shape[1])
    for items in np.array_split(np.arange(x.shape[1]), x.shape[1] // 1024 + 1):
        rows = by_item[items]
        diagonal[items] = 1.0 - np.asarray(rows.multiply(rows @ inverse).sum(axis=1)).ravel()
    diagonal /= regularization

    def solve(w: sp.csr_matrix) -> NDArray[np.float64]:
        through_users = (w @ x.T).toarray() @ inverse  # (n_places, n_users)
        product: NDArray[np.float64] = w.toarray() - (by_item @ through_users.T).T
        return product / regularization

    return solve, diagonal


def _recent_context(task: RankingTask, half_life: float) -> sp.csr_matrix:
    """Return the target users' positives weighted by recency, csr_matrix of shape (n_targets, n_items)."""
    weights = task.positives.with_values(recency(task.positives.n_later, half_life))
    return weights[task.target_users]


BASELINES: dict[str, Callable[[RankingTask, int], Scorer]] = {
    "reference": reference_scorer,
    "item_knn": item_knn_scorer,
    "ease": ease_scorer,
    "popular": popular_scorer,
    "random": random_scorer,
}


def why_skipped(baseline: str, task: RankingTask) -> str | None:
    """Say why a baseline is too large to fit on this task, None if it is not."""
    n_users, n_items = task.user_items.shape
    if baseline == "ease" and min(n_users, n_items) > EASE_MAX_SIZE:
        return f"ease inverts a matrix of users or of movies, and {n_users:,} × {n_items:,} exceeds {EASE_MAX_SIZE:,}"
    if baseline == "item_knn" and n_items > KNN_MAX_ITEMS:
        return f"item_knn keeps {KNN_NEIGHBOURS:,} neighbours of each movie, and {n_items:,} exceeds {KNN_MAX_ITEMS:,}"
    return None
