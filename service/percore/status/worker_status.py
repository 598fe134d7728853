"""The status server of workers: their probes, metrics, slot and catalog, and the reads of the API."""

from __future__ import annotations

from collections.abc import Callable

import orjson

from percore import __version__
from percore.api.reads import Reads
from percore.errors import NotReady
from percore.http.request import JSON, Answer
from percore.http.status import StatusServer
from percore.status.workers import Workers, WorkerState


def set_gauges(workers: Workers) -> None:
    """Set the gauges of workers."""
    states = workers.states()
    for state in WorkerState:
        workers.metrics.workers.labels(state.value).set(states[state])


def why_no_worker(workers: Workers) -> str:
    """Return the reason why no worker can take calls. Empty if a worker can take calls now, or after its present call."""
    return "" if workers.ready() else "no worker has loaded its models"


def documents(workers: Workers) -> Callable[[str], Answer]:
    """Return a function that answers the paths ``/slot``, ``/catalog``, and the reads of the API."""
    reads = Reads(workers.catalog)

    def answer(path: str) -> Answer:
        if path == "/slot":
            return 200, JSON, orjson.dumps({"slot": workers.slot()})
        if path == "/catalog":
            catalog = workers.catalog()
            if catalog is None:
                raise NotReady("the model is not loaded yet")
            return 200, JSON, orjson.dumps(catalog.document())
        return reads.answer(path)

    return answer


def create_server(workers: Workers) -> StatusServer:
    """Return a pod's status server."""
    metrics = workers.metrics
    metrics.build_info.labels(__version__).set(1)
    probes = {"/livez": lambda: "", "/readyz": lambda: why_no_worker(workers)}
    return StatusServer(metrics.registry, lambda: set_gauges(workers), probes, documents(workers))
