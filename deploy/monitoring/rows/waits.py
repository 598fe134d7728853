"""Queue time and run time, apart: more pods shorten the first and not the second."""

from __future__ import annotations

from collections.abc import Iterator

from deploy.monitoring import panels as make
from deploy.monitoring.queries import GATEWAY, STATUS_SERVER, cells, quantiles

QUEUE, RUN = "percore_call_queue_seconds", "percore_call_run_seconds"


def panels() -> Iterator[make.Panel]:
    """Yield the row's panels."""
    yield make.lines(
        "Queue time",
        "How long calls were queued. A call is counted when it ends. If it grows, have more pods "
        "(autoscaling.maxReplicas), or have them sooner (autoscaling.spareReplicas, autoscaling.minReplicas).",
        "s",
        quantiles(QUEUE, GATEWAY),
        span=12,
    ).interval(make.FEW_CALLS)
    yield make.lines(
        "Run time",
        "How long calls computed on their pod. It should not depend on the load. If it grows with the load, pods do not "
        "have their cores to themselves: see Throttled, and the kubelet's static CPU manager.",
        "s",
        quantiles(RUN, STATUS_SERVER),
        span=12,
    ).interval(make.FEW_CALLS)
    yield make.distribution(
        "Queue times",
        "How many calls were queued for how long. Two bands: some calls find a free pod at once, the others wait for a pod "
        "to start.",
        cells(f"sum by (le) (increase({QUEUE}_bucket{{{GATEWAY}}}[$__interval]))"),
    )
    yield make.distribution(
        "Run times",
        "How many calls computed for how long. A rising band: inputs have grown, or the model is slower since a roll-out.",
        cells(f"sum by (le) (increase({RUN}_bucket{{{STATUS_SERVER}}}[$__interval]))"),
    )
