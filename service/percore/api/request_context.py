"""What an application reports to the worker about one call, for its log line and its metrics.

The worker puts a ``CallContext`` into the WSGI environ of each call, and reads it afterwards. This module imports nothing of
percore.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

ENVIRON_KEY = "percore.call"
APP = "app"
"""The name of a user's WSGI app in the catalog, and the route of a call whose route is not known."""
MOST_ROUTES = 200
"""Routes that become values of a metric's label. An app can add routes without end."""


@dataclass(slots=True)
class CallContext:
    """Model and version of one call, set as soon as they are known."""

    model: str = ""
    """The served model's name; empty until one is found, so that unknown names never become metric labels."""
    version: int = 0
    """The served version; 0 until it is found."""


def context_of(environ: MutableMapping[str, Any]) -> CallContext:
    """Return the context that the worker put into ``environ``; add one if there is none."""
    facts: CallContext | None = environ.get(ENVIRON_KEY)
    if facts is None:
        facts = environ[ENVIRON_KEY] = CallContext()
    return facts


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
