"""How the default hyper-parameters were chosen: a grid on validation, protocol rated; test is never looked at.

    python benchmarks/grid.py [--seeds 3]

Fits every setting on the data of $MOVIELENS_DIR (or data_small/ml-latest-small) with several training seeds and prints
the settings by mean NDCG@20. The best of many is optimistic: its figure on validation is no estimate of quality, which
is what the test evaluation of train_als.py is for.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from app import core, evaluation, protocols  # noqa: E402
from app.als import PRESETS, AlsConfig, fit_als  # noqa: E402
from app.datasets.locate import Source  # noqa: E402

FACTORS = (32, 64, 128)
REGULARIZATION = (0.02, 1.0, 3.0, 10.0, 30.0)
ALPHA = (3.0, 7.0, 21.0, 40.0)
ITERATIONS = (10, 15)
METRICS = ("recall@10", "recall@20", "ndcg@10", "ndcg@20")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="training seeds per setting")
    seeds = range(1, parser.parse_args().seeds + 1)
    task = _validation_task()
    settings = [
        AlsConfig(factors=f, regularization=r, alpha=a, iterations=i)
        for f, r, a, i in itertools.product(FACTORS, REGULARIZATION, ALPHA, ITERATIONS)
    ]
    scored = sorted(((_measure(task, each, seeds), each) for each in settings), key=lambda pair: -pair[0][-1])
    print(f"{'factors':>7} {'regularization':>14} {'alpha':>5} {'iterations':>10}  " + "  ".join(METRICS))
    for means, config in [*scored[:15], (_measure(task, PRESETS["reference"], seeds), PRESETS["reference"])]:
        figures = "  ".join(f"{value:{len(name)}.4f}" for name, value in zip(METRICS, means, strict=True))
        print(
            f"{config.factors:7} {config.regularization:14g} {config.alpha:5g} {config.iterations:10}  {figures}"
            + ("  (reference)" if config == PRESETS["reference"] else "")
        )


def _validation_task() -> protocols.RankingTask:
    folder = Path(os.environ.get("MOVIELENS_DIR", ROOT / "data_small" / "ml-latest-small"))
    ratings = core.load(Source(None, folder)).ratings
    return protocols.build_task(ratings, core.leave_one_out(core.positives(ratings)), "rated", "validation")


def _measure(task: protocols.RankingTask, config: AlsConfig, seeds: range) -> list[float]:
    found = []
    for seed in seeds:
        factors = fit_als(task.user_items, replace(config, random_state=seed))
        metrics = evaluation.measure(evaluation.rank(task, evaluation.als_scorer(task, factors)), task)
        found.append([metrics[name].mean() for name in METRICS])
    return [float(mean) for mean in np.mean(found, axis=0)]


if __name__ == "__main__":
    main()
