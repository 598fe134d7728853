"""What is read only: answered by exporters, or by the gateway itself, and never queued."""

import pytest
import requests

from tests.gateway.harness import Gateway, Pod, needs_haproxy, outcomes
from tests.service.harness import eventually

pytestmark = needs_haproxy


def test_while_every_pod_computes_and_calls_wait_reads_are_answered_by_exporters() -> None:
    with Gateway() as gateway, Pod() as pod:
        gateway.know(pod.endpoint())
        calls = [gateway.ask(seconds=0.7) for _ in range(3)]
        eventually(lambda: gateway.waiting() == 2)
        for path in ("/v1/models/default", "/v1/models/default/metadata", "/v2", "/v2/health/ready", "/openapi.json"):
            answer = gateway.get(path)
            assert (answer.status_code, answer.json()["line"]) == (200, f"GET {path} HTTP/1.1")
            assert answer.json()["exporter"] == pod.exporter_port
        assert outcomes(calls) == [(200, "")] * 3
        assert len(pod.calls) == 3
        eventually(lambda: len(gateway.access_log()) >= 3)
        assert gateway.metric("percore_gateway_call_duration_seconds_count") == 3


def test_at_zero_pods_the_gateway_is_live_and_not_ready() -> None:
    with Gateway() as gateway:
        assert (gateway.get("/v2/health/live").status_code, gateway.get("/v2/health/live").json()) == (200, {"live": True})
        for path in ("/v2/health/ready", "/v1/models/default", "/openapi.json"):
            answer = gateway.get(path)
            assert (answer.status_code, answer.json()["code"]) == (503, "not-ready")
            assert int(answer.headers["Retry-After"]) > 0
            assert answer.headers["X-Request-ID"]
        assert requests.head(gateway.url("/v2/health/live"), timeout=5).content == b""


@pytest.mark.parametrize("path", ["/", "/metrics", "/livez", "/readyz", "/slot", "/v1", "/v2x", "/nowhere"])
def test_what_exporters_say_to_operators_is_not_for_callers(path: str) -> None:
    with Gateway() as gateway, Pod() as pod:
        gateway.know(pod.endpoint())
        answer = gateway.get(path)
        assert (answer.status_code, answer.json()["code"]) == (404, "not-found")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/models/m:guess"),
        ("POST", "/v2/models/m"),
        ("PUT", "/v1/models/m:predict"),
        ("GET", "/v1/models/m:predict"),
    ],
)
def test_what_no_worker_would_compute_takes_no_pod(method: str, path: str) -> None:
    with Gateway() as gateway, Pod() as pod:
        gateway.know(pod.endpoint())
        eventually(lambda: gateway.get("/v2").status_code == 200)
        answer = requests.request(method, gateway.url(path), data=b"{}", timeout=5)
        assert answer.json()["exporter"] == pod.exporter_port
        assert not pod.calls


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/m:predict",
        "/v1/models/m/versions/1:classify",
        "/v1/models/m/labels/stable:regress",
        "/v1/models/m%3Apredict",
        "/v2/models/m/infer",
        "/v2/models/m/versions/1/infer",
    ],
)
def test_every_route_that_computes_goes_to_a_pod(path: str) -> None:
    with Gateway() as gateway, Pod() as pod:
        gateway.know(pod.endpoint())
        assert requests.post(gateway.url(path), data=b"{}", timeout=5).json()["head"].startswith(f"POST {path} ")
        assert len(pod.calls) == 1


def test_a_read_is_asked_of_another_exporter_where_one_is_gone() -> None:
    with Gateway() as gateway, Pod() as gone, Pod() as pod:
        gateway.know(gone.endpoint(), pod.endpoint())
        eventually(lambda: gateway.pods("idle") == 2)
        gone.close_exporter()
        for _ in range(4):
            assert gateway.get("/v2").json()["exporter"] == pod.exporter_port
