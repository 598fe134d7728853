"""Stored calls: a call with a receipt ends once, with one result, whichever process dies."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import requests
from standardwebhooks import Webhook

from harness.service import FAULTY, Service, eventually
from tests.receivers import SECRET, receiver
from tests.stored_client import ASYNC, PREDICT, Stored, leaked

T = TypeVar("T")
JOURNAL = "tests.service.handlers:Journal"


@pytest.fixture(scope="module")
def stored() -> Iterator[Stored]:
    with Service(handler=FAULTY, gateway_caller_header="X-Tenant").ready(2) as service:
        eventually(lambda: service.metric("percore_stored_calls_up") == 1)
        yield Stored(service)
        assert not [
            line for line in service.log() if line["level"] in ("error", "critical") and line["logger"] != "percore.api"
        ]


def test_a_call_is_receipted_runs_and_leaves_its_result(stored: Stored) -> None:
    answer = stored.service.post(PREDICT, {"inputs": {"sleep": 0.1}}, headers={**ASYNC, "X-Request-ID": "mine"})
    assert (answer.status_code, answer.headers["Preference-Applied"], answer.headers["Retry-After"]) == (
        202,
        "respond-async",
        "1",
    )
    path = answer.headers["Location"]
    assert answer.json()["state"] in ("queued", "running")
    assert answer.json()["id"] == path.removeprefix("/v1/calls/")
    status = stored.ended(path)
    assert (status["state"], status["result"]["status"], status["request_id"]) == ("succeeded", 200, "mine")
    assert [(run["number"], run["end"]) for run in status["runs"]] == [(1, "answered")]
    result = stored.result(path)
    assert (result.status_code, result.json()["outputs"]["sleep"], result.headers["X-Request-ID"]) == (200, 0.1, "mine")
    assert "run;dur=" in result.headers["Server-Timing"]
    [line] = [line for line in stored.service.log(logger="percore.call") if line["request_id"] == "mine"]
    assert (line["call_id"], line["run"]) == (status["id"], "1")


def test_the_answer_itself_comes_if_it_is_there_in_time(stored: Stored) -> None:
    soon = stored.service.post(PREDICT, {"inputs": {"sleep": 0.1}}, headers={"Prefer": "respond-async, wait=10"})
    assert (soon.status_code, soon.json()["outputs"]["sleep"]) == (200, 0.1)
    assert soon.headers["Preference-Applied"] == "respond-async, wait=10"
    late = stored.service.post(PREDICT, {"inputs": {"sleep": 1.5}}, headers={"Prefer": "respond-async, wait=1"})
    assert late.status_code == 202
    assert stored.ended(late.headers["Location"])["state"] == "succeeded"


def test_without_the_header_prefer_nothing_is_stored(stored: Stored) -> None:
    before = stored.ids()
    assert stored.service.call(sleep=0).status_code == 200
    assert stored.service.post(PREDICT, {"inputs": {"sleep": 0}}, headers={"Prefer": "return=minimal"}).status_code == 200
    assert stored.ids() == before


def test_a_4xx_and_a_500_are_results_and_final(stored: Stored) -> None:
    for fault, status, code in (("bad", 400, "bad-input"), ("fail", 500, "handler-failed")):
        path = stored.store(**{fault: "x"})  # type: ignore[arg-type]
        found = stored.ended(path)
        assert (found["state"], found["result"]["status"], len(found["runs"])) == ("failed", status, 1)
        result = stored.result(path)
        assert (result.status_code, result.json()["code"]) == (status, code)


def test_a_caller_that_leaves_at_once_finds_its_result_later(stored: Stored) -> None:
    key = {"Idempotency-Key": "left at once"}
    headers = ("Prefer: respond-async", "Idempotency-Key: left at once", "Content-Type: application/json")
    with stored.service.connect() as connection:
        connection.sendall(stored.service.raw(json.dumps({"inputs": {"sleep": 0.5}}).encode(), PREDICT, *headers))
        eventually(lambda: stored.service.in_flight("executing") == 1)
    path = stored.store(headers=key, sleep=0.5)
    assert stored.ended(path)["state"] == "succeeded"
    assert len(stored.status(path)["runs"]) == 1


def test_one_key_is_one_call_however_many_send_it_at_once(stored: Stored) -> None:
    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        paths = set(pool.map(lambda _: stored.store(headers={"Idempotency-Key": "hundred"}, sleep=0.01), range(100)))
    assert len(paths) == 1
    other = stored.service.post(PREDICT, {"inputs": {"sleep": 0.02}}, headers={**ASYNC, "Idempotency-Key": "hundred"})
    assert (other.status_code, other.json()["code"]) == (422, "idempotency-key-reused")
    theirs = stored.store(headers={"Idempotency-Key": "hundred", "X-Tenant": "another"}, sleep=0.01)
    assert theirs not in paths, "a caller learned another's call by its key"


@pytest.mark.parametrize("header", ["Authorization", "Cookie"])
def test_a_key_does_not_give_the_result_of_a_caller_with_other_credentials(stored: Stored, header: str) -> None:
    mine, theirs = ({"Idempotency-Key": f"key of {header}", header: value} for value in ("one", "other"))
    path = stored.store(headers=mine, sleep=0)
    refused = stored.offer(headers=theirs, sleep=0)
    assert (refused.status_code, refused.json()["code"]) == (422, "idempotency-key-reused")
    assert "Location" not in refused.headers
    assert stored.store(headers=mine, sleep=0) == path


@pytest.mark.parametrize(
    ("header", "value"),
    [
        *(("Percore-Max-Runs", value) for value in ("0", "11", "x", "1.5", "-1", "")),
        *(("Percore-Start-Within", value) for value in ("0", "1e3", "99999999999")),
        *(("Idempotency-Key", value) for value in ("", "a" * 256, "\xe9")),
        ("Percore-Webhook", "https://example.com/"),
    ],
)
def test_a_bad_header_is_named_and_nothing_is_stored(stored: Stored, header: str, value: str) -> None:
    before = stored.ids()
    answer = stored.service.post(PREDICT, {"inputs": {"sleep": 0}}, headers={**ASYNC, header: value})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad-input")
    assert answer.json()["error"].startswith(f"{header}: ")
    assert stored.ids() == before


def test_cancel_while_queued_while_running_and_when_it_has_ended(stored: Stored) -> None:
    first, second = stored.store(sleep=20), stored.store(sleep=20)
    eventually(lambda: stored.service.in_flight("executing") == 2)
    waiting = stored.store(sleep=0)
    assert stored.status(waiting)["position"] == 0
    assert stored.result(waiting).json()["code"] == "not-finished"
    assert stored.cancel(waiting)["state"] == "cancelled"
    assert stored.status(waiting)["runs"] == []
    assert stored.cancel(waiting)["state"] == "cancelled"
    began = time.monotonic()
    assert stored.cancel(first)["state"] == "cancelling"
    assert stored.ended(first)["state"] == "cancelled"
    assert time.monotonic() - began < 2
    assert stored.cancel(second)["state"] == "cancelling"
    assert stored.ended(second)["runs"][0]["end"] == "cancelled"
    assert (stored.result(first).status_code, stored.result(first).json()["code"]) == (409, "not-finished")
    done = stored.store(sleep=0)
    assert stored.ended(done)["state"] == "succeeded"
    assert stored.cancel(done)["state"] == "succeeded"
    eventually(lambda: stored.service.metric("percore_workers", state="free") == 2)


def test_a_call_that_does_not_start_in_time_expires(stored: Stored) -> None:
    busy = [stored.store(sleep=2.5) for _ in range(2)]
    eventually(lambda: stored.service.in_flight("executing") == 2)
    path = stored.store(headers={"Percore-Start-Within": "1"}, sleep=0)
    found = stored.ended(path)
    assert (found["state"], found["runs"]) == ("expired", [])
    assert stored.result(path).status_code == 409
    for each in busy:
        assert stored.ended(each)["state"] == "succeeded"


def test_unknown_erased_and_malformed_ids(stored: Stored) -> None:
    path = stored.store(sleep=0)
    stored.ended(path)
    url = stored.service.url(path)
    assert requests.delete(url, timeout=5).status_code == 204
    for each in (url, f"{url}/result"):
        assert (requests.get(each, timeout=5).status_code, requests.get(each, timeout=5).json()["code"]) == (410, "gone")
    for bad in ("0" * 32, "x", "../models", "0" * 33, "%00", f"{'0' * 32}/other", ""):
        answer = requests.get(stored.service.url(f"/v1/calls/{bad}"), timeout=5)
        assert (answer.status_code, answer.json()["code"]) == (404, "not-found"), bad
    for method, rest, allowed in (
        ("PUT", "", "GET, HEAD, DELETE"),
        ("POST", "", "GET, HEAD, DELETE"),
        ("POST", "/result", "GET, HEAD"),
        ("GET", "/cancel", "POST"),
    ):
        answer = requests.request(method, f"{url}{rest}", timeout=5)
        assert (answer.status_code, answer.json()["code"]) == (405, "method-not-allowed")
        assert answer.headers["Allow"] == allowed


def test_callers_take_turns(stored: Stored) -> None:
    busy = [stored.store(sleep=1.0) for _ in range(2)]
    eventually(lambda: stored.service.in_flight("executing") == 2)
    many = [stored.store(headers={"X-Tenant": "many"}, sleep=0.01) for _ in range(6)]
    one = stored.store(headers={"X-Tenant": "one"}, sleep=0.01)
    assert [stored.status(each)["position"] for each in (*many, one)] == [0, 2, 3, 4, 5, 6, 1]
    for each in (*busy, *many, one):
        stored.ended(each)


def test_the_operators_list(stored: Stored) -> None:
    path = stored.store(sleep=0)
    stored.ended(path)
    found = stored.service.get("/v1/calls?state=succeeded&model=default&limit=1").json()
    assert [each["id"] for each in found["calls"]] == [path.removeprefix("/v1/calls/")]
    older = stored.service.get(f"/v1/calls?limit=1&after={found['next']}").json()["calls"]
    assert older[0]["sequence"] < found["next"]
    for query, field in (
        ("state=x", "state"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("after=x", "after"),
        ("a=1", "query"),
        ("model=%00", "model"),
    ):
        answer = stored.service.get(f"/v1/calls?{query}")
        assert (answer.status_code, answer.json()["error"].partition(":")[0]) == (400, field)
    assert requests.get(stored.service.url("/v1/calls"), timeout=5).status_code == 404, "callers can list calls"


class Journalled(Stored):
    """A service whose handler writes a journal of its runs."""

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        self.journal = Path(service.folder.name) / "journal"
        service.environ["JOURNAL"] = str(self.journal)

    def lines(self) -> list[list[str]]:
        return [line.split() for line in self.journal.read_text().splitlines()] if self.journal.exists() else []

    def check_no_overlap(self) -> None:
        assert not [line for line in self.lines() if line[0] == "overlap"]

    def ended_run(self, path: str) -> str:
        """Return how the first run of a call ended; empty if it has not ended, or if the gateway does not answer."""
        with contextlib.suppress(requests.ConnectionError, AssertionError):
            return self.status(path)["runs"][0]["end"] or ""
        return ""


def journalled(**settings: Any) -> Journalled:
    return Journalled(Service(handler=JOURNAL, **settings))


def test_large_bodies_and_results_are_stored_whole_and_sent_in_ranges() -> None:
    """A body of 3 MB takes six pieces, and so does a result of 3 MB."""
    stored = journalled()
    with stored.service.ready() as service:
        answer = service.post(PREDICT, {"inputs": {"n": 7, "fill": 1_500_000, "more": [0.25] * 600_000}}, headers=ASYNC)
        path = answer.headers["Location"]
        assert stored.ended(path)["request_bytes"] > 2_000_000
        whole = stored.result(path).content
        assert (len(whole), whole.count(b"7,")) == (stored.status(path)["result"]["bytes"], 1_500_000)
        size = len(whole)
        for given, begin, end in (
            *(("bytes=0-0", 0, 1), ("bytes=524280-524300", 524280, 524301), ("bytes=-10", size - 10, size)),
            *(("bytes=2000000-", 2_000_000, size), (f"bytes=5-{size * 2}", 5, size)),
        ):
            part = stored.result(path, headers={"Range": given})
            assert (part.status_code, part.headers["Content-Range"]) == (206, f"bytes {begin}-{end - 1}/{size}")
            assert part.content == whole[begin:end]
        beyond = stored.result(path, headers={"Range": f"bytes={size}-"})
        assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, f"bytes */{size}")
        head = requests.head(service.url(f"{path}/result"), timeout=5)
        assert (head.status_code, int(head.headers["Content-Length"]), head.content) == (200, size, b"")


def test_a_call_that_is_cancelled_while_it_finishes_has_one_end() -> None:
    """If a call was cancelled, the next cancel is sent later; otherwise earlier. So most arrive while a result is stored."""
    stored = journalled()
    states: list[str] = []
    with stored.service.ready(2) as service:
        delay, step = 0.0, 0.2
        for number in range(16):
            path = stored.store(n=number, sleep=0.1, fill=300_000)
            eventually(partial(in_journal, stored, number))
            time.sleep(delay)
            stored.cancel(path)
            found = stored.ended(path)
            states.append(found["state"])
            [run] = found["runs"]
            if found["state"] == "succeeded":
                assert (run["end"], stored.result(path).json()["outputs"]["fill"]) == ("answered", [number] * 300_000)
            else:
                assert (found["state"], run["end"], found.get("result")) == ("cancelled", "cancelled", None)
                assert stored.result(path).status_code == 409
            step = max(step * 0.7, 0.004)
            delay = max(0.0, delay + (step if found["state"] == "cancelled" else -step))
            assert stored.cancel(path)["state"] == found["state"]
        assert set(states) == {"succeeded", "cancelled"}
        for state, count in Counter(states).items():
            assert service.metric("percore_stored_calls_ended_total", state=state) == count
        assert len(service.log(logger="percore.gateway.stored_call")) == len(states)


def in_journal(stored: Journalled, number: int) -> bool:
    return any(line[:2] == ["begin", str(number)] for line in stored.lines())


def test_a_pod_that_is_lost_twice_fails_the_call() -> None:
    with Service(handler=FAULTY).ready(2) as service:
        stored = Stored(service)
        path = stored.store(signal=9)
        found = stored.ended(path)
        assert (found["state"], found["result"]["status"]) == ("failed", 502)
        assert [run["end"] for run in found["runs"]] == ["pod-lost", "pod-lost"]
        assert stored.result(path).json()["code"] == "pod-lost"
        once = stored.store(headers={"Percore-Max-Runs": "1"}, signal=9)
        assert [run["end"] for run in stored.ended(once)["runs"]] == ["pod-lost"]


def test_a_run_over_its_time_is_final() -> None:
    with Service(handler=FAULTY, run_timeout=1).ready(2) as service:
        stored = Stored(service)
        path = stored.store(sleep=30)
        found = stored.ended(path)
        assert (found["state"], found["result"]["status"], len(found["runs"])) == ("failed", 504, 1)


def test_a_run_ends_with_its_connection_whatever_the_setting_says() -> None:
    stored = journalled(on_client_disconnect="finish")
    with stored.service.ready(2) as service:
        path = stored.store(n=1, sleep=20)
        eventually(stored.lines)
        os.kill(service.pids("gateway")[0], signal.SIGKILL)
        eventually(lambda: len([line for line in stored.lines() if line[0] == "begin"]) == 2, 20)
        stored.check_no_overlap()
        ends = [run["end"] for run in stored.status(path)["runs"]]
        assert ends == ["gateway-lost", None]
        stored.cancel(path)


def test_queued_calls_outlive_a_stop_and_a_start() -> None:
    stored = journalled()
    with stored.service.ready(2) as service:
        paths = [stored.store(n=number, sleep=5.0 if number < 2 else 0.5) for number in range(8)]
        eventually(lambda: service.in_flight("executing") == 2)
        service.processes[0].send_signal(signal.SIGTERM)
        service.processes[0].wait(30)
        done = [line for line in stored.lines() if line[0] == "end"]
        assert len(done) == 2, "running calls end, and no other call begins"
        service.processes.clear()
        service.start()
        service.ready(2)
        for number, path in enumerate(paths):
            found = stored.ended(path)
            assert (found["state"], len(found["runs"])) == ("succeeded", 1), number
        stored.check_no_overlap()
        assert sorted(int(line[1]) for line in stored.lines() if line[0] == "begin") == list(range(8))


def test_a_client_that_waits_for_a_stored_call_does_not_hold_up_a_stop() -> None:
    stored = journalled()
    with stored.service.ready(2) as service, concurrent.futures.ThreadPoolExecutor(3) as pool:
        paths = [stored.store(n=number, sleep=4.0) for number in range(3)]
        eventually(lambda: service.in_flight("executing") == 2)
        waits = [pool.submit(stored.status, path, 60) for path in paths]
        time.sleep(0.3)
        began = time.monotonic()
        service.processes[0].send_signal(signal.SIGTERM)
        assert [wait.result()["state"] for wait in waits] == ["running", "running", "queued"]
        service.processes[0].wait(30)
        assert time.monotonic() - began < 10


@pytest.mark.parametrize(("when", "pieces"), [("before", 1), ("after", 1), ("before", 3)])
def test_a_gateway_that_dies_between_any_two_steps_loses_nothing(when: str, pieces: int) -> None:
    die_between_steps(journalled(), when, pieces)


def die_between_steps(stored: Journalled, when: str, pieces: int = 1) -> None:
    """Kill the gateway at the first write after the call was sent, then at the second, until a call ends without a death."""
    service = stored.service
    die_at = dying(service)
    deaths = tried = 0
    fill, more = (10, [0.5]) if pieces == 1 else (400_000, [0.5] * 300_000)  # one row or several for the body and the result
    with service.ready(2):
        # The service ends if its gateway dies five times soon after a start. So with many pieces, not every write is tried.
        for step in range(1, 40) if pieces == 1 else range(2, 40, 3):
            die_at.write_text(f"{step} {when}")
            tried += 1
            path = until_answered(
                partial(stored.store, headers={"Idempotency-Key": f"step {step}"}, n=step, fill=fill, more=more)
            )
            found = stored.ended(path)
            assert found["state"] == "succeeded"
            assert stored.result(path).json()["outputs"]["fill"] == [step] * fill
            assert [run["end"] for run in found["runs"]].count("answered") == 1
            if die_at.exists():
                die_at.unlink()
                break
            deaths += 1
            eventually(lambda: service.metric("percore_workers", state="free") == 2)
        stored.check_no_overlap()
        calls = service.get("/v1/calls?limit=1000").json()["calls"]
        assert {each["state"] for each in calls} == {"succeeded"}
        assert len(calls) == tried
    assert deaths >= 3, "accept, begin and end are writes; with more pieces, only every third write is tried"


def dying(service: Service) -> Path:
    """Prepare a service whose gateway dies at a write. Return the file that says at which one: see ``dying/``."""
    die_at = Path(service.folder.name) / "die_at"
    service.environ["DIE_AT"] = str(die_at)
    service.environ["PYTHONPATH"] = f"{Path(__file__).parent / 'dying'}:{service.environ.get('PYTHONPATH', '')}"
    return die_at


def until_answered(send: Callable[[], T]) -> T:
    """Send again until the gateway does not die, as a client does that tries again."""
    while True:
        with contextlib.suppress(requests.ConnectionError):
            return send()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_gateway_that_dies_at_a_cancel_or_a_delete_leaves_one_end(when: str) -> None:
    stored = journalled()
    service = stored.service
    die_at = dying(service)
    key = {"Idempotency-Key": "once"}
    with service.ready(2):
        running = [stored.store(n=number, sleep=60) for number in (1, 2)]
        service.until(executing=2)
        queued = stored.store(headers=key, n=3)
        # A cancel of a queued call is one write. A cancel of a running call is followed by the write of its end.
        for path, step in ((queued, 1), (running[0], 1), (running[1], 2)):
            die_at.write_text(f"{step} {when}")
            until_answered(partial(stored.cancel, path))
            found = stored.ended(path)
            assert found["state"] == "cancelled"
            assert {run["end"] for run in found["runs"]} <= {"gateway-lost", "cancelled"}
            assert until_answered(partial(stored.store, headers=key, n=3)) == queued
            eventually(lambda: not die_at.exists())
        die_at.write_text(f"1 {when}")
        deleted = until_answered(lambda: requests.delete(service.url(queued), timeout=30))
        assert deleted.status_code in (204, 410), "410: the gateway died after it deleted the call"
        assert requests.get(service.url(queued), timeout=5).status_code == 410
        again = stored.store(headers=key, n=3)
        assert again != queued
        assert stored.ended(again)["state"] == "succeeded"
        assert not die_at.exists()
        assert stored.ids() == [path.rpartition("/")[2] for path in (again, *reversed(running))]
        stored.check_no_overlap()
        assert leaked(service) == []


def test_whatever_is_killed_every_call_ends_once() -> None:
    """200 calls, while the processes of the service are killed at random."""
    chance = random.Random(8)
    stored = journalled(gateway_calls_max_runs=10)
    with stored.service.ready(2) as service:
        paths: dict[int, str] = {}

        def send(number: int) -> None:
            body = {"n": number, "sleep": 0.02, "fill": 100, "more": [0.5] * (number % 5 * 40_000)}
            while number not in paths:
                with contextlib.suppress(requests.ConnectionError):
                    answer = service.post(PREDICT, {"inputs": body}, headers={**ASYNC, "Idempotency-Key": f"{number}"})
                    if answer.status_code == 202:
                        paths[number] = answer.headers["Location"]
                    else:
                        assert answer.status_code == 503, answer.text
                        time.sleep(0.2)

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            sent = [pool.submit(send, number) for number in range(200)]
            ends = time.monotonic() + 25
            while time.monotonic() < ends:
                time.sleep(chance.uniform(0.5, 2.0))
                victims = service.pids("gateway") + service.workers
                if victims:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(chance.choice(victims), signal.SIGKILL)
            for each in sent:
                each.result()
        for number, path in paths.items():
            found = stored.ended(path, 120)
            assert found["state"] == "succeeded", (number, found)
            assert [run["end"] for run in found["runs"]].count("answered") == 1
            assert stored.result(path).json()["outputs"]["fill"] == [number % 256] * 100
        stored.check_no_overlap()
        assert len(service.get("/v1/calls?limit=1000").json()["calls"]) == 200
        assert service.get("/v1/calls?state=queued,running,cancelling").json()["calls"] == []


def test_bounds_are_answered_with_an_honest_status_and_nothing_is_half_stored() -> None:
    with Service(handler=FAULTY, gateway_calls_limit=3).ready(2) as service:
        stored = Stored(service)
        paths = [stored.store(sleep=1.0) for _ in range(3)]
        full = service.post(PREDICT, {"inputs": {"sleep": 0}}, headers=ASYNC)
        assert (full.status_code, full.json()["code"]) == (429, "queue-full")
        assert full.headers["Retry-After"]
        assert len(service.get("/v1/calls").json()["calls"]) == 3
        for path in paths:
            stored.ended(path)
        assert stored.store(sleep=0)
    with Service(handler=FAULTY, gateway_calls_free_bytes=2**49).ready(1) as service:
        full = service.post(PREDICT, {"inputs": {"sleep": 0}}, headers=ASYNC)
        assert (full.status_code, full.json()["code"]) == (503, "overloaded")
        assert service.call(sleep=0).status_code == 200


def test_a_result_is_kept_for_its_retention_after_its_caller_left_and_the_id_for_longer() -> None:
    """The caller's connection ends with the receipt. The caller asks again after a third of the retention."""
    with Service(handler=FAULTY, gateway_calls_retention=6).ready(1) as service:
        stored = Stored(service)
        path = stored.store(sleep=0)
        eventually(lambda: service.metric("percore_stored_calls_ended_total", state="succeeded") == 1)
        time.sleep(2)
        assert stored.result(path).json()["outputs"]["sleep"] == 0
        assert stored.status(path)["state"] == "succeeded"
        eventually(lambda: requests.get(service.url(path), timeout=5).status_code == 410, 20)
        assert service.get("/v1/calls").json()["calls"] == []


def test_an_older_program_refuses_a_newer_schema(tmp_path: Path) -> None:
    import sqlite3  # noqa: PLC0415

    folder = tmp_path / "calls"
    with Service(handler=FAULTY, gateway_calls_dir=folder).ready(1) as service:
        Stored(service).store(sleep=0)
    with sqlite3.connect(folder / "calls.sqlite3") as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    with Service(handler=FAULTY, gateway_calls_dir=folder) as service:
        service.start() if not service.processes else None
        assert service.processes[0].wait(30) == 78
        assert "its schema is '9999', of a newer percore" in service.log_path.read_text()


def test_without_a_folder_calls_are_not_stored_and_everything_else_works(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    service = Service(handler=FAULTY)
    service.environ["XDG_STATE_HOME"] = str(tmp_path / "file")
    with service.ready(1):
        assert service.post(PREDICT, {"inputs": {"sleep": 0}}, headers=ASYNC).status_code == 200
        assert [line for line in service.log("calls are not stored") if line["level"] == "warning"]
    with Service(handler=FAULTY, gateway_calls_enabled="no").ready(1) as off:
        assert off.post(PREDICT, {"inputs": {"sleep": 0}}, headers=ASYNC).status_code == 200


def test_a_second_gateway_waits_for_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "calls"
    with Service(handler=FAULTY, gateway_calls_dir=folder).ready(1) as first:
        path = Stored(first).store(sleep=0)
        with Service(handler=FAULTY, gateway_calls_dir=folder).ready(1) as second:
            answer = second.post(PREDICT, {"inputs": {"sleep": 0}}, headers=ASYNC)
            assert (answer.status_code, answer.json()["code"]) == (503, "not-ready")
            assert second.call(sleep=0).status_code == 200
            first.stop()
            eventually(lambda: second.metric("percore_stored_calls_up") == 1)
            assert Stored(second).ended(path)["state"] == "succeeded"


def test_the_end_of_a_call_is_sent_to_its_webhook_and_sent_again_if_it_fails() -> None:
    webhooks: dict[str, Any] = {"gateway_webhook_hosts": "127.0.0.1", "gateway_webhook_secrets": SECRET}
    with receiver() as known, Service(handler=FAULTY, **webhooks).ready() as service:
        known.answers.append((500, {}, b""))
        stored = Stored(service)
        path = stored.store(headers={"Percore-Webhook": f"http://127.0.0.1:{known.port}/end"}, sleep=0)
        eventually(lambda: len(known.requests) == 2, 20)
        for each in known.requests:
            message = Webhook(SECRET).verify(each.body, each.headers)
            assert (message["type"], message["data"]["id"]) == ("call.succeeded", path.removeprefix("/v1/calls/"))
        assert known.requests[0].headers["webhook-id"] == known.requests[1].headers["webhook-id"]
        assert SECRET not in service.log_path.read_text()
        eventually(lambda: service.metric("percore_webhook_attempts_total", outcome="delivered") == 1)
        bad = service.post(PREDICT, {}, headers={**ASYNC, "Percore-Webhook": "http://10.1.2.3/"})
        assert (bad.status_code, bad.json()["error"].partition(":")[0]) == (400, "Percore-Webhook")
