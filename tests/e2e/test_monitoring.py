"""A burst as operators see it: the cluster's Prometheus answers every query of the dashboard and of every rule.

Five calls at once on a release that may have three pods. The handler sleeps; it needs neither TensorFlow nor a core. Needs the
Prometheus operator with kube-state-metrics and the kubelet's cAdvisor, and prometheus-adapter.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from percore.worker_metrics import DURATION_BUCKETS

from deploy.monitoring import dashboard
from tests.e2e import prometheus
from tests.e2e.conftest import releases
from tests.e2e.harness import CALL, Call, Release, age, documents, eventually, ready_since, sleeping
from tests.e2e.volumes import STORED_CALLS, volume
from tests.grafana import Query, queries
from tests.promql import selectors

MAX_PODS, CALLS, RUN_SECONDS = 3, 5, 45.0
VALUES = {
    "monitoring": {"enabled": True, "podInterval": "2s"},
    "autoscaling": {"enabled": True, "maxReplicas": MAX_PODS, "scaleDownStabilizationSeconds": 300},
    **STORED_CALLS,  # a gateway without a store has none of its series
}
QUERIES = list(queries(dashboard.build()))


@dataclass(slots=True)
class Watched:
    """A release after a burst, and the answers of its calls."""

    release: Release
    during: dict[str, list[float]] = field(default_factory=dict)
    """The headline's values during the burst."""
    calls: list[Call] = field(default_factory=list)

    def ask(self, panel: str, legend: str = "") -> list[float]:
        """Return the present values of a query of the dashboard."""
        [query] = [each for each in QUERIES if each.panel == panel and legend in ("", each.legend)]
        return prometheus.query(self.filled(query))

    def filled(self, query: Query) -> str:
        chosen = {"namespace": self.release.namespace, "full": self.release.full_name}
        return query.filled({**chosen, "__range": "10m"})


@pytest.fixture(scope="module")
def watched(namespace: str, request: pytest.FixtureRequest) -> Iterator[Watched]:
    """Make the burst when Prometheus knows the release; it needs up to three minutes for a new target."""
    with volume(namespace, "watched-percore-gateway-calls"), releases(namespace, request.session) as install:
        seen = Watched(install("watched", **VALUES))
        seen.release.wait(1)
        eventually(lambda: seen.ask("Executing") == [0.0] and seen.ask("Busy or free") == [1.0], seconds=300, every=1)
        with seen.release.forwarded() as gateway:
            seen.calls = [Call(gateway + CALL, sleeping(RUN_SECONDS), seconds=200).start() for _ in range(CALLS)]
            seen.during = eventually(lambda: _headline_if_all_pods_compute(seen), seconds=RUN_SECONDS, every=0.5)
            failed = Call(gateway + CALL, sleeping(1e300), seconds=200).start()
            seen.calls = [call.done() for call in (*seen.calls, failed)]
        yield seen


def _headline_if_all_pods_compute(seen: Watched) -> dict[str, list[float]]:
    """Return the headline when the largest number of pods computes; nothing before."""
    said = {panel: seen.ask(panel) for panel in ("Executing", "Queued", "Ready pods", "Wanted pods")}
    return said if said["Executing"] == [float(MAX_PODS)] and said["Ready pods"] == [float(MAX_PODS)] else {}


def test_the_headline_shows_the_state_of_the_calls(watched: Watched) -> None:
    counts = {panel: int(value) for panel, [value] in watched.during.items()}
    assert counts == {"Executing": MAX_PODS, "Queued": CALLS - MAX_PODS, "Ready pods": MAX_PODS, "Wanted pods": MAX_PODS}
    assert [call.status for call in watched.calls] == [200] * CALLS + [500]


def test_ended_calls_are_counted_exactly(watched: Watched) -> None:
    eventually(lambda: watched.ask("Executing") == [0.0], seconds=30)
    service = f'namespace="{watched.release.namespace}",service="{watched.release.full_name}-gateway"'
    for code, count in (("200", CALLS), ("500", 1), ("503", 0)):
        series = f'sum(percore_gateway_call_seconds_count{{{service},code="{code}"}})'
        assert prometheus.query(series) == [float(count)]
    [ratio] = watched.ask("Success ratio")
    assert ratio == pytest.approx(CALLS / (CALLS + 1), abs=0.02)
    [said] = watched.ask("Queue time, p95")
    longest = max(call.timing("queue") for call in watched.calls)
    assert longest > 10
    assert _bucket(said) == _bucket(longest), "of six queue times, p95 is in the bucket of the longest"


def test_the_time_from_wanted_to_ready_is_that_of_the_pods_own_status(watched: Watched) -> None:
    took = []
    for pod in watched.release.pods("inference"):
        since = ready_since(pod)
        assert since is not None
        took.append(-age(since, 0) - -age(pod["metadata"]["creationTimestamp"], 0))
    assert len(took) == MAX_PODS
    assert watched.ask("From wanted to ready", "slowest") == [max(took)]
    assert watched.ask("From wanted to ready", "fastest") == [min(took)]


def test_every_query_of_the_dashboard_returns_data(watched: Watched) -> None:
    """Prometheus evaluates rules with windows of days every two minutes. So a query may get its first data after that time."""
    empty = {query: watched.filled(query) for query in QUERIES}
    ends = time.monotonic() + 180
    while empty and time.monotonic() < ends:
        empty = {query: text for query, text in empty.items() if not prometheus.query(text)}
        time.sleep(1)
    assert not empty, [(query.panel, query.legend, text) for query, text in empty.items()]


def test_every_series_of_every_rule_is_there_and_every_rule_is_well(watched: Watched) -> None:
    """The expression of an alert has no result if there is no fault. But each series that it reads must exist."""
    rules = _rules(watched.release)
    assert len(rules) > 30
    read = {selector.text for rule in rules for selector in selectors(rule["query"])}
    made = {
        f'{rule["name"]}{{namespace="{watched.release.namespace}",service="{watched.release.full_name}-gateway"}}'
        for rule in rules
        if rule["type"] == "recording"
    }

    def absent() -> set[str]:
        return {text for text in read | made if not prometheus.query(text)}

    eventually(lambda: not absent(), seconds=180, every=5)
    assert {rule["health"] for rule in _rules(watched.release)} == {"ok"}


def test_no_alert_fires_without_harm_to_callers(watched: Watched) -> None:
    alerting = [rule for rule in _rules(watched.release) if rule["type"] == "alerting"]
    assert "PercoreNoGatewayReady" in {rule["name"] for rule in alerting}
    assert [(rule["name"], rule["labels"]) for rule in alerting if rule["state"] == "firing"] == []


def test_the_sidecar_of_grafana_would_find_the_dashboard(watched: Watched) -> None:
    [found] = documents("-n", watched.release.namespace, "configmaps", "-l", "grafana_dashboard=1")
    assert found["data"]["percore.json"] == dashboard.page().rstrip()


def _bucket(seconds: float) -> float:
    """Return the bound of the bucket that counts this queue time."""
    return min(bound for bound in DURATION_BUCKETS if seconds <= bound)


def _rules(release: Release) -> list[dict[str, Any]]:
    """Return the rules of a release, as Prometheus has loaded and evaluated them."""
    groups = prometheus.get("rules")["groups"]
    own = f"{release.namespace}.{release.full_name}."
    return [rule for group in groups if group["name"].startswith(own) for rule in group["rules"]]
