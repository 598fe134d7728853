"""The measurements of one call, and the summary of a burst of calls. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a burst; times are seconds since the burst began."""

    sent: float
    ended: float
    """When the last byte of the answer came, or the connection broke."""
    started: float | None = None
    """When the handler began to run it; None if the call failed before this was known."""
    run: float | None = None
    """How long the handler ran."""
    core: int | None = None
    """The core on which it began to run."""
    failure: str = ""
    """The error that the client saw; empty if it got an answer."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The columns of the first table."""

    run_mean: float | None
    """Run time of a call, as a multiple of the same call alone."""
    run_max: float | None
    first: float | None
    """Latency of the first answer and of the last, in seconds."""
    last: float | None
    makespan: float | None
    """From the first call sent to the last answer, as a multiple of the ideal; None if a call failed."""
    failed: int
    failures: str
    """The errors of the failed calls, each with its count."""


def ideal(calls: int, cores: int, alone: float) -> float:
    """Return how long ``calls`` take if no two share a core and no core is idle before the last call begins."""
    return math.ceil(calls / cores) * alone


def summarise(calls: Sequence[Call], alone: float, best: float) -> Summary:
    """Compare a burst with one call alone, and with the ideal makespan ``best``. All times are in seconds."""
    answered = [call for call in calls if not call.failure]
    runs = [call.run / alone for call in answered if call.run is not None]
    ended = sorted(call.ended for call in answered)
    failed = len(calls) - len(answered)
    return Summary(
        run_mean=sum(runs) / len(runs) if runs else None,
        run_max=max(runs, default=None),
        first=ended[0] if ended else None,
        last=ended[-1] if ended else None,
        makespan=(ended[-1] - min(call.sent for call in calls)) / best if ended and not failed else None,
        failed=failed,
        failures=", ".join(
            f"{count} x {what}" for what, count in Counter(each.failure for each in calls if each.failure).items()
        ),
    )


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value that ``share`` of ``values`` do not exceed, interpolated between neighbours."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


SLACK_SECONDS = 0.05
"""An overlap that is shorter than this does not count, because the client sees the end of a call a little late."""


def most_at_once(calls: Sequence[Call]) -> int:
    """Return how many calls ran at the same moment, at most."""
    ran = [(call.started, call.run) for call in calls if call.started is not None and call.run is not None]
    known = [(start, start + max(0.0, run - SLACK_SECONDS)) for start, run in ran]
    edges = sorted([(end, -1) for _, end in known] + [(start, 1) for start, _ in known])
    running = most = 0
    for _, change in edges:
        running += change
        most = max(most, running)
    return most
