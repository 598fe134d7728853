"""The gateway answers reads itself, without a worker."""

import concurrent.futures
import signal
import time

import requests

from harness.gateway import PREDICT, Gateway, endpoint_of, outcome
from harness.service import FAULTY, Service, eventually

READS = (
    "/v1/models/default",
    "/v1/models/default/versions/1",
    "/v1/models/default/metadata",
    "/v2",
    "/v2/health/ready",
    "/v2/models/default",
    "/v2/models/default/ready",
    "/openapi.json",
)


def test_before_the_pods_are_known_reads_are_not_ready_and_the_gateway_is_live() -> None:
    with Gateway() as gateway:
        live = gateway.get("/v2/health/live")
        assert (live.status_code, live.json()) == (200, {"live": True})
        for path in ("/v1/models/default", "/v1/models/default/metadata", "/openapi.json"):
            answer = gateway.get(path)
            assert (answer.status_code, answer.json()["code"]) == (503, "not-ready")
            assert int(answer.headers["Retry-After"]) > 0


def test_the_gateway_is_ready_once_it_has_a_list_of_pods_even_an_empty_one() -> None:
    with Gateway(known=False) as gateway:
        assert gateway.get_status("/readyz").status_code == 503
        assert gateway.get("/v2/health/ready").status_code == 503
        gateway.set_endpoints()
        eventually(lambda: gateway.get_status("/readyz").status_code == 200)
        assert gateway.get("/v2/health/ready").json() == {"ready": True}


def test_paths_for_operators_are_not_served_to_callers() -> None:
    with Gateway() as gateway:
        for path in ("/", "/metrics", "/livez", "/readyz", "/slot", "/catalog"):
            answer = gateway.get(path)
            assert (answer.status_code, answer.json()["code"]) == (404, "not-found"), path


def test_reads_are_answered_while_every_pod_computes_and_after_all_are_gone() -> None:
    with Service(pod=True, handler=FAULTY).ready() as pod, Gateway(endpoint_of(pod)) as gateway:
        eventually(lambda: gateway.get("/v1/models/default").status_code == 200)
        expected = {path: pod.get(path).json() for path in READS}
        calls = [gateway.send_call(b'{"inputs": {"sleep": 1.5}}') for _ in range(2)]
        eventually(lambda: gateway.queued() == 1 and gateway.executing() == 1)
        for path in READS:
            began = time.monotonic()
            answer = gateway.get(path)
            assert (answer.status_code, answer.json()) == (200, expected[path])
            assert time.monotonic() - began < 1
            head = requests.head(gateway.url(path), timeout=5)
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["Content-Length"] == str(len(answer.content))
        assert [outcome(each) for each in calls] == [(200, "")] * 2
        assert gateway.get("/v1/models/other").status_code == 404
        gateway.set_endpoints()
        eventually(lambda: gateway.metric("percore_gateway_pods") == 0)
        for path in READS:
            assert (gateway.get(path).status_code, gateway.get(path).json()) == (200, expected[path])


def test_a_pod_that_is_killed_in_a_run_costs_that_call_alone() -> None:
    with Service(pod=True, handler=FAULTY).ready() as pod, Gateway(endpoint_of(pod)) as gateway:
        first = gateway.post(b'{"inputs": {"x": 1}}', PREDICT)
        assert first.status_code == 200
        with concurrent.futures.ThreadPoolExecutor() as pool:
            killed = pool.submit(gateway.post, b'{"inputs": {"signal": %d}}' % signal.SIGKILL)
            eventually(lambda: killed.done() or gateway.executing() == 1)
            others = [pool.submit(gateway.post, b'{"inputs": {"x": 1}}') for _ in range(5)]
            answer = killed.result(30)
            assert (answer.status_code, answer.json()["code"]) == (502, "pod-lost")
            assert [each.result(60).status_code for each in others] == [200] * 5
