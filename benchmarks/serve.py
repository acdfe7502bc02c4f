"""What the service costs beside the least that FastAPI can do: requests a second, latency, start.

    python benchmarks/serve.py [--artifacts-dir artifacts] [--rounds 5] [--seconds 5] [--json FILE]

Starts the service as a user would (``uvicorn app.main:app``, one worker) on a model of ml-latest-small, and beside it
an app with one handler that returns the bytes of a prepared answer (``static_app.py``). In turns, each is driven by wrk
over 16 kept connections from one thread, or at half of the most that the service answers by a client with a fixed
schedule. Only the server under test and its client are busy at a time. A ratio compares neighbours of one round; what
is printed are medians over the rounds, with least and most. Everything stays on 127.0.0.1.

Where others use the machine, answers a second are of little worth; the last columns say how busy they kept it, and what
the ratio is by processor time, which they disturb less.

wrk is a Debian package: ``apt-get install wrk``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import psutil
from data import ROOT  # first: it makes app importable
from load import Pace, Server, ask, clean, describe_run, drive, find_wrk, pace, running, write_json
from rich.console import Console
from rich.table import Column, Table

from app.artifacts import LoadedModel
from app.errors import NoModelError
from app.machine import describe_machine
from app.registry import load_current

K = 10
N_BATCH = 1_000
MOST_P99 = 5.0  # times p50
BATCH_TARGET = 6.0  # times the users per second of single requests
N_STARTS = 5
WIDTH = 140  # of tables, also where there is no terminal
_COLUMNS = ("a second", "of the static app", "target", "µs each", "by µs", "others' cores")
UNWANTED = ("pandas", "matplotlib", "lightgbm", "optuna", "implicit", "requests", "pyarrow", "usearch", "redis")
QUIET = ("--no-access-log", "--log-level", "warning")
STATIC, SERVICE = "static_app:app", "app.main:app"
_LOOK = """
import asyncio, json, sys
from app.main import app
imported = set(sys.modules)

async def load():
    async with app.router.lifespan_context(app):
        assert app.state.serving.now.recommender

asyncio.run(load())
print(json.dumps([sorted(imported), sorted(sys.modules)]))
"""


@dataclass(frozen=True)
class Row:
    """Something to drive: which server, beside which one, with what.

    ``target`` is for the ratio, None where it is only for information.
    """

    name: str
    server: str
    beside: str
    requests: Sequence[str]
    target: float | None = None
    post_to: str | None = None


class Driven(NamedTuple):
    """Answers a second, processor seconds of the server for each, and cores that others kept busy meanwhile."""

    rate: float
    cost: float
    others: float


@dataclass
class Measured:
    """Of each round: a server's and its neighbour's."""

    own: list[Driven] = field(default_factory=list)
    beside: list[Driven] = field(default_factory=list)

    @property
    def rates(self) -> list[float]:
        return [each.rate for each in self.own]

    @property
    def ratios(self) -> list[float]:
        """Answers a second, as a part of the neighbour's."""
        return [own.rate / beside.rate for own, beside in zip(self.own, self.beside, strict=True)]

    @property
    def cheapness(self) -> list[float]:
        """The neighbour's processor time for an answer, as a part of the server's: the ratio if nobody else worked."""
        return [beside.cost / own.cost for own, beside in zip(self.own, self.beside, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifacts-dir", type=Path, default=ROOT / "artifacts")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5, help="of each drive")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    arguments = parser.parse_args()
    find_wrk()
    model = load_small(arguments.artifacts_dir)
    figures = describe(model)
    print(f"version {model.version}: {len(model.users):,} users, {len(model.items):,} movies; load {os.getloadavg()}")
    with servers(arguments.artifacts_dir.resolve(), model) as started:
        rows = list(list_rows(model))
        measured = {row.name: Measured() for row in rows}
        for _ in range(arguments.rounds):
            for row in rows:
                compare(started, row, arguments.seconds, measured[row.name])
        figures["throughput"] = show_throughput(rows, measured)
        single = measured[rows[0].name].rates
        figures["batch"] = show_batch(single, measured[rows[-1].name].rates)
        rate = statistics.median(single) / 2
        figures["latency"] = show_latency(started, rows[0].requests, rate, arguments.rounds, arguments.seconds)
    figures["start"] = show_start(arguments.artifacts_dir.resolve())
    figures["load_after"] = os.getloadavg()[0]
    write_json(arguments.json, figures)


def load_small(artifacts_dir: Path) -> LoadedModel:
    """Load the active version; say the command that makes one where there is none."""
    try:
        model = load_current(artifacts_dir)
    except NoModelError as error:
        raise SystemExit(f"{error}") from error
    if model.ranker:
        raise SystemExit(f"{model.version} has a second stage; this is about the first one: python train_als.py")
    return model


def describe(model: LoadedModel) -> dict[str, object]:
    return {
        **describe_run(sys.argv),
        "machine": describe_machine(1),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("fastapi", "uvicorn", "starlette", "uvloop", "httptools", "numpy")},
        "model": {"version": model.version, "n_users": len(model.users), "n_items": len(model.items)},
    }


@contextmanager
def servers(artifacts_dir: Path, model: LoadedModel) -> Iterator[dict[str, Server]]:
    """Run every server meanwhile, by name; whoever is not driven is idle."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        body = Path(folder) / "answer.json"
        log = Path(folder) / "log"

        def start(name: str, *options: str, **settings: object) -> Server:
            environment = {f"RECS_{setting.upper()}": value for setting, value in settings.items()}
            app = SERVICE if name.startswith("service") else STATIC
            own = {"RECS_ARTIFACTS_DIR": artifacts_dir} if app == SERVICE else {"STATIC_BODY": body}
            return stack.enter_context(
                running(app, *options, log=log.with_suffix(f".{name.replace(' ', '-')}"), **own, **environment)
            )

        started = {"service": start("service", *QUIET, cache_size=0, log_level="warning")}
        body.write_bytes(ask(started["service"].port, f"/recommend?user_id={model.users.ids[0]}&k={K}")[1])
        started["service, cache"] = start("service, cache", *QUIET, log_level="warning")
        started["service, logs"] = start("service, logs", cache_size=0)
        started["service, cache, logs"] = start("service, cache, logs")
        started["static"] = start("static", *QUIET)
        started["static, logs"] = start("static, logs")
        yield started


@contextmanager
def spinning(body: bytes, seconds: float) -> Iterator[Server]:
    """Run an app meanwhile that is busy for so long before it answers with these bytes."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        with running(STATIC, *QUIET, STATIC_BODY=file.name, STATIC_SPIN_SECONDS=seconds) as server:
            yield server


def list_rows(model: LoadedModel) -> Iterator[Row]:
    """Yield what is driven; single requests first, many at once last."""
    users, movies = model.users.ids.tolist(), model.items.ids.tolist()
    lists = [f"/recommend?user_id={user}&k={K}" for user in users]
    for logs in ("", ", logs"):
        yield Row(f"/recommend{logs}", f"service{logs}", f"static{logs}", lists, 0.5)
        yield Row(f"/recommend, cached{logs}", f"service, cache{logs}", f"static{logs}", lists, 0.7)
    threes = [f"{movies[n]},{movies[-n - 1]},{movies[2 * n]}" for n in range(len(movies) // 3)]
    words = [movie.title.split()[0] for movie in list(model.movies)[:: len(movies) // 300]]
    for name, requests in {
        "/recommend_cold, 3 liked": [f"/recommend_cold?liked={three}&k={K}" for three in threes],
        "/similar": [f"/similar?movie_id={movie}&k={K}" for movie in movies],
        "/popular": [f"/popular?k={K}"],
        "/movies?query=": [f"/movies?query={word}&k={K}" for word in words if word.isalnum() and word.isascii()],
    }.items():
        yield Row(name, "service", "static", requests)
    everybody = [users[n % len(users)] for n in range(N_BATCH)]
    batch = json.dumps({"user_ids": everybody, "k": K})
    yield Row(f"/recommend/batch, {N_BATCH:,} users", "service", "static", [batch], None, "/recommend/batch")


def compare(started: dict[str, Server], row: Row, seconds: float, measured: Measured) -> None:
    """Drive a server and, directly before it, the one that it is compared with."""
    least = [f"/recommend?user_id=1&k={K}"]
    measured.beside.append(watch(started[row.beside], lambda port: drive(port, least, seconds)))
    measured.own.append(watch(started[row.server], lambda port: drive(port, row.requests, seconds, row.post_to)))


def watch(server: Server, act: Callable[[int], tuple[int, float]]) -> Driven:
    """Drive a server, and see who works meanwhile: everybody but it and us are others."""
    process = psutil.Process(server.pid)
    before, began = _busy(process), time.perf_counter()
    n_answers, seconds = act(server.port)
    after, passed = _busy(process), time.perf_counter() - began
    everybody, own, ours = (end - start for end, start in zip(after, before, strict=True))
    return Driven(n_answers / seconds, own / n_answers, max(0.0, (everybody - own - ours) / passed))


def _busy(process: psutil.Process) -> tuple[float, float, float]:
    """Return the processor seconds that everybody, the server, and this process with its children have used."""
    machine, own = psutil.cpu_times(), process.cpu_times()
    everybody = machine.user + machine.system + machine.nice + machine.irq + machine.softirq + machine.steal
    return everybody, own.user + own.system, sum(os.times()[:4])


def show_throughput(rows: Sequence[Row], measured: dict[str, Measured]) -> dict[str, object]:
    table = Table(
        Column("requests"),
        *(Column(name, justify="right") for name in _COLUMNS),
        title="Answers a second, beside the static app; processor time of the server for each: median (least to most)",
    )
    for row in rows:
        found = measured[row.name]
        ratio, by_cost = ("", "") if row.post_to else (span(found.ratios, ".2f"), span(found.cheapness, ".2f"))
        verdict = judge(statistics.median(found.ratios), row.target, at_least=True) if row.target else ""
        costs, others = ([getattr(each, name) for each in found.own] for name in ("cost", "others"))
        each = f"{statistics.median(costs) * 1e6:,.0f}"
        table.add_row(row.name, span(found.rates, ",.0f"), ratio, verdict, each, by_cost, span(others, ".1f"))
    Console(width=WIDTH).print(table)
    return {
        name: {part: [each._asdict() for each in getattr(found, part)] for part in ("own", "beside")}
        for name, found in measured.items()
    }


def show_batch(single: Sequence[float], batch: Sequence[float]) -> dict[str, object]:
    """Compare users a second of batches with those of single requests, round by round."""
    ratios = [N_BATCH * many / one for many, one in zip(batch, single, strict=True)]
    verdict = judge(statistics.median(ratios), BATCH_TARGET, at_least=True)
    print(f"batches of {N_BATCH:,}: {span(ratios, '.1f')} times the users a second of single requests: {verdict}\n")
    return {"ratios": ratios}


@dataclass
class Paced:
    """Of each round: how long answers took, and the processor seconds of the server for each."""

    paces: list[Pace] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        return [each.p99 / each.p50 for each in self.paces]

    def measure(self, server: Server, paths: Sequence[str], rate: float, seconds: float) -> None:
        def act(port: int) -> tuple[int, float]:
            self.paces.append(pace(port, paths, rate, seconds))
            return int(rate * seconds), seconds

        self.costs.append(watch(server, act).cost)


def show_latency(
    started: dict[str, Server], paths: Sequence[str], rate: float, rounds: int, seconds: float
) -> dict[str, object]:
    """Ask the apps on the same schedule, in turns.

    The third app spins for as long as the service computes. It has no work that could be uneven: its p99 is what this
    machine's own pauses make of a server that is as busy.
    """
    first = {name: Paced() for name in ("static", "service")}
    for name, paced in first.items():
        paced.measure(started[name], paths, rate, seconds)
    spin = max(0.0, first["service"].costs[0] - first["static"].costs[0])
    found = {name: Paced() for name in ("static", "spinning", "service")}
    with spinning(ask(started["static"].port, paths[0])[1], spin) as third:
        for _ in range(rounds):
            for name, paced in found.items():
                paced.measure(third if name == "spinning" else started[name], paths, rate, seconds)
    table = Table(
        Column("milliseconds"),
        *(Column(name, justify="right") for name in ("p50", "p99", "p99 / p50", "target", "sent late, p99", "µs each")),
        title=f"At {rate:,.0f} requests a second, half of the most: median (least to most)",
    )
    for name, paced in found.items():
        verdict = judge(statistics.median(paced.ratios), MOST_P99, at_least=False) if name == "service" else ""
        p50, p99, late = (span(values, ".2f") for values in zip(*paced.paces, strict=True))
        table.add_row(
            name, p50, p99, span(paced.ratios, ".1f"), verdict, late, span([c * 1e6 for c in paced.costs], ".0f")
        )
    Console(width=WIDTH).print(table)
    return {"rate": rate, "spin_seconds": spin} | {
        name: [each._asdict() | {"cost": cost} for each, cost in zip(paced.paces, paced.costs, strict=True)]
        for name, paced in found.items()
    }


def show_start(artifacts_dir: Path) -> dict[str, object]:
    """Time starts, and look which libraries are loaded that serving this model does not need."""
    seconds = []
    for _ in range(N_STARTS):
        began = time.perf_counter()
        with running(SERVICE, RECS_ARTIFACTS_DIR=artifacts_dir):
            seconds.append(time.perf_counter() - began)
    print(f"from start to ready: {span(seconds, '.2f')} s")
    looked = subprocess.run(
        [sys.executable, "-c", _LOOK],
        cwd=ROOT,
        env=clean({"RECS_ARTIFACTS_DIR": artifacts_dir, "RECS_LOG_LEVEL": "error"}),
        capture_output=True,
        text=True,
        check=True,
    )
    imported, loaded = json.loads(looked.stdout)
    found = {
        moment: sorted({name.partition(".")[0] for name in names} & set(UNWANTED))
        for moment, names in (("import app.main", imported), ("model loaded", loaded))
    }
    for moment, names in found.items():
        print(f"{moment}: {', '.join(names) if names else 'none'} of {', '.join(UNWANTED)}")
    return {"seconds": seconds, "unwanted": found}


def span(values: Sequence[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def judge(value: float, target: float, *, at_least: bool) -> str:
    meets = value >= target if at_least else value <= target
    return f"{'≥' if at_least else '≤'} {target:g} {'met' if meets else 'MISSED'}"


if __name__ == "__main__":
    main()
