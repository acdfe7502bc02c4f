"""Listing and switching versions over HTTP: who may, what is answered, and that nothing else shows."""

from __future__ import annotations

import asyncio
import errno
import hmac
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import pytest
from fastapi import FastAPI
from filelock import FileLock

from app import registry
from app.main import create_app
from app.registry import CURRENT, HISTORY, VERSIONS, current, publish
from app.settings import Settings
from tests.models import make_model, serve
from tests.publishers import check_flat_view, recorded

Request = Callable[..., httpx.Response]
TOKEN = "correct-horse-battery-staple"  # noqa: S105
ADMIN = {"Authorization": f"Bearer {TOKEN}"}
GONE = "20200101T000000Z-00000000"
MODELS = [make_model(random_state=seed) for seed in (1, 2, 3)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "artifacts"


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flush nothing: no machine dies in these tests."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)


@pytest.fixture(autouse=True)
def nothing_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare each service that starts here the search through pytest's memory, which takes a tenth of a second."""
    monkeypatch.setattr("gc.collect", lambda: 0)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("store") / "artifacts"
    return folder, [publish(folder, model).version for model in MODELS]


@pytest.fixture
def published(folder: Path, store: tuple[Path, list[str]]) -> list[str]:
    """Three versions, published one after another."""
    shutil.copytree(store[0], folder, symlinks=True)
    return store[1]


def app_of(folder: Path, token: str | None = TOKEN, reload_seconds: float = 3600) -> FastAPI:
    return create_app(Settings(artifacts_dir=folder, admin_token=token, reload_seconds=reload_seconds))


@pytest.fixture
def request_(folder: Path, published: list[str]) -> Iterator[Request]:
    assert published
    with serve(app_of(folder)) as request:
        yield request


def endpoints(version: str) -> dict[str, str]:
    """Every administrator's endpoint, and its method."""
    return {"/models": "GET", "/models/rollback": "POST", f"/models/{version}/activate": "POST"}


def activate(request: Request, version: str) -> httpx.Response:
    return request(f"/models/{version}/activate", "POST", headers=ADMIN)


def rollback(request: Request) -> httpx.Response:
    return request("/models/rollback", "POST", headers=ADMIN)


def assert_problem(response: httpx.Response, status: int, kind: str) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert list(problem) == ["type", "title", "status", "detail"]
    assert (problem["type"], problem["status"]) == (f"urn:movie-recommender:problem:{kind}", status)
    assert problem["title"] == kind.replace("-", " ").capitalize()
    assert 0 < len(problem["detail"]) < 2_000  # what was sent is not sent back at length
    return str(problem["detail"])


def damage(folder: Path, version: str) -> None:
    path = folder / VERSIONS / version / "als.npz"
    content = path.read_bytes()
    path.unlink()  # not written in place: a service may have it mapped
    path.write_bytes(content[:-1])


# --- who may

WRONG: dict[str, dict[str, Any]] = {
    "nothing": {},
    "an empty header": {"Authorization": ""},
    "a scheme alone": {"Authorization": "Bearer"},
    "no token": {"Authorization": "Bearer "},
    "another token": {"Authorization": "Bearer wrong"},
    "the start of it": {"Authorization": f"Bearer {TOKEN[:-1]}"},
    "more than it": {"Authorization": f"Bearer {TOKEN}x"},
    "other letters": {"Authorization": f"Bearer {TOKEN.upper()}"},
    "the token alone": {"Authorization": TOKEN},
    "another scheme": {"Authorization": f"Token {TOKEN}"},
    "basic": {"Authorization": "Basic YWRtaW46Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5LXN0YXBsZQ=="},
    "digest": {"Authorization": f'Digest username="{TOKEN}"'},
    "two tokens": {"Authorization": f"Bearer {TOKEN} {TOKEN}"},
    "two schemes": {"Authorization": f"Bearer Bearer {TOKEN}"},
    "a tab": {"Authorization": f"Bearer\t{TOKEN}"},
    "a long one": {"Authorization": "Bearer " + "x" * 100_000},
    "UTF-8": {"Authorization": "Bearer té天ø".encode()},
    "Latin-1": {"Authorization": b"Bearer \xff\xa0\x85"},
    "another header": {"X-Admin-Token": TOKEN, "Proxy-Authorization": f"Bearer {TOKEN}"},
    "a cookie": {"Cookie": f"Authorization=Bearer {TOKEN}"},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_without_the_token_everybody_is_told_the_same(
    request_: Request, folder: Path, published: list[str], wrong: str
) -> None:
    before = state(folder)
    expected = request_("/models")
    assert "Bearer" in assert_problem(expected, 401, "unauthorized")
    for version in (published[0], published[-1], GONE, "..%5C", "x" * 300):
        for path, method in endpoints(version).items():
            response = request_(path, method, headers=WRONG[wrong])
            assert (response.status_code, response.content) == (401, expected.content)
            assert without_id(response.headers) == without_id(expected.headers)
            assert response.headers["www-authenticate"] == "Bearer"
    assert state(folder) == before


def without_id(headers: httpx.Headers) -> dict[str, str]:
    """Return headers less the id that each request has of its own."""
    return {name: value for name, value in headers.items() if name != "x-request-id"}


def state(folder: Path) -> tuple[bytes, bytes]:
    return (folder / CURRENT).read_bytes(), (folder / HISTORY).read_bytes()


def test_a_token_in_the_address_is_none(request_: Request) -> None:
    for query in (f"token={TOKEN}", f"access_token={TOKEN}", f"Authorization=Bearer%20{TOKEN}"):
        assert_problem(request_(f"/models?{query}"), 401, "unauthorized")


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer  "])
def test_the_name_of_the_scheme_may_be_written_in_any_case(request_: Request, scheme: str) -> None:
    assert request_("/models", headers={"Authorization": f"{scheme} {TOKEN}"}).status_code == 200


@pytest.mark.parametrize(
    "token", ["pässwörd", "天地玄黄", "voilà", "Å", "\u0085x", "with spaces in it", "a=b/c+d~", "x" * 5_000]
)
def test_a_token_may_be_any_text_sent_as_utf_8(folder: Path, token: str) -> None:
    with serve(app_of(folder, token)) as request:
        assert request("/models", headers={"Authorization": b"Bearer " + token.encode()}).status_code == 200
        for wrong in (token[:-1], token + "x", "x" + token):
            sent = {"Authorization": b"Bearer " + wrong.encode()}
            assert_problem(request("/models", headers=sent), 401, "unauthorized")


@pytest.mark.parametrize("given", ["nothing", "another scheme", "another token", "a long one", "the token"])
def test_one_comparison_in_constant_time_decides(
    request_: Request, published: list[str], given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return hmac_compare(a, b)

    hmac_compare = hmac.compare_digest
    monkeypatch.setattr("app.routers.admin.hmac.compare_digest", compare)
    headers = {**WRONG, "the token": ADMIN}[given]
    for path, method in endpoints(published[0]).items():
        compared.clear()
        request_(path, method, headers=headers)
        ((a, b),) = compared  # also where the header is missing: no answer comes sooner
        assert len(a) == len(b) == 32
    monkeypatch.setattr("app.routers.admin.hmac.compare_digest", lambda _a, _b: True)
    assert request_("/models", headers=headers).status_code == 200


@pytest.mark.parametrize("token", [None, ""])
@pytest.mark.parametrize("headers", [{}, ADMIN, {"Authorization": "Bearer "}, {"Authorization": "Bearer None"}])
def test_without_a_token_configured_nobody_may_and_is_told_how_to_configure_one(
    folder: Path, published: list[str], token: str | None, headers: dict[str, str]
) -> None:
    before = state(folder)
    with serve(app_of(folder, token)) as request:
        for version in (published[0], GONE):
            for path, method in endpoints(version).items():
                response = request(path, method, headers=headers)
                detail = assert_problem(response, 403, "admin-disabled")
                assert "RECS_ADMIN_TOKEN" in detail
                assert "www-authenticate" not in response.headers
        assert request("/recommend?user_id=1").status_code == 200
    assert state(folder) == before


def test_an_empty_variable_configures_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECS_ADMIN_TOKEN", "")
    assert Settings().admin_token is None
    monkeypatch.setenv("RECS_ADMIN_TOKEN", TOKEN)
    assert Settings().admin_token.get_secret_value() == TOKEN


def test_the_token_is_never_shown(
    folder: Path, published: list[str], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    settings = Settings(artifacts_dir=folder, admin_token=TOKEN, reload_seconds=0)
    shown = [
        repr(settings),
        str(settings),
        str(settings.model_dump()),
        settings.model_dump_json(),
        repr(vars(settings)),
    ]
    app = create_app(settings)
    shown += [repr(app.state._state), repr(vars(app.state.serving))]
    damage(folder, published[0])
    with serve(app) as request:
        for headers in (ADMIN, {"Authorization": f"Basic {TOKEN}"}, {"Authorization": f"Bearer {TOKEN}x"}):
            for version in (*published, GONE, "nonsense"):
                for path, method in endpoints(version).items():
                    response = request(path, method, headers=headers)
                    shown += [response.text, str(response.headers)]
        with patch("app.registry.versions", side_effect=RuntimeError("a fault")):
            shown.append(request("/models", headers=ADMIN).text)
        for path in ("/openapi.json", "/docs", "/metrics", "/health", "/redoc"):
            shown.append(request(path, headers=ADMIN).text)
    shown += [caplog.text, *capfd.readouterr(), (folder / HISTORY).read_text()]
    assert "fault" in caplog.text or "log says why" in "".join(shown)
    assert not [text for text in shown if TOKEN in text or TOKEN[:12] in text]


def test_other_endpoints_ask_for_no_token(request_: Request) -> None:
    for path in ("/recommend?user_id=1", "/recommend_cold", "/health", "/livez", "/readyz", "/metrics", "/docs"):
        assert request_(path).status_code == 200
        assert request_(path, headers={"Authorization": "Bearer wrong"}).status_code == 200


# --- the list


def test_versions_are_listed_newest_first_with_what_they_say_of_themselves(folder: Path) -> None:
    metrics = {
        "stage": "test",
        "protocols": {"rated": {"als": {"recall@10": 0.25, "ndcg@10": 0.125}}, "positives": {"als": {"recall@10": 1}}},
        "promotion": {"activate": True, "reasons": ["no version was active"]},
    }
    first = publish(folder, make_model(random_state=1)).version
    second = publish(folder, with_metrics(metrics)).version
    with serve(app_of(folder)) as request:
        listed = request("/models", headers=ADMIN)
        assert listed.headers["content-type"] == "application/json"
        answer = listed.json()
        assert list(answer) == ["active", "previous", "serving", "versions"]
        assert (answer["active"], answer["previous"], answer["serving"]) == (second, first, second)
        assert [each["version"] for each in answer["versions"]] == sorted((first, second), reverse=True)
        (entry,) = (each for each in answer["versions"] if each["version"] == second)
        manifest = json.loads((folder / VERSIONS / second / "manifest.json").read_text())
        assert entry == {
            "version": second,
            "is_active": True,
            "is_previous": False,
            "trained_at": manifest["trained_at"],
            "dataset": "hand-made",
            "n_ratings": 14,
            "n_users": 5,
            "n_items": 6,
            "has_ranker": False,
            "stage": "test",
            "protocol": "rated",
            "metrics": {"recall@10": 0.25, "ndcg@10": 0.125},
            "promotion": metrics["promotion"],
            "damage": None,
        }
        activate(request, first)
        answer = request("/models", headers=ADMIN).json()
        assert (answer["active"], answer["previous"], answer["serving"]) == (first, second, first)


def with_metrics(metrics: dict[str, Any], random_state: int = 2) -> Any:
    model = make_model(random_state=random_state)
    model.metrics.clear()
    model.metrics.update(metrics)
    return model


def test_where_nothing_is_published_the_list_is_empty(folder: Path) -> None:
    with serve(app_of(folder)) as request:
        answer = request("/models", headers=ADMIN).json()
        assert answer == {"active": None, "previous": None, "serving": None, "versions": []}
        assert_problem(rollback(request), 409, "version-refused")
        assert_problem(activate(request, GONE), 404, "unknown-version")
    assert not folder.exists()


def test_what_is_active_may_not_be_what_is_served(request_: Request, folder: Path, published: list[str]) -> None:
    (folder / CURRENT).write_text(published[0])
    answer = request_("/models", headers=ADMIN).json()
    assert (answer["active"], answer["serving"]) == (published[0], published[-1])
    (folder / CURRENT).write_text("garbage")
    answer = request_("/models", headers=ADMIN).json()
    assert (answer["active"], answer["previous"], answer["serving"]) == (None, published[-1], published[-1])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("manifest.json", "[]"),
        ("config.json", '{"n_ratings": "many"}'),
        ("config.json", '{"n_ratings": 1.5}'),
        ("metrics.json", "half"),
        ("metrics.json", '{"stage": 5}'),
        ("metrics.json", '{"protocols": {"rated": {"als": {"recall@10": "good"}}}}'),
        ("metrics.json", '{"protocols": {"rated": {"als": {"recall@10": null}}}}'),
        ("metrics.json", '{"protocols": 5}'),
        ("metrics.json", '{"promotion": {"reasons": "\\ud800"}}'),
        ("metrics.json", '{"promotion": {"reasons": ' + "[" * 400 + "]" * 400 + "}}"),
    ],
)
def test_one_version_that_cannot_be_read_spoils_no_list(
    request_: Request, folder: Path, published: list[str], name: str, content: str
) -> None:
    path = folder / VERSIONS / published[1] / name
    path.unlink()
    path.write_text(content)
    answer = request_("/models", headers=ADMIN)
    assert answer.status_code == 200
    entries = {each["version"]: each for each in answer.json()["versions"]}
    assert entries.keys() == set(published)
    damaged = entries.pop(published[1])
    assert 0 < len(damaged["damage"]) < 1_000
    assert (damaged["is_active"], damaged["is_previous"], damaged["metrics"]) == (False, True, {})
    assert all(entry["damage"] is None and entry["dataset"] == "hand-made" for entry in entries.values())


def test_numbers_that_are_none_are_listed_as_json(request_: Request, folder: Path, published: list[str]) -> None:
    path = folder / VERSIONS / published[1] / "metrics.json"
    path.unlink()
    path.write_text('{"protocols": {"rated": {"als": {"recall@10": NaN, "ndcg@10": 1e999}}}, "promotion": {"x": NaN}}')
    answer = request_("/models", headers=ADMIN)
    assert answer.status_code == 200
    json.loads(answer.text, parse_constant=lambda name: pytest.fail(name))


# --- switching


def test_an_activated_version_is_served_at_once(request_: Request, folder: Path, published: list[str]) -> None:
    first, _, third = published
    assert request_("/recommend?user_id=1").json()["version"] == third
    response = activate(request_, first)
    assert response.status_code == 200
    assert response.json() == {"version": first, "replaced": third, "serving": first, "warnings": []}
    for path in ("/recommend?user_id=1", "/recommend_cold", "/health"):
        assert request_(path).json()["version"] == first
    assert current(folder) == first
    assert recorded(folder)[-1] == (first, "activated")
    check_flat_view(folder, first)


def test_activating_again_changes_nothing(request_: Request, folder: Path, published: list[str]) -> None:
    before = state(folder)
    response = activate(request_, published[-1])
    assert response.status_code == 200
    assert response.json() == {
        "version": published[-1],
        "replaced": published[-1],
        "serving": published[-1],
        "warnings": [],
    }
    assert state(folder) == before


def test_each_rollback_goes_further_back(request_: Request, folder: Path, published: list[str]) -> None:
    first, second, third = published
    for old, new in ((third, second), (second, first)):
        response = rollback(request_)
        assert response.status_code == 200
        assert response.json() == {"version": new, "replaced": old, "serving": new, "warnings": []}
        assert request_("/health").json()["version"] == new
    before = state(folder)
    assert "nothing to roll back to" in assert_problem(rollback(request_), 409, "version-refused")
    assert state(folder) == before
    assert request_("/health").json()["version"] == first
    assert [why for _, why in recorded(folder)] == [*["trained"] * 3, *["rolled back"] * 2]
    activate(request_, third)
    assert rollback(request_).json()["version"] == first


def test_rollback_says_what_it_passed_over(request_: Request, folder: Path, published: list[str]) -> None:
    first, second, _ = published
    damage(folder, second)
    answer = rollback(request_).json()
    assert (answer["version"], answer["serving"]) == (first, first)
    (warning,) = answer["warnings"]
    assert second in warning
    assert "als.npz" in warning


def test_a_damaged_version_is_refused(request_: Request, folder: Path, published: list[str]) -> None:
    first, second, third = published
    damage(folder, first)
    before = state(folder)
    detail = assert_problem(activate(request_, first), 409, "version-refused")
    assert first in detail
    assert "als.npz" in detail
    assert state(folder) == before
    health = request_("/health").json()
    assert (health["version"], health["reload_error"]) == (third, None)
    damage(folder, second)
    assert "nothing to roll back to" in assert_problem(rollback(request_), 409, "version-refused")
    assert state(folder) == before


# ".." as such never arrives: clients resolve it.
@pytest.mark.parametrize(
    "version", [GONE, "x", "%2e%2e", "CURRENT", "%00", "{}%0A", "{}%20", "%E5%A4%A9", "%FF", "rollback", "x" * 10_000]
)
def test_an_unknown_version_is_not_found(request_: Request, folder: Path, published: list[str], version: str) -> None:
    before = state(folder)
    url = httpx.URL("http://service", raw_path=f"/models/{version.format(published[0])}/activate".encode())
    detail = assert_problem(request_(url, "POST", headers=ADMIN), 404, "unknown-version")
    assert "models list" in detail
    assert state(folder) == before


@pytest.mark.parametrize("path", ["/models//activate", "/models/a/b/activate", "/models/..%2Fversions/activate"])
def test_what_is_no_path_of_ours_is_not_found_by_anybody(request_: Request, path: str) -> None:
    url = httpx.URL("http://service", raw_path=path.encode())
    for headers in ({}, ADMIN):
        assert request_(url, "POST", headers=headers).status_code == 404


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/models"), ("GET", "/models/rollback"), ("GET", f"/models/{GONE}/activate")]
)
def test_another_method_is_not_allowed(request_: Request, folder: Path, method: str, path: str) -> None:
    before = state(folder)
    assert request_(path, method, headers=ADMIN).status_code == 405
    assert state(folder) == before


def test_from_a_damaged_version_one_gets_away_over_http(folder: Path, published: list[str]) -> None:
    _, second, third = published
    shutil.rmtree(folder / VERSIONS / third)
    with serve(app_of(folder)) as request:
        assert request("/health").json()["version"] == second
        assert third in request("/health").json()["reload_error"]["reason"]
        assert rollback(request).json() == {"version": second, "replaced": third, "serving": second, "warnings": []}
        assert request("/health").json()["reload_error"] is None


def test_activation_brings_back_what_this_process_had_refused(
    request_: Request, published: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *_, third = published
    with monkeypatch.context() as patched:
        patched.setattr("app.serving.load_warm", lambda _folder: 1 / 0)
        for _ in range(2):
            answer = activate(request_, first).json()
            assert (answer["version"], answer["serving"]) == (first, third)
        assert "ZeroDivisionError" in request_("/health").json()["reload_error"]["reason"]
    assert activate(request_, first).json()["serving"] == first  # though nothing has changed on the disk
    assert request_("/health").json()["reload_error"] is None


def test_without_a_model_one_can_be_activated(folder: Path) -> None:
    version = publish(folder, MODELS[0], may_activate=lambda _active: False).version
    with serve(app_of(folder)) as request:
        assert request("/readyz").status_code == 503
        assert activate(request, version).json() == {
            "version": version,
            "replaced": None,
            "serving": version,
            "warnings": [],
        }
        assert request("/readyz").status_code == 200


def test_switches_at_the_same_moment_take_turns(folder: Path, published: list[str]) -> None:
    async def run() -> tuple[list[httpx.Response], str]:
        app = app_of(folder)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service", headers=ADMIN) as client,
        ):
            paths = [f"/models/{published[n % 3]}/activate" for n in range(12)]
            found = await asyncio.gather(*map(client.post, paths))
            return found, (await client.get("/health")).json()["version"]

    found, serving = asyncio.run(run())
    assert {response.status_code for response in found} == {200}
    assert serving == current(folder) == recorded(folder)[-1][0]
    replaced = [answer["replaced"] for answer in (response.json() for response in found)]
    assert set(replaced) <= set(published)


# --- a folder that cannot be written


def test_a_trainer_at_work_is_waited_for_but_not_for_ever(
    request_: Request, folder: Path, published: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.routers.models.WAIT_SECONDS", 0.05)
    before = state(folder)
    with FileLock(folder / ".lock"):
        for response in (activate(request_, published[0]), rollback(request_)):
            detail = assert_problem(response, 503, "artifacts-unwritable")
            assert "is being changed by" in detail
            assert "after 0.05 s" in detail
        assert request_("/models", headers=ADMIN).status_code == 200
        assert_problem(activate(request_, GONE), 404, "unknown-version")
    assert state(folder) == before
    assert activate(request_, published[0]).json()["serving"] == published[0]


@pytest.mark.parametrize("file", [".lock", HISTORY, CURRENT])
@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_a_folder_that_cannot_be_written_is_named(
    request_: Request, folder: Path, published: list[str], file: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests may run as root, whom no permission stops, so the calls of the system fail as they would."""

    def refuse(path: object) -> None:
        if isinstance(path, str | os.PathLike) and Path(path).name.endswith(file):
            raise OSError(code, os.strerror(code), str(path))

    os_open, path_open = os.open, Path.open

    def open_file(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            refuse(path)
        return os_open(path, flags, *args, **options)

    def open_path(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        if not mode.startswith("r"):
            refuse(path)
        return path_open(path, mode, *args, **options)

    before = state(folder)
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", open_file)
        patched.setattr(Path, "open", open_path)
        for response in (activate(request_, published[0]), rollback(request_)):
            detail = assert_problem(response, 503, "artifacts-unwritable")
            assert str(folder) in detail
            assert os.strerror(code) in detail
        assert state(folder)[0] == before[0]
        assert registry.earlier(folder) == [published[1], published[0]]
        assert request_("/health").json()["version"] == published[-1]
        assert request_("/models", headers=ADMIN).status_code == 200
    assert rollback(request_).json()["serving"] == published[1]  # as if nothing had been tried


# --- documentation


@pytest.fixture(scope="module")
def openapi(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    document: dict[str, Any] = app_of(tmp_path_factory.mktemp("none")).openapi()
    return document


def test_the_token_is_documented_as_a_bearer_token(openapi: dict[str, Any]) -> None:
    ((name, scheme),) = openapi["components"]["securitySchemes"].items()
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    assert "RECS_ADMIN_TOKEN" in scheme["description"]
    for path, operations in openapi["paths"].items():
        for operation in operations.values():
            assert operation.get("security") == ([{name: []}] if path.startswith("/models") else None), path


@pytest.mark.parametrize(
    ("path", "method", "kinds"),
    [
        ("/models", "get", {"401": "unauthorized", "403": "admin-disabled"}),
        (
            "/models/rollback",
            "post",
            {
                "401": "unauthorized",
                "403": "admin-disabled",
                "409": "version-refused",
                "503": "artifacts-unwritable",
            },
        ),
        (
            "/models/{version}/activate",
            "post",
            {
                "401": "unauthorized",
                "403": "admin-disabled",
                "404": "unknown-version",
                "409": "version-refused",
                "503": "artifacts-unwritable",
            },
        ),
    ],
)
def test_every_problem_is_documented_with_an_example(
    openapi: dict[str, Any], path: str, method: str, kinds: dict[str, str]
) -> None:
    responses = openapi["paths"][path][method]["responses"]
    assert responses.keys() == {"200", *kinds, "413", "414", "422", "503"}  # the last four may meet any request
    for status, kind in kinds.items():
        (content,) = responses[status]["content"].items()
        assert content[0] == "application/problem+json"
        assert content[1]["schema"] == {"$ref": "#/components/schemas/Problem"}
        example = content[1]["example"]
        assert (example["status"], example["type"]) == (int(status), f"urn:movie-recommender:problem:{kind}")
        assert example["detail"]


def test_what_is_documented_of_refused_access_is_what_is_sent(folder: Path, openapi: dict[str, Any]) -> None:
    responses = openapi["paths"]["/models"]["get"]["responses"]
    for token, status in ((TOKEN, "401"), (None, "403")):
        with serve(app_of(folder, token)) as request:
            assert request("/models").json() == responses[status]["content"]["application/problem+json"]["example"]


def test_answers_have_the_fields_that_are_documented(
    request_: Request, published: list[str], openapi: dict[str, Any]
) -> None:
    schemas = openapi["components"]["schemas"]
    listed = request_("/models", headers=ADMIN).json()
    for schema, found in (
        ("ModelList", listed),
        ("ModelVersion", listed["versions"][0]),
        ("Activation", activate(request_, published[0]).json()),
    ):
        assert schemas[schema]["properties"].keys() == found.keys()
        if "example" in schemas[schema]:
            assert schemas[schema]["example"].keys() == found.keys() - {
                "damage"
            }  # which is rare, and null is not shown
    (parameter,) = openapi["paths"]["/models/{version}/activate"]["post"]["parameters"]
    assert (parameter["name"], parameter["in"], parameter["required"]) == ("version", "path", True)


def test_where_nobody_looks_by_himself_one_is_told(folder: Path, published: list[str]) -> None:
    with serve(app_of(folder, reload_seconds=0)) as request:
        answer = activate(request, published[0]).json()
        assert answer["serving"] == published[0]  # this process does follow
        (warning,) = answer["warnings"]
        assert "RECS_RELOAD_SECONDS is 0" in warning


def test_a_version_that_does_not_answer_is_not_activated(
    request_: Request, folder: Path, published: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_self: object, *_args: object) -> None:
        raise ZeroDivisionError("broken")

    monkeypatch.setattr("app.recommender.Recommender.recommend_cold", fail)
    response = activate(request_, published[0])
    assert response.status_code == 409
    assert "does not answer" in response.json()["detail"]
    assert (folder / CURRENT).read_text().strip() == published[2]


def test_the_end_of_a_line_is_no_part_of_the_token() -> None:
    assert Settings(admin_token=f" {TOKEN}\n").admin_token.get_secret_value() == TOKEN
    assert Settings(admin_token=" \n").admin_token is None  # noqa: S106
