"""The gateway in front of real pods: no call is lost, none runs beside another, and what clients do reaches the worker."""

import concurrent.futures
import contextlib
import itertools
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from percore.gateway.endpoints import Endpoint

from tests.gateway.harness import Gateway, needs_haproxy, outcome, received
from tests.service.harness import FAULTY, Service, answer_of, eventually

pytestmark = needs_haproxy
SPAN = "tests.gateway.handlers:Span"


def endpoint(pod: Service) -> Endpoint:
    return Endpoint("127.0.0.1", pod.port, pod.exporter_port)


@contextlib.contextmanager
def running(gateways: int, pods: int, handler: str = FAULTY) -> Iterator[tuple[list[Gateway], list[Service]]]:
    """Run gateways that all know the same pods."""
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(Service(pod=True, handler=handler)) for _ in range(pods)]
        entered = [stack.enter_context(Gateway()) for _ in range(gateways)]
        for pod in started:
            pod.ready()
        for gateway in entered:
            gateway.know(*map(endpoint, started))
            eventually(lambda gateway=gateway: gateway.pods("idle") == pods)  # type: ignore[misc]
        yield entered, started


def test_calls_that_came_before_the_pod_had_loaded_its_model_run_once_it_has() -> None:
    with Gateway() as gateway, Service(pod=True, handler=FAULTY) as pod:
        gateway.know(endpoint(pod))
        calls = [gateway.ask(sleep=0.01) for _ in range(11)]
        assert [outcome(call)[0] for call in calls] == [200] * 11
        assert gateway.metric("percore_gateway_rejected_calls_total") == 0


def test_the_pod_s_own_run_time_and_the_gateway_s_wait_are_told_together() -> None:
    with running(gateways=1, pods=1) as ([gateway], _):
        timing = gateway.call(sleep=0.2).headers["Server-Timing"]
        wait, run = (float(part.split(";dur=")[1]) for part in timing.split(", "))
        assert wait < 100
        assert 200 <= run < 400


def test_a_client_that_leaves_ends_its_worker_and_nobody_is_sent_there_before_it_can_serve() -> None:
    with running(gateways=1, pods=2) as ([gateway], pods):
        leaving = gateway.ask(sleep=60)
        staying = gateway.ask(sleep=2)
        eventually(lambda: all(pod.metric("percore_in_flight_requests", state="executing") for pod in pods))
        before = {pod.port: pod.workers for pod in pods}
        waiting = [gateway.ask(sleep=0.1) for _ in range(3)]
        eventually(lambda: gateway.waiting() == 3)
        leaving.close()
        eventually(lambda: {pod.port: pod.workers for pod in pods} != before, seconds=2)
        assert [outcome(call)[0] for call in waiting] == [200] * 3
        assert outcome(staying)[0] == 200
        assert sum(pod.metric("percore_abandoned_calls_total", state="executing") for pod in pods) == 1


def test_a_worker_killed_in_a_call_costs_that_call_alone() -> None:
    with running(gateways=1, pods=1) as ([gateway], [pod]):
        lost = gateway.ask(sleep=60)
        eventually(lambda: pod.metric("percore_in_flight_requests", state="executing") == 1)
        waiting = [gateway.ask(sleep=0) for _ in range(3)]
        eventually(lambda: gateway.waiting() == 3)
        os.kill(pod.workers[0], signal.SIGKILL)
        began = time.monotonic()
        assert outcome(lost) == (502, "pod-lost")
        assert time.monotonic() - began < 1
        assert [outcome(call)[0] for call in waiting] == [200] * 3


def test_the_first_call_of_a_worker_that_replaces_another_is_served() -> None:
    with running(gateways=1, pods=1) as ([gateway], [pod]):
        for _ in range(3):
            workers = pod.workers
            leaving = gateway.ask(sleep=60)
            eventually(lambda: pod.metric("percore_in_flight_requests", state="executing") == 1)
            leaving.close()
            eventually(lambda workers=workers: pod.workers != workers)  # type: ignore[misc]
            assert gateway.call(sleep=0).status_code == 200


def test_a_body_in_chunks_that_is_too_large_is_refused_by_the_pod_and_costs_no_worker() -> None:
    with Service(pod=True, handler=FAULTY, max_body_bytes=100_000).ready() as pod, Gateway() as gateway:
        gateway.know(endpoint(pod))
        connection = gateway.connect()
        connection.sendall(b"POST /v1/models/default:predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(400):
                connection.sendall(b"2000\r\n" + b"x" * 0x2000 + b"\r\n")
        began = time.monotonic()
        assert b'"body-too-large"' in received(connection)
        assert time.monotonic() - began < 2
        connection.close()
        assert gateway.call(sleep=0).status_code == 200
        assert pod.metric("percore_worker_restarts_total") == 0


class Callers:
    """Many callers of many gateways, some of whom leave before they are answered."""

    def __init__(self, gateways: list[Gateway], seconds: float, leaving: float, patience: float) -> None:
        self.gateways, self.seconds, self.leaving, self.patience = gateways, seconds, leaving, patience
        self.random = random.Random(7)
        self.outcomes: Counter[str] = Counter()
        self.spans: list[dict[str, float]] = []

    def call(self, number: int) -> None:
        leaves, after = self.random.random() < self.leaving, self.random.random() * self.patience
        connection = self.gateways[number % len(self.gateways)].ask(seconds=self.seconds)
        if leaves:
            time.sleep(after)
            connection.close()
            self.outcomes["left"] += 1
            return
        try:
            status, _, body = answer_of(connection)
        except (ConnectionError, IndexError) as error:
            self.outcomes[type(error).__name__] += 1
            return
        self.outcomes[str(status)] += 1
        if status == 200:
            self.spans.append(json.loads(body)["outputs"])

    def run(self, calls: int, at_once: int) -> None:
        with concurrent.futures.ThreadPoolExecutor(at_once) as threads:
            for done in threads.map(self.call, range(calls)):
                assert done is None

    def overlapping(self) -> int:
        """Return how many calls began on a pod while another ran there."""
        found = 0
        for _, group in itertools.groupby(sorted(self.spans, key=lambda each: each["port"]), key=lambda each: each["port"]):
            times = sorted((each["began"], each["ended"]) for each in group)
            found += sum(ended > began for (_, ended), (began, _) in itertools.pairwise(times))
        return found


@pytest.mark.parametrize("gateways", [1, 2])
def test_no_pod_runs_two_calls_at_once_and_every_caller_who_stays_is_answered_200(gateways: int) -> None:
    with running(gateways, pods=4, handler=SPAN) as (entered, pods):
        short = Callers(entered, seconds=0.005, leaving=0.03, patience=0.025)
        short.run(calls=1000, at_once=12)
        # Long enough for a worker to notice that its caller has left, which it looks for ten times a second.
        longer = Callers(entered, seconds=0.25, leaving=0.15, patience=0.5)
        longer.run(calls=150, at_once=5)
        assert short.overlapping() + longer.overlapping() == 0
        assert set(short.outcomes) == set(longer.outcomes) == {"200", "left"}, (short.outcomes, longer.outcomes)
        eventually(lambda: sum(pod.metric("percore_worker_restarts_total", reason="abandoned") for pod in pods) > 0)
        eventually(lambda: sum(gateway.runtime.snapshot().calls for gateway in entered) == 0)
        answered = sum(gateway.metric("percore_gateway_call_duration_seconds_count", code="200") for gateway in entered)
        assert answered >= short.outcomes["200"] + longer.outcomes["200"]
