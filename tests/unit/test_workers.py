"""What the exporter makes of workers' events."""

from typing import Any

import pytest
from percore.exporter.workers import State, Workers
from percore.telemetry import Telemetry
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


class Exporter:
    """The state and its metrics, spoken to as workers do."""

    def __init__(self) -> None:
        self.telemetry = Telemetry()
        self.workers = Workers(self.telemetry)

    def join(self, connection: int, *, loaded: bool = True) -> None:
        self.workers.joined(connection)
        catalog: dict[str, Any] = {"catalog": CATALOG} if loaded else {}
        self.workers.tell(connection, {"event": "hello", "worker": 1000 + connection, **catalog})

    def start(self, connection: int) -> None:
        self.workers.tell(connection, {"event": "started"})

    def finish(self, connection: int, code: str = "200") -> None:
        self.workers.tell(connection, {"event": "finished", "model": "digits", "code": code, "run": 2.0})

    def value(self, name: str, **labels: str) -> float | None:
        return self.telemetry.registry.get_sample_value(name, labels)


@pytest.fixture
def exporter() -> Exporter:
    return Exporter()


def test_nothing_is_ready_before_a_worker_has_loaded(exporter: Exporter) -> None:
    assert not exporter.workers.ready()
    exporter.join(1, loaded=False)
    assert not exporter.workers.ready()
    assert exporter.workers.catalog() is None
    exporter.workers.tell(1, {"event": "hello", "worker": 1001, "catalog": CATALOG})
    assert exporter.workers.ready()
    assert exporter.value("percore_model_load_seconds", model="digits", version="2") == 1.5


def test_the_slot_is_loading_then_free_then_taken_and_busy_is_ready(exporter: Exporter) -> None:
    assert exporter.workers.slot() == "loading"
    exporter.join(1, loaded=False)
    assert exporter.workers.slot() == "loading"
    exporter.workers.tell(1, {"event": "hello", "worker": 1001, "catalog": CATALOG})
    assert exporter.workers.slot() == "free"
    exporter.start(1)
    assert exporter.workers.ready()
    assert exporter.workers.slot() == "taken"
    exporter.finish(1)
    assert exporter.workers.slot() == "free"


def test_the_slot_is_taken_while_a_call_of_a_client_that_left_computes(exporter: Exporter) -> None:
    exporter.join(1)
    exporter.start(1)
    exporter.workers.tell(1, {"event": "abandoned", "state": "executing"})
    assert exporter.workers.slot() == "taken"
    exporter.finish(1)
    assert exporter.workers.slot() == "free"


def test_the_slot_is_taken_while_an_old_worker_computes_beside_its_successor(exporter: Exporter) -> None:
    exporter.join(1)
    exporter.start(1)
    exporter.join(2)
    assert exporter.workers.slot() == "taken"


def test_what_is_released_is_free_and_not_counted(exporter: Exporter) -> None:
    exporter.join(1)
    exporter.start(1)
    exporter.workers.tell(1, {"event": "released"})
    assert exporter.workers.slot() == "free"
    assert b"percore_calls_total{" not in generate_latest(exporter.telemetry.registry)


def test_finished_calls_are_counted_by_code_with_their_run_time(exporter: Exporter) -> None:
    exporter.join(1)
    exporter.start(1)
    exporter.finish(1)
    assert exporter.value("percore_calls_total", model="digits", code="200") == 1
    assert exporter.value("percore_call_duration_seconds_sum", model="digits") == 2.0


def test_a_worker_that_dies_in_a_call_is_counted_and_leaves_nothing_behind(exporter: Exporter) -> None:
    exporter.join(1)
    exporter.start(1)
    assert exporter.workers.states()[State.BUSY] == 1
    exporter.workers.left(1)
    assert not exporter.workers.states()
    assert exporter.value("percore_worker_restarts_total", reason="crashed") == 1
    assert exporter.value("percore_calls_total", model="", code="lost") == 1


def test_a_worker_that_said_why_it_ends_is_counted_for_that(exporter: Exporter) -> None:
    exporter.join(1)
    exporter.start(1)
    exporter.finish(1, code="abandoned")
    exporter.workers.tell(1, {"event": "ending", "reason": "abandoned"})
    exporter.workers.left(1)
    assert exporter.value("percore_worker_restarts_total", reason="abandoned") == 1
    assert exporter.value("percore_worker_restarts_total", reason="crashed") == 0
    assert exporter.value("percore_call_duration_seconds_count", model="digits") is None


def test_a_worker_that_was_told_to_stop_is_no_restart(exporter: Exporter) -> None:
    exporter.join(1)
    exporter.workers.tell(1, {"event": "ending", "reason": "stopped"})
    exporter.workers.left(1)
    assert exporter.value("percore_worker_restarts_total", reason="stopped") is None


def test_five_hundred_restarts_leave_no_more_series_than_one(exporter: Exporter) -> None:
    sizes = []
    for connection in range(500):
        exporter.join(connection)
        exporter.start(connection)
        exporter.workers.left(connection)
        sizes.append(generate_latest(exporter.telemetry.registry).count(b"\n"))
    assert sizes[0] == sizes[-1]
    assert not exporter.workers.states()


def test_restarts_and_abandoned_calls_begin_at_zero_so_that_the_first_one_is_a_rise(exporter: Exporter) -> None:
    for reason in ("crashed", "run-timeout", "abandoned", "arbiter-lost"):
        assert exporter.value("percore_worker_restarts_total", reason=reason) == 0
    for state in ("queued", "executing"):
        assert exporter.value("percore_abandoned_calls_total", state=state) == 0
