"""Callers outside the cluster: an Ingress or an HTTPRoute, with timeouts that do not cut a call of minutes."""

import json
import re

import kubernetes_validate
import pytest
import yaml

from deploy.helm import ingress_table
from tests.chart.harness import CHART, CLUSTER_API_VERSIONS, ROOT, WITH_CRDS, Object, notes, one, refusal, render

ON = "ingress.enabled=true"
TIMEOUTS = ("timeouts.queue=1000", "timeouts.run=2000", "timeouts.body=30", "timeouts.answer=30", "maxBodyBytes=12345")
CALL_SECONDS = 1000 + 2000 + 2 * 30 + 60
"""The sum of the four timeouts and a minute."""
ROUTE = ("httpRoute.enabled=true", "httpRoute.parentRefs[0].name=front")
SETTINGS = {
    "nginx": {"proxy-read-timeout": str(CALL_SECONDS), "proxy-send-timeout": str(CALL_SECONDS), "proxy-body-size": "12345"},
    "traefik": {},
    "haproxy": {"timeout-server": f"{CALL_SECONDS}s"},
    "openshift": {"timeout": f"{CALL_SECONDS}s"},
    "gke": {},
    "alb": {
        "load-balancer-attributes": f"idle_timeout.timeout_seconds={CALL_SECONDS}",
        "target-type": "ip",
        "healthcheck-path": "/-/ready",
    },
}


def ingress(*values: str) -> Object:
    return one(render(ON, *values), "Ingress")


def test_there_is_no_ingress_and_no_route_by_default() -> None:
    assert not {each["kind"] for each in render()} & {"Ingress", "HTTPRoute", "BackendConfig"}


def test_the_values_name_the_controllers_that_the_chart_knows() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    known = schema["properties"]["ingress"]["properties"]["controller"]["enum"]
    assert set(known) == {"", *ingress_table.controllers()} == {"", *SETTINGS}


@pytest.mark.parametrize("controller", SETTINGS)
def test_a_controller_has_the_timeouts_that_follow_from_the_limits(controller: str) -> None:
    found = ingress(*TIMEOUTS, f"ingress.controller={controller}", "gateway.idleTimeoutSeconds=5000")
    annotations = found["metadata"].get("annotations", {})
    assert {key.rpartition("/")[2]: value for key, value in annotations.items()} == SETTINGS[controller]


@pytest.mark.parametrize("controller", ["", *SETTINGS])
def test_kubernetes_knows_every_ingress(controller: str) -> None:
    values = ("gateway.idleTimeoutSeconds=5000", "ingress.hosts[0].host=a.example.com")
    found = ingress(f"ingress.controller={controller}", *values)
    kubernetes_validate.validate(found, kubernetes_validate.latest_version(), strict=True)


def test_an_annotation_of_the_user_wins() -> None:
    key = "nginx\\.ingress\\.kubernetes\\.io/proxy-read-timeout"
    found = ingress("ingress.controller=nginx", f"ingress.annotations.{key}=5s", "ingress.annotations.a=b")
    assert found["metadata"]["annotations"]["nginx.ingress.kubernetes.io/proxy-read-timeout"] == "5s"
    assert found["metadata"]["annotations"]["a"] == "b"


def test_gke_gets_its_timeout_and_its_health_check_by_a_backend_config_of_the_service() -> None:
    objects = render(ON, *TIMEOUTS, "ingress.controller=gke", "service.annotations.a=b")
    config = one(objects, "BackendConfig")
    assert config["spec"] == {
        "timeoutSec": CALL_SECONDS,
        "healthCheck": {"type": "HTTP", "requestPath": "/-/ready", "port": 8080},
    }
    service = one(objects, "Service", "first-percore")
    assert json.loads(service["metadata"]["annotations"]["cloud.google.com/backend-config"]) == {"default": "first-percore"}
    assert service["metadata"]["annotations"]["a"] == "b"
    assert "annotations" not in one(render("ingress.controller=gke"), "Service", "first-percore")["metadata"]


def test_a_controller_that_keeps_connections_longer_than_the_gateway_is_refused() -> None:
    said = refusal(ON, *TIMEOUTS, "ingress.controller=alb")
    assert f"it keeps idle connections to a gateway for {CALL_SECONDS}s" in said
    assert f"--set gateway.idleTimeoutSeconds={CALL_SECONDS + 20}" in said
    assert render(ON, *TIMEOUTS, "ingress.controller=alb", f"gateway.idleTimeoutSeconds={CALL_SECONDS + 20}")
    assert "for 60s" in refusal(ON, "ingress.controller=nginx", "gateway.idleTimeoutSeconds=60")
    assert render("ingress.controller=alb"), "without an Ingress the controller has no effect"


def test_the_timeout_of_a_load_balancer_is_at_most_its_maximum_and_the_notes_say_so() -> None:
    long = ("ingress.controller=alb", "gateway.idleTimeoutSeconds=4020")
    found = ingress(*long)["metadata"]["annotations"]
    assert found["alb.ingress.kubernetes.io/load-balancer-attributes"] == "idle_timeout.timeout_seconds=4000"
    assert "ends a call after 4000 seconds at most" in notes(ON, *long)
    assert "seconds at most" not in notes(ON, *TIMEOUTS, *long)
    assert "ingress.controller is not set" in notes(ON)
    assert "ingress.controller is not set" not in notes(ON, "ingress.controller=nginx")
    assert "has no authentication" not in notes()
    assert "has no authentication" in notes(*ROUTE)


def test_hosts_paths_tls_and_class_arrive() -> None:
    spec = ingress(
        "ingress.className=front",
        "ingress.labels.a=b",
        "ingress.hosts[0].host=a.example.com",
        "ingress.hosts[1].host=b.example.com",
        "ingress.hosts[1].paths[0].path=/v1",
        "ingress.hosts[1].paths[0].pathType=Exact",
        "ingress.tls[0].secretName=cert",
    )["spec"]
    assert (spec["ingressClassName"], spec["tls"]) == ("front", [{"secretName": "cert"}])
    found = [(rule["host"], path["path"], path["pathType"]) for rule in spec["rules"] for path in rule["http"]["paths"]]
    assert found == [("a.example.com", "/", "Prefix"), ("b.example.com", "/v1", "Exact")]
    assert ingress("ingress.labels.a=b")["metadata"]["labels"]["a"] == "b"


def test_without_hosts_every_host_is_taken_and_calls_go_to_the_gateway() -> None:
    [rule] = ingress("service.port=80")["spec"]["rules"]
    assert "host" not in rule
    assert rule["http"]["paths"][0]["backend"]["service"] == {"name": "first-percore", "port": {"name": "calls"}}


def test_a_route_has_the_timeout_that_follows_from_the_limits() -> None:
    [rule] = one(render(*ROUTE, *TIMEOUTS), "HTTPRoute")["spec"]["rules"]
    assert rule["timeouts"] == {"request": "0h52m0s"}
    assert rule["backendRefs"] == [{"name": "first-percore", "port": 8080}]
    assert rule["matches"] == [{"path": {"type": "PathPrefix", "value": "/"}}]
    assert one(render(*ROUTE, "httpRoute.timeout=0s"), "HTTPRoute")["spec"]["rules"][0]["timeouts"] == {"request": "0s"}
    assert "timeouts" not in one(render(*ROUTE, "httpRoute.timeout=none"), "HTTPRoute")["spec"]["rules"][0]


@pytest.mark.parametrize("limit", [1, 604800])
def test_the_timeout_of_a_route_is_written_as_the_gateway_api_takes_it(limit: int) -> None:
    objects = render(*ROUTE, *(f"timeouts.{name}={limit}" for name in ("queue", "run", "body", "answer")))
    text = one(objects, "HTTPRoute")["spec"]["rules"][0]["timeouts"]["request"]
    assert re.fullmatch(r"([0-9]{1,5}(h|m|s|ms)){1,4}", text)
    seconds = sum(int(number) * {"h": 3600, "m": 60, "s": 1}[unit] for number, unit in re.findall(r"(\d+)(h|m|s)", text))
    assert seconds == 4 * limit + 60


def test_a_route_has_its_values_and_a_missing_one_is_named() -> None:
    more = ("httpRoute.hostnames={a.example.com}", "httpRoute.filters[0].type=RequestMirror", "httpRoute.annotations.a=b")
    found = one(render(*ROUTE, *more, "httpRoute.labels.a=b"), "HTTPRoute")
    assert found["spec"]["parentRefs"] == [{"name": "front"}]
    assert found["spec"]["hostnames"] == ["a.example.com"]
    assert found["spec"]["rules"][0]["filters"] == [{"type": "RequestMirror"}]
    assert found["metadata"]["annotations"] == {"a": "b"}
    assert found["metadata"]["labels"]["a"] == "b"
    assert "httpRoute.parentRefs must name the Gateway" in refusal("httpRoute.enabled=true")
    assert "- httpRoute.timeout: " in refusal(*ROUTE, "httpRoute.timeout=2 hours")


def test_a_cluster_without_the_gateway_api_is_refused_with_the_value_to_set() -> None:
    said = refusal(*ROUTE, more=(*CLUSTER_API_VERSIONS, *WITH_CRDS))
    assert "this cluster has no HTTPRoute" in said
    assert "--set ingress.enabled=true" in said
    assert render(*ROUTE, more=(*CLUSTER_API_VERSIONS, *WITH_CRDS, "--api-versions", "gateway.networking.k8s.io/v1/HTTPRoute"))


def test_the_guide_has_the_annotations_that_the_chart_renders() -> None:
    page = (ROOT / "docs/operations/load-balancers.md").read_text()
    table = page.partition("<!-- controllers:begin -->")[2].partition("<!-- controllers:end -->")[0]
    for controller in SETTINGS:
        objects = render(ON, f"ingress.controller={controller}", "gateway.idleTimeoutSeconds=5000", release="percore")
        [service] = [each for each in objects if each["kind"] == "Service" and each["metadata"]["name"] == "percore"]
        for each in (one(objects, "Ingress"), service):
            for key, value in each["metadata"].get("annotations", {}).items():
                [shown] = [code for code in re.findall(r"`([^`]+)`", table) if code.startswith(f"{key}: ")]
                assert yaml.safe_load(shown) == {key: value}
