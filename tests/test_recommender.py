"""Recommendations: never what someone rated, fewer rather than wrong, and the same however one asks."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import UnknownUserError
from app.fold_in import gramian, solve_user_factor
from app.recommender import Ranking, Recommender
from tests.models import BIG_MOVIE, BIG_USER, RATINGS, in_memory, make_model

Ratings = list[tuple[int, int, float]]

# Small ids collide often, so users come near to having rated everything; large ones need all 64 bits.
ids = st.integers(1, 6) | st.integers(2**53, 2**63 - 1)
random_ratings = st.dictionaries(st.tuples(ids, ids), st.sampled_from([0.5, 3.5, 4.0, 5.0]), max_size=30).map(
    lambda rated: [(1, 1, 5.0), *((*pair, rating) for pair, rating in rated.items() if pair != (1, 1))]
)
lists_of_ids = st.lists(ids, max_size=10)
ks = st.integers(1, 12)


def build(ratings: Ratings | tuple[tuple[int, int, float], ...] = RATINGS, random_state: int = 0) -> Recommender:
    return Recommender(in_memory(make_model(ratings, random_state=random_state)))


def movie_ids(recommender: Recommender, ranking: Ranking) -> list[int]:
    return recommender.model.items.ids[ranking.item_indices].tolist()


def catalogue(ratings: Ratings) -> set[int]:
    return {movie_id for _, movie_id, rating in ratings if rating >= 4.0}


@given(random_ratings, ks, st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_known_users_get_as_many_unrated_movies_as_there_are(ratings: Ratings, k: int, random_state: int) -> None:
    recommender = build(ratings, random_state)
    for user_id in {user_id for user_id, _, _ in ratings}:
        rated = {movie_id for rater, movie_id, _ in ratings if rater == user_id}
        ranking = recommender.recommend(user_id, k)
        listed = movie_ids(recommender, ranking)
        assert rated.isdisjoint(listed)
        assert len(set(listed)) == len(listed) == len(ranking.scores) == min(k, len(catalogue(ratings) - rated))
        assert set(listed) <= catalogue(ratings)
        assert ranking.ignored == ()
        assert_ordered(ranking)
        likes_any = any(rater == user_id and rating >= 4.0 for rater, _, rating in ratings)
        assert ranking.source == ("als" if likes_any else "popular")


def assert_ordered(ranking: Ranking) -> None:
    """Scores are numbers and fall; equal ones stand in the order of their item."""
    assert np.isfinite(ranking.scores).all()
    pairs = list(zip((-ranking.scores).tolist(), ranking.item_indices.tolist(), strict=True))
    assert pairs == sorted(pairs)


@given(random_ratings, lists_of_ids, ks)
@settings(max_examples=150, deadline=None)
def test_new_people_get_as_many_movies_as_there_are_but_none_they_like(
    ratings: Ratings, liked: list[int], k: int
) -> None:
    recommender = build(ratings)
    usable = catalogue(ratings) & set(liked)
    ranking = recommender.recommend_cold(liked, k)
    listed = movie_ids(recommender, ranking)
    assert set(liked).isdisjoint(listed)
    assert len(set(listed)) == len(listed) == min(k, len(catalogue(ratings) - usable))
    assert ranking.source == ("fold_in" if usable else "popular")
    assert ranking.ignored == tuple(movie_id for movie_id in dict.fromkeys(liked) if movie_id not in usable)
    assert_ordered(ranking)


@given(random_ratings, lists_of_ids, st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_neither_order_nor_repetition_of_liked_movies_matters(
    ratings: Ratings, liked: list[int], random: Random
) -> None:
    recommender = build(ratings)
    shuffled = liked * 2
    random.shuffle(shuffled)
    one, other = recommender.recommend_cold(liked, 12), recommender.recommend_cold(shuffled, 12)
    assert one.item_indices.tolist() == other.item_indices.tolist()
    assert one.scores.tolist() == other.scores.tolist()
    assert sorted(one.ignored) == sorted(other.ignored)


def test_scores_are_the_products_of_the_factors() -> None:
    recommender = build()
    model = recommender.model
    ranking = recommender.recommend(1, 100)
    user_factor = model.factors.user_factors[model.users.ids.tolist().index(1)]
    expected = {i: float(model.factors.item_factors[i] @ user_factor) for i in ranking.item_indices.tolist()}
    assert movie_ids(recommender, ranking) == sorted(
        (int(model.items.ids[i]) for i in expected),
        key=lambda movie_id: -expected[model.items.ids.tolist().index(movie_id)],
    )
    np.testing.assert_allclose(ranking.scores, [expected[i] for i in ranking.item_indices.tolist()], rtol=1e-5)


def test_new_people_are_scored_by_the_fold_in_of_what_they_like() -> None:
    recommender = build()
    item_factors, config = recommender.model.factors.item_factors, recommender.model.als_config
    liked = np.array([1, 2])  # item indices of movies 2 and 3
    factor = solve_user_factor(
        item_factors, gramian(item_factors), liked, np.full(2, config.alpha), config.regularization
    )
    ranking = recommender.recommend_cold([3, 2], 100)
    np.testing.assert_allclose(ranking.scores, (item_factors @ factor)[ranking.item_indices], rtol=1e-5)
    assert set(movie_ids(recommender, ranking)) == {1, 5, 10, BIG_MOVIE}


def test_someone_without_positives_gets_popular_movies_minus_what_they_rated() -> None:
    recommender = build()
    ranking = recommender.recommend(7, 10)  # rated 1 and 3; positives: 1 three times, 2 and 3 twice, the others once
    assert ranking.source == "popular"
    assert movie_ids(recommender, ranking) == [2, 5, 10, BIG_MOVIE]
    assert ranking.scores.tolist() == [2.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("liked", [[], [404], [99, 404]])
def test_no_usable_liked_movie_gives_the_popular_ones(liked: list[int]) -> None:
    recommender = build()
    ranking = recommender.recommend_cold(liked, 3)
    assert ranking.source == "popular"
    assert movie_ids(recommender, ranking) == [1, 2, 3]
    assert ranking.scores.tolist() == [3.0, 2.0, 2.0]
    assert ranking.ignored == tuple(liked)


def test_answering_does_not_change_the_model() -> None:
    recommender = build()
    first = recommender.recommend_cold([], 100).scores.tolist()
    recommender.recommend(7, 100)
    recommender.recommend_cold([1, 2, 3], 100)
    assert recommender.recommend_cold([], 100).scores.tolist() == first
    assert recommender.model.popularity.tolist() == [3, 2, 2, 1, 1, 1]


def test_nothing_is_listed_where_nothing_is_left() -> None:
    everything = [1, 2, 3, 5, 10, BIG_MOVIE]
    ranking = build([*RATINGS, *((50, movie_id, 4.0) for movie_id in everything)]).recommend(50, 10)
    assert (ranking.item_indices.tolist(), ranking.scores.tolist()) == ([], [])
    assert build().recommend_cold(everything, 10).item_indices.tolist() == []


@pytest.mark.parametrize("user_id", [3, 0, -1, 2**53 + 2, BIG_USER - 1, BIG_USER + 1, 2**63 - 1])
def test_an_unknown_user_is_an_error_that_names_the_way_out(user_id: int) -> None:
    with pytest.raises(UnknownUserError, match="/recommend_cold") as caught:
        build().recommend(user_id, 10)
    assert caught.value.user_id == user_id
    assert str(user_id) in str(caught.value)


def test_ids_of_64_bits_stay_exact() -> None:
    recommender = build()
    assert BIG_MOVIE not in movie_ids(recommender, recommender.recommend(BIG_USER, 100))
    assert BIG_MOVIE in movie_ids(recommender, recommender.recommend(1, 100))
    assert recommender.recommend_cold([BIG_MOVIE], 1).source == "fold_in"
    assert recommender.recommend_cold([BIG_MOVIE - 1, BIG_MOVIE + 1], 1).ignored == (BIG_MOVIE - 1, BIG_MOVIE + 1)
