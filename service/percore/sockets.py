"""Options of sockets.

A kernel may lack an option, for example in a sandbox. Then the service runs without it and logs a line once.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterable
from typing import Protocol

log = logging.getLogger("percore.sockets")

Option = tuple[int, str, int | bytes]
"""Level, the name of the option in the module ``socket``, and the value."""
_logged: set[str] = set()


class HasOptions(Protocol):
    """A socket, or an event loop's object for it."""

    def setsockopt(self, level: int, option: int, value: int | bytes, /) -> None:
        """Set an option; raise OSError if the kernel does not have it."""


def keepalive(idle: int, interval: int, count: int) -> tuple[Option, ...]:
    """Return the options for probes: the kernel probes a silent peer after ``idle`` seconds, then each ``interval`` seconds.

    After ``count`` probes without an answer the connection ends. Probes also keep an idle connection alive in NAT and in load
    balancers, which forget it after some minutes (AWS: 350 s).
    """
    return (
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", idle),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", interval),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", count),
    )


def set_options(each: HasOptions, options: Iterable[Option]) -> list[tuple[int, int, int | bytes]]:
    """Set these options, and return those that the kernel has, by number. Log each missing option once."""
    found = []
    for level, name, value in options:
        try:
            number = getattr(socket, name)
            each.setsockopt(level, number, value)
        except (OSError, AttributeError) as error:
            _log_once(name, error)
        else:
            found.append((level, number, value))
    return found


def usable(options: Iterable[Option]) -> list[tuple[int, int, int | bytes]]:
    """Return the TCP options that the kernel has, by number, for a library that would fail on any other one."""
    with socket.socket() as trial:
        return set_options(trial, options)


def _log_once(name: str, error: Exception) -> None:
    if name not in _logged:
        _logged.add(name)
        log.warning("the kernel has no socket option %s (%s): the service runs without it", name, error)
