"""The metrics of stored calls, each with its consumer."""

from __future__ import annotations

from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge

from percore.gateway.store.schema import FINAL, OPEN, RunEnd

OUTCOMES = ("delivered", "failed", "given-up")


@dataclass(slots=True)
class StoreMetrics:
    """The metrics, registered in the gateway's registry."""

    registry: CollectorRegistry
    calls: Gauge = field(init=False)
    """Consumer: the dashboard."""
    oldest: Gauge = field(init=False)
    """Consumer: an alert on calls that are queued for too long."""
    bytes: Gauge = field(init=False)
    """Consumer: an alert on a store that is nearly full."""
    bytes_limit: Gauge = field(init=False)
    """Consumer: the same alert."""
    ended: Counter = field(init=False)
    """Consumer: the dashboard; how calls end."""
    runs: Counter = field(init=False)
    """Consumer: an alert on runs that are lost."""
    webhooks: Counter = field(init=False)
    """Consumer: an alert on webhooks that are given up."""
    up: Gauge = field(init=False)
    """Consumer: an alert on a store that cannot be used."""

    def __post_init__(self) -> None:
        to = self.registry
        self.calls = Gauge("percore_stored_calls", "Stored calls that are not erased, by state.", ["state"], registry=to)
        self.oldest = Gauge(
            "percore_stored_call_oldest_age_seconds",
            "Time since the oldest call of a state was received.",
            ["state"],
            registry=to,
        )
        self.bytes = Gauge("percore_stored_bytes", "Bytes of the bodies of stored calls and of results.", registry=to)
        self.bytes_limit = Gauge("percore_stored_bytes_limit", "The most bytes that may be stored.", registry=to)
        self.ended = Counter("percore_stored_calls_ended", "Stored calls that have ended, by state.", ["state"], registry=to)
        self.runs = Counter("percore_stored_call_runs", "Runs of stored calls, by how they ended.", ["end"], registry=to)
        self.webhooks = Counter("percore_webhook_attempts", "Attempts to send a webhook, by outcome.", ["outcome"], registry=to)
        self.up = Gauge("percore_stored_calls_up", "Whether calls can be stored: 1 or 0.", registry=to)
        for state in (*OPEN, *FINAL):
            self.calls.labels(state.value)
            if state in OPEN:
                self.oldest.labels(state.value)
            else:
                self.ended.labels(state.value)
        for end in RunEnd:
            self.runs.labels(end.value)
        for outcome in OUTCOMES:
            self.webhooks.labels(outcome)
