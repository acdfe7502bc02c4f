"""What the second stage is made of, and what its dials cost: recall of the candidates, importance, curves.

``Examples + Ranker ─▶ describe_ranker, measure_dials ─▶ metrics.json``. Everything is measured on the requests of one
ranking task, that is on test unless it is said otherwise, and nothing is chosen by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.candidates import N_FROM_ALS, N_FROM_AROUND, unit_rows
from app.evaluation import bootstrap
from app.evaluation.lists import find_hits
from app.evaluation.metrics import CUTOFFS, Catalogue, catalogue_metrics, list_metrics, ranking_metrics
from app.evaluation.results import Values
from app.features import DEFINITIONS, FEATURES
from app.ranker import Ranker, RankerConfig
from app.ranking import EXCLUDED, PADDING, top_k
from app.rerank import Dials, Traits, genre_mix, information, miscalibration, rerank
from app.second_stage import MAX_REQUESTS, Examples, HeldOutRanker
from app.wording import DIALS

K = 10
STEPS = tuple(step / 10 for step in range(11))
SHOWN = ("recall@10", "ndcg@10", "diversity@10", "novelty@10", "long_tail@10", "miscalibration@10")

METRIC_DEFINITIONS = {
    "gains": "ranker less als, over the same users",
    "second_stage": f"candidates, importance, dials: of {MAX_REQUESTS:,} target users at random, where there are more",
    "candidates": "recall: held-out movies among the candidates / held-out movies, of each source and of their union; "
    "n_mean: candidates of a request that has any",
    "importance": "gain: share of the training loss that splits on the feature took away; ndcg@10_drop: NDCG@10 less "
    "that with the feature's values permuted at random over all candidates, mean over the target users",
    "dials": "the ranker's candidates, re-ranked with one dial at a time; change: less the dial at 0, paired by user",
    "miscalibration@k": "Kullback–Leibler divergence of the genres of the first k from those of the user's positives, "
    "smoothed as in rerank; undefined for users without genres",
}


def describe_ranker(
    held_out: HeldOutRanker, config: RankerConfig, random_state: int, on_feature: Callable[[], object] = lambda: None
) -> dict[str, Any]:
    """Describe what a ranker learned from, and measure its candidates and features on held-out requests.

    Parameters
    ----------
    on_feature : callable
        Called after each feature, for a progress bar.
    """
    found = [stage.found() for stage in held_out.stages]
    return {
        "hyper_parameters": asdict(config),
        "trained_on": {
            "n_stages": len(found),
            "n_requests": sum(len(stage.n_relevant) for stage in found),
            "n_candidates": sum(len(stage.labels) for stage in found),
        },
        "protocol": held_out.task.protocol,
        "candidates": _describe_candidates(held_out.examples),
        "importance": _importance(held_out.ranker, held_out.examples, random_state, on_feature),
    }


def _describe_candidates(examples: Examples) -> dict[str, Any]:
    """Measure how many of the held-out movies each source proposes, by their ranks, which are among the features."""
    hits = {name: examples.features[examples.labels == 1, place] for place, name in enumerate(FEATURES)}
    by_source = {
        "als": np.expm1(hits["als_rank"]) < N_FROM_ALS - 0.5,
        "around": (np.expm1(hits["around_rank"]) < N_FROM_AROUND - 0.5) & (hits["around_recent"] > 0),
        "union": np.ones(len(hits["als_rank"]), dtype=bool),
    }
    n_relevant, lengths = max(int(examples.n_relevant.sum()), 1), np.diff(examples.indptr)
    return {
        "n_mean": float(lengths[lengths > 0].mean()) if lengths.any() else 0.0,
        "recall": {source: float(is_found.sum() / n_relevant) for source, is_found in by_source.items()},
    }


def _importance(
    ranker: Ranker, examples: Examples, random_state: int, on_feature: Callable[[], object]
) -> dict[str, dict[str, Any]]:
    """Measure how much NDCG@10 is lost by a feature's values being those of other candidates."""
    rng = np.random.default_rng(random_state)
    found, gain = examples.found(), ranker.gain()
    n_missed = len(examples.n_relevant) - len(found.n_relevant)  # nothing is lost there, whatever is permuted
    before = measure_examples(found, ranker.score(found.features, num_threads=0))["ndcg@10"]
    drops = np.zeros((len(found.n_relevant) + n_missed, len(FEATURES)))
    permuted = found.features.copy()
    for place, name in enumerate(FEATURES):
        if gain[name] > 0:
            permuted[:, place] = rng.permutation(found.features[:, place])
            after = measure_examples(found, ranker.score(permuted, num_threads=0))["ndcg@10"]
            drops[: len(before), place] = before - after
            permuted[:, place] = found.features[:, place]
        on_feature()
    resampled = bootstrap.resampled_means(drops, random_state)
    return {
        name: {
            "definition": DEFINITIONS[name],
            "gain": gain[name],
            "ndcg@10_drop": float(drops[:, place].mean()),
            "interval": bootstrap.interval(resampled[:, place]),
        }
        for place, name in enumerate(FEATURES)
    }


def measure_examples(examples: Examples, scores: NDArray[np.float32]) -> Values:
    """Return the ranking metrics of each request's candidates in the order of their scores, (n_rows,)."""
    lengths = np.diff(examples.indptr)
    request = np.repeat(np.arange(len(lengths)), lengths)
    cell = request, np.arange(len(request)) - examples.indptr[request]
    depth = max(CUTOFFS)
    by_request = np.full((len(lengths), max(int(lengths.max(initial=0)), depth)), EXCLUDED, dtype=np.float32)
    is_relevant = np.zeros(by_request.shape, dtype=bool)
    by_request[cell], is_relevant[cell] = scores, examples.labels == 1
    best = top_k(by_request, depth)
    hits = np.take_along_axis(is_relevant, best, axis=1) & (best != PADDING)
    return ranking_metrics(hits, examples.n_relevant)


def measure_dials(
    held_out: HeldOutRanker,
    catalogue: Catalogue,
    random_state: int,
    on_step: Callable[[], object] = lambda: None,
) -> dict[str, list[dict[str, Any]]]:
    """Measure what each dial brings and costs, from 0 to 1 in steps of .1.

    Returns
    -------
    dict of list
        By dial and step: ``value``, ``means`` of ``SHOWN`` and of coverage@10, and ``changes`` of ``SHOWN`` with
        ``difference`` and ``interval``; without measures that are undefined for everybody, as those of genres are where
        no movie has any, and without a dial that is measured by one of them.
    """
    known = held_out.learned.knowledge
    traits = Traits(information(known.popularity), held_out.learned.tables.genres, unit_rows(known.item_factors))
    pools = list(_pools(held_out))
    curves = {}
    for dial, brought in DIALS.items():
        measured, coverage = [], []
        for value in STEPS:
            lists = _turned(pools, Dials(**{dial: value}), traits)
            measured.append(_measure_lists(lists, pools, held_out.examples, traits, catalogue))
            coverage.append(catalogue_metrics(lists, len(known.popularity), (K,))[f"coverage@{K}"])
            on_step()
        defined = [name for name in SHOWN if not any(np.isnan(values[name]).all() for values in measured)]
        if brought in defined:
            curves[dial] = _describe_curve(measured, coverage, defined, random_state)
    return curves


@dataclass(frozen=True)
class _Pool:
    """One request's candidates, best first, their scores, and the user's mix of genres."""

    items: NDArray[np.int64]
    scores: NDArray[np.float32]
    mix: NDArray[np.float64]


def _pools(held_out: HeldOutRanker) -> Iterator[_Pool]:
    """Yield the pool of each request of the held-out examples."""
    examples, task, genres = held_out.examples, held_out.task, held_out.learned.tables.genres
    scores = held_out.ranker.score(examples.features, num_threads=0) if len(examples.items) else _NO_SCORES
    for request, place in enumerate(examples.places.tolist()):
        rows = slice(examples.indptr[request], examples.indptr[request + 1])
        best = np.argsort(-scores[rows], kind="stable")
        context = held_out.learned.context(int(task.target_users[place]), int(task.moments[place]))
        mix = genre_mix(genres[context.liked.item_index], context.confidence)
        yield _Pool(examples.items[rows][best], scores[rows][best], mix)


_NO_SCORES = np.empty(0, dtype=np.float32)


def _turned(pools: list[_Pool], dials: Dials, traits: Traits) -> NDArray[np.int32]:
    """Return the first ``K`` of each pool with the dials turned, −1 where there are fewer."""
    lists = np.full((len(pools), K), PADDING, dtype=np.int32)
    for place, pool in enumerate(pools):
        listed = rerank(pool.items, pool.scores, K, dials, traits, pool.mix)
        lists[place, : len(listed)] = listed
    return lists


def _measure_lists(
    lists: NDArray[np.int32], pools: list[_Pool], examples: Examples, traits: Traits, catalogue: Catalogue
) -> Values:
    """Return the measures ``SHOWN`` of each request's list."""
    off = [
        miscalibration(traits.genres[items[items != PADDING]], pool.mix)
        for items, pool in zip(lists, pools, strict=True)
    ]
    values = {
        **ranking_metrics(find_hits(lists, examples.relevant), examples.n_relevant, (K,)),
        **list_metrics(lists, catalogue, (K,)),
        f"miscalibration@{K}": np.array(off),
    }
    return {name: values[name] for name in SHOWN}


def _describe_curve(
    measured: list[Values], coverage: list[float], names: list[str], random_state: int
) -> list[dict[str, Any]]:
    """Average each step's measures, and compare them with those of the first, which is the dial at 0."""
    stacked = [np.column_stack([values[name] for name in names]) for values in measured]
    means = [np.nanmean(values, axis=0) for values in stacked]
    resampled = [bootstrap.resampled_means(values, random_state) for values in stacked]
    return [
        {
            "value": value,
            "means": {**dict(zip(names, means[step].tolist(), strict=True)), f"coverage@{K}": coverage[step]},
            "changes": {
                name: {
                    "difference": float(means[step][i] - means[0][i]),
                    "interval": bootstrap.interval(resampled[step][:, i] - resampled[0][:, i]),
                }
                for i, name in enumerate(names)
            },
        }
        for step, value in enumerate(STEPS)
    ]
