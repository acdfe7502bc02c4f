"""The order of a recommendation list, the same in evaluation and in the service.

Scores fall, and equal scores are ordered by item index, so a ranking is a function of the scores alone: not of the
block size, the platform's sort or the number of threads. Nothing here knows what the scores mean.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

EXCLUDED = np.float32(-np.inf)  # the score of an item that must not be listed
PADDING = -1  # the item index of a place for which no item was left


def top_k(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Return each row's ``k`` best items, best first.

    Parameters
    ----------
    scores : ndarray of shape (n_rows, n_items), float32
        ``EXCLUDED`` (−inf) marks items that must not be listed. NaN is not allowed.
    k : int
        Length of the lists, at least 1; may exceed ``n_items``.

    Returns
    -------
    ndarray of shape (n_rows, k), int64
        Item indices. Equal scores stand in the order of their index. Places for which no item is left hold −1.
    """
    keys = _sort_keys(scores)
    n_found = min(k, scores.shape[1])
    if n_found < scores.shape[1]:
        keys.partition(n_found - 1, axis=1)
    best = np.sort(keys[:, :n_found], axis=1)
    items = best & 0xFFFFFFFF
    items[np.take_along_axis(scores, items, axis=1) == EXCLUDED] = PADDING
    if n_found == k:
        return items
    return np.pad(items, ((0, 0), (0, k - n_found)), constant_values=PADDING)


def _sort_keys(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Pack (falling score, rising index) into one integer, so that keys are unique and ties cannot move."""
    bits = (np.float32(0.0) - scores).view(np.int32)  # falling becomes rising; 0 − x also makes 0.0 of both zeros
    # IEEE 754 numbers order like their bits when positive, and in reverse when negative: turn those around.
    bits ^= (bits >> 31) & np.int32(0x7FFFFFFF)
    keys = bits.astype(np.int64) << 32
    keys |= np.arange(scores.shape[1])
    return keys
