"""Metrics of a server, in Prometheus's text form."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_QUERIES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counts of one server, in a registry of their own.

    Names begin with ``voxseek_``; times are in seconds.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "voxseek_requests",
            "Requests by route and status; 0: broken off.",
            ("route", "status"),
            registry=self._registry,
        )
        self._request_seconds = Histogram(
            "voxseek_request_seconds",
            "From the head of a request to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._batch_queries = Histogram(
            "voxseek_batch_queries",
            "Queries searched together.",
            ("index",),
            buckets=_QUERIES,
            registry=self._registry,
        )
        self._search_seconds = Histogram(
            "voxseek_search_seconds",
            "Search of a batch, with the metadata of its hits.",
            ("index",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._waiting = Gauge(
            "voxseek_waiting", "Requests that wait.", ("index",), registry=self._registry
        )

    def count(self, scope: MutableMapping[str, Any], status: int | None, seconds: float) -> None:
        """Count a request that was answered, or broken off."""
        route = getattr(scope.get("route"), "path", "none")
        self._requests.labels(route, str(status or 0)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def watch(self, index: str, n_waiting: Any) -> None:
        """Report what a function returns as the number of requests that wait for an index."""
        self._waiting.labels(index).set_function(n_waiting)

    def count_batch(self, index: str, n_queries: int, seconds: float) -> None:
        """Count a search."""
        self._batch_queries.labels(index).observe(n_queries)
        self._search_seconds.labels(index).observe(seconds)

    def text(self) -> bytes:
        """Return all of it as Prometheus reads it."""
        return generate_latest(self._registry)

    def totals(self) -> dict[str, tuple[int, float]]:
        """Return number and total seconds of the requests of each route."""
        found: dict[str, list[float]] = {}
        for family in self._request_seconds.collect():
            for sample in family.samples:
                place = {"_count": 0, "_sum": 1}.get(sample.name.removeprefix(family.name))
                if place is not None:
                    found.setdefault(sample.labels["route"], [0, 0.0])[place] = sample.value
        return {route: (int(n), seconds) for route, (n, seconds) in found.items()}
