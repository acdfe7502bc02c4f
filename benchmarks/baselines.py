"""How the baselines' hyper-parameters were chosen: as those of ALS, on several validation positives of each user.

    python benchmarks/baselines.py [--positives 4]

Prints the best settings by mean NDCG@20. The baselines may weigh a user's recent movies more, as ALS does: without it
they would be beaten by what they were not told. Data and tasks are those of hyper_parameters.py: test is not looked at.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from data import validation_tasks  # first: it makes app importable

from app import evaluation, protocols
from app.evaluation import HEADLINES
from app.evaluation.scorers import ease_scorer, item_knn_scorer

HALF_LIVES = (0.0, 1.0, 2.0, 3.0, 5.0, 10.0)
NEIGHBOURS = (20, 50, 100, 200, 500, 1_000, 2_000, 4_000)  # flat from 2,000 on
REGULARIZATION = (30.0, 100.0, 200.0, 300.0, 500.0, 1000.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positives", type=int, default=4, help="held-out positives of each user")
    tasks = list(validation_tasks(parser.parse_args().positives))
    for name, settings in (("item_knn", _knn_settings()), ("ease", _ease_settings())):
        measured = sorted(
            ((_measure(tasks, name, setting), setting) for setting in settings), key=lambda pair: -pair[0][-1]
        )
        print(f"{name}: {len(measured)} settings\n" + "  ".join(HEADLINES))
        for means, setting in measured[:8]:
            figures = "  ".join(f"{value:{len(metric)}.4f}" for metric, value in zip(HEADLINES, means, strict=True))
            print(figures + "  " + ", ".join(f"{key} {value}" for key, value in setting.items()))


def _knn_settings() -> Iterator[dict[str, Any]]:
    for weighting, neighbours, half_life in itertools.product(("cosine", "tfidf", "bm25"), NEIGHBOURS, HALF_LIVES):
        yield {"weighting": weighting, "neighbours": neighbours, "half_life": half_life}


def _ease_settings() -> Iterator[dict[str, Any]]:
    for regularization, half_life in itertools.product(REGULARIZATION, HALF_LIVES):
        yield {"regularization": regularization, "half_life": half_life}


def _measure(tasks: list[protocols.RankingTask], name: str, setting: dict[str, Any]) -> list[float]:
    found = []
    for task in tasks:
        scorer = item_knn_scorer(task, **setting) if name == "item_knn" else ease_scorer(task, **setting)
        values = evaluation.measure(task, scorer)
        found.append([values[metric].mean() for metric in HEADLINES])
    return [float(mean) for mean in np.mean(found, axis=0)]


if __name__ == "__main__":
    main()
