"""Recommendations: never what someone rated, fewer rather than wrong, and the same however one asks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app import fold_in
from app.als import Factors
from app.errors import UnknownGenreError, UnknownMovieError, UnknownUserError
from app.filters import Filter
from app.fold_in import gramian, solve_user_factor
from app.ranker import Ranker
from app.recommender import PLAIN, POOL, ListOptions, Ranking, Recommender
from app.rerank import Dials
from tests.models import BIG_MOVIE, BIG_USER, LIKES_NOTHING, LIKES_ONE, RATINGS, in_memory, make_model, trained

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
    assert recommender.model.movies.popularity.tolist() == [3, 2, 2, 1, 1, 1]


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


# Options, of a model with both stages


@pytest.fixture(scope="module")
def both_stages() -> Recommender:
    model = in_memory(trained()[1])
    assert model.ranker is not None
    return Recommender(model, Ranker(model.ranker.text))


GENRE = "Drama"
FILTERS = {
    "everything": Filter(),
    "a genre": Filter((GENRE.lower(),)),
    "years": Filter(year_min=1980, year_max=1995),
    "excluded movies": Filter(exclude=(1, 2, 3, 5, 8, 13, 21)),
    "all of it": Filter((GENRE, "Comedy"), 1975, 2000, (1, 4, 9, 16, 25)),
    "a year without movies": Filter(year_min=9999),
}
OPTIONS = {
    **{f"first stage, {name}": ListOptions(ranker=False, filter=wanted) for name, wanted in FILTERS.items()},
    **{f"second stage, {name}": ListOptions(filter=wanted) for name, wanted in FILTERS.items()},
    "explained": ListOptions(explain=True),
    "explained, first stage": ListOptions(ranker=False, explain=True, filter=FILTERS["a genre"]),
    "all dials": ListOptions(dials=Dials(0.2, 0.3, 0.4), filter=FILTERS["a genre"]),
    "all dials, first stage": ListOptions(ranker=False, dials=Dials(0.2, 0.3, 0.4)),
}
named_options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
SOME = (LIKES_NOTHING, 1, 404, LIKES_ONE, 40, 1, 2**63 - 1, 77, 116)


def everything_of(ranking: Ranking | None) -> dict[str, Any] | None:
    """Every field of an answer, arrays by their bits."""
    if ranking is None:
        return None
    fields = {**vars(ranking), "item_indices": ranking.item_indices.tolist(), "scores": ranking.scores.tobytes()}
    assert (ranking.item_indices.dtype, ranking.scores.dtype) == (np.int64, np.float32)
    return fields


def alone(recommender: Recommender, user_id: int, k: int, options: ListOptions) -> dict[str, Any] | None:
    try:
        return everything_of(recommender.recommend(user_id, k, options))
    except UnknownUserError:
        return None


@named_options
@pytest.mark.parametrize("user_ids", [SOME, SOME[:1], SOME[1:2], (404,), (404, 405), (), (1, 404)])
def test_many_users_get_what_each_gets_alone(
    both_stages: Recommender, options: ListOptions, user_ids: tuple[int, ...]
) -> None:
    for recommender in (both_stages, Recommender(replace(both_stages.model, ranker=None))):
        found = recommender.recommend_many(user_ids, 12, options)
        assert [everything_of(each) for each in found] == [alone(recommender, id_, 12, options) for id_ in user_ids]
        assert [each is None for each in found] == [id_ not in recommender.model.users.ids for id_ in user_ids]


def test_all_users_at_once_get_what_each_gets_alone(both_stages: Recommender) -> None:
    options, user_ids = ListOptions(ranker=False), both_stages.model.users.ids.tolist()
    found = both_stages.recommend_many(user_ids, 20, options)
    assert [everything_of(each) for each in found] == [alone(both_stages, id_, 20, options) for id_ in user_ids]
    assert {each.source for each in found if each} == {"als", "popular"}


@given(random_ratings, lists_of_ids, ks)
@settings(max_examples=50, deadline=None)
def test_any_users_at_once_get_what_each_gets_alone(ratings: Ratings, user_ids: list[int], k: int) -> None:
    recommender = build(ratings)
    found = [everything_of(each) for each in recommender.recommend_many(user_ids, k)]
    assert found == [alone(recommender, user_id, k, PLAIN) for user_id in user_ids]


ANSWERS: dict[str, Callable[[Recommender, int, ListOptions], Ranking]] = {
    "a user": lambda recommender, k, options: recommender.recommend(1, k, options),
    "a user who likes nothing": lambda recommender, k, options: recommender.recommend(LIKES_NOTHING, k, options),
    "somebody new": lambda recommender, k, options: recommender.recommend_cold([1, 2, 3, 404], k, options),
    "somebody unknown": lambda recommender, k, options: recommender.recommend_cold([], k, options),
    "a movie": lambda recommender, k, options: recommender.similar(1, k, options),
    "everybody": lambda recommender, k, options: recommender.popular(k, options),
}
named_answers = pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)


def passes(wanted: Filter, recommender: Recommender, item: int) -> bool:
    movie = recommender.model.movies[item]
    folded = {genre.casefold() for genre in wanted.genres}
    of_genre = not folded or bool(folded & {genre.casefold() for genre in movie.genres})
    if wanted.year_min or wanted.year_max:
        of_genre &= movie.year is not None and (wanted.year_min or 0) <= movie.year <= (wanted.year_max or 9999)
    return of_genre and movie.movie_id not in wanted.exclude


@named_answers
@named_options
def test_every_list_keeps_to_its_filter_and_is_full_where_there_are_movies_for_it(
    both_stages: Recommender, answer: Callable[[Recommender, int, ListOptions], Ranking], options: ListOptions
) -> None:
    ranking = answer(both_stages, 10, options)
    model = both_stages.model
    left = [item for item in range(len(model.items)) if passes(options.filter, both_stages, item)]
    listed = ranking.item_indices.tolist()
    assert set(listed) <= set(left)
    assert len(set(listed)) == len(listed)
    if len(left) > 200:  # more than anybody here has rated
        assert len(listed) == 10
    if not left:
        assert listed == []


@pytest.mark.parametrize("n_allowed", [1, 5, 10, 20, 60])
def test_narrow_filter_still_fills_the_list_of_the_second_stage(both_stages: Recommender, n_allowed: int) -> None:
    """The best of everything hold none of these movies: they are found only if the filter comes first."""
    model, user_id = both_stages.model, 1
    unfiltered = both_stages.recommend(user_id, len(model.items))
    rated = model.history.of(model.users.index_of(user_id)).item_index.tolist()
    scores = model.factors.item_factors @ model.factors.user_factors[model.users.index_of(user_id)]
    last = [item for item in np.argsort(scores).tolist() if item not in {*rated, *unfiltered.item_indices.tolist()}]
    chosen = last[:n_allowed]
    assert len(chosen) == n_allowed
    exclude = tuple(np.delete(model.items.ids, chosen).tolist())
    ranking = both_stages.recommend(user_id, 10, ListOptions(filter=Filter(exclude=exclude)))
    assert ranking.source == "ranker"
    assert len(ranking.item_indices) == min(10, n_allowed)
    assert set(ranking.item_indices.tolist()) <= set(chosen)


@named_answers
def test_genre_that_no_movie_has_is_an_error(
    both_stages: Recommender, answer: Callable[[Recommender, int, ListOptions], Ranking]
) -> None:
    for ranker in (True, False):
        with pytest.raises(UnknownGenreError, match="got 'Nonsense'"):
            answer(both_stages, 10, ListOptions(ranker=ranker, filter=Filter(("Nonsense",))))


# When a list was asked for, and what was not understood


def test_list_of_the_second_stage_has_its_moment_and_others_have_none(both_stages: Recommender) -> None:
    model = both_stages.model
    expected = model.history.of(model.users.index_of(1)).next_moment
    assert both_stages.recommend(1, 5).moment == expected
    (many,) = both_stages.recommend_many([1], 5)
    assert many is not None
    assert many.moment == expected
    assert both_stages.recommend(1, 5, moment=expected + 99).moment == expected + 99
    for ranking in (
        both_stages.recommend(1, 5, ListOptions(ranker=False), moment=7),
        both_stages.recommend(1, 5, ListOptions(ranker=False, explain=True), moment=7),
        both_stages.recommend(LIKES_NOTHING, 5, moment=7),
        both_stages.recommend_cold([], 5),
        both_stages.recommend_cold([1], 5, ListOptions(ranker=False)),
        both_stages.similar(1, 5),
        both_stages.popular(5),
    ):
        assert ranking.moment is None


@named_options
def test_ids_that_are_not_in_the_catalogue_are_ignored_once_and_in_their_order(
    both_stages: Recommender, options: ListOptions
) -> None:
    liked = [2**63 - 1, 1, 404_404, 2, 2**63 - 1, 1, 404_404]
    assert both_stages.recommend_cold(liked, 5, options).ignored == (2**63 - 1, 404_404)
    assert both_stages.recommend_cold([404_404], 5, options).ignored == (404_404,)
    assert both_stages.recommend(1, 5, options).ignored == ()


# Similar and popular movies


def test_dials_choose_from_the_most_similar_and_change_no_score(both_stages: Recommender) -> None:
    pool = both_stages.similar(1, POOL)
    scores = dict(zip(pool.item_indices.tolist(), pool.scores.tolist(), strict=True))
    for dials in (Dials(novelty=0.7), Dials(diversity=0.7), Dials(0.5, 0.5)):
        turned = both_stages.similar(1, 20, ListOptions(dials=dials))
        assert len(set(turned.item_indices.tolist())) == 20
        assert turned.item_indices.tolist() != pool.item_indices[:20].tolist()
        assert turned.scores.tolist() == [scores[item] for item in turned.item_indices.tolist()]


def test_dials_choose_from_the_most_popular_and_novelty_lists_less_known_ones(both_stages: Recommender) -> None:
    pool, model = both_stages.popular(POOL), both_stages.model
    turned = both_stages.popular(20, ListOptions(dials=Dials(novelty=0.9)))
    assert set(turned.item_indices.tolist()) <= set(pool.item_indices.tolist())
    assert turned.scores.tolist() == model.movies.popularity[turned.item_indices].tolist()
    assert turned.scores.mean() < pool.scores[:20].mean()
    assert turned.source == "popular"


def test_popular_are_the_movies_with_the_most_positives(both_stages: Recommender) -> None:
    ranking = both_stages.popular(50)
    popularity = both_stages.model.movies.popularity
    assert ranking.item_indices.tolist() == np.argsort(-popularity, kind="stable")[:50].tolist()
    assert ranking.scores.tolist() == popularity[ranking.item_indices].tolist()


def test_similar_movies_are_never_the_movie_itself_and_need_a_movie_that_is_known(both_stages: Recommender) -> None:
    model = both_stages.model
    ranking = both_stages.similar(1, len(model.items))
    assert len(ranking.item_indices) == len(model.items) - 1
    assert both_stages.item_of(1) not in ranking.item_indices
    assert ranking.source == "als"
    for movie_id in (404_404, 2**63 - 1, 0, -1):
        with pytest.raises(UnknownMovieError, match=str(movie_id)):
            both_stages.similar(movie_id, 5)


def test_movie_without_a_factor_has_no_similar_ones_whatever_the_dials() -> None:
    model = build().model
    without = Recommender(replace(model, factors=Factors(model.factors.user_factors, model.factors.item_factors * 0)))
    for dials in (Dials(), Dials(novelty=1), Dials(diversity=1)):
        ranking = without.similar(1, 5, ListOptions(dials=dials))
        assert (ranking.item_indices.tolist(), ranking.scores.tolist()) == ([], [])


# What every fold-in shares


@pytest.mark.parametrize("n_items", [0, 1, 7, 8, 9, 64])
def test_product_in_blocks_is_the_whole_product(monkeypatch: pytest.MonkeyPatch, n_items: int) -> None:
    y = np.random.default_rng(0).normal(size=(n_items, 5)).astype(np.float32)
    exact = y.astype(np.float64)
    whole = exact.T @ exact
    assert gramian(y).tobytes() == whole.tobytes()  # in one block the bits are the same
    monkeypatch.setattr(fold_in, "_ITEMS_PER_BLOCK", 8)
    np.testing.assert_allclose(gramian(y), whole, rtol=1e-12, atol=1e-12)
    assert gramian(y).shape == (5, 5)
