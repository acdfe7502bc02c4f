"""The index: it finds nearly what exact scoring finds, shares its file, and refuses what is not its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from app.errors import ArtifactError
from app.index import INDEX, MOST_PLACES, Index, build_index, map_index

N_ITEMS, FACTORS = 3_000, 16
HEAD = 8 + N_ITEMS * FACTORS * 2  # where the vectors end
LEVELS = HEAD + 64 + 40

Factors = NDArray[np.float32]


def invent(n_items: int = N_ITEMS, scale: float = 1.0) -> Factors:
    """Item factors in clusters, a few of them long, as a fit leaves them."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(50, FACTORS))
    directions = centres[rng.integers(0, 50, n_items)] + 0.5 * rng.normal(size=(n_items, FACTORS))
    return (scale * directions * rng.lognormal(0, 1, (n_items, 1))).astype(np.float32)


def users(n: int = 100) -> Factors:
    return np.random.default_rng(1).normal(size=(n, FACTORS)).astype(np.float32)


def open_index(item_factors: Factors, folder: Path) -> Index:
    build_index(item_factors, folder / INDEX)
    return map_index(folder / INDEX, *item_factors.shape)


def recall(index: Index, item_factors: Factors, k: int = 10) -> float:
    """Share of the exact ``k`` best that are among the first ``k`` candidates, over all users."""
    true = [set(np.argsort(-(item_factors @ user))[:k].tolist()) for user in users()]
    found = [set(index.candidates(user, k).tolist()) for user in users()]
    return sum(len(a & b) for a, b in zip(true, found, strict=True)) / (k * len(true))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("index") / INDEX
    build_index(invent(), path)
    return path


@pytest.fixture(scope="module")
def index(path: Path) -> Index:
    return map_index(path, N_ITEMS, FACTORS)


# --- what it finds


def test_a_few_items_are_all_found(tmp_path: Path) -> None:
    items = np.array([[1, 0], [0, 2], [-3, 0], [1, 1]], dtype=np.float32)
    index = open_index(items, tmp_path)
    assert index.candidates(np.array([1, 0.5], dtype=np.float32), 1).tolist() == [3]  # 1, 1, −3 and 1.5
    assert sorted(index.candidates(np.array([1, 0.5], dtype=np.float32), 9).tolist()) == [0, 1, 2, 3]


def test_the_inner_product_counts_not_the_angle(tmp_path: Path) -> None:
    items = np.array([[1, 0], [5, 5]], dtype=np.float32)  # the first points where the user does, the second is longer
    assert open_index(items, tmp_path).candidates(np.array([1, 0], dtype=np.float32), 1).tolist() == [1]


def test_it_finds_nearly_what_exact_scoring_finds(index: Index) -> None:
    assert recall(index, invent()) >= 0.97


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_only_relative_size_matters(tmp_path: Path, scale: float) -> None:
    """float16 ends at 65,504 and at 6e−8."""
    assert recall(open_index(invent(scale=scale), tmp_path), invent(scale=scale)) >= 0.97


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_a_users_size_does_not_matter(index: Index, scale: float) -> None:
    for user in users(10):
        np.testing.assert_array_equal(
            index.candidates((user * scale).astype(np.float32), 20), index.candidates(user, 20)
        )


@pytest.mark.parametrize("size", [0.0, 1e-13])
def test_movies_that_hardly_anybody_likes_do_not_hide_the_others(tmp_path: Path, size: float) -> None:
    items = invent()
    items[np.random.default_rng(2).random(N_ITEMS) < 0.9] *= np.float32(size)
    assert recall(open_index(items, tmp_path), items) >= 0.97


def test_candidates_are_items_of_the_catalogue_each_once(index: Index) -> None:
    for n in (1, 10, 300, N_ITEMS + 1):
        found = index.candidates(users()[0], n)
        assert found.dtype == np.int64
        assert len(np.unique(found)) == len(found) <= n
        assert found.min() >= 0
        assert found.max() < N_ITEMS
        assert len(found) == n or n > 300


def test_a_factor_of_zero_gets_any_items(index: Index) -> None:
    assert len(index.candidates(np.zeros(FACTORS, dtype=np.float32), 10)) == 10


def test_threads_that_ask_at_once_get_what_each_would_get_alone(index: Index) -> None:
    asked = list(users()) * 5
    alone = [index.candidates(user, 50).tolist() for user in asked]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda user: index.candidates(user, 50).tolist(), asked))
    assert together == alone


def test_it_says_what_it_is(index: Index) -> None:
    assert index.description == "usearch HNSW, inner product, 3,000 movies"


def test_more_candidates_are_worth_it_in_a_larger_catalogue(index: Index) -> None:
    assert index.suits(3, np.array([0, 4, 5])).tolist() == [True, True, False]
    assert Index(1_000_000, index.native).suits(10, np.array([2_490, 2_491])).tolist() == [True, False]


def test_long_lists_are_not_its_business(index: Index) -> None:
    larger = Index(1_000_000, index.native)
    assert larger.suits(MOST_PLACES, np.array(0))
    assert not larger.suits(MOST_PLACES + 1, np.array(0))


# --- its file


def test_equal_factors_make_equal_bytes(path: Path, tmp_path: Path) -> None:
    build_index(invent(), tmp_path / INDEX)
    assert (tmp_path / INDEX).read_bytes() == path.read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_file_is_mapped_and_can_be_read_only(path: Path) -> None:
    path.chmod(0o444)
    index = map_index(path, N_ITEMS, FACTORS)
    index.candidates(users()[0], 10)
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    assert mapped
    assert not any("w" in line.split()[1] for line in mapped)


def test_the_library_is_loaded_only_for_an_index(path: Path) -> None:
    code = f"""
import sys
import app.index
from pathlib import Path
assert "usearch" not in sys.modules
app.index.map_index(Path({str(path)!r}), {N_ITEMS}, {FACTORS})
assert "usearch" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# --- what is refused


def refuse(path: Path, n_items: int = N_ITEMS, factors: int = FACTORS) -> None:
    with pytest.raises(
        ArtifactError, match=rf"{INDEX}: .* expected a usearch index of {n_items:,} movies with {factors}"
    ):
        map_index(path, n_items, factors)


def test_another_catalogues_index_is_refused(path: Path) -> None:
    refuse(path, n_items=N_ITEMS - 1)
    refuse(path, n_items=N_ITEMS + 1)
    refuse(path, factors=FACTORS // 2)
    refuse(path, factors=FACTORS + 1)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    refuse(tmp_path / INDEX)
    (tmp_path / INDEX).mkdir()
    refuse(tmp_path / INDEX)


def test_a_file_cut_anywhere_is_refused(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    for end in (*range(0, len(whole), 20_011), 7, 8, HEAD, HEAD + 63, LEVELS - 1, LEVELS + 99, len(whole) - 1):
        (tmp_path / INDEX).write_bytes(whole[:end])
        refuse(tmp_path / INDEX)


@pytest.mark.parametrize(
    "change",
    [
        lambda whole: whole + b"x",
        lambda whole: bytes(len(whole)),
        lambda whole: np.random.default_rng(3).bytes(len(whole)),
        lambda whole: np.random.default_rng(3).bytes(len(whole) // 5_000),
    ],
    ids=["longer", "zeros", "noise", "short noise"],
)
def test_what_is_no_index_is_refused(path: Path, tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    (tmp_path / INDEX).write_bytes(change(path.read_bytes()))
    refuse(tmp_path / INDEX)


@pytest.mark.parametrize(
    "place",
    [
        *range(8),  # rows and bytes of a row
        *range(HEAD, HEAD + 7),  # magic
        *range(HEAD + 13, HEAD + 17),  # kinds of metric, numbers, keys and places
        *range(HEAD + 17, HEAD + 41),  # movies that are present, movies that were deleted, dimensions
        *range(HEAD + 64, HEAD + 88),  # movies of the graph, edges of each
        *range(HEAD + 98, HEAD + 104),  # entry to the graph, its upper bytes
        LEVELS + 1,  # a level
    ],
)
def test_a_head_that_says_something_else_is_refused(path: Path, tmp_path: Path, place: int) -> None:
    changed = bytearray(path.read_bytes())
    changed[place] ^= 0x5A
    (tmp_path / INDEX).write_bytes(changed)
    refuse(tmp_path / INDEX)
