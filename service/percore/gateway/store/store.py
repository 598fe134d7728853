"""The store of a gateway: its parts, put together."""

from __future__ import annotations

import logging
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

from percore import state_dir
from percore.errors import BadInput, StartError
from percore.gateway.store.database import Database
from percore.gateway.store.routes import Routes
from percore.gateway.store.store_metrics import StoreMetrics
from percore.gateway.store.stored_calls import StoredCalls, StoreSettings, Surroundings

if TYPE_CHECKING:
    from percore.gateway.process import Gateway

log = logging.getLogger("percore.gateway.store")

BASE, BASE_BESIDE_AN_APP = "/v1/calls", "/-/calls"


class Store:
    """Everything that has to do with stored calls."""

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
        around = Surroundings(
            queue=gateway.queue,
            dispatcher=gateway.dispatcher,
            intake=gateway.intake,
            limits=gateway.intake_limits,
            name=gateway.name,
            port=settings.server.port,
            write_line=gateway.write_line,
        )
        self._stored = StoredCalls(bounds, Database(folder, wanted.calls_database), around, metrics)
        self.base = BASE_BESIDE_AN_APP if settings.app.target else BASE
        self.routes = Routes(self._stored, self.base, settings.limits.answer_timeout, _no_webhooks)

    def tasks(self) -> list[Coroutine[Any, Any, None]]:
        """Return what runs as long as the gateway."""
        return [self._stored.run()]

    @property
    def busy(self) -> int:
        """How many runs have not ended."""
        return self._stored.busy

    def stop(self) -> None:
        """Give no more stored calls to pods."""
        self._stored.stop()

    async def close(self) -> None:
        """Leave everything to the next gateway."""
        await self._stored.close()


def _no_webhooks(url: str) -> None:
    raise BadInput(f"Percore-Webhook: this service sends no webhooks, got {url[:100]!r}")


def open_store(gateway: Gateway, *, on_machine: bool) -> Store | None:
    """Return the store that the settings ask for; None if there is none."""
    wanted = gateway.settings.gateway
    if not wanted.calls:
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
    """Return the folder of one machine; raise RuntimeError if the user has no home.

    Source: the XDG Base Directory Specification.
    """
    given = os.environ.get("XDG_STATE_HOME", "")
    state = Path(given) if given.startswith("/") else Path.home() / ".local/state"
    return state / "percore" / f"calls-{port}"
