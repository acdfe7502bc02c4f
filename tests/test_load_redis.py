"""The service under load while its Redis dies, comes back, and stands still: no request is lost or much slower."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from app.registry import current_folder, publish
from app.serving import load_warm
from tests.models import trained
from tests.redis_servers import RedisServer, running_redis
from tests.servers import Server, client_of, serving

N_CLIENTS, N_USERS, K = 4, 80, 10
HITS = 'recs_cache_lookups_total{level="shared",result="hit"}'
STALL_SECONDS = 2.0
WAIT_SECONDS = 30.0

pytestmark = pytest.mark.slow


class Asked(NamedTuple):
    began: float
    seconds: float
    user_id: int
    answer: Any  # the JSON, or text that says what went wrong


class Load:
    """Clients that ask for many users' lists without pause, and note how that went."""

    def __init__(self, url: str, user_ids: list[int]) -> None:
        self._url, self._user_ids = url, user_ids
        self._done = threading.Event()
        self._asked: list[list[Asked]] = [[] for _ in range(N_CLIENTS)]
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(N_CLIENTS)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def asked(self) -> list[Asked]:
        return [each for one in self._asked for each in one]

    def _run(self, n: int) -> None:
        start = n * len(self._user_ids) // N_CLIENTS
        users = itertools.cycle(self._user_ids[start:] + self._user_ids[:start])
        with client_of(self._url) as client:
            while not self._done.is_set():
                user_id, began = next(users), time.monotonic()
                try:
                    response = client.get("/recommend", params={"user_id": user_id, "k": K})
                    answer = response.json() if response.status_code == 200 else response.text
                except Exception as error:
                    answer = repr(error)
                self._asked[n].append(Asked(began, time.monotonic() - began, user_id, answer))


@pytest.fixture(scope="module")
def artifacts_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts")
    publish(folder, trained()[1])
    return folder


@contextmanager
def loaded_service(artifacts_dir: Path, folder: Path) -> Iterator[tuple[Server, RedisServer, Load]]:
    """Serve with Redis and no cache in the process, under load, once answers come from Redis."""
    with (
        running_redis(folder) as redis,
        serving(
            artifacts_dir, folder / "uvicorn.log", redis_url=redis.url, cache_size=0, reload_seconds=0, log_level="info"
        ) as server,
    ):
        load = Load(server.url, trained()[1].users.ids[:N_USERS].tolist())
        load.start()
        try:
            wait_until_hits_grow(server)
            yield server, redis, load
        finally:
            load.stop()


def wait_for(server: Server, name: str, at_least: float, at_most: float = float("inf")) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not at_least <= (found := server.metric(name)) <= at_most:
        assert time.monotonic() < deadline, f"{name} is {found}; its log ends with\n{server.log.read_text()[-3000:]}"
        time.sleep(0.05)


def wait_until_hits_grow(server: Server) -> None:
    wait_for(server, HITS, server.metric(HITS) + 3 * N_USERS)


def wait_for_redis(server: Server, *, up: bool) -> None:
    wait_for(server, "recs_redis_up", up, up)


def check_answers(asked: list[Asked], artifacts_dir: Path) -> None:
    """Check that every request was answered with the list of its user, by the second stage."""
    failures = [each for each in asked if not isinstance(each.answer, dict)]
    assert failures == [], failures[:3]
    wrong = [each for each in asked if listed(each.answer) != expected(artifacts_dir, each.user_id)]
    assert wrong == [], wrong[:3]


def listed(answer: dict[str, Any]) -> tuple[object, ...]:
    return answer["user_id"], answer["source"], *((each["movie_id"], each["score"]) for each in answer["results"])


@cache
def expected(artifacts_dir: Path, user_id: int) -> tuple[object, ...]:
    recommender = recommender_of(artifacts_dir)
    ranking = recommender.recommend(user_id, K)
    movie_ids = recommender.model.items.ids[ranking.item_indices].tolist()
    scores = [float(f"{score:.7g}") for score in ranking.scores.tolist()]
    return user_id, ranking.source, *zip(movie_ids, scores, strict=True)


@cache
def recommender_of(artifacts_dir: Path) -> Any:
    return load_warm(current_folder(artifacts_dir))


def test_no_request_is_lost_when_redis_is_killed_and_it_is_used_again_when_it_is_back(
    artifacts_dir: Path, tmp_path: Path
) -> None:
    with loaded_service(artifacts_dir, tmp_path) as (server, redis, load):
        assert server.metric("recs_redis_up") == 1
        redis.kill()
        wait_for_redis(server, up=False)
        n_hits = server.metric(HITS)
        time.sleep(1)
        assert server.metric(HITS) == n_hits
        redis.start()
        wait_for_redis(server, up=True)
        wait_until_hits_grow(server)
    check_answers(load.asked(), artifacts_dir)
    log = server.log.read_text()
    assert log.count("is left alone") == 1, log[-3000:]
    assert log.count("answers again") == 1, log[-3000:]
    assert "Traceback" not in log


def test_a_redis_that_stands_still_delays_nobody_by_a_second(artifacts_dir: Path, tmp_path: Path) -> None:
    with loaded_service(artifacts_dir, tmp_path) as (server, redis, load):
        time.sleep(1)
        paused = time.monotonic()
        redis.pause()
        time.sleep(STALL_SECONDS)
        redis.resume()
        wait_for_redis(server, up=True)
        wait_until_hits_grow(server)
    asked = load.asked()
    check_answers(asked, artifacts_dir)
    usual = max(each.seconds for each in asked if each.began + each.seconds < paused)
    longest = max(each.seconds for each in asked if each.began + each.seconds >= paused)
    assert longest < usual + 1, (longest, usual)
    assert server.log.read_text().count("is left alone") == 1
