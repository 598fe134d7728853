"""Load, body, queue, run, answer and shutdown: each phase of a call has its own timeout."""

import json
import os
import signal
import threading
import time

import requests

from harness.service import FAULTY, Service, answer_of, eventually, is_lost, processes_in


def test_a_call_over_the_run_timeout_is_answered_504_and_its_worker_is_replaced() -> None:
    with Service(handler=FAULTY, run_timeout=1).ready() as service:
        before = set(service.workers)
        answer = service.call(sleep=30)
        assert answer.status_code == 504
        assert answer.json() == {
            "error": "the call computed longer than the run timeout, 1 s, and was ended",
            "code": "run-timeout",
        }
        assert answer.headers["X-Request-ID"]
        eventually(lambda: service.metric("percore_worker_restarts_total", reason="run-timeout") == 1)
        service.ready(workers=len(before))
        assert len(before & set(service.workers)) == len(before) - 1
        assert service.call(sleep=0).status_code == 200
        eventually(lambda: service.metric("percore_calls_total", code="504") == 1)


def test_a_client_that_sends_slowly_holds_no_worker_and_gets_408_after_the_body_timeout() -> None:
    # With all cores for one call there is one worker.
    with Service(handler=FAULTY, body_timeout=2, cores_per_call=len(os.sched_getaffinity(0))).ready() as service:
        head, connection = service.connect(), service.connect()
        head.sendall(b"POST / HT")  # a head has ten seconds; tests.gateway tests that
        connection.sendall(b"POST /v1/models/default:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        stop = threading.Event()

        def trickle() -> None:
            while not stop.wait(0.1):
                try:
                    connection.sendall(b" ")
                except OSError:
                    return

        trickler = threading.Thread(target=trickle)
        trickler.start()
        began = time.monotonic()
        assert service.call(sleep=0).status_code == 200
        assert time.monotonic() - began < 1.5
        status, headers, body = answer_of(connection)
        stop.set()
        trickler.join()
        assert status == 408
        assert headers["content-type"] == "application/json"
        assert b'"code":"body-timeout"' in body
        assert not [line for line in service.runs() if line["status"] != "200"]
        head.close()


def test_clients_that_connect_and_send_nothing_hold_no_worker() -> None:
    with Service(handler=FAULTY).ready() as service:
        silent = [service.connect() for _ in range(20)]
        began = time.monotonic()
        assert service.call(sleep=0, timeout=10).status_code == 200
        assert time.monotonic() - began < 1.5
        for connection in silent:
            connection.close()


def test_a_call_that_was_queued_too_long_gets_503_and_never_runs() -> None:
    with Service(handler=FAULTY, queue_timeout=1, on_client_disconnect="finish").ready(workers=2) as service:
        running = [service.send_call(sleep=2.5) for _ in range(2)]
        service.until(executing=2)
        late = service.call(exit=9)
        assert late.status_code == 503
        assert late.json()["code"] == "queue-timeout"
        assert late.headers["Retry-After"]
        service.until(executing=2)  # it is answered when its time is over, not when a worker is free
        assert [answer_of(connection)[0] for connection in running] == [200, 200]
        assert service.metric("percore_worker_restarts_total") == 0


def test_queue_time_and_run_time_are_measured_apart() -> None:
    with Service(handler=FAULTY).ready(workers=2) as service:
        running = [service.send_call(sleep=1) for _ in range(2)]
        service.until(executing=2)
        timing = service.call(sleep=0.3).headers["Server-Timing"]
        parts = dict(part.strip().split(";dur=") for part in timing.split(","))
        assert 300 < float(parts["queue"]) < 1200
        assert 300 <= float(parts["run"]) < 600
        for connection in running:
            answer_of(connection)
        eventually(lambda: service.metric("percore_call_queue_seconds_count") == 3)


def test_a_load_over_the_load_timeout_ends_the_service_with_one_clear_line() -> None:
    with Service(handler="tests.service.handlers:SlowToLoad", load_timeout=1) as service:
        assert service.processes[0].wait(20) == 78
        assert len(service.log("cannot start: the models were not loaded within PERCORE_LOAD_TIMEOUT, 1 s")) >= 1


def test_a_load_that_fails_ends_the_service_with_one_clear_line() -> None:
    with Service(handler="tests.service.handlers:FailsToLoad") as service:
        assert service.processes[0].wait(20) == 78
        lines = service.log("cannot start")
        assert lines
        assert "tests.service.handlers:FailsToLoad" in lines[0]["message"]
        assert "no such weights" in lines[0]["message"]
        assert len({line["message"] for line in lines}) == 1


def test_a_slow_load_trips_no_timeout_and_calls_wait_for_it() -> None:
    with Service(handler="tests.service.handlers:SlowToLoad", load_timeout=60, run_timeout=1, body_timeout=1) as service:
        answer = eventually(lambda: _try(service), seconds=60)
        assert answer is not None
        assert answer.status_code == 200
        assert service.metric("percore_worker_restarts_total") == 0
        assert service.metric("percore_model_load_seconds", model="default") > 3


def _try(service: Service) -> requests.Response | None:
    try:
        return service.post("/v1/models/default:predict", {"inputs": {"x": 1}})
    except OSError:
        return None


def test_on_sigterm_running_queued_and_uploading_calls_are_served_new_ones_are_refused_and_the_exit_is_0() -> None:
    with Service(handler=FAULTY).ready(workers=2) as service:
        running = [service.send_call(sleep=3) for _ in range(2)]
        service.until(executing=2)
        queued = [service.send_call(sleep=0.1) for _ in range(20)]
        service.until(queued=20)
        sent = service.raw(json.dumps({"inputs": {"sleep": 0}}).encode() + b" " * 1_000_000)
        uploading = service.connect()
        uploading.sendall(sent[: len(sent) // 2])
        eventually(lambda: service.metric("percore_gateway_uploads") == 1)
        service.processes[0].send_signal(signal.SIGTERM)
        eventually(service.is_refused)
        eventually(lambda: service.get("/readyz").status_code == 503)
        uploading.sendall(sent[len(sent) // 2 :])
        assert [answer_of(connection)[0] for connection in (*running, *queued, uploading)] == [200] * 23
        assert service.processes[0].wait(10) == 0
        assert service.is_refused()
        assert not processes_in(service.environ_mark)


def test_on_sigterm_a_call_over_the_shutdown_timeout_is_killed() -> None:
    with Service(handler=FAULTY, shutdown_timeout=1).ready(workers=2) as service:
        running = service.send_call(sleep=60)
        service.until(executing=1)
        service.processes[0].send_signal(signal.SIGTERM)
        assert service.processes[0].wait(10) == 0
        assert is_lost(running)


def test_an_answered_call_is_no_longer_watched() -> None:
    with Service(handler=FAULTY, run_timeout=1).ready(workers=2) as service:
        before = service.workers
        for _ in range(4):
            assert service.call(sleep=0.2).status_code == 200
        time.sleep(1.5)
        assert service.workers == before
        assert service.metric("percore_worker_restarts_total") == 0


def test_if_the_watchdog_fails_the_arbiter_s_signal_makes_the_worker_answer_504() -> None:
    with Service(handler=FAULTY).ready(workers=2) as service:
        running = service.send_call(burn=60)
        service.until(executing=1)
        for pid in service.workers:
            os.kill(pid, signal.SIGABRT)  # as the arbiter does if a worker has sent no heartbeat for too long
        assert answer_of(running)[0] == 504
        service.ready(workers=2)


def test_calls_are_served_in_the_order_in_which_they_came() -> None:
    # With all cores for one call there is one worker, so that nothing but the queue decides the order.
    with Service(handler=FAULTY, cores_per_call=len(os.sched_getaffinity(0))).ready() as service:
        running = service.send_call(sleep=1)
        service.until(executing=1)
        queued = []
        for number in range(12):
            connection = service.connect()
            body = b'{"inputs": {"sleep": 0}}'
            connection.sendall(service.raw(body, "/v1/models/default:predict", f"X-Request-ID: {number}"))
            queued.append(connection)
            time.sleep(0.02)
        for connection in [running, *queued]:
            assert answer_of(connection)[0] == 200
        eventually(lambda: len(service.runs()) == 13)
        served = [line["request_id"] for line in service.runs() if len(line["request_id"]) < 3]
        assert served == [str(number) for number in range(12)]


def test_every_line_of_the_log_is_json() -> None:
    with Service(handler=FAULTY, log_level="debug", run_timeout=1).ready(workers=2) as service:
        service.call(fail="once")
        service.call(sleep=5)
        service.get("/nowhere")
        service.processes[0].send_signal(signal.SIGTERM)
        assert service.processes[0].wait(10) == 0
        for line in service.log_path.read_text().splitlines():
            assert {"time", "level", "logger", "message", "pid"} <= set(json.loads(line)), line


def test_a_second_signal_does_not_wait_for_running_calls() -> None:
    with Service(handler=FAULTY).ready(workers=2) as service:
        running = service.send_call(sleep=60)
        service.until(executing=1)
        service.processes[0].send_signal(signal.SIGINT)
        eventually(lambda: service.log("stopping"))
        service.processes[0].send_signal(signal.SIGINT)
        assert service.processes[0].wait(10) == 0
        running.close()
