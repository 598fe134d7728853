"""The steps of a stored call: from its receipt through its runs to its end. Start reading here.

The database has all calls with a receipt. This gateway keeps in memory the calls that it owns and may run. They are in the
queue of all calls, and the dispatcher gives them to pods like all others. A run ends when its connection to the pod closes, but
the worker may notice this late. So if the run of a call was lost, the call is queued again only when the pod of that run is
free or gone. Thus a call never runs twice at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import orjson
import sqlalchemy as sa

from percore.errors import (
    CallError,
    GatewayFailed,
    IdempotencyKeyReused,
    NotReady,
    Overloaded,
    PodLost,
    QueueFull,
    QueueTimeout,
    ResultTooLarge,
    RunTimeout,
)
from percore.gateway.call import Call, CallState
from percore.gateway.dispatch import HOP_BY_HOP, Dispatcher, connection_tokens
from percore.gateway.intake import IntakeLimits
from percore.gateway.queue import CallQueue
from percore.gateway.spool import SMALL_BYTES, Body, Spool
from percore.gateway.store import records
from percore.gateway.store.database import Database, StoreFailed, Work
from percore.gateway.store.documents import StoredHead, encoded_head, encoded_headers, model_of, options
from percore.gateway.store.records import EndTime, NewCall, OwnedRun, Result, Row
from percore.gateway.store.schema import FINAL, OPEN, PIECE_BYTES, REQUEST, RunEnd, State
from percore.gateway.store.store_metrics import StoreMetrics
from percore.http.request import NO_BODY_STATUSES, Request

if TYPE_CHECKING:
    from percore.gateway.upstream import WorkerConnection

log = logging.getLogger("percore.gateway.store")

T = TypeVar("T")

RENEW_SECONDS = 5.0
LEASE_SECONDS = 120.0
"""A gateway that has shown no new sign of life for so long has ended. A worker notices within 60 s that its gateway is gone."""
OWN_LEASE_SECONDS = 60.0
"""If a gateway could not renew its lease for this time, it ends its own runs. This is shorter than the lease, so no other
gateway has taken them over."""
TAKE_OVER_DELAY_SECONDS = 2.0
"""How long a gateway waits before it takes over from one that has certainly ended. That is certain if this gateway has the lock
on the folder, or if the other one had the machine and the port of this one. In this time most workers notice that their
connection is closed, and end. If a worker has not ended, its call waits until its pod is free."""
MAINTENANCE_SECONDS = 1.0
CLEAN_UP_SECONDS = 10.0
CLOSE_SECONDS = 5.0
STOP_SECONDS = 5.0
"""How long a worker may take to end a cancelled run."""
RETRY_SECONDS = 1.0
LARGE_BODIES = 16
"""How many large bodies are written to the database at the same time. Each of them needs a few pieces in memory."""
HEAD_BYTES = 4096
"""How many bytes the head of an unfinished call may have on average, if there are as many calls as are allowed. The gateway
keeps these heads in memory."""
COMPARED = (b"content-type", b"content-encoding", b"authorization", b"cookie")
"""Headers that two requests with the same key must have in common."""
OPEN_SECONDS = 10.0
"""How long a request waits for the store. A starting gateway opens the store in less time."""
NO_STORE = "the store of calls cannot be used yet: it is not open, or another gateway has it"
NOT_STORED = HOP_BY_HOP | {b"content-length", b"x-request-id"}


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Bounds of stored calls."""

    retention_seconds: float
    most_calls: int
    most_bytes: int
    free_bytes: int
    max_runs: int


@dataclass(frozen=True, slots=True)
class GatewayParts:
    """The parts of the gateway that stored calls use."""

    queue: CallQueue[Call]
    dispatcher: Dispatcher
    spool: Spool
    limits: IntakeLimits
    name: str
    port: int
    write_line: Callable[[dict[str, Any]], None]


class StoredBody:
    """The body of a stored call, read from the database piece by piece."""

    __slots__ = ("_database", "_sequence", "size")

    def __init__(self, database: Database, sequence: int, size: int) -> None:
        self._database = database
        self._sequence = sequence
        self.size = size

    @property
    def in_memory(self) -> Sequence[bytes] | None:
        """Return None, because the pieces are in the database. For an empty body, return an empty sequence."""
        return None if self.size else ()

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the whole body, piece by piece."""
        number, left = 0, self.size
        while left:
            piece = await self._database.read(partial(_part, sequence=self._sequence, number=number))
            if piece is None:
                raise StoreFailed("the body of the call cannot be read")
            yield piece
            number, left = number + 1, left - len(piece)

    def discard(self) -> None:
        """Do nothing: the body is kept until the call has ended, because it may run again."""


def _part(connection: sa.Connection, *, sequence: int, number: int) -> bytes | None:
    return records.part(connection, sequence, REQUEST, 0, number)


class StoredCall(Call):
    """A stored call that this gateway owns."""

    is_stored = True
    __slots__ = ("_stored", "head_bytes", "id", "recorded", "run", "sequence", "start_by", "timer")

    def __init__(self, stored: StoredCalls, row: Row, number: int) -> None:
        head = StoredHead.decoded(row.head, row.client)
        body = StoredBody(stored.database, row.sequence, row.request_bytes)
        super().__init__(head, body, number, row.priority, row.request_id)
        if stored.fair_by_caller:
            self.caller = row.caller or b""
        self._stored = stored
        self.id: str = row.id
        self.sequence: int = row.sequence
        self.head_bytes = len(row.head)
        self.start_by: float | None = None if records.has_begun(row) else row.start_by
        """When it expires if its first run has not begun; None: never."""
        self.run: int = row.run
        """The number of its last run."""
        self.recorded = False
        """Whether the database has its present run."""
        self.timer: asyncio.TimerHandle | None = None
        """Ends it if it does not begin in time."""

    def extra_headers(self) -> list[tuple[bytes, bytes]]:
        """Return percore's headers for the worker. By them the worker knows that the run ends with its connection."""
        return [(b"Percore-Call", self.id.encode()), (b"Percore-Run", b"%d" % (self.run + 1))]

    async def begin(self) -> None:
        """Record that a run begins, before its last byte is sent."""
        await self._stored.begin(self)

    def put_back(self) -> None:
        """Record that the run did not begin."""
        self._stored.put_back(self)

    async def record(self, worker: WorkerConnection) -> None:
        """Store the worker's answer."""
        await self._stored.record(self, worker)


class StoredCalls:
    """The stored calls of a gateway. Used only from the event loop."""

    def __init__(self, settings: StoreSettings, database: Database, parts: GatewayParts, metrics: StoreMetrics) -> None:
        self.settings = settings
        self.database = database
        self.metrics = metrics
        self.fair_by_caller = bool(parts.limits.caller_header)
        self._parts = parts
        self._loop = asyncio.get_running_loop()
        self._queue = parts.queue
        self._dispatcher = parts.dispatcher
        self._limits = parts.limits
        self._name = parts.name
        self._machine = _machine(parts.port)
        self._gateway = ""
        """The id of this gateway's lease; empty while it has none."""
        self._signed_on = asyncio.Event()
        self._renewed = 0.0
        self._clock_offset = 0.0
        """The database's time minus the monotonic time of this machine."""
        self._others: dict[str, tuple[float, float]] = {}
        """For each other gateway: its last sign of life, and when this gateway first saw that sign, by its monotonic clock."""
        self._mine: dict[int, StoredCall] = {}
        """Calls that this gateway may run, or runs, by their sequence numbers."""
        self._by_id: dict[str, StoredCall] = {}
        self._running: set[StoredCall] = set()
        """Calls whose run has begun and is not recorded as ended."""
        self._held: dict[StoredCall, asyncio.Task[None]] = {}
        """Calls that will be queued when the pod of their lost run is free or gone."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._changes: dict[str, set[asyncio.Future[None]]] = {}
        self._stored_bytes = 0
        self._open_calls = 0
        self._head_bytes = 0
        """Bytes of the heads of the calls in ``_mine``."""
        self._large_bodies = asyncio.Semaphore(LARGE_BODIES)
        self._arriving_calls = self._arriving_bytes = 0
        """Calls and bytes that are received and not stored yet."""
        self._unfinished_bytes = 0
        """Bytes of results that are being stored."""
        self._must_read_calls = True
        """Whether the database may have queued calls of this gateway that are not in memory."""
        self.stopping = False
        self.on_message: Callable[[], None] = lambda: None
        """Called when there is a message to send."""

    # --- the gateway's lease

    async def run(self) -> None:
        """Open the database. Then renew the lease and maintain the calls of this gateway until cancelled."""
        if not await asyncio.to_thread(self.database.open, lambda: self.stopping):
            return
        began = self._loop.time()
        clean_up_at = 0.0
        while True:
            try:
                await self._renew()
                if self.stopping:  # at each pass, because a call whose run did not begin is queued again
                    await self._write(partial(records.hand_over, gateway=self._gateway))
                else:
                    await self._take_over(delay_is_over=self._loop.time() - began >= TAKE_OVER_DELAY_SECONDS)
                    await self._claim()
                await self._stop_cancelled()
                if self._loop.time() >= clean_up_at:
                    await self._clean_up()
                    clean_up_at = self._loop.time() + CLEAN_UP_SECONDS
                self.metrics.up.set(1)
            except StoreFailed:  # it is logged already
                self.metrics.up.set(0)
                self._must_read_calls = True
            self._check_lease()
            await asyncio.sleep(MAINTENANCE_SECONDS)

    @property
    def ready(self) -> bool:
        """Whether calls can be stored now."""
        return bool(self._gateway) and not self.stopping

    async def _renew(self) -> None:
        now = self._loop.time()
        if self._gateway and now - self._renewed < RENEW_SECONDS:
            return
        if self._gateway and not await self._write(lambda to: records.renew(to, self._gateway, self._read_clock(to))):
            self._give_up_lease("another gateway has taken over its calls")
        if not self._gateway:
            gateway = secrets.token_hex(16)
            await self._write(lambda to: records.sign_on(to, gateway, self._name, self._machine, self._read_clock(to)))
            self._gateway = gateway
            self._signed_on.set()
            log.info("stored calls: gateway %s uses %s", self._name, self.database)
        self._renewed = now

    def _read_clock(self, connection: sa.Connection) -> float:
        """Return the database's time, and keep its offset, so that ``_database_time`` asks no database."""
        now = self._now(connection)
        self._clock_offset = now - time.monotonic()
        return now

    def _database_time(self) -> float:
        return time.monotonic() + self._clock_offset

    def _check_lease(self) -> None:
        if self.database.folder is not None:  # the lock of SQLite's folder is the lease, so a full disk ends no run
            return
        if self._gateway and self._loop.time() - self._renewed > OWN_LEASE_SECONDS:
            self._give_up_lease(f"its lease could not be renewed for {OWN_LEASE_SECONDS:g} s")

    def _give_up_lease(self, why: str) -> None:
        """End all runs and forget all calls, because another gateway may have them."""
        log.error("stored calls: %s: its runs end", why)
        self._gateway = ""
        self._signed_on.clear()
        self._must_read_calls = True
        for call in list(self._mine.values()):
            self._forget(call)
            call.end_without_answer()
        self._running.clear()

    async def _take_over(self, *, delay_is_over: bool) -> None:
        """Take over from gateways that have ended."""
        gateway, must_read = self._gateway, self._must_read_calls
        others = await self.database.read(lambda of: records.other_gateways(of, gateway))
        silent = self._silent(others)
        has_lock = self.database.folder is not None  # then no other gateway has the folder
        ended = [row for row in others if row.id in silent or (delay_is_over and (has_lock or row.machine == self._machine))]

        def take(to: sa.Connection) -> tuple[int, list[Row]]:
            which = records.unchanged(to, ended)
            which += records.unknown_owners(to) if must_read else []
            return len(which), records.take_over(to, self._end_time(to), gateway, which)

        unknown = await self.database.read(records.unknown_owners) if must_read else []
        if not ended and not unknown:
            return
        count, changed = await self._write(take)
        log.info("stored calls: took over from %d gateways that have ended", count)
        for row in changed:
            self._count_run(RunEnd.GATEWAY_LOST, row)
            self._report(row)
        self._must_read_calls = True

    def _silent(self, others: list[Row]) -> set[str]:
        """Return the gateways whose lease is over: for ``LEASE_SECONDS`` they have not renewed it.

        This gateway measures that with its own monotonic clock. The clock of another machine may be set while a gateway runs.
        """
        now = self._loop.time()
        known = self._others
        self._others = {
            row.id: known[row.id] if row.id in known and known[row.id][0] == row.seen_at else (row.seen_at, now)
            for row in others
        }
        return {each for each, (_, since) in self._others.items() if now - since > LEASE_SECONDS}

    async def _claim(self) -> None:
        """Queue the calls that no gateway owns, and this gateway's queued calls that are not in memory."""
        gateway = self._gateway
        rows = await self._write(lambda to: records.claim(to, gateway)) if await self._any_unowned() else []
        if self._must_read_calls:
            self._must_read_calls = False
            await self._end_unsent_runs()
            known = frozenset(self._mine)
            rows = await self._write(lambda to: records.queued(to, gateway, known))
        for row in rows:
            if row.sequence not in self._mine and gateway == self._gateway:
                self._enqueue(row, lost_pod=row.lost_pod)

    async def _end_unsent_runs(self) -> None:
        """End runs that are in the database and not in memory.

        This gateway got no answer when it wrote that such a run begins. So it never sent the last byte of the call.
        """
        gateway = self._gateway
        # Read by the writer's thread. So this comes after every write that timed out and still runs.
        for row in await self._write(lambda to: records.begun(to, gateway)):
            if row.sequence not in self._mine:
                run = OwnedRun(row.sequence, gateway, row.run)
                ended = await self._write_end(run, records.end_unbegun)
                if ended is not None:
                    self._count_run(RunEnd.NOT_BEGUN, ended)

    async def _any_unowned(self) -> bool:
        return await self.database.read(records.any_unowned)

    async def _stop_cancelled(self) -> None:
        """Stop runs that callers cancelled through another gateway."""
        if not self._running:
            return
        for sequence in await self.database.read(lambda of: records.cancelling(of, self._gateway)):
            call = self._mine.get(sequence)
            if call is not None:
                self._stop(call)

    # --- intake

    async def accept(self, request: Request, request_id: str) -> Row:
        """Receive a call and store it. Return it, or the call that has its key. From then on it is not lost."""
        wanted = options(request, self.settings.max_runs)
        await self.wait_until_ready()
        caller = self._limits.caller(request)
        key = None
        if wanted.key is not None:
            key = hashlib.sha256(b"%d:%s%s" % (len(caller or b""), caller or b"", wanted.key)).digest()
        await self._admit(request.content_length or 0, key)
        body = await self._parts.spool.receive(request)
        try:
            # Check again, because bodies in chunks do not say their size, and other calls have arrived meanwhile.
            await self._admit(body.size, key)
            new = NewCall(
                id=secrets.token_hex(16),
                priority=self._limits.priority(request),
                caller=caller,
                request_id=request_id,
                client=request.client[:64],
                head=encoded_head(request),
                model=model_of(request.path),
                request_bytes=body.size,
                webhook=wanted.webhook,
                max_runs=wanted.max_runs,
                start_within=wanted.start_within,
            )
        except BaseException:
            body.discard()
            raise
        self._arriving_calls += 1
        self._arriving_bytes += body.size
        # A client disconnect does not stop this, because the call may be stored already.
        return await asyncio.shield(self._spawn(self._store(request, new, body, key)))

    async def wait_until_ready(self) -> None:
        """Wait a short time until the store is open; raise NotReady if it does not open."""
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                await self._signed_on.wait()
        except TimeoutError:
            pass
        self.check_ready()

    def check_ready(self) -> None:
        """Raise NotReady if the store cannot be used now."""
        if not self.ready:
            raise NotReady(NO_STORE)

    async def _admit(self, size: int, key: bytes | None) -> None:
        """Raise an error if there is no room for a call. A call that has its receipt already needs no room."""
        self.database.check_file()
        try:
            self._check_room(size)
        except CallError:
            if key is None or await self.database.read(partial(records.known_by_key, key=key)) is None:
                raise

    def _check_room(self, size: int) -> None:
        if self._open_calls + self._arriving_calls >= self.settings.most_calls:
            raise QueueFull(
                f"{self.settings.most_calls} stored calls are not finished, the most allowed; send the call again later"
            )
        most = self.settings.most_calls * HEAD_BYTES
        if self._head_bytes >= most:
            raise Overloaded(f"the headers of stored calls have {self._head_bytes} bytes, and may have {most}")
        why = self._why_no_room(size)
        if why:
            raise Overloaded(why)

    def _why_no_room(self, size: int) -> str:
        """Return why there is no room for ``size`` more bytes; empty if there is."""
        held = self._stored_bytes + self._arriving_bytes + self._unfinished_bytes
        if held + size > self.settings.most_bytes:
            return f"stored calls have {held} bytes, and may have {self.settings.most_bytes}; this one has {size} more"
        folder = self.database.folder
        if folder is not None and self.settings.free_bytes and _free_bytes(folder) < self.settings.free_bytes + size:
            return f"the disk of the stored calls has less than {self.settings.free_bytes} bytes free"
        return ""

    async def _store(self, request: Request, new: NewCall, body: Body, key: bytes | None) -> Row:
        try:
            digest = None if key is None else await _digest(request, body)
            async with self._large_bodies if body.size > SMALL_BYTES else contextlib.nullcontext():
                try:
                    row, is_known = await self._insert(new, body, key, digest)
                except sa.exc.IntegrityError:  # the same key came to another gateway at the same moment
                    row, is_known = await self._insert(replace(new, id=secrets.token_hex(16)), body, key, digest)
        except StoreFailed:
            self._must_read_calls = True  # in spite of the error it may be stored
            raise
        finally:
            self._arriving_calls -= 1
            self._arriving_bytes -= body.size
            body.discard()
        if is_known:
            # Checked here and not in the write: an error in a write fails all writes of its transaction.
            if row.digest != digest:
                raise IdempotencyKeyReused("Idempotency-Key: another request was sent with this key")
            return row
        self._open_calls += 1
        self._stored_bytes += body.size
        if row.sequence not in self._mine and row.owner == self._gateway and not self.stopping:
            self._enqueue(row)
        return row

    async def _insert(self, new: NewCall, body: Body, key: bytes | None, digest: bytes | None) -> tuple[Row, bool]:
        """Store a call with its body. Return it, or the call that has the key already; and whether it had the key already."""
        gateway = self._gateway
        if not gateway:
            raise NotReady(NO_STORE)

        def finish(to: sa.Connection) -> tuple[Row, bool]:
            known = records.known_by_key(to, key) if key is not None else None
            if known is not None:
                return known, True
            if sequence is None:
                row = records.insert_accepted(to, new, gateway, self._now(to), key, digest)
            else:
                row = records.accept(to, sequence, gateway, key, digest)
            if last:
                records.add_part(to, row.sequence, REQUEST, 0, number, last)
            return row, False

        try:
            sequence, number, last = await self._insert_all_but_last(new, body, gateway)
            row, is_known = await self._write(finish)
        except BaseException:
            self._drop(new, body)
            raise
        if is_known:
            self._drop(new, body)
        return row, is_known

    async def _insert_all_but_last(self, new: NewCall, body: Body, gateway: str) -> tuple[int | None, int, bytes]:
        """Store all pieces of a body but the last. Return the call's sequence number, and the last piece with its number.

        A small body has only one piece. Its call is stored together with this piece later, so there is no sequence number yet.
        """
        sequence: int | None = None
        # A bytearray, because bytes would be copied for each piece, and a client may send single bytes.
        number, last = 0, bytearray()
        async for piece in body.pieces():
            if not last or len(last) + len(piece) <= PIECE_BYTES:
                last += piece
                continue
            if sequence is None:
                sequence = await self._write(lambda to: records.insert(to, new, gateway, self._now(to)))
            part = partial(records.add_part, sequence=sequence, kind=REQUEST, run=0, number=number, data=bytes(last))
            await self._write(part)
            number, last = number + 1, bytearray(piece)
        return sequence, number, bytes(last)

    def _drop(self, new: NewCall, body: Body) -> None:
        """Delete the stored pieces of a call that was not received completely."""
        if body.size > PIECE_BYTES:
            self._spawn(self._write_with_retries(partial(records.drop, call_id=new.id)))

    # --- in the queue

    def _enqueue(self, row: Row, number: int | None = None, lost_pod: str = "") -> None:
        """Queue a call. If it was queued before, it has its old ``number``, and so its old place.

        If its last run was lost, ``lost_pod`` computed it, and perhaps still does.
        """
        call = StoredCall(self, row, self._queue.next_number() if number is None else number)
        self._mine[call.sequence] = self._by_id[call.id] = call
        self._head_bytes += call.head_bytes
        call.done.add_done_callback(partial(self._ended, call))
        self._limit_start(call)
        if lost_pod:
            self._held[call] = self._spawn(self._hold(call, lost_pod))
        else:
            self._push(call)

    def _limit_start(self, call: StoredCall) -> None:
        """End a call that does not begin in time. If a run began and was lost, the call has begun in time already."""
        if call.start_by is not None:
            call.timer = self._loop.call_later(max(0.0, call.start_by - self._database_time()), self._overdue, call)

    def _push(self, call: StoredCall) -> None:
        self._queue.push(call)
        self._dispatcher.match()

    async def _hold(self, call: StoredCall, pod: str) -> None:
        """Wait until the lost run of a call cannot compute any more, then queue the call. So two runs never overlap."""
        log.info("call %s: run %d was lost; the next one begins when pod %s is free or gone", call.id, call.run, pod)
        await self._dispatcher.until_free(pod)
        del self._held[call]
        self._push(call)

    def _withdraw(self, call: StoredCall) -> bool:
        """Take a call out of the queue, or end its hold; return False if it is neither queued nor held."""
        hold = self._held.pop(call, None)
        if hold is not None:
            hold.cancel()
            return True
        if self._queue.remove(call):
            self._dispatcher.queue_shrank()
            return True
        return False

    def _overdue(self, call: StoredCall) -> None:
        call.overdue = True
        if self._withdraw(call):
            self._expire(call)

    def _expire(self, call: StoredCall) -> None:
        self._forget(call)
        self._spawn(self._write_end(self._owned_run(call), records.expire))

    def _forget(self, call: StoredCall) -> None:
        if self._mine.get(call.sequence) is call:  # it may have been looked up and queued again
            del self._mine[call.sequence]
            del self._by_id[call.id]
            self._head_bytes -= call.head_bytes
            self._changed(call.id)  # a request that waits for its end no longer gets an event from here
        self._running.discard(call)
        if call.timer is not None:
            call.timer.cancel()
        self._withdraw(call)

    def position(self, row: Row) -> int | None:
        """Return how many calls in this gateway's queue run before the call; None if the call is not in it."""
        call = self._by_id.get(row.id)
        return self._queue.ahead(call) if call is not None and call in self._queue else None

    # --- a run

    async def begin(self, call: StoredCall) -> None:
        """Record that a run begins; raise ConnectionAbortedError if the call must not run now."""
        gateway, pod = self._gateway, call.pod
        if not gateway:
            self._retry(call)
            raise ConnectionAbortedError(NO_STORE)
        try:
            number = await self._write(lambda to: records.begin_run(to, call.sequence, gateway, pod, self._name, self._now(to)))
        except StoreFailed:
            self._retry(call)
            raise ConnectionAbortedError("the begin of the run cannot be stored") from None
        if number is None or gateway != self._gateway:
            self._retry(call)
            raise ConnectionAbortedError("the call was cancelled, or is another gateway's")
        call.run, call.recorded = number, True
        self._running.add(call)
        self._changed(call.id)
        if call.timer is not None:
            call.timer.cancel()

    def _retry(self, call: StoredCall) -> None:
        """Have a call looked up and queued again later."""
        self._forget(call)
        call.state = CallState.ENDED
        self._must_read_calls = True

    def put_back(self, call: StoredCall) -> None:
        """Record that the run did not begin after all: the call is queued again."""
        if self.stopping:
            self._queue.remove(call)
        if not call.recorded:
            return
        call.recorded = False
        self._running.discard(call)
        self._limit_start(call)
        self._spawn(self._record_unbegun(call))

    async def _record_unbegun(self, call: StoredCall) -> None:
        row = await self._write_end(self._owned_run(call), records.end_unbegun)
        if row is not None:
            self._count_run(RunEnd.NOT_BEGUN, row)
        if row is None or row.state != State.QUEUED:
            self._forget(call)
            self._must_read_calls = self._must_read_calls or row is None
        elif call.sequence not in self._mine:  # before this write, ``begin`` did not allow a new run and forgot the call
            self._must_read_calls = True

    async def record(self, call: StoredCall, worker: WorkerConnection) -> None:
        """Store the worker's answer. The end of the call is stored when the worker is free again."""
        await worker.answer()
        if not call.recorded:  # the worker answered before it had the whole call
            await self.begin(call)
        call.status = worker.status
        dropped = NOT_STORED | connection_tokens(worker.headers)
        headers = [each for each in worker.headers if each[0].lower() not in dropped]
        bodyless = call.request.method == b"HEAD" or worker.status in NO_BODY_STATUSES
        try:
            last = (0, b"") if bodyless else await self._store_result(call, worker)
        except ResultTooLarge as error:
            worker.abort()
            self._conclude_error(call, error, RunEnd.ANSWERED)
        else:
            size = last[0] * PIECE_BYTES + len(last[1])
            result = Result(worker.status, worker.phrase, orjson.dumps(encoded_headers(headers)), size)
            self._conclude(call, result, last, RunEnd.ANSWERED)

    async def _store_result(self, call: StoredCall, worker: WorkerConnection) -> tuple[int, bytes]:
        """Store all pieces of a result but the last; return the last piece with its number.

        Raises ResultTooLarge if there is no room, and ConnectionAbortedError if another gateway has the call.
        """
        number, last = 0, bytearray()
        try:
            while not worker.complete or worker.buffered:
                last += await worker.piece()
                while len(last) > PIECE_BYTES:
                    why = self._why_no_room(PIECE_BYTES)
                    if why:
                        raise ResultTooLarge(
                            f"the result has over {number * PIECE_BYTES + len(last)} bytes, and there is no room: {why}"
                        )
                    data = bytes(last[:PIECE_BYTES])
                    del last[:PIECE_BYTES]
                    part = partial(records.add_result_part, run=self._owned_run(call), number=number, data=data)
                    number += 1
                    self._unfinished_bytes += PIECE_BYTES
                    await self._store_part(worker, part)
        finally:
            self._unfinished_bytes -= number * PIECE_BYTES
        return number, bytes(last)

    async def _store_part(self, worker: WorkerConnection, part: Work[bool]) -> None:
        """Store a piece of a result. While the database cannot be used, read no more from the worker, so no result is lost."""
        while True:
            try:
                is_mine = await self._write(part)
            except StoreFailed:
                await asyncio.sleep(RETRY_SECONDS)
                worker.check()
            else:
                break
        if not is_mine:
            raise ConnectionAbortedError("another gateway has the call")

    def _conclude(self, call: StoredCall, result: Result, last: tuple[int, bytes], end: RunEnd) -> None:
        self._spawn(self._end_run(call, partial(records.end_answered, result=result, last=last, end=end), end))

    def _conclude_error(self, call: StoredCall, error: CallError, end: RunEnd) -> None:
        result, body = Result.of_error(error)
        self._conclude(call, result, (0, body), end)

    async def _end_run(self, call: StoredCall, work: Callable[..., Row | None], end: RunEnd) -> None:
        """Record the end of a run, and queue the call again if it has not ended."""
        row = await self._write_end(self._owned_run(call), work)
        self._forget(call)
        if row is None:
            log.warning("call %s: run %d is not recorded: another gateway has the call", call.id, call.run)
            self._must_read_calls = True
            return
        self._count_run(end, row)
        if row.state == State.QUEUED and row.owner == self._gateway and not self.stopping:
            self._enqueue(row, call.number, call.pod)

    def _ended(self, call: StoredCall, done: asyncio.Future[None]) -> None:
        """Record the loss of a run, when the dispatcher has finished its call. An answer was recorded before."""
        error = None if done.cancelled() else done.exception()
        if error is None or not self._gateway:
            return
        if isinstance(error, RunTimeout) and call.recorded:
            self._conclude_error(call, error, RunEnd.RUN_TIMEOUT)
        elif call.recorded:
            # While the gateway stops, workers may be ended too. Then the call is not the cause of a lost run.
            is_pod = isinstance(error, PodLost) and not self.stopping
            end = RunEnd.POD_LOST if is_pod else RunEnd.GATEWAY_LOST
            self._spawn(self._end_run(call, partial(records.end_lost, end=end), end))
        elif isinstance(error, QueueTimeout):
            self._expire(call)
        elif isinstance(error, PodLost):
            self._forget(call)
            self._spawn(self._write_end(self._owned_run(call), partial(records.end_failed, error=error)))
        else:
            if not isinstance(error, (StoreFailed, NotReady, GatewayFailed)):
                log.error("call %s: %s", call.id, error)
            self._retry(call)

    # --- the end

    async def cancel(self, call_id: str) -> Row | None:
        """Cancel a call. Return it in its new state, or None if there is none."""
        row, is_changed = await self._write(lambda to: records.cancel(to, self._end_time(to), call_id))
        if row is None:
            return None
        call = self._by_id.get(call_id)
        if call is not None and row.state == State.CANCELLED:
            self._forget(call)
            if call.state is CallState.SENDING:
                call.end_without_answer()
        elif call is not None and row.state == State.CANCELLING:
            self._stop(call)
        if is_changed:
            self._report(row)
        return row

    def _stop(self, call: StoredCall) -> None:
        """End a run. The worker sees the half-closed connection, ends its run, and closes the connection."""
        if not call.is_cancelling and call.connection is not None:
            call.is_cancelling = True
            connection = call.connection
            connection.half_close()
            self._loop.call_later(STOP_SECONDS, connection.abort)

    async def erase(self, call_id: str) -> bool:
        """Erase a call that has ended; return False if it has not."""
        erased = await self._write(lambda to: records.erase(to, call_id, self._now(to)))
        self._changed(call_id)
        return erased

    async def _write_end(self, run: OwnedRun, work: Callable[..., Row | None]) -> Row | None:
        """Write the end of a run or a call; return the call, or None if another gateway has it.

        While the database cannot be used, try again. An earlier attempt may be stored all the same.
        """

        def write(to: sa.Connection) -> Row | None:
            return work(to, self._end_time(to), run=run)

        def write_again(to: sa.Connection) -> Row | None:
            row = write(to)
            return records.written_before(to, run) if row is None else row

        row = await self._write_with_retries(write, write_again)
        if row is not None:
            self._report(row)
        return row

    async def _write_with_retries(self, work: Work[T], again: Work[T] | None = None) -> T:
        """Write. While the database cannot be used, try again; by ``again``, if an attempt that failed makes a difference."""
        while True:
            try:
                return await self._write(work)
            except StoreFailed:
                await asyncio.sleep(RETRY_SECONDS)
                work = again or work

    def _count_run(self, end: RunEnd, row: Row) -> None:
        """Count the end of a run. ``row`` is the call after the run."""
        is_cancelled = row.state == State.CANCELLED and end is not RunEnd.NOT_BEGUN
        self.metrics.runs.labels((RunEnd.CANCELLED if is_cancelled else end).value).inc()

    def _report(self, row: Row) -> None:
        """Count and log a change of a call, and wake the requests that wait for it."""
        self._changed(row.id)
        if row.state not in FINAL:
            return
        self._open_calls = max(0, self._open_calls - 1)
        self._stored_bytes = max(0, self._stored_bytes - row.request_bytes) + row.result_bytes
        self.metrics.ended.labels(row.state).inc()
        self._parts.write_line(
            {
                "logger": "percore.gateway.stored_call",
                "call_id": row.id,
                "request_id": row.request_id,
                "state": row.state,
                "status": row.status,
                "runs": row.run,
                "queue_seconds": None if row.started_at is None else round(row.started_at - row.created_at, 6),
                "total_seconds": round(row.finished_at - row.created_at, 6),
                "request_bytes": row.request_bytes,
                "response_bytes": row.result_bytes,
            }
        )
        if row.webhook:
            self.on_message()

    # --- waiting for a change

    def _changed(self, call_id: str) -> None:
        for future in self._changes.pop(call_id, ()):
            if not future.done():
                future.set_result(None)

    async def wait_for_end(self, call_id: str, seconds: float) -> Row | None:
        """Wait until a call has ended, at most ``seconds``. Return the call, or None if there is none."""
        until = self._loop.time() + seconds
        while True:
            future: asyncio.Future[None] = self._loop.create_future()
            self._changes.setdefault(call_id, set()).add(future)
            try:
                row = await self.find(call_id)
                left = until - self._loop.time()
                if row is None or row.state in FINAL or left <= 0 or self.stopping:
                    return row
                # Poll, because if another gateway owns the call, no event comes here.
                mine = call_id in self._by_id
                await asyncio.wait((future,), timeout=left if mine else min(left, MAINTENANCE_SECONDS))
            finally:
                waiting = self._changes.get(call_id)
                if waiting is not None:
                    waiting.discard(future)
                    if not waiting:
                        del self._changes[call_id]

    async def find(self, call_id: str) -> Row | None:
        """Return a call, or None if there is none."""
        return await self.database.read(lambda of: records.find(of, call_id))

    # --- retention

    async def _clean_up(self) -> None:
        by_state, self._stored_bytes = await self.database.read(records.totals)
        self._open_calls = sum(count for state, (count, _) in by_state.items() if state in OPEN)
        now = self._database_time()
        for state in (*OPEN, *FINAL):
            count, oldest = by_state.get(state, (0, now))
            self.metrics.calls.labels(state.value).set(count)
            if state in OPEN:
                self.metrics.oldest.labels(state.value).set(max(0.0, now - oldest) if count else 0.0)
        self.metrics.bytes.set(self._stored_bytes)
        if await self.database.read(records.unknown_owners):
            # A frozen gateway stored a call after its lease was taken over. It ended before it noticed the takeover.
            self._must_read_calls = True
        until = self._loop.time() + RENEW_SECONDS  # after this time the lease must be renewed
        while await self._write(lambda to: records.erase_expired(to, self._now(to))) and self._loop.time() < until:
            await asyncio.sleep(0)
        await self.database.shrink()

    @property
    def busy(self) -> int:
        """How many runs have not ended."""
        return len(self._running)

    @property
    def waiting_for_lost_pod(self) -> int:
        """How many calls wait for the pod of their lost run. They are in flight, because they need pods like queued calls."""
        return len(self._held)

    def stop(self) -> None:
        """Accept no calls from now on, and give no more calls to pods. Runs go on to their end."""
        self.stopping = True
        for call in list(self._mine.values()):
            if self._withdraw(call):
                self._forget(call)
        for call_id in list(self._changes):  # end requests that wait for a call: clients ask the next gateway
            self._changed(call_id)

    async def close(self) -> None:
        """Release the queued calls, so that the next gateway can take them."""
        if self._tasks:  # one may still store the call of a client that left, or the end of a run
            await asyncio.wait(self._tasks, timeout=CLOSE_SECONDS)
        if self._gateway:
            gateway = self._gateway
            try:
                await self._write(lambda to: records.sign_off(to, gateway))
            except StoreFailed:
                log.warning("stored calls: this gateway could not end its lease; another gateway will end it")
        self.database.close()

    # --- helpers

    def _owned_run(self, call: StoredCall) -> OwnedRun:
        return OwnedRun(call.sequence, self._gateway, call.run)

    def _end_time(self, connection: sa.Connection) -> EndTime:
        return EndTime(self._now(connection), self.settings.retention_seconds)

    def _now(self, connection: sa.Connection) -> float:
        return self.database.now(connection)

    async def _write(self, work: Work[T]) -> T:
        return await self.database.write(work)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, CallError):
            log.error("stored calls: a step failed", exc_info=error)
            self._must_read_calls = True


async def _digest(request: Request, body: Body) -> bytes:
    """Return a digest of the request. Two requests with the same key are compared by it.

    It includes credentials, so that no caller gets the result of another one by sending the same key.
    """
    found = hashlib.sha256()
    for each in (
        request.method,
        request.target,
        *(request.header(name) or b"" for name in COMPARED),
    ):
        found.update(b"%d:%s" % (len(each), each))
    async for piece in body.pieces():
        if len(piece) > 65536:
            await asyncio.get_running_loop().run_in_executor(None, found.update, piece)
        else:
            found.update(piece)
    return found.digest()


def _machine(port: int) -> str:
    """Return the identity of a gateway's address: host, boot and port. A restarted gateway at this address has the same one."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return f"{socket.gethostname()[:64]} {boot} {port}"


def _free_bytes(folder: Path) -> int:
    try:
        found = os.statvfs(folder)
    except OSError as error:
        raise StoreFailed(f"the folder of the stored calls cannot be used: {error.strerror}") from error
    return found.f_bavail * found.f_frsize
