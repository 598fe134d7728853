"""The statements on stored calls, in both databases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from percore.gateway.store import records
from percore.gateway.store.records import EndTime, NewCall, Owned, Result
from percore.gateway.store.schema import metadata

from tests.service.postgresql import PostgreSQL, programs

AT = EndTime(1000.0, 60.0)
RESULT = Result(200, b"OK", b"[]", 3)


@pytest.fixture(params=["sqlite", "postgresql"])
def to(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Connection]:
    if request.param == "sqlite":
        yield from connection(f"sqlite:///{tmp_path / 'calls.sqlite3'}")
        return
    found = programs()
    if found is None:
        pytest.skip("no PostgreSQL server on this machine: Debian's package `postgresql` has it")
    with PostgreSQL(found) as server:
        yield from connection(server.create("calls").replace("postgresql:", "postgresql+psycopg:"))


def connection(url: str) -> Iterator[sa.Connection]:
    engine = sa.create_engine(url)
    with engine.begin() as opened:
        metadata.create_all(opened)
        yield opened
    engine.dispose()


def store(to: sa.Connection, number: int, gateway: str = "first") -> int:
    new = NewCall(f"{number:032x}", 0, None, "request", "client", b"{}", "model", 2, None, 2, None)
    return int(records.insert_accepted(to, new, gateway, AT.now, None, None).sequence)


def test_a_gateway_reads_the_heads_of_those_queued_calls_that_it_does_not_know(to: sa.Connection) -> None:
    sequences = [store(to, number) for number in range(2 * records.MOST_CLAIMED + 1)]
    store(to, 9999, "second")
    assert [row.sequence for row in records.queued(to, "first", frozenset())] == sequences
    assert [row.sequence for row in records.queued(to, "first", frozenset(sequences[1:-1]))] == [sequences[0], sequences[-1]]
    assert records.queued(to, "first", frozenset(sequences)) == []


def test_a_gateway_whose_call_was_taken_over_writes_no_end_of_it(to: sa.Connection) -> None:
    sequence = store(to, 1)
    records.sign_on(to, "first", "first", "there", AT.now)
    records.sign_on(to, "second", "second", "here", AT.now)
    assert records.begin_run(to, sequence, "first", "pod-1", "first", AT.now) == 1
    lost = records.unchanged(to, records.other_gateways(to, "second"))
    assert [row.state for row in records.take_over(to, AT, "second", lost)] == ["queued"]
    records.claim(to, "second")
    assert not records.renew(to, "first", AT.now)
    for owned in (Owned(sequence, "first", 1), Owned(sequence, "second", 1)):
        assert records.end_answered(to, AT, owned, RESULT, (0, b"old")) is None
    assert records.begin_run(to, sequence, "first", "pod-1", "first", AT.now) is None
    assert records.begin_run(to, sequence, "second", "pod-2", "second", AT.now) == 2
    for owned in (Owned(sequence, "first", 1), Owned(sequence, "first", 2), Owned(sequence, "second", 1)):
        assert records.end_answered(to, AT, owned, RESULT, (0, b"old")) is None
    ended = records.end_answered(to, AT, Owned(sequence, "second", 2), RESULT, (0, b"new"))
    assert ended is not None
    assert (ended.state, records.part(to, sequence, 1, 2, 0)) == ("succeeded", b"new")


def test_only_the_last_run_adds_pieces_of_a_result_and_all_other_pieces_are_deleted(to: sa.Connection) -> None:
    sequence = store(to, 1)
    assert records.begin_run(to, sequence, "first", "pod-1", "first", AT.now) == 1
    owned = Owned(sequence, "first", 1)
    for number in range(3):
        assert records.add_result_part(to, owned, number, b"old")
    for other in (Owned(sequence, "second", 1), Owned(sequence, "first", 2)):
        assert not records.add_result_part(to, other, 3, b"no")
    assert records.end_answered(to, AT, owned, RESULT, (1, b"new"))
    assert [records.part(to, sequence, 1, 1, number) for number in range(4)] == [b"old", b"new", None, None]
    assert not records.add_result_part(to, owned, 2, b"late")


def test_the_calls_of_a_gateway_that_renewed_its_lease_meanwhile_are_not_taken_over(to: sa.Connection) -> None:
    records.sign_on(to, "first", "first", "there", AT.now)
    seen = records.other_gateways(to, "second")
    assert records.unchanged(to, seen) == ["first"]
    assert records.renew(to, "first", AT.now - 3600)
    assert records.unchanged(to, seen) == []
    assert records.unchanged(to, []) == []
