"""Approximate search for the movies with the largest inner products, for catalogues too large to score at each request.

``artifacts: item factors ─▶ build_index ─▶ file of the version ─▶ map_index ─▶ Index ─▶ candidates`` of a user factor,
which are then scored exactly elsewhere. It is usearch's HNSW graph over half-precision factors; why that one, and what
it gains, stands in docs/decisions/0005. Nothing here knows filters, or what a user has seen. usearch is imported when
an index is built or mapped, so a service without a large catalogue does not load it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.verification import damaged

INDEX = "index.usearch"  # file of a version folder, which only large catalogues have
# Movies from which an index is built: exact scoring of 64 factors takes 2 ms here, and the index saves 1.8 of them. Of
# 100,000 movies, whose factors fit a processor's cache, it takes 0.9 ms, which is no reason to give up exactness.
THRESHOLD = 200_000
CONNECTIVITY = 16  # edges of a movie on each upper level of the graph, twice as many on the lowest
EXPANSION_ADD = 64  # movies looked at to find a new one's edges
EXPANSION_SEARCH = 128  # movies looked at by a query for fewer
MOST_PLACES = 10  # of a list: as many as recall was measured for; of 100 places it finds .87 to .89
_ITEMS_PER_CANDIDATE = 400  # a candidate costs as much as scoring 150 movies or more: up to here the index is faster

_BYTES_PER_FACTOR = 2  # float16
_SHAPE = struct.Struct("<II")  # of the vectors: rows, bytes of a row
_HEAD = struct.Struct("<7s6x4sQQQ23x")  # magic, release, kinds; movies present, deleted, dimensions
_MAGIC, _KINDS = b"usearch", bytes([105, 12, 14, 15])  # inner product, float16, keys of 64 bits, places of 32
_GRAPH = struct.Struct("<QQQQQ")  # movies, edges of a movie on upper levels and on the lowest, top level, entry


@dataclass(frozen=True)
class Index:
    """One version's index, mapped read-only: worker processes share one copy of it.

    Any number of threads may ask at once; they are answered one after another.
    """

    n_items: int
    native: Any  # usearch.index.Index
    _lock: Lock = field(default_factory=Lock, repr=False)  # usearch's queries share their working memory

    @property
    def description(self) -> str:
        return f"usearch HNSW, inner product, {self.n_items:,} movies"

    def suits(self, k: int, n_out: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Tell whether to ask it; else exact scoring is the better choice.

        Longer lists than ``MOST_PLACES`` would lack too much, and many candidates cost as much as all movies.

        Parameters
        ----------
        k : int
            Length of the list.
        n_out : ndarray of int, of any shape
            How many movies must not be on it.

        Returns
        -------
        ndarray of bool, of the shape of ``n_out``
        """
        return (k <= MOST_PLACES) & (k + n_out <= self.n_items // _ITEMS_PER_CANDIDATE)

    def candidates(self, user_factor: NDArray[np.float32], n: int) -> NDArray[np.int64]:
        """Find the items with about the largest x·y_i.

        Parameters
        ----------
        user_factor : ndarray of shape (factors,), float32
            x. If it is zero, all items are alike and any may come back.
        n : int
            At least 1: the length of the list that is wanted and the number of items that may not be on it.

        Returns
        -------
        ndarray of shape (at most n,), int64
            Item indices, each once, in an order that float16 is too coarse to decide.
        """
        with self._lock:
            found = self.native.search(_to_unit(user_factor), n, threads=1)
        items: NDArray[np.int64] = found.keys.astype(np.int64)
        return items


def build_index(item_factors: NDArray[np.float32], path: Path) -> None:
    """Build the index of a catalogue and write it to ``path``.

    One thread builds it, so that equal factors give equal bytes: with more, the order in which movies enter the graph
    depends on a race.

    Parameters
    ----------
    item_factors : ndarray of shape (n_items, factors), float32
        Y, finite. Only relative size matters to the search: they are stored divided by the largest absolute value,
        since float16 ends at 65,504.
    path : Path
    """
    native = _create(item_factors.shape[1])
    native.add(np.arange(len(item_factors), dtype=np.uint64), _to_unit(item_factors), threads=1)
    native.save(str(path))


def map_index(path: Path, n_items: int, factors: int) -> Index:
    """Map an index read-only.

    Head and size are checked before usearch sees the file. It follows the edges of the graph unchecked, so damage in
    between is for the checksum of the version's manifest to find, first.

    Raises
    ------
    ArtifactError
        If the file cannot be read, is no index, or not of ``n_items`` movies with so many ``factors``.
    """
    expected = f"a usearch index of {n_items:,} movies with {factors} factors"
    with _blaming(path, expected):
        _check_head(path, n_items, factors)
        native = _create(factors)
        native.view(str(path))
        if len(native) != n_items:
            raise ValueError(f"its graph has {len(native):,} movies")
    return Index(n_items, native)


def _create(factors: int) -> Any:
    """Make an empty index; it finds movies by neighbourhood, and needs no table to find them by key."""
    from usearch.index import Index as Native

    return Native(
        ndim=factors,
        metric="ip",
        dtype="f16",
        connectivity=CONNECTIVITY,
        expansion_add=EXPANSION_ADD,
        expansion_search=EXPANSION_SEARCH,
        enable_key_lookups=False,
    )


def _to_unit(factors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Divide by the largest absolute value, which changes no order of inner products."""
    largest = max(factors.max(initial=0), -factors.min(initial=0))
    return factors / largest if largest > 0 else factors


@contextmanager
def _blaming(path: Path, expected: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError, struct.error) as error:
        raise damaged(path, str(error), expected) from error


def _check_head(path: Path, n_items: int, factors: int) -> None:
    """Read what the file says of itself: the vectors come first, then a head, then the graph with a head of its own."""
    with path.open("rb") as file:
        n_rows, n_bytes = _SHAPE.unpack(file.read(_SHAPE.size))
        if (n_rows, n_bytes) != (n_items, factors * _BYTES_PER_FACTOR):
            raise ValueError(f"it holds {n_rows:,} rows of {n_bytes:,} bytes")
        file.seek(n_rows * n_bytes, 1)
        head = _HEAD.unpack(file.read(_HEAD.size))
        *graph, _, entry = _GRAPH.unpack(file.read(_GRAPH.size))
        levels = np.frombuffer(file.read(2 * n_items), dtype="<i2")
        size = file.tell() + _node_bytes(levels)
        found = file.seek(0, 2)
    if head != (_MAGIC, _KINDS, n_items, 0, factors) or graph != [n_items, CONNECTIVITY, 2 * CONNECTIVITY]:
        raise ValueError("its head is not that of such an index")
    if entry >= n_items or len(levels) != n_items or levels.min() < 0 or found != size:
        raise ValueError(f"it has {found:,} bytes, which are not those of its graph")


def _node_bytes(levels: NDArray[np.int16]) -> int:
    """Return the size of the graph: of each movie key and level, and for each level a number of edges and the edges."""
    lowest, upper = 4 + 4 * 2 * CONNECTIVITY, 4 + 4 * CONNECTIVITY
    return len(levels) * (8 + 2 + lowest) + int(levels.sum(dtype=np.int64)) * upper
