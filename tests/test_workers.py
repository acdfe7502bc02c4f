"""Several worker processes on one model, as ``uvicorn --workers 2`` runs them: one copy in memory, no lost request."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from app.npz import ALIGNMENT
from app.registry import load_current, publish
from tests.models import make_model
from tests.servers import Server, client_of, get, serving, start

N_WORKERS = 2
MAPPED = ("als.npz", "history.npz", "movies.npz", "X_users_items.npz", "users.npy", "items.npy")
SLOW_BATCH = {"user_ids": list(range(1, 80)) * 2, "k": 50, "explain": True}  # takes a second or so

pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="no /proc/PID/smaps on this system")


@pytest.fixture(scope="module")
def artifacts_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts")
    rated = dict.fromkeys((user, 1 + user * step % 997) for user, step in product(range(1, 80), range(1, 60)))
    publish(folder, make_model([(user, movie, 3.5 + movie % 2) for user, movie in rated], factors=64))
    return folder


@pytest.fixture(scope="module")
def service(artifacts_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(artifacts_dir, tmp_path_factory.mktemp("log") / "uvicorn.log", n_workers=N_WORKERS) as server:
        yield server


def workers_of(server: Server) -> list[psutil.Process]:
    """Return the processes that have a model; the service has others, which only look after them."""
    children = psutil.Process(server.process.pid).children(recursive=True)
    return [child for child in children if mappings(child, "als.npz")]


def mappings(process: psutil.Process, file: str) -> list[tuple[str, int]]:
    """Return the permissions of each mapping of a file, and how many bytes of it the process has for itself."""
    try:
        found = process.memory_maps(grouped=False)
    except psutil.NoSuchProcess:
        return []
    return [(each.perms, each.private_dirty) for each in found if each.path.endswith(f"/{file}")]


def wait_until(is_so: Callable[[], bool], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_every_worker_maps_the_files_of_the_model_read_only_and_shared(service: Server) -> None:
    workers = workers_of(service)
    assert len(workers) == N_WORKERS
    for worker, file in product(workers, MAPPED):
        found = mappings(worker, file)
        assert found, f"{file} is not mapped"
        assert {permissions for permissions, _ in found} == {"r--s"}, (file, found)
        assert {n_private for _, n_private in found} == {0}, (file, found)


def test_what_they_map_is_aligned_as_linear_algebra_wants_it(artifacts_dir: Path) -> None:
    for array in vars(load_current(artifacts_dir).factors).values():
        assert isinstance(array, np.memmap)
        assert array.flags.aligned
        assert not array.flags.writeable
        assert array.ctypes.data % ALIGNMENT == 0


def test_both_answer_the_same(service: Server) -> None:
    answers = {get(f"{service.url}/recommend?user_id=7&k=20").text for _ in range(40)}
    assert len(answers) == 1


@pytest.mark.slow
def test_requests_in_flight_are_answered_when_the_service_is_told_to_stop(artifacts_dir: Path, tmp_path: Path) -> None:
    server = start(artifacts_dir, tmp_path / "uvicorn.log", n_workers=N_WORKERS)
    try:
        expected = post_batch(server.url).content
        with ThreadPoolExecutor(4) as pool:
            waiting = [pool.submit(post_batch, server.url) for _ in range(4)]
            wait_until(lambda: server.metric("recs_requests_in_flight") == 4, "4 requests are not in flight")
            server.process.send_signal(signal.SIGTERM)
            answers = [each.result() for each in waiting]
        assert server.process.wait(timeout=20) in (0, -signal.SIGTERM)
    finally:
        server.stop()
    assert [answer.status_code for answer in answers] == [200] * 4
    assert {answer.content for answer in answers} == {expected}
    log = server.log.read_text()
    assert log.count("Application shutdown complete") == N_WORKERS
    assert "Traceback" not in log


def post_batch(url: str) -> httpx.Response:
    with client_of(url) as client:  # a connection of its own, which comes to any worker
        return client.post("/recommend/batch", json=SLOW_BATCH)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced_and_answers_go_on(service: Server, artifacts_dir: Path) -> None:
    serving_metric = f'recs_serving{{version="{load_current(artifacts_dir).version}"}}'
    assert service.metric(serving_metric) == N_WORKERS
    before = workers_of(service)
    before[0].kill()
    before[0].wait(10)
    service.client.close()  # its connection may have been to the one that is gone
    service.client = client_of(service.url)

    def is_replaced() -> bool:
        assert get(f"{service.url}/recommend?user_id=7").status_code == 200
        return len(workers_of(service)) == N_WORKERS

    wait_until(is_replaced, "the killed worker is not replaced")
    assert before[1] in workers_of(service)
    wait_until(lambda: service.metric(serving_metric) == N_WORKERS, "the new worker does not serve")
