"""Statements of the operations guide about the chart, checked by rendering it."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.harness import ROOT, WITHOUT_AUTOSCALING, render

NODES = (ROOT / "docs/operations/nodes.md").read_text()
VALUES = re.findall(r"^```yaml\n(# values.yaml\n.*?)^```", NODES, re.MULTILINE | re.DOTALL)


def pods(component: str, *values: str, more: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the pod template of a Deployment of the chart."""
    deployments = [each for each in render(*values, *WITHOUT_AUTOSCALING, more=more) if each["kind"] == "Deployment"]
    [found] = [each for each in deployments if each["metadata"]["name"].endswith(component)]
    template: dict[str, Any] = found["spec"]["template"]
    return template


def test_grace_periods_are_those_of_the_page_on_nodes() -> None:
    limits = (
        "timeouts.run=700",
        "timeouts.body=11",
        "timeouts.answer=13",
        "timeouts.queue=5000",
        "gateway.shutdownDelaySeconds=7",
    )
    pod = pods("-inference", *limits)["spec"]["terminationGracePeriodSeconds"]
    gateway = pods("-gateway", *limits)["spec"]["terminationGracePeriodSeconds"]
    assert "`timeouts.run` + `timeouts.body` + `timeouts.answer` + 45 seconds" in NODES
    assert pod == 700 + 11 + 13 + 45
    assert "gateway is longer by `timeouts.queue` + `gateway.shutdownDelaySeconds` + 45 seconds" in " ".join(NODES.split())
    assert gateway == pod + 5000 + 7 + 45


@pytest.mark.parametrize("block", VALUES)
def test_the_values_of_the_page_on_nodes_arrive_in_the_pods(block: str, tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    path.write_text(block)
    found, values = pods("-inference", more=("--values", str(path))), yaml.safe_load(block)
    assert found["metadata"]["annotations"].items() >= values.get("podAnnotations", {}).items()
    for name in {"nodeSelector", "tolerations"} & values.keys():
        assert found["spec"][name] == values[name]


def test_the_page_on_nodes_has_values_for_a_pool_and_for_annotations() -> None:
    assert [next(iter(yaml.safe_load(block))) for block in VALUES] == ["nodeSelector", "podAnnotations"]
