"""How much of a search's gain it only imagined: start and best setting, also on a positive that it never scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.als import AlsConfig, learn, side_by_side
from app.evaluation import HEADLINES, als_scorer, bootstrap, measure
from app.protocols import RankingTask
from app.tuning.questions import N_SEEDS, seeds_of

Values = dict[str, NDArray[np.float64]]


def measure_optimism(
    searched: RankingTask, second: RankingTask, start: AlsConfig, best: AlsConfig
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Measure start and best on both positives; return the figures of each, and the optimism."""
    settings = {"start": start, "best": best}
    seeds = (seeds_of(start), seeds_of(start, N_SEEDS))
    values = [
        {name: _mean_over_seeds(task, config, of_task) for name, config in settings.items()}
        for task, of_task in zip((searched, second), seeds, strict=True)
    ]
    users = np.union1d(*(task.users.ids[task.target_users] for task in (searched, second)))
    gains = [_align_gains(task, measured, users) for task, measured in zip((searched, second), values, strict=True)]
    resampled = np.split(bootstrap.resampled_means(np.hstack(gains), start.random_state), 2, axis=1)
    difference = [np.nanmean(gain, axis=0) for gain in gains]
    described = [
        {
            "n_users": task.n_targets,
            "seeds": of_task,
            **{name: {metric: float(found[metric].mean()) for metric in HEADLINES} for name, found in measured.items()},
            "gain": _describe(mean, draws),
        }
        for task, of_task, measured, mean, draws in zip(
            (searched, second), seeds, values, difference, resampled, strict=True
        )
    ]
    return described[0], described[1], _describe(difference[0] - difference[1], resampled[0] - resampled[1])


def _mean_over_seeds(task: RankingTask, config: AlsConfig, seeds: list[int]) -> Values:
    """Fit with each seed and return each user's figures, averaged over the seeds."""
    with side_by_side(len(seeds), replace(config, device="cpu")) as (pool, each):
        fits = pool.map(lambda seed: learn(task.positives, replace(each, random_state=seed)), seeds)
        measured = [measure(task, als_scorer(task, factors)) for factors in fits]
    return {name: np.mean([values[name] for values in measured], axis=0) for name in HEADLINES}


def _align_gains(task: RankingTask, values: Mapping[str, Values], users: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return best less start, (n_users, n_metrics): NaN for users whom the task does not ask about."""
    gains = np.full((len(users), len(HEADLINES)), np.nan)
    rows = np.searchsorted(users, task.users.ids[task.target_users])
    gains[rows] = np.column_stack([values["best"][name] - values["start"][name] for name in HEADLINES])
    return gains


def _describe(difference: NDArray[np.float64], resampled: NDArray[np.float64]) -> dict[str, Any]:
    return {
        name: {"difference": float(difference[place]), "interval": bootstrap.interval(resampled[:, place])}
        for place, name in enumerate(HEADLINES)
    }
