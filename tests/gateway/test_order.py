"""Calls run in their order, one at a time in each pod, through one gateway or two."""

import itertools
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from harness.gateway import PREDICT, Gateway, Worker, endpoint_of, holding, outcome, read_answer, running, serve
from harness.service import Service, eventually

CALLS = 200
SPAN = "tests.gateway.handlers:Span"


def test_calls_run_by_priority_and_then_in_the_order_of_their_last_bytes() -> None:
    release = threading.Event()
    with (
        Worker(holding(release), serve) as worker,
        Gateway(worker.endpoint, gateway_priority_header="X-Priority") as gateway,
    ):
        first = gateway.send_call(b"first")
        eventually(gateway.executing)
        given = [["", "5", "9", "junk", "1", "", "55"][number % 7] for number in range(CALLS)]
        calls = gateway.send_calls_in_order(
            *((b"%d" % number, f"X-Priority: {priority}" if priority else "") for number, priority in enumerate(given))
        )
        eventually(lambda: gateway.queued() == CALLS)
        release.set()
        assert {outcome(each) for each in (first, *calls)} == {(200, "")}
        ranks = {"5": 5, "9": 9, "1": 1}
        expected = sorted(range(CALLS), key=lambda number: -ranks.get(given[number], 0))
        assert worker.bodies == [b"first", *(b"%d" % number for number in expected)]


def queues(gateway: Gateway, count: int) -> bool:
    return gateway.queued() == count


@pytest.mark.parametrize("turns", [False, True], ids=["without turns", "with turns"])
def test_stored_and_synchronous_calls_are_in_one_queue(tmp_path: Path, *, turns: bool) -> None:
    """Without turns, calls run by arrival, stored or not. With turns, each caller has one call in each round."""
    release = threading.Event()
    settings: dict[str, Any] = {"gateway_calls_dir": tmp_path, "gateway_caller_header": "X-Tenant" if turns else ""}
    with (
        Worker(holding(release), serve) as worker,
        Gateway(worker.endpoint, **settings) as gateway,
    ):
        eventually(lambda: gateway.metric("percore_stored_calls_up") == 1)
        first = gateway.send_call(b"first")
        eventually(gateway.executing)
        answers: dict[str, list[socket.socket]] = {"stored": [], "synchronous": []}
        kinds = ["stored"] * 4 + ["synchronous", "stored"] * 7 + ["synchronous"] * 4
        for count, kind in enumerate(kinds):
            headers = [f"X-Tenant: {kind}", *(["Prefer: respond-async"] if kind == "stored" else [])]
            answers[kind].append(gateway.send_call(f"{kind} {count}".encode(), *headers))
            eventually(partial(queues, gateway, count + 1))
        release.set()
        assert {outcome(each) for each in (first, *answers["synchronous"])} == {(200, "")}
        for each in answers["stored"]:
            with each:
                assert read_answer(each)[0] == 202
        eventually(lambda: len(worker.bodies) == 23)
    sent = [f"{kind} {count}" for count, kind in enumerate(kinds)]
    if turns:  # the first who came begins each round
        of = [[each for each in sent if each.startswith(kind)] for kind in ("stored", "synchronous")]
        sent = [each for round_of in zip(*of, strict=True) for each in round_of]
    assert worker.bodies == [b"first", *(each.encode() for each in sent)]


def test_calls_in_flight_are_those_that_run_and_those_that_are_queued_as_one_number() -> None:
    """KEDA reads this number without Prometheus. It cannot add up several series of a gateway."""
    release = threading.Event()
    with Worker(holding(release), serve) as worker, Gateway(worker.endpoint) as gateway:
        assert gateway.metric("percore_in_flight_calls") == 0
        calls = [gateway.send_call(b"call") for _ in range(3)]
        eventually(lambda: gateway.executing() == 1 and gateway.queued() == 2)
        assert gateway.metric("percore_in_flight_calls") == 3
        release.set()
        assert {outcome(each) for each in calls} == {(200, "")}
        eventually(lambda: gateway.metric("percore_in_flight_calls") == 0, 2)


def test_two_gateways_share_a_pod_and_the_one_with_fewer_calls_does_not_wait_for_the_other() -> None:
    with Worker(running(0.05)) as worker, Gateway(worker.endpoint) as crowded, Gateway(worker.endpoint) as quiet:
        calls = [crowded.send_call(b"crowd") for _ in range(100)]
        eventually(lambda: crowded.queued() > 50 and len(worker.runs) > 3)
        for _ in range(3):
            before = len(worker.runs)
            assert quiet.post(b"quiet").status_code == 200
            assert worker.bodies[before:].index(b"quiet") <= 2
        assert {outcome(each) for each in calls} == {(200, "")}
        assert len(worker.runs) == 103


def test_in_real_pods_no_two_runs_overlap_and_every_call_runs_once() -> None:
    with (
        Service(pod=True, handler=SPAN).ready() as one,
        Service(pod=True, handler=SPAN).ready() as other,
        Gateway(endpoint_of(one), endpoint_of(other)) as first,
        Gateway(endpoint_of(one), endpoint_of(other)) as second,
    ):

        def span(number: int) -> tuple[int, float, float]:
            gateway = (first, second)[number % 2]
            answer = gateway.post(b'{"inputs": {"seconds": 0.02}}', PREDICT)
            assert answer.status_code == 200, answer.text
            outputs = answer.json()["outputs"]
            return outputs["port"], outputs["began"], outputs["ended"]

        began = time.monotonic()
        with ThreadPoolExecutor(20) as pool:
            spans = sorted(pool.map(span, range(100)))
        assert time.monotonic() - began < 20
        for (port, _, ended), (next_port, next_began, _) in itertools.pairwise(spans):
            assert port != next_port or ended <= next_began
        assert {port for port, _, _ in spans} == {one.port, other.port}
        for pod in (one, other):
            runs = sum(port == pod.port for port, _, _ in spans)
            eventually(lambda pod=pod, runs=runs: pod.metric("percore_calls_total", code="200") == runs)  # type: ignore[misc]
