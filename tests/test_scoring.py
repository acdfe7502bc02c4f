"""The best by inner product: exactly those of a slow sort in float64, whichever way the fast search takes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from app import scoring
from app.ranking import EXCLUDED
from app.scoring import Best, ExactSearch, Listed

NO_PAIRS = (np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
NO_ITEMS = np.empty(0, dtype=np.int64)


def bits_of(lists: Best | list[Listed]) -> list[tuple[list[int], bytes]]:
    assert all(items.dtype == np.int64 and scores.dtype == np.float32 for items, scores in lists)
    return [(items.tolist(), scores.tobytes()) for items, scores in lists]


def values_of(lists: Best | list[Listed]) -> list[tuple[list[int], list[float]]]:
    return [(items.tolist(), scores.tolist()) for items, scores in lists]


@dataclass(frozen=True)
class World:
    """A search and a question; every score is exact in float64, whatever the order of summation."""

    item_factors: NDArray[np.float32]
    user_factors: NDArray[np.float32]
    weights: NDArray[np.float32] | None
    excluded: tuple[NDArray[np.int64], NDArray[np.int64]]
    allowed: NDArray[np.bool_] | None
    k: int

    @property
    def search(self) -> ExactSearch:
        return ExactSearch(self.item_factors, self.weights)

    def best(self, search: ExactSearch | None = None) -> Best:
        return (search or self.search).best(self.user_factors, self.k, self.excluded, self.allowed)

    def one_by_one(self, search: ExactSearch | None = None) -> list[Listed]:
        search, (rows, items) = search or self.search, self.excluded
        return [
            search.best_of_one(factor, self.k, items[rows == user], self.allowed)
            for user, factor in enumerate(self.user_factors)
        ]

    def slowly(self) -> list[tuple[list[int], list[float]]]:
        """Score all pairs in float64, round, drop what must not be listed, sort by score and then index."""
        scores = self.user_factors.astype(np.float64) @ self.item_factors.astype(np.float64).T
        if self.weights is not None:
            scores *= self.weights
        out = set(zip(*(side.tolist() for side in self.excluded), strict=True))
        lists = []
        for user, row in enumerate(scores.astype(np.float32).tolist()):
            left = [i for i in range(len(row)) if (user, i) not in out and (self.allowed is None or self.allowed[i])]
            best = sorted(left, key=lambda i: (-row[i], i))[: self.k]
            lists.append((best, [row[i] for i in best]))
        return lists


def whole_rows(
    rng: np.random.Generator, shape: tuple[int, int], largest: int, exponents: tuple[int, int]
) -> NDArray[np.float32]:
    """Whole numbers times a power of two for each row; some rows are zero, some stand more than once."""
    rows = rng.integers(-largest, largest + 1, size=shape) * np.exp2(rng.integers(*exponents, (shape[0], 1)))
    rows[rng.random(shape[0]) < 0.1] = 0
    repeated = rng.integers(0, max(1, shape[0] // 2), shape[0])
    return np.where(rng.random((shape[0], 1)) < 0.4, rows[repeated], rows).astype(np.float32)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_users, n_factors = draw(st.integers(0, 8)), draw(st.integers(1, 8))
    n_items = draw(st.integers(0, 3) | st.integers(0, 40) | st.integers(250, 1_100))
    largest = draw(st.sampled_from([1, 2, 2047]))  # few values make ties, many make float32 round
    exponents = draw(st.sampled_from([(0, 1), (-66, 50), (-66, -60), (44, 50)]))  # 2**-66 and 2**50: 1e-20 and 1e15
    weights = draw(st.sampled_from([None, [0.0, 0.25, 1.0, 3.0], [0.0]]))
    share_out, share_allowed = draw(st.sampled_from([0, 0.02, 0.5, 1])), draw(st.sampled_from([None, 0, 0.05, 0.9]))
    return World(
        item_factors=whole_rows(rng, (n_items, n_factors), largest, exponents),
        user_factors=whole_rows(rng, (n_users, n_factors), largest, exponents),
        weights=None if weights is None else rng.choice(weights, n_items).astype(np.float32),
        excluded=np.nonzero(rng.random((n_users, n_items)) < share_out),
        allowed=None if share_allowed is None else rng.random(n_items) < share_allowed,
        k=draw(st.sampled_from([1, 2, 10, 33, 100, max(1, n_items - 1), max(1, n_items), n_items + 5])),
    )


@settings(deadline=None, max_examples=300)
@given(worlds())
def test_best_are_those_of_a_slow_sort(world: World) -> None:
    best = world.best()
    assert values_of(best) == world.slowly()
    assert best.indptr.tolist() == np.cumsum([0, *(len(items) for items, _ in best)]).tolist()
    assert (len(best.item_indices), best.indptr.dtype) == (best.indptr[-1], np.int64)


@settings(deadline=None, max_examples=300)
@given(worlds())
def test_one_user_alone_gets_the_bits_that_they_get_among_many(world: World) -> None:
    alone = world.one_by_one()
    assert bits_of(world.best()) == bits_of(alone)
    assert values_of(alone) == world.slowly()


@settings(deadline=None, max_examples=60)
@given(worlds(), st.sampled_from([1, 2**10, 2**13]), st.sampled_from([0, 1, 3, 100]))
def test_neither_blocks_nor_single_products_nor_threads_change_a_bit(world: World, n_bytes: int, few: int) -> None:
    expected = bits_of(world.best())
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setattr(scoring, "_BLOCK_BYTES", n_bytes)
        patch.setattr(scoring, "_FEW", few)
        assert bits_of(world.best()) == expected
        threaded = world.search.best(world.user_factors, world.k, world.excluded, world.allowed, pool)
        assert bits_of(threaded) == expected


@settings(deadline=None, max_examples=50)
@given(worlds())
def test_nothing_that_was_given_is_changed(world: World) -> None:
    arrays = [world.item_factors, world.user_factors, *world.excluded]
    arrays += [array for array in (world.weights, world.allowed) if array is not None]
    before = [array.tobytes() for array in arrays]
    world.best()
    world.one_by_one()
    assert [array.tobytes() for array in arrays] == before


# What float32 orders wrongly


N_LARGE, N_NEAR = 62, 3_000
EXPONENTS = {
    "as they are": (0, 0, 1),
    "huge": (40, 40, 1),
    "huge users, tiny items": (50, -66, 1),
    "tiny users, huge items": (-66, 50, 1),
    "items whose squares are 0 in float32": (40, -105, 1),
    "users whose squares are 0 in float32": (-105, 40, 1),
    "items whose squares are infinite in float32": (-20, 60, 1),
    "products that are too small for full precision": (-83, -83, 2**17),
}


def near_ties(user_exponent: int, item_exponent: int, step: int) -> World:
    """Scores that differ by ``step`` each, of sums that float32 rounds by more.

    Two of the factors bring each item's score to what it shall be, so the others can be anything.
    """
    rng = np.random.default_rng(0)
    user_factor = np.concatenate([rng.integers(-8191, 8192, N_LARGE), [2048, 1]])
    others = rng.integers(-8191, 8192, (N_NEAR, N_LARGE))
    scores = 2**22 - step * rng.permutation(N_NEAR)
    coarse, fine = np.divmod(scores - others @ user_factor[:N_LARGE], 2048)
    item_factors = np.column_stack([others, coarse, fine])
    assert (item_factors @ user_factor == scores).all()
    users = user_factor * np.exp2(np.arange(user_exponent - 7, user_exponent + 1))[:, None]
    items = item_factors * np.exp2(item_exponent)
    world = World(items.astype(np.float32), users.astype(np.float32), None, NO_PAIRS, None, 20)
    assert (world.item_factors == items).all()
    assert (world.user_factors == users).all()
    return world


@pytest.mark.parametrize("name", EXPONENTS)
def test_scores_that_float32_cannot_order_are_ordered(name: str) -> None:
    world = near_ties(*EXPONENTS[name])
    expected = world.slowly()
    assert values_of(world.best()) == expected
    assert values_of(world.one_by_one()) == expected
    few = [world.search.best(world.user_factors[[row]], world.k, NO_PAIRS) for row in range(8)]
    assert [values_of(best) for best in few] == [[each] for each in expected]


@pytest.mark.parametrize("name", EXPONENTS)
def test_without_slack_some_of_the_best_would_be_lost(name: str) -> None:
    """If this fails, the test above tests nothing."""
    world = near_ties(*EXPONENTS[name])
    search = world.search
    search._uncertainty = search._underflow = 0.0
    assert values_of(world.best(search)) != world.slowly()
    assert values_of(world.one_by_one(search)) != world.slowly()


def test_weights_make_no_order_wrong_either() -> None:
    world = near_ties(0, 0, 1)
    weights = np.exp2(np.random.default_rng(1).integers(-3, 4, N_NEAR)).astype(np.float32)
    scaled = World(world.item_factors / weights[:, None], world.user_factors, weights, NO_PAIRS, None, 20)
    assert values_of(scaled.best()) == values_of(scaled.one_by_one()) == world.slowly()
    blind = scaled.search
    blind._uncertainty = blind._underflow = 0.0
    assert values_of(scaled.best(blind)) != world.slowly()


def test_threads_of_the_blas_change_no_bit() -> None:
    world = near_ties(0, 0, 1)
    rng = np.random.default_rng(2)
    users = rng.normal(size=(40, N_LARGE + 2)).astype(np.float32)
    wide = World(world.item_factors, np.concatenate([world.user_factors, users]), None, NO_PAIRS, None, 100)
    found = []
    for n_threads in (1, 2):
        with threadpool_limits(n_threads, "blas"):
            found += [bits_of(wide.best()), bits_of(wide.one_by_one())]
    assert found == [found[0]] * 4


def test_user_without_a_direction_gets_the_first_movies_however_long_the_others_are() -> None:
    longest = np.full((300, 2), 1e30, dtype=np.float32)
    search, nobody = ExactSearch(longest), np.zeros(2, dtype=np.float32)
    assert values_of([search.best_of_one(nobody, 3, NO_ITEMS)]) == [([0, 1, 2], [0, 0, 0])]
    assert values_of(search.best(nobody[None, :], 3, NO_PAIRS)) == [([0, 1, 2], [0, 0, 0])]


def test_equal_movies_stand_in_the_order_of_their_index_even_thousands_of_them() -> None:
    search = ExactSearch(np.ones((5_000, 3), dtype=np.float32))
    users = np.array([[1, 2, 3], [-1, 0, 0]], dtype=np.float32)
    out = (np.array([0, 0, 1]), np.array([0, 2, 1]))
    assert values_of(search.best(users, 3, out)) == [([1, 3, 4], [6, 6, 6]), ([0, 2, 3], [-1, -1, -1])]


# The pieces


BOUNDED = npst.arrays(
    np.float32,
    st.tuples(st.integers(0, 3), st.integers(0, 9) | st.integers(250, 1_200)),
    elements=st.sampled_from([-np.inf, -2.0, -1.0, 0.0, 1.0, 5.0]),
    fill=st.sampled_from([-np.inf, -3.0]),
)


@settings(deadline=None)
@given(BOUNDED, st.integers(1, 12) | st.integers(1, 1_500))
def test_at_least_k_items_reach_the_bound(scores: NDArray[np.float32], k: int) -> None:
    bounds = scoring._lower_bounds(scores, k)
    assert (bounds.shape, bounds.dtype) == ((len(scores),), np.float32)
    for row, bound in zip(scores, bounds, strict=True):
        assert np.count_nonzero(row >= bound) >= min(k, len(row))
        if k > len(row):
            assert bound == EXCLUDED


@pytest.mark.parametrize("k", [1, 10, 32, 100])
def test_little_more_than_k_items_reach_the_bound(k: int) -> None:
    scores = np.random.default_rng(0).normal(size=(50, 6_000)).astype(np.float32)
    reaching = np.count_nonzero(scores >= scoring._lower_bounds(scores, k)[:, None], axis=1)
    assert reaching.max() <= 1.5 * k + 3


def test_lists_are_collected_and_come_out_again() -> None:
    lists = [
        (np.array([4, 2]), np.array([1.5, 0.5], dtype=np.float32)),
        (NO_ITEMS, np.empty(0, dtype=np.float32)),
        (np.array([0]), np.array([-1], dtype=np.float32)),
    ]
    best = Best.of(lists)
    assert best.indptr.tolist() == [0, 2, 2, 3]
    assert bits_of(best) == bits_of(lists)
    assert bits_of(Best.of([])) == []


def test_candidates_that_somebody_else_proposes_are_ordered_as_in_the_whole_list() -> None:
    world = near_ties(0, 0, 1)
    (whole, scores), *_ = world.one_by_one()
    proposed = np.sort(np.append(whole[::2], [0, 1, 2]))
    items, found = world.search.order_one(world.user_factors[0], 5, np.unique(proposed))
    assert items.tolist() == whole[:10:2].tolist()
    assert found.tobytes() == scores[:10:2].tobytes()
    assert values_of([world.search.order_one(world.user_factors[0], 5, NO_ITEMS)]) == [([], [])]
