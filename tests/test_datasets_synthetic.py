"""Invented ratings: reproducible, well formed, and with the structure that a recommender can learn."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from app.datasets.movielens import RawData, empty_tags
from app.datasets.synthetic import GENRES, synthesize
from app.errors import ConfigError


@pytest.fixture(scope="module")
def data() -> RawData:
    return synthesize()


def check_well_formed(data: RawData, n_ratings: int) -> None:
    ratings, movies = data.ratings, data.movies
    assert len(ratings) == n_ratings
    assert [str(dtype) for dtype in ratings.dtypes] == ["int64", "int64", "float32", "int64"]
    assert list(ratings.columns) == ["user_id", "movie_id", "rating", "timestamp"]
    assert not ratings.duplicated(["user_id", "movie_id"]).any()
    assert ratings["user_id"].value_counts().min() >= 20
    assert set(ratings["rating"].unique()) <= set(np.arange(1, 11, dtype=np.float32) / 2)
    assert ratings["movie_id"].isin(movies["movie_id"]).all()
    assert movies["movie_id"].is_unique
    assert movies["title"].is_unique
    by_time = ratings.sort_values(["user_id", "timestamp"], kind="stable")
    assert (by_time.index == ratings.index).all()


@pytest.mark.parametrize("n_ratings", [1_000, 1_001, 2_000, 6_600, 20_000, 100_000])
@pytest.mark.parametrize("random_state", [0, 1, 42])
def test_every_size_and_seed_gives_well_formed_data(n_ratings: int, random_state: int) -> None:
    check_well_formed(synthesize(n_ratings, random_state), n_ratings)


def test_the_same_arguments_give_the_same_data_and_another_seed_other_data() -> None:
    first, second, other = synthesize(3_000, 1), synthesize(3_000, 1), synthesize(3_000, 2)
    pd.testing.assert_frame_equal(first.ratings, second.ratings, check_exact=True)
    pd.testing.assert_frame_equal(first.movies, second.movies)
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint != other.fingerprint
    assert re.fullmatch("[0-9a-f]{64}", first.fingerprint)


@pytest.mark.parametrize(
    ("n_ratings", "random_state", "fingerprint"),
    [
        (1_001, 1, "57705837541a8f6fcbaacebec0d9003f23e4a324ea1fbda9b8abbcde3c5d335c"),
        (20_000, 42, "16e26849c0f3c25e0984b728e64d9f38ddd2f2e1b108966c7b4a22787ada2bb4"),
        (150_000, 3, "c2aadde9fdfb05d42352f127afc9d420d1218fe8a536e46a121776ab11b0d7ac"),
    ],
)
def test_data_without_transitions_is_what_it_was_before_there_were_any(
    n_ratings: int, random_state: int, fingerprint: str
) -> None:
    assert synthesize(n_ratings, random_state, transitions=0.0).fingerprint == fingerprint
    assert synthesize(n_ratings, random_state).fingerprint == fingerprint


def test_sizes_and_ratings_resemble_movielens(data: RawData) -> None:
    ratings = data.ratings
    assert (ratings["user_id"].nunique(), len(data.movies)) == (606, 9_486)
    assert 3.3 < ratings["rating"].mean() < 3.7
    assert 0.42 < (ratings["rating"] >= 4).mean() < 0.55
    activity = ratings["user_id"].value_counts()
    assert activity.median() < activity.mean() < activity.max() / 5
    popularity = ratings["movie_id"].value_counts()
    assert 0.4 < popularity.iloc[: len(popularity) // 10].sum() / len(ratings) < 0.7  # 0.60 in ml-latest-small
    assert (popularity == 1).mean() > 0.05


def test_movies_have_plausible_titles_and_genres(data: RawData) -> None:
    assert len(GENRES) == 18
    assert data.movies["title"].str.fullmatch(r"[A-Z][A-Za-z0-9 ]+ \((19|20)\d\d\)").all()
    genres = data.movies["genres"].str.split("|")
    assert genres.str.len().between(1, 3).all()
    assert set(genres.explode()) == set(GENRES)
    assert len(data.links) == 0
    assert list(data.links.columns) == ["movie_id", "imdb_id", "tmdb_id"]
    pd.testing.assert_frame_equal(data.tags, empty_tags())


@pytest.mark.parametrize("transitions", [0.0, 0.5, 0.9])
def test_nobody_rates_a_movie_before_its_release(transitions: float) -> None:
    data = synthesize(transitions=transitions)
    released = data.movies.set_index("movie_id")["title"].str[-5:-1].astype("int64")
    rated = pd.to_datetime(data.ratings["timestamp"], unit="s").dt.year
    assert (released[data.ratings["movie_id"]].to_numpy() <= rated.to_numpy() + 1).all()  # years are 365.2425 days
    assert (released[data.ratings["movie_id"]].to_numpy() <= rated.to_numpy()).mean() > 0.999


def test_ratings_come_in_sessions(data: RawData) -> None:
    pause = data.ratings.groupby("user_id")["timestamp"].diff().dropna()
    assert (pause >= 0).all()
    assert (pause < 120).mean() > 0.9
    assert (pause > 86_400).mean() > 0.01
    assert not pause.between(3_600, 20_000).any()


def test_neighbours_within_a_session_share_more_genres_than_strangers(data: RawData) -> None:
    has_genre = data.movies["genres"].astype(object).str.get_dummies().set_axis(data.movies["movie_id"]).to_numpy()
    index = pd.Index(data.movies["movie_id"]).get_indexer(data.ratings["movie_id"])
    item = has_genre[index]  # (n_ratings, 18)
    same_user = data.ratings["user_id"].to_numpy()[1:] == data.ratings["user_id"].to_numpy()[:-1]
    shared = (item[1:] * item[:-1]).sum(axis=1)[same_user].mean()
    strangers = (item * np.random.default_rng(0).permutation(item)).sum(axis=1).mean()
    assert shared > 1.15 * strangers


def test_a_model_of_taste_beats_the_popular_order(data: RawData) -> None:
    """Item-to-item co-occurrence finds each user's last liked movie clearly more often than popularity does."""
    liked = data.ratings[data.ratings["rating"] >= 4]
    is_last = ~liked["user_id"].duplicated(keep="last")
    user = liked["user_id"].to_numpy() - 1
    item = liked["movie_id"].astype("category").cat.codes.to_numpy()
    matrix = np.zeros((int(user.max()) + 1, int(item.max()) + 1), dtype=np.float32)
    matrix[user[~is_last], item[~is_last]] = 1
    popularity = matrix.sum(axis=0)
    similarity = (matrix @ matrix.T) @ (matrix / np.sqrt(popularity + 5))  # (n_users, n_items)
    target_user, target = user[is_last], item[is_last]

    def hit_rate(scores: np.ndarray) -> float:
        unseen = np.where(matrix[target_user] > 0, -np.inf, scores[target_user])
        better = (unseen > scores[target_user, target][:, None]).sum(axis=1)
        return float((better < 20).mean())

    assert hit_rate(similarity) > 1.3 * hit_rate(np.broadcast_to(popularity, matrix.shape))


@pytest.mark.parametrize("n_ratings", [999, 0, -5])
def test_too_few_ratings_are_refused(n_ratings: int) -> None:
    with pytest.raises(ConfigError, match=f"n_ratings is {n_ratings}; expected 1,000 to"):
        synthesize(n_ratings)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ConfigError, match="random_state is -1, expected a whole number from 0"):
        synthesize(random_state=-1)


@pytest.mark.slow
def test_two_million_ratings_are_well_formed() -> None:
    check_well_formed(synthesize(2_000_000), 2_000_000)


def test_the_movies_of_everybodys_examples_are_liked_by_many() -> None:
    for seed in range(5):
        ratings = synthesize(20_000, random_state=seed).ratings
        n_liked = ratings[ratings["rating"] >= 4]["movie_id"].value_counts()
        assert all(n_liked.rank(ascending=False)[movie_id] <= 150 for movie_id in (1, 2, 3))
