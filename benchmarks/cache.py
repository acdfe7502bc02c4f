"""What a hit costs, in the process and in Redis, beside computing the answer: when the cache pays.

    python benchmarks/cache.py [--artifacts-dir artifacts] [--rounds 5]

Loads the active version in this process, starts a Redis server of its own on this machine, and asks for lists of ten
movies for users at random, in turns: from each level of the cache, and computed by each stage. A computed answer has no
JSON yet, which a hit has. All on one event loop (uvloop, as in the service), without HTTP; BLAS has one thread, so that
the machine's other work changes less.

Prints the median and p99 of how long each takes, and the processor time that it costs this process, which bounds the
requests a second; each the median over the rounds. The last column compares the median with that of a hit in Redis.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import uvloop
from data import ROOT  # first: it makes app importable
from load import describe_run
from rich.console import Console
from rich.table import Column, Table
from threadpoolctl import threadpool_limits

from app.cache import Cached, CacheKey, ResponseCache
from app.machine import describe_machine
from app.recommender import ListOptions, Recommender, load_recommender
from app.registry import load_current
from app.rerank import Dials
from tests.redis_servers import running_redis

K = 10
N_LIKED = 5
BODY = Cached(b"x" * 1_500, "ranker")  # as long as a list of ten
SECONDS = 600  # longer than this takes
N_CALLS = 1_000  # of each in a round, except of what takes longer than 1 ms
N_SLOW_CALLS = 200
BATCH = 100  # calls under one reading of the clock, where that would cost as much as the call
N_AT_ONCE = 16
FIRST, DIALS = ListOptions(ranker=False), Dials(novelty=0.3, diversity=0.3, calibrate=0.3)
HIT_IN_REDIS = "Redis: hit"

Round = Callable[[], Awaitable["Sample"]]


@dataclass(frozen=True)
class Sample:
    """One round: microseconds of each call, and of processor time a call."""

    microseconds: Sequence[float]
    processor: float


@dataclass(frozen=True)
class Figure:
    """Medians over the rounds, in microseconds."""

    p50: float
    p99: float
    processor: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifacts-dir", type=Path, default=ROOT / "artifacts")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds, after one that is not counted")
    parser.add_argument("--out", type=Path, help="write the figures as JSON here too")
    arguments = parser.parse_args()
    recommender = load_recommender(load_current(arguments.artifacts_dir))
    with (
        threadpool_limits(1, "blas"),
        tempfile.TemporaryDirectory() as folder,
        running_redis(Path(folder)) as server,
    ):
        figures = uvloop.run(measure(recommender, server.url, arguments.rounds))
    _print(recommender, arguments.rounds, figures)
    if arguments.out:
        measured = {
            **describe_run(sys.argv),
            "machine": describe_machine(1),
            "n_users": len(recommender.model.users),
            "n_items": len(recommender.model.items),
            "rounds": arguments.rounds,
            "microseconds": {name: asdict(figure) for name, figure in figures.items()},
        }
        arguments.out.write_text(json.dumps(measured, indent=2) + "\n")


async def measure(recommender: Recommender, redis_url: str, n_rounds: int) -> dict[str, Figure]:
    """Measure everything in turns, so that what else the machine does meets all of them alike."""
    cache, shared = ResponseCache(N_CALLS, SECONDS), ResponseCache(0, SECONDS, redis_url)
    variants = {**_hits(cache, shared), **_computed(recommender)}
    for number in range(N_CALLS):
        await shared.put(_key(number), BODY)
        cache.local_put(_key(number), BODY)
    rounds = [{name: await take() for name, take in variants.items()} for _ in range(n_rounds + 1)]
    await shared.close()
    return {name: _summarise([each[name] for each in rounds[1:]]) for name in variants}


def _hits(cache: ResponseCache, shared: ResponseCache) -> dict[str, Round]:
    async def hit(number: int) -> None:
        if await shared.get(_key(number)) is None:
            raise SystemExit("Redis did not have what it was given; the figures would be those of misses")

    async def miss(number: int) -> None:
        await shared.get(_key(N_CALLS + number))

    async def put(number: int) -> None:
        await shared.put(_key(number), BODY)

    return {
        "in the process: hit": lambda: _in_batches(lambda number: cache.local_get(_key(number))),
        "in the process: put": lambda: _in_batches(lambda number: cache.local_put(_key(number), BODY)),
        HIT_IN_REDIS: lambda: _one_by_one(hit),
        "Redis: miss": lambda: _one_by_one(miss),
        "Redis: put": lambda: _one_by_one(put),
        f"Redis: hit, {N_AT_ONCE} at once": lambda: _at_once(hit),
    }


def _computed(recommender: Recommender) -> dict[str, Round]:
    users = recommender.model.users.ids
    movies, rng = recommender.model.items.ids, np.random.default_rng(0)
    asked = rng.choice(users, N_CALLS).tolist()
    liked = rng.choice(movies, (N_CALLS, N_LIKED)).tolist()

    def known(options: ListOptions) -> Callable[[int], object]:
        return lambda number: recommender.recommend(asked[number], K, options)

    def cold(options: ListOptions) -> Callable[[int], object]:
        return lambda number: recommender.recommend_cold(liked[number], K, options)

    found = {
        "computed: first stage": (known(FIRST), N_CALLS),
        f"computed: fold-in of {N_LIKED} movies": (cold(FIRST), N_CALLS),
        "computed: first stage, dials": (known(ListOptions(False, DIALS)), N_SLOW_CALLS),
        "computed: first stage, reasons": (known(ListOptions(False, explain=True)), N_SLOW_CALLS),
    }
    if recommender.ranker:
        found |= {
            "computed: ranker": (known(ListOptions()), N_SLOW_CALLS),
            f"computed: ranker, {N_LIKED} liked movies": (cold(ListOptions()), N_SLOW_CALLS),
            "computed: ranker, dials": (known(ListOptions(True, DIALS)), N_SLOW_CALLS),
            "computed: ranker, reasons": (known(ListOptions(explain=True)), N_SLOW_CALLS),
        }
    return {name: _computing(compute, n) for name, (compute, n) in found.items()}


def _computing(compute: Callable[[int], object], n_calls: int) -> Round:
    async def call(number: int) -> None:
        compute(number)

    return lambda: _one_by_one(call, n_calls)


async def _in_batches(call: Callable[[int], object]) -> Sample:
    microseconds, start = [], time.process_time()
    for first in range(0, N_CALLS, BATCH):
        began = time.perf_counter()
        for number in range(first, first + BATCH):
            call(number)
        microseconds.append((time.perf_counter() - began) * 1e6 / BATCH)
    return Sample(microseconds, (time.process_time() - start) * 1e6 / N_CALLS)


async def _one_by_one(call: Callable[[int], Awaitable[None]], n_calls: int = N_CALLS) -> Sample:
    microseconds, start = [], time.process_time()
    for number in range(n_calls):
        began = time.perf_counter()
        await call(number)
        microseconds.append((time.perf_counter() - began) * 1e6)
    return Sample(microseconds, (time.process_time() - start) * 1e6 / n_calls)


async def _at_once(call: Callable[[int], Awaitable[None]]) -> Sample:
    """Let as many coroutines as that call one after another."""
    microseconds: list[float] = []
    start, n_each = time.process_time(), N_CALLS // N_AT_ONCE

    async def work(first: int) -> None:
        for number in range(first, first + n_each):
            began = time.perf_counter()
            await call(number)
            microseconds.append((time.perf_counter() - began) * 1e6)

    await asyncio.gather(*(work(worker * n_each) for worker in range(N_AT_ONCE)))
    return Sample(microseconds, (time.process_time() - start) * 1e6 / (N_AT_ONCE * n_each))


def _key(number: int) -> CacheKey:
    """Return a key as long as that of a list with options; making it belongs to the cost of a hit."""
    return (
        "20261123T101500Z-1a2b3c4d",
        "recommend",
        0,
        number,
        K,
        True,
        0.3,
        0.3,
        0.3,
        True,
        ("Drama",),
        None,
        None,
        (),
    )


def _summarise(rounds: list[Sample]) -> Figure:
    def median(of: Callable[[Sample], float]) -> float:
        return statistics.median(of(each) for each in rounds)

    return Figure(
        p50=median(lambda each: float(np.percentile(each.microseconds, 50))),
        p99=median(lambda each: float(np.percentile(each.microseconds, 99))),
        processor=median(lambda each: each.processor),
    )


def _print(recommender: Recommender, n_rounds: int, figures: dict[str, Figure]) -> None:
    model, machine = recommender.model, describe_machine(1)
    print(f"{time.strftime('%Y-%m-%d')}: python {' '.join(sys.argv)}")
    print(f"{model.manifest['dataset']}: {len(model.users):,} users, {len(model.items):,} movies; {n_rounds} rounds")
    print(f"Python {machine['python']}, {platform.machine()}, {machine['n_cores']} cores")
    columns = ("p50 µs", "p99 µs", "processor µs", "p50, times a hit in Redis")
    table = Table("", *(Column(name, justify="right") for name in columns))
    for name, figure in figures.items():
        ratio = figure.p50 / figures[HIT_IN_REDIS].p50
        table.add_row(name, f"{figure.p50:,.2f}", f"{figure.p99:,.2f}", f"{figure.processor:,.2f}", f"{ratio:.2f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
