"""How many calls there are, how they end, and how long they take from a caller's view."""

from __future__ import annotations

from collections.abc import Iterator

from deploy.monitoring import panels as make
from deploy.monitoring.queries import FAILED, GATEWAY, a_minute, line, quantiles

COUNT = "percore_gateway_call_seconds_count"


def panels() -> Iterator[make.Panel]:
    """Yield the row's panels."""
    ended = make.lines(
        "Calls that ended, a minute",
        "By status; rare statuses by class, such as `2xx`. `disconnected`: the client disconnected before its answer. "
        "If all lines rise, there is more load.",
        "cpm",
        [line(a_minute(COUNT, GATEWAY, "code"), "{{code}}")],
    )
    yield make.stacked(ended.interval(make.FEW_CALLS))
    failed = make.lines(
        "Failed calls, a minute",
        "Calls that failed by a fault of the release. 429: the queue is full. 500: the model raises, see the pods' logs. "
        "502: pods die. 503: the queue timeout has passed, or the gateway is overloaded. 504: the run timeout has passed. "
        "5xx: a handler answered with another such status. "
        "The runbook says more.",
        "cpm",
        [line(a_minute(COUNT, f'{GATEWAY},code=~"{FAILED}"', "code"), "{{code}}")],
    )
    yield make.stacked(failed.interval(make.FEW_CALLS))
    yield make.lines(
        "Duration as callers see it",
        "From a call's arrival to the end of its answer, queue time included, of calls that were answered 200. "
        "Longer than a timeout in front of the gateway: that timeout cuts calls, so raise it.",
        "s",
        quantiles("percore_gateway_call_seconds", f'{GATEWAY},code="200"'),
    ).interval(make.FEW_CALLS)
