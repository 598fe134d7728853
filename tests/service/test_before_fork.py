"""The import before the fork: a replaced worker imports nothing, and works as if it had imported the modules itself."""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from harness.service import FAULTY, Service, answer_of, eventually, processes_in

MODULE = "tests.service.before_fork_handlers"
IMPORTS = "this process imports the module"
CORES = len(os.sched_getaffinity(0))
STEPS = 300
"""Steps of the model `burn` that take about ten milliseconds."""
KILLS = 60


def kill_and_wait_for_replacement(service: Service, pid: int, workers: int) -> None:
    """Kill a worker, and wait until it is replaced and all workers are free."""
    killed = service.metric("percore_worker_restarts_total")
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: service.metric("percore_worker_restarts_total") > killed, 60)
    service.ready(workers)


def test_the_arbiter_imports_once_and_workers_that_are_replaced_import_nothing() -> None:
    with Service(handler=f"{MODULE}:Numbers", import_before_fork=MODULE).ready(workers=2) as service:
        for _ in range(2):
            kill_and_wait_for_replacement(service, service.workers[0], workers=2)
        assert service.call(x=1).status_code == 200
        assert [line["pid"] for line in service.log(IMPORTS)] == [service.arbiter]
        assert len(list(Path(f"/proc/{service.arbiter}/task").iterdir())) == 1


@pytest.mark.parametrize("setting", ["no", ""])
def test_a_handler_is_imported_in_each_worker_unless_the_setting_names_its_module(setting: str) -> None:
    with Service(handler=f"{MODULE}:Numbers", import_before_fork=setting).ready(workers=2) as service:
        assert sorted(line["pid"] for line in service.log(IMPORTS)) == sorted(service.workers)
        assert bool(service.log("imported before the fork")) == (setting == "")


def test_two_workers_never_give_the_same_random_numbers() -> None:
    with Service(handler=f"{MODULE}:Numbers", import_before_fork=MODULE, cores_per_call=CORES).ready() as service:
        seen = []
        for _ in range(3):
            seen.append(service.call(x=1).json()["outputs"])
            kill_and_wait_for_replacement(service, service.workers[0], workers=1)
        for numbers in zip(*seen, strict=True):
            assert len(set(numbers)) == len(seen), numbers


@pytest.mark.parametrize("cores", sorted({1, min(2, CORES)}))
def test_libraries_that_were_imported_before_the_fork_compute_with_the_cores_of_one_call(cores: int) -> None:
    with Service(handler=f"{MODULE}:Threads", import_before_fork=MODULE, cores_per_call=cores).ready() as service:
        outputs = service.call(x=1).json()["outputs"]
        assert outputs["cores"] == cores
        assert outputs["libraries"]
        assert set(outputs["libraries"]) == {cores}


@pytest.mark.parametrize("before", ["no", MODULE])
def test_tensorflow_in_a_handler_of_a_pod_computes_with_the_cores_of_one_call(before: str) -> None:
    """Here nothing pins the worker of a pod. So without a setting TensorFlow would have a thread for each core of the node."""
    with Service(
        pod=True, handler=f"{MODULE}:TensorFlowThreads", import_before_fork=before, cores_per_call=1
    ).ready() as service:
        assert service.call(x=1).json()["outputs"] <= 1


def test_a_number_of_threads_in_the_environment_is_kept() -> None:
    service = Service(handler=f"{MODULE}:Threads", import_before_fork=MODULE)
    service.environ.update(OPENBLAS_NUM_THREADS="3", OMP_NUM_THREADS="3")
    with service.ready():
        assert set(service.call(x=1).json()["outputs"]["libraries"]) == {3}


def test_a_module_that_starts_a_thread_is_left_to_the_workers_and_the_log_names_the_thread() -> None:
    with Service(handler=FAULTY, import_before_fork="tests.service.starts_a_thread").ready(workers=2) as service:
        (line,) = service.log("not imported before the fork")
        assert line["pid"] == service.arbiter
        assert "of-the-module" in line["message"]
        assert "tests.service.starts_a_thread" in line["message"]
        assert len(list(Path(f"/proc/{service.arbiter}/task").iterdir())) == 1
        kill_and_wait_for_replacement(service, service.workers[0], workers=2)
        assert service.call(sleep=0).status_code == 200


@pytest.mark.parametrize("pod", [True, False], ids=["pod", "machine"])
def test_a_repository_is_served_in_a_pod_and_on_a_machine_after_a_module_has_started_a_thread(
    pod: bool, tmp_path: Path
) -> None:
    shutil.copytree(Path("models/digits"), tmp_path / "digits")
    settings: dict[str, Any] = {"import_before_fork": "tests.service.starts_a_thread", "model_repository": tmp_path}
    with Service(pod=pod, **settings).ready() as service:
        assert service.log("not imported before the fork")
        assert service.post("/v1/models/digits:predict", {"instances": [[0.0] * 64]}).status_code == 200


def test_a_module_that_cannot_be_imported_ends_the_service_with_one_clear_line() -> None:
    with Service(handler=FAULTY, import_before_fork="nowhere.at_all") as service:
        assert service.processes[0].wait(30) == 78
        (line,) = service.log("cannot start")
        assert line["message"].startswith("cannot start: PERCORE_IMPORT_BEFORE_FORK: there is no module 'nowhere' in ")


def test_an_import_over_the_load_timeout_ends_the_service_with_one_clear_line_also_inside_of_c() -> None:
    with Service(handler=FAULTY, import_before_fork="tests.service.sleeps_in_c", load_timeout=2) as service:
        assert service.processes[0].wait(30) == 78
        assert len(service.log("cannot start: the modules were not loaded within PERCORE_LOAD_TIMEOUT, 2 s")) == 1


def test_an_import_inside_of_c_that_lets_no_other_thread_run_is_ended_too() -> None:
    service = Service(handler=FAULTY, import_before_fork="tests.service.sleeps_in_c", load_timeout=10)
    service.environ["KEEPS_THE_LOCK"] = "1"
    with service:
        eventually(lambda: service.log("arbiter ended with status 1"), 60)
        assert "sleeps_in_c.py" in service.log_path.read_text()


def test_sigterm_while_the_service_imports_in_c_ends_it_at_once() -> None:
    with Service(handler=FAULTY, import_before_fork="tests.service.sleeps_in_c") as service:
        eventually(lambda: service.log("inside of C"), 60)
        service.processes[0].send_signal(signal.SIGTERM)
        assert service.processes[0].wait(60) == 0  # the import and the shutdown timeout are an hour each
        assert not processes_in(service.environ_mark)
        assert not service.log("cannot start")


def test_a_fork_that_fails_is_tried_again_and_ends_neither_the_service_nor_a_call() -> None:
    service = Service(handler=FAULTY)
    service.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).with_name("failing_fork")), service.environ.get("PYTHONPATH", "")]
    )
    failing_fork = Path(service.environ["PERCORE_STATE_DIR"] + "-failing-fork")
    failing_fork.touch()
    message = "a worker cannot be started: Resource temporarily unavailable"
    with service:
        eventually(lambda: len(service.log(message)) >= 2, 60)
        failing_fork.unlink()
        service.ready(workers=2)
        running, computing = service.send_call_and_find_worker(sleep=5)
        failed = len(service.log(message))
        failing_fork.touch()
        os.kill(next(pid for pid in service.workers if pid != computing), signal.SIGKILL)
        eventually(lambda: len(service.log(message)) >= failed + 2, 60)
        assert answer_of(running)[0] == 200
        failing_fork.unlink()
        service.ready(workers=2)
        assert service.metric("percore_worker_restarts_total") == 1


def test_workers_that_end_one_after_another_while_others_compute_are_all_replaced(repository: Path, tmp_path: Path) -> None:
    for name in ("tf2", "keras", "burn"):
        shutil.copytree(repository / name, tmp_path / name)
    calls = {
        "tf2": ({"instances": [[1.0, 1.0]]}, {"predictions": [[6.0]]}),
        "keras": ({"instances": [[1.0, 1.0]]}, {"predictions": [[6.0]]}),
        "burn": ({"inputs": [STEPS]}, None),
    }
    ended = threading.Event()
    statuses: list[int] = []
    wrong: list[str] = []
    with Service(model_repository=tmp_path).ready(workers=2) as service:

        def call_on() -> None:
            while not ended.is_set():
                name = random.choice(list(calls))
                body, expected = calls[name]
                answer = service.post(f"/v1/models/{name}:predict", body, timeout=120)
                statuses.append(answer.status_code)
                if answer.status_code not in (200, 502) or (answer.ok and expected not in (None, answer.json())):
                    wrong.append(answer.text)

        callers = [threading.Thread(target=call_on) for _ in range(3)]
        for caller in callers:
            caller.start()
        try:
            for number in range(KILLS):
                os.kill(service.workers[number % 2], signal.SIGKILL)
                eventually(lambda: len(service.log("ready after")) == number + 3, 60)  # noqa: B023
        finally:
            ended.set()
            for caller in callers:
                caller.join(120)
        assert not wrong
        assert statuses.count(200) > KILLS
        service.ready(workers=2)
        assert len(list(Path(f"/proc/{service.arbiter}/task").iterdir())) == 1
        assert len(service.log("imported before the fork")) == 1


def test_a_module_that_kills_the_arbiter_ends_the_service_with_one_clear_line() -> None:
    with Service(handler=FAULTY, import_before_fork="tests.service.app_that_dies") as service:
        assert service.processes[0].wait(120) == 78
        assert len(service.log("cannot start: arbiter ended 5 times at its start, last with status -4")) == 1
