"""Stored calls: how many there are, how they end, and whether there is room for more. Empty if no calls are stored."""

from __future__ import annotations

from collections.abc import Iterator

from deploy.monitoring import panels as make
from deploy.monitoring.queries import GATEWAY, line
from deploy.monitoring.rows.gateway import LIMIT

UP = {0: ("not used", "orange"), 1: ("in use", "green")}


def panels() -> Iterator[make.Panel]:
    """Yield the row's panels."""
    yield from _calls()
    yield from _ends()
    yield from _store()


def _calls() -> Iterator[make.Panel]:
    # Gateways that share a database all say the same, so the sum would be too high.
    yield make.steps_of(
        make.lines(
            "Stored calls",
            "Stored calls by state. Calls that have ended stay until their retention is over (calls.retentionSeconds).",
            "none",
            [line(f"max by (state) (percore_stored_calls{{{GATEWAY}}})", "{{state}}")],
        )
    )
    yield make.lines(
        "Oldest stored call",
        "Time since the oldest stored call of each state was received. If the oldest queued call gets older and "
        "older, there are too few pods, or calls with a higher priority take them all.",
        "s",
        [line(f"max by (state) (percore_stored_call_oldest_age_seconds{{{GATEWAY}}})", "{{state}}")],
    )
    store = make.lines(
        "Bytes of stored calls",
        "Bytes of bodies and results, and their limit (dashed). At the limit new calls with `Prefer: respond-async` get"
        " 503: raise calls.bytes (and the size of the volume), or lower calls.retentionSeconds.",
        "bytes",
        [
            line(f"max(percore_stored_bytes{{{GATEWAY}}})", "stored"),
            line(f"max(percore_stored_bytes_limit{{{GATEWAY}}})", "limit"),
        ],
    )
    yield store.override_by_name("limit", LIMIT)


def _ends() -> Iterator[make.Panel]:
    yield make.rises_a_minute(
        "Ends of stored calls, a minute",
        "How stored calls ended. `expired`: they did not begin in the time that the caller gave them. `failed`: the result "
        "has a status of 400 or more.",
        "percore_stored_calls_ended_total",
        "state",
    )
    yield make.rises_a_minute(
        "Runs of stored calls, a minute",
        "How runs ended. `pod-lost`, `gateway-lost`: the call runs again, or has failed; see how the pods ended. "
        "`not-begun`: a pod was lost before it had the whole call, and nothing was computed.",
        "percore_stored_call_runs_total",
        "end",
    )
    yield make.rises_a_minute(
        "Webhooks, a minute",
        "Attempts to send a webhook. `failed`: it is tried again. `given-up`: no attempt succeeded for a day, or the "
        "receiver answered 410; see the gateway's log.",
        "percore_webhook_attempts_total",
        "outcome",
    )


def _store() -> Iterator[make.Panel]:
    yield make.states(
        "Store of calls",
        "Whether each gateway uses the store. With a volume a new gateway does not use it until the old one has ended. If "
        "no gateway uses it, look at the gateway's log, and at the volume or the database.",
        line(f"min by (pod) (percore_stored_calls_up{{{GATEWAY}}})", "{{pod}}"),
        UP,
    ).span(24)
