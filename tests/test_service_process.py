"""The service as it is run: a uvicorn process of its own, on files that another process published."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.recommender import Recommender
from app.registry import load_current, publish
from tests.models import make_model
from tests.servers import ROOT, Server, environment, get, start


@pytest.fixture(scope="module")
def artifacts_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts")
    ratings = [(user, 1 + user * movie % 83, 3.5 + user % 2) for user in range(1, 80) for movie in range(1, 9)]
    publish(folder, make_model(list(dict.fromkeys(ratings)), factors=8))
    return folder


@pytest.fixture(scope="module")
def server(artifacts_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = start(artifacts_dir, tmp_path_factory.mktemp("log") / "uvicorn.log")
    yield server
    server.stop()


def test_it_answers_what_the_published_model_says(server: Server, artifacts_dir: Path) -> None:
    model = load_current(artifacts_dir)
    assert get(f"{server.url}/health").json()["version"] == model.version
    answer = get(f"{server.url}/recommend?user_id=1&k=5").json()
    ranking = Recommender(model).recommend(1, 5)
    assert [result["movie_id"] for result in answer["results"]] == model.items.ids[ranking.item_indices].tolist()
    assert model.version in server.log.read_text()


def test_200_requests_at_once_are_all_answered_correctly(server: Server, artifacts_dir: Path) -> None:
    recommender = Recommender(load_current(artifacts_dir))
    users = recommender.model.users.ids.tolist()
    asked = [("known", users[n % len(users)]) if n % 2 else ("cold", 1 + n % 60) for n in range(200)]
    answers = asyncio.run(ask_all(server.url, asked))
    for (kind, number), response in zip(asked, answers, strict=True):
        assert response.status_code == 200
        answer = response.json()
        if kind == "known":
            ranking = recommender.recommend(number, 7)
            assert answer["user_id"] == number
        else:
            ranking = recommender.recommend_cold([number, number + 1], 7)
        assert answer["source"] == ranking.source
        expected = recommender.model.items.ids[ranking.item_indices].tolist()
        assert [result["movie_id"] for result in answer["results"]] == expected


async def ask_all(url: str, asked: list[tuple[str, int]]) -> list[httpx.Response]:
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(trust_env=False, base_url=url, limits=limits, timeout=30) as client:
        paths = [
            f"/recommend?user_id={number}&k=7"
            if kind == "known"
            else f"/recommend_cold?liked={number},{number + 1}&k=7"
            for kind, number in asked
        ]
        return await asyncio.gather(*(client.get(path) for path in paths))


def test_sigterm_ends_it_in_good_order(artifacts_dir: Path, tmp_path: Path) -> None:
    server = start(artifacts_dir, tmp_path / "log")
    server.process.send_signal(signal.SIGTERM)
    status = server.process.wait(timeout=10)
    log = server.log.read_text()
    # uvicorn, having shut down, raises the signal again, so that its parent sees what ended it; a container's first
    # process is immune to that and ends with 0.
    assert status in (0, -signal.SIGTERM), log
    assert "Application shutdown complete" in log
    assert "Finished server process" in log
    assert "Traceback" not in log


def test_without_a_model_it_runs_and_logs_the_remedy(tmp_path: Path) -> None:
    server = start(tmp_path / "none", tmp_path / "log")
    try:
        assert get(f"{server.url}/readyz").status_code == 503
        assert "python train_als.py" in server.log.read_text()
    finally:
        server.stop()


def test_the_service_loads_no_library_of_the_offline_half(artifacts_dir: Path) -> None:
    script = """
import asyncio, json, sys
from app.main import app

async def run():
    async with app.router.lifespan_context(app):
        recommender = app.state.serving.now.recommender
        recommender.recommend(1, 5), recommender.recommend_cold([1, 2], 5)

asyncio.run(run())
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=ROOT,
        env=environment(artifacts_dir),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    loaded = set(json.loads(done.stdout))
    assert {"numpy", "fastapi", "app"} <= loaded
    assert loaded.isdisjoint({"pandas", "implicit", "matplotlib", "pooch", "tqdm", "pytest"})
