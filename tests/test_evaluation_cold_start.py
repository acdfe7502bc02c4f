"""Users whom the model has never seen: what is folded in, what must be found, and that nothing else is known."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from app import core
from app.als import AlsConfig, Factors
from app.core import IdMap
from app.datasets.movielens import read_movielens
from app.evaluation import N_FOLDS, cold_start, measure_cold_start
from app.evaluation.cold_start import N_LIKED
from app.evaluation.lists import rank
from app.fold_in import gramian, solve_user_factor
from app.movies import Movie, build_movies
from app.ranking import PADDING
from app.recommender import Recommender
from tests.models import in_memory, make_model
from tests.tasks import cells, frame

CONFIG = AlsConfig(factors=4, regularization=0.1, iterations=5, num_threads=1)
MODELS = ["als", "mean_of_items", "popular"]


def likes(by_user: Mapping[int, Sequence[int]], rating: float = 5.0) -> pd.DataFrame:
    """Positives of each user, a second apart."""
    return frame(*((user, movie, rating, t) for user in sorted(by_user) for t, movie in enumerate(by_user[user])))


def folds_of(user_ids: Sequence[int], config: AlsConfig) -> list[list[int]]:
    """Who is held out together."""
    shuffled = np.random.default_rng(config.random_state).permutation(np.array(sorted(user_ids)))
    return [fold.tolist() for fold in np.array_split(shuffled, N_FOLDS)]


# What is folded in, and what must be found

# Movies 1 to 5 are the catalogue, 9 is outside.
UNSEEN = frame(
    (1, 1, 5.0, 10), (1, 2, 4.0, 20), (1, 3, 4.0, 20), (1, 4, 5.0, 30), (1, 9, 5.0, 40), (1, 5, 4.0, 50),
    (2, 9, 5.0, 5), (2, 1, 4.0, 6), (2, 4, 4.0, 7),
    (3, 2, 5.0, 7),  # nothing follows
    (4, 3, 5.0, 8), (4, 4, 5.0, 8),  # nothing follows later
)  # fmt: skip


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (1, [([1], [2]), ([], [1])]),  # user 2's first is outside the catalogue
        (2, [([1, 2], [4]), ([1], [4])]),  # 3 is as old as the second, so it is neither
        (3, [([1, 2, 3], [4])]),  # user 2 has no fourth
        (4, []),  # user 1's next is outside, and the one after it does not stand in for it
        (5, [([1, 2, 3, 4], [5])]),
        (6, []),
        (7, []),  # nobody has as many
    ],
)  # fmt: skip
def test_first_n_are_liked_and_the_first_strictly_later_one_must_be_found(
    n: int, expected: list[tuple[list[int], list[int]]]
) -> None:
    items = IdMap(np.arange(1, 6))
    liked, relevant, gap_seconds = cold_start.first_and_next(UNSEEN, items, n)
    assert liked.shape == relevant.shape == (len(expected), 5)
    found = [
        (items.ids[liked[row].indices].tolist(), items.ids[relevant[row].indices].tolist())
        for row in range(liked.shape[0])
    ]
    assert found == expected
    assert gap_seconds.shape == (len(expected),)
    assert (gap_seconds > 0).all()


def test_gap_is_from_the_last_like_to_the_movie_to_be_found() -> None:
    unseen = pd.DataFrame(
        {"user_id": [1, 1, 1, 2, 2, 2], "movie_id": [1, 2, 3, 1, 2, 3], "timestamp": [0, 10, 4000, 0, 0, 3600]}
    )
    gaps = {n: cold_start.first_and_next(unseen, IdMap(np.arange(1, 4)), n)[2].tolist() for n in (1, 2)}
    assert gaps == {1: [10, 3600], 2: [3990, 3600]}  # user 2 has a tie, and the tied movie is not to be found


# Figures by hand: eight users who like the same six movies, each from another one on


@pytest.fixture(scope="module")
def round_table() -> pd.DataFrame:
    return likes({user: [(user + place) % 6 for place in range(6)] for user in range(8)})


def test_every_user_is_held_out_once(round_table: pd.DataFrame) -> None:
    done: list[int] = []
    found = measure_cold_start(round_table, CONFIG, on_fold=lambda: done.append(1))
    assert len(done) == found["n_folds"] == N_FOLDS
    # All of them have a second, a fourth and a sixth movie; nobody has an eleventh.
    assert {n: part["n_users"] for n, part in found["n_liked"].items()} == {"1": 8, "3": 8, "5": 8}
    assert "first n positives" in found["definition"]


def test_figures_of_popular_are_those_by_hand(round_table: pd.DataFrame) -> None:
    found = measure_cold_start(round_table, CONFIG)["n_liked"]
    # All movies are equally popular, so that they are ranked by id. After three, three are left, of which the one to be
    # found is the first by id, but for 1 and 7 (0, 4, 5: the second) and 2 (0, 1, 5: the third).
    assert found["3"]["means"]["popular"]["mrr@5"] == pytest.approx((5 + 1 / 2 + 1 / 3 + 1 / 2) / 8)
    # After one, five are left; to be found is user + 1: rank 1 for 0 and 6 (of 1 to 5), 2 for 1 and 7, 3, 4, 5 for 2 to
    # 4, and 1 for 5.
    assert found["1"]["means"]["popular"]["mrr@5"] == pytest.approx((3 + 2 / 2 + 1 / 3 + 1 / 4 + 1 / 5) / 8)
    for model in MODELS:  # after five, one is left
        assert found["5"]["means"][model]["mrr@5"] == found["5"]["means"][model]["recall@20"] == 1
        assert found["5"]["means"][model]["precision@10"] == pytest.approx(1 / 10)


def test_description_is_whole(round_table: pd.DataFrame) -> None:
    found = measure_cold_start(round_table, CONFIG)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    for part in found["n_liked"].values():
        assert set(part) == {"n_users", "n_within_session", "means", "intervals", "differences"}
        assert 0 <= part["n_within_session"] <= part["n_users"]
        assert list(part["means"]) == list(part["intervals"]) == MODELS
        assert list(part["differences"]) == ["mean_of_items", "popular"]
        for name, mean in part["means"]["als"].items():
            if interval := part["intervals"]["als"][name]:
                assert interval[0] <= mean <= interval[1]
            assert part["differences"]["popular"][name]["difference"] == mean - part["means"]["popular"][name]


def test_measuring_is_seeded_by_the_configuration() -> None:
    rng = np.random.default_rng(0)
    positives = likes({user: rng.permutation(15)[:6].tolist() for user in range(30)})
    first, again, other = (measure_cold_start(positives, replace(CONFIG, random_state=seed)) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("n_users", [2, 3, 5])
def test_few_users_are_folds_of_their_own(n_users: int) -> None:
    found = measure_cold_start(likes({user: [1, 2, 3] for user in range(n_users)}), CONFIG)
    assert found["n_liked"]["1"]["n_users"] == n_users
    assert list(found["n_liked"]) == ["1"]


def test_one_user_alone_leaves_nothing_to_learn_from() -> None:
    assert measure_cold_start(likes({7: [1, 2, 3, 4]}), CONFIG)["n_liked"] == {}


# What is known of those who are held out

N_MOVIES = 30


def test_nothing_that_held_out_users_did_later_reaches_the_fit_that_they_are_measured_with() -> None:
    # Only users of the first fold have more than ten movies, so that the figures after ten are those of its fit alone.
    user_ids = list(range(24))
    first, *others = folds_of(user_ids, CONFIG)
    asked, silent = first[:4], first[4:]
    rng = np.random.default_rng(3)
    by_user = {user: rng.permutation(N_MOVIES).tolist()[: 14 if user in asked else 9] for user in user_ids}
    assert {movie for fold in others for user in fold for movie in by_user[user]} == set(range(N_MOVIES))

    rewritten = dict(by_user)
    for user in asked:  # what came after the movie that is to be found, the eleventh
        kept = by_user[user][:11]
        rewritten[user] = [*kept, *sorted(set(range(N_MOVIES)) - set(by_user[user]))[:16]]
    for user in silent:  # everything of theirs: they are held out and not asked after ten
        rewritten[user] = [0, 1, 2, 3, 4]
    before, after = (measure_cold_start(likes(some), CONFIG)["n_liked"] for some in (by_user, rewritten))
    assert before["10"]["n_users"] == len(asked)
    assert before["10"] == after["10"]
    # What they did is learned from when the others are held out.
    for n in ("1", "3", "5"):
        assert before[n]["means"]["als"] != after[n]["means"]["als"]


def test_what_the_others_did_does_reach_the_fit() -> None:
    # The counterpart: without it the figures above might not depend on any fit.
    user_ids = list(range(24))
    first, *others = folds_of(user_ids, CONFIG)
    rng = np.random.default_rng(3)
    by_user = {user: rng.permutation(N_MOVIES).tolist()[: 14 if user in first else 9] for user in user_ids}
    rewritten = by_user | {user: rng.permutation(N_MOVIES).tolist()[:9] for fold in others for user in fold}
    before, after = (measure_cold_start(likes(some), CONFIG)["n_liked"]["10"] for some in (by_user, rewritten))
    assert before["means"]["als"] != after["means"]["als"]
    assert before["means"]["popular"] != after["means"]["popular"]


def test_grades_count_in_the_fit_and_time_does_not_count_in_what_is_folded_in() -> None:
    rng = np.random.default_rng(4)
    positives = likes({user: rng.permutation(20)[:8].tolist() for user in range(40)})
    graded = positives.assign(rating=np.where(positives["movie_id"] < 10, 4.0, 5.0).astype(np.float32))
    one, other = (measure_cold_start(some, CONFIG)["n_liked"]["3"]["means"] for some in (positives, graded))
    assert one["als"] != other["als"]
    assert one["popular"] == other["popular"]
    halved = measure_cold_start(positives, replace(CONFIG, half_life=1.0))["n_liked"]["3"]["means"]
    assert halved == one


# Scores


def make_fold(liked: Mapping[int, Sequence[int]], n_users: int) -> cold_start._Fold:
    rng = np.random.default_rng(1)
    item_factors = rng.normal(size=(12, 4)).astype(np.float32)
    return cold_start._Fold(
        Factors(np.zeros((1, 4), dtype=np.float32), item_factors),
        popularity=np.array([1, 0, 5, 2, 2, 9, 0, 0, 3, 1, 1, 4], dtype=np.float32),
        liked=cells(n_users, 12, liked),
        relevant=cells(n_users, 12, {user: [0] for user in range(n_users)}),
    )


LIKED = {0: [3], 1: [0, 7, 11], 2: [], 3: [5, 2]}


def lists_of(fold: cold_start._Fold, config: AlsConfig) -> dict[str, list[list[int]]]:
    return {
        model: rank(fold.liked, scorer, depth=12).tolist()
        for model, scorer in cold_start._scorers(fold, config).items()
    }


@pytest.mark.parametrize(
    "config", [CONFIG, AlsConfig(factors=4), AlsConfig(factors=4, alpha=21.0, regularization=0.02)]
)
def test_order_is_that_of_the_service_for_the_same_likes(config: AlsConfig) -> None:
    fold = make_fold(LIKED, 4)
    items = IdMap(np.arange(1000, 1012))
    movies = build_movies([Movie(movie_id, "", (), None, "", "") for movie_id in items.ids.tolist()], fold.popularity)
    model = replace(in_memory(make_model()), als_config=config, items=items, factors=fold.factors, movies=movies)
    lists = lists_of(fold, config)["als"]
    for user, liked in LIKED.items():
        served = Recommender(model).recommend_cold((items.ids[liked]).tolist(), 12)
        assert served.source == ("fold_in" if liked else "popular")
        assert [item for item in lists[user] if item != PADDING] == served.item_indices.tolist()


def test_scores_are_the_equations() -> None:
    fold = make_fold(LIKED, 4)
    y = fold.factors.item_factors
    found = {model: scorer(np.arange(4)) for model, scorer in cold_start._scorers(fold, CONFIG).items()}
    for user in (0, 1, 3):
        liked = np.array(sorted(LIKED[user]))
        x = solve_user_factor(y, gramian(y), liked, np.full(len(liked), CONFIG.alpha), CONFIG.regularization)
        np.testing.assert_allclose(found["als"][user], y @ x, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found["mean_of_items"][user], y @ y[liked].mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found["popular"], np.tile(fold.popularity, (4, 1)))


def test_who_likes_no_movie_of_the_catalogue_gets_the_popular_order_from_every_model() -> None:
    for model, lists in lists_of(make_fold(LIKED, 4), CONFIG).items():
        assert lists[2] == [5, 2, 11, 8, 3, 4, 0, 9, 10, 1, 6, 7], model
    others = lists_of(make_fold(LIKED, 4), CONFIG)
    assert others["als"][1] != others["mean_of_items"][1] != others["popular"][1] != others["als"][1]


def test_liked_movies_are_not_ranked() -> None:
    for lists in lists_of(make_fold(LIKED, 4), CONFIG).values():
        for user, liked in LIKED.items():
            assert sorted(item for item in lists[user] if item != PADDING) == sorted(set(range(12)) - set(liked))


# The real data


@pytest.fixture(scope="module")
def train(movielens_dir: Path) -> pd.DataFrame:
    """The train rows alone: neither validation nor test is looked at here."""
    return core.leave_one_out(core.positives(read_movielens(movielens_dir).ratings)).train


def slow_popular(positives: pd.DataFrame, config: AlsConfig) -> dict[int, list[int]]:
    """For every n and user who can be asked, the rank of the next movie by how many of the others like it."""
    rows_of: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for row in positives.itertuples():
        rows_of[row.user_id].append((row.movie_id, row.timestamp))
    found: dict[int, list[int]] = {n: [] for n in N_LIKED}
    for held_out in folds_of(list(rows_of), config):
        counts = Counter(movie for user in rows_of.keys() - set(held_out) for movie, _ in rows_of[user])
        by_popularity = sorted(counts, key=lambda movie: (-counts[movie], movie))
        for user in held_out:
            for n in N_LIKED:
                liked, rest = rows_of[user][:n], rows_of[user][n:]
                wanted = next((movie for movie, time in rest if time > liked[-1][1]), None)
                if wanted in counts:
                    left = [movie for movie in by_popularity if movie not in dict(liked)]
                    found[n].append(left.index(wanted) + 1)
    return found


def test_users_and_figures_of_popular_agree_with_obvious_code(train: pd.DataFrame) -> None:
    config = AlsConfig(factors=8, iterations=2)
    expected = slow_popular(train, config)
    found = measure_cold_start(train, config)["n_liked"]
    assert [int(n) for n in found] == list(N_LIKED)
    for n, ranks in expected.items():
        part = found[str(n)]
        assert part["n_users"] == len(ranks) > 400
        for k in (5, 10, 20):
            reciprocal = [1 / place if place <= k else 0 for place in ranks]
            assert part["means"]["popular"][f"mrr@{k}"] == pytest.approx(np.mean(reciprocal), abs=1e-12)
            assert part["means"]["popular"][f"recall@{k}"] == pytest.approx(np.mean(np.array(ranks) <= k), abs=1e-12)


def test_folding_in_beats_popular_once_there_are_some_likes(train: pd.DataFrame) -> None:
    means = measure_cold_start(train, AlsConfig(factors=32, iterations=5))["n_liked"]["10"]["means"]
    assert means["als"]["ndcg@20"] > means["popular"]["ndcg@20"]
