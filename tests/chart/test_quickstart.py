"""The quick start on Kubernetes: its commands fit the chart, the Dockerfile and the version."""

import re
import shlex
from typing import Any

import pytest
import yaml
from percore import __version__

from deploy.monitoring import dashboard
from tests.chart.harness import CHART, CLUSTER_API_VERSIONS, ROOT, WITH_CRDS, helm, one

KEDA = ("--api-versions", "keda.sh/v1alpha1/ScaledObject")
PAGE = (ROOT / "docs/quickstart-kubernetes.md").read_text()
COMMANDS = [
    shlex.split(line, comments=True)
    for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.replace("\\\n", "").splitlines()
]


def commands(*start: str) -> list[list[str]]:
    """Return the commands that begin with these words."""
    return [each for each in COMMANDS if each[: len(start)] == list(start)]


def installed(command: list[str]) -> list[dict[str, Any]]:
    """Return the objects that a `helm install` of the chart would create."""
    assert command[3] == str(CHART.relative_to(ROOT))
    options = [word for word in command[4:] if word != "--create-namespace"]
    done = helm(
        "template", command[2], str(CHART), *options, *CLUSTER_API_VERSIONS, *WITH_CRDS, *KEDA, "--kube-version", "1.35.0"
    )
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


INSTALLS = commands("helm", "install", "percore")


@pytest.mark.parametrize("command", INSTALLS, ids=["hpa", "keda"])
def test_each_install_scales_to_two_pods_and_is_found_by_the_operator(command: list[str]) -> None:
    objects = installed(command)
    monitors = [each for each in objects if each["kind"] == "ServiceMonitor"]
    assert monitors
    assert {each["metadata"]["labels"]["release"] for each in monitors} == {"kube-prometheus-stack"}
    keda = "autoscaling.engine=keda" in command
    scaler = one(objects, "ScaledObject" if keda else "HorizontalPodAutoscaler")["spec"]
    assert scaler["maxReplicaCount" if keda else "maxReplicas"] == 2
    if keda:
        assert "http://prometheus-operated.monitoring.svc:9090" in yaml.safe_dump(scaler)


def test_the_built_images_are_loaded_and_are_the_images_of_the_chart() -> None:
    built = {
        command[command.index("--tag") + 1]: command[command.index("--target") + 1] for command in commands("docker", "build")
    }
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    assert set(built.values()) <= stages
    [load] = commands("kind", "load", "docker-image")
    wanted = {
        container["image"]
        for each in installed(INSTALLS[0])
        if each["kind"] == "Deployment"
        for container in each["spec"]["template"]["spec"]["containers"]
    }
    assert set(load[3:]) == built.keys() == wanted
    assert all(name.endswith(f":{__version__}") for name in wanted)


def test_the_objects_that_the_page_waits_for_and_calls_exist() -> None:
    objects = installed(INSTALLS[0])
    [[*_, target]] = commands("kubectl", "--namespace", "percore", "rollout", "status")
    assert one(objects, "Deployment", "inference")["metadata"]["name"] == target.removeprefix("deployment/")
    assert {port["port"] for port in one(objects, "Service", "percore")["spec"]["ports"]} == {8080}
    assert dashboard.build().title == "percore"


def test_other_charts_have_the_versions_of_continuous_integration() -> None:
    addons = (ROOT / "tests/e2e/addons").read_text()
    for name in ("kube-prometheus-stack", "prometheus-adapter", "keda"):
        [command] = commands("helm", "install", name)
        version = command[command.index("--version") + 1]
        assert re.search(rf"^install {name} \S+ \S+ {re.escape(version)}( |$)", addons, re.MULTILINE), (name, version)
