"""The real client of Kubernetes, with a small fake API server."""

import contextlib
import json
import queue
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest
from kubernetes.client import ApiClient, Configuration
from percore.gateway import cluster as module
from percore.gateway.cluster import COST, ApiError, Cluster
from percore.gateway.endpoints import Endpoints, Publish
from percore.gateway.gateway_settings import load

from harness.service import eventually

Event = dict[str, Any] | None
CUT: Event = {}


def slice_of(name: str, *pods: str, version: int = 1) -> dict[str, Any]:
    endpoints = [
        {"addresses": [f"10.0.0.{ord(pod)}"], "conditions": {"ready": True}, "targetRef": {"kind": "Pod", "name": pod}}
        for pod in pods
    ]
    return {"addressType": "IPv4", "metadata": {"name": name, "resourceVersion": str(version)}, "endpoints": endpoints}


class Handler(BaseHTTPRequestHandler):
    """Answers with the data of its ApiServer."""

    protocol_version = "HTTP/1.1"
    api: "ApiServer"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        url = urlparse(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        self.api.asked.append((url.path, query))
        if self.api.failures:
            self.answer(self.api.failures.pop(0), {"message": "failed as asked"})
        elif "watch" in query:
            self.stream()
        elif url.path.endswith("/pods"):
            self.api.accepted = self.headers["Accept"]
            self.answer(200, {"metadata": {}, "items": self.api.pods})
        else:
            self.answer(200, {"metadata": {"resourceVersion": "5"}, "items": self.api.slices})

    def do_PATCH(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.api.patched.append((self.path, self.headers["Content-Type"], body))
        self.answer(self.api.patch_status, {"kind": "Pod"})

    def answer(self, status: int, document: Any) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while (event := self.api.events.get()) is not None:
            if event == CUT:
                self.close_connection = True
                return
            data = json.dumps(event).encode() + b"\n"
            for part in (data[:10], data[10:]):  # a line may come in several pieces
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                self.wfile.flush()
            if event["type"] == "ERROR":
                break
        self.wfile.write(b"0\r\n\r\n")


class ApiServer:
    """Lists ``slices``, and streams the objects of ``events`` to each watch; None ends the stream."""

    def __init__(self) -> None:
        self.slices = [slice_of("s", "a")]
        self.events: queue.Queue[Event] = queue.Queue()
        self.failures: list[int] = []
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.patched: list[tuple[str, str, dict[str, Any]]] = []
        self.patch_status = 200
        self.pods: list[dict[str, Any]] = []
        self.accepted = ""
        self.ended = False
        self.pauses = 0
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"api": self}))
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    @property
    def lists(self) -> int:
        return sum("watch" not in query for _, query in self.asked)

    @property
    def watches(self) -> list[dict[str, str]]:
        return [query for _, query in self.asked if "watch" in query]

    def changed(self, kind: str, slice_: dict[str, Any]) -> None:
        self.events.put({"type": kind, "object": slice_})


class Ended(Exception):
    """Ends a thread that would follow for ever."""


def follow(cluster: Cluster, publish: Publish) -> None:
    """Follow in a thread, as the gateway does."""

    def run() -> None:
        with contextlib.suppress(Ended):
            cluster.follow(publish)

    threading.Thread(target=run, daemon=True).start()


def listed(cluster: Cluster) -> Endpoints:
    """Return the endpoints of one list; raise OSError if the API server does not list them."""
    found: list[Endpoints] = []

    def publish(endpoints: Endpoints) -> None:
        found.append(endpoints)
        raise Ended

    with contextlib.suppress(Ended):
        cluster.follow_once(publish)
    return found[0]


class Published:
    """The endpoints that a cluster published, as the names of pods."""

    def __init__(self) -> None:
        self.all: list[list[str]] = []

    def __call__(self, endpoints: Endpoints) -> None:
        self.all.append(sorted(each.pod for each in endpoints))


@pytest.fixture
def api() -> Iterator[ApiServer]:
    server = ApiServer()
    yield server
    server.ended = True
    server.events.put(CUT)
    server.http.shutdown()
    server.http.server_close()


def connected(api: ApiServer) -> Cluster:
    configuration = Configuration(host=f"http://127.0.0.1:{api.http.server_address[1]}")
    configuration.retries = False
    gateway = load({"PERCORE_GATEWAY_SERVICE": "inference", "PERCORE_GATEWAY_NAMESPACE": "here"}).gateway

    def pause(_seconds: float) -> None:
        if api.ended:
            raise Ended
        api.pauses += 1
        time.sleep(0.01)

    return Cluster(gateway, ApiClient(configuration), pause)


@pytest.fixture
def published(api: ApiServer) -> Published:
    seen = Published()
    follow(connected(api), seen)
    eventually(lambda: seen.all)
    return seen


def test_only_the_slices_of_the_service_are_asked_for(api: ApiServer) -> None:
    assert [each.pod for each in listed(connected(api))] == ["a"]
    ((path, query),) = api.asked
    assert path == "/apis/discovery.k8s.io/v1/namespaces/here/endpointslices"
    assert query == {"labelSelector": "kubernetes.io/service-name=inference"}


def test_each_change_is_published_with_all_endpoints(api: ApiServer, published: Published) -> None:
    api.changed("ADDED", slice_of("t", "b", "c"))
    eventually(lambda: published.all[-1] == ["a", "b", "c"])
    api.changed("MODIFIED", slice_of("t", "c"))
    eventually(lambda: published.all[-1] == ["a", "c"])
    api.changed("DELETED", slice_of("s"))
    eventually(lambda: published.all[-1] == ["c"])
    assert api.lists == 1


def test_a_watch_that_ends_goes_on_from_the_last_version_without_a_list(api: ApiServer, published: Published) -> None:
    api.changed("MODIFIED", slice_of("s", "a", "b", version=7))
    api.changed("BOOKMARK", {"metadata": {"resourceVersion": "9"}})
    api.events.put(None)
    eventually(lambda: len(api.watches) == 2)
    assert [watch["resourceVersion"] for watch in api.watches] == ["5", "9"]
    assert {watch["allowWatchBookmarks"] for watch in api.watches} == {"true"}
    api.changed("MODIFIED", slice_of("s", "c", version=10))
    eventually(lambda: published.all[-1] == ["c"])
    assert api.lists == 1


def test_after_a_version_that_is_too_old_it_lists_again_at_once(api: ApiServer, published: Published) -> None:
    api.slices = [slice_of("t", "d")]
    api.events.put({"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old resource version"}})
    eventually(lambda: published.all[-1] == ["d"])
    assert api.lists == 2
    api.failures = [410]  # the same error, before the stream begins
    api.slices = [slice_of("t", "e")]
    api.events.put(None)
    eventually(lambda: published.all[-1] == ["e"])
    assert api.pauses == 0


def test_a_watch_that_is_cut_is_taken_up_again(api: ApiServer, published: Published) -> None:
    api.slices = [slice_of("s", "b")]
    api.events.put(CUT)
    eventually(lambda: published.all[-1] == ["b"])
    api.changed("MODIFIED", slice_of("s", "c"))
    eventually(lambda: published.all[-1] == ["c"])


def test_a_watch_that_falls_silent_is_given_up(api: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WATCH_SECONDS", 0)
    monkeypatch.setattr(module, "ANSWER_SECONDS", (1.0, 0.2))
    published = Published()
    follow(connected(api), published)
    eventually(lambda: len(api.watches) >= 2)
    api.slices = [slice_of("s", "b")]
    eventually(lambda: published.all[-1] == ["b"])


def test_while_the_api_server_is_away_the_last_endpoints_stay(api: ApiServer, published: Published) -> None:
    count = len(published.all)
    api.failures = [500, 503, 429, 403] * 5
    api.events.put(CUT)
    eventually(lambda: not api.failures)
    eventually(lambda: len(published.all) == count + 1)
    assert published.all[-1] == ["a"]
    assert [] not in published.all


def test_the_age_of_the_endpoints_grows_until_they_are_confirmed(api: ApiServer) -> None:
    cluster = connected(api)
    time.sleep(0.2)
    assert cluster.endpoints_age() >= 0.2
    listed(cluster)
    assert cluster.endpoints_age() < 0.2


def test_an_api_server_that_is_missing_or_malformed_is_an_os_error(api: ApiServer) -> None:
    api.slices = [{"nonsense": True}]
    with pytest.raises(OSError, match="KeyError"):
        listed(connected(api))
    nobody = connected(api)
    api.http.shutdown()
    api.http.server_close()
    with pytest.raises(OSError, match="refused"):
        listed(nobody)


def test_a_deletion_cost_is_a_merge_patch_of_one_annotation(api: ApiServer) -> None:
    connected(api).set_cost("pod-1", 1000)
    assert api.patched == [
        (
            "/api/v1/namespaces/here/pods/pod-1",
            "application/merge-patch+json",
            {"metadata": {"annotations": {COST: "1000"}}},
        )
    ]


def test_a_missing_pod_and_a_missing_right_are_different_errors(api: ApiServer) -> None:
    api.patch_status = 404
    with pytest.raises(KeyError):
        connected(api).set_cost("pod-1", 1000)
    api.patch_status = 403
    with pytest.raises(ApiError, match="403"):
        connected(api).set_cost("pod-1", 1000)


def test_costs_are_read_from_metadata_alone_and_only_from_pods_of_the_service(api: ApiServer) -> None:
    def pod(name: str, cost: str) -> dict[str, Any]:
        return {"metadata": {"name": name, "annotations": {COST: cost}}}

    api.slices = [slice_of("s", "a", "b", "c")]
    api.pods = [pod("a", "1000"), pod("b", "nonsense"), {"metadata": {"name": "c"}}, pod("another", "1000")]
    cluster = connected(api)
    listed(cluster)
    assert cluster.read_costs() == {"a": 1000}
    assert "PartialObjectMetadataList" in api.accepted
    api.failures = [403]
    with pytest.raises(ApiError, match="403"):
        cluster.read_costs()


def test_a_thousand_pods_in_ten_slices_are_read_in_a_moment(api: ApiServer) -> None:
    api.slices = []
    for number in range(10):
        one = slice_of(f"s-{number}")
        one["endpoints"] = [
            {"addresses": [f"10.0.{number}.{host}"], "conditions": {"ready": True}, "targetRef": {"name": f"p-{number}-{host}"}}
            for host in range(100)
        ]
        api.slices.append(one)
    began = time.monotonic()
    assert len(listed(connected(api))) == 1000
    assert time.monotonic() - began < 1
