"""How many calls wait in the kernel's accept queue, from ``/proc/net/tcp``: no process needs to hold the socket for it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

LISTEN = "0A"
TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))


def queued(lines: Iterable[str], port: int) -> int:
    """Return the accept queue's length on ``port``: of a listening socket that is the column ``rx_queue``."""
    suffix = f":{port:04X}"
    total = 0
    for line in lines:
        fields = line.split()
        if fields[1].endswith(suffix) and fields[3] == LISTEN:
            total += int(fields[4].partition(":")[2], 16)
    return total


def waiting(port: int, tables: Iterable[Path] = TABLES) -> int:
    """Return how many connections wait to be accepted on ``port`` in this network namespace."""
    total = 0
    for table in tables:
        try:
            with table.open() as lines:
                next(lines)
                total += queued(lines, port)
        except OSError:  # no IPv6 here
            continue
    return total
