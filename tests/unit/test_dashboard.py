"""The Grafana dashboard, as it is shipped."""

import itertools
import json
import re
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from percore.gateway.gateway_metrics import GatewayMetrics
from percore.gateway.store.store_metrics import StoreMetrics
from percore.worker_metrics import WorkerMetrics

from deploy.monitoring import dashboard
from deploy.monitoring.variables import ALWAYS_EXPORTED
from tests.grafana import queries
from tests.promql import selectors

register_default_plugins()
SHIPPED: dict[str, Any] = json.loads(dashboard.page())
PANELS: list[dict[str, Any]] = [each for each in SHIPPED["panels"] if each["type"] != "row"]
QUERIES = list(queries(dashboard.build()))
RECORDED = {
    "service:percore_gateway_failed_calls:ratio_rate30d",
    "service:percore_gateway_long_waits:ratio_rate30d",
    "service:percore_success_objective:ratio",
    "service:percore_wait_objective:ratio",
}
KUBERNETES = {
    "container_cpu_cfs_periods_total",
    "container_cpu_cfs_throttled_periods_total",
    "container_cpu_usage_seconds_total",
    "container_memory_working_set_bytes",
    "kube_deployment_spec_replicas",
    "kube_deployment_status_replicas",
    "kube_deployment_status_replicas_ready",
    "kube_horizontalpodautoscaler_spec_max_replicas",
    "kube_horizontalpodautoscaler_spec_min_replicas",
    "kube_horizontalpodautoscaler_status_desired_replicas",
    "kube_pod_container_resource_limits",
    "kube_pod_created",
    "kube_pod_status_ready_time",
    "kube_pod_(init_)?container_status_restarts_total",
}
"""The series of kube-state-metrics and cAdvisor that kube-prometheus-stack keeps."""
PROMETHEUS = {"up"}
"""The series that Prometheus itself writes for each target."""
CHOSEN = {"namespace": "here", "full": "first-percore", "__range": "1h"}


def ours() -> dict[str, set[str]]:
    """Return the labels of each series that percore exports."""
    found: dict[str, set[str]] = {}
    gateway = GatewayMetrics()
    StoreMetrics(gateway.registry)
    for metrics in (WorkerMetrics(), gateway):
        for family in metrics.registry._collector_to_names:
            labels = set(family._labelnames)  # type: ignore[attr-defined]
            for name in metrics.registry._collector_to_names[family]:
                found[name] = found.get(name, set()) | labels | ({"le"} if name.endswith("_bucket") else set())
    return found


def test_the_dashboard_fits_the_types_of_grafana() -> None:
    decoded = Dashboard.from_json(json.loads(dashboard.page()))
    assert json.loads(json.dumps(decoded, cls=JSONEncoder)) == SHIPPED
    assert SHIPPED["uid"] == "percore"
    assert "id" not in SHIPPED


def test_the_rows_of_the_dashboard_have_the_order_of_a_diagnosis() -> None:
    rows = [each["title"] for each in SHIPPED["panels"] if each["type"] == "row"]
    assert rows == ["Headline", "Calls", "Queue time and run time", "Autoscaling", "Pods", "Gateway", "Stored calls"]


def test_no_two_panels_have_one_id_or_one_title() -> None:
    for key in ("id", "title"):
        found = [each[key] for each in PANELS]
        assert len(found) == len(set(found))
    assert len({each["id"] for each in SHIPPED["panels"]}) == len(SHIPPED["panels"])


def test_panels_lie_side_by_side_and_fill_their_lines() -> None:
    places = [each["gridPos"] for each in SHIPPED["panels"]]
    for one, other in itertools.combinations(places, 2):
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_x or apart_y, (one, other)
    for y in {place["y"] for place in places}:
        assert sum(place["w"] for place in places if place["y"] == y) == 24, y


def test_the_data_source_is_the_one_that_the_reader_chose() -> None:
    variables = [each for each in SHIPPED["templating"]["list"] if each["type"] == "query"]
    targets = [target for panel in PANELS for target in panel["targets"]]
    for each in [*PANELS, *targets, *variables]:
        assert each["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert dashboard.page().count('"datasource": {') == len(PANELS) + len(targets) + len(variables)


def test_the_reader_chooses_a_data_source_a_namespace_and_a_release() -> None:
    variables = SHIPPED["templating"]["list"]
    shown = [each["name"] for each in variables if each.get("hide", 0) == 0]
    assert shown == ["datasource", "namespace", "full"]
    [full] = [each for each in variables if each["name"] == "full"]
    service = "my-percore-2-gateway"
    found = re.match(full["regex"].strip("/"), service)
    assert found
    assert found[1] == "my-percore-2"


def test_with_several_clusters_the_reader_chooses_one_and_every_query_reads_it_alone() -> None:
    text = dashboard.page(clusters=True)
    variables = json.loads(text)["templating"]["list"]
    assert [each["name"] for each in variables] == ["datasource", "cluster", "namespace", "full"]
    own, *others = [each["query"] for each in variables if each["type"] == "query"]
    assert own == f"label_values({ALWAYS_EXPORTED}, cluster)"
    assert all('{cluster="$cluster"' in query for query in others)
    found = re.findall(r'"expr": ("(?:[^"\\]|\\.)*")', text)
    assert len(found) == len(QUERIES)
    for query in found:
        for selector in selectors(re.sub(r"\$__\w+", "1h", json.loads(query)).replace("${full}", "f")):
            assert selector.labels["cluster"] == "$cluster"


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_every_panel_has_a_unit_a_description_with_advice_and_names_for_its_lines(panel: dict[str, Any]) -> None:
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert len(panel["description"]) > 60
    assert panel["description"].endswith(".")
    references = [target["refId"] for target in panel["targets"]]
    assert len(references) == len(set(references))
    if panel["type"] in ("timeseries", "heatmap", "state-timeline"):
        assert all(target["legendFormat"] for target in panel["targets"])


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: f"{query.panel}-{query.legend}")
class TestQueries:
    def test_it_reads_series_that_are_exported_by_labels_that_they_have(self, query: Any) -> None:
        added = {"namespace", "service", "pod"}
        found = selectors(query.filled(CHOSEN))
        assert found
        for name, labels, _ in found:
            assert name in ours() or name in RECORDED | KUBERNETES | PROMETHEUS, name
            if name in ours():
                assert labels.keys() <= ours()[name] | added

    def test_it_reads_this_release_alone(self, query: Any) -> None:
        for _, labels, _ in selectors(query.filled(CHOSEN)):
            assert labels["namespace"] == "here"
            whose = [labels.get(key, "") for key in ("service", "deployment", "horizontalpodautoscaler", "pod")]
            assert any(each.startswith("first-percore-") for each in whose)

    def test_it_reads_series_of_percore_or_of_kubernetes_and_not_both(self, query: Any) -> None:
        kinds = {name in KUBERNETES for name, _, _ in selectors(query.filled(CHOSEN))}
        assert len(kinds) == 1
