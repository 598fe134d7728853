"""Rules and dashboard, as the chart renders them."""

import json
import re

import pytest
from percore.gateway.gateway_metrics import GatewayMetrics, label_of
from percore.worker_metrics import DURATION_BUCKETS

from deploy.monitoring import dashboard, queries
from tests.chart.harness import CHART, WITHOUT_AUTOSCALING, Object, one, refusal, render
from tests.promql import selectors


def rules(*values: str, release: str = "first") -> list[Object]:
    """Return every recording and every alert."""
    groups = one(render(*values, release=release), "PrometheusRule", "-rules")["spec"]["groups"]
    return [rule for group in groups for rule in group["rules"]]


def names(found: list[Object]) -> set[str]:
    return {rule["alert"] for rule in found if "alert" in rule}


@pytest.mark.parametrize("values", [("monitoring.rules.enabled=false",), WITHOUT_AUTOSCALING])
def test_the_rules_can_be_switched_off(values: tuple[str, ...]) -> None:
    assert not [each for each in render(*values) if each["metadata"]["name"].endswith("-rules")]


def test_prometheus_finds_the_rules_by_the_labels_by_which_it_finds_the_monitors() -> None:
    rule = one(render("monitoring.labels.release=prometheus"), "PrometheusRule", "-rules")
    assert rule["metadata"]["labels"]["release"] == "prometheus"


def test_objectives_and_thresholds_are_values() -> None:
    given = (
        "successObjective=99.9",
        "queueTimeObjective=97",
        "queueTimeSeconds=300",
        "minimumCalls=7",
        "clientDisconnectPercent=20",
    )
    text = json.dumps(rules(*(f"monitoring.rules.{each}" for each in given)))
    for part in ("14.4 * (1 - 99.9 / 100)", "14.4 * (1 - 97 / 100)", ">= 7", "> 20 / 100", "queued longer than 300s"):
        assert part in text
    assert re.search(r'le=~\\"300\(', text)
    assert 'le=~\\"60(' not in text


def test_an_objective_with_an_alert_that_cannot_fire_is_refused() -> None:
    """With an objective of 93 %, the burn rate is 14.3 if every call fails, which is below the threshold of the alert."""
    assert "monitoring.rules.queueTimeObjective" in refusal("monitoring.rules.queueTimeObjective=93")
    for value in ("100", "100.0", "94.9", "99.9%", "0.999"):
        assert "monitoring.rules.successObjective" in refusal(f"monitoring.rules.successObjective={value}")


def test_the_threshold_of_queue_times_must_be_a_bucket_of_the_histogram() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    allowed = schema["properties"]["monitoring"]["properties"]["rules"]["properties"]["queueTimeSeconds"]["enum"]
    assert allowed == [int(bound) for bound in DURATION_BUCKETS if bound >= 1 and bound.is_integer()]
    assert all(str(seconds) in (CHART / "values.yaml").read_text() for seconds in allowed)


def test_the_rules_count_only_codes_that_the_gateway_has() -> None:
    found = {code for rule in rules() for codes in re.findall(r'code=~"([^"]+)"', rule["expr"]) for code in codes.split("|")}
    samples = [sample for family in GatewayMetrics().registry.collect() for sample in family.samples]
    codes = {sample.labels["code"] for sample in samples if sample.name == "percore_gateway_call_seconds_count"}
    assert found == {code for code in codes if not code.startswith("4")} - {"disconnected"} | {"429"}


def test_only_429_and_every_5xx_count_as_failed() -> None:
    codes = {code for code in map(label_of, map(str, range(200, 600))) if code == "429" or code.startswith("5")}
    assert set(queries.FAILED.split("|")) == codes


def test_a_pod_is_late_after_the_load_timeout_and_five_minutes() -> None:
    late = [rule for rule in rules("timeouts.load=900") if rule.get("alert") == "PercorePodsNotReady"]
    assert {rule["for"] for rule in late} == {"1200s"}
    assert all("1200s" in rule["annotations"]["description"] for rule in late)


def test_alerts_on_an_autoscaler_exist_only_with_that_autoscaler() -> None:
    of_autoscaler = {"PercoreCallsWaitAtMaximum", "PercoreAutoscalerBlind", "PercoreAutoscalerStuck"}
    assert names(rules()) - names(rules("autoscaling.enabled=false")) == of_autoscaler


def test_an_alert_can_be_left_out_routed_and_linked() -> None:
    found = rules(
        "monitoring.rules.disabled={PercoreLogLinesLost}",
        "monitoring.rules.labels.team=models",
        "monitoring.rules.runbookUrl=https://example.com/runbook",
    )
    alerts = [rule for rule in found if "alert" in rule]
    assert names(rules()) - names(found) == {"PercoreLogLinesLost"}
    assert all(rule["labels"]["team"] == "models" for rule in alerts)
    for rule in alerts:
        assert rule["annotations"]["runbook_url"] == f"https://example.com/runbook#{rule['alert'].lower()}"


@pytest.mark.parametrize("release", ["first", "a.b", "my-percore-2"])
def test_every_series_of_every_rule_is_of_this_release_alone(release: str) -> None:
    full = one(render(release=release), "PrometheusRule", "-rules")["metadata"]["name"].removesuffix("-rules")
    for rule in rules(release=release):
        found = selectors(rule["expr"])
        assert found or rule["expr"].startswith("vector("), rule
        for selector in found:
            assert selector.labels["namespace"] == "here"
            named = [selector.labels.get(key, "") for key in ("service", "deployment", "horizontalpodautoscaler", "pod")]
            assert any(each.startswith(f"{full}-") for each in named), selector
        assert rule["labels"]["namespace"] == "here"


def test_grafana_s_sidecar_finds_the_dashboard_by_its_label_and_puts_it_into_a_folder() -> None:
    found = one(render("monitoring.dashboard.annotations.grafana_folder=percore"), "ConfigMap", "-dashboard")
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert found["metadata"]["annotations"] == {"grafana_folder": "percore"}
    more = one(render("monitoring.dashboard.labels.grafana_dashboard=yes"), "ConfigMap", "-dashboard")
    assert more["metadata"]["labels"]["grafana_dashboard"] == "yes"


@pytest.mark.parametrize("release", ["first", "second"])
def test_every_release_ships_the_dashboard_that_is_generated(release: str) -> None:
    found = one(render(release=release), "ConfigMap", "-dashboard")
    assert found["data"].keys() == {"percore.json"}
    assert json.loads(found["data"]["percore.json"]) == json.loads(dashboard.page())
    assert "annotations" not in found["metadata"]


def test_the_dashboard_separates_clusters_by_the_label_that_the_values_name() -> None:
    found = one(render("monitoring.clusterLabel=k8s"), "ConfigMap", "-dashboard")["data"]["percore.json"]
    assert json.loads(found) == json.loads(
        dashboard.page(clusters=True).replace('cluster=\\"', 'k8s=\\"').replace(", cluster)", ", k8s)")
    )
    assert found.count('k8s=\\"$cluster') > 30
    assert "monitoring.clusterLabel" in refusal("monitoring.clusterLabel=a-b")


@pytest.mark.parametrize("values", [("monitoring.dashboard.enabled=false",), WITHOUT_AUTOSCALING])
def test_the_dashboard_can_be_switched_off(values: tuple[str, ...]) -> None:
    assert "ConfigMap" not in {each["kind"] for each in render(*values)}


def test_the_dashboard_counts_the_same_calls_as_the_rules() -> None:
    found = {codes for rule in rules() for codes in re.findall(r'code=~"([^"]+)"', rule["expr"])}
    assert found == {queries.FAILED, queries.VALID}
    assert all(f'code=~\\"{codes}\\"' in dashboard.page() for codes in found)


def test_the_dashboard_reads_recordings_that_the_rules_make() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    read = set(re.findall(r"service:percore_\w+:\w+", dashboard.page()))
    assert read
    assert read <= recorded
