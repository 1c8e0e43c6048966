"""Metrics of the service in Prometheus' form, in a registry of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from raymill.serve.runner import EngineRunner, TokenStream

_LONG_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_SHORT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class ServiceMetrics:
    """Metrics of one application; `runners` are its models' by id."""

    def __init__(self, runners: Mapping[str, EngineRunner]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(runners))
        self._responses = Counter(
            "raymill_responses", "Responses.", ["path", "code"], registry=self._registry
        )
        self._durations = Histogram(
            "raymill_request_seconds", "Seconds from a request to the end of its response.", ["path"],
            buckets=_LONG_S, registry=self._registry,
        )  # fmt: skip
        self._first = Histogram(
            "raymill_first_token_seconds", "Seconds from a request to its first token.", ["model"],
            buckets=_LONG_S, registry=self._registry,
        )  # fmt: skip
        self._between = Histogram(
            "raymill_inter_token_seconds", "Mean seconds between the tokens of an answer.", ["model"],
            buckets=_SHORT_S, registry=self._registry,
        )  # fmt: skip

    def observe_response(self, path: str, code: int, seconds: float) -> None:
        """Count a response that has ended; `path` is the route's, not the client's text."""
        self._responses.labels(path, str(code)).inc()
        self._durations.labels(path).observe(seconds)

    def observe_answer(self, model: str, stream: TokenStream) -> None:
        """Note the times of an answer's tokens."""
        if stream.first_s is None or stream.last_s is None:
            return
        self._first.labels(model).observe(stream.first_s - stream.submitted_s)
        if stream.count > 1:
            self._between.labels(model).observe(
                (stream.last_s - stream.first_s) / (stream.count - 1)
            )

    def text(self) -> bytes:
        """Return all metrics as Prometheus reads them."""
        return generate_latest(self._registry)


def merged(texts: Mapping[str, bytes], label: str) -> bytes:
    """Return the metrics of several processes as one text, each sample with its process's name in a label."""
    families: dict[str, Metric] = {}
    for name, text in texts.items():
        for family in text_string_to_metric_families(text.decode()):
            told = Metric(family.name, family.documentation, family.type)
            whole = families.setdefault(family.name, told)
            whole.samples += [
                sample._replace(labels={**sample.labels, label: name}) for sample in family.samples
            ]
    registry = CollectorRegistry()
    registry.register(_Told(families.values()))
    return generate_latest(registry)


class _Told(Collector):
    """Metrics that are known already."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


class _EngineCollector(Collector):
    """Counts of the engines, read when they are asked for."""

    def __init__(self, runners: Mapping[str, EngineRunner]) -> None:
        self._runners = runners

    def collect(self) -> Iterable[Metric]:
        slots = GaugeMetricFamily("raymill_slots", "Answers drawn at once.", labels=["model"])
        running = GaugeMetricFamily("raymill_running", "Answers being drawn.", labels=["model"])
        queue = GaugeMetricFamily("raymill_queue", "Answers that wait.", labels=["model"])
        ready = GaugeMetricFamily("raymill_ready", "1: the engine works.", labels=["model"])
        prompts = CounterMetricFamily(
            "raymill_prompt_tokens",
            "Prompt tokens, computed or reused.",
            labels=["model", "source"],
        )
        drawn = CounterMetricFamily("raymill_drawn_tokens", "Tokens drawn.", labels=["model"])
        passes = CounterMetricFamily("raymill_passes", "Forward passes.", labels=["model"])
        for name, runner in self._runners.items():
            counts = runner.counts
            slots.add_metric([name], counts.slots)
            running.add_metric([name], counts.running)
            queue.add_metric([name], counts.waiting)
            ready.add_metric([name], runner.failure is None)
            prompts.add_metric([name, "prefilled"], counts.prefilled)
            prompts.add_metric([name, "reused"], counts.reused)
            drawn.add_metric([name], counts.drawn)
            passes.add_metric([name], counts.passes)
        yield from (slots, running, queue, ready, prompts, drawn, passes)
