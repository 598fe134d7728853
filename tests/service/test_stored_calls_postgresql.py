"""Stored calls in PostgreSQL: several gateways share them. Each call ends once, even if processes end or freeze."""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import requests
from standardwebhooks import Webhook

from harness.gateway import Gateway, endpoint_of
from harness.service import FAULTY, Service, eventually
from tests.receivers import SECRET, receiver
from tests.service.postgresql import PASSWORD, POOLER, QUOTED, USER, PostgreSQL, programs

# The tests of one gateway with SQLite, run with PostgreSQL.
from tests.service.test_stored_calls import (  # noqa: F401
    JOURNAL,
    die_between_steps,
    journalled,
    test_a_4xx_and_a_500_are_results_and_final,
    test_a_call_is_receipted_runs_and_leaves_its_result,
    test_a_call_that_does_not_start_in_time_expires,
    test_a_caller_that_leaves_at_once_finds_its_result_later,
    test_callers_take_turns,
    test_cancel_while_queued_while_running_and_when_it_has_ended,
    test_one_key_is_one_call_however_many_send_it_at_once,
    test_the_answer_itself_comes_if_it_is_there_in_time,
    test_the_operators_list,
    test_unknown_erased_and_malformed_ids,
    test_without_the_header_prefer_nothing_is_stored,
)
from tests.stored_client import Stored, StoredClient

PROGRAMS = programs()
pytestmark = pytest.mark.skipif(
    PROGRAMS is None, reason="no PostgreSQL server on this machine: Debian's package `postgresql` has it"
)
NUMBER = itertools.count()
LEASE, OWN_LEASE = 12.0, 6.0
SHRUNK = f"RENEW_SECONDS=1 LEASE_SECONDS={LEASE} OWN_LEASE_SECONDS={OWN_LEASE}"
SLOW = 60.0
"""Seconds that a step may take on a busy machine; usually it takes one."""


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQL]:
    assert PROGRAMS is not None
    with PostgreSQL(PROGRAMS) as found:
        yield found


@pytest.fixture(scope="module")
def fragile() -> Iterator[PostgreSQL]:
    """A server that tests may end."""
    assert PROGRAMS is not None
    with PostgreSQL(PROGRAMS) as found:
        yield found


@pytest.fixture
def database(server: PostgreSQL) -> str:
    return server.create(f"calls{next(NUMBER)}")


@pytest.fixture(scope="module")
def stored(server: PostgreSQL) -> Iterator[Stored]:
    url = server.create(f"calls{next(NUMBER)}")
    with Service(handler=FAULTY, gateway_caller_header="X-Tenant", gateway_calls_database=url).ready(2) as service:
        yield Stored(service)
        check_secret(service.log_path.read_text())
        assert not [
            line for line in service.log() if line["level"] in ("error", "critical") and line["logger"] != "percore.api"
        ]


def check_secret(text: str) -> None:
    """No log has the password, however it is written."""
    assert PASSWORD not in text
    assert QUOTED not in text


class PostgreSQLGateway(Gateway, StoredClient):
    """A gateway whose calls are in PostgreSQL, with leases that end soon."""

    patience = SLOW

    def __init__(self, database: str, *pods: Service, lease: str = SHRUNK, **settings: Any) -> None:
        super().__init__(*map(endpoint_of, pods), gateway_calls_database=database, **settings)
        shrunk = Path(__file__).parent / "shrunk"
        self.environ |= {"SHRINK": lease, "PYTHONPATH": f"{shrunk}:{os.environ.get('PYTHONPATH', '')}"}

    def __exit__(self, *rest: object) -> None:
        text = self.log_path.read_text()
        super().__exit__(*rest)
        check_secret(text)

    def wait_for_store(self) -> PostgreSQLGateway:
        """Wait until it can store calls."""
        eventually(lambda: self.metric("percore_stored_calls_up") == 1, SLOW)
        return self

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.wait(30)

    def listed(self, query: str = "limit=1000") -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get_status(f"/v1/calls?{query}").json()["calls"]
        return found


class Pods:
    """Real pods, and the journal of what they compute."""

    def __init__(self, folder: Path, count: int) -> None:
        self.journal = folder / "journal"
        self.pods = [Service(pod=True, handler=JOURNAL) for _ in range(count)]
        for pod in self.pods:
            pod.environ["JOURNAL"] = str(self.journal)

    def __enter__(self) -> list[Service]:
        for pod in self.pods:
            pod.start()
        return [pod.ready() for pod in self.pods]

    def __exit__(self, *_: object) -> None:
        for pod in self.pods:
            pod.__exit__()

    def lines(self) -> list[list[str]]:
        return [line.split() for line in self.journal.read_text().splitlines()] if self.journal.exists() else []

    def begun(self, number: int) -> int:
        """Return how many runs of a call have begun."""
        return len([line for line in self.lines() if line[:2] == ["begin", str(number)]])

    def ended(self, number: int) -> int:
        """Return how many runs of a call computed to their end."""
        return len([line for line in self.lines() if line[:2] == ["end", str(number)]])

    def check_no_overlap(self) -> None:
        assert not [line for line in self.lines() if line[0] == "overlap"]


def is_quick(gateway: Gateway) -> None:
    """The probes and the metrics answer at once, whatever the database does."""
    for path in ("/readyz", "/livez", "/metrics"):
        began = time.monotonic()
        assert gateway.get_status(path).status_code == 200, path
        assert time.monotonic() - began < 3, path


# --- several gateways


def test_two_gateways_are_one_service(database: str, tmp_path: Path) -> None:
    """Each gateway answers all requests about a call, also if another gateway runs it."""
    pods = Pods(tmp_path, 2)
    with pods as both, PostgreSQLGateway(database, *both) as first, PostgreSQLGateway(database, *both) as second:
        first.wait_for_store(), second.wait_for_store()
        path = first.store(n=1, fill=2_000_000)
        assert second.ended(path)["state"] == "succeeded"
        assert second.result(path).content == first.result(path).content
        busy = [first.store(n=number, sleep=60) for number in (2, 3)]
        eventually(lambda: pods.begun(2) and pods.begun(3), SLOW)
        waiting = first.store(n=4)
        assert second.status(waiting)["position"] == 0
        assert second.cancel(waiting)["state"] == "cancelled"
        assert first.status(waiting)["runs"] == []
        assert second.cancel(busy[0])["state"] == "cancelling"
        assert second.ended(busy[0])["runs"][0]["end"] == "cancelled"
        assert first.cancel(busy[1])["state"] == "cancelling"
        assert second.ended(busy[1])["state"] == "cancelled"
        assert requests.delete(second.url(path), timeout=60).status_code == 204
        assert first.result(path).status_code == 410
        with concurrent.futures.ThreadPoolExecutor(20) as pool:
            paths = pool.map(
                lambda number: (first, second)[number % 2].store(headers={"Idempotency-Key": "one"}, n=5), range(40)
            )
            assert len(set(paths)) == 1
        assert second.offer(headers={"Idempotency-Key": "one"}, n=6).status_code == 422
        assert {each["id"] for each in first.listed()} == {each["id"] for each in second.listed()}
        pods.check_no_overlap()
        assert pods.begun(4) == 0
        assert pods.begun(5) == 1


def test_gateways_that_start_at_once_make_the_tables_once(database: str) -> None:
    with contextlib.ExitStack() as stack:
        fronts = [PostgreSQLGateway(database) for _ in range(3)]
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            list(pool.map(stack.enter_context, fronts))
        for each in fronts:
            each.wait_for_store()
            assert not [line for line in each.log() if line["level"] == "error"]


@pytest.mark.skipif(POOLER is None, reason="no PgBouncer on this machine: Debian's package `pgbouncer` has it")
def test_two_gateways_share_a_database_behind_pgbouncer_in_transaction_mode(
    server: PostgreSQL, database: str, tmp_path: Path
) -> None:
    """Each transaction may use another connection, which knows other prepared statements, or none."""
    pods = Pods(tmp_path, 2)
    with server.pooled() as port, pods as both:
        url = server.url(database.rpartition("/")[2], port)
        with (
            PostgreSQLGateway(url, *both) as first,
            PostgreSQLGateway(url, *both) as second,
            concurrent.futures.ThreadPoolExecutor(8) as pool,
        ):
            first.wait_for_store(), second.wait_for_store()
            paths = list(pool.map(lambda number: (first, second)[number % 2].store(n=number, fill=1000), range(60)))
            for number, path in enumerate(paths):
                assert [run["end"] for run in (second, first)[number % 2].ended(path)["runs"]] == ["answered"]
                assert first.result(path).json()["outputs"]["fill"] == [number] * 1000
            for each in (first, second):
                assert not [line for line in each.log() if line["level"] in ("warning", "error")]
        pods.check_no_overlap()


def test_a_gateway_that_dies_between_any_two_steps_loses_nothing(database: str) -> None:
    die_between_steps(journalled(gateway_calls_database=database), "before")


def test_another_gateway_takes_over_when_the_lease_is_over(database: str, tmp_path: Path) -> None:
    pods = Pods(tmp_path, 2)
    with pods as (one, two), PostgreSQLGateway(database, one) as first, PostgreSQLGateway(database, two) as second:
        first.wait_for_store(), second.wait_for_store()
        running = first.store(n=1, sleep=3)
        eventually(lambda: pods.begun(1) == 1, SLOW)
        queued = [first.store(n=number) for number in (2, 3)]
        cancelled = first.store(n=4)
        assert first.cancel(cancelled)["state"] == "cancelled"
        first.kill()
        began = time.monotonic()
        assert second.status(running)["state"] == "running"
        for path in (running, *queued):
            assert second.ended(path, LEASE + SLOW)["state"] == "succeeded"
        assert time.monotonic() - began > LEASE / 2, "it did not wait for the lease"
        assert [run["end"] for run in second.status(running)["runs"]] == ["gateway-lost", "answered"]
        for path in queued:
            assert [run["end"] for run in second.status(path)["runs"]] == ["answered"]
        pods.check_no_overlap()
        assert pods.begun(4) == 0


def test_a_call_of_a_gateway_that_nobody_knows_is_taken_over(server: PostgreSQL, database: str, tmp_path: Path) -> None:
    """A gateway that stood still may store a call after its lease was taken over, and end before it notices that."""
    pods, often = Pods(tmp_path, 1), "CLEAN_UP_SECONDS=1"
    with (
        pods as (pod,),
        PostgreSQLGateway(database, lease=often) as first,
        PostgreSQLGateway(database, pod, lease=often) as second,
    ):
        path = first.wait_for_store().store(n=1)
        second.wait_for_store()
        first.signal(signal.SIGSTOP)
        server.execute("UPDATE calls SET owner = 'nobody'", database.rpartition("/")[2])
        assert second.ended(path, 60)["state"] == "succeeded"  # a lease is 120 s


def step_clock(server: PostgreSQL, database: str) -> str:
    """Give a database a clock that is ahead by ``stepped.step.by``. Return the name of the database."""
    name = database.rpartition("/")[2]
    stepped = "SELECT pg_catalog.clock_timestamp() + (SELECT by FROM stepped.step)"
    for statement in (
        "CREATE SCHEMA stepped",
        "CREATE TABLE stepped.step AS SELECT interval '0 hours' AS by",
        f"CREATE FUNCTION stepped.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS '{stepped}'",
        f"ALTER DATABASE {name} SET search_path = stepped, pg_catalog, public",
    ):
        server.execute(statement, name)
    return name


def test_a_clock_that_is_set_ends_no_lease(server: PostgreSQL, database: str, tmp_path: Path) -> None:
    """Each second the test sets the server's clock forward by an hour. So the clock changes at every age of a lease."""
    name = step_clock(server, database)
    pods = Pods(tmp_path, 1)
    with pods as (pod,), PostgreSQLGateway(database, pod, lease="") as first, PostgreSQLGateway(database, lease="") as second:
        first.wait_for_store(), second.wait_for_store()
        path = first.store(n=1, sleep=10)
        eventually(lambda: pods.begun(1) == 1, SLOW)
        for _ in range(8):
            server.execute("UPDATE stepped.step SET by = by + interval '1 hour'", name)
            time.sleep(1)
        assert [run["end"] for run in second.ended(path)["runs"]] == ["answered"]
        for each in (first, second):
            assert not [line for line in each.log() if "took over" in line["message"] or "its runs end" in line["message"]]


def test_the_time_to_start_within_is_that_of_the_database(server: PostgreSQL, database: str, tmp_path: Path) -> None:
    """The clock of this machine is an hour behind."""
    name = step_clock(server, database)
    server.execute("UPDATE stepped.step SET by = interval '1 hour'", name)
    pods = Pods(tmp_path, 1)
    with pods as (pod,), PostgreSQLGateway(database, pod) as first:
        first.wait_for_store()
        busy = first.store(n=1, sleep=8)
        eventually(lambda: pods.begun(1) == 1, SLOW)
        soon = first.store(headers={"Percore-Start-Within": "2"}, n=2)
        later = first.store(headers={"Percore-Start-Within": "600"}, n=3)
        found = first.status(later)
        assert seconds_between(found["created"], found["start_by"]) == pytest.approx(600, abs=1)
        assert first.ended(soon)["state"] == "expired"
        assert first.status(busy)["state"] == "running"
        assert first.ended(later)["state"] == "succeeded"
    assert pods.begun(2) == 0


def seconds_between(begin: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds()


def test_a_cancel_by_another_gateway_ends_a_run_of_a_gateway_that_stops(database: str, tmp_path: Path) -> None:
    pods = Pods(tmp_path, 1)
    with pods as (pod,), PostgreSQLGateway(database, pod) as first, PostgreSQLGateway(database) as second:
        first.wait_for_store(), second.wait_for_store()
        path = first.store(n=1, sleep=60)
        eventually(lambda: pods.begun(1) == 1, SLOW)
        first.signal(signal.SIGTERM)
        eventually(lambda: first.get_status("/readyz").status_code == 503)
        assert second.cancel(path)["state"] == "cancelling"
        assert second.ended(path, 30)["state"] == "cancelled"
        assert pods.ended(1) == 0


def test_a_gateway_that_is_restarted_in_its_place_need_not_wait_for_the_lease(database: str, tmp_path: Path) -> None:
    pods = Pods(tmp_path, 1)
    with pods as (pod,), PostgreSQLGateway(database, pod, lease="") as gateway:
        gateway.wait_for_store()
        running, queued = gateway.store(n=1, sleep=3), gateway.store(n=2)
        eventually(lambda: pods.begun(1) == 1, SLOW)
        gateway.kill()
        gateway.__enter__()
        for path in (running, queued):
            assert gateway.ended(path, 60)["state"] == "succeeded"  # a lease is 120 s
        assert [run["end"] for run in gateway.status(running)["runs"]] == ["gateway-lost", "answered"]
        pods.check_no_overlap()


def test_a_gateway_that_stops_serves_its_runs_while_the_next_one_has_its_place(database: str, tmp_path: Path) -> None:
    """The next one has the same host and port. It takes over the queued calls, and not the running ones."""
    pods = Pods(tmp_path, 2)
    with pods as (one, two), PostgreSQLGateway(database, one, lease="") as old:
        old.wait_for_store()
        running = old.store(n=1, sleep=25)
        eventually(lambda: pods.begun(1) == 1, SLOW)
        queued = old.store(n=2)
        old.signal(signal.SIGTERM)
        eventually(lambda: [line for line in old.log() if line["message"].startswith("stopping")])
        new = PostgreSQLGateway(database, two, lease="", port=old.port)
        new.port = old.port
        with new:
            assert new.ended(queued)["state"] == "succeeded"
            assert pods.ended(1) == 0, "the queued call waited for the running one"
            found = new.ended(running)
            assert [run["end"] for run in found["runs"]] == ["answered"]
        assert pods.begun(1) == 1
        assert old.wait(60) == 0


def test_a_gateway_that_stood_still_beyond_its_lease_writes_no_result(database: str, tmp_path: Path) -> None:
    pods = Pods(tmp_path, 2)
    with pods as (one, two), PostgreSQLGateway(database, one) as first, PostgreSQLGateway(database, two) as second:
        first.wait_for_store(), second.wait_for_store()
        path = first.store(n=1, sleep=8, fill=3)
        eventually(lambda: pods.begun(1) == 1, SLOW)
        first.signal(signal.SIGSTOP)
        eventually(lambda: pods.begun(1) == 2, LEASE + SLOW)
        # The first run ends about now, and the second one still computes.
        eventually(lambda: pods.ended(1) >= 1, SLOW)
        first.signal(signal.SIGCONT)
        found = second.ended(path)
        assert [run["end"] for run in found["runs"]] == ["gateway-lost", "answered"]
        assert second.result(path).json()["outputs"]["fill"] == [1, 1, 1]
        eventually(lambda: [line for line in first.log() if "its runs end" in line["message"]], SLOW)
        later = first.store(n=2)
        assert first.ended(later)["state"] == "succeeded", "it stores calls again"
        assert [run["end"] for run in first.status(path)["runs"]] == ["gateway-lost", "answered"]


@pytest.mark.parametrize(
    ("lost", "computes"), [(signal.SIGKILL, {"native": 2 * LEASE}), (signal.SIGSTOP, {"sleep": 2 * LEASE})]
)
def test_a_run_that_goes_on_without_its_gateway_never_overlaps_with_the_next_one(
    database: str, tmp_path: Path, lost: signal.Signals, computes: dict[str, Any]
) -> None:
    """The worker does not notice that its gateway was killed, or the gateway is frozen.

    The next run waits until the worker is free.
    """
    pods = Pods(tmp_path, 2)
    with pods as both, PostgreSQLGateway(database, *both) as first, PostgreSQLGateway(database, *both) as second:
        first.wait_for_store(), second.wait_for_store()
        path = first.store(n=1, **computes)
        eventually(lambda: pods.begun(1) == 1, SLOW)
        first.signal(lost)
        eventually(lambda: second.status(path)["state"] == "queued", LEASE + SLOW)
        for number in (2, 3):
            assert second.ended(second.store(n=number))["state"] == "succeeded", "the other pod is free"
        assert (second.status(path)["state"], pods.begun(1)) == ("queued", 1)
        eventually(lambda: pods.begun(1) == 2, SLOW)
        first.signal(signal.SIGKILL)
        assert second.cancel(path)["state"] in ("cancelling", "cancelled")
        assert second.ended(path)["state"] == "cancelled"
        assert [run["end"] for run in second.status(path)["runs"]] == ["gateway-lost", "cancelled"]
        pods.check_no_overlap()


# --- the database is away


def test_nothing_is_lost_when_postgresql_is_restarted(fragile: PostgreSQL, tmp_path: Path) -> None:
    """It is restarted three times, as after a loss of power, while two gateways take calls in and run them."""
    pods = Pods(tmp_path, 2)
    database = fragile.create(f"calls{next(NUMBER)}")
    with pods as both, PostgreSQLGateway(database, *both) as first, PostgreSQLGateway(database, *both) as second:
        first.wait_for_store(), second.wait_for_store()
        paths: dict[int, str] = {}

        def send(number: int) -> None:
            """Send until there is a receipt."""
            while number not in paths:
                answer = (first, second)[number % 2].offer(
                    headers={"Idempotency-Key": f"{number}"}, n=number, sleep=0.05, fill=1000 * (number % 3) ** 8
                )
                if answer.status_code == 202:
                    paths[number] = answer.headers["Location"]
                else:
                    assert answer.status_code == 503, answer.text
                    assert int(answer.headers["Retry-After"]) > 0
                    time.sleep(0.5)

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            sent = [pool.submit(send, number) for number in range(60)]
            for restart in range(3):
                time.sleep(3)
                fragile.stop()
                assert first.offer(n=1000 + restart).status_code == 503
                assert first.post(b'{"inputs": {"n": 2000}}').status_code == 200
                is_quick(first)
                time.sleep(1)
                fragile.start()
            for each in sent:
                each.result()
        for number, path in paths.items():
            found = second.ended(path, 2 * SLOW)
            assert found["state"] == "succeeded", (number, found)
            assert [run["end"] for run in found["runs"]].count("answered") == 1
            assert second.result(path).json()["outputs"]["fill"] == [number % 256] * (1000 * (number % 3) ** 8)
        pods.check_no_overlap()
        assert len(set(paths.values())) == 60
        eventually(lambda: first.listed("state=queued,running,cancelling&limit=1000") == [], SLOW)


def test_a_run_outlives_a_restart_of_postgresql(fragile: PostgreSQL, tmp_path: Path) -> None:
    """Its answer, of several pieces, comes while the database is away."""
    pods = Pods(tmp_path, 1)
    with pods as (pod,), PostgreSQLGateway(fragile.create(f"calls{next(NUMBER)}"), pod, lease="") as gateway:
        gateway.wait_for_store()
        path = gateway.store(n=1, sleep=2, fill=1_000_000)
        eventually(lambda: pods.begun(1) == 1, SLOW)
        fragile.stop()
        eventually(lambda: pods.ended(1) == 1, SLOW)
        time.sleep(1)
        fragile.start()
        assert [run["end"] for run in gateway.ended(path)["runs"]] == ["answered"]
        assert gateway.result(path).json()["outputs"]["fill"] == [1] * 1_000_000
        assert pods.begun(1) == 1


def test_an_end_that_was_stored_although_its_write_timed_out_is_reported(fragile: PostgreSQL, tmp_path: Path) -> None:
    """The second attempt finds nothing to change. That must not look like a call of another gateway."""
    pods = Pods(tmp_path, 1)
    with (
        pods as (pod,),
        PostgreSQLGateway(fragile.create(f"calls{next(NUMBER)}"), pod, lease="ANSWER_SECONDS=2") as gateway,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        gateway.wait_for_store()
        path = gateway.store(n=1, sleep=2)
        eventually(lambda: pods.begun(1) == 1, SLOW)
        polled = pool.submit(gateway.status, path, 300)
        time.sleep(0.5)  # the request waits by now, so it reads nothing while the database is frozen
        with fragile.frozen():
            eventually(lambda: pods.ended(1) == 1, SLOW)
            time.sleep(4)  # longer than ANSWER_SECONDS
        assert polled.result(SLOW)["state"] == "succeeded", "the request waited on, although the call had ended"
        assert gateway.metric("percore_stored_calls_ended_total", state="succeeded") == 1
        assert gateway.metric("percore_stored_call_runs_total", end="answered") == 1
        assert len([line for line in gateway.log() if line["logger"] == "percore.gateway.stored_call"]) == 1


def test_a_call_whose_lost_run_was_stored_although_the_write_timed_out_runs_again(fragile: PostgreSQL, tmp_path: Path) -> None:
    pods = Pods(tmp_path, 1)
    database = fragile.create(f"calls{next(NUMBER)}")
    with pods as (pod,), PostgreSQLGateway(database, pod, lease="ANSWER_SECONDS=2") as gateway:
        gateway.wait_for_store()
        path = gateway.store(n=1, sleep=3)
        eventually(lambda: pods.begun(1) == 1, SLOW)
        with fragile.frozen():
            os.kill(int(pods.lines()[0][2]), signal.SIGKILL)
            time.sleep(3)  # longer than ANSWER_SECONDS
        assert [run["end"] for run in gateway.ended(path)["runs"]] == ["pod-lost", "answered"]
        pods.check_no_overlap()


def test_a_caller_gets_its_receipt_if_the_database_goes_while_it_waits_for_the_result(
    fragile: PostgreSQL, tmp_path: Path
) -> None:
    pods = Pods(tmp_path, 1)
    database = fragile.create(f"calls{next(NUMBER)}")
    with (
        pods as (pod,),
        PostgreSQLGateway(database, pod, lease="") as gateway,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        gateway.wait_for_store()
        waits = pool.submit(gateway.offer, headers={"Prefer": "respond-async, wait=3"}, n=1, sleep=6)
        eventually(lambda: pods.begun(1) == 1, SLOW)
        fragile.stop()
        receipt = waits.result(SLOW)
        assert (receipt.status_code, receipt.headers["Location"]) == (202, f"/v1/calls/{receipt.json()['id']}")
        fragile.start()
        assert gateway.ended(receipt.headers["Location"])["state"] == "succeeded"
        assert pods.begun(1) == 1


def test_webhooks_outlive_a_restart_of_postgresql_and_none_is_sent_twice(fragile: PostgreSQL, tmp_path: Path) -> None:
    """One receiver answers while the database is away, and one call ends meanwhile."""
    pods, database = Pods(tmp_path, 1), fragile.create(f"calls{next(NUMBER)}")
    webhooks = {"gateway_webhook_hosts": "127.0.0.1", "gateway_webhook_secrets": SECRET}
    with receiver() as known, pods as (pod,), PostgreSQLGateway(database, pod, lease="", **webhooks) as gateway:
        known.may_answer.clear()
        gateway.wait_for_store()
        header = {"Percore-Webhook": f"http://127.0.0.1:{known.port}/"}
        first, second = (gateway.store(headers=header, n=number, sleep=number) for number in (0, 3))
        eventually(lambda: len(known.requests) == 1, SLOW)
        fragile.stop()
        known.may_answer.set()
        eventually(lambda: pods.ended(3) == 1, SLOW)
        time.sleep(1)
        fragile.start()
        eventually(lambda: len(known.requests) == 2, SLOW)
        eventually(lambda: gateway.metric("percore_webhook_attempts_total", outcome="delivered") == 2)
        eventually(lambda: fragile.execute("SELECT id FROM webhooks", database.rpartition("/")[2]) == [], SLOW)
        assert [Webhook(SECRET).verify(each.body, each.headers)["data"]["id"] for each in known.requests] == [
            path.rpartition("/")[2] for path in (first, second)
        ]
        assert "Traceback" not in gateway.log_path.read_text()


def test_a_database_that_stands_still_holds_up_no_other_call_and_ends_the_lease(fragile: PostgreSQL, tmp_path: Path) -> None:
    pods = Pods(tmp_path, 2)
    with pods as both, PostgreSQLGateway(fragile.create(f"calls{next(NUMBER)}"), *both) as gateway:
        gateway.wait_for_store()
        path = gateway.store(n=1, sleep=60)
        eventually(lambda: pods.begun(1) == 1, SLOW)
        with fragile.frozen(), concurrent.futures.ThreadPoolExecutor(1) as pool:
            began = time.monotonic()
            listed = pool.submit(requests.get, f"http://127.0.0.1:{gateway.status_port}/v1/calls", timeout=60)
            for answer in (gateway.offer(n=2), requests.get(gateway.url(path), timeout=60)):
                assert (answer.status_code, int(answer.headers["Retry-After"]) > 0) == (503, True), answer.text
            assert time.monotonic() - began < 40
            assert listed.result().status_code == 503
            assert gateway.post(b'{"inputs": {"n": 3}}').status_code == 200
            is_quick(gateway)
            # Another gateway may have the call when the lease is over, so the run ends before.
            eventually(lambda: [line for line in gateway.log() if "its runs end" in line["message"]], OWN_LEASE + SLOW)
            eventually(lambda: gateway.executing() == 0, SLOW)
        assert gateway.offer(n=4).status_code in (202, 503)
        eventually(lambda: pods.begun(1) == 2, SLOW)
        pods.check_no_overlap()
        gateway.cancel(path)
        assert gateway.ended(path)["state"] == "cancelled"


# --- messages


@pytest.mark.parametrize(
    "wrong",
    [
        lambda server: f"postgresql://{USER}:not-{QUOTED}@127.0.0.1:{server.port}/postgres",
        lambda server: f"postgresql://{USER}:{QUOTED}@127.0.0.1:{server.port}/missing",
        lambda server: f"postgresql://127.0.0.1:{server.port}/missing?user={USER}&password={QUOTED}",
    ],
)
def test_a_database_that_cannot_be_used_is_named_without_its_password(
    server: PostgreSQL, wrong: Callable[[PostgreSQL], str]
) -> None:
    with PostgreSQLGateway(wrong(server)) as gateway:
        said = eventually(lambda: [line for line in gateway.log() if "cannot be used" in line["message"]], SLOW)
        assert len(said) == 1
        assert "PERCORE_GATEWAY_CALLS_DATABASE" in said[0]["message"]
        assert f"127.0.0.1:{server.port}" in said[0]["message"]
        assert gateway.get_status("/readyz").status_code == 200
        answer = gateway.offer()
        assert (answer.status_code, answer.json()["code"]) == (503, "not-ready")
        assert answer.headers["Retry-After"]


def test_a_database_that_comes_later_is_used_then(server: PostgreSQL) -> None:
    name = f"calls{next(NUMBER)}"
    with PostgreSQLGateway(server.url(name)) as gateway:
        eventually(lambda: [line for line in gateway.log() if "cannot be used" in line["message"]], SLOW)
        server.create(name)
        gateway.wait_for_store()


def test_an_older_program_refuses_a_newer_schema(server: PostgreSQL, database: str) -> None:
    with PostgreSQLGateway(database) as gateway:
        gateway.wait_for_store()
    server.execute("UPDATE alembic_version SET version_num = '9999'", database.rpartition("/")[2])
    older = PostgreSQLGateway(database)

    def run() -> None:
        with older:
            assert older.wait(60) == 78
            raise AssertionError(older.log_path.read_text())

    with pytest.raises(AssertionError, match="its schema is '9999', of a newer percore"):
        run()
    assert older.process is not None
    assert older.process.returncode == 78
