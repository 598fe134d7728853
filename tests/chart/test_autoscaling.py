"""Autoscaling as the chart renders it: the engines, zero pods, and the buffer."""

from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from percore.gateway.gateway_metrics import GatewayMetrics

from tests.chart.harness import CLUSTER_API_VERSIONS, WITH_CRDS, Object, notes, one, refusal, render

KEDA = "autoscaling.engine=keda"
WITHOUT_PROMETHEUS = ("autoscaling.engine=keda-metrics-api", "monitoring.enabled=false")
WITH_KEDA = ("--api-versions", "keda.sh/v1alpha1/ScaledObject")
MODERN = ("--kube-version", "1.37.0")
KEDAS_OPERATOR = {
    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "keda"}},
    "podSelector": {"matchLabels": {"app": "keda-operator"}},
}


def scaled_object(*values: str, more: tuple[str, ...] = MODERN) -> Object:
    spec: Object = one(render(KEDA, *values, more=more), "ScaledObject")["spec"]
    return spec


def hpa(*values: str) -> Object:
    spec: Object = one(render(*values, more=MODERN), "HorizontalPodAutoscaler")["spec"]
    return spec


def trigger(*values: str) -> Any:
    [only] = scaled_object(*values)["triggers"]
    return only


def test_one_engine_scales_and_the_deployment_names_no_number_of_pods() -> None:
    for engine, kind in (("hpa", "HorizontalPodAutoscaler"), ("keda", "ScaledObject")):
        objects = render(f"autoscaling.engine={engine}")
        assert {each["kind"] for each in objects} & {"HorizontalPodAutoscaler", "ScaledObject"} == {kind}
        assert "replicas" not in one(objects, "Deployment", "inference")["spec"]


def test_both_engines_scale_the_same_pods_in_the_same_way() -> None:
    values = ("autoscaling.minReplicas=2", "autoscaling.maxReplicas=20", "autoscaling.scaleDownStabilizationSeconds=60")
    ours, kedas = hpa(*values), scaled_object(*values)
    assert kedas["scaleTargetRef"]["name"] == ours["scaleTargetRef"]["name"]
    assert (kedas["minReplicaCount"], kedas["maxReplicaCount"]) == (ours["minReplicas"], ours["maxReplicas"]) == (2, 20)
    config = kedas["advanced"]["horizontalPodAutoscalerConfig"]
    assert config["behavior"] == ours["behavior"]
    assert config["behavior"]["scaleUp"]["tolerance"] == "0"
    assert kedas["cooldownPeriod"] == 60


def test_the_hpa_that_keda_makes_has_the_name_of_the_chart_s_own() -> None:
    name = one(render(), "HorizontalPodAutoscaler")["metadata"]["name"]
    assert scaled_object()["advanced"]["horizontalPodAutoscalerConfig"]["name"] == name == "first-percore-inference"


def test_keda_wants_a_pod_for_each_call_of_this_release_and_a_missing_value_is_an_error() -> None:
    only = trigger()
    assert (only["type"], only["metricType"]) == ("prometheus", "AverageValue")
    assert only["metadata"] == {
        "serverAddress": "http://prometheus-operated.monitoring.svc:9090",
        "query": 'sum by (namespace, service) (percore_in_flight_requests{namespace="here",service="first-percore-gateway"})',
        "threshold": "1",
        "activationThreshold": "0",
        "ignoreNullValues": "false",
    }


@pytest.mark.parametrize(("least", "replicas"), [(0, 1), (1, 1), (3, 3)])
def test_a_lost_metric_keeps_the_pods_that_are_there_and_never_scales_to_zero(least: int, replicas: int) -> None:
    """With a fallback of 0 replicas, KEDA would go on as if there were no calls."""
    fallback = scaled_object(f"autoscaling.minReplicas={least}")["fallback"]
    assert fallback == {"failureThreshold": 3, "replicas": replicas, "behavior": "currentReplicas"}


def test_the_first_call_is_seen_as_soon_as_it_is_scraped() -> None:
    assert scaled_object()["pollingInterval"] == 2
    assert scaled_object("monitoring.interval=1s")["pollingInterval"] == 1


def test_the_address_and_the_authentication_of_keda_are_values() -> None:
    only = trigger("autoscaling.keda.serverAddress=https://thanos:9092", "autoscaling.keda.authenticationRef.name=reader")
    assert only["metadata"]["serverAddress"] == "https://thanos:9092"
    assert only["authenticationRef"] == {"name": "reader"}
    assert "authenticationRef" not in trigger()


def test_a_buffer_means_the_same_to_both_engines_and_only_one_needs_a_recorded_series() -> None:
    [rule] = one(render("autoscaling.spareReplicas=2"), "PrometheusRule", "autoscaling")["spec"]["groups"][0]["rules"]
    assert trigger("autoscaling.spareReplicas=2")["metadata"]["query"] == rule["expr"]
    assert rule["expr"].endswith("}) + 2")
    recorded = [
        each for each in render(KEDA, "autoscaling.spareReplicas=2") if "percore_desired_replicas" in yaml.safe_dump(each)
    ]
    assert recorded == []


@pytest.mark.parametrize("engine", ["hpa", "keda"])
def test_both_engines_can_scale_to_zero_pods(engine: str) -> None:
    objects = render(f"autoscaling.engine={engine}", "autoscaling.minReplicas=0")
    if engine == "hpa":
        assert one(objects, "HorizontalPodAutoscaler")["spec"]["minReplicas"] == 0
    else:
        assert one(objects, "ScaledObject")["spec"]["minReplicaCount"] == 0


def test_a_cluster_without_keda_is_refused_with_the_chart_to_install_or_the_value_to_set() -> None:
    said = refusal(KEDA, more=(*CLUSTER_API_VERSIONS, *WITH_CRDS))
    for word in (
        "ScaledObject",
        "Install KEDA",
        "kedacore/keda",
        "--set autoscaling.engine=hpa",
        "--set autoscaling.enabled=false",
    ):
        assert word in said
    assert render(KEDA, more=(*CLUSTER_API_VERSIONS, *WITH_CRDS, *WITH_KEDA))
    assert render(more=(*CLUSTER_API_VERSIONS, *WITH_CRDS)), "the other engine does not need it"


@pytest.mark.parametrize("value", ["serverAddress=prometheus:9090", "serverAddress=", "server=http://a", "authenticationRef=a"])
def test_a_value_that_keda_cannot_use_is_refused(value: str) -> None:
    assert "autoscaling.keda" in refusal(KEDA, f"autoscaling.keda.{value}")


def test_keda_may_ask_a_prometheus_that_no_operator_runs() -> None:
    objects = render(KEDA, "monitoring.enabled=false", more=(*CLUSTER_API_VERSIONS, *WITH_KEDA))
    assert {each["kind"] for each in objects} & {"ServiceMonitor", "PrometheusRule"} == set()
    assert one(objects, "ScaledObject")["spec"]["triggers"][0]["metadata"] == trigger()["metadata"]
    assert 'service="first-percore-gateway"' in notes(KEDA, "monitoring.enabled=false")
    assert "by other means" not in notes(KEDA)
    assert "--set autoscaling.engine=keda" in refusal("monitoring.enabled=false")


def keda_alone(*values: str) -> Object:
    spec: Object = one(render(*WITHOUT_PROMETHEUS, *values, more=MODERN), "ScaledObject")["spec"]
    return spec


def test_keda_alone_asks_every_gateway_and_adds_their_calls_up() -> None:
    objects = render(*WITHOUT_PROMETHEUS, more=(*MODERN, *CLUSTER_API_VERSIONS, *WITH_KEDA))
    assert {each["kind"] for each in objects} & {"ServiceMonitor", "PrometheusRule", "HorizontalPodAutoscaler"} == set()
    [only] = one(objects, "ScaledObject")["spec"]["triggers"]
    assert (only["type"], only["metricType"]) == ("metrics-api", "AverageValue")
    assert only["metadata"] == {
        "url": "http://first-percore-gateway.here.svc:9090/metrics",
        "format": "prometheus",
        "valueLocation": "percore_in_flight_calls",
        "aggregateFromKubeServiceEndpoints": "true",
        "aggregationType": "sum",
        "targetValue": "1",
        "activationTargetValue": "0",
    }


def test_the_address_that_keda_alone_asks_is_that_of_every_gateway_also_one_that_shuts_down() -> None:
    """KEDA reads the Service, the namespace and the port of the pods from this address."""
    objects = render(*WITHOUT_PROMETHEUS)
    address = urlsplit(one(objects, "ScaledObject")["spec"]["triggers"][0]["metadata"]["url"])
    name, namespace, _ = str(address.hostname).split(".")
    service = one(objects, "Service", name)
    assert (service["metadata"]["namespace"], service["spec"]["publishNotReadyAddresses"]) == (namespace, True)
    [container] = one(objects, "Deployment", "gateway")["spec"]["template"]["spec"]["containers"]
    [port] = service["spec"]["ports"]
    assert {each["name"]: each["containerPort"] for each in container["ports"]}[port["targetPort"]] == address.port


def test_the_metric_that_keda_alone_reads_is_one_series() -> None:
    """KEDA reads the first series that it finds, and ignores all others."""
    wanted = keda_alone()["triggers"][0]["metadata"]["valueLocation"]
    [metric] = [each for each in GatewayMetrics().registry.collect() if each.name == wanted]
    assert [(sample.name, sample.labels) for sample in metric.samples] == [(wanted, {})]


def test_keda_alone_scales_as_keda_with_prometheus_does() -> None:
    values = ("autoscaling.minReplicas=0", "autoscaling.maxReplicas=20", "autoscaling.scaleDownStabilizationSeconds=60")
    alone, asking = keda_alone(*values), scaled_object(*values)
    assert alone.pop("triggers") != asking.pop("triggers")
    assert alone == asking


def test_keda_alone_adds_the_buffer_once_and_not_for_each_gateway() -> None:
    spec = keda_alone("autoscaling.spareReplicas=2")
    [only] = spec["triggers"]
    assert spec["advanced"]["scalingModifiers"] == {
        "formula": f"{only['name']} + 2",
        "metricType": "AverageValue",
        "target": "1",
        "activationTarget": "0",
    }
    assert "scalingModifiers" not in keda_alone()["advanced"]


def test_keda_alone_needs_keda_and_no_prometheus_operator() -> None:
    assert render(*WITHOUT_PROMETHEUS, more=(*CLUSTER_API_VERSIONS, *WITH_KEDA))
    assert "Install KEDA 2.20 or later" in refusal(*WITHOUT_PROMETHEUS, more=CLUSTER_API_VERSIONS)
    for said in (refusal("monitoring.enabled=false"), refusal(more=CLUSTER_API_VERSIONS)):
        assert "--set autoscaling.engine=keda-metrics-api" in said
    said = notes(*WITHOUT_PROMETHEUS)
    assert "KEDA asks the gateways themselves" in said
    assert "Prometheus" not in said


@pytest.mark.parametrize("engine", ["hpa", "keda", "keda-metrics-api"])
def test_the_operator_of_keda_may_read_only_gateways_and_only_with_the_engine_that_reads_them(engine: str) -> None:
    prometheus = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    chosen = f"autoscaling.engine={engine}"
    named = r"networkPolicy.scrapers[0].namespaceSelector.matchLabels.kubernetes\.io/metadata\.name=monitoring"
    objects = render(chosen, named)
    peers = {each: _scrapers(one(objects, "NetworkPolicy", each)) for each in ("gateway", "inference")}
    assert peers["inference"] == [prometheus]
    assert peers["gateway"] == ([prometheus, KEDAS_OPERATOR] if engine == "keda-metrics-api" else [prometheus])
    assert _scrapers(one(render(chosen), "NetworkPolicy", "gateway")) == [], "without scrapers every peer may read"


def _scrapers(policy: Object) -> list[Object]:
    [metrics] = [each for each in policy["spec"]["ingress"] if [port["port"] for port in each["ports"]] == [9090]]
    found: list[Object] = metrics.get("from", [])
    return found


def test_the_notes_do_not_ask_for_prometheus_adapter_if_keda_scales() -> None:
    assert "Install prometheus-adapter" in notes()
    assert "prometheus-adapter" not in notes(KEDA)
    assert "while there is none, calls are queued" in notes("autoscaling.minReplicas=0")
