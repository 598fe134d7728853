"""One line a pod: what it does, and what it uses."""

from __future__ import annotations

from collections.abc import Iterator

from deploy.monitoring import panels as make
from deploy.monitoring.queries import PODS, STATUS_SERVER, WORKER, a_minute, column, line

STATES = {0: ("no worker", "red"), 1: ("free", "green"), 2: ("busy", "blue"), 3: ("loading", "orange")}
STATE = " + ".join(
    f'{value} * max by (pod) (percore_workers{{{STATUS_SERVER},state="{name}"}})'
    for value, (name, _) in STATES.items()
    if value
)
LIMIT = f'max by (pod) (kube_pod_container_resource_limits{{{WORKER},resource="cpu"}})'
USED = f"sum by (pod) (rate(container_cpu_usage_seconds_total{{{WORKER}}}[$__rate_interval])) / {LIMIT}"
THROTTLED = " / ".join(
    f"sum by (pod) (rate(container_cpu_cfs_{which}periods_total{{{WORKER}}}[$__rate_interval]))" for which in ("throttled_", "")
)
MEMORY = f"max by (pod) (container_memory_working_set_bytes{{{WORKER}}})"
MEMORY_LIMIT = f'max by (pod) (kube_pod_container_resource_limits{{{WORKER},resource="memory"}})'
RESTARTS = f'sum by (pod) ({{__name__=~"kube_pod_(init_)?container_status_restarts_total",{PODS}}})'


def panels() -> Iterator[make.Panel]:
    """Yield the row's panels."""
    yield make.states(
        "Busy or free",
        "What each pod's worker does. Loading again and again: workers end, and the panel beside this says why. "
        "No worker: the pod is starting, or cannot start.",
        line(STATE, "{{pod}}"),
        STATES,
    )
    yield make.stacked(
        make.lines(
            "Worker restarts, a minute",
            "After each one the models are loaded again. `client-disconnect`: clients disconnect, see the row Gateway. "
            "`run-timeout`: calls exceed the run timeout. `crashed`: out of memory, or a fault of the model; see the "
            "pod's log.",
            "cpm",
            [line(a_minute("percore_worker_restarts_total", STATUS_SERVER, "reason"), "{{reason}}")],
            span=12,
        ).interval(make.FEW_CALLS)
    )
    yield make.rows(
        "Pods",
        "Click on a column to sort by it. Memory near its limit: raise `memory`. Throttled: the worker wants more CPU "
        "than its limit. "
        "Many restarts or disconnects on one pod alone: delete that pod. CPU, throttling, memory and restarts of "
        "containers need cAdvisor and kube-state-metrics.",
        {
            "State": column(STATE),
            "CPU of its cores": column(USED),
            "Throttled": column(THROTTLED),
            "Memory": column(MEMORY),
            "Memory limit": column(MEMORY_LIMIT),
            "Container restarts": column(RESTARTS),
            "Worker restarts": column(f"sum by (pod) (percore_worker_restarts_total{{{STATUS_SERVER}}})"),
            "Client disconnects": column(f"sum by (pod) (percore_worker_client_disconnects_total{{{STATUS_SERVER}}})"),
        },
        {"CPU of its cores": "percentunit", "Throttled": "percentunit", "Memory": "bytes", "Memory limit": "bytes"},
    ).override_by_name("State", [make.property_of("mappings", [make.mapping(STATES).to_json()])])
    yield make.limited(
        make.lines(
            "CPU of its cores",
            "What each worker uses of the cores that are its own. If a busy pod is far below 100 %, the model waits for "
            "something or does not use its cores. Then a server with threads is better than percore. Needs cAdvisor and "
            "kube-state-metrics.",
            "percentunit",
            [line(USED, "{{pod}}")],
        ),
        {1.0: "orange"},
    )
    yield make.limited(
        make.lines(
            "Throttled",
            "Share of the scheduler's periods in which a worker was stopped because it had used up its CPU time. If it is "
            "high, the pod computes something besides the model, or TensorFlow has more threads than `cpu`. Needs cAdvisor.",
            "percentunit",
            [line(THROTTLED, "{{pod}}")],
        ),
        {0.25: "orange"},
    )
    yield make.lines(
        "Memory",
        "Memory of each worker. Above its limit the kernel ends the worker. If it grows from call to call, the handler "
        "keeps data that it does not need. Near the limit: raise `memory`. Needs cAdvisor.",
        "bytes",
        [line(MEMORY, "{{pod}}")],
    )
