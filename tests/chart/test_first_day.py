"""What a team tries on the first day: values as people write them, and the errors for values that cannot work."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from percore import settings
from percore.gateway import gateway_settings

from tests.chart.harness import (
    CHART,
    ROOT,
    WITHOUT_AUTOSCALING,
    Object,
    containers,
    environment,
    notes,
    one,
    pod_specs,
    refusal,
    render,
    template,
)


def strict(text: str) -> list[Object]:
    """Read YAML as an API server does: a key that occurs twice is an error."""

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key) for key, _ in node.value]
            assert len(keys) == len(set(keys)), keys
            return super().construct_mapping(node, deep)

    return [each for each in yaml.load_all(text, Loader) if each]


def with_values(folder: Path, text: str) -> list[Object]:
    """Render with a values file."""
    (folder / "values.yaml").write_text(text)
    return render(more=("--values", str(folder / "values.yaml")))


CONTAINER = "kubectl\\.kubernetes\\.io/default-container=mine"
CHART_LABEL = "helm\\.sh/chart=mine"


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (f"podAnnotations.{CONTAINER}", "Deployment"),
        (f"gateway.podAnnotations.{CONTAINER}", "Deployment"),
        (f"monitoring.labels.{CHART_LABEL}", "ServiceMonitor"),
        (f"monitoring.labels.{CHART_LABEL}", "PrometheusRule"),
        (f"monitoring.dashboard.labels.{CHART_LABEL}", "ConfigMap"),
        (f"commonLabels.{CHART_LABEL}", "Service"),
        (f"service.labels.{CHART_LABEL}", "Service"),
    ],
)
def test_a_key_that_the_chart_has_too_is_there_once_with_the_user_s_value(value: str, kind: str) -> None:
    done = template(value)
    assert done.returncode == 0, done.stderr
    found = [each for each in strict(done.stdout) if each["kind"] == kind]
    pods = [each["spec"]["template"] for each in found if kind == "Deployment"]
    maps = [map_ for each in [*found, *pods] for map_ in each["metadata"].values() if isinstance(map_, dict)]
    assert any("mine" in map_.values() for map_ in maps)


@pytest.mark.parametrize("label", ["name", "instance", "component"])
@pytest.mark.parametrize("key", ["commonLabels", "podLabels", "gateway.podLabels", "service.labels", "monitoring.labels"])
def test_labels_by_which_pods_are_selected_cannot_be_changed(key: str, label: str) -> None:
    assert f"{key}: app.kubernetes.io/{label} cannot be changed" in refusal(f"{key}.app\\.kubernetes\\.io/{label}=mine")


QUANTITIES = {
    "2": "2",
    '"2"': "2",
    '"500m"': "500m",
    "0.5": "0.5",
    "1.5Gi": "1.5Gi",
    "2147483648": "2147483648",
    "1e3": "1000",
    '"1e3"': "1e3",
    "1Ti": "1Ti",
}
"""Quantities as people write them in values files, and as the chart renders them."""
PLACES = {
    "memory": ("inference", "containers", 0, "resources", "limits", "memory"),
    "statusServer.cpu": ("inference", "initContainers", 0, "resources", "limits", "cpu"),
    "statusServer.memory": ("inference", "initContainers", 0, "resources", "requests", "memory"),
    "gateway.cpu": ("gateway", "containers", 0, "resources", "requests", "cpu"),
    "gateway.memory": ("gateway", "containers", 0, "resources", "limits", "memory"),
    "ephemeralStorage.tmp": ("inference", "volumes", 1, "emptyDir", "sizeLimit"),
}


@pytest.mark.parametrize("key", PLACES)
def test_a_quantity_is_read_as_kubernetes_reads_it(tmp_path: Path, key: str) -> None:
    group, _, inner = key.partition(".")
    component, *path = PLACES[key]
    for given, rendered in QUANTITIES.items():
        text = f"{group}: {{{inner}: {given}}}" if inner else f"{group}: {given}"
        found: Any = one(with_values(tmp_path, text), "Deployment", str(component))["spec"]["template"]["spec"]
        for step in path:
            found = found[step]
        assert found == rendered, given


@pytest.mark.parametrize("quantity", ["lots", "-1", "1,5Gi", "1 Gi", "1gb", "0"])
def test_a_value_that_is_not_a_quantity_is_refused_by_name(quantity: str) -> None:
    assert "- memory: " in refusal(f"memory={quantity.replace(',', chr(92) + ',')}")


@pytest.mark.parametrize(("cpu", "cores"), [("2", "2"), ('"2"', "2"), ("2000m", "2"), ("2.0", "2"), ('"12"', "12")])
def test_a_worker_has_as_many_whole_cpus_as_its_cpu_says(tmp_path: Path, cpu: str, cores: str) -> None:
    [worker] = one(with_values(tmp_path, f"cpu: {cpu}"), "Deployment", "inference")["spec"]["template"]["spec"]["containers"]
    assert worker["resources"]["limits"]["cpu"] == worker["resources"]["requests"]["cpu"] == cores
    assert environment(worker)["PERCORE_CORES_PER_CALL"] == cores


@pytest.mark.parametrize("cpu", ["1.5", "500m", "2500m", "2000", "1Ki"])
def test_a_cpu_that_is_not_whole_is_refused_with_the_reason(cpu: str) -> None:
    assert f"cpu={cpu}: must be a whole number of CPUs from 1 to 1024" in refusal(f"cpu={cpu}")


@pytest.mark.parametrize("key", ["image.tag", "gateway.image.tag"])
def test_a_tag_may_be_a_number_that_loses_no_digit(tmp_path: Path, key: str) -> None:
    assert any(image.endswith(":1") for image in images(render(f"{key}=1")))
    assert any(image.endswith(":20260101") for image in images(render(f"{key}=20260101")))
    group, _, inner = key.rpartition(".tag")[0].partition(".")
    text = f"{group}: {{{inner}: {{tag: TAG}}}}" if inner else f"{group}: {{tag: TAG}}"
    assert any(image.endswith(":20260101") for image in images(with_values(tmp_path, text.replace("TAG", "20260101"))))
    assert any(image.endswith(":1.10") for image in images(with_values(tmp_path, text.replace("TAG", '"1.10"'))))
    (tmp_path / "values.yaml").write_text(text.replace("TAG", "1.10"))
    assert f"{key}=1.1: a number loses digits" in (said := refusal(more=("--values", str(tmp_path / "values.yaml"))))
    assert f"--set-string {key}=" in said


def images(objects: list[Object]) -> set[str]:
    return {container["image"] for _, spec in pod_specs(objects) for container in containers(spec)}


@pytest.mark.parametrize("key", ["env", "gateway.env"])
def test_the_value_of_a_variable_is_a_string(key: str) -> None:
    assert f"- {key}.0.value: " in refusal(f"{key}[0].name=A", f"{key}[0].value=1")
    assert f"- {key}.0: " in refusal(f"{key}[0].name=A", f"{key}[0].text=x")


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("env", "PERCORE_LOG_LEVL"),
        ("env", "PERCORE_GATEWAY_UPLOADS"),
        ("gateway.env", "PERCORE_CORES_PER_CALL"),
        ("gateway.env", "PERCORE_GATEWAY_UPLOAD"),
    ],
)
def test_a_setting_that_the_process_does_not_have_is_refused(key: str, name: str) -> None:
    assert f"{key}: {name} is no setting of these containers" in refusal(f"{key}[0].name={name}", f"{key}[0].value=a")


def test_a_user_cannot_set_a_variable_that_the_chart_sets() -> None:
    objects = render("gateway.priorityHeader=X-Priority", "handler=a:B")
    for key, component in (("env", "inference"), ("gateway.env", "gateway")):
        container = one(objects, "Deployment", component)["spec"]["template"]["spec"]["containers"][0]
        for each in container["env"]:
            assert f"- {key}.0.name: " in refusal(f"{key}[0].name={each['name']}", f"{key}[0].value=a")


def test_every_setting_can_be_set_by_a_value() -> None:
    of_image = {"PERCORE_HOST", "PERCORE_PORT", "PERCORE_STATUS_PORT", "PERCORE_STATE_DIR"}
    of_values = {"PERCORE_APP", "PERCORE_MODEL_DIGEST"}  # `app`, which excludes `handler`, and `model.digest`
    usual = ("gateway.priorityHeader=X-Priority", "gateway.callerHeader=X-Tenant", "gateway.healthPaths[0]=/", "handler=a:B")
    stored = ("calls.enabled=true", "calls.webhooks.hosts[0]=example.com", "calls.webhooks.existingSecret=signing")
    objects = render(*usual, *stored)
    shared = one(render(*stored, "calls.database.existingSecret=url"), "Deployment", "gateway")
    # The chart sets no PERCORE_GATEWAY_CALLS_ENABLED: with `calls.enabled` it sets a folder or a database instead.
    container = shared["spec"]["template"]["spec"]["containers"][0]
    of_calls = {"PERCORE_GATEWAY_CALLS_ENABLED"} | {each["name"] for each in container["env"]}
    gateway_keys = {each.metadata["key"] for group in gateway_settings.GROUPS.values() for each in _fields(group)}
    for key, component, keys in (("env", "inference", settings.keys()), ("gateway.env", "gateway", gateway_keys)):
        container = one(objects, "Deployment", component)["spec"]["template"]["spec"]["containers"][0]
        others = sorted(keys - of_image - of_values - of_calls - {each["name"] for each in container["env"]})
        given = [
            word for number, name in enumerate(others) for word in (f"{key}[{number}].name={name}", f"{key}[{number}].value=a")
        ]
        found = one(render(*given), "Deployment", component)["spec"]["template"]["spec"]["containers"][0]
        assert set(others) <= {each["name"] for each in found["env"]}


def _fields(group: type[Any]) -> tuple[Any, ...]:
    return tuple(group.__dataclass_fields__.values())


def test_all_processes_log_as_much_as_the_value_says_and_the_gateway_may_differ() -> None:
    objects = render("logLevel=warning", "gateway.logLevel=debug")
    found = {
        container["name"]: environment(container)["PERCORE_LOG_LEVEL"]
        for name, spec in pod_specs(objects)
        if not name.endswith("-test")
        for container in containers(spec)
    }
    assert found == {"status-server": "warning", "inference": "warning", "gateway": "debug"}


def test_alerts_link_to_a_url_of_this_version_unless_another_is_given() -> None:
    assert "monitoring.rules.runbookUrl" in refusal("monitoring.rules.runbookUrl=docs/runbook.md")
    home = yaml.safe_load((CHART / "Chart.yaml").read_text())["home"]
    groups = one(render(), "PrometheusRule", "-rules")["spec"]["groups"]
    found = {rule["annotations"]["runbook_url"] for group in groups for rule in group["rules"] if "alert" in rule}
    assert found
    assert all(each.startswith(f"{home}/blob/v") and "/docs/runbook.md#percore" in each for each in found)


def test_an_alert_that_does_not_exist_cannot_be_left_out() -> None:
    said = refusal("monitoring.rules.disabled={PercoreLogLinesLots}")
    assert "there is no alert PercoreLogLinesLots" in said
    assert "PercoreLogLinesLost" in said
    assert render("monitoring.rules.disabled={PercoreAutoscalerStuck}", "autoscaling.enabled=false")


def test_the_notes_say_that_replicas_has_no_effect_with_autoscaling() -> None:
    assert "replicas=4 has no effect" in notes("replicas=4")
    assert "has no effect" not in notes()
    assert "has no effect" not in notes("replicas=4", *WITHOUT_AUTOSCALING)


def test_helm_waits_longer_for_its_test_than_the_test_may_take() -> None:
    values = ("timeouts.run=7000", "timeouts.load=800")
    deadline = one(render(*values), "Pod")["spec"]["activeDeadlineSeconds"]
    assert deadline >= 7000 + 800
    said = notes(*values, namespace="there")
    seconds = int(said.rsplit("--timeout ", 1)[1].strip().removesuffix("s"))
    assert seconds > deadline


def test_the_notes_say_that_autoscaling_begins_about_a_minute_late() -> None:
    assert "metricsRelistInterval" in notes()
    assert "about a minute" in notes("autoscaling.engine=keda")
    assert "about a minute" not in notes(*WITHOUT_AUTOSCALING)


@pytest.mark.parametrize(("version", "said"), [("1.34.1", True), ("1.35.0", False)])
def test_the_notes_name_the_tolerance_of_an_old_cluster(version: str, said: bool) -> None:
    assert ("tolerates a tenth" in notes(more=("--kube-version", version))) is said


def test_the_guide_tags_every_image_that_it_names() -> None:
    guide = (ROOT / "deploy/README.md").read_text()
    for target in ("inference", "gateway", "demo"):
        assert f"--target {target} -t localhost/percore/{target}:0.1.0" in guide


def test_every_release_of_the_guide_is_in_a_namespace_that_is_named() -> None:
    """Otherwise a reader who copies two commands has two releases, one of them in `default`."""
    pages = [ROOT / "deploy/README.md", ROOT / "docs/quickstart-kubernetes.md", *(ROOT / "docs/operations").glob("*.md")]
    commands = [
        line
        for page in pages
        for line in page.read_text().replace("\\\n", "").splitlines()
        if line.startswith("helm ") and "deploy/helm/percore" in line
    ]
    assert len(commands) > 5
    assert [line for line in commands if "--namespace percore" not in line] == []


def test_docs_look_at_the_metric_that_the_autoscaler_reads() -> None:
    for page in ("docs/runbook.md", "docs/operations/symptoms.md"):
        text = (ROOT / page).read_text()
        assert "{.spec.metrics[0].object.metric.name}" in text
        assert "gateway/percore_in_flight_requests" not in text


@pytest.mark.parametrize(
    "value",
    ["service.loadBalancerClass=a", "service.loadBalancerSourceRanges={10.0.0.0/8}", "service.externalTrafficPolicy=Local"],
)
def test_values_of_a_load_balancer_are_refused_if_there_is_none(value: str) -> None:
    assert "service.type=ClusterIP" in refusal(value)
    assert render(value, "service.type=LoadBalancer")


def test_the_chart_has_the_metadata_that_an_index_of_charts_shows() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    for key in ("home", "icon", "sources", "maintainers", "keywords"):
        assert chart[key], key
    repository, _, path = chart["icon"].removeprefix("https://raw.githubusercontent.com/").partition("/main/")
    assert chart["home"] == f"https://github.com/{repository}"
    assert (ROOT / path).read_text().startswith("<svg")
    pages = {each["url"] for each in yaml.safe_load(chart["annotations"]["artifacthub.io/links"])}
    assert all((ROOT / url.removeprefix(f"{chart['home']}/blob/main/")).exists() for url in pages)
