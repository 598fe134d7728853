"""The thread that keeps deletion costs right. It is apart from the event loop, which must not wait for the API server."""

from __future__ import annotations

import http.client
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import orjson

from percore.gateway.costs import IDLE_COST, DeletionCosts
from percore.gateway.endpoints import Endpoint
from percore.gateway.telemetry import FAILED, GONE, SET, GatewayTelemetry

log = logging.getLogger("percore.gateway")
STEP_SECONDS = 1.0
READ_SECONDS = 20.0
"""How often costs are read back. One that a dead gateway left is so removed within a minute."""
SLOT_SECONDS = 2.0


class Pods(Protocol):
    """What the API server is asked."""

    def set_cost(self, pod: str, cost: int) -> None:
        """Set a pod's deletion cost; raise OSError if that fails, and KeyError if there is no such pod any more."""

    def read_costs(self) -> Mapping[str, int]:
        """Return the deletion cost of each pod that has one; raise OSError if that fails."""


class CostWriter:
    """Writes what ``DeletionCosts`` decides."""

    def __init__(
        self,
        pods: Pods,
        running: Callable[[], Iterable[str]],
        endpoints: Callable[[], Mapping[str, Endpoint]],
        telemetry: GatewayTelemetry,
        computes: Callable[[Endpoint], bool] | None = None,
    ) -> None:
        """Take what it needs to know.

        ``running`` returns the pods with calls of this gateway, ``endpoints`` every listed pod by name. ``computes`` asks a
        pod whether it computes.
        """
        self._pods = pods
        self._running = running
        self._endpoints = endpoints
        self._telemetry = telemetry
        self._computes = computes or slot_is_taken
        self._costs = DeletionCosts()
        self._read_at: float | None = None

    def run(self) -> None:
        """Write what is due, for ever; for a thread of its own."""
        while True:
            try:
                self.step(time.monotonic())
            except Exception:
                log.exception("deletion costs could not be compared; they are compared again")
            time.sleep(STEP_SECONDS)

    def step(self, now: float) -> None:
        """Write what is due now; a failure ends the step, and the next one tries again."""
        try:
            if self._read_at is None or now - self._read_at >= READ_SECONDS:
                self._costs.read(self._pods.read_costs())
                self._read_at = now
            for pod, cost in self._costs.due(now, self._running()):
                self._write(pod, cost, now)
        except OSError as error:
            log.warning("deletion costs cannot be written: %s", error)
            self._costs.failed()
            self._count(FAILED)

    def _write(self, pod: str, cost: int, now: float) -> None:
        endpoint = self._endpoints().get(pod)
        if cost == IDLE_COST and endpoint is not None and self._computes(endpoint):
            self._costs.postponed(pod, now)
            return
        try:
            self._pods.set_cost(pod, cost)
        except KeyError:
            self._costs.gone(pod)
            self._count(GONE)
            return
        self._costs.written(pod, cost)
        self._count(SET)

    def _count(self, result: str) -> None:
        self._telemetry.costs.labels(result).inc()


def slot_is_taken(endpoint: Endpoint) -> bool:
    """Ask a pod's status server whether the pod computes; one that does not answer counts as computing."""
    connection = http.client.HTTPConnection(endpoint.address, endpoint.exporter_port, timeout=SLOT_SECONDS)
    try:
        connection.request("GET", "/slot")
        return bool(orjson.loads(connection.getresponse().read(4096))["slot"] == "taken")
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return True
    finally:
        connection.close()
