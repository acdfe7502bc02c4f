"""How sure a mean is: intervals against theory, other people's code, and repeated sampling."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from threadpoolctl import threadpool_limits

from app.evaluation import bootstrap
from app.evaluation.bootstrap import MAX_GROUPS, interval, resampled_means
from app.evaluation.results import MODEL, summarise

SEED = 42


def column(*values: float) -> NDArray[np.float64]:
    return np.array(values, dtype=np.float64)[:, None]


def interval_of(values: NDArray[np.float64], **options: Any) -> list[float]:
    """The interval of one column that is defined for everybody."""
    found = interval(resampled_means(values[:, None], SEED, **options)[:, 0])
    assert found is not None
    return found


def width(bounds: list[float]) -> float:
    return bounds[1] - bounds[0]


def normal_width(values: NDArray[np.float64]) -> float:
    return 2 * 1.959964 * float(values.std()) / math.sqrt(len(values))


# What a resample is


def test_resampled_means_are_means_of_users_drawn_with_replacement() -> None:
    found = resampled_means(column(0.0, 1.0), SEED, n_resamples=4_000)[:, 0]
    # Two draws of two users: 00, 01, 10, 11.
    assert sorted(set(found)) == [0, 0.5, 1]
    assert [(found == value).mean() for value in (0, 0.5, 1)] == pytest.approx([1 / 4, 1 / 2, 1 / 4], abs=0.03)


def test_one_resample_draws_the_same_users_for_all_columns() -> None:
    users = np.random.default_rng(0).random(50)
    found = resampled_means(np.column_stack([users, 2 * users + 3, np.ones(50)]), SEED)
    assert found.shape == (bootstrap.N_RESAMPLES, 3)
    np.testing.assert_allclose(found[:, 1], 2 * found[:, 0] + 3, rtol=1e-12)
    assert (found[:, 2] == 1).all()
    assert len(set(found[:, 0])) > 900


def test_resamples_are_seeded() -> None:
    values = np.random.default_rng(0).random((300, 4))
    first, again, other = (resampled_means(values, seed).tobytes() for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("n_users", [573, MAX_GROUPS + 1_000])
def test_number_of_blas_threads_changes_no_byte(n_users: int) -> None:
    values = np.random.default_rng(0).random((n_users, 40))
    found = []
    for n_threads in (1, 2):
        with threadpool_limits(n_threads, "blas"):
            found.append(resampled_means(values, SEED).tobytes())
    assert found[0] == found[1]


@pytest.mark.parametrize("n_draws", [1, 1_000, 77_777])
def test_number_of_draws_held_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch, n_draws: int) -> None:
    values = np.random.default_rng(0).random((90, 2))
    expected = resampled_means(values, SEED)
    monkeypatch.setattr(bootstrap, "_DRAWS_AT_ONCE", n_draws)
    np.testing.assert_allclose(resampled_means(values, SEED), expected, rtol=1e-12)


# Intervals


@pytest.mark.parametrize("values", [np.zeros(13), np.full(30, 0.1), np.array([0.5])])
def test_users_who_all_agree_have_no_interval(values: NDArray[np.float64]) -> None:
    """Of 13 users without a hit the true mean may still be .2: an interval of 0 to 0 would only pretend to be sure."""
    assert interval(resampled_means(values[:, None], SEED)[:, 0]) is None


def test_interval_leaves_2_5_percent_on_either_side() -> None:
    assert interval(np.arange(1_001.0)) == pytest.approx([25, 975])
    assert all(type(bound) is float for bound in interval(np.arange(4.0)) or [])


@pytest.mark.parametrize("kind", ["normal", "hits", "skewed"])
def test_interval_of_a_large_sample_is_the_normal_one(kind: str) -> None:
    rng = np.random.default_rng(3)
    values = {
        "normal": rng.normal(5, 2, 2_000),
        "hits": (rng.random(2_000) < 0.1).astype(np.float64),
        "skewed": rng.exponential(size=2_000),
    }[kind]
    error = values.std() / math.sqrt(len(values))
    low, high = interval_of(values, n_resamples=10_000)
    # A 2.5 % point of 10,000 resamples is itself uncertain, by √(.025 · .975 / 10⁴) / φ(1.96) = 0.027 standard errors.
    assert low == pytest.approx(values.mean() - 1.959964 * error, abs=0.13 * error)
    assert high == pytest.approx(values.mean() + 1.959964 * error, abs=0.13 * error)


def test_interval_agrees_with_the_bootstrap_of_scipy() -> None:
    hits = (np.arange(573) < 57).astype(np.float64)
    for values in (hits, hits * np.linspace(0.3, 1, 573)):
        theirs = stats.bootstrap(
            (values,), np.mean, n_resamples=5_000, method="percentile", rng=np.random.default_rng(0)
        ).confidence_interval
        low, high = interval_of(values, n_resamples=5_000)
        assert low == pytest.approx(theirs.low, abs=0.05 * (theirs.high - theirs.low))
        assert high == pytest.approx(theirs.high, abs=0.05 * (theirs.high - theirs.low))


def test_interval_shrinks_with_the_root_of_the_number_of_users() -> None:
    widths = [width(interval_of(np.arange(n_users) % 10 / 10)) for n_users in (50, 200, 800)]
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.2)
    assert widths[1] / widths[2] == pytest.approx(2, rel=0.2)


def test_interval_covers_the_truth_in_95_of_100_samples() -> None:
    rng = np.random.default_rng(7)
    n_samples, n_users = 400, 100
    samples = rng.exponential(size=(n_samples, n_users))  # of mean 1
    bounds = np.array([interval_of(sample, n_resamples=500) for sample in samples])
    covered = ((bounds[:, 0] <= 1) & (bounds[:, 1] >= 1)).mean()
    # 400 samples leave ± 2 × 1.1 %, and percentile intervals of skewed samples are known to be a little short.
    assert 0.90 < covered < 0.975


# Measures that are undefined for some users


def test_mean_is_over_the_drawn_users_for_whom_the_measure_is_defined() -> None:
    found = resampled_means(column(1.0, np.nan, 3.0), SEED, n_resamples=3_000)[:, 0]
    # Of 27 resamples one holds only the undefined user; what is left is 1 or 3 alone, or mixed: 3/2, 2, 7/3.
    assert sorted(set(found[~np.isnan(found)])) == pytest.approx([1, 5 / 3, 2, 7 / 3, 3])
    assert np.isnan(found).mean() == pytest.approx(1 / 27, abs=0.02)
    assert interval(found) == [1, 3]


def test_interval_is_over_the_resamples_in_which_the_measure_is_defined_if_these_are_95_percent() -> None:
    few = np.arange(100.0)
    few[:5] = np.nan
    assert interval(few) == pytest.approx([5 + 0.025 * 94, 5 + 0.975 * 94])
    few[5] = np.nan
    assert interval(few) is None


def test_of_one_user_in_many_nothing_can_be_said() -> None:
    # (1 − 1/40)⁴⁰ = 36 % of the resamples do not hold the user.
    assert interval(resampled_means(column(0.5, *[np.nan] * 39), SEED)[:, 0]) is None


def test_undefined_users_change_neither_mean_nor_width() -> None:
    values = np.random.default_rng(5).normal(size=800)
    alone = interval_of(values, n_resamples=4_000)
    thinned = np.full(1_600, np.nan)
    thinned[::2] = values
    among_others = interval_of(thinned, n_resamples=4_000)
    assert among_others == pytest.approx(alone, abs=0.05 * width(alone))


def test_column_that_is_undefined_for_all_has_no_interval_and_leaves_the_others_alone() -> None:
    users = np.random.default_rng(0).random(40)
    found = resampled_means(np.column_stack([users, np.full(40, np.nan)]), SEED)
    assert interval(found[:, 1]) is None
    np.testing.assert_array_equal(found[:, 0], resampled_means(users[:, None], SEED)[:, 0])


# Many users, in groups


@pytest.mark.parametrize("n_users", [MAX_GROUPS + 1, 7_500, 23_000])
def test_grouping_leaves_mean_and_width_as_they_are(n_users: int) -> None:
    # In order of their value, so that groups of neighbours instead of random ones would widen the interval.
    values = np.sort(np.random.default_rng(2).exponential(size=n_users))
    found = resampled_means(values[:, None], SEED, n_resamples=2_000)[:, 0]
    error = values.std() / math.sqrt(n_users)
    assert found.mean() == pytest.approx(values.mean(), abs=4 * error / math.sqrt(2_000))
    assert found.std() == pytest.approx(error, rel=0.08)  # of 2,000 resamples: ± 1.6 %
    assert width(interval_of(values, n_resamples=2_000)) == pytest.approx(normal_width(values), rel=0.1)


def test_grouping_gives_the_width_that_single_users_give(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(4).random(3_000)
    values[::3] = np.nan
    ungrouped = interval_of(values, n_resamples=3_000)
    monkeypatch.setattr(bootstrap, "MAX_GROUPS", 400)  # groups of seven and of eight users
    grouped = interval_of(values, n_resamples=3_000)
    assert grouped != ungrouped
    assert width(grouped) == pytest.approx(width(ungrouped), rel=0.12)
    assert np.mean(grouped) == pytest.approx(np.mean(ungrouped), abs=0.1 * width(ungrouped))


def test_every_user_is_in_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    # With one group there is nothing to vary: each resample is the whole.
    monkeypatch.setattr(bootstrap, "MAX_GROUPS", 1)
    values = np.random.default_rng(4).random((37, 2))
    np.testing.assert_allclose(resampled_means(values, SEED, n_resamples=5), np.tile(values.mean(axis=0), (5, 1)))


def test_grouping_keeps_differences_paired() -> None:
    users = np.random.default_rng(6).random(MAX_GROUPS + 2_000)
    found = resampled_means(np.column_stack([users + 0.01, users]), SEED)
    np.testing.assert_allclose(found[:, 0] - found[:, 1], 0.01, rtol=1e-9)


# Differences between models


def test_paired_difference_shows_what_the_single_intervals_hide() -> None:
    rng = np.random.default_rng(1)
    users = rng.random(300)  # users differ much more than the models do
    values = {MODEL: {"ndcg@10": users + 0.01 + rng.normal(0, 0.02, 300)}, "popular": {"ndcg@10": users}}
    summary = summarise(values, SEED)
    ours, theirs = summary.intervals[MODEL]["ndcg@10"], summary.intervals["popular"]["ndcg@10"]
    assert ours is not None
    assert theirs is not None
    assert theirs[1] - ours[0] > 0.8 * width(theirs)  # they all but coincide
    found = summary.differences["popular"]["ndcg@10"]
    difference = values[MODEL]["ndcg@10"] - users
    assert found["difference"] == pytest.approx(difference.mean())
    assert 0 < found["interval"][0] < found["difference"] < found["interval"][1]
    assert width(found["interval"]) == pytest.approx(normal_width(difference), rel=0.15)


def test_difference_of_equal_models_is_zero_and_that_of_alike_ones_holds_zero() -> None:
    rng = np.random.default_rng(1)
    users = rng.random(300)
    noise = rng.normal(0, 0.02, 300)
    values = {MODEL: {"m": users}, "same": {"m": users.copy()}, "alike": {"m": users + noise - noise.mean()}}
    summary = summarise(values, SEED)
    assert summary.intervals[MODEL] == summary.intervals["same"]
    assert summary.differences["same"]["m"] == {"difference": 0.0, "interval": None}
    low, high = summary.differences["alike"]["m"]["interval"]
    assert low < 0 < high
    assert list(summary.differences) == ["same", "alike"]


def test_each_model_and_measure_has_its_own_mean_and_interval() -> None:
    rng = np.random.default_rng(8)
    values = {
        model: {name: rng.random(50) + 10 * i + j for j, name in enumerate("ab")}
        for i, model in enumerate((MODEL, "x"))
    }
    summary = summarise(values, SEED)
    for model, measures in values.items():
        for name, users in measures.items():
            assert summary.means[model][name] == pytest.approx(users.mean())
            low, high = summary.intervals[model][name] or (math.nan, math.nan)
            assert low < users.mean() < high
            assert width([low, high]) == pytest.approx(normal_width(users), rel=0.15)
    for name in "ab":
        assert summary.differences["x"][name]["difference"] == pytest.approx(
            values[MODEL][name].mean() - values["x"][name].mean()
        )


def test_without_als_there_is_nothing_to_compare_with() -> None:
    assert summarise({"popular": {"m": np.ones(3)}, "random": {"m": np.zeros(3)}}, SEED).differences == {}


def test_measure_that_nobody_has_has_no_interval_and_no_difference() -> None:
    nobody, some = np.full(4, np.nan), np.array([0.0, 1.0, 1.0, 1.0])
    summary = summarise({MODEL: {"a": nobody, "b": some}, "x": {"a": nobody, "b": some}}, SEED)
    assert summary.intervals[MODEL]["a"] is None
    assert summary.intervals[MODEL]["b"] is not None
    assert summary.differences["x"]["a"]["interval"] is None
    assert math.isnan(summary.means[MODEL]["a"])
    assert summary.means[MODEL]["b"] == 0.75
