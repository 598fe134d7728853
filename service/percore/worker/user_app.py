"""Differences between serving a user's WSGI app and serving percore's own application.

Every request is a call, except requests of percore's own paths under ``/-/``. The app sees the request as under Gunicorn alone:
it does not see the gateway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any

from gunicorn.config import Config

from percore.http import own_paths
from percore.worker import answer, receive

APP = "app"
"""The name of a user's app in the catalog, and the route of a call whose route is not known."""
MOST_ROUTES = 200
"""How many routes may become values of a metric's label. An app can add routes without end."""
CLIENT = "HTTP_PERCORE_CLIENT"
"""The address of the gateway's client. The gateway sets this header, and drops a client's own header of that name."""


class UserApp:
    """A user's app, as ``exchange`` serves it."""

    def __init__(self) -> None:
        self.route = Routes().of
        config = Config()  # Gunicorn's defaults come from FORWARDED_ALLOW_IPS
        self._trusts_all = "*" in config.forwarded_allow_ips
        self._trusted = config.forwarded_allow_networks()
        self._https: dict[str, str] = config.secure_scheme_headers

    @staticmethod
    def is_call(path: str) -> bool:
        """Return whether a request with this percent-encoded path is for the app."""
        return not own_paths.is_reserved(path)

    @staticmethod
    def own_answer(head: receive.Head, more: Sequence[tuple[str, str]]) -> list[receive.Buffer]:
        """Return the answer to a request of percore's own paths, with ``more`` headers. A worker that answers is ready."""
        status, headers, body = own_paths.answer(head.method, head.path, reason="")
        fields = [(name.decode(), value.decode()) for name, value in headers]
        fields += [("Content-Length", str(len(body))), *more]
        whole = answer.head_of(f"{status} {HTTPStatus(status).phrase}", fields)
        return [whole if head.method == "HEAD" else whole + body]

    def adapt(self, environ: dict[str, Any], headers: Sequence[tuple[str, str]], *, by_gateway: bool) -> None:
        """Change the environ, so that the app sees the request as without a gateway."""
        client = environ.pop(CLIENT, "")
        if by_gateway and client:
            environ["REMOTE_ADDR"] = client
            environ.pop("REMOTE_PORT", None)
        if self._trusts(environ["REMOTE_ADDR"]):
            schemes = {"https" if value == self._https[name] else "http" for name, value in headers if name in self._https}
            environ["wsgi.url_scheme"] = "https" if schemes == {"https"} else "http"
        if environ["CONTENT_LENGTH"] == "0" and environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            del environ["CONTENT_LENGTH"]  # the gateway sends this length with every call without a body

    def _trusts(self, client: str) -> bool:
        """Return whether this is a proxy that may set the scheme."""
        if self._trusts_all:
            return True
        try:
            address = ip_address(client)
        except ValueError:  # the peer of a unix socket has no address
            return False
        return any(address in network for network in self._trusted)


class Routes:
    """The routes of a user's app, as Flask writes them (``/predict/<name>``). Their number is bounded."""

    def __init__(self, most: int = MOST_ROUTES) -> None:
        self._most = most
        self._known: set[str] = set()

    def of(self, environ: Mapping[str, Any]) -> str:
        """Return the route of this request; ``app`` if it has none, if the app is not Flask, or if there are too many routes.

        While Flask serves a request, its request object is in the environ, and has the route that matched.
        """
        rule = getattr(getattr(environ.get("werkzeug.request"), "url_rule", None), "rule", None)
        if not isinstance(rule, str) or (rule not in self._known and len(self._known) >= self._most):
            return APP
        self._known.add(rule)
        return rule
