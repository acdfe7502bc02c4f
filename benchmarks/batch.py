"""What all lists of a model cost to write, beside the bare product of its factors.

    python benchmarks/batch.py [--users 30000] [--movies 6000] [--k 10] [--rounds 7] [--out FILE]

Invents ratings (a long tail of popularity, users of 24 tastes, about 100 ratings each), lets the project's own ALS
learn 64 factors from them in five iterations, and publishes the version in a temporary folder. Then, in turns:

- ``product``: XYᵀ in float32, as many users at a time as ``app.scoring`` takes; nothing is chosen or kept;
- ``best``: ``FirstStage.best_of_known``, the product, what users have rated left out, and their best movies;
- ``parquet``, ``csv``, ``jsonl``: ``app.batch.write_lists``, which is ``python -m app.cli batch`` once the version is
  loaded, to a file in the temporary folder.

First on one core, then on all of them, each in a process of its own; BLAS has one thread, and cores are used by
searching blocks of users at the same time, the bare product's as well. Prints users a second, and users for each
second of processor time, which does not count the time that other processes had the cores; medians over the rounds. A
variant's share of the bare product's speed is by processor time, too: the median of the rounds, least and greatest.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from data import ROOT  # first: it makes app importable
from load import describe_run
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from app import registry
from app.als import AlsConfig, confidence, learn
from app.artifacts import TrainedModel
from app.batch import write_lists
from app.core import IdMap, build_positives, positives
from app.history import build_history
from app.machine import describe_machine
from app.recommender import ListOptions, Recommender
from app.serving import load_warm
from app.threads import count_cores

FACTORS, N_TASTES, MEAN_RATINGS, SEED = 64, 24, 100, 42
BLOCK_BYTES = 2**22  # of scores: as in app.scoring
PRODUCT = "product"
TARGET = 25_000  # users a second of processor time, at 6,000 movies and k = 10
assert ROOT

Variant = Callable[[], object]
Seconds = tuple[float, float]  # by the clock, of processor time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=30_000)
    parser.add_argument("--movies", type=int, default=6_000)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds, after one that is not counted")
    parser.add_argument("--out", type=Path, help="write the figures as JSON here too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        published = registry.publish(Path(folder), make_model(arguments.users, arguments.movies)).folder
        figures = []
        for n_cores in sorted({1, count_cores()}):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
                task = alone.submit(measure, published, n_cores, arguments.k, arguments.rounds)
                figures.append(task.result())
    show(figures, arguments)
    if arguments.out:
        shape = {"users": arguments.users, "movies": arguments.movies, "k": arguments.k, "rounds": arguments.rounds}
        result = {**describe_run(sys.argv), "machine": describe_machine(1), **shape, "figures": figures}
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def make_model(n_users: int, n_movies: int) -> TrainedModel:
    """Learn from invented ratings; movies that nobody likes are outside the catalogue, as ever."""
    ratings = invent(n_users, n_movies, np.random.default_rng(SEED))
    liked = positives(ratings)
    users, items = IdMap.of(ratings["user_id"]), IdMap.of(liked["movie_id"])
    config = AlsConfig(factors=FACTORS, iterations=5)
    learned = build_positives(liked, users, items)
    start = time.perf_counter()
    factors = learn(learned, config)
    sizes = f"{len(users):,} users, {len(items):,} movies, {len(ratings):,} ratings, {len(liked):,} of them positive"
    print(f"{sizes}; fitted in {time.perf_counter() - start:.0f} s", flush=True)
    titles = {"title": [f"Movie {movie_id}" for movie_id in items.ids], "genres": "Drama"}
    unknown = {"year": pd.array([None] * len(items), dtype="Int64"), "imdb_id": "", "tmdb_id": ""}
    return TrainedModel(
        users=users,
        items=items,
        factors=factors,
        confidence=learned.with_values(confidence(learned, config)),
        history=build_history(ratings, users, items),
        movies=pd.DataFrame({"movie_id": items.ids, **titles, **unknown}),
        config={"model": "ALS", "als": asdict(config), "min_rating": 4.0},
        metrics={"stage": "none", "protocols": {}},
        dataset="invented",
        fingerprint="0" * 64,
    )


def invent(n_users: int, n_movies: int, rng: np.random.Generator) -> pd.DataFrame:
    """Invent ratings by user and time: P(movie i | taste g) ∝ popularity_i · exp(1.8 affinity_gi)."""
    affinity = rng.normal(size=(N_TASTES, n_movies))
    log_popularity = -1.0 * np.log(np.arange(1, n_movies + 1) + n_movies / 200)
    counts = (20 + rng.lognormal(np.log(MEAN_RATINGS - 20) - 0.5, 1.0, n_users)).astype(np.int64)
    user = np.repeat(np.arange(n_users), counts)
    taste = rng.integers(N_TASTES, size=n_users)[user]
    item = np.empty(len(user), dtype=np.int64)
    for group in range(N_TASTES):
        rows = np.flatnonzero(taste == group)
        cdf = np.cumsum(np.exp(log_popularity + 1.8 * affinity[group]))
        item[rows] = np.searchsorted(cdf, rng.random(len(rows)) * cdf[-1])
    liking = 3.55 + affinity[taste, item] / 4 + rng.normal(0, 0.9, len(user))
    table = {"user_id": user + 1, "movie_id": item + 1, "rating": np.clip(np.round(liking * 2) / 2, 0.5, 5)}
    ratings = pd.DataFrame(table).astype({"rating": np.float32}).drop_duplicates(["user_id", "movie_id"])
    return ratings.assign(timestamp=np.arange(len(ratings))).reset_index(drop=True)


def measure(folder: Path, n_cores: int, k: int, n_rounds: int) -> dict[str, Any]:
    """Measure all variants in turns, on so many cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:n_cores])
    recommender = load_warm(folder)
    with tempfile.TemporaryDirectory() as target, threadpool_limits(1, "blas"), ThreadPoolExecutor(n_cores) as pool:
        variants = make_variants(recommender, k, Path(target), pool)
        rounds = [{name: _time(run) for name, run in variants.items()} for _ in range(n_rounds + 1)][1:]
        sizes = {path.suffix[1:]: path.stat().st_size for path in Path(target).iterdir()}
    n_users = len(recommender.model.users)
    return {
        "n_cores": n_cores,
        "most_bytes": _most_bytes(),
        "variants": {name: _summarise(name, rounds, n_users) | {"bytes": sizes.get(name)} for name in variants},
    }


def _most_bytes() -> int:
    """Return how much memory this process had at most; getrusage would tell that of the one that started it."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def make_variants(recommender: Recommender, k: int, target: Path, pool: ThreadPoolExecutor) -> dict[str, Variant]:
    first, n_users = recommender.first_stage, len(recommender.model.users)
    n_rows = BLOCK_BYTES // (4 * len(first.item_factors))

    def multiply() -> None:
        def block(start: int) -> None:
            first.user_factors[start : start + n_rows] @ first.item_factors.T

        list(pool.map(block, range(0, n_users, n_rows)))

    def find_best() -> None:
        for start in range(0, n_users, 1_024):
            first.best_of_known(np.arange(start, min(start + 1_024, n_users)), k, pool=pool)

    def write(suffix: str) -> Variant:
        return lambda: write_lists(recommender, target / f"lists.{suffix}", k, ListOptions(ranker=False))

    formats = ("parquet", "csv", "jsonl")
    return {PRODUCT: multiply, "best": find_best, **{suffix: write(suffix) for suffix in formats}}


def _time(run: Variant) -> Seconds:
    clock, processor = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - clock, time.process_time() - processor


def _summarise(name: str, rounds: list[dict[str, Seconds]], n_users: int) -> dict[str, Any]:
    shares = [each[PRODUCT][1] / each[name][1] for each in rounds]
    return {
        "users_per_second": n_users / statistics.median(each[name][0] for each in rounds),
        "users_per_processor_second": n_users / statistics.median(each[name][1] for each in rounds),
        "of_product": statistics.median(shares),
        "of_product_range": [min(shares), max(shares)],
    }


def show(figures: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    machine, console = describe_machine(1), Console(width=100, highlight=False)
    console.print(f"{time.strftime('%Y-%m-%d')}: python {' '.join(sys.argv)}", soft_wrap=True)
    console.print(f"Python {machine['python']}, {platform.machine()}, {machine['n_cores']} cores")
    table = Table(title=f"lists of {arguments.k}, {arguments.rounds} rounds", title_justify="left")
    for heading in ("cores", "", "users/s", "users/processor s", "of the bare product", "MB"):
        table.add_column(heading, justify="right" if heading else "left")
    for of in figures:
        for name, found in of["variants"].items():
            speed, (least, most) = found["users_per_processor_second"], found["of_product_range"]
            share = f"{found['of_product']:.0%} ({least:.0%} to {most:.0%})"
            size = "" if found["bytes"] is None else f"{found['bytes'] / 1e6:.1f}"
            style = "bold" if name != PRODUCT and speed >= TARGET else ""
            cells = (str(of["n_cores"]), name, f"{found['users_per_second']:,.0f}", f"{speed:,.0f}", share, size)
            table.add_row(*cells, style=style, end_section=name == "jsonl")
    console.print(table)
    memory = ", ".join(f"{of['most_bytes'] / 1e6:,.0f} MB on {of['n_cores']}" for of in figures)
    console.print(f"Most memory of the process, the mapped model included, by cores: {memory}")


if __name__ == "__main__":
    main()
