"""Whether calls are queued, and whether they are answered."""

from __future__ import annotations

from collections.abc import Iterator

from deploy.monitoring import panels as make
from deploy.monitoring.queries import DEPLOYMENT, FAILED, GATEWAY, HPA, STATUS_SERVER, VALID, number

COUNT = "percore_gateway_call_seconds_count"
BUDGET_COLOURS = {0.0: "red", 0.25: "orange", 0.5: "green"}
OF_RULES = "Empty when the chart's rules are off (`monitoring.rules.enabled`), and before the first call."


def panels() -> Iterator[make.Panel]:
    """Yield the row's panels."""
    yield from _now()
    yield from _objectives()


def _now() -> Iterator[make.Panel]:
    for state, colours in (("executing", None), ("queued", {1.0: "orange"})):
        yield make.number(
            state.capitalize(),
            "Calls that compute now, one on each pod. When there are as many as ready pods, the next call is queued."
            if state == "executing"
            else "Calls that are queued now. If this lasts longer than a pod takes to start, see the row Autoscaling.",
            "none",
            number(f'sum(percore_in_flight_requests{{{GATEWAY},state="{state}"}})'),
            colours,
        )
    yield make.number(
        "Ready pods",
        "Pods whose worker has loaded its models, free or busy. Fewer than wanted for minutes: see the row Pods, then "
        "`kubectl describe`.",
        "none",
        number(f'sum(percore_workers{{{STATUS_SERVER},state=~"free|busy"}})'),
    )
    autoscaler = f"max(kube_horizontalpodautoscaler_status_desired_replicas{{{HPA}}})"
    yield make.number(
        "Wanted pods",
        "Pods that the autoscaler wants. Without an autoscaler: the replicas of the Deployment. "
        "At the maximum while calls are queued: raise autoscaling.maxReplicas. Needs kube-state-metrics.",
        "none",
        number(f"{autoscaler} or max(kube_deployment_spec_replicas{{{DEPLOYMENT}}})"),
    )


def _objectives() -> Iterator[make.Panel]:
    failed = f'sum(increase({COUNT}{{{GATEWAY},code=~"{FAILED}"}}[$__range]))'
    valid = f'sum(increase({COUNT}{{{GATEWAY},code=~"{VALID}"}}[$__range]))'
    yield make.number(
        "Success ratio",
        "Share of calls in the time range that succeeded. Errors of callers and clients that disconnected are not counted. "
        "Low: the panel Failed calls says which code, and the runbook says what to do.",
        "percentunit",
        number(f"1 - {failed} / ({valid} > 0)"),
        {0.0: "red", 0.99: "orange", 0.995: "green"},
    )
    yield make.number(
        "Queue time, p95",
        "95 % of the calls that ended in the time range were queued no longer than this. Long: too few pods, or pods "
        "that start slowly.",
        "s",
        number(f"histogram_quantile(0.95, sum by (le) (increase(percore_call_queue_seconds_bucket{{{GATEWAY}}}[$__range])))"),
        {60.0: "orange", 600.0: "red"},
    )
    budgets = {
        "Error budget left": ("failed_calls", "success", "fail"),
        "Queue budget left": ("long_waits", "wait", "be queued long"),
    }
    for title, (bad, objective, verb) in budgets.items():
        spent = f"max(service:percore_gateway_{bad}:ratio_rate30d{{{GATEWAY}}})"
        yield make.number(
            title,
            f"How much is left of the share of calls that may {verb} in thirty days, or in as many days as Prometheus keeps. "
            f"Below zero: the objective is missed, so hold back roll-outs. {OF_RULES}",
            "percentunit",
            number(f"1 - {spent} / (1 - max(service:percore_{objective}_objective:ratio{{{GATEWAY}}}))"),
            BUDGET_COLOURS,
        )
