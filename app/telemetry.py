"""What operators count: metrics in Prometheus' text format.

``routers, serving, cache ─▶ Telemetry ─▶ /metrics``. Each application counts for itself, so that several in one
process, as in tests, do not add up; the worker processes of one service do. No user id is ever a label. What is written
to the log is ``app.logs``'s business.
"""

from __future__ import annotations

import logging
import math
import time
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Literal

from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from app.counts import Cell, Family, WorkerFiles, gather, remove_leftovers, shared_folder

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
BUCKETS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5)  # upper bounds, seconds

_BOUNDS = (*map(str, BUCKETS), "+Inf")
_SERVING, _TRAINED, _AGE = "recs_serving", "recs_model_trained_timestamp_seconds", "recs_model_age_seconds"
log = logging.getLogger("uvicorn.error")


class Telemetry(Collector):
    """The metrics of one application.

    It is told of everything on the event loop's thread, new versions aside, which one thread at a time may tell of.
    """

    def __init__(self) -> None:
        by_route = ("route", "method", "status")
        seconds = ("recs_request_seconds", "How long requests took, by route.")
        self._requests = Family("counter", "recs_requests", "Requests; status 499: the caller left first.", by_route)
        self._buckets = Family("histogram", *seconds, ("route", "le"), suffix="_bucket")
        self._seconds = Family("histogram", *seconds, ("route",), suffix="_sum")
        self._in_flight = Family(
            "gauge", "recs_requests_in_flight", "Requests being worked on, probes aside.", merge="livesum"
        )
        self._refusals = Family("counter", "recs_refusals", "Requests that a limit refused, by reason.", ("reason",))
        self._disconnects = Family("counter", "recs_disconnects", "Callers seen leaving before the end of an answer.")
        self._lists = Family("counter", "recs_lists", "Lists answered, by what ordered them.", ("source",))
        self._fallbacks = Family(
            "counter", "recs_ranker_fallbacks", "Lists that the first stage answered because the second one failed."
        )
        self._lookups = Family("counter", "recs_cache_lookups", "Looks into the cache.", ("level", "result"))
        self._redis_up = Family("gauge", "recs_redis_up", "1 while Redis is in use, 0 while not.", merge="livemin")
        self._redis_errors = Family("counter", "recs_redis_errors", "What Redis failed at.", ("operation",))
        self._reloads = Family(
            "counter", "recs_reloads", "New versions that a process came upon, by what became of them.", ("result",)
        )
        self._failing = Family(
            "gauge", "recs_reload_failing", "1 while the active version cannot be loaded, else 0.", merge="livemax"
        )
        self._serving = Family("gauge", _SERVING, "Processes that serve a version.", ("version",), merge="livesum")
        self._trained = Family("gauge", _TRAINED, "When the oldest model being served was trained.", merge="livemin")
        self._started = Family(
            "gauge", "process_start_time_seconds", "When the youngest process began, Unix time.", merge="livemax"
        )
        self._families = [each for each in vars(self).values() if isinstance(each, Family)]
        self._tallies: dict[tuple[str, str, int], tuple[Cell, Cell, list[Cell]]] = {}
        self._files: WorkerFiles | None = None
        self.in_flight = self._in_flight.cell()  # where the edge shows how many requests are being worked on
        for family in (self._disconnects, self._fallbacks, self._failing):
            family.cell()  # shown from the start
        self._started.set(time.time())

    def join_workers(self) -> None:
        """Add up with the other worker processes of this service, where there are any, from now on.

        For the worker itself to call, when its application starts. A folder that cannot be used is no reason not to
        serve: the metrics are this worker's alone then, and the log says so.
        """
        folder = shared_folder()
        if folder is None or self._files:
            return
        remove_leftovers()
        try:
            self._files = WorkerFiles(folder)
            for family in self._families:
                family.move(self._files)
        except OSError as error:
            log.warning("/metrics counts this process alone: no file can be kept in %s: %s", folder, error)
            self._files = None
            for family in self._families:
                family.files = None
        self._tallies.clear()
        self.in_flight = self._in_flight.cell()

    def leave_workers(self) -> None:
        """Take this worker's gauges out of the sum, when its application stops."""
        if self._files:
            self._files.close()
            for family in self._families:
                family.files = None  # who still answers counts in cells that nobody reads

    def count_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count and time one request.

        Parameters
        ----------
        route : str
            Its template, such as ``/users/{user_id}``, never the path itself.
        method : str
            One outside ``METHODS`` counts as OTHER.
        seconds : float
            From its arrival to the end of its answer.
        """
        tally = self._tallies.get((route, method, status)) or self._tally(route, method, status)
        (requests, at), (sums, sum_at), buckets = tally
        requests[at] += 1.0
        sums[sum_at] += seconds
        numbers, bucket = buckets[bisect_left(BUCKETS, seconds)]
        numbers[bucket] += 1.0

    def _tally(self, route: str, method: str, status: int) -> tuple[Cell, Cell, list[Cell]]:
        """Look up once what a request of this kind counts in."""
        known = method if method in METHODS else "OTHER"
        if (route, known, status) not in self._tallies:
            buckets = [self._buckets.cell(route, bound) for bound in _BOUNDS]
            requests = self._requests.cell(route, known, str(status))
            self._tallies[route, known, status] = requests, self._seconds.cell(route), buckets
        return self._tallies[route, known, status]

    def count_refusal(self, reason: str) -> None:
        """Count one request that a limit refused."""
        self._refusals.add(reason)

    def count_disconnect(self) -> None:
        """Count one caller who left too early."""
        self._disconnects.add()

    def count_list(self, source: str, ranker_failed: bool) -> None:
        """Count one answered list."""
        self._lists.add(source)
        if ranker_failed:
            self._fallbacks.add()

    def on_lookup(self, level: str, hit: bool) -> None:
        """Count one look into a level of the cache."""
        self._lookups.add(level, "hit" if hit else "miss")

    def on_shared_state(self, up: bool) -> None:
        """Show whether Redis is in use; a service that never has one shows nothing."""
        self._redis_up.set(up)

    def on_shared_error(self, operation: str) -> None:
        """Count one failure of Redis."""
        self._redis_errors.add(operation)

    def count_reload(self, result: Literal["loaded", "refused"]) -> None:
        """Count one new version."""
        self._reloads.add(result)

    def show_serving(self, version: str | None, *, failing: bool, trained_at: str | None = None) -> None:
        """Show which version is being served, and whether the active one could not be loaded.

        Parameters
        ----------
        trained_at : str, optional
            ISO 8601, as the version's manifest has it; without a time zone it is UTC. The model's age counts from it.
        """
        self._failing.set(failing)
        for labels in list(self._serving.cells):
            self._serving.set(0.0, *labels)
        if version:
            self._serving.set(1.0, version)
        self._trained.set(_timestamp(trained_at))

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics, as prometheus-client asks for them."""
        for metric in self._files.gather() if self._files else gather(self._families):
            if metric.name == _SERVING:  # a version that has been served keeps its number, which is 0
                metric.samples = [sample for sample in metric.samples if sample.value]
            yield _age(metric) if metric.name == _TRAINED else metric

    def render(self) -> bytes:
        """Return all metrics as ``CONTENT_TYPE``; with several workers this reads files, for some milliseconds."""
        return generate_latest(self)


def _timestamp(trained_at: str | None) -> float:
    """Return Unix time; infinity, which is never the earliest, where there is none."""
    with suppress(ValueError):
        moment = datetime.fromisoformat(trained_at or "")
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return math.inf


def _age(trained: Metric) -> Metric:
    """Turn the moment of training into how long ago that is now."""
    age = Metric(_AGE, "How long ago the oldest model being served was trained.", "gauge")
    for sample in trained.samples:
        if math.isfinite(sample.value):
            age.add_sample(_AGE, {}, max(0.0, time.time() - sample.value))
    return age
