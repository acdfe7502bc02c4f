"""Folding in: a user's factor from what they like, the movies' factors held fixed.

``item_factors + confidence ─▶ user factor``, the same for training, unseen users and fresh histories, and which liked
movie contributed how much to a score. Which confidence a positive has is decided by ``app.als``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from app.threads import cancelling_pool, count_cores

_ITEMS_PER_BLOCK = 2**17  # of which a copy in float64 is made at a time
_USERS_PER_BLOCK = 256  # that one thread solves at a time


def gramian(item_factors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return YᵀY of shape (factors, factors), which every fold-in over the same items shares."""
    total = np.zeros((item_factors.shape[1], item_factors.shape[1]))
    for start in range(0, len(item_factors), _ITEMS_PER_BLOCK):
        exact = item_factors[start : start + _ITEMS_PER_BLOCK].astype(np.float64)
        total += exact.T @ exact
    return total


def solve_user_factor(
    item_factors: NDArray[np.float32],
    gramian: NDArray[np.float64],
    item_indices: NDArray[np.integer[Any]],
    confidence: NDArray[np.floating[Any]],
    regularization: float,
) -> NDArray[np.float32]:
    """Solve one user's factor with the item factors held fixed (fold-in).

    Solves (YᵀY + Yᵀ(C−I)Y + λI) x = YᵀC p, where unobserved items have c = 1 and p = 0: all items count, not only those
    that the user liked.

    Parameters
    ----------
    item_factors : ndarray of shape (n_items, factors), float32
        Y.
    gramian : ndarray of shape (factors, factors), float64
        YᵀY, without λI.
    item_indices : ndarray of shape (n_liked,), int
        Rows of Y that the user liked, each once.
    confidence : ndarray of shape (n_liked,), float
        c of each liked item, at least 0.
    regularization : float
        λ, greater than 0.

    Returns
    -------
    ndarray of shape (factors,), float32
        x; zeros if nothing is liked.

    References
    ----------
    Hu, Koren, Volinsky (ICDM 2008), eq. 4.
    """
    liked = item_factors[item_indices].astype(np.float64)  # (n_liked, factors)
    c = np.asarray(confidence, dtype=np.float64)
    return np.linalg.solve(_normal_matrix(gramian, liked, c, regularization), liked.T @ c).astype(np.float32)


def contributions(
    item_factors: NDArray[np.float32],
    gramian: NDArray[np.float64],
    item_indices: NDArray[np.integer[Any]],
    confidence: NDArray[np.floating[Any]],
    regularization: float,
    explained: NDArray[np.integer[Any]],
) -> NDArray[np.float64]:
    """Divide scores among the movies that a user likes.

    A score is x · y_i = Σ_j y_iᵀ W y_j c_j over the liked movies j, with W = (YᵀCY + λI)⁻¹: linear in what is liked,
    so the terms of the sum are what each liked movie contributes. They may be negative.

    Parameters
    ----------
    explained : ndarray of shape (n_explained,), int
        Rows of Y whose scores are divided. The others are those of ``solve_user_factor``.

    Returns
    -------
    ndarray of shape (n_explained, n_liked), float64
        Row sums are the scores of the factor that ``solve_user_factor`` returns, up to its rounding to float32.

    References
    ----------
    Hu, Koren, Volinsky (ICDM 2008), section 5.
    """
    liked = item_factors[item_indices].astype(np.float64)
    c = np.asarray(confidence, dtype=np.float64)
    normal = _normal_matrix(gramian, liked, c, regularization)
    divided: NDArray[np.float64] = item_factors[explained].astype(np.float64) @ np.linalg.solve(normal, liked.T * c)
    return divided


def _normal_matrix(
    gramian: NDArray[np.float64], liked: NDArray[np.float64], c: NDArray[np.float64], regularization: float
) -> NDArray[np.float64]:
    """Return YᵀCY + λI = YᵀY + Yᵀ(C−I)Y + λI."""
    normal: NDArray[np.float64] = gramian + (liked.T * (c - 1.0)) @ liked
    normal[np.diag_indices_from(normal)] += regularization
    return normal


def solve_user_factors(
    item_factors: NDArray[np.float32], confidence: sp.csr_matrix, regularization: float, num_threads: int = 0
) -> NDArray[np.float32]:
    """Solve the factor of every user, each by ``solve_user_factor``, in parallel.

    Parameters
    ----------
    item_factors : ndarray of shape (n_items, factors), float32
    confidence : csr_matrix of shape (n_users, n_items), float32
        c of each positive.
    regularization : float
        λ, greater than 0.
    num_threads : int
        0 for all cores; it never changes a bit of the result.

    Returns
    -------
    ndarray of shape (n_users, factors), float32
        Zeros for users without positives.
    """
    solved = np.zeros((confidence.shape[0], item_factors.shape[1]), dtype=np.float32)

    def solve(users: NDArray[np.int64]) -> None:
        for user in users:
            row = slice(confidence.indptr[user], confidence.indptr[user + 1])
            solved[user] = solve_user_factor(
                item_factors, shared, confidence.indices[row], confidence.data[row], regularization
            )

    with threadpool_limits(1, "blas"), cancelling_pool(num_threads or count_cores()) as pool:
        shared = gramian(item_factors)
        with_positives = np.flatnonzero(np.diff(confidence.indptr))
        list(pool.map(solve, np.array_split(with_positives, len(with_positives) // _USERS_PER_BLOCK + 1)))
    return solved
