"""Peers that vanish without closing their connections, like a machine that loses its power.

The test drops the packets of a network namespace.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial

import pytest
from percore.gateway.endpoints import Endpoint

from harness.gateway import BIG, Gateway, Worker, call, outcome
from harness.service import FAULTY, ROOT, Service, eventually

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and ip (iproute2), for a network namespace"
)
PORT = 8080
WORKER = """
from tests.exchanges import RESERVED
import socket, sys, time
port, most = map(int, sys.argv[1:])
listener = socket.create_server(("", port))
print("listens", flush=True)
connection, _ = listener.accept()
assert connection.recv(1000).startswith(b"OPTIONS")
if most:
    connection.sendall(RESERVED)
received = 0
while received < most:
    received += len(connection.recv(most - received))
print("has read", flush=True)
time.sleep(300)
"""
SMALL, LARGE = b"{}", bytes(BIG)
STEPS = {"reservation": (SMALL, 0), "head": (LARGE, 20), "body": (LARGE, 100_000), "run": (SMALL, len(call(SMALL)))}
"""What a worker gets, and how many bytes of it the worker has read when it vanishes. With 0 it does not answer the
reservation."""
CLIENT = """
import socket, sys, time
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])))
connection.sendall(bytes.fromhex(sys.argv[3]))
time.sleep(300)
"""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=10)


class Elsewhere:
    """Stands for another machine: a network namespace with a link to this one."""

    def __init__(self) -> None:
        self.name = f"percore-{os.getpid()}"
        self._link = f"pc{os.getpid() % 100_000}"
        net = f"10.213.{os.getpid() % 250}"
        self.here, self.there = f"{net}.1", f"{net}.2"
        self._processes: list[subprocess.Popen[str]] = []

    def make(self) -> None:
        ip("netns", "add", self.name)
        ip("link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        ip("address", "add", f"{self.here}/24", "dev", self._link)
        ip("link", "set", self._link, "up")
        ip("-n", self.name, "address", "add", f"{self.there}/24", "dev", "eth0")
        ip("-n", self.name, "link", "set", "eth0", "up")

    def run(self, program: str, *arguments: str) -> subprocess.Popen[str]:
        command = ["ip", "netns", "exec", self.name, sys.executable, "-c", program, *arguments]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        self._processes.append(process)
        return process

    def vanish(self) -> None:
        """Drop every packet from now on, without an answer."""
        ip("-n", self.name, "link", "set", "eth0", "down")

    def remove(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait(30)
            if process.stdout is not None:
                process.stdout.close()
        for arguments in (["link", "delete", self._link], ["netns", "delete", self.name]):
            with contextlib.suppress(subprocess.CalledProcessError):
                ip(*arguments)


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    machine = Elsewhere()
    try:
        try:
            machine.make()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this system makes no network namespaces: {error.stderr.decode().strip()}")
        yield machine
    finally:
        machine.remove()


def test_pods_and_a_client_that_vanish_are_noticed_by_keepalives(elsewhere: Elsewhere) -> None:
    """One pod vanishes at each step of a call. A call that cannot have run is queued again, and runs once."""
    with contextlib.ExitStack() as stack:
        gateways, calls, endpoints = {}, {}, {}
        for port, (step, (body, received)) in enumerate(STEPS.items(), PORT):
            worker = elsewhere.run(WORKER, str(port), str(received))
            says(worker, "listens")
            endpoints[step] = Endpoint(elsewhere.there, port, 9090)
            gateways[step] = stack.enter_context(Gateway(endpoints[step], host="0.0.0.0"))
            calls[step] = stack.enter_context(gateways[step].send_call(body))
            says(worker, "has read")
        last = gateways["run"]
        elsewhere.run(CLIENT, elsewhere.here, str(last.port), call(SMALL).hex())
        eventually(lambda: last.queued() == 1)
        began = time.monotonic()
        elsewhere.vanish()
        others = {step: stack.enter_context(Worker()) for step in STEPS if step != "run"}
        for step, other in others.items():
            gateways[step].set_endpoints(endpoints[step], other.endpoint)
        for step, connection in calls.items():
            connection.settimeout(60)
            assert outcome(connection) == ((502, "pod-lost") if step == "run" else (200, "")), step
            assert time.monotonic() - began < 40, step
        assert {step: other.bodies for step, other in others.items()} == {step: [STEPS[step][0]] for step in others}
        eventually(lambda: last.queued() == 0, 75 - (time.monotonic() - began))
        assert last.metric("percore_gateway_client_disconnects_total", state="queued") == 1


def says(process: subprocess.Popen[str], words: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == f"{words}\n"


def test_a_caller_that_vanishes_frees_its_worker_on_one_machine_and_in_a_pod_without_a_gateway(
    elsewhere: Elsewhere,
) -> None:
    with (
        Service(host="0.0.0.0", handler=FAULTY).ready() as machine,
        Service(host="0.0.0.0", handler=FAULTY, pod=True).ready() as pod,
    ):
        for service in (machine, pod):
            sent = service.raw(b'{"inputs": {"sleep": 300}}')
            elsewhere.run(CLIENT, elsewhere.here, str(service.port), sent.hex())
            eventually(partial(computes, service))
        began = time.monotonic()
        elsewhere.vanish()
        eventually(partial(ended_its_worker, pod), 25)
        eventually(partial(ended_its_worker, machine), 75 - (time.monotonic() - began))
        assert machine.metric("percore_gateway_client_disconnects_total", state="executing") == 1
        for service in (machine, pod):
            assert service.ready().call(sleep=0).status_code == 200


def computes(service: Service) -> bool:
    return service.metric("percore_workers", state="busy") == 1


def ended_its_worker(service: Service) -> bool:
    return service.metric("percore_worker_restarts_total", reason="client-disconnect") == 1
