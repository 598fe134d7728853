"""What becomes of HAProxy's log."""

import json
from typing import Any

import pytest
from percore.gateway.lines import CODES, parse
from percore.gateway.logs import Journal
from percore.gateway.telemetry import GatewayTelemetry


def line_of(**fields: Any) -> bytes:
    given: dict[str, Any] = {
        "life": "gw-1",
        "line": 1,
        "id": "abc",
        "path": "/v1/models/m:predict",
        "call": "1",
        "status": 200,
        "end": "--",
        "address": "10.0.0.1",
        "port": "8080",
        "ahead": "0",
        "wait": 1500,
        "run": 2000,
        "total": 3600,
        "received": 100,
        "sent": 200,
        "retries": "0",
        "client": "10.9.9.9",
    }
    return json.dumps(given | fields).encode()


class Reader:
    """A journal, its metrics and what it wrote."""

    def __init__(self) -> None:
        self.telemetry = GatewayTelemetry()
        self.written: list[dict[str, Any]] = []
        self.journal = Journal(self.telemetry, lambda place: f"pod at {place[0]}", self.written.append)

    def take(self, **fields: Any) -> dict[str, Any]:
        self.journal.take(line_of(**fields))
        return self.written[-1]

    def value(self, name: str, **labels: str) -> float | None:
        return self.telemetry.registry.get_sample_value(f"percore_gateway_{name}", labels)


@pytest.fixture
def reader() -> Reader:
    return Reader()


def test_a_call_becomes_an_access_line_in_base_units(reader: Reader) -> None:
    assert reader.take(retries="+2", ahead="7") == {
        "logger": "percore.gateway.call",
        "request_id": "abc",
        "path": "/v1/models/m:predict",
        "status": "200",
        "end": "--",
        "ahead": 7,
        "wait_seconds": 1.5,
        "run_seconds": 2.0,
        "total_seconds": 3.6,
        "request_bytes": 100,
        "response_bytes": 200,
        "retries": 2,
        "pod": "pod at 10.0.0.1",
        "client": "10.9.9.9",
    }


def test_waiting_and_the_whole_are_measured_by_code(reader: Reader) -> None:
    reader.take()
    reader.take(status=500, line=2)
    assert reader.value("wait_seconds_sum", code="200") == 1.5
    assert reader.value("call_duration_seconds_sum", code="200") == 3.6
    assert reader.value("call_duration_seconds_count", code="500") == 1


@pytest.mark.parametrize(
    ("status", "end", "reason"),
    [
        (503, "sQ", "wait-timeout"),
        (503, "SC", "no-pod"),
        (503, "sC", "no-pod"),
        (429, "LR", "queue-full"),
        (413, "LR", "body-too-large"),
        (408, "cR", "body-timeout"),
        (400, "PR", "bad-request"),
    ],
)
def test_what_haproxy_refuses_is_counted_by_its_reason(reader: Reader, status: int, end: str, reason: str) -> None:
    reader.take(status=status, end=end, address="-", port="-", wait=-1, run=-1)
    assert reader.value("rejected_calls_total", reason=reason) == 1


@pytest.mark.parametrize("status", [400, 408, 413, 429, 503])
def test_what_a_pod_answers_is_no_refusal_of_the_gateway_s(reader: Reader, status: int) -> None:
    reader.take(status=status)
    samples = [sample for metric in reader.telemetry.rejected.collect() for sample in metric.samples]
    assert not [sample for sample in samples if sample.name.endswith("_total") and sample.value]


def test_a_call_that_waited_in_vain_counts_as_having_waited(reader: Reader) -> None:
    reader.take(status=503, end="sQ", wait=-1, run=-1, total=7200000)
    assert reader.value("wait_seconds_sum", code="503") == 7200


@pytest.mark.parametrize(
    ("end", "state"), [("CQ", "waiting"), ("CC", "waiting"), ("CH", "executing"), ("CD", "executing"), ("CR", "sending")]
)
def test_clients_that_left_are_counted_by_when_they_left(reader: Reader, end: str, state: str) -> None:
    line = reader.take(status=-1, end=end, wait=-1, run=-1)
    assert line["status"] == "abandoned"
    assert reader.value("abandoned_calls_total", state=state) == 1
    assert reader.value("call_duration_seconds_count", code="abandoned") == 1


def test_labels_stay_bounded_whatever_pods_answer(reader: Reader) -> None:
    for status in range(100, 1000):
        reader.take(status=status)
    codes = {sample.labels["code"] for metric in reader.telemetry.total.collect() for sample in metric.samples}
    assert codes == CODES | {"abandoned", "other"}


def test_failures_begin_at_zero_so_that_the_first_one_is_a_rise(reader: Reader) -> None:
    for code in CODES | {"abandoned", "other"}:
        assert reader.value("call_duration_seconds_count", code=code) == 0
    for code in ("200", "503", "abandoned"):
        assert reader.value("wait_seconds_count", code=code) == 0
    for state in ("waiting", "executing", "sending"):
        assert reader.value("abandoned_calls_total", state=state) == 0
    for reason in ("bad-request", "body-timeout", "body-too-large", "queue-full", "wait-timeout", "no-pod"):
        assert reader.value("rejected_calls_total", reason=reason) == 0
    for result in ("made", "failed", "gone"):
        assert reader.value("deletion_cost_marks_total", result=result) == 0


def test_gaps_in_the_numbers_are_lost_lines(reader: Reader) -> None:
    for number in (5, 6, 9, 10, 12):
        reader.take(line=number)
    assert reader.value("log_lines_lost_total") == 3


def test_a_new_life_of_haproxy_counts_from_the_start(reader: Reader) -> None:
    reader.take(line=50)
    reader.take(life="gw-2", line=2)
    reader.take(life="gw-2", line=4)
    assert reader.value("log_lines_lost_total") == 1


@pytest.mark.parametrize("wrong", [b"", b"{}", b"[]", b'"', b"<133>haproxy[1]: text", line_of(retries=None), line_of(wait="x")])
def test_what_makes_no_sense_is_passed_over(reader: Reader, wrong: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse(wrong)
    reader.journal.take(wrong)
    assert reader.written == []
    reader.take()
    assert len(reader.written) == 1


def test_a_pod_of_no_name_is_told_by_its_place() -> None:
    written: list[dict[str, Any]] = []
    Journal(GatewayTelemetry(), write=written.append).take(line_of(address="fd00::1"))
    assert written[0]["pod"] == "fd00::1:8080"
