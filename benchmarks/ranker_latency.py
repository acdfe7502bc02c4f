"""What a list through the second stage costs beside one of the first stage alone.

    python benchmarks/ranker_latency.py [--artifacts artifacts] [--rounds 5]

Starts the service as a user would (uvicorn, one worker) on a version with a ranker, and asks ``/recommend`` (k = 10)
for every user over one kept-alive connection, one request at a time, in turns: ranker=false, ranker=true, and the dials
and reasons on top of it. Nothing is cached or prepared. Prints p50 and p99 in milliseconds and the ratio of the
medians, each the median over the rounds.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from data import ROOT  # first: it makes app importable

from app.registry import load_current

VARIANTS = {
    "first stage alone": "ranker=false",
    "ranker": "ranker=true",
    "ranker, diversity .3": "ranker=true&diversity=0.3",
    "ranker, all dials .3": "ranker=true&diversity=0.3&novelty=0.3&calibrate=0.3",
    "ranker, explain": "ranker=true&explain=true",
    "first stage, explain": "ranker=false&explain=true",
}
TARGET = 6.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifacts", type=Path, default=ROOT / "artifacts")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds, after one that is not counted")
    parser.add_argument("--out", type=Path, help="write the figures as JSON here too")
    arguments = parser.parse_args()
    model = load_current(arguments.artifacts)
    if model.ranker is None:
        parser.error(f"version {model.version} has no second stage; python train_als.py --ranker makes one")
    users = model.users.ids.tolist()
    with serve(arguments.artifacts) as port:
        rounds = [
            {name: _ask(port, users, options) for name, options in VARIANTS.items()}
            for _ in range(arguments.rounds + 1)
        ][1:]
    figures = {name: _summarise([each[name] for each in rounds]) for name in VARIANTS}
    base = figures["first stage alone"]["p50"]
    print(f"{len(users):,} users a round, {arguments.rounds} rounds, {len(model.items):,} movies")
    print(f"{'':22} {'p50 ms':>8} {'p99 ms':>8} {'p50, times the first stage':>28}")
    for name, figure in figures.items():
        figure["ratio"] = statistics.median(each[name][0] / each["first stage alone"][0] for each in rounds)
        print(f"{name:22} {figure['p50']:8.2f} {figure['p99']:8.2f} {figure['ratio']:28.2f}")
    verdict = "within" if figures["ranker"]["ratio"] <= TARGET else "NOT within"
    print(f"ranker: {figures['ranker']['ratio']:.2f} times {base:.2f} ms, {verdict} {TARGET:g}")
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=2) + "\n")


@contextmanager
def serve(artifacts: Path) -> Iterator[int]:
    """Run the service on a free port until the body ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "app.main:app", "--port", str(port), "--log-level", "warning"]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "RECS_ARTIFACTS_DIR": str(artifacts.resolve())})
    try:
        _wait_until_ready(port)
        yield port
    finally:
        process.terminate()
        process.wait()


def _wait_until_ready(port: int) -> None:
    for _ in range(300):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise SystemExit("the service did not become ready within 30 seconds")


def _ask(port: int, users: list[int], options: str) -> tuple[float, float]:
    """Ask for every user's list; return p50 and p99 in milliseconds."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    seconds = []
    for user in users:
        start = time.perf_counter()
        connection.request("GET", f"/recommend?user_id={user}&k=10&{options}")
        response = connection.getresponse()
        response.read()
        seconds.append(time.perf_counter() - start)
        if response.status != 200:
            raise SystemExit(f"user {user}: status {response.status}")
    p50, p99 = np.percentile(seconds, (50, 99)) * 1e3
    return float(p50), float(p99)


def _summarise(rounds: list[tuple[float, float]]) -> dict[str, float]:
    return {
        name: statistics.median(values) for name, values in zip(("p50", "p99"), zip(*rounds, strict=True), strict=True)
    }


if __name__ == "__main__":
    main()
