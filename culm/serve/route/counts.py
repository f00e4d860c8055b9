"""Measurements of a router for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from culm.serve.route.replicas import Replica


class Counts:
    """What each replica got; `text` is what Prometheus reads."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        registry = self._registry = CollectorRegistry()
        registry.register(State(replicas))

        def counter(name: str, about: str) -> Counter:
            return Counter(f"culm:router_{name}", about, ["replica"], registry=registry)

        self._requests = counter("requests", "Requests that a replica answered.")
        self._blocks = counter("prefix_queries", "Blocks of their prompts.")
        self._known = counter("prefix_hits", "Blocks that this replica had most likely read.")
        self._lost = counter("lost", "Requests that a replica did not answer to the end.")

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self._registry)

    def answered(self, replica: Replica, blocks: int, known: int) -> None:
        self._requests.labels(replica.url).inc()
        self._blocks.labels(replica.url).inc(blocks)
        self._known.labels(replica.url).inc(known)

    def lost(self, replica: Replica) -> None:
        self._lost.labels(replica.url).inc()


class State(Collector):
    """The replicas at the moment of a scrape."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self._replicas = replicas

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily(
            "culm:router_replica_up", "Whether a replica could be reached.", labels=["replica"]
        )
        running = GaugeMetricFamily(
            "culm:router_requests_running", "Requests that wait for it.", labels=["replica"]
        )
        for one in self._replicas:
            up.add_metric([one.url], float(one.up))
            running.add_metric([one.url], float(one.open))
        yield from (up, running)
