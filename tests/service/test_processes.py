"""Handlers that start processes, and the cores that libraries use."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from harness.service import Service, eventually, processes_in
from tests.service.process_handlers import SQUARES, WAYS

MODULE = "tests.service.process_handlers"


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with Service(handler=f"{MODULE}:Processes", run_timeout=60) as service:
        yield service.ready(1)


@pytest.mark.parametrize("way", WAYS)
def test_a_handler_may_start_processes(service: Service, way: str) -> None:
    workers = set(service.workers)
    for _ in range(3):
        answer = service.call(way=way)
        assert answer.status_code == 200, answer.text
        assert answer.json()["outputs"] == [SQUARES] * 3
    assert set(service.workers) >= workers, "no worker was replaced"


def test_libraries_compute_with_the_cores_of_one_call() -> None:
    with Service(handler=f"{MODULE}:ReturnsThreadSettings") as service:
        assert service.ready(1).call(x=1).json()["outputs"] == [1, 1, 1]


@pytest.mark.parametrize("size", [4, 400_000])
def test_inputs_are_writable_whichever_way_they_came(size: int) -> None:
    values = np.arange(size, dtype=np.float32)
    head = {"name": "x", "datatype": "FP32", "shape": [size]}
    text = json.dumps({"inputs": [{**head, "parameters": {"binary_data_size": values.nbytes}}]}).encode()
    with Service(handler=f"{MODULE}:WritesToItsInput") as service:
        service.ready(1)
        binary = service.post(
            "/v2/models/default/infer",
            data=text + values.tobytes(),
            headers={"Inference-Header-Content-Length": str(len(text)), "Content-Type": "application/octet-stream"},
        )
        as_json = service.post("/v2/models/default/infer", {"inputs": [{**head, "data": values.tolist()}]})
        for answer in (binary, as_json):
            assert answer.status_code == 200, answer.text
            assert answer.json()["outputs"][0]["data"][:4] == [0, 2, 4, 6]


def test_sigterm_while_the_service_loads_in_c_ends_it_at_once() -> None:
    with Service(handler=f"{MODULE}:LoadsInC") as service:
        eventually(lambda: len(service.workers) == 1 or len(service.workers) == 2)
        time.sleep(2)  # now they are inside of C
        began = time.monotonic()
        service.processes[0].send_signal(signal.SIGTERM)
        assert service.processes[0].wait(10) == 0
        assert time.monotonic() - began < 5
        assert not processes_in(service.environ_mark)


def test_two_workers_that_cannot_load_end_the_service_once() -> None:
    """The arbiter stands still until both have ended. So it learns of the second end while it stops because of the first."""
    with Service(handler="tests.service.handlers:FailsWhenAllowed") as service:
        eventually(lambda: len(service.workers) == 2)
        arbiter = service.arbiter
        os.kill(arbiter, signal.SIGSTOP)
        (Path(service.environ["PERCORE_STATE_DIR"]) / "allowed").touch()
        eventually(lambda: not service.workers)
        os.kill(arbiter, signal.SIGCONT)
        assert service.processes[0].wait(30) == 78
        assert len(service.log("arbiter ended")) == 0
        assert not processes_in(service.environ_mark)
