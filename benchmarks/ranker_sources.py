"""Whether EASE on all ratings earns its cost as a third source of candidates and as two more features.

    python benchmarks/ranker_sources.py [--positives 3]

On several validation positives of each user, as benchmarks/ranker.py, with test out of sight. Prints the recall of the
candidates and the headline metrics without EASE, with its score and rank as features, and with its best 150 as
candidates, too; and the paired difference of each metric with its 95 % interval. EASE is solved in its dual form, from
a matrix of users, which is what makes it possible here; to serve it takes a matrix of movies × movies.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from data import FOLDER  # first: it makes app importable
from numpy.typing import NDArray

from app import core, features, protocols
from app.als import AlsConfig
from app.candidates import Context, propose
from app.datasets.locate import Source
from app.evaluation import HEADLINES
from app.evaluation.bootstrap import interval, resampled_means
from app.evaluation.scorers import EASE_REGULARIZATION
from app.history import UserRows
from app.protocols import Requests, step_back
from app.ranker import RankerConfig
from app.ranking import EXCLUDED
from app.second_stage import Learned, Learner
from app.tuning.questions import hide_test

N_FROM_EASE = 150
CONFIG = RankerConfig()
VARIANTS = ("without", "features", "candidates and features")
Scores = Callable[[Context], NDArray[np.float32]]
Stage = tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.int64], int]
"""Features, labels, number of candidates of each request, and how many requests there are."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positives", type=int, default=3, help="held-out positives of each user")
    n_questions = parser.parse_args().positives
    chains = make_chains(n_questions + CONFIG.n_stages)
    measured = {}
    for variant in VARIANTS:
        columns = slice(None) if variant != "without" else slice(len(features.FEATURES))
        chain = chains[variant == "candidates and features"]
        parts = [_measure(chain[q], chain[q + 1 : q + 1 + CONFIG.n_stages], columns) for q in range(n_questions)]
        measured[variant] = np.concatenate(parts)
        recall = sum(int(stage[1].sum()) for stage in chain[:n_questions]) / len(measured[variant])
        less = measured[variant] - measured["without"]
        bounds = [interval(column) for column in resampled_means(less, 42).T]
        texts = (
            f"{metric} {mean:.4f}" + (f" ({change:+.4f}; {of[0]:+.4f} to {of[1]:+.4f})" if of else "")
            for metric, mean, change, of in zip(
                HEADLINES, measured[variant].mean(axis=0), less.mean(axis=0), bounds, strict=True
            )
        )
        print(f"{variant}: recall of the candidates {recall:.3f}, {', '.join(texts)}", flush=True)


def make_chains(n: int) -> tuple[list[Stage], list[Stage]]:
    """Return the stages without and with EASE's candidates, the latest first; both have its features, last."""
    dataset = core.load(Source(None, FOLDER))
    ratings, split = hide_test(dataset.ratings, core.leave_one_out(core.positives(dataset.ratings)))
    task = protocols.build_task(ratings, split, "rated", "validation")
    learner, requests, tags = Learner(dataset, split.users, split.items, AlsConfig()), task.requests, dataset.tags
    without, with_ease = [], []
    for _ in range(n):
        tags = learner.known_tags(tags, requests)
        learned = learner.learn(requests.history, tags)
        ease = _ease(requests.history, len(split.items))
        without.append(_collect(learned, requests, ease, 0))
        with_ease.append(_collect(learned, requests, ease, N_FROM_EASE))
        requests = step_back(requests.history, len(split.items))
    return without, with_ease


def _ease(history: UserRows, n_items: int) -> Scores:
    """Return s_u = w_u B, w_u the recency-weighted recent ratings, B as in ``evaluation.scorers.ease_scorer``."""
    x = history.matrix(np.ones(len(history.item_index)), n_items).astype(np.float64)
    inverse = np.linalg.inv((x @ x.T).toarray() + EASE_REGULARIZATION * np.eye(x.shape[0]))
    by_item = x.T.tocsr()
    diagonal = (1 - np.asarray(by_item.multiply(by_item @ inverse).sum(axis=1)).ravel()) / EASE_REGULARIZATION

    def score(context: Context) -> NDArray[np.float32]:
        w = np.zeros(n_items)
        w[context.recent.item_index] = context.recent_weight
        product = (w - by_item @ (inverse @ (x @ w))) / EASE_REGULARIZATION
        scores: NDArray[np.float32] = (w - product / diagonal).astype(np.float32)
        scores[context.query.history.item_index] = EXCLUDED
        return scores

    return score


def _collect(learned: Learned, requests: Requests, ease: Scores, n_from_ease: int) -> Stage:
    matrices, labels, lengths = [], [], []
    for place, (user, moment) in enumerate(zip(requests.users.tolist(), requests.moments.tolist(), strict=True)):
        context = learned.context(user, moment)
        if len(context.liked) == 0:
            lengths.append(0)
            continue
        scores = ease(context)
        items = np.union1d(propose(context), np.argsort(-scores, kind="stable")[:n_from_ease])
        items = items[scores[items] > EXCLUDED]
        rank = np.log1p(len(scores) - np.searchsorted(np.sort(scores), scores[items], side="right"))
        matrices.append(np.column_stack([features.compute(context, items), scores[items], rank]))
        labels.append(np.isin(items, requests.relevant[place].indices))
        lengths.append(len(items))
    return np.concatenate(matrices).astype(np.float32), np.concatenate(labels), np.array(lengths), len(requests.users)


def _measure(held_out: Stage, stages: list[Stage], columns: slice) -> NDArray[np.float64]:
    """Train as ``second_stage`` does, on the requests whose answer is a candidate; return the headline metrics."""
    import lightgbm

    kept = [np.repeat(_found(stage), stage[2]) for stage in stages]
    matrix = np.concatenate([stage[0][rows, columns] for stage, rows in zip(stages, kept, strict=True)])
    labels = np.concatenate([stage[1][rows] for stage, rows in zip(stages, kept, strict=True)])
    data = lightgbm.Dataset(matrix, labels, params={"verbosity": -1})
    booster = lightgbm.train(CONFIG.parameters(42, 0), data, CONFIG.num_iterations)
    scores = np.asarray(booster.predict(held_out[0][:, columns], raw_score=True))
    ends = np.cumsum(held_out[2])
    rank = np.full(held_out[3], np.inf)
    for request, (start, end) in enumerate(zip(ends - held_out[2], ends, strict=True)):
        if held_out[1][start:end].any():
            rank[request] = 1 + (scores[start:end] > scores[start:end][held_out[1][start:end].argmax()]).sum()
    by_metric = {f"recall@{k}": (rank <= k) * 1.0 for k in (10, 20)}
    by_metric |= {f"ndcg@{k}": (rank <= k) / np.log2(rank + 1) for k in (10, 20)}
    return np.column_stack([by_metric[metric] for metric in HEADLINES])


def _found(stage: Stage) -> NDArray[np.bool_]:
    ends = np.cumsum(stage[2])
    hits = np.concatenate([[0], np.cumsum(stage[1])])
    is_found: NDArray[np.bool_] = hits[ends] > hits[ends - stage[2]]
    return is_found


if __name__ == "__main__":
    main()
