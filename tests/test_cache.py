"""The response cache keeps what fits, shares what Redis can hold, and never fails a request, whatever Redis does."""

from __future__ import annotations

import ast
import asyncio
import logging
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import pytest
import redis
import uvloop
from hypothesis import example, given
from hypothesis import strategies as st

from app.cache import Cached, CacheKey, ResponseCache, breaker, local, shared
from app.cache.breaker import FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS, N_FAILURES, Breaker
from app.cache.entries import Level, Operation, Part, canonical, pack, redis_key, unpack
from app.cache.local import LocalCache
from app.cache.shared import N_CONNECTIONS
from app.errors import ConfigError
from tests.redis_servers import RedisServer, running_redis
from tests.servers import ROOT, free_port

Result = TypeVar("Result")
VERSION = "20261123T101500Z-1a2b3c4d"
ANSWER = Cached(b'{"k":10}', "als")
PATIENT, BRIEF = 5.0, 0.2  # seconds; a busy machine lets this process stand still for 0.1
SECRET = "s3cr3t-pass"  # noqa: S105 - of a server that lives for a test


def key_of(number: int, version: str = VERSION) -> CacheKey:
    return (version, "recommend", 0, number, 10, True, 0.5, None, ("Drama",))


class Recorder:
    """Remember what the cache tells."""

    def __init__(self) -> None:
        self.lookups: Counter[tuple[Level, bool]] = Counter()
        self.errors: Counter[Operation] = Counter()
        self.states: list[bool] = []

    def on_lookup(self, level: Level, hit: bool) -> None:
        self.lookups[level, hit] += 1

    def on_shared_state(self, up: bool) -> None:
        self.states.append(up)

    def on_shared_error(self, operation: Operation) -> None:
        self.errors[operation] += 1


class Clock:
    """A monotonic clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    moved = Clock()
    monkeypatch.setattr(local, "monotonic", moved)
    monkeypatch.setattr(breaker, "monotonic", moved)
    return moved


# In this process


def test_an_answer_comes_back_under_an_equal_key_alone() -> None:
    events = Recorder()
    cache = ResponseCache(10, 60, events=events)
    cache.local_put(key_of(1), ANSWER)

    assert cache.local_get(key_of(1)) == ANSWER
    assert cache.local_get(key_of(2)) is None
    assert cache.local_get(key_of(1, version="20261124T101500Z-5e6f7a8b")) is None
    assert events.lookups == {("local", True): 1, ("local", False): 2}


def test_the_least_recently_used_answer_leaves_first() -> None:
    cache = ResponseCache(2, 60)
    cache.local_put(key_of(1), ANSWER)
    cache.local_put(key_of(2), ANSWER)
    cache.local_get(key_of(1))
    cache.local_put(key_of(3), ANSWER)

    assert [cache.local_get(key_of(number)) is not None for number in (1, 2, 3)] == [True, False, True]


def test_replacing_an_answer_drives_no_other_out() -> None:
    cache = ResponseCache(2, 60)
    for number in (1, 2, 2):
        cache.local_put(key_of(number), ANSWER)

    assert cache.local_get(key_of(1)) == ANSWER


def test_an_answer_lives_as_long_as_it_was_told(clock: Clock) -> None:
    cache = LocalCache(10, 1 << 20, 60)
    cache.put(key_of(1), ANSWER)
    clock.now += 59.9
    assert cache.get(key_of(1)) == ANSWER
    clock.now += 0.2
    assert cache.get(key_of(1)) is None
    assert (cache.n_entries, cache.n_bytes) == (0, 0)


def test_a_cache_of_size_0_keeps_and_counts_nothing() -> None:
    events = Recorder()
    cache = ResponseCache(0, 60, events=events)
    cache.local_put(key_of(1), ANSWER)

    assert cache.local_get(key_of(1)) is None
    assert not events.lookups


def test_a_cache_without_a_url_shares_nothing() -> None:
    async def run() -> None:
        events = Recorder()
        cache = ResponseCache(10, 60, events=events)
        await cache.put(key_of(1), ANSWER)
        assert await cache.get(key_of(1)) is None
        assert cache.local_get(key_of(1)) == ANSWER
        await cache.close()
        assert (events.lookups, events.states) == ({("local", True): 1}, [])

    asyncio.run(run())


@given(
    st.integers(1, 5),
    st.integers(0, 12_000),
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 6000), st.booleans()), max_size=40),
)
def test_neither_bound_is_ever_exceeded(max_entries: int, max_bytes: int, puts: list[tuple[int, int, bool]]) -> None:
    cache = LocalCache(max_entries, max_bytes, 60)
    for number, n_bytes, with_long_key in puts:
        key: CacheKey = (VERSION, "batch", 0, tuple(range(number * 100))) if with_long_key else key_of(number)
        cached = Cached(bytes(n_bytes), "als")
        alone = LocalCache(1, 1 << 30, 60)
        alone.put(key, cached)
        before = (cache.n_entries, cache.n_bytes, cache.get(key))
        cache.put(key, cached)
        assert cache.n_entries <= max_entries
        assert cache.n_bytes <= max_bytes
        if alone.n_bytes <= max_bytes:
            assert cache.get(key) == cached
        else:  # it has driven nothing out
            assert (cache.n_entries, cache.n_bytes, cache.get(key)) == before


def test_the_bytes_of_a_long_key_count() -> None:
    key: CacheKey = (VERSION, "batch", 0, tuple(range(100_000, 101_000)))  # a pointer and an int of 28 bytes each
    cache = LocalCache(10, 1 << 20, 60)
    cache.put(key, ANSWER)
    assert cache.n_bytes > 36_000


# Keys and values

parts = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4).map(tuple),
    max_leaves=8,
)
keys = st.tuples(st.text(), st.text(), st.integers(), parts, parts)


@given(keys)
@example(("", "", 0, "\ud800'\"\\\n", (("a",), "b")))
def test_a_key_can_be_read_back_from_its_encoding_so_no_two_share_one(key: tuple[Part, ...]) -> None:
    assert repr(ast.literal_eval(canonical(key).decode("ascii"))) == repr(key)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a", "b"), ("ab",)),
        (("a", "b"), ("a, b",)),
        (("a', 'b",), ("a", "b")),
        ((("a",), "b"), ("a", ("b",))),
        ((1,), ("1",)),
        ((1,), (True,)),
        ((0,), (None,)),
        (("",), ()),
        ((b"a",), ("a",)),
    ],
)
def test_keys_that_look_alike_differ_in_redis(one: tuple[Part, ...], other: tuple[Part, ...]) -> None:
    assert redis_key((VERSION, "similar", 0, *one)) != redis_key((VERSION, "similar", 0, *other))


def test_a_key_in_redis_begins_with_the_version_and_is_the_same_in_every_process() -> None:
    code = f"from app.cache.entries import redis_key; print(redis_key({key_of(1)!r}))"
    found = {
        subprocess.check_output(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, text=True, cwd=ROOT
        )
        for seed in ("1", "2")
    }
    assert found == {redis_key(key_of(1)) + "\n"}
    prefix, version, digest = redis_key(key_of(1)).split(":")
    assert (prefix, version, len(digest)) == ("recs", VERSION, 32)


def test_another_release_of_the_program_does_not_see_this_ones_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    before = redis_key(key_of(1))
    monkeypatch.setattr("app.cache.entries.__version__", "99.0.0")
    assert redis_key(key_of(1)) != before


@given(st.binary(), st.sampled_from(("als", "fold_in", "ranker", "popular")))
def test_a_value_survives_packing(body: bytes, source: str) -> None:
    assert unpack(pack(Cached(body, source))) == Cached(body, source)


@given(st.binary())
@example(b"")
@example(b"als 3\nabcd")
@example(b"als 5\nabcd")
@example(b"als 4\r\nabcd")
@example(b"als -4\nabcd")
@example(b"a\nls 4\nabcd")
@example(b"als 99999999999999999999\nabcd")
def test_bytes_that_nothing_was_packed_to_are_a_miss(data: bytes) -> None:
    found = unpack(data)
    assert found is None or pack(found) == data


def test_every_value_that_was_cut_short_is_a_miss() -> None:
    packed = pack(ANSWER)
    assert [unpack(packed[:n]) for n in range(len(packed))] == [None] * len(packed)


# The breaker


class Switch:
    """A breaker, and how often it opened and closed."""

    def __init__(self) -> None:
        self.opened: list[Exception] = []
        self.n_closed = 0
        self.breaker = Breaker(self.opened.append, self._count)

    def _count(self) -> None:
        self.n_closed += 1

    def fail(self, n: int = N_FAILURES) -> None:
        """Let calls fail one after another."""
        for number in range(n):
            self.breaker.failed(self.admit(), ValueError(number))

    def admit(self) -> int:
        ticket = self.breaker.admit()
        assert ticket is not None
        return ticket


@pytest.mark.usefixtures("clock")
def test_the_breaker_opens_after_three_failures_in_a_row() -> None:
    switch = Switch()
    switch.fail(2)
    switch.breaker.succeeded(switch.admit())
    switch.fail(2)
    assert switch.breaker.is_closed

    switch.fail(1)
    assert not switch.breaker.is_closed
    assert switch.breaker.admit() is None
    assert len(switch.opened) == 1


def test_one_call_probes_and_the_others_do_not_wait_for_it(clock: Clock) -> None:
    switch = Switch()
    switch.fail()
    clock.now += FIRST_WAIT_SECONDS - 0.01
    assert switch.breaker.admit() is None
    clock.now += 0.02
    probe = switch.admit()
    assert [switch.breaker.admit() for _ in range(3)] == [None] * 3

    switch.breaker.succeeded(probe)
    assert switch.breaker.is_closed
    assert switch.n_closed == 1
    switch.admit()


def test_each_failed_probe_doubles_the_wait_up_to_a_bound_and_says_nothing(clock: Clock) -> None:
    switch = Switch()
    switch.fail()
    waits = []
    for _ in range(7):
        start = clock.now
        while (probe := switch.breaker.admit()) is None:
            clock.now += 0.25
        waits.append(clock.now - start)
        switch.breaker.failed(probe, ValueError())

    assert waits == [1, 2, 4, 8, 16, LONGEST_WAIT_SECONDS, LONGEST_WAIT_SECONDS]
    assert (len(switch.opened), switch.n_closed) == (1, 0)


def test_calls_that_fail_together_open_it_once_and_what_they_report_late_counts_no_more(clock: Clock) -> None:
    switch = Switch()
    tickets = [switch.admit() for _ in range(20)]
    for ticket in tickets[:15]:
        switch.breaker.failed(ticket, ValueError())
    clock.now += FIRST_WAIT_SECONDS
    probe = switch.admit()
    switch.breaker.succeeded(tickets[15])
    switch.breaker.failed(tickets[16], ValueError())
    switch.breaker.abandoned(tickets[17])
    assert not switch.breaker.is_closed
    assert switch.breaker.admit() is None  # the probe is still under way

    switch.breaker.succeeded(probe)
    for ticket in tickets[18:]:
        switch.breaker.failed(ticket, ValueError())
    switch.fail(2)
    assert switch.breaker.is_closed
    assert (len(switch.opened), switch.n_closed) == (1, 1)


def test_a_probe_that_is_abandoned_lets_the_next_call_probe(clock: Clock) -> None:
    switch = Switch()
    switch.fail()
    clock.now += FIRST_WAIT_SECONDS
    switch.breaker.abandoned(switch.admit())
    switch.breaker.succeeded(switch.admit())
    assert switch.breaker.is_closed


def test_a_relapse_is_left_alone_for_longer_and_a_new_outage_is_not(clock: Clock) -> None:
    switch = Switch()
    switch.fail()
    clock.now += FIRST_WAIT_SECONDS
    switch.breaker.succeeded(switch.admit())
    switch.fail()  # at once again
    clock.now += FIRST_WAIT_SECONDS
    assert switch.breaker.admit() is None
    clock.now += FIRST_WAIT_SECONDS
    switch.breaker.succeeded(switch.admit())

    clock.now += LONGEST_WAIT_SECONDS
    switch.fail()
    clock.now += FIRST_WAIT_SECONDS
    switch.admit()


# Redis


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, Result]], Result]:
    """Run a coroutine on each of the loops that uvicorn may use."""

    def on_loop(main: Coroutine[Any, Any, Result]) -> Result:
        factory = uvloop.new_event_loop if request.param == "uvloop" else None
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(main)

    return on_loop


Run = Callable[[Coroutine[Any, Any, None]], None]
Wait = Callable[[float], None]


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(name="server")
def empty_server(lasting: RedisServer) -> RedisServer:
    """A server that stays as it is, and is empty."""
    with admin(lasting) as client:
        client.flushall()
    return lasting


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probe sooner, so that the tests need not wait."""
    monkeypatch.setattr(breaker, "FIRST_WAIT_SECONDS", 0.15)


@pytest.fixture(autouse=True)
def wait(monkeypatch: pytest.MonkeyPatch) -> Wait:
    """Return what sets how long a cache waits for Redis: for now longer than a healthy one takes on a busy machine."""

    def set_timeout(seconds: float) -> None:
        monkeypatch.setattr(shared, "TIMEOUT_SECONDS", seconds)

    set_timeout(PATIENT)
    return set_timeout


@pytest.fixture(autouse=True)
def every_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="uvicorn.error")


@contextmanager
def admin(server: RedisServer, **options: Any) -> Iterator[redis.Redis]:
    """Another client of the server."""
    with redis.Redis(port=server.port, **options) as client:
        yield client


@asynccontextmanager
async def caching(
    url: str, *, seconds: float = 60, events: Recorder | None = None, size: int = 0
) -> AsyncIterator[ResponseCache]:
    """A worker's cache; without a local level unless it is given a size, so that Redis is asked each time."""
    cache = ResponseCache(size, seconds, url, events)
    try:
        yield cache
    finally:
        await cache.close()


async def until(holds: Callable[[], Awaitable[object]], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not await holds():
        assert time.monotonic() < deadline, f"still not so after {seconds} s"
        await asyncio.sleep(0.01)


def test_what_one_worker_keeps_the_other_finds(server: RedisServer, run: Run) -> None:
    async def main() -> None:
        events = Recorder()
        async with caching(server.url) as one, caching(server.url, events=events, size=10) as other:
            assert await other.get(key_of(1)) is None
            await one.put(key_of(1), ANSWER)
            assert other.local_get(key_of(1)) is None
            assert await other.get(key_of(1)) == ANSWER
            assert other.local_get(key_of(1)) == ANSWER  # without asking Redis again
            assert await other.get(key_of(2)) is None
            assert await other.get(key_of(1, version="20261124T101500Z-5e6f7a8b")) is None
        assert events.lookups == {("shared", False): 3, ("shared", True): 1, ("local", False): 1, ("local", True): 1}
        assert (events.states, events.errors) == ([True], {})

    run(main())


def test_closing_leaves_no_connection(server: RedisServer, run: Run) -> None:
    async def main() -> None:
        async with caching(server.url) as cache:
            await asyncio.gather(*(cache.put(key_of(number), ANSWER) for number in range(10)))
            with admin(server) as client:
                assert len(client.client_list()) > 1

    run(main())
    with admin(server) as client:
        assert len(client.client_list()) == 1


def test_redis_forgets_what_has_expired_by_itself(server: RedisServer, run: Run) -> None:
    async def main() -> None:
        async with caching(server.url, seconds=0.2) as cache, caching(server.url, seconds=60) as longer:
            await cache.put(key_of(1), ANSWER)
            await longer.put(key_of(2), ANSWER)
            assert await cache.get(key_of(1)) == ANSWER
            with admin(server) as client:
                assert 0 < client.pttl(redis_key(key_of(1))) <= 200
                assert 59_000 < client.pttl(redis_key(key_of(2))) <= 60_000
            await asyncio.sleep(0.25)
            assert await cache.get(key_of(1)) is None
            assert await cache.get(key_of(2)) == ANSWER

    run(main())


def test_a_flush_costs_misses_alone(server: RedisServer, run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        events = Recorder()
        async with caching(server.url, events=events) as cache:
            await cache.put(key_of(1), ANSWER)
            with admin(server) as client:
                client.flushall()
            assert await cache.get(key_of(1)) is None
            await cache.put(key_of(1), ANSWER)
            assert await cache.get(key_of(1)) == ANSWER
        assert (events.states, events.errors) == ([True], {})

    run(main())
    assert not caplog.records


@pytest.mark.parametrize("put", [b"", b"\x80\x04K\x01.", b"als 3\nabcd", b"als", ["a", "list"]], ids=repr)
def test_what_others_put_under_our_key_is_a_miss_and_no_fault(
    server: RedisServer, put: bytes | list[str], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        events = Recorder()
        async with caching(server.url, events=events) as cache:
            with admin(server) as client:
                if isinstance(put, list):
                    client.rpush(redis_key(key_of(1)), *put)
                else:
                    client.set(redis_key(key_of(1)), put)
            assert [await cache.get(key_of(1)) for _ in range(N_FAILURES + 1)] == [None] * (N_FAILURES + 1)
            await cache.put(key_of(1), ANSWER)
            assert await cache.get(key_of(1)) == ANSWER
        assert (events.states, events.errors) == ([True], {})

    asyncio.run(main())
    assert not caplog.records


def test_an_answer_that_would_take_too_long_to_send_is_not_shared(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "LARGEST_BYTES", 100)

    async def main() -> None:
        async with caching(server.url) as cache:
            for n_bytes in (100, 101):
                await cache.put(key_of(n_bytes), Cached(bytes(n_bytes), "als"))
            assert await cache.get(key_of(100)) is not None
            assert await cache.get(key_of(101)) is None

    asyncio.run(main())


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@pytest.mark.usefixtures("soon")
def test_a_service_starts_while_redis_is_down_and_finds_it_later(
    tmp_path: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    server = RedisServer(tmp_path)

    async def main() -> None:
        events = Recorder()
        async with caching(server.url, events=events) as cache:
            for number in range(20):
                assert await cache.get(key_of(number)) is None
                await cache.put(key_of(number), ANSWER)
            assert events.states == [True, False]
            server.start()

            async def is_back() -> bool:
                await cache.put(key_of(1), ANSWER)
                return await cache.get(key_of(1)) == ANSWER

            await until(is_back)
            assert events.states == [True, False, True]

    try:
        run(main())
    finally:
        server.stop()
    gone, back = messages(caplog)
    assert f"127.0.0.1:{server.port}, database 0 is left alone" in gone
    assert "ConnectionError" in gone
    assert "refused" in gone.lower() or "Connect call failed" in gone
    assert back == f"Redis at 127.0.0.1:{server.port}, database 0 answers again"


@pytest.mark.usefixtures("soon")
def test_who_cannot_be_read_from_is_not_written_to_not_even_as_a_probe() -> None:
    async def main() -> None:
        events = Recorder()
        async with caching(f"redis://127.0.0.1:{free_port()}", events=events) as cache:
            for _ in range(N_FAILURES):
                await cache.get(key_of(1))
            await asyncio.sleep(0.2)
            await cache.put(key_of(1), ANSWER)
        assert events.errors == {"get": N_FAILURES}

    asyncio.run(main())


@pytest.mark.usefixtures("soon")
def test_a_killed_and_restarted_redis_costs_no_request_and_one_line_each_way(
    tmp_path: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(cache: ResponseCache, is_over: asyncio.Event, found: Counter[str]) -> None:
        while not is_over.is_set():
            key = key_of(random.randrange(50))  # noqa: S311 - nothing secret
            if (cached := await cache.get(key)) is None:
                found["misses"] += 1
                await cache.put(key, Cached(repr(key).encode(), "ranker"))
            else:
                found["hits"] += 1
                assert cached == Cached(repr(key).encode(), "ranker")
            await asyncio.sleep(0.001)

    async def more(found: Counter[str], what: str) -> None:
        before = found[what]

        async def has_grown() -> bool:
            return found[what] > before + 100

        await until(has_grown)

    async def main() -> None:
        events, found, is_over = Recorder(), Counter[str](), asyncio.Event()
        async with caching(server.url, events=events) as cache:
            workers = [asyncio.create_task(work(cache, is_over, found)) for _ in range(16)]
            await more(found, "hits")
            await asyncio.to_thread(server.kill)
            await more(found, "misses")
            await asyncio.to_thread(server.start)
            await more(found, "hits")
            is_over.set()
            await asyncio.gather(*workers)
        assert events.states == [True, False, True]

    with running_redis(tmp_path) as server:
        run(main())
    gone, back = messages(caplog)
    assert "left alone" in gone
    assert "answers again" in back


def test_a_restart_between_two_requests_goes_unnoticed(tmp_path: Path, run: Run) -> None:
    async def main() -> None:
        events = Recorder()
        async with caching(server.url, events=events) as cache:
            await asyncio.gather(*(cache.put(key_of(number), ANSWER) for number in range(10)))
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            for number in range(10):
                await cache.put(key_of(number), ANSWER)
                assert await cache.get(key_of(number)) == ANSWER
        assert (events.states, events.errors) == ([True], {})

    with running_redis(tmp_path) as server:
        run(main())


@pytest.mark.usefixtures("soon")
def test_a_stalled_redis_delays_few_requests_and_none_for_long(
    tmp_path: Path, run: Run, wait: Wait, caplog: pytest.LogCaptureFixture
) -> None:
    async def timed(cache: ResponseCache, number: int) -> float:
        start = time.monotonic()
        assert await cache.get(key_of(number)) is None
        return time.monotonic() - start

    async def main() -> None:
        events = Recorder()
        async with caching(server.url, events=events) as cache:
            await cache.put(key_of(0), ANSWER)
            server.pause()
            wait(BRIEF)
            at_once: list[float] = []

            async def is_left_alone() -> bool:
                at_once.extend(await asyncio.gather(*(timed(cache, number) for number in range(200))))
                return events.states == [True, False]

            await until(is_left_alone)  # after the first 200, unless this process stood still
            assert events.errors["get"] <= N_CONNECTIONS * len(at_once) / 200  # the others found no connection
            one_by_one = [await timed(cache, number) for number in range(200)]
            assert max(at_once + one_by_one) < 20 * BRIEF  # on a busy machine
            assert sum(one_by_one) < 20 * BRIEF  # of the 40 s that they would have waited
            server.resume()
            wait(PATIENT)

            async def is_back() -> bool:
                return await cache.get(key_of(0)) == ANSWER

            await until(is_back)
        assert events.states == [True, False, True]

    with running_redis(tmp_path) as server:
        run(main())
        with admin(server) as client:
            assert client.info()["total_connections_received"] < 200
    gone, back = messages(caplog)
    assert "no answer within 200 ms" in gone
    assert "answers again" in back


def test_a_process_that_stood_still_does_not_blame_redis(
    server: RedisServer, run: Run, wait: Wait, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        events = Recorder()
        async with caching(server.url, events=events) as cache:
            await cache.put(key_of(1), ANSWER)
            wait(BRIEF)
            tasks = [asyncio.create_task(cache.get(key_of(1))) for _ in range(20)]
            await asyncio.sleep(0)
            time.sleep(3 * BRIEF)
            await asyncio.gather(*tasks)
            assert events.errors["get"] > N_FAILURES
            wait(PATIENT)
            assert await cache.get(key_of(1)) == ANSWER
        assert events.states == [True]

    run(main())
    assert not caplog.records


@pytest.mark.usefixtures("soon")
def test_a_full_redis_is_read_from_and_not_written_to(
    tmp_path: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    large = Cached(bytes(100_000), "ranker")

    async def main() -> None:
        events = Recorder()
        async with caching(server.url, events=events) as cache:
            await cache.put(key_of(0), ANSWER)
            for number in range(1, 100):
                await cache.put(key_of(number), large)
                assert await cache.get(key_of(0)) == ANSWER
            assert events.states == [True, False]
            assert N_FAILURES <= events.errors["put"] < 10
            assert events.errors["get"] == 0
            with admin(server) as client:
                client.flushall()

            async def is_kept() -> bool:
                await cache.put(key_of(1), large)
                return await cache.get(key_of(1)) == large

            await until(is_kept)
        assert events.states == [True, False, True]

    with running_redis(tmp_path, maxmemory="2mb", maxmemory_policy="noeviction") as server:
        run(main())
    full, free = messages(caplog)
    assert "takes no new answers, and is only read from: OutOfMemoryError" in full
    assert "takes new answers again" in free


@pytest.mark.usefixtures("soon")
def test_a_redis_that_dies_while_it_is_full_is_left_alone_and_comes_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        events = Recorder()
        async with caching(server.url, events=events) as cache:
            for number in range(50):
                await cache.put(key_of(number), Cached(bytes(100_000), "ranker"))
            await asyncio.to_thread(server.kill)
            for _ in range(10):
                assert await cache.get(key_of(1)) is None
            await asyncio.to_thread(server.start)

            async def is_back() -> bool:
                await cache.put(key_of(1), ANSWER)
                return await cache.get(key_of(1)) == ANSWER

            await until(is_back)
        assert events.states[0]
        assert events.states[-1]

    with running_redis(tmp_path, maxmemory="2mb", maxmemory_policy="noeviction") as server:
        asyncio.run(main())
    full, gone, back, free = messages(caplog)
    assert "takes no new answers" in full
    assert "is left alone" in gone
    assert "answers again" in back
    assert "takes new answers again" in free


def test_requests_that_are_cancelled_harm_nobody_elses_answer(
    server: RedisServer, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """Whose answer is left unread on a connection must not become the next one's."""

    def body(number: int) -> Cached:
        return Cached(b"%d " % number * 500, "ranker")

    async def main() -> None:
        events, rng = Recorder(), random.Random(0)  # noqa: S311
        async with caching(server.url, events=events) as cache:
            for number in range(50):
                await cache.put(key_of(number), body(number))
            for _ in range(60):
                asked = [rng.randrange(50) for _ in range(20)]
                tasks = [asyncio.create_task(cache.get(key_of(number))) for number in asked]
                for task in rng.sample(tasks, 10):
                    for _ in range(rng.randrange(4)):
                        await asyncio.sleep(0)
                    task.cancel()
                for number, found in zip(asked, await asyncio.gather(*tasks, return_exceptions=True), strict=True):
                    assert isinstance(found, asyncio.CancelledError) or found == body(number)
            for number in range(50):
                assert await cache.get(key_of(number)) == body(number)
        assert (events.states, events.errors) == ([True], {})

    run(main())
    assert not caplog.records
    with admin(server) as client:
        assert len(client.client_list()) == 1


def test_cancelling_requests_of_a_stalled_redis_opens_nothing_and_ends_at_once(
    tmp_path: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        events = Recorder()
        async with caching(server.url, events=events) as cache:
            await cache.put(key_of(1), ANSWER)
            server.pause()
            tasks = [asyncio.create_task(cache.get(key_of(1))) for _ in range(10)]
            tasks += [asyncio.create_task(cache.put(key_of(1), ANSWER)) for _ in range(10)]
            await asyncio.sleep(0.005)
            for task in tasks:
                task.cancel()
            found = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(each, asyncio.CancelledError) for each in found)
            server.resume()
            assert await cache.get(key_of(1)) == ANSWER
        assert (events.states, events.errors) == ([True], {})

    with running_redis(tmp_path) as server:
        run(main())
    assert not caplog.records


@pytest.mark.usefixtures("soon")
def test_a_probe_whose_client_goes_away_leaves_the_next_one_to_probe(tmp_path: Path, wait: Wait) -> None:
    async def main() -> None:
        events = Recorder()
        async with caching(server.url, events=events) as cache:
            await cache.put(key_of(1), ANSWER)
            server.pause()
            wait(BRIEF)

            async def is_left_alone() -> bool:
                await asyncio.gather(*(cache.get(key_of(1)) for _ in range(N_FAILURES)))
                return events.states == [True, False]

            await until(is_left_alone)
            wait(PATIENT)
            await asyncio.sleep(0.2)
            probe = asyncio.create_task(cache.get(key_of(1)))
            await asyncio.sleep(0.005)
            probe.cancel()
            await asyncio.wait([probe])
            assert probe.cancelled()
            server.resume()
            assert await cache.get(key_of(1)) == ANSWER
        assert events.states == [True, False, True]

    with running_redis(tmp_path) as server:
        asyncio.run(main())


class Forwarder:
    """A network between client and server, which can forget the connections that it has."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._current = [True]
        self._tasks: set[asyncio.Task[None]] = set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._port)
        lives = self._current
        await asyncio.gather(self._pass_on(reader, to_writer, lives), self._pass_on(to_reader, writer, lives))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, lives: list[bool]) -> None:
        while data := await reader.read(65536):
            if lives[0]:
                writer.write(data)
        writer.close()

    def forget(self) -> None:
        """Let what is sent over the present connections vanish; new ones work."""
        self._current[0] = False
        self._current = [True]


@pytest.mark.usefixtures("soon")
def test_connections_that_the_network_has_forgotten_cost_one_outage_and_no_more(
    server: RedisServer, wait: Wait
) -> None:
    async def main() -> None:
        network, events = Forwarder(server.port), Recorder()
        listener = await asyncio.start_server(network.accept, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        async with listener, caching(f"redis://127.0.0.1:{port}", events=events) as cache:
            await asyncio.gather(*(cache.put(key_of(number), ANSWER) for number in range(20)))
            wait(BRIEF)

            async def is_left_alone() -> bool:
                network.forget()
                await asyncio.gather(*(cache.get(key_of(1)) for _ in range(N_FAILURES)))
                return events.states == [True, False]

            await until(is_left_alone)
            wait(PATIENT)
            await asyncio.sleep(0.2)
            assert await cache.get(key_of(1)) == ANSWER
            found = await asyncio.gather(*(cache.get(key_of(number)) for number in range(20)))
            assert found == [ANSWER] * 20  # although 17 connections had not been found dead
        assert events.states == [True, False, True]

    asyncio.run(main())


# What cannot be used


def test_a_wrong_password_is_said_once_and_never_shown(
    tmp_path: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(password: str, finds: bool) -> None:
        async with caching(f"redis://:{password}@127.0.0.1:{server.port}") as cache:
            for _ in range(10):
                await cache.put(key_of(1), ANSWER)
                assert (await cache.get(key_of(1)) == ANSWER) is finds

    with running_redis(tmp_path, requirepass=SECRET) as server:
        run(main("wr0ng-pass", finds=False))
        (line,) = messages(caplog)
        assert "AuthenticationError" in line
        assert "wr0ng-pass" not in caplog.text
        run(main(SECRET, finds=True))
    assert SECRET not in caplog.text
    assert len(caplog.records) == 1


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)

    def log_message(self, *_: object) -> None: ...


def test_something_that_is_no_redis_is_left_alone(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def main(port: int) -> None:
        events = Recorder()
        async with caching(f"redis://user:{SECRET}@127.0.0.1:{port}", events=events) as cache:
            for _ in range(10):
                assert await cache.get(key_of(1)) is None
                await cache.put(key_of(1), ANSWER)
        assert events.states == [True, False]

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as http_server:
        thread = threading.Thread(target=http_server.serve_forever, args=(0.01,))
        thread.start()
        run(main(http_server.server_address[1]))
        http_server.shutdown()
        thread.join()
    assert len(caplog.records) == 1
    assert SECRET not in caplog.text


def test_a_server_that_echoes_the_password_does_not_get_it_into_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1000):
            writer.write(f"-ERR unknown command, with args beginning with: '{SECRET}'\r\n".encode())
        writer.close()

    async def main() -> None:
        listener = await asyncio.start_server(echo, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        async with listener, caching(f"redis://:{SECRET}@127.0.0.1:{port}") as cache:
            for _ in range(10):
                assert await cache.get(key_of(1)) is None

    asyncio.run(main())
    (line,) = messages(caplog)
    assert "ResponseError" in line
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    "url",
    [
        f"http://:{SECRET}@localhost:6379",
        f"localhost:6379/{SECRET}",
        SECRET,
        f"redis://:{SECRET}/x@localhost:6379",
        f"redis://:12345/{SECRET}@localhost:6379",
        f"redis://:12345#{SECRET}@localhost:6379",
        f"redis://:12345?{SECRET}@localhost:6379",
        f"redis://:{SECRET}@localhost:port",
        f"redis://:{SECRET}@localhost:6379/cache",
        f"redis://:{SECRET}@localhost:6379?db=x",
        f"redis://:{SECRET}@localhost:6379?no_such_option=1",
        f"redis://:{SECRET}@[::1:6379",
    ],
)
def test_a_url_that_cannot_be_used_is_found_at_once_and_not_quoted(url: str) -> None:
    with pytest.raises(ConfigError, match="RECS_REDIS_URL cannot be used; expected redis://") as raised:
        ResponseCache(10, 60, url)
    assert SECRET not in str(raised.value)
    assert raised.value.__suppress_context__  # nor by a traceback


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        f"redis://user:{SECRET}@localhost:6379/3",
        f"rediss://:{SECRET}%2F@localhost",
        f"unix://:{SECRET}@/run/redis.sock?db=1",
    ],
)
def test_a_good_url_connects_to_nothing_until_it_is_needed(url: str, caplog: pytest.LogCaptureFixture) -> None:
    ResponseCache(10, 60, url)
    assert not caplog.records


def test_options_in_the_url_cannot_lift_what_is_promised(tmp_path: Path, wait: Wait) -> None:
    async def main() -> None:
        async with caching(f"{server.url}?socket_timeout=60&decode_responses=yes&retry_on_timeout=yes") as cache:
            await cache.put(key_of(1), ANSWER)
            assert await cache.get(key_of(1)) == ANSWER
            server.pause()
            wait(BRIEF)
            start = time.monotonic()
            assert await cache.get(key_of(1)) is None
            assert time.monotonic() - start < 20 * BRIEF

    with running_redis(tmp_path) as server:
        asyncio.run(main())


def test_a_unix_socket_works_as_well(tmp_path: Path, run: Run) -> None:
    async def main() -> None:
        async with caching(f"unix://{tmp_path}/redis.sock") as cache:
            await cache.put(key_of(1), ANSWER)
            assert await cache.get(key_of(1)) == ANSWER

    with running_redis(tmp_path, unixsocket=tmp_path / "redis.sock"):
        run(main())


def test_redis_is_imported_only_where_it_is_used() -> None:
    code = "import sys; from app.cache import ResponseCache; {}; sys.exit('redis' in sys.modules)"
    for call, expected in (
        ("ResponseCache(10, 60)", 0),
        (f"ResponseCache(10, 60, 'redis://127.0.0.1:{free_port()}')", 1),
    ):
        assert subprocess.run([sys.executable, "-c", code.format(call)], cwd=ROOT).returncode == expected
