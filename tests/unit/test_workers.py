"""The state that the status server computes from workers' events."""

from typing import Any

import pytest
from percore.status.workers import Workers, WorkerState
from percore.worker_metrics import WorkerMetrics
from prometheus_client import generate_latest

CATALOG = {
    "models": [
        {
            "name": "digits",
            "version": 2,
            "platform": "keras",
            "signatures": {},
            "labels": ["stable"],
            "load_seconds": 1.5,
        }
    ]
}


class StatusFixture:
    """The state and its metrics. Methods send the events of a worker."""

    def __init__(self) -> None:
        self.metrics = WorkerMetrics()
        self.workers = Workers(self.metrics)

    def join(self, connection: int, *, loaded: bool = True) -> None:
        self.workers.connected(connection)
        catalog: dict[str, Any] = {"catalog": CATALOG} if loaded else {}
        self.workers.handle(connection, {"event": "hello", "worker": 1000 + connection, **catalog})

    def start(self, connection: int) -> None:
        self.workers.handle(connection, {"event": "started"})

    def finish(self, connection: int, code: str = "200") -> None:
        self.workers.handle(connection, {"event": "finished", "model": "digits", "code": code, "run": 2.0})

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


@pytest.fixture
def status() -> StatusFixture:
    return StatusFixture()


def test_nothing_is_ready_before_a_worker_has_loaded(status: StatusFixture) -> None:
    assert not status.workers.ready()
    status.join(1, loaded=False)
    assert not status.workers.ready()
    assert status.workers.catalog() is None
    status.workers.handle(1, {"event": "hello", "worker": 1001, "catalog": CATALOG})
    assert status.workers.ready()
    assert status.value("percore_model_load_seconds", model="digits", version="2") == 1.5


def test_the_slot_is_loading_then_free_then_taken_and_busy_is_ready(status: StatusFixture) -> None:
    assert status.workers.slot() == "loading"
    status.join(1, loaded=False)
    assert status.workers.slot() == "loading"
    status.workers.handle(1, {"event": "hello", "worker": 1001, "catalog": CATALOG})
    assert status.workers.slot() == "free"
    status.start(1)
    assert status.workers.ready()
    assert status.workers.slot() == "taken"
    status.finish(1)
    assert status.workers.slot() == "free"


def test_the_slot_is_taken_while_a_call_of_a_client_that_left_computes(status: StatusFixture) -> None:
    status.join(1)
    status.start(1)
    status.workers.handle(1, {"event": "client-disconnect", "state": "executing"})
    assert status.workers.slot() == "taken"
    status.finish(1)
    assert status.workers.slot() == "free"


def test_the_slot_is_taken_while_an_old_worker_computes_beside_its_successor(status: StatusFixture) -> None:
    status.join(1)
    status.start(1)
    status.join(2)
    assert status.workers.slot() == "taken"


def test_a_released_worker_is_free_and_the_request_is_not_counted(status: StatusFixture) -> None:
    status.join(1)
    status.start(1)
    status.workers.handle(1, {"event": "released"})
    assert status.workers.slot() == "free"
    assert b"percore_calls_total{" not in generate_latest(status.metrics.registry)


def test_finished_calls_are_counted_by_code_with_their_run_time(status: StatusFixture) -> None:
    status.join(1)
    status.start(1)
    status.finish(1)
    assert status.value("percore_calls_total", model="digits", code="200") == 1
    assert status.value("percore_call_run_seconds_sum", model="digits") == 2.0


def test_a_worker_that_dies_in_a_call_is_counted_and_leaves_nothing_behind(status: StatusFixture) -> None:
    status.join(1)
    status.start(1)
    assert status.workers.states()[WorkerState.BUSY] == 1
    status.workers.disconnected(1)
    assert not status.workers.states()
    assert status.value("percore_worker_restarts_total", reason="crashed") == 1
    assert status.value("percore_calls_total", model="", code="lost") == 1


def test_a_worker_that_reported_its_reason_is_counted_with_it(status: StatusFixture) -> None:
    status.join(1)
    status.start(1)
    status.finish(1, code="client-disconnect")
    status.workers.handle(1, {"event": "ending", "reason": "client-disconnect"})
    status.workers.disconnected(1)
    assert status.value("percore_worker_restarts_total", reason="client-disconnect") == 1
    assert status.value("percore_worker_restarts_total", reason="crashed") == 0
    assert status.value("percore_call_run_seconds_count", model="digits") is None


def test_a_worker_that_was_stopped_does_not_count_as_a_restart(status: StatusFixture) -> None:
    status.join(1)
    status.workers.handle(1, {"event": "ending", "reason": "stopped"})
    status.workers.disconnected(1)
    assert status.value("percore_worker_restarts_total", reason="stopped") is None


def test_five_hundred_restarts_leave_no_more_series_than_one(status: StatusFixture) -> None:
    sizes = []
    for connection in range(500):
        status.join(connection)
        status.start(connection)
        status.workers.disconnected(connection)
        sizes.append(generate_latest(status.metrics.registry).count(b"\n"))
    assert sizes[0] == sizes[-1]
    assert not status.workers.states()


def test_restarts_and_disconnected_calls_begin_at_zero_so_that_the_first_one_is_a_rise(status: StatusFixture) -> None:
    for reason in ("crashed", "run-timeout", "client-disconnect", "arbiter-lost"):
        assert status.value("percore_worker_restarts_total", reason=reason) == 0
    for state in ("queued", "executing"):
        assert status.value("percore_worker_client_disconnects_total", state=state) == 0
