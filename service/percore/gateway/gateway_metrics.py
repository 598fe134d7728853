"""Every metric of the gateway: its name, its unit, its labels, and who uses it.

``code`` is ``disconnected``, a usual status, or the class of another one (``2xx``): see ``label_of``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from percore.gateway.pods import PodState
from percore.worker_metrics import DURATION_BUCKETS

DISCONNECTED, OTHER = "disconnected", "other"
CODES = frozenset(map(str, (200, 400, 401, 404, 405, 408, 413, 415, 429, 500, 502, 503, 504)))
CLASSES = frozenset(("2xx", "3xx", "4xx", "5xx"))
QUEUE_CODES = frozenset(("200", "503", DISCONNECTED, OTHER))
"""The codes that the histogram of queue times distinguishes. It is scraped every two seconds, and with every code it would have
hundreds of series."""
DISCONNECT_STATES = ("receiving", "queued", "executing", "answering")
REJECTION_REASONS = ("bad-request", "body-timeout", "body-too-large", "queue-full", "overloaded", "queue-timeout", "not-ready")
SET, FAILED, GONE = "set", "failed", "gone"
"""Results of writing a deletion cost."""


def label_of(code: str) -> str:
    """Return the label of a call's code: ``disconnected``, a code of ``CODES``, or a class of ``CLASSES``.

    A handler may answer with any status, and a label for each would be unbounded. A status that HTTP does not have counts as
    ``5xx``. Source: https://www.rfc-editor.org/rfc/rfc9110#section-15
    """
    if code in CODES or code == DISCONNECTED:
        return code
    of = f"{code[:1]}xx"
    return of if len(code) == 3 and code.isdigit() and of in CLASSES else "5xx"


def queue_label_of(code: str) -> str:
    """Return the label of a queue time that ended with this code."""
    return code if code in QUEUE_CODES else OTHER


@dataclass(slots=True)
class GatewayMetrics:
    """The metrics, registered in one registry."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    in_flight: Gauge = field(init=False)
    """Consumer: autoscaling, the dashboard's headline."""
    in_flight_calls: Gauge = field(init=False)
    """Consumer: KEDA without Prometheus. It can read only one series of each gateway."""
    queue: Histogram = field(init=False)
    """Consumer: alerts on long queue times; sizing of the largest number of pods."""
    total: Histogram = field(init=False)
    """Consumer: the success ratio, from its count; the latency that callers see."""
    disconnects: Counter = field(init=False)
    """Consumer: the dashboard; many of them mean that callers time out before their answer."""
    rejected: Counter = field(init=False)
    """Consumer: alerts on a full queue and on a gateway that is overloaded."""
    requeued: Counter = field(init=False)
    """Consumer: the dashboard; many of them mean that workers end while they receive calls."""
    interrupted: Counter = field(init=False)
    """Consumer: the dashboard; each of them is an answer that was cut after its first byte."""
    pods: Gauge = field(init=False)
    """Consumer: alerts on pods that cannot be reached."""
    endpoints_age: Gauge = field(init=False)
    """Consumer: alerts on a lost API server: pods that start meanwhile get no calls."""
    lag: Gauge = field(init=False)
    """Consumer: alerts on a gateway that has too little CPU."""
    spool: Gauge = field(init=False)
    """Consumer: alerts on a full spool."""
    spool_limit: Gauge = field(init=False)
    """Consumer: the same alerts."""
    connections: Gauge = field(init=False)
    """Consumer: the dashboard."""
    connections_limit: Gauge = field(init=False)
    """Consumer: the dashboard."""
    uploads: Gauge = field(init=False)
    """Consumer: the dashboard; many at a time mean slow clients."""
    lines_lost: Counter = field(init=False)
    """Consumer: an alert on gaps in the log; a lost line may be a call that the log does not have."""
    costs: Counter = field(init=False)
    """Consumer: checks of scaling in; failures mean that the right to patch pods is missing."""
    build_info: Gauge = field(init=False)
    """Consumer: joins and tables; the value is always 1."""

    def __post_init__(self) -> None:
        to = self.registry
        self.in_flight = Gauge(
            "percore_in_flight_requests", "Calls that hold a worker, and calls that are queued.", ["state"], registry=to
        )
        self.in_flight_calls = Gauge(
            "percore_in_flight_calls", "The same calls, executing and queued, as one number.", registry=to
        )
        self.queue = Histogram(
            "percore_call_queue_seconds",
            "Queue time of a call, whether it ran or not.",
            ["code"],
            buckets=DURATION_BUCKETS,
            registry=to,
        )
        self.total = Histogram(
            "percore_gateway_call_seconds",
            "Time from a call's head to the end of its answer.",
            ["code"],
            buckets=DURATION_BUCKETS,
            registry=to,
        )
        self.disconnects = Counter(
            "percore_gateway_client_disconnects",
            "Calls whose client disconnected before the answer's end.",
            ["state"],
            registry=to,
        )
        self.rejected = Counter("percore_gateway_rejected_calls", "Calls that never ran.", ["reason"], registry=to)
        self.requeued = Counter(
            "percore_gateway_requeued_calls",
            "Calls that went back to the queue because their worker was lost before they began.",
            registry=to,
        )
        self.interrupted = Counter(
            "percore_gateway_interrupted_answers",
            "Answers that were cut after their first byte.",
            registry=to,
        )
        self.pods = Gauge(
            "percore_gateway_pods",
            "Pods, by their state in this gateway. A waiting pod was asked whether it is free.",
            ["state"],
            registry=to,
        )
        self.endpoints_age = Gauge(
            "percore_gateway_endpoints_age_seconds", "Time since the API server last confirmed the endpoints.", registry=to
        )
        self.lag = Gauge("percore_gateway_loop_lag_seconds", "Longest delay of the event loop in the last minute.", registry=to)
        self.spool = Gauge(
            "percore_gateway_spool_bytes",
            "Bytes of bodies and answers that the spool holds, in memory or on the disk.",
            ["place"],
            registry=to,
        )
        self.spool_limit = Gauge(
            "percore_gateway_spool_limit_bytes", "The most bytes that the spool may hold.", ["place"], registry=to
        )
        self.connections = Gauge("percore_gateway_connections", "Connections of clients.", registry=to)
        self.connections_limit = Gauge("percore_gateway_connections_limit", "The most connections of clients.", registry=to)
        self.uploads = Gauge("percore_gateway_uploads", "Bodies that are being received.", registry=to)
        self.lines_lost = Counter(
            "percore_gateway_log_lines_lost", "Log lines that were dropped because the log was read too slowly.", registry=to
        )
        self.costs = Counter(
            "percore_gateway_deletion_cost_updates", "Deletion costs written to pods, by result.", ["result"], registry=to
        )
        self.build_info = Gauge("percore_build_info", "The version of percore.", ["version"], registry=to)
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        """Create the series before the first event: Prometheus does not see a rise from no series to 1."""
        for code in CODES | CLASSES | {DISCONNECTED}:
            self.total.labels(code)
        for code in QUEUE_CODES:
            self.queue.labels(code)
        for state in DISCONNECT_STATES:
            self.disconnects.labels(state)
        for reason in REJECTION_REASONS:
            self.rejected.labels(reason)
        for result in (SET, FAILED, GONE):
            self.costs.labels(result)
        for pod_state in PodState:
            self.pods.labels(pod_state.value)
        for name in ("executing", "queued"):
            self.in_flight.labels(name)
