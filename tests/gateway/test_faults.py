"""The gateway's own faults and ends: HAProxy or the controller crashes, the gateway drains, its log is not read."""

import signal
import socket
import subprocess
import sys
import time

import pytest
import requests
from percore.gateway.endpoints import State

from tests.gateway.harness import PREDICT, Gateway, Pod, needs_haproxy, outcome, outcomes
from tests.service.harness import ROOT, answer_of, eventually

pytestmark = needs_haproxy


def test_a_haproxy_that_crashed_and_starts_again_is_told_of_every_pod() -> None:
    with Gateway() as gateway, Pod() as one, Pod() as two:
        gateway.know(one.endpoint(), two.endpoint())
        assert gateway.call().status_code == 200
        waiting = gateway.ask(seconds=1)
        gateway.kill("haproxy")
        with pytest.raises((ConnectionError, IndexError)):  # a closed connection, and never a wrong answer
            answer_of(waiting)
        eventually(lambda: gateway.status_of_readyz() == 503)
        assert "percore_in_flight_requests{" not in gateway.metrics()
        began = time.monotonic()
        gateway.start_haproxy()
        eventually(gateway.answers, seconds=5)
        assert time.monotonic() - began < 3
        gateway.ready()
        assert gateway.pods("idle") == 2


def test_calls_wait_again_from_the_first_moment_after_haproxy_s_crash() -> None:
    with Gateway() as gateway, Pod() as pod:
        gateway.kill("haproxy")
        gateway.start_haproxy()
        calls = [gateway.ask_when_it_listens() for _ in range(5)]
        eventually(lambda: gateway.waiting() == 5)
        gateway.know(pod.endpoint())
        assert outcomes(calls) == [(200, "")] * 5


def test_while_the_controller_is_away_calls_go_on_and_when_it_is_back_it_knows_where_it_was() -> None:
    with Gateway() as gateway, Pod() as one, Pod() as two:
        gateway.know(one.endpoint())
        eventually(lambda: gateway.pods("idle") == 1)
        running = gateway.ask(seconds=3)
        eventually(lambda: one.calls)
        gateway.kill("controller")
        waiting = gateway.ask()
        eventually(lambda: gateway.waiting() == 1)
        before = gateway.runtime.snapshot()
        gateway.start_controller()
        gateway.ready()
        time.sleep(1)
        assert gateway.runtime.snapshot() == before
        gateway.know(one.endpoint(State.TERMINATING), two.endpoint())
        assert outcomes([waiting, running]) == [(200, ""), (200, "")]
        assert (len(one.calls), len(two.calls)) == (1, 1)


def test_a_second_life_of_haproxy_bears_another_name_so_that_pods_tell_its_calls_from_lost_ones() -> None:
    with Gateway() as gateway, Pod() as pod:
        gateway.know(pod.endpoint())
        eventually(lambda: pod.asked_by)
        gateway.kill("haproxy")
        gateway.start_haproxy()
        eventually(lambda: len(set(pod.asked_by)) == 2)


def test_the_controller_may_compare_once_and_only_say_what_it_would_do() -> None:
    with Gateway() as gateway, Pod() as pod:
        gateway.kill("controller")
        gateway.know(pod.endpoint())
        said = gateway.run("controller", "--once", "--dry-run")
        assert said.startswith("Assign(slot=1, ")
        assert not gateway.runtime.snapshot().servers[0].port
        assert gateway.run("controller", "--once") == said
        assert gateway.call().status_code == 200
        assert gateway.run("controller", "--once") == ""


def test_draining_waits_for_every_call_and_for_a_while_without_any() -> None:
    with Gateway() as gateway, Pod() as pod:
        gateway.know(pod.endpoint())
        calls = [gateway.ask(seconds=1) for _ in range(3)]
        eventually(lambda: gateway.waiting() == 2)
        command = [sys.executable, "-m", "percore.gateway", "drain"]
        began = time.monotonic()
        with subprocess.Popen(command, cwd=ROOT, env=gateway.environ) as draining:
            eventually(lambda: gateway.call(seconds=0).headers["Connection"] == "close")
            assert outcomes(calls) == [(200, "")] * 3
            assert draining.wait(20) == 0
        assert time.monotonic() - began > 7


def test_draining_a_gateway_whose_haproxy_has_ended_ends_at_once() -> None:
    with Gateway() as gateway:
        gateway.kill("haproxy")
        began = time.monotonic()
        gateway.run("drain")
        assert time.monotonic() - began < 3


def test_lines_that_were_written_while_the_controller_was_away_are_read_later() -> None:
    with Gateway() as gateway, Pod() as pod:
        gateway.know(pod.endpoint())
        assert gateway.call().status_code == 200
        eventually(lambda: len(gateway.access_log()) == 1)
        gateway.kill("controller")
        for _ in range(50):
            assert gateway.call().status_code == 200
        gateway.start_controller()
        eventually(lambda: len(gateway.access_log()) == 51)
        gateway.ready()
        assert gateway.metric("percore_gateway_call_duration_seconds_count") == 50
        assert gateway.metric("percore_gateway_log_lines_lost_total") == 0


def test_lines_that_haproxy_could_not_keep_are_counted_and_calls_go_on() -> None:
    with Gateway(max_body_bytes=1) as gateway, requests.Session() as session:
        gateway.restart_haproxy_with("size 4194304", "size 65536")
        gateway.ready()

        def refused() -> bool:
            return session.post(gateway.url(PREDICT), data=b"{}", timeout=5).status_code == 413

        def seen() -> float:
            return gateway.metric("percore_gateway_call_duration_seconds_count", code="413")

        assert refused()
        eventually(lambda: seen() == 1)
        assert gateway.controller is not None
        gateway.controller.send_signal(signal.SIGSTOP)
        assert all(refused() for _ in range(2000))
        gateway.controller.send_signal(signal.SIGCONT)
        time.sleep(0.5)
        assert refused()  # its number says how many are missing
        eventually(lambda: seen() + gateway.metric("percore_gateway_log_lines_lost_total") == 2002)
        assert seen() < 2002


def test_a_call_that_slips_onto_a_server_that_is_always_full_is_sent_back_until_there_is_a_pod() -> None:
    with Gateway() as gateway, Pod() as pod:
        gateway.restart_haproxy_with(" check inter 200ms", "")  # nobody occupies them
        call = gateway.ask_when_it_listens()
        time.sleep(0.5)
        gateway.know(pod.endpoint())
        assert outcome(call) == (200, "")
        assert len(pod.calls) == 1
        eventually(lambda: 10 < gateway.metric("percore_gateway_retries_total") < 100)


def test_the_place_that_makes_calls_wait_is_taken_again_where_it_is_lost() -> None:
    with Gateway() as gateway, Pod() as pod:
        calls = [gateway.ask() for _ in range(5)]
        eventually(lambda: gateway.waiting() == 5)
        for _ in range(3):
            gateway.runtime.ask("shutdown sessions server pods/hold1; shutdown sessions server pods/hold2")
            time.sleep(0.5)
        eventually(lambda: gateway.runtime.snapshot().held)
        assert gateway.waiting() == 5
        gateway.know(pod.endpoint())
        assert outcomes(calls) == [(200, "")] * 5


def test_many_connections_that_say_nothing_keep_nobody_out() -> None:
    with Gateway() as gateway, Pod() as pod:
        gateway.know(pod.endpoint())
        silent = [socket.create_connection(("127.0.0.1", gateway.port)) for _ in range(300)]
        assert gateway.call().status_code == 200
        for connection in silent:
            connection.close()
