"""Whether the ranker finds an effect that was planted, and finds none where none was.

    python benchmarks/planted.py [--ratings 20000] [--seeds 5]

Generates ratings of three kinds:

- planted: with probability .5 a movie is followed by one of three successors that neither tastes nor genres know of;
- none: the same users without; a session still has a taste of its own, so its movies belong together;
- shuffled: each user's movies in random order, which leaves nothing that an order could tell.

On each it measures, over the validation users and paired, what the ranker gains over ALS in NDCG@10, and how much of it
is due to the features of order (around_*, after_*): the ranker less one that was trained without seeing them. The
latter must exclude zero where an order was planted, and include it, but for one seed in twenty, where there is none.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import data  # noqa: F401 - makes app importable
import numpy as np
import pandas as pd

from app import core, protocols
from app.als import AlsConfig, learn
from app.datasets.synthetic import synthesize
from app.evaluation import als_scorer, measure
from app.evaluation.bootstrap import interval, resampled_means
from app.features import FEATURES
from app.ranker import RankerConfig
from app.second_stage import Examples, HeldOutRanker, Learner, ranker_scorer, train_held_out, train_ranker

ORDER = [place for place, name in enumerate(FEATURES) if name.startswith(("around", "after"))]
METRIC = "ndcg@10"
KINDS = ("planted", "none", "shuffled")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratings", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    print(f"{METRIC} of the validation users; differences with 95 % intervals, paired")
    for seed in range(1, arguments.seeds + 1):
        for kind in KINDS:
            found = measure_kind(arguments.ratings, seed, kind)
            texts = ", ".join(f"{name} {_text(values)}" for name, values in found.items())
            print(f"seed {seed}, {kind:8}: {texts}", flush=True)


def measure_kind(n_ratings: int, seed: int, kind: str) -> dict[str, Any]:
    """Return the means of ALS and ranker, and both gains with their intervals."""
    dataset = core.clean("synthetic", synthesize(n_ratings, seed, 0.5 if kind == "planted" else 0.0))
    if kind == "shuffled":
        dataset = replace(dataset, ratings=_shuffle(dataset.ratings, seed))
    split = core.leave_one_out(core.positives(dataset.ratings))
    task = protocols.build_task(dataset.ratings, split, "rated", "validation")
    als, config = AlsConfig(random_state=seed), RankerConfig()
    factors = learn(task.positives, als)
    held_out = train_held_out(Learner(dataset, split.users, split.items, als), task, factors, config)
    values = {
        "als": measure(task, als_scorer(task, factors))[METRIC],
        "ranker": measure(task, ranker_scorer(held_out))[METRIC],
        "without order": measure(task, ranker_scorer(_without_order(held_out, config, seed)))[METRIC],
    }
    gains = np.column_stack([values["ranker"] - values["als"], values["ranker"] - values["without order"]])
    resampled = resampled_means(gains, seed)
    return {
        "als": float(values["als"].mean()),
        "ranker": float(values["ranker"].mean()),
        "gain over ALS": (float(gains[:, 0].mean()), interval(resampled[:, 0])),
        "by order": (float(gains[:, 1].mean()), interval(resampled[:, 1])),
    }


def _shuffle(ratings: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Deal each user's ratings anew to the moments at which they rated."""
    by_user = np.lexsort((np.random.default_rng(seed).random(len(ratings)), ratings["user_id"]))
    shuffled = ratings.iloc[by_user].reset_index(drop=True)
    in_time = ratings.iloc[np.lexsort((ratings["timestamp"], ratings["user_id"]))]
    return shuffled.assign(timestamp=in_time["timestamp"].to_numpy())


def _without_order(held_out: HeldOutRanker, config: RankerConfig, seed: int) -> HeldOutRanker:
    """Train on the same examples with the features of order blanked: no tree can split on them."""
    return replace(held_out, ranker=train_ranker([_blank(stage) for stage in held_out.stages], config, seed))


def _blank(stage: Examples) -> Examples:
    features = stage.features.copy()
    features[:, ORDER] = 0
    return replace(stage, features=features)


def _text(values: Any) -> str:
    if isinstance(values, float):
        return f"{values:.3f}"
    difference, bounds = values
    return f"{difference:+.3f} ({bounds[0]:+.3f} to {bounds[1]:+.3f})" if bounds else f"{difference:+.3f} (no interval)"


if __name__ == "__main__":
    main()
