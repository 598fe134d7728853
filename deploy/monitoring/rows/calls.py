"""How many calls there are, how they end, and how long callers have to wait for the end."""

from __future__ import annotations

from collections.abc import Iterator

from deploy.monitoring import panels as make
from deploy.monitoring.queries import FAILED, GATEWAY, a_minute, line, quantiles

COUNT = "percore_gateway_call_duration_seconds_count"


def panels() -> Iterator[make.Panel]:
    """Yield the row's panels."""
    ended = make.lines(
        "Calls that ended, a minute",
        "By status; `abandoned` are those whose caller left. More of everything: more load. More than pods can serve: "
        "calls wait.",
        "cpm",
        [line(a_minute(COUNT, GATEWAY, "code"), "{{code}}")],
    )
    yield make.stacked(ended.interval(make.FEW_CALLS))
    failed = make.lines(
        "Failed calls, a minute",
        "Calls that were owed an answer. 429: the queue is full. 500: the model raises, see the pods' logs. 502: pods die. "
        "503: the wait limit has passed, or no pod was reached. 504: the run limit has passed. The runbook says more.",
        "cpm",
        [line(a_minute(COUNT, f'{GATEWAY},code=~"{FAILED}"', "code"), "{{code}}")],
    )
    yield make.stacked(failed.interval(make.FEW_CALLS))
    yield make.lines(
        "Duration as callers see it",
        "From a call's arrival to the end of its answer, waiting included, where it was answered. "
        "Longer than a timeout in front of the gateway: callers are cut off there, so raise that.",
        "s",
        quantiles("percore_gateway_call_duration_seconds", f'{GATEWAY},code="200"'),
    ).interval(make.FEW_CALLS)
