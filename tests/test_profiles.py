"""What is known of a user: counted from their own ratings, the newest first."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from app.artifacts import LoadedModel
from app.errors import UnknownUserError
from app.profiles import N_GENRES, N_LIKED, describe_user
from tests.models import BIG_MOVIE, BIG_USER, LIKES_NOTHING, MOVIES, in_memory, make_model, trained

FAN, DISLIKES, ODD = 1, 2, 3
GENRES = {1: "A|B", 2: "B", 3: "", 4: "C|D|E|F", 5: "G"}
RATINGS = (
    (FAN, 2, 5.0),
    (FAN, 1, 4.0),
    (FAN, 5, 3.5),
    (FAN, 3, 4.5),
    (FAN, 99, 1.0),  # nobody likes it, so it is not in the catalogue
    (FAN, 4, 4.0),
    (DISLIKES, 1, 2.0),
    (ODD, 3, 5.0),
    (4, 5, 5.0),
)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    made = make_model(RATINGS)
    genres = [GENRES[movie_id] for movie_id in made.items.ids.tolist()]
    return in_memory(replace(made, movies=made.movies.assign(genres=genres)))


def test_profile_counts_what_is_in_the_catalogue_and_lists_the_newest_first(model: LoadedModel) -> None:
    profile = describe_user(model, FAN)
    assert (profile.n_ratings, profile.n_liked) == (5, 4)
    assert [movie.movie_id for movie in profile.liked] == [4, 3, 1, 2]
    assert profile.liked[2].title == MOVIES[1][0]
    assert profile.liked[2].genres == ("A", "B")


def test_favourite_genres_are_shares_of_the_movies_that_have_one(model: LoadedModel) -> None:
    # Of three movies with genres: B has 1 + ½, A ½, and C to F ¼ each, of which five genres are shown.
    names, shares = zip(*describe_user(model, FAN).favourite_genres, strict=True)
    assert names == ("B", "A", "C", "D", "E")
    assert shares == pytest.approx([1.5 / 3, 0.5 / 3, 0.25 / 3, 0.25 / 3, 0.25 / 3])
    assert {type(share) for share in shares} == {float}
    assert {type(name) for name in names} == {str}


def test_whoever_likes_nothing_has_ratings_only(model: LoadedModel) -> None:
    profile = describe_user(model, DISLIKES)
    assert (profile.n_ratings, profile.n_liked, profile.liked, profile.favourite_genres) == (1, 0, (), ())


def test_whoever_likes_movies_without_genres_has_no_favourite_ones(model: LoadedModel) -> None:
    profile = describe_user(model, ODD)
    assert (profile.n_liked, profile.favourite_genres) == (1, ())


@pytest.mark.parametrize("user_id", [0, 5, -1, 2**62, 2**63 - 1])
def test_unknown_user_is_an_error(model: LoadedModel, user_id: int) -> None:
    with pytest.raises(UnknownUserError, match=str(user_id)) as caught:
        describe_user(model, user_id)
    assert (caught.value.user_id, caught.value.version) == (user_id, "in memory")


def test_ids_of_64_bits_stay_exact() -> None:
    profile = describe_user(in_memory(make_model()), BIG_USER)
    assert [movie.movie_id for movie in profile.liked] == [1, BIG_MOVIE]


def test_every_profile_of_a_trained_model_is_what_its_table_says() -> None:
    dataset, made = trained()
    model = in_memory(made)
    of_catalogue = dataset.ratings[dataset.ratings["movie_id"].isin(made.items.ids)]
    titles = dataset.movies.set_index("movie_id")["title"]
    for user_id in (*made.users.ids[::9].tolist(), LIKES_NOTHING):
        rated = of_catalogue[of_catalogue["user_id"] == user_id].sort_values("timestamp", kind="stable")
        liked = rated.loc[rated["rating"] >= 4, "movie_id"].tolist()
        profile = describe_user(model, user_id)
        assert (profile.n_ratings, profile.n_liked) == (len(rated), len(liked))
        assert [movie.movie_id for movie in profile.liked] == liked[::-1][:N_LIKED]
        assert [movie.title for movie in profile.liked] == titles[liked[::-1][:N_LIKED]].tolist()
        shares = [share for _, share in profile.favourite_genres]
        assert shares == sorted(shares, reverse=True)
        assert len(shares) <= N_GENRES
        assert np.sum(shares) <= 1 + 1e-9
        assert all(share > 0 for share in shares)
