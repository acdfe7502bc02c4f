"""What holds for every request, whoever answers it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request
from fastapi_offline import FastAPIOffline
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.routers import edge, problems
from app.routers.edge import MAX_PARAMETERS, MAX_QUERY_BYTES, PROBES, Edge
from app.routers.quick import path_of
from app.telemetry import Telemetry
from tests.test_telemetry import Found, read
from tests.tiny_servers import serving

MAX_BODY, MAX_CONCURRENCY = 100, 2
REPLACED = re.compile(r"[0-9a-f]{12}-[0-9a-f]+")


class Service:
    """An application behind the edge, in this process."""

    def __init__(self, app: ASGIApp, **options: Any) -> None:
        self.telemetry = Telemetry()
        self.edge = Edge(app, self.telemetry, max_body_bytes=MAX_BODY, max_concurrency=MAX_CONCURRENCY, **options)
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(self.edge), base_url="http://service")

    def ask(self, url: str, method: str = "GET", **options: Any) -> httpx.Response:
        return asyncio.run(self.client.request(method, url, **options))

    def found(self) -> Found:
        return read(self.telemetry.render())

    def requests(self) -> dict[tuple[str, ...], float]:
        """How often each method, route and status was counted."""
        return {key[1:]: value for key, value in self.found().items() if key[0] == "recs_requests_total"}


def make_app() -> FastAPI:
    app = FastAPIOffline(title="Tiny")
    problems.install(app)
    router = APIRouter(prefix="/users")

    @router.get("/{user_id}")
    async def user(user_id: int) -> int:
        return user_id

    @app.post("/echo")
    async def echo(request: Request) -> int:
        return len(await request.body())

    @app.post("/typed")
    async def typed(numbers: list[int]) -> int:
        return len(numbers)

    @app.get("/fail")
    async def fail() -> None:
        raise RuntimeError("secret")

    @app.get("/livez")
    async def livez() -> str:
        return "alive"

    app.include_router(router)
    return app


@pytest.fixture
def service() -> Service:
    return Service(make_app())


def assert_problem(response: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert list(problem)[:4] == ["type", "title", "status", "detail"]
    assert problem["status"] == status
    assert problem["type"] == (kind if kind == "about:blank" else f"urn:movie-recommender:problem:{kind}")
    assert_safe(response)
    return problem


def assert_safe(response: httpx.Response) -> None:
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["x-frame-options"] == "DENY"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers["content-security-policy"].startswith("default-src 'none'; ")
    assert response.headers["x-request-id"]


# --- names and headers


@pytest.mark.parametrize("sane", ["a", "A-b_c.9", "x" * 64])
def test_a_sane_request_id_is_kept(service: Service, sane: str) -> None:
    assert service.ask("/users/1", headers={"X-Request-ID": sane}).headers.get_list("x-request-id") == [sane]


@pytest.mark.parametrize("other", ["", "x" * 65, "a b", "a\tb", "é", "a/b", "<b>", "a\x1b[31m"])
def test_any_other_is_replaced(service: Service, other: str) -> None:
    response = service.ask("/users/1", headers={"X-Request-ID": other.encode()})
    assert REPLACED.fullmatch(response.headers["x-request-id"])


def test_a_line_break_after_a_sane_id_does_not_pass(service: Service) -> None:
    assert REPLACED.fullmatch(service.ask("/users/1", headers=[(b"X-Request-ID", b"a\n")]).headers["x-request-id"])


def test_no_two_requests_are_given_the_same_id(service: Service) -> None:
    other = Service(make_app())
    ids = [each.ask("/users/1").headers["x-request-id"] for each in (service, other) for _ in range(50)]
    assert len(set(ids)) == 100


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/users/1"), ("GET", "/nothing"), ("POST", "/users/1"), ("GET", "/fail"), ("GET", "/openapi.json")],
)
def test_every_answer_is_safe(service: Service, method: str, path: str) -> None:
    response = service.ask(path, method)
    assert_safe(response)
    assert response.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"


def directives(response: httpx.Response) -> dict[str, list[str]]:
    parts = (part.split() for part in response.headers["content-security-policy"].split(";"))
    return {name: sources for name, *sources in parts}


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/docs/oauth2-redirect"])
def test_the_policy_of_a_documentation_page_lets_through_what_it_loads_and_nothing_else(
    service: Service, path: str
) -> None:
    page = service.ask(path)
    policy = directives(page)
    for script in re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL):
        digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy["script-src"]
    assert len(policy["script-src"]) == 1 + page.text.count("<script>")  # no 'unsafe-inline' among them
    assert not re.search(r"<[^>]* on\w+=", page.text)
    files = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert all(file.startswith("/static-offline-docs/") for file in files)  # which is 'self'
    for name in ("script-src", "style-src", "img-src", "connect-src"):
        assert "'self'" in policy[name]
    for file in files:  # which have the policy of everything else: it binds pages, not what they load
        assert_safe(service.ask(file))


CHROMIUM = (
    *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
    *("--dump-dom", "--virtual-time-budget=5000"),
)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Chromium")
@pytest.mark.parametrize("path", ["docs", "redoc"])
def test_the_documentation_works_in_a_browser(tmp_path: Path, path: str) -> None:
    with serving(tmp_path) as tiny:
        done = subprocess.run(
            [*CHROMIUM, f"--user-data-dir={tmp_path / 'browser'}", f"{tiny.url}/{path}"],
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert "A list for a user" in done.stdout  # drawn by scripts from openapi.json
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert all("https://cdn.redoc.ly/" in line for line in complaints), complaints  # a maker's logo from elsewhere


# --- bodies


def test_a_body_may_be_as_long_as_its_limit(service: Service) -> None:
    assert service.ask("/echo", "POST", content=b"x" * MAX_BODY).json() == MAX_BODY


def test_a_longer_one_is_refused_and_its_connection_ends(service: Service) -> None:
    response = service.ask("/echo", "POST", content=b"x" * (MAX_BODY + 1))
    assert str(MAX_BODY) in assert_problem(response, 413, "too-large")["detail"]
    assert response.headers["connection"] == "close"
    assert service.found()["recs_refusals_total", "too-large"] == 1
    assert service.requests() == {("POST", "unmatched", "413"): 1}


@pytest.mark.parametrize("length", ["101", "000101", "1" * 5000])
def test_content_length_alone_is_enough(service: Service, length: str) -> None:
    assert_problem(service.ask("/echo", "POST", headers={"Content-Length": length}), 413, "too-large")


@pytest.mark.parametrize("length", ["0000000000000000000000000000000100", "0", "", "-1", "x"])
def test_what_is_no_longer_than_the_limit_or_no_length_is_left_to_the_server(service: Service, length: str) -> None:
    assert service.ask("/echo", "POST", headers={"Content-Length": length}).status_code == 200


@pytest.mark.parametrize("path", ["/echo", "/typed"])
def test_a_body_without_a_length_is_refused_once_it_is_too_long(service: Service, path: str) -> None:
    n_read = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal n_read
        for _ in range(1000):
            n_read += 1
            yield b"1" * 30

    response = service.ask(path, "POST", content=pieces())
    assert_problem(response, 413, "too-large")
    assert response.headers["connection"] == "close"
    assert service.requests() == {("POST", path, "413"): 1}
    assert n_read == 1000  # the rest was read and thrown away, so that the caller can read the answer


def test_a_body_without_a_length_within_the_limit_is_taken(service: Service) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b"1" * 10

    assert service.ask("/echo", "POST", content=pieces()).json() == 100


def test_an_application_that_ignores_the_limit_is_not_heard() -> None:
    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(Exception):
            while (await receive())["more_body"]:
                pass
        await PlainTextResponse("all is well")(_scope, receive, send)

    async def pieces() -> AsyncIterator[bytes]:
        yield b"1" * 101

    assert_problem(Service(app).ask("/", "POST", content=pieces()), 413, "too-large")


# --- queries


def test_the_longest_query_of_the_contract_is_let_through(service: Service) -> None:
    liked, excluded = (",".join(["9" * 19] * n) for n in (500, 1000))
    assert service.ask("/livez", params={"liked": liked, "exclude": excluded}).status_code == 200
    repeated = "&".join(["liked=" + "9" * 19] * 500 + ["exclude=" + "9" * 19] * 1000)
    assert service.ask(f"/livez?{repeated}").status_code == 200


def test_a_longer_one_is_refused(service: Service) -> None:
    assert service.ask("/users/1?" + "x" * MAX_QUERY_BYTES).status_code == 200
    problem = assert_problem(service.ask("/users/1?" + "x" * (MAX_QUERY_BYTES + 1)), 414, "uri-too-long")
    assert str(MAX_QUERY_BYTES) in problem["detail"]
    assert str(MAX_QUERY_BYTES + 1) in problem["detail"]
    assert service.found()["recs_refusals_total", "uri-too-long"] == 1


def test_too_many_parameters_are_refused(service: Service) -> None:
    assert service.ask("/users/1?" + "&".join(["a=1"] * MAX_PARAMETERS)).status_code == 200
    response = service.ask("/users/1?" + "&".join(["a=1"] * (MAX_PARAMETERS + 1)))
    problem = assert_problem(response, 422, "invalid-parameter")
    assert problem["errors"][0].keys() == {"parameter", "in", "detail"}
    assert str(MAX_PARAMETERS + 1) in problem["detail"]
    assert service.found()["recs_refusals_total", "too-many-parameters"] == 1


# --- how many at once


class Gate:
    """An application whose requests wait until they are let go, each to its own end."""

    def __init__(self) -> None:
        self.waiting: list[asyncio.Future[Callable[[], None]]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if path_of(scope) not in PROBES:
            future: asyncio.Future[Callable[[], None]] = asyncio.get_running_loop().create_future()
            self.waiting.append(future)
            (await future)()
        await PlainTextResponse("done")(scope, receive, send)


def fail() -> None:
    raise RuntimeError("boom")


def cancel() -> None:
    raise asyncio.CancelledError


def well() -> None:
    pass


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_beyond_the_bound_others_are_told_to_come_back_at_once_but_probes_are_answered() -> None:
    gate = Gate()
    service = Service(gate)

    async def run() -> None:
        held = [asyncio.create_task(service.client.get("/a")) for _ in range(MAX_CONCURRENCY)]
        await settle()
        assert service.found()["recs_requests_in_flight",] == MAX_CONCURRENCY
        refused = await service.client.get("/a")
        assert_problem(refused, 503, "overloaded")
        assert refused.headers["retry-after"] == "1"
        for probe in PROBES:
            assert (await service.client.get(probe)).status_code == 200
        gate.waiting[0].set_result(well)
        assert (await held[0]).text == "done"
        again = asyncio.create_task(service.client.get("/a"))
        await settle()
        assert len(gate.waiting) == MAX_CONCURRENCY + 1
        for future in gate.waiting[1:]:
            future.set_result(well)
        assert [(await each).status_code for each in (held[1], again)] == [200, 200]

    asyncio.run(run())
    assert service.found()["recs_requests_in_flight",] == 0
    assert service.found()["recs_refusals_total", "overloaded"] == 1


def test_who_is_slow_to_send_a_body_keeps_out_nobody_who_has_none() -> None:
    gate = Gate()
    service = Service(gate)

    async def run() -> None:
        held = [asyncio.create_task(service.client.post("/a", content=b"x")) for _ in range(MAX_CONCURRENCY)]
        await settle()
        assert_problem(await service.client.post("/a", content=b"x"), 503, "overloaded")
        asked = asyncio.create_task(service.client.get("/a"))
        await settle()
        assert service.found()["recs_requests_in_flight",] == MAX_CONCURRENCY + 1
        for future in gate.waiting:
            future.set_result(well)
        assert [(await each).status_code for each in (*held, asked)] == [200] * (MAX_CONCURRENCY + 1)

    asyncio.run(run())
    assert service.found()["recs_requests_in_flight",] == 0


def test_what_is_refused_counts_for_the_route_that_it_was_for() -> None:
    service = Service(Gate(), paths={"/echo"})
    for url in ("/echo", "/echo/1"):
        assert service.ask(url, "POST", content=b"x" * (MAX_BODY + 1)).status_code == 413
    assert service.requests() == {("POST", "/echo", "413"): 1, ("POST", "unmatched", "413"): 1}


def test_probes_take_no_place() -> None:
    release = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/health":
            await release.wait()
        await PlainTextResponse("done")(scope, receive, send)

    service = Service(app)

    async def run() -> None:
        held = [asyncio.create_task(service.client.get("/health")) for _ in range(5)]
        await settle()
        assert (await service.client.get("/a")).status_code == 200
        release.set()
        await asyncio.gather(*held)

    asyncio.run(run())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([well, fail, cancel, None]), max_size=12))
def test_a_place_is_given_back_however_a_request_ends(ends: list[Callable[[], None] | None]) -> None:
    gate = Gate()
    service = Service(gate)

    async def run() -> None:
        for end in ends:  # None: whoever runs the request cancels it
            task = asyncio.create_task(service.client.get("/a"))
            await settle()
            gate.waiting[-1].set_result(end) if end else task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        held = [asyncio.create_task(service.client.get("/a")) for _ in range(MAX_CONCURRENCY + 1)]
        await settle()
        for future in gate.waiting:
            future.done() or future.set_result(well)
        statuses = sorted([(await each).status_code for each in held])
        assert statuses == [200] * MAX_CONCURRENCY + [503]

    logging.disable()
    try:
        asyncio.run(run())
    finally:
        logging.disable(logging.NOTSET)
    assert service.found()["recs_requests_in_flight",] == 0


# --- what is counted


def test_requests_are_counted_by_route_method_and_status(service: Service) -> None:
    for user in (1, 2, "x"):
        service.ask(f"/users/{user}")
    service.ask("/users/1", "HEAD")
    service.ask("/users/1", "BREW")
    service.ask("/echo", "POST", content=b"1")
    service.ask("/nothing/1"), service.ask("/nothing/2")
    service.ask("/openapi.json")
    service.ask("/static-offline-docs/favicon.png"), service.ask("/static-offline-docs/nothing")
    assert service.requests() == {
        ("GET", "/users/{user_id}", "200"): 2,
        ("GET", "/users/{user_id}", "422"): 1,
        ("HEAD", "/users/{user_id}", "405"): 1,
        ("OTHER", "/users/{user_id}", "405"): 1,
        ("POST", "/echo", "200"): 1,
        ("GET", "unmatched", "404"): 2,
        ("GET", "/openapi.json", "200"): 1,
        ("GET", "/static-offline-docs", "200"): 1,
        ("GET", "/static-offline-docs", "404"): 1,
    }
    assert service.found()["recs_request_seconds_count", "/users/{user_id}"] == 5


def test_routes_are_templates_in_plain_starlette_too() -> None:
    async def answer(_request: object) -> PlainTextResponse:
        return PlainTextResponse("done")

    inner = [Route("/{name}", answer)]
    service = Service(Starlette(routes=[Route("/a/{b}", answer), Mount("/m", routes=inner), Mount("", routes=inner)]))
    for path in ("/a/1", "/a/2", "/m/1", "/m/2", "/whatever", "/else"):
        service.ask(path)
    routes = {route for _, route, _ in service.requests()}
    assert "/a/{b}" in routes
    assert not [route for route in routes if re.search(r"\d|whatever|else", route)]


@pytest.mark.parametrize("root_path", ["/api", "/"])
def test_behind_a_prefix_the_probes_are_still_probes(root_path: str) -> None:
    gate = Gate()
    edge = Edge(gate, Telemetry(), max_body_bytes=1, max_concurrency=0)
    transport = httpx.ASGITransport(edge, root_path=root_path)

    async def run() -> list[int]:
        async with httpx.AsyncClient(transport=transport) as client:  # uvicorn puts the prefix before every path
            urls = [f"http://service{root_path}{path}" for path in ("/nothing", "/livez")]
            return [(await client.get(url)).status_code for url in urls]

    assert asyncio.run(run()) == [503, 200]


# --- faults


def test_what_nobody_caught_is_a_problem_and_one_entry_in_the_log(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    response = service.ask("/fail", headers={"X-Request-ID": "mine"})
    problem = assert_problem(response, 500, "about:blank")
    assert problem["title"] == "Internal Server Error"
    assert "secret" not in response.text
    assert response.headers["x-request-id"] == "mine"
    [record] = caplog.records
    assert record.exc_info
    assert "secret" in caplog.text
    assert "mine" in record.getMessage()
    assert service.requests() == {("GET", "/fail", "500"): 1}


def test_a_body_that_does_not_arrive_in_time_is_not_waited_for(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would keep its place among the requests that are worked on, and hold up a shutdown."""
    monkeypatch.setattr(edge, "READ_SECONDS", 0.05)

    async def slow_body() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(60)

    response = service.ask("/echo", "POST", content=slow_body())
    problem = assert_problem(response, 408, "too-slow")
    assert "within 0.05 s" in problem["detail"]
    assert response.headers["connection"] == "close"


def test_after_an_answer_has_begun_no_second_one_is_sent(caplog: pytest.LogCaptureFixture) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("boom")

    sent = exchange(app)
    assert [(message["type"], message.get("status")) for message in sent] == [("http.response.start", 200)]
    assert "boom" in caplog.text


def exchange(app: ASGIApp, *received: Message, service: Service | None = None) -> list[Message]:
    """Send one request through the edge, message by message."""
    service = service or Service(app)
    sent: list[Message] = []
    messages = iter(received)

    async def receive() -> Message:
        return next(messages)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": [], "http_version": "1.1"}
    asyncio.run(service.edge(scope, receive, send))
    return sent


@pytest.mark.parametrize("how", ["answers all the same", "raises", "gives up"])
def test_a_caller_who_left_is_counted_as_such_and_is_no_fault(how: str, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if how == "raises":
            await Request(scope, receive).body()
        await receive()
        if how == "answers all the same":
            await PlainTextResponse("done")(scope, receive, send)

    service = Service(app)
    exchange(app, {"type": "http.disconnect"}, service=service)
    assert service.requests() == {("POST", "unmatched", "499"): 1}
    assert service.found()["recs_disconnects_total",] == 1
    assert not caplog.records


def test_who_stays_to_the_end_has_not_left() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("done")(scope, receive, send)
        await receive()

    service = Service(app)
    exchange(app, {"type": "http.disconnect"}, service=service)
    assert service.found()["recs_disconnects_total",] == 0
    assert service.requests() == {("POST", "unmatched", "200"): 1}


def test_handlers_find_a_dict_of_their_own() -> None:
    seen: list[dict[str, Any]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(dict(scope["recs"]))
        scope["recs"]["source"] = "als"
        await PlainTextResponse("done")(scope, receive, send)

    service = Service(app)
    service.ask("/"), service.ask("/")
    assert seen == [{}, {}]


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
def test_what_is_no_request_passes_through_untouched(kind: str) -> None:
    passed: list[tuple[object, ...]] = []

    async def app(*arguments: object) -> None:
        passed.append(arguments)

    scope, receive, send = {"type": kind}, object(), object()
    service = Service(app)  # type: ignore[arg-type]
    asyncio.run(service.edge(scope, receive, send))  # type: ignore[arg-type]
    [(found, *others)] = passed
    assert found is scope
    assert others == [receive, send]
    assert scope == {"type": kind}
    assert not service.requests()


# --- other pages' scripts


ORIGIN = {"Origin": "https://shop.example"}


def test_no_other_page_may_ask_unless_it_is_configured(service: Service) -> None:
    assert "access-control-allow-origin" not in service.ask("/users/1", headers=ORIGIN).headers
    preflight = {**ORIGIN, "Access-Control-Request-Method": "GET"}
    assert service.ask("/users/1", "OPTIONS", headers=preflight).status_code == 405


@pytest.mark.parametrize(("path", "status"), [("/users/1", 200), ("/fail", 500), ("/users/1?" + "&" * 3000, 422)])
def test_a_page_of_a_configured_origin_can_read_answers_refusals_and_faults(path: str, status: int) -> None:
    service = Service(make_app(), cors_origins=["https://shop.example"])
    response = service.ask(path, headers=ORIGIN)
    assert response.status_code == status
    assert response.headers["access-control-allow-origin"] == "https://shop.example"
    assert "X-Request-ID" in response.headers["access-control-expose-headers"]
    assert_safe(response)
    other = service.ask(path, headers={"Origin": "https://other.example"})
    assert "access-control-allow-origin" not in other.headers


def test_a_preflight_is_answered_safely_and_counted() -> None:
    service = Service(make_app(), cors_origins=["https://shop.example"])
    asked = {**ORIGIN, "Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "X-Request-ID"}
    response = service.ask("/users/1", "OPTIONS", headers=asked)
    assert response.status_code == 200
    assert_safe(response)
    assert service.requests() == {("OPTIONS", "unmatched", "200"): 1}


# --- a real server


def test_sigterm_lets_a_request_in_flight_finish(tmp_path: Path) -> None:
    with serving(tmp_path) as tiny:
        answers: list[httpx.Response] = []
        asking = threading.Thread(target=lambda: answers.append(tiny.get("/slow")))
        asking.start()
        tiny.wait_for("slow began")
        status = tiny.stop()
        asking.join()
        # uvicorn, having shut down, raises the signal again; a container's first process is immune, and ends with 0.
        assert status in (0, -signal.SIGTERM)
        assert (answers[0].status_code, answers[0].json()) == (200, "done")
        assert "route=/slow status=200" in tiny.log.read_text()
        assert "Traceback" not in tiny.log.read_text()


@pytest.mark.slow
def test_sigterm_lets_requests_in_flight_of_all_workers_finish_and_ends_with_0(tmp_path: Path) -> None:
    with serving(tmp_path, n_workers=2) as tiny:
        answers: list[httpx.Response] = []
        asking = [threading.Thread(target=lambda: answers.append(tiny.get("/slow"))) for _ in range(4)]
        for thread in asking:
            thread.start()
        tiny.wait_for("slow began", 4)
        assert tiny.stop() == 0
        for thread in asking:
            thread.join()
        assert [answer.status_code for answer in answers] == [200] * 4


def upload(url: str, head: str, *bodies: bytes) -> bytes:
    """Send a request piece by piece, whatever comes back, and read until the server closes."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(f"POST /echo HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n".encode())
        for body in bodies:
            connection.sendall(body)
        received = b""
        while piece := connection.recv(65_536):
            received += piece
    return received


def test_what_is_too_large_is_refused_readably_on_a_connection_that_ends(tmp_path: Path) -> None:
    with serving(tmp_path) as tiny:
        mebibyte = b"x" * 2**20
        answers = [
            upload(tiny.url, f"Content-Length: {20 * 2**20}", *[mebibyte] * 20),
            upload(tiny.url, "Transfer-Encoding: chunked", *[b"100000\r\n" + mebibyte + b"\r\n"] * 20, b"0\r\n\r\n"),
        ]
        began = time.monotonic()
        answers.append(upload(tiny.url, f"Content-Length: {2**40}\r\nExpect: 100-continue"))
        assert time.monotonic() - began < 1  # nobody waits for a body that is not coming
        for answer in answers:
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 413 ")
            assert b"connection: close" in head.lower()
            assert json.loads(body)["status"] == 413
        assert tiny.client.post("/echo", content=b"x" * 1000).json() == 1000
        assert "Traceback" not in tiny.log.read_text()


def test_a_real_caller_who_leaves_is_seen_by_who_reads_its_body(tmp_path: Path) -> None:
    with serving(tmp_path) as tiny:
        host, port = tiny.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345")
            time.sleep(0.2)
        tiny.wait_for("status=499")
        assert read(tiny.get("/metrics").text)["recs_disconnects_total",] == 1
        assert "ERROR" not in tiny.log.read_text()
