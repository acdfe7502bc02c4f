"""``make serve`` as a newcomer runs it: a copy of the project, real processes, a real port."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sysconfig
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt" or shutil.which("make") is None, reason="make is not installed"),
]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of what it takes to run, without data and model."""
    folder = tmp_path / "project"
    shutil.copytree(ROOT / "app", folder / "app", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "train_als.py", "requirements.txt", "requirements-dev.txt"):
        shutil.copy2(ROOT / name, folder / name)
    _lend_environment(folder / ".venv")
    return folder


def _lend_environment(folder: Path) -> None:
    """Make an environment that sees the packages of these tests, so that installing finds them there already."""
    venv.create(folder, with_pip=False)
    site_packages = next(folder.glob("lib/python*/site-packages"))
    (site_packages / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")


@contextmanager
def serving(project: Path, **environment: str) -> Iterator[tuple[str, str]]:
    """Run ``make serve`` in the environment of these tests; yield the address, and what it printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    inherited = {name: value for name, value in os.environ.items() if name != "MOVIELENS_DIR"}
    log = project / "serve.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            ["make", "serve", f"PORT={port}"],
            cwd=project,
            env={**inherited, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 120
        while not _answers(f"http://127.0.0.1:{port}/readyz"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}", log.read_text()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=20)


def _answers(url: str) -> bool:
    try:
        return bool(DIRECTLY.open(url, timeout=2).status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _get(url: str) -> dict[str, object]:
    with DIRECTLY.open(url, timeout=10) as response:
        answer: dict[str, object] = json.load(response)
    return answer


def test_make_serve_trains_once_and_answers(project: Path, movielens_dir: Path) -> None:
    data = {"MOVIELENS_DIR": str(movielens_dir.resolve())}
    with serving(project, **data) as (address, printed):
        assert f'curl "{address}/recommend?user_id=1&k=5"' in printed
        assert f"{address}/docs" in printed
        health = _get(f"{address}/health")
        assert health["dataset"] == "ml-latest-small"
        for path in ("/recommend?user_id=1&k=5", "/recommend_cold?liked=1,2,3&k=5"):
            results = _get(address + path)["results"]
            assert isinstance(results, list)
            assert len(results) == 5
            assert all(movie["title"] for movie in results)
    start = time.monotonic()
    with serving(project, **data) as (address, printed):
        assert _get(f"{address}/health")["version"] == health["version"]
        assert "nothing to train" in printed
    assert time.monotonic() - start < 30  # a hang, not a speed: seconds on any machine


def test_make_serve_works_without_data_and_network_and_improves_when_data_comes(
    project: Path, movielens_dir: Path
) -> None:
    with serving(project, RECS_MOVIELENS_URL="http://127.0.0.1:9") as (address, printed):
        assert "SYNTHETIC" in printed
        assert _get(f"{address}/health")["dataset"] == "synthetic"
        assert _get(f"{address}/recommend?user_id=1&k=5")["source"] == "als"
        assert _get(f"{address}/recommend_cold?liked=1,2,3&k=5")["source"] == "fold_in"
    shutil.copytree(movielens_dir, project / "data_small" / "ml-latest-small")
    with serving(project, RECS_MOVIELENS_URL="http://127.0.0.1:9") as (address, printed):
        assert _get(f"{address}/health")["dataset"] == "ml-latest-small"
