"""Which settings of ALS are better, on several validation positives of each user; test is never looked at.

    python benchmarks/hyper_parameters.py [--positives 4] [--seeds 4]

Prints the settings by mean NDCG@20, and the difference to the best on each positive. The data is that of
$MOVIELENS_DIR, else data_small/ml-latest-small; how the tasks are made: data.py. The best of many is optimistic: its
figure here is no estimate of quality, which is what the test evaluation of train_als.py is for.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import replace

import numpy as np
from data import validation_tasks  # first: it makes app importable
from numpy.typing import NDArray

from app import protocols
from app.als import AlsConfig, fit_als, grade, weigh_recent
from app.evaluation import HEADLINES, als_scorer, measure

FITS = [
    AlsConfig(factors=factors, regularization=regularization, alpha=alpha, iterations=iterations, grading=grading)
    for factors, regularization, alpha, iterations, grading in [
        (64, 10, 7, 15, 0.5),
        (64, 20, 7, 10, 0.5),
        (96, 15, 7, 12, 0.5),
        *itertools.product((128,), (14, 20, 28), (5, 7, 10), (10,), (0.5,)),
        *itertools.product((128,), (20,), (7,), (10,), (0.0, 0.25, 0.75)),
        (128, 20, 7, 15, 0.5),
        (192, 30, 7, 10, 0.5),
    ]
]
HALF_LIVES = (0.0, 1.0, 2.0, 3.0, 5.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positives", type=int, default=4, help="held-out positives of each user")
    parser.add_argument("--seeds", type=int, default=4, help="training seeds of each fit")
    arguments = parser.parse_args()
    tasks = list(validation_tasks(arguments.positives))
    measured = {config: figures for fit in FITS for config, figures in _measure(tasks, fit, arguments.seeds).items()}
    by_goal = sorted(measured.items(), key=lambda pair: -pair[1][:, -1].mean())
    best = by_goal[0][1][:, -1]
    header = f"{'factors':>7} {'reg':>4} {'alpha':>5} {'it':>3} {'grading':>7} {'half-life':>9}"
    print(f"{header}  {'  '.join(HEADLINES)}  ndcg@20 less the best")
    for config, figures in by_goal:
        means = "  ".join(
            f"{value:{len(name)}.4f}" for name, value in zip(HEADLINES, figures.mean(axis=0), strict=True)
        )
        less = " ".join(f"{value:+.4f}" for value in figures[:, -1] - best)
        setting = (
            f"{config.factors:7} {config.regularization:4g} {config.alpha:5g} {config.iterations:3} {config.grading:7g}"
        )
        print(f"{setting} {config.half_life:9g}  {means}  {less}")


def _measure(tasks: list[protocols.RankingTask], fit: AlsConfig, n_seeds: int) -> dict[AlsConfig, NDArray[np.float64]]:
    """Return the mean figures over seeds, (n_tasks, n_metrics), of a fit with each half-life."""
    found = {replace(fit, half_life=half_life): np.zeros((len(tasks), len(HEADLINES))) for half_life in HALF_LIVES}
    for (place, task), seed in itertools.product(enumerate(tasks), range(1, n_seeds + 1)):
        graded = task.positives.with_values(grade(task.positives.strength, fit))
        factors = fit_als(graded, replace(fit, random_state=seed))
        for config, figures in found.items():
            values = measure(task, als_scorer(task, weigh_recent(factors, task.positives, config)))
            figures[place] += [values[name].mean() / n_seeds for name in HEADLINES]
    return found


if __name__ == "__main__":
    main()
