"""A sandbox whose kernel has no socket options and cannot pin processes: percore serves, and logs each missing feature once."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from harness.gateway import parsed, read_to_end
from harness.service import FAULTY, Service, answer_of, eventually

SANDBOX = str(Path(__file__).with_name("sandbox"))
PATH = os.pathsep.join([SANDBOX, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
TRIAL = "import socket; socket.socket().setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)"


@pytest.mark.parametrize("pod", [True, False], ids=["pod", "machine"])
def test_a_kernel_without_options_of_sockets_and_without_pinning_serves_and_says_so_once(pod: bool) -> None:
    trial = subprocess.run(
        [sys.executable, "-c", TRIAL], env={**os.environ, "PYTHONPATH": PATH}, check=False, capture_output=True, text=True
    )
    if "no filter of system calls here" in trial.stderr:
        pytest.skip("this system has no seccomp")
    assert "Protocol not available" in trial.stderr, trial.stderr
    service = Service(pod=pod, handler=FAULTY, cores_per_call=1)
    service.environ["PYTHONPATH"] = PATH
    with service.ready():
        for _ in range(20):
            assert service.call(sleep=0).status_code == 200
        assert service.get("/readyz").status_code == 200
        with service.connect() as connection:
            connection.sendall(b"GET /v1/models/default HTTP/1.0\r\n\r\n")
            assert parsed(read_to_end(connection))[0] == 200
        with service.connect() as connection:
            connection.sendall(b"\0")
            assert answer_of(connection)[0] == 400
        (worker, *_) = service.workers
        with service.send_call(sleep=60):
            eventually(lambda: service.metric("percore_workers", state="busy") == 1)
        eventually(lambda: service.metric("percore_worker_restarts_total", reason="client-disconnect") == 1)
        service.ready()
        assert worker not in service.workers or len(service.workers) > 1
        assert service.call(sleep=0).status_code == 200
        lines = service.log()
        assert not [line for line in lines if "trace" in line]
        said = Counter((line["pid"], line["message"]) for line in lines if line["message"].startswith("the kernel "))
        assert set(said.values()) == {1}
        messages = "\n".join(message for _, message in said)
        assert "TCP_KEEPIDLE" in messages
        assert ("cannot pin" in messages) is not pod
        service.processes[-1].terminate()
        assert service.processes[-1].wait(20) == 0
