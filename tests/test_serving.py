"""A process follows CURRENT to what is intact and answers, without a restart, and never mixes two versions."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from app.artifacts import MANIFEST
from app.main import create_app
from app.npz import map_npz, write_npz
from app.ranker import Ranker
from app.recommender import ListOptions, Ranking, Recommender
from app.registry import CURRENT, HISTORY, VERSIONS, activate, publish, rollback
from app.serving import Serving, load_warm
from app.settings import Settings
from tests.models import forge, make_model, serve, trained

Get = Callable[..., httpx.Response]
Harm = Callable[[Path], object]
GONE = "20200101T000000Z-00000000"
URLS = ("/recommend?user_id=1", "/recommend?user_id=9&explain=true", "/recommend_cold?liked=1,2", "/recommend_cold")
A, B, C = (make_model(random_state=seed) for seed in (1, 2, 3))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "artifacts"


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flush nothing: no machine dies in these tests."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)


@pytest.fixture(autouse=True)
def no_search_for_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare each service that starts here the search through pytest's memory, which takes a tenth of a second."""
    monkeypatch.setattr("app.main.gc", SimpleNamespace(collect=int, freeze=gc.freeze, unfreeze=gc.unfreeze))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[str, str]]:
    folder = tmp_path_factory.mktemp("store") / "artifacts"
    return folder, (publish(folder, A).version, publish(folder, B, may_activate=lambda _active: False).version)


@pytest.fixture
def two(folder: Path, store: tuple[Path, tuple[str, str]]) -> tuple[str, str]:
    """Two versions, the first of which is active."""
    shutil.copytree(store[0], folder, symlinks=True)
    return store[1]


def app_of(folder: Path, reload_seconds: float = 0) -> FastAPI:
    return create_app(Settings(artifacts_dir=folder, reload_seconds=reload_seconds))


def point(folder: Path, content: str | bytes) -> None:
    """Move CURRENT as anybody might, without asking whether what it names can be served."""
    new = folder / "new"
    new.write_bytes(content if isinstance(content, bytes) else content.encode())
    new.replace(folder / CURRENT)


def metrics(get: Get) -> dict[str, float]:
    """Read what /metrics says: counts of "loaded" and "refused", "failing", and 1 for the version served."""
    samples = [sample for family in text_string_to_metric_families(get("/metrics").text) for sample in family.samples]
    found = {"failing": next(each.value for each in samples if each.name == "recs_reload_failing")}
    found |= {each.labels["result"]: each.value for each in samples if each.name == "recs_reloads_total"}
    return found | {each.labels["version"]: each.value for each in samples if each.name == "recs_serving"}


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def answers_of(folder: Path, version: str, known: dict[str, Any] = {}) -> dict[str, Any]:  # noqa: B006
    """What a service of this version alone answers, which its name determines."""
    if version not in known:
        alone = folder.parent / f"alone-{version}"
        shutil.copytree(folder / VERSIONS / version, alone / VERSIONS / version)
        point(alone, version)
        with serve(app_of(alone)) as get:
            known[version] = {url: get(url).json() for url in URLS}
    found: dict[str, Any] = known[version]
    return found


def assert_serves(get: Get, folder: Path, version: str) -> None:
    assert {url: get(url).json() for url in URLS} == answers_of(folder, version)
    health = get("/health").json()
    assert (health["version"], health["reload_error"]) == (version, None)
    assert get("/readyz").status_code == 200
    assert (metrics(get)["failing"], metrics(get)[version]) == (0, 1)


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """Run the application on the loop of the test, so that what it does by itself goes on between requests."""
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://service") as client,
    ):
        yield client


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.002)


# --- a version that is intact


def test_a_new_version_is_served_once_current_names_it(folder: Path, two: tuple[str, str]) -> None:
    old, new = two
    app = app_of(folder)
    with serve(app) as get:
        assert_serves(get, folder, old)
        app.state.serving.check()
        assert app.state.serving.now.recommender.model.version == old  # published is not activated
        activate(folder, new)
        assert get("/health").json()["version"] == old
        app.state.serving.check()
        assert_serves(get, folder, new)
        assert metrics(get) == {"failing": 0, "loaded": 1, new: 1}


def test_it_follows_back_and_forth_and_loads_each_time_once(
    folder: Path, two: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = two
    loaded: list[str] = []
    monkeypatch.setattr("app.serving.load_warm", lambda path: loaded.append(path.name) or load_warm(path))
    app = app_of(folder)
    with serve(app) as get:
        for move in (lambda: activate(folder, new), lambda: rollback(folder), lambda: activate(folder, new)):
            version = move().version
            for _ in range(3):
                app.state.serving.check()
            assert get("/recommend?user_id=1").json()["version"] == version
        assert metrics(get) == {"failing": 0, "loaded": 3, new: 1}
    assert loaded == [old, new, old, new]


def test_an_equal_version_is_followed_too(folder: Path) -> None:
    first = publish(folder, A).version
    app = app_of(folder)
    with serve(app) as get:
        second = publish(folder, A).version
        assert first[-8:] == second[-8:]
        app.state.serving.check()
        assert get("/health").json()["version"] == second


def test_the_first_version_of_an_empty_folder_is_picked_up(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    app = app_of(folder, reload_seconds=7.5)
    with serve(app) as get:
        for _ in range(3):
            app.state.serving.check()
            assert "looks again every 7.5 s" in get("/health").json()["detail"]
        assert get("/readyz").status_code == 503
        assert metrics(get)["failing"] == 1
        assert len(complaints(caplog)) == 1
        version = publish(folder, A).version
        app.state.serving.check()
        assert_serves(get, folder, version)


def test_users_and_movies_may_be_others_than_before(folder: Path) -> None:
    publish(folder, A)
    app = app_of(folder)
    with serve(app) as get:
        assert get("/recommend?user_id=42").status_code == 404
        publish(folder, make_model([(42, movie, 5.0) for movie in (1, 2, 3)] + [(43, movie, 4.0) for movie in (3, 77)]))
        app.state.serving.check()
        assert [each["movie_id"] for each in get("/recommend?user_id=42").json()["results"]] == [77]
        assert get("/recommend?user_id=1").status_code == 404
        assert (get("/health").json()["n_users"], get("/health").json()["n_items"]) == (2, 4)


def test_what_is_served_outlives_its_folder(folder: Path, two: tuple[str, str]) -> None:
    old, _ = two
    expected = answers_of(folder, old)
    with serve(app_of(folder)) as get:
        shutil.rmtree(folder)
        assert {url: get(url).json() for url in URLS} == expected


# --- requests in flight


def test_a_request_in_flight_ends_on_the_version_it_began_with(
    folder: Path, two: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = two
    url = "/recommend?user_id=9&explain=true&k=4"
    began, go_on = threading.Event(), threading.Event()
    answer = Recommender.recommend

    def recommend(self: Recommender, user_id: int, k: int, options: ListOptions) -> Ranking:  # in a thread
        if self.model.version == old and k == 4:
            began.set()
            assert go_on.wait(20)
        return answer(self, user_id, k, options)

    async def run() -> tuple[dict[str, Any], ...]:
        app = app_of(folder)
        async with running(app) as client:
            held = asyncio.create_task(client.get(url))
            await until(began.is_set)
            activate(folder, new)
            await asyncio.to_thread(app.state.serving.check)
            after = (await client.get(url)).json()
            assert not held.done()
            go_on.set()
            return (await held).json(), after

    with serve(app_of(folder)) as get:
        before = get(url).json()
    monkeypatch.setattr(Recommender, "recommend", recommend)
    held, after = asyncio.run(run())
    assert held == before
    assert (held["version"], after["version"]) == (old, new)
    assert held["results"] != after["results"]


def test_no_response_mixes_two_versions(folder: Path, two: tuple[str, str]) -> None:
    expected = {version: answers_of(folder, version) for version in two}
    n_flips = 20

    async def ask(client: httpx.AsyncClient, flipping: asyncio.Task[None], seen: set[str]) -> None:
        while not flipping.done():
            for url in URLS:
                answer = (await client.get(url)).json()
                assert answer == expected[answer["version"]][url]
                seen.add(answer["version"])
            await asyncio.sleep(0.001)  # else the loop would never let go of the interpreter, which who flips needs

    def flip(serving: Serving) -> None:
        for n in range(n_flips):
            activate(folder, two[1 - n % 2])
            serving.check()

    async def run() -> set[str]:
        app, seen = app_of(folder), set[str]()
        async with running(app) as client:
            flipping = asyncio.create_task(asyncio.to_thread(flip, app.state.serving))
            await asyncio.gather(*(ask(client, flipping, seen) for _ in range(4)))
            await flipping
        return seen

    assert asyncio.run(run()) == set(two)


def test_requests_are_answered_while_a_version_is_loading(
    folder: Path, two: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = two
    began, go_on = threading.Event(), threading.Event()

    def load_slowly(path: Path) -> Recommender:
        if path.name == new:
            began.set()
            assert go_on.wait(20)
        return load_warm(path)

    async def run() -> None:
        app = app_of(folder, reload_seconds=0.01)
        async with running(app) as client:
            activate(folder, new)
            await until(began.is_set)
            for _ in range(20):  # on one loop, which whoever blocks it blocks for all
                for response in await asyncio.gather(*map(client.get, URLS)):
                    assert response.json()["version"] == old
            go_on.set()
            await until(lambda: app.state.serving.now.recommender.model.version == new)
            assert (await client.get(URLS[0])).json()["version"] == new

    monkeypatch.setattr("app.serving.load_warm", load_slowly)
    asyncio.run(run())


def open_maps(version: Path) -> int:
    return Path("/proc/self/maps").read_text().count(str(version))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux says which files are mapped")
def test_the_files_of_the_old_version_are_let_go_of_with_its_last_request(folder: Path, two: tuple[str, str]) -> None:
    old, new = (folder / VERSIONS / version for version in two)
    app = app_of(folder)
    with serve(app) as get:
        get("/recommend?user_id=1&explain=true")
        held = app.state.serving.now.recommender
        activate(folder, new.name)
        app.state.serving.check()
        gc.collect()
        assert open_maps(old) > 0
        assert open_maps(new) > 0
        held.recommend(1, 3)
        del held
        gc.collect()
        assert open_maps(old) == 0
        assert get("/recommend?user_id=1").json()["version"] == new.name


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux says which files are mapped")
def test_the_files_of_a_refused_version_are_let_go_of(
    folder: Path, two: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = app_of(folder)
    with serve(app) as get:
        monkeypatch.setattr(Recommender, "recommend_cold", fail)
        point(folder, two[1])
        app.state.serving.check()
        gc.collect()
        assert "does not answer" in get("/health").json()["reload_error"]["reason"]
        assert open_maps(folder / VERSIONS / two[1]) == 0


def fail(*_args: object, **_options: object) -> None:
    raise RuntimeError("boom")


# --- a version that is not intact


def edit(name: str, change: Callable[[bytes], bytes]) -> Harm:
    def harm(version: Path) -> None:
        content = (version / name).read_bytes()
        (version / name).unlink()
        (version / name).write_bytes(change(content))

    return harm


def with_array(name: str, array: str, change: Callable[[Any], Any]) -> Harm:
    def harm(version: Path) -> None:
        arrays = {key: np.array(value) for key, value in map_npz(version / name).items()}
        (version / name).unlink()
        write_npz(version / name, {**arrays, array: change(arrays[array])})

    return harm


HARMS: dict[str, tuple[str, Harm]] = {  # what the reason says, and what happened to the files
    "gone": (r"CURRENT names version .*, which is not in", shutil.rmtree),
    "cut off": (r"als\.npz: has \d+ bytes", edit("als.npz", lambda content: content[:-1])),
    "empty": (r"als\.npz: has 0 bytes", edit("als.npz", lambda _content: b"")),
    "other bytes": (r"history\.npz: has .* SHA-256 .*expected .* SHA-256", edit("history.npz", lambda c: c[::-1])),
    "a file missing": (r"items\.npy: is missing", lambda version: (version / "items.npy").unlink()),
    "no manifest": (r"manifest\.json: is missing", lambda version: (version / MANIFEST).unlink()),
    "half a manifest": (r"manifest\.json: .*JSON", edit(MANIFEST, lambda content: content[: len(content) // 2])),
    "another format": (
        r"format_version is 99, expected 2\. Train again with this release",
        edit(MANIFEST, lambda content: content.replace(b'"format_version": 2', b'"format_version": 99')),
    ),
    "checksums of others": (
        r"manifest\.json: describes the content [0-9a-f]{8}",
        lambda version: [
            edit("metrics.json", lambda content: content + b" ")(version),
            shutil.copytree(forge(version, version.parents[2], lambda _copy: None), version, dirs_exist_ok=True),
        ],
    ),
}
FORGERIES: dict[str, tuple[str, Harm]] = {  # with checksums that are right
    "NaN": (r"item_factors holds NaN", with_array("als.npz", "item_factors", lambda found: found * np.nan)),
    "infinity": (r"user_factors holds NaN or inf", with_array("als.npz", "user_factors", lambda found: found + np.inf)),
    "a shape": (r"user_factors is float32 \(5, 3\)", with_array("als.npz", "user_factors", lambda found: found[:, 1:])),
    "a type": (r"item_factors is float64", with_array("als.npz", "item_factors", lambda found: found.astype(float))),
    "ids that repeat": (r"users\.npy: ", lambda version: np.save(version / "users.npy", np.array([1, 1, 2, 7, 9]))),
    "ids that fall": (r"items\.npy: ", lambda version: np.save(version / "items.npy", np.arange(6)[::-1])),
    "a movie too many": (r"movies\.npz: ", with_array("movies.npz", "years", lambda found: np.append(found, 2000))),
    "text that is no JSON": (r"movies\.npz: ", with_array("movies.npz", "cards", lambda found: found + 1)),
    "an index outside": (r"item indices run", with_array("history.npz", "item_index", lambda found: found + 9)),
    "scores that overflow": (r"finite scores", with_array("als.npz", "item_factors", lambda c: c * 0 + 3e38)),
    "no settings": (r"all arrays and settings of a model", edit("config.json", lambda _content: b"{}")),
}


@pytest.fixture(params=[*HARMS, *FORGERIES])
def harmed(request: pytest.FixtureRequest, folder: Path, two: tuple[str, str]) -> tuple[str, str, str]:
    """An intact version, which is active, a damaged one, and what the reason must say of it."""
    intact, harmed = two
    if request.param in FORGERIES:
        says, harm = FORGERIES[request.param]
        return intact, forge(folder / VERSIONS / harmed, folder / VERSIONS, harm).name, says
    says, harm = HARMS[request.param]
    shutil.copytree(folder / VERSIONS / harmed, folder.parent / "copy")
    for path in (folder / VERSIONS / harmed).rglob("*"):
        path.chmod(0o755)
    harm(folder / VERSIONS / harmed)
    return intact, harmed, says


def restore(folder: Path, version: str) -> bool:
    """Put the files back from a copy, if there is one."""
    if not (folder.parent / "copy").exists():
        return False
    shutil.rmtree(folder / VERSIONS / version, ignore_errors=True)
    shutil.copytree(folder.parent / "copy", folder / VERSIONS / version)
    return True


def assert_goes_on(get: Get, serving: Serving, intact: str, says: str) -> None:
    """It answers from the intact version, is ready, and says for how long and why it is not the active one."""
    for url in URLS:
        assert get(url).json()["version"] == intact
    assert get("/readyz").status_code == 200
    health = get("/health")
    assert (health.status_code, health.json()["status"], health.json()["version"]) == (200, "ok", intact)
    problem = health.json()["reload_error"]
    assert problem.keys() == {"reason", "since"}
    assert re.search(says, problem["reason"])
    assert "train" in problem["reason"].lower()
    since = datetime.fromisoformat(problem["since"])
    assert timedelta(seconds=-1) < datetime.now(UTC) - since < timedelta(minutes=1)
    assert serving.now.error is not None
    assert (metrics(get)["failing"], metrics(get)[intact], metrics(get)["refused"]) == (1, 1, 1)


def test_a_damaged_version_is_refused_and_the_old_one_goes_on(
    folder: Path, harmed: tuple[str, str, str], caplog: pytest.LogCaptureFixture
) -> None:
    intact, damaged, says = harmed
    app = app_of(folder)
    serving = app.state.serving
    with serve(app) as get:
        before = {url: get(url).json() for url in URLS}
        served = serving.now.recommender
        point(folder, f"{damaged}\n")
        serving.check()
        assert serving.now.recommender is served
        assert_goes_on(get, serving, intact, says)
        error = serving.now.error
        for _ in range(3):
            serving.check()
            serving.check(again=True)
        assert serving.now.error is error  # the first moment counts
        (line,) = complaints(caplog)  # which is said once
        assert line.startswith("Refused a new version")
        assert re.search(says, line)
        assert {url: get(url).json() for url in URLS} == before
        if restore(folder, damaged):  # CURRENT has not moved
            serving.check()
            assert_serves(get, folder, damaged)
            assert (metrics(get)["loaded"], metrics(get)["refused"]) == (1, 1)
            assert len(complaints(caplog)) == 1


def test_a_service_that_starts_on_a_damaged_version_serves_the_one_before(
    folder: Path, harmed: tuple[str, str, str], caplog: pytest.LogCaptureFixture
) -> None:
    intact, damaged, says = harmed
    point(folder, f"{damaged}\n")
    app = app_of(folder)
    serving = app.state.serving
    with serve(app) as get:
        assert_goes_on(get, serving, intact, says)
        error = serving.now.error
        for _ in range(3):
            serving.check()
        assert serving.now.error is error
        (line,) = complaints(caplog)
        assert line.startswith(f"Serving the earlier version {intact}: ")
        assert re.search(says, line)
        if restore(folder, damaged):
            serving.check()
            assert_serves(get, folder, damaged)


def test_it_goes_back_as_far_as_it_must(folder: Path) -> None:
    first, second, third = (publish(folder, model) for model in (A, B, C))
    for version in (second, third):
        shutil.rmtree(version.folder)
    app = app_of(folder)
    with serve(app) as get:
        assert_goes_on(get, app.state.serving, first.version, third.version)


def test_with_nothing_intact_it_waits_for_a_version_that_is(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    version = publish(folder, A)
    shutil.copytree(version.folder, folder.parent / "copy")
    shutil.rmtree(version.folder)
    app = app_of(folder)
    with serve(app) as get:
        for _ in range(3):
            app.state.serving.check()
            problem = get("/recommend?user_id=1").json()
            assert (problem["status"], problem["type"].rpartition(":")[2]) == (503, "no-model")
            assert version.version in problem["detail"]
        assert len(complaints(caplog)) == 1
        restore(folder, version.version)
        app.state.serving.check()
        assert_serves(get, folder, version.version)


NO_POINTERS = [None, b"", b"\n", b"garbage\n", b"\xff\xfe", b"../../etc\n", f"{GONE}\n".encode(), b"x" * 100_000]


@pytest.mark.parametrize("content", NO_POINTERS)
@pytest.mark.parametrize("when", ["running", "starting"])
def test_a_current_that_names_nothing_is_a_reason_to_go_on(
    folder: Path, two: tuple[str, str], content: bytes | None, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    intact, other = two

    def spoil() -> None:
        (folder / CURRENT).unlink()
        if content is not None:
            (folder / CURRENT).write_bytes(content)

    if when == "starting":
        spoil()
    app = app_of(folder)
    serving = app.state.serving
    with serve(app) as get:
        served = serving.now.recommender
        if when == "running":
            spoil()
        for _ in range(3):
            serving.check()
        assert_goes_on(get, serving, intact, "CURRENT")
        assert len(get("/health").json()["reload_error"]["reason"]) < 1_000
        assert len(complaints(caplog)) == 1
        point(folder, intact)
        serving.check()
        assert serving.now.recommender is served  # nothing was loaded for that
        assert_serves(get, folder, intact)
        point(folder, other)
        serving.check()
        assert serving.now.recommender.model.version == other


@pytest.mark.parametrize("go_back", [lambda folder, old: point(folder, old), lambda folder, _old: rollback(folder)])
def test_the_error_ends_when_current_comes_back_to_what_is_served(
    folder: Path, two: tuple[str, str], go_back: Callable[[Path, str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = two
    shutil.rmtree(folder / VERSIONS / new)
    app = app_of(folder)
    with serve(app) as get:
        served = app.state.serving.now.recommender
        point(folder, new)
        app.state.serving.check()
        assert_goes_on(get, app.state.serving, old, new)
        monkeypatch.setattr("app.serving.load_warm", fail)
        go_back(folder, old)
        app.state.serving.check()
        monkeypatch.undo()
        assert app.state.serving.now.recommender is served
        assert_serves(get, folder, old)


def test_another_reason_is_another_error(folder: Path, two: tuple[str, str], caplog: pytest.LogCaptureFixture) -> None:
    _, new = two
    app = app_of(folder)
    with serve(app) as get:
        (folder / VERSIONS / new / "users.npy").unlink()
        point(folder, new)
        app.state.serving.check()
        (folder / VERSIONS / new / "als.npz").unlink()
        app.state.serving.check()
        assert re.search("als", get("/health").json()["reload_error"]["reason"])
        shutil.rmtree(folder / VERSIONS / new)
        app.state.serving.check()
        assert "which is not in" in get("/health").json()["reload_error"]["reason"]
        assert metrics(get)["refused"] == len(complaints(caplog)) == 3


def test_a_version_that_does_not_answer_is_refused(
    folder: Path, two: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = two
    answer = Recommender.recommend_cold

    def recommend_cold(self: Recommender, *args: Any) -> Ranking:
        return fail() if self.model.version == new else answer(self, *args)

    app = app_of(folder)
    monkeypatch.setattr(Recommender, "recommend_cold", recommend_cold)
    with serve(app) as get:
        activate(folder, new)  # whose files are intact
        app.state.serving.check()
        assert_goes_on(get, app.state.serving, old, rf"{new} does not answer \(RuntimeError: boom\)")
    with serve(app_of(folder)) as get:
        assert get("/health").json()["version"] == old


# --- what is no damage


def test_what_failed_without_damage_is_tried_again(
    folder: Path, two: tuple[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = two
    n_tried = 0

    def lack_memory(path: Path, **_options: object) -> Recommender:
        nonlocal n_tried
        n_tried += 1
        if n_tried < 5:
            raise MemoryError("Unable to allocate")
        return load_warm(path)

    app = app_of(folder)
    serving = app.state.serving
    with serve(app) as get:
        monkeypatch.setattr("app.serving._RETRY_SECONDS", 1e9)  # not over while this test runs
        monkeypatch.setattr("app.serving.load_warm", lack_memory)
        activate(folder, new)
        for _ in range(4):
            serving.check()
        assert n_tried == 2  # when CURRENT moved, and once more with its files looked at
        assert get("/health").json()["version"] == old
        assert get("/health").json()["reload_error"]["reason"] == "MemoryError: Unable to allocate"
        serving.check(again=True)
        assert n_tried == 3
        for _ in range(2):
            monkeypatch.setattr("app.serving._RETRY_SECONDS", 1e-9)  # always over
            serving.check()
        assert n_tried == 5
        assert get("/health").json()["version"] == new
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.exc_info  # nobody could find the cause without


def test_a_service_that_cannot_load_anything_starts_all_the_same(
    folder: Path, two: tuple[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("app.serving.load_warm", fail)
    app = app_of(folder)
    with serve(app) as get:
        assert "RuntimeError: boom" in get("/readyz").json()["detail"]
        assert get("/livez").status_code == 200
        monkeypatch.undo()
        app.state.serving.check()
        assert_serves(get, folder, two[0])
    assert "boom" in caplog.text


# --- a second stage


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions of two stages: an intact one, and one whose checksums are right but whose trees cannot be read."""
    folder = tmp_path_factory.mktemp("ranked")
    published = publish(folder, trained()[1])
    forge(published.folder, folder / VERSIONS, lambda copy: (copy / "ranker" / "model.txt").write_text("no trees"))
    return folder


@pytest.fixture
def three(folder: Path, ranked: Path) -> tuple[str, str, str]:
    """A version of one stage, which is active, one of two, and one whose trees cannot be read."""
    plain = publish(folder, A).version
    shutil.copytree(ranked / VERSIONS, folder / VERSIONS, dirs_exist_ok=True)
    unreadable, intact, *_ = sorted(path.name for path in (ranked / VERSIONS).iterdir())
    return plain, intact, unreadable


UNREADABLE = "the ranker cannot be loaded"


def test_a_version_of_two_stages_is_followed_with_both(folder: Path, three: tuple[str, str, str]) -> None:
    plain, intact, _ = three
    app = app_of(folder)
    with serve(app) as get:
        assert (get("/health").json()["version"], get("/health").json()["ranker"]) == (plain, False)
        activate(folder, intact)
        app.state.serving.check()
        assert (get("/health").json()["version"], get("/health").json()["ranker"]) == (intact, True)
        assert get("/recommend?user_id=1").json()["source"] == "ranker"


def test_unreadable_trees_are_refused_while_another_version_is_served(
    folder: Path, three: tuple[str, str, str]
) -> None:
    _, intact, unreadable = three
    activate(folder, intact)
    app = app_of(folder)
    with serve(app) as get:
        point(folder, unreadable)
        app.state.serving.check()
        assert UNREADABLE in get("/health").json()["reload_error"]["reason"]
        answer = get("/recommend?user_id=1").json()
        assert (answer["version"], answer["source"]) == (intact, "ranker")
    with serve(app_of(folder)) as get:  # and so when it starts
        assert get("/health").json()["version"] == intact
        assert UNREADABLE in get("/health").json()["reload_error"]["reason"]
        assert get("/recommend?user_id=1").json()["source"] == "ranker"


@pytest.mark.parametrize("others", ["none", "damaged"])
def test_unreadable_trees_of_the_only_version_leave_its_first_stage(
    folder: Path, three: tuple[str, str, str], others: str
) -> None:
    plain, intact, unreadable = three
    for version in (plain, intact):
        (folder / VERSIONS / version / "als.npz").unlink()
    if others == "none":
        (folder / HISTORY).unlink()
    point(folder, unreadable)
    app = app_of(folder)
    with serve(app) as get:
        health = get("/health").json()
        assert (health["version"], health["ranker"], health["reload_error"]) == (unreadable, False, None)
        assert get("/recommend?user_id=1").json()["source"] == "als"


def test_a_second_stage_that_fails_when_it_is_asked_is_refused(
    folder: Path, three: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, intact, _ = three
    monkeypatch.setattr(Ranker, "score", fail)
    app = app_of(folder)
    with serve(app) as get:
        activate(folder, intact)
        app.state.serving.check()
        assert get("/health").json()["version"] == plain
        assert "its second stage failed" in get("/health").json()["reload_error"]["reason"]


@pytest.mark.parametrize("when", ["running", "starting"])
def test_without_lightgbm_the_first_stage_of_any_version_is_served(
    folder: Path, three: tuple[str, str, str], when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, intact, unreadable = three
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    if when == "starting":
        activate(folder, intact)
    app = app_of(folder)
    with serve(app) as get:
        for version in (intact, unreadable):
            activate(folder, version)
            app.state.serving.check()
            health = get("/health").json()
            assert (health["version"], health["ranker"], health["reload_error"]) == (version, False, None)
            assert get("/recommend?user_id=1").json()["source"] == "als"


# --- looking by itself


def test_it_looks_every_so_often_by_itself(folder: Path, two: tuple[str, str]) -> None:
    async def run() -> None:
        app = app_of(folder, reload_seconds=0.01)
        async with running(app) as client:
            activate(folder, two[1])
            await until(lambda: app.state.serving.now.recommender.model.version == two[1])
            shutil.rmtree(folder / VERSIONS / two[0])
            point(folder, two[0])
            await until(lambda: app.state.serving.now.error)
            point(folder, two[1])
            await until(lambda: not app.state.serving.now.error)
            assert (await client.get("/health")).json()["version"] == two[1]

    asyncio.run(run())


def test_told_not_to_it_never_looks(folder: Path, two: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        app = app_of(folder, reload_seconds=0)
        async with running(app) as client:
            monkeypatch.setattr(app.state.serving, "check", fail)
            activate(folder, two[1])
            await asyncio.sleep(0.05)
            assert (await client.get("/health")).json()["version"] == two[0]
            await asyncio.wait_for(app.state.serving.watch(), 1)  # which has nothing to do
            monkeypatch.undo()
            app.state.serving.check()
            assert (await client.get("/health")).json()["version"] == two[1]

    asyncio.run(run())


def test_told_not_to_look_it_says_that_it_must_be_restarted(folder: Path) -> None:
    with serve(app_of(folder)) as get:
        assert "restart" in get("/health").json()["detail"]
        assert "RECS_RELOAD_SECONDS" in get("/health").json()["detail"]


def test_a_look_that_fails_is_not_the_last(
    folder: Path, two: tuple[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        app = app_of(folder, reload_seconds=0.005)
        check, looks = app.state.serving.check, []

        def look() -> None:
            looks.append(1)
            if len(looks) < 3:
                raise OSError("a network drive")
            check()

        monkeypatch.setattr(app.state.serving, "check", look)
        async with running(app):
            activate(folder, two[1])
            await until(lambda: app.state.serving.now.recommender.model.version == two[1])

    asyncio.run(run())
    assert complaints(caplog) == ["Looking for a new version failed"] * 2
    assert "a network drive" in caplog.text


@pytest.mark.usefixtures("two")
def test_when_the_service_ends_nothing_is_left_running(folder: Path) -> None:
    before = set(threading.enumerate())

    async def run() -> None:
        app = app_of(folder, reload_seconds=0.005)
        async with running(app) as client:
            await client.get(URLS[1])
            await asyncio.sleep(0.02)
            assert len(asyncio.all_tasks()) == 2
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())
    for thread in set(threading.enumerate()) - before:
        thread.join(5)  # anyio tells its threads to end, and does not wait for them
    assert set(threading.enumerate()) <= before


@pytest.mark.usefixtures("two")
def test_the_service_ends_even_while_a_version_is_loading(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began, go_on = threading.Event(), threading.Event()

    async def run() -> None:
        app = app_of(folder, reload_seconds=0.005)
        monkeypatch.setattr(app.state.serving, "check", lambda: began.set() or go_on.wait(20))
        async with asyncio.timeout(20), running(app):
            await until(began.is_set)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert not go_on.is_set()
        go_on.set()

    with suppress(asyncio.CancelledError):
        asyncio.run(run())
    assert go_on.is_set()


def test_looks_at_the_same_moment_load_a_version_once_and_all_wait_for_it(
    folder: Path, two: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    found: list[str] = []
    barrier = threading.Barrier(8)
    app = app_of(folder)

    def load_slowly(path: Path) -> Recommender:
        loaded.append(path.name)
        time.sleep(0.05)
        return load_warm(path)

    def look() -> None:
        barrier.wait()
        app.state.serving.check()
        found.append(app.state.serving.now.recommender.model.version)

    with serve(app):
        monkeypatch.setattr("app.serving.load_warm", load_slowly)
        activate(folder, two[1])
        threads = [threading.Thread(target=look) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert loaded == [two[1]]
    assert found == [two[1]] * 8


@pytest.mark.usefixtures("two")
def test_a_look_costs_a_stat_as_long_as_nothing_moves(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = app_of(folder)
    with serve(app):
        monkeypatch.setattr("app.registry.current_folder", fail)
        monkeypatch.setattr("app.registry.current", fail)
        monkeypatch.setattr(os, "scandir", fail)
        app.state.serving.check()
        assert app.state.serving.now.error is None
