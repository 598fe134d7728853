"""Pods: how long one that could not be used is left alone."""

from __future__ import annotations

import pytest
from percore.gateway.endpoints import Endpoint
from percore.gateway.pods import Pod


def test_a_pod_that_fails_again_and_again_is_left_alone_for_twice_as_long_each_time_up_to_a_second() -> None:
    pod = Pod(Endpoint("10.0.0.1", 8080, 9090))
    delays = [pod.fail() for _ in range(9)]
    assert delays == pytest.approx([0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0, 1.0, 1.0])


def test_a_pod_that_has_failed_for_days_is_still_tried_each_second() -> None:
    pod = Pod(Endpoint("10.0.0.1", 8080, 9090), failures=100_000)  # 2.0 ** 100_000 is more than a float holds
    assert pod.fail() == 1.0
