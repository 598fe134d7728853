"""Stored calls in PostgreSQL: several gateways share them, and the database may be gone for a while."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.service import postgresql
from tests.service.harness import FAULTY, Service, eventually
from tests.service.test_stored_calls import ASYNC, PREDICT, Journalled, Stored, journalled

BIN = postgresql.programs()
pytestmark = pytest.mark.skipif(BIN is None, reason="PostgreSQL is not installed on this machine")


@pytest.fixture(scope="module")
def server() -> Iterator[postgresql.Server]:
    assert BIN is not None
    server = postgresql.Server(BIN)
    yield server
    server.close()


def beside(first: Journalled, **settings: str) -> Journalled:
    """Return another service with the same database and the same journal."""
    database = first.service.environ["PERCORE_GATEWAY_CALLS_DATABASE"]
    second = journalled(gateway_calls_database=database, **settings)
    second.journal = first.journal
    second.service.environ["JOURNAL"] = str(first.journal)
    return second


def shorten_leases(stored: Journalled) -> None:
    """Have a gateway's lease end after 6 s instead of two minutes."""
    environ = stored.service.environ
    environ["PYTHONPATH"] = f"{Path(__file__).parent / 'dying'}:{environ.get('PYTHONPATH', '')}"
    environ["LEASE_SECONDS"] = "6"


def test_every_way_of_a_call(server: postgresql.Server) -> None:
    url = server.database("ways")
    with Service(handler=FAULTY, gateway_calls_database=url).ready(2) as service:
        stored = Stored(service)
        path = stored.send(headers={"Idempotency-Key": "one"}, sleep=0.1)
        assert stored.send(headers={"Idempotency-Key": "one"}, sleep=0.1) == path
        assert stored.ended(path)["state"] == "succeeded"
        assert stored.result(path).json()["outputs"]["sleep"] == 0.1
        lost = stored.ended(stored.send(signal=9))
        assert [run["end"] for run in lost["runs"]] == ["pod-lost", "pod-lost"]
        running = stored.send(sleep=20)
        eventually(lambda: service.in_flight("executing") == 1)
        assert stored.cancel(running)["state"] == "cancelling"
        assert stored.ended(running)["state"] == "cancelled"
        assert requests.delete(service.url(path), timeout=5).status_code == 204
        assert requests.get(service.url(path), timeout=5).status_code == 410
        assert len(service.get("/v1/calls").json()["calls"]) == 2
        assert postgresql.PASSWORD not in service.log_path.read_text()


def test_two_gateways_share_calls_and_keys(server: postgresql.Server) -> None:
    first = journalled(gateway_calls_database=server.database("shared"))
    second = beside(first)
    first.service.start()  # both migrate an empty database
    with second.service.ready(2), first.service.ready(2):

        def send(number: int) -> str:
            stored = (first, second)[number % 2]
            return stored.send(headers={"Idempotency-Key": f"{number // 20}"}, n=number // 20, sleep=0.05)

        with concurrent.futures.ThreadPoolExecutor(20) as pool:
            paths = list(pool.map(send, range(100)))
        assert len(set(paths)) == 5
        for number, path in enumerate(dict.fromkeys(paths)):
            for stored in (first, second):
                assert stored.ended(path)["state"] == "succeeded"
                assert stored.result(path).json()["outputs"]["n"] == number
        busy = first.send(n=50, sleep=20)
        eventually(lambda: first.service.in_flight("executing") == 1)
        assert second.cancel(busy)["state"] == "cancelling"
        assert first.ended(busy)["state"] == "cancelled"
        first.check_no_overlap()


def test_another_gateway_takes_over_when_the_lease_of_one_that_died_is_over(server: postgresql.Server) -> None:
    first = journalled(gateway_calls_database=server.database("takeover"))
    second = beside(first)
    for stored in (first, second):
        shorten_leases(stored)
    with first.service.ready(2), second.service.ready(2):
        paths = [first.send(n=number, sleep=1.0) for number in range(6)]
        eventually(lambda: first.service.in_flight("executing") == 2)
        for pid in (*first.service.pids("serve"), *first.service.pids("gateway"), *first.service.pids("worker")):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for path in paths:
            found = second.ended(path, 60)
            assert found["state"] == "succeeded"
            assert [run["end"] for run in found["runs"]] in (["answered"], ["gateway-lost", "answered"])
        first.check_no_overlap()


def test_a_gateway_that_stood_still_beyond_its_lease_writes_nothing_any_more(server: postgresql.Server) -> None:
    first = journalled(gateway_calls_database=server.database("frozen"))
    second = beside(first)
    for stored in (first, second):
        shorten_leases(stored)
    with first.service.ready(2), second.service.ready(2):
        path = first.send(n=1, sleep=3.0)
        eventually(lambda: first.service.in_flight("executing") == 1)
        [frozen] = first.service.pids("gateway")
        os.kill(frozen, signal.SIGSTOP)
        try:
            found = second.ended(path, 60)
        finally:
            os.kill(frozen, signal.SIGCONT)
        assert (found["state"], [run["end"] for run in found["runs"]]) == ("succeeded", ["gateway-lost", "answered"])
        eventually(lambda: first.service.metric("percore_in_flight_requests") == 0)
        assert second.status(path) == found
        again = first.send(n=2)
        assert first.ended(again)["state"] == "succeeded"


def test_the_database_ends_at_once_and_comes_back(server: postgresql.Server) -> None:
    stored = journalled(gateway_calls_database=server.database("gone"))
    with stored.service.ready(2) as service:
        paths: dict[int, str] = {}

        def send(number: int) -> None:
            while number not in paths:
                answer = service.post(
                    PREDICT, {"inputs": {"n": number, "sleep": 0.05}}, headers={**ASYNC, "Idempotency-Key": f"{number}"}
                )
                if answer.status_code == 202:
                    paths[number] = answer.headers["Location"]
                else:
                    assert (answer.status_code, answer.headers["Retry-After"] > "0") == (503, True), answer.text
                    time.sleep(0.3)

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            sent = [pool.submit(send, number) for number in range(150)]
            time.sleep(1)
            server.restart(gone_seconds=3)
            assert service.post(PREDICT, {"inputs": {"n": 1000}}).status_code == 200
            assert service.get("/readyz").status_code == 200
            for each in sent:
                each.result()
        for number, path in paths.items():
            found = stored.ended(path, 60)
            assert found["state"] == "succeeded", (number, found)
            assert [run["end"] for run in found["runs"]].count("answered") == 1
        stored.check_no_overlap()
        assert service.get("/v1/calls?state=queued,running,cancelling").json()["calls"] == []
        assert postgresql.PASSWORD not in service.log_path.read_text()
