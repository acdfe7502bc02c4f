"""Offline evaluation: rank a task with a model, measure the ranking, say how sure the figures are.

``RankingTask + Scorer ─▶ Run ─▶ metrics``. Metrics are computed from the very lists that ``write_trec`` exports, so
that anyone can check them with other tools. Nothing here fits a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.als import Factors
from app.core import UNKNOWN, Split
from app.protocols import STAGES, RankingTask
from app.ranking import EXCLUDED, PADDING, top_k

CUTOFFS = (5, 10, 20)
DEPTH = 100  # length of the exported lists
N_RESAMPLES = 1_000
_BLOCK_CELLS = 1 << 19  # scores held at once; with their sort keys some 15 MiB, which caches still hold

DEFINITIONS = {
    "recall@k": "relevant movies among the first k / relevant movies: with one held-out movie, 1 if it is there",
    "precision@k": "relevant movies among the first k / k, also where fewer than k movies are left to rank",
    "ndcg@k": "sum over the relevant among the first k of 1/log2(rank + 1), rank from 1, divided by the same sum of "
    "the best possible order: min(k, relevant) movies first",
    "mean": "over all target users, those without any hit included",
    "ties": "equal scores are ordered by movie_id, the lower first",
    "targets": "held-out movies outside the train catalogue are skipped; the whole catalogue is ranked",
    "interval": f"95 % percentile bootstrap over target users ({N_RESAMPLES} resamples), given the fitted model",
}

Scorer = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""Maps places in the task (indices into ``target_users``), in rising order and once, to scores (n_places, n_items).

The caller may overwrite the scores."""


@dataclass(frozen=True)
class Run:
    """Ranked lists of one model on one task: ``items`` of shape (n_targets, depth), int32, −1 where none was left."""

    items: NDArray[np.int32]


def als_scorer(task: RankingTask, factors: Factors) -> Scorer:
    """Score by dot product; users without a positive to learn from get the popular order, as in the service."""
    # In float64, then rounded: the last bits of a float32 product depend on the block's shape and the BLAS threads,
    # and with them the order of nearly equal scores.
    item_factors = factors.item_factors.T.astype(np.float64)  # (factors, n_items)
    by_popularity = popular_scorer(task)
    n_learned = np.diff(task.user_items.indptr)

    def score(places: NDArray[np.int64]) -> NDArray[np.float32]:
        users = task.target_users[places]
        scores = (factors.user_factors[users] @ item_factors).astype(np.float32)
        without = n_learned[users] == 0
        scores[without] = by_popularity(places[without])
        return scores

    return score


def popular_scorer(task: RankingTask) -> Scorer:
    """Score every movie by its number of positives in the task's matrix, alike for all users."""
    counts = np.bincount(task.user_items.indices, minlength=len(task.items)).astype(np.float32)
    return lambda places: np.tile(counts, (len(places), 1))


def random_scorer(task: RankingTask, random_state: int) -> Scorer:
    """Score at random: the floor that every model must clear."""
    rng = np.random.default_rng(random_state)
    return lambda places: rng.random((len(places), len(task.items)), dtype=np.float32)


def scorers(task: RankingTask, factors: Factors, random_state: int) -> dict[str, Scorer]:
    """Return the model and the baselines that stand beside it in every table, by name."""
    return {
        "als": als_scorer(task, factors),
        "popular": popular_scorer(task),
        "random": random_scorer(task, random_state),
    }


def rank(task: RankingTask, scorer: Scorer, depth: int = DEPTH) -> Run:
    """Rank the catalogue for every target user, in blocks, so that memory stays bounded.

    Returns
    -------
    Run
        The ``depth`` best movies of each target user, less what the task removes from that user's ranking.
    """
    items = np.empty((task.n_targets, depth), dtype=np.int32)
    for places in _blocks(task.n_targets, len(task.items)):
        scores = scorer(places)
        seen = task.seen[places]
        scores[np.repeat(np.arange(len(places)), np.diff(seen.indptr)), seen.indices] = EXCLUDED
        items[places] = top_k(scores, depth)
    return Run(items)


def _blocks(n_rows: int, n_items: int) -> Iterator[NDArray[np.int64]]:
    size = max(1, _BLOCK_CELLS // n_items)
    for start in range(0, n_rows, size):
        yield np.arange(start, min(start + size, n_rows), dtype=np.int64)


def measure(run: Run, task: RankingTask) -> dict[str, NDArray[np.float64]]:
    """Measure every list of a run; the definitions are ``DEFINITIONS``.

    Returns
    -------
    dict of ndarray of shape (n_targets,), float64
        Per target user: ``recall@k``, ``precision@k`` and ``ndcg@k`` for k in 5, 10, 20.
    """
    hits = (run.items == task.target_items[:, None]) & (run.items != PADDING)
    return ranking_metrics(hits, np.ones(task.n_targets, dtype=np.int64))


def ranking_metrics(
    hits: NDArray[np.bool_], n_relevant: NDArray[np.int64], cutoffs: tuple[int, ...] = CUTOFFS
) -> dict[str, NDArray[np.float64]]:
    """Compute Recall, Precision and NDCG of ranked lists.

    Parameters
    ----------
    hits : ndarray of shape (n_lists, depth), bool
        Whether the item at each rank is relevant; ``depth`` is at least the largest cutoff.
    n_relevant : ndarray of shape (n_lists,), int
        How many items are relevant, found or not; at least 1.

    Returns
    -------
    dict of ndarray of shape (n_lists,), float64
    """
    discount = 1.0 / np.log2(np.arange(2, max(cutoffs) + 2))
    best_gain = np.concatenate([[0.0], np.cumsum(discount)])  # of the first 0, 1, 2 … ranks
    metrics = {}
    for k in cutoffs:
        found = hits[:, :k].sum(axis=1)
        metrics[f"recall@{k}"] = found / n_relevant
        metrics[f"precision@{k}"] = found / k
        metrics[f"ndcg@{k}"] = (hits[:, :k] @ discount[:k]) / best_gain[np.minimum(k, n_relevant)]
    return metrics


def intervals(
    metrics: Mapping[str, NDArray[np.float64]], random_state: int, n_resamples: int = N_RESAMPLES
) -> dict[str, list[float]]:
    """Return 95 % percentile bootstrap intervals of the means over users.

    They say how the figure would vary over other users of the same kind with the same fitted model, not over training
    seeds. One resampling serves all metrics, so that they vary together.
    """
    values = np.column_stack(list(metrics.values()))  # (n_users, n_metrics)
    rng = np.random.default_rng(random_state)
    means = np.empty((n_resamples, values.shape[1]))
    for resample in range(n_resamples):
        drawn = np.bincount(rng.integers(len(values), size=len(values)), minlength=len(values))
        means[resample] = drawn @ values / len(values)
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return {name: [float(low[i]), float(high[i])] for i, name in enumerate(metrics)}


@dataclass(frozen=True)
class TaskResult:
    """What evaluation found on one task, by model: means, their intervals, and the lists themselves."""

    task: RankingTask
    means: dict[str, dict[str, float]]
    intervals: dict[str, dict[str, list[float]]]
    runs: dict[str, Run]


def evaluate(
    task: RankingTask,
    scorers: Mapping[str, Scorer],
    random_state: int,
    on_model: Callable[[], object] = lambda: None,
) -> TaskResult:
    """Rank one task with every model and measure the lists.

    Parameters
    ----------
    scorers : mapping of str to Scorer
        By the model's name in ``metrics.json``.
    random_state : int
        Seed of the bootstrap.
    on_model : callable
        Called after each model, for a progress bar.
    """
    result = TaskResult(task, means={}, intervals={}, runs={})
    for model, scorer in scorers.items():
        result.runs[model] = rank(task, scorer)
        metrics = measure(result.runs[model], task)
        result.means[model] = {name: float(values.mean()) for name, values in metrics.items()}
        result.intervals[model] = intervals(metrics, random_state)
        on_model()
    return result


def describe_results(split: Split, results: Sequence[TaskResult]) -> dict[str, Any]:
    """Compose ``metrics.json``: the split, and by protocol and model unrounded means with their intervals."""
    counts = {stage: int((split.items.index(getattr(split, stage)["movie_id"]) != UNKNOWN).sum()) for stage in STAGES}
    return {
        "split": {
            "name": "leave-one-out",
            "n_train": len(split.train),
            "n_users": len(split.users),
            "n_items": len(split.items),
            **{f"n_{stage}": count for stage, count in counts.items()},
        },
        "stage": results[0].task.stage,
        "protocols": {result.task.protocol: result.means for result in results},
        "intervals": {result.task.protocol: result.intervals for result in results},
        "definitions": DEFINITIONS,
    }


def write_trec(folder: Path, task: RankingTask, runs: Mapping[str, Run]) -> None:
    """Write truths and rankings as TREC files: ``qrels.txt`` and ``run.<model>.txt``.

    Ids are user_id and movie_id. The score column is 1/rank: strictly falling, so that no tool can reorder ties.
    """
    folder.mkdir(parents=True, exist_ok=True)
    user_ids, target_ids = task.users.ids[task.target_users], task.items.ids[task.target_items]
    qrels = [f"{user} 0 {movie} 1\n" for user, movie in zip(user_ids, target_ids, strict=True)]
    (folder / "qrels.txt").write_text("".join(qrels), encoding="ascii")
    for model, run in runs.items():
        with (folder / f"run.{model}.txt").open("w", encoding="ascii") as file:
            for user, items in zip(user_ids, run.items, strict=True):
                movies = task.items.ids[items[items != PADDING]]
                file.writelines(
                    f"{user} Q0 {movie} {place} {1.0 / place:.10f} {model}\n"
                    for place, movie in enumerate(movies, start=1)
                )
