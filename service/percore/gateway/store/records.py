"""Every SQL statement on stored calls. Each function runs in a transaction of ``database``, and uses no HTTP and no pods.

A gateway changes only calls that it owns. A run has a number, and only the last run of a call may write its end.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import sqlalchemy as sa

from percore.errors import CallError, GatewayFailed, NotReady, PodLost
from percore.gateway.store.documents import rfc3339
from percore.gateway.store.schema import (
    FINAL,
    LOST,
    OPEN,
    PIECE_BYTES,
    REQUEST,
    RESULT,
    RunEnd,
    State,
    calls,
    gateways,
    parts,
    runs,
    webhooks,
)
from percore.gateway.store.webhooks import host_of

MOST_GATEWAYS_LOST = 5
"""A call fails when so many of its runs were lost because their gateways ended."""
TOMBSTONE_SECONDS = 7 * 24 * 3600.0
"""How long an id is kept after its call was erased. In this time the answer is 410 and not 404."""
MOST_CLAIMED = 1000

Row = sa.Row[Any]
QUEUED_COLUMNS = (
    *(calls.c.sequence, calls.c.id, calls.c.priority, calls.c.caller, calls.c.request_id, calls.c.client, calls.c.head),
    *(calls.c.request_bytes, calls.c.start_by, calls.c.run, calls.c.pods_lost, calls.c.gateways_lost, calls.c.created_at),
    sa.func.coalesce(runs.c.pod, "").label("lost_pod"),
)
"""The columns of a queued call that a gateway keeps in memory. ``lost_pod``: the pod of its last run, if that run was lost."""
LAST_RUN_LOST = sa.and_(runs.c.call == calls.c.sequence, runs.c.number == calls.c.run, runs.c.end.in_(LOST))


@dataclass(frozen=True, slots=True)
class NewCall:
    """A call before it is stored."""

    id: str
    priority: int
    caller: bytes | None
    request_id: str
    client: str
    head: bytes
    model: str
    request_bytes: int
    webhook: str | None
    max_runs: int
    start_within: float | None
    """Seconds."""


@dataclass(frozen=True, slots=True)
class Result:
    """An answer, without its body."""

    status: int
    phrase: bytes
    headers: bytes
    size: int

    @classmethod
    def of_error(cls, error: CallError) -> tuple[Result, bytes]:
        """Return the answer to a caller for an error of percore: the result and its body."""
        body = orjson.dumps(error.document())
        return cls(error.status, b"", orjson.dumps([["Content-Type", "application/json"]]), len(body)), body


@dataclass(frozen=True, slots=True)
class OwnedRun:
    """A call that a gateway owns, and the number of its last run."""

    sequence: int
    gateway: str
    number: int


@dataclass(frozen=True, slots=True)
class EndTime:
    """The time of an end, and the retention in seconds."""

    now: float
    retention: float


# --- gateways


def sign_on(to: sa.Connection, gateway: str, name: str, machine: str, now: float) -> None:
    """Begin a gateway's lease."""
    to.execute(gateways.insert().values(id=gateway, name=name, machine=machine, seen_at=now))


def renew(to: sa.Connection, gateway: str, now: float) -> bool:
    """Renew a gateway's lease; return False if another gateway has taken over from it."""
    return to.execute(gateways.update().where(gateways.c.id == gateway).values(seen_at=now)).rowcount == 1


def hand_over(to: sa.Connection, gateway: str) -> None:
    """Release the queued calls and the address of a gateway that stops.

    Its runs go on, and no other gateway may take them over.
    """
    to.execute(gateways.update().where(gateways.c.id == gateway).values(machine=""))
    _free_queued(to, gateway)


def _free_queued(to: sa.Connection, gateway: str) -> None:
    to.execute(calls.update().where(calls.c.owner == gateway, calls.c.state == State.QUEUED).values(owner=None))


def sign_off(to: sa.Connection, gateway: str) -> None:
    """Release all calls of a gateway, and end its lease. Call it when no run is left.

    Then any gateway may take the queued calls.
    """
    _free_queued(to, gateway)
    if not to.execute(sa.select(calls.c.id).where(calls.c.owner == gateway, calls.c.state.in_(OPEN)).limit(1)).first():
        to.execute(gateways.delete().where(gateways.c.id == gateway))


def other_gateways(to: sa.Connection, gateway: str) -> list[Row]:
    """Return all gateways but one."""
    return list(to.execute(sa.select(gateways).where(gateways.c.id != gateway)))


def unchanged(to: sa.Connection, ended: Iterable[Row]) -> list[str]:
    """Return those gateways that have neither renewed their lease nor begun to stop since they were read."""
    same = [
        sa.and_(gateways.c.id == row.id, gateways.c.seen_at == row.seen_at, gateways.c.machine == row.machine) for row in ended
    ]
    which = sa.select(gateways.c.id).where(sa.or_(sa.false(), *same))
    # The rows stay locked until this transaction ends. So none of these gateways can renew its lease meanwhile, and no other
    # gateway can take over from it.
    return list(to.execute(which.with_for_update(skip_locked=True)).scalars())


def take_over(to: sa.Connection, at: EndTime, gateway: str, ended: Sequence[str]) -> list[Row]:
    """Take over the calls of ended gateways; return the calls whose state changed."""
    mine = calls.c.owner.in_(ended)
    begun = sa.select(calls).where(mine, calls.c.state.in_((State.RECEIVING, State.RUNNING, State.CANCELLING)))
    changed = []
    for row in to.execute(begun.order_by(calls.c.sequence).with_for_update()).all():
        if row.state == State.RECEIVING:
            _erase(to, [row.sequence])
            to.execute(calls.delete().where(calls.c.sequence == row.sequence))
        elif row.state == State.RUNNING:
            changed.append(_run_lost(to, row, at, RunEnd.GATEWAY_LOST))
        elif row.state == State.CANCELLING:
            changed.append(_run_cancelled(to, row, at))
    to.execute(calls.update().where(mine, calls.c.state == State.QUEUED).values(owner=gateway))
    to.execute(gateways.delete().where(gateways.c.id.in_(ended)))
    return changed


def any_unowned(to: sa.Connection) -> bool:
    """Tell whether there is a queued call that no gateway owns."""
    which = sa.select(calls.c.sequence).where(calls.c.owner.is_(None), calls.c.state == State.QUEUED).limit(1)
    return to.execute(which).first() is not None


def claim(to: sa.Connection, gateway: str) -> list[Row]:
    """Take queued calls that no gateway owns, the oldest first; return them."""
    free = (
        sa.select(calls.c.sequence)
        .where(calls.c.owner.is_(None), calls.c.state == State.QUEUED)
        .order_by(calls.c.sequence)
        .limit(MOST_CLAIMED)
        .with_for_update(skip_locked=True)
    )
    taken = list(to.execute(free).scalars())
    if taken:
        to.execute(calls.update().where(calls.c.sequence.in_(taken)).values(owner=gateway))
    return _some_queued(to, gateway, taken)


def queued(to: sa.Connection, gateway: str, known: Collection[int]) -> list[Row]:
    """Return queued calls of a gateway, in order of arrival, but not those that it knows. Only their heads are read."""
    which = calls.c.owner == gateway, calls.c.state == State.QUEUED
    all_queued = to.execute(sa.select(calls.c.sequence).where(*which).order_by(calls.c.sequence)).scalars()
    unknown = [each for each in all_queued if each not in known]
    starts = range(0, len(unknown), MOST_CLAIMED)  # a statement has a bound of parameters
    return [row for start in starts for row in _some_queued(to, gateway, unknown[start : start + MOST_CLAIMED])]


def _some_queued(to: sa.Connection, gateway: str, sequences: Sequence[int]) -> list[Row]:
    which = sa.select(*QUEUED_COLUMNS).select_from(calls.outerjoin(runs, LAST_RUN_LOST))
    which = which.where(calls.c.owner == gateway, calls.c.state == State.QUEUED, calls.c.sequence.in_(sequences))
    return list(to.execute(which.order_by(calls.c.sequence)))


def begun(to: sa.Connection, gateway: str) -> list[Row]:
    """Return the sequence number and the run of each running call of a gateway."""
    which = calls.c.owner == gateway, calls.c.state.in_((State.RUNNING, State.CANCELLING))
    return list(to.execute(sa.select(calls.c.sequence, calls.c.run).where(*which)))


def unknown_owners(to: sa.Connection) -> list[str]:
    """Return the owners of unfinished calls that are not in the table of gateways."""
    left = calls.c.state.in_((State.RECEIVING, *OPEN)), calls.c.owner.not_in(sa.select(gateways.c.id))
    return list(to.execute(sa.select(calls.c.owner).where(*left).distinct()).scalars())


def cancelling(to: sa.Connection, gateway: str) -> list[int]:
    """Return the sequence numbers of a gateway's calls that must be cancelled."""
    which = sa.select(calls.c.sequence).where(calls.c.owner == gateway, calls.c.state == State.CANCELLING)
    return list(to.execute(which).scalars())


# --- intake


def insert(to: sa.Connection, new: NewCall, gateway: str, now: float) -> int:
    """Add a call whose body is not complete yet, and return its sequence number."""
    made = calls.insert().values(**_first_values(new, gateway, now), state=State.RECEIVING)
    return int(to.execute(made.returning(calls.c.sequence)).scalar_one())


def insert_accepted(to: sa.Connection, new: NewCall, gateway: str, now: float, key: bytes | None, digest: bytes | None) -> Row:
    """Add a call that is queued at once, and return it. Its small body is added in the same transaction."""
    values = _first_values(new, gateway, now)
    made = calls.insert().values(**values, state=State.QUEUED, idempotency_key=key, digest=digest)
    return to.execute(made.returning(calls)).one()


def _first_values(new: NewCall, gateway: str, now: float) -> dict[str, Any]:
    values = {name: getattr(new, name) for name in NewCall.__slots__ if name != "start_within"}
    values["start_by"] = None if new.start_within is None else now + new.start_within
    counts = {"run": 0, "pods_lost": 0, "gateways_lost": 0, "result_bytes": 0}
    return {**values, **counts, "owner": gateway, "created_at": now, "erased": False}


def add_part(to: sa.Connection, sequence: int, kind: int, run: int, number: int, data: bytes) -> None:
    """Add a piece of a body. The piece may exist, if its writer did not get the answer to an earlier attempt."""
    same = parts.c.call == sequence, parts.c.kind == kind, parts.c.run == run, parts.c.number == number
    to.execute(parts.delete().where(*same))
    to.execute(parts.insert().values(call=sequence, kind=kind, run=run, number=number, data=data))


def add_result_part(to: sa.Connection, run: OwnedRun, number: int, data: bytes) -> bool:
    """Add a piece of a result. Return False if another gateway has the call, or if this is not its last run."""
    if _running_if_owned(to, run) is None:
        return False
    add_part(to, run.sequence, RESULT, run.number, number, data)
    return True


def known_by_key(to: sa.Connection, key: bytes) -> Row | None:
    """Return the call that has an idempotency key; None if there is none."""
    return to.execute(sa.select(calls).where(calls.c.idempotency_key == key)).first()


def accept(to: sa.Connection, sequence: int, gateway: str, key: bytes | None, digest: bytes | None) -> Row:
    """Set a call as queued and return it. From here on it is not lost.

    Raises NotReady if another gateway has taken over from this one: then it has deleted the call.
    """
    received = calls.c.sequence == sequence, calls.c.owner == gateway, calls.c.state == State.RECEIVING
    accepted = calls.update().where(*received).values(state=State.QUEUED, idempotency_key=key, digest=digest)
    row = to.execute(accepted.returning(calls)).one_or_none()
    if row is None:
        raise NotReady("another gateway has taken over from this one; send the call again")
    return row


def drop(to: sa.Connection, call_id: str) -> None:
    """Delete a call whose body was not received completely, and its pieces.

    If the call is queued in spite of an error, keep it.
    """
    which = calls.c.id == call_id, calls.c.state == State.RECEIVING
    for sequence in to.execute(sa.select(calls.c.sequence).where(*which)).scalars().all():
        _erase(to, [sequence])
        to.execute(calls.delete().where(calls.c.sequence == sequence))


# --- runs


def begin_run(to: sa.Connection, sequence: int, gateway: str, pod: str, name: str, now: float) -> int | None:
    """Begin a run and return its number; None if this gateway may no longer run the call."""
    begun = (
        calls.update()
        .where(calls.c.sequence == sequence, calls.c.owner == gateway, calls.c.state == State.QUEUED)
        .values(state=State.RUNNING, run=calls.c.run + 1, started_at=sa.func.coalesce(calls.c.started_at, now))
    )
    number = to.execute(begun.returning(calls.c.run)).scalar_one_or_none()
    if number is not None:
        to.execute(runs.insert().values(call=sequence, number=number, pod=pod, gateway=name, began_at=now))
    return number


def end_unbegun(to: sa.Connection, at: EndTime, run: OwnedRun) -> Row | None:
    """Put a call back whose worker was lost before the last byte; return it, or None if it is not ours."""
    row = _running_if_owned(to, run)
    if row is None:
        return None
    _end_run(to, row, at.now, RunEnd.NOT_BEGUN)
    if row.state == State.CANCELLING:
        return _end(to, row, at, State.CANCELLED)
    return _set(to, row.sequence, state=State.QUEUED, started_at=row.started_at if has_begun(row) else None)


def has_begun(row: Row) -> bool:
    """Tell whether a run of a queued call ever began. Then this run was lost, because otherwise the call would have ended."""
    return bool(row.pods_lost or row.gateways_lost)


def end_lost(to: sa.Connection, at: EndTime, run: OwnedRun, end: RunEnd) -> Row | None:
    """End a run whose pod or gateway was lost: queue the call again, or fail it. None if this gateway does not own the run."""
    row = _running_if_owned(to, run)
    if row is None:
        return None
    if row.state == State.CANCELLING:
        return _run_cancelled(to, row, at)
    return _run_lost(to, row, at, end)


def end_answered(
    to: sa.Connection, at: EndTime, run: OwnedRun, result: Result, last: tuple[int, bytes], end: RunEnd = RunEnd.ANSWERED
) -> Row | None:
    """End a call with its answer. ``last`` is number and data of the last piece. None if this gateway does not own the call."""
    row = _running_if_owned(to, run)
    if row is None:
        return None
    if row.state == State.CANCELLING:
        return _run_cancelled(to, row, at)
    _end_run(to, row, at.now, end, stored=last[0])
    return _answer(to, row, at, result, last)


def end_failed(to: sa.Connection, at: EndTime, run: OwnedRun, error: CallError) -> Row | None:
    """End a queued call with an error of percore.

    Return None if this gateway does not own the call, or if it is no longer queued.
    """
    row = _queued_if_owned(to, run)
    if row is None:
        return None
    result, body = Result.of_error(error)
    return _answer(to, row, at, result, (0, body))


def expire(to: sa.Connection, at: EndTime, run: OwnedRun) -> Row | None:
    """End a queued call that did not begin in time.

    Return None if this gateway does not own the call, or if it is no longer queued.
    """
    row = _queued_if_owned(to, run)
    return None if row is None else _end(to, row, at, State.EXPIRED)


def cancel(to: sa.Connection, at: EndTime, call_id: str) -> tuple[Row | None, bool]:
    """If a call is queued, cancel it at once. If it runs, ask its gateway to cancel it.

    Return the call, or None if there is none; and whether this changed its state.
    """
    row = to.execute(sa.select(calls).where(calls.c.id == call_id).with_for_update()).first()
    if row is None or row.state == State.RECEIVING:
        return None, False
    if row.state == State.QUEUED:
        return _end(to, row, at, State.CANCELLED), True
    if row.state == State.RUNNING:
        return _set(to, row.sequence, state=State.CANCELLING), True
    return row, False


# --- the end


def _running_if_owned(to: sa.Connection, run: OwnedRun) -> Row | None:
    """Return a call that runs. None if the gateway no longer owns it, or if the run is not its last one."""
    which = sa.select(calls).where(
        calls.c.sequence == run.sequence,
        calls.c.owner == run.gateway,
        calls.c.run == run.number,
        calls.c.state.in_((State.RUNNING, State.CANCELLING)),
    )
    return to.execute(which.with_for_update()).first()


def _queued_if_owned(to: sa.Connection, run: OwnedRun) -> Row | None:
    which = calls.c.sequence == run.sequence, calls.c.owner == run.gateway, calls.c.state == State.QUEUED
    return to.execute(sa.select(calls).where(*which).with_for_update()).first()


def _set(to: sa.Connection, sequence: int, **values: Any) -> Row:
    return to.execute(calls.update().where(calls.c.sequence == sequence).values(**values).returning(calls)).one()


def _end_run(to: sa.Connection, row: Row, now: float, end: RunEnd, *, stored: int = 0) -> None:
    """End a run. Delete all pieces of results, except the first ``stored`` pieces of this run."""
    which = runs.c.call == row.sequence, runs.c.number == row.run
    to.execute(runs.update().where(*which).values(ended_at=now, end=end))
    rest = sa.or_(parts.c.run != row.run, parts.c.number >= stored)
    to.execute(parts.delete().where(parts.c.call == row.sequence, parts.c.kind == RESULT, rest))


def _run_cancelled(to: sa.Connection, row: Row, at: EndTime) -> Row:
    _end_run(to, row, at.now, RunEnd.CANCELLED)
    return _end(to, row, at, State.CANCELLED)


def _run_lost(to: sa.Connection, row: Row, at: EndTime, end: RunEnd) -> Row:
    _end_run(to, row, at.now, end)
    pods, gateways_ = row.pods_lost + (end is RunEnd.POD_LOST), row.gateways_lost + (end is RunEnd.GATEWAY_LOST)
    counted = {"pods_lost": pods, "gateways_lost": gateways_}
    if pods < row.max_runs and gateways_ < MOST_GATEWAYS_LOST:
        return _set(to, row.sequence, state=State.QUEUED, **counted)
    error: CallError
    if pods >= row.max_runs:
        error = PodLost(f"each pod that computed the call was lost ({pods} pods); the call may be the cause")
    else:
        error = GatewayFailed(f"{gateways_} gateways ended while the call ran; the call may be the cause")
    _set(to, row.sequence, **counted)
    result, body = Result.of_error(error)
    return _answer(to, row, at, result, (0, body))


def _answer(to: sa.Connection, row: Row, at: EndTime, result: Result, last: tuple[int, bytes]) -> Row:
    if last[1]:
        add_part(to, row.sequence, RESULT, row.run, *last)
    state = State.SUCCEEDED if result.status < 400 else State.FAILED
    values = {"status": result.status, "phrase": result.phrase, "headers": result.headers, "result_bytes": result.size}
    return _end(to, row, at, state, **values)


def _end(to: sa.Connection, row: Row, at: EndTime, state: State, **values: Any) -> Row:
    """Write a final state, and in the same transaction the message about it.

    A call that has ended has no owner, so a gateway that takes over changes only calls that have not ended.
    """
    to.execute(parts.delete().where(parts.c.call == row.sequence, parts.c.kind == REQUEST))
    ended = _set(to, row.sequence, state=state, owner=None, finished_at=at.now, expires_at=at.now + at.retention, **values)
    if ended.webhook:
        data = {"id": ended.id, "state": state, "status": ended.status}
        payload = orjson.dumps({"type": f"call.{state}", "timestamp": rfc3339(at.now), "data": data})
        message = {"id": f"msg_{ended.id}", "url": ended.webhook, "host": host_of(ended.webhook), "payload": payload}
        to.execute(webhooks.insert().values(**message, attempts=0, created_at=at.now, next_at=at.now))
    return ended


# --- reads for callers and operators


def find(to: sa.Connection, call_id: str) -> Row | None:
    """Return a call; None if there is none, or if its receipt is not sent yet."""
    which = sa.select(calls).where(calls.c.id == call_id, calls.c.state != State.RECEIVING)
    return to.execute(which).first()


def written_before(to: sa.Connection, run: OwnedRun) -> Row | None:
    """Return the call if it is as this gateway's write of the end of this run leaves it; otherwise None.

    A write may be stored although the gateway got no answer from the database. The same write then finds nothing to change.
    """
    row = to.execute(sa.select(calls).where(calls.c.sequence == run.sequence, calls.c.run == run.number)).first()
    if row is None or not (row.state in FINAL or (row.state == State.QUEUED and row.owner == run.gateway)):
        return None
    return row


def runs_of(to: sa.Connection, sequence: int) -> list[Row]:
    """Return the runs of a call, the first one first."""
    return list(to.execute(sa.select(runs).where(runs.c.call == sequence).order_by(runs.c.number)))


def ahead(to: sa.Connection, row: Row) -> int:
    """Return how many queued calls of all gateways come before this one, by priority and arrival."""
    before = sa.or_(calls.c.priority > row.priority, sa.and_(calls.c.priority == row.priority, calls.c.sequence < row.sequence))
    return int(to.execute(sa.select(sa.func.count()).where(calls.c.state == State.QUEUED, before)).scalar_one())


def part(to: sa.Connection, sequence: int, kind: int, run: int, number: int) -> bytes | None:
    """Return a piece of a body; None after the last one."""
    which = parts.c.call == sequence, parts.c.kind == kind, parts.c.run == run, parts.c.number == number
    found = to.execute(sa.select(parts.c.data).where(*which)).scalar_one_or_none()
    return None if found is None else bytes(found)


def result_bytes(to: sa.Connection, sequence: int, run: int, begin: int, most: int) -> bytes:
    """Return bytes of a result from ``begin`` on: at most ``most``, and at most to the end of a piece. Empty if it is gone."""
    number, offset = divmod(begin, PIECE_BYTES)
    which = parts.c.call == sequence, parts.c.kind == RESULT, parts.c.run == run, parts.c.number == number
    data = sa.func.substr(parts.c.data, offset + 1, most, type_=sa.LargeBinary)
    return bytes(to.execute(sa.select(data).where(*which)).scalar_one_or_none() or b"")


def listing(to: sa.Connection, states: Iterable[str], model: str, after: int, limit: int) -> list[Row]:
    """Return calls that are not erased, with sequence numbers below ``after``, the newest first."""
    which = sa.select(calls).where(calls.c.erased.is_(False), calls.c.state != State.RECEIVING)
    if states:
        which = which.where(calls.c.state.in_(list(states)))
    if model:
        which = which.where(calls.c.model == model)
    if after:
        which = which.where(calls.c.sequence < after)
    return list(to.execute(which.order_by(calls.c.sequence.desc()).limit(limit)))


def totals(to: sa.Connection) -> tuple[Mapping[str, tuple[int, float]], int]:
    """Return the number of calls and the oldest arrival of each state, and the bytes of all bodies."""
    which = calls.c.erased.is_(False)
    rows = to.execute(
        sa.select(calls.c.state, sa.func.count(), sa.func.min(calls.c.created_at)).where(which).group_by(calls.c.state)
    )
    by_state = {state: (int(count), float(oldest)) for state, count, oldest in rows}
    held = sa.case((calls.c.state.in_(FINAL), 0), else_=calls.c.request_bytes) + calls.c.result_bytes
    size = to.execute(sa.select(sa.func.coalesce(sa.func.sum(held), 0)).where(which)).scalar_one()
    return by_state, int(size)


# --- retention


def erase(to: sa.Connection, call_id: str, now: float) -> bool:
    """Erase a call that has ended; return False if it has not."""
    which = calls.c.id == call_id, calls.c.state.in_(FINAL), calls.c.erased.is_(False)
    sequence = to.execute(sa.select(calls.c.sequence).where(*which)).scalar_one_or_none()
    if sequence is None:
        return False
    _leave_tombstones(to, [sequence], now)
    return True


def erase_expired(to: sa.Connection, now: float, most: int = 100) -> int:
    """Erase some calls whose retention is over, and delete some old tombstones. Return how many calls and tombstones."""

    def over(*, erased: bool) -> list[int]:
        # Only calls that have ended have this time. A condition on the state would make SQLite read all of them.
        which = sa.select(calls.c.sequence).where(calls.c.expires_at < now, calls.c.erased.is_(erased))
        return list(to.execute(which.limit(most).with_for_update(skip_locked=True)).scalars())

    found, tombstones = over(erased=False), over(erased=True)
    if found:
        _leave_tombstones(to, found, now)
    if tombstones:
        to.execute(calls.delete().where(calls.c.sequence.in_(tombstones)))
    return len(found) + len(tombstones)


def _leave_tombstones(to: sa.Connection, sequences: Sequence[int], now: float) -> None:
    _erase(to, sequences)
    to.execute(
        calls.update()
        .where(calls.c.sequence.in_(sequences))
        .values(
            erased=True,
            expires_at=now + TOMBSTONE_SECONDS,
            head=b"",
            headers=b"",
            caller=None,
            idempotency_key=None,
            digest=None,
            webhook=None,
            owner=None,
            result_bytes=0,
            client="",
        )
    )


def _erase(to: sa.Connection, sequences: Sequence[int]) -> None:
    for table in (parts, runs):
        to.execute(table.delete().where(table.c.call.in_(sequences)))


# --- messages


def take_message(
    to: sa.Connection, now: float, sending: Collection[str], full: Collection[str], lease_seconds: float
) -> Row | None:
    """Return the message that has been due for longest. Leave out messages in ``sending``, and those to the hosts in ``full``.

    Until the lease of the message is over, no other gateway gets it.
    """
    which = sa.select(webhooks).where(
        webhooks.c.next_at <= now, webhooks.c.id.not_in(list(sending)), webhooks.c.host.not_in(list(full))
    )
    row = to.execute(which.order_by(webhooks.c.next_at).limit(1).with_for_update(skip_locked=True)).first()
    if row is not None:
        to.execute(webhooks.update().where(webhooks.c.id == row.id).values(next_at=now + lease_seconds))
    return row


def any_message(to: sa.Connection, now: float) -> bool:
    """Tell whether a message is due."""
    return to.execute(sa.select(webhooks.c.id).where(webhooks.c.next_at <= now).limit(1)).first() is not None


def delivered(to: sa.Connection, message: str) -> None:
    """Delete a message."""
    to.execute(webhooks.delete().where(webhooks.c.id == message))


def postponed(to: sa.Connection, message: str, next_at: float) -> None:
    """Count an attempt, and set the time of the next one."""
    to.execute(webhooks.update().where(webhooks.c.id == message).values(next_at=next_at, attempts=webhooks.c.attempts + 1))
