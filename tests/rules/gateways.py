"""The gateways: whether they take calls, know the pods, and tell what they did."""

from __future__ import annotations

from collections.abc import Mapping

from tests.rules.harness import Case, gateway, kubernetes

NONE_READY, MISSING, DOWN = "PercoreNoGatewayReady", "PercoreMetricMissing", "PercoreHAProxyDown"
STALE, UNPLACED = "PercoreEndpointsStale", "PercorePodsUnplaced"
ABANDONED, LOST = "PercoreCallsAbandoned", "PercoreLogLinesLost"
CALLS = "percore_gateway_call_duration_seconds_count"
POD = {"pod": "first-gateway-1"}


def up(value: int) -> Mapping[str, str]:
    return {gateway("percore_gateway_haproxy_up"): f"{value}x240"}


def ready(value: int) -> Mapping[str, str]:
    return {kubernetes("kube_deployment_status_replicas_ready", deployment="first-percore-gateway"): f"{value}x240"}


def gauge(name: str, value: int) -> Mapping[str, str]:
    return {gateway(f"percore_gateway_{name}"): f"{value}x240"}


def left(of_hundred: int) -> Mapping[str, str]:
    """A hundred calls every half minute, some of whose callers leave."""
    return {
        gateway(CALLS, code="200"): f"0+{100 - of_hundred}x240",
        gateway(CALLS, code="abandoned"): f"0+{of_hundred}x240",
        gateway("percore_gateway_abandoned_calls_total", state="waiting"): f"0+{of_hundred}x240",
    }


def few_left(count: int) -> Mapping[str, str]:
    """Ten calls within an hour, of which so many were given up."""
    return {
        gateway(CALLS, code="200"): f"0x10 0+1x{10 - count} {10 - count}x220",
        gateway(CALLS, code="abandoned"): f"0x10 0+1x{count} {count}x220",
        gateway("percore_gateway_abandoned_calls_total", state="executing"): f"0x10 0+1x{count} {count}x220",
    }


IN_FLIGHT = {gateway("percore_in_flight_requests", state="waiting"): "0x240"}
REFUSED = "No gateway of the release is ready; every caller is refused."
BLIND = (
    "percore_in_flight_requests has been missing for five minutes. Autoscaling stands still, "
    "and no other alert on calls can fire."
)
SILENT = "HAProxy in pod first-gateway-1 has not answered its controller for a minute."
OLD = "The API server last confirmed the endpoints to pod first-gateway-1 3m 1s ago; pods that start meanwhile get no calls."
HOMELESS = "Ready pods that have no slot in a gateway: 1."
GIVEN_UP = "{} of the calls of the last hour were given up by their callers."
GAPS = (
    "Lines of HAProxy's log that did not reach the controller of pod first-gateway-1 within an hour: 1. "
    "Their calls are in no histogram."
)

CASES = [
    Case(NONE_READY, "one is ready", {**ready(1), **up(1)}, 10, severity="critical"),
    Case(NONE_READY, "none is ready", {**ready(0), **up(1)}, 1, REFUSED, "critical"),
    Case(NONE_READY, "no HAProxy answers, and nobody knows of deployments", up(0), 1, REFUSED, "critical"),
    Case(MISSING, "it is there", {**IN_FLIGHT, **up(1)}, 10, severity="critical"),
    Case(MISSING, "it is missing because HAProxy is down", {**up(0), **ready(1)}, 10, severity="critical"),
    Case(MISSING, "it is missing because no gateway is there", ready(0), 10, severity="critical"),
    Case(MISSING, "nothing is scraped", {}, 5, BLIND, "critical"),
    Case(MISSING, "nothing is scraped though a gateway is ready", ready(1), 5, BLIND, "critical"),
    Case(DOWN, "it answers", up(1), 10),
    Case(DOWN, "it does not answer", up(0), 1, SILENT, labels=POD),
    Case(STALE, "confirmed 180 s ago", gauge("endpoints_age_seconds", 180), 10),
    Case(STALE, "confirmed 181 s ago", gauge("endpoints_age_seconds", 181), 2, OLD, labels=POD),
    Case(UNPLACED, "every pod has a slot", gauge("unplaced_pods", 0), 10),
    Case(UNPLACED, "a pod has none", gauge("unplaced_pods", 1), 5, HOMELESS),
    Case(ABANDONED, "9 %", left(9), 60),
    Case(ABANDONED, "11 %", left(11), 5.5, GIVEN_UP.format("11%")),
    Case(ABANDONED, "two of ten calls", few_left(2), 60),
    Case(ABANDONED, "three of ten calls", few_left(3), 12, GIVEN_UP.format("30%")),
    Case(LOST, "none", gauge("log_lines_lost_total", 0), 60),
    Case(LOST, "one", {gateway("percore_gateway_log_lines_lost_total"): "0x10 1x230"}, 60, GAPS, labels=POD),
]
