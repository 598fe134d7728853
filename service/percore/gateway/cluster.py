"""Kubernetes: the endpoints of a Service, and the deletion costs of its pods. The only module that imports its client.

It uses only the client's core: connections and credentials (it reads a token's file again when the file changes). The client's
classes for every kind of object would take 90 MB, and a watch yields JSON anyway.

Two threads use one ``Cluster``: one follows the endpoints, the other reads and sets deletion costs. They share the endpoints as
a tuple, which only the first thread replaces.
"""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import urllib3
from kubernetes import config
from kubernetes.client import ApiClient, Configuration
from kubernetes.client.exceptions import OpenApiException

from percore.errors import StartError
from percore.gateway.endpoints import Endpoints, Publish
from percore.gateway.gateway_settings import GatewaySettings
from percore.gateway.slices import Slice, endpoints_of, parse
from percore.sockets import Option, keepalive, usable

log = logging.getLogger("percore.gateway")
ANSWER_SECONDS = (3.0, 10.0)
WATCH_SECONDS = 60
"""How long one watch lasts. Each event of a watch, and its end, confirms the endpoints."""
RETRY_SECONDS = 1.0
WARN_SECONDS = 60.0
"""The shortest time between two warnings, because a failure usually repeats every second."""
COST = "controller.kubernetes.io/pod-deletion-cost"
COST_VALUE = re.compile(r"-?[0-9]{1,10}")
METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
"""Asks for metadata only: the gateway needs names and annotations, and should not see the environment of pods."""
MERGE_PATCH = "application/merge-patch+json"
OPTIONS: tuple[Option, ...] = ((socket.IPPROTO_TCP, "TCP_NODELAY", 1), *keepalive(idle=10, interval=5, count=3))
Query = list[tuple[str, str]]


class ApiError(OSError):
    """The API server has answered with an error."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"the API server answers {status}: {text[:300]}")
        self.status = status


class Cluster:
    """The endpoints of one Service, and its pods."""

    def __init__(
        self, gateway: GatewaySettings, api: ApiClient | None = None, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._gateway = gateway
        self._api = connect() if api is None else api
        self._sleep = sleep
        self._slices: dict[str, Slice] = {}
        """The last version of each slice that could be parsed, by name. Only the thread that follows uses it."""
        self._endpoints: Endpoints = ()
        """The endpoints of these slices. The tuple is never changed, only replaced, so any thread may read it."""
        self._list_again = False
        self._confirmed = time.monotonic()
        self._warned: float | None = None

    def endpoints_age(self) -> float:
        """Return how long ago the API server last confirmed the endpoints, in seconds."""
        return time.monotonic() - self._confirmed

    def follow(self, publish: Publish) -> None:
        """Publish the endpoints, and again after each change. While the API server is away, the last ones stay."""
        while True:
            try:
                self.follow_once(publish)
            except ApiError as error:
                if error.status != 410:  # 410: the version is too old to watch from, so list again at once
                    self._pause(error)
            except OSError as error:
                self._pause(error)

    def follow_once(self, publish: Publish) -> None:
        """List, then watch until that fails, and raise OSError then. Return if it is time to list again."""
        self._list_again = False
        version = self._list()
        publish(self._endpoints)
        while not self._list_again:
            for kind, document in self._watch(version):
                version = self._take(kind, document)
                self._confirm()
                if kind != "BOOKMARK":
                    publish(self._endpoints)
            self._confirm()

    def set_cost(self, pod: str, cost: int) -> None:
        """Set a pod's deletion cost; raise OSError if that fails, and KeyError if there is no such pod any more."""
        path = f"/api/v1/namespaces/{self._gateway.namespace}/pods/{pod}"
        body = {"metadata": {"annotations": {COST: str(cost)}}}
        try:
            self._ask("PATCH", path, [], body)
        except ApiError as error:
            if error.status == 404:
                raise KeyError(pod) from error
            raise

    def read_costs(self) -> dict[str, int]:
        """Return the deletion cost of each of the Service's pods that has one; raise OSError if that fails."""
        path = f"/api/v1/namespaces/{self._gateway.namespace}/pods"
        query = [("labelSelector", self._gateway.pod_selector)] if self._gateway.pod_selector else []
        known = {entry.pod for entry in self._endpoints}
        document = self._ask("GET", path, query, accept=METADATA_ONLY)
        with _as_os_errors():
            found = {
                each["metadata"]["name"]: (each["metadata"].get("annotations") or {}).get(COST) for each in _items(document)
            }
            return {name: int(cost) for name, cost in found.items() if name in known and cost and COST_VALUE.fullmatch(cost)}

    def _list(self) -> str:
        """Take in every slice; return the version of the list."""
        document = self._ask("GET", self._path, self._of_service)
        with _as_os_errors():
            listed = {each["metadata"]["name"]: each for each in _items(document)}
            version = str(document["metadata"]["resourceVersion"])
        parsed = {name: self._parsed(name, each) for name, each in listed.items()}
        self._slices = {name: each for name, each in parsed.items() if each is not None}
        self._refresh()
        self._confirm()
        return version

    def _watch(self, version: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (kind, slice) for each change after ``version``, until the API server ends the watch after its time."""
        query = [*self._of_service, ("watch", "true"), ("resourceVersion", version), ("allowWatchBookmarks", "true")]
        query.append(("timeoutSeconds", str(WATCH_SECONDS)))
        seconds = (ANSWER_SECONDS[0], WATCH_SECONDS + ANSWER_SECONDS[1])
        with _as_os_errors(), contextlib.closing(self._open("GET", self._path, query, None, seconds)) as answer:
            for line in _lines(answer.stream(amt=None)):
                event = orjson.loads(line)
                if event["type"] == "ERROR":
                    raise ApiError(event["object"].get("code", 500), event["object"].get("message", ""))
                yield event["type"], event["object"]

    def _take(self, kind: str, document: Any) -> str:
        """Take in one event; return its version."""
        with _as_os_errors():
            metadata = document["metadata"]
            if kind == "DELETED":
                self._slices.pop(metadata["name"], None)
            elif kind in ("ADDED", "MODIFIED"):
                parsed = self._parsed(metadata["name"], document)
                if parsed is not None:
                    self._slices[metadata["name"]] = parsed
            elif kind != "BOOKMARK":
                raise ValueError(f"an event of type {kind!r}")
            self._refresh()
            return str(metadata["resourceVersion"])

    def _parsed(self, name: str, document: Any) -> Slice | None:
        """Return a slice. If it cannot be parsed: return its last version, so that no pod is lost, and list again later."""
        try:
            return parse(document)
        except ValueError as error:
            self._list_again = True
            text = "the API server sends an EndpointSlice that cannot be parsed, %s; the gateway keeps its last version: %s"
            self._warn(text, name, error)
            return self._slices.get(name)

    def _refresh(self) -> None:
        self._endpoints = endpoints_of(self._slices.values(), self._gateway.pod_port, self._gateway.pod_status_port)

    @property
    def _path(self) -> str:
        return f"/apis/discovery.k8s.io/v1/namespaces/{self._gateway.namespace}/endpointslices"

    @property
    def _of_service(self) -> Query:
        return [("labelSelector", f"kubernetes.io/service-name={self._gateway.service}")]

    def _ask(self, method: str, path: str, query: Query, body: Any = None, accept: str = "application/json") -> Any:
        with _as_os_errors():
            return orjson.loads(self._open(method, path, query, body, ANSWER_SECONDS, accept).data)

    def _open(
        self, method: str, path: str, query: Query, body: Any, seconds: tuple[float, float], accept: str = "application/json"
    ) -> urllib3.BaseHTTPResponse:
        headers = {"Accept": accept, **({"Content-Type": MERGE_PATCH} if body else {})}
        request = self._api.param_serialize(
            method, path, query_params=query, header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        answer: urllib3.BaseHTTPResponse = self._api.call_api(*request, _request_timeout=seconds).response
        if answer.status >= 300:
            raise ApiError(answer.status, answer.data.decode(errors="replace"))
        return answer

    def _pause(self, error: OSError) -> None:
        """Warn, and wait a little before the next try."""
        self._warn("the API server does not list the endpoints; the gateway keeps the last ones: %s", error)
        self._sleep(RETRY_SECONDS)

    def _warn(self, text: str, *arguments: object) -> None:
        now = time.monotonic()
        if self._warned is None or now - self._warned >= WARN_SECONDS:
            self._warned = now
            log.warning(text, *arguments)

    def _confirm(self) -> None:
        self._confirmed = time.monotonic()


def connect() -> ApiClient:
    """Return a client with this pod's credentials, or, outside a cluster, with those of KUBECONFIG."""
    configuration = Configuration()
    try:
        try:
            config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        except config.ConfigException:
            config.load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    except (config.ConfigException, OSError) as error:
        raise StartError(f"PERCORE_GATEWAY_SERVICE: cannot connect to the API server: {error}") from error
    configuration.retries = False
    configuration.socket_options = usable(OPTIONS)  # with an option that the kernel does not have, every connection would fail
    return ApiClient(configuration)


@contextlib.contextmanager
def _as_os_errors() -> Iterator[None]:
    """Turn errors of the client into OSError. If a document does not have the documented form, raise OSError too."""
    document_errors = (ValueError, LookupError, TypeError, AttributeError)
    try:
        yield
    except (OpenApiException, config.ConfigException, urllib3.exceptions.HTTPError, *document_errors) as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def _items(document: Any) -> list[Any]:
    """Return the items of a list; raise TypeError if it has none. An empty list is not the same as no list."""
    items = document["items"]
    if not isinstance(items, list):
        raise TypeError(f"items is {items!r}, not a list"[:300])
    return items


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from filter(None, lines)
