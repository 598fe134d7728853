"""A stored call whose run was lost begins again only when that run's pod is free, or is gone."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
import requests

from harness.gateway import PREDICT, Exchange, Gateway, Worker, serve
from harness.service import eventually

LONG = 3.0
"""Within these seconds a call begins if it may. A restarted gateway takes over after two seconds."""


class Busy:
    """A worker that goes on computing when the connection of its run breaks. After this run it is like any other worker."""

    def __init__(self, *, breaks: bool) -> None:
        self.free = threading.Event()
        self._breaks = breaks
        self.worker = Worker(self._run, serve)

    def _run(self, exchange: Exchange) -> None:
        exchange.reserve()
        exchange.receive()
        if self._breaks:
            exchange.reset()
        self.free.wait(60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.free.set()
        self.worker.__exit__()


@pytest.fixture
def breaking() -> Iterator[Busy]:
    """A busy worker whose network breaks the connection of its run."""
    with Busy(breaks=True) as busy:
        yield busy


@pytest.fixture
def silent() -> Iterator[Busy]:
    """A busy worker whose run is lost with the gateway."""
    with Busy(breaks=False) as busy:
        yield busy


def store(gateway: Gateway, body: bytes = b"lost", headers: dict[str, str] | None = None) -> str:
    answer = requests.post(gateway.url(PREDICT), data=body, headers={"Prefer": "respond-async", **(headers or {})}, timeout=30)
    assert answer.status_code == 202, answer.text
    return answer.headers["Location"]


def status(gateway: Gateway, path: str) -> dict[str, Any]:
    found: dict[str, Any] = requests.get(gateway.url(path), timeout=30).json()
    return found


def ends(gateway: Gateway, path: str) -> list[str | None]:
    """Return how the runs of a call ended."""
    return [run["end"] for run in status(gateway, path)["runs"]]


def lose(gateway: Gateway, busy: Busy, headers: dict[str, str] | None = None) -> str:
    """Have a call run on a worker until the connection breaks; return its path."""
    path = store(gateway, headers=headers)
    eventually(lambda: busy.worker.runs)
    eventually(lambda: ends(gateway, path) == ["pod-lost"])
    return path


def test_a_call_waits_until_the_pod_of_its_lost_run_is_free_and_others_go_on(breaking: Busy, tmp_path: Path) -> None:
    with Worker() as other, Gateway(breaking.worker.endpoint, gateway_calls_dir=str(tmp_path)) as gateway:
        path = lose(gateway, breaking)
        gateway.set_endpoints(breaking.worker.endpoint, other.endpoint)
        for number in range(3):
            assert gateway.post(b"%d" % number).status_code == 200
        later = store(gateway, b"later")
        eventually(lambda: status(gateway, later)["state"] == "succeeded")
        time.sleep(LONG)
        assert (status(gateway, path)["state"], ends(gateway, path)) == ("queued", ["pod-lost"])
        assert b"lost" not in other.bodies
        assert gateway.metric("percore_in_flight_requests", state="queued") == 1, "autoscaling must not remove its pod"
        breaking.free.set()
        eventually(lambda: ends(gateway, path) == ["pod-lost", "answered"])
        eventually(lambda: gateway.metric("percore_in_flight_requests") == 0)


def test_a_gateway_with_another_name_and_the_same_folder_waits_for_no_lease(silent: Busy, tmp_path: Path) -> None:
    """A gateway's pod that was deleted: the next one has another name, and the lock on the folder is free."""
    with Gateway(silent.worker.endpoint, gateway_calls_dir=str(tmp_path)) as gateway:
        path = store(gateway)
        eventually(lambda: ends(gateway, path) == [None])
        gateway.signal(signal.SIGKILL)
        gateway.wait(30)
    with Gateway(silent.worker.endpoint, gateway_calls_dir=str(tmp_path)) as successor:
        eventually(lambda: ends(successor, path) == ["gateway-lost"], 3 * LONG)
        silent.free.set()
        eventually(lambda: ends(successor, path) == ["gateway-lost", "answered"])


def test_a_pod_that_is_gone_lets_the_call_begin(breaking: Busy, tmp_path: Path) -> None:
    with Worker() as other, Gateway(breaking.worker.endpoint, gateway_calls_dir=str(tmp_path)) as gateway:
        path = lose(gateway, breaking)
        gateway.set_endpoints(breaking.worker.endpoint, other.endpoint)
        time.sleep(1)  # a reservation waits to be answered
        gateway.set_endpoints(other.endpoint)
        eventually(lambda: ends(gateway, path) == ["pod-lost", "answered"], 2)
        assert other.bodies == [b"lost"]


def test_a_pod_that_refuses_connections_is_not_gone(breaking: Busy, tmp_path: Path) -> None:
    """On a node that is lost, the pod stays listed until Kubernetes removes it."""
    with Worker() as other, Gateway(breaking.worker.endpoint, gateway_calls_dir=str(tmp_path)) as gateway:
        endpoint = breaking.worker.endpoint
        path = lose(gateway, breaking)
        breaking.worker._listener.shutdown(2)
        breaking.worker._listener.close()
        gateway.set_endpoints(endpoint, other.endpoint)
        time.sleep(LONG)
        assert ends(gateway, path) == ["pod-lost"]
        gateway.set_endpoints(other.endpoint)
        eventually(lambda: ends(gateway, path) == ["pod-lost", "answered"])


def test_a_call_that_waits_for_a_pod_is_in_flight_so_that_pods_stay_and_it_can_be_cancelled(
    breaking: Busy, tmp_path: Path
) -> None:
    with Worker() as other, Gateway(breaking.worker.endpoint, gateway_calls_dir=str(tmp_path)) as gateway:
        path = lose(gateway, breaking)
        gateway.set_endpoints(breaking.worker.endpoint, other.endpoint)
        eventually(lambda: gateway.queued() == 1)
        assert gateway.metric("percore_in_flight_calls") == 1
        requests.post(gateway.url(f"{path}/cancel"), timeout=30)
        eventually(lambda: status(gateway, path)["state"] == "cancelled")
        eventually(lambda: gateway.queued() == 0)
        breaking.free.set()
        time.sleep(1)
        assert (other.bodies, len(breaking.worker.runs)) == ([], 1)
        assert gateway.metric("percore_in_flight_requests") == 0


@pytest.mark.parametrize("restarted", [False, True])
def test_percore_start_within_limits_only_the_first_begin(breaking: Busy, tmp_path: Path, restarted: bool) -> None:
    with Gateway(breaking.worker.endpoint, gateway_calls_dir=str(tmp_path)) as gateway:
        path = lose(gateway, breaking, {"Percore-Start-Within": "3"})
        if restarted:
            gateway.signal(signal.SIGKILL)
            gateway.wait(30)
            gateway.__enter__()
        time.sleep(3 + LONG)
        assert status(gateway, path)["state"] == "queued"
        breaking.free.set()
        eventually(lambda: ends(gateway, path) == ["pod-lost", "answered"])


def break_before_the_last_byte(exchange: Exchange) -> None:
    exchange.reserve()
    exchange.read_head()
    exchange.take(len(b"lost") - 1)
    exchange.reset()


def expires_after_a_break(folder: Path) -> bool:
    """Have a call expire after a run that did not begin; return False if the last byte was sent before the connection broke."""
    over = threading.Event()

    def is_never_free(exchange: Exchange) -> None:
        exchange.read_reservation()
        over.wait(30)

    worker = Worker(break_before_the_last_byte, is_never_free)
    with worker, Gateway(worker.endpoint, gateway_calls_dir=str(folder)) as gateway:
        path = store(gateway, headers={"Percore-Start-Within": "3"})
        is_expired = eventually(lambda: ends(gateway, path) not in ([], [None]) and ends(gateway, path)) == ["not-begun"]
        if is_expired:
            assert status(gateway, path)["started"] is None
            eventually(lambda: status(gateway, path)["state"] == "expired", 30)
        over.set()
    return is_expired


def test_a_call_whose_worker_was_lost_before_its_last_byte_still_expires(tmp_path: Path) -> None:
    """A run that did not begin does not count as the first begin of its call."""
    assert any(expires_after_a_break(tmp_path / f"{attempt}") for attempt in range(10))


def test_a_call_that_waits_for_a_pod_does_not_delay_the_shutdown(breaking: Busy, tmp_path: Path) -> None:
    with Worker() as other:
        with Gateway(breaking.worker.endpoint, gateway_calls_dir=str(tmp_path)) as gateway:
            path = lose(gateway, breaking)
            gateway.signal()
            began = time.monotonic()
            assert gateway.wait(30) == 0
            assert time.monotonic() - began < 3
        with Gateway(breaking.worker.endpoint, other.endpoint, gateway_calls_dir=str(tmp_path)) as gateway:
            time.sleep(LONG)
            assert ends(gateway, path) == ["pod-lost"], "the next gateway waits too"
            breaking.free.set()
            eventually(lambda: ends(gateway, path) == ["pod-lost", "answered"])


def test_a_gateway_that_starts_counts_no_pod_as_gone_before_it_has_a_list(silent: Busy, tmp_path: Path) -> None:
    with Worker() as other, Gateway(silent.worker.endpoint, gateway_calls_dir=str(tmp_path)) as gateway:
        path = store(gateway)
        eventually(lambda: silent.worker.runs)
        gateway.signal(signal.SIGKILL)
        gateway.wait(30)
        gateway.endpoints_file.unlink()
        with gateway:
            eventually(lambda: ends(gateway, path) == ["gateway-lost"])
            time.sleep(1)
            gateway.set_endpoints(silent.worker.endpoint, other.endpoint)
            time.sleep(LONG)
            assert (ends(gateway, path), other.bodies) == (["gateway-lost"], [])
            silent.free.set()
            eventually(lambda: ends(gateway, path) == ["gateway-lost", "answered"])


def test_a_call_comes_back_to_its_old_place(breaking: Busy, tmp_path: Path) -> None:
    """There is only one pod, so all other calls are queued behind this one."""
    with Gateway(breaking.worker.endpoint, gateway_calls_dir=str(tmp_path)) as gateway:
        path = lose(gateway, breaking)
        later = [store(gateway, b"later %d" % number) for number in range(3)]
        breaking.free.set()
        eventually(lambda: all(status(gateway, each)["state"] == "succeeded" for each in (path, *later)))
        # When the pod is free, it may take a call from the queue before the gateway queues the lost call again.
        assert breaking.worker.bodies.index(b"lost", 1) in (1, 2)
