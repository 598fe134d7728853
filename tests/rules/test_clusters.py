"""Rules for several clusters treat each cluster separately, by the label in the chart's values."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.rules.harness import STEP, gateway, groups, kubernetes, promtool

LABEL = "monitoring.clusterLabel=k8s"
GATEWAYS, PODS = {"deployment": "first-percore-gateway"}, {"deployment": "first-percore-inference"}
WANTED, READY = "kube_deployment_spec_replicas", "kube_deployment_status_replicas_ready"


def rule_of(alert: str, severity: str) -> dict[str, Any]:
    [rule] = [
        rule
        for group in groups(LABEL)
        for rule in group["rules"]
        if rule.get("alert") == alert and rule["labels"]["severity"] == severity
    ]
    return dict(rule)


def check(rule: dict[str, Any], minute: float, series: Mapping[str, str], clusters: list[str], folder: Path) -> None:
    """Check with promtool that an alert fires for these clusters and for no other."""
    rule = {**rule, "annotations": {"summary": "any"}}
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "one", "rules": [rule]}]}))
    expected = [{"exp_labels": {**rule["labels"], "k8s": each}, "exp_annotations": rule["annotations"]} for each in clusters]
    look = {"alertname": rule["alert"], "eval_time": f"{round(minute * 60)}s", "exp_alerts": expected}
    given = [{"series": name, "values": values} for name, values in series.items()]
    test = {"interval": f"{STEP}s", "input_series": given, "alert_rule_test": [look]}
    document = {"rule_files": ["rules.yaml"], "evaluation_interval": f"{STEP}s", "tests": [test]}
    (folder / "test.yaml").write_text(yaml.safe_dump(document))
    promtool("test", "rules", folder / "test.yaml")


def test_a_cluster_without_a_ready_gateway_is_not_hidden_by_another_that_has_one(tmp_path: Path) -> None:
    series = {kubernetes(READY, k8s="a", **GATEWAYS): "0x20", kubernetes(READY, k8s="b", **GATEWAYS): "1x20"}
    check(rule_of("PercoreNoGatewayReady", "critical"), 2, series, ["a"], tmp_path)


def test_a_cluster_without_the_metric_is_not_hidden_by_another_that_has_it(tmp_path: Path) -> None:
    series = {kubernetes(name, k8s=each, **GATEWAYS): "1x40" for name in (WANTED, READY) for each in "ab"}
    series[gateway("percore_in_flight_requests", k8s="b", state="queued")] = "0x40"
    check(rule_of("PercoreMetricMissing", "critical"), 6, series, ["a"], tmp_path)


def test_calls_of_one_cluster_do_not_wait_for_the_pods_of_another(tmp_path: Path) -> None:
    series = {
        kubernetes(WANTED, k8s="a", **PODS): "2x80",
        kubernetes(READY, k8s="a", **PODS): "2x80",
        kubernetes(WANTED, k8s="b", **PODS): "9x80",
        kubernetes(READY, k8s="b", **PODS): "0x80",
        gateway("percore_in_flight_requests", k8s="a", state="queued"): "5x80",
    }
    rule = rule_of("PercorePodsNotReady", "critical")
    check(rule, 30, series, [], tmp_path)
    series[gateway("percore_in_flight_requests", k8s="b", state="queued")] = "5x80"
    check(rule, 30, series, ["b"], tmp_path)


def test_every_aggregation_and_every_match_names_the_cluster() -> None:
    for rule in (rule for group in groups(LABEL) for rule in group["rules"]):
        assert "vector(" not in rule["expr"], "it has no label of a cluster"
        for labels in re.findall(r"\b(?:by|on) \(([^)]*)\)", rule["expr"]):
            assert labels.startswith("k8s, namespace"), rule["expr"]


def test_promtool_finds_nothing_wrong_with_the_rules_of_several_clusters(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": groups(LABEL)}))
    promtool("check", "rules", "--lint-fatal", tmp_path / "rules.yaml")
