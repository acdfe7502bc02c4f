"""What new users get through the second stage, beside folding in alone and the popular list.

    python benchmarks/ranker_cold.py [--folds 4]

Users are held out as a whole, in folds; both stages are trained on the others as ``train_als.py --ranker`` does it. A
held-out user's first n positives by time are what ``/recommend_cold?liked=…`` is given, and the first later one must be
found, as in the cold start of ``train_als.py``. Prints Recall@10 and NDCG@10 with 95 % intervals, and the ranker less
folding in, paired. The data is that of $MOVIELENS_DIR, else data_small/ml-latest-small.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
from data import FOLDER  # first: it makes app importable
from numpy.typing import NDArray

from app import core
from app.als import AlsConfig
from app.candidates import Context, Query
from app.core import MAX_RATING, MIN_RATING, IdMap
from app.datasets.locate import Source
from app.evaluation.bootstrap import interval, resampled_means
from app.evaluation.cold_start import N_LIKED, first_and_next
from app.evaluation.lists import find_hits
from app.evaluation.metrics import ranking_metrics
from app.history import History, build_history
from app.ranker import RankerConfig
from app.ranking import PADDING, top_k
from app.second_stage import Learner, train_ranker

METRICS = ("recall@10", "ndcg@10")
MODELS = ("ranker", "fold_in", "popular")
Measured = dict[int, list[NDArray[np.float64]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folds", type=int, default=4)
    n_folds = parser.parse_args().folds
    dataset = core.load(Source(None, FOLDER))
    users = np.random.default_rng(42).permutation(dataset.ratings["user_id"].unique())
    measured: Measured = {n: [] for n in N_LIKED}
    for held_out in np.array_split(users, n_folds):
        _measure_fold(dataset, held_out, measured)
    for n, parts in measured.items():
        values = np.concatenate(parts)  # (n_users, n_models, n_metrics)
        print(
            f"{n} likes, {len(values)} users: " + "; ".join(_text(values, i) for i in range(len(METRICS))), flush=True
        )


def _measure_fold(dataset: core.Dataset, held_out: NDArray[np.int64], measured: Measured) -> None:
    is_held_out = dataset.ratings["user_id"].isin(held_out)
    others = replace(
        dataset, ratings=dataset.ratings[~is_held_out], tags=dataset.tags[~dataset.tags["user_id"].isin(held_out)]
    )
    users, items = IdMap.of(others.ratings["user_id"]), IdMap.of(core.positives(others.ratings)["movie_id"])
    learner, config = Learner(others, users, items, AlsConfig()), RankerConfig()
    history = build_history(others.ratings, users, items)
    ranker = train_ranker(tuple(learner.stages(history, others.tags, config)), config, learner.als.random_state)
    learned = learner.learn(history, others.tags)
    _, gap, last = learned.tables.typical.tolist()
    for n in N_LIKED:
        liked, relevant, _ = first_and_next(core.positives(dataset.ratings[is_held_out]), items, n)
        lists = np.full((len(MODELS), relevant.shape[0], 10), PADDING, dtype=np.int32)
        for row in range(relevant.shape[0]):
            seeds = np.sort(liked[row].indices)
            rating, times = (
                np.full(len(seeds), (MIN_RATING + MAX_RATING) / 2, np.float32),
                np.full(len(seeds), int(last)),
            )
            context = Context(learned.knowledge, Query(History(seeds, rating, times), int(last + gap)))
            popular = learned.knowledge.popularity.copy()
            popular[seeds] = -np.inf
            lists[2, row] = top_k(popular[None], 10)[0]
            lists[1, row] = top_k(context.als_scores[None], 10)[0] if len(seeds) else lists[2, row]
            ranked = ranker.rank(context)[0][:10] if len(seeds) else lists[2, row]
            lists[0, row, : len(ranked)] = ranked
        n_relevant = np.diff(relevant.indptr)
        found = [ranking_metrics(find_hits(of_model, relevant), n_relevant, (10,)) for of_model in lists]
        measured[n].append(np.stack([[values[metric] for metric in METRICS] for values in found]).transpose(2, 0, 1))


def _text(values: NDArray[np.float64], metric: int) -> str:
    of_metric = values[:, :, metric]
    columns = np.column_stack([of_metric, of_metric[:, 0] - of_metric[:, 1]])
    resampled = resampled_means(columns, 42)
    parts = [
        f"{name} {columns[:, i].mean():.3f} ({', '.join(f'{bound:.3f}' for bound in interval(resampled[:, i]) or ())})"
        for i, name in enumerate((*MODELS, "ranker less fold_in"))
    ]
    return f"{METRICS[metric]} {', '.join(parts)}"


if __name__ == "__main__":
    main()
