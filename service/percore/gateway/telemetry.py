"""Every metric of the gateway: its name, its unit, its labels, and who looks at it.

They live in the controller. ``code`` is a status, ``abandoned``, or ``other``: at most twenty values.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from percore.gateway.lines import ABANDONED, CODE_LABELS, REASON_LABELS
from percore.telemetry import DURATION_BUCKETS

WAITING, EXECUTING, SENDING = "waiting", "executing", "sending"
MOST_WAITS = ("200", "503", ABANDONED)
"""How most waits end. Every code would make seven hundred series, which are scraped every two seconds."""
MADE, FAILED, GONE = "made", "failed", "gone"
"""Results of marks on pods."""


@dataclass(slots=True)
class GatewayTelemetry:
    """The metrics, registered in one registry."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    in_flight: Gauge = field(init=False)
    """Consumer: autoscaling, the dashboard's headline. Absent, rather than zero, while HAProxy does not answer."""
    wait: Histogram = field(init=False)
    """Consumer: alerts on callers that wait; sizing of the largest number of pods."""
    total: Histogram = field(init=False)
    """Consumer: success ratio (its count), what callers see of latency."""
    abandoned: Counter = field(init=False)
    """Consumer: the dashboard; many of them mean that callers time out before their answer."""
    rejected: Counter = field(init=False)
    """Consumer: alerts on a full queue and on pods that cannot be reached."""
    retries: Counter = field(init=False)
    """Consumer: the dashboard; many of them mean that gateways compete, or that pods refuse."""
    pods: Gauge = field(init=False)
    """Consumer: capacity, beside `percore_in_flight_requests`."""
    unplaced: Gauge = field(init=False)
    """Consumer: alerts; more pods than `PERCORE_GATEWAY_SLOTS` stay unused."""
    haproxy_up: Gauge = field(init=False)
    """Consumer: alerts on HAProxy."""
    knowledge_age: Gauge = field(init=False)
    """Consumer: alerts on a lost API server: pods that start meanwhile get no calls."""
    lines_lost: Counter = field(init=False)
    """Consumer: trust in the other numbers; a lost one is a call that no histogram and no log has."""
    marks: Counter = field(init=False)
    """Consumer: checks of scaling in; failures mean that the right to patch pods is missing."""
    build_info: Gauge = field(init=False)
    """Consumer: joins and tables; the value is always 1."""

    def __post_init__(self) -> None:
        to = self.registry
        self.in_flight = Gauge(
            "percore_in_flight_requests", "Calls that hold a worker, and calls that wait for one.", ["state"], registry=to
        )
        self.wait = Histogram(
            "percore_gateway_wait_seconds",
            "Time a call waited for a pod, whether it got one or not.",
            ["code"],
            buckets=DURATION_BUCKETS,
            registry=to,
        )
        self.total = Histogram(
            "percore_gateway_call_duration_seconds",
            "Time from a call's arrival to the end of its answer.",
            ["code"],
            buckets=DURATION_BUCKETS,
            registry=to,
        )
        self.abandoned = Counter(
            "percore_gateway_abandoned_calls", "Calls whose client went away before the answer.", ["state"], registry=to
        )
        self.rejected = Counter("percore_gateway_rejected_calls", "Calls that never ran.", ["reason"], registry=to)
        self.retries = Counter("percore_gateway_retries", "Times a call was sent again because a pod refused it.", registry=to)
        self.pods = Gauge("percore_gateway_pods", "Pods that HAProxy knows, by what they do.", ["state"], registry=to)
        self.unplaced = Gauge("percore_gateway_unplaced_pods", "Ready pods for which HAProxy has no slot.", registry=to)
        self.haproxy_up = Gauge("percore_gateway_haproxy_up", "Whether HAProxy answers.", registry=to)
        self.knowledge_age = Gauge(
            "percore_gateway_endpoints_age_seconds", "Time since the API server last confirmed the endpoints.", registry=to
        )
        self.lines_lost = Counter("percore_gateway_log_lines_lost", "Lines of HAProxy's log that did not arrive.", registry=to)
        self.marks = Counter(
            "percore_gateway_deletion_cost_marks", "Marks made on pods for scaling in, by result.", ["result"], registry=to
        )
        self.build_info = Gauge("percore_build_info", "The version of percore.", ["version"], registry=to)
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        """Have the series of failures there before the first one: Prometheus does not see a rise from nothing to one."""
        for code in CODE_LABELS:
            self.total.labels(code)
        for code in MOST_WAITS:
            self.wait.labels(code)
        for state in (WAITING, EXECUTING, SENDING):
            self.abandoned.labels(state)
        for reason in REASON_LABELS:
            self.rejected.labels(reason)
        for result in (MADE, FAILED, GONE):
            self.marks.labels(result)
