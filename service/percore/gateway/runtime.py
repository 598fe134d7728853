"""HAProxy's runtime API, over its unix socket: what it does now, and the few things that may be changed while it runs.

Each batch has a connection of its own, so a restart of HAProxy needs no word here. What is special to HAProxy 2.6 stays here:
``set server B/S addr A port P`` and then ``state ready`` adds a pod without a reload, and the server is up before its first
check; ``check-port`` gives the exporter's port to its checks, which go to the server's address while ``check-addr`` is unset.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from percore.gateway.plan import Admin, Assign, Command, Drain, Health, Ready, Release, Server, Snapshot

CALLS, READERS, POD = "pods", "readers", "pod"
HOLD = ("hold1", "hold2")
ANSWER_SECONDS = 5.0
BATCH = 50
"""Commands in one line; HAProxy reads no line longer than its buffer."""
CHANGED = ("IP changed from", "port changed from", "no need to change", "health check port updated")
MAINTENANCE, DRAINING = 0x01 | 0x02 | 0x20 | 0x40, 0x08 | 0x10
"""Bits of ``srv_admin_state``, as HAProxy's management guide lists them; 0x04 only tells how the configuration had it."""
BACKENDS_AND_SERVERS = 2 + 4


class HAProxyError(OSError):
    """HAProxy cannot be reached, or refuses a command."""


class HAProxy:
    """One HAProxy, by the path of its socket."""

    def __init__(self, path: Path, seconds: float = ANSWER_SECONDS) -> None:
        self._path = str(path)
        self._seconds = seconds

    def ask(self, line: str) -> str:
        """Send one line of commands, with ``;`` between them, and return the answer."""
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(self._seconds)
                connection.connect(self._path)
                connection.sendall(line.encode() + b"\n")
                answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        except OSError as error:
            raise HAProxyError(error.errno, f"{self._path}: {error.strerror or error}") from error
        return answer.decode(errors="replace")

    def snapshot(self) -> Snapshot:
        """Return every server, and how many calls wait and run; the callers that occupy ``hold`` are left out."""
        try:
            return self._snapshot()
        except (KeyError, ValueError) as error:
            raise HAProxyError(f"{self._path}: an answer that makes no sense: {error!r}") from error

    def _snapshot(self) -> Snapshot:
        places = _rows(self.ask(f"show servers state {CALLS}"), " ")
        counts = {row["svname"]: row for row in _rows(self.ask(f"show stat {CALLS} {BACKENDS_AND_SERVERS} -1"), ",")}
        servers = tuple(_server(row, counts[row["srv_name"]]) for row in places if row["srv_name"] not in HOLD)
        hold, total = [counts[name] for name in HOLD], int(counts["BACKEND"]["scur"])
        executing = sum(server.sessions for server in servers)
        occupants = sum(int(row["scur"]) + int(row["qcur"]) for row in hold)
        held = all(int(row["scur"]) and int(row["qcur"]) for row in hold)
        return Snapshot(servers, executing, waiting=max(0, total - occupants - executing), held=held)

    def apply(self, commands: Iterable[Command]) -> None:
        """Carry out commands, in their order; raise HAProxyError where it refuses one."""
        self._send([line for command in commands for line in lines_of(command)])

    def drain(self) -> None:
        """Have callers close their connections once they are answered, so that they turn to another gateway."""
        self._send(["experimental-mode on", "set var proc.draining bool(true)"])

    def _send(self, lines: Sequence[str]) -> None:
        for start in range(0, len(lines), BATCH):
            answers = self.ask(";".join(lines[start : start + BATCH])).splitlines()
            for answer in filter(None, map(str.strip, answers)):
                if not answer.startswith(CHANGED):
                    raise HAProxyError(f"{self._path}: {answer}")


def lines_of(command: Command) -> Iterator[str]:
    """Yield HAProxy's commands for one of ours."""
    calls, readers = f"set server {CALLS}/{POD}{command.slot}", f"set server {READERS}/{POD}{command.slot}"
    match command:
        case Assign(_, endpoint):
            yield f"{calls} check-port {endpoint.exporter_port}"
            yield f"{calls} addr {endpoint.address} port {endpoint.port}"
            yield f"{readers} addr {endpoint.address} port {endpoint.exporter_port}"
            yield f"{calls} state ready"
            yield f"{readers} state ready"
        case Ready():
            # Out of `drain` alone it would take none of the calls that wait, until some call ends.
            yield f"{calls} state maint"
            yield f"{calls} state ready"
            yield f"{readers} state ready"
        case Drain():
            yield f"{calls} state drain"
            yield f"{readers} state maint"
        case Release():
            yield f"{calls} state maint"
            yield f"{readers} state maint"


def _rows(text: str, separator: str) -> Iterator[dict[str, str]]:
    """Yield the rows of a table whose first line, after ``#``, names the columns."""
    lines = [line for line in text.splitlines() if line]
    start = next((number for number, line in enumerate(lines) if line.startswith("# ")), None)
    if start is None:
        raise HAProxyError(f"expected a table, got {text[:100]!r}")
    names = lines[start][2:].split(separator)
    for line in lines[start + 1 :]:
        yield dict(zip(names, line.split(separator), strict=False))


def _server(place: dict[str, str], count: dict[str, str]) -> Server:
    return Server(
        slot=int(place["srv_name"].removeprefix(POD)),
        address=place["srv_addr"],
        port=int(place["srv_port"]),
        admin=_admin(int(place["srv_admin_state"])),
        health=_health(count["status"], count["check_code"]),
        sessions=int(count["scur"]),
    )


def _admin(bits: int) -> Admin:
    if bits & MAINTENANCE:
        return Admin.FREE
    return Admin.DRAIN if bits & DRAINING else Admin.READY


def _health(status: str, check_code: str) -> Health:
    """Return what checks say; 404 is ``taken`` also where a refused call had put the server down before."""
    if status.startswith("NOLB") or (status.startswith("DOWN") and check_code == "404"):
        return Health.TAKEN
    return Health.DOWN if status.startswith("DOWN") else Health.UP
