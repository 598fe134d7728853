"""What systemd sees of a service: the message at its stop, and the processes that are left when the supervisor dies.

systemd itself is not needed: a datagram socket receives what percore sends to it, and a child subreaper gets the orphans.
"""

import contextlib
import ctypes
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.service import FAULTY, Service, answer_of, eventually, is_lost, processes_in
from tests.stored_client import Stored

PR_SET_CHILD_SUBREAPER = 36


@pytest.fixture
def subreaper() -> Iterator[None]:
    """Make this process the parent of orphans, as systemd is on a machine."""
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    yield
    prctl(PR_SET_CHILD_SUBREAPER, 0)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def test_at_a_stop_the_supervisor_alone_asks_systemd_for_more_time_than_calls_have(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.settimeout(30)
        systemd.bind(str(tmp_path / "notify"))
        service = Service(handler=FAULTY, shutdown_timeout=600)
        service.environ["NOTIFY_SOCKET"] = str(tmp_path / "notify")
        with service.ready(1):
            running = service.send_call(sleep=2)
            service.until(executing=1)
            service.processes[0].terminate()
            assert systemd.recv(100) == b"EXTEND_TIMEOUT_USEC=660000000"
            assert answer_of(running)[0] == 200
            assert service.processes[0].wait(20) == 0
        systemd.setblocking(False)
        with pytest.raises(BlockingIOError):
            systemd.recv(100)


def test_if_systemd_does_not_listen_the_stop_goes_on(tmp_path: Path) -> None:
    service = Service(handler=FAULTY)
    service.environ["NOTIFY_SOCKET"] = str(tmp_path / "missing")
    with service.ready(1):
        service.processes[0].terminate()
        assert service.processes[0].wait(20) == 0


@pytest.mark.usefixtures("subreaper")
def test_if_the_supervisor_is_killed_every_process_ends_by_itself_and_the_next_start_serves(tmp_path: Path) -> None:
    with Service(handler=FAULTY, gateway_calls_dir=tmp_path).ready(2) as service:
        stored = Stored(service)
        path = stored.store(sleep=2)
        service.until(executing=1)
        running = service.send_call(sleep=2)
        service.until(executing=2)
        service.processes[0].kill()
        service.processes[0].wait(30)
        # Without systemd, running calls may finish. With systemd, KillMode=mixed kills the other processes at once.
        assert answer_of(running)[0] == 200
        eventually(lambda: not processes_in(service.environ_mark), 30)
        service.processes.clear()
        service.ready(2)
        assert service.call(sleep=0).status_code == 200
        assert stored.ended(path)["state"] == "succeeded"


@pytest.mark.usefixtures("subreaper")
def test_if_systemd_kills_the_rest_too_the_next_start_runs_the_stored_call_again(tmp_path: Path) -> None:
    with Service(handler=FAULTY, gateway_calls_dir=tmp_path).ready(2) as service:
        stored = Stored(service)
        path = stored.store(sleep=3)
        running = service.send_call(sleep=60)
        service.until(executing=2)
        for pid in processes_in(service.environ_mark):
            os.kill(pid, signal.SIGKILL)
        service.processes[0].wait(30)
        assert is_lost(running)
        eventually(lambda: not processes_in(service.environ_mark))
        service.processes.clear()
        service.ready(2)
        assert stored.ended(path)["state"] == "succeeded"
