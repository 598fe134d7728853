"""Whether there are as many pods as calls, and how soon."""

from __future__ import annotations

from collections.abc import Iterator

from deploy.monitoring import panels as make
from deploy.monitoring.queries import DEPLOYMENT, GATEWAY, HPA, PODS, STATUS_SERVER, line


def panels() -> Iterator[make.Panel]:
    """Yield the row's panels."""
    calls = make.lines(
        "Calls against capacity",
        "Calls in flight, and the workers that have loaded. Calls above capacity are queued. "
        "If this lasts longer than a pod takes to start, look at the pods wanted, beside this.",
        "none",
        [
            line(f"sum by (state) (percore_in_flight_requests{{{GATEWAY}}})", "{{state}}"),
            line(f'sum(percore_workers{{{STATUS_SERVER},state=~"free|busy"}})', "capacity"),
        ],
    )
    style = [make.property_of("custom.stacking", {"mode": "none"}), make.property_of("custom.fillOpacity", 0)]
    yield make.steps_of(make.stacked(calls).override_by_name("capacity", [*style, make.property_of("custom.lineWidth", 2)]))
    yield make.steps_of(
        make.lines(
            "Pods wanted and ready",
            "Wanted at the maximum while calls are queued: raise autoscaling.maxReplicas. Wanted above ready for minutes: "
            "pods do not start. Wanted does not follow the calls: `kubectl describe hpa`. `wanted`, `minReplicas` and "
            "`maxReplicas` are numbers of the autoscaler. Needs kube-state-metrics.",
            "none",
            [
                line(f"max(kube_horizontalpodautoscaler_status_desired_replicas{{{HPA}}})", "wanted"),
                line(f"max(kube_deployment_status_replicas{{{DEPLOYMENT}}})", "pods"),
                line(f"max(kube_deployment_status_replicas_ready{{{DEPLOYMENT}}})", "ready"),
                line(f"max(kube_horizontalpodautoscaler_spec_min_replicas{{{HPA}}})", "minReplicas"),
                line(f"max(kube_horizontalpodautoscaler_spec_max_replicas{{{HPA}}})", "maxReplicas"),
            ],
        )
    )
    took = f"(max by (pod) (kube_pod_status_ready_time{{{PODS}}}) - max by (pod) (kube_pod_created{{{PODS}}}))"
    yield make.lines(
        "From wanted to ready",
        "How long the present pods took from their creation until they were ready: to be scheduled, to pull the image, "
        "and to load the models. If a pod was not ready for a time, this is the time until it was ready again. Long: "
        "keep images on nodes, or keep spare pods (autoscaling.spareReplicas). Needs kube-state-metrics.",
        "s",
        [line(f"max({took})", "slowest"), line(f"avg({took})", "mean"), line(f"min({took})", "fastest")],
    )
