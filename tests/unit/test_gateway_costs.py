"""Deletion costs: which pods get one, and which gateway removes it."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import pytest
from percore.gateway.cost_writer import ASK_SECONDS, BUDGET_SECONDS, CostWriter
from percore.gateway.costs import ASK_AGAIN_SECONDS, BURST, BUSY_COST, IDLE_COST, DeletionCosts
from percore.gateway.endpoints import Endpoint
from percore.gateway.gateway_metrics import GatewayMetrics
from percore.gateway.slots import SLOT_REQUEST_SECONDS


class ApiServer:
    """Holds costs as the API server does."""

    def __init__(self, **costs: int) -> None:
        self.costs = dict(costs)
        self.gone: set[str] = set()
        self.away = False
        self.clock: Gateway | None = None
        self.seconds = 0.0
        """How long each write takes. The clock of this gateway moves on by it."""

    def set_cost(self, pod: str, cost: int) -> None:
        if self.clock is not None:
            self.clock.now += self.seconds
        if self.away:
            raise OSError("away")
        if pod in self.gone:
            raise KeyError(pod)
        self.costs[pod] = cost

    def read_costs(self) -> Mapping[str, int]:
        if self.away:
            raise OSError("away")
        return dict(self.costs)


class Gateway:
    """One gateway's writer, with a clock that the test moves."""

    def __init__(self, server: ApiServer) -> None:
        self.running: list[str] = []
        self.computing: set[str] = set()
        self.asked: list[str] = []
        self.metrics = GatewayMetrics()
        self.endpoints = {name: Endpoint("10.0.0.1", 8080, 9090, pod=name) for name in ("a", "b", "c")}
        self.now = 0.0
        self.writer = CostWriter(server, lambda: self.running, lambda: self.endpoints, self.metrics, self.ask, lambda: self.now)

    def ask(self, endpoints: Mapping[str, Endpoint], seconds: float) -> Mapping[str, bool]:
        assert SLOT_REQUEST_SECONDS <= seconds <= ASK_SECONDS
        self.asked += endpoints
        return {name: name in self.computing for name in endpoints}

    def run(self, seconds: int) -> None:
        for _ in range(seconds):
            self.writer.reconcile()
            self.now += 1

    def count(self, result: str) -> float:
        value = self.metrics.registry.get_sample_value("percore_gateway_deletion_cost_updates_total", {"result": result})
        return value or 0.0


def test_a_pod_that_computes_for_three_seconds_gets_a_cost_which_is_removed_afterwards() -> None:
    server = ApiServer()
    gateway = Gateway(server)
    gateway.running = ["a"]
    gateway.run(3)
    assert server.costs == {}
    gateway.run(1)
    assert server.costs == {"a": BUSY_COST}
    gateway.running = []
    gateway.run(5)
    assert server.costs == {"a": IDLE_COST}
    assert gateway.count("set") == 2


def test_short_calls_write_nothing() -> None:
    server = ApiServer()
    gateway = Gateway(server)
    for _ in range(10):
        gateway.running = ["a"]
        gateway.run(2)
        gateway.running = []
        gateway.run(1)
    assert server.costs == {}


def test_a_cost_that_a_dead_gateway_left_is_removed_within_a_minute() -> None:
    gateway = Gateway(server := ApiServer())
    gateway.run(1)
    server.costs["b"] = BUSY_COST
    gateway.run(59)
    assert server.costs == {"b": IDLE_COST}


def test_a_pod_that_computes_for_another_gateway_keeps_its_cost_and_is_asked_once_in_20_seconds() -> None:
    gateway = Gateway(server := ApiServer(b=BUSY_COST))
    gateway.computing = {"b"}
    gateway.run(60)
    assert server.costs == {"b": BUSY_COST}
    assert gateway.asked == ["b"] * 3
    gateway.computing = set()
    gateway.run(round(ASK_AGAIN_SECONDS) + 4)
    assert server.costs == {"b": IDLE_COST}


def test_a_pod_that_could_not_be_asked_in_time_is_asked_by_the_next_reconcile() -> None:
    gateway = Gateway(server := ApiServer(a=BUSY_COST, b=BUSY_COST, c=BUSY_COST))
    gateway.run(3)
    answers = iter([{"a": True}, {"b": False}, {"c": False}])
    gateway.writer._ask = lambda _endpoints, _seconds: next(answers)
    gateway.run(3)
    assert server.costs == {"a": BUSY_COST, "b": IDLE_COST, "c": IDLE_COST}


def test_a_pod_that_is_not_listed_is_not_asked() -> None:
    gateway = Gateway(server := ApiServer(b=BUSY_COST))
    gateway.computing, gateway.endpoints = {"b"}, {}
    gateway.run(10)
    assert (server.costs, gateway.asked) == ({"b": IDLE_COST}, [])


def test_a_slow_api_server_does_not_prolong_a_reconcile_and_the_next_one_goes_on() -> None:
    gateway = Gateway(server := ApiServer())
    gateway.running = [f"pod-{number}" for number in range(20)]
    gateway.run(3)
    server.clock, server.seconds = gateway, 1.0
    before = gateway.now
    gateway.writer.reconcile()
    assert gateway.now - before == BUDGET_SECONDS
    assert len(server.costs) == BUDGET_SECONDS
    for _ in range(3):
        gateway.writer.reconcile()
    assert server.costs == dict.fromkeys(gateway.running, BUSY_COST)


def test_pods_are_not_asked_without_time_for_their_answer() -> None:
    gateway = Gateway(server := ApiServer(c=BUSY_COST))
    gateway.running = [f"pod-{number}" for number in range(4)]
    gateway.run(3)
    server.clock, server.seconds = gateway, 1.0
    gateway.writer.reconcile()
    assert gateway.asked == []
    gateway.writer.reconcile()
    assert gateway.asked == ["c"]


def test_failures_are_warned_of_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    gateway = Gateway(server := ApiServer())
    server.away = True
    with caplog.at_level(logging.WARNING):
        gateway.run(60)
        assert len(caplog.records) == 1
        gateway.run(1)
        assert len(caplog.records) == 2


def test_while_the_api_server_is_away_nothing_is_lost() -> None:
    gateway = Gateway(server := ApiServer())
    gateway.running = ["a"]
    gateway.run(2)
    server.away = True
    gateway.run(10)
    assert gateway.count("failed") > 0
    server.away = False
    gateway.run(5)
    assert server.costs == {"a": BUSY_COST}


def test_a_pod_that_is_gone_is_forgotten() -> None:
    gateway = Gateway(server := ApiServer(c=BUSY_COST))
    server.gone = {"c"}
    gateway.run(10)
    assert gateway.count("gone") == 1


def test_writes_are_bounded_and_those_for_busy_pods_come_first() -> None:
    costs = DeletionCosts()
    costs.read({f"idle-{number}": BUSY_COST for number in range(300)})
    running = [f"busy-{number}" for number in range(300)]
    costs.due(0, running)
    due = costs.due(4, running)
    assert len(due) == BURST
    assert {cost for _, cost in due} == {BUSY_COST}
    for name, cost in due:
        costs.written(name, cost)
    assert costs.due(4, running) == []
    assert len(costs.due(5, running)) == 20
