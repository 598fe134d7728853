"""The loop, with an HAProxy that is a few lists; and what draining waits for."""

import errno
from collections.abc import Iterable

import pytest
from percore.gateway.app import create_app
from percore.gateway.controller import Controller
from percore.gateway.drain import QUIET_SECONDS, drain
from percore.gateway.endpoints import Endpoint, State
from percore.gateway.plan import Admin, Assign, Command, Drain, Health, Release, Server, Snapshot
from percore.gateway.telemetry import GatewayTelemetry

A, B = Endpoint("10.0.0.1", 8080, 9090, pod="a"), Endpoint("10.0.0.2", 8080, 9090, pod="b")


class FakeProxy:
    """Says what it is told to say, and keeps what it is asked to do."""

    def __init__(self, *servers: Server, executing: int = 0, waiting: int = 0, held: bool = True) -> None:
        self.now = Snapshot(servers, executing, waiting, held)
        self.applied: list[Command] = []
        self.away = False
        self.trouble = OSError("away")
        self.draining = False

    def snapshot(self) -> Snapshot:
        if self.away:
            raise self.trouble
        return self.now

    def apply(self, commands: Iterable[Command]) -> None:
        self.applied += commands

    def drain(self) -> None:
        self.snapshot()
        self.draining = True


def value(telemetry: GatewayTelemetry, name: str, **labels: str) -> float | None:
    return telemetry.registry.get_sample_value(name, labels)


def test_before_the_endpoints_are_known_haproxy_keeps_what_it_has() -> None:
    proxy = FakeProxy(Server(1, *A.place, Admin.READY))
    assert Controller(proxy, GatewayTelemetry()).step() == []
    assert proxy.applied == []


def test_haproxy_is_told_what_changed() -> None:
    proxy = FakeProxy(Server(1, *A.place, Admin.READY, sessions=1), Server(2))
    controller = Controller(proxy, GatewayTelemetry())
    controller.publish((B,))
    controller.step()
    assert proxy.applied == [Drain(1), Assign(2, B)]


def test_no_endpoints_is_knowledge_too() -> None:
    proxy = FakeProxy(Server(1, *A.place, Admin.READY))
    controller = Controller(proxy, GatewayTelemetry())
    controller.publish(())
    controller.step()
    assert proxy.applied == [Release(1)]


def test_a_dry_run_changes_nothing_and_says_what_it_would() -> None:
    proxy = FakeProxy(Server(1))
    controller = Controller(proxy, GatewayTelemetry(), dry_run=True)
    controller.publish((A,))
    assert controller.step() == [Assign(1, A)]
    assert proxy.applied == []


def test_while_haproxy_is_away_the_loop_goes_on_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    proxy = FakeProxy(Server(1))
    controller = Controller(proxy, GatewayTelemetry())
    controller.publish((A,))
    proxy.away = True
    with caplog.at_level("INFO"):
        assert [controller.step() for _ in range(3)] == [[], [], []]
        proxy.away = False
        assert controller.step() == [Assign(1, A)]
    assert [record.getMessage() for record in caplog.records if "HAProxy" in record.getMessage()] == [
        "HAProxy: away",
        "HAProxy: answers",
    ]


def test_the_gauges_say_what_haproxy_does_now_and_nothing_while_it_is_away() -> None:
    telemetry = GatewayTelemetry()
    servers = (Server(1, *A.place, Admin.READY, sessions=1), Server(2, *B.place, Admin.READY, Health.DOWN))
    proxy = FakeProxy(*servers, executing=1, waiting=4)
    controller = Controller(proxy, telemetry)
    controller.publish((A, B, Endpoint("10.0.0.3", 8080, 9090)))
    controller.observe()
    assert value(telemetry, "percore_in_flight_requests", state="executing") == 1
    assert value(telemetry, "percore_in_flight_requests", state="waiting") == 4
    assert value(telemetry, "percore_gateway_pods", state="busy") == 1
    assert value(telemetry, "percore_gateway_pods", state="down") == 1
    assert value(telemetry, "percore_gateway_unplaced_pods") == 1
    assert value(telemetry, "percore_gateway_haproxy_up") == 1
    proxy.away = True
    controller.observe()
    assert value(telemetry, "percore_in_flight_requests", state="waiting") is None
    assert value(telemetry, "percore_gateway_pods", state="busy") is None
    assert value(telemetry, "percore_gateway_haproxy_up") == 0


def test_the_pods_that_may_be_marked_are_those_that_have_a_name_and_take_calls() -> None:
    servers = (
        Server(1, *A.place, Admin.READY, sessions=1),
        Server(2, *B.place, Admin.READY, Health.TAKEN),
        Server(3, "10.0.0.3", 8080, Admin.READY),
        Server(4, "10.0.0.4", 8080, Admin.DRAIN, sessions=1),
    )
    controller = Controller(FakeProxy(*servers), GatewayTelemetry())
    assert controller.busy_pods() is None
    controller.step()
    assert controller.busy_pods() is None, "no pod has a name yet"
    controller.publish((A, B, Endpoint("10.0.0.3", 8080, 9090), Endpoint("10.0.0.4", 8080, 9090, State.TERMINATING, "d")))
    controller.step()
    assert controller.busy_pods() == [("a", True), ("b", True)]
    assert controller.pod_at(B.place) == "b"
    assert controller.pod_at(("10.9.9.9", 1)) == ""


@pytest.mark.parametrize(
    ("snapshot", "status"), [(Snapshot((), 0, 0, held=True), 200), (Snapshot((), 0, 0, held=False), 503), (None, 503)]
)
def test_the_gateway_is_ready_where_calls_would_wait_though_there_be_no_pod(snapshot: Snapshot | None, status: int) -> None:
    client = create_app(lambda: snapshot, lambda: None, GatewayTelemetry()).test_client()
    assert client.get("/readyz").status_code == status
    assert client.get("/livez").status_code == 200


def test_metrics_are_those_of_the_moment_they_are_asked_for() -> None:
    telemetry = GatewayTelemetry()
    asked = iter([3, 5])

    def observe() -> None:
        telemetry.in_flight.labels("waiting").set(next(asked))

    client = create_app(lambda: None, observe, telemetry).test_client()
    assert 'percore_in_flight_requests{state="waiting"} 3.0' in client.get("/metrics").text
    assert 'percore_in_flight_requests{state="waiting"} 5.0' in client.get("/metrics").text


class Clock:
    """A clock that only sleeping moves, and an HAProxy whose calls end at some moment."""

    def __init__(self, calls_until: float) -> None:
        self.now = 0.0
        self.calls_until = calls_until
        self.proxy = FakeProxy(executing=1)

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.proxy.now = Snapshot((), int(self.now < self.calls_until), 0, held=True)


def test_draining_waits_for_the_last_call_and_a_while_longer() -> None:
    clock = Clock(calls_until=600)
    drain(clock.proxy, clock.time, clock.sleep)
    assert clock.proxy.draining
    assert 600 + QUIET_SECONDS - 1 <= clock.now <= 600 + QUIET_SECONDS + 1


def test_draining_ends_where_haproxy_has_ended() -> None:
    clock = Clock(calls_until=600)
    clock.proxy.away, clock.proxy.trouble = True, FileNotFoundError(errno.ENOENT, "gone")
    drain(clock.proxy, clock.time, clock.sleep)
    assert clock.now == 0


def test_draining_goes_on_where_haproxy_has_no_time_to_answer() -> None:
    class Slow(Clock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            self.proxy.away = self.now < 300

    clock = Slow(calls_until=0)
    drain(clock.proxy, clock.time, clock.sleep)
    assert 300 + QUIET_SECONDS - 1 <= clock.now <= 300 + QUIET_SECONDS + 1
