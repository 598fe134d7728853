"""A client that stores calls, for tests of one machine and of a gateway alone, with SQLite and with PostgreSQL."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import requests

from harness.service import Service, eventually

PREDICT = "/v1/models/default:predict"
ASYNC = {"Prefer": "respond-async"}
FINAL = ("succeeded", "failed", "cancelled", "expired")


class StoredClient:
    """Sends calls that are to be stored, and asks about them."""

    patience = 30.0
    """Seconds until a request must be answered, and until a call must have ended."""

    def url(self, path: str) -> str:
        raise NotImplementedError

    def offer(self, headers: dict[str, str] | None = None, timeout: float | None = None, **inputs: Any) -> requests.Response:
        """Send a call that is to be stored."""
        more = {**ASYNC, **(headers or {})}
        return requests.post(self.url(PREDICT), json={"inputs": inputs}, headers=more, timeout=timeout or self.patience)

    def store(self, headers: dict[str, str] | None = None, timeout: float | None = None, **inputs: Any) -> str:
        """Store a call and return the path of its status."""
        answer = self.offer(headers, timeout, **inputs)
        assert answer.status_code == 202, answer.text
        return answer.headers["Location"]

    def status(self, path: str, wait: int = 0) -> dict[str, Any]:
        headers = {"Prefer": f"wait={wait}"} if wait else {}
        answer = requests.get(self.url(path), headers=headers, timeout=wait + self.patience)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def ended(self, path: str, seconds: float | None = None) -> dict[str, Any]:
        """Wait until a call has ended, and return its status. The gateway or its store may be gone for a while."""
        found: dict[str, Any] = {}

        def look() -> bool:
            with contextlib.suppress(requests.ConnectionError, AssertionError):
                found.update(self.status(path, wait=5))
            return found.get("state") in FINAL

        eventually(look, seconds or self.patience)
        return found

    def result(self, path: str, **more: Any) -> requests.Response:
        return requests.get(self.url(f"{path}/result"), timeout=self.patience, **more)

    def cancel(self, path: str) -> dict[str, Any]:
        answer = requests.post(self.url(f"{path}/cancel"), timeout=self.patience)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


class Stored(StoredClient):
    """A service and a client of its stored calls, across restarts."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def url(self, path: str) -> str:
        return self.service.url(path)

    def ids(self) -> list[str]:
        return [each["id"] for each in self.service.get("/v1/calls?limit=1000").json()["calls"]]


def unfinished_calls(service: Service) -> list[tuple[str, str]]:
    """Return calls in the store that are not received whole, or have not ended."""
    with contextlib.closing(sqlite3.connect(folder(service) / "calls.sqlite3")) as connection:
        query = "SELECT id, state FROM calls WHERE state NOT IN ('succeeded', 'failed', 'cancelled', 'expired')"
        return connection.execute(query).fetchall()


def leaked(service: Service) -> list[object]:
    """Return files and pieces of bodies that no call has."""
    with contextlib.closing(sqlite3.connect(folder(service) / "calls.sqlite3")) as connection:
        # When a call has ended, its request is erased, and so is an answer that is not its result.
        query = (
            "SELECT call, kind FROM parts WHERE NOT EXISTS (SELECT 1 FROM calls"
            " WHERE sequence = parts.call AND state IN ('succeeded', 'failed') AND parts.kind = 1)"
        )
        pieces = connection.execute(query).fetchall()
    expected = {"calls.sqlite3", "calls.sqlite3-shm", "calls.sqlite3-wal", "lock"}
    return pieces + [path for path in folder(service).iterdir() if path.name not in expected]


def folder(service: Service) -> Path:
    """Return the folder of stored calls."""
    [found] = Path(service.environ["XDG_STATE_HOME"]).glob("percore/calls-*")
    return found
