"""The chart as a dependency of another chart: switched on, switched off, and twice under two aliases."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.harness import CHART, Object, containers, environment, helm, one, pod_specs

Parent = dict[str, Any]


def parent(folder: Path, dependencies: list[Parent], values: Parent) -> list[Object]:
    """Render a parent chart that depends on this one, once for each entry."""
    chart = folder / "parent"
    (chart / "charts").mkdir(parents=True)
    (chart / "charts/percore").symlink_to(CHART)
    described = [{"name": "percore", "version": "*", **each} for each in dependencies]
    head = {"apiVersion": "v2", "name": "parent", "version": "1.0.0", "dependencies": described}
    (chart / "Chart.yaml").write_text(yaml.safe_dump(head))
    (chart / "values.yaml").write_text(yaml.safe_dump(values))
    done = helm("template", "first", str(chart), "--namespace", "here")
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


@pytest.mark.parametrize("enabled", [True, False])
def test_a_parent_chart_switches_it_on_and_off(tmp_path: Path, enabled: bool) -> None:
    objects = parent(tmp_path, [{"condition": "percore.enabled"}], {"percore": {"enabled": enabled}})
    assert bool(objects) is enabled


@pytest.mark.parametrize(
    "aliases", [("small", "large"), ("f", "first"), ("Large_Models", "gateway"), ("percore-a", "percore-a-b")]
)
def test_two_aliases_share_no_name_and_no_pod(tmp_path: Path, aliases: tuple[str, str]) -> None:
    objects = parent(tmp_path, [{"alias": alias} for alias in aliases], {})
    names = [(each["kind"], each["metadata"]["name"]) for each in objects]
    assert len(names) == len(set(names))
    pods = [each["spec"]["template"]["metadata"]["labels"] for each in objects if each["kind"] == "Deployment"]
    services = [each["spec"]["selector"] for each in objects if each["kind"] == "Service"]
    assert (len(pods), len(services)) == (4, 6)
    for selector in services:
        assert len([labels for labels in pods if selector.items() <= labels.items()]) == 1
    for monitor in (each for each in objects if each["kind"] == "ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        assert (
            len([each for each in objects if each["kind"] == "Service" and wanted <= each["metadata"]["labels"].items()]) == 1
        )


def test_a_gateway_of_one_alias_may_patch_the_pods_of_no_other(tmp_path: Path) -> None:
    objects = parent(tmp_path, [{"alias": "small"}, {"alias": "large"}], {})
    rules = one(objects, "ValidatingAdmissionPolicy", "first-small-gateway")["spec"]["validations"][0]["expression"]
    assert 'optional.of("small")' in rules
    assert "large" not in rules


def test_null_in_a_parent_chart_drops_a_key_of_a_security_context(tmp_path: Path) -> None:
    values = {"percore": {"podSecurityContext": {"runAsUser": None, "fsGroup": None}}}
    for _, spec in pod_specs(parent(tmp_path, [{}], values)):
        assert spec["securityContext"].keys() == {"runAsNonRoot", "runAsGroup", "seccompProfile"}


def test_the_test_pod_of_an_alias_calls_the_gateway_of_the_alias(tmp_path: Path) -> None:
    objects = parent(tmp_path, [{"alias": "small"}], {})
    [container] = containers(one(objects, "Pod")["spec"])
    assert environment(container)["GATEWAY"] == "http://first-small:8080"
