"""The database: its connections, and the threads that use them, so that the event loop never waits for a disk.

One thread writes. It does all waiting writes in one transaction, so that one flush of the disk serves all of them. Other
threads read. A write returns its result only after its commit.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from percore.errors import Overloaded, StartError
from percore.state_dir import Lock
from percore.threads import start_vital

log = logging.getLogger("percore.gateway.store")
logging.getLogger("alembic").setLevel(logging.WARNING)
T = TypeVar("T")
Work = Callable[[sa.Connection], T]

READERS = 4
MOST_TOGETHER = 256
"""The most writes in one transaction."""
PAGE_BYTES = 16384
"""With this page size SQLite takes half as long for a body of megabytes as with its own 4,096."""
LOCK_SECONDS = 0.1
RETRY_SECONDS = 1.0
BUSY_SECONDS = 10.0
"""How long SQLite waits if another process has locked the file."""
ANSWER_SECONDS = 10.0
"""How long PostgreSQL may take. After this time the store counts as not usable, but a statement that has begun may still
succeed."""
CONNECTION = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
    "application_name": "percore",
    # Behind a pooler in transaction mode, a statement that one gateway prepared would be executed for another one.
    "prepare_threshold": None,
}
"""If the server's machine is lost, this is noticed within 30 s. Options in the operator's URL override these."""
SESSION = "SET idle_in_transaction_session_timeout = '10s'; SET lock_timeout = '10s'; SET statement_timeout = '60s'"
"""If a gateway freezes in a transaction, PostgreSQL ends its session, so that other gateways go on."""
SERVER_LOST = ("08", "57P")
"""Prefixes of SQL error codes. They mean that the whole server cannot be used now."""
UNUSABLE = (sa.exc.DBAPIError, sa.exc.TimeoutError)
PERMANENT = (sa.exc.IntegrityError, sa.exc.DataError)
"""Errors of a statement and its values. The database can be used, and the same statement would fail again."""
MOST_FREED = 1000
"""How many free pages go back to the file system at a time: 16 MB."""
FILE = "calls.sqlite3"
TEMPORARY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL)
"""SQLite's errors that may be over later."""
TOO_SLOW = f"it has not answered for {ANSWER_SECONDS:g} s"


class StoreFailed(Overloaded):
    """The database cannot be used now."""


@dataclass(slots=True)
class _Write:
    work: Work[Any]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    given_up: bool = False
    """Whether its caller has given up. Then it must not begin."""


class Database:
    """SQLite in a folder, or PostgreSQL at a URL. ``open`` comes first, in a thread."""

    def __init__(self, folder: Path | None, url: str = "") -> None:
        self.folder = folder
        self._lock = Lock(folder / "lock", "PERCORE_GATEWAY_CALLS_DIR") if folder is not None else None
        self._engine = _sqlite(folder / FILE) if folder is not None else _postgresql(url)
        self._writing = self._engine.execution_options(writes=True)
        self._writes: queue.SimpleQueue[_Write] = queue.SimpleQueue()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="store-read")
        self._seconds = ANSWER_SECONDS if folder is None else None
        self._file: tuple[int, int] | None = None
        """Device and inode of SQLite's file when it was opened; None before that, and from the moment the file was missed."""
        self._away = False
        """Whether the last use of the database failed. Then the next failures are not logged."""
        self.now: Callable[[sa.Connection], float] = _own_clock if folder is not None else _server_clock
        """Returns the time of the database server. Gateways compare times, so all of them use this clock."""

    # --- opening

    def open(self, stopped: Callable[[], bool] = lambda: False) -> bool:
        """Wait until no other gateway has the folder, and bring the schema up to date.

        Returns False if ``stopped`` returns True before that.
        Raises StartError, which names the database, if the database cannot be used.
        """
        if self._lock is not None:
            said = False
            while not self._lock.take():
                if not said:
                    log.info("stored calls: another gateway has %s; this one waits until it has ended", self.folder)
                said = True
                if stopped():
                    return False
                time.sleep(LOCK_SECONDS)
        said = False
        while not self._prepare(quiet=said):
            said = True
            if stopped():
                return False
            time.sleep(RETRY_SECONDS)
        self._file = self._identity()
        start_vital("store-write", self._write_forever)
        return True

    def _identity(self) -> tuple[int, int] | None:
        """Return device and inode of SQLite's file; None if there is no file."""
        if self.folder is None:
            return None
        try:
            found = (self.folder / FILE).stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def check_file(self) -> None:
        """Raise StoreFailed if SQLite's file was deleted or replaced while the gateway ran: later writes would be lost."""
        if self.folder is None:
            return
        if self._file is not None and self._identity() != self._file:
            self._file = None
            log.error("stored calls: %s: %s was deleted or replaced; restart the gateway", self, FILE)
        if self._file is None:
            raise StoreFailed("the store of calls was deleted or replaced, and cannot be used until the gateway is restarted")

    def _prepare(self, *, quiet: bool) -> bool:
        """Bring the schema up to date; return False if the database cannot be reached now."""
        try:
            with self._writing.begin() as connection:
                if self._lock is None:  # two gateways may start at once, and a migration may be slow
                    connection.execute(sa.text("SET LOCAL statement_timeout = 0"))
                    connection.execute(sa.text("SET LOCAL lock_timeout = 0"))
                    connection.execute(sa.text("SELECT pg_advisory_xact_lock(7237662267)"))
                self._migrate(connection)
        except sa.exc.OperationalError as error:
            if self.folder is not None and _sqlite_code(error) not in TEMPORARY:
                raise StartError(f"{self}: cannot be used: {_reason(error)}") from error
            if not quiet:
                log.error("stored calls: %s cannot be used, and is tried again: %s", self, _reason(error))  # noqa: TRY400
            return False
        except sa.exc.SQLAlchemyError as error:
            raise StartError(f"{self}: cannot be used: {_reason(error)}") from error
        return True

    def __str__(self) -> str:
        """Return the name of the database for messages, without the password."""
        if self.folder is not None:
            return f"PERCORE_GATEWAY_CALLS_DIR={str(self.folder)!r}"
        shown = self._engine.url.set(drivername="postgresql", query={})  # parameters may be secrets too
        return f"PERCORE_GATEWAY_CALLS_DATABASE={shown.render_as_string(hide_password=True)!r}"

    def _migrate(self, connection: sa.Connection) -> None:
        # Imported here, in a thread, because the import takes 0.2 s. So calls that are not stored do not wait for it.
        from alembic import command  # noqa: PLC0415
        from alembic.config import Config  # noqa: PLC0415
        from alembic.runtime.migration import MigrationContext  # noqa: PLC0415
        from alembic.script import ScriptDirectory  # noqa: PLC0415

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        config.attributes["connection"] = connection
        known = {each.revision for each in ScriptDirectory.from_config(config).walk_revisions()}
        found = MigrationContext.configure(connection).get_current_revision()
        if found is not None and found not in known:
            raise StartError(
                f"{self}: its schema is {found!r}, of a newer percore; this one knows {', '.join(sorted(known))}. "
                "Install the newer percore again, or give this one another database"
            )
        command.upgrade(config, "head")

    # --- writing

    async def write(self, work: Work[T]) -> T:
        """Run ``work`` in a transaction. Return its result when the transaction is on disk.

        Raises StoreFailed if the database cannot be used. Even then ``work`` may be stored. ``work`` may run twice: in a
        transaction that fails because of another write, and again alone. If the caller stops waiting, ``work`` goes on.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        write = _Write(work, loop, future)
        self._writes.put(write)
        try:
            async with asyncio.timeout(self._seconds):
                return await future
        except TimeoutError:
            write.given_up = True
            raise self._explained(sa.exc.TimeoutError(TOO_SLOW)) from None

    def _write_forever(self) -> None:
        while True:
            batch = [self._writes.get()]
            while len(batch) < MOST_TOGETHER:
                try:
                    batch.append(self._writes.get_nowait())
                except queue.Empty:
                    break
            outcomes = self._together([each for each in batch if not each.given_up])
            for loop in {each.loop for each in batch}:
                loop.call_soon_threadsafe(_deliver, [pair for pair in outcomes if pair[0].loop is loop])

    def _together(self, batch: list[_Write]) -> list[tuple[_Write, Any]]:
        if not batch:
            return []
        try:
            with self._writing.begin() as connection:
                found = [(each, each.work(connection)) for each in batch]
        except Exception as error:  # noqa: BLE001 - each is delivered to the caller that waits for it
            if len(batch) == 1 or self._is_lost(error):
                explained = self._explained(error)
                return [(each, explained) for each in batch]
        else:
            self._log_recovery()
            return found
        return [outcome for each in batch for outcome in self._together([each])]

    def _is_lost(self, error: Exception) -> bool:
        """Tell whether no write can succeed now: the server is lost, or SQLite's file is locked.

        A lost server may have stored the whole transaction.
        """
        if not isinstance(error, UNUSABLE):
            return False
        if self.folder is not None:  # if another process has the lock, each write alone would wait for it too
            return _sqlite_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
        code = getattr(getattr(error, "orig", None), "sqlstate", None)
        return isinstance(error, (sa.exc.OperationalError, sa.exc.TimeoutError)) and (
            code is None or code.startswith(SERVER_LOST)
        )

    def _log_recovery(self) -> None:
        if self._away:
            self._away = False
            log.info("stored calls: %s can be used again", self)

    def _explained(self, error: Exception) -> Exception:
        if isinstance(error, UNUSABLE) and not isinstance(error, PERMANENT):
            if not self._away:
                self._away = True
                log.error("stored calls: %s cannot be used: %s", self, _reason(error))
            failed = StoreFailed("the store of calls cannot be used now; send the request again later")
            failed.__cause__ = error
            return failed
        return error

    # --- reading

    async def read(self, work: Work[T]) -> T:
        """Run ``work`` on a connection and return its result. Raises StoreFailed if the database cannot be used."""
        try:
            async with asyncio.timeout(self._seconds):
                return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, work)
        except TimeoutError:
            raise self._explained(sa.exc.TimeoutError(TOO_SLOW)) from None

    def _read(self, work: Work[T]) -> T:
        try:
            with self._engine.connect() as connection:
                return work(connection)
        except UNUSABLE as error:
            raise self._explained(error) from error

    def read_blocking(self, work: Work[T]) -> T:
        """Do the same as ``read``, and block the thread that calls it until there is a result.

        The work runs in a thread of this class, because only these threads may use the connections.
        """
        reading = self._readers.submit(self._read, work)
        try:
            return reading.result(self._seconds)
        except TimeoutError:
            reading.cancel()
            raise self._explained(sa.exc.TimeoutError(TOO_SLOW)) from None

    async def shrink(self) -> None:
        """Give some unused pages back to the file system."""
        if self.folder is not None:
            await self.write(_vacuum)

    def close(self) -> None:
        """Close the connections, and unlock the folder for another gateway."""
        self._engine.dispose()
        if self._lock is not None:
            self._lock.close()


def _deliver(outcomes: list[tuple[_Write, Any]]) -> None:
    for write, outcome in outcomes:
        if write.future.done():  # its caller no longer waits
            continue
        if isinstance(outcome, Exception):
            write.future.set_exception(outcome)
        else:
            write.future.set_result(outcome)


def _reason(error: BaseException) -> str:
    """Return the database's message, without the statement and its values."""
    return str(getattr(error, "orig", None) or error).strip().splitlines()[0]


def _sqlite_code(error: Exception) -> int:
    """Return SQLite's primary error code; 0 if there is none."""
    return int(getattr(getattr(error, "orig", None), "sqlite_errorcode", 0)) & 0xFF


def _sqlite(path: Path) -> sa.Engine:
    engine = sa.create_engine(f"sqlite:///{path}", pool_size=READERS + 1, max_overflow=0, pool_timeout=60, hide_parameters=True)

    @sa.event.listens_for(engine, "connect")
    def connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver must not begin transactions itself
        connection.execute(f"PRAGMA busy_timeout={int(BUSY_SECONDS * 1000)}")
        connection.execute("PRAGMA temp_store=MEMORY")  # a pod's root is read-only, so temporary tables have no file
        if not connection.execute("PRAGMA page_count").fetchone()[0]:  # in a file with content these would be writes
            connection.execute(f"PRAGMA page_size={PAGE_BYTES}")
            connection.execute("PRAGMA auto_vacuum=incremental")
        if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":  # new, or the copy of a backup
            connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    @sa.event.listens_for(engine, "begin")
    def begun(connection: sa.Connection) -> None:
        # A transaction that reads first and then writes would fail if another connection wrote in between.
        connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")

    return engine


def _postgresql(url: str) -> sa.Engine:
    """Return the engine. It checks each connection before it is used."""
    found = sa.make_url(url).set(drivername="postgresql+psycopg")
    arguments = {name: value for name, value in CONNECTION.items() if name not in found.query}
    engine = sa.create_engine(
        found,
        pool_size=READERS + 1,
        max_overflow=0,
        pool_timeout=60,
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args=arguments,
    )

    @sa.event.listens_for(engine, "connect")
    def connected(connection: Any, _record: Any) -> None:
        connection.execute(SESSION)
        connection.commit()

    return engine


def _vacuum(connection: sa.Connection) -> None:
    driver: Any = connection.connection.driver_connection
    driver.execute(f"PRAGMA incremental_vacuum({MOST_FREED})").fetchall()


def _own_clock(_connection: sa.Connection) -> float:
    return time.time()


def _server_clock(connection: sa.Connection) -> float:
    return float(connection.execute(sa.text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())
