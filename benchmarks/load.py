"""Servers of their own for benchmarks, and two ways to drive them: as fast as they can (wrk), and at a given rate.

``serve.py, workers.py ─▶ running ─▶ uvicorn``; ``drive ─▶ wrk``, ``pace ─▶ a process of this module``. Everything is on
127.0.0.1 and ends with the block that began it.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from data import ROOT

HOST = "127.0.0.1"
N_CONNECTIONS = 16
START_SECONDS = 120
_SPIN_SECONDS = 0.0002  # a sleeping process is woken up to this much too late
# wrk counts statuses above 399; its own report cannot be parsed without loss.
_SCRIPT = """
local requests, n = {}, 0
function init()
  for line in io.lines("%(paths)s") do requests[#requests + 1] = wrk.format(%(request)s) end
end
function request() n = n %% #requests + 1; return requests[n] end
function done(summary)
  local e = summary.errors
  io.write(string.format("\\nRESULT %%d %%d %%d\\n", summary.requests, summary.duration,
    e.status + e.connect + e.read + e.write + e.timeout))
end
"""
_GET = '"GET", line'
_POST = '"POST", "%s", {["Content-Type"] = "application/json"}, line'


class Server(NamedTuple):
    port: int
    pid: int

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"


@contextmanager
def running(app: str, *options: str, log: Path | None = None, **environment: object) -> Iterator[Server]:
    """Run ``uvicorn app`` on a free port meanwhile.

    Parameters
    ----------
    app : str
        Such as ``app.main:app``.
    options : str
        Of uvicorn.
    log : Path, optional
        Where its output goes; nowhere if not given.
    environment : object
        Variables of its environment; what ours says of the service's settings is left out.
    """
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", app, "--host", HOST, "--port", str(port), *options]
    with (log or Path(os.devnull)).open("w") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=clean(environment), stdout=output, stderr=output, start_new_session=True
        )
    try:
        wait_until_ready(port, process)
        yield Server(port, process.pid)
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def clean(environment: Mapping[str, object]) -> dict[str, str]:
    """Return our environment without settings of a service and of its BLAS, with these variables instead.

    A user's BLAS chooses its kernels by the processor; where somebody chose for it, every product is another.
    """
    foreign = ("RECS_", "PROMETHEUS_", "OPENBLAS_")
    ours = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])}
    return {**ours, **paths, **{name: str(value) for name, value in environment.items()}}


def wait_until_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait for the first 200 of /readyz."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError):
            status, _ = ask(port, "/readyz")
            if status == 200:
                return
        time.sleep(0.002)
    raise SystemExit(f"the server did not become ready within {START_SECONDS} seconds: {process.args!r}")


def ask(port: int, path: str) -> tuple[int, bytes]:
    """Ask over a connection of its own; return status and body."""
    with socket.create_connection((HOST, port), timeout=30) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while piece := connection.recv(1 << 16):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), body


def find_wrk() -> str:
    """Return the path of wrk, or say how to get it."""
    found = shutil.which("wrk")
    if not found:
        raise SystemExit("this benchmark drives the servers with wrk, which is not installed: apt-get install wrk")
    return found


def drive(port: int, requests: Sequence[str], seconds: float, post_to: str | None = None) -> tuple[int, float]:
    """Ask as fast as the server answers, over ``N_CONNECTIONS`` that are kept; return how many answers in how long.

    Parameters
    ----------
    requests : sequence of str
        Paths, asked one after the other and again; bodies where ``post_to`` names a path.

    Raises
    ------
    SystemExit
        If a request failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        lines, script = Path(folder) / "lines", Path(folder) / "script.lua"
        lines.write_text("\n".join(requests) + "\n")
        script.write_text(_SCRIPT % {"paths": lines, "request": _POST % post_to if post_to else _GET})
        options = ["-t1", f"-c{N_CONNECTIONS}", f"-d{seconds:g}s", "--timeout", "30s", "-s", str(script)]
        done = subprocess.run(
            [find_wrk(), *options, f"http://{HOST}:{port}"], capture_output=True, text=True, check=True
        )
    found = re.search(r"RESULT (\d+) (\d+) (\d+)", done.stdout)
    if not found or found[3] != "0" or found[1] == "0":
        raise SystemExit(f"requests failed: {done.stdout} {done.stderr}")
    return int(found[1]), int(found[2]) / 1e6


class Pace(NamedTuple):
    """Milliseconds from when a request was due to the end of its answer, and until a free connection had sent it."""

    p50: float
    p99: float
    late_p99: float


def pace(port: int, paths: Sequence[str], rate: float, seconds: float) -> Pace:
    """Ask ``rate`` times a second, on a fixed schedule, from a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_pace, (port, list(paths), rate, seconds))


@dataclass(eq=False)
class _Connection:
    """One connection, with at most one request under way; what is due meanwhile waits, and its time counts."""

    stream: socket.socket
    waiting: deque[tuple[float, bytes]] = field(default_factory=deque)
    due: float | None = None
    answer: bytes = b""

    def send(self) -> None:
        self.due, request = self.waiting.popleft()
        self.stream.sendall(request)

    def receive(self) -> bool:
        """Read what has come; tell whether it is the whole answer."""
        self.answer += self.stream.recv(1 << 16)
        head, _, body = self.answer.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        if not length or len(body) < int(length[1]):
            return False
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"a request failed: {self.answer!r}")
        self.answer = b""
        return True


def _pace(port: int, paths: list[str], rate: float, seconds: float) -> Pace:
    gc.disable()  # nothing here makes cycles, and a pause would look like the server's
    requests = [f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode() for path in paths]
    connections = {
        stream.fileno(): _Connection(stream)
        for stream in (socket.create_connection((HOST, port)) for _ in range(N_CONNECTIONS))
    }
    for connection in connections.values():
        connection.stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    taken, late = _keep_schedule(connections, requests, rate, int(rate * seconds))
    for connection in connections.values():
        connection.stream.close()
    p50, p99 = _settled(taken, 50, 99)
    (late_p99,) = _settled(late, 99)
    return Pace(p50, p99, late_p99)


def _settled(seconds: list[float], *percentiles: float) -> list[float]:
    """Return percentiles in milliseconds, less the first tenth, which finds everything cold; of none, 0."""
    counted = seconds[len(seconds) // 10 :] or [0.0]
    return [float(value) * 1e3 for value in np.percentile(counted, percentiles)]


def _keep_schedule(
    connections: dict[int, _Connection], requests: list[bytes], rate: float, n_requests: int
) -> tuple[list[float], list[float]]:
    """Send each request when it is due; return how long each took from then, and how late it was sent."""
    taken: list[float] = []
    late: list[float] = []
    turns = list(connections.values())
    began = time.perf_counter() + 0.05
    n_due = 0
    while len(taken) < n_requests:
        due = began + n_due / rate
        wait = due - time.perf_counter() - _SPIN_SECONDS if n_due < n_requests else 1.0
        for descriptor in select.select(connections, (), (), max(0.0, wait))[0]:
            connection = connections[descriptor]
            if connection.receive():
                assert connection.due is not None
                taken.append(time.perf_counter() - connection.due)
                connection.due = None
                if connection.waiting:
                    connection.send()
        if n_due < n_requests and time.perf_counter() >= due:
            connection = turns[n_due % len(turns)]
            connection.waiting.append((due, requests[n_due % len(requests)]))
            n_due += 1
            if connection.due is None:
                connection.send()
                late.append(time.perf_counter() - due)
    return taken, late


def describe_run(command: Sequence[str]) -> dict[str, object]:
    """Return what a published figure stands with: commit, date, command, and how busy the machine was before."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "commit": commit.stdout.strip() or None,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": " ".join(command),
        "load_before": os.getloadavg()[0],
    }


def write_json(path: Path | None, figures: Mapping[str, object]) -> None:
    """Write figures, where a file is wished."""
    if path:
        path.write_text(json.dumps(figures, indent=2) + "\n")
