"""The store of a gateway: creates and connects its parts."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Coroutine
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from percore import state_dir
from percore.errors import StartError
from percore.gateway.store import records
from percore.gateway.store.database import Database
from percore.gateway.store.routes import Routes
from percore.gateway.store.store_metrics import StoreMetrics
from percore.gateway.store.stored_calls import GatewayParts, StoredCalls, StoreSettings
from percore.gateway.store.webhook_sender import Sender
from percore.gateway.store.webhooks import Delivery, WebhookSettings, check_url

if TYPE_CHECKING:
    from percore.gateway.process import Gateway

log = logging.getLogger("percore.gateway.store")

BASE, BASE_BESIDE_AN_APP = "/v1/calls", "/-/calls"


class Store:
    """Database, routes, calls and webhooks of one gateway."""

    def __init__(self, gateway: Gateway, folder: Path | None) -> None:
        """Take a ``folder`` for SQLite; None: the database of the settings."""
        settings = gateway.settings
        wanted = settings.gateway
        bounds = StoreSettings(
            retention_seconds=wanted.calls_retention,
            most_calls=wanted.calls_limit,
            most_bytes=wanted.calls_bytes,
            free_bytes=wanted.calls_free_bytes,
            max_runs=wanted.calls_max_runs,
        )
        metrics = StoreMetrics(gateway.metrics.registry)
        metrics.bytes_limit.set(wanted.calls_bytes)
        parts = GatewayParts(
            queue=gateway.queue,
            dispatcher=gateway.dispatcher,
            spool=gateway.spool,
            limits=gateway.intake_limits,
            name=gateway.name,
            port=settings.server.port,
            write_line=gateway.write_line,
        )
        database = Database(folder, wanted.calls_database)
        self._stored = StoredCalls(bounds, database, parts, metrics)
        webhooks = WebhookSettings(wanted.webhook_secrets, wanted.webhook_hosts, wanted.webhook_timeout)
        outbox = StoredOutbox(database, lambda: self._stored.ready, webhooks.lease_seconds)
        self._sender = Sender(outbox, webhooks, lambda outcome: metrics.webhooks.labels(outcome).inc())
        self._stored.on_message = self._sender.wake
        self.base = BASE_BESIDE_AN_APP if settings.app.target else BASE
        self.routes = Routes(self._stored, self.base, settings.limits.answer_timeout, partial(check_url, settings=webhooks))

    def tasks(self) -> list[Coroutine[Any, Any, None]]:
        """Return the coroutines that run as long as the gateway."""
        return [self._stored.run(), self._sender.run()]

    @property
    def busy(self) -> int:
        """How many runs have not ended."""
        return self._stored.busy

    @property
    def waiting_for_lost_pod(self) -> int:
        """How many calls wait for the pod of their lost run."""
        return self._stored.waiting_for_lost_pod

    def stop(self) -> None:
        """Give no more stored calls to pods."""
        self._stored.stop()

    async def close(self) -> None:
        """Release all calls, so that the next gateway can take them."""
        await self._stored.close()


class StoredOutbox:
    """The messages in the database, in the form of the sender's ``Outbox``."""

    def __init__(self, database: Database, is_ready: Callable[[], bool], lease_seconds: float) -> None:
        self._database = database
        self._is_ready = is_ready
        self._lease_seconds = lease_seconds

    async def take(self, sending: Collection[str], full: Collection[str]) -> Delivery | None:
        """Return the message that has been due for longest."""
        now, seconds = self._database.now, self._lease_seconds
        if not self._is_ready() or not await self._database.read(lambda of: records.any_message(of, now(of))):
            return None
        row = await self._database.write(lambda to: records.take_message(to, now(to), sending, full, seconds))
        if row is None:
            return None
        return Delivery(row.id, row.url, bytes(row.payload), row.attempts, row.created_at)

    async def delivered(self, id: str) -> None:  # noqa: A002 - the webhook's `id`
        """Remove a message."""
        await self._database.write(partial(records.delivered, message=id))

    async def failed(self, id: str, delay: float | None, reason: str) -> None:  # noqa: A002, ARG002 - it is logged
        """Set the time of the next attempt, or remove the message."""
        if delay is None:
            await self.delivered(id)
        else:
            await self._database.write(lambda to: records.postponed(to, id, self._database.now(to) + delay))


def open_store(gateway: Gateway, *, on_machine: bool) -> Store | None:
    """Return the store that the settings ask for; None if calls are not stored."""
    wanted = gateway.settings.gateway
    if not wanted.calls_enabled:
        return None
    if wanted.calls_database:
        return Store(gateway, None)
    if wanted.calls_dir != Path():
        state_dir.make(wanted.calls_dir, "PERCORE_GATEWAY_CALLS_DIR")
        return Store(gateway, wanted.calls_dir)
    if not on_machine:
        return None
    try:
        folder = default_folder(gateway.settings.server.port)
        state_dir.make(folder, "PERCORE_GATEWAY_CALLS_DIR")
    except (StartError, RuntimeError) as error:
        log.warning("calls are not stored: %s", error)
        return None
    return Store(gateway, folder)


def default_folder(port: int) -> Path:
    """Return the default folder on one machine; raise RuntimeError if the user has no home.

    Source: the XDG Base Directory Specification.
    """
    given = os.environ.get("XDG_STATE_HOME", "")
    state = Path(given) if given.startswith("/") else Path.home() / ".local/state"
    return state / "percore" / f"calls-{port}"
