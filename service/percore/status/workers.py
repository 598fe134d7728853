"""The state of the workers, from their events alone. Pure: no sockets, no clock."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from percore.model_metadata import Catalog
from percore.worker_metrics import CLIENT_DISCONNECT, LOST, WorkerMetrics

log = logging.getLogger("percore.status")


class WorkerState(StrEnum):
    """The state of a worker: it loads, it is free, or it serves a request."""

    LOADING = "loading"
    FREE = "free"
    BUSY = "busy"


@dataclass(slots=True)
class Worker:
    """One connected worker."""

    pid: int = 0
    state: WorkerState = WorkerState.LOADING
    ending: str = ""
    """The reason for its end, if it has reported one."""


class Workers:
    """Every connected worker. A worker is removed when its connection ends, which is when its process ends.

    The thread of the unix socket writes, and the threads of HTTP read. All of them use the lock.
    """

    def __init__(self, metrics: WorkerMetrics) -> None:
        self.metrics = metrics
        self._lock = threading.Lock()
        self._workers: dict[int, Worker] = {}
        self._catalog: Catalog | None = None

    def connected(self, connection: int) -> None:
        """Accept a new connection. Its first event names its worker."""
        with self._lock:
            self._workers[connection] = Worker()

    def disconnected(self, connection: int) -> None:
        """Remove a worker; unless it was stopped, count why it ended."""
        with self._lock:
            worker = self._workers.pop(connection)
        if worker.pid and worker.state is WorkerState.BUSY:
            self.metrics.calls.labels("", LOST).inc()
        if worker.pid == 0 or worker.ending == "stopped":
            return
        self.metrics.restarts.labels(worker.ending or "crashed").inc()
        if not worker.ending:
            log.error("worker %d died, and reported no reason", worker.pid)

    def handle(self, connection: int, event: Mapping[str, Any]) -> None:
        """Take in one event of a worker."""
        with self._lock:
            worker = self._workers[connection]
            match event["event"]:
                case "hello":
                    self._hello(worker, event)
                case "started":
                    worker.state = WorkerState.BUSY
                case "released":
                    worker.state = WorkerState.FREE
                case "finished":
                    worker.state = WorkerState.FREE
                    self._finished(event)
                case "client-disconnect":
                    self.metrics.client_disconnects.labels(event["state"]).inc()
                case "ending":
                    worker.ending = event["reason"]

    def _hello(self, worker: Worker, event: Mapping[str, Any]) -> None:
        worker.pid = event["worker"]
        if "catalog" not in event:
            return
        worker.state = WorkerState.FREE
        self._catalog = Catalog.from_document(event["catalog"])
        for model in self._catalog:
            self.metrics.load.labels(model.name, model.version).set(model.load_seconds)
            self.metrics.model_info.labels(model.name, model.version, model.platform, model.digest).set(1)

    def _finished(self, event: Mapping[str, Any]) -> None:
        self.metrics.calls.labels(event["model"], event["code"]).inc()
        if event["run"] is not None and event["code"] != CLIENT_DISCONNECT:
            self.metrics.duration.labels(event["model"]).observe(event["run"])

    def catalog(self) -> Catalog | None:
        """Return the catalog; None before the first worker has loaded its models."""
        return self._catalog

    def ready(self) -> bool:
        """Tell whether any worker can take calls, now or when it is free: busy is ready, loading is not."""
        with self._lock:
            return any(worker.state is not WorkerState.LOADING for worker in self._workers.values())

    def slot(self) -> str:
        """Return whether a pod's worker can take a call: ``free``, ``taken`` or ``loading``.

        It is taken while any worker computes, even if no client waits for the answer.
        """
        with self._lock:
            states = {worker.state for worker in self._workers.values()}
        if WorkerState.BUSY in states:
            return "taken"
        return "free" if WorkerState.FREE in states else "loading"

    def states(self) -> Counter[WorkerState]:
        """Return the number of workers in each state."""
        with self._lock:
            return Counter(worker.state for worker in self._workers.values() if worker.pid)
