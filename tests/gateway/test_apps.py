"""The gateway in front of an app: every request is a call, except requests that the gateway answers itself."""

import itertools
import threading

import pytest
import requests

from harness.gateway import Exchange, Gateway, Worker, endpoint_of, holding, outcome
from harness.service import Service, eventually

APP = "tests.service.apps:app"


def say_what_came(exchange: Exchange) -> None:
    """Answer with the request line; answer HEAD with the size of that line."""
    exchange.reserve()
    body = exchange.receive()
    line = exchange.head.partition(b"\r\n")[0]
    text = line + b" " + body
    if line.startswith(b"HEAD"):
        exchange.answer(b"", "200 OK", f"Content-Length: {len(text)}", length=False)
    else:
        exchange.answer(text)


METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
PATHS = ["/", "/v1/models/default", "/a%20b//c?x=1&y=%2F&x=2", "/openapi.json", "/-ready"]


def test_every_method_and_every_path_is_a_call_and_the_query_is_kept() -> None:
    with Worker(say_what_came) as worker, Gateway(worker.endpoint, app=APP) as gateway:
        for method, path in itertools.product(METHODS, PATHS):
            answer = requests.request(method, gateway.url(path), data=b"body", timeout=30)
            assert answer.content == f"{method} {path} HTTP/1.1 body".encode()
            assert answer.headers["Server-Timing"].startswith("queue;dur=")
            assert answer.headers["X-Request-ID"]
        assert len(worker.runs) == 30
        eventually(lambda: len(gateway.call_log()) == 30)
        eventually(lambda: gateway.metric("percore_gateway_call_seconds_count", code="200") == 30)


def test_an_answer_to_head_has_the_size_and_no_body() -> None:
    with Worker(say_what_came) as worker, Gateway(worker.endpoint, app=APP) as gateway, requests.Session() as session:
        answer = session.head(gateway.url("/page"), timeout=30)
        assert (answer.status_code, answer.content, answer.headers["Content-Length"]) == (200, b"", "20")
        assert session.get(gateway.url("/page"), timeout=30).content == b"GET /page HTTP/1.1 "


def test_without_an_app_a_get_is_a_read_and_takes_no_worker() -> None:
    with Worker(say_what_came) as worker, Gateway(worker.endpoint) as gateway:
        assert gateway.get("/").status_code == 404
        assert not worker.connections


@pytest.mark.parametrize("app", ["", APP])
def test_the_paths_of_the_gateway_need_no_pod_and_are_no_calls(app: str) -> None:
    with Gateway(known=False, app=app, gateway_health_paths="/,/health") as gateway:
        for path in ("/-/ready", "/%2d/ready", "/", "/health", "/%68ealth?full=1"):
            answer = gateway.get(path)
            assert (answer.status_code, answer.json()["code"]) == (503, "not-ready"), path
        assert gateway.get("/-/live").status_code == 200
        gateway.set_endpoints()
        eventually(lambda: gateway.get("/-/ready").status_code == 200)
        for path in ("/-/ready", "/-/live", "/", "/health", "/%68ealth?full=1"):
            answer = gateway.get(path)
            assert (answer.status_code, answer.json()) == (200, {"status": "ok"}), path
        assert requests.head(gateway.url("/health"), timeout=10).status_code == 200
        assert requests.post(gateway.url("/health"), data=b"x" * 100_000, timeout=10).status_code == 200
        assert gateway.get("/-/nothing").json()["code"] == "not-found"
        assert gateway.post(path="/-/ready").json()["code"] == "method-not-allowed"
        assert gateway.queued() == 0
        assert gateway.call_log() == []
        assert gateway.metric("percore_gateway_call_seconds_count") == 0


def test_the_paths_of_the_gateway_answer_while_every_pod_computes() -> None:
    release = threading.Event()
    with Worker(holding(release)) as worker, Gateway(worker.endpoint, app=APP, gateway_health_paths="/") as gateway:
        calls = [gateway.send_call(b"a"), gateway.send_call(b"b")]
        eventually(lambda: gateway.executing() == 1 and gateway.queued() == 1)
        assert [gateway.get(path).status_code for path in ("/-/ready", "/")] == [200, 200]
        release.set()
        assert [outcome(each) for each in calls] == [(200, "")] * 2
        assert len(worker.runs) == 2


def test_a_real_pod_serves_an_app_through_the_gateway_as_it_does_alone() -> None:
    with Service(pod=True, app=APP).ready() as pod, Gateway(endpoint_of(pod), app=APP) as gateway:
        for path in ("/", "/nowhere", "/forbidden", "/seen/a%20b?x=%2F"):
            alone = requests.get(pod.url(path), timeout=30)
            through = gateway.get(path, headers={"Percore-Client": "6.6.6.6"})
            assert (through.status_code, through.headers["Content-Type"]) == (alone.status_code, alone.headers["Content-Type"])
            if path.startswith("/seen"):
                assert through.json()["environ"] == alone.json()["environ"]
            else:
                assert through.content == alone.content
        assert eventually(lambda: pod.metric("percore_calls_total", code="200", model="/seen/<path:rest>") == 2)
        assert pod.get("/v1/models/app").status_code == 200
