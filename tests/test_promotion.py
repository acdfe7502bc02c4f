"""The promotion gate: its statistics against theory and other people's code, its checks, and each of its rules."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests
from threadpoolctl import threadpool_limits

from app import core, promotion, protocols, second_stage
from app.als import AlsConfig, Factors, learn, side_by_side
from app.core import Dataset
from app.datasets.locate import Source
from app.datasets.synthetic import synthesize
from app.errors import ArtifactError, DataError
from app.evaluation import als_scorer, comparison
from app.evaluation.comparison import (
    ALL_USERS,
    MANY,
    METRICS,
    N_RESAMPLES,
    TOP,
    Comparison,
    HeldOut,
    compare,
    holm,
    p_worse,
)
from app.evaluation.lists import find_hits, rank
from app.promotion import FEW, Candidate, Incumbent, Promote, Verdict, find_faults, judge, refit
from app.protocols import RankingTask
from app.ranker import RankerConfig
from app.ranking import PADDING
from app.registry import publish
from tests.models import make_model
from tests.tasks import make_task, validation_task

SEED = 42
QUICK = AlsConfig(factors=8, iterations=3, random_state=7, num_threads=1)
TREES = RankerConfig(n_stages=1, num_iterations=5)
GROUPS = (ALL_USERS, *(f"users with {name} histories" for name in ("short", "middle", "long")))


def changes(n_better: int, n_worse: int, n_same: int = 0) -> NDArray[np.float64]:
    """Differences of a metric that is 0 or 1."""
    return np.repeat([1.0, -1.0, 0.0], [n_better, n_worse, n_same])


# p of one comparison


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([-1.0], 1 / 2),
        ([1.0], 1),
        ([-1.0, -1.0, -1.0], 1 / 8),
        ([-1.0, -1.0, -1.0, -1.0, 1.0], 6 / 32),  # at most one of five is better: 1 + 5 ways
        ([-1.0, 1.0], 3 / 4),
        ([-2.0, 1.0], 2 / 4),  # of −3, −1, 1, 3 two are −1 or less
        ([-3.0, 1.0, 1.0], 4 / 8),  # of −5, −3, −3, −1, 1, 3, 3, 5 four are −1 or less
        ([-0.3, -0.2, -0.1, 0.6], 9 / 16),  # no change on the whole, but for rounding
        ([0.0, 0.0], 1),
        ([], 1),
    ],
)
def test_p_is_the_share_of_signs_with_a_sum_as_low(differences: list[float], p: float) -> None:
    assert p_worse(np.array(differences), SEED) == p


@pytest.mark.parametrize(("n_better", "n_worse"), [(0, 7), (2, 9), (5, 5), (9, 2), (6, 7)])
def test_p_of_hits_gained_and_lost_is_that_of_the_sign_test(n_better: int, n_worse: int) -> None:
    expected = stats.binomtest(n_better, n_better + n_worse, alternative="less").pvalue
    assert p_worse(changes(n_better, n_worse), SEED) == pytest.approx(expected, rel=1e-12)
    assert p_worse(0.1 * changes(n_better, n_worse), SEED) == pytest.approx(expected, rel=1e-12)  # sums are rounded


@pytest.mark.parametrize(("n_better", "n_worse"), [(3, 14), (20, 35), (40, 38), (300, 360)])
def test_p_from_resamples_is_that_of_the_sign_test_up_to_chance(n_better: int, n_worse: int) -> None:
    expected = stats.binomtest(n_better, n_better + n_worse, alternative="less").pvalue
    error = math.sqrt(expected * (1 - expected) / N_RESAMPLES)
    assert p_worse(changes(n_better, n_worse), SEED) == pytest.approx(expected, abs=4 * error + 1 / N_RESAMPLES)


@pytest.mark.parametrize("n_users", [12, 90])
def test_p_of_changes_of_any_size_agrees_with_the_permutation_test_of_scipy(n_users: int) -> None:
    differences = np.random.default_rng(1).normal(-0.1, 1, n_users)
    theirs = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", alternative="less", rng=np.random.default_rng(0)
    ).pvalue
    # Below 14 users both try all signs; above, two samples of 9,999 of them differ by √2 · √(p (1 − p) / 9,999).
    assert p_worse(differences, SEED) == pytest.approx(theirs, rel=1e-12 if n_users < 14 else 0.2)


def test_users_for_whom_nothing_changes_change_nothing() -> None:
    for n_better, n_worse in ((2, 8), (20, 40)):
        found = {p_worse(changes(n_better, n_worse, n_same), SEED) for n_same in (0, 1, 10_000)}
        assert len(found) == 1


def test_p_of_many_changes_is_that_of_a_t_test() -> None:
    rng = np.random.default_rng(3)
    for shift in (-0.03, -0.01, 0.0, 0.02):
        differences = rng.normal(shift, 1, MANY + 1)
        expected = stats.ttest_1samp(differences, 0, alternative="less").pvalue
        assert p_worse(differences, SEED) == pytest.approx(expected, rel=0.01)


def test_p_does_not_jump_where_resampling_ends() -> None:
    for differences in (changes(2_450, 2_550), changes(2_510, 2_490), np.random.default_rng(4).normal(-0.02, 1, MANY)):
        assert len(differences) == MANY
        resampled, normal = (p_worse(each, SEED) for each in (differences, np.append(differences, 1e-9)))
        error = math.sqrt(normal * (1 - normal) / N_RESAMPLES)
        assert resampled == pytest.approx(normal, abs=4 * error + 0.01)  # sums of ± 1 are steps of .006 here


def test_all_of_many_users_worse_by_the_same_is_worse_and_no_warning() -> None:
    assert p_worse(np.full(MANY + 1, -1.0), SEED) == 0
    assert p_worse(np.full(MANY + 1, 0.5), SEED) == 1


def test_p_from_resamples_is_never_zero() -> None:
    assert p_worse(changes(0, 200), SEED) == 1 / (N_RESAMPLES + 1)


def test_p_is_seeded() -> None:
    differences = np.random.default_rng(0).normal(-0.1, 1, 50)
    first, again, other = (p_worse(differences, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert first == pytest.approx(other, abs=0.03)


def test_number_of_blas_threads_changes_no_p() -> None:
    differences = np.random.default_rng(0).choice([-0.63, -0.5, -0.1, 0.1, 0.5, 0.63], 400)
    found = set()
    for n_threads in (1, 2):
        with threadpool_limits(n_threads, "blas"):
            found.add(p_worse(differences, SEED))
    assert len(found) == 1


# Holm


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx(
        [0.03, 0.06, 0.06, 0.02]
    )  # .01 · 3, as .03, .03 · 2, .005 · 4
    assert holm([0.2]) == [0.2]
    assert holm([0.5, 0.6]) == [1, 1]
    assert holm([]) == []


@pytest.mark.slow
def test_holm_agrees_with_statsmodels() -> None:
    rng = np.random.default_rng(2)
    for n in (1, 2, 3, 8, 8, 8, 12):
        for p_values in (rng.random(n), rng.random(n) ** 6, rng.choice([0, 0.004, 0.011, 0.03, 1], n)):
            rejected, adjusted, *_ = multipletests(p_values, alpha=0.05, method="holm")
            assert holm(p_values) == pytest.approx(adjusted.tolist(), rel=1e-12)
            assert [p < 0.05 for p in holm(p_values)] == rejected.tolist()


# Comparisons of made lists


def made(task: RankingTask, ranks: Sequence[int] | NDArray[np.int64]) -> HeldOut:
    """Lists in which each user's held-out movie 0 has this rank; 0 where it is missing."""
    lists = np.tile(np.arange(1, TOP + 1, dtype=np.int32), (task.n_targets, 1))
    found = np.flatnonzero(ranks)
    lists[found, np.asarray(ranks)[found] - 1] = 0
    return HeldOut(task, lists)


@cache
def made_task(n_users: int = 600) -> RankingTask:
    """Everybody's held-out movie is 0; a third of the users has a short history, a third a long one."""
    return make_task(TOP + 1, [[0]] * n_users, n_history=np.arange(n_users))


def draw_ranks(rng: np.random.Generator, n_users: int, share: float = 0.15) -> NDArray[np.int64]:
    """Draw ranks such that this share of the users has a hit."""
    return np.where(rng.random(n_users) < share, rng.integers(1, TOP + 1, n_users), 0)


def lose(ranks: NDArray[np.int64], share: float, rng: np.random.Generator) -> NDArray[np.int64]:
    return np.where(rng.random(len(ranks)) < share, 0, ranks)


def test_both_metrics_are_compared_for_all_users_and_by_history() -> None:
    task = make_task(TOP + 1, [[0]] * 6, n_history=np.array([9, 1, 5, 5, 1, 9]))
    candidate, active = made(task, [1, 1, 0, 3, 0, 1]), made(task, [1, 0, 0, 1, 1, 2])
    found = {(of.metric, of.users): of for of in compare(candidate, active, SEED)}
    assert list(found) == [(metric, users) for metric in METRICS for users in GROUPS]
    assert [of.n_users for of in found.values()] == [6, 2, 2, 2] * 2
    third, second = 1 / math.log2(4), 1 / math.log2(3)  # the gain of ranks 3 and 2
    of_middle = found["ndcg@10", "users with middle histories"]
    assert (of_middle.candidate, of_middle.active) == pytest.approx((third / 2, 1 / 2))
    assert of_middle.difference == pytest.approx((third - 1) / 2)
    assert of_middle.p_value == 1 / 2  # one user's rank has changed
    of_all = found["ndcg@10", ALL_USERS]
    assert of_all.difference == pytest.approx((third - 1 + 1 - second) / 6)
    assert found["recall@10", ALL_USERS].candidate == pytest.approx(4 / 6)
    assert found["recall@10", "users with short histories"].p_value == 3 / 4  # one hit gained, one lost
    assert found["recall@10", "users with long histories"].p_value == 1  # none changed
    assert [of.p_holm for of in found.values()] == holm([of.p_value for of in found.values()])
    assert not any(of.is_worse for of in found.values())


def test_gain_is_not_refused_and_the_same_in_reverse_is() -> None:
    rng = np.random.default_rng(0)
    ranks = draw_ranks(rng, 600)
    good, bad = made(made_task(), ranks), made(made_task(), lose(ranks, 0.5, rng))
    assert not any(of.is_worse for of in compare(good, bad, SEED))
    assert {of.users for of in compare(bad, good, SEED) if of.is_worse} == set(GROUPS)


def test_loss_of_one_group_alone_is_seen() -> None:
    """A gain elsewhere hides it in the mean over all users."""
    rng = np.random.default_rng(1)
    ranks = draw_ranks(rng, 600, 0.3)
    changed = ranks.copy()
    changed[:200], changed[200:] = lose(ranks[:200], 0.6, rng), np.where(rng.random(400) < 0.1, 1, ranks[200:])
    found = compare(made(made_task(), changed), made(made_task(), ranks), SEED)
    assert {of.users for of in found if of.is_worse} == {"users with short histories"}


def test_groups_without_users_are_left_out() -> None:
    task = make_task(TOP + 1, [[0]] * 5)  # all have the same history
    found = compare(made(task, [0, 1, 1, 1, 1]), made(task, [1, 1, 1, 1, 1]), SEED)
    assert [(of.users, of.n_users) for of in found] == [(ALL_USERS, 5), ("users with short histories", 5)] * 2


def test_one_user_can_be_compared_and_says_little() -> None:
    task = make_task(TOP + 1, [[0]])
    assert {of.p_value for of in compare(made(task, [0]), made(task, [1]), SEED)} == {1 / 2}
    assert {of.p_holm for of in compare(made(task, [1]), made(task, [1]), SEED)} == {1}


def test_users_for_whom_a_metric_is_undefined_are_left_out() -> None:
    task = make_task(TOP + 1, [[0], [], [0], []], n_history=np.array([1, 2, 3, 4]))
    found = compare(made(task, [1, 0, 0, 0]), made(task, [1, 1, 1, 1]), SEED)
    of_all = next(of for of in found if (of.metric, of.users) == ("recall@10", ALL_USERS))
    assert (of_all.n_users, of_all.candidate, of_all.active, of_all.p_value) == (2, 0.5, 1.0, 0.5)
    assert all(math.isfinite(of.difference) and of.n_users > 0 for of in found)


def test_catalogue_smaller_than_a_list_can_be_compared() -> None:
    task = make_task(3, [[0], [1]])
    lists = np.full((2, TOP), PADDING, dtype=np.int32)
    lists[:, :3] = [[0, 1, 2], [2, 1, 0]]
    found = compare(HeldOut(task, lists), HeldOut(task, lists[:, ::1]), SEED)
    assert {of.candidate for of in found if of.metric == "recall@10"} == {1.0}
    assert HeldOut(task, lists).coverage == 1


def test_lists_of_any_depth_are_measured_to_the_tenth_place() -> None:
    task = make_task(30, [[25]] * 4)
    deep = np.tile(np.arange(30, dtype=np.int32), (4, 1))
    assert HeldOut(task, deep).measure()["recall@10"].tolist() == [0] * 4
    assert HeldOut(task, deep).coverage == 10 / 30


# How often alike models are refused, and worse ones


@pytest.mark.parametrize("kind", ["few changes", "nothing in common"])
def test_alike_models_are_refused_in_no_more_than_5_of_100(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "N_RESAMPLES", 999)  # quicker, and as exact on the whole
    rng = np.random.default_rng(5)
    n_refused = n_below = 0
    for _ in range(400):
        common = draw_ranks(rng, 600)
        pair = [
            draw_ranks(rng, 600) if kind == "nothing in common" else np.where(rng.random(600) < 0.9, common, other)
            for other in (draw_ranks(rng, 600), draw_ranks(rng, 600))
        ]
        found = compare(made(made_task(), pair[0]), made(made_task(), pair[1]), SEED)
        assert len(found) == 8
        n_refused += any(of.is_worse for of in found)
        n_below += any(of.p_value < 0.05 for of in found)
    assert n_refused <= 20
    assert n_below > 40  # uncorrected, the comparisons would refuse far more: there is something to correct


def test_loss_of_half_of_the_hits_is_always_refused() -> None:
    rng = np.random.default_rng(6)
    for _ in range(20):
        ranks = draw_ranks(rng, 600)
        assert any(
            of.is_worse
            for of in compare(made(made_task(), lose(ranks, 0.5, rng)), made(made_task(), ranks), SEED)
            if of.users == ALL_USERS
        )


@pytest.mark.slow
def test_other_seeds_of_the_same_configuration_are_refused_in_no_more_than_5_of_100(movielens_dir: Path) -> None:
    task = validation_task(core.load(Source(None, movielens_dir)).ratings, "rated")
    config = AlsConfig(factors=64)
    seeds = islice((seed for seed in count(1) if seed != config.random_state), 100)
    with side_by_side(101, config) as (pool, each):

        def fit(seed: int) -> HeldOut:
            factors = learn(task.positives, replace(each, random_state=seed))
            assert find_faults(factors) == ()
            return HeldOut(task, rank(task.seen, als_scorer(task, factors), depth=TOP))

        active, *others = pool.map(fit, (config.random_state, *seeds))
    refused = [any(of.is_worse for of in compare(other, active, SEED)) for other in others]
    assert len(refused) == 100
    assert sum(refused) <= 5
    assert all(other.coverage > 0.9 * active.coverage for other in others)
    # The same comparison sees that half of the hits are gone.
    worse = active.lists.copy()
    worse[find_hits(worse, task.relevant) & (np.random.default_rng(0).random(worse.shape) < 0.5)] = PADDING
    assert any(of.is_worse for of in compare(HeldOut(task, worse), active, SEED))


# What is broken, whatever its figures


def draw_factors(n_users: int = 40, n_items: int = 50, factors: int = 4) -> Factors:
    rng = np.random.default_rng(0)
    return Factors(
        rng.normal(size=(n_users, factors)).astype(np.float32), rng.normal(size=(n_items, factors)).astype(np.float32)
    )


NORMAL = draw_factors()


@pytest.mark.parametrize("name", ["user_factors", "item_factors"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_no_number_is_a_fault(name: str, value: float) -> None:
    broken = getattr(NORMAL, name).copy()
    broken[17, 2] = value
    assert find_faults(replace(NORMAL, **{name: broken})) == (f"{name} hold NaN or infinity",)


@pytest.mark.parametrize("name", ["user_factors", "item_factors"])
@pytest.mark.parametrize("how", ["zeros", "ones", "one row", "one row beside users without positives"])
def test_factors_that_are_all_the_same_are_a_fault(name: str, how: str) -> None:
    shape = getattr(NORMAL, name).shape
    broken = {"zeros": np.zeros(shape), "ones": np.ones(shape)}.get(how, np.tile([1.0, -2.0, 3.0, 4.0], (shape[0], 1)))
    if how.endswith("positives"):
        broken[::3] = 0
    assert find_faults(replace(NORMAL, **{name: broken.astype(np.float32)})) == (f"{name} are all the same",)


def test_factors_that_are_all_the_same_are_a_fault_in_small_models_too() -> None:
    ones = Factors(np.ones((3, 2), dtype=np.float32), np.ones((4, 2), dtype=np.float32))
    assert find_faults(ones) == ("user_factors are all the same", "item_factors are all the same")
    assert len(find_faults(Factors(np.zeros((1, 2), dtype=np.float32), np.ones((1, 2), dtype=np.float32)))) == 2


def test_the_same_list_for_everybody_is_a_fault() -> None:
    eagerness = np.random.default_rng(0).uniform(1, 2, (40, 1))  # the factors differ, their order of movies does not
    same = replace(NORMAL, user_factors=(eagerness * [1.0, -2.0, 3.0, 4.0]).astype(np.float32))
    assert find_faults(same) == ("the first 10 movies of 40 users are all the same",)
    other = same.user_factors.copy()
    other[39] *= -1
    assert find_faults(replace(same, user_factors=other)) == ()


def test_of_many_users_the_same_hundred_are_looked_at() -> None:
    many = draw_factors(n_users=5_000)
    first, again = promotion.sample_lists(many), promotion.sample_lists(many)
    assert first.shape == (100, TOP)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first[0], np.argsort(-(many.item_factors @ many.user_factors[0]))[:TOP])
    np.testing.assert_array_equal(first[-1], np.argsort(-(many.item_factors @ many.user_factors[-1]))[:TOP])


def test_scores_that_vanish_or_overflow_are_a_fault_and_no_warning() -> None:
    positive = Factors(np.abs(NORMAL.user_factors), np.abs(NORMAL.item_factors))
    for scale in (1e-25, 1e25):
        extreme = Factors(*(array * np.float32(scale) for array in (positive.user_factors, positive.item_factors)))
        assert find_faults(extreme) == ("the first 10 movies of 40 users are all the same",)


@pytest.mark.parametrize(
    ("n_users", "n_items", "factors"),
    [(40, 50, 4), (1, 1, 1), (1, 1, 3), (1, 50, 4), (40, 1, 4), (40, 9, 1), (2, 2, 2), (5_000, 12, 2), (40, 50, 1)],
)
def test_models_of_any_size_have_no_fault(n_users: int, n_items: int, factors: int) -> None:
    assert find_faults(draw_factors(n_users, n_items, factors)) == ()


def test_users_without_positives_are_no_fault() -> None:
    for n_known in (1, 2, 20):
        user_factors = NORMAL.user_factors.copy()
        user_factors[n_known:] = 0
        assert find_faults(replace(NORMAL, user_factors=user_factors)) == ()


def test_a_few_users_who_like_the_same_are_no_fault() -> None:
    alike = np.tile(NORMAL.user_factors[:1], (FEW - 1, 1))
    assert find_faults(replace(NORMAL, user_factors=alike)) == ()
    assert find_faults(replace(NORMAL, user_factors=np.tile(NORMAL.user_factors[:1], (FEW, 1)))) != ()


def test_a_trained_model_has_no_fault_and_one_that_is_regularized_to_nothing_has() -> None:
    task = invented()[1]
    assert find_faults(learn(task.positives, QUICK)) == ()
    assert find_faults(learn(task.positives, replace(QUICK, regularization=1_000.0))) != ()


# Verdicts


@cache
def invented() -> tuple[Dataset, RankingTask]:
    """A small world, and its validation task."""
    dataset = core.clean("real", synthesize(3_000, random_state=1, transitions=0.6))
    split = core.leave_one_out(core.positives(dataset.ratings))
    return dataset, protocols.build_task(dataset.ratings, split, "rated", "validation")


def incumbent(**changed: Any) -> Incumbent:
    return replace(Incumbent("v1", "real", QUICK, None, 4.0, {}), **changed)


def candidate(held_out: HeldOut | None = None, **changed: Any) -> Candidate:
    """Another configuration than the incumbent's, with sound factors."""
    other = replace(QUICK, factors=4)
    return replace(Candidate("real", other, None, 4.0, NORMAL, held_out or alike()), **changed)


@cache
def alike() -> HeldOut:
    return made(made_task(), draw_ranks(np.random.default_rng(0), 600))


@cache
def worse() -> HeldOut:
    """The same with half of the hits gone."""
    ranks = draw_ranks(np.random.default_rng(0), 600)
    return made(made_task(), lose(ranks, 0.5, np.random.default_rng(1)))


def ask(
    candidate: Candidate, incumbent: Incumbent | None, promote: Promote = "auto", dataset: Dataset | None = None
) -> Verdict:
    verdict = judge(promote, candidate, incumbent, dataset or invented()[0], SEED)
    written = json.loads(json.dumps(verdict.to_dict(), allow_nan=False))
    assert written["promote"] == verdict.promote == promote
    assert written["activate"] is verdict.activate
    assert written["reasons"] == list(verdict.reasons) != []
    assert written["against"] == (incumbent.version if incumbent else None)
    assert [of["is_worse"] for of in written["comparisons"]] == [of.is_worse for of in verdict.comparisons]
    assert all(of["p_holm"] >= of["p_value"] for of in written["comparisons"])
    return verdict


@pytest.fixture
def refitted(monkeypatch: pytest.MonkeyPatch) -> Callable[[HeldOut], None]:
    """Say what the incumbent's configuration would answer."""
    return lambda held_out: monkeypatch.setattr(promotion, "refit", lambda *_: held_out)


@pytest.fixture
def no_refit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(promotion, "refit", lambda *_: pytest.fail("nothing was to be fitted"))


@pytest.mark.usefixtures("no_refit")
@pytest.mark.parametrize("dataset", ["real", "synthetic"])
@pytest.mark.parametrize("held_out", [alike(), None])
def test_without_an_active_version_any_sound_model_is_activated(dataset: str, held_out: HeldOut | None) -> None:
    verdict = ask(replace(candidate(), dataset=dataset, held_out=held_out), None)
    assert (verdict.activate, verdict.reasons) == (True, ("no version was active",))


@pytest.mark.usefixtures("no_refit")
@pytest.mark.parametrize("active", [None, incumbent(), incumbent(dataset="synthetic")])
def test_a_broken_model_is_refused_whatever_is_active(active: Incumbent | None) -> None:
    broken = replace(NORMAL, item_factors=np.full_like(NORMAL.item_factors, np.nan))
    verdict = ask(candidate(als=QUICK, factors=broken), active)
    assert (verdict.activate, verdict.reasons) == (False, ("item_factors hold NaN or infinity",))


@pytest.mark.usefixtures("no_refit")
def test_the_same_configuration_is_activated_without_a_fit() -> None:
    served_elsewhere = replace(QUICK, num_threads=5, device="auto")
    verdict = ask(candidate(worse(), als=served_elsewhere), incumbent())
    assert verdict.activate
    assert verdict.comparisons == ()
    assert verdict.reasons == ("it has the configuration of v1, so there is nothing to compare",)


@pytest.mark.parametrize(
    "changed", [{"als": replace(QUICK, random_state=8)}, {"als": replace(QUICK, alpha=8.0)}, {"ranker": TREES}]
)
def test_another_seed_setting_or_second_stage_is_another_configuration(
    changed: dict[str, Any], refitted: Callable[[HeldOut], None]
) -> None:
    refitted(alike())
    verdict = ask(candidate(**{"als": QUICK, **changed}), incumbent())
    assert verdict.activate
    assert len(verdict.comparisons) == 8
    assert verdict.reasons == ("it is not significantly worse than the configuration of v1",)
    assert not incumbent(ranker=TREES).same_configuration(QUICK, replace(TREES, num_leaves=9))
    assert incumbent(ranker=TREES).same_configuration(QUICK, TREES)


@pytest.mark.usefixtures("no_refit")
@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"dataset": "ml-25m"}, "it was trained on ml-25m, and the active version v1 on real"),
        ({"dataset": "synthetic"}, "it was trained on synthetic, and the active version v1 on real"),
        ({"min_rating": 3.5}, "its positives are ratings of 3.5 or more, and those of the active version v1 4 or more"),
        ({"held_out": None}, "it was not evaluated, so it cannot be compared with the active version v1"),
    ],
)
@pytest.mark.parametrize("als", [QUICK, replace(QUICK, factors=4)])
def test_what_cannot_be_compared_is_refused(changed: dict[str, Any], reason: str, als: AlsConfig) -> None:
    verdict = ask(replace(candidate(als=als), **changed), incumbent())
    assert not verdict.activate
    assert len(verdict.reasons) == 1
    assert verdict.reasons[0].startswith(reason)


@pytest.mark.usefixtures("no_refit")
def test_real_ratings_take_the_place_of_synthetic_ones() -> None:
    verdict = ask(candidate(worse()), incumbent(dataset="synthetic", min_rating=3.0))
    assert (verdict.activate, verdict.reasons) == (True, ("ratings of real take the place of synthetic ones",))
    assert not ask(replace(candidate(), held_out=None), incumbent(dataset="synthetic")).activate


@pytest.mark.usefixtures("no_refit")
def test_a_damaged_version_is_replaced_by_what_was_not_evaluated_but_not_by_other_data() -> None:
    broken, unevaluated = incumbent(is_intact=False), replace(candidate(), held_out=None)
    assert ask(unevaluated, broken).activate
    for other in ("synthetic", "others"):
        assert not ask(replace(unevaluated, dataset=other), broken).activate
        assert not ask(candidate(dataset=other), broken).activate


@pytest.mark.usefixtures("no_refit")
def test_ratings_that_were_cut_short_are_noticed_with_the_same_settings_too() -> None:
    active, same = incumbent(n_ratings=1_000), candidate(als=QUICK)
    assert ask(replace(same, n_ratings=500), active).activate
    verdict = ask(replace(same, n_ratings=499), active)
    assert not verdict.activate
    assert "499 ratings, less than half of the 1,000 of v1" in verdict.reasons[0]


def test_synthetic_models_are_compared_with_each_other(refitted: Callable[[HeldOut], None]) -> None:
    refitted(alike())
    active = incumbent(dataset="synthetic")
    assert ask(candidate(dataset="synthetic"), active).activate
    assert not ask(candidate(worse(), dataset="synthetic"), active).activate
    assert not ask(replace(candidate(dataset="synthetic"), held_out=None), active).activate


def test_a_worse_model_is_refused_and_told_where_and_by_how_much(refitted: Callable[[HeldOut], None]) -> None:
    refitted(alike())
    verdict = ask(candidate(worse()), incumbent())
    assert not verdict.activate
    expected = [of for of in verdict.comparisons if of.is_worse]
    assert len(verdict.reasons) == len(expected) >= 2
    for reason, of in zip(verdict.reasons, expected, strict=True):
        assert reason.startswith(f"{of.metric} of {of.users} ({of.n_users}) is significantly worse: ")
        assert f"{of.candidate:.4f}, and {of.active:.4f} with the configuration of v1" in reason
        assert of.candidate < of.active
    means = [each.measure()["recall@10"].mean() for each in (worse(), alike())]
    of_all = next(of for of in expected if (of.metric, of.users) == ("recall@10", ALL_USERS))
    assert (of_all.candidate, of_all.active) == pytest.approx(means)


@pytest.mark.parametrize("p_holm", [0.049, 0.05])
def test_level_is_5_percent_of_the_corrected_p(p_holm: float) -> None:
    of = Comparison("ndcg@10", ALL_USERS, 9, 0.1, 0.2, -0.1, p_value=0.001, p_holm=p_holm)
    assert of.is_worse == (p_holm < 0.05)


def shown(n_movies: int, task: RankingTask | None = None) -> HeldOut:
    """Lists without a hit that show this many of 1,000 movies."""
    task = task or make_task(1_001, [[1_000]] * 200)
    places = np.arange(task.n_targets * TOP).reshape(-1, TOP) % n_movies
    return HeldOut(task, places.astype(np.int32))


def stating(coverage: float, model: str = "als", protocol: str = "rated", stage: str = "validation") -> dict[str, Any]:
    return {"stage": stage, "protocols": {protocol: {model: {"coverage@10": coverage}}}}


def test_lists_that_show_less_than_half_of_what_the_active_configuration_shows_are_refused(
    refitted: Callable[[HeldOut], None],
) -> None:
    refitted(shown(400))
    assert ask(candidate(shown(200)), incumbent()).activate
    verdict = ask(candidate(shown(199)), incumbent())
    assert not verdict.activate
    assert verdict.reasons == (
        "its lists show 19.88% of the catalogue, less than half of the 39.96% of the configuration of v1 on the same "
        "split",
    )


@pytest.mark.parametrize("same_configuration", [True, False])
def test_lists_that_show_less_than_half_of_what_the_active_version_states_are_refused(
    same_configuration: bool, refitted: Callable[[HeldOut], None]
) -> None:
    found = candidate(shown(100), als=QUICK if same_configuration else replace(QUICK, factors=4))
    refitted(shown(100))
    assert ask(found, incumbent(metrics=stating(0.19))).activate
    verdict = ask(found, incumbent(metrics=stating(0.3)))
    assert not verdict.activate
    assert verdict.reasons == (
        "its lists show 9.99% of the catalogue, less than half of the 30.00% that v1 states of its own held-out run",
    )


@pytest.mark.usefixtures("no_refit")
@pytest.mark.parametrize(
    "metrics",
    [
        stating(0.9, stage="test"),
        stating(0.9, protocol="temporal"),
        stating(0.9, model="popular"),
        stating(0.9, model="ranker"),
        {"stage": "validation", "protocols": {"rated": {"als": {}}}},
        {"stage": "none", "protocols": {}},
        {},
    ],
)
def test_what_was_stated_of_something_else_does_not_count(metrics: dict[str, Any]) -> None:
    assert ask(candidate(shown(100), als=QUICK), incumbent(metrics=metrics)).activate


@pytest.mark.usefixtures("no_refit")
def test_a_version_with_a_second_stage_is_measured_by_what_that_showed() -> None:
    found = candidate(shown(100), als=QUICK, ranker=TREES)
    assert not ask(found, incumbent(ranker=TREES, metrics=stating(0.9, model="ranker"))).activate
    assert ask(found, incumbent(ranker=TREES, metrics=stating(0.9, model="als"))).activate


@pytest.mark.usefixtures("no_refit")
def test_always_activates_without_a_comparison_and_lists_what_is_broken() -> None:
    broken = replace(NORMAL, user_factors=np.zeros_like(NORMAL.user_factors))
    verdict = ask(replace(candidate(), factors=broken, dataset="synthetic", held_out=None), incumbent(), "always")
    assert verdict.activate
    assert verdict.reasons == ("--promote always was asked for", "user_factors are all the same")
    assert ask(candidate(), None, "always").reasons == ("--promote always was asked for",)


@pytest.mark.parametrize("held_out", [alike(), worse()])
def test_never_compares_and_does_not_activate(held_out: HeldOut, refitted: Callable[[HeldOut], None]) -> None:
    refitted(alike())
    verdict = ask(candidate(held_out), incumbent(), "never")
    assert not verdict.activate
    assert verdict.comparisons == ask(candidate(held_out), incumbent()).comparisons != ()
    assert verdict.reasons[0] == "--promote never was asked for"
    assert verdict.reasons[1:] == ask(candidate(held_out), incumbent()).reasons


@pytest.mark.usefixtures("no_refit")
def test_never_does_not_activate_even_where_nothing_is_active() -> None:
    verdict = ask(candidate(), None, "never")
    assert (verdict.activate, verdict.reasons) == (False, ("--promote never was asked for", "no version was active"))


def test_everything_that_speaks_against_a_model_is_listed(refitted: Callable[[HeldOut], None]) -> None:
    refitted(HeldOut(alike().task, alike().lists))
    broken = replace(NORMAL, item_factors=np.ones_like(NORMAL.item_factors))
    one_list = HeldOut(alike().task, np.full_like(alike().lists, PADDING))
    reasons = " ".join(ask(candidate(one_list, factors=broken), incumbent()).reasons)
    for part in ("item_factors are all the same", "0.00% of the catalogue", "ndcg@10 of all users", "recall@10 of"):
        assert part in reasons


@pytest.mark.parametrize("promote", ["auto", "never"])
def test_a_configuration_that_cannot_be_fitted_again_costs_no_training_run(
    promote: Promote, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> HeldOut:
        raise DataError("nothing to learn from")

    monkeypatch.setattr(promotion, "refit", fail)
    verdict = ask(candidate(), incumbent(metrics=stating(1.0)), promote)
    assert not verdict.activate
    assert verdict.comparisons == ()
    assert "the configuration of v1 could not be fitted on the same split" in verdict.reasons[-1]
    assert "DataError: nothing to learn from" in verdict.reasons[-1]


# What the active version is compared by: its configuration, fitted again


def test_incumbent_is_described_by_its_version_damaged_or_not(tmp_path: Path) -> None:
    model = make_model()
    folder = publish(tmp_path, model).folder
    als, n_ratings = AlsConfig.of(model.config["als"]), model.config["n_ratings"]
    expected = Incumbent(folder.name, "hand-made", als, None, 4.0, dict(model.metrics), n_ratings)
    assert Incumbent.read(folder) == expected
    (folder / "als.npz").unlink()
    assert Incumbent.read(folder) == replace(expected, is_intact=False)
    stated = {"num_leaves": 12, "n_stages": 3, "of a later release": 1}
    ranked = publish(tmp_path, replace(model, config={**model.config, "ranker": stated})).folder
    assert Incumbent.read(ranked).ranker == RankerConfig(num_leaves=12, n_stages=3)
    rewrite = publish(tmp_path, model).folder / "config.json"
    rewrite.unlink()
    for content in ("{", '{"als": {}, "min_rating": 4, "n_ratings": 1}', '{"als": []}', "[]"):
        rewrite.write_text(content)
        with pytest.raises(ArtifactError, match=r"config\.json"):
            Incumbent.read(rewrite.parent)


def test_refit_has_the_active_seed_and_settings_and_none_of_its_factors() -> None:
    dataset, task = invented()
    active = Incumbent("v1", "real", QUICK, None, 4.0, {})
    resources = AlsConfig(factors=2, random_state=1, num_threads=2)
    found = refit(active, resources, dataset, task)
    assert found.task is task
    expected = rank(task.seen, als_scorer(task, learn(task.positives, QUICK)), depth=TOP)
    np.testing.assert_array_equal(found.lists, expected)
    for changed in ({"random_state": 8}, {"factors": 9}, {"half_life": 0.0}):
        other = refit(replace(active, als=replace(QUICK, **changed)), resources, dataset, task)
        assert (other.lists != expected).any()


def test_refit_has_the_second_stage_that_the_active_version_has() -> None:
    dataset, task = invented()
    active = incumbent(ranker=TREES)
    found = refit(active, AlsConfig(num_threads=1), dataset, task)
    learner = second_stage.Learner(dataset, task.users, task.items, QUICK)
    held_out = second_stage.train_held_out(learner, task, learn(task.positives, QUICK), TREES)
    np.testing.assert_array_equal(found.lists, rank(task.seen, second_stage.ranker_scorer(held_out), depth=TOP))
    assert (found.lists != refit(incumbent(), AlsConfig(num_threads=1), dataset, task).lists).any()


def test_a_configuration_is_judged_against_the_refit_from_end_to_end() -> None:
    dataset, task = invented()

    def fit(config: AlsConfig) -> Candidate:
        factors = learn(task.positives, config)
        return candidate(HeldOut(task, rank(task.seen, als_scorer(task, factors))), als=config, factors=factors)

    verdict = ask(fit(replace(QUICK, random_state=8)), incumbent())
    assert verdict.activate, verdict.reasons
    lists = refit(incumbent(), QUICK, dataset, task).measure()["ndcg@10"]
    assert verdict.comparisons[0].active == pytest.approx(lists.mean())
    assert verdict.comparisons[0].n_users == task.n_targets
    nothing_learned = ask(fit(replace(QUICK, regularization=1_000.0)), incumbent())
    assert not nothing_learned.activate
    assert "the same" in nothing_learned.reasons[0]
