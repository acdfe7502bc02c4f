"""One request as both stages see it, and which movies are worth a second look."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from app import candidates, features
from app.als import AlsConfig, Factors, confidence, learn
from app.candidates import Context, Query, propose, spread, unit_rows
from app.core import UNKNOWN
from app.fold_in import gramian, solve_user_factors
from app.history import History, positives_of
from app.protocols import RankingTask
from app.ranking import EXCLUDED
from app.tables import Ragged
from tests.worlds import YEAR, World, random_world, real_world, some_requests

SEEDS = range(15)
LATE = 2_000_000_000  # after every rating of a random world


@pytest.fixture(scope="module")
def real(movielens_dir: Path) -> tuple[World, RankingTask, Factors]:
    return real_world(movielens_dir)


@pytest.fixture(scope="module")
def real_requests(real: tuple[World, RankingTask, Factors]) -> list[Context]:
    world, task, _ = real
    pairs = list(zip(task.target_users.tolist(), task.moments.tolist(), strict=True))[::40]
    return [context for context in (world.ask(*pair) for pair in pairs) if len(context.liked)]


def score_slowly(context: Context) -> np.ndarray:
    """The recency-weighted ALS score of every movie, by the equation, in float64; −inf where rated."""
    als, y = context.knowledge.als, context.knowledge.item_factors.astype(np.float64)
    history = context.query.history
    rated = list(zip(history.item_index.tolist(), history.rating.tolist(), history.timestamp.tolist(), strict=True))
    liked = [(item, rating, time) for item, rating, time in rated if rating >= 4]
    c, p = np.ones(len(y)), np.zeros(len(y))
    for item, rating, time in liked:
        n_later = sum(other > time for *_, other in liked)
        c[item] = als.alpha * (1 + als.grading * (2 * (rating - 4) - 1)) * 0.5 ** (n_later / als.half_life)
        p[item] = 1
    x = np.linalg.solve(y.T @ (y * c[:, None]) + als.regularization * np.eye(y.shape[1]), y.T @ (c * p))
    scores = y @ x
    scores[[item for item, *_ in rated]] = -np.inf
    return scores


def spread_slowly(context: Context) -> np.ndarray:
    """Σ ½^(n/3) around(rated, movie) over the last ten ratings of every movie; −inf where rated."""
    table, history = context.knowledge.tables.around, context.query.history
    times = history.timestamp.tolist()
    scores = np.zeros(context.knowledge.tables.n_items)
    for item, time in zip(history.item_index.tolist(), times, strict=True):
        n_later = sum(other > time for other in times)
        if n_later < 10:
            own = slice(table.indptr[item], table.indptr[item + 1])
            scores[table.index[own]] += 0.5 ** (n_later / 3) * table.value[own].astype(np.float64)
    scores[history.item_index] = -np.inf
    return scores


# What is proposed


def check_proposed(context: Context) -> None:
    found = propose(context)
    assert found.dtype == np.int64
    assert (np.diff(found) > 0).all()  # rising, each once
    assert not set(found.tolist()) & set(context.query.history.item_index.tolist())
    als, around = score_slowly(context), spread_slowly(context)
    by_als = [item for item in np.argsort(-als, kind="stable").tolist() if als[item] > -np.inf]
    by_als = by_als[: candidates.N_FROM_ALS]
    assert set(by_als) <= set(found.tolist())
    others = sorted(set(found.tolist()) - set(by_als))
    assert (around[others] > 0).all()
    assert len(others) <= candidates.N_FROM_AROUND
    # Of the other source the best are there, those aside that differ by rounding only.
    border = np.sort(around)[::-1][candidates.N_FROM_AROUND - 1] if len(around) > candidates.N_FROM_AROUND else 0
    assert set(np.flatnonzero(around > max(border, 0) * (1 + 1e-5)).tolist()) <= set(found.tolist())
    assert (around[others] >= border * (1 - 1e-5)).all()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("n", [1, 3, 7])
def test_best_of_both_sources_are_proposed_and_nothing_that_was_rated(
    monkeypatch: pytest.MonkeyPatch, seed: int, n: int
) -> None:
    monkeypatch.setattr(candidates, "N_FROM_ALS", n)
    monkeypatch.setattr(candidates, "N_FROM_AROUND", n)
    for context in some_requests(random_world(seed), seed, 3):
        check_proposed(context)


def test_best_of_both_sources_are_proposed_on_the_real_data(real_requests: list[Context]) -> None:
    assert len(real_requests) > 10
    for context in real_requests:
        check_proposed(context)
        assert 150 <= len(propose(context)) <= 300


@pytest.mark.parametrize("seed", SEEDS)
def test_small_catalogue_is_proposed_whole_less_what_was_rated(seed: int) -> None:
    for context in some_requests(random_world(seed), seed, 3):
        everything = set(range(36)) - set(context.query.history.item_index.tolist())
        assert propose(context).tolist() == sorted(everything)


def test_who_rated_everything_is_proposed_nothing() -> None:
    world = random_world(0)
    history = History(np.arange(36), np.full(36, 4, dtype=np.float32), np.arange(36))
    assert propose(Context(world.knowledge, Query(history, LATE))).tolist() == []


def test_movies_without_neighbours_are_proposed_by_the_scores_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "N_FROM_ALS", 2)
    monkeypatch.setattr(candidates, "N_FROM_AROUND", 30)
    world = random_world(1)
    nothing = Ragged(np.zeros(37, dtype=np.int64), np.array([], dtype=np.int32), np.array([], dtype=np.float32))
    lonely = replace(world.knowledge, tables=replace(world.knowledge.tables, around=nothing))
    (context,) = some_requests(world, 1, 1)
    assert len(propose(Context(lonely, context.query))) == 2
    assert len(propose(context)) > 2


@pytest.mark.parametrize(
    ("scores", "n", "best"),
    [
        ([3, 1, 2], 2, {0, 2}),
        ([1, 2, 1, 1], 3, {0, 1, 2}),  # equal at the border: the first
        ([1, 1, 1, 1], 1, {0}),
        ([1, 2], 2, {0, 1}),
        ([1, 2], 5, {0, 1}),
        ([-np.inf, 2, -np.inf, 1], 3, {1, 3}),
        ([-np.inf, 2, -np.inf], 7, {1}),
        ([-np.inf, -np.inf, -np.inf], 2, set()),
        ([-1, -3, -2], 1, {0}),
    ],
)
def test_best_are_the_highest_that_are_not_excluded(scores: list[float], n: int, best: set[int]) -> None:
    found = candidates._best(np.array(scores, dtype=np.float32), n).tolist()
    assert (set(found), len(found)) == (best, len(best))


# The scores


@pytest.mark.parametrize("seed", SEEDS)
def test_scores_are_those_of_the_equations_and_nothing_rated_has_one(seed: int) -> None:
    for context in some_requests(random_world(seed), seed, 3):
        for found, slow in (
            (context.als_scores, score_slowly(context)),
            (context.around_scores, spread_slowly(context)),
        ):
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, slow, rtol=1e-4, atol=1e-5)
            assert (found[context.query.history.item_index] == EXCLUDED).all()
        assert (context.plain_scores == EXCLUDED).sum() == len(context.query.history)


@pytest.mark.parametrize("seed", SEEDS)
def test_contributions_sum_to_the_scores(seed: int) -> None:
    for context in some_requests(random_world(seed), seed, 2):
        items = propose(context)
        found = context.contributions(items)
        assert found.shape == (len(items), len(context.liked))
        np.testing.assert_allclose(found.sum(axis=1), context.als_scores[items], rtol=1e-4, atol=1e-5)


def test_spread_weighs_the_rows_and_adds_them_up() -> None:
    table = Ragged(np.array([0, 2, 2, 3]), np.array([1, 2, 0]), np.array([0.5, 1.5, 4], dtype=np.float32))
    found = spread(table, np.array([0, 2, 0, 1]), np.array([1.0, 0.25, 2.0, 9.0]))
    assert (found.tolist(), found.dtype) == ([1.0, 1.5, 4.5], np.float32)
    assert spread(table, np.array([], dtype=np.int64), np.array([])).tolist() == [0, 0, 0]


def test_directions_have_length_one_and_zeros_stay() -> None:
    found = unit_rows(np.array([[3, 4], [0, 0], [-2, 0]], dtype=np.float32))
    np.testing.assert_allclose(found, [[0.6, 0.8], [0, 0], [-1, 0]], rtol=1e-6)
    assert found.dtype == np.float32


# The user's factor


def compare_factors(world: World, factors: Factors, config: AlsConfig) -> None:
    knowledge = replace(world.knowledge, als=config, item_factors=factors.item_factors)
    learned = positives_of(world.history, len(world.items), 4.0)
    plain = solve_user_factors(
        factors.item_factors, learned.with_values(confidence(learned, config)), config.regularization
    )
    for user in range(len(world.users)):
        context = Context(knowledge, Query(world.history.of(user), LATE, user))
        np.testing.assert_allclose(context.user_factor, factors.user_factors[user], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(context.plain_factor, plain[user], rtol=1e-5, atol=1e-7)
        assert context.user_factor.dtype == context.plain_factor.dtype == np.float32


@pytest.mark.parametrize("grading", [0.0, 0.5])
@pytest.mark.parametrize("half_life", [1.0, 2.5])
def test_factor_of_a_history_is_the_one_that_was_learned_from_it(grading: float, half_life: float) -> None:
    config = AlsConfig(factors=5, regularization=2.0, iterations=3, grading=grading, half_life=half_life)
    for seed in range(4):
        world = random_world(seed)
        compare_factors(world, learn(positives_of(world.history, 36, 4.0), config), config)


def test_factor_of_a_real_history_is_the_one_that_was_learned_from_it(
    real: tuple[World, RankingTask, Factors],
) -> None:
    world, _, factors = real
    for user in range(0, len(world.users), 7):
        context = Context(world.knowledge, Query(world.history.of(user), LATE, user))
        np.testing.assert_allclose(context.user_factor, factors.user_factors[user], rtol=1e-5, atol=1e-7)


def test_factor_of_a_real_history_has_the_bits_of_the_one_that_was_learned_from_it(
    real: tuple[World, RankingTask, Factors],
) -> None:
    # So that a list does not change with where its factor comes from: stored, or solved for a fresh history.
    world, _, factors = real
    contexts = [Context(world.knowledge, Query(world.history.of(user), LATE, user)) for user in range(len(world.users))]
    same = [
        context.user_factor.tobytes() == factors.user_factors[row].tobytes() for row, context in enumerate(contexts)
    ]
    assert sum(same) == len(same) == 608


def test_without_recency_both_factors_are_the_same() -> None:
    world = random_world(2)
    timeless = replace(world.knowledge, als=replace(world.knowledge.als, half_life=0.0))
    (context,) = some_requests(world, 2, 1)
    one = Context(timeless, context.query)
    assert one.user_factor.tobytes() == one.plain_factor.tobytes() == context.plain_factor.tobytes()
    assert context.user_factor.tobytes() != context.plain_factor.tobytes()


def test_factors_that_were_found_before_are_used_as_they_are() -> None:
    world = random_world(3)
    (context,) = some_requests(world, 3, 1)
    recent, plain = np.arange(4, dtype=np.float32), np.arange(4, 8, dtype=np.float32)
    for factor in (recent, plain):
        factor.flags.writeable = False  # as a mapped file is
    told = Context(world.knowledge, replace(context.query, recent_factor=recent, plain_factor=plain))
    assert told.user_factor is recent
    assert told.plain_factor is plain
    unrated = propose(told)
    np.testing.assert_allclose(told.als_scores[unrated], (world.knowledge.item_factors @ recent)[unrated], rtol=1e-6)
    np.testing.assert_allclose(told.plain_scores[unrated], (world.knowledge.item_factors @ plain)[unrated], rtol=1e-6)
    half = Context(world.knowledge, replace(context.query, plain_factor=plain))
    assert half.user_factor.tobytes() == context.user_factor.tobytes()


def test_who_likes_nothing_has_the_factor_zero() -> None:
    world = random_world(4)
    history = History(np.array([3, 5]), np.array([1, 3.5], dtype=np.float32), np.array([1, 2]))
    context = Context(world.knowledge, Query(history, 3))
    assert context.user_factor.tolist() == context.plain_factor.tolist() == [0, 0, 0, 0]
    assert len(context.liked) == 0


# Who asks, and when


def test_liked_and_recent_are_chosen_by_rating_and_by_later_ratings() -> None:
    ratings = [4, 4, 2, 5, 4, 1, 4, 4, 4, 4, 4, 4, 4, 4.5]
    times = [1, 2, 3, 3, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    history = History(np.arange(14), np.array(ratings, dtype=np.float32), np.array(times))
    context = Context(random_world(5).knowledge, Query(history, 13))
    assert context.liked.item_index.tolist() == [0, 1, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13]
    # Nine ratings are later than the three of second 3, so all of those are in, and nothing before them.
    assert context.recent.item_index.tolist() == list(range(2, 14))
    weights = [0.5 ** (n / 3) for n in (9, 9, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)]
    assert context.recent_weight.tolist() == pytest.approx(weights)
    # Eight positives are later than the two of that second, and ten than what is before it.
    assert context.recent_liked.item_index.tolist() == [3, 4, *range(6, 14)]


def test_recent_positives_may_be_older_than_the_recent_ratings() -> None:
    ratings = [5, 4.5, *[1] * 12, 4]
    history = History(np.arange(15), np.array(ratings, dtype=np.float32), np.arange(15))
    context = Context(random_world(5).knowledge, Query(history, 15))
    assert context.recent.item_index.tolist() == list(range(5, 15))
    assert context.recent_liked.item_index.tolist() == [0, 1, 14]


@pytest.mark.parametrize(("learned", "liked"), [([0, 1, 3], [0, 3]), ([], []), ([1], []), ([0, 2, 3, 9], [0, 2, 3])])
def test_positives_that_the_factors_were_not_solved_from_do_not_count_as_liked(
    learned: list[int], liked: list[int]
) -> None:
    history = History(np.arange(4), np.array([4, 2, 5, 4.5], dtype=np.float32), np.arange(4))
    query = Query(history, 9, learned=np.array(learned, dtype=np.int64))
    context = Context(random_world(5).knowledge, query)
    assert context.liked.item_index.tolist() == liked
    assert len(context.confidence) == len(liked)
    assert context.recent.item_index.tolist() == [0, 1, 2, 3]
    assert (context.als_scores == EXCLUDED).sum() == 4  # rated all the same


def test_default_of_a_query_is_nobody_without_factors() -> None:
    query = Query(History(np.array([0]), np.array([4], dtype=np.float32), np.array([1])), 2)
    assert (query.user_index, query.recent_factor, query.plain_factor, query.learned) == (UNKNOWN, None, None, None)


def test_moment_after_everything_that_is_known_is_the_last_known_one() -> None:
    world = random_world(6)
    last = int(world.ratings["timestamp"].max())
    history = world.history.of(0)

    def known(moment: int) -> int:
        return Context(world.knowledge, Query(history, moment)).known_moment

    assert [known(moment) for moment in (last - YEAR, last - 1, last)] == [last - YEAR, last - 1, last]
    assert known(last + 10) == known(last + 10 * YEAR) == known(2**62)
    assert last <= known(2**62) <= last + 1
    assert type(known(last)) is type(known(2**62)) is int


# Ties


def shuffle_ties(history: History, rng: np.random.Generator) -> History:
    order = np.lexsort((rng.random(len(history)), history.timestamp))
    return History(history.item_index[order], history.rating[order], history.timestamp[order])


def check_ties(contexts: list[Context]) -> None:
    n_moved = 0
    for number, context in enumerate(contexts):
        items = propose(context)
        before = features.compute(context, items)
        shuffled = shuffle_ties(context.query.history, np.random.default_rng(number))
        n_moved += int((shuffled.item_index != context.query.history.item_index).sum())
        other = Context(context.knowledge, replace(context.query, history=shuffled))
        assert propose(other).tolist() == items.tolist()
        np.testing.assert_allclose(features.compute(other, items), before, rtol=2e-6, atol=1e-6)
        assert other.user_factor.tobytes() == context.user_factor.tobytes()
    assert n_moved > 10


def test_order_of_what_was_rated_in_one_second_changes_no_feature() -> None:
    check_ties([context for seed in SEEDS for context in some_requests(random_world(seed), seed, 3)])


def test_order_of_what_was_rated_in_one_second_changes_no_feature_of_the_real_data(
    real_requests: list[Context],
) -> None:
    check_ties(real_requests)


def test_nothing_that_is_asked_for_changes_what_is_known() -> None:
    world = random_world(7)
    (context,) = some_requests(world, 7, 1)
    arrays: Callable[[], list[bytes]] = lambda: [  # noqa: E731
        *(array.tobytes() for array in world.knowledge.tables.to_arrays().values()),
        world.knowledge.item_factors.tobytes(),
        *(getattr(context.query.history, field.name).tobytes() for field in fields(History)),
    ]
    before = arrays()
    features.compute(context, propose(context))
    context.contributions(np.arange(3))
    assert arrays() == before
    assert world.knowledge.gramian.tobytes() == gramian(world.knowledge.item_factors).tobytes()
