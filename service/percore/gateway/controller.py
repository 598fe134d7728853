"""The loop that keeps HAProxy equal to the endpoints. It decides nothing: ``plan`` does."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from typing import Protocol

from percore.gateway import plan
from percore.gateway.endpoints import Endpoints
from percore.gateway.plan import Command, Snapshot
from percore.gateway.telemetry import GatewayTelemetry

log = logging.getLogger("percore.gateway")


class Proxy(Protocol):
    """What the loop needs of HAProxy; both raise OSError while it cannot be reached."""

    def snapshot(self) -> Snapshot:
        """Return what it does now."""

    def apply(self, commands: Iterable[Command]) -> None:
        """Carry out commands."""


class Controller:
    """One gateway's controller. ``publish`` may be called from any thread, the rest from one."""

    def __init__(self, proxy: Proxy, telemetry: GatewayTelemetry, *, dry_run: bool = False) -> None:
        self._proxy = proxy
        self._telemetry = telemetry
        self._dry_run = dry_run
        self._changed = threading.Event()
        self._endpoints: Endpoints | None = None
        self._names: dict[tuple[str, int], str] = {}
        self._latest: Snapshot | None = None
        self._trouble: str | None = None

    def publish(self, endpoints: Endpoints) -> None:
        """Take in what the endpoints are now."""
        self._names = {each.place: each.pod for each in plan.by_place(endpoints).values()}
        self._endpoints = endpoints
        self._changed.set()

    def pod_at(self, place: tuple[str, int]) -> str:
        """Return the name of the pod at an address and port, where it is known."""
        return self._names.get(place, "")

    def busy_pods(self) -> list[tuple[str, bool]] | None:
        """Return the name of each pod that may get calls, and whether it is busy, as of the last step; None before any."""
        if self._latest is None or self._endpoints is None:
            return None
        named = [(self.pod_at(server.place), server) for server in self._latest.servers if server.admin is plan.Admin.READY]
        return [(name, plan.busy(server)) for name, server in named if name]

    def run(self, interval: float) -> None:
        """Compare and correct whenever the endpoints change, and every ``interval`` seconds."""
        while True:
            self._changed.wait(interval)
            self._changed.clear()
            self.step()

    def step(self) -> list[Command]:
        """Compare once and correct; return the commands. A HAProxy that is away is tried again in the next step."""
        try:
            snapshot = self._proxy.snapshot()
            commands = self._correct(snapshot)
        except OSError as error:
            self._say(str(error))
            return []
        self._say("")
        self._latest = snapshot
        return commands

    def look(self) -> Snapshot | None:
        """Return what HAProxy does now; None while it is away."""
        try:
            return self._proxy.snapshot()
        except OSError:
            return None

    def observe(self) -> Snapshot | None:
        """Set the gauges to what HAProxy does now, and return it. While it is away they are absent: nothing is known."""
        to, snapshot = self._telemetry, self.look()
        to.in_flight.clear()
        to.pods.clear()
        if snapshot is None:
            to.haproxy_up.set(0)
            return None
        to.haproxy_up.set(1)
        to.in_flight.labels("executing").set(snapshot.executing)
        to.in_flight.labels("waiting").set(snapshot.waiting)
        states = plan.pods_by_state(snapshot.servers)
        for state in plan.POD_STATES:
            to.pods.labels(state).set(states[state])
        to.unplaced.set(plan.unplaced(self._endpoints or (), snapshot.servers))
        return snapshot

    def _correct(self, snapshot: Snapshot) -> list[Command]:
        if self._endpoints is None:  # not known yet; HAProxy keeps those it has
            return []
        commands = plan.plan(self._endpoints, snapshot.servers)
        if commands and not self._dry_run:
            self._proxy.apply(commands)
        for command in commands:
            log.info("%s%s", "would: " if self._dry_run else "", command)
        return commands

    def _say(self, trouble: str) -> None:
        """Log what is wrong with HAProxy when that changes, and not in each step."""
        if trouble != self._trouble:
            log.log(logging.ERROR if trouble else logging.INFO, "HAProxy: %s", trouble or "answers")
        self._trouble = trouble
