"""Which settings of the second stage are better, on several validation positives of each user; test is never looked at.

    python benchmarks/ranker.py [--positives 3]

Compares settings of LightGBM, the number of stages, and groups of features left out. Prints mean figures, the recall of
the candidates, and the paired difference of NDCG@10 to the default with its 95 % interval. The data is that of
$MOVIELENS_DIR, else data_small/ml-latest-small. The best of many is optimistic: the final figure is that of the test
evaluation, ``train_als.py --ranker``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from data import FOLDER  # first: it makes app importable
from numpy.typing import NDArray

from app import core, protocols
from app.als import AlsConfig, learn
from app.datasets.locate import Source
from app.evaluation import HEADLINES
from app.evaluation.bootstrap import interval, resampled_means
from app.features import FEATURES
from app.protocols import Requests, step_back
from app.ranker import RankerConfig
from app.ranker_metrics import measure_examples
from app.second_stage import Examples, Learner, collect, train_ranker
from app.tuning.questions import hide_test

DEFAULT = RankerConfig()
SETTINGS = {
    "default": DEFAULT,
    "7 leaves, 300 × .05": replace(DEFAULT, num_leaves=7, num_iterations=300, learning_rate=0.05),
    "7 leaves, 200 × .08": replace(DEFAULT, num_leaves=7, learning_rate=0.08),
    "15 leaves, 120 × .08": replace(DEFAULT, num_leaves=15, num_iterations=120, learning_rate=0.08),
    "500 trees": replace(DEFAULT, num_iterations=500),
    "100 trees": replace(DEFAULT, num_iterations=100),
    "feature_fraction .6": replace(DEFAULT, feature_fraction=0.6),
    "lambda_l2 50": replace(DEFAULT, lambda_l2=50.0),
    "min_data_in_leaf 200": replace(DEFAULT, min_data_in_leaf=200),
    "3 stages": replace(DEFAULT, n_stages=3),
}
WITHOUT = {
    "order": ("around", "after"),
    "co-occurrence": ("together",),
    "plain ALS": ("plain",),
    "factor cosines": ("cosine",),
    "content": ("genres", "year", "age", "title", "tags"),
    "popularity over time": ("rated", "trend", "mean_before", "popularity"),
    "the user": ("n_ratings", "mean_rating", "mean_of_last", "share_liked", "since_last", "ratings_last", "pace"),
}


@dataclass(frozen=True)
class Question:
    """One validation positive of each user, and the stages before it."""

    held_out: Examples
    stages: tuple[Examples, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positives", type=int, default=3, help="held-out positives of each user")
    arguments = parser.parse_args()
    chain = list(make_chain(arguments.positives + DEFAULT.n_stages))
    questions = [
        Question(chain[place], tuple(chain[place + 1 : place + 1 + DEFAULT.n_stages]))
        for place in range(arguments.positives)
    ]
    found = sum(int(question.held_out.labels.sum()) for question in questions)
    n_asked = sum(int(question.held_out.n_relevant.sum()) for question in questions)
    print(f"{n_asked:,} requests, recall of the candidates {found / n_asked:.3f}")
    print(f"{'':22} {'  '.join(HEADLINES)}  ndcg@10 less the default")
    base = measure_setting(questions, DEFAULT)
    show("default", base, base)
    for name, config in SETTINGS.items():
        if name != "default":
            show(name, measure_setting(questions, config), base)
    for name, prefixes in WITHOUT.items():
        blind = [place for place, feature in enumerate(FEATURES) if feature.startswith(prefixes)]
        show(f"without {name}", measure_setting(questions, DEFAULT, blind), base)


def make_chain(n: int) -> Iterator[Examples]:
    """Yield the examples of each user's validation positive, of the one before it, and so on."""
    dataset = core.load(Source(None, FOLDER))
    ratings, split = hide_test(dataset.ratings, core.leave_one_out(core.positives(dataset.ratings)))
    task = protocols.build_task(ratings, split, "rated", "validation")
    learner = Learner(dataset, split.users, split.items, AlsConfig())
    requests: Requests = task.requests
    tags = dataset.tags
    for place in range(n):
        tags = learner.known_tags(tags, requests)
        factors = learn(task.positives, learner.als) if place == 0 else None
        learned = learner.learn(requests.history, tags, factors, task.positives if place == 0 else None)
        yield collect(learned, requests, place)
        requests = step_back(requests.history, len(split.items))


def measure_setting(
    questions: Sequence[Question], config: RankerConfig, blind: Sequence[int] = ()
) -> NDArray[np.float64]:
    """Return the headline metrics of every request, (n_requests, n_metrics), with some features blanked."""
    measured = []
    for question in questions:
        stages = [_blank(stage, blind) for stage in question.stages[: config.n_stages]]
        ranker = train_ranker(stages, config, random_state=42)
        held_out = _blank(question.held_out, blind)
        values = measure_examples(held_out, ranker.score(held_out.features, num_threads=0))
        measured.append(np.column_stack([values[metric] for metric in HEADLINES]))
    return np.concatenate(measured)


def _blank(stage: Examples, blind: Sequence[int]) -> Examples:
    if not len(blind):
        return stage
    features = stage.features.copy()
    features[:, list(blind)] = 0
    return replace(stage, features=features)


def show(name: str, values: NDArray[np.float64], base: NDArray[np.float64]) -> None:
    means = "  ".join(f"{value:{len(metric)}.4f}" for metric, value in zip(HEADLINES, values.mean(axis=0), strict=True))
    less = (values - base)[:, [HEADLINES.index("ndcg@10")]]
    bounds = interval(resampled_means(less, 42)[:, 0])
    beside = f"{less.mean():+.4f} ({bounds[0]:+.4f} to {bounds[1]:+.4f})" if bounds else ""
    print(f"{name:22} {means}  {beside}", flush=True)


if __name__ == "__main__":
    main()
