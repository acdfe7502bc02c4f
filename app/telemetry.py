"""What operators count: metrics in Prometheus' text format.

``routers ─▶ Telemetry ─▶ /metrics``. Each application has a registry of its own, so that several in one process, as in
tests, do not add up. No user id is ever a label.
"""

from __future__ import annotations

from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


class Telemetry:
    """The metrics of one application."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._lists = Counter(
            "recs_lists_total", "Lists answered, by what ordered them.", ["source"], registry=self._registry
        )
        self._fallbacks = Counter(
            "recs_ranker_fallbacks_total",
            "Lists that the first stage answered because the second one failed.",
            registry=self._registry,
        )
        self._reloads = Counter(
            "recs_reloads_total",
            "New versions that this process came upon, by what became of them.",
            ["result"],
            registry=self._registry,
        )
        self._failing = Gauge(
            "recs_reload_failing", "1 while the active version cannot be loaded, else 0.", registry=self._registry
        )
        self._serving = Gauge("recs_serving", "1 for the version being served.", ["version"], registry=self._registry)

    def count_list(self, source: str, ranker_failed: bool) -> None:
        """Count one answered list."""
        self._lists.labels(source).inc()
        if ranker_failed:
            self._fallbacks.inc()

    def count_reload(self, result: Literal["loaded", "refused"]) -> None:
        """Count one new version."""
        self._reloads.labels(result).inc()

    def show_serving(self, version: str | None, *, failing: bool) -> None:
        """Show which version is being served, and whether the active one could not be loaded."""
        self._failing.set(failing)
        self._serving.clear()
        if version:
            self._serving.labels(version).set(1)

    def render(self) -> bytes:
        """Return all metrics as ``CONTENT_TYPE``."""
        return generate_latest(self._registry)
