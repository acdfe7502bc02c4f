"""What an approximate index answers, beside exact scoring, in a catalogue of a million movies.

    python benchmarks/index.py [--movies 1000000] [--k 10] [--factors-file FILE]
                               [--libraries usearch,faiss,hnswlib,norms]

Invents ratings of that shape, as ``app.datasets.synthetic`` does but with more tastes: 3 users for 10 movies, the long
tail of popularity, lists of ratings with the tastes of their sessions. The project's own ALS learns from them (64
factors, else the default configuration or ``--preset reference``), and the recency-weighted factors of ``--users``
users are the queries. The factors are kept in ``--factors-file``, so that the fit need not be repeated.

Each library builds in a process of its own, with all cores (usearch as publishing does, with one thread, so that equal
factors give equal bytes), and answers in another one, with one thread. There, in turns over blocks of users, each
user's ``k`` best movies that they have not rated are found by ``app.scoring`` over all movies, and by a setting of the
library: as many candidates as the user has rated movies, and k more, scored again exactly. ``norms`` is no library
but the bound |x·y| ≤ ‖x‖‖y‖: score movies from the longest factor on, until no other can be among the best. The
others than usearch are not in requirements.txt: pip install faiss-cpu hnswlib.

Prints recall@k (the share of the exact lists that is found; 95 % bootstrap interval over users), the median and p99
time of a list, how many times that goes into exact scoring (median over the blocks, 10th to 90th percentile), and what
the index costs: time and memory to build, its file, and the memory that is each process's own.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import data  # noqa: F401 - first: it makes app importable
import numpy as np
import scipy.sparse as sp
from load import describe_run
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from app.als import PRESETS, AlsConfig, learn
from app.core import MIN_RATING, Positives, strength_of
from app.evaluation.bootstrap import interval, resampled_means
from app.index import CONNECTIVITY, EXPANSION_ADD, EXPANSION_SEARCH, build_index, map_index
from app.machine import describe_machine
from app.npz import map_npz, write_npz
from app.scoring import ExactSearch

FACTORS = 64
TARGET, AIM = (10, 0.98), (20, 0.99)  # times faster than exact scoring, recall@10
BLOCK = 50  # users in turn
LENGTHS = (10, 100, 300, 1_000, 2_500, 5_000, 10_000, 20_000)  # of candidates, beside exact scoring
N_TASTES, N_STYLES, TASTES_OF_A_USER = 1_000, 32, 3
SEED = 42

Factors = NDArray[np.float32]
Search = Callable[[NDArray[np.float32], int], NDArray[np.int64]]


@dataclass(frozen=True)
class Contender:
    """``open`` makes a search for each effort, which are tried in turn: candidates looked at, or lists probed."""

    title: str
    efforts: tuple[int, ...]
    build: Callable[[Factors, Path], None]
    open: Callable[[Path], Callable[[int], Search]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--movies", type=int, default=1_000_000)
    parser.add_argument("--k", type=int, default=10, help="length of the lists")
    parser.add_argument("--users", type=int, default=1_000, help="whose lists are asked for")
    parser.add_argument(
        "--skip", type=int, default=0, help="leave so many users out: those that a setting was chosen on"
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), default="default", help="of the fit; 64 factors anyway")
    parser.add_argument("--factors-file", type=Path, help="npz file of the fit: used if it is there, else written")
    parser.add_argument("--libraries", default="usearch", help=f"some of {','.join(CONTENDERS)}")
    parser.add_argument("--out", type=Path, help="write the figures as JSON here too")
    arguments = parser.parse_args()
    libraries = arguments.libraries.split(",")
    if unknown := set(libraries) - set(CONTENDERS):
        parser.error(f"--libraries names {', '.join(unknown)}; there are {', '.join(CONTENDERS)}")
    users = range(arguments.skip, arguments.skip + arguments.users)
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.factors_file or Path(folder) / "factors.npz"
        if not path.is_file():
            fit(path, arguments.movies, replace(PRESETS[arguments.preset], factors=FACTORS))
        n_items = len(map_npz(path)["item_factors"])
        if n_items != arguments.movies:
            parser.error(f"{path} holds {n_items:,} movies; expected {arguments.movies:,}")
        figures = [_alone(measure_library, name, path, Path(folder), users, arguments.k) for name in libraries]
    _print(figures, arguments.movies, arguments.users, arguments.k)
    if arguments.out:
        result = {
            **describe_run(sys.argv),
            "machine": describe_machine(1),
            "movies": arguments.movies,
            "k": arguments.k,
            "preset": arguments.preset,
            "skip": arguments.skip,
        }
        arguments.out.write_text(json.dumps({**result, "libraries": figures}, indent=2) + "\n")


def fit(path: Path, n_movies: int, config: AlsConfig) -> None:
    """Invent ratings, learn from them, and write item factors, and of some users factors and what they rated."""
    start = time.perf_counter()
    positives, rated = invent(n_movies, np.random.default_rng(SEED))
    n_users, nnz, seconds = rated.shape[0], positives.user_items.nnz, time.perf_counter() - start
    print(f"{n_users:,} users, {rated.nnz:,} ratings, {nnz:,} of them positive, in {seconds:.0f} s", flush=True)
    factors = learn(positives, config)
    print(f"{config.iterations} iterations of ALS and recency in {time.perf_counter() - start - seconds:.0f} s")
    with_positives = np.flatnonzero(np.diff(positives.user_items.indptr))
    users = np.random.default_rng(SEED).permutation(with_positives)[:20_000]
    of_users = rated[users]
    arrays = {"indptr": of_users.indptr, "seen": of_users.indices, "user_factors": factors.user_factors[users]}
    write_npz(path, {"item_factors": factors.item_factors, **arrays})


def invent(n_movies: int, rng: np.random.Generator) -> tuple[Positives, sp.csr_matrix]:
    """Invent ratings of the ``n_movies`` most liked of twice as many movies: positives, and everything rated."""
    n_invented, n_users = 2 * n_movies, 3 * n_movies // 10
    user, item, rating = _invent_ratings(n_invented, n_users, rng)
    n_likes = np.bincount(item[rating >= MIN_RATING], minlength=n_invented)
    place = np.full(n_invented, -1, dtype=np.int32)
    place[np.sort(np.argsort(-n_likes, kind="stable")[:n_movies])] = np.arange(n_movies)
    kept = place[item] >= 0
    user, item, rating = user[kept], place[item[kept]], rating[kept]
    rated = _to_matrix(user, item, (n_users, n_movies))
    liked = rating >= MIN_RATING
    user, item, rating = user[liked], item[liked], rating[liked]
    n_later = np.searchsorted(user, user, side="right") - 1 - np.arange(len(user))  # no two at one moment
    order = np.lexsort((item, user))
    strength = strength_of(rating.astype(np.float64), MIN_RATING)[order].astype(np.float32)
    user_items = _to_matrix(user[order], item[order], (n_users, n_movies))
    return Positives(user_items, strength, n_later[order].astype(np.int32)), rated


def _to_matrix(user: NDArray[np.int32], item: NDArray[np.int32], shape: tuple[int, int]) -> sp.csr_matrix:
    indptr = np.searchsorted(user, np.arange(shape[0] + 1)).astype(np.int32)
    return sp.csr_matrix((np.ones(len(user), dtype=np.float32), item, indptr), shape=shape)


def _invent_ratings(
    n_movies: int, n_users: int, rng: np.random.Generator
) -> tuple[NDArray[np.int32], NDArray[np.int32], Factors]:
    """Return user, item and rating, by user and then time: P(i | taste g) ∝ popularity_i · exp(1.8 affinity_gi)."""
    scale = np.arange(1, N_STYLES + 1) ** -0.5  # styles matter less and less; affinity has variance 2
    style = rng.normal(size=(n_movies, N_STYLES)).astype(np.float32)
    taste = (rng.normal(size=(N_TASTES, N_STYLES)) * scale * np.sqrt(2 / np.sum(scale**2))).astype(np.float32)
    quality = rng.normal(0, 0.4, n_movies).astype(np.float32)
    log_popularity = -1.4 * np.log(rng.permutation(n_movies) + 1 + n_movies / 200) + 0.8 * quality
    n_ratings = np.minimum(20 + rng.lognormal(np.log(145) - 1.3**2 / 2, 1.3, n_users), n_movies / 10).astype(np.int64)
    user = np.repeat(np.arange(n_users, dtype=np.int32), n_ratings)
    group = _draw_tastes(user, n_ratings, rng)
    item, affinity = np.empty(len(user), dtype=np.int32), np.empty(len(user), dtype=np.float32)
    for taste_index, rows in enumerate(np.split(np.argsort(group, kind="stable"), _ends(group))):
        suits = style @ taste[taste_index]
        cdf = np.cumsum(np.exp(log_popularity + 1.8 * suits), dtype=np.float64)
        drawn = np.searchsorted(cdf, np.sort(rng.random(len(rows))) * cdf[-1], side="right")
        item[rows] = rng.permutation(np.minimum(drawn, n_movies - 1))
        affinity[rows] = suits[item[rows]]
    liking = quality[item] + affinity / 4 + rng.normal(0, 0.35, n_users)[user] + rng.normal(0, 0.8, len(user))
    step = np.where(rng.random(n_users) < 0.5, 1.0, 0.5)[user]
    rating = np.clip(np.round((liking + 3.55 - liking.mean()) / step) * step, 0.5, 5).astype(np.float32)
    first = np.sort(np.unique(user.astype(np.int64) * n_movies + item, return_index=True)[1])  # nobody rates twice
    return user[first], item[first], rating[first]


def _draw_tastes(user: NDArray[np.int32], n_ratings: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int16]:
    """Return the taste of each rating: one in a session of about 30, one of the user's few."""
    starts = rng.random(len(user)) < 1 / 30
    starts[np.cumsum(n_ratings) - n_ratings] = True
    tastes = rng.integers(N_TASTES, size=(len(n_ratings), TASTES_OF_A_USER), dtype=np.int16)
    chosen = tastes[user[starts], rng.integers(TASTES_OF_A_USER, size=int(starts.sum()))]
    of_ratings: NDArray[np.int16] = chosen[np.cumsum(starts) - 1]
    return of_ratings


def _ends(group: NDArray[np.int16]) -> NDArray[np.int64]:
    return np.cumsum(np.bincount(group, minlength=N_TASTES))[:-1]


def _alone(work: Callable[..., dict[str, Any]], *arguments: object) -> dict[str, Any]:
    """Work in a process of its own: libraries bring threads and memory pools that outlive them."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def measure_library(name: str, factors_file: Path, folder: Path, rows: range, k: int) -> dict[str, Any]:
    path = folder / name
    built = _alone(build, name, factors_file, path)
    return {
        "library": name,
        "title": CONTENDERS[name].title,
        **built,
        **_alone(answer, name, factors_file, path, rows, k),
    }


def build(name: str, factors_file: Path, path: Path) -> dict[str, Any]:
    """Build an index with all cores; memory is what the process has at most, beyond the factors."""
    item_factors = np.asarray(map_npz(factors_file)["item_factors"])
    item_factors.sum()  # they are in memory
    before, start = _most_bytes(), time.perf_counter()
    CONTENDERS[name].build(item_factors, path)
    seconds = time.perf_counter() - start
    print(f"{name}: built in {seconds:.1f} s", flush=True)
    return {"build_seconds": seconds, "build_bytes": _most_bytes() - before, "file_bytes": path.stat().st_size}


def _most_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def answer(name: str, factors_file: Path, path: Path, rows: range, k: int) -> dict[str, Any]:
    """Ask for lists with every effort in turn, on one thread."""
    factors = map_npz(factors_file)
    exact = ExactSearch(np.asarray(factors["item_factors"]))
    users = [
        (np.array(factors["user_factors"][u]), np.array(factors["seen"][slice(*factors["indptr"][u : u + 2])]))
        for u in rows[: max(0, len(factors["user_factors"]) - rows.start)]
    ]
    with threadpool_limits(1):
        before, start = _own_bytes(), time.perf_counter()
        with_effort = CONTENDERS[name].open(path)
        open_seconds = time.perf_counter() - start
        curve = _measure_curve(exact, with_effort, CONTENDERS[name].efforts, users, k)
        own = _own_bytes() - before
        lengths = _measure_lengths(exact, with_effort(EXPANSION_SEARCH), users[:100], k) if name == "usearch" else {}
    return {"open_seconds": open_seconds, "own_bytes": own, "curve": curve, "lengths": lengths}


def _own_bytes() -> int:
    """Return the memory that no other process can share."""
    _, resident, shared = map(int, Path("/proc/self/statm").read_text().split()[:3])
    return (resident - shared) * resource.getpagesize()


User = tuple[NDArray[np.float32], NDArray[np.int32]]  # factor, and the items that they have rated


def _measure_curve(
    exact: ExactSearch, with_effort: Callable[[int], Search], efforts: tuple[int, ...], users: list[User], k: int
) -> list[dict[str, Any]]:
    """Alternate between exact scoring and one effort, block by block: each begins with what exact left cached."""
    seconds, recall = np.empty((2, len(efforts), len(users))), np.empty((len(efforts), len(users)))
    for start in range(0, len(users), BLOCK):
        block = range(start, min(start + BLOCK, len(users)))
        for row, effort in enumerate(efforts):
            search, truth = with_effort(effort), {}
            for u in block:
                seconds[0, row, u], truth[u] = _timed(_exact_list, exact, users[u], k)
            for u in block:
                seconds[1, row, u], found = _timed(_list_of_candidates, exact, search, users[u], k)
                recall[row, u] = len(np.intersect1d(found, truth[u])) / len(truth[u])
    return [
        {"effort": effort, **_summarise(seconds[0, row], seconds[1, row], recall[row])}
        for row, effort in enumerate(efforts)
    ]


def _timed(work: Callable[..., NDArray[np.int64]], *arguments: object) -> tuple[float, NDArray[np.int64]]:
    start = time.perf_counter()
    result = work(*arguments)
    return time.perf_counter() - start, result


def _exact_list(exact: ExactSearch, user: User, k: int) -> NDArray[np.int64]:
    factor, seen = user
    return exact.best_of_one(factor, k, seen)[0]


def _list_of_candidates(exact: ExactSearch, search: Search, user: User, k: int) -> NDArray[np.int64]:
    factor, seen = user
    items = search(factor, k + len(seen))
    items = np.sort(items[~np.isin(items, seen)])
    return exact.order_one(factor, k, items)[0]


def _summarise(exact: NDArray[np.float64], index: NDArray[np.float64], recall: NDArray[np.float64]) -> dict[str, Any]:
    starts = np.arange(0, len(exact), BLOCK)
    times = np.add.reduceat(exact, starts) / np.add.reduceat(index, starts)
    return {
        "exact_ms": float(np.median(exact) * 1e3),
        "ms": float(np.median(index) * 1e3),
        "p99_ms": float(np.percentile(index, 99) * 1e3),
        "times": float(np.median(times)),
        "times_10_90": np.percentile(times, (10, 90)).tolist(),
        "recall": float(recall.mean()),
        "recall_interval": interval(resampled_means(recall[:, None], SEED)[:, 0]),
    }


def _measure_lengths(exact: ExactSearch, search: Search, users: list[User], k: int) -> dict[int, float]:
    """Return how many times faster than exact scoring it is to ask for so many candidates and to order them."""
    times = {}
    for n in (n for n in LENGTHS if n < len(exact.item_factors)):
        seconds = np.empty((2, len(users)))
        for start in range(0, len(users), BLOCK):
            for u in range(start, min(start + BLOCK, len(users))):
                seconds[0, u], _ = _timed(_exact_list, exact, (users[u][0], np.empty(0, dtype=np.int32)), k)
            for u in range(start, min(start + BLOCK, len(users))):
                seconds[1, u], _ = _timed(_best_of_n, exact, search, users[u][0], n, k)
        times[n] = float(np.median(seconds[0]) / np.median(seconds[1]))
    return times


def _best_of_n(exact: ExactSearch, search: Search, factor: NDArray[np.float32], n: int, k: int) -> NDArray[np.int64]:
    return exact.order_one(factor, k, np.sort(search(factor, n)))[0]


def _open_usearch(path: Path) -> Callable[[int], Search]:
    with path.open("rb") as file:
        n_items, row_bytes = np.fromfile(file, dtype="<u4", count=2).tolist()
    index = map_index(path, n_items, row_bytes // 2)

    def with_effort(effort: int) -> Search:
        index.native.expansion_search = effort
        return index.candidates

    return with_effort


def _import(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise SystemExit(f"{module} is not installed; to compare with it: pip install {package}") from error


def _build_faiss(item_factors: Factors, path: Path) -> None:
    faiss = _import("faiss", "faiss-cpu")
    index = faiss.IndexHNSWFlat(item_factors.shape[1], CONNECTIVITY, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = EXPANSION_ADD
    index.add(item_factors)
    faiss.write_index(index, str(path))


def _open_faiss(path: Path) -> Callable[[int], Search]:
    faiss = _import("faiss", "faiss-cpu")
    index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    return lambda effort: _search_faiss(index, faiss.SearchParametersHNSW(efSearch=effort))


def _build_faiss_ivf(item_factors: Factors, path: Path) -> None:
    faiss = _import("faiss", "faiss-cpu")
    n_lists = round(len(item_factors) ** 0.5)
    index = faiss.index_factory(item_factors.shape[1], f"IVF{n_lists},Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(item_factors[np.random.default_rng(SEED).permutation(len(item_factors))[: 100 * n_lists]])
    index.add(item_factors)
    faiss.write_index(index, str(path))


def _open_faiss_ivf(path: Path) -> Callable[[int], Search]:
    faiss = _import("faiss", "faiss-cpu")
    index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
    return lambda effort: _search_faiss(index, faiss.SearchParametersIVF(nprobe=effort))


def _search_faiss(index: Any, parameters: Any) -> Search:
    faiss = _import("faiss", "faiss-cpu")
    faiss.omp_set_num_threads(1)

    def search(factor: NDArray[np.float32], n: int) -> NDArray[np.int64]:
        items: NDArray[np.int64] = index.search(factor[None], n, params=parameters)[1][0]
        return items[items >= 0]

    return search


def _build_hnswlib(item_factors: Factors, path: Path) -> None:
    hnswlib = _import("hnswlib", "hnswlib")
    index = hnswlib.Index(space="ip", dim=item_factors.shape[1])
    index.init_index(max_elements=len(item_factors), M=CONNECTIVITY, ef_construction=EXPANSION_ADD, random_seed=SEED)
    index.add_items(item_factors)
    index.save_index(str(path))


def _open_hnswlib(path: Path) -> Callable[[int], Search]:
    hnswlib = _import("hnswlib", "hnswlib")
    index = hnswlib.Index(space="ip", dim=FACTORS)
    index.load_index(str(path))

    def with_effort(effort: int) -> Search:
        def search(factor: NDArray[np.float32], n: int) -> NDArray[np.int64]:
            index.set_ef(max(effort, n))  # it refuses to find more than it looks at
            items: NDArray[np.int64] = index.knn_query(factor, n, num_threads=1)[0][0].astype(np.int64)
            return items

        return search

    return with_effort


def _build_norms(item_factors: Factors, path: Path) -> None:
    norms = np.linalg.norm(item_factors, axis=1)
    order = np.argsort(-norms, kind="stable")
    write_npz(path, {"order": order, "norms": norms[order], "factors": item_factors[order]})


def _open_norms(path: Path) -> Callable[[int], Search]:
    """Search block by block; effort is the size of the first block, each block doubles what was scored."""
    arrays = {name: np.asarray(array) for name, array in map_npz(path).items()}
    order, norms, factors = arrays["order"], arrays["norms"], arrays["factors"]

    def with_effort(effort: int) -> Search:
        def search(factor: NDArray[np.float32], n: int) -> NDArray[np.int64]:
            length, scores, end = np.linalg.norm(factor), np.empty(0, dtype=np.float32), max(effort, n)
            while True:
                scores = np.concatenate([scores, factors[len(scores) : end] @ factor])
                if end >= len(order) or length * norms[end] < np.partition(scores, -n)[-n]:
                    break
                end *= 2
            found: NDArray[np.int64] = order[np.argpartition(scores, -n)[-n:]]
            return found

        return search

    return with_effort


CONTENDERS = {
    "usearch": Contender("usearch HNSW", (64, EXPANSION_SEARCH, 160, 256, 512), build_index, _open_usearch),
    "faiss": Contender("faiss HNSW", (64, 128, 160, 256, 512), _build_faiss, _open_faiss),
    "faiss-ivf": Contender("faiss IVF", (16, 64, 256), _build_faiss_ivf, _open_faiss_ivf),
    "hnswlib": Contender("hnswlib HNSW", (64, 128, 160, 256, 512), _build_hnswlib, _open_hnswlib),
    "norms": Contender("norms, exact", (2_048, 8_192), _build_norms, _open_norms),
}


def _print(figures: list[dict[str, Any]], n_movies: int, n_users: int, k: int) -> None:
    machine = describe_machine(1)
    console = Console()
    console.print(f"{time.strftime('%Y-%m-%d')}: python {' '.join(sys.argv)}", soft_wrap=True, highlight=False)
    console.print(f"Python {machine['python']}, {platform.machine()}, {machine['n_cores']} cores", highlight=False)
    costs = Table(title="what an index costs", title_justify="left")
    for name in ("index", "build s", "build MB", "file MB", "open ms", "own MB"):
        costs.add_column(name, justify="left" if name == "index" else "right")
    curve = Table(title=f"lists of {k}, {n_movies:,} movies, {n_users:,} users, one thread", title_justify="left")
    for name in ("index", "effort", f"recall@{k}", "ms", "p99 ms", "exact ms", "times"):
        curve.add_column(name, justify="left" if name == "index" else "right")
    for of in figures:
        megabytes = (f"{of[name] / 1e6:,.0f}" for name in ("build_bytes", "file_bytes"))
        opened = (f"{of['open_seconds'] * 1e3:.0f}", f"{of['own_bytes'] / 1e6:.0f}")
        costs.add_row(of["title"], f"{of['build_seconds']:.1f}", *megabytes, *opened)
        for row in of["curve"]:
            curve.add_row(of["title"] if row is of["curve"][0] else "", *_cells(row))
    console.print(costs, curve)
    for of in figures:
        if of["lengths"]:
            lengths = ", ".join(f"{n:,}: {times:.1f}" for n, times in of["lengths"].items())
            console.print(f"Times faster than exact scoring by the number of candidates: {lengths}", highlight=False)


def _cells(row: dict[str, Any]) -> list[str]:
    """Write one setting; bold what reaches the target, with a star what reaches the aim."""
    reached = [row["times"] >= times and row["recall"] >= recall for times, recall in (TARGET, AIM)]
    times = f"{row['times']:.1f} ({row['times_10_90'][0]:.0f}–{row['times_10_90'][1]:.0f}){' *' if reached[1] else ''}"
    bounds = row["recall_interval"]
    recall = f"{row['recall']:.4f}" + (f" ({bounds[0]:.3f}–{bounds[1]:.3f})".replace("0.", ".") if bounds else "")
    figures = (f"{row[name]:.3f}" for name in ("ms", "p99_ms", "exact_ms"))
    style = "bold" if reached[0] else ""
    return [f"{row['effort']:,}", recall, *figures, f"[{style}]{times}[/]" if style else times]


if __name__ == "__main__":
    main()
