"""Asks the status servers of pods whether the pods compute, several at the same time and for a bounded time."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Mapping
from queue import Empty, SimpleQueue

import orjson

from percore.gateway.endpoints import Endpoint
from percore.threads import start_vital

SLOT_REQUEST_SECONDS = 2.0
THREADS = 8
"""How many pods are asked at the same time. A pod that does not answer occupies a thread for ``SLOT_REQUEST_SECONDS``."""
Answers = SimpleQueue[tuple[str, bool]]


class SlotReader:
    """A few threads that ask pods.

    They are daemon threads, because the threads of an executor would delay the end of the process.
    """

    def __init__(self, is_taken: Callable[[Endpoint], bool] | None = None, threads: int = THREADS) -> None:
        self._is_taken = is_taken or slot_is_taken
        self._questions: SimpleQueue[tuple[str, Endpoint, Answers]] = SimpleQueue()
        for _ in range(threads):
            start_vital("slots", self._answer)

    def ask(self, endpoints: Mapping[str, Endpoint], seconds: float) -> dict[str, bool]:
        """Return for each pod whether its slot is taken. It takes at most ``seconds``.

        A pod that was asked and has not answered in time counts as taken. A pod that could not be asked in time is left out.
        """
        answers: Answers = SimpleQueue()
        for pod, endpoint in endpoints.items():
            self._questions.put((pod, endpoint, answers))
        found: dict[str, bool] = {}
        ends = time.monotonic() + seconds
        try:
            while len(found) < len(endpoints):
                pod, taken = answers.get(timeout=max(0.0, ends - time.monotonic()))
                found[pod] = taken
        except Empty:
            unasked = self._withdraw()
            return {pod: found.get(pod, True) for pod in endpoints if pod not in unasked}
        return found

    def _withdraw(self) -> set[str]:
        """Remove the questions that no thread has taken yet; return their pods."""
        pods = set()
        try:
            while True:
                pods.add(self._questions.get_nowait()[0])
        except Empty:
            return pods

    def _answer(self) -> None:
        while True:
            pod, endpoint, answers = self._questions.get()
            answers.put((pod, self._is_taken(endpoint)))


def slot_is_taken(endpoint: Endpoint) -> bool:
    """Ask a pod's status server whether the pod computes; one that does not answer counts as computing."""
    connection = http.client.HTTPConnection(endpoint.address, endpoint.status_port, timeout=SLOT_REQUEST_SECONDS)
    try:
        connection.request("GET", "/slot")
        return bool(orjson.loads(connection.getresponse().read(4096))["slot"] == "taken")
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
        return True
    finally:
        connection.close()
