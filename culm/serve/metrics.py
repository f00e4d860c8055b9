"""Measurements of a service for Prometheus, under vLLM's names, so that its dashboards work.

`culm.serve.account` counts what one query uses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from culm.engine.engine import Engine
from culm.serve.refusal import Refusal

SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20,
           40, 80, 160, 640)  # fmt: skip
TOKENS = tuple(factor * 10**power for power in range(6) for factor in (1, 2, 5))


class Metrics:
    """Counters and histograms of one service; `text` is what Prometheus reads."""

    def __init__(self, model: str, engine: Engine) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(EngineState(model, engine))
        self._model = model

        def histogram(name: str, about: str, buckets: tuple[float, ...]) -> Histogram:
            made = Histogram(
                f"vllm:{name}", about, ["model_name"], registry=self._registry, buckets=buckets
            )
            return made.labels(model)

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(f"vllm:{name}", about, ["model_name", *labels], registry=self._registry)

        self.first_token = histogram(
            "time_to_first_token_seconds", "Seconds to the first token of an answer.", SECONDS
        )
        self.between_tokens = histogram(
            "inter_token_latency_seconds",
            "Seconds from one token to the next.",
            SECONDS,
        )
        self.whole = histogram(
            "e2e_request_latency_seconds", "Seconds to the last token of an answer.", SECONDS
        )
        self.prompt = histogram("request_prompt_tokens", "Tokens of a prompt.", TOKENS)
        self.generated = histogram("request_generation_tokens", "Tokens of an answer.", TOKENS)
        self._prompts = counter("prompt_tokens", "Tokens of all prompts.")
        self._answers = counter("generation_tokens", "Tokens of all answers.")
        self._queries = counter("prefix_cache_queries", "Tokens looked for in the prefix cache.")
        self._hits = counter("prefix_cache_hits", "Tokens found in the prefix cache.")
        self._finished = counter("request_success", "Complete answers.", "finished_reason")
        self._refused = Counter(
            "culm:refused_requests", "Requests that were not answered.", ["model_name", "reason"],
            registry=self._registry,
        )  # fmt: skip
        self._aborted = Counter(
            "culm:aborted_requests", "Answers whose client left.", ["model_name"],
            registry=self._registry,
        )  # fmt: skip
        self._failed = Counter(
            "culm:failed_requests", "Answers that ended with an error.", ["model_name", "reason"],
            registry=self._registry,
        )  # fmt: skip

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self._registry)

    @contextmanager
    def refusals(self) -> Iterator[None]:
        """Count what is refused within."""
        try:
            yield
        except Refusal as refusal:
            self._refused.labels(self._model, type(refusal).__name__).inc()
            raise

    def read(self, texts: Iterable[Sequence[int]]) -> int:
        """Count the tokens of prompts, or of texts that get scores or a vector; returns them."""
        sizes = list(map(len, texts))
        for tokens in sizes:
            self._prompts.labels(self._model).inc(tokens)
            self.prompt.observe(tokens)
        return sum(sizes)

    def found(self, asked: int, cached: int) -> None:
        """Tokens of a prompt, and how many of them came from the prefix cache."""
        self._queries.labels(self._model).inc(asked)
        self._hits.labels(self._model).inc(cached)

    def token(self) -> None:
        self._answers.labels(self._model).inc()

    def finished(self, reason: str, tokens: int, seconds: float) -> None:
        """An answer has come to its end."""
        self._finished.labels(self._model, reason).inc()
        self.generated.observe(tokens)
        self.whole.observe(seconds)

    def aborted(self, count: int) -> None:
        self._aborted.labels(self._model).inc(count)

    def failed(self, count: int, refusal: Refusal) -> None:
        """Answers that ended with an error while they were written."""
        self._failed.labels(self._model, type(refusal).__name__).inc(count)


class EngineState(Collector):
    """What the engine holds at the moment of a scrape."""

    def __init__(self, model: str, engine: Engine) -> None:
        self._model, self._engine = model, engine

    def collect(self) -> Iterator[Metric]:
        engine = self._engine
        size, waiting = engine.slots * engine.length, engine.waiting.size
        used = sum(row.length for row in list(engine.running))
        for name, about, value in (
            ("num_requests_running", "Requests in a slot.", float(len(engine.running))),
            (
                "num_requests_waiting",
                "Requests that wait for a slot.",
                float(waiting),
            ),
            (
                "kv_cache_usage_perc",
                "Used share of the cache.",
                used / size,
            ),
        ):
            gauge = GaugeMetricFamily(f"vllm:{name}", about, labels=["model_name"])
            gauge.add_metric([self._model], value)
            yield gauge
        about = "Times that a request lost its slot to one of a higher priority."
        preemptions = CounterMetricFamily("vllm:num_preemptions", about, labels=["model_name"])
        preemptions.add_metric([self._model], engine.waiting.returned)
        yield preemptions
