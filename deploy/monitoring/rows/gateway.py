"""The gateways: their queue, what they refuse, and whether they are well."""

from __future__ import annotations

from collections.abc import Iterator

from deploy.monitoring import panels as make
from deploy.monitoring.queries import GATEWAY, GATEWAY_PODS, a_minute, line

UP = {0: ("HAProxy down", "red"), 1: ("up", "green")}
STALE_SECONDS = 180.0


def panels() -> Iterator[make.Panel]:
    """Yield the row's panels."""
    yield from _traffic()
    yield from _health()


def _traffic() -> Iterator[make.Panel]:
    calls = f"sum by (pod, state) (percore_in_flight_requests{{{GATEWAY}}})"
    yield make.steps_of(
        make.lines(
            "Queue and sessions",
            "Calls of each gateway. One that holds all the calls while another has none: callers keep connections open "
            "to it, which is "
            "harmless until it is full (queue.max).",
            "none",
            [line(calls, "{{pod}} {{state}}")],
        )
    )
    yield make.steps_of(
        make.lines(
            "Pods as HAProxy sees them",
            "`taken`: a pod computes for another gateway. `down`: it refuses calls or checks; for minutes: see that pod. "
            "`draining`: it finishes its call and goes.",
            "none",
            [line(f"max by (state) (percore_gateway_pods{{{GATEWAY}}})", "{{state}}")],
        )
    )
    unwell = {
        "rejected: {{reason}}": ("percore_gateway_rejected_calls_total", "reason"),
        "abandoned: {{state}}": ("percore_gateway_abandoned_calls_total", "state"),
        "sent again": ("percore_gateway_retries_total", "service"),
    }
    queries = [line(a_minute(counter, GATEWAY, by), legend) for legend, (counter, by) in unwell.items()]
    yield make.lines(
        "Rejected, abandoned, sent again, a minute",
        "`queue-full`: raise queue.max or the most pods. `wait-timeout`: too few pods. `no-pod`: pods are ready and "
        "cannot be reached. "
        "Abandoned: callers have a timeout that is too short. Sent again: gateways compete for pods, or pods refuse; "
        "no call is lost.",
        "cpm",
        queries,
    ).interval(make.FEW_CALLS)


def _health() -> Iterator[make.Panel]:
    up = line(f"min by (pod) (percore_gateway_haproxy_up{{{GATEWAY}}})", "{{pod}}")
    yield make.states(
        "HAProxy", "Whether each gateway's HAProxy answers its controller. Down: its log, and whether it was OOMKilled.", up, UP
    )
    yield make.limited(
        make.lines(
            "Endpoints confirmed",
            "How long ago the API server last confirmed to each gateway which pods there are; it does so each minute. "
            "Old: pods that start get no calls; see the controller's log.",
            "s",
            [line(f"max by (pod) (percore_gateway_endpoints_age_seconds{{{GATEWAY}}})", "{{pod}}")],
            span=12,
        ),
        {STALE_SECONDS: "red"},
    )
    lost = f"sum by (pod) (increase(percore_gateway_log_lines_lost_total{{{GATEWAY}}}[$__rate_interval]))"
    failed = f'{GATEWAY},result="failed"'
    unmarked = f"sum by (pod) (increase(percore_gateway_deletion_cost_marks_total{{{failed}}}[$__rate_interval]))"
    yield make.limited(
        make.lines(
            "What should be zero",
            "Unplaced pods: raise gateway.slots. Lost log lines: every number of calls is too low; the controller needs CPU. "
            "Failed marks: scaling in may take busy pods; the controller's right to patch pods is missing.",
            "none",
            [
                line(f"max by (pod) (percore_gateway_unplaced_pods{{{GATEWAY}}})", "unplaced pods, {{pod}}"),
                line(lost, "lost log lines, {{pod}}"),
                line(unmarked, "failed marks, {{pod}}"),
            ],
        ),
        {1.0: "red"},
    )
    containers = GATEWAY_PODS + ',container=~"haproxy|controller"'
    yield make.lines(
        "CPU of gateways",
        "In cores. A controller that needs all of its CPU loses log lines, and new pods and marks come late: raise "
        "gateway.controller.cpu. Needs cAdvisor.",
        "none",
        [
            line(
                f"sum by (pod, container) (rate(container_cpu_usage_seconds_total{{{containers}}}[$__rate_interval]))",
                "{{pod}} {{container}}",
            )
        ],
    )
    yield make.lines(
        "Memory of gateways",
        "HAProxy holds each waiting call in memory: near its limit, raise gateway.memory or lower queue.max. Needs cAdvisor.",
        "bytes",
        [line(f"max by (pod, container) (container_memory_working_set_bytes{{{containers}}})", "{{pod}} {{container}}")],
    )
