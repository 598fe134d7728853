"""Which pods there are: what an endpoint is, and the sources that tell of them where there is no Kubernetes."""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

ENTRY = re.compile(r"\[?([0-9a-fA-F.:]+?)\]?:(\d{1,5})/(\d{1,5})(?:=([a-z-]+))?")
LOOK_SECONDS = 0.1


class State(StrEnum):
    """What may be done with an endpoint."""

    READY = "ready"
    """It may get calls."""
    NOT_READY = "not-ready"
    """It gets none for now; one that runs there goes on."""
    TERMINATING = "terminating"
    """It gets none any more; one that runs there goes on."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A pod, as whoever watches over pods sees it."""

    address: str
    port: int
    exporter_port: int
    state: State = State.READY
    pod: str = ""
    """The pod's name, where it has one."""

    @property
    def place(self) -> tuple[str, int]:
        """Where it takes calls: what tells it from others."""
        return self.address, self.port


Endpoints = tuple[Endpoint, ...]
Publish = Callable[[Endpoints], None]


class Source(Protocol):
    """Whoever knows the endpoints."""

    def read(self) -> Endpoints:
        """Return those there are now; raise OSError where that cannot be said."""

    def follow(self, publish: Publish) -> None:
        """Call ``publish`` with all of them, at once and after each change; blocks, for a thread of its own."""


def parse(text: str) -> Endpoints:
    """Read ``ADDRESS:PORT/EXPORTER_PORT[=STATE]`` entries, with commas or line ends between them."""
    return tuple(_entry(entry) for entry in filter(None, (part.strip() for part in re.split("[,\n]", text))))


def _entry(text: str) -> Endpoint:
    match = ENTRY.fullmatch(text)
    if match is None:
        raise ValueError
    address, port, exporter_port, state = match.groups()
    if not (0 < int(port) < 65536 and 0 < int(exporter_port) < 65536):
        raise ValueError
    return Endpoint(str(ipaddress.ip_address(address)), int(port), int(exporter_port), State(state or State.READY))


class Fixed:
    """Endpoints that never change."""

    def __init__(self, endpoints: Endpoints) -> None:
        self._endpoints = endpoints

    def read(self) -> Endpoints:
        """Return them."""
        return self._endpoints

    def follow(self, publish: Publish) -> None:
        """Publish them once."""
        publish(self._endpoints)


class Listed:
    """Endpoints in a file, which whoever starts pods writes anew, in one piece (by renaming), whenever they change."""

    def __init__(self, path: Path, sleep: Callable[[float], None] = time.sleep) -> None:
        self._path = path
        self._sleep = sleep

    def read(self) -> Endpoints:
        """Return what the file says; raise OSError where it cannot be read or understood."""
        try:
            return parse(self._path.read_text())
        except ValueError:
            raise OSError(f"{self._path}: holds what is no endpoint") from None

    def follow(self, publish: Publish) -> None:
        """Read the file again whenever it changes; where it is missing or wrong, what was known stays."""
        known: Endpoints | None = None
        while True:
            known = self._look(known, publish)
            self._sleep(LOOK_SECONDS)

    def _look(self, known: Endpoints | None, publish: Publish) -> Endpoints | None:
        try:
            found = self.read()
        except OSError:
            return known
        if found != known:
            publish(found)
        return found
