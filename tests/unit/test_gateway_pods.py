"""Pods: how long the gateway does not try a pod that has failed."""

from __future__ import annotations

import pytest
from percore.gateway.endpoints import Endpoint
from percore.gateway.pods import Pod, Pods


def known(count: int) -> tuple[Pods, Pod]:
    """Return so many pods that are listed, and one of them."""
    pods = Pods()
    pods.publish(Endpoint(f"10.0.{number >> 8}.{number & 255}", 8080, 9090) for number in range(count))
    return pods, next(iter(pods.known.values()))


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (11, [0.02, 0.04, 0.05, 0.05, 0.05]),
        (100, [0.02, 0.04, 0.08, 0.16, 0.25, 0.25]),
        (1000, [0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0, 1.0]),
    ],
)
def test_the_backoff_of_a_pod_doubles_up_to_a_bound_that_grows_with_the_number_of_pods(
    count: int, expected: list[float]
) -> None:
    pods, pod = known(count)
    assert [pods.back_off(pod) for _ in expected] == pytest.approx(expected)


def test_a_pod_that_has_failed_for_days_is_still_tried() -> None:
    pods, pod = known(1)
    pod.failures = 100_000  # 2.0 ** 100_000 is more than a float holds
    assert pods.back_off(pod) == 0.05
