"""What the application tells the worker about one call, for its log line and its metrics.

Imports nothing of percore; the worker puts one ``CallContext`` a call into the WSGI environ and reads it afterwards.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

ENVIRON_KEY = "percore.call"


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
