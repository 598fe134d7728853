"""One line of HAProxy's log: what became of one call. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

CODES = frozenset(map(str, (200, 400, 401, 404, 405, 408, 413, 415, 429, 500, 502, 503, 504)))
ABANDONED, OTHER = "abandoned", "other"
REJECTED = {400: "bad-request", 408: "body-timeout", 413: "body-too-large", 429: "queue-full"}
"""What HAProxy itself answers; a pod's own answer with one of these statuses ends otherwise."""
WAIT_TIMEOUT, NO_POD = "wait-timeout", "no-pod"
CODE_LABELS = CODES | {ABANDONED, OTHER}
REASON_LABELS = frozenset({*REJECTED.values(), WAIT_TIMEOUT, NO_POD})


@dataclass(frozen=True, slots=True)
class Line:
    """One call, as HAProxy saw it. Times are in seconds; None where the call did not get so far."""

    life: str
    number: int
    status: int
    end: str
    """HAProxy's two letters: who ended it, and in which phase."""
    wait: float | None
    run: float | None
    total: float
    retries: int
    place: tuple[str, int] | None
    ahead: int | None
    """How many calls waited when it came."""
    fields: Mapping[str, Any]

    @property
    def abandoned(self) -> bool:
        """Whether its client went away."""
        return self.end.startswith("C")

    @property
    def code(self) -> str:
        """Its status as a label."""
        if self.abandoned:
            return ABANDONED
        return str(self.status) if str(self.status) in CODES else OTHER

    @property
    def rejected(self) -> str | None:
        """Why HAProxy refused it unrun, if it did."""
        if self.end == "sQ":
            return WAIT_TIMEOUT
        if self.end in ("SC", "sC"):
            return NO_POD
        return REJECTED.get(self.status) if self.end[:1] in "LPcR" and self.place is None else None

    @property
    def waited(self) -> float | None:
        """How long it waited for a pod, also where that was in vain."""
        if self.wait is not None:
            return self.wait
        return self.total if self.end[1:] == "Q" else None


def parse(text: bytes) -> Line:
    """Read one line; raise ValueError where it makes no sense."""
    try:
        fields = orjson.loads(text)
        address, port = fields["address"], fields["port"]
        return Line(
            life=fields["life"],
            number=fields["line"],
            status=fields["status"],
            end=fields["end"],
            wait=_seconds(fields["wait"]),
            run=_seconds(fields["run"]),
            total=max(0, fields["total"]) / 1000,
            retries=int(fields["retries"].lstrip("+")),
            place=(address, int(port)) if port.isdigit() and port != "0" else None,
            ahead=_ahead(fields["ahead"]),
            fields=fields,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{error!r} in {text[:200]!r}") from error


def _ahead(text: str) -> int | None:
    """Return how many calls waited when this one came; none is -1 while the second of our own callers is not there yet."""
    return max(0, int(text)) if text.lstrip("-").isdigit() else None


def _seconds(milliseconds: int) -> float | None:
    return milliseconds / 1000 if milliseconds >= 0 else None
