"""Malformed documents of the API server, and two threads at once.

A fake gives the answers; `tests/gateway/test_cluster.py` has the real client with a real server.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from percore.gateway.cluster import COST, WATCH_SECONDS, Cluster
from percore.gateway.endpoints import Endpoints
from percore.gateway.gateway_settings import load

STRANGE_LISTS: list[Any] = [
    None,
    [],
    "nonsense",
    {},
    {"metadata": {"resourceVersion": "1"}},
    {"metadata": {"resourceVersion": "1"}, "items": None},
    {"metadata": {"resourceVersion": "1"}, "items": {}},
    {"metadata": {"resourceVersion": "1"}, "items": [None]},
    {"metadata": {"resourceVersion": "1"}, "items": [{"metadata": {}}]},
    {"metadata": {"resourceVersion": "1"}, "items": [{"metadata": {"name": ["s"]}}]},
    {"metadata": None, "items": []},
    {"items": []},
]
STRANGE_EVENTS: list[Any] = [
    None,
    [],
    "nonsense",
    {},
    {"type": "MODIFIED"},
    {"type": "MODIFIED", "object": None},
    {"type": "MODIFIED", "object": {"metadata": None}},
    {"type": "MODIFIED", "object": {"metadata": {"resourceVersion": "2"}}},
    {"type": "MODIFIED", "object": {"metadata": {"name": ["s"], "resourceVersion": "2"}}},
    {"type": "DELETED", "object": {"metadata": {"resourceVersion": "2"}}},
    {"type": "BOOKMARK", "object": {}},
    {"type": "ERROR", "object": None},
    {"type": "ERROR"},
    {"type": "EATEN", "object": {"metadata": {"name": "s", "resourceVersion": "2"}}},
    {"type": ["MODIFIED"], "object": {"metadata": {"name": "s", "resourceVersion": "2"}}},
]
STRANGE_ENDPOINTS: list[Any] = [
    [{"addresses": []}],
    [{"addresses": None}],
    [{"addresses": ["10.0.0.1"], "targetRef": 7}],
    [None],
    7,
]


class Stop(Exception):
    """Ends a loop that would go on for ever."""


class Answer:
    """An answer of the API server, whole or as a stream."""

    status = 200

    def __init__(self, *documents: Any) -> None:
        self.data = b"\n".join(orjson.dumps(each) for each in documents)
        self.response = self

    def stream(self, amt: int | None) -> Iterator[bytes]:
        yield self.data + b"\n"

    def close(self) -> None:
        pass


class Api:
    """Answers lists and watches with the answers that a test has set. When they are used up, the test ends."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, dict[str, str]]] = []

    def param_serialize(self, method: str, path: str, query_params: list[tuple[str, str]], **_: Any) -> tuple[str, Any]:
        return path, dict(query_params)

    def call_api(self, path: str, query: dict[str, str], **_: Any) -> Answer:
        if not self.answers:
            raise Stop
        self.asked.append((path, query))
        return self.answers.pop(0)


def cluster_of(api: Api, **settings: str) -> Cluster:
    environ = {f"PERCORE_GATEWAY_{key}": value for key, value in {"SERVICE": "inference", **settings}.items()}
    return Cluster(load(environ).gateway, api, lambda _seconds: None)  # type: ignore[arg-type]


def slice_of(name: str, *pods: str, **instead: Any) -> dict[str, Any]:
    endpoints = [{"addresses": [f"10.0.0.{ord(pod)}"], "targetRef": {"kind": "Pod", "name": pod}} for pod in pods]
    metadata = {"name": name, "resourceVersion": "2"}
    return {"addressType": "IPv4", "metadata": metadata, "endpoints": endpoints, **instead}


def listed(*slices: dict[str, Any]) -> Answer:
    return Answer({"metadata": {"resourceVersion": "1"}, "items": list(slices)})


def changed(slice_: Any) -> dict[str, Any]:
    return {"type": "MODIFIED", "object": slice_}


def published(api: Api) -> list[list[str]]:
    """Follow until the fake has no more answers; return the names of pods, once for each time they were published."""
    names: list[list[str]] = []

    def publish(endpoints: Endpoints) -> None:
        names.append(sorted(each.pod for each in endpoints))

    with pytest.raises(Stop):
        cluster_of(api).follow(publish)
    return names


@pytest.mark.parametrize("document", STRANGE_LISTS, ids=repr)
def test_after_a_malformed_list_it_lists_again_and_no_pod_is_lost(document: Any) -> None:
    broken = Answer(None)  # ends the watch, so that there is a list again
    api = Api(listed(slice_of("s", "a")), broken, Answer(document), listed(slice_of("s", "a", "b")))
    assert published(api) == [["a"], ["a", "b"]]


@pytest.mark.parametrize("event", STRANGE_EVENTS, ids=repr)
def test_after_a_malformed_event_it_lists_again_and_no_pod_is_lost(event: Any) -> None:
    api = Api(listed(slice_of("s", "a")), Answer(event), listed(slice_of("s", "a", "b")))
    assert published(api) == [["a"], ["a", "b"]]


@pytest.mark.parametrize("endpoints", STRANGE_ENDPOINTS, ids=repr)
def test_a_malformed_slice_in_a_list_keeps_its_last_version_and_the_others_are_read(endpoints: Any) -> None:
    strange = slice_of("s", endpoints=endpoints)
    end = Answer(None)
    api = Api(listed(slice_of("s", "a"), slice_of("t", "b")), end, listed(strange, slice_of("t", "c")))
    assert published(api) == [["a", "b"], ["a", "c"]]


@pytest.mark.parametrize("endpoints", STRANGE_ENDPOINTS, ids=repr)
def test_a_malformed_slice_in_a_watch_keeps_its_last_version_and_a_list_follows(endpoints: Any) -> None:
    strange = slice_of("s", endpoints=endpoints)
    watch = Answer(changed(strange), changed(slice_of("t", "c")))
    api = Api(listed(slice_of("s", "a"), slice_of("t", "b")), watch, listed(slice_of("s", "d")))
    assert published(api) == [["a", "b"], ["a", "b"], ["a", "c"], ["d"]]
    assert [query.get("timeoutSeconds") for _, query in api.asked] == [None, str(WATCH_SECONDS), None]


def test_malformed_documents_are_warned_of_once_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("percore.gateway.cluster.time.monotonic", lambda: now[0])
    api = Api()
    cluster = cluster_of(api)

    def follow_strange(times: int) -> int:
        api.answers = [Answer(STRANGE_LISTS[5])] * times
        caplog.clear()
        with caplog.at_level(logging.WARNING), pytest.raises(Stop):
            cluster.follow(lambda _: None)
        return len(caplog.records)

    assert follow_strange(50) == 1
    assert "keeps the last ones" in caplog.text
    assert "items is None" in caplog.text
    now[0] += 59
    assert follow_strange(50) == 0
    now[0] += 1
    assert follow_strange(50) == 1


def list_once(cluster: Cluster) -> None:
    def publish(_: Endpoints) -> None:
        raise Stop

    with pytest.raises(Stop):
        cluster.follow(publish)


def pod(name: str, cost: Any = "1000") -> dict[str, Any]:
    return {"metadata": {"name": name, "annotations": {COST: cost}}}


@pytest.mark.parametrize(
    "document", [*STRANGE_LISTS[:-2], {"items": [{"metadata": {"name": "a", "annotations": [1]}}]}], ids=repr
)
def test_malformed_costs_are_an_os_error(document: Any) -> None:
    with pytest.raises(OSError, match="Error: "):
        cluster_of(Api(Answer(document))).read_costs()


def test_a_cost_that_is_not_a_whole_number_is_ignored() -> None:
    api = Api(
        listed(slice_of("s", *"abcdefg")), Answer({"items": [pod("a", "--5"), pod("b", "²"), pod("c", "-5"), pod("d", "")]})
    )
    cluster = cluster_of(api)
    list_once(cluster)
    assert cluster.read_costs() == {"c": -5}


@pytest.mark.parametrize(("settings", "query"), [({}, {}), ({"POD_SELECTOR": "a=b,c=d"}, {"labelSelector": "a=b,c=d"})])
def test_only_pods_with_the_labels_of_the_setting_are_listed(settings: dict[str, str], query: dict[str, str]) -> None:
    api = Api(Answer({"items": []}))
    cluster_of(api, **settings).read_costs()
    assert api.asked == [("/api/v1/namespaces/default/pods", query)]


@pytest.mark.parametrize("text", ["a", "a=b,", "=b", "a b=c", "a in (b)", "a=b&watch=true"])
def test_a_selector_that_is_no_list_of_labels_is_an_error_at_start(text: str) -> None:
    with pytest.raises(Exception, match="PERCORE_GATEWAY_POD_SELECTOR"):
        cluster_of(Api(), POD_SELECTOR=text)


class Changing(Api):
    """Each watch adds and removes slices; pods have costs at any time."""

    def call_api(self, path: str, query: dict[str, str], **_: Any) -> Answer:
        if path.endswith("/pods"):
            return Answer({"items": [pod("a")]})
        if "watch" not in query:
            return listed(slice_of("s", "a"))
        others = [slice_of(f"t-{number}", "b") for number in range(50)]
        gone = [{"type": "DELETED", "object": each} for each in others]
        return Answer(*map(changed, others), *gone)


def test_costs_are_read_by_one_thread_while_another_takes_in_changes() -> None:
    cluster = cluster_of(Changing())
    stop = threading.Event()

    def publish(_: Endpoints) -> None:
        if stop.is_set():
            raise Stop

    def follow() -> None:
        with pytest.raises(Stop):
            cluster.follow(publish)

    list_once(cluster)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=follow)
    thread.start()
    try:
        for _ in range(1000):
            assert cluster.read_costs() == {"a": 1000}
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)
