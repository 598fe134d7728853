"""Processes that die by ``kill -9``: the answer to the caller, the restart, and the metrics."""

import fcntl
import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from harness.service import FAULTY, ROOT, Service, answer_of, eventually, is_lost, processes_in


@pytest.mark.parametrize("sent", [signal.SIGQUIT, signal.SIGINT])
def test_a_worker_that_must_end_at_once_loses_its_call_and_logs_no_error(sent: signal.Signals) -> None:
    with Service(handler=FAULTY).ready(workers=2) as service:
        killed, pid = service.send_call_and_find_worker(sleep=60)
        os.kill(pid, sent)
        status, _, body = answer_of(killed)
        assert (status, json.loads(body)["code"]) == (502, "pod-lost")
        service.ready(workers=2)
        eventually(lambda: service.metric("percore_calls_total", code="lost") == 1)
        assert not [line for line in service.log() if "trace" in line]


def test_a_worker_killed_in_a_call_costs_that_call_alone_and_comes_back_on_its_core() -> None:
    with Service(handler=FAULTY).ready(workers=2) as service:
        killed, pid = service.send_call_and_find_worker(sleep=60)
        other = service.send_call(sleep=1)
        service.until(executing=2)
        core = os.sched_getaffinity(pid)
        os.kill(pid, signal.SIGKILL)
        status, headers, body = answer_of(killed)
        assert (status, json.loads(body)["code"]) == (502, "pod-lost")
        assert "Retry-After" not in headers  # it may have computed: whether to send it again is the caller's decision
        assert headers["x-request-id"]
        assert answer_of(other)[0] == 200
        assert service.call(sleep=0).status_code == 200
        service.ready(workers=2)
        eventually(lambda: service.metric("percore_calls_total", code="lost") == 1)
        eventually(lambda: service.metric("percore_worker_restarts_total", reason="crashed") == 1)
        service.until(executing=0, queued=0)
        assert core in [os.sched_getaffinity(worker) for worker in service.workers]
        assert len({frozenset(os.sched_getaffinity(worker)) for worker in service.workers}) == 2


def test_a_gateway_killed_in_a_call_costs_the_calls_that_it_had_taken_and_comes_back_knowing_the_workers() -> None:
    with Service(handler=FAULTY, on_client_disconnect="finish").ready(workers=2) as service:
        workers, killed = service.workers, service.gateway
        running = service.send_call(sleep=4)
        service.until(executing=1)
        os.kill(killed, signal.SIGKILL)
        assert is_lost(running)
        eventually(lambda: service.pids("gateway") not in ([], [killed]))
        # The worker computes to its end, as PERCORE_ON_CLIENT_DISCONNECT says, and the new gateway knows that it is busy.
        eventually(lambda: service.metric("percore_workers", state="busy") == 1, 3)
        eventually(lambda: service.get("/readyz").status_code == 200, 3)
        assert service.get("/v1/models/default").status_code == 200
        assert service.call(sleep=0).status_code == 200
        service.ready(workers=2)
        assert service.workers == workers
        assert service.metric("percore_worker_restarts_total") == 0


def test_an_arbiter_killed_in_a_call_costs_no_call_and_never_puts_two_on_a_core() -> None:
    with Service(handler=FAULTY).ready(workers=2) as service:
        arbiter, orphans = service.arbiter, service.workers
        running = [service.send_call(sleep=3) for _ in range(2)]
        service.until(executing=2)
        queued = [service.send_call(sleep=0) for _ in range(10)]
        service.until(queued=10)
        os.kill(arbiter, signal.SIGKILL)
        eventually(lambda: arbiter not in service.pids("worker") and len(service.pids("worker")) == 5)
        # The new workers wait for the cores on which the old workers still compute.
        assert service.metric("percore_workers", state="loading") == 0
        assert [answer_of(connection)[0] for connection in (*running, *queued)] == [200] * 12
        service.ready(workers=2)
        assert not set(orphans) & set(service.workers)
        eventually(lambda: service.metric("percore_worker_restarts_total", reason="arbiter-lost") == 2)
        service.until(executing=0, queued=0)


def test_a_worker_that_keeps_pythons_lock_ends_also_without_an_arbiter_and_keeps_its_core_until_then() -> None:
    with Service(handler="tests.service.handlers:KeepsTheLock", run_timeout=1).ready(workers=2) as service:
        connection, pid = service.send_call_and_find_worker(x=1)
        core = os.sched_getaffinity(pid)
        os.kill(service.arbiter, signal.SIGKILL)
        eventually(lambda: len(service.log("ready after")) == 3)
        assert pid in service.pids("worker")
        assert os.sched_getaffinity(service.log("ready after")[-1]["pid"]).isdisjoint(core)
        status, _, body = answer_of(connection)  # the kernel has killed the worker: nothing else ends it
        assert (status, json.loads(body)["code"]) == (502, "pod-lost")
        service.ready(workers=2)
        assert pid not in service.workers
        assert os.sched_getaffinity(service.log("ready after")[-1]["pid"]) == core


def test_a_supervisor_killed_leaves_no_orphan_on_the_port_and_the_calls_that_were_taken_are_answered() -> None:
    with Service(handler=FAULTY).ready(workers=2) as service:
        connection = service.send_call(sleep=1)
        service.until(executing=1)
        service.processes[0].kill()
        service.processes[0].wait(30)
        eventually(service.is_refused)
        assert answer_of(connection)[0] == 200
        eventually(lambda: not service.pids(""))
        socket.create_server(("127.0.0.1", service.port)).close()
        service.processes.clear()
        service.start()
        service.ready(workers=2)
        assert service.call(sleep=0).status_code == 200


def test_a_worker_that_ends_itself_in_a_call_is_replaced_whatever_its_exit_code() -> None:
    with Service(handler=FAULTY).ready(workers=2) as service:
        arbiter = service.arbiter
        codes = (0, 1, 3, 4, 78, 255)
        for code in codes:
            before = service.workers
            assert answer_of(service.send_call(exit=code))[0] == 502
            eventually(lambda before=before: service.workers != before)  # type: ignore[misc]
            service.ready(workers=2)
        assert service.arbiter == arbiter
        eventually(lambda: service.metric("percore_calls_total", code="lost") == len(codes))


def test_a_load_that_fails_after_a_worker_was_ready_is_tried_again_and_the_service_goes_on() -> None:
    with Service(handler="tests.service.handlers:FailsWhenForbidden").ready(workers=2) as service:
        forbidden = Path(service.environ["PERCORE_STATE_DIR"]) / "forbidden"
        forbidden.touch()
        os.kill(service.workers[0], signal.SIGKILL)
        eventually(lambda: len(service.log("cannot start: handler tests.service.handlers:FailsWhenForbidden")) >= 2)
        assert service.post("/v1/models/default:predict", {"inputs": {"x": 1}}).status_code == 200
        forbidden.unlink()
        service.ready(workers=2)
        assert service.processes[0].poll() is None


def test_processes_of_a_handler_hold_no_connection_and_end_with_its_worker() -> None:
    with Service(handler="tests.service.handlers:StartsProcesses").ready(workers=2) as service:
        before = set(service.workers)
        connection = service.connect()
        connection.sendall(service.raw(b'{"inputs": {"x": 1}}'))
        ours = {service.processes[0].pid, service.gateway, service.arbiter, *before}
        children = eventually(lambda: set(service.pids("")) - ours)
        eventually(lambda: len(processes_in(service.environ_mark)) == 7)
        connection.close()
        service.ready(workers=2)
        eventually(lambda: service.metric("percore_worker_restarts_total", reason="client-disconnect") == 1)
        eventually(lambda: len(processes_in(service.environ_mark)) == 5)
        assert children


def test_a_thread_that_a_handler_left_does_not_hold_up_the_stop() -> None:
    with Service(handler="tests.service.handlers:LeavesThreads").ready(workers=2) as service:
        assert service.post("/v1/models/default:predict", {"inputs": {"x": 1}}).status_code == 200
        service.processes[0].send_signal(signal.SIGTERM)
        assert service.processes[0].wait(10) == 0


def test_the_ports_stay_taken_while_the_gateway_is_away_and_a_probe_waits_for_the_next_one() -> None:
    with Service(handler=FAULTY).ready(workers=2) as service:
        os.kill(service.gateway, signal.SIGKILL)
        for port in (service.port, service.status_port):
            with pytest.raises(OSError, match="in use"):
                socket.create_server(("127.0.0.1", port))
        assert service.get("/livez").status_code == 200
        assert service.call(sleep=0).status_code == 200


def test_a_handler_that_raises_answers_500_without_a_trace_and_keeps_its_worker() -> None:
    with Service(handler=FAULTY).ready(workers=2) as service:
        before = service.workers
        answer = service.call(fail="secret detail")
        assert answer.status_code == 500
        assert answer.json()["code"] == "handler-failed"
        assert "secret" not in answer.text
        assert service.workers == before
        eventually(lambda: any("secret detail" in line.get("trace", "") for line in service.log()))


def test_a_second_service_on_the_same_port_or_folder_is_refused_in_one_line() -> None:
    with Service(handler=FAULTY).ready() as first:
        for settings in ({"port": first.port}, {"state_dir": first.environ["PERCORE_STATE_DIR"]}):
            with Service(handler=FAULTY, **settings) as second:
                assert second.processes[0].wait(10) == 78
                (line,) = second.log_path.read_text().splitlines()
                assert line.startswith("percore: cannot start: PERCORE_")


def test_a_reader_of_the_log_that_stalls_holds_up_neither_calls_nor_the_watchdog_nor_the_stop() -> None:
    service = Service(handler=FAULTY, run_timeout=2)
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    try:
        service.start(write)
        with service.ready(workers=2):
            for _ in range(100):
                assert service.call().status_code == 200
            assert service.call(sleep=60).status_code == 504
            os.kill(service.workers[0], signal.SIGKILL)
            eventually(lambda: service.metric("percore_workers", state="free") == 2, 20)
            service.processes[0].send_signal(signal.SIGTERM)
            assert service.processes[0].wait(20) == 0
    finally:
        os.close(write)
        os.close(read)


def test_workers_of_one_machine_get_only_calls() -> None:
    """The gateway of a cluster fetches the catalog from pods.

    That of one machine must not ask its workers, because a request would hold a worker.
    """
    with Service(handler=FAULTY, log_level="debug").ready(workers=2) as service:
        running = [service.send_call(sleep=3) for _ in range(2)]
        service.until(executing=2)
        assert [answer_of(connection)[0] for connection in running] == [200, 200]
        time.sleep(1)
        assert not [line for line in service.log() if "catalog" in line["message"]]
        assert service.metric("percore_worker_client_disconnects_total") == 0


def test_a_state_dir_may_be_a_relative_path(tmp_path: Path) -> None:
    service = Service(handler=FAULTY, state_dir="run")
    service.cwd = tmp_path
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    with service.ready(workers=2):
        assert service.call(sleep=0).status_code == 200


def test_a_second_signal_ends_a_call_inside_c_and_leaves_no_process() -> None:
    with Service(handler="tests.service.handlers:ComputesInC", on_client_disconnect="finish").ready(workers=2) as service:
        running = service.send_call(x=1)
        service.until(executing=1)
        supervisor = service.processes[0]
        for _ in range(2):
            supervisor.send_signal(signal.SIGTERM)
            time.sleep(0.5)
        assert supervisor.wait(20) == 0
        eventually(lambda: not processes_in(service.environ_mark))
        running.close()


def test_a_supervisor_that_is_killed_while_it_stops_leaves_no_process_and_no_port() -> None:
    with Service(handler=FAULTY).ready(workers=2) as service:
        running = service.send_call(sleep=60)
        service.until(executing=1)
        supervisor = service.processes[0]
        supervisor.send_signal(signal.SIGTERM)
        eventually(lambda: service.log("stopping: no new calls"))
        supervisor.send_signal(signal.SIGUSR1)  # does nothing
        supervisor.kill()
        assert supervisor.wait(20) == -signal.SIGKILL
        running.close()
        eventually(lambda: not processes_in(service.environ_mark), 20)
        for port in (service.port, service.status_port):
            socket.create_server(("127.0.0.1", port)).close()


def test_at_the_shutdown_timeout_queued_calls_are_answered_503() -> None:
    with Service(handler=FAULTY, shutdown_timeout=1).ready(workers=2) as service:
        running = [service.send_call(sleep=60) for _ in range(2)]
        service.until(executing=2)
        queued = service.send_call(sleep=0)
        service.until(queued=1)
        service.processes[0].send_signal(signal.SIGTERM)
        status, _, body = answer_of(queued)
        assert (status, json.loads(body)["code"]) == (503, "not-ready")
        assert service.processes[0].wait(20) == 0
        for connection in running:
            assert is_lost(connection)


@pytest.mark.parametrize("sent", [signal.SIGHUP, signal.SIGQUIT])
def test_a_terminal_that_closes_causes_a_graceful_shutdown(sent: signal.Signals) -> None:
    with Service(handler=FAULTY).ready(workers=2) as service:
        running = service.send_call(sleep=1)
        service.until(executing=1)
        service.processes[0].send_signal(signal.SIGUSR1)
        service.processes[0].send_signal(sent)
        assert answer_of(running)[0] == 200
        assert service.processes[0].wait(20) == 0


def test_signals_of_gunicorn_change_neither_the_number_of_workers_nor_the_arbiter() -> None:
    with Service(handler=FAULTY).ready(workers=2) as service:
        before = service.pids("worker")
        for sent in (signal.SIGTTIN, signal.SIGTTOU, signal.SIGTTOU, signal.SIGUSR2, signal.SIGWINCH):
            os.kill(before[0], sent)
            time.sleep(0.2)
        time.sleep(1.5)
        assert service.pids("worker") == before
        assert not [line for line in service.log() if "trace" in line]


def test_processes_of_a_handler_end_with_its_worker_also_without_an_arbiter() -> None:
    with Service(handler="tests.service.handlers:LeavesAProcess").ready(workers=2) as service:
        ours = set(processes_in(service.environ_mark))
        connection = service.send_call(x=1)
        children = eventually(lambda: set(processes_in(service.environ_mark)) - ours)
        os.kill(service.pids("worker")[0], signal.SIGKILL)
        answer_of(connection)
        eventually(lambda: not children & set(processes_in(service.environ_mark)), 10)
