"""Deletion costs: which pods get one, and who takes it back."""

from __future__ import annotations

from collections.abc import Mapping

from percore.gateway.cost_writer import CostWriter
from percore.gateway.costs import BURST, BUSY_COST, IDLE_COST, DeletionCosts
from percore.gateway.endpoints import Endpoint
from percore.gateway.telemetry import GatewayTelemetry


class ApiServer:
    """Holds costs as the API server does."""

    def __init__(self, **costs: int) -> None:
        self.costs = dict(costs)
        self.gone: set[str] = set()
        self.away = False

    def set_cost(self, pod: str, cost: int) -> None:
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
        self.telemetry = GatewayTelemetry()
        endpoints = {name: Endpoint("10.0.0.1", 8080, 9090, pod=name) for name in ("a", "b", "c")}
        self.writer = CostWriter(
            server, lambda: self.running, lambda: endpoints, self.telemetry, lambda endpoint: endpoint.pod in self.computing
        )
        self.now = 0.0

    def run(self, seconds: int) -> None:
        for _ in range(seconds):
            self.writer.step(self.now)
            self.now += 1

    def count(self, result: str) -> float:
        value = self.telemetry.registry.get_sample_value("percore_gateway_deletion_cost_updates_total", {"result": result})
        return value or 0.0


def test_a_pod_that_computes_for_three_seconds_gets_a_cost_and_loses_it_afterwards() -> None:
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


def test_a_cost_that_a_dead_gateway_left_is_taken_back_within_a_minute() -> None:
    gateway = Gateway(server := ApiServer())
    gateway.run(1)
    server.costs["b"] = BUSY_COST
    gateway.run(59)
    assert server.costs == {"b": IDLE_COST}


def test_a_pod_that_computes_for_somebody_else_keeps_its_cost_as_long_as_it_does() -> None:
    gateway = Gateway(server := ApiServer(b=BUSY_COST))
    gateway.computing = {"b"}
    gateway.run(60)
    assert server.costs == {"b": BUSY_COST}
    gateway.computing = set()
    gateway.run(10)
    assert server.costs == {"b": IDLE_COST}


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
