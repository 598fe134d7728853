"""Every metric of the inference service: its name, its unit, its labels, and who uses it.

``docs/metrics.md`` is generated from this file. The metrics live in the status server alone; workers only report events. The
label ``model`` is the name of a model that is served, or empty. The label ``code`` is a status, or ``client-disconnect`` (the
client left before its answer), ``undelivered`` (the client did not read its answer), ``incomplete`` (the client held a worker
for over a second without sending a whole request) or ``lost`` (the worker died).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

MINUTE = 60.0
DURATION_BUCKETS = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
    *(MINUTE, 2 * MINUTE, 5 * MINUTE, 10 * MINUTE, 20 * MINUTE, 30 * MINUTE, 60 * MINUTE),
)
CLIENT_DISCONNECT = "client-disconnect"
LOST = "lost"
RESTART_REASONS = ("crashed", "run-timeout", "client-disconnect", "arbiter-lost")
CLIENT_DISCONNECT_STATES = ("queued", "executing")


@dataclass(slots=True)
class WorkerMetrics:
    """The metrics of workers, registered in one registry."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    versioned: bool = True
    """Whether these metrics include percore's version. In the gateway's process the gateway's metrics include it."""
    calls: Counter = field(init=False)
    """Consumer: success ratio, alerts on errors."""
    duration: Histogram = field(init=False)
    """Consumer: sizing, alerts on slow models."""
    workers: Gauge = field(init=False)
    """Consumer: capacity."""
    restarts: Counter = field(init=False)
    """Consumer: alerts on crash loops; each restart costs a load."""
    client_disconnects: Counter = field(init=False)
    """Consumer: the dashboard; many of them mean that clients time out before their answer."""
    load: Gauge = field(init=False)
    """Consumer: sizing of `PERCORE_LOAD_TIMEOUT` and startup probes."""
    model_info: Gauge = field(init=False)
    """Consumer: joins and tables; the value is always 1."""
    build_info: Gauge = field(init=False)
    """Consumer: joins and tables; the value is always 1."""

    def __post_init__(self) -> None:
        to = self.registry
        self.calls = Counter("percore_calls", "Calls that ended, by model and status.", ["model", "code"], registry=to)
        self.duration = Histogram(
            "percore_call_run_seconds", "Run time of a call.", ["model"], buckets=DURATION_BUCKETS, registry=to
        )
        self.workers = Gauge("percore_workers", "Workers, by state: free, busy or loading.", ["state"], registry=to)
        self.restarts = Counter("percore_worker_restarts", "Workers that ended and were replaced.", ["reason"], registry=to)
        self.client_disconnects = Counter(
            "percore_worker_client_disconnects", "Calls whose client disconnected before the answer.", ["state"], registry=to
        )
        self.load = Gauge("percore_model_load_seconds", "How long the latest load took.", ["model", "version"], registry=to)
        self.model_info = Gauge(
            "percore_model_info", "A model that is served.", ["model", "version", "platform", "digest"], registry=to
        )
        if self.versioned:
            self.build_info = Gauge("percore_build_info", "The version of percore.", ["version"], registry=to)
        # Create the series before the first event: Prometheus does not see a rise from no series to 1.
        for reason in RESTART_REASONS:
            self.restarts.labels(reason)
        for state in CLIENT_DISCONNECT_STATES:
            self.client_disconnects.labels(state)
