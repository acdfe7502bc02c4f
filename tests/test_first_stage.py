"""Lists of the first stage: the best that a filter leaves, the same for one user and for many."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from app.als import Factors
from app.artifacts import LoadedModel
from app.filters import EVERYTHING, Filter
from app.first_stage import FirstStage
from app.scoring import Listed
from tests.models import in_memory, make_model

N_USERS, N_MOVIES, FACTORS = 30, 120, 8
LIKES_NOTHING, LIKES_EVERYTHING = 28, 29  # user indices
WITHOUT_FACTOR = (5, 77)  # item indices
GENRES, YEARS = ("Drama|Comedy", "Sci-Fi", "", "Comedy", "Drama"), (1990, None, 2000, 2010)


def make_world() -> LoadedModel:
    """A model in which some users like nothing, some movies are equal, and some have no factor at all."""
    rng = np.random.default_rng(0)
    movie_ids = np.arange(1, N_MOVIES + 1) * 10
    rated = []
    for user in range(N_USERS):
        ratings = {LIKES_NOTHING: [1.0], LIKES_EVERYTHING: [4.0]}.get(user, [2.0, 4.0, 5.0])
        chosen = rng.choice(movie_ids, N_MOVIES if user == LIKES_EVERYTHING else rng.integers(1, 12), replace=False)
        rated += [(user + 1, movie_id, float(rng.choice(ratings))) for movie_id in chosen.tolist()]
    model = make_model(rated, factors=FACTORS)
    items = model.factors.item_factors.copy()
    items[60:70] = items[10]
    items[list(WITHOUT_FACTOR)] = 0
    movies = model.movies.assign(
        genres=[GENRES[item % len(GENRES)] for item in range(N_MOVIES)],
        year=[YEARS[item % len(YEARS)] for item in range(N_MOVIES)],
    )
    loaded = in_memory(
        replace(model, factors=Factors(model.factors.user_factors, items), movies=movies.astype({"year": "Int64"}))
    )
    assert (len(loaded.users), len(loaded.items)) == (N_USERS, N_MOVIES)
    return loaded


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return make_world()


@pytest.fixture(scope="module")
def first(model: LoadedModel) -> FirstStage:
    return FirstStage(model)


FILTERS = {
    "everything": EVERYTHING,
    "a genre": Filter(("sci-fi",)),
    "genres": Filter(("Comedy", "Sci-Fi")),
    "years": Filter(year_min=1995, year_max=2005),
    "a genre of a year": Filter(("Drama",), year_max=1990),
    "excluded movies": Filter(exclude=(10, 20, 110, 650)),
    "excluded movies that nobody knows": Filter(exclude=(1, 2**63 - 1)),
    "a genre less some movies": Filter(("Drama",), exclude=(7, 50, 60, 610)),
    "a genre, all excluded": Filter(("Sci-Fi",), exclude=tuple(range(10, 1210, 10))),
    "a year without movies": Filter(year_min=2011),
}
named_filters = pytest.mark.parametrize("wanted", FILTERS.values(), ids=FILTERS)


def may_be_listed(model: LoadedModel, wanted: Filter) -> list[int]:
    """The items that a filter leaves, by a loop."""
    kept = []
    for item, movie in enumerate(model.movies):
        of_genre = not wanted.genres or {g.casefold() for g in wanted.genres} & {g.casefold() for g in movie.genres}
        low, high = wanted.year_min or -1, wanted.year_max or 9999
        of_year = (wanted.year_min, wanted.year_max) == (None, None) or (movie.year and low <= movie.year <= high)
        if of_genre and of_year and movie.movie_id not in wanted.exclude:
            kept.append(item)
    return kept


def bits(listed: Listed) -> tuple[list[int], bytes]:
    items, scores = listed
    assert (items.dtype, scores.dtype) == (np.int64, np.float32)
    return items.tolist(), scores.tobytes()


@named_filters
@pytest.mark.parametrize("k", [1, 10, 200])
def test_many_users_get_the_bits_that_each_gets_alone(first: FirstStage, wanted: Filter, k: int) -> None:
    orders = (np.arange(N_USERS), np.array([29, 0, 0, 28, 3]), np.array([7]), np.empty(0, dtype=np.int64))
    for users in orders:
        alone = [bits(first.best_of_user(int(user), k, wanted)) for user in users]
        assert [bits(listed) for listed in first.best_of_known(users, k, wanted)] == alone


@named_filters
def test_best_are_those_of_a_slow_sort_less_what_was_rated_and_what_the_filter_leaves_out(
    model: LoadedModel, first: FirstStage, wanted: Filter
) -> None:
    kept = may_be_listed(model, wanted)
    factors = model.factors
    scores = factors.user_factors.astype(np.float64) @ factors.item_factors.astype(np.float64).T
    for user in range(N_USERS):
        rated = set(model.history.of(user).item_index.tolist())
        row = scores[user].astype(np.float32).tolist()
        left = sorted((item for item in kept if item not in rated), key=lambda item: (-row[item], item))
        for k in (1, 7, 200):
            items, found = first.best_of_user(user, k, wanted)
            assert items.tolist() == left[:k]
            assert found.tolist() == [row[item] for item in left[:k]]


@named_filters
def test_allowed_are_those_that_a_loop_leaves(model: LoadedModel, first: FirstStage, wanted: Filter) -> None:
    mask = first.allowed(wanted)
    assert (mask is None) == (wanted == EVERYTHING)
    assert np.flatnonzero(np.ones(N_MOVIES) if mask is None else mask).tolist() == may_be_listed(model, wanted)


def test_asking_for_what_is_allowed_leaves_the_next_answer_as_it_was(first: FirstStage) -> None:
    wanted = FILTERS["a genre less some movies"]
    before = bits(first.best_of_user(0, 50, Filter(wanted.genres)))
    for mask in (first.allowed(wanted), first.of_kind(wanted)):
        assert mask is not None
        mask[:] = False
    assert bits(first.best_of_user(0, 50, Filter(wanted.genres))) == before


@named_filters
def test_most_popular_have_the_most_positives_and_equals_stand_by_index(
    model: LoadedModel, first: FirstStage, wanted: Filter
) -> None:
    popularity = model.movies.popularity.tolist()
    assert len(set(popularity)) < N_MOVIES / 4  # so that there are equals
    kept, out = may_be_listed(model, wanted), [3, 50, 50, 119]
    expected = sorted((item for item in kept if item not in out), key=lambda item: (-popularity[item], item))
    for k in (1, 10, 200):
        items, scores = first.most_popular(k, np.array(out), first.allowed(wanted))
        assert (items.dtype, scores.dtype) == (np.int64, np.float32)
        assert items.tolist() == expected[:k]
        assert scores.tolist() == [popularity[item] for item in expected[:k]]


def test_most_popular_of_nothing_left_are_none(first: FirstStage) -> None:
    items, scores = first.most_popular(5, np.arange(N_MOVIES), None)
    assert (items.tolist(), scores.tolist()) == ([], [])


@named_filters
def test_similar_movies_are_those_of_the_largest_cosine(model: LoadedModel, first: FirstStage, wanted: Filter) -> None:
    y = model.factors.item_factors.astype(np.float64)
    lengths = np.linalg.norm(y, axis=1)
    kept = may_be_listed(model, wanted)
    for item in (0, 11, 60, 119):
        cosines = y @ y[item] / (np.where(lengths > 0, lengths, 1) * lengths[item])
        items, scores = first.similar(item, 200, wanted)
        assert sorted(items.tolist()) == [other for other in kept if other != item]
        np.testing.assert_allclose(scores, cosines[items], rtol=1e-6, atol=1e-7)
        assert (np.diff(scores) <= 0).all()
        assert bits(first.similar(item, 7, wanted)) == bits((items[:7], scores[:7]))


def test_equal_movies_are_the_most_similar_by_index_and_those_without_factor_like_nobody(first: FirstStage) -> None:
    items, scores = first.similar(10, N_MOVIES, EVERYTHING)
    assert items[:10].tolist() == list(range(60, 70))
    np.testing.assert_allclose(scores[:10], 1, rtol=1e-6)
    assert [scores[items.tolist().index(item)] for item in WITHOUT_FACTOR] == [0, 0]


@pytest.mark.parametrize("item", WITHOUT_FACTOR)
def test_movie_without_a_factor_has_no_similar_ones(first: FirstStage, item: int) -> None:
    items, scores = first.similar(item, 10, EVERYTHING)
    assert (items.tolist(), scores.tolist()) == ([], [])
    assert (items.dtype, scores.dtype) == (np.int64, np.float32)


def test_excluded_are_found_by_their_ids_and_others_are_nothing_to_exclude(first: FirstStage) -> None:
    assert first.excluded(Filter(exclude=(1, 20, 2**63 - 1, 10, 1200))).tolist() == [1, 0, 119]
    assert first.excluded(EVERYTHING).tolist() == []


def test_whoever_likes_something_has_positives(model: LoadedModel, first: FirstStage) -> None:
    likes = [bool((model.history.of(user).rating >= 4).any()) for user in range(N_USERS)]
    assert likes[LIKES_EVERYTHING]
    assert not likes[LIKES_NOTHING]
    assert [bool(first.has_positives(user)) for user in range(N_USERS)] == likes
    everybody = first.has_positives(np.arange(N_USERS))
    assert isinstance(everybody, np.ndarray)
    assert everybody.tolist() == likes


def test_factor_from_elsewhere_is_answered_like_that_of_a_user(model: LoadedModel, first: FirstStage) -> None:
    rated = model.history.of(3).item_index
    found = first.best(model.factors.user_factors[3], 10, rated, None)
    assert bits(found) == bits(first.best_of_user(3, 10))
