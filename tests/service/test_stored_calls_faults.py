"""Stored calls under faults: full disks, missing folders, hostile bodies, and headers of apps with the names of ours."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import resource
import shutil
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import sqlalchemy as sa
from percore.errors import StartError
from percore.gateway.store import records
from percore.gateway.store.database import Database, StoreFailed
from percore.gateway.store.records import EndTime, NewCall, OwnedRun, Result
from percore.gateway.store.schema import REQUEST
from percore.gateway.store.store import StoredOutbox

from harness.service import FAULTY, Service, answer_of, eventually
from tests.service.test_stored_calls import journalled
from tests.stored_client import ASYNC, PREDICT, Stored, folder, leaked

FEW_BYTES = 40_000
"""The largest size of the gateway's files. The database's log is already longer, so each write fails as on a full disk."""


def fill_disk(pid: int) -> None:
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (FEW_BYTES, resource.RLIM_INFINITY))


def empty_disk(pid: int) -> None:
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def test_a_large_result_waits_for_a_disk_that_is_full_and_is_not_computed_again() -> None:
    stored = journalled()
    with stored.service.ready() as service:
        path = stored.store(n=7, sleep=1.0, fill=1_500_000)
        eventually(lambda: service.in_flight("executing") == 1)
        fill_disk(service.gateway)
        eventually(lambda: [line for line in stored.lines() if line[0] == "end"])
        eventually(lambda: any("cannot be used" in line["message"] for line in service.log()))
        assert stored.status(path)["state"] == "running"
        full = service.post(PREDICT, {"inputs": {"n": 8}}, headers=ASYNC)
        assert (full.status_code, full.json()["code"]) == (503, "overloaded")
        empty_disk(service.gateway)
        found = stored.ended(path)
        assert (found["state"], [run["end"] for run in found["runs"]]) == ("succeeded", ["answered"])
        assert stored.result(path).json()["outputs"]["fill"] == [7] * 1_500_000
        service.until(executing=0, queued=0)


def test_a_disk_that_is_full_for_longer_than_a_lease_ends_no_run() -> None:
    stored = journalled()
    service = stored.service
    service.environ["SHRINK"] = "RENEW_SECONDS=0.5 LEASE_SECONDS=3 OWN_LEASE_SECONDS=1.5"
    service.environ["PYTHONPATH"] = f"{Path(__file__).parent / 'shrunk'}:{service.environ.get('PYTHONPATH', '')}"
    with service.ready():
        path = stored.store(n=7, sleep=6.0)
        eventually(lambda: service.in_flight("executing") == 1)
        fill_disk(service.gateway)
        time.sleep(4)
        empty_disk(service.gateway)
        found = stored.ended(path)
        assert (found["state"], [run["end"] for run in found["runs"]]) == ("succeeded", ["answered"])


def test_without_its_folder_no_receipt_is_given() -> None:
    with Service(handler=FAULTY).ready() as service:
        Stored(service).store(sleep=0)
        shutil.rmtree(service.environ["XDG_STATE_HOME"])
        answer = service.post(PREDICT, {"inputs": {"sleep": 0}}, headers=ASYNC)
        assert (answer.status_code, answer.json()["code"]) == (503, "overloaded")
        assert answer.headers["Retry-After"]
        assert service.call(sleep=0).status_code == 200


def test_a_body_in_chunks_of_one_byte_does_not_hold_up_the_event_loop() -> None:
    with Service(handler=FAULTY).ready() as service, service.connect() as connection:
        head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nPrefer: respond-async\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode() + b"1\r\nx\r\n" * 500_000 + b"0\r\n\r\n")
        assert answer_of(connection)[0] == 202
        # In seconds. A version that copied the received bytes at each chunk took over ten.
        assert service.metric("percore_gateway_loop_lag_seconds") < 5


def test_the_bound_of_bytes_holds_for_bodies_in_chunks() -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(32):
            yield b" " * 65536

    with Service(handler=FAULTY, gateway_calls_bytes=2**20).ready() as service:
        answer = requests.post(service.url(PREDICT), data=pieces(), headers=ASYNC, timeout=30)
        assert (answer.status_code, answer.json()["code"]) == (503, "overloaded")
        assert Stored(service).store(sleep=0)


def test_the_bound_of_bytes_holds_for_results_too() -> None:
    stored = journalled(gateway_calls_bytes=2**21)
    with stored.service.ready() as service:
        path = stored.store(n=1, fill=2_000_000)
        found = stored.ended(path)
        assert (found["state"], [run["end"] for run in found["runs"]]) == ("failed", ["answered"])
        result = stored.result(path)
        assert (result.status_code, result.json()["code"]) == (507, "result-too-large")
        assert "2097152" in result.json()["error"]
        assert leaked(service) == []
        assert stored.ended(stored.store(n=2, fill=100_000))["state"] == "succeeded"


def test_the_bound_of_calls_holds_for_calls_that_come_at_once() -> None:
    with Service(handler=FAULTY, gateway_calls_limit=5).ready() as service:
        stored = Stored(service)
        running = stored.store(sleep=30)
        request = service.raw(b'{"inputs":{"sleep":1}}', PREDICT, "Prefer: respond-async")
        connections = [service.connect() for _ in range(40)]
        for connection in connections:
            connection.sendall(request[:-1])
        time.sleep(0.3)  # each has passed the first check
        for connection in connections:
            connection.sendall(request[-1:])
        assert sorted(answer_of(connection)[0] for connection in connections) == [202] * 4 + [429] * 36
        stored.cancel(running)


def test_a_call_that_has_its_receipt_gets_it_again_though_there_is_no_room() -> None:
    with Service(handler=FAULTY, gateway_calls_limit=1).ready() as service:
        stored = Stored(service)
        key = {"Idempotency-Key": "once"}
        path = stored.store(headers=key, sleep=30)
        assert stored.offer(sleep=0).status_code == 429
        assert stored.store(headers=key, sleep=30) == path
        stored.cancel(path)


def test_headers_of_unfinished_calls_are_bounded_because_they_are_in_memory() -> None:
    with Service(handler=FAULTY, gateway_calls_limit=3).ready() as service:
        stored = Stored(service)
        large = {f"X-{number}": "x" * 7000 for number in range(2)}
        running = stored.store(headers=large, sleep=30)
        full = stored.offer(sleep=0)
        assert (full.status_code, full.json()["code"]) == (503, "overloaded")
        assert "headers" in full.json()["error"]
        stored.cancel(running)
        stored.ended(running)
        assert stored.ended(stored.store(sleep=0))["state"] == "succeeded"


def test_callers_that_do_not_read_their_results_cost_little_memory() -> None:
    stored = journalled()
    with stored.service.ready() as service, contextlib.ExitStack() as connections:
        path = stored.store(n=1, fill=3_000_000)
        stored.ended(path)
        before = anonymous_megabytes(service.gateway)
        for _ in range(100):
            connection = connections.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", service.port))
            connection.sendall(f"GET {path}/result HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        time.sleep(3)  # by now each connection has all that it can hold
        assert service.metric("percore_gateway_connections") >= 100
        assert anonymous_megabytes(service.gateway) - before < 40


def anonymous_megabytes(pid: int) -> float:
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("RssAnon:")]
    return int(line.split()[1]) / 1024


def test_a_result_that_is_gone_is_answered_410_and_not_cut() -> None:
    with Service(handler=FAULTY).ready() as service:
        stored = Stored(service)
        path = stored.store(sleep=0)
        stored.ended(path)
        with contextlib.closing(sqlite3.connect(folder(service) / "calls.sqlite3")) as connection, connection:
            connection.execute("DELETE FROM parts")
        answer = stored.result(path)
        assert (answer.status_code, answer.json()["code"]) == (410, "gone")


def test_without_its_file_no_receipt_is_given() -> None:
    with Service(handler=FAULTY).ready() as service:
        stored = Stored(service)
        stored.ended(stored.store(sleep=0))
        (folder(service) / "calls.sqlite3").unlink()
        answer = stored.offer(sleep=0)
        assert (answer.status_code, answer.json()["code"]) == (503, "overloaded")
        eventually(lambda: [line for line in service.log() if "was deleted or replaced" in line["message"]])


def test_a_call_that_is_cancelled_again_and_again_ends_once() -> None:
    with Service(handler=FAULTY).ready(2) as service:
        stored = Stored(service)
        running = [stored.store(sleep=30) for _ in range(2)]
        service.until(executing=2)
        queued = stored.store(sleep=0)
        for path in (queued, *running):
            for _ in range(3):
                stored.cancel(path)
        for path in running:
            stored.ended(path)
            assert stored.cancel(path)["state"] == "cancelled"
        eventually(lambda: service.metric("percore_stored_calls_ended_total", state="cancelled") == 3)
        assert len(service.log(logger="percore.gateway.stored_call")) == 3


def test_a_run_that_is_lost_because_the_service_stops_does_not_count_as_a_lost_pod() -> None:
    stored = journalled(gateway_calls_max_runs=1)
    with stored.service.ready() as service:
        path = stored.store(n=1, sleep=4)
        eventually(lambda: service.in_flight("executing") == 1)
        for _ in range(2):
            service.processes[0].send_signal(signal.SIGTERM)
            time.sleep(0.3)
        service.processes[0].wait(30)
        service.processes.clear()
        service.ready()
        found = stored.ended(path)
        assert (found["state"], [run["end"] for run in found["runs"]]) == ("succeeded", ["gateway-lost", "answered"])
        stored.check_no_overlap()


def test_runs_that_were_lost_with_a_gateway_are_counted() -> None:
    stored = journalled()
    with stored.service.ready() as service:
        path = stored.store(n=1, sleep=2)
        eventually(stored.lines)
        os.kill(service.gateway, signal.SIGKILL)
        assert stored.ended(path)["state"] == "succeeded"
        assert service.metric("percore_stored_call_runs_total", end="gateway-lost") == 1
        assert service.metric("percore_stored_call_runs_total", end="answered") == 1


# --- runs that go on after they were lost


def test_a_call_begins_again_only_when_the_worker_of_its_lost_run_is_free() -> None:
    """The worker computes in C with Python's lock, so it does not notice that its gateway was killed. Other calls go on."""
    stored = journalled()
    with stored.service.ready(2) as service:
        path = stored.store(n=1, native=8)
        eventually(stored.lines)
        os.kill(service.gateway, signal.SIGKILL)
        other = stored.store(n=2)
        assert stored.ended(other)["state"] == "succeeded"
        eventually(lambda: stored.ended_run(path) == "gateway-lost", 20)
        later = stored.store(n=3)
        assert stored.ended(later)["state"] == "succeeded"
        held = stored.status(path)
        assert (held["state"], len(held["runs"])) == ("queued", 1)
        found = stored.ended(path, 60)
        assert (found["state"], [run["end"] for run in found["runs"]]) == ("succeeded", ["gateway-lost", "answered"])
        stored.check_no_overlap()
        assert len([line for line in stored.lines() if line[:2] == ["begin", "1"]]) == 2
        assert service.metric("percore_stored_calls_ended_total", state="succeeded") == 3


def test_a_call_that_waits_for_a_worker_can_be_cancelled() -> None:
    stored = journalled()
    with stored.service.ready(2) as service:
        path = stored.store(n=1, native=12)
        eventually(stored.lines)
        os.kill(service.gateway, signal.SIGKILL)
        eventually(lambda: stored.ended_run(path) == "gateway-lost", 20)
        time.sleep(1)
        stored.cancel(path)
        assert stored.ended(path, 10)["state"] == "cancelled"
        eventually(lambda: service.metric("percore_workers", state="free") == 2, 30)
        assert [line[1] for line in stored.lines() if line[0] == "begin"] == ["1"]
        assert len(stored.status(path)["runs"]) == 1


@pytest.fixture(scope="module")
def app() -> Iterator[Service]:
    service = Service()
    service.commands = [["serve", "tests.service.apps"]]
    with service.ready() as ready:
        yield ready


def test_a_redirect_of_an_app_keeps_its_only_location(app: Service) -> None:
    answer = requests.get(app.url("/moved"), headers={"Prefer": "respond-async, wait=10"}, timeout=30, allow_redirects=False)
    assert answer.status_code == 302
    assert "," not in answer.headers["Location"]
    assert "/-/calls/" not in answer.headers["Location"]


def test_a_range_counts_for_get_alone(app: Service) -> None:
    wait = {"Prefer": "respond-async, wait=10", "Range": "bytes=0-1"}
    posted = requests.post(app.url("/seen"), data=b"body", headers=wait, timeout=30)
    assert (posted.status_code, "Content-Range" in posted.headers) == (200, False)
    assert len(posted.content) > 2
    receipt = requests.post(app.url("/seen"), data=b"body", headers=ASYNC, timeout=30).headers["Location"]
    for method, status, more in (("HEAD", 200, {}), ("GET", 206, {}), ("GET", 200, {"If-Range": '"other"'})):
        headers = {"Prefer": "wait=10", "Range": "bytes=0-1", **more}
        assert requests.request(method, app.url(f"{receipt}/result"), headers=headers, timeout=30).status_code == status


# --- the database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    found = Database(tmp_path)
    assert found.open()
    yield found
    found.close()


def new_call() -> NewCall:
    return NewCall("0" * 32, 0, None, "r", "c", b"", "m", 3, None, 2, None)


def test_a_call_that_was_stored_in_spite_of_an_error_keeps_its_body(database: Database) -> None:
    """If the answer to the commit is lost, the call is queued, although the gateway assumes an incomplete call and drops it."""

    async def store(*, accepted: bool) -> tuple[bytes | None, bool]:
        sequence = await database.write(lambda to: records.insert(to, new_call(), "g", 0.0))
        await database.write(lambda to: records.add_part(to, sequence, REQUEST, 0, 0, b"abc"))
        if accepted:
            await database.write(lambda to: records.accept(to, sequence, "g", None, None))
        await database.write(lambda to: records.drop(to, "0" * 32))
        part = await database.read(lambda of: records.part(of, sequence, REQUEST, 0, 0))
        return part, await database.read(lambda of: records.find(of, "0" * 32)) is not None

    assert asyncio.run(store(accepted=False)) == (None, False)
    assert asyncio.run(store(accepted=True)) == (b"abc", True)


def test_the_times_of_webhooks_are_those_of_the_database_whatever_the_clock_of_the_gateway_says(database: Database) -> None:
    async def work() -> None:
        here, ahead = StoredOutbox(database, lambda: True, 70.0), StoredOutbox(database, lambda: True, 70.0)
        database.now = lambda _: 1000.0
        await database.write(end_with_webhook)
        taken = await here.take([], [])
        assert taken is not None
        assert await ahead.take([], []) is None, "another gateway has it"
        await here.failed(taken.id, 5.0, "")
        database.now = lambda _: 1004.0
        assert await ahead.take([], []) is None
        database.now = lambda _: 1006.0
        assert await ahead.take([], []) is not None

    asyncio.run(work())


def end_with_webhook(to: sa.Connection) -> None:
    new = dataclasses.replace(new_call(), webhook="https://receiver.example.com/")
    sequence = records.insert_accepted(to, new, "g", 0.0, None, None).sequence
    records.begin_run(to, sequence, "g", "pod", "g", 0.0)
    records.end_answered(to, EndTime(1000.0, 60.0), OwnedRun(sequence, "g", 1), Result(200, b"OK", b"[]", 0), (0, b""))


def test_a_file_of_a_backup_gets_its_write_ahead_log_again(tmp_path: Path) -> None:
    """``VACUUM INTO`` makes a file without one. Then a commit is not durable before the folder is flushed."""
    for mode in ("delete", "wal"):
        found = Database(tmp_path)
        assert found.open()
        assert found.read_blocking(lambda of: of.exec_driver_sql("PRAGMA journal_mode").scalar_one()) == "wal"
        found.close()
        with contextlib.closing(sqlite3.connect(tmp_path / "calls.sqlite3")) as connection:
            connection.execute(f"PRAGMA journal_mode={mode}")


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "calls.sqlite3").mkdir()
    with pytest.raises(StartError, match=r"PERCORE_GATEWAY_CALLS_DIR='.*': cannot be used: unable to open database file"):
        Database(tmp_path).open()


def test_writes_wait_together_for_a_file_that_another_process_has_locked(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If each of them waited alone, the last one would wait for minutes."""
    began = 0

    def count(_connection: sa.Connection) -> None:
        nonlocal began
        began += 1

    sa.event.listen(database._engine, "begin", count)
    database._writing.dispose()
    monkeypatch.setattr("percore.gateway.store.database.BUSY_SECONDS", 0.3)

    async def work() -> list[object]:
        writes = [database.write(lambda to: records.drop(to, "0" * 32)) for _ in range(20)]
        return await asyncio.gather(*writes, return_exceptions=True)

    with contextlib.closing(sqlite3.connect(tmp_path / "calls.sqlite3")) as other:
        other.execute("BEGIN IMMEDIATE")
        assert {type(found) for found in asyncio.run(work())} == {StoreFailed}
    assert began <= 3


def test_an_error_of_a_value_fails_its_own_write_and_no_log_shows_the_value(database: Database) -> None:
    async def work() -> None:
        sequence = await database.write(lambda to: records.insert(to, new_call(), "g", 0.0))

        def too_large(to: sa.Connection) -> None:
            driver: Any = to.connection.driver_connection
            driver.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1000)
            try:
                records.add_part(to, sequence, REQUEST, 0, 0, b"secret" * 1000)
            finally:
                driver.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 10**9)

        with pytest.raises(sa.exc.DataError) as caught:
            await database.write(too_large)
        assert "secret" not in str(caught.value)
        await database.write(lambda to: records.add_part(to, sequence, REQUEST, 0, 0, b"abc"))

    asyncio.run(work())


def test_a_list_of_calls_does_not_hold_up_a_write(database: Database) -> None:
    def slow(_connection: sa.Connection) -> None:
        time.sleep(0.5)

    threads = [threading.Thread(target=database.read_blocking, args=(slow,)) for _ in range(12)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    began = time.monotonic()
    asyncio.run(database.write(lambda to: records.sign_on(to, "g", "n", "m", 0.0)))
    assert time.monotonic() - began < 0.3
    for thread in threads:
        thread.join()


def test_a_key_that_is_in_use_does_not_make_other_writes_fail(database: Database) -> None:
    async def store() -> tuple[object, int]:
        sequence = await database.write(lambda to: records.insert(to, new_call(), "g", 0.0))
        await database.write(lambda to: records.accept(to, sequence, "g", b"key", b"digest"))
        tries = 0

        def other(_to: sa.Connection) -> None:
            nonlocal tries
            tries += 1

        blocks = threading.Event()
        held = asyncio.create_task(database.write(lambda _: blocks.wait(5)))
        await asyncio.sleep(0.1)
        together = asyncio.gather(database.write(other), database.write(lambda to: records.known_by_key(to, b"key")))
        await asyncio.sleep(0.1)
        blocks.set()
        await held
        _, known = await together
        return known, tries

    known, tries = asyncio.run(store())
    assert known is not None
    assert tries == 1
