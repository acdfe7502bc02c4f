"""What operators count: metrics in Prometheus' text format.

``routers ─▶ Telemetry ─▶ /metrics``. Each application has a registry of its own, so that several in one process, as in
tests, do not add up. No user id is ever a label.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, generate_latest
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

    def count_list(self, source: str, ranker_failed: bool) -> None:
        """Count one answered list."""
        self._lists.labels(source).inc()
        if ranker_failed:
            self._fallbacks.inc()

    def render(self) -> bytes:
        """Return all metrics as ``CONTENT_TYPE``."""
        return generate_latest(self._registry)
