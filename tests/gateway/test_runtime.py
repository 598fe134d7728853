"""The client of HAProxy's runtime API, against a real HAProxy without a controller."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from percore.gateway.endpoints import Endpoint
from percore.gateway.plan import Admin, Assign, Drain, Health, Ready, Release, Server, plan
from percore.gateway.runtime import HAProxy, HAProxyError

from tests.gateway.harness import Gateway, Pod, needs_haproxy
from tests.service.harness import eventually

pytestmark = needs_haproxy


@contextlib.contextmanager
def haproxy(**settings: str | float) -> Iterator[Gateway]:
    gateway = Gateway(**settings)
    try:
        gateway.start_haproxy()
        eventually(lambda: held(gateway.runtime))
        yield gateway
    finally:
        gateway.__exit__()


def held(runtime: HAProxy) -> bool:
    with contextlib.suppress(OSError):
        return runtime.snapshot().held
    return False


def test_a_slot_is_given_out_drained_readied_and_released() -> None:
    with haproxy(gateway_slots=3) as gateway, Pod() as pod:
        runtime = gateway.runtime
        assert runtime.snapshot().servers == tuple(Server(slot) for slot in (1, 2, 3))

        def second() -> Server:
            return runtime.snapshot().servers[1]

        runtime.apply([Assign(2, pod.endpoint())])
        assert second() == Server(2, "127.0.0.1", pod.port, Admin.READY)
        runtime.apply([Drain(2)])
        assert second().admin is Admin.DRAIN
        runtime.apply([Ready(2)])
        assert second().admin is Admin.READY
        pod.slot_status = 404
        eventually(lambda: second().health is Health.TAKEN)
        pod.slot_status = 500
        eventually(lambda: second().health is Health.DOWN)
        runtime.apply([Release(2)])
        assert second().admin is Admin.FREE


def test_a_pod_that_refused_a_call_and_says_that_it_is_taken_is_taken() -> None:
    with haproxy() as gateway, Pod(listening=False) as pod:
        gateway.runtime.apply([Assign(1, pod.endpoint())])
        with gateway.ask():
            eventually(lambda: gateway.haproxy_says("pods/pod1 is DOWN"))
            pod.slot_status = 404
            eventually(lambda: gateway.runtime.snapshot().servers[0].health is Health.TAKEN)


def test_checks_go_to_the_exporter_of_the_pod_that_has_the_slot_now() -> None:
    with haproxy() as gateway, Pod() as before, Pod() as after:
        gateway.runtime.apply([Assign(1, before.endpoint())])
        eventually(lambda: before.asked_by)
        gateway.runtime.apply([Release(1), Assign(1, after.endpoint())])
        eventually(lambda: after.asked_by)
        count = len(before.asked_by)
        eventually(lambda: len(after.asked_by) > 3)
        assert len(before.asked_by) <= count + 1


def test_calls_are_counted_by_whether_they_run_or_wait_without_the_callers_of_our_own() -> None:
    with haproxy() as gateway, Pod() as pod:
        snapshot = gateway.runtime.snapshot()
        assert (snapshot.executing, snapshot.waiting, snapshot.calls) == (0, 0, 0)
        calls = [gateway.ask(seconds=1) for _ in range(3)]
        eventually(lambda: gateway.runtime.snapshot().waiting == 3)
        gateway.runtime.apply([Assign(1, pod.endpoint())])
        eventually(lambda: gateway.runtime.snapshot().executing == 1)
        assert gateway.runtime.snapshot().waiting == 2
        for call in calls:
            call.close()
        eventually(lambda: gateway.runtime.snapshot().calls == 0)


def test_a_thousand_pods_come_and_go() -> None:
    with haproxy(gateway_slots=1000) as gateway:
        endpoints = [Endpoint(f"127.1.{number // 250}.{number % 250 + 1}", 8080, 9090) for number in range(1000)]
        gateway.runtime.apply(plan(endpoints, gateway.runtime.snapshot().servers))
        servers = gateway.runtime.snapshot().servers
        assert [server.place for server in servers] == [each.place for each in endpoints]
        assert plan(endpoints, servers) == []
        gateway.runtime.apply(plan([], servers))
        assert {server.admin for server in gateway.runtime.snapshot().servers} == {Admin.FREE}


def test_a_pod_may_have_an_address_of_ipv6() -> None:
    with haproxy() as gateway:
        gateway.runtime.apply([Assign(1, Endpoint("fd00::1", 8080, 9090))])
        servers = gateway.runtime.snapshot().servers
        assert servers[0].place == ("fd00::1", 8080)
        assert plan([Endpoint("fd00::1", 8080, 9090)], servers) == []


def test_a_command_that_haproxy_refuses_is_an_error() -> None:
    with haproxy(gateway_slots=1) as gateway, pytest.raises(HAProxyError, match="No such server"):
        gateway.runtime.apply([Ready(2)])


def test_a_haproxy_that_is_away_is_an_error() -> None:
    with pytest.raises(HAProxyError, match=r"nowhere\.sock: No such file"):
        HAProxy(Path("nowhere.sock")).snapshot()
