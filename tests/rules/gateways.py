"""Alerts on gateways: they do not accept calls, do not know the pods, have no room, or lose lines of the log."""

from __future__ import annotations

from collections.abc import Mapping

from tests.rules.harness import Case, gateway, kubernetes

NONE_READY, MISSING, DOWN = "PercoreNoGatewayReady", "PercoreMetricMissing", "PercoreGatewayDown"
LAG, SPOOL, REJECTED = "PercoreGatewayLoopLag", "PercoreGatewaySpoolFull", "PercoreCallsRejected"
STALE, UNREACHABLE = "PercoreEndpointsStale", "PercorePodsUnreachable"
DISCONNECT, LOST = "PercoreClientsDisconnect", "PercoreLogLinesLost"
CALLS = "percore_gateway_call_seconds_count"
POD = {"pod": "first-gateway-1"}


def up(value: int) -> Mapping[str, str]:
    return {gateway("up"): f"{value}x240"}


def ready(value: int) -> Mapping[str, str]:
    return {kubernetes("kube_deployment_status_replicas_ready", deployment="first-percore-gateway"): f"{value}x240"}


def gauge(name: str, value: float, **labels: str) -> Mapping[str, str]:
    return {gateway(f"percore_{name}", **labels): f"{value}x240"}


def spool(filled: int, place: str) -> Mapping[str, str]:
    """The bytes in memory or on disk. The spool may hold a thousand."""
    return {
        **gauge("gateway_spool_bytes", filled, place=place),
        **gauge("gateway_spool_limit_bytes", 1000, place=place),
    }


def rejected(values: str, reason: str = "queue-full") -> Mapping[str, str]:
    return {gateway("percore_gateway_rejected_calls_total", reason=reason): values}


def pods(unknown: int, queued: int) -> Mapping[str, str]:
    return {
        **gauge("gateway_pods", unknown, state="unknown"),
        **gauge("gateway_pods", 5, state="waiting"),
        **gauge("in_flight_requests", queued, state="queued"),
    }


def left(of_hundred: int) -> Mapping[str, str]:
    """A hundred calls every half minute; some of their clients disconnect."""
    return {
        gateway(CALLS, code="200"): f"0+{100 - of_hundred}x240",
        gateway(CALLS, code="disconnected"): f"0+{of_hundred}x240",
    }


def few_left(count: int) -> Mapping[str, str]:
    """Ten calls within an hour; ``count`` of their clients disconnect."""
    return {
        gateway(CALLS, code="200"): f"0x10 0+1x{10 - count} {10 - count}x220",
        gateway(CALLS, code="disconnected"): f"0x10 0+1x{count} {count}x220",
    }


IN_FLIGHT = {gateway("percore_in_flight_requests", state="queued"): "0x240"}
STEADY = "0+1x240"
"""A rejection every half minute."""
BURST = "0x10 0+100x8 800x220"
"""Four minutes with a hundred rejections every half minute, and then none."""
REFUSED = "No gateway of the release is ready. Every caller is refused."
BLIND = (
    "percore_in_flight_requests has been missing for five minutes. Autoscaling does not react, "
    "and no other alert on calls can fire."
)
SILENT = "Gateway pod first-gateway-1 has not answered Prometheus for a minute."
DELAYED = (
    "The event loop of gateway pod first-gateway-1 was delayed by 1.1s within a minute, and this has gone on for five minutes. "
    "Every caller of this gateway is delayed."
)
FILLED = "The spool of gateway pod first-gateway-1 is 90.1% full. When it is full, calls are answered 503."
REJECTED_TEXT = "Calls that were rejected within five minutes with the reason {}: 10. This has gone on for ten minutes."
OLD = (
    "The API server last confirmed the endpoints to gateway pod first-gateway-1 3m 1s ago. "
    "This gateway gives no calls to pods that started since."
)
NO_CONNECTION = "Pods to which gateway pod first-gateway-1 has had no connection for ten minutes, although calls are queued: 1."
GIVEN_UP = "In {} of the calls of the last hour the client disconnected before the answer."
LINES_LOST_TEXT = "Lines that gateway pod first-gateway-1 could not write to its log within an hour: 1."

CASES = [
    Case(NONE_READY, "one is ready", {**ready(1), **up(1)}, 10, severity="critical"),
    Case(NONE_READY, "one is ready that Prometheus cannot reach", {**ready(1), **up(0)}, 10, severity="critical"),
    Case(NONE_READY, "none is ready", {**ready(0), **up(1)}, 1, REFUSED, "critical"),
    Case(NONE_READY, "none answers, and there is no metric of deployments", up(0), 1, REFUSED, "critical"),
    Case(MISSING, "it is there", {**IN_FLIGHT, **up(1)}, 10, severity="critical"),
    Case(MISSING, "it is missing because no gateway answers", up(0), 10, severity="critical"),
    Case(MISSING, "it is missing because no gateway is there", ready(0), 10, severity="critical"),
    Case(MISSING, "nothing is scraped", {}, 5, BLIND, "critical"),
    Case(MISSING, "nothing is scraped though a gateway is ready", ready(1), 5, BLIND, "critical"),
    Case(MISSING, "a gateway is ready and its scrape fails", {**ready(1), **up(0)}, 5, BLIND, "critical"),
    Case(DOWN, "it answers", up(1), 10),
    Case(DOWN, "it does not answer", up(0), 1, SILENT, labels=POD),
    Case(LAG, "0.9 s", gauge("gateway_loop_lag_seconds", 0.9), 30),
    Case(LAG, "3 s once", {gateway("percore_gateway_loop_lag_seconds"): "0x10 3 3 0x200"}, 8),
    Case(LAG, "1.1 s", gauge("gateway_loop_lag_seconds", 1.1), 5, DELAYED, labels=POD),
    Case(SPOOL, "90 % of the disk", spool(900, "disk"), 30),
    Case(SPOOL, "all of the memory", {**spool(1000, "memory"), **spool(10, "disk")}, 30),
    Case(SPOOL, "90.1 % of the disk", spool(901, "disk"), 5, FILLED, labels=POD),
    Case(REJECTED, "errors of callers", rejected(STEADY, "bad-request"), 30),
    Case(REJECTED, "a burst, while it lasts", rejected(BURST), 9),
    Case(REJECTED, "a burst, after it", rejected(BURST), 16),
    Case(REJECTED, "two in all", rejected("0x10 1x10 2x220"), 12),
    Case(
        REJECTED,
        "the queue is full",
        rejected(STEADY),
        11.5,
        REJECTED_TEXT.format("queue-full"),
        labels={"reason": "queue-full"},
    ),
    Case(
        REJECTED,
        "overloaded",
        rejected(STEADY, "overloaded"),
        11.5,
        REJECTED_TEXT.format("overloaded"),
        labels={"reason": "overloaded"},
    ),
    Case(STALE, "confirmed 180 s ago", gauge("gateway_endpoints_age_seconds", 180), 10),
    Case(STALE, "confirmed 181 s ago", gauge("gateway_endpoints_age_seconds", 181), 2, OLD, labels=POD),
    Case(UNREACHABLE, "no call is queued", pods(unknown=3, queued=0), 30),
    Case(UNREACHABLE, "every pod has a connection", pods(unknown=0, queued=3), 30),
    Case(UNREACHABLE, "one has none", pods(unknown=1, queued=3), 10, NO_CONNECTION, labels=POD),
    Case(DISCONNECT, "9 %", left(9), 60),
    Case(DISCONNECT, "11 %", left(11), 5.5, GIVEN_UP.format("11%")),
    Case(DISCONNECT, "two of ten calls", few_left(2), 60),
    Case(DISCONNECT, "three of ten calls", few_left(3), 12, GIVEN_UP.format("30%")),
    Case(LOST, "none", gauge("gateway_log_lines_lost_total", 0), 60),
    Case(LOST, "one", {gateway("percore_gateway_log_lines_lost_total"): "0x10 1x230"}, 60, LINES_LOST_TEXT, labels=POD),
]
