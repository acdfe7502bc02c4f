"""One task, all models: their lists, measured; means, intervals, paired differences and strata.

``RankingTask + Scorers ─▶ evaluate ─▶ TaskResult ─▶ describe_results ─▶ metrics.json``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from app.core import STAGES, UNKNOWN, Split, TemporalSplit
from app.evaluation import bootstrap, strata
from app.evaluation.lists import find_hits, rank
from app.evaluation.metrics import (
    BANDS,
    CUTOFFS,
    DEFINITIONS,
    HEADLINES,
    Catalogue,
    catalogue_metrics,
    exposure_by_band,
    list_metrics,
    popularity_bands,
    ranking_metrics,
)
from app.evaluation.scorers import Scorer
from app.protocols import RankingTask

if TYPE_CHECKING:
    import pandas as pd

MODEL = "als"  # what the baselines are compared with
RANKER = "ranker"  # what is compared with it
CURVE = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 100)  # k of the recall curve

Values = dict[str, NDArray[np.float64]]
"""Measures of shape (n_targets,) by name; NaN where undefined."""


@dataclass(frozen=True)
class TaskResult:
    """What evaluation found on one task.

    ``means[model][metric]``; ``intervals`` of those that are means over users; ``differences[baseline][metric]``, ALS
    less the baseline, with ``difference`` and ``interval``; ``gains[metric]``, the same of the ranker less ALS, empty
    without a ranker; ``strata[kind][stratum]`` with ``n_users`` and these four;
    ``recall_by_k[model][k]``; ``exposure[model][band]`` at 10, with the held-out movies as "held out"; and the lists
    themselves, by model.
    """

    task: RankingTask
    means: dict[str, dict[str, float]]
    intervals: dict[str, dict[str, list[float] | None]]
    differences: dict[str, dict[str, Any]]
    strata: dict[str, dict[str, Any]]
    recall_by_k: dict[str, dict[str, float]]
    exposure: dict[str, dict[str, float]]
    lists: dict[str, NDArray[np.int32]]
    gains: dict[str, Any] = field(default_factory=dict)


def describe_catalogue(task: RankingTask, movies: pd.DataFrame) -> Catalogue:
    """Collect what the measures beyond accuracy need: popularity as models know it, and genres.

    Parameters
    ----------
    movies : DataFrame
        ``Dataset.movies``: movie_id and genres, ``"A|B"``.
    """
    popularity = np.bincount(task.user_items.indices, minlength=len(task.items))
    by_id = movies.set_index("movie_id")["genres"].reindex(task.items.ids, fill_value="")
    mixtures = by_id.drop_duplicates()  # many movies have the same genres, and taking text apart is slow
    # As objects: where pyarrow is installed, pandas 3.1 takes its own text apart wrongly.
    dummies = mixtures.astype(object).str.get_dummies("|").set_axis(mixtures)
    genres = dummies.loc[by_id].to_numpy(dtype=np.float32)
    return Catalogue(popularity, popularity_bands(popularity), genres)


def evaluate(
    task: RankingTask,
    scorers: Mapping[str, Scorer],
    catalogue: Catalogue,
    random_state: int,
    on_model: Callable[[], object] = lambda: None,
) -> TaskResult:
    """Rank one task with every model and measure the lists.

    Parameters
    ----------
    scorers : mapping of str to Scorer
        By the model's name in ``metrics.json``; the baselines are compared with ``als``.
    random_state : int
        Seed of the bootstrap.
    on_model : callable
        Called after each model, for a progress bar.
    """
    lists: dict[str, NDArray[np.int32]] = {}
    hits: dict[str, NDArray[np.bool_]] = {}
    in_bands: dict[str, dict[str, Values]] = {}
    values: dict[str, Values] = {}
    for model, scorer in scorers.items():
        lists[model] = rank(task.seen, scorer)
        hits[model] = find_hits(lists[model], task.relevant)
        in_bands[model] = _in_bands(task, catalogue, lists[model], hits[model])
        values[model] = _measure(task, catalogue, lists[model], hits[model], in_bands[model])
        on_model()
    masks = {
        "session": strata.session_strata(task),
        "gap": strata.gap_strata(task),
        "history": strata.history_strata(task),
    }
    divided = {model: _divide(masks, values[model], in_bands[model]) for model in scorers}
    summary = summarise({model: {**values[model], **divided[model]} for model in scorers}, random_state)
    plain = [name for name in next(iter(values.values())) if all(_is_defined(values[model][name]) for model in values)]
    n_relevant = np.diff(task.relevant.indptr)
    return TaskResult(
        task,
        means={
            model: {
                **{name: summary.means[model][name] for name in plain},
                **catalogue_metrics(lists[model], len(task.items)),
            }
            for model in scorers
        },
        intervals={model: {name: summary.intervals[model][name] for name in plain} for model in scorers},
        differences={
            baseline: {name: found[name] for name in plain} for baseline, found in summary.differences.items()
        },
        strata=_describe_strata(summary, divided[next(iter(scorers))]),
        recall_by_k={model: _recall_curve(hits[model], n_relevant) for model in scorers},
        exposure={
            **{model: exposure_by_band(lists[model], catalogue.band, 10) for model in scorers},
            "held out": exposure_by_band(task.relevant.indices[:, None], catalogue.band, 1),
        },
        lists=lists,
        gains={name: summary.gains[name] for name in plain if name in summary.gains},
    )


def measure(task: RankingTask, scorer: Scorer) -> Values:
    """Rank a task with one model and return its ranking metrics alone, without intervals: what a search looks at."""
    lists = rank(task.seen, scorer, depth=max(CUTOFFS))
    return ranking_metrics(find_hits(lists, task.relevant), np.diff(task.relevant.indptr))


def _measure(
    task: RankingTask,
    catalogue: Catalogue,
    lists: NDArray[np.int32],
    hits: NDArray[np.bool_],
    in_bands: Mapping[str, Values],
) -> Values:
    """Measure every user's list."""
    n_relevant = np.diff(task.relevant.indptr)
    values = ranking_metrics(hits, n_relevant)
    if task.n_new.any():
        for k in CUTOFFS:
            values[f"recall_with_new@{k}"] = hits[:, :k].sum(axis=1) / (n_relevant + task.n_new)
    for k in CUTOFFS:
        values[f"recall_long_tail@{k}"] = in_bands[list(BANDS)[-1]][f"recall@{k}"]
    return {**values, **list_metrics(lists, catalogue)}


def _in_bands(
    task: RankingTask, catalogue: Catalogue, lists: NDArray[np.int32], hits: NDArray[np.bool_]
) -> dict[str, Values]:
    """Measure the lists by the held-out movies of each band of popularity alone."""
    measured = {}
    band_of_relevant = catalogue.band[task.relevant.indices]
    rows = np.repeat(np.arange(task.n_targets), np.diff(task.relevant.indptr))
    for place, band in enumerate(BANDS):
        n_relevant = np.bincount(rows[band_of_relevant == place], minlength=task.n_targets)
        measured[band] = ranking_metrics(hits & (catalogue.band[lists] == place), n_relevant)
    return measured


def _divide(
    masks: Mapping[str, Mapping[str, NDArray[np.bool_]]], values: Values, in_bands: Mapping[str, Values]
) -> Values:
    """Return the metrics of each stratum as columns named ``kind/stratum/metric``, NaN for users outside it."""
    columns = {
        f"{kind}/{stratum}/{metric}": np.where(mask, values[metric], np.nan)
        for kind, of_kind in masks.items()
        for stratum, mask in of_kind.items()
        for metric in HEADLINES
    }
    for band, in_band in in_bands.items():
        if _is_defined(in_band["recall@10"]):
            columns |= {f"popularity/{band}/{metric}": in_band[metric] for metric in HEADLINES}
    return columns


@dataclass(frozen=True)
class Summary:
    """Means, intervals, and differences of measures over the same users, by model and measure.

    ``differences`` are ``MODEL`` less each baseline; ``gains`` are ``RANKER`` less ``MODEL``, empty without both.
    """

    means: dict[str, dict[str, float]]
    intervals: dict[str, dict[str, list[float] | None]]
    differences: dict[str, dict[str, Any]]
    gains: dict[str, Any]


def summarise(values: Mapping[str, Values], random_state: int) -> Summary:
    """Average measures over users, with intervals, and compare the baselines with ``als``.

    Parameters
    ----------
    values : mapping of str to Values
        By model, the same measures of the same users for each.
    """
    names = list(next(iter(values.values())))
    stacked = np.column_stack([values[model][name] for model in values for name in names])
    resampled = bootstrap.resampled_means(stacked, random_state)
    by_model = {
        model: resampled[:, place * len(names) : (place + 1) * len(names)] for place, model in enumerate(values)
    }
    means = {model: {name: _mean(values[model][name]) for name in names} for model in values}
    intervals = {
        model: {name: bootstrap.interval(by_model[model][:, i]) for i, name in enumerate(names)} for model in values
    }

    def compare(model: str, other: str) -> dict[str, Any]:
        return {
            name: {
                "difference": means[model][name] - means[other][name],
                "interval": bootstrap.interval(by_model[model][:, i] - by_model[other][:, i]),
            }
            for i, name in enumerate(names)
        }

    baselines = [model for model in values if MODEL in values and model not in (MODEL, RANKER)]
    return Summary(
        means,
        intervals,
        differences={baseline: compare(MODEL, baseline) for baseline in baselines},
        gains=compare(RANKER, MODEL) if MODEL in values and RANKER in values else {},
    )


def _is_defined(values: NDArray[np.float64]) -> bool:
    """Tell whether a measure is defined for any user."""
    return not bool(np.isnan(values).all())


def _mean(values: NDArray[np.float64]) -> float:
    return float(np.nanmean(values)) if _is_defined(values) else math.nan


def _describe_strata(summary: Summary, columns: Values) -> dict[str, dict[str, Any]]:
    """Turn the columns ``kind/stratum/metric`` into nested dictionaries."""
    described: dict[str, dict[str, Any]] = {}
    for column, values in columns.items():
        kind, stratum, metric = column.split("/")
        n_users = int(np.count_nonzero(~np.isnan(values)))
        entry = described.setdefault(kind, {}).setdefault(
            stratum,
            {
                "n_users": n_users,
                "means": {model: {} for model in summary.means},
                "intervals": {model: {} for model in summary.means},
                "differences": {baseline: {} for baseline in summary.differences},
                **({"gains": {}} if summary.gains else {}),
            },
        )
        for model in summary.means:
            entry["means"][model][metric] = summary.means[model][column]
            entry["intervals"][model][metric] = summary.intervals[model][column]
        for baseline, differences in summary.differences.items():
            entry["differences"][baseline][metric] = differences[column]
        if summary.gains:
            entry["gains"][metric] = summary.gains[column]
    return described


def _recall_curve(hits: NDArray[np.bool_], n_relevant: NDArray[np.int64]) -> dict[str, float]:
    found = np.cumsum(hits, axis=1)
    return {str(k): float((found[:, k - 1] / n_relevant).mean()) for k in CURVE}


def describe_results(split: Split | TemporalSplit, results: Sequence[TaskResult]) -> dict[str, Any]:
    """Compose ``metrics.json``: the split, and by protocol and model unrounded means with all that belongs to them."""
    gains = {result.task.protocol: result.gains for result in results if result.gains}
    parts = ("intervals", "differences", "strata", "recall_by_k", "exposure")
    return {
        "split": _describe_split(split, results),
        "stage": results[0].task.stage,
        "protocols": {result.task.protocol: result.means for result in results},
        **{part: {result.task.protocol: getattr(result, part) for result in results} for part in parts},
        **({"gains": gains} if gains else {}),
        "definitions": {**DEFINITIONS, "strata": strata.DEFINITIONS, "interval": bootstrap.DEFINITION},
    }


def _describe_split(split: Split | TemporalSplit, results: Sequence[TaskResult]) -> dict[str, Any]:
    sizes = {"n_train": len(split.train), "n_users": len(split.users), "n_items": len(split.items)}
    if isinstance(split, TemporalSplit):
        targets = {
            result.task.protocol: {
                "n_users": result.task.n_targets,
                "n_held_out": int(result.task.relevant.nnz),
                "n_held_out_new_movies": int(result.task.n_new.sum()),
            }
            for result in results
        }
        held_out = {"n_held_out": len(split.held_out), "n_held_out_users": int(split.held_out["user_id"].nunique())}
        return {"name": "temporal", "moment": split.moment, **sizes, **held_out, "targets": targets}
    counts = {
        f"n_{stage}": int((split.items.index(getattr(split, stage)["movie_id"]) != UNKNOWN).sum()) for stage in STAGES
    }
    return {"name": "leave-one-out", **sizes, **counts}
