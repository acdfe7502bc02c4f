"""What several workers cost in memory: they must share one copy of the model, not hold one each.

    python benchmarks/workers.py [--users 3000000] [--movies 100000] [--json FILE]

Makes a version of about 1 GB in a temporary folder (that many users and movies, 64 factors, random numbers), and
starts ``uvicorn --workers 1, 2, 4`` on it. Each worker is asked over many new connections, for users from everywhere,
so that it has touched what it will ever touch. Then the memory of all processes of the service is added up, its parent
included: PSS divides a shared page by those who map it, USS is what a process has for itself, RSS counts shared pages
in full. Needs some 5 GB of memory and 3 GB of disk, and a system with /proc.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import data  # noqa: F401 - first: it makes app importable
import numpy as np
import pandas as pd
import psutil
import scipy.sparse as sp
from load import Server, ask, describe_run, running, write_json
from rich.console import Console
from rich.table import Column, Table

from app.als import AlsConfig, Factors
from app.artifacts import TrainedModel
from app.core import IdMap
from app.datasets.synthetic_titles import make_titles
from app.history import UserRows
from app.machine import describe_machine
from app.registry import publish

N_FACTORS = 64
N_RATED = 4  # movies of each user
N_WORKERS = (1, 2, 4)
N_REQUESTS = 4_000  # in all, each over a connection of its own
TARGET = 1.3
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=3_000_000)
    parser.add_argument("--movies", type=int, default=100_000)
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    arguments = parser.parse_args()
    n_users, n_movies = arguments.users, arguments.movies
    figures = {**describe_run(sys.argv), "machine": describe_machine(1), "n_users": n_users, "n_movies": n_movies}
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        published = publish(Path(folder), make_model(n_users, n_movies), "benchmark")
        n_bytes = sum(path.stat().st_size for path in published.folder.rglob("*"))
        print(f"a version of {n_bytes / 1e9:.2f} GB, published within {time.monotonic() - began:.0f} s")
        measured = {n: measure(Path(folder), n, n_users, n_movies) for n in N_WORKERS}
    show(measured)
    write_json(
        arguments.json, {**figures, "bytes": n_bytes, "workers": {n: asdict(each) for n, each in measured.items()}}
    )


def make_model(n_users: int, n_movies: int) -> TrainedModel:
    """Make a model of random numbers: everybody has rated as many movies, and likes all but the last."""
    rng = np.random.default_rng(0)
    users, items = (IdMap(np.arange(1, n + 1, dtype=np.int64)) for n in (n_users, n_movies))
    drawn = rng.integers(0, n_movies // N_RATED, (n_users, N_RATED), dtype=np.int32)
    rated = drawn + np.arange(N_RATED, dtype=np.int32) * np.int32(n_movies // N_RATED)  # rising, and each once
    n_liked = N_RATED - 1
    config = AlsConfig(factors=N_FACTORS)
    return TrainedModel(
        users=users,
        items=items,
        factors=Factors(*(0.1 * rng.standard_normal((n, N_FACTORS), dtype=np.float32) for n in (n_users, n_movies))),
        confidence=sp.csr_matrix(
            (
                np.full(n_users * n_liked, config.alpha, dtype=np.float32),
                np.ascontiguousarray(rated[:, :n_liked]).ravel(),
                np.arange(0, n_users * n_liked + 1, n_liked, dtype=np.int32),
            ),
            shape=(n_users, n_movies),
        ),
        history=UserRows(
            indptr=np.arange(0, n_users * N_RATED + 1, N_RATED, dtype=np.int64),
            item_index=rated.ravel(),
            rating=np.tile(np.array([4.0] * n_liked + [2.0], dtype=np.float32), n_users),
            timestamp=np.tile(np.arange(N_RATED, dtype=np.int64), n_users),
        ),
        movies=make_movies(items, rng),
        config={"model": "ALS", "als": asdict(config), "min_rating": 4.0, "n_ratings": n_users * N_RATED},
        metrics={"stage": "none", "protocols": {}},
        dataset="random numbers",
        fingerprint="0" * 64,
    )


def make_movies(items: IdMap, rng: np.random.Generator) -> pd.DataFrame:
    years = rng.integers(1920, 2024, len(items))
    genres = np.array(["Drama", "Comedy|Drama", "Action|Sci-Fi", "Animation|Children|Comedy"])
    return pd.DataFrame(
        {
            "movie_id": items.ids,
            "title": make_titles(rng, years),
            "genres": rng.choice(genres, len(items)),
            "year": pd.array(years, dtype="Int64"),
            "imdb_id": [f"{number:07}" for number in items.ids.tolist()],
            "tmdb_id": [str(number) for number in items.ids.tolist()],
        }
    )


@dataclass(frozen=True)
class Memory:
    """What the service takes, MiB: all processes' PSS; of each worker, USS and RSS; where one has most for itself."""

    pss: float
    worker_uss: list[float]
    worker_rss: list[float]
    private: dict[str, float]
    seconds_to_ready: float


def measure(artifacts_dir: Path, n_workers: int, n_users: int, n_movies: int) -> Memory:
    """Start the service, ask every worker, and look at the memory of its processes."""
    options = ("--log-level", "warning", *(("--workers", str(n_workers)) if n_workers > 1 else ()))
    began = time.monotonic()
    with running("app.main:app", *options, RECS_ARTIFACTS_DIR=artifacts_dir, RECS_RELOAD_SECONDS=0) as server:
        workers = wait_for_workers(server, n_workers)
        seconds = time.monotonic() - began
        touch(server, n_users, n_movies)
        each = [worker.memory_full_info() for worker in workers]
        return Memory(
            pss=sum(process.memory_full_info().pss for process in family(server)) / MIB,
            worker_uss=[memory.uss / MIB for memory in each],
            worker_rss=[memory.rss / MIB for memory in each],
            private=private_of(workers[0]),
            seconds_to_ready=seconds,
        )


def wait_for_workers(server: Server, n_workers: int) -> list[psutil.Process]:
    """Return the processes that serve, once all of them have loaded the model."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        status, metrics = ask(server.port, "/metrics")
        ready = sum(
            float(line.split()[-1]) for line in metrics.decode().splitlines() if line.startswith("recs_serving")
        )
        if status == 200 and ready == n_workers:
            return [each for each in family(server) if has_model(each)]
        time.sleep(0.2)
    raise SystemExit(f"{n_workers} workers did not become ready within 300 seconds")


def family(server: Server) -> list[psutil.Process]:
    process = psutil.Process(server.pid)
    return [process, *process.children(recursive=True)]


def has_model(process: psutil.Process) -> bool:
    return any(mapping.path.endswith("als.npz") for mapping in process.memory_maps())


def touch(server: Server, n_users: int, n_movies: int) -> None:
    """Ask for users from everywhere and for the rest of what there is, each over a new connection."""
    rng = np.random.default_rng(1)
    for n in range(N_REQUESTS):
        user, movie = rng.integers(1, n_users), rng.integers(1, n_movies)
        paths = (
            f"/recommend?user_id={user}",
            f"/recommend_cold?liked={movie},{1 + movie // 2}",
            f"/similar?movie_id={movie}",
            f"/popular?k={1 + n % 100}",
            f"/movies/{movie}",
            "/movies?query=silent+harbour",
        )
        status, body = ask(server.port, paths[n % len(paths)])
        if status != 200:
            raise SystemExit(f"{paths[n % len(paths)]}: {status} {body!r}")


def private_of(process: psutil.Process) -> dict[str, float]:
    """Return the mappings in which a process has most memory for itself, MiB."""
    found: defaultdict[str, float] = defaultdict(float)
    for mapping in process.memory_maps():
        found[Path(mapping.path).name or "anonymous"] += (mapping.private_dirty + mapping.private_clean) / MIB
    return dict(sorted(found.items(), key=lambda each: -each[1])[:8])


def show(measured: dict[int, Memory]) -> None:
    names = ("PSS of all", "of one", "USS of each worker", "RSS of each worker", "s to ready")
    table = Table(Column("workers"), *(Column(name, justify="right") for name in names), title="Memory, MiB")
    one = measured[1].pss
    for n, found in measured.items():
        uss, rss = (", ".join(f"{each:,.0f}" for each in values) for values in (found.worker_uss, found.worker_rss))
        table.add_row(str(n), f"{found.pss:,.0f}", f"{found.pss / one:.2f}", uss, rss, f"{found.seconds_to_ready:.1f}")
    console = Console(width=120, markup=False)
    console.print(table)
    for n, found in measured.items():
        console.print(
            f"{n}, private of one: {', '.join(f'{name} {size:,.1f}' for name, size in found.private.items())}"
        )
    ratio = measured[max(measured)].pss / one
    verdict = "within" if ratio <= TARGET else "NOT within"
    console.print(f"{max(measured)} workers: {ratio:.2f} times one, {verdict} {TARGET:g}")


if __name__ == "__main__":
    main()
