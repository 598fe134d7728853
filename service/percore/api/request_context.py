"""What an application tells the worker about one call, for its log line and its metrics.

Imports nothing of percore; the worker puts one ``CallContext`` a call into the WSGI environ and reads it afterwards.
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
    """Facts of one call, filled in as soon as they are known."""

    model: str = ""
    """The served model's name; empty until one is found, so that unknown names never become metric labels."""
    version: int = 0
    """The served version; 0 until it is found."""


def context_of(environ: MutableMapping[str, Any]) -> CallContext:
    """Return the facts that the worker put into ``environ``; put fresh ones there where it did not."""
    facts: CallContext | None = environ.get(ENVIRON_KEY)
    if facts is None:
        facts = environ[ENVIRON_KEY] = CallContext()
    return facts


class Routes:
    """The routes of a user's app that served calls, as templates (``/predict/<name>``): a bounded number of them."""

    def __init__(self, most: int = MOST_ROUTES) -> None:
        self._most = most
        self._known: set[str] = set()

    def of(self, environ: Mapping[str, Any]) -> str:
        """Return the route that serves this request. ``app`` if there is none, if the app is not Flask, or after too many.

        While Flask serves a request, its request object is in the environ, and has the route that matched.
        """
        rule = getattr(getattr(environ.get("werkzeug.request"), "url_rule", None), "rule", None)
        if not isinstance(rule, str) or (rule not in self._known and len(self._known) >= self._most):
            return APP
        self._known.add(rule)
        return rule
