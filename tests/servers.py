"""The service as it is run, for tests: a uvicorn of its own on a port of its own."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).parents[1]
START_SECONDS = 60  # far more than it takes on a quiet machine

get = partial(httpx.get, trust_env=False)  # no proxy stands between us and ourselves


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def environment(artifacts_dir: Path, **settings: object) -> dict[str, str]:
    """Return our environment with the settings of a service; ``reload_seconds=1`` becomes ``RECS_RELOAD_SECONDS``."""
    chosen = {f"RECS_{name.upper()}": str(value) for name, value in settings.items()}
    return {**os.environ, "RECS_ARTIFACTS_DIR": str(artifacts_dir), **chosen}


def client_of(url: str, **options: Any) -> httpx.Client:
    """Return a client that keeps its connections."""
    return httpx.Client(base_url=url, trust_env=False, verify=False, timeout=30, **options)  # noqa: S501 - no TLS


@dataclass
class Server:
    process: subprocess.Popen[str]
    url: str
    log: Path
    client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.client = client_of(self.url)

    def wait_until_it_answers(self, n_workers: int = 1) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                get(f"{self.url}/livez")
            except httpx.TransportError:
                time.sleep(0.05)
            else:
                if self.log.read_text().count("Application startup complete") >= n_workers:
                    return
                time.sleep(0.05)
        pytest.fail(f"the service did not start:\n{self.log.read_text()}")

    def health(self) -> dict[str, Any]:
        response = self.client.get("/health")
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    def wait_for(self, fits: Callable[[dict[str, Any]], object], seconds: float = 20) -> dict[str, Any]:
        """Ask /health, which must answer 200 each time, until it fits."""
        deadline = time.monotonic() + seconds
        while not fits(found := self.health()):
            if time.monotonic() > deadline:
                pytest.fail(f"still {found} after {seconds} s; its log ends with\n{self.log.read_text()[-3000:]}")
            time.sleep(0.01)
        return found

    def wait_until_it_serves(self, version: str) -> None:
        self.wait_for(lambda health: health["version"] == version and health["reload_error"] is None)

    def metric(self, name: str) -> float:
        """Return one value of /metrics, by its name with labels; 0 if it is not there."""
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.client.get("/metrics").text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def stop(self) -> None:
        self.client.close()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # the workers, too, which would outlive their parent
        self.process.wait()


def start(artifacts_dir: Path, log: Path, *options: str, n_workers: int = 1, **settings: object) -> Server:
    """Start ``uvicorn app.main:app``, and wait until it answers; ``settings`` are ``RECS_…``, ``options`` uvicorn's."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "app.main:app", "--port", str(port), *options]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--workers", str(n_workers)] if n_workers > 1 else command,
            cwd=ROOT,
            env=environment(artifacts_dir, **settings),
            stdout=output,
            stderr=output,
            text=True,
            start_new_session=True,
        )
    server = Server(process, f"http://127.0.0.1:{port}", log)
    try:
        server.wait_until_it_answers(n_workers)
    except BaseException:
        server.stop()
        raise
    return server


@contextmanager
def serving(artifacts_dir: Path, log: Path, *options: str, n_workers: int = 1, **settings: object) -> Iterator[Server]:
    """Serve a folder meanwhile."""
    server = start(artifacts_dir, log, *options, n_workers=n_workers, **settings)
    try:
        yield server
    finally:
        server.stop()
