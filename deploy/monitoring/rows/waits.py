"""Waiting and running, apart: the one is mended by more pods, the other is not."""

from __future__ import annotations

from collections.abc import Iterator

from deploy.monitoring import panels as make
from deploy.monitoring.queries import EXPORTER, GATEWAY, cells, quantiles

WAIT, RUN = "percore_gateway_wait_seconds", "percore_call_duration_seconds"


def panels() -> Iterator[make.Panel]:
    """Yield the row's panels."""
    yield make.lines(
        "Wait",
        "How long calls waited for a free pod, by the time they ended. Grows: more pods (autoscaling.maxReplicas), or sooner "
        "(autoscaling.buffer, autoscaling.minReplicas).",
        "s",
        quantiles(WAIT, GATEWAY),
        span=12,
    ).interval(make.FEW_CALLS)
    yield make.lines(
        "Run",
        "How long calls computed on their pod. It does not depend on how many others there are: if it grows with the "
        "load, pods do not "
        "have their cores; see Throttled, and the kubelet's static CPU manager.",
        "s",
        quantiles(RUN, EXPORTER),
        span=12,
    ).interval(make.FEW_CALLS)
    yield make.distribution(
        "Waits",
        "How many calls waited how long. Two bands: most find a pod at once, the others wait for one to start.",
        cells(f"sum by (le) (increase({WAIT}_bucket{{{GATEWAY}}}[$__interval]))"),
    )
    yield make.distribution(
        "Runs",
        "How many calls computed how long. A band that climbs: inputs have grown, or the model is slower since a roll-out.",
        cells(f"sum by (le) (increase({RUN}_bucket{{{EXPORTER}}}[$__interval]))"),
    )
