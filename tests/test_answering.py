"""The cache as the endpoints use it: what is answered from it, what never is, and what operators see of it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.main import create_app
from app.recommender import Ranking, Recommender
from app.registry import CURRENT, VERSIONS, activate, publish
from app.search import TitleSearch
from app.settings import Settings
from app.threads import count_cores
from tests.models import LIKES_NOTHING, forge, make_model, serve, trained

Get = Callable[..., httpx.Response]
UNKNOWN = 999_999


@pytest.fixture(autouse=True)
def nothing_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare each service that starts here the search through pytest's memory, which takes a tenth of a second."""
    monkeypatch.setattr("gc.collect", lambda: 0)


@pytest.fixture(scope="module")
def plain_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hand-made")
    publish(folder, make_model())
    return folder


@pytest.fixture(scope="module")
def ranked_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version with a second stage."""
    folder = tmp_path_factory.mktemp("trained")
    publish(folder, trained()[1])
    return folder


@pytest.fixture(scope="module")
def unreadable_dir(ranked_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version whose second stage LightGBM cannot read."""
    folder = tmp_path_factory.mktemp("unreadable")
    (folder / VERSIONS).mkdir()
    (version,) = (ranked_dir / VERSIONS).iterdir()
    forged = forge(version, folder / VERSIONS, lambda copy: (copy / "ranker" / "model.txt").write_text("no trees"))
    (folder / CURRENT).write_text(f"{forged.name}\n")
    return folder


def service(folder: Path, **settings: Any) -> AbstractContextManager[Get]:
    return serve(create_app(Settings(artifacts_dir=folder, reload_seconds=0, **settings)))


@pytest.fixture
def get(plain_dir: Path) -> Iterator[Get]:
    with service(plain_dir) as request:
        yield request


@pytest.fixture
def get_ranked(ranked_dir: Path) -> Iterator[Get]:
    with service(ranked_dir) as request:
        yield request


def lookups(get: Get) -> tuple[int, int]:
    """Return how often the process's own cache had an answer, and how often not."""
    samples = [s for family in text_string_to_metric_families(get("/metrics").text) for s in family.samples]
    found = {s.labels["result"]: s.value for s in samples if s.labels.get("level") == "local"}
    return int(found.get("hit", 0)), int(found.get("miss", 0))


def count(get: Get, name: str) -> float:
    samples = [s for family in text_string_to_metric_families(get("/metrics").text) for s in family.samples]
    return sum(s.value for s in samples if s.name == name)


CACHED = (
    *("/recommend?user_id=1", "/recommend?user_id=1&explain=true", "/recommend?user_id=1&novelty=0.5"),
    *("/recommend_cold?liked=1,2", "/recommend_cold", "/similar?movie_id=1", "/popular", "/popular?diversity=1"),
    f"/recommend?user_id={UNKNOWN}&on_unknown=popular",
)


@pytest.mark.parametrize("url", CACHED)
def test_the_second_answer_is_the_first_one(get: Get, get_ranked: Get, url: str) -> None:
    for request in (get, get_ranked):
        first = request(url)
        assert lookups(request) == (0, 1)
        second = request(url)
        assert lookups(request) == (1, 1)
        assert (second.status_code, second.content) == (first.status_code, first.content) == (200, first.content)
        assert count(request, "recs_lists_total") == 2  # a list is a list, wherever it came from


@pytest.mark.parametrize("url", CACHED)
def test_an_answer_of_the_cache_computes_nothing(get_ranked: Get, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = get_ranked(url).content

    def fail(*_args: object) -> None:
        raise AssertionError("it was computed again")

    for name in ("recommend", "recommend_many", "recommend_cold", "similar", "popular"):
        monkeypatch.setattr(Recommender, name, fail)
    assert get_ranked(url).content == first


def test_a_search_is_kept_as_well_and_counts_as_no_list(get: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "/movies?query=movie&genre=drama"
    first = get(url)
    assert first.status_code == 200
    monkeypatch.setattr(TitleSearch, "search", None)
    assert get(url).content == first.content
    assert lookups(get) == (1, 1)
    assert count(get, "recs_lists_total") == 0


SAME = {
    "/recommend?user_id=1": [
        "k=10",
        "novelty=0",
        "on_unknown=error",
        "ranker=true",
        "genre=",
        "exclude=",
        "k=010",
        "x=1",
    ],
    "/recommend?user_id=1&exclude=5,3": ["exclude=3", "exclude=5,3,5"],
    "/recommend?user_id=1&genre=drama&genre=Western": ["genre=WESTERN", "genre=DRAMA&genre="],
    "/recommend_cold?liked=1,2": ["liked=2", "liked=1,2", "k=10"],
    "/popular?k=10": ["diversity=0.0", "k=10"],
    "/similar?movie_id=1": ["movie_id=01", "explain=true"],
}


@pytest.mark.parametrize("url", SAME)
def test_one_wish_is_one_entry_however_it_is_written(get: Get, url: str) -> None:
    first = get(url).content
    for more in SAME[url]:
        assert get(f"{url}&{more}").content == first
    assert lookups(get) == (len(SAME[url]), 1)


def test_different_wishes_are_different_entries(get: Get) -> None:
    urls = [
        "/recommend?user_id=1",
        *(
            f"/recommend?user_id=1&{more}"
            for more in ("k=1", "ranker=false", "explain=true", "genre=drama", "exclude=3", "year_min=1990")
        ),
        *("/recommend?user_id=9", "/recommend?user_id=1&year_max=1990", "/recommend?user_id=1&on_unknown=popular"),
        *(
            "/recommend_cold",
            "/popular",
            "/similar?movie_id=1",
            "/recommend_cold?liked=1",
            "/recommend_cold?liked=1,404",
        ),
        *("/recommend_cold?liked=1,2", "/recommend_cold?liked=2,1"),  # which the answer repeats
    ]
    for url in urls:
        get(url)
    assert lookups(get) == (0, len(urls))


def test_the_kept_answer_is_the_right_one(get: Get) -> None:
    urls = [f"/recommend?user_id={user_id}&k={k}" for user_id in (1, 2, 9) for k in (1, 2, 3)]
    first = [get(url).json() for url in urls]
    assert [get(url).json() for url in urls] == first
    asked = [(answer["user_id"], answer["k"]) for answer in first]
    assert asked == [(user_id, k) for user_id in (1, 2, 9) for k in (1, 2, 3)]


@pytest.mark.parametrize(
    ("url", "status"),
    [
        (f"/recommend?user_id={UNKNOWN}", 404),
        (f"/recommend?user_id={UNKNOWN}&explain=true", 404),
        ("/similar?movie_id=404", 404),
        ("/recommend?user_id=1&genre=none", 422),
        ("/popular?genre=none&diversity=1", 422),
    ],
)
def test_errors_are_not_kept(get: Get, url: str, status: int) -> None:
    for n in range(1, 4):
        assert get(url).status_code == status
        assert lookups(get) == (0, n)


def test_faults_are_not_kept(get: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object) -> None:
        raise RuntimeError("boom")

    urls = ("/recommend?user_id=1", "/recommend?user_id=1&explain=true", "/popular")
    for name in ("recommend_many", "recommend", "popular"):
        monkeypatch.setattr(Recommender, name, fail)
    assert [get(url).status_code for url in urls] == [500, 500, 500]
    monkeypatch.undo()
    assert [get(url).status_code for url in urls] == [200, 200, 200]


def test_an_unknown_user_is_not_answered_with_what_another_wish_kept(get: Get) -> None:
    url = f"/recommend?user_id={UNKNOWN}"
    assert get(f"{url}&on_unknown=popular").status_code == 200
    assert get(url).status_code == 404
    assert get(f"{url}&on_unknown=popular").json()["source"] == "popular"


def test_a_new_version_answers_for_itself(tmp_path: Path) -> None:
    old = publish(tmp_path, make_model()).version
    app = create_app(Settings(artifacts_dir=tmp_path, reload_seconds=0))
    with serve(app) as get:
        urls = [url for url in CACHED if "popular" not in url]
        before = [get(url).json() for url in urls]
        new = publish(tmp_path, make_model(random_state=1)).version
        app.state.serving.check()
        after = [get(url).json() for url in urls]
        assert lookups(get) == (0, 2 * len(urls))
        assert {answer["version"] for answer in after} == {new}
        for url, one, other in zip(urls, before, after, strict=True):
            assert one["results"] != other["results"] or url == "/recommend_cold"
        activate(tmp_path, old)
        app.state.serving.check()
        assert [get(url).json() for url in urls] == before  # which is still kept
        assert lookups(get) == (len(urls), 2 * len(urls))


PERSONAL = ("/recommend?user_id=1", "/recommend_cold?liked=1,2", "/recommend?user_id=1&explain=true")


@pytest.mark.parametrize("url", PERSONAL)
def test_what_stood_in_for_the_second_stage_is_not_kept(
    get_ranked: Get, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object) -> None:
        raise FloatingPointError("boom")

    monkeypatch.setattr("app.ranker.Ranker.score", fail)
    for n in range(1, 3):
        assert get_ranked(url).json()["source"] in ("als", "fold_in")
        assert count(get_ranked, "recs_ranker_fallbacks_total") == n
    monkeypatch.undo()
    assert get_ranked(url).json()["source"] == "ranker"
    assert lookups(get_ranked) == (0, 3)
    assert get_ranked(url).json()["source"] == "ranker"
    assert lookups(get_ranked) == (1, 3)
    assert count(get_ranked, "recs_ranker_fallbacks_total") == 2


@pytest.mark.parametrize("url", PERSONAL)
def test_what_stands_in_for_trees_that_cannot_be_read_is_counted_each_time(unreadable_dir: Path, url: str) -> None:
    with service(unreadable_dir) as get:
        for n in range(1, 4):
            assert get(url).json()["source"] in ("als", "fold_in")
            assert count(get, "recs_ranker_fallbacks_total") == n
        get(f"/recommend?user_id={LIKES_NOTHING}&ranker=false"), get("/popular"), get("/similar?movie_id=1")
        assert count(get, "recs_ranker_fallbacks_total") == 3


def test_without_a_cache_nothing_is_kept_and_all_is_answered(plain_dir: Path, get: Get) -> None:
    with service(plain_dir, cache_size=0) as get_uncached:
        for url in CACHED:
            expected = get(url).content
            for _ in range(2):
                assert get_uncached(url).content == expected
        assert lookups(get_uncached) == (0, 0)


@pytest.mark.parametrize("settings", [{"cache_size": 1}, {"cache_bytes": 0}, {"cache_seconds": 1e-9}])
def test_a_small_cache_forgets_and_all_is_answered(plain_dir: Path, get: Get, settings: dict[str, float]) -> None:
    with service(plain_dir, **settings) as get_small:
        for _ in range(2):
            for url in CACHED:
                assert get_small(url).content == get(url).content
        assert lookups(get_small) == (0, 2 * len(CACHED))


def test_lists_of_the_first_stage_do_not_leave_the_event_loop(get_ranked: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread costs more than such a list, whatever second stage the version has."""

    def fail(*_args: object, **_options: object) -> None:
        raise AssertionError("it went to a thread")

    monkeypatch.setattr("anyio.to_thread.run_sync", fail)
    for url in ("/popular?genre=Drama", "/similar?movie_id=1", "/recommend?user_id=1&ranker=false", "/users/1"):
        assert get_ranked(url).status_code == 200, url
    for url in ("/recommend?user_id=1", "/recommend?user_id=1&explain=true", "/popular?diversity=0.5"):
        assert get_ranked(url).status_code == 500, url


def test_no_more_costly_lists_are_computed_at_a_time_than_there_are_cores(
    plain_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_working, most = 0, 0
    answer, lock = Recommender.recommend, threading.Lock()

    def recommend(self: Recommender, *args: Any) -> Ranking:
        nonlocal n_working, most
        with lock:
            n_working += 1
            most = max(most, n_working)
        time.sleep(0.01)
        with lock:
            n_working -= 1
        return answer(self, *args)

    async def run() -> None:
        app = create_app(Settings(artifacts_dir=plain_dir, reload_seconds=0))
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://service") as client,
        ):
            monkeypatch.setattr(Recommender, "recommend", recommend)
            urls = [f"/recommend?user_id=1&explain=true&k={k}" for k in range(1, 31)]
            held = asyncio.gather(*map(client.get, urls))
            assert (await client.get("/popular")).status_code == 200  # meanwhile
            assert not held.done()
            assert {response.status_code for response in await held} == {200}

    asyncio.run(run())
    assert 1 <= most <= count_cores()


def test_a_version_without_a_second_stage_answers_the_same_with_and_without_the_wish(tmp_path: Path) -> None:
    publish(tmp_path, replace(trained()[1], ranker=None))
    with service(tmp_path) as get:
        assert get("/recommend?user_id=1").content == get("/recommend?user_id=1&ranker=false").content
