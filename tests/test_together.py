"""Requests of one moment are scored by one product, and each gets what it would get alone, whoever else leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st

from app.main import create_app
from app.recommender import Ranking, Recommender
from app.registry import publish
from app.routers.together import Together
from app.serving import Served
from app.settings import Settings
from tests.models import BIG_USER, LIKES_NOTHING, in_memory, make_model, trained

UNKNOWN = 999_999
KNOWN = (1, 2, 7, 9, BIG_USER)


class Watched(Recommender):
    """Notes whom it is asked about together."""

    def recommend_many(self, user_ids: Sequence[int], *args: Any) -> list[Ranking | None]:
        self.__dict__.setdefault("asked", []).append(list(user_ids))
        return super().recommend_many(user_ids, *args)


def watched(seed: int = 0) -> Watched:
    return Watched(in_memory(make_model(random_state=seed)))


def assert_same(found: Ranking | None, expected: Ranking | None) -> None:
    if found is None or expected is None:
        assert found is expected
        return
    assert found.source == expected.source
    np.testing.assert_array_equal(found.item_indices, expected.item_indices)
    np.testing.assert_array_equal(found.scores, expected.scores)


def alone(recommender: Recommender, user_id: int, k: int) -> Ranking | None:
    return recommender.recommend(user_id, k) if user_id != UNKNOWN else None


async def crowd(together: Together, recommender: Recommender, n: int) -> int:
    """Ask ``n`` times in one round; return how many of them were kept back."""
    joined = [together.join(recommender, 1, 1) for _ in range(n)]
    kept = [each for each in joined if each]
    await asyncio.gather(*kept)
    await asyncio.sleep(0)
    return len(kept)


async def after_a_crowd() -> Together:
    """Return one that expects many requests in the next round."""
    together, recommender = Together(), watched()
    for _ in range(6):
        await crowd(together, recommender, 16)
    return together


async def answered(together: Together, recommender: Recommender, user_id: int, k: int) -> Ranking | None:
    joined = together.join(recommender, user_id, k)
    return await joined if joined else alone(recommender, user_id, k)


# --- one round


@given(st.lists(st.tuples(st.sampled_from([*KNOWN, UNKNOWN]), st.integers(1, 7)), min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_everybody_gets_what_they_would_alone(asked: list[tuple[int, int]]) -> None:
    async def run() -> list[Ranking | None]:
        together = await after_a_crowd()
        return await asyncio.gather(*(answered(together, recommender, *each) for each in asked))

    recommender = watched()
    for each, found in zip(asked, asyncio.run(run()), strict=True):
        assert_same(found, alone(recommender, *each))
    assert recommender.__dict__["asked"] == [[user_id for user_id, _ in asked]]  # by one product


def test_users_of_a_trained_model_get_what_they_would_alone() -> None:
    recommender = Recommender(in_memory(replace(trained()[1], ranker=None)))
    users = [*recommender.model.users.ids.tolist(), UNKNOWN, LIKES_NOTHING]
    asked = [(user_id, 1 + n * 37 % 100) for n, user_id in enumerate(users)]

    async def run() -> list[Ranking | None]:
        together = await after_a_crowd()
        return await asyncio.gather(*(answered(together, recommender, *each) for each in asked))

    for each, found in zip(asked, asyncio.run(run()), strict=True):
        assert_same(found, alone(recommender, *each))


def test_nobody_waits_for_who_comes_later() -> None:
    async def run() -> None:
        together = await after_a_crowd()
        assert_same(await together.join(recommender, 1, 3), alone(recommender, 1, 3))

    recommender = watched()
    asyncio.run(run())
    assert recommender.__dict__["asked"] == [[1]]


def test_few_are_answered_as_they_come_and_many_together() -> None:
    async def run() -> None:
        together, recommender = Together(), watched()
        assert [await crowd(together, recommender, 1) for _ in range(50)] == [0] * 50
        assert await crowd(together, recommender, 16) == 0  # a pause of the machine
        assert [await crowd(together, recommender, n) for n in (9, 6, 3, 1, 1)] == [0] * 5
        assert [await crowd(together, recommender, 16) for _ in range(6)][-3:] == [16] * 3
        assert [await crowd(together, recommender, n) for n in (1, 15) * 10] == [1, 15] * 10  # a crowd all the same
        assert [await crowd(together, recommender, 2) for _ in range(20)][-10:] == [0] * 10

    asyncio.run(run())


def test_two_versions_of_one_round_answer_for_themselves() -> None:
    old, new = watched(0), watched(1)

    async def run() -> list[Ranking | None]:
        together = await after_a_crowd()
        asked = [(old, 1), (old, 9), (new, 1), (new, UNKNOWN), (old, 2), (new, 9)]
        return await asyncio.gather(*(answered(together, recommender, user_id, 5) for recommender, user_id in asked))

    found = asyncio.run(run())
    for ranking, (recommender, user_id) in zip(
        found, [(old, 1), (old, 9), (new, 1), (new, UNKNOWN), (old, 2), (new, 9)], strict=True
    ):
        assert_same(ranking, alone(recommender, user_id, 5))
    assert [*chain(*new.__dict__["asked"])] == [1, UNKNOWN, 9]


def test_who_leaves_costs_the_others_nothing() -> None:
    async def run() -> tuple[Ranking | None, Ranking | None]:
        together = await after_a_crowd()
        first, gone, last = (
            asyncio.ensure_future(answered(together, recommender, user_id, 5)) for user_id in (1, 2, 9)
        )
        await asyncio.sleep(0)
        gone.cancel()
        found = await first, await last
        assert gone.cancelled()
        return found

    recommender = watched()
    first, last = asyncio.run(run())
    assert_same(first, alone(recommender, 1, 5))
    assert_same(last, alone(recommender, 9, 5))


def test_when_all_leave_nothing_is_left_over() -> None:
    async def run() -> None:
        together = await after_a_crowd()
        for each in [together.join(recommender, 1, 5) for _ in range(3)]:
            assert each
            each.cancel()
        await asyncio.sleep(0)
        assert_same(await answered(together, recommender, 1, 5), alone(recommender, 1, 5))

    recommender = watched()
    asyncio.run(run())


def test_a_fault_reaches_everybody_of_the_round_and_nobody_after_it() -> None:
    class Failing(Recommender):
        def recommend_many(self, user_ids: Sequence[int], *args: Any) -> list[Ranking | None]:
            if 2 in user_ids:
                raise RuntimeError("boom")
            return super().recommend_many(user_ids, *args)

    async def run() -> None:
        together = await after_a_crowd()
        asked = [asyncio.ensure_future(answered(together, recommender, user_id, 5)) for user_id in (1, 2, 9)]
        await asyncio.sleep(0)
        asked[2].cancel()
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert [str(error) for error in found[:2]] == ["boom", "boom"]
        assert isinstance(found[2], asyncio.CancelledError)
        assert_same(await answered(together, recommender, 1, 5), alone(recommender, 1, 5))

    recommender = Failing(in_memory(make_model()))
    asyncio.run(run())


def test_a_fault_of_one_version_does_not_reach_the_other() -> None:
    class Failing(Recommender):
        def recommend_many(self, *_args: object) -> list[Ranking | None]:
            raise RuntimeError("boom")

    async def run() -> list[Any]:
        together = await after_a_crowd()
        asked = [(broken, 1), (intact, 1), (broken, 9)]
        futures = (answered(together, recommender, user_id, 5) for recommender, user_id in asked)
        return await asyncio.gather(*futures, return_exceptions=True)

    broken, intact = Failing(in_memory(make_model())), watched()
    first, ranking, last = asyncio.run(run())
    assert str(first) == str(last) == "boom"
    assert_same(ranking, alone(intact, 1, 5))


# --- through the service


@pytest.fixture(scope="module")
def artifacts_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts")
    publish(folder, make_model())
    return folder


def app_of(artifacts_dir: Path) -> FastAPI:
    return create_app(Settings(artifacts_dir=artifacts_dir, cache_size=0, reload_seconds=0))


def expect_crowd(app: FastAPI) -> None:
    app.state.answering._together._usual = 1e6


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://service") as client,
    ):
        yield client


URLS = [
    *(f"/recommend?user_id={user_id}&k={k}" for k in (1, 3, 100) for user_id in (*KNOWN, UNKNOWN)),
    *(f"/recommend?user_id={user_id}&on_unknown=popular" for user_id in (1, 7, UNKNOWN)),
    *("/recommend?user_id=1&genre=drama", "/recommend?user_id=1&explain=true", "/recommend?user_id=9&novelty=0.5"),
    *("/recommend_cold?liked=1,2", "/recommend_cold", "/similar?movie_id=1", "/popular", "/movies?query=toy"),
    *("/recommend?user_id=x", "/recommend?user_id=1&genre=none", "/nowhere", "/movies/1", "/users/1"),
]


def test_requests_at_once_are_answered_as_one_by_one(artifacts_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n_together: list[int] = []
    answer = Recommender.recommend_many

    def recommend_many(self: Recommender, user_ids: Sequence[int], *args: Any) -> list[Ranking | None]:
        n_together.append(len(user_ids))
        return answer(self, user_ids, *args)

    async def run() -> None:
        app = app_of(artifacts_dir)
        async with running(app) as client:
            expected = [await client.get(url) for url in URLS]
            expect_crowd(app)
            assert {response.status_code for response in expected} == {200, 404, 422}
            monkeypatch.setattr(Recommender, "recommend_many", recommend_many)
            for _ in range(3):
                found = await asyncio.gather(*map(client.get, URLS))
                assert [each.content for each in found] == [each.content for each in expected]
                assert [each.status_code for each in found] == [each.status_code for each in expected]

    asyncio.run(run())
    assert max(n_together) > 10


def test_callers_that_leave_cost_the_others_nothing(artifacts_dir: Path) -> None:
    async def run() -> None:
        app = app_of(artifacts_dir)
        async with running(app) as client:
            expected = (await client.get("/recommend?user_id=1")).content
            expect_crowd(app)
            for n_rounds in range(12):  # so that they leave at each point of their way
                asked = [asyncio.create_task(client.get("/recommend?user_id=1")) for _ in range(8)]
                for _ in range(n_rounds):
                    await asyncio.sleep(0)
                for task in asked[::2]:
                    task.cancel()
                found = await asyncio.gather(*asked, return_exceptions=True)
                stayed = [each for each in found[1::2] if isinstance(each, httpx.Response)]
                assert [each.content for each in stayed] == [expected] * 4
            assert (await client.get("/metrics")).text.count("recs_requests_in_flight 0.0") == 1

    asyncio.run(run())


def test_a_fault_is_one_problem_for_each(artifacts_dir: Path) -> None:
    class Broken(Recommender):
        def recommend_many(self, *_args: object) -> list[Ranking | None]:
            raise RuntimeError("secret")

    async def run() -> None:
        app = app_of(artifacts_dir)
        async with running(app) as client:
            intact = app.state.serving.now
            app.state.serving.now = Served(Broken(intact.recommender.model))
            urls = [f"/recommend?user_id={user_id}" for user_id in KNOWN]
            expect_crowd(app)
            found = await asyncio.gather(*map(client.get, urls), client.get("/popular"))
            assert [response.status_code for response in found] == [500] * 5 + [200]
            assert all("secret" not in response.text for response in found)
            app.state.serving.now = intact
            assert [(await client.get(url)).status_code for url in urls] == [200] * 5
            metrics = (await client.get("/metrics")).text
            assert 'recs_requests_total{method="GET",route="/recommend",status="500"} 5.0' in metrics

    asyncio.run(run())


def test_each_request_of_a_round_is_answered_by_the_version_it_began_with(artifacts_dir: Path) -> None:
    async def run() -> None:
        app = app_of(artifacts_dir)
        async with running(app) as client:
            old = app.state.serving.now
            new = Served(Recommender(in_memory(make_model(random_state=1))))
            urls = [f"/recommend?user_id={user_id}" for user_id in (1, 9, 2)]
            expected = {}
            for version, served in (("in memory", new), (old.recommender.model.version, old)):
                app.state.serving.now = served
                expected[version] = [(await client.get(url)).json() for url in urls]
            versions: set[str] = set()
            expect_crowd(app)
            for n_rounds in range(12):  # one of which is between two requests
                app.state.serving.now = old
                first = [asyncio.create_task(client.get(url)) for url in urls]
                for _ in range(n_rounds):
                    await asyncio.sleep(0)
                app.state.serving.now = new
                last = [asyncio.create_task(client.get(url)) for url in urls]
                for tasks in (first, last):
                    for n, response in enumerate(await asyncio.gather(*tasks)):
                        answer = response.json()
                        assert answer == expected[answer["version"]][n]
                        versions.add(answer["version"])
                        assert tasks is first or answer["version"] == "in memory"
            assert len(versions) == 2

    asyncio.run(run())
