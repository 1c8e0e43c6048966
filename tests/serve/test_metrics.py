"""Metrics of several processes as one."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from raymill.serve.metrics import ServiceMetrics, merged


def test_processes_tell_their_metrics_side_by_side() -> None:
    texts = {}
    for name, count in (("a", 1), ("b", 3)):
        metrics = ServiceMetrics({})
        for _ in range(count):
            metrics.observe_response("/v1/models", 200, 0.02)
        texts[name] = metrics.text()
    families = {
        family.name: family
        for family in text_string_to_metric_families(merged(texts, "replica").decode())
    }
    counted = [one for one in families["raymill_responses"].samples if one.name.endswith("_total")]
    assert [(one.labels["replica"], one.value) for one in counted] == [("a", 1), ("b", 3)]
    assert {one.labels["path"] for one in counted} == {"/v1/models"}
    durations = families["raymill_request_seconds"]
    assert durations.type == "histogram"
    below = {
        one.labels["replica"]: one.value
        for one in durations.samples
        if one.labels.get("le") == "0.025"
    }
    assert below == {"a": 1, "b": 3}


def test_one_text_only_gets_the_label() -> None:
    metrics = ServiceMetrics({})
    metrics.observe_response("/v1/models", 404, 1)
    told = merged({"a": metrics.text()}, "replica").decode()
    plain = told.replace(',replica="a"', "")
    assert sorted(plain.splitlines()) == sorted(metrics.text().decode().splitlines())
