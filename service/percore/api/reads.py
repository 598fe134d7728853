"""Answers reads (status, metadata, documents) from the catalog, without a worker. It keeps them until the catalog changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from flask import Flask

from percore.api.readonly import register
from percore.http.request import JSON, Answer
from percore.model_metadata import Catalog

MOST_KEPT = 1000
READY = "/v2/health/ready"


class Reads:
    """Answers to reads. Used from one thread."""

    def __init__(self, current: Callable[[], Catalog | None], ready: Callable[[], bool] | None = None) -> None:
        """Take ``current``, which returns the catalog. It returns the same object until the catalog changes.

        If ``ready`` returns True, the path ``READY`` is answered 200.
        """
        self._current = current
        self._ready = ready
        self._catalog: Catalog | None = None
        self._kept: dict[str, Answer] = {}
        self._app = Flask("percore-reads", static_folder=None)
        register(self._app, lambda: self._catalog)

    def answer(self, path: str) -> Answer:
        """Return the answer to a GET of this percent-encoded path."""
        catalog = self._current()
        if catalog is not self._catalog:
            self._catalog = catalog
            self._kept.clear()
        if path == READY and self._ready is not None and self._ready():
            return 200, JSON, b'{"ready":true}'
        kept = self._kept.get(path)
        if kept is None:
            kept = self._render(path)
            if kept[0] == 200 and len(self._kept) < MOST_KEPT and path != READY:
                self._kept[path] = kept
        return kept

    def _render(self, path: str) -> Answer:
        found: dict[str, Any] = {}

        def start_response(status: str, headers: list[tuple[str, str]], _exc_info: Any = None) -> None:
            found["status"], found["headers"] = int(status.split(" ", 1)[0]), headers

        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": unquote(path, "latin-1"),
            "QUERY_STRING": "",
            "SERVER_NAME": "percore",
            "SERVER_PORT": "8080",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "wsgi.url_scheme": "http",
            "wsgi.errors": None,
        }
        body = b"".join(self._app.wsgi_app(environ, start_response))  # type: ignore[arg-type]
        headers = [
            (name.encode("latin-1"), value.encode("latin-1"))
            for name, value in found["headers"]
            if name.lower() not in ("content-length", "connection")
        ]
        return found["status"], headers, body
