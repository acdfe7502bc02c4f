"""A version of a large catalogue: the index proposes, exact scores decide; what defeats it is scored exactly."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app import artifacts
from app.als import Factors
from app.artifacts import LoadedModel, load_version
from app.filters import Filter
from app.index import INDEX, MOST_PLACES
from app.main import create_app
from app.recommender import ListOptions, Ranking, Recommender
from app.registry import publish
from app.settings import Settings
from tests.models import forge, make_model, serve

N_ITEMS, N_USERS, FACTORS, N_RATED = 24_000, 30, 16, 8
YEARS = (1990, 1999, 2005)


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version with an index; its factors lie in clusters, as those of a fit do."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(200, FACTORS))
    items = centres[rng.integers(0, 200, N_ITEMS)] + 0.3 * rng.normal(size=(N_ITEMS, FACTORS))
    users = centres[rng.integers(0, 200, N_USERS)] + 0.3 * rng.normal(size=(N_USERS, FACTORS))
    # User 30 likes everything, so that each movie has a positive.
    rated = [(user, int(movie), 5.0) for user in range(1, N_USERS) for movie in rng.choice(N_ITEMS, N_RATED, False) + 1]
    model = make_model([*rated, *((N_USERS, movie, 4.0) for movie in range(1, N_ITEMS + 1))], factors=FACTORS)
    years = np.array(YEARS)[np.arange(N_ITEMS) % 3]
    model = replace(
        model,
        factors=Factors(users.astype(np.float32), items.astype(np.float32)),
        movies=model.movies.assign(year=years),
    )
    folder = tmp_path_factory.mktemp("artifacts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artifacts, "THRESHOLD", N_ITEMS)
        published = publish(folder, model)
    return folder / "versions" / published.version


@pytest.fixture(scope="module")
def indexed(version: Path) -> LoadedModel:
    return load_version(version)


@pytest.fixture(scope="module")
def exact(indexed: LoadedModel) -> Recommender:
    return Recommender(replace(indexed, index=None))


def items_of(ranking: Ranking) -> list[int]:
    return ranking.item_indices.tolist()


def test_a_version_below_the_threshold_has_no_index(tmp_path: Path) -> None:
    publish(tmp_path, make_model())
    assert not [*tmp_path.rglob(INDEX)]


def test_health_says_what_finds_the_best(version: Path) -> None:
    with serve(create_app(Settings(artifacts_dir=version.parent.parent))) as get:
        assert get("/health").json()["index"] == f"usearch HNSW, inner product, {N_ITEMS:,} movies"
        assert get("/recommend?user_id=1&k=3").json()["n_results"] == 3


def test_lists_are_nearly_the_exact_ones_with_exact_scores(indexed: LoadedModel, exact: Recommender) -> None:
    asked = Recommender(indexed)
    n_found = 0
    for user_id in range(1, N_USERS):
        found, true = asked.recommend(user_id, 10), exact.recommend(user_id, 10)
        score_of = dict(zip(items_of(exact.recommend(user_id, 500)), exact.recommend(user_id, 500).scores, strict=True))
        assert found.scores.tolist() == [score_of[item] for item in items_of(found)]
        assert len(set(items_of(found))) == 10
        n_found += len({*items_of(found)} & {*items_of(true)})
    assert n_found >= 0.95 * 10 * (N_USERS - 1)


def test_the_index_was_asked(indexed: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the other tests would compare exact scoring with itself."""
    asked = []
    monkeypatch.setattr(type(indexed.index), "candidates", lambda _self, _factor, n: asked.append(n) or np.arange(n))
    Recommender(indexed).recommend(1, 10)
    Recommender(indexed).recommend_cold([1, 2, 3], 10)
    Recommender(indexed).recommend(1, 10, ListOptions(filter=Filter(exclude=(5, 6))))
    assert asked == [10 + N_RATED, 10 + 3, 10 + N_RATED + 2]


@pytest.mark.parametrize("user_id", [1, 2, 17])
def test_what_was_seen_or_excluded_is_not_listed(indexed: LoadedModel, exact: Recommender, user_id: int) -> None:
    best = [int(indexed.items.ids[item]) for item in items_of(exact.recommend(user_id, 4))]
    wanted = ListOptions(filter=Filter(exclude=tuple(best)))
    listed = {int(indexed.items.ids[item]) for item in items_of(Recommender(indexed).recommend(user_id, 10, wanted))}
    assert not listed & {*best}
    seen = indexed.history.of(indexed.users.index_of(user_id)).item_index
    assert not {*seen.tolist()} & {*items_of(Recommender(indexed).recommend(user_id, 50))}
    assert len(listed) == 10


def test_a_filter_by_kind_is_answered_exactly(indexed: LoadedModel, exact: Recommender) -> None:
    wanted = ListOptions(filter=Filter(year_min=2000))
    for user_id in range(1, N_USERS):
        found, true = (each.recommend(user_id, 10, wanted) for each in (Recommender(indexed), exact))
        assert items_of(found) == items_of(true)


def test_who_has_seen_too_much_for_the_index_is_answered_exactly(indexed: LoadedModel, exact: Recommender) -> None:
    assert items_of(Recommender(indexed).recommend(N_USERS, 10)) == items_of(exact.recommend(N_USERS, 10)) == []


@pytest.mark.parametrize("k", [MOST_PLACES + 1, 100])
def test_a_long_list_is_exact(indexed: LoadedModel, exact: Recommender, k: int) -> None:
    for user_id in range(1, N_USERS):
        assert items_of(Recommender(indexed).recommend(user_id, k)) == items_of(exact.recommend(user_id, k))


@pytest.mark.parametrize("k", [10, 50])
@pytest.mark.parametrize("wanted", [Filter(), Filter(exclude=(5, 6)), Filter(year_min=2000)])
def test_many_users_get_what_each_would_get_alone(indexed: LoadedModel, k: int, wanted: Filter) -> None:
    asked, ids, options = Recommender(indexed), [3, 1, N_USERS, 999, 3], ListOptions(filter=wanted)
    for user_id, found in zip(ids, asked.recommend_many(ids, k, options), strict=True):
        if user_id == 999:
            assert found is None
        else:
            assert found is not None
            alone = asked.recommend(user_id, k, options)
            assert (items_of(found), found.scores.tolist()) == (items_of(alone), alone.scores.tolist())


def test_a_list_that_the_index_cannot_fill_is_made_exactly(
    indexed: LoadedModel, exact: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(indexed.index), "candidates", lambda _self, _factor, _n: np.arange(3))
    assert items_of(Recommender(indexed).recommend(1, 10)) == items_of(exact.recommend(1, 10))


def test_a_damaged_index_is_refused(version: Path, tmp_path: Path) -> None:
    def cut(folder: Path) -> None:
        (folder / INDEX).write_bytes((folder / INDEX).read_bytes()[:-100])

    with pytest.raises(artifacts.ArtifactError, match=rf"{INDEX}.*train_als\.py"):
        load_version(forge(version, tmp_path, cut))


def test_without_its_library_all_movies_are_scored(
    version: Path, exact: Recommender, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    model = load_version(version)
    assert model.index is None
    assert "without the index" in caplog.text
    assert items_of(Recommender(model).recommend(1, 10)) == items_of(exact.recommend(1, 10))
