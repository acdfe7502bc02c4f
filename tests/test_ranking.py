"""The order of a list: by falling score, equal scores by rising item index, nothing excluded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from app.ranking import EXCLUDED, PADDING, top_k

SMALLEST = float(np.finfo(np.float32).smallest_subnormal)
LARGEST = float(np.finfo(np.float32).max)
EXCEPTIONAL = [0.0, -0.0, SMALLEST, -SMALLEST, 2 * SMALLEST, 1.0, -1.0, LARGEST, -LARGEST, np.inf, -np.inf]
# Few values make ties, many make order; −inf is the mark of exclusion.
SCORES = st.one_of(st.sampled_from(EXCEPTIONAL), st.floats(allow_nan=False, width=32))
MATRICES = npst.arrays(np.float32, npst.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=SCORES)
LENGTHS = st.integers(1, 15)


def sort_fully(scores: NDArray[np.float32], k: int) -> list[list[int]]:
    """Rank by Python's stable sort, which keeps equal scores in the order of their index."""
    ranking = []
    for row in scores.tolist():
        listed = [item for item in sorted(range(len(row)), key=lambda item: -row[item]) if row[item] != -np.inf]
        ranking.append((listed + [PADDING] * k)[:k])
    return ranking


@given(MATRICES, LENGTHS)
def test_top_k_agrees_with_a_stable_full_sort(scores: NDArray[np.float32], k: int) -> None:
    found = top_k(scores, k)
    assert found.tolist() == sort_fully(scores, k)
    assert (found.shape, found.dtype) == ((len(scores), k), np.int64)


@given(MATRICES, LENGTHS)
def test_rows_do_not_influence_each_other(scores: NDArray[np.float32], k: int) -> None:
    one_by_one = np.concatenate([top_k(scores[row : row + 1], k) for row in range(len(scores))])
    assert top_k(scores, k).tolist() == one_by_one.tolist()


@given(MATRICES, LENGTHS)
def test_shorter_list_is_the_beginning_of_a_longer_one(scores: NDArray[np.float32], k: int) -> None:
    assert top_k(scores, k).tolist() == top_k(scores, k + 3)[:, :k].tolist()


@given(MATRICES, LENGTHS)
def test_scores_are_left_as_they_were(scores: NDArray[np.float32], k: int) -> None:
    before = scores.tobytes()
    top_k(scores, k)
    assert scores.tobytes() == before


def test_wide_rows_with_many_ties_agree_with_a_stable_full_sort() -> None:
    scores = np.random.default_rng(0).integers(-3, 3, size=(20, 5_000)).astype(np.float32)
    assert top_k(scores, 100).tolist() == sort_fully(scores, 100)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :100]
    assert top_k(scores, 100).tolist() == order.tolist()


def test_equal_scores_are_listed_by_rising_index() -> None:
    assert top_k(np.array([[1, 2, 1, 2, 1]], dtype=np.float32), 4).tolist() == [[1, 3, 0, 2]]


def test_minus_zero_equals_zero() -> None:
    assert top_k(np.array([[-0.0, 0.0, -0.0]], dtype=np.float32), 3).tolist() == [[0, 1, 2]]


def test_list_longer_than_the_catalogue_is_padded() -> None:
    assert top_k(np.array([[1, 3, 2]], dtype=np.float32), 5).tolist() == [[1, 2, 0, PADDING, PADDING]]


def test_excluded_items_are_never_listed() -> None:
    scores = np.array([[EXCLUDED, -LARGEST, EXCLUDED, 7], [EXCLUDED] * 4], dtype=np.float32)
    assert top_k(scores, 3).tolist() == [[3, 1, PADDING], [PADDING] * 3]


@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
def test_nothing_to_rank_gives_empty_or_padded_lists(shape: tuple[int, int]) -> None:
    assert top_k(np.zeros(shape, dtype=np.float32), 2).tolist() == [[PADDING, PADDING]] * shape[0]


def test_layout_in_memory_does_not_matter() -> None:
    scores = np.random.default_rng(1).normal(size=(6, 9)).astype(np.float32)
    assert top_k(np.asfortranarray(scores), 4).tolist() == top_k(scores, 4).tolist()
    assert top_k(np.repeat(scores, 2, axis=1)[:, ::2], 4).tolist() == top_k(scores, 4).tolist()
