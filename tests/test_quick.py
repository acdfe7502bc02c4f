"""The quick lane answers what FastAPI's own routes would, to the byte, and lets through what is not its business."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, quote_plus

import httpx
import pytest
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Message

from app.main import create_app
from app.registry import publish
from app.routers.edge import Edge
from app.routers.parameters import ColdQuery, MovieQuery, Parameters, PopularQuery, SimilarQuery, UserQuery
from app.routers.quick import QuickLane, _pairs, parse_query
from app.settings import Settings
from tests.models import make_model, serve

Get = Callable[..., httpx.Response]
MODELS: dict[str, type[Parameters]] = {
    "/recommend": UserQuery,
    "/recommend_cold": ColdQuery,
    "/similar": SimilarQuery,
    "/popular": PopularQuery,
    "/movies": MovieQuery,
}


@pytest.fixture(scope="module")
def artifacts_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts")
    publish(folder, make_model())
    return folder


def app_of(artifacts_dir: Path) -> FastAPI:
    return create_app(Settings(artifacts_dir=artifacts_dir))


def without_lane(app: FastAPI) -> FastAPI:
    edge = app.build_middleware_stack()
    assert isinstance(edge, Edge)
    assert isinstance(edge._app, QuickLane)
    edge._app = edge._app._app
    app.middleware_stack = edge
    return app


@pytest.fixture(scope="module")
def get(artifacts_dir: Path) -> Iterator[Get]:
    with serve(app_of(artifacts_dir)) as request:
        yield request


@pytest.fixture(scope="module")
def get_by_fastapi(artifacts_dir: Path) -> Iterator[Get]:
    """The same service without the lane."""
    with serve(without_lane(app_of(artifacts_dir))) as request:
        yield request


# --- the same as FastAPI


def said(response: httpx.Response) -> tuple[int, bytes, dict[str, str]]:
    return response.status_code, response.content, {k: v for k, v in response.headers.items() if k != "x-request-id"}


def assert_same(get: Get, get_by_fastapi: Get, url: str, method: str = "GET") -> httpx.Response:
    response = get(url, method)
    assert said(response) == said(get_by_fastapi(url, method))
    return response


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("/recommend?user_id=1", 200),
        ("/recommend?user_id=1&explain=true&k=2", 200),
        ("/recommend?user_id=1&genre=Drama&genre=western", 200),
        ("/recommend?user_id=%31&k=%33", 200),
        ("/recommend?user_id=2&user_id=1&k=0&k=4", 200),
        ("/recommend?user_id=1&&k=3&", 200),
        ("/recommend?user_id=1&unknown=1&=&=2&more", 200),
        ("/recommend?user_id=999", 404),
        ("/recommend?user_id=999&on_unknown=popular", 200),
        ("/recommend", 422),
        ("/recommend?user_id", 422),
        ("/recommend?user_id=+1", 422),
        ("/recommend?user_id=1&k=&novelty=2&genre=x", 422),
        ("/recommend?user_id=1&genre=x", 422),
        ("/recommend?user_id=1&year_min=2&year_max=1", 422),
        ("/recommend_cold?liked=1%2C2&liked=3", 200),
        ("/recommend_cold?liked=&liked", 200),
        ("/similar?movie_id=1", 200),
        ("/similar?movie_id=404", 404),
        ("/popular", 200),
        ("/movies?query=toy+story", 200),
        ("/movies?query=toy%20story", 200),
        ("/movies?query=am%C3%A9lie", 200),
        ("/movies?query=%E5%A4%A9", 200),
        ("/movies?query=+", 422),
        ("/recommend/", 307),
        ("/Recommend?user_id=1", 404),
        ("/%72ecommend?user_id=1", 200),
        ("/recommend/batch", 405),
    ],
)
def test_the_lane_answers_what_fastapi_would(get: Get, get_by_fastapi: Get, url: str, status: int) -> None:
    assert assert_same(get, get_by_fastapi, url).status_code == status


NAMES = sorted({name for model in MODELS.values() for name in model.model_fields} | {"", "x", "K", "user_id ", "é"})
VALUES = ("", "1", "3", "404", "0", "x", " 1", "1,2", "1,", "true", "false", "0.5", "2", "Drama", "sci-fi", "popular")
SPECIAL = ("toy story", "amélie", "天", "%", "a&b=c", "1+1", "\0", "1990", "2000", "9" * 30)


@given(
    path=st.sampled_from(list(MODELS)),
    parameters=st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from([*VALUES, *SPECIAL])), max_size=6),
    write=st.sampled_from([quote, quote_plus]),
)
@settings(max_examples=150, deadline=None)
def test_the_lane_answers_any_query_as_fastapi_would(
    get: Get, get_by_fastapi: Get, path: str, parameters: list[tuple[str, str]], write: Callable[[str], str]
) -> None:
    query = "&".join(f"{write(name)}={write(value)}" for name, value in parameters)
    response = assert_same(get, get_by_fastapi, f"{path}?{query}")
    assert response.status_code in (200, 404, 422)


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "QUERY"])
@pytest.mark.parametrize("path", MODELS)
def test_another_method_is_a_problem(get: Get, get_by_fastapi: Get, path: str, method: str) -> None:
    response = assert_same(get, get_by_fastapi, path, method)
    assert (response.status_code, response.headers["allow"]) == (405, "GET")
    assert response.headers["content-type"] == "application/problem+json"


def test_a_service_without_a_model_says_the_same(tmp_path: Path) -> None:
    with (
        serve(app_of(tmp_path / "none")) as get,
        serve(without_lane(app_of(tmp_path / "none"))) as get_by_fastapi,
    ):
        for path in MODELS:
            response = assert_same(get, get_by_fastapi, f"{path}?user_id=1&movie_id=1&query=toy")
            assert response.status_code == 503


def test_a_fault_is_the_same_problem(get: Get, get_by_fastapi: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr("app.recommender.Recommender.popular", fail)
    response = assert_same(get, get_by_fastapi, "/popular?k=77")
    assert response.status_code == 500
    assert "secret" not in response.text


def test_what_is_quick_never_reaches_fastapi(artifacts_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object) -> None:
        raise AssertionError("a router was asked")

    with serve(app_of(artifacts_dir)) as get:
        monkeypatch.setattr("starlette.routing.Router.__call__", fail)
        for path in MODELS:
            assert get(f"{path}?user_id=1&movie_id=1&query=toy").status_code == 200
            assert get(path, "POST").status_code == 500


# --- below a prefix


@pytest.mark.parametrize("root_path", ["/api", "/api/v1", "/recommend", "/rec"])
def test_paths_may_stand_below_a_prefix(
    artifacts_dir: Path, get: Get, root_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As uvicorn's --root-path gives them, and as a proxy does that takes the prefix away."""

    async def ask(app: FastAPI, path: str) -> httpx.Response:
        transport = httpx.ASGITransport(app, root_path=root_path)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            return await client.get(path)

    expected, popular = get("/recommend?user_id=1").content, get("/popular").content

    async def run() -> None:
        app = app_of(artifacts_dir)
        async with app.router.lifespan_context(app):
            assert (await ask(app, f"{root_path}/popular")).content == popular
            assert (await ask(app, f"{root_path}/recommend?user_id=1")).content == expected
            assert (await ask(app, f"{root_path}/movies/1")).status_code == 200
            assert (await ask(app, f"{root_path}popular")).status_code == 404
            monkeypatch.setattr("starlette.routing.Router.__call__", None)
            assert (await ask(app, f"{root_path}/recommend?user_id=1")).content == expected  # by the lane

    asyncio.run(run())


# --- what is no request


def test_other_scopes_pass_through() -> None:
    passed: list[str] = []

    async def below(scope: Any, _receive: Any, _send: Any) -> None:
        passed.append(scope["type"])

    async def send(_message: Message) -> None:
        raise AssertionError("nobody was asked")

    async def receive() -> Message:
        raise AssertionError("nobody listens")

    async def run() -> None:
        lane = QuickLane(below, create_app().router.routes)
        for kind in ("lifespan", "websocket"):
            await lane({"type": kind, "path": "/recommend", "method": "GET"}, receive, send)

    asyncio.run(run())
    assert passed == ["lifespan", "websocket"]


# --- query strings

PIECES = st.sampled_from(
    [*"&=%+;#?/ \x00", "a", "b", "1", "é", "天", "%41", "%zz", "%", "%C3%A9", "%ff", "&&", "==", "k"]
)


@given(st.one_of(st.lists(PIECES, max_size=25).map("".join), st.text(st.characters(codec="latin-1"), max_size=25)))
@settings(max_examples=400)
def test_query_strings_are_split_as_the_standard_library_does(text: str) -> None:
    assert _pairs(text) == parse_qsl(text, keep_blank_values=True)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_query_or_refused(query_string: bytes) -> None:
    for model in MODELS.values():
        found: list[Any] = []
        try:
            parse_query(model, query_string)
        except RequestValidationError as error:
            found = [each["loc"] for each in error.errors()]
        assert all(place == "query" and name in model.model_fields for place, name in found)


def test_of_a_repeated_parameter_the_last_one_counts() -> None:
    query = parse_query(UserQuery, b"user_id=1&user_id=2&k=3&k=4")
    assert isinstance(query, UserQuery)
    assert (query.user_id, query.k) == (2, 4)


def test_parameters_that_may_be_repeated_add_up() -> None:
    query = parse_query(ColdQuery, b"liked=1&genre=War&liked=2,3&exclude=9&genre=drama&exclude=8")
    assert isinstance(query, ColdQuery)
    assert (query.liked, query.genre, query.exclude) == ((1, 2, 3), ("drama", "war"), (8, 9))


def test_a_blank_value_is_a_value() -> None:
    with pytest.raises(RequestValidationError):
        parse_query(PopularQuery, b"k=")
    assert parse_query(PopularQuery, b"genre=&exclude=").key() == parse_query(PopularQuery, b"").key()
