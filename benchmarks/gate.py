"""How often the promotion gate refuses what is as good as the active version, and how often what is worse.

    python benchmarks/gate.py [--seeds 100] [--each 10] [--rounds 20] [--stage validation]

On the data of $MOVIELENS_DIR (or data_small/ml-latest-small), protocol ``rated``:

- alike (A/A): the default configuration with that many other seeds, each against seed 42, and each against the luckiest
  of all; every seed as the active one, against the next ten; and these pairs measured on some of the users alone. A
  random half of the users is a fair question. Users drawn with replacement are not quite: among them the pair's own
  difference is the true one, and it is not 0.
- worse: degraded configurations, a seed a round, each against the default with a seed of its own.
- losses: seed 42 against itself, and another seed against it, with each hit lost with the same probability: the
  smallest kind of loss that is noticed.

Refused is what ``app.promotion`` finds significantly worse; beside it stands what its other checks refuse. The 95 %
intervals of the rates are exact binomial for one active seed, and bootstrap over the active seeds otherwise.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
from data import FOLDER  # first: it makes app importable
from numpy.typing import NDArray
from scipy import stats

from app import core, protocols
from app.als import PRESETS, AlsConfig, learn, side_by_side
from app.core import STAGES
from app.datasets.locate import Source
from app.evaluation import als_scorer
from app.evaluation.bootstrap import interval, resampled_means
from app.evaluation.comparison import METRICS, TOP, Comparison, HeldOut, compare
from app.evaluation.lists import find_hits, rank
from app.evaluation.scorers import popular_scorer
from app.machine import describe_machine
from app.promotion import COLLAPSED, find_faults
from app.protocols import RankingTask
from app.ranking import PADDING

DEFAULT = AlsConfig()
DEGRADED = {
    "half_life 0": replace(DEFAULT, half_life=0.0),
    "factors 8": replace(DEFAULT, factors=8),
    "regularization 1000": replace(DEFAULT, regularization=1_000.0),
    "iterations 1": replace(DEFAULT, iterations=1),
    "preset reference": PRESETS["reference"],
}
POPULAR = "most popular"
SHARES = (0.05, 0.1, 0.2, 0.3, 0.5)  # of the hits, lost
DRAWS = 200  # of each share


@dataclass(frozen=True)
class Fit:
    """Held-out lists, and what ``find_faults`` says of the factors behind them; no seed where nothing was fitted."""

    seed: int | None
    held_out: HeldOut
    faults: tuple[str, ...] = ()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=100, help="seeds against seed 42, at least 2")
    parser.add_argument("--rounds", type=int, default=20, help="seeds of each degraded configuration, at most --seeds")
    parser.add_argument("--each", type=int, default=10, help="candidates of each seed as the active one")
    parser.add_argument("--stage", choices=STAGES, default="validation")
    parser.add_argument("--out", type=Path, help="write the figures as JSON here too")
    arguments = parser.parse_args()
    if not (1 <= arguments.rounds <= arguments.seeds and 1 <= arguments.each <= arguments.seeds):
        parser.error(f"--rounds and --each must be from 1 to --seeds, which is {arguments.seeds}")
    start = time.perf_counter()
    ratings = core.load(Source(None, FOLDER)).ratings
    task = protocols.build_task(ratings, core.leave_one_out(core.positives(ratings)), "rated", arguments.stage)
    _print_setting(task)
    active = fit(task, DEFAULT, [DEFAULT.random_state])[0]
    others = fit(task, DEFAULT, list(islice((s for s in count(1) if s != DEFAULT.random_state), arguments.seeds)))
    rng = np.random.default_rng(DEFAULT.random_state)
    figures = {
        "alike": measure_alike(active, others, arguments.each, rng),
        "worse": measure_worse(task, others, arguments.rounds),
        "losses": measure_losses(active, others, rng),
        "seconds": time.perf_counter() - start,
    }
    print(f"\n{figures['seconds']:.0f} s in all")
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=2) + "\n")


def _print_setting(task: RankingTask) -> None:
    machine = describe_machine(DEFAULT.num_threads)
    print(f"{time.strftime('%Y-%m-%d')}: python {' '.join(sys.argv)}")
    asked = f"protocol {task.protocol}, {task.stage}: {task.n_targets:,} users, {len(task.items):,} movies"
    print(f"{FOLDER.name}, {asked}")
    print(f"Python {machine['python']}, {platform.machine()}, {machine['n_cores']} cores\n", flush=True)


def fit(task: RankingTask, config: AlsConfig, seeds: Sequence[int]) -> list[Fit]:
    """Fit a configuration with each seed, side by side, and rank the task."""
    with side_by_side(len(seeds), config) as (pool, each):

        def fit_one(seed: int) -> Fit:
            factors = learn(task.positives, replace(each, random_state=seed))
            held_out = HeldOut(task, rank(task.seen, als_scorer(task, factors), depth=TOP))
            return Fit(seed, held_out, find_faults(factors))

        return list(pool.map(fit_one, seeds))


def measure_alike(active: Fit, others: Sequence[Fit], n_each: int, rng: np.random.Generator) -> dict[str, Any]:
    """Compare models that differ by their seed alone."""
    every = [active, *others]
    means = {metric: [float(each.held_out.measure()[metric].mean()) for each in every] for metric in METRICS}
    print(f"Alike: the default configuration, {len(others)} seeds beside {active.seed}")
    for metric, of_seeds in means.items():
        spread = (
            f"{np.mean(of_seeds):.4f} ± {np.std(of_seeds, ddof=1):.4f} ({min(of_seeds):.4f} to {max(of_seeds):.4f})"
        )
        print(f"  {metric}: {spread}, seed {active.seed} {of_seeds[0]:.4f}")
    luckiest = every[int(np.argmax(means["ndcg@10"]))]
    pairs = [
        (every[(place + step) % len(every)], every[place])
        for step in range(1, n_each + 1)
        for place in range(len(every))
    ]
    everybody = np.arange(active.held_out.task.n_targets)
    draws: dict[str, Callable[[], NDArray[np.int64]]] = {
        f"every seed active, against {n_each}": lambda: everybody,
        "the same, a random half of the users": lambda: rng.choice(everybody, len(everybody) // 2, replace=False),
        "the same, users drawn with replacement": lambda: rng.choice(everybody, len(everybody)),
    }
    figures = {
        f"each against seed {active.seed}": _rate([_compare(other, active) for other in others]),
        f"each against the luckiest, seed {luckiest.seed}": _rate(
            [_compare(other, luckiest) for other in every if other is not luckiest]
        ),
    }
    for name, draw_users in draws.items():
        found = []
        for one, other in pairs:
            users = draw_users()
            found.append(_compare(_of(one, users), _of(other, users)))
        figures[name] = _rate(found, len(every))
    for name, rate in figures.items():
        _print_rate(name, rate)
    return {"seeds": means, **figures}


def measure_worse(task: RankingTask, others: Sequence[Fit], n_rounds: int) -> dict[str, Any]:
    """Compare degraded configurations with the default; the active ones have the seeds after the candidates'."""
    print(f"\nWorse: {n_rounds} seeds of each, against the default with another seed")
    columns = " ".join(f"{metric:>18}" for metric in METRICS)
    print(f"  {'':20} {columns}   refused as worse, coverage collapsed, faults, any of these")
    popular = Fit(None, HeldOut(task, rank(task.seen, popular_scorer(task), depth=TOP)))
    figures: dict[str, dict[str, Any]] = {}
    for name in (*DEGRADED, POPULAR):
        fits = [popular] * n_rounds if name == POPULAR else fit(task, DEGRADED[name], range(1, n_rounds + 1))
        against = [others[place % len(others)] for place in range(1, n_rounds + 1)]
        found = [_compare(one, other) for one, other in zip(fits, against, strict=True)]
        collapsed = [_is_collapsed(one, other) for one, other in zip(fits, against, strict=True)]
        faulty = [bool(one.faults) for one in fits]
        worse = [_is_refused(comparisons) for comparisons in found]
        figures[name] = {
            **{metric: _means(found, metric) for metric in METRICS},
            "n": n_rounds,
            "worse": sum(worse),
            "collapsed": sum(collapsed),
            "faults": sum(faulty),
            "any": sum(any(each) for each in zip(worse, collapsed, faulty, strict=True)),
        }
        shown = figures[name]
        means = " ".join(f"{shown[of]['candidate']:9.4f} ({shown[of]['difference']:+.4f})" for of in METRICS)
        print(f"  {name:20} {means}   " + ", ".join(str(shown[of]) for of in ("worse", "collapsed", "faults", "any")))
    return figures


def measure_losses(active: Fit, others: Sequence[Fit], rng: np.random.Generator) -> dict[str, Any]:
    """Let each hit get lost with the same probability."""
    print(f"\nLosses: each hit of a candidate lost with probability s, {DRAWS} draws of each: refused")
    figures = {}
    for share in SHARES:
        same = [_compare(_lose(active, share, rng), active) for _ in range(DRAWS)]
        other = [_compare(_lose(others[draw % len(others)], share, rng), active) for draw in range(DRAWS)]
        figures[f"{share:g}"] = {
            "same seed": np.mean([_is_refused(each) for each in same]),
            "another seed": np.mean([_is_refused(each) for each in other]),
            "lost recall@10": _means(same, "recall@10")["difference"],
        }
        shown = figures[f"{share:g}"]
        print(
            f"  s = {share:4.0%} (recall@10 {shown['lost recall@10']:+.4f}): the same seed {shown['same seed']:6.1%}, "
            f"another seed {shown['another seed']:6.1%}"
        )
    return figures


def _compare(candidate: Fit, active: Fit) -> tuple[Comparison, ...]:
    return compare(candidate.held_out, active.held_out, DEFAULT.random_state)


def _is_refused(comparisons: Sequence[Comparison]) -> bool:
    return any(of.is_worse for of in comparisons)


def _is_collapsed(candidate: Fit, active: Fit) -> bool:
    return candidate.held_out.coverage < COLLAPSED * active.held_out.coverage


def _of(one: Fit, users: NDArray[np.int64]) -> Fit:
    """Look at some of the target users only."""
    task = one.held_out.task
    of_each = ("target_users", "relevant", "seen", "n_history", "gap_seconds", "n_new", "moments")
    some = replace(task, **{name: getattr(task, name)[users] for name in of_each})
    return replace(one, held_out=HeldOut(some, one.held_out.lists[users]))


def _lose(one: Fit, share: float, rng: np.random.Generator) -> Fit:
    """Take each hit out of its list with probability ``share``; nothing takes its place."""
    lists = one.held_out.lists.copy()
    hits = find_hits(lists, one.held_out.task.relevant)
    lists[hits & (rng.random(lists.shape) < share)] = PADDING
    return replace(one, held_out=HeldOut(one.held_out.task, lists))


def _rate(found: Sequence[Sequence[Comparison]], n_active: int = 1) -> dict[str, Any]:
    """Count refusals; of several active seeds, in turn, the interval says how the rate varies with these."""
    is_refused = np.array([_is_refused(each) for each in found])
    if n_active == 1:
        bounds = stats.binomtest(int(is_refused.sum()), len(found)).proportion_ci()
        interval_of_rate: list[float] | None = [float(bounds.low), float(bounds.high)]
    else:
        rates = is_refused.reshape(-1, n_active).mean(axis=0)
        interval_of_rate = interval(resampled_means(rates[:, None], DEFAULT.random_state)[:, 0])
    return {
        "n": len(found),
        "refused": int(is_refused.sum()),
        "interval": interval_of_rate,
        "why": Counter(f"{of.metric}, {of.users}" for each in found for of in each if of.is_worse),
        "single p below .05": float(np.mean([of.p_value < 0.05 for each in found for of in each])),
    }


def _print_rate(name: str, figures: dict[str, Any]) -> None:
    n, refused = figures["n"], figures["refused"]
    bounds = "no interval" if figures["interval"] is None else "{:.1%} to {:.1%}".format(*figures["interval"])
    print(
        f"  {name}: refused {refused} of {n:,}, {refused / n:.1%} ({bounds}); uncorrected p below .05 in "
        f"{figures['single p below .05']:.1%} of the single comparisons"
    )
    for why, times in figures["why"].most_common():
        print(f"    {times} × {why}")
    sys.stdout.flush()


def _means(found: Sequence[Sequence[Comparison]], metric: str) -> dict[str, float]:
    """Return the mean over fits of a metric of all users, and of its difference to the active configuration."""
    of_all = [_of_all_users(each, metric) for each in found]
    return {part: float(np.mean([getattr(of, part) for of in of_all])) for part in ("candidate", "difference")}


def _of_all_users(comparisons: Sequence[Comparison], metric: str) -> Comparison:
    return next(of for of in comparisons if of.metric == metric)  # all users come first


if __name__ == "__main__":
    main()
