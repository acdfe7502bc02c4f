"""Ranked lists: the catalogue in a model's order, less what is removed, and where the relevant movies stand in it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from app.evaluation.scorers import Scorer
from app.ranking import EXCLUDED, PADDING, top_k

DEPTH = 100  # length of the exported lists
_BLOCK_CELLS = 1 << 19  # scores held at once; with their sort keys some 15 MiB, which caches still hold


def rank(seen: sp.csr_matrix, scorer: Scorer, depth: int = DEPTH) -> NDArray[np.int32]:
    """Rank the catalogue for every user, in blocks, so that memory stays bounded.

    Parameters
    ----------
    seen : csr_matrix of shape (n_targets, n_items)
        Non-zero where a movie is removed from the user's ranking.

    Returns
    -------
    ndarray of shape (n_targets, depth), int32
        Item indices of the ``depth`` best, best first; −1 where none was left.
    """
    n_targets, n_items = seen.shape
    items = np.empty((n_targets, depth), dtype=np.int32)
    for places in _blocks(n_targets, n_items):
        scores = scorer(places)
        removed = seen[places]
        scores[np.repeat(np.arange(len(places)), np.diff(removed.indptr)), removed.indices] = EXCLUDED
        items[places] = top_k(scores, depth)
    return items


def _blocks(n_rows: int, n_items: int) -> Iterator[NDArray[np.int64]]:
    size = max(1, _BLOCK_CELLS // n_items)
    for start in range(0, n_rows, size):
        yield np.arange(start, min(start + size, n_rows), dtype=np.int64)


def find_hits(items: NDArray[np.int32], relevant: sp.csr_matrix) -> NDArray[np.bool_]:
    """Return which places of the lists hold a relevant item, of the shape of ``items``.

    Parameters
    ----------
    relevant : csr_matrix of shape (n_targets, n_items)
        Column indices sorted within a row.
    """
    n_items = relevant.shape[1]
    rows = np.repeat(np.arange(relevant.shape[0], dtype=np.int64), np.diff(relevant.indptr))
    wanted = rows * n_items + relevant.indices  # rising
    listed = np.arange(len(items), dtype=np.int64)[:, None] * n_items + items
    place = np.minimum(np.searchsorted(wanted, listed), len(wanted) - 1)
    is_hit: NDArray[np.bool_] = (wanted[place] == listed) & (items != PADDING)
    return is_hit
