"""Calls wait for pods: at zero pods, in the order of their arrival, and only as many and as long as they may."""

import json
import time

import pytest

from tests.gateway.harness import Gateway, Pod, needs_haproxy, outcome, outcomes
from tests.service.harness import answer_of, eventually

pytestmark = needs_haproxy


def test_eleven_calls_that_came_when_there_was_no_pod_run_on_pods_that_come_later() -> None:
    with Gateway() as gateway, Pod() as one, Pod() as two:
        calls = [gateway.ask(seconds=0.05) for _ in range(11)]
        eventually(lambda: gateway.waiting() == 11)
        assert gateway.metric("percore_in_flight_requests", state="waiting") == 11
        gateway.know(one.endpoint())
        eventually(lambda: one.calls)
        gateway.know(one.endpoint(), two.endpoint())
        assert outcomes(calls) == [(200, "")] * 11
        assert len(one.calls) + len(two.calls) == 11
        assert len(two.calls) >= 2


def test_a_call_goes_to_the_pod_that_is_free_and_never_waits_behind_a_busy_one() -> None:
    with Gateway() as gateway, Pod() as one, Pod() as two:
        gateway.know(one.endpoint(), two.endpoint())
        eventually(lambda: gateway.pods("idle") == 2)
        long = gateway.ask(seconds=2)
        eventually(lambda: gateway.executing() == 1)
        began = time.monotonic()
        for _ in range(5):
            assert gateway.call(seconds=0).status_code == 200
        assert time.monotonic() - began < 1
        assert sorted([len(one.calls), len(two.calls)]) == [1, 5]
        assert outcome(long) == (200, "")


# 0: each call has a class of its own; 2,000: each unit of time has one; 4,000: there is no class left.
@pytest.mark.parametrize("class_", [0, 1990, 2000, 4070])
def test_calls_are_served_in_the_order_of_their_arrival(class_: int) -> None:
    with Gateway(gateway_order_unit=0.05) as gateway, Pod() as pod:
        calls = [gateway.ask(number=0, seconds=0.01)]
        gateway.runtime.ask(f"experimental-mode on; set var proc.class int({class_})")
        for number in range(1, 40):
            calls.append(gateway.ask(number=number, seconds=0.01))
            eventually(lambda number=number: gateway.waiting() == number + 1)  # type: ignore[misc]
        gateway.know(pod.endpoint())
        assert outcomes(calls) == [(200, "")] * 40
        assert pod.numbers() == list(range(40))


def test_a_call_that_a_pod_refused_keeps_its_place() -> None:
    with Gateway() as gateway, Pod(listening=False) as pod:
        calls = []
        for number in range(20):
            calls.append(gateway.ask(number=number))
            eventually(lambda number=number: gateway.waiting() == number + 1)  # type: ignore[misc]
        gateway.know(pod.endpoint())
        eventually(lambda: gateway.haproxy_says("pods/pod1 is DOWN"))
        time.sleep(0.3)
        pod.open()
        assert outcomes(calls) == [(200, "")] * 20
        assert pod.numbers() == list(range(20))


@pytest.mark.parametrize(("header", "order"), [("X-Priority", [4, 3, 0, 1, 2]), ("", [0, 1, 2, 3, 4])])
def test_only_where_the_operator_allows_it_a_call_with_priority_is_served_first(header: str, order: list[int]) -> None:
    with Gateway(gateway_priority_header=header) as gateway, Pod() as pod:
        calls = []
        for number, given in enumerate(["", "X-Priority: 0", "X-Priority: 10", "X-Priority: 1", "X-Priority: 9"]):
            calls.append(gateway.ask(*filter(None, [given]), number=number))
            eventually(lambda number=number: gateway.waiting() == number + 1)  # type: ignore[misc]
        gateway.know(pod.endpoint())
        assert outcomes(calls) == [(200, "")] * 5
        assert pod.numbers() == order


def test_beyond_the_queue_s_bound_a_call_is_told_so_at_once() -> None:
    with Gateway(queue_max=3) as gateway, Pod() as pod:
        calls = [gateway.ask(seconds=0) for _ in range(3)]
        eventually(lambda: gateway.waiting() == 3)
        began = time.monotonic()
        answer = gateway.call()
        assert time.monotonic() - began < 0.5
        assert (answer.status_code, answer.json()["code"]) == (429, "queue-full")
        assert int(answer.headers["Retry-After"]) > 0
        gateway.know(pod.endpoint())
        assert outcomes(calls) == [(200, "")] * 3
        assert gateway.call().status_code == 200
        eventually(lambda: gateway.metric("percore_gateway_rejected_calls_total", reason="queue-full") == 1)


def test_a_call_that_waits_longer_than_the_wait_limit_is_told_so_and_never_runs() -> None:
    with Gateway(wait_limit=1) as gateway, Pod() as pod:
        began = time.monotonic()
        status, headers, body = answer_of(gateway.ask())
        assert 0.9 < time.monotonic() - began < 2
        assert status == 503
        assert json.loads(body)["code"] == "wait-timeout"
        assert "waited 1 s" in json.loads(body)["error"]
        assert int(headers["retry-after"]) > 0
        eventually(lambda: gateway.metric("percore_gateway_rejected_calls_total", reason="wait-timeout") == 1)
        assert gateway.metric("percore_gateway_wait_seconds_sum", code="503") > 0.9
        gateway.know(pod.endpoint())
        assert gateway.call().status_code == 200
        assert len(pod.calls) == 1


def test_the_times_of_each_call_are_told_to_the_caller_and_measured() -> None:
    with Gateway() as gateway, Pod() as pod:
        calls = [gateway.ask("X-Request-ID: my-own", seconds=0.5), gateway.ask(seconds=0.1)]
        eventually(lambda: gateway.waiting() == 2)
        gateway.know(pod.endpoint())
        answers = [answer_of(call) for call in calls]
        waits = [float(answer[1]["server-timing"].split(";dur=")[1].split(",")[0]) for answer in answers]
        assert waits[1] >= waits[0] + 490
        assert all(answer[1]["server-timing"].endswith(", run;dur=1.500") for answer in answers)
        assert answers[0][1]["x-request-id"] == "my-own"
        assert len(answers[1][1]["x-request-id"]) == 36
        eventually(lambda: len(gateway.access_log()) == 2)
        first, second = gateway.access_log()
        assert (first["request_id"], first["status"], first["ahead"]) == ("my-own", "200", 0)
        assert (second["ahead"], second["pod"]) == (1, f"127.0.0.1:{pod.port}")
        assert second["wait_seconds"] * 1000 == pytest.approx(waits[1], abs=2)
        assert gateway.metric("percore_gateway_call_duration_seconds_count", code="200") == 2
        assert gateway.metric("percore_gateway_wait_seconds_sum", code="200") * 1000 == pytest.approx(sum(waits), abs=3)


def test_the_pod_is_told_who_asks_since_when() -> None:
    with Gateway() as gateway, Pod() as pod:
        gateway.know(pod.endpoint())
        eventually(lambda: pod.asked_by)
        before = time.time() * 1000
        answer = gateway.call(headers={"X-Percore-Gateway": "somebody", "X-Percore-Occupant": "yes", "X-Request-Start": "0"})
        sent = dict(line.lower().split(": ", 1) for line in answer.json()["head"].splitlines()[1:])
        assert "x-percore-occupant" not in sent
        assert sent["x-percore-gateway"] == pod.asked_by[-1] != "somebody"
        assert before - 1 <= float(sent["x-request-start"].removeprefix("t=")) <= time.time() * 1000
        assert sent["x-request-id"] == answer.headers["X-Request-ID"]


def test_a_body_larger_than_the_buffer_waits_as_long_as_any_other() -> None:
    with Gateway(body_limit=1) as gateway, Pod() as pod:
        large = gateway.ask(text="x" * 1_000_000)
        small = gateway.ask()
        time.sleep(2.5)  # longer than the body limit
        gateway.know(pod.endpoint())
        assert outcomes([large, small]) == [(200, "")] * 2
        assert sorted(len(call) > 1_000_000 for call in pod.calls) == [False, True]
