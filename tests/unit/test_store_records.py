"""The statements on stored calls, in both databases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from percore.errors import NotReady
from percore.gateway.store import records
from percore.gateway.store.records import EndTime, NewCall, OwnedRun, Result
from percore.gateway.store.schema import calls, metadata

from tests.service.postgresql import PostgreSQL, programs

AT = EndTime(1000.0, 60.0)
RESULT = Result(200, b"OK", b"[]", 3)


@pytest.fixture(params=["sqlite", "postgresql"])
def connection(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Connection]:
    if request.param == "sqlite":
        yield from connected(f"sqlite:///{tmp_path / 'calls.sqlite3'}")
        return
    found = programs()
    if found is None:
        pytest.skip("no PostgreSQL server on this machine: Debian's package `postgresql` has it")
    with PostgreSQL(found) as server:
        yield from connected(server.create("calls").replace("postgresql:", "postgresql+psycopg:"))


def connected(url: str) -> Iterator[sa.Connection]:
    engine = sa.create_engine(url)
    with engine.begin() as opened:
        metadata.create_all(opened)
        yield opened
    engine.dispose()


def store(connection: sa.Connection, number: int, gateway: str = "first") -> int:
    new = NewCall(f"{number:032x}", 0, None, "request", "client", b"{}", "model", 2, None, 2, None)
    return int(records.insert_accepted(connection, new, gateway, AT.now, None, None).sequence)


def test_a_gateway_reads_the_heads_of_those_queued_calls_that_it_does_not_know(connection: sa.Connection) -> None:
    sequences = [store(connection, number) for number in range(2 * records.MOST_CLAIMED + 1)]
    store(connection, 9999, "second")
    assert [row.sequence for row in records.queued(connection, "first", frozenset())] == sequences
    assert [row.sequence for row in records.queued(connection, "first", frozenset(sequences[1:-1]))] == [
        sequences[0],
        sequences[-1],
    ]
    assert records.queued(connection, "first", frozenset(sequences)) == []


def test_a_gateway_whose_call_was_taken_over_writes_no_end_of_it(connection: sa.Connection) -> None:
    sequence = store(connection, 1)
    records.sign_on(connection, "first", "first", "there", AT.now)
    records.sign_on(connection, "second", "second", "here", AT.now)
    assert records.begin_run(connection, sequence, "first", "pod-1", "first", AT.now) == 1
    lost = records.unchanged(connection, records.other_gateways(connection, "second"))
    assert [row.state for row in records.take_over(connection, AT, "second", lost)] == ["queued"]
    records.claim(connection, "second")
    assert not records.renew(connection, "first", AT.now)
    for owned in (OwnedRun(sequence, "first", 1), OwnedRun(sequence, "second", 1)):
        assert records.end_answered(connection, AT, owned, RESULT, (0, b"old")) is None
    assert records.begin_run(connection, sequence, "first", "pod-1", "first", AT.now) is None
    assert records.begin_run(connection, sequence, "second", "pod-2", "second", AT.now) == 2
    for owned in (OwnedRun(sequence, "first", 1), OwnedRun(sequence, "first", 2), OwnedRun(sequence, "second", 1)):
        assert records.end_answered(connection, AT, owned, RESULT, (0, b"old")) is None
    ended = records.end_answered(connection, AT, OwnedRun(sequence, "second", 2), RESULT, (0, b"new"))
    assert ended is not None
    assert (ended.state, records.part(connection, sequence, 1, 2, 0)) == ("succeeded", b"new")


def test_only_the_last_run_adds_pieces_of_a_result_and_all_other_pieces_are_deleted(connection: sa.Connection) -> None:
    sequence = store(connection, 1)
    assert records.begin_run(connection, sequence, "first", "pod-1", "first", AT.now) == 1
    owned = OwnedRun(sequence, "first", 1)
    for number in range(3):
        assert records.add_result_part(connection, owned, number, b"old")
    for other in (OwnedRun(sequence, "second", 1), OwnedRun(sequence, "first", 2)):
        assert not records.add_result_part(connection, other, 3, b"no")
    assert records.end_answered(connection, AT, owned, RESULT, (1, b"new"))
    assert [records.part(connection, sequence, 1, 1, number) for number in range(4)] == [b"old", b"new", None, None]
    assert not records.add_result_part(connection, owned, 2, b"late")


def test_a_gateway_whose_incomplete_call_was_deleted_gives_no_receipt_for_it(connection: sa.Connection) -> None:
    records.sign_on(connection, "first", "first", "there", AT.now)
    new = NewCall("1" * 32, 0, None, "request", "client", b"{}", "model", 2, None, 2, None)
    sequence = records.insert(connection, new, "first", AT.now)
    records.take_over(connection, AT, "second", ["first"])
    with pytest.raises(NotReady, match="another gateway"):
        records.accept(connection, sequence, "first", None, None)
    assert records.find(connection, new.id) is None


def test_a_take_over_changes_no_call_that_has_ended(connection: sa.Connection) -> None:
    sequence, queued = store(connection, 1), store(connection, 2)
    assert records.begin_run(connection, sequence, "first", "pod-1", "first", AT.now) == 1
    ended = records.end_answered(connection, AT, OwnedRun(sequence, "first", 1), RESULT, (0, b"new"))
    assert ended is not None
    assert ended.owner is None
    assert records.take_over(connection, AT, "second", ["first"]) == []
    assert records.find(connection, ended.id) == ended
    assert [row.sequence for row in records.queued(connection, "second", frozenset())] == [queued]


def test_calls_and_tombstones_are_deleted_some_at_a_time_and_those_that_have_not_ended_never(connection: sa.Connection) -> None:
    for number in range(5):
        sequence = store(connection, number)
        records.begin_run(connection, sequence, "first", "pod-1", "first", AT.now)
        records.end_answered(connection, AT, OwnedRun(sequence, "first", 1), RESULT, (0, b"new"))
    store(connection, 5)
    late = AT.now + AT.retention + 1
    assert [records.erase_expired(connection, late, most=2) for _ in range(4)] == [2, 2, 1, 0]
    later = late + records.TOMBSTONE_SECONDS + 1
    assert [records.erase_expired(connection, later, most=2) for _ in range(4)] == [2, 2, 1, 0]
    assert records.totals(connection)[0] == {"queued": (1, AT.now)}


def test_what_a_gateway_looks_for_every_second_is_found_by_an_index(connection: sa.Connection) -> None:
    """Many calls have ended and have no owner, and many are queued and have one. PostgreSQL guesses that some are both."""
    new = {"priority": 0, "request_id": "r", "client": "c", "head": b"{}" * 100, "model": "m", "request_bytes": 2}
    rows = [
        {**new, "id": f"{number:032x}", "state": state, "owner": owner, "max_runs": 2, "created_at": 1.0, "expires_at": expires}
        for number in range(4000)
        for state, owner, expires in [("queued", "first", None) if number % 8 == 0 else ("succeeded", None, 9e9)]
    ]
    connection.execute(calls.insert(), rows)
    plans: list[str] = []
    is_sqlite = connection.dialect.name == "sqlite"
    if not is_sqlite:  # PostgreSQL does this by itself, and SQLite never does
        connection.execute(sa.text("ANALYZE"))

    def explain(_connection: sa.Connection, cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        if not statement.startswith("EXPLAIN"):
            explained = connection.connection.cursor()
            explained.execute(f"EXPLAIN {'QUERY PLAN ' * is_sqlite}{statement}", parameters)
            plans.append(" ".join(str(row[-1]) for row in explained.fetchall()))

    sa.event.listen(connection, "before_cursor_execute", explain)
    assert not records.any_unowned(connection)
    assert records.claim(connection, "second") == []
    assert records.erase_expired(connection, 2.0) == 0
    assert len(plans) >= 4
    assert not [plan for plan in plans if "Seq Scan on calls" in plan or "SCAN calls" in plan or "(state=?)" in plan]
    assert not [plan for plan in plans if "pk_calls on calls" in plan and "Filter: ((owner" in plan]


def test_the_calls_of_a_gateway_that_renewed_its_lease_meanwhile_are_not_taken_over(connection: sa.Connection) -> None:
    records.sign_on(connection, "first", "first", "there", AT.now)
    seen = records.other_gateways(connection, "second")
    assert records.unchanged(connection, seen) == ["first"]
    assert records.renew(connection, "first", AT.now - 3600)
    assert records.unchanged(connection, seen) == []
    assert records.unchanged(connection, []) == []
