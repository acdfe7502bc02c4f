"""Which liked movie contributed how much to a score; folding in itself is tested with the fit, in test_als.py."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.fold_in import contributions, gramian, solve_user_factor


def test_contributions_with_one_factor_are_the_fractions_worked_out_by_hand() -> None:
    # y = (1, 2, 3), liked: the second with c = 5 and the third with c = 2, λ = 0.5.
    # Σ c y² + λ = 1 + 5·4 + 2·9 + 0.5 = 39.5. A score of y_i is y_i·(5·2 + 2·3)/39.5.
    y = np.array([[1], [2], [3]], dtype=np.float32)
    found = contributions(y, gramian(y), np.array([1, 2]), np.array([5.0, 2.0]), 0.5, np.array([0, 2]))
    np.testing.assert_allclose(found, [[10 / 39.5, 6 / 39.5], [30 / 39.5, 18 / 39.5]], rtol=1e-12)


def test_movie_of_another_direction_contributes_nothing_and_an_opposite_one_takes_away() -> None:
    # Items (1,0), (0,1), (−1,0): liked the first two with c = 1, so YᵀCY + λI = [[2+1, 0], [0, 1+1]].
    y = np.array([[1, 0], [0, 1], [-1, 0]], dtype=np.float32)
    found = contributions(y, gramian(y), np.array([0, 1]), np.ones(2), 1.0, np.arange(3))
    np.testing.assert_allclose(found, [[1 / 3, 0], [0, 1 / 2], [-1 / 3, 0]], rtol=1e-12, atol=1e-15)


def random_case(
    seed: int, n_items: int, n_factors: int, n_liked: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Item factors, their gramian, what is liked, and with which confidence."""
    rng = np.random.default_rng(seed)
    item_factors = rng.normal(size=(n_items, n_factors)).astype(np.float32)
    liked = rng.permutation(n_items)[:n_liked]
    return item_factors, gramian(item_factors), liked, rng.uniform(0.01, 50, len(liked))


CASES = st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 5), st.integers(0, 9))


@settings(deadline=None)
@given(CASES, st.floats(0.1, 20), st.lists(st.integers(0, 8), max_size=6))
def test_contributions_sum_to_the_score_of_the_folded_in_factor(
    case: tuple[int, int, int, int], regularization: float, explained: list[int]
) -> None:
    item_factors, shared, liked, c = random_case(*case)
    items = np.array([item for item in explained if item < len(item_factors)], dtype=np.int64)
    found = contributions(item_factors, shared, liked, c, regularization, items)
    assert (found.shape, found.dtype) == ((len(items), len(liked)), np.float64)
    factor = solve_user_factor(item_factors, shared, liked, c, regularization)
    np.testing.assert_allclose(found.sum(axis=1), item_factors[items] @ factor, rtol=1e-4, atol=1e-5)


@settings(deadline=None)
@given(CASES, st.floats(0.1, 20))
def test_each_contribution_is_a_term_of_the_written_out_sum(
    case: tuple[int, int, int, int], regularization: float
) -> None:
    item_factors, shared, liked, c = random_case(*case)
    y, confidence = item_factors.astype(np.float64), np.ones(len(item_factors))
    confidence[liked] = c
    inverse = np.linalg.inv(y.T @ np.diag(confidence) @ y + regularization * np.eye(y.shape[1]))
    expected = [[y[i] @ inverse @ y[j] * confidence[j] for j in liked] for i in range(len(y))]
    found = contributions(item_factors, shared, liked, c, regularization, np.arange(len(y)))
    np.testing.assert_allclose(found, np.reshape(expected, found.shape), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("place", [0, 2, 4])
def test_liked_movie_of_no_confidence_contributes_nothing_at_all(place: int) -> None:
    item_factors, shared, liked, c = random_case(3, 9, 4, 5)
    previous = np.inf
    for confidence in (1e-2, 1e-5, 1e-8, 0.0):
        c[place] = confidence
        column = contributions(item_factors, shared, liked, c, 0.3, np.arange(9))[:, place]
        assert np.abs(column).max() < previous or confidence == 0
        previous = np.abs(column).max()
    assert not column.any()


def test_contributions_do_not_depend_on_what_else_is_explained_and_change_no_argument() -> None:
    item_factors, shared, liked, c = random_case(4, 9, 4, 5)
    before = [array.copy() for array in (item_factors, shared, liked, c)]
    everything = contributions(item_factors, shared, liked, c, 0.3, np.arange(9))
    one = contributions(item_factors, shared, liked, c, 0.3, np.array([7]))
    np.testing.assert_allclose(one[0], everything[7], rtol=1e-12)
    for array, copy in zip((item_factors, shared, liked, c), before, strict=True):
        assert array.tobytes() == copy.tobytes()


def test_order_of_the_liked_movies_only_orders_the_columns() -> None:
    item_factors, shared, liked, c = random_case(5, 9, 4, 5)
    order = np.array([3, 1, 4, 0, 2])
    one = contributions(item_factors, shared, liked, c, 0.3, np.arange(9))
    other = contributions(item_factors, shared, liked[order], c[order], 0.3, np.arange(9))
    np.testing.assert_allclose(other, one[:, order], rtol=1e-9)
