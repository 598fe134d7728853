"""Kubernetes: which endpoints a Service has, and marks on its pods. The only module that imports its client.

Only the client's core is used, its connections and credentials (a token's file is read again as it changes): the classes it
has for every object would take 90 MB, and a watch hands over JSON anyway.
"""

from __future__ import annotations

import contextlib
import logging
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
from percore.gateway.settings import GatewaySettings
from percore.gateway.slices import endpoints_of

log = logging.getLogger("percore.gateway")
ANSWER_SECONDS = (3.0, 10.0)
WATCH_SECONDS = 60
"""How long one watch lasts. Its end, like anything it says, confirms what is known."""
RETRY_SECONDS = 1.0
COST = "controller.kubernetes.io/pod-deletion-cost"
METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
"""Names and annotations are enough; a pod's environment is nobody's business here."""
MERGE_PATCH = "application/merge-patch+json"
KEEPALIVE = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
]
Query = list[tuple[str, str]]


class Refused(OSError):
    """The API server answers, and not with what was asked for."""

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
        self._slices: dict[str, dict[str, Any]] = {}
        self._confirmed = time.monotonic()
        self._away = False

    def age(self) -> float:
        """Return how long ago the API server last confirmed what is known, in seconds."""
        return time.monotonic() - self._confirmed

    def read(self) -> Endpoints:
        """Return the endpoints there are now; raise OSError where the API server cannot say."""
        self._list()
        return self._endpoints()

    def follow(self, publish: Publish) -> None:
        """Publish the endpoints, and again after each change. While the API server is away, what was published stands."""
        while True:
            try:
                self.follow_once(publish)
            except Refused as error:
                if error.status != 410:  # 410: what was known is too old to go on from; list anew, at once
                    self._pause(error)
            except OSError as error:
                self._pause(error)

    def follow_once(self, publish: Publish) -> None:
        """List, then watch until something is lost, and raise OSError then."""
        version = self._list()
        publish(self._endpoints())
        while True:
            for kind, slice_ in self._watch(version):
                version = slice_["metadata"]["resourceVersion"]
                self._confirm()
                if kind != "BOOKMARK":
                    self._take(kind, slice_)
                    publish(self._endpoints())
            self._confirm()

    def set_cost(self, pod: str, cost: int) -> None:
        """Set a pod's deletion cost; raise OSError if that fails, and KeyError if there is no such pod any more."""
        path = f"/api/v1/namespaces/{self._gateway.namespace}/pods/{pod}"
        body = {"metadata": {"annotations": {COST: str(cost)}}}
        try:
            self._ask("PATCH", path, body=body)
        except Refused as error:
            if error.status == 404:
                raise KeyError(pod) from error
            raise

    def read_costs(self) -> dict[str, int]:
        """Return the deletion cost of each of the Service's pods that has one; raise OSError if that fails."""
        with _as_os_errors():
            known = {entry.pod for entry in self._endpoints()}
            path = f"/api/v1/namespaces/{self._gateway.namespace}/pods"
            listed = orjson.loads(self._open("GET", path, [], None, ANSWER_SECONDS, accept=METADATA_ONLY).data)["items"]
            found = {each["metadata"]["name"]: (each["metadata"].get("annotations") or {}).get(COST) for each in listed}
        return {name: int(cost) for name, cost in found.items() if name in known and cost and cost.lstrip("-").isdigit()}

    def _list(self) -> str:
        document = self._ask("GET", self._path)
        with _as_os_errors():
            self._slices = {each["metadata"]["name"]: each for each in document["items"]}
            version = str(document["metadata"]["resourceVersion"])
        self._confirm()
        return version

    def _watch(self, version: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (kind, slice) for each change after ``version``, until the API server ends the watch, as it was asked to."""
        query = [("watch", "true"), ("resourceVersion", version), ("allowWatchBookmarks", "true")]
        query.append(("timeoutSeconds", str(WATCH_SECONDS)))
        seconds = (ANSWER_SECONDS[0], WATCH_SECONDS + ANSWER_SECONDS[1])
        with _as_os_errors(), contextlib.closing(self._open("GET", self._path, query, None, seconds)) as answer:
            for line in _lines(answer.stream(amt=None)):
                event = orjson.loads(line)
                if event["type"] == "ERROR":
                    raise Refused(event["object"].get("code", 500), event["object"].get("message", ""))
                yield event["type"], event["object"]

    def _take(self, kind: str, slice_: dict[str, Any]) -> None:
        name = slice_["metadata"]["name"]
        if kind == "DELETED":
            self._slices.pop(name, None)
        else:
            self._slices[name] = slice_

    def _endpoints(self) -> Endpoints:
        return endpoints_of(self._slices.values(), self._gateway.pod_port, self._gateway.pod_exporter_port)

    @property
    def _path(self) -> str:
        return f"/apis/discovery.k8s.io/v1/namespaces/{self._gateway.namespace}/endpointslices"

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        with _as_os_errors():
            return orjson.loads(self._open(method, path, [], body, ANSWER_SECONDS).data)

    def _open(
        self, method: str, path: str, query: Query, body: Any, seconds: tuple[float, float], accept: str = "application/json"
    ) -> urllib3.BaseHTTPResponse:
        headers = {"Accept": accept, **({"Content-Type": MERGE_PATCH} if body else {})}
        if path == self._path:
            query = [*query, ("labelSelector", f"kubernetes.io/service-name={self._gateway.service}")]
        request = self._api.param_serialize(
            method, path, query_params=query, header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        answer: urllib3.BaseHTTPResponse = self._api.call_api(*request, _request_timeout=seconds).response
        if answer.status >= 300:
            raise Refused(answer.status, answer.data.decode(errors="replace"))
        return answer

    def _pause(self, error: OSError) -> None:
        """Say once that the API server is away, and wait a little."""
        if not self._away:
            log.warning("the endpoints cannot be watched, and those that are known stay: %s", error)
        self._away = True
        self._sleep(RETRY_SECONDS)

    def _confirm(self) -> None:
        self._confirmed, self._away = time.monotonic(), False


def connect() -> ApiClient:
    """Return a client with this pod's credentials, or, outside a cluster, with those of KUBECONFIG."""
    configuration = Configuration()
    try:
        try:
            config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        except config.ConfigException:
            config.load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    except (config.ConfigException, OSError) as error:
        raise StartError(f"PERCORE_GATEWAY_SERVICE: no way to the API server: {error}") from error
    configuration.retries = False
    configuration.socket_options = KEEPALIVE
    return ApiClient(configuration)


@contextlib.contextmanager
def _as_os_errors() -> Iterator[None]:
    """Raise whatever the client raises as OSError, and so what an API server says that is not JSON."""
    try:
        yield
    except (OpenApiException, urllib3.exceptions.HTTPError, ValueError, KeyError) as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from filter(None, lines)
