"""KEDA as the engine of autoscaling, down to no pods at all. The handler sleeps, so that eleven pods find room on one node.

Needs the Prometheus operator with its Prometheus in the namespace `monitoring`, and KEDA.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import pytest

from tests.e2e import objects
from tests.e2e.conftest import releases
from tests.e2e.harness import CALL, Call, Release, eventually, kubectl, sleeping
from tests.e2e.keda import Watch, health

pytestmark = pytest.mark.skipif(not objects.knows("scaledobjects.keda.sh"), reason="needs KEDA: chart kedacore/keda")
CALLS = 11
STABILIZATION_SECONDS = 10
KEDA = {
    "monitoring": {"enabled": True},
    "autoscaling": {
        "enabled": True,
        "engine": "keda",
        "minReplicas": 0,
        "maxReplicas": CALLS,
        "scaleDownStabilizationSeconds": STABILIZATION_SECONDS,
    },
}


@pytest.fixture(scope="module")
def scaled(namespace: str, request: pytest.FixtureRequest) -> Iterator[Release]:
    """A release whose metric KEDA has read. The operator's Prometheus needs up to three minutes for a new target."""
    with releases(namespace, request.session) as install:
        release = install("keda", **KEDA)
        eventually(lambda: health(release) == "Happy", seconds=300, every=1)
        yield release


@pytest.fixture
def idle(scaled: Release) -> Release:
    """No pods, because there are no calls."""
    eventually(lambda: scaled.replicas() == 0 and not scaled.pods("inference"), every=1)
    return scaled


def test_one_call_starts_one_pod_and_ten_more_calls_start_ten_pods_and_at_the_end_there_are_none(idle: Release) -> None:
    with Watch(idle) as watch:
        with idle.forwarded() as gateway:
            first = Call(gateway + CALL, sleeping(30), seconds=200).start()
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


def test_a_metric_that_is_lost_for_two_minutes_changes_nothing_though_the_calls_have_ended(idle: Release) -> None:
    with idle.forwarded() as gateway:
        calls = [Call(gateway + CALL, sleeping(70), seconds=200).start() for _ in range(4)]
        eventually(lambda: len(idle.ready()) == 4, seconds=60)
        with idle.unscraped():
            eventually(lambda: health(idle) == "Failing", seconds=30)
            ends = time.monotonic() + 120
            while time.monotonic() < ends:
                assert idle.replicas() == 4
                time.sleep(1)
            assert health(idle) == "Failing"
            assert [call.done().status for call in calls] == [200] * 4
            assert time.time() - max(call.ended for call in calls) > 2 * STABILIZATION_SECONDS, "it had no reason to scale in"
    eventually(lambda: idle.replicas() == 0)


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


def test_the_engine_can_be_changed_only_through_a_fixed_number_of_pods(scaled: Release) -> None:
    with pytest.raises(
        AssertionError, match=r"engine=hpa: the installed release is scaled by keda.*--set autoscaling\.enabled=false"
    ):
        scaled.upgrade({"autoscaling": {"engine": "hpa"}})
    scaled.upgrade({"replicas": 1, "autoscaling": {"enabled": False}})
    eventually(lambda: not _hpas(scaled), seconds=30)
    scaled.upgrade({"autoscaling": {"enabled": True, "minReplicas": 1}})
    with pytest.raises(AssertionError, match="engine=keda: the installed release is scaled by hpa"):
        scaled.upgrade({"autoscaling": {"engine": "keda"}})
    scaled.upgrade({"autoscaling": {"enabled": False}})
    scaled.upgrade(KEDA)
    eventually(lambda: _hpas(scaled), seconds=30)


def _hpas(release: Release) -> str:
    return kubectl(
        "-n", release.namespace, "get", "hpa", f"{release.full_name}-inference", "-o", "name", "--ignore-not-found"
    ).strip()


def test_uninstalling_removes_the_hpa_that_keda_made(scaled: Release) -> None:
    """Last, because the others need the release."""
    assert _hpas(scaled)
    scaled.uninstall()
    eventually(lambda: not [each for each in objects.of(scaled.namespace) if scaled.full_name in each], seconds=60)
