"""Planted transitions: where successors go, what they leave alone, and that they show in what follows what."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from app.datasets.movielens import RawData
from app.datasets.synthetic import synthesize
from app.datasets.synthetic_transitions import N_SUCCESSORS, Planter, draw_successors
from app.errors import ConfigError


@pytest.fixture(scope="module")
def plain() -> RawData:
    return synthesize()


@pytest.fixture(scope="module")
def planted() -> RawData:
    return synthesize(transitions=0.5)


def opens_session(ratings: pd.DataFrame) -> np.ndarray:
    """Tell the first rating of each session: sessions last a fifth of a day at most, and lie a day or more apart."""
    pause = ratings.groupby("user_id")["timestamp"].diff()
    return (pause.isna() | (pause > 20_000)).to_numpy()


def is_planted(plain: RawData, planted: RawData) -> np.ndarray:
    """Tell the ratings whose movie was replaced: everything else is the same for the same seed."""
    return (plain.ratings["movie_id"] != planted.ratings["movie_id"]).to_numpy()


def transitions_of(ratings: pd.DataFrame) -> pd.DataFrame:
    """Return (movie before, movie) of each rating that does not open its session."""
    movie_id = ratings["movie_id"].to_numpy()
    follows = ~opens_session(ratings)
    return pd.DataFrame({"before": np.roll(movie_id, 1)[follows], "movie": movie_id[follows]})


# Which movie follows which


@pytest.mark.parametrize("n_movies", [30, 59, 60, 200, 1_007])
def test_each_movie_has_three_successors_and_follows_three_others(n_movies: int) -> None:
    popularity = np.random.default_rng(1).pareto(1, n_movies)
    successors = draw_successors(np.random.default_rng(2), popularity)
    assert successors.shape == (n_movies, N_SUCCESSORS) == (n_movies, 3)
    assert all(len({movie, *row}) == 4 for movie, row in enumerate(successors.tolist()))
    assert (np.bincount(successors.ravel(), minlength=n_movies) == 3).all()


@pytest.mark.parametrize("n_movies", [30, 59, 60, 200, 1_007])
def test_the_successor_of_a_successor_is_neither_a_successor_nor_the_movie(n_movies: int) -> None:
    successors = draw_successors(np.random.default_rng(2), np.ones(n_movies))
    for movie, row in enumerate(successors.tolist()):
        assert {movie, *row}.isdisjoint(successors[row].ravel().tolist())


def test_successors_are_neighbours_in_popularity() -> None:
    popularity = np.random.default_rng(1).permutation(1_000).astype(float)  # its own rank
    successors = draw_successors(np.random.default_rng(2), popularity)
    apart = np.abs(popularity[successors] - popularity[:, None])
    assert 1 <= apart.min() <= apart.max() < 60
    assert apart.mean() > 5  # drawn among the neighbours, not the very next


def test_successors_do_not_share_a_taste(plain: RawData, planted: RawData) -> None:
    """A movie and its successor agree in genres no more than two movies do that have nothing in common."""
    movies = plain.movies.set_index("movie_id")
    has_genre = movies["genres"].astype(object).str.get_dummies()
    pairs = transitions_of(planted.ratings)[is_planted(plain, planted)[~opens_session(planted.ratings)]]
    before = has_genre.loc[pairs["before"]].to_numpy()
    after = has_genre.loc[pairs["movie"]].to_numpy()
    strangers = np.random.default_rng(0).permutation(after)
    assert (before * after).sum(axis=1).mean() == pytest.approx((before * strangers).sum(axis=1).mean(), rel=0.15)


# Planting, by hand: one successor each, so that nothing is left to chance


def plant(
    successors: list[int], drawn: list[int], session: list[int], user: list[int], released: dict[int, int] | None = None
) -> list[int]:
    """Plant wherever a session goes on; all is rated in 2000, and movies are of 1990 unless `released` says more."""
    years = np.array([(released or {}).get(movie, 1990) for movie in range(len(successors))])
    planter = Planter(np.random.default_rng(0), 1.0, np.array(successors)[:, None], years)
    return planter.plant(np.array(user), np.array(session), np.full(len(user), 2000), np.array(drawn)).tolist()


ROUND = [1, 2, 3, 4, 5, 6, 7, 0]  # each movie is followed by the next


def test_successors_follow_one_another_until_the_session_ends() -> None:
    # Session 0 opens with 0, so 1, 2 follow; session 1 opens with 6, so 7 follows; of user 1 likewise.
    drawn = [0, 5, 3, 6, 4, 2, 7]
    assert plant(ROUND, drawn, session=[0, 0, 0, 1, 1, 2, 2], user=[0, 0, 0, 0, 0, 1, 1]) == [0, 1, 2, 6, 7, 2, 3]


def test_a_movie_that_the_user_rates_elsewhere_is_not_planted() -> None:
    # After 0 comes not 1, which stands later, but 4 as drawn; then 5.
    assert plant(ROUND, [0, 4, 2, 1], session=[0, 0, 0, 1], user=[0, 0, 0, 0]) == [0, 4, 5, 1]


def test_a_movie_whose_place_was_taken_is_free_again() -> None:
    # 3 is replaced by 1, so that 3 can follow 2.
    assert plant(ROUND, [0, 3, 6, 7], session=[0, 0, 0, 0], user=[0, 0, 0, 0]) == [0, 1, 2, 3]


def test_of_two_sessions_that_want_a_movie_at_once_the_first_gets_it() -> None:
    successors = [4, 4, 4, 4, 5, 0]
    assert plant(successors, [0, 1, 2, 3], session=[0, 0, 1, 1], user=[0, 0, 0, 0]) == [0, 4, 2, 3]
    assert plant(successors, [0, 1, 2, 3], session=[0, 0, 1, 1], user=[0, 0, 1, 1]) == [0, 4, 2, 4]


def test_a_movie_is_not_planted_before_its_release() -> None:
    assert plant(ROUND, [0, 4], session=[0, 0], user=[0, 0], released={1: 2001}) == [0, 4]
    assert plant(ROUND, [0, 4], session=[0, 0], user=[0, 0], released={1: 2000}) == [0, 1]


def test_where_one_successor_is_refused_another_is_planted() -> None:
    successors = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2], [0, 1, 2]])
    released = np.array([1990, 2001, 2001, 1990, 1990])
    for seed in range(20):
        planter = Planter(np.random.default_rng(seed), 1.0, successors, released)
        found = planter.plant(np.zeros(2, int), np.zeros(2, int), np.full(2, 2000), np.array([0, 4]))
        assert found.tolist() == [0, 3]


def test_sessions_of_one_rating_are_left_alone() -> None:
    assert plant(ROUND, [0, 4, 2], session=[0, 1, 2], user=[0, 0, 1]) == [0, 4, 2]


# What it does to a whole data set


def test_planting_changes_movies_within_sessions_and_nothing_else(plain: RawData, planted: RawData) -> None:
    changed = is_planted(plain, planted)
    pd.testing.assert_frame_equal(plain.movies, planted.movies)
    for column in ("user_id", "timestamp"):
        assert plain.ratings[column].equals(planted.ratings[column])
    assert not changed[opens_session(plain.ratings)].any()
    assert 0.4 < changed[~opens_session(plain.ratings)].mean() < 0.5  # a successor cannot always be rated


def test_what_follows_is_far_more_often_a_successor_than_without_planting(plain: RawData, planted: RawData) -> None:
    with_planting, without = transitions_of(planted.ratings), transitions_of(plain.ratings)
    pairs = with_planting[is_planted(plain, planted)[~opens_session(plain.ratings)]].drop_duplicates()
    assert pairs.groupby("before").size().max() == N_SUCCESSORS
    share, by_chance = (len(table.merge(pairs)) / len(table) for table in (with_planting, without))
    assert share > 0.4
    assert by_chance < 0.01


@pytest.mark.parametrize(("transitions", "low", "high"), [(0.1, 0.07, 0.1), (0.9, 0.65, 0.9)])
def test_transitions_is_the_share_that_is_planted_but_for_what_cannot_be(
    plain: RawData, transitions: float, low: float, high: float
) -> None:
    changed = is_planted(plain, synthesize(transitions=transitions))
    assert low < changed[~opens_session(plain.ratings)].mean() < high


def test_planted_movies_are_liked_as_often_as_others(plain: RawData, planted: RawData) -> None:
    changed = is_planted(plain, planted)
    rating = planted.ratings["rating"].to_numpy()
    assert (rating[changed] >= 4).mean() == pytest.approx((rating[~changed] >= 4).mean(), abs=0.02)
    assert rating[changed].mean() == pytest.approx(rating[~changed].mean(), abs=0.04)
    assert rating.mean() == pytest.approx(plain.ratings["rating"].mean(), abs=0.02)


def test_planting_leaves_the_long_tail(plain: RawData, planted: RawData) -> None:
    def share_of_head(data: RawData) -> float:
        counts = data.ratings["movie_id"].value_counts()
        return float(counts.iloc[: len(data.movies) // 10].sum() / counts.sum())

    assert share_of_head(planted) == pytest.approx(share_of_head(plain), abs=0.03)


@pytest.mark.parametrize(
    ("n_ratings", "transitions"), [(1_000, 0.3), (1_000, 0.99), (6_600, 0.5), (20_000, 0.99), (700_000, 0.9)]
)
def test_nobody_rates_a_movie_twice(n_ratings: int, transitions: float) -> None:
    ratings = synthesize(n_ratings, 1, transitions).ratings
    assert len(ratings) == n_ratings
    assert not ratings.duplicated(["user_id", "movie_id"]).any()


def test_the_same_arguments_give_the_same_data_and_other_transitions_other_data() -> None:
    first, second, other = synthesize(3_000, 1, 0.5), synthesize(3_000, 1, 0.5), synthesize(3_000, 1, 0.4)
    pd.testing.assert_frame_equal(first.ratings, second.ratings, check_exact=True)
    assert first.fingerprint == second.fingerprint
    assert len({first.fingerprint, other.fingerprint, synthesize(3_000, 1).fingerprint}) == 3


def test_another_seed_gives_other_successors() -> None:
    found = [draw_successors(np.random.default_rng(seed), np.ones(200)).tolist() for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("transitions", [-0.1, 1.0, 2.0, float("nan")])
def test_transitions_that_are_no_probability_below_one_are_refused(transitions: float) -> None:
    with pytest.raises(ConfigError, match=f"transitions is {transitions}; expected a probability from 0 to below 1"):
        synthesize(1_000, 1, transitions)
