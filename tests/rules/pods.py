"""Alerts on missing pods, on pods that do not become ready, and on restarts."""

from __future__ import annotations

from collections.abc import Mapping

from tests.rules.harness import Case, gateway, kubernetes, status_server

AT_MAXIMUM, NOT_READY = "PercoreCallsWaitAtMaximum", "PercorePodsNotReady"
BLIND, AUTOSCALER_STUCK = "PercoreAutoscalerBlind", "PercoreAutoscalerStuck"
REVISION = "PercoreRevisionNotReady"
RESTART, CRASH = "PercoreContainersRestart", "PercoreWorkersCrash"
FULL_NAME, HPA = "first-percore-inference", "horizontalpodautoscaler"
POD = f"{FULL_NAME}-6d4f9c7b8-x2v4k"
HOUR = 60.0


def queue(calls: int) -> Mapping[str, str]:
    return {gateway("percore_in_flight_requests", state="queued"): f"{calls}x240"}


def autoscaler(desired: int) -> Mapping[str, str]:
    return {
        kubernetes("kube_horizontalpodautoscaler_status_desired_replicas", **{HPA: FULL_NAME}): f"{desired}x240",
        kubernetes("kube_horizontalpodautoscaler_spec_max_replicas", **{HPA: FULL_NAME}): "11x240",
    }


def deployment(wanted: int, ready: int) -> Mapping[str, str]:
    return {
        kubernetes("kube_deployment_spec_replicas", deployment=FULL_NAME): f"{wanted}x240",
        kubernetes("kube_deployment_status_replicas_ready", deployment=FULL_NAME): f"{ready}x240",
    }


def inactive(value: int) -> Mapping[str, str]:
    labels = {HPA: FULL_NAME, "condition": "ScalingActive", "status": "false"}
    return {kubernetes("kube_horizontalpodautoscaler_status_condition", **labels): f"{value}x240"}


def stuck(values: str, deployment: str = FULL_NAME) -> Mapping[str, str]:
    labels = {"deployment": deployment, "condition": "Progressing", "status": "false"}
    return {kubernetes("kube_deployment_status_condition", **labels): values}


def restarts(values: str, pod: str = POD, container: str = "inference", kind: str = "container") -> Mapping[str, str]:
    return {kubernetes(f"kube_pod_{kind}_status_restarts_total", pod=pod, container=container): values}


def crashes(values: str, reason: str = "crashed") -> Mapping[str, str]:
    return {status_server("percore_worker_restarts_total", reason=reason): values}


BROKEN = (
    "No pod of the new revision has become ready for 900s. Pods of the previous revision continue to serve, if there are any."
)
NONE, ONE, TWO, THREE = "0x240", "0x10 1x230", "0x10 1x10 2x220", "0x10 1x10 2x10 3x210"
TWICE = "Container inference of pod " + POD + " was restarted 2 times within an hour."
SIDECAR = "Container status-server of pod " + POD + " was restarted 2 times within an hour."
DIED = "Workers that died within an hour: 3. A worker that computed lost its call, and each has to load the models again."
LATE = "Wanted pods that have not been ready for 900s: 1."
OTHER = "first-percore-inference-b-percore-gateway-6d4f9c7b8-x2v4k"
"""A pod of the release `first-percore-inference-b`, whose name begins with those of this one."""
WAITED = "Queued calls: 3. The autoscaler already wants as many pods as it may."
BLIND_TEXT = (
    "The autoscaler has not been able to scale for five minutes. The number of pods stays as it is, however many calls come."
)
AUTOSCALER_STUCK_TEXT = (
    "Queued calls: 3. For five minutes the autoscaler has wanted fewer pods than there are calls, "
    "although it is below its maximum."
)

CASES = [
    Case(AT_MAXIMUM, "calls are queued, and one more pod may come", {**queue(3), **autoscaler(10)}, 30),
    Case(AT_MAXIMUM, "no call is queued at the maximum", {**queue(0), **autoscaler(11)}, 30),
    Case(AT_MAXIMUM, "calls are queued at the maximum", {**queue(3), **autoscaler(11)}, 10, WAITED),
    Case(BLIND, "the autoscaler is active", {**inactive(0), **deployment(1, 1)}, 30),
    Case(BLIND, "it rests, because there are no pods", {**inactive(1), **deployment(0, 0)}, 30),
    Case(BLIND, "it cannot scale", {**inactive(1), **deployment(1, 1)}, 5, BLIND_TEXT),
    Case(AUTOSCALER_STUCK, "it wants a pod for each call", {**queue(3), **autoscaler(3)}, 30, severity="critical"),
    Case(AUTOSCALER_STUCK, "it wants as many as it may", {**queue(13), **autoscaler(11)}, 30, severity="critical"),
    Case(
        AUTOSCALER_STUCK,
        "calls are queued, and it wants fewer pods than calls",
        {**queue(3), **autoscaler(2)},
        5,
        AUTOSCALER_STUCK_TEXT,
        "critical",
    ),
    Case(
        AUTOSCALER_STUCK,
        "calls are queued at zero pods",
        {**queue(3), **autoscaler(0), **deployment(0, 0)},
        5,
        AUTOSCALER_STUCK_TEXT,
        "critical",
    ),
    Case(NOT_READY, "every pod is ready", deployment(5, 5), 60),
    Case(NOT_READY, "one is not ready", deployment(5, 4), 15, LATE),
    Case(NOT_READY, "one is not ready, and no call is queued", {**deployment(5, 4), **queue(0)}, 60, severity="critical"),
    Case(
        NOT_READY,
        "one is not ready, and calls are queued",
        {**deployment(5, 4), **queue(1)},
        15,
        LATE + " Calls are queued for them.",
        "critical",
    ),
    Case(REVISION, "an update goes on, or has ended", {**stuck("0x240"), **deployment(1, 1)}, 30),
    Case(REVISION, "an update of the gateway does not go on", stuck("1x240", "first-percore-gateway"), 30),
    Case(
        REVISION,
        "an update does not go on, and the pods before it are ready",
        {**stuck("0x19 1x220"), **deployment(1, 1)},
        10,
        BROKEN,
    ),
    Case(RESTART, "one restart", restarts(ONE), HOUR),
    Case(RESTART, "two restarts", restarts(TWO), HOUR, TWICE, labels={"pod": POD, "container": "inference"}),
    Case(
        RESTART,
        "two restarts of a sidecar",
        restarts(TWO, container="status-server", kind="init_container"),
        HOUR,
        SIDECAR,
        labels={"pod": POD, "container": "status-server"},
    ),
    Case(RESTART, "two restarts of another release's pod", restarts(TWO, pod=OTHER), HOUR),
    Case(CRASH, "two crashes", crashes(TWO), HOUR),
    Case(CRASH, "three crashes", crashes(THREE), HOUR, DIED),
    Case(CRASH, "three workers that ended with their clients", {**crashes(NONE), **crashes(THREE, "client-disconnect")}, HOUR),
]
