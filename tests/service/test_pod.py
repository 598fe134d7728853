"""The pod's worker: it says that it is free by accepting a connection, and its port stays open as long as the pod lives."""

import concurrent.futures
import contextlib
import itertools
import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.gateway import RESERVED
from harness.service import FAULTY, Service, answer_of, eventually, processes_in
from tests.exchanges import OPTIONS

RESET = b"\1\0\0\0\0\0\0\0"
PREDICT = "/v1/models/default:predict"


@pytest.fixture(scope="module")
def raising() -> Iterator[Service]:
    """A pod whose handler raises the error that its input names."""
    with Service(pod=True, handler="tests.service.handlers:RaisesErrors").ready() as service:
        yield service


def body(**inputs: object) -> bytes:
    return json.dumps({"inputs": inputs}).encode()


def reserve(service: Service) -> socket.socket:
    """Connect and send a reservation, without waiting for the answer."""
    connection = service.connect()
    connection.sendall(OPTIONS)
    return connection


def is_answered(connection: socket.socket, seconds: float) -> bool:
    """Tell whether the reservation is answered within ``seconds``."""
    connection.settimeout(seconds)
    try:
        assert connection.recv(len(RESERVED)) == RESERVED
    except TimeoutError:
        return False
    connection.settimeout(30)
    return True


def computing(service: Service) -> None:
    eventually(lambda: service.metric("percore_workers", state="busy") == 1)


def is_refused(service: Service) -> bool:
    try:
        service.connect(timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_reservation_is_answered_when_the_worker_is_free_and_not_before() -> None:
    with Service(pod=True, handler=FAULTY).ready() as service:
        running = service.send_call(burn=1)
        computing(service)
        with reserve(service) as waiting:
            assert not is_answered(waiting, 0.3)
            assert service.get("/slot").json() == {"slot": "taken"}
            assert answer_of(running)[0] == 200
            assert is_answered(waiting, 2)
            waiting.sendall(service.raw(body(sleep=0)))
            assert answer_of(waiting)[0] == 200
        eventually(lambda: service.get("/slot").json() == {"slot": "free"})
        eventually(lambda: service.metric("percore_calls_total", code="200") == 2)


def test_a_reservation_waits_for_the_load_and_the_status_server_says_so() -> None:
    with Service(pod=True, handler="tests.service.handlers:SlowToLoad") as service:
        eventually(lambda: service.metric("percore_workers", state="loading") == 1)
        with reserve(service) as waiting:
            assert service.get("/slot").json() == {"slot": "loading"}
            assert service.get("/readyz").status_code == 503
            assert service.get("/livez").status_code == 200
            early = service.get("/catalog")
            assert (early.status_code, early.json()["code"]) == (503, "not-ready")
            assert early.headers["Retry-After"]
            assert is_answered(waiting, 30)
            waiting.sendall(service.raw(body(x=1)))
            assert answer_of(waiting)[0] == 200
        assert service.get("/readyz").status_code == 200
        (model,) = service.get("/catalog").json()["models"]
        assert (model["name"], model["version"]) == ("default", 1)


def test_reservations_without_a_call_do_no_harm_and_are_not_counted() -> None:
    with Service(pod=True, handler=FAULTY).ready() as service:
        (worker,) = service.workers
        call = service.raw(body(sleep=0))
        for number in range(60):
            connection = reserve(service)
            if number % 3:
                assert is_answered(connection, 2)
            if number % 3 == 2:
                connection.sendall(call[: number % len(call)])
            if number % 2:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            connection.close()
        with reserve(service) as silent:
            assert is_answered(silent, 2)
            began = time.monotonic()
            assert silent.recv(1) == b""
            assert 0.08 < time.monotonic() - began < 1
        assert service.call(sleep=0).status_code == 200
        eventually(lambda: service.metric("percore_calls_total") == 1)
        assert service.metric("percore_worker_client_disconnects_total") == 0
        eventually(lambda: service.metric("percore_workers", state="free") == 1)
        assert service.workers == [worker]
        eventually(lambda: len(service.log("call")) == 1)


def test_a_direct_call_is_served_behind_a_reservation_that_waits_before_it() -> None:
    with Service(pod=True, handler=FAULTY).ready() as service:
        running = service.send_call(sleep=0.7)
        computing(service)
        with reserve(service) as waiting:
            time.sleep(0.05)
            direct = service.send_call(sleep=0)
            assert answer_of(running)[0] == 200
            assert is_answered(waiting, 2)
            waiting.sendall(service.raw(body(sleep=0), PREDICT, "X-Request-ID: reserved"))
            assert answer_of(waiting)[0] == 200
        assert answer_of(direct)[0] == 200
        eventually(lambda: len(service.log("call")) == 3)
        assert service.log("call")[1]["request_id"] == "reserved"


def test_two_gateways_that_reconnect_are_served_in_turn() -> None:
    with Service(pod=True, handler="tests.service.handlers:Span").ready() as service:
        stop, order = threading.Event(), []

        def serve_queue(name: str, depth: int) -> None:
            """Hold ``depth`` reservations at a time, and use each for one call."""
            held = [reserve(service) for _ in range(depth)]
            while not stop.is_set():
                connection = held.pop(0)
                assert is_answered(connection, 10)
                connection.sendall(service.raw(body(x=1)))
                assert answer_of(connection)[0] == 200
                order.append(name)
                held.append(reserve(service))
            for connection in held:
                connection.close()

        with concurrent.futures.ThreadPoolExecutor(2) as gateways:
            served = [gateways.submit(serve_queue, name, 1) for name in "ab"]
            time.sleep(3)
            stop.set()
            for each in served:
                each.result()
        counts = Counter(order)
        assert min(counts.values()) > 20
        # Each of the two reconnects at once, so neither waits for more than a few calls of the other.
        assert max(len(list(turn)) for _, turn in itertools.groupby(order)) <= 4, counts


def test_no_two_of_many_callers_ever_compute_at_once_and_each_is_served() -> None:
    with Service(pod=True, handler="tests.service.handlers:Span").ready() as service:
        stop = threading.Event()
        served: list[dict[str, float]] = []

        def call_again_and_again(reserved: bool) -> None:
            while not stop.is_set():
                connection = reserve(service) if reserved else service.connect()
                assert not reserved or is_answered(connection, 10)
                connection.sendall(service.raw(body(x=1)))
                status, _, answer = answer_of(connection)
                assert status == 200
                served.append(json.loads(answer)["outputs"])

        with concurrent.futures.ThreadPoolExecutor(8) as callers:
            results = [callers.submit(call_again_and_again, bool(number % 2)) for number in range(8)]
            time.sleep(3)
            stop.set()
            for each in results:
                each.result()
        spans = sorted((answer["began"], answer["ended"]) for answer in served)
        assert len(spans) > 50
        assert all(ended <= began for (_, ended), (began, _) in itertools.pairwise(spans))
        eventually(lambda: service.metric("percore_calls_total", code="200") == len(served))


@pytest.mark.parametrize("moment", ["loading", "waiting", "reserved", "computing"])
def test_a_worker_that_is_killed_leaves_reservations_to_the_next_one(moment: str) -> None:
    with Service(pod=True, handler="tests.service.handlers:SlowToLoad") as service:
        if moment == "loading":
            eventually(lambda: service.metric("percore_workers", state="loading") == 1)
        else:
            service.ready()
        (worker,) = service.workers
        lost = None
        if moment == "waiting":
            os.kill(worker, signal.SIGSTOP)
        if moment == "reserved":
            lost = reserve(service)
            assert is_answered(lost, 2)
            os.kill(worker, signal.SIGSTOP)
        if moment == "computing":
            lost = service.send_call(sleep=60)
            computing(service)
        with reserve(service) as waiting:
            time.sleep(0.1)
            os.kill(worker, signal.SIGKILL)
            if lost is not None:
                with lost, contextlib.suppress(ConnectionResetError):
                    assert lost.recv(1) == b""
            assert is_answered(waiting, 30)
            waiting.sendall(service.raw(body(x=1)))
            assert answer_of(waiting)[0] == 200
        assert service.workers != [worker]
        eventually(lambda: [line["status"] for line in service.log("call")] == ["200"])


def test_a_worker_that_is_killed_in_the_middle_of_a_call_s_body_has_computed_nothing() -> None:
    with Service(pod=True, handler=FAULTY).ready() as service:
        (worker,) = service.workers
        call = service.raw(body(sleep=0))
        with reserve(service) as connection:
            assert is_answered(connection, 2)
            connection.sendall(call[:-1])
            time.sleep(0.05)
            os.kill(worker, signal.SIGKILL)
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b""
        with reserve(service) as again:
            assert is_answered(again, 30)
            again.sendall(call)
            assert answer_of(again)[0] == 200


def test_a_call_whose_client_left_after_its_last_byte_ends_its_worker_and_the_next_reservation_is_answered() -> None:
    with Service(pod=True, handler=FAULTY).ready() as service:
        (worker,) = service.workers
        padded = service.raw(json.dumps({"inputs": {"sleep": 60, "pad": "x" * 5_000_000}}).encode())
        running = reserve(service)
        assert is_answered(running, 2)
        running.sendall(padded)  # at once: a reservation lasts for 100 ms
        computing(service)
        with reserve(service) as waiting:
            running.close()
            assert is_answered(waiting, 30)
            waiting.sendall(service.raw(body(sleep=0)))
            assert answer_of(waiting)[0] == 200
        assert service.workers != [worker]
        eventually(lambda: service.metric("percore_worker_client_disconnects_total", state="executing") == 1)


def test_the_slot_is_taken_until_a_call_whose_client_left_returns() -> None:
    with Service(pod=True, handler=FAULTY, on_client_disconnect="finish").ready() as service:
        running = service.send_call(burn=1.5)
        eventually(lambda: service.get("/slot").json() == {"slot": "taken"})
        running.close()
        eventually(lambda: service.metric("percore_worker_client_disconnects_total", state="executing") == 1)
        with reserve(service) as waiting:
            # The slot that it reports is right: it is taken until the worker accepts the next connection.
            while not is_answered(waiting, 0.02):
                said = service.get("/slot").json()["slot"]
                assert said == "taken" or is_answered(waiting, 0.1)
                if said != "taken":
                    break
        lines = eventually(lambda: service.log("call"))
        assert lines[0]["run_seconds"] >= 1.4


def test_on_sigterm_reservations_that_wait_are_reset_the_running_call_ends_and_the_exit_is_0() -> None:
    with Service(pod=True, handler=FAULTY).ready() as service:
        _, worker = service.processes
        running = service.send_call(sleep=1.5)
        computing(service)
        waiting = [reserve(service) for _ in range(20)]
        time.sleep(0.1)
        worker.send_signal(signal.SIGTERM)
        began = time.monotonic()
        for connection in waiting:
            with connection, pytest.raises(ConnectionResetError):
                connection.recv(1)
        assert time.monotonic() - began < 1
        assert is_refused(service)
        assert answer_of(running)[0] == 200
        assert worker.wait(10) == 0
        assert is_refused(service)
        assert not [line for line in service.log() if "trace" in line or "Exception" in line["message"]]


def test_on_sigterm_a_worker_that_is_reserved_still_takes_its_call() -> None:
    with Service(pod=True, handler=FAULTY).ready() as service:
        _, worker = service.processes
        with reserve(service) as connection:
            assert is_answered(connection, 2)
            worker.send_signal(signal.SIGTERM)
            connection.sendall(service.raw(body(sleep=0.5)))
            assert answer_of(connection)[0] == 200
        assert worker.wait(10) == 0


@pytest.mark.parametrize("reserved", [True, False])
def test_on_sigterm_a_worker_with_nothing_to_do_ends_at_once(reserved: bool) -> None:
    with Service(pod=True, handler=FAULTY).ready() as service:
        _, worker = service.processes
        connection = reserve(service)
        assert is_answered(connection, 2)
        if not reserved:
            connection.close()
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0
        connection.close()
        assert not [line for line in service.log() if "trace" in line or "Exception" in line["message"]]


def test_signals_of_gunicorn_start_no_worker_beside_the_one_that_computes() -> None:
    """On SIGHUP Gunicorn would fork a new worker at once, and end the old one when its call has ended."""
    with Service(pod=True, handler=FAULTY).ready() as service:
        before = service.pids("worker")
        running = service.send_call(sleep=4)
        computing(service)
        sent = (signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR2, signal.SIGWINCH)
        for each in sent:
            os.kill(before[0], each)
        said = {f"{each.name} does nothing here: restart percore to have new workers or new settings" for each in sent}
        eventually(lambda: said <= {line["message"] for line in service.log()})
        assert answer_of(running)[0] == 200
        assert service.pids("worker") == before


def test_a_killed_arbiter_gives_the_port_up_while_its_worker_still_computes() -> None:
    with Service(pod=True, handler=FAULTY).ready() as service:
        _, arbiter = service.processes
        running = service.send_call(sleep=2)
        computing(service)
        with reserve(service) as waiting:
            arbiter.kill()
            arbiter.wait(30)
            waiting.settimeout(1)
            with pytest.raises(ConnectionResetError):
                waiting.recv(1)
        assert is_refused(service)
        assert answer_of(running)[0] == 200
        eventually(lambda: not service.pids("worker"))
        socket.create_server(("127.0.0.1", service.port)).close()
        eventually(lambda: service.metric("percore_worker_restarts_total", reason="arbiter-lost") == 1)


def test_a_crashed_status_server_does_not_take_the_worker_down_nor_the_other_way_round() -> None:
    with Service(pod=True, handler=FAULTY).ready() as service:
        status, worker = service.processes
        status.kill()
        status.wait(30)
        assert service.call(sleep=0).status_code == 200
        service.processes.clear()
        service.commands = [["status-server"]]
        service.start()
        service.ready()
        worker.kill()
        worker.wait(30)
        eventually(lambda: not service.pids("worker"))
        assert service.get("/livez").status_code == 200
        eventually(lambda: service.get("/readyz").status_code == 503)
        eventually(lambda: service.metric("percore_worker_restarts_total", reason="arbiter-lost") == 1)


@pytest.mark.parametrize(
    "error",
    ["RunTimeout", "NotReady", "QueueTimeout", "QueueFull", "Overloaded", "PodLost", "NotFound", "BodyTimeout", "CallError"],
)
def test_an_error_of_ours_that_a_handler_raises_is_500(raising: Service, error: str) -> None:
    answer = raising.post(PREDICT, {"inputs": {"error": error}})
    assert (answer.status_code, answer.json()["code"]) == (500, "handler-failed")
    assert "Retry-After" not in answer.headers


@pytest.mark.parametrize("error", ["BadInput", "BadRequest", "Mine"])
def test_bad_input_of_a_handler_is_400_with_the_usual_code(raising: Service, error: str) -> None:
    answer = raising.post(PREDICT, {"inputs": {"error": error}})
    assert (answer.status_code, answer.json()) == (400, {"error": "as asked", "code": "bad-input"})
    assert "Retry-After" not in answer.headers


def test_the_kernel_sends_keepalives_on_every_connection(raising: Service) -> None:
    with raising.connect() as connection:
        connection.sendall(b"POST / HT")  # so that the worker holds it for a while
        timers = eventually(lambda: _keepalive_timers(raising.port, connection.getsockname()[1]))
        assert 0 < timers <= 5


def _keepalive_timers(port: int, peer: int) -> float:
    """Return the seconds to the first probe on the worker's side of a connection, or 0 if none is due."""
    for row in (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]):
        if row[1].endswith(f":{port:04X}") and row[2].endswith(f":{peer:04X}"):
            kind, _, jiffies = row[5].partition(":")
            return int(jiffies, 16) / os.sysconf("SC_CLK_TCK") if kind == "02" else 0.0
    return 0.0


def test_nothing_is_left_when_the_pod_has_ended() -> None:
    with Service(pod=True, handler=FAULTY).ready() as service:
        for process in reversed(service.processes):
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
        assert not processes_in(service.environ_mark)
