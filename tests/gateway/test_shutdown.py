"""After SIGTERM the gateway answers every call that it has received, and then ends."""

import json
import signal
import threading
import time

from harness.gateway import Gateway, Worker, call, holding, parsed, read_answer, read_to_end, running
from harness.service import eventually


def test_queued_and_running_calls_are_answered_before_the_gateway_ends() -> None:
    with Worker(running(0.1)) as worker, Gateway(worker.endpoint) as gateway:
        calls = [gateway.send_call(b"%d" % number) for number in range(10)]
        eventually(lambda: gateway.queued() + gateway.executing() + len(worker.runs) >= 10)
        gateway.signal()
        for number, each in enumerate(calls):
            status, headers, body = parsed(read_to_end(each))
            assert (status, body) == (200, b"%d" % number)
            if number > 3:
                assert headers["connection"] == "close"
        assert gateway.wait(30) == 0
        assert len(worker.runs) == 10


def test_while_it_ends_no_call_is_taken_and_idle_connections_are_closed() -> None:
    release = threading.Event()
    with (
        Worker(holding(release)) as worker,
        Gateway(worker.endpoint) as gateway,
        gateway.connect() as idle,
        gateway.connect() as kept,
    ):
        idle.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_answer(idle)[0] == 200
        kept.sendall(call(b"late")[:20])
        with gateway.send_call(b"running") as connection:
            eventually(gateway.executing)
            assert gateway.get_status("/readyz").status_code == 200
            gateway.signal()
            eventually(lambda: gateway.get_status("/readyz").status_code == 503)
            assert gateway.get_status("/livez").status_code == 200
            eventually(lambda: not gateway.is_live())
            assert idle.recv(100) == b""
            kept.sendall(call(b"late")[20:])
            status, headers, body = read_answer(kept)
            assert (status, json.loads(body)["code"], headers["connection"]) == (503, "not-ready", "close")
            assert int(headers["retry-after"]) > 0
            release.set()
            assert read_answer(connection)[0] == 200
        assert gateway.wait(30) == 0
        assert worker.bodies == [b"running"]


def test_an_upload_that_has_begun_is_received_and_runs_before_the_gateway_ends() -> None:
    body = bytes(1 << 20)
    sent = call(body)
    with Worker() as worker, Gateway(worker.endpoint) as gateway:
        with gateway.send(sent[: len(sent) // 2]) as connection:
            eventually(lambda: gateway.metric("percore_gateway_uploads") == 1)
            gateway.signal()
            eventually(lambda: not gateway.is_live())
            time.sleep(1)
            connection.sendall(sent[len(sent) // 2 :])
            status, headers, received = read_answer(connection)
        assert (status, headers["connection"], len(received)) == (200, "close", len(body))
        assert gateway.wait(30) == 0
        assert worker.bodies == [body]


def test_during_the_delay_calls_are_still_taken() -> None:
    with Worker() as worker, Gateway(worker.endpoint, gateway_shutdown_delay=1) as gateway:
        began = time.monotonic()
        gateway.signal()
        eventually(lambda: gateway.get_status("/readyz").status_code == 503)
        answer = gateway.post(b"in time")
        assert (answer.status_code, answer.headers["Connection"]) == (200, "close")
        assert gateway.wait(30) == 0
        assert time.monotonic() - began >= 1
        assert worker.bodies == [b"in time"]


def test_a_second_signal_ends_the_gateway_at_once() -> None:
    release = threading.Event()
    with Worker(holding(release)) as worker, Gateway(worker.endpoint) as gateway, gateway.send_call():
        eventually(gateway.executing)
        gateway.signal()
        eventually(lambda: gateway.get_status("/readyz").status_code == 503)
        time.sleep(0.2)
        gateway.signal(signal.SIGTERM)
        gateway.wait(15)
        release.set()


def test_an_answer_whose_client_reads_slowly_is_delivered_before_the_gateway_ends() -> None:
    body = bytes(8 << 20)
    with Worker() as worker, Gateway(worker.endpoint) as gateway, gateway.connect() as connection:
        connection.sendall(call(body))
        eventually(lambda: len(worker.runs) == 1 and not gateway.executing())
        gateway.signal()
        time.sleep(0.5)
        status, _, received = parsed(read_to_end(connection))
        assert (status, len(received)) == (200, len(body))
        assert gateway.wait(30) == 0
