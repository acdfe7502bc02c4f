"""The order of a list moved by three dials: rarer movies, more different ones, or the user's own mix of genres.

``candidates of whichever stage ─▶ rerank ─▶ routers``. Pure functions of arrays: nothing here knows models, files or
HTTP, and no score is changed. What is not among the candidates cannot come into the list, so ask for more than ``k``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from app.errors import ConfigError

# What similarity 1 costs, and what a standard deviation of information is worth, in standard deviations of relevance.
# Chosen on validation (ml-latest-small, the ranker's candidates), so that what a dial brings, and costs, is spread over
# it: at .3 some 2 to 5 % of NDCG@10. With 1 for both, two thirds of the diversity come after .9; novelty costs 10 %.
_SIMILARITY_SCALE, _INFORMATION_SCALE = 7.0, 0.5
_SMOOTHING = 0.01  # Steck's α: share of the user's mix in the list's, without which a missing genre costs infinity


@dataclass(frozen=True)
class Dials:
    """How far a list is moved from the order of its scores, 0 to 1 each; 0 leaves it.

    Raises
    ------
    ConfigError
        If a dial is not a number from 0 to 1.
    """

    novelty: float = 0.0  # towards movies that few people know
    diversity: float = 0.0  # towards movies that differ from those above them, in genres and in who likes them
    calibrate: float = 0.0  # towards genres mixed as in what the user likes

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 <= value <= 1:  # nor is NaN
                raise ConfigError(
                    f"{field.name} is {value!r}; expected a number from 0, which leaves the order as it is, to 1"
                )

    @property
    def are_zero(self) -> bool:
        return self == NEUTRAL


NEUTRAL = Dials()


@dataclass(frozen=True)
class Traits:
    """What re-ranking knows about the movies of the catalogue.

    Parameters
    ----------
    information : ndarray of shape (n_items,), float32
        How little known each movie is, in bits; see ``information``.
    genres : ndarray of shape (n_items, n_genres), float32
        1 where the movie has the genre.
    directions : ndarray of shape (n_items, factors), float32
        Item factors of unit length; those that are zero stay zero.
    """

    information: NDArray[np.float32]
    genres: NDArray[np.float32]
    directions: NDArray[np.float32]


def information(popularity: NDArray[np.integer] | NDArray[np.floating]) -> NDArray[np.float32]:
    """Return −log2(positives of the movie / all positives); a movie without any counts as having one."""
    share = np.maximum(popularity, 1) / max(popularity.sum(dtype=np.float64), 1)
    return np.asarray(-np.log2(share), dtype=np.float32)


def genre_mix(genres_of_liked: NDArray[np.float32], weights: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return a user's distribution over genres: the weighted mean of that of each movie that they like.

    p(g) = Σ_i w_i p(g|i) / Σ_i w_i, where p(g|i) = 1 / (genres of i) for each genre of the movie, and i runs over the
    movies that have a genre.

    Parameters
    ----------
    genres_of_liked : ndarray of shape (n_liked, n_genres)
        1 where the movie has the genre.
    weights : ndarray of shape (n_liked,)
        How much each movie counts, at least 0.

    Returns
    -------
    ndarray of shape (n_genres,), float64
        Sums to 1; zeros if no movie with a weight has a genre.

    References
    ----------
    Steck, "Calibrated recommendations" (RecSys 2018).
    """
    mix = np.asarray(weights, dtype=np.float64) @ _genre_shares(genres_of_liked)
    total = mix.sum()
    return mix / total if total > 0 else mix


def miscalibration(genres_of_listed: NDArray[np.float32], mix: NDArray[np.floating]) -> float:
    """Return KL(p ‖ q̃) of a list, as in ``rerank``; NaN if the user's mix p is zero.

    Parameters
    ----------
    genres_of_listed : ndarray of shape (n_listed, n_genres)
    mix : ndarray of shape (n_genres,)
    """
    if len(genres_of_listed) == 0 or not mix.any():
        return float("nan")
    *others, last = range(len(genres_of_listed))
    divergence = _Miscalibration(1.0, genres_of_listed, mix)
    for place in others:
        divergence.add(place)
    return float(divergence.cost()[last] / len(genres_of_listed))


def rerank(
    items: NDArray[np.integer],
    scores: NDArray[np.float32],
    k: int,
    dials: Dials,
    traits: Traits,
    genre_mix: NDArray[np.floating] | None = None,
) -> NDArray[np.int64]:
    """Choose ``k`` of the candidates, one after the other, weighing relevance against what the dials ask for.

    With S the movies chosen so far, the next is

        argmax_i (1−d)(1−c) r_i − d · 7 · mean_{j∈S} sim(i, j) − c · (|S| + 1) · KL(p ‖ q̃_{S+i})

        r = (1−w) z(scores) + w · ½ · z(information)
        sim(i, j) = ½ Jaccard of the genres + ½ max(0, cosine of the directions)
        KL(p ‖ q̃) = Σ_g p_g ln(p_g / q̃_g), where q̃ = .99 q + .01 p

    for novelty w, diversity d and calibrate c. z standardises over the candidates, so the unit of the scores does not
    matter. q is the mean of the genre distributions of S and i, movies without genres aside. Equal utilities are
    ordered by r, then as they were given.

    Parameters
    ----------
    items : ndarray of shape (n,), int
        Item indices of the candidates, best first.
    scores : ndarray of shape (n,), float32
        Their finite scores, falling.
    k : int
        Length of the list, at least 0; may exceed ``n``.
    genre_mix : ndarray of shape (n_genres,), optional
        The user's distribution p over genres; see ``genre_mix``. Without one, or if it is zero, c counts as 0.

    Returns
    -------
    ndarray of shape (min(k, n),), int64
        Item indices in their new order; the first of ``items`` if all dials are 0.

    References
    ----------
    Carbonell and Goldstein, "The use of MMR, diversity-based reranking for reordering documents and producing
    summaries" (SIGIR 1998), with the mean in place of the largest similarity. Steck, "Calibrated recommendations"
    (RecSys 2018), with the mean in place of the sum of relevance, which is what |S| + 1 amounts to.
    """
    k = min(k, len(items))
    if dials.are_zero or k == 0:
        return items[:k].astype(np.int64)
    relevance = _standardise(scores)
    if dials.novelty:
        rarity = _INFORMATION_SCALE * _standardise(traits.information[items])
        relevance = (1 - dials.novelty) * relevance + dials.novelty * rarity
    order = np.argsort(-relevance, kind="stable")
    candidates, relevance = items[order].astype(np.int64), relevance[order]
    penalties: list[_Similarity | _Miscalibration] = []
    if dials.diversity:
        relevance = (1 - dials.diversity) * relevance
        penalties.append(_Similarity(dials.diversity, traits.genres[candidates], traits.directions[candidates]))
    if dials.calibrate and genre_mix is not None and genre_mix.any():
        relevance = (1 - dials.calibrate) * relevance
        penalties.append(_Miscalibration(dials.calibrate, traits.genres[candidates], genre_mix))
    return candidates[_choose(relevance, penalties, k)] if penalties else candidates[:k]


def _choose(
    relevance: NDArray[np.float64], penalties: list[_Similarity | _Miscalibration], k: int
) -> NDArray[np.int64]:
    """Return the positions of ``k`` candidates, each the best beside those before it; the first of equals."""
    chosen = np.empty(k, dtype=np.int64)
    left = relevance.copy()
    for place in range(k):
        utility = left - sum(penalty.cost() for penalty in penalties)
        best = int(utility.argmax())
        chosen[place], left[best] = best, -np.inf
        for penalty in penalties:
            penalty.add(best)
    return chosen


class _Similarity:
    """The candidates' mean similarity to those chosen.

    The mean, not the largest as in the paper, because diversity is measured by the mean over pairs. On ml-latest-small,
    12 % of the steps of .1 of the dial make a list of 10 less diverse; with the largest, scaled to the same diversity
    at .5, 17 % do, and the dial ends at .954 instead of .966.
    """

    def __init__(self, weight: float, genres: NDArray[np.float32], directions: NDArray[np.float32]) -> None:
        self.weight = weight * _SIMILARITY_SCALE
        self.genres, self.directions = genres.astype(np.float64), directions.astype(np.float64)
        self.n_genres = self.genres.sum(axis=1)
        self.total = np.zeros(len(genres))
        self.n_chosen = 0

    def cost(self) -> NDArray[np.float64]:
        return self.total * (self.weight / max(self.n_chosen, 1))

    def add(self, chosen: int) -> None:
        both = self.genres @ self.genres[chosen]
        either = self.n_genres + self.n_genres[chosen] - both
        jaccard = np.divide(both, either, out=np.ones_like(both), where=either > 0)
        self.total += 0.5 * jaccard + 0.5 * np.maximum(self.directions @ self.directions[chosen], 0)
        self.n_chosen += 1


class _Miscalibration:
    """How far the list's mix of genres would be from the user's with each candidate.

    Times the list's length, since one movie moves the mix ever less, but adds its whole relevance. Without, the first
    half of the dial brings 2 % of the gain in a list of 50; with it, half.
    """

    def __init__(self, weight: float, genres: NDArray[np.float32], mix: NDArray[np.floating]) -> None:
        wanted = mix > 0  # the others' terms of the divergence are 0
        self.weight = weight
        self.mix = mix[wanted].astype(np.float64)
        self.shares = _genre_shares(genres)[:, wanted]
        self.has_genres = genres.sum(axis=1) > 0
        self.total = np.zeros(len(self.mix))
        self.n_with_genres = self.n_chosen = 0

    def cost(self) -> NDArray[np.float64]:
        n_with_genres = np.maximum(self.n_with_genres + self.has_genres, 1)
        listed = (self.total + self.shares) / n_with_genres[:, None]  # (n, n_wanted): q of the list with each
        smoothed = (1 - _SMOOTHING) * listed + _SMOOTHING * self.mix
        divergence: NDArray[np.float64] = np.log(self.mix / smoothed) @ self.mix
        return self.weight * (self.n_chosen + 1) * divergence

    def add(self, chosen: int) -> None:
        self.total += self.shares[chosen]
        self.n_with_genres += int(self.has_genres[chosen])
        self.n_chosen += 1


def _standardise(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Bring to mean 0 and standard deviation 1; equal values become zeros."""
    centred = values - values.astype(np.float64).mean()
    return centred / centred.std() if np.ptp(centred) > 0 else np.zeros(len(values))


def _genre_shares(genres: NDArray[np.float32]) -> NDArray[np.float64]:
    """Divide each movie among its genres; movies without any stay zero."""
    shares: NDArray[np.float64] = genres / np.maximum(genres.sum(axis=1, keepdims=True, dtype=np.float64), 1)
    return shares
