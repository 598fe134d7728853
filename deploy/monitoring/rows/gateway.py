"""The gateways: their queues, what they reject, how full they are, and whether they are well."""

from __future__ import annotations

from collections.abc import Iterator

from deploy.monitoring import panels as make
from deploy.monitoring.queries import GATEWAY, GATEWAY_PODS, a_minute, line

UP = {0: ("no answer", "red"), 1: ("up", "green")}
STALE_SECONDS = 180.0
LAG_SECONDS = 1.0
LIMIT = [make.property_of("custom.lineStyle", {"fill": "dash"}), make.property_of("custom.fillOpacity", 0)]
"""How a limit is drawn: a dashed line, without colour below it."""


def panels() -> Iterator[make.Panel]:
    """Yield the row's panels."""
    yield from _dispatch()
    yield from _losses()
    yield from _room()
    yield from _health()
    yield from _resources()


def _dispatch() -> Iterator[make.Panel]:
    calls = f"sum by (pod, state) (percore_in_flight_requests{{{GATEWAY}}})"
    yield make.steps_of(
        make.lines(
            "Calls of each gateway",
            "Queued and executing. One gateway may have all calls while another has none, because callers keep their "
            "connections. This does no harm until the queue of one gateway is full (queue.length).",
            "none",
            [line(calls, "{{pod}} {{state}}")],
        )
    )
    yield make.steps_of(
        make.lines(
            "Pods as the gateways see them",
            "`unknown`: no connection to the pod, which is normal while nothing is queued; with queued calls the pod "
            "cannot be reached. `waiting`: the pod is asked whether it is free. `reserved`: it is free and gets the next "
            "call. `running`: it computes a call of this gateway. `ending`: it gets no more calls.",
            "none",
            [line(f"max by (state) (percore_gateway_pods{{{GATEWAY}}})", "{{state}}")],
        )
    )
    yield make.lines(
        "Deletion costs, a minute",
        "Pods whose deletion cost was changed, because they began or ended a call. `failed`: scaling in may remove pods "
        "that compute; see the gateway's log, and its right to patch pods. `gone`: the pod was deleted before.",
        "cpm",
        [line(a_minute("percore_gateway_deletion_cost_updates_total", GATEWAY, "result"), "{{result}}")],
    )


def _losses() -> Iterator[make.Panel]:
    yield make.rises_a_minute(
        "Rejected calls, a minute",
        "Calls that never ran. `queue-full`: raise queue.length or autoscaling.maxReplicas. `overloaded`: the spool, the "
        "uploads or the connections are at their limit, see below. `queue-timeout`: too few pods. `body-timeout`: callers "
        "send slowly. The others are errors of callers.",
        "percore_gateway_rejected_calls_total",
        "reason",
    )
    yield make.rises_a_minute(
        "Client disconnects, a minute",
        "Clients that closed their connection before the answer was complete, by what the call did then. Many while "
        "`queued` or `executing`: the client, or a load balancer, has a timeout that is too short.",
        "percore_gateway_client_disconnects_total",
        "state",
    )
    losses = {
        "requeued": "percore_gateway_requeued_calls_total",
        "interrupted answers": "percore_gateway_interrupted_answers_total",
    }
    yield make.lines(
        "Lost pods, a minute",
        "`requeued`: a pod was lost before its call began, and the call went back to its place in the queue. The caller"
        " notices nothing. `interrupted answers`: a pod was lost while it sent its answer, and the caller got a part of"
        " it.",
        "cpm",
        [line(a_minute(counter, GATEWAY, "service"), legend) for legend, counter in losses.items()],
    ).interval(make.FEW_CALLS)


def _room() -> Iterator[make.Panel]:
    spool = make.lines(
        "Spool",
        "Bytes of request bodies and answers that each gateway keeps, and its limits (dashed). Memory at its limit is "
        "normal: then bodies go to disk. Disk at its limit: calls are rejected as `overloaded`; raise gateway.spool.bytes.",
        "bytes",
        [
            line(f"max by (pod, place) (percore_gateway_spool_bytes{{{GATEWAY}}})", "{{pod}} {{place}}"),
            line(f"max by (place) (percore_gateway_spool_limit_bytes{{{GATEWAY}}})", "limit {{place}}"),
        ],
    )
    yield spool.override_by_regexp("limit .*", LIMIT)
    connections = make.lines(
        "Connections and uploads",
        "Connections of callers to each gateway, their limit (dashed), and bodies that are received now. At the limit the "
        "gateway closes the connections that have been idle longest: raise gateway.connections.",
        "none",
        [
            line(f"max by (pod) (percore_gateway_connections{{{GATEWAY}}})", "{{pod}} connections"),
            line(f"max by (pod) (percore_gateway_uploads{{{GATEWAY}}})", "{{pod}} uploads"),
            line(f"max(percore_gateway_connections_limit{{{GATEWAY}}})", "limit"),
        ],
    )
    yield connections.override_by_name("limit", LIMIT)
    yield make.limited(
        make.lines(
            "Loop lag",
            "The longest delay of each gateway's event loop within a minute. Every caller of that gateway is delayed by the"
            " same time. Usually below 0.05 s. Above a second for minutes: the gateway needs more CPU (gateway.cpu).",
            "s",
            [line(f"max by (pod) (percore_gateway_loop_lag_seconds{{{GATEWAY}}})", "{{pod}}")],
        ),
        {LAG_SECONDS: "red"},
    )


def _health() -> Iterator[make.Panel]:
    yield make.states(
        "Gateways",
        "Whether each gateway answers Prometheus. No answer: look at its log, and whether it was OOMKilled.",
        line(f"min by (pod) (up{{{GATEWAY}}})", "{{pod}}"),
        UP,
    )
    yield make.limited(
        make.lines(
            "Endpoints confirmed",
            "How long ago the API server last confirmed the list of pods to each gateway. It does so each minute. If it is "
            "longer, this gateway gives no calls to new pods; see its log.",
            "s",
            [line(f"max by (pod) (percore_gateway_endpoints_age_seconds{{{GATEWAY}}})", "{{pod}}")],
            span=12,
        ),
        {STALE_SECONDS: "red"},
    )


def _resources() -> Iterator[make.Panel]:
    lost = f"sum by (pod) (increase(percore_gateway_log_lines_lost_total{{{GATEWAY}}}[$__rate_interval]))"
    yield make.limited(
        make.lines(
            "Lost log lines",
            "Should be zero. Lines that a gateway could not write, because the reader of its log was too slow. Some calls "
            "then have no line; the metrics count them.",
            "none",
            [line(lost, "{{pod}}")],
        ),
        {1.0: "red"},
    )
    container = GATEWAY_PODS + ',container="gateway"'
    yield make.lines(
        "CPU of gateways",
        "In cores. A gateway uses one core at most for its calls, and a little more for probes and the API server. Near "
        "one core: have more gateways (gateway.replicas). Needs cAdvisor.",
        "none",
        [line(f"sum by (pod) (rate(container_cpu_usage_seconds_total{{{container}}}[$__rate_interval]))", "{{pod}}")],
    )
    yield make.lines(
        "Memory of gateways",
        "Grows with queued calls, connections and the spool in memory. Near the limit: raise gateway.memory, or lower "
        "queue.length. Needs cAdvisor.",
        "bytes",
        [line(f"max by (pod) (container_memory_working_set_bytes{{{container}}})", "{{pod}}")],
    )
