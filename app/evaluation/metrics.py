"""What is measured in ranked lists, and how each measure is defined.

``hits, lists ─▶ metrics``. Functions of arrays alone: nothing here knows models, protocols or files. Everything is
vectorised over users; a measure that is undefined for a user is NaN there and left out of the mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.ranking import PADDING

CUTOFFS = (5, 10, 20)
HEADLINES = ("recall@10", "recall@20", "ndcg@10", "ndcg@20")  # what is shown where there is room for few
LONG_TAIL_SHARE = 0.2  # the most popular movies that are not long tail
# Share of the catalogue, most popular first, at which each band ends.
BANDS = {"top 1 %": 0.01, "1–5 %": 0.05, "5–20 %": LONG_TAIL_SHARE, "long tail": 1.0}

DEFINITIONS = {
    "recall@k": "relevant movies among the first k / relevant movies: with one held-out movie, 1 if it is there",
    "precision@k": "relevant movies among the first k / k, also where fewer than k movies are left to rank",
    "ndcg@k": "sum over the relevant among the first k of 1/log2(rank + 1), rank from 1, divided by the same sum of "
    "the best possible order: min(k, relevant) movies first",
    "map@k": "average precision: sum over the relevant among the first k of (relevant up to that rank / rank), divided "
    "by the number of relevant movies, found or not, as trec_eval does",
    "mrr@k": "1 / rank of the first relevant movie, 0 if it is not among the first k",
    "recall_with_new@k": "recall@k with the held-out movies that are outside the catalogue counted as relevant and "
    "missed; only where there are such movies, and over users who also have one inside",
    "recall_long_tail@k": "recall@k of the held-out movies of the long tail alone, over the users who have one",
    "long_tail@k": "movies of the long tail among the first k / movies among the first k",
    "novelty@k": "mean over the first k of −log2(positives of the movie / all positives) as the models learned from; "
    "a movie without any counts as having one",
    "diversity@k": "mean over the pairs of the first k of 1 − |A ∩ B| / |A ∪ B|, A and B the genres of the two movies; "
    "two movies without genres are alike; undefined for fewer than two movies",
    "coverage@k": "different movies among the first k of all users / movies of the catalogue; no mean over users",
    "gini@k": "Gini coefficient of how often each movie of the catalogue is among the first k: 0 if all are equally "
    "often, towards 1 if one movie is all that anybody sees; no mean over users",
    "long tail": f"movies outside the most popular {LONG_TAIL_SHARE:.0%} of the catalogue by number of positives, "
    "equally popular ones by movie_id",
    "exposure": "share of the first 10 of all users that falls into each band of popularity; held out: the same of the "
    "held-out movies",
    "recall_by_k": "recall@k for more k",
    "differences": "als less the baseline, over the same users",
    "loss": "of AlsConfig on the matrix that the served factors were fitted on, divided by the sum of all confidences",
    "mean": "over all target users for whom the measure is defined, those without any hit included",
    "ties": "equal scores are ordered by movie_id, the lower first",
    "targets": "held-out movies outside the train catalogue are skipped; the whole catalogue is ranked",
}


@dataclass(frozen=True)
class Catalogue:
    """What the measures beyond accuracy know about the ranked movies.

    Parameters
    ----------
    popularity : ndarray of shape (n_items,), int64
        Positives of each movie that models learned from.
    band : ndarray of shape (n_items,), int64
        Position in ``BANDS`` of each movie: 0 for the most popular, the last for the long tail.
    genres : ndarray of shape (n_items, n_genres), float32
        1 where the movie has the genre.
    """

    popularity: NDArray[np.int64]
    band: NDArray[np.int64]
    genres: NDArray[np.float32]

    @property
    def is_long_tail(self) -> NDArray[np.bool_]:
        is_last: NDArray[np.bool_] = self.band == len(BANDS) - 1
        return is_last


def popularity_bands(popularity: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the band (index into ``BANDS``) of each movie; equally popular ones are ordered by index."""
    place = np.empty(len(popularity), dtype=np.int64)
    place[np.argsort(-popularity, kind="stable")] = np.arange(len(popularity))
    ends = np.ceil(np.array(list(BANDS.values())) * len(popularity))
    return np.searchsorted(ends, place, side="right")


def ranking_metrics(
    hits: NDArray[np.bool_], n_relevant: NDArray[np.int64], cutoffs: tuple[int, ...] = CUTOFFS
) -> dict[str, NDArray[np.float64]]:
    """Compute Recall, Precision, NDCG, MAP and MRR of ranked lists; the definitions are ``DEFINITIONS``.

    Parameters
    ----------
    hits : ndarray of shape (n_lists, depth), bool
        Whether the item at each rank is relevant; ``depth`` is at least the largest cutoff.
    n_relevant : ndarray of shape (n_lists,), int
        How many items are relevant, found or not; where it is 0 nothing is defined, and all measures are NaN.

    Returns
    -------
    dict of ndarray of shape (n_lists,), float64

    References
    ----------
    Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques" (TOIS 2002), for NDCG; trec_eval.
    """
    depth = max(cutoffs)
    ranks = np.arange(1, depth + 1)
    discount = 1.0 / np.log2(ranks + 1)
    best_gain = np.concatenate([[np.nan], np.cumsum(discount)])  # of the first 0, 1, 2 … ranks
    found = np.cumsum(hits[:, :depth], axis=1)
    gain = np.cumsum(hits[:, :depth] * discount, axis=1)
    precision_at_hits = np.cumsum(hits[:, :depth] * found / ranks, axis=1)
    first_hit = np.where(hits[:, :depth].any(axis=1), hits[:, :depth].argmax(axis=1) + 1.0, np.inf)
    relevant = np.where(n_relevant > 0, n_relevant, np.nan)
    metrics = {}
    for k in cutoffs:
        metrics[f"recall@{k}"] = found[:, k - 1] / relevant
        metrics[f"precision@{k}"] = np.where(n_relevant > 0, found[:, k - 1] / k, np.nan)
        metrics[f"ndcg@{k}"] = gain[:, k - 1] / best_gain[np.minimum(k, n_relevant)]
        metrics[f"map@{k}"] = precision_at_hits[:, k - 1] / relevant
        metrics[f"mrr@{k}"] = np.where(n_relevant > 0, (first_hit <= k) / first_hit, np.nan)
    return metrics


def list_metrics(
    items: NDArray[np.int32], catalogue: Catalogue, cutoffs: tuple[int, ...] = CUTOFFS
) -> dict[str, NDArray[np.float64]]:
    """Compute the long-tail share, novelty and genre diversity of ranked lists; see ``DEFINITIONS``.

    Parameters
    ----------
    items : ndarray of shape (n_lists, depth), int
        Item indices, best first, −1 where none was left.

    Returns
    -------
    dict of ndarray of shape (n_lists,), float64
        NaN for an empty list, and the diversity of a list of one.
    """
    listed = items[:, : max(cutoffs)] != PADDING
    n_listed = np.cumsum(listed, axis=1).astype(np.float64)
    n_listed[n_listed == 0] = np.nan
    share = np.maximum(catalogue.popularity, 1) / max(catalogue.popularity.sum(), 1)
    n_long_tail = np.cumsum(_look_up(catalogue.is_long_tail.astype(np.float64), items, listed), axis=1)
    information = np.cumsum(_look_up(-np.log2(share), items, listed), axis=1)
    dissimilarity = _pairwise_dissimilarity(items[:, : max(cutoffs)], listed, catalogue.genres)
    metrics = {}
    for k in cutoffs:
        n = n_listed[:, k - 1]
        metrics[f"long_tail@{k}"] = n_long_tail[:, k - 1] / n
        metrics[f"novelty@{k}"] = information[:, k - 1] / n
        n_pairs = np.where(n > 1, n * (n - 1) / 2, np.nan)
        metrics[f"diversity@{k}"] = dissimilarity[:, k - 1] / n_pairs
    return metrics


def _look_up(values: NDArray[np.float64], items: NDArray[np.int32], listed: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.where(listed, values[items[:, : listed.shape[1]]], 0.0)


def _pairwise_dissimilarity(
    items: NDArray[np.int32], listed: NDArray[np.bool_], genres: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Return the sum of 1 − Jaccard over the pairs of the first 1, 2, 3 … of each list, (n_lists, depth)."""
    depth = items.shape[1]
    earlier = np.tri(depth, k=-1)  # pairs (a, b) with b before a, each once
    total = np.empty(items.shape)
    for block in np.array_split(np.arange(len(items)), len(items) // 1024 + 1):
        has = genres[items[block]].astype(np.float64)  # (n_block, depth, n_genres)
        both = has @ has.transpose(0, 2, 1)
        size = has.sum(axis=2)
        either = size[:, :, None] + size[:, None, :] - both
        alike = np.divide(both, either, out=np.ones_like(both), where=either > 0)
        counts = listed[block][:, :, None] & listed[block][:, None, :]
        added = ((1.0 - alike) * counts * earlier).sum(axis=2)
        total[block] = np.cumsum(added, axis=1)
    return total


def catalogue_metrics(items: NDArray[np.int32], n_items: int, cutoffs: tuple[int, ...] = CUTOFFS) -> dict[str, float]:
    """Compute coverage and the Gini coefficient of exposure, which belong to all lists together."""
    metrics = {}
    for k in cutoffs:
        exposure = _exposure(items, k, n_items)
        metrics[f"coverage@{k}"] = float(np.count_nonzero(exposure) / n_items)
        metrics[f"gini@{k}"] = gini(exposure)
    return metrics


def gini(counts: NDArray[np.int64]) -> float:
    """Return the Gini coefficient Σ_i (2i − n − 1) x_i / (n Σ x), x rising, i from 1; 0 if all counts are 0."""
    n, total = len(counts), counts.sum()
    if total == 0:
        return 0.0
    weights = 2 * np.arange(1, n + 1) - n - 1
    return float(weights @ np.sort(counts) / (n * total))


def exposure_by_band(items: NDArray[np.int32], band: NDArray[np.int64], k: int) -> dict[str, float]:
    """Return which share of the first k of all lists falls into each band of popularity."""
    n_listed = np.bincount(band, weights=_exposure(items, k, len(band)), minlength=len(BANDS))
    return dict(zip(BANDS, (n_listed / max(n_listed.sum(), 1)).tolist(), strict=True))


def _exposure(items: NDArray[np.int32], k: int, n_items: int) -> NDArray[np.int64]:
    """Count how often each item is among the first k."""
    first = items[:, :k]
    return np.bincount(first[first != PADDING], minlength=n_items)
