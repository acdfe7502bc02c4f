"""How much the figures vary with the training seed, which the intervals over users do not say.

    python benchmarks/seeds.py [--seeds 10] [--stage validation]

Fits the default, the default without recency, and the preset ``reference`` with seeds 1, 2, 3 … on the data of
$MOVIELENS_DIR (or data_small/ml-latest-small), and prints mean, standard deviation, least and largest of the metrics,
among them coverage and Gini, which are no means over users and have no interval of their own.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from data import FOLDER  # first: it makes app importable

from app import core, evaluation, protocols
from app.als import PRESETS, AlsConfig, learn
from app.core import STAGES, Stage
from app.datasets.locate import Source
from app.evaluation.lists import find_hits, rank
from app.evaluation.metrics import catalogue_metrics, ranking_metrics

METRICS = ("recall@10", "recall@20", "ndcg@10", "ndcg@20", "coverage@10", "gini@10")
MODELS = {
    "default": AlsConfig(),
    "default, no recency": replace(AlsConfig(), half_life=0.0),
    "reference": PRESETS["reference"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="training seeds, at least 5")
    parser.add_argument("--stage", choices=STAGES, default="validation")
    parser.add_argument("--out", type=Path, help="write the figures as JSON here too")
    arguments = parser.parse_args()
    if arguments.seeds < 5:
        parser.error(f"--seeds is {arguments.seeds}; fewer than 5 say little about a spread")
    ratings = core.load(Source(None, FOLDER)).ratings
    split = core.leave_one_out(core.positives(ratings))
    figures = {}
    for protocol in protocols.LEAVE_ONE_OUT:
        task = protocols.build_task(ratings, split, protocol, arguments.stage)
        figures[protocol] = {name: _vary(task, config, arguments.seeds) for name, config in MODELS.items()}
        _print(protocol, arguments.stage, figures[protocol])
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=2) + "\n")


def _vary(task: protocols.RankingTask, config: AlsConfig, n_seeds: int) -> dict[str, list[float]]:
    measured = [_measure(task, replace(config, random_state=seed)) for seed in range(1, n_seeds + 1)]
    return {metric: [each[metric] for each in measured] for metric in METRICS}


def _measure(task: protocols.RankingTask, config: AlsConfig) -> dict[str, float]:
    lists = rank(task.seen, evaluation.als_scorer(task, learn(task.positives, config)), depth=20)
    values = ranking_metrics(find_hits(lists, task.relevant), np.diff(task.relevant.indptr))
    return {**{name: float(each.mean()) for name, each in values.items()}, **catalogue_metrics(lists, len(task.items))}


def _print(protocol: str, stage: Stage, models: dict[str, dict[str, list[float]]]) -> None:
    n_seeds = len(next(iter(models.values()))["recall@10"])
    print(f"protocol {protocol}, {stage}, {n_seeds} seeds: mean ± standard deviation (least to largest)")
    for name, metrics in models.items():
        print(f"  {name}")
        for metric, values in metrics.items():
            spread = f"± {np.std(values, ddof=1):.4f}  ({min(values):.4f} to {max(values):.4f})"
            print(f"    {metric:12} {np.mean(values):.4f} {spread}")


if __name__ == "__main__":
    main()
