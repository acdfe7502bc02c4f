"""How two versions differ: small cases by hand, and random ones beside a plain recount."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from app.als import Factors
from app.errors import ConfigError
from app.recommender import ListOptions, Ranking, Recommender, load_recommender
from app.shadow import DEFINITIONS, Drift, Exposure, ShadowReport, Shared, compare
from tests.models import LIKES_NOTHING, RATINGS, in_memory, make_model, trained

SEEN = 1000  # what every user has rated, so that it is never listed
OWNER_A, OWNER_B = 801, 802  # each has rated a whole catalogue, so that nothing is left for them


def version(
    scores: Mapping[int, float],
    users: Mapping[int, float] | None = None,
    *,
    owner: int = OWNER_A,
    indifferent: tuple[int, ...] = (),
    name: str = "one",
) -> Recommender:
    """Make a version in which a movie's score is ``scores[movie] · users[user]``; SEEN has 0, and so has an owner.

    Who is ``indifferent`` likes nothing, so that they get the popular movies.
    """
    users = users if users is not None else {1: 1.0, 2: 1.0, 3: 1.0}
    ratings = [(user, SEEN, 1.0 if user in indifferent else 5.0) for user in users]
    model = make_model([*ratings, *((owner, movie, 5.0) for movie in [*scores, SEEN])], factors=1)
    item_factors = [[scores.get(movie, 0.0)] for movie in model.items.ids.tolist()]
    user_factors = [[users.get(user, 0.0)] for user in model.users.ids.tolist()]
    factors = Factors(np.array(user_factors, dtype=np.float32), np.array(item_factors, dtype=np.float32))
    return Recommender(replace(in_memory(replace(model, factors=factors)), version=name))


def strict(report: ShadowReport) -> object:
    """Read the report back from JSON, in which every number must be one."""
    return json.loads(json.dumps(report.to_dict(), allow_nan=False))


def test_a_version_does_not_differ_from_itself() -> None:
    one = version({1: 4.0, 2: 3.0, 3: 2.0})
    report = compare(one, one, k=2)
    assert (report.overlap, report.identical, report.rank_correlation) == (1.0, 1.0, 1.0)
    assert report.score_drift == {"als": Drift(mean=0.0, mean_absolute=0.0, n_scores=6, n_users=3)}
    assert report.gained == report.lost == ()
    assert report.users == Shared(a_only=0, b_only=0, both=4)
    assert report.movies == Shared(a_only=0, b_only=0, both=4)
    assert report.a == report.b
    assert report.a.coverage == 2 / 4


def test_other_factors_by_hand() -> None:
    a = version({1: 5.0, 2: 4.0, 3: 3.0, 4: 2.0}, name="old")
    b = version({1: 5.5, 3: 4.5, 2: 3.0, 4: 1.0}, owner=OWNER_B, name="new")
    report = compare(a, b, k=2)  # 1, 2 and 1, 3
    assert (report.a.version, report.b.version) == ("old", "new")
    assert report.n_sampled == report.n_correlated == 3
    assert report.overlap == 1 / 2
    assert report.identical == 0.0
    assert report.rank_correlation == pytest.approx((5 - 1) / 6)  # of the six pairs of 1, 2, 3, 4 one changes order
    assert report.score_drift == {"als": Drift(mean=0.5, mean_absolute=0.5, n_scores=3, n_users=3)}
    assert report.a.coverage == report.b.coverage == 2 / 5
    assert report.gained == (Exposure(3, "Amélie (Fabuleux destin d'Amélie Poulain, Le) (2001)", 0, 1, 1, True, True),)
    assert [of.movie_id for of in report.lost] == [2]
    assert report.lost[0].difference == -1


def test_drift_keeps_its_sign_in_the_mean_and_loses_it_in_the_absolute_one() -> None:
    a, b = version({1: 5.0, 2: 4.0}), version({1: 5.5, 2: 3.0})
    report = compare(a, b, k=2)
    assert report.score_drift == {"als": Drift(mean=-0.25, mean_absolute=0.75, n_scores=6, n_users=3)}


def test_reversed_scores_correlate_by_minus_one() -> None:
    scores = {movie: float(movie) for movie in range(1, 8)}
    reverse = {movie: -score for movie, score in scores.items()}
    report = compare(version(scores), version(reverse, owner=OWNER_B), k=7)
    assert report.rank_correlation == -1.0
    assert report.overlap == 1.0
    assert report.identical == 0.0


def test_catalogues_and_users_of_one_version_only_are_counted_and_named() -> None:
    a = version({1: 3.0, 2: 2.0}, {1: 1.0, 2: 1.0, 5: 1.0})
    b = version({2: 2.0, 7: 3.0}, {1: 1.0, 2: 1.0, 6: 1.0}, owner=OWNER_B)
    report = compare(a, b, k=1)
    assert report.users == Shared(a_only=2, b_only=2, both=2)
    assert report.movies == Shared(a_only=1, b_only=1, both=2)
    assert report.n_sampled == 2
    assert report.overlap == 0.0
    assert report.gained == (Exposure(7, "Movie 7", 0.0, 1.0, 1.0, in_a=False, in_b=True),)
    assert report.lost == (Exposure(1, "Toy Story (1995)", 1.0, 0.0, -1.0, in_a=True, in_b=False),)
    assert report.rank_correlation is None  # both list movie 2 alone
    assert report.n_correlated == 0
    assert report.score_drift is None


def test_the_longer_list_counts_where_fewer_than_k_are_left() -> None:
    report = compare(version({1: 1.0}), version({1: 3.0, 2: 2.0, 3: 1.0}, owner=OWNER_B), k=10)
    assert report.overlap == pytest.approx(1 / 3)
    assert report.a.coverage == 1 / 2
    assert report.b.coverage == 3 / 4


def test_two_empty_lists_are_the_same() -> None:
    report = compare(version({1: 1.0}, {}), version({1: 1.0}, {}))
    assert report.n_sampled == 1  # the owner, who has rated everything
    assert (report.overlap, report.identical) == (1.0, 1.0)
    assert report.rank_correlation is report.score_drift is None
    assert report.a.coverage == 0.0


def test_exposure_is_the_share_of_lists() -> None:
    everybody = dict.fromkeys(range(1, 5), 1.0)
    scores = {1: 5.0, 2: 4.0, 3: 3.0}
    report = compare(version(scores, everybody), version(scores, {**everybody, 4: -1.0}, owner=OWNER_B), k=1)
    assert report.gained == (Exposure(3, report.gained[0].title, 0.0, 0.25, 0.25, True, True),)
    assert report.lost == (Exposure(1, "Toy Story (1995)", 1.0, 0.75, -0.25, True, True),)
    assert report.identical == 0.75


def test_ten_movies_are_named_and_equal_changes_are_ordered_by_id() -> None:
    old, new = range(100, 112), range(200, 212)
    scores = dict.fromkeys([*old, *new], 0.0)
    a = version(scores | dict.fromkeys(old, 1.0))
    b = version(scores | dict.fromkeys(new, 1.0))
    report = compare(a, b, k=12)
    assert [of.movie_id for of in report.gained] == [*new][:10]
    assert [of.movie_id for of in report.lost] == [*old][:10]


def test_scores_of_different_sources_are_not_compared() -> None:
    a = version({1: 3.0, 2: 2.0}, indifferent=(2, 3))
    b = version({1: 4.0, 2: 3.0}, owner=OWNER_B, indifferent=(3,))
    report = compare(a, b, k=2)
    assert report.a.sources == {"als": 1, "popular": 2}
    assert report.b.sources == {"als": 2, "popular": 1}
    assert report.score_drift == {
        "als": Drift(mean=1.0, mean_absolute=1.0, n_scores=2, n_users=1),
        "popular": Drift(mean=0.0, mean_absolute=0.0, n_scores=2, n_users=1),
    }


def test_versions_without_a_common_user_leave_everything_undefined() -> None:
    report = compare(version({1: 1.0}, {1: 1.0}), version({1: 1.0}, {2: 1.0}, owner=OWNER_B))
    assert report.n_sampled == report.users.both == 0
    assert report.overlap is report.identical is report.rank_correlation is report.score_drift is None
    assert report.a.coverage is report.b.coverage is None
    assert report.gained == report.lost == ()
    strict(report)


def test_the_sample_depends_on_the_seed_alone() -> None:
    everybody = dict.fromkeys(range(1, 51), 1.0)
    scores = {movie: float(movie) for movie in range(1, 9)}
    a = version(scores, everybody)
    b = version(scores, {user: -1.0 if user % 2 else 1.0 for user in everybody}, owner=OWNER_B)
    reports = [compare(a, b, n_users=10, k=3, random_state=seed) for seed in (1, 1, 2, 3, 4)]
    assert {report.n_sampled for report in reports} == {10}
    assert reports[0] == reports[1]
    assert len({report.identical for report in reports}) > 1
    assert compare(a, b, n_users=50).n_sampled == 50
    assert compare(a, b, n_users=51).n_sampled == 50


def test_the_same_users_are_asked_of_both_and_nobody_twice() -> None:
    asked: dict[str, list[int]] = {"a": [], "b": []}

    class Recorder(Recommender):
        def recommend(self, user_id: int, *arguments: Any, **options: Any) -> Ranking:
            asked[self.model.version].append(user_id)
            return super().recommend(user_id, *arguments, **options)

    everybody = dict.fromkeys(range(1, 51), 1.0)
    a, b = (Recorder(replace(version({1: 1.0}, everybody).model, version=name)) for name in "ab")
    compare(a, b, n_users=45)
    assert asked["a"] == asked["b"]
    assert len(set(asked["a"])) == len(asked["a"]) == 45
    assert set(asked["a"]) <= {*everybody, OWNER_A}


def test_each_user_is_told_once() -> None:
    calls: list[None] = []
    compare(version({1: 1.0}), version({1: 2.0}, owner=OWNER_B), on_user=lambda: calls.append(None))
    assert len(calls) == 3


@pytest.mark.parametrize(
    "wrong", [{"n_users": 0}, {"k": 0}, {"k": 101}, {"random_state": -1}], ids=lambda wrong: str(wrong)
)
def test_arguments_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    one = version({1: 1.0})
    with pytest.raises(ConfigError, match=rf"is {next(iter(wrong.values()))}; expected"):
        compare(one, one, **wrong)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_random_versions_differ_as_a_plain_recount_says(k: int) -> None:
    a, b = (Recommender(in_memory(make_model(RATINGS, random_state=seed))) for seed in (1, 2))
    users = a.model.users.ids.tolist()
    lists = [[side.model.items.ids[side.recommend(user, k).item_indices] for user in users] for side in (a, b)]
    report = compare(a, b, k=k)
    expected = [
        len(set(one.tolist()) & set(other.tolist())) / max(len(one), len(other))
        for one, other in zip(*lists, strict=True)
    ]
    assert report.overlap == pytest.approx(np.mean(expected))
    for of in report.gained + report.lost:
        shares = [np.mean([of.movie_id in one for one in side]) for side in lists]
        assert (of.a, of.b) == pytest.approx(shares)
        assert of.difference == pytest.approx(shares[1] - shares[0])


def test_the_other_way_round_everything_changes_sign() -> None:
    a, b = (Recommender(in_memory(make_model(RATINGS, random_state=seed))) for seed in (1, 2))
    there, back = compare(a, b, k=2), compare(b, a, k=2)
    assert (there.overlap, there.identical) == (back.overlap, back.identical)
    assert there.rank_correlation == pytest.approx(back.rank_correlation)
    assert there.score_drift
    assert back.score_drift
    assert there.score_drift["als"].mean == pytest.approx(-back.score_drift["als"].mean)
    assert [(of.movie_id, of.a, of.b) for of in there.gained] == [(of.movie_id, of.b, of.a) for of in back.lost]


def test_the_second_stage_answers_where_there_is_one() -> None:
    model = in_memory(trained()[1])
    a, b = Recommender(replace(model, ranker=None)), load_recommender(model)
    report = compare(a, b, n_users=len(model.users), k=5)
    n_users = len(model.users)
    assert (report.a.has_ranker, report.b.has_ranker) == (False, True)
    assert report.a.sources == {"als": n_users - 1, "popular": 1}
    assert report.b.sources == {"popular": 1, "ranker": n_users - 1}
    assert report.score_drift == {"popular": Drift(0.0, 0.0, n_scores=5, n_users=1)}
    first = ListOptions(ranker=False)
    for user_id in (LIKES_NOTHING, *model.users.ids[:5].tolist()):
        assert a.recommend(user_id, 5).item_indices.tolist() == b.recommend(user_id, 5, first).item_indices.tolist()
    assert 0 < (report.overlap or 0) < 1
    assert report.rank_correlation
    strict(report)


def test_the_report_is_json_and_defines_what_it_measures() -> None:
    report = compare(version({1: 2.0, 2: 1.0}), version({1: 1.0, 3: 2.0}, owner=OWNER_B), k=1)
    read = strict(report)
    assert isinstance(read, dict)
    assert read["definitions"] == DEFINITIONS
    assert read["movies"] == {"a_only": 1, "b_only": 1, "both": 2}
    assert read["gained"][0]["movie_id"] == 3
    measures = {"overlap", "identical", "rank_correlation", "score_drift"}
    assert measures <= read.keys() & DEFINITIONS.keys()
    assert {"sources", "coverage"} <= read["a"].keys() & DEFINITIONS.keys()
