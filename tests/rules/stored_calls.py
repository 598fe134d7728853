"""Alerts on stored calls: they cannot be stored, are not computed, or are lost."""

from __future__ import annotations

from collections.abc import Mapping

from tests.rules.harness import Case, gateway

DOWN, WAIT, FULL = "PercoreStoredCallsDown", "PercoreStoredCallsWait", "PercoreStoredCallsNearlyFull"
RUNS, WEBHOOKS = "PercoreStoredRunsLost", "PercoreWebhooksGivenUp"


def up(*values: int) -> Mapping[str, str]:
    """One value for each gateway."""
    return {
        gateway("percore_stored_calls_up", container=f"gateway-{number}"): f"{value}x240" for number, value in enumerate(values)
    }


def oldest(seconds: int, state: str = "queued") -> Mapping[str, str]:
    return {gateway("percore_stored_call_oldest_age_seconds", state=state): f"{seconds}x240"}


def stored(filled: int) -> Mapping[str, str]:
    """The stored bytes. A thousand are allowed."""
    return {gateway("percore_stored_bytes"): f"{filled}x240", gateway("percore_stored_bytes_limit"): "1000x240"}


def ended(count: int, end: str) -> Mapping[str, str]:
    """Runs with this end, one each half minute."""
    return {gateway("percore_stored_call_runs_total", end=end): f"0x10 0+1x{count} {count}x220"}


def attempts(outcome: str) -> Mapping[str, str]:
    return {gateway("percore_webhook_attempts_total", outcome=outcome): "0x10 1x230"}


CLOSED = (
    "No gateway of the release can use the store of calls. "
    'Calls with "Prefer: respond-async", and requests about stored calls, are answered 503.'
)
LATE = "The oldest queued stored call was received 1h 0m 1s ago."
FILLED = 'The store of calls is 90.1% full. When it is full, new calls with "Prefer: respond-async" are answered 503.'
LOST = (
    "Runs of stored calls that were lost with their pod or their gateway within an hour: 3. "
    "Each such call runs again, or has failed."
)
GIVEN_UP = "Webhooks that gateways gave up within the last hour: 1."

CASES = [
    Case(DOWN, "a gateway waits for the one before it", up(0, 1), 30, severity="critical"),
    Case(DOWN, "no calls are stored", {}, 30, severity="critical"),
    Case(DOWN, "none can use it", up(0, 0), 2, CLOSED, "critical"),
    Case(WAIT, "an hour", oldest(3600), 30),
    Case(WAIT, "a running call is older", oldest(9000, "running"), 30),
    Case(WAIT, "longer than an hour", oldest(3601), 5, LATE),
    Case(FULL, "90 %", stored(900), 30),
    Case(FULL, "90.1 %", stored(901), 5, FILLED),
    Case(RUNS, "two", ended(2, "pod-lost"), 30),
    Case(RUNS, "runs that never began", ended(9, "not-begun"), 30),
    Case(RUNS, "runs that were answered", ended(9, "answered"), 30),
    Case(RUNS, "three", ended(3, "pod-lost"), 30, LOST),
    Case(RUNS, "three with their gateway", ended(3, "gateway-lost"), 30, LOST),
    Case(WEBHOOKS, "one that is tried again", attempts("failed"), 30),
    Case(WEBHOOKS, "one", attempts("given-up"), 30, GIVEN_UP),
]
