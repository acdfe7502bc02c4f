"""A tiny application behind the edge, with metrics and logs, as uvicorn runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.servers import ROOT, START_SECONDS, client_of, free_port

TINY = """
import asyncio, contextlib, logging, os
from fastapi import Request, Response
from fastapi_offline import FastAPIOffline
from app.logs import configure_logging
from app.routers.edge import Edge
from app.telemetry import Telemetry

configure_logging(os.environ.get("TINY_FORMAT", "text"), os.environ.get("TINY_LEVEL"))
telemetry = Telemetry()

@contextlib.asynccontextmanager
async def lifespan(app):
    telemetry.join_workers()
    telemetry.show_serving("v1", failing=False, trained_at="2026-01-01T00:00:00+00:00")
    yield
    telemetry.leave_workers()

app = FastAPIOffline(title="Tiny", lifespan=lifespan)
app.add_middleware(Edge, telemetry=telemetry, max_body_bytes=1000, max_concurrency=4)

@app.get("/livez")
async def livez():
    return os.getpid()

@app.get("/metrics")
async def metrics():
    return Response(telemetry.render(), media_type="text/plain", headers={"x-pid": str(os.getpid())})

@app.get("/lists/{user_id}", summary="A list for a user")
async def lists(request: Request, user_id: int):
    telemetry.count_list("als", False)
    telemetry.on_lookup("local", True)
    request.scope["recs"].update(version="v1", source="als", cache="local", user_id=user_id)
    return os.getpid()

@app.get("/slow")
async def slow():
    logging.getLogger("uvicorn.error").info("slow began")
    await asyncio.sleep(1)
    return "done"

@app.get("/fail")
async def fail():
    raise RuntimeError("boom\\n2026-01-01 ERROR forged \\x1b[31m")

@app.post("/echo")
async def echo(request: Request):
    return len(await request.body())
"""


@dataclass
class Tiny:
    process: subprocess.Popen[bytes]
    url: str
    log: Path
    client: httpx.Client

    def get(self, path: str, **options: object) -> httpx.Response:
        """Ask on a connection of its own, which any of the workers may accept."""
        return httpx.get(self.url + path, trust_env=False, timeout=30, **options)  # type: ignore[arg-type]

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()

    def wait_for(self, text: str, n: int = 1) -> None:
        deadline = time.monotonic() + START_SECONDS
        while self.log.read_text().count(text) < n:
            if time.monotonic() > deadline or self.process.poll() is not None:
                pytest.fail(f"{text!r} is not in the log:\n{self.log.read_text()}")
            time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End it, and say how it ended."""
        self.process.send_signal(how)
        return self.process.wait(timeout=20)


@contextmanager
def serving(folder: Path, *options: str, n_workers: int = 1, **variables: str) -> Iterator[Tiny]:
    """Serve the tiny application meanwhile; ``variables`` go into its environment."""
    (folder / "tiny.py").write_text(TINY)
    port, log = free_port(), folder / "log"
    command = [sys.executable, "-m", "uvicorn", "tiny:app", "--app-dir", str(folder), "--port", str(port), *options]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--workers", str(n_workers)] if n_workers > 1 else command,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder), **variables},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    tiny = Tiny(process, f"http://127.0.0.1:{port}", log, client_of(f"http://127.0.0.1:{port}"))
    try:
        tiny.wait_for("Application startup complete", n_workers)
        _wait_until_it_answers(tiny)
        yield tiny
    finally:
        tiny.client.close()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the workers, too, which would outlive their parent
        process.wait()


def _wait_until_it_answers(tiny: Tiny) -> None:
    for _ in range(1000):
        with suppress(httpx.TransportError):
            tiny.get("/livez")
            return
        time.sleep(0.01)
    pytest.fail(f"it does not answer:\n{tiny.log.read_text()}")
