"""The pod's worker: its listening socket is the slot."""

import concurrent.futures
import itertools
import json
import os
import signal
import socket
import threading
import time
from collections import Counter

import pytest
import requests

from tests.service.harness import FAULTY, Service, answer_of, eventually


def refused(service: Service) -> bool:
    try:
        service.connect(timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False


def test_the_slot_is_closed_while_the_model_loads() -> None:
    with Service(pod=True, handler="tests.service.handlers:SlowToLoad") as service:
        eventually(lambda: service.metric("percore_workers", state="loading") == 1)
        assert refused(service)
        assert service.get("/readyz").status_code == 503
        assert service.get("/livez").status_code == 200
        service.ready()
        assert service.get("/readyz").status_code == 200
        assert service.post("/v1/models/default:predict", {"inputs": {"x": 1}}).status_code == 200


def test_the_kernel_refuses_a_second_call_from_accept_until_the_worker_is_free() -> None:
    with Service(pod=True, handler=FAULTY).ready() as service:
        running = service.ask(burn=1.5)
        eventually(lambda: service.metric("percore_in_flight_requests", state="executing") == 1)
        assert refused(service)
        assert service.get("/slot").status_code == 404
        assert service.get("/readyz").status_code == 200
        assert answer_of(running)[0] == 200
        eventually(lambda: service.get("/slot").status_code == 200)
        assert service.call(sleep=0).status_code == 200


def test_the_slot_is_open_to_the_gateway_whose_call_it_holds() -> None:
    with Service(pod=True, handler=FAULTY).ready() as service:
        running = service.connect()
        running.sendall(service.raw(b'{"inputs": {"sleep": 1}}', "/v1/models/default:predict", "X-Percore-Gateway: one"))
        eventually(lambda: service.get("/slot").status_code == 404)
        assert service.get("/slot", headers={"X-Percore-Gateway": "one"}).status_code == 200
        assert service.get("/slot", headers={"X-Percore-Gateway": "two"}).status_code == 404
        assert answer_of(running)[0] == 200


def test_a_worker_that_is_replaced_takes_no_call_before_it_has_loaded() -> None:
    with Service(pod=True, handler="tests.service.handlers:SlowToLoad").ready() as service:
        (worker,) = service.workers
        os.kill(worker, signal.SIGKILL)
        eventually(lambda: refused(service), seconds=2)
        eventually(lambda: service.get("/readyz").status_code == 503, seconds=2)
        service.ready()
        assert service.post("/v1/models/default:predict", {"inputs": {"x": 1}}).status_code == 200


def test_the_first_call_after_an_abandoned_one_is_answered() -> None:
    with Service(pod=True, handler=FAULTY).ready() as service:
        for _ in range(3):
            running = eventually(lambda: _asked(service))
            assert running is not None
            eventually(lambda: service.metric("percore_in_flight_requests", state="executing") == 1)
            running.close()
            eventually(lambda: service.get("/readyz").status_code == 503)
            service.ready()
            assert eventually(lambda: _answered(service)) == 200


def _asked(service: Service) -> socket.socket | None:
    try:
        return service.ask(sleep=60)
    except ConnectionRefusedError:
        return None


def _answered(service: Service) -> int | None:
    """Call until the slot is open, which is a moment after the worker says that it has loaded."""
    try:
        return service.call(sleep=0).status_code
    except requests.ConnectionError as error:
        if "refused" in str(error):
            return None
        raise


def test_no_two_of_many_callers_ever_compute_at_once_and_everyone_else_is_told_so() -> None:
    with Service(pod=True, handler="tests.service.handlers:Span").ready() as service:
        stop = threading.Event()
        served: list[dict[str, float]] = []
        outcomes: Counter[str] = Counter()

        def call_again_and_again() -> None:
            request = service.raw(b'{"inputs": {"x": 1}}')
            while not stop.is_set():
                try:
                    connection = service.connect()
                    connection.sendall(request)
                    status, _, body = answer_of(connection)
                except OSError as error:
                    outcomes[type(error).__name__] += 1
                    continue
                outcomes[str(status)] += 1
                if status == 200:
                    served.append(json.loads(body)["outputs"])

        with concurrent.futures.ThreadPoolExecutor(8) as callers:
            for _ in range(8):
                callers.submit(call_again_and_again)
            time.sleep(4)
            stop.set()
        spans = sorted((answer["began"], answer["ended"]) for answer in served)
        assert len(spans) > 50
        assert all(ended <= began for (_, ended), (began, _) in itertools.pairwise(spans))
        # Refused by the kernel or turned away by the worker; a reset would look like a pod lost in a call.
        assert set(outcomes) <= {"200", "503", "ConnectionRefusedError"}, outcomes
        eventually(lambda: service.metric("percore_calls_total", code="200") == len(served))
        assert service.metric("percore_turned_away_calls_total") == outcomes["503"]


def test_on_sigterm_a_pod_finishes_its_call_and_takes_no_other() -> None:
    with Service(pod=True, handler=FAULTY).ready() as service:
        _, worker = service.processes
        running = service.ask(sleep=1.5)
        eventually(lambda: service.metric("percore_in_flight_requests", state="executing") == 1)
        worker.send_signal(signal.SIGTERM)
        assert refused(service)
        assert answer_of(running)[0] == 200
        assert worker.wait(10) == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", service.port), timeout=1)


def test_a_crashed_exporter_does_not_take_the_worker_down_nor_the_other_way_round() -> None:
    with Service(pod=True, handler=FAULTY).ready() as service:
        exporter, worker = service.processes
        exporter.kill()
        exporter.wait(5)
        assert service.call(sleep=0).status_code == 200
        service.processes.clear()
        service.commands = [["exporter"]]
        service.start()
        service.ready()
        worker.kill()
        worker.wait(5)
        eventually(lambda: not service.pids("worker"))
        assert service.get("/livez").status_code == 200
        eventually(lambda: service.get("/readyz").status_code == 503)
        eventually(lambda: service.metric("percore_worker_restarts_total", reason="arbiter-lost") == 1)
