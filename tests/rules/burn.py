"""Alerts on failed calls and on long queue times, with the default objectives: 99.5 % succeed, 95 % are queued no longer than
60 s.
"""

from __future__ import annotations

from collections.abc import Mapping

from tests.rules.harness import Case, gateway

CALLS, QUEUED = "percore_gateway_call_seconds_count", "percore_call_queue_seconds"
ERROR, WAIT = "PercoreErrorBudgetBurn", "PercoreWaitBudgetBurn"
FAILED = "{} of the calls of the last {} failed; the objective is that 99.5% succeed."
QUEUED_LONG = "{} of the calls of the last {} were queued longer than 60s; the objective is that 95% are not."


def failing(of_thousand: int, code: str = "502", steps: int = 240) -> Mapping[str, str]:
    """A thousand calls every half minute, some of which fail."""
    return {
        gateway(CALLS, code="200"): f"0+{1000 - of_thousand}x{steps}",
        gateway(CALLS, code=code): f"0+{of_thousand}x{steps}",
    }


def queued(of_hundred: int, bound: str = "60.0") -> Mapping[str, str]:
    """A hundred calls every half minute, some of which are queued long."""
    return {
        gateway(f"{QUEUED}_count", code="200"): "0+100x240",
        gateway(f"{QUEUED}_bucket", code="200", le=bound): f"0+{100 - of_hundred}x240",
        gateway(f"{QUEUED}_bucket", code="200", le="+Inf"): "0+100x240",
    }


def few(failed: int) -> Mapping[str, str]:
    """Ten calls within an hour; the last ones fail."""
    return {
        gateway(CALLS, code="200"): f"0x20 0+1x{10 - failed} {10 - failed}x100",
        gateway(CALLS, code="502"): f"0x114 0+1x{failed} {failed}x100",
    }


OVER = {
    gateway(CALLS, code="200"): "0+80x60 4800+100x60",
    gateway(CALLS, code="502"): "0+20x60 1200x60",
}
"""A fifth of the calls failed for half an hour, and none in the next half hour."""
LEFT = {gateway(CALLS, code="disconnected"): "0+100x240", gateway(CALLS, code="400"): "0+100x240"}
FAST, SLOW, TICKET = "1h", "6h", "3d"
SEVERITY = {FAST: "critical", SLOW: "critical", TICKET: "warning"}


def silent(long_window: str, what: str, series: Mapping[str, str], alert: str = ERROR) -> Case:
    return Case(
        alert, what, series, 60 if long_window == FAST else 120, severity=SEVERITY[long_window], long_window=long_window
    )


def fires(long_window: str, what: str, series: Mapping[str, str], said: str, alert: str = ERROR) -> Case:
    labels = {"namespace": "here", "service": "first-percore-gateway"}
    says = (FAILED if alert == ERROR else QUEUED_LONG).format(said, long_window)
    return Case(alert, what, series, 60 if long_window == FAST else 120, says, SEVERITY[long_window], long_window, labels)


CASES = [
    silent(FAST, "7.1 % for an hour", failing(71)),
    fires(FAST, "7.3 % for an hour", failing(73), "7.3%"),
    fires(FAST, "a model that raises", failing(73, "500"), "7.3%"),
    fires(FAST, "a full queue", failing(73, "429"), "7.3%"),
    fires(FAST, "a handler's own 5xx", failing(73, "5xx"), "7.3%"),
    silent(FAST, "good answers other than 200", failing(200, "2xx")),
    silent(FAST, "redirections and answers from a cache", failing(200, "3xx")),
    silent(
        FAST, "7.16 % of all calls, but 7.3 % without those with a 2xx", {**failing(73), gateway(CALLS, code="2xx"): "0+20x240"}
    ),
    silent(FAST, "rare errors of callers", failing(200, "4xx")),
    silent(FAST, "a fifth, but none in the last half hour", OVER),
    silent(FAST, "two of ten calls", few(2)),
    fires(FAST, "three of ten calls", few(3), "30%"),
    silent(FAST, "callers that err or disconnect", {**failing(0), **LEFT}),
    silent(SLOW, "2.9 % for hours", failing(29)),
    fires(SLOW, "3.1 % for hours", failing(31), "3.1%"),
    silent(TICKET, "0.4 % for days", failing(4)),
    fires(TICKET, "0.6 % for days", failing(6), "0.6%"),
    silent(FAST, "71 % for an hour", queued(71), WAIT),
    fires(FAST, "73 % for an hour", queued(73), "73%", WAIT),
    fires(FAST, "a bucket's bound without a fraction", queued(73, "60"), "73%", WAIT),
    silent(SLOW, "29 % for hours", queued(29), WAIT),
    fires(SLOW, "31 % for hours", queued(31), "31%", WAIT),
    silent(TICKET, "4 % for days", queued(4), WAIT),
    fires(TICKET, "6 % for days", queued(6), "6%", WAIT),
]
