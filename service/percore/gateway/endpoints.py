"""Endpoints: the addresses of pods, and the sources of endpoints without Kubernetes."""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

ENTRY = re.compile(r"\[?([0-9a-fA-F.:]+?)\]?:(\d{1,5})/(\d{1,5})(?:=([a-z-]+))?")
READ_SECONDS = 0.1
"""How often a file of endpoints is read."""


class State(StrEnum):
    """The state of an endpoint, as its source lists it."""

    READY = "ready"
    """It may get calls."""
    NOT_READY = "not-ready"
    """It may get calls too. The gateway reserves it, and the pod answers the reservation when it is ready and free."""
    TERMINATING = "terminating"
    """It gets no more calls. A call that runs there goes on."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A pod, as the source of endpoints lists it."""

    address: str
    """A host, or the path of a unix socket."""
    port: int
    status_port: int
    state: State = State.READY
    pod: str = ""
    """The pod's name; empty if the source does not name it."""


Endpoints = tuple[Endpoint, ...]
Publish = Callable[[Endpoints], None]


class Source(Protocol):
    """A source of endpoints."""

    def follow(self, publish: Publish) -> None:
        """Call ``publish`` with all endpoints, at once and after each change. It blocks, so it needs a thread of its own."""


def parse(text: str) -> Endpoints:
    """Read ``ADDRESS:PORT/STATUS_PORT[=STATE]`` entries, with commas or line ends between them."""
    return tuple(_entry(entry) for entry in filter(None, (part.strip() for part in re.split("[,\n]", text))))


def _entry(text: str) -> Endpoint:
    match = ENTRY.fullmatch(text)
    if match is None:
        raise ValueError
    address, port, status_port, state = match.groups()
    if not (0 < int(port) < 65536 and 0 < int(status_port) < 65536):
        raise ValueError
    return Endpoint(str(ipaddress.ip_address(address)), int(port), int(status_port), State(state or State.READY))


class Fixed:
    """Endpoints that never change."""

    def __init__(self, endpoints: Endpoints) -> None:
        self._endpoints = endpoints

    def follow(self, publish: Publish) -> None:
        """Publish them once."""
        publish(self._endpoints)


class EndpointsFile:
    """Endpoints in a file. The program that starts pods replaces the file in one piece, by renaming."""

    def __init__(self, path: Path, sleep: Callable[[float], None] = time.sleep) -> None:
        self._path = path
        self._sleep = sleep

    def follow(self, publish: Publish) -> None:
        """Publish the endpoints of the file, and again after each change.

        While the file is missing or wrong, the last endpoints stay.
        """
        seen: str | None = None
        published: Endpoints | None = None
        while True:
            text = self._read()
            if text is not None and text != seen:  # a thousand lines take milliseconds to parse
                seen = text
                found = self._parsed(text)
                if found is not None and found != published:
                    publish(found)
                    published = found
            self._sleep(READ_SECONDS)

    @staticmethod
    def _parsed(text: str) -> Endpoints | None:
        with suppress(ValueError):
            return parse(text)
        return None

    def _read(self) -> str | None:
        """Return the content of the file; None if it cannot be read."""
        try:
            return self._path.read_text()
        except (OSError, ValueError):
            return None
