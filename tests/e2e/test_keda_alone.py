"""KEDA reads the gateways itself, and there is no Prometheus: from no pods to eleven, and gateways that end meanwhile.

Needs KEDA 2.20 or later. Needs neither the Prometheus operator nor prometheus-adapter.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import pytest

from tests.e2e import objects, postgresql
from tests.e2e.conftest import releases
from tests.e2e.harness import CALL, Call, Release, eventually, kubectl, sleeping
from tests.e2e.keda import Watch, health
from tests.e2e.test_stored_calls import Callers

pytestmark = pytest.mark.skipif(not objects.knows("scaledobjects.keda.sh"), reason="needs KEDA: chart kedacore/keda")
CALLS = 11
STABILIZATION_SECONDS = 10
NOBODY = {"podSelector": {"matchLabels": {"app": "nobody"}}}
VALUES = {
    "monitoring": {"enabled": False},
    "autoscaling": {
        "enabled": True,
        "engine": "keda-metrics-api",
        "minReplicas": 0,
        "maxReplicas": CALLS,
        "scaleDownStabilizationSeconds": STABILIZATION_SECONDS,
    },
    # Only KEDA's operator may read the metrics.
    "networkPolicy": {"scrapers": [NOBODY]},
}


@pytest.fixture(scope="module")
def scaled(namespace: str, request: pytest.FixtureRequest) -> Iterator[Release]:
    """A release whose metric KEDA has read. Only KEDA itself causes a delay."""
    with releases(namespace, request.session) as install:
        release = install("alone", **VALUES)
        eventually(lambda: health(release) == "Happy", seconds=60, every=1)
        yield release


@pytest.fixture
def idle(scaled: Release) -> Release:
    """No pods, because there are no calls."""
    eventually(lambda: scaled.replicas() == 0 and not scaled.pods("inference"), every=1)
    return scaled


def test_one_call_starts_one_pod_and_ten_more_calls_start_ten_pods_and_at_the_end_there_are_none(idle: Release) -> None:
    with Watch(idle) as watch:
        with idle.forwarded() as gateway:
            first = Call(gateway + CALL, sleeping(40), seconds=200).start()
            eventually(idle.ready, seconds=60)
            others = [Call(gateway + CALL, sleeping(15), seconds=200).start() for _ in range(CALLS - 1)]
            assert [call.done().status for call in [first, *others]] == [200] * CALLS
        eventually(lambda: idle.replicas() == 0, seconds=90)
    print(f"queue times {sorted(call.timing('queue') for call in [first, *others])}, replicas {watch.steps}")
    counts = [count for _, count in watch.steps]
    assert counts[:3] == [0, 1, CALLS], watch.steps
    assert all(after < before for before, after in itertools.pairwise(counts[2:])), "it scaled out again without a call"
    assert first.timing("queue") < 30
    assert max(call.timing("queue") for call in others) < 45


def test_a_gateway_that_is_replaced_is_counted_until_its_last_call_has_ended(idle: Release) -> None:
    """The old gateway is not ready and shuts down, and the new one has no calls. The sum is that of both."""
    with idle.forwarded() as gateway:
        calls = [Call(gateway + CALL, sleeping(70), seconds=200).start() for _ in range(4)]
        eventually(lambda: len(idle.ready()) == 4, seconds=60)
        [old] = idle.ready("gateway")
        kubectl("-n", idle.namespace, "rollout", "restart", f"deployment/{idle.full_name}-gateway")
        eventually(lambda: [pod for pod in idle.ready("gateway") if pod != old] and old not in idle.ready("gateway"))
        while all(call.running for call in calls):
            assert idle.replicas() == 4
            time.sleep(1)
        assert [call.done().status for call in calls] == [200] * 4
    eventually(lambda: idle.replicas() == 0, seconds=90)


def test_two_gateways_are_added_up(idle: Release) -> None:
    idle.upgrade({"gateway": {"replicas": 2}})
    [first, second] = idle.wait(2, "gateway")
    with idle.forwarded(f"pod/{first}") as one, idle.forwarded(f"pod/{second}") as other:
        calls = [Call(address + CALL, sleeping(40), seconds=200).start() for address in (one, one, other)]
        eventually(lambda: idle.replicas() == 3, seconds=60)
        assert [call.done().status for call in calls] == [200] * 3
    idle.upgrade({"gateway": {"replicas": 1}})
    idle.wait(1, "gateway")


def test_stored_calls_wake_as_many_pods_as_there_may_be_and_then_there_are_none_again(idle: Release) -> None:
    """They are in a database that two gateways share, and each counts its own."""
    with postgresql.postgresql(idle.namespace):
        idle.upgrade(postgresql.CALLS)
        idle.wait(2, "gateway")
        callers = Callers(idle, "keda-callers", count=200, at_once=200, seconds=2).start()
        eventually(lambda: idle.replicas() == CALLS, seconds=120, every=1)
        assert callers.done()["states"] == {"succeeded": 200}
        eventually(lambda: idle.replicas() == 0, seconds=90, every=1)
        idle.upgrade({"gateway": {"replicas": 1}, "calls": {"enabled": False, "database": {"existingSecret": ""}}})
        idle.wait(1, "gateway")


def test_while_no_gateway_can_be_asked_the_number_of_pods_stays_and_then_it_follows_the_calls_again(idle: Release) -> None:
    with idle.forwarded() as gateway:
        calls = [Call(gateway + CALL, sleeping(40), seconds=200).start() for _ in range(3)]
        eventually(lambda: len(idle.ready()) == 3, seconds=60)
        with idle.unscraped():
            eventually(lambda: health(idle) == "Failing", seconds=30)
            assert [call.done().status for call in calls] == [200] * 3
            ends = time.monotonic() + 4 * STABILIZATION_SECONDS
            while time.monotonic() < ends:
                assert idle.replicas() == 3
                time.sleep(1)
    eventually(lambda: health(idle) == "Happy", seconds=60)
    eventually(lambda: idle.replicas() == 0, seconds=90)


def test_the_buffer_is_there_before_the_first_call(idle: Release) -> None:
    idle.upgrade({"autoscaling": {"spareReplicas": 2}})
    eventually(lambda: idle.replicas() == 2, seconds=60)
    with idle.forwarded() as gateway:
        idle.wait(2)
        call = Call(gateway + CALL, sleeping(20), seconds=100).start()
        eventually(lambda: idle.replicas() == 3, seconds=60)
        assert call.done().status == 200
    assert call.timing("queue") < 1
    idle.upgrade({"autoscaling": {"spareReplicas": 0}})


def test_an_hpa_in_its_place_is_refused_while_keda_scales(scaled: Release) -> None:
    with pytest.raises(
        AssertionError, match=r"engine=hpa: the installed release is scaled by keda.*--set autoscaling\.enabled=false"
    ):
        scaled.upgrade({"monitoring": {"enabled": True}, "autoscaling": {"engine": "hpa"}})
    scaled.upgrade(VALUES)


def test_no_object_of_the_prometheus_operator_is_there(scaled: Release) -> None:
    assert not [each for each in objects.of(scaled.namespace) if "monitoring.coreos.com" in each and scaled.full_name in each]
