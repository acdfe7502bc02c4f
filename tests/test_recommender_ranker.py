"""Recommendations by both stages: the same that anyone can compute from the raw data, and an answer in any case."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path

import lightgbm
import numpy as np
import pytest

from app import features
from app.als import AlsConfig
from app.artifacts import LoadedModel, load_version
from app.candidates import Context, Knowledge, Query, propose
from app.core import UNKNOWN, Dataset, IdMap, positives
from app.history import History, build_history
from app.main import create_app
from app.ranker import Ranker
from app.recommender import PLAIN, ListOptions, Ranking, Recommender, load_recommender
from app.registry import VERSIONS, publish
from app.rerank import Dials
from app.settings import Settings
from app.tables import build_tables
from tests.models import LIKES_NOTHING, LIKES_ONE, forge, serve, trained

FIRST_STAGE = ListOptions(ranker=False)
USERS = (1, 2, 40, 77, 116, LIKES_ONE)


@pytest.fixture(scope="module")
def artifacts_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts")
    publish(folder, trained()[1])
    return folder


@pytest.fixture(scope="module")
def recommender(artifacts_dir: Path) -> Recommender:
    (folder,) = (artifacts_dir / VERSIONS).iterdir()
    return load_recommender(load_version(folder))


@dataclass(frozen=True)
class Offline:
    """The lists of a version, computed from the raw data, the item factors and the text model that it stores."""

    users: IdMap
    items: IdMap
    ratings: dict[int, History]
    knowledge: Knowledge
    trees: lightgbm.Booster

    @classmethod
    def of(cls, dataset: Dataset, folder: Path) -> Offline:
        liked = positives(dataset.ratings)
        users, items = IdMap.of(dataset.ratings["user_id"]), IdMap.of(liked["movie_id"])
        history = build_history(dataset.ratings, users, items)
        knowledge = Knowledge(
            als=AlsConfig(factors=8),
            item_factors=np.load(folder / "als.npz")["item_factors"],
            popularity=np.bincount(items.index(liked["movie_id"]), minlength=len(items)).astype(np.float32),
            tables=build_tables(history, users, items, dataset.movies, dataset.tags),
        )
        by_user = {user_id: history.of(row) for row, user_id in enumerate(users.ids.tolist())}
        return cls(users, items, by_user, knowledge, lightgbm.Booster(model_file=folder / "ranker" / "model.txt"))

    def rank(self, history: History, moment: int, user: int = UNKNOWN) -> tuple[list[int], np.ndarray]:
        """Return all candidates of a request, best first, as movie ids, and their scores."""
        context = Context(self.knowledge, Query(history, moment, user))
        candidates = propose(context)
        scores = self.trees.predict(features.compute(context, candidates), raw_score=True).astype(np.float32)
        order = np.lexsort((candidates, -scores))
        return self.items.ids[candidates[order]].tolist(), scores[order]

    def rank_for(self, user_id: int, moment: int) -> tuple[list[int], np.ndarray]:
        return self.rank(self.ratings[user_id], moment, int(self.users.index(user_id)))


@pytest.fixture(scope="module")
def offline(artifacts_dir: Path) -> Offline:
    (folder,) = (artifacts_dir / VERSIONS).iterdir()
    return Offline.of(trained()[0], folder)


def movie_ids(recommender: Recommender, ranking: Ranking) -> list[int]:
    return recommender.model.items.ids[ranking.item_indices].tolist()


def assert_same(found: Ranking, expected: Ranking) -> None:
    assert found.source == expected.source
    assert found.item_indices.tolist() == expected.item_indices.tolist()
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)


def rated(user_id: int) -> set[int]:
    ratings = trained()[0].ratings
    return set(ratings.loc[ratings["user_id"] == user_id, "movie_id"])


def history_of(recommender: Recommender, user_id: int) -> History:
    """Return what a user rated, as plain arrays of one's own."""
    known = recommender.model.history.of(int(recommender.model.users.index(user_id)))
    return History(np.array(known.item_index), np.array(known.rating), np.array(known.timestamp))


def and_then(history: History, item: int, rating: float, timestamp: int) -> History:
    return History(
        np.append(history.item_index, item),
        np.append(history.rating, np.float32(rating)),
        np.append(history.timestamp, timestamp),
    )


NOBODY = History(np.empty(0, dtype=np.int32), np.empty(0, dtype=np.float32), np.empty(0, dtype=np.int64))


# --- what was served can be computed again from the raw data


def test_a_served_list_can_be_computed_again_from_what_the_log_says(
    artifacts_dir: Path, offline: Offline, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(Settings(artifacts_dir=artifacts_dir))
    user_ids = [*USERS, *range(3, 116, 8)]
    with serve(app) as get:
        for user_id in user_ids:
            caplog.clear()
            with caplog.at_level(logging.DEBUG, logger="uvicorn.error"):
                answer = get(f"/recommend?user_id={user_id}&k=100").json()
            assert answer["source"] == "ranker"
            (line,) = (record.getMessage() for record in caplog.records if "moment" in record.getMessage())
            logged = dict(re.findall(r"(\w+)=(\S+)", line))
            assert (int(logged["user_id"]), logged["version"]) == (user_id, answer["version"])
            assert (artifacts_dir / VERSIONS / logged["version"]).is_dir()
            listed, scores = offline.rank_for(int(logged["user_id"]), int(logged["moment"]))
            assert len(answer["results"]) == 100
            assert [result["movie_id"] for result in answer["results"]] == listed[:100]
            np.testing.assert_allclose([result["score"] for result in answer["results"]], scores[:100], rtol=1e-5)


def test_features_of_a_request_are_those_that_the_raw_data_give(recommender: Recommender, offline: Offline) -> None:
    """Beyond the list: every feature of every candidate, also those that no tree looks at."""
    model = recommender.model
    assert model.ranker is not None
    for user_id in (*USERS, *range(5, 116, 20)):
        user = int(model.users.index(user_id))
        factors = model.factors.user_factors[user], model.ranker.plain_factors[user]
        moment = recommender.recommend(user_id, 1).moment
        served = Context(recommender._knowledge, Query(model.history.of(user), moment, user, *factors))
        again = Context(offline.knowledge, Query(offline.ratings[user_id], moment, user))
        candidates = propose(again)
        np.testing.assert_array_equal(propose(served), candidates)
        found, expected = features.compute(served, candidates), features.compute(again, candidates)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_cold_start_can_be_computed_again(recommender: Recommender, offline: Offline) -> None:
    ratings = trained()[0].ratings
    last = int(ratings["timestamp"].max())
    gaps = [
        int(np.median(np.diff(history.timestamp))) for history in offline.ratings.values() if len(history.timestamp) > 1
    ]
    for liked in ([1], [3, 2, 1], [3, 404, *offline.items.ids[10:40].tolist()]):
        ranking = recommender.recommend_cold(liked, 50)
        assert ranking.moment == last + int(np.median(gaps))
        seeds = np.flatnonzero(np.isin(offline.items.ids, liked))
        history = History(seeds, np.full(len(seeds), 4.5, dtype=np.float32), np.full(len(seeds), last))
        listed, scores = offline.rank(history, ranking.moment)
        assert movie_ids(recommender, ranking) == listed[:50]
        np.testing.assert_allclose(ranking.scores, scores[:50], rtol=1e-5)


# --- which stage answers


def test_the_second_stage_answers_where_there_is_one_and_someone_likes_something(recommender: Recommender) -> None:
    for user_id in USERS:
        assert recommender.recommend(user_id, 5).source == "ranker"
        assert recommender.recommend(user_id, 5, FIRST_STAGE).source == "als"
    assert recommender.recommend_cold([1, 3], 5).source == "ranker"
    assert recommender.recommend_cold([1, 3], 5, FIRST_STAGE).source == "fold_in"
    for options in (PLAIN, FIRST_STAGE):
        assert recommender.recommend(LIKES_NOTHING, 5, options).source == "popular"
        assert recommender.recommend_cold([], 5, options).source == "popular"
        assert recommender.recommend_cold([404], 5, options).source == "popular"


def test_none_of_them_is_a_fallback(recommender: Recommender) -> None:
    assert not recommender.recommend(1, 5).ranker_failed
    assert not recommender.recommend(1, 5, FIRST_STAGE).ranker_failed
    assert not recommender.recommend(LIKES_NOTHING, 5).ranker_failed
    assert not recommender.recommend_cold([], 5).ranker_failed


def test_without_the_ranker_answers_are_those_of_a_version_without_one(recommender: Recommender) -> None:
    plain = Recommender(replace(recommender.model, ranker=None))
    for user_id in (*USERS, LIKES_NOTHING):
        assert_same(recommender.recommend(user_id, 20, FIRST_STAGE), plain.recommend(user_id, 20))
    for liked in ([1, 2], []):
        assert_same(recommender.recommend_cold(liked, 20, FIRST_STAGE), plain.recommend_cold(liked, 20))


def test_the_second_stage_orders_differently_from_the_first(recommender: Recommender) -> None:
    both = [
        (
            recommender.recommend(user_id, 10).item_indices.tolist(),
            recommender.recommend(user_id, 10, FIRST_STAGE).item_indices.tolist(),
        )
        for user_id in range(1, 117, 5)
    ]
    assert sum(one != other for one, other in both) > len(both) / 2


@pytest.mark.parametrize(
    ("options", "quick"),
    [
        (PLAIN, False),
        (FIRST_STAGE, True),
        (ListOptions(ranker=False, explain=True), False),
        (ListOptions(ranker=False, dials=Dials(novelty=0.1)), False),
        (ListOptions(ranker=False, dials=Dials(diversity=0.1)), False),
        (ListOptions(ranker=False, dials=Dials(calibrate=0.1)), False),
        (ListOptions(ranker=False, dials=Dials(0, 0, 0)), True),
    ],
)
def test_only_the_first_stage_alone_is_quick(recommender: Recommender, options: ListOptions, quick: bool) -> None:
    assert recommender.is_quick(options) == quick
    without = Recommender(replace(recommender.model, ranker=None))
    assert without.is_quick(options) == (quick or options == PLAIN)


# --- every list


@pytest.mark.parametrize("k", [1, 10, 99, 100])
@pytest.mark.parametrize("options", [PLAIN, FIRST_STAGE])
def test_lists_are_unrated_movies_in_the_order_of_their_scores(
    recommender: Recommender, k: int, options: ListOptions
) -> None:
    for user_id in (*range(1, 117, 10), LIKES_ONE, LIKES_NOTHING):
        ranking = recommender.recommend(user_id, k, options)
        listed = movie_ids(recommender, ranking)
        assert len(set(listed)) == len(listed) == len(ranking.scores) == k
        assert rated(user_id).isdisjoint(listed)
        assert_falling(ranking)
        assert listed == movie_ids(recommender, recommender.recommend(user_id, 100, options))[:k]


def assert_falling(ranking: Ranking) -> None:
    assert ranking.scores.dtype == np.float32
    assert ranking.item_indices.dtype == np.int64
    assert np.isfinite(ranking.scores).all()
    pairs = list(zip((-ranking.scores).tolist(), ranking.item_indices.tolist(), strict=True))
    assert pairs == sorted(pairs)


@pytest.mark.parametrize("liked", [[1], [1, 2, 3], list(range(1, 5_000))])
def test_new_people_get_unliked_movies_in_the_order_of_their_scores(recommender: Recommender, liked: list[int]) -> None:
    ranking = recommender.recommend_cold(liked, 100)
    listed = movie_ids(recommender, ranking)
    assert (ranking.source, len(set(listed))) == ("ranker", 100)
    assert set(liked).isdisjoint(listed)
    assert_falling(ranking)


def test_cold_start_depends_on_no_order_and_no_repetition(recommender: Recommender) -> None:
    liked = [1, 3, int(recommender.model.items.ids[50]), 2]
    expected = recommender.recommend_cold(liked, 100)
    for order in permutations(liked):
        found = recommender.recommend_cold([*order, order[0]], 100)
        assert found.item_indices.tolist() == expected.item_indices.tolist()
        assert found.scores.tolist() == expected.scores.tolist()
        assert found.moment == expected.moment


def test_nor_do_its_explanations(recommender: Recommender) -> None:
    liked = recommender.model.items.ids[::15].tolist()
    options = ListOptions(dials=Dials(0.2, 0.2, 0.2), explain=True)
    expected = recommender.recommend_cold(liked, 30, options)
    for seed in range(5):
        found = recommender.recommend_cold(np.random.default_rng(seed).permutation(liked).tolist(), 30, options)
        assert found.scores.tolist() == expected.scores.tolist()
        assert found.explanations == expected.explanations


def test_whoever_likes_everything_gets_nothing(recommender: Recommender) -> None:
    ranking = recommender.recommend_cold(recommender.model.items.ids.tolist(), 10)
    assert (ranking.item_indices.tolist(), ranking.scores.tolist()) == ([], [])
    assert not ranking.ranker_failed


def test_requests_at_the_same_time_get_what_they_get_alone(recommender: Recommender) -> None:
    user_ids = [*range(1, 117, 3)] * 3
    expected = {user_id: recommender.recommend(user_id, 20) for user_id in set(user_ids)}
    fresh = load_recommender(recommender.model)  # nothing is computed yet
    with ThreadPoolExecutor(8) as pool:
        for user_id, ranking in zip(user_ids, pool.map(lambda each: fresh.recommend(each, 20), user_ids), strict=True):
            assert ranking.item_indices.tolist() == expected[user_id].item_indices.tolist()
            assert ranking.scores.tolist() == expected[user_id].scores.tolist()


# --- the moment, and histories that are newer than the model


def test_without_a_history_the_moment_is_when_the_next_rating_is_to_be_expected(recommender: Recommender) -> None:
    ratings = trained()[0].ratings
    ratings = ratings[ratings["movie_id"].isin(recommender.model.items.ids)]
    for user_id in (1, 50, LIKES_ONE):
        times = np.sort(ratings.loc[ratings["user_id"] == user_id, "timestamp"])
        gap = int(np.median(np.diff(times))) if len(times) > 1 else 0
        assert recommender.recommend(user_id, 3).moment == times[-1] + gap
        assert recommender.recommend(user_id, 3, FIRST_STAGE).moment is None  # which depends on none


def test_with_a_history_the_moment_is_now(recommender: Recommender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_767_225_600.75)
    history = history_of(recommender, 1)
    assert recommender.recommend(1, 3, history=history).moment == 1_767_225_600
    assert recommender.recommend(1, 3, FIRST_STAGE, history).moment is None
    assert recommender.recommend(1, 3, history=NOBODY).moment is None  # the popular movies of any moment
    assert recommender.recommend(1, 3, history=history, moment=5).moment == 5


def test_a_moment_that_is_given_is_the_one(recommender: Recommender, offline: Offline) -> None:
    for moment in (recommender.recommend(1, 1).moment, 1_000_000_000, 1_400_000_000):
        ranking = recommender.recommend(1, 30, moment=moment)
        assert ranking.moment == moment
        listed, scores = offline.rank_for(1, moment)
        assert movie_ids(recommender, ranking) == listed[:30]
        np.testing.assert_allclose(ranking.scores, scores[:30], rtol=1e-5)


def test_the_trained_history_at_its_moment_gives_the_trained_list(recommender: Recommender) -> None:
    for user_id in (*USERS, LIKES_NOTHING):
        expected = recommender.recommend(user_id, 100)
        found = recommender.recommend(user_id, 100, history=history_of(recommender, user_id), moment=expected.moment)
        assert_same(found, expected)
        first = recommender.recommend(user_id, 100, FIRST_STAGE)
        found = recommender.recommend(user_id, 100, FIRST_STAGE, history_of(recommender, user_id))
        assert found.source == ("popular" if user_id == LIKES_NOTHING else "fold_in")
        assert_same(replace(found, source=first.source), first)


def test_an_empty_history_gives_popular_movies(recommender: Recommender) -> None:
    expected = recommender.recommend_cold([], 20)
    for options in (PLAIN, FIRST_STAGE, ListOptions(explain=True)):
        assert_same(recommender.recommend(1, 20, options, NOBODY), expected)
    assert expected.source == "popular"


@pytest.mark.parametrize("rating", [5.0, 4.0, 2.0])
def test_a_movie_rated_just_now_leaves_the_list_and_changes_it(
    recommender: Recommender, offline: Offline, rating: float
) -> None:
    for user_id in USERS:
        before = recommender.recommend(user_id, 100)
        item = int(before.item_indices[0])
        moment = before.moment + 60
        history = and_then(history_of(recommender, user_id), item, rating, before.moment)
        found = recommender.recommend(user_id, 100, history=history, moment=moment)
        assert found.source == "ranker"
        assert item not in found.item_indices
        assert found.item_indices.tolist() != before.item_indices[1:].tolist()
        raw = and_then(offline.ratings[user_id], item, rating, before.moment)
        listed, scores = offline.rank(raw, moment, int(offline.users.index(user_id)))
        assert movie_ids(recommender, found) == listed[:100]
        np.testing.assert_allclose(found.scores, scores[:100], rtol=1e-5)


def test_whoever_likes_their_first_movie_now_is_answered_by_the_second_stage(
    recommender: Recommender, offline: Offline
) -> None:
    item, now = 7, 1_700_000_000  # later than all that the model knows
    history = and_then(history_of(recommender, LIKES_NOTHING), item, 4.5, now)
    found = recommender.recommend(LIKES_NOTHING, 50, history=history, moment=now + 1)
    raw = and_then(offline.ratings[LIKES_NOTHING], item, 4.5, now)
    listed, scores = offline.rank(raw, now + 1, int(offline.users.index(LIKES_NOTHING)))
    assert found.source == "ranker"
    assert movie_ids(recommender, found) == listed[:50]
    np.testing.assert_allclose(found.scores, scores[:50], rtol=1e-5)


def test_a_history_of_dislikes_alone_gives_popular_movies_without_them(recommender: Recommender) -> None:
    popular = recommender.recommend_cold([], 3)
    history = and_then(NOBODY, int(popular.item_indices[0]), 2.0, 1_700_000_000)
    found = recommender.recommend(1, 2, history=history)
    assert found.source == "popular"
    assert found.item_indices.tolist() == popular.item_indices[1:].tolist()


def test_histories_that_are_given_are_not_changed_and_change_nothing(recommender: Recommender) -> None:
    before = recommender.recommend(2, 20)
    history = history_of(recommender, 2)
    for array in (history.item_index, history.rating, history.timestamp):
        array.flags.writeable = False
    recommender.recommend(2, 20, ListOptions(dials=Dials(0.3, 0.3, 0.3), explain=True), history)
    assert_same(recommender.recommend(2, 20), before)


# --- dials


def requests(recommender: Recommender, options: ListOptions, k: int) -> Iterator[Ranking]:
    """Yield a list of every source."""
    without = replace(options, ranker=False)
    yield recommender.recommend(1, k, options)
    yield recommender.recommend_cold([1, 2, 3], k, options)
    yield recommender.recommend(1, k, without)
    yield recommender.recommend_cold([1, 2, 3], k, without)
    yield recommender.recommend(LIKES_NOTHING, k, options)
    yield recommender.recommend_cold([], k, options)


def test_every_source_is_asked_for(recommender: Recommender) -> None:
    found = [ranking.source for ranking in requests(recommender, PLAIN, 1)]
    assert found == ["ranker", "ranker", "als", "fold_in", "popular", "popular"]


@pytest.mark.parametrize("dial", ["novelty", "diversity", "calibrate"])
def test_a_dial_chooses_from_the_best_and_changes_no_score(recommender: Recommender, dial: str) -> None:
    pools = list(requests(recommender, PLAIN, 300))
    n_moved = 0
    for value in (0.2, 1.0):
        options = ListOptions(dials=Dials(**{dial: value}))
        for k in (10, 100):
            for found, pool in zip(requests(recommender, options, k), pools, strict=True):
                assert (found.source, found.moment) == (pool.source, pool.moment)
                assert len(set(found.item_indices.tolist())) == len(found.item_indices) == k
                score_of = dict(zip(pool.item_indices.tolist(), pool.scores.tolist(), strict=True))
                assert found.scores.tolist() == [score_of[item] for item in found.item_indices.tolist()]
                n_moved += found.item_indices.tolist() != pool.item_indices[:k].tolist()
    assert n_moved > 10


def test_with_a_dial_the_whole_pool_is_a_permutation_of_it(recommender: Recommender) -> None:
    pools = list(requests(recommender, PLAIN, 300))
    options = ListOptions(dials=Dials(0.5, 0.2, 0.1))
    for found, pool in zip(requests(recommender, options, 300), pools, strict=True):
        assert sorted(found.item_indices.tolist()) == sorted(pool.item_indices.tolist())


def test_with_a_dial_too_a_short_list_is_the_beginning_of_a_long_one(recommender: Recommender) -> None:
    """The few are chosen from no fewer than the many."""
    options = ListOptions(dials=Dials(0.9, 0.3, 0.1))
    for short, long in zip(requests(recommender, options, 10), requests(recommender, options, 300), strict=True):
        assert short.item_indices.tolist() == long.item_indices[:10].tolist()


def test_dials_at_0_leave_the_order(recommender: Recommender) -> None:
    options = ListOptions(dials=Dials(0.0, 0.0, 0.0))
    for found, expected in zip(requests(recommender, options, 50), requests(recommender, PLAIN, 50), strict=True):
        assert_same(found, expected)


def test_dials_do_what_they_are_named_after(recommender: Recommender) -> None:
    model = recommender.model
    for plain, novel in zip(
        requests(recommender, PLAIN, 10), requests(recommender, ListOptions(dials=Dials(novelty=1.0)), 10), strict=True
    ):
        assert model.movies.popularity[novel.item_indices].sum() < model.movies.popularity[plain.item_indices].sum()
    for plain, diverse in zip(
        requests(recommender, PLAIN, 10),
        requests(recommender, ListOptions(dials=Dials(diversity=1.0)), 10),
        strict=True,
    ):
        assert genre_overlap(model, diverse) < genre_overlap(model, plain)


def genre_overlap(model: LoadedModel, ranking: Ranking) -> float:
    genres = [set(model.movies[item].genres) for item in ranking.item_indices.tolist()]
    pairs = [(one, other) for place, one in enumerate(genres) for other in genres[place + 1 :]]
    return float(np.mean([len(one & other) / max(len(one | other), 1) for one, other in pairs]))


# --- when the second stage fails


def test_a_ranker_that_fails_is_replaced_by_the_first_stage(
    recommender: Recommender, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_args: object) -> None:
        raise MemoryError("too many trees")

    options = ListOptions(dials=Dials(diversity=0.2), explain=True)
    cases: Sequence[ListOptions] = (PLAIN, options)
    expected = [list(requests(recommender, replace(each, ranker=False), 20)) for each in cases]
    monkeypatch.setattr(Ranker, "rank", fail)
    for each, lists in zip(cases, expected, strict=True):
        caplog.clear()
        found = list(requests(recommender, each, 20))
        assert [ranking.ranker_failed for ranking in found] == [True, True, False, False, False, False]
        assert [ranking.source for ranking in found] == ["als", "fold_in", "als", "fold_in", "popular", "popular"]
        for one, other in zip(found, lists, strict=True):
            assert_same(one, other)
            assert one.explanations == other.explanations
        assert sum("too many trees" in record.exc_text for record in caplog.records if record.exc_text) == 2
        assert all(recommender.model.version in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("text", ["", "not a model\n", "tree\nnum_class=1\n"])
def test_trees_that_cannot_be_read_are_replaced_by_the_first_stage(
    recommender: Recommender, artifacts_dir: Path, tmp_path: Path, text: str
) -> None:
    (folder,) = (artifacts_dir / VERSIONS).iterdir()
    forged = forge(folder, tmp_path, lambda copy: (copy / "ranker" / "model.txt").write_text(text))
    broken = load_recommender(load_version(forged))
    assert broken.ranker is None
    assert broken.model.ranker is not None
    assert broken.is_quick(PLAIN)
    found = list(requests(broken, PLAIN, 20))
    assert [ranking.ranker_failed for ranking in found] == [True, True, False, False, False, False]
    expected = requests(recommender, FIRST_STAGE, 20)
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)


def test_answering_does_not_change_the_model(recommender: Recommender) -> None:
    first = list(requests(recommender, PLAIN, 50))
    for options in (ListOptions(dials=Dials(0.5, 0.5, 0.5), explain=True), FIRST_STAGE):
        list(requests(recommender, options, 50))
    recommender.recommend(1, 5, history=NOBODY)
    for found, expected in zip(requests(recommender, PLAIN, 50), first, strict=True):
        assert found.scores.tolist() == expected.scores.tolist()
        assert found.item_indices.tolist() == expected.item_indices.tolist()


def test_reasons_that_fail_cost_neither_the_list_nor_its_liked_movies(
    recommender: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = recommender.recommend(1, 5, ListOptions(explain=True))

    def fail(*_arguments: object) -> None:
        raise RuntimeError("no contributions")

    monkeypatch.setattr(Ranker, "contributions", fail)
    found = recommender.recommend(1, 5, ListOptions(explain=True))
    assert found.item_indices.tolist() == expected.item_indices.tolist()
    assert found.ranker_failed
    assert found.explanations is not None
    assert expected.explanations is not None
    assert [each.because for each in found.explanations] == [each.because for each in expected.explanations]
    assert not any(each.reasons for each in found.explanations)
